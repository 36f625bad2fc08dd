//! Owns an open segment of a simulated disk. Must never outlive its file: the disk keeps what is open.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::SimDisk;
use crate::disk::SegmentFile;
use crate::options::WalMode;

pub(super) struct SimSegment {
    disk: SimDisk,
    id: u64,
    mode: WalMode,
}

impl SimSegment {
    pub(super) fn open(disk: &SimDisk, path: &Path, mode: WalMode) -> io::Result<Self> {
        let mut state = disk.state.lock();
        let id = state.id(path)?;
        state.faults.check_open()?;
        *state.open.entry(id).or_default() += 1;
        Ok(Self {
            disk: disk.clone(),
            id,
            mode,
        })
    }
}

impl Drop for SimSegment {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        if let Some(count) = state.open.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                state.open.remove(&self.id);
            }
        }
    }
}

impl SegmentFile for SimSegment {
    fn len(&self) -> u64 {
        self.disk.state.lock().files[&self.id].current.len() as u64
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk
            .state
            .lock()
            .write(self.id, offset as usize, bytes)
    }

    fn sync(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let range = match self.mode {
            WalMode::Direct => 0..usize::MAX,
            WalMode::Mapped => offset as usize..(offset + bytes) as usize,
        };
        self.disk.state.lock().sync(self.id, range)
    }

    fn read(self: Arc<Self>, offset: u64, bytes: usize) -> Bytes {
        let state = self.disk.state.lock();
        state.files[&self.id].current.read(offset as usize, bytes)
    }
}

impl fmt::Debug for SimSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimSegment")
            .field("file", &self.id)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

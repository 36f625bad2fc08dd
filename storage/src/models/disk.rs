//! Owns a disk for the models: a simulated one that knows which batches are synced and who still reads a segment.
//! Must let the scheduler choose between a write and its sync.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use shuttle::thread;

use crate::disk::{Disk, SegmentFile, SegmentSpec};
use crate::sim::SimDisk;

#[derive(Clone, Debug)]
pub(super) struct ModelDisk {
    pub(super) disk: SimDisk,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    written: Vec<u64>,
    /// The highest batch whose sync has returned.
    synced: u64,
    /// The sync of this batch fails.
    fails: Option<u64>,
    /// Slices of a segment that somebody holds.
    readers: BTreeMap<PathBuf, usize>,
}

impl ModelDisk {
    pub(super) fn new() -> Self {
        Self::on(SimDisk::new(1))
    }

    pub(super) fn on(disk: SimDisk) -> Self {
        Self {
            disk,
            shared: Arc::default(),
        }
    }

    /// Makes the sync of a batch fail.
    pub(super) fn fail_batch(&self, lsn: u64) {
        self.shared.lock().fails = Some(lsn);
    }

    pub(super) fn synced(&self) -> u64 {
        self.shared.lock().synced
    }

    fn check_unread(&self, path: &Path) {
        let readers = self.shared.lock().readers.get(path).copied();
        assert_eq!(
            readers.unwrap_or(0),
            0,
            "{} is written anew while somebody reads it",
            path.display()
        );
    }
}

impl Disk for ModelDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.disk.read(path)
    }

    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        self.disk.file_bytes(path)
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        self.disk.write_new(path, parts)
    }

    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_unread(path);
        self.disk.overwrite(path, offset, bytes)
    }

    fn create(&self, path: &Path) -> io::Result<()> {
        self.disk.create(path)
    }

    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(path, offset, bytes)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_file(path)
    }

    fn read_at(&self, path: &Path, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        self.disk.read_at(path, offset, bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path)
    }

    fn zero_segment(
        &self,
        path: &Path,
        bytes: u64,
        spec: SegmentSpec,
        between: &dyn Fn(),
    ) -> io::Result<()> {
        self.check_unread(path);
        self.disk.zero_segment(path, bytes, spec, between)
    }

    fn forget_cached(&self, path: &Path) -> io::Result<()> {
        self.disk.forget_cached(path)
    }

    fn open_segment(&self, path: &Path, spec: SegmentSpec) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(ModelSegment {
            file: self.disk.open_segment(path, spec)?,
            path: path.to_owned(),
            shared: Arc::clone(&self.shared),
        }))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.disk.free_bytes(path)
    }

    fn entropy(&self) -> io::Result<u128> {
        self.disk.entropy()
    }
}

#[derive(Debug)]
struct ModelSegment {
    file: Arc<dyn SegmentFile>,
    path: PathBuf,
    shared: Arc<Mutex<Shared>>,
}

impl SegmentFile for ModelSegment {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write(offset, bytes)?;
        if let (b"PRBT", Some(lsn)) = (&bytes[..4], bytes[16..24].first_chunk()) {
            self.shared.lock().written.push(u64::from_le_bytes(*lsn));
        }
        thread::yield_now();
        Ok(())
    }

    fn sync(&self, offset: u64, bytes: u64) -> io::Result<()> {
        thread::yield_now();
        let newest = {
            let mut shared = self.shared.lock();
            let newest = shared.written.drain(..).max();
            if newest.is_some() && newest == shared.fails {
                return Err(io::Error::other("the sync failed"));
            }
            newest
        };
        self.file.sync(offset, bytes)?;
        let mut shared = self.shared.lock();
        shared.synced = shared.synced.max(newest.unwrap_or(0));
        Ok(())
    }

    fn read(self: Arc<Self>, offset: u64, bytes: usize) -> Bytes {
        *self
            .shared
            .lock()
            .readers
            .entry(self.path.clone())
            .or_default() += 1;
        let bytes = Arc::clone(&self.file).read(offset, bytes);
        Bytes::from_owner(Slice {
            segment: self,
            bytes,
        })
    }
}

/// As a slice of a mapping does, it keeps its segment.
struct Slice {
    segment: Arc<ModelSegment>,
    bytes: Bytes,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let mut shared = self.segment.shared.lock();
        if let Some(count) = shared.readers.get_mut(&self.segment.path) {
            *count -= 1;
        }
    }
}

//! The machine's file system, with syncs of the log that can be held up for a time: what a disk does that saves itself,
//! or a virtual one whose host is busy. It never loses or changes a byte.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::disk::{Disk, FileDisk, SegmentFile, SegmentSpec};

/// How long nobody looks whether a stall is over.
const PIECE: Duration = Duration::from_millis(5);

/// A file system whose syncs can stall.
#[derive(Clone, Debug, Default)]
pub struct StallDisk {
    files: FileDisk,
    stall: Arc<Stall>,
}

#[derive(Debug, Default)]
struct Stall {
    until: Mutex<Option<Instant>>,
}

impl Stall {
    /// Waits while syncs are held up.
    fn pass(&self) {
        loop {
            let until = *self.until.lock();
            match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None | Some(Duration::ZERO) => return,
                // In pieces: the stall may be ended before its time.
                Some(left) => std::thread::sleep(left.min(PIECE)),
            }
        }
    }
}

impl StallDisk {
    /// Every sync of the log that begins in the next `lasts` ends after it.
    pub fn stall(&self, lasts: Duration) {
        *self.stall.until.lock() = Some(Instant::now() + lasts);
    }

    /// Whether syncs that begin now are held up.
    pub fn is_stalled(&self) -> bool {
        self.stall
            .until
            .lock()
            .is_some_and(|until| until > Instant::now())
    }
}

impl Disk for StallDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.files.create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.files.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.files.list(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.files.read(path)
    }

    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        self.files.file_bytes(path)
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        self.files.write_new(path, parts)
    }

    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.files.overwrite(path, offset, bytes)
    }

    fn create(&self, path: &Path) -> io::Result<()> {
        self.files.create(path)
    }

    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.files.write_at(path, offset, bytes)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.files.sync_file(path)
    }

    fn read_at(&self, path: &Path, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        self.files.read_at(path, offset, bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files.remove(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.files.lock(path)
    }

    fn zero_segment(
        &self,
        path: &Path,
        bytes: u64,
        spec: SegmentSpec,
        between: &dyn Fn(),
    ) -> io::Result<()> {
        self.files.zero_segment(path, bytes, spec, between)
    }

    fn forget_cached(&self, path: &Path) -> io::Result<()> {
        self.files.forget_cached(path)
    }

    fn expect_reads(&self, path: &Path) {
        self.files.expect_reads(path);
    }

    fn serves_threads(&self) -> bool {
        self.files.serves_threads()
    }

    fn open_segment(&self, path: &Path, spec: SegmentSpec) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(StallSegment {
            file: self.files.open_segment(path, spec)?,
            stall: Arc::clone(&self.stall),
        }))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.files.free_bytes(path)
    }

    fn entropy(&self) -> io::Result<u128> {
        self.files.entropy()
    }
}

#[derive(Debug)]
struct StallSegment {
    file: Arc<dyn SegmentFile>,
    stall: Arc<Stall>,
}

impl SegmentFile for StallSegment {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write(offset, bytes)
    }

    fn sync(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.stall.pass();
        self.file.sync(offset, bytes)
    }

    fn read(self: Arc<Self>, offset: u64, bytes: usize) -> Bytes {
        Arc::clone(&self.file).read(offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::WalMode;

    #[test]
    fn a_stalled_sync_ends_after_the_stall_and_keeps_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        let spec = SegmentSpec {
            mode: WalMode::Mapped,
            direct_io: false,
        };
        let disk = StallDisk::default();
        disk.zero_segment(&path, 8192, spec, &|| {}).unwrap();
        let segment = disk.open_segment(&path, spec).unwrap();
        let page = vec![7; 4096];
        segment.write(4096, &page).unwrap();
        segment.sync(4096, 4096).unwrap();
        let begun = Instant::now();
        disk.stall(Duration::from_millis(30));
        segment.sync(4096, 4096).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(30));
        assert_eq!(segment.read(4096, 4096), page);
    }
}

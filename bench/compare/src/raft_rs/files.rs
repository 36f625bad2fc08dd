//! The file system under raft-engine. It counts syncs, which proves that they happen, and fills new log files with zeros,
//! because syncs of a file that already has all its blocks take about half as long. It knows whether that was enough.

use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission};
use std::io::{Result, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

type Inner = DefaultFileSystem;

/// How much is written at a time while a file is filled.
const PIECE_BYTES: usize = 1 << 20;

/// How raft-engine names the files that are appended to.
const LOG_FILE: &str = "raftlog";

/// raft-engine's own file system, with a counter and full log files.
pub struct CountingFiles {
    inner: Inner,
    syncs: Arc<AtomicU64>,
    /// How much of a log file is filled, a multiple of [`PIECE_BYTES`].
    fill_bytes: usize,
    /// The log files made so far.
    logs: Mutex<Vec<Arc<<Inner as FileSystem>::Handle>>>,
}

impl CountingFiles {
    /// Counts into `syncs`, and fills `fill_bytes` of each log file, to the next MiB.
    pub fn new(syncs: Arc<AtomicU64>, fill_bytes: usize) -> Self {
        Self {
            inner: DefaultFileSystem,
            syncs,
            fill_bytes: fill_bytes.next_multiple_of(PIECE_BYTES),
            logs: Mutex::default(),
        }
    }

    fn logs(&self) -> MutexGuard<'_, Vec<Arc<<Inner as FileSystem>::Handle>>> {
        self.logs
            .lock()
            .expect("no thread panics while it holds the list of files")
    }

    /// Whether a log file is longer than what was filled. Only true while raft-engine has it open: it cuts off what it
    /// has not used when it closes a file.
    pub fn is_outgrown(&self) -> Result<bool> {
        for log in self.logs().iter() {
            if log.file_size()? > self.fill_bytes {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn counted(&self, inner: <Inner as FileSystem>::Handle) -> CountingHandle {
        CountingHandle {
            inner: Arc::new(inner),
            syncs: Arc::clone(&self.syncs),
        }
    }
}

/// An open file.
pub struct CountingHandle {
    inner: Arc<<Inner as FileSystem>::Handle>,
    syncs: Arc<AtomicU64>,
}

impl Handle for CountingHandle {
    fn truncate(&self, offset: usize) -> Result<()> {
        self.inner.truncate(offset)
    }

    fn file_size(&self) -> Result<usize> {
        self.inner.file_size()
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl FileSystem for CountingFiles {
    type Handle = CountingHandle;
    type Reader = <Inner as FileSystem>::Reader;
    type Writer = <Inner as FileSystem>::Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<Self::Handle> {
        let is_log = path
            .as_ref()
            .extension()
            .is_some_and(|kind| kind == LOG_FILE);
        let handle = self.counted(self.inner.create(path)?);
        if is_log {
            let mut writer = self.inner.new_writer(Arc::clone(&handle.inner))?;
            let zeros = vec![0; PIECE_BYTES];
            for _ in 0..self.fill_bytes / PIECE_BYTES {
                writer.write_all(&zeros)?;
            }
            handle.inner.sync()?;
            self.logs().push(Arc::clone(&handle.inner));
        }
        Ok(handle)
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<Self::Handle> {
        Ok(self.counted(self.inner.open(path, permission)?))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        self.inner.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<Self::Handle>) -> Result<Self::Reader> {
        self.inner.new_reader(Arc::clone(&handle.inner))
    }

    fn new_writer(&self, handle: Arc<Self::Handle>) -> Result<Self::Writer> {
        self.inner.new_writer(Arc::clone(&handle.inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_engine::env::WriteExt;
    use std::io::{Seek, SeekFrom};

    #[test]
    fn a_log_file_is_full_until_more_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let files = CountingFiles::new(Arc::default(), PIECE_BYTES + 1);
        let log = files.create(dir.path().join("1.raftlog")).unwrap();
        assert_eq!(log.file_size().unwrap(), 2 * PIECE_BYTES);
        let log = Arc::new(log);
        let mut writer = files.new_writer(Arc::clone(&log)).unwrap();
        writer
            .seek(SeekFrom::Start(2 * PIECE_BYTES as u64 - 1))
            .unwrap();
        writer.write_all(&[1]).unwrap();
        assert!(!files.is_outgrown().unwrap());
        // As raft-engine does it.
        writer.allocate(2 * PIECE_BYTES, 1).unwrap();
        assert!(files.is_outgrown().unwrap());
        let other = files.create(dir.path().join("1.rewrite")).unwrap();
        assert_eq!(other.file_size().unwrap(), 0, "only logs are filled");
    }
}

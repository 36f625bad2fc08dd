//! The file system under raft-engine. It counts syncs, which proves that they happen, and fills new log files with zeros,
//! because syncs of a file that already has all its blocks take about half as long.

use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission};
use std::io::{Result, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Inner = DefaultFileSystem;

/// How much of a log file is filled: more than a round writes.
const FILL_BYTES: usize = 384 << 20;

/// How raft-engine names the files that are appended to.
const LOG_FILE: &str = "raftlog";

/// raft-engine's own file system, with a counter.
pub struct CountingFiles {
    inner: Inner,
    syncs: Arc<AtomicU64>,
}

impl CountingFiles {
    /// Counts into `syncs`.
    pub fn new(syncs: Arc<AtomicU64>) -> Self {
        Self {
            inner: DefaultFileSystem,
            syncs,
        }
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
            let zeros = vec![0; 1 << 20];
            for _ in 0..FILL_BYTES / zeros.len() {
                writer.write_all(&zeros)?;
            }
            handle.inner.sync()?;
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

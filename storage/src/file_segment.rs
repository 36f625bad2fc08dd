//! Owns an open segment of the machine's file system: which of its two append paths writes, and what its barrier is.
//! Must never truncate the file while it is mapped.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};

use crate::disk::SegmentFile;
use crate::mapping::Mapping;
use crate::options::WalMode;

/// A segment file with its mapping. The file is never truncated while it lives, so no page of the mapping
/// can fault; it was filled with real zeros first, so no store can run out of disk space.
pub(crate) struct FileSegment {
    file: File,
    direct: Option<File>,
    mapping: Arc<Mapping<MmapRaw>>,
    mode: WalMode,
}

impl FileSegment {
    pub(crate) fn new(file: File, direct: Option<File>, mode: WalMode) -> io::Result<Self> {
        let mapping = Arc::new(Mapping::new(MmapOptions::new().map_raw(&file)?));
        Ok(Self {
            file,
            direct,
            mapping,
            mode,
        })
    }
}

impl SegmentFile for FileSegment {
    fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self.mode {
            WalMode::Mapped => self.mapping.write(offset, bytes),
            WalMode::Direct => {
                self.mapping.check(offset, bytes.len());
                let file = self.direct.as_ref().unwrap_or(&self.file);
                return file.write_all_at(bytes, offset);
            }
        }
        Ok(())
    }

    fn sync(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match self.mode {
            WalMode::Mapped => {
                let at = self.mapping.check(offset, bytes as usize);
                self.mapping.memory().flush_range(at, bytes as usize)
            }
            WalMode::Direct => self.file.sync_data(),
        }
    }

    fn read(self: Arc<Self>, offset: u64, bytes: usize) -> Bytes {
        // The slice keeps the segment, not only its mapping: whoever recycles a segment counts references to it.
        self.mapping.read(offset, bytes, Arc::clone(&self))
    }
}

impl fmt::Debug for FileSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSegment")
            .field("mode", &self.mode)
            .field("bytes", &self.mapping.len())
            .finish()
    }
}

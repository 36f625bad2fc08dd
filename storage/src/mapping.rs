//! Owns the memory mapping of a segment: the only unsafe code of this crate. Must never form a `&mut [u8]` over the
//! shared mapping, and never a `&[u8]` over bytes that may still be written.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};

use crate::disk::SegmentFile;
use crate::options::WalMode;

/// A segment file with its mapping. The file is never truncated while it lives, so no page of the mapping
/// can fault; it was filled with real zeros first, so no store can run out of disk space.
pub(crate) struct FileSegment {
    file: File,
    direct: Option<File>,
    map: MmapRaw,
    mode: WalMode,
}

impl FileSegment {
    pub(crate) fn new(file: File, direct: Option<File>, mode: WalMode) -> io::Result<Self> {
        let map = MmapOptions::new().map_raw(&file)?;
        Ok(Self {
            file,
            direct,
            map,
            mode,
        })
    }

    /// Panics on a range outside the file: offsets come from checked headers, so that would be a bug here.
    fn check(&self, offset: u64, bytes: usize) -> usize {
        let end = usize::try_from(offset)
            .ok()
            .and_then(|offset| offset.checked_add(bytes));
        assert!(
            end.is_some_and(|end| end <= self.map.len()),
            "{bytes} bytes at {offset} are outside the segment"
        );
        offset as usize
    }
}

impl SegmentFile for FileSegment {
    fn len(&self) -> u64 {
        self.map.len() as u64
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = self.check(offset, bytes.len());
        if self.mode == WalMode::Direct {
            return self
                .direct
                .as_ref()
                .unwrap_or(&self.file)
                .write_all_at(bytes, offset);
        }
        // SAFETY: `check` keeps the destination inside the mapping, which is writable. The source is ordinary memory
        // and does not overlap it. Nobody reads the destination meanwhile: slices are handed out only for ranges
        // whose batch is complete, and one flusher writes at a time (the lane's writer lock).
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.map.as_mut_ptr().add(at),
                bytes.len(),
            )
        };
        Ok(())
    }

    fn sync(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match self.mode {
            WalMode::Mapped => self
                .map
                .flush_range(self.check(offset, bytes as usize), bytes as usize),
            WalMode::Direct => self.file.sync_data(),
        }
    }

    fn read(self: Arc<Self>, offset: u64, bytes: usize) -> Bytes {
        let at = self.check(offset, bytes);
        Bytes::from_owner(Slice {
            segment: self,
            at,
            bytes,
        })
    }
}

impl fmt::Debug for FileSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSegment")
            .field("mode", &self.mode)
            .field("bytes", &self.map.len())
            .finish()
    }
}

/// Complete bytes of a segment; keeps the mapping alive.
struct Slice {
    segment: Arc<FileSegment>,
    at: usize,
    bytes: usize,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range is inside the mapping (checked in `read`), which lives as long as `self.segment`. Its bytes
        // do not change: a batch is written once and read only after its barrier (recovery reads before
        // any writer exists), and a segment is reused only after every `Slice` of it was dropped, because recycling
        // waits until the lane holds the only reference. The lock on the data directory keeps other processes away.
        unsafe { std::slice::from_raw_parts(self.segment.map.as_ptr().add(self.at), self.bytes) }
    }
}

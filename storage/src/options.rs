//! Owns the WAL's options, their defaults and their bounds. Must never read a file: the node maps its configuration here.

use crate::error::StorageError;
use crate::format::{BATCH_HEADER_BYTES, CONTROL_HEADER_BYTES, PAGE_BYTES, SEGMENT_HEADER_BYTES};

/// How batches reach the disk. Both paths write the same bytes and recover alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalMode {
    /// Copy into the shared mapping, then `msync` of the range.
    Mapped,
    /// `pwrite` from the batch buffer, then `fdatasync`.
    Direct,
}

/// What the log needs to know; checked once by [`crate::open`].
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Append path. Default: direct.
    pub mode: WalMode,
    /// In direct mode, bypass the page cache when writing batches (`O_DIRECT`). Default: false.
    pub direct_io: bool,
    /// Size of a segment file in bytes, a multiple of 4096, 64 KiB to 2 GiB. Default: 64 MiB.
    pub segment_bytes: u64,
    /// How many segments are kept ready ahead of need, 1 to 64. Default: 2.
    pub pool_segments: usize,
    /// Largest batch, and so the largest single write, in bytes: a multiple of 4096, at most the segment less 4096.
    /// Default: 4 MiB.
    pub max_batch_bytes: usize,
    /// What a lane should hold unsynced at most. The log takes more (a turn is never refused half-way);
    /// whoever accepts proposals compares [`crate::Wal::pending_bytes`] with it. Default: 64 MiB.
    pub max_pending_bytes: u64,
    /// A checkpoint is written after that many bytes of log; bounds the time of a recovery. Default: 256 MiB.
    pub checkpoint_bytes: u64,
    /// Recent log kept in memory per shard, in bytes, for appends to followers and apply. Default: 4 MiB.
    pub tail_cache_bytes: usize,
    /// Independent logs, each with its own flusher; fixed when the data directory is created. Default: 1.
    pub lanes: usize,
    /// Disk space in bytes that new segments leave free. Default: 64 MiB.
    pub min_free_bytes: u64,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            mode: WalMode::Direct,
            direct_io: false,
            segment_bytes: 64 << 20,
            pool_segments: 2,
            max_batch_bytes: 4 << 20,
            max_pending_bytes: 64 << 20,
            checkpoint_bytes: 256 << 20,
            tail_cache_bytes: 4 << 20,
            lanes: 1,
            min_free_bytes: 64 << 20,
        }
    }
}

impl WalOptions {
    /// Checks every bound.
    pub fn validate(&self) -> Result<(), StorageError> {
        let page = PAGE_BYTES as u64;
        let check = |ok: bool, name: &'static str, reason: &str| match ok {
            true => Ok(()),
            false => Err(StorageError::Option {
                name,
                reason: reason.to_owned(),
            }),
        };
        check(
            self.segment_bytes.is_multiple_of(page)
                && (64 << 10..=2 << 30).contains(&self.segment_bytes),
            "segment_bytes",
            "must be a multiple of 4096 between 64 KiB and 2 GiB",
        )?;
        check(
            self.max_batch_bytes.is_multiple_of(PAGE_BYTES)
                && self.max_batch_bytes >= 2 * PAGE_BYTES
                && self.max_batch_bytes as u64 + SEGMENT_HEADER_BYTES <= self.segment_bytes,
            "max_batch_bytes",
            "must be a multiple of 4096, at least 8 KiB and at most segment_bytes - 4096",
        )?;
        check(
            (1..=64).contains(&self.pool_segments),
            "pool_segments",
            "must be between 1 and 64",
        )?;
        check(
            (1..=64).contains(&self.lanes),
            "lanes",
            "must be between 1 and 64",
        )?;
        check(
            self.checkpoint_bytes >= self.segment_bytes,
            "checkpoint_bytes",
            "must be at least segment_bytes: a checkpoint per segment frees segments as fast as they fill",
        )?;
        check(
            !(self.direct_io && self.mode == WalMode::Mapped),
            "direct_io",
            "works in direct mode only: a mapping goes through the page cache",
        )
    }

    /// The largest encoded entry block that the log takes, in bytes.
    pub fn max_block_bytes(&self) -> usize {
        // A relocated block carries a control header too.
        self.max_record_bytes() - CONTROL_HEADER_BYTES
    }

    pub(crate) fn max_record_bytes(&self) -> usize {
        self.max_batch_bytes - BATCH_HEADER_BYTES
    }
}

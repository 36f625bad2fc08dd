//! Owns the counters of a lane. Must never be needed for correctness, except the active offset that the
//! full-disk check estimates with.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::batch::Tally;
use crate::histogram::{Histogram, Recorder};

/// What a lane has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Syncs of batches (`fdatasync` or `msync`), one per batch.
    pub barriers: u64,
    /// Those of them that a shard did by itself.
    pub inline_syncs: u64,
    /// Batches made durable.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Entry blocks in them.
    pub blocks: u64,
    /// Entries in those.
    pub entries: u64,
    /// Bytes written for them, headers and padding included.
    pub bytes_written: u64,
    /// Time spent in barriers, in microseconds.
    pub barrier_us_sum: u64,
    /// The longest barrier, in microseconds.
    pub barrier_us_max: u64,
    /// How long barriers took, in microseconds.
    pub barrier_us: Histogram,
    /// Bytes written per batch.
    pub batch_bytes: Histogram,
    /// Segments that hold log.
    pub segments: u64,
    /// Bytes of entry blocks in use, as of the last checkpoint.
    pub live_bytes: u64,
    /// Bytes handed in and not yet durable.
    pub pending_bytes: u64,
    /// Checkpoints published.
    pub checkpoints: u64,
    /// Entry blocks moved out of sparse segments.
    pub relocated: u64,
    /// Segment files used again.
    pub recycled: u64,
    /// Whether the disk has no room for another segment.
    pub disk_full: bool,
}

impl WalStats {
    /// Adds another lane's.
    pub fn merge(&mut self, other: &Self) {
        self.barriers += other.barriers;
        self.inline_syncs += other.inline_syncs;
        self.batches += other.batches;
        self.records += other.records;
        self.blocks += other.blocks;
        self.entries += other.entries;
        self.bytes_written += other.bytes_written;
        self.barrier_us_sum += other.barrier_us_sum;
        self.barrier_us_max = self.barrier_us_max.max(other.barrier_us_max);
        self.barrier_us.merge(&other.barrier_us);
        self.batch_bytes.merge(&other.batch_bytes);
        self.segments += other.segments;
        self.live_bytes += other.live_bytes;
        self.pending_bytes += other.pending_bytes;
        self.checkpoints += other.checkpoints;
        self.relocated += other.relocated;
        self.recycled += other.recycled;
        self.disk_full |= other.disk_full;
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    barriers: AtomicU64,
    inline_syncs: AtomicU64,
    batches: AtomicU64,
    records: AtomicU64,
    blocks: AtomicU64,
    entries: AtomicU64,
    bytes_written: AtomicU64,
    barrier_us_sum: AtomicU64,
    barrier_us_max: AtomicU64,
    barrier_us: Recorder,
    batch_bytes: Recorder,
    live_bytes: AtomicU64,
    checkpoints: AtomicU64,
    pub(crate) relocated: AtomicU64,
    /// Where the next batch goes in the active segment.
    pub(crate) active_offset: AtomicU64,
}

impl Counters {
    pub(crate) fn barrier(&self, took: Duration) {
        let micros = took.as_micros() as u64;
        self.barriers.fetch_add(1, Relaxed);
        self.barrier_us_sum.fetch_add(micros, Relaxed);
        self.barrier_us_max.fetch_max(micros, Relaxed);
        self.barrier_us.record(micros);
    }

    pub(crate) fn inline_sync(&self) {
        self.inline_syncs.fetch_add(1, Relaxed);
    }

    pub(crate) fn batch(&self, tally: &Tally, bytes: u64, active_offset: u64) {
        self.batches.fetch_add(1, Relaxed);
        self.records.fetch_add(u64::from(tally.records), Relaxed);
        self.blocks.fetch_add(u64::from(tally.blocks), Relaxed);
        self.entries.fetch_add(tally.entries, Relaxed);
        self.bytes_written.fetch_add(bytes, Relaxed);
        self.batch_bytes.record(bytes);
        self.active_offset.store(active_offset, Relaxed);
    }

    pub(crate) fn checkpoint(&self, live_bytes: u64) {
        self.checkpoints.fetch_add(1, Relaxed);
        self.live_bytes.store(live_bytes, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> WalStats {
        WalStats {
            barriers: self.barriers.load(Relaxed),
            inline_syncs: self.inline_syncs.load(Relaxed),
            batches: self.batches.load(Relaxed),
            records: self.records.load(Relaxed),
            blocks: self.blocks.load(Relaxed),
            entries: self.entries.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
            barrier_us_sum: self.barrier_us_sum.load(Relaxed),
            barrier_us_max: self.barrier_us_max.load(Relaxed),
            barrier_us: self.barrier_us.snapshot(),
            batch_bytes: self.batch_bytes.snapshot(),
            live_bytes: self.live_bytes.load(Relaxed),
            checkpoints: self.checkpoints.load(Relaxed),
            relocated: self.relocated.load(Relaxed),
            ..WalStats::default()
        }
    }
}

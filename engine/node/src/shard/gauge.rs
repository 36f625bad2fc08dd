//! What waits in front of a shard, as callers, the transport and whoever asks for figures count it.
//! It must never make one of them wait for another.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;
use polyraft_raft::Tick;

use crate::clock::Clock;

/// What waits in one shard's inbox. Callers and the transport's thread write to cache lines of their own.
#[derive(Debug, Default)]
pub(crate) struct InboxGauge {
    /// Bytes of proposals and reads.
    pub(crate) proposals: AtomicUsize,
    /// Proposals that were refused because the inbox was full.
    pub(crate) refused: AtomicU64,
    /// The same for reads.
    pub(crate) refused_reads: AtomicU64,
    /// When the proposal was put in whose wait is measured; 0: none waits.
    sampled_at: AtomicU64,
    /// Bytes of frames.
    pub(crate) frames: CachePadded<AtomicUsize>,
}

impl InboxGauge {
    /// Whether the proposal that is about to be put in is the one whose wait is measured: there is none before it.
    pub(crate) fn begin_sample(&self, clock: &Clock) -> bool {
        let is_free = self.sampled_at.load(Ordering::Relaxed) == 0;
        is_free && {
            let now = clock.now().0.max(1);
            let taken =
                self.sampled_at
                    .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            taken.is_ok()
        }
    }

    /// When the proposal whose wait is measured was put in. It waits no more.
    pub(super) fn end_sample(&self) -> Tick {
        Tick(self.sampled_at.swap(0, Ordering::Relaxed))
    }

    /// How long the proposal whose wait is measured has waited, in microseconds; 0: none waits.
    pub(crate) fn age(&self, now: Tick) -> u64 {
        match self.sampled_at.load(Ordering::Relaxed) {
            0 => 0,
            at => now.since(Tick(at)),
        }
    }
}

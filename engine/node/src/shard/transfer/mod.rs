//! Snapshots on their way between nodes. The follower pulls: a leader only offers, and sends what it is asked for, so that a
//! broken connection costs what was under way and nothing else.
//! It must never take a path, a length or an order from another node on trust, nor hold more than a few chunks in memory.

mod receiving;
mod sending;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use polyraft_raft::{GroupId, NodeId, Tick};
use rustc_hash::FxHashMap;

pub(crate) use self::receiving::ChunkTrouble;
use self::receiving::{Receiving, Setback};
use self::sending::Sending;
pub(crate) use self::sending::Wanted;
use super::Shard;

/// Chunks of one transfer that may be asked for and not written.
const WINDOW: u64 = 4;

/// Retry intervals without a sign of life after which a transfer loses its place to others.
const PLACE_PATIENCE: u64 = 20;

/// Microseconds without a part after which what came of a snapshot is given up, and after the last part, which a follower may
/// take to make it durable before another snapshot takes the place of this one.
const PART_PATIENCE: u64 = 60_000_000;

/// How fast and how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransferLimits {
    /// Bytes of a chunk.
    pub(crate) chunk: u64,
    /// Bytes a second that the node sends; 0: no limit.
    pub(crate) bytes_per_second: u64,
    /// Transfers that the node sends, and as many again that it receives.
    pub(crate) at_once: usize,
}

/// What the shards of a node share of their transfers.
#[derive(Debug, Default)]
pub(crate) struct TransferGauges {
    sending: AtomicUsize,
    receiving: AtomicUsize,
    /// When the next chunk may leave, if there is a rate to keep.
    free_at: Mutex<Tick>,
}

impl TransferGauges {
    /// When `bytes` may leave; the time that they take is spent then.
    fn pace(&self, now: Tick, bytes: u64, bytes_per_second: u64) -> Tick {
        if bytes_per_second == 0 {
            return now;
        }
        let mut free_at = self.free_at.lock();
        let at = now.max(*free_at);
        *free_at = at.after(bytes.saturating_mul(1_000_000) / bytes_per_second);
        at
    }
}

/// A place among the transfers that a node sends or receives at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(bool);

impl Place {
    /// Takes one, unless it is taken already. False: there is none.
    fn take(&mut self, gauge: &AtomicUsize, limit: usize) -> bool {
        let add = |taken| (taken < limit).then_some(taken + 1);
        self.0 = self.0
            || gauge
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
                .is_ok();
        self.0
    }

    fn give_back(&mut self, gauge: &AtomicUsize) {
        if std::mem::take(&mut self.0) {
            gauge.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The transfers of a shard's groups.
#[derive(Debug)]
pub(in super::super) struct Transfers {
    limits: TransferLimits,
    sending: FxHashMap<(GroupId, NodeId), Sending>,
    receiving: FxHashMap<GroupId, Receiving>,
    /// Groups whose snapshot could not be taken, and when they are to be offered one again.
    setbacks: FxHashMap<GroupId, Setback>,
    /// Chunks that wait for the rate, in the order in which they may leave.
    paced: VecDeque<(Tick, Wanted)>,
    /// Names the transfers that this shard receives.
    last_number: u64,
    /// When to look for transfers that came to nothing.
    look_at: Option<Tick>,
}

impl Transfers {
    pub(in super::super) fn new(limits: TransferLimits) -> Self {
        Transfers {
            limits,
            sending: FxHashMap::default(),
            receiving: FxHashMap::default(),
            setbacks: FxHashMap::default(),
            paced: VecDeque::new(),
            last_number: 0,
            look_at: None,
        }
    }

    /// When a turn is needed for a transfer.
    pub(in super::super) fn deadline(&self) -> Option<Tick> {
        let paced = self.paced.front().map(|(at, _)| *at);
        paced.into_iter().chain(self.look_at).min()
    }
}

impl Shard {
    fn place_patience(&self) -> u64 {
        PLACE_PATIENCE * self.settings.retry_interval
    }

    /// A replica has ended, or is out of service: nothing of its snapshots comes or goes any more.
    pub(in super::super) fn forget_transfers(&mut self, group: GroupId) {
        if self.transfers.receiving.contains_key(&group) {
            self.abandon_receiving(group);
        }
        self.transfers.setbacks.remove(&group);
        self.forget_sending(group);
    }

    /// Nobody is sent a snapshot of a group any more that was offered before.
    fn forget_sending(&mut self, group: GroupId) {
        let gauge = &self.shared.transfers.sending;
        let ended = self
            .transfers
            .sending
            .extract_if(|(sent, _), _| *sent == group);
        for (_, mut sending) in ended {
            sending.place.give_back(gauge);
        }
    }

    /// Whoever has caught up without the snapshot, as members of a child do that make their part themselves, holds its place until
    /// somebody looks: that must not keep others waiting for as long as one that is silent may.
    fn watch_transfers(&mut self) {
        let pause = match self.transfers.sending.is_empty() {
            true => self.place_patience(),
            false => self.settings.retry_interval,
        };
        let (at, known) = (self.now.after(pause), self.transfers.look_at);
        self.transfers.look_at = Some(known.map_or(at, |known| known.min(at)));
    }

    /// Sends chunks whose time has come, and forgets transfers that nobody goes on with.
    pub(in super::super) fn run_transfers(&mut self) {
        while let Some((_, wanted)) = self.transfers.paced.pop_front_if(|(at, _)| *at <= self.now) {
            self.read_chunk(wanted);
        }
        if self.transfers.look_at.is_some_and(|at| at <= self.now) {
            self.transfers.look_at = None;
            self.look_after_sending();
            self.look_after_receiving();
            let transfers = &self.transfers;
            if !transfers.sending.is_empty()
                || !transfers.receiving.is_empty()
                || !transfers.setbacks.is_empty()
            {
                self.watch_transfers();
            }
        }
    }
}

//! Looking ahead: a turn's replicas lie all over the memory, so what the next ones need is loaded while one is stepped.
//! It must never change what a turn does, only how long it waits.

use polyraft_raft::GroupId;
use polyraft_storage::{PREFETCH_AHEAD, PREFETCH_SOON, prefetch};

use super::Shard;
use crate::event::ShardEvent;

impl Shard {
    /// Starts to load a replica and the head of its log.
    #[inline]
    pub(super) fn fetch_replica(&self, slot: u32) {
        prefetch(&self.replicas[slot as usize]);
        self.log.prefetch(self.marks[slot as usize].group);
    }

    /// Starts to load what a replica and its log lead to. They themselves should have arrived by now.
    #[inline]
    pub(super) fn fetch_parts(&self, slot: u32) {
        if let Some(leading) = self.replicas[slot as usize].group.leading() {
            prefetch(leading);
        }
        self.log.prefetch_end(self.marks[slot as usize].group);
    }

    /// Starts to load what an event will need.
    #[inline]
    pub(super) fn fetch_for(&self, event: &ShardEvent) {
        if let ShardEvent::Propose { group, .. } = event
            && let Some(slot) = self.slot(*group)
        {
            prefetch(&self.replicas[slot as usize]);
        }
    }
}

/// The replicas of a frame whose records come next.
#[derive(Default)]
pub(super) struct Fetched {
    slots: [Option<u32>; PREFETCH_AHEAD],
    at: usize,
}

impl Fetched {
    /// Starts to load the replica of the record that comes [`PREFETCH_AHEAD`] records later, and the parts of a nearer one.
    #[inline]
    pub(super) fn next(&mut self, shard: &Shard, group: Option<GroupId>) {
        let slot = group.and_then(|group| shard.slot(group));
        if let Some(slot) = slot {
            shard.fetch_replica(slot);
        }
        self.slots[self.at % PREFETCH_AHEAD] = slot;
        if let Some(near) = self.slots[(self.at + PREFETCH_SOON) % PREFETCH_AHEAD] {
            shard.fetch_parts(near);
        }
        self.at += 1;
    }
}

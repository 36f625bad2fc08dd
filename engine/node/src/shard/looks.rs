//! What the simulator sees of a shard, in builds with the feature `sim`.
//! Must never change what a shard does.

use polyraft_raft::{GroupId, Index, Life};
use polyraft_storage::{Ending, RecoveredGroup};

use super::Shard;

impl Shard {
    /// Begins to note which groups turns touch.
    pub(crate) fn note_stepped(&mut self) {
        self.stepped = Some(Vec::new());
    }

    /// Moves the groups that turns have touched since the last call into `into`.
    pub(crate) fn take_stepped(&mut self, into: &mut Vec<GroupId>) {
        into.extend(self.stepped.iter_mut().flat_map(|list| list.drain(..)));
    }

    /// A replica's core, and why it is quarantined.
    pub(crate) fn replica(&self, group: GroupId) -> Option<(&polyraft_raft::Group, Option<&str>)> {
        let replica = &self.replicas[self.slot(group)? as usize];
        Some((&replica.group, replica.fault.as_deref()))
    }

    /// Whether an entry of a group is on the disk.
    pub(crate) fn is_durable(&self, group: GroupId, index: Index) -> bool {
        self.log.is_durable(group, index)
    }

    /// Whether a group's replica is going to get its damaged log from its peers.
    pub(crate) fn is_repairable(&self, group: GroupId) -> bool {
        self.slot(group)
            .is_some_and(|slot| self.repairs.is_possible(slot))
    }

    /// Of which life of a group the replica here was removed, if it was and nothing is here now.
    pub(crate) fn removed_from(&self, group: GroupId) -> Option<Life> {
        let ended = self.log.tombstone_of(group)?;
        (ended.ending == Ending::Removed).then_some(ended.life)
    }

    /// The group that one is being merged into.
    pub(crate) fn merging_here(&self, group: GroupId) -> Option<GroupId> {
        self.merges.frozen_into(group)
    }

    /// Which life of its id a group that is here belongs to.
    pub(crate) fn life_here(&self, group: GroupId) -> Option<Life> {
        self.life_of(group)
    }

    /// The newest life of a group that is over everywhere, as far as this log knows.
    pub(crate) fn life_over_here(&self, group: GroupId) -> Option<Life> {
        self.log.tombstone_of(group)?.over()
    }

    /// Whether a life of a group is over here.
    pub(crate) fn is_over(&self, group: GroupId, life: Life) -> bool {
        self.log.is_over(group, life)
    }

    /// What the log had of the groups whose state machine is not open yet.
    pub(crate) fn recovered(&self) -> impl Iterator<Item = &RecoveredGroup> {
        self.opening.values().map(|(found, _)| found)
    }

    /// Whether the shard has left its loop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping
    }
}

//! What the simulator sees of a shard, in builds with the feature `sim`.
//! Must never change what a shard does.

use polyraft_raft::{Event, GroupId, Index, Life, Term};
use polyraft_storage::{Blocks, Ending, EntryKind, Lsn, ReadError, RecoveredGroup};

use super::Shard;

/// Bytes of a log that are read at once.
const READ_AT_ONCE: u64 = 1 << 16;

/// One entry as a log has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoggedEntry {
    /// Its place.
    pub index: Index,
    /// The term of the leader who made it.
    pub term: Term,
    /// What it is for.
    pub kind: EntryKind,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Notes what a replica is stepped with, if somebody wants to know. The end of a turn follows every other event of a leader, and
/// is no news.
#[inline]
pub(super) fn note_cause(
    causes: &mut Option<Vec<(GroupId, String)>>,
    group: GroupId,
    event: &Event<'_>,
) {
    if let Some(causes) = causes
        && !matches!(event, Event::Flush { .. })
    {
        causes.push((group, in_words(event)));
    }
}

/// What a replica is stepped with, for somebody who reads a trace.
#[cold]
fn in_words(event: &Event<'_>) -> String {
    match event {
        Event::Propose { count } => format!("{count} proposed"),
        Event::Barrier => "a barrier wanted".to_owned(),
        Event::Message { from, message } | Event::MessageWith { from, message, .. } => {
            let message = format!("{message:?}");
            let name = message.split([' ', '{']).next().unwrap_or_default();
            format!("{name} of node {from}")
        }
        Event::ChangeMembers { changes } => format!("a change of members {changes:?}"),
        Event::Durable { through } => format!("write {} durable", through.0),
        Event::Applied { through } => format!("{through} applied"),
        Event::Timer => "its time has come".to_owned(),
        Event::Claimed { by, term } => format!("claimed by node {by} in {term}"),
        Event::Unclaimed { by } => format!("not claimed by node {by} any more"),
        Event::PeerDown { node } => format!("node {node} silent"),
        Event::PeerUp { node } => format!("node {node} heard again"),
        Event::BeganAnew { node } => format!("node {node} began anew"),
        Event::Campaign => "told to campaign".to_owned(),
        Event::Transfer { to } => format!("to be handed to node {to}"),
        Event::Purged { through } => format!("{through} purged"),
        Event::Installed { from, last, .. } => format!("a snapshot of {last} from node {from}"),
        Event::Flush { .. } => "the turn ends".to_owned(),
    }
}

impl Shard {
    /// Begins to note which groups turns touch.
    pub(crate) fn note_stepped(&mut self) {
        self.stepped = Some(Vec::new());
    }

    /// Moves the groups that turns have touched since the last call into `into`.
    pub(crate) fn take_stepped(&mut self, into: &mut Vec<GroupId>) {
        into.extend(self.stepped.iter_mut().flat_map(|list| list.drain(..)));
    }

    /// Begins to note what replicas are stepped with.
    pub(crate) fn note_causes(&mut self) {
        self.causes = Some(Vec::new());
    }

    /// Moves what replicas were stepped with since the last call into `into`, in that order.
    pub(crate) fn take_causes(&mut self, into: &mut Vec<(GroupId, String)>) {
        into.extend(self.causes.iter_mut().flat_map(|list| list.drain(..)));
    }

    /// What a group's log has behind its base, read as for another node.
    pub(crate) fn entries(&self, group: GroupId) -> Result<Vec<LoggedEntry>, ReadError> {
        let (mut entries, mut blocks) = (Vec::new(), Blocks::default());
        let Some(slot) = self.slot(group) else {
            return Ok(entries);
        };
        let core = &self.replicas[slot as usize].group;
        let (mut at, end) = (core.base().index.next(), core.last().index.next());
        while at < end {
            blocks.clear();
            let next = self.log.blocks(group, at, end, READ_AT_ONCE, &mut blocks)?;
            for number in 0..blocks.len() {
                let (block, kind) = (blocks.get(number), blocks.kind(number));
                let inside = block
                    .entries()
                    .filter(|(index, _)| (at..next).contains(index));
                entries.extend(inside.map(|(index, payload)| LoggedEntry {
                    index,
                    term: block.term(),
                    kind,
                    payload: payload.to_vec(),
                }));
            }
            at = next;
        }
        Ok(entries)
    }

    /// A replica's core, and why it is quarantined.
    pub(crate) fn replica(&self, group: GroupId) -> Option<(&polyraft_raft::Group, Option<&str>)> {
        let replica = &self.replicas[self.slot(group)? as usize];
        Some((&replica.group, replica.fault_reason()))
    }

    /// Whether an entry of a group is on the disk.
    pub(crate) fn is_durable(&self, group: GroupId, index: Index) -> bool {
        self.log.is_durable(group, index)
    }

    /// The newest batch of the log that has something of this shard, unless the log does not take all, and the newest batch that is on
    /// the disk.
    pub(crate) fn batches(&self) -> (Option<Lsn>, Lsn) {
        let has_taken_all = self.unsubmitted.is_empty();
        (has_taken_all.then_some(self.submitted), self.wal.durable())
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

    /// Whether a group that is led here is noted for a handover to whoever should lead it.
    pub(crate) fn will_hand_over(&self, group: GroupId) -> bool {
        self.slot(group)
            .is_some_and(|slot| self.balance.has_noted(slot))
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

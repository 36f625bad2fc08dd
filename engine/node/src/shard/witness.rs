//! Replicas that store no payload: how the leader sends to them, and what they do where others have a state machine.
//! A payload must never reach a witness, and a replica that has payloads must never take an append without them.

use std::ops::Range;

use bytes::BytesMut;
use polyraft_raft::{
    Apply, Configuration, EntryRange, Env, Event, GroupId, Index, Life, LogPosition, Message,
    NodeId, Send, Term, votes_again_at,
};
use polyraft_storage::{Blocks, EntryBlock, EntryKind, pack_hollow};

use super::{Payloads, Shard, guarded};
use crate::wire;

impl Shard {
    // ---- the leader's side ----

    /// Sends an append to a witness: the places of the entries, and in full only what says who the members are.
    pub(super) fn send_hollow(
        &mut self,
        send: &Send,
        life: Life,
        blocks: &Blocks,
        which: Range<usize>,
    ) {
        let hollow = hollowed(send.group, which.map(|at| blocks.get(at)));
        let bytes = wire::APPEND_BYTES + hollow.len();
        let counters = self.shared.counters.shard(self.index);
        if let Some(frame) = self.outgoing.append(send.to, send.group, bytes, counters) {
            counters.group_messages.add(1);
            wire::put_hollow_append(frame, (send.group, life), &send.message, &hollow);
        }
    }

    /// Tells a witness whose log can't be continued where it may begin anew: behind what is committed. That is what others get a
    /// snapshot for.
    pub(super) fn send_place(&mut self, slot: u32, to: NodeId) {
        let core = &self.replicas[slot as usize].group;
        let (group, index) = (core.id(), core.handed_out());
        let Some(term) = core.term_at(index) else {
            return;
        };
        let last = LogPosition { term, index };
        let (term, members) = (core.term(), core.applied_configuration());
        let life = self.marks[slot as usize].life;
        let counters = self.shared.counters.shard(self.index);
        let bytes = wire::place_bytes(members);
        if let Some(frame) = self.outgoing.append(to, group, bytes, counters) {
            wire::put_place(frame, (group, life), term, last, members);
        }
    }

    // ---- the side of the witness ----

    /// Entries are committed. There is nothing to apply, and nobody ever reads what is behind them.
    pub(super) fn pass_over(&mut self, slot: u32, apply: &Apply) {
        let through = apply.end.prev();
        let env = Env {
            now: self.now,
            settings: &self.settings,
            alive: &self.alive,
        };
        let replica = &mut self.replicas[slot as usize];
        let (group, outbox) = (&mut replica.group, &mut self.outbox);
        let event = Event::Applied { through };
        #[cfg(feature = "sim")]
        super::looks::note_cause(&mut self.causes, group.id(), &event);
        let noted = guarded(|| group.step(&env, event, outbox));
        if let Err(reason) = noted {
            return self.quarantine(slot, reason);
        }
        let base = self.replicas[slot as usize].group.base().index;
        if through.0 - base.0 >= self.snapshots.policy.witness_entries() {
            self.purge(slot, through);
        }
    }

    /// The leader of `term` can't continue this log, and says what is committed.
    pub(super) fn placed(
        &mut self,
        from: NodeId,
        group: GroupId,
        term: Term,
        last: LogPosition,
        configuration: &Configuration,
    ) {
        let Some(slot) = self.slot(group) else { return };
        let committed = (last.term == term).then_some(last.index);
        if self.is_of_other_kind(slot, term, true, || committed) {
            return self.counters().rejected_messages.add(1);
        }
        let own = self.replicas[slot as usize].group.term();
        if term < own {
            let subject = (group, self.marks[slot as usize].life);
            return self.say_stale(from, subject, own);
        }
        let event = Event::Installed {
            from,
            term,
            last,
            configuration,
        };
        self.step(slot, event, Payloads::None);
    }

    // ---- both ----

    /// Whether the leader of `term` takes a replica for a witness, and it is none, or the other way round. Members stay what they
    /// are until they are removed. So this replica's node was, and is a member again; or it became one by an entry that is gone.
    /// Its log is of no use to the member that it is now: it ends, and another one is made.
    ///
    /// The next one votes once its log reaches as far as this one's may count: whatever was committed with the help of this one
    /// is among that. Of a log without an entry of `term` nothing counts behind what that leader has `committed` with an entry of
    /// its term at or before it. What was committed in earlier terms is before that; and what this replica acknowledged in `term`
    /// itself it has in common with that leader, before the leader's first entry. The rest may never have been committed, and
    /// nobody may ever have as long a log again. If the leader has not committed so much, or does not show it, the replica stays
    /// until it does: a member of the other kind is a learner until its own replica has acknowledged something, and nobody
    /// waits for it.
    pub(super) fn is_of_other_kind(
        &mut self,
        slot: u32,
        term: Term,
        is_hollow: bool,
        committed: impl FnOnce() -> Option<Index>,
    ) -> bool {
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        if core.is_witness() == is_hollow {
            return false;
        }
        if replica.fault.is_none() && term >= core.term() {
            let last = core.last();
            let counts = match last.term < term {
                true => committed().map(|committed| last.index.min(committed)),
                // It is the leader's log through there.
                false => Some(last.index),
            };
            if let Some(counts) = counts {
                tracing::info!(group = %core.id(), is_hollow, "the node is another kind of member now");
                let at = counts.max(core.returning().unwrap_or_default());
                self.end_membership(slot, votes_again_at(at), term);
            }
        }
        true
    }
}

/// What the sender of an append has committed, if the append shows an entry of its own term at or before that.
pub(super) fn committed_by(message: &Message) -> Option<Index> {
    let Message::Append {
        term,
        prev,
        entries,
        commit,
    } = *message
    else {
        return None;
    };
    let is_before = prev.term == term && prev.index <= commit;
    let is_among = !entries.is_empty() && entries.term == term && entries.first <= commit;
    (is_before || is_among).then_some(commit)
}

/// Blocks without the payloads: one for as many entries as follow each other, and those that name members as they are.
fn hollowed<'a>(group: GroupId, blocks: impl Iterator<Item = EntryBlock<'a>>) -> BytesMut {
    let mut out = BytesMut::new();
    let mut run: Option<EntryRange> = None;
    for block in blocks {
        if block.kind() == EntryKind::Configuration {
            if let Some(run) = run.take() {
                pack_hollow(&mut out, group, run);
            }
            out.extend_from_slice(block.as_bytes());
            continue;
        }
        match &mut run {
            Some(run) => run.end = block.end(),
            None => run = Some(block.range()),
        }
    }
    if let Some(run) = run {
        pack_hollow(&mut out, group, run);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use polyraft_storage::pack;

    use crate::shard::tests::{GROUP, disk_with, parts_on};

    use super::*;

    /// An append of node 2 without entries.
    fn append(term: u64, prev: (u64, u64), commit: u64) -> Message {
        let prev = LogPosition {
            index: Index(prev.0),
            term: Term(prev.1),
        };
        Message::Append {
            term: Term(term),
            prev,
            entries: EntryRange::empty(prev.term, prev.index.next()),
            commit: Index(commit),
        }
    }

    #[test]
    fn what_is_committed_is_known_by_an_entry_of_the_leaders_own_term() {
        let entries = |term: u64, first: u64, end: u64| EntryRange {
            term: Term(term),
            first: Index(first),
            end: Index(end),
        };
        assert_eq!(committed_by(&append(2, (4, 2), 4)), Some(Index(4)));
        assert_eq!(committed_by(&append(2, (4, 2), 3)), None);
        assert_eq!(committed_by(&append(2, (4, 1), 9)), None);
        for (range, commit, known) in [
            (entries(2, 5, 8), 5, true),
            (entries(2, 5, 8), 4, false),
            (entries(1, 5, 8), 9, false),
            (entries(2, 5, 5), 9, false),
        ] {
            let Message::Append { term, prev, .. } = append(2, (4, 1), 0) else {
                unreachable!()
            };
            let message = Message::Append {
                term,
                prev,
                entries: range,
                commit: Index(commit),
            };
            let expected = known.then_some(Index(commit));
            assert_eq!(committed_by(&message), expected, "{message:?}");
        }
    }

    /// Through which index the log has to be there again before the node votes, after a replica with twenty entries of term 1 has
    /// heard this as a witness; nothing if that one is still there.
    fn votes_again_after(message: &Message) -> Option<Index> {
        let path = Path::new("/n");
        let entries: Vec<(EntryKind, &[u8])> = vec![(EntryKind::Normal, b"entry"); 20];
        let (_shared, mut parts) = parts_on(&disk_with(path, &entries), path);
        let (shard, _) = &mut parts.shards[0];
        shard.open_recovered();
        shard.opened(GROUP, Ok(Index(0)));
        let slot = shard.slot(GROUP).expect("it is there");
        let last = shard.replicas[slot as usize].group.last();
        assert_eq!((last.index, last.term), (Index(20), Term(1)));
        let mut frame = BytesMut::new();
        wire::put_hollow_append(&mut frame, (GROUP, Life::FIRST), message, &[]);
        shard.frame(NodeId(2), frame.freeze(), shard.now);
        assert_eq!(shard.counters().rejected_messages.get(), 1);
        let ended = shard.log.tombstone_of(GROUP);
        assert_eq!(ended.is_some(), shard.slot(GROUP).is_none());
        ended.map(|tombstone| tombstone.at)
    }

    /// The next replica could not vote before the group's log was as long as an end that nobody else ever had.
    #[test]
    fn a_replica_of_the_other_kind_leaves_nothing_behind_that_was_never_committed() {
        assert_eq!(votes_again_after(&append(2, (4, 2), 4)), Some(Index(4)));
        assert_eq!(votes_again_after(&append(2, (40, 2), 40)), Some(Index(20)));
        // Not yet: what was committed in term 1 may be behind that.
        assert_eq!(votes_again_after(&append(2, (1, 1), 1)), None);
        // It is the log of the leader itself.
        assert_eq!(votes_again_after(&append(1, (1, 1), 1)), Some(Index(20)));
    }

    #[test]
    fn only_what_names_members_is_sent_in_full() {
        let group = GroupId(3);
        let block = |first, end, kind, payload: &[u8]| {
            let range = EntryRange {
                term: Term(2),
                first: Index(first),
                end: Index(end),
            };
            let mut bytes = BytesMut::new();
            let payloads = std::iter::repeat_n(payload, (end - first) as usize);
            pack(&mut bytes, group, range, kind, payloads).expect("it is small");
            bytes
        };
        let full = [
            block(5, 6, EntryKind::Noop, b""),
            block(6, 9, EntryKind::Normal, &[7; 500]),
            block(9, 10, EntryKind::Configuration, b"who they are"),
            block(10, 40, EntryKind::Session, &[8; 100]),
            block(40, 41, EntryKind::Normal, &[9; 900]),
        ];
        let full: Vec<_> = full.iter().map(|bytes| EntryBlock::parse(bytes)).collect();
        let hollow = hollowed(group, full.into_iter().map(|block| block.expect("a block")));
        let mut rest = &hollow[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let (block, behind) = EntryBlock::parse_first(rest).expect("a sound block");
            let bytes = block.len_bytes();
            found.push((block.first().0, block.end().0, block.kind(), bytes));
            rest = behind;
        }
        let expected = [
            (5, 9, EntryKind::Hollow, 48),
            (9, 10, EntryKind::Configuration, 64),
            (10, 41, EntryKind::Hollow, 48),
        ];
        assert_eq!(found, expected);
    }
}

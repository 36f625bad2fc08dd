//! Replicas that store no payload: how the leader sends to them, and what they do where others have a state machine.
//! A payload must never reach a witness, and a replica that has payloads must never take an append without them.

use std::ops::Range;

use bytes::BytesMut;
use polyraft_raft::{
    Apply, Configuration, EntryRange, Env, Event, GroupId, Life, LogPosition, NodeId, Send, Term,
    votes_again_at,
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
        if self.is_of_other_kind(slot, term, true) {
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
    /// The next one votes once its log reaches as far as this one's: whatever was committed with the help of this one is among
    /// that.
    pub(super) fn is_of_other_kind(&mut self, slot: u32, term: Term, is_hollow: bool) -> bool {
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        if core.is_witness() == is_hollow {
            return false;
        }
        if replica.fault.is_none() && term >= core.term() {
            tracing::info!(group = %core.id(), is_hollow, "the node is another kind of member now");
            let last = core.last().index;
            let last = last.max(core.returning().unwrap_or_default());
            self.end_membership(slot, votes_again_at(last), term);
        }
        true
    }
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
    use polyraft_raft::Index;
    use polyraft_storage::pack;

    use super::*;

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
            let bytes = EntryBlock::encoded_len(rest).expect("a block");
            let block = EntryBlock::parse(&rest[..bytes]).expect("a sound block");
            found.push((block.first().0, block.end().0, block.kind(), bytes));
            rest = &rest[bytes..];
        }
        let expected = [
            (5, 9, EntryKind::Hollow, 48),
            (9, 10, EntryKind::Configuration, 64),
            (10, 41, EntryKind::Hollow, 48),
        ];
        assert_eq!(found, expected);
    }
}

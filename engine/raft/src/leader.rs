//! Leading: appending proposals, sending them, counting acknowledgements, committing. Appends leave only in a
//! flush, once per turn; an entry of an older term is never committed by counting (Raft paper, 5.4.2).

use smallvec::SmallVec;

use crate::group::{Group, Part};
use crate::mutants::{self, Mutant};
use crate::transfer::Handover;
use crate::{
    Configuration, EntryRange, Env, GroupId, Index, LogExtents, LogPosition, Message, NodeId,
    NotLeader, Origin, Outbox, Progress, ProgressState, Proposed, Send, SnapshotNeeded, Term, Tick,
    Write, WriteKind,
};

/// What a replica needs only while it leads. A value of its own, so that followers take less memory.
#[derive(Debug)]
pub struct Leading {
    /// Every member but this one.
    pub(crate) peers: SmallVec<[Progress; 2]>,
    /// Index of the entry that started the term: nothing before it commits by counting.
    pub(crate) term_start: Index,
    /// The last entry of the term that says who the members are, if any: else the one that started it. None is newer.
    pub(crate) configured_at: Index,
    /// Who was told in this term to campaign had the log through here; zero when nobody was. The voters don't defend this
    /// leader against that campaign, however late it comes, until they hold more than this.
    pub(crate) told_through: Index,
    /// The leadership is being handed over.
    pub(crate) handover: Option<Box<Handover>>,
    /// When news of a commit that nobody has carried yet is sent alone; [`Tick::NEVER`] when all was carried.
    notice_at: Tick,
}

impl Leading {
    /// Of all members but the leader's own node; `next` begins its term.
    pub(crate) fn new(members: &Configuration, own: NodeId, next: Index, env: &Env<'_>) -> Leading {
        let peer = |n: NodeId| Progress {
            is_witness: members.is_witness(n),
            ..Progress::new(n, next, env.alive.contains(n), env.now)
        };
        let peers = members.nodes().filter(|&n| n != own).map(peer).collect();
        Leading {
            peers,
            term_start: next,
            configured_at: next,
            told_through: Index::ZERO,
            handover: None,
            notice_at: Tick::NEVER,
        }
    }

    #[inline]
    fn peer(&mut self, node: NodeId) -> Option<&mut Progress> {
        self.peers.iter_mut().find(|p| p.node == node)
    }

    /// Whether no handover of this term can part `node` from this leader any more, so that its word counts: it holds an entry
    /// that nobody had who was told to campaign.
    pub(crate) fn is_kept(&self, node: NodeId) -> bool {
        let mut peers = self.peers.iter();
        self.told_through == Index::ZERO
            || peers.any(|p| p.node == node && p.matched > self.told_through)
            || mutants::is_active(Mutant::LeaseInHandover)
    }
}

/// The appends of one step: what all of them say alike, and where they go.
struct Appends<'a> {
    group: GroupId,
    term: Term,
    commit: Index,
    now: Tick,
    sends: &'a mut Vec<Send>,
}

impl Appends<'_> {
    /// Sends `entries`, perhaps none, to a follower, and notes that they are on their way.
    #[inline]
    fn send(
        &mut self,
        progress: &mut Progress,
        prev: LogPosition,
        entries: EntryRange,
        bytes: u64,
    ) {
        let message = Message::Append {
            term: self.term,
            prev,
            entries,
            commit: self.commit,
        };
        self.sends.push(Send {
            group: self.group,
            to: progress.node,
            message,
        });
        progress.sent(entries, bytes, self.commit, self.now);
    }
}

impl Group {
    pub(crate) fn propose(&mut self, count: u32, out: &mut Outbox) {
        let outcome = match &self.part {
            // The target of a handover could not keep up with a log that grows.
            Part::Leader(leading) if leading.handover.is_some() => Err(NotLeader { hint: None }),
            Part::Leader(_) => Ok(self.append_own(count, Origin::Proposed, out)),
            _ => Err(NotLeader { hint: self.leader }),
        };
        out.proposed.push(Proposed {
            group: self.id,
            outcome,
        });
    }

    /// Appends `count` entries of this term to the own log.
    pub(crate) fn append_own(
        &mut self,
        count: u32,
        origin: Origin,
        out: &mut Outbox,
    ) -> EntryRange {
        let first = self.log.last_index().next();
        let entries = EntryRange {
            term: self.term,
            first,
            end: Index(first.0 + u64::from(count)),
        };
        if !entries.is_empty() {
            self.log.append(entries);
            let id = self.durability.append(entries.last());
            out.writes.push(Write {
                group: self.id,
                id,
                kind: WriteKind::Append { entries, origin },
            });
        }
        entries
    }

    pub(crate) fn hear_matched(
        &mut self,
        env: &Env<'_>,
        from: NodeId,
        term: Term,
        matched: Index,
        commit: Index,
        out: &mut Outbox,
    ) {
        if self.learn_term(env, term, out) {
            return;
        }
        let last = self.log.last_index();
        let is_of_term = term == self.term || mutants::is_active(Mutant::StaleAckCounts);
        let progress = match &mut self.part {
            Part::Leader(leading) if is_of_term => leading.peer(from),
            _ => None,
        };
        let Some(progress) = progress else {
            return self.drop_stale();
        };
        assert!(
            matched <= last,
            "{from} acknowledged {matched}, which was never sent to it"
        );
        if progress.acknowledge(matched, commit, env.now) && matched > self.committed {
            self.advance_commit();
            self.hand_out(out);
            self.finish_change(env, out);
        }
        self.tell_target(out);
    }

    pub(crate) fn hear_conflict(
        &mut self,
        env: &Env<'_>,
        from: NodeId,
        term: Term,
        rejected: Index,
        hint: LogPosition,
        out: &mut Outbox,
    ) {
        if self.learn_term(env, term, out) {
            return;
        }
        // Skips, in one step, every entry of a term that the follower cannot have.
        let agreed = self.log.last_with_term_at_most(hint.term, hint.index);
        let progress = match &mut self.part {
            Part::Leader(leading) if term == self.term => leading.peer(from),
            _ => None,
        };
        let Some(progress) = progress else {
            return self.drop_stale();
        };
        if !progress.refuse(rejected, agreed.index, env.now) {
            return self.drop_stale();
        }
        self.counters.conflicts = self.counters.conflicts.wrapping_add(1);
        let base = self.log.base();
        if rejected == base.index {
            // The oldest place that we can still name, and the follower does not have it.
            progress.need_snapshot(base.index, env.now);
            out.snapshots.push(SnapshotNeeded {
                group: self.id,
                to: from,
                base,
            });
        }
    }

    /// Commits what a quorum holds durably, this replica included only as far as its own disk is.
    pub(crate) fn advance_commit(&mut self) {
        let Part::Leader(leading) = &self.part else {
            return;
        };
        let matched = |node: NodeId| {
            if node == self.node {
                if mutants::is_active(Mutant::LeaderCountsUndurable) {
                    return self.log.last_index();
                }
                return self.durability.durable();
            }
            leading
                .peers
                .iter()
                .find(|p| p.node == node)
                .map_or(Index::ZERO, |p| p.matched)
        };
        let reached = self.configuration.committed(matched);
        debug_assert_eq!(reached, self.configuration.committed_naively(matched));
        if reached >= leading.term_start || mutants::is_active(Mutant::OldTermCommitted) {
            self.committed = self.committed.max(reached);
        }
    }

    /// End of a turn: sends every follower what it has room for, and sees that a deadline stands while
    /// anybody is behind.
    pub(crate) fn flush(&mut self, env: &Env<'_>, log: &dyn LogExtents, out: &mut Outbox) {
        let held = self.held_for_witnesses();
        let Part::Leader(leading) = &mut self.part else {
            return;
        };
        let (end, commit, settings) = (self.log.last_index(), self.committed, env.settings);
        let base = self.log.base();
        let mut appends = Appends {
            group: self.id,
            term: self.term,
            commit,
            now: env.now,
            sends: &mut out.sends,
        };
        // Followers usually want the same entries: ask for their size once.
        let mut asked = (EntryRange::default(), 0, (Index::ZERO, 0));
        for progress in &mut leading.peers {
            let last = if progress.is_witness { held } else { end };
            while progress.next <= last
                || (progress.state == ProgressState::Probe && progress.is_behind(last, commit))
            {
                if progress.next <= base.index
                    && !matches!(progress.state, ProgressState::Snapshot { .. })
                {
                    progress.probe_base(base.index);
                }
                let Some((max_entries, max_bytes)) = progress.room(settings) else {
                    break;
                };
                let prev = progress.next.prev();
                if prev > last {
                    break; // A witness, and what comes before is on too few disks yet.
                }
                let Some(prev_term) = self.log.term_at(prev) else {
                    break;
                };
                let mut entries = self.log.run_from(progress.next);
                entries.end = entries.end.min(last.next());
                let mut bytes = 0;
                if !entries.is_empty() {
                    let most = max_entries.min(u64::from(settings.max_append_entries.max(1)));
                    let max_bytes = max_bytes.min(settings.max_append_bytes);
                    entries.end = entries.end.min(Index(entries.first.0.saturating_add(most)));
                    if (asked.0, asked.1) != (entries, max_bytes) {
                        asked = (
                            entries,
                            max_bytes,
                            log.extent(entries.first, entries.end, max_bytes),
                        );
                        let end = asked.2.0;
                        assert!(
                            end > entries.first && end <= entries.end,
                            "an extent of {entries} ends at {end}"
                        );
                    }
                    (entries.end, bytes) = asked.2;
                }
                let prev = LogPosition {
                    term: prev_term,
                    index: prev,
                };
                appends.send(progress, prev, entries, bytes);
            }
        }
        self.arm_leader_timer(env, out);
    }

    /// How far witnesses are sent the log. They cannot lead, and refuse their vote to whoever has less: so no further than so many
    /// full voters of each half hold it durably that they and all its witnesses are a quorum. Were fewer lost with what they alone
    /// hold, nothing of it would be committed, and those who are left could lack that vote for ever. No commit waits for it: every
    /// quorum has as many full voters. This node counts as far as its disk is, and only where it votes: it may be about to leave.
    fn held_for_witnesses(&self) -> Index {
        let members = &self.configuration;
        if members.witnesses().is_empty() || mutants::is_active(Mutant::WitnessAhead) {
            return self.log.last_index();
        }
        let durable = |node: NodeId| match node == self.node {
            true => self.durability.durable(),
            false => self.progress(node).map_or(Index::ZERO, |p| p.matched),
        };
        let held_in = |half: &[NodeId]| {
            let full = half.iter().filter(|node| !members.is_witness(**node));
            let mut held: SmallVec<[Index; 8]> = full.map(|node| durable(*node)).collect();
            let witnesses = half.len() - held.len();
            let needed = (half.len() / 2 + 1).saturating_sub(witnesses).max(1);
            held.sort_unstable_by(|a, b| b.cmp(a));
            held.get(needed - 1).copied().unwrap_or(Index::ZERO)
        };
        let held = held_in(members.voters());
        match members.is_joint() {
            true => held.min(held_in(members.outgoing())),
            false => held,
        }
    }

    /// The leader's deadline has come: takes appends that nobody answered for lost, and sends news of commits
    /// that found no append to ride on. What was lost is sent again by the flush of this turn.
    pub(crate) fn retry(&mut self, env: &Env<'_>, out: &mut Outbox) {
        self.expire_transfer(env, out);
        let Part::Leader(leading) = &mut self.part else {
            return;
        };
        let (last, commit) = (self.log.last_index(), self.committed);
        let mut appends = Appends {
            group: self.id,
            term: self.term,
            commit,
            now: env.now,
            sends: &mut out.sends,
        };
        let notice_is_due = env.now >= leading.notice_at;
        if notice_is_due {
            leading.notice_at = Tick::NEVER;
        }
        for progress in leading
            .peers
            .iter_mut()
            .filter(|p| p.alive && p.is_behind(last, commit))
        {
            if progress.is_waiting() && env.now.since(progress.since) >= env.settings.retry_interval
            {
                self.counters.timeouts = self.counters.timeouts.wrapping_add(1);
                progress.give_up_waiting(env.now);
                if let ProgressState::Snapshot { .. } = progress.state {
                    let base = self.log.base();
                    out.snapshots.push(SnapshotNeeded {
                        group: self.id,
                        to: progress.node,
                        base,
                    });
                }
            } else if notice_is_due && progress.wants_notice(commit) {
                // After everything on the way, so that the follower may take all of the commit.
                let prev = progress.next.prev();
                let Some(prev_term) = self.log.term_at(prev) else {
                    continue;
                };
                let entries = EntryRange::empty(prev_term, progress.next);
                let prev = LogPosition {
                    term: prev_term,
                    index: prev,
                };
                appends.send(progress, prev, entries, 0);
            }
        }
        self.arm_leader_timer(env, out);
    }

    /// Sees that the deadline is not later than the next thing to do. An earlier one may stand: it costs
    /// one look, and far less than moving the timer at every acknowledgement.
    fn arm_leader_timer(&mut self, env: &Env<'_>, out: &mut Outbox) {
        let Part::Leader(leading) = &mut self.part else {
            return;
        };
        let (last, commit) = (self.log.last_index(), self.committed);
        let (mut due, mut wants_notice) = (Tick::NEVER, false);
        for progress in leading
            .peers
            .iter()
            .filter(|p| p.alive && p.is_behind(last, commit))
        {
            let since = match progress.is_waiting() {
                true => progress.since,
                false => env.now,
            };
            due = due.min(since.after(env.settings.retry_interval));
            wants_notice |= progress.wants_notice(commit);
        }
        // One that is awaited already stays where it is.
        leading.notice_at = match wants_notice {
            true => leading
                .notice_at
                .min(env.now.after(env.settings.commit_notice_interval)),
            false => Tick::NEVER,
        };
        due = due.min(leading.notice_at);
        if let Some(handover) = &leading.handover {
            due = due.min(handover.until);
        }
        if due < self.deadline {
            self.set_deadline(due, out);
        }
    }
}

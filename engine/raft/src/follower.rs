//! Following: taking a leader's appends and claims, and answering them once what they brought is durable.
//! A follower never drops an entry at or below its commit index.

use crate::group::{Group, Part};
use crate::mutants::{self, Mutant};
use crate::{
    Configuration, EntryRange, Env, Index, LogPosition, Message, NodeId, Origin, Outbox, Term,
    Tick, TransferOutcome, Write, WriteKind,
};

impl Group {
    pub(crate) fn hear_append(
        &mut self,
        env: &Env<'_>,
        from: NodeId,
        term: Term,
        (prev, entries, configurations): (LogPosition, EntryRange, &[(Index, Configuration)]),
        commit: Index,
        out: &mut Outbox,
    ) {
        if term < self.term {
            self.drop_stale();
            self.send(from, Message::Stale { term: self.term }, out);
            return;
        }
        let well_formed = entries.first == prev.index.next()
            && entries.end >= entries.first
            && (entries.is_empty() || (prev.term <= entries.term && entries.term <= term));
        if !well_formed || prev.term > term {
            self.drop_stale();
            return;
        }
        self.catch_up(env, term, out);
        self.follow(env, from, out);
        self.write_hard_state(out);

        let is_beyond =
            prev.index >= self.committed || mutants::is_active(Mutant::LateAppendTruncates);
        let entries = if is_beyond && self.log.term_at(prev.index) == Some(prev.term) {
            entries
        } else if prev.index <= self.committed {
            self.after_committed(prev, entries)
        } else {
            self.counters.conflicts = self.counters.conflicts.wrapping_add(1);
            let hint = self.log.last_with_term_at_most(prev.term, prev.index);
            self.send(
                from,
                Message::Conflict {
                    term,
                    rejected: prev.index,
                    hint,
                },
                out,
            );
            return;
        };

        let is_new = self.take(env, entries, configurations, out);
        self.verified = self.verified.max(entries.last());
        // Not the leader's commit alone: what follows the compared part may still differ.
        let compared = if mutants::is_active(Mutant::CommitBeyondCompared) {
            self.log.last_index()
        } else {
            entries.last()
        };
        self.committed = self.committed.max(commit.min(compared));
        self.hand_out(out);
        if !is_new || mutants::is_active(Mutant::AckBeforeDurable) {
            self.owes_answer = true;
            self.send_matched(out);
        }
    }

    /// The part of an append that is not committed here. Every leader's log holds what is committed, so the logs agree at
    /// least that far and only the rest is looked at. A late append can then not cut anything committed.
    fn after_committed(&self, prev: LogPosition, entries: EntryRange) -> EntryRange {
        let newest = entries.last().min(self.committed);
        let held = |index| self.log.term_at(index);
        assert!(
            held(prev.index).is_none_or(|t| t == prev.term)
                && (newest < entries.first || held(newest).is_none_or(|t| t == entries.term)),
            "a leader has other entries after {prev} than are committed here: {self:?}"
        );
        let first = self.committed.next();
        EntryRange {
            first,
            end: entries.end.max(first),
            ..entries
        }
    }

    /// Makes the log hold `entries`, which follow a place where it agrees with the leader's. Returns whether
    /// anything had to be written.
    fn take(
        &mut self,
        env: &Env<'_>,
        entries: EntryRange,
        configurations: &[(Index, Configuration)],
        out: &mut Outbox,
    ) -> bool {
        let first = self.log.agrees_until(entries);
        if first == entries.end {
            if mutants::is_active(Mutant::LateAppendTruncates) && first <= self.log.last_index() {
                self.truncate(first, out);
            }
            return false;
        }
        let mut has_changed = false;
        if first <= self.log.last_index() {
            assert!(
                first > self.committed,
                "a leader wants committed entries from {first} on replaced: {self:?}"
            );
            assert!(
                first > self.verified,
                "a leader contradicts itself at {first}: {self:?}"
            );
            let before = self.configuration.clone();
            self.truncate(first, out);
            has_changed = before != self.configuration;
        }
        let entries = EntryRange { first, ..entries };
        self.log.append(entries);
        let id = self.durability.append(entries.last());
        out.writes.push(Write {
            group: self.id,
            id,
            kind: WriteKind::Append {
                entries,
                origin: Origin::Received,
            },
        });
        for (index, configuration) in configurations {
            if entries.first <= *index && *index < entries.end {
                self.adopt(*index, configuration.clone());
                has_changed = true;
            }
        }
        if has_changed {
            self.follow_members(env, out);
        }
        true
    }

    fn truncate(&mut self, from: Index, out: &mut Outbox) {
        self.log.truncate(from);
        self.take_back_configurations(from);
        let id = self.durability.truncate(from);
        out.writes.push(Write {
            group: self.id,
            id,
            kind: WriteKind::Truncate { from },
        });
    }

    /// Tells the leader how far this log is equal to its own and durable, if that is news or an answer is owed.
    pub(crate) fn send_matched(&mut self, out: &mut Outbox) {
        let Some(leader) = self.leader else { return };
        let matched = if mutants::is_active(Mutant::AckBeforeDurable) {
            self.verified
        } else {
            self.verified.min(self.durability.durable())
        };
        let is_due = matched > self.acknowledged || self.owes_answer;
        // The promise is made in this term: a restart must not fall back behind it.
        let is_safe = self.is_hard_state_safe(Mutant::AckBeforeDurable)
            || mutants::is_active(Mutant::AckInUndurableTerm);
        if is_due && is_safe {
            self.acknowledged = self.acknowledged.max(matched);
            self.owes_answer = false;
            self.send(
                leader,
                Message::Matched {
                    term: self.term,
                    matched,
                    commit: self.committed,
                },
                out,
            );
        }
    }

    /// `leader` leads the current term.
    pub(crate) fn follow(&mut self, env: &Env<'_>, leader: NodeId, out: &mut Outbox) {
        assert!(
            self.leader.is_none_or(|l| l == leader) && leader != self.node,
            "{leader} and another node lead {} in {}: {self:?}",
            self.id,
            self.term
        );
        self.part = Part::Follower;
        if self.leader.is_none() {
            self.leader = Some(leader);
            self.is_claimed = false;
        }
        if self.is_led(env) {
            self.deadline = Tick::NEVER;
        } else {
            // Until the claim is heard, only appends prove the leader alive, as in plain Raft.
            self.arm_patience(env, out);
        }
    }

    pub(crate) fn hear_claim(&mut self, env: &Env<'_>, by: NodeId, term: Term, out: &mut Outbox) {
        if term < self.term {
            // That leader does not know of our term, and we cannot go back: it must come forward.
            if !mutants::is_active(Mutant::OldClaimNotAnswered) {
                self.send(by, Message::Stale { term: self.term }, out);
            }
            return;
        }
        self.catch_up(env, term, out);
        if self.leader.is_none() {
            self.leader = Some(by);
        }
        self.is_claimed = true;
        self.follow(env, by, out);
        self.send_matched(out);
    }

    pub(crate) fn lose_claim(&mut self, env: &Env<'_>, by: NodeId, out: &mut Outbox) {
        if self.leader == Some(by) && by != self.node {
            self.leader = None;
            self.is_claimed = false;
            if matches!(self.part, Part::Follower) && !mutants::is_active(Mutant::TimerForgotten) {
                self.arm_short_election_timer(env, out);
            }
        }
    }

    pub(crate) fn peer_down(&mut self, env: &Env<'_>, node: NodeId, out: &mut Outbox) {
        if let Part::Leader(leading) = &mut self.part {
            if let Some(progress) = leading.peers.iter_mut().find(|p| p.node == node) {
                progress.down();
            }
            if mutants::is_active(Mutant::QuietGroupsWoken) {
                let alive = leading.peers.iter_mut().filter(|p| p.alive);
                alive.for_each(|p| p.up(env.now));
            }
            if leading.handover.as_ref().is_some_and(|h| h.to == node) {
                self.end_transfer(TransferOutcome::Silent, out);
            }
            // CheckQuorum, when liveness changes instead of at every tick.
            if !self.has_live_quorum(env) && !mutants::is_active(Mutant::QuorumNotChecked) {
                self.become_follower(env, out);
            }
        } else if !mutants::is_active(Mutant::SilentLeaderKept) {
            self.lose_claim(env, node, out);
        }
    }

    pub(crate) fn peer_up(&mut self, env: &Env<'_>, node: NodeId) {
        if let Part::Leader(leading) = &mut self.part {
            if let Some(progress) = leading.peers.iter_mut().find(|p| p.node == node) {
                progress.up(env.now);
            }
        } else if self.is_led(env) && matches!(self.part, Part::Follower) {
            self.deadline = Tick::NEVER;
        }
    }
}

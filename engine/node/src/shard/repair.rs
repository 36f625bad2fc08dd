//! Replicas that are taken out of service, and how those whose log or snapshot is damaged come back without it: from their peers, by the leave
//! of a leader.
//! It must never drop a damaged log before a quorum is known to go on without it, nor let the replica vote for anybody who
//! may lack what it may have acknowledged.
//!
//! The replica is in quarantine and asks all nodes (`members.rs`). The leader appends an entry, and once that is committed, says
//! Join: the replica had no part in that, so the others are a quorum. Then the replica ends as if it had been removed as of
//! that entry, or the last one that it may have acknowledged, with its term and its vote, and is taken in again like any member that has nothing.
//!
//! A damaged log may have lost the entry that took this node in again after a removal. So the replica believes in no removal but
//! by the same proof: a leader who knows of it, and has committed an entry since it was asked.
//! Why that is safe is in `docs/decisions/2026-11-21-repair-from-peers.md`.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use polyraft_raft::{Event, GroupId, Index, NodeId, Removed, Role, Term, Tick, votes_again_at};
use polyraft_storage::{Ending, ReadError, Tombstone};

use super::{Payloads, Shard, leads};
use crate::error::Error;
use crate::event::Claim;
use crate::wire::{Grounds, Wants, Welcome};

/// For how long a leader remembers who asked, in microseconds. Who asks later begins anew.
const REMEMBERED: u64 = 60_000_000;

/// What a shard knows of damaged replicas, here and elsewhere.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// By slot: replicas here whose log is damaged.
    damaged: BTreeMap<u32, Damaged>,
    /// Nodes that ask groups which are led here whether they are members and may come back, and what has to be committed first.
    asked: BTreeMap<(GroupId, NodeId), Asked>,
    /// How many replicas here were damaged since the node was opened.
    losses: u64,
    /// When those are looked through that asked long ago.
    sweep_at: Tick,
}

#[derive(Debug, Clone, Copy)]
struct Damaged {
    /// The last entry that the replica may have acknowledged; `None`: that, its term or its vote is not certain.
    last: Option<Index>,
    /// It may come back without its log.
    may_return: bool,
    /// What it knows answers to its questions by: whoever was asked about an earlier loss may not know of this one.
    question: u64,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    question: u64,
    term: Term,
    index: Index,
    at: Tick,
}

impl Repairs {
    /// Whether a replica may come back without its log.
    pub(super) fn is_possible(&self, slot: u32) -> bool {
        self.damaged
            .get(&slot)
            .is_some_and(|damaged| damaged.may_return)
    }

    /// Whether a replica's log is damaged: it does not know all that it knew.
    pub(super) fn is_damaged(&self, slot: u32) -> bool {
        self.damaged.contains_key(&slot)
    }

    /// The last entry that a replica may have acknowledged before its log was damaged, if it is certain what it must not forget.
    pub(super) fn acknowledged(&self, slot: u32) -> Option<Index> {
        self.damaged.get(&slot)?.last
    }

    /// The number of what a damaged replica asks; 0 for another one.
    pub(super) fn question(&self, slot: u32) -> u64 {
        let damaged = self.damaged.get(&slot);
        damaged.map_or(0, |damaged| damaged.question)
    }

    /// A replica has ended.
    pub(super) fn forget(&mut self, slot: u32, group: GroupId) {
        self.damaged.remove(&slot);
        let who = (group, NodeId(0))..=(group, NodeId(u64::MAX));
        let asked: Vec<_> = self.asked.range(who).map(|(key, _)| *key).collect();
        for key in asked {
            self.asked.remove(&key);
        }
    }

    /// Forgets who asked long ago.
    fn sweep(&mut self, now: Tick) {
        if self.sweep_at <= now {
            self.sweep_at = now.after(REMEMBERED);
            self.asked
                .retain(|_, asked| now.since(asked.at) < REMEMBERED);
        }
    }
}

impl Shard {
    /// Takes one replica out of service; its group goes on with the others.
    pub(super) fn quarantine(&mut self, slot: u32, reason: String) {
        let replica = &mut self.replicas[slot as usize];
        if replica.fault.is_some() {
            return;
        }
        let group = replica.group.id();
        tracing::error!(node = %self.shared.node, %group, %reason, "a replica is quarantined");
        let error = Error::Fault {
            reason: reason.clone(),
        };
        self.fail_reads(slot, &error);
        let replica = &mut self.replicas[slot as usize];
        replica.fail_all(&mut self.queues, &error);
        self.leadership.fail(group, &error);
        self.members.fail(group, &error);
        self.merges.fail(group, &error);
        replica.fail(reason.clone());
        self.quarantined.push((group, reason));
        self.answer_snapshot(slot, Err(error));
        self.forget_transfers(group);
        let replica = &mut self.replicas[slot as usize];
        self.splits.forget(slot);
        // What its last step left behind must not leave.
        self.outbox.writes.clear();
        self.outbox.sends.retain(|send| send.group != group);
        self.outbox.applies.retain(|apply| apply.group != group);
        self.outbox.claims.retain(|claim| claim.group != group);
        self.outbox.timers.retain(|timer| timer.group != group);
        self.outbox.proposed.clear();
        self.outbox.changes.clear();
        // That this node is no member any more is committed all the same, and nobody may say it again. But what a damaged log
        // lost may say that it is one again: such a replica asks.
        let node = self.shared.node;
        let is_damaged = self.repairs.is_damaged(slot);
        let is_own_end = |removed: &Removed| removed.node == node && !is_damaged;
        self.outbox
            .removed
            .retain(|removed| removed.group != group || is_own_end(removed));
        if replica.is_shown_to_lead() || replica.group.role() == Role::Leader {
            let members = replica.group.configuration().nodes().collect();
            self.claims.push(Claim {
                group,
                life: self.marks[slot as usize].life,
                term: None,
                members,
            });
        }
        self.counters().quarantined.add(1);
        self.touch(slot);
    }

    /// A block of a replica's log can't be read. If that is because of the disk, its peers have the entries.
    pub(super) fn quarantine_unreadable(&mut self, slot: u32, what: &str, error: &ReadError) {
        if matches!(error, ReadError::Damaged { .. }) {
            self.note_lost(slot);
        }
        self.quarantine(slot, format!("{what}: {error}"));
    }

    /// A replica that served lost what its peers have, and nothing that only it knows. It is about to be quarantined.
    pub(super) fn note_lost(&mut self, slot: u32) {
        let replica = &self.replicas[slot as usize];
        if replica.fault.is_none() {
            let last = replica.group.last().index;
            let last = last.max(replica.group.returning().unwrap_or_default());
            self.note_damaged(slot, Some(last));
        }
    }

    /// The log of a replica that is about to be quarantined is damaged. It may have acknowledged everything through `last`, if
    /// that, its term and its vote are certain: then it can get the log from its peers.
    pub(super) fn note_damaged(&mut self, slot: u32, last: Option<Index>) {
        let may_return = self.limits.repair && last.is_some();
        self.repairs.losses += 1;
        let question = self.shared.incarnation.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let damaged = Damaged {
            last,
            may_return,
            question: question.wrapping_add(self.repairs.losses).max(1),
        };
        self.repairs.damaged.insert(slot, damaged);
    }

    /// A node's log is damaged, and it asks whether it is a member, and may come back without that log. The answer is given when
    /// an entry is committed that was appended after the first question, in which the node had no part.
    pub(super) fn proof_asked(&mut self, slot: u32, node: NodeId, (wants, question): (Wants, u64)) {
        let now = self.now;
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        let is_member = core.configuration().contains(node);
        let is_out = !is_member && core.leads_settled_members();
        let may_return = is_member && wants == Wants::Return;
        if !leads(replica) || !(is_out || may_return) {
            return;
        }
        let (group, term, committed) = (core.id(), core.term(), core.committed());
        let (at, matched) = (core.handed_out(), core.progress(node));
        let matched = matched.map_or(Index::ZERO, |progress| progress.matched);
        self.repairs.sweep(now);
        let asked = &mut self.repairs.asked;
        // Who has acknowledged the entry since has lost its log since, and the question was about an earlier loss.
        let known = asked.get(&(group, node)).copied().filter(|known| {
            let is_same = (known.term, known.question) == (term, question);
            is_same && now.since(known.at) < REMEMBERED && matched < known.index
        });
        match known {
            Some(known) if known.index <= committed => {
                asked.remove(&(group, node));
                match is_out {
                    true => self.say_removed_on(Grounds::Proof(question), node, slot, at),
                    false => self.welcome(node, group, question, known.index),
                }
            }
            Some(_) => {}
            None => {
                self.step(slot, Event::Barrier, Payloads::None);
                let appended = self.outbox.proposed.pop();
                if let Some(Ok(entries)) = appended.map(|appended| appended.outcome) {
                    let index = entries.first;
                    let asked = Asked {
                        question,
                        term,
                        index,
                        at: now,
                    };
                    self.repairs.asked.insert((group, node), asked);
                }
            }
        }
    }

    /// A leader says that its group goes on without this replica's log, and takes it back without one.
    pub(super) fn come_back(&mut self, slot: u32, leader: NodeId, welcome: Welcome) {
        let term = welcome.term;
        if welcome.answers != self.repairs.question(slot) {
            return;
        }
        let acknowledged = self.repairs.acknowledged(slot);
        let Some(last) = acknowledged.filter(|_| self.repairs.is_possible(slot)) else {
            return;
        };
        let core = &self.replicas[slot as usize].group;
        let (group, own) = (core.id(), core.term());
        let subject = (group, self.marks[slot as usize].life);
        if term < own {
            // One of an earlier term has to come forward first.
            return self.say_stale(leader, subject, own);
        }
        // The end of the log may never have been committed, and the group need not grow that far again. What was, the leader has
        // before the entry that proves it.
        let at = votes_again_at(last.min(welcome.proof));
        tracing::warn!(node = %self.shared.node, %group, %leader, %term, %at, "the damaged log of a replica is dropped; it comes back from its peers, and votes for whoever has less than this index once it has that again");
        let tombstone = Tombstone {
            life: subject.1,
            ending: Ending::Removed,
            term,
            vote: core.vote().filter(|_| own == term),
            at,
        };
        self.counters().repairs.add(1);
        self.end_replica(group, tombstone);
    }
}

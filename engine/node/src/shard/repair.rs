//! Replicas that are taken out of service, and how those whose log is damaged come back without it: from their peers, by the leave
//! of a leader.
//! It must never drop a damaged log before a quorum is known to go on without it, nor let the replica vote before it has again
//! what it may have acknowledged.
//!
//! The replica is in quarantine and asks all nodes (`members.rs`). The leader appends an entry, and once that is committed, says
//! Join: the replica had no part in that, so the others are a quorum. Then the replica ends as if it had been removed as of the
//! last entry that it may have acknowledged, with its term and its vote, and is taken in again like any member that has nothing.
//! Why that is safe is in `docs/decisions/2026-11-21-repair-from-peers.md`.

use std::collections::BTreeMap;

use polyraft_raft::{Event, GroupId, Index, NodeId, Removed, Role, Term, Tick, votes_again_at};
use polyraft_storage::{Ending, ReadError, Tombstone};

use super::{Payloads, Shard, leads};
use crate::error::Error;
use crate::event::Claim;

/// For how long a leader remembers who asked, in microseconds. Who asks later begins anew.
const REMEMBERED: u64 = 60_000_000;

/// What a shard knows of damaged replicas, here and elsewhere.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// By slot: the last entry that a replica here may have acknowledged before its log was damaged.
    damaged: BTreeMap<u32, Index>,
    /// Members that ask groups which are led here whether they may come back, and what has to be committed first.
    asked: BTreeMap<(GroupId, NodeId), Asked>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    term: Term,
    index: Index,
    at: Tick,
}

impl Repairs {
    /// Whether a replica may come back without its log.
    pub(super) fn is_possible(&self, slot: u32) -> bool {
        self.damaged.contains_key(&slot)
    }

    /// A replica has ended.
    pub(super) fn forget(&mut self, slot: u32) {
        self.damaged.remove(&slot);
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
        replica.fault = Some(reason);
        // What its last step left behind must not leave.
        self.outbox.writes.clear();
        self.outbox.sends.retain(|send| send.group != group);
        self.outbox.applies.retain(|apply| apply.group != group);
        self.outbox.claims.retain(|claim| claim.group != group);
        self.outbox.timers.retain(|timer| timer.group != group);
        self.outbox.proposed.clear();
        self.outbox.changes.clear();
        // That this node is no member any more is committed all the same, and nobody may say it again.
        let node = self.shared.node;
        let is_own_end = |removed: &Removed| removed.node == node;
        self.outbox
            .removed
            .retain(|removed| removed.group != group || is_own_end(removed));
        if replica.shown.leads || replica.group.role() == Role::Leader {
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
        // Nothing else may change of it that would be shown.
        self.note_forlorn(slot);
    }

    /// A block of a replica's log can't be read. If that is because of the disk, its peers have the entries.
    pub(super) fn quarantine_unreadable(&mut self, slot: u32, what: &str, error: &ReadError) {
        let replica = &self.replicas[slot as usize];
        if matches!(error, ReadError::Damaged { .. }) && replica.fault.is_none() {
            let last = replica.group.last().index;
            self.note_damaged(
                slot,
                last.max(replica.group.returning().unwrap_or_default()),
            );
        }
        self.quarantine(slot, format!("{what}: {error}"));
    }

    /// A replica that is about to be quarantined can get its log from its peers; it may have acknowledged everything through
    /// `last`.
    pub(super) fn note_damaged(&mut self, slot: u32, last: Index) {
        if self.limits.repair {
            self.repairs.damaged.insert(slot, last);
        }
    }

    /// A member's log is damaged, and it asks whether it may come back without it. The answer is yes when an entry is committed
    /// that was appended after the first question.
    pub(super) fn repair_asked(&mut self, slot: u32, node: NodeId) {
        let now = self.now;
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        if !leads(replica) || !core.configuration().contains(node) {
            return;
        }
        let (group, term, committed) = (core.id(), core.term(), core.committed());
        let asked = &mut self.repairs.asked;
        asked.retain(|_, asked| now.since(asked.at) < REMEMBERED);
        match asked.get(&(group, node)) {
            Some(known) if known.term == term && known.index <= committed => {
                asked.remove(&(group, node));
                self.welcome(node, group);
            }
            Some(known) if known.term == term => {}
            _ => {
                self.step(slot, Event::Barrier, Payloads::None);
                let appended = self.outbox.proposed.pop();
                if let Some(Ok(entries)) = appended.map(|appended| appended.outcome) {
                    let (index, at) = (entries.first, now);
                    let asked = Asked { term, index, at };
                    self.repairs.asked.insert((group, node), asked);
                }
            }
        }
    }

    /// A leader says that its group goes on without this replica's log, and takes it back without one.
    pub(super) fn come_back(&mut self, slot: u32, leader: NodeId, term: Term) {
        let Some(last) = self.repairs.damaged.get(&slot).copied() else {
            return;
        };
        let core = &self.replicas[slot as usize].group;
        let (group, own) = (core.id(), core.term());
        let subject = (group, self.marks[slot as usize].life);
        if term < own {
            // One of an earlier term has to come forward first.
            return self.say_stale(leader, subject, own);
        }
        let at = votes_again_at(last);
        tracing::warn!(node = %self.shared.node, %group, %leader, %term, %at, "the damaged log of a replica is dropped; it comes back from its peers, and votes once it has this index again");
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

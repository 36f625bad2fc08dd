//! One group's replica on its shard: the Raft core, and the callers and bytes that belong to it.
//! It must never hold anything that grows with the group's log.

use std::sync::Arc;

use bytes::Bytes;
use polyraft_raft::{Group, Index, Role, Term, Tick};
use polyraft_storage::EntryKind;

use super::PROPOSAL_OVERHEAD;
use super::chains::{Chain, Chains};
use super::reads::{Barrier, Reading, Ready};
use crate::apply::WaitingReply;
use crate::completion::ReplyTo;
use crate::directory::{GroupCell, Shown};
use crate::error::Error;

/// A proposal on its way to a leader.
#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) payload: Bytes,
    /// Of the entry that it becomes.
    pub(super) kind: EntryKind,
    pub(super) reply: ReplyTo,
    /// Until when it may wait for a leader or for the leader's node.
    pub(super) deadline: Tick,
}

impl Proposal {
    /// What it counts towards bounds in bytes.
    pub(super) fn weight(&self) -> usize {
        self.payload.len() + PROPOSAL_OVERHEAD
    }
}

/// What waits for the replicas of a shard.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) proposals: Chains<Proposal>,
    pub(super) waiting: Chains<WaitingReply>,
    pub(super) reads: Chains<Reading>,
    pub(super) ready: Chains<Ready>,
}

impl Queues {
    /// Gives back the memory of queues in which nothing waits.
    pub(super) fn trim(&mut self) {
        self.proposals.trim();
        self.waiting.trim();
        self.reads.trim();
        self.ready.trim();
    }
}

/// A replica, owned by its shard.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) group: Group,
    pub(super) cell: Arc<GroupCell>,
    /// Proposals of this turn.
    pub(super) gathered: Chain,
    /// Proposals that wait for somebody to lead.
    pub(super) held: Chain,
    /// Callers whose entries are in this leader's log, by index.
    pub(super) waiting: Chain,
    /// Payload bytes of all three.
    pub(super) pending_bytes: usize,
    /// Reads that wait for somebody to say what they must see.
    pub(super) reads: Chain,
    /// Reads that wait for that to be handed out for applying.
    pub(super) ready: Chain,
    /// It was let into a round of an election that has not ended.
    pub(super) is_in_round: bool,
    /// It is in the list of replicas with reads.
    pub(super) is_reading: bool,
    /// What is handed out has everything that was committed at this moment; 0: that is not known of any.
    pub(super) fresh_at: Tick,
    /// The batch of claims that has this replica's, while it leads.
    pub(super) claim_batch: u64,
    pub(super) barrier: Option<Box<Barrier>>,
    /// Where the last snapshot was begun, and bytes of log applied since.
    pub(super) saved: Index,
    pub(super) unsaved_bytes: u64,
    /// Its state machine is being given the state of a snapshot, or gives a part of its state away, and applies nothing.
    pub(super) is_held: bool,
    /// What the counters and the cell say of it now.
    pub(super) shown: Shown,
    /// It is quarantined: it is never stepped again. Behind a pointer, because hardly any replica is.
    pub(super) fault: Option<Box<Quarantine>>,
}

/// Why a replica is out of service.
#[derive(Debug)]
pub(super) struct Quarantine {
    reason: String,
}

impl Replica {
    pub(super) fn new(group: Group, cell: Arc<GroupCell>) -> Self {
        Replica {
            group,
            cell,
            gathered: Chain::default(),
            held: Chain::default(),
            waiting: Chain::default(),
            pending_bytes: 0,
            reads: Chain::default(),
            ready: Chain::default(),
            is_in_round: false,
            is_reading: false,
            fresh_at: Tick(0),
            claim_batch: u64::MAX,
            barrier: None,
            saved: Index::ZERO,
            unsaved_bytes: 0,
            is_held: false,
            shown: Shown::default(),
            fault: None,
        }
    }

    /// Takes it out of service.
    pub(super) fn fail(&mut self, reason: String) {
        self.fault = Some(Box::new(Quarantine { reason }));
    }

    /// Why it is quarantined, if it is.
    pub(super) fn fault_reason(&self) -> Option<&str> {
        self.fault.as_ref().map(|fault| &*fault.reason)
    }

    /// What whoever wants something of it is told when it is quarantined.
    pub(super) fn refusal(&self) -> Option<Error> {
        let reason = self.fault_reason()?.to_owned();
        Some(Error::Fault { reason })
    }

    /// Whether it is shown to lead its group: then who leads it is this node.
    pub(super) fn is_shown_to_lead(&self) -> bool {
        self.shown.leader() == Some(self.group.node())
    }

    /// Whether it asks for votes, or whether it would get them.
    pub(super) fn campaigns(&self) -> bool {
        let role = self.group.role();
        self.fault.is_none() && matches!(role, Role::PreCandidate | Role::Candidate)
    }

    /// Whether something is known to be committed behind what the group began with, which is in term 0.
    pub(super) fn has_committed(&self) -> bool {
        let base = self.group.base();
        base.term > Term::ZERO || self.group.committed() > base.index
    }

    /// Answers the callers whose entries are in the log of a leader that is one no more.
    pub(super) fn forget_waiting(&mut self, queues: &mut Queues, error: &Error) {
        for waiting in queues.waiting.drain(&mut self.waiting) {
            self.pending_bytes -= waiting.bytes;
            waiting.reply.answer(Err(error.clone()));
        }
    }

    /// Answers every caller with `error`.
    pub(super) fn fail_all(&mut self, queues: &mut Queues, error: &Error) {
        self.forget_waiting(queues, error);
        for reading in queues.reads.drain(&mut self.reads) {
            reading.refuse(error);
        }
        for ready in queues.ready.drain(&mut self.ready) {
            ready.query.reply.answer(Err(error.clone()));
        }
        for chain in [&mut self.gathered, &mut self.held] {
            for proposal in queues.proposals.drain(chain) {
                proposal.reply.answer(Err(error.clone()));
            }
        }
        self.pending_bytes = 0;
    }
}

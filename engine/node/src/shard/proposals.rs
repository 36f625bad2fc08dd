//! Proposals on a shard: taken, appended by a leader, sent on to one, or held until there is one.
//! A proposal must never be sent a second time unless the first attempt surely entered no log.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{Event, GroupId, Index, Life, NodeId, Role, Tick};
use polyraft_storage::EntryKind;
use polyraft_transport::SendError;
use rustc_hash::FxHashMap;

use super::outgoing::Refused;
use super::replica::Proposal;
use super::{Deferred, PROPOSAL_OVERHEAD, Payloads, SAMPLE_LIMIT, Sample, Shard, leads};
use crate::apply::WaitingReply;
use crate::completion::{Outcome, ReplyTo};
use crate::error::Error;
use crate::wire::{self, Record, Records};

/// How long a refused forward waits before it is tried again, in microseconds.
const RETRY_PAUSE: u64 = 20_000;

/// Proposals sent to the leader's node, until it answers.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    open: FxHashMap<u64, Forward>,
    /// Deadlines in the order in which they were set; an answered request's entry is skipped.
    expiries: VecDeque<(Tick, u64)>,
    last_request: u64,
    /// What the open forwards keep in memory.
    bytes: usize,
    /// Answers to other nodes' forwards whose lane was full.
    unsent: Vec<UnsentReply>,
}

#[derive(Debug)]
struct UnsentReply {
    group: GroupId,
    origin: NodeId,
    request: u64,
    outcome: Outcome,
}

#[derive(Debug)]
struct Forward {
    group: GroupId,
    to: NodeId,
    proposal: Proposal,
}

impl Forwards {
    /// Numbers its requests from a place of this incarnation's own, so that the answer to an earlier life's request
    /// never fits.
    pub(super) fn new(incarnation: u64) -> Self {
        Forwards {
            last_request: first_request(incarnation),
            ..Forwards::default()
        }
    }

    /// When the oldest forward gives up.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.expiries.front().map(|(at, _)| *at)
    }

    fn insert(&mut self, request: u64, forward: Forward) {
        self.bytes += forward.proposal.weight();
        self.open.insert(request, forward);
    }

    fn remove(&mut self, request: u64) -> Option<Forward> {
        let forward = self.open.remove(&request)?;
        self.bytes -= forward.proposal.weight();
        Some(forward)
    }

    /// Whatever went to a node that is gone may or may not have been committed there.
    pub(super) fn peer_lost(&mut self, node: NodeId) {
        let lost = self.open.extract_if(|_, forward| forward.to == node);
        let mut lost: Vec<(u64, Forward)> = lost.collect();
        lost.sort_unstable_by_key(|(request, _)| *request);
        for (_, forward) in lost {
            self.bytes -= forward.proposal.weight();
            forward.proposal.reply.answer(Err(Error::Unknown {
                why: "the leader's node fell silent",
            }));
        }
    }

    /// Answers every caller with `error`.
    pub(super) fn fail_all(&mut self, error: &Error) {
        let mut open: Vec<(u64, Forward)> = self.open.drain().collect();
        open.sort_unstable_by_key(|(request, _)| *request);
        for (_, forward) in open {
            forward.proposal.reply.answer(Err(error.clone()));
        }
        self.expiries.clear();
        self.bytes = 0;
    }
}

impl Shard {
    /// What refuses new proposals now, judged once a turn.
    pub(super) fn judge_overload(&self) -> Option<Error> {
        let limit = self.limits.wal_bytes;
        if self.wal.pending_bytes() > limit {
            return Some(Error::Busy {
                what: "wal.max_pending_bytes",
                limit,
            });
        }
        let limit = self.limits.apply_bytes;
        (self.shared.backlog.bytes() > limit).then_some(Error::Busy {
            what: "apply.queue_bytes",
            limit: limit as u64,
        })
    }

    /// Whether a follower takes no more entries: its disk or its state machines are far behind. The leader sends them
    /// again later, and its window holds it back until then.
    pub(super) fn refuses_entries(&mut self, bytes: usize) -> bool {
        self.is_out_of_room()
            || !self.take_room(bytes)
            || self.wal.pending_bytes() > 2 * self.limits.wal_bytes
            || self.shared.backlog.bytes() > 2 * self.limits.apply_bytes
    }

    /// Takes a proposal from a caller of this node or from another node.
    pub(super) fn propose(
        &mut self,
        group: GroupId,
        kind: EntryKind,
        payload: Bytes,
        reply: ReplyTo,
    ) {
        self.shared.gauges[self.index]
            .proposals
            .fetch_sub(payload.len() + PROPOSAL_OVERHEAD, Ordering::Relaxed);
        self.take(group, kind, payload, reply);
    }

    fn take(&mut self, group: GroupId, kind: EntryKind, payload: Bytes, reply: ReplyTo) {
        let Some(slot) = self.slot(group) else {
            let is_opening = self.opening.contains_key(&group);
            let error = if is_opening {
                Error::NotLeader { hint: None }
            } else {
                self.gone(group)
            };
            return reply.answer(Err(error));
        };
        // Others only pass it on to the leader.
        let has_room = !leads(&self.replicas[slot as usize]) || self.take_room(payload.len());
        let into = self.merging_into(slot).filter(|_| kind != EntryKind::Merge);
        let replica = &mut self.replicas[slot as usize];
        let refusal = if replica.fault.is_some() {
            replica.refusal()
        } else if let Some(into) = into {
            Some(Error::Merging { into })
        } else if replica.pending_bytes > 0
            && replica.pending_bytes + payload.len() + PROPOSAL_OVERHEAD > self.limits.group_bytes
        {
            Some(Error::Busy {
                what: "shards.group_bytes",
                limit: self.limits.group_bytes as u64,
            })
        } else if !has_room {
            Some(Error::Busy {
                what: "the disk",
                limit: self.room.left(),
            })
        } else {
            self.overload.clone()
        };
        if let Some(error) = refusal {
            self.counters().refused(&error);
            return reply.answer(Err(error));
        }
        replica.pending_bytes += payload.len() + PROPOSAL_OVERHEAD;
        let deadline = Tick(self.now.0 + self.limits.proposal_timeout);
        let proposal = Proposal {
            payload,
            kind,
            reply,
            deadline,
        };
        self.queues.proposals.push(&mut replica.gathered, proposal);
        self.touch(slot);
    }

    /// A proposal of a caller on `origin`, which takes this node for the leader's.
    pub(super) fn forwarded(
        &mut self,
        origin: NodeId,
        group: GroupId,
        request: u64,
        (kind, payload): (EntryKind, Bytes),
    ) {
        let inbox = self.shared.inboxes[self.index].clone();
        let (bytes, limit) = (payload.len(), self.limits.proposal_bytes);
        if bytes > limit {
            // The other node is configured to take more than this one.
            let reply = ReplyTo::forwarded(group, origin, request, inbox);
            return reply.answer(Err(Error::TooLarge { bytes, limit }));
        }
        self.take(
            group,
            kind,
            payload,
            ReplyTo::forwarded(group, origin, request, inbox),
        );
    }

    /// Brings the proposals of a replica on their way: into the log, to the leader's node, or into waiting.
    pub(super) fn settle_proposals(&mut self, slot: u32) {
        let replica = &mut self.replicas[slot as usize];
        if replica.gathered.is_empty() && replica.held.is_empty() || replica.fault.is_some() {
            return;
        }
        let mut proposals = std::mem::take(&mut self.proposals);
        for chain in [&mut replica.held, &mut replica.gathered] {
            proposals.extend(self.queues.proposals.drain(chain));
        }
        let (role, leader) = (replica.group.role(), replica.group.leader());
        match leader {
            _ if role == Role::Leader => self.append_proposals(slot, &mut proposals),
            Some(leader) if leader != self.shared.node => {
                self.forward_proposals(slot, leader, &mut proposals)
            }
            _ => self.hold_proposals(slot, &mut proposals),
        }
        self.proposals = proposals;
    }

    /// Appends proposals in as few entry blocks as the bounds on an append allow.
    pub(super) fn append_proposals(&mut self, slot: u32, proposals: &mut Vec<Proposal>) {
        let is_traced = self.shared.tracer.is_on();
        let mut start = 0;
        while start < proposals.len() {
            let end = start + block_len(&proposals[start..], &self.settings);
            let count =
                u32::try_from(end - start).expect("bounded by replication.max_append_entries");
            self.step(
                slot,
                Event::Propose { count },
                Payloads::Proposed(&proposals[start..end]),
            );
            // A panic of the core leaves no outcome; the replica is quarantined then.
            let Some(proposed) = self.outbox.proposed.pop() else {
                break;
            };
            let Ok(range) = proposed.outcome else { break };
            self.histograms().block_entries.record(u64::from(count));
            self.sample(slot, range.first);
            let waiting = &mut self.replicas[slot as usize].waiting;
            let queue = &mut self.queues.waiting;
            let mut index = range.first;
            for proposal in &mut proposals[start..end] {
                let bytes = proposal.weight();
                if is_traced && let Some(trace) = proposal.reply.trace() {
                    self.traces.appended(slot, index, Arc::clone(trace));
                }
                let reply = WaitingReply {
                    index,
                    term: range.term,
                    bytes,
                    reply: proposal.reply.take(),
                };
                queue.push(waiting, reply);
                index = index.next();
            }
            self.counters().proposals.add(u64::from(count));
            start = end;
        }
        let refused = proposals.drain(..).skip(start);
        let replica = &mut self.replicas[slot as usize];
        // Whoever hands its group over leads it still, and takes nothing.
        let hint = replica
            .group
            .leader()
            .filter(|node| *node != self.shared.node);
        for proposal in refused {
            replica.pending_bytes = replica.pending_bytes.saturating_sub(proposal.weight());
            proposal.reply.answer(Err(Error::NotLeader { hint }));
        }
    }

    /// Takes a proposal for the next sample of how long a commit takes, if none is under way.
    fn sample(&mut self, slot: u32, index: Index) {
        let age = self.sample.map(|sample| self.now.since(sample.appended));
        if age.is_none_or(|age| age > SAMPLE_LIMIT) {
            // Those that take longest must not be the ones that are left out.
            age.inspect(|age| self.histograms().commit_us.record(*age));
            self.sample = Some(Sample {
                slot,
                index,
                appended: self.now,
            });
        }
    }

    /// Sends proposals to the leader's node. Those that came from another node go back with a hint instead.
    fn forward_proposals(&mut self, slot: u32, leader: NodeId, proposals: &mut Vec<Proposal>) {
        let subject = (
            self.replicas[slot as usize].group.id(),
            self.marks[slot as usize].life,
        );
        for proposal in proposals.drain(..) {
            self.replicas[slot as usize].pending_bytes -= proposal.weight();
            self.forward_proposal(subject, leader, proposal);
        }
    }

    /// Sends a proposal to a node that is taken for the leader's. The group need not be here.
    pub(super) fn forward_proposal(
        &mut self,
        subject: (GroupId, Life),
        to: NodeId,
        proposal: Proposal,
    ) {
        let (group, bytes) = (subject.0, proposal.payload.len());
        let limit = self.limits.inbox_bytes;
        if self.forwards.bytes + bytes + PROPOSAL_OVERHEAD > limit {
            let what = "shards.inbox_bytes";
            let limit = limit as u64;
            let error = Error::Busy { what, limit };
            self.shared.counters.shard(self.index).refused(&error);
            return proposal.reply.answer(Err(error));
        }
        let counters = self.shared.counters.shard(self.index);
        let bytes = wire::HEAD_BYTES + 8 + bytes;
        match self.outgoing.forward(to, group, bytes, counters) {
            Some(frame) if !proposal.reply.is_forwarded() => {
                self.forwards.last_request = self.forwards.last_request.wrapping_add(1);
                let request = self.forwards.last_request;
                wire::put_forward(frame, subject, request, proposal.kind, &proposal.payload);
                self.forwards
                    .expiries
                    .push_back((Tick(self.now.0 + self.limits.proposal_timeout), request));
                let forward = Forward {
                    group,
                    to,
                    proposal,
                };
                self.forwards.insert(request, forward);
                counters.forwarded.add(1);
            }
            _ => proposal
                .reply
                .answer(Err(Error::NotLeader { hint: Some(to) })),
        }
    }

    /// Keeps proposals until somebody leads or their time is over.
    fn hold_proposals(&mut self, slot: u32, proposals: &mut Vec<Proposal>) {
        let now = self.now;
        let replica = &mut self.replicas[slot as usize];
        for proposal in proposals.drain(..) {
            if proposal.deadline <= now || proposal.reply.is_forwarded() {
                replica.pending_bytes -= proposal.weight();
                proposal.reply.answer(Err(Error::NotLeader { hint: None }));
            } else {
                self.queues.proposals.push(&mut replica.held, proposal);
            }
        }
        if !replica.held.is_empty() {
            self.look_again(slot);
        }
    }

    /// Looks at a replica's held proposals again after a pause.
    fn look_again(&mut self, slot: u32) {
        let at = self.now.after(RETRY_PAUSE);
        self.defer(at, Deferred::Proposals(slot));
    }

    /// The leader's node answered a forward.
    pub(super) fn forward_replied(
        &mut self,
        from: NodeId,
        group: GroupId,
        request: u64,
        outcome: Outcome,
    ) {
        if self
            .forwards
            .open
            .get(&request)
            .is_none_or(|forward| forward.to != from || forward.group != group)
        {
            return; // Its deadline has passed, and the caller was told.
        }
        let Some(Forward { proposal, .. }) = self.forwards.remove(request) else {
            return;
        };
        let slot = self.slot(group);
        let slot = slot.filter(|slot| self.replicas[*slot as usize].fault.is_none());
        match (outcome, slot) {
            // It surely entered no log, so it may look for the leader again. Who led the group may have left it meanwhile.
            (Err(Error::NotLeader { .. } | Error::NoSuchGroup { .. }), Some(slot))
                if proposal.deadline > self.now =>
            {
                let replica = &mut self.replicas[slot as usize];
                replica.pending_bytes += proposal.weight();
                self.queues.proposals.push(&mut replica.held, proposal);
                self.look_again(slot);
            }
            (outcome, _) => proposal.reply.answer(outcome),
        }
    }

    /// Gives up on forwards that were not answered in time.
    pub(super) fn expire_forwards(&mut self) {
        while let Some((_, request)) = self
            .forwards
            .expiries
            .pop_front_if(|(at, _)| *at <= self.now)
        {
            if let Some(forward) = self.forwards.remove(request) {
                if mutants::is_active(Mutant::UnknownProposedAgain) {
                    self.take(
                        forward.group,
                        forward.proposal.kind,
                        forward.proposal.payload,
                        forward.proposal.reply,
                    );
                    continue;
                }
                forward.proposal.reply.answer(Err(Error::Unknown {
                    why: "the leader did not answer in time",
                }));
            }
        }
    }

    /// Looks through the frames that the transport did not take. A forward in them has surely entered no log, so its
    /// caller is told at once; an answer is kept until the lane has room. Without a link the answer is lost like
    /// everything that was on its way.
    pub(super) fn take_back_refused(&mut self) {
        for Refused { to, frame, error } in self.outgoing.take_refused() {
            let mut records = Records::new(&frame);
            while let Some(record) = records.next_for(|group| group.is_some()) {
                match record.expect("the frame was written here") {
                    Record::Forward { request, .. } => self.take_back(request, to, &error),
                    Record::ForwardReply {
                        group,
                        request,
                        outcome,
                    } if matches!(error, SendError::Full { .. }) => {
                        self.keep_reply(UnsentReply {
                            group,
                            origin: to,
                            request,
                            outcome,
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    fn take_back(&mut self, request: u64, to: NodeId, error: &SendError) {
        let Some(forward) = self.forwards.remove(request) else {
            return;
        };
        let refusal = match *error {
            SendError::Full { limit, .. } => Error::Busy {
                what: "transport.queue_bytes",
                limit: limit as u64,
            },
            SendError::TooLarge { bytes, limit } => Error::TooLarge { bytes, limit },
            SendError::UnknownPeer | SendError::Disconnected | SendError::Closed => {
                Error::NotLeader { hint: Some(to) }
            }
        };
        self.counters().refused(&refusal);
        forward.proposal.reply.answer(Err(refusal));
    }

    fn keep_reply(&mut self, reply: UnsentReply) {
        if self.forwards.unsent.is_empty() {
            let at = self.now.after(RETRY_PAUSE);
            self.defer(at, Deferred::ForwardReplies);
        }
        self.forwards.unsent.push(reply);
    }

    /// Tries again to send the answers whose lane was full.
    pub(super) fn send_unsent_replies(&mut self) {
        for reply in std::mem::take(&mut self.forwards.unsent) {
            self.send_forward_reply(reply.group, reply.origin, reply.request, &reply.outcome);
        }
    }

    /// Sends the outcome of another node's proposal back to it.
    pub(super) fn send_forward_reply(
        &mut self,
        group: GroupId,
        origin: NodeId,
        request: u64,
        outcome: &Outcome,
    ) {
        let too_large = Err(Error::Fault {
            reason: "the reply is over transport.max_frame_bytes".to_owned(),
        });
        let mut bytes = reply_bytes(outcome);
        let most = self.outgoing.max_record_bytes(origin);
        let outcome = if bytes > most { &too_large } else { outcome };
        bytes = bytes.min(most);
        let subject = self.subject(group);
        let counters = self.shared.counters.shard(self.index);
        if let Some(frame) = self.outgoing.forward(origin, group, bytes, counters) {
            wire::put_forward_reply(frame, subject, request, outcome);
        }
    }
}

/// Where an incarnation starts to number its requests: far from every other's.
pub(super) fn first_request(incarnation: u64) -> u64 {
    incarnation.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

/// A bound on the size of a forward's reply on the wire.
fn reply_bytes(outcome: &Outcome) -> usize {
    let body = match outcome {
        Ok(committed) => committed.reply.len(),
        Err(Error::Fault { reason }) => reason.len() + 64,
        Err(_) => 256,
    };
    wire::HEAD_BYTES + 32 + body
}

/// How many of the first proposals go into one entry block: as many of the same kind as one append may carry, and at least one.
fn block_len(proposals: &[Proposal], settings: &polyraft_raft::Settings) -> usize {
    let (mut bytes, kind) = (0, proposals[0].kind);
    let most = match kind.is_alone() {
        true => 1,
        false => settings.max_append_entries as usize,
    };
    let fits = proposals.iter().take(most).take_while(|proposal| {
        bytes += proposal.payload.len() as u64 + 4;
        bytes <= settings.max_append_bytes && proposal.kind == kind
    });
    fits.count().max(1)
}

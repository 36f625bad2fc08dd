//! Leadership moved on request: one group handed to a chosen voter, or all groups that are led here handed to others before
//! the node stops. It must never leave a caller without an answer, nor take a group's leadership from it otherwise than by a
//! handover, which fails without harm.

use std::collections::BTreeMap;

use polyraft_raft::{Event, GroupId, NodeId, Tick, Transfer, TransferOutcome};

use super::{Payloads, Shard, leads};
use crate::error::Error;
use crate::event::{DrainReply, TransferReply};

/// Who waits for leadership to move.
#[derive(Debug, Default)]
pub(super) struct Leadership {
    /// Handovers that somebody asked for, by group: a group has one at a time.
    asked: BTreeMap<GroupId, (NodeId, TransferReply)>,
    drain: Option<Drain>,
}

/// All groups are being handed over.
#[derive(Debug)]
struct Drain {
    again_at: Tick,
    attempts: usize,
    /// Who waits, and for how long at most.
    replies: Vec<(Tick, DrainReply)>,
}

impl Drain {
    /// Answers those who don't wait for longer, and forgets who has given up.
    fn answer_until(&mut self, due: Tick, outcome: &Result<u64, Error>) {
        self.replies.retain(|(_, reply)| !reply.is_closed());
        for (_, reply) in self.replies.extract_if(.., |(until, _)| *until <= due) {
            let _ = reply.send(outcome.clone());
        }
    }
}

impl Leadership {
    /// When groups are handed over the next time, or no longer.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let drain = self.drain.as_ref()?;
        let until = drain.replies.iter().map(|(until, _)| *until);
        until.chain([drain.again_at]).min()
    }

    /// Answers whoever waits for one group.
    pub(super) fn fail(&mut self, group: GroupId, error: &Error) {
        if let Some((_, reply)) = self.asked.remove(&group) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// Answers everybody.
    pub(super) fn fail_all(&mut self, error: &Error) {
        for (_, reply) in std::mem::take(&mut self.asked).into_values() {
            let _ = reply.send(Err(error.clone()));
        }
        if let Some(mut drain) = self.drain.take() {
            drain.answer_until(Tick(u64::MAX), &Err(error.clone()));
        }
    }
}

impl Shard {
    /// A caller wants `to` to lead a group.
    pub(super) fn transfer_asked(&mut self, group: GroupId, to: NodeId, reply: TransferReply) {
        let Some(slot) = self.slot(group) else {
            let _ = reply.send(Err(self.absent(group)));
            return;
        };
        // What has ended in this turn is for whoever asked before.
        self.settle_transfers();
        self.step(slot, Event::Transfer { to }, Payloads::None);
        if let Some(error) = self.replicas[slot as usize].refusal() {
            let _ = reply.send(Err(error));
            return;
        }
        // An answer that comes at once is this caller's; an earlier one may still wait for the end of a handover.
        match self.outbox.transfers.pop() {
            Some(answer) => drop(reply.send(outcome(&answer))),
            None => drop(self.leadership.asked.insert(group, (to, reply))),
        }
    }

    /// Handovers that ended in this turn answer whoever asked for them. Those that nobody asked for show in who leads, or are
    /// tried again.
    pub(super) fn settle_transfers(&mut self) {
        for transfer in self.outbox.transfers.drain(..) {
            if let Some(slot) = self.slots.get(transfer.group) {
                let delay = self.limits.rebalance_delay;
                self.balance.ended(slot, transfer.outcome, self.now, delay);
            }
            let is_end = matches!(
                transfer.outcome,
                TransferOutcome::Done
                    | TransferOutcome::SteppedDown
                    | TransferOutcome::Silent
                    | TransferOutcome::TimedOut
            );
            let asked = &mut self.leadership.asked;
            let is_asked = asked
                .get(&transfer.group)
                .is_some_and(|(to, _)| *to == transfer.to);
            if is_end
                && is_asked
                && let Some((_, reply)) = asked.remove(&transfer.group)
            {
                let _ = reply.send(outcome(&transfer));
            }
        }
    }

    /// A caller wants this node to lead nothing any more.
    pub(super) fn drain_asked(&mut self, within: u64, reply: DrainReply) {
        let until = self.now.after(within);
        let again_at = self.now;
        let drain = self.leadership.drain.get_or_insert_with(|| Drain {
            again_at,
            attempts: 0,
            replies: Vec::new(),
        });
        drain.replies.push((until, reply));
    }

    /// Hands all groups over that are led here, again and again until none is left or the time is over.
    pub(super) fn drain(&mut self) {
        if self.leadership.drain.is_none() {
            return;
        }
        let led = self.counters().led.get();
        let Some(drain) = &mut self.leadership.drain else {
            return;
        };
        let due = if led == 0 { Tick(u64::MAX) } else { self.now };
        drain.answer_until(due, &Ok(led));
        if drain.replies.is_empty() {
            self.leadership.drain = None;
            return;
        }
        if drain.again_at > self.now {
            return;
        }
        let attempt = drain.attempts;
        drain.attempts += 1;
        // A handover ends within that time, one way or the other.
        drain.again_at = self.now.after(self.settings.election_timeout_max);
        for slot in 0..self.replicas.len() as u32 {
            if leads(&self.replicas[slot as usize])
                && let Some(to) = self.other_voter(slot, attempt)
            {
                self.step(slot, Event::Transfer { to }, Payloads::None);
            }
        }
    }
}

fn outcome(transfer: &Transfer) -> Result<(), Error> {
    let why = match transfer.outcome {
        TransferOutcome::Done => return Ok(()),
        TransferOutcome::NotLeader { hint } => return Err(Error::NotLeader { hint }),
        TransferOutcome::NotVoter => "it does not vote in the group",
        TransferOutcome::Witness => "it is a witness, which never leads",
        TransferOutcome::Busy => "another handover is under way",
        TransferOutcome::SteppedDown => "the leader stepped down before it was caught up",
        TransferOutcome::Silent => "its node is silent",
        TransferOutcome::TimedOut => "it was not caught up, or not elected, in time",
    };
    let to = transfer.to;
    Err(Error::Transfer { to, why })
}

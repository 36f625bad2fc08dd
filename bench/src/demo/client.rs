//! One thread of the load generator: a closed loop that keeps a window of proposals in flight, each in a slot of its
//! own. It must never count an acknowledgement before it is remembered, nor send again what may have been committed.

use super::acked::{AckBatch, AckFile, Promise, Promises};
use super::load::{LoadOptions, Shared};
use super::machine::{Ledger, ProposalId};
use super::runs::Runs;
use crate::cluster::{Roster, place};
use crate::control::Goal;
use crate::payloads::Payloads;
use anyhow::Result;
use polyraft::{Committed, Completion, CompletionQueue, Error, GroupHandle};
use polyraft_raft::NodeId;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a refused proposal waits before it is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(1);

/// The longest wait for a completion. Only a change of goal or of the roster is noticed this late.
const MAX_WAIT: Duration = Duration::from_millis(10);

/// A group as this client sees it.
struct Target {
    group: u64,
    /// Where to propose: the place of the node that led last, as far as is known.
    node: usize,
    next_sequence: u64,
    acked: Runs,
    open: Runs,
}

/// One place in the window.
#[derive(Clone, Copy)]
struct Slot {
    /// Position in `targets`.
    target: usize,
    sequence: u64,
    /// When this proposal was first sent.
    first_sent: Instant,
    /// Which sending the slot waits for. An answer to an earlier one is a bug of the engine.
    attempt: u32,
    state: SlotState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Free,
    InFlight,
    WaitsForRetry,
}

/// A client with its window.
pub struct Client {
    id: u64,
    targets: Vec<Target>,
    /// The target of the next new proposal: all in turn.
    next_target: usize,
    slots: Vec<Slot>,
    free: Vec<usize>,
    in_flight: usize,
    /// Refused proposals in the order in which they are due.
    retries: VecDeque<(Instant, usize)>,
    payloads: Payloads,
    payload_bytes: usize,
    queue: CompletionQueue,
    roster: Arc<Roster<Ledger>>,
    epoch: u64,
    /// By place of the node, then by target. None while the node is stopped.
    handles: Vec<Option<Vec<GroupHandle<Ledger>>>>,
    acked_file: Option<Arc<AckFile>>,
    acked_batch: AckBatch,
    shared: Arc<Shared>,
}

/// What a batch of completions adds to the shared figures.
#[derive(Default)]
struct Settled {
    /// When each acknowledged proposal was first sent.
    acknowledged: Vec<Instant>,
    retried: u64,
    open: u64,
}

impl Client {
    /// A client that is the only one with this `id`, and the only one that proposes to `groups` under it.
    pub fn new(
        id: u64,
        groups: Vec<u64>,
        window: usize,
        options: &LoadOptions,
        roster: Arc<Roster<Ledger>>,
        shared: Arc<Shared>,
    ) -> Self {
        assert!(
            !groups.is_empty() && window > 0,
            "a client has something to do"
        );
        let targets: Vec<_> = groups
            .into_iter()
            .map(|group| Target {
                group,
                node: 0,
                next_sequence: 0,
                acked: Runs::default(),
                open: Runs::default(),
            })
            .collect();
        let slot = Slot {
            target: 0,
            sequence: 0,
            first_sent: Instant::now(),
            attempt: 0,
            state: SlotState::Free,
        };
        Self {
            id,
            targets,
            next_target: 0,
            slots: vec![slot; window],
            free: (0..window).collect(),
            in_flight: 0,
            retries: VecDeque::with_capacity(window),
            payloads: Payloads::new(options.payload_bytes),
            payload_bytes: options.payload_bytes,
            queue: CompletionQueue::new(),
            roster,
            // The roster's epoch is 0 only before the first node starts.
            epoch: 0,
            handles: Vec::new(),
            acked_file: options.acked.clone(),
            acked_batch: AckBatch::default(),
            shared,
        }
    }

    /// Proposes until the goal is to end; returns what was promised.
    pub fn run(mut self) -> Promises {
        let mut completions = Vec::with_capacity(self.slots.len());
        let mut settled = Settled::default();
        loop {
            self.look_at_roster();
            match self.shared.control.goal() {
                Goal::Run => self.send_due(&mut settled),
                Goal::Rest => {
                    self.drop_retries();
                    if self.in_flight == 0 {
                        self.shared.control.rest();
                        continue;
                    }
                }
                Goal::End => break,
            }
            self.queue.drain(&mut completions, self.wait());
            let now = Instant::now();
            for completion in completions.drain(..) {
                self.settle(completion, now, &mut settled);
            }
            if let Err(error) = self.publish(now, &mut settled) {
                self.shared.control.fail(format!("{error:#}"));
                break;
            }
        }
        self.promises()
    }

    /// Takes new handles when a node has come or gone.
    fn look_at_roster(&mut self) {
        if self.epoch == self.roster.epoch() {
            return;
        }
        let (epoch, nodes) = self.roster.nodes();
        self.epoch = epoch;
        self.handles = nodes
            .iter()
            .map(|node| {
                let node = node.as_ref()?;
                Some(
                    self.targets
                        .iter()
                        .map(|target| node.group(target.group))
                        .collect(),
                )
            })
            .collect();
    }

    /// Sends retries whose time has come, then new proposals until the window is full.
    fn send_due(&mut self, settled: &mut Settled) {
        let now = Instant::now();
        while self.retries.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, slot)) = self.retries.pop_front() {
                self.send(slot, settled);
            }
        }
        // A slot that is refused at once waits for its retry, so each free slot is filled at most once here.
        while let Some(slot) = self.free.pop() {
            let at = self.next_target;
            self.next_target = (at + 1) % self.targets.len();
            let target = &mut self.targets[at];
            let sequence = target.next_sequence;
            target.next_sequence += 1;
            let slot_ref = &mut self.slots[slot];
            slot_ref.target = at;
            slot_ref.sequence = sequence;
            slot_ref.first_sent = Instant::now();
            self.send(slot, settled);
        }
    }

    fn send(&mut self, slot: usize, settled: &mut Settled) {
        let at = self.slots[slot].target;
        let id = ProposalId {
            client: self.id,
            sequence: self.slots[slot].sequence,
        };
        let Some(node) = self.choose_node(at) else {
            return self.retry_later(slot, Instant::now(), settled);
        };
        let payload = self.payloads.make(&id.to_bytes(), self.payload_bytes);
        let current = &mut self.slots[slot];
        current.attempt = current.attempt.wrapping_add(1);
        current.state = SlotState::InFlight;
        let tag = tag(slot, current.attempt);
        let Some(handles) = &self.handles[node] else {
            unreachable!("choose_node returns a node that runs");
        };
        match handles[at].propose_with(payload, tag, &self.queue) {
            Ok(()) => self.in_flight += 1,
            // Not taken, so not in any log, whatever the reason.
            Err(error) => {
                if !is_expected(&error) {
                    self.shared.control.fail(self.describe(at, &error));
                }
                self.turn_to(at, &error);
                self.retry_later(slot, Instant::now(), settled);
            }
        }
    }

    /// The node to propose to: the leader's if it is known and runs, else the last one, else any that runs.
    fn choose_node(&mut self, at: usize) -> Option<usize> {
        let target = &mut self.targets[at];
        let runs = |node: usize| self.handles.get(node).is_some_and(Option::is_some);
        if !runs(target.node) {
            target.node = (0..self.handles.len()).find(|node| runs(*node))?;
        }
        if let Some(handles) = &self.handles[target.node]
            && let Some((leader, _)) = handles[at].leader()
            && runs(place(leader.0))
        {
            target.node = place(leader.0);
        }
        Some(target.node)
    }

    /// After a refusal: follow the hint, or ask the next node.
    fn turn_to(&mut self, at: usize, error: &Error) {
        match error {
            Error::NotLeader {
                hint: Some(NodeId(id)),
            } => self.targets[at].node = place(*id),
            Error::NotLeader { hint: None } | Error::NoSuchGroup { .. } | Error::Closed => {
                self.targets[at].node = (self.targets[at].node + 1) % self.handles.len();
            }
            _ => {}
        }
    }

    fn retry_later(&mut self, slot: usize, now: Instant, settled: &mut Settled) {
        self.slots[slot].state = SlotState::WaitsForRetry;
        self.retries.push_back((now + RETRY_DELAY, slot));
        settled.retried += 1;
    }

    /// The load ends or rests: refused proposals are in no log, so they can be forgotten.
    fn drop_retries(&mut self) {
        for (_, slot) in std::mem::take(&mut self.retries) {
            self.release(slot);
        }
    }

    fn release(&mut self, slot: usize) {
        self.slots[slot].state = SlotState::Free;
        self.free.push(slot);
    }

    /// How long to wait for completions: until the next retry is due.
    fn wait(&self) -> Duration {
        match self.retries.front() {
            Some((due, _)) => due.saturating_duration_since(Instant::now()).min(MAX_WAIT),
            None => MAX_WAIT,
        }
    }

    fn settle(&mut self, completion: Completion, now: Instant, settled: &mut Settled) {
        let (at, attempt) = untag(completion.tag);
        let slot = self.slots[at];
        if slot.attempt != attempt || slot.state != SlotState::InFlight {
            // A refusal may come twice when the engine shuts down around it. A success may not.
            if completion.result.is_ok() {
                self.shared
                    .control
                    .fail("a proposal was acknowledged after it had been answered".into());
            }
            return;
        }
        self.in_flight -= 1;
        match completion.result {
            Ok(committed) => {
                self.check_reply(&slot, &committed);
                self.acknowledge(&slot);
                settled.acknowledged.push(slot.first_sent);
                self.release(at);
            }
            Err(error) if !was_refused(&error) => {
                if !is_expected(&error) {
                    self.shared.control.fail(self.describe(slot.target, &error));
                }
                self.targets[slot.target].open.insert(slot.sequence);
                settled.open += 1;
                self.turn_to(slot.target, &error);
                self.release(at);
            }
            Err(error) => {
                self.turn_to(slot.target, &error);
                self.retry_later(at, now, settled);
            }
        }
    }

    fn check_reply(&self, slot: &Slot, committed: &Committed) {
        let expected = ProposalId {
            client: self.id,
            sequence: slot.sequence,
        };
        if ProposalId::of(&committed.reply) != Some(expected) {
            self.shared.control.fail(format!(
                "group {} answered proposal {expected:?} with the reply to another one: {:?}",
                self.targets[slot.target].group,
                ProposalId::of(&committed.reply)
            ));
        }
    }

    fn acknowledge(&mut self, slot: &Slot) {
        let target = &mut self.targets[slot.target];
        if !target.acked.insert(slot.sequence) {
            self.shared.control.fail(format!(
                "group {} acknowledged one proposal twice",
                target.group
            ));
        }
        if self.acked_file.is_some() {
            let id = ProposalId {
                client: self.id,
                sequence: slot.sequence,
            };
            self.acked_batch.push(target.group, id);
        }
    }

    /// First the file, then the figures: what is counted can be checked after a kill.
    fn publish(&mut self, now: Instant, settled: &mut Settled) -> Result<()> {
        if let Some(file) = &self.acked_file {
            file.append(&mut self.acked_batch)?;
        }
        let mut figures = self.shared.figures();
        for first_sent in settled.acknowledged.drain(..) {
            let micros = now.saturating_duration_since(first_sent).as_micros();
            figures
                .latency_us
                .saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
        }
        figures.retried += std::mem::take(&mut settled.retried);
        figures.open += std::mem::take(&mut settled.open);
        Ok(())
    }

    fn describe(&self, at: usize, error: &Error) -> String {
        format!("group {}: {error}", self.targets[at].group)
    }

    fn promises(self) -> Promises {
        let mut promises = Promises::default();
        for target in self.targets {
            promises.add(
                target.group,
                self.id,
                Promise {
                    acked: target.acked,
                    open: target.open,
                    is_complete: true,
                },
            );
        }
        promises
    }
}

/// True if the proposal is in no log for certain, so that sending it again cannot apply it twice. A node that has just
/// been opened does not know its groups for a moment.
fn was_refused(error: &Error) -> bool {
    error.is_retryable() || matches!(error, Error::NoSuchGroup { .. })
}

/// True for errors that a healthy cluster gives while a node is stopped or opened, or a bound is reached.
fn is_expected(error: &Error) -> bool {
    was_refused(error) || matches!(error, Error::Unknown { .. } | Error::Closed)
}

/// The tag of one sending of one slot.
fn tag(slot: usize, attempt: u32) -> u64 {
    (u64::from(attempt) << 32) | slot as u64
}

fn untag(tag: u64) -> (usize, u32) {
    ((tag & u64::from(u32::MAX)) as usize, (tag >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_no_log_is_sent_again() {
        let group = polyraft_raft::GroupId(1);
        assert!(was_refused(&Error::NotLeader { hint: None }));
        assert!(was_refused(&Error::NoSuchGroup { group }));
        for open in [
            Error::Unknown { why: "test" },
            Error::Closed,
            Error::Fault {
                reason: "test".into(),
            },
        ] {
            assert!(!was_refused(&open), "{open}");
        }
        assert!(!is_expected(&Error::Query("test".into())));
    }

    #[test]
    fn tags_name_slot_and_attempt() {
        for (slot, attempt) in [(0, 0), (7, 1), (1_048_575, u32::MAX)] {
            assert_eq!(untag(tag(slot, attempt)), (slot, attempt));
        }
    }
}

//! A store: one thread that owns all replicas of a node, in the batched style of TiKV. Each turn it drains the inbox,
//! steps every group that is touched, gathers all their Readys into one log batch, and writes it with one sync.
//!
//! What a leader sends leaves before the sync, as raft-rs permits (Raft thesis 10.2.1); what a follower sends, after it.

use super::RaftLog;
use super::log::{Log, LogEntry, Position};
use crate::digest::Digest;
use crate::load::{Fate, NODES, Outcome};
use crate::mailbox::Mailbox;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType};
use raft::{RawNode, Ready, StateRole, Storage};
use raft_engine::{Command, LogBatch};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// TiKV's `raft-base-tick-interval`.
const TICK: Duration = Duration::from_secs(1);

/// Where a group keeps its term and vote in raft-engine.
const HARD_STATE: &[u8] = b"hard-state";

/// So many entries of a group are given up at a time. With those in flight they fit into the 992 places that raft-engine's
/// list of a group's entries grows to; from 1,023 on it would free its memory at each compaction and have to grow again.
const COMPACTED_ENTRIES: u64 = 512;

/// What a store is told.
pub enum Event {
    /// From another store, one vector for each of its turns.
    Messages(Vec<(u32, Message)>),
    /// From another store, by group that it leads: through where every replica's log is durable.
    Everywhere(Vec<(u32, Position)>),
    /// From the client.
    Proposals(Vec<Proposal>),
    /// Become leader of a group.
    Campaign(u32),
    /// Say what each group has applied, and let followers know what is committed.
    Digests(Sender<Vec<Digest>>),
    /// End.
    Stop,
}

/// A payload on its way into a group's log.
pub struct Proposal {
    pub group: u32,
    pub slot: u32,
    pub payload: Bytes,
}

/// A replica.
struct Group {
    node: RawNode<Log>,
    /// Indexes that the client waits for, with its slots.
    waiting: VecDeque<(u64, u32)>,
    /// This turn's proposals.
    proposals: Vec<Entry>,
    proposing: Vec<u32>,
    digest: Digest,
    /// Every replica's log is durable through here, as a leader has found.
    everywhere: Position,
    is_leader: bool,
    is_touched: bool,
}

/// A node's thread with everything it owns.
pub struct Store {
    /// This node, counted from 0.
    at: usize,
    engine: Arc<RaftLog>,
    groups: Vec<Group>,
    inboxes: Vec<Mailbox<Event>>,
    outbound: Vec<Vec<(u32, Message)>>,
    /// For all other stores, [`Event::Everywhere`].
    everywhere: Vec<(u32, Position)>,
    outcomes: Mailbox<Outcome>,
    answers: Vec<Outcome>,
    touched: Vec<u32>,
    readies: Vec<(u32, Ready)>,
    batch: LogBatch,
    /// How many groups this node leads.
    led: Arc<AtomicU64>,
}

impl Store {
    /// A store whose groups wait for a [`Event::Campaign`].
    pub fn new(
        at: usize,
        engine: Arc<RaftLog>,
        nodes: Vec<RawNode<Log>>,
        inboxes: Vec<Mailbox<Event>>,
        outcomes: Mailbox<Outcome>,
        led: Arc<AtomicU64>,
    ) -> Self {
        let groups = nodes.into_iter().map(|node| Group {
            node,
            waiting: VecDeque::new(),
            proposals: Vec::new(),
            proposing: Vec::new(),
            digest: Digest::default(),
            everywhere: (0, 0),
            is_leader: false,
            is_touched: false,
        });
        Self {
            at,
            engine,
            groups: groups.collect(),
            inboxes,
            outbound: (0..NODES).map(|_| Vec::new()).collect(),
            everywhere: Vec::new(),
            outcomes,
            answers: Vec::new(),
            touched: Vec::new(),
            readies: Vec::new(),
            batch: LogBatch::default(),
            led,
        }
    }

    /// Serves until told to stop.
    pub fn run(mut self) -> Result<()> {
        let inbox = self.inboxes[self.at].clone();
        let mut events = Vec::new();
        let mut next_tick = Instant::now() + TICK;
        loop {
            let wait = match self.touched.is_empty() {
                true => next_tick.saturating_duration_since(Instant::now()),
                false => Duration::ZERO,
            };
            inbox.take(&mut events, wait);
            if Instant::now() >= next_tick {
                next_tick += TICK;
                self.tick();
            }
            for event in events.drain(..) {
                match event {
                    Event::Messages(messages) => self.step(messages)?,
                    Event::Everywhere(positions) => {
                        for (group, position) in positions {
                            let known = &mut self.groups[group as usize].everywhere;
                            *known = position.max(*known);
                        }
                    }
                    Event::Proposals(proposals) => self.gather(proposals),
                    Event::Campaign(group) => {
                        self.groups[group as usize].node.campaign()?;
                        self.touch(group);
                    }
                    Event::Digests(reply) => {
                        self.ping();
                        let digests = self.groups.iter().map(|group| group.digest);
                        // Who asked waits for the answer.
                        let _ = reply.send(digests.collect());
                    }
                    Event::Stop => return Ok(()),
                }
            }
            self.turn()?;
        }
    }

    fn touch(&mut self, group: u32) {
        let state = &mut self.groups[group as usize];
        if !state.is_touched {
            state.is_touched = true;
            self.touched.push(group);
        }
    }

    fn tick(&mut self) {
        for group in 0..self.groups.len() as u32 {
            if self.groups[group as usize].node.tick() {
                self.touch(group);
            }
        }
    }

    /// Heartbeats carry the commit index; without load nothing else would for seconds.
    fn ping(&mut self) {
        for group in 0..self.groups.len() as u32 {
            self.groups[group as usize].node.ping();
            self.touch(group);
        }
    }

    fn step(&mut self, messages: Vec<(u32, Message)>) -> Result<()> {
        for (group, message) in messages {
            self.groups[group as usize].node.step(message)?;
            self.touch(group);
        }
        Ok(())
    }

    fn gather(&mut self, proposals: Vec<Proposal>) {
        for proposal in proposals {
            let group = &mut self.groups[proposal.group as usize];
            let entry = Entry {
                data: proposal.payload,
                ..Entry::default()
            };
            group.proposals.push(entry);
            group.proposing.push(proposal.slot);
            self.touch(proposal.group);
        }
    }

    /// All touched groups: step what was gathered, write, sync, and go on with what that has brought about.
    fn turn(&mut self) -> Result<()> {
        let mut touched = std::mem::take(&mut self.touched);
        for group in touched.drain(..) {
            self.groups[group as usize].is_touched = false;
            self.propose(group);
            self.ready(group)?;
        }
        self.touched = touched;
        self.send();
        if !self.batch.is_empty() {
            self.engine.write(&mut self.batch, true)?;
        }
        let mut readies = std::mem::take(&mut self.readies);
        for (group, ready) in readies.drain(..) {
            self.advance(group, ready)?;
        }
        self.readies = readies;
        self.send();
        self.outcomes.append(&mut self.answers);
        Ok(())
    }

    /// All proposals of a group go in one step, which makes one message of them for each follower.
    fn propose(&mut self, at: u32) {
        let group = &mut self.groups[at as usize];
        if group.proposals.is_empty() {
            return;
        }
        let first = group.node.raft.raft_log.last_index() + 1;
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = group.node.raft.id;
        message.entries = std::mem::take(&mut group.proposals).into();
        let is_taken =
            group.node.raft.state == StateRole::Leader && group.node.raft.step(message).is_ok();
        let slots = group.proposing.drain(..);
        if is_taken {
            group.waiting.extend((first..).zip(slots));
        } else {
            self.answers.extend(slots.map(|slot| Outcome {
                slot,
                fate: Fate::Refused,
            }));
        }
    }

    /// What a group has to write and to send.
    fn ready(&mut self, at: u32) -> Result<()> {
        let group = &mut self.groups[at as usize];
        if !group.node.has_ready() {
            return Ok(());
        }
        let mut ready = group.node.ready();
        ensure!(ready.snapshot().is_empty(), "nobody sends snapshots");
        let messages = ready.take_messages();
        let committed = ready.take_committed_entries();
        let entries = ready.take_entries();
        let hard_state = ready.hs().cloned();
        if let Some(soft_state) = ready.ss() {
            self.note_role(at, soft_state.raft_state == StateRole::Leader);
        }
        self.batch
            .add_entries::<LogEntry>(u64::from(at) + 1, &entries)?;
        if let Some(hard_state) = hard_state {
            self.keep(at, hard_state)?;
        }
        self.groups[at as usize].node.mut_store().append(entries);
        self.route(at, messages);
        self.apply(at, committed)?;
        self.readies.push((at, ready));
        Ok(())
    }

    /// A new term or vote goes to the log. A new commit index alone need not: it is found again after a restart.
    fn keep(&mut self, at: u32, new: HardState) -> Result<()> {
        let log = self.groups[at as usize].node.mut_store();
        if (new.term, new.vote) != (log.hard_state.term, log.hard_state.vote) {
            self.batch
                .put_message(u64::from(at) + 1, HARD_STATE.to_vec(), &new)?;
        }
        log.hard_state = new;
        Ok(())
    }

    /// Its part of the batch is durable.
    fn advance(&mut self, at: u32, mut ready: Ready) -> Result<()> {
        let messages = ready.take_persisted_messages();
        self.route(at, messages);
        let group = &mut self.groups[at as usize];
        let mut light = group.node.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            group.node.mut_store().hard_state.commit = commit;
        }
        let messages = light.take_messages();
        let committed = light.take_committed_entries();
        self.route(at, messages);
        self.apply(at, committed)?;
        let group = &mut self.groups[at as usize];
        group.node.advance_apply();
        let applied = group.node.raft.raft_log.applied;
        let needed = match group.node.raft.state {
            StateRole::Leader => {
                let matched = group.node.raft.prs().iter().map(|(_, peer)| peer.matched);
                let needed = matched.min().unwrap_or(0).min(applied);
                let log = group.node.store();
                if needed >= log.compacted() + COMPACTED_ENTRIES {
                    let position = (needed, log.term(needed)?);
                    group.everywhere = position.max(group.everywhere);
                    self.everywhere.push((at, position));
                }
                needed
            }
            _ => applied,
        };
        group.node.mut_store().trim(needed, applied);
        self.compact(at, applied);
        if self.groups[at as usize].node.has_ready() {
            self.touch(at);
        }
        Ok(())
    }

    /// Gives up what every replica has, in the next batch. Nobody can lack it then, whoever leads next: there are no
    /// snapshots that could replace it.
    fn compact(&mut self, at: u32, applied: u64) {
        let group = &mut self.groups[at as usize];
        let (through, log) = (group.everywhere, group.node.mut_store());
        if log.compacted() < through.0 && through.0 <= applied {
            log.compact(through);
            let index = through.0 + 1;
            self.batch
                .add_command(u64::from(at) + 1, Command::Compact { index });
        }
    }

    fn apply(&mut self, at: u32, entries: Vec<Entry>) -> Result<()> {
        let group = &mut self.groups[at as usize];
        for entry in entries {
            ensure!(
                entry.get_entry_type() == EntryType::EntryNormal,
                "nobody changes members"
            );
            if !entry.data.is_empty() {
                group.digest.apply(&entry.data);
            }
            // The client's indexes are those of this leader: a later one would have dropped them.
            if let Some((_, slot)) = group
                .waiting
                .pop_front_if(|(index, _)| *index == entry.index)
            {
                self.answers.push(Outcome {
                    slot,
                    fate: Fate::Committed,
                });
            }
        }
        Ok(())
    }

    /// A leader that loses its office does not know what becomes of its proposals.
    fn note_role(&mut self, at: u32, is_leader: bool) {
        let group = &mut self.groups[at as usize];
        match (
            std::mem::replace(&mut group.is_leader, is_leader),
            is_leader,
        ) {
            (false, true) => {
                self.led.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => {
                self.led.fetch_sub(1, Ordering::Relaxed);
                let slots = group.waiting.drain(..);
                self.answers.extend(slots.map(|(_, slot)| Outcome {
                    slot,
                    fate: Fate::Open,
                }));
            }
            // A candidate or a follower that never led, or one that leads on.
            _ => {}
        }
    }

    fn route(&mut self, at: u32, messages: Vec<Message>) {
        for message in messages {
            self.outbound[message.to as usize - 1].push((at, message));
        }
    }

    /// One hand-over for each store, and one more where something can be given up.
    fn send(&mut self) {
        for (to, (inbox, messages)) in self.inboxes.iter().zip(&mut self.outbound).enumerate() {
            if !messages.is_empty() {
                let room = Vec::with_capacity(messages.len());
                inbox.push(Event::Messages(std::mem::replace(messages, room)));
            }
            if to != self.at && !self.everywhere.is_empty() {
                inbox.push(Event::Everywhere(self.everywhere.clone()));
            }
        }
        self.everywhere.clear();
    }
}

/// The id that raft-rs knows a node by.
pub fn raft_id(at: usize) -> u64 {
    at as u64 + 1
}

/// Opens the replica of a group on node `at`.
pub fn replica(
    at: usize,
    region: u64,
    engine: Arc<RaftLog>,
    logger: &slog::Logger,
) -> Result<RawNode<Log>> {
    let voters: Vec<u64> = (0..NODES).map(raft_id).collect();
    let log = Log::new(engine, region, voters);
    RawNode::new(&super::config(at), log, logger).context("raft-rs does not take its configuration")
}

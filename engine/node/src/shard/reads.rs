//! Reads on a shard: confirmed by a lease, by peers that stand by the leader, or by the leader's node; then handed to the
//! state machine behind everything that they must see.
//! A read must never be answered from a state that lacks something which was acknowledged before the read came.
//!
//! What a read must see is known from one moment between its coming and its answer at which this node, or the one that was
//! asked, surely led the group. Every clock reading here is taken after the read was in hand; a turn's own time is too old,
//! because the process may have been stopped since.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use polyraft_raft::{Event, GroupId, Index, NodeId, Term, Tick, Unreadable};
use rustc_hash::FxHashMap;

use super::proposals::first_request;
use super::replica::Replica;
use super::{PROPOSAL_OVERHEAD, Payloads, Shard, leads};
use crate::apply::{Query, Task};
use crate::clock::micros;
use crate::completion::ReplyTo;
use crate::error::Error;
use crate::event::ShardEvent;
use crate::group::Read;
use crate::wire;

/// How often reads that wait are looked at again, in microseconds.
const LOOK_AGAIN: u64 = 20_000;

/// What a shard knows of its reads beyond the replicas' own queues.
#[derive(Debug)]
pub(super) struct Reads {
    /// Replicas with reads.
    slots: Vec<u32>,
    look_at: Option<Tick>,
    /// Reads wait for peers to stand by a leader here after this moment.
    wanted: Option<Tick>,
    /// Questions to other nodes, by request, and the moments at which they count as lost, in order.
    asks: FxHashMap<u64, Ask>,
    again: VecDeque<(Tick, u64)>,
    last_request: u64,
    /// What waiting reads keep in memory.
    bytes: usize,
    /// Replicas whose reads were looked at in this turn.
    settled: Vec<u32>,
    /// Queries of this turn, by apply worker.
    queries: Vec<Vec<(u32, Query)>>,
    /// Empty between two uses.
    scratch: Vec<Reading>,
}

/// Reads that wait for the answer of another node.
#[derive(Debug)]
struct Ask {
    slot: u32,
    to: NodeId,
    at: Tick,
    reads: Vec<Reading>,
}

/// A read of which it is not known yet what it must see.
#[derive(Debug)]
pub(super) struct Reading {
    who: Who,
    how: How,
    /// When it was in hand.
    came: Tick,
    gives_up_at: Tick,
}

/// Who wants to know.
#[derive(Debug)]
enum Who {
    Caller(Query),
    /// Another node has reads of its own.
    Node {
        node: NodeId,
        request: u64,
    },
}

/// How it may be confirmed.
#[derive(Debug, Clone, Copy)]
enum How {
    Standing,
    Lease,
    /// A state that has everything that was committed then is good enough.
    Since(Tick),
}

/// A read whose state is on its way.
#[derive(Debug)]
pub(super) struct Ready {
    index: Index,
    /// Everything through the index was all that was committed at this moment.
    fresh_at: Tick,
    pub(super) query: Query,
    gives_up_at: Tick,
}

/// An entry that shows, once it is committed, that this replica led when it was appended.
#[derive(Debug)]
pub(super) struct Barrier {
    index: Index,
    term: Term,
    appended: Tick,
}

impl Reading {
    pub(super) fn refuse(self, error: &Error) {
        // Another node asks again by itself.
        if let Who::Caller(query) = self.who {
            query.reply.answer(Err(error.clone()));
        }
    }

    fn bytes(&self) -> usize {
        match &self.who {
            Who::Caller(query) => query.bytes(),
            Who::Node { .. } => PROPOSAL_OVERHEAD,
        }
    }
}

impl Reads {
    pub(super) fn new(incarnation: u64, workers: usize) -> Self {
        Reads {
            slots: Vec::new(),
            look_at: None,
            wanted: None,
            asks: FxHashMap::default(),
            again: VecDeque::new(),
            last_request: first_request(incarnation),
            bytes: 0,
            settled: Vec::new(),
            queries: (0..workers).map(|_| Vec::new()).collect(),
            scratch: Vec::new(),
        }
    }

    /// When reads have to be looked at, at the latest.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let again = self.again.front().map(|(at, _)| *at);
        [self.look_at, again].into_iter().flatten().min()
    }

    /// Answers every caller whose read is with another node. The replicas answer the rest.
    pub(super) fn fail_all(&mut self, error: &Error) {
        let mut asks: Vec<(u64, Ask)> = self.asks.drain().collect();
        asks.sort_unstable_by_key(|(request, _)| *request);
        for reading in asks.into_iter().flat_map(|(_, ask)| ask.reads) {
            reading.refuse(error);
        }
        for (_, query) in self
            .queries
            .iter_mut()
            .flat_map(|queries| queries.drain(..))
        {
            query.reply.answer(Err(error.clone()));
        }
        self.again.clear();
        self.bytes = 0;
    }
}

impl Shard {
    /// Takes a read from a caller of this node.
    pub(super) fn read(&mut self, group: GroupId, read: Read, query: Bytes, reply: ReplyTo) {
        let query = Query {
            group,
            index: Index::ZERO,
            query,
            reply,
        };
        self.shared.gauges[self.index]
            .proposals
            .fetch_sub(query.bytes(), Ordering::Relaxed);
        let Some(slot) = self.slot(group) else {
            let error = match self.opening.contains_key(&group) {
                true => Error::NotLeader { hint: None },
                false => self.gone(group),
            };
            return query.reply.answer(Err(error));
        };
        let limit = self.limits.inbox_bytes;
        let refusal = if self.replicas[slot as usize].fault.is_some() {
            self.replicas[slot as usize].refusal()
        } else if self.replicas[slot as usize].group.is_witness() {
            let hint = self.replicas[slot as usize].group.leader();
            Some(Error::Witness { hint })
        } else if self.reads.bytes + query.bytes() > limit {
            Some(Error::Busy {
                what: "shards.inbox_bytes",
                limit: limit as u64,
            })
        } else {
            self.overload.clone()
        };
        if let Some(error) = refusal {
            if let Error::Busy { .. } = error {
                self.counters().busy_reads.add(1);
            }
            return query.reply.answer(Err(error));
        }
        let came = self.shared.clock.now();
        let how = match read {
            Read::Linearizable => How::Standing,
            Read::Lease => How::Lease,
            Read::Stale { max_lag } => How::Since(Tick(came.0.saturating_sub(micros(max_lag)))),
        };
        self.take_read(slot, Who::Caller(query), how, came);
    }

    /// Another node has reads of a group that it takes this node to lead.
    pub(super) fn read_asked(
        &mut self,
        from: NodeId,
        group: GroupId,
        request: u64,
        by_lease: bool,
    ) {
        let slot = self.slot(group);
        let slot = slot.filter(|slot| self.replicas[*slot as usize].fault.is_none());
        let Some(slot) = slot else {
            return self.answer_ask(from, group, request, &Err(Error::NotLeader { hint: None }));
        };
        let limit = self.limits.inbox_bytes;
        if self.reads.bytes + PROPOSAL_OVERHEAD > limit {
            // It asks again after a pause, for as long as its reads may wait.
            let error = Error::Busy {
                what: "shards.inbox_bytes",
                limit: limit as u64,
            };
            return self.answer_ask(from, group, request, &Err(error));
        }
        let came = self.shared.clock.now();
        let who = Who::Node {
            node: from,
            request,
        };
        let how = if by_lease { How::Lease } else { How::Standing };
        self.take_read(slot, who, how, came);
    }

    fn take_read(&mut self, slot: u32, who: Who, how: How, came: Tick) {
        let gives_up_at = came.after(self.limits.proposal_timeout);
        let reading = Reading {
            who,
            how,
            came,
            gives_up_at,
        };
        self.reads.bytes += reading.bytes();
        let replica = &mut self.replicas[slot as usize];
        self.queues.reads.push(&mut replica.reads, reading);
        self.touch(slot);
    }

    /// Brings the reads of a replica on their way.
    pub(super) fn settle_reads(&mut self, slot: u32) {
        let replica = &self.replicas[slot as usize];
        if replica.reads.is_empty() && replica.ready.is_empty() {
            return;
        }
        if !replica.reads.is_empty() {
            match replica.group.leader() {
                _ if leads(replica) => self.confirm_reads(slot),
                Some(leader) if leader != self.shared.node => self.ask_for_reads(slot, leader),
                _ => self.hold_reads(slot),
            }
        }
        self.reads.settled.push(slot);
    }

    /// Takes the reads of a replica out, without those whose time is over or which need not wait.
    fn open_reads(&mut self, slot: u32, now: Tick) -> Vec<Reading> {
        let mut open = std::mem::take(&mut self.reads.scratch);
        let replica = &mut self.replicas[slot as usize];
        let worker = polyraft_raft::shard_of(replica.group.id(), self.reads.queries.len());
        let fresh_at = replica.fresh_at;
        let has_leader = replica.group.leader().is_some();
        let mut given_up = 0;
        for reading in self.queues.reads.drain(&mut replica.reads) {
            // At first nothing is known: what is here may be as old as the last time that the node ran.
            let is_known = fresh_at > Tick(0);
            let is_fresh =
                is_known && matches!(reading.how, How::Since(since) if since <= fresh_at);
            match reading.who {
                // What is handed out will do, whatever reads wait for that must see more.
                Who::Caller(query) if is_fresh => {
                    self.reads.bytes -= query.bytes();
                    self.reads.queries[worker].push((slot, query));
                }
                _ if reading.gives_up_at <= now => {
                    self.reads.bytes -= reading.bytes();
                    given_up += 1;
                    reading.refuse(&if has_leader {
                        Error::Unconfirmed
                    } else {
                        Error::NotLeader { hint: None }
                    });
                }
                who => open.push(Reading { who, ..reading }),
            }
        }
        self.counters().unconfirmed_reads.add(given_up);
        open
    }

    fn close_reads(&mut self, mut open: Vec<Reading>) {
        open.clear();
        self.reads.scratch = open;
    }

    /// A leader's reads: what they must see is known when enough of the members stand by it.
    fn confirm_reads(&mut self, slot: u32) {
        let now = self.shared.clock.now();
        let mut open = self.open_reads(slot, now);
        let (shard, trust) = (self.index, Arc::clone(&self.trust));
        let replica = &mut self.replicas[slot as usize];
        let (term, committed) = (replica.group.term(), replica.group.committed());
        let barrier = replica
            .barrier
            .take_if(|barrier| barrier.term != term || barrier.index <= committed);
        let barrier = barrier.filter(|barrier| barrier.term == term);
        let (mut wanted, mut given_away) = (None, None);
        for reading in open.drain(..) {
            let replica = &self.replicas[slot as usize];
            let (group, batch) = (&replica.group, replica.claim_batch);
            let by_lease = match reading.how {
                How::Standing => Err(Unreadable::Unconfirmed),
                How::Lease | How::Since(_) => {
                    group.read_index(|node| trust.stands(node, shard, batch, now))
                }
            };
            let counters = self.shared.counters.shard(self.index);
            let (found, fresh_at) = match by_lease {
                Ok(index) => {
                    counters.lease_reads.add(1);
                    (Ok(index), now)
                }
                Err(_) => {
                    let stood = |node| trust.stood(node, shard, batch, reading.came);
                    let found = match group.read_index(stood) {
                        // It led when the entry was appended, and the read had come by then.
                        Err(Unreadable::GivenAway | Unreadable::Unconfirmed)
                            if barrier
                                .as_ref()
                                .is_some_and(|barrier| barrier.appended >= reading.came) =>
                        {
                            Ok(committed)
                        }
                        found => found,
                    };
                    if found.is_ok() {
                        counters.confirmed_reads.add(1);
                    }
                    (found, reading.came)
                }
            };
            match found {
                Ok(index) => self.read_confirmed(slot, reading, index, fresh_at),
                Err(why) => {
                    match why {
                        Unreadable::Unconfirmed => wanted = wanted.max(Some(reading.came)),
                        Unreadable::GivenAway => given_away = given_away.max(Some(reading.came)),
                        // The commit is another reason to look.
                        Unreadable::NotReady | Unreadable::NotLeader { .. } => {}
                    }
                    let replica = &mut self.replicas[slot as usize];
                    self.queues.reads.push(&mut replica.reads, reading);
                }
            }
        }
        self.close_reads(open);
        self.reads.wanted = self.reads.wanted.max(wanted);
        if given_away.is_some() && self.replicas[slot as usize].barrier.is_none() {
            self.append_barrier(slot);
        }
    }

    /// Nobody's word counts: an entry has to show that this replica leads, and to make the word of those who hold it count again.
    fn append_barrier(&mut self, slot: u32) {
        let appended = self.shared.clock.now();
        self.step(slot, Event::Barrier, Payloads::None);
        let proposed = self.outbox.proposed.pop();
        if let Some(range) = proposed.and_then(|proposed| proposed.outcome.ok()) {
            self.replicas[slot as usize].barrier = Some(Box::new(Barrier {
                index: range.first,
                term: range.term,
                appended,
            }));
        }
    }

    /// It is known what a read must see: everything through `index`, which was all that was committed at `fresh_at`.
    fn read_confirmed(&mut self, slot: u32, reading: Reading, index: Index, fresh_at: Tick) {
        let replica = &mut self.replicas[slot as usize];
        match reading.who {
            Who::Caller(query) => {
                let ready = Ready {
                    index,
                    fresh_at,
                    query,
                    gives_up_at: reading.gives_up_at,
                };
                self.queues.ready.push(&mut replica.ready, ready);
            }
            Who::Node { node, request } => {
                self.reads.bytes -= PROPOSAL_OVERHEAD;
                let group = replica.group.id();
                self.answer_ask(node, group, request, &Ok(index));
            }
        }
    }

    pub(super) fn answer_ask(
        &mut self,
        to: NodeId,
        group: GroupId,
        request: u64,
        outcome: &Result<Index, Error>,
    ) {
        let subject = self.subject(group);
        let counters = self.shared.counters.shard(self.index);
        let bytes = wire::READ_REPLY_BYTES;
        if let Some(frame) = self.outgoing.append(to, group, bytes, counters) {
            wire::put_read_reply(frame, subject, request, outcome);
        }
    }

    /// A follower's reads: the leader's node says what they must see, once for all that have come by now.
    fn ask_for_reads(&mut self, slot: u32, leader: NodeId) {
        let now = self.shared.clock.now();
        let mut open = self.open_reads(slot, now);
        let group = self.replicas[slot as usize].group.id();
        let mut reads = Vec::new();
        for reading in open.drain(..) {
            match reading.who {
                Who::Caller(_) => reads.push(reading),
                Who::Node { node, request } => {
                    self.reads.bytes -= PROPOSAL_OVERHEAD;
                    let hint = Some(leader);
                    self.answer_ask(node, group, request, &Err(Error::NotLeader { hint }));
                }
            }
        }
        self.close_reads(open);
        if reads.is_empty() {
            return;
        }
        let subject = (group, self.marks[slot as usize].life);
        let counters = self.shared.counters.shard(self.index);
        let bytes = wire::READ_ASK_BYTES;
        let Some(frame) = self.outgoing.append(leader, group, bytes, counters) else {
            let replica = &mut self.replicas[slot as usize];
            for reading in reads {
                self.queues.reads.push(&mut replica.reads, reading);
            }
            return;
        };
        let by_lease = !reads.iter().any(|read| matches!(read.how, How::Standing));
        self.reads.last_request = self.reads.last_request.wrapping_add(1);
        let request = self.reads.last_request;
        wire::put_read_ask(frame, subject, request, by_lease);
        counters.reads_asked.add(1);
        let ask = Ask {
            slot,
            to: leader,
            at: now,
            reads,
        };
        self.reads.asks.insert(request, ask);
        let again = self.now.after(self.settings.retry_interval);
        self.reads.again.push_back((again, request));
    }

    /// The leader's node has said what reads must see, or that it does not lead.
    pub(super) fn read_replied(
        &mut self,
        from: NodeId,
        group: GroupId,
        request: u64,
        outcome: Result<Index, Error>,
    ) {
        let slot = self.slot(group);
        let asks = &self.reads.asks;
        let is_known = asks
            .get(&request)
            .is_some_and(|ask| ask.to == from && Some(ask.slot) == slot);
        let Some(ask) = is_known.then(|| self.reads.asks.remove(&request)).flatten() else {
            return; // It was asked again meanwhile, or somebody else was.
        };
        match outcome {
            Ok(index) => {
                let count = ask.reads.len() as u64;
                self.counters().follower_reads.add(count);
                for reading in ask.reads {
                    self.read_confirmed(ask.slot, reading, index, ask.at);
                }
                self.touch(ask.slot);
            }
            // After a pause: it may be known by then who leads.
            Err(_) => self.put_back(ask),
        }
    }

    /// Reads that were not answered wait to be asked for again.
    fn put_back(&mut self, ask: Ask) {
        let replica = &mut self.replicas[ask.slot as usize];
        for reading in ask.reads {
            self.queues.reads.push(&mut replica.reads, reading);
        }
        if !replica.is_reading {
            replica.is_reading = true;
            self.reads.slots.push(ask.slot);
        }
        let look_at = self.now.after(LOOK_AGAIN);
        self.reads.look_at.get_or_insert(look_at);
    }

    /// A replica takes part no more: whoever reads there is told, also if the answer is already under way.
    pub(super) fn fail_reads(&mut self, slot: u32, error: &Error) {
        let asked = self.reads.asks.extract_if(|_, ask| ask.slot == slot);
        let mut asked: Vec<(u64, Ask)> = asked.collect();
        asked.sort_unstable_by_key(|(request, _)| *request);
        let replica = &mut self.replicas[slot as usize];
        let waiting = self.queues.reads.drain(&mut replica.reads);
        for reading in asked
            .into_iter()
            .flat_map(|(_, ask)| ask.reads)
            .chain(waiting)
        {
            self.reads.bytes -= reading.bytes();
            reading.refuse(error);
        }
        for ready in self.queues.ready.drain(&mut replica.ready) {
            self.reads.bytes -= ready.query.bytes();
            ready.query.reply.answer(Err(error.clone()));
        }
    }

    /// A node is silent: whatever it was asked is asked of another.
    pub(super) fn ask_others_than(&mut self, node: NodeId) {
        let lost = self.reads.asks.extract_if(|_, ask| ask.to == node);
        let mut lost: Vec<(u64, Ask)> = lost.collect();
        lost.sort_unstable_by_key(|(request, _)| *request);
        for (_, ask) in lost {
            self.put_back(ask);
        }
    }

    /// Nobody is known to lead: reads wait, or their time is over.
    fn hold_reads(&mut self, slot: u32) {
        let now = self.shared.clock.now();
        let mut open = self.open_reads(slot, now);
        for reading in open.drain(..) {
            if let Who::Node { node, request } = reading.who {
                self.reads.bytes -= PROPOSAL_OVERHEAD;
                let group = self.replicas[slot as usize].group.id();
                self.answer_ask(node, group, request, &Err(Error::NotLeader { hint: None }));
            } else {
                let replica = &mut self.replicas[slot as usize];
                self.queues.reads.push(&mut replica.reads, reading);
            }
        }
        self.close_reads(open);
    }

    /// Reads whose state is handed to the apply worker follow it there. Comes after that: only then is it known how far a replica
    /// went, which may have to stop at an entry.
    fn release_reads(&mut self, slot: u32) {
        let replica = &mut self.replicas[slot as usize];
        let handed_out = handed_out(replica);
        let worker = polyraft_raft::shard_of(replica.group.id(), self.reads.queries.len());
        let now = self.now;
        // One that is late must not stand before another whose state is there.
        while let Some(ready) = self.queues.ready.pop_if(&mut replica.ready, |ready| {
            ready.index <= handed_out || ready.gives_up_at <= now
        }) {
            self.reads.bytes -= ready.query.bytes();
            if ready.index > handed_out {
                let counters = self.shared.counters.shard(self.index);
                counters.unconfirmed_reads.add(1);
                ready.query.reply.answer(Err(Error::Unconfirmed));
                continue;
            }
            replica.fresh_at = replica.fresh_at.max(ready.fresh_at);
            let index = ready.index;
            let query = Query {
                index,
                ..ready.query
            };
            self.reads.queries[worker].push((slot, query));
        }
        let has_reads = !replica.reads.is_empty() || !replica.ready.is_empty();
        if has_reads && !replica.is_reading {
            replica.is_reading = true;
            self.reads.slots.push(slot);
            let look_at = self.now.after(LOOK_AGAIN);
            self.reads.look_at.get_or_insert(look_at);
        }
    }

    /// Hands the queries of this turn to the apply workers, behind everything that the turn committed.
    pub(super) fn dispatch_queries(&mut self) {
        let mut settled = std::mem::take(&mut self.reads.settled);
        for slot in settled.drain(..) {
            self.release_reads(slot);
        }
        self.reads.settled = settled;
        for (worker, queries) in self.reads.queries.iter_mut().enumerate() {
            if queries.is_empty() {
                continue;
            }
            let mut bytes = 0;
            let mut batch = Vec::with_capacity(queries.len());
            for (slot, query) in queries.drain(..) {
                // What it must see may not have reached the worker.
                if let Some(error) = self.replicas[slot as usize].refusal() {
                    query.reply.answer(Err(error));
                    continue;
                }
                bytes += query.bytes();
                batch.push(query);
            }
            self.shared.backlog.add(bytes);
            self.shared.workers[worker].send(Task::Queries(batch));
        }
    }

    /// Has the home shard ask the peers to stand by the leaders here, if reads wait for that.
    pub(super) fn want_standing(&mut self) {
        if let Some(at) = self.reads.wanted.take() {
            let shard = self.index;
            if self.home.is_some() {
                self.standing_wanted(shard, at);
            } else {
                self.shared
                    .tell(0, ShardEvent::StandingWanted { shard, at });
            }
        }
    }

    /// Looks at all replicas with reads: more may be known of them.
    pub(super) fn look_at_reads(&mut self) {
        self.reads.look_at = None;
        for slot in std::mem::take(&mut self.reads.slots) {
            self.replicas[slot as usize].is_reading = false;
            self.touch(slot);
        }
    }

    /// Looks at reads whose time may be over, and asks again where an answer seems to be lost.
    pub(super) fn expire_reads(&mut self) {
        while let Some((_, request)) = self.reads.again.pop_front_if(|(at, _)| *at <= self.now) {
            if let Some(ask) = self.reads.asks.remove(&request) {
                self.put_back(ask);
                self.reads.look_at = Some(self.now);
            }
        }
        if self.reads.look_at.is_some_and(|at| at <= self.now) {
            self.look_at_reads();
        }
    }
}

/// Through where the apply worker has been handed what is committed, once all of this turn is. While a state machine takes a
/// snapshot or gives a part away, what comes behind that is held back, and no read may be answered without it.
fn handed_out(replica: &Replica) -> Index {
    if replica.is_held {
        Index::ZERO
    } else {
        replica.group.handed_out()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use polyraft_storage::EntryKind;

    use super::*;
    use crate::shard::split::tests::Alone;
    use crate::shard::tests::GROUP;

    const STALE: Read = Read::Stale {
        max_lag: Duration::from_secs(3600),
    };

    fn read(alone: &mut Alone, how: Read, tag: u64) {
        let reply = alone.queue.reply_to(tag);
        alone.shard.read(GROUP, how, Bytes::new(), reply);
    }

    /// A read of which it is known that it must see an entry.
    fn read_through(alone: &mut Alone, index: Index, tag: u64) {
        let query = Query {
            group: GROUP,
            index: Index::ZERO,
            query: Bytes::new(),
            reply: alone.queue.reply_to(tag),
        };
        let (came, shard) = (alone.shard.now, &mut alone.shard);
        let reading = Reading {
            who: Who::Caller(query),
            how: How::Standing,
            came,
            gives_up_at: came.after(shard.limits.proposal_timeout),
        };
        shard.reads.bytes += reading.bytes();
        let slot = shard.slot(GROUP).unwrap();
        shard.read_confirmed(slot, reading, index, came);
        shard.touch(slot);
    }

    /// Which reads were answered, and whether with a state.
    fn answered(alone: &Alone) -> Vec<(u64, bool)> {
        let mut done = Vec::new();
        alone.queue.drain(&mut done, Duration::ZERO);
        let answers = done.iter().map(|done| (done.tag, done.result.is_ok()));
        answers.collect()
    }

    #[test]
    fn a_read_that_waits_for_an_entry_holds_up_none_whose_state_is_there() {
        let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
        alone.elect();
        alone.settle();
        read(&mut alone, Read::Linearizable, 1);
        alone.settle();
        assert_eq!(answered(&alone), [(1, true)]);

        // What is here is new enough for the second one, and is not for the first.
        read_through(&mut alone, Index(99), 2);
        read(&mut alone, STALE, 3);
        alone.settle();
        assert_eq!(answered(&alone), [(3, true)]);

        // The time of both is over when they are looked at again, and what the second one must see has been here for long.
        read_through(&mut alone, Index(1), 4);
        alone.settle();
        assert_eq!(answered(&alone), []);
        alone.pass(alone.shard.limits.proposal_timeout);
        alone.settle();
        assert_eq!(answered(&alone), [(2, false), (4, true)]);
        assert_eq!(alone.shard.reads.bytes, 0);
    }
}

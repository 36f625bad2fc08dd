//! The clients of a simulated world: they propose, retry what was surely not taken, and give up on the rest. Every
//! operation has a number of its own. A client must never take silence for failure.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use polyraft::{Committed, Completion, Error, GroupId, ProposalNumber, Read, SessionId};

use super::checks::broken;
use super::ends::{self, register};
use super::machine::{Command, Look, NOT_MINE, Request};
use super::pending::Done;
use super::plan::{MILLI, Plan};
use super::sessions::{Late, Sessions};
use super::world::{Event, Phase, World};
use crate::history::{Answer, Call, History, OperationId};

/// All clients, and what is known of their operations.
pub(super) struct Clients {
    pub(super) clients: Vec<Client>,
    /// By tag: who waits for the outcome.
    waiting: BTreeMap<u64, Waiting>,
    last_tag: u64,
    last_request: u64,
    /// The last operation that was begun before the world was healed.
    last_in_storm: u64,
    pub(super) history: History,
    /// The creations of groups that nobody has confirmed yet.
    pub(super) creations: Vec<Creation>,
    /// By group: whether it has acknowledged a proposal that somebody made since the world was healed.
    pub(super) has_served: Vec<bool>,
    /// By register: a value that was there a short while ago.
    seen: BTreeMap<u64, u64>,
    /// By operation: what was answered to a proposal of a session.
    pub(super) answered: BTreeMap<u64, Committed>,
    completions: Vec<Completion>,
    /// A key that many want now, and until when.
    wanted: Option<(GroupId, u8, u64)>,
    /// Requests that are still on their way when whoever sent them has gone on.
    pub(super) late: Vec<Late>,
}

#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) client: u32,
    node: u64,
    pub(super) group: GroupId,
    pub(super) request: Request,
    asked: Asked,
    /// Of the client, when it asked: an answer to an earlier step is nobody's.
    pub(super) step: u32,
}

/// What a client waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    /// A proposal.
    Proposal,
    /// A proposal of a session.
    Numbered,
    /// A read that does not go through the log.
    Query,
    /// The same of old state: when it was asked, and of which moment the state must be at least.
    OldState { asked_at: u64, since: u64 },
    /// A session.
    Session,
}

/// One client. Those behind the last ordinary one make sure that each group serves again.
#[derive(Debug)]
pub(super) struct Client {
    /// Grows with everything that it does, so that events for an earlier moment are known as such.
    step: u32,
    pub(super) operation: Option<Operation>,
    /// Serves one group only, after the healing.
    finisher_of: Option<GroupId>,
    /// Its favourite node.
    node: u64,
    /// Its sessions, if it proposes in some.
    pub(super) sessions: Option<Sessions>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) group: GroupId,
    pub(super) request: Request,
    /// Ask the state machine in this way; none: through the log.
    query: Option<Read>,
    padding: usize,
    /// In the history.
    pub(super) id: OperationId,
    gives_up_at: u64,
    /// Whether it is with a node now, which may have taken it.
    is_sent: bool,
    /// It is proposed in a session, again and again until the outcome is known.
    pub(super) is_numbered: bool,
    /// How often it was sent.
    attempts: u32,
    /// The number that it has there.
    pub(super) number: Option<ProposalNumber>,
}

impl Operation {
    /// What is proposed, the same each time.
    pub(super) fn payload(&self) -> Bytes {
        self.request.encode(self.padding)
    }
}

/// Groups with the same members, to be created.
pub(super) struct Creation {
    groups: Vec<u64>,
    members: Vec<u64>,
    /// Under way on this node.
    attempt: Option<(u64, Done)>,
    retry_at: u64,
    pub(super) is_done: bool,
}

impl Client {
    /// Grows with everything that it does.
    pub(super) fn step(&self) -> u32 {
        self.step
    }

    /// Whom it asks next.
    pub(super) fn prefer(&mut self, node: u64) {
        self.node = node;
    }
}

impl Clients {
    pub(super) fn new(plan: &Plan) -> Clients {
        let ordinary = (0..plan.clients).map(|at| (None, 1 + at % plan.nodes));
        let groups = plan.members.len() as u64;
        let finishers = (1..=groups).map(|group| (Some(GroupId(group)), 1 + group % plan.nodes));
        let clients = (0..).zip(ordinary.chain(finishers));
        let clients = clients.map(|(at, (finisher_of, node))| Client {
            step: 0,
            operation: None,
            finisher_of,
            node,
            sessions: (at < plan.session_clients).then(Sessions::default),
        });
        let mut kinds: BTreeMap<Vec<u64>, Vec<u64>> = BTreeMap::new();
        for (at, members) in plan.members.iter().take(plan.roots as usize).enumerate() {
            kinds
                .entry(members.clone())
                .or_default()
                .push(at as u64 + 1);
        }
        let creations = kinds.into_iter().map(|(members, groups)| Creation {
            groups,
            members,
            attempt: None,
            retry_at: 0,
            is_done: false,
        });
        Clients {
            clients: clients.collect(),
            waiting: BTreeMap::new(),
            last_tag: 0,
            last_request: 0,
            last_in_storm: 0,
            history: History::new(),
            creations: creations.collect(),
            // Nobody waits for what has not begun.
            has_served: (0..groups).map(|group| group >= plan.roots).collect(),
            seen: BTreeMap::new(),
            answered: BTreeMap::new(),
            completions: Vec::new(),
            wanted: None,
            late: Vec::new(),
        }
    }

    /// Whether nobody waits for anything or is going to ask again.
    pub(super) fn are_idle(&self) -> bool {
        self.clients.iter().all(|client| client.operation.is_none())
    }

    /// Whether somebody was told that a group was created.
    pub(super) fn is_created(&self, group: GroupId) -> bool {
        let mut creations = self.creations.iter();
        creations.any(|creation| creation.is_done && creation.groups.contains(&group.0))
    }

    /// The client that makes sure of a group, and its step.
    pub(super) fn finisher(&self, group: GroupId) -> (u32, u32) {
        let mut clients = self.clients.iter();
        let at = clients.position(|client| client.finisher_of == Some(group));
        let at = at.expect("every group has one");
        (at as u32, self.clients[at].step)
    }

    pub(super) fn next_tag(&mut self) -> u64 {
        self.last_tag += 1;
        self.last_tag
    }

    fn next_request(&mut self) -> u64 {
        self.last_request += 1;
        self.last_request
    }
}

impl World {
    pub(super) fn start_clients(&mut self) {
        for client in 0..self.plan.clients as u32 {
            let at = self.rng.within(1, 300 * MILLI);
            self.push(at, Event::Client { client, step: 0 });
        }
    }

    /// Clients that do nothing come for a key of which something might go wrong now.
    pub(super) fn clients_want(&mut self, root: GroupId, key: u8) {
        self.clients.wanted = Some((root, key, self.now + 300 * MILLI));
        for client in 0..self.plan.clients as u32 {
            let state = &self.clients.clients[client as usize];
            if state.operation.is_none() {
                let step = state.step;
                let at = self.now + self.rng.within(1, 30 * MILLI);
                self.push(at, Event::Client { client, step });
            }
        }
    }

    /// The clients that make sure of every group begin.
    pub(super) fn start_finishers(&mut self) {
        self.clients.last_in_storm = self.clients.last_request;
        for client in self.plan.clients as u32..self.clients.clients.len() as u32 {
            let step = self.clients.clients[client as usize].step;
            let at = self.now + self.rng.within(1, 5 * MILLI);
            self.push(at, Event::Client { client, step });
        }
    }

    /// A client goes on: with its operation, or with the next one.
    pub(super) fn client_acts(&mut self, client: u32, step: u32) {
        let at = client as usize;
        if self.clients.clients[at].step != step {
            return;
        }
        self.count(Event::Client { client, step });
        match self.clients.clients[at].operation {
            None if self.clients.clients[at].finisher_of.is_some_and(|group| {
                !self.splits.has_begun(group) || self.merges.target_of(group).is_some()
            }) =>
            {
                return;
            }
            None if self.phase == Phase::Storm
                || self.clients.clients[at].finisher_of.is_some() =>
            {
                self.begin_operation(client);
            }
            None => return,
            Some(operation) if self.now >= operation.gives_up_at && !operation.is_numbered => {
                // It was refused by everybody who was asked.
                return self.end_operation(client, |world, operation| {
                    world.clients.history.failed(operation.id, world.now);
                });
            }
            Some(_) => {}
        }
        self.send_operation(client);
    }

    fn begin_operation(&mut self, client: u32) {
        let at = client as usize;
        let (whose, groups) = (self.clients.clients[at].finisher_of, self.plan.roots);
        // Some groups are busier than others.
        let root = whose
            .map(|group| self.splits.root_of(group))
            .unwrap_or_else(|| GroupId(1 + self.rng.below(groups).min(self.rng.below(groups))));
        let wanted = self.clients.wanted.filter(|(.., until)| self.now < *until);
        let wanted = wanted.filter(|_| whose.is_none() && self.rng.chance(700_000));
        let id = self.clients.next_request();
        let (root, key) = match (wanted, whose.filter(|_| self.plan.splits(root))) {
            (Some((root, key, _)), _) => (root, key),
            (None, Some(group)) => (root, *self.rng.pick(&self.splits.keys_of(group))),
            (None, None) => (root, self.rng.below(u64::from(self.plan.keys)) as u8),
        };
        let group = self.splits.holder(root, key);
        let register = register(root, key, 0);
        // Plain reads and writes on most keys; one key takes everything.
        let command = match self.rng.below(if key == 0 { 6 } else { 4 }) {
            0 | 1 => Command::Write(id),
            2 | 3 => Command::Read,
            4 => Command::Swap(id),
            _ => Command::CompareAndSet {
                expect: self.clients.seen.get(&register).copied().unwrap_or(0),
                new: id,
            },
        };
        let query = match command {
            Command::Read => *self.rng.pick(&[
                None,
                Some(Read::Linearizable),
                Some(Read::Linearizable),
                Some(Read::Lease),
                Some(Read::Lease),
                Some(Read::Lease),
            ]),
            _ => None,
        };
        let query = match command {
            Command::Read if self.plan.reads_old_state && self.rng.chance(400_000) => {
                let max_lag = *self.rng.pick(&[
                    Duration::ZERO,
                    Duration::from_millis(1),
                    Duration::from_millis(20),
                    Duration::from_millis(200),
                    Duration::from_secs(2),
                    Duration::MAX,
                ]);
                Some(Read::Stale { max_lag })
            }
            _ => query,
        };
        let call = match command {
            Command::Read => Call::Read,
            Command::Write(value) => Call::Write(value),
            Command::Swap(value) => Call::Swap(value),
            Command::CompareAndSet { expect, new } => Call::CompareAndSet { expect, new },
        };
        let history = self
            .clients
            .history
            .invoke(self.now, u64::from(client), register, call);
        self.ends.asked.push(ends::Asked {
            id: history,
            group: root,
            key,
            request: id,
            command,
            is_query: query.is_some(),
        });
        // A read may also come to the group that was merged: it has to be sent on.
        let source = self.splits.came_from(root, key);
        let source = source.filter(|source| query.is_some() && !self.lives_again(*source));
        let group = match source {
            Some(source) if self.rng.chance(500_000) => source,
            _ => group,
        };
        let padding = self.rng.within(0, self.plan.padding) as usize;
        let gives_up_at = self.now + self.plan.client_timeout_us;
        let client_state = &mut self.clients.clients[at];
        let is_numbered = client_state.sessions.is_some() && query.is_none();
        client_state.operation = Some(Operation {
            group,
            request: Request { id, key, command },
            query,
            padding,
            id: history,
            gives_up_at,
            is_sent: false,
            is_numbered,
            attempts: 0,
            number: None,
        });
    }

    /// Brings an operation to a node that runs.
    fn send_operation(&mut self, client: u32) {
        let at = client as usize;
        self.follow_the_key(client);
        if self.clients.clients[at].operation.is_none() {
            return;
        }
        self.carry_session(client);
        self.clients.clients[at].number_operation();
        let operation = self.clients.clients[at].operation.expect("it has one");
        let node = self.choose_node(at, operation.group);
        let state = &mut self.clients.clients[at];
        state.step += 1;
        let step = state.step;
        let Some(sim) = node.and_then(|node| self.hosts[node as usize].node.as_ref()) else {
            return self.retry_later(client, 20 * MILLI);
        };
        let node = node.expect("a node was found");
        let tag = self.clients.next_tag();
        let handle = sim.node().group(operation.group.0);
        let queue = &self.hosts[node as usize].queue;
        let payload = operation.payload();
        let (what, asked) = match (operation.query, operation.number) {
            (Some(read @ Read::Stale { max_lag }), _) => {
                let max_lag = u64::try_from(max_lag.as_micros()).unwrap_or(u64::MAX);
                let old_state = Asked::OldState {
                    asked_at: self.now,
                    since: self.oldest_allowed(node, max_lag),
                };
                let query = vec![operation.request.key, 1];
                (old_state, handle.read_with(read, query, tag, queue))
            }
            (Some(read), _) => (
                Asked::Query,
                handle.read_with(read, vec![operation.request.key], tag, queue),
            ),
            (None, Some(number)) => (
                Asked::Numbered,
                handle.propose_numbered_with(number, payload, tag, queue),
            ),
            (None, None) if operation.is_numbered => {
                (Asked::Session, handle.open_session_with(tag, queue))
            }
            (None, None) => (Asked::Proposal, handle.propose_with(payload, tag, queue)),
        };
        match asked {
            Ok(()) => {
                let state = &mut self.clients.clients[at];
                let sent = state.operation.as_mut().expect("it has one");
                sent.is_sent = true;
                sent.attempts += 1;
                self.clients.waiting.insert(
                    tag,
                    Waiting {
                        client,
                        node,
                        group: operation.group,
                        request: operation.request,
                        asked: what,
                        step,
                    },
                );
                let gives_up_at = match operation.is_numbered {
                    // Whoever asks again without a pause adds to what it waits for.
                    true => self.now + (self.plan.client_timeout_us << operation.attempts.min(5)),
                    false => operation.gives_up_at.max(self.now + 1),
                };
                self.push(gives_up_at, Event::GiveUp { client, step });
                self.trace.group(self.now, node, operation.group, || {
                    let (request, query) = (operation.request, operation.query);
                    let number = operation.number;
                    format!("is asked by client {client}: {request:?} {query:?} {number:?}")
                });
                self.schedule(node);
            }
            Err(_) => self.retry_later(client, 10 * MILLI),
        }
    }

    fn choose_node(&mut self, client: usize, group: GroupId) -> Option<u64> {
        let sticks = self.rng.chance(800_000);
        let favourite = self.clients.clients[client].node;
        let all: Vec<u64> = (1..=self.plan.nodes).collect();
        let members = match self.plan.churns(group) {
            true => &all[..],
            false => self.plan.members_of(group),
        };
        let is_good = |node: u64| {
            let host = &self.hosts[node as usize];
            members.contains(&node) && host.node.is_some() && !(self.is_healed && host.is_outcast)
        };
        if sticks && is_good(favourite) {
            return Some(favourite);
        }
        let member = *self.rng.pick(members);
        self.clients.clients[client].node = member;
        let host = &self.hosts[member as usize];
        (host.node.is_some() && !(self.is_healed && host.is_outcast)).then_some(member)
    }

    pub(super) fn retry_later(&mut self, client: u32, wait: u64) {
        let state = &mut self.clients.clients[client as usize];
        if let Some(operation) = &mut state.operation {
            operation.is_sent = false;
        }
        let step = state.step;
        let wait = self.rng.within(1, wait);
        self.push(self.now + wait, Event::Client { client, step });
    }

    pub(super) fn end_operation(&mut self, client: u32, tell: impl FnOnce(&mut World, Operation)) {
        let state = &mut self.clients.clients[client as usize];
        state.step += 1;
        let (step, operation) = (state.step, state.operation.take());
        let finished = state.finisher_of;
        let is_over = finished.is_some_and(|group| self.clients.has_served[group.0 as usize - 1]);
        if let Some(operation) = operation {
            tell(self, operation);
        }
        if !is_over {
            let wait = self.rng.within(1, 2 * self.plan.think_us);
            self.push(self.now + wait, Event::Client { client, step });
        }
    }

    /// A client has waited long enough.
    pub(super) fn client_gives_up(&mut self, client: u32, step: u32) {
        let state = &self.clients.clients[client as usize];
        if state.step != step || state.operation.is_none() {
            return;
        }
        if state
            .operation
            .is_some_and(|operation| operation.is_numbered)
        {
            // Silence is no answer. It asks somebody else, or the same node again.
            return self.send_operation(client);
        }
        if self.is_healed {
            // Who does not answer when nothing goes wrong may have nothing to do with the group.
            let node = self.rng.within(1, self.plan.nodes);
            self.clients.clients[client as usize].node = node;
        }
        self.end_operation(client, |world, operation| {
            world.counts.unknown += 1;
            world.clients.history.unknown(operation.id, world.now);
        });
    }

    /// A client forgets what it was doing.
    pub(super) fn client_crashes(&mut self, client: u32) -> bool {
        let Some(operation) = self.clients.clients[client as usize].operation else {
            return false;
        };
        if operation.is_numbered && self.numbered_client_crashes(client) {
            return true;
        }
        // What was sent in a session may be on its way still.
        let may_be_taken = match operation.is_numbered {
            true => operation.number.is_some() || operation.attempts > 0,
            false => operation.is_sent,
        };
        self.end_operation(client, |world, operation| {
            if may_be_taken {
                world.counts.unknown += 1;
                world.clients.history.unknown(operation.id, world.now);
            } else {
                world.clients.history.failed(operation.id, world.now);
            }
        });
        true
    }

    /// A node has answered some proposals.
    pub(super) fn take_completions(&mut self, node: u64) {
        let mut completions = std::mem::take(&mut self.clients.completions);
        let queue = &self.hosts[node as usize].queue;
        queue.drain(&mut completions, Duration::ZERO);
        for Completion { tag, result } in completions.drain(..) {
            let Some(waiting) = self.clients.waiting.remove(&tag) else {
                continue;
            };
            self.trace.note(tag);
            match &result {
                Ok(committed) => {
                    self.trace.note(committed.index.0);
                    self.trace.note_bytes(&committed.reply);
                }
                Err(error) => self.trace.note_bytes(error.to_string().as_bytes()),
            }
            self.trace.group(self.now, node, waiting.group, || {
                format!("answers client {}: {result:?}", waiting.client)
            });
            let result = self.look_at_query(&waiting, result);
            let is_old = matches!(waiting.asked, Asked::OldState { .. });
            if (is_old || waiting.asked == Asked::Query) && result.is_ok() {
                self.counts.queries += u64::from(!is_old);
            } else if waiting.asked == Asked::Session {
                let opened = result.map(|answer| SessionId::opened(&answer));
                self.session_answered(&waiting, opened);
                continue;
            } else if let Ok(committed) = &result {
                self.counts.acknowledged += 1;
                let verdict =
                    self.check_acknowledged(waiting.group, committed.index, waiting.request.id);
                self.judge(verdict);
                // What was begun earlier may have been committed earlier.
                let is_new = self.is_healed && waiting.request.id > self.clients.last_in_storm;
                if is_new && !self.ends.is_changing(waiting.group) {
                    self.clients.has_served[waiting.group.0 as usize - 1] = true;
                }
                if waiting.asked == Asked::Numbered {
                    self.check_answer(&waiting, committed);
                }
            }
            if self.clients.clients[waiting.client as usize].step != waiting.step {
                continue; // It has given up on this one.
            }
            match result {
                Ok(committed) if committed.reply[..] == *NOT_MINE => {
                    self.key_has_moved(waiting.client);
                }
                // What it may have seen is judged apart.
                Ok(_) if is_old => {
                    self.end_operation(waiting.client, |world, operation| {
                        world.clients.history.failed(operation.id, world.now);
                    });
                }
                Ok(committed) => {
                    let answer = answer(waiting.request.command, &committed.reply);
                    let root = self.splits.root_of(waiting.group);
                    let register = register(root, waiting.request.key, 0);
                    self.clients
                        .seen
                        .insert(register, waiting.request.leaves(answer));
                    self.end_operation(waiting.client, |world, operation| {
                        world.clients.history.ok(operation.id, world.now, answer);
                    });
                }
                Err(error) if waiting.asked == Asked::Numbered => {
                    self.numbered_failed(&waiting, &error);
                }
                Err(error) if error.may_have_committed() => {
                    self.end_operation(waiting.client, |world, operation| {
                        world.counts.unknown += 1;
                        world.clients.history.unknown(operation.id, world.now);
                    });
                }
                Err(error) => {
                    match error {
                        Error::NotLeader { hint: Some(leader) } => {
                            self.clients.clients[waiting.client as usize].node = leader.0;
                        }
                        // Whoever was removed does not know where the group is.
                        _ if self.plan.churns(waiting.group) => {
                            let node = self.rng.within(1, self.plan.nodes);
                            self.clients.clients[waiting.client as usize].node = node;
                        }
                        _ => {}
                    }
                    self.retry_later(waiting.client, 20 * MILLI);
                }
            }
        }
        self.clients.completions = completions;
    }

    /// Looks at what a state machine was asked. Of a read of old state, what remains is the answer alone.
    fn look_at_query(
        &mut self,
        waiting: &Waiting,
        result: Result<Committed, Error>,
    ) -> Result<Committed, Error> {
        let (node, group) = (waiting.node, waiting.group);
        let is_query = matches!(waiting.asked, Asked::Query | Asked::OldState { .. });
        if is_query && result.is_ok() && self.is_out(node, group) {
            let what = format!("the state machine on node {node} failed, and answers: {result:?}");
            self.fail(broken("quarantine", group, what));
        }
        match (waiting.asked, result) {
            (Asked::OldState { asked_at, since }, Ok(committed)) => {
                let look = Look::decode(committed.reply);
                self.old_state_seen(node, group, (asked_at, since), &look);
                let (index, reply) = (committed.index, look.answer);
                Ok(Committed { index, reply })
            }
            (_, result) => {
                if let Err(Error::Query(why)) = &result {
                    self.query_failed(node, group, why);
                }
                result
            }
        }
    }

    /// Whatever was asked of a node that is gone stays without an answer.
    pub(super) fn clients_lost(&mut self, node: u64) {
        let lost: Vec<u64> = self
            .clients
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.node == node)
            .map(|(tag, _)| *tag)
            .collect();
        for tag in lost {
            let Some(waiting) = self.clients.waiting.remove(&tag) else {
                continue;
            };
            let state = &self.clients.clients[waiting.client as usize];
            if state.step != waiting.step {
                continue;
            }
            if state
                .operation
                .is_some_and(|operation| operation.is_numbered)
            {
                self.retry_later(waiting.client, 20 * MILLI);
            } else {
                self.end_operation(waiting.client, |world, operation| {
                    world.counts.unknown += 1;
                    world.clients.history.unknown(operation.id, world.now);
                });
            }
        }
        self.ends.lost(node);
        self.splits.lost(node);
        self.peers.lost(node);
        self.merges.lost(node);
        self.requests.lost(node);
        for creation in &mut self.clients.creations {
            if creation.attempt.as_ref().is_some_and(|(at, _)| *at == node) {
                creation.attempt = None;
            }
        }
    }

    // ---- creating the groups ----

    /// Asks somebody to create what does not exist yet.
    pub(super) fn create_groups(&mut self) {
        for at in 0..self.clients.creations.len() {
            let creation = &self.clients.creations[at];
            if creation.is_done || creation.attempt.is_some() || creation.retry_at > self.now {
                continue;
            }
            let node = self.rng.within(1, self.plan.nodes);
            let host = &self.hosts[node as usize];
            let may_ask = !host.is_outcast && self.peers.is_resident(node);
            let Some(sim) = host.node.as_ref().filter(|_| may_ask) else {
                continue;
            };
            let (handle, groups) = (sim.node().clone(), creation.groups.clone());
            let members = creation.members.clone();
            let attempt = Box::pin(async move { handle.create_groups(groups, &members).await });
            self.clients.creations[at].attempt = Some((node, attempt));
            self.poll_creations(node);
            self.schedule(node);
        }
    }

    /// Looks whether creations on a node are over.
    pub(super) fn poll_creations(&mut self, node: u64) {
        let now = self.now;
        for creation in &mut self.clients.creations {
            let Some((_, attempt)) = creation.attempt.as_mut().filter(|(at, _)| *at == node) else {
                continue;
            };
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(created) = attempt.as_mut().poll(&mut context) {
                creation.attempt = None;
                creation.is_done = created.is_ok();
                creation.retry_at = now + 50 * MILLI;
            }
        }
    }
}

fn answer(command: Command, reply: &[u8]) -> Answer {
    let before = u64::from_le_bytes(reply.try_into().expect("registers answer with eight bytes"));
    match command {
        Command::Read | Command::Swap(_) => Answer::Value(before),
        Command::Write(_) => Answer::Done,
        Command::CompareAndSet { expect, .. } => Answer::Matched(before == expect),
    }
}

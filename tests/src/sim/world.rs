//! The simulated world: nodes, time, and the queue of everything that is going to happen. One event at a time, in the
//! order of time; whatever an event leads to is put into the queue. It must never wait, start a thread, or draw chance
//! from anywhere but the seed.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use polyraft::sim::{SimNode, SimPlace, SimRecord, read_frame};
use polyraft::{CompletionQueue, GroupId, NodeId};
use polyraft_raft::LogPosition;
use polyraft_storage::sim::SimDisk;

use super::checks::{Failure, GroupChecks, Verdict};
use super::clients::Clients;
use super::machine::{self, Applied, Registers};
use super::network::{Link, Port, Sent, links};
use super::plan::{Fault, MILLI, Plan, SECOND};
use super::rng::Rng;
use super::trace::Trace;

/// Something that is going to happen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Event {
    /// A shard has a turn.
    Turn { host: u8, shard: u8, life: u32 },
    /// A lane of a log writes and syncs a batch.
    Pump { host: u8, lane: u8, life: u32 },
    /// A lane of a log does background work.
    Tend { host: u8, lane: u8, life: u32 },
    /// An apply worker does a task.
    Work { host: u8, worker: u8, life: u32 },
    /// A frame arrives.
    Arrive {
        link: u8,
        side: u8,
        lane: u8,
        session: u32,
    },
    /// A node learns that a connection stands.
    Up { link: u8, side: u8, session: u32 },
    /// A node learns that a connection is gone.
    Down { link: u8, side: u8, session: u32 },
    /// Two nodes try to connect.
    Dial { link: u8 },
    /// A connection has heard nothing for too long.
    Idle { link: u8, session: u32 },
    /// A node is started.
    Boot { host: u8, life: u32 },
    /// A client does what it wants to do next.
    Client { client: u32, step: u32 },
    /// A client waits no longer.
    GiveUp { client: u32, step: u32 },
    /// Something goes wrong.
    Fault,
    /// A disturbance ends.
    Calm { disturbance: u32 },
    /// The world looks whether it may go on to the next phase.
    Look,
}

/// One machine with its disk, and the node on it while it runs.
pub(super) struct Host {
    pub(super) node: Option<SimNode<Registers>>,
    pub(super) disk: SimDisk,
    pub(super) port: Arc<Port>,
    clock: Arc<AtomicU64>,
    ppm: i64,
    started_at: u64,
    /// Grows with each start and stop, so that events of an earlier life are known as such.
    pub(super) life: u32,
    pub(super) paused_until: u64,
    pub(super) stalled_until: u64,
    /// The power fails before this operation of the disk.
    pub(super) cut_at: Option<u64>,
    /// The power fails after the next promise.
    pub(super) cut_after_promise: bool,
    /// The disk was told to show an error, so that the node may have to stop.
    pub(super) has_bad_disk: bool,
    pub(super) is_disk_full: bool,
    /// Its data was wiped or rolled back: the others refuse it for ever.
    pub(super) is_outcast: bool,
    /// Parts of its log were damaged.
    pub(super) is_rotten: bool,
    /// It can't be started any more, because of that.
    pub(super) is_dead: bool,
    /// The nodes that have seen this opening of its data directory.
    pub(super) met: BTreeSet<u64>,
    /// The nodes that have refused it since it became an outcast.
    pub(super) refused_by: BTreeSet<u64>,
    /// Stopped states of the data directory to roll back to.
    pub(super) kept: Vec<super::faults::Kept>,
    pub(super) queue: CompletionQueue,
    /// When each part runs next; `u64::MAX` when nothing is planned.
    turns: Vec<u64>,
    pumps: Vec<u64>,
    tends: Vec<u64>,
    works: Vec<u64>,
}

/// What happened, in numbers.
#[derive(Clone, Default, Debug)]
pub struct Counts {
    /// Events of the queue that did something.
    pub events: u64,
    /// The same by kind: turns, writes, background work, applies, frames, ups, downs, dials, starts, clients, others.
    pub kinds: [u64; 12],
    /// Operations acknowledged to clients.
    pub acknowledged: u64,
    /// Operations whose outcome is unknown.
    pub unknown: u64,
    /// Frames lost by the weather, connections apart.
    pub lost: u64,
    /// Connections refused.
    pub refused: u64,
    /// Starts of nodes, the first ones apart.
    pub restarts: u64,
    /// Starts that failed because the power was cut again.
    pub failed_recoveries: u64,
    /// Faults that took effect, by [`Fault::ALL`].
    pub faults: [u32; Fault::ALL.len()],
}

/// In which phase the world is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Everything may go wrong.
    Storm,
    /// Nothing goes wrong any more; every group has to commit until the deadline.
    Healing { deadline: u64 },
    /// All groups have committed; the replicas have to become equal until the deadline.
    Settling { deadline: u64 },
    /// Nothing is to be done, so nothing may be said.
    Quiet { until: u64, said: u64 },
    /// Over.
    Done,
}

/// Everything.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    pub(super) now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    /// By id; number 0 is nobody.
    pub(super) hosts: Vec<Host>,
    pub(super) links: Vec<Link>,
    pub(super) checks: Vec<GroupChecks>,
    pub(super) clients: Clients,
    pub(super) disturbances: Vec<Option<super::faults::Disturbance>>,
    pub(super) trace: Trace,
    pub(super) counts: Counts,
    pub(super) phase: Phase,
    pub(super) is_healed: bool,
    pub(super) failure: Option<Failure>,
    sent: Vec<Sent>,
    applied: Vec<Applied>,
    stepped: Vec<GroupId>,
}

impl World {
    pub(super) fn new(plan: Plan, rng: Rng, trace: Trace) -> World {
        machine::begin(plan.saves_every);
        let transport = &plan.config.transport;
        let (frame, queue) = (
            transport.max_frame_bytes.as_u64() as usize,
            transport.queue_bytes.as_u64() as usize,
        );
        let host = |id: u64| Host {
            node: None,
            disk: SimDisk::new(super::rng::mix(plan.seed ^ super::rng::mix(id))),
            port: Arc::new(Port::new(plan.nodes, frame, queue)),
            clock: Arc::default(),
            ppm: *plan
                .clock_ppm
                .get(id.wrapping_sub(1) as usize)
                .unwrap_or(&0),
            started_at: 0,
            life: 0,
            paused_until: 0,
            stalled_until: 0,
            cut_at: None,
            cut_after_promise: false,
            has_bad_disk: false,
            is_disk_full: false,
            is_outcast: false,
            is_rotten: false,
            is_dead: false,
            met: BTreeSet::new(),
            refused_by: BTreeSet::new(),
            kept: Vec::new(),
            queue: CompletionQueue::new(),
            turns: Vec::new(),
            pumps: Vec::new(),
            tends: Vec::new(),
            works: Vec::new(),
        };
        let backoff = transport.backoff_min.as_micros() as u64;
        World {
            hosts: (0..=plan.nodes).map(host).collect(),
            links: links(plan.nodes, transport.append_lanes, backoff),
            checks: plan
                .members
                .iter()
                .map(|_| GroupChecks::new(plan.nodes))
                .collect(),
            clients: Clients::new(&plan),
            disturbances: Vec::new(),
            trace,
            counts: Counts::default(),
            phase: Phase::Storm,
            is_healed: false,
            failure: None,
            sent: Vec::new(),
            applied: Vec::new(),
            stepped: Vec::new(),
            queue: BinaryHeap::new(),
            sequence: 0,
            now: 0,
            rng,
            plan,
        }
    }

    /// Runs until the end or the first broken rule.
    pub(super) fn run(&mut self) {
        for host in 1..=self.plan.nodes {
            self.boot(host);
        }
        for link in 0..self.links.len() {
            self.dial_later(link);
        }
        self.start_clients();
        if self.plan.fault_us > 0 {
            let first = self.rng.within(200 * MILLI, SECOND);
            self.push(first, Event::Fault);
        }
        self.push(50 * MILLI, Event::Look);
        while self.failure.is_none() && self.phase != Phase::Done {
            let Some(Reverse((at, _, event))) = self.queue.pop() else {
                return self.fail(Failure {
                    checker: "simulator",
                    what: "nothing is left to happen".to_owned(),
                    group: None,
                });
            };
            self.now = at;
            self.happen(event);
        }
    }

    pub(super) fn push(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, event)));
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        self.trace
            .event(self.now, 0, || format!("BROKEN {failure:?}"));
        self.failure.get_or_insert(failure);
    }

    pub(super) fn judge(&mut self, verdict: Verdict) {
        if let Err(failure) = verdict {
            self.fail(failure);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn { host, shard, life } => self.turn(host.into(), shard.into(), life),
            Event::Pump { host, lane, life } => self.pump(host.into(), lane.into(), life),
            Event::Tend { host, lane, life } => self.tend(host.into(), lane.into(), life),
            Event::Work { host, worker, life } => self.work(host.into(), worker.into(), life),
            Event::Arrive {
                link,
                side,
                lane,
                session,
            } => {
                self.count(event);
                self.arrive(link.into(), side.into(), lane, session);
            }
            Event::Up {
                link,
                side,
                session,
            } => {
                self.count(event);
                self.link_up(link.into(), side.into(), session);
            }
            Event::Down {
                link,
                side,
                session,
            } => {
                self.count(event);
                self.link_down(link.into(), side.into(), session);
            }
            Event::Dial { link } => {
                self.count(event);
                self.dial(link.into());
            }
            Event::Idle { link, session } => self.idle_out(link.into(), session),
            Event::Boot { host, life } => {
                if self.hosts[host as usize].life == life {
                    self.count(event);
                    self.boot(host.into());
                }
            }
            Event::Client { client, step } => self.client_acts(client, step),
            Event::GiveUp { client, step } => self.client_gives_up(client, step),
            Event::Fault => {
                self.count(event);
                self.inject();
            }
            Event::Calm { disturbance } => self.calm(disturbance),
            Event::Look => self.look(),
        }
    }

    /// Counts an event that does something, and takes it into the trace.
    pub(super) fn count(&mut self, event: Event) {
        self.counts.events += 1;
        self.trace.note(self.now);
        let (kind, what) = match event {
            Event::Turn { host, shard, .. } => (1, u64::from(host) << 8 | u64::from(shard)),
            Event::Pump { host, lane, .. } => (2, u64::from(host) << 8 | u64::from(lane)),
            Event::Tend { host, lane, .. } => (3, u64::from(host) << 8 | u64::from(lane)),
            Event::Work { host, worker, .. } => (4, u64::from(host) << 8 | u64::from(worker)),
            Event::Arrive {
                link, side, lane, ..
            } => (
                5,
                u64::from(link) << 16 | u64::from(side) << 8 | u64::from(lane),
            ),
            Event::Up { link, side, .. } => (6, u64::from(link) << 8 | u64::from(side)),
            Event::Down { link, side, .. } => (7, u64::from(link) << 8 | u64::from(side)),
            Event::Dial { link } => (8, u64::from(link)),
            Event::Boot { host, .. } => (9, u64::from(host)),
            Event::Client { client, .. } => (10, u64::from(client)),
            _ => (11, 0),
        };
        self.counts.kinds[kind as usize] += 1;
        self.trace.note(kind << 32 | what);
    }

    // ---- the parts of a node ----

    /// Moves a node's clock to now, at its own rate.
    pub(super) fn set_clock(&mut self, host: u64) {
        let host = &self.hosts[host as usize];
        host.clock.store(host.local(self.now), Ordering::Relaxed);
    }

    fn turn(&mut self, host: u64, shard: usize, life: u32) {
        let Some(now) = self.is_due(host, life, |host| &mut host.turns[shard]) else {
            return;
        };
        self.set_clock(host);
        let event = Event::Turn {
            host: host as u8,
            shard: shard as u8,
            life,
        };
        if now < self.hosts[host as usize].paused_until {
            let at = self.hosts[host as usize].paused_until;
            self.hosts[host as usize].turns[shard] = at;
            return self.push(at, event);
        }
        self.count(event);
        if let Some(node) = &mut self.hosts[host as usize].node {
            node.turn(shard);
        }
        self.after_step(host);
    }

    fn pump(&mut self, host: u64, lane: usize, life: u32) {
        let Some(now) = self.is_due(host, life, |host| &mut host.pumps[lane]) else {
            return;
        };
        let event = Event::Pump {
            host: host as u8,
            lane: lane as u8,
            life,
        };
        let held = self.hosts[host as usize]
            .paused_until
            .max(self.hosts[host as usize].stalled_until);
        if now < held {
            self.hosts[host as usize].pumps[lane] = held;
            return self.push(held, event);
        }
        self.count(event);
        let Some(node) = &self.hosts[host as usize].node else {
            return;
        };
        let pumped = node.wal(lane).pump();
        if let Ok(false) = pumped
            && node.wal(lane).pending_bytes() > 0
        {
            // The disk is full; the flusher looks again after a while.
            let at = now + 50 * MILLI;
            self.hosts[host as usize].pumps[lane] = at;
            self.push(at, event);
        }
        self.after_step(host);
    }

    fn tend(&mut self, host: u64, lane: usize, life: u32) {
        let Some(now) = self.is_due(host, life, |host| &mut host.tends[lane]) else {
            return;
        };
        let event = Event::Tend {
            host: host as u8,
            lane: lane as u8,
            life,
        };
        let held = self.hosts[host as usize]
            .paused_until
            .max(self.hosts[host as usize].stalled_until);
        if now < held {
            self.hosts[host as usize].tends[lane] = held;
            return self.push(held, event);
        }
        self.count(event);
        let Some(node) = &self.hosts[host as usize].node else {
            return;
        };
        let again = match node.wal(lane).tend() {
            Ok(true) => Some(now + self.rng.within(self.plan.sync_us.0, self.plan.sync_us.1)),
            Ok(false) => node.wal(lane).must_tend_again().then_some(now + 50 * MILLI),
            Err(_) => None,
        };
        if let Some(at) = again {
            self.hosts[host as usize].tends[lane] = at;
            self.push(at, event);
        }
        self.after_step(host);
    }

    fn work(&mut self, host: u64, worker: usize, life: u32) {
        let Some(now) = self.is_due(host, life, |host| &mut host.works[worker]) else {
            return;
        };
        let event = Event::Work {
            host: host as u8,
            worker: worker as u8,
            life,
        };
        let held = self.hosts[host as usize].paused_until;
        if now < held {
            self.hosts[host as usize].works[worker] = held;
            return self.push(held, event);
        }
        self.count(event);
        if let Some(node) = &mut self.hosts[host as usize].node {
            node.work(worker);
        }
        self.after_step(host);
    }

    /// Whether a part's event is the one that is planned; takes it off the plan.
    fn is_due(
        &mut self,
        host: u64,
        life: u32,
        planned: impl Fn(&mut Host) -> &mut u64,
    ) -> Option<u64> {
        let now = self.now;
        let host = &mut self.hosts[host as usize];
        if host.life != life || host.node.is_none() {
            return None;
        }
        let planned = planned(host);
        (*planned == now).then(|| {
            *planned = u64::MAX;
            now
        })
    }

    /// Puts the parts of a node that have something to do into the queue.
    pub(super) fn schedule(&mut self, id: u64) {
        let host = &mut self.hosts[id as usize];
        let Some(node) = &host.node else { return };
        let (now, life, id) = (self.now, host.life, id as u8);
        let rng = &mut self.rng;
        let mut planned: [Option<(u64, Event)>; 12] = [None; 12];
        let mut count = 0;
        let mut plan = |at: u64, event: Event| {
            planned[count] = Some((at, event));
            count += 1;
        };
        for shard in 0..node.shards() {
            let at = match node.inbox_len(shard) {
                0 => node
                    .next_deadline(shard)
                    .map(|deadline| host.started_at + unlocal(deadline.0, host.ppm)),
                _ if host.turns[shard] <= now + self.plan.turn_us => None,
                _ => Some(now + rng.within(1, self.plan.turn_us)),
            };
            let at = at.map(|at| at.max(now + 1));
            if let Some(at) = at.filter(|at| *at < host.turns[shard]) {
                host.turns[shard] = at;
                let shard = shard as u8;
                plan(
                    at,
                    Event::Turn {
                        host: id,
                        shard,
                        life,
                    },
                );
            }
        }
        for lane in 0..node.lanes() {
            let wal = node.wal(lane);
            if host.pumps[lane] == u64::MAX && wal.pending_bytes() > 0 {
                let at = now + rng.within(self.plan.sync_us.0, self.plan.sync_us.1);
                host.pumps[lane] = at;
                let lane = lane as u8;
                plan(
                    at,
                    Event::Pump {
                        host: id,
                        lane,
                        life,
                    },
                );
            }
            if wal.take_tending_wish() && host.tends[lane] == u64::MAX {
                let at = now + rng.within(self.plan.sync_us.0, self.plan.sync_us.1);
                host.tends[lane] = at;
                let lane = lane as u8;
                plan(
                    at,
                    Event::Tend {
                        host: id,
                        lane,
                        life,
                    },
                );
            }
        }
        for worker in 0..node.workers() {
            if host.works[worker] == u64::MAX && node.tasks_len(worker) > 0 {
                let at = now + rng.within(1, self.plan.apply_us);
                host.works[worker] = at;
                let worker = worker as u8;
                plan(
                    at,
                    Event::Work {
                        host: id,
                        worker,
                        life,
                    },
                );
            }
        }
        for (at, event) in planned.into_iter().flatten() {
            self.push(at, event);
        }
    }

    // ---- what follows from a step ----

    /// A part of a node has run: what it did is checked and carried on.
    pub(super) fn after_step(&mut self, id: u64) {
        let host = &self.hosts[id as usize];
        if host.node.is_none() {
            return;
        }
        if host.cut_at.is_some_and(|cut| host.disk.operations() >= cut) {
            return self.power_cut(id);
        }
        let promised = self.look_at_frames(id);
        self.look_at_machines();
        self.look_at_replicas(id);
        self.look_at_health(id);
        self.take_completions(id);
        self.poll_creations(id);
        if promised && self.hosts[id as usize].cut_after_promise {
            self.fired(Fault::PowerCutAfterPromise);
            return self.power_cut(id);
        }
        self.schedule(id);
    }

    /// Checks what a step sent and brings it on its way. Returns whether a promise was among it.
    fn look_at_frames(&mut self, id: u64) -> bool {
        let mut sent = std::mem::take(&mut self.sent);
        self.hosts[id as usize].port.take_sent(&mut sent);
        let mut promised = false;
        for sent in sent.drain(..) {
            let mut has_forward = false;
            let to = NodeId(sent.to);
            let mut verdict = Ok(());
            let node = self.hosts[id as usize].node.as_ref();
            let node = node.expect("it has just run");
            let checks = &mut self.checks;
            read_frame(&sent.frame, |record| match record {
                SimRecord::Group { group, message } => {
                    promised |= matches!(
                        message,
                        polyraft_raft::Message::Matched { .. }
                            | polyraft_raft::Message::VoteReply { granted: true, .. }
                    );
                    if let Some((core, _)) = node.replica(group)
                        && verdict.is_ok()
                    {
                        verdict = checks[group.0 as usize - 1].sent(core, to, &message);
                    }
                }
                SimRecord::Forward { .. } => has_forward = true,
                SimRecord::Other => {}
            });
            self.judge(verdict);
            self.trace.note_bytes(&sent.frame);
            if self.trace.is_on() {
                self.tell_frame("sends", id, sent.to, &sent.frame);
            }
            // A forward that came twice would be two proposals; nothing in the engine claims otherwise.
            self.route(id, sent, !has_forward);
        }
        self.sent = sent;
        promised
    }

    pub(super) fn look_at_machines(&mut self) {
        let mut applied = std::mem::take(&mut self.applied);
        machine::take_applied(&mut applied);
        for entry in applied.drain(..) {
            self.trace.note(entry.digest);
            let verdict = self.checks[entry.group.0 as usize - 1].applied(entry);
            self.judge(verdict);
            self.trace.group(self.now, entry.node, entry.group, || {
                format!("applies {entry:?}")
            });
        }
        self.applied = applied;
    }

    fn look_at_replicas(&mut self, id: u64) {
        let mut stepped = std::mem::take(&mut self.stepped);
        let node = self.hosts[id as usize].node.as_mut();
        let node = node.expect("it has just run");
        for shard in 0..node.shards() {
            node.take_stepped(shard, &mut stepped);
        }
        for group in stepped.drain(..) {
            let verdict = self.look_at_replica(id, group);
            self.judge(verdict);
        }
        self.stepped = stepped;
    }

    fn look_at_replica(&mut self, id: u64, group: GroupId) -> Verdict {
        let host = &self.hosts[id as usize];
        if host.is_outcast {
            // Nobody hears it, and what it promised was promised by the data that it lost.
            return Ok(());
        }
        let Some((core, fault)) = host.node.as_ref().and_then(|node| node.replica(group)) else {
            return Ok(());
        };
        if let Some(fault) = fault {
            if host.is_rotten
                || host
                    .node
                    .as_ref()
                    .is_some_and(|node| node.fault().is_some())
            {
                return Ok(());
            }
            return Err(super::checks::broken(
                "quarantine",
                group,
                format!("node {id} takes its replica out of service: {fault}"),
            ));
        }
        let hosts = &self.hosts;
        let holds = |member: u64, position: LogPosition| -> Option<bool> {
            let host = &hosts[member as usize];
            // What was destroyed was there when it was promised.
            let node = host.node.as_ref().filter(|_| !host.is_outcast)?;
            let (core, _) = node.replica(group)?;
            let has = core.term_at(position.index) == Some(position.term);
            Some(has && core.durable() >= position.index)
        };
        let members = self.plan.members_of(group);
        let checks = &mut self.checks[group.0 as usize - 1];
        checks.observe(core, members, &holds)?;
        if self.trace.wants(group) {
            let told = format!(
                "is {:?} of term {} vote {:?} leader {:?} last {} durable {} committed {} applied {}",
                core.role(),
                core.term(),
                core.vote().map(|node| node.0),
                core.leader().map(|node| node.0),
                core.last(),
                core.durable(),
                core.committed(),
                core.applied()
            );
            self.trace.group(self.now, id, group, || told);
        }
        Ok(())
    }

    /// A node that has stopped serving needs a reason; somebody starts it again.
    fn look_at_health(&mut self, id: u64) {
        let host = &self.hosts[id as usize];
        let Some(reason) = host.node.as_ref().and_then(SimNode::fault) else {
            return;
        };
        if !host.has_bad_disk && !host.is_rotten {
            return self.fail(Failure {
                checker: "node health",
                what: format!("node {id} stopped serving: {reason}"),
                group: None,
            });
        }
        self.trace
            .event(self.now, id, || format!("stopped serving: {reason}"));
        self.kill(id);
    }

    pub(super) fn tell_frame(&mut self, verb: &str, node: u64, peer: u64, frame: &bytes::Bytes) {
        let mut told = Vec::new();
        read_frame(frame, |record| {
            if let SimRecord::Group { group, message } = record {
                told.push((group, message));
            }
        });
        for (group, message) in told {
            self.trace.group(self.now, node, group, || {
                let word = if verb == "sends" { "to" } else { "from" };
                format!("{verb} {word} node {peer}: {message:?}")
            });
        }
    }

    // ---- lives ----

    /// Starts a node on what its disk holds.
    pub(super) fn boot(&mut self, id: u64) {
        let peers: Vec<u64> = (1..=self.plan.nodes).filter(|peer| *peer != id).collect();
        let cuts_again = !self.is_healed
            && self.hosts[id as usize].life > 0
            && !self.hosts[id as usize].is_unnoticed(self.plan.nodes)
            && self.plan.fault_us > 0
            && self.rng.chance(80_000);
        if cuts_again {
            let operations = self.hosts[id as usize].disk.operations() + self.rng.below(8);
            self.cut_power_at(id, operations);
        }
        let now = self.now;
        let host = &mut self.hosts[id as usize];
        let is_first = host.life == 0;
        host.life += 1;
        host.started_at = now;
        host.met.clear();
        host.clock = Arc::default();
        host.port = Arc::new(Port::new(
            self.plan.nodes,
            self.plan.config.transport.max_frame_bytes.as_u64() as usize,
            self.plan.config.transport.queue_bytes.as_u64() as usize,
        ));
        host.queue = CompletionQueue::new();
        let path = machine::data_dir(id);
        let place = SimPlace {
            disk: Arc::new(host.disk.clone()),
            path: &path,
            cluster: "sim",
            id,
            peers: &peers,
            config: &self.plan.config,
            clock: Arc::clone(&host.clock),
        };
        let port = Arc::clone(&host.port);
        let opened = SimNode::open(&place, |_, _| port as _);
        let is_cut = host.cut_at.is_some_and(|cut| host.disk.operations() >= cut);
        match opened {
            Ok(node) => {
                host.turns = vec![u64::MAX; node.shards()];
                host.pumps = vec![u64::MAX; node.lanes()];
                host.tends = vec![u64::MAX; node.lanes()];
                host.works = vec![u64::MAX; node.workers()];
                host.node = Some(node);
            }
            Err(_) if is_cut => {
                self.counts.failed_recoveries += 1;
                return self.power_cut(id);
            }
            Err(error) => return self.could_not_boot(id, &error.to_string()),
        }
        self.counts.restarts += u64::from(!is_first);
        self.trace.event(now, id, || "starts".to_owned());
        self.check_recovered(id);
        for checks in &mut self.checks {
            checks.reborn(id);
        }
        for lane in 0..self.hosts[id as usize].tends.len() {
            // The background thread looks once when it starts.
            let at = now + self.rng.within(1, 10 * MILLI);
            let host = &mut self.hosts[id as usize];
            host.tends[lane] = at;
            let event = Event::Tend {
                host: id as u8,
                lane: lane as u8,
                life: host.life,
            };
            self.push(at, event);
        }
        self.after_step(id);
    }

    fn could_not_boot(&mut self, id: u64, error: &str) {
        let host = &mut self.hosts[id as usize];
        self.trace
            .event(self.now, id, || format!("can't be started: {error}"));
        if host.is_disk_full || host.has_bad_disk {
            let at = self.now + 100 * MILLI;
            host.disk.heal();
            return self.boot_at(id, at);
        }
        if host.is_rotten {
            host.is_dead = true;
            return;
        }
        self.fail(Failure {
            checker: "recovery",
            what: format!("node {id} can't be started: {error}"),
            group: None,
        });
    }

    /// Everything that a node promised has to be on its disk.
    fn check_recovered(&mut self, id: u64) {
        let host = &self.hosts[id as usize];
        let node = host.node.as_ref().expect("it was just started");
        if host.is_outcast || host.is_rotten {
            return;
        }
        let all = node.recovered();
        let mut verdict = Ok(());
        for (at, checks) in self.checks.iter().enumerate() {
            let group = GroupId(at as u64 + 1);
            let found = all.binary_search_by_key(&group, |found| found.group);
            let found = found.ok().map(|at| all[at]);
            verdict = verdict.and_then(|()| checks.recovered(group, id, found));
        }
        self.judge(verdict);
    }

    pub(super) fn boot_at(&mut self, id: u64, at: u64) {
        let host = &mut self.hosts[id as usize];
        host.life += 1;
        let life = host.life;
        self.push(
            at,
            Event::Boot {
                host: id as u8,
                life,
            },
        );
    }

    /// The node is gone, and with it everything that was in its memory.
    pub(super) fn drop_node(&mut self, id: u64) {
        let host = &mut self.hosts[id as usize];
        host.node = None;
        host.life += 1;
        host.paused_until = 0;
        host.cut_after_promise = false;
        self.clients_lost(id);
        self.forget_links_of(id);
    }
}

impl Host {
    /// Whether it came back with less than it had, and not everybody has seen that. Each start counts; a node that was
    /// rolled back and then started often enough out of sight could not be told from an honest one.
    pub(super) fn is_unnoticed(&self, nodes: u64) -> bool {
        self.is_outcast && (self.refused_by.len() as u64) < nodes - 1
    }

    fn local(&self, now: u64) -> u64 {
        let since = now - self.started_at;
        let skew = i128::from(since) * i128::from(self.ppm) / 1_000_000;
        (i128::from(since) + skew) as u64
    }
}

/// The first microsecond of the world at which a clock of that rate shows `local`.
fn unlocal(local: u64, ppm: i64) -> u64 {
    let rate = 1_000_000 + i128::from(ppm);
    ((i128::from(local) * 1_000_000 + rate - 1) / rate) as u64
}

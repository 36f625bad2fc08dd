//! The simulated world: nodes, time, and the queue of everything that is going to happen. One event at a time, in the
//! order of time; whatever an event leads to is put into the queue. It must never wait, start a thread, or draw chance
//! from anywhere but the seed.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use polyraft::sim::SimNode;
use polyraft::{CompletionQueue, GroupId};
use polyraft_storage::Lsn;
use polyraft_storage::sim::SimDisk;

use super::checks::{Failure, LifeChecks, Verdict};
use super::clients::Clients;
use super::damage::Damage;
use super::ends::Ends;
use super::failing::Failing;
use super::machine::{self, Applied, Registers};
use super::merges::Merges;
use super::network::{Link, Port, Sent, links};
use super::peers::Peers;
use super::plan::{ByFault, MILLI, Plan, SECOND};
use super::requests::Requests;
use super::rng::Rng;
use super::splits::Splits;
use super::stale::Stale;
use super::trace::Trace;

/// A world that lasts longer has no end.
const LONGEST: u64 = 3_600 * SECOND;
/// Nor has one in which more happens.
const MOST_EVENTS: u64 = 20_000_000;

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
    /// A request arrives that was sent long ago.
    Late { request: u32 },
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
    pub(super) clock: Arc<AtomicU64>,
    pub(super) ppm: i64,
    pub(super) started_at: u64,
    /// Grows with each start and stop, so that events of an earlier life are known as such.
    pub(super) life: u32,
    pub(super) paused_until: u64,
    pub(super) stalled_until: u64,
    /// Syncs of its disk take much longer.
    pub(super) drags_until: u64,
    /// What its last start asked of the disk.
    pub(super) recovery_operations: u64,
    /// The power fails before this operation of the disk.
    pub(super) cut_at: Option<u64>,
    /// The power fails after the next promise.
    pub(super) cut_after_promise: bool,
    /// The disk was told to show an error, so that the node may have to stop.
    pub(super) has_bad_disk: bool,
    /// Whatever the process does, the disk is bad until then.
    pub(super) bad_until: u64,
    /// Writes and syncs that are known to have failed.
    pub(super) failed: (u64, u64),
    pub(super) is_disk_full: bool,
    /// Its data was wiped or rolled back: the others refuse it for ever.
    pub(super) is_outcast: bool,
    /// What was hit of its log.
    pub(super) damage: Damage,
    /// A write of its log that goes elsewhere, until what it may have hit is proved by later log.
    pub(super) unproven: Option<Unproven>,
    /// It can't be started any more, because of that.
    pub(super) is_dead: bool,
    /// The nodes that have seen this opening of its data directory.
    pub(super) met: BTreeSet<u64>,
    /// Stopped states of the data directory to roll back to.
    pub(super) kept: Vec<super::faults::Kept>,
    pub(super) queue: CompletionQueue,
    /// When each part runs next; `u64::MAX` when nothing is planned.
    pub(super) turns: Vec<u64>,
    pub(super) pumps: Vec<u64>,
    pub(super) tends: Vec<u64>,
    pub(super) works: Vec<u64>,
}

/// A write that goes astray in a lane of a log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unproven {
    pub(super) lane: usize,
    /// What was durable when it came; none before.
    pub(super) since: Option<Lsn>,
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
    /// Reads answered that did not go through the log.
    pub queries: u64,
    /// Operations whose outcome is unknown.
    pub unknown: u64,
    /// Attempts at proposals of sessions after which the outcome was unknown, so that they were made again.
    pub tried_again: u64,
    /// Proposals of sessions that were applied, and whose reply was not kept.
    pub forgotten: u64,
    /// Proposals of sessions that the group did not know any more.
    pub expired: u64,
    /// Registers that were compared and set, whose history is searched for an order.
    pub searched: u64,
    /// Those whose history was too tangled for that.
    pub undecided: u64,
    /// Connections that broke because an end was paused for longer than the idle timeout.
    pub outlasted: u64,
    /// Frames lost by the weather, connections apart.
    pub lost: u64,
    /// Frames that came twice.
    pub duplicated: u64,
    /// Frames that came before others that had been sent before.
    pub overtaken: u64,
    /// Connections refused.
    pub refused: u64,
    /// Starts of nodes, the first ones apart.
    pub restarts: u64,
    /// State machines rebuilt from a snapshot.
    pub restored: u64,
    /// Snapshots that came from another node.
    pub transferred: u64,
    /// Transfers of snapshots that went on behind what had come.
    pub resumed: u64,
    /// Replicas that dropped a damaged log and got it from their peers.
    pub repaired: u64,
    /// Parts of snapshots sent.
    pub chunks: u64,
    /// Parts of snapshots that the network changed.
    pub corrupted: u64,
    /// Groups that were destroyed and created again.
    pub lives: u64,
    /// Groups that were split off.
    pub splits: u64,
    /// Groups that were merged into others, as somebody was told.
    pub merges: u64,
    /// Merges that came to nothing.
    pub unmerged: u64,
    /// Operations that came to a group which did not have their key any more.
    pub moved: u64,
    /// Groups that are led by the node that they prefer, at the end.
    pub preferred: u64,
    /// Times that a node became a peer of all others, and that it was taken out by all.
    pub joined: u64,
    /// See `joined`.
    pub parted: u64,
    /// Changes of peers that nodes have taken, new addresses among them.
    pub told_peers: u64,
    /// Peers that were not taken out because a group has them as members.
    pub needed_peers: u64,
    /// Quiet groups whose leader lost a peer at the end.
    pub bereft: u64,
    /// Reads of old state that were answered.
    pub old_states: u64,
    /// Those of them that lacked something which was committed when they were asked.
    pub outdated_states: u64,
    /// Nodes that were asked to hand over what they led before they were stopped, and did.
    pub drained: u64,
    /// Snapshots that were asked for, and taken.
    pub asked_snapshots: u64,
    /// State machines that failed at a change of their state.
    pub failed_changes: u64,
    /// At a query.
    pub failed_queries: u64,
    /// At a snapshot.
    pub failed_snapshots: u64,
    /// State machines that were opened again after they had failed.
    pub returned: u64,
    /// Starts that failed because the power was cut again.
    pub failed_recoveries: u64,
    /// Faults that took effect, by kind.
    pub faults: ByFault<u32>,
}

/// In which phase the world is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Everything may go wrong.
    Storm,
    /// Nothing goes wrong any more; every group has to commit until the deadline.
    Healing { deadline: u64 },
    /// All groups have committed; the replicas have to become equal until the deadline.
    Settling {
        deadline: u64,
        /// It is put off while replicas catch up, but never beyond that.
        at_last: u64,
        /// Entries that all replicas held when it was put off the last time.
        held: u64,
    },
    /// Nothing is to be done, so nothing may be said.
    Quiet { until: u64, at_last: u64, said: u64 },
    /// A node is gone for good; what that does not concern goes on saying nothing.
    Bereft {
        until: u64,
        deadline: u64,
        lost: u64,
    },
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
    pub(super) checks: Vec<LifeChecks>,
    pub(super) ends: Ends,
    pub(super) splits: Splits,
    pub(super) peers: Peers,
    pub(super) merges: Merges,
    pub(super) stale: Stale,
    pub(super) requests: Requests,
    pub(super) failing: Failing,
    pub(super) clients: Clients,
    pub(super) disturbances: Vec<Option<super::faults::Disturbance>>,
    pub(super) trace: Trace,
    pub(super) counts: Counts,
    /// As of the end of the storm.
    pub(super) stormed: Counts,
    pub(super) phase: Phase,
    pub(super) is_healed: bool,
    pub(super) failure: Option<Failure>,
    pub(super) sent: Vec<Sent>,
    pub(super) applied: Vec<Applied>,
    pub(super) stepped: Vec<GroupId>,
    /// Groups that have no reason to say anything.
    pub(super) quiet: BTreeSet<GroupId>,
}

impl World {
    pub(super) fn new(plan: Plan, rng: Rng, trace: Trace) -> World {
        machine::begin(plan.saves_every, plan.roots);
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
            drags_until: 0,
            recovery_operations: 0,
            cut_at: None,
            cut_after_promise: false,
            has_bad_disk: false,
            bad_until: 0,
            failed: (0, 0),
            is_disk_full: false,
            is_outcast: false,
            damage: Damage::new(&plan.config),
            unproven: None,
            is_dead: false,
            met: BTreeSet::new(),
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
                .map(|_| LifeChecks::new(plan.nodes))
                .collect(),
            ends: Ends::new(plan.members.len()),
            splits: Splits::new(&plan),
            peers: Peers::new(&plan),
            merges: Merges::default(),
            stale: Stale::default(),
            requests: Requests::default(),
            failing: Failing::default(),
            clients: Clients::new(&plan),
            disturbances: Vec::new(),
            trace,
            counts: Counts::default(),
            stormed: Counts::default(),
            phase: Phase::Storm,
            is_healed: false,
            failure: None,
            sent: Vec::new(),
            applied: Vec::new(),
            stepped: Vec::new(),
            quiet: BTreeSet::new(),
            queue: BinaryHeap::new(),
            sequence: 0,
            now: 0,
            rng,
            plan,
        }
    }

    /// Runs until the end or the first broken rule.
    pub(super) fn run(&mut self) {
        self.begin();
        self.start_clients();
        if self.plan.fault_us > 0 {
            let first = self.rng.within(200 * MILLI, SECOND);
            self.push(first, Event::Fault);
        }
        self.push(50 * MILLI, Event::Look);
        while self.failure.is_none() && self.phase != Phase::Done {
            self.step();
        }
    }

    /// Starts all nodes, which then connect.
    pub(super) fn begin(&mut self) {
        for host in 1..=self.plan.nodes {
            self.boot(host);
        }
        for link in 0..self.links.len() {
            self.dial_later(link);
        }
    }

    /// When the next thing happens.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next thing happens.
    pub(super) fn step(&mut self) {
        let Some(Reverse((at, _, event))) = self.queue.pop() else {
            return self.fail(Failure {
                checker: "simulator",
                what: "nothing is left to happen".to_owned(),
                group: None,
            });
        };
        self.now = at;
        self.happen(event);
        if self.now > LONGEST || self.counts.events > MOST_EVENTS {
            let what = format!("it has no end: {:?}", self.phase);
            self.fail(Failure {
                checker: "liveness",
                what,
                group: None,
            });
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

    /// The group of the rule that was broken, with the one that it was split off, and those that it was merged with.
    pub(super) fn concerned(&self) -> Vec<GroupId> {
        let group = self.failure.as_ref().and_then(|failure| failure.group);
        let around = |group| {
            let of = self.splits.parent_of(group);
            let into = self.merges.target_of(group);
            let sources = self.merges.sources_of(group);
            [group].into_iter().chain(of).chain(into).chain(sources)
        };
        group.into_iter().flat_map(around).collect()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn { host, life, .. }
            | Event::Pump { host, life, .. }
            | Event::Tend { host, life, .. }
            | Event::Work { host, life, .. } => self.run_part(host, life, event),
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
            Event::Late { request } => self.late_request(request),
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

    /// Moves a node's clock to now, at its own rate.
    pub(super) fn set_clock(&mut self, host: u64) {
        let host = &self.hosts[host as usize];
        host.clock.store(host.local(self.now), Ordering::Relaxed);
    }

    /// The members of a group, as the newest leader that runs sees them, or else whoever has the newest log.
    pub(super) fn members_of(&self, group: GroupId) -> Vec<u64> {
        if !self.plan.churns(group) {
            return self.plan.members_of(group).to_vec();
        }
        let hosts = self.hosts.iter().filter(|host| !host.is_outcast);
        let cores = hosts.filter_map(|host| Some(host.node.as_ref()?.replica(group)?.0));
        let newest = cores.max_by_key(|core| {
            let leads = core.role() == polyraft::Role::Leader;
            (leads.then(|| core.term()), core.last())
        });
        match newest {
            Some(core) => core.configuration().nodes().map(|node| node.0).collect(),
            None => self.plan.members_of(group).to_vec(),
        }
    }

    /// The node of a machine on which one runs.
    pub(super) fn node_of(&mut self, id: u64) -> &mut SimNode<Registers> {
        let node = self.hosts[id as usize].node.as_mut();
        node.expect("a node runs there")
    }
}

impl Host {
    /// Whether the replica of a group here was taken out of service because of its log, as a fault has hit it.
    pub(super) fn has_damaged(&self, group: GroupId) -> bool {
        let replica = self.node.as_ref().and_then(|node| node.replica(group));
        let is_out = replica.is_some_and(|(_, fault)| fault.is_some());
        is_out && self.damage.may_hit(group)
    }

    fn local(&self, now: u64) -> u64 {
        let since = now - self.started_at;
        let skew = i128::from(since) * i128::from(self.ppm) / 1_000_000;
        (i128::from(since) + skew) as u64
    }
}

/// The first microsecond of the world at which a clock of that rate shows `local`.
pub(super) fn unlocal(local: u64, ppm: i64) -> u64 {
    let rate = 1_000_000 + i128::from(ppm);
    ((i128::from(local) * 1_000_000 + rate - 1) / rate) as u64
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::plan::roomy_config;
    use super::*;

    /// A world of three nodes, none of which was started. Nothing goes wrong in it by itself.
    pub(in crate::sim) fn calm() -> World {
        planned(|_| {})
    }

    /// The same with another plan.
    pub(in crate::sim) fn planned(change: impl FnOnce(&mut Plan)) -> World {
        let mut plan = Plan::calm(3, 9, 19, roomy_config());
        change(&mut plan);
        World::new(plan, Rng::new(0), Trace::default())
    }

    impl World {
        /// Which rule was broken first since the last question.
        pub(in crate::sim) fn broken_rule(&mut self) -> Option<&'static str> {
            self.failure.take().map(|failure| failure.checker)
        }
    }
}

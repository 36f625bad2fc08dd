//! What a seed decides before anything happens: the size of the world, the configuration of its nodes, its weather.
//! It must hold every parameter of a run, so that printing it says what the run was.

use std::fmt;
use std::time::Duration;

use polyraft::Config;
use polyraft::config::{ByteSize, WalMode};

use super::rng::Rng;

/// A second, in the unit of simulated time.
pub const SECOND: u64 = 1_000_000;
/// A millisecond.
pub const MILLI: u64 = 1_000;

/// What can go wrong. The order is that of [`Plan::weights`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// The power of a node fails now.
    PowerCut,
    /// The power of a node fails before one of its next operations on the disk.
    PowerCutInWrite,
    /// The power of a node fails right after it made a promise to another.
    PowerCutAfterPromise,
    /// The process of a node is killed; its machine runs on.
    Kill,
    /// A node is stopped in order and started again.
    Restart,
    /// A node does nothing for a while.
    Pause,
    /// The disk of a node does nothing for a while.
    Stall,
    /// The disk of a node does nothing for a while, in the first half of which the node hears nobody.
    Daze,
    /// Every sync of a node's disk takes much longer for a while.
    Drag,
    /// A connection breaks; what was under way on it is lost.
    Reset,
    /// Two nodes do not hear each other.
    Cut,
    /// One node does not hear another one, which hears it.
    OneWayCut,
    /// A node hears nobody.
    Isolate,
    /// Nobody hears a node, which hears only one other.
    Mute,
    /// Two halves of the cluster hear each other only through one node.
    Bridge,
    /// A write to the disk of a node fails.
    WriteError,
    /// A sync of the disk of a node fails.
    SyncError,
    /// The disk of a node is full for a while.
    FullDisk,
    /// A connection is slow for a while.
    Slow,
    /// A node loses its data directory.
    Wipe,
    /// A node gets an earlier state of its data directory back.
    Rollback,
    /// Bits of a node's log change on the disk.
    Rot,
    /// A write to a node's log lands elsewhere on its disk, or nowhere.
    Misdirect,
    /// A leader is asked to hand its group over.
    Handover,
    /// A client forgets what it was doing.
    ClientCrash,
    /// A leader is asked to change the members of its group.
    Reconfigure,
    /// Groups are destroyed, and created again.
    Destroy,
    /// A leader is asked to split its group.
    Split,
    /// A node becomes a peer of the others, or is taken out.
    Peer,
    /// A node goes on at another address, which the others are told.
    Move,
    /// A leader is asked to merge its group into another.
    Merge,
    /// A node is asked for snapshots.
    Snapshot,
    /// A state machine fails.
    Poison,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 33] = [
        Fault::PowerCut,
        Fault::PowerCutInWrite,
        Fault::PowerCutAfterPromise,
        Fault::Kill,
        Fault::Restart,
        Fault::Pause,
        Fault::Stall,
        Fault::Daze,
        Fault::Drag,
        Fault::Reset,
        Fault::Cut,
        Fault::OneWayCut,
        Fault::Isolate,
        Fault::Mute,
        Fault::Bridge,
        Fault::WriteError,
        Fault::SyncError,
        Fault::FullDisk,
        Fault::Slow,
        Fault::Wipe,
        Fault::Rollback,
        Fault::Rot,
        Fault::Misdirect,
        Fault::Handover,
        Fault::ClientCrash,
        Fault::Reconfigure,
        Fault::Destroy,
        Fault::Split,
        Fault::Peer,
        Fault::Move,
        Fault::Merge,
        Fault::Snapshot,
        Fault::Poison,
    ];

    /// Whether something is broken by it, and not only asked for.
    pub fn breaks_something(self) -> bool {
        !matches!(
            self,
            Fault::Handover
                | Fault::ClientCrash
                | Fault::Reconfigure
                | Fault::Destroy
                | Fault::Split
                | Fault::Peer
                | Fault::Move
                | Fault::Merge
                | Fault::Snapshot
                | Fault::Poison
        )
    }

    /// Whether it can take back what a node has promised. Only a minority of each group may be hit by those.
    pub fn is_destructive(self) -> bool {
        matches!(
            self,
            Fault::Wipe | Fault::Rollback | Fault::Rot | Fault::Misdirect
        )
    }
}

/// A number for each fault, in the order of [`Fault::ALL`].
#[derive(Clone, Debug)]
pub struct ByFault<T>(pub [T; Fault::ALL.len()]);

impl<T: Copy + Default> Default for ByFault<T> {
    fn default() -> Self {
        ByFault([T::default(); Fault::ALL.len()])
    }
}

/// Everything that a seed decides at the start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Number of nodes; their ids are 1 and up.
    pub nodes: u64,
    /// Groups that are created; those behind them begin when one of these is split.
    pub roots: u64,
    /// Members by group; group `n` has id `n + 1`.
    pub members: Vec<Vec<u64>>,
    /// Which groups may be split, by group.
    pub splits: Vec<bool>,
    /// Who made a child first is cut off while most others have nothing of it.
    pub orphans_children: bool,
    /// Whose members change, by group.
    pub churns: Vec<bool>,
    /// Whether groups whose members change are destroyed too.
    pub ends_churning: bool,
    /// Whether nodes become witnesses where members change.
    pub has_witnesses: bool,
    /// Whether leaders are asked to prefer nodes.
    pub prefers: bool,
    /// Whether clients read old state too.
    pub reads_old_state: bool,
    /// Whether nodes are drained before they are stopped, now and then.
    pub drains: bool,
    /// How readily each node leads.
    pub priorities: Vec<u32>,
    /// The node that is not always a peer of the others, where there is one.
    pub guest: Option<u64>,
    /// Whether it is one at the beginning.
    pub guest_begins: bool,
    /// What every node is configured with.
    pub config: Config,
    /// How fast each node's clock runs, in parts per million more or less than real time.
    pub clock_ppm: Vec<i64>,
    /// Nodes whose data may be destroyed: a minority of every group.
    pub victims: Vec<u64>,
    /// Clients.
    pub clients: u64,
    /// The first of them that propose in sessions.
    pub session_clients: u64,
    /// Registers in each group.
    pub keys: u8,
    /// How long a client waits between two operations, about.
    pub think_us: u64,
    /// Bytes of padding in a proposal, at most.
    pub padding: u64,
    /// How long a client waits for an answer.
    pub client_timeout_us: u64,
    /// One way from node to node, at least and at most.
    pub latency_us: (u64, u64),
    /// From the start of a turn to its end, at most.
    pub turn_us: u64,
    /// One sync, at least and at most.
    pub sync_us: (u64, u64),
    /// That time passes in the middle of a write, so that what comes meanwhile waits for the next one; and not before it.
    pub has_slow_writes: bool,
    /// One task of an apply worker, at most.
    pub apply_us: u64,
    /// Between two faults, about; never, if 0.
    pub fault_us: u64,
    /// How often each fault is drawn, in the order of [`Fault::ALL`].
    pub weights: [u32; Fault::ALL.len()],
    /// How long a disturbance lasts, at most.
    pub disturbance_us: u64,
    /// How long a node stays down, at most.
    pub downtime_us: u64,
    /// Frames lost although their connection stands, per million. The real transport does not do that.
    pub loss: u32,
    /// Frames delivered twice, per million. The real transport does not do that.
    pub duplication: u32,
    /// Frames that overtake others of their lane, per million. The real transport does not do that.
    pub reordering: u32,
    /// Parts of snapshots that arrive with a bit changed, per million. The real transport does not do that.
    pub corruption: u32,
    /// State machines save themselves after so many entries; `None`: they are lost in a restart.
    pub saves_every: Option<u64>,
    /// Events of the phase with faults.
    pub events: u64,
}

impl Plan {
    /// Draws everything.
    pub fn draw(seed: u64, rng: &mut Rng) -> Plan {
        let nodes = rng.within(3, 5);
        let groups = rng.within(8, 64);
        let members = members(nodes, groups, rng);
        let victims = victims(nodes, &members, rng);
        let mut config = config(rng);
        // By how much each clock may run too fast or too slow; what is configured covers the difference of two.
        let (skew, drift) = *rng.pick(&[(10_000, 21_000), (10_000, 21_000), (100_000, 225_000)]);
        config.liveness.clock_drift_ppm = drift;
        config.election.rebalance_delay = Duration::from_millis(*rng.pick(&[0, 0, 30, 100]));
        let is_calm = rng.chance(30_000);
        let is_lossy = rng.chance(350_000);
        let rough = |rng: &mut Rng, most: u64| match is_lossy {
            true => *rng.pick(&[0, most / 8, most / 2, most]) as u32,
            false => 0,
        };
        let disturbance_us = rng.within(100, 1_500) * MILLI;
        let latency = *rng.pick(&[60, 200, 1_000, 8_000]);
        let sync = *rng.pick(&[30, 100, 400, 3_000]);
        let mut plan = Plan {
            seed,
            nodes,
            roots: groups,
            churns: Vec::new(),
            ends_churning: false,
            has_witnesses: false,
            splits: Vec::new(),
            orphans_children: false,
            prefers: false,
            reads_old_state: false,
            drains: false,
            priorities: vec![100; nodes as usize],
            guest: None,
            guest_begins: true,
            members,
            clock_ppm: (0..nodes)
                .map(|_| rng.within(0, 2 * skew) as i64 - skew as i64)
                .collect(),
            victims,
            clients: rng.within(4, 24),
            session_clients: 0,
            keys: rng.within(1, 4) as u8,
            think_us: *rng.pick(&[2_000, 10_000, 40_000]),
            padding: *rng.pick(&[0, 60, 900]),
            client_timeout_us: rng.within(100, 2_000) * MILLI,
            latency_us: (latency / 2, latency * rng.within(1, 4)),
            turn_us: *rng.pick(&[5, 30, 200]),
            sync_us: (sync / 2, sync * rng.within(1, 6)),
            has_slow_writes: false,
            apply_us: *rng.pick(&[5, 100, 2_000]),
            fault_us: if is_calm {
                0
            } else {
                (rng.within(5, 120) * MILLI).max(disturbance_us / 8)
            },
            weights: weights(rng),
            disturbance_us,
            downtime_us: rng.within(20, 800) * MILLI,
            loss: rough(rng, 100_000),
            duplication: rough(rng, 100_000),
            reordering: rough(rng, 100_000),
            saves_every: *rng.pick(&[None, None, Some(1), Some(20)]),
            corruption: 0,
            events: rng.within(20_000, 32_000),
            config,
        };
        transfers(rng, &mut plan);
        mutes(&mut plan);
        plan.churns = vec![false; plan.members.len()];
        plan.splits = vec![false; plan.members.len()];
        churn(&mut plan);
        sessions(&mut plan);
        ends(&mut plan);
        witnesses(&mut plan);
        splits(&mut plan);
        priorities(&mut plan);
        peers(&mut plan);
        merges(&mut plan);
        dazes(&mut plan);
        drags(&mut plan);
        requests(&mut plan);
        plan
    }

    /// A world that is left alone: nothing goes wrong in it, nobody asks for anything, and of the nodes that can lead a
    /// group the first one does, as a rule. Groups behind the `roots` begin when others are split.
    pub(super) fn calm(nodes: u64, roots: u64, groups: u64, config: Config) -> Plan {
        let all: Vec<u64> = (1..=nodes).collect();
        let count = groups as usize;
        Plan {
            seed: 0,
            nodes,
            roots,
            members: vec![all; count],
            splits: vec![false; count],
            orphans_children: false,
            churns: vec![true; count],
            ends_churning: false,
            has_witnesses: false,
            prefers: false,
            reads_old_state: false,
            drains: false,
            priorities: (0..nodes as u32).map(|node| 100 - node).collect(),
            guest: None,
            guest_begins: true,
            config,
            clock_ppm: vec![0; nodes as usize],
            victims: Vec::new(),
            clients: 0,
            session_clients: 0,
            // Nobody comes for the keys of a group that is merged, and nothing goes wrong because of it.
            keys: 0,
            think_us: 0,
            padding: 0,
            client_timeout_us: SECOND,
            latency_us: (500, 500),
            turn_us: 1,
            sync_us: (200, 200),
            has_slow_writes: false,
            apply_us: 1,
            fault_us: 0,
            weights: [0; Fault::ALL.len()],
            disturbance_us: 0,
            downtime_us: MILLI,
            loss: 0,
            duplication: 0,
            reordering: 0,
            corruption: 0,
            saves_every: None,
            events: 0,
        }
    }

    /// The members that a group is created with.
    pub fn members_of(&self, group: polyraft::GroupId) -> &[u64] {
        &self.members[group.0 as usize - 1]
    }

    /// Whether the members of a group change.
    pub fn churns(&self, group: polyraft::GroupId) -> bool {
        self.churns[group.0 as usize - 1]
    }

    /// Whether a group, and what is split off it, may be split.
    pub fn splits(&self, group: polyraft::GroupId) -> bool {
        let splits = self.splits.get(group.0 as usize - 1);
        splits.copied().unwrap_or(false)
    }

    /// Whether a quorum of these voters keeps its data, whatever is destroyed.
    pub fn is_safe(&self, voters: &[u64]) -> bool {
        let lost = voters.iter().filter(|node| self.victims.contains(node));
        lost.count() * 2 < voters.len()
    }
}

/// Groups of the whole cluster, and in larger clusters also of parts of it.
fn members(nodes: u64, groups: u64, rng: &mut Rng) -> Vec<Vec<u64>> {
    let all: Vec<u64> = (1..=nodes).collect();
    let mut kinds = vec![all.clone()];
    if nodes > 3 {
        for _ in 0..rng.within(1, 3) {
            let mut some = all.clone();
            while some.len() > 3 {
                some.remove(rng.below(some.len() as u64) as usize);
            }
            kinds.push(some);
        }
    }
    (0..groups).map(|_| rng.pick(&kinds).clone()).collect()
}

/// As many nodes as may lose everything while a quorum of every group keeps it.
fn victims(nodes: u64, members: &[Vec<u64>], rng: &mut Rng) -> Vec<u64> {
    let mut victims = Vec::new();
    for _ in 0..rng.below(3) {
        let node = rng.within(1, nodes);
        let hit = |group: &Vec<u64>| {
            let lost = |member: &&u64| victims.contains(*member) || **member == node;
            group.iter().filter(lost).count() <= (group.len() - 1) / 2
        };
        let all: Vec<u64> = (1..=nodes).collect();
        if !victims.contains(&node) && members.iter().chain([&all]).all(hit) {
            victims.push(node);
        }
    }
    victims.sort_unstable();
    victims
}

/// How snapshots go from node to node: often, in small pieces, and with little log behind them.
fn transfers(rng: &mut Rng, plan: &mut Plan) {
    let snapshot = &mut plan.config.snapshot;
    snapshot.keep_entries = *rng.pick(&[0, 0, 3, 30]);
    snapshot.chunk_bytes = ByteSize::b(*rng.pick(&[40, 100, 4096]));
    snapshot.concurrent = rng.within(1, 4) as u32;
    snapshot.rate = ByteSize::b(*rng.pick(&[0, 0, 40_000]));
    plan.corruption = *rng.pick(&[0, 0, 20_000, 100_000]) as u32;
}

/// How often each fault is drawn.
fn weights(rng: &mut Rng) -> [u32; Fault::ALL.len()] {
    let mut weights = [0; Fault::ALL.len()];
    for (weight, _) in weights
        .iter_mut()
        .zip(Fault::ALL)
        .filter(|(_, fault)| !ASKED.contains(fault))
    {
        *weight = *rng.pick(&[0, 1, 2, 4, 10]);
    }
    weights
}

/// Drawn with weights of their own, where a world has them.
const ASKED: [Fault; 11] = [
    Fault::Daze,
    Fault::Drag,
    Fault::Mute,
    Fault::Reconfigure,
    Fault::Destroy,
    Fault::Split,
    Fault::Peer,
    Fault::Move,
    Fault::Merge,
    Fault::Snapshot,
    Fault::Poison,
];

/// In some worlds the members of some groups change. Drawn from a source of its own, so that the others stay as they were.
fn churn(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0xC4A6_0E55));
    if !rng.chance(300_000) {
        return;
    }
    let most = rng.within(1, 10) as u32 * 100_000;
    for churns in &mut plan.churns {
        *churns = rng.chance(most);
    }
    plan.weights[Fault::Reconfigure as usize] = *rng.pick(&[3, 10, 30]);
}

/// Some clients use sessions, of which groups keep so few that some are forgotten. Drawn apart, so that the other worlds stay
/// as they were.
fn sessions(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x5e55_1045));
    if rng.chance(500_000) {
        plan.session_clients = rng.within(1, plan.clients);
        plan.config.apply.max_sessions = *rng.pick(&[2, 8, 1024, 1024]);
    }
}

/// In some worlds groups are destroyed and created again. Drawn from a source of its own, so that the others stay as they were.
fn ends(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x0E4D_0117));
    if rng.chance(300_000) {
        plan.weights[Fault::Destroy as usize] = *rng.pick(&[3, 10, 30]);
    }
    // Drawn apart once more.
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0xE4D5_C4A6));
    plan.ends_churning = rng.chance(500_000);
}

/// In some worlds members change and nodes become witnesses. Nobody's data is destroyed there: what is committed may be stored
/// by one node only. Drawn from a source of its own, so that the others stay as they were.
fn witnesses(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x0317_4E55));
    if !rng.chance(200_000) {
        return;
    }
    plan.has_witnesses = true;
    spare_data(plan);
    let most = rng.within(3, 10) as u32 * 100_000;
    for churns in &mut plan.churns {
        *churns |= rng.chance(most);
    }
    let weight = &mut plan.weights[Fault::Reconfigure as usize];
    *weight = (*weight).max(*rng.pick(&[10, 30]));
}

/// In some worlds groups are split. Drawn from a source of its own, so that the others stay as they were.
fn splits(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x0591_17ED));
    if !rng.chance(300_000) {
        return;
    }
    let most = rng.within(1, 10) as u32 * 100_000;
    for splits in &mut plan.splits {
        *splits = rng.chance(most);
    }
    plan.weights[Fault::Split as usize] = *rng.pick(&[3, 10, 30]);
    // Something has to be there to be split off.
    plan.keys = plan.keys.max(rng.within(2, 6) as u8);
    for _ in 0..rng.within(1, 12) {
        // It gets the members of its parent.
        plan.members.push(plan.members[0].clone());
        plan.churns.push(false);
    }
    // Drawn apart once more.
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x08FA_2EEE));
    plan.orphans_children = rng.chance(300_000);
}

/// In some worlds nodes should lead more or less readily, and leaders are asked to prefer some. Drawn from a source of its own, so that
/// the others stay as they were.
fn priorities(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x0921_0220));
    if !rng.chance(150_000) {
        return;
    }
    plan.prefers = true;
    for priority in &mut plan.priorities {
        *priority = *rng.pick(&[100, 100, 50, 0]) as u32;
    }
    let weight = &mut plan.weights[Fault::Reconfigure as usize];
    *weight = (*weight).max(10);
}

/// In some worlds one node becomes a peer of the others and is taken out while they run, and machines get other addresses. No group
/// begins on that node. Drawn from a source of its own, so that the others stay as they were.
fn peers(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x9EE2_0026));
    if plan.nodes < 4 || plan.has_witnesses || !rng.chance(350_000) {
        return;
    }
    let guest = rng.within(1, plan.nodes);
    plan.guest = Some(guest);
    plan.guest_begins = rng.chance(500_000);
    let others: Vec<u64> = (1..=plan.nodes).filter(|node| *node != guest).collect();
    for members in &mut plan.members {
        members.retain(|node| *node != guest);
        let spare = others.iter().filter(|node| !members.contains(node));
        let spare: Vec<u64> = spare.copied().collect();
        members.extend(spare.iter().take(3_usize.saturating_sub(members.len())));
        members.sort_unstable();
    }
    plan.victims.retain(|node| *node != guest);
    let is_hit = |plan: &Plan| {
        let mut groups = plan.members.iter().chain([&others]);
        groups.any(|members| !plan.is_safe(members))
    };
    while is_hit(plan) {
        plan.victims.pop();
    }
    let most = rng.within(3, 10) as u32 * 100_000;
    for churns in &mut plan.churns {
        *churns |= rng.chance(most);
    }
    let weight = &mut plan.weights[Fault::Reconfigure as usize];
    *weight = (*weight).max(*rng.pick(&[10, 30]));
    plan.weights[Fault::Peer as usize] = *rng.pick(&[3, 10, 30]);
    plan.weights[Fault::Move as usize] = *rng.pick(&[0, 3, 10]);
}

/// In most worlds whose groups are split some are merged again. Drawn from a source of its own, so that the others stay as they
/// were.
fn merges(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x3E46_E0FF));
    if plan.weights[Fault::Split as usize] == 0 || !rng.chance(800_000) {
        return;
    }
    plan.weights[Fault::Merge as usize] = *rng.pick(&[30, 60, 120]);
    let splits = &mut plan.weights[Fault::Split as usize];
    *splits = (*splits).max(*rng.pick(&[10, 30, 60]));
    // An id is used once, and there is more to merge when more is split off.
    for _ in 0..rng.within(0, 12) {
        plan.members.push(plan.members[0].clone());
        plan.churns.push(false);
    }
    // Some attempts come to nothing because the target takes too long.
    if rng.chance(300_000) {
        // As long as forwarding one takes when nothing goes wrong.
        let round = 4 * plan.latency_us.1 + 4 * plan.sync_us.1 + 4 * plan.apply_us;
        let timeout = round + rng.within(20, 200) * MILLI;
        plan.config.shards.proposal_timeout = Duration::from_millis(timeout / MILLI);
    }
}

/// In some worlds nodes fall silent and go on hearing one other. Some of these are narrow: few groups, whose clients ask all the
/// time, and few other faults. Drawn from a source of its own, so that the others stay as they were.
fn mutes(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x3073_5EF1));
    if plan.fault_us == 0 || !rng.chance(250_000) {
        return;
    }
    let is_narrow = rng.chance(250_000);
    plan.weights[Fault::Mute as usize] = if is_narrow {
        60
    } else {
        *rng.pick(&[1, 4, 10])
    };
    if is_narrow {
        plan.roots = 8;
        plan.members.truncate(8);
        plan.clients = 12;
        plan.keys = 1;
        plan.think_us = 20_000;
        plan.client_timeout_us = 150 * MILLI;
        plan.latency_us = (100, 400);
        plan.sync_us = (15, 60);
        plan.config.election.timeout_min = Duration::from_millis(250);
        plan.config.election.timeout_max = Duration::from_millis(270);
        plan.config.liveness.beat_interval = Duration::from_millis(50);
        plan.config.wal.stall_timeout = plan.config.election.timeout_min;
        plan.fault_us = 400 * MILLI;
        plan.disturbance_us = 800 * MILLI;
    }
}

/// In some worlds nodes are cut off while their disks stall, and hear of another leader before what they wrote is durable. Drawn
/// from a source of its own, so that the others stay as they were.
fn dazes(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x57A1_15EE));
    if plan.fault_us == 0 || !rng.chance(40_000) {
        return;
    }
    plan.has_slow_writes = true;
    let timeout = plan.config.election.timeout_max.as_micros() as u64;
    for weight in &mut plan.weights {
        *weight = weight.div_ceil(4);
    }
    plan.weights[Fault::Daze as usize] = *rng.pick(&[10, 30]);
    plan.disturbance_us = 4 * timeout;
    plan.fault_us = 2 * timeout;
}

/// In some worlds disks are slow for a while. Drawn from a source of its own, so that the others stay as they were.
fn drags(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0xD4A6_0D15));
    if plan.fault_us > 0 && rng.chance(250_000) {
        plan.weights[Fault::Drag as usize] = *rng.pick(&[1, 4, 10]);
    }
}

/// In half of the worlds some of this: clients read old state, operators drain nodes and ask for snapshots, and state machines fail.
/// Where these fail nobody's data is destroyed: a minority of a group would be hit twice. Drawn from a source of its own, so that
/// the others stay as they were; with this number so do those of `seeds.txt`.
fn requests(plan: &mut Plan) {
    let mut rng = Rng::new(super::rng::mix(plan.seed ^ 0x0F0E_0008_59CD));
    if !rng.chance(500_000) {
        return;
    }
    plan.reads_old_state = rng.chance(500_000);
    plan.drains = rng.chance(500_000);
    if plan.drains {
        let weight = &mut plan.weights[Fault::Restart as usize];
        *weight = (*weight).max(*rng.pick(&[10, 20]));
    }
    if rng.chance(500_000) {
        plan.weights[Fault::Snapshot as usize] = *rng.pick(&[3, 10, 30]);
    }
    if rng.chance(500_000) {
        plan.weights[Fault::Poison as usize] = *rng.pick(&[3, 10, 30]);
        spare_data(plan);
    }
}

/// Nobody's data is destroyed.
fn spare_data(plan: &mut Plan) {
    plan.victims.clear();
    for fault in Fault::ALL
        .into_iter()
        .filter(|fault| fault.is_destructive())
    {
        plan.weights[fault as usize] = 0;
    }
}

/// For worlds in which no limit is to be reached: everything usual but the sizes of files, and no snapshot unless it is asked for.
pub(super) fn roomy_config() -> Config {
    let mut config = Config::default();
    config.shards.proposal_timeout = Duration::from_secs(1);
    config.snapshot.keep_entries = 0;
    let wal = &mut config.wal;
    wal.segment_bytes = ByteSize::kib(256);
    wal.max_batch_bytes = ByteSize::kib(64);
    wal.checkpoint_bytes = ByteSize::kib(512);
    wal.min_free_bytes = ByteSize::kib(0);
    config.replication.max_append_bytes = ByteSize::kib(32);
    config.batch.max_proposal_bytes = ByteSize::kib(16);
    config.transport.max_frame_bytes = ByteSize::kib(64);
    config.transport.idle_timeout = Duration::from_secs(1);
    config.transport.backoff_min = Duration::from_millis(10);
    config.transport.backoff_max = Duration::from_millis(100);
    config
}

/// Small limits, so that every one of them is reached.
fn config(rng: &mut Rng) -> Config {
    let millis = Duration::from_millis;
    let kib = |kib| ByteSize::kib(kib);
    let mut config = Config::default();
    let timeout = rng.within(100, 250);
    config.election.timeout_min = millis(timeout);
    config.election.timeout_max = millis(timeout * rng.within(2, 3));
    config.liveness.beat_interval = millis(timeout / rng.within(3, 6));
    let append_kib = *rng.pick(&[4, 8, 16]);
    let replication = &mut config.replication;
    replication.max_append_bytes = kib(append_kib);
    replication.max_append_entries = *rng.pick(&[1, 4, 64]);
    replication.inflight_messages = *rng.pick(&[1, 4, 32]);
    replication.inflight_entries = *rng.pick(&[64, 1024]);
    replication.inflight_bytes = kib(64);
    replication.retry_interval = millis(rng.within(30, 150));
    replication.commit_notice_interval = millis(rng.within(2, 40));
    config.batch.turn_events = *rng.pick(&[1, 8, 64, 1024]);
    config.batch.max_proposal_bytes = kib(2);
    let shards = rng.within(1, 2) as u32;
    config.shards.count = shards;
    config.shards.inbox_bytes = kib(*rng.pick(&[64, 1024]));
    config.shards.group_bytes = kib(*rng.pick(&[4, 64]));
    config.shards.proposal_timeout = millis(rng.within(200, 2000));
    config.apply.workers = rng.within(1, 2) as u32;
    config.apply.queue_bytes = kib(*rng.pick(&[8, 256]));
    let wal = &mut config.wal;
    wal.mode = *rng.pick(&[WalMode::Direct, WalMode::Direct, WalMode::Mapped]);
    wal.lanes = rng.within(1, u64::from(shards)) as u32;
    let batch_kib = append_kib + *rng.pick(&[4, 16]);
    wal.max_batch_bytes = kib(batch_kib);
    wal.segment_bytes = kib(*rng.pick(&[64, 128, 256]));
    wal.pool_segments = rng.within(1, 2) as u32;
    wal.max_pending_bytes = kib(*rng.pick(&[batch_kib, 256]));
    wal.checkpoint_bytes = ByteSize::b(wal.segment_bytes.as_u64() * rng.within(1, 3));
    wal.tail_cache_bytes = kib(*rng.pick(&[4, 64, 1024]));
    wal.min_free_bytes = kib(0);
    wal.stall_timeout = config.election.timeout_min;
    let snapshot = &mut config.snapshot;
    snapshot.entries = *rng.pick(&[0, 4, 20, 100]);
    snapshot.bytes = ByteSize::b(*rng.pick(&[0, 0, 400, 10_000]));
    snapshot.workers = rng.within(1, 2) as u32;
    let transport = &mut config.transport;
    transport.append_lanes = rng.within(1, 3) as u8;
    transport.max_frame_bytes = kib(append_kib + *rng.pick(&[4, 32]));
    transport.queue_bytes = kib(*rng.pick(&[64, 1024]));
    transport.idle_timeout = millis(rng.within(300, 2000));
    transport.backoff_min = millis(10);
    transport.backoff_max = millis(rng.within(50, 1000));
    config
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} nodes, {} groups, {} clients ({} with sessions), {} keys, victims {:?}, {}{} events",
            self.seed,
            self.nodes,
            self.roots,
            self.clients,
            self.session_clients,
            self.keys,
            self.victims,
            if self.has_witnesses {
                "witnesses, "
            } else {
                ""
            },
            self.events
        )?;
        write!(f, "  members")?;
        let roots = self.members.iter().take(self.roots as usize);
        for ((members, churns), splits) in roots.zip(&self.churns).zip(&self.splits) {
            let churns = if *churns { "*" } else { "" };
            write!(f, " {members:?}{churns}{}", if *splits { "/" } else { "" })?;
        }
        let children = self.members.len() as u64 - self.roots;
        let orphans = if self.orphans_children {
            ", orphans"
        } else {
            ""
        };
        writeln!(f, ", at most {children} split off{orphans}")?;
        for (is_so, what) in [
            (
                self.ends_churning,
                "groups whose members change are destroyed too",
            ),
            (self.reads_old_state, "clients read old state"),
            (self.drains, "nodes are drained before some stops"),
        ] {
            if is_so {
                writeln!(f, "  {what}")?;
            }
        }
        if self.prefers {
            writeln!(f, "  priorities {:?}", self.priorities)?;
        }
        if let Some(guest) = self.guest {
            let begins = if self.guest_begins { "" } else { " later" };
            writeln!(f, "  node {guest} is a peer{begins}, not always")?;
        }
        writeln!(f, "  clocks {:?} ppm", self.clock_ppm)?;
        writeln!(
            f,
            "  latency {:?} us, turn {} us, sync {:?} us{}, apply {} us, think {} us, padding {}, client timeout {} us",
            self.latency_us,
            self.turn_us,
            self.sync_us,
            if self.has_slow_writes {
                " in writes"
            } else {
                ""
            },
            self.apply_us,
            self.think_us,
            self.padding,
            self.client_timeout_us
        )?;
        writeln!(
            f,
            "  loss {} duplication {} reordering {} corruption {} per million, saves every {:?}",
            self.loss, self.duplication, self.reordering, self.corruption, self.saves_every
        )?;
        write!(
            f,
            "  a fault per {} us, disturbed for {} us, down for {} us:",
            self.fault_us, self.disturbance_us, self.downtime_us
        )?;
        for (fault, weight) in Fault::ALL.iter().zip(self.weights) {
            if weight > 0 {
                write!(f, " {fault:?} {weight}")?;
            }
        }
        for line in self.config.to_toml_string().lines() {
            if !line.is_empty() {
                write!(f, "\n  {line}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_of_every_group_is_safe_from_destruction() {
        for seed in 0..200 {
            let plan = Plan::draw(seed, &mut Rng::new(seed));
            for members in &plan.members {
                assert!(plan.is_safe(members), "{plan}");
            }
        }
    }

    #[test]
    fn a_seed_always_draws_the_same_plan() {
        let draw = |seed| Plan::draw(seed, &mut Rng::new(seed)).to_string();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}

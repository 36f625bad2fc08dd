//! What goes wrong, and the atlas that bounds it: destruction of data hits a minority of every group, and only where
//! the engine can know of it. It must never leave a fault in place when the world is healed.

use std::future::Future;
use std::task::{Context, Waker};
use std::time::Duration;

use polyraft::{MemberChange, NodeId, Role};
use polyraft_raft::Configuration;
use polyraft_storage::Disk as _;
use polyraft_storage::sim::{
    Astray, Failure as DiskFailure, Keep, KeepNames, Payload, SimDisk, payloads,
};

use super::damage::Damage;
use super::machine::{self, Saved};
use super::plan::{Fault, MILLI};
use super::rng::mix;
use super::world::{Event, Phase, Unproven, World};

/// How much longer it takes until the next fault in a storm in which nothing gets done.
const SELDOM: u64 = 64;

/// From so many records behind the others, rot takes one if it is aimed.
const NEWEST: usize = 300;

/// Something that ends after a while.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Disturbance {
    /// Frames from the first node do not reach the second.
    Blocked(Vec<(u64, u64)>),
    /// The disk of a node is full.
    FullDisk(u64),
}

/// A state of a stopped node's data that may come back later.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    disk: SimDisk,
    machines: Saved,
    damage: Damage,
}

impl World {
    pub(super) fn fired(&mut self, fault: Fault) {
        let at = Fault::ALL.iter().position(|other| *other == fault);
        self.counts.faults.0[at.expect("all faults are listed")] += 1;
        self.trace.note(0xfa << 8 | at.unwrap_or(0) as u64);
    }

    /// The next fault happens.
    pub(super) fn inject(&mut self) {
        if self.phase != Phase::Storm {
            return;
        }
        let mut wait = self.rng.within(1, 2 * self.plan.fault_us);
        if self.has_to_abate() {
            // Whoever is down comes back, and groups elect leaders.
            let most = self.plan.config.election.timeout_max.as_micros() as u64;
            wait = wait * SELDOM + self.plan.downtime_us + 4 * most;
            self.end_of_unnoticed_bad_disks();
        }
        self.push(self.now + wait, Event::Fault);
        let weights = self.plan.weights;
        let fault = Fault::ALL[self.rng.weighted(&weights)];
        let node = self.rng.within(1, self.plan.nodes);
        let happened = match fault {
            Fault::Cut
            | Fault::OneWayCut
            | Fault::Isolate
            | Fault::Mute
            | Fault::Bridge
            | Fault::Reset
            | Fault::Slow => self.disturb_network(fault, node),
            Fault::Handover => self.ask_for_handover(node),
            Fault::Reconfigure => self.ask_for_members(node),
            Fault::Destroy => self.ask_for_end(),
            Fault::Split => self.ask_for_split(node),
            Fault::Peer => self.turn_guest(),
            Fault::Move => self.move_machine(node),
            Fault::Merge => self.ask_for_merge(node),
            Fault::Snapshot => self.ask_for_snapshots(node),
            Fault::Poison => self.poison_machines(node),
            Fault::ClientCrash => {
                let client = self.rng.below(self.plan.clients) as u32;
                self.client_crashes(client)
            }
            _ if fault.is_destructive() => self.destroy(fault, node),
            _ => self.disturb_node(fault, node),
        };
        self.trace.event(self.now, node, || {
            format!(
                "FAULT {fault:?}{}",
                if happened { "" } else { " (not now)" }
            )
        });
        // Those that are only armed count when they strike.
        let is_armed = matches!(
            fault,
            Fault::PowerCutInWrite
                | Fault::PowerCutAfterPromise
                | Fault::Misdirect
                | Fault::WriteError
                | Fault::SyncError
                | Fault::Poison
        );
        if happened && !is_armed {
            self.fired(fault);
        }
    }

    /// Asks a node to change the members of some groups that it leads.
    fn ask_for_members(&mut self, node: u64) -> bool {
        let groups = self.plan.members.len() as u64;
        let mut has_asked = false;
        for _ in 0..self.rng.within(1, 8) {
            let group = polyraft::GroupId(self.rng.within(1, groups));
            let Some((changes, within)) = self.draw_change(node, group) else {
                continue;
            };
            let host = &self.hosts[node as usize];
            let Some(sim) = &host.node else { return false };
            self.trace.group(self.now, node, group, || {
                format!("is asked for other members: {changes:?}")
            });
            let handle = sim.node().group(group.0);
            let mut asked = Box::pin(handle.change_members(changes, within));
            let mut context = Context::from_waker(Waker::noop());
            let _ = asked.as_mut().poll(&mut context);
            has_asked = true;
        }
        self.schedule(node);
        has_asked
    }

    /// What a leader may be asked for: never more than a minority of voters whose data may be destroyed.
    fn draw_change(
        &mut self,
        node: u64,
        group: polyraft::GroupId,
    ) -> Option<(Vec<MemberChange>, Duration)> {
        let sim = self.hosts[node as usize].node.as_ref()?;
        let (core, _) = sim.replica(group)?;
        let churns = self.plan.churns(group);
        if !(churns || self.plan.prefers) || core.role() != Role::Leader {
            return None;
        }
        let members = core.configuration().clone();
        let wants_witnesses = churns && self.plan.has_witnesses && self.rng.chance(150_000);
        let mut changes = match wants_witnesses {
            true => self.only_witnesses_beside(node, &members),
            false => Vec::new(),
        };
        let roles = match churns && changes.is_empty() {
            true => self.rng.within(1, 2),
            false => 0,
        };
        for _ in 0..roles {
            let who = NodeId(self.rng.within(1, self.plan.nodes));
            let is_likely = self.rng.chance(600_000);
            let change = match (members.is_voter(who), members.is_learner(who), is_likely) {
                (true, _, true) | (_, true, false) => MemberChange::Remove(who),
                (true, _, false) => MemberChange::Learner(who),
                (_, true, true) | (false, false, true) => MemberChange::Voter(who),
                (false, false, false) => MemberChange::Learner(who),
            };
            let is_new = !members.contains(who) && !matches!(change, MemberChange::Remove(_));
            if is_new && !self.peers.may_join(who.0) {
                continue;
            }
            changes.push(match self.plan.has_witnesses {
                true => self.draw_witness(&members, change),
                false => change,
            });
        }
        if self.plan.prefers && (!churns || self.rng.chance(500_000)) {
            let who = NodeId(self.rng.within(1, self.plan.nodes));
            changes.push(match self.rng.chance(800_000) {
                true => MemberChange::Prefer(who),
                false => MemberChange::Unprefer(who),
            });
        }
        if changes.is_empty() {
            return None;
        }
        let mut voters: Vec<u64> = members.voters().iter().map(|node| node.0).collect();
        for change in changes.iter().filter(|change| change.is_role()) {
            voters.retain(|voter| *voter != change.node().0);
            if let MemberChange::Voter(node) | MemberChange::Witness(node) = change {
                voters.push(node.0);
            }
        }
        let within = Duration::from_millis(self.rng.within(50, 2_000));
        self.plan.is_safe(&voters).then_some((changes, within))
    }

    /// Has everybody but one node stand aside for witnesses: mostly there would be too many of them, which has to be refused.
    fn only_witnesses_beside(&self, leader: u64, members: &Configuration) -> Vec<MemberChange> {
        let others = (1..=self.plan.nodes).filter(|node| *node != leader);
        let changes = others.filter_map(|id| {
            let node = NodeId(id);
            match (members.contains(node), members.is_witness(node)) {
                (true, true) => None,
                (true, false) => Some(MemberChange::Remove(node)),
                (false, _) => self
                    .peers
                    .may_join(id)
                    .then_some(MemberChange::Witness(node)),
            }
        });
        changes.collect()
    }

    /// The same change of a node that stores no payload, if it is one of these, or may become one. Now and then what is refused.
    fn draw_witness(&mut self, members: &Configuration, change: MemberChange) -> MemberChange {
        let who = change.node();
        let is_witness = match members.contains(who) {
            true => members.is_witness(who) != self.rng.chance(30_000),
            false => self.rng.chance(500_000),
        };
        match change {
            MemberChange::Voter(who) if is_witness => MemberChange::Witness(who),
            MemberChange::Learner(who) if is_witness => MemberChange::WitnessLearner(who),
            other => other,
        }
    }

    /// Asks a node to hand over some groups, to whomever: whether it leads them or not, and whether the others can.
    fn ask_for_handover(&mut self, node: u64) -> bool {
        if self.hosts[node as usize].node.is_none() {
            return false;
        }
        let groups = self.plan.members.len() as u64;
        for _ in 0..self.rng.within(1, groups) {
            let group = polyraft::GroupId(self.rng.within(1, groups));
            let to = *self.rng.pick(self.plan.members_of(group));
            let host = &self.hosts[node as usize];
            let Some(sim) = &host.node else { return false };
            let handle = sim.node().group(group.0);
            // The question is put with the first look at the answer; nobody waits for it.
            let mut asked = Box::pin(handle.transfer_leadership(to));
            let mut context = Context::from_waker(Waker::noop());
            let _ = asked.as_mut().poll(&mut context);
        }
        self.schedule(node);
        true
    }

    fn disturb_node(&mut self, fault: Fault, node: u64) -> bool {
        let long = self.rng.within(1, self.plan.disturbance_us);
        let now = self.now;
        // From what is there, so that nothing else of a seed depends on it.
        let is_lasting = mix(self.plan.seed ^ now).is_multiple_of(3);
        let is_drained = fault == Fault::Restart && self.plan.drains && self.rng.chance(500_000);
        let host = &mut self.hosts[node as usize];
        if host.node.is_none() {
            return false;
        }
        let is_gentle = matches!(
            fault,
            Fault::Pause | Fault::Stall | Fault::Daze | Fault::Drag
        );
        if host.unproven.is_some() && !is_gentle {
            return false;
        }
        match fault {
            Fault::PowerCut => self.power_cut(node),
            Fault::PowerCutInWrite => {
                let operation = host.disk.operations() + self.rng.below(12);
                self.cut_power_at(node, operation);
            }
            Fault::PowerCutAfterPromise => host.cut_after_promise = true,
            Fault::Kill => self.kill(node),
            Fault::Restart if is_drained => return self.begin_drain(node),
            Fault::Restart => self.restart(node),
            Fault::Pause => {
                host.paused_until = now + long;
                self.pause_links(node);
            }
            Fault::Stall => host.stalled_until = now + long,
            Fault::Drag => host.drags_until = now + 2 * long,
            Fault::Daze => {
                host.stalled_until = now + 2 * long;
                let alone = self.isolated(node);
                self.cut(alone, long);
            }
            Fault::WriteError | Fault::SyncError => {
                let failure = match is_lasting {
                    true => DiskFailure::Lasting,
                    false => DiskFailure::Once,
                };
                if is_lasting {
                    host.bad_until = host.bad_until.max(now + long);
                }
                match fault {
                    Fault::WriteError => host.disk.fail_writes(failure),
                    _ => host.disk.fail_syncs(failure),
                }
                host.has_bad_disk = true;
            }
            Fault::FullDisk => {
                let spare = self.rng.below(3) * self.plan.config.wal.segment_bytes.as_u64() / 2;
                host.disk.set_capacity(host.disk.used() + spare);
                host.is_disk_full = true;
                self.disturb(Disturbance::FullDisk(node), long);
            }
            _ => return false,
        }
        true
    }

    pub(super) fn disturb_network(&mut self, fault: Fault, node: u64) -> bool {
        let long = self.rng.within(1, self.plan.disturbance_us);
        let other = 1 + (node + self.rng.below(self.plan.nodes - 1)) % self.plan.nodes;
        let all = 1..=self.plan.nodes;
        let both = |a: u64, b: u64| [(a, b), (b, a)];
        let blocked: Vec<(u64, u64)> = match fault {
            Fault::Reset => {
                let at = self.link_of(node, other);
                self.reset_link(at, 20 * MILLI);
                return true;
            }
            Fault::Slow => {
                let at = self.link_of(node, other);
                self.links[at].slow_until = self.now + long;
                return true;
            }
            Fault::Cut => both(node, other).into(),
            Fault::OneWayCut => vec![(node, other)],
            Fault::Mute => {
                let mut pairs = self.isolated(node);
                pairs.retain(|pair| *pair != (other, node));
                pairs
            }
            Fault::Isolate => self.isolated(node),
            _ => {
                // `node` is the bridge; the others are in one half or the other.
                let halves = self.rng.bits();
                let side = |peer: u64| halves >> peer & 1;
                let rest: Vec<u64> = all.filter(|peer| *peer != node).collect();
                let pairs = rest.iter().flat_map(|a| rest.iter().map(move |b| (*a, *b)));
                pairs.filter(|(a, b)| side(*a) != side(*b)).collect()
            }
        };
        if blocked.is_empty() {
            return false;
        }
        self.cut(blocked, long);
        true
    }

    /// All ways to a node and from it.
    pub(super) fn isolated(&self, node: u64) -> Vec<(u64, u64)> {
        let peers = (1..=self.plan.nodes).filter(|peer| *peer != node);
        peers
            .flat_map(|peer| [(node, peer), (peer, node)])
            .collect()
    }

    /// Frames do not go these ways for a while.
    pub(super) fn cut(&mut self, pairs: Vec<(u64, u64)>, long: u64) {
        for (from, to) in &pairs {
            self.block(*from, *to);
        }
        self.disturb(Disturbance::Blocked(pairs), long);
    }

    /// Something that the atlas allows only for a minority of each group.
    fn destroy(&mut self, fault: Fault, _: u64) -> bool {
        let Some(victim) = self.plan.victims.first().copied() else {
            return false;
        };
        let victim = match self.plan.victims.len() {
            1 => victim,
            _ => *self.rng.pick(&self.plan.victims.clone()),
        };
        let host = &self.hosts[victim as usize];
        if host.is_outcast || host.is_dead || host.node.is_none() || host.unproven.is_some() {
            return false;
        }
        match fault {
            Fault::Wipe => self.wipe(victim),
            Fault::Rollback => self.roll_back(victim),
            Fault::Rot => self.rot(victim),
            Fault::Misdirect => self.misdirect(victim),
            _ => false,
        }
    }

    /// The others can tell a wiped node only if they have met it before.
    fn wipe(&mut self, victim: u64) -> bool {
        if !self.is_known_to_all(victim) {
            return false;
        }
        self.drop_node(victim);
        let seed = self.rng.bits();
        let host = &mut self.hosts[victim as usize];
        host.disk = SimDisk::new(seed);
        host.damage = Damage::new(&self.plan.config);
        (host.cut_at, host.is_outcast) = (None, true);
        (host.has_bad_disk, host.bad_until) = (false, 0);
        host.failed = host.disk.failed();
        machine::restore(victim, None);
        self.boot_soon(victim);
        true
    }

    /// The others can tell a rolled-back node only if all have seen an opening that it has lost.
    fn roll_back(&mut self, victim: u64) -> bool {
        if self.hosts[victim as usize].kept.is_empty() || !self.is_known_to_all(victim) {
            return false;
        }
        self.drop_node(victim);
        let kept = self.hosts[victim as usize].kept.clone();
        let Kept {
            disk,
            machines,
            damage,
        } = self.rng.pick(&kept).clone();
        let seed = self.rng.bits();
        let host = &mut self.hosts[victim as usize];
        // A copy of its own, whose chance goes another way than the first time.
        host.disk = disk.after_power_cut_with(Keep::Everything, KeepNames::Everything);
        host.disk.reseed(seed);
        host.damage = damage;
        // It may have been kept while the device failed.
        host.disk.heal();
        (host.has_bad_disk, host.bad_until) = (false, 0);
        host.failed = host.disk.failed();
        (host.cut_at, host.is_outcast) = (None, true);
        machine::restore(victim, Some(machines));
        self.boot_soon(victim);
        true
    }

    /// Flips bits of the log where they are old enough to be known as durable: in a segment that is full.
    fn rot(&mut self, victim: u64) -> bool {
        let host = &self.hosts[victim as usize];
        let files = host.disk.files();
        let is_segment =
            |path: &&std::path::PathBuf| path.extension().is_some_and(|end| end == "seg");
        let mut full: Vec<(usize, std::path::PathBuf, u64)> = Vec::new();
        for lane in 0..self.plan.config.wal.lanes as usize {
            let inside = format!("wal/{lane}/");
            let segments = files
                .iter()
                .filter(is_segment)
                .filter(|path| path.to_string_lossy().contains(&inside));
            for path in segments {
                let used: u64 = host
                    .disk
                    .synced_pages(path)
                    .last()
                    .map_or(0, |page| page.end);
                full.push((lane, path.clone(), used));
            }
        }
        full.retain(|(.., used)| *used + 16_384 >= self.plan.config.wal.segment_bytes.as_u64());
        let disk = &self.hosts[victim as usize].disk;
        let payloads_of = |(lane, path, _): (usize, std::path::PathBuf, u64)| {
            let found = payloads(&disk.read(&path).ok()?);
            (!found.is_empty()).then_some((lane, path, found))
        };
        let known: Vec<_> = full.into_iter().filter_map(payloads_of).collect();
        if known.is_empty() {
            return false;
        }
        // Most of a segment is padding, and much of the rest is over. What was written last is needed, and found at a start.
        let is_aimed = self.rng.chance(700_000);
        let (lane, path, offset, hit) = if is_aimed {
            let mut places = Vec::new();
            for (lane, path, found) in &known {
                places.extend(found.iter().map(|payload| (*lane, path, payload)));
            }
            places.sort_by_key(|(.., payload)| payload.lsn);
            let newest = &places[places.len().saturating_sub(NEWEST)..];
            let (lane, path, Payload { group, place, .. }) = *self.rng.pick(newest);
            let offset = place.start + self.rng.below(place.end - place.start);
            (lane, path.clone(), offset, Some(*group))
        } else {
            let (lane, path, found) = self.rng.pick(&known);
            let end = found.last().map_or(0, |payload| payload.place.end);
            let offset = 4096 + self.rng.below(end - 4096);
            let hit = found.iter().find(|one| one.place.contains(&offset));
            (*lane, path.clone(), offset, hit.map(|one| one.group))
        };
        let mask = 1 << self.rng.below(8);
        let host = &mut self.hosts[victim as usize];
        host.disk.flip_bits(&path, offset, mask);
        match hit {
            Some(group) => host.damage.hit_group(group),
            None => host.damage.hit_lane(lane),
        }
        if is_aimed && self.rng.chance(500_000) {
            self.kill(victim);
        }
        self.trace.event(self.now, victim, || {
            format!("rot in {} at {offset}: {hit:?}", path.display())
        });
        true
    }

    /// Lets the next write to a lane of the log land elsewhere. What such a write hits may be the last batch, which nothing
    /// proves before the next one: until then nothing may stop the node, or it would have lost without a trace what it
    /// promised. No log can tell that.
    fn misdirect(&mut self, victim: u64) -> bool {
        let host = &self.hosts[victim as usize];
        let may_stop = host.has_bad_disk || host.is_disk_full || !host.damage.is_none();
        if may_stop || host.cut_at.is_some() || host.cut_after_promise {
            return false;
        }
        let lane = self.rng.below(self.plan.config.wal.lanes.into()) as usize;
        let place = self.rng.bits();
        let astray = match self.rng.below(3) {
            0 => Astray::Nowhere,
            1 => Astray::SameFile(place),
            _ => Astray::OtherFile(place),
        };
        let directory = machine::data_dir(victim).join(format!("wal/{lane}"));
        let host = &mut self.hosts[victim as usize];
        host.disk.misdirect_next_write_in(&directory, astray);
        host.unproven = Some(Unproven { lane, since: None });
        true
    }

    fn is_known_to_all(&self, victim: u64) -> bool {
        self.hosts[victim as usize].met.len() as u64 == self.plan.nodes - 1
    }

    // ---- crashes ----

    /// The power will fail before the given operation of the node's disk.
    pub(super) fn cut_power_at(&mut self, node: u64, operation: u64) {
        let host = &mut self.hosts[node as usize];
        host.disk.cut_at(operation);
        host.cut_at = Some(operation);
    }

    /// The power of a node fails: what no sync covered is lost, or kept, or torn.
    pub(super) fn power_cut(&mut self, node: u64) {
        if self.hosts[node as usize].cut_at.is_some() {
            self.fired(Fault::PowerCutInWrite);
        }
        self.drop_node(node);
        let seed = self.rng.bits();
        let keep = match self.rng.below(12) {
            0 | 1 => Keep::Nothing,
            2 => Keep::Everything,
            3 => Keep::EvenPages,
            4 => Keep::OddPages,
            5 => Keep::NotTheFirst,
            6 => Keep::NotTheLast,
            7 => Keep::Prefix(seed),
            8 => Keep::Suffix(seed),
            9 => Keep::Zeroed,
            10 => Keep::Some(seed),
            _ => Keep::Arbitrary(seed),
        };
        let names = match self.rng.below(4) {
            0 => KeepNames::Nothing,
            1 => KeepNames::Everything,
            2 => KeepNames::Prefix(seed),
            _ => KeepNames::Some(seed),
        };
        self.trace.event(self.now, node, || {
            format!("loses power: {keep:?}, {names:?}")
        });
        let host = &mut self.hosts[node as usize];
        host.cut_at = None;
        host.disk = host.disk.after_power_cut_with(keep, names);
        self.end_of_bad_disk(node);
        self.keep(node);
        self.boot_soon(node);
    }

    /// The process of a node ends without a word; its machine and the page cache live on.
    pub(super) fn kill(&mut self, node: u64) {
        self.drop_node(node);
        self.trace.event(self.now, node, || "is killed".to_owned());
        self.end_of_bad_disk(node);
        self.boot_soon(node);
    }

    /// What was wrong with a disk is over, unless it lasts.
    pub(super) fn end_of_bad_disk(&mut self, node: u64) {
        let host = &mut self.hosts[node as usize];
        if host.has_bad_disk && (self.is_healed || self.now >= host.bad_until) {
            host.disk.heal();
            host.has_bad_disk = false;
        }
    }

    /// A node whose log writes nothing does not fail with its disk, and is not restarted for it; but it remembers no peers, and so
    /// takes none.
    fn end_of_unnoticed_bad_disks(&mut self) {
        for node in 1..=self.plan.nodes {
            let sim = self.hosts[node as usize].node.as_ref();
            if sim.is_some_and(|sim| sim.fault().is_none()) {
                self.end_of_bad_disk(node);
            }
        }
    }

    /// A node is stopped in order.
    pub(super) fn restart(&mut self, id: u64) {
        self.set_clock(id);
        let node = self.hosts[id as usize].node.as_mut();
        node.expect("it runs").finish();
        if !self.has_lost_power(id) {
            // A replica may have ended in the last turns.
            self.look_at_replicas(id);
        }
        let host = &mut self.hosts[id as usize];
        let node = host.node.take().expect("it runs");
        let closed = node.close();
        let may_fail = host.has_bad_disk || host.is_disk_full || host.cut_at.is_some();
        if let Err(error) = closed
            && !may_fail
        {
            return self.fail(super::checks::Failure {
                checker: "node health",
                what: format!("node {id} can't be closed: {error}"),
                group: None,
            });
        }
        self.drop_node(id);
        self.keep(id);
        self.boot_soon(id);
    }

    /// Keeps the data of a node that does not run, if it may be rolled back one day.
    fn keep(&mut self, id: u64) {
        let host = &mut self.hosts[id as usize];
        if self.plan.victims.contains(&id) && host.kept.len() < 4 {
            let disk = &host.disk;
            let disk = disk.after_power_cut_with(Keep::Everything, KeepNames::Everything);
            let machines = machine::saved(id);
            let damage = host.damage.clone();
            host.kept.push(Kept {
                disk,
                machines,
                damage,
            });
        }
    }

    fn boot_soon(&mut self, node: u64) {
        let wait = match self.is_healed {
            true => MILLI,
            false => self.rng.within(1, self.plan.downtime_us),
        };
        self.boot_at(node, self.now + wait);
    }

    // ---- disturbances ----

    fn disturb(&mut self, disturbance: Disturbance, long: u64) {
        self.disturbances.push(Some(disturbance));
        let disturbance = self.disturbances.len() as u32 - 1;
        self.push(self.now + long, Event::Calm { disturbance });
    }

    /// A disturbance is over.
    pub(super) fn calm(&mut self, disturbance: u32) {
        match self.disturbances[disturbance as usize].take() {
            None => {}
            Some(Disturbance::Blocked(pairs)) => {
                for (from, to) in pairs {
                    self.unblock(from, to);
                }
            }
            Some(Disturbance::FullDisk(node)) => {
                let host = &mut self.hosts[node as usize];
                host.disk.set_capacity(u64::MAX);
                host.is_disk_full = false;
            }
        }
    }

    /// Ends everything that is wrong, except what was destroyed.
    pub(super) fn heal(&mut self) {
        self.is_healed = true;
        for disturbance in 0..self.disturbances.len() {
            self.calm(disturbance as u32);
        }
        for node in 1..=self.plan.nodes {
            let host = &mut self.hosts[node as usize];
            host.unproven.take_if(|unproven| unproven.since.is_none());
            host.disk.heal();
            host.disk.cut_at(u64::MAX);
            (host.cut_at, host.cut_after_promise) = (None, false);
            host.paused_until = host.paused_until.min(self.now);
            host.stalled_until = host.stalled_until.min(self.now);
            host.drags_until = host.drags_until.min(self.now);
            if host.node.is_none() && !host.is_dead {
                self.boot_at(node, self.now + MILLI);
            } else {
                self.schedule(node);
            }
        }
        machine::end_poisons();
        for node in self.nodes_that_failed() {
            self.restart(node);
        }
        self.heal_network();
    }
}

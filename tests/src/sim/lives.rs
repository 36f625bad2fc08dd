//! The lives of a node: how it starts on what its disk holds, and what must be there. It must never start a node that was
//! destroyed for good.

use std::sync::Arc;

use polyraft::sim::{SimNode, SimPlace};
use polyraft::{CompletionQueue, GroupId, Life};

use super::checks::Failure;
use super::machine;
use super::network::Port;
use super::plan::MILLI;
use super::world::{Event, World};

impl World {
    /// Starts a node on what its disk holds.
    pub(super) fn boot(&mut self, id: u64) {
        let cuts_again = !self.is_healed
            && self.hosts[id as usize].life > 0
            && self.plan.fault_us > 0
            && self.rng.chance(80_000);
        if cuts_again {
            // Anywhere in what it did the last time, or soon.
            let host = &self.hosts[id as usize];
            let operations = self.rng.below(8.max(host.recovery_operations));
            let operations = self.hosts[id as usize].disk.operations() + operations;
            self.cut_power_at(id, operations);
        }
        let given = self.peers_to_open_with(id);
        let peers: Vec<_> = given.iter().map(|(peer, at)| (*peer, *at)).collect();
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
        let mut config = self.plan.config.clone();
        config.election.priority = self.plan.priorities[id as usize - 1];
        let place = SimPlace {
            disk: Arc::new(host.disk.clone()),
            path: &path,
            cluster: "sim",
            id,
            peers: &peers,
            config: &config,
            clock: Arc::clone(&host.clock),
        };
        let port = Arc::clone(&host.port);
        let before = host.disk.operations();
        let opened = SimNode::open(&place, |_, _| port as _);
        host.recovery_operations = host.disk.operations() - before;
        let is_cut = host.cut_at.is_some_and(|cut| host.disk.operations() >= cut);
        match opened {
            Ok(mut node) => {
                if self.trace.is_on() {
                    node.note_causes();
                }
                machine::remove_leftovers(id, |group, life| {
                    Life::new(life).is_some_and(|life| node.is_over(group, life))
                });
                host.turns = vec![u64::MAX; node.shards()];
                host.pumps = vec![u64::MAX; node.lanes()];
                host.tends = vec![u64::MAX; node.lanes()];
                host.works = vec![u64::MAX; node.workers()];
                host.node = Some(node);
            }
            Err(_) if is_cut => {
                self.peers.not_opened(id, &given);
                self.counts.failed_recoveries += 1;
                return self.power_cut(id);
            }
            Err(error) => {
                self.peers.not_opened(id, &given);
                return self.could_not_boot(id, &error.to_string());
            }
        }
        self.counts.restarts += u64::from(!is_first);
        self.trace.event(now, id, || "starts".to_owned());
        self.check_recovered(id);
        self.check_peers(id, given);
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
        self.look_at_disk(id);
        let host = &mut self.hosts[id as usize];
        self.trace
            .event(self.now, id, || format!("can't be started: {error}"));
        if host.is_disk_full || host.has_bad_disk {
            let at = self.now + 100 * MILLI;
            self.end_of_bad_disk(id);
            return self.boot_at(id, at);
        }
        if host.damage.may_stop_node() {
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
        if host.is_outcast {
            return;
        }
        let all = node.recovered();
        let mut verdict = Ok(());
        for (at, checks) in self.checks.iter_mut().enumerate() {
            let group = GroupId(at as u64 + 1);
            let found = all.binary_search_by_key(&group, |found| found.group);
            let found = found.ok().map(|at| all[at]);
            let over = node.over(group).map(|life| life.get());
            // What was hit has to be known as damaged, or be whole.
            let is_damaged = found.is_some_and(|found| found.fault.is_some());
            if is_damaged && host.damage.may_hit(group) {
                checks.damaged(id);
            } else {
                verdict = verdict.and_then(|()| checks.recovered(group, id, found, over));
            }
        }
        let has = |group| {
            let is_gone = node.removed_from(group).or(node.over(group));
            node.life(group).or(is_gone).is_some() || host.damage.may_hit(group)
        };
        let verdict = verdict.and_then(|()| self.splits.check_recovered(id, has));
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

    /// Adds what a node counted in its life.
    pub(super) fn count_transfers(&mut self, id: u64) {
        if let Some(node) = &self.hosts[id as usize].node {
            let counters = node.node().status().counters;
            self.counts.transferred += counters.snapshots_received;
            self.counts.resumed += counters.resumed_transfers;
            self.counts.repaired += counters.repairs;
        }
    }

    /// The node is gone, and with it everything that was in its memory.
    pub(super) fn drop_node(&mut self, id: u64) {
        self.count_transfers(id);
        // What it still did belongs to this life, not to the next one.
        self.look_at_machines();
        self.look_at_disk(id);
        self.trace.forget(id);
        let host = &mut self.hosts[id as usize];
        host.node = None;
        host.life += 1;
        host.paused_until = 0;
        host.cut_after_promise = false;
        host.unproven = None;
        self.clients_lost(id);
        self.forget_links_of(id);
    }
}

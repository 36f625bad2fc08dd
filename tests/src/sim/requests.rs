//! What operators ask of nodes: to hand over what they lead before they are stopped, and to take snapshots. It must hold every
//! answer against what is there, and nobody may be left without one.

use std::sync::Arc;
use std::time::Duration;

use polyraft::{Error, GroupId, Index, Life, Role, Term};
use polyraft_raft::LogPosition;
use polyraft_storage::sim::{Keep, KeepNames};
use polyraft_storage::{Disk, exported};

use super::checks::{Failure, Verdict, broken};
use super::machine;
use super::pending::Pending;
use super::world::{Phase, World};

/// A group that a node leads, in which life and in which term.
type Reign = (GroupId, Option<Life>, Term);

/// What was asked and not answered.
#[derive(Default)]
pub(super) struct Requests {
    snapshots: Pending<GroupId, LogPosition>,
    /// With what the node led when it was asked.
    drains: Pending<Vec<Reign>, u64>,
}

impl Requests {
    /// A node is gone, and with it what was asked of it.
    pub(super) fn lost(&mut self, node: u64) {
        self.snapshots.lost(node);
        self.drains.lost(node);
    }
}

impl World {
    /// Asks a node for snapshots of some groups.
    pub(super) fn ask_for_snapshots(&mut self, node: u64) -> bool {
        let groups = self.plan.members.len() as u64;
        for _ in 0..self.rng.within(1, 8) {
            let group = GroupId(self.rng.within(1, groups));
            let Some(sim) = &self.hosts[node as usize].node else {
                return false;
            };
            self.trace.group(self.now, node, group, || {
                "is asked for a snapshot".to_owned()
            });
            let handle = sim.node().group(group.0);
            let done = Box::pin(async move { handle.snapshot().await });
            self.requests.snapshots.push(node, group, done);
            self.poll_snapshots(node);
        }
        self.schedule(node);
        true
    }

    /// Looks whether snapshots are taken that a node was asked for.
    pub(super) fn poll_snapshots(&mut self, node: u64) {
        for (group, answer) in self.requests.snapshots.take_answers(node) {
            self.trace.group(self.now, node, group, || {
                format!("is done with its snapshot: {answer:?}")
            });
            if let Ok(last) = answer
                && last.index > Index::ZERO
                && !self.hosts[node as usize].is_outcast
            {
                self.counts.asked_snapshots += 1;
                let verdict = self.check_snapshot(node, group, last);
                self.judge(verdict);
            }
        }
    }

    /// A snapshot that a node says to have is of what was committed, and no power cut takes it away.
    fn check_snapshot(&mut self, id: u64, group: GroupId, last: LogPosition) -> Verdict {
        let host = &self.hosts[id as usize];
        let life = host.node.as_ref().and_then(|node| node.life(group));
        let Some(life) = life else {
            return Ok(()); // The replica has ended since.
        };
        let told = |what: String| {
            let what = format!("node {id} says that there is one of {last}, {what}");
            Err(broken("snapshots on request", group, what))
        };
        if !self.checks[group.0 as usize - 1]
            .of(life.get())
            .is_committed(last)
        {
            return told("which is not what was committed".to_owned());
        }
        let left = host
            .disk
            .after_power_cut_with(Keep::Nothing, KeepNames::Nothing);
        let left: Arc<dyn Disk> = Arc::new(left);
        let found = match exported::list(&left, &machine::data_dir(id)) {
            Ok(found) => found,
            Err(_) if host.has_bad_disk => return Ok(()),
            Err(error) => return told(format!("and none can be listed: {error}")),
        };
        let mut found = found.iter().filter(|file| file.meta.group == group);
        match found.any(|file| file.meta.last >= last) || host.damage.may_hit(group) {
            true => Ok(()),
            false => told("which is not durable".to_owned()),
        }
    }

    /// A node that is to be stopped is asked to hand over first what it leads.
    pub(super) fn begin_drain(&mut self, node: u64) -> bool {
        if self.requests.drains.is_asked(node) {
            return false;
        }
        let led = self.led_by(node);
        let most = self.plan.config.election.timeout_max.as_micros() as u64;
        let within = Duration::from_micros(self.rng.within(1, 4 * most));
        let Some(sim) = &self.hosts[node as usize].node else {
            return false;
        };
        let sim = sim.node().clone();
        let done = Box::pin(async move { sim.drain(within).await });
        self.requests.drains.push(node, led, done);
        // The question is put with the first look at the answer.
        self.poll_drains(node);
        self.schedule(node);
        true
    }

    /// Looks whether a node has handed over what it led, or has no more time for that. Then it is stopped.
    pub(super) fn poll_drains(&mut self, node: u64) {
        for (led, answer) in self.requests.drains.take_answers(node) {
            self.trace
                .event(self.now, node, || format!("is drained: {answer:?}"));
            if answer == Ok(0) {
                // What it was given since then does not count.
                let now = self.led_by(node);
                if let Some((group, _, term)) = led.iter().find(|led| now.contains(led)) {
                    let what = format!("node {node} was drained, and leads term {term} still");
                    self.fail(broken("drain", *group, what));
                }
                self.counts.drained += u64::from(!led.is_empty());
            }
            let may_stop = self.hosts[node as usize].unproven.is_none();
            if self.phase == Phase::Storm && may_stop && !matches!(answer, Err(Error::Closed)) {
                self.restart(node);
            }
        }
    }

    /// The groups that a node leads. A later life begins with the first term again.
    fn led_by(&self, node: u64) -> Vec<Reign> {
        let Some(sim) = &self.hosts[node as usize].node else {
            return Vec::new();
        };
        let groups = (1..=self.plan.members.len() as u64).map(GroupId);
        let replicas = groups.filter_map(|group| sim.replica(group));
        let led = replicas.filter(|(core, fault)| fault.is_none() && core.role() == Role::Leader);
        led.map(|(core, _)| (core.id(), sim.life(core.id()), core.term()))
            .collect()
    }

    /// Nobody waits for anything any more.
    pub(super) fn check_requests(&self) -> Verdict {
        let mut nodes = (1..=self.plan.nodes).filter(|id| {
            let host = &self.hosts[*id as usize];
            host.node.is_some() && !host.is_outcast
        });
        let waits =
            |id: &u64| self.requests.snapshots.is_asked(*id) || self.requests.drains.is_asked(*id);
        match nodes.find(waits) {
            None => Ok(()),
            Some(node) => Err(Failure {
                checker: "liveness",
                what: format!(
                    "node {node} never answered who asked for a snapshot, or to drain it"
                ),
                group: self.requests.snapshots.of(node).copied(),
            }),
        }
    }
}

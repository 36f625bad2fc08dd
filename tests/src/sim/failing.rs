//! State machines that fail: where that may be, and what has to follow from it. It must excuse no replica but the one whose state
//! machine failed, and that one only until its node is started again.

use std::collections::BTreeMap;

use polyraft::GroupId;
use polyraft_raft::Configuration;

use super::checks::{Verdict, broken};
use super::machine::{self, Applied, Call, Poison, Struck};
use super::plan::Fault;
use super::world::World;

/// All that is known of state machines that failed.
#[derive(Default)]
pub(super) struct Failing {
    /// By node, group and life: the life of the node in which its state machine failed.
    out: BTreeMap<(u64, GroupId, u32), u32>,
    /// By node and group: queries that failed and were not answered yet.
    queries: BTreeMap<(u64, GroupId), u64>,
}

impl World {
    /// Some state machines of a node are going to fail: never those of half of a group's voters.
    pub(super) fn poison_machines(&mut self, node: u64) -> bool {
        let groups = self.plan.members.len() as u64;
        let mut has_poisoned = false;
        for _ in 0..self.rng.within(1, 4) {
            let group = GroupId(self.rng.within(1, groups));
            let at = *self.rng.pick(&[
                Call::Change,
                Call::Change,
                Call::Change,
                Call::Query,
                Call::Snapshot,
            ]);
            let poison = Poison {
                at,
                spared: self.rng.within(0, 3),
                panics: self.rng.chance(500_000),
            };
            if at != Call::Change || self.may_lose(node, group) {
                self.trace
                    .group(self.now, node, group, || format!("gets {poison:?}"));
                machine::poison(node, group, poison);
                has_poisoned = true;
            }
        }
        has_poisoned
    }

    /// Whether more than half of the voters of a group go on if the state machine of one node fails.
    fn may_lose(&self, node: u64, group: GroupId) -> bool {
        let sim = self.hosts[node as usize].node.as_ref();
        let Some((core, None)) = sim.and_then(|sim| sim.replica(group)) else {
            return false;
        };
        let mut lost = machine::poisoned(group);
        lost.extend((1..=self.plan.nodes).filter(|other| self.is_out(*other, group)));
        lost.push(node);
        let members: &Configuration = core.configuration();
        let mut halves = [members.voters(), members.outgoing()].into_iter();
        halves.all(|half| {
            let count = half.iter().filter(|voter| lost.contains(&voter.0)).count();
            half.is_empty() || 2 * count < half.len()
        })
    }

    /// Whether the state machine of a replica has failed since its node was started.
    pub(super) fn is_out(&self, node: u64, group: GroupId) -> bool {
        let host = &self.hosts[node as usize];
        let life = host.node.as_ref().and_then(|sim| sim.life(group));
        let life = life.unwrap_or_default().get();
        self.failing.out.get(&(node, group, life)) == Some(&host.life)
    }

    /// The nodes that have to be started again for their state machines.
    pub(super) fn nodes_that_failed(&self) -> Vec<u64> {
        let groups = || (1..=self.plan.members.len() as u64).map(GroupId);
        let has_failed = |node: &u64| groups().any(|group| self.is_out(*node, group));
        (1..=self.plan.nodes).filter(has_failed).collect()
    }

    /// A state machine has failed.
    pub(super) fn machine_failed(&mut self, struck: Struck) {
        let Struck {
            node,
            group,
            life,
            at,
        } = struck;
        self.fired(Fault::Poison);
        self.trace
            .group(self.now, node, group, || format!("fails: {struck:?}"));
        match at {
            Call::Change => {
                self.counts.failed_changes += 1;
                let host = &self.hosts[node as usize];
                self.failing.out.insert((node, group, life), host.life);
            }
            Call::Query => {
                self.counts.failed_queries += 1;
                *self.failing.queries.entry((node, group)).or_default() += 1;
            }
            Call::Snapshot => self.counts.failed_snapshots += 1,
        }
    }

    /// A state machine was opened.
    pub(super) fn machine_opened(&mut self, node: u64, group: GroupId, life: u32) {
        let was_out = self.failing.out.remove(&(node, group, life));
        self.counts.returned += u64::from(was_out.is_some());
    }

    /// Who has failed takes nothing more.
    pub(super) fn check_not_out(&self, entry: &Applied) -> Verdict {
        let Applied {
            node, group, life, ..
        } = *entry;
        let host = &self.hosts[node as usize];
        if self.failing.out.get(&(node, group, life)) != Some(&host.life) {
            return Ok(());
        }
        let what = format!("its state machine failed, and goes on: {entry:?}");
        Err(broken("quarantine", group, what))
    }

    /// A query was answered with an error: one of the state machine.
    pub(super) fn query_failed(&mut self, node: u64, group: GroupId, why: &str) {
        let failed = self.failing.queries.get_mut(&(node, group));
        match failed.filter(|failed| **failed > 0 && why.contains(machine::POISONED)) {
            Some(failed) => *failed -= 1,
            None => {
                let what = format!("a query on node {node} failed, and no state machine: {why}");
                self.fail(broken("quarantine", group, what));
            }
        }
    }
}

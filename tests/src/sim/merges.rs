//! Groups that are merged while clients go on: who asks for it, which group has which key since, and what went over. It must never
//! route a key by anything but what a state machine has done.

use std::collections::BTreeMap;

use polyraft::sim::SimNode;
use polyraft::{Error, GroupId, Index, Life, Role};

use super::checks::{Verdict, broken};
use super::machine::{Applied, Registers, Taken, UNWANTED};
use super::pending::Pending;
use super::plan::Fault;
use super::world::{Host, Phase, World};

/// All that is known of merges.
#[derive(Default)]
pub(super) struct Merges {
    /// By source.
    merged: BTreeMap<GroupId, Merged>,
    /// Sources and targets.
    attempts: Pending<(GroupId, GroupId)>,
}

/// A group that is a part of another one.
#[derive(Clone, Copy, Debug)]
struct Merged {
    taken: Taken,
    /// In which life of its id. A request to create it that has waited for a node may begin another one afterwards.
    life: Life,
    /// The last entry that any of its state machines took before.
    last: Index,
}

impl Merges {
    /// The group that a group is a part of since it was merged.
    pub(super) fn target_of(&self, group: GroupId) -> Option<GroupId> {
        self.merged.get(&group).map(|merged| merged.taken.target)
    }

    /// The groups that were merged into a group.
    pub(super) fn sources_of(&self, target: GroupId) -> impl Iterator<Item = GroupId> + '_ {
        let merged = self.merged.iter();
        merged
            .filter(move |(_, merged)| merged.taken.target == target)
            .map(|(source, _)| *source)
    }

    /// Where a group took another one the last time.
    pub(super) fn last_into(&self, target: GroupId) -> Index {
        let merged = self.merged.values().map(|merged| merged.taken);
        let merged = merged.filter(|taken| taken.target == target);
        merged.map(|taken| taken.index).max().unwrap_or(Index::ZERO)
    }

    /// How many groups were merged into others.
    pub(super) fn count(&self, is_counted: impl Fn(GroupId) -> bool) -> usize {
        self.merged
            .keys()
            .filter(|source| is_counted(**source))
            .count()
    }

    /// Whether nobody waits for a merge.
    pub(super) fn are_over(&self) -> bool {
        self.attempts.is_empty()
    }

    /// A node is gone, and with it what was asked of it.
    pub(super) fn lost(&mut self, node: u64) {
        self.attempts.lost(node);
    }

    /// A state machine of a group took an entry: not behind the place at which the group became a part of another.
    pub(super) fn check_applied(&self, entry: &Applied) -> Verdict {
        match self.merged.get(&entry.group) {
            Some(merged) if entry.index > merged.last => {
                let what = format!("it is a part of {:?}, and goes on: {entry:?}", merged.taken);
                Err(broken("merged groups", entry.group, what))
            }
            _ => Ok(()),
        }
    }
}

impl World {
    /// Asks a node to merge some groups that it leads.
    pub(super) fn ask_for_merge(&mut self, node: u64) -> bool {
        let Some(sim) = &self.hosts[node as usize].node else {
            return false;
        };
        let groups = (1..=self.plan.members.len() as u64).map(GroupId);
        let groups = groups.filter(|group| self.plan.splits(self.splits.root_of(*group)));
        let is_there = |group: &GroupId| {
            self.splits.has_begun(*group)
                && self.merges.target_of(*group).is_none()
                && !self.splits.is_wanted(*group)
        };
        let there: Vec<GroupId> = groups.filter(is_there).collect();
        let leads = |group: &&GroupId| {
            sim.replica(**group).map(|(core, _)| core.role()) == Some(Role::Leader)
        };
        let led = there.iter().filter(leads).copied();
        let siblings = |source: GroupId| -> Vec<GroupId> {
            let root = self.splits.root_of(source);
            let is_sibling =
                |group: &&GroupId| **group != source && self.splits.root_of(**group) == root;
            there.iter().filter(is_sibling).copied().collect()
        };
        let pairs = led.map(|source| (source, siblings(source)));
        let pairs: Vec<(GroupId, Vec<GroupId>)> =
            pairs.filter(|(_, siblings)| !siblings.is_empty()).collect();
        if pairs.is_empty() {
            return false;
        }
        for _ in 0..self.rng.within(1, 2) {
            let (source, siblings) = self.rng.pick(&pairs);
            // What belonged together once is put together again more often than other groups.
            let parent = self.splits.parent_of(*source);
            let parent = parent.filter(|parent| siblings.contains(parent));
            let target = match parent {
                Some(parent) if self.rng.chance(500_000) => parent,
                _ => *self.rng.pick(siblings),
            };
            self.ask_to_merge(node, *source, target);
        }
        self.schedule(node);
        true
    }

    fn ask_to_merge(&mut self, node: u64, source: GroupId, target: GroupId) {
        let argument: &'static [u8] = if self.rng.chance(50_000) {
            UNWANTED
        } else {
            b""
        };
        let Some(sim) = &self.hosts[node as usize].node else {
            return;
        };
        self.trace.group(self.now, node, source, || {
            format!("is asked to merge it into {target}")
        });
        let handle = sim.node().group(source.0);
        let done = Box::pin(async move { handle.merge_into(target.0, argument).await.map(|_| ()) });
        self.merges.attempts.push(node, (source, target), done);
        self.poll_merges(node);
    }

    /// Looks whether what a node was asked for is done.
    pub(super) fn poll_merges(&mut self, node: u64) {
        for ((source, target), done) in self.merges.attempts.take_answers(node) {
            self.trace.group(self.now, node, source, || {
                format!("is done with the merge into {target}: {done:?}")
            });
            match done {
                Ok(()) if self.merges.target_of(source) != Some(target) => {
                    let what = format!("it was said to be merged into {target}");
                    self.fail(broken("acknowledged merges", source, what));
                }
                Ok(()) => self.counts.merges += 1,
                Err(Error::Merge { .. }) => self.counts.unmerged += 1,
                Err(_) => {}
            }
        }
    }

    /// A state machine took the state of a group.
    pub(super) fn group_is_merged(&mut self, taken: Taken) {
        let Taken {
            source,
            target,
            index,
            digest,
            ..
        } = taken;
        if let Some(Merged { taken: first, .. }) = self.merges.merged.get(&source) {
            if (first.target, first.index, first.digest) != (target, index, digest) {
                let what = format!("it was merged twice, or differently: {first:?} and {taken:?}");
                self.fail(broken("merged groups", source, what));
            }
            return;
        }
        let at = source.0 as usize - 1;
        let newest = self.checks[at].newest_applied(0);
        if newest.map_or(0, |newest| newest.digest) != digest {
            let what = format!("{taken:?}, but {newest:?} was applied");
            self.fail(broken("merged groups", source, what));
        }
        let last = newest.map_or(Index::ZERO, |newest| newest.index);
        let nodes = self.hosts.iter().filter_map(|host| host.node.as_ref());
        let life = nodes.filter_map(|node| node.life(source)).max();
        let life = life.unwrap_or_default();
        self.merges
            .merged
            .insert(source, Merged { taken, life, last });
        let root = self.splits.root_of(source);
        let keys = self.splits.keys_of(source);
        self.splits.keys_go(source, target);
        self.clients.has_served[at] = true;
        if !keys.is_empty() && self.phase == Phase::Storm {
            let key = *self.rng.pick(&keys);
            self.clients_want(root, key);
            self.hurry_late(target);
            if self.rng.chance(500_000) {
                self.disturb_leader_of(source);
            }
        }
    }

    /// Something happens to whoever leads a group that has become a part of another one, perhaps before that is known there.
    fn disturb_leader_of(&mut self, source: GroupId) {
        let leads = |host: &Host| {
            let replica = host.node.as_ref()?.replica(source)?.0;
            (replica.role() == Role::Leader).then_some(())
        };
        let Some(node) = self.hosts.iter().position(|host| leads(host).is_some()) else {
            return;
        };
        let faults = [
            Fault::Cut,
            Fault::OneWayCut,
            Fault::Mute,
            Fault::Isolate,
            Fault::Slow,
        ];
        let (fault, node) = (*self.rng.pick(&faults), node as u64);
        self.trace
            .event(self.now, node, || format!("FAULT {fault:?} after a merge"));
        if self.disturb_network(fault, node) {
            self.fired(fault);
        }
    }

    /// A group that waits for what becomes of its merge, or that was merged and has not ended everywhere.
    pub(super) fn frozen_group(&self) -> Option<GroupId> {
        let mut groups = (1..=self.plan.members.len() as u64).map(GroupId);
        groups.find(|group| {
            let is_merged = self.merges.target_of(*group).is_some();
            let waits = |node: &SimNode<Registers>| node.merging_into(*group).is_some();
            self.standing().any(|host| match is_merged {
                true => self.is_left(host, *group),
                false => {
                    // What is quarantined hears of nothing, and may never have been repaired.
                    host.node.as_ref().is_some_and(waits) && !host.has_damaged(*group)
                }
            })
        })
    }

    /// Whether a later life has begun of a group that was merged.
    pub(super) fn lives_again(&self, source: GroupId) -> bool {
        let merged = self.merges.merged.get(&source);
        let nodes = self.hosts.iter().filter_map(|host| host.node.as_ref());
        let mut lives = nodes.filter_map(|node| node.life(source));
        merged.is_some_and(|merged| lives.any(|life| life > merged.life))
    }

    /// Whether a replica is here of a group that was merged, in the life in which it was.
    fn is_left(&self, host: &Host, source: GroupId) -> bool {
        // It ends with what its target applies.
        let mut concerned = [Some(source), self.merges.target_of(source)].into_iter();
        let may_be_hit = concerned.any(|group| group.is_some_and(|one| host.damage.may_hit(one)));
        let node = host.node.as_ref();
        let node = node.filter(|_| !host.is_outcast && !may_be_hit);
        let merged = self.merges.merged.get(&source);
        let over = merged.map(|merged| merged.life);
        let here = node.and_then(|node| node.life(source));
        here.is_some() && over.is_some_and(|over| here <= Some(over))
    }

    /// No replica is left of groups that were merged.
    pub(super) fn check_merged(&self) -> Verdict {
        for source in self.merges.merged.keys() {
            if self.standing().any(|host| self.is_left(host, *source)) {
                let what = "a node has a replica of it still".to_owned();
                return Err(broken("merged groups", *source, what));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::calm;
    use super::*;

    #[test]
    fn a_merge_that_was_confirmed_and_not_made_is_noticed() {
        let (source, target) = (GroupId(1), GroupId(2));
        let confirmed = |world: &mut World, target| {
            let done = Box::pin(async { Ok(()) });
            world.merges.attempts.push(1, (source, target), done);
            world.poll_merges(1);
            world.broken_rule()
        };
        let mut world = calm();
        assert_eq!(confirmed(&mut world, target), Some("acknowledged merges"));
        world.group_is_merged(Taken {
            node: 1,
            source,
            target,
            index: Index(4),
            digest: 0,
        });
        assert_eq!(confirmed(&mut world, target), None);
        let other = GroupId(3);
        assert_eq!(confirmed(&mut world, other), Some("acknowledged merges"));
        assert_eq!(world.counts.merges, 1);
    }
}

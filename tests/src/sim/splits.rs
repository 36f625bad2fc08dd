//! Groups that are split while clients go on: who asks for it, which group has which key since, and how each child began. It must
//! never route a key by anything but what a state machine has done.

use std::collections::{BTreeMap, BTreeSet};

use polyraft::sim::SimNode;
use polyraft::{GroupId, Index, Role};

use super::checks::{Verdict, broken};
use super::machine::{Born, Registers, Shed};
use super::pending::Pending;
use super::plan::{Fault, MILLI, Plan};
use super::world::{Event, Phase, World};

/// All that is known of splits.
pub(super) struct Splits {
    /// Groups behind these begin by a split.
    roots: u64,
    keys: u8,
    /// How each child began, as the first of its replicas told.
    born: BTreeMap<GroupId, Born>,
    /// Which id a parent may use for a child: nobody else uses it.
    reserved: BTreeMap<GroupId, GroupId>,
    /// By the group that had all keys at first, and key: who has it now.
    holders: BTreeMap<(GroupId, u8), GroupId>,
    /// Children that a node made its part of: who became a member of the parent later does not.
    made: BTreeSet<(u64, GroupId)>,
    /// By group and key: to which child the key went the last time, and where; unless the group has gone elsewhere with it.
    lost: BTreeMap<(GroupId, u8), (GroupId, Index)>,
    /// By root and key: which group had the key before it went to another one with everything.
    came_from: BTreeMap<(GroupId, u8), GroupId>,
    /// Replicas of children that have nothing of what their group began with.
    blank: BTreeMap<GroupId, BTreeSet<u64>>,
    /// Children that were durable on a node when their parents let go of them.
    kept: BTreeSet<(u64, GroupId)>,
    /// Parents and children.
    attempts: Pending<(GroupId, GroupId)>,
}

impl Splits {
    pub(super) fn new(plan: &Plan) -> Self {
        Splits {
            roots: plan.roots,
            keys: plan.keys,
            born: BTreeMap::new(),
            reserved: BTreeMap::new(),
            holders: BTreeMap::new(),
            made: BTreeSet::new(),
            lost: BTreeMap::new(),
            came_from: BTreeMap::new(),
            blank: BTreeMap::new(),
            kept: BTreeSet::new(),
            attempts: Pending::default(),
        }
    }

    /// Whether a group is there, or is to be there from the beginning.
    pub(super) fn has_begun(&self, group: GroupId) -> bool {
        group.0 <= self.roots || self.born.contains_key(&group)
    }

    /// The group that a group was split off.
    pub(super) fn parent_of(&self, group: GroupId) -> Option<GroupId> {
        self.born.get(&group).map(|born| born.parent)
    }

    /// The group that had all keys of a group at first.
    pub(super) fn root_of(&self, mut group: GroupId) -> GroupId {
        while let Some(parent) = self.parent_of(group) {
            group = parent;
        }
        group
    }

    /// Who has a key of a root now.
    pub(super) fn holder(&self, root: GroupId, key: u8) -> GroupId {
        self.holders.get(&(root, key)).copied().unwrap_or(root)
    }

    /// All keys of a group are those of another one now.
    pub(super) fn keys_go(&mut self, source: GroupId, target: GroupId) {
        let root = self.root_of(source);
        for key in 0..=u8::MAX {
            if self.holder(root, key) == source {
                self.holders.insert((root, key), target);
                self.came_from.insert((root, key), source);
                self.lost.remove(&(source, key));
            }
        }
    }

    /// The group that had a key and has gone to another one with it, the last time that it did.
    pub(super) fn came_from(&self, root: GroupId, key: u8) -> Option<GroupId> {
        self.came_from.get(&(root, key)).copied()
    }

    /// The child that has a key of a group, or had it before it gave it away in turn, and where it began.
    pub(super) fn child_with(&self, group: GroupId, key: u8) -> Option<(GroupId, Index)> {
        self.lost.get(&(group, key)).copied()
    }

    /// The keys of clients that a group has.
    pub(super) fn keys_of(&self, group: GroupId) -> Vec<u8> {
        let root = self.root_of(group);
        let mut keys: Vec<u8> = (0..self.keys).collect();
        keys.retain(|key| self.holder(root, *key) == group);
        keys
    }

    /// Whether nobody waits for a split.
    pub(super) fn are_over(&self) -> bool {
        self.attempts.is_empty()
    }

    /// Whether somebody still waits for a child to be split off. If it were merged away meanwhile, its id would be free again, and
    /// rightly be used for another child.
    pub(super) fn is_wanted(&self, child: GroupId) -> bool {
        self.attempts.all().any(|(_, wanted)| *wanted == child)
    }

    /// A node is gone, and with it what was asked of it.
    pub(super) fn lost(&mut self, node: u64) {
        self.attempts.lost(node);
    }

    /// Whether a node has lost a child that was durable there.
    pub(super) fn check_recovered(&self, node: u64, has: impl Fn(GroupId) -> bool) -> Verdict {
        let kept = self.kept.iter().filter(|(at, _)| *at == node);
        let lost = kept.map(|(_, child)| *child).find(|child| !has(*child));
        match lost {
            None => Ok(()),
            Some(child) => Err(broken(
                "durable children",
                child,
                format!("node {node} has let go of what it split off, and finds no child"),
            )),
        }
    }
}

impl World {
    /// Asks a node to split some groups that it leads.
    pub(super) fn ask_for_split(&mut self, node: u64) -> bool {
        let Some(sim) = &self.hosts[node as usize].node else {
            return false;
        };
        let groups = (1..=self.plan.members.len() as u64).map(GroupId);
        let leads = |group: &GroupId| {
            let core = sim.replica(*group).map(|(core, _)| core.role());
            core == Some(Role::Leader) && self.plan.splits(self.splits.root_of(*group))
        };
        let led: Vec<GroupId> = groups.filter(leads).collect();
        let mut has_asked = false;
        for _ in 0..self.rng.within(1, 4).min(led.len() as u64) {
            let (parent, at) = (*self.rng.pick(&led), self.rng.bits());
            has_asked |= self.ask_to_split(node, parent, at);
        }
        self.schedule(node);
        has_asked
    }

    fn ask_to_split(&mut self, node: u64, parent: GroupId, at: u64) -> bool {
        let Some(sim) = &self.hosts[node as usize].node else {
            return false;
        };
        let mut spare = (self.plan.roots + 1..=self.plan.members.len() as u64).map(GroupId);
        let is_free = |child: &GroupId| {
            let reserved = self.splits.reserved.get(child);
            !self.splits.born.contains_key(child) && reserved.is_none_or(|by| *by == parent)
        };
        let Some(child) = spare.find(is_free) else {
            return false;
        };
        let keys = self.splits.keys_of(parent);
        // With the first key that the group has nothing can be split off: it is refused.
        let Some(key) = keys.get(at as usize % keys.len().max(1)).copied() else {
            return false;
        };
        self.splits.reserved.insert(child, parent);
        self.trace.group(self.now, node, parent, || {
            format!("is asked to split {child} off from key {key}")
        });
        let handle = sim.node().group(parent.0);
        let done = Box::pin(async move { handle.split(child.0, vec![key]).await.map(|_| ()) });
        self.splits.attempts.push(node, (parent, child), done);
        self.poll_splits(node);
        true
    }

    /// Looks whether what a node was asked for is done.
    pub(super) fn poll_splits(&mut self, node: u64) {
        for ((parent, child), done) in self.splits.attempts.take_answers(node) {
            self.trace.group(self.now, node, parent, || {
                format!("is done with the split of {child}: {done:?}")
            });
            match done {
                Ok(()) if self.splits.parent_of(child) != Some(parent) => {
                    let what = format!("{child} was said to be split off");
                    self.fail(broken("acknowledged splits", parent, what));
                }
                Ok(()) => self.counts.splits += 1,
                Err(_) => {}
            }
        }
    }

    /// A state machine gave a part of its state.
    pub(super) fn child_is_born(&mut self, born: Born) {
        let Born {
            parent,
            child,
            index,
            digest,
            ..
        } = born;
        self.splits.made.insert((born.node, child));
        match self.splits.born.get(&child) {
            None => {
                self.splits.born.insert(child, born.clone());
                let root = self.splits.root_of(child);
                for key in born.first..=u8::MAX {
                    if self.splits.holder(root, key) == parent {
                        self.splits.holders.insert((root, key), child);
                        self.splits.lost.insert((parent, key), (child, index));
                    }
                }
                let (at, of) = (child.0 as usize - 1, parent.0 as usize - 1);
                self.plan.members[at] = self.plan.members[of].clone();
                self.plan.churns[at] = self.plan.churns[of];
                self.checks[at].of(0).begin_at(&born);
                self.clients.has_served[at] = false;
                if self.is_healed {
                    let (client, step) = self.clients.finisher(child);
                    let at = self.now + MILLI;
                    self.push(at, Event::Client { client, step });
                }
            }
            Some(first) if (first.parent, first.index, first.digest) == (parent, index, digest) => {
            }
            Some(first) => {
                let what = format!("its replicas begin differently: {first:?} and {born:?}");
                self.fail(broken("beginnings", child, what));
            }
        }
    }

    /// A replica of a child has nothing of it. In some worlds whoever made the child first is cut off once most members are so:
    /// they could elect each other.
    pub(super) fn child_is_blank(&mut self, node: u64, child: GroupId) {
        let Some(born) = self.splits.born.get(&child) else {
            return;
        };
        let maker = born.node;
        let most = self.plan.members_of(child).len() / 2 + 1;
        let blank = self.splits.blank.entry(child).or_default();
        if !blank.insert(node) || blank.len() != most || self.phase != Phase::Storm {
            return;
        }
        if self.plan.orphans_children {
            let alone = self.isolated(maker);
            self.cut(alone, self.plan.disturbance_us);
            self.fired(Fault::Isolate);
        }
    }

    /// A state machine has let go of a part.
    pub(super) fn part_is_shed(&mut self, shed: Shed) {
        let Shed { node, child, .. } = shed;
        let host = &self.hosts[node as usize];
        let has = |sim: &SimNode<Registers>| sim.life(child).is_some();
        let has_it =
            host.node.as_ref().is_some_and(has) || self.splits.made.contains(&(node, child));
        if !host.is_outcast && host.node.is_some() && has_it {
            self.splits.kept.insert((node, child));
        }
    }

    /// A client was told that its operation is at `index`.
    pub(super) fn check_acknowledged(&self, group: GroupId, index: Index, request: u64) -> Verdict {
        // What a group answers from the sessions that it was given happened in its parent, or in what was merged into it.
        let (mut next, mut seen) = (vec![group], BTreeSet::new());
        let mut verdict = Ok(());
        while let Some(group) = next.pop() {
            if !seen.insert(group) {
                continue;
            }
            let checks = &self.checks[group.0 as usize - 1];
            let found = checks.acknowledged(group, index, request);
            if found.is_ok() {
                return found;
            }
            verdict = verdict.and(found);
            next.extend(self.splits.parent_of(group));
            next.extend(self.merges.sources_of(group));
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::calm;
    use super::*;

    const PARENT: GroupId = GroupId(1);
    const CHILD: GroupId = GroupId(10);

    /// What the state machine of a node tells that gave a part of its state.
    fn born(node: u64) -> Born {
        Born {
            node,
            parent: PARENT,
            child: CHILD,
            index: Index(4),
            first: b'm',
            digest: 7,
        }
    }

    #[test]
    fn replicas_of_a_child_that_begin_differently_are_noticed() {
        let other_state = Born {
            digest: 8,
            ..born(2)
        };
        let other_place = Born {
            index: Index(5),
            ..born(2)
        };
        let other_parent = Born {
            parent: GroupId(2),
            ..born(2)
        };
        for (second, is_broken) in [
            (born(2), false),
            (other_state, true),
            (other_place, true),
            (other_parent, true),
        ] {
            let mut world = calm();
            world.child_is_born(born(1));
            assert_eq!(world.broken_rule(), None);
            world.child_is_born(second.clone());
            let rule = is_broken.then_some("beginnings");
            assert_eq!(world.broken_rule(), rule, "{second:?}");
        }
    }

    #[test]
    fn a_split_that_was_confirmed_and_made_no_child_is_noticed() {
        let confirmed = |world: &mut World, parent| {
            let done = Box::pin(async { Ok(()) });
            world.splits.attempts.push(1, (parent, CHILD), done);
            world.poll_splits(1);
            world.broken_rule()
        };
        let mut world = calm();
        assert_eq!(confirmed(&mut world, PARENT), Some("acknowledged splits"));
        world.child_is_born(born(1));
        assert_eq!(confirmed(&mut world, PARENT), None);
        let other = GroupId(2);
        assert_eq!(confirmed(&mut world, other), Some("acknowledged splits"));
        assert_eq!(world.counts.splits, 1);
    }
}

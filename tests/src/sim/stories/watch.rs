//! What nodes do that is worth telling: who leads, which replicas begin and end, freeze, are out of service, come from a snapshot.
//! It must only look.

use std::collections::BTreeMap;

use polyraft::sim::SimNode;
use polyraft::{GroupId, Index, Life, NodeId, Role, Term};
use polyraft_raft::{Configuration, Group};

use super::super::machine::Registers;
use super::super::world::World;

/// What was last seen of all nodes.
pub(super) struct Watch {
    /// By id; number 0 is nobody.
    nodes: Vec<Seen>,
    /// The members of each life of a group, as its leader had them.
    members: BTreeMap<(GroupId, Life), String>,
    /// The groups that are parts of others.
    merged: BTreeMap<GroupId, GroupId>,
}

/// What was last seen of a node.
#[derive(Clone, Default)]
struct Seen {
    is_up: bool,
    /// Which life of each group has a replica here; that of a node that is down is on its disk.
    lives: BTreeMap<GroupId, Life>,
    /// How the replicas that are open stood.
    stood: BTreeMap<GroupId, Stand>,
    /// Snapshots from other nodes that were told of.
    transferred: u64,
    /// Those that had gone on after they were interrupted.
    resumed: u64,
}

/// How a replica stands.
#[derive(Clone, PartialEq, Eq)]
struct Stand {
    leads: Option<Term>,
    base: Index,
    last: Index,
    fault: Option<String>,
    frozen_for: Option<GroupId>,
}

impl Watch {
    pub(super) fn new(nodes: u64) -> Watch {
        Watch {
            nodes: vec![Seen::default(); nodes as usize + 1],
            members: BTreeMap::new(),
            merged: BTreeMap::new(),
        }
    }

    /// Tells what has changed since the last look.
    pub(super) fn look(&mut self, world: &World, lines: &mut Vec<String>) {
        for group in groups(world) {
            let target = world.merges.target_of(group);
            if let Some(target) = target.filter(|_| !self.merged.contains_key(&group)) {
                self.merged.insert(group, target);
                lines.push(format!("{group} is a part of {target}"));
            }
        }
        for (id, host) in world.hosts.iter().enumerate().skip(1) {
            let seen = &mut self.nodes[id];
            let is_up = host.node.is_some();
            if seen.is_up != is_up {
                let word = if is_up { "up" } else { "down" };
                lines.push(format!("n{id}: is {word}"));
                (seen.is_up, seen.stood) = (is_up, BTreeMap::new());
                (seen.transferred, seen.resumed) = (0, 0);
            }
            let Some(node) = &host.node else { continue };
            for group in groups(world) {
                let mut tell = |what: String| lines.push(format!("n{id}: {group} {what}"));
                seen.look_at_life(node, group, &mut tell);
                seen.look_at_replica(node, group, &mut tell);
                let replica = node.replica(group);
                if let Some((core, _)) = replica.filter(|(core, fault)| leads(core, *fault)) {
                    let members = members(core.configuration());
                    let life = node.life(group).unwrap_or_default();
                    let before = self.members.insert((group, life), members.clone());
                    if before.is_some_and(|before| before != members) {
                        tell(format!("has {members}"));
                    }
                }
            }
        }
    }
}

impl Seen {
    fn look_at_life(
        &mut self,
        node: &SimNode<Registers>,
        group: GroupId,
        tell: &mut impl FnMut(String),
    ) {
        let life = node.life(group);
        let before = self.lives.get(&group).copied();
        if life == before {
            return;
        }
        self.stood.remove(&group);
        if before.is_some() {
            self.lives.remove(&group);
            tell(format!("is gone{}", why_gone(node, group)));
        }
        if let Some(life) = life {
            self.lives.insert(group, life);
            tell(format!("begins{}", told_life(life)));
        }
    }

    fn look_at_replica(
        &mut self,
        node: &SimNode<Registers>,
        group: GroupId,
        tell: &mut impl FnMut(String),
    ) {
        let Some((core, fault)) = node.replica(group) else {
            self.stood.remove(&group);
            return;
        };
        let now = Stand {
            leads: leads(core, fault).then_some(core.term()),
            base: core.base().index,
            last: core.last().index,
            fault: fault.map(str::to_owned),
            frozen_for: node.merging_into(group),
        };
        let before = self.stood.insert(group, now.clone());
        if before.as_ref() == Some(&now) {
            return;
        }
        let before = before.unwrap_or(Stand {
            leads: None,
            base: now.base,
            last: now.last,
            fault: None,
            frozen_for: None,
        });
        if now.base > before.last {
            let has_come = node.node().status().counters.snapshots_received > self.transferred;
            self.transferred += u64::from(has_come);
            let resumed = node.node().status().counters.resumed_transfers;
            let from = match has_come {
                true if resumed > self.resumed => " from another node, which went on where it was",
                true => " from another node",
                false => "",
            };
            self.resumed = resumed;
            tell(format!("has the state through {}{from}", now.base));
        } else if now.base > before.base {
            tell(format!("drops its log through {}", now.base));
        }
        match (before.frozen_for, now.frozen_for) {
            (None, Some(target)) => tell(format!("is frozen for {target}")),
            (Some(_), None) => tell("goes on".to_owned()),
            _ => {}
        }
        match (&before.fault, &now.fault) {
            (None, Some(fault)) => {
                // Where in which file is no part of a story.
                let what = fault.rsplit(": ").next().unwrap_or(fault);
                tell(format!("is out of service: {what}"));
            }
            (Some(_), None) => tell("is in service again".to_owned()),
            _ => {}
        }
        match (before.leads, now.leads) {
            (before, Some(term)) if before != Some(term) => tell(format!("leads term {}", term.0)),
            (Some(_), None) => tell("leads no more".to_owned()),
            _ => {}
        }
    }
}

/// Every node with its replicas, the groups that it lists, and what it knows of those that are over.
pub(super) fn show(world: &World) -> Vec<String> {
    let mut lines = Vec::new();
    for (id, host) in world.hosts.iter().enumerate().skip(1) {
        let Some(node) = &host.node else {
            lines.push(format!("n{id} is down"));
            continue;
        };
        let listed = node.node().groups(0, usize::MAX);
        let mut told = match listed.is_empty() {
            true => " has no groups".to_owned(),
            false => format!(" has groups{}", ids(listed.iter().map(|group| group.0))),
        };
        for group in groups(world) {
            if node.life(group).is_none() {
                let why = why_gone(node, group);
                if !why.is_empty() {
                    told += &format!("; {group} is gone{why}");
                }
            }
        }
        lines.push(format!("n{id}{told}"));
        for group in listed {
            lines.push(format!("n{id} {group}{}", told_replica(node, group)));
        }
    }
    lines
}

fn told_replica(node: &SimNode<Registers>, group: GroupId) -> String {
    let life = told_life(node.life(group).unwrap_or_default());
    let Some((core, fault)) = node.replica(group) else {
        return format!("{life} is not open");
    };
    let term = core.term().0;
    let stands = match (core.role(), core.leader()) {
        (Role::Leader, _) if fault.is_some() => format!("led term {term}"),
        (Role::Leader, _) => format!("leads term {term} with {}", members(core.configuration())),
        (_, Some(leader)) => format!("follows {leader} in term {term}"),
        _ => format!("knows no leader in term {term}"),
    };
    let frozen = node.merging_into(group);
    let frozen = frozen.map(|target| format!(", frozen for {target}"));
    let returning = core.returning();
    let returning = returning.map(|index| format!(", votes for less again from {index} on"));
    format!(
        "{life} {stands}, last {} committed {} applied {}{}{}{}",
        core.last().index,
        core.committed(),
        core.applied(),
        frozen.unwrap_or_default(),
        returning.unwrap_or_default(),
        fault.map_or("", |_| ", out of service"),
    )
}

fn groups(world: &World) -> impl Iterator<Item = GroupId> + use<> {
    (1..=world.plan.members.len() as u64).map(GroupId)
}

/// A replica that is out of service stays as it was, and leads nothing.
fn leads(core: &Group, fault: Option<&str>) -> bool {
    core.role() == Role::Leader && fault.is_none()
}

/// Why a node has no replica of a group, if it had one.
fn why_gone(node: &SimNode<Registers>, group: GroupId) -> String {
    match (node.removed_from(group), node.over(group)) {
        (Some(life), _) => format!(", removed{}", told_life(life)),
        (None, Some(life)) => format!(", over{}", told_life(life)),
        (None, None) => String::new(),
    }
}

/// The first life of an id goes without saying.
fn told_life(life: Life) -> String {
    match life.get() {
        0 => String::new(),
        number => format!(" in life {number}"),
    }
}

fn members(members: &Configuration) -> String {
    let list = |nodes: &[NodeId]| ids(nodes.iter().map(|node| node.0));
    let mut told = format!("voters{}", list(members.voters()));
    if members.is_joint() {
        told += &format!(", before{}", list(members.outgoing()));
    }
    if !members.learners().is_empty() {
        told += &format!(", learners{}", list(members.learners()));
    }
    if let Some(node) = members.preferred() {
        told += &format!(", prefers {}", node.0);
    }
    told
}

pub(super) fn ids(ids: impl Iterator<Item = u64>) -> String {
    ids.map(|id| format!(" {id}")).collect()
}

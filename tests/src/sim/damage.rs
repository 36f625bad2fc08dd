//! What faults have hit of a node's log: what a rule may excuse there, and nothing else. It must never excuse a group of which
//! no fault has hit anything.

use std::collections::BTreeSet;

use polyraft::{Config, GroupId};
use polyraft_raft::shard_of;

/// What may be damaged of a node's log.
#[derive(Clone, Debug)]
pub(super) struct Damage {
    shards: usize,
    lanes: usize,
    /// Groups of which the payload of a record was hit.
    groups: BTreeSet<GroupId>,
    /// Lanes in which something was hit that may concern any of their groups, or that nothing says the groups of.
    hit_lanes: BTreeSet<usize>,
}

impl Damage {
    /// Nothing is damaged yet.
    pub(super) fn new(config: &Config) -> Self {
        Damage {
            shards: config.shards.count as usize,
            lanes: config.wal.lanes as usize,
            groups: BTreeSet::new(),
            hit_lanes: BTreeSet::new(),
        }
    }

    /// The payload of one of a group's records was hit.
    pub(super) fn hit_group(&mut self, group: GroupId) {
        self.groups.insert(group);
    }

    /// Something else of a lane was hit.
    pub(super) fn hit_lane(&mut self, lane: usize) {
        self.hit_lanes.insert(lane);
    }

    /// Whether nothing was hit.
    pub(super) fn is_none(&self) -> bool {
        self.groups.is_empty() && self.hit_lanes.is_empty()
    }

    /// Whether more than the records of single groups may be lost: then the node may stop, and may not start again.
    pub(super) fn may_stop_node(&self) -> bool {
        !self.hit_lanes.is_empty()
    }

    /// Whether a group's replica may be taken out of service for it. Damage in front of a checkpoint is found when it is read, and
    /// what a misdirected write has hit, after the next power cut: a start that finds nothing says nothing.
    pub(super) fn may_hit(&self, group: GroupId) -> bool {
        let lane = shard_of(group, self.shards) % self.lanes;
        self.groups.contains(&group) || self.hit_lanes.contains(&lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_hit_is_excused() {
        let mut config = Config::default();
        (config.shards.count, config.wal.lanes) = (4, 2);
        let groups = || (1..=64).map(GroupId);
        let mut damage = Damage::new(&config);
        assert!(damage.is_none() && !groups().any(|group| damage.may_hit(group)));
        damage.hit_group(GroupId(7));
        let hit: Vec<_> = groups().filter(|group| damage.may_hit(*group)).collect();
        assert_eq!(hit, [GroupId(7)]);
        assert!(!damage.is_none() && !damage.may_stop_node());
        let lane = shard_of(GroupId(7), 4) % 2;
        damage.hit_lane(1 - lane);
        let spared = groups().filter(|group| !damage.may_hit(*group));
        let is_in_lane = |group: &GroupId| shard_of(*group, 4) % 2 == lane && group.0 != 7;
        assert!(spared.eq(groups().filter(is_in_lane)));
        assert!(damage.may_stop_node());
    }
}

//! Peers that come and go while the node runs, as a shard sees them.
//! It must never go on counting on a node that was taken out, nor count on a new one for what it was not told.

use std::collections::BTreeSet;

use polyraft_raft::{ClaimChange, NodeId};

use super::{Shard, leads};
use crate::event::{Objections, ObjectionsReply, PeerNeed};

impl Shard {
    /// The node has another peer.
    pub(super) fn peer_added(&mut self, node: NodeId) {
        self.outgoing.add(node);
        self.told.add(node);
        let own = self.shared.node;
        if let Some(home) = &mut self.home {
            self.trust.add(node, home.liveness.batches());
            home.liveness.add(own, node);
        }
        // What is led here already was claimed when nobody could tell the newcomer.
        let led = self.replicas.iter().filter(|replica| leads(replica));
        let cores = led.map(|replica| &replica.group);
        let shared = cores.filter(|core| core.configuration().contains(node));
        self.outbox.claims.extend(shared.map(|core| ClaimChange {
            group: core.id(),
            term: core.term(),
            leads: true,
        }));
    }

    /// A node is no peer any more.
    pub(super) fn peer_removed(&mut self, node: NodeId) {
        if self.home.is_some() {
            self.with_liveness(|liveness, actions| liveness.remove(node, actions));
        }
        self.outgoing.remove(node);
        self.told.remove(node);
    }

    /// Somebody wants to take a node out of the peers. No other one goes on counting on it, and no end is forgotten with it.
    pub(super) fn peer_needed(&mut self, node: NodeId, reply: ObjectionsReply) {
        match self.need_of(node) {
            None => self.told.ask(node, reply, self.now),
            need => {
                let untold = BTreeSet::new();
                let _ = reply.send(Ok(Objections { need, untold }));
            }
        }
    }

    /// A group here that has a node as a member, if there is one: rather one that runs.
    pub(super) fn need_of(&self, node: NodeId) -> Option<PeerNeed> {
        let open = self.replicas.iter().filter(|replica| {
            let core = &replica.group;
            let [newest, applied] = [core.configuration(), core.applied_configuration()];
            newest.contains(node) || applied.contains(node)
        });
        let open = open.map(|replica| PeerNeed {
            group: replica.group.id(),
            is_running: replica.fault.is_none(),
        });
        let opening = self.opening.values().map(|(found, _)| found);
        let opening = opening.filter(|found| found.members().contains(node));
        let opening = opening.map(|found| PeerNeed {
            group: found.group,
            is_running: found.fault.is_none(),
        });
        let needs = open.chain(opening).map(Some);
        needs.fold(None, PeerNeed::rather)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use polyraft_raft::{Configuration, GroupId};
    use polyraft_storage::sim::SimDisk;
    use polyraft_storage::{DataDir, WalOptions};

    use crate::liveness::Action;
    use crate::shard::split::tests::Alone;
    use crate::shard::tests::GROUP;
    use crate::trust::Standing;

    use super::*;

    const NEWCOMER: NodeId = NodeId(2);

    fn disk_with_a_learner(path: &Path, groups: [GroupId; 2]) -> SimDisk {
        let disk = SimDisk::new(1);
        let dir = DataDir::open(Arc::new(disk.clone()), path, "c", NodeId(1), 1).unwrap();
        let mut opened = polyraft_storage::open(&dir, &WalOptions::default(), 1).unwrap();
        for group in groups {
            let members = Configuration::joint([NodeId(1)], [], [NEWCOMER], []);
            opened.logs[0].create(group, &members).unwrap();
        }
        opened.logs[0].submit().unwrap();
        opened.wals[0].close().unwrap();
        disk
    }

    /// It was counted on for a claim of which it had never heard, once it had taken a later one.
    #[test]
    fn a_new_peer_stands_by_what_was_led_before_it_came_only_once_it_is_told() {
        let (path, groups) = (Path::new("/n"), [GROUP, GroupId(8)]);
        let mut alone = Alone::on(&disk_with_a_learner(path, groups), path);
        let leads_all = |alone: &Alone| alone.shard.replicas.iter().all(leads);
        while !leads_all(&alone) {
            alone.pass(50_000);
            alone.settle();
        }
        let batch_of = |alone: &Alone, group| {
            let slot = alone.shard.slot(group).unwrap();
            alone.shard.replicas[slot as usize].claim_batch
        };
        let before = groups.map(|group| batch_of(&alone, group));
        // It says that it has taken everything through a batch; is it taken to stand by another one then?
        let now = alone.shard.now;
        let counts = |alone: &Alone, taken: u64, batch| {
            let standing = Standing {
                by: NEWCOMER,
                batches: [taken].into_iter().collect(),
                since: now,
                until: now.after(1),
            };
            alone.shard.trust.publish(&standing);
            alone.shard.trust.stands(NEWCOMER, 0, batch, now)
        };

        alone.shard.peer_added(NEWCOMER);
        assert!(!counts(&alone, before[0].max(before[1]), before[0]));
        alone.turn();
        let after = groups.map(|group| batch_of(&alone, group));
        assert!(after[0] > before[0] && after[1] > before[1]);
        assert!(!counts(&alone, after[0] - 1, after[0]));
        assert!(counts(&alone, after[0], after[0]));

        // That batch tells it of both.
        let mut told = Vec::new();
        alone.shard.link_up(NEWCOMER, 1);
        alone.shard.with_liveness(|liveness, actions| {
            liveness.poll(now, now, true, actions);
            for action in actions {
                if let Action::Table {
                    to: NEWCOMER,
                    claims,
                    ..
                } = action
                {
                    told.extend(claims.iter().map(|(group, _)| *group));
                }
            }
        });
        assert_eq!(told, groups);
    }
}

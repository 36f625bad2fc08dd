//! Peers that come and go while the node runs, as a shard sees them.
//! It must never go on counting on a node that was taken out.

use polyraft_raft::NodeId;
use polyraft_storage::Ending;

use super::Shard;
use super::outgoing::NODE_LEVEL;
use crate::event::{PeerNeed, life_ranges};
use crate::wire;

/// Ends that are told in one record.
const ENDS_AT_ONCE: usize = 4_096;

impl Shard {
    /// The node has another peer.
    pub(super) fn peer_added(&mut self, node: NodeId) {
        self.outgoing.add(node);
        self.newcomers.insert(node);
        let own = self.shared.node;
        if let Some(home) = &mut self.home {
            self.trust.add(node);
            home.liveness.add(own, node);
        }
    }

    /// A node is no peer any more.
    pub(super) fn peer_removed(&mut self, node: NodeId) {
        if self.home.is_some() {
            self.with_liveness(|liveness, actions| liveness.remove(node, actions));
        }
        self.outgoing.remove(node);
        self.newcomers.remove(&node);
    }

    /// A node that was added while this one runs is told which lives of groups are over, whenever it is back. A majority of all
    /// nodes knew of each of them, and with it there are more nodes: it has to be one of those who know.
    pub(super) fn tell_ends(&mut self, node: NodeId) {
        if !self.newcomers.contains(&node) {
            return;
        }
        let over = self.log.tombstones();
        let over = over.filter(|(_, tombstone)| tombstone.ending == Ending::Destroyed);
        let mut over: Vec<_> = over.map(|(group, end)| (group.0, end.life)).collect();
        over.sort_unstable();
        for part in over.chunks(ENDS_AT_ONCE) {
            let lives = life_ranges(part.iter().copied());
            let counters = self.shared.counters.shard(self.index);
            let bytes = wire::destroy_bytes(&lives);
            let Some(frame) = self.outgoing.append(node, NODE_LEVEL, bytes, counters) else {
                return;
            };
            // Nobody waits for the answer. The numbers of requests here are others, and so are those of other shards.
            self.last_told += 1;
            let request = u64::MAX - (self.last_told << 16 | self.index as u64);
            wire::put_destroy(frame, request, &lives);
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

//! Peers that come and go while the node runs, as a shard sees them.
//! It must never go on counting on a node that was taken out.

use polyraft_raft::{GroupId, NodeId};

use super::Shard;

impl Shard {
    /// The node has another peer.
    pub(super) fn peer_added(&mut self, node: NodeId) {
        self.outgoing.add(node);
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
    }

    /// A group here that has a node as a member, if there is one.
    pub(super) fn group_with(&self, node: NodeId) -> Option<GroupId> {
        let open = self.replicas.iter().map(|replica| &replica.group);
        let open = open.filter(|core| {
            let [newest, applied] = [core.configuration(), core.applied_configuration()];
            newest.contains(node) || applied.contains(node)
        });
        let opening = self.opening.values().map(|(found, _)| found);
        let opening = opening.filter(|found| found.members().contains(node));
        let groups = open.map(|core| core.id());
        groups.chain(opening.map(|found| found.group)).min()
    }
}

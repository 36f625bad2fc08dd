//! The set of nodes believed to be alive, and which of them should rather lead. Small, sorted, and never without the node itself.

use smallvec::{SmallVec, smallvec};

use crate::NodeId;

/// The priority of a node of which nothing else is known.
const USUAL: u8 = 100;

/// A small sorted set of nodes which always holds the node it was made for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSet {
    own: NodeId,
    nodes: SmallVec<[NodeId; 8]>,
    /// Nodes with another priority than the usual one, alive or not.
    priorities: SmallVec<[(NodeId, u8); 2]>,
}

impl NodeSet {
    /// The set of `own` alone.
    #[must_use]
    pub fn new(own: NodeId) -> NodeSet {
        NodeSet {
            own,
            nodes: smallvec![own],
            priorities: SmallVec::new(),
        }
    }

    /// The node this set was made for.
    #[must_use]
    pub const fn own(&self) -> NodeId {
        self.own
    }

    /// Whether `node` is in the set.
    #[inline]
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        node == self.own || self.nodes.binary_search(&node).is_ok()
    }

    /// Adds `node`; false when it was there.
    pub fn insert(&mut self, node: NodeId) -> bool {
        match self.nodes.binary_search(&node) {
            Ok(_) => false,
            Err(at) => {
                self.nodes.insert(at, node);
                true
            }
        }
    }

    /// Takes `node` out; false when it was not there, or is the node itself, which never leaves.
    pub fn remove(&mut self, node: NodeId) -> bool {
        match self.nodes.binary_search(&node) {
            Ok(at) if node != self.own => {
                self.nodes.remove(at);
                true
            }
            _ => false,
        }
    }

    /// Nodes with a higher priority should rather lead; 0: only if nobody else can. 100 unless said. It stays known of a node that
    /// is not in the set.
    pub fn set_priority(&mut self, node: NodeId, priority: u8) {
        self.priorities.retain(|(known, _)| *known != node);
        if priority != USUAL {
            self.priorities.push((node, priority));
        }
    }

    /// See [`NodeSet::set_priority`].
    #[must_use]
    pub fn priority(&self, node: NodeId) -> u8 {
        let mut known = self.priorities.iter();
        let known = known.find(|(known, _)| *known == node);
        known.map_or(USUAL, |(_, priority)| *priority)
    }

    /// Whether no node has another priority than the usual one.
    #[inline]
    #[must_use]
    pub fn are_equal(&self) -> bool {
        self.priorities.is_empty()
    }

    /// All nodes in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().copied()
    }

    /// Number of nodes, at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_node_never_leaves() {
        let mut set = NodeSet::new(NodeId(2));
        assert!(set.insert(NodeId(1)));
        assert!(!set.insert(NodeId(1)));
        assert!(!set.remove(NodeId(2)));
        assert!(set.remove(NodeId(1)));
        assert!(!set.contains(NodeId(1)));
        assert_eq!(set.iter().collect::<Vec<_>>(), [NodeId(2)]);
    }
}

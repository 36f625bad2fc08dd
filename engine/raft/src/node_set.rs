//! The set of nodes believed to be alive. Small, sorted, and never without the node itself.

use smallvec::{SmallVec, smallvec};

use crate::NodeId;

/// A small sorted set of nodes which always holds the node it was made for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSet {
    own: NodeId,
    nodes: SmallVec<[NodeId; 8]>,
}

impl NodeSet {
    /// The set of `own` alone.
    #[must_use]
    pub fn new(own: NodeId) -> NodeSet {
        NodeSet {
            own,
            nodes: smallvec![own],
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

//! What callers may know of groups without asking a shard: which are hosted here and who leads them.
//! Only the owning shard writes a cell; anybody reads it without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use polyraft_raft::{GroupId, NodeId, Term};
use rustc_hash::FxHashMap;

/// The public face of one replica.
#[derive(Debug, Default)]
pub(crate) struct GroupCell {
    /// The leader's id, or 0 when none is known: node ids start at 1. No node has the highest, which stands for a replica that is
    /// out of service.
    leader: AtomicU64,
    term: AtomicU64,
}

impl GroupCell {
    pub(crate) fn publish(&self, leader: Option<NodeId>, term: Term) {
        // The term goes first, so that a reader never sees a leader with an older term than its own.
        self.term.store(term.0, Ordering::Release);
        self.leader
            .store(leader.map_or(0, |node| node.0), Ordering::Release);
    }

    /// The replica is out of service.
    pub(crate) fn fail(&self) {
        self.leader.store(u64::MAX, Ordering::Release);
    }

    pub(crate) fn is_out_of_service(&self) -> bool {
        self.leader.load(Ordering::Acquire) == u64::MAX
    }

    pub(crate) fn leader(&self) -> Option<(NodeId, Term)> {
        let leader = self.leader.load(Ordering::Acquire);
        (leader != 0 && leader != u64::MAX)
            .then(|| (NodeId(leader), Term(self.term.load(Ordering::Acquire))))
    }
}

/// All groups hosted by this node.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    cells: RwLock<FxHashMap<GroupId, Arc<GroupCell>>>,
}

impl Directory {
    pub(crate) fn cell(&self, group: GroupId) -> Option<Arc<GroupCell>> {
        self.cells.read().get(&group).cloned()
    }

    pub(crate) fn add(&self, group: GroupId) -> Arc<GroupCell> {
        Arc::clone(self.cells.write().entry(group).or_default())
    }

    pub(crate) fn remove(&self, group: GroupId) {
        self.cells.write().remove(&group);
    }

    /// At most `limit` groups, in the order of their ids, from `first` on.
    pub(crate) fn list(&self, first: GroupId, limit: usize) -> Vec<GroupId> {
        let cells = self.cells.read();
        let mut groups: Vec<GroupId> = cells
            .keys()
            .copied()
            .filter(|group| *group >= first)
            .collect();
        drop(cells);
        if limit < groups.len() {
            groups.select_nth_unstable(limit);
            groups.truncate(limit);
        }
        groups.sort_unstable();
        groups
    }
}

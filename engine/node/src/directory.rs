//! What callers may know of groups without asking a shard: which are hosted here and who leads them.
//! Only the owning shard writes a cell; anybody reads it without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use polyraft_raft::{GroupId, Life, NodeId, Term};
use rustc_hash::FxHashMap;

/// Whether a node may have this id.
pub(crate) fn is_node_id(id: NodeId) -> bool {
    id.0 != 0 && id.0 != u64::MAX
}

/// What whoever gives another id is told.
pub(crate) const NODE_IDS: &str = "node ids are 1 to 2^64 - 2";

/// What is published of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Shown {
    /// The leader's id, 0 when none is known, or the highest number for a replica that is out of service: see [`is_node_id`].
    leader: u64,
    /// Twice the term, and one more once something is known to be committed behind what the group began with.
    term: u64,
}

impl Shown {
    pub(crate) fn new(leader: Option<NodeId>, term: Term, has_committed: bool) -> Self {
        Self {
            leader: leader.map_or(0, |node| node.0),
            term: term.0 << 1 | u64::from(has_committed),
        }
    }

    /// The same of a replica that is out of service.
    pub(crate) fn out_of_service(self) -> Self {
        let leader = u64::MAX;
        Self { leader, ..self }
    }

    pub(crate) fn is_out_of_service(self) -> bool {
        self.leader == u64::MAX
    }

    pub(crate) fn leader(self) -> Option<NodeId> {
        (self.leader != 0 && !self.is_out_of_service()).then_some(NodeId(self.leader))
    }

    pub(crate) fn term(self) -> Term {
        Term(self.term >> 1)
    }

    /// Whether a majority is known to have what the group began with.
    pub(crate) fn has_committed(self) -> bool {
        self.term & 1 == 1
    }
}

/// The public face of one replica.
#[derive(Debug, Default)]
pub(crate) struct GroupCell {
    leader: AtomicU64,
    term: AtomicU64,
}

impl GroupCell {
    pub(crate) fn publish(&self, shown: Shown) {
        // The term goes first, so that a reader never sees a leader with an older term than its own.
        self.term.store(shown.term, Ordering::Release);
        self.leader.store(shown.leader, Ordering::Release);
    }

    pub(crate) fn shown(&self) -> Shown {
        let leader = self.leader.load(Ordering::Acquire);
        let term = self.term.load(Ordering::Acquire);
        Shown { leader, term }
    }

    pub(crate) fn leader(&self) -> Option<(NodeId, Term)> {
        let shown = self.shown();
        Some((shown.leader()?, shown.term()))
    }
}

/// All groups hosted by this node.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    cells: RwLock<FxHashMap<GroupId, Arc<GroupCell>>>,
    /// Groups that were merged into others, as far as replicas here know: in which life, and into which one.
    merged: RwLock<FxHashMap<GroupId, (Life, GroupId)>>,
    /// Groups that were split off others here and may have too few replicas yet: in which life, and whether that is over.
    unborn: RwLock<FxHashMap<GroupId, (Life, bool)>>,
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

    /// A life of a group ended in another group.
    pub(crate) fn note_merged(&self, source: GroupId, life: Life, into: GroupId) {
        let mut merged = self.merged.write();
        let known = merged.entry(source).or_insert((life, into));
        if known.0 <= life {
            *known = (life, into);
        }
    }

    /// A replica of a group is here. What an earlier life of it became says nothing about this one.
    pub(crate) fn note_life(&self, group: GroupId, life: Life) {
        if self.merged.read().contains_key(&group) {
            // Another shard may have noted a later life in between.
            let mut merged = self.merged.write();
            if merged.get(&group).is_some_and(|known| known.0 < life) {
                merged.remove(&group);
            }
        }
    }

    /// Groups that were merged into others: in which life, and into which one.
    pub(crate) fn all_merged(&self) -> Vec<(GroupId, Life, GroupId)> {
        let merged = self.merged.read();
        let merged = merged.iter();
        merged
            .map(|(source, (life, into))| (*source, *life, *into))
            .collect()
    }

    /// A group is split off another one in this life.
    pub(crate) fn await_child(&self, child: GroupId, life: Life) {
        self.unborn.write().insert(child, (life, false));
    }

    /// Nobody here waits any more for what becomes of a group that was split off.
    pub(crate) fn forget_child(&self, child: GroupId) {
        self.unborn.write().remove(&child);
    }

    /// A life of a group is over.
    pub(crate) fn note_over(&self, group: GroupId, over: Life) {
        if self.unborn.read().contains_key(&group)
            && let Some((life, is_over)) = self.unborn.write().get_mut(&group)
        {
            *is_over |= over >= *life;
        }
    }

    /// Whether the life in which a group was split off is over.
    pub(crate) fn is_child_over(&self, child: GroupId) -> bool {
        self.unborn
            .read()
            .get(&child)
            .is_some_and(|(_, is_over)| *is_over)
    }

    /// The last life of a group that ended in another group, and which one that is.
    pub(crate) fn merged_into(&self, source: GroupId) -> Option<(Life, GroupId)> {
        self.merged.read().get(&source).copied()
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

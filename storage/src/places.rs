//! Which snapshot files there are, by group: whoever wants those of one group need not look through the names of all.
//! Must never be the only one to know of a file: an opening reads the directory.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use polyraft_raft::{GroupId, Index, LogPosition, Term};

/// The places of the snapshots in a directory.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<BTreeSet<(GroupId, Index, Term)>>);

impl Places {
    /// There is a file of this group and place, and a sync has covered its name.
    pub(crate) fn note(&self, group: GroupId, last: LogPosition) {
        self.0.lock().insert((group, last.index, last.term));
    }

    /// There is none any more.
    pub(crate) fn forget(&self, group: GroupId, last: LogPosition) {
        self.0.lock().remove(&(group, last.index, last.term));
    }

    /// The places of a group's files.
    pub(crate) fn of(&self, group: GroupId) -> Vec<LogPosition> {
        let places = self.0.lock();
        let from = places.range((group, Index::ZERO, Term::ZERO)..);
        let own = from.take_while(|(owner, ..)| *owner == group);
        let own = own.map(|&(_, index, term)| LogPosition { term, index });
        own.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_one_group_are_found_among_those_of_others() {
        let places = Places::default();
        let at = |index, term| LogPosition {
            term: Term(term),
            index: Index(index),
        };
        for (group, last) in [(1, at(9, 2)), (2, at(3, 1)), (2, at(7, 2)), (3, at(1, 1))] {
            places.note(GroupId(group), last);
        }
        assert_eq!(places.of(GroupId(2)), [at(3, 1), at(7, 2)]);
        places.forget(GroupId(2), at(3, 1));
        assert_eq!(places.of(GroupId(2)), [at(7, 2)]);
        assert!(places.of(GroupId(4)).is_empty());
    }
}

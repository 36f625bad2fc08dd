//! Places and stretches in a log, and the state that must survive a restart. Values only: what they mean
//! for the protocol is decided elsewhere.

use std::fmt;

use crate::{Index, NodeId, Term};

/// An entry's place: its term and its index.
///
/// The order is by term first, then by index: exactly the rule by which a voter judges whose log is more up
/// to date (Raft paper, 5.4.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LogPosition {
    /// Term of the entry.
    pub term: Term,
    /// Index of the entry.
    pub index: Index,
}

impl LogPosition {
    /// The place before the first entry.
    pub const ZERO: LogPosition = LogPosition {
        term: Term::ZERO,
        index: Index::ZERO,
    };
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

/// The entries `first..end`, all of one term. It may be empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct EntryRange {
    /// Term of every entry in the range.
    pub term: Term,
    /// Index of the first entry.
    pub first: Index,
    /// Index after the last entry; never below `first`.
    pub end: Index,
}

impl EntryRange {
    /// The range without entries that starts at `first`.
    #[must_use]
    pub const fn empty(term: Term, first: Index) -> EntryRange {
        EntryRange {
            term,
            first,
            end: first,
        }
    }

    /// Number of entries.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.first.0)
    }

    /// Whether it has no entry.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.end.0 <= self.first.0
    }

    /// Index of the last entry; the index before `first` when the range is empty.
    #[inline]
    #[must_use]
    pub const fn last(&self) -> Index {
        self.end.prev()
    }
}

impl fmt::Display for EntryRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}@{}", self.first, self.end, self.term)
    }
}

/// A maximal stretch of a log with one term. It ends where the next run starts, or at the log's end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TermRun {
    /// Term of the entries.
    pub term: Term,
    /// Index of the first entry.
    pub first: Index,
}

/// What a replica must remember across restarts beside its log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct HardState {
    /// The highest term seen.
    pub term: Term,
    /// Who got this replica's vote in `term`.
    pub vote: Option<NodeId>,
    /// An index known to be committed. Only a hint that lets a restarted replica apply early; the truth is
    /// re-learnt from the leader.
    pub commit: Index,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_term_wins_over_a_longer_log() {
        let long = LogPosition {
            term: Term(2),
            index: Index(90),
        };
        let late = LogPosition {
            term: Term(3),
            index: Index(10),
        };
        assert!(late > long);
        assert!(
            LogPosition {
                index: Index(91),
                ..long
            } > long
        );
    }

    #[test]
    fn an_empty_range_ends_before_its_first() {
        let range = EntryRange::empty(Term(1), Index(5));
        assert!(range.is_empty());
        assert_eq!((range.len(), range.last()), (0, Index(4)));
    }
}

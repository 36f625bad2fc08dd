//! A replica's view of its log: where it starts and ends, and which term each index has. Entries of one term
//! follow each other, so *term runs* say it all, and an idle group's memory does not grow with its log.
//! It never sees an entry's bytes and does not know what is durable or committed.

use smallvec::SmallVec;

use crate::{EntryRange, Index, LogPosition, Term, TermRun};

/// Base, term runs and end of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LogView {
    /// The purged position; entries start after it.
    base: LogPosition,
    /// Last index; `base.index <= last`.
    last: Index,
    /// Ascending in term and in index; the first one starts at `base.index + 1`; empty when no entry is held.
    runs: SmallVec<[TermRun; 2]>,
}

impl LogView {
    /// # Panics
    /// When the runs do not describe `base.index + 1 ..= last`.
    pub(crate) fn new(base: LogPosition, runs: &[TermRun], last: Index) -> LogView {
        assert!(
            base.index <= last,
            "a log cannot end at {last}, before its base {base}"
        );
        assert_eq!(
            runs.is_empty(),
            base.index == last,
            "entries and term runs must come together"
        );
        assert!(
            runs.first()
                .is_none_or(|r| r.first == base.index.next() && r.term >= base.term),
            "{runs:?} after {base}"
        );
        assert!(
            runs.windows(2)
                .all(|w| w[0].term < w[1].term && w[0].first < w[1].first),
            "{runs:?}"
        );
        assert!(
            runs.last().is_none_or(|r| r.first <= last),
            "{runs:?} reach beyond {last}"
        );
        LogView {
            base,
            last,
            runs: runs.iter().copied().collect(),
        }
    }

    pub(crate) const fn base(&self) -> LogPosition {
        self.base
    }

    pub(crate) fn runs(&self) -> &[TermRun] {
        &self.runs
    }

    pub(crate) const fn last_index(&self) -> Index {
        self.last
    }

    pub(crate) fn last(&self) -> LogPosition {
        LogPosition {
            term: self.runs.last().map_or(self.base.term, |r| r.term),
            index: self.last,
        }
    }

    /// The number of the run that holds `index`, which must be an entry of the log.
    #[inline]
    fn run_of(&self, index: Index) -> usize {
        debug_assert!(index > self.base.index && index <= self.last);
        let newest = self.runs.len() - 1;
        if self.runs[newest].first <= index {
            return newest;
        }
        self.runs.partition_point(|r| r.first <= index) - 1
    }

    /// The term at `index`: known from the base to the last entry.
    #[inline]
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index > self.last || index < self.base.index {
            None
        } else if index == self.base.index {
            Some(self.base.term)
        } else {
            Some(self.runs[self.run_of(index)].term)
        }
    }

    /// The entries from `first` on that share its term: what one append may carry at most. Empty at the log's end.
    #[inline]
    pub(crate) fn run_from(&self, first: Index) -> EntryRange {
        debug_assert!(first > self.base.index);
        if first > self.last {
            return EntryRange::empty(self.last().term, first);
        }
        let run = self.run_of(first);
        let end = self.runs.get(run + 1).map_or(self.last.next(), |r| r.first);
        EntryRange {
            term: self.runs[run].term,
            first,
            end,
        }
    }

    /// How far `entries` agree with the log: the first index at which the log ends or has another term.
    pub(crate) fn agrees_until(&self, entries: EntryRange) -> Index {
        if entries.is_empty() || entries.first > self.last {
            return entries.first;
        }
        let own = self.run_from(entries.first);
        if own.term == entries.term {
            own.end.min(entries.end)
        } else {
            entries.first
        }
    }

    /// The last place at or before `index` whose term is at most `term`, not below the base.
    pub(crate) fn last_with_term_at_most(&self, term: Term, index: Index) -> LogPosition {
        let index = index.min(self.last);
        if index <= self.base.index {
            return self.base;
        }
        let mut run = self.run_of(index);
        let mut end = index;
        while self.runs[run].term > term {
            if run == 0 {
                return self.base;
            }
            end = self.runs[run].first.prev();
            run -= 1;
        }
        LogPosition {
            term: self.runs[run].term,
            index: end,
        }
    }

    /// Adds entries right after the end.
    #[inline]
    pub(crate) fn append(&mut self, entries: EntryRange) {
        assert_eq!(
            entries.first,
            self.last.next(),
            "entries must continue the log"
        );
        if entries.is_empty() {
            return;
        }
        let newest = self.last().term;
        if self.runs.is_empty() || newest != entries.term {
            assert!(
                entries.term >= newest,
                "terms in a log never fall: {} after {newest}",
                entries.term
            );
            self.runs.push(TermRun {
                term: entries.term,
                first: entries.first,
            });
        }
        self.last = entries.last();
    }

    /// Drops every entry at or after `from`.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(
            from > self.base.index,
            "cannot truncate into the purged part of a log"
        );
        if from <= self.last {
            self.last = from.prev();
            while self.runs.last().is_some_and(|r| r.first >= from) {
                self.runs.pop();
            }
        }
    }

    /// Forgets everything: the log begins anew behind `base`.
    pub(crate) fn reset(&mut self, base: LogPosition) {
        assert!(base.index > self.base.index, "a log never begins earlier");
        self.base = base;
        self.last = base.index;
        self.runs.clear();
    }

    /// Moves the base up to `through`.
    pub(crate) fn purge(&mut self, through: Index) {
        assert!(through <= self.last, "cannot purge beyond the log's end");
        if through <= self.base.index {
            return;
        }
        let run = self.run_of(through);
        let ends_here = self.run_from(through).end == through.next();
        self.base = LogPosition {
            term: self.runs[run].term,
            index: through,
        };
        self.runs.drain(..run + usize::from(ends_here));
        if let Some(first) = self.runs.first_mut() {
            first.first = first.first.max(through.next());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(term: u64, first: u64, end: u64) -> EntryRange {
        EntryRange {
            term: Term(term),
            first: Index(first),
            end: Index(end),
        }
    }

    fn empty() -> LogView {
        LogView::new(LogPosition::ZERO, &[], Index::ZERO)
    }

    #[test]
    fn a_run_ends_where_the_next_one_starts() {
        let mut log = empty();
        log.append(range(1, 1, 4));
        log.append(range(1, 4, 6));
        log.append(range(3, 6, 8));
        assert_eq!(log.run_from(Index(2)), range(1, 2, 6));
        assert_eq!(log.run_from(Index(7)), range(3, 7, 8));
        assert!(log.run_from(Index(8)).is_empty());
        assert_eq!(
            log.last(),
            LogPosition {
                term: Term(3),
                index: Index(7)
            }
        );
    }

    #[test]
    fn the_hint_skips_whole_terms() {
        let mut log = empty();
        log.append(range(1, 1, 4));
        log.append(range(4, 4, 9));
        let hint = log.last_with_term_at_most(Term(3), Index(8));
        assert_eq!(
            hint,
            LogPosition {
                term: Term(1),
                index: Index(3)
            }
        );
        assert_eq!(
            log.last_with_term_at_most(Term(0), Index(8)),
            LogPosition::ZERO
        );
    }

    #[test]
    #[should_panic(expected = "never fall")]
    fn terms_never_fall() {
        let mut log = empty();
        log.append(range(3, 1, 2));
        log.append(range(2, 2, 3));
    }

    /// The same log as a plain list of terms.
    struct Naive {
        base: u64,
        base_term: u64,
        terms: Vec<u64>,
    }

    impl Naive {
        fn term_at(&self, index: u64) -> Option<u64> {
            match index.checked_sub(self.base)? {
                0 => Some(self.base_term),
                n => self.terms.get(n as usize - 1).copied(),
            }
        }

        fn last(&self) -> u64 {
            self.base + self.terms.len() as u64
        }
    }

    proptest! {
        #[test]
        fn term_runs_agree_with_a_list_of_terms(steps in prop::collection::vec((0..6_u8, 0..20_u64), 1..120)) {
            let mut log = empty();
            let mut naive = Naive { base: 0, base_term: 0, terms: Vec::new() };
            let mut term = 1;
            for (kind, n) in steps {
                match kind {
                    0 | 1 => {
                        let first = naive.last() + 1;
                        log.append(range(term, first, first + n));
                        naive.terms.extend((0..n).map(|_| term));
                    }
                    2 => term += 1 + n % 2,
                    3 => {
                        let from = naive.last().saturating_sub(n).max(naive.base) + 1;
                        log.truncate(Index(from));
                        naive.terms.truncate((from - naive.base - 1) as usize);
                    }
                    4 => {
                        let through = (naive.base + n / 2).min(naive.last());
                        let base_term = naive.term_at(through).unwrap();
                        log.purge(Index(through));
                        naive.terms.drain(..(through - naive.base) as usize);
                        (naive.base, naive.base_term) = (through, base_term);
                    }
                    _ => {}
                }
                prop_assert_eq!(log.last_index(), Index(naive.last()));
                prop_assert_eq!(log.base().index, Index(naive.base));
                for index in naive.base.saturating_sub(1)..naive.last() + 2 {
                    prop_assert_eq!(log.term_at(Index(index)).map(|t| t.0), naive.term_at(index));
                }
                let rebuilt = LogView::new(log.base(), &log.runs, log.last_index());
                prop_assert_eq!(&rebuilt, &log);
                // Where does an append of term `term` starting at a random held index stop to agree?
                if naive.last() > naive.base {
                    let first = naive.base + 1 + n % (naive.last() - naive.base);
                    let asked = naive.term_at(first).unwrap().max(term - (n % 2));
                    let until = (first..first + 9).find(|&i| naive.term_at(i) != Some(asked)).unwrap_or(first + 9);
                    prop_assert_eq!(log.agrees_until(range(asked, first, first + 9)), Index(until));
                }
                let hint = (naive.base..=naive.last().min(naive.base + n))
                    .rev().find(|&i| naive.term_at(i).unwrap() < term).unwrap_or(naive.base);
                prop_assert_eq!(log.last_with_term_at_most(Term(term - 1), Index(naive.base + n)).index, Index(hint));
            }
        }
    }
}

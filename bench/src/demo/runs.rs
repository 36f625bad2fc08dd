//! A set of sequence numbers, kept as sorted runs. Sequences are handed out densely, so a set of millions is one run
//! of 16 bytes; a sequence that never commits costs one more. Never holds two runs that touch or overlap.

/// A half-open run of sequences, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: u64,
    pub end: u64,
}

/// A set of sequence numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Sorted; `runs[i].end < runs[i + 1].first`.
    runs: Vec<Run>,
}

impl Runs {
    /// Adds one sequence. False if it was there already.
    ///
    /// Costs O(1) at or near the end of the set, which is where commits arrive.
    pub fn insert(&mut self, sequence: u64) -> bool {
        assert!(sequence < u64::MAX, "the last sequence has no end");
        if self.runs.is_empty() {
            // Almost every set stays one run: a second one is worth an allocation, four empty ones are not.
            self.runs.reserve_exact(1);
        }
        // Position of the first run that starts above the sequence.
        let above = match self.runs.last() {
            Some(last) if last.first <= sequence => self.runs.len(),
            _ => self.runs.partition_point(|run| run.first <= sequence),
        };
        if above > 0 && sequence < self.runs[above - 1].end {
            return false;
        }
        let joins_below = above > 0 && self.runs[above - 1].end == sequence;
        let joins_above = above < self.runs.len() && self.runs[above].first == sequence + 1;
        match (joins_below, joins_above) {
            (true, true) => {
                self.runs[above - 1].end = self.runs[above].end;
                self.runs.remove(above);
            }
            (true, false) => self.runs[above - 1].end += 1,
            (false, true) => self.runs[above].first = sequence,
            (false, false) => self.runs.insert(
                above,
                Run {
                    first: sequence,
                    end: sequence + 1,
                },
            ),
        }
        true
    }

    /// Appends a run read from elsewhere. False (and nothing changes) unless it is non-empty and lies above all others
    /// without touching them.
    pub fn push(&mut self, run: Run) -> bool {
        let fits = run.first < run.end && self.runs.last().is_none_or(|last| last.end < run.first);
        if fits {
            self.runs.push(run);
        }
        fits
    }

    /// How many sequences are in the set.
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.first).sum()
    }

    /// The runs in ascending order.
    pub fn as_slice(&self) -> &[Run] {
        &self.runs
    }

    /// The sequences that are in this set or in `other`.
    pub fn union(&self, other: &Self) -> Self {
        let mut both: Vec<Run> = self.runs.iter().chain(&other.runs).copied().collect();
        both.sort_unstable_by_key(|run| run.first);
        let mut runs: Vec<Run> = Vec::with_capacity(both.len());
        for run in both {
            match runs.last_mut() {
                Some(last) if run.first <= last.end => last.end = last.end.max(run.end),
                _ => runs.push(run),
            }
        }
        Self { runs }
    }

    /// The sequences in ascending order.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().flat_map(|run| run.first..run.end)
    }

    /// The sequences of this set that `other` lacks: how many, and the first.
    pub fn missing_from(&self, other: &Self) -> (u64, Option<u64>) {
        let mut count = 0;
        let mut first_missing = None;
        let mut theirs = other.runs.iter().copied().peekable();
        for run in &self.runs {
            let mut at = run.first;
            while at < run.end {
                // Runs that end at or below `at` cannot hold it, nor anything that follows.
                while theirs.next_if(|their| their.end <= at).is_some() {}
                let (gap_end, next) = match theirs.peek() {
                    Some(their) if their.first <= at => (at, their.end),
                    Some(their) if their.first < run.end => (their.first, their.first),
                    _ => (run.end, run.end),
                };
                if gap_end > at {
                    count += gap_end - at;
                    first_missing.get_or_insert(at);
                }
                at = next;
            }
        }
        (count, first_missing)
    }
}

impl FromIterator<u64> for Runs {
    fn from_iter<T: IntoIterator<Item = u64>>(sequences: T) -> Self {
        let mut runs = Self::default();
        for sequence in sequences {
            runs.insert(sequence);
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A small generator, so that the cases are the same in every run.
    fn next(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    fn random_set(state: &mut u64, universe: u64, count: u64) -> (Runs, BTreeSet<u64>) {
        let (mut runs, mut plain) = (Runs::default(), BTreeSet::new());
        for _ in 0..count {
            let sequence = next(state) % universe;
            assert_eq!(runs.insert(sequence), plain.insert(sequence));
        }
        (runs, plain)
    }

    #[test]
    fn dense_sequences_are_one_run() {
        let runs: Runs = (0..10_000).collect();
        assert_eq!(
            runs.as_slice(),
            [Run {
                first: 0,
                end: 10_000
            }]
        );
        assert_eq!(runs.len(), 10_000);
    }

    #[test]
    fn a_second_insert_is_refused() {
        let mut runs: Runs = [3, 4, 9].into_iter().collect();
        assert!(!runs.insert(4));
        assert!(!runs.insert(9));
        assert!(runs.insert(5));
        assert_eq!(runs.len(), 4);
    }

    #[test]
    fn neighbours_join_from_both_sides() {
        let mut runs: Runs = [1, 3].into_iter().collect();
        assert_eq!(runs.as_slice().len(), 2);
        assert!(runs.insert(2));
        assert_eq!(runs.as_slice(), [Run { first: 1, end: 4 }]);
        assert!(runs.insert(0));
        assert_eq!(runs.as_slice(), [Run { first: 0, end: 4 }]);
    }

    #[test]
    fn behaves_like_a_plain_set() {
        let mut state = 7;
        for round in 0..200 {
            let (runs, plain) = random_set(&mut state, 40 + round % 30, 60);
            assert_eq!(runs.len(), plain.len() as u64);
            assert!(runs.iter().eq(plain.iter().copied()));
            assert!(
                runs.as_slice()
                    .windows(2)
                    .all(|pair| pair[0].end < pair[1].first)
            );
        }
    }

    #[test]
    fn missing_is_the_set_difference() {
        let mut state = 11;
        for _ in 0..300 {
            let (runs, plain) = random_set(&mut state, 50, 25);
            let (others, plain_others) = random_set(&mut state, 50, 40);
            let missing: Vec<u64> = plain.difference(&plain_others).copied().collect();
            assert_eq!(
                runs.missing_from(&others),
                (missing.len() as u64, missing.first().copied())
            );
        }
    }

    #[test]
    fn a_union_has_both_sets_in_canonical_form() {
        let mut state = 5;
        for _ in 0..300 {
            let (runs, plain) = random_set(&mut state, 60, 20);
            let (others, plain_others) = random_set(&mut state, 60, 20);
            let expected: Runs = plain.union(&plain_others).copied().collect();
            assert_eq!(runs.union(&others), expected);
        }
    }

    #[test]
    fn only_a_run_above_the_others_can_be_pushed() {
        let mut runs: Runs = [1, 2].into_iter().collect();
        assert!(!runs.push(Run { first: 2, end: 5 }));
        assert!(
            !runs.push(Run { first: 3, end: 5 }),
            "it touches, so it would have been one run"
        );
        assert!(!runs.push(Run { first: 7, end: 7 }));
        assert!(runs.push(Run { first: 7, end: 9 }));
        assert_eq!(runs.len(), 4);
    }
}

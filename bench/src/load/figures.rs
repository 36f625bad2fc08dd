//! What the generator's threads have counted. Times are nanoseconds.

use hdrhistogram::Histogram;
use std::time::Duration;

/// A histogram of nanoseconds: 1 µs to two minutes with three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 120_000_000_000, 3).expect("these bounds are valid")
}

/// Nanoseconds of a duration, as histograms take them.
pub fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts and times of some operations.
#[derive(Clone, Debug)]
pub struct Figures {
    /// From when a proposal was due to its acknowledgement.
    pub proposals: Histogram<u64>,
    /// From when a read was due to its answer.
    pub reads: Histogram<u64>,
    /// From when an operation was due to its first sending, while nothing but the generator held it back.
    pub lag: Histogram<u64>,
    /// Operations refused, and sent again.
    pub retried: u64,
    /// Proposals whose outcome stays open.
    pub open: u64,
    /// Operations that had no answer when the load ended. Their age then is in `proposals` or `reads`.
    pub unfinished: u64,
}

impl Figures {
    /// Nothing happened.
    pub fn new() -> Self {
        Self {
            proposals: histogram(),
            reads: histogram(),
            lag: histogram(),
            retried: 0,
            open: 0,
            unfinished: 0,
        }
    }

    /// Operations that were answered with success, or were unfinished.
    pub fn operations(&self) -> u64 {
        self.proposals.len() + self.reads.len()
    }

    /// Proposals and reads together.
    pub fn all(&self) -> Histogram<u64> {
        let mut all = self.proposals.clone();
        all.add(&self.reads)
            .expect("all histograms have the same bounds");
        all
    }

    /// Adds what happened in `other`.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.proposals, &other.proposals),
            (&mut self.reads, &other.reads),
            (&mut self.lag, &other.lag),
        ];
        for (mine, theirs) in pairs {
            mine.add(theirs)
                .expect("all histograms have the same bounds");
        }
        self.retried += other.retried;
        self.open += other.open;
        self.unfinished += other.unfinished;
    }

    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.proposals.reset();
        self.reads.reset();
        self.lag.reset();
        (self.retried, self.open, self.unfinished) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_add_up_and_clear() {
        let (mut sum, mut one) = (Figures::new(), Figures::new());
        one.proposals.saturating_record(1_000);
        one.reads.saturating_record(u64::MAX);
        one.open = 1;
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.operations(), sum.open, sum.all().len()), (4, 2, 4));
        sum.clear();
        assert_eq!((sum.operations(), sum.open), (0, 0));
    }
}

//! What the generator's threads have counted. Times are nanoseconds.

use hdrhistogram::Histogram;
use std::time::Duration;

/// A histogram of nanoseconds: 1 µs to a day with three digits. Nothing that a run sees takes longer than the run.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 86_400_000_000_000, 3).expect("these bounds are valid")
}

/// Nanoseconds of a duration, as histograms take them.
pub fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts and times of some operations.
#[derive(Clone, Debug)]
pub struct Figures {
    /// From when a proposal was due to its acknowledgement, or until it was given up.
    pub proposals: Histogram<u64>,
    /// From when a read was due to its answer, or until it was given up.
    pub reads: Histogram<u64>,
    /// From when an operation was due to its first sending, or to the end of the load if it was never sent, while nothing
    /// but the generator held it back.
    pub lag: Histogram<u64>,
    /// Operations refused, and sent again.
    pub retried: u64,
    /// Proposals whose outcome stays open.
    pub open: u64,
    /// Proposals given up: their outcome stays open, or they had no answer when the load ended.
    pub unfinished_proposals: u64,
    /// Reads that had no answer when the load ended.
    pub unfinished_reads: u64,
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
            unfinished_proposals: 0,
            unfinished_reads: 0,
        }
    }

    /// Proposals acknowledged.
    pub fn committed(&self) -> u64 {
        self.proposals.len() - self.unfinished_proposals
    }

    /// Operations answered with success.
    pub fn answered(&self) -> u64 {
        self.committed() + self.reads.len() - self.unfinished_reads
    }

    /// Operations that were due, whether they were answered or given up.
    pub fn due(&self) -> u64 {
        self.proposals.len() + self.reads.len()
    }

    /// Operations given up.
    pub fn unfinished(&self) -> u64 {
        self.unfinished_proposals + self.unfinished_reads
    }

    /// Adds `count` operations that took so many nanoseconds until they were answered or given up.
    pub fn add_ended(&mut self, is_read: bool, is_answered: bool, nanos: u64, count: u64) {
        let (times, unfinished) = if is_read {
            (&mut self.reads, &mut self.unfinished_reads)
        } else {
            (&mut self.proposals, &mut self.unfinished_proposals)
        };
        times.saturating_record_n(nanos, count);
        if !is_answered {
            *unfinished += count;
        }
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
        self.unfinished_proposals += other.unfinished_proposals;
        self.unfinished_reads += other.unfinished_reads;
    }

    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.proposals.reset();
        self.reads.reset();
        self.lag.reset();
        (self.retried, self.open) = (0, 0);
        (self.unfinished_proposals, self.unfinished_reads) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_may_wait_for_hours() {
        let mut times = histogram();
        let hours = nanos(Duration::from_secs(20 * 3600));
        times.saturating_record(hours);
        assert!(times.max() >= hours, "{}", times.max());
    }

    #[test]
    fn figures_add_up_and_clear() {
        let (mut sum, mut one) = (Figures::new(), Figures::new());
        one.add_ended(false, true, 1_000, 3);
        one.add_ended(false, false, 2_000, 1);
        one.add_ended(true, false, u64::MAX, 2);
        one.open = 1;
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.all().len(), sum.open), (12, 2));
        assert_eq!(
            (sum.committed(), sum.answered(), sum.unfinished()),
            (6, 6, 6)
        );
        sum.clear();
        assert_eq!((sum.all().len(), sum.open, sum.unfinished()), (0, 0, 0));
    }
}

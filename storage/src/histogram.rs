//! A histogram with a bucket for each power of two: written by one thread at a time with plain stores, read by anybody.
//! It must never cost its writer more than a few instructions.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets of a histogram. The last one has no upper bound.
const BUCKETS: usize = 32;

/// Where values are recorded. One thread at a time may write.
#[derive(Debug, Default)]
pub struct Recorder {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Recorder {
    /// Counts a value, in whatever unit the histogram has.
    pub fn record(&self, value: u64) {
        add(&self.buckets[bucket_of(value)], 1);
        add(&self.sum, value);
    }

    /// The counts so far. A value that is being recorded may be in the sum and in no bucket yet, or the other way round.
    pub fn snapshot(&self) -> Histogram {
        Histogram {
            buckets: std::array::from_fn(|at| self.buckets[at].load(Relaxed)),
            sum: self.sum.load(Relaxed),
        }
    }
}

/// Adds without a locked instruction: nobody else writes.
fn add(cell: &AtomicU64, more: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(more), Relaxed);
}

/// The bucket whose upper bound is the lowest that is not below `value`.
fn bucket_of(value: u64) -> usize {
    let bits = u64::BITS - value.saturating_sub(1).leading_zeros();
    (bits as usize).min(BUCKETS - 1)
}

/// How often values of which size were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    sum: u64,
}

impl Histogram {
    /// Adds the counts of another one.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(other.buckets) {
            *count += more;
        }
        self.sum += other.sum;
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// For each bucket but the last: its upper bound, a power of two that belongs to it, and how many values are not
    /// above that.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut below = 0;
        let bounded = &self.buckets[..BUCKETS - 1];
        bounded.iter().enumerate().map(move |(at, count)| {
            below += count;
            (1 << at, below)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_of_two_is_the_last_value_of_its_bucket() {
        for (value, bucket) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3)] {
            assert_eq!(bucket_of(value), bucket, "{value}");
        }
        assert_eq!(bucket_of(1 << 30), 30);
        assert_eq!(bucket_of((1 << 30) + 1), BUCKETS - 1);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn counts_add_up_over_recorders() {
        let (one, other) = (Recorder::default(), Recorder::default());
        for value in [0, 1, 3] {
            one.record(value);
        }
        other.record(1 << 40);
        let mut sum = one.snapshot();
        sum.merge(&other.snapshot());
        assert_eq!((sum.count(), sum.sum()), (4, 4 + (1 << 40)));
        let cumulative: Vec<_> = sum.cumulative().take(4).collect();
        assert_eq!(cumulative, [(1, 2), (2, 2), (4, 3), (8, 3)]);
        assert_eq!(sum.cumulative().last(), Some((1 << 30, 3)));
    }
}

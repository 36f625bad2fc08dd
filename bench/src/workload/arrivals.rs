//! When the operations of an open loop are due. The schedule is fixed before the load starts and never waits for
//! answers, so that a slow answer can't hide the operations that should have come meanwhile.

use super::rng::Rng;
use serde::Serialize;
use std::time::Duration;

/// How operations of an open loop are spread over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Independent of each other: exponential gaps, as from many clients.
    Poisson,
    /// Equal gaps.
    Constant,
}

/// The due times of one thread, counted from the start of the load. Endless and ascending.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    /// Mean gap in nanoseconds.
    gap: f64,
    next: f64,
    rng: Rng,
}

impl Schedule {
    /// The part of thread `at` of `threads` in a load of `per_second` operations.
    pub fn new(
        arrivals: Arrivals,
        per_second: f64,
        (at, threads): (usize, usize),
        seed: u64,
    ) -> Self {
        assert!(per_second > 0.0 && at < threads, "a schedule has arrivals");
        let gap = 1e9 * threads as f64 / per_second;
        let mut schedule = Self {
            arrivals,
            gap,
            next: 0.0,
            rng: Rng::new(seed, 0x5eed_0000 + at as u64),
        };
        schedule.next = match arrivals {
            Arrivals::Poisson => schedule.exponential(),
            // The threads' ticks interleave evenly.
            Arrivals::Constant => gap * at as f64 / threads as f64,
        };
        schedule
    }

    fn exponential(&mut self) -> f64 {
        // 1 - u is never 0.
        -(1.0 - self.rng.unit()).ln() * self.gap
    }

    /// When the next operation is due.
    pub fn peek(&self) -> Duration {
        Duration::from_nanos(self.next as u64)
    }

    /// Takes the next operation off the schedule.
    pub fn advance(&mut self) -> Duration {
        let due = self.peek();
        self.next += match self.arrivals {
            Arrivals::Poisson => self.exponential(),
            Arrivals::Constant => self.gap,
        };
        due
    }

    /// How many operations are due before `until`: of a Poisson process, as many as come on average.
    pub fn expected_until(&self, until: Duration) -> u64 {
        ((until.as_nanos() as f64 - self.next) / self.gap).max(0.0) as u64
    }

    /// Takes `count` operations off the schedule, as if each came after the mean gap.
    pub fn skip(&mut self, count: u64) {
        self.next += count as f64 * self.gap;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(arrivals: Arrivals, per_second: f64, threads: usize, seconds: u64) -> Vec<Duration> {
        let mut all = Vec::new();
        for at in 0..threads {
            let mut schedule = Schedule::new(arrivals, per_second, (at, threads), 9);
            while schedule.peek() < Duration::from_secs(seconds) {
                all.push(schedule.advance());
            }
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn constant_arrivals_of_all_threads_are_evenly_spaced() {
        let all = due(Arrivals::Constant, 1000.0, 4, 2);
        assert_eq!(all.len(), 2000);
        for pair in all.windows(2) {
            let gap = (pair[1] - pair[0]).as_nanos();
            assert!((999_999..=1_000_001).contains(&gap), "{gap}");
        }
    }

    #[test]
    fn poisson_arrivals_have_exponential_gaps() {
        let all = due(Arrivals::Poisson, 10_000.0, 2, 10);
        let count = all.len() as f64;
        // A Poisson count of 100,000 stays within four standard deviations.
        assert!((count - 1e5).abs() < 4.0 * 1e5_f64.sqrt(), "{count}");
        let gaps: Vec<f64> = all
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e4)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Mean and standard deviation of an exponential are equal; equal gaps would have none.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "{variance}");
        // The share of gaps above the mean is 1/e.
        let above = gaps.iter().filter(|gap| **gap > mean).count() as f64 / gaps.len() as f64;
        assert!((above - (-1.0_f64).exp()).abs() < 0.01, "{above}");
    }

    #[test]
    fn a_seed_repeats_the_schedule() {
        let poisson = |seed| {
            let mut schedule = Schedule::new(Arrivals::Poisson, 500.0, (0, 1), seed);
            (0..50).map(|_| schedule.advance()).collect::<Vec<_>>()
        };
        assert_eq!(poisson(1), poisson(1));
        assert_ne!(poisson(1), poisson(2));
    }

    #[test]
    fn a_part_of_a_schedule_can_be_skipped() {
        let second = Duration::from_secs(1);
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            let mut schedule = Schedule::new(arrivals, 1000.0, (0, 2), 9);
            let count = schedule.expected_until(second);
            assert!(count.abs_diff(500) < 10, "{count}");
            schedule.skip(count);
            let next = schedule.peek();
            assert!(second - next < Duration::from_millis(3), "{next:?}");
            schedule.skip(100_000);
            assert_eq!(schedule.expected_until(second), 0);
        }
    }
}

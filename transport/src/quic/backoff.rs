//! How long to wait before connecting again.
//!
//! Owns the delays: exponential with jitter. It must never wait for nothing, nor in step with other
//! nodes.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: u64,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Backoff {
        Backoff {
            min,
            max,
            next: min,
            // The standard library's hasher is the randomness at hand; any will do for jitter.
            random: RandomState::new().hash_one(0) | 1,
        }
    }

    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// How long to wait now, after an attempt that took `spent`: between half of the next delay and
    /// all of it, less that time. An attempt on a peer that is off takes long by itself, and when
    /// the peer returns nobody should be waiting for a timer.
    pub fn delay_after(&mut self, spent: Duration) -> Duration {
        self.delay().saturating_sub(spent).max(self.min / 2)
    }

    fn delay(&mut self) -> Duration {
        let ceiling = self.next;
        self.next = (self.next * 2).min(self.max);
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = (self.random >> 40) as f64 / (1_u64 << 24) as f64;
        ceiling.mul_f64(0.5 + 0.5 * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_up_to_its_maximum_and_never_vanishes() {
        let (min, max) = (Duration::from_millis(10), Duration::from_millis(65));
        let mut backoff = Backoff::new(min, max);
        for ceiling in [10, 20, 40, 65, 65] {
            let ceiling = Duration::from_millis(ceiling);
            let delay = backoff.delay();
            assert!(
                delay >= ceiling / 2 && delay <= ceiling,
                "{delay:?} of {ceiling:?}"
            );
        }
        assert_eq!(backoff.delay_after(max), min / 2);
        backoff.reset();
        assert!(backoff.delay() <= min);
    }
}

//! Owns the guess how long something usually takes. Must never be moved far by one that takes long.

use std::time::Duration;

/// About what half of the times lately were at most: a thirty-second up for each that was longer, as much down for each that was
/// not. How long the longest are, which wait for a processor or stall, does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usual(Duration);

impl Usual {
    /// What it is kept between, so that a few hundred times change it, whatever came before.
    const RANGE: (Duration, Duration) = (Duration::from_micros(1), Duration::from_millis(100));

    /// Takes in one more time.
    pub fn note(&mut self, took: Duration) {
        let (usual, step) = (self.0, self.0 / 32);
        self.0 = match usual.is_zero() {
            true => took,
            false if took > usual => usual + step,
            false => usual - step,
        }
        .clamp(Self::RANGE.0, Self::RANGE.1);
    }

    /// Whether it usually takes no longer than `limit`, which is so before anything was noted.
    pub fn is_within(&self, limit: Duration) -> bool {
        self.0 <= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn it_follows_the_median_and_not_the_mean() {
        let mut usual = Usual::default();
        assert!(usual.is_within(Duration::ZERO), "nothing is known");
        usual.note(us(5_000));
        assert!(!usual.is_within(us(4_999)));
        // Three quick ones for each that takes a second: the mean is 250 ms.
        for at in 0..400 {
            usual.note(if at % 4 == 2 { us(1_000_000) } else { us(100) });
        }
        assert!(usual.is_within(us(120)), "{usual:?}");
        assert!(!usual.is_within(us(80)), "{usual:?}");
    }

    #[test]
    fn it_comes_back_from_either_end() {
        let mut usual = Usual::default();
        (0..10_000).for_each(|_| usual.note(Duration::MAX));
        (0..300).for_each(|_| usual.note(us(100)));
        assert!(usual.is_within(us(110)), "{usual:?}");
        (0..10_000).for_each(|_| usual.note(Duration::ZERO));
        assert!(usual.is_within(us(1)));
        (0..300).for_each(|_| usual.note(us(1_000)));
        assert!(!usual.is_within(us(900)), "{usual:?}");
    }
}

//! Seeded randomness for timeouts. Never a source of safety: any sequence of numbers is correct.

use crate::ids::mix;

/// SplitMix64: eight bytes of state per group.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// A stream of its own for each combination of seeds, so that groups never share a phase.
    pub(crate) fn new(seed: u64, group: u64, node: u64) -> Rng {
        Rng(mix(
            seed ^ mix(group ^ mix(node.wrapping_add(0x9e37_79b9_7f4a_7c15)))
        ))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `low..=high`; `low` when the range is empty.
    pub(crate) fn within(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low);
        // The multiplication maps evenly enough: the bias is below 2^-40 for any sensible timeout.
        low + ((u128::from(self.next()) * (u128::from(span) + 1)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_cover_the_range_and_nothing_else() {
        let mut rng = Rng::new(1, 2, 3);
        let mut seen = [false; 5];
        for _ in 0..200 {
            seen[(rng.within(10, 14) - 10) as usize] = true;
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(rng.within(7, 7), 7);
        assert_eq!(rng.within(9, 3), 9);
    }

    #[test]
    fn neighbouring_groups_and_nodes_draw_different_timeouts() {
        let draw = |group, node| Rng::new(5, group, node).within(0, 1 << 40);
        assert_ne!(draw(1, 1), draw(2, 1));
        assert_ne!(draw(1, 1), draw(1, 2));
        assert_ne!(draw(1, 2), draw(2, 1));
    }
}

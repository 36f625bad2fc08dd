//! Draws from any discrete distribution in constant time, by Walker's alias method in Vose's form.

use super::rng::Rng;

/// A distribution over `0..len`.
#[derive(Clone, Debug)]
pub struct AliasTable {
    /// For each column: how likely it stands for itself, and what it stands for otherwise.
    columns: Vec<(f64, u32)>,
}

impl AliasTable {
    /// `weights` need not sum to 1; they are finite, not negative, and one is above 0.
    pub fn new(weights: &[f64]) -> Self {
        let sum: f64 = weights.iter().sum();
        assert!(sum > 0.0, "a distribution has some weight");
        let scale = weights.len() as f64 / sum;
        let mut columns: Vec<(f64, u32)> = weights
            .iter()
            .zip(0..)
            .map(|(w, at)| (w * scale, at))
            .collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            (0..columns.len() as u32).partition(|at| columns[*at as usize].0 < 1.0);
        while let (Some(low), Some(high)) = (small.pop(), large.last().copied()) {
            let missing = 1.0 - columns[low as usize].0;
            columns[low as usize].1 = high;
            let rest = &mut columns[high as usize].0;
            *rest -= missing;
            if *rest < 1.0 {
                small.push(high);
                large.pop();
            }
        }
        // What is left differs from 1 by rounding only.
        for at in small.into_iter().chain(large) {
            columns[at as usize].0 = 1.0;
        }
        Self { columns }
    }

    /// Zipf's distribution: rank `r`, counted from 0, has the weight `1 / (r + 1)^exponent`.
    pub fn zipf(ranks: usize, exponent: f64) -> Self {
        let weights: Vec<f64> = (1..=ranks)
            .map(|rank| (rank as f64).powf(-exponent))
            .collect();
        Self::new(&weights)
    }

    /// One draw.
    pub fn draw(&self, rng: &mut Rng) -> usize {
        let at = rng.below(self.columns.len() as u64) as usize;
        let (own, alias) = self.columns[at];
        if rng.unit() < own { at } else { alias as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_weights() {
        let weights = [0.0, 1.0, 2.0, 5.0, 0.5, 1.5];
        let table = AliasTable::new(&weights);
        let mut rng = Rng::new(5, 0);
        const DRAWS: f64 = 200_000.0;
        let mut counts = [0_f64; 6];
        for _ in 0..DRAWS as u64 {
            counts[table.draw(&mut rng)] += 1.0;
        }
        assert_eq!(counts[0], 0.0);
        let chi: f64 = (1..6)
            .map(|at| {
                let expected = DRAWS * weights[at] / 10.0;
                (counts[at] - expected).powi(2) / expected
            })
            .sum();
        // Four degrees of freedom: above 18.5 in one of a thousand seeds.
        assert!(chi < 18.5, "{chi}");
    }

    #[test]
    fn zipf_ranks_fall_by_their_exponent() {
        let table = AliasTable::zipf(1000, 0.99);
        let mut rng = Rng::new(6, 0);
        let mut counts = vec![0_f64; 1000];
        for _ in 0..400_000 {
            counts[table.draw(&mut rng)] += 1.0;
        }
        let harmonic: f64 = (1..=1000).map(|rank| (f64::from(rank)).powf(-0.99)).sum();
        for rank in [0_usize, 1, 9, 99] {
            let expected = 400_000.0 * ((rank + 1) as f64).powf(-0.99) / harmonic;
            let bound = 4.5 * expected.sqrt();
            assert!(
                (counts[rank] - expected).abs() < bound,
                "rank {rank}: {}",
                counts[rank]
            );
        }
    }
}

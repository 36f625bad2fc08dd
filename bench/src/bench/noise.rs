//! How much two runs of one set-up differ: the least that a difference between two set-ups must exceed to mean anything.

use super::measure::{Measured, Plan, measure};
use super::nodes::Nodes;
use anyhow::Result;
use serde::Serialize;

/// What pairs of equal runs differed by: the largest difference of all pairs, in percent of the pair's mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Noise {
    /// Pairs of runs.
    pub rounds: u64,
    /// Seconds of each run.
    pub seconds: u64,
    /// Difference of the operations per second.
    pub throughput_percent: f64,
    /// Difference of the median latency.
    pub p50_percent: f64,
    /// Difference of the 99th percentile.
    pub p99_percent: f64,
}

impl Noise {
    /// Runs `rounds` pairs of short versions of `plan`, without its faults.
    pub async fn measure(
        nodes: &Nodes,
        plan: &Plan,
        rounds: u64,
        mut tell: impl FnMut(u64),
    ) -> Result<Option<Self>> {
        if rounds == 0 {
            return Ok(None);
        }
        let short = Plan {
            seconds: (plan.seconds / 4).clamp(1, 5),
            warmup: 1,
            faults: Vec::new(),
            ..plan.clone()
        };
        let mut noise = Self {
            rounds,
            seconds: short.seconds,
            ..Self::default()
        };
        for round in 0..rounds {
            tell(round + 1);
            let a = measure(nodes, &short, |_| {}).await?;
            let b = measure(nodes, &short, |_| {}).await?;
            noise.add(&a, &b);
        }
        Ok(Some(noise))
    }

    fn add(&mut self, a: &Measured, b: &Measured) {
        let rate = |run: &Measured| run.answered as f64 / run.seconds;
        self.throughput_percent = self.throughput_percent.max(apart(rate(a), rate(b)));
        for (percent, quantile) in [(&mut self.p50_percent, 0.5), (&mut self.p99_percent, 0.99)] {
            let at = |run: &Measured| run.due.all().value_at_quantile(quantile) as f64;
            *percent = percent.max(apart(at(a), at(b)));
        }
    }
}

/// How far apart two values are, in percent of their mean.
pub fn apart(a: f64, b: f64) -> f64 {
    match a + b {
        0.0 => 0.0,
        sum => 200.0 * (a - b).abs() / sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_to_the_mean() {
        assert_eq!(apart(0.0, 0.0), 0.0);
        assert_eq!(apart(100.0, 100.0), 0.0);
        assert!((apart(90.0, 110.0) - 20.0).abs() < 1e-9);
        assert_eq!(apart(110.0, 90.0), apart(90.0, 110.0));
        assert_eq!(apart(0.0, 5.0), 200.0);
    }
}

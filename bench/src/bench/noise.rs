//! How much runs of one set-up differ: what a difference between two set-ups must exceed to mean anything.

use super::measure::{Measured, Plan, measure};
use super::nodes::Nodes;
use crate::statistics::{spread_percent, t99};
use anyhow::Result;
use serde::Serialize;

/// Equal runs, and how they were spread: standard deviations in percent of the mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Noise {
    /// Seconds of each run.
    pub seconds: u64,
    /// What each run showed.
    pub runs: Vec<Run>,
    /// Of the operations per second.
    pub throughput_percent: f64,
    /// Of the median latency.
    pub p50_percent: f64,
    /// Of the 99th percentile.
    pub p99_percent: f64,
    /// Of the nodes' CPU time for each operation.
    pub cpu_percent: f64,
}

/// What one of several equal runs showed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Operations per second.
    pub operations_per_second: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of latency in microseconds.
    pub p99_us: f64,
    /// CPU time of all nodes for each operation, in microseconds.
    pub cpu_us: f64,
}

impl Noise {
    /// Runs `rounds` pairs of short versions of `plan` on the same nodes, without its faults.
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
        let mut runs = Vec::new();
        for run in 0..2 * rounds {
            tell(run + 1);
            runs.push(Run::of(&measure(nodes, &short, |_| {}).await?));
        }
        Ok(Some(Self::of(short.seconds, runs)))
    }

    /// The spread of runs of so many seconds.
    pub fn of(seconds: u64, runs: Vec<Run>) -> Self {
        let spread = |value: fn(&Run) -> f64| {
            let values: Vec<f64> = runs.iter().map(value).collect();
            spread_percent(&values)
        };
        Self {
            seconds,
            throughput_percent: spread(|run| run.operations_per_second),
            p50_percent: spread(|run| run.p50_us),
            p99_percent: spread(|run| run.p99_us),
            cpu_percent: spread(|run| run.cpu_us),
            runs,
        }
    }
}

impl Run {
    fn of(measured: &Measured) -> Self {
        let all = measured.due.all();
        let micros = |quantile| all.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            operations_per_second: measured.answered as f64 / measured.seconds,
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            cpu_us: match measured.answered {
                0 => 0.0,
                answered => measured.cpu_nodes.as_secs_f64() * 1e6 / answered as f64,
            },
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

/// With fewer degrees of freedom than this nothing is judged: the spread itself is hardly known.
const LEAST_FREEDOM: u64 = 4;

/// No difference below this is told from noise, in percent: a rate that is given, or a latency of few microseconds, has
/// next to no spread of its own.
const LEAST_PERCENT: f64 = 1.0;

/// How far apart two runs may be, in percent, before they differ by more than noise, by what the runs before each of them
/// were spread: (number of runs, standard deviation in percent). None if there were too few. Equal runs are further apart once in
/// a hundred times; four figures are compared, so at most four comparisons of equals in a hundred find a difference in any.
pub fn limit(before: (u64, f64), after: (u64, f64)) -> Option<f64> {
    let [before, after] = [before, after].map(|(runs, spread)| (runs.saturating_sub(1), spread));
    let freedom = before.0 + after.0;
    if freedom < LEAST_FREEDOM {
        return None;
    }
    let squares = before.0 as f64 * before.1.powi(2) + after.0 as f64 * after.1.powi(2);
    // A difference of two runs is spread by the square root of two times as much as one of them.
    let limit = t99(freedom as usize) * (2.0 * squares / freedom as f64).sqrt();
    Some(limit.max(LEAST_PERCENT))
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

    #[test]
    fn the_limit_needs_runs_and_shrinks_with_them() {
        assert_eq!(limit((2, 5.0), (2, 5.0)), None);
        assert_eq!(limit((1, 0.0), (0, 0.0)), None);
        let few = limit((3, 5.0), (3, 5.0)).unwrap();
        assert!((few - 4.604 * 5.0 * 2.0_f64.sqrt()).abs() < 1e-9, "{few}");
        let many = limit((100, 5.0), (100, 5.0)).unwrap();
        assert!(many < few, "{many}");
        // The noisier one counts.
        assert!(limit((3, 5.0), (3, 10.0)).unwrap() > few);
        assert_eq!(limit((9, 0.01), (9, 0.0)), Some(LEAST_PERCENT));
    }
}

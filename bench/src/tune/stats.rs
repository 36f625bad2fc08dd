//! What repeated runs of one configuration say, and how sure that is.

use serde::Serialize;

/// Runs of one configuration under one goal.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Runs {
    /// Operations per second of each run.
    pub rates: Vec<f64>,
    /// 99th percentile of each run in microseconds.
    pub p99s: Vec<f64>,
    /// What each run is worth; more is better.
    pub merits: Vec<f64>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Many operations per second with a 99th percentile of at most so many microseconds.
    Throughput { p99_us: f64 },
    /// A low 99th percentile at so many operations per second.
    Latency { rate: f64 },
}

impl Goal {
    /// What a run is worth. One that breaks the goal's condition counts for less, the more so the further it is off: then
    /// the search finds its way back.
    pub fn merit(&self, rate: f64, p99_us: f64) -> f64 {
        match *self {
            Goal::Throughput { p99_us: bound } => rate * (bound / p99_us.max(1.0)).min(1.0).powi(2),
            Goal::Latency { rate: wanted } => {
                1e6 / p99_us.max(1.0) * (rate / (0.97 * wanted)).min(1.0).powi(4)
            }
        }
    }

    /// Whether the runs of a configuration, taken together, keep the goal's condition.
    pub fn is_met(&self, runs: &Runs) -> bool {
        match *self {
            Goal::Throughput { p99_us } => mean(&runs.p99s) <= p99_us,
            Goal::Latency { rate } => mean(&runs.rates) >= 0.97 * rate,
        }
    }
}

impl Runs {
    /// Adds a run.
    pub fn add(&mut self, goal: Goal, rate: f64, p99_us: f64) {
        self.rates.push(rate);
        self.p99s.push(p99_us);
        self.merits.push(goal.merit(rate, p99_us));
    }

    /// Mean worth.
    pub fn merit(&self) -> f64 {
        mean(&self.merits)
    }

    /// Half the width of the 95 % confidence interval of [`Runs::merit`]; infinite for a single run.
    pub fn half_width(&self) -> f64 {
        half_width(&self.merits)
    }
}

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    match values.len() {
        0 => 0.0,
        count => values.iter().sum::<f64>() / count as f64,
    }
}

/// Half the width of the 95 % confidence interval of the mean, by Student's distribution.
pub fn half_width(values: &[f64]) -> f64 {
    let count = values.len();
    if count < 2 {
        return f64::INFINITY;
    }
    let mean = mean(values);
    let variance = values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / (count - 1) as f64;
    student(count - 1) * (variance / count as f64).sqrt()
}

/// Two-sided 95 % quantile of Student's distribution.
fn student(degrees: usize) -> f64 {
    const TABLE: [f64; 10] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    ];
    TABLE.get(degrees - 1).copied().unwrap_or(match degrees {
        11..=20 => 2.1,
        21..=60 => 2.0,
        _ => 1.96,
    })
}

/// Whether the means of two lists differ by more than their confidence intervals (Welch) allow for, and by how much.
pub fn differ(a: &[f64], b: &[f64]) -> bool {
    let (a_width, b_width) = (half_width(a), half_width(b));
    (mean(a) - mean(b)).abs() > a_width.hypot(b_width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_tables() {
        assert_eq!(half_width(&[5.0]), f64::INFINITY);
        // Mean 3, standard deviation sqrt(2.5), n = 5, t = 2.776.
        let width = half_width(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!((width - 1.963).abs() < 0.001, "{width}");
        assert_eq!(half_width(&[2.0, 2.0, 2.0]), 0.0);
    }

    #[test]
    fn only_clear_differences_count() {
        assert!(differ(&[10.0, 10.1, 9.9], &[12.0, 12.1, 11.9]));
        assert!(!differ(&[10.0, 12.0, 8.0], &[11.0, 13.0, 9.0]));
        assert!(!differ(&[10.0], &[99.0]), "one run says nothing of noise");
    }

    #[test]
    fn a_broken_bound_costs_more_than_it_gains() {
        let goal = Goal::Throughput { p99_us: 5_000.0 };
        assert_eq!(goal.merit(1000.0, 4_000.0), 1000.0);
        assert_eq!(goal.merit(1000.0, 5_000.0), 1000.0);
        assert!(goal.merit(1500.0, 10_000.0) < goal.merit(500.0, 5_000.0));
        let mut runs = Runs::default();
        runs.add(goal, 900.0, 4_000.0);
        runs.add(goal, 1100.0, 5_500.0);
        assert!(goal.is_met(&runs));
        runs.add(goal, 1100.0, 9_000.0);
        assert!(!goal.is_met(&runs));
    }

    #[test]
    fn a_rate_that_is_not_kept_makes_a_low_latency_worthless() {
        let goal = Goal::Latency { rate: 1000.0 };
        assert!(goal.merit(1000.0, 200.0) > goal.merit(1000.0, 400.0));
        assert!(goal.merit(500.0, 200.0) < goal.merit(1000.0, 400.0));
    }
}

//! Whether a measurement says anything, and whether the nodes kept up.

use super::measure::Measured;
use crate::screen;
use crate::workload::{Pace, Workload};
use std::time::Duration;

/// What makes a measurement say nothing, and whether the nodes kept up.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Reasons for being void; empty if it is valid.
    pub void: Vec<String>,
    /// One of them: the generator fell behind.
    pub is_late: bool,
    /// The nodes did not keep up with the rate.
    pub saturated: bool,
}

/// A rate is kept if this share of what was due was answered.
const KEPT: f64 = 0.98;

/// How much of a rate was kept, 1 if all of it, by what was answered and what was due in a window. What is under way at
/// either end of the window is counted on one side only; for few operations that is chance.
pub fn kept(answered: u64, due: u64) -> f64 {
    let needed = KEPT * due as f64 - (due as f64).sqrt();
    match needed > 0.0 {
        true => (answered as f64 / needed).min(1.0),
        false => 1.0,
    }
}

impl Judgement {
    /// Judges a measurement by the workload's pace and the bound on the generator's lag.
    pub fn of(measured: &Measured, workload: &Workload, max_lag: Duration) -> Self {
        let mut void = Vec::new();
        let (mut is_late, mut saturated) = (false, false);
        if let Pace::Rate { .. } = workload.pace {
            let lag = Duration::from_nanos(measured.due.lag.value_at_quantile(0.99));
            is_late = lag > max_lag;
            if is_late {
                void.push(format!(
                    "the generator fell behind: one operation in a hundred was sent {} or more after it was due, and the bound is {}; lower --rate, or give the generator more --threads or cores",
                    screen::time(lag),
                    screen::time(max_lag)
                ));
            }
            saturated = kept(measured.answered, measured.due.due()) < 1.0;
        }
        if measured.answered == 0 {
            void.push("no operation was answered".to_owned());
        }
        Self {
            void,
            is_late,
            saturated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stages::StageTimes;
    use super::*;
    use crate::load::Figures;
    use crate::totals::Totals;
    use crate::workload::{Arrivals, Keys, ReadMode, Sizes};
    use std::time::SystemTime;

    fn workload(pace: Pace) -> Workload {
        Workload {
            pace,
            payload: Sizes::Fixed(16),
            keys: Keys::Uniform,
            active_groups: 1,
            reads: 0.0,
            read_mode: ReadMode::Stale,
            threads: 1,
            seed: 1,
        }
    }

    /// Ten seconds in which 10,000 operations were due and so many answered, all sent so late.
    fn judge(pace: Pace, answered: u64, lag: Duration) -> Judgement {
        let mut due = Figures::new();
        due.lag.record_n(lag.as_nanos() as u64, 1000).unwrap();
        due.proposals.record_n(1_000_000, 10_000).unwrap();
        let measured = Measured {
            started: SystemTime::now(),
            seconds: 10.0,
            due,
            answered,
            committed: answered,
            rows: Vec::new(),
            totals: Totals::default(),
            cpu_nodes: Duration::ZERO,
            cpu_generator: Duration::ZERO,
            resident: 0,
            stages: StageTimes::new(),
            incidents: Vec::new(),
        };
        Judgement::of(&measured, &workload(pace), Duration::from_millis(5))
    }

    #[test]
    fn a_late_generator_makes_an_open_loop_void() {
        let open = Pace::Rate {
            per_second: 1000.0,
            arrivals: Arrivals::Poisson,
        };
        let (early, late) = (Duration::from_micros(100), Duration::from_millis(6));
        assert_eq!(judge(open, 10_000, early).void, Vec::<String>::new());
        let void = judge(open, 10_000, late).void;
        assert!(
            void.len() == 1 && void[0].contains("fell behind") && void[0].contains("--threads"),
            "{void:?}"
        );
        // A closed loop sends when there is room: it cannot be late.
        assert!(judge(Pace::Inflight(1), 10_000, late).void.is_empty());
        let void = judge(Pace::Inflight(1), 0, early).void;
        assert!(void[0].contains("no operation"), "{void:?}");
    }

    #[test]
    fn a_rate_that_is_not_kept_is_told_from_chance() {
        let open = Pace::Rate {
            per_second: 1000.0,
            arrivals: Arrivals::Poisson,
        };
        let lag = Duration::from_micros(10);
        assert!(!judge(open, 9_700, lag).saturated);
        assert!(judge(open, 9_000, lag).saturated);
    }

    #[test]
    fn all_of_a_rate_is_kept_but_for_the_ends_of_the_window() {
        assert_eq!(kept(10_000, 10_000), 1.0);
        assert_eq!(kept(9_700, 10_000), 1.0);
        assert!((kept(4_850, 10_000) - 0.5).abs() < 1e-9);
        assert_eq!((kept(0, 1), kept(0, 0)), (1.0, 1.0));
        assert_eq!(kept(20_000, 10_000), 1.0);
    }
}

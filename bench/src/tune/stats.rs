//! What repeated runs of one configuration say, and how sure that is.

use crate::bench::kept;
use crate::statistics::{half_width, mean};
use serde::Serialize;

/// What one run showed.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Operations per second.
    pub rate: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// Operations answered in the window, whenever they were due.
    pub answered: u64,
    /// Operations due in the window, whether they were answered or not.
    pub due: u64,
    /// Elections that the nodes began in the window.
    pub elections: u64,
    /// Why the run says nothing; None if it says something.
    pub void: Option<String>,
}

/// Runs of one configuration under one goal.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Runs {
    /// Operations per second of each run.
    pub rates: Vec<f64>,
    /// 99th percentile of each run in microseconds.
    pub p99s: Vec<f64>,
    /// What each run is worth; more is better.
    pub merits: Vec<f64>,
    /// Operations answered in all of them.
    pub answered: u64,
    /// Operations due in all of them.
    pub due: u64,
    /// Elections in all of them, those that say nothing among them.
    pub elections: u64,
    /// Why runs say nothing, one entry for each; they are in none of the lists above.
    pub void: Vec<String>,
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
    pub fn merit(&self, seen: &Seen) -> f64 {
        let p99_us = seen.p99_us.max(1.0);
        match *self {
            Goal::Throughput { p99_us: bound } => seen.rate * (bound / p99_us).min(1.0).powi(2),
            Goal::Latency { .. } => 1e6 / p99_us * kept(seen.answered, seen.due).powi(4),
        }
    }

    /// Whether the runs of a configuration, taken together, keep the goal's condition. Runs that say nothing do not.
    pub fn is_met(&self, runs: &Runs) -> bool {
        !runs.merits.is_empty()
            && match *self {
                Goal::Throughput { p99_us } => mean(&runs.p99s) <= p99_us,
                Goal::Latency { .. } => kept(runs.answered, runs.due) >= 1.0,
            }
    }
}

impl Runs {
    /// Adds a run.
    pub fn add(&mut self, goal: Goal, seen: &Seen) {
        self.elections += seen.elections;
        if let Some(why) = &seen.void {
            self.void.push(why.clone());
            return;
        }
        self.rates.push(seen.rate);
        self.p99s.push(seen.p99_us);
        self.merits.push(goal.merit(seen));
        self.answered += seen.answered;
        self.due += seen.due;
    }

    /// How many there were, those that say nothing among them.
    pub fn count(&self) -> usize {
        self.merits.len() + self.void.len()
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

/// Runs of two configurations in turn, to tell what the second is worth against the first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pairs {
    /// Of the configuration that is compared with.
    pub before: Runs,
    /// Of the other one: `after.merits[n]` was run next to `before.merits[n]`.
    pub after: Runs,
}

/// What a change is worth: operations per second or 99th percentile, whichever the goal is about.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// By how much the figure changed, in percent of what it was.
    pub percent: f64,
    /// Where that is with 95 % confidence; None with a single pair.
    pub interval: Option<[f64; 2]>,
    /// Whether the interval leaves 0 out.
    pub is_clear: bool,
}

impl Pairs {
    /// Adds two runs. If one of them says nothing, the other one has nothing to be compared with.
    pub fn add(&mut self, goal: Goal, before: &Seen, after: &Seen) {
        let void = before.void.as_ref().or(after.void.as_ref());
        for (runs, seen) in [(&mut self.before, before), (&mut self.after, after)] {
            let void = void.cloned();
            runs.add(
                goal,
                &Seen {
                    void,
                    ..seen.clone()
                },
            );
        }
    }

    /// Whether elections began with the second configuration and none with the first.
    pub fn begins_elections(&self) -> bool {
        self.before.elections == 0 && self.after.elections > 0
    }

    /// Whether the second configuration is worth more, by more than equal runs differ by.
    pub fn is_better(&self) -> bool {
        let both = self.after.merits.iter().zip(&self.before.merits);
        let gains: Vec<f64> = both.map(|(after, before)| after - before).collect();
        mean(&gains) > half_width(&gains)
    }

    /// Whether the second configuration is not to be taken: it is clearly worse, or breaks the goal's condition where the first
    /// one keeps it.
    pub fn is_loss(&self, goal: Goal) -> bool {
        match self.gain(goal) {
            Some(gain) => gain.is_loss(goal),
            None => goal.is_met(&self.before) && !goal.is_met(&self.after),
        }
    }

    /// The change in what the goal asks for. None unless both keep the goal's condition: a rate beyond the bound, or a latency
    /// at a lower rate, is not comparable.
    pub fn gain(&self, goal: Goal) -> Option<Gain> {
        if !goal.is_met(&self.before) || !goal.is_met(&self.after) {
            return None;
        }
        let (before, after) = match goal {
            Goal::Throughput { .. } => (&self.before.rates, &self.after.rates),
            Goal::Latency { .. } => (&self.before.p99s, &self.after.p99s),
        };
        let ratios: Vec<f64> = after
            .iter()
            .zip(before)
            .map(|(after, before)| (after / before).ln())
            .collect();
        let percent = |ratio: f64| 100.0 * ratio.exp_m1();
        let (middle, width) = (mean(&ratios), half_width(&ratios));
        Some(Gain {
            percent: percent(middle),
            interval: width
                .is_finite()
                .then(|| [percent(middle - width), percent(middle + width)]),
            is_clear: middle.abs() > width,
        })
    }
}

impl Gain {
    /// Whether the change is for the worse, by more than equal runs differ by.
    pub fn is_loss(&self, goal: Goal) -> bool {
        let is_less = self.percent < 0.0;
        let is_wanted_less = matches!(goal, Goal::Latency { .. });
        self.is_clear && is_less != is_wanted_less
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rate: f64, p99_us: f64) -> Seen {
        Seen {
            rate,
            p99_us,
            answered: rate as u64,
            due: rate as u64,
            elections: 1,
            void: None,
        }
    }

    #[test]
    fn a_broken_bound_costs_more_than_it_gains() {
        let goal = Goal::Throughput { p99_us: 5_000.0 };
        let merit = |rate, p99_us| goal.merit(&seen(rate, p99_us));
        assert_eq!(merit(1000.0, 4_000.0), 1000.0);
        assert_eq!(merit(1000.0, 5_000.0), 1000.0);
        assert!(merit(1500.0, 10_000.0) < merit(500.0, 5_000.0));
        let mut runs = Runs::default();
        runs.add(goal, &seen(900.0, 4_000.0));
        runs.add(goal, &seen(1100.0, 5_500.0));
        assert!(goal.is_met(&runs));
        runs.add(goal, &seen(1100.0, 9_000.0));
        assert!(!goal.is_met(&runs));
    }

    #[test]
    fn a_rate_is_kept_if_what_was_due_was_answered_however_much_that_was() {
        let goal = Goal::Latency { rate: 1000.0 };
        let run = |answered, due, p99_us| Seen {
            answered,
            due,
            ..seen(answered as f64, p99_us)
        };
        assert!(goal.merit(&run(1000, 1000, 200.0)) > goal.merit(&run(1000, 1000, 400.0)));
        assert!(goal.merit(&run(500, 1000, 200.0)) < goal.merit(&run(1000, 1000, 400.0)));
        let is_met = |answered, due| {
            let mut runs = Runs::default();
            runs.add(goal, &run(answered, due, 200.0));
            goal.is_met(&runs)
        };
        // Few arrivals are due by chance; all of them were answered.
        assert!(is_met(940, 940));
        assert!(!is_met(900, 1000));
        // Three of four, where one may be under way at the end.
        assert!(is_met(3, 4));
    }

    #[test]
    fn runs_that_say_nothing_keep_no_condition_and_are_worth_nothing() {
        let goal = Goal::Throughput { p99_us: 5_000.0 };
        let mut runs = Runs::default();
        let none = Seen {
            void: Some("no operation was answered".to_owned()),
            ..seen(0.0, 0.0)
        };
        runs.add(goal, &none);
        assert!(!goal.is_met(&runs));
        assert_eq!((runs.merit(), runs.count()), (0.0, 1));
        runs.add(goal, &seen(900.0, 4_000.0));
        assert!(goal.is_met(&runs));
        assert_eq!((runs.merit(), runs.count()), (900.0, 2));
    }

    /// Rate and 99th percentile.
    type Figures = (f64, f64);

    fn pairs(goal: Goal, runs: &[(Figures, Figures)]) -> Pairs {
        let mut pairs = Pairs::default();
        for (before, after) in runs {
            pairs.add(goal, &seen(before.0, before.1), &seen(after.0, after.1));
        }
        pairs
    }

    #[test]
    fn a_gain_is_that_of_the_figure_that_was_asked_for() {
        let goal = Goal::Throughput { p99_us: 5_000.0 };
        // The machine gets slower meanwhile; each pair says the same.
        let same = [
            ((1000.0, 4e3), (1050.0, 3e3)),
            ((800.0, 4e3), (840.0, 3e3)),
            ((600.0, 4e3), (630.0, 3e3)),
        ];
        let gain = pairs(goal, &same).gain(goal).unwrap();
        assert!((gain.percent - 5.0).abs() < 1e-6, "{gain:?}");
        assert!(gain.is_clear);
        assert!(pairs(goal, &same).is_better());
        assert!(
            !pairs(goal, &same[..1]).is_better(),
            "one pair says nothing of noise"
        );
        let [low, high] = gain.interval.unwrap();
        assert!(low <= gain.percent && gain.percent <= high, "{gain:?}");
        let goal = Goal::Latency { rate: 1000.0 };
        let gain = pairs(goal, &same).gain(goal).unwrap();
        assert!((gain.percent + 25.0).abs() < 1e-6, "{gain:?}");
        let gain = pairs(goal, &same[..1]).gain(goal).unwrap();
        assert_eq!((gain.interval, gain.is_clear), (None, false));
    }

    #[test]
    fn there_is_no_gain_over_what_does_not_keep_the_bound() {
        let goal = Goal::Throughput { p99_us: 5_000.0 };
        let over = ((1000.0, 9e3), (1050.0, 4e3));
        assert_eq!(pairs(goal, &[over, over]).gain(goal), None);
        assert_eq!(Pairs::default().gain(goal), None);
    }

    #[test]
    fn elections_are_held_against_a_configuration_only_if_there_are_none_without() {
        let goal = Goal::Throughput { p99_us: 5_000.0 };
        let begins = |before, after| {
            let of = |elections| Seen {
                elections,
                ..seen(1000.0, 1e3)
            };
            let mut pairs = Pairs::default();
            pairs.add(goal, &of(before), &of(after));
            pairs.begins_elections()
        };
        assert!(begins(0, 1));
        assert!(!begins(0, 0) && !begins(1, 2));
    }

    #[test]
    fn a_loss_is_clear_or_breaks_the_condition() {
        let throughput = Goal::Throughput { p99_us: 5_000.0 };
        let latency = Goal::Latency { rate: 1000.0 };
        let is_loss = |goal, before, after| pairs(goal, &[(before, after); 2]).is_loss(goal);
        assert!(is_loss(throughput, (1000.0, 1e3), (900.0, 1e3)));
        assert!(!is_loss(throughput, (900.0, 1e3), (1000.0, 1e3)));
        assert!(is_loss(latency, (1000.0, 1e3), (1000.0, 2e3)));
        assert!(!is_loss(latency, (1000.0, 2e3), (1000.0, 1e3)));
        assert!(is_loss(throughput, (1000.0, 1e3), (1200.0, 9e3)));
        // Neither keeps the bound.
        assert!(!is_loss(throughput, (1200.0, 9e3), (1000.0, 9e3)));
        let unclear = [((1000.0, 1e3), (900.0, 1e3)), ((900.0, 1e3), (950.0, 1e3))];
        assert!(!pairs(throughput, &unclear).is_loss(throughput));
    }

    #[test]
    fn a_run_that_says_nothing_takes_its_pair_with_it() {
        let goal = Goal::Throughput { p99_us: 5_000.0 };
        let void = Seen {
            void: Some("why".to_owned()),
            ..seen(1.0, 1.0)
        };
        let mut pairs = Pairs::default();
        pairs.add(goal, &seen(1000.0, 1e3), &void);
        pairs.add(goal, &seen(2000.0, 1e3), &seen(4000.0, 1e3));
        assert_eq!(
            (&pairs.before.rates[..], &pairs.after.rates[..]),
            (&[2000.0][..], &[4000.0][..])
        );
        assert_eq!((pairs.before.count(), pairs.after.count()), (2, 2));
        assert_eq!(pairs.after.elections, 2);
    }
}

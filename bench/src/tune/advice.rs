//! What follows from a sweep and from the machine: a configuration to paste, with a reason for each key.

use super::search::{Outcome, Trial};
use super::space::{Space, value_of};
use super::stats::{Goal, differ, half_width, mean};
use crate::bench::Times;
use crate::screen;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// One key with its value and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// Such as `wal.lanes`.
    pub key: String,
    /// As it is written in TOML, without quotes.
    pub value: String,
    /// What it would be without this advice.
    pub base: String,
    /// A sentence or two.
    pub reason: String,
}

/// What the goal's figure is, for people.
fn figure(goal: Goal, trial: &Trial) -> String {
    let plus_minus = |values: &[f64], show: &dyn Fn(f64) -> String| match half_width(values) {
        width if width.is_finite() => format!("{} ± {}", show(mean(values)), show(width)),
        _ => show(mean(values)),
    };
    match goal {
        Goal::Throughput { .. } => format!(
            "{} op/s at p99 {}",
            plus_minus(&trial.runs().rates, &|rate| screen::count(rate as u64)),
            time(mean(&trial.runs().p99s))
        ),
        Goal::Latency { .. } => format!("p99 {}", plus_minus(&trial.runs().p99s, &time)),
    }
}

fn time(micros: f64) -> String {
    screen::time(Duration::from_secs_f64(micros.max(0.0) / 1e6))
}

/// The best point's keys. What the sweep says of each is said of runs that differ in that key alone, if there are such.
pub fn of_sweep(space: &Space, outcome: &Outcome, goal: Goal) -> Vec<Advice> {
    let best = &outcome.trials[outcome.best];
    let base = space.base_values();
    let params = space.params().iter().zip(&best.point).zip(base).enumerate();
    params
        .map(|(at, ((param, chosen), base))| Advice {
            key: param.key.clone(),
            value: chosen.map_or_else(|| base.clone(), |chosen| param.values[chosen].clone()),
            base,
            reason: reason(outcome, at, goal, &param.values),
        })
        .collect()
}

fn reason(outcome: &Outcome, param: usize, goal: Goal, values: &[String]) -> String {
    let best = &outcome.trials[outcome.best];
    let point = &best.point;
    // Trials that differ in this key alone.
    let differs_here =
        |other: &&Trial| (0..point.len()).all(|at| (at == param) == (other.point[at] != point[at]));
    let mut others: Vec<&Trial> = outcome.trials.iter().filter(differs_here).collect();
    others.sort_by(|a, b| b.runs().merit().total_cmp(&a.runs().merit()));
    let value_of =
        |trial: &Trial| trial.point[param].map_or("the value as it was", |at| values[at].as_str());
    let Some(next) = others.first() else {
        return format!(
            "{} with this value; it was not tried with another one and the rest equal.",
            figure(goal, best)
        );
    };
    let compared = format!(
        "{} against {} with {}, the rest equal",
        figure(goal, best),
        figure(goal, next),
        value_of(next)
    );
    if differ(&best.runs().merits, &next.runs().merits) {
        format!("{compared}: more than the runs of one configuration differ by.")
    } else if let Some(worst) = others
        .last()
        .filter(|worst| worst.runs().merit() < 0.9 * best.runs().merit())
    {
        format!(
            "{compared}: about the same; {} was worse ({}).",
            value_of(worst),
            figure(goal, worst)
        )
    } else {
        format!("{compared}: no clear difference, so this key matters little here.")
    }
}

/// Timeouts from what the disk and the network of this machine take in their slow moments.
pub fn of_machine(fsync: &Times, round_trip: &Times, base: impl Fn(&str) -> String) -> Vec<Advice> {
    let slow = fsync.p999 + round_trip.p999;
    let tails = format!(
        "fsync p99.9 {} and round trip p99.9 {}",
        time(fsync.p999),
        time(round_trip.p999)
    );
    let min = nice((10.0 * slow).clamp(50_000.0, 10_000_000.0));
    // An election is a round of pre-votes and a round of votes that are synced at both ends.
    let election = 2.0 * round_trip.p999 + 2.0 * fsync.p999;
    let max = nice(min + min.max(4.0 * election));
    let beat = nice_down((min / 4.0).max(1_000.0));
    let retry = nice((8.0 * slow).clamp(20_000.0, 5_000_000.0));
    let advice = |key: &str, micros: f64, reason: String| Advice {
        key: key.to_owned(),
        value: format!("{}ms", (micros / 1e3).round()),
        base: base(key),
        reason,
    };
    vec![
        advice(
            "election.timeout_min",
            min,
            format!("ten times what a slow moment takes here ({tails}), and not below 50 ms, which a busy scheduler may take: a slow moment then costs no election."),
        ),
        advice(
            "election.timeout_max",
            max,
            format!("the spread of {} holds four elections of two round trips and two syncs each ({}), so that two candidates seldom meet.", time(max - min), time(election)),
        ),
        advice(
            "liveness.beat_interval",
            beat,
            "a quarter of election.timeout_min: two lost beats in a row do not make a node count as silent.".to_owned(),
        ),
        advice(
            "replication.retry_interval",
            retry,
            format!("eight times a slow acknowledgement ({tails}): what is only slow is not sent twice."),
        ),
    ]
}

/// The next number of milliseconds up that people would write.
fn nice(micros: f64) -> f64 {
    step(micros, f64::ceil)
}

fn nice_down(micros: f64) -> f64 {
    step(micros, f64::floor).max(1_000.0)
}

fn step(micros: f64, round: fn(f64) -> f64) -> f64 {
    let millis = micros / 1e3;
    let step = match millis {
        m if m < 20.0 => 1.0,
        m if m < 200.0 => 10.0,
        m if m < 2_000.0 => 50.0,
        _ => 500.0,
    };
    round(millis / step) * step * 1e3
}

/// TOML with a comment above each key. Keys whose value is that of the base are left out, with a note.
pub fn toml(title: &str, advice: &[&Advice]) -> String {
    let mut text = format!("# {title}\n");
    let mut sections: Vec<&str> = Vec::new();
    for advice in advice {
        let section = advice.key.split('.').next().unwrap_or_default();
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    for section in sections {
        let _ = write!(text, "\n[{section}]\n");
        for advice in advice {
            let Some((of, name)) = advice.key.split_once('.') else {
                continue;
            };
            if of == section {
                for line in wrap(&advice.reason, 100) {
                    let _ = writeln!(text, "# {line}");
                }
                let same = if advice.value == advice.base {
                    " # as it was"
                } else {
                    ""
                };
                let _ = writeln!(text, "{name} = {}{same}", value_of(&advice.value));
            }
        }
    }
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::search::{Method, Stop};
    use super::super::stats::{Runs, Seen};
    use super::*;
    use polyraft::Config;

    fn times(p999: f64) -> Times {
        Times {
            count: 1,
            p999,
            ..Times::default()
        }
    }

    #[test]
    fn timeouts_follow_the_tails_and_go_together() {
        for (fsync, trip) in [
            (200.0, 100.0),
            (5_000.0, 800.0),
            (60_000.0, 20_000.0),
            (3_000_000.0, 100.0),
        ] {
            let advice = of_machine(&times(fsync), &times(trip), |_| "?".to_owned());
            let text = toml("Timeouts", &advice.iter().collect::<Vec<_>>());
            let config =
                Config::from_toml_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            let min = config.election.timeout_min.as_micros() as f64;
            assert!(
                min >= 50_000.0 && min >= (10.0 * (fsync + trip)).min(10_000_000.0),
                "{min}"
            );
            assert!(config.election.timeout_max > config.election.timeout_min);
        }
    }

    fn seen(rate: f64) -> Seen {
        Seen {
            rate,
            p99_us: 1e3,
            answered: 1,
            due: 1,
            void: None,
        }
    }

    fn trial(point: [Option<usize>; 2], rates: &[f64]) -> Trial {
        let mut raced = Runs::default();
        for rate in rates {
            raced.add(Goal::Throughput { p99_us: 5e3 }, &seen(*rate));
        }
        Trial {
            point: point.to_vec(),
            tried: Runs::default(),
            raced,
        }
    }

    #[test]
    fn each_key_gets_its_value_and_a_reason_from_runs_that_differ_in_it_alone() {
        let texts = [
            "shards.count=1,2".to_owned(),
            "batch.turn_events=1024,2048".to_owned(),
        ];
        let space = Space::new(&Config::default(), &texts).unwrap();
        let outcome = Outcome {
            trials: vec![
                trial([None, None], &[1000.0, 1010.0, 990.0]),
                trial([Some(1), Some(0)], &[1500.0, 1510.0, 1490.0]),
                trial([Some(0), Some(0)], &[1005.0, 1010.0, 995.0]),
                trial([Some(1), Some(1)], &[1495.0, 1505.0, 1500.0]),
            ],
            best: 1,
            method: Method::Grid,
            stop: Stop::Decided,
            untried: 0,
            skipped: Vec::new(),
        };
        let advice = of_sweep(&space, &outcome, Goal::Throughput { p99_us: 5e3 });
        assert_eq!(
            (
                advice[0].key.as_str(),
                advice[0].value.as_str(),
                advice[0].base.as_str()
            ),
            ("shards.count", "2", "1")
        );
        assert!(
            advice[0].reason.contains("more than the runs"),
            "{}",
            advice[0].reason
        );
        assert!(
            advice[1].reason.contains("matters little"),
            "{}",
            advice[1].reason
        );
        let text = toml("Tuned", &advice.iter().collect::<Vec<_>>());
        let config = Config::from_toml_str(&text).unwrap();
        assert_eq!((config.shards.count, config.batch.turn_events), (2, 1024));
        assert!(
            text.lines().all(|line| line.chars().count() <= 102),
            "{text}"
        );
    }
}

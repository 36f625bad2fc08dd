//! What follows from a sweep and from the machine: a configuration to paste, with a reason for each key.

use super::search::{Outcome, Trial};
use super::space::{Space, micros_of, value_of};
use super::stats::{Goal, differ, half_width, mean};
use crate::bench::Times;
use crate::screen;
use polyraft::Config;
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
            reason: match chosen.is_some() && param.key == "wal.lanes" {
                // A node with another number of lanes on its disk does not start.
                true => format!("{} {NEW_LANES}", reason(outcome, at, goal, &param.values)),
                false => reason(outcome, at, goal, &param.values),
            },
        })
        .collect()
}

const NEW_LANES: &str =
    "Only new data directories can have it: the number of lanes is fixed when one is made.";

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

/// The keys that [`of_machine`] speaks of.
pub const TIMEOUTS: [&str; 4] = [
    "election.timeout_min",
    "election.timeout_max",
    "liveness.beat_interval",
    "replication.retry_interval",
];

/// The longest election timeout that a configuration may have, in microseconds.
const LONGEST_TIMEOUT: f64 = 60e6;
/// Above it QUIC acknowledges each beat with a packet of its own. In microseconds.
const LONGEST_BEAT: f64 = 48e3;

/// The shortest `election.timeout_min` that goes with these tails, in microseconds. A few seconds show no reason to go below the
/// default: slower moments come.
pub fn least_timeout(fsync: &Times, round_trip: &Times) -> f64 {
    let default = Config::default().election.timeout_min.as_micros() as f64;
    nice((10.0 * (fsync.p999 + round_trip.p999)).clamp(default, 10e6))
}

/// Timeouts from what the disk and the network take in their slow moments. They go together: where a sweep chose one
/// (`swept`, in microseconds), the others follow it, as far as the tails allow.
pub fn of_machine(
    fsync: &Times,
    round_trip: &Times,
    swept: impl Fn(&str) -> Option<f64>,
    base: impl Fn(&str) -> String,
) -> Vec<Advice> {
    let slow = fsync.p999 + round_trip.p999;
    let tails = format!(
        "fsync p99.9 {} and round trip p99.9 {}, under this load",
        time(fsync.p999),
        time(round_trip.p999)
    );
    let [swept_min, swept_max, swept_beat, swept_retry] = TIMEOUTS.map(swept);
    let for_beat = swept_beat.map_or(0.0, |beat| nice(beat / BEATS));
    let min = least_timeout(fsync, round_trip).max(swept_min.unwrap_or(for_beat));
    // An election is a round of pre-votes and a round of votes that are synced at both ends.
    let election = 2.0 * round_trip.p999 + 2.0 * fsync.p999;
    let max = swept_max
        .filter(|max| *max > min)
        .unwrap_or_else(|| nice(min + min.max(4.0 * election)).min(LONGEST_TIMEOUT));
    let beat = swept_beat.unwrap_or_else(|| whole_millis(min * BEATS).min(LONGEST_BEAT));
    let default_retry = Config::default().replication.retry_interval.as_micros() as f64;
    let retry = swept_retry.unwrap_or_else(|| nice((8.0 * slow).clamp(default_retry, 5e6)));
    let advice = |key: &str, micros: f64, swept: Option<f64>, reason: String| Advice {
        key: key.to_owned(),
        value: duration(micros),
        base: base(key),
        reason: match swept == Some(micros) {
            true => "the best of the values that were tried.".to_owned(),
            false => reason,
        },
    };
    let mut all = vec![
        advice(
            TIMEOUTS[0],
            min,
            swept_min,
            format!("at least ten times what a slow moment takes here ({tails}), and not below the default: a slow moment then costs no election."),
        ),
        advice(
            TIMEOUTS[1],
            max,
            swept_max,
            format!("the spread of {} holds four elections of two round trips and two syncs each ({}), so that two candidates seldom meet.", time(max - min), time(election)),
        ),
        advice(
            TIMEOUTS[2],
            beat,
            swept_beat,
            "three of them fit into election.timeout_min, so that two lost beats in a row do not make a node count as silent; not above 48 ms, where QUIC acknowledges each with a packet of its own.".to_owned(),
        ),
        advice(
            TIMEOUTS[3],
            retry,
            swept_retry,
            format!("at least eight times a slow acknowledgement ({tails}), and not below the default: what is only slow is not sent twice."),
        ),
    ];
    if micros_of(&all[0].base).is_some_and(|base| min < base) {
        all[0].reason += " It is shorter than it was: change it with all nodes stopped. In a rolling restart a node would keep the promise that lease reads rest on for the shorter time only.";
    }
    all
}

/// A beat's share of `election.timeout_min`: three fit, and a bit is left.
const BEATS: f64 = 0.3;

fn duration(micros: f64) -> String {
    let micros = micros.round() as u64;
    match micros.is_multiple_of(1_000) {
        true => format!("{}ms", micros / 1_000),
        false => format!("{micros}us"),
    }
}

fn whole_millis(micros: f64) -> f64 {
    (micros / 1e3).floor() * 1e3
}

/// The next number of milliseconds up that people would write.
fn nice(micros: f64) -> f64 {
    let millis = micros / 1e3;
    let step = match millis {
        m if m < 20.0 => 1.0,
        m if m < 200.0 => 10.0,
        m if m < 2_000.0 => 50.0,
        _ => 500.0,
    };
    (millis / step).ceil() * step * 1e3
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

    fn times(p999: f64) -> Times {
        Times {
            count: 1,
            p999,
            ..Times::default()
        }
    }

    /// The timeouts that follow from tails in microseconds and from a sweep, as a node takes them.
    fn timeouts(fsync: f64, trip: f64, swept: &[(&str, f64)]) -> Config {
        let swept = |key: &str| swept.iter().find(|(of, _)| *of == key).map(|(_, at)| *at);
        let advice = of_machine(&times(fsync), &times(trip), swept, |_| "?".to_owned());
        let text = toml("Timeouts", &advice.iter().collect::<Vec<_>>());
        Config::from_toml_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    #[test]
    fn timeouts_follow_the_tails_and_go_together() {
        let default = Config::default();
        for (fsync, trip) in [
            (200.0, 100.0),
            (5_000.0, 800.0),
            (60_000.0, 20_000.0),
            (3_000_000.0, 100.0),
            (30_000_000.0, 100.0),
        ] {
            let config = timeouts(fsync, trip, &[]);
            let min = config.election.timeout_min.as_micros() as f64;
            assert!(min >= (10.0 * (fsync + trip)).min(10_000_000.0), "{min}");
            assert!(config.election.timeout_min >= default.election.timeout_min);
            assert!(config.election.timeout_max > config.election.timeout_min);
            assert!(config.liveness.beat_interval <= Duration::from_millis(48));
        }
        let fast = timeouts(200.0, 100.0, &[]);
        assert_eq!(fast.election, default.election);
        assert_eq!(fast.liveness, default.liveness);
        assert_eq!(fast.replication, default.replication);
    }

    #[test]
    fn timeouts_follow_the_one_that_was_swept_but_not_below_the_tails() {
        let millis = Duration::from_millis;
        let long = timeouts(200.0, 100.0, &[(TIMEOUTS[0], 900e3)]);
        assert_eq!(long.election.timeout_min, millis(900));
        assert!(long.election.timeout_max >= millis(1_800));
        let short = timeouts(60_000.0, 20_000.0, &[(TIMEOUTS[0], 160e3)]);
        assert_eq!(short.election.timeout_min, millis(800));
        let max = timeouts(200.0, 100.0, &[(TIMEOUTS[1], 200e3)]);
        assert_eq!(max.election.timeout_max, millis(200));
        assert!(max.election.timeout_min < millis(200));
        let beat = timeouts(200.0, 100.0, &[(TIMEOUTS[2], 400e3)]);
        assert_eq!(beat.liveness.beat_interval, millis(400));
        assert!(beat.election.timeout_min >= millis(1_200));
        let longest = timeouts(200.0, 100.0, &[(TIMEOUTS[0], 50e6)]);
        assert_eq!(longest.election.timeout_max, Duration::from_secs(60));
    }

    #[test]
    fn a_shorter_timeout_comes_with_a_warning() {
        let reason = |base: &str| {
            let advice = of_machine(&times(1.0), &times(1.0), |_| None, |_| base.to_owned());
            advice[0].reason.clone()
        };
        assert!(reason("1s").contains("all nodes stopped"));
        assert!(!reason("150ms").contains("all nodes stopped"));
    }

    fn seen(rate: f64) -> Seen {
        Seen {
            rate,
            p99_us: 1e3,
            answered: 1,
            due: 1,
            elections: 0,
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

    #[test]
    fn another_number_of_lanes_is_for_new_data_directories() {
        let texts = ["shards.count=2,4".to_owned(), "wal.lanes=1,2".to_owned()];
        let space = Space::new(&Config::default(), &texts).unwrap();
        let outcome = |point| Outcome {
            trials: vec![trial(point, &[1000.0])],
            best: 0,
            method: Method::Grid,
            stop: Stop::Decided,
            untried: 0,
            skipped: Vec::new(),
        };
        let reason = |point| {
            let goal = Goal::Throughput { p99_us: 5e3 };
            of_sweep(&space, &outcome(point), goal)[1].reason.clone()
        };
        assert!(reason([Some(0), Some(1)]).contains("new data directories"));
        assert!(!reason([Some(0), None]).contains("new data directories"));
    }
}

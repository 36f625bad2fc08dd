//! What follows from a sweep and from the machine: a configuration to paste, with a reason for each key.

use super::search::{Check, Outcome};
use super::space::{Space, micros_of, value_of};
use super::stats::{Goal, Pairs, Runs};
use crate::bench::Times;
use crate::screen;
use crate::statistics::mean;
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
fn figure(goal: Goal, runs: &Runs) -> String {
    match goal {
        Goal::Throughput { .. } => format!(
            "{} op/s at p99 {}",
            screen::count(mean(&runs.rates) as u64),
            time(mean(&runs.p99s))
        ),
        Goal::Latency { .. } => format!("p99 {}", time(mean(&runs.p99s))),
    }
}

fn time(micros: f64) -> String {
    screen::time(Duration::from_secs_f64(micros.max(0.0) / 1e6))
}

/// The keys that were swept. What is said of each is said of runs that differ in that key alone.
pub fn of_sweep(space: &Space, outcome: &Outcome, goal: Goal) -> Vec<Advice> {
    let base = space.base_values();
    let params = space.params().iter().zip(&outcome.chosen).zip(base);
    params
        .enumerate()
        .map(|(at, ((param, chosen), base))| {
            let mut checks = outcome.checks.iter().filter(|check| {
                let mut keys = check.keys.iter();
                keys.any(|(param, _)| *param == at)
            });
            // What was compared alone may have gone back with another key later.
            let check = match chosen {
                Some(_) => checks.next(),
                None => checks.next_back(),
            };
            let mut reason = check.map_or_else(
                || "no value that was tried came out ahead of the one that it has.".to_owned(),
                |check| of_check(space, check, goal),
            );
            if chosen.is_some() {
                reason += caution(&param.key);
            }
            Advice {
                key: param.key.clone(),
                value: chosen.map_or_else(|| base.clone(), |chosen| param.values[chosen].clone()),
                base,
                reason,
            }
        })
        .collect()
}

/// What to know of a key before it is pasted, because no run shows it.
fn caution(key: &str) -> &'static str {
    match key {
        "wal.lanes" => {
            " Only new data directories can have it: the number of lanes is fixed when one is made."
        }
        "wal.inline_sync" => {
            " Only where the disk never stalls for as long as an election timeout: the node's groups would elect other leaders then."
        }
        "apply.inline" => {
            " Only if the state machine never blocks for as long as an election timeout, nor waits for its own node."
        }
        _ => "",
    }
}

/// What the runs of a check say.
fn of_check(space: &Space, check: &Check, goal: Goal) -> String {
    let (params, base) = (space.params(), space.base_values());
    let value = |of: &(usize, usize)| params[of.0].values[of.1].as_str();
    if let [only] = &check.keys[..] {
        return reason(check, goal, value(only), &base[only.0]);
    }
    let list = |value: &dyn Fn(&(usize, usize)) -> String| {
        let texts = check
            .keys
            .iter()
            .map(|of| format!("{}={}", params[of.0].key, value(of)));
        texts.collect::<Vec<_>>().join(" ")
    };
    let with = list(&|of| value(of).to_owned());
    let as_it_is = list(&|of| base[of.0].clone());
    format!(
        "these keys together: {}",
        reason(check, goal, &with, &as_it_is)
    )
}

fn reason(check: &Check, goal: Goal, value: &str, base: &str) -> String {
    let Pairs { before, after } = &check.pairs;
    if let Some(why) = &check.failed {
        return format!("{value} could not be compared with {base}: {why}.");
    }
    if check.pairs == Pairs::default() {
        return format!("there was no time to compare {value} with {base} (--budget).");
    }
    if after.merits.is_empty() {
        return format!("no run of {value} next to one of {base} says anything.");
    }
    let compared = format!(
        "{} with {value} against {} with {base}, the rest equal, in {} pairs of runs",
        figure(goal, after),
        figure(goal, before),
        after.merits.len()
    );
    match check.is_better {
        true => format!("{compared}: more than equal runs differ by."),
        false => format!("no measurable effect here: {compared}."),
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
    let advice = |key: &str, micros: f64, reason: String| Advice {
        key: key.to_owned(),
        value: duration(micros),
        base: base(key),
        reason,
    };
    let mut all = vec![
        advice(
            TIMEOUTS[0],
            min,
            format!("at least ten times what a slow moment takes here ({tails}), and not below the default: a slow moment then costs no election."),
        ),
        advice(
            TIMEOUTS[1],
            max,
            format!("the spread of {} holds four elections of two round trips and two syncs each ({}), so that two candidates seldom meet.", time(max - min), time(election)),
        ),
        advice(
            TIMEOUTS[2],
            beat,
            "three of them fit into election.timeout_min, so that two lost beats in a row do not make a node count as silent; not above 48 ms, where QUIC acknowledges each with a packet of its own.".to_owned(),
        ),
        advice(
            TIMEOUTS[3],
            retry,
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

/// TOML with a comment above each key. A key whose value is that of the base is written too, with a note.
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
    use super::super::stats::Seen;
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

    fn check(param: usize, rates: &[(f64, f64)]) -> Check {
        let goal = Goal::Throughput { p99_us: 5e3 };
        let mut pairs = Pairs::default();
        for (before, after) in rates {
            pairs.add(goal, &seen(*before), &seen(*after));
        }
        Check {
            keys: vec![(param, 1)],
            is_better: pairs.is_better(),
            pairs,
            failed: None,
        }
    }

    fn swept(texts: [&str; 2], chosen: [Option<usize>; 2], checks: Vec<Check>) -> Vec<Advice> {
        let space = Space::new(&Config::default(), &texts.map(str::to_owned)).unwrap();
        let outcome = Outcome {
            trials: Vec::new(),
            best: 0,
            chosen: chosen.to_vec(),
            checks,
            method: Method::Grid,
            stop: Stop::Decided,
            untried: 0,
            skipped: Vec::new(),
        };
        of_sweep(&space, &outcome, Goal::Throughput { p99_us: 5e3 })
    }

    #[test]
    fn each_key_gets_its_value_and_a_reason_from_runs_that_differ_in_it_alone() {
        let texts = ["shards.count=1,2", "batch.turn_events=1024,2048"];
        let clear = check(0, &[(1000.0, 1500.0), (1010.0, 1510.0), (990.0, 1490.0)]);
        let unclear = check(1, &[(1000.0, 990.0), (1010.0, 1020.0), (990.0, 1000.0)]);
        let advice = swept(texts, [Some(1), None], vec![clear, unclear]);
        let shards = &advice[0];
        assert_eq!((&shards.key[..], &shards.value[..]), ("shards.count", "2"));
        assert_eq!(shards.base, "1");
        assert!(
            shards
                .reason
                .contains("1,500 op/s at p99 1.00 ms with 2 against 1,000")
        );
        assert!(shards.reason.contains("more than equal runs"));
        assert_eq!(advice[1].value, advice[1].base);
        assert!(advice[1].reason.contains("no measurable effect"));
        let text = toml("Tuned", &advice.iter().collect::<Vec<_>>());
        let config = Config::from_toml_str(&text).unwrap();
        assert_eq!((config.shards.count, config.batch.turn_events), (2, 4096));
        let is_short = |line: &str| line.chars().count() <= 102;
        assert!(text.lines().all(is_short), "{text}");
    }

    #[test]
    fn keys_that_were_compared_together_are_said_to_have_been() {
        let texts = ["shards.count=1,2", "wal.lanes=1,2"];
        let lanes = check(1, &[(1000.0, 1500.0), (1010.0, 1510.0)]);
        let together = |rates: &[(f64, f64)]| Check {
            keys: vec![(0, 1), (1, 1)],
            ..check(0, rates)
        };
        let better = together(&[(1000.0, 1700.0), (1010.0, 1710.0)]);
        let advice = swept(texts, [Some(1); 2], vec![lanes.clone(), better]);
        let both = "with shards.count=2 wal.lanes=2 against 1,005 op/s at p99 1.00 ms with shards.count=1 wal.lanes=1";
        assert!(advice[0].reason.contains(both), "{}", advice[0].reason);
        assert!(
            advice[1].reason.contains("with 2 against"),
            "{}",
            advice[1].reason
        );
        // Whatever the lanes showed alone, they went back with the shards.
        let equal = together(&[(1000.0, 1010.0), (1010.0, 1000.0)]);
        for advice in swept(texts, [None; 2], vec![lanes, equal]) {
            assert!(
                advice.reason.contains("no measurable effect"),
                "{}",
                advice.reason
            );
        }
    }

    #[test]
    fn a_key_that_was_not_compared_is_not_said_to_have_been() {
        let texts = ["shards.count=1,2", "batch.turn_events=1024,2048"];
        let advice = swept(texts, [None, None], vec![check(1, &[])]);
        assert!(advice[0].reason.contains("no value that was tried"));
        assert!(
            advice[1]
                .reason
                .contains("no time to compare 2048 with 4096")
        );
    }

    #[test]
    fn what_no_run_shows_of_a_key_is_told_with_it() {
        let texts = ["wal.inline_sync=1ms,2ms", "apply.inline=1ms,2ms"];
        let better = check(0, &[(1.0, 2.0), (1.0, 2.0)]);
        let advice = swept(texts, [Some(0), None], vec![better]);
        assert!(advice[0].reason.contains("the disk never stalls"));
        assert!(!advice[1].reason.contains("never blocks"));
    }

    #[test]
    fn another_number_of_lanes_is_for_new_data_directories() {
        let reason = |chosen, rates: &[(f64, f64)]| {
            let texts = ["shards.count=2,4", "wal.lanes=1,2"];
            swept(texts, chosen, vec![check(1, rates)])[1]
                .reason
                .clone()
        };
        let better = [(1.0, 2.0), (1.0, 2.0)];
        assert!(reason([Some(0), Some(1)], &better).contains("new data directories"));
        assert!(!reason([Some(0), None], &[]).contains("new data directories"));
    }
}

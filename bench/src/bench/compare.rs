//! `polyraft bench compare`: whether two results may be compared, and whether they differ by more than noise.

use super::Ending;
use super::args::CompareArgs;
use super::noise::{apart, limit};
use super::result::FORMAT;
use crate::screen::two_columns;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// Reads both results, and prints the verdict.
pub fn run(args: &CompareArgs) -> Result<Ending> {
    let before = read(&args.before)?;
    let after = read(&args.after)?;
    let verdict = compare(&before, &after);
    let _ = writeln!(std::io::stdout(), "{}", verdict.text);
    Ok(verdict.ending)
}

fn read(path: &Path) -> Result<Value> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    ensure!(
        value["kind"] == "bench" && value["format"] == FORMAT,
        "{} is not a result of `polyraft bench --json` of this version",
        path.display()
    );
    Ok(value)
}

/// What there is to say about two results.
#[derive(Debug, PartialEq)]
struct Verdict {
    text: String,
    ending: Ending,
}

/// What is compared: name, place in the JSON, place of its noise, and whether more is better.
const METRICS: [(&str, &str, &str, bool); 4] = [
    (
        "operations/s",
        "/result/operations_per_second",
        "/noise/throughput_percent",
        true,
    ),
    (
        "p50 latency",
        "/result/latency_us/p50",
        "/noise/p50_percent",
        false,
    ),
    (
        "p99 latency",
        "/result/latency_us/p99",
        "/noise/p99_percent",
        false,
    ),
    (
        "CPU µs/operation",
        "/result/cpu_nodes_us_per_operation",
        "/noise/cpu_percent",
        false,
    ),
];

/// What is said of one figure.
enum Found {
    Better(String),
    Worse(String),
    /// Neither, as far as can be told.
    Same(String),
    NotJudged(String),
}

impl Found {
    fn of_change(is_better: bool, why: String) -> Self {
        if is_better {
            Self::Better(why)
        } else {
            Self::Worse(why)
        }
    }
}

fn compare(before: &Value, after: &Value) -> Verdict {
    let mut found = Differences::default();
    differ("", &before["setup"], &after["setup"], &mut found);
    if !found.values.is_empty() {
        let mut text = "The set-ups differ, so the results are not compared:".to_owned();
        for (place, a, b) in &found.values {
            let _ = write!(text, "\n  {place}: {a} / {b}");
        }
        return Verdict {
            text,
            ending: Ending::Mismatch,
        };
    }
    for (name, result) in [("first", before), ("second", after)] {
        if result["valid"] != true {
            return Verdict {
                text: format!(
                    "The {name} result is void, so the results are not compared: {}",
                    result["void"]
                ),
                ending: Ending::Mismatch,
            };
        }
    }
    if let Some(text) = different_disks(before, after) {
        return Verdict {
            text,
            ending: Ending::Mismatch,
        };
    }
    let mut rows = Vec::new();
    let (mut is_judged, mut is_worse) = (false, false);
    for (name, place, noise, more_is_better) in METRICS {
        let (Some(a), Some(b)) = (number(before, place), number(after, place)) else {
            continue;
        };
        let is_rate = name == METRICS[0].0;
        let found = if is_rate && is_rate_given(before, after) {
            Found::NotJudged("this is the rate that was given".into())
        } else {
            let spread = |result: &Value| {
                let runs = result.pointer("/noise/runs")?.as_array()?.len();
                Some((runs as u64, number(result, noise)?))
            };
            judge(a, b, more_is_better, spread(before), spread(after))
        };
        is_judged |= !matches!(found, Found::NotJudged(_));
        is_worse |= matches!(found, Found::Worse(_));
        let change = if a == 0.0 { 0.0 } else { 100.0 * (b - a) / a };
        let text = match found {
            Found::Better(why) => format!("BETTER, {why}"),
            Found::Worse(why) => format!("WORSE, {why}"),
            Found::Same(why) => why,
            Found::NotJudged(why) => format!("no verdict: {why}"),
        };
        let text = match keeping_up(before, after) {
            Some(told) if is_rate => format!("{text}; {told}"),
            _ => text,
        };
        rows.push((
            name,
            format!("{a:>12.1} {b:>12.1} {change:>+8.1} %   {text}"),
        ));
    }
    let commit = |result: &Value| {
        result["engine"]["commit"]
            .as_str()
            .unwrap_or("unknown")
            .to_owned()
    };
    let mut text = format!(
        "{} against {}\n{}",
        commit(after),
        commit(before),
        two_columns(&rows)
    );
    for place in &found.unknown {
        let _ = write!(
            text,
            "\nwarning: only one result knows {place}; the other engine has no such key"
        );
    }
    let ending = match (is_judged, is_worse) {
        (false, _) => Ending::Mismatch,
        (true, false) => Ending::Good,
        (true, true) => Ending::Bad,
    };
    Verdict { text, ending }
}

fn number(result: &Value, place: &str) -> Option<f64> {
    result.pointer(place)?.as_f64()
}

/// In an open loop the rate is given, and operations per second say nothing as long as the nodes keep up with it.
fn is_rate_given(before: &Value, after: &Value) -> bool {
    let keeps_up = |result: &Value| result["saturated"] != true;
    before.pointer("/setup/workload/pace/rate").is_some() && keeps_up(before) && keeps_up(after)
}

/// What to say if the nodes keep up with the rate in one of the results only. It is no verdict: a rate that is barely kept is
/// missed by chance, so the noise decides.
fn keeping_up(before: &Value, after: &Value) -> Option<&'static str> {
    match (before["saturated"] == true, after["saturated"] == true) {
        (false, true) => Some("in the second result the nodes do not keep up with the rate"),
        (true, false) => Some("in the first result the nodes do not keep up with the rate"),
        _ => None,
    }
}

/// `spread` of each: number of equal runs, and their standard deviation in percent.
fn judge(
    a: f64,
    b: f64,
    more_is_better: bool,
    before: Option<(u64, f64)>,
    after: Option<(u64, f64)>,
) -> Found {
    let (Some(before), Some(after)) = (before, after) else {
        return Found::NotJudged("a result has no noise (--noise-rounds)".into());
    };
    match limit(before, after) {
        None => Found::NotJudged("too few equal runs (--noise-rounds)".into()),
        Some(limit) if apart(a, b) <= limit => {
            Found::Same(format!("within the noise, which ends at {limit:.1} %"))
        }
        Some(limit) => Found::of_change(
            (b > a) == more_is_better,
            format!("beyond the noise, which ends at {limit:.1} %"),
        ),
    }
}

/// A sync is not worth comparing below this time in microseconds: then it is not what a commit waits for.
const SHORT_SYNC_US: f64 = 50.0;

/// What to say if the disk was more than twice as fast before one of the results, whatever it is called.
fn different_disks(before: &Value, after: &Value) -> Option<String> {
    let place = "/preflight/fsync_us/p50";
    let (a, b) = (number(before, place)?, number(after, place)?);
    let (low, high) = (a.min(b).max(SHORT_SYNC_US), a.max(b));
    (high > 2.0 * low).then(|| {
        format!(
            "The disk was not as fast, so the results are not compared: fsync of 4 KiB took {a} µs before the first and {b} µs before the second (p50)"
        )
    })
}

/// How two set-ups differ.
#[derive(Default)]
struct Differences {
    /// Place, and both values.
    values: Vec<(String, String, String)>,
    /// Keys of the nodes' configuration that only one of them has: an engine that lacks a key still compares with one that
    /// has it, or no result would outlive a new key.
    unknown: Vec<String>,
}

/// Adds what two values differ by.
fn differ(place: &str, a: &Value, b: &Value, into: &mut Differences) {
    if let (Value::Object(left), Value::Object(right)) = (a, b) {
        let mut names: Vec<&String> = left.keys().chain(right.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let place = if place.is_empty() {
                name.clone()
            } else {
                format!("{place}.{name}")
            };
            let both = left.contains_key(name) && right.contains_key(name);
            if !both && place.starts_with("config.") {
                into.unknown.push(place);
            } else {
                differ(&place, &a[name.as_str()], &b[name.as_str()], into);
            }
        }
    } else if a != b {
        into.values
            .push((place.to_owned(), a.to_string(), b.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::noise::{Noise, Run};
    use crate::workload::Rng;
    use serde_json::json;

    fn result(rate: f64, p99: f64, noise: Value) -> Value {
        json!({
            "format": FORMAT, "kind": "bench", "valid": true, "void": [], "saturated": false,
            "engine": {"commit": "abc"},
            "setup": {"nodes": 3, "workload": {"payload": "16", "pace": {"inflight": 64}}},
            "result": {
                "operations_per_second": rate, "latency_us": {"p50": 100.0, "p99": p99},
                "cpu_nodes_us_per_operation": 20.0,
            },
            "noise": noise,
        })
    }

    /// Of six runs, so that the limits are 4.5 times as far.
    fn noise() -> Value {
        json!({
            "runs": [0, 0, 0, 0, 0, 0],
            "throughput_percent": 1.0, "p50_percent": 1.0, "p99_percent": 5.0, "cpu_percent": 2.0,
        })
    }

    fn open(mut result: Value, saturated: bool) -> Value {
        result["setup"]["workload"]["pace"] = json!({"rate": {"per_second": 100.0}});
        result["saturated"] = json!(saturated);
        result
    }

    #[test]
    fn different_setups_are_refused_with_what_differs() {
        let a = result(100.0, 10.0, noise());
        let mut b = a.clone();
        b["setup"]["workload"]["pace"] = json!({"inflight": 128});
        b["setup"]["nodes"] = json!(5);
        let verdict = compare(&a, &b);
        assert_eq!(verdict.ending, Ending::Mismatch);
        for line in ["nodes: 3 / 5", "workload.pace.inflight: 64 / 128"] {
            assert!(verdict.text.contains(line), "{}", verdict.text);
        }
        assert!(!verdict.text.contains("payload"), "{}", verdict.text);
        // A key that only one of them has is a difference too.
        b = a.clone();
        b["setup"]["processes"] = json!(true);
        assert!(compare(&a, &b).text.contains("processes: null / true"));
    }

    #[test]
    fn a_key_that_one_engine_lacks_is_told_and_not_refused() {
        let mut a = result(100.0, 10.0, noise());
        a["setup"]["config"] = json!({"wal": {"mode": "direct", "lanes": 1}});
        let mut b = a.clone();
        b["setup"]["config"]["wal"]["depth"] = json!(4);
        b["setup"]["config"]["trace"] = json!({"one_in": 64});
        let verdict = compare(&a, &b);
        assert_eq!(verdict.ending, Ending::Good, "{}", verdict.text);
        for key in ["knows config.wal.depth", "knows config.trace"] {
            assert!(verdict.text.contains(key), "{}", verdict.text);
        }
        b["setup"]["config"]["wal"]["lanes"] = json!(2);
        assert_eq!(compare(&a, &b).ending, Ending::Mismatch);
    }

    #[test]
    fn a_disk_of_another_speed_is_refused() {
        let with_fsync = |p50: u64| {
            let mut result = result(100.0, 10.0, noise());
            result["preflight"] = json!({"fsync_us": {"p50": p50}});
            result
        };
        let ending = |a, b| compare(&with_fsync(a), &with_fsync(b)).ending;
        assert_eq!(ending(1000, 1900), Ending::Good);
        assert_eq!(ending(1000, 2100), Ending::Mismatch);
        assert_eq!(ending(2100, 1000), Ending::Mismatch);
        // Both do not wait for a disk.
        assert_eq!(ending(2, 90), Ending::Good);
    }

    #[test]
    fn a_void_result_is_not_compared() {
        let a = result(100.0, 10.0, noise());
        let mut b = a.clone();
        b["valid"] = json!(false);
        b["void"] = json!(["lag"]);
        let verdict = compare(&a, &b);
        assert_eq!(verdict.ending, Ending::Mismatch);
        assert!(
            verdict.text.contains("second result is void"),
            "{}",
            verdict.text
        );
    }

    #[test]
    fn differences_are_judged_by_the_noise() {
        let a = result(100.0, 10.0, noise());
        let verdict = compare(&a, &result(102.0, 11.0, noise()));
        assert_eq!(verdict.ending, Ending::Good);
        assert!(!verdict.text.contains("beyond"), "{}", verdict.text);
        let better = compare(&a, &result(120.0, 7.0, noise()));
        assert_eq!(better.ending, Ending::Good);
        assert_eq!(better.text.matches("BETTER").count(), 2, "{}", better.text);
        let worse = compare(&a, &result(80.0, 10.0, noise()));
        assert_eq!(worse.ending, Ending::Bad);
        assert!(
            worse
                .text
                .contains("WORSE, beyond the noise, which ends at 4.5 %"),
            "{}",
            worse.text
        );
        let slower = compare(&a, &result(100.0, 14.0, noise()));
        assert_eq!(slower.ending, Ending::Bad, "{}", slower.text);
    }

    #[test]
    fn cpu_is_judged_by_its_own_noise() {
        let a = result(100.0, 10.0, noise());
        let mut b = a.clone();
        // 2 % of noise end at 9 %.
        b["result"]["cpu_nodes_us_per_operation"] = json!(21.5);
        assert_eq!(compare(&a, &b).ending, Ending::Good);
        b["result"]["cpu_nodes_us_per_operation"] = json!(22.5);
        assert_eq!(compare(&a, &b).ending, Ending::Bad);
    }

    #[test]
    fn a_rate_that_is_not_kept_is_judged_by_the_noise() {
        let a = open(result(100.0, 10.0, noise()), false);
        let slow = open(result(90.0, 10.0, noise()), false);
        let verdict = compare(&a, &slow);
        assert_eq!(verdict.ending, Ending::Good, "{}", verdict.text);
        assert!(verdict.text.contains("was given"), "{}", verdict.text);
        let full = open(result(90.0, 10.0, noise()), true);
        let verdict = compare(&a, &full);
        assert_eq!(verdict.ending, Ending::Bad);
        assert!(
            verdict
                .text
                .contains("in the second result the nodes do not keep up"),
            "{}",
            verdict.text
        );
        let verdict = compare(&full, &a);
        assert_eq!(verdict.ending, Ending::Good);
        assert!(verdict.text.contains("BETTER"), "{}", verdict.text);
        // One of them barely kept up.
        let nearly = open(result(98.0, 10.0, noise()), true);
        for (a, b) in [(&a, &nearly), (&nearly, &a)] {
            let verdict = compare(a, b);
            assert_eq!(verdict.ending, Ending::Good);
            assert!(!verdict.text.contains("beyond"), "{}", verdict.text);
            assert!(verdict.text.contains("do not keep up"), "{}", verdict.text);
        }
        // Neither keeps up: then the rate is the nodes' own.
        let fuller = open(result(80.0, 10.0, noise()), true);
        assert_eq!(compare(&full, &fuller).ending, Ending::Bad);
    }

    #[test]
    fn nothing_judged_is_no_comparison() {
        let b = result(10.0, 100.0, noise());
        let mut few = noise();
        few["runs"] = json!([0, 0]);
        for (a, b) in [
            (result(100.0, 10.0, Value::Null), b.clone()),
            (result(100.0, 10.0, few.clone()), result(10.0, 100.0, few)),
            (
                open(result(100.0, 10.0, Value::Null), false),
                open(b, false),
            ),
        ] {
            let verdict = compare(&a, &b);
            assert_eq!(verdict.ending, Ending::Mismatch, "{}", verdict.text);
            assert!(verdict.text.contains("no verdict"), "{}", verdict.text);
        }
    }

    #[test]
    fn equals_are_seldom_called_different() {
        let mut rng = Rng::new(7, 0);
        // Twelve uniform values add up to nearly a normal one.
        let mut noisy =
            move |mean: f64| mean * (1.0 + 0.03 * ((0..12).map(|_| rng.unit()).sum::<f64>() - 6.0));
        let mut measure = |p50: f64, is_open: bool| {
            let mut run = || Run {
                operations_per_second: noisy(1000.0),
                p50_us: noisy(p50),
                p99_us: noisy(900.0),
                cpu_us: noisy(20.0),
            };
            let last = run();
            let noise = Noise::of(2, (0..6).map(|_| run()).collect());
            let mut measured = result(last.operations_per_second, last.p99_us, json!(noise));
            measured["result"]["latency_us"]["p50"] = json!(last.p50_us);
            measured["result"]["cpu_nodes_us_per_operation"] = json!(last.cpu_us);
            match is_open {
                // The rate is what the nodes take at most, so that chance decides whether they keep up.
                true => open(measured, last.operations_per_second < 1000.0),
                false => measured,
            }
        };
        let mut found = |p50: f64, is_open: bool| {
            let differs = |_: &i32| {
                let verdict = compare(&measure(100.0, is_open), &measure(p50, is_open));
                verdict.text.contains("BETTER") || verdict.ending == Ending::Bad
            };
            (0..1000).filter(differs).count()
        };
        for is_open in [false, true] {
            let (equal, different) = (found(100.0, is_open), found(125.0, is_open));
            assert!(equal < 60, "{equal} of 1000");
            assert!(different > 900, "{different} of 1000");
        }
    }
}

//! `polyraft bench compare`: whether two results may be compared, and whether they differ by more than noise.

use super::Ending;
use super::args::CompareArgs;
use super::noise::apart;
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
        value["kind"] == "bench" && value["format"] == 1,
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
        "/noise/throughput_percent",
        false,
    ),
];

fn compare(before: &Value, after: &Value) -> Verdict {
    let mut differences = Vec::new();
    differ("", &before["setup"], &after["setup"], &mut differences);
    if !differences.is_empty() {
        let mut text = "The set-ups differ, so the results are not compared:".to_owned();
        for (place, a, b) in &differences {
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
    let number = |result: &Value, place: &str| result.pointer(place).and_then(Value::as_f64);
    let mut rows = Vec::new();
    let mut is_worse = false;
    for (name, place, noise, more_is_better) in METRICS {
        let (Some(a), Some(b)) = (number(before, place), number(after, place)) else {
            continue;
        };
        let noise = match (number(before, noise), number(after, noise)) {
            (Some(a), Some(b)) => Some(a.max(b)),
            _ => None,
        };
        let change = if a == 0.0 { 0.0 } else { 100.0 * (b - a) / a };
        let judgement = match noise {
            None => "no verdict: a result has no noise (--noise-rounds)".to_owned(),
            Some(noise) if apart(a, b) <= noise => format!("within the noise of {noise:.1} %"),
            Some(noise) => {
                let is_better = (b > a) == more_is_better;
                is_worse |= !is_better;
                let word = if is_better { "BETTER" } else { "WORSE" };
                format!("{word}, beyond the noise of {noise:.1} %")
            }
        };
        rows.push((
            name,
            format!("{a:>12.1} {b:>12.1} {change:>+8.1} %   {judgement}"),
        ));
    }
    let commit = |result: &Value| {
        result["engine"]["commit"]
            .as_str()
            .unwrap_or("unknown")
            .to_owned()
    };
    let text = format!(
        "{} against {}\n{}",
        commit(after),
        commit(before),
        two_columns(&rows)
    );
    let ending = if is_worse { Ending::Bad } else { Ending::Good };
    Verdict { text, ending }
}

/// Adds the places at which two values differ.
fn differ(place: &str, a: &Value, b: &Value, into: &mut Vec<(String, String, String)>) {
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
            differ(&place, &a[name.as_str()], &b[name.as_str()], into);
        }
    } else if a != b {
        into.push((place.to_owned(), a.to_string(), b.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result(rate: f64, p99: f64, noise: Value) -> Value {
        json!({
            "format": 1, "kind": "bench", "valid": true, "void": [],
            "engine": {"commit": "abc"},
            "setup": {"nodes": 3, "workload": {"payload": "16", "pace": {"inflight": 64}}},
            "result": {"operations_per_second": rate, "latency_us": {"p50": 100.0, "p99": p99}},
            "noise": noise,
        })
    }

    fn noise() -> Value {
        json!({"throughput_percent": 4.0, "p50_percent": 5.0, "p99_percent": 20.0})
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
            worse.text.contains("WORSE, beyond the noise of 4.0 %"),
            "{}",
            worse.text
        );
        let slower = compare(&a, &result(100.0, 13.0, noise()));
        assert_eq!(slower.ending, Ending::Bad, "{}", slower.text);
    }

    #[test]
    fn without_noise_there_is_no_verdict() {
        let a = result(100.0, 10.0, Value::Null);
        let verdict = compare(&a, &result(10.0, 100.0, noise()));
        assert_eq!(verdict.ending, Ending::Good);
        assert!(verdict.text.contains("no verdict"), "{}", verdict.text);
    }
}

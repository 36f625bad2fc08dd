//! `polyraft bench find-max`: the highest rate of an open loop within a bound on latency. The search knows nothing of
//! nodes; it asks a probe.

use super::args::FindMaxArgs;
use super::device::device_of;
use super::judgement::Judgement;
use super::measure::{Plan, measure};
use super::nodes::{Nodes, Shape};
use super::output::Output;
use super::result::{Engine, Hardware, Measurables, Summary, Times, put_json};
use super::{Ending, Setting, until_interrupted};
use crate::screen;
use crate::workload::{Pace, Workload};
use anyhow::Result;
use polyraft::Config;
use serde::Serialize;
use std::time::Duration;

/// What one run at a rate showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probe {
    /// Operations a second that were due.
    pub rate: f64,
    /// 99th percentile of latency in microseconds.
    pub p99_us: f64,
    /// What the run says about the rate.
    pub verdict: Verdict,
    /// Why the bound is not held, if it is not.
    pub failed: Option<String>,
}

/// What one run says about its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The nodes hold the bound.
    Holds,
    /// The nodes do not hold it.
    Fails,
    /// The generator fell behind: what the nodes would have done is not known.
    Void,
}

/// Where a search ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Highest {
    /// The highest rate that holds; None if none does.
    pub rate: Option<f64>,
    /// What ended the search from above. None if nothing did.
    pub limit: Option<Limit>,
}

/// Whose limit the next higher rate was beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The nodes'.
    Nodes,
    /// The generator's: the nodes may well hold more.
    Generator,
}

impl Verdict {
    fn limit(self) -> Option<Limit> {
        match self {
            Self::Holds => None,
            Self::Fails => Some(Limit::Nodes),
            Self::Void => Some(Limit::Generator),
        }
    }
}

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// The first rate.
    pub from: f64,
    /// The answer is known when the interval is this narrow, as a ratio minus 1.
    pub precision: f64,
    /// Runs in a row that have to hold the bound at the answer.
    pub confirm: u32,
}

/// No rate below this is tried.
const LOWEST: f64 = 1.0;
/// No rate above this is tried.
const HIGHEST: f64 = 1e8;

impl Search {
    /// Doubles the rate until a run does not hold, bisects between the last two, and confirms what is left. A rate that
    /// fails a confirmation is a rate that fails: the search goes on below it.
    pub async fn run(&self, mut probe: impl AsyncFnMut(f64) -> Result<Verdict>) -> Result<Highest> {
        let (mut holds, mut fails) = (None, None);
        // Of the lowest rate that did not hold.
        let mut limit = None;
        let mut rate = self.from.clamp(LOWEST, HIGHEST);
        loop {
            // Bracket: up while runs hold, down while they fail.
            loop {
                match probe(rate).await?.limit() {
                    None => holds = Some(rate),
                    found => (fails, limit) = (Some(rate), found),
                }
                rate = match (holds, fails) {
                    (Some(_), Some(_)) => break,
                    (Some(low), None) if low < HIGHEST => (low * 2.0).min(HIGHEST),
                    (None, Some(high)) if high > LOWEST => (high / 2.0).max(LOWEST),
                    (rate, _) => return Ok(Highest { rate, limit }),
                };
            }
            let (Some(mut low), Some(mut high)) = (holds, fails) else {
                return Ok(Highest { rate: None, limit });
            };
            // Equal ratios: the middle is the geometric mean.
            while high / low > 1.0 + self.precision {
                let middle = (low * high).sqrt();
                match probe(middle).await?.limit() {
                    None => low = middle,
                    found => (high, limit) = (middle, found),
                }
            }
            // The run that chose this rate was lucky more often than not, so it confirms nothing.
            let mut is_confirmed = true;
            for _ in 0..self.confirm {
                if let Some(found) = probe(low).await?.limit() {
                    (is_confirmed, limit) = (false, Some(found));
                    break;
                }
            }
            if is_confirmed {
                let rate = Some(low);
                return Ok(Highest { rate, limit });
            }
            // Luck, then. Further down there is a rate that holds each time.
            (holds, fails) = (None, Some(low));
            if low <= LOWEST {
                return Ok(Highest { rate: None, limit });
            }
            rate = (low / (1.0 + 2.0 * self.precision)).max(LOWEST);
        }
    }
}

/// The result as JSON.
#[derive(Clone, Debug, Serialize)]
struct Found {
    format: u32,
    kind: &'static str,
    engine: Engine,
    machine: Hardware,
    device: Option<String>,
    preflight: Measurables,
    nodes: u64,
    groups: u64,
    processes: bool,
    populated_bytes: u64,
    /// The load, at the answer; at the first rate if there is none.
    workload: Workload,
    seconds: u64,
    warmup_seconds: u64,
    p99_bound_us: f64,
    max_lag_us: f64,
    precision_percent: f64,
    confirm: u32,
    /// The answer; null if no rate holds the bound.
    max_rate: Option<f64>,
    /// Whose limit it is. The generator's says that the nodes may hold more; null if there was none up to the highest rate.
    limit: Option<Limit>,
    /// Latencies of the last run at that rate.
    latency_us: Option<Times>,
    probes: Vec<Probe>,
    config: Config,
}

pub fn run(args: &FindMaxArgs) -> Result<Ending> {
    let config = args.cluster.load_config()?;
    let pace = Pace::Rate {
        per_second: args.from.unwrap_or(1.0),
        arrivals: args.arrivals,
    };
    let workload = args.work.workload(pace, &args.cluster, &config)?;
    let json = args.json.as_deref().map(Output::open).transpose()?;
    let mut setting = Setting::under_load(&args.cluster, args.memory)?;
    until_interrupted(
        search(args, json, &mut setting, &workload, config),
        Ending::Interrupted,
    )
}

async fn search(
    args: &FindMaxArgs,
    json: Option<Output>,
    setting: &mut Setting,
    workload: &Workload,
    config: Config,
) -> Result<Ending> {
    let shape = Shape {
        nodes: args.cluster.nodes,
        groups: args.cluster.groups,
        config: config.clone(),
        processes: args.cluster.processes,
        populate: setting.populated,
    };
    let nodes = setting.start_nodes(&shape, "cluster").await?;
    let from = match args.from {
        Some(from) => from,
        None => a_tenth_of_the_most(&nodes, workload, args).await?,
    };
    let search = Search {
        from,
        precision: args.precision / 100.0,
        confirm: args.confirm,
    };
    let mut probes: Vec<Probe> = Vec::new();
    let mut times = None;
    let Highest {
        rate: answer,
        limit,
    } = search
        .run(async |rate| {
            setting
                .screen
                .live(format!("{} op/s ...", screen::count(rate as u64)), false);
            let (probe, latency) = probe(&nodes, workload, args, rate).await?;
            setting.screen.line(&describe(&probe));
            let verdict = probe.verdict;
            if verdict == Verdict::Holds {
                times = Some((rate, latency));
            }
            probes.push(probe);
            Ok(verdict)
        })
        .await?;
    nodes.stop().await?;
    setting.screen.clear();
    let latency_us = times
        .filter(|(rate, _)| Some(*rate) == answer)
        .map(|(_, times)| times);
    let bound = screen::time(args.p99);
    let held = |rate: f64| {
        let rate = screen::count(rate as u64);
        format!(
            "{rate} op/s, to {} %, held {} times in a row",
            args.precision, args.confirm
        )
    };
    let is_generators = limit == Some(Limit::Generator);
    setting.screen.line(&match answer {
        Some(rate) if is_generators => format!(
            "\nthe highest rate within p99 {bound} is at least {}; beyond it the generator was the limit: give it more --threads or cores",
            held(rate)
        ),
        Some(rate) => format!("\nthe highest rate within p99 {bound} is {}", held(rate)),
        None if is_generators => "\nthe generator fell behind at every rate, so nothing is known".to_owned(),
        None => format!("\nno rate holds p99 {bound}"),
    });
    if let Some(json) = json {
        let found = Found {
            format: 1,
            kind: "find-max",
            engine: Engine::here(),
            machine: Hardware::of(&setting.preflight),
            device: device_of(setting.dir.path()),
            preflight: Measurables::of(&setting.preflight),
            nodes: shape.nodes,
            groups: shape.groups,
            processes: shape.processes,
            populated_bytes: shape.populate,
            workload: at_rate(workload, args, answer.unwrap_or(from)),
            seconds: args.time.seconds,
            warmup_seconds: args.time.warmup,
            p99_bound_us: args.p99.as_secs_f64() * 1e6,
            max_lag_us: args.time.max_lag.as_secs_f64() * 1e6,
            precision_percent: args.precision,
            confirm: args.confirm,
            max_rate: answer,
            limit,
            latency_us,
            probes,
            config,
        };
        json.write(|out| put_json(out, &found))?;
    }
    Ok(if answer.is_some() && !is_generators {
        Ending::Good
    } else {
        Ending::Bad
    })
}

fn describe(probe: &Probe) -> String {
    format!(
        "{:>12} op/s  p99 {:>8}  {}",
        screen::count(probe.rate as u64),
        screen::time(Duration::from_secs_f64(probe.p99_us / 1e6)),
        probe.failed.as_deref().unwrap_or("holds")
    )
}

/// Where a search may well begin if nobody knows better.
async fn a_tenth_of_the_most(
    nodes: &Nodes,
    workload: &Workload,
    args: &FindMaxArgs,
) -> Result<f64> {
    let plan = Plan {
        workload: Workload {
            pace: Pace::Inflight(256.max(workload.threads as u64)),
            ..workload.clone()
        },
        warmup: args.time.warmup.min(1),
        seconds: 1,
        faults: Vec::new(),
    };
    let measured = measure(nodes, &plan, |_| {}).await?;
    Ok(measured.answered as f64 / measured.seconds / 10.0)
}

fn at_rate(workload: &Workload, args: &FindMaxArgs, per_second: f64) -> Workload {
    let pace = Pace::Rate {
        per_second,
        arrivals: args.arrivals,
    };
    Workload {
        pace,
        ..workload.clone()
    }
}

async fn probe(
    nodes: &Nodes,
    workload: &Workload,
    args: &FindMaxArgs,
    rate: f64,
) -> Result<(Probe, Times)> {
    let plan = Plan {
        workload: at_rate(workload, args, rate),
        warmup: args.time.warmup,
        seconds: args.time.seconds,
        faults: Vec::new(),
    };
    let measured = measure(nodes, &plan, |_| {}).await?;
    let judgement = Judgement::of(&measured, &plan.workload, args.time.max_lag);
    let times = Summary::of(&measured).latency_us;
    let (verdict, failed) = judge(&judgement, times.p99, args.p99);
    let probe = Probe {
        rate,
        p99_us: times.p99,
        verdict,
        failed,
    };
    Ok((probe, times))
}

/// What a run says about its rate, and why if that does not hold. A generator that falls behind makes latencies long, so
/// that comes first.
fn judge(judgement: &Judgement, p99_us: f64, bound: Duration) -> (Verdict, Option<String>) {
    let why = if judgement.is_late {
        return (Verdict::Void, judgement.void.first().cloned());
    } else if p99_us > bound.as_secs_f64() * 1e6 {
        "p99 is over the bound".to_owned()
    } else if judgement.saturated {
        "the nodes did not keep up".to_owned()
    } else if let Some(why) = judgement.void.first() {
        why.clone()
    } else {
        return (Verdict::Holds, None);
    };
    (Verdict::Fails, Some(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Rng;

    /// Searches a model in which a rate holds with a probability that depends on it; returns answer and probes.
    fn search(
        from: f64,
        confirm: u32,
        mut holds: impl FnMut(f64) -> bool,
    ) -> (Option<f64>, Vec<f64>) {
        let search = Search {
            from,
            precision: 0.05,
            confirm,
        };
        let mut rates = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let found = runtime.block_on(search.run(async |rate| {
            rates.push(rate);
            Ok(if holds(rate) {
                Verdict::Holds
            } else {
                Verdict::Fails
            })
        }));
        (found.unwrap().rate, rates)
    }

    #[test]
    fn a_sharp_limit_is_found_from_below_and_from_above() {
        for from in [10.0, 900.0, 1100.0, 5e6] {
            let (answer, rates) = search(from, 3, |rate| rate <= 1000.0);
            let answer = answer.unwrap();
            assert!(
                answer <= 1000.0 && answer * 1.05 >= 1000.0,
                "{from}: {answer}"
            );
            // The answer was confirmed by the last three runs, and by the one that chose it.
            assert!(
                rates.iter().rev().take(3).all(|rate| *rate == answer),
                "{rates:?}"
            );
            let held = rates.iter().filter(|rate| **rate == answer).count();
            assert_eq!(held, 4, "{rates:?}");
            assert!(rates.len() < 40, "{}", rates.len());
        }
    }

    #[test]
    fn a_limit_that_nothing_or_everything_holds_ends_the_search() {
        assert_eq!(search(1000.0, 3, |_| false).0, None);
        assert_eq!(search(1000.0, 3, |_| true).0, Some(HIGHEST));
    }

    #[test]
    fn a_lucky_run_is_not_the_answer() {
        // Between 1,000 and 2,000 a run holds with a probability that falls from 1 to 0.
        for seed in 0..20 {
            let mut rng = Rng::new(seed, 0);
            let (answer, _) = search(100.0, 5, |rate| rng.unit() > (rate - 1000.0) / 1000.0);
            let answer = answer.unwrap();
            assert!((900.0..1800.0).contains(&answer), "seed {seed}: {answer}");
        }
        // With one run per rate, luck leads further up on average.
        let mean = |confirm| {
            let answers = (0..50).map(|seed| {
                let mut rng = Rng::new(seed, 1);
                let model = |rate: f64| rng.unit() > (rate - 1000.0) / 1000.0;
                search(100.0, confirm, model).0.unwrap()
            });
            answers.sum::<f64>() / 50.0
        };
        assert!(mean(5) < mean(1), "{} against {}", mean(5), mean(1));
    }

    #[test]
    fn a_limit_of_the_generator_is_not_taken_for_the_nodes() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        // Above the first rate the nodes fail, above the second one the generator does.
        let find = |nodes: f64, generator: f64| {
            let search = Search {
                from: 10.0,
                precision: 0.05,
                confirm: 2,
            };
            let found = runtime.block_on(search.run(async |rate| {
                Ok(match rate {
                    _ if rate > generator => Verdict::Void,
                    _ if rate > nodes => Verdict::Fails,
                    _ => Verdict::Holds,
                })
            }));
            found.unwrap()
        };
        let found = find(1000.0, 1500.0);
        assert_eq!(found.limit, Some(Limit::Nodes));
        let found = find(1500.0, 1000.0);
        assert_eq!(found.limit, Some(Limit::Generator));
        assert!(found.rate.is_some_and(|rate| rate <= 1000.0), "{found:?}");
        assert_eq!(find(HIGHEST, HIGHEST).limit, None);
        let nothing = Highest {
            rate: None,
            limit: Some(Limit::Generator),
        };
        assert_eq!(find(0.0, 0.0), nothing);
    }

    #[test]
    fn a_late_generator_is_told_from_slow_nodes() {
        let bound = Duration::from_millis(5);
        let verdict = |is_late: bool, saturated, p99_us| {
            let void = Vec::from_iter(is_late.then(|| "late".to_owned()));
            let judgement = Judgement {
                void,
                is_late,
                saturated,
            };
            judge(&judgement, p99_us, bound).0
        };
        assert_eq!(verdict(false, false, 4_000.0), Verdict::Holds);
        assert_eq!(verdict(false, false, 6_000.0), Verdict::Fails);
        assert_eq!(verdict(false, true, 4_000.0), Verdict::Fails);
        // What is sent late takes long.
        assert_eq!(verdict(true, true, 6_000.0), Verdict::Void);
        let silent = Judgement {
            void: vec!["no operation was answered".to_owned()],
            is_late: false,
            saturated: false,
        };
        assert_eq!(judge(&silent, 0.0, bound).0, Verdict::Fails);
    }
}

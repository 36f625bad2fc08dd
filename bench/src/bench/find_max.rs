//! `polyraft bench find-max`: the highest rate of an open loop within a bound on latency. The search knows nothing of
//! nodes; it asks a probe.

use super::args::FindMaxArgs;
use super::measure::{Plan, measure};
use super::nodes::{Nodes, Shape};
use super::result::{Engine, Hardware, Judgement, Summary, Times, write_json};
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
    /// Why the bound is not held, if it is not.
    pub failed: Option<String>,
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
    /// Doubles the rate until a run fails, bisects between the last two, and confirms what is left. A rate that fails a
    /// confirmation is a rate that fails: the search goes on below it. None if no rate holds.
    pub async fn run(
        &self,
        mut probe: impl AsyncFnMut(f64) -> Result<bool>,
    ) -> Result<Option<f64>> {
        let (mut holds, mut fails) = (None, None);
        let mut rate = self.from.clamp(LOWEST, HIGHEST);
        loop {
            // Bracket: up while runs hold, down while they fail.
            loop {
                if probe(rate).await? {
                    holds = Some(rate);
                } else {
                    fails = Some(rate);
                }
                rate = match (holds, fails) {
                    (Some(_), Some(_)) => break,
                    (Some(low), None) if low < HIGHEST => (low * 2.0).min(HIGHEST),
                    (None, Some(high)) if high > LOWEST => (high / 2.0).max(LOWEST),
                    (low, _) => return Ok(low),
                };
            }
            let (Some(mut low), Some(mut high)) = (holds, fails) else {
                return Ok(None);
            };
            // Equal ratios: the middle is the geometric mean.
            while high / low > 1.0 + self.precision {
                let middle = (low * high).sqrt();
                if probe(middle).await? {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            // One run has held it already.
            let mut is_confirmed = true;
            for _ in 1..self.confirm {
                if !probe(low).await? {
                    is_confirmed = false;
                    break;
                }
            }
            if is_confirmed {
                return Ok(Some(low));
            }
            // Luck, then. Further down there is a rate that holds each time.
            (holds, fails) = (None, Some(low));
            if low <= LOWEST {
                return Ok(None);
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
    nodes: u64,
    groups: u64,
    processes: bool,
    workload: Workload,
    seconds: u64,
    warmup_seconds: u64,
    p99_bound_us: f64,
    precision_percent: f64,
    confirm: u32,
    /// The answer; null if no rate holds the bound.
    max_rate: Option<f64>,
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
    let mut setting = Setting::new(&args.cluster)?;
    until_interrupted(
        search(args, &mut setting, &workload, config),
        Ending::Interrupted,
    )
}

async fn search(
    args: &FindMaxArgs,
    setting: &mut Setting,
    workload: &Workload,
    config: Config,
) -> Result<Ending> {
    let shape = Shape {
        nodes: args.cluster.nodes,
        groups: args.cluster.groups,
        config: config.clone(),
        processes: args.cluster.processes,
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
    let answer = search
        .run(async |rate| {
            setting
                .screen
                .live(format!("{} op/s ...", screen::count(rate as u64)), false);
            let (probe, latency) = probe(&nodes, workload, args, rate).await?;
            setting.screen.line(&describe(&probe));
            let holds = probe.failed.is_none();
            if holds {
                times = Some((rate, latency));
            }
            probes.push(probe);
            Ok(holds)
        })
        .await?;
    nodes.stop().await?;
    setting.screen.clear();
    let latency_us = times
        .filter(|(rate, _)| Some(*rate) == answer)
        .map(|(_, times)| times);
    match answer {
        Some(rate) => setting.screen.line(&format!(
            "\nthe highest rate within p99 {} is {} op/s, to {} %, held {} times in a row",
            screen::time(args.p99),
            screen::count(rate as u64),
            args.precision,
            args.confirm
        )),
        None => setting
            .screen
            .line(&format!("\nno rate holds p99 {}", screen::time(args.p99))),
    }
    if let Some(path) = &args.json {
        let found = Found {
            format: 1,
            kind: "find-max",
            engine: Engine::here(),
            machine: Hardware::of(&setting.preflight),
            nodes: shape.nodes,
            groups: shape.groups,
            processes: shape.processes,
            workload: workload.clone(),
            seconds: args.time.seconds,
            warmup_seconds: args.time.warmup,
            p99_bound_us: args.p99.as_secs_f64() * 1e6,
            precision_percent: args.precision,
            confirm: args.confirm,
            max_rate: answer,
            latency_us,
            probes,
            config,
        };
        write_json(path, &found)?;
    }
    Ok(if answer.is_some() {
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

async fn probe(
    nodes: &Nodes,
    workload: &Workload,
    args: &FindMaxArgs,
    rate: f64,
) -> Result<(Probe, Times)> {
    let pace = Pace::Rate {
        per_second: rate,
        arrivals: args.arrivals,
    };
    let plan = Plan {
        workload: Workload {
            pace,
            ..workload.clone()
        },
        warmup: args.time.warmup,
        seconds: args.time.seconds,
        faults: Vec::new(),
    };
    let measured = measure(nodes, &plan, |_| {}).await?;
    let judgement = Judgement::of(&measured, &plan.workload, args.time.max_lag);
    let times = Summary::of(&measured).latency_us;
    let failed = if times.p99 > args.p99.as_secs_f64() * 1e6 {
        Some("p99 is over the bound".to_owned())
    } else if judgement.saturated {
        Some("the nodes did not keep up".to_owned())
    } else {
        judgement.void.first().cloned()
    };
    let p99_us = times.p99;
    Ok((
        Probe {
            rate,
            p99_us,
            failed,
        },
        times,
    ))
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
        let answer = runtime.block_on(search.run(async |rate| {
            rates.push(rate);
            Ok(holds(rate))
        }));
        (answer.unwrap(), rates)
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
            // The answer was confirmed by the last three runs.
            assert!(
                rates.iter().rev().take(2).all(|rate| *rate == answer),
                "{rates:?}"
            );
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
}

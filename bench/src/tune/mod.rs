//! `polyraft tune`: measures the machine, sweeps the keys that the user names, and says which values to take and why.
//! Every run is on a new cluster, so that no configuration works on another one's log.

mod advice;
mod echo;
mod search;
mod space;
mod stats;

use crate::bench::{
    BUILD, ClusterArgs, Ending, Engine, Hardware, Nodes, Plan, Setting, Shape, Times, WorkArgs,
    measure, parse_rate, parse_time, until_interrupted, write_json,
};
use crate::workload::{Arrivals, Pace, Workload};
use crate::{html, preflight, screen};
use advice::Advice;
use anyhow::{Context, Result, bail};
use clap::Args;
use polyraft::Config;
use search::{Method, Outcome, Rules, Stop, pareto, search};
use serde::Serialize;
use space::{Param, Point, Space};
use stats::{Goal, Seen, mean};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Find the configuration that suits this machine and a load.
///
/// Measures the tails of fsync and of the round trip, then runs the load with every combination of the given values, or
/// with some of them where there are too many, runs the best again until it is clear which is best, and prints TOML to
/// paste with a reason for each key. Exit codes: 0 done; 1 failed; 3 done, but nothing keeps the goal's condition.
#[derive(Clone, Debug, Args)]
pub struct TuneArgs {
    /// A key of the configuration with the values to try: wal.lanes=1,2 or wal.max_batch_bytes=64KiB..4MiB (powers of two)
    /// or election.timeout_min=50ms..400ms/4 (four values in equal ratios); may be repeated
    #[arg(long = "param", value_name = "KEY=VALUES", required = true)]
    pub params: Vec<String>,

    /// What is wanted: `throughput` within --p99, or a low `latency` at --rate
    #[arg(long, value_name = "GOAL", default_value = "throughput")]
    pub goal: GoalName,

    /// The bound on the 99th percentile that goes with `--goal throughput`
    #[arg(long, value_name = "TIME", value_parser = parse_time, required_if_eq("goal", "throughput"))]
    pub p99: Option<Duration>,

    /// The rate in operations a second that goes with `--goal latency`
    #[arg(long, value_name = "R", value_parser = parse_rate, required_if_eq("goal", "latency"))]
    pub rate: Option<f64>,

    /// Operations in flight with `--goal throughput`
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub inflight: u64,

    /// Stop after so long, with what is known then
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_time)]
    pub budget: Duration,

    /// The most runs of one configuration
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Stop when the best is known this closely (95 % confidence), in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    pub precision: f64,

    /// Seconds of load before each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub warmup: u64,

    /// Seconds of each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,

    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub work: WorkArgs,

    /// Write the TOML to paste to FILE
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub toml: Option<PathBuf>,

    /// Write everything to FILE as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub json: Option<PathBuf>,

    /// Write one page to FILE that shows everything and needs no network
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub html: Option<PathBuf>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GoalName {
    /// Many operations per second within a bound on latency.
    Throughput,
    /// A low latency at a rate.
    Latency,
}

/// How long round trips are measured.
const ECHO_TIME: Duration = Duration::from_secs(2);
/// How long syncs are measured.
const SYNC_TIME: Duration = Duration::from_secs(3);

impl TuneArgs {
    fn goal(&self) -> Result<(Goal, Pace)> {
        match (self.goal, self.p99, self.rate) {
            (GoalName::Throughput, Some(p99), None) => {
                let p99_us = p99.as_secs_f64() * 1e6;
                Ok((Goal::Throughput { p99_us }, Pace::Inflight(self.inflight)))
            }
            (GoalName::Latency, None, Some(rate)) => {
                let arrivals = Arrivals::Poisson;
                let pace = Pace::Rate {
                    per_second: rate,
                    arrivals,
                };
                Ok((Goal::Latency { rate }, pace))
            }
            (GoalName::Throughput, ..) => bail!(
                "--goal throughput goes with --p99 and --inflight; --rate belongs to --goal latency"
            ),
            (GoalName::Latency, ..) => {
                bail!("--goal latency goes with --rate; --p99 belongs to --goal throughput")
            }
        }
    }
}

/// Everything that was found, as JSON.
#[derive(Serialize)]
struct Tuned<'a> {
    format: u32,
    kind: &'static str,
    engine: Engine,
    build: &'static str,
    machine: Hardware,
    fsync_us: Times,
    round_trip_us: Times,
    nodes: u64,
    groups: u64,
    processes: bool,
    workload: &'a Workload,
    goal: Goal,
    warmup_seconds: u64,
    seconds: u64,
    params: &'a [Param],
    base: Vec<String>,
    outcome: &'a Outcome,
    /// Whether the best keeps the goal's condition.
    is_met: bool,
    /// What the best gains over the configuration without changes, in percent.
    improvement_percent: f64,
    /// Whether that is more than runs of one configuration differ by.
    is_improvement_clear: bool,
    /// Positions of the trials that no other one beats in both rate and latency.
    pareto: Vec<usize>,
    advice: &'a [Advice],
    timeouts: &'a [Advice],
    toml: &'a str,
}

/// Runs the command.
pub fn run(args: &TuneArgs) -> Result<Ending> {
    let config = args.cluster.load_config()?;
    let (goal, pace) = args.goal()?;
    let workload = args.work.workload(pace, &args.cluster, &config)?;
    let space = Space::new(&config, &args.params)?;
    let mut setting = Setting::new(&args.cluster)?;
    until_interrupted(
        tune(args, &mut setting, &space, goal, &workload),
        Ending::Interrupted,
    )
}

async fn tune(
    args: &TuneArgs,
    setting: &mut Setting,
    space: &Space,
    goal: Goal,
    workload: &Workload,
) -> Result<Ending> {
    let (fsync, round_trip) = measure_machine(setting)?;
    let begun = Instant::now();
    let names: Vec<&str> = space
        .params()
        .iter()
        .map(|param| param.key.as_str())
        .collect();
    setting.screen.done(
        "space",
        &format!(
            "{} points of {}",
            screen::count(space.size()),
            names.join(", ")
        ),
    );
    let mut count = 0_u32;
    // What a run costs is learned from those that were made.
    let spent = std::cell::Cell::new((0_u32, Duration::ZERO));
    let left = || {
        let (runs, time) = spent.get();
        let each = time.as_secs_f64() / f64::from(runs.max(1));
        let rest = args.budget.saturating_sub(begun.elapsed()).as_secs_f64();
        if runs == 0 {
            f64::from(u32::from(rest > 0.0))
        } else {
            rest / each
        }
    };
    let rules = Rules {
        goal,
        seed: args.work.seed,
        rounds: args.rounds as usize,
        precision: args.precision / 100.0,
    };
    let outcome = {
        let setting = &*setting;
        search(
            space,
            rules,
            async |point: &Point, round| {
                count += 1;
                let started = Instant::now();
                let seen = {
                    // Runs of one round get the same operations, those of another one others.
                    let workload = Workload {
                        seed: workload.seed.wrapping_add(round),
                        ..workload.clone()
                    };
                    one_run(args, setting, space, &workload, point, count).await?
                };
                let (runs, time) = spent.get();
                spent.set((runs + 1, time + started.elapsed()));
                let void = seen.void.as_ref();
                setting.screen.line(&format!(
                    "{count:>4}  {:>9} op/s  p99 {:>8}  {}{}",
                    screen::count(seen.rate as u64),
                    micros(seen.p99_us),
                    describe(space, point),
                    void.map_or_else(String::new, |why| format!("  says nothing: {why}"))
                ));
                Ok(seen)
            },
            left,
        )
        .await?
    };
    conclude(
        args,
        setting,
        space,
        goal,
        workload,
        &outcome,
        (fsync, round_trip),
    )
}

/// The tails of fsync and of the round trip.
fn measure_machine(setting: &Setting) -> Result<(Times, Times)> {
    setting
        .screen
        .live("measuring fsync and round trips ...".into(), false);
    let fsync = preflight::sync_times(setting.dir.path(), SYNC_TIME)?;
    let ca = setting.dir.fresh("echo")?;
    let round_trip =
        echo::round_trips(&ca, ECHO_TIME).context("the round trip cannot be measured")?;
    let times = [Times::of(&fsync), Times::of(&round_trip)];
    for (name, times) in ["fsync tails", "round trip tails"].into_iter().zip(times) {
        setting.screen.done(
            name,
            &format!(
                "p50 {}, p99 {}, p99.9 {}, max {} of {}",
                micros(times.p50),
                micros(times.p99),
                micros(times.p999),
                micros(times.max),
                screen::count(times.count)
            ),
        );
    }
    Ok((times[0], times[1]))
}

/// Starts a cluster with a point's configuration, runs the load once, and removes it again.
async fn one_run(
    args: &TuneArgs,
    setting: &Setting,
    space: &Space,
    workload: &Workload,
    point: &Point,
    number: u32,
) -> Result<Seen> {
    let shape = Shape {
        nodes: args.cluster.nodes,
        groups: args.cluster.groups,
        config: space.config(point)?,
        processes: args.cluster.processes,
    };
    let dir = setting.dir.fresh(&format!("run-{number}"))?;
    let plan = Plan {
        workload: workload.clone(),
        warmup: args.warmup,
        seconds: args.seconds,
        faults: Vec::new(),
    };
    setting.screen.live(
        format!("{number:>4}  {} ...", describe(space, point)),
        false,
    );
    let nodes = Nodes::start(&shape, &dir).await?;
    let measured = measure(&nodes, &plan, |_| {}).await;
    let stopped = nodes.stop().await;
    let measured = measured.with_context(|| describe(space, point))?;
    stopped?;
    drop(nodes);
    std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    let lag = Duration::from_nanos(measured.due.lag.value_at_quantile(0.99));
    Ok(Seen {
        rate: measured.answered as f64 / measured.seconds,
        p99_us: measured.due.all().value_at_quantile(0.99) as f64 / 1e3,
        answered: measured.answered,
        due: measured.due.operations(),
        void: stats::void(workload.pace, measured.answered, lag),
    })
}

fn describe(space: &Space, point: &Point) -> String {
    let pairs = space.params().iter().zip(point);
    let pairs: Vec<String> = pairs
        .filter_map(|(param, at)| Some(format!("{}={}", param.key, param.values[(*at)?])))
        .collect();
    match pairs.is_empty() {
        true => "as it is".to_owned(),
        false => pairs.join(" "),
    }
}

fn micros(micros: f64) -> String {
    screen::time(Duration::from_secs_f64(micros.max(0.0) / 1e6))
}

fn conclude(
    args: &TuneArgs,
    setting: &Setting,
    space: &Space,
    goal: Goal,
    workload: &Workload,
    outcome: &Outcome,
    (fsync, round_trip): (Times, Times),
) -> Result<Ending> {
    let (base, best) = (&outcome.trials[0], &outcome.trials[outcome.best]);
    let is_met = goal.is_met(best.runs());
    let gain = 100.0 * (best.runs().merit() / base.runs().merit() - 1.0);
    let is_clear = stats::differ(&base.runs().merits, &best.runs().merits);
    let advice = advice::of_sweep(space, outcome, goal);
    let timeouts = advice::of_machine(&fsync, &round_trip, |key| value_in(space, key));
    // Whoever sweeps a timeout has it measured under load, which says more.
    let all: Vec<&Advice> = advice
        .iter()
        .chain(
            timeouts
                .iter()
                .filter(|timeout| advice.iter().all(|other| other.key != timeout.key)),
        )
        .collect();
    let title = format!("polyraft tune: {}", words(goal));
    let toml = advice::toml(&title, &all);
    if let Err(error) = Config::from_toml_str(&toml) {
        setting.screen.line(&format!(
            "note: the timeouts do not go with the swept values: {error}"
        ));
    }
    setting.screen.clear();
    setting.screen.line(&format!("\n{}", table(space, outcome)));
    setting.screen.line(&how(outcome));
    setting
        .screen
        .line(&verdict(outcome, goal, gain, is_clear, is_met));
    setting.screen.line(&format!("\n{toml}"));
    let tuned = Tuned {
        format: 1,
        kind: "tune",
        engine: Engine::here(),
        build: BUILD,
        machine: Hardware::of(&setting.preflight),
        fsync_us: fsync,
        round_trip_us: round_trip,
        nodes: args.cluster.nodes,
        groups: args.cluster.groups,
        processes: args.cluster.processes,
        workload,
        goal,
        warmup_seconds: args.warmup,
        seconds: args.seconds,
        params: space.params(),
        base: space.base_values(),
        outcome,
        is_met,
        improvement_percent: gain,
        is_improvement_clear: is_clear,
        pareto: pareto(&outcome.trials),
        advice: &advice,
        timeouts: &timeouts,
        toml: &toml,
    };
    if let Some(path) = &args.toml {
        std::fs::write(path, &toml).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.json {
        write_json(path, &tuned)?;
    }
    if let Some(path) = &args.html {
        html::write(path, html::TUNE, &tuned)?;
    }
    for path in [&args.toml, &args.json, &args.html].into_iter().flatten() {
        setting.screen.line(&format!("written: {}", path.display()));
    }
    Ok(if is_met { Ending::Good } else { Ending::Bad })
}

/// What the base has for a key.
fn value_in(space: &Space, key: &str) -> String {
    let config = space
        .config(&space.as_it_is())
        .map(|config| config.to_toml_string());
    let table: Option<toml::Table> = config.ok().and_then(|text| text.parse().ok());
    let value = key
        .split_once('.')
        .and_then(|(section, name)| Some(table?.get(section)?.get(name)?.as_str()?.to_owned()));
    value.unwrap_or_default()
}

fn words(goal: Goal) -> String {
    match goal {
        Goal::Throughput { p99_us } => format!("throughput with p99 of at most {}", micros(p99_us)),
        Goal::Latency { rate } => format!("p99 at {} op/s", screen::count(rate as u64)),
    }
}

fn how(outcome: &Outcome) -> String {
    let method = match outcome.method {
        Method::Grid => "the points of the space were tried one by one".to_owned(),
        Method::Coordinates => "the space is too large for the budget: one key at a time was varied around the best known point, then around random ones".to_owned(),
    };
    let stop = match outcome.stop {
        Stop::Decided => {
            "the best is ahead of every other candidate by more than their confidence intervals"
        }
        Stop::Precise => "the best is known as closely as asked for; others near it may be as good",
        Stop::Budget => "the budget was used up (--budget)",
        Stop::Rounds => "each candidate had as many runs as allowed (--rounds)",
    };
    let runs: usize = outcome
        .trials
        .iter()
        .map(|trial| trial.tried.count() + trial.raced.count())
        .sum();
    let mut text = format!("{runs} runs: {method}; ended because {stop}.");
    if let Some((_, why)) = outcome.skipped.first() {
        text += &format!(
            " {} points were left out, because their keys do not go together or a run failed; the first: {why}.",
            outcome.skipped.len()
        );
    }
    if outcome.untried > 0 {
        text += &format!(
            " There was no time to try {} points of it (--budget).",
            outcome.untried
        );
    }
    text
}

fn verdict(outcome: &Outcome, goal: Goal, gain: f64, is_clear: bool, is_met: bool) -> String {
    let what = match goal {
        Goal::Throughput { .. } => "operations per second within the bound",
        Goal::Latency { .. } => "1/p99 at the rate",
    };
    let mut text = if outcome.best == 0 {
        "Nothing that was tried is better than the configuration as it is.".to_owned()
    } else if is_clear {
        format!(
            "The best is {gain:+.1} % ({what}) over the configuration as it is, more than equal runs differ by."
        )
    } else {
        format!(
            "The best is {gain:+.1} % ({what}) over the configuration as it is, but equal runs differ by as much."
        )
    };
    if !is_met {
        text +=
            " It does not keep the goal's condition: lower --inflight or --rate, or allow more.";
    }
    text
}

/// The best trials and the configuration as it is.
fn table(space: &Space, outcome: &Outcome) -> String {
    let mut order: Vec<usize> = (0..outcome.trials.len()).collect();
    let merit = |at: &usize| outcome.trials[*at].runs().merit();
    order.sort_by(|a, b| merit(b).total_cmp(&merit(a)));
    let mut shown: Vec<usize> = order.into_iter().take(8).collect();
    for at in [outcome.best, 0] {
        if !shown.contains(&at) {
            shown.push(at);
        }
    }
    let rows: Vec<(String, String)> = shown
        .iter()
        .map(|at| {
            let trial = &outcome.trials[*at];
            let width = stats::half_width(&trial.runs().rates);
            let sure = if width.is_finite() {
                format!("± {:>7}", screen::count(width as u64))
            } else {
                " ".repeat(9)
            };
            let figures = format!(
                "{:>9} op/s {sure}  p99 {:>8}  {} runs  {}",
                screen::count(mean(&trial.runs().rates) as u64),
                micros(mean(&trial.runs().p99s)),
                trial.runs().rates.len(),
                describe(space, &trial.point)
            );
            let name = if *at == outcome.best { "best" } else { "" };
            (name.to_owned(), figures)
        })
        .collect();
    let rows: Vec<(&str, String)> = rows
        .iter()
        .map(|(name, text)| (name.as_str(), text.clone()))
        .collect();
    screen::two_columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        tune: TuneArgs,
    }

    fn parse(line: &str) -> Result<TuneArgs, String> {
        Line::try_parse_from(std::iter::once("tune").chain(line.split_whitespace()))
            .map(|line| line.tune)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn goals_come_with_what_they_need() {
        let args = parse("--param wal.lanes=1,2 --p99 5ms --inflight 64").unwrap();
        let (goal, pace) = args.goal().unwrap();
        assert_eq!(goal, Goal::Throughput { p99_us: 5_000.0 });
        assert_eq!(pace, Pace::Inflight(64));
        let args = parse("--param wal.lanes=1,2 --goal latency --rate 2000").unwrap();
        let (goal, pace) = args.goal().unwrap();
        assert_eq!(goal, Goal::Latency { rate: 2000.0 });
        assert!(matches!(
            pace,
            Pace::Rate {
                per_second: 2000.0,
                ..
            }
        ));
        assert!(parse("--p99 5ms").unwrap_err().contains("--param"));
        assert!(
            parse("--param wal.lanes=1,2 --goal throughput")
                .unwrap_err()
                .contains("--p99")
        );
        assert!(
            parse("--param wal.lanes=1,2 --goal latency")
                .unwrap_err()
                .contains("--rate")
        );
        let both = parse("--param wal.lanes=1,2 --p99 5ms --rate 100").unwrap();
        assert!(
            both.goal()
                .unwrap_err()
                .to_string()
                .contains("--goal latency")
        );
    }
}

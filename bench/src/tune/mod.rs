//! `polyraft tune`: measures the machine, sweeps the keys that the user names, and says which values to take and why.
//! Every run is on a new cluster, so that no configuration works on another one's log.

mod advice;
mod echo;
mod said;
mod search;
mod space;
mod stats;

use crate::bench::{
    BUILD, ClusterArgs, Ending, Engine, Hardware, Judgement, MemoryArgs, Nodes, Output, Plan,
    Setting, Shape, Times, WorkArgs, Writer, measure, parse_rate, parse_time, put_json,
    until_interrupted,
};
use crate::screen::Screen;
use crate::workload::{Arrivals, Pace, Workload};
use crate::{html, preflight, screen};
use advice::Advice;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use polyraft::Config;
use said::{describe, how, judge, micros, table, words};
use search::{Outcome, Rules, in_turn, pareto, search};
use serde::Serialize;
use space::{Param, Point, Space, micros_of};
use stats::{Gain, Goal, Pairs, Seen};
use std::cell::Cell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Find the configuration that suits this machine and a load.
///
/// Measures the tails of fsync and of the round trip under the load, then runs it with every combination of the given
/// values, or with some of them where there are too many, runs the best again until it is clear which is best, and prints
/// TOML to paste with a reason for each key. What loses against the configuration as it is in the last runs is not printed:
/// then the TOML has the keys as they are. Exit codes: 0 done; 1 failed; 3 done, but what is printed does not keep the
/// goal's condition, or a run with it failed.
#[derive(Clone, Debug, Args)]
pub struct TuneArgs {
    /// A key of the configuration with the values to try: wal.mode=direct,mapped or wal.max_batch_bytes=2MiB..16MiB (powers
    /// of two) or replication.retry_interval=50ms..400ms/4 (four values in equal ratios); may be repeated
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

    /// Operations in flight with `--goal throughput`; 1024 if it is left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub inflight: Option<u64>,

    /// Stop after so long, with what is known then
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_time)]
    pub budget: Duration,

    /// The most runs of each of the best, and the most pairs of runs in each comparison after that
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Stop when the best is known this closely (95 % confidence), in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0, value_parser = parse_percent)]
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
    #[command(flatten)]
    pub memory: MemoryArgs,

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

/// Operations in flight unless others are given.
const INFLIGHT: u64 = 1024;
/// How often what is to be pasted is run in turn with the configuration as it is.
const PAIRS: u32 = 5;
/// How long round trips are measured.
const ECHO_TIME: Duration = Duration::from_secs(2);
/// How long syncs are measured.
const SYNC_TIME: Duration = Duration::from_secs(3);

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("a percentage is a number above 0 and not above 100, such as 2.5".to_owned()),
    }
}

impl TuneArgs {
    fn goal(&self) -> Result<(Goal, Pace)> {
        if self.goal == GoalName::Latency && self.inflight.is_some() {
            bail!("--goal latency goes with --rate; --inflight belongs to --goal throughput");
        }
        match (self.goal, self.p99, self.rate) {
            (GoalName::Throughput, Some(p99), None) => {
                let p99_us = p99.as_secs_f64() * 1e6;
                let inflight = self.inflight.unwrap_or(INFLIGHT);
                Ok((Goal::Throughput { p99_us }, Pace::Inflight(inflight)))
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
    populated_bytes: u64,
    workload: &'a Workload,
    goal: Goal,
    warmup_seconds: u64,
    seconds: u64,
    params: &'a [Param],
    base: Vec<String>,
    outcome: &'a Outcome,
    /// Which of the trials keep the goal's condition, by what counts of their runs.
    keeps: Vec<bool>,
    /// What was found, in turn with the configuration as it is; null if it changes nothing.
    pairs: Option<&'a Pairs>,
    /// Whether what was found lost clearly, so that what is to be pasted is the configuration as it is.
    is_loss: bool,
    /// Whether what is to be pasted keeps the goal's condition.
    is_met: bool,
    /// What was found gains over the configuration as it is; null if one of them does not keep the condition.
    gain: Option<Gain>,
    /// The same in words.
    verdict: &'a str,
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
    let files = Files::open(args)?;
    let mut setting = Setting::under_load(&args.cluster, args.memory)?;
    until_interrupted(
        tune(args, files, &mut setting, &space, goal, &workload),
        Ending::Interrupted,
    )
}

/// The files to be.
struct Files {
    toml: Option<Output>,
    json: Option<Output>,
    html: Option<Output>,
}

impl Files {
    /// Tries all paths.
    fn open(args: &TuneArgs) -> Result<Self> {
        let open = |path: &Option<PathBuf>| path.as_deref().map(Output::open).transpose();
        Ok(Self {
            toml: open(&args.toml)?,
            json: open(&args.json)?,
            html: open(&args.html)?,
        })
    }

    /// Writes all of them that can be written, and tells which. Fails with the first that cannot.
    fn write(self, screen: &Screen, tuned: &Tuned<'_>) -> Result<()> {
        let mut writer = Writer::new(screen);
        writer.write(self.toml, |out| Ok(out.write_all(tuned.toml.as_bytes())?));
        writer.write(self.json, |out| put_json(out, tuned));
        writer.write(self.html, |out| {
            Ok(out.write_all(html::fill(html::TUNE, tuned)?.as_bytes())?)
        });
        writer.end()
    }
}

/// A run at a rate says nothing if the generator sent more than one operation in a hundred later than this after it was due.
const MAX_LAG: Duration = Duration::from_millis(5);

/// Makes runs, and keeps count of their time.
struct Runner<'a> {
    args: &'a TuneArgs,
    /// What is to be written at last.
    files: Files,
    setting: &'a Setting,
    workload: &'a Workload,
    begun: Instant,
    /// Runs that were begun.
    begun_runs: Cell<u32>,
    /// Runs that ended well, and the time that they took.
    spent: Cell<(u32, Duration)>,
}

impl Runner<'_> {
    /// For about how many more runs there is time. What one costs is learned from those that were made.
    fn left(&self) -> f64 {
        let (runs, time) = self.spent.get();
        let rest = self.args.budget.saturating_sub(self.begun.elapsed());
        match runs {
            0 => f64::from(u8::from(!rest.is_zero())),
            _ => rest.as_secs_f64() / (time.as_secs_f64() / f64::from(runs)),
        }
    }

    /// Starts a cluster, runs the load once, and removes the cluster again. Runs of one round get the same operations,
    /// those of another round others.
    async fn run(&self, config: Config, what: &str, round: u64) -> Result<Seen> {
        let started = Instant::now();
        let number = self.begun_runs.get() + 1;
        self.begun_runs.set(number);
        let screen = &self.setting.screen;
        screen.live(format!("{number:>4}  {what} ..."), false);
        let workload = Workload {
            seed: self.workload.seed.wrapping_add(round),
            ..self.workload.clone()
        };
        let dir = self.setting.dir.fresh(&format!("run-{number}"))?;
        let args = self.args;
        let nothing = std::future::ready(Ok(()));
        let on = (dir.as_path(), self.setting.populated);
        let seen = one_run(args, config, &workload, args.seconds, on, nothing).await;
        std::fs::remove_dir_all(&dir)
            .with_context(|| format!("cannot remove {}", dir.display()))?;
        let (seen, ()) = seen.with_context(|| what.to_owned())?;
        let (runs, time) = self.spent.get();
        self.spent.set((runs + 1, time + started.elapsed()));
        let void = seen.void.as_ref();
        screen.line(&format!(
            "{number:>4}  {:>9} op/s  p99 {:>8}  {what}{}",
            screen::count(seen.rate as u64),
            micros(seen.p99_us),
            void.map_or_else(String::new, |why| format!("  says nothing: {why}"))
        ));
        Ok(seen)
    }
}

async fn tune(
    args: &TuneArgs,
    files: Files,
    setting: &mut Setting,
    space: &Space,
    goal: Goal,
    workload: &Workload,
) -> Result<Ending> {
    let as_it_is = space.config(&space.as_it_is())?;
    let tails = measure_machine(args, setting, &as_it_is, workload).await?;
    let least =
        Duration::from_secs_f64(advice::least_timeout(&tails.fsync, &tails.round_trip) / 1e6);
    let names: Vec<&str> = space
        .params()
        .iter()
        .map(|param| param.key.as_str())
        .collect();
    setting.screen.done(
        "space",
        &format!(
            "{} points of {}",
            screen::count(space.feasible()),
            names.join(", ")
        ),
    );
    let runner = Runner {
        args,
        files,
        setting,
        workload,
        begun: Instant::now(),
        begun_runs: Cell::new(0),
        spent: Cell::new((0, Duration::ZERO)),
    };
    let pairs = args.rounds.min(PAIRS);
    let rules = Rules {
        goal,
        seed: args.work.seed,
        rounds: args.rounds as usize,
        reserve: 2.0 * f64::from(pairs),
        precision: args.precision / 100.0,
    };
    let run = async |point: &Point, round| {
        let config = space.config(point)?;
        outlasts_tails(&config, &as_it_is, least)?;
        runner.run(config, &describe(space, point), round).await
    };
    let outcome = search(space, rules, run, || runner.left()).await?;
    let run = async |config: &Config, what: &str, number: u64| {
        // Operations that the search has not seen.
        let round = LAST_ROUNDS + number;
        runner.run(config.clone(), what, round).await
    };
    let compare = async |advised: &Advised| {
        // So many as there is time for, whatever they show: then they are no better than chance makes them.
        let count = (runner.left() / 2.0).clamp(1.0, f64::from(pairs)) as u64;
        in_turn(
            goal,
            args.work.seed,
            count,
            async |is_advised, number| match is_advised {
                true => run(&advised.config, "to paste", number).await,
                false => run(&as_it_is, "as it is", number).await,
            },
        )
        .await
    };
    let mut advised = advise(space, goal, &outcome, Some(&tails))?;
    let mut pairs = None;
    while advised.config != as_it_is && pairs.is_none() {
        match compare(&advised).await {
            Ok(seen) if seen.begins_elections() && !advised.timeouts.is_empty() => {
                advised = advise(space, goal, &outcome, None)?;
                advised.note = Some(format!(
                    "The timeouts that follow from the tails are left out: {} elections began under load with them, none without.",
                    seen.after.elections
                ));
            }
            Ok(seen) => pairs = Some(seen),
            Err(error) => {
                advised.failed = Some(format!("{error:#}"));
                break;
            }
        }
    }
    if pairs.as_ref().is_some_and(|pairs| pairs.is_loss(goal)) {
        advised = advised.taken_back(goal, as_it_is);
    }
    conclude(
        runner,
        space,
        goal,
        &outcome,
        &tails,
        &advised,
        pairs.as_ref(),
    )
}

/// Refuses an election timeout that was swept and is shorter than the tails allow: however well a run of seconds goes with it,
/// slower moments come.
fn outlasts_tails(config: &Config, as_it_is: &Config, least: Duration) -> Result<()> {
    let timeout = config.election.timeout_min;
    ensure!(
        timeout >= least || timeout == as_it_is.election.timeout_min,
        "election.timeout_min = {} is shorter than the tails of this machine call for: {}",
        screen::time(timeout),
        screen::time(least)
    );
    Ok(())
}

/// The number of the first pair at the end; the rounds of a race have smaller ones.
const LAST_ROUNDS: u64 = 1 << 32;

/// What the disk and the network take while the load runs.
struct Tails {
    fsync: Times,
    round_trip: Times,
}

/// Measures both while a cluster with the configuration as it is is under the load: an idle machine has no slow moments. What
/// that run shows of the load is not used; it warms up disk and caches.
async fn measure_machine(
    args: &TuneArgs,
    setting: &Setting,
    config: &Config,
    workload: &Workload,
) -> Result<Tails> {
    setting.screen.live(
        "measuring fsync and round trips under load ...".into(),
        false,
    );
    let dir = setting.dir.fresh("tails")?;
    let ca = setting.dir.fresh("echo")?;
    let path = setting.dir.path().to_owned();
    let beside = async {
        let fsync = tokio::task::spawn_blocking(move || preflight::sync_times(&path, SYNC_TIME));
        let round_trip = tokio::task::spawn_blocking(move || echo::round_trips(&ca, ECHO_TIME));
        let fsync = fsync.await??;
        let round_trip = round_trip.await?;
        Ok((
            fsync,
            round_trip.context("the round trip cannot be measured")?,
        ))
    };
    let seconds = args.seconds.max(SYNC_TIME.as_secs());
    let on = (dir.as_path(), setting.populated);
    let seen = one_run(args, config.clone(), workload, seconds, on, beside).await;
    let (_, (fsync, round_trip)) = seen.context("as it is")?;
    std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
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
    Ok(Tails {
        fsync: times[0],
        round_trip: times[1],
    })
}

/// Starts a cluster, runs the load once, and stops it. `beside` goes on while the load runs.
async fn one_run<T>(
    args: &TuneArgs,
    config: Config,
    workload: &Workload,
    seconds: u64,
    (dir, populate): (&Path, u64),
    beside: impl Future<Output = Result<T>>,
) -> Result<(Seen, T)> {
    let shape = Shape {
        nodes: args.cluster.nodes,
        groups: args.cluster.groups,
        config,
        processes: args.cluster.processes,
        populate,
    };
    let plan = Plan {
        workload: workload.clone(),
        warmup: args.warmup,
        seconds,
        faults: Vec::new(),
    };
    let nodes = Nodes::start(&shape, dir).await?;
    let (measured, beside) = tokio::join!(measure(&nodes, &plan, |_| {}), beside);
    let stopped = nodes.stop().await;
    let measured = measured?;
    stopped?;
    let judgement = Judgement::of(&measured, workload, MAX_LAG);
    let seen = Seen {
        rate: measured.answered as f64 / measured.seconds,
        p99_us: measured.due.all().value_at_quantile(0.99) as f64 / 1e3,
        answered: measured.answered,
        due: measured.due.due(),
        elections: measured.totals.elections,
        void: judgement.void.into_iter().next(),
    };
    Ok((seen, beside?))
}

/// What is to be pasted.
struct Advised {
    /// Of the sweep.
    sweep: Vec<Advice>,
    /// Of the machine.
    timeouts: Vec<Advice>,
    /// What was left out, and why.
    note: Option<String>,
    /// Why it could not be run in turn with the configuration as it is, if a run failed.
    failed: Option<String>,
    toml: String,
    /// The configuration as it is with the above pasted.
    config: Config,
}

impl Advised {
    /// The keys as they are in `config`, each with the reason why: all of this together lost against it.
    fn taken_back(mut self, goal: Goal, config: Config) -> Self {
        for advice in self.sweep.iter_mut().chain(&mut self.timeouts) {
            if advice.value != advice.base {
                advice.reason = format!(
                    "as it was, because what was found lost against that in the last runs. What was found is {}: {}",
                    advice.value, advice.reason
                );
                advice.value.clone_from(&advice.base);
            }
        }
        self.toml = toml_of(goal, &self.sweep, &self.timeouts);
        self.config = config;
        self
    }
}

/// What is to be pasted as text. What is said of a timeout is said once.
fn toml_of(goal: Goal, sweep: &[Advice], timeouts: &[Advice]) -> String {
    let is_timeout = |advice: &&Advice| timeouts.iter().any(|timeout| timeout.key == advice.key);
    let rest = sweep.iter().filter(|advice| !is_timeout(advice));
    let all: Vec<&Advice> = rest.chain(timeouts).collect();
    advice::toml(&format!("polyraft tune: {}", words(goal)), &all)
}

/// What follows from a search and, if they are given, from the tails. What a node would refuse is an error, or leaves the
/// timeouts out.
fn advise(space: &Space, goal: Goal, outcome: &Outcome, tails: Option<&Tails>) -> Result<Advised> {
    let sweep = advice::of_sweep(space, outcome, goal);
    let chosen = &outcome.chosen;
    let swept = |key: &str| {
        let mut params = space.params().iter().zip(chosen);
        let (param, at) = params.find(|(param, _)| param.key == key)?;
        micros_of(&param.values[(*at)?])
    };
    let mut timeouts = tails.map_or_else(Vec::new, |tails| {
        let base = |key: &str| value_in(space, key);
        advice::of_machine(&tails.fsync, &tails.round_trip, swept, base)
    });
    // The timeouts go together, and follow what the sweep says of them.
    for timeout in &mut timeouts {
        if let Some(of_sweep) = sweep.iter().find(|advice| advice.key == timeout.key) {
            let is_swept =
                swept(&timeout.key).is_some_and(|at| Some(at) == micros_of(&timeout.value));
            timeout.reason = match is_swept {
                true => of_sweep.reason.clone(),
                false => format!("{} So from the tails: {}", of_sweep.reason, timeout.reason),
            };
        }
    }
    let toml = toml_of(goal, &sweep, &timeouts);
    match space.pasted(&toml) {
        Ok(config) => Ok(Advised {
            sweep,
            timeouts,
            note: None,
            failed: None,
            toml,
            config,
        }),
        Err(error) if tails.is_some() => {
            let advised = advise(space, goal, outcome, None)?;
            let note = format!("The timeouts that follow from the tails are left out: {error}.");
            Ok(Advised {
                note: Some(note),
                ..advised
            })
        }
        Err(error) => Err(error.context("a node would refuse what is to be pasted")),
    }
}

fn conclude(
    runner: Runner<'_>,
    space: &Space,
    goal: Goal,
    outcome: &Outcome,
    tails: &Tails,
    advised: &Advised,
    pairs: Option<&Pairs>,
) -> Result<Ending> {
    let begun_runs = runner.begun_runs.get();
    let Runner {
        args,
        files,
        setting,
        workload,
        ..
    } = runner;
    let (is_met, verdict) = judge(goal, outcome.trials[0].runs(), advised, pairs);
    let toml = &advised.toml;
    setting.screen.clear();
    setting.screen.line(&format!("\n{}", table(space, outcome)));
    setting.screen.line(&how(outcome, begun_runs));
    setting.screen.line(&verdict);
    setting.screen.line(&format!("\n{toml}"));
    let tuned = Tuned {
        format: 3,
        kind: "tune",
        engine: Engine::here(),
        build: BUILD,
        machine: Hardware::of(&setting.preflight),
        fsync_us: tails.fsync,
        round_trip_us: tails.round_trip,
        nodes: args.cluster.nodes,
        groups: args.cluster.groups,
        processes: args.cluster.processes,
        populated_bytes: setting.populated,
        workload,
        goal,
        warmup_seconds: args.warmup,
        seconds: args.seconds,
        params: space.params(),
        base: space.base_values(),
        outcome,
        keeps: Vec::from_iter(outcome.trials.iter().map(|trial| goal.is_met(trial.runs()))),
        pairs,
        is_loss: pairs.is_some_and(|pairs| pairs.is_loss(goal)),
        is_met,
        gain: pairs.and_then(|pairs| pairs.gain(goal)),
        verdict: &verdict,
        pareto: pareto(&outcome.trials),
        advice: &advised.sweep,
        timeouts: &advised.timeouts,
        toml,
    };
    files.write(&setting.screen, &tuned)?;
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

#[cfg(test)]
mod tests;

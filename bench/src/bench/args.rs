//! The arguments of `polyraft bench`, parsed into values that are in range.

use super::cost_model::CostModelArgs;
use super::faults::Fault;
use super::in_flight::SnapshotArgs;
use super::rolling::RollingArgs;
use super::scale::{failover::FailoverArgs, idle::IdleArgs, restart::RestartArgs};
use crate::allocator::MOST;
use crate::load::default_threads;
use crate::workload::{Arrivals, Keys, Pace, ReadMode, Sizes, Workload};
use crate::{process, screen};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use polyraft::Config;
use polyraft::config::ByteSize;
use std::path::PathBuf;
use std::time::Duration;

/// Drive load at a cluster, and measure it so that others can repeat the measurement.
///
/// A closed loop (--inflight) shows what the cluster can do; an open loop (--rate) shows what clients see who come on
/// their own time: its latency counts from the moment at which an operation was due, and a run in which the generator
/// itself was late is void.
///
/// Exit codes: 0 measured; 1 failed; 3 measured, but void.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    #[command(flatten)]
    pub run: RunArgs,
}

impl BenchArgs {
    /// Whether it is about what a load costs, and not about what groups take.
    pub fn measures_a_load(&self) -> bool {
        let command = self.command.as_ref();
        command.is_none_or(|c| matches!(c, BenchCommand::FindMax(_) | BenchCommand::CostModel(_)))
    }
}

const AFTER_HELP: &str =
    "Set RUST_LOG=info (or debug) to see what the engine logs, on the standard error.";

#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    FindMax(Box<FindMaxArgs>),
    Compare(CompareArgs),
    CostModel(Box<CostModelArgs>),
    Reads(Box<ReadsArgs>),
    Snapshot(Box<SnapshotArgs>),
    RollingRestart(Box<RollingArgs>),
    Idle(Box<IdleArgs>),
    Failover(Box<FailoverArgs>),
    Restart(Box<RestartArgs>),
}

/// The nodes that are measured.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// How many nodes to start
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub nodes: u64,

    /// How many Raft groups to create, each with a replica on every node
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub groups: u64,

    /// Run each node as a process of its own; by default all run in this one
    #[arg(long)]
    pub processes: bool,

    /// Keep the nodes' data below DIR while they run: this chooses the disk [default: ./data]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Configure the nodes by a TOML file, as in docs/configuration.md
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What the load is made of, its pace apart.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Load")]
pub struct WorkArgs {
    /// Sizes of proposals in bytes: 16 (all the same), 128..1024 (uniform), or zipf:64..16384[:EXPONENT]
    #[arg(long, value_name = "SIZES", default_value = "128")]
    pub payload: Sizes,

    /// Which groups operations go to: uniform, round-robin, zipfian:EXPONENT, or hotspot:GROUPS:OPERATIONS (two shares)
    #[arg(long, value_name = "KEYS", default_value = "uniform")]
    pub keys: Keys,

    /// Send load to the first N groups only; the others stay idle [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub active_groups: Option<u64>,

    /// Share of reads among the operations, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    pub reads: f64,

    /// How reads are done: `stale` reads the state of the replica asked, all nodes in turn; `linearizable` and `lease` ask
    /// the leader and see everything acknowledged
    #[arg(long, value_name = "MODE", default_value = "stale")]
    pub read_mode: ReadMode,

    /// Threads of the generator [default: 1, or 2 where there are 4 cores or more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub threads: Option<u64>,

    /// Start of all random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// What is done to the process before the load.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Measurement")]
pub struct MemoryArgs {
    /// Have the system back SIZE of memory before the load, as it has for a process that runs for long; with --processes, as
    /// much for all nodes together; 0: none [default: 1GiB, or less where less than 4 GiB are available]
    #[arg(long, value_name = "SIZE")]
    pub populate: Option<ByteSize>,
}

/// How operations come.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Pace")]
pub struct PaceArgs {
    /// Closed loop: keep N operations in flight, over all groups together [default: 1024]
    #[arg(long, value_name = "N", conflicts_with = "rate", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub inflight: Option<u64>,

    /// Open loop: R operations a second, whether the earlier ones were answered or not
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    pub rate: Option<f64>,

    /// How the operations of an open loop are spread over time
    #[arg(long, value_name = "HOW", default_value = "poisson", requires = "rate")]
    pub arrivals: Arrivals,
}

/// How long to measure.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Measurement")]
pub struct TimeArgs {
    /// How long to drive load before it is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub warmup: u64,

    /// How long to measure
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,

    /// An open loop is void if the generator sent more than one operation in a hundred later than this after it was due
    #[arg(long, value_name = "TIME", default_value = "5ms", value_parser = parse_time)]
    pub max_lag: Duration,
}

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub work: WorkArgs,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub time: TimeArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Run this very set-up 2 N times beforehand, each a quarter as long, 5 s at most: what equal runs differ by is noise
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=100), help_heading = "Measurement")]
    pub noise_rounds: u64,

    /// Do harm under load, at a time after the warm-up: kill-leader@5s, pause@5s:2s, stall-disk@5s:1s; may be repeated
    #[arg(long = "fault", value_name = "FAULT", help_heading = "Measurement")]
    pub faults: Vec<Fault>,

    /// Measure the stages of one proposal in N; 0 measures none
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1_048_576), help_heading = "Measurement")]
    pub stages: u32,

    #[command(flatten)]
    pub output: OutputArgs,
}

/// Where results go besides the screen.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Results")]
pub struct OutputArgs {
    /// Write everything to FILE as JSON; `polyraft bench compare` reads it
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write one row per second to FILE
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,

    /// Write the latencies to FILE in the HDR histogram log format, one interval per second
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,

    /// Write one page to FILE that shows everything and needs no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Measure reads of each kind beside proposals, and count what confirming all groups costs
///
/// Exit codes: 0 within the bounds; 1 failed; 3 a bound is not held.
#[derive(Clone, Debug, Args)]
pub struct ReadsArgs {
    /// How many operations are under way at any time
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub inflight: usize,

    /// Size of a proposal in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(16..=65536))]
    pub payload: usize,

    /// How long all kinds together take
    #[arg(long, value_name = "S", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Write the result to FILE as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub json: Option<PathBuf>,
}

impl ReadsArgs {
    /// `seconds` as a duration.
    pub fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Search the highest rate of an open loop whose p99 stays within a bound.
///
/// The rate is raised until a run does not hold the bound, then bisected; the answer is a rate that held it in several
/// more runs one after the other. Exit codes: 0 found; 1 failed; 3 no rate holds the bound, or the generator was the limit.
#[derive(Clone, Debug, Args)]
pub struct FindMaxArgs {
    /// The bound on the 99th percentile of latency, from the moment at which an operation was due
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub p99: Duration,

    /// The first rate to try [default: a tenth of what a short closed loop does]
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    pub from: Option<f64>,

    /// Stop when the answer is known this closely, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = parse_precision)]
    pub precision: f64,

    /// How many runs in a row have to hold the bound at the rate that is the answer
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub confirm: u32,

    /// How the operations are spread over time
    #[arg(long, value_name = "HOW", default_value = "poisson")]
    pub arrivals: Arrivals,

    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub work: WorkArgs,
    #[command(flatten)]
    pub time: TimeArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Write the result to FILE as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub json: Option<PathBuf>,
}

/// Compare two results of the same set-up.
///
/// A difference counts if it exceeds what the equal runs before both results make likely by chance. Exit codes: 0 no worse
/// than the noise allows; 1 a file cannot be read; 3 worse beyond the noise; 4 the set-ups or the disks differ, or there were too few
/// equal runs to judge anything.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// The result to compare with
    #[arg(value_name = "A.json")]
    pub before: PathBuf,
    /// The result to judge
    #[arg(value_name = "B.json")]
    pub after: PathBuf,
}

impl ClusterArgs {
    /// The nodes' configuration.
    pub fn load_config(&self) -> Result<Config> {
        match &self.config {
            None => Ok(Config::default()),
            Some(path) => {
                Config::load(path).with_context(|| format!("--config {}", path.display()))
            }
        }
    }
}

impl MemoryArgs {
    /// Bytes to populate, by all processes together.
    pub fn bytes(self, cluster: &ClusterArgs) -> Result<u64> {
        let processes = if cluster.processes { cluster.nodes } else { 1 };
        // Half of it stays for everybody else.
        let available = process::available_memory().map(|bytes| bytes / 2);
        match self.populate.map(|size| size.as_u64()) {
            // A power of two, so that results of the same machine are about the same set-up.
            None => Ok(match (available.unwrap_or_default() / 2).checked_ilog2() {
                Some(power) => MOST.min(1 << power),
                None => 0,
            }),
            Some(bytes) if bytes > MOST * processes => bail!(
                "--populate takes {} at most for each process, which is what the allocator reserves at once",
                screen::bytes(MOST)
            ),
            Some(bytes) if available.is_some_and(|available| bytes > available) => bail!(
                "--populate {} is more than half of the memory that is available; give less",
                screen::bytes(bytes)
            ),
            Some(bytes) => Ok(bytes),
        }
    }
}

impl PaceArgs {
    /// The pace asked for.
    pub fn pace(&self) -> Pace {
        match self.rate {
            Some(per_second) => Pace::Rate {
                per_second,
                arrivals: self.arrivals,
            },
            None => Pace::Inflight(self.inflight.unwrap_or(1024)),
        }
    }
}

impl WorkArgs {
    /// The whole load, checked against the configuration and the cluster.
    pub fn workload(&self, pace: Pace, cluster: &ClusterArgs, config: &Config) -> Result<Workload> {
        let limit = config.batch.max_proposal_bytes.as_u64();
        ensure!(
            self.payload.max() <= limit,
            "--payload {} goes beyond batch.max_proposal_bytes = {limit}; give less, or raise the limit in a --config FILE",
            self.payload
        );
        let active_groups = self.active_groups.unwrap_or(cluster.groups);
        ensure!(
            active_groups <= cluster.groups,
            "--active-groups {active_groups} is more than --groups {}",
            cluster.groups
        );
        let threads = match self.threads {
            Some(threads) => threads as usize,
            None => default_threads(pace, active_groups),
        };
        if let Pace::Inflight(inflight) = pace {
            ensure!(
                threads as u64 <= inflight,
                "--threads {threads} is more than --inflight {inflight}; each thread needs a place in flight"
            );
        }
        ensure!(
            self.reads == 0.0 || self.read_mode == ReadMode::Stale || !cluster.processes,
            "--read-mode other than stale needs all nodes in this process: leave --processes out"
        );
        Ok(Workload {
            pace,
            payload: self.payload,
            keys: self.keys,
            active_groups,
            reads: self.reads,
            read_mode: self.read_mode,
            threads,
            seed: self.seed,
        })
    }
}

pub fn parse_time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than 0".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write it like 5ms or 2s")),
    }
}

pub fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=1e8).contains(&rate) => Ok(rate),
        _ => Err("a rate is a number from 0.1 to 100000000, operations a second".to_owned()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is a number from 0 to 1".to_owned()),
    }
}

fn parse_precision(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.5..=50.0).contains(&percent) => Ok(percent),
        _ => Err("a precision is a number from 0.5 to 50, in percent".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, String> {
        Line::try_parse_from(std::iter::once("bench").chain(line.split_whitespace()))
            .map(|line| line.bench)
            .map_err(|error| error.to_string())
    }

    fn workload(line: &str) -> Result<Workload, String> {
        let run = parse(line)?.run;
        run.work
            .workload(run.pace.pace(), &run.cluster, &Config::default())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Line::command().debug_assert();
    }

    #[test]
    fn the_pace_is_a_closed_loop_unless_a_rate_is_given() {
        assert_eq!(workload("").unwrap().pace, Pace::Inflight(1024));
        assert_eq!(workload("--inflight 7").unwrap().pace, Pace::Inflight(7));
        let open = workload("--rate 5000 --arrivals constant").unwrap().pace;
        let arrivals = Arrivals::Constant;
        assert_eq!(
            open,
            Pace::Rate {
                per_second: 5000.0,
                arrivals
            }
        );
        assert!(parse("--rate 5000 --inflight 7").is_err());
        assert!(parse("--arrivals constant").unwrap_err().contains("--rate"));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_right() {
        for (line, hint) in [
            ("--payload big", "128..1024"),
            ("--payload 9..3", "below the second"),
            ("--keys hot", "zipfian:0.99"),
            ("--reads 1.5", "0 to 1"),
            ("--read-mode sloppy", "lease"),
            ("--rate fast", "operations a second"),
            ("--seconds 0", "1..="),
            ("--max-lag 5", "5ms"),
            ("--fault meteor@5s", "kill-leader"),
            ("--arrivals sometimes --rate 5", "poisson"),
            ("find-max", "--p99"),
            ("find-max --p99 5ms --precision 0", "0.5 to 50"),
            ("compare a.json", "B.json"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(hint), "{line}: {error}");
        }
        for (line, hint) in [
            ("--payload 2000000", "max_proposal_bytes"),
            ("--groups 4 --active-groups 5", "--groups 4"),
            ("--inflight 1 --threads 2", "--inflight 1"),
        ] {
            let error = workload(line).unwrap_err();
            assert!(error.contains(hint), "{line}: {error}");
        }
    }

    #[test]
    fn subcommands_are_told_from_runs() {
        let found = parse("find-max --p99 5ms --groups 64").unwrap().command;
        let Some(BenchCommand::FindMax(args)) = found else {
            panic!("{found:?}");
        };
        assert_eq!(
            (args.p99, args.cluster.groups),
            (Duration::from_millis(5), 64)
        );
        let found = parse("compare a.json b.json").unwrap().command;
        assert!(matches!(found, Some(BenchCommand::Compare(_))), "{found:?}");
        assert!(parse("--groups 64").unwrap().command.is_none());
    }
}

//! Runs the same work on Polyraft, on raft-rs with raft-engine and on openraft, in turn, and prints how they compare.
//! It must never let one engine's round touch the next: each runs in a process and a directory of its own.

#[path = "../../src/allocator.rs"]
mod allocator;
mod digest;
mod host;
mod load;
mod mailbox;
mod openraft_cluster;
mod payloads;
mod polyraft_cluster;
mod raft_rs;
mod report;
mod rows;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use load::{Figures, Workload};
use report::{Measured, Run};
use rows::{Engine, ROWS};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Polyraft, raft-rs with raft-engine, and openraft on the same work.
#[derive(Parser)]
#[command(name = "polyraft-compare", version)]
struct CommandLine {
    #[command(subcommand)]
    task: Option<Task>,
    #[command(flatten)]
    comparison: Comparison,
}

#[derive(Subcommand)]
enum Task {
    /// Run one engine once and print its figures as JSON; the comparison calls this
    Round(Round),
}

#[derive(clap::Args)]
struct Comparison {
    /// Rounds per row; the engines take turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measured seconds per round
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Seconds of load before each measurement
    #[arg(long, default_value_t = 2)]
    warm_up: u64,
    /// Rows of the table, counted from 1
    #[arg(long, value_delimiter = ',', default_value = "1,2,3,4,5")]
    rows: Vec<usize>,
    /// Engines to run
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "polyraft,raft-rs,openraft"
    )]
    engines: Vec<Engine>,
    /// Where the nodes keep their logs; by default beside this program
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where to write the page; by default docs/benchmarks.md of the repository, and only if all rows and engines ran
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the table and write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Args)]
struct Round {
    #[arg(long, value_enum)]
    engine: Engine,
    #[arg(long)]
    groups: usize,
    #[arg(long)]
    inflight: usize,
    #[arg(long, default_value_t = 16)]
    payload: usize,
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    #[arg(long, default_value_t = 2)]
    warm_up: u64,
    /// An empty directory
    #[arg(long)]
    dir: PathBuf,
}

fn main() -> Result<()> {
    allocator::keep_freed_memory(allocator::KEPT_UNDER_LOAD);
    let line = CommandLine::parse();
    match line.task {
        Some(Task::Round(round)) => {
            println!("{}", serde_json::to_string(&round.run()?)?);
            Ok(())
        }
        None => line.comparison.run(),
    }
}

impl Round {
    fn run(&self) -> Result<Figures> {
        ensure!(
            self.groups > 0 && self.inflight >= self.groups,
            "each group needs a proposal in flight"
        );
        ensure!(
            self.payload >= payloads::MIN_BYTES,
            "a payload has at least {} bytes",
            payloads::MIN_BYTES
        );
        allocator::populate(allocator::MOST).context("memory can't be populated")?;
        let workload = Workload {
            groups: self.groups,
            inflight: self.inflight,
            payload_bytes: self.payload,
        };
        let (warm_up, measured) = (
            Duration::from_secs(self.warm_up),
            Duration::from_secs(self.seconds),
        );
        match self.engine {
            Engine::Polyraft => {
                let mut cluster = polyraft_cluster::Polyraft::start(&self.dir, self.groups)?;
                let figures = load::run(&mut cluster, workload, warm_up, measured)?;
                cluster.stop()?;
                Ok(figures)
            }
            Engine::RaftRs => {
                let mut cluster =
                    raft_rs::RaftRs::start(&self.dir, self.groups, warm_up + measured)?;
                let figures = load::run(&mut cluster, workload, warm_up, measured)?;
                cluster.stop()?;
                Ok(figures)
            }
            Engine::Openraft => {
                let mut cluster =
                    openraft_cluster::OpenRaft::start(&self.dir, self.groups, warm_up + measured)?;
                let figures = load::run(&mut cluster, workload, warm_up, measured)?;
                cluster.stop()?;
                Ok(figures)
            }
        }
    }
}

impl Comparison {
    fn run(&self) -> Result<()> {
        ensure!(
            self.rounds > 0 && self.seconds > 0,
            "there is nothing to measure"
        );
        let program = std::env::current_exe()?;
        let beside = program.parent().context("this program is nowhere")?;
        let place = self.dir.as_deref().unwrap_or(beside);
        std::fs::create_dir_all(place)
            .with_context(|| format!("{} can't be made", place.display()))?;
        let mut all = Vec::new();
        for at in &self.rows {
            let row = at.checked_sub(1).and_then(|at| ROWS.get(at));
            let row = *row.with_context(|| format!("there is no row {at}"))?;
            let mut rounds: Vec<(Engine, Vec<Figures>)> = self
                .engines
                .iter()
                .map(|engine| (*engine, Vec::new()))
                .collect();
            for round in 0..self.rounds {
                for (engine, figures) in &mut rounds {
                    let measured = self.round(&program, place, *engine, row.workload)?;
                    eprintln!(
                        "row {at}, round {}: {} {:.0} commits/s, p99 {:.2} ms, {:.2} µs CPU",
                        round + 1,
                        engine.title(),
                        measured.rate(),
                        measured.p99_us as f64 / 1e3,
                        measured.cpu_per_commit()
                    );
                    if measured.refused + measured.open > 0 {
                        eprintln!(
                            "  {} proposals were refused, {} stayed open",
                            measured.refused, measured.open
                        );
                    }
                    figures.push(measured);
                }
            }
            let number = *at;
            all.push(Measured {
                number,
                row,
                rounds,
            });
        }
        println!("{}", report::table(&all));
        self.publish(&all, place)
    }

    /// One engine once, in a process and a directory of its own.
    fn round(
        &self,
        program: &Path,
        place: &Path,
        engine: Engine,
        workload: Workload,
    ) -> Result<Figures> {
        let dir = tempfile::tempdir_in(place)
            .with_context(|| format!("no directory can be made in {}", place.display()))?;
        let output = Command::new(program)
            .arg("round")
            .args(["--engine", &engine.argument()])
            .args(["--groups", &workload.groups.to_string()])
            .args(["--inflight", &workload.inflight.to_string()])
            .args(["--payload", &workload.payload_bytes.to_string()])
            .args(["--seconds", &self.seconds.to_string()])
            .args(["--warm-up", &self.warm_up.to_string()])
            .arg("--dir")
            .arg(dir.path())
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            bail!("the round of {} failed: {}", engine.title(), output.status);
        }
        let figures = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{} printed no figures", engine.title()))?;
        dir.close()?;
        // What this round left to be written must not be charged to the next.
        rustix::fs::sync();
        Ok(figures)
    }

    fn publish(&self, all: &[Measured], place: &Path) -> Result<()> {
        let is_whole = self.rows == [1, 2, 3, 4, 5] && self.engines == Engine::ALL;
        let out = match &self.out {
            _ if self.dry_run => return Ok(()),
            Some(out) => out.clone(),
            None if is_whole => {
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md")
            }
            None => return Ok(()),
        };
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let separator = if arguments.is_empty() { "" } else { " -- " };
        let run = Run {
            command: format!(
                "cargo run --release --manifest-path bench/compare/Cargo.toml{separator}{}",
                arguments.join(" ")
            ),
            date: today()?,
            rounds: self.rounds,
            seconds: self.seconds,
            warm_up: self.warm_up,
            versions: versions()?,
        };
        std::fs::write(&out, report::page(all, &host::Host::read(place), &run))?;
        eprintln!("written to {}", out.display());
        Ok(())
    }
}

fn today() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%Y-%m-%d"]).output()?;
    ensure!(output.status.success(), "date failed");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// What this program was built from: Polyraft's commit, what the lock file says of the others, and the compiler.
fn versions() -> Result<Vec<(String, String)>> {
    let mut versions = vec![("polyraft".to_owned(), env!("COMPARE_COMMIT").to_owned())];
    let lock = include_str!("../Cargo.lock");
    for name in ["raft", "raft-engine", "openraft"] {
        let entry = format!("name = \"{name}\"\nversion = \"");
        let (_, rest) = lock.split_once(&entry).context("the lock file is odd")?;
        let version = rest.split('"').next().unwrap_or_default();
        versions.push((name.to_owned(), version.to_owned()));
    }
    let rustc = env!("COMPARE_RUSTC").trim_start_matches("rustc ");
    let rustc = rustc.split(' ').next().unwrap_or_default().to_owned();
    versions.push(("rustc".to_owned(), rustc));
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_known() {
        let versions = versions().unwrap();
        assert_eq!(versions.len(), 5);
        for (name, version) in versions {
            assert!(!version.is_empty(), "{name}");
        }
    }
}

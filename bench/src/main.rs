//! The command `polyraft`: reads the command line, runs what it asks for, and turns the outcome into an exit code.
//! It must never hold logic of its own.

mod allocator;
mod bench;
mod cluster;
mod control;
mod crew;
mod demo;
mod failover;
mod html;
mod idle;
mod load;
mod payloads;
mod preflight;
mod process;
mod recover;
mod screen;
mod signal;
mod snapshot;
mod statistics;
mod tally;
mod totals;
mod tune;
mod wal;
mod workload;

use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Thousands of Raft groups on one write-ahead log and one QUIC transport.
#[derive(Debug, Parser)]
#[command(name = "polyraft", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Bench(Box<bench::BenchArgs>),
    Tune(Box<tune::TuneArgs>),
    /// One node of a measurement, as `polyraft bench --processes` starts it
    #[command(hide = true)]
    BenchNode(bench::ChildArgs),
    #[command(subcommand)]
    Wal(wal::WalCommand),
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    #[command(subcommand)]
    Recover(recover::RecoverCommand),
}

/// How long freed memory is kept by a process that measures no load.
const KEPT: Duration = Duration::from_secs(10);

impl Command {
    /// How long the process keeps freed memory.
    fn kept(&self) -> Duration {
        match self {
            Command::Bench(args) if args.measures_a_load() => allocator::KEPT_UNDER_LOAD,
            Command::Tune(_) | Command::BenchNode(_) => allocator::KEPT_UNDER_LOAD,
            _ => KEPT,
        }
    }
}

/// Something failed, or did not hold.
const FAILED: u8 = 1;
/// Ctrl-C: what a shell reports for a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let line = CommandLine::parse();
    allocator::keep_freed_memory(line.command.kept());
    let level = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(std::io::stderr)
        .init();
    let outcome = match &line.command {
        Command::Demo(args) => demo::run(args).map(|ending| match ending {
            demo::Ending::Verified => ExitCode::SUCCESS,
            demo::Ending::Refuted => ExitCode::from(FAILED),
            demo::Ending::Interrupted => ExitCode::from(INTERRUPTED),
        }),
        Command::Bench(args) => bench::run(args).map(|ending| ExitCode::from(ending as u8)),
        Command::Tune(args) => tune::run(args).map(|ending| ExitCode::from(ending as u8)),
        Command::BenchNode(args) => bench::run_child(args).map(|()| ExitCode::SUCCESS),
        Command::Snapshot(command) => snapshot::run(command).map(|()| ExitCode::SUCCESS),
        Command::Wal(command) => wal::run(command).map(success_if),
        Command::Recover(command) => recover::run(command).map(success_if),
    };
    outcome.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::from(FAILED)
    })
}

fn success_if(holds: bool) -> ExitCode {
    match holds {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(FAILED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}

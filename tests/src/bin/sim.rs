//! The command `sim`: runs seeds of the simulated cluster and says which rule was broken, and how to see it again.
//! It must never let a failure pass without the one command that replays it.

use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use polyraft::GroupId;
use polyraft_tests::sim::{self, Report, campaign, mutants};

/// A seed is mostly small messages that are made and dropped.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the simulated cluster.
#[derive(Parser, Debug)]
#[command(name = "sim", version)]
struct Arguments {
    /// Runs these seeds, such as 0..1000.
    #[arg(long, value_parser = parse_range)]
    seeds: Option<Range<u64>>,
    /// Runs one seed and tells everything about it.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// With --seed: the events in words, of the groups concerned or of those given with --group.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// With --trace: the groups whose events are wanted.
    #[arg(long, requires = "trace")]
    group: Vec<u64>,
    /// Runs the seeds that once found something.
    #[arg(long)]
    regressions: bool,
    /// Seeds at the same time; one per core by default.
    #[arg(long)]
    jobs: Option<usize>,
    /// Runs with each deliberate fault until a rule catches it.
    #[arg(long)]
    mutants: bool,
    /// With --mutants: only the one of this name. With --seed, in a build with the mutants: that seed with this fault.
    #[arg(long)]
    only: Option<String>,
    /// With --mutants: also writes the table to this file.
    #[arg(long, requires = "mutants")]
    table: Option<PathBuf>,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (start, end) = text.split_once("..").ok_or("a range looks like 0..1000")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(start)?..number(end)?)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stderr(), "sim: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Seeds between two lines of progress.
const TELL_EVERY: u64 = 10_000;

fn run(arguments: &Arguments) -> io::Result<bool> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.jobs.unwrap_or(cores).max(1);
    if arguments.mutants {
        return mutants::run(jobs, arguments.only.as_deref(), arguments.table.as_deref());
    }
    if let Some(seed) = arguments.seed {
        return run_one(seed, arguments);
    }
    let mut seeds: Vec<u64> = Vec::new();
    if arguments.regressions {
        seeds.extend(campaign::regressions().into_iter().map(|(seed, _)| seed));
    }
    seeds.extend(arguments.seeds.clone().into_iter().flatten());
    if seeds.is_empty() {
        return Err(io::Error::other(
            "name seeds with --seeds, --seed or --regressions",
        ));
    }
    run_many(&seeds, jobs)
}

/// Runs seeds side by side and sums up.
fn run_many(seeds: &[u64], jobs: usize) -> io::Result<bool> {
    let mut out = io::stdout();
    let started = std::time::Instant::now();
    let mut sum = campaign::Sum::default();
    campaign::run(seeds, jobs, |report| {
        sum.add(report);
        if report.failure.is_some() {
            let _ = writeln!(out, "{}", report.plan);
            let _ = tell_failure(&mut out, report);
        }
        // Whoever ends a soak early knows how far it came.
        if sum.seeds.is_multiple_of(TELL_EVERY) {
            let (seeds, failures) = (sum.seeds, sum.failures);
            let _ = writeln!(out, "{seeds} seeds so far, {failures} broke a rule");
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    writeln!(out, "{sum}")?;
    writeln!(
        out,
        "{:.1} s, {:.0} seeds a minute on {jobs} threads",
        seconds,
        sum.seeds as f64 * 60.0 / seconds
    )?;
    let never = sum.never_happened();
    if !never.is_empty() {
        writeln!(out, "vacuous: never happened: {}", never.join(", "))?;
    }
    Ok(sum.failures == 0 && never.is_empty())
}

fn tell_failure(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let Some(failure) = &report.failure else {
        return Ok(());
    };
    let seed = report.plan.seed;
    writeln!(
        out,
        "seed {seed}: {} is broken: {}",
        failure.checker, failure.what
    )?;
    if let Some(group) = failure.group {
        writeln!(out, "  group {group}")?;
    }
    writeln!(out, "  trace hash {:016x}", report.hash)?;
    writeln!(
        out,
        "  replay: cargo run --release -p polyraft-tests --bin sim -- --seed {seed} --trace"
    )
}

fn run_one(seed: u64, arguments: &Arguments) -> io::Result<bool> {
    let mut out = io::stdout();
    if let Some(mutant) = &arguments.only {
        mutants::switch_on(mutant)?;
    }
    let report = sim::run(seed, None);
    writeln!(out, "{}", report.plan)?;
    writeln!(out, "{:#?}", report.counts)?;
    writeln!(out, "{} us of simulated time", report.micros)?;
    writeln!(out, "trace hash {:016x}", report.hash)?;
    if arguments.trace {
        let wanted: Vec<GroupId> = match arguments.group.is_empty() {
            true => report.concerned.clone(),
            false => arguments.group.iter().copied().map(GroupId).collect(),
        };
        for line in sim::run(seed, Some(wanted)).lines {
            writeln!(out, "{line}")?;
        }
    }
    tell_failure(&mut out, &report)?;
    Ok(report.failure.is_none())
}

//! Owns the command that checks every crash image of the log, and with `--mutants` that it notices deliberate faults.
//! Must never succeed after checking fewer images than it promises.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use polyraft_tests::crash_images::{self, Count, MODES, SecondCuts, workload};

/// Fewer images than this prove too little.
const LEAST: u64 = 20_000;

fn main() -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let passed = match std::env::args().nth(1).as_deref() {
        None => check_all(SecondCuts::Some, &mut out)?,
        Some("--all-second-cuts") => check_all(SecondCuts::All, &mut out)?,
        Some("--mutants") => mutants::check_all(&mut out)?,
        Some(other) => {
            writeln!(
                out,
                "unknown argument {other}; usage: crash-images [--all-second-cuts | --mutants]"
            )?;
            false
        }
    };
    Ok(match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Runs `task` for each number below `count` on all cores; the results are in order.
fn on_all_cores<T: Send>(count: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let numbers = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        let mine = numbers.take_while(|number| *number < count);
        mine.map(|number| (number, task(number)))
            .collect::<Vec<_>>()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut results = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined
            .flat_map(|done| done.expect("a checker does not panic"))
            .collect::<Vec<_>>()
    });
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

fn check_all(second: SecondCuts, out: &mut impl Write) -> io::Result<bool> {
    let started = Instant::now();
    let workloads = workload::all();
    let task = |number: usize| (&workloads[number / 2], MODES[number % 2]);
    let results = on_all_cores(2 * workloads.len(), |number| {
        let (workload, mode) = task(number);
        let mut count = Count::default();
        let result = crash_images::check(workload, mode, second, &mut count);
        (count, result)
    });
    let mut total = Count::default();
    let mut findings = 0;
    for (number, (count, result)) in results.iter().enumerate() {
        let (workload, mode) = task(number);
        total.add(count);
        let (operations, images) = (count.operations, count.images());
        let name = workload.name;
        writeln!(
            out,
            "{name:24} {mode:8?} {operations:5} operations {images:7} images"
        )?;
        if let Err(finding) = result {
            findings += 1;
            writeln!(out, "FAILED {finding}")?;
        }
    }
    let Count {
        operations,
        power_cuts,
        second_power_cuts,
        failed_syncs,
        misdirected,
        rotten,
        noticed,
    } = total;
    writeln!(
        out,
        "{} images of {operations} operations: {power_cuts} power cuts, {second_power_cuts} second ones, {failed_syncs} after \
         failed syncs, {misdirected} with a misdirected write, {rotten} rotten ({noticed} noticed); {findings} findings; {:.1} s",
        total.images(),
        started.elapsed().as_secs_f64()
    )?;
    let enough = total.images() >= LEAST;
    if !enough {
        writeln!(out, "too few images: at least {LEAST} are needed")?;
    }
    Ok(enough && findings == 0)
}

#[cfg(polyraft_mutants)]
mod mutants {
    use std::panic::{self, AssertUnwindSafe};

    use polyraft_raft::mutants::{LOG, set};
    use polyraft_tests::crash_images::Finding;

    use super::*;

    /// Shows for each deliberate fault of the log how many images it took to notice it, and how it was noticed.
    pub fn check_all(out: &mut impl Write) -> io::Result<bool> {
        // A fault that makes an assertion fail is noticed too.
        panic::set_hook(Box::new(|_| {}));
        let workloads = workload::all();
        let results = on_all_cores(LOG.len(), |number| {
            set(Some(LOG[number].0));
            let mut count = Count::default();
            let noticed = workloads.iter().find_map(|workload| {
                MODES.into_iter().find_map(|mode| {
                    let check =
                        || crash_images::check(workload, mode, SecondCuts::Some, &mut count);
                    match panic::catch_unwind(AssertUnwindSafe(check)) {
                        Ok(result) => result.err(),
                        Err(panic) => Some(Finding {
                            image: format!("{}, {mode:?}", workload.name),
                            reason: format!("an assertion failed: {}", message(&*panic)),
                        }),
                    }
                })
            });
            set(None);
            (count, noticed)
        });
        let mut survivors = 0;
        for ((mutant, fault), (count, noticed)) in LOG.iter().zip(&results) {
            let images = count.images();
            match noticed {
                Some(finding) => writeln!(
                    out,
                    "{fault:2} {mutant:?}: died after {images} images: {finding}"
                )?,
                None => {
                    survivors += 1;
                    writeln!(out, "{fault:2} {mutant:?}: SURVIVED {images} images")?;
                }
            }
        }
        writeln!(out, "{} mutants, {survivors} survivors", LOG.len())?;
        Ok(survivors == 0)
    }

    fn message(panic: &(dyn std::any::Any + Send)) -> &str {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown")
    }
}

#[cfg(not(polyraft_mutants))]
mod mutants {
    use super::*;

    pub fn check_all(out: &mut impl Write) -> io::Result<bool> {
        writeln!(
            out,
            "this build has no deliberate faults: build it with RUSTFLAGS='--cfg polyraft_mutants'"
        )?;
        Ok(false)
    }
}

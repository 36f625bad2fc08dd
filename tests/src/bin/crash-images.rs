//! Owns the command that checks every crash image of the log. Must never succeed after checking fewer than it promises.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use polyraft_tests::crash_images::{self, Count, Finding, MODES, workload};

/// Fewer images than this prove too little.
const LEAST: u64 = 20_000;

fn main() -> io::Result<ExitCode> {
    let started = Instant::now();
    let mut out = io::stdout().lock();
    let workloads = workload::all();
    let tasks: Vec<_> = workloads
        .iter()
        .flat_map(|workload| MODES.map(|mode| (workload, mode)))
        .collect();
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done: Vec<(usize, Result<Count, Finding>)> = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((workload, mode)) = tasks.get(at) else {
                return done;
            };
            done.push((at, crash_images::check(workload, *mode)));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut results = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined
            .flat_map(|done| done.expect("a checker does not panic"))
            .collect::<Vec<_>>()
    });
    results.sort_by_key(|(at, _)| *at);

    let mut total = Count::default();
    let mut findings = 0;
    for (at, result) in &results {
        let (workload, mode) = &tasks[*at];
        match result {
            Ok(count) => {
                total.add(count);
                writeln!(
                    out,
                    "{:24} {mode:8?} {:5} operations {:7} images",
                    workload.name,
                    count.operations,
                    count.images()
                )?;
            }
            Err(finding) => {
                findings += 1;
                writeln!(out, "FAILED {finding}")?;
            }
        }
    }
    let Count {
        operations,
        power_cuts,
        second_power_cuts,
        failed_syncs,
        rotten,
        noticed,
    } = total;
    writeln!(
        out,
        "{} images of {operations} operations: {power_cuts} power cuts, {second_power_cuts} second ones, {failed_syncs} after \
         failed syncs, {rotten} rotten ({noticed} noticed); {findings} findings; {:.1} s",
        total.images(),
        started.elapsed().as_secs_f64()
    )?;
    let enough = total.images() >= LEAST;
    if !enough && findings == 0 {
        writeln!(out, "too few images: at least {LEAST} are needed")?;
    }
    Ok(if enough && findings == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

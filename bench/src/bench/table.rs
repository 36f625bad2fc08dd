//! The result on the screen.

use super::result::{BenchResult, Times};
use crate::screen;
use crate::workload::Pace;
use std::time::Duration;

fn micros(micros: f64) -> String {
    screen::time(Duration::from_secs_f64(micros.max(0.0) / 1e6))
}

fn quantiles(times: &Times) -> String {
    format!(
        "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
        micros(times.p50),
        micros(times.p90),
        micros(times.p99),
        micros(times.p999),
        micros(times.max)
    )
}

/// Two columns, ready to print.
pub fn table(result: &BenchResult) -> String {
    let (setup, found) = (&result.setup, &result.result);
    let work = &setup.workload;
    let mut rows: Vec<(&str, String)> = Vec::new();
    let mut row = |name, value| rows.push((name, value));
    let pace = match work.pace {
        Pace::Inflight(inflight) => format!("{} in flight", screen::count(inflight)),
        Pace::Rate { per_second, .. } => {
            format!("{} op/s wanted", screen::count(per_second as u64))
        }
    };
    row(
        "load",
        format!(
            "{pace}, {} active groups ({}), {} B, {} s",
            screen::count(work.active_groups),
            work.keys,
            work.payload,
            setup.seconds
        ),
    );
    let mut rate = format!("{} op/s", screen::count(found.operations_per_second as u64));
    if work.reads > 0.0 {
        rate += &format!(
            ", {} commits/s",
            screen::count(found.commits_per_second as u64)
        );
    }
    if result.saturated {
        rate += " (the nodes did not keep up with the rate)";
    }
    row("throughput", rate);
    row("latency", quantiles(&found.latency_us));
    if work.reads > 0.0 {
        row("  proposals", quantiles(&found.proposal_us));
        row("  reads", quantiles(&found.read_us));
    }
    if found.lag_us.count > 0 {
        row(
            "generator's lag",
            format!(
                "p50 {}, p99 {}, max {}",
                micros(found.lag_us.p50),
                micros(found.lag_us.p99),
                micros(found.lag_us.max)
            ),
        );
    }
    if let Some(stages) = &result.stages {
        for (name, times) in [
            ("stage queue", stages.queue),
            ("stage append", stages.append),
            ("stage replicate", stages.replicate),
            ("stage commit", stages.commit),
            ("stage apply", stages.apply),
        ] {
            row(
                name,
                format!("p50 {}, p99 {}", micros(times.p50), micros(times.p99)),
            );
        }
    }
    row(
        "batches",
        format!(
            "{} entries/barrier, {} entries/block, {} B/frame",
            screen::three_digits(found.entries_per_barrier),
            screen::three_digits(found.entries_per_block),
            screen::count(found.bytes_per_frame as u64)
        ),
    );
    row(
        "barriers",
        format!(
            "{}, {} each on average",
            screen::count(found.barriers),
            micros(found.barrier_us)
        ),
    );
    row(
        "CPU",
        format!(
            "nodes {} s ({} µs/op), generator {} s",
            screen::three_digits(found.cpu_nodes_seconds),
            screen::three_digits(found.cpu_nodes_us_per_operation),
            screen::three_digits(found.cpu_generator_seconds)
        ),
    );
    if found.retried + found.open + found.unfinished > 0 {
        row(
            "trouble",
            format!(
                "{} retried, {} with an open outcome, {} unfinished",
                screen::count(found.retried),
                screen::count(found.open),
                screen::count(found.unfinished)
            ),
        );
    }
    for fault in &result.faults {
        row(
            "fault",
            format!(
                "{} at node {}: its {} groups without any success for {:.0} ms; single groups p50 {:.0} ms, max {:.0} ms",
                fault.fault,
                fault.node,
                screen::count(fault.groups),
                fault.unavailable_ms,
                fault.group_p50_ms,
                fault.group_max_ms
            ),
        );
    }
    screen::two_columns(&rows)
}

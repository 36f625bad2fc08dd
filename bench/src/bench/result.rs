//! The result of a measurement: one value that becomes the table, the JSON and the page, so that they never disagree.

use super::judgement::Judgement;
use super::measure::{Incident, Measured, Row};
use super::noise::Noise;
use super::stages::Stages;
use crate::load::Figures;
use crate::preflight::{Preflight, SyncTimes};
use crate::workload::Workload;
use anyhow::Result;
use hdrhistogram::Histogram;
use polyraft::Config;
use serde::Serialize;
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

/// Version of the JSON.
pub const FORMAT: u32 = 3;

/// Everything that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct BenchResult {
    /// Version of this format.
    pub format: u32,
    /// `bench`.
    pub kind: &'static str,
    /// What was measured, and on what. Results are comparable if these are equal.
    pub setup: Setup,
    /// What may differ between comparable results: the engine itself.
    pub engine: Engine,
    /// Seconds since 1970 when the load began.
    pub started: u64,
    /// What the disk and the network can do.
    pub preflight: Measurables,
    /// False if the figures say nothing.
    pub valid: bool,
    /// Why they say nothing.
    pub void: Vec<String>,
    /// Open loop: the nodes did not keep up with the rate.
    pub saturated: bool,
    /// The figures.
    pub result: Summary,
    /// What equal runs of this set-up differ by; null if that was not measured.
    pub noise: Option<Noise>,
    /// Where the time of a proposal goes; null if that was not measured.
    pub stages: Option<Stages>,
    /// Harm and outages.
    pub faults: Vec<FaultReport>,
    /// Latency in microseconds by quantile: the whole distribution.
    pub percentiles: Vec<(f64, f64)>,
    /// Second by second, the warm-up included, and the drain.
    pub seconds: Vec<Row>,
}

/// What was measured, and on what.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// Number of nodes.
    pub nodes: u64,
    /// Number of groups.
    pub groups: u64,
    /// Whether each node was a process of its own.
    pub processes: bool,
    /// Bytes of memory that were populated before the nodes started.
    pub populated_bytes: u64,
    /// The load.
    pub workload: Workload,
    /// Seconds before the measurement.
    pub warmup_seconds: u64,
    /// Seconds measured.
    pub seconds: u64,
    /// Harm done.
    pub faults: Vec<super::faults::Fault>,
    /// One proposal in so many was traced; 0 means none.
    pub stages_one_in: u32,
    /// `release` or `debug`.
    pub build: &'static str,
    /// An open loop is void if its generator was later than this, in microseconds.
    pub max_lag_us: f64,
    /// The machine.
    pub machine: Hardware,
    /// The block device of the data; null if there is none.
    pub device: Option<String>,
    /// The whole configuration of the nodes.
    pub config: Config,
}

/// The machine, as far as it does not change from run to run.
#[derive(Clone, Debug, Serialize)]
pub struct Hardware {
    /// The processor's name.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// File system of the data.
    pub filesystem: String,
}

impl Hardware {
    /// The part of a preflight that stays.
    pub fn of(preflight: &Preflight) -> Self {
        Self {
            cpu: preflight.cpu.clone(),
            cores: preflight.cores,
            memory_bytes: preflight.memory_bytes,
            kernel: preflight.kernel.clone(),
            filesystem: preflight.filesystem.clone(),
        }
    }
}

/// The part of a preflight that differs from run to run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measurables {
    /// Time of one 4 KiB write with `fdatasync`.
    pub fsync_us: SyncTimes,
    /// The lowest QUIC round trip between two nodes; null with one node.
    pub quic_round_trip_us: Option<u64>,
    /// Bytes free on the file system.
    pub free_bytes: u64,
}

impl Measurables {
    /// The part of a preflight that does not stay.
    pub fn of(preflight: &Preflight) -> Self {
        Self {
            fsync_us: preflight.fsync_us,
            quic_round_trip_us: preflight.quic_round_trip_us,
            free_bytes: preflight.free_bytes,
        }
    }
}

/// Which engine was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Engine {
    /// Version of the crate.
    pub version: &'static str,
    /// Commit that the binary was built from; `-dirty` if there were changes on top of it.
    pub commit: &'static str,
}

impl Engine {
    /// This binary's.
    pub fn here() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("POLYRAFT_COMMIT"),
        }
    }
}

/// `release` or `debug`.
pub const BUILD: &str = env!("POLYRAFT_PROFILE");

/// The figures of the window.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Its length as it was seen.
    pub seconds: f64,
    /// Operations answered in it.
    pub operations: u64,
    /// Proposals among them.
    pub committed: u64,
    /// `operations / seconds`.
    pub operations_per_second: f64,
    /// `committed / seconds`.
    pub commits_per_second: f64,
    /// Latency of the operations that were due in the window, in microseconds.
    pub latency_us: Times,
    /// Of the proposals among them.
    pub proposal_us: Times,
    /// Of the reads among them.
    pub read_us: Times,
    /// Open loop: how late the generator itself was.
    pub lag_us: Times,
    /// How often operations that were due in the window were refused, and sent again.
    pub retried: u64,
    /// Proposals due in the window whose outcome stays open.
    pub open: u64,
    /// Operations without an answer at the end; their age counts in the latencies.
    pub unfinished: u64,
    /// Barriers of all nodes.
    pub barriers: u64,
    /// Mean time of a barrier in microseconds.
    pub barrier_us: f64,
    /// Entries that one barrier made durable on its node, on average.
    pub entries_per_barrier: f64,
    /// Entries in an entry block, on average.
    pub entries_per_block: f64,
    /// Bytes in a frame, on average.
    pub bytes_per_frame: f64,
    /// Frames between nodes.
    pub frames: u64,
    /// Bytes written to the WALs of all nodes.
    pub wal_bytes: u64,
    /// Turns of all shards.
    pub turns: u64,
    /// CPU time of all nodes in seconds.
    pub cpu_nodes_seconds: f64,
    /// CPU time of the generator in seconds.
    pub cpu_generator_seconds: f64,
    /// CPU time of all nodes for each operation, in microseconds.
    pub cpu_nodes_us_per_operation: f64,
    /// Resident memory of the processes of the nodes.
    pub rss_bytes: u64,
}

/// Quantiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// How many.
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub p9999: f64,
    pub max: f64,
}

impl Times {
    /// Of a histogram of nanoseconds.
    pub fn of(nanos: &Histogram<u64>) -> Self {
        let micros = |quantile| nanos.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: nanos.len(),
            mean: nanos.mean() / 1e3,
            p50: micros(0.5),
            p90: micros(0.9),
            p99: micros(0.99),
            p999: micros(0.999),
            p9999: micros(0.9999),
            max: nanos.max() as f64 / 1e3,
        }
    }
}

/// An incident in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct FaultReport {
    /// As it was asked for.
    pub fault: super::faults::Fault,
    /// When, in seconds from the end of the warm-up.
    pub at_seconds: f64,
    /// The node that was hit.
    pub node: u64,
    /// Groups that it led.
    pub groups: u64,
    /// The longest time without a success of any of these groups, in milliseconds.
    pub unavailable_ms: f64,
    /// The longest time without a success of a single one of them: the median of the groups.
    pub group_p50_ms: f64,
    /// The most of them. With few operations per group, their own gaps are in it.
    pub group_max_ms: f64,
}

impl FaultReport {
    fn of(incident: &Incident) -> Self {
        let each = &incident.outage.each;
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let at = |index: usize| each.get(index).map_or(0.0, |time| millis(*time));
        Self {
            fault: incident.fault,
            at_seconds: incident.fault.at.as_secs_f64(),
            node: incident.node,
            groups: each.len() as u64,
            unavailable_ms: millis(incident.outage.all),
            group_p50_ms: at(each.len() / 2),
            group_max_ms: each.last().map_or(0.0, |time| millis(*time)),
        }
    }
}

impl Summary {
    /// The figures of a measurement.
    pub fn of(measured: &Measured) -> Self {
        let Figures {
            proposals,
            reads,
            lag,
            retried,
            open,
            ..
        } = &measured.due;
        let totals = measured.totals;
        let per = |sum: f64, count: u64| if count == 0 { 0.0 } else { sum / count as f64 };
        let cpu = measured.cpu_nodes.as_secs_f64();
        Self {
            seconds: measured.seconds,
            operations: measured.answered,
            committed: measured.committed,
            operations_per_second: measured.answered as f64 / measured.seconds,
            commits_per_second: measured.committed as f64 / measured.seconds,
            latency_us: Times::of(&measured.due.all()),
            proposal_us: Times::of(proposals),
            read_us: Times::of(reads),
            lag_us: Times::of(lag),
            retried: *retried,
            open: *open,
            unfinished: measured.due.unfinished(),
            barriers: totals.barriers,
            barrier_us: per(totals.barrier_us as f64, totals.barriers),
            entries_per_barrier: totals.entries_per_barrier(),
            entries_per_block: totals.entries_per_block(),
            bytes_per_frame: totals.bytes_per_frame(),
            frames: totals.frames,
            wal_bytes: totals.wal_bytes,
            turns: totals.turns,
            cpu_nodes_seconds: cpu,
            cpu_generator_seconds: measured.cpu_generator.as_secs_f64(),
            cpu_nodes_us_per_operation: per(cpu * 1e6, measured.answered),
            rss_bytes: measured.resident,
        }
    }
}

impl BenchResult {
    /// Puts everything together.
    pub fn new(
        setup: Setup,
        preflight: &Preflight,
        measured: &Measured,
        judgement: Judgement,
    ) -> Self {
        let started = measured
            .started
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            format: FORMAT,
            kind: "bench",
            setup,
            engine: Engine::here(),
            started: started.as_secs(),
            preflight: Measurables::of(preflight),
            valid: judgement.void.is_empty(),
            void: judgement.void,
            saturated: judgement.saturated,
            result: Summary::of(measured),
            noise: None,
            stages: measured.stages.summary(),
            faults: measured.incidents.iter().map(FaultReport::of).collect(),
            percentiles: distribution(&measured.due.all()),
            seconds: measured.rows.clone(),
        }
    }
}

/// Writes any result as JSON.
pub fn put_json(mut out: impl Write, result: &impl Serialize) -> Result<()> {
    serde_json::to_writer_pretty(&mut out, result)?;
    Ok(out.write_all(b"\n")?)
}

/// The quantiles at which a distribution bends, with their microseconds.
pub fn distribution(nanos: &Histogram<u64>) -> Vec<(f64, f64)> {
    if nanos.is_empty() {
        return Vec::new();
    }
    let mut points: Vec<(f64, f64)> = Vec::new();
    for value in nanos.iter_quantiles(8) {
        let point = (
            value.quantile_iterated_to(),
            value.value_iterated_to() as f64 / 1e3,
        );
        if points.last().is_none_or(|last| *last != point) {
            points.push(point);
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::histogram;

    #[test]
    fn a_distribution_rises_to_the_longest() {
        assert!(distribution(&histogram()).is_empty());
        let mut times = histogram();
        for micros in 1..=10_000_u64 {
            times.record(micros * 1_000).unwrap();
        }
        let points = distribution(&times);
        assert!(
            points
                .windows(2)
                .all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1)
        );
        let last = points.last().unwrap();
        assert!(
            last.0 == 1.0 && (last.1 - 10_000.0).abs() < 10.0,
            "{last:?}"
        );
        let half = points.iter().find(|point| point.0 >= 0.5).unwrap();
        assert!((half.1 - 5_000.0).abs() < 20.0, "{half:?}");
    }
}

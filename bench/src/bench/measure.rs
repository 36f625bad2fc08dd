//! One measurement: a load on running nodes, warmed up, watched second by second, ended. It judges nothing.

use super::faults::{Fault, Harm};
use super::nodes::{Look, Nodes};
use super::stages::StageTimes;
use crate::load::{Figures, Load, Outage, Timing};
use crate::totals::Totals;
use crate::workload::Workload;
use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant, SystemTime};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The load.
    pub workload: Workload,
    /// Seconds before the window.
    pub warmup: u64,
    /// Seconds of the window.
    pub seconds: u64,
    /// Harm done in the window.
    pub faults: Vec<Fault>,
}

/// Which part of a load an interval belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Before the window.
    Warmup,
    /// What is measured.
    #[default]
    Window,
    /// After the window, until nothing is under way: its slowest operations end here.
    Drain,
}

/// What one second, or the drain, showed. Latencies are those of the operations that were answered or given up in it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Which part of the load it is of.
    pub part: Part,
    /// End of the second, counted from the end of the warm-up: 0 and less is warm-up.
    pub second: i64,
    /// Its measured length.
    pub seconds: f64,
    /// Proposals acknowledged.
    pub proposals: u64,
    /// Reads answered.
    pub reads: u64,
    /// Proposals and reads per second.
    pub operations_per_second: f64,
    /// Median latency of both in microseconds; None if there were none.
    pub p50_us: Option<f64>,
    /// 90th percentile.
    pub p90_us: Option<f64>,
    /// 99th percentile.
    pub p99_us: Option<f64>,
    /// 99.9th percentile.
    pub p999_us: Option<f64>,
    /// The longest.
    pub max_us: Option<f64>,
    /// The most that the generator was late, in microseconds; 0 in a closed loop.
    pub lag_max_us: f64,
    /// Operations refused, and sent again.
    pub retried: u64,
    /// Proposals whose outcome stays open.
    pub open: u64,
    /// Barriers of all nodes.
    pub barriers: u64,
    /// Mean time of a barrier in microseconds.
    pub barrier_us: f64,
    /// Entries that one barrier made durable on its node, on average.
    pub entries_per_barrier: f64,
    /// Entries in an entry block, on average.
    pub entries_per_block: f64,
    /// Frames between nodes.
    pub frames: u64,
    /// Bytes in a frame, on average.
    pub bytes_per_frame: f64,
    /// Bytes written to the WALs.
    pub wal_bytes: u64,
    /// CPU time of the nodes, in seconds.
    pub cpu_nodes: f64,
    /// CPU time of the generator, in seconds.
    pub cpu_generator: f64,
}

/// An incident and what came of it.
#[derive(Clone, Debug)]
pub struct Incident {
    /// What was asked for.
    pub fault: Fault,
    /// The node that was hit.
    pub node: u64,
    /// Time without success of the groups that it had led, until the next incident or the end of the load.
    pub outage: Outage,
}

/// Everything that was seen.
pub struct Measured {
    /// When the load began.
    pub started: SystemTime,
    /// Length of the window as it was seen.
    pub seconds: f64,
    /// Operations due in the window, whenever they were answered.
    pub due: Figures,
    /// Operations answered in the window, whenever they were due.
    pub answered: u64,
    /// Of these, proposals.
    pub committed: u64,
    /// All seconds, those of the warm-up included, and the drain.
    pub rows: Vec<Row>,
    /// What the nodes did in the window.
    pub totals: Totals,
    /// CPU time of the nodes in the window.
    pub cpu_nodes: Duration,
    /// CPU time of the generator in the window.
    pub cpu_generator: Duration,
    /// Resident memory of the nodes' processes at the end of the window.
    pub resident: u64,
    /// Stages of the proposals that were answered in the window and traced.
    pub stages: StageTimes,
    /// Incidents in their order.
    pub incidents: Vec<Incident>,
}

/// What was seen at one moment.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    look: Look,
    cpu_generator: Duration,
}

/// Drives the load of `plan` at `nodes`. `on_row` gets each second as it passes, and the drain.
pub async fn measure(nodes: &Nodes, plan: &Plan, mut on_row: impl FnMut(&Row)) -> Result<Measured> {
    measure_intervals(nodes, plan, |row, _| on_row(row)).await
}

/// The same; `on_interval` also gets the latencies of each row.
pub async fn measure_intervals(
    nodes: &Nodes,
    plan: &Plan,
    mut on_interval: impl FnMut(&Row, &Histogram<u64>),
) -> Result<Measured> {
    let workload = &plan.workload;
    let ports = nodes.ports(workload.threads, workload.active_groups)?;
    let (warmup, end) = (plan.warmup, plan.warmup + plan.seconds);
    // Those of an earlier load on these nodes.
    nodes.take_traces().await?;
    // A moment for the threads to start.
    let origin = Instant::now() + Duration::from_millis(20);
    let timing = Timing {
        origin,
        window: Duration::from_secs(warmup)..Duration::from_secs(end),
    };
    let started = SystemTime::now();
    let mut load = Load::start(workload, &timing, nodes.proposal_timeout(), ports)?;
    let mut script = Script::new(plan, origin + timing.window.start);
    let mut measured = Measured {
        started,
        seconds: 0.0,
        due: Figures::new(),
        answered: 0,
        committed: 0,
        rows: Vec::new(),
        totals: Totals::default(),
        cpu_nodes: Duration::ZERO,
        cpu_generator: Duration::ZERO,
        resident: 0,
        stages: StageTimes::new(),
        incidents: Vec::new(),
    };
    let mut second = Figures::new();
    tokio::time::sleep_until(origin.into()).await;
    let mut last = moment(origin, nodes, &load).await?;
    let mut opening = last;
    for tick in 1..=end {
        script
            .run_until(origin + Duration::from_secs(tick), nodes, &load)
            .await?;
        load.take_since(&mut second)?;
        let now = moment(Instant::now(), nodes, &load).await?;
        let part = if tick <= warmup {
            Part::Warmup
        } else {
            Part::Window
        };
        let all = second.all();
        let row = row(
            part,
            tick as i64 - warmup as i64,
            (&second, &all),
            &last,
            &now,
        );
        on_interval(&row, &all);
        if tick == warmup {
            opening = now;
        }
        let traces = nodes.take_traces().await?;
        if part == Part::Window {
            traces.iter().for_each(|trace| measured.stages.add(trace));
            measured.answered += second.answered();
            measured.committed += second.committed();
            measured.totals = measured.totals + (now.look.totals - last.look.totals);
        }
        measured.rows.push(row);
        last = now;
    }
    measured.seconds = (last.at - opening.at).as_secs_f64();
    measured.cpu_nodes = last.cpu_nodes_since(&opening);
    measured.cpu_generator = last.cpu_generator - opening.cpu_generator;
    measured.resident = last.look.resident;
    measured.incidents = script.end(nodes, &load)?;
    load.rest().await?;
    load.take_since(&mut second)?;
    let now = moment(Instant::now(), nodes, &load).await?;
    let all = second.all();
    let row = row(
        Part::Drain,
        plan.seconds as i64 + 1,
        (&second, &all),
        &last,
        &now,
    );
    on_interval(&row, &all);
    measured.rows.push(row);
    measured.due = load.end()?;
    Ok(measured)
}

/// What is seen `at` a time that has just come.
async fn moment(at: Instant, nodes: &Nodes, load: &Load) -> Result<Moment> {
    Ok(Moment {
        look: nodes.look().await?,
        cpu_generator: load.cpu(),
        at,
    })
}

impl Moment {
    /// What the generator used is not the nodes', wherever it runs.
    fn cpu_nodes_since(&self, before: &Self) -> Duration {
        let all = self.look.cpu.saturating_sub(before.look.cpu);
        if self.look.shares_process {
            all.saturating_sub(self.cpu_generator - before.cpu_generator)
        } else {
            all
        }
    }
}

/// `all` are the latencies of `figures`.
fn row(
    part: Part,
    second: i64,
    (figures, all): (&Figures, &Histogram<u64>),
    before: &Moment,
    now: &Moment,
) -> Row {
    let seconds = (now.at - before.at).as_secs_f64();
    let totals = now.look.totals - before.look.totals;
    let micros = |nanos: u64| (!all.is_empty()).then_some(nanos as f64 / 1e3);
    let at = |quantile| micros(all.value_at_quantile(quantile));
    Row {
        part,
        second,
        seconds,
        proposals: figures.committed(),
        reads: figures.answered() - figures.committed(),
        operations_per_second: figures.answered() as f64 / seconds,
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: micros(all.max()),
        lag_max_us: figures.lag.max() as f64 / 1e3,
        retried: figures.retried,
        open: figures.open,
        barriers: totals.barriers,
        barrier_us: match totals.barriers {
            0 => 0.0,
            barriers => totals.barrier_us as f64 / barriers as f64,
        },
        entries_per_barrier: totals.entries_per_barrier(),
        entries_per_block: totals.entries_per_block(),
        frames: totals.frames,
        bytes_per_frame: totals.bytes_per_frame(),
        wal_bytes: totals.wal_bytes,
        cpu_nodes: now.cpu_nodes_since(before).as_secs_f64(),
        cpu_generator: (now.cpu_generator - before.cpu_generator).as_secs_f64(),
    }
}

/// The incidents of a plan in their order, and what they do over time.
struct Script {
    /// What is still to happen, the next one last.
    steps: Vec<(Instant, Step)>,
    active_groups: u64,
    /// The incident that is watched now.
    open: Option<(Fault, u64)>,
    incidents: Vec<Incident>,
}

#[derive(Clone, Copy)]
enum Step {
    Begin(Fault),
    /// The paused node goes on.
    Resume(u64),
}

impl Script {
    fn new(plan: &Plan, window: Instant) -> Self {
        let mut steps: Vec<_> = plan
            .faults
            .iter()
            .map(|fault| (window + fault.at, Step::Begin(*fault)))
            .collect();
        steps.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        Self {
            steps,
            active_groups: plan.workload.active_groups,
            open: None,
            incidents: Vec::new(),
        }
    }

    /// Does what is due until `until`, at its time.
    async fn run_until(&mut self, until: Instant, nodes: &Nodes, load: &Load) -> Result<()> {
        while let Some((at, step)) = self.steps.pop_if(|(at, _)| *at <= until) {
            tokio::time::sleep_until(at.into()).await;
            match step {
                Step::Begin(fault) => self.begin(fault, nodes, load).await?,
                Step::Resume(node) => nodes.resume(node)?,
            }
        }
        tokio::time::sleep_until(until.into()).await;
        Ok(())
    }

    async fn begin(&mut self, fault: Fault, nodes: &Nodes, load: &Load) -> Result<()> {
        self.close(load);
        // Faults do not overlap, but one may have begun a moment late.
        self.resume_all(nodes)?;
        // Who leads may have changed since the last second.
        nodes.look().await?;
        let (node, led) = nodes.busiest(self.active_groups)?;
        load.watch().begin(&led);
        self.open = Some((fault, node));
        match fault.harm {
            Harm::KillLeader => nodes.kill(node).await,
            Harm::StallDisk(lasts) => nodes.stall_disk(node, lasts).await,
            Harm::Pause(lasts) => {
                let resume = (Instant::now() + lasts, Step::Resume(node));
                let at = self.steps.partition_point(|(at, _)| *at > resume.0);
                self.steps.insert(at, resume);
                nodes.pause(node)
            }
        }
    }

    fn close(&mut self, load: &Load) {
        if let Some((fault, node)) = self.open.take() {
            let outage = load.watch().end();
            self.incidents.push(Incident {
                fault,
                node,
                outage,
            });
        }
    }

    /// Nobody is left paused.
    fn resume_all(&mut self, nodes: &Nodes) -> Result<()> {
        let is_pause = |step: &mut (Instant, Step)| matches!(step.1, Step::Resume(_));
        for (_, step) in self.steps.extract_if(.., is_pause) {
            if let Step::Resume(node) = step {
                nodes.resume(node)?;
            }
        }
        Ok(())
    }

    fn end(mut self, nodes: &Nodes, load: &Load) -> Result<Vec<Incident>> {
        self.close(load);
        self.resume_all(nodes)?;
        Ok(self.incidents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Shape;
    use crate::workload::{Keys, Pace, ReadMode, Sizes};
    use polyraft::Config;

    #[test]
    fn a_load_has_all_of_its_own_and_nothing_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.trace.one_in = 1;
        let shape = Shape {
            nodes: 1,
            groups: 1,
            config,
            processes: false,
            populate: 0,
        };
        let plan = |reads| Plan {
            workload: Workload {
                pace: Pace::Inflight(64),
                payload: Sizes::Fixed(16),
                keys: Keys::Uniform,
                active_groups: 1,
                reads,
                read_mode: ReadMode::Stale,
                threads: 1,
                seed: 1,
            },
            warmup: 0,
            seconds: 1,
            faults: Vec::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let nodes = Nodes::start(&shape, dir.path()).await.unwrap();
            let mut latencies = 0;
            let count = |_: &Row, interval: &Histogram<u64>| latencies += interval.len();
            let proposals = measure_intervals(&nodes, &plan(0.0), count).await.unwrap();
            let reads = measure(&nodes, &plan(1.0), |_| {}).await.unwrap();
            nodes.stop().await.unwrap();
            let parts: Vec<_> = proposals.rows.iter().map(|row| row.part).collect();
            assert_eq!(parts, [Part::Window, Part::Drain]);
            // The window and its drain have whatever was due in it.
            let answered: u64 = proposals.rows.iter().map(|row| row.proposals).sum();
            assert!(answered >= proposals.due.committed(), "{answered}");
            assert_eq!(latencies, answered);
            assert!(proposals.stages.summary().is_some());
            // Proposals that were under way when the first load ended were traced after its window.
            assert_eq!(reads.stages.summary(), None);
        });
    }
}

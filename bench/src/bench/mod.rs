//! `polyraft bench`: starts nodes, drives load, and says what it saw on the screen and in files. Whatever happens, the
//! nodes are stopped and their data is removed.

mod args;
mod child;
mod compare;
mod cost_model;
mod device;
mod faults;
mod find_max;
mod fleet;
mod hlog;
mod in_flight;
mod judgement;
mod measure;
mod nodes;
mod noise;
mod output;
mod protocol;
mod reads;
mod remote;
mod result;
mod rolling;
mod rows;
mod scale;
mod stages;
mod table;
mod workdir;

pub use args::{BenchArgs, ClusterArgs, MemoryArgs, WorkArgs, parse_rate, parse_time};
pub use child::{ChildArgs, run as run_child};
pub use judgement::{Judgement, kept};
pub use measure::{Plan, measure};
pub use nodes::{Nodes, Shape};
pub use output::{Json, Output, Writer};
pub use result::{BUILD, Engine, Hardware, Times, put_json};

use crate::screen::Screen;
use crate::signal::interruption;
use crate::workload::{ReadMode, Workload};
use crate::{allocator, html, preflight, screen};
use anyhow::{Result, bail};
use args::{BenchCommand, OutputArgs, RunArgs};
use device::device_of;
use faults::Harm;
use hlog::Hlog;
use measure::{Part, Row, measure_intervals};
use noise::Noise;
use polyraft::Config;
use preflight::Preflight;
use result::{BenchResult, Setup};
use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use workdir::WorkDir;

/// How a command ends when nothing went wrong on the way. The numbers are exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// As it should.
    Good = 0,
    /// The figures say nothing, the bound is not held, or the second result is worse.
    Bad = 3,
    /// Two results cannot be compared.
    Mismatch = 4,
    /// Ctrl-C, or a request to terminate: what a shell reports for a process that SIGINT ended.
    Interrupted = 130,
}

/// Runs what the command line asks for.
pub fn run(args: &BenchArgs) -> Result<Ending> {
    match &args.command {
        None => bench(&args.run),
        Some(BenchCommand::FindMax(args)) => find_max::run(args),
        Some(BenchCommand::Compare(args)) => compare::run(args),
        Some(BenchCommand::CostModel(args)) => cost_model::run(args),
        Some(BenchCommand::Reads(args)) => reads::run(args),
        Some(BenchCommand::Snapshot(args)) => in_flight::run(args),
        Some(BenchCommand::RollingRestart(args)) => rolling::run(args),
        Some(BenchCommand::Idle(args)) => scale::idle::run(args),
        Some(BenchCommand::Failover(args)) => scale::failover::run(args),
        Some(BenchCommand::Restart(args)) => scale::restart::run(args),
    }
}

/// What every command that starts nodes begins with.
pub struct Setting {
    /// Where it tells what it does.
    pub screen: Screen,
    /// Where the nodes keep their data.
    pub dir: WorkDir,
    /// What the machine can do.
    pub preflight: Preflight,
    /// Bytes of memory that nodes under load have populated before they start.
    pub populated: u64,
}

impl Setting {
    /// Makes the directory and measures the machine.
    pub fn new(cluster: &ClusterArgs) -> Result<Self> {
        let screen = Screen::new();
        let dir = WorkDir::new(cluster.dir.as_deref())?;
        screen.live("measuring fsync ...".into(), false);
        let preflight = preflight::run(dir.path())?;
        screen.done(
            "machine",
            &format!(
                "{}, {} cores, Linux {}, {}",
                preflight.cpu, preflight.cores, preflight.kernel, preflight.filesystem
            ),
        );
        screen.done(
            "fsync of 4 KiB",
            &format!(
                "p50 {}, p99 {}, p99.9 {}",
                screen::micros(preflight.fsync_us.p50),
                screen::micros(preflight.fsync_us.p99),
                screen::micros(preflight.fsync_us.p999)
            ),
        );
        for warning in preflight.warnings() {
            screen.line(&format!("warning: {warning}"));
        }
        if cfg!(debug_assertions) {
            screen.line(
                "warning: this is a debug build; its figures say little (cargo run --release)",
            );
        }
        Ok(Self {
            screen,
            dir,
            preflight,
            populated: 0,
        })
    }

    /// The same for nodes that get a load: their memory is populated. Nodes with processes of their own do that when they start.
    pub fn under_load(cluster: &ClusterArgs, memory: MemoryArgs) -> Result<Self> {
        let bytes = memory.bytes(cluster)?;
        let mut setting = Self::new(cluster)?;
        if bytes > 0 {
            setting.populate(bytes, cluster.processes, memory.populate.is_some())?;
        }
        Ok(setting)
    }

    /// `is_asked_for`: by the user, who wants an error if it can't be done.
    fn populate(&mut self, bytes: u64, apart: bool, is_asked_for: bool) -> Result<()> {
        self.screen.live("backing memory ...".into(), false);
        let begun = Instant::now();
        // Whether the system can do it at all, one byte shows.
        match allocator::populate(if apart { 1 } else { bytes }) {
            Ok(()) if apart => self.populated = bytes,
            Ok(()) => {
                self.populated = bytes;
                let (size, time) = (screen::bytes(bytes), screen::time(begun.elapsed()));
                let text = format!("{size} backed before the load, in {time}");
                self.screen.done("memory", &text);
            }
            Err(error) if is_asked_for => {
                bail!("memory can't be populated: {error}; --populate 0 goes without")
            }
            Err(error) => self.screen.line(&format!(
                "warning: memory can't be populated ({error}): tails hold what first touches of it cost"
            )),
        }
        Ok(())
    }

    /// Starts nodes in an empty directory of the setting, and says so.
    pub async fn start_nodes(&mut self, shape: &Shape, name: &str) -> Result<Nodes> {
        self.screen.live(
            format!(
                "starting {} nodes and creating {} groups ...",
                shape.nodes,
                screen::count(shape.groups)
            ),
            false,
        );
        let nodes = Nodes::start(shape, &self.dir.fresh(name)?).await?;
        self.preflight.quic_round_trip_us = nodes.round_trip().map(|time| time.as_micros() as u64);
        Ok(nodes)
    }
}

/// Runs a story that starts nodes, until it ends or is interrupted.
pub fn until_interrupted<T>(story: impl Future<Output = Result<T>>, interrupted: T) -> Result<T> {
    // Nodes have threads of their own; this runtime only waits for them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::select! {
            ending = story => ending,
            signal = interruption() => signal.map(|()| interrupted),
        }
    })
}

fn bench(args: &RunArgs) -> Result<Ending> {
    let mut config = args.cluster.load_config()?;
    config.trace.one_in = args.stages;
    let workload = args
        .work
        .workload(args.pace.pace(), &args.cluster, &config)?;
    check_faults(args)?;
    let files = Files::open(&args.output)?;
    let mut setting = Setting::under_load(&args.cluster, args.memory)?;
    until_interrupted(
        measure_all(args, files, &mut setting, &workload, config),
        Ending::Interrupted,
    )
}

fn check_faults(args: &RunArgs) -> Result<()> {
    if let Some((earlier, later)) = faults::overlap(&args.faults) {
        bail!("--fault {later} comes before --fault {earlier} is over; give each its own time");
    }
    let work = &args.work;
    if !args.faults.is_empty() && work.reads >= 1.0 && work.read_mode == ReadMode::Stale {
        bail!(
            "--fault needs operations that a leader answers, and stale reads go on without: lower --reads, or choose another --read-mode"
        );
    }
    for fault in &args.faults {
        if fault.at.as_secs_f64() >= args.time.seconds as f64 {
            bail!("--fault {fault} comes after the end of the measurement; raise --seconds");
        }
        if fault.end().as_secs_f64() > args.time.seconds as f64 {
            bail!("--fault {fault} lasts beyond the end of the measurement; raise --seconds");
        }
        if matches!(fault.harm, Harm::Pause(_)) && !args.cluster.processes {
            bail!("--fault {fault} needs --processes: nodes in one process stand still together");
        }
        if fault.harm == Harm::KillLeader && args.cluster.nodes < 3 {
            bail!("--fault {fault} needs 3 nodes: fewer cannot go on without one");
        }
    }
    Ok(())
}

/// The files that a run leaves.
struct Files {
    json: Option<Output>,
    csv: Option<Output>,
    hlog: Option<Output>,
    html: Option<Output>,
}

impl Files {
    /// Tries all paths.
    fn open(args: &OutputArgs) -> Result<Self> {
        let open = |path: &Option<PathBuf>| path.as_deref().map(Output::open).transpose();
        Ok(Self {
            json: open(&args.json)?,
            csv: open(&args.csv)?,
            hlog: open(&args.hlog)?,
            html: open(&args.html)?,
        })
    }

    /// Writes all of them that can be written, and tells which. Fails with the first that cannot.
    fn write(
        self,
        screen: &Screen,
        result: &BenchResult,
        hlog: &Hlog,
        started: SystemTime,
    ) -> Result<()> {
        let mut writer = Writer::new(screen);
        writer.write(self.json, |out| put_json(out, result));
        writer.write(self.csv, |out| {
            Ok(out.write_all(rows::csv(&result.seconds)?.as_bytes())?)
        });
        writer.write(self.hlog, |out| hlog.write(out, started));
        writer.write(self.html, |out| {
            Ok(out.write_all(html::fill(html::BENCH, result)?.as_bytes())?)
        });
        writer.end()
    }
}

async fn measure_all(
    args: &RunArgs,
    files: Files,
    setting: &mut Setting,
    workload: &Workload,
    config: Config,
) -> Result<Ending> {
    let shape = Shape {
        nodes: args.cluster.nodes,
        groups: args.cluster.groups,
        config: config.clone(),
        processes: args.cluster.processes,
        populate: setting.populated,
    };
    let nodes = setting.start_nodes(&shape, "cluster").await?;
    setting.screen.done(
        "cluster",
        &format!(
            "{} nodes, {} groups, all led",
            shape.nodes,
            screen::count(shape.groups)
        ),
    );
    if let Some(round_trip) = nodes.round_trip() {
        setting
            .screen
            .done("QUIC round trip", &screen::time(round_trip));
    }
    let plan = Plan {
        workload: workload.clone(),
        warmup: args.time.warmup,
        seconds: args.time.seconds,
        faults: args.faults.clone(),
    };
    let noise = Noise::measure(&nodes, &plan, args.noise_rounds, |run| {
        let text = format!(
            "measuring the noise, run {run} of {} ...",
            2 * args.noise_rounds
        );
        setting.screen.live(text, false);
    })
    .await?;
    if let Some(noise) = &noise {
        setting.screen.done(
            "noise (A/A)",
            &format!(
                "{} equal runs: throughput ± {:.1} %, p50 ± {:.1} %, p99 ± {:.1} %, CPU ± {:.1} %",
                noise.runs.len(),
                noise.throughput_percent,
                noise.p50_percent,
                noise.p99_percent,
                noise.cpu_percent
            ),
        );
    }
    let mut hlog = Hlog::default();
    let mut kept = Ok(());
    let measured = measure_intervals(&nodes, &plan, |row, latencies| {
        setting.screen.live(live_line(row, plan.seconds), true);
        if files.hlog.is_some() && kept.is_ok() {
            kept = hlog.add(row, latencies);
        }
    })
    .await?;
    nodes.stop().await?;
    kept?;
    let setup = Setup {
        nodes: shape.nodes,
        groups: shape.groups,
        processes: args.cluster.processes,
        populated_bytes: setting.populated,
        workload: workload.clone(),
        warmup_seconds: plan.warmup,
        seconds: plan.seconds,
        faults: args.faults.clone(),
        stages_one_in: args.stages,
        build: BUILD,
        max_lag_us: args.time.max_lag.as_secs_f64() * 1e6,
        machine: Hardware::of(&setting.preflight),
        device: device_of(setting.dir.path()),
        config,
    };
    let judgement = Judgement::of(&measured, workload, args.time.max_lag);
    let mut result = BenchResult::new(setup, &setting.preflight, &measured, judgement);
    result.noise = noise;
    setting.screen.clear();
    setting.screen.line("");
    setting.screen.line(&table::table(&result));
    // Before anything can fail: whoever looks at the files is to know.
    for reason in &result.void {
        setting.screen.line(&format!("VOID: {reason}"));
    }
    files.write(&setting.screen, &result, &hlog, measured.started)?;
    Ok(if result.valid {
        Ending::Good
    } else {
        Ending::Bad
    })
}

/// One second of load in a line.
fn live_line(row: &Row, seconds: u64) -> String {
    let when = match row.part {
        Part::Warmup => "warm-up".to_owned(),
        Part::Window => format!("{:>3}/{seconds} s", row.second),
        Part::Drain => "ending".to_owned(),
    };
    let time = |micros: Option<f64>| match micros {
        Some(micros) => screen::time(Duration::from_secs_f64(micros / 1e6)),
        None => "-".to_owned(),
    };
    format!(
        "{when:<8} {:>9} op/s  p50 {:>7}  p99 {:>7}  max {:>7}  {:>5} entries/barrier",
        screen::count(row.operations_per_second as u64),
        time(row.p50_us),
        time(row.p99_us),
        time(row.max_us),
        screen::three_digits(row.entries_per_barrier)
    )
}

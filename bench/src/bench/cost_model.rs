//! `polyraft bench cost-model`: what a commit costs, as a sum of what comes once for each commit, each entry block, each
//! barrier and each byte. Loads that differ in these are measured in turn; the weights are fitted to what they took.

use super::args::{ClusterArgs, MemoryArgs};
use super::device::device_of;
use super::measure::{Plan, measure};
use super::nodes::{Nodes, Shape};
use super::output::Json;
use super::result::{Engine, Hardware, Measurables, Summary};
use super::{Ending, Setting, until_interrupted};
use crate::load::default_threads;
use crate::screen;
use crate::workload::{Keys, Pace, ReadMode, Sizes, Workload};
use anyhow::{Context, Result, ensure};
use clap::Args;
use polyraft::Config;
use serde::Serialize;
use std::path::PathBuf;

/// Measure what a commit costs: CPU time as a + b · entry blocks + c · barriers + d · bytes
///
/// Closed loops with one, with 64 and with all groups, with little and much in flight and with small and large payloads take
/// turns on the same nodes. Exit codes: 0 measured; 1 failed.
#[derive(Clone, Debug, Args)]
pub struct CostModelArgs {
    /// How often each load is measured
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=100), help_heading = "Measurement")]
    pub rounds: u64,

    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// How long to drive each load before it is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=3_600), help_heading = "Measurement")]
    pub warmup: u64,

    /// How long to measure it
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=86_400), help_heading = "Measurement")]
    pub seconds: u64,

    /// Write the result to FILE as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub json: Option<PathBuf>,
}

/// A closed loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Load {
    groups: u64,
    inflight: u64,
    /// Bytes of a payload.
    payload: u64,
}

/// The loads, for a cluster of so many groups.
fn loads(groups: u64) -> [Load; 8] {
    let load = |active: u64, inflight, payload| Load {
        groups: active.min(groups),
        inflight,
        payload,
    };
    [
        load(1, 8192, 16),
        load(64, 8192, 16),
        load(groups, 8192, 16),
        load(64, 64, 16),
        load(64, 1024, 16),
        load(groups, 1024, 16),
        load(groups, 1024, 128),
        load(64, 8192, 1024),
    ]
}

/// What a commit came with under one load, and what it took.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    load: Load,
    commits_per_second: f64,
    /// Entry blocks for each commit.
    blocks: f64,
    /// Barriers of one node for each commit.
    barriers: f64,
    /// CPU time of all nodes for each commit, in microseconds.
    cpu_us: f64,
}

impl Cost {
    fn of(load: Load, nodes: u64, seen: &Summary) -> Self {
        Self {
            load,
            commits_per_second: seen.commits_per_second,
            blocks: 1.0 / seen.entries_per_block,
            barriers: seen.barriers as f64 / nodes as f64 / seen.committed as f64,
            cpu_us: seen.cpu_nodes_us_per_operation,
        }
    }

    fn terms(&self) -> [f64; TERMS] {
        [1.0, self.blocks, self.barriers, self.load.payload as f64]
    }
}

const TERMS: usize = 4;

/// CPU time of all nodes for a commit, in microseconds: the weights of its terms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Model {
    /// However it comes.
    commit_us: f64,
    /// For each entry block.
    block_us: f64,
    /// For each barrier of a node, its turns and frames included; those of the other nodes go with it.
    barrier_us: f64,
    /// For each byte of the payload.
    byte_us: f64,
}

impl Model {
    /// The weights that miss the costs by the least, each in proportion to the cost. None if the costs do not tell the
    /// terms apart.
    fn fit(costs: &[Cost]) -> Option<Self> {
        // Normal equations of least squares, the right side as the last column.
        let mut rows = [[0.0; TERMS + 1]; TERMS];
        for cost in costs {
            let terms = cost.terms().map(|term| term / cost.cpu_us);
            for (row, left) in rows.iter_mut().zip(terms) {
                for (sum, right) in row.iter_mut().zip(terms) {
                    *sum += left * right;
                }
                row[TERMS] += left;
            }
        }
        let [commit_us, block_us, barrier_us, byte_us] = solve(rows)?;
        Some(Self {
            commit_us,
            block_us,
            barrier_us,
            byte_us,
        })
    }

    /// What a commit should take, in microseconds.
    fn cpu_us(&self, cost: &Cost) -> f64 {
        let weights = [self.commit_us, self.block_us, self.barrier_us, self.byte_us];
        weights.iter().zip(cost.terms()).map(|(w, t)| w * t).sum()
    }

    /// By how much it misses the costs, on average, in percent of them.
    fn error_percent(&self, costs: &[Cost]) -> f64 {
        let miss = |cost: &Cost| (self.cpu_us(cost) / cost.cpu_us - 1.0).abs();
        100.0 * costs.iter().map(miss).sum::<f64>() / costs.len() as f64
    }
}

/// Solves linear equations by elimination with the largest pivot. None if they have no single solution.
fn solve(mut rows: [[f64; TERMS + 1]; TERMS]) -> Option<[f64; TERMS]> {
    let largest: [f64; TERMS] =
        std::array::from_fn(|at| rows.iter().fold(0.0, |most, row| row[at].abs().max(most)));
    for at in 0..TERMS {
        let below = (at..TERMS).max_by(|a, b| rows[*a][at].abs().total_cmp(&rows[*b][at].abs()))?;
        rows.swap(at, below);
        let pivot = rows[at];
        // What rounding leaves of a column that depends on the others is nothing beside what it was.
        if pivot[at].abs() <= 1e-12 * largest[at] {
            return None;
        }
        for (_, row) in rows.iter_mut().enumerate().filter(|(row, _)| *row != at) {
            let factor = row[at] / pivot[at];
            for (cell, above) in row.iter_mut().zip(pivot) {
                *cell -= factor * above;
            }
        }
    }
    let found: [f64; TERMS] = std::array::from_fn(|at| rows[at][TERMS] / rows[at][at]);
    found.iter().all(|x| x.is_finite()).then_some(found)
}

/// The result as JSON.
#[derive(Clone, Debug, Serialize)]
struct Found {
    format: u32,
    kind: &'static str,
    engine: Engine,
    machine: Hardware,
    device: Option<String>,
    preflight: Measurables,
    nodes: u64,
    groups: u64,
    processes: bool,
    populated_bytes: u64,
    seconds: u64,
    warmup_seconds: u64,
    model: Model,
    error_percent: f64,
    costs: Vec<Cost>,
    config: Config,
}

pub fn run(args: &CostModelArgs) -> Result<Ending> {
    let config = args.cluster.load_config()?;
    let json = Json::open(args.json.as_deref())?;
    let mut setting = Setting::under_load(&args.cluster, args.memory)?;
    until_interrupted(fit(args, json, &mut setting, config), Ending::Interrupted)
}

async fn fit(
    args: &CostModelArgs,
    json: Json,
    setting: &mut Setting,
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
    let mut costs = Vec::new();
    for round in 1..=args.rounds {
        for load in loads(shape.groups) {
            let text = format!("round {round} of {}: {}", args.rounds, describe(load));
            setting.screen.live(text, false);
            let seen = take(&nodes, load, args).await?;
            costs.push(Cost::of(load, shape.nodes, &seen));
        }
    }
    nodes.stop().await?;
    setting.screen.clear();
    let model = Model::fit(&costs).context(
        "the loads hardly differ, so nothing can be told apart; give more --groups or --seconds",
    )?;
    tell(setting, &costs, &model);
    let found = Found {
        format: 1,
        kind: "cost-model",
        engine: Engine::here(),
        machine: Hardware::of(&setting.preflight),
        device: device_of(setting.dir.path()),
        preflight: Measurables::of(&setting.preflight),
        nodes: shape.nodes,
        groups: shape.groups,
        processes: shape.processes,
        populated_bytes: shape.populate,
        seconds: args.seconds,
        warmup_seconds: args.warmup,
        model,
        error_percent: model.error_percent(&costs),
        costs,
        config,
    };
    json.write(&setting.screen, &found)?;
    Ok(Ending::Good)
}

async fn take(nodes: &Nodes, load: Load, args: &CostModelArgs) -> Result<Summary> {
    let pace = Pace::Inflight(load.inflight);
    let workload = Workload {
        pace,
        payload: Sizes::Fixed(load.payload),
        keys: Keys::Uniform,
        active_groups: load.groups,
        reads: 0.0,
        read_mode: ReadMode::Stale,
        threads: default_threads(pace, load.groups),
        seed: 1,
    };
    let plan = Plan {
        workload,
        warmup: args.warmup,
        seconds: args.seconds,
        faults: Vec::new(),
    };
    let measured = measure(nodes, &plan, |_| {}).await?;
    ensure!(
        measured.committed > 0,
        "nothing was committed in {} s with {}; look at the disk, or give more --seconds",
        args.seconds,
        describe(load)
    );
    Ok(Summary::of(&measured))
}

fn describe(load: Load) -> String {
    format!(
        "{} active groups, {} in flight, {} B",
        screen::count(load.groups),
        screen::count(load.inflight),
        screen::count(load.payload)
    )
}

fn tell(setting: &Setting, costs: &[Cost], model: &Model) {
    let out = &setting.screen;
    out.line("active groups  in flight  payload  commits/s  commits/block  commits/barrier  CPU/commit  by the model");
    for cost in costs {
        out.line(&format!(
            "{:>13}  {:>9}  {:>5} B  {:>9}  {:>13}  {:>15}  {:>7} µs  {:>9} µs",
            screen::count(cost.load.groups),
            screen::count(cost.load.inflight),
            screen::count(cost.load.payload),
            screen::count(cost.commits_per_second as u64),
            screen::three_digits(1.0 / cost.blocks),
            screen::three_digits(1.0 / cost.barriers),
            screen::three_digits(cost.cpu_us),
            screen::three_digits(model.cpu_us(cost)),
        ));
    }
    out.line(&format!(
        "\nCPU of all nodes for a commit = {:.2} µs + {:.2} µs · blocks + {:.0} µs · barriers of a node + {:.1} ns · bytes; \
         {:.0} % off on average",
        model.commit_us,
        model.block_us,
        model.barrier_us,
        model.byte_us * 1e3,
        model.error_percent(costs)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(of: &Model) -> Vec<Cost> {
        let shares = [(0.001, 0.0005), (0.05, 0.001), (0.4, 0.0007), (0.85, 0.06)];
        let loads = loads(1024).into_iter().zip(shares.into_iter().cycle());
        loads
            .map(|(load, (blocks, barriers))| {
                let mut cost = Cost {
                    load,
                    commits_per_second: 0.0,
                    blocks,
                    barriers,
                    cpu_us: 0.0,
                };
                cost.cpu_us = of.cpu_us(&cost);
                cost
            })
            .collect()
    }

    const MODEL: Model = Model {
        commit_us: 0.4,
        block_us: 3.5,
        barrier_us: 340.0,
        byte_us: 0.012,
    };

    fn is_near(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-6
    }

    #[test]
    fn weights_are_found_again() {
        let costs = costs(&MODEL);
        let found = Model::fit(&costs).unwrap();
        assert!(
            is_near(found.commit_us, MODEL.commit_us)
                && is_near(found.block_us, MODEL.block_us)
                && is_near(found.barrier_us, MODEL.barrier_us)
                && is_near(found.byte_us, MODEL.byte_us),
            "{found:?}"
        );
        assert!(found.error_percent(&costs) < 1e-6);
    }

    #[test]
    fn an_error_is_in_proportion_to_the_cost() {
        let mut costs = costs(&MODEL);
        for cost in &mut costs {
            cost.cpu_us *= 2.0;
        }
        assert!(is_near(MODEL.error_percent(&costs), 50.0));
    }

    #[test]
    fn loads_that_are_all_alike_tell_nothing_apart() {
        let one = costs(&MODEL)[0];
        assert_eq!(Model::fit(&[one; 8]), None);
        assert_eq!(Model::fit(&[]), None);
        let mut free = costs(&MODEL);
        free[0].cpu_us = 0.0;
        assert_eq!(Model::fit(&free), None);
    }

    #[test]
    fn no_load_has_more_groups_than_there_are() {
        assert!(loads(10).iter().all(|load| load.groups <= 10));
    }
}

//! `polyraft bench idle`: what groups cost while nobody uses them, beside a few groups on the same nodes in the same run.

use super::super::args::ClusterArgs;
use super::{Bound, Ending, LED_LIMIT, create, link, until_led};
use crate::cluster::Cluster;
use crate::idle::{self, Idle};
use crate::screen::{self, Screen};
use crate::tally::Tally;
use crate::{failover, process};
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Measure what groups cost while nothing happens: CPU, messages, memory
///
/// Nodes in this process get a few groups, then all of them, and are measured each time; with --dead-node once more after one
/// node was stopped. Bounds: CPU of all nodes below 2 % of one core; as many messages in a second as with few groups, none of
/// them about a group; no elections; 1 KiB of anonymous memory a replica beyond nodes without groups.
///
/// Memory is measured without transparent huge pages: they are two megabytes large, and freed memory comes back only when all
/// of one is free. Exit codes: 0 all bounds hold; 1 failed; 3 a bound is broken.
#[derive(Clone, Debug, Args)]
pub struct IdleArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// How long to measure, each time
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,

    /// How long to wait before each measurement, for what a burst needs and an idle node gives back
    #[arg(long, value_name = "SECONDS", default_value_t = 40, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub settle: u64,

    /// Stop a node at the end, and measure the others for twice as long
    #[arg(long)]
    pub dead_node: bool,

    /// Write the result to FILE as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub json: Option<PathBuf>,
}

/// With so many groups there is next to no cost per group.
const FEW: u64 = 100;
/// Percent of one core.
const MOST_CPU: f64 = 2.0;
const MOST_BYTES: f64 = 1024.0;
/// Messages in a second, times those with few groups. Beats are a little apart.
const MOST_MESSAGES: f64 = 1.05;

#[derive(Clone, Debug, Serialize)]
struct Outcome {
    nodes: u64,
    groups: u64,
    few_groups: u64,
    with_few: Idle,
    with_all: Idle,
    one_dead: Option<Idle>,
}

/// Runs the command.
pub fn run(args: &IdleArgs) -> Result<Ending> {
    // Nothing runs yet that could have got one.
    rustix::thread::disable_transparent_huge_pages(true)?;
    super::run(&args.cluster, args.json.as_deref(), |_, screen, cluster| {
        tell(args, screen, cluster)
    })
}

async fn tell(
    args: &IdleArgs,
    screen: Screen,
    cluster: Cluster<Tally>,
) -> Result<(Outcome, Vec<Bound>)> {
    let (nodes, groups, few) = (
        args.cluster.nodes,
        args.cluster.groups,
        FEW.min(args.cluster.groups),
    );
    link(&cluster).await?;
    settle(args, &cluster, &screen).await;
    let empty = process::resident().anonymous();
    screen.done("empty nodes", &screen::bytes(empty));

    create(&cluster, few, &screen).await?;
    settle(args, &cluster, &screen).await;
    let with_few = idle::measure(&cluster, few, args.seconds, empty, &screen).await?;
    screen.done("few groups", &with_few.told(few, nodes));

    create(&cluster, groups, &screen).await?;
    settle(args, &cluster, &screen).await;
    let with_all = idle::measure(&cluster, groups, args.seconds, empty, &screen).await?;
    screen.done("all groups", &with_all.told(groups, nodes));
    let mut bounds = bounds(&with_few, &with_all);

    let mut one_dead = None;
    if args.dead_node {
        let id = failover::busiest(&cluster)?;
        cluster.stop(id).await?;
        until_led(&cluster, groups, LED_LIMIT).await?;
        settle(args, &cluster, &screen).await;
        let idle = idle::measure(&cluster, groups, 2 * args.seconds, empty, &screen).await?;
        screen.done("one node dead", &idle.told(groups, nodes - 1));
        bounds.extend(self::bounds(&with_few, &idle));
        one_dead = Some(idle);
    }
    let outcome = Outcome {
        nodes,
        groups,
        few_groups: few,
        with_few,
        with_all,
        one_dead,
    };
    Ok((outcome, bounds))
}

async fn settle(args: &IdleArgs, cluster: &Cluster<Tally>, screen: &Screen) {
    idle::until_quiet(&cluster.running(), screen).await;
    screen.live("letting the nodes settle ...".into(), false);
    tokio::time::sleep(Duration::from_secs(args.settle)).await;
    // The requests that this thread made are not the nodes'.
    process::give_back();
}

fn bounds(few: &Idle, all: &Idle) -> Vec<Bound> {
    let messages = all.messages_per_second() / few.messages_per_second();
    vec![
        Bound::at_most("CPU in percent of a core:", all.cpu_percent, MOST_CPU),
        Bound::at_most(
            "messages/s, times those of few groups:",
            messages,
            MOST_MESSAGES,
        ),
        Bound::at_most("messages about a group:", all.group_messages as f64, 0.0),
        Bound::at_most("elections:", all.elections as f64, 0.0),
        Bound::at_most("bytes a replica:", all.bytes_per_replica as f64, MOST_BYTES),
    ]
}

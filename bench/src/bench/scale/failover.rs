//! `polyraft bench failover`: how soon all groups of a node that died are led again.

use super::super::args::ClusterArgs;
use super::{Bound, Ending, create, link};
use crate::cluster::Cluster;
use crate::failover;
use crate::screen::{self, Screen};
use crate::tally::Tally;
use anyhow::Result;
use clap::Args;
use polyraft::Config;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Stop the node that leads the most groups, and measure how long each of them has no leader
///
/// The node stops without a word to the others, who have to notice its silence. Bound: all groups are led again within three
/// times `election.timeout_max` and one second. Exit codes: 0 the bound holds; 1 failed; 3 it is broken.
#[derive(Clone, Debug, Args)]
pub struct FailoverArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// How often to do it. The node starts again in between
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub rounds: u64,

    /// Write the result to FILE as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub json: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize)]
struct Round {
    node: u64,
    groups_led: usize,
    leaderless_p50_ms: f64,
    leaderless_p99_ms: f64,
    leaderless_max_ms: f64,
}

/// Runs the command.
pub fn run(args: &FailoverArgs) -> Result<Ending> {
    super::run(
        &args.cluster,
        args.json.as_deref(),
        |config, screen, cluster| tell(args, config, screen, cluster),
    )
}

async fn tell(
    args: &FailoverArgs,
    config: Config,
    screen: Screen,
    cluster: Cluster<Tally>,
) -> Result<(Vec<Round>, Vec<Bound>)> {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let most = 3 * config.election.timeout_max + Duration::from_secs(1);
    let (mut rounds, mut bounds) = (Vec::new(), Vec::new());
    link(&cluster).await?;
    create(&cluster, args.cluster.groups, &screen).await?;
    for number in 1..=args.rounds {
        let id = failover::busiest(&cluster)?;
        screen.live(format!("stopping node {id} ..."), false);
        let failover = failover::stop_and_measure(&cluster, id).await?;
        let round = Round {
            node: id,
            groups_led: failover.leaderless.len(),
            leaderless_p50_ms: millis(failover.quantile(0.5)),
            leaderless_p99_ms: millis(failover.quantile(0.99)),
            leaderless_max_ms: millis(failover.max()),
        };
        screen.done(
            &format!("round {number}"),
            &format!(
                "node {id} led {} groups; without a leader for p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms",
                screen::count(round.groups_led as u64),
                round.leaderless_p50_ms,
                round.leaderless_p99_ms,
                round.leaderless_max_ms
            ),
        );
        bounds.push(Bound::at_most(
            "the longest time without a leader in ms:",
            round.leaderless_max_ms,
            millis(most),
        ));
        rounds.push(round);
        if number < args.rounds {
            screen.live(format!("starting node {id} again ..."), false);
            cluster.start(id).await?;
            cluster.until_linked(super::LINKED_LIMIT).await?;
            cluster.until_led(super::LED_LIMIT).await?;
        }
    }
    Ok((rounds, bounds))
}

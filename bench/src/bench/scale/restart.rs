//! `polyraft bench restart`: how soon a node with many groups and a long log serves again.

use super::super::args::ClusterArgs;
use super::{Bound, Ending, create, link, node, until_led};
use crate::cluster::Cluster;
use crate::screen::{self, Screen};
use crate::tally::Tally;
use anyhow::{Result, bail};
use bytes::Bytes;
use clap::Args;
use polyraft::config::ByteSize;
use polyraft::{Completion, CompletionQueue, Error, Node, NodeId, Read};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Fill the log, start a node again, and measure how long it takes until it serves
///
/// It serves when it knows the leader of every group and has answered linearizable reads of groups all over the range: its log
/// is recovered then, its state machines have taken all of it, and it hears the others. Bound: 5 s. Exit codes: 0 the bound
/// holds; 1 failed; 3 it is broken.
#[derive(Clone, Debug, Args)]
pub struct RestartArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// How long the log of a node is to be
    #[arg(long, value_name = "BYTES", default_value = "2GiB")]
    pub log: ByteSize,

    /// Size of the proposals that fill it
    #[arg(long, value_name = "BYTES", default_value_t = 4096, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=262_144))]
    pub payload: usize,

    /// Write the result to FILE as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub json: Option<PathBuf>,
}

/// Seconds.
const MOST: f64 = 5.0;
/// Proposals under way while the log is filled.
const INFLIGHT: usize = 512;
/// Groups that are read at the node that was started.
const ASKED: u64 = 1_000;
/// An answer comes much sooner, or nothing works.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Serialize)]
struct Outcome {
    groups: u64,
    log_bytes: u64,
    /// Until the call that opens the node returns.
    open_seconds: f64,
    /// Until it knows the leader of every group.
    led_seconds: f64,
    /// Until it has answered the reads.
    serving_seconds: f64,
}

/// Runs the command.
pub fn run(args: &RestartArgs) -> Result<Ending> {
    super::run(&args.cluster, args.json.as_deref(), |_, screen, cluster| {
        tell(args, screen, cluster)
    })
}

async fn tell(
    args: &RestartArgs,
    screen: Screen,
    cluster: Cluster<Tally>,
) -> Result<(Outcome, Vec<Bound>)> {
    let groups = args.cluster.groups;
    link(&cluster).await?;
    create(&cluster, groups, &screen).await?;
    screen.live("filling the log ...".into(), false);
    let (nodes, bytes) = (cluster.running(), args.log.as_u64());
    let payload = Bytes::from(vec![7; args.payload]);
    // The load waits with a blocking queue, so it has a thread of its own.
    let filled = tokio::task::spawn_blocking(move || fill(&nodes, groups, bytes, &payload));
    let log_bytes = filled.await??;
    screen.done("log", &format!("{} on each node", screen::bytes(log_bytes)));

    let id = args.cluster.nodes;
    screen.live(format!("stopping node {id} ..."), false);
    cluster.stop(id).await?;
    until_led(&cluster, groups, ANSWER_LIMIT).await?;
    screen.live(format!("starting node {id} again ..."), false);
    let started = Instant::now();
    cluster.start(id).await?;
    let open = started.elapsed();
    until_led(&cluster, groups, ANSWER_LIMIT).await?;
    let led = started.elapsed();
    let late = node(&cluster, id)?;
    let asked = tokio::task::spawn_blocking(move || read_some(&late, groups));
    asked.await??;
    let serving = started.elapsed();
    screen.done(
        "restart",
        &format!(
            "node {id} opened in {}, knew all leaders after {}, served after {}",
            screen::time(open),
            screen::time(led),
            screen::time(serving)
        ),
    );
    let outcome = Outcome {
        groups,
        log_bytes,
        open_seconds: open.as_secs_f64(),
        led_seconds: led.as_secs_f64(),
        serving_seconds: serving.as_secs_f64(),
    };
    let bound = Bound::at_most("seconds until it serves:", outcome.serving_seconds, MOST);
    Ok((outcome, vec![bound]))
}

/// Proposes to the leaders of all groups in turn until every node has written so much log. Returns what the least has.
fn fill(nodes: &[Node<Tally>], groups: u64, bytes: u64, payload: &Bytes) -> Result<u64> {
    let written = || {
        let statuses = nodes.iter().map(Node::status);
        statuses
            .map(|status| status.wal.bytes_written)
            .min()
            .unwrap_or(0)
    };
    let handle = |group: u64| {
        let asked = nodes[0].group(group);
        let leader = asked.leader().map(|(leader, _)| leader);
        let leader = nodes
            .iter()
            .find(|node| Some(NodeId(node.id().0)) == leader);
        leader.map_or(asked, |node| node.group(group))
    };
    let queue = CompletionQueue::new();
    let mut done: Vec<Completion> = Vec::new();
    let (mut next, mut open, mut is_over) = (0, 0, false);
    while !is_over || open > 0 {
        while !is_over && open < INFLIGHT {
            match handle(next % groups).propose_with(payload.clone(), 0, &queue) {
                Ok(()) => open += 1,
                Err(error) if error.is_retryable() => break,
                Err(error) => return Err(error.into()),
            }
            next += 1;
            if next % 256 == 0 {
                is_over = written() >= bytes;
            }
        }
        drain(&queue, &mut done)?;
        open -= done.len();
        done.clear();
    }
    Ok(written())
}

/// Reads groups all over the range, through this node, until each was answered.
fn read_some(node: &Node<Tally>, groups: u64) -> Result<()> {
    let step = (groups / ASKED).max(1);
    let queue = CompletionQueue::new();
    let mut done: Vec<Completion> = Vec::new();
    let ask = |group: u64| -> Result<(), Error> {
        let handle = node.group(group);
        handle.read_with(Read::Linearizable, Bytes::new(), group, &queue)
    };
    let mut left = 0;
    for group in (0..groups).step_by(step as usize) {
        ask(group)?;
        left += 1;
    }
    let deadline = Instant::now() + ANSWER_LIMIT;
    while left > 0 {
        drain(&queue, &mut done)?;
        for completion in done.drain(..) {
            match completion.result {
                Ok(_) => left -= 1,
                Err(error) if error.is_retryable() && Instant::now() < deadline => {
                    ask(completion.tag)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn drain(queue: &CompletionQueue, into: &mut Vec<Completion>) -> Result<()> {
    if queue.drain(into, ANSWER_LIMIT) == 0 {
        bail!("no answer within {} s", ANSWER_LIMIT.as_secs());
    }
    Ok(())
}

//! `polyraft bench idle`, `bench failover` and `bench restart`: what many groups cost while nothing happens, and how soon all of
//! them are served again when a node dies or starts. Each measures one thing, compares it with the project's bound, and says so
//! by its exit code. It never measures throughput.

pub mod failover;
pub mod idle;
pub mod restart;

use super::args::ClusterArgs;
use super::{Ending, Json, Setting, until_interrupted};
use crate::cluster::{Cluster, Site};
use crate::screen::{self, Screen};
use crate::tally::Tally;
use anyhow::{Context, Result, bail, ensure};
use polyraft::{Config, Node};
use serde::Serialize;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the nodes may take to hear one another.
const LINKED_LIMIT: Duration = Duration::from_secs(30);
/// How long groups may take to be created or led where that is not what is measured.
const LED_LIMIT: Duration = Duration::from_secs(180);

/// One figure, and what it must not exceed.
#[derive(Clone, Debug, Serialize)]
struct Bound {
    what: &'static str,
    seen: f64,
    most: f64,
    holds: bool,
}

impl Bound {
    fn at_most(what: &'static str, seen: f64, most: f64) -> Self {
        Bound {
            what,
            seen,
            most,
            holds: seen <= most,
        }
    }
}

/// Says which bounds hold. Bad: one does not.
fn judge(screen: &Screen, bounds: &[Bound]) -> Ending {
    for Bound {
        what,
        seen,
        most,
        holds,
    } in bounds
    {
        let verdict = if *holds { "holds" } else { "IS BROKEN" };
        let (seen, most) = (screen::three_digits(*seen), screen::three_digits(*most));
        screen.line(&format!("bound {verdict}: {what} {seen}, at most {most}"));
    }
    match bounds.iter().all(|bound| bound.holds) {
        true => Ending::Good,
        false => Ending::Bad,
    }
}

/// The result as JSON.
#[derive(Serialize)]
struct Written<'a, O> {
    outcome: &'a O,
    bounds: &'a [Bound],
}

/// Runs a story on nodes in this process, stops them, and writes what it found.
fn run<F, O>(
    args: &ClusterArgs,
    json: Option<&Path>,
    story: impl FnOnce(Config, Screen, Cluster<Tally>) -> F,
) -> Result<Ending>
where
    F: Future<Output = Result<(O, Vec<Bound>)>>,
    O: Serialize,
{
    ensure!(
        args.nodes >= 3 && !args.processes,
        "this is measured on three nodes or more in this process"
    );
    let config = args.load_config()?;
    let json = Json::open(json)?;
    let setting = Setting::new(args)?;
    until_interrupted(
        async {
            let base = setting.dir.fresh("scale")?;
            let site = Site::below(&base, "bench-scale", args.nodes, args.groups);
            let cluster = Cluster::new(site, config.clone())?;
            let roster = cluster.roster().clone();
            let told = story(config, Screen::new(), cluster).await;
            let (_, nodes) = roster.nodes();
            for node in nodes.into_iter().flatten() {
                node.shutdown().await?;
            }
            let (outcome, bounds) = told?;
            setting.screen.clear();
            let ending = judge(&setting.screen, &bounds);
            let (outcome, bounds) = (&outcome, &bounds[..]);
            json.write(&setting.screen, &Written { outcome, bounds })?;
            Ok(ending)
        },
        Ending::Interrupted,
    )
}

/// Starts all nodes and waits until they hear one another.
async fn link(cluster: &Cluster<Tally>) -> Result<()> {
    cluster.start_linked(LINKED_LIMIT).await
}

/// Creates groups `0..groups` and waits until all of them are led.
async fn create(cluster: &Cluster<Tally>, groups: u64, screen: &Screen) -> Result<()> {
    let count = screen::count(groups);
    screen.live(format!("creating {count} groups ..."), false);
    let started = Instant::now();
    let node = node(cluster, 1)?;
    while let Err(error) = node.create_groups(0..groups, &cluster.members()).await {
        let may_retry = error.is_retryable() && started.elapsed() < LED_LIMIT;
        ensure!(may_retry, "the groups cannot be created: {error}");
    }
    until_led(cluster, groups, LED_LIMIT).await?;
    let took = screen::time(started.elapsed());
    screen.done("groups", &format!("{count} created and led in {took}"));
    Ok(())
}

/// Waits until every running node knows a leader of each of the first groups.
async fn until_led(cluster: &Cluster<Tally>, groups: u64, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    for node in cluster.running() {
        let mut waiting: Vec<_> = (0..groups).map(|group| node.group(group)).collect();
        loop {
            waiting.retain(|handle| handle.leader().is_none());
            if waiting.is_empty() {
                break;
            }
            cluster.check_health()?;
            if Instant::now() > deadline {
                let (left, id) = (waiting.len(), node.id());
                bail!(
                    "{left} groups have no leader after {} s, as {id} sees it",
                    limit.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}

fn node(cluster: &Cluster<Tally>, id: u64) -> Result<Node<Tally>> {
    let found = cluster.running().into_iter().find(|node| node.id().0 == id);
    found.with_context(|| format!("node {id} does not run"))
}

//! `polyraft bench rolling-restart`: every node is drained, stopped and started again under load, one after the other. It says how long groups
//! were without a leader and how soon leaders were spread again, and looks for every acknowledged write at every replica. It must never
//! call a restart over before the node has its share of leaders again, or the bound on that is broken.

use super::{ClusterArgs, Ending, Json, Setting, until_interrupted};
use crate::cluster::{Cluster, Roster, Site};
use crate::demo::{Figures, Ledger, Load, LoadOptions, Verification, verify};
use crate::screen;
use anyhow::{Context, Result, ensure};
use clap::Args;
use polyraft::{Config, GroupHandle};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Restart all nodes one after the other under load, and check that nothing is lost and leaders are spread again.
///
/// A node is drained, stopped, started, and gets its share of leaders back before the next one has its turn. At the end every
/// acknowledged write is looked for at every replica.
///
/// Exit codes: 0 within the bounds; 1 failed; 3 a bound is not held, or a promise is broken.
#[derive(Clone, Debug, Args)]
pub struct RollingArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Proposals under way, all groups together
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub inflight: u64,

    /// Size of a proposal in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u64).range(32..=65_536))]
    pub payload: u64,

    /// How long leaders may take to be spread again once a node is back
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub within: u64,

    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// How much more than its share of leaders a node may have, in hundredths.
const MOST_SHARE: u64 = 120;
/// How soon leaders go back where the configuration leaves them where they are.
const REBALANCE_DELAY: Duration = Duration::from_secs(1);
/// How long a drain may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long anything may take that has no bound.
const LIMIT: Duration = Duration::from_secs(300);
/// How long load goes on before the first and after the last restart.
const AROUND: Duration = Duration::from_secs(2);
/// How often leaders are looked at: the resolution of what is said about them.
const POLL: Duration = Duration::from_millis(5);

/// The restart of one node.
#[derive(Clone, Debug, Serialize)]
struct Restart {
    node: u64,
    drain_ms: u64,
    /// Groups that it still led when it was stopped.
    left_by_drain: u64,
    stop_ms: u64,
    start_ms: u64,
    /// From when the node was back until no node had more than the bound; none if that took too long.
    balanced_ms: Option<u64>,
    /// Leaders by node at the end of it.
    led: Vec<u64>,
    /// Commits from the drain until leaders were spread again.
    committed: u64,
    /// The longest time in which a group had no leader meanwhile.
    longest_leaderless_ms: u64,
}

/// The outcome.
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    nodes: u64,
    groups: u64,
    inflight: u64,
    rebalance_delay_ms: u64,
    restarts: Vec<Restart>,
    /// Gaps between two leaders of a group, all groups and restarts together.
    gaps: u64,
    gap_p50_ms: u64,
    gap_p99_ms: u64,
    longest_leaderless_ms: u64,
    committed: u64,
    open: u64,
    commit_p50_us: u64,
    commit_p99_us: u64,
    commit_max_us: u64,
    verification: Verification,
    is_within_bounds: bool,
}

/// Runs the command.
pub fn run(args: &RollingArgs) -> Result<Ending> {
    let mut config = args.cluster.load_config()?;
    ensure!(
        args.cluster.nodes >= 3 && !args.cluster.processes,
        "bench rolling-restart runs three nodes or more in this process"
    );
    if config.election.rebalance_delay.is_zero() {
        config.election.rebalance_delay = REBALANCE_DELAY;
    }
    let json = Json::open(args.json.as_deref())?;
    let mut setting = Setting::new(&args.cluster)?;
    until_interrupted(
        measure(args, &mut setting, config, json),
        Ending::Interrupted,
    )
}

async fn measure(
    args: &RollingArgs,
    setting: &mut Setting,
    config: Config,
    json: Json,
) -> Result<Ending> {
    let base = setting.dir.fresh("rolling-restart")?;
    let (nodes, groups) = (args.cluster.nodes, args.cluster.groups);
    let site = Site::below(&base, "bench-rolling", nodes, groups);
    let cluster = Cluster::new(site, config.clone())?;
    let told = tell(args, setting, &config, &cluster).await;
    let stopped = cluster.stop_all().await;
    let outcome = told?;
    stopped?;
    json.write(&setting.screen, &outcome)?;
    Ok(match outcome.is_within_bounds {
        true => Ending::Good,
        false => Ending::Bad,
    })
}

async fn tell(
    args: &RollingArgs,
    setting: &mut Setting,
    config: &Config,
    cluster: &Cluster<Ledger>,
) -> Result<Outcome> {
    let screen = &setting.screen;
    screen.live("starting nodes and creating groups ...".into(), false);
    cluster.start_linked(LIMIT).await?;
    let first = cluster.running().into_iter().next();
    first
        .context("a node runs")?
        .create_groups(0..cluster.groups(), &cluster.members())
        .await?;
    cluster.until_led(LIMIT).await?;
    let found = until_balanced(cluster, LIMIT).await?;
    ensure!(
        found.is_some(),
        "leaders were not spread before the first restart: {:?}",
        led(cluster)
    );
    screen.done(
        "cluster",
        &format!(
            "{} nodes, {} groups, leaders by node {:?}",
            args.cluster.nodes,
            screen::count(cluster.groups()),
            led(cluster)
        ),
    );
    let options = LoadOptions {
        groups: 0..cluster.groups(),
        payload_bytes: usize::try_from(args.payload)?,
        inflight: usize::try_from(args.inflight)?,
        drain_limit: cluster.proposal_timeout() + Duration::from_secs(10),
        acked: None,
    };
    let mut load = Load::start(&options, cluster.roster())?;
    let (mut figures, mut part) = (Figures::new(), Figures::new());
    let watch = Watch::start(cluster)?;
    tokio::time::sleep(AROUND).await;
    let mut restarts = Vec::new();
    for id in cluster.members() {
        screen.live(format!("restarting node {id} ..."), false);
        load.take_figures(&mut part)?;
        figures.add(&part);
        let mut restart = restart(args, cluster, &watch, id).await?;
        load.take_figures(&mut part)?;
        figures.add(&part);
        restart.committed = part.committed();
        let balanced = match restart.balanced_ms {
            Some(took) => format!("leaders spread {:.1} s later", took as f64 / 1e3),
            None => format!("leaders NOT spread within {} s", args.within),
        };
        screen.done(
            &format!("node {id}"),
            &format!(
                "drained in {} ms ({} left), stopped in {} ms, back in {} ms, {balanced}: {:?}; longest without a leader {} ms; {} commits",
                restart.drain_ms,
                restart.left_by_drain,
                restart.stop_ms,
                restart.start_ms,
                restart.led,
                restart.longest_leaderless_ms,
                screen::count(restart.committed)
            ),
        );
        restarts.push(restart);
    }
    tokio::time::sleep(AROUND).await;
    screen.live("letting proposals in flight end ...".into(), false);
    load.rest().await?;
    load.take_figures(&mut part)?;
    figures.add(&part);
    let promises = load.end().await?;
    let gaps = watch.stop()?;
    screen.live(
        "comparing all replicas with what was promised ...".into(),
        false,
    );
    cluster.until_applied(LIMIT).await?;
    let verification = verify(&cluster.running(), cluster.groups(), &promises).await?;
    let longest = gaps.last().copied().unwrap_or_default();
    let outcome = Outcome {
        nodes: args.cluster.nodes,
        groups: cluster.groups(),
        inflight: args.inflight,
        rebalance_delay_ms: millis(config.election.rebalance_delay),
        is_within_bounds: verification.holds()
            && restarts
                .iter()
                .all(|one| one.balanced_ms.is_some() && one.committed > 0),
        restarts,
        gaps: gaps.len() as u64,
        gap_p50_ms: millis(quantile(&gaps, 0.5)),
        gap_p99_ms: millis(quantile(&gaps, 0.99)),
        longest_leaderless_ms: millis(longest),
        committed: figures.committed(),
        open: promises.open(),
        commit_p50_us: figures.latency_us.value_at_quantile(0.5),
        commit_p99_us: figures.latency_us.value_at_quantile(0.99),
        commit_max_us: figures.latency_us.max(),
        verification,
    };
    report(screen, &outcome);
    Ok(outcome)
}

fn report(screen: &screen::Screen, outcome: &Outcome) {
    screen.line(&format!(
        "{} commits, p50 {}, p99 {}, slowest {}; {} with an open outcome",
        screen::count(outcome.committed),
        screen::micros(outcome.commit_p50_us),
        screen::micros(outcome.commit_p99_us),
        screen::micros(outcome.commit_max_us),
        screen::count(outcome.open)
    ));
    screen.line(&format!(
        "{} times a group was without a leader: p50 {} ms, p99 {} ms, longest {} ms",
        screen::count(outcome.gaps),
        outcome.gap_p50_ms,
        outcome.gap_p99_ms,
        outcome.longest_leaderless_ms
    ));
    let found = &outcome.verification;
    screen.line(&format!(
        "{} acknowledged writes at {} replicas: {} missing, {} twice, {} unexpected, {} groups differ",
        screen::count(found.acknowledged),
        screen::count(found.replicas),
        found.missing,
        found.duplicated,
        found.unexpected,
        found.differing_groups
    ));
    for example in &found.examples {
        screen.line(&format!("  {example}"));
    }
    if !outcome.is_within_bounds {
        screen.line("NOT within the bounds");
    }
}

async fn restart(
    args: &RollingArgs,
    cluster: &Cluster<Ledger>,
    watch: &Watch,
    id: u64,
) -> Result<Restart> {
    let node = cluster.running().into_iter().find(|node| node.id().0 == id);
    let node = node.with_context(|| format!("node {id} runs"))?;
    watch.begin();
    let begun = Instant::now();
    let left_by_drain = node.drain(DRAIN_LIMIT).await?;
    let drain_ms = millis(begun.elapsed());
    drop(node);
    let begun = Instant::now();
    cluster.stop(id).await?;
    let stop_ms = millis(begun.elapsed());
    let begun = Instant::now();
    cluster.start(id).await?;
    cluster.until_linked(LIMIT).await?;
    let start_ms = millis(begun.elapsed());
    let balanced = until_balanced(cluster, Duration::from_secs(args.within)).await?;
    Ok(Restart {
        node: id,
        drain_ms,
        left_by_drain,
        stop_ms,
        start_ms,
        balanced_ms: balanced.map(millis),
        led: led(cluster),
        committed: 0,
        longest_leaderless_ms: millis(watch.longest()),
    })
}

/// How many groups each node leads, by its own word.
fn led(cluster: &Cluster<Ledger>) -> Vec<u64> {
    let nodes = cluster.running();
    nodes.iter().map(|node| node.status().led).collect()
}

/// Waits until all groups are led and every node has its share. None if it takes longer than that.
async fn until_balanced(cluster: &Cluster<Ledger>, limit: Duration) -> Result<Option<Duration>> {
    let begun = Instant::now();
    let nodes = cluster.members().len();
    while begun.elapsed() < limit {
        cluster.check_health()?;
        if is_balanced(&led(cluster), nodes, cluster.groups()) {
            return Ok(Some(begun.elapsed()));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(None)
}

/// Whether each of `groups` has one leader, and every node leads about its share: no more than is allowed, rounded up, and no less
/// than the same below it, rounded down.
fn is_balanced(led: &[u64], nodes: usize, groups: u64) -> bool {
    let most = (groups * MOST_SHARE).div_ceil(100 * nodes as u64);
    let least = groups * (200 - MOST_SHARE) / (100 * nodes as u64);
    led.len() == nodes
        && led.iter().sum::<u64>() == groups
        && led.iter().all(|one| (least..=most).contains(one))
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// The value that `share` of the sorted values do not exceed.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    let at = rank.saturating_sub(1).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// Looks at who leads, on a thread of its own.
struct Watch {
    is_over: Arc<AtomicBool>,
    seen: Arc<std::sync::Mutex<Seen>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Seen {
    /// Gaps that are over; once the watch has ended, all.
    gaps: Vec<Duration>,
    /// The longest one since somebody began to ask, whether it is over or not.
    longest: Duration,
}

impl Watch {
    fn start(cluster: &Cluster<Ledger>) -> Result<Watch> {
        let (is_over, seen) = (Arc::default(), Arc::default());
        let (over, into) = (Arc::clone(&is_over), Arc::clone(&seen));
        let (roster, groups) = (Arc::clone(cluster.roster()), cluster.groups());
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || watch(&roster, groups, &over, &into))?;
        Ok(Watch {
            is_over,
            seen,
            thread: Some(thread),
        })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no thread panics with it")
    }

    fn begin(&self) {
        self.seen().longest = Duration::ZERO;
    }

    fn longest(&self) -> Duration {
        self.seen().longest
    }

    /// All gaps, sorted.
    fn stop(mut self) -> Result<Vec<Duration>> {
        self.is_over.store(true, Ordering::Relaxed);
        let joined = self.thread.take().map(std::thread::JoinHandle::join);
        let is_sound = joined.is_none_or(|joined| joined.is_ok());
        ensure!(is_sound, "the watch panicked");
        let mut gaps = self.seen().gaps.clone();
        gaps.sort_unstable();
        Ok(gaps)
    }
}

/// A group has a leader while a running node says of itself that it leads.
fn watch(
    roster: &Roster<Ledger>,
    groups: u64,
    is_over: &AtomicBool,
    seen: &std::sync::Mutex<Seen>,
) {
    let mut epoch = 0;
    let mut handles: Vec<Option<Vec<GroupHandle<Ledger>>>> = Vec::new();
    let mut last = vec![0; groups as usize];
    let mut since: Vec<Option<Instant>> = vec![None; groups as usize];
    while !is_over.load(Ordering::Relaxed) {
        if epoch != roster.epoch() {
            let nodes;
            (epoch, nodes) = roster.nodes();
            let of = |node: &Option<polyraft::Node<Ledger>>| {
                let node = node.as_ref()?;
                Some((0..groups).map(|group| node.group(group)).collect())
            };
            handles = nodes.iter().map(of).collect();
        }
        let leads = |node: usize, group: usize| {
            let handles = handles.get(node).and_then(Option::as_ref);
            let leader = handles.and_then(|handles| handles[group].leader());
            leader.is_some_and(|(leader, _)| leader.0 == node as u64 + 1)
        };
        let now = Instant::now();
        let (mut ended, mut longest) = (Vec::new(), Duration::ZERO);
        for group in 0..groups as usize {
            let leader = match leads(last[group], group) {
                true => Some(last[group]),
                false => (0..handles.len()).find(|node| leads(*node, group)),
            };
            match (leader, since[group]) {
                (Some(node), gap) => {
                    last[group] = node;
                    since[group] = None;
                    ended.extend(gap.map(|begun| now - begun));
                }
                (None, None) => since[group] = Some(now),
                (None, Some(begun)) => longest = longest.max(now - begun),
            }
        }
        let mut seen = seen.lock().expect("no thread panics with it");
        let longest = ended.iter().copied().max().unwrap_or_default().max(longest);
        seen.longest = seen.longest.max(longest);
        seen.gaps.append(&mut ended);
        drop(seen);
        std::thread::sleep(POLL);
    }
    // Gaps that nobody has ended are as long as they were.
    let open = since.into_iter().flatten().map(|begun| begun.elapsed());
    let mut seen = seen.lock().expect("no thread panics with it");
    seen.gaps.extend(open);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_may_be_a_fifth_too_large_and_no_group_may_be_without_a_leader() {
        assert!(is_balanced(&[400, 334, 266], 3, 1000));
        assert!(!is_balanced(&[401, 333, 266], 3, 1000));
        assert!(!is_balanced(&[400, 335, 265], 3, 1000));
        assert!(!is_balanced(&[400, 333, 266], 3, 1000));
        assert!(!is_balanced(&[4, 4, 4, 0], 4, 12));
        assert!(!is_balanced(&[400, 400], 3, 800));
    }

    #[test]
    fn quantiles_are_taken_by_rank() {
        let gaps = [1, 2, 3, 40].map(Duration::from_millis);
        assert_eq!(quantile(&gaps, 0.5), Duration::from_millis(2));
        assert_eq!(quantile(&gaps, 0.99), Duration::from_millis(40));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }
}

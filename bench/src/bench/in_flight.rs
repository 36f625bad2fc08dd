//! `polyraft bench snapshot`: what a large snapshot on its way to one node costs the other groups: their commits and the
//! beats between the nodes, with the snapshot and without it, in one run. It must never count what was measured while nothing was
//! on its way.

use super::{ClusterArgs, Ending, Json, Setting, until_interrupted};
use crate::cluster::{Cluster, Site};
use crate::screen;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use polyraft::config::ByteSize;
use polyraft::{
    Config, Entry, Error, FrozenState, GroupId, Histogram, Index, MachineError, Node, Read,
    Replies, StateMachine,
};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Measure other groups while the snapshot of one is on its way to a node that was away.
///
/// Three nodes run in this process. One is stopped, the first group grows a large state, and when the node is back it gets that state
/// as a snapshot, while a closed loop commits in all other groups.
///
/// Exit codes: 0 within the bounds; 1 failed; 3 a bound is not held, or the transfer was too short to tell.
#[derive(Clone, Debug, Args)]
pub struct SnapshotArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Bytes of the snapshot
    #[arg(long, value_name = "BYTES", default_value = "1GiB")]
    pub bytes: ByteSize,

    /// Proposals under way in the other groups, all together
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub inflight: u64,

    /// Measure without a snapshot for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The group whose state is large.
const LARGE: u64 = 0;
/// The node that is away.
const AWAY: u64 = 3;
/// Bytes of a proposal of the load.
const PROPOSAL_BYTES: usize = 128;
/// Bytes that a state writes at once.
const PIECE_BYTES: usize = 1 << 20;
/// What happens within that time after the node is back is its start, not the snapshot.
const START: Duration = Duration::from_millis(500);
/// Fewer commits say nothing about the slowest hundredth.
const FEWEST_COMMITS: usize = 1_000;
/// How long anything may take that is not measured.
const LIMIT: Duration = Duration::from_secs(300);

/// A state of so many bytes. Proposals set the number, and those of the load do nothing.
struct Bulk(u64);

impl StateMachine for Bulk {
    fn open(_group: GroupId, _dir: &Path) -> Result<(Self, Index), MachineError> {
        Ok((Bulk(0), Index::ZERO))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        for entry in entries {
            if let Ok(bytes) = entry.payload.try_into() {
                self.0 = u64::from_le_bytes(bytes);
            }
            replies.push([]);
        }
        Ok(())
    }

    fn query(&self, _query: &[u8]) -> Result<Bytes, MachineError> {
        Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        let bytes = self.0;
        Ok(Box::new(move |out| {
            let piece: Vec<u8> = (0..PIECE_BYTES)
                .map(|at| (at * 31 + at / 253) as u8)
                .collect();
            let mut left = bytes;
            while left > 0 {
                let now = left.min(PIECE_BYTES as u64);
                out.write_all(&piece[..now as usize])?;
                left -= now;
            }
            Ok(())
        }))
    }

    fn restore(&mut self, _last: Index, from: &mut dyn io::Read) -> Result<(), MachineError> {
        self.0 = io::copy(from, &mut io::sink())?;
        Ok(())
    }
}

/// What was seen in one part of the run.
#[derive(Clone, Debug, Serialize)]
struct Part {
    seconds: f64,
    commits: usize,
    commits_per_second: f64,
    commit_p50_us: u64,
    commit_p99_us: u64,
    beats: u64,
    /// By how much more than their interval apart beats came: an upper bound, a power of two.
    beat_late_p99_us: u64,
}

/// The outcome, and what it was measured with.
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    snapshot_bytes: u64,
    rate_bytes_per_second: u64,
    groups: u64,
    inflight: u64,
    with_snapshot: Part,
    without_snapshot: Part,
    commit_p99_ratio: f64,
    /// A quarter of the shortest election timeout, which the beats' delay has to stay below.
    beat_late_bound_us: u64,
    is_within_bounds: bool,
}

/// Runs the command.
pub fn run(args: &SnapshotArgs) -> Result<Ending> {
    let mut config = args.cluster.load_config()?;
    ensure!(
        args.cluster.nodes == 3 && !args.cluster.processes,
        "bench snapshot runs three nodes in this process"
    );
    ensure!(args.cluster.groups > 1, "--groups must be 2 at least");
    // The log behind the snapshot must be gone, or the node would be caught up without it.
    config.snapshot.keep_entries = 0;
    (config.snapshot.entries, config.snapshot.bytes) = (0, ByteSize::b(0));
    let json = Json::open(args.json.as_deref())?;
    let mut setting = Setting::new(&args.cluster)?;
    until_interrupted(
        measure(args, &mut setting, config, json),
        Ending::Interrupted,
    )
}

async fn measure(
    args: &SnapshotArgs,
    setting: &mut Setting,
    config: Config,
    json: Json,
) -> Result<Ending> {
    let base = setting.dir.fresh("snapshot")?;
    let site = Site::below(&base, "bench-snapshot", 3, args.cluster.groups);
    let cluster: Cluster<Bulk> = Cluster::new(site, config.clone())?;
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
    args: &SnapshotArgs,
    setting: &mut Setting,
    config: &Config,
    cluster: &Cluster<Bulk>,
) -> Result<Outcome> {
    let screen = &setting.screen;
    let groups = args.cluster.groups;
    cluster.start_linked(LIMIT).await?;
    let first = node(cluster, 1)?;
    first.create_groups(0..groups, &[1, 2, 3]).await?;
    cluster.until_led(LIMIT).await?;
    screen.live(
        "growing a state and taking snapshots of it ...".into(),
        false,
    );
    cluster.stop(AWAY).await?;
    cluster.until_led(LIMIT).await?;
    let bytes = args.bytes.as_u64();
    propose(&first, LARGE, Bytes::copy_from_slice(&bytes.to_le_bytes())).await?;
    for id in [1, 2] {
        let group = node(cluster, id)?.group(LARGE);
        wait(async || Ok(group.status().await?.applied == group.status().await?.last.index))
            .await?;
        group.snapshot().await?;
    }
    screen.done(
        "snapshot",
        &format!("{}, taken on two nodes", screen::bytes(bytes)),
    );

    cluster.start(AWAY).await?;
    let late = node(cluster, AWAY)?;
    let load = Load::start(cluster, groups, args.inflight)?;
    tokio::time::sleep(START).await;
    let begun = Sample::take(cluster, &load);
    // With the state, not with its last byte: reading it is a part of what a snapshot costs.
    let is_there = async || {
        let state = late.group(LARGE).read(Read::LOCAL, Bytes::new()).await;
        state.is_ok_and(|state| state[..] == bytes.to_le_bytes())
    };
    screen.live("measuring with the snapshot on its way ...".into(), false);
    ensure!(
        !is_there().await,
        "the snapshot was there before anything could be measured; raise --bytes or lower snapshot.rate"
    );
    wait(async || Ok(is_there().await)).await?;
    let with_snapshot = begun.until(cluster, &load);
    screen.live("measuring without a snapshot ...".into(), false);
    tokio::time::sleep(START).await;
    let begun = Sample::take(cluster, &load);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let without_snapshot = begun.until(cluster, &load);
    load.stop().await?;

    let bound = config.election.timeout_min.as_micros() as u64 / 4;
    let ratio = with_snapshot.commit_p99_us as f64 / without_snapshot.commit_p99_us.max(1) as f64;
    let fewest = with_snapshot.commits.min(without_snapshot.commits);
    let outcome = Outcome {
        snapshot_bytes: bytes,
        rate_bytes_per_second: config.snapshot.rate.as_u64(),
        groups,
        inflight: args.inflight,
        commit_p99_ratio: ratio,
        beat_late_bound_us: bound,
        is_within_bounds: ratio < 3.0
            && with_snapshot.beat_late_p99_us < bound
            && fewest >= FEWEST_COMMITS,
        with_snapshot,
        without_snapshot,
    };
    for (name, part) in [
        ("with", &outcome.with_snapshot),
        ("without", &outcome.without_snapshot),
    ] {
        screen.done(
            name,
            &format!(
                "{:.1} s, {} commits/s, p50 {}, p99 {}; beats late by {} at most, but for one of a hundred of {}",
                part.seconds,
                screen::count(part.commits_per_second as u64),
                screen::micros(part.commit_p50_us),
                screen::micros(part.commit_p99_us),
                screen::micros(part.beat_late_p99_us),
                screen::count(part.beats)
            ),
        );
    }
    screen.line(&format!(
        "commit p99 with the snapshot is {ratio:.2} times that without (bound: 3); beats may be late by {} (bound: {})",
        screen::micros(outcome.with_snapshot.beat_late_p99_us),
        screen::micros(bound)
    ));
    if fewest < FEWEST_COMMITS {
        screen.line("VOID: too few commits while the snapshot was on its way; raise --bytes");
    }
    Ok(outcome)
}

fn node(cluster: &Cluster<Bulk>, id: u64) -> Result<Node<Bulk>> {
    let found = cluster.running().into_iter().find(|node| node.id().0 == id);
    found.with_context(|| format!("node {id} does not run"))
}

/// Proposes until it is committed. It may be applied twice: what the payload does once, it must do twice.
async fn propose(node: &Node<Bulk>, group: u64, payload: Bytes) -> Result<()> {
    let group = node.group(group);
    wait(async || match group.propose(payload.clone()).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_retryable() || matches!(error, Error::Unknown { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    })
    .await
}

async fn wait(mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !is_so().await? {
        if Instant::now() > deadline {
            bail!("it took longer than {} s", LIMIT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// A closed loop over all groups but the large one, on a thread of its own.
struct Load {
    is_over: Arc<AtomicBool>,
    /// How long commits took, in microseconds, in the order in which they ended.
    took: Arc<Mutex<Vec<u64>>>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Load {
    fn start(cluster: &Cluster<Bulk>, groups: u64, inflight: u64) -> Result<Load> {
        let is_over = Arc::new(AtomicBool::new(false));
        let took: Arc<Mutex<Vec<u64>>> = Arc::default();
        // From the nodes that did not restart.
        let nodes = [node(cluster, 1)?, node(cluster, 2)?];
        let (over, all) = (Arc::clone(&is_over), Arc::clone(&took));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut loops = tokio::task::JoinSet::new();
                for number in 0..inflight {
                    let (over, all) = (Arc::clone(&over), Arc::clone(&all));
                    let nodes = nodes.clone();
                    loops.spawn(async move {
                        let mut group = 1 + number % (groups - 1);
                        while !over.load(Ordering::Relaxed) {
                            let node = &nodes[(group % 2) as usize];
                            let handle = node.group(group);
                            let attempt = || {
                                let payload = Bytes::from_static(&[7; PROPOSAL_BYTES]);
                                let proposal = handle.propose(payload);
                                async move { proposal.await.is_ok() }
                            };
                            if let Some(took) = insist(attempt, &over).await {
                                all.lock().expect("no thread panics with it").push(took);
                            }
                            group = 1 + (group - 1 + inflight) % (groups - 1);
                        }
                    });
                }
                while loops.join_next().await.is_some() {}
                Ok(())
            })
        });
        Ok(Load {
            is_over,
            took,
            thread,
        })
    }

    fn commits(&self) -> usize {
        self.took.lock().expect("no thread panics with it").len()
    }

    async fn stop(self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        let joined = tokio::task::spawn_blocking(move || self.thread.join());
        joined
            .await?
            .map_err(|_| anyhow::anyhow!("the load panicked"))?
    }
}

/// How long it takes until a proposal is committed, in microseconds, with all attempts that fail: a group without a leader is a late
/// commit, and not one fewer.
async fn insist<A>(mut attempt: impl FnMut() -> A, is_over: &AtomicBool) -> Option<u64>
where
    A: Future<Output = bool>,
{
    let begun = Instant::now();
    while !attempt().await {
        if is_over.load(Ordering::Relaxed) {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Some(begun.elapsed().as_micros() as u64)
}

/// Where counters stood when a part of the run began.
struct Sample {
    at: Instant,
    commits: usize,
    beats: Histogram,
}

impl Sample {
    fn take(cluster: &Cluster<Bulk>, load: &Load) -> Sample {
        let mut beats = Histogram::default();
        for node in cluster.running() {
            beats.merge(&node.status().histograms.beat_late_us);
        }
        Sample {
            at: Instant::now(),
            commits: load.commits(),
            beats,
        }
    }

    fn until(&self, cluster: &Cluster<Bulk>, load: &Load) -> Part {
        let now = Sample::take(cluster, load);
        let took = load.took.lock().expect("no thread panics with it");
        let mut took = took[self.commits..now.commits].to_vec();
        took.sort_unstable();
        let seconds = now.at.duration_since(self.at).as_secs_f64();
        let at = |share: f64| {
            let place = (took.len() as f64 * share) as usize;
            took.get(place.min(took.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0)
        };
        Part {
            seconds,
            commits: took.len(),
            commits_per_second: took.len() as f64 / seconds,
            commit_p50_us: at(0.5),
            commit_p99_us: at(0.99),
            beats: now.beats.count() - self.beats.count(),
            beat_late_p99_us: p99(&self.beats, &now.beats),
        }
    }
}

/// An upper bound of all values between two samples but for one of a hundred.
fn p99(before: &Histogram, after: &Histogram) -> u64 {
    let count = after.count() - before.count();
    let wanted = count - count / 100;
    let grown = after.cumulative().zip(before.cumulative());
    let mut bounds = grown.map(|((bound, after), (_, before))| (bound, after - before));
    let found = bounds.find(|(_, below)| *below >= wanted);
    found.map_or(u64::MAX, |(bound, _)| bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_proposal_that_fails_at_first_is_a_late_commit() {
        let (is_over, mut attempts) = (AtomicBool::new(false), 0);
        let third = || {
            attempts += 1;
            let is_third = attempts == 3;
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                is_third
            }
        };
        let took = insist(third, &is_over).await;
        assert!(took.is_some_and(|took| took >= 30_000), "{took:?}");
        assert_eq!(attempts, 3);
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(insist(async || false, &is_over).await, None);
    }
}

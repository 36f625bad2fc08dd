//! raft-rs 0.7 on raft-engine 0.4: three stores as threads, messages over in-process channels, no network, no TLS.
//!
//! Its settings are TiKV's, or better for this load:
//! - the protobuf codec, which is TiKV's, and with it entries that share the bytes of the proposal;
//! - `skip_bcast_commit`, as in TiKV: followers hear of a commit with the next append or heartbeat, which saves four of
//!   eight messages per commit;
//! - ticks, heartbeats and election timeout as in TiKV (1 s, 2 s, 10 s), so that idle ticks cost nothing;
//! - `max_size_per_msg` and `max_inflight_msgs` as in TiKV, uncommitted bytes without a bound;
//! - a Ready's commit index alone is not written to the log; only terms and votes are;
//! - entries are applied by the store's own thread, since applying one costs less than handing it over;
//! - one sync in a turn instead of an I/O thread of its own: three stores keep two cores busy, and a sync of one gives
//!   its core to the others;
//! - logs are compacted all the time, as TiKV compacts them, so that raft-engine's lists of entries stay short; a leader
//!   gives up what all replicas have and tells them;
//! - in raft-engine no compression, which small entries only pay for, and no collection of files, since one lasts a round;
//! - one log file that is filled with zeros ahead and never full, because raft-engine fills only those that it uses
//!   again, and a sync of a file that has all its blocks takes about half as long. A log that outgrows it fails the round.

mod files;
mod log;
mod store;

use crate::digest::Digest;
use crate::load::{Cluster, NODES, Outcome};
use crate::mailbox::Mailbox;
use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use files::CountingFiles;
use raft_engine::internals::FilePipeLog;
use raft_engine::{Engine, ReadableSize};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::{Event, Proposal, Store};

/// raft-engine on files whose syncs are counted.
type RaftLog = Engine<CountingFiles, FilePipeLog<CountingFiles>>;

/// How long the groups may take to elect the leaders that they are told to.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How much of each node's log is filled ahead per second of load: more than twice what the row with the largest payload
/// writes on two cores.
const FILL_BYTES_PER_SECOND: usize = 96 << 20;

/// TiKV's bound on a message, `raft-max-size-per-msg`.
const MAX_MESSAGE_BYTES: u64 = 1 << 20;

/// The three stores and their client's side.
pub struct RaftRs {
    inboxes: Vec<Mailbox<Event>>,
    /// Proposals that wait for [`Cluster::flush`], by store.
    proposals: Vec<Vec<Proposal>>,
    outcomes: Mailbox<Outcome>,
    arrived: Vec<Outcome>,
    syncs: Vec<Arc<AtomicU64>>,
    led: Vec<Arc<AtomicU64>>,
    /// By store.
    files: Vec<Arc<CountingFiles>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

fn config(at: usize) -> raft::Config {
    raft::Config {
        id: store::raft_id(at),
        election_tick: 10,
        heartbeat_tick: 2,
        max_size_per_msg: MAX_MESSAGE_BYTES,
        max_inflight_msgs: 256,
        check_quorum: true,
        pre_vote: true,
        skip_bcast_commit: true,
        max_committed_size_per_ready: 16 << 20,
        ..raft::Config::default()
    }
}

/// Enough for `load`, and for a second around it.
fn fill_bytes(load: Duration) -> usize {
    (load.as_secs() as usize + 1) * FILL_BYTES_PER_SECOND
}

fn open_log(dir: &Path, files: &Arc<CountingFiles>, fill_bytes: usize) -> Result<Arc<RaftLog>> {
    std::fs::create_dir_all(dir)?;
    // No second file is begun before the first is twice as long as it may get.
    let file_bytes = ReadableSize(2 * fill_bytes as u64);
    let config = raft_engine::Config {
        dir: dir
            .to_str()
            .context("the path of the log is not text")?
            .to_owned(),
        batch_compression_threshold: ReadableSize(0),
        target_file_size: file_bytes,
        purge_threshold: file_bytes,
        ..raft_engine::Config::default()
    };
    let engine = Engine::open_with_file_system(config, Arc::clone(files))?;
    Ok(Arc::new(engine))
}

impl RaftRs {
    /// Starts the stores in `dir` for a round whose load lasts as long as `load`, and has node `g % 3` lead group `g`.
    pub fn start(dir: &Path, groups: usize, load: Duration) -> Result<Self> {
        Self::start_filled(dir, groups, fill_bytes(load))
    }

    fn start_filled(dir: &Path, groups: usize, fill_bytes: usize) -> Result<Self> {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let inboxes: Vec<Mailbox<Event>> = (0..NODES).map(|_| Mailbox::default()).collect();
        let counters = || -> Vec<Arc<AtomicU64>> { (0..NODES).map(|_| Arc::default()).collect() };
        let syncs = counters();
        let files = syncs
            .iter()
            .map(|syncs| Arc::new(CountingFiles::new(Arc::clone(syncs), fill_bytes)));
        let mut cluster = Self {
            inboxes,
            proposals: (0..NODES).map(|_| Vec::new()).collect(),
            outcomes: Mailbox::default(),
            arrived: Vec::new(),
            files: files.collect(),
            syncs,
            led: counters(),
            threads: Vec::new(),
        };
        let engines = (1..)
            .zip(&cluster.files)
            .map(|(node, files)| open_log(&dir.join(format!("node-{node}")), files, fill_bytes))
            .collect::<Result<Vec<_>>>()?;
        for (at, engine) in engines.into_iter().enumerate() {
            let nodes = (1..=groups as u64)
                .map(|region| store::replica(at, region, Arc::clone(&engine), &logger));
            let store = Store::new(
                at,
                Arc::clone(&engine),
                nodes.collect::<Result<_>>()?,
                cluster.inboxes.clone(),
                cluster.outcomes.clone(),
                Arc::clone(&cluster.led[at]),
            );
            let thread = std::thread::Builder::new().name(format!("store-{}", at + 1));
            cluster.threads.push(thread.spawn(|| store.run())?);
        }
        for group in 0..groups {
            cluster.inboxes[group % NODES].push(Event::Campaign(group as u32));
        }
        let deadline = Instant::now() + START_LIMIT;
        while cluster.leaders().iter().sum::<u64>() < groups as u64 {
            cluster.check_threads()?;
            ensure!(Instant::now() < deadline, "not every group has a leader");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(cluster)
    }

    fn check_threads(&mut self) -> Result<()> {
        if let Some(ended) = self.threads.iter().position(JoinHandle::is_finished) {
            let outcome = self.threads.swap_remove(ended).join();
            outcome.map_err(|_| anyhow!("a store panicked"))??;
        }
        Ok(())
    }

    /// Ends the stores. Fails if a log has outgrown what was filled ahead, since that slows its syncs.
    pub fn stop(self) -> Result<()> {
        for (node, files) in (1..).zip(&self.files) {
            ensure!(
                !files.is_outgrown()?,
                "node {node}'s log outgrew what was filled ahead, which slows its syncs"
            );
        }
        for inbox in &self.inboxes {
            inbox.push(Event::Stop);
        }
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a store panicked"))??;
        }
        Ok(())
    }
}

impl Cluster for RaftRs {
    fn propose(&mut self, group: usize, slot: u32, payload: Bytes) {
        self.proposals[group % NODES].push(Proposal {
            group: group as u32,
            slot,
            payload,
        });
    }

    fn flush(&mut self) {
        for (inbox, proposals) in self.inboxes.iter().zip(&mut self.proposals) {
            if !proposals.is_empty() {
                let room = Vec::with_capacity(proposals.len());
                inbox.push(Event::Proposals(std::mem::replace(proposals, room)));
            }
        }
    }

    fn outcomes(&mut self, out: &mut Vec<Outcome>, timeout: Duration) {
        self.outcomes.take(&mut self.arrived, timeout);
        out.append(&mut self.arrived);
    }

    fn digests(&mut self) -> Result<Vec<Vec<Digest>>> {
        self.check_threads()?;
        let mut digests = Vec::new();
        for inbox in &self.inboxes {
            let (reply, answer) = std::sync::mpsc::channel();
            inbox.push(Event::Digests(reply));
            digests.push(answer.recv().context("a store has ended")?);
        }
        Ok(digests)
    }

    fn syncs(&self) -> Vec<u64> {
        let syncs = self.syncs.iter();
        syncs.map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn leaders(&self) -> Vec<u64> {
        let led = self.led.iter();
        led.map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Fate;

    const FILL_BYTES: usize = 1 << 20;

    /// More than a leader keeps of what all have.
    const MANY: u32 = 600;

    /// Proposes to group 0, which node 1 leads, and waits for the answers.
    fn commit(cluster: &mut RaftRs, count: u32) {
        for slot in 0..count {
            cluster.propose(0, slot, Bytes::from_static(&[7; 16]));
        }
        cluster.flush();
        let mut outcomes = Vec::new();
        while outcomes.len() < count as usize {
            let before = outcomes.len();
            cluster.outcomes(&mut outcomes, START_LIMIT);
            assert!(outcomes.len() > before, "no answer came");
        }
        assert!(
            outcomes
                .iter()
                .all(|outcome| outcome.fate == Fate::Committed)
        );
    }

    /// Waits until all nodes have applied the same.
    fn settle(cluster: &mut RaftRs) {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let digests = cluster.digests().unwrap();
            if digests.iter().all(|of_node| of_node == &digests[0]) {
                return;
            }
            assert!(Instant::now() < deadline, "the nodes do not agree");
        }
    }

    /// What a node's log has of group 0, first and last index, after the cluster was stopped.
    fn span(dir: &Path, node: usize) -> (u64, u64) {
        let files = Arc::new(CountingFiles::new(Arc::default(), FILL_BYTES));
        let log = open_log(&dir.join(format!("node-{node}")), &files, FILL_BYTES).unwrap();
        (log.first_index(1).unwrap(), log.last_index(1).unwrap())
    }

    #[test]
    fn every_replica_gives_up_what_all_have() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = RaftRs::start_filled(dir.path(), 1, FILL_BYTES).unwrap();
        // The leader learns what all have with the second, tells it after that, and the last ones make all write it.
        for count in [MANY, 1, 1, 1, 1] {
            commit(&mut cluster, count);
            settle(&mut cluster);
        }
        cluster.stop().unwrap();
        for node in 1..=NODES {
            let (first, last) = span(dir.path(), node);
            // The leader's own entry comes before those of the client.
            assert_eq!(last, 1 + u64::from(MANY) + 4, "node {node}");
            assert!((513..=last).contains(&first), "node {node}: {first}");
        }
    }

    #[test]
    fn nobody_gives_up_what_one_replica_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = RaftRs::start_filled(dir.path(), 1, FILL_BYTES).unwrap();
        cluster.inboxes[2].push(Event::Stop);
        for count in [MANY, MANY, 1, 1, 1] {
            commit(&mut cluster, count);
        }
        cluster.stop().unwrap();
        for node in 1..=2 {
            assert_eq!(span(dir.path(), node).0, 1, "node {node}");
        }
    }
}

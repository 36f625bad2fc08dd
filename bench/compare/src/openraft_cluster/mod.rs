//! openraft 0.9: a `Raft` for each replica, all on one tokio runtime, calls instead of a network, no TLS.
//!
//! Its settings are the best that were found for this load:
//! - one log file per node with group commit over all groups, filled with zeros before the load begins, and entries in
//!   memory for reading: less work than any store on the registry does. A log that outgrows its file fails the round;
//! - a responder that answers the client's queue directly, without a task or a channel for each proposal;
//! - heartbeats every 2 s and elections after 10 s, so that thousands of groups do not spend the CPU on heartbeats;
//! - up to 8,192 entries in one append, no snapshots, no purging;
//! - two worker threads, one per core of the reference machine.
//!
//! openraft 0.9 waits for the log after every proposal of a group before it takes the next one. What that costs with few
//! groups is a property of the engine, not of this log.

mod file;
mod log;
mod machine;

use crate::digest::Digest;
use crate::load::{Cluster, Fate, NODES, Outcome};
use crate::mailbox::Mailbox;
use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use file::LogFile;
use log::GroupLog;
use machine::{Machine, SharedDigest};
use openraft::error::{
    ClientWriteError, InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::RPCOption;
use openraft::raft::responder::Responder;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, ClientWriteResult, InstallSnapshotRequest,
    InstallSnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{
    Config, EmptyNode, Raft, RaftNetwork, RaftNetworkFactory, SnapshotPolicy, TokioRuntime,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::io::Cursor;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, LazyLock, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long the groups may take to elect the leaders that they are told to.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How much of each node's log is filled per second of load: more than three times what its fastest row writes on two cores.
const FILL_BYTES_PER_SECOND: u64 = 32 << 20;

/// Threads of the runtime.
const WORKERS: usize = 2;

/// Where responders put what they hear. openraft makes them of nothing but the proposal.
static OUTCOMES: LazyLock<Mailbox<Outcome>> = LazyLock::new(Mailbox::default);

openraft::declare_raft_types!(
    /// What openraft is to work with.
    pub Types:
        D = Command,
        R = (),
        NodeId = u64,
        Node = EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = TokioRuntime,
        Responder = ToOutcomes,
);

type Entry = openraft::Entry<Types>;

/// A proposal.
#[derive(Clone, Debug)]
pub struct Command {
    slot: u32,
    payload: Bytes,
}

/// Answers the slot of a proposal.
pub struct ToOutcomes {
    slot: u32,
}

impl Responder<Types> for ToOutcomes {
    type Receiver = ();

    fn from_app_data(command: Command) -> (Command, Self, ()) {
        let slot = command.slot;
        (command, Self { slot }, ())
    }

    fn send(self, result: ClientWriteResult<Types>) {
        let fate = match result {
            Ok(_) => Fate::Committed,
            Err(
                ClientWriteError::ForwardToLeader(_) | ClientWriteError::ChangeMembershipError(_),
            ) => Fate::Open,
        };
        OUTCOMES.push(Outcome {
            slot: self.slot,
            fate,
        });
    }
}

/// Every replica, by node and group. Filled once, while the cluster starts.
type Registry = Arc<Vec<Vec<OnceLock<Raft<Types>>>>>;

/// Reaches the other replicas of one group.
struct Calls {
    group: usize,
    registry: Registry,
}

/// Reaches one of them.
struct Call {
    target: u64,
    group: usize,
    registry: Registry,
}

type CallError<E> = RPCError<u64, EmptyNode, RaftError<u64, E>>;

impl Call {
    fn raft(&self) -> Result<&Raft<Types>, Unreachable> {
        let raft = self.registry[self.target as usize][self.group].get();
        raft.ok_or_else(|| Unreachable::new(&std::io::Error::other("the replica is not there yet")))
    }

    fn failed<E: std::error::Error>(&self, error: RaftError<u64, E>) -> CallError<E> {
        RPCError::RemoteError(RemoteError::new(self.target, error))
    }
}

impl RaftNetworkFactory<Types> for Calls {
    type Network = Call;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Call {
        Call {
            target,
            group: self.group,
            registry: Arc::clone(&self.registry),
        }
    }
}

impl RaftNetwork<Types> for Call {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError<openraft::error::Infallible>> {
        let answer = self.raft()?.append_entries(request).await;
        answer.map_err(|error| self.failed(error))
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, CallError<InstallSnapshotError>> {
        let answer = self.raft()?.install_snapshot(request).await;
        answer.map_err(|error| self.failed(error))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError<openraft::error::Infallible>> {
        let answer = self.raft()?.vote(request).await;
        answer.map_err(|error| self.failed(error))
    }
}

/// The three nodes and their client's side.
pub struct OpenRaft {
    runtime: Runtime,
    registry: Registry,
    /// By node, then by group.
    digests: Vec<Vec<Arc<SharedDigest>>>,
    files: Vec<Arc<LogFile>>,
    writers: Vec<JoinHandle<Result<()>>>,
    arrived: Vec<Outcome>,
}

fn config() -> Result<Config> {
    let config = Config {
        heartbeat_interval: 2_000,
        election_timeout_min: 10_000,
        election_timeout_max: 20_000,
        max_payload_entries: 8_192,
        replication_lag_threshold: u64::MAX,
        snapshot_policy: SnapshotPolicy::Never,
        ..Config::default()
    };
    Ok(config.validate()?)
}

impl OpenRaft {
    /// Starts the nodes in `dir` for a round whose load lasts as long as `load`, and has node `g % 3` lead group `g`.
    pub fn start(dir: &Path, groups: usize, load: Duration) -> Result<Self> {
        // Enough for a second around it, too.
        let fill_bytes = (load.as_secs() + 1) * FILL_BYTES_PER_SECOND;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_time()
            .build()?;
        let config = Arc::new(config()?);
        let registry: Registry = Arc::new(
            (0..NODES)
                .map(|_| (0..groups).map(|_| OnceLock::new()).collect())
                .collect(),
        );
        let (mut files, mut writers, mut digests) = (Vec::new(), Vec::new(), Vec::new());
        for node in 0..NODES {
            let path = dir.join(format!("node-{}.log", node + 1));
            let (file, writer) = LogFile::start(&path, fill_bytes)?;
            let of_node: Vec<Arc<SharedDigest>> = (0..groups).map(|_| Arc::default()).collect();
            for (group, digest) in of_node.iter().enumerate() {
                let calls = Calls {
                    group,
                    registry: Arc::clone(&registry),
                };
                let log = GroupLog::new(group as u32, Arc::clone(&file));
                let machine = Machine::new(Arc::clone(digest));
                let raft = Raft::new(node as u64, Arc::clone(&config), calls, log, machine);
                let raft = runtime.block_on(raft)?;
                let is_new = registry[node][group].set(raft).is_ok();
                ensure!(is_new, "a replica was started twice");
            }
            digests.push(of_node);
            files.push(file);
            writers.push(writer);
        }
        let cluster = Self {
            runtime,
            registry,
            digests,
            files,
            writers,
            arrived: Vec::new(),
        };
        cluster.elect(groups)?;
        Ok(cluster)
    }

    fn raft(&self, node: usize, group: usize) -> &Raft<Types> {
        let raft = self.registry[node][group].get();
        raft.expect("every replica is started before the cluster is")
    }

    fn leads(&self, node: usize, group: usize) -> bool {
        let leader = self.raft(node, group).metrics().borrow().current_leader;
        leader == Some(node as u64)
    }

    fn elect(&self, groups: usize) -> Result<()> {
        let members: BTreeMap<u64, EmptyNode> =
            (0..NODES as u64).map(|id| (id, EmptyNode {})).collect();
        for group in 0..groups {
            let raft = self.raft(group % NODES, group);
            self.runtime.block_on(raft.initialize(members.clone()))?;
        }
        let deadline = Instant::now() + START_LIMIT;
        while !(0..groups).all(|group| self.leads(group % NODES, group)) {
            ensure!(Instant::now() < deadline, "not every group has a leader");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends all replicas, then the log writers.
    pub fn stop(self) -> Result<()> {
        for raft in self.registry.iter().flatten().filter_map(OnceLock::get) {
            self.runtime
                .block_on(raft.shutdown())
                .context("a replica panicked")?;
        }
        for file in &self.files {
            file.close();
        }
        for writer in self.writers {
            writer
                .join()
                .map_err(|_| anyhow!("a log writer panicked"))??;
        }
        Ok(())
    }
}

impl Cluster for OpenRaft {
    fn propose(&mut self, group: usize, slot: u32, payload: Bytes) {
        let raft = self.raft(group % NODES, group);
        // It only puts the proposal into a queue without bounds, so the first poll is the last.
        let sent = pin!(raft.client_write_ff(Command { slot, payload }));
        match sent.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) | Poll::Pending => OUTCOMES.push(Outcome {
                slot,
                fate: Fate::Open,
            }),
        }
    }

    fn flush(&mut self) {}

    fn outcomes(&mut self, out: &mut Vec<Outcome>, timeout: Duration) {
        OUTCOMES.take(&mut self.arrived, timeout);
        out.append(&mut self.arrived);
    }

    fn digests(&mut self) -> Result<Vec<Vec<Digest>>> {
        let digests = self.digests.iter();
        Ok(digests
            .map(|of_node| of_node.iter().map(|digest| digest.get()).collect())
            .collect())
    }

    fn syncs(&self) -> Vec<u64> {
        self.files.iter().map(|file| file.syncs()).collect()
    }

    fn leaders(&self) -> Vec<u64> {
        let groups = self.registry[0].len();
        let led = |node| (0..groups).filter(|group| self.leads(node, *group)).count() as u64;
        (0..NODES).map(led).collect()
    }
}

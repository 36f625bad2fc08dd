//! A node without its edges: recovery, queues, router, shards and appliers, put together from a configuration.
//! It must never start a thread, read a clock or open a socket: whoever asks for the parts runs them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};

use crossbeam::utils::CachePadded;
use parking_lot::Mutex;
use polyraft_raft::{GroupId, Life, NodeId, NodeSet, Settings};
use polyraft_storage::{
    DataDir, Disk, Durable, Opened, SnapshotFile, SnapshotStore, StorageError, Wal, WalObserver,
    WalOptions,
};
use polyraft_transport::{Identity, Network};

use crate::apply::{Applier, ApplyBacklog, Task};
use crate::clock::{Clock, micros};
use crate::config::{ByteSize, Config, USUAL_PRIORITY, WalMode};
use crate::directory::Directory;
use crate::error::OpenError;
use crate::event::ShardEvent;
use crate::keeper::{Job, Keeper};
use crate::liveness::Intervals;
use crate::machine::StateMachine;
use crate::mailbox::{Mailbox, mailbox};
use crate::pulse::Pulses;
use crate::router::Router;
use crate::shard::{
    HomeOptions, Limits, Shard, ShardOptions, Shared, SnapshotPolicy, TransferGauges,
    TransferLimits,
};
use crate::status::AllCounters;
use crate::trace::Tracer;
use crate::trust::Trust;

/// Where a node lives, and who it is.
pub(crate) struct Place<'a> {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) path: &'a Path,
    pub(crate) cluster: &'a str,
    pub(crate) node: NodeId,
}

/// A node whose log is recovered and whose queues exist; it can be reached, and nothing runs yet.
pub(crate) struct Assembly {
    pub(crate) shared: Arc<Shared>,
    pub(crate) data_dir: Arc<DataDir>,
    /// The way in for the transport.
    pub(crate) router: Arc<Router>,
    opened: Opened,
    store: SnapshotStore,
    snapshots: Vec<SnapshotFile>,
    inboxes: Vec<Mailbox<ShardEvent>>,
    tasks: Vec<Mailbox<Task>>,
    jobs: Vec<Mailbox<Job>>,
}

/// What remains to be run.
pub(crate) struct Parts {
    pub(crate) wals: Vec<Wal>,
    pub(crate) shards: Vec<(Shard, Mailbox<ShardEvent>)>,
    /// The queues of the apply workers.
    pub(crate) tasks: Vec<Mailbox<Task>>,
    /// The snapshot files, and the queues of those who keep them.
    pub(crate) store: SnapshotStore,
    pub(crate) jobs: Vec<Mailbox<Job>>,
}

impl Assembly {
    /// Locks the data directory and recovers the log in it.
    pub(crate) fn open(
        place: &Place<'_>,
        config: &Config,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        let lanes = config.wal.lanes as usize;
        let shards = config.shard_count();
        let disk = Arc::clone(&place.disk);
        let data_dir = DataDir::open(disk, place.path, place.cluster, place.node, lanes)?;
        let data_dir = Arc::new(data_dir);
        let opened = polyraft_storage::open(&data_dir, &wal_options(config), shards)?;
        tracing::info!(node = %place.node, report = ?opened.report, "the log is recovered");
        let (store, snapshots) = SnapshotStore::open(&data_dir, kept_by_snapshots(config))
            .map_err(StorageError::from)?;

        let (inbox_senders, inboxes): (Vec<_>, Vec<_>) = (0..shards).map(|_| mailbox()).unzip();
        let (worker_senders, tasks): (Vec<_>, Vec<_>) =
            (0..config.apply.workers).map(|_| mailbox()).unzip();
        let (keeper_senders, jobs): (Vec<_>, Vec<_>) =
            (0..config.snapshot.workers).map(|_| mailbox()).unzip();
        let shared = Arc::new(Shared {
            node: place.node,
            opening: data_dir.opening(),
            incarnation: data_dir.incarnation(),
            clock,
            inboxes: inbox_senders.into(),
            gauges: (0..shards).map(|_| CachePadded::default()).collect(),
            workers: worker_senders.into(),
            keepers: keeper_senders.into(),
            backlog: Arc::new(ApplyBacklog::default()),
            transfers: TransferGauges::default(),
            directory: Directory::default(),
            counters: AllCounters::new(shards),
            tracer: Arc::new(Tracer::new(config.trace.one_in)),
            pulses: Pulses::default(),
            alive_peers: Mutex::new(NodeSet::new(place.node)),
            idle_shards: AtomicUsize::new(0),
            on_idle: OnceLock::new(),
            fault: Mutex::new(None),
            is_closed: AtomicBool::new(false),
        });
        let router = Arc::new(Router::new(
            Arc::clone(&shared),
            Arc::clone(&data_dir),
            bytes(config.shards.inbox_bytes),
            micros(config.liveness.beat_interval),
        ));
        Ok(Assembly {
            shared,
            data_dir,
            router,
            opened,
            store,
            snapshots,
            inboxes,
            tasks,
            jobs,
        })
    }

    /// Whether a life of a group is over here, so that nothing of it may be left.
    pub(crate) fn is_over(&self, group: GroupId, life: Life) -> bool {
        self.opened.logs[self.shared.shard_of(group)].is_over(group, life)
    }

    /// What the node says of itself to its peers.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            cluster: self.data_dir.cluster().to_owned(),
            node: self.shared.node,
            store: self.data_dir.store().0,
            incarnation: self.shared.incarnation,
            past: self.data_dir.past().to_vec(),
        }
    }

    /// Who passes the news of the log on to the shards.
    pub(crate) fn observer(&self) -> Arc<dyn WalObserver> {
        Arc::new(Observer {
            shared: Arc::clone(&self.shared),
            lanes: self.opened.wals.len(),
        })
    }

    /// Makes the parts that run, now that there is a network.
    pub(crate) fn into_parts(
        self,
        config: &Config,
        network: &Arc<dyn Network>,
        peers: &[NodeId],
    ) -> Parts {
        let lanes = self.opened.wals.len();
        let options = ShardOptions {
            settings: settings(config),
            limits: limits(config),
            network: Arc::clone(network),
            peers: peers.to_vec(),
            trust: Arc::new(Trust::new(peers, self.inboxes.len())),
        };
        let home = HomeOptions {
            incarnation: self.shared.incarnation,
            intervals: Intervals {
                beat: micros(config.liveness.beat_interval),
                silence: micros(config.election.timeout_min),
                drift_ppm: u64::from(config.liveness.clock_drift_ppm),
                priority: priority(config),
            },
        };
        let wals = self.opened.wals;
        let mut snapshots: Vec<Vec<SnapshotFile>> = vec![Vec::new(); self.inboxes.len()];
        for file in self.snapshots {
            snapshots[self.shared.shard_of(file.meta.group)].push(file);
        }
        let logs = self.opened.logs.into_iter().zip(self.inboxes);
        let shards = logs.enumerate().map(|(index, (log, inbox))| {
            let wal = wals[index % lanes].clone();
            let home = (index == 0).then(|| home.clone());
            let found = (log, std::mem::take(&mut snapshots[index]));
            let shard = Shard::new(index, Arc::clone(&self.shared), &options, found, wal, home);
            (shard, inbox)
        });
        let shards = shards.collect();
        Parts {
            wals,
            shards,
            tasks: self.tasks,
            store: self.store,
            jobs: self.jobs,
        }
    }
}

/// The state machines of one apply worker of the node at `path`.
pub(crate) fn applier<M: StateMachine>(path: &Path, shared: &Shared) -> Applier<M> {
    Applier::new(
        path,
        Arc::clone(&shared.inboxes),
        Arc::clone(&shared.keepers),
        Arc::clone(&shared.backlog),
        shared.clock.clone(),
    )
}

/// Who keeps the snapshots of such state machines.
pub(crate) fn keeper<M: StateMachine>(shared: &Arc<Shared>, store: &SnapshotStore) -> Keeper<M> {
    Keeper::new(Arc::clone(shared), store.clone())
}

/// Passes the WAL's news into the inboxes of the shards that write to it.
struct Observer {
    shared: Arc<Shared>,
    lanes: usize,
}

impl Observer {
    fn tell(&self, lane: usize, event: impl Fn() -> ShardEvent) {
        for shard in (lane..self.shared.inboxes.len()).step_by(self.lanes) {
            self.shared.tell(shard, event());
        }
    }
}

impl WalObserver for Observer {
    fn durable(&self, durable: &Durable) {
        self.tell(durable.lane, || ShardEvent::Durable(*durable));
    }

    fn failed(&self, error: &StorageError) {
        self.shared
            .tell_all(|| ShardEvent::WalFailed(error.to_string()));
    }

    fn maintain(&self) {
        self.shared.tell_all(|| ShardEvent::Maintain);
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        election_timeout_min: micros(config.election.timeout_min),
        election_timeout_max: micros(config.election.timeout_max),
        retry_interval: micros(config.replication.retry_interval),
        commit_notice_interval: micros(config.replication.commit_notice_interval),
        max_append_entries: config.replication.max_append_entries,
        max_append_bytes: config.replication.max_append_bytes.as_u64(),
        inflight_messages: config.replication.inflight_messages,
        inflight_entries: u64::from(config.replication.inflight_entries),
        inflight_bytes: config.replication.inflight_bytes.as_u64(),
    }
}

fn priority(config: &Config) -> u8 {
    u8::try_from(config.election.priority).unwrap_or(USUAL_PRIORITY)
}

fn limits(config: &Config) -> Limits {
    Limits {
        turn_events: config.batch.turn_events as usize,
        turn_wait: config.batch.turn_wait,
        turn_interval: config.batch.turn_interval,
        inline_sync: config.wal.inline_sync,
        inline_apply: config.apply.inline,
        inbox_bytes: bytes(config.shards.inbox_bytes),
        proposal_bytes: bytes(config.batch.max_proposal_bytes),
        group_bytes: bytes(config.shards.group_bytes),
        wal_bytes: config.wal.max_pending_bytes.as_u64(),
        apply_bytes: bytes(config.apply.queue_bytes),
        proposal_timeout: micros(config.shards.proposal_timeout),
        // Long enough for the other members to create the group, short against their election timeouts.
        campaign_delay: micros(config.election.timeout_min) / 8,
        rebalance_delay: micros(config.election.rebalance_delay),
        priority: priority(config),
        stall_timeout: micros(config.wal.stall_timeout),
        repair: config.wal.repair,
        append_lanes: config.transport.append_lanes as usize,
        snapshots: SnapshotPolicy {
            entries: config.snapshot.entries,
            bytes: config.snapshot.bytes.as_u64(),
            keep_entries: config.snapshot.keep_entries,
            running: config.snapshot.workers as usize,
        },
        transfers: TransferLimits {
            chunk: config.snapshot.chunk_bytes.as_u64(),
            bytes_per_second: config.snapshot.rate.as_u64(),
            at_once: config.snapshot.concurrent as usize,
        },
    }
}

pub(crate) fn wal_options(config: &Config) -> WalOptions {
    let wal = &config.wal;
    WalOptions {
        mode: match wal.mode {
            WalMode::Direct => polyraft_storage::WalMode::Direct,
            WalMode::Mapped => polyraft_storage::WalMode::Mapped,
        },
        direct_io: wal.direct_io,
        segment_bytes: wal.segment_bytes.as_u64(),
        pool_segments: wal.pool_segments as usize,
        max_batch_bytes: bytes(wal.max_batch_bytes),
        max_pending_bytes: wal.max_pending_bytes.as_u64(),
        checkpoint_bytes: wal.checkpoint_bytes.as_u64(),
        tail_cache_bytes: bytes(wal.tail_cache_bytes),
        lanes: wal.lanes as usize,
        min_free_bytes: wal.min_free_bytes.as_u64(),
    }
}

/// What snapshots leave free: each lane of the log can make a segment.
fn kept_by_snapshots(config: &Config) -> u64 {
    let wal = &config.wal;
    let segments = wal
        .segment_bytes
        .as_u64()
        .saturating_mul(u64::from(wal.lanes));
    segments.saturating_add(wal.min_free_bytes.as_u64())
}

/// A configured size, which validation keeps far below the address space.
pub(crate) fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

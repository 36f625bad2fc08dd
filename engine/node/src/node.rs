//! A node: its threads and parts, put together from a configuration and taken apart again.
//! It must never serve before its log is recovered, nor leave a thread behind after `shutdown`.

mod peers;

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use polyraft_raft::{GroupId, NodeId};
use polyraft_storage::{DataDir, Disk, FileDisk, SnapshotStore, Wal, WalObserver, WalThreads};
use polyraft_transport::{Identity, Network, Options, QuicListener, Tls};

#[cfg(feature = "sim")]
pub(crate) use self::peers::{Asked, Change};
pub(crate) use self::peers::{Peers, forget_outdated};
use crate::apply::{OnIdle, Perform, Seat, Task, remove_leftovers};
use crate::assembly::{self, Assembly, Place, bytes};
use crate::clock::{Clock, micros};
use crate::completion::SlotPool;
use crate::config::Config;
use crate::directory::{NODE_IDS, is_node_id};
use crate::error::{Error, OpenError};
use crate::event::{GroupRanges, Members, ShardEvent, ranges};
use crate::group::GroupHandle;
use crate::keeper::Job;
use crate::machine::StateMachine;
use crate::mailbox::Mailbox;
use crate::metrics::{Source, server::Server};
use crate::router::Router;
use crate::shard::{Shard, Shared};
use crate::status::NodeStatus;
use crate::trace::ProposalTrace;
use crate::wire::MAX_MEMBERS;

/// Answered reply slots kept for reuse; more callers than this at once cost an allocation each.
const POOLED_SLOTS: usize = 16_384;

/// How far keepers stand behind the other threads where there are too few processors: such a thread gets a third of what another
/// one does (nice(2)). Nobody waits for most snapshots; but keepers also do what a group can't go on without: they restore state
/// machines, gather the state of a group that is merged, and write what a child begins with.
#[cfg(target_os = "linux")]
const KEEPER_NICE: i32 = 5;

/// Threads that open state machines for a worker, where there are fewer cores: most wait for the disk.
const FEWEST_OPENERS: usize = 4;

/// Groups in one request: what is found of each may be different, and all of it has to fit into a frame.
const GROUPS_AT_ONCE: u64 = 8_192;

/// One member of a cluster: the groups that it hosts share its threads, its log and its connections.
///
/// Cloning gives another handle to the same node. The node runs until [`Node::shutdown`]; dropping the last handle
/// shuts it down too, waiting for its threads.
pub struct Node<M: StateMachine> {
    inner: Arc<Inner>,
    machine: PhantomData<fn() -> M>,
}

impl<M: StateMachine> Clone for Node<M> {
    fn clone(&self) -> Self {
        Node {
            inner: Arc::clone(&self.inner),
            machine: PhantomData,
        }
    }
}

impl<M: StateMachine> std::fmt::Debug for Node<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.inner.shared.node)
            .finish_non_exhaustive()
    }
}

/// What all handles of a node share.
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) slots: Arc<SlotPool>,
    pub(crate) max_proposal_bytes: usize,
    pub(crate) inbox_bytes: usize,
    pub(crate) max_sessions: u32,
    peers: Arc<Peers>,
    wals: Vec<Wal>,
    network: Arc<dyn Network>,
    router: Arc<Router>,
    running: Mutex<Option<Running>>,
    /// Held while the peers change: one change at a time.
    changing: Mutex<()>,
}

/// What has to be stopped, in this order.
struct Running {
    metrics: Option<Server>,
    shards: Vec<JoinHandle<()>>,
    network: Arc<dyn Network>,
    wal_threads: Vec<WalThreads>,
    workers: Vec<JoinHandle<()>>,
    keepers: Vec<JoinHandle<()>>,
    router: Arc<Router>,
    data_dir: Arc<DataDir>,
}

/// Collects what a node needs, then opens it.
#[derive(Debug)]
pub struct NodeBuilder<M> {
    id: Option<u64>,
    cluster: String,
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    peers: Vec<(u64, SocketAddr)>,
    tls: Option<Tls>,
    config: Config,
    disk: Arc<dyn Disk>,
    on_idle: IdleCall,
    machine: PhantomData<fn() -> M>,
}

/// Shown as whether there is one.
#[derive(Default)]
struct IdleCall(Option<OnIdle>);

impl std::fmt::Debug for IdleCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("IdleCall").field(&self.0.is_some()).finish()
    }
}

impl<M: StateMachine> NodeBuilder<M> {
    /// This node's number in the cluster, 1 to 2^64 − 2. It must never change for a data directory.
    pub fn id(mut self, id: u64) -> Self {
        self.id = Some(id);
        self
    }

    /// The cluster's name, `polyraft` if not given. Nodes of different clusters refuse each other.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// Where the node keeps its log and its identity. Made if missing; locked while the node is open.
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// The UDP address to listen on; port 0 lets the system choose.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// All nodes of the cluster and their addresses. This node's own entry is ignored. What was changed while the node ran
    /// ([`Node::add_peer`] and its like) is remembered in the data directory, and counts as long as what is given here for that
    /// peer is what it was then.
    pub fn peers(mut self, peers: impl IntoIterator<Item = (u64, SocketAddr)>) -> Self {
        self.peers = peers.into_iter().collect();
        self
    }

    /// Where the certificates come from.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Everything that can be tuned; the defaults if not given.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The file system of the data directory; the machine's if not given. For measurements and tests that make a disk
    /// slow or faulty.
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// What threads of the node call when they have become idle: that of a shard once it has written nothing for 5 s, apply
    /// workers and the transport's thread once all shards have; the log's threads and those that keep snapshots never. For allocators that keep for each thread what other threads
    /// freed until it allocates again, as mimalloc (`mi_collect`) and jemalloc (`thread.tcache.flush`) do: an idle thread
    /// never does. It should take a few milliseconds at most, must not wait for the node, and must not panic.
    pub fn on_idle(mut self, call: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_idle = IdleCall(Some(Arc::new(call)));
        self
    }

    /// Recovers the log, opens the state machines and joins the cluster.
    ///
    /// Groups that the data directory holds come back by themselves. The call returns when this node takes part; it
    /// does not wait for the other nodes.
    ///
    /// # Errors
    /// Says what is missing or wrong and what to do. The log in the data directory is then as it was; only
    /// the count of its openings may have grown.
    pub async fn open(self) -> Result<Node<M>, OpenError> {
        blocking("polyraft-open", move || self.open_blocking())
            .await
            .map_err(|source| OpenError::System {
                what: "a thread".to_owned(),
                source,
            })?
    }

    fn open_blocking(self) -> Result<Node<M>, OpenError> {
        let missing = |what: &str| OpenError::Builder(format!("{what} is not given"));
        let id = self.id.ok_or_else(|| missing("id"))?;
        let path = self.data_dir.clone().ok_or_else(|| missing("data_dir"))?;
        let listen = self.listen.ok_or_else(|| missing("listen"))?;
        let tls = self.tls.clone().ok_or_else(|| missing("tls"))?;
        let mut ids = self.peers.iter().map(|(peer, _)| *peer).chain([id]);
        if !ids.all(|id| is_node_id(NodeId(id))) {
            return Err(OpenError::Builder(NODE_IDS.to_owned()));
        }
        self.config.validate()?;
        let config = &self.config;
        let node = NodeId(id);
        let others = self.peers.iter().filter(|(peer, _)| *peer != id);
        let given = others.map(|(peer, at)| (NodeId(*peer), *at)).collect();

        let place = Place {
            disk: Arc::clone(&self.disk),
            path: &path,
            cluster: &self.cluster,
            node,
        };
        let assembly = Assembly::open(&place, config, Clock::start())?;
        if let Some(on_idle) = &self.on_idle.0 {
            let _is_first = assembly.shared.on_idle.set(Arc::clone(on_idle));
        }
        let peers = Peers::new(given, &assembly.data_dir.address_changes());
        let peer_ids = peers.ids();
        let identity = assembly.identity();
        let options = transport_options(config, identity, listen, peers.list(), tls);
        let router = Arc::clone(&assembly.router);
        let listener = QuicListener::bind(options)?;
        // From here on peers may come to know this opening; one that failed before does not count.
        assembly.data_dir.show()?;
        forget_outdated(&assembly.data_dir, peers.given())?;
        let network: Arc<dyn Network> = Arc::new(listener.start(Arc::clone(&router) as _)?);

        let shared = Arc::clone(&assembly.shared);
        let observer = assembly.observer();
        let mut running = Running {
            metrics: None,
            shards: Vec::new(),
            network: Arc::clone(&network),
            wal_threads: Vec::new(),
            workers: Vec::new(),
            keepers: Vec::new(),
            router: Arc::clone(&router),
            data_dir: Arc::clone(&assembly.data_dir),
        };
        remove_leftovers::<M>(&path, |group, life| assembly.is_over(group, life));
        let mut parts = assembly.into_parts(config, &network, &peer_ids);
        // Before the workers start: they see at once how many state machines there are to open.
        for (shard, _) in &mut parts.shards {
            shard.open_recovered();
        }
        let seats: Vec<Arc<Seat<M>>> = (shared.workers.iter())
            .map(|queue| Seat::new(assembly::applier(&path, &shared), queue.clone()))
            .map(Arc::new)
            .collect();
        for (shard, _) in &mut parts.shards {
            let seats = seats
                .iter()
                .map(|seat| Arc::clone(seat) as Arc<dyn Perform>);
            shard.apply_inline_at(seats.collect());
        }
        let started = running
            .start_workers(&shared, seats, parts.tasks)
            .and_then(|()| running.start_keepers::<M>(&shared, &parts.store, parts.jobs))
            .and_then(|()| running.start_log(&parts.wals, &observer))
            .and_then(|()| running.start_shards(&shared, parts.shards));
        if let Err(error) = started {
            running.stop(&shared);
            return Err(error);
        }
        let slots = SlotPool::new(POOLED_SLOTS);
        let inner = Inner::new(config, shared, peers, parts.wals, network, router, slots);
        if let Err(error) = running.start_metrics(config, inner.source()) {
            running.stop(&inner.shared);
            return Err(error);
        }
        *inner.running.lock() = Some(running);
        Ok(Node {
            inner: Arc::new(inner),
            machine: PhantomData,
        })
    }
}

impl Running {
    fn start_workers<M: StateMachine>(
        &mut self,
        shared: &Arc<Shared>,
        seats: Vec<Arc<Seat<M>>>,
        queues: Vec<Mailbox<Task>>,
    ) -> Result<(), OpenError> {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let openers = cores.div_ceil(queues.len()).max(FEWEST_OPENERS);
        for (worker, (seat, tasks)) in seats.into_iter().zip(queues).enumerate() {
            let name = format!("{}-apply-{worker}", shared.node);
            let shared = Arc::clone(shared);
            let run = move || {
                stopping_the_node(&shared, "an apply worker", || seat.serve(&tasks, openers));
            };
            self.workers.push(spawn(name, run)?);
        }
        Ok(())
    }

    fn start_keepers<M: StateMachine>(
        &mut self,
        shared: &Arc<Shared>,
        store: &SnapshotStore,
        queues: Vec<Mailbox<Job>>,
    ) -> Result<(), OpenError> {
        for (number, jobs) in queues.into_iter().enumerate() {
            let keeper = assembly::keeper::<M>(shared, store);
            let name = format!("{}-keep-{number}", shared.node);
            let shared = Arc::clone(shared);
            let run = move || {
                give_way();
                stopping_the_node(&shared, "a keeper", || keeper.run(jobs));
            };
            self.keepers.push(spawn(name, run)?);
        }
        Ok(())
    }

    /// Starts the WAL's threads, which the shards rely on.
    fn start_log(
        &mut self,
        wals: &[Wal],
        observer: &Arc<dyn WalObserver>,
    ) -> Result<(), OpenError> {
        for wal in wals {
            self.wal_threads.push(wal.start(Arc::clone(observer))?);
        }
        Ok(())
    }

    fn start_shards(
        &mut self,
        shared: &Arc<Shared>,
        shards: Vec<(Shard, Mailbox<ShardEvent>)>,
    ) -> Result<(), OpenError> {
        let (ready, all_ready) = mpsc::channel();
        for (index, (shard, inbox)) in shards.into_iter().enumerate() {
            let name = format!("{}-shard-{index}", shared.node);
            let ready = ready.clone();
            let shared = Arc::clone(shared);
            let run = move || stopping_the_node(&shared, "a shard", || shard.run(inbox, ready));
            self.shards.push(spawn(name, run)?);
        }
        // Ends when every shard has dropped its sender: then all recovered groups can be asked.
        drop(ready);
        let _ = all_ready.recv();
        Ok(())
    }

    fn start_metrics(&mut self, config: &Config, source: Source) -> Result<(), OpenError> {
        if let Some(address) = config.metrics.listen {
            let server = Server::start(address, source);
            self.metrics = Some(server.map_err(|source| OpenError::System {
                what: format!("metrics.listen {address}"),
                source,
            })?);
        }
        Ok(())
    }

    /// Stops everything, so that nothing runs whose receiver is gone: shards, network, WAL, workers.
    fn stop(self, shared: &Shared) {
        drop(self.metrics);
        shared.is_closed.store(true, Ordering::Release);
        shared.tell_all(|| ShardEvent::Shutdown);
        join_all(self.shards);
        self.network.shutdown();
        self.router.close();
        drop(self.wal_threads);
        for worker in shared.workers.iter() {
            worker.send(Task::Stop);
        }
        join_all(self.workers);
        for keeper in shared.keepers.iter() {
            keeper.send(Job::Stop);
        }
        join_all(self.keepers);
        // Last of all: the lock on the data directory. Handles may keep what reads counters of the log, and nothing writes.
        self.data_dir.unlock();
    }
}

impl<M: StateMachine> Node<M> {
    #[cfg(feature = "sim")]
    pub(crate) fn from_inner(inner: Inner) -> Self {
        Node {
            inner: Arc::new(inner),
            machine: PhantomData,
        }
    }

    #[cfg(feature = "sim")]
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Starts to describe a node.
    pub fn builder() -> NodeBuilder<M> {
        NodeBuilder {
            id: None,
            cluster: "polyraft".to_owned(),
            data_dir: None,
            listen: None,
            peers: Vec::new(),
            tls: None,
            config: Config::default(),
            disk: Arc::new(FileDisk),
            on_idle: IdleCall::default(),
            machine: PhantomData,
        }
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.inner.shared.node
    }

    /// The UDP address that the node listens on.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.inner.network.local_addr()
    }

    /// Creates groups on all of their members and waits until every living member, and a majority, holds them
    /// durably. A member that is down gets a group when it hears of it first. Every living node, and a majority of all, is
    /// asked whether the ids were used before, and whether the groups live somewhere.
    ///
    /// Calling it again with the same members does nothing; that holds after a restart too. Any node may be asked,
    /// whether it is a member or not. Groups that were destroyed are created anew, as other groups with the same ids.
    ///
    /// Of two calls at the same time with a group in common, here or on different nodes, one waits for the other. With the same
    /// members both succeed. With others one fails with [`Error::GroupExists`], and has begun none of the 8,192 groups, at most, among which it
    /// met the one that it names: a node holds an id for one call at a time, and a call begins nothing before all that answer have held its
    /// ids together. Only nodes that can't be heard may have begun something of which nobody is told, this one if it is cut off just
    /// then: such a replica gathers its members once it is heard again.
    ///
    /// # Errors
    /// [`Error::BadMembers`]; [`Error::GroupExists`] with other members, whether those given are among the nodes that have it or
    /// not, before anything is begun; [`Error::CreationUnderWay`] when another call, or what one that was interrupted has left, is in the way for ten
    /// seconds and two election timeouts; [`Error::Ending`] when it is there with the members given, and was destroyed, as somebody knows;
    /// [`Error::Needed`] while a group that was to be merged into one that had the id is frozen; [`Error::CreateTimeout`] when too
    /// few nodes answer within ten seconds and two election timeouts; [`Error::Fault`] when this node has stopped serving, or
    /// another one could not begin a group; or [`Error::Closed`] after a shutdown. After the last three the groups may exist, and after
    /// [`Error::Ending`] others than the one that it names.
    pub async fn create_groups(
        &self,
        groups: impl IntoIterator<Item = u64>,
        members: &[u64],
    ) -> Result<(), Error> {
        let members = self.check_members(members)?;
        let groups: Vec<u64> = groups.into_iter().collect();
        if let Some(group) = groups.iter().find(|group| is_reserved(**group)) {
            return Err(Error::BadMembers {
                why: format!("group id {group} is reserved"),
            });
        }
        let groups = ranges(groups);
        for groups in parts_of(&groups, GROUPS_AT_ONCE) {
            let (reply, answer) = tokio::sync::oneshot::channel();
            let members = members.clone();
            let event = ShardEvent::CreateEverywhere {
                groups,
                members,
                reply,
            };
            self.inner.shared.tell(0, event);
            answer.await.unwrap_or(Err(Error::Closed))?;
        }
        Ok(())
    }

    /// Destroys groups on all nodes and waits until every living node, a majority of all nodes, and a quorum of each group's
    /// members keep durably that they are over. A node that is down ends its replica when it hears of that.
    ///
    /// Callers that wait for a destroyed group are answered with an error, and its state is removed. It can't be undone: once one
    /// node has ended its replica, the others follow sooner or later, whatever this call returns. The id may be used again with
    /// [`Node::create_groups`], for a group that has nothing of the old one. Any node may be asked, whether it is a member or
    /// not. Destroying again what is destroyed does nothing.
    ///
    /// When a member can't be reached, this takes about an election timeout longer: that node may lead the group and answer reads
    /// by its lease until then.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`] for a group that no reachable node has ever had; the others are destroyed. [`Error::Needed`] for a
    /// group that must stay until the end of a merge into it, or until what was split off it has a leader; none is destroyed then, or
    /// none of the 8,192 that it was asked for with, if there are more. [`Error::DestroyTimeout`] when too few nodes answer within
    /// ten seconds and two election timeouts, [`Error::Fault`] when this node has stopped serving, and [`Error::Closed`] after a
    /// shutdown: the groups may be over then.
    pub async fn destroy_groups(&self, groups: impl IntoIterator<Item = u64>) -> Result<(), Error> {
        let mut groups: Vec<u64> = groups.into_iter().collect();
        let reserved = groups.iter().copied().find(|group| is_reserved(*group));
        groups.retain(|group| !is_reserved(*group));
        let groups = ranges(groups);
        // Nobody can have a group with such an id.
        let unknown = reserved.map(|group| Error::NoSuchGroup {
            group: GroupId(group),
        });
        let (mut outcome, mut needed) = (unknown.map_or(Ok(()), Err), Vec::new());
        for part in parts_of(&groups, GROUPS_AT_ONCE) {
            match self.destroy_at_once(part.clone()).await {
                Err(error @ Error::NoSuchGroup { .. }) => outcome = outcome.and(Err(error)),
                Err(Error::Needed { .. }) => needed.push(part),
                result => result?,
            }
        }
        // What they are needed by may have ended with another part.
        for part in needed {
            match self.destroy_at_once(part).await {
                Err(error @ Error::NoSuchGroup { .. }) => outcome = outcome.and(Err(error)),
                result => result?,
            }
        }
        outcome
    }

    async fn destroy_at_once(&self, groups: GroupRanges) -> Result<(), Error> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let event = ShardEvent::DestroyEverywhere { groups, reply };
        self.inner.shared.tell(0, event);
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// The groups of which this node has a replica, in the order of their ids: those from `first` on, `limit` at most. To list
    /// all, go on behind the last one of each list.
    pub fn groups(&self, first: u64, limit: usize) -> Vec<GroupId> {
        self.inner.shared.directory.list(GroupId(first), limit)
    }

    fn check_members(&self, members: &[u64]) -> Result<Members, Error> {
        let mut sorted: Members = members.iter().copied().map(NodeId).collect();
        sorted.sort_unstable();
        sorted.dedup();
        let is_known = |node: &NodeId| *node == self.id() || self.inner.peers.contains(*node);
        let why = if sorted.is_empty() || sorted.len() > MAX_MEMBERS {
            format!(
                "a group has 1 to {MAX_MEMBERS} members, not {}",
                sorted.len()
            )
        } else if sorted.len() != members.len() {
            "a member is named twice".to_owned()
        } else if let Some(stranger) = sorted.iter().find(|node| !is_known(node)) {
            format!(
                "node {stranger} is not among the peers of node {}",
                self.id()
            )
        } else {
            return Ok(sorted);
        };
        Err(Error::BadMembers { why })
    }

    /// A handle to a group. It need not exist yet.
    pub fn group(&self, group: u64) -> GroupHandle<M> {
        GroupHandle::new(Arc::clone(&self.inner), GroupId(group))
    }

    /// How the node is.
    pub fn status(&self) -> NodeStatus {
        self.inner.source().status()
    }

    /// The node's metrics as text that Prometheus reads, version 0.0.4 of the format: for programs that serve them
    /// themselves. With `metrics.listen` the node does.
    pub fn metrics(&self) -> String {
        self.inner.source().render()
    }

    /// Where the node's metrics are served, if they are: `metrics.listen` with the port that the system chose if it was 0.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        let running = self.inner.running.lock();
        let server = running.as_ref()?.metrics.as_ref()?;
        Some(server.address())
    }

    /// The proposals whose way was recorded since the last call, as `trace.one_in` asks for. Some ten thousand are kept;
    /// what comes beyond is not recorded.
    pub fn take_traces(&self) -> Vec<ProposalTrace> {
        self.inner.shared.tracer.take()
    }

    /// Hands every group that this node leads to another of its voters, before a planned stop: no group then waits for an
    /// election timeout. Waits for at most `within` and returns how many groups are still led here.
    ///
    /// The node goes on serving, and may be elected again; call it right before [`Node::shutdown`].
    ///
    /// # Errors
    /// [`Error::Fault`] when the node has stopped serving, [`Error::Closed`] after a shutdown.
    pub async fn drain(&self, within: Duration) -> Result<u64, Error> {
        let shared = &self.inner.shared;
        let mut answers = Vec::new();
        for shard in 0..shared.inboxes.len() {
            let (reply, answer) = tokio::sync::oneshot::channel();
            let within = micros(within);
            shared.tell(shard, ShardEvent::Drain { within, reply });
            answers.push(answer);
        }
        let mut left = 0;
        for answer in answers {
            left += answer.await.unwrap_or(Err(Error::Closed))?;
        }
        Ok(left)
    }

    /// Stops the node: answers every caller, writes what is queued, closes connections, joins all threads and
    /// unlocks the data directory. Calling it again does nothing.
    ///
    /// Proposals under way end with [`Error::Closed`]: they may or may not have been committed.
    ///
    /// # Errors
    /// [`Error::Fault`] when the node had stopped serving before.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        let stopped = blocking("polyraft-shutdown", move || inner.stop()).await;
        if stopped.is_err() {
            self.inner.stop();
        }
        match self.inner.shared.fault.lock().clone() {
            Some(reason) => Err(Error::Fault { reason }),
            None => Ok(()),
        }
    }
}

impl Inner {
    /// What handles share of a node of which nothing runs.
    #[cfg(feature = "sim")]
    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    pub(crate) fn new(
        config: &Config,
        shared: Arc<Shared>,
        peers: Peers,
        wals: Vec<Wal>,
        network: Arc<dyn Network>,
        router: Arc<Router>,
        slots: SlotPool,
    ) -> Self {
        Inner {
            shared,
            slots: Arc::new(slots),
            max_proposal_bytes: bytes(config.batch.max_proposal_bytes),
            max_sessions: config.apply.max_sessions,
            inbox_bytes: bytes(config.shards.inbox_bytes),
            peers: Arc::new(peers),
            wals,
            network,
            router,
            running: Mutex::new(None),
            changing: Mutex::default(),
        }
    }

    /// What metrics are read from.
    pub(crate) fn source(&self) -> Source {
        Source {
            shared: Arc::clone(&self.shared),
            peers: Arc::clone(&self.peers),
            wals: self.wals.clone(),
            network: Arc::clone(&self.network),
            router: Arc::clone(&self.router),
        }
    }

    fn stop(&self) {
        // The lock is held until the end, so that every caller returns to a stopped node.
        let mut running = self.running.lock();
        if let Some(running) = running.take() {
            running.stop(&self.shared);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether no group may have this id: a range of ids must have an end, and lists of claims have a use for the last one.
fn is_reserved(group: u64) -> bool {
    group >= u64::MAX - 1
}

/// Splits ranges of ids into lists of at most so many groups each.
fn parts_of(groups: &GroupRanges, most: u64) -> Vec<GroupRanges> {
    let mut parts: Vec<GroupRanges> = Vec::new();
    let mut room = 0;
    for range in groups {
        let mut start = range.start;
        while start < range.end {
            if room == 0 {
                parts.push(GroupRanges::new());
                room = most;
            }
            let end = range.end.min(start.saturating_add(room));
            parts.last_mut().expect("one was pushed").push(start..end);
            room -= end - start;
            start = end;
        }
    }
    parts
}

/// Lets the other threads go first, whatever priority the node was started with. Standing back needs no right; if it fails all the
/// same, it only costs them time.
fn give_way() {
    // On Linux it is the priority of the calling thread; elsewhere that of the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(KEEPER_NICE) {
        tracing::debug!(%error, "a keeper keeps the priority of the others");
    }
}

/// Runs a thread of the node. If it panics outside of what one group can be blamed for, the whole node stops: peers must
/// not take it for alive while a part of its groups is dead.
fn stopping_the_node(shared: &Shared, who: &str, run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        shared.fail(&format!(
            "{who} panicked; see the log, and restart the node"
        ));
    }
}

fn transport_options(
    config: &Config,
    identity: Identity,
    listen: SocketAddr,
    peers: Vec<(NodeId, SocketAddr)>,
    tls: Tls,
) -> Options {
    let transport = &config.transport;
    Options {
        peers,
        append_lanes: transport.append_lanes,
        max_frame_bytes: bytes(transport.max_frame_bytes),
        queue_bytes: bytes(transport.queue_bytes),
        max_mtu: transport.max_mtu,
        idle_timeout: transport.idle_timeout,
        keep_alive: transport.keep_alive,
        backoff_min: transport.backoff_min,
        backoff_max: transport.backoff_max,
        receive_window: u32::try_from(transport.receive_window.as_u64()).unwrap_or(u32::MAX),
        ..Options::new(identity, listen, tls)
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    let thread = std::thread::Builder::new().name(name.clone()).spawn(run);
    thread.map_err(|source| OpenError::System {
        what: format!("thread {name}"),
        source,
    })
}

fn join_all(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of the node panicked");
        }
    }
}

/// Runs blocking work on a thread of its own, so that no particular async runtime is needed.
async fn blocking<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || done.send(run()))?;
    result
        .await
        .map_err(|_| std::io::Error::other("the thread panicked"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::{getpriority_process, nice};

    use super::*;

    #[test]
    fn a_keeper_stands_behind_the_others_whatever_priority_the_node_has() {
        let priority = || getpriority_process(None).unwrap();
        let keeper = move || {
            nice(3).unwrap();
            let before = priority();
            give_way();
            (before, priority())
        };
        let own = priority();
        let (before, after) = std::thread::spawn(keeper).join().unwrap();
        assert_eq!(before, (own + 3).min(19));
        assert_eq!(after, (before + KEEPER_NICE).min(19));
        assert_eq!(priority(), own, "it is that of the thread alone");
    }
}

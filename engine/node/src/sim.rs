//! A node whose parts somebody else runs, one at a time: for a simulator that owns the time, the network and the disk.
//! It must never run anything by itself, and must be made of the same parts as a [`Node`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use polyraft_raft::{Group, GroupId, Index, Life, Message, NodeId, Tick, shard_of};
use polyraft_storage::{DataDir, Disk, EntryKind, Lsn, ReadError, RecoveredGroup, Wal};
use polyraft_transport::{Identity, Network, Receiver};

use crate::apply::{Applier, Task};
use crate::assembly::{self, Assembly, Parts, Place};
use crate::clock::Clock;
use crate::completion::SlotPool;
use crate::config::Config;
use crate::error::{Error, OpenError};
use crate::event::ShardEvent;
use crate::keeper::{Job, Keeper};
use crate::lost_quorum::{self, Recovered, RecoveryError, RecoveryPlan};
use crate::machine::StateMachine;
use crate::mailbox::Mailbox;
use crate::node::{Asked, Change, Inner, Node, Peers, forget_outdated};
pub use crate::shard::LoggedEntry;
use crate::shard::Shard;
use crate::wire::{self, Record, Records};

/// [`plan_recovery`](crate::plan_recovery) where each directory is on the disk that `disks` names.
///
/// # Errors
/// See [`RecoveryError`].
pub fn plan_recovery_on(
    disks: &dyn Fn(&Path) -> Arc<dyn Disk>,
    survivors: &[PathBuf],
    lost: &[u64],
) -> Result<RecoveryPlan, RecoveryError> {
    lost_quorum::plan_on(disks, survivors, lost)
}

/// [`apply_recovery`](crate::apply_recovery) where each directory is on the disk that `disks` names. `config` is taken as it is.
///
/// # Errors
/// See [`RecoveryError`].
pub fn apply_recovery_on(
    disks: &dyn Fn(&Path) -> Arc<dyn Disk>,
    survivors: &[PathBuf],
    plan: &RecoveryPlan,
    config: &Config,
) -> Result<Recovered, RecoveryError> {
    lost_quorum::apply_on(disks, survivors, plan, config)
}

/// What a node is opened with.
#[derive(Debug)]
pub struct SimPlace<'a> {
    /// The disk, which decides what a crash leaves.
    pub disk: Arc<dyn Disk>,
    /// The data directory on it.
    pub path: &'a Path,
    /// The cluster's name.
    pub cluster: &'a str,
    /// This node.
    pub id: u64,
    /// The other nodes, and where they are.
    pub peers: &'a [(u64, SocketAddr)],
    /// Taken as it is: values below the ranges of [`Config::validate`] make small and quick worlds.
    pub config: &'a Config,
    /// Microseconds on this node's clock. The owner moves it, forward only.
    pub clock: Arc<AtomicU64>,
}

/// A node without threads. Dropping it is a crash: nothing is written, closed or said.
pub struct SimNode<M: StateMachine> {
    node: Node<M>,
    identity: Identity,
    receiver: Arc<dyn Receiver>,
    network: Arc<dyn Network>,
    data_dir: Arc<DataDir>,
    shards: Vec<(Shard, Mailbox<ShardEvent>)>,
    workers: Vec<(Applier<M>, Mailbox<Task>)>,
    keepers: Vec<(Keeper<M>, Mailbox<Job>)>,
    wals: Vec<Wal>,
}

impl<M: StateMachine> SimNode<M> {
    /// Recovers the log and makes the parts. The state machines of recovered groups are opened by the first turns.
    ///
    /// `connect` is given who the node is and its way in, and returns its way out.
    ///
    /// # Errors
    /// Those of [`NodeBuilder::open`](crate::NodeBuilder::open) that concern the data directory.
    pub fn open(
        place: &SimPlace<'_>,
        connect: impl FnOnce(&Identity, &Arc<dyn Receiver>) -> Arc<dyn Network>,
    ) -> Result<Self, OpenError> {
        let config = place.config;
        let found = Place {
            disk: Arc::clone(&place.disk),
            path: place.path,
            cluster: place.cluster,
            node: NodeId(place.id),
        };
        let assembly = Assembly::open(&found, config, Clock::Virtual(Arc::clone(&place.clock)))?;
        let given = place.peers.iter().map(|(peer, at)| (NodeId(*peer), *at));
        let data_dir = Arc::clone(&assembly.data_dir);
        let peers = Peers::new(given.collect(), &data_dir.address_changes());
        let (identity, router) = (assembly.identity(), Arc::clone(&assembly.router));
        let receiver: Arc<dyn Receiver> = Arc::clone(&router) as _;
        data_dir.show()?;
        forget_outdated(&data_dir, peers.given())?;
        let network = connect(&identity, &receiver);
        let (shared, observer) = (Arc::clone(&assembly.shared), assembly.observer());
        let Parts {
            wals,
            mut shards,
            tasks,
            store,
            jobs,
        } = assembly.into_parts(config, &network, &peers.ids());
        for wal in &wals {
            wal.observe(Arc::clone(&observer));
        }
        for (shard, _) in &mut shards {
            shard.note_stepped();
            shard.open_recovered();
        }
        let workers = tasks
            .into_iter()
            .map(|tasks| (assembly::applier::<M>(place.path, &shared), tasks));
        let workers = workers.collect();
        let keepers = jobs
            .into_iter()
            .map(|jobs| (assembly::keeper::<M>(&shared, &store), jobs));
        let keepers = keepers.collect();
        // Callers here do not wait for futures, so no reply slots are worth keeping.
        let slots = SlotPool::new(1);
        let inner = Inner::new(
            config,
            shared,
            peers,
            wals.clone(),
            Arc::clone(&network),
            router,
            slots,
        );
        Ok(SimNode {
            node: Node::from_inner(inner),
            identity,
            receiver,
            network,
            data_dir,
            shards,
            workers,
            keepers,
            wals,
        })
    }

    /// The handle that users of a node have.
    pub fn node(&self) -> &Node<M> {
        &self.node
    }

    /// What the node says of itself to its peers.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The node's way in, for the network.
    pub fn receiver(&self) -> &Arc<dyn Receiver> {
        &self.receiver
    }

    /// The other nodes and where they are, as this one knows.
    pub fn peers(&self) -> Vec<(NodeId, SocketAddr)> {
        self.node.inner().peers().list()
    }

    /// Begins [`Node::add_peer`] or [`Node::update_peer`], or [`Node::remove_peer`] without an address. `None`: there is nothing to do.
    ///
    /// # Errors
    /// Those of these.
    pub fn change_peer(
        &self,
        id: u64,
        address: Option<SocketAddr>,
    ) -> Result<Option<PeerChange>, Error> {
        let is_peer = self.peers().iter().any(|(peer, _)| peer.0 == id);
        let change = match address {
            Some(address) if is_peer => Change::Move(address),
            Some(address) => Change::Add(address),
            None => Change::Remove,
        };
        let asked = self.node.inner().ask(NodeId(id), change)?;
        Ok(asked.map(PeerChange))
    }

    /// Goes on with a change of a peer, after turns. True: it is done. There must be one at a time.
    ///
    /// # Errors
    /// Those of [`SimNode::change_peer`]; then it is over.
    pub fn go_on_with_peer(&self, change: &mut PeerChange) -> Result<bool, Error> {
        if !change.0.poll()? {
            return Ok(false);
        }
        let inner = self.node.inner();
        inner.carry_out(&change.0, &*self.network, &self.data_dir)?;
        Ok(true)
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Number of lanes of the log.
    pub fn lanes(&self) -> usize {
        self.wals.len()
    }

    /// Number of apply workers and of keepers of snapshots, which come behind them.
    pub fn workers(&self) -> usize {
        self.workers.len() + self.keepers.len()
    }

    /// Events that wait for a shard.
    pub fn inbox_len(&self, shard: usize) -> usize {
        self.shards[shard].1.len()
    }

    /// When a shard has to have a turn at the latest, on the node's clock.
    pub fn next_deadline(&self, shard: usize) -> Option<Tick> {
        self.shards[shard].0.next_deadline()
    }

    /// Runs one turn of a shard: what its thread does between two looks at its inbox.
    pub fn turn(&mut self, shard: usize) {
        let now = self.node.inner().shared.clock.now();
        let (shard, inbox) = &mut self.shards[shard];
        shard.begin_turn(now);
        shard.finish_turn(inbox, 0);
    }

    /// Moves the groups that a shard's turns have touched since the last call into `into`.
    pub fn take_stepped(&mut self, shard: usize, into: &mut Vec<GroupId>) {
        self.shards[shard].0.take_stepped(into);
    }

    /// One lane of the log: [`Wal::pump`] and [`Wal::tend`] are what its threads do.
    pub fn wal(&self, lane: usize) -> &Wal {
        &self.wals[lane]
    }

    /// Tasks that wait for a worker.
    pub fn tasks_len(&self, worker: usize) -> usize {
        match worker.checked_sub(self.workers.len()) {
            None => self.workers[worker].1.len(),
            Some(keeper) => self.keepers[keeper].1.len(),
        }
    }

    /// Has a worker do its next task. False: there is none.
    pub fn work(&mut self, worker: usize) -> bool {
        if let Some(keeper) = worker.checked_sub(self.workers.len()) {
            let (keeper, jobs) = &mut self.keepers[keeper];
            let job = jobs.try_take();
            let has_job = job.is_some();
            if let Some(job) = job {
                keeper.perform(job);
            }
            return has_job;
        }
        let (applier, tasks) = &mut self.workers[worker];
        let task = tasks.try_take();
        let has_task = task.is_some();
        if let Some(task) = task {
            applier.perform(task);
        }
        has_task
    }

    /// From now on notes what replicas are stepped with.
    pub fn note_causes(&mut self) {
        for (shard, _) in &mut self.shards {
            shard.note_causes();
        }
    }

    /// Moves what replicas were stepped with since the last call into `into`, in that order.
    pub fn take_causes(&mut self, shard: usize, into: &mut Vec<(GroupId, String)>) {
        self.shards[shard].0.take_causes(into);
    }

    /// What the log of a group has behind its base, as it would be sent to another node.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn entries(&self, group: GroupId) -> Result<Vec<LoggedEntry>, ReadError> {
        let (shard, _) = &self.shards[shard_of(group, self.shards.len())];
        shard.entries(group)
    }

    /// A replica's core, and why it is quarantined; `None` when the group is not here or not open yet.
    pub fn replica(&self, group: GroupId) -> Option<(&Group, Option<&str>)> {
        self.shards[shard_of(group, self.shards.len())]
            .0
            .replica(group)
    }

    /// Whether an entry of a group is on the disk here, as the log has it now.
    pub fn is_durable(&self, group: GroupId, index: Index) -> bool {
        let (shard, _) = &self.shards[shard_of(group, self.shards.len())];
        shard.is_durable(group, index)
    }

    /// The newest batch of the log that has something of a group's shard, unless the log does not take all, and the newest batch
    /// that is on the disk.
    pub fn batches(&self, group: GroupId) -> (Option<Lsn>, Lsn) {
        let (shard, _) = &self.shards[shard_of(group, self.shards.len())];
        shard.batches()
    }

    /// Whether a group's replica is in quarantine for a damaged log that it can get from its peers.
    pub fn is_repairable(&self, group: GroupId) -> bool {
        let (shard, _) = &self.shards[shard_of(group, self.shards.len())];
        shard.is_repairable(group)
    }

    /// Of which life of a group the replica here was removed, if it was and nothing but a tombstone is left.
    pub fn removed_from(&self, group: GroupId) -> Option<Life> {
        let (shard, _) = &self.shards[shard_of(group, self.shards.len())];
        shard.removed_from(group)
    }

    /// Which life of its id a group that is here belongs to, open or not.
    pub fn life(&self, group: GroupId) -> Option<Life> {
        let (shard, _) = &self.shards[shard_of(group, self.shards.len())];
        shard.life_here(group)
    }

    /// Whether this node leads a group that it is going to hand to the one which should lead it.
    pub fn will_hand_over(&self, group: GroupId) -> bool {
        let (shard, _) = &self.shards[shard_of(group, self.shards.len())];
        shard.will_hand_over(group)
    }

    /// The group that one is being merged into, as far as the replica here has applied.
    pub fn merging_into(&self, group: GroupId) -> Option<GroupId> {
        let (shard, _) = &self.shards[shard_of(group, self.shards.len())];
        shard.merging_here(group)
    }

    /// The newest life of a group that is known to be over everywhere.
    pub fn over(&self, group: GroupId) -> Option<Life> {
        let (shard, _) = &self.shards[shard_of(group, self.shards.len())];
        shard.life_over_here(group)
    }

    /// Whether a life of a group is over here, so that nothing of it may be left. What its state machine kept has to go before
    /// the first turn.
    pub fn is_over(&self, group: GroupId, life: Life) -> bool {
        let (shard, _) = &self.shards[shard_of(group, self.shards.len())];
        shard.is_over(group, life)
    }

    /// What the log had of the groups that are not open yet, by group.
    pub fn recovered(&self) -> Vec<&RecoveredGroup> {
        let mut found: Vec<_> = self
            .shards
            .iter()
            .flat_map(|(shard, _)| shard.recovered())
            .collect();
        found.sort_unstable_by_key(|found| found.group);
        found
    }

    /// Why the whole node has stopped serving, if it has.
    pub fn fault(&self) -> Option<String> {
        self.node.inner().shared.fault.lock().clone()
    }

    /// Runs the last turns of a node that stops in order, as [`Node::shutdown`] does: everything submitted is written. What
    /// they did can be looked at before [`SimNode::close`].
    pub fn finish(&mut self) {
        let shared = Arc::clone(&self.node.inner().shared);
        shared.is_closed.store(true, Ordering::Release);
        shared.tell_all(|| ShardEvent::Shutdown);
        for shard in 0..self.shards.len() {
            while !self.shards[shard].0.is_stopping() {
                self.turn(shard);
            }
        }
    }

    /// Marks the end of the log of a node that has [finished](SimNode::finish), and gives it up.
    ///
    /// # Errors
    /// Says why the log could not be closed.
    pub fn close(self) -> Result<(), polyraft_storage::StorageError> {
        self.wals.iter().try_for_each(Wal::close)
    }
}

impl<M: StateMachine> std::fmt::Debug for SimNode<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimNode")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// A change of a peer that is under way: see [`SimNode::change_peer`].
#[derive(Debug)]
pub struct PeerChange(Asked);

/// What a frame holds, as far as a checker wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimRecord {
    /// A Raft message of a group.
    Group {
        /// The group.
        group: GroupId,
        /// The message, without the entries' bytes.
        message: Message,
    },
    /// A proposal on its way to the leader's node.
    Forward {
        /// The group.
        group: GroupId,
        /// It does no harm if it comes twice: it has a number in a session, or is about a merge.
        is_numbered: bool,
    },
    /// Anything else.
    Other,
}

/// Calls `see` for each record of a frame.
///
/// # Panics
/// When the frame is damaged: the node that sent it has a bug then.
pub fn read_frame(frame: &Bytes, mut see: impl FnMut(SimRecord)) {
    let mut records = Records::new(frame);
    while let Some(record) = records.next_for(|_| true) {
        let record = record.expect("a node sends frames that can be read");
        see(match record {
            Record::Group { group, message, .. } | Record::HollowAppend { group, message, .. } => {
                SimRecord::Group { group, message }
            }
            Record::Forward { group, kind, .. } => SimRecord::Forward {
                group,
                is_numbered: kind != EntryKind::Normal,
            },
            _ => SimRecord::Other,
        });
    }
}

/// Adds the record of a Raft message with its entry blocks to a frame, as the end of a turn does. For benches.
pub fn put_append(frame: &mut BytesMut, group: GroupId, message: &Message, blocks: &[u8]) {
    wire::put_message(frame, group, message, std::iter::once(blocks));
}

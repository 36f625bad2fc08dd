//! A shard: one thread, the groups that it owns, and their turn. Drain what has arrived, step all, dispatch once.
//! It must never wait for a disk, a socket or a state machine; they answer through the inbox. Only where the configuration says so it
//! syncs and applies by itself, between two turns or at the end of one.

mod balance;
mod beats;
mod campaigns;
mod chains;
mod coordinate;
mod create;
mod ends;
mod events;
mod fetch;
mod gauge;
mod home;
mod inline;
mod leadership;
mod lives;
#[cfg(feature = "sim")]
mod looks;
mod members;
mod merge;
mod outgoing;
mod peers;
mod proposals;
mod reads;
mod repair;
mod replica;
mod room;
mod snapshots;
mod split;
mod stall;
#[cfg(test)]
pub(crate) mod tests;
mod told;
mod transfer;
mod trim;
mod turn;
mod witness;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use crossbeam::utils::CachePadded;
use parking_lot::Mutex;
use polyraft_raft::{
    Env, Event, GroupId, Index, Life, NodeId, NodeSet, Origin, Outbox, Role, Settings, Tick,
    WriteId, WriteKind, shard_of,
};
use polyraft_storage::{
    BlockError, Blocks, EntryBlock, EntryKind, GroupNumbers, Lsn, PREFETCH_AHEAD, RecoveredGroup,
    ShardLog, SnapshotFile, StorageError, Wal,
};
use polyraft_transport::Network;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use self::balance::Balance;
use self::campaigns::Campaigns;
use self::create::Creations;
use self::ends::Ends;
pub(crate) use self::gauge::InboxGauge;
use self::home::Home;
pub(crate) use self::home::HomeOptions;
use self::inline::InlineApplies;
use self::leadership::Leadership;
#[cfg(feature = "sim")]
pub use self::looks::LoggedEntry;
use self::members::Members;
pub(crate) use self::merge::MergeEvent;
use self::merge::Merges;
use self::outgoing::Outgoing;
use self::proposals::Forwards;
use self::reads::Reads;
use self::repair::Repairs;
use self::replica::{Proposal, Queues, Replica};
use self::room::Room;
pub(crate) use self::snapshots::SnapshotPolicy;
use self::snapshots::Snapshots;
use self::split::Splits;
pub(crate) use self::split::{ChildNews, SplitEvent};
use self::stall::Stall;
use self::told::Told;
use self::transfer::Transfers;
pub(crate) use self::transfer::{ChunkTrouble, TransferGauges, TransferLimits, Wanted};
use self::trim::Trim;
use crate::apply::{ApplyBacklog, ApplyBatch, OnIdle, Perform, Task};
use crate::clock::Clock;
use crate::directory::{Directory, Shown};
use crate::error::Error;
use crate::event::{Claim, ShardEvent};
use crate::keeper::Job;
use crate::mailbox::{Mailbox, Sender};
use crate::pulse::Pulses;
use crate::status::{AllCounters, ElectionCause, ShardCounters, ShardHistograms};
use crate::trace::{OpenTraces, Tracer};
use crate::trust::Trust;
use crate::wheel::Wheel;

/// What a waiting proposal takes beyond its payload, about: it counts towards the bounds, so that small and empty
/// payloads are bounded too.
pub(crate) const PROPOSAL_OVERHEAD: usize = 128;

/// A turn that takes in so many events is followed by the next no sooner than `batch.turn_interval` says.
const BUSY_EVENTS: usize = 8;

/// What a shard may hold and how long things may take. Bytes and microseconds.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) turn_events: usize,
    pub(crate) turn_wait: Duration,
    pub(crate) turn_interval: Duration,
    pub(crate) inline_sync: Duration,
    pub(crate) inline_apply: Duration,
    pub(crate) proposal_bytes: usize,
    pub(crate) inbox_bytes: usize,
    pub(crate) group_bytes: usize,
    pub(crate) wal_bytes: u64,
    pub(crate) apply_bytes: usize,
    pub(crate) proposal_timeout: u64,
    pub(crate) campaign_delay: u64,
    pub(crate) rebalance_delay: u64,
    /// How readily this node should lead.
    pub(crate) priority: u8,
    pub(crate) stall_timeout: u64,
    pub(crate) repair: bool,
    pub(crate) append_lanes: usize,
    pub(crate) snapshots: SnapshotPolicy,
    pub(crate) transfers: TransferLimits,
}

/// What all shards of a node are given alike.
pub(crate) struct ShardOptions {
    pub(crate) settings: Settings,
    pub(crate) limits: Limits,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) peers: Vec<NodeId>,
    pub(crate) trust: Arc<Trust>,
}

/// What every part of a node shares. Written by its owner, read by anybody.
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    /// Which opening of the data directory this is, and the number that peers know it by.
    pub(crate) opening: u64,
    pub(crate) incarnation: u64,
    pub(crate) clock: Clock,
    pub(crate) inboxes: Arc<[Sender<ShardEvent>]>,
    pub(crate) gauges: Box<[CachePadded<InboxGauge>]>,
    pub(crate) workers: Arc<[Sender<Task>]>,
    pub(crate) keepers: Arc<[Sender<Job>]>,
    pub(crate) backlog: Arc<ApplyBacklog>,
    pub(crate) transfers: TransferGauges,
    pub(crate) directory: Directory,
    pub(crate) counters: AllCounters,
    pub(crate) tracer: Arc<Tracer>,
    pub(crate) pulses: Pulses,
    pub(crate) alive_peers: Mutex<NodeSet>,
    /// How many shards have written nothing for a while.
    pub(crate) idle_shards: AtomicUsize,
    /// Whatever else the node's user wants its threads to do when they have become idle.
    pub(crate) on_idle: OnceLock<OnIdle>,
    /// Why the whole node has stopped serving, once it has.
    pub(crate) fault: Mutex<Option<String>>,
    pub(crate) is_closed: AtomicBool,
}

impl Shared {
    pub(crate) fn shard_of(&self, group: GroupId) -> usize {
        shard_of(group, self.inboxes.len())
    }

    /// The worker that owns a group's state machine.
    pub(crate) fn worker_of(&self, group: GroupId) -> &Sender<Task> {
        &self.workers[shard_of(group, self.workers.len())]
    }

    /// The keeper of a group's snapshots.
    pub(crate) fn keeper_of(&self, group: GroupId) -> &Sender<Job> {
        &self.keepers[shard_of(group, self.keepers.len())]
    }

    /// Puts an event into a shard's inbox. After a shutdown it is dropped, which answers whoever waits.
    pub(crate) fn tell(&self, shard: usize, event: ShardEvent) {
        let inbox = &self.inboxes[shard];
        if event.is_pressing() {
            inbox.press(event);
        } else {
            inbox.send(event);
        }
    }

    pub(crate) fn tell_all(&self, event: impl Fn() -> ShardEvent) {
        for shard in 0..self.inboxes.len() {
            self.tell(shard, event());
        }
    }

    /// A part without which the node can't go on has failed: it stops serving.
    pub(crate) fn fail(&self, reason: &str) {
        self.fault.lock().get_or_insert_with(|| reason.to_owned());
        self.tell_all(|| ShardEvent::WalFailed(reason.to_owned()));
    }
}

/// One shard. `handle` takes an event, `end_turn` does what follows from all of them.
pub(crate) struct Shard {
    index: usize,
    shared: Arc<Shared>,
    settings: Settings,
    limits: Limits,
    now: Tick,

    replicas: Vec<Replica>,
    queues: Queues,
    slots: GroupNumbers,
    /// Recovered or created groups whose state machine is being opened, and how often to campaign at most once it is.
    opening: FxHashMap<GroupId, (RecoveredGroup, u8)>,
    /// Nodes that live, this one included.
    alive: NodeSet,

    outbox: Outbox,
    touched: Vec<u32>,
    /// One for each replica: what a turn notes about many of them without a look at any.
    marks: Vec<Marks>,
    /// Writes of this turn, or of turns that the log has not taken for want of room.
    unsubmitted: Vec<(u32, WriteId)>,
    fired: Vec<u32>,
    wheel: Wheel,
    campaigns: Campaigns,
    /// Replicas to deal with before the turn looks at the clock.
    until_look: u32,
    /// Writes under way to the disk, in the order of their batches.
    written: VecDeque<Written>,
    /// The newest batch that this shard wrote into, and the newest that is durable.
    submitted: Lsn,
    durable: Lsn,
    /// When the shard first wrote into each batch that is not durable yet.
    submissions: VecDeque<(Lsn, Tick)>,
    /// Replicas that this turn took out of service: their state machines are stopped behind what it hands out.
    quarantined: Vec<(GroupId, String)>,
    /// When the batches were handed over that the apply workers have, in that order.
    applying: VecDeque<Tick>,
    /// The proposal whose commit is waited for, to know how long that takes.
    sample: Option<Sample>,
    /// Replicas to look at again, by the time of that.
    deferred: VecDeque<(Tick, Deferred)>,

    log: ShardLog,
    wal: Wal,
    outgoing: Outgoing,
    /// What the turn sends, while it is put into frames.
    blocks: Blocks,
    /// What this turn committed, by apply worker, and batches to fill again.
    applies: Vec<ApplyBatch>,
    spare_batches: Vec<ApplyBatch>,
    inline_applies: InlineApplies,
    /// What refuses new proposals in this turn, if anything does.
    overload: Option<Error>,
    forwards: Forwards,
    reads: Reads,
    leadership: Leadership,
    members: Members,
    repairs: Repairs,
    /// Which peers know of the ends that this shard keeps.
    told: Told,
    balance: Balance,
    splits: Splits,
    merges: Merges,
    /// Which peers stand by this node's claims.
    trust: Arc<Trust>,
    /// Batches of claims handed to the home shard.
    claim_batches: u64,
    creations: Creations,
    ends: Ends,
    /// While the WAL wants work for a checkpoint or a relocation: when its next slice is due.
    maintenance: Option<Tick>,
    traces: OpenTraces,
    /// Buffers that turns reuse.
    soon: VecDeque<ShardEvent>,
    proposals: Vec<Proposal>,
    retouch: Vec<u32>,
    /// Present on shard 0.
    home: Option<Home>,
    claims: Vec<Claim>,
    /// Groups touched since somebody last asked; nothing while nobody does.
    #[cfg(feature = "sim")]
    stepped: Option<Vec<GroupId>>,
    /// What replicas were stepped with since somebody last asked; nothing while nobody does.
    #[cfg(feature = "sim")]
    causes: Option<Vec<(GroupId, String)>>,
    /// Held until every recovered group is open.
    ready: Option<mpsc::Sender<()>>,
    /// Since the disk is full: when to try again.
    disk_full: Option<DiskFull>,
    room: Room,
    stall: Stall,
    snapshots: Snapshots,
    transfers: Transfers,
    trim: Trim,
    /// When the shard was made. What its replicas promised before may be lost.
    opened_at: Tick,
    /// Groups whose replica was quarantined when it was opened, and may have lost terms that it had seen.
    uncertain: FxHashSet<GroupId>,
    fault: Option<Error>,
    is_stopping: bool,
}

/// The log does not take the turn's records until there is room on the disk.
#[derive(Debug)]
struct DiskFull {
    retry_at: Tick,
}

/// What a turn notes about a replica.
#[derive(Debug)]
struct Marks {
    group: GroupId,
    /// Which life of the group's id the replica belongs to.
    life: Life,
    is_touched: bool,
    /// The newest write that a barrier of this turn covered, until the core is told; 0: none.
    durable: WriteId,
}

impl Marks {
    fn new(group: GroupId, life: Life) -> Self {
        Marks {
            group,
            life,
            is_touched: false,
            durable: WriteId::ZERO,
        }
    }
}

/// A write of a replica in a batch.
#[derive(Debug)]
struct Written {
    lsn: Lsn,
    slot: u32,
    id: WriteId,
}

/// A proposal whose way to its commit is timed.
#[derive(Debug, Clone, Copy)]
struct Sample {
    slot: u32,
    index: Index,
    appended: Tick,
}

/// How long a sample may take, in microseconds: that of a group which lost its leader or its replica never ends.
const SAMPLE_LIMIT: u64 = 10_000_000;

/// Something to do for a replica at a later time.
#[derive(Debug, Clone, Copy)]
enum Deferred {
    /// Its creation is over, and it is the one to start the first election; so often at most.
    Campaign(GroupId, Life, u8),
    /// Proposals that were held may have found a leader or their deadline.
    Proposals(u32),
    /// Answers to forwards that the transport did not take.
    ForwardReplies,
}

impl Shard {
    pub(crate) fn new(
        index: usize,
        shared: Arc<Shared>,
        options: &ShardOptions,
        (mut log, snapshots): (ShardLog, Vec<SnapshotFile>),
        wal: Wal,
        home: Option<HomeOptions>,
    ) -> Self {
        let limits = options.limits.clone();
        let now = shared.clock.now();
        let mut alive = NodeSet::new(shared.node);
        alive.set_priority(shared.node, limits.priority);
        let mut snapshots = Snapshots::new(limits.snapshots, snapshots);
        let completed = snapshots.complete(&mut log);
        let opening: FxHashMap<_, _> = log
            .groups()
            .map(|found| (found.group, (found, 0)))
            .collect();
        // Growing step by step would copy all of them again and again.
        let recovered = opening.len();
        let mut shard = Shard {
            index,
            settings: options.settings,
            now,
            replicas: Vec::with_capacity(recovered),
            queues: Queues::default(),
            slots: GroupNumbers::default(),
            opening,
            alive,
            outbox: Outbox::default(),
            touched: Vec::new(),
            marks: Vec::with_capacity(recovered),
            unsubmitted: Vec::new(),
            fired: Vec::new(),
            wheel: Wheel::new(now),
            campaigns: Campaigns::default(),
            until_look: beats::first_look(),
            written: VecDeque::new(),
            submitted: Lsn(0),
            durable: Lsn(0),
            submissions: VecDeque::new(),
            quarantined: Vec::new(),
            applying: VecDeque::new(),
            sample: None,
            deferred: VecDeque::new(),
            log,
            wal,
            outgoing: Outgoing::new(
                Arc::clone(&options.network),
                &options.peers,
                limits.append_lanes,
            ),
            blocks: Blocks::default(),
            applies: shared
                .workers
                .iter()
                .map(|_| ApplyBatch::default())
                .collect(),
            spare_batches: Vec::new(),
            inline_applies: InlineApplies::default(),
            overload: None,
            forwards: Forwards::new(shared.incarnation),
            leadership: Leadership::default(),
            members: Members::default(),
            repairs: Repairs::default(),
            told: Told::new(index, shared.incarnation, &options.peers),
            balance: Balance::default(),
            splits: Splits::default(),
            merges: Merges::new(shared.node, shared.incarnation),
            reads: Reads::new(shared.incarnation, shared.workers.len()),
            trust: Arc::clone(&options.trust),
            claim_batches: 0,
            creations: Creations::default(),
            ends: Ends::default(),
            maintenance: None,
            traces: OpenTraces::default(),
            soon: VecDeque::new(),
            proposals: Vec::new(),
            retouch: Vec::new(),
            home: home.map(|home| Home::new(shared.node, home, &options.peers)),
            claims: Vec::new(),
            #[cfg(feature = "sim")]
            stepped: None,
            #[cfg(feature = "sim")]
            causes: None,
            ready: None,
            disk_full: None,
            room: Room::default(),
            stall: Stall::default(),
            snapshots,
            transfers: Transfers::new(limits.transfers),
            trim: Trim::opened(now),
            opened_at: shared.clock.now(),
            uncertain: FxHashSet::default(),
            fault: None,
            is_stopping: false,
            limits,
            shared,
        };
        match completed {
            Ok(unknown) => shard.remove_snapshots(unknown),
            Err(error) => shard.fail(error.to_string()),
        }
        shard
    }

    /// With `apply.inline`, what this shard commits may be applied here from now on. To be called before the first turn.
    pub(crate) fn apply_inline_at(&mut self, seats: Vec<Arc<dyn Perform>>) {
        if !self.limits.inline_apply.is_zero() {
            self.inline_applies = InlineApplies::at(seats);
        }
    }

    /// The shard's thread: a turn for each burst of events, and one for each timer.
    ///
    /// What comes while the last turn is not durable yet would wait for the same barrier: it is taken together, once that is
    /// there or after `batch.turn_wait`. With `wal.inline_sync` the shard may be busy with the barrier itself. After a busy turn the next begins no sooner than `batch.turn_interval` says.
    ///
    /// `ready` is dropped when the state machines of all recovered groups are open, or can't be.
    pub(crate) fn run(mut self, inbox: Mailbox<ShardEvent>, ready: mpsc::Sender<()>) {
        self.ready = (!self.opening.is_empty()).then_some(ready);
        let syncs_inline = !self.limits.inline_sync.is_zero();
        if syncs_inline {
            self.log.begin_inline_syncs();
        }
        let (mut begun, mut taken) = (self.now, None);
        while !self.is_stopping {
            if syncs_inline {
                self.log.sync_inline(self.limits.inline_sync);
            }
            if taken.is_some_and(|taken| taken >= BUSY_EVENTS) {
                self.linger(begun);
            }
            if self.submitted > self.durable {
                let due = self.until_deadline().unwrap_or(Duration::MAX);
                inbox.rest(due.min(self.limits.turn_wait));
            }
            let first = inbox.take(self.until_deadline());
            begun = self.shared.clock.now();
            self.begin_turn(begun);
            let before = usize::from(first.is_some());
            if let Some(event) = first {
                self.handle(event);
            }
            taken = self.finish_turn(&inbox, before);
            let took = self.shared.clock.now().since(begun);
            self.histograms().turn_us.record(took);
        }
    }

    /// Lets events gather until `batch.turn_interval` after the beginning of the last turn, or a timer.
    fn linger(&self, begun: Tick) {
        let interval = self.limits.turn_interval;
        if interval.is_zero() {
            return;
        }
        let gone = Duration::from_micros(self.shared.clock.now().since(begun));
        let due = self.until_deadline().unwrap_or(Duration::MAX);
        std::thread::sleep(due.min(interval.saturating_sub(gone)));
    }

    /// How long it is until the next turn has to come, whatever arrives.
    fn until_deadline(&self) -> Option<Duration> {
        let deadline = self.next_deadline()?;
        Some(self.shared.clock.until(deadline))
    }

    /// Takes in what waits, as much as a turn may, and does what follows from it. So many events were taken before.
    /// Returns how many the turn took in altogether; `None` if it may take no more and others wait already.
    pub(crate) fn finish_turn(
        &mut self,
        inbox: &Mailbox<ShardEvent>,
        before: usize,
    ) -> Option<usize> {
        let mut left = self.limits.turn_events;
        let mut soon = std::mem::take(&mut self.soon);
        loop {
            while soon.len() < PREFETCH_AHEAD
                && left > 0
                && let Some(event) = inbox.try_take()
            {
                self.fetch_for(&event);
                soon.push_back(event);
                left -= 1;
            }
            let Some(event) = soon.pop_front() else { break };
            self.handle(event);
        }
        self.soon = soon;
        let taken = before + self.limits.turn_events - left;
        self.histograms().turn_events.record(taken as u64);
        self.end_turn(left > 0);
        (left > 0).then_some(taken)
    }

    /// The proposal whose wait is measured has come to its turn.
    fn end_sample(&self) {
        let at = self.shared.gauges[self.index].end_sample();
        self.histograms().queue_us.record(self.now.since(at));
    }

    fn counters(&self) -> &ShardCounters {
        self.shared.counters.shard(self.index)
    }

    fn histograms(&self) -> &ShardHistograms {
        self.shared.counters.histograms(self.index)
    }

    /// Steps a replica with an event that may make it campaign, and counts the election if it does.
    fn step_to_campaign(&mut self, slot: u32, event: Event<'_>, cause: ElectionCause) {
        let campaigns = |shard: &Self| shard.replicas[slot as usize].group.counters().campaigns;
        let before = campaigns(self);
        self.step(slot, event, Payloads::None);
        if campaigns(self) != before {
            self.counters().election(cause);
        }
    }

    fn slot(&self, group: GroupId) -> Option<u32> {
        self.slots.get(group)
    }

    fn touch(&mut self, slot: u32) {
        if !std::mem::replace(&mut self.marks[slot as usize].is_touched, true) {
            self.touched.push(slot);
            #[cfg(feature = "sim")]
            if let Some(stepped) = &mut self.stepped {
                stepped.push(self.marks[slot as usize].group);
            }
        }
    }

    /// Asks the apply workers to open the state machine of every recovered group. To be called before the first turn.
    pub(crate) fn open_recovered(&mut self) {
        let mut groups: Vec<GroupId> = self.opening.keys().copied().collect();
        groups.sort_unstable();
        for group in groups {
            let found = &self.opening[&group].0;
            let task = Task::open(group, found.life, found.is_witness);
            self.shared.worker_of(group).send(task);
        }
    }

    /// Stops serving for good: the log can no longer be trusted to keep what it is given.
    fn fail(&mut self, reason: String) {
        tracing::error!(node = %self.shared.node, %reason, "the node stops");
        for shard in (0..self.shared.inboxes.len()).filter(|shard| *shard != self.index) {
            self.shared
                .tell(shard, ShardEvent::WalFailed(reason.clone()));
        }
        let error = Error::Fault {
            reason: reason.clone(),
        };
        self.shared.fault.lock().get_or_insert(reason);
        for replica in &mut self.replicas {
            replica.fail_all(&mut self.queues, &error);
            let (term, has_committed) = (replica.group.term(), replica.has_committed());
            let nobody = Shown::new(None, term, has_committed);
            replica.cell.publish(nobody);
        }
        self.forwards.fail_all(&error);
        self.reads.fail_all(&error);
        self.leadership.fail_all(&error);
        self.members.fail_all(&error);
        self.splits.fail_all(&error);
        self.merges.fail_all(&error);
        self.snapshots.fail_all(&error);
        self.told.fail_all(&error);
        if let Some(home) = &mut self.home {
            home.fail_all(&error);
        }
        self.outbox.clear();
        self.ready = None;
        // It leads nobody, hears nobody and counts no answer any more, whatever was shown last.
        self.shared.counters.waiting(self.index).apply.set(0);
        let counters = self.counters();
        counters.led.set(0);
        counters.leaderless.set(counters.groups.get());
        if self.home.is_some() {
            *self.shared.alive_peers.lock() = NodeSet::new(self.shared.node);
        }
        self.fault = Some(error);
    }

    /// Steps a replica's core with one event and carries out the writes that follow from it.
    fn step(&mut self, slot: u32, event: Event<'_>, payloads: Payloads<'_>) {
        self.keep_beating();
        let replica = &mut self.replicas[slot as usize];
        if replica.fault.is_some() {
            return;
        }
        let env = Env {
            now: self.now,
            settings: &self.settings,
            alive: &self.alive,
        };
        let (group, outbox) = (&mut replica.group, &mut self.outbox);
        #[cfg(feature = "sim")]
        looks::note_cause(&mut self.causes, group.id(), &event);
        let stepped = guarded(|| group.step(&env, event, outbox));
        if let Err(reason) = stepped {
            return self.quarantine(slot, reason);
        }
        self.touch(slot);
        if !self.outbox.writes.is_empty() {
            self.write(slot, payloads);
        }
    }

    /// Puts the writes of the last step into the WAL's turn buffer.
    fn write(&mut self, slot: u32, payloads: Payloads<'_>) {
        let mut writes = std::mem::take(&mut self.outbox.writes);
        for write in writes.drain(..) {
            if let Err(error) = self.write_one(slot, write.kind, payloads) {
                self.quarantine(slot, format!("the log does not take a record: {error}"));
                break;
            }
            let id = write.id;
            self.unsubmitted.push((slot, id));
        }
        self.outbox.writes = writes;
    }

    fn write_one(
        &mut self,
        slot: u32,
        kind: WriteKind,
        payloads: Payloads<'_>,
    ) -> Result<(), StorageError> {
        let core = &self.replicas[slot as usize].group;
        let group = core.id();
        let (entries, origin) = match kind {
            WriteKind::HardState(state) => return self.log.hard_state(group, state),
            WriteKind::Truncate { from } => return self.log.truncate(group, from),
            WriteKind::Reset { to } => return self.log.reset(group, to, core.configuration()),
            WriteKind::Append { entries, origin } => (entries, origin),
        };
        match (origin, payloads) {
            (Origin::Noop, _) => {
                let nothing: [&[u8]; 1] = [&[]];
                self.log.append(group, entries, EntryKind::Noop, nothing)
            }
            (Origin::Configuration, _) => {
                self.log
                    .append_configuration(group, entries, core.configuration())
            }
            (Origin::Proposed, Payloads::Proposed(proposed)) => {
                // All of a block are of one kind.
                let kind = proposed[0].kind;
                let payloads = proposed.iter().map(|proposal| &proposal.payload[..]);
                self.log.append(group, entries, kind, payloads)
            }
            (Origin::Received, Payloads::Received(blocks)) => {
                // The core may want only the end of what came: the log has the rest already.
                blocks
                    .iter()
                    .filter(|block| block.end() > entries.first)
                    .try_for_each(|block| {
                        if block.first() >= entries.first {
                            return self.log.append_block(block);
                        }
                        let mut cut = BytesMut::new();
                        block
                            .cut(entries.first, block.end(), &mut cut)
                            .expect("the range is inside the block");
                        let cut = EntryBlock::parse(&cut).expect("it was packed just now");
                        self.log.append_block(&cut)
                    })
            }
            (origin, _) => panic!("the core appends {origin:?} entries that nobody brought"),
        }
    }
}

/// Where the bytes of appended entries are.
#[derive(Clone, Copy)]
enum Payloads<'a> {
    None,
    Proposed(&'a [Proposal]),
    Received(&'a [EntryBlock<'a>]),
}

/// Entry blocks that came with an Append. Most bring one.
type Received<'a> = SmallVec<[EntryBlock<'a>; 1]>;

fn parse_blocks(mut bytes: &[u8]) -> Result<Received<'_>, BlockError> {
    let mut blocks = Received::new();
    while !bytes.is_empty() {
        let (block, rest) = EntryBlock::parse_first(bytes)?;
        blocks.push(block);
        bytes = rest;
    }
    Ok(blocks)
}

/// Steps a core. A panic in one group must not take the others with it.
fn guarded(step: impl FnOnce()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(step)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("an invariant is broken: {}", text.unwrap_or("no message"))
    })
}

/// Whether a replica leads, for readers of this module.
fn leads(replica: &Replica) -> bool {
    replica.fault.is_none() && replica.group.role() == Role::Leader
}

//! Apply workers: they own the state machines and feed them committed entries in order, on threads of their own or on a shard's.
//! A worker must never touch the log or the network; what it did goes back to the shard's inbox.

mod merge;
mod open;
mod seat;
mod split;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{GroupId, Index, Life, Term, Tick};
use polyraft_storage::{
    Blocks, EntryKind, GroupTable, PREFETCH_AHEAD, ReadError, SnapshotFile, SnapshotMeta, name_of,
    parse_name_of,
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::clock::Clock;
use crate::completion::{self, Outcome, ReplyTo, Together};
use crate::error::Error;
use crate::event::ShardEvent;
use crate::keeper::{Contained, Job};
use crate::machine::{Entry, Replies, StateMachine};
use crate::mailbox::Sender;
use crate::merge::Frozen;
use crate::sessions::{self, Deduplication, Opener, Payload, Position, Table};
use crate::shard::PROPOSAL_OVERHEAD;
use crate::split::{SplitEntry, SplitPlace};

pub(crate) use self::merge::Gathered;
pub(crate) use self::seat::{Perform, Seat};

/// The directory of the state machines' directories.
const MACHINES: &str = "machines";

/// Groups and callers for which a batch keeps room: more come in a turn only after a start or a failure.
const KEPT_GROUPS: usize = 16_384;

/// Work for an apply worker.
pub(crate) enum Task {
    /// Open the state machine of a group and tell the shard how far it is.
    Open { group: GroupId, life: Life },
    /// A group has no state machine here: tell the shard, and whoever asks for its state why it gets none.
    Witness { group: GroupId, life: Life },
    /// Apply what one turn of a shard committed.
    Apply(ApplyBatch),
    /// Answer a query from the state as it is now.
    Query(Query),
    /// The same for many. They count in the backlog.
    Queries(Vec<Query>),
    /// Freeze the part of a group that becomes a group of its own, and have a keeper write it.
    SplitOff {
        at: SplitPlace,
        term: Term,
        entry: SplitEntry,
        campaigns: bool,
    },
    /// Write out the state of a group that is frozen in this way, into memory.
    GiveState {
        group: GroupId,
        life: Life,
        frozen: Frozen,
    },
    /// Freeze the state of a group, at the place that the description says, and have a keeper write it.
    Freeze { meta: SnapshotMeta },
    /// Lend the state machine of a group to a keeper, which gives it the state of a snapshot. If it `held` something already,
    /// it keeps that where it can, and gets the group's sessions only.
    Restore { file: SnapshotFile, held: Index },
    /// A keeper returns a state machine with the group's sessions, or says why there is none any more.
    TakeBack {
        group: GroupId,
        life: Life,
        machine: Result<Returned, String>,
        /// It has the effect of everything through here, and of that some is handed out again; 0: of nothing.
        held: Index,
    },
    /// A replica was taken out of service: its state machine answers nothing more.
    Quarantine { group: GroupId, reason: String },
    /// A replica has ended: drop its state machine and remove what that kept, and have a keeper remove its snapshots. The shard
    /// learns that its slot is not named any more.
    Destroy {
        group: GroupId,
        life: Life,
        slot: Option<u32>,
    },
    /// All shards are idle: call this.
    Rest(OnIdle),
    /// Leave the loop.
    Stop,
}

/// What each thread of a node calls when it has become idle.
pub(crate) type OnIdle = Arc<dyn Fn() + Send + Sync>;

impl Task {
    /// Opens what a replica needs before it starts.
    pub(crate) fn open(group: GroupId, life: Life, is_witness: bool) -> Task {
        match is_witness {
            true => Task::Witness { group, life },
            false => Task::Open { group, life },
        }
    }
}

/// A state machine that comes back from a keeper.
pub(crate) struct Returned {
    pub(crate) machine: Box<dyn Any + Send>,
    /// The sessions of its group, if there ever were any.
    pub(crate) sessions: Option<Box<Table>>,
}

/// What a state machine holds when its replica begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// It has the effect of everything through here.
    pub(crate) machine: Index,
    /// What is known of the group's sessions is as of here, which may be before: the entries behind it are handed out.
    pub(crate) sessions: Index,
    /// It was given the state of a snapshot for it.
    pub(crate) is_restored: bool,
}

impl Held {
    /// A state machine and sessions at the same place.
    pub(crate) fn all(through: Index) -> Self {
        Held {
            machine: through,
            sessions: through,
            is_restored: false,
        }
    }
}

/// Why a state machine does not hold what its replica has to begin with.
#[derive(Debug, Clone)]
pub(crate) enum Unheld {
    /// The snapshot that stands for the front of the log is damaged or gone; the log is not. The peers have both.
    Snapshot(String),
    /// Something that somebody has to look at.
    Other(String),
}

impl Unheld {
    /// In words.
    pub(crate) fn reason(self) -> String {
        match self {
            Unheld::Snapshot(reason) | Unheld::Other(reason) => reason,
        }
    }
}

/// A read that nothing is in the way of.
#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) group: GroupId,
    /// What it had to wait for; the caller is told.
    pub(crate) index: Index,
    pub(crate) query: Bytes,
    pub(crate) reply: ReplyTo,
}

impl Query {
    /// What it counts towards bounds.
    pub(crate) fn bytes(&self) -> usize {
        self.query.len() + PROPOSAL_OVERHEAD
    }
}

/// What one turn of a shard committed, for one worker: flat lists that a batch's groups share.
///
/// The worker sends it back with the results, and the shard fills it again: nothing is allocated in the long run.
#[derive(Debug, Default)]
pub(crate) struct ApplyBatch {
    pub(crate) shard: usize,
    /// When the shard handed it over.
    pub(crate) sent: Tick,
    pub(crate) groups: Vec<Committed>,
    /// The shard applied it, not the worker.
    pub(crate) is_inline: bool,
    /// How long that took, in microseconds.
    pub(crate) took: u64,
    blocks: Blocks,
    waiting: Vec<WaitingReply>,
    bytes: usize,
}

/// Entries `first..end` of one group that are committed and durable.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) slot: u32,
    pub(crate) group: GroupId,
    pub(crate) first: Index,
    pub(crate) end: Index,
    /// How many of the batch's blocks and waiting callers are this group's.
    blocks: usize,
    waiting: usize,
    /// Bytes of log that the blocks keep.
    pub(crate) bytes: usize,
    /// Why the state machine stopped before `end`, if it did.
    pub(crate) fault: Option<Fault>,
}

/// What stops a state machine.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It failed, or was given what it cannot take.
    Machine(String),
    /// What it was to be given is damaged on the disk.
    Unreadable(ReadError),
}

impl ApplyBatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Bytes of log that the batch keeps in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether some of it has to be read from the disk.
    pub(crate) fn has_unread(&self) -> bool {
        self.blocks.have_unread()
    }

    /// Adds a group's entries: `read` adds the blocks that cover them up to the end it returns, `waiting` then gives the
    /// callers, in the order of their indexes.
    pub(crate) fn push<I: Iterator<Item = WaitingReply>, E>(
        &mut self,
        (slot, group): (u32, GroupId),
        first: Index,
        read: impl FnOnce(&mut Blocks) -> Result<Index, E>,
        waiting: impl FnOnce(Index) -> I,
    ) -> Result<Index, E> {
        let before = (self.blocks.len(), self.waiting.len());
        let end = read(&mut self.blocks).inspect_err(|_| self.blocks.truncate(before.0))?;
        self.waiting.extend(waiting(end));
        let bytes = self.blocks.bytes_of(before.0..self.blocks.len());
        self.bytes += bytes;
        self.groups.push(Committed {
            slot,
            group,
            first,
            end,
            blocks: self.blocks.len() - before.0,
            waiting: self.waiting.len() - before.1,
            bytes,
            fault: None,
        });
        Ok(end)
    }

    /// Makes the batch ready to be filled again.
    pub(crate) fn clear(&mut self) {
        self.groups.clear();
        self.groups.shrink_to(KEPT_GROUPS);
        self.blocks.clear();
        self.waiting.clear();
        self.waiting.shrink_to(KEPT_GROUPS);
        self.bytes = 0;
    }
}

/// A caller of this leader that waits for the entry at `index`, appended in `term`.
#[derive(Debug)]
pub(crate) struct WaitingReply {
    pub(crate) index: Index,
    pub(crate) term: Term,
    /// What its payload counts towards the group's bound.
    pub(crate) bytes: usize,
    pub(crate) reply: ReplyTo,
}

/// Bytes handed to workers and not applied yet. Proposals are refused while it is over its bound.
#[derive(Debug, Default)]
pub(crate) struct ApplyBacklog(AtomicUsize);

impl ApplyBacklog {
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The state machines of the groups that one worker serves.
pub(crate) struct Applier<M> {
    machines: GroupTable<Machine<M>>,
    /// Those of replicas that ended while a keeper had them.
    leaving: Vec<(GroupId, Life, Option<u32>)>,
    machines_dir: PathBuf,
    inboxes: Arc<[Sender<ShardEvent>]>,
    keepers: Arc<[Sender<Job>]>,
    backlog: Arc<ApplyBacklog>,
    clock: Clock,
    /// Empty between batches: only its memory is kept.
    entries: Vec<Entry<'static>>,
    replies: Replies,
    /// Of the groups that ever had one.
    sessions: FxHashMap<GroupId, Option<Box<Table>>>,
    /// Of those groups whose id was used before.
    lives: FxHashMap<GroupId, Life>,
    /// Groups without a state machine here.
    witnesses: FxHashSet<GroupId>,
    /// State machines that may have the effect of entries which are handed out again, for the sessions.
    held: FxHashMap<GroupId, Index>,
    /// Groups that take nothing any more, because they are to be merged.
    frozen: FxHashMap<GroupId, Frozen>,
    /// Why replicas were taken out of service whose state machines keepers have.
    quarantined: FxHashMap<GroupId, String>,
    /// Empty between groups.
    dedup: Deduplication,
}

enum Machine<M> {
    Running(M),
    /// A keeper has it.
    Lent(Life),
    Stopped(String),
}

impl<M: StateMachine> Applier<M> {
    pub(crate) fn new(
        data_dir: &Path,
        inboxes: Arc<[Sender<ShardEvent>]>,
        keepers: Arc<[Sender<Job>]>,
        backlog: Arc<ApplyBacklog>,
        clock: Clock,
    ) -> Self {
        Applier {
            machines: GroupTable::default(),
            leaving: Vec::new(),
            machines_dir: data_dir.join(MACHINES),
            inboxes,
            keepers,
            backlog,
            clock,
            entries: Vec::new(),
            replies: Replies::default(),
            sessions: FxHashMap::default(),
            lives: FxHashMap::default(),
            witnesses: FxHashSet::default(),
            held: FxHashMap::default(),
            frozen: FxHashMap::default(),
            quarantined: FxHashMap::default(),
            dedup: Deduplication::default(),
        }
    }

    /// Does one task; everything it has to say goes to a shard's inbox or to the caller.
    pub(crate) fn perform(&mut self, task: Task) {
        match task {
            Task::Open { group, life } => self.open(group, life),
            Task::Witness { group, life } => self.open_witness(group, life),
            Task::Apply(work) => self.apply(work),
            Task::Query(query) => self.answer_query(query),
            Task::Queries(queries) => {
                let together = Together::begin();
                let bytes = queries.iter().map(Query::bytes).sum();
                for query in queries {
                    together.wake_late();
                    self.answer_query(query);
                }
                self.backlog.0.fetch_sub(bytes, Ordering::Relaxed);
            }
            Task::SplitOff {
                at,
                term,
                entry,
                campaigns,
            } => self.split_off(at, term, &entry, campaigns),
            Task::GiveState {
                group,
                life,
                frozen,
            } => self.give_state(group, life, frozen),
            Task::Freeze { meta } => self.freeze(meta),
            Task::Restore { file, held } => self.lend(file, held),
            Task::TakeBack {
                group,
                life,
                machine,
                held,
            } => self.take_back((group, life), machine, held),
            Task::Quarantine { group, reason } => self.quarantine(group, reason),
            Task::Destroy { group, life, slot } => self.destroy(group, life, slot),
            Task::Rest(on_idle) => on_idle(),
            Task::Stop => {}
        }
    }

    fn keeper_of(&self, group: GroupId) -> &Sender<Job> {
        &self.keepers[polyraft_raft::shard_of(group, self.keepers.len())]
    }

    fn freeze(&mut self, meta: SnapshotMeta) {
        let group = meta.group;
        let frozen = match self.machines.get(group) {
            Some(Machine::Running(machine)) => {
                guarded(|| machine.snapshot().map_err(|error| error.to_string()))
            }
            Some(Machine::Stopped(reason)) => Err(reason.clone()),
            Some(Machine::Lent(_)) | None => Err("the state machine is being replaced".to_owned()),
        };
        match frozen {
            Ok(state) => {
                let sessions = self.sessions.get(&group).and_then(Option::as_deref);
                let state = sessions::with_section(sessions::section(sessions), state);
                let state = Contained::new(state);
                self.keeper_of(group).send(Job::Save { meta, state });
            }
            Err(reason) => self.tell(
                self.shard_of(group),
                ShardEvent::Saved {
                    group,
                    life: meta.life().unwrap_or_default(),
                    result: Err(reason),
                },
            ),
        }
    }

    /// A replica was taken out of service, for whatever reason: nobody may be shown its state any more.
    fn quarantine(&mut self, group: GroupId, reason: String) {
        match self.machines.get(group) {
            Some(Machine::Running(_)) => self.stop(group, &reason),
            Some(Machine::Lent(_)) => {
                self.quarantined.insert(group, reason);
            }
            Some(Machine::Stopped(_)) | None => {}
        }
    }

    /// A state machine has failed.
    fn stop(&mut self, group: GroupId, reason: &str) {
        let stopped = self
            .machines
            .insert(group, Machine::Stopped(reason.to_owned()));
        // Its own clean-up may panic too.
        let _ = guarded(|| {
            drop(stopped);
            Ok(())
        });
    }

    fn lend(&mut self, file: SnapshotFile, held: Index) {
        let group = file.meta.group;
        let life = file.meta.life().unwrap_or_default();
        match self.machines.insert(group, Machine::Lent(life)) {
            Some(Machine::Running(machine)) => {
                let machine: Box<dyn Any + Send> = Box::new(machine);
                let machine = Contained::new(machine);
                let job = Job::Restore {
                    file,
                    machine,
                    held,
                };
                self.keeper_of(group).send(job);
            }
            other => {
                let reason = match other {
                    Some(Machine::Stopped(reason)) => reason,
                    _ => "there is no state machine to restore".to_owned(),
                };
                self.machines
                    .insert(group, Machine::Stopped(reason.clone()));
                let event = ShardEvent::Restored {
                    group,
                    life,
                    result: Err(Unheld::Other(reason)),
                };
                self.tell(self.shard_of(group), event);
            }
        }
    }

    fn take_back(
        &mut self,
        (group, life): (GroupId, Life),
        machine: Result<Returned, String>,
        held: Index,
    ) {
        let (machine, sessions) = match machine {
            Ok(Returned { machine, sessions }) => {
                let machine = machine.downcast::<M>();
                let machine = *machine.expect("a node's state machines are of one type");
                (Machine::Running(machine), sessions)
            }
            Err(reason) => (Machine::Stopped(reason), None),
        };
        if matches!(self.machines.get(group), Some(Machine::Lent(lent)) if *lent == life) {
            self.machines.insert(group, machine);
            if let Some(reason) = self.quarantined.remove(&group) {
                return self.stop(group, &reason);
            }
            self.sessions.remove(&group);
            self.held.remove(&group);
            if sessions.is_some() {
                self.sessions.insert(group, sessions);
            }
            self.note_merges(group, true);
            if held > Index::ZERO {
                self.held.insert(group, held);
            }
            return;
        }
        // Its replica ended meanwhile.
        drop_guarded(machine);
        let mut leaving = self.leaving.iter();
        let at = leaving.position(|leaving| (leaving.0, leaving.1) == (group, life));
        let (_, _, slot) = self
            .leaving
            .swap_remove(at.expect("what is lent comes back once"));
        self.remove_kept(group, life, slot);
    }

    /// Drops the state machine of a replica that ended and removes what it kept.
    fn destroy(&mut self, group: GroupId, life: Life, slot: Option<u32>) {
        self.forget_sessions(group);
        self.lives.remove(&group);
        self.witnesses.remove(&group);
        self.quarantined.remove(&group);
        match self.machines.remove(group) {
            // A keeper is using it. The rest is done when it comes back.
            Some(Machine::Lent(_)) => return self.leaving.push((group, life, slot)),
            Some(machine) => drop_guarded(machine),
            None => {}
        }
        self.remove_kept(group, life, slot);
    }

    /// What is known of an earlier life or an earlier state must not count.
    fn forget_sessions(&mut self, group: GroupId) {
        self.sessions.remove(&group);
        self.held.remove(&group);
        self.frozen.remove(&group);
    }

    fn remove_kept(&self, group: GroupId, life: Life, slot: Option<u32>) {
        let dir = self.machines_dir.join(name_of(group, life));
        remove_kept::<M>(group, &dir);
        // The keeper tells the shard: what it still has to do for this replica comes before.
        self.keeper_of(group).send(Job::End { group, life, slot });
    }

    fn tell(&self, shard: usize, event: ShardEvent) {
        self.inboxes[shard].send(event);
    }

    fn shard_of(&self, group: GroupId) -> usize {
        polyraft_raft::shard_of(group, self.inboxes.len())
    }

    /// There is nothing to open.
    fn open_witness(&mut self, group: GroupId, life: Life) {
        self.witnesses.insert(group);
        let event = ShardEvent::Opened {
            group,
            life,
            applied: Ok(Index::ZERO),
        };
        self.tell(self.shard_of(group), event);
    }

    fn apply(&mut self, mut batch: ApplyBatch) {
        let begun = self.clock.now();
        let together = Together::begin();
        let mut waiting = batch.waiting.drain(..);
        let mut next = 0;
        let mut entries = reuse(std::mem::take(&mut self.entries));
        for at in 0..batch.groups.len() {
            if let Some(later) = batch.groups.get(at + PREFETCH_AHEAD) {
                self.machines.prefetch(later.group);
            }
            let committed = &mut batch.groups[at];
            together.wake_late();
            entries.clear();
            if let Err(error) = batch.blocks.check(next..next + committed.blocks) {
                next += committed.blocks;
                let reason = error.to_string();
                refuse(waiting.by_ref().take(committed.waiting), &reason);
                // Nothing behind it may be applied.
                self.stop(committed.group, &reason);
                committed.fault = Some(Fault::Unreadable(error));
                continue;
            }
            let held = self.held_within(committed);
            let (mut is_hollow, mut split, mut merge) = (false, None, None);
            let frozen = self.frozen_into(committed.group);
            let frozen = frozen.filter(|_| !mutants::is_active(Mutant::FrozenGoesOn));
            for block in next..next + committed.blocks {
                match batch.blocks.kind(block) {
                    EntryKind::Normal | EntryKind::Session if frozen.is_some() => {}
                    EntryKind::Normal => {
                        put_entries(&batch.blocks, block, committed, held, &mut entries);
                    }
                    EntryKind::Session => {
                        self.put_sessions(&batch.blocks, block, committed, held, &mut entries);
                    }
                    EntryKind::Split => split = Some(block),
                    EntryKind::Merge => merge = Some(block),
                    EntryKind::Noop | EntryKind::Configuration => {}
                    EntryKind::Hollow => is_hollow = true,
                }
            }
            next += committed.blocks;
            let waiting = waiting.by_ref().take(committed.waiting);
            let applied = match (split, merge) {
                _ if is_hollow => {
                    self.dedup.clear();
                    waiting.for_each(drop);
                    let reason = "its log lacks payloads, and it is no witness".to_owned();
                    self.stop(committed.group, &reason);
                    Err(reason)
                }
                (Some(split), _) => self.shed(committed, batch.blocks.get(split), held, waiting),
                (_, Some(merge)) => {
                    self.merge_step(committed, batch.blocks.get(merge), held, waiting)
                }
                (None, None) => match frozen {
                    Some(into) => self.refuse_frozen(into, waiting),
                    None => self.apply_group(committed, &entries, waiting),
                },
            };
            committed.fault = applied.err().map(Fault::Machine);
        }
        self.entries = reuse(entries);
        drop(waiting);
        batch.took = self.clock.now().since(begun);
        self.backlog.0.fetch_sub(batch.bytes, Ordering::Relaxed);
        self.tell(batch.shard, ShardEvent::Applied(batch));
    }

    /// The last entry of the work whose effect the state machine has already; that of an earlier one if there is none.
    fn held_within(&mut self, work: &Committed) -> Index {
        if self.held.is_empty() {
            return Index::ZERO;
        }
        match self.held.get(&work.group) {
            Some(held) if work.first <= *held => *held,
            Some(_) => {
                self.held.remove(&work.group);
                Index::ZERO
            }
            None => Index::ZERO,
        }
    }

    /// Adds the commands of a block of sessions that are not applied yet.
    fn put_sessions<'a>(
        &mut self,
        blocks: &'a Blocks,
        at: usize,
        work: &Committed,
        held: Index,
        into: &mut Vec<Entry<'a>>,
    ) {
        let (block, memory) = (blocks.get(at), blocks.memory(at));
        let term = block.term();
        let opener = Opener::new(work.group, self.life(work.group));
        let table = self.sessions.entry(work.group).or_default();
        for (index, entry) in block.entries() {
            if index < work.first || work.end <= index {
                continue;
            }
            let place = Position { index, term };
            let payload =
                self.dedup
                    .decide((opener, table), place, entry, into.len(), index <= held);
            if let Payload::Apply(payload) = payload {
                into.push(Entry::within(index, term, payload, memory));
            }
        }
    }

    /// Applies one group's entries and answers its callers; on failure says why its state machine has stopped.
    fn apply_group(
        &mut self,
        work: &Committed,
        entries: &[Entry<'_>],
        waiting: impl Iterator<Item = WaitingReply>,
    ) -> Result<(), String> {
        self.replies.clear();
        let applied = match self.machines.get_mut(work.group) {
            Some(Machine::Running(machine)) => run(machine, entries, &mut self.replies),
            Some(Machine::Stopped(reason)) => Err(reason.clone()),
            Some(Machine::Lent(_)) | None => {
                unreachable!("a group is applied only while its state machine is open")
            }
        };
        match &applied {
            Ok(()) if self.dedup.is_empty() => answer(waiting, entries, &mut self.replies),
            Ok(()) => {
                let replies: Vec<Bytes> = self.replies.drain().collect();
                let table = self.sessions.get_mut(&work.group);
                let table = table.and_then(Option::as_deref_mut);
                let outcomes = self.dedup.settle(table, &replies);
                answer_sessions(waiting, entries, &replies, &outcomes);
            }
            Err(reason) => {
                refuse(waiting, reason);
                self.dedup.clear();
                self.stop(work.group, reason);
            }
        }
        applied
    }

    fn answer_query(&self, query: Query) {
        let index = query.index;
        let answer = self.query(query.group, &query.query);
        let outcome = answer.map(|reply| completion::Committed { index, reply });
        query.reply.answer(outcome);
    }

    fn query(&self, group: GroupId, query: &[u8]) -> Result<Bytes, Error> {
        self.may_answer(group)?;
        match self.machines.get(group) {
            Some(Machine::Running(machine)) => {
                guarded(|| machine.query(query).map_err(|error| error.to_string()))
                    .map_err(Error::Query)
            }
            Some(Machine::Stopped(reason)) => Err(Error::Fault {
                reason: reason.clone(),
            }),
            Some(Machine::Lent(_)) => match self.quarantined.get(&group).cloned() {
                Some(reason) => Err(Error::Fault { reason }),
                None => Err(Error::Restoring { group }),
            },
            None if self.witnesses.contains(&group) => Err(Error::Witness { hint: None }),
            None => Err(Error::NoSuchGroup { group }),
        }
    }
}

/// Adds the commands of a block, as far as they belong to the work and are behind `held`.
fn put_entries<'a>(
    blocks: &'a Blocks,
    at: usize,
    work: &Committed,
    held: Index,
    into: &mut Vec<Entry<'a>>,
) {
    let block = blocks.get(at);
    let (term, memory) = (block.term(), blocks.memory(at));
    let first = work.first.max(held.next());
    let is_whole = first <= block.first() && block.end() <= work.end;
    let entries = block
        .entries()
        .filter(|(index, _)| is_whole || first <= *index && *index < work.end);
    into.extend(entries.map(|(index, payload)| Entry::within(index, term, payload, memory)));
}

/// The memory of a list, for entries that live elsewhere. The standard library collects in place when sizes agree.
fn reuse<'b>(mut entries: Vec<Entry<'_>>) -> Vec<Entry<'b>> {
    entries.clear();
    entries
        .into_iter()
        .map(|_| unreachable!("it was cleared"))
        .collect()
}

/// Has the state machine apply entries and checks that it replied to each.
fn run<M: StateMachine>(
    machine: &mut M,
    entries: &[Entry<'_>],
    replies: &mut Replies,
) -> Result<(), String> {
    if entries.is_empty() {
        return Ok(());
    }
    guarded(|| {
        machine
            .apply(entries, replies)
            .map_err(|error| error.to_string())
    })?;
    if replies.len() == entries.len() {
        return Ok(());
    }
    Err(format!(
        "the state machine gave {} replies to {} entries",
        replies.len(),
        entries.len()
    ))
}

/// Gives each waiting caller the reply to its entry.
///
/// An entry of another term at the awaited index means that a later leader's entry took the place: the proposal is
/// then in no log that counts, and never will be.
fn answer(
    waiting: impl Iterator<Item = WaitingReply>,
    entries: &[Entry<'_>],
    replies: &mut Replies,
) {
    let mut waiting = waiting.peekable();
    if waiting.peek().is_none() {
        return;
    }
    let mut applied = entries.iter().zip(replies.drain()).peekable();
    for WaitingReply {
        index, term, reply, ..
    } in waiting
    {
        while applied.next_if(|(entry, _)| entry.index < index).is_some() {}
        match applied.next_if(|(entry, _)| entry.index == index && entry.term == term) {
            Some((_, bytes)) => reply.answer(Ok(completion::Committed {
                index,
                reply: bytes,
            })),
            None => reply.answer(Err(Error::NotLeader { hint: None })),
        }
    }
}

/// The same where entries of sessions are among them, whose outcomes are known by their places.
fn answer_sessions(
    waiting: impl Iterator<Item = WaitingReply>,
    entries: &[Entry<'_>],
    replies: &[Bytes],
    outcomes: &[(Position, Outcome)],
) {
    for WaitingReply {
        index, term, reply, ..
    } in waiting
    {
        let place = Position { index, term };
        let of_session = outcomes.binary_search_by_key(&index, |(place, _)| place.index);
        let plain = entries.binary_search_by_key(&index, |entry| entry.index);
        let outcome = match (of_session, plain) {
            (Ok(at), _) if outcomes[at].0 == place => outcomes[at].1.clone(),
            (Err(_), Ok(at)) if entries[at].term == term => Ok(completion::Committed {
                index,
                reply: replies[at].clone(),
            }),
            _ => Err(Error::NotLeader { hint: None }),
        };
        reply.answer(outcome);
    }
}

/// Answers those who wait for an entry that is applied alone. Whoever proposed another one in its place hears that it lost.
fn answer_alone(
    waiting: impl Iterator<Item = WaitingReply>,
    entry: (Index, Term),
    outcome: &Outcome,
) {
    for waiting in waiting {
        waiting
            .reply
            .answer(match (waiting.index, waiting.term) == entry {
                true => outcome.clone(),
                false => Err(Error::NotLeader { hint: None }),
            });
    }
}

/// The entries are committed, but their replies are lost with the state machine.
fn refuse(waiting: impl Iterator<Item = WaitingReply>, reason: &str) {
    for WaitingReply { reply, .. } in waiting {
        reply.answer(Err(Error::Fault {
            reason: reason.to_owned(),
        }));
    }
}

/// Drops a state machine. Its own clean-up may panic.
fn drop_guarded<T>(machine: T) {
    let dropped = guarded(|| {
        drop(machine);
        Ok(())
    });
    if let Err(why) = dropped {
        tracing::error!(%why, "a state machine was not dropped cleanly");
    }
}

/// Has a state machine's type remove what one of them kept in a directory. What stays is tried again at the next opening.
fn remove_kept<M: StateMachine>(group: GroupId, dir: &Path) {
    if let Err(why) = guarded(|| M::destroy(group, dir).map_err(|error| error.to_string())) {
        tracing::error!(%group, %why, "the state of a group that ended is not removed");
    }
}

/// Removes what state machines kept in lives of their groups that have ended, and a crash left.
pub(crate) fn remove_leftovers<M: StateMachine>(
    data_dir: &Path,
    is_over: impl Fn(GroupId, Life) -> bool,
) {
    let Ok(entries) = std::fs::read_dir(data_dir.join(MACHINES)) else {
        return; // No state machine has kept anything yet.
    };
    for entry in entries.flatten() {
        let named = entry.file_name().to_str().and_then(parse_name_of);
        if let Some((group, life)) = named
            && is_over(group, life)
        {
            remove_kept::<M>(group, &entry.path());
        }
    }
}

/// Runs user code; a panic becomes an error of this group alone.
pub(crate) fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(format!("the state machine panicked: {text}"))
    })
}

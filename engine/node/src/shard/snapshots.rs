//! Snapshots of a shard's groups: when one is due, what follows from a finished one, and replicas that come back from one.
//! It must never purge the log before the snapshot that stands for it is durable, and never wait for a file.

use std::collections::VecDeque;

use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{Apply, Event, GroupId, HardState, Index, Life, LogPosition};
use polyraft_storage::{RecoveredGroup, ShardLog, SnapshotFile, SnapshotMeta, StorageError};
use rustc_hash::FxHashMap;

use super::{Payloads, Shard};
use crate::apply::{Held, Task, Unheld};
use crate::error::Error;
use crate::event::SnapshotReply;
use crate::keeper::Job;

/// The most entries of which a witness keeps the places.
const WITNESS_ENTRIES: u64 = 4096;

/// When groups are snapshotted by themselves, and what of their log stays.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SnapshotPolicy {
    /// Entries since the last one; 0: does not matter.
    pub(crate) entries: u64,
    /// Bytes of log since the last one; 0: does not matter.
    pub(crate) bytes: u64,
    /// Entries before a snapshot that the log keeps.
    pub(crate) keep_entries: u64,
    /// Snapshots of one shard that are taken at the same time.
    pub(crate) running: usize,
}

impl SnapshotPolicy {
    /// Entries behind which a witness, which has no state to save, forgets the front of its log.
    pub(super) fn witness_entries(&self) -> u64 {
        match self.entries {
            0 => WITNESS_ENTRIES,
            entries => entries.min(WITNESS_ENTRIES),
        }
    }

    fn is_automatic(&self) -> bool {
        self.entries > 0 || self.bytes > 0
    }

    fn is_due(&self, entries: u64, bytes: u64) -> bool {
        self.entries > 0 && entries >= self.entries || self.bytes > 0 && bytes >= self.bytes
    }
}

/// The snapshots of a shard's groups.
#[derive(Debug)]
pub(super) struct Snapshots {
    pub(super) policy: SnapshotPolicy,
    /// The newest durable one of each group that has one.
    files: FxHashMap<GroupId, SnapshotFile>,
    /// Replicas that want one, in the order in which they began to.
    due: VecDeque<u32>,
    /// Who waits, for each replica that wants one or of which one is being taken.
    wanted: FxHashMap<u32, Vec<SnapshotReply>>,
    /// How many are being taken.
    running: usize,
    /// What replicas have to apply once their state machine is restored: from the first index to before the second.
    held: FxHashMap<u32, (Index, Index)>,
}

impl Snapshots {
    pub(super) fn new(policy: SnapshotPolicy, files: Vec<SnapshotFile>) -> Self {
        let by_group = |file: SnapshotFile| (file.meta.group, file);
        Snapshots {
            policy,
            files: files.into_iter().map(by_group).collect(),
            due: VecDeque::new(),
            wanted: FxHashMap::default(),
            running: 0,
            held: FxHashMap::default(),
        }
    }

    /// Takes note of a durable snapshot, unless there is a newer one.
    pub(super) fn keep_newest(&mut self, file: &SnapshotFile) {
        let index = file.meta.last.index;
        let known = self.files.get(&file.meta.group);
        if known.is_none_or(|known| known.meta.last.index <= index) {
            self.files.insert(file.meta.group, file.clone());
        }
    }

    /// The newest snapshot of a group is of no use.
    pub(super) fn forget(&mut self, group: GroupId) {
        self.files.remove(&group);
    }

    /// Keeps what a replica has to apply until its state machine is back.
    pub(super) fn hold(&mut self, slot: u32, apply: &Apply) {
        let (_, end) = self.held.entry(slot).or_insert((apply.first, apply.first));
        assert_eq!(*end, apply.first, "entries are handed out in order");
        *end = apply.end;
    }

    /// What was kept so.
    pub(super) fn take_held(&mut self, slot: u32) -> Option<(Index, Index)> {
        self.held.remove(&slot)
    }

    /// The newest durable snapshot of a group.
    pub(super) fn file(&self, group: GroupId) -> Option<&SnapshotFile> {
        self.files.get(&group)
    }

    /// Completes what a crash interrupted: a snapshot that was installed, and the log that should begin behind it. Those of
    /// groups that the log does not have are of no use; they are returned.
    pub(super) fn complete(
        &mut self,
        log: &mut ShardLog,
    ) -> Result<Vec<(GroupId, Life)>, StorageError> {
        let is_unknown = |group: &GroupId, file: &mut SnapshotFile| {
            let life = log.life(*group);
            // An earlier replica of the same life may have left one to a witness.
            life.is_none() || life != file.meta.life() || log.is_witness(*group)
        };
        let unknown = self.files.extract_if(is_unknown);
        let unknown = unknown
            .map(|(group, file)| (group, file.meta.life().unwrap_or(Life::LAST)))
            .collect();
        for found in log.groups().collect::<Vec<_>>() {
            let Some(file) = self.files.get(&found.group) else {
                continue;
            };
            let last = file.meta.last;
            if found.fault.is_some() || found.holds(last) {
                continue;
            }
            if found.hard_state.term < last.term {
                // Whatever it promised in a term is durable, so it promised nothing in this one.
                let state = HardState {
                    term: last.term,
                    vote: None,
                    ..found.hard_state
                };
                log.hard_state(found.group, state)?;
            }
            log.reset(found.group, last, &file.meta.configuration)?;
        }
        Ok(unknown)
    }

    /// The snapshot from which a state machine at `applied` has to start.
    pub(super) fn needed_by(
        &self,
        found: &RecoveredGroup,
        applied: Index,
    ) -> Option<&SnapshotFile> {
        let file = self.files.get(&found.group)?;
        let index = file.meta.last.index;
        let is_behind = applied < found.base.index || applied == Index::ZERO;
        (is_behind && found.fault.is_none() && index > applied && index >= found.base.index)
            .then_some(file)
    }

    /// Answers everybody who waits.
    pub(super) fn fail_all(&mut self, error: &Error) {
        self.due.clear();
        let mut wanted: Vec<_> = self.wanted.drain().collect();
        wanted.sort_unstable_by_key(|(slot, _)| *slot);
        for reply in wanted.into_iter().flat_map(|(_, replies)| replies) {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

impl Shard {
    /// State machines have come further: a snapshot may be due.
    pub(super) fn count_applied(&mut self, slot: u32, through: Index, bytes: usize) {
        if !self.snapshots.policy.is_automatic() {
            return;
        }
        let replica = &mut self.replicas[slot as usize];
        replica.unsaved_bytes += bytes as u64;
        let entries = through.0.saturating_sub(replica.saved.0);
        if self.snapshots.policy.is_due(entries, replica.unsaved_bytes) {
            self.want_snapshot(slot, None);
        }
    }

    /// Somebody asks for a snapshot of a group.
    pub(super) fn snapshot_requested(&mut self, group: GroupId, reply: SnapshotReply) {
        match self.slot(group) {
            Some(slot) if self.replicas[slot as usize].group.is_witness() => {
                let why = "a witness has no state".to_owned();
                let _ = reply.send(Err(Error::Snapshot { why }));
            }
            Some(slot) => self.want_snapshot(slot, Some(reply)),
            None => _ = reply.send(Err(self.absent(group))),
        }
    }

    pub(super) fn want_snapshot(&mut self, slot: u32, reply: Option<SnapshotReply>) {
        let snapshots = &mut self.snapshots;
        let waiting = snapshots.wanted.entry(slot).or_insert_with(|| {
            snapshots.due.push_back(slot);
            Vec::new()
        });
        waiting.extend(reply);
    }

    /// Begins snapshots that are due. Comes after everything that was handed out in this turn is on its way to the workers:
    /// what a worker freezes is then the state at that place.
    pub(super) fn begin_snapshots(&mut self) {
        while self.snapshots.running < self.snapshots.policy.running
            && let Some(slot) = self.snapshots.due.pop_front()
        {
            let replica = &self.replicas[slot as usize];
            let (group, index) = (replica.group.id(), replica.group.handed_out());
            if let Some(error) = replica.refusal() {
                self.answer_snapshot(slot, Err(error));
                continue;
            }
            if replica.is_held {
                continue; // It waits for that.
            }
            if self.unborn_child_of(group).is_some_and(|at| at <= index) {
                // Whoever gets it instead of the log would not make its part of the child.
                self.postpone_snapshot(slot);
                continue;
            }
            let waiting = self.snapshots.wanted.get(&slot);
            if waiting.is_some_and(Vec::is_empty) && self.is_sending(group) {
                // A newer one would make the one on its way useless. The next entries ask again.
                self.snapshots.wanted.remove(&slot);
                continue;
            }
            let replica = &mut self.replicas[slot as usize];
            (replica.saved, replica.unsaved_bytes) = (index, 0);
            let known = self.snapshots.files.get(&group).map(|file| file.meta.last);
            if let Some(known) = known.filter(|known| known.index >= index) {
                self.answer_snapshot(slot, Ok(known));
                continue;
            }
            let Some(term) = replica.group.term_at(index).filter(|_| index > Index::ZERO) else {
                self.answer_snapshot(slot, Ok(LogPosition::ZERO));
                continue;
            };
            let meta = SnapshotMeta {
                group,
                incarnation: self.marks[slot as usize].life.get().into(),
                last: LogPosition { term, index },
                configuration: replica.group.applied_configuration().clone(),
            };
            self.snapshots.running += 1;
            self.shared.worker_of(group).send(Task::Freeze { meta });
            if mutants::is_active(Mutant::PurgedBeforeSnapshot) {
                self.purge(slot, replica_applied(&self.replicas[slot as usize]));
            }
        }
    }

    pub(super) fn answer_snapshot(&mut self, slot: u32, outcome: Result<LogPosition, Error>) {
        for reply in self.snapshots.wanted.remove(&slot).into_iter().flatten() {
            let _ = reply.send(outcome.clone());
        }
    }

    /// A snapshot is durable, or could not be taken.
    pub(super) fn saved(
        &mut self,
        group: GroupId,
        life: Life,
        result: Result<SnapshotFile, String>,
    ) {
        self.snapshots.running -= 1;
        let slot = self.slot(group).filter(|_| self.is_current(group, life));
        let Some(slot) = slot else { return };
        match result {
            Ok(file) => {
                let last = file.meta.last;
                self.counters().snapshots.add(1);
                self.snapshots.keep_newest(&file);
                self.answer_snapshot(slot, Ok(last));
                self.purge_behind_snapshot(slot, last);
                // Another one may have become due meanwhile, and nothing more may come that would ask.
                let applied = self.replicas[slot as usize].group.applied();
                self.count_applied(slot, applied, 0);
            }
            Err(why) => {
                // The log is all there, so nothing is lost. The next one is due after as much work again.
                tracing::error!(node = %self.shared.node, %group, %why, "no snapshot was taken");
                self.counters().failed_snapshots.add(1);
                self.answer_snapshot(slot, Err(Error::Snapshot { why }));
            }
        }
    }

    /// A replica has ended: whoever waits for a snapshot of it is told.
    pub(super) fn end_snapshots_of(&mut self, slot: u32, error: &Error) {
        self.snapshots.due.retain(|due| *due != slot);
        if self.snapshots.wanted.contains_key(&slot) {
            self.answer_snapshot(slot, Err(error.clone()));
        }
        self.snapshots.held.remove(&slot);
    }

    /// Forgets the log behind a durable snapshot, except for a tail that spares slow followers a transfer.
    fn purge_behind_snapshot(&mut self, slot: u32, last: LogPosition) {
        let kept = self.snapshots.policy.keep_entries;
        let replica = &self.replicas[slot as usize];
        let mut through = Index(last.index.0.saturating_sub(kept)).min(replica.group.applied());
        if mutants::is_active(Mutant::PurgedBeforeApplied) {
            through = replica.group.handed_out();
        }
        self.purge(slot, through);
    }

    pub(super) fn purge(&mut self, slot: u32, through: Index) {
        let group = self.marks[slot as usize].group;
        let unborn = self.unborn_child_of(group);
        let through = unborn.map_or(through, |at| through.min(at.prev()));
        let replica = &self.replicas[slot as usize];
        if through <= replica.group.base().index || replica.fault.is_some() {
            return;
        }
        let term = replica.group.term_at(through);
        let term = term.expect("what is applied and not purged is in the log");
        let position = LogPosition {
            term,
            index: through,
        };
        if let Err(error) = self.log.purge(group, position) {
            return self.quarantine(slot, format!("the log does not take a record: {error}"));
        }
        self.step(slot, Event::Purged { through }, Payloads::None);
    }

    /// A state machine has the state of a snapshot, or could not take it.
    pub(super) fn restored(&mut self, group: GroupId, result: Result<Held, Unheld>) {
        if result.as_ref().map_or(true, |held| held.is_restored) {
            self.counters().restores.add(1);
        }
        let Some(slot) = self.slot(group) else {
            return self.open_replica(group, result);
        };
        match result {
            Ok(_) => self.release(slot),
            Err(why) => {
                self.snapshots.held.remove(&slot);
                self.release(slot);
                if let Unheld::Snapshot(_) = why {
                    self.note_lost(slot);
                }
                self.quarantine(slot, why.reason());
            }
        }
    }

    /// A replica may be snapshotted again that could not be for a while.
    pub(super) fn want_again(&mut self, slot: u32) {
        let snapshots = &mut self.snapshots;
        if snapshots.wanted.contains_key(&slot) && !snapshots.due.contains(&slot) {
            snapshots.due.push_back(slot);
        }
    }

    /// Has the snapshots of groups removed that are not here.
    pub(super) fn remove_snapshots(&mut self, groups: Vec<(GroupId, Life)>) {
        for (group, life) in groups {
            let job = Job::Remove { group, life };
            self.shared.keeper_of(group).send(job);
        }
    }
}

fn replica_applied(replica: &super::replica::Replica) -> Index {
    replica.group.applied()
}

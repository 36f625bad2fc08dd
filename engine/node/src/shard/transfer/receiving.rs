//! The follower's side of a snapshot's way: asking for its parts, and taking it in place of the log once all of it is durable.
//! It must never show the core or the state machine a snapshot whose bytes were not held against their checksum.

use std::sync::atomic::AtomicUsize;

use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{Event, GroupId, Index, NodeId, Term, Tick};
use polyraft_storage::{SnapshotError, SnapshotFile};

use super::super::{Payloads, Shard};
use super::{PART_PATIENCE, PLACE_PATIENCE, Place, WINDOW};
use crate::apply::Task;
use crate::keeper::Job;
use crate::wire::{self, Chunk, Refusal, SnapshotId};

/// Retry intervals that a group waits after its snapshot could not be taken: at first, and at most.
const SETBACK: (u64, u64) = (5, 40);

/// Retry intervals that a follower waits for a part before it asks again: at least, and at most. The leader gives its place to
/// others when it hears nothing for longer.
const PATIENCE: (u64, u64) = (1, 10);
const _: () = assert!(PATIENCE.1 < PLACE_PATIENCE);

/// A snapshot that comes.
#[derive(Debug)]
pub(super) struct Receiving {
    number: u64,
    from: NodeId,
    term: Term,
    file: SnapshotFile,
    place: Place,
    /// Bytes to ask for at once.
    chunk: u64,
    /// Bytes that are written, that came, and that were asked for: each at least the one before.
    written: u64,
    received: u64,
    asked: u64,
    heard_at: Tick,
    /// For how long to wait for a part before asking again. What was asked for may still be in a queue: asked for again too soon,
    /// it comes twice, and makes the rest wait longer.
    patience: u64,
    is_finishing: bool,
}

/// A snapshot could not be taken. Another attempt would fail too, most likely.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setback {
    until: Tick,
    pause: u64,
    why: Refusal,
}

/// Why a part of a snapshot was not written.
#[derive(Debug)]
pub(crate) enum ChunkTrouble {
    /// It is not what was sent.
    Corrupt,
    /// What the disk said.
    Disk(String),
}

impl Shard {
    fn receiving_gauge(&self) -> &AtomicUsize {
        &self.shared.transfers.receiving
    }

    /// A leader offers the snapshot of a group, of which this replica lacks the log.
    pub(in super::super) fn snapshot_offered(
        &mut self,
        from: NodeId,
        term: Term,
        file: SnapshotFile,
    ) {
        let group = file.meta.group;
        let slot = self.slot(group);
        // A snapshot of another life of the group's id says nothing about this one.
        let slot = slot.filter(|_| file.meta.life() == self.life_of(group));
        let Some(slot) = slot else { return };
        let last = file.meta.last;
        let committed = (last.term == term).then_some(last.index);
        if self.is_of_other_kind(slot, term, false, || committed) {
            return self.counters().rejected_messages.add(1);
        }
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        let id = SnapshotId::of(&file);
        if replica.fault.is_some() {
            // Its leader has a use for the place.
            return self.refuse_snapshot(from, group, id, Refusal::Busy);
        }
        // Whether the node that leads is a member this replica may not know yet.
        if term < core.term() {
            return;
        }
        let last = file.meta.last;
        if last.index <= core.committed() || core.term_at(last.index) == Some(last.term) {
            // It has all that already, and the leader does not know.
            return self.install(slot, from, term, &file);
        }
        if replica.is_held {
            return self.refuse_snapshot(from, group, id, Refusal::Busy);
        }
        let now = self.now;
        if let Some(setback) = self.transfers.setbacks.get(&group)
            && now < setback.until
        {
            return self.refuse_snapshot(from, group, id, setback.why);
        }
        // Nobody knows how long a part takes before some have come.
        let most = PATIENCE.1 * self.settings.retry_interval;
        if let Some(known) = self.transfers.receiving.get_mut(&group) {
            let is_outdated = term > known.term || from == known.from;
            if known.file == file {
                // Something got lost, perhaps with a connection: go on behind what came.
                let moves = from != known.from && is_outdated;
                if is_outdated {
                    (known.term, known.from) = (term, from);
                }
                if known.is_finishing || !is_outdated {
                    return self.refuse_snapshot(from, group, id, Refusal::Busy);
                }
                if known.place.0 && !moves && now.since(known.heard_at) < known.patience {
                    return;
                }
                known.heard_at = now;
                let (gauge, limit) = (
                    &self.shared.transfers.receiving,
                    self.transfers.limits.at_once,
                );
                if !known.place.take(gauge, limit) {
                    return self.refuse_snapshot(from, group, id, Refusal::Busy);
                }
                (known.asked, known.patience) = (known.received, most);
                if known.received > 0 {
                    self.counters().resumed_transfers.add(1);
                }
                return self.ask_for_chunks(group);
            }
            // The one that comes is outdated, if its own leader says so or has a successor.
            if known.is_finishing || !is_outdated {
                return self.refuse_snapshot(from, group, id, Refusal::Busy);
            }
            self.abandon_receiving(group);
        }
        let mut place = Place(false);
        let limits = self.transfers.limits;
        if !place.take(self.receiving_gauge(), limits.at_once) {
            return self.refuse_snapshot(from, group, id, Refusal::Busy);
        }
        let number = self.next_number();
        let begin = Job::Begin {
            group,
            number,
            needs: file.bytes,
        };
        let receiving = Receiving {
            number,
            from,
            term,
            file,
            place,
            chunk: limits.chunk,
            written: 0,
            received: 0,
            asked: 0,
            heard_at: now,
            patience: most,
            is_finishing: false,
        };
        self.transfers.receiving.insert(group, receiving);
        self.watch_transfers();
        self.shared.keeper_of(group).send(begin);
        self.ask_for_chunks(group);
    }

    fn next_number(&mut self) -> u64 {
        self.transfers.last_number += 1;
        self.transfers.last_number
    }

    fn refuse_snapshot(&mut self, to: NodeId, group: GroupId, id: SnapshotId, why: Refusal) {
        let subject = self.subject(group);
        let counters = self.shared.counters.shard(self.index);
        let frame = self
            .outgoing
            .append(to, group, wire::REFUSED_BYTES, counters);
        if let Some(frame) = frame {
            wire::put_snapshot_refused(frame, subject, id, why);
        }
    }

    /// Asks for what comes next, as far as the window goes.
    fn ask_for_chunks(&mut self, group: GroupId) {
        let subject = self.subject(group);
        let Some(receiving) = self.transfers.receiving.get_mut(&group) else {
            return;
        };
        let most = (self.outgoing.max_record_bytes(receiving.from) - wire::CHUNK_BYTES) as u64;
        let chunk = receiving.chunk.min(most);
        receiving.chunk = chunk;
        let id = SnapshotId::of(&receiving.file);
        let end = receiving.file.bytes.min(receiving.written + WINDOW * chunk);
        while receiving.asked < end {
            let counters = self.shared.counters.shard(self.index);
            let frame = self
                .outgoing
                .append(receiving.from, group, wire::FETCH_BYTES, counters);
            if let Some(frame) = frame {
                wire::put_snapshot_fetch(frame, subject, id, receiving.asked, chunk as u32);
            }
            receiving.asked += chunk;
        }
    }

    /// A part of a snapshot came.
    pub(in super::super) fn chunk_received(
        &mut self,
        from: NodeId,
        group: GroupId,
        id: SnapshotId,
        chunk: Chunk,
    ) {
        let (now, retry) = (self.now, self.settings.retry_interval);
        let Some(receiving) = self.transfers.receiving.get_mut(&group) else {
            return;
        };
        let bytes = chunk.bytes.len() as u64;
        let end = receiving.received.saturating_add(bytes);
        let fits = receiving.from == from
            && SnapshotId::of(&receiving.file) == id
            && receiving.received == chunk.offset
            && bytes <= receiving.chunk
            && end <= receiving.file.bytes.min(receiving.asked);
        if !fits {
            // Not asked for, out of order, or of a transfer that was given up. What is missing is asked for at the next offer.
            return;
        }
        if bytes < receiving.chunk && end < receiving.file.bytes {
            // The sender has a lower limit. What was asked for behind it begins at another place.
            receiving.chunk = bytes;
            receiving.asked = end;
        }
        // Slowly less than before: a whole window that comes at once says little about the next one.
        let (took, known) = (now.since(receiving.heard_at), receiving.patience);
        let patience = (2 * took).max(known - known / 8);
        receiving.patience = patience.clamp(PATIENCE.0 * retry, PATIENCE.1 * retry);
        (receiving.received, receiving.heard_at) = (end, now);
        let job = Job::Receive {
            group,
            number: receiving.number,
            chunk,
        };
        self.shared.keeper_of(group).send(job);
    }

    /// A keeper has written a part of a snapshot, or could not.
    pub(in super::super) fn chunk_written(
        &mut self,
        group: GroupId,
        number: u64,
        result: Result<u64, ChunkTrouble>,
    ) {
        let next = self.transfers.last_number + 1;
        let known = self.transfers.receiving.get_mut(&group);
        let Some(receiving) = known.filter(|receiving| receiving.number == number) else {
            return;
        };
        match result {
            Ok(through) => receiving.written = through,
            Err(ChunkTrouble::Corrupt) => {
                tracing::warn!(%group, from = %receiving.from, "a part of a snapshot came damaged, and is asked for again");
                // What came behind it is written at its place, but does not count.
                receiving.number = next;
                receiving.received = receiving.written;
                receiving.asked = receiving.written;
                self.transfers.last_number = next;
                self.counters().rejected_messages.add(1);
                return;
            }
            Err(ChunkTrouble::Disk(why)) => return self.set_back(group, Refusal::Disk, &why),
        }
        if receiving.written < receiving.file.bytes {
            return self.ask_for_chunks(group);
        }
        receiving.is_finishing = true;
        let (file, number) = (receiving.file.clone(), receiving.number);
        let job = Job::Finish { file, number };
        self.shared.keeper_of(group).send(job);
        if mutants::is_active(Mutant::InstalledBeforeDurable) {
            let (from, term, file) = (receiving.from, receiving.term, receiving.file.clone());
            if let Some(slot) = self.slot(group) {
                self.install(slot, from, term, &file);
            }
        }
    }

    /// A snapshot that came is whole, durable and has its name, or is not what was offered.
    pub(in super::super) fn snapshot_arrived(
        &mut self,
        group: GroupId,
        number: u64,
        result: Result<SnapshotFile, SnapshotError>,
    ) {
        if let Ok(file) = &result
            && file.meta.life() == self.life_of(group)
        {
            self.snapshots.keep_newest(file);
        }
        let known = self.transfers.receiving.get(&group);
        let Some(receiving) = known.filter(|receiving| receiving.number == number) else {
            return;
        };
        let (from, term) = (receiving.from, receiving.term);
        match result {
            Ok(file) => {
                self.end_receiving(group);
                self.transfers.setbacks.remove(&group);
                self.counters().snapshots_received.add(1);
                if let Some(slot) = self.slot(group) {
                    self.install(slot, from, term, &file);
                }
            }
            Err(error @ SnapshotError::Damaged { .. }) => {
                self.set_back(group, Refusal::Damaged, &error.to_string());
            }
            Err(error) => self.set_back(group, Refusal::Disk, &error.to_string()),
        }
    }

    /// Whether a snapshot of a group is about to get its name.
    pub(in super::super) fn is_finishing_snapshot(&self, group: GroupId) -> bool {
        let receiving = self.transfers.receiving.get(&group);
        receiving.is_some_and(|receiving| receiving.is_finishing)
    }

    /// As if a snapshot were about to get its name, or none were coming.
    #[cfg(test)]
    pub(in super::super) fn pretend_to_finish(
        &mut self,
        group: GroupId,
        file: Option<SnapshotFile>,
    ) {
        self.transfers.receiving.remove(&group);
        let receiving = file.map(|file| Receiving {
            number: 0,
            from: NodeId(2),
            term: Term(1),
            file,
            place: Place(false),
            chunk: 1,
            written: 0,
            received: 0,
            asked: 0,
            heard_at: self.now,
            patience: 0,
            is_finishing: true,
        });
        self.transfers
            .receiving
            .extend(receiving.map(|receiving| (group, receiving)));
    }

    /// The core takes a durable snapshot, and the state machine its state if the log could not take it there.
    pub(in super::super) fn install(
        &mut self,
        slot: u32,
        from: NodeId,
        term: Term,
        file: &SnapshotFile,
    ) {
        let (group, last) = (file.meta.group, file.meta.last);
        if self.transfers.receiving.contains_key(&group) {
            // The log has come to that place by itself.
            self.abandon_receiving(group);
        }
        let before = self.replicas[slot as usize].group.base();
        let event = Event::Installed {
            from,
            term,
            last,
            configuration: &file.meta.configuration,
        };
        self.step(slot, event, Payloads::None);
        let replica = &mut self.replicas[slot as usize];
        if replica.fault.is_some() || before == last || replica.group.base() != last {
            return;
        }
        // The log does not have what was to be applied before, and the snapshot does.
        self.outbox.applies.retain(|apply| apply.group != group);
        (replica.saved, replica.unsaved_bytes) = (last.index, 0);
        if self.splits.forget(slot) {
            // The state that comes is one without what was to be split off.
            self.snapshots.take_held(slot);
        }
        let replica = &mut self.replicas[slot as usize];
        replica.is_held = !mutants::is_active(Mutant::AppliedWhileRestored);
        let file = file.clone();
        let restore = Task::Restore {
            file,
            held: Index::ZERO,
        };
        self.shared.worker_of(group).send(restore);
    }

    /// A snapshot can't be taken. Its leader is told, and it is not taken before a pause, which grows with each attempt.
    fn set_back(&mut self, group: GroupId, why: Refusal, words: &str) {
        let Some(receiving) = self.transfers.receiving.get(&group) else {
            return;
        };
        let (from, id) = (receiving.from, SnapshotId::of(&receiving.file));
        tracing::error!(node = %self.shared.node, %group, %from, why = words, "a snapshot is not taken; it is tried again later");
        self.counters().failed_transfers.add(1);
        let retry = self.settings.retry_interval;
        let known = self.transfers.setbacks.get(&group);
        let pause = known.map_or(SETBACK.0 * retry, |known| 2 * known.pause);
        let pause = pause.min(SETBACK.1 * retry);
        let until = self.now.after(pause);
        let setback = Setback { until, pause, why };
        self.transfers.setbacks.insert(group, setback);
        self.abandon_receiving(group);
        self.refuse_snapshot(from, group, id, why);
    }

    pub(super) fn abandon_receiving(&mut self, group: GroupId) {
        self.end_receiving(group);
        self.shared.keeper_of(group).send(Job::Abandon { group });
    }

    fn end_receiving(&mut self, group: GroupId) {
        if let Some(mut receiving) = self.transfers.receiving.remove(&group) {
            receiving.place.give_back(self.receiving_gauge());
        }
    }

    /// Takes back the places of snapshots of which nothing comes, gives up those of which nothing came for long, and those
    /// that the log has overtaken.
    pub(super) fn look_after_receiving(&mut self) {
        let (now, patience) = (self.now, self.place_patience());
        let mut over = Vec::new();
        let mut receiving = std::mem::take(&mut self.transfers.receiving);
        for (group, receiving) in &mut receiving {
            let idle = now.since(receiving.heard_at);
            if receiving.is_finishing {
                continue;
            }
            if idle >= patience {
                receiving.place.give_back(self.receiving_gauge());
            }
            let core = self.slot(*group).map(|slot| &self.replicas[slot as usize]);
            let index = receiving.file.meta.last.index;
            let is_overtaken = core.is_none_or(|core| core.group.committed() >= index);
            if is_overtaken || idle >= PART_PATIENCE.max(patience) {
                over.push(*group);
            }
        }
        self.transfers.receiving = receiving;
        over.sort_unstable();
        for group in over {
            self.abandon_receiving(group);
        }
        self.transfers
            .setbacks
            .retain(|_, setback| now.since(setback.until) < PART_PATIENCE);
    }
}

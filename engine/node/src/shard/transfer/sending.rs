//! The leader's side of a snapshot's way: offering it, and sending the parts that the follower asks for.
//! It must never send a part to somebody who does not lack what it stands for, nor faster than the rate.

use std::sync::atomic::AtomicUsize;

use bytes::BytesMut;
use polyraft_raft::{GroupId, NodeId, ProgressState, SnapshotNeeded, Tick};
use polyraft_transport::Lane;

use super::super::{Shard, leads};
use super::{PART_PATIENCE, Place, WINDOW};
use crate::keeper::Job;
use crate::wire::{self, Chunk, Refusal, SnapshotId};

/// A snapshot that a follower was offered.
#[derive(Debug)]
pub(super) struct Sending {
    id: SnapshotId,
    pub(super) place: Place,
    heard_at: Tick,
    /// The follower has asked for the last part. It needs no place any more, but some time to make the snapshot durable.
    asked_all: bool,
}

/// A part of a snapshot that a follower asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) group: GroupId,
    pub(crate) by: NodeId,
    pub(crate) id: SnapshotId,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
}

impl Shard {
    fn sending_gauge(&self) -> &AtomicUsize {
        &self.shared.transfers.sending
    }

    /// Followers need more than the log holds.
    pub(in super::super) fn offer_snapshots(&mut self) {
        if self.outbox.snapshots.is_empty() {
            return;
        }
        // Whoever made its part of a child itself answers the first offer that it lacks nothing: its place is free then.
        self.look_after_sending();
        let mut needed = std::mem::take(&mut self.outbox.snapshots);
        for needed in needed.drain(..) {
            self.offer_snapshot(&needed);
        }
        self.outbox.snapshots = needed;
    }

    fn offer_snapshot(&mut self, needed: &SnapshotNeeded) {
        let SnapshotNeeded { group, to, base } = *needed;
        let Some(slot) = self.slot(group) else { return };
        if !self.lacks_log(group, to) {
            return; // Later in the turn that asked for it, the leadership went or the follower caught up.
        }
        if self.replicas[slot as usize]
            .group
            .configuration()
            .is_witness(to)
        {
            return self.send_place(slot, to);
        }
        let file = self.snapshots.file(group);
        let Some(file) = file.filter(|file| file.meta.last.index >= base.index) else {
            // Damaged, or removed by hand.
            return self.want_snapshot(slot, None);
        };
        let (file, id) = (file.clone(), SnapshotId::of(file));
        let (now, retry) = (self.now, self.settings.retry_interval);
        let fresh = Sending {
            id,
            place: Place(false),
            heard_at: now,
            asked_all: false,
        };
        let known = self.transfers.sending.get_mut(&(group, to));
        if let Some(known) = known
            && known.id == id
            && (known.place.0 || known.asked_all)
            && now.since(known.heard_at) < retry
        {
            return; // It is under way: the follower asks for what it lacks.
        }
        let sending = self.transfers.sending.entry((group, to)).or_insert(fresh);
        if sending.id != id {
            (sending.id, sending.heard_at, sending.asked_all) = (id, now, false);
        }
        let (gauge, limit) = (
            &self.shared.transfers.sending,
            self.transfers.limits.at_once,
        );
        if !sending.asked_all && !sending.place.take(gauge, limit) {
            // Asked again at the next retry.
            self.transfers.sending.remove(&(group, to));
            return;
        }
        self.watch_transfers();
        let term = self.replicas[slot as usize].group.term();
        let counters = self.shared.counters.shard(self.index);
        let bytes = wire::offer_bytes(&file);
        if let Some(frame) = self.outgoing.append(to, group, bytes, counters) {
            counters.snapshots_offered.add(1);
            wire::put_snapshot_offer(frame, term, &file);
        }
    }

    /// A follower asks for a part of a snapshot.
    pub(in super::super) fn snapshot_wanted(&mut self, wanted: Wanted) {
        let key = (wanted.group, wanted.by);
        let file = self.snapshots.file(wanted.group);
        let file = file.filter(|file| SnapshotId::of(file) == wanted.id);
        let Some(file_bytes) = file.map(|file| file.bytes) else {
            return; // There is a newer one, which is offered next.
        };
        if !self.lacks_log(wanted.group, wanted.by) || wanted.offset >= file_bytes {
            return; // The leadership is gone, or the follower has caught up.
        }
        let (now, limits) = (self.now, self.transfers.limits);
        let gauge = &self.shared.transfers.sending;
        let Some(sending) = self.transfers.sending.get_mut(&key) else {
            return;
        };
        if sending.id != wanted.id {
            return;
        }
        if !sending.place.take(gauge, limits.at_once) {
            // The last part got lost, or everything. It waits like the others.
            self.transfers.sending.remove(&key);
            return;
        }
        sending.heard_at = now;
        let most = (self.outgoing.max_record_bytes(wanted.by) - wire::CHUNK_BYTES) as u64;
        let rate = limits.bytes_per_second;
        // No more than a second's worth: the others wait for it.
        let most = if rate > 0 { most.min(rate) } else { most };
        let left = file_bytes - wanted.offset;
        let bytes = u64::from(wanted.bytes).min(most).min(left);
        sending.asked_all = bytes == left;
        if sending.asked_all {
            // Others may have the place.
            sending.place.give_back(gauge);
        }
        let wanted = Wanted {
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            ..wanted
        };
        let paced = &mut self.transfers.paced;
        let is_paced = paced.iter().any(|(_, waiting)| *waiting == wanted);
        if is_paced || paced.len() >= 2 * WINDOW as usize * limits.at_once {
            return;
        }
        let at = self.shared.transfers.pace(now, bytes, rate);
        if at > now {
            paced.push_back((at, wanted));
        } else {
            self.read_chunk(wanted);
        }
    }

    /// Whether this node leads the group, and a follower can't go on without a snapshot.
    fn lacks_log(&self, group: GroupId, follower: NodeId) -> bool {
        let state = self.progress_of(group, follower);
        matches!(state, Some(ProgressState::Snapshot { .. }))
    }

    /// How a follower is sent to, if this node leads the group.
    fn progress_of(&self, group: GroupId, follower: NodeId) -> Option<ProgressState> {
        let replica = &self.replicas[self.slot(group)? as usize];
        let progress = replica.group.progress(follower);
        progress.filter(|_| leads(replica)).map(|it| it.state)
    }

    /// Whether a follower is being sent the group's snapshot.
    pub(in super::super) fn is_sending(&self, group: GroupId) -> bool {
        let mut sending = self.transfers.sending.keys();
        sending.any(|(sent, to)| *sent == group && self.lacks_log(group, *to))
    }

    pub(super) fn read_chunk(&mut self, wanted: Wanted) {
        let Some(file) = self.snapshots.file(wanted.group) else {
            return;
        };
        if SnapshotId::of(file) == wanted.id && self.lacks_log(wanted.group, wanted.by) {
            let file = file.clone();
            let job = Job::Read { file, wanted };
            self.shared.keeper_of(wanted.group).send(job);
        }
    }

    /// A keeper has read a part of a snapshot.
    pub(in super::super) fn chunk_read(&mut self, wanted: Wanted, chunk: &Chunk) {
        let mut frame = BytesMut::with_capacity(wire::CHUNK_BYTES + chunk.bytes.len());
        let subject = self.subject(wanted.group);
        wire::put_snapshot_chunk(&mut frame, subject, wanted.id, chunk);
        self.counters()
            .snapshot_bytes_sent
            .add(chunk.bytes.len() as u64);
        // What the transport does not take now is asked for again.
        self.outgoing
            .send_frame(wanted.by, Lane::Snapshot, frame.freeze());
    }

    /// A follower does not take a snapshot now. It is offered again.
    pub(in super::super) fn snapshot_refused(
        &mut self,
        by: NodeId,
        group: GroupId,
        id: SnapshotId,
        why: Refusal,
    ) {
        let known = self.transfers.sending.get_mut(&(group, by));
        let Some(sending) = known.filter(|sending| sending.id == id) else {
            return;
        };
        if why == Refusal::Busy && sending.asked_all {
            return; // With making it durable.
        }
        sending.place.give_back(&self.shared.transfers.sending);
        self.transfers.sending.remove(&(group, by));
        tracing::debug!(%group, %by, ?why, "a snapshot is not taken now");
        let file = self.snapshots.file(group);
        if why == Refusal::Damaged
            && let Some(file) = file.filter(|file| SnapshotId::of(file) == id)
        {
            let file = file.clone();
            self.shared.keeper_of(group).send(Job::Look { file });
        }
    }

    /// A keeper has looked at a snapshot that somebody found damaged, or was to read a part of it. If it can't be read as it was
    /// written, another one is taken.
    pub(in super::super) fn looked(
        &mut self,
        group: GroupId,
        id: SnapshotId,
        result: Result<(), String>,
    ) {
        let Err(why) = result else { return };
        let file = self.snapshots.file(group);
        if file.is_some_and(|file| SnapshotId::of(file) == id)
            && let Some(slot) = self.slot(group)
        {
            tracing::error!(node = %self.shared.node, %group, %why, "a snapshot is damaged or can't be read; another one is taken");
            self.snapshots.forget(group);
            // What is on its way of it keeps nobody from taking another one.
            self.forget_sending(group);
            self.want_snapshot(slot, None);
        }
    }

    /// Takes back the places of followers that say nothing, and forgets those that lack nothing any more.
    pub(super) fn look_after_sending(&mut self) {
        let (now, place_patience) = (self.now, self.place_patience());
        let mut sending = std::mem::take(&mut self.transfers.sending);
        sending.retain(|(group, to), sending| {
            let patience = match sending.asked_all {
                true => PART_PATIENCE.max(place_patience),
                false => place_patience,
            };
            // Whose node was silent for a moment is probed, and goes on where it was.
            let state = self.progress_of(*group, *to);
            let has_caught_up = state == Some(ProgressState::Replicate);
            let is_over =
                now.since(sending.heard_at) >= patience || state.is_none() || has_caught_up;
            if is_over {
                sending.place.give_back(self.sending_gauge());
            }
            !is_over
        });
        self.transfers.sending = sending;
    }
}

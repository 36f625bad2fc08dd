//! The end of a turn: everything that follows from the events drained, dispatched once. One WAL batch, one frame per
//! peer and lane, one task per apply worker.
//! It must never send what depends on durability: the core does not emit that before its `Durable` event.

use std::ops::Range;

use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{
    Apply, EntryRange, Env, Event, GroupId, Index, Life, Message, NodeId, Role, Send, Term, Tick,
    WriteId,
};
use polyraft_storage::{
    Blocks, Durable, EntryKind, PREFETCH_AHEAD, PREFETCH_SOON, ReadError, StorageError, prefetch,
};

use super::outgoing::NODE_LEVEL;
use super::replica::Replica;
use super::{Deferred, DiskFull, Payloads, Shard, Written, guarded, leads};
use crate::apply::{ApplyBatch, Fault, Task};
use crate::directory::Shown;
use crate::error::Error;
use crate::event::Claim;
use crate::wire;

/// Log bytes handed to an apply worker in one piece, so that a restart's replay doesn't come as one huge slice.
const APPLY_PIECE_BYTES: u64 = 1 << 20;

/// What is wrong when that cannot be done.
const UNREADABLE: &str = "a committed entry can't be read";

/// After a slice of the WAL's work, and if the next one has time, a shard has so many times as long for other things, and at most so
/// many microseconds.
const MAINTENANCE_RESTS: u64 = 9;
const MAINTENANCE_REST_LIMIT: u64 = 50_000;

/// How often a full disk is tried again, in microseconds.
const DISK_RETRY: u64 = 100_000;

impl Shard {
    /// When the next turn has to come, whatever arrives.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        if self.fault.is_some() {
            return None;
        }
        let is_due = !self.touched.is_empty() || !self.claims.is_empty();
        if is_due || self.members.are_leaving() || self.campaigns.are_due() {
            return Some(self.now);
        }
        let disk = self.disk_full.as_ref().map(|full| full.retry_at);
        let timers = self.wheel.next();
        let deferred = self.deferred.front().map(|(at, _)| *at);
        let home = self.home.as_ref().and_then(|home| home.deadline());
        let handover = self.handover_deadline();
        [
            self.maintenance_due(),
            timers,
            deferred,
            home,
            disk,
            handover,
            self.transfers.deadline(),
            self.forwards.deadline(),
            self.reads.deadline(),
            self.leadership.deadline(),
            self.members.deadline(),
            self.balance.deadline(),
            self.splits.deadline(),
            self.merges.deadline(),
            self.stall_deadline(),
            self.told.deadline(&self.alive),
            self.trim.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Starts a turn at `now`.
    pub(crate) fn begin_turn(&mut self, now: Tick) {
        self.now = now.max(self.now);
        self.judge_room();
        self.overload = self.judge_overload();
    }

    /// Ends a turn. `is_drained` says that nothing is left in the inbox, so that silence can be judged.
    pub(crate) fn end_turn(&mut self, is_drained: bool) {
        if self.fault.is_some() {
            return;
        }
        self.fire_timers(is_drained);
        self.run_deferred();
        self.expire_forwards();
        self.expire_reads();
        self.run_transfers();
        self.hand_over();
        self.judge_disk(is_drained);
        self.drain();
        self.rebalance();
        self.run_splits();
        self.run_merges();
        self.change_members();
        self.leave_groups();
        self.ask_members();
        // Settling may touch replicas that were not touched before; each is settled once.
        let mut next = 0;
        while next < self.touched.len() {
            let slot = self.touched[next];
            if let Some(later) = self.touched.get(next + PREFETCH_AHEAD) {
                self.fetch_replica(*later);
            }
            if let Some(soon) = self.touched.get(next + PREFETCH_SOON) {
                self.fetch_parts(*soon);
            }
            next += 1;
            self.settle_durable(slot);
            self.settle_proposals(slot);
            self.settle_reads(slot);
            self.flush(slot);
            self.show(slot);
        }
        self.look_at_traces();
        self.histograms().turn_groups.record(next as u64);
        self.untouch();
        if !self.submit() {
            return;
        }
        self.dispatch_claims();
        self.want_standing();
        self.run_home(is_drained);
        self.tell_ends();
        self.dispatch_timers();
        self.offer_snapshots();
        self.settle_transfers();
        self.tell_removed();
        self.dispatch_sends();
        if mutants::is_active(Mutant::FrozenBeforeApplied) {
            self.begin_snapshots();
        }
        self.dispatch_applies();
        self.dispatch_queries();
        self.begin_snapshots();
        self.outgoing
            .send_all(self.shared.counters.shard(self.index));
        self.take_back_refused();
        self.maintain();
        self.trim();
        self.show_waiting();
        self.counters().turns.add(1);
    }

    fn look_at_traces(&mut self) {
        if !self.traces.is_empty() {
            let replicas = &self.replicas;
            self.traces
                .look(self.shared.node, |slot| &replicas[slot as usize].group);
        }
    }

    pub(super) fn run_deferred(&mut self) {
        while let Some((at, what)) = self.deferred.front().copied()
            && at <= self.now
        {
            self.deferred.pop_front();
            match what {
                Deferred::Campaign(group, life, times) => {
                    let Some(slot) = self.leaderless(group, life) else {
                        continue;
                    };
                    if self.replicas[slot as usize].group.role() != Role::Candidate {
                        self.begin_to_lead(slot);
                    }
                    if times > 1 {
                        let at = self.now.after(self.limits.campaign_delay);
                        self.defer(at, Deferred::Campaign(group, life, times - 1));
                    }
                }
                Deferred::Proposals(slot) => self.touch(slot),
                Deferred::ForwardReplies => self.send_unsent_replies(),
            }
        }
    }

    /// Has something done at a later time.
    pub(super) fn defer(&mut self, at: Tick, what: Deferred) {
        let behind = self.deferred.partition_point(|(known, _)| *known <= at);
        self.deferred.insert(behind, (at, what));
    }

    /// The replica of this life of a group, if it is here and knows no leader.
    fn leaderless(&self, group: GroupId, life: Life) -> Option<u32> {
        let slot = self.slot(group).filter(|_| self.is_current(group, life))?;
        let core = &self.replicas[slot as usize].group;
        core.leader().is_none().then_some(slot)
    }

    /// Tells a replica once what the barriers of this turn made durable.
    pub(super) fn settle_durable(&mut self, slot: u32) {
        let through = std::mem::take(&mut self.marks[slot as usize].durable);
        if through > WriteId::ZERO {
            self.step(slot, Event::Durable { through }, Payloads::None);
        }
    }

    /// Lets a leader send what its followers lack.
    fn flush(&mut self, slot: u32) {
        let replica = &mut self.replicas[slot as usize];
        if leads(replica) {
            let view = self.log.view(replica.group.id());
            let env = Env {
                now: self.now,
                settings: &self.settings,
                alive: &self.alive,
            };
            let (group, outbox) = (&mut replica.group, &mut self.outbox);
            let event = Event::Flush { log: &view };
            #[cfg(feature = "sim")]
            super::looks::note_cause(&mut self.causes, group.id(), &event);
            let flushed = guarded(|| group.step(&env, event, outbox));
            drop(view);
            if let Err(reason) = flushed {
                self.quarantine(slot, reason);
            }
        }
    }

    /// Hands the turn's records to the group commit. False: the WAL is out of service, and so is the node.
    fn submit(&mut self) -> bool {
        match self.log.submit() {
            Ok(Some(lsn)) => {
                if self.submitted != lsn {
                    self.submissions.push_back((lsn, self.now));
                }
                self.submitted = lsn;
                self.note_written();
            }
            Ok(None) => {}
            Err(StorageError::DiskFull { needed, .. }) => {
                self.wait_for_disk(needed);
                return true;
            }
            Err(error) => {
                self.fail(error.to_string());
                return false;
            }
        }
        self.disk_full = None;
        let lsn = self.submitted;
        let written = self.unsubmitted.drain(..);
        self.written
            .extend(written.map(|(slot, id)| Written { lsn, slot, id }));
        self.ends.submitted(self.submitted);
        self.splits.submitted(self.submitted);
        self.await_creations();
        self.finish_children();
        true
    }

    /// The log keeps the turn's records, but takes no more: nothing of them becomes durable, and so nothing that
    /// depends on it is sent. New proposals are refused until there is room.
    fn wait_for_disk(&mut self, needed: u64) {
        if self.disk_full.is_none() {
            tracing::error!(node = %self.shared.node, needed, "the disk is full; free some room to go on");
        }
        self.disk_full = Some(DiskFull {
            retry_at: Tick(self.now.0 + DISK_RETRY),
        });
    }

    /// A barrier covers everything up to a batch.
    pub(super) fn batch_durable(&mut self, durable: &Durable) {
        self.log.on_durable(durable);
        self.durable = self.durable.max(durable.lsn);
        while let Some((_, at)) = self
            .submissions
            .pop_front_if(|(lsn, _)| *lsn <= self.durable)
        {
            self.histograms().append_us.record(self.now.since(at));
        }
        while let Some(written) = self
            .written
            .pop_front_if(|written| written.lsn <= self.durable)
        {
            self.marks[written.slot as usize].durable = written.id;
            self.touch(written.slot);
        }
        self.finish_creations();
        self.finish_ends();
        self.finish_children();
    }

    /// State machines have come further, or one of them has stopped.
    pub(super) fn applied(&mut self, mut batch: ApplyBatch) {
        for at in 0..batch.groups.len() {
            if let Some(later) = batch.groups.get(at + PREFETCH_AHEAD) {
                prefetch(&self.replicas[later.slot as usize]);
            }
            self.keep_beating();
            let committed = &mut batch.groups[at];
            match committed.fault.take() {
                None => {
                    let (slot, through) = (committed.slot, committed.end.prev());
                    let bytes = committed.bytes;
                    self.note_applied(slot, through);
                    self.count_applied(slot, through, bytes);
                }
                Some(Fault::Machine(reason)) => self.quarantine(committed.slot, reason),
                Some(Fault::Unreadable(error)) => {
                    self.quarantine_unreadable(committed.slot, UNREADABLE, &error);
                }
            }
        }
        if let Some(first) = batch.groups.first() {
            let worker = polyraft_raft::shard_of(first.group, self.applies.len());
            self.inline_applies.note(worker, &batch);
        }
        if batch.is_inline {
            self.histograms().apply_us.record(batch.took);
        } else {
            let took = self.now.since(batch.sent);
            self.histograms().apply_us.record(took);
            // Workers need not end in the order in which they began.
            let sent = self.applying.iter().position(|sent| *sent == batch.sent);
            sent.and_then(|at| self.applying.remove(at));
        }
        batch.clear();
        self.spare_batches.push(batch);
    }

    /// Tells the core how far the state machine is. Nothing follows from it, so the replica counts as untouched.
    fn note_applied(&mut self, slot: u32, through: Index) {
        let env = Env {
            now: self.now,
            settings: &self.settings,
            alive: &self.alive,
        };
        let replica = &mut self.replicas[slot as usize];
        if replica.fault.is_none() {
            let (group, outbox) = (&mut replica.group, &mut self.outbox);
            let event = Event::Applied { through };
            #[cfg(feature = "sim")]
            super::looks::note_cause(&mut self.causes, group.id(), &event);
            let noted = guarded(|| group.step(&env, event, outbox));
            if let Err(reason) = noted {
                self.quarantine(slot, reason);
            }
        }
    }

    /// Leaders that ceased to be one release their callers; the peers learn who leads now.
    fn dispatch_claims(&mut self) {
        let batch = self.claim_batches + 1;
        let mut led = Vec::new();
        for change in self.outbox.claims.drain(..) {
            let Some(slot) = self.slots.get(change.group) else {
                continue;
            };
            let replica = &mut self.replicas[slot as usize];
            // Nobody can stand by a claim that was not handed over.
            replica.claim_batch = if change.leads { batch } else { u64::MAX };
            if change.leads && self.limits.rebalance_delay > 0 {
                led.push(slot);
            }
            if !change.leads {
                let error = Error::Unknown {
                    why: "the leader stepped down",
                };
                replica.forget_waiting(&mut self.queues, &error);
            }
            let members = replica.group.configuration().nodes().collect();
            self.claims.push(Claim {
                group: change.group,
                life: self.marks[slot as usize].life,
                term: change.leads.then_some(change.term),
                members,
            });
        }
        for slot in led {
            self.note_led(slot);
        }
        if !self.claims.is_empty() {
            let claims = std::mem::take(&mut self.claims);
            self.report_claims(claims);
        }
    }

    fn dispatch_timers(&mut self) {
        for timer in self.outbox.timers.drain(..) {
            if let Some(slot) = self.slots.get(timer.group) {
                self.wheel.arm(slot, timer.at);
            }
        }
    }

    fn dispatch_sends(&mut self) {
        let mut sends = std::mem::take(&mut self.outbox.sends);
        let mut blocks = std::mem::take(&mut self.blocks);
        // Followers mostly get the same entries one after another: read them once.
        let mut read = (NODE_LEVEL, EntryRange::default(), 0..0);
        let mut lost = None;
        for (at, send) in sends.iter().enumerate() {
            if let Some(later) = sends.get(at + PREFETCH_AHEAD) {
                self.log.prefetch(later.group);
            }
            self.keep_beating();
            let entries = entries_of(&send.message);
            if lost == Some(send.group) {
                continue;
            }
            if entries.is_empty() {
                self.dispatch_send(send, &blocks, 0..0);
                continue;
            }
            if (read.0, read.1) != (send.group, entries) {
                let from = blocks.len();
                if let Err(error) = self.read_blocks(send.group, entries, &mut blocks) {
                    blocks.truncate(from);
                    if let Some(slot) = self.slot(send.group) {
                        self.quarantine_unreadable(slot, "the log can't be read", &error);
                    }
                    lost = Some(send.group);
                    continue;
                }
                read = (send.group, entries, from..blocks.len());
            }
            self.dispatch_send(send, &blocks, read.2.clone());
        }
        sends.clear();
        blocks.clear();
        self.blocks = blocks;
        self.outbox.sends = sends;
    }

    /// Adds the blocks that hold exactly the entries of a range.
    fn read_blocks(
        &self,
        group: GroupId,
        entries: EntryRange,
        into: &mut Blocks,
    ) -> Result<(), ReadError> {
        let (first, end, from) = (entries.first, entries.end, into.len());
        self.log.blocks(group, first, end, u64::MAX, into)?;
        into.trim(from, first, end)
            .map_err(|reason| ReadError::Uncut {
                group,
                first,
                end,
                reason,
            })
    }

    fn dispatch_send(&mut self, send: &Send, blocks: &Blocks, which: Range<usize>) {
        let Some(slot) = self.slot(send.group) else {
            return; // Its replica ended in this turn.
        };
        let life = self.marks[slot as usize].life;
        if let Message::Append { .. } = send.message {
            let members = self.replicas[slot as usize].group.configuration();
            if members.is_witness(send.to) {
                return self.send_hollow(send, life, blocks, which);
            }
            if !members.contains(send.to) {
                return; // It ceased to be one later in the turn, and may have been a witness.
            }
        }
        let bytes = wire::APPEND_BYTES + blocks.bytes_of(which.clone());
        let counters = self.shared.counters.shard(self.index);
        let most = self.outgoing.max_record_bytes(send.to);
        if bytes > most {
            tracing::error!(
                group = %send.group, to = %send.to, bytes, most,
                "an append is larger than the frames to that node may be, and is not sent: give all nodes the same \
                 transport.max_frame_bytes"
            );
        } else if let Some(frame) = self.outgoing.append(send.to, send.group, bytes, counters) {
            counters.group_messages.add(1);
            let blocks = which.map(|at| blocks.bytes(at));
            wire::put_message(frame, (send.group, life), &send.message, blocks);
        }
    }

    pub(super) fn dispatch_applies(&mut self) {
        let mut applies = std::mem::take(&mut self.outbox.applies);
        for (at, apply) in applies.iter().enumerate() {
            if let Some(later) = applies.get(at + PREFETCH_AHEAD) {
                self.log.prefetch(later.group);
            }
            self.keep_beating();
            self.dispatch_apply(apply);
        }
        applies.clear();
        self.outbox.applies = applies;
        let batches = self.applies.iter().filter(|batch| !batch.is_empty());
        let is_alone = batches.count() == 1;
        for worker in 0..self.applies.len() {
            if !self.applies[worker].is_empty() {
                self.hand_out(worker, is_alone);
            }
        }
        // What was committed before is applied, and its callers are answered.
        for (group, reason) in self.quarantined.drain(..) {
            let task = Task::Quarantine { group, reason };
            self.shared.worker_of(group).send(task);
        }
    }

    /// Has a worker's batch applied: by the worker or, with `apply.inline`, here, if it is all that the turn hands out.
    fn hand_out(&mut self, worker: usize, is_alone: bool) {
        let limit = self.limits.inline_apply;
        let batch = &self.applies[worker];
        let is_inline = is_alone && self.inline_applies.are_for(worker, batch, limit);
        let spare = self.spare_batches.pop().unwrap_or_default();
        let mut full = std::mem::replace(&mut self.applies[worker], spare);
        full.shard = self.index;
        full.sent = self.now;
        full.is_inline = is_inline;
        self.shared.backlog.add(full.bytes());
        self.applying.push_back(self.now);
        let task = Task::Apply(full);
        let left = if is_inline {
            // Nobody waits for a state machine but its callers, and whoever looks whether it hangs.
            let counters = self.shared.counters.shard(self.index);
            self.outgoing.send_all(counters);
            self.show_waiting();
            let left = self.inline_applies.perform(worker, task);
            self.beat_in_turn();
            left
        } else {
            Some(task)
        };
        match left {
            Some(Task::Apply(mut batch)) => {
                batch.is_inline = false;
                self.shared.workers[worker].send(Task::Apply(batch));
            }
            _ => {
                self.applying.pop_back();
                self.counters().inline_applies.add(1);
            }
        }
    }

    fn dispatch_apply(&mut self, apply: &Apply) {
        let Some(slot) = self.slot(apply.group) else {
            return;
        };
        if self.replicas[slot as usize].fault.is_some() {
            // An earlier piece of this turn could not be read: nothing behind it may be applied.
            return;
        }
        if self.replicas[slot as usize].group.is_witness() {
            return self.pass_over(slot, apply);
        }
        if self.replicas[slot as usize].is_held {
            return self.snapshots.hold(slot, apply);
        }
        let worker = polyraft_raft::shard_of(apply.group, self.applies.len());
        let mut first = apply.first;
        // A split that nothing has to be done for any more.
        let mut passed = self.splits.settled_at(slot);
        while first < apply.end {
            let Replica {
                waiting,
                pending_bytes,
                ..
            } = &mut self.replicas[slot as usize];
            let (log, queue) = (&self.log, &mut self.queues.waiting);
            let pushed = self.applies[worker].push(
                (slot, apply.group),
                first,
                |blocks| {
                    let from = blocks.len();
                    // What no recent turn has is read by the worker: after a restart that is all of it.
                    let (group, most) = (apply.group, APPLY_PIECE_BYTES);
                    let end = log.blocks_unread(group, first, apply.end, most, blocks);
                    up_to_alone(
                        blocks,
                        from,
                        end.map_err(Unhanded::Unread)?,
                        (first, passed),
                    )
                },
                |end| {
                    std::iter::from_fn(move || {
                        let reply = queue.pop_if(waiting, |reply| reply.index < end)?;
                        *pending_bytes -= reply.bytes;
                        Some(reply)
                    })
                },
            );
            let end = match pushed {
                Ok(end) => end,
                Err(Unhanded::Unread(error)) => {
                    return self.quarantine_unreadable(slot, UNREADABLE, &error);
                }
                Err(Unhanded::Split(term, payload)) => {
                    if !self.reach_split(slot, (first, term), &payload) {
                        passed = Some(first);
                        continue;
                    }
                    let held = Apply { first, ..*apply };
                    self.replicas[slot as usize].is_held = true;
                    return self.snapshots.hold(slot, &held);
                }
            };
            if passed == Some(first) {
                self.splits.forget(slot);
            }
            let counters = self.shared.counters.shard(self.index);
            counters.applied.add(end.0 - first.0);
            if leads(&self.replicas[slot as usize]) {
                counters.committed.add(end.0 - first.0);
            }
            first = end;
        }
        if let Some(sample) = self.sample
            && sample.slot == slot
            && sample.index < first
        {
            self.sample = None;
            let took = self.now.since(sample.appended);
            self.histograms().commit_us.record(took);
        }
    }

    /// Publishes since when the oldest has waited of what this shard has handed on.
    fn show_waiting(&self) {
        let waiting = self.shared.counters.waiting(self.index);
        let oldest = self.submissions.front().map_or(0, |(_, since)| since.0);
        waiting.wal.set(oldest);
        waiting
            .apply
            .set(self.applying.front().map_or(0, |since| since.0));
    }

    /// Publishes what changed of a replica.
    fn show(&mut self, slot: u32) {
        let counters = self.shared.counters.shard(self.index);
        let replica = &mut self.replicas[slot as usize];
        let core = &replica.group;
        let shown = Shown::new(core.leader(), core.term(), replica.has_committed());
        let shown = match replica.fault {
            None => shown,
            Some(_) => shown.out_of_service(),
        };
        if replica.is_in_round && !replica.campaigns() {
            replica.is_in_round = false;
            self.campaigns.round_ended();
        }
        if replica.shown == shown {
            return;
        }
        let (led, had_leader) = (replica.is_shown_to_lead(), replica.shown.leader().is_some());
        replica.shown = shown;
        replica.cell.publish(shown);
        let leads = replica.is_shown_to_lead();
        let has_held = !replica.held.is_empty();
        match (led, leads) {
            (false, true) => counters.led.add(1),
            (true, false) => counters.led.sub(1),
            _ => {}
        }
        if led != leads {
            self.merges.look_soon(self.now);
        }
        match (had_leader, shown.leader().is_some()) {
            (false, true) => counters.leaderless.sub(1),
            (true, false) => counters.leaderless.add(1),
            _ => {}
        }
        if has_held {
            self.retouch.push(slot);
        }
        self.note_forlorn(slot);
    }

    /// Forgets which replicas were touched.
    fn untouch(&mut self) {
        for slot in self.touched.drain(..) {
            self.marks[slot as usize].is_touched = false;
            #[cfg(feature = "sim")]
            if let Some(stepped) = &mut self.stepped {
                stepped.push(self.marks[slot as usize].group);
            }
        }
        // A new leader may take what was held for want of one.
        let mut retouch = std::mem::take(&mut self.retouch);
        for slot in retouch.drain(..) {
            self.touch(slot);
        }
        self.retouch = retouch;
    }

    /// Gives the WAL a slice of the work that it asked for, after everything urgent has left. What has time gets a small share of
    /// the shard's.
    fn maintain(&mut self) {
        while let Some(due) = self.maintenance_due()
            && due <= self.now
        {
            let begun = self.shared.clock.now();
            let more = match self.log.maintain() {
                Ok(more) => more,
                Err(StorageError::DiskFull { needed, .. }) => return self.wait_for_disk(needed),
                Err(error) => return self.fail(error.to_string()),
            };
            let ended = self.shared.clock.now();
            let rest = MAINTENANCE_RESTS * ended.since(begun);
            self.maintenance = more.then(|| ended.after(rest.min(MAINTENANCE_REST_LIMIT)));
            if !self.log.is_urgent() {
                return;
            }
            self.beat_in_turn();
        }
    }

    /// When the WAL's next slice of work is due, if it wants any and can have it.
    fn maintenance_due(&self) -> Option<Tick> {
        let rested = self.maintenance.filter(|_| self.disk_full.is_none())?;
        Some(match self.log.is_patient() {
            true => rested,
            false => self.now,
        })
    }

    /// The home shard judges another node alive or silent.
    pub(super) fn peer_changed(&mut self, node: NodeId, alive: bool) {
        if alive {
            self.alive.insert(node);
            self.note_back(node);
            self.told.back(node, self.now);
        } else {
            self.alive.remove(node);
            self.forwards.peer_lost(node);
            self.ask_others_than(node);
        }
        for slot in 0..self.replicas.len() {
            let core = &self.replicas[slot].group;
            // A replica that is behind may not know the node that leads it for a member.
            if core.configuration().contains(node) || core.leader() == Some(node) {
                let event = if alive {
                    Event::PeerUp { node }
                } else {
                    Event::PeerDown { node }
                };
                self.step(slot as u32, event, Payloads::None);
            }
        }
    }
}

/// Why entries are not handed out.
enum Unhanded {
    Unread(ReadError),
    /// The first of them splits the group: its term, and what it says.
    Split(Term, Vec<u8>),
}

/// Cuts what was read, from block number `from` on, where an entry is applied alone; one that splits the group once it may pass.
fn up_to_alone(
    blocks: &mut Blocks,
    from: usize,
    end: Index,
    (first, passed): (Index, Option<Index>),
) -> Result<Index, Unhanded> {
    // An unread one is none of these.
    let is_alone = |at: &usize| !blocks.is_unread(*at) && blocks.kind(*at).is_alone();
    let Some(at) = (from..blocks.len()).find(is_alone) else {
        return Ok(end);
    };
    let block = blocks.get(at);
    let index = block.first();
    if index > first {
        blocks.truncate(at);
        return Ok(index);
    }
    if block.kind() == EntryKind::Split && passed != Some(index) {
        let payload = block.entry(index).to_vec();
        return Err(Unhanded::Split(block.term(), payload));
    }
    blocks.truncate(at + 1);
    Ok(index.next())
}

/// The entries that a message brings.
fn entries_of(message: &Message) -> EntryRange {
    match message {
        Message::Append { entries, .. } => *entries,
        _ => EntryRange::default(),
    }
}

//! Merging a group into another: the leader of the one that ends, the source, drives it, and the log of the one that stays, the
//! target, decides. A source must never go on, or end, before the target's log has said what became of the attempt.
//!
//! The attempt is opened in the target's log, and the source frozen by an entry of its own log: nothing behind that is applied or
//! answered. Its state is then the same on all of its replicas, for as long as it is frozen. Its leader carries it into the
//! target's log, in parts, and a last entry has the target take it. Then the source is destroyed. Whoever leads a frozen source
//! goes on with that, so nothing depends on the leader that began. `docs/decisions/2026-11-22-merge-through-the-log.md` has the
//! reasons.

mod asking;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{Configuration, GroupId, Index, Life, NodeId, Role, Term, Tick};
use polyraft_storage::EntryKind;

use super::proposals::first_request;
use super::replica::Proposal;
use super::{PROPOSAL_OVERHEAD, Shard};
use crate::apply::Task;
use crate::completion::{Committed, Outcome, ReplyTo};
use crate::error::Error;
use crate::event::ShardEvent;
use crate::merge::{Frozen, MAX_STATE, MergeCommand, PART_OVERHEAD};
use crate::wire;

/// How often a merge that waits for something is looked at, in microseconds.
const LOOK_AGAIN: u64 = 10_000;

/// How long a question that was not answered waits before it is asked again, at first and at most.
const PAUSE: (u64, u64) = (20_000, 1_000_000);

/// How long the target may take to have the state, in timeouts of a proposal; then the leader asks for the end of the attempt.
const PATIENCE: u64 = 10;

/// Merges of a shard that hold a state in memory, or are about to, at the same time. The others wait.
const MOST_AT_ONCE: usize = 4;

/// How long one of them waits before it looks again whether there is room, in microseconds.
const ROOM_AGAIN: u64 = 100_000;

/// The most bytes of a part.
const PART_BYTES: usize = 256 << 10;

/// Bytes by which a snapshot may be longer than the state that is merged: what it says of itself, and of merges.
const SNAPSHOT_OVERHEAD: u64 = 1 << 20;

/// What a shard knows of merges.
#[derive(Debug)]
pub(super) struct Merges {
    /// Groups that take nothing any more, as far as the replicas here have applied.
    frozen: BTreeMap<GroupId, Frozen>,
    /// By source: merges that are driven from here.
    drives: BTreeMap<GroupId, Drive>,
    /// When to look whether a frozen group has a leader here that has to go on, or has it no more.
    look_at: Option<Tick>,
    /// Names questions, attempts and streams: no two of any incarnation of any node are the same, but for chance.
    last_number: u64,
}

/// A merge as the source's leader drives it.
#[derive(Debug)]
struct Drive {
    life: Life,
    term: Term,
    target: GroupId,
    argument: Bytes,
    reply: Option<ReplyTo>,
    stage: Stage,
    /// The number of the question that waits for an answer; 0: none does.
    asked: u64,
    look_at: Option<Tick>,
    pause: u64,
    /// Until when it may take to begin; or then, to have the target take the state.
    until: Tick,
    /// Whom to ask, if no replica of the target here can be.
    via: Option<NodeId>,
    /// The groups that the target is said to have become a part of, one after the other, the last of which is asked.
    heirs: Vec<GroupId>,
    /// Who named the first of them, if not the replica here.
    named_by: Option<NodeId>,
    part: usize,
    /// Why it comes to nothing, if it does.
    why: String,
    /// The log says that nobody knows anything of the target.
    is_told: bool,
}

#[derive(Debug)]
enum Stage {
    /// Something in the source's log has to be applied first.
    Waiting,
    /// The target is asked to begin.
    Opening { number: u64 },
    /// The entry that freezes the source is in its log.
    Freezing { attempt: Index },
    /// It is applied.
    Frozen(Frozen, Work),
    /// The target has the state.
    Ending { at: Index },
    /// Nothing more can be done: nobody can say any more what became of the attempt.
    Stuck,
}

/// What is done about a frozen source.
#[derive(Debug)]
enum Work {
    /// Others hold their states in memory.
    Queued,
    /// Its state is being written out.
    Preparing,
    /// It goes into the target's log.
    Sending {
        state: Bytes,
        stream: u64,
        offset: usize,
    },
    /// The target is asked to end the attempt, or to say that it has succeeded.
    Refusing,
    /// It has refused, and the source is to go on.
    Thawing,
}

/// What happens to groups that are merged.
#[derive(Debug)]
pub(crate) enum MergeEvent {
    /// Somebody wants a group to become a part of another.
    Asked {
        source: GroupId,
        target: GroupId,
        argument: Bytes,
        reply: ReplyTo,
    },
    /// A question of a source's leader was answered.
    Answered {
        source: GroupId,
        number: u64,
        outcome: Outcome,
    },
    /// A replica here has applied that its group is frozen, or is not.
    Bound {
        group: GroupId,
        life: Life,
        frozen: Option<Frozen>,
    },
    /// The state that a group has since it was frozen in this way is written out, or could not be.
    StateReady {
        group: GroupId,
        life: Life,
        frozen: Frozen,
        state: Result<Bytes, String>,
    },
    /// No replica of the target here can be asked: another node is. For the target's shard.
    Elsewhere {
        to: NodeId,
        target: (GroupId, Life),
        payload: Bytes,
        reply: ReplyTo,
    },
    /// A group was merged, and this life of it is over. For the home shard.
    EndWanted {
        source: GroupId,
        life: Life,
        members: Configuration,
    },
    /// The nodes know that, or too few of them.
    Ended {
        source: GroupId,
        life: Life,
        result: Result<(), Error>,
    },
    /// A replica of the target here has applied that these were merged into it. For the target's shard.
    Absorbed {
        target: GroupId,
        sources: Vec<(GroupId, Life)>,
    },
}

impl Merges {
    pub(super) fn new(node: NodeId, incarnation: u64) -> Self {
        Merges {
            frozen: BTreeMap::new(),
            drives: BTreeMap::new(),
            look_at: None,
            last_number: first_request(incarnation.wrapping_mul(3) ^ node.0.rotate_right(24)),
        }
    }

    /// When something has to be looked at.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let drives = self.drives.values().filter_map(|drive| drive.look_at);
        drives.chain(self.look_at).min()
    }

    /// Who leads a group has changed.
    pub(super) fn look_soon(&mut self, now: Tick) {
        if !(self.frozen.is_empty() && self.drives.is_empty()) {
            self.look_at = Some(now);
        }
    }

    /// The group that one is being merged into.
    pub(super) fn frozen_into(&self, group: GroupId) -> Option<GroupId> {
        self.frozen.get(&group).map(|frozen| frozen.target)
    }

    /// Whether a group is being merged into another.
    pub(super) fn is_busy(&self, group: GroupId) -> bool {
        self.frozen.contains_key(&group) || self.drives.contains_key(&group)
    }

    /// Groups that must not end before what is being merged into them: source, target, and the target's life. That is the last one
    /// there can be as long as the target has not said which it is.
    pub(super) fn targets(&self) -> impl Iterator<Item = (GroupId, GroupId, Life)> + '_ {
        let frozen = self.frozen.iter();
        let frozen = frozen.map(|(source, frozen)| (*source, frozen.target, frozen.life));
        let is_first = |drive: &&Drive| {
            let stage = &drive.stage;
            matches!(
                stage,
                Stage::Waiting | Stage::Opening { .. } | Stage::Freezing { .. }
            )
        };
        let begun = self.drives.iter().filter(move |(_, drive)| is_first(drive));
        let begun = begun.map(|(source, drive)| (*source, drive.target, Life::LAST));
        let heirs = self.drives.iter();
        let heirs =
            heirs.filter_map(|(source, drive)| Some((*source, *drive.heirs.last()?, Life::LAST)));
        frozen.chain(begun).chain(heirs)
    }

    /// Whether one more may hold a state in memory. One that has asked the target to begin will.
    fn has_room(&self) -> bool {
        let holding = self.drives.values().filter(|drive| {
            matches!(
                drive.stage,
                Stage::Opening { .. }
                    | Stage::Freezing { .. }
                    | Stage::Frozen(_, Work::Preparing | Work::Sending { .. })
            )
        });
        holding.take(MOST_AT_ONCE).count() < MOST_AT_ONCE
    }

    fn next_number(&mut self) -> u64 {
        self.last_number = self.last_number.wrapping_add(1).max(1);
        self.last_number
    }

    /// A replica was taken out of service.
    pub(super) fn fail(&mut self, group: GroupId, error: &Error) {
        let is_open = |drive: &mut Drive| !matches!(drive.stage, Stage::Ending { .. });
        if let Some(drive) = self.drives.get_mut(&group)
            && is_open(drive)
            && let Some(drive) = self.drives.remove(&group)
        {
            drive.end(Err(error.clone()));
        }
    }

    /// A replica has ended. If that is because it was merged, whoever waits for that hears of it.
    pub(super) fn ended(&mut self, group: GroupId, error: &Error) {
        self.frozen.remove(&group);
        let may_be_merged = |drive: &Drive| {
            let stage = &drive.stage;
            !matches!(stage, Stage::Waiting | Stage::Opening { .. })
        };
        let is_open = self.drives.get(&group).is_some_and(may_be_merged);
        match error {
            // Another leader may have gone on with it, before whoever ended the group did that.
            Error::NoSuchGroup { .. } if is_open => self.fail(group, &LOST),
            error => self.fail(group, error),
        }
    }

    /// Answers everybody who waits.
    pub(super) fn fail_all(&mut self, error: &Error) {
        for drive in std::mem::take(&mut self.drives).into_values() {
            drive.end(Err(error.clone()));
        }
    }
}

impl Drive {
    fn end(self, outcome: Outcome) {
        if let Some(reply) = self.reply {
            reply.answer(outcome);
        }
    }

    /// Looks at it again after a pause, which grows.
    fn rest(&mut self, now: Tick) {
        self.look_at = Some(now.after(self.pause));
        self.pause = (2 * self.pause).min(PAUSE.1);
    }

    fn go_on_at_once(&mut self, now: Tick) {
        (self.look_at, self.pause, self.asked) = (Some(now), PAUSE.0, 0);
    }
}

impl Shard {
    /// Takes an event about a group that is merged.
    pub(super) fn merge_event(&mut self, event: MergeEvent) {
        match event {
            MergeEvent::Asked {
                source,
                target,
                argument,
                reply,
            } => self.merge_asked(source, target, argument, reply),
            MergeEvent::Answered {
                source,
                number,
                outcome,
            } => self.merge_answered(source, number, outcome),
            MergeEvent::Bound {
                group,
                life,
                frozen,
            } => self.merge_bound(group, life, frozen),
            MergeEvent::StateReady {
                group,
                life,
                frozen,
                state,
            } => self.state_ready(group, life, frozen, state),
            MergeEvent::Elsewhere {
                to,
                target,
                payload,
                reply,
            } => {
                let proposal = Proposal {
                    payload,
                    kind: EntryKind::Merge,
                    reply,
                    deadline: self.now,
                };
                self.forward_proposal(target, to, proposal);
            }
            MergeEvent::EndWanted {
                source,
                life,
                members,
            } => self.end_merged(source, life, members),
            MergeEvent::Ended {
                source,
                life,
                result,
            } => self.merge_ended(source, life, &result),
            MergeEvent::Absorbed { target, sources } => {
                for (source, life) in sources {
                    self.shared.directory.note_merged(source, life, target);
                }
            }
        }
    }

    /// Why a group is not here.
    pub(super) fn gone(&self, group: GroupId) -> Error {
        let ended = self.log.tombstone_of(group).map(|ended| ended.life);
        match self.shared.directory.merged_into(group) {
            // A later life may have been destroyed since.
            Some((life, into)) if ended.is_none_or(|ended| ended <= life) => {
                Error::Merging { into }
            }
            _ => Error::NoSuchGroup { group },
        }
    }

    /// Why a group has no replica here that could do anything.
    pub(super) fn absent(&self, group: GroupId) -> Error {
        match self.opening.contains_key(&group) {
            true => Error::NotLeader { hint: None },
            false => self.gone(group),
        }
    }

    /// The group that one which is led here is being merged into, so that proposals need not even enter its log.
    pub(super) fn merging_into(&self, slot: u32) -> Option<GroupId> {
        if self.merges.frozen.is_empty() || mutants::is_active(Mutant::FrozenGoesOn) {
            return None;
        }
        let replica = &self.replicas[slot as usize];
        let into = self.merges.frozen_into(replica.group.id());
        into.filter(|_| super::leads(replica))
    }

    // ---- somebody wants it ----

    fn merge_asked(&mut self, source: GroupId, target: GroupId, argument: Bytes, reply: ReplyTo) {
        let refusal = match self.slot(source) {
            None => Some(self.absent(source)),
            Some(_) => self.may_merge(source).err(),
        };
        let refusal = refusal.or_else(|| self.too_large_to_merge(source));
        if let Some(drive) = self.merges.drives.get_mut(&source)
            && matches!(refusal, Some(Error::Merging { into }) if into == target)
            && drive.reply.is_none()
            && !matches!(drive.stage, Stage::Stuck)
        {
            // It goes on by itself, after another leader; now somebody waits for it.
            drive.reply = Some(reply);
            return;
        }
        let is_driven = self.merges.drives.contains_key(&source);
        let refusal = refusal.or_else(|| is_driven.then(|| refused("it is being merged already")));
        if let Some(error) = refusal {
            return reply.answer(Err(error));
        }
        let slot = self.slot(source).expect("it was found just now");
        let drive = Drive {
            life: self.marks[slot as usize].life,
            term: self.replicas[slot as usize].group.term(),
            target,
            argument,
            reply: Some(reply),
            stage: Stage::Waiting,
            asked: 0,
            look_at: Some(self.now),
            pause: PAUSE.0,
            until: self.now.after(self.limits.proposal_timeout),
            via: None,
            heirs: Vec::new(),
            named_by: None,
            part: self.part_bytes(),
            why: String::new(),
            is_told: false,
        };
        self.merges.drives.insert(source, drive);
    }

    /// A group whose last snapshot can't go through the target's log is not frozen only to learn that.
    fn too_large_to_merge(&self, source: GroupId) -> Option<Error> {
        let bytes = self.snapshots.file(source)?.bytes;
        let is_too_large = bytes > MAX_STATE + SNAPSHOT_OVERHEAD;
        is_too_large.then(|| {
            refused(format!(
                "its last snapshot has {bytes} bytes, and a group that is merged may have {MAX_STATE} at most; if it has become \
                 smaller, take another snapshot"
            ))
        })
    }

    fn part_bytes(&self) -> usize {
        let record = self.outgoing.max_record_bytes_to_all() - wire::HEAD_BYTES - 8;
        let most = PART_BYTES.min(self.limits.proposal_bytes).min(record);
        most.saturating_sub(PART_OVERHEAD).max(1)
    }

    /// The term in which a group may be frozen now; none: not yet.
    fn may_merge(&mut self, source: GroupId) -> Result<Option<Term>, Error> {
        let slot = self.slot(source).ok_or_else(|| self.gone(source))?;
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        if let Some(error) = replica.refusal() {
            return Err(error);
        }
        if core.role() != Role::Leader {
            let hint = core.leader();
            return Err(Error::NotLeader { hint });
        }
        if let Some(into) = self.merges.frozen_into(source) {
            return Err(Error::Merging { into });
        }
        let term = core.term();
        // What earlier leaders left is applied, so this one knows whether the group is frozen. And no child is left that would
        // still need replicas of this group.
        let is_settled = core.term_at(core.applied()) == Some(term);
        Ok((is_settled && !self.is_splitting(slot)).then_some(term))
    }

    // ---- driving ----

    /// Goes on with merges whose time has come, and begins to drive those that have come to this node with the leadership.
    pub(super) fn run_merges(&mut self) {
        if self.merges.deadline().is_none_or(|at| at > self.now) {
            return;
        }
        let now = self.now;
        let is_looking = self.merges.look_at.take_if(|at| *at <= now).is_some();
        if is_looking {
            self.take_over_merges();
        }
        let drives = self.merges.drives.iter();
        let due =
            drives.filter(|(_, drive)| is_looking || drive.look_at.is_some_and(|at| at <= now));
        let due: Vec<GroupId> = due.map(|(source, _)| *source).collect();
        for source in due {
            if let Some(mut drive) = self.merges.drives.remove(&source) {
                let is_due = drive.look_at.take_if(|at| *at <= now).is_some();
                self.drive_merge(source, drive, is_due);
            }
        }
    }

    /// Drives the frozen groups that are led here.
    fn take_over_merges(&mut self) {
        let frozen: Vec<(GroupId, Frozen)> = self
            .merges
            .frozen
            .iter()
            .filter(|(source, _)| !self.merges.drives.contains_key(source))
            .map(|(source, frozen)| (*source, *frozen))
            .collect();
        for (source, frozen) in frozen {
            let Some(slot) = self.slot(source) else {
                continue;
            };
            let replica = &self.replicas[slot as usize];
            if !super::leads(replica) {
                continue;
            }
            let drive = Drive {
                life: self.marks[slot as usize].life,
                term: replica.group.term(),
                target: frozen.target,
                argument: Bytes::new(),
                reply: None,
                stage: Stage::Frozen(frozen, Work::Queued),
                asked: 0,
                look_at: Some(self.now),
                pause: PAUSE.0,
                until: self.now.after(PATIENCE * self.limits.proposal_timeout),
                via: None,
                heirs: Vec::new(),
                named_by: None,
                part: self.part_bytes(),
                why: String::new(),
                is_told: false,
            };
            self.merges.drives.insert(source, drive);
        }
    }

    /// The slot of a source that is still led here in the same term.
    fn led_source(&self, source: GroupId, drive: &Drive) -> Option<u32> {
        let slot = self.slot(source)?;
        let replica = &self.replicas[slot as usize];
        let is_it = self.marks[slot as usize].life == drive.life
            && super::leads(replica)
            && replica.group.term() == drive.term;
        is_it.then_some(slot)
    }

    /// Does what comes next, or gives the merge up if somebody else leads the source now.
    fn drive_merge(&mut self, source: GroupId, mut drive: Drive, is_due: bool) {
        let now = self.now;
        let slot = self.led_source(source, &drive);
        if slot.is_none() && !matches!(drive.stage, Stage::Ending { .. }) {
            // Perhaps it leads again, in another term.
            self.merges.look_at = Some(now.after(LOOK_AGAIN));
            let slot = self.slot(source);
            let hint = slot.and_then(|slot| self.replicas[slot as usize].group.leader());
            let error = match drive.stage {
                Stage::Waiting | Stage::Opening { .. } => Error::NotLeader { hint },
                _ => LOST,
            };
            return drive.end(Err(error));
        }
        if !is_due {
            self.merges.drives.insert(source, drive);
            return;
        }
        match &mut drive.stage {
            Stage::Waiting => match self.may_merge(source) {
                Ok(Some(term)) if term == drive.term && !self.merges.has_room() => {
                    // It has its time when its turn comes.
                    drive.until = now.after(self.limits.proposal_timeout);
                    drive.look_at = Some(now.after(ROOM_AGAIN));
                }
                Ok(Some(term)) if term == drive.term => {
                    let number = self.merges.next_number();
                    drive.stage = Stage::Opening { number };
                    self.ask_target(source, &mut drive);
                }
                Ok(_) if now < drive.until => drive.look_at = Some(now.after(LOOK_AGAIN)),
                Ok(_) => {
                    let why =
                        "the group's log was not applied, or a child of it had no leader, in time";
                    return self.give_up(drive, refused(why));
                }
                Err(error) => return self.give_up(drive, error),
            },
            Stage::Opening { .. } => self.ask_target(source, &mut drive),
            Stage::Frozen(frozen, work) => {
                let (life, frozen) = (drive.life, *frozen);
                let is_late = now >= drive.until;
                match work {
                    Work::Queued | Work::Preparing | Work::Sending { .. } if is_late => {
                        drive.why = "the target has not taken the state in time".to_owned();
                        *work = Work::Refusing;
                        self.ask_target(source, &mut drive);
                    }
                    Work::Queued if !self.merges.has_room() => {
                        drive.look_at = Some(now.after(ROOM_AGAIN));
                    }
                    Work::Queued | Work::Preparing => {
                        *work = Work::Preparing;
                        let task = Task::GiveState {
                            group: source,
                            life,
                            frozen,
                        };
                        self.shared.worker_of(source).send(task);
                        // Whatever becomes of it: at the latest then something else is done.
                        drive.look_at = Some(drive.until);
                    }
                    Work::Sending { .. } => self.ask_target(source, &mut drive),
                    Work::Refusing => {
                        let patience = PATIENCE * self.limits.proposal_timeout;
                        if let Some(reply) =
                            drive.reply.take_if(|_| now >= drive.until.after(patience))
                        {
                            reply.answer(Err(SILENT));
                        }
                        self.ask_target(source, &mut drive);
                    }
                    Work::Thawing => {
                        let slot = slot.expect("it is led here");
                        let command = MergeCommand::Thaw {
                            target: frozen.target,
                            life: frozen.life,
                            attempt: frozen.attempt,
                        };
                        drive.asked = self.merges.next_number();
                        self.append_merge(slot, &command, source, drive.asked);
                        drive.rest(now);
                    }
                }
            }
            Stage::Ending { at } => {
                let slot = self
                    .slot(source)
                    .filter(|_| self.is_current(source, drive.life));
                let Some(slot) = slot else {
                    // Somebody else has ended it.
                    let (index, reply) = (*at, Bytes::new());
                    return drive.end(Ok(Committed { index, reply }));
                };
                let members = self.replicas[slot as usize].group.configuration().clone();
                let event = MergeEvent::EndWanted {
                    source,
                    life: drive.life,
                    members,
                };
                self.shared.tell(0, ShardEvent::Merge(event));
            }
            Stage::Freezing { .. } | Stage::Stuck => {}
        }
        self.merges.drives.insert(source, drive);
    }

    /// Ends a merge that has frozen nothing. The group may have been frozen by one that began before, which has to go on then.
    fn give_up(&mut self, drive: Drive, error: Error) {
        drive.end(Err(error));
        self.merges.look_soon(self.now);
    }

    // ---- what is known of the source ----

    /// A replica here has applied that its group is frozen, or that it is not.
    fn merge_bound(&mut self, group: GroupId, life: Life, frozen: Option<Frozen>) {
        if !self.is_current(group, life) {
            return;
        }
        let Some(frozen) = frozen else {
            self.merges.frozen.remove(&group);
            if let Some(drive) = self.merges.drives.get(&group)
                && matches!(drive.stage, Stage::Frozen(..) | Stage::Stuck)
                && let Some(drive) = self.merges.drives.remove(&group)
            {
                let why = drive.why.clone();
                drive.end(Err(refused(why)));
            }
            return;
        };
        self.merges.frozen.insert(group, frozen);
        let now = self.now;
        let until = now.after(PATIENCE * self.limits.proposal_timeout);
        match self.merges.drives.get_mut(&group) {
            Some(drive) if matches!(drive.stage, Stage::Freezing { attempt } if attempt == frozen.attempt) =>
            {
                drive.stage = Stage::Frozen(frozen, Work::Preparing);
                drive.until = until;
                drive.go_on_at_once(now);
            }
            _ => self.merges.look_soon(now),
        }
    }

    /// The state of a frozen group is written out. It may be what the group had when it was frozen before: attempts at two targets
    /// may have the same name, and only the place of the own log tells them apart.
    fn state_ready(
        &mut self,
        group: GroupId,
        life: Life,
        given: Frozen,
        state: Result<Bytes, String>,
    ) {
        let now = self.now;
        let stream = self.merges.next_number();
        let Some(drive) = self.merges.drives.get_mut(&group) else {
            return;
        };
        let is_it = drive.life == life;
        let Stage::Frozen(frozen, work @ Work::Preparing) = &mut drive.stage else {
            return;
        };
        if !is_it || *frozen != given {
            return;
        }
        *work = match state {
            Ok(state) => Work::Sending {
                state,
                stream,
                offset: 0,
            },
            Err(why) => {
                drive.why = why;
                Work::Refusing
            }
        };
        drive.go_on_at_once(now);
    }

    /// Enough nodes know that the source is over; or it is tried again, as long as it has a replica here.
    fn merge_ended(&mut self, source: GroupId, life: Life, result: &Result<(), Error>) {
        let is_here = self.is_current(source, life);
        let Some(drive) = self.merges.drives.get_mut(&source) else {
            return;
        };
        let Stage::Ending { at } = drive.stage else {
            return;
        };
        if drive.life != life {
            return;
        }
        if result.is_err() && is_here {
            return drive.rest(self.now);
        }
        // Whoever has not heard of it is told when it speaks up, and is frozen until then.
        if let Some(drive) = self.merges.drives.remove(&source) {
            let reply = Bytes::new();
            drive.end(Ok(Committed { index: at, reply }));
        }
    }
}

const SILENT: Error = Error::Unknown {
    why: "the target does not say what became of the merge; the group is frozen until it does",
};

const LOST: Error = Error::Unknown {
    why: "the leader stepped down during the merge; whoever leads next goes on with it",
};

fn refused(why: impl Into<String>) -> Error {
    Error::Merge { why: why.into() }
}

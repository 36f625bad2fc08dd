//! What an apply worker does about merges: it notes what entries say, hands out the state of a group that is frozen, and has the
//! state machine of the target take it.
//! It must never apply or answer anything behind the entry that froze a group.

use bytes::Bytes;
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{GroupId, Index, Life};
use polyraft_storage::EntryBlock;

use super::{Applier, Committed, Machine, WaitingReply, answer_alone, guarded, refuse};
use crate::completion;
use crate::error::Error;
use crate::event::ShardEvent;
use crate::keeper::{Contained, Job};
use crate::machine::{Merge, StateMachine};
use crate::merge::{Frozen, MergeAnswer, MergeCommand};
use crate::sessions::{self, Decision, Whole};
use crate::shard::MergeEvent;

impl<M: StateMachine> Applier<M> {
    /// The group that one is to be merged into, as of what was applied of it.
    pub(super) fn frozen_into(&self, group: GroupId) -> Option<GroupId> {
        if self.frozen.is_empty() {
            return None;
        }
        self.frozen.get(&group).map(|frozen| frozen.target)
    }

    /// Takes note of what the group's bookkeeping says now, and tells its shard what is news.
    pub(super) fn note_merges(&mut self, group: GroupId, has_absorbed: bool) {
        let table = self.sessions.get(&group).and_then(Option::as_deref);
        let merges = table.and_then(|table| table.merges());
        let frozen = merges.and_then(|merges| merges.frozen());
        let merged: Vec<(GroupId, Life)> = merges
            .map(|merges| merges.merged().collect())
            .unwrap_or_default();
        let before = match frozen {
            Some(frozen) => self.frozen.insert(group, frozen),
            None => self.frozen.remove(&group),
        };
        let shard = self.shard_of(group);
        if has_absorbed && !merged.is_empty() {
            let event = MergeEvent::Absorbed {
                target: group,
                sources: merged,
            };
            self.tell(shard, ShardEvent::Merge(event));
        }
        if before != frozen {
            let life = self.life(group);
            let event = MergeEvent::Bound {
                group,
                life,
                frozen,
            };
            self.tell(shard, ShardEvent::Merge(event));
        }
    }

    pub(super) fn life(&self, group: GroupId) -> Life {
        self.lives.get(&group).copied().unwrap_or(Life::FIRST)
    }

    /// Nothing of what a frozen group is given is applied: whoever waits asks the group that it is merged into.
    pub(super) fn refuse_frozen(
        &self,
        into: GroupId,
        waiting: impl Iterator<Item = WaitingReply>,
    ) -> Result<(), String> {
        for WaitingReply { reply, .. } in waiting {
            reply.answer(Err(Error::Merging { into }));
        }
        Ok(())
    }

    /// An entry about a merge, which is applied alone.
    pub(super) fn merge_step(
        &mut self,
        work: &Committed,
        block: EntryBlock<'_>,
        held: Index,
        waiting: impl Iterator<Item = WaitingReply>,
    ) -> Result<(), String> {
        let (group, index, term) = (work.group, block.first(), block.term());
        let answer = match MergeCommand::parse(block.entry(index)) {
            Some(command) => self.decide_merge(group, (index, held), &command, term),
            // No node proposes such a thing.
            None => Ok(MergeAnswer::Refused),
        };
        self.note_merges(group, matches!(answer, Ok(MergeAnswer::Merged { .. })));
        match answer {
            Ok(answer) => {
                let reply = answer.encode();
                let outcome = Ok(completion::Committed { index, reply });
                answer_alone(waiting, (index, term), &outcome);
                Ok(())
            }
            Err(reason) => {
                refuse(waiting, &reason);
                self.stop(group, &reason);
                Err(reason)
            }
        }
    }

    fn decide_merge(
        &mut self,
        group: GroupId,
        (index, held): (Index, Index),
        command: &MergeCommand<'_>,
        term: polyraft_raft::Term,
    ) -> Result<MergeAnswer, String> {
        let life = self.life(group);
        let table = self.sessions.entry(group).or_default();
        let table = table.get_or_insert_default();
        let decision = table.with_merges(|merges| merges.decide(life, index, command));
        match decision {
            Decision::Answer(MergeAnswer::Opened { attempt, life, .. }) if index > held => {
                let MergeCommand::Open {
                    source, argument, ..
                } = *command
                else {
                    unreachable!("only an attempt that begins is opened")
                };
                let merge = Merge {
                    index,
                    term,
                    source,
                    argument,
                };
                // What the state machine says decides about nothing that replicas keep: one that holds more already could not be
                // asked for what it would have said here.
                let is_welcome = match self.machines.get(group) {
                    Some(Machine::Running(machine)) => guarded(|| Ok(machine.can_merge(&merge)))?,
                    Some(Machine::Stopped(reason)) => return Err(reason.clone()),
                    Some(Machine::Lent(_)) | None => false,
                };
                Ok(MergeAnswer::Opened {
                    attempt,
                    life,
                    is_welcome,
                })
            }
            Decision::Answer(answer) => Ok(answer),
            Decision::Take(whole) => self.take_whole(group, (index, held), &whole, term),
        }
    }

    /// All of a group's state is here, and is to be a part of this one from now on.
    fn take_whole(
        &mut self,
        group: GroupId,
        (index, held): (Index, Index),
        whole: &Whole,
        term: polyraft_raft::Term,
    ) -> Result<MergeAnswer, String> {
        let mut from = &whole.state[..];
        let Ok(theirs) = sessions::read_section(&mut from) else {
            // All replicas have the same bytes, and refuse them alike.
            return Ok(MergeAnswer::Refused);
        };
        let merge = Merge {
            index,
            term,
            source: whole.source,
            argument: &whole.argument,
        };
        if index > held {
            match self.machines.get_mut(group) {
                Some(Machine::Running(machine)) => guarded(|| {
                    let merged = machine.merge(&merge, &mut from);
                    merged.map_err(|error| error.to_string())
                })?,
                Some(Machine::Stopped(reason)) => return Err(reason.clone()),
                Some(Machine::Lent(_)) | None => {
                    unreachable!("a group is applied only while its state machine is open")
                }
            }
        }
        let table = self.sessions.entry(group).or_default();
        let table = table.get_or_insert_default();
        table.spend_shared();
        if let Some(theirs) = &theirs {
            table.absorb(index, whole.source, theirs);
        }
        let known = theirs.as_ref().and_then(|theirs| theirs.merges());
        Ok(table.with_merges(|merges| merges.note_merged(whole, known, index)))
    }

    /// A group is split at `index`: what it was going to take may not fit any more, and its sessions are shared.
    pub(super) fn note_split(&mut self, group: GroupId, index: Index) {
        let table = self.sessions.get_mut(&group).and_then(Option::as_deref_mut);
        if let Some(table) = table {
            table.with_merges(|merges| merges.note_split(index));
        }
    }

    /// The state of a frozen group, with its sessions, for the leader that has it merged. A keeper writes it out.
    pub(super) fn give_state(&self, group: GroupId, life: Life, frozen: Frozen) {
        let is_frozen = self.frozen.get(&group) == Some(&frozen);
        let state = match self.machines.get(group) {
            Some(Machine::Running(machine)) if is_frozen => {
                guarded(|| machine.snapshot().map_err(|error| error.to_string()))
            }
            // It goes on, or is restored from a snapshot of a later place: the shard hears of that.
            _ => return,
        };
        match state {
            Ok(state) => {
                let table = self.sessions.get(&group).and_then(Option::as_deref);
                let table = table.map(|table| table.for_target());
                let section = sessions::section(table.as_ref());
                let state = Contained::new(sessions::with_section(section, state));
                self.keeper_of(group).send(Job::Gather {
                    group,
                    life,
                    frozen,
                    state,
                });
            }
            Err(why) => {
                let event = MergeEvent::StateReady {
                    group,
                    life,
                    frozen,
                    state: Err(why),
                };
                self.tell(self.shard_of(group), ShardEvent::Merge(event));
            }
        }
    }

    /// Whether a group that is frozen may be asked all the same.
    pub(super) fn may_answer(&self, group: GroupId) -> Result<(), Error> {
        match self.frozen_into(group) {
            Some(into) if !mutants::is_active(Mutant::FrozenAnswers) => {
                Err(Error::Merging { into })
            }
            _ => Ok(()),
        }
    }
}

/// A state in memory, if it is not too long.
pub(crate) struct Gathered {
    pub(crate) bytes: Vec<u8>,
    pub(crate) most: u64,
}

impl std::io::Write for Gathered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.most {
            let why = format!(
                "a group that is merged may have {} bytes at most",
                self.most
            );
            return Err(std::io::Error::other(why));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Gathered {
    /// What was written.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from(self.bytes)
    }
}

//! What an apply worker does where a group is split: it freezes the part that goes, and lets go of it when the child has it.
//! It must never let go of anything by itself: the shard says when.

use bytes::Bytes;
use polyraft_raft::{Index, Term};
use polyraft_storage::EntryBlock;

use super::{Applier, Committed, Machine, WaitingReply, answer_alone, guarded, refuse};
use crate::completion;
use crate::error::Error;
use crate::event::ShardEvent;
use crate::keeper::{Contained, Job};
use crate::machine::StateMachine;
use crate::sessions;
use crate::shard::{ChildNews, SplitEvent};
use crate::split::{SplitEntry, SplitPlace};

impl<M: StateMachine> Applier<M> {
    /// The part of a state that becomes a group of its own is frozen, with a copy of the sessions: whoever has proposed to the
    /// parent may try again with the child.
    pub(super) fn split_off(
        &mut self,
        at: SplitPlace,
        term: Term,
        entry: &SplitEntry,
        campaigns: bool,
    ) {
        let has_shed = self
            .held
            .get(&at.group)
            .is_some_and(|held| at.index <= *held);
        let split = entry.for_machine(at.index, term);
        // One that is to be merged gives nothing away.
        let is_frozen = self.frozen_into(at.group).is_some();
        let frozen = match self.machines.get(at.group) {
            Some(Machine::Running(_)) if is_frozen => Ok(None),
            // It was asked when it came here, before the restart.
            Some(Machine::Running(_)) if has_shed => Ok(None),
            Some(Machine::Running(machine)) => guarded(|| {
                let can_split = machine.can_split(&split);
                let frozen = can_split.then(|| machine.split_off(&split)).transpose();
                frozen.map_err(|error| error.to_string())
            }),
            // It is restored from a snapshot of a later place, or gone.
            Some(Machine::Lent(_)) | None => return,
            Some(Machine::Stopped(reason)) => Err(reason.clone()),
        };
        let news = match frozen {
            Ok(Some(state)) => {
                let sessions = self.sessions.get(&at.group).and_then(Option::as_deref);
                let sessions = sessions.map(|sessions| sessions.for_child(at.index));
                let section = sessions::section(sessions.as_ref());
                let state = Contained::new(sessions::with_section(section, state));
                let job = Job::SaveChild {
                    at,
                    meta: entry.beginning(at.index),
                    state,
                    campaigns,
                };
                return self.keeper_of(entry.child).send(job);
            }
            Ok(None) if has_shed && !is_frozen => ChildNews::Past,
            Ok(None) => ChildNews::Nothing,
            Err(reason) => {
                self.stop(at.group, &reason);
                ChildNews::Failed(reason)
            }
        };
        self.tell(
            self.shard_of(at.group),
            ShardEvent::Split(SplitEvent::ChildHeard { at, news }),
        );
    }

    /// The child has its part, so it goes from the state. Entries that split a group are applied alone.
    pub(super) fn shed(
        &mut self,
        work: &Committed,
        block: EntryBlock<'_>,
        held: Index,
        waiting: impl Iterator<Item = WaitingReply>,
    ) -> Result<(), String> {
        let (index, term) = (block.first(), block.term());
        let entry = SplitEntry::of(work.group, block.entry(index));
        self.note_split(work.group, index);
        let is_frozen = self.frozen_into(work.group).is_some();
        let shed = match self.machines.get_mut(work.group) {
            Some(Machine::Running(_)) if is_frozen => Ok(false),
            Some(Machine::Running(_)) if index <= held => Ok(true),
            Some(Machine::Running(machine)) => guarded(|| {
                let split = entry.as_ref().map(|entry| entry.for_machine(index, term));
                let Some(split) = split.filter(|split| machine.can_split(split)) else {
                    return Ok(false);
                };
                machine.shed(&split).map_err(|error| error.to_string())?;
                Ok(true)
            }),
            Some(Machine::Stopped(reason)) => Err(reason.clone()),
            Some(Machine::Lent(_)) | None => {
                unreachable!("a group is applied only while its state machine is open")
            }
        };
        match shed {
            Ok(was_split) => {
                let outcome = match was_split {
                    true => Ok(completion::Committed {
                        index,
                        reply: Bytes::new(),
                    }),
                    false => Err(Error::Split {
                        why: "its state machine has no such part".to_owned(),
                    }),
                };
                answer_alone(waiting, (index, term), &outcome);
                Ok(())
            }
            Err(reason) => {
                refuse(waiting, &reason);
                self.stop(work.group, &reason);
                Err(reason)
            }
        }
    }
}

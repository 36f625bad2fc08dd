//! Which life of a group's id a record speaks of, and what follows when that is not the one that is here.
//! A replica must never be stepped with anything of another life, nor end because of one that it may have forgotten.

use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{GroupId, Index, Life, NodeId};
use polyraft_storage::{EntryKind, SnapshotFile, SnapshotMeta, Tombstone};

use super::Shard;
use crate::error::Error;
use crate::merge::MergeCommand;
use crate::wire::{self, Record};

impl Shard {
    /// How a record about a group of this shard names it.
    pub(super) fn subject(&self, group: GroupId) -> (GroupId, Life) {
        (group, self.life_of(group).unwrap_or_default())
    }

    /// Whether a record that came is for what is here. Who waits for an answer to one that is not gets it.
    pub(super) fn admits_record(&mut self, from: NodeId, life: Life, record: &Record<'_>) -> bool {
        match *record {
            Record::Group { group, .. }
            | Record::HollowAppend { group, .. }
            | Record::Place { group, .. }
            | Record::SnapshotOffer {
                file:
                    SnapshotFile {
                        meta: SnapshotMeta { group, .. },
                        ..
                    },
                ..
            }
            | Record::SnapshotFetch { group, .. }
            | Record::SnapshotChunk { group, .. }
            | Record::Join { group, .. }
            | Record::Removed { group, .. }
            | Record::MemberAsk { group, .. } => self.admits(from, group, life),
            // It answers a message of that life.
            Record::UnknownGroup { group } => self.is_current(group, life),
            Record::Forward {
                group,
                request,
                kind,
                ref payload,
            } => {
                // A question that says by itself of which lives it speaks is for whatever is here.
                let is_question = kind == EntryKind::Merge
                    && self.life_of(group).is_some()
                    && MergeCommand::parse(payload).is_some_and(|command| command.is_question());
                let admits = is_question || self.admits(from, group, life);
                if !admits {
                    let gone = Err(self.gone(group));
                    self.send_forward_reply(group, from, request, &gone);
                }
                admits
            }
            Record::ReadAsk { group, request, .. } => {
                let admits = self.admits(from, group, life);
                if !admits {
                    let nobody = Err(Error::NotLeader { hint: None });
                    self.answer_ask(from, group, request, &nobody);
                }
                admits
            }
            // They are known by the numbers of what they answer, or are about a whole node.
            _ => true,
        }
    }

    /// Whether a record that names a life of a group is for what is here. If not, its sender is told what it may not know: that
    /// its life is over. Who learns that of its own replica ends it.
    pub(super) fn admits(&mut self, from: NodeId, group: GroupId, life: Life) -> bool {
        if mutants::is_active(Mutant::LifeIgnored) {
            return true;
        }
        let here = self.life_of(group);
        if here == Some(life) {
            return true;
        }
        let over = match here {
            Some(here) if here > life => here.before(),
            Some(_) => {
                // A group gets another life only after this one was destroyed.
                return self.ends_with(group, life.before());
            }
            None => {
                let ended = self.log.tombstone_of(group);
                ended
                    .filter(|ended| !ended.allows(life))
                    .and_then(|ended| ended.over())
            }
        };
        let Some(over) = over else { return true };
        self.counters().rejected_messages.add(1);
        // A damaged log may not know which life it is of.
        if !self.log.has_lost_life(group) {
            self.tell_life_over(from, group, over);
        }
        false
    }

    /// Ends a replica because somebody knows that its life is over. False: it stays, because what its log lost might be a later
    /// life, which must not begin a second time.
    fn ends_with(&mut self, group: GroupId, over: Option<Life>) -> bool {
        if let Some(over) = over
            && !self.log.has_lost_life(group)
        {
            self.end_replica(group, Tombstone::destroyed(over));
            return true;
        }
        self.counters().rejected_messages.add(1);
        false
    }

    pub(super) fn tell_life_over(&mut self, to: NodeId, group: GroupId, over: Life) {
        let counters = self.shared.counters.shard(self.index);
        let frame = self.outgoing.append(to, group, wire::HEAD_BYTES, counters);
        if let Some(frame) = frame {
            wire::put_life_over(frame, (group, over));
        }
    }

    /// Another node says that a life of a group is over, and every one before it.
    pub(super) fn life_over(&mut self, from: NodeId, group: GroupId, over: Life) {
        match self.life_of(group) {
            Some(here) if here <= over => _ = self.ends_with(group, Some(over)),
            // It has not heard of this life yet.
            Some(_) => self.welcome(from, group, 0, Index::ZERO),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;

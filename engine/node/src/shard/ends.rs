//! Replicas that end: what is kept of them, who is told, and when their place may be used again.
//! A state machine must never be removed before the tombstone that stands for it is durable, and a slot never be used again
//! while anything that is under way may name it.

use std::collections::VecDeque;

use polyraft_raft::{
    Configuration, Env, Group, GroupId, Life, NodeId, Restored, Role, Tick, WriteId,
};
use polyraft_storage::{Ending, Lsn, Tombstone};
use rustc_hash::FxHashMap;

use super::coordinate::TIMEOUT;
use super::outgoing::NODE_LEVEL;
use super::replica::Replica;
use super::{Claim, Shard};
use crate::apply::Task;
use crate::directory::Shown;
use crate::error::Error;
use crate::event::ShardEvent;
use crate::wire::Fate;

/// For how long the members of a group are kept whose replica ended, in microseconds: longer than anybody waits for its end.
const KEPT_FOR: u64 = 4 * TIMEOUT;

/// Who belonged to a group whose replica has ended.
struct Former {
    life: Life,
    members: Configuration,
    until: Tick,
}

/// What ended on a shard, until nothing is left of it.
#[derive(Default)]
pub(super) struct Ends {
    /// What workers do once the records of this turn are durable.
    fresh: Vec<(GroupId, Task)>,
    /// By the batch that has to be durable first.
    waiting: VecDeque<(Lsn, GroupId, Task)>,
    /// Groups of which workers still have something, and how many replicas of each have ended.
    leaving: FxHashMap<GroupId, u32>,
    /// Slots that no worker will name any more.
    left: Vec<u32>,
    /// Slots to use again once a batch is durable: writes of whoever had them are under way until then.
    husks: VecDeque<(Lsn, u32)>,
    /// When a replica ended the last time.
    last_at: Option<Tick>,
    /// The members of the groups whose replicas ended not long ago, as those knew them last, and until when that is kept.
    former: FxHashMap<GroupId, Former>,
    /// The same times, in order.
    former_until: VecDeque<(Tick, GroupId)>,
    /// A tombstone was written that has no batch yet.
    has_fresh_tombstone: bool,
    /// The batch of the newest one that has.
    newest_tombstone: Lsn,
}

impl Ends {
    /// Has a group's worker do something once what this turn writes is durable, behind what it was given so before.
    pub(super) fn once_durable(&mut self, group: GroupId, task: Task) {
        self.fresh.push((group, task));
    }

    /// Gives back room beyond that for so many items of each kind.
    pub(super) fn shrink_to(&mut self, kept: usize) {
        self.fresh.shrink_to(kept);
        self.waiting.shrink_to(kept);
        self.left.shrink_to(kept);
        self.husks.shrink_to(kept);
        self.former.shrink_to(kept);
        self.former_until.shrink_to(kept);
    }

    /// A worker has nothing more of a replica, nor anything that could name its slot.
    pub(super) fn left(&mut self, group: GroupId, slot: Option<u32>) {
        if let Some(count) = self.leaving.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                self.leaving.remove(&group);
            }
        }
        self.left.extend(slot);
    }

    /// Whether something of a replica of a group that ended is still there.
    pub(super) fn is_leaving(&self, group: GroupId) -> bool {
        self.leaving.contains_key(&group)
    }

    /// Whether a crash would forget no tombstone.
    pub(super) fn are_durable(&self, durable: Lsn) -> bool {
        !self.has_fresh_tombstone && self.newest_tombstone <= durable
    }

    /// The members of a group as the replica knew them that ended here in this life. Whoever has to know of its end asks again for
    /// a while, and the tombstone does not say it.
    pub(super) fn former_members(&self, group: GroupId, life: Life) -> Option<&Configuration> {
        let former = self.former.get(&group)?;
        (former.life == life).then_some(&former.members)
    }

    /// Forgets the members of groups whose replicas ended long ago.
    pub(super) fn forget_former(&mut self, now: Tick) {
        let is_old = |(until, _): &mut (Tick, GroupId)| *until <= now;
        while let Some((until, group)) = self.former_until.pop_front_if(is_old) {
            // It may have ended again since.
            if (self.former.get(&group)).is_some_and(|former| former.until == until) {
                self.former.remove(&group);
            }
        }
    }

    /// When the members of a group are to be forgotten next.
    pub(super) fn forgets_at(&self) -> Option<Tick> {
        self.former_until.front().map(|(until, _)| *until)
    }

    fn keep_members(&mut self, group: GroupId, life: Life, members: Configuration, now: Tick) {
        self.forget_former(now);
        let until = now.after(KEPT_FOR);
        let former = Former {
            life,
            members,
            until,
        };
        self.former.insert(group, former);
        self.former_until.push_back((until, group));
    }

    /// A slot to use again.
    pub(super) fn husk(&mut self, durable: Lsn) -> Option<u32> {
        let husk = self.husks.pop_front_if(|(lsn, _)| *lsn <= durable);
        husk.map(|(_, slot)| slot)
    }

    /// For how long a replica that ended here may still be counted on by the leader that it was bound to.
    pub(super) fn bound_for(&self, now: Tick, silence: u64) -> u64 {
        let ended = self.last_at.map(|at| now.since(at));
        ended.map_or(0, |ended| silence.saturating_sub(ended))
    }

    /// All records up to now are in this batch, or in one before it.
    pub(super) fn submitted(&mut self, lsn: Lsn) {
        if std::mem::take(&mut self.has_fresh_tombstone) {
            self.newest_tombstone = lsn;
        }
        let fresh = self.fresh.drain(..);
        self.waiting
            .extend(fresh.map(|(group, task)| (lsn, group, task)));
        self.husks
            .extend(self.left.drain(..).map(|slot| (lsn, slot)));
    }
}

/// Who may go on without a replica that ends with these members in its log, as far as it can tell.
fn members_after(members: Configuration, ending: Ending, node: NodeId) -> Option<Configuration> {
    match ending {
        Ending::Destroyed => Some(members),
        // That it was removed is committed, so those that it knows from before decide nothing any more.
        Ending::Removed if members.is_joint() => {
            Some(Configuration::simple(members.voters().iter().copied()))
        }
        Ending::Removed => Some(members).filter(|members| !members.contains(node)),
    }
}

impl Shard {
    /// Which life a replica here belongs to, open or not.
    #[inline]
    pub(super) fn life_of(&self, group: GroupId) -> Option<Life> {
        match self.slot(group) {
            Some(slot) => Some(self.marks[slot as usize].life),
            None => self.opening.get(&group).map(|(found, _)| found.life),
        }
    }

    /// Whether something that was begun for a life of a group still has a replica to go to.
    pub(super) fn is_current(&self, group: GroupId, life: Life) -> bool {
        self.life_of(group) == Some(life)
    }

    /// Ends the replica of a group, if one of this life or of an earlier one is here, and keeps a tombstone in any case. Nothing
    /// of it is left when this returns but what workers do once the tombstone is durable. A later life goes on.
    pub(super) fn end_replica(&mut self, group: GroupId, tombstone: Tombstone) {
        let Tombstone { life, ending, .. } = tombstone;
        let here = self.log.life(group);
        if here.is_some_and(|here| here > life) {
            return;
        }
        let before = self.log.tombstone_of(group);
        if let Err(error) = self.log.tombstone(group, tombstone) {
            return self.fail(error.to_string());
        }
        self.ends.has_fresh_tombstone |= self.log.tombstone_of(group) != before;
        self.shared.directory.note_over(group, life);
        let known = before.and_then(|tombstone| tombstone.over());
        let known = known.max(here.and_then(Life::before));
        if let Some(over) = tombstone.over().filter(|over| Some(*over) > known) {
            self.told.note(group, over, self.now);
        }
        let Some(ended) = here else { return };
        if let Some((_, Fate::Here(members) | Fate::Stays(members))) = self.fate_of(group)
            && let Some(members) = members_after(members, ending, self.shared.node)
        {
            self.ends.keep_members(group, ended, members, self.now);
        }
        #[cfg(feature = "sim")]
        self.stepped.iter_mut().for_each(|list| list.push(group));
        tracing::info!(node = %self.shared.node, %group, life = %ended, ?ending, "a replica ends");
        let slot = self.slots.remove(group);
        match slot {
            Some(slot) => self.bury(slot),
            None => {
                self.opening.remove(&group);
                self.opening_ended();
            }
        }
        self.snapshots.forget(group);
        self.forget_transfers(group);
        let gone = Error::NoSuchGroup { group };
        self.leadership.fail(group, &gone);
        self.members.fail(group, &gone);
        self.forget_children(group, |_| true);
        self.splits.fail(group, &gone);
        let merged = self.gone(group);
        self.merges.ended(group, &merged);
        self.uncertain.remove(&group);
        self.shared.directory.remove(group);
        self.ends.last_at = Some(self.now);
        let task = Task::Destroy {
            group,
            life: ended,
            slot,
        };
        self.ends.once_durable(group, task);
        *self.ends.leaving.entry(group).or_default() += 1;
        // Nothing here stands by a claim on it any more, and the peers that count on that have to learn it.
        if self.home.is_some() {
            self.tell_claim(group);
        } else {
            self.shared.tell(0, ShardEvent::ClaimWanted { group });
        }
    }

    /// Answers everybody who waits for a replica, and puts a husk in its place.
    fn bury(&mut self, slot: u32) {
        let at = slot as usize;
        let group = self.replicas[at].group.id();
        let gone = Error::NoSuchGroup { group };
        self.fail_reads(slot, &gone);
        self.end_snapshots_of(slot, &gone);
        self.traces.forget(slot);
        self.members.forget(slot);
        self.repairs.forget(slot, group);
        self.splits.forget(slot);
        if self.sample.is_some_and(|sample| sample.slot == slot) {
            self.sample = None;
        }
        let env = Env {
            now: self.now,
            settings: &self.settings,
            alive: &self.alive,
        };
        // It arms no timer: it is no member of anything.
        let nobody = Restored::empty(Configuration::default());
        let node = self.shared.node;
        let core = Group::new(NODE_LEVEL, node, 0, &env, nobody, &mut self.outbox);
        let mut husk = Replica::new(core, Default::default());
        husk.fail("it has ended".to_owned());
        // There is nothing to show of it, and nobody to ask about it.
        husk.shown = husk.shown.out_of_service();
        let mut ended = std::mem::replace(&mut self.replicas[at], husk);
        self.marks[at].durable = WriteId::ZERO;
        let open = Error::Unknown {
            why: "the group's replica at its leader ended",
        };
        ended.forget_waiting(&mut self.queues, &open);
        ended.fail_all(&mut self.queues, &gone);
        let nobody = Shown::new(None, ended.group.term(), false);
        ended.cell.publish(nobody);
        let leads = ended.fault.is_none() && ended.group.role() == Role::Leader;
        if ended.is_shown_to_lead() || leads {
            self.claims.push(Claim {
                group,
                life: self.marks[at].life,
                term: None,
                members: ended.group.configuration().nodes().collect(),
            });
        }
        let counters = self.shared.counters.shard(self.index);
        counters.groups.sub(1);
        if ended.is_in_round {
            self.campaigns.round_ended();
        }
        if ended.is_shown_to_lead() {
            counters.led.sub(1);
        }
        if ended.shown.leader().is_none() {
            counters.leaderless.sub(1);
        }
        if ended.fault.is_some() {
            counters.quarantined.sub(1);
        }
    }

    /// What had to be durable before workers go on is so up to a batch.
    pub(super) fn finish_ends(&mut self) {
        let durable = self.durable;
        while let Some((_, group, task)) =
            self.ends.waiting.pop_front_if(|(lsn, ..)| *lsn <= durable)
        {
            self.shared.worker_of(group).send(task);
        }
    }
}

#[cfg(test)]
mod tests;

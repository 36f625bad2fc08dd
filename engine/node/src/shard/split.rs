//! Splitting a group: who asks, what the entry means when it is reached, and how the child begins.
//! A replica must never let go of what it splits off before the child keeps that durably on this node, and never make a child
//! that began, or ended, before.
//!
//! The entry is applied in steps, across the shards and workers of parent and child. The parent's shard stops handing out at
//! the entry and asks the child's shard. If the child is not there, the parent's state machine gives its part, a keeper writes
//! it as the child's first snapshot, and the child's shard begins the child behind that. Once the child is durable, the parent
//! goes on: its state machine lets the part go. A crash anywhere leads to the same entry again.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{Apply, Event, GroupId, Index, Life, Role, Term, Tick};
use polyraft_storage::{Creation, EntryKind, Lsn, SnapshotFile, StorageError, Tombstone};

use super::replica::Proposal;
use super::room::Leaving;
use super::{PROPOSAL_OVERHEAD, Payloads, Shard, leads};
use crate::apply::Task;
use crate::completion::ReplyTo;
use crate::error::Error;
use crate::event::ShardEvent;
use crate::keeper::Unsaved;
use crate::sessions::Opener;
use crate::split::{SplitEntry, SplitPlace};

/// How long a child that could not be written waits before that is tried again, in microseconds.
const RETRY: u64 = 500_000;

/// How often the first leader of a child campaigns at most: the others may come to the split a moment later.
const CAMPAIGNS: u8 = 7;

/// How often a split that waits for something is looked at, in microseconds.
const LOOK_AGAIN: u64 = 10_000;

/// How long a child that is not open, or out of service, counts as one that may be led some day, in microseconds.
const PATIENCE: u64 = 600_000_000;

/// The same of a child of which this node has nothing although its parent's state machine is past the split, in microseconds: most
/// likely there is none. Whoever has it tells this node so sooner.
const BRIEF: u64 = 10_000_000;

/// What a shard knows of splits.
#[derive(Debug, Default)]
pub(super) struct Splits {
    /// Splits of groups that wait to learn which life the child may have.
    asked: BTreeMap<GroupId, Asked>,
    /// When to look whether one of them may go on.
    look_at: Option<Tick>,
    /// The newest split that this node appended to a group, and the term in which it did so as its leader.
    appended: BTreeMap<GroupId, (Term, Index)>,
    /// Replicas that have come to a split and stop there.
    reached: BTreeMap<u32, Reached>,
    /// Children that were split off here, by parent, until a majority has them.
    children: BTreeMap<GroupId, Vec<Child>>,
    /// Replicas that want a snapshot and must not have one before majorities have their children.
    postponed: Vec<u32>,
    /// Children of this shard whose parents wait for what this turn writes, and for batches; and what they are told then.
    fresh: Vec<(SplitPlace, ChildNews)>,
    waiting: VecDeque<(Lsn, SplitPlace, ChildNews)>,
}

/// A split that a caller wants.
#[derive(Debug)]
struct Asked {
    child: GroupId,
    argument: Bytes,
    /// In which all nodes are asked for the child. Whatever split the group before is applied. None: that is waited for.
    term: Option<Term>,
    /// Until when.
    until: Tick,
    reply: ReplyTo,
}

/// A replica at an entry that splits its group.
#[derive(Debug)]
struct Reached {
    index: Index,
    term: Term,
    entry: SplitEntry,
    /// The child is durable here, or nothing is to be made.
    is_settled: bool,
    /// When to ask again for a child that could not be written.
    retry_at: Option<Tick>,
    /// Attempts to hand the group over to a node that can write.
    leaving: Option<Leaving>,
}

#[derive(Debug)]
pub(super) struct Child {
    group: GroupId,
    /// The place of its parent's log at which it was split off.
    at: Index,
    since: Tick,
    /// How long it counts while it is not open, or out of service.
    patience: u64,
    was_open: bool,
}

/// What became of a child.
#[derive(Debug)]
pub(crate) enum ChildNews {
    /// It is not here, and its parent's state machine has to give it.
    Wanted,
    /// It is durable here.
    Settled,
    /// It is not here, and its parent's state machine can't give it any more: after a restart that is past the split. The state
    /// machine refused it then, or the replica here has ended.
    Past,
    /// There is none: it ended, or nothing is split off.
    Nothing,
    /// It can't be written yet, because of something that is over soon.
    Later,
    /// It could not be written.
    Unwritten(String),
    /// The parent's state machine failed.
    Failed(String),
}

/// What happens to a group that is split, and to its child.
#[derive(Debug)]
pub(crate) enum SplitEvent {
    /// Somebody wants a part of a group to become a group of its own.
    Asked {
        group: GroupId,
        child: GroupId,
        argument: Bytes,
        reply: ReplyTo,
    },
    /// A leader is to split a child off: which life may it have? For the home shard.
    LifeWanted { parent: GroupId, child: GroupId },
    /// A child may have this life, or none.
    LifeKnown {
        parent: GroupId,
        child: GroupId,
        result: Result<Life, Error>,
    },
    /// A replica has come to the entry that splits a child off: is that here? For the child's shard.
    ChildWanted {
        at: SplitPlace,
        child: GroupId,
        life: Life,
    },
    /// A keeper has written what a child begins with, or could not. For the child's shard.
    ChildSaved {
        at: SplitPlace,
        child: GroupId,
        life: Life,
        result: Result<SnapshotFile, Unsaved>,
        /// The parent's leader is here, so the child's is to be here too.
        campaigns: bool,
    },
    /// What became of a child. For the parent's shard.
    ChildHeard { at: SplitPlace, news: ChildNews },
}

impl Splits {
    /// When something has to be looked at again.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let retries = self.reached.values().filter_map(|reached| reached.retry_at);
        retries.chain(self.look_at).min()
    }

    /// The split at which a replica stops does not wait for anything more.
    pub(super) fn settled_at(&self, slot: u32) -> Option<Index> {
        let reached = self.reached.get(&slot)?;
        reached.is_settled.then_some(reached.index)
    }

    /// Whether a replica stops at a split of which it has not made its part yet.
    pub(super) fn is_pending(&self, slot: u32) -> bool {
        let reached = self.reached.get(&slot);
        reached.is_some_and(|reached| !reached.is_settled)
    }

    /// Whether the leader of a group, in its term, has appended a split behind a place.
    fn has_behind(&self, group: GroupId, term: Term, through: Index) -> bool {
        let appended = self.appended.get(&group);
        appended.is_some_and(|(then, index)| *then == term && *index > through)
    }

    /// Groups that may have a child with too few replicas.
    pub(super) fn parents(&self) -> Vec<GroupId> {
        self.children.keys().copied().collect()
    }

    /// A replica stops at no split any more: it goes on, or its state comes from elsewhere, or it has ended. Whether it did.
    pub(super) fn forget(&mut self, slot: u32) -> bool {
        self.reached.remove(&slot).is_some()
    }

    /// A group ended here.
    pub(super) fn fail(&mut self, group: GroupId, error: &Error) {
        self.appended.remove(&group);
        if let Some(asked) = self.asked.remove(&group) {
            asked.reply.answer(Err(error.clone()));
        }
    }

    /// Answers everybody who waits.
    pub(super) fn fail_all(&mut self, error: &Error) {
        for asked in std::mem::take(&mut self.asked).into_values() {
            asked.reply.answer(Err(error.clone()));
        }
    }

    /// All records up to now are in this batch, or in one before it.
    pub(super) fn submitted(&mut self, lsn: Lsn) {
        let fresh = self.fresh.drain(..);
        self.waiting
            .extend(fresh.map(|(place, news)| (lsn, place, news)));
    }
}

impl Shard {
    /// Takes an event about a group that is split.
    pub(super) fn split_event(&mut self, event: SplitEvent) {
        match event {
            SplitEvent::Asked {
                group,
                child,
                argument,
                reply,
            } => self.split_asked(group, child, argument, reply),
            SplitEvent::LifeWanted { parent, child } => self.survey_child(parent, child),
            SplitEvent::LifeKnown {
                parent,
                child,
                result,
            } => self.child_life_known(parent, child, result),
            SplitEvent::ChildWanted { at, child, life } => self.child_wanted(at, child, life),
            SplitEvent::ChildSaved {
                at,
                child,
                life,
                result,
                campaigns,
            } => self.child_saved(at, (child, life), result, campaigns),
            SplitEvent::ChildHeard { at, news } => self.child_heard(at, news),
        }
    }

    // ---- the leader is asked ----

    /// A caller wants a part of a group to become a group of its own.
    fn split_asked(&mut self, group: GroupId, child: GroupId, argument: Bytes, reply: ReplyTo) {
        let refusal = match self.splits.asked.contains_key(&group) {
            true => Some(refused("another split is under way; wait for its end")),
            false => self.may_split(group).err(),
        };
        if let Some(error) = refusal {
            return reply.answer(Err(error));
        }
        let asked = Asked {
            child,
            argument,
            term: None,
            until: self.now.after(self.limits.proposal_timeout),
            reply,
        };
        self.splits.asked.insert(group, asked);
        self.splits.look_at = Some(self.now);
    }

    /// Goes on with splits that have waited for what split their groups before.
    fn look_at_asked(&mut self) {
        if self.splits.look_at.take_if(|at| *at <= self.now).is_none() {
            return;
        }
        let waiting = self
            .splits
            .asked
            .iter()
            .filter(|(_, asked)| asked.term.is_none());
        let waiting: Vec<GroupId> = waiting.map(|(group, _)| *group).collect();
        for group in waiting {
            let may_split = self.may_split(group);
            let Some(asked) = self.splits.asked.get_mut(&group) else {
                continue;
            };
            let error = match may_split {
                Ok(Some(term)) => {
                    asked.term = Some(term);
                    let (parent, child) = (group, asked.child);
                    let event = ShardEvent::Split(SplitEvent::LifeWanted { parent, child });
                    self.shared.tell(0, event);
                    continue;
                }
                Ok(None) if self.now < asked.until => {
                    self.splits.look_at = Some(self.now.after(LOOK_AGAIN));
                    continue;
                }
                Ok(None) => refused("the leader has not applied its log in time; try again"),
                Err(error) => error,
            };
            if let Some(asked) = self.splits.asked.remove(&group) {
                asked.reply.answer(Err(error));
            }
        }
    }

    /// The term in which the group may be split now; none: not yet.
    fn may_split(&self, group: GroupId) -> Result<Option<Term>, Error> {
        let slot = self.slot(group).ok_or_else(|| self.absent(group))?;
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        if let Some(error) = replica.refusal() {
            return Err(error);
        }
        if core.role() != Role::Leader {
            let hint = core.leader();
            return Err(Error::NotLeader { hint });
        }
        if self.merges.is_busy(group) {
            return Err(refused("the group is being merged"));
        }
        if self.members.is_wanted(group) || !core.members_are_settled() {
            return Err(refused("the members are being changed; wait for its end"));
        }
        if !core.configuration().witnesses().is_empty() {
            return Err(refused(
                "a witness has nothing to split; make it another member first",
            ));
        }
        // A split that is in the log and not applied may be of the same child, of which nobody could tell yet.
        let is_settled = core.term_at(core.applied()) == Some(core.term())
            && !self.splits.has_behind(group, core.term(), core.applied());
        Ok(is_settled.then(|| core.term()))
    }

    /// All nodes have been asked for a child: it may begin in this life, or not at all.
    fn child_life_known(&mut self, group: GroupId, child: GroupId, result: Result<Life, Error>) {
        let asked = self.splits.asked.get(&group);
        if asked.is_none_or(|asked| asked.child != child) {
            return;
        }
        let Some(asked) = self.splits.asked.remove(&group) else {
            return;
        };
        let may_split = self.may_split(group).and_then(|term| {
            let is_same = term.is_some() && term == asked.term;
            is_same.then_some(()).ok_or(Error::NotLeader { hint: None })
        });
        let life = match result.and_then(|life| may_split.map(|()| life)) {
            Ok(life) => life,
            Err(error) => return asked.reply.answer(Err(error)),
        };
        let slot = self.slot(group).expect("it was found just now");
        if Opener::new(group, self.marks[slot as usize].life) == Opener::new(child, life) {
            // Both go on with the same indexes, and a client of the one may come to the other.
            let why = "sessions of the child could not be told from those of the group; choose another id for the child";
            return asked.reply.answer(Err(refused(why)));
        }
        let replica = &mut self.replicas[slot as usize];
        let before = replica.group.last().index;
        let entry = SplitEntry {
            child,
            life,
            members: replica.group.configuration().clone(),
            argument: asked.argument,
        };
        let payload = entry.encode();
        replica.pending_bytes += payload.len() + PROPOSAL_OVERHEAD;
        let proposal = Proposal {
            payload,
            kind: EntryKind::Split,
            reply: asked.reply,
            deadline: self.now,
        };
        self.append_proposals(slot, &mut vec![proposal]);
        let core = &self.replicas[slot as usize].group;
        let last = core.last().index;
        if last > before {
            self.splits.appended.insert(group, (core.term(), last));
        }
    }

    /// Whether a child of a group may have too few replicas yet to do without those that the group's members are going to make.
    /// For the leader, before it appends anything about the members.
    pub(super) fn is_splitting(&mut self, slot: u32) -> bool {
        let (replica, group) = (
            &self.replicas[slot as usize],
            self.marks[slot as usize].group,
        );
        let (core, term) = (&replica.group, replica.group.term());
        // What this turn hands out is not on its way to the state machine yet.
        let mut coming = self.outbox.applies.iter();
        let coming = coming.find(|apply| apply.group == group);
        let through = coming.map_or(core.handed_out(), |apply| apply.first.prev());
        // Splits of earlier leaders lie before the first entry of this one.
        let may_meet_one = replica.is_held
            || core.term_at(through) != Some(term)
            || self.splits.has_behind(group, term, through);
        may_meet_one
            || self.splits.asked.contains_key(&group)
            || self.unborn_child_of(group).is_some()
    }

    /// Where the first child was split off a group of which it is not known yet that a majority has it. Once a child has committed
    /// an entry, a majority has what is before that; the votes for its leader may come from replicas that have nothing yet.
    ///
    /// After a restart the log leads to the same splits again: no snapshot is taken behind them before.
    pub(super) fn unborn_child_of(&mut self, group: GroupId) -> Option<Index> {
        let children = self.splits.children.get_mut(&group)?;
        let (directory, now) = (&self.shared.directory, self.now);
        children.retain_mut(|child| {
            let may_wait = now.since(child.since) < child.patience;
            let is_unborn = match directory.cell(child.group) {
                Some(cell) if cell.shown().is_out_of_service() => may_wait,
                Some(cell) => {
                    child.was_open = true;
                    !cell.shown().has_committed()
                }
                // It ended, or is not open yet.
                None => !child.was_open && !directory.is_child_over(child.group) && may_wait,
            };
            if !is_unborn {
                directory.forget_child(child.group);
            }
            is_unborn
        });
        let first = children.iter().map(|child| child.at).min();
        if first.is_none() {
            self.splits.children.remove(&group);
        }
        first
    }

    /// The child that this is.
    pub(super) fn unborn_child(&mut self, group: GroupId) -> Option<GroupId> {
        let at = self.unborn_child_of(group)?;
        let mut children = self.splits.children.get(&group)?.iter();
        children
            .find(|child| child.at == at)
            .map(|child| child.group)
    }

    /// Nobody waits any more for what becomes of some children of a group.
    pub(super) fn forget_children(&mut self, parent: GroupId, which: impl Fn(&Child) -> bool) {
        let Some(children) = self.splits.children.get_mut(&parent) else {
            return;
        };
        for child in children.extract_if(.., |child| which(child)) {
            self.shared.directory.forget_child(child.group);
        }
        if children.is_empty() {
            self.splits.children.remove(&parent);
        }
    }

    /// A replica wants a snapshot, which has to wait for the leader of a child.
    pub(super) fn postpone_snapshot(&mut self, slot: u32) {
        self.splits.postponed.push(slot);
        let at = self.now.after(LOOK_AGAIN);
        self.splits.look_at = Some(self.splits.look_at.map_or(at, |known| known.min(at)));
    }

    // ---- the entry is reached ----

    /// A replica has come to an entry that splits its group. Whether it has to stop there.
    pub(super) fn reach_split(
        &mut self,
        slot: u32,
        (index, term): (Index, Term),
        payload: &[u8],
    ) -> bool {
        // What no leader wrote does nothing. A member that came later makes no child.
        let group = self.marks[slot as usize].group;
        let entry = SplitEntry::of(group, payload);
        let entry = entry.filter(|entry| entry.members.contains(self.shared.node));
        let Some(entry) = entry else { return false };
        self.unborn_child_of(group);
        let child = Child {
            group: entry.child,
            at: index,
            since: self.now,
            patience: PATIENCE,
            was_open: false,
        };
        self.forget_children(group, |known| known.group == entry.child);
        self.shared.directory.await_child(entry.child, entry.life);
        let children = self.splits.children.entry(group).or_default();
        children.push(child);
        let reached = Reached {
            index,
            term,
            entry,
            is_settled: false,
            retry_at: None,
            leaving: None,
        };
        self.splits.reached.insert(slot, reached);
        self.ask_for_child(slot);
        true
    }

    /// Asks the child's shard whether the child is there.
    fn ask_for_child(&mut self, slot: u32) {
        let marks = &self.marks[slot as usize];
        let Some(reached) = self.splits.reached.get(&slot) else {
            return;
        };
        let (child, life) = (reached.entry.child, reached.entry.life);
        let at = SplitPlace {
            group: marks.group,
            life: marks.life,
            index: reached.index,
        };
        let event = ShardEvent::Split(SplitEvent::ChildWanted { at, child, life });
        self.shared.tell(self.shared.shard_of(child), event);
    }

    /// Goes on with splits that have waited, and asks again for children that could not be written.
    pub(super) fn run_splits(&mut self) {
        if self.splits.deadline().is_none_or(|at| at > self.now) {
            return;
        }
        self.look_at_asked();
        for slot in std::mem::take(&mut self.splits.postponed) {
            self.want_again(slot);
        }
        let mut due = Vec::new();
        for (slot, reached) in &mut self.splits.reached {
            if reached.retry_at.take_if(|at| *at <= self.now).is_some() {
                due.push(*slot);
            }
        }
        for slot in due {
            self.ask_for_child(slot);
        }
    }

    /// The parent's shard hears what became of the child.
    fn child_heard(&mut self, at: SplitPlace, news: ChildNews) {
        let slot = self.slot(at.group);
        let slot = slot.filter(|_| self.is_current(at.group, at.life));
        let Some(slot) = slot else { return };
        let leads = leads(&self.replicas[slot as usize]);
        let Some(reached) = self.splits.reached.get_mut(&slot) else {
            return;
        };
        if reached.index != at.index || reached.is_settled {
            return;
        }
        match news {
            ChildNews::Wanted => {
                let task = Task::SplitOff {
                    at,
                    term: reached.term,
                    entry: reached.entry.clone(),
                    campaigns: leads,
                };
                reached.is_settled = mutants::is_active(Mutant::ShedBeforeDurable);
                let goes_on = reached.is_settled;
                self.shared.worker_of(at.group).send(task);
                if goes_on {
                    self.release(slot);
                }
            }
            ChildNews::Settled | ChildNews::Past | ChildNews::Nothing => {
                reached.is_settled = true;
                let children = self.splits.children.get_mut(&at.group);
                let mut its = children.into_iter().flatten();
                if let Some(child) = its.find(|child| child.at == at.index)
                    && matches!(news, ChildNews::Past)
                {
                    child.patience = BRIEF;
                }
                if matches!(news, ChildNews::Nothing) {
                    self.forget_children(at.group, |child| child.at == at.index);
                }
                self.release(slot);
            }
            ChildNews::Later => reached.retry_at = Some(self.now.after(LOOK_AGAIN)),
            ChildNews::Unwritten(why) => {
                let now = self.now;
                reached.retry_at = Some(now.after(RETRY));
                let (group, child) = (at.group, reached.entry.child);
                tracing::error!(node = %self.shared.node, %group, %child, %why, "what a group splits off could not be written; the group waits, and it is tried again");
                // Another node may be able to write it, and nothing is answered here until then.
                let pause = self.settings.election_timeout_max;
                let leaving = reached.leaving.get_or_insert(Leaving::new(now, pause));
                if leads
                    && let Some(attempt) = leaving.attempt(now)
                    && let Some(to) = self.other_voter(slot, attempt)
                {
                    tracing::warn!(%group, %to, "handing a group over that can't be split here");
                    self.step(slot, Event::Transfer { to }, Payloads::None);
                }
            }
            ChildNews::Failed(reason) => self.quarantine(slot, reason),
        }
    }

    /// A replica whose state machine was busy goes on with what is committed behind that.
    pub(super) fn release(&mut self, slot: u32) {
        self.replicas[slot as usize].is_held = false;
        // Reads have waited for this too.
        self.touch(slot);
        self.want_again(slot);
        if let Some((first, end)) = self.snapshots.take_held(slot) {
            let group = self.marks[slot as usize].group;
            // Before what this turn has brought.
            self.outbox.applies.insert(0, Apply { group, first, end });
        }
    }

    // ---- the child ----

    /// Whether a child is to be made here from what its parent splits off.
    fn lacks_child(&self, child: GroupId, life: Life, at: Index) -> bool {
        match self.life_of(child) {
            // What a damaged log lost may be this very child.
            Some(_) if self.log.is_faulty(child) => false,
            // Somebody who has the child told this node of it. Its replica has nothing yet.
            Some(here) if here == life => self.log.last(child) < Some(at),
            Some(here) => here < life,
            None => {
                let ended = self.log.tombstone_of(child);
                ended.is_none_or(|ended| ended.life < life)
            }
        }
    }

    /// A replica of the parent has come to the split: the child is asked for.
    fn child_wanted(&mut self, at: SplitPlace, child: GroupId, life: Life) {
        if let Some(why) = self.is_foreign(child, life, at.index) {
            return self.tell_parent(at, ChildNews::Unwritten(why));
        }
        match self.lacks_child(child, life, at.index) {
            true => self.tell_parent(at, ChildNews::Wanted),
            false => self.splits.fresh.push((at, self.news_of(child, life))),
        }
    }

    /// What the parent hears of a child that is not to be made here.
    fn news_of(&self, child: GroupId, life: Life) -> ChildNews {
        match self.is_current(child, life) {
            true => ChildNews::Settled,
            false => ChildNews::Nothing,
        }
    }

    /// Why the group that has the child's id and life is not known to be the child. Its replica was made by this split, or told
    /// by a member to begin without a log; or it came back after a removal, and has the place of the split again.
    fn is_foreign(&self, child: GroupId, life: Life, at: Index) -> Option<String> {
        if !self.is_current(child, life) || self.log.is_faulty(child) {
            return None;
        }
        let joined = self.log.joined(child);
        let is_it = joined == at || joined == Index(1);
        let is_back = joined > Index::ZERO && self.log.last(child) >= Some(at);
        (!is_it && !is_back && !mutants::is_active(Mutant::EmptyChildVotes)).then(|| {
            format!("a group {child} is here that was not split off at {at}: its id was used twice")
        })
    }

    /// What the child begins with is durable, or could not be written.
    fn child_saved(
        &mut self,
        at: SplitPlace,
        (child, life): (GroupId, Life),
        result: Result<SnapshotFile, Unsaved>,
        campaigns: bool,
    ) {
        let file = match result {
            Ok(file) => file,
            Err(Unsaved::Machine(why)) => return self.tell_parent(at, ChildNews::Failed(why)),
            Err(Unsaved::Disk(why)) => return self.tell_parent(at, ChildNews::Unwritten(why)),
        };
        if let Some(why) = self.is_foreign(child, life, at.index) {
            return self.tell_parent(at, ChildNews::Unwritten(why));
        }
        if self.is_finishing_snapshot(child) {
            // A later one, from a node that has the child, which takes this one's place on the disk.
            return self.tell_parent(at, ChildNews::Later);
        }
        if self.lacks_child(child, life, at.index) {
            match self.begin_child(child, life, &file, campaigns) {
                Ok(()) => {}
                Err(error @ StorageError::GroupExists { .. }) => {
                    return self.tell_parent(at, ChildNews::Unwritten(error.to_string()));
                }
                Err(error) => return self.fail(error.to_string()),
            }
        } else if self.life_of(child) != Some(life) {
            // It ended meanwhile.
            self.remove_snapshots(vec![(child, life)]);
        }
        self.splits.fresh.push((at, self.news_of(child, life)));
    }

    /// Begins a replica behind the snapshot that it begins with; or gives that to one that has nothing yet.
    fn begin_child(
        &mut self,
        child: GroupId,
        life: Life,
        file: &SnapshotFile,
        campaigns: bool,
    ) -> Result<(), StorageError> {
        let (last, members) = (file.meta.last, &file.meta.configuration);
        if let Some(here) = self.life_of(child).filter(|here| *here < life) {
            // A group gets another life only after this one was destroyed.
            let over = life.before().unwrap_or(here);
            self.end_replica(child, Tombstone::destroyed(over));
        }
        if let Some(slot) = self.slot(child) {
            self.snapshots.keep_newest(file);
            let node = self.shared.node;
            self.install(slot, node, Term::ZERO, file);
            return Ok(());
        }
        if !self.opening.contains_key(&child) {
            let creation = Creation {
                joined: last.index,
                ..Creation::founding(life, members.clone())
            };
            let campaigns = if campaigns { CAMPAIGNS } else { 0 };
            self.create_group(child, creation, campaigns)?;
        }
        self.snapshots.keep_newest(file);
        self.log.reset(child, last, members)?;
        if let (Some(found), Some((opening, _))) =
            (self.log.recovered(child), self.opening.get_mut(&child))
        {
            *opening = found;
        }
        Ok(())
    }

    fn tell_parent(&self, at: SplitPlace, news: ChildNews) {
        let shard = self.shared.shard_of(at.group);
        self.shared.tell(
            shard,
            ShardEvent::Split(SplitEvent::ChildHeard { at, news }),
        );
    }

    /// Parents go on whose children are durable.
    pub(super) fn finish_children(&mut self) {
        let durable = self.durable;
        let waiting = &mut self.splits.waiting;
        let mut done = Vec::new();
        while let Some((_, at, news)) = waiting.pop_front_if(|(lsn, ..)| *lsn <= durable) {
            done.push((at, news));
        }
        for (at, news) in done {
            self.tell_parent(at, news);
        }
    }
}

fn refused(why: &str) -> Error {
    Error::Split {
        why: why.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests;

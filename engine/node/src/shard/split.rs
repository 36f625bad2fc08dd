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
use polyraft_raft::{Apply, GroupId, Index, Life, Role, Term, Tick};
use polyraft_storage::{Creation, EntryKind, Lsn, SnapshotFile, StorageError, Tombstone};

use super::replica::Proposal;
use super::{Shard, leads};
use crate::apply::Task;
use crate::completion::ReplyTo;
use crate::error::Error;
use crate::event::ShardEvent;
use crate::split::{SplitEntry, SplitPlace};

/// How long a child that could not be written waits before that is tried again, in microseconds.
const RETRY: u64 = 500_000;

/// How often the first leader of a child campaigns at most: the others may come to the split a moment later.
const CAMPAIGNS: u8 = 7;

/// How often a split that waits for something is looked at, in microseconds.
const LOOK_AGAIN: u64 = 10_000;

/// How long a child may take to be opened before its parent counts it as gone, in microseconds.
const OPENING: u64 = 10_000_000;

/// What a shard knows of splits.
#[derive(Debug, Default)]
pub(super) struct Splits {
    /// Splits of groups that wait to learn which life the child may have.
    asked: BTreeMap<GroupId, Asked>,
    /// When to look whether one of them may go on.
    look_at: Option<Tick>,
    /// The newest split that this node appended to a group, as its leader.
    appended: BTreeMap<GroupId, Index>,
    /// Replicas that have come to a split and stop there.
    reached: BTreeMap<u32, Reached>,
    /// Children that were split off here, by parent, until somebody leads them.
    children: BTreeMap<GroupId, Vec<Child>>,
    /// Children of this shard whose parents wait for what this turn writes, and for batches.
    fresh: Vec<SplitPlace>,
    waiting: VecDeque<(Lsn, SplitPlace)>,
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
}

#[derive(Debug)]
struct Child {
    group: GroupId,
    since: Tick,
    was_open: bool,
}

/// What became of a child.
#[derive(Debug)]
pub(crate) enum ChildNews {
    /// It is not here, and its parent's state machine has to give it.
    Wanted,
    /// It is durable here, or it ended, or there is none.
    Settled,
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
        result: Result<SnapshotFile, String>,
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

    /// A replica stops at no split any more: it goes on, or its state comes from elsewhere, or it has ended. Whether it did.
    pub(super) fn forget(&mut self, slot: u32) -> bool {
        self.reached.remove(&slot).is_some()
    }

    /// A group ended here.
    pub(super) fn fail(&mut self, group: GroupId, error: &Error) {
        self.appended.remove(&group);
        self.children.remove(&group);
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
        self.waiting.extend(fresh.map(|place| (lsn, place)));
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
        let slot = self.slot(group).ok_or(Error::NoSuchGroup { group })?;
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        if let Some(reason) = replica.fault.clone() {
            return Err(Error::Fault { reason });
        }
        if core.role() != Role::Leader {
            let hint = core.leader();
            return Err(Error::NotLeader { hint });
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
            && self.splits.appended.get(&group) <= Some(&core.applied());
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
        let replica = &mut self.replicas[slot as usize];
        let entry = SplitEntry {
            child,
            life,
            members: replica.group.configuration().clone(),
            argument: asked.argument,
        };
        let payload = entry.encode();
        replica.pending_bytes += payload.len();
        let proposal = Proposal {
            payload,
            kind: EntryKind::Split,
            reply: asked.reply,
            deadline: self.now,
        };
        self.append_proposals(slot, &mut vec![proposal]);
        let last = self.replicas[slot as usize].group.last().index;
        self.splits.appended.insert(group, last);
    }

    /// Whether a child of a group may have too few replicas yet to do without those that the group's members are going to make.
    pub(super) fn is_splitting(&mut self, slot: u32) -> bool {
        let (replica, group) = (
            &self.replicas[slot as usize],
            self.marks[slot as usize].group,
        );
        let mut coming = self.outbox.applies.iter();
        // What is not handed out to the end may split it.
        let is_behind = replica.is_held || coming.any(|apply| apply.group == group);
        is_behind || self.splits.asked.contains_key(&group) || self.has_unborn_child(group)
    }

    fn has_unborn_child(&mut self, group: GroupId) -> bool {
        let Some(children) = self.splits.children.get_mut(&group) else {
            return false;
        };
        let (directory, now) = (&self.shared.directory, self.now);
        children.retain_mut(|child| match directory.cell(child.group) {
            Some(cell) => {
                child.was_open = true;
                // Whoever leads has the votes of a majority, and only those vote that have what the group began with.
                cell.leader().is_none()
            }
            None => !child.was_open && now.since(child.since) < OPENING,
        });
        let has_some = !children.is_empty();
        if !has_some {
            self.splits.children.remove(&group);
        }
        has_some
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
        let entry = SplitEntry::parse(payload);
        let entry = entry.filter(|entry| entry.members.contains(self.shared.node));
        let Some(entry) = entry else { return false };
        let group = self.marks[slot as usize].group;
        let child = Child {
            group: entry.child,
            since: self.now,
            was_open: false,
        };
        let children = self.splits.children.entry(group).or_default();
        children.retain(|known| known.group != child.group);
        children.push(child);
        let reached = Reached {
            index,
            term,
            entry,
            is_settled: false,
            retry_at: None,
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
            ChildNews::Settled => {
                reached.is_settled = true;
                self.release(slot);
            }
            ChildNews::Unwritten(why) => {
                reached.retry_at = Some(self.now.after(RETRY));
                let (group, child) = (at.group, reached.entry.child);
                tracing::error!(node = %self.shared.node, %group, %child, %why, "what a group splits off could not be written; the group waits, and it is tried again");
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
        match self.lacks_child(child, life, at.index) {
            true => self.tell_parent(at, ChildNews::Wanted),
            false => self.splits.fresh.push(at),
        }
    }

    /// What the child begins with is durable, or could not be written.
    fn child_saved(
        &mut self,
        at: SplitPlace,
        (child, life): (GroupId, Life),
        result: Result<SnapshotFile, String>,
        campaigns: bool,
    ) {
        let file = match result {
            Ok(file) => file,
            Err(why) => return self.tell_parent(at, ChildNews::Unwritten(why)),
        };
        if self.lacks_child(child, life, at.index) {
            if let Err(error) = self.begin_child(child, life, &file, campaigns) {
                return self.fail(error.to_string());
            }
        } else if self.life_of(child) != Some(life) {
            // It ended meanwhile.
            self.remove_snapshots(vec![(child, life)]);
        }
        self.splits.fresh.push(at);
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
        while let Some((_, at)) = self.splits.waiting.pop_front_if(|(lsn, _)| *lsn <= durable) {
            self.tell_parent(at, ChildNews::Settled);
        }
    }
}

fn refused(why: &str) -> Error {
    Error::Split {
        why: why.to_owned(),
    }
}

//! Creating groups, ending them, and opening their replicas.
//! A creation must never be acknowledged before the WAL made it durable.

use std::collections::VecDeque;

use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{
    Configuration, Env, Group, GroupId, HardState, Index, Life, LogPosition, NodeId, Restored,
    Role, Term, shard_of,
};
use polyraft_storage::{Creation, Ending, Lsn, RecoveredGroup, StorageError, Tombstone};
use rustc_hash::FxHashMap;

use super::balance::rightful_of;
use super::coordinate::joined;
use super::replica::Replica;
use super::{Deferred, Marks, Shard};
use crate::apply::{Held, Task, Unheld};
use crate::error::Error;
use crate::event::{CreateOrigin, EndGrounds, GroupRanges, LifeRanges, ShardEvent, life_ranges};
use crate::status::{GroupStatus, Membership};
use crate::wire::{Fate, Found};

/// How many groups that became parts of each other are followed: more can hardly be merged while one waits to hear of it.
const MOST_HEIRS: usize = 16;

/// Answers about the lives of groups of this shard that wait for the disk.
#[derive(Debug, Default)]
pub(super) struct Creations {
    /// Made in this turn, so their batch is not known yet.
    fresh: Vec<ShardEvent>,
    /// By the batch that has to be durable first.
    waiting: VecDeque<(Lsn, ShardEvent)>,
}

impl Shard {
    /// The groups of a request that live on this shard, each with its life.
    fn mine<'a>(&self, groups: &'a LifeRanges) -> impl Iterator<Item = (GroupId, Life)> + use<'a> {
        let (index, shards) = (self.index, self.shared.inboxes.len());
        let each = groups
            .iter()
            .flat_map(|(range, life)| range.clone().map(|id| (GroupId(id), *life)));
        each.filter(move |(group, _)| shard_of(*group, shards) == index)
    }

    /// Creates the groups of `groups` that live on this shard, unless they exist. Those whose life is over here are left alone
    /// and reported with the one that they may have.
    pub(super) fn create(&mut self, origin: CreateOrigin, groups: &LifeRanges, members: &[NodeId]) {
        let configuration = Configuration::simple(members.iter().copied());
        let mut result = Ok(());
        let mut later = Vec::new();
        for (group, life) in self.mine(groups) {
            self.keep_beating();
            match self.create_one((group, life), &configuration) {
                Ok(possible) if possible == life => {}
                Ok(possible) => later.push((group.0, possible)),
                Err(error) => result = Err(error),
            }
        }
        let result = result.map(|()| life_ranges(later));
        let created = ShardEvent::Created { origin, result };
        self.creations.fresh.push(created);
    }

    /// Creates a group, unless it exists. Returns the life that it has or may have.
    pub(super) fn create_one(
        &mut self,
        (group, life): (GroupId, Life),
        configuration: &Configuration,
    ) -> Result<Life, Error> {
        if let Some(here) = self.life_of(group).filter(|here| *here < life) {
            // The one who asks knows that this one is over.
            if self.log.has_lost_life(group) {
                // What the log lost may be this very life, which must not begin twice. The others go on without it.
                tracing::error!(node = %self.shared.node, %group, %here, %life, "a damaged replica stays; destroy the group and create it again to have it back");
                return Ok(life);
            }
            let over = life.before().unwrap_or_default();
            self.end_replica(group, Tombstone::destroyed(over));
        }
        let existing = match (self.slot(group), self.opening.get(&group)) {
            (Some(slot), _) => Some(self.replicas[slot as usize].group.configuration()),
            (None, Some((found, _))) => Some(found.members()),
            (None, None) => None,
        };
        if let Some(existing) = existing {
            // A damaged log may not say who they are. Such a replica stays, and the others go on without it.
            let is_unknown = existing.voters().is_empty()
                && self.log.is_faulty(group)
                && self.life_of(group) == Some(life);
            // Whom it prefers may have been chosen since.
            let is_same = existing.clone().with_preferred(None) == *configuration;
            return match is_same || is_unknown {
                true => Ok(self.life_of(group).unwrap_or(life)),
                false => Err(Error::GroupExists {
                    group,
                    members: existing.nodes().collect(),
                }),
            };
        }
        match self.log.tombstone_of(group) {
            Some(ended) if ended.life == life && ended.ending == Ending::Removed => {
                // It lives on elsewhere.
                let members = Vec::new();
                return Err(Error::GroupExists { group, members });
            }
            Some(ended) if !ended.allows(life) => return Ok(ended.life.next()),
            _ => {}
        }
        let creation = Creation::founding(life, configuration.clone());
        // First leaders are spread over the members by the group's number; the others wait for an election timeout.
        let rightful = rightful_of(group, configuration, &self.alive);
        let campaigns = u8::from(rightful == Some(self.shared.node));
        let created = self.create_group(group, creation, campaigns);
        created.map(|()| life).map_err(|error| Error::Fault {
            reason: error.to_string(),
        })
    }

    /// Begins a replica and has its state machine opened. Once that is done, it `campaigns` so often at most.
    pub(super) fn create_group(
        &mut self,
        group: GroupId,
        creation: Creation,
        campaigns: u8,
    ) -> Result<(), StorageError> {
        let (life, is_witness) = (creation.life, creation.is_witness);
        self.log.begin(group, creation)?;
        let begun = self.log.recovered(group).expect("it was begun just now");
        self.opening.insert(group, (begun, campaigns));
        let task = Task::open(group, life, is_witness);
        // Behind the end of what was here before. And what a state machine keeps on the disk must not outlive its group's beginning in
        // the log: the group would begin anew without a log, and find a state that is ahead of it.
        self.ends.once_durable(group, task);
        Ok(())
    }

    /// Lives of groups are over: their replicas here end, and nothing of them may come back. Later lives that are here go on, and
    /// are reported; and who the members were when replicas ended here: they may have changed since whoever asks heard of them.
    pub(super) fn destroy(
        &mut self,
        origin: CreateOrigin,
        groups: &LifeRanges,
        grounds: EndGrounds,
    ) {
        let (mut later, mut former) = (Vec::new(), Vec::new());
        self.ends.forget_former(self.now);
        for (group, life) in self.mine(groups) {
            if grounds == EndGrounds::Word && self.log.has_lost_life(group) {
                // What the log lost may be a later life, which must not begin a second time. The replica is known to whoever asks.
                continue;
            }
            self.end_replica(group, Tombstone::destroyed(life));
            let here = self.life_of(group);
            later.extend(here.map(|here| (group.0, here)));
            let members = self.ends.former_members(group, life);
            let members = members.filter(|_| grounds == EndGrounds::Survey);
            former.extend(members.map(|members| Found {
                groups: group.0..group.0 + 1,
                life,
                fate: Fate::Here(members.clone()),
            }));
        }
        let destroyed = ShardEvent::Destroyed {
            origin,
            later: life_ranges(later),
            former: joined(former),
        };
        self.creations.fresh.push(destroyed);
    }

    /// Says which lives groups have, once every tombstone is durable: nobody may begin a life behind one that is over only until
    /// this node crashes.
    pub(super) fn survey(&mut self, origin: CreateOrigin, groups: &GroupRanges) {
        let mut found: Vec<Found> = Vec::new();
        for id in groups.iter().cloned().flatten() {
            let group = GroupId(id);
            if self.shared.shard_of(group) != self.index {
                continue;
            }
            let Some((life, fate)) = self.fate_of(group) else {
                continue;
            };
            match found.last_mut() {
                Some(last) if last.groups.end == id && (last.life, &last.fate) == (life, &fate) => {
                    last.groups.end = id + 1;
                }
                _ => found.push(Found {
                    groups: id..id + 1,
                    life,
                    fate,
                }),
            }
        }
        found.extend(self.asides(groups));
        let surveyed = ShardEvent::Surveyed { origin, found };
        match self.ends.are_durable(self.durable) {
            true => self.shared.tell(0, surveyed),
            false => self.creations.fresh.push(surveyed),
        }
    }

    /// What stands in the way of the end of groups, as far as is known here.
    fn asides(&mut self, groups: &GroupRanges) -> Vec<Found> {
        let is_asked = |group: GroupId| groups.iter().any(|range| range.contains(&group.0));
        let merged = self.shared.directory.all_merged();
        // What a replica knew that is out of service may be over for long.
        let is_here = |source: GroupId, through: Life| {
            let slot = self.slot(source).map(|slot| slot as usize);
            slot.is_some_and(|slot| {
                self.replicas[slot].fault.is_none() && self.marks[slot].life <= through
            })
        };
        let frozen = self.merges.targets();
        let frozen = frozen.filter(|(source, ..)| is_here(*source, Life::LAST));
        // One that was behind may not know yet that it is frozen.
        let behind = merged
            .iter()
            .filter(|(source, life, _)| is_here(*source, *life));
        let behind = behind.map(|(source, _, into)| (*source, *into, Life::LAST));
        let mut asides = Vec::new();
        for (source, target, life) in frozen.chain(behind) {
            // What was known to a target that has become a part of another group, that one knows.
            let heir_of = |(target, _): &(GroupId, Life)| {
                let mut merged = merged.iter();
                let heir = merged.find(|(group, ..)| group == target);
                heir.map(|(_, _, into)| (*into, Life::LAST))
            };
            let line = std::iter::successors(Some((target, life)), heir_of).take(MOST_HEIRS);
            for (group, life) in line.filter(|(group, _)| is_asked(*group)) {
                asides.push(aside(group, life, Fate::Target(source)));
            }
        }
        for parent in self
            .splits
            .parents()
            .into_iter()
            .filter(|group| is_asked(*group))
        {
            if let (Some(child), Some(life)) = (self.unborn_child(parent), self.life_of(parent)) {
                asides.push(aside(parent, life, Fate::Parent(child)));
            }
        }
        asides
    }

    /// The newest life of a group that this node knows of, and what became of it.
    pub(super) fn fate_of(&self, group: GroupId) -> Option<(Life, Fate)> {
        let members = match (self.slot(group), self.opening.get(&group)) {
            (Some(slot), _) => Some(self.replicas[slot as usize].group.configuration()),
            (None, Some((found, _))) => Some(found.members()),
            (None, None) => None,
        };
        let Some(members) = members else {
            let ended = self.log.tombstone_of(group)?;
            let fate = match ended.ending {
                Ending::Destroyed => Fate::Over,
                Ending::Removed => Fate::Elsewhere,
            };
            return Some((ended.life, fate));
        };
        // A damaged log may not say who they are.
        let fate = match self.log.has_lost_life(group) {
            _ if members.voters().is_empty() => Fate::Damaged,
            true => Fate::Stays(members.clone()),
            false => Fate::Here(members.clone()),
        };
        Some((self.life_of(group)?, fate))
    }

    /// The turn's records have their batch now; answers wait for it.
    pub(super) fn await_creations(&mut self) {
        let lsn = self.submitted;
        let fresh = self.creations.fresh.drain(..).map(|event| (lsn, event));
        self.creations.waiting.extend(fresh);
        self.finish_creations();
    }

    /// Gives answers whose batch is durable.
    pub(super) fn finish_creations(&mut self) {
        let durable = self.durable;
        while let Some((_, event)) = self
            .creations
            .waiting
            .pop_front_if(|(lsn, _)| *lsn <= durable)
        {
            self.shared.tell(0, event);
        }
    }

    /// A state machine is open, or not. One that lacks what the log lacks too gets the state of the snapshot first. One that
    /// holds something gets the group's sessions, which are as old as the snapshot: the log behind it is handed out for them.
    pub(super) fn opened(&mut self, group: GroupId, applied: Result<Index, String>) {
        let (Some((found, _)), Ok(machine)) = (self.opening.get(&group), &applied) else {
            return self.open_replica(group, applied.map(Held::all).map_err(Unheld::Other));
        };
        let (machine, base) = (*machine, found.base.index);
        if found.is_witness {
            return self.open_replica(group, Ok(Held::all(base)));
        }
        let is_sound = found.fault.is_none() && base <= machine && machine <= found.last;
        let file = self.snapshots.needed_by(found, machine).cloned();
        let (file, held) = match file {
            Some(file) => (Some(file), Index::ZERO),
            None if machine == Index::ZERO || !is_sound => {
                return self.open_replica(group, Ok(Held::all(machine)));
            }
            None => (self.snapshots.file(group).cloned(), machine),
        };
        match file.filter(|file| file.meta.last.index >= base) {
            Some(file) => {
                let restore = Task::Restore { file, held };
                self.shared.worker_of(group).send(restore);
            }
            None if base == Index::ZERO => self.open_replica(
                group,
                Ok(Held {
                    sessions: Index::ZERO,
                    ..Held::all(machine)
                }),
            ),
            None => {
                let reason = format!(
                    "the log starts after {base}, and the snapshot with the client sessions of that place is missing or \
                     damaged. {FROM_PEERS}"
                );
                self.open_replica(group, Err(Unheld::Snapshot(reason)));
            }
        }
    }

    /// A state machine is ready, or not: its replica starts, or is quarantined.
    pub(super) fn open_replica(&mut self, group: GroupId, held: Result<Held, Unheld>) {
        let Some((found, campaigns)) = self.opening.remove(&group) else {
            return;
        };
        self.opening_ended();
        let unheld = why_not(&found, &held);
        // Then its log, its term and its vote are as they were, and what it lacks the peers have.
        let has_lost_snapshot =
            found.fault.is_none() && matches!(unheld, Some(Unheld::Snapshot(_)));
        let is_damaged = found.fault.is_some() || has_lost_snapshot;
        let fault = found.fault.clone().or(unheld.map(Unheld::reason));
        // A snapshot that came was acknowledged before the log said so.
        let saved = self.snapshots.file(group);
        let saved = saved.map_or(Index::ZERO, |file| file.meta.last.index);
        let promised = found.joined.max(saved).max(found.hard_state.commit);
        let acknowledged = found.may_return.or(has_lost_snapshot.then_some(found.last));
        let may_return = acknowledged.map(|last| last.max(promised));
        // A state machine that is ahead of all that the log can have had comes from a later log.
        let through = found.may_return.unwrap_or(found.last);
        let is_newest = held.as_ref().map_or(true, |held| held.machine <= through);
        let is_certain = is_newest && !self.log.has_lost_vote(group);
        let mut held = held.unwrap_or(Held::all(found.base.index));
        if !self.log.has_sessions(group) {
            // Nothing behind the snapshot speaks of them: they are as they were there.
            held.sessions = held.machine;
        }
        let [machine, applied] =
            [held.machine, held.sessions].map(|index| index.clamp(found.base.index, found.last));
        // What the state machine holds durably was committed, whatever the last hard state said.
        let hard_state = HardState {
            vote: found
                .hard_state
                .vote
                .filter(|_| !mutants::is_active(Mutant::RecoveredVoteForgotten)),
            commit: found.hard_state.commit.clamp(machine, found.last),
            ..found.hard_state
        };
        let silence = self.settings.election_timeout_min;
        // A replica that has seen a term may have followed a leader who still counts on it; one that has not may
        // have done so before this node was opened, and have lost it. And so may the replica whose place it takes.
        let bound_for = if hard_state.term > Term::ZERO {
            silence
        } else {
            let open_for = self.now.since(self.opened_at);
            let ended = self.ends.bound_for(self.now, silence);
            let ended = if found.life > Life::FIRST { ended } else { 0 };
            silence.saturating_sub(open_for).max(ended)
        };
        let restored = Restored {
            hard_state,
            configuration: found.configuration,
            configurations: found.configurations,
            base: found.base,
            runs: found.runs,
            last: found.last,
            applied,
            bound_for,
            removed_at: found.joined,
            removed_in: found.removed_in,
            is_witness: found.is_witness,
        };
        let slot = self.ends.husk(self.durable);
        let slot = slot.unwrap_or(self.replicas.len() as u32);
        let env = Env {
            now: self.now,
            settings: &self.settings,
            alive: &self.alive,
        };
        let core = Group::new(
            group,
            self.shared.node,
            self.seed(group),
            &env,
            restored,
            &mut self.outbox,
        );
        self.keep_beating();
        self.slots.insert(group, slot);
        let mut replica = Replica::new(core, self.shared.directory.add(group));
        self.shared.directory.note_life(group, found.life);
        replica.saved = self
            .snapshots
            .file(group)
            .map_or(Index::ZERO, |file| file.meta.last.index);
        if self.snapshots.policy.bytes > 0 {
            // What was applied since the snapshot, before the node was opened, counts like what comes.
            let unsaved = replica.saved.next()..applied.next();
            replica.unsaved_bytes = self.log.bytes_of(group, unsaved);
        }
        let marks = Marks::new(group, found.life);
        if let Some(husk) = self.replicas.get_mut(slot as usize) {
            (*husk, self.marks[slot as usize]) = (replica, marks);
        } else {
            self.replicas.push(replica);
            self.marks.push(marks);
        }
        self.counters().groups.add(1);
        self.counters().leaderless.add(1);
        self.touch(slot);
        self.note_forlorn(slot);
        // What is quarantined stands by claims too, or those of all other groups of that node would count for nothing here.
        self.shared.tell(0, ShardEvent::ClaimWanted { group });
        if let Some(reason) = fault {
            if !is_certain {
                self.uncertain.insert(group);
            }
            if is_damaged {
                self.note_damaged(slot, may_return);
            }
            return self.quarantine(slot, reason);
        }
        if campaigns > 0 {
            let at = self.now.after(self.limits.campaign_delay);
            self.defer(at, Deferred::Campaign(group, found.life, campaigns));
        }
    }

    /// One group fewer is being opened.
    pub(super) fn opening_ended(&mut self) {
        if self.opening.is_empty() {
            self.ready = None;
            // It may have had room for every group of the node.
            self.opening = FxHashMap::default();
        }
    }

    /// Differs between groups, nodes and openings, so that timers never fall into step.
    fn seed(&self, group: GroupId) -> u64 {
        let mixed =
            group.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.shared.incarnation.rotate_left(32);
        mixed ^ self.shared.node.0.wrapping_mul(0xD1B5_4A32_D192_ED03)
    }

    pub(super) fn group_status(&self, group: GroupId) -> Result<GroupStatus, Error> {
        let Some(slot) = self.slot(group) else {
            let (found, _) = self.opening.get(&group).ok_or_else(|| self.gone(group))?;
            return Ok(status_while_opening(found));
        };
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        Ok(GroupStatus {
            group,
            life: self.marks[slot as usize].life,
            role: core.role(),
            is_witness: core.is_witness(),
            term: core.term(),
            leader: core.leader(),
            last: core.last(),
            durable: core.durable(),
            committed: core.committed(),
            applied: core.applied(),
            purged: core.base().index,
            snapshot: self.snapshots.file(group).map(|file| file.meta.last),
            members: Membership::of(core.configuration()),
            returning: core.returning().filter(|_| replica.fault.is_none()),
            merging_into: self.merges.frozen_into(group),
            fault: replica.fault_reason().map(str::to_owned),
        })
    }
}

fn aside(group: GroupId, life: Life, fate: Fate) -> Found {
    let groups = group.0..group.0 + 1;
    Found { groups, life, fate }
}

/// A replica whose state machine is being opened: it does not take part yet.
fn status_while_opening(found: &RecoveredGroup) -> GroupStatus {
    let term = found.runs.last().map_or(found.base.term, |run| run.term);
    GroupStatus {
        group: found.group,
        life: found.life,
        role: Role::Follower,
        is_witness: found.is_witness,
        term: found.hard_state.term,
        leader: None,
        last: LogPosition {
            term,
            index: found.last,
        },
        durable: found.last,
        committed: found.base.index,
        applied: found.base.index,
        purged: found.base.index,
        snapshot: None,
        members: Membership::of(found.members()),
        returning: None,
        merging_into: None,
        fault: found.fault.clone(),
    }
}

/// What to do about a snapshot that is lost.
const FROM_PEERS: &str = "With wal.repair the replica gets it from its peers, if a quorum of them is there; else remove this \
                          replica and add it anew, or restore the whole data directory from one moment";

/// Why a replica can't go on from where its log and its state machine are.
fn why_not(found: &RecoveredGroup, held: &Result<Held, Unheld>) -> Option<Unheld> {
    match held.as_ref().map(|held| held.machine) {
        Err(why) => Some(why.clone()),
        Ok(applied) if applied > found.last => Some(Unheld::Other(format!(
            "the state machine holds index {applied}, but the log ends at {}: the WAL is older than the state \
             machine, as after restoring a backup of it alone. Restore both from the same moment, or remove this \
             replica and add it anew",
            found.last
        ))),
        Ok(applied) if applied < found.base.index => Some(Unheld::Snapshot(format!(
            "the state machine holds index {applied}, the log starts after {}, and the snapshot of what was before is \
             missing or damaged. {FROM_PEERS}",
            found.base.index
        ))),
        Ok(_) => None,
    }
}

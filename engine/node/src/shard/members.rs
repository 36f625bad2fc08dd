//! Members of groups: changes that callers want, replicas that become members, and those that cease to be.
//! A caller must never be told that a change is over before a configuration that is not joint is committed.
//!
//! The core takes one step at a time: learners first, then voters through a joint configuration that it leaves by itself. What
//! is here brings a group from where it is to where the caller wants it, one step after the other.

use std::collections::{BTreeMap, BTreeSet};

use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{
    ChangeRefused, Configuration, Env, Event, GroupId, Index, Life, MemberChange, Message, NodeId,
    Removed, Role, Term, Tick,
};
use polyraft_storage::{Creation, Ending, Tombstone};

use super::{Payloads, Shard, leads};
use crate::error::Error;
use crate::event::MembersReply;
use crate::status::Membership;
use crate::wire::{self, Grounds, MAX_MEMBERS, Wants, Welcome};

/// How often a change that waits for something is looked at, in microseconds.
const LOOK_AGAIN: u64 = 10_000;

/// How long a replica that may have been left behind waits before it asks whether it is a member still, in election timeouts.
const PATIENCE: u64 = 10;

/// Replicas that ask in one turn at most: when a quorum of nodes is lost, all replicas may want to, and beats leave between turns.
const MOST_ASKS: usize = 1_024;

/// A part of a change may be in the log, or committed.
const STEPPED_DOWN: Error = Error::Unknown {
    why: "the leader stepped down during the change of members",
};

/// What a shard knows of changes of members.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Changes that callers wait for, by group: a group has one at a time.
    wanted: BTreeMap<GroupId, Wanted>,
    look_at: Option<Tick>,
    /// Groups that this node is no member of any more, as of an index.
    leaving: Vec<(GroupId, Index)>,
    forlorn: Forlorn,
}

/// Replicas that may have been left behind, by slot, and when each asks the next time.
#[derive(Debug, Default)]
struct Forlorn {
    asks_at: BTreeMap<u32, Tick>,
    /// The same, in the order in which they ask.
    order: BTreeSet<(Tick, u32)>,
}

impl Forlorn {
    /// A replica asks at a time, or before that if it was to do so already.
    fn add(&mut self, slot: u32, at: Tick) {
        let at = *self.asks_at.entry(slot).or_insert(at);
        self.order.insert((at, slot));
    }

    fn remove(&mut self, slot: u32) {
        if let Some(at) = self.asks_at.remove(&slot) {
            self.order.remove(&(at, slot));
        }
    }

    /// When the next one asks.
    fn next(&self) -> Option<Tick> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes out one whose time has come.
    fn take_due(&mut self, now: Tick) -> Option<u32> {
        let (_, slot) = self.order.first().copied().filter(|(at, _)| *at <= now)?;
        self.remove(slot);
        Some(slot)
    }
}

/// A change that a caller waits for.
#[derive(Debug)]
struct Wanted {
    changes: Vec<MemberChange>,
    until: Tick,
    /// What it waits for, for the caller to know when the time is over.
    waits_for: Waits,
    /// Something of it entered the log.
    has_begun: bool,
    reply: MembersReply,
}

/// What a change waits for.
#[derive(Debug, Clone, Copy)]
enum Waits {
    Turn,
    Quorum,
    CatchUp(NodeId),
}

impl Members {
    /// Whether replicas are to end at once.
    pub(super) fn are_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// When a change, or a replica without a leader, has to be looked at.
    pub(super) fn deadline(&self) -> Option<Tick> {
        [self.look_at, self.forlorn.next()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a caller waits for a change.
    pub(super) fn is_wanted(&self, group: GroupId) -> bool {
        self.wanted.contains_key(&group)
    }

    /// A replica has ended.
    pub(super) fn forget(&mut self, slot: u32) {
        self.forlorn.remove(slot);
    }

    /// Answers whoever waits for one group.
    pub(super) fn fail(&mut self, group: GroupId, error: &Error) {
        if let Some(wanted) = self.wanted.remove(&group) {
            let _ = wanted.reply.send(Err(error.clone()));
        }
    }

    /// Answers everybody.
    pub(super) fn fail_all(&mut self, error: &Error) {
        for wanted in std::mem::take(&mut self.wanted).into_values() {
            let _ = wanted.reply.send(Err(error.clone()));
        }
    }
}

impl Shard {
    // ---- changes ----

    /// A caller wants other members.
    pub(super) fn change_asked(
        &mut self,
        group: GroupId,
        changes: Vec<MemberChange>,
        within: u64,
        reply: MembersReply,
    ) {
        let refusal = match self.slot(group) {
            None => Some(self.absent(group)),
            Some(slot) => self.refusal_of(slot, &changes),
        };
        if let Some(error) = refusal {
            let _ = reply.send(Err(error));
            return;
        }
        let wanted = Wanted {
            changes,
            until: self.now.after(within),
            waits_for: Waits::Turn,
            has_begun: false,
            reply,
        };
        self.members.wanted.insert(group, wanted);
        self.members.look_at = Some(self.now);
    }

    /// What speaks against a change from the beginning.
    fn refusal_of(&self, slot: u32, changes: &[MemberChange]) -> Option<Error> {
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        if let Some(error) = replica.refusal() {
            return Some(error);
        }
        if self.members.wanted.contains_key(&core.id()) {
            let group = core.id();
            return Some(Error::ChangeUnderWay { group });
        }
        if core.role() != Role::Leader {
            let hint = core.leader();
            return Some(Error::NotLeader { hint });
        }
        let brought = changes.iter().filter(|change| {
            !matches!(change, MemberChange::Remove(_))
                && change.is_role()
                && !core.configuration().contains(change.node())
        });
        for node in brought.map(|change| change.node()) {
            if !self.alive.contains(node) {
                return Some(refused(format!(
                    "node {node} is silent, or no peer of this node; start it, and make it a peer of every node"
                )));
            }
        }
        let settled = match core.configuration().is_joint() {
            true => core.configuration().left(),
            false => core.configuration().clone(),
        };
        match settled.changed(changes) {
            Err(ChangeRefused::Unchanged) => None,
            Err(why) => Some(refused(words(why))),
            Ok(changed) if changed.nodes().count() > MAX_MEMBERS => Some(refused(format!(
                "a change names at most {MAX_MEMBERS} nodes, those before and after it together; make it in two"
            ))),
            Ok(_) => None,
        }
    }

    /// Brings changes that callers wait for one step further.
    pub(super) fn change_members(&mut self) {
        if self.members.look_at.is_none_or(|at| at > self.now) {
            return;
        }
        let groups: Vec<GroupId> = self.members.wanted.keys().copied().collect();
        for group in groups {
            let Some(wanted) = self.members.wanted.remove(&group) else {
                continue;
            };
            let Some(slot) = self.slot(group) else {
                let _ = wanted.reply.send(Err(Error::NoSuchGroup { group }));
                continue;
            };
            self.go_on_with(slot, wanted);
        }
        let has_more = !self.members.wanted.is_empty();
        self.members.look_at = has_more.then(|| self.now.after(LOOK_AGAIN));
    }

    fn go_on_with(&mut self, slot: u32, mut wanted: Wanted) {
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        let group = core.id();
        if let Some(error) = replica.refusal() {
            let _ = wanted.reply.send(Err(error));
            return;
        }
        let outcome = if !core.members_are_settled() {
            wanted.waits_for = Waits::Quorum;
            (!leads(replica)).then_some(Err(STEPPED_DOWN))
        } else {
            match core.configuration().changed(&wanted.changes) {
                // A leader that was removed does not lead any more.
                Err(ChangeRefused::Unchanged) => Some(Ok(Membership::of(core.configuration()))),
                Err(why) => Some(Err(refused(words(why)))),
                Ok(_) => self.next_change(slot, &mut wanted),
            }
        };
        match outcome {
            Some(outcome) => _ = wanted.reply.send(outcome),
            None if wanted.until <= self.now => {
                let _ = wanted.reply.send(Err(timed_out(wanted.waits_for)));
            }
            None => _ = self.members.wanted.insert(group, wanted),
        }
    }

    /// Proposes what comes next: nodes that are no members begin as learners. The end, if the core refuses it for good.
    fn next_change(&mut self, slot: u32, wanted: &mut Wanted) -> Option<Result<Membership, Error>> {
        let replica = &self.replicas[slot as usize];
        if !leads(replica) {
            let hint = replica.group.leader();
            return Some(Err(match wanted.has_begun {
                true => STEPPED_DOWN,
                false => Error::NotLeader { hint },
            }));
        }
        if self.is_splitting(slot) {
            // Those who leave could not make their replicas of the child any more.
            wanted.waits_for = Waits::Turn;
            return None;
        }
        let members = self.replicas[slot as usize].group.configuration();
        let learners: Vec<MemberChange> = wanted
            .changes
            .iter()
            .filter_map(|change| match change {
                MemberChange::Voter(node) if !members.contains(*node) => {
                    Some(MemberChange::Learner(*node))
                }
                MemberChange::Witness(node) if !members.contains(*node) => {
                    Some(MemberChange::WitnessLearner(*node))
                }
                _ => None,
            })
            .collect();
        let changes = match learners.is_empty() {
            true => &wanted.changes[..],
            false => &learners[..],
        };
        self.step(slot, Event::ChangeMembers { changes }, Payloads::None);
        let answer = self.outbox.changes.pop()?;
        match answer.outcome {
            Ok(_) => (wanted.waits_for, wanted.has_begun) = (Waits::Quorum, true),
            Err(ChangeRefused::Busy | ChangeRefused::NotReady) => wanted.waits_for = Waits::Turn,
            Err(ChangeRefused::NotCaughtUp { node }) => wanted.waits_for = Waits::CatchUp(node),
            Err(why) => return Some(Err(refused(words(why)))),
        }
        None
    }

    // ---- nodes that become members ----

    /// A node has no replica of a group. If it is a member, as far as known here, it is told to make one.
    ///
    /// It is sent the members as of the beginning of the log here, and takes them for those of index 0. If the log begins later
    /// they were others there, and what it is sent first may be an earlier entry about them. That decides nothing: with an empty
    /// log it wins only the votes of empty logs, and a majority of the members as of a committed index has that index, or is
    /// back after a removal and votes for no empty log. By the entry or the snapshot that brings it to the beginning of the log here,
    /// it knows what was true there.
    ///
    /// `answers` is the number of its question whether it may come back without its log; 0 if it did not ask that.
    pub(super) fn welcome(&mut self, node: NodeId, group: GroupId, answers: u64, proof: Index) {
        let Some(slot) = self.slot(group) else { return };
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        if replica.fault.is_some() || !core.configuration().contains(node) {
            return;
        }
        let Some(configuration) = self.log.base_configuration(group) else {
            return;
        };
        let subject = (group, self.marks[slot as usize].life);
        let counters = self.shared.counters.shard(self.index);
        let bytes = wire::join_bytes(configuration);
        if let Some(frame) = self.outgoing.append(node, group, bytes, counters) {
            let welcome = Welcome {
                term: core.term(),
                leads: core.role() == Role::Leader,
                // As of the beginning of the log it may have been none, or something else.
                is_witness: core.configuration().is_witness(node),
                answers,
                proof,
                has_begun: self.log.joined(group) > Index::ZERO,
            };
            wire::put_join(frame, subject, welcome, configuration);
        }
        self.step(slot, Event::BeganAnew { node }, Payloads::None);
    }

    /// This node is a member of a group that it has no replica of.
    pub(super) fn join(
        &mut self,
        from: NodeId,
        (group, life): (GroupId, Life),
        welcome: Welcome,
        configuration: &Configuration,
    ) {
        let Welcome {
            term,
            leads,
            is_witness,
            has_begun,
            ..
        } = welcome;
        if self.life_of(group).is_some() {
            return;
        }
        let removed = self.log.tombstone_of(group);
        if let Some(removed) = removed.filter(|removed| removed.life == life) {
            // Only a leader may have taken it in again. And its state machine would find what the one before left, as long as
            // that is not removed.
            if leads && term < removed.term {
                // One of an earlier term has to come forward first.
                self.say_stale(from, (group, life), removed.term);
            }
            if !leads || term < removed.term || self.ends.is_leaving(group) {
                return;
            }
        }
        let creation = Creation {
            is_witness,
            joined: match has_begun && !mutants::is_active(Mutant::EmptyChildVotes) {
                // Without a log it has nothing of what the group began with.
                true => Index(1),
                false => Index::ZERO,
            },
            ..Creation::founding(life, configuration.clone())
        };
        if let Err(error) = self.create_group(group, creation, 0) {
            tracing::error!(%group, %error, "a replica could not be made");
        }
    }

    pub(super) fn say_stale(&mut self, to: NodeId, subject: (GroupId, Life), term: Term) {
        let counters = self.shared.counters.shard(self.index);
        let frame = self
            .outgoing
            .append(to, subject.0, wire::APPEND_BYTES, counters);
        if let Some(frame) = frame {
            let nothing = std::iter::empty();
            wire::put_message(frame, subject, &Message::Stale { term }, nothing);
        }
    }

    // ---- nodes that cease to be members ----

    /// Nodes that this turn's entries removed are told so. A replica of this node goes on to the end of the turn: others may
    /// need what it has to say.
    pub(super) fn tell_removed(&mut self) {
        let mut removed = std::mem::take(&mut self.outbox.removed);
        for removed in removed.drain(..) {
            let Removed { group, node, at } = removed;
            match node == self.shared.node {
                true => self.members.leaving.push((group, at)),
                false => self.say_removed(node, group, at),
            }
        }
        self.outbox.removed = removed;
    }

    /// Ends the replicas that were removed in the turn before.
    pub(super) fn leave_groups(&mut self) {
        let mut leaving = std::mem::take(&mut self.members.leaving);
        for (group, at) in leaving.drain(..) {
            // What a damaged log lost may say that it was taken in again: then it asks.
            if let Some(slot) = self.slot(group)
                && self.is_out(slot, self.shared.node)
                && !self.repairs.is_damaged(slot)
                && !self.leaves_later(slot)
            {
                self.end_membership(slot, at, Term::ZERO);
            }
        }
        self.members.leaving = leaving;
    }

    /// Whether a replica has to make its part of a child before it ends. It asks again whether it is a member.
    fn leaves_later(&mut self, slot: u32) -> bool {
        let is_running = self.replicas[slot as usize].fault.is_none();
        let is_later = is_running && self.splits.is_pending(slot);
        if is_later {
            self.doubt_membership(slot);
        }
        is_later
    }

    fn say_removed(&mut self, node: NodeId, group: GroupId, at: Index) {
        let Some(slot) = self.slot(group) else { return };
        let grounds = match self.replicas[slot as usize].group.leads_settled_members() {
            true => Grounds::Leader,
            false => Grounds::Hearsay,
        };
        self.say_removed_on(grounds, node, slot, at);
    }

    /// Says so on these grounds.
    pub(super) fn say_removed_on(&mut self, grounds: Grounds, node: NodeId, slot: u32, at: Index) {
        let core = &self.replicas[slot as usize].group;
        let (group, term) = (core.id(), core.term());
        let subject = (group, self.marks[slot as usize].life);
        let counters = self.shared.counters.shard(self.index);
        let frame = self
            .outgoing
            .append(node, group, wire::REMOVED_BYTES, counters);
        if let Some(frame) = frame {
            wire::put_removed(frame, subject, at, term, grounds);
        }
    }

    /// Whether `node` is no member as of what is committed here, nor by anything later.
    fn is_out(&self, slot: u32, node: NodeId) -> bool {
        let core = &self.replicas[slot as usize].group;
        !core.configuration().contains(node) && !core.applied_configuration().contains(node)
    }

    /// A node that was a member once wants to know whether it is one still. If its log is damaged, only a leader may say so, who
    /// has proved that it is one; and the node may want to come back without that log.
    pub(super) fn member_asked(
        &mut self,
        from: NodeId,
        group: GroupId,
        (wants, question): (Wants, u64),
    ) {
        let slot = self.slot(group);
        let Some(slot) = slot.filter(|slot| self.replicas[*slot as usize].fault.is_none()) else {
            return;
        };
        if wants != Wants::Word {
            self.proof_asked(slot, from, (wants, question));
        } else if self.is_out(slot, from) {
            let at = self.replicas[slot as usize].group.handed_out();
            self.say_removed(from, group, at);
        }
    }

    /// Whether a message comes from a node that was removed and does not know it. It is told, and not heard: whoever has less
    /// of the log than this replica can't be elected by it.
    pub(super) fn is_from_removed(&mut self, slot: u32, from: NodeId, message: &Message) -> bool {
        let (Message::PreVote { last, .. } | Message::Vote { last, .. }) = *message else {
            return false;
        };
        let core = &self.replicas[slot as usize].group;
        if !self.is_out(slot, from) || last > core.last() {
            return false;
        }
        let (group, at) = (core.id(), core.handed_out());
        self.say_removed(from, group, at);
        true
    }

    // ---- replicas that were left behind ----

    /// A replica's leader is known, or not. One that may not stand, or was taken out of service, has no other way to learn that
    /// its group goes on without it.
    pub(super) fn note_forlorn(&mut self, slot: u32) {
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        let is_led = replica.fault.is_none() && core.leader().is_some();
        if is_led {
            self.members.forlorn.remove(slot);
        }
        let is_voter = core.configuration().is_voter(self.shared.node);
        if !is_led && (replica.fault.is_some() || !is_voter || !core.may_stand()) {
            self.doubt_membership(slot);
        }
    }

    /// A replica may be no member any more. It asks, unless a leader is heard before.
    fn doubt_membership(&mut self, slot: u32) {
        let at = self.ask_again_at(slot);
        self.members.forlorn.add(slot, at);
    }

    /// Somebody that a replica takes for a member has none. If nobody leads this one either, all whom it knows may have left, and
    /// it among them: it would ask them for their votes for ever.
    pub(super) fn note_stranger(&mut self, group: GroupId) {
        if let Some(slot) = self.slot(group)
            && self.replicas[slot as usize].group.leader().is_none()
        {
            self.doubt_membership(slot);
        }
    }

    /// The time of a replica has come to stand, and it asks nobody for a vote: too few live of those whom it knows. Its group may have
    /// moved on before they were lost, and nobody is left of them who could say so.
    pub(super) fn note_lonely(&mut self, slot: u32) {
        let replica = &self.replicas[slot as usize];
        let core = &replica.group;
        let env = Env {
            now: self.now,
            settings: &self.settings,
            alive: &self.alive,
        };
        // One that has ended may have a timer yet, and one that is out of service asks in any case.
        let is_running = replica.fault.is_none();
        if is_running && core.leader().is_none() && !core.has_live_quorum(&env) {
            self.doubt_membership(slot);
        }
    }

    fn ask_again_at(&self, slot: u32) -> Tick {
        let times = match self.repairs.is_possible(slot) {
            true => 1,
            false => PATIENCE,
        };
        let timeout = self.settings.election_timeout_max;
        // Not all of those at once whose logs were damaged together.
        let spread = u64::from(slot).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        self.now.after(times * timeout + spread % timeout.max(1))
    }

    /// What a replica that asks wants to hear.
    fn wants(&self, slot: u32) -> Wants {
        let group = self.replicas[slot as usize].group.id();
        if self.repairs.is_possible(slot) {
            Wants::Return
        } else if self.repairs.is_damaged(slot) && !self.log.has_lost_life(group) {
            Wants::Proof
        } else {
            Wants::Word
        }
    }

    /// Replicas that may have been left behind for long ask whether they are members still.
    pub(super) fn ask_members(&mut self) {
        for _ in 0..MOST_ASKS {
            let Some(slot) = self.members.forlorn.take_due(self.now) else {
                return;
            };
            let at = self.ask_again_at(slot);
            self.members.forlorn.add(slot, at);
            let (wants, question) = (self.wants(slot), self.repairs.question(slot));
            let group = self.replicas[slot as usize].group.id();
            // Whoever it knows for members may have left too.
            let mut living = self.outgoing.peers();
            living.retain(|node| self.alive.contains(*node));
            for node in living {
                let counters = self.shared.counters.shard(self.index);
                let frame = self
                    .outgoing
                    .append(node, group, wire::MEMBER_ASK_BYTES, counters);
                if let Some(frame) = frame {
                    let life = self.marks[slot as usize].life;
                    wire::put_member_ask(frame, (group, life), wants, question);
                }
            }
        }
    }

    /// Another replica says that this node was removed.
    pub(super) fn removal_heard(
        &mut self,
        from: NodeId,
        group: GroupId,
        at: Index,
        (term, grounds): (Term, Grounds),
    ) {
        let Some(slot) = self.slot(group) else { return };
        let core = &self.replicas[slot as usize].group;
        if self.repairs.is_damaged(slot) {
            // What it lost may say that it was taken in again since. Only what was committed after it asked is no old news; and
            // whoever is in an earlier term may have been overtaken all the same.
            if grounds != Grounds::Proof(self.repairs.question(slot)) {
                return;
            }
            if term < core.term() {
                let subject = (group, self.marks[slot as usize].life);
                return self.say_stale(from, subject, core.term());
            }
            return self.end_membership(slot, at, term);
        }
        let is_final = grounds != Grounds::Hearsay;
        if core.heeds_removal(at, is_final.then_some(term)) {
            if !self.leaves_later(slot) {
                self.end_membership(slot, at, term);
            }
            return;
        }
        if core.back_since(at).is_none() || core.leader().is_some() {
            return;
        }
        // An entry that may never have been committed says otherwise. The leader knows, once it is in no earlier term.
        if is_final && term < core.term() {
            let subject = (group, self.marks[slot as usize].life);
            self.say_stale(from, subject, core.term());
        }
        self.doubt_membership(slot);
    }

    /// This node is no member of a group any more, as of a committed index; somebody who knows that is in `term`.
    pub(super) fn end_membership(&mut self, slot: u32, at: Index, term: Term) {
        let core = &self.replicas[slot as usize].group;
        let (group, own) = (core.id(), core.term());
        if self.log.has_lost_life(group) {
            // It may be of another life, in which it may have voted.
            return;
        }
        // Who took a vote that is lost for that of a member led no later term than the one in which the removal was
        // committed. In that term the node must not vote again; a vote for itself gives it to nobody else.
        let vote = match self.log.has_lost_vote(group) {
            true => Some(self.shared.node),
            false => core.vote().filter(|_| own >= term),
        };
        let tombstone = Tombstone {
            life: self.marks[slot as usize].life,
            ending: Ending::Removed,
            term: own.max(term),
            vote,
            // Whatever a damaged log had behind that, nobody counted as this node's.
            at,
        };
        if let Some(wanted) = self.members.wanted.remove(&group) {
            // It was the end of what the caller wanted, or another change is lost with the replica.
            self.go_on_with(slot, wanted);
        }
        self.end_replica(group, tombstone);
    }
}

fn refused(why: impl Into<String>) -> Error {
    Error::Members { why: why.into() }
}

/// Why a caller waits no longer. What is in the log may be committed yet: nobody may be told that it was refused.
fn timed_out(waits_for: Waits) -> Error {
    match waits_for {
        Waits::Turn => {
            refused("the group was busy with another change, a handover or a split all the time")
        }
        Waits::Quorum => Error::Unknown {
            why: "no quorum of the old and the new voters took the change of members in time; it goes on, ask for the members later",
        },
        Waits::CatchUp(node) => refused(format!(
            "node {node} has not caught up in time, or does not answer, and the change needs its vote; try again, remove it if the others are a majority, or else see to it first"
        )),
    }
}

fn words(why: ChangeRefused) -> String {
    match why {
        ChangeRefused::Repeated { node } => format!("node {node} is named twice"),
        ChangeRefused::NoVoters => "nobody would vote".to_owned(),
        ChangeRefused::TooManyWitnesses => {
            "witnesses alone could commit, and nobody would have what".to_owned()
        }
        ChangeRefused::CannotLead { node } => {
            format!("node {node} can't be preferred: it would be no voter, or a witness")
        }
        ChangeRefused::KindKept { node } => format!(
            "node {node} is a member with payloads and would be one without, or the other way round; remove it first"
        ),
        ChangeRefused::NoQuorum => {
            "too few of the voters before and after it are alive to commit it".to_owned()
        }
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use polyraft_raft::{EntryRange, LogPosition};
    use polyraft_storage::EntryKind;
    use polyraft_storage::sim::SimDisk;

    use super::*;
    use crate::shard::split::tests::Alone;
    use crate::shard::tests::{GROUP, parts_on};

    #[test]
    fn only_what_is_in_the_log_may_be_committed_after_the_time_is_over() {
        let outcomes = [Waits::Turn, Waits::Quorum, Waits::CatchUp(NodeId(4))].map(timed_out);
        let may_be = outcomes.each_ref().map(Error::may_have_committed);
        assert_eq!(may_be, [false, true, false]);
        let is_refusal = |error: &Error| matches!(error, Error::Members { .. });
        assert_eq!(outcomes.each_ref().map(is_refusal), [true, false, true]);
    }

    #[test]
    fn who_waits_for_a_learner_of_a_leader_that_steps_down_is_not_told_that_nothing_happened() {
        let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
        alone.elect();
        alone.settle();
        let other = NodeId(2);
        alone.shard.alive.insert(other);
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        let changes = vec![MemberChange::Voter(other)];
        alone.shard.change_asked(GROUP, changes, 10_000_000, reply);
        for _ in 0..3 {
            alone.pass(LOOK_AGAIN);
            alone.settle();
        }
        let slot = alone.shard.slot(GROUP).expect("it is there");
        let members = alone.shard.replicas[slot as usize].group.configuration();
        assert!(members.contains(other) && !members.is_voter(other));
        assert!(answer.try_recv().is_err());

        let term = Term(99);
        alone.hear(Message::Append {
            term,
            prev: LogPosition::ZERO,
            entries: EntryRange::empty(term, Index(1)),
            commit: Index::ZERO,
        });
        alone.pass(LOOK_AGAIN);
        alone.settle();
        let answer = answer.try_recv().expect("an answer");
        assert!(matches!(answer, Err(Error::Unknown { .. })), "{answer:?}");
    }

    /// Its group may be gone, with all others who were in it, before it has heard of anything but an election.
    #[test]
    fn a_replica_that_may_not_stand_before_it_has_a_log_asks_what_became_of_its_group() {
        let path = Path::new("/n");
        let (_shared, mut parts) = parts_on(&SimDisk::new(1), path);
        let (shard, _) = &mut parts.shards[0];
        let members = Configuration::simple([1, 2, 3].map(NodeId));
        for (has_begun, group) in [(false, GroupId(7)), (true, GroupId(8))] {
            let welcome = Welcome {
                term: Term(1),
                leads: false,
                is_witness: false,
                answers: 0,
                proof: Index::ZERO,
                has_begun,
            };
            shard.join(NodeId(2), (group, Life::FIRST), welcome, &members);
            shard.opened(group, Ok(Index::ZERO));
            assert!(shard.slot(group).is_some());
            assert_eq!(shard.members.forlorn.next().is_some(), has_begun, "{group}");
        }
    }

    #[test]
    fn whoever_was_left_behind_asks_at_its_time_and_nobody_else_is_looked_at() {
        let mut forlorn = Forlorn::default();
        for (slot, at) in [(4, 30), (2, 10), (9, 20), (2, 40), (7, 20)] {
            forlorn.add(slot, Tick(at));
        }
        forlorn.remove(9);
        forlorn.remove(9);
        assert_eq!(forlorn.next(), Some(Tick(10)), "the first time counts");
        assert_eq!(forlorn.take_due(Tick(9)), None);
        let due = |forlorn: &mut Forlorn| forlorn.take_due(Tick(25));
        assert_eq!([due(&mut forlorn), due(&mut forlorn)], [Some(2), Some(7)]);
        assert_eq!((due(&mut forlorn), forlorn.next()), (None, Some(Tick(30))));
        forlorn.add(2, Tick(25));
        assert_eq!(due(&mut forlorn), Some(2));
    }
}

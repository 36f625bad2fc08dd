//! Changing the members (Raft paper, 6; thesis, 4): one change at a time, through a joint configuration when voters change, taken
//! from the log when it is appended and taken back with a truncated entry. A change must never begin before an entry of the
//! leader's own term is committed, nor while another one is not.

use smallvec::SmallVec;

use crate::group::{Group, Part, Restored};
use crate::mutants::{self, Mutant};
use crate::{
    ClaimChange, Configuration, Env, GroupId, Index, LogPosition, Message, NodeId, Origin, Outbox,
    Progress, ProgressState, Removed, Term, Tick,
};

/// What a node shall be in a group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemberChange {
    /// A voter. A node that is none yet has to be a learner that is caught up.
    Voter(NodeId),
    /// A learner. A voter that becomes one keeps its log.
    Learner(NodeId),
    /// A voter that stores no payload: it votes and counts for commits like any other, and never leads. A node that is none
    /// yet has to be a [`MemberChange::WitnessLearner`] that is caught up.
    Witness(NodeId),
    /// A learner that stores no payload. A witness that becomes one keeps what it has.
    WitnessLearner(NodeId),
    /// No member.
    Remove(NodeId),
    /// What it is, or becomes with the other changes: a voter that stores payloads. It should lead, and nobody else.
    Prefer(NodeId),
    /// What it is. Nobody should lead rather than others, if that was the one who should.
    Unprefer(NodeId),
}

impl MemberChange {
    /// The node concerned.
    #[must_use]
    pub const fn node(self) -> NodeId {
        match self {
            MemberChange::Voter(node)
            | MemberChange::Learner(node)
            | MemberChange::Witness(node)
            | MemberChange::WitnessLearner(node)
            | MemberChange::Remove(node)
            | MemberChange::Prefer(node)
            | MemberChange::Unprefer(node) => node,
        }
    }

    /// Whether it says what the node is, and not only who should lead.
    #[must_use]
    pub const fn is_role(self) -> bool {
        !matches!(self, MemberChange::Prefer(_) | MemberChange::Unprefer(_))
    }

    /// Whether the node shall store no payload.
    #[must_use]
    pub const fn is_witness(self) -> bool {
        matches!(
            self,
            MemberChange::Witness(_) | MemberChange::WitnessLearner(_)
        )
    }
}

/// The answer to one [`Event::ChangeMembers`](crate::Event::ChangeMembers).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MembersChanged {
    /// The group.
    pub group: GroupId,
    /// The place of the entry that begins the change, or why there is none. A place is not yet a commit; the change is
    /// over when a configuration that is not joint is committed.
    pub outcome: Result<LogPosition, ChangeRefused>,
}

/// Why members were not changed. Nothing was appended then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeRefused {
    /// This replica does not lead.
    NotLeader {
        /// Who does, as far as known.
        hint: Option<NodeId>,
    },
    /// Another change is not finished, or the leadership is being handed over.
    Busy,
    /// The leader has not committed an entry of its term yet.
    NotReady,
    /// The node would have to vote for the change and everything behind it, or does so already, and does not have nearly all of
    /// the log, or has not answered lately: it would hold up both.
    NotCaughtUp {
        /// The node.
        node: NodeId,
    },
    /// A node is named twice.
    Repeated {
        /// The node.
        node: NodeId,
    },
    /// Nobody would vote.
    NoVoters,
    /// Witnesses alone could be a quorum of the voters, without anybody who stores payloads.
    TooManyWitnesses,
    /// The node is a member that stores payloads and should not any more, or the other way round: remove it first.
    KindKept {
        /// The node.
        node: NodeId,
    },
    /// The node that should lead would be no voter, or one without payloads.
    CannotLead {
        /// The node.
        node: NodeId,
    },
    /// Too few of the voters before and after the change are alive: it would hold up everything until they are back.
    NoQuorum,
    /// Everybody is that already.
    Unchanged,
}

/// What a replica keeps of former members. Absent when there is nothing: it takes eight bytes in every idle replica.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Former(Option<Box<Kept>>);

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Kept {
    /// Configurations that entries of the log replaced, with the index of each such entry. Only those that are not handed out
    /// yet are kept: an earlier one can neither be taken back nor be asked for.
    replaced: Vec<(Index, Configuration)>,
    /// An earlier replica of this node was removed by the entry at this index, or by one before it, or may have acknowledged that.
    removed_at: Index,
    /// The newest term that the earlier replica had seen: neither happened in a later one.
    since: Term,
    /// The replica stores no payload. Here it costs nothing in all the others.
    is_witness: bool,
}

impl Former {
    /// An earlier replica of this node was removed, or lost its log, and had seen no later term than `since`; 0: there was none.
    /// And whether this one stores no payload.
    pub(crate) fn new(removed_at: Index, since: Term, is_witness: bool) -> Former {
        let kept = Kept {
            removed_at,
            since,
            is_witness,
            ..Kept::default()
        };
        let is_something = is_witness || removed_at > Index::ZERO;
        Former(is_something.then(|| Box::new(kept)))
    }

    /// The log begins anew.
    fn begin_anew(&self) -> Former {
        Former::new(self.known_removal(), self.since(), self.is_witness())
    }

    /// The index as of which this node knows that an earlier replica of it was removed, until the log has that; else 0.
    fn known_removal(&self) -> Index {
        self.0.as_ref().map_or(Index::ZERO, |kept| kept.removed_at)
    }

    /// In which term that was, or before.
    fn since(&self) -> Term {
        self.0.as_ref().map_or(Term::ZERO, |kept| kept.since)
    }

    pub(crate) fn is_witness(&self) -> bool {
        self.0.as_ref().is_some_and(|kept| kept.is_witness)
    }

    fn replaced(&self) -> &[(Index, Configuration)] {
        self.0.as_ref().map_or(&[], |kept| &kept.replaced)
    }

    fn push(&mut self, index: Index, before: Configuration) {
        self.0
            .get_or_insert_default()
            .replaced
            .push((index, before));
    }

    /// The newest entry of the kind.
    pub(crate) fn last(&self) -> Option<Index> {
        self.replaced().last().map(|(index, _)| *index)
    }

    /// What was in force before the oldest entry.
    fn first(&self) -> Option<&Configuration> {
        self.replaced().first().map(|(_, before)| before)
    }

    /// Whether `counts` holds for a configuration that an entry behind `committed` replaced.
    fn any_behind(&self, committed: Index, counts: impl Fn(&Configuration) -> bool) -> bool {
        let mut replaced = self.replaced().iter();
        replaced.any(|(index, before)| *index > committed && counts(before))
    }

    /// Takes entries from `from` on back; returns what was in force before them.
    fn roll_back(&mut self, from: Index) -> Option<Configuration> {
        let replaced = &mut self.0.as_mut()?.replaced;
        let at = replaced.partition_point(|(index, _)| *index < from);
        let before = replaced.drain(at..).next().map(|(_, before)| before);
        self.shrink();
        before
    }

    /// Takes out what entries through `through` replaced, with their indexes. These entries can't be taken back, nor what they
    /// say of this node; nor that the one at `through` is of a term, whose leader had all that an earlier replica had a part in.
    fn forget(&mut self, through: Index, term: Option<Term>) -> Vec<(Index, Configuration)> {
        let Some(kept) = &mut self.0 else {
            return Vec::new();
        };
        let settled = kept
            .replaced
            .partition_point(|(index, _)| *index <= through);
        let gone = kept.replaced.drain(..settled).collect();
        if kept.removed_at <= through || term.is_some_and(|term| term > kept.since) {
            (kept.removed_at, kept.since) = (Index::ZERO, Term::ZERO);
        }
        self.shrink();
        gone
    }

    fn shrink(&mut self) {
        self.0.take_if(|kept| **kept == Kept::default());
    }
}

/// The index that the log of a replica has to reach again before it votes, after it lost one that may have gone through `last`:
/// that far it may have helped to commit entries. See [`Restored::removed_at`](Restored::removed_at).
#[must_use]
pub fn votes_again_at(last: Index) -> Index {
    match mutants::is_active(Mutant::RepairedVotes) {
        true => Index::ZERO,
        false => last,
    }
}

impl Configuration {
    /// The configuration in which `changes` are under way: joint when voters change, final when only learners do.
    ///
    /// # Errors
    /// When it would be no configuration, or the same one. This one must not be joint.
    pub fn changed(&self, changes: &[MemberChange]) -> Result<Configuration, ChangeRefused> {
        let mut voters: SmallVec<[NodeId; 8]> = self.voters().into();
        let mut learners: SmallVec<[NodeId; 8]> = self.learners().into();
        let mut preferred = self.preferred();
        for (at, change) in changes.iter().enumerate() {
            let node = change.node();
            let is_alike = |earlier: &MemberChange| match change.is_role() {
                true => earlier.is_role() && earlier.node() == node,
                false => !earlier.is_role(),
            };
            if changes[..at].iter().any(is_alike) {
                return Err(ChangeRefused::Repeated { node });
            }
            match change {
                MemberChange::Prefer(_) => preferred = Some(node),
                MemberChange::Unprefer(_) => _ = preferred.take_if(|known| *known == node),
                _ => {}
            }
            if !change.is_role() {
                continue;
            }
            let stays = !matches!(change, MemberChange::Remove(_));
            if stays && self.contains(node) && self.is_witness(node) != change.is_witness() {
                return Err(ChangeRefused::KindKept { node });
            }
            voters.retain(|voter| *voter != node);
            learners.retain(|learner| *learner != node);
            match change {
                MemberChange::Voter(_) | MemberChange::Witness(_) => voters.push(node),
                MemberChange::Learner(_) | MemberChange::WitnessLearner(_) => learners.push(node),
                _ => {}
            }
        }
        if voters.is_empty() {
            return Err(ChangeRefused::NoVoters);
        }
        voters.sort_unstable();
        let is_joint = voters[..] != *self.voters();
        let outgoing: &[NodeId] = if is_joint { self.voters() } else { &[] };
        let (outgoing, next) = (outgoing.iter().copied(), learners.iter().copied());
        let changed = Configuration::joint(voters, outgoing, learners.iter().copied(), next);
        // Nobody is both: what a node was in the outgoing half it is in the other.
        let brought = changes.iter().filter(|change| change.is_witness());
        let brought = brought.map(|change| change.node());
        let changed = changed.with_witnesses(self.witnesses().iter().copied().chain(brought));
        if changed.witnesses_could_decide() && !mutants::is_active(Mutant::WitnessMajority) {
            return Err(ChangeRefused::TooManyWitnesses);
        }
        let changed = changed.with_preferred(preferred);
        let mut wanted = changes.iter().filter(|change| !change.is_role());
        if let Some(MemberChange::Prefer(node)) = wanted.next()
            && changed.preferred() != Some(*node)
        {
            return Err(ChangeRefused::CannotLead { node: *node });
        }
        match changed == *self {
            true => Err(ChangeRefused::Unchanged),
            false => Ok(changed),
        }
    }

    /// The configuration after the joint phase of this one.
    #[must_use]
    pub fn left(&self) -> Configuration {
        let learners = self.learners().iter().chain(self.learners_next());
        Configuration::joint(
            self.voters().iter().copied(),
            [],
            learners.copied().collect::<Vec<_>>(),
            [],
        )
        .with_witnesses(self.witnesses().iter().copied())
        .with_preferred(self.preferred())
    }
}

impl Group {
    /// A leader appends a change of members, if it may.
    pub(crate) fn change_members(
        &mut self,
        env: &Env<'_>,
        changes: &[MemberChange],
        out: &mut Outbox,
    ) {
        let outcome = self.try_change(env, changes, out);
        out.changes.push(MembersChanged {
            group: self.id,
            outcome,
        });
    }

    fn try_change(
        &mut self,
        env: &Env<'_>,
        changes: &[MemberChange],
        out: &mut Outbox,
    ) -> Result<LogPosition, ChangeRefused> {
        let Part::Leader(leading) = &self.part else {
            return Err(ChangeRefused::NotLeader { hint: self.leader });
        };
        let is_pending = self
            .former
            .last()
            .is_some_and(|index| index > self.committed);
        let overlaps = mutants::is_active(Mutant::ChangesOverlap);
        if (self.configuration.is_joint() || is_pending) && !overlaps || leading.handover.is_some()
        {
            return Err(ChangeRefused::Busy);
        }
        // Without that, a change of an earlier leader could still commit beside this one.
        if self.committed < leading.term_start && !overlaps {
            return Err(ChangeRefused::NotReady);
        }
        let changed = self.configuration.changed(changes)?;
        for node in changed.voters() {
            let is_new = !self.configuration.is_voter(*node);
            if is_new
                && !self.is_caught_up(env, *node)
                && !mutants::is_active(Mutant::LaggardPromoted)
            {
                return Err(ChangeRefused::NotCaughtUp { node: *node });
            }
        }
        if !changed.has_quorum(|node| env.alive.contains(node)) {
            return Err(ChangeRefused::NoQuorum);
        }
        // A live node is not enough: its replica may be out of service.
        let counts = |node| !self.configuration.is_voter(node) || self.keeps_up(env, node);
        if !changed.has_quorum(counts) {
            let mut voters = changed.nodes().filter(|node| changed.is_voter(*node));
            let node = voters.find(|node| env.alive.contains(*node) && !counts(*node));
            return Err(
                node.map_or(ChangeRefused::NoQuorum, |node| ChangeRefused::NotCaughtUp {
                    node,
                }),
            );
        }
        Ok(self.append_configuration(env, changed, out))
    }

    /// Whether a learner would not hold up commits for long if it voted: it takes appends, and one of them brings it to the end.
    /// It has the entry that made it a learner too: it may vote by then, whatever was before.
    fn is_caught_up(&self, env: &Env<'_>, node: NodeId) -> bool {
        let most = u64::from(env.settings.max_append_entries.max(1));
        let configured_at = self
            .leading()
            .map_or(Index::ZERO, |leading| leading.configured_at);
        self.progress(node).is_some_and(|progress| {
            self.is_within(most, progress) && progress.matched >= configured_at
        })
    }

    /// Whether a voter has a part in commits: it takes appends, and lacks no more than may be on the way to it under load.
    fn keeps_up(&self, env: &Env<'_>, node: NodeId) -> bool {
        let settings = env.settings;
        let most = u64::from(settings.max_append_entries.max(1)).max(settings.inflight_entries);
        let progress = self.progress(node);
        node == self.node || progress.is_some_and(|progress| self.is_within(most, progress))
    }

    fn is_within(&self, most: u64, progress: &Progress) -> bool {
        progress.alive
            && progress.state == ProgressState::Replicate
            && self.log.last_index().0 - progress.matched.0 <= most
    }

    fn append_configuration(
        &mut self,
        env: &Env<'_>,
        configuration: Configuration,
        out: &mut Outbox,
    ) -> LogPosition {
        let entries = self.append_own(1, Origin::Configuration, out);
        self.adopt(entries.first, configuration);
        if let Part::Leader(leading) = &mut self.part {
            leading.configured_at = entries.first;
        }
        self.follow_members(env, out);
        LogPosition {
            term: entries.term,
            index: entries.first,
        }
    }

    /// The entry at `index` says who the members are. It counts from when it is in the log (Raft thesis, 4.1).
    pub(crate) fn adopt(&mut self, index: Index, configuration: Configuration) {
        let before = std::mem::replace(&mut self.configuration, configuration);
        self.former.push(index, before);
    }

    /// Entries from `from` on are gone, and with them what they said of the members.
    pub(crate) fn take_back_configurations(&mut self, from: Index) {
        if mutants::is_active(Mutant::ConfigurationKept) {
            return;
        }
        if let Some(before) = self.former.roll_back(from) {
            self.configuration = before;
        }
    }

    /// The log begins anew with these members.
    pub(crate) fn reset_configuration(&mut self, configuration: &Configuration) {
        self.former = self.former.begin_anew();
        self.configuration.clone_from(configuration);
    }

    /// Whether it may try to lead: it votes, or voted before an entry that is not known to be committed. Without the latter
    /// nobody could win whose log is shorter, although the others may still need its vote (Raft thesis, 4.2.2). A witness never
    /// may: it could send nobody what it is committed to.
    #[must_use]
    pub fn may_stand(&self) -> bool {
        if self.is_witness() && !mutants::is_active(Mutant::WitnessCampaigns) {
            return false;
        }
        let votes = |members: &Configuration| members.is_voter(self.node);
        (votes(&self.configuration) || self.former.any_behind(self.committed, votes))
            && self.knows_its_removal()
    }

    /// Whether it has everything that was committed when an earlier replica of its node was removed, or that such a replica may
    /// have acknowledged before it lost its log. Somebody who does not have that may take this one for the earlier one, and must
    /// not be elected by it.
    ///
    /// An entry of a later term than any that the earlier one had seen comes from a leader who had all that was committed before.
    pub(crate) fn knows_its_removal(&self) -> bool {
        let Some(kept) = &self.former.0 else {
            return true;
        };
        let last = self.log.last();
        last.index >= kept.removed_at
            || last.term > kept.since
            || mutants::is_active(Mutant::ReturnedVotes)
    }

    /// Whether it may vote for whoever has a log through `last`. Without what an earlier replica of its node may have had a part
    /// in, it asks of the candidate's log what it would ask of its own: a log of the last term that one had seen is the
    /// beginning of that leader's, and a later term's begins with all that was committed before.
    ///
    /// No replica of this node was there before if it lacks nothing but what the group began with: then it has acknowledged
    /// nothing, and any log that begins behind that will do. A candidate without one would begin the group anew.
    pub(crate) fn may_elect(&self, last: LogPosition) -> bool {
        let (since, has_all) = (
            self.former.since(),
            last.index >= self.former.known_removal(),
        );
        self.knows_its_removal()
            || match since {
                Restored::NEVER => has_all,
                _ => last.term > since || (last.term == since && has_all),
            }
    }

    /// The index that the log has to reach before this replica stands, or votes for whoever has less, while it may not: an
    /// earlier replica of its node was removed as of there, or may have acknowledged that.
    #[must_use]
    pub fn returning(&self) -> Option<Index> {
        (!self.knows_its_removal()).then(|| self.former.known_removal())
    }

    /// What is handed out can't be taken back. Whoever it made no member is told of.
    #[inline]
    pub(crate) fn settle_configurations(&mut self, out: &mut Outbox) {
        if self.former.0.is_some() {
            self.note_removed(out);
        }
    }

    fn note_removed(&mut self, out: &mut Outbox) {
        let leads = matches!(self.part, Part::Leader(_));
        // Through there the log says what this node knew when it came back; but nothing of what was so in a later term.
        let (known, since) = (self.former.known_removal(), self.former.since());
        let is_known =
            |at: Index| at <= known && self.log.term_at(at).is_none_or(|term| term <= since);
        let term = self.log.term_at(self.handed_out);
        let settled = self.former.forget(self.handed_out, term);
        let newer = settled.iter().skip(1).map(|(_, before)| before);
        let afters = newer.chain([self.applied_configuration()]);
        for ((at, before), after) in settled.iter().zip(afters) {
            let is_out =
                |node: &NodeId| !after.contains(*node) && !self.configuration.contains(*node);
            let is_news = |node: &NodeId| match *node == self.node {
                true => !is_known(*at),
                false => leads,
            };
            let told = before.nodes().filter(is_out).filter(is_news);
            out.removed.extend(told.map(|node| Removed {
                group: self.id,
                node,
                at: *at,
            }));
        }
    }

    /// Whether the members are committed, and not joint: nothing is left to be done for them.
    #[must_use]
    pub fn members_are_settled(&self) -> bool {
        let newest = self.former.last();
        !self.configuration.is_joint() && newest.is_none_or(|index| index <= self.committed)
    }

    /// Whether word that this node is no member as of a committed index is news: this replica has not come so far, and no
    /// later entry of its log makes the node a member again.
    ///
    /// `by` is the term of whoever says so, if that one [leads with members that are settled](Self::leads_settled_members). A
    /// leader of a later term than such an entry, in whose log it is not, proves that it was never committed. Nor does such a
    /// leader speak of what an earlier replica of this node was told in an earlier term.
    #[must_use]
    pub fn heeds_removal(&self, at: Index, by: Option<Term>) -> bool {
        let is_known =
            at <= self.former.known_removal() && by.is_none_or(|term| term <= self.former.since());
        if self.handed_out >= at || is_known {
            return false;
        }
        let Some(back) = self.back_since(at) else {
            return true;
        };
        let of = self.log.term_at(back);
        by.is_some_and(|term| term >= self.term && of.is_some_and(|of| of < term))
    }

    /// The entry behind a committed index, at which this node was no member, that makes it one again. It may never have been
    /// committed.
    #[must_use]
    pub fn back_since(&self, at: Index) -> Option<Index> {
        let newest = self.former.last().filter(|index| *index > at);
        newest.filter(|_| self.configuration.contains(self.node))
    }

    /// Whether this replica leads, and everything that its log says of the members is committed and handed out: who is no
    /// member then is none by any entry that counts.
    #[must_use]
    pub fn leads_settled_members(&self) -> bool {
        let is_settled = self.former.last().is_none() && !self.configuration.is_joint();
        is_settled && matches!(self.part, Part::Leader(_))
    }

    /// The members as of the last entry that was handed out for applying.
    #[must_use]
    pub fn applied_configuration(&self) -> &Configuration {
        self.former.first().unwrap_or(&self.configuration)
    }

    /// The members have changed: whoever has a timer or is sent entries may be another.
    pub(crate) fn follow_members(&mut self, env: &Env<'_>, out: &mut Outbox) {
        let next = self.log.last_index();
        let (node, configuration) = (self.node, &self.configuration);
        if let Part::Leader(leading) = &mut self.part {
            leading
                .peers
                .retain(|peer| configuration.contains(peer.node));
            for member in configuration.nodes().filter(|member| *member != node) {
                if leading.peers.iter().all(|peer| peer.node != member) {
                    let alive = env.alive.contains(member);
                    let mut progress = Progress::new(member, next, alive, env.now);
                    progress.is_witness = configuration.is_witness(member);
                    leading.peers.push(progress);
                }
            }
            // New members have to hear of the claim.
            out.claims.push(ClaimChange {
                group: self.id,
                term: self.term,
                leads: true,
            });
        } else if !self.may_stand() {
            self.part = Part::Follower;
            if self.leader.is_none() {
                self.deadline = Tick::NEVER;
            }
        } else if self.deadline == Tick::NEVER && !self.is_led(env) {
            self.arm_election_timer(env, out);
        }
    }

    /// A member's replica has nothing of what it acknowledged.
    pub(crate) fn begin_anew(&mut self, env: &Env<'_>, node: NodeId) {
        let next = self.log.last_index().next();
        if let Part::Leader(leading) = &mut self.part
            && let Some(known) = leading.peers.iter_mut().find(|peer| peer.node == node)
        {
            let is_witness = known.is_witness;
            *known = Progress::new(node, next, known.alive, env.now);
            known.is_witness = is_witness;
        }
    }

    /// A leader has committed more: a joint phase may be over, or its own time in the group.
    pub(crate) fn finish_change(&mut self, env: &Env<'_>, out: &mut Outbox) {
        let is_steady = !self.configuration.is_joint() && self.configuration.is_voter(self.node);
        let is_pending = self
            .former
            .last()
            .is_some_and(|index| index > self.committed);
        let Part::Leader(leading) = &self.part else {
            return;
        };
        if is_steady || is_pending || self.committed < leading.term_start {
            return;
        }
        if self.configuration.is_joint() {
            let left = self.configuration.left();
            self.append_configuration(env, left, out);
            // A lone voter that is left may commit it as soon as it is durable.
            return;
        }
        if mutants::is_active(Mutant::RemovedLeaderStays) {
            return;
        }
        // It led to the end of its membership. Whoever has everything may take over at once.
        let voters = leading.peers.iter();
        let voters = voters.filter(|peer| {
            peer.alive && !peer.is_witness && self.configuration.is_voter(peer.node)
        });
        if let Some(best) = voters.max_by_key(|peer| peer.matched)
            && best.matched == self.log.last_index()
        {
            let to = best.node;
            let (term, last) = (self.term, best.matched);
            self.send(to, Message::TimeoutNow { term, last }, out);
        }
        self.become_follower(env, out);
        self.deadline = Tick::NEVER;
    }
}

#[cfg(test)]
mod tests;

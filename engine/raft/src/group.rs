//! One replica of one Raft group: its state, the single verb that moves it, and the invariants checked after
//! every move. What each event means is in `election`, `follower` and `leader`; nothing outside this crate
//! may change a field.

use smallvec::SmallVec;

use crate::durability::Durability;
use crate::leader::Leading;
use crate::log::LogView;
use crate::membership::Former;
use crate::mutants::{self, Mutant};
use crate::rng::Rng;
use crate::{
    Apply, ClaimChange, Configuration, Env, Event, GroupId, HardState, Index, LogPosition, Message,
    NodeId, Outbox, Progress, Send, Term, TermRun, Tick, TimerSet, Write, WriteKind,
};

/// What a replica is doing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether a campaign would succeed.
    PreCandidate,
    /// Campaigns for its term.
    Candidate,
    /// Leads its term.
    Leader,
}

/// What a replica is restored from when its node starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The newest durable hard state.
    pub hard_state: HardState,
    /// The members as of `base`.
    pub configuration: Configuration,
    /// The entries after `base` that say who the members are from then on, in their order.
    pub configurations: Vec<(Index, Configuration)>,
    /// The purged or snapshot position: entries start at `base.index + 1`.
    pub base: LogPosition,
    /// The term runs of the entries after `base`.
    pub runs: Vec<TermRun>,
    /// The last index of the log.
    pub last: Index,
    /// The last index that the state machine holds durably.
    pub applied: Index,
    /// For how long the replica may still be bound to a leader that it followed before the restart, in microseconds. Until
    /// then it votes for nobody: that leader may be answering reads, counting on it. The longest silence after which
    /// nodes look for another leader, for a replica that may have followed one; 0 for a new one.
    pub bound_for: u64,
    /// An earlier replica of this node was removed, and that is committed at this index; or it lost its log, which may have gone
    /// through there. Without that in the log this one does not stand, and votes only for candidates whose log proves that they
    /// have it. 0 when there was none.
    ///
    /// With [`Restored::NEVER`] there was none either, but the group began behind a state that this replica may lack: without
    /// a log through here it does not stand, and votes only for candidates who have one.
    pub removed_at: Index,
    /// The newest term that the earlier replica had seen: it acknowledged nothing to a leader of a later one.
    pub removed_in: Term,
    /// It stores no payload: it is a witness for as long as it lives, whatever its log says of an earlier replica of its node.
    pub is_witness: bool,
}

impl Restored {
    /// In place of the newest term that an earlier replica had seen, where there was no such replica.
    pub const NEVER: Term = Term(u64::MAX);

    /// A new replica without a log.
    #[must_use]
    pub fn empty(configuration: Configuration) -> Restored {
        Restored {
            hard_state: HardState::default(),
            configuration,
            configurations: Vec::new(),
            base: LogPosition::ZERO,
            runs: Vec::new(),
            last: Index::ZERO,
            applied: Index::ZERO,
            bound_for: 0,
            removed_at: Index::ZERO,
            removed_in: Term::ZERO,
            is_witness: false,
        }
    }
}

/// Counts of things worth watching. They wrap around.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Messages and completions dropped because they were late, repeated, or not from a member.
    pub stale: u32,
    /// Campaigns started, PreVote rounds included.
    pub campaigns: u32,
    /// Terms this replica began to lead.
    pub terms_led: u32,
    /// Appends refused because the logs did not meet.
    pub conflicts: u32,
    /// Times a leader took its appends to a follower for lost.
    pub timeouts: u32,
}

/// One replica of one Raft group. See the [crate documentation](crate) for how it is driven.
///
/// Always: `base <= applied <= committed <= last` and `applied <= durable`; the term and the commit
/// index never go back; a voter without a live, claiming leader has a deadline, and so has whoever follows a leader that does
/// not claim; so has a leader with a live follower that is behind.
#[derive(Debug)]
pub struct Group {
    pub(crate) id: GroupId,
    pub(crate) node: NodeId,
    pub(crate) rng: Rng,
    pub(crate) term: Term,
    pub(crate) vote: Option<NodeId>,
    /// Who leads `term`, as far as known. Never a node of which we know that it does not.
    pub(crate) leader: Option<NodeId>,
    pub(crate) configuration: Configuration,
    /// What entries that are not handed out yet replaced by it, whether this node was a member before, and whether it is a witness.
    pub(crate) former: Former,
    pub(crate) log: LogView,
    pub(crate) durability: Durability,
    pub(crate) committed: Index,
    /// Handed out for applying through here; `applied <= handed_out <= min(committed, durable)`.
    pub(crate) handed_out: Index,
    pub(crate) applied: Index,
    /// [`Tick::NEVER`] when nothing is waited for.
    pub(crate) deadline: Tick,
    /// Until then it may be bound to a leader that it has forgotten, and votes for nobody.
    pub(crate) bound_until: Tick,
    pub(crate) part: Part,
    pub(crate) counters: Counters,
    /// Follower: the log equals the leader's of `term` through here.
    pub(crate) verified: Index,
    /// Follower: the last index acknowledged to the leader of `term`.
    pub(crate) acknowledged: Index,
    /// Follower: an acknowledgement is owed even if it says nothing new.
    pub(crate) owes_answer: bool,
    /// Follower: the leader's node claims the group, so no election timer runs while it lives.
    pub(crate) is_claimed: bool,
    /// The vote of this term was given to another node, which is told once it is durable.
    pub(crate) owes_vote: bool,
    /// Term or vote changed in this step and are not written yet.
    pub(crate) hard_state_changed: bool,
}

/// The role, with what only that role needs.
#[derive(Debug)]
pub(crate) enum Part {
    Follower,
    PreCandidate(Box<Ballot>),
    Candidate(Box<Ballot>),
    Leader(Box<Leading>),
}

/// Who said what in a campaign.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ballot {
    pub(crate) granted: SmallVec<[NodeId; 2]>,
    pub(crate) refused: SmallVec<[NodeId; 2]>,
    /// The old leader handed over: its voters need not defend it.
    pub(crate) is_transfer: bool,
}

impl Group {
    /// A replica as its disk remembers it. It starts as a follower; a voter arms its election timer.
    ///
    /// `seed` makes timeouts differ between runs; groups and nodes differ without it.
    ///
    /// # Panics
    /// When `restored` contradicts itself: terms above the hard state's, runs that do not describe the log,
    /// or an applied index outside of it. The edge checks what it reads from disk before.
    #[must_use]
    pub fn new(
        id: GroupId,
        node: NodeId,
        seed: u64,
        env: &Env<'_>,
        restored: Restored,
        out: &mut Outbox,
    ) -> Group {
        let Restored {
            hard_state,
            configuration,
            configurations,
            base,
            runs,
            last,
            applied,
            bound_for,
            removed_at,
            removed_in,
            is_witness,
        } = restored;
        let log = LogView::new(base, &runs, last);
        assert!(
            log.last().term <= hard_state.term,
            "the log is of a later term than the hard state {hard_state:?}"
        );
        let applied = applied.max(base.index);
        assert!(
            applied <= last,
            "applied {applied} entries of a log that ends at {last}"
        );
        let mut group = Group {
            id,
            node,
            rng: Rng::new(seed, id.0, node.0),
            term: hard_state.term,
            vote: hard_state.vote,
            leader: None,
            configuration,
            former: Former::new(removed_at, removed_in, is_witness),
            log,
            durability: Durability::new(last),
            committed: hard_state.commit.min(last).max(applied),
            handed_out: applied,
            applied,
            deadline: Tick::NEVER,
            bound_until: env.now.after(bound_for),
            part: Part::Follower,
            counters: Counters::default(),
            verified: Index::ZERO,
            acknowledged: Index::ZERO,
            owes_answer: false,
            is_claimed: false,
            owes_vote: false,
            hard_state_changed: false,
        };
        for (index, configuration) in configurations {
            assert!(
                base.index < index && index <= last,
                "a configuration at {index} of a log from {base} to {last}"
            );
            group.adopt(index, configuration);
        }
        group.settle_configurations(out);
        group.arm_election_timer(env, out);
        group.hand_out(out);
        group
    }

    /// Takes one event and puts its effects into `out`.
    ///
    /// # Panics
    /// On what cannot happen in a correct cluster: two leaders in one term, a truncation of committed
    /// entries, a completion of something never written. Going on would lose data.
    pub fn step(&mut self, env: &Env<'_>, event: Event<'_>, out: &mut Outbox) {
        let before = (self.term, self.vote, self.committed);
        match event {
            Event::Message { from, message } => self.receive(env, from, message, &[], out),
            Event::MessageWith {
                from,
                message,
                configurations,
            } => self.receive(env, from, message, configurations, out),
            Event::ChangeMembers { changes } => self.change_members(env, changes, out),
            Event::Propose { count } => self.propose(count, out),
            Event::Barrier => self.append_barrier(out),
            Event::Durable { through } => self.complete_writes(env, through, out),
            Event::Applied { through } => self.note_applied(through),
            Event::Flush { log } => self.flush(env, log, out),
            Event::Timer => self.fire(env, out),
            Event::Claimed { by, term } => self.hear_claim(env, by, term, out),
            Event::Unclaimed { by } => self.lose_claim(env, by, out),
            Event::PeerDown { node } => self.peer_down(env, node, out),
            Event::PeerUp { node } => self.peer_up(env, node),
            Event::BeganAnew { node } => self.begin_anew(env, node),
            Event::Campaign => self.campaign(env, out),
            Event::Transfer { to } => self.transfer(env, to, out),
            Event::Purged { through } => self.purge(through),
            Event::Installed {
                from,
                term,
                last,
                configuration,
            } => self.install(env, (from, term), last, configuration, out),
        }
        self.write_hard_state(out);
        self.check(before);
    }

    fn receive(
        &mut self,
        env: &Env<'_>,
        from: NodeId,
        message: Message,
        configurations: &[(Index, Configuration)],
        out: &mut Outbox,
    ) {
        match message {
            Message::Append {
                term,
                prev,
                entries,
                commit,
            } => {
                let what = (prev, entries, configurations);
                self.hear_append(env, from, term, what, commit, out);
            }
            Message::Matched {
                term,
                matched,
                commit,
            } => self.hear_matched(env, from, term, matched, commit, out),
            Message::Conflict {
                term,
                rejected,
                hint,
            } => self.hear_conflict(env, from, term, rejected, hint, out),
            Message::PreVote { term, last } => self.hear_pre_vote(env, from, term, last, out),
            Message::PreVoteReply { term, granted } => {
                self.hear_pre_vote_reply(env, from, term, granted, out)
            }
            Message::Vote {
                term,
                last,
                transfer,
            } => self.hear_vote(env, from, term, last, transfer, out),
            Message::VoteReply { term, granted } => {
                self.hear_vote_reply(env, from, term, granted, out)
            }
            Message::Stale { term } => {
                if !self.learn_term(env, term, out) {
                    self.drop_stale();
                }
            }
            Message::TimeoutNow { term, last } => {
                self.hear_timeout_now(env, from, (term, last), out)
            }
        }
    }

    /// The deadline has come, or an old one rings late.
    fn fire(&mut self, env: &Env<'_>, out: &mut Outbox) {
        if env.now < self.deadline {
            return;
        }
        self.deadline = Tick::NEVER;
        match self.part {
            Part::Leader(_) => self.retry(env, out),
            _ => self.time_out(env, out),
        }
    }

    /// Writes have become durable: everything that waited for them leaves now.
    fn complete_writes(&mut self, env: &Env<'_>, through: crate::WriteId, out: &mut Outbox) {
        if !self.durability.complete(through) {
            self.drop_stale();
            return;
        }
        match self.part {
            Part::Leader(_) => {
                self.advance_commit();
                self.hand_out(out);
                self.finish_change(env, out);
            }
            Part::Candidate(_) => self.open_ballot(env, out),
            Part::Follower | Part::PreCandidate(_) => {
                self.send_owed_vote(out);
                self.send_matched(out);
            }
        }
        self.hand_out(out);
    }

    fn note_applied(&mut self, through: Index) {
        assert!(
            through <= self.handed_out,
            "applied {through}, but only {} was handed out",
            self.handed_out
        );
        self.applied = self.applied.max(through);
    }

    fn purge(&mut self, through: Index) {
        assert!(
            through <= self.applied || mutants::is_active(Mutant::PurgedBeforeApplied),
            "purged {through}, which is not applied yet"
        );
        self.log.purge(through);
    }

    // ---- shared by the roles ------------------------------------------------------------------------

    /// Hands out everything that is committed and durable and was not handed out yet.
    #[inline]
    pub(crate) fn hand_out(&mut self, out: &mut Outbox) {
        let through = self.committed.min(self.durability.durable());
        if through > self.handed_out {
            out.applies.push(Apply {
                group: self.id,
                first: self.handed_out.next(),
                end: through.next(),
            });
            self.handed_out = through;
            self.settle_configurations(out);
        }
    }

    #[inline]
    pub(crate) fn send(&self, to: NodeId, message: Message, out: &mut Outbox) {
        debug_assert_ne!(to, self.node);
        out.sends.push(Send {
            group: self.id,
            to,
            message,
        });
    }

    #[inline]
    pub(crate) fn drop_stale(&mut self) {
        self.counters.stale = self.counters.stale.wrapping_add(1);
    }

    /// Writes term and vote if they changed. Comes before any other write of a step: what follows may rely on
    /// the term.
    #[inline]
    pub(crate) fn write_hard_state(&mut self, out: &mut Outbox) {
        if self.hard_state_changed {
            self.hard_state_changed = false;
            let state = HardState {
                term: self.term,
                vote: self.vote,
                commit: self.committed,
            };
            let id = self.durability.hard_state();
            out.writes.push(Write {
                group: self.id,
                id,
                kind: WriteKind::HardState(state),
            });
        }
    }

    /// Whether a promise made in this term may leave: term and vote are durable.
    #[inline]
    pub(crate) fn is_hard_state_safe(&self, unless: Mutant) -> bool {
        self.durability.has_hard_state() || mutants::is_active(unless)
    }

    /// Whether term and vote are on the disk as they stand.
    #[must_use]
    pub fn is_hard_state_durable(&self) -> bool {
        self.durability.has_hard_state()
    }

    pub(crate) fn set_deadline(&mut self, at: Tick, out: &mut Outbox) {
        self.deadline = at;
        out.timers.push(TimerSet { group: self.id, at });
    }

    /// A full, random election timeout from now. Learners and strangers never campaign: no timer.
    pub(crate) fn arm_election_timer(&mut self, env: &Env<'_>, out: &mut Outbox) {
        let settings = env.settings;
        self.arm_within(
            env,
            settings.election_timeout_min,
            settings.election_timeout_max,
            out,
        );
    }

    /// The shortest timeout has passed already in silence; only the random part is left.
    pub(crate) fn arm_short_election_timer(&mut self, env: &Env<'_>, out: &mut Outbox) {
        let settings = env.settings;
        self.arm_within(
            env,
            0,
            settings
                .election_timeout_max
                .saturating_sub(settings.election_timeout_min),
            out,
        );
    }

    fn arm_within(&mut self, env: &Env<'_>, low: u64, high: u64, out: &mut Outbox) {
        self.deadline = Tick::NEVER;
        if self.may_stand() {
            self.set_timeout(env, (low, high), out);
        }
    }

    /// Until the leader is heard again. One that does not claim the group is forgotten then, also by who may not stand: it votes,
    /// and must not keep others from being elected.
    pub(crate) fn arm_patience(&mut self, env: &Env<'_>, out: &mut Outbox) {
        let settings = env.settings;
        let range = (settings.election_timeout_min, settings.election_timeout_max);
        self.set_timeout(env, range, out);
    }

    fn set_timeout(&mut self, env: &Env<'_>, (low, high): (u64, u64), out: &mut Outbox) {
        let timeout = if mutants::is_active(Mutant::EqualTimeouts) {
            high
        } else {
            self.rng.within(low, high)
        };
        let timeout = timeout + self.handicap(env);
        self.set_deadline(env.now.after(timeout), out);
    }

    /// By how much longer it waits before it campaigns, because somebody who lives should rather lead: as long as others differ
    /// among each other, so that it comes after all of them if they can, and not much later if they can't.
    fn handicap(&self, env: &Env<'_>) -> u64 {
        let (members, alive) = (&self.configuration, env.alive);
        let preferred = members.preferred().filter(|node| alive.priority(*node) > 0);
        if preferred.is_none() && alive.are_equal() {
            return 0;
        }
        let rank = |node: NodeId| (preferred == Some(node), alive.priority(node));
        let own = rank(self.node);
        let mut others = members.full_voters().filter(|node| alive.contains(*node));
        match others.any(|node| node != self.node && rank(node) > own) {
            true => {
                let settings = env.settings;
                let (low, high) = (settings.election_timeout_min, settings.election_timeout_max);
                high.saturating_sub(low)
            }
            false => 0,
        }
    }

    /// Takes over a higher term as a follower without a leader. Returns whether `term` was higher.
    pub(crate) fn catch_up(&mut self, env: &Env<'_>, term: Term, out: &mut Outbox) -> bool {
        if term <= self.term {
            return false;
        }
        self.become_follower(env, out);
        self.term = term;
        self.vote = None;
        self.leader = None;
        self.is_claimed = false;
        if !mutants::is_active(Mutant::StaleComparisonKept) {
            self.verified = Index::ZERO;
        }
        self.acknowledged = Index::ZERO;
        self.owes_answer = false;
        self.owes_vote = false;
        self.hard_state_changed = true;
        if self.deadline == Tick::NEVER {
            self.arm_election_timer(env, out);
        }
        true
    }

    /// Somebody is in a later term, and nobody is known to lead it. Returns whether `term` was higher than the own one.
    ///
    /// A follower whose leader works tells that leader and stays: if it left, it could vote, and its leader would go on
    /// counting on it for reads. The leader goes on to that term, and so frees its followers.
    pub(crate) fn learn_term(&mut self, env: &Env<'_>, term: Term, out: &mut Outbox) -> bool {
        if term > self.term
            && self.is_led(env)
            && !mutants::is_active(Mutant::LeaderLeft)
            && let Some(leader) = self.leader
        {
            self.send(leader, Message::Stale { term }, out);
            return true;
        }
        self.catch_up(env, term, out)
    }

    /// Leaves the present role. A leader's deadline was for retries; it gets an election timer instead.
    pub(crate) fn become_follower(&mut self, env: &Env<'_>, out: &mut Outbox) {
        if let Part::Leader(_) = self.part {
            out.claims.push(ClaimChange {
                group: self.id,
                term: self.term,
                leads: false,
            });
            self.end_transfer_by_stepping_down(out);
            self.leader = None;
            self.arm_election_timer(env, out);
        }
        self.part = Part::Follower;
    }

    /// Whether the nodes believed to be alive could commit anything.
    #[must_use]
    pub fn has_live_quorum(&self, env: &Env<'_>) -> bool {
        self.configuration.has_quorum(|n| env.alive.contains(n))
    }

    #[inline]
    fn check(&self, (term, vote, committed): (Term, Option<NodeId>, Index)) {
        assert!(
            self.term >= term && self.committed >= committed,
            "term or commit went back: {self:?}"
        );
        assert!(
            self.term > term || vote.is_none() || self.vote == vote,
            "a vote was taken back: {self:?}"
        );
        assert!(
            (self.log.base().index <= self.applied
                || mutants::is_active(Mutant::PurgedBeforeApplied))
                && self.applied <= self.handed_out
                && self.handed_out <= self.committed
                && self.committed <= self.log.last_index()
                && self.handed_out <= self.durability.durable()
                && self.durability.durable() <= self.log.last_index(),
            "cursors out of order: {self:?}"
        );
    }

    // ---- what others may know -----------------------------------------------------------------------

    /// The group.
    #[must_use]
    pub const fn id(&self) -> GroupId {
        self.id
    }

    /// The node of this replica.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Whether it stores no payload: it votes, and never leads.
    #[must_use]
    pub fn is_witness(&self) -> bool {
        self.former.is_witness()
    }

    /// What it holds beyond its size while it leads. For loading it ahead of its use.
    #[inline]
    #[must_use]
    pub fn leading(&self) -> Option<&Leading> {
        match &self.part {
            Part::Leader(leading) => Some(leading),
            _ => None,
        }
    }

    /// What the replica is doing.
    #[must_use]
    pub const fn role(&self) -> Role {
        match self.part {
            Part::Follower => Role::Follower,
            Part::PreCandidate(_) => Role::PreCandidate,
            Part::Candidate(_) => Role::Candidate,
            Part::Leader(_) => Role::Leader,
        }
    }

    /// The current term.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// Who got this replica's vote in the current term. It may not be durable yet.
    #[must_use]
    pub const fn vote(&self) -> Option<NodeId> {
        self.vote
    }

    /// Who leads the current term, as far as known.
    #[must_use]
    pub const fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// The purged position, after which the log starts.
    #[must_use]
    pub const fn base(&self) -> LogPosition {
        self.log.base()
    }

    /// The end of the log.
    #[must_use]
    pub fn last(&self) -> LogPosition {
        self.log.last()
    }

    /// The log is durable here through this index.
    #[must_use]
    pub const fn durable(&self) -> Index {
        self.durability.durable()
    }

    /// The highest index known to be committed.
    #[must_use]
    pub const fn committed(&self) -> Index {
        self.committed
    }

    /// The highest index that the state machine is known to have taken.
    #[must_use]
    pub const fn applied(&self) -> Index {
        self.applied
    }

    /// The highest index that was handed out for applying.
    #[must_use]
    pub const fn handed_out(&self) -> Index {
        self.handed_out
    }

    /// The members, as the newest entry of the log says, committed or not.
    #[must_use]
    pub const fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Whether `leader` leads `term`, which is the replica's own, and has said so. While its node is alive the replica then
    /// neither stands nor votes for anybody else, except after a handover by that leader.
    #[must_use]
    pub fn is_claimed_by(&self, leader: NodeId, term: Term) -> bool {
        self.is_claimed && self.leader == Some(leader) && self.term == term
    }

    /// When the replica next wants [`Event::Timer`]; `None` when it waits for nothing.
    #[must_use]
    pub const fn deadline(&self) -> Option<Tick> {
        match self.deadline {
            Tick::NEVER => None,
            at => Some(at),
        }
    }

    /// A leader's knowledge of `node`.
    #[must_use]
    pub fn progress(&self, node: NodeId) -> Option<&Progress> {
        match &self.part {
            Part::Leader(leading) => leading.peers.iter().find(|p| p.node == node),
            _ => None,
        }
    }

    /// The term of the entry at `index`, from the base to the log's end.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The term runs of the log after its base.
    #[must_use]
    pub fn term_runs(&self) -> &[TermRun] {
        self.log.runs()
    }

    /// Whether nothing is to be done until something new happens. A leader: all is durable, and every live
    /// follower has all entries and knows the commit. A follower: its leader claims it, and nothing is being written.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let settled = self.durability.is_settled();
        match &self.part {
            Part::Leader(leading) => {
                let last = self.log.last_index();
                settled
                    && leading.handover.is_none()
                    && leading
                        .peers
                        .iter()
                        .all(|p| !p.alive || !p.is_behind(last, self.committed))
            }
            Part::Follower => settled && self.deadline == Tick::NEVER,
            Part::PreCandidate(_) | Part::Candidate(_) => false,
        }
    }

    /// What was counted since the replica started.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }
}

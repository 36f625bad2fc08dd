//! Elections: who may campaign, who gets a vote, and when a leader is defended against a campaign. A vote
//! leaves this replica only after it is durable, and a candidate asks only after its own vote is.

use crate::group::{Ballot, Group, Part};
use crate::leader::Leading;
use crate::mutants::{self, Mutant};
use crate::{ClaimChange, Env, LogPosition, Message, NodeId, Origin, Outbox, Term, Tick};

impl Ballot {
    fn of(own: NodeId) -> Box<Ballot> {
        let mut ballot = Box::<Ballot>::default();
        ballot.granted.push(own);
        ballot
    }

    fn count(&mut self, from: NodeId, granted: bool) {
        let side = if granted {
            &mut self.granted
        } else {
            &mut self.refused
        };
        if !side.contains(&from) {
            side.push(from);
        }
    }
}

impl Group {
    /// Starts a round: PreVote first. The election timer runs on, so a lost round is followed by another.
    pub(crate) fn campaign(&mut self, env: &Env<'_>, out: &mut Outbox) {
        if matches!(self.part, Part::Leader(_)) || !self.may_stand() {
            return;
        }
        // A round can only be won with a live quorum. Without one, a node with thousands of groups stays silent.
        if !self.has_live_quorum(env) {
            self.part = Part::Follower;
            self.arm_election_timer(env, out);
            return;
        }
        if self.is_bound(env) {
            return self.arm_election_timer(env, out);
        }
        self.counters.campaigns = self.counters.campaigns.wrapping_add(1);
        self.part = Part::PreCandidate(Ballot::of(self.node));
        self.arm_election_timer(env, out);
        if self.configuration.has_quorum(|n| n == self.node) {
            self.stand(env, false, out);
        } else {
            self.ask(
                env,
                Message::PreVote {
                    term: self.term.next(),
                    last: self.log.last(),
                },
                out,
            );
        }
    }

    /// The election timer has run out.
    pub(crate) fn time_out(&mut self, env: &Env<'_>, out: &mut Outbox) {
        if self.is_led(env) {
            // A round that was asked for, and lost, while a leader lives.
            self.part = Part::Follower;
        } else {
            self.leader = None;
            self.is_claimed = false;
            self.campaign(env, out);
        }
    }

    /// Whether a live leader claims the group: then no timer is needed.
    pub(crate) fn is_led(&self, env: &Env<'_>) -> bool {
        self.is_claimed && self.leader.is_some_and(|l| env.alive.contains(l))
    }

    /// Enters the next term as its candidate. The vote requests wait until the own vote is durable.
    pub(crate) fn stand(&mut self, env: &Env<'_>, is_transfer: bool, out: &mut Outbox) {
        let next = self.term.next();
        self.catch_up(env, next, out);
        self.vote = Some(self.node);
        self.part = Part::Candidate(Box::new(Ballot {
            is_transfer,
            ..Ballot::default()
        }));
        self.arm_election_timer(env, out);
    }

    /// The candidate's term and vote are durable: its own vote counts now, and it may ask for the others'.
    pub(crate) fn open_ballot(&mut self, env: &Env<'_>, out: &mut Outbox) {
        let Part::Candidate(ballot) = &mut self.part else {
            return;
        };
        if !ballot.granted.is_empty() || !self.durability.has_hard_state() {
            return;
        }
        ballot.count(self.node, true);
        let transfer = ballot.is_transfer;
        self.ask(
            env,
            Message::Vote {
                term: self.term,
                last: self.log.last(),
                transfer,
            },
            out,
        );
        self.count_ballot(env, out);
    }

    fn ask(&self, env: &Env<'_>, request: Message, out: &mut Outbox) {
        let others = self
            .configuration
            .nodes()
            .filter(|&n| n != self.node && env.alive.contains(n));
        for node in others.filter(|&n| self.configuration.is_voter(n)) {
            self.send(node, request, out);
        }
    }

    /// Goes on when enough voters agree, gives up when too many refuse.
    fn count_ballot(&mut self, env: &Env<'_>, out: &mut Outbox) {
        let (Part::PreCandidate(ballot) | Part::Candidate(ballot)) = &self.part else {
            return;
        };
        let is_won = self
            .configuration
            .has_quorum(|n| ballot.granted.contains(&n));
        let strangers_count = mutants::is_active(Mutant::StrangerVotes)
            && ballot.granted.len() > self.configuration.voters().len() / 2;
        if is_won || strangers_count {
            match self.part {
                // The round was asked for while a leader lives. Its followers are bound to it.
                Part::PreCandidate(_) if self.is_led(env) => {
                    self.part = Part::Follower;
                    self.deadline = Tick::NEVER;
                }
                Part::PreCandidate(_) => self.stand(env, false, out),
                _ => self.lead(env, out),
            }
        } else if !self
            .configuration
            .has_quorum(|n| !ballot.refused.contains(&n))
        {
            self.part = Part::Follower;
            if self.is_led(env) {
                self.deadline = Tick::NEVER;
            }
        }
    }

    /// Begins to lead. The term starts with an entry of its own, which lets older entries commit.
    fn lead(&mut self, env: &Env<'_>, out: &mut Outbox) {
        if !self.has_live_quorum(env) {
            // Nobody would tell this leader again that it has no quorum; the timer is running.
            self.part = Part::Follower;
            return;
        }
        let next = self.log.last_index().next();
        let leading = Leading::new(&self.configuration, self.node, next, env);
        self.part = Part::Leader(Box::new(leading));
        self.leader = Some(self.node);
        self.is_claimed = false;
        self.deadline = Tick::NEVER;
        self.counters.terms_led = self.counters.terms_led.wrapping_add(1);
        out.claims.push(ClaimChange {
            group: self.id,
            term: self.term,
            leads: true,
        });
        self.append_own(1, Origin::Noop, out);
    }

    /// Whether a campaign of `candidate` must be kept away from a leader that works (Raft thesis, 4.2.3).
    fn defends_leader(&self, env: &Env<'_>, candidate: NodeId) -> bool {
        match self.part {
            Part::Leader(_) => self.has_live_quorum(env),
            _ => self.leader.is_some_and(|l| {
                l != candidate
                    && (env.alive.contains(l) || mutants::is_active(Mutant::DeadLeaderDefended))
            }),
        }
    }

    /// Whether it may have followed a leader before a restart who still counts on it.
    fn is_bound(&self, env: &Env<'_>) -> bool {
        env.now < self.bound_until && !mutants::is_active(Mutant::RestartFrees)
    }

    /// Whether the vote of the current term could go to `candidate`.
    fn may_vote_for(&self, candidate: NodeId) -> bool {
        self.vote == Some(candidate)
            || (self.vote.is_none() && self.leader.is_none())
            || mutants::is_active(Mutant::SecondVote)
    }

    pub(crate) fn hear_pre_vote(
        &mut self,
        env: &Env<'_>,
        from: NodeId,
        term: Term,
        last: LogPosition,
        out: &mut Outbox,
    ) {
        if term < self.term {
            self.send(from, Message::Stale { term: self.term }, out);
            return;
        }
        if mutants::is_active(Mutant::PreVoteRaisesTerm) {
            self.catch_up(env, term, out);
        }
        if term > self.term && self.leader == Some(from) {
            // Who asks for the next term does not lead this one any more, whatever it claimed.
            self.lose_claim(env, from, out);
        }
        let granted = last >= self.log.last()
            && !self.defends_leader(env, from)
            && !self.is_bound(env)
            && self.may_elect(last)
            && (term > self.term || self.may_vote_for(from));
        let term = if granted { term } else { self.term };
        self.send(from, Message::PreVoteReply { term, granted }, out);
    }

    pub(crate) fn hear_pre_vote_reply(
        &mut self,
        env: &Env<'_>,
        from: NodeId,
        term: Term,
        granted: bool,
        out: &mut Outbox,
    ) {
        if !granted {
            if self.learn_term(env, term, out) {
                return;
            }
            if term < self.term && !mutants::is_active(Mutant::LowerTermNotTold) {
                // It may follow a leader of an older term that cannot reach us, or that we cannot follow: without
                // this hint neither side would ever move.
                self.send(from, Message::Stale { term: self.term }, out);
            }
        }
        match &mut self.part {
            Part::PreCandidate(ballot) if !granted || term == self.term.next() => {
                ballot.count(from, granted);
                self.count_ballot(env, out);
            }
            _ => self.drop_stale(),
        }
    }

    pub(crate) fn hear_vote(
        &mut self,
        env: &Env<'_>,
        from: NodeId,
        term: Term,
        last: LogPosition,
        transfer: bool,
        out: &mut Outbox,
    ) {
        if term < self.term {
            self.send(from, Message::Stale { term: self.term }, out);
            return;
        }
        if term > self.term {
            // Who holds more than the candidate was given holds an entry of a leader who went on, and may count on it.
            let is_handed_over = transfer
                && (last >= self.log.last() && self.may_elect(last)
                    || mutants::is_active(Mutant::LateOrderFrees));
            if !is_handed_over && (self.defends_leader(env, from) || self.is_bound(env)) {
                self.send(
                    from,
                    Message::VoteReply {
                        term: self.term,
                        granted: false,
                    },
                    out,
                );
                return;
            }
            self.catch_up(env, term, out);
        }
        let is_free = transfer || self.vote == Some(from) || !self.is_bound(env);
        let may_vote = self.may_vote_for(from) && self.may_elect(last);
        if last < self.log.last() || !may_vote || !is_free {
            self.send(
                from,
                Message::VoteReply {
                    term: self.term,
                    granted: false,
                },
                out,
            );
            return;
        }
        if self.vote != Some(from) {
            self.vote = Some(from);
            self.hard_state_changed = true;
            self.part = Part::Follower;
            self.arm_election_timer(env, out);
        }
        // The vote must be durable first, or a restart could vote twice.
        self.owes_vote = true;
        self.write_hard_state(out);
        self.send_owed_vote(out);
    }

    /// Tells the candidate of this term its vote, once that is durable.
    pub(crate) fn send_owed_vote(&mut self, out: &mut Outbox) {
        if let Some(candidate) = self
            .vote
            .filter(|_| self.owes_vote && self.is_hard_state_safe(Mutant::VoteBeforeDurable))
        {
            self.owes_vote = false;
            self.send(
                candidate,
                Message::VoteReply {
                    term: self.term,
                    granted: true,
                },
                out,
            );
        }
    }

    pub(crate) fn hear_vote_reply(
        &mut self,
        env: &Env<'_>,
        from: NodeId,
        term: Term,
        granted: bool,
        out: &mut Outbox,
    ) {
        if self.learn_term(env, term, out) {
            return;
        }
        match &mut self.part {
            Part::Candidate(ballot) if term == self.term => {
                ballot.count(from, granted);
                self.count_ballot(env, out);
            }
            _ => self.drop_stale(),
        }
    }
}

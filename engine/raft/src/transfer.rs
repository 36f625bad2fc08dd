//! Handing leadership over (Raft thesis, 3.10): the leader brings the target up to date, takes no proposals meanwhile, and
//! tells it to campaign at once. It goes on leading until a newer term takes it down, so an attempt that fails costs a
//! bounded pause and nothing else. Nothing here may weaken an election: the target still needs a quorum of votes. Nor may an
//! order that comes late harm a leader who went on: it names the end of the leader's log, and is void wherever there is more.

use crate::group::{Group, Part};
use crate::mutants::{self, Mutant};
use crate::{
    Env, Index, LogPosition, Message, NodeId, Outbox, Term, Tick, Transfer, TransferOutcome,
};

/// A handover under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Handover {
    pub(crate) to: NodeId,
    /// When the leader gives it up and takes proposals again.
    pub(crate) until: Tick,
    /// The target was told to campaign.
    is_told: bool,
}

impl Group {
    /// Begins to hand the leadership to `to`. Answered by exactly one [`Transfer`], now or later.
    pub(crate) fn transfer(&mut self, env: &Env<'_>, to: NodeId, out: &mut Outbox) {
        let is_voter =
            self.configuration.voters().contains(&to) || mutants::is_active(Mutant::LearnerLeads);
        let is_witness = self.configuration.is_witness(to);
        let Part::Leader(leading) = &mut self.part else {
            let outcome = TransferOutcome::NotLeader { hint: self.leader };
            return self.answer_transfer(to, outcome, out);
        };
        // A learner or a stranger could win no election, who is on the way out of the group should not, and a witness never
        // stands.
        let outcome = if to == self.node {
            Some(TransferOutcome::Done)
        } else if !is_voter {
            Some(TransferOutcome::NotVoter)
        } else if is_witness {
            Some(TransferOutcome::Witness)
        } else if leading.handover.is_some() {
            Some(TransferOutcome::Busy)
        } else if !env.alive.contains(to) {
            Some(TransferOutcome::Silent)
        } else {
            None
        };
        if let Some(outcome) = outcome {
            return self.answer_transfer(to, outcome, out);
        }
        let until = env.now.after(env.settings.election_timeout_max);
        leading.handover = Some(Box::new(Handover {
            to,
            until,
            is_told: false,
        }));
        if until < self.deadline {
            self.set_deadline(until, out);
        }
        self.tell_target(out);
    }

    /// Tells the target to campaign as soon as it holds everything. Without that it could not win, or would make the others
    /// wait for what it lacks.
    pub(crate) fn tell_target(&mut self, out: &mut Outbox) {
        let last = self.log.last_index();
        let Part::Leader(leading) = &mut self.part else {
            return;
        };
        let Some(handover) = leading.handover.as_mut().filter(|h| !h.is_told) else {
            return;
        };
        let to = handover.to;
        let mut others = leading.peers.iter();
        let has_all = |matched| matched == last || mutants::is_active(Mutant::TargetBehind);
        if others.any(|p| p.node == to && has_all(p.matched)) {
            handover.is_told = true;
            leading.told_through = last;
            let term = self.term;
            self.send(to, Message::TimeoutNow { term, last }, out);
        }
    }

    /// Gives a handover up that took too long. The leader takes proposals again; the target campaigns no more once it holds one,
    /// and whoever does defends this leader against it.
    pub(crate) fn expire_transfer(&mut self, env: &Env<'_>, out: &mut Outbox) {
        let Part::Leader(leading) = &mut self.part else {
            return;
        };
        let Some(handover) = leading.handover.as_mut().filter(|h| env.now >= h.until) else {
            return;
        };
        if mutants::is_active(Mutant::HandoverStuck) {
            handover.until = Tick::NEVER;
            return;
        }
        self.end_transfer(TransferOutcome::TimedOut, out);
    }

    /// Ends the handover that is under way, if one is.
    pub(crate) fn end_transfer(&mut self, outcome: TransferOutcome, out: &mut Outbox) {
        if let Part::Leader(leading) = &mut self.part
            && let Some(handover) = leading.handover.take()
        {
            self.answer_transfer(handover.to, outcome, out);
        }
    }

    /// The replica ceases to lead. That the target made it do so it can only guess.
    pub(crate) fn end_transfer_by_stepping_down(&mut self, out: &mut Outbox) {
        if let Part::Leader(leading) = &self.part
            && let Some(handover) = &leading.handover
        {
            let outcome = match handover.is_told {
                true => TransferOutcome::Done,
                false => TransferOutcome::SteppedDown,
            };
            self.end_transfer(outcome, out);
        }
    }

    fn answer_transfer(&self, to: NodeId, outcome: TransferOutcome, out: &mut Outbox) {
        out.transfers.push(Transfer {
            group: self.id,
            to,
            outcome,
        });
    }

    /// The leader of `term`, whose log ended at `last`, wants this replica to lead. It campaigns without asking for a PreVote,
    /// and its requests tell the voters not to defend the old leader.
    pub(crate) fn hear_timeout_now(
        &mut self,
        env: &Env<'_>,
        from: NodeId,
        (term, last): (Term, Index),
        out: &mut Outbox,
    ) {
        if term < self.term {
            self.drop_stale();
            self.send(from, Message::Stale { term: self.term }, out);
            return;
        }
        self.catch_up(env, term, out);
        // The leader went on since, and may count on this replica again.
        let is_late = self.log.last() > LogPosition { term, index: last }
            && !mutants::is_active(Mutant::LateOrderObeyed);
        let is_voter =
            self.configuration.is_voter(self.node) || mutants::is_active(Mutant::LearnerLeads);
        let is_voter =
            is_voter && (!self.is_witness() || mutants::is_active(Mutant::WitnessCampaigns));
        let may_lead = is_voter && self.knows_its_removal() && self.has_live_quorum(env);
        if is_late || !may_lead || self.leader.is_some_and(|leader| leader != from) {
            return self.drop_stale();
        }
        self.counters.campaigns = self.counters.campaigns.wrapping_add(1);
        self.stand(env, true, out);
    }
}

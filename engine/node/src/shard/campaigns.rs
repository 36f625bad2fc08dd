//! How many replicas of a shard campaign at the same time. After a failure thousands of groups look for a leader at once; if
//! all of them asked together, answers would come after the askers have given up, and they would ask again for ever.
//! It must never keep a replica from campaigning for good: whoever waits comes next when a round ends, won or not, and the
//! core judges then whether there is a reason left.

use std::collections::VecDeque;

use polyraft_raft::{Event, Role, Tick};

use super::{Payloads, Shard};
use crate::status::ElectionCause;

/// Rounds under way on a shard at any time. Enough to fill barriers and frames, and few enough to be answered long before
/// the shortest timeout, even on a machine that has much else to do.
pub(super) const AT_ONCE: usize = 1024;

/// Replicas for which the queue keeps room. After a failure every group waits in it.
const KEPT: usize = 1024;

/// The campaigns of a shard.
#[derive(Debug, Default)]
pub(super) struct Campaigns {
    /// How many replicas are in a round: they were let in, and neither won nor lost nor timed out since.
    rounds: usize,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    slot: u32,
    since: Tick,
    why: Why,
}

#[derive(Debug, Clone, Copy)]
enum Why {
    /// Its timer rang.
    Timer,
    /// It is to be the first leader of its group.
    Creation,
}

impl Campaigns {
    /// Whether the next turn lets somebody in, whatever arrives.
    pub(super) fn are_due(&self) -> bool {
        self.rounds < AT_ONCE && !self.waiting.is_empty()
    }

    /// A replica that was in a round is in none any more.
    pub(super) fn round_ended(&mut self) {
        self.rounds -= 1;
    }

    fn wait(&mut self, slot: u32, since: Tick, why: Why) {
        self.waiting.push_back(Waiting { slot, since, why });
    }
}

impl Shard {
    /// Timers have rung. A leader's is not for a campaign; the others end a round, if there was one, and wait for the next.
    pub(super) fn fire_timers(&mut self, is_drained: bool) {
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.fire(self.now, &mut fired);
        for slot in fired.drain(..) {
            let replica = &mut self.replicas[slot as usize];
            if replica.group.role() == Role::Leader {
                self.step(slot, Event::Timer, Payloads::None);
                continue;
            }
            if std::mem::take(&mut replica.is_in_round) {
                self.campaigns.round_ended();
            }
            self.campaigns.wait(slot, self.now, Why::Timer);
            self.admit_campaigns(is_drained);
        }
        self.fired = fired;
        self.admit_campaigns(is_drained);
    }

    /// A replica is to be the first leader of its group.
    pub(super) fn begin_to_lead(&mut self, slot: u32) {
        self.campaigns.wait(slot, self.now, Why::Creation);
        self.admit_campaigns(true);
    }

    /// Lets in who waits, as long as there is room. What is still in the inbox may make a campaign needless, as the votes
    /// of the last one may be there; but it does not wait for ever for an inbox that is never empty.
    fn admit_campaigns(&mut self, is_drained: bool) {
        while self.campaigns.rounds < AT_ONCE
            && let Some(next) = self.campaigns.waiting.front().copied()
        {
            let patience = self.settings.election_timeout_max;
            if !is_drained && self.now.since(next.since) < patience {
                break;
            }
            self.campaigns.waiting.pop_front();
            self.begin_round(next);
        }
        if self.campaigns.waiting.is_empty() {
            self.campaigns.waiting.shrink_to(KEPT);
        }
    }

    fn begin_round(&mut self, Waiting { slot, why, .. }: Waiting) {
        let replica = &self.replicas[slot as usize];
        let (event, cause) = match (why, replica.group.role()) {
            (Why::Timer, Role::PreCandidate | Role::Candidate) => {
                (Event::Timer, ElectionCause::Retry)
            }
            (Why::Timer, _) => (Event::Timer, ElectionCause::Silence),
            (Why::Creation, _) if replica.group.leader().is_some() => return,
            (Why::Creation, _) => (Event::Campaign, ElectionCause::Creation),
        };
        self.step_to_campaign(slot, event, cause);
        let replica = &mut self.replicas[slot as usize];
        if replica.campaigns() && !replica.is_in_round {
            replica.is_in_round = true;
            self.campaigns.rounds += 1;
        }
        self.note_lonely(slot);
    }
}

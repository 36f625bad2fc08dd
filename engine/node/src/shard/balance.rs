//! Groups go back to the node that should lead them: each group has one, by its number, so that leaders are spread over the
//! members as at the beginning. Nothing is looked for: a group is noted when it gets a leader elsewhere, when its node
//! comes back, as long as that is far behind, and when its handover failed. It must never hand over many groups at once, nor try one
//! of them again and again at the same pace.

use std::cmp::Reverse;
use std::collections::VecDeque;

use polyraft_raft::{
    Configuration, Event, GroupId, NodeId, NodeSet, ProgressState, Tick, TransferOutcome,
};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{Payloads, Shard, leads};

/// Groups handed over together, and how long before the next ones, in microseconds.
const TOGETHER: usize = 32;
const PAUSE: u64 = 100_000;

/// How often the delay is doubled at most for a group whose handovers fail.
const MOST_DOUBLINGS: u32 = 6;

/// Groups that are led here and should be led elsewhere.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// Each once, in the order in which they are looked at.
    noted: VecDeque<(Tick, u32)>,
    /// When each of them was noted to be due the last time: not before that is it handed over.
    due: FxHashMap<u32, Tick>,
    /// Groups that were handed over, and how many of their handovers have failed one after the other.
    tried: FxHashMap<u32, u32>,
    /// No group is handed over before.
    next_at: Tick,
    /// How many may still be handed over now.
    left: usize,
}

impl Balance {
    /// When the next groups are due.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.noted.front().map(|(at, _)| (*at).max(self.next_at))
    }

    /// Something has happened for which a group is to be handed over, whatever came of that before.
    fn note_anew(&mut self, at: Tick, slot: u32) {
        self.tried.remove(&slot);
        self.note(at, slot);
    }

    fn note(&mut self, at: Tick, slot: u32) {
        if self.due.insert(slot, at).is_none() {
            self.noted.push_back((at, slot));
        }
    }

    /// Whether it is time to hand some over. Then the next ones wait.
    fn begin(&mut self, now: Tick) -> bool {
        let is_time = self.deadline().is_some_and(|at| at <= now);
        if is_time {
            self.left = TOGETHER;
            self.next_at = now.after(PAUSE);
        }
        is_time
    }

    /// One more is handed over.
    fn hand_over(&mut self, slot: u32) {
        self.left -= 1;
        self.tried.entry(slot).or_default();
    }

    /// A handover has ended. If it was begun here and has failed, it is tried again, each time twice as long after as before.
    pub(super) fn ended(&mut self, slot: u32, outcome: TransferOutcome, now: Tick, delay: u64) {
        let has_failed = matches!(outcome, TransferOutcome::TimedOut | TransferOutcome::Busy);
        if !has_failed {
            self.tried.remove(&slot);
        } else if let Some(failed) = self.tried.get_mut(&slot) {
            *failed = (*failed + 1).min(MOST_DOUBLINGS);
            let at = now.after(delay << *failed);
            self.note(at, slot);
        }
    }

    /// Takes out the next one that is due, unless enough have been handed over for now.
    fn next(&mut self, now: Tick) -> Option<u32> {
        if self.left == 0 {
            return None;
        }
        while let Some((_, slot)) = self.noted.pop_front_if(|(at, _)| *at <= now) {
            let due = self.due.remove(&slot).filter(|due| *due > now);
            let Some(due) = due else {
                return Some(slot);
            };
            // It was noted again meanwhile.
            let at = self.noted.partition_point(|(at, _)| *at <= due);
            self.noted.insert(at, (due, slot));
            self.due.insert(slot, due);
        }
        None
    }
}

/// Which of a group's voters should lead it.
pub(super) fn preferred(group: GroupId, voters: &[NodeId]) -> Option<NodeId> {
    let at = group.0.checked_rem(voters.len() as u64)?;
    voters.get(at as usize).copied()
}

/// Who should lead a group: whoever its members prefer, if that node leads at all; else one of those with the highest priority: the
/// one at the place that the group's number gives, or a neighbour of it. Whether they live does not matter.
///
/// Which of two nodes is the better one does not depend on the others: two that live agree on it, whatever they know of a third.
/// Otherwise they might hand a group to each other for ever.
pub(super) fn rightful_of(
    group: GroupId,
    members: &Configuration,
    nodes: &NodeSet,
) -> Option<NodeId> {
    if let Some(node) = members.preferred().filter(|node| nodes.priority(*node) > 0) {
        return Some(node);
    }
    if members.witnesses().is_empty() && nodes.are_equal() {
        return preferred(group, members.voters());
    }
    let full: SmallVec<[NodeId; 8]> = members.full_voters().collect();
    let count = full.len() as u64;
    let place = group.0.checked_rem(count)?;
    // Neighbours on both sides share what somebody does not lead.
    let goes_up = (group.0 / count).is_multiple_of(2);
    let nearest = (0..count).map(|step| match goes_up {
        true => (place + step) % count,
        false => (place + count - step) % count,
    });
    let nearest = nearest.map(|at| full[at as usize]);
    nearest.min_by_key(|node| Reverse(nodes.priority(*node)))
}

impl Shard {
    /// The voter that should lead a replica's group, if that is another node.
    fn rightful(&self, slot: u32) -> Option<NodeId> {
        let group = &self.replicas[slot as usize].group;
        let node = rightful_of(group.id(), group.configuration(), &self.alive);
        node.filter(|node| *node != self.shared.node)
    }

    /// How readily a peer should lead is known now.
    pub(super) fn priority_known(&mut self, node: NodeId, priority: u8) {
        self.alive.set_priority(node, priority);
        for slot in 0..self.replicas.len() as u32 {
            if leads(&self.replicas[slot as usize]) {
                self.note_led(slot);
            }
        }
    }

    /// This node began to lead a group.
    pub(super) fn note_led(&mut self, slot: u32) {
        if self.limits.rebalance_delay > 0 && self.rightful(slot).is_some() {
            let at = self.now.after(self.limits.rebalance_delay);
            self.balance.note_anew(at, slot);
        }
    }

    /// A node is back: what it should lead is noted.
    pub(super) fn note_back(&mut self, node: NodeId) {
        if self.limits.rebalance_delay == 0 {
            return;
        }
        let at = self.now.after(self.limits.rebalance_delay);
        for slot in 0..self.replicas.len() as u32 {
            if leads(&self.replicas[slot as usize]) && self.rightful(slot) == Some(node) {
                self.balance.note_anew(at, slot);
            }
        }
    }

    /// Hands over some of the groups that are due.
    pub(super) fn rebalance(&mut self) {
        if !self.balance.begin(self.now) {
            return;
        }
        while let Some(slot) = self.balance.next(self.now) {
            let replica = &self.replicas[slot as usize];
            let Some(to) = self.rightful(slot).filter(|_| leads(replica)) else {
                continue;
            };
            if !self.alive.contains(to) {
                continue; // It is noted again when that node comes back.
            }
            let progress = replica.group.progress(to);
            if progress.is_some_and(|progress| progress.state == ProgressState::Replicate) {
                self.balance.hand_over(slot);
                self.step(slot, Event::Transfer { to }, Payloads::None);
            } else {
                // One that is far behind would be waited for in vain.
                self.note_led(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_voter_should_lead_as_many_groups() {
        let voters = [NodeId(2), NodeId(5), NodeId(9)];
        let mut led = [0; 3];
        for group in 0..30 {
            let node = preferred(GroupId(group), &voters).expect("there are voters");
            led[voters
                .iter()
                .position(|voter| *voter == node)
                .expect("a voter")] += 1;
        }
        assert_eq!(led, [10, 10, 10]);
        assert_eq!(preferred(GroupId(1), &[]), None);
    }

    #[test]
    fn who_is_preferred_should_lead_and_else_one_of_the_highest_priority() {
        let three = Configuration::simple([1, 2, 3].map(NodeId));
        let mut nodes = NodeSet::new(NodeId(1));
        let should = |members: &Configuration, nodes: &NodeSet| {
            [0, 1, 2].map(|group| rightful_of(GroupId(group), members, nodes).map_or(0, |n| n.0))
        };
        assert_eq!(should(&three, &nodes), [1, 2, 3]);
        nodes.set_priority(NodeId(2), 0);
        assert_eq!(should(&three, &nodes), [1, 3, 3]);
        let shared = [1, 4].map(|group| rightful_of(GroupId(group), &three, &nodes));
        assert_eq!(shared, [3, 1].map(|node| Some(NodeId(node))));
        // Whatever one of them does not know of a third, two nodes never hand a group to each other.
        for group in (0..12).map(GroupId) {
            for (known, unknown) in [(0, 100), (50, 100), (100, 0)] {
                let should = |priority| {
                    let mut nodes = NodeSet::new(NodeId(1));
                    nodes.set_priority(NodeId(3), priority);
                    rightful_of(group, &three, &nodes).expect("there are voters")
                };
                let both = [should(known), should(unknown)];
                assert!(both[0] == both[1] || both.contains(&NodeId(3)), "{both:?}");
            }
        }
        nodes.set_priority(NodeId(3), 20);
        assert_eq!(should(&three, &nodes), [1, 1, 1]);
        let third = three.clone().with_preferred(Some(NodeId(3)));
        assert_eq!(should(&third, &nodes), [3, 3, 3]);
        let second = three.clone().with_preferred(Some(NodeId(2)));
        assert_eq!(should(&second, &nodes), [1, 1, 1]);
        for node in [1, 2, 3].map(NodeId) {
            nodes.set_priority(node, 0);
        }
        assert_eq!(should(&three, &nodes), [1, 2, 3], "somebody has to");
        let witness = three.with_witnesses([NodeId(1)]);
        assert_eq!(should(&witness, &nodes), [2, 3, 2]);
    }

    #[test]
    fn a_group_that_is_noted_again_waits_once_and_as_long_as_the_last_time() {
        let mut balance = Balance::default();
        for at in [10, 20, 30] {
            for slot in 0..5 {
                balance.note(Tick(at), slot);
            }
        }
        balance.note(Tick(40), 1);
        balance.left = TOGETHER;
        assert_eq!(balance.noted.len(), 5);
        assert_eq!(balance.deadline(), Some(Tick(10)));
        assert_eq!(balance.next(Tick(29)), None);
        assert_eq!(balance.deadline(), Some(Tick(30)));
        let due = std::iter::from_fn(|| balance.next(Tick(30)));
        assert!(due.eq([0, 2, 3, 4]));
        assert_eq!(
            (balance.next(Tick(39)), balance.next(Tick(40))),
            (None, Some(1))
        );
        assert!(balance.noted.is_empty() && balance.due.is_empty());
    }

    #[test]
    fn a_storm_of_handovers_is_spread_over_time() {
        let mut balance = Balance::default();
        for slot in 0..80 {
            balance.note(Tick(5), slot);
        }
        let mut round = |now| {
            if !balance.begin(now) {
                return 0;
            }
            let mut handed_over = 0;
            while let Some(slot) = balance.next(now) {
                // Every other one can't be handed over, and counts for nothing.
                if slot % 2 == 0 {
                    balance.hand_over(slot);
                    handed_over += 1;
                }
            }
            handed_over
        };
        let later = |rounds: u64, by: u64| Tick(5 + rounds * PAUSE - by);
        let rounds = [Tick(4), Tick(5), later(1, 1), later(1, 0), later(2, 0)].map(&mut round);
        assert_eq!(rounds, [0, TOGETHER, 0, 40 - TOGETHER, 0]);
    }

    #[test]
    fn a_handover_that_failed_is_tried_again_in_growing_distances() {
        let mut balance = Balance::default();
        let (delay, slot) = (1_000_000, 3);
        let mut now = Tick(0);
        balance.note_anew(now, slot);
        let mut fail = |balance: &mut Balance, outcome| {
            now = balance.deadline().expect("it is noted");
            assert!(balance.begin(now));
            assert_eq!(balance.next(now), Some(slot));
            balance.hand_over(slot);
            balance.ended(slot, outcome, now, delay);
            balance.deadline().map(|at| at.since(now) / delay)
        };
        let [timed_out, busy] = [TransferOutcome::TimedOut, TransferOutcome::Busy];
        assert_eq!(fail(&mut balance, timed_out), Some(2));
        assert_eq!(fail(&mut balance, busy), Some(4));
        for _ in 0..MOST_DOUBLINGS {
            fail(&mut balance, timed_out);
        }
        assert_eq!(fail(&mut balance, timed_out), Some(64));
        // Its node comes back: that begins anew.
        balance.note_anew(Tick(0), slot);
        assert_eq!(fail(&mut balance, timed_out), Some(2));
        assert_eq!(fail(&mut balance, TransferOutcome::Done), None);
        assert!(balance.tried.is_empty());
        // Handovers that others began are theirs to try again.
        balance.ended(slot, timed_out, Tick(0), delay);
        assert_eq!(balance.deadline(), None);
    }
}

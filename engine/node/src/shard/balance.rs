//! Groups go back to the node that should lead them: each group has one, by its number, so that leaders are spread over the
//! members as at the beginning. Nothing is looked for: a group is noted when it gets a leader elsewhere, when its node
//! comes back, as long as that is far behind, and when its handover failed. It must never hand over many groups at once, nor try one
//! of them again and again at the same pace.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use polyraft_raft::{
    Configuration, Event, GroupId, NodeId, NodeSet, ProgressState, Tick, TransferOutcome,
};
use rustc_hash::{FxHashMap, FxHashSet};
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
    order: BTreeSet<(Tick, u32)>,
    /// When each of them is looked at.
    due: FxHashMap<u32, Tick>,
    /// Groups that are being handed over.
    leaving: FxHashSet<u32>,
    /// Groups that were handed over, how many times one after the other that came to nothing, and when the last of them began or
    /// ended.
    tried: FxHashMap<u32, (u32, Tick)>,
    /// No group is handed over before.
    next_at: Tick,
    /// How many may still be handed over now.
    left: usize,
}

impl Balance {
    /// When the next groups are due.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.order.first().map(|(at, _)| (*at).max(self.next_at))
    }

    /// Something has happened for which a group is to be handed over, whatever came of that before.
    fn note_anew(&mut self, slot: u32, now: Tick, delay: u64) {
        self.tried.remove(&slot);
        self.note(slot, now, delay);
    }

    /// A group is led here. If it was handed over a short time ago, that came to nothing.
    fn note_led(&mut self, slot: u32, now: Tick, delay: u64) {
        match self.tried.get(&slot) {
            Some((failed, at)) if now.since(*at) <= 2 * (delay << failed) => {
                self.note_failed(slot, now, delay);
            }
            _ => self.note_anew(slot, now, delay),
        }
    }

    /// A group is looked at after the delay, or later if handing it over failed before.
    fn note(&mut self, slot: u32, now: Tick, delay: u64) {
        let (failed, _) = self.tried.get(&slot).copied().unwrap_or_default();
        let at = now.after(delay << failed);
        if let Some(before) = self.due.insert(slot, at) {
            self.order.remove(&(before, slot));
        }
        self.order.insert((at, slot));
    }

    fn note_failed(&mut self, slot: u32, now: Tick, delay: u64) {
        let (failed, at) = self.tried.entry(slot).or_default();
        (*failed, *at) = ((*failed + 1).min(MOST_DOUBLINGS), now);
        self.note(slot, now, delay);
    }

    /// Whether a group is to be handed over at some time.
    #[cfg(feature = "sim")]
    pub(super) fn has_noted(&self, slot: u32) -> bool {
        self.due.contains_key(&slot)
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
    fn hand_over(&mut self, slot: u32, now: Tick) {
        self.left -= 1;
        self.leaving.insert(slot);
        self.tried.entry(slot).or_default().1 = now;
    }

    /// A handover has ended. If it was begun here and has failed, it is tried again, each time twice as long after as before.
    pub(super) fn ended(&mut self, slot: u32, outcome: TransferOutcome, now: Tick, delay: u64) {
        let is_ours = self.leaving.remove(&slot);
        if is_ours && matches!(outcome, TransferOutcome::TimedOut | TransferOutcome::Busy) {
            self.note_failed(slot, now, delay);
        }
    }

    /// Takes out the next one that is due, unless enough have been handed over for now.
    fn next(&mut self, now: Tick) -> Option<u32> {
        let (at, slot) = self.order.first().copied()?;
        if self.left == 0 || at > now {
            return None;
        }
        self.order.remove(&(at, slot));
        self.due.remove(&slot);
        Some(slot)
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
        if self.limits.rebalance_delay == 0 {
            return;
        }
        for slot in 0..self.replicas.len() as u32 {
            if leads(&self.replicas[slot as usize]) && self.rightful(slot).is_some() {
                self.balance
                    .note_anew(slot, self.now, self.limits.rebalance_delay);
            }
        }
    }

    /// This node began to lead a group.
    pub(super) fn note_led(&mut self, slot: u32) {
        let delay = self.limits.rebalance_delay;
        if delay > 0 && self.rightful(slot).is_some() {
            self.balance.note_led(slot, self.now, delay);
        }
    }

    /// A node is back: what it should lead is noted.
    pub(super) fn note_back(&mut self, node: NodeId) {
        let delay = self.limits.rebalance_delay;
        if delay == 0 {
            return;
        }
        for slot in 0..self.replicas.len() as u32 {
            if leads(&self.replicas[slot as usize]) && self.rightful(slot) == Some(node) {
                self.balance.note_anew(slot, self.now, delay);
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
                self.balance.hand_over(slot, self.now);
                self.step(slot, Event::Transfer { to }, Payloads::None);
            } else {
                // One that is far behind would be waited for in vain.
                let delay = self.limits.rebalance_delay;
                self.balance.note(slot, self.now, delay);
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
        for now in [0, 10, 20] {
            for slot in 0..5 {
                balance.note(slot, Tick(now), 10);
            }
        }
        balance.note(1, Tick(30), 10);
        balance.left = TOGETHER;
        assert_eq!(balance.deadline(), Some(Tick(30)));
        assert_eq!(balance.next(Tick(29)), None);
        let due = std::iter::from_fn(|| balance.next(Tick(30)));
        assert!(due.eq([0, 2, 3, 4]));
        assert_eq!(
            (balance.next(Tick(39)), balance.next(Tick(40))),
            (None, Some(1))
        );
        assert!(balance.order.is_empty() && balance.due.is_empty());
    }

    #[test]
    fn a_storm_of_handovers_is_spread_over_time() {
        let mut balance = Balance::default();
        for slot in 0..80 {
            balance.note(slot, Tick(0), 5);
        }
        let mut round = |now| {
            if !balance.begin(now) {
                return 0;
            }
            let mut handed_over = 0;
            while let Some(slot) = balance.next(now) {
                // Every other one can't be handed over, and counts for nothing.
                if slot % 2 == 0 {
                    balance.hand_over(slot, now);
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
        balance.note_anew(slot, now, delay);
        let mut hand_over = |balance: &mut Balance, outcome| {
            now = balance.deadline().expect("it is noted");
            assert!(balance.begin(now));
            assert_eq!(balance.next(now), Some(slot));
            balance.hand_over(slot, now);
            balance.ended(slot, outcome, now, delay);
            now
        };
        let distance = |balance: &Balance, now: Tick| {
            let at = balance.deadline();
            at.map(|at| at.since(now) / delay)
        };
        let [timed_out, busy] = [TransferOutcome::TimedOut, TransferOutcome::Busy];
        let now = hand_over(&mut balance, timed_out);
        assert_eq!(distance(&balance, now), Some(2));
        let now = hand_over(&mut balance, busy);
        assert_eq!(distance(&balance, now), Some(4));
        // Given away as it seems, and back: that has failed as well.
        let now = hand_over(&mut balance, TransferOutcome::Done);
        assert_eq!(distance(&balance, now), None);
        balance.note_led(slot, now, delay);
        assert_eq!(distance(&balance, now), Some(8));
        let mut now = now;
        for _ in 0..MOST_DOUBLINGS {
            now = hand_over(&mut balance, timed_out);
        }
        assert_eq!(distance(&balance, now), Some(64));
        // Others do not wait for it.
        balance.note(slot + 1, now, delay);
        assert_eq!(distance(&balance, now), Some(1));
        let other = balance.deadline().expect("it is noted");
        assert!(balance.begin(other));
        assert_eq!(balance.next(other), Some(slot + 1));
        // Its node comes back: that begins anew.
        balance.note_anew(slot, now, delay);
        assert_eq!(distance(&balance, now), Some(1));
        let now = hand_over(&mut balance, TransferOutcome::Done);
        // Led here again after long, it is a group like any other.
        balance.note_led(slot, now.after(3 * delay), delay);
        assert_eq!(distance(&balance, now), Some(4));
        // Handovers that others began are theirs to try again.
        let mut balance = Balance::default();
        balance.ended(slot, timed_out, now, delay);
        assert_eq!(balance.deadline(), None);
    }
}

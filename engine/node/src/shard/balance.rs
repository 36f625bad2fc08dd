//! Groups go back to the node that should lead them: each group has one, by its number, so that leaders are spread over the
//! members as at the beginning. Nothing is looked for: a group is noted when it gets a leader elsewhere, or when its node
//! comes back. It must never hand over many groups at once, nor try again by itself what did not work.

use std::collections::VecDeque;

use polyraft_raft::{Event, GroupId, NodeId, ProgressState, Tick};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{Payloads, Shard, leads};

/// Groups handed over together, and how long before the next ones, in microseconds.
const TOGETHER: usize = 32;
const PAUSE: u64 = 100_000;

/// Groups that are led here and should be led elsewhere.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// Each once, in the order in which they are looked at.
    noted: VecDeque<(Tick, u32)>,
    /// When each of them was noted to be due the last time: not before that is it handed over.
    due: FxHashMap<u32, Tick>,
    /// No group is handed over before.
    next_at: Tick,
}

impl Balance {
    /// When the next groups are due.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.noted.front().map(|(at, _)| (*at).max(self.next_at))
    }

    fn note(&mut self, at: Tick, slot: u32) {
        if self.due.insert(slot, at).is_none() {
            self.noted.push_back((at, slot));
        }
    }

    /// Takes out the next one that is due.
    fn next(&mut self, now: Tick) -> Option<u32> {
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

impl Shard {
    /// The voter that should lead a replica's group, if that is another node.
    fn rightful(&self, slot: u32) -> Option<NodeId> {
        let group = &self.replicas[slot as usize].group;
        let members = group.configuration();
        let node = match members.witnesses() {
            [] => preferred(group.id(), members.voters()),
            _ => {
                let full: SmallVec<[NodeId; 8]> = members.full_voters().collect();
                preferred(group.id(), &full)
            }
        };
        node.filter(|node| *node != self.shared.node)
    }

    /// This node began to lead a group.
    pub(super) fn note_led(&mut self, slot: u32) {
        if self.limits.rebalance_delay > 0 && self.rightful(slot).is_some() {
            let at = self.now.after(self.limits.rebalance_delay);
            self.balance.note(at, slot);
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
                self.balance.note(at, slot);
            }
        }
    }

    /// Hands over some of the groups that are due.
    pub(super) fn rebalance(&mut self) {
        if self.balance.deadline().is_none_or(|at| at > self.now) {
            return;
        }
        let mut left = TOGETHER;
        while left > 0
            && let Some(slot) = self.balance.next(self.now)
        {
            let replica = &self.replicas[slot as usize];
            let Some(to) = self.rightful(slot).filter(|_| leads(replica)) else {
                continue;
            };
            // One that is far behind would be waited for in vain. It is noted again when its node comes back.
            let is_ready = self.alive.contains(to)
                && replica
                    .group
                    .progress(to)
                    .is_some_and(|progress| progress.state == ProgressState::Replicate);
            if is_ready {
                left -= 1;
                self.step(slot, Event::Transfer { to }, Payloads::None);
            }
        }
        self.balance.next_at = self.now.after(PAUSE);
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
    fn a_group_that_is_noted_again_waits_once_and_as_long_as_the_last_time() {
        let mut balance = Balance::default();
        for at in [10, 20, 30] {
            for slot in 0..5 {
                balance.note(Tick(at), slot);
            }
        }
        balance.note(Tick(40), 1);
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
}

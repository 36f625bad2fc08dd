//! Who belongs to a group, and what a quorum of it is. Pure arithmetic on sets: how a configuration
//! changes is decided elsewhere, and nothing here may depend on the order in which replicas answer.

use smallvec::SmallVec;

use crate::mutants::{self, Mutant};
use crate::{Index, NodeId};

/// A sorted set of nodes; three fit without a heap allocation.
type Nodes = SmallVec<[NodeId; 3]>;

/// The members of a group.
///
/// Normally a set of voters. While voters change, the old and the new set count together (*joint*): every
/// decision then needs a majority of both halves (Raft paper, 6).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Configuration {
    /// Voters; the incoming half while joint.
    voters: Nodes,
    /// Everything that a settled group of plain voters does not have. Absent when all of it is empty.
    more: Option<Box<More>>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct More {
    /// The outgoing half; empty when not joint.
    outgoing: Nodes,
    /// Receive entries, count in no quorum. Disjoint from all voters.
    learners: Nodes,
    /// Outgoing voters that become learners when the joint phase ends.
    learners_next: Nodes,
    /// Members of any of these lists that store no payload.
    witnesses: Nodes,
    /// Who should lead. One of the voters, and no witness.
    preferred: Option<NodeId>,
}

fn sorted(nodes: impl IntoIterator<Item = NodeId>) -> Nodes {
    let mut nodes: Nodes = nodes.into_iter().collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.shrink_to_fit();
    nodes
}

impl Configuration {
    /// Voters only. Order and repetition do not matter.
    #[must_use]
    pub fn simple(voters: impl IntoIterator<Item = NodeId>) -> Configuration {
        Configuration {
            voters: sorted(voters),
            more: None,
        }
    }

    /// A configuration with all its parts. Nodes that are named as voter and as learner count as voters;
    /// `learners_next` keeps only nodes of `outgoing` that are not in `incoming`.
    #[must_use]
    pub fn joint(
        incoming: impl IntoIterator<Item = NodeId>,
        outgoing: impl IntoIterator<Item = NodeId>,
        learners: impl IntoIterator<Item = NodeId>,
        learners_next: impl IntoIterator<Item = NodeId>,
    ) -> Configuration {
        let voters = sorted(incoming);
        let outgoing = sorted(outgoing);
        let votes = |n: &NodeId| voters.contains(n) || outgoing.contains(n);
        let learners = sorted(learners.into_iter().filter(|n| !votes(n)));
        let learners_next = sorted(
            learners_next
                .into_iter()
                .filter(|n| outgoing.contains(n) && !voters.contains(n)),
        );
        let more = More {
            outgoing,
            learners,
            learners_next,
            witnesses: Nodes::new(),
            preferred: None,
        };
        let more = (more != More::default()).then(|| Box::new(more));
        Configuration { voters, more }
    }

    /// The same members, of which those among `witnesses` store no payload. Nodes that are no members are left out.
    #[must_use]
    pub fn with_witnesses(mut self, witnesses: impl IntoIterator<Item = NodeId>) -> Configuration {
        let witnesses = sorted(witnesses.into_iter().filter(|n| self.contains(*n)));
        if let Some(more) = &mut self.more {
            more.witnesses = witnesses;
        } else if !witnesses.is_empty() {
            self.more = Some(Box::new(More {
                witnesses,
                ..More::default()
            }));
        }
        self.more.take_if(|more| **more == More::default());
        self
    }

    /// The voters; the incoming half while joint. Sorted.
    #[must_use]
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// The outgoing half; empty when not joint. Sorted.
    #[must_use]
    pub fn outgoing(&self) -> &[NodeId] {
        self.more.as_ref().map_or(&[], |m| &m.outgoing)
    }

    /// Members that receive entries and count in no quorum. Sorted.
    #[must_use]
    pub fn learners(&self) -> &[NodeId] {
        self.more.as_ref().map_or(&[], |m| &m.learners)
    }

    /// Outgoing voters that stay as learners. Sorted.
    #[must_use]
    pub fn learners_next(&self) -> &[NodeId] {
        self.more.as_ref().map_or(&[], |m| &m.learners_next)
    }

    /// Members that take part in elections and quorums, as their list says, and store no payload. Sorted.
    #[must_use]
    pub fn witnesses(&self) -> &[NodeId] {
        self.more.as_ref().map_or(&[], |m| &m.witnesses)
    }

    /// Whether `node` is a member that stores no payload.
    #[must_use]
    pub fn is_witness(&self, node: NodeId) -> bool {
        self.witnesses().contains(&node)
    }

    /// The voters that may lead: all that are no witnesses; of the incoming half while joint. Sorted.
    pub fn full_voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        let witnesses = self.witnesses();
        let voters = self.voters.iter().copied();
        voters.filter(move |n| !witnesses.contains(n))
    }

    /// Whether witnesses alone could be a majority of a half: then something could be committed whose payload nobody has.
    #[must_use]
    pub fn witnesses_could_decide(&self) -> bool {
        let could = |half: &[NodeId]| {
            let witnesses = half.iter().filter(|n| self.is_witness(**n)).count();
            !half.is_empty() && witnesses > half.len() / 2
        };
        could(&self.voters) || could(self.outgoing())
    }

    /// The same members, of whom `node` should lead: a voter that is no witness, or it is left out. Comes after
    /// [`Configuration::with_witnesses`].
    #[must_use]
    pub fn with_preferred(mut self, node: Option<NodeId>) -> Configuration {
        let node = node.filter(|node| self.full_voters().any(|voter| voter == *node));
        if node.is_some() || self.more.is_some() {
            self.more.get_or_insert_default().preferred = node;
        }
        self.more.take_if(|more| **more == More::default());
        self
    }

    /// Who should lead, if it can.
    #[must_use]
    pub fn preferred(&self) -> Option<NodeId> {
        self.more.as_ref().and_then(|more| more.preferred)
    }

    /// Whether two halves count.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing().is_empty()
    }

    /// Whether `node` votes, in either half.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing().contains(&node)
    }

    /// Whether `node` is a learner.
    #[must_use]
    pub fn is_learner(&self, node: NodeId) -> bool {
        self.learners().contains(&node)
    }

    /// Whether `node` is a member at all.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.is_learner(node)
    }

    /// Every member once: voters, then the outgoing ones that do not stay, then learners.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        let leaving = self.outgoing().iter().filter(|n| !self.voters.contains(n));
        self.voters
            .iter()
            .chain(leaving)
            .chain(self.learners())
            .copied()
    }

    /// Whether the nodes for which `counts` holds are a majority of every half. Without voters: never.
    #[must_use]
    pub fn has_quorum(&self, mut counts: impl FnMut(NodeId) -> bool) -> bool {
        let mut majority = |half: &[NodeId]| {
            let needed = half.len() / 2 + usize::from(!mutants::is_active(Mutant::HalfIsMajority));
            half.iter().filter(|&&n| counts(n)).count() >= needed
        };
        let won = majority(&self.voters) && (!self.is_joint() || majority(self.outgoing()));
        won && !self.voters.is_empty()
    }

    /// The highest index that a majority of every half has reached, `matched` telling how far each voter
    /// is. Without voters: 0.
    #[must_use]
    pub fn committed(&self, mut matched: impl FnMut(NodeId) -> Index) -> Index {
        let mut reached = |half: &[NodeId]| {
            // Most groups have three voters, and the middle of three needs no list.
            if let &[a, b, c] = half
                && !mutants::is_active(Mutant::UnsortedQuorum)
            {
                let (a, b, c) = (matched(a), matched(b), matched(c));
                return a.min(b).max(a.max(b).min(c));
            }
            let mut indexes: SmallVec<[Index; 8]> = half.iter().map(|&n| matched(n)).collect();
            if !mutants::is_active(Mutant::UnsortedQuorum) {
                indexes.sort_unstable();
            }
            // Of n sorted ascending, a majority is at or above the one in the (n - 1) / 2 place.
            indexes
                .get(indexes.len().wrapping_sub(1) / 2)
                .copied()
                .unwrap_or(Index::ZERO)
        };
        let incoming = reached(&self.voters);
        if self.is_joint() {
            incoming.min(reached(self.outgoing()))
        } else {
            incoming
        }
    }

    /// The slow twin of [`Configuration::committed`], straight from the definition; it checks the fast one. What is committed
    /// is also stored by somebody who is no witness.
    pub(crate) fn committed_naively(&self, matched: impl Fn(NodeId) -> Index) -> Index {
        let reached = |n: NodeId| matched(n);
        let candidates = self.nodes().filter(|&n| self.is_voter(n)).map(reached);
        candidates
            .filter(|&i| self.has_quorum(|n| matched(n) >= i))
            .filter(|&i| self.nodes().any(|n| !self.is_witness(n) && matched(n) >= i))
            .max()
            .unwrap_or(Index::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ids(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().map(|&n| NodeId(n)).collect()
    }

    #[test]
    fn a_majority_commits() {
        let three = Configuration::simple(ids(&[3, 1, 2, 1]));
        assert_eq!(three.voters(), ids(&[1, 2, 3]));
        assert_eq!(three.committed(|n| Index(n.0 * 10)), Index(20));
        let four = Configuration::simple(ids(&[1, 2, 3, 4]));
        assert_eq!(four.committed(|n| Index(n.0 * 10)), Index(20));
        assert!(!four.has_quorum(|n| n.0 <= 2));
    }

    #[test]
    fn a_joint_decision_needs_both_halves() {
        let joint = Configuration::joint(ids(&[1, 2, 3]), ids(&[3, 4, 5]), [], []);
        assert!(joint.is_joint());
        assert!(!joint.has_quorum(|n| n.0 <= 3));
        assert!(joint.has_quorum(|n| (2..=4).contains(&n.0)));
        assert_eq!(
            joint.committed(|n| Index(if n.0 <= 3 { 9 } else { 4 })),
            Index(4)
        );
        assert_eq!(joint.nodes().collect::<Vec<_>>(), ids(&[1, 2, 3, 4, 5]));
    }

    #[test]
    fn learner_does_not_count_in_quorum() {
        let with = Configuration::joint(ids(&[1, 2, 3]), [], ids(&[4, 5, 1]), []);
        assert!(with.is_learner(NodeId(4)) && !with.is_learner(NodeId(1)));
        assert!(!with.has_quorum(|n| matches!(n.0, 1 | 4 | 5)));
        assert_eq!(
            with.committed(|n| Index(if n.0 > 3 { 9 } else { 0 })),
            Index(0)
        );
    }

    #[test]
    fn a_witness_votes_and_too_many_of_them_could_decide() {
        let three = Configuration::simple(ids(&[1, 2, 3]));
        let one = three.clone().with_witnesses(ids(&[3, 9]));
        assert_eq!(
            (one.witnesses(), one.voters()),
            (&ids(&[3])[..], &ids(&[1, 2, 3])[..])
        );
        assert!(one.is_witness(NodeId(3)) && !one.is_witness(NodeId(9)));
        assert!(one.full_voters().eq(ids(&[1, 2])));
        assert!(one.has_quorum(|n| matches!(n.0, 1 | 3)) && !one.witnesses_could_decide());
        assert!(
            three
                .clone()
                .with_witnesses(ids(&[2, 3]))
                .witnesses_could_decide()
        );
        assert_eq!(one.with_witnesses([]), three);
        for (voters, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)] {
            for witnesses in 0..=voters {
                let nodes = Configuration::simple((1..=voters).map(NodeId));
                let nodes = nodes.with_witnesses((1..=witnesses).map(NodeId));
                let is_quorum = nodes.has_quorum(|n| n.0 <= witnesses);
                assert_eq!(nodes.witnesses_could_decide(), is_quorum);
                assert_eq!(is_quorum, witnesses > most);
            }
        }
    }

    #[test]
    fn nobody_is_no_quorum() {
        let nobody = Configuration::default();
        assert!(!nobody.has_quorum(|_| true));
        assert_eq!(nobody.committed(|_| Index(5)), Index(0));
    }

    #[test]
    fn equal_sets_are_equal_configurations() {
        let plain = Configuration::joint(ids(&[2, 1]), [], [], ids(&[7]));
        assert_eq!(plain, Configuration::simple(ids(&[1, 2])));
    }

    proptest! {
        #[test]
        fn the_fast_quorum_agrees_with_the_naive_one(
            incoming in prop::collection::vec(1..8_u64, 0..7),
            outgoing in prop::collection::vec(1..8_u64, 0..7),
            matched in prop::collection::vec(0..6_u64, 8),
        ) {
            let configuration = Configuration::joint(ids(&incoming), ids(&outgoing), [], []);
            let index = |n: NodeId| Index(matched[n.0 as usize]);
            prop_assert_eq!(configuration.committed(index), configuration.committed_naively(index));
        }

        /// Counted by hand over the sets that were asked for: who is a member and as what, and what is a quorum.
        #[test]
        fn members_and_quorums_are_those_of_the_sets(
            sets in prop::collection::vec(prop::collection::btree_set(1..8_u64, 0..6), 4),
        ) {
            let [incoming, outgoing, learners, next] = &sets[..] else { unreachable!("four were asked for") };
            let of = |set: &BTreeSet<u64>| set.iter().rev().map(|&n| NodeId(n)).collect::<Vec<_>>();
            let configuration = Configuration::joint(of(incoming), of(outgoing), of(learners), of(next));

            let voters = incoming | outgoing;
            let named = |nodes: &[NodeId]| nodes.iter().map(|n| n.0).collect::<BTreeSet<_>>();
            prop_assert_eq!(&named(configuration.learners()), &(learners - &voters));
            prop_assert_eq!(&named(configuration.learners_next()), &(&(next & outgoing) - incoming));
            prop_assert_eq!(&named(&configuration.nodes().collect::<Vec<_>>()), &(&voters | learners));
            prop_assert_eq!(configuration.nodes().count(), (&voters | learners).len());
            for n in 1..8 {
                let (node, votes) = (NodeId(n), voters.contains(&n));
                prop_assert_eq!(configuration.is_voter(node), votes);
                prop_assert_eq!(configuration.is_learner(node), learners.contains(&n) && !votes);
                prop_assert_eq!(configuration.contains(node), votes || learners.contains(&n));
            }

            let majority = |half: &BTreeSet<u64>, yes: u64| {
                2 * half.iter().filter(|&&n| yes >> n & 1 == 1).count() > half.len()
            };
            let is_quorum = |yes: u64| configuration.has_quorum(|n| yes >> n.0 & 1 == 1);
            let mut quorums = Vec::new();
            for yes in (0..1_u64 << 8).step_by(2) {
                let expected = majority(incoming, yes) && (outgoing.is_empty() || majority(outgoing, yes));
                prop_assert_eq!(is_quorum(yes), expected, "{:#b}", yes);
                // Whoever joins a quorum does not break it.
                prop_assert!(!expected || (1..8).all(|n| is_quorum(yes | 1 << n)));
                quorums.extend(expected.then_some(yes));
            }
            // Any two quorums share a voter, and so do a joint one and a majority of either half.
            for &one in &quorums {
                prop_assert!(quorums.iter().all(|other| voters.iter().any(|n| one & other & 1 << n != 0)));
                for half in [incoming, outgoing].into_iter().filter(|half| !half.is_empty()) {
                    prop_assert!(majority(half, one));
                }
            }
        }
    }
}

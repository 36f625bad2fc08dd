//! What changes of members must do to a group. Each test says in its name which rule it is about.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Node 3 with five entries of term 2, of which the fourth makes it a member again, and nothing of it is known to be committed.
fn back_by_the_fourth_entry(term: u64) -> Group {
    let alive = crate::NodeSet::new(NodeId(3));
    let settings = crate::Settings::default();
    let env = Env {
        now: Tick(0),
        settings: &settings,
        alive: &alive,
    };
    let restored = Restored {
        hard_state: crate::HardState {
            term: Term(term),
            ..crate::HardState::default()
        },
        configurations: vec![(Index(4), Configuration::simple([1, 2, 3].map(NodeId)))],
        runs: vec![crate::TermRun {
            term: Term(2),
            first: Index(1),
        }],
        last: Index(5),
        ..Restored::empty(Configuration::simple([1, 2].map(NodeId)))
    };
    Group::new(
        GroupId(1),
        NodeId(3),
        7,
        &env,
        restored,
        &mut Outbox::default(),
    )
}

#[test]
fn an_entry_that_was_never_committed_keeps_no_replica_in_its_group() {
    let group = back_by_the_fourth_entry(2);
    // Who does not lead may only have heard of less.
    assert!(!group.heeds_removal(Index(3), None));
    // The leader of the entry's own term may have appended it since.
    assert!(!group.heeds_removal(Index(3), Some(Term(2))));
    assert!(group.heeds_removal(Index(3), Some(Term(3))));
    assert!(group.heeds_removal(Index(4), None), "it is not behind that");
    assert_eq!(group.back_since(Index(3)), Some(Index(4)));
    assert_eq!(group.back_since(Index(4)), None);
    // A leader of an earlier term than the replica's knows less than others may.
    let later = back_by_the_fourth_entry(5);
    assert!(!later.heeds_removal(Index(3), Some(Term(3))));
    assert!(later.heeds_removal(Index(3), Some(Term(5))));
}

/// Node 3, back after it lost a log that may have gone through index 1000 in terms up to 5, with a log of these terms; the
/// entry at index 4 makes it no member if `is_out`. All of it is committed.
fn repaired(terms: &[(u64, u64)], last: u64, is_out: bool) -> (Group, Vec<Removed>) {
    let alive = crate::NodeSet::new(NodeId(3));
    let settings = crate::Settings::default();
    let env = Env {
        now: Tick(0),
        settings: &settings,
        alive: &alive,
    };
    let left = (Index(4), Configuration::simple([1, 2].map(NodeId)));
    let run = |&(term, first): &(u64, u64)| crate::TermRun {
        term: Term(term),
        first: Index(first),
    };
    let restored = Restored {
        hard_state: crate::HardState {
            term: Term(7),
            vote: None,
            commit: Index(last),
        },
        configurations: is_out.then_some(left).into_iter().collect(),
        runs: terms.iter().map(run).collect(),
        last: Index(last),
        removed_at: Index(1000),
        removed_in: Term(5),
        ..Restored::empty(Configuration::simple([1, 2, 3].map(NodeId)))
    };
    let mut out = Outbox::default();
    let group = Group::new(GroupId(1), NodeId(3), 7, &env, restored, &mut out);
    (group, out.removed)
}

/// It was deaf to that until its log was as long as the one that it lost, which may never happen.
#[test]
fn a_repaired_replica_learns_of_its_removal_before_its_log_is_long_again() {
    // By its own log.
    let own = Removed {
        group: GroupId(1),
        node: NodeId(3),
        at: Index(4),
    };
    assert_eq!(repaired(&[(5, 1), (6, 4)], 5, true).1, [own]);
    // In that term it was removed before it came back, for all it knows.
    assert_eq!(repaired(&[(5, 1)], 5, true).1, []);
    // By what others say: only a leader of a later term can't mean what was before.
    let (behind, _) = repaired(&[(5, 1)], 3, false);
    assert_eq!(behind.returning(), Some(Index(1000)));
    assert!(!behind.heeds_removal(Index(910), None));
    assert!(!behind.heeds_removal(Index(910), Some(Term(5))));
    assert!(behind.heeds_removal(Index(910), Some(Term(6))));
    assert!(
        !behind.heeds_removal(Index(3), Some(Term(6))),
        "it has that"
    );
    // A committed entry of a later term says all that it has to know of the time before.
    let (back, _) = repaired(&[(5, 1), (6, 3)], 3, false);
    assert_eq!(back.returning(), None);
    assert!(back.heeds_removal(Index(910), None));
}

/// Two of three had what a group began with; one was lost, and the other asked the third for ever.
#[test]
fn a_replica_that_lacks_what_its_group_began_with_votes_only_for_who_has_it() {
    let alive = crate::NodeSet::new(NodeId(3));
    let settings = crate::Settings::default();
    let env = Env {
        now: Tick(0),
        settings: &settings,
        alive: &alive,
    };
    let at = |index: u64| LogPosition {
        term: Term(0),
        index: Index(index),
    };
    let votes = |removed_in: Term, last: LogPosition| {
        let restored = Restored {
            removed_at: Index(1),
            removed_in,
            ..Restored::empty(Configuration::simple([1, 2, 3].map(NodeId)))
        };
        let mut out = Outbox::default();
        let mut group = Group::new(GroupId(1), NodeId(3), 7, &env, restored, &mut out);
        group.campaign(&env, &mut out);
        assert!(out.sends.is_empty(), "it stands with nothing");
        group.hear_pre_vote(&env, NodeId(1), Term(1), last, &mut out);
        group.hear_vote(&env, NodeId(1), Term(1), last, false, &mut out);
        let [sent] = &out.sends[..1] else {
            unreachable!()
        };
        let is_willing = matches!(sent.message, Message::PreVoteReply { granted: true, .. });
        assert_eq!(group.vote == Some(NodeId(1)), is_willing);
        is_willing
    };
    assert!(votes(Restored::NEVER, at(4)));
    assert!(!votes(Restored::NEVER, at(0)), "the state would be gone");
    // One that was here before may have acknowledged what this candidate lacks.
    assert!(!votes(Term(5), at(4)));
}

type Set = BTreeSet<u64>;

fn ids(set: &Set) -> Vec<NodeId> {
    set.iter().map(|&n| NodeId(n)).collect()
}

fn set(nodes: &[NodeId]) -> Set {
    nodes.iter().map(|n| n.0).collect()
}

/// Whether `yes` are more than half of `half`.
fn is_majority(half: &Set, yes: &Set) -> bool {
    2 * half.intersection(yes).count() > half.len()
}

/// Every set of the nodes 1 to 6.
fn all_sets() -> impl Iterator<Item = Set> {
    (0..64_u64).map(|bits| (1..7).filter(|n| bits >> (n - 1) & 1 == 1).collect())
}

fn change() -> impl Strategy<Value = MemberChange> {
    (0..5_u8, 1..7_u64).prop_map(|(kind, node)| match kind {
        0 => MemberChange::Voter(NodeId(node)),
        1 => MemberChange::Learner(NodeId(node)),
        2 => MemberChange::Witness(NodeId(node)),
        3 => MemberChange::WitnessLearner(NodeId(node)),
        _ => MemberChange::Remove(NodeId(node)),
    })
}

proptest! {
    /// What nodes are before, during and after a change, and who decides, counted by hand over sets.
    #[test]
    fn a_change_goes_where_it_says_and_its_quorums_meet(
        voters in prop::collection::btree_set(1..7_u64, 1..5),
        learners in prop::collection::btree_set(1..7_u64, 0..3),
        witnesses in prop::collection::btree_set(1..7_u64, 0..3),
        changes in prop::collection::vec(change(), 1..4),
    ) {
        let learners = &learners - &voters;
        let witnesses = &witnesses & &(&voters | &learners);
        let too_many = |voters: &Set, witnesses: &Set| 2 * (voters & witnesses).len() > voters.len();
        prop_assume!(!too_many(&voters, &witnesses));
        let before = Configuration::joint(ids(&voters), [], ids(&learners), [])
            .with_witnesses(ids(&witnesses));
        let (mut to_vote, mut to_learn) = (voters.clone(), learners.clone());
        let mut to_witness = witnesses.clone();
        let named: Set = changes.iter().map(|change| change.node().0).collect();
        let keeps_kind = |change: &&MemberChange| {
            let node = change.node().0;
            let is_member = voters.contains(&node) || learners.contains(&node);
            let stays = !matches!(change, MemberChange::Remove(_));
            stays && is_member && witnesses.contains(&node) != change.is_witness()
        };
        let turns = changes.iter().find(keeps_kind);
        for change in &changes {
            let node = change.node().0;
            to_vote.remove(&node);
            to_learn.remove(&node);
            to_witness.remove(&node);
            match change {
                MemberChange::Voter(_) | MemberChange::Witness(_) => drop(to_vote.insert(node)),
                MemberChange::Learner(_) | MemberChange::WitnessLearner(_) => {
                    _ = to_learn.insert(node);
                }
                _ => {}
            }
            if change.is_witness() {
                to_witness.insert(node);
            }
        }
        let during = match before.changed(&changes) {
            Err(ChangeRefused::Repeated { .. }) => {
                prop_assert!(named.len() < changes.len());
                return Ok(());
            }
            Err(ChangeRefused::NoVoters) => {
                prop_assert!(to_vote.is_empty());
                return Ok(());
            }
            Err(ChangeRefused::KindKept { .. }) => {
                prop_assert!(turns.is_some());
                return Ok(());
            }
            Err(ChangeRefused::TooManyWitnesses) => {
                prop_assert!(too_many(&to_vote, &to_witness));
                return Ok(());
            }
            Err(why) => {
                prop_assert_eq!(why, ChangeRefused::Unchanged);
                prop_assert!(to_vote == voters && to_learn == learners);
                return Ok(());
            }
            Ok(during) => during,
        };
        prop_assert!(named.len() == changes.len() && !to_vote.is_empty());
        prop_assert!(turns.is_none() && !too_many(&to_vote, &to_witness));
        prop_assert_eq!(during.is_joint(), to_vote != voters);
        let after = if during.is_joint() { during.left() } else { during.clone() };
        prop_assert!(!after.is_joint());
        prop_assert_eq!(set(after.voters()), to_vote.clone());
        prop_assert_eq!(set(after.learners()), to_learn.clone());
        prop_assert_eq!(set(after.witnesses()), to_witness);
        let is_kept = |node: &u64| {
            let node = NodeId(*node);
            !during.contains(node) || during.is_witness(node)
        };
        prop_assert!(witnesses.iter().all(is_kept));
        // Whoever gets entries in the end gets them from the beginning.
        prop_assert!(after.nodes().all(|node| during.contains(node)));

        let decides = |members: &Configuration, yes: &Set| {
            members.has_quorum(|node| yes.contains(&node.0))
        };
        for yes in all_sets() {
            let both = is_majority(&voters, &yes) && is_majority(&to_vote, &yes);
            prop_assert_eq!(decides(&during, &yes), both);
            prop_assert_eq!(decides(&after, &yes), is_majority(&to_vote, &yes));
            // Whatever decides has somebody who stores payloads.
            for members in [&before, &during, &after] {
                let stores = |node: &u64| !members.is_witness(NodeId(*node));
                prop_assert!(!decides(members, &yes) || yes.iter().any(stores));
            }
            // No two sets without a common node decide, one before and one during the change, or one during and
            // one after it.
            let others: Set = (1..7).filter(|node| !yes.contains(node)).collect();
            prop_assert!(!(decides(&before, &yes) && decides(&during, &others)));
            prop_assert!(!(decides(&during, &yes) && decides(&after, &others)));
        }
    }
}

#[test]
fn who_should_lead_is_a_voter_with_payloads_and_stays_so_until_it_is_none() {
    let voters = Configuration::simple((1..=3).map(NodeId)).with_witnesses([NodeId(3)]);
    let prefer = |node| MemberChange::Prefer(NodeId(node));
    let two = voters.changed(&[prefer(2)]).unwrap();
    assert_eq!((two.preferred(), two.is_joint()), (Some(NodeId(2)), false));
    assert_eq!(two.changed(&[prefer(2)]), Err(ChangeRefused::Unchanged));
    for node in [3, 4].map(NodeId) {
        let refused = Err(ChangeRefused::CannotLead { node });
        assert_eq!(voters.changed(&[MemberChange::Prefer(node)]), refused);
    }
    let repeated = ChangeRefused::Repeated { node: NodeId(2) };
    assert_eq!(voters.changed(&[prefer(1), prefer(2)]), Err(repeated));
    // It may become a voter with the same change, and ceases to be the one with its vote.
    let four = [MemberChange::Voter(NodeId(4)), prefer(4)];
    let four = two.changed(&four).unwrap();
    assert_eq!(
        (four.preferred(), four.left().preferred()),
        (Some(NodeId(4)), Some(NodeId(4)))
    );
    let gone = two.changed(&[MemberChange::Remove(NodeId(2))]).unwrap();
    assert_eq!(gone.preferred(), None);
    assert_eq!(
        two.changed(&[MemberChange::Unprefer(NodeId(2))]),
        Ok(voters)
    );
}

#[test]
fn what_is_taken_back_is_what_was_in_force() {
    let members = |n: u64| Configuration::simple([NodeId(n)]);
    let mut replaced = Former::default();
    for (index, before) in [(4, 1), (6, 2), (9, 3)] {
        replaced.push(Index(index), members(before));
    }
    assert_eq!(replaced.last(), Some(Index(9)));
    assert_eq!(replaced.first(), Some(&members(1)));
    assert_eq!(replaced.roll_back(Index(10)), None);
    assert_eq!(replaced.roll_back(Index(6)), Some(members(2)));
    assert_eq!(replaced.forget(Index(3), None), []);
    assert_eq!(replaced.last(), Some(Index(4)));
    let forgotten = replaced.forget(Index(4), Some(Term(9)));
    assert_eq!(forgotten, [(Index(4), members(1))]);
    assert_eq!(replaced, Former::default());
    assert_eq!(replaced.roll_back(Index(1)), None);
}

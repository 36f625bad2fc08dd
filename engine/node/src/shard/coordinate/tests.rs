//! What a request that goes to all nodes may conclude from their answers. Each test says in its name which rule it is about.

use polyraft_storage::{EntryKind, Tombstone};

use super::super::split::tests::{Alone, CHILD};
use super::super::tests::GROUP;
use super::*;
use crate::liveness::Intervals;
use crate::wire::Fate;

fn life(number: u32) -> Life {
    Life::new(number).unwrap()
}

fn found(groups: std::ops::Range<u64>, number: u32, fate: Fate) -> Found {
    let life = life(number);
    Found { groups, life, fate }
}

/// Other nodes that are asked for something first answer that they have nothing. False: none is.
pub(in crate::shard) fn others_answer(shard: &mut Shard) -> bool {
    let node = shard.shared.node;
    let Some(request) = shard.home().coordination.requests.first() else {
        return false;
    };
    let (number, is_survey) = (request.number, matches!(request.what, What::Survey { .. }));
    let missing = request.missing.clone();
    for other in missing.into_iter().filter(|other| *other != node) {
        match is_survey {
            true => shard.surveyed(other, number, Ticket::new(1), Vec::new()),
            false => shard.member_created(other, number, Ok(LifeRanges::new())),
        }
    }
    true
}

#[test]
fn the_newest_life_that_anybody_knows_counts() {
    let members = Configuration::simple([NodeId(1)]);
    let others = Configuration::simple([NodeId(1), NodeId(2)]);
    let here = |members: &Configuration| Fate::Here(members.clone());
    let all = vec![
        found(1..4, 0, here(&members)),
        found(2..3, 1, Fate::Over),
        found(3..5, 0, here(&others)),
        found(4..5, 1, Fate::Damaged),
        found(9..10, 2, Fate::Over),
    ];
    let lives = lives_found(&all);
    let known = |group| {
        let Known {
            life,
            members,
            possible,
            ..
        } = &lives[&group];
        (life.get(), members.clone(), possible.get())
    };
    assert_eq!(known(1), (0, vec![members.clone()], 0));
    assert_eq!(known(2), (1, vec![], 2));
    assert_eq!(known(3), (0, vec![members, others], 0));
    // What a damaged log takes for its life is no reason to begin that one.
    assert_eq!(known(4), (1, vec![], 0));
    assert_eq!(known(9), (2, vec![], 3));
    assert_eq!(lives.len(), 5);
}

#[test]
fn a_life_that_goes_on_with_others_is_not_begun_again() {
    let wanted = Configuration::simple([1, 2].map(NodeId));
    let others = Configuration::simple([3, 4].map(NodeId));
    let here = |members: &Configuration| (0, Fate::Here(members.clone()));
    let cases = [
        (vec![], None),
        (vec![here(&wanted)], None),
        // The same ones, of whom one should lead.
        (
            vec![here(&wanted.clone().with_preferred(Some(NodeId(2))))],
            None,
        ),
        (vec![here(&others)], Some(vec![3, 4])),
        // Somebody has not heard of the change.
        (vec![here(&wanted), here(&others)], Some(vec![3, 4])),
        (vec![here(&others), (0, Fate::Over)], None),
        (vec![(0, Fate::Over), here(&others)], None),
        (vec![(0, Fate::Elsewhere)], Some(vec![])),
        (vec![(0, Fate::Elsewhere), here(&others)], Some(vec![3, 4])),
        // One of them may have been somewhere else before.
        (vec![(0, Fate::Elsewhere), here(&wanted)], None),
        (vec![(0, Fate::Elsewhere), (0, Fate::Over)], None),
        (vec![(1, Fate::Elsewhere), (0, Fate::Over)], Some(vec![])),
        (vec![(0, Fate::Damaged)], Some(vec![])),
        (vec![(0, Fate::Damaged), here(&wanted)], None),
        (vec![(0, Fate::Damaged), (0, Fate::Over)], None),
    ];
    for (reports, expected) in cases {
        let reports = reports.into_iter();
        let all: Vec<Found> = reports
            .map(|(life, fate)| found(7..8, life, fate))
            .collect();
        let lives = lives_found(&all);
        let known = lives.get(&7);
        let other = known.and_then(|known| known.other_than(&wanted));
        let expected: Option<Vec<NodeId>> =
            expected.map(|nodes| nodes.into_iter().map(NodeId).collect());
        assert_eq!(other, expected, "{all:?}");
    }
}

#[test]
fn a_life_whose_members_are_all_silent_is_known_to_be_somewhere() {
    let members = Configuration::simple([NodeId(1)]);
    let is_astray = |reports: Vec<Fate>| {
        let reports = reports.into_iter().map(|fate| found(7..8, 0, fate));
        lives_found(&reports.collect::<Vec<_>>())[&7].is_astray()
    };
    assert!(is_astray(vec![Fate::Elsewhere]));
    assert!(!is_astray(vec![Fate::Elsewhere, Fate::Over]));
    assert!(!is_astray(vec![Fate::Here(members), Fate::Elsewhere]));
    assert!(!is_astray(vec![Fate::Damaged]));
}

#[test]
fn what_another_group_needs_does_not_end_without_it() {
    let members = Configuration::simple([NodeId(1)]);
    let here = |group: u64, number| {
        let groups = group..group + 1;
        found(groups, number, Fate::Here(members.clone()))
    };
    let needed = |all: &[Found], ended: &[u64]| {
        let ends = |group: GroupId| ended.contains(&group.0);
        match first_needed(all, &lives_found(all), ends) {
            Some(Error::Needed { group, by, .. }) => Some((group.0, by.0)),
            None => None,
            other => panic!("{other:?}"),
        }
    };
    for fate in [Fate::Target(GroupId(8)), Fate::Parent(GroupId(8))] {
        let aside = |number| found(7..8, number, fate.clone());
        let all = [here(7, 1), here(8, 0), aside(1)];
        assert_eq!(needed(&all, &[7]), Some((7, 8)));
        assert_eq!(needed(&all, &[6, 7]), Some((7, 8)));
        // Both go, or only the one that needs the other.
        assert_eq!(needed(&all, &[7, 8]), None);
        assert_eq!(needed(&all, &[8]), None);
        // The life that was needed is over for good, or nobody knows of it.
        assert_eq!(needed(&[here(7, 1), aside(0)], &[7]), None);
        let over = found(7..8, 1, Fate::Over);
        assert_eq!(needed(&[over, aside(1)], &[7]), None);
        assert_eq!(needed(&[aside(1)], &[7]), None);
    }
}

#[test]
fn only_a_new_life_is_refused_to_an_id_that_somebody_waits_for() {
    let members = Configuration::simple([NodeId(1)]);
    let aside = found(7..8, 0, Fate::Target(GroupId(3)));
    let refused = |more: Vec<Found>, begun: u64| {
        let all: Vec<Found> = more.into_iter().chain([aside.clone()]).collect();
        let begins = |group: GroupId| group.0 == begun;
        first_awaited(&all, &lives_found(&all), begins).is_some()
    };
    let over = || vec![found(7..8, 0, Fate::Over)];
    assert!(refused(over(), 7) && refused(vec![], 7));
    // It is another group's, or goes on: then nothing begins.
    assert!(!refused(over(), 8));
    assert!(!refused(vec![found(7..8, 0, Fate::Here(members))], 7));
}

#[test]
fn a_member_that_was_not_asked_has_ended_nothing() {
    let nodes = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<Members>();
    let (asked, missing) = (nodes(&[1, 2, 3, 4]), nodes(&[4]));
    let ended = |members: &[u64]| {
        let members = Configuration::simple(members.iter().copied().map(NodeId));
        have_ended(&[members], &asked, &missing)
    };
    assert!(ended(&[1, 2, 4]) && ended(&[2, 3, 5]));
    assert!(!ended(&[3, 4, 5]) && !ended(&[4]) && !ended(&[5]));
}

#[test]
fn lives_are_raised_and_never_lowered() {
    let groups = vec![(1..10, life(0)), (10..12, life(5))];
    let later = vec![(3..5, life(2)), (11..12, life(4))];
    let expected = vec![
        (1..3, life(0)),
        (3..5, life(2)),
        (5..10, life(0)),
        (10..12, life(5)),
    ];
    assert_eq!(raised(&groups, &later), expected);
}

#[test]
fn neighbours_that_are_alike_are_put_together() {
    let found = |groups, number| found(groups, number, Fate::Over);
    let all = vec![
        found(3..4, 0),
        found(1..2, 0),
        found(2..3, 0),
        found(4..5, 1),
        found(6..7, 1),
    ];
    assert_eq!(
        joined(all),
        [found(1..4, 0), found(4..5, 1), found(6..7, 1)]
    );
}

#[test]
fn a_life_that_is_over_for_somebody_and_there_for_others_is_ending() {
    let wanted = Configuration::simple([1, 2].map(NodeId));
    let others = Configuration::simple([3, 4].map(NodeId));
    let here = |members: &Configuration| Fate::Here(members.clone());
    let prefers = wanted.clone().with_preferred(Some(NodeId(2)));
    let cases = [
        (vec![(0, here(&wanted))], false),
        (vec![(0, Fate::Over)], false),
        (vec![(0, here(&wanted)), (0, Fate::Over)], true),
        (vec![(0, Fate::Over), (0, here(&prefers))], true),
        (vec![(0, here(&wanted)), (3, Fate::Over)], true),
        (vec![(0, here(&others)), (0, Fate::Over)], false),
        // A damaged one stays, and the others go on without it.
        (
            vec![(0, Fate::Stays(wanted.clone())), (0, Fate::Over)],
            false,
        ),
        // The next one has begun.
        (
            vec![(0, here(&wanted)), (0, Fate::Over), (1, here(&wanted))],
            false,
        ),
    ];
    for (reports, expected) in cases {
        let reports = reports.into_iter();
        let all: Vec<Found> = reports
            .map(|(life, fate)| found(7..8, life, fate))
            .collect();
        assert_eq!(
            lives_found(&all)[&7].is_ending(&wanted),
            expected,
            "{all:?}"
        );
    }
}

const OTHERS: [NodeId; 2] = [NodeId(2), NodeId(3)];

/// A node with a group, and two peers that nobody hears, of which everybody is counted on for so long.
fn with_silent_peers(silence: u64) -> Alone {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    let intervals = Intervals {
        beat: 25_000,
        silence,
        drift_ppm: 0,
        priority: 100,
    };
    alone.shard.home().liveness = Liveness::new(NodeId(1), 1, intervals, OTHERS);
    alone
}

/// Node 2 answers the only request.
fn answers(alone: &mut Alone, result: Result<LifeRanges, Vec<Found>>) {
    let number = alone.shard.home().coordination.requests[0].number;
    match result {
        Ok(later) => alone.shard.member_created(NodeId(2), number, Ok(later)),
        Err(found) => {
            let ticket = Ticket::new(1);
            alone.shard.surveyed(NodeId(2), number, ticket, found);
        }
    }
}

/// Before, the timeout was shorter than what had to be waited for.
#[test]
fn a_destruction_has_time_to_wait_until_nobody_counts_on_a_silent_node() {
    let mut alone = with_silent_peers(TIMEOUT);
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    alone.shard.destroy_everywhere(ranges([GROUP.0]), reply);
    alone.settle();
    answers(&mut alone, Err(Vec::new()));
    alone.pass(TIMEOUT);
    alone.settle();
    assert!(alone.shard.life_of(GROUP).is_none());
    answers(&mut alone, Ok(LifeRanges::new()));
    assert!(answer.try_recv().is_err(), "it may be counted on");
    alone.pass(TIMEOUT);
    alone.settle();
    assert_eq!(answer.try_recv(), Ok(Ok(())));
}

/// Before, the members counted that were told when all were asked: a change that was under way left the group to others, who went
/// on with it.
#[test]
fn members_that_took_over_before_the_others_ended_have_to_end_too() {
    let here = |members: &[u64]| {
        let members = Configuration::simple(members.iter().copied().map(NodeId));
        found(GROUP.0..GROUP.0 + 1, 0, Fate::Here(members))
    };
    for (former, is_over) in [(vec![], true), (vec![here(&[3])], false)] {
        let mut alone = with_silent_peers(1);
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        alone.shard.destroy_everywhere(ranges([GROUP.0]), reply);
        alone.settle();
        answers(&mut alone, Err(vec![here(&[1, 2, 3])]));
        alone.pass(GRACE);
        alone.settle();
        assert!(alone.shard.life_of(GROUP).is_none());
        answers(&mut alone, Err(former));
        answers(&mut alone, Ok(LifeRanges::new()));
        alone.pass(GRACE);
        alone.settle();
        assert_eq!(answer.try_recv().is_ok(), is_over);
        if !is_over {
            let number = alone.shard.home().coordination.requests[0].number;
            let ended = Ok(LifeRanges::new());
            alone.shard.member_created(NodeId(3), number, ended);
            assert_eq!(answer.try_recv(), Ok(Ok(())));
        }
    }
}

/// Whoever destroys a group may ask twice, and hears of its end from others first.
#[test]
fn who_the_members_were_when_a_replica_ended_is_known_for_a_while() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    let known = |alone: &Alone, life| {
        let members = alone.shard.ends.former_members(GROUP, life);
        members.map(|members| members.voters().to_vec())
    };
    assert_eq!(known(&alone, Life::FIRST), None);
    let over = Tombstone::destroyed(Life::FIRST);
    alone.shard.end_replica(GROUP, over);
    alone.settle();
    assert_eq!(known(&alone, Life::FIRST), Some(vec![NodeId(1)]));
    assert_eq!(known(&alone, life(1)), None);
    alone.pass(TIMEOUT);
    alone.settle();
    assert!(known(&alone, Life::FIRST).is_some());
    // Nobody asks, and nothing else ends.
    alone.pass(60_000_000);
    alone.settle();
    assert_eq!(known(&alone, Life::FIRST), None);
}

/// What comes of the creation of a group that is there already, when node 2 answers one question after the other.
fn created_again<const N: usize>(answered: [Result<LifeRanges, Vec<Found>>; N]) -> Error {
    let mut alone = with_silent_peers(1);
    let members: Members = [1, 2].map(NodeId).into_iter().collect();
    let (node, request) = (NodeId(1), 0);
    let lives = vec![(CHILD.0..CHILD.0 + 1, Life::FIRST)];
    let origin = CreateOrigin { node, request };
    alone.shard.create(origin, &lives, &members);
    alone.settle();
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    let wanted = ranges([CHILD.0]);
    alone.shard.create_everywhere(wanted, members, reply);
    for result in answered {
        alone.settle();
        answers(&mut alone, result);
        alone.pass(GRACE);
    }
    alone.settle();
    assert_eq!(alone.shard.life_of(CHILD), Some(Life::FIRST));
    answer.try_recv().expect("an answer").unwrap_err()
}

/// Before, its replicas ended and were begun anew.
#[test]
fn who_creates_what_is_there_does_not_end_it_because_somebody_knows_of_its_end() {
    let (ending, groups) = (Error::Ending { group: CHILD }, CHILD.0..CHILD.0 + 1);
    assert!(ending.is_retryable() && !ending.may_have_committed());
    let over = found(groups.clone(), 0, Fate::Over);
    assert_eq!(
        created_again([Err(vec![over.clone()]), Err(vec![over])]),
        ending
    );
    // Who knows of it was not heard when all were asked which lives there are.
    let later = vec![(groups, life(1))];
    assert_eq!(
        created_again([Err(Vec::new()), Err(Vec::new()), Ok(later)]),
        ending
    );
}

/// Before, the tombstone was told of before it was durable: a crash could forget an end behind which a life had begun.
#[test]
fn what_is_over_is_told_only_once_a_crash_does_not_forget_it() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    let (node, groups) = (NodeId(2), ranges([GROUP.0]));
    let is_answered = |alone: &mut Alone, request| {
        let origin = CreateOrigin { node, request };
        for _ in 0..3 {
            alone.turn();
        }
        !alone.shard.home().coordination.parts.contains_key(&origin)
    };
    let ask = |alone: &mut Alone, request| {
        let origin = CreateOrigin { node, request };
        alone.shard.survey_parts(origin, None, groups.clone());
    };
    ask(&mut alone, 1);
    assert!(is_answered(&mut alone, 1), "nothing is over");
    let over = Tombstone::destroyed(Life::FIRST);
    alone.shard.end_replica(GROUP, over);
    ask(&mut alone, 2);
    assert!(!is_answered(&mut alone, 2));
    ask(&mut alone, 3);
    assert!(!is_answered(&mut alone, 3));
    alone.settle();
    assert!(is_answered(&mut alone, 2) && is_answered(&mut alone, 3));
    // Nothing is written for one that is there already.
    alone.shard.end_replica(GROUP, over);
    ask(&mut alone, 4);
    assert!(is_answered(&mut alone, 4));
}

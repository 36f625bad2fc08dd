//! Who holds which ids for how long, and what that allows.

use polyraft_storage::EntryKind;

use super::super::super::split::tests::{Alone, CHILD};
use super::*;
use crate::event::{LifeRanges, ranges};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

fn number(number: u64) -> Ticket {
    Ticket::new(number).unwrap()
}

fn wants(creation: u64, ticket: Option<u64>) -> Hold {
    let creation = number(creation);
    let ticket = ticket.map(number);
    Hold { creation, ticket }
}

fn refused(group: u64) -> Result<Ticket, Error> {
    let group = GroupId(group);
    Err(Error::CreationUnderWay { group })
}

#[test]
fn a_group_is_held_for_one_creation_at_a_time() {
    let mut all = Reservations::default();
    let until = Tick(100);
    let hold = |all: &mut Reservations, by, hold, groups: std::ops::Range<u64>, fresh| {
        all.hold((by, hold), &ranges(groups), until, number(fresh))
    };
    assert_eq!(
        hold(&mut all, ONE, wants(7, None), 1..5, 20),
        Ok(number(20))
    );
    // Another node, or another call of the same one, with some of these groups.
    assert_eq!(hold(&mut all, TWO, wants(7, None), 4..9, 21), refused(4));
    assert_eq!(hold(&mut all, ONE, wants(8, None), 0..2, 21), refused(1));
    assert_eq!(
        hold(&mut all, TWO, wants(9, None), 5..9, 22),
        Ok(number(22))
    );
    // It is asked again, for the answer may be lost.
    assert_eq!(
        hold(&mut all, ONE, wants(7, None), 1..5, 23),
        Ok(number(20))
    );
    assert_eq!(
        hold(&mut all, ONE, wants(7, Some(20)), 1..5, 23),
        Ok(number(20))
    );
    assert!(all.is_good(ONE, Some(number(20))) && all.is_good(TWO, Some(number(22))));
    assert!(!all.is_good(TWO, Some(number(20))) && !all.is_good(ONE, None));
    // What was not held all the time does not count.
    all.release(ONE, number(7));
    assert!(!all.is_good(ONE, Some(number(20))));
    assert_eq!(
        hold(&mut all, ONE, wants(7, Some(20)), 1..5, 24),
        refused(1)
    );
    assert_eq!(
        hold(&mut all, ONE, wants(7, None), 1..5, 24),
        Ok(number(24))
    );
    assert_eq!(
        hold(&mut all, ONE, wants(7, Some(20)), 1..5, 25),
        refused(1)
    );
    all.release_all_of(ONE);
    assert_eq!(
        hold(&mut all, TWO, wants(7, None), 1..5, 26),
        Ok(number(26))
    );
    assert_eq!(all.ends_at(), Some(until));
    all.forget_old(until);
    assert!(all.ends_at().is_none() && !all.is_good(TWO, Some(number(26))));
}

#[test]
fn groups_in_both_of_two_lists_are_found() {
    let common = |one: &[u64], other: &[u64]| {
        let lists = [one, other].map(|list| ranges(list.iter().copied()));
        common(&lists[0], &lists[1]).map(|group| group.0)
    };
    assert_eq!(common(&[1, 2, 5, 9], &[3, 4, 6, 9]), Some(9));
    assert_eq!(common(&[1, 2, 3, 4], &[4, 5]), Some(4));
    assert_eq!(common(&[5], &[1, 2, 3, 4, 5, 6]), Some(5));
    assert_eq!(common(&[1, 2, 5], &[3, 4, 6]), None);
    assert_eq!(common(&[], &[1]), None);
}

#[test]
fn who_answers_for_the_first_time_is_asked_once_more() {
    let mut creation = Creation::new(number(7));
    creation.held(ONE, Some(number(20)));
    creation.held(TWO, Some(number(30)));
    assert!(!creation.is_held(), "one may have let go before the other");
    creation.held(ONE, Some(number(20)));
    let three = NodeId(3);
    creation.held(three, Some(number(40)));
    assert!(!creation.is_held(), "3 was silent before");
    creation.held(ONE, Some(number(20)));
    creation.held(three, Some(number(40)));
    assert!(creation.is_held());
    assert_eq!(creation.ticket_of(TWO), Some(number(30)));
}

/// Before, a creation began wherever it came to, whatever else had been asked for meanwhile.
#[test]
fn a_replica_begins_only_under_the_ticket_of_its_node() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    let groups = ranges([CHILD.0]);
    let mut requests = 0..;
    let mut begins = |alone: &mut Alone, by: NodeId, ticket| {
        let request = requests.next().expect("there are many");
        let origin = CreateOrigin { node: by, request };
        let lives: LifeRanges = vec![(CHILD.0..CHILD.0 + 1, polyraft_raft::Life::FIRST)];
        let members = Members::from_slice(&[ONE, TWO]);
        alone.shard.create_parts(origin, ticket, lives, members);
        alone.settle();
        alone.shard.life_of(CHILD).is_some()
    };
    let hold = |alone: &mut Alone, by: NodeId, creation| {
        alone
            .shard
            .hold_groups(by, Some(wants(creation, None)), &groups)
    };
    let three = NodeId(3);
    let first = hold(&mut alone, TWO, 7).unwrap();
    assert!(hold(&mut alone, three, 8).is_err());
    assert!(!begins(&mut alone, three, first), "it is another node's");
    assert!(!begins(&mut alone, TWO, None));
    // Its node was started again, as far as can be told.
    alone.shard.link_up(TWO, 5);
    assert!(!begins(&mut alone, TWO, first));
    let second = hold(&mut alone, three, 8).unwrap();
    assert!(hold(&mut alone, TWO, 9).is_err());
    alone.pass(HELD_FOR);
    alone.settle();
    assert!(
        alone
            .shard
            .home()
            .coordination
            .reservations
            .ends_at()
            .is_none()
    );
    assert!(!begins(&mut alone, three, second));
    let third = hold(&mut alone, TWO, 9).unwrap();
    assert!(begins(&mut alone, TWO, third));
}

#[cfg(polyraft_mutants)]
#[test]
fn every_fault_of_creations_is_noticed() {
    for (fault, _) in mutants::CREATIONS {
        mutants::set(Some(*fault));
        let noticed = [
            std::panic::catch_unwind(a_group_is_held_for_one_creation_at_a_time),
            std::panic::catch_unwind(a_replica_begins_only_under_the_ticket_of_its_node),
        ];
        mutants::set(None);
        assert!(noticed.iter().all(Result::is_err), "{fault:?}");
    }
}

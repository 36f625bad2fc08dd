//! A node alone, part by part: what becomes of proposals whose way to a leader ends.

use super::super::Deferred;
use super::super::split::tests::Alone;
use super::super::tests::GROUP;
use super::*;

/// A proposal of a caller here is on its way to node 2, which is taken for the leader's.
fn forwarded_in(alone: &mut Alone, tag: u64) -> u64 {
    let forward = Forward {
        group: GROUP,
        to: NodeId(2),
        proposal: Proposal {
            payload: Bytes::new(),
            kind: EntryKind::Normal,
            reply: alone.queue.reply_to(tag),
            deadline: alone.shard.now.after(1_000_000),
        },
    };
    alone.shard.forwards.insert(tag, forward);
    tag
}

#[test]
fn what_comes_back_to_a_replica_out_of_service_is_answered() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    let request = forwarded_in(&mut alone, 1);
    let slot = alone.shard.slot(GROUP).unwrap();
    alone.shard.quarantine(slot, "a test".to_owned());
    let refused = Err(Error::NotLeader { hint: None });
    alone
        .shard
        .forward_replied(NodeId(2), GROUP, request, refused);
    assert_eq!(alone.answers(), 1);
}

#[test]
fn a_leader_that_has_left_its_group_is_not_the_end_of_a_proposal() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    let request = forwarded_in(&mut alone, 1);
    let gone = Err(Error::NoSuchGroup { group: GROUP });
    alone.shard.forward_replied(NodeId(2), GROUP, request, gone);
    assert_eq!(alone.answers(), 0, "the group goes on with others");
    alone.elect();
    alone.settle();
    assert_eq!(alone.answers(), 1);
}

#[test]
fn a_proposal_that_is_held_waits_for_nothing_that_comes_later() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    let later = alone.shard.now.after(60_000_000);
    let campaign = Deferred::Campaign(GROUP, Life::FIRST, 1);
    alone.shard.defer(later, campaign);
    let reply = alone.queue.reply_to(1);
    alone
        .shard
        .propose(GROUP, EntryKind::Normal, Bytes::new(), reply);
    alone.turn();
    let first = alone.shard.deferred.front();
    assert!(matches!(first, Some((_, Deferred::Proposals(_)))));
}

#[test]
fn empty_proposals_that_do_not_commit_are_bounded_too() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    alone.shard.limits.group_bytes = 10 * PROPOSAL_OVERHEAD;
    for tag in 0..11 {
        let reply = alone.queue.reply_to(tag);
        alone
            .shard
            .propose(GROUP, EntryKind::Normal, Bytes::new(), reply);
    }
    assert_eq!(alone.answers(), 1, "the eleventh is refused");
    // Once they are committed there is room for as many again.
    alone.elect();
    alone.settle();
    assert_eq!(alone.answers(), 10);
    let slot = alone.shard.slot(GROUP).unwrap();
    assert_eq!(alone.shard.replicas[slot as usize].pending_bytes, 0);
}

#[test]
fn one_proposal_is_taken_however_large_it_is() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    alone.shard.limits.group_bytes = 1_000;
    for (tag, bytes) in [(1, 1_000), (2, 1)] {
        let reply = alone.queue.reply_to(tag);
        let payload = Bytes::from(vec![0; bytes]);
        alone
            .shard
            .propose(GROUP, EntryKind::Normal, payload, reply);
    }
    assert_eq!(alone.answers(), 1, "the second is refused");
}

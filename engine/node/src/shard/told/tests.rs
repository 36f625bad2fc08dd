//! A node whose peers are heard or not, and what it takes them to know of its ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;

use polyraft_storage::{EntryKind, Tombstone};

use super::super::split::tests::Alone;
use super::super::tests::{GROUP, disk_with};
use super::*;

const PATH: &str = "/n";

/// A node that hears some of its peers.
fn with_peers(peers: &[u64], heard: &[u64]) -> Alone {
    let disk = disk_with(Path::new(PATH), &[(EntryKind::Normal, b"before")]);
    let mut alone = Alone::on(&disk, Path::new(PATH));
    hear(&mut alone, peers, heard);
    alone
}

fn hear(alone: &mut Alone, peers: &[u64], heard: &[u64]) {
    for peer in peers {
        alone.shard.peer_added(NodeId(*peer));
    }
    for peer in heard {
        alone.shard.peer_changed(NodeId(*peer), true);
    }
    alone.turn();
}

fn end(alone: &mut Alone, group: GroupId) {
    let over = Tombstone::destroyed(Life::FIRST);
    alone.shard.end_replica(group, over);
}

/// What a peer was told last and has not confirmed.
fn told(alone: &Alone, peer: u64) -> Option<(u64, LifeRanges)> {
    let part = alone.shard.told.peers[&NodeId(peer)].part.as_ref()?;
    Some((part.number, part.lives.clone()))
}

/// A peer confirms whatever it is told, and is told nothing more then.
fn confirm_all(alone: &mut Alone, peer: u64) -> BTreeMap<u64, Life> {
    let mut all = BTreeMap::new();
    while let Some((number, lives)) = told(alone, peer) {
        let each = lives
            .into_iter()
            .flat_map(|(groups, life)| groups.map(move |group| (group, life)));
        all.extend(each);
        alone.shard.ends_taken(NodeId(peer), number);
        alone.turn();
    }
    all
}

/// How many frames have left that are not beats.
fn frames(alone: &Alone) -> u64 {
    alone.shard.shared.counters.sum().group_frames
}

fn deadline(alone: &Alone) -> Option<Tick> {
    alone.shard.told.deadline(&alone.shard.alive)
}

/// Before, it was told once and had to confirm nothing.
#[test]
fn a_peer_is_told_what_is_over_until_it_has_confirmed_and_never_again() {
    let mut alone = with_peers(&[2, 3], &[2]);
    assert_eq!((told(&alone, 2), deadline(&alone)), (None, None));
    end(&mut alone, GROUP);
    assert_eq!(told(&alone, 2), None, "more may end");
    alone.pass(GATHER);
    alone.turn();
    let (number, lives) = told(&alone, 2).unwrap();
    assert_eq!(lives, [(GROUP.0..GROUP.0 + 1, Life::FIRST)]);
    for _ in 0..3 {
        let (again_at, sent) = (deadline(&alone).unwrap(), frames(&alone));
        assert!(again_at > alone.shard.now, "it is not told without a pause");
        alone.shard.ends_taken(NodeId(2), number.wrapping_add(1));
        alone.shard.ends_taken(NodeId(3), number);
        alone.pass(RETRY);
        alone.turn();
        assert_eq!(told(&alone, 2), Some((number, lives.clone())));
        assert!(deadline(&alone).unwrap() > again_at);
        assert_eq!(frames(&alone), sent + 1, "it is told again");
    }
    // What was sent to one that is gone may be lost.
    alone.shard.peer_changed(NodeId(2), false);
    assert_eq!(deadline(&alone), None);
    alone.shard.peer_changed(NodeId(2), true);
    assert!(deadline(&alone).unwrap() <= alone.shard.now);
    alone.turn();
    alone.shard.ends_taken(NodeId(2), number);

    for alive in [false, true] {
        end(&mut alone, GROUP);
        alone.shard.peer_changed(NodeId(2), alive);
        alone.pass(RETRY);
        alone.turn();
        assert_eq!((told(&alone, 2), deadline(&alone)), (None, None));
    }
    // The other one has not been there yet.
    alone.shard.peer_changed(NodeId(3), true);
    alone.turn();
    assert_eq!(told(&alone, 3).unwrap().1, lives);
}

#[test]
fn after_a_restart_every_peer_is_told_again() {
    let disk = disk_with(Path::new(PATH), &[(EntryKind::Normal, b"before")]);
    let mut alone = Alone::on(&disk, Path::new(PATH));
    hear(&mut alone, &[2], &[2]);
    end(&mut alone, GROUP);
    alone.pass(GATHER);
    alone.settle();
    let (before, _) = told(&alone, 2).unwrap();
    assert_eq!(confirm_all(&mut alone, 2).len(), 1);
    drop(alone);
    let mut alone = Alone::on(&disk, Path::new(PATH));
    hear(&mut alone, &[2], &[2]);
    // An answer to what it was told before counts for nothing.
    alone.shard.ends_taken(NodeId(2), before);
    assert_ne!(told(&alone, 2).unwrap().0, before);
    assert!(confirm_all(&mut alone, 2).contains_key(&GROUP.0));
}

#[test]
fn many_ends_are_told_part_by_part_and_those_that_come_meanwhile_too() {
    let mut alone = with_peers(&[2, 3], &[]);
    let many = 3 * ENDS_AT_ONCE as u64;
    let over = |group| (group, Life::FIRST);
    let ids = |groups: std::ops::Range<u64>| groups.map(|id| 100 + 2 * id);
    ids(0..many).for_each(|group| end(&mut alone, GroupId(group)));
    alone.shard.peer_changed(NodeId(2), true);
    alone.turn();
    let (_, first) = told(&alone, 2).unwrap();
    assert_eq!(first.len(), ENDS_AT_ONCE);
    // One that was passed already, and one that comes.
    end(&mut alone, GroupId(1));
    end(&mut alone, GroupId(101 + 2 * many));
    let expected = ids(0..many).chain([1, 101 + 2 * many]);
    let expected: BTreeMap<_, _> = expected.map(over).collect();
    assert_eq!(confirm_all(&mut alone, 2), expected);
    // More than is kept for one that is not there.
    alone.shard.peer_changed(NodeId(2), false);
    let more = ids(many..many + ENDS_AT_ONCE as u64 + 1);
    more.clone()
        .for_each(|group| end(&mut alone, GroupId(group)));
    assert!(alone.shard.told.peers[&NodeId(2)].fresh.is_empty());
    alone.shard.peer_changed(NodeId(2), true);
    alone.turn();
    let told = confirm_all(&mut alone, 2);
    assert!(
        more.map(over)
            .all(|(group, life)| told.get(&group) == Some(&life))
    );
}

/// What is said against taking a node out, if it is said.
fn objections(answer: &mpsc::Receiver<Result<Objections, Error>>) -> Option<Vec<u64>> {
    let objections = answer.try_recv().ok()?.unwrap();
    assert_eq!(objections.need, None);
    Some(objections.untold.iter().map(|node| node.0).collect())
}

fn ask(alone: &mut Alone, node: u64) -> mpsc::Receiver<Result<Objections, Error>> {
    let (reply, answer) = mpsc::channel();
    alone.shard.peer_needed(NodeId(node), reply);
    // One peer is told in a turn.
    alone.turn();
    alone.turn();
    answer
}

/// Before, the cluster could shrink to nodes of which most knew nothing of an end.
#[test]
fn no_node_is_taken_out_before_enough_others_know_what_is_over() {
    let mut alone = with_peers(&[2, 3, 4, 5], &[2, 3]);
    let answer = ask(&mut alone, 2);
    assert_eq!(objections(&answer), Some(vec![]), "nothing is over");
    end(&mut alone, GROUP);
    let waits = ask(&mut alone, 2);
    assert!(told(&alone, 3).is_some(), "somebody waits for that");
    assert_eq!(objections(&waits), None);
    alone.pass(PATIENCE);
    alone.turn();
    // A majority of the four that remain meets one of two that know, but here only one does.
    assert_eq!(objections(&waits), Some(vec![3, 4, 5]));
    let waits = ask(&mut alone, 2);
    confirm_all(&mut alone, 3);
    assert_eq!(objections(&waits), Some(vec![]));
    alone.shard.peer_removed(NodeId(2));

    // Of three only this one would know.
    let waits = ask(&mut alone, 3);
    alone.pass(PATIENCE);
    alone.turn();
    assert_eq!(objections(&waits), Some(vec![4, 5]));
    // One of the dead goes, and the other one.
    for dead in [4, 5] {
        let answer = ask(&mut alone, dead);
        assert_eq!(objections(&answer), Some(vec![]));
        alone.shard.peer_removed(NodeId(dead));
    }

    // A node that stops tells so whoever waits.
    let mut alone = with_peers(&[2, 3], &[3]);
    end(&mut alone, GROUP);
    let waits = ask(&mut alone, 2);
    alone.shard.fail("the disk is gone".to_owned());
    assert!(matches!(waits.try_recv(), Ok(Err(Error::Fault { .. }))));
}

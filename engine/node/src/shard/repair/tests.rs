//! What a replica whose log is damaged believes of what others say, and what a leader needs to know before it says it.

use std::path::Path;
use std::sync::Arc;

use polyraft_raft::{Configuration, EntryRange, HardState, Life, Message};
use polyraft_storage::sim::SimDisk;
use polyraft_storage::{DataDir, Disk as _, Durable, EntryKind, ShardLog, WalOptions};

use super::*;
use crate::event::{CreateOrigin, EndGrounds, PeerNeed, Reign};
use crate::liveness::{Action, Beat};
use crate::shard::tests::parts_on;

const GROUP: GroupId = GroupId(7);
const PATH: &str = "/n";

fn voters<const N: usize>(nodes: [u64; N]) -> Configuration {
    Configuration::simple(nodes.map(NodeId))
}

fn with_log(members: &Configuration, fill: impl FnOnce(&mut ShardLog)) -> SimDisk {
    let disk = SimDisk::new(1);
    let dir = DataDir::open(Arc::new(disk.clone()), Path::new(PATH), "c", NodeId(1), 1).unwrap();
    let mut opened = polyraft_storage::open(&dir, &WalOptions::default(), 1).unwrap();
    let log = &mut opened.logs[0];
    log.create(GROUP, members).unwrap();
    fill(log);
    log.submit().unwrap();
    opened.wals[0].close().unwrap();
    disk
}

/// Flips a bit of a text, wherever it stands.
fn damage(disk: &SimDisk, text: &[u8]) {
    for path in disk.files() {
        let bytes = disk.read(&path).unwrap();
        if let Some(at) = bytes.windows(text.len()).position(|found| found == text) {
            return disk.flip_bits(&path, at as u64, 1);
        }
    }
    panic!("{text:?} is not in the log");
}

/// A removal of this node, its return, and what it acknowledged since; the newest term is written as a text.
fn removed_and_back(log: &mut ShardLog) {
    let state = |term| HardState {
        term: Term(term),
        vote: Some(NodeId(2)),
        commit: Index(4),
    };
    log.hard_state(GROUP, state(5)).unwrap();
    let range = |first| EntryRange {
        term: Term(5),
        first: Index(first),
        end: Index(first + 1),
    };
    log.append_configuration(GROUP, range(1), &voters([2, 3]))
        .unwrap();
    log.append(GROUP, range(2), EntryKind::Normal, ["between"])
        .unwrap();
    log.append_configuration(GROUP, range(3), &voters([1, 2, 3]))
        .unwrap();
    log.append(GROUP, range(4), EntryKind::Normal, ["acknowledged"])
        .unwrap();
    let voted = state(u64::from_le_bytes(*b"ITVOTED\0"));
    log.hard_state(GROUP, voted).unwrap();
}

/// Before, the leader's word that it was removed once was enough to forget what it acknowledged afterwards.
#[test]
fn a_damaged_replica_believes_in_no_removal_without_a_proof() {
    for (text, repair) in [("between", true), ("between", false), ("ITVOTED", true)] {
        let disk = with_log(&voters([1, 2, 3]), removed_and_back);
        damage(&disk, text.as_bytes());
        let (_shared, mut parts) = parts_on(&disk, Path::new(PATH));
        let (shard, _) = &mut parts.shards[0];
        shard.limits.repair = repair;
        shard.open_recovered();
        shard.opened(GROUP, Ok(Index(0)));
        let slot = shard.slot(GROUP).unwrap();
        assert!(shard.replicas[slot as usize].fault.is_some(), "{text}");
        let need = PeerNeed {
            group: GROUP,
            is_running: false,
        };
        assert_eq!(shard.need_of(NodeId(3)), Some(need), "{text}");
        let is_certain = text == "between";
        assert_eq!(shard.repairs.is_possible(slot), repair && is_certain);
        // What is left of its log says that it was removed.
        shard.tell_removed();
        shard.leave_groups();
        assert_eq!(shard.slot(GROUP), Some(slot), "{text}");
        let own = shard.replicas[slot as usize].group.term();
        let later = Term(own.0 + 1);
        let question = shard.repairs.question(slot);
        let other = Grounds::Proof(question.wrapping_add(1));
        for (term, grounds) in [
            (Term(5), Grounds::Hearsay),
            (later, Grounds::Leader),
            (later, other),
            (Term(own.0 - 1), Grounds::Proof(question)),
        ] {
            shard.removal_heard(NodeId(2), GROUP, Index(2), (term, grounds));
            assert_eq!(shard.slot(GROUP), Some(slot), "{text} {grounds:?}");
        }
        let proof = Grounds::Proof(question);
        shard.removal_heard(NodeId(2), GROUP, Index(2), (later, proof));
        assert_eq!(shard.slot(GROUP), None, "{text}");
        let tombstone = shard.log.tombstone_of(GROUP).unwrap();
        assert_eq!((tombstone.ending, tombstone.term), (Ending::Removed, later));
        // The end of the lost log may never have been committed, and nobody need ever have as long a log again.
        let vote = (!is_certain).then_some(NodeId(1));
        assert_eq!((tombstone.at, tombstone.vote), (Index(2), vote), "{text}");
    }
}

/// Which version of node 2's claims this node stands by, whose only replica was quarantined when its state machine was opened, with
/// so many entries applied: node 2 leads the group in the replica's own term.
fn taken_with(damaged: Option<&str>, machine: Index) -> u64 {
    let disk = with_log(&voters([1, 2, 3]), removed_and_back);
    if let Some(text) = damaged {
        damage(&disk, text.as_bytes());
    }
    let (shared, mut parts) = parts_on(&disk, Path::new(PATH));
    let (shard, inbox) = &mut parts.shards[0];
    let (now, leader) = (shard.now, NodeId(2));
    shard.peer_added(leader);
    shard.open_recovered();
    shard.link_up(leader, 9);
    let beat = Beat {
        incarnation: 9,
        sequence: 1,
        heard: 0,
        claims_version: 1,
        of: shared.incarnation,
        taken: 0,
        promise: 0,
        wants_answer: false,
        priority: 100,
    };
    let reign = Reign {
        life: Life::FIRST,
        term: Term(u64::from_le_bytes(*b"ITVOTED\0")),
    };
    // The claim is there before the replica is.
    shard.with_liveness(|liveness, actions| {
        liveness.beat(now, leader, beat, actions);
        liveness.delta(leader, 0, 1, vec![(GROUP, Some(reign))], actions);
    });
    shard.opened(GROUP, Ok(machine));
    let slot = shard.slot(GROUP).unwrap();
    assert!(shard.replicas[slot as usize].fault.is_some());
    while let Some(event) = inbox.try_take() {
        shard.handle(event);
    }
    let mut taken = None;
    let later = now.after(1_000_000);
    shard.with_liveness(|liveness, actions| {
        liveness.poll(later, later, false, actions);
        for action in actions {
            if let Action::Beat { beat, .. } = action {
                taken = Some(beat.taken);
            }
        }
    });
    taken.expect("a beat is due")
}

/// One such replica took the word of its node from all groups of that leader.
#[test]
fn what_is_out_of_service_stands_by_a_claim_unless_it_may_have_seen_a_later_term() {
    assert_eq!(taken_with(Some("between"), Index(0)), 1);
    assert_eq!(taken_with(Some("between"), Index(4)), 1);
    // The newest term may be another one.
    assert_eq!(taken_with(Some("ITVOTED"), Index(0)), 0);
    assert_eq!(taken_with(None, Index(99)), 0);
    assert_eq!(taken_with(Some("between"), Index(99)), 0);
}

/// From which index on a replica votes again that had four entries, and is let go by a leader who committed the entry at `proof`.
fn comes_back_as_of(proof: Index) -> Index {
    let disk = with_log(&voters([1, 2, 3]), removed_and_back);
    damage(&disk, b"between");
    let (_shared, mut parts) = parts_on(&disk, Path::new(PATH));
    let (shard, _) = &mut parts.shards[0];
    shard.open_recovered();
    shard.opened(GROUP, Ok(Index(0)));
    let slot = shard.slot(GROUP).unwrap();
    let term = shard.replicas[slot as usize].group.term();
    let question = shard.repairs.question(slot);
    let answer = |answers, proof| Welcome {
        term,
        leads: true,
        is_witness: false,
        answers,
        proof,
        has_begun: false,
    };
    for answers in [0, question.wrapping_sub(1)] {
        shard.come_back(slot, NodeId(2), answer(answers, Index(7)));
        assert_eq!(shard.slot(GROUP), Some(slot));
    }
    shard.come_back(slot, NodeId(2), answer(question, proof));
    assert_eq!(shard.slot(GROUP), None);
    shard.log.tombstone_of(GROUP).unwrap().at
}

/// A leave that was given to somebody else's question, or before the damage, drops no log. The log that comes back is whole when
/// it has what the lost one may have had; but its end may never have been committed, and what was is before the proof.
#[test]
fn a_damaged_replica_comes_back_by_an_answer_to_its_own_question() {
    assert_eq!(comes_back_as_of(Index(7)), Index(4));
    assert_eq!(comes_back_as_of(Index(3)), Index(3));
}

#[test]
fn a_leader_answers_a_question_by_what_was_committed_since_without_who_asks() {
    let (learner, stranger) = (NodeId(2), NodeId(3));
    let members = Configuration::joint([NodeId(1)], [], [learner], []);
    let disk = with_log(&members, |_| {});
    let (shared, parts) = parts_on(&disk, Path::new(PATH));
    let (wals, mut shards) = (parts.wals, parts.shards);
    let (mut shard, inbox) = shards.remove(0);
    shard.open_recovered();
    shard.opened(GROUP, Ok(Index(0)));
    let slot = shard.slot(GROUP).unwrap();
    let settle = |shard: &mut Shard| {
        for _ in 0..5 {
            // Long enough after the start: it is bound to nobody.
            shard.begin_turn(shared.clock.now().after(60_000_000));
            shard.finish_turn(&inbox, 0);
            while wals[0].pump().unwrap() {}
            let lsn = wals[0].durable();
            shard.batch_durable(&Durable { lane: 0, lsn });
        }
    };
    let waits_for = |shard: &Shard, node| {
        let asked = shard.repairs.asked.get(&(GROUP, node));
        asked.map(|asked| asked.index)
    };
    settle(&mut shard);
    shard.step(slot, Event::Campaign, Payloads::None);
    settle(&mut shard);
    assert!(leads(&shard.replicas[slot as usize]));
    // It wants to know only, and it is a member.
    shard.proof_asked(slot, learner, (Wants::Proof, 7));
    assert_eq!(waits_for(&shard, learner), None);
    for node in [learner, stranger] {
        shard.proof_asked(slot, node, (Wants::Return, 7));
        let first = waits_for(&shard, node).unwrap();
        shard.proof_asked(slot, node, (Wants::Return, 7));
        assert_eq!(waits_for(&shard, node), Some(first), "nothing is committed");
        settle(&mut shard);
        // Another question is about another loss, and what was committed before it says nothing.
        shard.proof_asked(slot, node, (Wants::Return, 8));
        let second = waits_for(&shard, node).unwrap();
        assert!(second > first, "{node}");
        settle(&mut shard);
        shard.proof_asked(slot, node, (Wants::Return, 8));
        assert_eq!(waits_for(&shard, node), None, "it is answered");
    }
    // A copy of the question comes late; the node is back, and has a part in what is committed.
    shard.proof_asked(slot, learner, (Wants::Return, 8));
    let third = waits_for(&shard, learner).unwrap();
    settle(&mut shard);
    let core = &shard.replicas[slot as usize].group;
    let (from, term) = (learner, core.term());
    let message = Message::Matched {
        term,
        matched: third,
        commit: third,
    };
    shard.step(slot, Event::Message { from, message }, Payloads::None);
    let progress = shard.replicas[slot as usize].group.progress(learner);
    assert_eq!(progress.map(|progress| progress.matched), Some(third));
    shard.proof_asked(slot, learner, (Wants::Return, 8));
    assert!(waits_for(&shard, learner) > Some(third));
    // With the replica goes what it was asked.
    shard.end_membership(slot, Index(1), term);
    assert_eq!(waits_for(&shard, learner), None);
}

/// Before, it said that a group of other members was there, and creating the group again never came to an end.
#[test]
fn a_damaged_replica_that_does_not_know_its_members_is_no_other_group() {
    let third = u64::from_le_bytes(*b"MEMBER3\0");
    let members = [1, 2, third].map(NodeId);
    let range = EntryRange {
        term: Term(1),
        first: Index(1),
        end: Index(2),
    };
    let disk = with_log(&Configuration::simple(members), |log| {
        log.append(GROUP, range, EntryKind::Normal, ["entry"])
            .unwrap();
    });
    damage(&disk, b"MEMBER3\0");
    let (_shared, mut parts) = parts_on(&disk, Path::new(PATH));
    let (shard, _) = &mut parts.shards[0];
    shard.open_recovered();
    shard.opened(GROUP, Ok(Index(0)));
    let slot = shard.slot(GROUP).unwrap();
    let replica = &shard.replicas[slot as usize];
    assert!(replica.fault.is_some() && replica.group.configuration().voters().is_empty());
    let created = shard.create_one((GROUP, Life::FIRST), &Configuration::simple(members));
    assert_eq!(created.unwrap(), Life::FIRST);
    assert_eq!(shard.slot(GROUP), Some(slot));
}

#[test]
fn a_replica_that_may_have_lost_a_later_life_ends_by_no_word_of_an_earlier_one() {
    let over = Tombstone {
        term: Term(u64::from_le_bytes(*b"ITENDED\0")),
        ..Tombstone::destroyed(Life::FIRST)
    };
    let disk = with_log(&voters([1, 2, 3]), |log| {
        log.tombstone(GROUP, over).unwrap()
    });
    damage(&disk, b"ITENDED");
    let (_shared, mut parts) = parts_on(&disk, Path::new(PATH));
    let (shard, _) = &mut parts.shards[0];
    shard.open_recovered();
    shard.opened(GROUP, Ok(Index(0)));
    assert!(shard.log.has_lost_life(GROUP));
    let (node, request) = (NodeId(2), 1);
    let origin = CreateOrigin { node, request };
    let lives = vec![(GROUP.0..GROUP.0 + 1, Life::FIRST)];
    shard.destroy(origin, &lives, EndGrounds::Word);
    assert_eq!(shard.life_of(GROUP), Some(Life::FIRST));
    let fate = shard.fate_of(GROUP);
    assert_eq!(
        fate,
        Some((Life::FIRST, crate::wire::Fate::Stays(voters([1, 2, 3]))))
    );
    // Who has asked all nodes knows that there is no later one.
    shard.destroy(origin, &lives, EndGrounds::Survey);
    assert_eq!(shard.life_of(GROUP), None);
}

//! Messages of a life that is over reach nobody, however well they would fit into the next one.

use bytes::BytesMut;
use polyraft_raft::{EntryRange, Event, LogPosition, Message, Role, Term};
use polyraft_storage::pack;

use super::super::Payloads;
use super::super::split::tests::Alone;
use super::*;
use crate::event::CreateOrigin;

/// A group of three members whose first life is over.
const AGAIN: GroupId = GroupId(12);
const OTHER: NodeId = NodeId(2);

fn second() -> Life {
    Life::FIRST.next()
}

/// A node with a replica of the second life, which knows of nothing yet.
fn with_second_life() -> Alone {
    let mut alone = Alone::with(&[]);
    let origin = CreateOrigin {
        node: NodeId(1),
        request: 0,
    };
    let lives = vec![(AGAIN.0..AGAIN.0 + 1, second())];
    alone.shard.create(origin, &lives, &[1, 2, 3].map(NodeId));
    alone.settle();
    assert_eq!(alone.shard.life_of(AGAIN), Some(second()));
    alone
}

/// A message of another member comes that speaks of a life. Returns whether it was refused.
fn refuses(alone: &mut Alone, life: Life, message: &Message, block: &[u8]) -> bool {
    let before = alone.shard.counters().rejected_messages.get();
    let mut frame = BytesMut::new();
    wire::put_message(&mut frame, (AGAIN, life), message, [block].into_iter());
    let now = alone.shard.now;
    alone.shard.frame(OTHER, frame.freeze(), now);
    alone.settle();
    alone.shard.counters().rejected_messages.get() > before
}

/// The replica of the group.
fn core(alone: &Alone) -> &polyraft_raft::Group {
    let slot = alone.shard.slot(AGAIN).expect("it is there");
    &alone.shard.replicas[slot as usize].group
}

#[test]
fn an_append_of_a_life_that_is_over_is_refused() {
    let entries = EntryRange {
        term: Term(5),
        first: Index(1),
        end: Index(2),
    };
    let append = Message::Append {
        term: entries.term,
        prev: LogPosition::ZERO,
        entries,
        commit: Index(1),
    };
    let mut block = BytesMut::new();
    pack(&mut block, AGAIN, entries, EntryKind::Normal, [b"entry"]).expect("it is small");
    let mut alone = with_second_life();
    assert!(refuses(&mut alone, Life::FIRST, &append, &block));
    assert_eq!(
        (core(&alone).term(), core(&alone).last()),
        (Term(0), LogPosition::ZERO)
    );
    // In its own life it is taken.
    assert!(!refuses(&mut alone, second(), &append, &block));
    assert_eq!(core(&alone).committed(), Index(1));
}

#[test]
fn an_acknowledgement_of_a_life_that_is_over_does_not_count() {
    let mut alone = with_second_life();
    // For so long it could be bound by what its node has forgotten.
    alone.pass(alone.shard.settings.election_timeout_max);
    alone.shard.peer_changed(OTHER, true);
    let slot = alone.shard.slot(AGAIN).expect("it is there");
    alone.shard.step(slot, Event::Campaign, Payloads::None);
    let (term, granted) = (Term(1), true);
    let steps = [
        (Message::PreVoteReply { term, granted }, Role::Candidate),
        (Message::VoteReply { term, granted }, Role::Leader),
    ];
    for (answer, role) in steps {
        assert!(refuses(&mut alone, Life::FIRST, &answer, &[]));
        assert_ne!(core(&alone).role(), role);
        assert!(!refuses(&mut alone, second(), &answer, &[]));
        assert_eq!(core(&alone).role(), role);
    }
    // Its first entry stands where the earlier life had one, of the same term.
    let matched = Message::Matched {
        term,
        matched: Index(1),
        commit: Index(0),
    };
    assert!(refuses(&mut alone, Life::FIRST, &matched, &[]));
    assert_eq!(core(&alone).committed(), Index(0));
    assert!(!refuses(&mut alone, second(), &matched, &[]));
    assert_eq!(core(&alone).committed(), Index(1));
}

#[cfg(polyraft_mutants)]
#[test]
fn every_fault_of_lives_is_noticed() {
    for (fault, _) in mutants::LIVES {
        mutants::set(Some(*fault));
        let noticed = [
            std::panic::catch_unwind(an_append_of_a_life_that_is_over_is_refused),
            std::panic::catch_unwind(an_acknowledgement_of_a_life_that_is_over_does_not_count),
        ];
        mutants::set(None);
        assert!(noticed.iter().all(Result::is_err), "{fault:?}");
    }
}

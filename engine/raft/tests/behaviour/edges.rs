//! What the paper leaves open, on a single replica: restarts, timers that ring at the wrong time, messages that make no
//! sense, and what must stop a replica because going on would lose data.

use polyraft_raft::*;

use crate::replica::*;

fn restored(commit: u64, last: u64, applied: u64) -> Restored {
    Restored {
        hard_state: HardState {
            term: Term(2),
            vote: None,
            commit: Index(commit),
        },
        runs: vec![TermRun {
            term: Term(2),
            first: Index(1),
        }],
        last: Index(last),
        applied: Index(applied),
        ..Restored::empty(Configuration::simple((1..=3).map(NodeId)))
    }
}

#[test]
fn a_restarted_replica_applies_what_it_knows_to_be_committed() {
    for (commit, last, applied, expected) in [
        (3, 5, 0, vec![(1, 4)]),
        (3, 5, 2, vec![(3, 4)]),
        // The state machine is ahead of the hint, which is only a hint.
        (3, 5, 4, vec![]),
        (0, 5, 0, vec![]),
    ] {
        let replica = Replica::restored(restored(commit, last, applied));
        assert_eq!(replica.group.committed(), Index(commit.max(applied)));
        assert_eq!(handed_out(&replica), expected);
    }
}

/// What a replica handed out for applying when it started.
fn handed_out(replica: &Replica) -> Vec<(u64, u64)> {
    applied(&replica.started)
}

#[test]
#[should_panic(expected = "applied")]
fn a_state_machine_ahead_of_the_log_stops_the_replica() {
    Replica::restored(restored(3, 5, 6));
}

#[test]
#[should_panic(expected = "later term")]
fn a_log_ahead_of_the_hard_state_stops_the_replica() {
    let hard_state = HardState {
        term: Term(1),
        ..HardState::default()
    };
    Replica::restored(Restored {
        hard_state,
        ..restored(0, 5, 0)
    });
}

#[test]
fn a_timer_that_rings_early_or_late_is_ignored() {
    let mut replica = Replica::new(3);
    replica.now = Tick(replica.group.deadline().expect("a voter has one").0 - 1);
    assert!(replica.step(Event::Timer).is_empty());
    assert_eq!(replica.group.role(), Role::Follower);
    // One of an earlier deadline, when there is none any more.
    let mut follower = Replica::follower(3, 2, &[]);
    follower.now = Tick(1 << 40);
    assert!(follower.step(Event::Timer).is_empty());
}

#[test]
#[should_panic(expected = "not applied yet")]
fn what_is_not_applied_is_never_purged() {
    let mut replica = Replica::restored(restored(5, 5, 3));
    replica.step(Event::Purged { through: Index(4) });
}

#[test]
#[should_panic(expected = "was handed out")]
fn what_was_not_handed_out_is_never_applied() {
    let mut replica = Replica::restored(restored(3, 5, 0));
    replica.step(Event::Applied { through: Index(4) });
}

#[test]
#[should_panic(expected = "never sent")]
fn an_acknowledgement_of_what_was_never_sent_stops_the_leader() {
    Replica::settled_leader(3, 1, &[]).hear(2, matched(2, 9, 0));
}

/// A follower of node 2 in term 3, with entries of terms 1, 1, 2, 2, of which three are committed.
fn with_committed() -> Replica {
    let mut follower = Replica::follower(3, 3, &[1, 1, 2, 2]);
    follower.hear(2, append(3, position(1, 2), 2, 1, 3));
    assert_eq!(follower.group.committed(), Index(3));
    follower
}

#[test]
fn a_leader_that_lacks_committed_entries_stops_the_replica() {
    for lacking in [
        append(3, position(1, 3), 1, 1, 3),
        append(3, position(1, 2), 1, 1, 3),
        append(3, position(1, 1), 1, 3, 3),
        append(3, position(2, 2), 2, 1, 3),
    ] {
        let stops = std::panic::catch_unwind(|| with_committed().hear(2, lacking)).is_err();
        assert!(stops, "{lacking:?}");
    }
}

#[test]
fn an_append_over_committed_entries_is_looked_at_only_after_them() {
    for (repeated, end) in [
        (append(3, position(1, 1), 1, 1, 0), 5),
        (append(3, position(1, 2), 2, 2, 0), 5),
        (append(3, position(2, 3), 3, 2, 0), 6),
    ] {
        let mut follower = with_committed();
        follower.hear(2, repeated);
        assert_eq!(follower.group.last().index.next(), Index(end));
        assert_eq!(follower.group.term_at(Index(3)), Some(Term(2)));
        assert_eq!(follower.group.committed(), Index(3));
    }
}

#[test]
fn an_append_that_contradicts_itself_is_dropped() {
    let after = |prev: LogPosition, of_term: u64, first: u64, end: u64| Message::Append {
        term: Term(3),
        prev,
        entries: entries(of_term, first, end),
        commit: Index(9),
    };
    for message in [
        // A hole, an overlap, an end before the beginning.
        after(position(1, 1), 3, 3, 4),
        after(position(1, 1), 3, 1, 4),
        after(position(1, 1), 3, 2, 1),
        // Terms that fall, or are later than the leader's.
        after(position(2, 1), 1, 2, 3),
        after(position(1, 1), 4, 2, 3),
        after(position(4, 1), 4, 2, 2),
    ] {
        let mut follower = Replica::follower(3, 3, &[1]);
        let before = follower.group.counters().stale;
        assert!(follower.hear(2, message).is_empty(), "{message:?}");
        assert_eq!(follower.group.counters().stale, before + 1);
    }
}

#[test]
fn who_does_not_lead_refuses_proposals_and_says_who_does() {
    for (mut replica, hint) in [
        (Replica::follower(3, 2, &[]), Some(NodeId(2))),
        (Replica::candidate(3, 2, &[]), None),
        (Replica::new(3), None),
    ] {
        let out = replica.step(Event::Propose { count: 1 });
        let refused = Proposed {
            group: GroupId(1),
            outcome: Err(NotLeader { hint }),
        };
        assert_eq!((out.proposed, out.writes), (vec![refused], vec![]));
    }
}

#[test]
fn a_leader_does_not_campaign() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    assert!(leader.step(Event::Campaign).is_empty());
    assert_eq!(leader.group.role(), Role::Leader);
}

#[test]
fn what_is_said_to_the_wrong_role_is_stale() {
    let votes = |term, granted| Message::VoteReply {
        term: Term(term),
        granted,
    };
    let pre_votes = |term, granted| Message::PreVoteReply {
        term: Term(term),
        granted,
    };
    let refusal = Message::Conflict {
        term: Term(2),
        rejected: Index(1),
        hint: LogPosition::ZERO,
    };
    for message in [
        votes(2, true),
        pre_votes(3, true),
        matched(2, 0, 0),
        refusal,
    ] {
        let mut follower = Replica::follower(3, 2, &[1]);
        let before = follower.group.counters().stale;
        assert!(follower.hear(3, message).is_empty(), "{message:?}");
        assert_eq!(follower.group.counters().stale, before + 1);
    }
}

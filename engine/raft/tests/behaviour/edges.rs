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
        Message::Stale { term: Term(2) },
    ] {
        let mut follower = Replica::follower(3, 2, &[1]);
        let before = follower.group.counters().stale;
        assert!(follower.hear(3, message).is_empty(), "{message:?}");
        assert_eq!(follower.group.counters().stale, before + 1);
    }
}

#[test]
fn a_round_that_was_asked_for_ends_without_disturbing_a_led_follower() {
    let mut follower = Replica::follower(3, 2, &[]);
    follower.step(Event::Campaign);
    assert_eq!(follower.group.role(), Role::PreCandidate);
    let out = follower.time_out();
    assert!(out.is_empty(), "{out:?}");
    let state = (follower.group.role(), follower.group.deadline());
    assert_eq!(state, (Role::Follower, None));
    assert_eq!(follower.group.leader(), Some(NodeId(2)));
}

#[test]
fn a_candidate_that_loses_sight_of_the_others_gives_its_round_up() {
    let mut replica = Replica::new(3);
    replica.step(Event::Campaign);
    replica.peer_down(2);
    replica.peer_down(3);
    let out = replica.time_out();
    assert!(out.sends.is_empty());
    assert_eq!(
        (replica.group.role(), out.timers.len()),
        (Role::Follower, 1)
    );
}

#[test]
fn a_leader_that_was_never_claimed_is_forgotten_when_it_is_silent_for_long() {
    let mut replica = Replica::new(3);
    replica.hear(2, append(1, LogPosition::ZERO, 1, 0, 0));
    assert_eq!(replica.group.leader(), Some(NodeId(2)));
    replica.time_out();
    assert_eq!(replica.group.leader(), None);
}

#[test]
fn a_claim_that_is_heard_before_its_node_counts_when_the_node_is_heard() {
    let mut replica = Replica::new(3);
    replica.peer_down(2);
    let out = replica.step(Event::Claimed {
        by: NodeId(2),
        term: Term(1),
    });
    assert_eq!(out.timers.len(), 1, "a silent node's claim is no heartbeat");
    replica.alive.insert(NodeId(2));
    replica.step(Event::PeerUp { node: NodeId(2) });
    assert_eq!(replica.group.deadline(), None);
    assert_eq!(replica.group.leader(), Some(NodeId(2)));
}

#[test]
fn a_pre_vote_for_a_term_that_is_over_is_answered_with_the_newer_one() {
    let mut follower = Replica::follower(3, 5, &[]);
    let asked = Message::PreVote {
        term: Term(4),
        last: position(9, 9),
    };
    let stale = Message::Stale { term: Term(5) };
    assert_eq!(sent(&follower.hear(3, asked)), [(3, stale)]);
}

#[test]
fn news_of_a_commit_waits_its_time_when_a_retry_rings_before() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    leader.step(Event::Propose { count: 1 });
    leader.persist();
    leader.flush();
    // Node 3 answers late, so the commit is young when node 2's silence has lasted too long.
    leader.now = leader.now.after(leader.settings.retry_interval - 1000);
    leader.hear(3, matched(2, 2, 1));
    assert_eq!(leader.group.committed(), Index(2));
    leader.flush();
    let rings = |leader: &mut Replica| -> Vec<u64> {
        let mut out = leader.time_out();
        assert!(leader.group.deadline().is_some(), "work is left");
        out.sends.extend(leader.flush().sends);
        sent(&out).into_iter().map(|s| s.0).collect()
    };
    assert_eq!(rings(&mut leader), [2], "sent again, and no news yet");
    assert_eq!(rings(&mut leader), [3], "the news, and nothing again yet");
}

#[test]
fn what_happens_is_counted() {
    let mut leader = Replica::settled_leader(3, 1, &[1]);
    let counted = leader.group.counters();
    assert_eq!((counted.campaigns, counted.terms_led), (1, 1));
    leader.step(Event::Propose { count: 1 });
    leader.flush();
    let refusal = Message::Conflict {
        term: Term(2),
        rejected: Index(2),
        hint: position(1, 1),
    };
    leader.hear(2, refusal);
    leader.flush();
    assert_eq!(
        leader.group.counters().conflicts,
        0,
        "it has acknowledged 2"
    );
    leader.step(Event::Propose { count: 1 });
    leader.flush();
    let refusal = Message::Conflict {
        term: Term(2),
        rejected: Index(3),
        hint: position(2, 2),
    };
    leader.hear(2, refusal);
    assert_eq!(leader.group.counters().conflicts, 1);
    leader.now = leader.now.after(leader.settings.retry_interval);
    leader.time_out();
    assert!(leader.group.counters().timeouts > 0);

    let mut follower = Replica::follower(3, 3, &[1]);
    let before = follower.group.counters();
    follower.hear(2, append(3, position(3, 4), 3, 1, 0));
    follower.hear(3, append(2, LogPosition::ZERO, 2, 1, 0));
    let after = follower.group.counters();
    assert_eq!(after.conflicts, before.conflicts + 1);
    assert_eq!(after.stale, before.stale + 1);
    // A completion that is heard twice.
    follower.persist();
    assert_eq!(follower.group.counters().stale, after.stale + 1);
    // News of a term is no stale message.
    follower.hear(3, Message::Stale { term: Term(9) });
    assert_eq!(follower.group.counters().stale, after.stale + 1);
}

#[test]
fn a_vote_that_was_overtaken_by_an_own_campaign_is_told_to_nobody() {
    let mut replica = Replica::new(3);
    let asked = Message::Vote {
        term: Term(2),
        last: LogPosition::ZERO,
        transfer: false,
    };
    replica.hear(2, asked);
    // Before the vote is durable the replica stands itself, and loses to the leader of its term.
    replica.step(Event::Campaign);
    let granted = Message::PreVoteReply {
        term: Term(3),
        granted: true,
    };
    replica.hear(2, granted);
    assert_eq!(replica.group.vote(), Some(NodeId(1)));
    replica.hear(3, append(3, LogPosition::ZERO, 3, 0, 0));
    assert_eq!(sent(&replica.persist()), [(3, matched(3, 0, 0))]);
}

#[test]
fn an_answer_that_is_owed_to_a_leader_is_not_given_to_the_next() {
    let mut follower = Replica::with(3, 1, &[1], 1);
    follower.hear(2, append(2, position(1, 1), 2, 0, 0));
    // The term is not durable, so the answer waits; meanwhile another leader claims the next term.
    let out = follower.step(Event::Claimed {
        by: NodeId(3),
        term: Term(3),
    });
    assert!(out.sends.is_empty());
    assert!(
        follower.persist().sends.is_empty(),
        "it compared nothing yet"
    );
}

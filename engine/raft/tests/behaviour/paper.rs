//! The behaviours that the Raft paper asks for, one test each, on a single replica: events in, outbox out.
//! Where this core departs from the paper (liveness of nodes instead of heartbeats, PreVote), the test says how.

use std::collections::BTreeSet;

use polyraft_raft::*;

use crate::replica::*;

fn vote(term: u64, last: LogPosition) -> Message {
    Message::Vote {
        term: Term(term),
        last,
        transfer: false,
    }
}

fn vote_reply(term: u64, granted: bool) -> Message {
    Message::VoteReply {
        term: Term(term),
        granted,
    }
}

fn wrote_term(out: &Outbox, term: u64, vote: Option<u64>) -> bool {
    written(out).iter().any(|w| {
        matches!(w, WriteKind::HardState(s) if s.term == Term(term) && s.vote == vote.map(NodeId))
    })
}

// ---- 5.1 terms and roles --------------------------------------------------------------------------------

fn takes_a_newer_term(mut replica: Replica) {
    let term = replica.group.term().0 + 3;
    let out = replica.hear(2, append(term, LogPosition::ZERO, term, 0, 0));
    assert!(wrote_term(&out, term, None));
    assert_eq!(
        (replica.group.term(), replica.group.role()),
        (Term(term), Role::Follower)
    );
    assert_eq!(replica.group.leader(), Some(NodeId(2)));
}

#[test]
fn a_follower_takes_a_newer_term() {
    takes_a_newer_term(Replica::follower(3, 1, &[]));
}

#[test]
fn a_candidate_takes_a_newer_term() {
    takes_a_newer_term(Replica::candidate(3, 1, &[]));
}

#[test]
fn a_leader_takes_a_newer_term_and_gives_up_its_claim() {
    takes_a_newer_term(Replica::leader(3, 1, &[]));
    let mut leader = Replica::leader(3, 1, &[]);
    let out = leader.hear(3, Message::Stale { term: Term(9) });
    assert_eq!(
        out.claims,
        [ClaimChange {
            group: GroupId(1),
            term: Term(2),
            leads: false
        }]
    );
    assert!(
        leader.group.deadline().is_some(),
        "it must campaign again if nobody does"
    );
}

#[test]
fn a_message_of_an_older_term_is_answered_with_the_newer_one_and_ignored() {
    for message in [
        append(2, LogPosition::ZERO, 2, 1, 1),
        vote(2, position(9, 9)),
    ] {
        let mut replica = Replica::follower(3, 5, &[1]);
        let out = replica.hear(3, message);
        assert_eq!(sent(&out), [(3, Message::Stale { term: Term(5) })]);
        assert!(out.writes.is_empty() && out.applies.is_empty());
        assert_eq!(replica.group.last(), position(1, 1));
    }
    let mut leader = Replica::leader(3, 5, &[1]);
    let before = leader.group.counters().stale;
    assert!(leader.hear(2, matched(4, 2, 2)).is_empty());
    assert_eq!(
        (leader.group.counters().stale, leader.group.committed()),
        (before + 1, Index(0))
    );
}

#[test]
fn a_replica_starts_as_a_follower() {
    let replica = Replica::with(3, 4, &[1, 2], 1);
    assert_eq!(
        (
            replica.group.role(),
            replica.group.term(),
            replica.group.leader()
        ),
        (Role::Follower, Term(4), None)
    );
    assert_eq!(replica.started.timers.len(), 1);
}

// ---- 5.2 elections --------------------------------------------------------------------------------------

#[test]
fn a_claim_stands_in_for_heartbeats() {
    let mut leader = Replica::candidate(3, 1, &[]);
    let out = leader.hear(2, vote_reply(2, true));
    assert_eq!(
        out.claims,
        [ClaimChange {
            group: GroupId(1),
            term: Term(2),
            leads: true
        }]
    );
    // A follower whose leader's node lives and claims the group waits for nothing.
    let follower = Replica::follower(3, 2, &[]);
    assert_eq!(follower.group.deadline(), None);
}

fn asks_the_next_term_of_everybody(mut replica: Replica) {
    let term = replica.group.term().0 + 1;
    let last = replica.group.last();
    let out = replica.time_out();
    let ask = Message::PreVote {
        term: Term(term),
        last,
    };
    assert_eq!(sent(&out), [(2, ask), (3, ask)]);
    assert!(
        out.writes.is_empty(),
        "asking for a pre-vote changes nothing"
    );
    let out = replica.hear(
        3,
        Message::PreVoteReply {
            term: Term(term),
            granted: true,
        },
    );
    assert!(wrote_term(&out, term, Some(1)));
    assert!(out.sends.is_empty(), "the own vote is not durable yet");
    let out = replica.persist();
    let ask = vote(term, last);
    assert_eq!(sent(&out), [(2, ask), (3, ask)]);
    assert_eq!(replica.group.role(), Role::Candidate);
}

#[test]
fn a_follower_starts_an_election_when_nothing_is_heard() {
    asks_the_next_term_of_everybody(Replica::with(3, 1, &[1], 1));
}

#[test]
fn a_candidate_starts_another_election_when_nothing_is_decided() {
    asks_the_next_term_of_everybody(Replica::candidate(3, 1, &[1]));
}

#[test]
fn a_majority_of_votes_makes_a_leader() {
    for (voters, granted, refused, role) in [
        (1, 0, 0, Role::Leader),
        (3, 1, 0, Role::Leader),
        (3, 1, 1, Role::Leader),
        (3, 0, 0, Role::Candidate),
        (3, 0, 1, Role::Candidate),
        (3, 0, 2, Role::Follower),
        (5, 2, 0, Role::Leader),
        (5, 2, 2, Role::Leader),
        (5, 1, 2, Role::Candidate),
        (5, 1, 3, Role::Follower),
        (5, 0, 0, Role::Candidate),
    ] {
        let mut replica = Replica::candidate(voters, 1, &[]);
        for n in 0..granted {
            replica.hear(2 + n, vote_reply(2, true));
        }
        for n in 0..refused {
            replica.hear(2 + granted + n, vote_reply(2, false));
        }
        assert_eq!(
            replica.group.role(),
            role,
            "{voters} voters, {granted} for, {refused} against"
        );
        assert_eq!(replica.group.term(), Term(2));
    }
}

#[test]
fn the_same_vote_counts_once() {
    let mut replica = Replica::candidate(5, 1, &[]);
    for _ in 0..3 {
        replica.hear(2, vote_reply(2, true));
    }
    assert_eq!(replica.group.role(), Role::Candidate);
}

#[test]
fn a_follower_votes_once_per_term_first_come_first_served() {
    for (first, second, granted) in [(2, 2, true), (2, 3, false), (3, 3, true)] {
        let mut replica = Replica::new(3);
        let out = replica.hear(first, vote(2, LogPosition::ZERO));
        assert!(
            wrote_term(&out, 2, Some(first)) && out.sends.is_empty(),
            "a vote leaves after it is durable"
        );
        assert_eq!(sent(&replica.persist()), [(first, vote_reply(2, true))]);
        let out = replica.hear(second, vote(2, LogPosition::ZERO));
        assert_eq!(sent(&out), [(second, vote_reply(2, granted))]);
        assert!(out.writes.is_empty());
    }
}

#[test]
fn a_vote_that_a_newer_term_overtakes_is_never_told() {
    let mut replica = Replica::new(3);
    replica.hear(2, vote(2, LogPosition::ZERO));
    replica.hear(3, Message::Stale { term: Term(3) });
    assert!(replica.persist().sends.is_empty());
}

#[test]
fn a_candidate_follows_the_leader_of_its_term() {
    for term in [2, 3] {
        let mut replica = Replica::candidate(3, 1, &[]);
        replica.hear(3, append(term, LogPosition::ZERO, term, 0, 0));
        assert_eq!(
            (replica.group.role(), replica.group.leader()),
            (Role::Follower, Some(NodeId(3)))
        );
    }
}

fn timeouts(make: impl Fn(u64) -> u64) -> BTreeSet<u64> {
    let drawn: BTreeSet<u64> = (0..500).map(make).collect();
    let settings = Settings::default();
    assert!(
        drawn
            .iter()
            .all(|t| (settings.election_timeout_min..=settings.election_timeout_max).contains(t))
    );
    drawn.iter().map(|t| t / 1000).collect()
}

fn candidates_timeout(seed: u64) -> u64 {
    let mut replica = Replica::with(3, 1, &[], seed);
    let out = replica.time_out();
    out.timers
        .last()
        .expect("a new round")
        .at
        .since(replica.now)
}

#[test]
fn a_followers_election_timeout_is_random() {
    let drawn = timeouts(|seed| Replica::with(3, 1, &[], seed).started.timers[0].at.0);
    assert!(
        drawn.len() > 130,
        "only {} different milliseconds of 150",
        drawn.len()
    );
}

#[test]
fn a_candidates_election_timeout_is_random() {
    let drawn = timeouts(candidates_timeout);
    assert!(
        drawn.len() > 130,
        "only {} different milliseconds of 150",
        drawn.len()
    );
}

/// Of 500 elections of five nodes, in how many the two shortest timeouts lie within three milliseconds.
fn conflicts(timeout: impl Fn(u64) -> u64) -> usize {
    let conflict = |round: u64| {
        let mut drawn: Vec<u64> = (0..5).map(|n| timeout(round * 5 + n)).collect();
        drawn.sort_unstable();
        drawn[1] - drawn[0] < 3000
    };
    (0..500).filter(|&round| conflict(round)).count()
}

#[test]
pub(crate) fn followers_rarely_time_out_together() {
    assert!(conflicts(|seed| Replica::with(3, 1, &[], seed).started.timers[0].at.0) < 100);
}

#[test]
pub(crate) fn candidates_rarely_time_out_together() {
    assert!(conflicts(candidates_timeout) < 100);
}

// ---- 5.3 replication ------------------------------------------------------------------------------------

#[test]
fn a_leader_sends_what_it_appends_in_the_same_turn() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    let out = leader.step(Event::Propose { count: 2 });
    let range = entries(2, 2, 4);
    assert_eq!(
        out.proposed,
        [Proposed {
            group: GroupId(1),
            outcome: Ok(range)
        }]
    );
    assert_eq!(
        written(&out),
        [WriteKind::Append {
            entries: range,
            origin: Origin::Proposed
        }]
    );
    let message = append(2, position(2, 1), 2, 2, 1);
    assert_eq!(sent(&leader.flush()), [(2, message), (3, message)]);
    assert!(leader.flush().sends.is_empty(), "nothing is sent twice");
}

#[test]
fn a_leader_commits_what_a_majority_holds_durably() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    leader.step(Event::Propose { count: 1 });
    assert_eq!(applied(&leader.persist()), []);
    let out = leader.hear(3, matched(2, 2, 1));
    assert_eq!(
        (applied(&out), leader.group.committed()),
        (vec![(2, 3)], Index(2))
    );
}

#[test]
fn a_leader_may_commit_before_its_own_disk_but_not_apply() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    leader.step(Event::Propose { count: 1 });
    leader.hear(2, matched(2, 2, 1));
    let out = leader.hear(3, matched(2, 2, 1));
    assert_eq!(
        (leader.group.committed(), applied(&out)),
        (Index(2), vec![])
    );
    assert_eq!(applied(&leader.persist()), [(2, 3)]);
}

#[test]
fn an_entry_commits_with_a_majority_of_any_size() {
    for (voters, acks, commits) in [
        (1, 0, true),
        (3, 0, false),
        (3, 1, true),
        (3, 2, true),
        (5, 1, false),
        (5, 2, true),
        (5, 4, true),
    ] {
        let mut leader = Replica::settled_leader(voters, 1, &[]);
        leader.step(Event::Propose { count: 1 });
        leader.persist();
        (0..acks).for_each(|n| drop(leader.hear(2 + n, matched(2, 2, 1))));
        assert_eq!(
            leader.group.committed() == Index(2),
            commits,
            "{acks} acknowledgements of {voters}"
        );
    }
}

#[test]
fn a_commit_takes_everything_before_it_along() {
    for log in [&[][..], &[2], &[1, 2], &[1]] {
        let mut leader = Replica::leader(3, 2, log);
        leader.step(Event::Propose { count: 1 });
        leader.persist();
        let last = log.len() as u64 + 2;
        let out = leader.hear(2, matched(3, last, 0));
        assert_eq!(applied(&out), [(1, last + 1)]);
    }
}

#[test]
fn a_follower_commits_as_far_as_its_log_is_compared() {
    for (commit, expected) in [
        (0, vec![]),
        (1, vec![(1, 2)]),
        (2, vec![(1, 3)]),
        (3, vec![(1, 4)]),
        (9, vec![(1, 4)]),
    ] {
        let mut follower = Replica::follower(3, 1, &[1, 1, 1, 1]);
        // Index 4 is not named by this append: it may still differ, whatever the leader's commit is.
        let out = follower.hear(2, append(1, position(1, 2), 1, 1, commit));
        assert_eq!(applied(&out), expected, "commit {commit}");
    }
}

#[test]
fn a_follower_refuses_what_does_not_continue_its_log() {
    for (prev, hint) in [
        (position(1, 3), position(1, 1)),
        (position(2, 3), position(2, 2)),
        (position(3, 2), position(2, 2)),
        (position(1, 2), position(1, 1)),
    ] {
        let mut follower = Replica::follower(3, 3, &[1, 2]);
        let out = follower.hear(2, append(3, prev, 3, 1, 0));
        let refused = Message::Conflict {
            term: Term(3),
            rejected: prev.index,
            hint,
        };
        assert_eq!(sent(&out), [(2, refused)]);
        assert!(out.writes.is_empty());
    }
    for prev in [LogPosition::ZERO, position(1, 1), position(2, 2)] {
        let mut follower = Replica::follower(3, 3, &[1, 2]);
        let out = follower.hear(2, append(3, prev, 3, 0, 0));
        assert_eq!(sent(&out), [(2, matched(3, prev.index.0, 0))]);
    }
}

#[test]
fn a_follower_takes_a_leaders_entries_and_drops_its_own() {
    let received = |entries| WriteKind::Append {
        entries,
        origin: Origin::Received,
    };
    for (prev, of_term, count, expected) in [
        (position(2, 2), 3, 1, vec![received(entries(3, 3, 4))]),
        (
            position(1, 1),
            3,
            2,
            vec![
                WriteKind::Truncate { from: Index(2) },
                received(entries(3, 2, 4)),
            ],
        ),
        (LogPosition::ZERO, 1, 1, vec![]),
        (
            LogPosition::ZERO,
            3,
            1,
            vec![
                WriteKind::Truncate { from: Index(1) },
                received(entries(3, 1, 2)),
            ],
        ),
        (position(1, 1), 2, 3, vec![received(entries(2, 3, 5))]),
    ] {
        let mut follower = Replica::follower(3, 3, &[1, 2]);
        let out = follower.hear(2, append(3, prev, of_term, count, 0));
        assert_eq!(written(&out), expected);
        let answers = sent(&out).len() + sent(&follower.persist()).len();
        assert_eq!(answers, 1, "one answer, after what it promises is durable");
    }
}

#[test]
fn a_leader_finds_where_logs_part_and_brings_the_follower_to_its_own() {
    // Figure 7 of the paper: the leader's log, and the logs of six followers.
    let leaders = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [&[u64]; 6] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    for log in followers {
        let mut leader = Replica::with(3, 8, &leaders, 1);
        let mut follower = Replica::with(3, 8, log, 2);
        // Both fixtures are node 1: the follower is node 2 for the leader, which is node 2 for the follower.
        leader.step(Event::Campaign);
        leader.hear(
            3,
            Message::PreVoteReply {
                term: Term(9),
                granted: true,
            },
        );
        leader.persist();
        leader.hear(3, vote_reply(9, true));
        leader.persist();
        let mut rounds = 0;
        loop {
            let appends: Vec<Message> = sent(&leader.flush())
                .into_iter()
                .filter(|s| s.0 == 2)
                .map(|s| s.1)
                .collect();
            if appends.is_empty() {
                break;
            }
            rounds += 1;
            let mut answers = Vec::new();
            for message in appends {
                answers.extend(sent(&follower.hear(2, message)));
            }
            answers.extend(sent(&follower.persist()));
            answers
                .into_iter()
                .for_each(|(_, answer)| drop(leader.hear(2, answer)));
        }
        assert!(rounds <= 7, "{rounds} rounds for {log:?}");
        assert_eq!(follower.group.last(), position(9, 11));
        for index in 1..=11 {
            assert_eq!(
                follower.group.term_at(Index(index)),
                leader.group.term_at(Index(index))
            );
        }
    }
}

// ---- 5.4 safety -----------------------------------------------------------------------------------------

#[test]
fn a_vote_request_names_the_end_of_the_log() {
    for log in [&[1][..], &[1, 2]] {
        let mut replica = Replica::with(3, 3, log, 1);
        replica.time_out();
        replica.hear(
            2,
            Message::PreVoteReply {
                term: Term(4),
                granted: true,
            },
        );
        let last = position(log[log.len() - 1], log.len() as u64);
        assert_eq!(sent(&replica.persist())[0], (2, vote(4, last)));
    }
}

#[test]
fn a_voter_refuses_a_log_that_is_behind_its_own() {
    for (log, last, granted) in [
        (&[1][..], position(1, 1), true),
        (&[1], position(1, 2), true),
        (&[1, 1], position(1, 1), false),
        (&[1], position(2, 1), true),
        (&[1, 1], position(2, 1), true),
        (&[2], position(1, 1), false),
        (&[2], position(1, 2), false),
        (&[1, 2], position(1, 1), false),
    ] {
        let mut replica = Replica::with(3, 3, log, 1);
        let mut answers = sent(&replica.hear(2, vote(4, last)));
        answers.extend(sent(&replica.persist()));
        assert_eq!(answers, [(2, vote_reply(4, granted))]);
        let asked = Message::PreVote {
            term: Term(5),
            last,
        };
        let term = Term(if granted { 5 } else { 4 });
        assert_eq!(
            sent(&replica.hear(2, asked)),
            [(2, Message::PreVoteReply { term, granted })]
        );
    }
}

#[test]
fn a_leader_commits_only_entries_of_its_own_term_by_counting() {
    for (acknowledged, committed) in [(1, 0), (2, 0), (3, 3)] {
        let mut leader = Replica::leader(3, 2, &[1, 2]);
        leader.hear(2, matched(3, acknowledged, 0));
        assert_eq!(
            leader.group.committed(),
            Index(committed),
            "acknowledged {acknowledged}"
        );
    }
}

// ---- beyond the paper's text: PreVote, CheckQuorum, node liveness -------------------------------------------

#[test]
fn a_leader_without_a_live_quorum_steps_down() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    assert!(leader.peer_down(2).claims.is_empty());
    let out = leader.peer_down(3);
    assert_eq!(
        out.claims,
        [ClaimChange {
            group: GroupId(1),
            term: Term(2),
            leads: false
        }]
    );
    assert_eq!((leader.group.role(), out.timers.len()), (Role::Follower, 1));
}

#[test]
fn a_live_leader_is_defended_by_its_followers_and_by_itself() {
    for mut replica in [Replica::follower(3, 2, &[]), Replica::leader(3, 1, &[])] {
        let last = replica.group.last();
        let out = replica.hear(
            3,
            Message::PreVote {
                term: Term(3),
                last,
            },
        );
        assert_eq!(
            sent(&out),
            [(
                3,
                Message::PreVoteReply {
                    term: Term(2),
                    granted: false
                }
            )]
        );
        assert_eq!(
            sent(&replica.hear(3, vote(3, last))),
            [(3, vote_reply(2, false))]
        );
        // A handover is no attack.
        replica.hear(
            3,
            Message::Vote {
                term: Term(3),
                last,
                transfer: true,
            },
        );
        assert_eq!(
            (replica.group.term(), replica.group.vote()),
            (Term(3), Some(NodeId(3)))
        );
    }
}

#[test]
fn who_asks_for_the_next_term_is_no_leader_any_more() {
    let mut follower = Replica::follower(3, 2, &[]);
    let out = follower.hear(
        2,
        Message::PreVote {
            term: Term(3),
            last: LogPosition::ZERO,
        },
    );
    assert_eq!(
        sent(&out),
        [(
            2,
            Message::PreVoteReply {
                term: Term(3),
                granted: true
            }
        )]
    );
    assert_eq!(follower.group.leader(), None);
    assert!(follower.group.deadline().is_some());
}

#[test]
fn a_refusal_that_shows_an_older_term_is_answered_with_the_newer_one() {
    let mut candidate = Replica::candidate(3, 4, &[]);
    candidate.time_out();
    let out = candidate.hear(
        2,
        Message::PreVoteReply {
            term: Term(3),
            granted: false,
        },
    );
    assert_eq!(sent(&out), [(2, Message::Stale { term: Term(5) })]);
}

#[test]
fn a_claim_of_an_older_term_is_answered_and_of_a_newer_one_followed() {
    let mut replica = Replica::with(3, 5, &[], 1);
    assert_eq!(
        sent(&replica.step(Event::Claimed {
            by: NodeId(2),
            term: Term(4)
        })),
        [(2, Message::Stale { term: Term(5) })]
    );
    let out = replica.step(Event::Claimed {
        by: NodeId(3),
        term: Term(7),
    });
    assert!(wrote_term(&out, 7, None) && out.sends.is_empty());
    assert_eq!(
        (replica.group.leader(), replica.group.deadline()),
        (Some(NodeId(3)), None)
    );
}

#[test]
fn a_follower_acknowledges_nothing_before_its_term_is_durable() {
    let mut replica = Replica::with(3, 1, &[1], 1);
    let out = replica.hear(2, append(4, position(1, 1), 4, 0, 1));
    assert!(wrote_term(&out, 4, None) && out.sends.is_empty());
    assert_eq!(sent(&replica.persist()), [(2, matched(4, 1, 1))]);
}

#[test]
fn a_follower_whose_leader_falls_silent_arms_only_the_random_part() {
    let spread =
        Settings::default().election_timeout_max - Settings::default().election_timeout_min;
    let mut by_node = Replica::follower(3, 2, &[]);
    let mut by_claim = Replica::follower(3, 2, &[]);
    for out in [
        by_node.peer_down(2),
        by_claim.step(Event::Unclaimed { by: NodeId(2) }),
    ] {
        assert!(
            out.timers.len() == 1 && out.timers[0].at.0 <= spread,
            "{:?}",
            out.timers
        );
    }
    assert_eq!(
        (by_node.group.leader(), by_claim.group.leader()),
        (None, None)
    );
}

#[test]
fn a_follower_without_a_claim_keeps_a_timer() {
    let mut replica = Replica::new(3);
    let out = replica.hear(2, append(1, LogPosition::ZERO, 1, 0, 0));
    assert_eq!(out.timers.len(), 1);
    replica.time_out();
    assert_eq!(replica.group.role(), Role::PreCandidate);
}

#[test]
fn a_replica_without_a_live_quorum_stays_silent_and_keeps_its_timer() {
    let mut replica = Replica::new(3);
    replica.peer_down(2);
    replica.peer_down(3);
    let out = replica.time_out();
    assert!(out.sends.is_empty() && out.writes.is_empty());
    assert_eq!(out.timers.len(), 1);
}

#[test]
fn a_late_acknowledgement_of_an_older_term_counts_for_nothing() {
    // Fault 15: what was acknowledged before a log reversal must not form a quorum after it.
    let mut leader = Replica::settled_leader(3, 1, &[]);
    leader.step(Event::Propose { count: 1 });
    leader.persist();
    leader.hear(3, Message::Stale { term: Term(5) });
    leader.persist();
    leader.hear(2, matched(2, 2, 1));
    assert_eq!(leader.group.committed(), Index(1));
}

#[test]
fn a_write_that_was_overwritten_acknowledges_nothing() {
    let mut follower = Replica::follower(3, 1, &[]);
    let first = follower
        .hear(2, append(1, LogPosition::ZERO, 1, 4, 0))
        .writes[0]
        .id;
    // The next leader replaces entries 2..5 while the first write is still on its way.
    follower.hear(3, append(2, position(1, 1), 2, 3, 0));
    let out = follower.step(Event::Durable { through: first });
    assert!(out.sends.is_empty(), "the new term is not durable");
    assert_eq!(follower.group.durable(), Index(1));
    assert_eq!(sent(&follower.persist()), [(3, matched(2, 4, 0))]);
}

#[test]
#[should_panic(expected = "lead")]
fn two_leaders_in_one_term_stop_the_replica() {
    let mut follower = Replica::follower(3, 2, &[]);
    follower.hear(3, append(2, LogPosition::ZERO, 2, 0, 0));
}

#[test]
fn a_late_append_does_not_cut_what_is_committed() {
    // Fault 14.
    let mut follower = Replica::follower(3, 2, &[]);
    follower.hear(2, append(2, LogPosition::ZERO, 2, 5, 5));
    follower.persist();
    let out = follower.hear(2, append(2, LogPosition::ZERO, 2, 2, 1));
    assert!(out.writes.is_empty());
    assert_eq!(
        (follower.group.last().index, follower.group.committed()),
        (Index(5), Index(5))
    );
}

//! Handing leadership over, on a single replica: when the target is told, what is refused, and how it ends.

use polyraft_raft::*;

use crate::replica::*;

/// The order to campaign, of a leader of term 2 whose log ends at `last`.
fn timeout_now(last: u64) -> Message {
    Message::TimeoutNow {
        term: Term(2),
        last: Index(last),
    }
}

fn ended(out: &Outbox) -> Vec<(u64, TransferOutcome)> {
    out.transfers.iter().map(|t| (t.to.0, t.outcome)).collect()
}

fn transfer(replica: &mut Replica, to: u64) -> Outbox {
    replica.step(Event::Transfer { to: NodeId(to) })
}

fn is_refused(replica: &mut Replica) -> bool {
    let out = replica.step(Event::Propose { count: 1 });
    out.proposed[0].outcome.is_err()
}

#[test]
fn a_target_that_holds_everything_is_told_at_once() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    let out = transfer(&mut leader, 2);
    assert_eq!(sent(&out), [(2, timeout_now(1))]);
    assert!(ended(&out).is_empty() && is_refused(&mut leader));
    // Told once, whatever it answers until it campaigns.
    assert!(leader.hear(2, matched(2, 1, 1)).is_empty());
}

#[test]
fn a_target_that_is_behind_is_told_when_it_holds_everything() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    leader.step(Event::Propose { count: 2 });
    leader.flush();
    leader.persist();
    assert!(sent(&transfer(&mut leader, 2)).is_empty());
    for (from, last, told) in [
        (3, 3, vec![]),
        (2, 2, vec![]),
        (2, 3, vec![(2, timeout_now(3))]),
    ] {
        assert_eq!(sent(&leader.hear(from, matched(2, last, 1))), told);
    }
}

#[test]
fn what_cannot_succeed_is_refused_and_changes_nothing() {
    let of = |members: Configuration| {
        let mut replica = Replica::restored(Restored::empty(members));
        replica.step(Event::Campaign);
        for (n, message) in [
            (
                2,
                Message::PreVoteReply {
                    term: Term(1),
                    granted: true,
                },
            ),
            (
                2,
                Message::VoteReply {
                    term: Term(1),
                    granted: true,
                },
            ),
        ] {
            replica.hear(n, message);
            replica.persist();
        }
        assert_eq!(replica.group.role(), Role::Leader);
        replica
    };
    let ids = |ids: &[u64]| ids.iter().map(|&n| NodeId(n)).collect::<Vec<_>>();
    let with_learner = Configuration::joint(ids(&[1, 2]), [], ids(&[3]), []);
    let with_leaving = Configuration::joint(ids(&[1, 2]), ids(&[1, 2, 3]), [], []);
    for (members, to, outcome) in [
        (with_learner.clone(), 3, TransferOutcome::NotVoter),
        (with_learner.clone(), 9, TransferOutcome::NotVoter),
        (with_leaving, 3, TransferOutcome::NotVoter),
        (with_learner, 1, TransferOutcome::Done),
    ] {
        let mut leader = of(members);
        let out = transfer(&mut leader, to);
        assert_eq!((ended(&out), sent(&out)), (vec![(to, outcome)], vec![]));
        assert!(!is_refused(&mut leader));
    }
    let mut leader = Replica::settled_leader(5, 1, &[]);
    leader.peer_down(4);
    let silent = vec![(4, TransferOutcome::Silent)];
    assert_eq!(ended(&transfer(&mut leader, 4)), silent);
    transfer(&mut leader, 2);
    let busy = vec![(3, TransferOutcome::Busy)];
    assert_eq!(ended(&transfer(&mut leader, 3)), busy);
    let mut follower = Replica::follower(3, 2, &[]);
    let hint = Some(NodeId(2));
    let no_leader = vec![(3, TransferOutcome::NotLeader { hint })];
    assert_eq!(ended(&transfer(&mut follower, 3)), no_leader);
}

#[test]
fn a_handover_that_takes_too_long_ends_and_leaves_nothing_behind() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    let begun = leader.now;
    transfer(&mut leader, 2);
    assert!(!leader.group.is_quiet());
    let mut out = Outbox::default();
    while leader.group.deadline().is_some() && ended(&out).is_empty() {
        out = leader.time_out();
    }
    assert_eq!(ended(&out), [(2, TransferOutcome::TimedOut)]);
    let limit = leader.settings.election_timeout_max;
    assert_eq!(leader.now.since(begun), limit);
    assert!(!is_refused(&mut leader));
    leader.persist();
    leader.hear(3, matched(2, 2, 2));
    // Nothing is left that would tell the target later, or refuse the next attempt.
    assert!(sent(&leader.hear(2, matched(2, 2, 2))).is_empty());
    assert_eq!(sent(&transfer(&mut leader, 3)), [(3, timeout_now(2))]);
}

#[test]
fn voters_that_hold_what_came_after_a_handover_count_for_reads_again() {
    let mut leader = Replica::settled_leader(5, 1, &[]);
    let read = |leader: &Replica, standing: &[u64]| {
        leader.group.read_index(|node| standing.contains(&node.0))
    };
    assert_eq!(read(&leader, &[2, 3]), Ok(Index(1)));
    transfer(&mut leader, 2);
    assert_eq!(read(&leader, &[2, 3, 4, 5]), Err(Unreadable::GivenAway));
    while !leader.group.is_quiet() {
        leader.time_out();
    }
    assert_eq!(read(&leader, &[2, 3, 4, 5]), Err(Unreadable::GivenAway));
    leader.step(Event::Barrier);
    leader.flush();
    leader.persist();
    leader.hear(3, matched(2, 2, 1));
    assert_eq!(read(&leader, &[2, 3, 4, 5]), Err(Unreadable::GivenAway));
    leader.hear(4, matched(2, 2, 2));
    // Who may still obey the order, or vote for who does, counts for nothing.
    assert_eq!(read(&leader, &[2, 3, 5]), Err(Unreadable::Unconfirmed));
    assert_eq!(read(&leader, &[3, 4]), Ok(Index(2)));
    leader.hear(2, matched(2, 2, 2));
    assert_eq!(read(&leader, &[2, 3]), Ok(Index(2)));
    // The next handover takes all of that away again.
    transfer(&mut leader, 3);
    assert_eq!(read(&leader, &[2, 3, 4, 5]), Err(Unreadable::GivenAway));
}

#[test]
fn a_leader_that_went_on_is_defended_against_whom_it_told_to_campaign_before() {
    let ask = |last| Message::Vote {
        term: Term(3),
        last,
        transfer: true,
    };
    let refused = Message::VoteReply {
        term: Term(2),
        granted: false,
    };
    let mut voter = Replica::follower(3, 2, &[2, 2]);
    assert_eq!(sent(&voter.hear(3, ask(position(2, 1)))), [(3, refused)]);
    assert!(voter.group.is_claimed_by(NodeId(2), Term(2)));
    let mut leader = Replica::settled_leader(3, 1, &[]);
    leader.step(Event::Propose { count: 1 });
    assert_eq!(sent(&leader.hear(2, ask(position(2, 1)))), [(2, refused)]);
    assert_eq!(leader.group.role(), Role::Leader);
    // With all that the voter has it is a handover.
    voter.hear(3, ask(position(2, 2)));
    assert_eq!(voter.group.term(), Term(3));
}

#[test]
fn a_quiet_leader_that_hands_over_has_a_deadline_at_once() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    while leader.group.deadline().is_some() {
        leader.time_out();
        leader.flush();
        (2..=3).for_each(|n| drop(leader.hear(n, matched(2, 1, 1))));
    }
    leader.now = leader.now.after(5_000_000);
    let out = transfer(&mut leader, 2);
    let until = leader.now.after(leader.settings.election_timeout_max);
    assert_eq!(leader.group.deadline(), Some(until));
    assert_eq!(out.timers.len(), 1);
    // An earlier deadline stands: it costs one look.
    let mut busy = Replica::settled_leader(3, 1, &[]);
    busy.step(Event::Propose { count: 1 });
    busy.flush();
    let before = busy.group.deadline();
    assert!(transfer(&mut busy, 2).timers.is_empty());
    assert_eq!(busy.group.deadline(), before);
}

#[test]
fn a_target_that_falls_silent_ends_the_handover() {
    let mut leader = Replica::settled_leader(5, 1, &[]);
    transfer(&mut leader, 2);
    assert!(ended(&leader.peer_down(3)).is_empty());
    let silent = [(2, TransferOutcome::Silent)];
    assert_eq!(ended(&leader.peer_down(2)), silent);
    assert!(!is_refused(&mut leader));
}

#[test]
fn a_leader_that_is_replaced_has_handed_over() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    transfer(&mut leader, 2);
    let last = leader.group.last();
    let out = leader.hear(
        2,
        Message::Vote {
            term: Term(3),
            last,
            transfer: true,
        },
    );
    assert_eq!(ended(&out), [(2, TransferOutcome::Done)]);
    assert_eq!(leader.group.role(), Role::Follower);
    let granted = Message::VoteReply {
        term: Term(3),
        granted: true,
    };
    assert_eq!(sent(&leader.persist()), [(2, granted)]);
}

#[test]
fn a_target_campaigns_without_asking_and_says_why() {
    let mut target = Replica::follower(3, 2, &[1, 2]);
    let last = target.group.last();
    let out = target.hear(2, timeout_now(2));
    assert!(out.sends.is_empty(), "its own vote is not durable yet");
    assert_eq!(
        (target.group.role(), target.group.term()),
        (Role::Candidate, Term(3))
    );
    let ask = Message::Vote {
        term: Term(3),
        last,
        transfer: true,
    };
    assert_eq!(sent(&target.persist()), [(2, ask), (3, ask)]);
    // If it loses, its next campaign is one like any other.
    let out = target.time_out();
    let ask = Message::PreVote {
        term: Term(4),
        last,
    };
    assert_eq!(sent(&out), [(2, ask), (3, ask)]);
}

#[test]
fn only_the_leader_of_the_term_can_hand_over() {
    for (mut replica, from, answer) in [
        // Of an older term; from a node that does not lead; to a leader; to one that sees no quorum; to one that has been sent
        // more since.
        (
            Replica::follower(3, 4, &[]),
            2,
            Some(Message::Stale { term: Term(4) }),
        ),
        (Replica::follower(3, 2, &[]), 3, None),
        (Replica::leader(3, 1, &[]), 2, None),
        (
            {
                let mut alone = Replica::follower(5, 2, &[]);
                (3..=5).for_each(|n| drop(alone.peer_down(n)));
                alone
            },
            2,
            None,
        ),
        (Replica::follower(3, 2, &[2]), 2, None),
    ] {
        let before = (replica.group.role(), replica.group.term());
        let stale = replica.group.counters().stale;
        let out = replica.hear(from, timeout_now(0));
        assert_eq!(replica.group.counters().stale, stale + 1);
        let answers: Vec<Message> = sent(&out).into_iter().map(|s| s.1).collect();
        assert_eq!(answers, Vec::from_iter(answer));
        assert_eq!((replica.group.role(), replica.group.term()), before);
        assert!(out.writes.is_empty());
    }
}

#[test]
fn a_target_that_was_behind_in_terms_campaigns_above_the_leaders() {
    let mut target = Replica::follower(3, 2, &[]);
    let order = Message::TimeoutNow {
        term: Term(6),
        last: Index(1),
    };
    target.hear(3, order);
    assert_eq!(
        (target.group.role(), target.group.term()),
        (Role::Candidate, Term(7))
    );
}

#[test]
fn a_leader_that_steps_down_before_it_has_told_the_target_has_handed_nothing_over() {
    let mut leader = Replica::settled_leader(3, 1, &[]);
    leader.step(Event::Propose { count: 1 });
    leader.flush();
    // The target lacks an entry, so it is not told yet.
    assert!(sent(&transfer(&mut leader, 2)).is_empty());
    let out = leader.hear(3, Message::Stale { term: Term(9) });
    assert_eq!(ended(&out), [(2, TransferOutcome::SteppedDown)]);
    assert_eq!(leader.group.role(), Role::Follower);
}

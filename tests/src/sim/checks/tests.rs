//! Each rule notices what it is there for: replicas that contradict each other, made by hand.

use polyraft::SurvivingReplica;
use polyraft_raft::{
    EntryRange, Env, Event, HardState, Message, NodeSet, Outbox, Restored as Begun, Settings, Tick,
};

use super::*;

const GROUP: GroupId = GroupId(1);

/// What a replica is to be like: a follower with a log from index 1 on.
#[derive(Clone, Copy)]
struct Like<'a> {
    term: u64,
    vote: Option<u64>,
    /// Terms, and where each of them begins.
    runs: &'a [(u64, u64)],
    last: u64,
    committed: u64,
    applied: u64,
}

impl Default for Like<'_> {
    fn default() -> Self {
        Like {
            term: 2,
            vote: None,
            runs: &[(1, 1), (2, 3)],
            last: 4,
            committed: 0,
            applied: 0,
        }
    }
}

/// Does something with a replica of a node, whatever replicas of other nodes are like.
fn with<T>(
    voters: &[u64],
    node: u64,
    like: Like<'_>,
    act: impl FnOnce(&mut Group, &mut dyn FnMut(&mut Group, Event<'_>) -> Outbox) -> T,
) -> T {
    let members = Configuration::simple(nodes(voters));
    with_members(members, node, like, act)
}

fn nodes(ids: &[u64]) -> impl Iterator<Item = NodeId> {
    ids.iter().copied().map(NodeId)
}

/// The same in a group with members of all kinds.
fn with_members<T>(
    members: Configuration,
    node: u64,
    like: Like<'_>,
    act: impl FnOnce(&mut Group, &mut dyn FnMut(&mut Group, Event<'_>) -> Outbox) -> T,
) -> T {
    let settings = Settings::default();
    let mut alive = NodeSet::new(NodeId(node));
    for member in members.nodes() {
        alive.insert(member);
    }
    let env = Env {
        now: Tick(0),
        settings: &settings,
        alive: &alive,
    };
    let runs = like.runs.iter().map(|(term, first)| TermRun {
        term: Term(*term),
        first: Index(*first),
    });
    let restored = Begun {
        hard_state: HardState {
            term: Term(like.term),
            vote: like.vote.map(NodeId),
            commit: Index(like.committed),
        },
        runs: runs.collect(),
        last: Index(like.last),
        applied: Index(like.applied),
        ..Begun::empty(members)
    };
    let mut out = Outbox::default();
    let mut core = Group::new(GROUP, NodeId(node), 1, &env, restored, &mut out);
    let mut step = |core: &mut Group, event: Event<'_>| {
        let mut out = Outbox::default();
        core.step(&env, event, &mut out);
        out
    };
    act(&mut core, &mut step)
}

/// What the rules say of replicas of three nodes, one after the other. Everybody holds everything durably, or nobody does.
fn observed(replicas: &[(u64, Like<'_>)], are_durable: bool) -> Result<(), &'static str> {
    let mut checks = GroupChecks::new(3);
    for (node, like) in replicas {
        let holds = |_: u64, _: LogPosition| Some(are_durable);
        let seen = with(&[1, 2, 3], *node, *like, |core, _| {
            checks.observe(core, &holds)
        });
        seen.map_err(|failure| failure.checker)?;
    }
    Ok(())
}

/// Has a node lead a group in which it alone votes, and looks at it.
fn leads(checks: &mut GroupChecks, node: u64, like: Like<'_>) -> Verdict {
    with(&[node], node, like, |core, step| {
        let out = step(core, Event::Campaign);
        let vote = out.writes.last().expect("its vote").id;
        step(core, Event::Durable { through: vote });
        assert_eq!(core.role(), Role::Leader);
        checks.observe(core, &|_, _| Some(true))
    })
}

fn checker(verdict: Verdict) -> &'static str {
    verdict.expect_err("a rule is broken").checker
}

#[test]
fn replicas_that_agree_break_nothing() {
    let like = Like::default();
    let later = Like {
        committed: 3,
        applied: 2,
        last: 5,
        ..like
    };
    let shorter = Like {
        runs: &[(1, 1)],
        last: 2,
        ..like
    };
    assert_eq!(
        observed(&[(1, like), (2, shorter), (1, later), (3, later)], true),
        Ok(())
    );
}

#[test]
fn two_leaders_of_a_term_are_noticed() {
    let mut checks = GroupChecks::new(2);
    let like = Like::default();
    leads(&mut checks, 1, like).expect("nobody else led");
    assert_eq!(checker(leads(&mut checks, 2, like)), "election safety");
}

#[test]
fn a_leader_without_what_was_committed_is_noticed() {
    let mut checks = GroupChecks::new(2);
    let committed = Like {
        committed: 4,
        ..Like::default()
    };
    let holds = |_: u64, _: LogPosition| Some(true);
    with(&[1], 1, committed, |core, _| checks.observe(core, &holds)).expect("nothing is wrong");
    let short = Like {
        term: 5,
        runs: &[(1, 1)],
        last: 2,
        ..Like::default()
    };
    assert_eq!(checker(leads(&mut checks, 2, short)), "leader completeness");
}

#[test]
fn logs_that_part_before_a_common_entry_are_noticed() {
    let like = Like::default();
    let other = Like {
        runs: &[(1, 1), (2, 4)],
        ..like
    };
    assert_eq!(
        observed(&[(1, like), (2, other)], true),
        Err("log matching")
    );
}

#[test]
fn cursors_that_fall_are_noticed() {
    let before = Like {
        term: 3,
        vote: Some(2),
        committed: 3,
        applied: 2,
        ..Like::default()
    };
    let falls = [
        Like { term: 2, ..before },
        Like {
            vote: Some(3),
            ..before
        },
        Like {
            vote: None,
            ..before
        },
        Like {
            committed: 2,
            ..before
        },
        Like {
            applied: 1,
            ..before
        },
    ];
    for after in falls {
        let seen = observed(&[(1, before), (1, after)], true);
        assert_eq!(seen, Err("monotonic cursors"));
    }
    // Whoever begins anew remembers less.
    let mut checks = GroupChecks::new(3);
    for like in [
        before,
        Like {
            committed: 2,
            ..before
        },
    ] {
        checks.reborn(1);
        let holds = |_: u64, _: LogPosition| Some(true);
        let seen = with(&[1, 2, 3], 1, like, |core, _| checks.observe(core, &holds));
        seen.expect("it is a life of its own");
    }
}

#[test]
fn a_commit_that_nobody_else_holds_is_noticed() {
    let committed = Like {
        committed: 4,
        ..Like::default()
    };
    assert_eq!(observed(&[(1, committed)], true), Ok(()));
    assert_eq!(observed(&[(1, committed)], false), Err("commit quorum"));
}

#[test]
fn two_histories_are_noticed() {
    let committed = Like {
        committed: 4,
        ..Like::default()
    };
    let other = Like {
        term: 3,
        runs: &[(1, 1), (3, 3)],
        ..committed
    };
    let seen = observed(&[(1, committed), (2, other)], true);
    assert_eq!(seen, Err("state machine safety"));
    let further = Like {
        last: 5,
        committed: 5,
        ..other
    };
    let seen = observed(&[(1, committed), (2, further)], true);
    assert_eq!(seen, Err("state machine safety"));
}

#[test]
fn a_second_vote_in_a_term_is_noticed() {
    let mut checks = GroupChecks::new(3);
    let mut gives = |term, to| checks.gave_vote(GROUP, NodeId(1), Term(term), NodeId(to));
    assert!(gives(2, 3).is_ok() && gives(2, 3).is_ok() && gives(3, 2).is_ok());
    assert_eq!(checker(gives(2, 2)), "one vote a term");
}

#[test]
fn a_witness_that_is_sent_what_could_not_be_committed_with_it_is_noticed() {
    let even = Configuration::simple(nodes(&[1, 2, 3, 4])).with_witnesses(nodes(&[4]));
    let incoming = Configuration::joint(nodes(&[1, 2, 4]), nodes(&[2, 3, 4]), [], []);
    let both = incoming.with_witnesses(nodes(&[4]));
    let two = Configuration::simple(nodes(&[1, 2, 3, 4])).with_witnesses(nodes(&[3, 4]));
    // Node 1 leads term 3 with an entry at index 5. Who has to have it, besides, before node 4 may?
    for (members, needed) in [(even, Some(3)), (both, Some(2)), (two, None)] {
        let entry = EntryRange {
            term: Term(3),
            first: Index(5),
            end: Index(6),
        };
        let sent = |core: &Group, to, entries| {
            let message = Message::Append {
                term: Term(3),
                prev: position(core, Index(4)),
                entries,
                commit: Index(0),
            };
            GroupChecks::new(4).sent(core, NodeId(to), &message, Lsn(1))
        };
        with_members(members, 1, Like::default(), |core, step| {
            let (term, granted) = (Term(3), true);
            let hear = |from, message| Event::Message { from, message };
            let mut writes = step(core, Event::Campaign).writes;
            for from in nodes(&[2, 3, 4]) {
                let reply = Message::PreVoteReply { term, granted };
                writes.extend(step(core, hear(from, reply)).writes);
            }
            let through = writes.last().expect("its vote").id;
            step(core, Event::Durable { through });
            for from in nodes(&[2, 3, 4]) {
                let reply = Message::VoteReply { term, granted };
                writes.extend(step(core, hear(from, reply)).writes);
            }
            assert_eq!((core.role(), core.last().index), (Role::Leader, Index(5)));
            let through = writes.last().expect("its first entry").id;

            // Nobody has it on the disk; others may have it, and the witness may be asked what it has.
            assert_eq!(checker(sent(core, 4, entry)), "witnesses");
            assert_eq!(sent(core, 2, entry), Ok(()));
            let nothing = EntryRange::empty(Term(2), Index(5));
            assert_eq!(sent(core, 4, nothing), Ok(()));
            step(core, Event::Durable { through });
            if let Some(needed) = needed {
                assert_eq!(checker(sent(core, 4, entry)), "witnesses");
                let message = Message::Matched {
                    term,
                    matched: Index(5),
                    commit: Index(0),
                };
                step(core, hear(NodeId(needed), message));
            }
            assert_eq!(sent(core, 4, entry), Ok(()));
        });
    }
}

#[test]
fn an_acknowledgement_of_what_is_not_durable_is_noticed() {
    let mut checks = GroupChecks::new(3);
    let mut says = |term, matched| {
        let message = Message::Matched {
            term: Term(term),
            matched: Index(matched),
            commit: Index(0),
        };
        with(&[1, 2, 3], 1, Like::default(), |core, _| {
            checks.sent(core, NodeId(2), &message, Lsn(1))
        })
    };
    assert!(says(2, 4).is_ok());
    assert_eq!(checker(says(2, 5)), "durable promises");
    assert_eq!(checker(says(1, 5)), "durable promises");
}

/// What the rules say of an acknowledgement by node 1, whose replica is now in term 3 with a log through index 3 on its disk.
fn acknowledges(checks: &mut GroupChecks, term: u64, matched: u64) -> Verdict {
    let message = Message::Matched {
        term: Term(term),
        matched: Index(matched),
        commit: Index(0),
    };
    let now = Like {
        term: 3,
        last: 3,
        ..Like::default()
    };
    with(&[1, 2, 3], 1, now, |core, _| {
        checks.sent(core, NodeId(2), &message, Lsn(9))
    })
}

#[test]
fn an_acknowledgement_of_what_a_later_leader_replaced_in_the_same_turn_is_right() {
    // At the last look, in this term, it had a log through index 6, of which four entries were on the disk.
    let looked = |term| {
        let mut checks = GroupChecks::new(3);
        let append = Message::Append {
            term,
            prev: LogPosition {
                term: Term(2),
                index: Index(4),
            },
            entries: EntryRange {
                term,
                first: Index(5),
                end: Index(7),
            },
            commit: Index(0),
        };
        with(&[1, 2, 3], 1, Like::default(), |core, step| {
            let (from, message) = (NodeId(2), append);
            step(core, Event::Message { from, message });
            assert_eq!((core.last().index, core.durable()), (Index(6), Index(4)));
            checks.observe(core, &|_, _| Some(true)).unwrap();
        });
        checks.wrote(1, Some(Lsn(5)));
        checks
    };
    assert_eq!(acknowledges(&mut looked(Term(2)), 2, 4), Ok(()));
    // Of another term, not on the disk then, or in a term that goes on.
    for (then, term, matched) in [(2, 1, 4), (2, 3, 4), (2, 2, 5), (2, 2, 6), (3, 3, 4)] {
        let verdict = acknowledges(&mut looked(Term(then)), term, matched);
        assert_eq!(
            checker(verdict),
            "durable promises",
            "{then} {term} {matched}"
        );
    }
}

#[test]
fn an_acknowledgement_of_what_a_start_found_is_right_until_somebody_has_looked() {
    let started = || {
        let mut checks = GroupChecks::new(3);
        let mut found = found(0, 4);
        found.hard_state.term = Term(2);
        checks.recovered(GROUP, 1, Some(&found)).unwrap();
        checks.reborn(1);
        checks
    };
    assert_eq!(acknowledges(&mut started(), 2, 4), Ok(()));
    for (term, matched) in [(1, 4), (3, 4), (2, 5)] {
        let verdict = acknowledges(&mut started(), term, matched);
        assert_eq!(checker(verdict), "durable promises", "{term} {matched}");
    }
    // Its leader has cut it since, or it is gone with a damaged log.
    let mut cut = started();
    let shorter = Like {
        last: 3,
        ..Like::default()
    };
    with(&[1, 2, 3], 1, shorter, |core, _| {
        cut.observe(core, &|_, _| Some(true)).unwrap();
    });
    let mut damaged = started();
    damaged.damaged(1);
    for mut checks in [cut, damaged] {
        let verdict = acknowledges(&mut checks, 2, 4);
        assert_eq!(checker(verdict), "durable promises");
    }
}

#[test]
fn an_acknowledgement_to_an_earlier_leader_that_leaves_later_changes_nothing() {
    // What is left of the log when somebody looks, after entry 3 was acknowledged in term 3 and entry 4 in term 2.
    let cut_to = |last, runs| {
        let mut checks = GroupChecks::new(3);
        let like = Like {
            term: 3,
            ..Like::default()
        };
        for (term, matched) in [(3, 3), (2, 4)] {
            let message = Message::Matched {
                term: Term(term),
                matched: Index(matched),
                commit: Index(0),
            };
            with(&[1, 2, 3], 1, like, |core, _| {
                checks.sent(core, NodeId(2), &message, Lsn(1)).unwrap();
            });
        }
        let shorter = Like { runs, last, ..like };
        with(&[1, 2, 3], 1, shorter, |core, _| {
            checks.observe(core, &|_, _| Some(true))
        })
    };
    assert_eq!(checker(cut_to(2, &[(1, 1)])), "durable promises");
    assert_eq!(cut_to(3, &[(1, 1), (2, 3)]), Ok(()));
}

#[test]
fn what_was_acknowledged_goes_only_for_a_newer_leader() {
    let acknowledged = || {
        let mut checks = GroupChecks::new(3);
        let message = Message::Matched {
            term: Term(2),
            matched: Index(4),
            commit: Index(0),
        };
        with(&[1, 2, 3], 1, Like::default(), |core, _| {
            checks.sent(core, NodeId(2), &message, Lsn(1)).unwrap();
            checks.observe(core, &|_, _| Some(true)).unwrap();
        });
        checks
    };
    let looks = |checks: &mut GroupChecks, term| {
        let shorter = Like {
            term,
            last: 3,
            ..Like::default()
        };
        with(&[1, 2, 3], 1, shorter, |core, _| {
            checks.observe(core, &|_, _| Some(true))
        })
    };
    assert_eq!(checker(looks(&mut acknowledged(), 2)), "durable promises");
    assert_eq!(looks(&mut acknowledged(), 3), Ok(()));
    // Nobody may cut what is committed.
    let mut committed = acknowledged();
    let like = Like {
        committed: 4,
        ..Like::default()
    };
    let seen = with(&[1, 2, 3], 2, like, |core, _| {
        committed.observe(core, &|_, _| Some(true))
    });
    seen.unwrap();
    assert_eq!(checker(looks(&mut committed, 3)), "durable promises");
    let mut damaged = acknowledged();
    damaged.damaged(1);
    assert_eq!(looks(&mut damaged, 2), Ok(()));
}

#[test]
fn a_vote_that_is_not_on_the_disk_is_noticed_in_whatever_term_its_replica_is_now() {
    let votes = |checks: &mut GroupChecks, candidate, durable| {
        let message = Message::VoteReply {
            term: Term(2),
            granted: true,
        };
        let now = Like {
            term: 3,
            ..Like::default()
        };
        with(&[1, 2, 3], 1, now, |core, _| {
            checks.sent(core, NodeId(candidate), &message, Lsn(durable))
        })
    };
    // It voted in the turn before, which wrote the batch number 5.
    let voted = || {
        let mut checks = GroupChecks::new(3);
        let like = Like {
            vote: Some(3),
            ..Like::default()
        };
        let seen = with(&[1, 2, 3], 1, like, |core, _| {
            checks.observe(core, &|_, _| Some(true))
        });
        seen.unwrap();
        checks.wrote(1, Some(Lsn(5)));
        checks
    };
    assert_eq!(votes(&mut voted(), 3, 5), Ok(()));
    assert_eq!(checker(votes(&mut voted(), 3, 4)), "durable promises");
    assert_eq!(checker(votes(&mut voted(), 2, 5)), "durable promises");
    // It was given before.
    let mut checks = voted();
    votes(&mut checks, 3, 5).unwrap();
    checks.reborn(1);
    assert_eq!(votes(&mut checks, 3, 0), Ok(()));
    // Its last start found it, or found another one.
    for (vote, is_found) in [(3, true), (2, false)] {
        let mut checks = GroupChecks::new(3);
        let mut found = found(0, 0);
        (found.hard_state.term, found.hard_state.vote) = (Term(2), Some(NodeId(vote)));
        checks.recovered(GROUP, 1, Some(&found)).unwrap();
        assert_eq!(votes(&mut checks, 3, 0).is_ok(), is_found);
    }
}

/// What a state machine tells of an entry of term 2.
pub(in crate::sim) fn applied(node: u64, index: u64, request: u64) -> Applied {
    Applied {
        node,
        group: GROUP,
        life: 0,
        index: Index(index),
        term: Term(2),
        request,
        digest: 100 + index,
        is_refused: false,
    }
}

/// Entries 1 to 4 of term 2 are committed.
pub(in crate::sim) fn four_committed() -> GroupChecks {
    let mut checks = GroupChecks::new(3);
    let like = Like {
        runs: &[(2, 1)],
        committed: 4,
        ..Like::default()
    };
    let holds = |_: u64, _: LogPosition| Some(true);
    let seen = with(&[1, 2, 3], 1, like, |core, _| checks.observe(core, &holds));
    seen.expect("nothing is wrong");
    checks
}

#[test]
fn state_machines_that_differ_are_noticed() {
    let mut checks = four_committed();
    for (node, index, request) in [(1, 1, 71), (1, 2, 72), (2, 1, 71), (2, 3, 73)] {
        checks.applied(applied(node, index, request)).unwrap();
    }
    assert_eq!(checker(checks.applied(applied(1, 2, 72))), "apply order");
    assert_eq!(checker(checks.applied(applied(1, 4, 71))), "applied once");
    let other = Applied {
        digest: 7,
        ..applied(3, 1, 71)
    };
    assert_eq!(checker(checks.applied(other)), "state machine safety");
    let other = Applied {
        term: Term(1),
        ..applied(3, 2, 72)
    };
    assert_eq!(checker(checks.applied(other)), "state machine safety");
    assert_eq!(
        checker(checks.applied(applied(3, 5, 75))),
        "state machine safety"
    );

    assert!(checks.acknowledged(GROUP, Index(2), 72).is_ok());
    for (index, request) in [(2, 71), (4, 72), (9, 72)] {
        let told = checks.acknowledged(GROUP, Index(index), request);
        assert_eq!(checker(told), "acknowledged operations");
    }
}

#[test]
fn a_refused_operation_that_was_applied_is_noticed() {
    let mut lives = LifeChecks::new(3);
    *lives.of(2) = four_committed();
    let refused = Applied {
        is_refused: true,
        ..applied(1, 2, 72)
    };
    for entry in [applied(1, 1, 71), refused] {
        lives.of(2).applied(entry).unwrap();
    }
    for request in [72, 73] {
        assert_eq!(lives.refused(GROUP, request), Ok(()));
    }
    assert_eq!(checker(lives.refused(GROUP, 71)), "acknowledged operations");
}

#[test]
fn a_state_that_is_not_that_of_its_place_is_noticed() {
    let mut checks = four_committed();
    for index in 1..=3 {
        checks.applied(applied(1, index, 70 + index)).unwrap();
    }
    let restored = |applied: u64, last: u64, digest| Restored {
        node: 2,
        group: GROUP,
        life: 0,
        last: Index(last),
        applied: Index(applied),
        digest,
    };
    assert_eq!(checker(checks.restored(restored(2, 2, 7))), "snapshots");
    // Something between the two was applied elsewhere.
    assert_eq!(checker(checks.restored(restored(2, 3, 102))), "snapshots");
    checks.restored(restored(3, 3, 103)).unwrap();
    assert_eq!(checker(checks.restored(restored(1, 1, 101))), "apply order");
}

#[test]
fn a_state_machine_that_lost_what_it_had_saved_is_noticed() {
    let kept = |what| Kept {
        node: 1,
        group: GROUP,
        life: 0,
        what,
    };
    let (opened, saved) = (
        |at| kept(Keeping::Opened(Index(at))),
        |at| kept(Keeping::Saved(Index(at))),
    );
    let mut checks = four_committed();
    assert_eq!(checks.kept(opened(0)), Ok(()));
    assert_eq!(checks.kept(saved(2)), Ok(()));
    checks.reborn(1);
    assert_eq!(checker(checks.kept(opened(1))), "saved state machines");
    assert_eq!(checker(checks.kept(saved(1))), "saved state machines");
    assert_eq!(checks.kept(opened(2)), Ok(()));
    // What it opened with it must not be given again.
    assert_eq!(checker(checks.applied(applied(1, 2, 22))), "apply order");
    assert_eq!(checks.kept(kept(Keeping::Removed)), Ok(()));
    assert_eq!(checks.kept(opened(0)), Ok(()));
}

#[test]
fn a_state_that_nobody_had_or_that_lacks_something_is_noticed() {
    let mut checks = four_committed();
    for index in [1, 3] {
        assert_eq!(checks.applied(applied(1, index, 20 + index)), Ok(()));
    }
    let digest = applied(1, 3, 23).digest;
    assert!(checks.was_state(Index(3), digest));
    assert!(checks.was_state(Index::ZERO, 0));
    assert!(!checks.was_state(Index(3), digest + 1));
    assert!(!checks.was_state(Index(2), digest));
    let next = |after, through| {
        let next = checks.next_applied(Index(after), Index(through));
        next.map(|entry| entry.index.0)
    };
    assert_eq!(next(1, 2), None);
    assert_eq!(next(1, 3), Some(3));
    assert_eq!(next(0, 3), Some(1));
}

#[test]
fn what_a_disk_lost_is_noticed() {
    let mut checks = GroupChecks::new(3);
    checks
        .gave_vote(GROUP, NodeId(1), Term(2), NodeId(3))
        .unwrap();
    assert_eq!(
        checker(checks.recovered(GROUP, 1, None)),
        "durable promises"
    );
}

/// What a disk has of a replica whose log is purged through `base`, and has nothing behind it.
fn found(commit: u64, base: u64) -> RecoveredGroup {
    RecoveredGroup {
        group: GROUP,
        life: polyraft::Life::FIRST,
        joined: Index::ZERO,
        removed_in: Term::ZERO,
        is_witness: false,
        configuration: Configuration::simple([NodeId(1)]),
        configurations: Vec::new(),
        hard_state: HardState {
            term: Term(1),
            vote: None,
            commit: Index(commit),
        },
        base: LogPosition {
            term: Term(1),
            index: Index(base),
        },
        runs: Vec::new(),
        last: Index(base),
        fault: None,
        may_return: None,
    }
}

#[test]
fn who_lost_its_log_to_a_fault_keeps_its_votes_and_what_it_acknowledges_afterwards() {
    let acknowledge = |checks: &mut GroupChecks| {
        let like = Like {
            term: 1,
            runs: &[(1, 1)],
            ..Like::default()
        };
        let message = Message::Matched {
            term: Term(1),
            matched: Index(4),
            commit: Index(0),
        };
        with(&[1, 2, 3], 1, like, |core, _| {
            checks.sent(core, NodeId(2), &message, Lsn(1)).unwrap();
            checks.observe(core, &|_, _| Some(true)).unwrap();
        });
    };
    let mut checks = GroupChecks::new(3);
    acknowledge(&mut checks);
    let empty = found(0, 0);
    let starts = |checks: &mut GroupChecks| checks.recovered(GROUP, 1, Some(&empty));
    assert_eq!(checker(starts(&mut checks)), "durable promises");
    checks.damaged(1);
    assert_eq!(starts(&mut checks), Ok(()));
    acknowledge(&mut checks);
    assert_eq!(checker(starts(&mut checks)), "durable promises");
    checks.damaged(1);
    checks
        .gave_vote(GROUP, NodeId(1), Term(2), NodeId(3))
        .unwrap();
    assert_eq!(checker(starts(&mut checks)), "durable promises");
}

#[test]
fn what_is_known_to_be_committed_or_purged_on_a_disk_never_falls() {
    let starts = |all: &[(u64, u64)]| {
        let mut checks = GroupChecks::new(1);
        let mut starts = all.iter().map(|(commit, base)| found(*commit, *base));
        starts.all(|found| checks.recovered(GroupId(1), 1, Some(&found)).is_ok())
    };
    assert!(starts(&[(4, 2), (4, 2), (9, 5)]));
    assert!(!starts(&[(4, 2), (3, 2)]));
    assert!(!starts(&[(4, 2), (5, 1)]));
    let mut checks = GroupChecks::new(1);
    checks.recovered(GroupId(1), 1, Some(&found(4, 2))).unwrap();
    checks.left(1);
    assert!(checks.recovered(GroupId(1), 1, Some(&found(0, 0))).is_ok());
}

#[test]
fn a_leader_needs_what_earlier_leaders_committed_whatever_its_term() {
    let mut checks = GroupChecks::new(3);
    let mut commit = |term, index| {
        let (term, index) = (Term(term), Index(index));
        checks.note_commit(LogPosition { term, index });
    };
    commit(2, 4);
    commit(2, 5);
    // Index 6 is of term 3, and the leader of term 5 committed it with its first entry.
    commit(5, 7);
    let needed = [1, 2, 3, 4, 5, 6].map(|term| checks.committed_before(Term(term)).0);
    assert_eq!(needed, [0, 0, 5, 5, 5, 7]);
}

/// A group of which one node is left, whose log ends at an index of a term.
fn left_over(last: (u64, u64), known_committed: u64, may_have_lost: bool) -> SurvivingGroup {
    let replica = SurvivingReplica {
        node: 1,
        term: last.0,
        vote: None,
        last_term: last.0,
        last_index: last.1,
        committed: known_committed,
        is_witness: false,
        fault: None,
    };
    SurvivingGroup {
        group: 1,
        voters_before: vec![1, 2, 3],
        learners_before: Vec::new(),
        replicas: vec![replica],
        chosen: 1,
        voters: vec![1],
        learners: Vec::new(),
        term: last.0 + 9,
        index: last.1 + 1,
        known_committed,
        becoming_committed: last.1 - known_committed,
        known_lost: 0,
        may_have_lost,
        may_forget_merge: false,
        may_forget_split: false,
    }
}

#[test]
fn a_recovery_loses_only_what_it_has_announced_and_what_is_kept_stays_under_the_rules() {
    // Whoever is left has another entry from index 3 on in term 3, which was never committed.
    let begin = || {
        let mut checks = four_committed();
        checks.promises[3] = Promise::default();
        let like = Like {
            term: 3,
            runs: &[(2, 1), (3, 3)],
            ..Like::default()
        };
        let holds = |_: u64, _: LogPosition| Some(true);
        let seen = with(&[1, 2, 3], 3, like, |core, _| checks.observe(core, &holds));
        seen.expect("nothing is wrong");
        for index in 1..=4 {
            checks.applied(applied(1, index, 10 + index)).unwrap();
        }
        checks
    };
    for (last, known, may_lose, left) in [
        ((2, 4), 2, false, Some(4)),
        ((2, 9), 2, true, Some(4)),
        ((2, 3), 2, true, Some(3)),
        ((2, 3), 3, false, None),
        ((3, 4), 2, true, Some(2)),
        ((3, 4), 3, true, None),
        ((3, 4), 2, false, None),
    ] {
        let mut checks = begin();
        let group = left_over(last, known, may_lose);
        let Some(left) = left else {
            let failure = checks.goes_on_with(&group).unwrap_err();
            assert_eq!(failure.checker, "recoveries", "{last:?} {known}");
            continue;
        };
        let lost = checks.goes_on_with(&group).unwrap();
        let lost: Vec<u64> = lost.iter().map(|entry| entry.index.0).collect();
        assert_eq!(lost, (left + 1..=4).collect::<Vec<_>>(), "{last:?}");
        assert!(checks.goes_on_with(&group).unwrap().is_empty(), "told once");
        for index in 1..=4 {
            let told = checks.acknowledged(GROUP, Index(index), 10 + index);
            assert_eq!(told.is_ok(), index <= left, "{index} of {last:?}");
        }
        // Later leaders need what is kept, and nothing that is lost.
        assert_eq!(checks.committed_before(Term(9)), Index(left));
        let goes_on = |runs, last| {
            let like = Like {
                term: 20,
                runs,
                last,
                ..Like::default()
            };
            let mut checks = begin();
            checks.goes_on_with(&group).unwrap();
            leads(&mut checks, 3, like)
        };
        let without = goes_on(&[(2, 1)], left - 1);
        assert_eq!(checker(without), "leader completeness", "{last:?}");
        goes_on(&[(2, 1)], left).expect("it has what is kept");
    }
}

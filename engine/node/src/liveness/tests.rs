//! Two nodes that hear each other, or not: what they say, and what each then knows of the other.

use super::*;

const INTERVALS: Intervals = Intervals {
    beat: 25_000,
    silence: 150_000,
    drift_ppm: 100_000,
    priority: 100,
};
/// A claim of the first life.
fn at_term(term: u64) -> Reign {
    Reign {
        life: polyraft_raft::Life::FIRST,
        term: polyraft_raft::Term(term),
    }
}

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

/// Two nodes that hear each other.
struct Pair {
    now: Tick,
    one: Liveness,
    two: Liveness,
    lose_deltas: bool,
    lose_beats: bool,
    seen_by_two: Vec<Action>,
    /// What node 2 says of the claims of node 1, the newest.
    standing: Option<Standing>,
    /// Groups whose replica disputes every claim.
    untaken: Vec<GroupId>,
    sent: usize,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Pair {
            now: Tick(1),
            one: Liveness::new(ONE, 1, INTERVALS, [TWO]),
            two: Liveness::new(TWO, 1, INTERVALS, [ONE]),
            lose_deltas: false,
            lose_beats: false,
            seen_by_two: Vec::new(),
            standing: None,
            untaken: Vec::new(),
            sent: 0,
        };
        pair.connect(1);
        pair
    }

    fn connect(&mut self, incarnation_of_one: u64) {
        let mut out = Vec::new();
        self.one.link_up(self.now, TWO, 1, &mut out);
        self.deliver(ONE, out);
        let mut out = Vec::new();
        self.two
            .link_up(self.now, ONE, incarnation_of_one, &mut out);
        self.deliver(TWO, out);
        self.run(1);
    }

    /// Lets `intervals` beats pass.
    fn run(&mut self, intervals: usize) {
        for _ in 0..10 * intervals {
            self.now = Tick(self.now.0 + INTERVALS.beat / 10);
            for node in [ONE, TWO] {
                let mut out = Vec::new();
                if node == ONE {
                    &mut self.one
                } else {
                    &mut self.two
                }
                .poll(self.now, self.now, true, &mut out);
                self.deliver(node, out);
            }
        }
    }

    fn deliver(&mut self, from: NodeId, actions: Vec<Action>) {
        for action in actions {
            let mut out = Vec::new();
            let receiver = if from == ONE {
                &mut self.two
            } else {
                &mut self.one
            };
            self.sent += 1;
            match action {
                Action::Beat { beat, .. } if !self.lose_beats => {
                    receiver.beat(self.now, from, beat, &mut out)
                }
                Action::Delta {
                    from_version,
                    version,
                    changes,
                    ..
                } if !self.lose_deltas => {
                    receiver.delta(from, from_version, version, changes, &mut out);
                }
                Action::Table {
                    version, claims, ..
                } => {
                    receiver.table(from, version, true, claims.len(), claims, &mut out);
                }
                Action::RequestTable { .. } => receiver.table_requested(from),
                Action::Beat { .. } | Action::Delta { .. } => {}
                own @ (Action::Peer { .. }
                | Action::Priority { .. }
                | Action::Claims { .. }
                | Action::Stands(_)) => {
                    self.sent -= 1;
                    self.note(from, own);
                    continue;
                }
            }
            let receiver = if from == ONE { TWO } else { ONE };
            for action in out {
                match action {
                    answer @ Action::Beat { .. } => self.deliver(receiver, vec![answer]),
                    own => self.note(receiver, own),
                }
            }
        }
    }

    /// Does what the owner of a node does.
    fn note(&mut self, node: NodeId, action: Action) {
        if let Action::Claims { by, changes } = &action {
            let liveness = if node == ONE {
                &mut self.one
            } else {
                &mut self.two
            };
            liveness.claims_told(*by, 1);
            let untaken = changes
                .iter()
                .filter(|(group, _)| self.untaken.contains(group));
            let untaken =
                untaken.filter_map(|(group, term)| Some((*group, (*term)?, Untaken::Disputed)));
            liveness.claims_taken(*by, untaken.collect());
        }
        match action {
            Action::Stands(standing) if node == ONE => self.standing = Some(standing),
            Action::Stands(_) => {}
            other if node == TWO => self.seen_by_two.push(other),
            _ => {}
        }
    }

    fn take_seen(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.seen_by_two)
    }
}

#[test]
fn a_peer_that_is_taken_out_is_silent_and_what_it_claimed_is_void() {
    let (own, two, three) = (NodeId(1), NodeId(2), NodeId(3));
    let mut liveness = Liveness::new(own, 9, INTERVALS, [two]);
    let mut out = Vec::new();
    let nodes = |liveness: &Liveness| liveness.nodes().collect::<Vec<_>>();
    // One that is added says hello like the others.
    liveness.add(own, three);
    liveness.add(own, three);
    assert_eq!(nodes(&liveness), [two, three]);
    let beat = |sequence| Beat {
        incarnation: 30,
        sequence,
        heard: 0,
        claims_version: 1,
        of: 0,
        taken: 0,
        promise: 0,
        wants_answer: false,
        priority: 100,
    };
    liveness.link_up(Tick(10), three, 30, &mut out);
    liveness.beat(Tick(20), three, beat(1), &mut out);
    let reign = at_term(4);
    let group = GroupId(7);
    liveness.delta(three, 0, 1, vec![(group, Some(reign))], &mut out);
    assert!(liveness.is_alive(three));
    assert_eq!(liveness.claims_on(group), [(three, reign)]);
    out.clear();
    liveness.remove(three, &mut out);
    let is_down =
        |action: &Action| matches!(action, Action::Peer { node, alive: false } if *node == three);
    let is_void = |action: &Action| matches!(action, Action::Claims { by, changes } if *by == three && changes[..] == [(group, None)]);
    assert!(
        out.iter().any(is_down) && out.iter().any(is_void),
        "{out:?}"
    );
    assert_eq!(nodes(&liveness), [two]);
    assert!(liveness.claims_on(group).is_empty());
    // What is late is not heard, and nothing is sent to it.
    out.clear();
    liveness.link_up(Tick(30), three, 30, &mut out);
    liveness.beat(Tick(40), three, beat(2), &mut out);
    liveness.poll(Tick(500_000), Tick(500_000), true, &mut out);
    let names_it = |action: &Action| matches!(action, Action::Beat { to, .. } if *to == three);
    assert!(
        !liveness.is_alive(three) && !out.iter().any(names_it),
        "{out:?}"
    );
    // It comes back with answers of shards still under way.
    liveness.claims_taken(three, Vec::new());
    liveness.add(own, three);
    liveness.link_up(Tick(500_010), three, 31, &mut out);
    let again = Beat {
        incarnation: 31,
        ..beat(1)
    };
    liveness.beat(Tick(500_020), three, again, &mut out);
    assert!(liveness.is_alive(three));
}

#[test]
fn a_peer_is_alive_after_its_first_beat_and_silent_after_the_timeout() {
    let mut pair = Pair::new();
    assert_eq!(
        pair.take_seen(),
        [Action::Peer {
            node: ONE,
            alive: true
        }]
    );
    pair.run(20);
    assert_eq!(pair.take_seen(), []);
    pair.lose_beats = true;
    pair.run(5);
    assert!(
        pair.two.is_alive(ONE),
        "silence is shorter than the timeout"
    );
    pair.run(2);
    assert_eq!(
        pair.take_seen(),
        [Action::Peer {
            node: ONE,
            alive: false
        }]
    );
}

#[test]
fn a_claim_travels_once_and_idle_beats_do_not_depend_on_groups() {
    let mut pair = Pair::new();
    pair.take_seen();
    for group in 0..1000 {
        pair.one
            .claim(GroupId(group), Some(at_term(3)), &[ONE, TWO]);
    }
    pair.run(1);
    let seen = pair.take_seen();
    assert!(
        matches!(&seen[..], [Action::Claims { by: ONE, changes }] if changes.len() == 1000),
        "{seen:?}"
    );
    let before = pair.sent;
    pair.run(10);
    let sent = pair.sent - before;
    assert!(
        (19..=21).contains(&sent),
        "{sent}: one beat each way per interval"
    );
    assert_eq!(pair.take_seen(), []);
}

#[test]
fn a_lost_delta_is_noticed_and_the_table_repairs_it() {
    let mut pair = Pair::new();
    pair.take_seen();
    pair.lose_deltas = true;
    pair.one.claim(GroupId(5), Some(at_term(2)), &[ONE, TWO]);
    pair.run(1);
    pair.lose_deltas = false;
    assert_eq!(pair.take_seen(), []);
    pair.run(5);
    assert_eq!(
        pair.take_seen(),
        [Action::Claims {
            by: ONE,
            changes: vec![(GroupId(5), Some(at_term(2)))]
        }]
    );
    let before = pair.sent;
    pair.run(10);
    let sent = pair.sent - before;
    assert!(
        (19..=21).contains(&sent),
        "{sent}: nothing is asked for twice"
    );
}

#[test]
fn a_new_incarnation_voids_what_the_old_one_claimed() {
    let mut pair = Pair::new();
    pair.one.claim(GroupId(5), Some(at_term(2)), &[ONE, TWO]);
    pair.run(1);
    pair.take_seen();
    pair.one = Liveness::new(ONE, 2, INTERVALS, [TWO]);
    pair.connect(2);
    let seen = pair.take_seen();
    let expected = [
        Action::Peer {
            node: ONE,
            alive: false,
        },
        Action::Claims {
            by: ONE,
            changes: vec![(GroupId(5), None)],
        },
        Action::Peer {
            node: ONE,
            alive: true,
        },
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_claim_given_up_is_told() {
    let mut pair = Pair::new();
    pair.one.claim(GroupId(5), Some(at_term(2)), &[ONE, TWO]);
    pair.run(1);
    pair.take_seen();
    pair.one.claim(GroupId(5), None, &[ONE, TWO]);
    pair.run(1);
    assert_eq!(
        pair.take_seen(),
        [Action::Claims {
            by: ONE,
            changes: vec![(GroupId(5), None)]
        }]
    );
}

#[test]
fn a_beat_of_another_incarnation_or_an_old_one_is_no_sign_of_life() {
    let mut pair = Pair::new();
    pair.run(3);
    pair.lose_beats = true;
    pair.run(4);
    let mut out = Vec::new();
    let stale = Beat {
        incarnation: 1,
        sequence: 1,
        heard: 0,
        claims_version: 0,
        of: 1,
        taken: 0,
        promise: 150_000,
        wants_answer: false,
        priority: 100,
    };
    let other = Beat {
        incarnation: 9,
        sequence: 99,
        heard: 0,
        claims_version: 0,
        of: 1,
        taken: 0,
        promise: 150_000,
        wants_answer: false,
        priority: 100,
    };
    pair.two.beat(pair.now, ONE, stale, &mut out);
    pair.two.beat(pair.now, ONE, other, &mut out);
    pair.run(3);
    assert!(!pair.two.is_alive(ONE));
}

/// How long a promise of 150 ms lasts on a clock that may be slower by a tenth.
const LEASE: u64 = 150_000 * 10 / 11;

#[test]
fn a_peer_stands_by_the_claims_that_its_replicas_have_taken() {
    let mut pair = Pair::new();
    pair.one.note_batch(0);
    pair.one.claim(GroupId(5), Some(at_term(2)), &[ONE, TWO]);
    assert_eq!(pair.standing, None);
    pair.run(3);
    let standing = pair.standing.take().expect("every beat says so");
    assert_eq!((standing.by, &standing.batches[..]), (TWO, &[1][..]));
    // The beat of this interval was heard, and is answered with the next one.
    assert!(standing.since >= Tick(pair.now.0 - INTERVALS.beat));
    assert_eq!(standing.until, standing.since.after(LEASE));

    // A claim that a replica can't follow: nothing more is said of any claim, until it is given up.
    pair.untaken = vec![GroupId(6)];
    pair.one.note_batch(0);
    pair.one.claim(GroupId(6), Some(at_term(1)), &[ONE, TWO]);
    pair.run(1);
    pair.standing = None;
    pair.take_seen();
    pair.run(3);
    assert_eq!(pair.standing, None);
    let told = Action::Claims {
        by: ONE,
        changes: vec![(GroupId(6), Some(at_term(1)))],
    };
    assert!(pair.take_seen().contains(&told), "its answer may be lost");
    pair.one.note_batch(0);
    pair.one.claim(GroupId(6), None, &[ONE, TWO]);
    pair.run(3);
    let standing = pair.standing.take().expect("nothing is disputed");
    assert_eq!(&standing.batches[..], &[3]);
}

#[cfg(polyraft_mutants)]
#[test]
fn every_fault_of_leases_is_noticed() {
    for (fault, _) in mutants::LEASES {
        mutants::set(Some(*fault));
        let noticed =
            std::panic::catch_unwind(a_peer_stands_by_the_claims_that_its_replicas_have_taken);
        mutants::set(None);
        assert!(noticed.is_err(), "{fault:?}");
    }
}

#[test]
fn a_peer_that_is_asked_answers_at_once_and_is_asked_once() {
    let mut pair = Pair::new();
    pair.one.note_batch(0);
    (0..1000).for_each(|group| {
        pair.one
            .claim(GroupId(group), Some(at_term(2)), &[ONE, TWO])
    });
    pair.run(3);
    pair.standing = None;
    let (came, before) = (pair.now.after(10), pair.sent);
    let mut out = Vec::new();
    pair.one.want(came);
    pair.one.poll(pair.now, came, true, &mut out);
    pair.one.poll(pair.now, came, true, &mut out);
    pair.deliver(ONE, out);
    assert_eq!(
        pair.sent - before,
        2,
        "one beat and its answer, for all groups"
    );
    let standing = pair.standing.take().expect("an answer");
    assert!(standing.since >= came);
    // It is known: nothing more is asked.
    let mut out = Vec::new();
    pair.one.poll(pair.now, came, true, &mut out);
    assert_eq!(out, []);
}

#[test]
fn a_peer_that_was_silent_stands_by_nothing_before_it_has_taken_the_claims_again() {
    let mut pair = Pair::new();
    pair.one.note_batch(0);
    pair.one.claim(GroupId(5), Some(at_term(2)), &[ONE, TWO]);
    pair.run(3);
    pair.lose_beats = true;
    pair.run(7);
    assert!(!pair.two.is_alive(ONE));
    // It votes for another leader meanwhile, and disputes the claim from then on.
    pair.untaken = vec![GroupId(5)];
    (pair.lose_beats, pair.standing) = (false, None);
    pair.run(5);
    assert!(pair.two.is_alive(ONE));
    assert_eq!(pair.standing, None);
}

#[test]
fn an_answer_to_an_earlier_life_says_nothing() {
    let mut pair = Pair::new();
    pair.one.note_batch(0);
    pair.one.claim(GroupId(5), Some(at_term(2)), &[ONE, TWO]);
    pair.run(3);
    pair.standing = None;
    let answer = |of, taken| Beat {
        incarnation: 1,
        sequence: 1000,
        heard: 5,
        claims_version: 0,
        of,
        taken,
        promise: 150_000,
        wants_answer: false,
        priority: 100,
    };
    let mut out = Vec::new();
    pair.one.beat(pair.now, TWO, answer(7, 1), &mut out);
    assert_eq!(out, []);
    pair.one.beat(
        pair.now,
        TWO,
        Beat {
            sequence: 1001,
            ..answer(1, 1)
        },
        &mut out,
    );
    assert!(matches!(out[..], [Action::Stands(_)]), "{out:?}");
}

#[test]
fn parts_of_two_tables_are_not_mixed() {
    let mut pair = Pair::new();
    let claim = |group| (GroupId(group), at_term(1));
    let mut out = Vec::new();
    let two = &mut pair.two;
    two.table(ONE, 5, true, 2, vec![claim(1)], &mut out);
    // Its other part is lost, and so is the first part of the next one.
    two.table(ONE, 6, false, 2, vec![claim(9)], &mut out);
    assert!(out.is_empty());
    assert!(two.claims_on(GroupId(1)).is_empty() && two.claims_on(GroupId(9)).is_empty());
    // Nor are more claims kept than a table announced.
    two.table(
        ONE,
        7,
        true,
        2,
        vec![claim(1), claim(2), claim(3)],
        &mut out,
    );
    two.table(ONE, 8, true, 2, vec![claim(1)], &mut out);
    two.table(ONE, 8, false, 2, vec![claim(9)], &mut out);
    assert_eq!(two.claims_on(GroupId(9)), [(ONE, at_term(1))]);
    assert!(two.claims_on(GroupId(3)).is_empty());
}

#[test]
fn a_connection_that_came_up_before_a_beat_does_not_make_the_beat_older() {
    let mut pair = Pair::new();
    let later = Tick(pair.now.0 + INTERVALS.silence);
    pair.two.heard(later, ONE);
    let mut out = Vec::new();
    pair.two.link_up(pair.now, ONE, 1, &mut out);
    // The beat was answered: until it is as old as silence is, nobody may judge its sender silent.
    let mut out = Vec::new();
    pair.two.poll(Tick(later.0 + 1), later, true, &mut out);
    assert!(pair.two.is_alive(ONE));
}

#[test]
fn a_long_turn_beats_and_says_nothing_new() {
    let mut pair = Pair::new();
    pair.run(3);
    let before = pair.one.peers[0].sent_sequence;
    pair.one.claim(GroupId(1), Some(at_term(4)), &[ONE, TWO]);
    let version = pair.one.peers[0].outgoing.version;
    // Node 2 has long been silent by then, as far as node 1 has looked.
    let later = Tick(pair.now.0 + 10 * INTERVALS.silence);
    let mut out = Vec::new();
    pair.one.beat_in_turn(later, &mut out);
    let [Action::Beat { to: TWO, beat }] = out[..] else {
        panic!("one beat and nothing else: {out:?}");
    };
    assert_eq!((beat.sequence, beat.claims_version), (before + 1, version));
    out.clear();
    pair.one.beat_in_turn(later, &mut out);
    assert_eq!(out, [], "not more often than at other times");
    pair.one.poll(later, later, true, &mut out);
    assert!(matches!(
        out[..],
        [
            Action::Peer {
                node: TWO,
                alive: false
            },
            Action::Delta { to: TWO, .. }
        ]
    ));
}

#[test]
fn a_priority_is_told_before_its_node_lives_and_once() {
    let mut pair = Pair::new();
    let low = Intervals {
        priority: 7,
        ..INTERVALS
    };
    pair.run(3);
    pair.take_seen();
    pair.one = Liveness::new(ONE, 2, low, [TWO]);
    pair.connect(2);
    pair.run(9);
    let told = Action::Priority {
        node: ONE,
        priority: 7,
    };
    let seen = pair.take_seen();
    let lives = Action::Peer {
        node: ONE,
        alive: true,
    };
    let places: Vec<usize> = [told, lives]
        .iter()
        .map(|wanted| {
            seen.iter()
                .position(|one| one == wanted)
                .expect("it is told")
        })
        .collect();
    assert!(places[0] < places[1], "{seen:?}");
    let again = seen
        .iter()
        .filter(|one| matches!(one, Action::Priority { .. }));
    assert_eq!(again.count(), 1);
}

/// Before, each of them stayed for as long as the node ran.
#[test]
fn claims_for_a_peer_that_has_never_connected_take_no_room() {
    let mut one = Liveness::new(ONE, 1, INTERVALS, [TWO]);
    let group = GroupId(1);
    for term in 1..100 {
        one.claim(group, Some(at_term(term)), &[ONE, TWO]);
        one.claim(group, None, &[ONE, TWO]);
        one.claim(GroupId(2), Some(at_term(term)), &[ONE, TWO]);
    }
    assert_eq!(one.peers[0].outgoing.changes.len(), 1);
    // It is told of what is so when it comes.
    let mut out = Vec::new();
    one.link_up(Tick(1), TWO, 1, &mut out);
    one.poll(Tick(1), Tick(1), true, &mut out);
    let table = Action::Table {
        to: TWO,
        version: 1,
        claims: vec![(GroupId(2), at_term(99))],
    };
    assert!(out.contains(&table), "{out:?}");
}

//! The checkers against histories whose verdict is known: drawn by hand, judged by trying every order, or made from
//! an order and then broken in one place.

use proptest::prelude::*;

use super::*;

/// One operation of a drawn history: client, call, start, end, outcome.
type Drawn = (u64, Call, u64, u64, Outcome);

const DONE: Outcome = Outcome::Ok(Answer::Done);

const fn told(value: Value) -> Outcome {
    Outcome::Ok(Answer::Value(value))
}

const fn matched(matched: bool) -> Outcome {
    Outcome::Ok(Answer::Matched(matched))
}

const fn set(expect: Value, new: Value) -> Call {
    Call::CompareAndSet { expect, new }
}

/// Records what was drawn in the order of time. At the same moment calls come before answers, so that operations
/// that touch overlap.
fn record(drawn: &[Drawn]) -> History {
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (i, &(_, _, start, end, _)) in drawn.iter().enumerate() {
        assert!(start <= end);
        events.extend([(start, false, i), (end, true, i)]);
    }
    events.sort_unstable();
    let mut history = History::new();
    let mut ids = BTreeMap::new();
    for (at_us, is_end, i) in events {
        let (process, call, _, _, outcome) = drawn[i];
        match outcome {
            _ if !is_end => {
                ids.insert(i, history.invoke(at_us, process, 1, call));
            }
            Outcome::Ok(answer) => history.ok(ids[&i], at_us, answer),
            Outcome::Failed => history.failed(ids[&i], at_us),
            Outcome::Unknown => history.unknown(ids[&i], at_us),
        }
    }
    history
}

/// Tries every order of every choice of unknown operations.
fn has_order_naively(operations: &[Operation]) -> bool {
    fn extend(left: &[&Operation], value: Value) -> bool {
        let done = left.iter().all(|o| !matches!(o.outcome, Outcome::Ok(_)));
        done || left.iter().any(|next| {
            let others: Vec<&Operation> = left
                .iter()
                .filter(|o| o.start != next.start)
                .copied()
                .collect();
            let new = match (next.call, next.outcome) {
                (_, Outcome::Failed) => None,
                (Call::Read, Outcome::Ok(Answer::Value(seen))) => (seen == value).then_some(value),
                (Call::Swap(new), Outcome::Ok(Answer::Value(seen))) => {
                    (seen == value).then_some(new)
                }
                (Call::CompareAndSet { expect, new }, Outcome::Ok(Answer::Matched(matched))) => {
                    let after = if matched { new } else { value };
                    ((expect == value) == matched).then_some(after)
                }
                (Call::CompareAndSet { expect, new }, _) => {
                    Some(if expect == value { new } else { value })
                }
                (Call::Write(new) | Call::Swap(new), _) => Some(new),
                (Call::Read, _) => Some(value),
            };
            let is_next = others.iter().all(|other| other.end > next.start);
            is_next && new.is_some_and(|new| extend(&others, new))
        })
    }
    extend(&operations.iter().collect::<Vec<_>>(), INITIAL)
}

/// Both checkers' verdict, which must be the same where both apply.
fn verdict(history: &History) -> Result<(), Box<Violation>> {
    let operations = history.operations();
    let searched = match search(operations, 1_000_000) {
        Verdict::Linearizable => Ok(()),
        Verdict::Violation(violation) => Err(violation),
        Verdict::Undecided => panic!("a million situations are not enough"),
    };
    if is_register(operations) {
        let zoned = zones(operations);
        assert_eq!(zoned.is_ok(), searched.is_ok(), "{zoned:?}\n{searched:?}");
    }
    searched
}

fn good(drawn: &[Drawn]) {
    let history = record(drawn);
    assert_eq!(verdict(&history), Ok(()));
    assert!(has_order_naively(history.operations()));
}

fn bad(drawn: &[Drawn]) -> Box<Violation> {
    let history = record(drawn);
    assert!(!has_order_naively(history.operations()));
    verdict(&history).unwrap_err()
}

#[test]
fn a_read_sees_a_write_that_overlaps_it_or_not() {
    for seen in [INITIAL, 1] {
        good(&[
            (1, Call::Write(1), 0, 10, DONE),
            (2, Call::Read, 5, 7, told(seen)),
        ]);
    }
}

#[test]
fn a_read_does_not_go_back() {
    let violation = bad(&[
        (1, Call::Write(1), 0, 10, DONE),
        (2, Call::Read, 1, 2, told(1)),
        (3, Call::Read, 3, 4, told(INITIAL)),
    ]);
    // The search forgets the write's answer, for the write is seen before it is answered.
    assert_eq!(violation.operations.len(), 2);
}

#[test]
fn a_stale_read_is_explained_by_what_it_missed() {
    let drawn = [
        (1, Call::Write(1), 0, 10, DONE),
        (1, Call::Write(2), 20, 30, DONE),
        (2, Call::Read, 12, 18, told(1)),
        (3, Call::Write(3), 200, 210, DONE),
        (2, Call::Read, 40, 50, told(1)),
    ];
    bad(&drawn);
    let violation = record(&drawn).check().unwrap_err();
    let shown = violation.to_string();
    assert!(shown.contains("write 1: ok"), "{shown}");
    assert!(
        shown.contains("20..30 µs  client 1  write 2: ok"),
        "{shown}"
    );
    assert!(shown.contains("40..50 µs  client 2  read: 1"), "{shown}");
    assert!(!shown.contains("write 3"), "{shown}");
}

#[test]
fn two_readers_agree_on_the_order_of_two_writes() {
    let writes = [
        (1, Call::Write(1), 0, 100, DONE),
        (2, Call::Write(2), 0, 100, DONE),
    ];
    let reads = |first, second| {
        [
            (3, Call::Read, 10, 20, told(first)),
            (3, Call::Read, 30, 40, told(second)),
        ]
    };
    let both = |other: [Drawn; 2]| [&writes[..], &reads(1, 2), &other].concat();
    good(&both(reads(1, 2)));
    bad(&both(reads(2, 1)));
}

#[test]
fn an_unknown_write_may_happen_late_or_never() {
    let write = (1, Call::Write(1), 0, 5, Outcome::Unknown);
    let read = |at, seen| (2, Call::Read, at, at + 5, told(seen));
    good(&[write, read(10, INITIAL), read(20, INITIAL)]);
    good(&[write, read(10, INITIAL), read(20, 1)]);
    // Once seen, it has happened.
    bad(&[write, read(10, 1), read(20, INITIAL)]);
    // It cannot be seen before it was called.
    bad(&[(1, Call::Write(1), 50, 55, Outcome::Unknown), read(10, 1)]);
}

#[test]
fn a_failed_write_is_never_seen() {
    let write = (1, Call::Write(1), 0, 5, Outcome::Failed);
    good(&[write, (2, Call::Read, 10, 20, told(INITIAL))]);
    bad(&[write, (2, Call::Read, 10, 20, told(1))]);
    bad(&[(2, Call::Read, 10, 20, told(9))]);
}

#[test]
fn one_of_two_compare_and_sets_matches() {
    let race = |first, second| {
        [
            (1, set(INITIAL, 1), 0, 10, matched(first)),
            (2, set(INITIAL, 2), 0, 10, matched(second)),
        ]
    };
    good(&race(true, false));
    good(&race(false, true));
    bad(&race(true, true));
    bad(&race(false, false));
}

#[test]
fn an_unknown_compare_and_set_explains_a_mismatch() {
    let unknown = (1, set(INITIAL, 1), 0, 10, Outcome::Unknown);
    good(&[unknown, (2, set(INITIAL, 2), 20, 30, matched(false))]);
    good(&[unknown, (2, set(INITIAL, 2), 20, 30, matched(true))]);
    bad(&[
        unknown,
        (2, set(INITIAL, 2), 20, 30, matched(true)),
        (2, Call::Read, 40, 50, told(1)),
    ]);
}

#[test]
fn swaps_form_a_chain() {
    let chain = |last| {
        [
            (1, Call::Swap(1), 0, 10, told(INITIAL)),
            (2, Call::Swap(2), 0, 10, told(1)),
            (3, Call::Swap(3), 20, 30, told(last)),
        ]
    };
    good(&chain(2));
    bad(&chain(1));
    // Applied twice: both swaps see the same value.
    bad(&chain(INITIAL));
}

#[test]
fn an_exhausted_budget_is_no_verdict() {
    let drawn: Vec<Drawn> = (1..8).map(|v| (v, Call::Write(v), 0, 10, DONE)).collect();
    let history = record(&[&drawn[..], &[(9, Call::Read, 20, 30, told(INITIAL))]].concat());
    assert_eq!(search(history.operations(), 10), Verdict::Undecided);
    assert!(matches!(
        search(history.operations(), 100_000),
        Verdict::Violation(_)
    ));
}

/// The memory of what was tried must tell the hundredth operation from the first, though the key holds the same.
#[test]
fn one_value_may_be_written_again_and_again() {
    let write = |i: u64| (1, Call::Write(1), 10 * i, 10 * i + 5, DONE);
    let mut drawn: Vec<Drawn> = (0..300).map(write).collect();
    drawn.push((2, Call::Read, 3_000, 3_005, told(1)));
    assert_eq!(verdict(&record(&drawn)), Ok(()));
    drawn.push((2, Call::Read, 3_010, 3_015, told(INITIAL)));
    assert!(verdict(&record(&drawn)).is_err());
}

#[test]
fn keys_are_judged_apart() {
    let mut history = History::new();
    for key in 0..3 {
        let write = history.invoke(key, 1, key, Call::Write(key + 1));
        history.ok(write, key, Answer::Done);
    }
    let swap = history.invoke(5, 1, 7, Call::Swap(1));
    history.ok(swap, 6, Answer::Value(INITIAL));
    let unanswered = history.invoke(6, 1, 8, Call::Read);
    history.unknown(unanswered, 9);
    let checked = Checked {
        by_zones: 4,
        by_search: 1,
        undecided: 0,
    };
    assert_eq!(history.check(), Ok(checked));
    assert_eq!((history.totals().ok, history.totals().unknown), (4, 1));
    let read = history.invoke(10, 2, 2, Call::Read);
    history.ok(read, 11, Answer::Value(1));
    assert_eq!(history.check().unwrap_err().key, 2);
}

#[test]
#[should_panic(expected = "already recorded")]
fn time_does_not_go_back() {
    let mut history = History::new();
    history.invoke(5, 1, 1, Call::Read);
    history.invoke(4, 1, 1, Call::Read);
}

#[test]
#[should_panic(expected = "ended before")]
fn an_operation_ends_once() {
    let mut history = History::new();
    let read = history.invoke(5, 1, 1, Call::Read);
    history.failed(read, 6);
    history.ok(read, 7, Answer::Value(1));
}

/// A history of a register with an order behind it: a hundred thousand operations of eight clients.
#[test]
fn a_long_history_is_checked() {
    let mut drawn = Vec::new();
    let mut last = INITIAL;
    for i in 0..100_000_u64 {
        // Takes effect at 10 * i; the calls around it overlap.
        let (start, end) = (10 * i + 100 - i * 7 % 80, 10 * i + 100 + i * 11 % 80);
        if i % 3 == 0 {
            last = i + 1;
            drawn.push((i % 8, Call::Write(last), start, end, DONE));
        } else {
            drawn.push((i % 8, Call::Read, start, end, told(last)));
        }
    }
    assert_eq!(zones(record(&drawn).operations()), Ok(()));
    let Outcome::Ok(answer) = &mut drawn[77_000].4 else {
        unreachable!("all are answered");
    };
    *answer = Answer::Value(1);
    let violation = zones(record(&drawn).operations()).unwrap_err();
    assert!(violation.operations.len() <= 6, "{violation}");
}

/// Calls, times and outcomes of a tiny history, the outcome often wrong.
fn tiny(any: bool) -> impl Strategy<Value = Vec<Drawn>> {
    let one = (0..7_u8, 0..4_u64, 0..4_u64, 0..12_u64, 0..8_u64, 0..8_u8);
    prop::collection::vec(one, 1..7).prop_map(move |all| {
        let mut drawn = Vec::new();
        for (i, (kind, a, b, start, length, end)) in all.into_iter().enumerate() {
            let new = if any { a } else { i as u64 + 1 };
            let seen = if any { b } else { b * 2 };
            let (call, answer) = match kind {
                0..3 => (Call::Read, Answer::Value(seen)),
                3 if any => (set(b, a), Answer::Matched(true)),
                4 if any => (set(b, a), Answer::Matched(false)),
                5 if any => (Call::Swap(a), Answer::Value(b)),
                _ => (Call::Write(new), Answer::Done),
            };
            let outcome = match end {
                0 => Outcome::Failed,
                1 | 2 => Outcome::Unknown,
                _ => Outcome::Ok(answer),
            };
            drawn.push((i as u64, call, start, start + length, outcome));
        }
        drawn
    })
}

/// A history made from an order: each operation takes effect at its turn, within its time. Some outcomes are lost,
/// some calls never happen.
fn made(steps: &[(u8, u64, u64, u8)], only_registers: bool) -> Vec<Drawn> {
    let mut value = INITIAL;
    let mut drawn = Vec::new();
    for (i, &(kind, before, after, fate)) in steps.iter().enumerate() {
        let new = i as u64 + 1;
        let moment = 10 * new + 50;
        let call = match kind {
            0 if !only_registers => Call::Swap(new),
            1 if !only_registers => set(value, new),
            2 if !only_registers => set(value + 1, new),
            0..5 => Call::Write(new),
            _ => Call::Read,
        };
        let is_failed = fate == 0;
        let answer = match call {
            Call::Write(_) => Answer::Done,
            Call::Read | Call::Swap(_) => Answer::Value(value),
            Call::CompareAndSet { expect, .. } => Answer::Matched(expect == value),
        };
        value = match call {
            _ if is_failed => value,
            Call::Write(new) | Call::Swap(new) => new,
            Call::CompareAndSet { expect, new } if expect == value => new,
            Call::CompareAndSet { .. } | Call::Read => value,
        };
        let outcome = match fate {
            0 => Outcome::Failed,
            1 => Outcome::Unknown,
            _ => Outcome::Ok(answer),
        };
        let (start, end) = (moment - before, moment + after);
        drawn.push((i as u64 % 5, call, start, end, outcome));
    }
    drawn
}

fn steps(most: usize) -> impl Strategy<Value = Vec<(u8, u64, u64, u8)>> {
    prop::collection::vec((0..10_u8, 0..40_u64, 0..40_u64, 0..12_u8), 2..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn the_zones_agree_with_every_order(drawn in tiny(false)) {
        let history = record(&drawn);
        let expected = has_order_naively(history.operations());
        prop_assert_eq!(zones(history.operations()).is_ok(), expected);
        prop_assert_eq!(verdict(&history).is_ok(), expected);
    }

    #[test]
    fn the_search_agrees_with_every_order(drawn in tiny(true)) {
        let history = record(&drawn);
        prop_assert_eq!(verdict(&history).is_ok(), has_order_naively(history.operations()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_was_made_from_an_order_is_linearizable(steps in steps(80), only_registers in any::<bool>()) {
        prop_assert_eq!(verdict(&record(&made(&steps, only_registers))), Ok(()));
    }

    /// One answer is changed. Where that cannot be told, nothing is asked but that the checkers agree; where a read
    /// goes back behind a write that it must have seen, it is found, and explained.
    #[test]
    fn one_wrong_answer_is_found(steps in steps(60), at in any::<prop::sample::Index>(), seen in any::<prop::sample::Index>()) {
        let mut drawn = made(&steps, true);
        let reads: Vec<usize> = (0..drawn.len())
            .filter(|&i| matches!((drawn[i].1, drawn[i].4), (Call::Read, Outcome::Ok(_)))).collect();
        prop_assume!(!reads.is_empty());
        let at = reads[at.index(reads.len())];
        let wrong = seen.index(drawn.len() + 1) as u64;
        drawn[at].4 = told(wrong);
        let history = record(&drawn);
        let found = verdict(&history);
        let write_of = |v: u64| drawn.iter().find(|d| d.1 == Call::Write(v));
        let read = drawn[at];
        let is_lost = |d: &Drawn| d.4 != DONE;
        let must_be_wrong = match write_of(wrong) {
            None if wrong != INITIAL => true,
            Some(write) if write.4 == Outcome::Failed || write.2 > read.3 => true,
            before => drawn.iter().any(|d| matches!(d.1, Call::Write(v) if v != wrong) && !is_lost(d)
                && d.3 < read.2 && before.is_none_or(|w| !is_lost(w) && w.3 < d.2)),
        };
        prop_assert!(!must_be_wrong || found.is_err());
        if let Err(violation) = found {
            // What is shown is itself a contradiction, and the zones need six operations at the most.
            let zoned = zones(history.operations()).unwrap_err();
            prop_assert!(zoned.operations.len() <= 6);
            prop_assert!(matches!(search(&zoned.operations, 1_000_000), Verdict::Violation(_)), "{}", zoned);
            prop_assert!(violation.operations.len() <= 6, "{}", violation);
        }
    }
}

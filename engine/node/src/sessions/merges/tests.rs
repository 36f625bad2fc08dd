//! What merges may do to a group, entry by entry. Each test says in its name which rule it is about.

use super::*;

const SOURCE: GroupId = GroupId(7);
const LIFE: Life = Life::FIRST;

fn open(number: u64) -> MergeCommand<'static> {
    MergeCommand::Open {
        source: SOURCE,
        life: LIFE,
        number,
        argument: b"why",
    }
}

fn go(attempt: u64, step: Step<'static>) -> MergeCommand<'static> {
    MergeCommand::Go {
        source: SOURCE,
        life: LIFE,
        target_life: LIFE,
        attempt: Index(attempt),
        step,
    }
}

fn part(attempt: u64, stream: u64, offset: u64, bytes: &'static [u8]) -> MergeCommand<'static> {
    go(
        attempt,
        Step::Part {
            stream,
            offset,
            bytes,
        },
    )
}

fn take(attempt: u64, stream: u64, state: &[u8]) -> MergeCommand<'static> {
    go(
        attempt,
        Step::Take {
            stream,
            length: state.len() as u64,
            crc: crc32c::crc32c(state),
        },
    )
}

fn answer(merges: &mut Merges, index: u64, command: MergeCommand<'_>) -> MergeAnswer {
    match merges.decide(LIFE, Index(index), &command) {
        Decision::Answer(answer) => answer,
        Decision::Take(whole) => merges.note_merged(&whole, None, Index(index)),
    }
}

fn opened(attempt: u64) -> MergeAnswer {
    MergeAnswer::Opened {
        attempt: Index(attempt),
        life: LIFE,
        is_welcome: true,
    }
}

#[test]
fn a_whole_state_is_taken_once_and_that_is_remembered() {
    let mut merges = Merges::default();
    assert_eq!(answer(&mut merges, 3, open(1)), opened(3));
    assert_eq!(answer(&mut merges, 4, open(1)), opened(3), "it came again");
    let gathered = |bytes| MergeAnswer::Gathered { bytes };
    assert_eq!(answer(&mut merges, 5, part(3, 8, 0, b"abc")), gathered(3));
    assert_eq!(answer(&mut merges, 6, part(3, 8, 0, b"abc")), gathered(3));
    assert_eq!(answer(&mut merges, 7, part(3, 8, 5, b"d")), gathered(3));
    assert_eq!(answer(&mut merges, 8, part(3, 9, 3, b"d")), gathered(0));
    assert_eq!(answer(&mut merges, 9, take(3, 8, b"abcd")), gathered(0));
    assert_eq!(answer(&mut merges, 10, take(3, 8, b"abd")), gathered(0));
    assert_eq!(answer(&mut merges, 11, part(3, 8, 3, b"d")), gathered(4));
    let mut bytes = Vec::new();
    merges.encode(&mut bytes);
    assert_eq!(Merges::decode(&bytes), Some(merges.clone()));
    let merged = MergeAnswer::Merged { at: Index(12) };
    assert_eq!(answer(&mut merges, 12, take(3, 8, b"abcd")), merged);
    assert_eq!(answer(&mut merges, 13, take(3, 8, b"abcd")), merged);
    assert_eq!(answer(&mut merges, 14, go(3, Step::Refuse)), merged);
    assert_eq!(answer(&mut merges, 15, open(2)), merged);
    // A part that is late can't begin it again.
    assert_eq!(answer(&mut merges, 16, part(3, 8, 0, b"abcd")), merged);
    let mut bytes = Vec::new();
    merges.encode(&mut bytes);
    assert_eq!(Merges::decode(&bytes), Some(merges));
}

#[test]
fn another_life_of_a_source_makes_only_its_own_past_forgotten() {
    let mut merges = Merges::default();
    let refused = MergeAnswer::Refused;
    assert_eq!(answer(&mut merges, 3, open(1)), opened(3));
    answer(&mut merges, 4, take(3, 0, b""));
    // Another group's attempt, which a split ends.
    let other = MergeCommand::Open {
        source: GroupId(70),
        life: LIFE,
        number: 1,
        argument: b"",
    };
    assert_eq!(answer(&mut merges, 5, other), opened(5));
    merges.note_split(Index(6));
    let later = Life::new(LIFE.get() + 1).unwrap();
    let again = MergeCommand::Open {
        source: SOURCE,
        life: later,
        number: 1,
        argument: b"",
    };
    assert_eq!(answer(&mut merges, 7, again), opened(7));
    let whole = Whole {
        source: SOURCE,
        life: later,
        attempt: Index(7),
        argument: Vec::new(),
        state: Vec::new(),
    };
    merges.note_merged(&whole, None, Index(8));
    let of_other = MergeCommand::Go {
        source: GroupId(70),
        life: LIFE,
        target_life: LIFE,
        attempt: Index(5),
        step: Step::Refuse,
    };
    assert_eq!(answer(&mut merges, 9, of_other), refused);
    let forgotten = answer(&mut merges, 10, go(3, Step::Refuse));
    assert_eq!(forgotten, MergeAnswer::Forgotten);
}

#[test]
fn an_abandoned_attempt_makes_room_for_another() {
    static STATE: [u8; MAX_STATE as usize] = [0; MAX_STATE as usize];
    let mut merges = Merges::default();
    assert_eq!(answer(&mut merges, 3, open(1)), opened(3));
    let bytes = MAX_STATE;
    let all = MergeAnswer::Gathered { bytes };
    assert_eq!(answer(&mut merges, 4, part(3, 8, 0, &STATE)), all);
    let other = |step| MergeCommand::Go {
        source: GroupId(70),
        life: LIFE,
        target_life: LIFE,
        attempt: Index(5),
        step,
    };
    let opening = MergeCommand::Open {
        source: GroupId(70),
        life: LIFE,
        number: 1,
        argument: b"",
    };
    assert_eq!(answer(&mut merges, 5, opening), opened(5));
    let first = other(Step::Part {
        stream: 1,
        offset: 0,
        bytes: b"abc",
    });
    let gathered = MergeAnswer::Gathered { bytes: 3 };
    assert_eq!(answer(&mut merges, 6, first), gathered);
    let refused = MergeAnswer::Refused;
    assert_eq!(answer(&mut merges, 7, take(3, 8, &STATE)), refused);
    let more = other(Step::Part {
        stream: 1,
        offset: 3,
        bytes: &STATE,
    });
    assert_eq!(answer(&mut merges, 8, more), refused);
}

#[test]
fn what_was_refused_never_succeeds() {
    let mut merges = Merges::default();
    answer(&mut merges, 3, open(1));
    answer(&mut merges, 4, part(3, 8, 0, b"abc"));
    let refused = MergeAnswer::Refused;
    assert_eq!(answer(&mut merges, 5, go(3, Step::Refuse)), refused);
    assert_eq!(answer(&mut merges, 6, part(3, 8, 0, b"abc")), refused);
    assert_eq!(answer(&mut merges, 7, take(3, 8, b"abc")), refused);
    // Not even when the same is asked for again: that is another attempt.
    assert_eq!(answer(&mut merges, 8, open(1)), opened(8));
    assert_eq!(answer(&mut merges, 9, take(3, 8, b"")), refused);
    // One that is split, or is to be merged itself, takes nothing.
    merges.note_split(Index(9));
    assert_eq!(answer(&mut merges, 10, go(8, Step::Refuse)), refused);
    assert_eq!(answer(&mut merges, 11, open(2)), opened(11));
    let freeze = MergeCommand::Freeze {
        target: GroupId(9),
        life: LIFE,
        attempt: Index(70),
    };
    assert_eq!(answer(&mut merges, 12, freeze), MergeAnswer::Done);
    assert_eq!(answer(&mut merges, 13, take(11, 0, b"")), refused);
    let into = GroupId(9);
    assert_eq!(
        answer(&mut merges, 14, open(3)),
        MergeAnswer::Frozen { into }
    );
    assert_eq!(answer(&mut merges, 15, freeze), refused);
    // Only the end of the attempt that froze it lets it go on.
    let thaw = |target, life, attempt| MergeCommand::Thaw {
        target: GroupId(target),
        life,
        attempt: Index(attempt),
    };
    // An earlier attempt, at another target, may have had the same name; a leader may not have applied yet that it is over.
    for other in [
        thaw(9, LIFE, 69),
        thaw(8, LIFE, 70),
        thaw(9, LIFE.next(), 70),
    ] {
        answer(&mut merges, 16, other);
        assert_eq!(merges.frozen().map(|frozen| frozen.at), Some(Index(12)));
    }
    answer(&mut merges, 17, thaw(9, LIFE, 70));
    merges.split_at = Index::ZERO;
    assert!(merges.is_empty());
}

/// Before, nobody could say it any more, and the source stayed frozen.
#[test]
fn who_takes_a_group_says_what_became_of_those_that_were_to_be_merged_into_it() {
    let (target, heir) = (GroupId(9), GroupId(10));
    let mut merges = Merges::default();
    answer(&mut merges, 3, open(1));
    answer(&mut merges, 4, take(3, 0, b""));
    answer(&mut merges, 5, open(2));
    let whole = |source| Whole {
        source,
        life: LIFE,
        attempt: Index(70),
        argument: Vec::new(),
        state: Vec::new(),
    };
    let mut first = Merges::default();
    first.note_merged(&whole(target), merges.of_source().as_ref(), Index(80));
    let mut second = Merges::default();
    second.note_merged(&whole(heir), first.of_source().as_ref(), Index(90));
    let mut bytes = Vec::new();
    second.encode(&mut bytes);
    assert_eq!(Merges::decode(&bytes), Some(second.clone()));
    // Whoever looks for the target finds its way here, also after a restart.
    let named: BTreeSet<GroupId> = second.merged().map(|(group, _)| group).collect();
    assert_eq!(named, [SOURCE, target, heir].into());
    for mut known in [first, second] {
        let mut ask = |source, target_life, attempt| {
            let command = MergeCommand::AskHeir {
                target,
                target_life,
                source,
                life: LIFE,
                attempt: Index(attempt),
            };
            answer(&mut known, 99, command)
        };
        let merged = MergeAnswer::Merged { at: Index(4) };
        assert_eq!(ask(SOURCE, LIFE, 3), merged);
        assert_eq!(ask(SOURCE, LIFE, 5), MergeAnswer::Refused);
        assert_eq!(ask(GroupId(70), LIFE, 6), MergeAnswer::Refused);
        assert_eq!(ask(SOURCE, LIFE.next(), 3), MergeAnswer::Forgotten);
    }
}

/// Before, a group with the id of one that was merged elsewhere was taken for that one.
#[test]
fn a_group_that_begins_with_an_exported_snapshot_knows_what_counts_for_its_sessions_alone() {
    let mut merges = Merges::default();
    answer(&mut merges, 3, open(1));
    answer(&mut merges, 4, take(3, 0, b""));
    answer(&mut merges, 5, open(2));
    assert_eq!(merges.of_import(), None);
    merges.spend(30);
    merges.note_split(Index(6));
    answer(&mut merges, 7, open(3));
    let mut begun = merges.of_import().expect("sessions that are spent");
    assert_eq!(begun.merged().count(), 0);
    assert!(begun.is_spent(30) && begun.split_at() == Index(6));
    // The source is another one here, and is asked for as if it were the first.
    assert_eq!(answer(&mut begun, 8, open(4)), opened(8));
}

/// Before, two groups that were to take each other could both end.
#[test]
fn a_group_is_not_frozen_for_one_that_is_a_part_of_it() {
    let mut merges = Merges::default();
    answer(&mut merges, 3, open(1));
    answer(&mut merges, 4, take(3, 0, b""));
    let freeze = |target, life| MergeCommand::Freeze {
        target,
        life,
        attempt: Index(70),
    };
    let refused = MergeAnswer::Refused;
    assert_eq!(answer(&mut merges, 5, freeze(SOURCE, LIFE)), refused);
    let later = freeze(SOURCE, LIFE.next());
    assert_eq!(answer(&mut merges, 6, later), MergeAnswer::Done);
}

#[test]
fn another_life_of_the_target_decides_nothing() {
    let mut merges = Merges::default();
    answer(&mut merges, 3, open(1));
    let later = LIFE.next();
    let decided = merges.decide(later, Index(4), &go(3, Step::Refuse));
    assert_eq!(decided, Decision::Answer(MergeAnswer::OtherLife));
}

#[test]
fn few_are_kept_and_what_is_forgotten_is_not_called_refused() {
    let mut merges = Merges::default();
    let mut index = 0;
    for source in 0..MOST_MERGED as u64 + 2 {
        index += 2;
        let open = MergeCommand::Open {
            source: GroupId(source),
            life: LIFE,
            number: 1,
            argument: b"",
        };
        answer(&mut merges, index, open);
        let take = MergeCommand::Go {
            source: GroupId(source),
            life: LIFE,
            target_life: LIFE,
            attempt: Index(index),
            step: Step::Take {
                stream: 0,
                length: 0,
                crc: 0,
            },
        };
        let merged = answer(&mut merges, index + 1, take);
        assert!(matches!(merged, MergeAnswer::Merged { .. }), "{merged:?}");
    }
    assert_eq!(merges.merged().count(), MOST_MERGED);
    let mut ask = |source, attempt| {
        let ask = MergeCommand::Go {
            source: GroupId(source),
            life: LIFE,
            target_life: LIFE,
            attempt: Index(attempt),
            step: Step::Refuse,
        };
        answer(&mut merges, 9_999, ask)
    };
    assert_eq!(ask(1, 4), MergeAnswer::Forgotten);
    assert_eq!(ask(2, 6), MergeAnswer::Merged { at: Index(7) });
    assert_eq!(ask(2, 5000), MergeAnswer::Refused);
    for number in 0..MOST_OPEN as u64 + 2 {
        let open = MergeCommand::Open {
            source: GroupId(90_000 + number),
            life: LIFE,
            number: 1,
            argument: b"",
        };
        answer(&mut merges, 10_000 + number, open);
    }
    assert_eq!(merges.open.len(), MOST_OPEN);
}

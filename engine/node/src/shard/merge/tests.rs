//! A node alone, part by part, with a group that is being merged.

use super::super::split::tests::Alone;
use super::super::tests::GROUP;
use super::*;

#[test]
fn a_state_of_an_earlier_freeze_is_not_given_away() {
    // Attempts at two targets may have the same name.
    let attempt = Index(5);
    let entry = |target, is_freeze| {
        let (target, life) = (GroupId(target), Life::FIRST);
        match is_freeze {
            true => MergeCommand::Freeze {
                target,
                life,
                attempt,
            },
            false => MergeCommand::Thaw {
                target,
                life,
                attempt,
            },
        }
        .encode()
    };
    let entries = [entry(20, true), entry(20, false), entry(21, true)];
    let [first, thaw, second] = entries.each_ref().map(|entry| &entry[..]);
    let kind = EntryKind::Merge;
    let mut alone = Alone::with(&[(kind, first), (kind, thaw), (kind, second)]);
    alone.elect();
    alone.settle();
    let frozen = alone.shard.merges.frozen[&GROUP];
    assert_eq!((frozen.target, frozen.at), (GroupId(21), Index(3)));
    let drive = alone.shard.merges.drives.get_mut(&GROUP).unwrap();
    drive.stage = Stage::Frozen(frozen, Work::Preparing);
    let is_preparing = |alone: &Alone| {
        let stage = &alone.shard.merges.drives[&GROUP].stage;
        matches!(stage, Stage::Frozen(_, Work::Preparing))
    };
    let earlier = [
        Frozen {
            at: Index(1),
            ..frozen
        },
        Frozen {
            target: GroupId(20),
            ..frozen
        },
    ];
    for given in earlier {
        let state = Ok(Bytes::from_static(b"what it had then"));
        alone.shard.state_ready(GROUP, Life::FIRST, given, state);
        assert!(is_preparing(&alone), "{given:?}");
    }
    let state = Ok(Bytes::from_static(b"what it has"));
    alone.shard.state_ready(GROUP, Life::FIRST, frozen, state);
    assert!(!is_preparing(&alone));
}

#[test]
fn only_so_many_merges_hold_a_state_at_a_time() {
    let (target, life, attempt) = (GroupId(20), Life::FIRST, Index(5));
    let freeze = MergeCommand::Freeze {
        target,
        life,
        attempt,
    };
    let mut alone = Alone::with(&[(EntryKind::Merge, &freeze.encode()[..])]);
    alone.elect();
    alone.settle();
    let Stage::Frozen(frozen, _) = alone.shard.merges.drives[&GROUP].stage else {
        panic!("it is frozen");
    };
    let holding = |alone: &mut Alone, others: u64| {
        let stages = [
            Stage::Opening { number: 1 },
            Stage::Freezing { attempt },
            Stage::Frozen(frozen, Work::Preparing),
            Stage::Frozen(
                frozen,
                Work::Sending {
                    state: Bytes::new(),
                    stream: 1,
                    offset: 0,
                },
            ),
        ];
        let merges = &mut alone.shard.merges;
        merges.drives.clear();
        for (source, stage) in (100..100 + others).map(GroupId).zip(stages) {
            merges.drives.insert(source, drive(stage));
        }
        // These hold nothing.
        for (source, work) in [(200, Work::Queued), (201, Work::Refusing)] {
            let stage = Stage::Frozen(frozen, work);
            merges.drives.insert(GroupId(source), drive(stage));
        }
        merges.has_room()
    };
    assert!(holding(&mut alone, MOST_AT_ONCE as u64 - 1));
    assert!(!holding(&mut alone, MOST_AT_ONCE as u64));
    // A frozen group that has come here waits as long as there is no room, and goes on then.
    let look = |alone: &mut Alone| {
        let slot = alone.shard.slot(GROUP).expect("it is here");
        let queued = Drive {
            term: alone.shard.replicas[slot as usize].group.term(),
            ..drive(Stage::Frozen(frozen, Work::Queued))
        };
        alone.shard.drive_merge(GROUP, queued, true);
        let stage = &alone.shard.merges.drives[&GROUP].stage;
        matches!(stage, Stage::Frozen(_, Work::Preparing))
    };
    assert!(!look(&mut alone));
    holding(&mut alone, MOST_AT_ONCE as u64 - 1);
    assert!(look(&mut alone));
}

fn drive(stage: Stage) -> Drive {
    Drive {
        life: Life::FIRST,
        term: Term::ZERO,
        target: GroupId(20),
        argument: Bytes::new(),
        reply: None,
        stage,
        asked: 0,
        look_at: None,
        pause: PAUSE.0,
        until: Tick(u64::MAX),
        via: None,
        heirs: Vec::new(),
        named_by: None,
        part: 1,
        why: String::new(),
        is_told: false,
    }
}

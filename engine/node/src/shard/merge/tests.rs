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

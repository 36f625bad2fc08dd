//! What must not end before something else has: whoever asks is told so, and nothing has happened.

use bytes::Bytes;
use std::time::Duration;

use polyraft_raft::{Index, LogPosition, NodeId, Term};
use polyraft_storage::{EntryKind, SnapshotFile, SnapshotMeta};

use super::super::coordinate::tests::others_answer;
use super::super::split::tests::{Alone, CHILD};
use super::super::tests::GROUP;
use super::*;
use crate::event::{CreateOrigin, Members, ranges};
use crate::merge::MergeCommand;

const TARGET: GroupId = GroupId(12);

/// What a caller is told who wants groups to end.
fn destroy(alone: &mut Alone, groups: &[GroupId]) -> Result<(), Error> {
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    let groups = ranges(groups.iter().map(|group| group.0));
    for member in [2, 3].map(NodeId) {
        alone.shard.home().liveness.add(NodeId(1), member);
    }
    alone.shard.destroy_everywhere(groups, reply);
    settle_with_others(alone);
    answer.try_recv().expect("an answer")
}

/// The other members answer whatever they are asked, and have nothing.
fn settle_with_others(alone: &mut Alone) {
    alone.settle();
    while others_answer(&mut alone.shard) {
        alone.settle();
    }
}

/// Which group needs the one that was to end.
fn needed(alone: &mut Alone, group: GroupId) -> GroupId {
    let life = alone.shard.life_of(group).expect("it is there");
    match destroy(alone, &[group]) {
        Err(error @ Error::Needed { group: of, by, .. }) => {
            assert!(error.is_retryable() && !error.may_have_committed());
            assert_eq!((of, alone.shard.life_of(group)), (group, Some(life)));
            by
        }
        other => panic!("{other:?}"),
    }
}

fn with_child() -> Alone {
    let mut alone = Alone::with_split(b"part");
    alone.elect();
    alone.settle();
    assert!(alone.shard.life_of(CHILD).is_some());
    alone
}

#[test]
fn a_group_does_not_end_before_a_majority_has_what_was_split_off() {
    let mut alone = with_child();
    for has_committed in [false, true] {
        assert_eq!(needed(&mut alone, GROUP), CHILD);
        alone.lead_child(has_committed);
    }
    destroy(&mut alone, &[GROUP]).unwrap();
    assert_eq!(alone.shard.life_of(GROUP), None);
    assert!(alone.shard.life_of(CHILD).is_some());

    // Whoever wants neither of them waits for nothing.
    let mut alone = with_child();
    destroy(&mut alone, &[GROUP, CHILD]).unwrap();
    let mut alone = with_child();
    destroy(&mut alone, &[CHILD]).unwrap();
    destroy(&mut alone, &[GROUP]).unwrap();
    assert_eq!(alone.shard.life_of(GROUP), None);
}

/// A group that takes these entries, and another one without a leader.
fn with_target(entries: &[(EntryKind, &[u8])]) -> Alone {
    let mut alone = Alone::with(entries);
    let origin = CreateOrigin {
        node: NodeId(1),
        request: 0,
    };
    let lives = vec![(TARGET.0..TARGET.0 + 1, Life::FIRST)];
    let members = [1, 2, 3].map(NodeId);
    alone.shard.create(origin, &lives, &members);
    alone.elect();
    alone.settle();
    alone
}

fn freeze(life: Life) -> Bytes {
    let command = MergeCommand::Freeze {
        target: TARGET,
        life,
        attempt: Index(3),
    };
    command.encode()
}

#[test]
fn a_group_does_not_end_before_what_is_being_merged_into_it() {
    let frozen = || with_target(&[(EntryKind::Merge, &freeze(Life::FIRST))]);
    let mut alone = frozen();
    assert_eq!(needed(&mut alone, TARGET), GROUP);
    // It can't be had any more: then the target need not stay for it.
    destroy(&mut alone, &[GROUP]).unwrap();
    destroy(&mut alone, &[TARGET]).unwrap();
    assert_eq!(alone.shard.life_of(TARGET), None);
    // What is over stays over, whoever is frozen.
    let mut alone = frozen();
    alone
        .shard
        .end_replica(TARGET, Tombstone::destroyed(Life::FIRST));
    alone.settle();
    destroy(&mut alone, &[TARGET]).unwrap();

    let mut alone = frozen();
    destroy(&mut alone, &[TARGET, GROUP]).unwrap();
    assert_eq!(alone.shard.life_of(GROUP), None);
}

/// Before, it was frozen for as long as a snapshot takes, each time that somebody asked.
#[test]
fn a_group_whose_snapshot_is_too_large_is_not_frozen_to_be_merged() {
    for (bytes, is_refused) in [(66 << 20, true), (64 << 20, false)] {
        let mut alone = with_target(&[(EntryKind::Normal, b"before")]);
        let meta = SnapshotMeta {
            group: GROUP,
            incarnation: 0,
            last: LogPosition {
                term: Term(1),
                index: Index(1),
            },
            configuration: Configuration::simple([NodeId(1)]),
        };
        let file = SnapshotFile {
            meta,
            bytes,
            checksum: 5,
        };
        alone.shard.snapshots.keep_newest(&file);
        let wanted = crate::shard::MergeEvent::Asked {
            source: GROUP,
            target: TARGET,
            argument: Bytes::new(),
            reply: alone.queue.reply_to(1),
        };
        alone.shard.merge_event(wanted);
        let mut done = Vec::new();
        alone.queue.drain(&mut done, Duration::ZERO);
        assert_eq!(!alone.shard.merges.is_busy(GROUP), is_refused);
        let refusal = done.first().map(|done| &done.result);
        let says_why =
            matches!(refusal, Some(Err(Error::Merge { why })) if why.contains("snapshot"));
        assert_eq!(says_why, is_refused, "{refusal:?}");
    }
}

#[test]
fn a_group_does_not_end_while_a_leader_is_about_to_freeze_another_for_it() {
    let mut alone = with_target(&[(EntryKind::Normal, b"before")]);
    let reply = alone.queue.reply_to(1);
    let wanted = crate::shard::MergeEvent::Asked {
        source: GROUP,
        target: TARGET,
        argument: Bytes::new(),
        reply,
    };
    alone.shard.merge_event(wanted);
    assert_eq!(needed(&mut alone, TARGET), GROUP);
    // The attempt comes to nothing, and is forgotten.
    alone.pass(alone.shard.limits.proposal_timeout);
    while alone.answers() == 0 {
        alone.settle();
    }
    destroy(&mut alone, &[TARGET]).unwrap();
    assert!(alone.shard.life_of(GROUP).is_some());
}

/// Whoever drives a merge when its source ends may not know of all that happened: others may have made it.
#[test]
fn who_waits_for_a_merge_whose_source_ends_is_not_told_that_nothing_happened() {
    for is_known in [false, true] {
        let mut alone = with_target(&[(EntryKind::Merge, &freeze(Life::FIRST))]);
        let wanted = crate::shard::MergeEvent::Asked {
            source: GROUP,
            target: TARGET,
            argument: Bytes::new(),
            reply: alone.queue.reply_to(1),
        };
        alone.shard.merge_event(wanted);
        if is_known {
            let directory = &alone.shard.shared.directory;
            directory.note_merged(GROUP, Life::FIRST, TARGET);
        }
        let over = Tombstone::destroyed(Life::FIRST);
        alone.shard.end_replica(GROUP, over);
        let mut done = Vec::new();
        alone.queue.drain(&mut done, Duration::ZERO);
        let answer = done.first().map(|done| &done.result);
        match is_known {
            true => {
                assert!(matches!(answer, Some(Err(Error::Merging { into })) if *into == TARGET))
            }
            false => assert!(
                matches!(answer, Some(Err(Error::Unknown { .. }))),
                "{answer:?}"
            ),
        }
    }
}

/// A node that hosts no replica of the heir does not know its life, nor that of a target.
#[test]
fn a_question_about_a_merge_is_for_whatever_life_is_here() {
    let mut alone = Alone::with(&[]);
    let life = Life::new(3).expect("a number");
    let origin = CreateOrigin {
        node: NodeId(1),
        request: 0,
    };
    let lives = vec![(TARGET.0..TARGET.0 + 1, life)];
    alone.shard.create(origin, &lives, &[NodeId(1)]);
    alone.settle();
    let ask = MergeCommand::AskHeir {
        target: CHILD,
        target_life: Life::FIRST,
        source: GROUP,
        life: Life::FIRST,
        attempt: Index(3),
    };
    let go = MergeCommand::Go {
        source: GROUP,
        life: Life::FIRST,
        target_life: Life::FIRST,
        attempt: Index(3),
        step: crate::merge::Step::Refuse,
    };
    let mut admits = |kind, payload| {
        let record = crate::wire::Record::Forward {
            group: TARGET,
            request: 1,
            kind,
            payload,
        };
        let from = NodeId(2);
        alone.shard.admits_record(from, Life::FIRST, &record)
    };
    assert!(admits(EntryKind::Merge, ask.encode()));
    assert!(!admits(EntryKind::Merge, go.encode()));
    assert!(!admits(EntryKind::Normal, ask.encode()));
}

/// Nobody is missing among those who were asked, and a quorum of its members was not.
#[test]
fn a_group_is_not_over_while_members_that_are_no_peers_may_go_on() {
    let mut alone = with_target(&[(EntryKind::Normal, b"before")]);
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    let groups = ranges([TARGET.0]);
    alone.shard.destroy_everywhere(groups, reply);
    alone.settle();
    assert_eq!(alone.shard.life_of(TARGET), None);
    assert!(answer.try_recv().is_err());
    alone.pass(60_000_000);
    alone.settle();
    match answer.try_recv() {
        Ok(Err(Error::DestroyTimeout { missing })) => assert_eq!(missing, [2, 3].map(NodeId)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn everybody_who_wants_a_node_to_lead_nothing_is_answered() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    alone.elect();
    alone.settle();
    let [mut first, mut second, given_up] = [1_000, 50_000, 90_000].map(|within| {
        let (reply, answer) = tokio::sync::oneshot::channel();
        alone.shard.drain_asked(within, reply);
        answer
    });
    drop(given_up);
    // Nobody else could lead it.
    alone.pass(2_000);
    alone.settle();
    assert!(matches!(first.try_recv(), Ok(Ok(1))));
    assert!(second.try_recv().is_err());
    alone.pass(50_000);
    alone.settle();
    assert!(matches!(second.try_recv(), Ok(Ok(1))));
    // Nobody waits any longer.
    assert_eq!(alone.shard.leadership.deadline(), None);
}

/// What the new group says of merges is not about the old one, and the frozen one would take it for that.
#[test]
fn an_id_is_not_used_again_while_a_group_waits_for_whoever_had_it() {
    let mut alone = with_target(&[(EntryKind::Merge, &freeze(Life::FIRST))]);
    let over = Tombstone::destroyed(Life::FIRST);
    alone.shard.end_replica(TARGET, over);
    alone.settle();
    let create = |alone: &mut Alone| {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        let groups = ranges([TARGET.0]);
        let members = Members::from_slice(&[NodeId(1)]);
        alone.shard.create_everywhere(groups, members, reply);
        settle_with_others(alone);
        answer.try_recv().expect("an answer")
    };
    let refused = create(&mut alone);
    assert!(
        matches!(refused, Err(Error::Needed { group, by, .. }) if (group, by) == (TARGET, GROUP)),
        "{refused:?}"
    );
    assert_eq!(alone.shard.life_of(TARGET), None);
    destroy(&mut alone, &[GROUP]).unwrap();
    create(&mut alone).unwrap();
    assert_eq!(alone.shard.life_of(TARGET), Life::FIRST.next().into());
}

/// Whoever was removed knows of members who decide nothing any more, and may be switched off.
#[test]
fn who_was_removed_tells_only_of_those_that_go_on_without_it() {
    let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
    let simple = |ids: &[u64]| Configuration::simple(nodes(ids));
    let joint = Configuration::joint(nodes(&[4, 5]), nodes(&[1, 2, 3]), [], []);
    let node = NodeId(1);
    let after = |members: &Configuration, ending| members_after(members.clone(), ending, node);
    for members in [simple(&[1, 2, 3]), joint.clone(), simple(&[4, 5])] {
        let told = after(&members, Ending::Destroyed);
        assert_eq!(told, Some(members));
    }
    assert_eq!(after(&simple(&[1, 2, 3]), Ending::Removed), None);
    assert_eq!(after(&joint, Ending::Removed), Some(simple(&[4, 5])));
    let without = simple(&[4, 5]);
    assert_eq!(after(&without, Ending::Removed), Some(without));
}

/// Before, the first time of two was when the second end was forgotten.
#[test]
fn the_members_of_a_replica_that_ended_twice_are_kept_from_its_second_end_on() {
    let mut ends = Ends::default();
    let members = || Configuration::simple([NodeId(1)]);
    let [first, second] = [Tick(1), Tick(KEPT_FOR)];
    ends.keep_members(GROUP, Life::FIRST, members(), first);
    ends.keep_members(GROUP, Life::FIRST, members(), second);
    ends.forget_former(first.after(KEPT_FOR));
    assert!(ends.former_members(GROUP, Life::FIRST).is_some());
    ends.forget_former(second.after(KEPT_FOR));
    assert!(ends.former_members(GROUP, Life::FIRST).is_none());
}

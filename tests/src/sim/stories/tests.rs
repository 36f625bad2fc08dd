//! Rules about nodes that run: a story goes well, then something is wrong that no story could do, and the rule notices it.

use polyraft::{GroupId, Index};
use polyraft_storage::sim::Failure as DiskFailure;

use super::super::machine::{Applied, Taken};
use super::*;

const GROUP: GroupId = GroupId(1);

/// Three nodes with two groups, whose replicas are equal.
fn begun() -> Story {
    let mut story = Story::begin(3, roomy_config());
    for words in ["create 1 2 on 1 2 3 at 1", "until equal 1", "until equal 2"] {
        story.obey(words);
    }
    story
}

/// Which rule about the states of a group is broken.
fn wrong_states(story: &mut Story) -> Option<&'static str> {
    let verdict = story.world.check_states(GROUP);
    verdict.err().map(|failure| failure.checker)
}

#[test]
fn a_state_machine_that_lacks_something_at_the_end_is_noticed() {
    let mut story = begun();
    assert_eq!(wrong_states(&mut story), None);
    // As if one of them had taken what the leader began its term with, and no other one.
    let (core, _) = story.world.node_of(1).replica(GROUP).expect("it is there");
    let entry = Applied {
        node: 1,
        group: GROUP,
        life: 0,
        index: core.last().index,
        term: core.last().term,
        request: 99,
        digest: 5,
        is_refused: false,
    };
    let checks = story.world.checks[0].of(0);
    checks.applied(entry).expect("it is committed");
    assert_eq!(wrong_states(&mut story), Some("equal states"));
}

#[test]
fn a_group_that_nobody_leads_at_the_end_is_noticed() {
    let mut story = begun();
    assert_eq!(wrong_states(&mut story), None);
    let leader = story.leader_of(GROUP).expect("it has one");
    story.crash(leader);
    assert_eq!(wrong_states(&mut story), Some("one leader at the end"));
    story.obey("until led 1");
    assert_eq!(wrong_states(&mut story), None);
}

#[test]
fn a_group_that_stays_frozen_is_noticed() {
    let mut story = begun();
    let looks = |story: &mut Story, later: u64| {
        let deadline = story.world.now;
        story.world.now += later;
        let frozen = story.world.frozen_group();
        let verdict = story.world.check_frozen(frozen, deadline);
        story.world.now = deadline;
        verdict.err().map(|failure| failure.checker)
    };
    assert_eq!(looks(&mut story, 61 * SECOND), None);
    // As if it had gone elsewhere, and its replicas did not know.
    story.world.group_is_merged(Taken {
        node: 1,
        source: GROUP,
        target: GroupId(2),
        index: Index(1),
        digest: 0,
    });
    assert_eq!(looks(&mut story, 60 * SECOND), None);
    assert_eq!(looks(&mut story, 61 * SECOND), Some("merges"));
    story.obey("destroy 1 at 1");
    story.obey("until gone 1");
    assert_eq!(looks(&mut story, 61 * SECOND), None);
}

#[test]
fn a_node_that_stops_without_a_reason_is_noticed() {
    for (has_reason, broken) in [(false, Some("node health")), (true, None)] {
        let mut story = begun();
        let host = &mut story.world.hosts[1];
        host.disk.fail_writes(DiskFailure::Once);
        host.has_bad_disk = has_reason;
        story.obey("begin put a 1 in 1 at 1");
        let runs = |story: &Story| story.world.hosts[1].node.is_some();
        while story.world.failure.is_none() && runs(&story) {
            story.world.step();
        }
        assert_eq!(story.world.broken_rule(), broken);
    }
}

#[test]
fn a_node_that_cannot_be_closed_without_a_reason_is_noticed() {
    for (has_reason, broken) in [(false, Some("node health")), (true, None)] {
        let mut story = begun();
        let host = &mut story.world.hosts[1];
        host.disk.fail_syncs(DiskFailure::Once);
        host.has_bad_disk = has_reason;
        story.world.restart(1);
        assert_eq!(story.world.broken_rule(), broken);
    }
}

//! Groups that are merged while they serve, over real connections.

use std::time::Duration;

use bytes::Bytes;
use polyraft::config::ByteSize;
use polyraft::{Config, Error, GroupId, MemberChange, NodeId, ProposalNumber, Read};
use polyraft_tests::{Cluster, Ledger, small_config, until};

/// Proposes at whatever node takes it.
async fn propose(cluster: &Cluster, group: u64, payload: &str) {
    let payload = payload.to_owned();
    until("a proposal is committed", async || {
        for id in cluster.running() {
            let group = cluster.node(id).group(group);
            if group.propose(payload.clone()).await.is_ok() {
                return true;
            }
        }
        false
    })
    .await;
}

/// Waits until every node that runs has just these in a group, in any order.
async fn holds(cluster: &Cluster, group: u64, expected: &[&str]) {
    for id in cluster.running() {
        holds_on(cluster, id, group, expected).await;
    }
}

/// Waits until a node has just these in a group, in any order.
async fn holds_on(cluster: &Cluster, id: u64, group: u64, expected: &[&str]) {
    let mut expected: Vec<&[u8]> = expected.iter().map(|payload| payload.as_bytes()).collect();
    expected.sort_unstable();
    until("a replica has what it should have", async || {
        let applied = cluster.applied(id, group).await;
        let mut has: Vec<&[u8]> = applied.values().map(|payload| &payload[..]).collect();
        has.sort_unstable();
        has == expected
    })
    .await;
}

/// Waits until a node says that a group has become a part of another one.
async fn knows_what_became(cluster: &Cluster, id: u64, group: u64, into: u64) {
    let into = GroupId(into);
    let group = cluster.node(id).group(group);
    until("a node knows what became of a group", async || {
        group.propose("too late").await == Err(Error::Merging { into })
    })
    .await;
}

/// Waits until no node that runs has a replica of a group.
async fn is_gone(cluster: &Cluster, group: u64) {
    until("every replica has ended", async || {
        for id in cluster.running() {
            if cluster.node(id).group(group).status().await.is_ok() {
                return false;
            }
        }
        true
    })
    .await;
}

/// Waits until a node leads a group.
async fn lead(cluster: &Cluster, group: u64, node: u64) {
    until("the right node leads", async || {
        let leader = cluster.node(node).group(group).leader();
        if leader.is_some_and(|(leader, _)| leader.0 == node) {
            return true;
        }
        for id in cluster.running() {
            let _ = cluster
                .node(id)
                .group(group)
                .transfer_leadership(node)
                .await;
        }
        false
    })
    .await;
}

/// Groups 1 and 2 on three nodes, with some entries.
async fn two_groups(config: Config) -> Cluster {
    let cluster = Cluster::start(3, config).await;
    let created = cluster.node(1).create_groups(1..3, &[1, 2, 3]).await;
    created.unwrap();
    for (group, payload) in [(1, "a1"), (2, "b1"), (1, "a2"), (2, "b2")] {
        propose(&cluster, group, payload).await;
    }
    cluster.led(1..3).await;
    cluster
}

#[tokio::test]
async fn a_group_becomes_a_part_of_another_one() {
    let mut cluster = two_groups(small_config()).await;
    let leader = cluster.leader(1, 2);
    let source = cluster.node(leader).group(2);
    let follower = cluster.node(1 + leader % 3).group(2);
    let asked = follower.merge_into(1, Bytes::new()).await;
    assert!(
        matches!(asked, Err(Error::NotLeader { hint: Some(hint) }) if hint.0 == leader),
        "{asked:?}"
    );
    for (target, argument) in [(2, &b""[..]), (9, b""), (1, Ledger::UNWANTED)] {
        let asked = source.merge_into(target, argument).await;
        assert!(matches!(asked, Err(Error::Merge { .. })), "{asked:?}");
    }
    // Nothing has happened.
    propose(&cluster, 2, "b3").await;

    let target = source.merge_into(1, Bytes::new()).await.unwrap();
    assert_eq!(target.id(), GroupId(1));
    holds(&cluster, 1, &["a1", "a2", "b1", "b2", "b3"]).await;
    is_gone(&cluster, 2).await;
    for id in cluster.running() {
        let group = cluster.node(id).group(2);
        let into = GroupId(1);
        assert_eq!(group.propose("b4").await, Err(Error::Merging { into }));
        let read = group.read(Read::Linearizable, Bytes::new()).await;
        assert_eq!(read, Err(Error::Merging { into }));
        let again = group.merge_into(1, Bytes::new()).await;
        assert!(
            matches!(again, Err(Error::Merging { into: to }) if to == into),
            "{again:?}"
        );
        assert_eq!(group.status().await, Err(Error::Merging { into }));
    }
    propose(&cluster, 1, "b4").await;
    drop((source, follower, target));
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.open(id).await.unwrap();
    }
    cluster.led(1..2).await;
    propose(&cluster, 1, "a3").await;
    holds(&cluster, 1, &["a1", "a2", "b1", "b2", "b3", "b4", "a3"]).await;
    is_gone(&cluster, 2).await;
    // The id may be used again, by a group that has nothing.
    cluster
        .node(1)
        .create_groups(2..3, &[1, 2, 3])
        .await
        .unwrap();
    propose(&cluster, 2, "c").await;
    holds(&cluster, 2, &["c"]).await;
    cluster.merge(2, 1).await;
    let all = ["a1", "a2", "b1", "b2", "b3", "b4", "a3", "c"];
    holds(&cluster, 1, &all).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn what_was_split_is_merged_again_and_sessions_go_with_it() {
    let mut cluster = two_groups(small_config()).await;
    let leader = cluster.leader(1, 1);
    let parent = cluster.node(leader).group(1);
    let within = Duration::from_secs(20);
    let session = parent.open_session(within).await.unwrap();
    let number = |sequence| ProposalNumber {
        session: session.id(),
        sequence,
        lowest: 1,
    };
    parent.propose_numbered(number(1), "x1").await.unwrap();
    let child = parent.split(3, "x").await.unwrap();
    cluster.led(3..4).await;
    // From the split on the two sessions go their own ways.
    let first = child.propose_numbered(number(2), "x2").await.unwrap();
    let other = parent.propose_numbered(number(2), "a3").await.unwrap();
    holds(&cluster, 1, &["a1", "a2", "a3"]).await;
    holds(&cluster, 3, &["x1", "x2"]).await;

    cluster.merge(3, 1).await;
    let all = ["a1", "a2", "a3", "x1", "x2"];
    holds(&cluster, 1, &all).await;
    let moved = |sequence| ProposalNumber {
        session: session.id().merged_from(GroupId(3)),
        ..number(sequence)
    };
    let leader = cluster.leader(1, 1);
    let group = cluster.node(leader).group(1);
    assert_eq!(group.propose_numbered(moved(2), "x2").await, Ok(first));
    assert_eq!(group.propose_numbered(number(2), "a3").await, Ok(other));
    let theirs = child.resume_session(session.id(), [3], 4);
    let moved = theirs.merged_into(group.clone());
    moved.propose_as(3, "x3", within).await.unwrap();
    holds(&cluster, 1, &["a1", "a2", "a3", "x1", "x2", "x3"]).await;
    drop((parent, child, group, theirs, moved, session));
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_node_that_was_down_takes_the_merge_from_the_log_or_from_a_snapshot() {
    for keeps in [true, false] {
        let mut config = small_config();
        if !keeps {
            config.snapshot.entries = 4;
            config.snapshot.keep_entries = 0;
        }
        let mut cluster = two_groups(config).await;
        cluster.agree(2, 2).await;
        cluster.stop(3).await;
        // A minority may be down.
        cluster.merge(2, 1).await;
        let mut all = vec!["a1", "a2", "b1", "b2"];
        for payload in ["a3", "a4", "a5", "a6", "a7"] {
            propose(&cluster, 1, payload).await;
            all.push(payload);
        }
        cluster.open(3).await.unwrap();
        holds(&cluster, 1, &all).await;
        // It learns that the group has ended, and says which one it was merged into.
        is_gone(&cluster, 2).await;
        let asked = cluster.node(3).group(2).propose("b3").await;
        assert_eq!(asked, Err(Error::Merging { into: GroupId(1) }));
        cluster.stop(1).await;
        propose(&cluster, 1, "a8").await;
        cluster.stop_all().await;
    }
}

#[tokio::test]
async fn groups_of_different_members_are_merged_and_many_parts_are_carried() {
    let mut cluster = Cluster::start(5, small_config()).await;
    let node = cluster.node(1);
    node.create_groups(1..2, &[1, 2, 3]).await.unwrap();
    node.create_groups(2..3, &[3, 4, 5]).await.unwrap();
    propose(&cluster, 1, "a").await;
    let large: Vec<String> = (0..8)
        .map(|at| format!("{at}{}", "b".repeat(200_000)))
        .collect();
    for payload in &large {
        propose(&cluster, 2, payload).await;
    }
    lead(&cluster, 2, 3).await;
    cluster.merge(2, 1).await;
    let mut all: Vec<&str> = large.iter().map(String::as_str).collect();
    all.push("a");
    for id in 1..4 {
        holds_on(&cluster, id, 1, &all).await;
    }
    is_gone(&cluster, 2).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_group_that_another_is_to_be_merged_into_is_not_destroyed() {
    let mut cluster = Cluster::start(5, small_config()).await;
    let node = cluster.node(1);
    node.create_groups(1..2, &[1, 4, 5]).await.unwrap();
    node.create_groups(2..3, &[1, 2, 3]).await.unwrap();
    propose(&cluster, 1, "a").await;
    propose(&cluster, 2, "b").await;
    lead(&cluster, 2, 1).await;
    cluster.stop(4).await;
    cluster.stop(5).await;
    // The target can say nothing, so the merge waits for it.
    let source = cluster.node(1).group(2);
    let merging = source.merge_into(1, Bytes::new());
    let destroying = cluster.node(2).destroy_groups([1]);
    let (merged, destroyed) = tokio::join!(merging, destroying);
    let expected = (GroupId(1), GroupId(2));
    assert!(
        matches!(destroyed, Err(Error::Needed { group, by, .. }) if (group, by) == expected),
        "{destroyed:?}"
    );
    assert!(matches!(merged, Err(Error::Merge { .. })), "{merged:?}");
    // Nothing has happened to either.
    propose(&cluster, 2, "c").await;
    for id in [4, 5] {
        cluster.open(id).await.unwrap();
    }
    propose(&cluster, 1, "d").await;
    until("nobody needs it any more", async || {
        match cluster.node(2).destroy_groups([1]).await {
            Ok(()) => true,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                false
            }
        }
    })
    .await;
    propose(&cluster, 2, "e").await;
    drop(source);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_leader_that_stops_in_the_middle_of_a_merge_leaves_the_rest_to_the_next() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster
        .node(1)
        .create_groups(1..8, &[1, 2, 3])
        .await
        .unwrap();
    cluster.led(1..8).await;
    let mut all = vec!["a".to_owned()];
    propose(&cluster, 1, "a").await;
    for source in 2..8 {
        let mine = format!("b{source}");
        propose(&cluster, source, &mine).await;
        all.push(mine);
        cluster.led(source..source + 1).await;
        let leader = cluster.leader(cluster.running()[0], source);
        let group = cluster.node(leader).group(source);
        let asked =
            tokio::spawn(async move { group.merge_into(1, Bytes::new()).await.map(|_| ()) });
        // Each time a little later, so that the stop comes at another step.
        for _ in 0..(source - 2) * 20 {
            tokio::task::yield_now().await;
        }
        cluster.stop(leader).await;
        let outcome = asked.await.unwrap();
        cluster.open(leader).await.unwrap();
        // Whatever was begun is brought to an end without anybody who asks. What was not is asked for again.
        if outcome.is_err() {
            cluster.merge(source, 1).await;
        }
        is_gone(&cluster, source).await;
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        holds(&cluster, 1, &all).await;
    }
    cluster.stop_all().await;
}

/// Node 1 has the target and is a witness of the source; node 3 leads the source and is a witness of the target.
#[tokio::test]
async fn groups_with_witnesses_are_merged() {
    let mut cluster = Cluster::start(3, small_config()).await;
    for (group, full, witness) in [(1, [1, 2], 3), (2, [2, 3], 1)] {
        let node = cluster.node(2);
        node.create_groups(group..group + 1, &full).await.unwrap();
        cluster.sees(2, witness, true).await;
        let change = [MemberChange::Witness(NodeId(witness))];
        let members = cluster.change_members(group, &change).await.unwrap();
        assert_eq!(members.witnesses, [NodeId(witness)]);
    }
    for (group, payload) in [(1, "a1"), (2, "b1"), (2, "b2")] {
        propose(&cluster, group, payload).await;
    }
    lead(&cluster, 2, 3).await;
    // A witness does not lead, so it merges nothing.
    let asked = cluster.node(1).group(2).merge_into(1, Bytes::new()).await;
    assert!(matches!(asked, Err(Error::NotLeader { .. })), "{asked:?}");
    let source = cluster.node(3).group(2);
    source.merge_into(1, Bytes::new()).await.unwrap();
    propose(&cluster, 1, "a2").await;
    is_gone(&cluster, 2).await;
    for id in [1, 2] {
        holds_on(&cluster, id, 1, &["a1", "a2", "b1", "b2"]).await;
    }
    let status = cluster.node(3).group(1).status().await.unwrap();
    assert!(status.is_witness && status.fault.is_none());
    // Node 3 has led the merge, and the others have applied it.
    for id in 1..=3 {
        knows_what_became(&cluster, id, 2, 1).await;
    }
    drop(source);

    // The witness of the target serves as one all the same, and of the source nothing comes back.
    cluster.stop_all().await;
    for id in [2, 3] {
        cluster.open(id).await.unwrap();
    }
    propose(&cluster, 1, "a3").await;
    cluster.open(1).await.unwrap();
    for id in [1, 2] {
        holds_on(&cluster, id, 1, &["a1", "a2", "a3", "b1", "b2"]).await;
    }
    is_gone(&cluster, 2).await;
    for id in [1, 2] {
        knows_what_became(&cluster, id, 2, 1).await;
    }
    // A witness has applied nothing that would say what became of the group.
    let group = GroupId(2);
    let asked = cluster.node(3).group(2).propose("b3").await;
    assert_eq!(asked, Err(Error::NoSuchGroup { group }));
    cluster.stop_all().await;
}

#[tokio::test]
async fn what_is_too_large_for_the_targets_leader_comes_in_smaller_parts() {
    let mut cluster = two_groups(small_config()).await;
    let mut all = vec!["a1".to_owned(), "a2".to_owned()];
    all.extend(["b1", "b2"].map(str::to_owned));
    for at in 0..4 {
        let large = format!("{at}{}", "b".repeat(100_000));
        propose(&cluster, 2, &large).await;
        all.push(large);
    }
    let mut config = small_config();
    config.batch.max_proposal_bytes = ByteSize::kib(32);
    cluster.stop(2).await;
    cluster.reconfigure(config);
    cluster.open(2).await.unwrap();
    lead(&cluster, 1, 2).await;
    lead(&cluster, 2, 1).await;
    // It is in no log, and that is said.
    let refused = cluster.node(1).group(1).propose(vec![7; 100_000]).await;
    let error = refused.expect_err("it is over the bound of the leader");
    let (bytes, limit) = (100_000, 32 << 10);
    assert_eq!(error, Error::TooLarge { bytes, limit });
    assert!(!error.may_have_committed());

    let source = cluster.node(1).group(2);
    source.merge_into(1, Bytes::new()).await.unwrap();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    holds(&cluster, 1, &all).await;
    is_gone(&cluster, 2).await;
    drop(source);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_target_that_was_merged_itself_refuses_and_the_source_goes_on() {
    let mut cluster = two_groups(small_config()).await;
    let node = cluster.node(1);
    node.create_groups(3..4, &[1, 2, 3]).await.unwrap();
    propose(&cluster, 3, "c1").await;
    cluster.merge(2, 1).await;
    is_gone(&cluster, 2).await;
    lead(&cluster, 3, 1).await;
    let source = cluster.node(1).group(3);
    // Told `Merging`, a client would look for this group in the other one.
    let asked = source.merge_into(2, Bytes::new()).await;
    assert!(matches!(asked, Err(Error::Merge { .. })), "{asked:?}");
    propose(&cluster, 3, "c2").await;
    holds(&cluster, 3, &["c1", "c2"]).await;
    source.merge_into(1, Bytes::new()).await.unwrap();
    holds(&cluster, 1, &["a1", "a2", "b1", "b2", "c1", "c2"]).await;
    drop(source);
    cluster.stop_all().await;
}

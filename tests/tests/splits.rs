//! Groups that are split while they serve, over real connections.

use std::time::Duration;

use bytes::Bytes;
use polyraft::{Config, Error, GroupId, MemberChange, NodeId, ProposalNumber};
use polyraft_tests::{Cluster, small_config, until};

/// Proposes at whatever node takes it.
async fn propose(cluster: &Cluster, group: u64, payload: &str) {
    let payload = payload.to_owned();
    until("a proposal is committed", async || {
        for id in cluster.running() {
            if cluster
                .node(id)
                .group(group)
                .propose(payload.clone())
                .await
                .is_ok()
            {
                return true;
            }
        }
        false
    })
    .await;
}

/// Splits `child` off, at whatever node leads. A split whose outcome was open may turn out to be made.
async fn split(cluster: &Cluster, group: u64, child: u64, argument: &'static str) {
    let mut was_open = false;
    until("a group is split", async || {
        for id in cluster.running() {
            match cluster.node(id).group(group).split(child, argument).await {
                Ok(handle) => {
                    assert_eq!(handle.id(), GroupId(child));
                    return true;
                }
                Err(Error::GroupExists { .. }) if was_open => return true,
                Err(Error::Unknown { .. }) => was_open = true,
                Err(Error::NotLeader { .. } | Error::Split { .. } | Error::NoSuchGroup { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        false
    })
    .await;
}

/// Waits until every node that runs has just these in a group, whatever it had to apply again.
async fn holds(cluster: &Cluster, group: u64, expected: &[&str]) {
    until("every replica has what it should have", async || {
        for id in cluster.running() {
            let has = cluster.applied(id, group).await.into_values();
            if !has.eq(expected.iter().copied()) {
                return false;
            }
        }
        true
    })
    .await;
}

/// Snapshots come often, and little log stays behind them.
fn purging_config() -> Config {
    let mut config = small_config();
    config.snapshot.entries = 4;
    config.snapshot.keep_entries = 0;
    config
}

#[tokio::test]
async fn a_group_is_split_and_both_parts_go_on() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster
        .node(1)
        .create_groups(1..2, &[1, 2, 3])
        .await
        .unwrap();
    for payload in ["a1", "b1", "a2", "b2"] {
        propose(&cluster, 1, payload).await;
    }
    let leader = cluster.leader(1, 1);
    let group = cluster.node(leader).group(1);
    let nothing = group.split(2, Bytes::new()).await;
    assert!(matches!(nothing, Err(Error::Split { .. })), "{nothing:?}");
    let follower = cluster.node(1 + leader % 3).group(1).split(2, "b").await;
    assert!(
        matches!(follower, Err(Error::NotLeader { hint: Some(hint) }) if hint.0 == leader),
        "{follower:?}"
    );
    let itself = group.split(1, "b").await;
    assert!(matches!(itself, Err(Error::Split { .. })), "{itself:?}");

    let child = group.split(2, "b").await.unwrap();
    cluster.led(2..3).await;
    let beginning = child.status().await.unwrap();
    assert!(beginning.purged > group.status().await.unwrap().purged);
    holds(&cluster, 1, &["a1", "a2"]).await;
    holds(&cluster, 2, &["b1", "b2"]).await;
    let again = group.split(2, "a").await;
    assert!(matches!(again, Err(Error::GroupExists { .. })), "{again:?}");
    propose(&cluster, 1, "a3").await;
    propose(&cluster, 2, "b3").await;
    // The child can be split in turn, and its members be changed.
    split(&cluster, 2, 3, "b2").await;
    cluster.led(3..4).await;
    let leader = cluster.leader(1, 3);
    let changed = cluster
        .node(leader)
        .group(3)
        .change_members(
            [MemberChange::Remove(NodeId(1 + leader % 3))],
            Duration::from_secs(20),
        )
        .await;
    assert_eq!(changed.unwrap().voters.len(), 2);
    // Handles keep a node's data directory.
    drop((group, child));
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.open(id).await.unwrap();
    }
    cluster.led(1..3).await;
    holds(&cluster, 1, &["a1", "a2", "a3"]).await;
    holds(&cluster, 2, &["b1", "b3"]).await;
    propose(&cluster, 3, "b22").await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn what_was_proposed_to_a_group_is_not_applied_again_by_its_child() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster
        .node(1)
        .create_groups(1..2, &[1, 2, 3])
        .await
        .unwrap();
    cluster.led(1..2).await;
    let leader = cluster.leader(1, 1);
    let parent = cluster.node(leader).group(1);
    let session = parent.open_session(Duration::from_secs(20)).await.unwrap();
    let number = ProposalNumber {
        session: session.id(),
        sequence: 1,
        lowest: 1,
    };
    let first = parent.propose_numbered(number, "b1").await.unwrap();
    let child = parent.split(2, "b").await.unwrap();
    cluster.led(2..3).await;
    let again = child.propose_numbered(number, "b1").await.unwrap();
    assert_eq!(again, first);
    let next = ProposalNumber {
        sequence: 2,
        ..number
    };
    child.propose_numbered(next, "b2").await.unwrap();
    // The two sessions go their own ways from the split on, and new ones have other names.
    parent.propose_numbered(next, "a2").await.unwrap();
    let [one, other] = [&parent, &child].map(|group| group.open_session(Duration::from_secs(20)));
    let (one, other) = (one.await.unwrap(), other.await.unwrap());
    assert!(one.id() != session.id() && other.id() != session.id());
    holds(&cluster, 1, &["a2"]).await;
    holds(&cluster, 2, &["b1", "b2"]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_node_that_was_down_splits_by_its_log_or_gets_both_parts_by_snapshots() {
    for config in [small_config(), purging_config()] {
        let purges = config.snapshot.entries > 0 && config.snapshot.keep_entries == 0;
        let mut cluster = Cluster::start(3, config).await;
        cluster
            .node(1)
            .create_groups(1..2, &[1, 2, 3])
            .await
            .unwrap();
        for payload in ["a1", "b1"] {
            propose(&cluster, 1, payload).await;
        }
        cluster.agree(1, 2).await;
        cluster.stop(3).await;
        split(&cluster, 1, 2, "b").await;
        cluster.led(2..3).await;
        let (mut a, mut b) = (vec!["a1"], vec!["b1"]);
        for payload in ["a2", "a3", "a4", "a5", "a6", "a7"] {
            propose(&cluster, 1, payload).await;
            a.push(payload);
        }
        propose(&cluster, 2, "b2").await;
        b.push("b2");
        if purges {
            for id in [1, 2] {
                cluster.node(id).group(1).snapshot().await.unwrap();
            }
        }
        cluster.open(3).await.unwrap();
        holds(&cluster, 1, &a).await;
        holds(&cluster, 2, &b).await;
        // It votes for both: with one of the others it goes on.
        cluster.stop(1).await;
        propose(&cluster, 1, "a8").await;
        propose(&cluster, 2, "b3").await;
        cluster.stop_all().await;
    }
}

#[tokio::test]
async fn a_leader_that_stops_in_the_middle_of_a_split_leaves_it_done_or_not() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster
        .node(1)
        .create_groups(1..2, &[1, 2, 3])
        .await
        .unwrap();
    let mut kept = vec!["a".to_owned()];
    propose(&cluster, 1, "a").await;
    // How many splits were made, and how many were not.
    let mut outcomes = [0, 0];
    for child in 2..8 {
        let mine = format!("b{child}");
        propose(&cluster, 1, &mine).await;
        cluster.led(1..2).await;
        let leader = cluster.leader(cluster.running()[0], 1);
        let group = cluster.node(leader).group(1);
        let argument = mine.clone();
        if child == 2 {
            cluster.stop(leader).await;
        }
        let asked = tokio::spawn(async move { group.split(child, argument).await.map(|_| ()) });
        // Each time a little later, so that the stop comes at another step: at first nothing can be done, at last everything is.
        for _ in 0..(child - 2) * child {
            tokio::task::yield_now().await;
        }
        if child == 7 {
            until("the group is split", async || asked.is_finished()).await;
        }
        if child > 2 {
            cluster.stop(leader).await;
        }
        let outcome = asked.await.unwrap();
        cluster.open(leader).await.unwrap();
        propose(&cluster, 1, &format!("a{child}")).await;
        kept.push(format!("a{child}"));
        let others: Vec<u64> = cluster.running();
        let mut has_child = outcome.is_ok();
        if !has_child {
            cluster.led(1..2).await;
            // A split that is in a log is committed before what came behind it.
            let last = format!("a{child}");
            let has = async |id, payload: &str| {
                let applied = cluster.applied(id, 1).await;
                applied
                    .values()
                    .any(|known| known[..] == *payload.as_bytes())
            };
            until("every replica has applied everything", async || {
                has(1, &last).await && has(2, &last).await && has(3, &last).await
            })
            .await;
            has_child = !has(1, &mine).await;
        }
        outcomes[usize::from(!has_child)] += 1;
        if has_child {
            cluster.led(child..child + 1).await;
            let entries = cluster.agree(child, 1).await;
            assert_eq!(entries.into_values().collect::<Vec<_>>(), [mine.as_bytes()]);
        } else {
            kept.insert(kept.len() - 1, mine);
            for id in others {
                let status = cluster.node(id).group(child).status().await;
                assert!(
                    matches!(status, Err(Error::NoSuchGroup { .. })),
                    "{status:?}"
                );
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
    let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
    holds(&cluster, 1, &kept).await;
    cluster.stop_all().await;
}

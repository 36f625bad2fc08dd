//! Groups whose majority is lost for good, and what the survivors make of it: real nodes, real files.

use bytes::Bytes;
use polyraft::{NodeId, RecoveryError, apply_recovery, plan_recovery};
use polyraft_tests::{Cluster, small_config, until};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

const GROUPS: std::ops::Range<u64> = 0..6;

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("proposal {number}"))
}

/// Proposes each number once to each group; returns how many every group surely has.
async fn load(cluster: &Cluster, asked: u64, numbers: std::ops::Range<u64>) {
    for group in GROUPS {
        for number in numbers.clone() {
            until("a proposal commits", async || {
                let group = cluster.node(asked).group(group);
                group.propose(payload(number)).await.is_ok()
            })
            .await;
        }
    }
}

fn dirs(cluster: &Cluster, nodes: &[u64]) -> Vec<PathBuf> {
    nodes.iter().map(|node| cluster.data_dir(*node)).collect()
}

/// Loses all nodes but `left`, recovers with those, and checks that they have everything and take more.
async fn recovers(nodes: u64, left: &[u64]) {
    let mut config = small_config();
    config.snapshot.entries = 15;
    config.snapshot.keep_entries = 5;
    let mut cluster = Cluster::start(nodes, config.clone()).await;
    let all: Vec<u64> = (1..=nodes).collect();
    let lost: Vec<u64> = all
        .iter()
        .copied()
        .filter(|node| !left.contains(node))
        .collect();
    cluster.node(1).create_groups(GROUPS, &all).await.unwrap();
    cluster.led(GROUPS).await;
    load(&cluster, 1, 0..20).await;
    for group in GROUPS {
        cluster.agree(group, 20).await;
    }
    let running = plan_recovery(&dirs(&cluster, left), &lost).unwrap_err();
    assert!(matches!(running, RecoveryError::Storage(_)), "{running}");
    cluster.stop_all().await;

    let plan = plan_recovery(&dirs(&cluster, left), &lost).unwrap();
    assert_eq!(
        (plan.groups.len() as u64, plan.refused.len()),
        (GROUPS.end, 0)
    );
    assert!(
        plan.groups
            .iter()
            .all(|group| group.voters == left && group.may_have_lost)
    );
    // Whoever starts a node in between has to plan anew.
    cluster.open(left[0]).await.unwrap();
    cluster.stop(left[0]).await;
    let stale = apply_recovery(&dirs(&cluster, left), &plan, &config).unwrap_err();
    assert!(matches!(stale, RecoveryError::Differs(_)), "{stale}");
    let plan = plan_recovery(&dirs(&cluster, left), &lost).unwrap();
    let done = apply_recovery(&dirs(&cluster, left), &plan, &config).unwrap();
    assert_eq!((done.written, done.found), (GROUPS.end, 0));
    let again = apply_recovery(&dirs(&cluster, left), &plan, &config).unwrap();
    assert_eq!((again.written, again.found), (0, GROUPS.end));
    for node in left {
        polyraft_storage::inspect::verify(&cluster.data_dir(*node)).unwrap();
    }

    for node in left {
        cluster.open(*node).await.unwrap();
    }
    cluster.led(GROUPS).await;
    load(&cluster, left[0], 20..25).await;
    for group in GROUPS {
        let entries = cluster.agree(group, 25).await;
        let seen: BTreeSet<Bytes> = entries.into_values().collect();
        assert_eq!(seen, (0..25).map(payload).collect());
        for node in left {
            let status = cluster.node(*node).group(group).status().await.unwrap();
            let members: Vec<u64> = status.members.nodes().iter().map(|node| node.0).collect();
            assert_eq!(members, left);
            assert!(status.term.0 > polyraft::TERM_STEP);
        }
    }
    // A node that was given up is not talked to, whatever it wants.
    cluster.open(lost[0]).await.unwrap();
    until(
        "the node that was given up learns why it is refused",
        async || {
            let peers = cluster.node(lost[0]).status().peers;
            peers.iter().any(|peer| {
                let reason = peer.refused.as_ref();
                reason.is_some_and(|reason| reason.contains("given up"))
            })
        },
    )
    .await;
    cluster.stop_all().await;
    // The members stay the same over restarts and behind the next snapshot.
    for node in left {
        cluster.open(*node).await.unwrap();
    }
    cluster.led(GROUPS).await;
    load(&cluster, left[0], 25..60).await;
    cluster.agree(0, 60).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn one_of_three_nodes_goes_on_alone() {
    recovers(3, &[3]).await;
}

#[tokio::test]
async fn two_of_five_nodes_go_on_together() {
    recovers(5, &[2, 4]).await;
}

#[tokio::test]
async fn a_survivor_that_is_behind_gets_what_it_lacks_from_the_chosen_one() {
    let mut config = small_config();
    config.shards.proposal_timeout = Duration::from_millis(500);
    let mut cluster = Cluster::start(5, config.clone()).await;
    let all = [1, 2, 3, 4, 5];
    cluster.node(1).create_groups(GROUPS, &all).await.unwrap();
    cluster.led(GROUPS).await;
    load(&cluster, 1, 0..3).await;
    cluster.stop(5).await;
    cluster.led(GROUPS).await;
    load(&cluster, 1, 3..9).await;
    for group in GROUPS {
        cluster.agree(group, 9).await;
    }
    cluster.stop_all().await;
    let unsafe_one = plan_recovery(&dirs(&cluster, &[5]), &[1, 2, 3]).unwrap_err();
    let RecoveryError::Unaccounted { nodes, by } = &unsafe_one else {
        panic!("{unsafe_one}");
    };
    assert_eq!((&nodes[..], &by[..]), (&[NodeId(4)][..], &[NodeId(5)][..]));
    let left = dirs(&cluster, &[5, 4]);
    let plan = plan_recovery(&left, &[1, 2, 3]).unwrap();
    assert!(plan.groups.iter().all(|group| group.chosen == 4));
    apply_recovery(&left, &plan, &config).unwrap();
    for node in [4, 5] {
        cluster.open(node).await.unwrap();
    }
    cluster.led(GROUPS).await;
    load(&cluster, 5, 9..12).await;
    for group in GROUPS {
        let entries = cluster.agree(group, 12).await;
        let seen: BTreeSet<Bytes> = entries.into_values().collect();
        assert_eq!(seen, (0..12).map(payload).collect());
    }
    cluster.stop_all().await;
}

//! Nodes that join, move and leave while the others run, over real connections.

use std::time::Duration;

use polyraft::{Error, MemberChange, NodeId};
use polyraft_tests::{Cluster, small_config, until};

const WITHIN: Duration = Duration::from_secs(30);
const GROUPS: std::ops::Range<u64> = 0..4;

/// Proposes at whatever node takes it, in every group.
async fn load(cluster: &Cluster, payload: &str) {
    for group in GROUPS {
        until("a proposal is committed", async || {
            for id in cluster.running() {
                let group = cluster.node(id).group(group);
                if group.propose(payload.to_owned()).await.is_ok() {
                    return true;
                }
            }
            false
        })
        .await;
    }
}

/// Waits until a node has applied so many different payloads in every group.
async fn holds(cluster: &Cluster, id: u64, count: usize) {
    for group in GROUPS {
        until("a replica has everything", async || {
            if cluster.node(id).group(group).status().await.is_err() {
                return false;
            }
            let applied = cluster.applied(id, group).await;
            let all: std::collections::BTreeSet<_> = applied.into_values().collect();
            all.len() == count
        })
        .await;
    }
}

fn peers(cluster: &Cluster, id: u64) -> Vec<u64> {
    let peers = cluster.node(id).status().peers;
    peers.into_iter().map(|peer| peer.node.0).collect()
}

fn why(outcome: Result<(), Error>) -> String {
    match outcome {
        Err(Error::Peer { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_dead_machine_is_replaced_by_one_that_joins_at_run_time() {
    let mut cluster = Cluster::start(3, small_config()).await;
    let node = cluster.node(1);
    node.create_groups(GROUPS, &[1, 2, 3]).await.unwrap();
    load(&cluster, "one").await;
    cluster.stop(2).await;
    cluster.join(4).await.unwrap();
    let four = cluster.address(4);
    assert_eq!(peers(&cluster, 1), [2, 3], "nobody here knows it yet");
    for id in [1, 3] {
        cluster.node(id).add_peer(4, four).await.unwrap();
        cluster.node(id).add_peer(4, four).await.unwrap();
    }
    for id in [1, 3] {
        cluster.sees(id, 4, true).await;
        cluster.sees(4, id, true).await;
    }
    for group in GROUPS {
        until(
            "the new machine takes the place of the dead one",
            async || {
                let changes = [
                    MemberChange::Voter(NodeId(4)),
                    MemberChange::Remove(NodeId(2)),
                ];
                for id in [1, 3] {
                    let group = cluster.node(id).group(group);
                    if group.change_members(changes, WITHIN).await.is_ok() {
                        return true;
                    }
                }
                false
            },
        )
        .await;
    }
    load(&cluster, "two").await;
    holds(&cluster, 4, 2).await;
    let member = cluster.node(1).remove_peer(3).await;
    assert!(why(member).contains("has it as a member"));
    for id in [1, 3] {
        until("no group here counts on the dead machine", async || {
            cluster.node(id).remove_peer(2).await.is_ok()
        })
        .await;
    }
    assert_eq!(
        (peers(&cluster, 1), peers(&cluster, 3)),
        (vec![3, 4], vec![1, 4])
    );

    // All of that outlives restarts, although the nodes are opened as they were at first.
    cluster.stop_all().await;
    for id in [1, 3, 4] {
        cluster.open(id).await.unwrap();
    }
    assert_eq!(
        (peers(&cluster, 1), peers(&cluster, 3)),
        (vec![3, 4], vec![1, 4])
    );
    cluster.sees(1, 4, true).await;
    cluster.sees(4, 3, true).await;
    // The new machine is needed for every commit now, at another address than before.
    cluster.stop(3).await;
    cluster.stop(4).await;
    cluster.move_to_another_address(4);
    let four = cluster.address(4);
    cluster.open(4).await.unwrap();
    cluster.node(1).update_peer(4, four).await.unwrap();
    load(&cluster, "three").await;
    holds(&cluster, 4, 3).await;
    holds(&cluster, 1, 3).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn what_makes_no_peer_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::start(2, small_config()).await;
    let node = cluster.node(1).clone();
    let (one, two) = (cluster.address(1), cluster.address(2));
    assert!(why(node.add_peer(1, one).await).contains("this node itself"));
    for id in [0, u64::MAX] {
        assert!(why(node.add_peer(id, one).await).contains("1 to 2^64 - 2"));
    }
    assert!(why(node.add_peer(2, one).await).contains("one already"));
    assert!(why(node.update_peer(3, one).await).contains("it is none"));
    assert!(why(node.remove_peer(3).await).contains("it is none"));
    node.add_peer(2, two).await.unwrap();
    let nowhere = "127.0.0.1:9".parse().unwrap();
    let scoped = "[fe80::1%2]:9".parse().unwrap();
    assert!(why(node.add_peer(3, scoped).await).contains("with a scope"));
    assert!(why(node.update_peer(2, scoped).await).contains("with a scope"));
    for id in 3..129 {
        node.add_peer(id, nowhere).await.unwrap();
    }
    assert!(why(node.add_peer(129, nowhere).await).contains("at most 127 peers"));
    for id in 3..129 {
        node.remove_peer(id).await.unwrap();
    }
    // Out and in again, it is a peer like before.
    cluster.sees(1, 2, true).await;
    node.remove_peer(2).await.unwrap();
    until("it is not there any more", async || {
        peers(&cluster, 1).is_empty()
    })
    .await;
    cluster.sees(2, 1, false).await;
    node.add_peer(2, two).await.unwrap();
    cluster.sees(1, 2, true).await;
    cluster.sees(2, 1, true).await;
    node.create_groups(0..1, &[1, 2]).await.unwrap();
    cluster.led(0..1).await;
    node.group(0).propose("both").await.unwrap();
    cluster.stop_all().await;
    let closed = node.add_peer(3, one).await;
    assert_eq!(closed, Err(Error::Closed));
}

#[tokio::test]
async fn a_node_that_takes_only_small_frames_hinders_no_group_that_it_is_no_member_of() {
    let kib = polyraft::config::ByteSize::kib;
    let mut config = small_config();
    config.batch.max_proposal_bytes = kib(900);
    let mut cluster = Cluster::start(3, config).await;
    cluster.stop(3).await;
    let mut config = small_config();
    config.transport.max_frame_bytes = kib(512);
    config.replication.max_append_bytes = kib(256);
    cluster.reconfigure(config);
    cluster.open(3).await.unwrap();
    for id in [1, 2] {
        cluster.sees(id, 3, true).await;
    }
    cluster.node(1).create_groups(0..1, &[1, 2]).await.unwrap();
    let group = cluster.node(1).group(0);
    until("the group is led", async || group.leader().is_some()).await;
    let proposed = tokio::time::timeout(WITHIN, group.propose(vec![7; 800 << 10])).await;
    proposed
        .expect("a quorum takes frames of that size")
        .unwrap();
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_node_that_joins_learns_which_groups_are_over() {
    let mut cluster = Cluster::start(3, small_config()).await;
    let node = cluster.node(1);
    node.create_groups(0..1, &[1, 2, 3]).await.unwrap();
    // Nodes 1 and 2 know of the end, and they are a majority.
    cluster.stop(3).await;
    cluster.node(1).destroy_groups(0..1).await.unwrap();
    for id in [4, 5] {
        cluster.join(id).await.unwrap();
        for old in [1, 2] {
            let address = cluster.address(id);
            cluster.node(old).add_peer(id, address).await.unwrap();
        }
    }
    let (four, five) = (cluster.address(4), cluster.address(5));
    cluster.node(4).add_peer(5, five).await.unwrap();
    for id in [4, 5] {
        cluster.sees(1, id, true).await;
        // What node 1 has said before is known when that is done.
        let node = cluster.node(1);
        node.create_groups(10 + id..11 + id, &[id]).await.unwrap();
    }
    // Of five nodes, three are a majority too: those two, and one that was away.
    cluster.stop(1).await;
    cluster.stop(2).await;
    cluster.open(3).await.unwrap();
    cluster.node(3).add_peer(4, four).await.unwrap();
    cluster.node(3).add_peer(5, five).await.unwrap();
    cluster.sees(4, 3, true).await;
    cluster.sees(4, 5, true).await;
    until("the group begins anew", async || {
        let created = cluster.node(4).create_groups(0..1, &[4, 5]).await;
        created.is_ok()
    })
    .await;
    let status = cluster.node(4).group(0).status().await.unwrap();
    assert_eq!(status.life.get(), 1, "the number of a life is used once");
    cluster.stop_all().await;
}

/// Before, nodes that were down when a group ended were never told, and could be all that was left.
#[tokio::test]
async fn a_cluster_does_not_shrink_to_nodes_that_do_not_know_which_groups_are_over() {
    let mut cluster = Cluster::start(5, small_config()).await;
    let node = cluster.node(1);
    node.create_groups(0..1, &[1, 2, 3]).await.unwrap();
    cluster.stop(4).await;
    cluster.stop(5).await;
    cluster.node(1).destroy_groups(0..1).await.unwrap();
    // Of the four others two know, and then a majority meets one who does. Of three only one would.
    for id in [2, 3] {
        until("node 1 is out", async || {
            cluster.node(id).remove_peer(1).await.is_ok()
        })
        .await;
    }
    cluster.stop(1).await;
    let removed = why(cluster.node(3).remove_peer(2).await);
    assert!(removed.contains("n4, n5 have not confirmed"), "{removed}");
    assert_eq!(peers(&cluster, 3), [2, 4, 5]);
    for id in [4, 5] {
        cluster.open(id).await.unwrap();
        cluster.sees(3, id, true).await;
        cluster.node(id).remove_peer(1).await.unwrap();
    }
    for id in [3, 4, 5] {
        cluster.node(id).remove_peer(2).await.unwrap();
    }
    cluster.stop(2).await;
    cluster.stop(3).await;
    until("the group begins anew", async || {
        let created = cluster.node(4).create_groups(0..1, &[4, 5]).await;
        created.is_ok()
    })
    .await;
    let status = cluster.node(4).group(0).status().await.unwrap();
    assert_eq!(status.life.get(), 1, "the number of a life is used once");
    cluster.stop_all().await;
}

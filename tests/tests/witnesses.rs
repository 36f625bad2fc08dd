//! Witnesses on real nodes: voters that store no payload.

use polyraft::{Error, Index, MemberChange, NodeId, Read};
use polyraft_tests::{Cluster, small_config, until};

fn witness(node: u64) -> MemberChange {
    MemberChange::Witness(NodeId(node))
}

async fn propose(cluster: &Cluster, payload: &[u8]) -> Index {
    let mut index = Index::ZERO;
    until("a proposal is committed", async || {
        for id in cluster.running() {
            let handle = cluster.node(id).group(0);
            if let Ok(committed) = handle.propose(payload.to_vec()).await {
                index = committed.index;
                return true;
            }
        }
        false
    })
    .await;
    index
}

async fn has_passed(cluster: &Cluster, id: u64, through: Index) {
    until("a replica knows of a commit", async || {
        let status = cluster.node(id).group(0).status().await;
        status.is_ok_and(|status| status.applied >= through)
    })
    .await;
}

fn log_bytes(cluster: &Cluster, id: u64) -> u64 {
    cluster.node(id).status().wal.bytes_written
}

/// Two nodes that store everything, and node 3 as their witness.
async fn two_and_a_witness() -> Cluster {
    let cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..1, &[1, 2]).await.unwrap();
    for node in [1, 2] {
        cluster.sees(node, 3, true).await;
    }
    let members = cluster.change_members(0, &[witness(3)]).await.unwrap();
    assert_eq!(members.voters, [1, 2, 3].map(NodeId));
    assert_eq!(members.witnesses, [NodeId(3)]);
    cluster
}

#[tokio::test]
async fn a_full_replica_and_a_witness_commit_and_the_witness_stores_no_payload() {
    let mut cluster = two_and_a_witness().await;
    cluster.led(0..1).await;
    let before = [1, 2, 3].map(|id| log_bytes(&cluster, id));
    let payload = vec![7; 32 << 10];
    let mut last = Index::ZERO;
    for round in 0..100_u8 {
        last = propose(&cluster, &[&payload[..], &[round]].concat()).await;
    }
    for id in 1..=3 {
        has_passed(&cluster, id, last).await;
    }
    let grown = [1, 2, 3].map(|id| log_bytes(&cluster, id) - before[id as usize - 1]);
    let sent = 100 * payload.len() as u64;
    assert!(grown[0] >= sent && grown[1] >= sent, "{grown:?}");
    assert!(grown[2] < sent / 4, "{grown:?}");

    // What the witness knows of, both have: either may lead now.
    let leader = cluster.leader(1, 0);
    assert_ne!(leader, 3);
    let other = 3 - leader;
    cluster.stop(other).await;
    for round in 100..110_u8 {
        last = propose(&cluster, &[round]).await;
    }
    has_passed(&cluster, 3, last).await;
    let status = cluster.node(3).group(0).status().await.unwrap();
    assert!(status.is_witness && status.snapshot.is_none());
    assert_eq!(status.leader, Some(NodeId(leader)));

    // What a witness can't do is refused, and says so.
    let handle = cluster.node(3).group(0);
    let read = handle.read(Read::LOCAL, Vec::new()).await;
    assert!(matches!(read, Err(Error::Witness { .. })), "{read:?}");
    let read = handle.read(Read::Linearizable, Vec::new()).await;
    assert!(matches!(read, Err(Error::Witness { .. })), "{read:?}");
    assert!(matches!(
        handle.snapshot().await,
        Err(Error::Snapshot { .. })
    ));
    drop(handle);
    let handle = cluster.node(leader).group(0);
    let moved = handle.transfer_leadership(3).await;
    assert!(
        matches!(moved, Err(Error::Transfer { to: NodeId(3), .. })),
        "{moved:?}"
    );
    // Whoever proposes there is passed on to the leader.
    last = cluster
        .node(3)
        .group(0)
        .propose(vec![110])
        .await
        .unwrap()
        .index;

    // All of that is still so after a restart, and the one that was down gets what it missed.
    drop(handle);
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.open(id).await.unwrap();
    }
    let after = propose(&cluster, &[111]).await;
    assert!(after > last);
    for id in [1, 2] {
        has_passed(&cluster, id, after).await;
        assert_eq!(cluster.applied(id, 0).await.len(), 112, "node {id}");
    }
    let status = cluster.node(3).group(0).status().await.unwrap();
    assert!(status.is_witness && status.fault.is_none());
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_witness_becomes_a_full_member_and_back_only_by_leaving_in_between() {
    let mut cluster = two_and_a_witness().await;
    for round in 0..50_u8 {
        propose(&cluster, &[round]).await;
    }
    for refused in [
        MemberChange::Voter(NodeId(3)),
        MemberChange::Learner(NodeId(3)),
        witness(2),
    ] {
        let changed = cluster.change_members(0, &[refused]).await;
        assert!(
            matches!(changed, Err(Error::Members { .. })),
            "{refused:?}: {changed:?}"
        );
    }
    // The node does not notice that it is removed, and comes back as something else.
    cluster.stop(3).await;
    for node in [1, 2] {
        cluster.sees(node, 3, false).await;
    }
    let members = cluster
        .change_members(0, &[MemberChange::Remove(NodeId(3))])
        .await
        .unwrap();
    assert_eq!((members.voters.len(), members.witnesses.len()), (2, 0));
    propose(&cluster, b"without it").await;
    cluster.open(3).await.unwrap();
    for node in [1, 2] {
        cluster.sees(node, 3, true).await;
    }
    let members = cluster
        .change_members(0, &[MemberChange::Voter(NodeId(3))])
        .await
        .unwrap();
    assert_eq!((members.voters.len(), members.witnesses.len()), (3, 0));
    let last = propose(&cluster, b"with all").await;
    has_passed(&cluster, 3, last).await;
    assert_eq!(cluster.applied(3, 0).await.len(), 52);
    assert!(!cluster.node(3).group(0).status().await.unwrap().is_witness);

    // And the other way round: what it stored goes.
    cluster.stop(3).await;
    for node in [1, 2] {
        cluster.sees(node, 3, false).await;
    }
    cluster
        .change_members(0, &[MemberChange::Remove(NodeId(3))])
        .await
        .unwrap();
    cluster.open(3).await.unwrap();
    for node in [1, 2] {
        cluster.sees(node, 3, true).await;
    }
    let members = cluster.change_members(0, &[witness(3)]).await.unwrap();
    assert_eq!(members.witnesses, [NodeId(3)]);
    let last = propose(&cluster, b"again").await;
    has_passed(&cluster, 3, last).await;
    assert!(cluster.node(3).group(0).status().await.unwrap().is_witness);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_witness_that_is_far_behind_is_told_where_to_go_on() {
    let mut config = small_config();
    config.snapshot.entries = 20;
    config.snapshot.keep_entries = 0;
    let mut cluster = Cluster::start(3, config).await;
    cluster.node(1).create_groups(0..1, &[1, 2]).await.unwrap();
    for node in [1, 2] {
        cluster.sees(node, 3, true).await;
    }
    let mut last = Index::ZERO;
    for round in 0..60_u8 {
        last = propose(&cluster, &[round]).await;
    }
    for id in [1, 2] {
        has_passed(&cluster, id, last).await;
        cluster.node(id).group(0).snapshot().await.unwrap();
    }
    // The log behind the snapshot is gone: the new witness gets a place and no state.
    cluster.change_members(0, &[witness(3)]).await.unwrap();
    let status = cluster.node(3).group(0).status().await.unwrap();
    assert!(status.is_witness && status.purged >= last, "{status:?}");
    assert_eq!(cluster.node(3).status().counters.snapshots_received, 0);
    // Its own log is forgotten as it grows.
    for round in 60..120_u8 {
        last = propose(&cluster, &[round]).await;
    }
    for id in 1..=3 {
        has_passed(&cluster, id, last).await;
    }
    let purged = status.purged;
    let status = cluster.node(3).group(0).status().await.unwrap();
    assert!(status.purged > purged, "{status:?}");
    cluster.stop(1).await;
    propose(&cluster, b"with the witness").await;
    cluster.stop_all().await;
}

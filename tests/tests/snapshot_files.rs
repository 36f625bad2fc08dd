//! Snapshots that leave a cluster as files, and begin groups in another one.

use std::path::Path;

use bytes::Bytes;
use polyraft::{
    Error, GroupId, Index, NodePlace, OpenError, export_snapshot, snapshots_in, verify_snapshot,
};
use polyraft_tests::{Cluster, small_config, until};

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("proposal {number}"))
}

async fn propose(cluster: &Cluster, group: u64, numbers: std::ops::Range<u64>) {
    for number in numbers {
        until("a proposal commits", async || {
            let group = cluster.node(1).group(group);
            group.propose(payload(number)).await.is_ok()
        })
        .await;
    }
}

fn place(cluster: &Cluster, node: u64) -> NodePlace {
    NodePlace {
        data_dir: cluster.data_dir(node),
        cluster: "test".to_owned(),
        node,
        config: small_config(),
    }
}

#[tokio::test]
async fn a_group_begins_in_another_cluster_with_what_was_exported_from_a_running_node() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("5.snap");
    let mut source = Cluster::start(1, small_config()).await;
    source.node(1).create_groups(5..6, &[1]).await.unwrap();
    propose(&source, 5, 0..20).await;
    let last = source.node(1).group(5).snapshot().await.unwrap();
    let found = export_snapshot(&source.data_dir(1), 5, &file).unwrap();
    assert_eq!((found.group.0, found.last), (5, last));
    assert_eq!(verify_snapshot(&file).unwrap(), found);
    let all = snapshots_in(&source.data_dir(1)).unwrap();
    assert_eq!(all, std::slice::from_ref(&found));
    let again = export_snapshot(&source.data_dir(1), 5, &file);
    assert!(again.is_err(), "it would overwrite a file");
    source.stop_all().await;

    // Two of three members import it; the third is sent it.
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.stop_all().await;
    let members = [1, 2, 3];
    for node in [1, 2] {
        let imported = place(&cluster, node).import_snapshot(&file, 9, &members);
        let imported = imported.unwrap();
        assert_eq!((imported.group.0, imported.last), (9, last));
    }
    for node in members {
        cluster.open(node).await.unwrap();
    }
    cluster.led(9..10).await;
    propose(&cluster, 9, 20..25).await;
    let entries = cluster.agree(9, 25).await;
    let expected: Vec<Bytes> = (0..25).map(payload).collect();
    assert_eq!(entries.into_values().collect::<Vec<_>>(), expected);
    let status = cluster.node(3).group(9).status().await.unwrap();
    assert!(status.purged >= last.index && status.last.index > Index(last.index.0 + 4));
    cluster.stop_all().await;
}

/// Puts group 2 into group 1 on node 1, and what group 1 has then, proposals 0 to 6, into a file.
async fn merge_and_export(cluster: &Cluster, file: &Path) {
    cluster.node(1).create_groups(1..3, &[1]).await.unwrap();
    propose(cluster, 1, 0..3).await;
    propose(cluster, 2, 3..6).await;
    cluster.merge(2, 1).await;
    propose(cluster, 1, 6..7).await;
    cluster.node(1).group(1).snapshot().await.unwrap();
    export_snapshot(&cluster.data_dir(1), 1, file).unwrap();
}

/// Waits until nodes have just these proposals in a group, in any order.
async fn holds(cluster: &Cluster, nodes: &[u64], group: u64, numbers: std::ops::Range<u64>) {
    let mut expected: Vec<Bytes> = numbers.map(payload).collect();
    expected.sort_unstable();
    for node in nodes {
        until("a replica has what it should have", async || {
            let applied = cluster.applied(*node, group).await;
            let mut has: Vec<Bytes> = applied.into_values().collect();
            has.sort_unstable();
            has == expected
        })
        .await;
    }
}

/// Before, group 2 of the other cluster was taken for the one that had been merged: it could not be merged, the copies of its target
/// could not be destroyed, and nodes without it sent clients to a copy.
#[tokio::test]
async fn what_was_merged_into_an_exported_group_says_nothing_of_groups_where_it_is_imported() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("1.snap");
    let mut first = Cluster::start(1, small_config()).await;
    merge_and_export(&first, &file).await;
    first.stop_all().await;

    let mut cluster = Cluster::start(2, small_config()).await;
    cluster.node(1).create_groups(2..3, &[1]).await.unwrap();
    propose(&cluster, 2, 7..9).await;
    cluster.stop_all().await;
    for node in [1, 2] {
        for group in [8, 9] {
            let place = place(&cluster, node);
            place.import_snapshot(&file, group, &[1, 2]).unwrap();
        }
    }
    for node in [1, 2] {
        cluster.open(node).await.unwrap();
    }
    for group in [8, 9] {
        holds(&cluster, &[1, 2], group, 0..7).await;
    }
    let elsewhere = cluster.node(2).group(2).propose(payload(9)).await;
    assert!(
        matches!(elsewhere, Err(Error::NoSuchGroup { .. })),
        "{elsewhere:?}"
    );
    propose(&cluster, 2, 9..10).await;
    until("a copy is destroyed", async || {
        match cluster.node(1).destroy_groups([8]).await {
            Ok(()) => true,
            Err(error @ Error::Needed { .. }) => panic!("{error}"),
            Err(_) => false,
        }
    })
    .await;
    cluster.merge(2, 9).await;
    holds(&cluster, &[1, 2], 9, 0..10).await;
    cluster.stop_all().await;
}

/// Before, nodes with a copy of the target sent them there.
#[tokio::test]
async fn clients_of_a_group_that_was_merged_are_not_sent_to_a_copy_of_its_target() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("1.snap");
    let mut cluster = Cluster::start(2, small_config()).await;
    merge_and_export(&cluster, &file).await;
    cluster.stop_all().await;
    let place = place(&cluster, 2);
    place.import_snapshot(&file, 9, &[2]).unwrap();
    for node in [1, 2] {
        cluster.open(node).await.unwrap();
    }
    holds(&cluster, &[1], 1, 0..7).await;
    holds(&cluster, &[2], 9, 0..7).await;
    let asked = cluster.node(1).group(2).propose(payload(7)).await;
    assert_eq!(asked, Err(Error::Merging { into: GroupId(1) }));
    // The node with the copy alone knows nothing of it.
    let asked = cluster.node(2).group(2).propose(payload(7)).await;
    assert!(matches!(asked, Err(Error::NoSuchGroup { .. })), "{asked:?}");
    cluster.stop_all().await;
}

#[tokio::test]
async fn an_import_is_refused_where_it_could_break_a_promise() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("5.snap");
    let mut cluster = Cluster::start(1, small_config()).await;
    cluster.node(1).create_groups(5..6, &[1]).await.unwrap();
    propose(&cluster, 5, 0..3).await;
    cluster.node(1).group(5).snapshot().await.unwrap();
    export_snapshot(&cluster.data_dir(1), 5, &file).unwrap();
    let place = place(&cluster, 1);
    let refused = |group, members: &[u64]| {
        place
            .import_snapshot(&file, group, members)
            .unwrap_err()
            .to_string()
    };
    let running = place.import_snapshot(&file, 6, &[1]).unwrap_err();
    assert!(matches!(running, OpenError::Storage(_)), "{running}");
    cluster.stop_all().await;
    assert!(refused(5, &[1]).contains("has been on this node before"));
    assert!(refused(6, &[2, 3]).contains("node 1 among them"));
    assert!(refused(6, &[1, 1]).contains("different nodes"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(refused(6, &[1]).contains("not a usable snapshot"));
    cluster.open(1).await.unwrap();
    cluster.agree(5, 3).await;
    cluster.stop_all().await;
}

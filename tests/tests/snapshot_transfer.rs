//! Snapshots sent between whole nodes over real QUIC: a follower that is further behind than the log reaches gets one.
//! What comes in between (a broken transfer, damaged files, a full disk) must cost time and nothing else.

use std::os::unix::fs::FileExt;

use bytes::Bytes;
use polyraft::config::ByteSize;
use polyraft::{Config, Index};
use polyraft_tests::{Cluster, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];
const GROUP: u64 = 1;
/// Entries before the snapshot, and their size: a state of two megabytes.
const ENTRIES: u64 = 40;
const ENTRY_BYTES: usize = 50_000;

fn payload(number: u64) -> Bytes {
    let mut payload = format!("proposal {number} ").into_bytes();
    payload.resize(ENTRY_BYTES, number as u8);
    Bytes::from(payload)
}

fn config() -> Config {
    let mut config = small_config();
    config.snapshot.keep_entries = 2;
    config.snapshot.chunk_bytes = ByteSize::kib(16);
    config
}

async fn propose(cluster: &Cluster, asked: u64, numbers: std::ops::Range<u64>) {
    for number in numbers {
        until("a proposal commits", async || {
            let group = cluster.node(asked).group(GROUP);
            group.propose(payload(number)).await.is_ok()
        })
        .await;
    }
}

/// Three nodes of which the last has stopped, and the log behind it is gone on the others.
async fn stranded(config: Config) -> Cluster {
    let mut cluster = Cluster::start(3, config).await;
    cluster
        .node(1)
        .create_groups(GROUP..GROUP + 1, &ALL)
        .await
        .unwrap();
    cluster.led(GROUP..GROUP + 1).await;
    propose(&cluster, 1, 0..1).await;
    cluster.agree(GROUP, 1).await;
    cluster.stop(3).await;
    propose(&cluster, 1, 1..ENTRIES).await;
    cluster.agree(GROUP, ENTRIES as usize).await;
    snapshot_all(&cluster).await;
    cluster
}

/// Every node that runs takes a snapshot of the same place.
async fn snapshot_all(cluster: &Cluster) {
    for id in cluster.running() {
        let group = cluster.node(id).group(GROUP);
        until("the log is purged", async || {
            let last = group.snapshot().await.unwrap();
            let status = group.status().await.unwrap();
            last.index == status.last.index && status.purged >= Index(last.index.0 - 2)
        })
        .await;
    }
}

/// All three replicas have everything, and go on together.
async fn goes_on(cluster: &mut Cluster) {
    let entries = cluster.agree(GROUP, ENTRIES as usize).await;
    let expected: Vec<Bytes> = (0..ENTRIES).map(payload).collect();
    assert_eq!(entries.into_values().collect::<Vec<_>>(), expected);
    propose(cluster, 3, ENTRIES..ENTRIES + 3).await;
    cluster.agree(GROUP, ENTRIES as usize + 3).await;
    cluster.stop_all().await;
    // What came is there after a restart too, and nothing of it is asked for again.
    for id in ALL {
        cluster.open(id).await.unwrap();
    }
    cluster.agree(GROUP, ENTRIES as usize + 3).await;
    assert_eq!(cluster.node(3).status().counters.snapshots_received, 0);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_follower_behind_the_purged_log_is_caught_up_by_a_snapshot() {
    let mut cluster = stranded(config()).await;
    cluster.open(3).await.unwrap();
    cluster.agree(GROUP, ENTRIES as usize).await;
    let counters = cluster.node(3).status().counters;
    assert_eq!((counters.snapshots_received, counters.restores), (1, 1));
    let status = cluster.node(3).group(GROUP).status().await.unwrap();
    assert_eq!(
        Some(status.purged),
        status.snapshot.map(|last| last.index),
        "its log begins behind the snapshot"
    );
    goes_on(&mut cluster).await;
}

#[tokio::test]
async fn a_transfer_goes_on_where_it_was_interrupted_even_with_another_leader() {
    let mut config = config();
    config.snapshot.rate = ByteSize::mib(1);
    let mut cluster = stranded(config).await;
    let bytes = ENTRIES * ENTRY_BYTES as u64;
    let leader = cluster.leader(1, GROUP);
    let other = 3 - leader;
    cluster.open(3).await.unwrap();
    let sent = |cluster: &Cluster, id| cluster.node(id).status().counters.snapshot_bytes_sent;
    until("half of it has left", async || {
        sent(&cluster, leader) > bytes / 2
    })
    .await;
    cluster.stop(leader).await;
    cluster.agree(GROUP, ENTRIES as usize).await;
    assert!(cluster.node(3).status().counters.resumed_transfers > 0);
    let rest = sent(&cluster, other);
    assert!(rest > 0 && rest < bytes * 2 / 3, "{rest} bytes came twice");
    cluster.open(leader).await.unwrap();
    goes_on(&mut cluster).await;
}

#[tokio::test]
async fn a_snapshot_that_is_damaged_at_its_sender_is_refused_and_taken_anew() {
    let mut cluster = stranded(config()).await;
    // Both of them: either may lead by the time that it is wanted.
    for id in cluster.running() {
        let dir = cluster.data_dir(id).join("snapshots");
        let file = std::fs::read_dir(dir).unwrap().next().unwrap().unwrap();
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(file.path())
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 1_000_000).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 1_000_000).unwrap();
    }
    cluster.open(3).await.unwrap();
    cluster.agree(GROUP, ENTRIES as usize).await;
    let counters = cluster.node(3).status().counters;
    assert!(counters.failed_transfers >= 1, "the damage went unnoticed");
    assert_eq!(counters.snapshots_received, 1);
    // The other one is replaced with the next snapshot.
    propose(&cluster, 3, ENTRIES..ENTRIES + 1).await;
    cluster.agree(GROUP, ENTRIES as usize + 1).await;
    snapshot_all(&cluster).await;
    cluster.stop_all().await;
    for id in ALL {
        cluster.open(id).await.unwrap();
    }
    cluster.agree(GROUP, ENTRIES as usize + 1).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn many_groups_are_caught_up_although_few_may_be_sent_at_once() {
    let mut config = config();
    config.snapshot.concurrent = 2;
    config.snapshot.keep_entries = 0;
    let mut cluster = Cluster::start(3, config).await;
    let groups = 1..40;
    cluster
        .node(1)
        .create_groups(groups.clone(), &ALL)
        .await
        .unwrap();
    cluster.led(groups.clone()).await;
    cluster.stop(3).await;
    for group in groups.clone() {
        until("a proposal commits", async || {
            let group = cluster.node(1).group(group);
            group.propose(Bytes::from_static(b"small")).await.is_ok()
        })
        .await;
        cluster.agree(group, 1).await;
        for id in [1, 2] {
            cluster.node(id).group(group).snapshot().await.unwrap();
        }
    }
    cluster.open(3).await.unwrap();
    for group in groups {
        cluster.agree(group, 1).await;
    }
    assert!(cluster.node(3).status().counters.snapshots_received >= 35);
    cluster.stop_all().await;
}

//! Snapshots sent between whole nodes over real QUIC: a follower that is further behind than the log reaches gets one.
//! What comes in between (a broken transfer, damaged files, a full disk) must cost time and nothing else.

use std::os::unix::fs::FileExt;

use bytes::Bytes;
use polyraft::config::ByteSize;
use polyraft::{Config, Index, NodeId};
use polyraft_tests::relay::Relay;
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

/// Bytes of snapshots that a node has sent.
fn sent(cluster: &Cluster, id: u64) -> u64 {
    cluster.node(id).status().counters.snapshot_bytes_sent
}

/// How many snapshots are on their way to a node: each has a file until it is whole.
fn arriving(cluster: &Cluster, id: u64) -> usize {
    let dir = cluster.data_dir(id).join("snapshots");
    let files = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let part = |file: &std::fs::DirEntry| file.path().extension().is_some_and(|it| it == "part");
    files.filter(part).count()
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
async fn a_transfer_goes_on_where_it_was_when_the_connection_to_its_leader_comes_back() {
    let mut config = config();
    config.snapshot.rate = ByteSize::mib(1);
    let mut cluster = stranded(config).await;
    let bytes = ENTRIES * ENTRY_BYTES as u64;
    let mut relays = Vec::new();
    for id in [1, 2] {
        cluster.stop(id).await;
        let relay = Relay::start(cluster.address(3)).await;
        cluster.route(id, 3, relay.address());
        cluster.open(id).await.unwrap();
        relays.push(relay);
    }
    cluster.led(GROUP..GROUP + 1).await;
    let leader = cluster.leader(1, GROUP);
    let relay = &relays[leader as usize - 1];
    let handle = cluster.node(leader).group(GROUP);
    let term = handle.status().await.unwrap().term;

    cluster.open(3).await.unwrap();
    until("half of it has left", async || {
        sent(&cluster, leader) > bytes / 2
    })
    .await;
    relay.cut();
    until("the connection is given up", async || {
        let peers = cluster.node(leader).status().peers;
        let mut peers = peers.iter().filter(|peer| peer.node == NodeId(3));
        peers.all(|peer| !peer.alive && peer.round_trip.is_none())
    })
    .await;
    assert_eq!(cluster.node(3).status().counters.snapshots_received, 0);
    relay.mend();
    cluster.agree(GROUP, ENTRIES as usize).await;

    assert!(cluster.node(3).status().counters.resumed_transfers > 0);
    let all = sent(&cluster, leader);
    assert!(all < bytes * 5 / 4, "{all} bytes for {bytes}");
    assert_eq!(sent(&cluster, 3 - leader), 0);
    assert_eq!(
        handle.status().await.unwrap().term,
        term,
        "it led all along"
    );
    drop(handle);
    goes_on(&mut cluster).await;
}

/// There is one place for a transfer at either end: the newer snapshot gets it from the older one.
#[tokio::test]
async fn a_transfer_is_given_up_when_a_newer_snapshot_is_there() {
    let mut config = config();
    config.snapshot.rate = ByteSize::mib(1);
    config.snapshot.concurrent = 1;
    let mut cluster = stranded(config).await;
    let bytes = ENTRIES * ENTRY_BYTES as u64;
    let leader = cluster.leader(1, GROUP);
    cluster.open(3).await.unwrap();
    until("a quarter of it has left", async || {
        sent(&cluster, leader) > bytes / 4
    })
    .await;
    propose(&cluster, leader, ENTRIES..ENTRIES + 1).await;
    let newer = cluster.node(leader).group(GROUP).snapshot().await.unwrap();
    assert_eq!(cluster.node(3).status().counters.snapshots_received, 0);
    assert_eq!(arriving(&cluster, 3), 1);

    cluster.agree(GROUP, ENTRIES as usize + 1).await;
    let status = cluster.node(3).group(GROUP).status().await.unwrap();
    assert_eq!(status.snapshot, Some(newer));
    let counters = cluster.node(3).status().counters;
    assert_eq!((counters.snapshots_received, counters.restores), (1, 1));
    assert_eq!(counters.failed_transfers, 0);
    assert_eq!(arriving(&cluster, 3), 0);
    let all = sent(&cluster, leader);
    assert!(all > bytes + bytes / 4, "{all} bytes of two snapshots");
    cluster.stop_all().await;
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
async fn a_snapshot_that_its_sender_cannot_read_is_taken_anew() {
    for is_removed in [false, true] {
        let mut cluster = stranded(config()).await;
        for id in cluster.running() {
            let dir = cluster.data_dir(id).join("snapshots");
            let file = std::fs::read_dir(dir).unwrap().next().unwrap().unwrap();
            if is_removed {
                std::fs::remove_file(file.path()).unwrap();
            } else {
                let file = std::fs::OpenOptions::new().write(true).open(file.path());
                file.unwrap().set_len(1_000_000).unwrap();
            }
        }
        cluster.open(3).await.unwrap();
        cluster.agree(GROUP, ENTRIES as usize).await;
        assert_eq!(cluster.node(3).status().counters.snapshots_received, 1);
        cluster.stop_all().await;
    }
}

#[tokio::test]
async fn many_groups_are_caught_up_although_few_may_be_sent_at_once() {
    const AT_ONCE: usize = 2;
    let mut config = config();
    config.snapshot.concurrent = AT_ONCE as u32;
    config.snapshot.keep_entries = 0;
    // All of them would be under way together if they might.
    config.snapshot.chunk_bytes = ByteSize::kib(4);
    config.snapshot.rate = ByteSize::mib(1);
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
            group.propose(payload(1)).await.is_ok()
        })
        .await;
        cluster.agree(group, 1).await;
        for id in [1, 2] {
            cluster.node(id).group(group).snapshot().await.unwrap();
        }
    }
    cluster.open(3).await.unwrap();
    let mut most = 0;
    until("nearly all have come", async || {
        most = most.max(arriving(&cluster, 3));
        cluster.node(3).status().counters.snapshots_received >= 35
    })
    .await;
    assert_eq!(most, AT_ONCE, "came at the same time");
    for group in groups {
        cluster.agree(group, 1).await;
    }
    cluster.stop_all().await;
}

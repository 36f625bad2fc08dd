//! Snapshots of whole nodes over real QUIC: taken while groups go on, the log behind them forgotten, restarts from them.

use bytes::Bytes;
use polyraft::config::ByteSize;
use polyraft::{Config, Error, Index};
use polyraft_tests::{Cluster, Ledger, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("proposal {number}"))
}

fn padded(number: u64, bytes: usize) -> Bytes {
    let mut payload = payload(number).to_vec();
    payload.resize(bytes, b' ');
    Bytes::from(payload)
}

fn config(keep_entries: u64) -> Config {
    let mut config = small_config();
    config.snapshot.keep_entries = keep_entries;
    config
}

async fn propose(cluster: &Cluster, asked: u64, group: u64, numbers: std::ops::Range<u64>) {
    for number in numbers {
        until("a proposal commits", async || {
            let group = cluster.node(asked).group(group);
            group.propose(payload(number)).await.is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn a_restart_begins_with_the_snapshot_and_applies_the_rest() {
    let mut cluster = Cluster::start(3, config(4)).await;
    cluster.node(1).create_groups(0..4, &ALL).await.unwrap();
    cluster.led(0..4).await;
    for group in 0..4 {
        propose(&cluster, 1, group, 0..20).await;
        cluster.agree(group, 20).await;
    }
    for group in 0..3 {
        for id in ALL {
            let group = cluster.node(id).group(group);
            let last = group.snapshot().await.unwrap();
            let status = group.status().await.unwrap();
            assert_eq!(status.snapshot, Some(last));
            assert!(last.index >= Index(20));
            assert_eq!(status.purged, Index(last.index.0 - 4));
            assert_eq!(group.snapshot().await.unwrap(), last, "nothing is new");
        }
        propose(&cluster, 1, group, 20..30).await;
    }
    cluster.stop_all().await;
    for id in ALL {
        cluster.open(id).await.unwrap();
        let counters = cluster.node(id).status().counters;
        assert_eq!(counters.restores, 3, "one group has no snapshot");
    }
    cluster.led(0..4).await;
    for group in 0..4 {
        let count = if group < 3 { 30 } else { 20 };
        let entries = cluster.agree(group, count).await;
        let expected: Vec<Bytes> = (0..count as u64).map(payload).collect();
        assert_eq!(entries.into_values().collect::<Vec<_>>(), expected);
        propose(&cluster, 2, group, 100..105).await;
        cluster.agree(group, count + 5).await;
    }
    cluster.stop_all().await;
}

/// By the number of entries and by their bytes, each alone: fifty entries, or forty kibibytes of those that have one.
#[tokio::test]
async fn snapshots_are_taken_by_themselves_and_bound_the_log() {
    for (entries, bytes, payload_bytes) in [(50, ByteSize::b(0), 12), (0, ByteSize::kib(40), 1024)]
    {
        let mut config = config(10);
        (config.snapshot.entries, config.snapshot.bytes) = (entries, bytes);
        let mut cluster = Cluster::start(1, config).await;
        cluster.node(1).create_groups(1..2, &[1]).await.unwrap();
        cluster.led(1..2).await;
        let group = cluster.node(1).group(1);
        for number in 1..=8 {
            let all = (0..50).map(|entry| padded(entry, payload_bytes)).collect();
            group.propose_many(all).await.unwrap();
            until("a snapshot is taken", async || {
                cluster.node(1).status().counters.snapshots >= number
            })
            .await;
        }
        until("the log is purged", async || {
            let status = group.status().await.unwrap();
            status.purged.0 + 70 >= status.last.index.0
        })
        .await;
        drop(group);
        cluster.stop_all().await;
        cluster.open(1).await.unwrap();
        assert_eq!(cluster.agree(1, 400).await.len(), 400);
        cluster.stop_all().await;
    }
}

/// What is small is not due by its bytes, and nothing is if nothing is said.
#[tokio::test]
async fn no_snapshot_is_taken_before_one_is_due() {
    for bytes in [ByteSize::b(0), ByteSize::mib(1)] {
        let mut config = config(10);
        config.snapshot.bytes = bytes;
        let mut cluster = Cluster::start(1, config).await;
        cluster.node(1).create_groups(1..2, &[1]).await.unwrap();
        cluster.led(1..2).await;
        let group = cluster.node(1).group(1);
        for _ in 0..4 {
            let all = (0..100).map(payload).collect();
            group.propose_many(all).await.unwrap();
        }
        // One on request comes behind all that were due before.
        group.snapshot().await.unwrap();
        assert_eq!(cluster.node(1).status().counters.snapshots, 1);
        drop(group);
        cluster.stop_all().await;
    }
}

#[tokio::test]
async fn a_follower_within_the_kept_tail_is_caught_up_without_a_snapshot() {
    const KEPT: u64 = 20;
    let mut cluster = Cluster::start(3, config(KEPT)).await;
    cluster.node(1).create_groups(1..2, &ALL).await.unwrap();
    cluster.led(1..2).await;
    propose(&cluster, 1, 1, 0..40).await;
    cluster.agree(1, 40).await;
    let offered = |cluster: &Cluster| -> u64 {
        let counters = |id| cluster.node(id).status().counters;
        [1, 2].map(|id| counters(id).snapshots_offered).iter().sum()
    };

    // It lacks less than what is kept, and more than what the snapshot leaves without that.
    cluster.stop(3).await;
    propose(&cluster, 1, 1, 40..50).await;
    cluster.agree(1, 50).await;
    purge(&cluster, KEPT).await;
    cluster.open(3).await.unwrap();
    cluster.agree(1, 50).await;
    assert_eq!(cluster.node(3).status().counters.snapshots_received, 0);
    assert_eq!(offered(&cluster), 0);

    // It lacks more.
    cluster.stop(3).await;
    propose(&cluster, 1, 1, 50..55 + KEPT).await;
    cluster.agree(1, 55 + KEPT as usize).await;
    purge(&cluster, KEPT).await;
    cluster.open(3).await.unwrap();
    cluster.agree(1, 55 + KEPT as usize).await;
    assert_eq!(cluster.node(3).status().counters.snapshots_received, 1);
    assert!(offered(&cluster) > 0);
    cluster.stop_all().await;
}

/// Every node that runs has a snapshot of all of group 1, and `kept` entries before it.
async fn purge(cluster: &Cluster, kept: u64) {
    for id in cluster.running() {
        let group = cluster.node(id).group(1);
        until("the log is purged", async || {
            let last = group.snapshot().await.unwrap();
            let status = group.status().await.unwrap();
            assert_eq!(status.purged, Index(last.index.0 - kept));
            last.index == status.last.index
        })
        .await;
    }
}

#[tokio::test]
async fn a_snapshot_of_what_is_not_here_or_has_stopped_is_refused() {
    let mut cluster = Cluster::start(1, config(0)).await;
    cluster.node(1).create_groups(1..2, &[1]).await.unwrap();
    cluster.led(1..2).await;
    let missing = cluster.node(1).group(9).snapshot().await;
    assert!(
        matches!(missing, Err(Error::NoSuchGroup { .. })),
        "{missing:?}"
    );
    let group = cluster.node(1).group(1);
    group.propose(Ledger::POISON).await.unwrap_err();
    let stopped = group.snapshot().await;
    assert!(
        matches!(stopped, Err(Error::Fault { .. } | Error::Snapshot { .. })),
        "{stopped:?}"
    );
    drop(group);
    cluster.stop_all().await;
}

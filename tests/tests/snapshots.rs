//! Snapshots of whole nodes over real QUIC: taken while groups go on, the log behind them forgotten, restarts from them.

use bytes::Bytes;
use polyraft::{Config, Error, Index};
use polyraft_tests::{Cluster, Ledger, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("proposal {number}"))
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

#[tokio::test]
async fn snapshots_are_taken_by_themselves_and_bound_the_log() {
    let mut config = config(10);
    config.snapshot.entries = 50;
    let mut cluster = Cluster::start(1, config).await;
    cluster.node(1).create_groups(1..2, &[1]).await.unwrap();
    cluster.led(1..2).await;
    let group = cluster.node(1).group(1);
    for number in 1..=8 {
        let all = (0..50).map(payload).collect();
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

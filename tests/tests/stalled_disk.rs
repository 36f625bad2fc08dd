//! A node whose disk stalls: others lead and write its groups while it does, and it catches up afterwards.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use polyraft::{Config, NodeId};
use polyraft_storage::sim::StallDisk;
use polyraft_tests::{Cluster, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];
const GROUPS: u64 = 8;
/// Longer than any test runs: it is ended, not waited for.
const LONG: Duration = Duration::from_secs(3600);

/// Commits an entry that no other is equal to; it may be there several times.
async fn write(cluster: &Cluster, asked: u64, group: u64, number: u64) {
    until("a proposal commits", async || {
        let group = cluster.node(asked).group(group);
        group
            .propose(Bytes::from(format!("entry {number}")))
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test]
async fn groups_of_a_stalled_disk_are_led_and_written_elsewhere_until_it_goes_on() {
    let mut config = small_config();
    config.wal.stall_timeout = Duration::from_millis(400);
    groups_go_on_without_a_disk(config).await;
}

/// The shard stands still with its disk, so others elect leaders.
#[tokio::test]
async fn groups_of_a_shard_that_syncs_inline_are_led_and_written_elsewhere_too() {
    let mut config = small_config();
    config.wal.inline_sync = Duration::from_millis(10);
    groups_go_on_without_a_disk(config).await;
}

async fn groups_go_on_without_a_disk(mut config: Config) {
    let stands_still = !config.wal.inline_sync.is_zero();
    config.shards.proposal_timeout = Duration::from_secs(2);
    let mut cluster = Cluster::start(3, config).await;
    cluster.stop(1).await;
    let disk = StallDisk::default();
    cluster.put_on(1, Arc::new(disk.clone()));
    cluster.open(1).await.unwrap();
    for peer in [2, 3] {
        cluster.sees(peer, 1, true).await;
    }
    cluster
        .node(1)
        .create_groups(0..GROUPS, &ALL)
        .await
        .unwrap();
    cluster.led(0..GROUPS).await;
    for group in 0..GROUPS {
        write(&cluster, 2, group, 0).await;
    }
    // Chance may have had another one elected; node 1 is to lead some.
    for group in 0..2 {
        until("node 1 leads", async || {
            let leader = cluster.leader(2, group);
            leader == 1
                || cluster
                    .node(leader)
                    .group(group)
                    .transfer_leadership(1)
                    .await
                    .is_ok()
        })
        .await;
    }
    until("node 1 leads", async || cluster.node(1).status().led >= 2).await;
    cluster.led(0..GROUPS).await;

    let inline_syncs = cluster.node(1).status().wal.inline_syncs;
    assert_eq!(inline_syncs > 0, stands_still);
    disk.stall(LONG);
    for group in 0..GROUPS {
        write(&cluster, 2, group, 1).await;
    }
    assert!(disk.is_stalled());
    if !stands_still {
        until("node 1 leads nothing", async || {
            cluster.node(1).status().led == 0
        })
        .await;
        cluster.led(0..GROUPS).await;
    }
    until("others lead", async || {
        let leader = |group| cluster.node(2).group(group).leader();
        (0..GROUPS).all(|group| leader(group).is_some_and(|(node, _)| node != NodeId(1)))
    })
    .await;

    disk.stall(Duration::ZERO);
    for group in 0..GROUPS {
        write(&cluster, 1, group, 2).await;
        until("every replica has everything", async || {
            for node in ALL {
                let entries = cluster.applied(node, group).await;
                let has = |number: u64| {
                    let written = Bytes::from(format!("entry {number}"));
                    entries.values().any(|entry| *entry == written)
                };
                if !(0..3).all(has) {
                    return false;
                }
            }
            true
        })
        .await;
    }
    cluster.stop_all().await;
}

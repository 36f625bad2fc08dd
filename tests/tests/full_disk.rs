//! A node whose disk fills up: its groups are led and written elsewhere, its votes still count, and it catches up once there is
//! room. The disk is full in that the node may not make segments beyond those that it has.

use bytes::Bytes;
use bytesize::ByteSize;
use polyraft_tests::{Cluster, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];
const GROUPS: u64 = 8;

/// An entry that no other is equal to, commits in the end. Returns how often it was tried.
async fn write(cluster: &Cluster, group: u64, unique: &mut u64) -> u64 {
    let before = *unique;
    until("a proposal commits", async || {
        *unique += 1;
        let mut payload = unique.to_le_bytes().to_vec();
        payload.resize(48 << 10, 7);
        let group = cluster.node(2).group(group);
        group.propose(Bytes::from(payload)).await.is_ok()
    })
    .await;
    *unique - before
}

#[tokio::test]
async fn groups_of_a_full_disk_are_led_and_written_elsewhere() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster
        .node(1)
        .create_groups(0..GROUPS, &ALL)
        .await
        .unwrap();
    cluster.led(0..GROUPS).await;

    // Node 1 has what it has prepared, and no more. Chance decides who leads what after a restart of all.
    let mut full = small_config();
    full.wal.min_free_bytes = ByteSize::tib(1);
    loop {
        cluster.stop_all().await;
        cluster.reconfigure(full.clone());
        cluster.open(1).await.unwrap();
        cluster.reconfigure(small_config());
        cluster.open(2).await.unwrap();
        cluster.open(3).await.unwrap();
        cluster.led(0..GROUPS).await;
        if cluster.node(1).status().led > 0 {
            break;
        }
    }

    // Several times what node 1 has room for.
    let (mut unique, mut written) = (0, 0);
    for _ in 0..60 {
        for group in 0..GROUPS {
            write(&cluster, group, &mut unique).await;
            written += 48 << 10;
        }
    }
    assert!(written > 16 << 20);
    until("the full node leads nothing", async || {
        cluster.node(1).status().led == 0
    })
    .await;
    assert!(cluster.node(1).status().wal.disk_full);
    assert_eq!(cluster.node(1).status().quarantined, 0);

    // Its vote is what elects a leader when another node stops.
    let lost: Vec<u64> = (0..GROUPS)
        .filter(|group| cluster.leader(2, *group) == 3)
        .collect();
    cluster.stop(3).await;
    cluster.led(0..GROUPS).await;
    assert!(
        lost.iter().all(|group| cluster.leader(2, *group) == 2),
        "the full node leads again"
    );

    // With room, it catches up.
    cluster.stop(1).await;
    cluster.open(1).await.unwrap();
    cluster.open(3).await.unwrap();
    for group in 0..GROUPS {
        write(&cluster, group, &mut unique).await;
        cluster.agree(group, 61).await;
    }
    cluster.stop_all().await;
}

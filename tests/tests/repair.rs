//! Logs that rot on the disk of a node, and replicas that get them back from their peers: real nodes, real files.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use polyraft::{Config, Error, MemberChange, NodeId};
use polyraft_tests::{Cluster, small_config, until};

const GROUPS: Range<u64> = 0..4;
const WITHIN: Duration = Duration::from_secs(20);

fn payload(group: u64, number: u64) -> Bytes {
    Bytes::from(format!("entry {number} of group {group};"))
}

/// Three nodes with the same entries in all of these groups.
async fn loaded(config: Config, groups: Range<u64>) -> Cluster {
    let cluster = Cluster::start(3, config).await;
    let node = cluster.node(1);
    node.create_groups(groups.clone(), &[1, 2, 3])
        .await
        .unwrap();
    for group in groups {
        for number in 0..20 {
            insist(&cluster, group, payload(group, number)).await;
        }
        cluster.agree(group, 20).await;
    }
    cluster
}

/// Proposes until it is surely committed.
async fn insist(cluster: &Cluster, group: u64, payload: Bytes) {
    until("a proposal commits", async || {
        let running = cluster.running();
        let group = cluster.node(running[0]).group(group);
        group.propose(payload.clone()).await.is_ok()
    })
    .await;
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let lane = dir.join("wal/0");
    let files = std::fs::read_dir(lane).expect("a lane of the log");
    let files = files.map(|file| file.expect("a file of the log").path());
    files
        .filter(|file| file.extension().is_some_and(|end| end == "seg"))
        .collect()
}

/// Flips a bit of an entry, wherever it stands in the log of a node that is stopped.
fn rot(cluster: &Cluster, node: u64, entry: &[u8]) {
    let mut hits = 0;
    for path in segments(&cluster.data_dir(node)) {
        let bytes = std::fs::read(&path).expect("a segment");
        let places = bytes.windows(entry.len()).enumerate();
        for (at, _) in places.filter(|(_, found)| *found == entry) {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[entry[0] ^ 1], at as u64).unwrap();
            hits += 1;
        }
    }
    assert!(hits > 0, "{entry:?} is not in the log of node {node}");
}

async fn fault(cluster: &Cluster, node: u64, group: u64) -> Option<String> {
    let status = cluster.node(node).group(group).status().await;
    status.ok().and_then(|status| status.fault)
}

/// Flips a bit of the snapshot of a group on a node that is stopped, so far from its beginning.
fn rot_snapshot(cluster: &Cluster, node: u64, group: u64, at: u64) {
    let files = std::fs::read_dir(cluster.data_dir(node).join("snapshots")).expect("snapshots");
    let mut names = files.map(|file| file.expect("a snapshot").path());
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy();
        name.starts_with(&format!("{group}-"))
    };
    let path = names.find(is_wanted).expect("a snapshot of it");
    let file = OpenOptions::new().read(true).write(true).open(path);
    let (file, mut byte) = (file.unwrap(), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn a_replica_whose_snapshot_rots_gets_it_back_from_its_peers() {
    let mut config = small_config();
    config.snapshot.keep_entries = 0;
    let mut cluster = loaded(config, GROUPS).await;
    for group in GROUPS {
        let handle = cluster.node(3).group(group);
        until("the log is purged", async || {
            let last = handle.snapshot().await.unwrap();
            let status = handle.status().await.unwrap();
            last.index.0 > 20 && status.purged == last.index
        })
        .await;
    }
    cluster.stop(3).await;
    // In the header, where nothing can be said of it any more, and in the state.
    rot_snapshot(&cluster, 3, 1, 20);
    rot_snapshot(&cluster, 3, 2, 200);
    cluster.open(3).await.unwrap();
    until("both have dropped what they had", async || {
        cluster.node(3).status().counters.repairs == 2
    })
    .await;
    for group in GROUPS {
        until("the state is there again", async || {
            let status = cluster.node(3).group(group).status().await;
            status.is_ok_and(|status| {
                let is_back = status.fault.is_none() && status.returning.is_none();
                is_back && status.applied >= status.last.index && status.last.index.0 > 20
            })
        })
        .await;
        assert_eq!(cluster.agree(group, 20).await.len(), 20);
    }
    let status = cluster.node(3).status();
    assert_eq!((status.quarantined, status.counters.repairs), (0, 2));
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_snapshot_that_rots_without_repair_says_what_to_do() {
    let mut config = small_config();
    config.snapshot.keep_entries = 0;
    config.wal.repair = false;
    let mut cluster = loaded(config, 0..1).await;
    let last = cluster.node(3).group(0).snapshot().await.unwrap();
    assert!(last.index.0 > 20);
    cluster.stop(3).await;
    rot_snapshot(&cluster, 3, 0, 20);
    cluster.open(3).await.unwrap();
    let reason = fault(&cluster, 3, 0).await.expect("a fault");
    assert!(reason.contains("missing or damaged"), "{reason}");
    assert!(reason.contains("add it anew"), "{reason}");
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_replica_whose_log_rots_gets_it_back_from_its_peers() {
    let mut cluster = loaded(small_config(), GROUPS).await;
    cluster.stop(3).await;
    rot(&cluster, 3, &payload(1, 7));
    rot(&cluster, 3, &payload(2, 19));
    cluster.open(3).await.unwrap();
    // The others serve, on this node too.
    insist(&cluster, 0, payload(0, 20)).await;
    for group in [1, 2] {
        until("the log is there again", async || {
            let status = cluster.node(3).group(group).status().await;
            status.is_ok_and(|status| {
                let is_back = status.fault.is_none() && status.returning.is_none();
                is_back && status.applied >= status.last.index && status.last.index.0 > 20
            })
        })
        .await;
        let entries = cluster.agree(group, 20).await;
        assert_eq!(entries.len(), 20);
    }
    cluster.agree(0, 21).await;
    let status = cluster.node(3).status();
    assert_eq!((status.quarantined, status.counters.repairs), (0, 2));
    // It is a voter like any other: with one of the others gone, nothing commits without it.
    cluster.stop(1).await;
    for group in GROUPS {
        insist(&cluster, group, payload(group, 30)).await;
    }
    // And it is all durable.
    cluster.stop(3).await;
    cluster.open(3).await.unwrap();
    for group in GROUPS {
        let count = if group == 0 { 22 } else { 21 };
        cluster.agree(group, count).await;
        assert_eq!(fault(&cluster, 3, group).await, None);
    }
    assert_eq!(cluster.node(3).status().counters.repairs, 0);
    cluster.stop_all().await;
}

#[tokio::test]
async fn damaged_replicas_of_a_group_without_a_quorum_keep_what_they_have() {
    // No other group on these nodes holds elections.
    let mut cluster = loaded(small_config(), 1..2).await;
    cluster.stop_all().await;
    rot(&cluster, 2, &payload(1, 7));
    rot(&cluster, 3, &payload(1, 9));
    for id in 1..=3 {
        cluster.open(id).await.unwrap();
    }
    // For as long as a repair takes, and longer.
    until(
        "the sound replica has looked for votes in vain",
        async || cluster.node(1).status().counters.elections >= 20,
    )
    .await;
    for id in [2, 3] {
        assert!(fault(&cluster, id, 1).await.is_some(), "node {id}");
        let status = cluster.node(id).status();
        assert_eq!((status.quarantined, status.counters.repairs), (1, 0));
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_damaged_replica_that_is_not_repaired_can_be_removed_and_added_again() {
    let mut config = small_config();
    config.wal.repair = false;
    let mut cluster = loaded(config, GROUPS).await;
    cluster.stop(3).await;
    rot(&cluster, 3, &payload(1, 7));
    let change = async |cluster: &Cluster, change: MemberChange| {
        until("the leader takes the change", async || {
            for id in cluster.running() {
                let group = cluster.node(id).group(1);
                if group.change_members([change], WITHIN).await.is_ok() {
                    return true;
                }
            }
            false
        })
        .await;
    };
    // It is removed while it is down, and nobody says so to a replica in quarantine that does not ask.
    change(&cluster, MemberChange::Remove(NodeId(3))).await;
    cluster.open(3).await.unwrap();
    until("the damaged replica has ended", async || {
        let status = cluster.node(3).group(1).status().await;
        matches!(status, Err(Error::NoSuchGroup { .. }))
    })
    .await;
    change(&cluster, MemberChange::Voter(NodeId(3))).await;
    assert_eq!(cluster.agree(1, 20).await.len(), 20);
    assert_eq!(fault(&cluster, 3, 1).await, None);
    assert_eq!(cluster.node(3).status().counters.repairs, 0);
    cluster.stop_all().await;
}

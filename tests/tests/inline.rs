//! Nodes whose shards sync and apply by themselves.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use polyraft::{
    Config, Entry, FrozenState, GroupId, Index, MachineError, Read, Replies, StateMachine,
};
use polyraft_tests::{Cluster, Ledger, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];
const GROUPS: u64 = 4;
const WRITES: u64 = 50;

/// Calls of `apply` on threads of shards, and on others.
static BY_SHARDS: AtomicU64 = AtomicU64::new(0);
static BY_WORKERS: AtomicU64 = AtomicU64::new(0);

/// A ledger that counts who applies.
struct Seen(Ledger);

impl StateMachine for Seen {
    fn open(group: GroupId, dir: &Path) -> Result<(Self, Index), MachineError> {
        let (ledger, index) = Ledger::open(group, dir)?;
        Ok((Seen(ledger), index))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        let thread = std::thread::current();
        let is_shard = thread.name().is_some_and(|name| name.contains("-shard-"));
        let count = if is_shard { &BY_SHARDS } else { &BY_WORKERS };
        count.fetch_add(1, Ordering::Relaxed);
        self.0.apply(entries, replies)
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, MachineError> {
        self.0.query(query)
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        self.0.snapshot()
    }

    fn restore(&mut self, last: Index, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        self.0.restore(last, from)
    }
}

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("proposal {number}"))
}

/// What shards did by themselves.
#[derive(Debug, Default, PartialEq, Eq)]
struct Inline {
    applies: u64,
    syncs: u64,
}

/// Writes to all groups, with reads and snapshots in between, restarts the nodes, and checks every replica.
async fn write_read_and_restart(config: Config) -> Inline {
    let mut cluster = Cluster::<Seen>::of_machines(3, config).await;
    cluster
        .node(1)
        .create_groups(0..GROUPS, &ALL)
        .await
        .unwrap();
    cluster.led(0..GROUPS).await;
    for number in 0..WRITES {
        for group in 0..GROUPS {
            until("a proposal commits", async || {
                let group = cluster.node(1 + number % 3).group(group);
                group.propose(payload(number)).await.is_ok()
            })
            .await;
        }
        if number % 10 == 9 {
            let group = cluster.node(1).group(0);
            until("a read is answered", async || {
                group.read(Read::Linearizable, Bytes::new()).await.is_ok()
            })
            .await;
            until("a snapshot is taken", async || {
                group.snapshot().await.is_ok()
            })
            .await;
        }
    }
    for group in 0..GROUPS {
        cluster.agree(group, WRITES as usize).await;
    }
    let mut inline = Inline::default();
    for id in ALL {
        let status = cluster.node(id).status();
        inline.applies += status.counters.inline_applies;
        inline.syncs += status.wal.inline_syncs;
    }
    cluster.stop_all().await;
    for id in ALL {
        cluster.open(id).await.unwrap();
    }
    for group in 0..GROUPS {
        let entries = cluster.agree(group, WRITES as usize).await;
        // One that was asked for again may be there twice.
        let mut seen = HashSet::new();
        let entries = entries
            .into_values()
            .filter(|entry| seen.insert(entry.clone()));
        assert!(entries.eq((0..WRITES).map(payload)));
    }
    cluster.stop_all().await;
    inline
}

#[tokio::test]
async fn shards_apply_what_they_commit_if_they_are_asked_to() {
    let nothing = write_read_and_restart(small_config()).await;
    assert_eq!(nothing, Inline::default());
    assert_eq!(BY_SHARDS.load(Ordering::Relaxed), 0);
    assert!(BY_WORKERS.load(Ordering::Relaxed) > 0);

    let mut config = small_config();
    config.apply.inline = Duration::from_millis(10);
    config.wal.inline_sync = Duration::from_millis(10);
    let inline = write_read_and_restart(config.clone()).await;
    assert!(BY_SHARDS.load(Ordering::Relaxed) > 0);
    assert!(inline.applies > 0 && inline.syncs > 0, "{inline:?}");

    // Where several workers have something to do, they do it.
    config.apply.workers = 2;
    let inline = write_read_and_restart(config).await;
    assert!(inline.applies > 0 && inline.syncs > 0, "{inline:?}");
}

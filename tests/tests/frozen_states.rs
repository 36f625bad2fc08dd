//! State machines that take long to write a snapshot: nobody waits for them but those who asked for it.

use std::path::Path;
use std::sync::mpsc;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft::{
    Config, Entry, FrozenState, GroupId, Index, MachineError, Read, Replies, StateMachine,
};
use polyraft_tests::{Cluster, Ledger, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];

/// What the next snapshot of group 1 that is taken has to pass.
static GATE: Mutex<Option<Gate>> = Mutex::new(None);

/// Says that a keeper has come, and lets it go on once there is no other end any more.
struct Gate {
    has_come: mpsc::Sender<()>,
    other_end: mpsc::Receiver<()>,
}

/// A ledger whose snapshots pass the gate while they are written.
struct Gated {
    group: GroupId,
    ledger: Ledger,
}

impl StateMachine for Gated {
    fn open(group: GroupId, dir: &Path) -> Result<(Self, Index), MachineError> {
        let (ledger, index) = Ledger::open(group, dir)?;
        Ok((Gated { group, ledger }, index))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        self.ledger.apply(entries, replies)
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, MachineError> {
        self.ledger.query(query)
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        let state = self.ledger.snapshot()?;
        let gate = (self.group == GroupId(1)).then(|| GATE.lock().take());
        Ok(Box::new(move |out| {
            if let Some(Gate {
                has_come,
                other_end,
            }) = gate.flatten()
            {
                has_come.send(()).expect("a test that waits");
                let _ = other_end.recv();
            }
            state(out)
        }))
    }

    fn restore(&mut self, last: Index, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        self.ledger.restore(last, from)
    }
}

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("proposal {number}"))
}

/// One thread of each kind, so that any of them that waited would be missed.
fn config() -> Config {
    let mut config = small_config();
    config.shards.count = 1;
    config.apply.workers = 1;
    config.snapshot.workers = 1;
    config.snapshot.keep_entries = 0;
    config
}

async fn propose(cluster: &Cluster<Gated>, group: u64, numbers: std::ops::Range<u64>) {
    for number in numbers {
        until("a proposal commits", async || {
            let group = cluster.node(1).group(group);
            group.propose(payload(number)).await.is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn groups_go_on_while_the_snapshot_of_one_is_written() {
    let mut cluster = Cluster::<Gated>::of_machines(3, config()).await;
    cluster.node(1).create_groups(1..3, &ALL).await.unwrap();
    cluster.led(1..3).await;
    propose(&cluster, 1, 0..20).await;
    propose(&cluster, 2, 0..5).await;
    let before = cluster.agree(1, 20).await;
    let frozen_at = before.into_keys().next_back().unwrap();

    let leader = cluster.leader(1, 1);
    let (has_come, coming) = mpsc::channel();
    let (opens, other_end) = mpsc::channel();
    *GATE.lock() = Some(Gate {
        has_come,
        other_end,
    });
    let group = cluster.node(leader).group(1);
    let asked = group.clone();
    let snapshot = tokio::spawn(async move { asked.snapshot().await });
    until("the snapshot is being written", async || {
        coming.try_recv().is_ok()
    })
    .await;

    // On the node whose keeper is busy with it, too: reads there see what was committed since.
    propose(&cluster, 1, 20..40).await;
    propose(&cluster, 2, 5..10).await;
    cluster.agree(1, 40).await;
    cluster.agree(2, 10).await;
    for group in [1, 2] {
        let group = cluster.node(leader).group(group);
        let read = group.read(Read::Linearizable, Bytes::new()).await;
        assert!(read.is_ok(), "{read:?}");
    }
    assert!(!snapshot.is_finished());
    let status = group.status().await.unwrap();
    assert_eq!((status.snapshot, status.purged), (None, Index::ZERO));

    drop(opens);
    let last = snapshot.await.unwrap().unwrap();
    assert!(
        (frozen_at.0..frozen_at.0 + 20).contains(&last.index.0),
        "{last:?} is of when it was asked for, at {frozen_at}"
    );
    let status = group.status().await.unwrap();
    assert_eq!((status.snapshot, status.purged), (Some(last), last.index));
    drop(group);

    // What was written is the state of then: with the rest of the log it makes the whole.
    cluster.stop_all().await;
    for id in ALL {
        cluster.open(id).await.unwrap();
    }
    assert_eq!(cluster.node(leader).status().counters.restores, 1);
    let entries = cluster.agree(1, 40).await;
    assert!(entries.into_values().eq((0..40).map(payload)));
    cluster.stop_all().await;
}

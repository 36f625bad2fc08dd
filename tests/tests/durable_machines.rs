//! State machines that keep their state in a file: they stream it into snapshots and out of them in small pieces, and a node that
//! stops in the middle of that comes up with all of it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use bytes::{BufMut, Bytes};
use parking_lot::Mutex;
use polyraft::config::ByteSize;
use polyraft::{
    Config, Entry, Error, FrozenState, GroupId, Index, MachineError, Read, Replies, StateMachine,
};
use polyraft_tests::{Cluster, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];
const GROUP: u64 = 1;
const OTHER: u64 = 2;
/// Entries of the group, and their size: a state of two megabytes.
const ENTRIES: u64 = 40;
const ENTRY_BYTES: usize = 50_000;
/// The most that a state machine holds of a state.
const PIECE: usize = 4096;
/// Bytes of a file before the first entry: the index of the snapshot that it began with.
const HEAD: u64 = 8;

/// Pieces that were written into snapshots and read from them.
static WRITTEN: AtomicUsize = AtomicUsize::new(0);
static READ: AtomicUsize = AtomicUsize::new(0);
/// What stops the next state machine that has read half of a snapshot.
static CRASH: Mutex<Option<Crash>> = Mutex::new(None);

/// Says that half is read, and lets the state machine fail once there is no other end any more.
struct Crash {
    has_come: mpsc::Sender<()>,
    other_end: mpsc::Receiver<()>,
}

/// Entries one behind the other in a file, as a ledger writes them. Nothing of them is kept in memory.
struct Filed {
    path: PathBuf,
    file: File,
    bytes: u64,
    last: Index,
}

impl Filed {
    /// What is in the file of a directory, up to an entry that was not written to its end.
    fn read(dir: &Path) -> Result<Filed, MachineError> {
        let path = dir.join("entries");
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut number = [0; 8];
        file.read_exact_at(&mut number, 0)?;
        let (mut bytes, mut last) = (HEAD, Index(u64::from_le_bytes(number)));
        let length = file.metadata()?.len();
        let mut head = [0; 12];
        while bytes + 12 <= length {
            file.read_exact_at(&mut head, bytes)?;
            let index = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
            let payload = u32::from_le_bytes(head[8..].try_into().expect("four bytes"));
            let end = bytes + 12 + u64::from(payload);
            if length < end {
                break;
            }
            (bytes, last) = (end, last.max(Index(index)));
        }
        file.set_len(bytes)?;
        Ok(Filed {
            path,
            file,
            bytes,
            last,
        })
    }
}

impl StateMachine for Filed {
    fn open(_group: GroupId, dir: &Path) -> Result<(Self, Index), MachineError> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("entries");
        if !path.exists() {
            std::fs::write(dir.join("first"), [0; HEAD as usize])?;
            std::fs::rename(dir.join("first"), path)?;
        }
        let filed = Filed::read(dir)?;
        let last = filed.last;
        Ok((filed, last))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        for entry in entries {
            if entry.index <= self.last {
                return Err(format!("index {} came again", entry.index).into());
            }
            let mut record = Vec::new();
            record.put_u64_le(entry.index.0);
            record.put_u32_le(entry.payload.len() as u32);
            record.put_slice(entry.payload);
            self.file.write_all_at(&record, self.bytes)?;
            self.bytes += record.len() as u64;
            self.last = entry.index;
            replies.push([]);
        }
        Ok(self.file.sync_data()?)
    }

    fn query(&self, _query: &[u8]) -> Result<Bytes, MachineError> {
        let mut all = vec![0; (self.bytes - HEAD) as usize];
        self.file.read_exact_at(&mut all, HEAD)?;
        Ok(Bytes::from(all))
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        // What is in the file so far does not change: entries come behind it, and another state is another file.
        let (file, end) = (self.file.try_clone()?, self.bytes);
        Ok(Box::new(move |out| {
            let (mut at, mut piece) = (HEAD, [0; PIECE]);
            while at < end {
                let bytes = (end - at).min(PIECE as u64) as usize;
                file.read_exact_at(&mut piece[..bytes], at)?;
                out.write_all(&piece[..bytes])?;
                at += bytes as u64;
                WRITTEN.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }))
    }

    fn restore(&mut self, last: Index, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        let dir = self.path.parent().expect("a directory").to_owned();
        let beside = dir.join("beside");
        let mut file = File::create(&beside)?;
        file.write_all(&last.0.to_le_bytes())?;
        let (mut bytes, mut piece) = (0, [0; PIECE]);
        loop {
            let read = from.read(&mut piece)?;
            if read == 0 {
                break;
            }
            file.write_all(&piece[..read])?;
            bytes += read;
            READ.fetch_add(1, Ordering::Relaxed);
            if bytes >= ENTRY_BYTES * ENTRIES as usize / 2 {
                crash_here()?;
            }
        }
        file.sync_all()?;
        std::fs::rename(beside, &self.path)?;
        File::open(&dir)?.sync_all()?;
        *self = Filed::read(&dir)?;
        Ok(())
    }
}

/// Fails if this is where the test wants it, once it says so.
fn crash_here() -> Result<(), MachineError> {
    let crash = CRASH.lock().take();
    let Some(Crash {
        has_come,
        other_end,
    }) = crash
    else {
        return Ok(());
    };
    has_come.send(()).expect("a test that waits");
    let _ = other_end.recv();
    Err(MachineError::from("the power is gone"))
}

fn payload(number: u64) -> Bytes {
    let mut payload = format!("proposal {number} ").into_bytes();
    payload.resize(ENTRY_BYTES, number as u8);
    Bytes::from(payload)
}

fn config() -> Config {
    let mut config = small_config();
    config.snapshot.keep_entries = 2;
    config.snapshot.chunk_bytes = ByteSize::kib(64);
    config
}

async fn propose(cluster: &Cluster<Filed>, group: u64, numbers: std::ops::Range<u64>) {
    for number in numbers {
        until("a proposal commits", async || {
            let group = cluster.node(1).group(group);
            group.propose(payload(number)).await.is_ok()
        })
        .await;
    }
}

/// The directory of a group's state machine on a node.
fn dir_of(cluster: &Cluster<Filed>, node: u64, group: u64) -> PathBuf {
    let machines = cluster.data_dir(node).join("machines");
    machines.join(GroupId(group).to_string())
}

#[tokio::test]
async fn a_node_that_stops_inside_a_restore_comes_up_with_all_of_the_state() {
    let mut cluster = Cluster::<Filed>::of_machines(3, config()).await;
    cluster.node(1).create_groups(1..3, &ALL).await.unwrap();
    cluster.led(1..3).await;
    propose(&cluster, GROUP, 0..1).await;
    cluster.agree(GROUP, 1).await;
    cluster.stop(3).await;
    propose(&cluster, GROUP, 1..ENTRIES).await;
    cluster.agree(GROUP, ENTRIES as usize).await;
    for id in [1, 2] {
        let group = cluster.node(id).group(GROUP);
        until("the log is purged", async || {
            let last = group.snapshot().await.unwrap();
            let status = group.status().await.unwrap();
            last.index == status.last.index && status.purged >= Index(last.index.0 - 2)
        })
        .await;
    }
    let pieces = ENTRIES as usize * ENTRY_BYTES / PIECE;
    assert!(
        WRITTEN.load(Ordering::Relaxed) >= 2 * pieces,
        "by two nodes"
    );

    // Node 3 gets the snapshot and stops while its state machine reads it.
    let (has_come, coming) = mpsc::channel();
    let (opens, other_end) = mpsc::channel::<()>();
    *CRASH.lock() = Some(Crash {
        has_come,
        other_end,
    });
    cluster.open(3).await.unwrap();
    until("half is restored", async || coming.try_recv().is_ok()).await;
    let counters = cluster.node(3).status().counters;
    assert_eq!((counters.snapshots_received, counters.restores), (1, 0));
    let group = cluster.node(3).group(GROUP);
    let read = group.read(Read::LOCAL, Bytes::new()).await;
    assert!(matches!(read, Err(Error::Restoring { .. })), "{read:?}");
    drop(group);
    propose(&cluster, OTHER, 0..2).await;
    cluster.agree(OTHER, 2).await;
    tokio::join!(cluster.stop(3), async { drop(opens) });

    let dir = dir_of(&cluster, 3, GROUP);
    let left = std::fs::metadata(dir.join("beside")).unwrap().len() as usize;
    let all = ENTRIES as usize * ENTRY_BYTES;
    assert!(all / 2 <= left && left < all, "{left} bytes were restored");
    assert!(std::fs::metadata(dir.join("entries")).unwrap().len() < 2 * ENTRY_BYTES as u64);

    // It has the snapshot, so nothing is sent again; and from then on it has the state.
    for restores in [1, 0] {
        cluster.open(3).await.unwrap();
        let entries = cluster.agree(GROUP, ENTRIES as usize).await;
        assert!(entries.into_values().eq((0..ENTRIES).map(payload)));
        cluster.agree(OTHER, 2).await;
        let counters = cluster.node(3).status().counters;
        assert_eq!(
            (counters.snapshots_received, counters.restores),
            (0, restores)
        );
        cluster.stop(3).await;
    }
    assert!(
        READ.load(Ordering::Relaxed) >= pieces * 3 / 2,
        "one and a half times"
    );
    cluster.open(3).await.unwrap();
    propose(&cluster, GROUP, ENTRIES..ENTRIES + 3).await;
    cluster.agree(GROUP, ENTRIES as usize + 3).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn what_was_applied_before_a_restart_counts_for_the_next_snapshot() {
    let mut config = config();
    // Of the entries of three runs no two are enough.
    config.snapshot.bytes = ByteSize::b(10 * ENTRY_BYTES as u64);
    let mut cluster = Cluster::<Filed>::of_machines(1, config).await;
    cluster.node(1).create_groups(1..2, &[1]).await.unwrap();
    for run in 0..3 {
        if run > 0 {
            cluster.stop(1).await;
            cluster.open(1).await.unwrap();
        }
        cluster.led(1..2).await;
        assert_eq!(cluster.node(1).status().counters.snapshots, 0);
        propose(&cluster, GROUP, 4 * run..4 * run + 4).await;
    }
    until("a snapshot is taken", async || {
        cluster.node(1).status().counters.snapshots > 0
    })
    .await;
    cluster.stop_all().await;
}

//! Owns who syncs: a shard itself while syncs are quick, the flusher when they are not or when there is more to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, LogPosition, NodeId, Term,
};
use polyraft_storage::sim::StallDisk;
use polyraft_storage::{
    DataDir, Durable, EntryKind, Lsn, ShardLog, StorageError, Wal, WalObserver, WalOptions, open,
};

const GROUP: GroupId = GroupId(1);
/// Whose entries are purged.
const PURGED: GroupId = GroupId(2);
const QUICK: Duration = Duration::from_millis(10);
/// So many quick syncs are enough to forget slow ones.
const ENOUGH: u64 = 2000;
const DEADLINE: Duration = Duration::from_secs(60);

/// A log without a flusher: what is durable was synced inline or by hand.
struct Log {
    wal: Wal,
    log: ShardLog,
    disk: StallDisk,
    term: u64,
    _dir: tempfile::TempDir,
}

fn log() -> Log {
    let dir = tempfile::tempdir().unwrap();
    let disk = StallDisk::default();
    let options = WalOptions {
        segment_bytes: 64 << 10,
        max_batch_bytes: 8 << 10,
        checkpoint_bytes: 1 << 20,
        min_free_bytes: 0,
        ..WalOptions::default()
    };
    let path = dir.path().join("data");
    let data = DataDir::open(Arc::new(disk.clone()), &path, "inline", NodeId(1), 1).unwrap();
    let mut opened = open(&data, &options, 1).unwrap();
    let mut log = opened.logs.remove(0);
    log.create(GROUP, &Configuration::default()).unwrap();
    Log {
        wal: opened.wals.remove(0),
        log,
        disk,
        term: 0,
        _dir: dir,
    }
}

/// The same with a shard that syncs inline.
fn inline() -> Log {
    let mut log = log();
    log.log.begin_inline_syncs();
    log
}

impl Log {
    fn submit(&mut self) -> Lsn {
        self.term += 1;
        let state = HardState {
            term: Term(self.term),
            vote: None,
            commit: Index(0),
        };
        self.log.hard_state(GROUP, state).unwrap();
        self.log.submit().unwrap().unwrap()
    }

    /// Does the flusher's part.
    fn flush(&mut self) {
        while self.wal.pump().unwrap() {}
        let lsn = self.wal.durable();
        self.log.on_durable(&Durable { lane: 0, lsn });
    }

    /// Hands a turn in, to be synced inline if that usually takes 10 ms at most. Returns whether it was.
    fn turn(&mut self) -> bool {
        let lsn = self.submit();
        self.log.sync_inline(QUICK);
        let is_durable = self.wal.durable() >= lsn;
        self.flush();
        assert!(self.wal.durable() >= lsn);
        is_durable
    }
}

#[test]
fn a_turn_is_durable_once_it_was_synced_inline() {
    let mut log = inline();
    let lsn = log.submit();
    assert!(log.wal.durable() < lsn, "nobody synced yet");
    log.log.sync_inline(Duration::MAX);
    assert_eq!(log.wal.durable(), lsn);
    // Nothing was submitted since.
    log.log.sync_inline(Duration::MAX);
    assert_eq!(log.wal.durable(), lsn);
    let stats = log.wal.stats();
    assert_eq!((stats.barriers, stats.inline_syncs), (1, 1));
}

#[test]
fn slow_syncs_are_left_to_the_flusher_until_they_are_quick_again() {
    // This thread may come too late for the stall; then the sync was quick.
    let mut log = loop {
        let mut log = inline();
        log.disk.stall(5 * QUICK);
        assert!(log.turn(), "nothing is known of the disk");
        if log.wal.stats().barrier_us_max > QUICK.as_micros() as u64 {
            break log;
        }
    };
    assert!(!log.turn());
    assert_eq!(log.wal.stats().inline_syncs, 1);
    assert!((0..ENOUGH).any(|_| log.turn()), "the flusher was quick");
}

#[test]
fn the_flusher_changes_segments() {
    let mut log = inline();
    let segments = log.wal.stats().segments;
    let mut left = Vec::new();
    for turn in 0..ENOUGH {
        let lsn = log.submit();
        log.log.sync_inline(Duration::MAX);
        if log.wal.durable() < lsn {
            assert_eq!(log.wal.stats().segments, segments + left.len() as u64);
            left.push(turn);
            log.flush();
            assert_eq!(log.wal.stats().segments, segments + left.len() as u64);
        }
        if left.len() == 2 {
            break;
        }
    }
    // A turn takes a page, and a segment begins with one.
    assert_eq!(left, [15, 30]);
}

/// Hears nothing.
struct Deaf;

impl WalObserver for Deaf {
    fn durable(&self, _: &Durable) {}
    fn failed(&self, error: &StorageError) {
        panic!("{error}");
    }
    fn maintain(&self) {}
}

#[test]
fn the_flusher_syncs_what_is_moved_out_of_sparse_segments() {
    let mut log = log();
    log.log.create(PURGED, &Configuration::default()).unwrap();
    let term = Term(1);
    let mut last = [0; 2];
    for at in 0..60 {
        let group = if at % 6 == 0 { GROUP } else { PURGED };
        let last = &mut last[usize::from(group == PURGED)];
        *last += 1;
        let (first, end) = (Index(*last), Index(*last + 1));
        let range = EntryRange { term, first, end };
        let payload = [[0; 6000]];
        log.log
            .append(group, range, EntryKind::Normal, payload)
            .unwrap();
        log.log.submit().unwrap();
        log.flush();
    }
    let index = Index(last[1]);
    log.log.purge(PURGED, LogPosition { term, index }).unwrap();
    log.log.submit().unwrap();
    log.flush();
    assert!(log.wal.request_checkpoint());
    while log.wal.stats().checkpoints == 0 {
        log.log.maintain().unwrap();
        log.flush();
        log.wal.tend().unwrap();
    }

    // From here on there is a flusher. Once it has done something, it goes to sleep.
    let threads = log.wal.start(Arc::new(Deaf)).unwrap();
    let begun = Instant::now();
    let lsn = log.submit();
    while log.wal.durable() < lsn {
        assert!(begun.elapsed() < DEADLINE, "there is no flusher");
        std::thread::yield_now();
    }
    log.log.begin_inline_syncs();
    while log.log.maintain().unwrap() || log.wal.pending_bytes() > 0 {
        assert!(begun.elapsed() < DEADLINE, "nobody syncs it");
        std::thread::yield_now();
    }
    assert!(log.wal.stats().relocated > 0);
    assert_eq!(log.wal.stats().inline_syncs, 0);
    threads.stop();
}

//! Owns who syncs: a shard itself while syncs are quick, the flusher when they are not or when there is more to do. There is
//! no flusher thread here, so what is durable was synced inline.

use std::sync::Arc;
use std::time::Duration;

use polyraft_raft::{Configuration, GroupId, HardState, Index, NodeId, Term};
use polyraft_storage::sim::StallDisk;
use polyraft_storage::{DataDir, Lsn, ShardLog, Wal, WalOptions, open};

const GROUP: GroupId = GroupId(1);
const QUICK: Duration = Duration::from_millis(10);
/// Longer than a test takes to see what it waits for.
const TURNS: u64 = 2000;

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
        min_free_bytes: 0,
        ..WalOptions::default()
    };
    let path = dir.path().join("data");
    let data = DataDir::open(Arc::new(disk.clone()), &path, "inline", NodeId(1), 1).unwrap();
    let mut opened = open(&data, &options, 1).unwrap();
    let mut log = opened.logs.remove(0);
    log.begin_inline_syncs();
    log.create(GROUP, &Configuration::default()).unwrap();
    Log {
        wal: opened.wals.remove(0),
        log,
        disk,
        term: 0,
        _dir: dir,
    }
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

    /// Hands a turn in, to be synced inline if that usually takes 10 ms at most. Returns whether it was. The flusher's part is
    /// done in either case.
    fn turn(&mut self) -> bool {
        let lsn = self.submit();
        self.log.sync_inline(QUICK);
        let is_durable = self.wal.durable() >= lsn;
        while self.wal.pump().unwrap() {}
        assert!(self.wal.durable() >= lsn);
        is_durable
    }
}

#[test]
fn a_turn_is_durable_once_it_was_synced_inline() {
    let mut log = log();
    let lsn = log.submit();
    assert!(log.wal.durable() < lsn, "nobody synced yet");
    log.log.sync_inline(Duration::MAX);
    assert_eq!(log.wal.durable(), lsn);
    // There is nothing to do, and so nothing to fail.
    log.log.sync_inline(Duration::MAX);
    assert_eq!(log.wal.durable(), lsn);
}

#[test]
fn slow_syncs_are_left_to_the_flusher_until_they_are_quick_again() {
    let mut log = log();
    log.disk.stall(2 * QUICK);
    assert!(log.turn(), "the first one is tried, which took long");
    assert!(!log.turn());
    assert!(
        (0..TURNS).any(|_| log.turn()),
        "the flusher's syncs were quick"
    );
}

#[test]
fn one_slow_sync_among_quick_ones_changes_nothing() {
    let mut log = log();
    assert!((0..TURNS).any(|_| log.turn()));
    let lsn = log.submit();
    log.disk.stall(2 * QUICK);
    log.log.sync_inline(Duration::MAX);
    assert!(log.wal.durable() >= lsn);
    assert!((0..3).any(|_| log.turn()));
}

#[test]
fn the_flusher_changes_segments() {
    let mut log = log();
    let segments = log.wal.stats().segments;
    let mut left = Vec::new();
    for turn in 0..TURNS {
        let lsn = log.submit();
        log.log.sync_inline(Duration::MAX);
        if log.wal.durable() < lsn {
            assert_eq!(log.wal.stats().segments, segments + left.len() as u64);
            left.push(turn);
            assert!(log.wal.pump().unwrap());
            assert_eq!(log.wal.stats().segments, segments + left.len() as u64);
        }
        if left.len() == 2 {
            break;
        }
    }
    // A turn takes a page, and a segment begins with one.
    assert_eq!(left, [15, 30]);
}

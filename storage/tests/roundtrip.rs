//! Owns the plain life of a log on the real file system: write, become durable, read, reopen, in both modes and with threads.

use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, LogPosition, NodeId, Term, shard_of,
};
use polyraft_storage::{
    Blocks, DataDir, Durable, EntryKind, FileDisk, Lsn, Opened, ReadError, ShardLog, StorageError,
    WalMode, WalObserver, WalOptions, open,
};

#[derive(Default)]
struct Watch {
    state: Mutex<(u64, u64, Option<String>)>,
    changed: Condvar,
}

impl WalObserver for Watch {
    fn durable(&self, durable: &Durable) {
        self.state.lock().0 = durable.lsn.0;
        self.changed.notify_all();
    }
    fn failed(&self, error: &StorageError) {
        self.state.lock().2 = Some(error.to_string());
        self.changed.notify_all();
    }
    fn maintain(&self) {
        self.state.lock().1 += 1;
    }
}

impl Watch {
    fn wait(&self, lsn: Lsn) -> Durable {
        let mut state = self.state.lock();
        while state.0 < lsn.0 {
            assert_eq!(state.2, None);
            self.changed.wait(&mut state);
        }
        Durable {
            lane: 0,
            lsn: Lsn(state.0),
        }
    }
}

fn options(mode: WalMode) -> WalOptions {
    WalOptions {
        mode,
        segment_bytes: 256 << 10,
        max_batch_bytes: 32 << 10,
        checkpoint_bytes: 512 << 10,
        tail_cache_bytes: 64 << 10,
        min_free_bytes: 0,
        ..WalOptions::default()
    }
}

fn start(path: &Path, mode: WalMode, shards: usize) -> (Opened, Arc<Watch>) {
    let dir = DataDir::open(Arc::new(FileDisk), path, "test", NodeId(1), 1).unwrap();
    let opened = open(&dir, &options(mode), shards).unwrap();
    (opened, Arc::default())
}

fn range(term: u64, first: u64, end: u64) -> EntryRange {
    EntryRange {
        term: Term(term),
        first: Index(first),
        end: Index(end),
    }
}

fn payload(group: u64, index: u64) -> Vec<u8> {
    let mut bytes = format!("group {group} index {index} ").into_bytes();
    bytes.resize(40 + (index as usize * 7) % 60, b'.');
    bytes
}

fn check(log: &ShardLog, group: u64, first: u64, end: u64) {
    let mut blocks = Blocks::default();
    let mut at = first;
    while at < end {
        blocks.clear();
        let reached = log
            .blocks(GroupId(group), Index(at), Index(end), 4096, &mut blocks)
            .unwrap();
        let (extent, _) = log.extent(GroupId(group), Index(at), Index(end), 4096);
        assert!(extent.0 > at && extent.0 <= end);
        for block in blocks.iter() {
            for (index, bytes) in block.entries() {
                assert_eq!(
                    bytes,
                    payload(group, index.0),
                    "group {group} index {index}"
                );
            }
        }
        assert!(blocks.get(0).first().0 <= at && blocks.get(blocks.len() - 1).end() >= reached);
        at = reached.0;
    }
}

fn write_and_reopen(mode: WalMode) {
    let dir = tempfile::tempdir().unwrap();
    let voters = Configuration::simple([NodeId(1), NodeId(2), NodeId(3)]);
    let (mut opened, watch) = start(dir.path(), mode, 2);
    let threads = opened.wals[0].start(watch.clone()).unwrap();
    for group in 0..20 {
        opened.logs[shard_of(GroupId(group), 2)]
            .create(GroupId(group), &voters)
            .unwrap();
    }
    let mut next = [1u64; 20];
    for turn in 0..300u64 {
        for group in 0..20u64 {
            let log = &mut opened.logs[shard_of(GroupId(group), 2)];
            let first = next[group as usize];
            let end = first + 1 + (turn + group) % 4;
            log.append(
                GroupId(group),
                range(1, first, end),
                EntryKind::Normal,
                (first..end).map(|i| payload(group, i)),
            )
            .unwrap();
            next[group as usize] = end;
        }
        for log in &mut opened.logs {
            if let Some(lsn) = log.submit().unwrap()
                && turn % 3 == 0
            {
                log.on_durable(&watch.wait(lsn));
            }
            log.maintain().unwrap();
        }
        if turn % 50 == 49 {
            for group in 0..20u64 {
                let log = &mut opened.logs[shard_of(GroupId(group), 2)];
                check(
                    log,
                    group,
                    log.groups()
                        .find(|g| g.group.0 == group)
                        .unwrap()
                        .base
                        .index
                        .0
                        + 1,
                    next[group as usize],
                );
                log.purge(
                    GroupId(group),
                    LogPosition {
                        term: Term(1),
                        index: Index(next[group as usize] - 20),
                    },
                )
                .unwrap();
                log.hard_state(
                    GroupId(group),
                    HardState {
                        term: Term(1),
                        vote: Some(NodeId(2)),
                        commit: Index(turn),
                    },
                )
                .unwrap();
            }
        }
    }
    for log in &mut opened.logs {
        if let Some(lsn) = log.submit().unwrap() {
            log.on_durable(&watch.wait(lsn));
        }
    }
    let before: Vec<Vec<_>> = opened.logs.iter().map(sorted).collect();
    let stats = opened.wals[0].stats();
    assert!(
        stats.barriers > 0 && stats.checkpoints > 0 && stats.segments < 12,
        "{stats:?}"
    );
    threads.stop();
    assert!(matches!(
        opened.logs[0]
            .create(GroupId(1000), &voters)
            .and_then(|()| opened.logs[0].submit()),
        Err(StorageError::Stopped)
    ));
    drop(opened);

    let (opened, _) = start(dir.path(), mode, 2);
    assert!(
        opened.report.torn_tail.is_empty() && opened.report.rotten.is_empty(),
        "{:?}",
        opened.report
    );
    let after: Vec<Vec<_>> = opened.logs.iter().map(sorted).collect();
    assert_eq!(before, after);
    for group in 0..20u64 {
        let log = &opened.logs[shard_of(GroupId(group), 2)];
        let base = log
            .groups()
            .find(|g| g.group.0 == group)
            .unwrap()
            .base
            .index
            .0;
        check(log, group, base + 1, next[group as usize]);
        let error = log
            .blocks(
                GroupId(group),
                Index(base),
                Index(base + 2),
                1,
                &mut Blocks::default(),
            )
            .unwrap_err();
        assert!(matches!(error, ReadError::OutOfRange { .. }));
    }
    drop(opened);
    // The number of shards is not part of the format.
    let (opened, _) = start(dir.path(), mode, 3);
    assert_eq!(
        opened
            .logs
            .iter()
            .map(|log| log.groups().count())
            .sum::<usize>(),
        20
    );
}

fn sorted(log: &ShardLog) -> Vec<polyraft_storage::RecoveredGroup> {
    let mut groups: Vec<_> = log.groups().collect();
    groups.sort_by_key(|group| group.group);
    groups
}

#[test]
fn what_was_written_is_read_after_a_reopen_in_direct_mode() {
    write_and_reopen(WalMode::Direct);
}

#[test]
fn what_was_written_is_read_after_a_reopen_in_mapped_mode() {
    write_and_reopen(WalMode::Mapped);
}

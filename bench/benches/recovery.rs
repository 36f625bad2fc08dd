//! How long a log takes to come back: opening a data directory on a real disk (the target directory's), whose log has not
//! been checkpointed, so that every batch is read.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use polyraft_raft::{Configuration, EntryRange, GroupId, Index, NodeId, Term};
use polyraft_storage::{DataDir, EntryKind, FileDisk, Opened, WalOptions};
use std::path::Path;
use std::sync::Arc;

/// Entries in a block, and blocks of a turn: one for each group.
const BLOCK_ENTRIES: u64 = 16;
const PAYLOAD: &[u8] = &[7; 128];

/// Bytes of payloads in a log.
const LOG_BYTES: u64 = 32 << 20;

fn open(path: &Path) -> (DataDir, Opened) {
    let dir = DataDir::open(Arc::new(FileDisk), path, "bench", NodeId(1), 1)
        .expect("it is ours and unlocked");
    let opened = polyraft_storage::open(&dir, &WalOptions::default(), 1).expect("it is sound");
    (dir, opened)
}

/// Writes a log of `groups` groups and leaves it as a crash would.
fn write(path: &Path, groups: u64) -> u64 {
    let (_dir, mut opened) = open(path);
    let mut log = opened.logs.remove(0);
    let wal = &opened.wals[0];
    let members = Configuration::simple([NodeId(1)]);
    for group in 0..groups {
        log.create(GroupId(group), &members).expect("it is new");
    }
    let (mut first, mut entries) = (1, 0);
    while entries * (PAYLOAD.len() as u64) < LOG_BYTES {
        let range = EntryRange {
            term: Term(1),
            first: Index(first),
            end: Index(first + BLOCK_ENTRIES),
        };
        for group in 0..groups {
            let payloads = (0..BLOCK_ENTRIES).map(|_| PAYLOAD);
            log.append(GroupId(group), range, EntryKind::Normal, payloads)
                .expect("the block is small");
        }
        log.submit().expect("the log is sound");
        while wal.pump().expect("the disk is sound") {}
        while wal.tend().expect("the disk is sound") {}
        first += BLOCK_ENTRIES;
        entries += BLOCK_ENTRIES * groups;
    }
    entries
}

fn recovery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recovery");
    group.sample_size(10);
    for groups in [1, 1000] {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("the target directory is writable");
        let entries = write(place.path(), groups);
        group.throughput(Throughput::Bytes(entries * PAYLOAD.len() as u64));
        group.bench_function(BenchmarkId::new("groups", groups), |bencher| {
            bencher.iter_batched(
                || (),
                |()| {
                    let opened = open(place.path());
                    assert_eq!(opened.1.logs[0].groups().count() as u64, groups);
                    opened
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, recovery);
criterion_main!(benches);

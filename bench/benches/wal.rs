//! Entry blocks in memory, and durable appends through both append paths of the write-ahead log, on a real disk: the
//! target directory's.

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use polyraft_raft::{Configuration, EntryRange, GroupId, Index, LogPosition, NodeId, Term};
use polyraft_storage::{
    DataDir, Durable, EntryBlock, EntryKind, FileDisk, ShardLog, StorageError, WalMode,
    WalObserver, WalOptions, WalThreads, pack,
};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

const GROUP: GroupId = GroupId(1);
const TERM: Term = Term(1);
const PAYLOAD: [u8; 128] = [7; 128];

fn range(first: u64, count: u64) -> EntryRange {
    EntryRange {
        term: TERM,
        first: Index(first),
        end: Index(first + count),
    }
}

fn payloads(count: u64) -> impl Iterator<Item = &'static [u8]> {
    (0..count).map(|_| PAYLOAD.as_slice())
}

fn blocks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block");
    for entries in [1, 16, 256] {
        group.throughput(Throughput::Elements(entries));
        let mut buffer = BytesMut::new();
        group.bench_function(BenchmarkId::new("pack", entries), |bencher| {
            bencher.iter(|| {
                buffer.clear();
                pack(
                    &mut buffer,
                    GROUP,
                    range(1, entries),
                    EntryKind::Normal,
                    payloads(entries),
                )
            });
        });
        let packed = buffer.freeze();
        group.bench_function(BenchmarkId::new("parse", entries), |bencher| {
            bencher.iter(|| EntryBlock::parse(black_box(&packed)).expect("it was packed above"));
        });
    }
    group.finish();
}

/// Passes the flusher's news to the benchmark.
struct Observer {
    durable: Sender<Durable>,
    wants_upkeep: Arc<AtomicBool>,
}

impl WalObserver for Observer {
    fn durable(&self, durable: &Durable) {
        // Nobody listens any more once the benchmark has ended.
        let _ = self.durable.send(*durable);
    }

    fn failed(&self, error: &StorageError) {
        panic!("the log failed: {error}");
    }

    fn maintain(&self) {
        self.wants_upkeep.store(true, Ordering::Relaxed);
    }
}

/// A log with one group, and its flusher.
struct Log {
    log: ShardLog,
    durable: Receiver<Durable>,
    wants_upkeep: Arc<AtomicBool>,
    next: u64,
    // Fields drop in order: the threads end before their directory goes.
    _threads: WalThreads,
    _dir: DataDir,
    _place: tempfile::TempDir,
}

impl Log {
    fn open(mode: WalMode, direct_io: bool) -> Self {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("the target directory is writable");
        let dir = DataDir::open(Arc::new(FileDisk), place.path(), "bench", NodeId(1), 1)
            .expect("it is new");
        let options = WalOptions {
            mode,
            direct_io,
            ..WalOptions::default()
        };
        let mut opened = polyraft_storage::open(&dir, &options, 1).expect("it is empty");
        let mut log = opened.logs.remove(0);
        let (sender, durable) = channel();
        let wants_upkeep = Arc::new(AtomicBool::new(false));
        let observer = Observer {
            durable: sender,
            wants_upkeep: Arc::clone(&wants_upkeep),
        };
        let threads = opened.wals[0]
            .start(Arc::new(observer))
            .expect("threads can be had");
        log.create(GROUP, &Configuration::simple([NodeId(1)]))
            .expect("the log is empty");
        Self {
            log,
            durable,
            wants_upkeep,
            next: 1,
            _threads: threads,
            _dir: dir,
            _place: place,
        }
    }

    /// One block, durable when this returns.
    fn append(&mut self, entries: u64) {
        let range = range(self.next, entries);
        self.log
            .append(GROUP, range, EntryKind::Normal, payloads(entries))
            .expect("the block is small");
        self.next = range.end.0;
        let lsn = self
            .log
            .submit()
            .expect("the log is sound")
            .expect("there is something to write");
        loop {
            let durable = self.durable.recv().expect("the flusher runs");
            self.log.on_durable(&durable);
            if durable.lsn >= lsn {
                break;
            }
        }
        if self.wants_upkeep.swap(false, Ordering::Relaxed) {
            let through = LogPosition {
                term: TERM,
                index: Index(self.next - 1),
            };
            self.log.purge(GROUP, through).expect("the group is there");
            loop {
                self.log.submit().expect("the log is sound");
                if !self.log.maintain().expect("the log is sound") {
                    break;
                }
            }
        }
    }
}

fn durable_appends(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal/append");
    group.sample_size(20);
    for (name, mode, direct_io) in [
        ("direct", WalMode::Direct, false),
        ("direct, O_DIRECT", WalMode::Direct, true),
        ("mapped", WalMode::Mapped, false),
    ] {
        for entries in [1, 24, 384] {
            group.throughput(Throughput::Elements(entries));
            group.bench_function(BenchmarkId::new(name, entries), |bencher| {
                let mut log = Log::open(mode, direct_io);
                bencher.iter(|| log.append(entries));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, blocks, durable_appends);
criterion_main!(benches);

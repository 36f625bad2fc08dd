//! Entry blocks in memory, and durable appends through both append paths of the write-ahead log, on a real disk: the
//! target directory's; beside each, the same bytes written and synced by bare system calls.

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use polyraft_raft::{Configuration, EntryRange, GroupId, Index, LogPosition, NodeId, Term};
use polyraft_storage::{
    DataDir, Durable, EntryBlock, EntryKind, FileDisk, Lsn, ShardLog, StorageError, Wal, WalMode,
    WalObserver, WalOptions, WalThreads, pack,
};
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

const GROUP: GroupId = GroupId(1);
const TERM: Term = Term(1);
const PAYLOAD: [u8; 128] = [7; 128];

/// Sizes of batches, all told: what the bare writes write.
const BATCHES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// What is left in a batch of a multiple of 4 KiB for the headers: the batch's, the record's and the block's.
const HEADERS: usize = 256;

/// The file that is written without the log: as large as a segment, and filled with zeros like one.
const RAW_FILE: usize = 64 << 20;

/// What direct I/O wants addresses and lengths to be multiples of.
const ALIGNMENT: usize = 4096;

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
        let fill = |buffer: &mut BytesMut| {
            buffer.clear();
            pack(
                buffer,
                GROUP,
                range(1, entries),
                EntryKind::Normal,
                payloads(entries),
            )
            .expect("it is small")
        };
        let mut buffer = BytesMut::new();
        group.bench_function(BenchmarkId::new("pack", entries), |bencher| {
            bencher.iter(|| fill(&mut buffer));
        });
        // A filter may have left out the packing above.
        fill(&mut buffer);
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
    /// The newest durable batch.
    reached: Lsn,
    next: u64,
    wal: Wal,
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
        let wal = opened.wals.remove(0);
        // Filling the pool with zeros is the work of a log's first seconds; it must not compete with what is timed.
        while wal.tend().expect("the disk has room") {}
        let threads = wal.start(Arc::new(observer)).expect("threads can be had");
        log.create(GROUP, &Configuration::simple([NodeId(1)]))
            .expect("the log is empty");
        Self {
            log,
            durable,
            wants_upkeep,
            reached: Lsn(0),
            next: 1,
            wal,
            _threads: threads,
            _dir: dir,
            _place: place,
        }
    }

    /// One block, durable when this returns.
    fn append(&mut self, entries: u64) {
        let lsn = self.submit(entries, payloads(entries));
        self.wait(lsn);
    }

    /// One block on its way to the disk. Returns the batch that it is in.
    fn submit<'a>(&mut self, entries: u64, payloads: impl Iterator<Item = &'a [u8]>) -> Lsn {
        let range = range(self.next, entries);
        self.log
            .append(GROUP, range, EntryKind::Normal, payloads)
            .expect("the block is small");
        self.next = range.end.0;
        let lsn = self.log.submit().expect("the log is sound");
        lsn.expect("there is something to write")
    }

    /// One block in a batch of its own, though the one before it may wait yet. At most one may.
    fn submit_alone(&mut self, payload: &[u8]) -> Lsn {
        self.wal.begin_batch().expect("the log is sound");
        self.submit(1, std::iter::once(payload))
    }

    /// Waits until a batch is durable, then gives the log what time it asks for.
    fn wait(&mut self, lsn: Lsn) {
        self.reach(lsn);
        if self.wants_upkeep.swap(false, Ordering::Relaxed) {
            let through = LogPosition {
                term: TERM,
                // The newest block may still be under way to the disk.
                index: Index(self.next - 2),
            };
            self.log.purge(GROUP, through).expect("the group is there");
            let mut written = lsn;
            loop {
                let submitted = self.log.submit().expect("the log is sound");
                written = submitted.unwrap_or(written);
                if !self.log.maintain().expect("the log is sound") {
                    break;
                }
            }
            // Else more than one batch may wait when the next block comes, which would then not get one of its own.
            self.reach(written);
        }
    }

    fn reach(&mut self, lsn: Lsn) {
        while self.reached < lsn {
            let durable = self.durable.recv().expect("the flusher runs");
            self.log.on_durable(&durable);
            self.reached = durable.lsn;
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
            // The closure is called for each sample; all of them go on in one log. A filter may leave it out.
            let mut log = None;
            group.bench_function(BenchmarkId::new(name, entries), |bencher| {
                let log = log.get_or_insert_with(|| Log::open(mode, direct_io));
                bencher.iter(|| log.append(entries));
            });
        }
    }
    group.finish();
}

/// Paths by which batches of one size get to the disk.
const PATHS: [(&str, WalMode, bool); 3] = [
    ("direct", WalMode::Direct, false),
    ("direct, O_DIRECT", WalMode::Direct, true),
    ("mapped", WalMode::Mapped, false),
];

/// Batches of one size, through the log and beside it. *latency*: one after the other. *throughput*: as under load, the next
/// batch is filled while the one before it is synced; bare writes have nothing to fill.
fn batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal/batch");
    group.sample_size(20);
    for bytes in BATCHES {
        let payload = vec![7_u8; bytes - HEADERS];
        group.throughput(Throughput::Bytes(bytes as u64));
        for (name, is_direct) in [("raw pwrite", false), ("raw pwrite, O_DIRECT", true)] {
            let mut raw = None;
            group.bench_function(BenchmarkId::new(name, bytes), |bencher| {
                let raw = raw.get_or_insert_with(|| Raw::open(is_direct, bytes));
                bencher.iter(|| raw.append());
            });
        }
        for (name, mode, direct_io) in PATHS {
            let mut log = None;
            let id = BenchmarkId::new(format!("{name}, latency"), bytes);
            group.bench_function(id, |bencher| {
                let log = log.get_or_insert_with(|| Log::open(mode, direct_io));
                bencher.iter(|| {
                    let lsn = log.submit(1, std::iter::once(&payload[..]));
                    log.wait(lsn);
                });
            });
            let mut log = None;
            let id = BenchmarkId::new(format!("{name}, throughput"), bytes);
            group.bench_function(id, |bencher| {
                let log = log.get_or_insert_with(|| Log::open(mode, direct_io));
                let mut before = log.submit_alone(&payload);
                bencher.iter(|| {
                    let lsn = log.submit_alone(&payload);
                    assert!(lsn > before, "two blocks share a barrier");
                    log.wait(before);
                    before = lsn;
                });
                log.wait(before);
            });
        }
    }
    group.finish();
}

/// A file that is written and synced by system calls alone.
struct Raw {
    file: File,
    buffer: Vec<u8>,
    /// Where the aligned part of the buffer is.
    part: std::ops::Range<usize>,
    offset: usize,
    _place: tempfile::TempDir,
}

impl Raw {
    fn open(is_direct: bool, bytes: usize) -> Self {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("the target directory is writable");
        let path = place.path().join("raw");
        let zeros = File::create(&path).expect("the directory is empty");
        zeros
            .write_all_at(&vec![0; RAW_FILE], 0)
            .expect("the disk has room");
        zeros.sync_all().expect("the disk is sound");
        let flags = match is_direct {
            true => rustix::fs::OFlags::DIRECT.bits() as i32,
            false => 0,
        };
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(&path)
            .expect("the file is there");
        let buffer = vec![7; bytes + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        Self {
            file,
            buffer,
            part: start..start + bytes,
            offset: 0,
            _place: place,
        }
    }

    fn append(&mut self) {
        let batch = &self.buffer[self.part.clone()];
        self.file
            .write_all_at(batch, self.offset as u64)
            .expect("the blocks are there");
        self.file.sync_data().expect("the disk is sound");
        self.offset = (self.offset + batch.len()) % RAW_FILE;
    }
}

criterion_group!(benches, blocks, durable_appends, batches);
criterion_main!(benches);

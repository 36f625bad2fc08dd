//! Measures the append paths of the log on the disk of a directory: `append [DIR] [ROUNDS]`, in alternating rounds.
//! Must never be taken for a benchmark of the engine: one shard, no threads, no network.

use std::io::{Write, stdout};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polyraft_raft::{Configuration, EntryRange, GroupId, Index, LogPosition, NodeId, Term};
use polyraft_storage::{
    Blocks, DataDir, Durable, EntryKind, FileDisk, Opened, WalMode, WalOptions, open,
};

const GROUP: GroupId = GroupId(1);
const PATHS: [(&str, WalMode, bool); 3] = [
    ("mapped", WalMode::Mapped, false),
    ("direct", WalMode::Direct, false),
    ("direct, O_DIRECT", WalMode::Direct, true),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let base = arguments.next().unwrap_or_else(|| ".".into());
    let rounds: usize = arguments.next().map_or(Ok(3), |rounds| rounds.parse())?;
    let mut out = stdout().lock();
    writeln!(
        out,
        "{:<18} {:>10} {:>9} {:>9} {:>10} {:>10}",
        "path", "bytes", "p50 us", "p99 us", "MB/s", "read MB/s"
    )?;
    for (bytes, turns) in [(256, 4000), (60 << 10, 1500), (1 << 20, 200)] {
        for _ in 0..rounds {
            for (name, mode, direct_io) in PATHS {
                let dir = tempfile::tempdir_in(&base)?;
                let result = measure(dir.path(), mode, direct_io, bytes, turns)?;
                let total = (bytes * turns) as f64 / 1e6;
                writeln!(
                    out,
                    "{name:<18} {bytes:>10} {:>9} {:>9} {:>10.0} {:>10.0}",
                    result.latencies[turns / 2].as_micros(),
                    result.latencies[turns * 99 / 100].as_micros(),
                    total / result.latencies.iter().sum::<Duration>().as_secs_f64(),
                    total / result.reading.as_secs_f64(),
                )?;
            }
        }
    }
    Ok(())
}

struct Measured {
    /// One per turn, sorted: from submit to durable.
    latencies: Vec<Duration>,
    /// Time to read everything back through the mapping, checksums included.
    reading: Duration,
}

fn measure(
    path: &Path,
    mode: WalMode,
    direct_io: bool,
    bytes: usize,
    turns: usize,
) -> Result<Measured, Box<dyn std::error::Error>> {
    let dir = DataDir::open(Arc::new(FileDisk), path, "measure", NodeId(1), 1)?;
    let options = WalOptions {
        mode,
        direct_io,
        tail_cache_bytes: 0,
        checkpoint_bytes: 8 << 30,
        ..WalOptions::default()
    };
    let Opened { wals, mut logs, .. } = open(&dir, &options, 1)?;
    let (wal, log) = (&wals[0], &mut logs[0]);
    log.create(GROUP, &Configuration::simple([NodeId(1)]))?;
    let payload = vec![7; bytes];
    let mut latencies = Vec::with_capacity(turns);
    for turn in 0..turns as u64 {
        // The pool is filled between turns here, as its thread does in a node.
        while wal.tend()? {}
        let range = EntryRange {
            term: Term(1),
            first: Index(turn + 1),
            end: Index(turn + 2),
        };
        log.append(GROUP, range, EntryKind::Normal, [&payload])?;
        let started = Instant::now();
        log.submit()?;
        wal.pump()?;
        latencies.push(started.elapsed());
        log.on_durable(&Durable {
            lane: 0,
            lsn: wal.durable(),
        });
    }
    let started = Instant::now();
    let (mut at, end, mut blocks) = (Index(1), Index(turns as u64 + 1), Blocks::default());
    while at < end {
        blocks.clear();
        at = log.blocks(GROUP, at, end, 1 << 20, &mut blocks)?;
    }
    let reading = started.elapsed();
    log.purge(
        GROUP,
        LogPosition {
            term: Term(1),
            index: Index(turns as u64),
        },
    )?;
    latencies.sort_unstable();
    Ok(Measured { latencies, reading })
}

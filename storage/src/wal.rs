//! Owns opening the log and the handles to its lanes: threads, statistics, stopping.
//! Must never open without the directory's lock, which the handles keep alive.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::shard_of;

use crate::batch::Lsn;
use crate::data_dir::{DataDir, WAL};
use crate::error::StorageError;
use crate::format::SEGMENT_HEADER_BYTES;
use crate::group::Interned;
use crate::lane::{Lane, Tip, WalObserver};
use crate::options::WalOptions;
use crate::pool::{Owner, Segments};
use crate::recovery::{CHECKPOINT, LaneFiles, RecoveryReport, behind};
use crate::shard::{ShardLog, ShardState};
use crate::stats::WalStats;

/// An open log.
#[derive(Debug)]
pub struct Opened {
    /// One per lane.
    pub wals: Vec<Wal>,
    /// One per shard; shard `s` writes to lane `s % lanes`.
    pub logs: Vec<ShardLog>,
    /// What was found.
    pub report: RecoveryReport,
}

/// Opens or creates the log in a data directory.
///
/// `shards` is how many threads share the groups, a multiple of `options.lanes`; it may change from open to open.
pub fn open(dir: &DataDir, options: &WalOptions, shards: usize) -> Result<Opened, StorageError> {
    options.validate()?;
    let lanes = options.lanes;
    if shards == 0 || !shards.is_multiple_of(lanes) {
        let reason = format!("{shards} shards cannot be spread evenly over {lanes} lanes");
        return Err(StorageError::Option {
            name: "lanes",
            reason,
        });
    }
    if dir.lanes() != lanes {
        let reason = format!("the data directory was created with {} lanes", dir.lanes());
        return Err(StorageError::Option {
            name: "lanes",
            reason,
        });
    }
    let started = Instant::now();
    let mut opened = Opened {
        wals: Vec::new(),
        logs: Vec::new(),
        report: RecoveryReport::default(),
    };
    let mut by_shard: Vec<Option<ShardLog>> = (0..shards).map(|_| None).collect();
    for (lane, one) in open_lanes(dir, options, shards).into_iter().enumerate() {
        let (wal, logs, report) = one?;
        opened.wals.push(wal);
        opened.report.add(report);
        for (slot, log) in logs.into_iter().enumerate() {
            by_shard[slot * lanes + lane] = Some(log);
        }
    }
    opened.logs = by_shard.into_iter().flatten().collect();
    opened.report.micros = started.elapsed().as_micros() as u64;
    Ok(opened)
}

/// A lane, its shards' logs, and what was found.
type OpenedLane = (Wal, Vec<ShardLog>, RecoveryReport);

/// Opens the lanes, side by side where the disk takes that. They have nothing in common but the directory.
fn open_lanes(
    dir: &DataDir,
    options: &WalOptions,
    shards: usize,
) -> Vec<Result<OpenedLane, StorageError>> {
    let open = |lane| open_lane(dir, options, shards, lane);
    if !dir.disk().serves_threads() {
        return (0..options.lanes).map(open).collect();
    }
    thread::scope(|scope| {
        let spawn = |lane| {
            let thread = thread::Builder::new().name(format!("wal-open-{lane}"));
            thread.spawn_scoped(scope, move || open(lane))
        };
        let others: Vec<_> = (1..options.lanes).map(spawn).collect();
        let mut lanes = vec![open(0)];
        lanes.extend(others.into_iter().map(|other| match other {
            Ok(other) => other.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(error) => Err(StorageError::io("wal", "starting a thread", &error)),
        }));
        lanes
    })
}

fn open_lane(
    dir: &DataDir,
    options: &WalOptions,
    shards: usize,
    lane: usize,
) -> Result<OpenedLane, StorageError> {
    let path = dir.path().join(WAL).join(lane.to_string());
    let disk = dir.disk();
    disk.create_dir(&path)
        .map_err(|error| StorageError::io(&path, "creating the directory", &error))?;
    let owner = Owner {
        lane: lane as u32,
        store: dir.store().0,
        incarnation: dir.opening(),
    };
    let found = LaneFiles {
        disk,
        dir: path.clone(),
        options,
        owner,
        has_run: !dir.past().is_empty(),
    }
    .recover(true)?;

    let per_lane = shards / options.lanes;
    let mut states: Vec<ShardState> = (0..per_lane)
        .map(|_| ShardState {
            groups: Default::default(),
            tombstones: Default::default(),
            position: behind(found.last),
        })
        .collect();
    let slot_of = |group| {
        let shard = shard_of(group, shards);
        assert!(
            shard % options.lanes == lane,
            "{group} of lane {lane} belongs to shard {shard}"
        );
        shard / options.lanes
    };
    for (group, log) in found.groups {
        states[slot_of(group)].groups.insert(group, log);
    }
    if !mutants::is_active(Mutant::TombstoneForgotten) {
        for (group, tombstone) in found.tombstones {
            states[slot_of(group)].tombstones.insert(group, tombstone);
        }
    }

    let segments = Segments::new(
        Arc::clone(disk),
        path.clone(),
        options.clone(),
        owner,
        found.segments,
    );
    let (active, offset) = match found.tip {
        Some(tip) => tip,
        None => (segments.activate()?, SEGMENT_HEADER_BYTES),
    };
    let tip = Tip {
        active,
        offset,
        durable: found.last,
        checkpoint: Lsn(found.last.0 + 1 - found.report.batches),
        bytes_since_checkpoint: found.report.bytes,
    };
    let shared = Lane::new(
        lane,
        dir.clone(),
        options.clone(),
        per_lane,
        segments,
        tip,
        path.join(CHECKPOINT),
    )?;
    let shared = Arc::new(shared);
    let logs = states
        .into_iter()
        .enumerate()
        .map(|(slot, state)| ShardLog::new(Arc::clone(&shared), slot, state, Interned::default()));
    let logs = logs.collect();
    Ok((Wal { lane: shared }, logs, found.report))
}

/// A handle to one lane of the log. Cheap to clone.
#[derive(Clone)]
pub struct Wal {
    lane: Arc<Lane>,
}

impl Wal {
    /// Starts the lane's flusher and background threads; they stop when the returned guard is stopped or dropped.
    pub fn start(&self, observer: Arc<dyn WalObserver>) -> Result<WalThreads, StorageError> {
        self.observe(observer);
        let spawn = |name: &str, run: fn(&Lane)| {
            let lane = Arc::clone(&self.lane);
            let builder = thread::Builder::new().name(format!("wal-{name}-{}", lane.index));
            builder
                .spawn(move || run(&lane))
                .map_err(|error| StorageError::io("wal", "starting a thread", &error))
        };
        let mut threads = WalThreads {
            lane: Arc::clone(&self.lane),
            threads: Vec::new(),
        };
        threads.threads.push(spawn("flush", Lane::flush_loop)?);
        threads.threads.push(spawn("tend", Lane::tend_loop)?);
        Ok(threads)
    }

    /// Sets who hears of completions, for callers that drive [`Wal::pump`] themselves.
    pub fn observe(&self, observer: Arc<dyn WalObserver>) {
        self.lane.observe(observer);
    }

    /// Writes and syncs the oldest waiting batch, as the flusher thread does. Returns false when nothing waits.
    pub fn pump(&self) -> Result<bool, StorageError> {
        self.lane.pump()
    }

    /// For callers that drive [`Wal::pump`] themselves, and let time pass before it: its write begins now, so what is handed in
    /// from now on goes into a later batch.
    pub fn begin_batch(&self) -> Result<(), StorageError> {
        self.lane.begin_batch()
    }

    /// One step of what the background thread does: publish a checkpoint, recycle, fill the pool. Returns false when there is
    /// nothing to do now.
    pub fn tend(&self) -> Result<bool, StorageError> {
        self.lane.tend()
    }

    /// Whether somebody asked for background work since the last call, for callers that drive [`Wal::tend`] themselves.
    pub fn take_tending_wish(&self) -> bool {
        self.lane.take_tending_wish()
    }

    /// Whether background work could not be done, because the disk is full, a segment is being read or something else failed that
    /// passes, and has to be tried again.
    pub fn must_tend_again(&self) -> bool {
        self.lane.must_tend_again()
    }

    /// Writes what waits and marks the end of the log, as stopping the threads does. Later submits fail.
    pub fn close(&self) -> Result<(), StorageError> {
        self.lane.close()
    }

    /// Asks every shard for its part of a checkpoint now. Returns false while one is under way. Not to be called from the
    /// observer.
    pub fn request_checkpoint(&self) -> bool {
        self.lane.request_checkpoint()
    }

    /// The lane's number.
    pub fn lane(&self) -> usize {
        self.lane.index
    }

    /// The watermark: the highest durable batch.
    pub fn durable(&self) -> Lsn {
        self.lane.durable()
    }

    /// Bytes handed in and not yet durable. Compare with `WalOptions::max_pending_bytes` before taking proposals.
    pub fn pending_bytes(&self) -> u64 {
        self.lane.pending_bytes()
    }

    /// Gives back the memory of large batches if nothing waits.
    pub fn trim(&self) {
        self.lane.trim();
    }

    /// What the lane did since it was opened.
    pub fn stats(&self) -> WalStats {
        WalStats {
            segments: self.lane.segments.live_count() as u64,
            pending_bytes: self.pending_bytes(),
            recycled: self.lane.segments.recycled(),
            disk_full: self.lane.segments.shortage().is_some(),
            ..self.lane.counters.snapshot()
        }
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal")
            .field("lane", &self.lane.index)
            .field("durable", &self.durable())
            .finish()
    }
}

/// The threads of a lane. Stopping or dropping it writes everything that was submitted first.
#[derive(Debug)]
pub struct WalThreads {
    lane: Arc<Lane>,
    threads: Vec<JoinHandle<()>>,
}

impl WalThreads {
    /// Flushes and ends the threads. Records submitted afterwards are refused.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.lane.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(lane = self.lane.index, "a thread of the log panicked");
            }
        }
    }
}

impl Drop for WalThreads {
    fn drop(&mut self) {
        self.join();
    }
}

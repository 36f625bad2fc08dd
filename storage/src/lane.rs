//! Owns one lane of the log: group commit, its watermark, rotation and poisoning.
//! Must never report a batch durable before its barrier returned, and never retry a failed one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polyraft_raft::mutants::{self, Mutant};

use crate::batch::{Batch, Lsn, Queue, Tally};
use crate::data_dir::DataDir;
use crate::error::StorageError;
use crate::format::{BATCH_HEADER_BYTES, BatchHeader, SEGMENT_HEADER_BYTES, padded};
use crate::maintenance::{Maintenance, ReplayFrom};
use crate::options::WalOptions;
use crate::pool::{Segment, Segments};
use crate::stats::Counters;
use crate::sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, RwLock};
use crate::usual::Usual;

/// The watermark of a lane: every batch up to `lsn` is on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// The lane.
    pub lane: usize,
    /// Highest durable batch; grows from report to report.
    pub lsn: Lsn,
}

/// Hears what becomes of a lane's batches. Called on the thread that wrote them, the flusher or a shard's own: must be short and
/// must not block.
pub trait WalObserver: Send + Sync {
    /// The watermark moved. Only the newest one matters.
    fn durable(&self, durable: &Durable);
    /// A write or sync failed and the lane is closed: the node has to stop.
    fn failed(&self, error: &StorageError);
    /// Every shard of the lane should call [`crate::ShardLog::maintain`] between turns until it returns false.
    fn maintain(&self);
}

/// A turn piece that became durable: where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) turn: u64,
    pub(crate) segment: u64,
    pub(crate) offset: u32,
}

/// What the flusher and the shards of a lane share.
pub(crate) struct Lane {
    pub(crate) index: usize,
    pub(crate) options: WalOptions,
    pub(crate) segments: Segments,
    pub(crate) maintenance: Maintenance,
    pub(crate) counters: Counters,
    queue: Mutex<Queue>,
    wake_flusher: Condvar,
    writer: Mutex<Writer>,
    /// By shard of the lane: pieces that were placed and not yet collected.
    placed: Vec<Mutex<Vec<Placed>>>,
    observer: RwLock<Option<Arc<dyn WalObserver>>>,
    tender: Mutex<Tender>,
    wake_tender: Condvar,
    stopping: AtomicBool,
    pending: AtomicU64,
    durable: AtomicU64,
    incarnation: u64,
    /// Keeps the directory locked as long as anything may write to it.
    dir: DataDir,
}

struct Writer {
    active: Arc<Segment>,
    offset: u64,
    /// Since the last checkpoint was asked for.
    bytes_since_checkpoint: u64,
    /// How long a batch's write and sync take.
    sync: Usual,
}

#[derive(Default)]
struct Tender {
    wanted: bool,
    /// Something is lacking that may come back, and that was said.
    is_waiting: bool,
    /// How often a full disk is looked at before the next checkpoint is made for it.
    pause: u32,
}

/// Where recovery left off.
pub(crate) struct Tip {
    pub(crate) active: Arc<Segment>,
    pub(crate) offset: u64,
    pub(crate) durable: Lsn,
    /// Where the newest checkpoint had recovery read on.
    pub(crate) checkpoint: Lsn,
    /// Log bytes that the next recovery would replay.
    pub(crate) bytes_since_checkpoint: u64,
}

impl Lane {
    pub(crate) fn new(
        index: usize,
        dir: DataDir,
        options: WalOptions,
        shards: usize,
        segments: Segments,
        tip: Tip,
        checkpoint: PathBuf,
    ) -> Result<Self, StorageError> {
        let queue = Queue::new(options.max_batch_bytes, Lsn(tip.durable.0 + 1))
            .map_err(|error| StorageError::io(dir.path(), "allocating batch buffers", &error))?;
        let counters = Counters::default();
        counters.active_offset.store(tip.offset, Ordering::Relaxed);
        Ok(Self {
            index,
            maintenance: Maintenance::new(
                Arc::clone(dir.disk()),
                checkpoint,
                index,
                dir.store().0,
                shards,
                options.segment_bytes,
                tip.checkpoint,
            ),
            counters,
            queue: Mutex::new(queue),
            wake_flusher: Condvar::new(),
            writer: Mutex::new(Writer {
                active: tip.active,
                offset: tip.offset,
                bytes_since_checkpoint: tip.bytes_since_checkpoint,
                sync: Usual::default(),
            }),
            placed: (0..shards).map(|_| Mutex::default()).collect(),
            observer: RwLock::new(None),
            tender: Mutex::default(),
            wake_tender: Condvar::new(),
            stopping: AtomicBool::new(false),
            pending: AtomicU64::new(0),
            durable: AtomicU64::new(tip.durable.0),
            incarnation: dir.opening(),
            segments,
            options,
            dir,
        })
    }

    pub(crate) fn observe(&self, observer: Arc<dyn WalObserver>) {
        *self.observer.write() = Some(observer);
    }

    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    pub(crate) fn trim(&self) {
        self.queue.lock().trim();
    }

    pub(crate) fn pending_bytes(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Hands a shard's pieces to the group commit: one copy under a short lock, all of them or none.
    /// `placed` hears of each piece where it went. With `syncs_inline` the caller goes on to [`sync_inline`](Self::sync_inline),
    /// and a flusher that sleeps sleeps on.
    pub(crate) fn submit<'a>(
        &self,
        shard: usize,
        syncs_inline: bool,
        pieces: impl Iterator<Item = (u64, &'a [u8], Tally)> + Clone,
        mut placed: impl FnMut(Lsn, u32),
    ) -> Result<(), StorageError> {
        let mut queue = self.queue.lock();
        if let Some(error) = &queue.closed {
            return Err(error.clone());
        }
        if let Some((needed, pool)) = self.segments.shortage() {
            self.check_room(&queue, pieces.clone(), needed, pool)?;
        }
        for (turn, bytes, tally) in pieces {
            let (lsn, offset) = queue.push(shard, turn, bytes, tally).map_err(|error| {
                let error = StorageError::io(self.dir.path(), "allocating a batch buffer", &error);
                queue.closed = Some(error.clone());
                error
            })?;
            placed(lsn, offset);
        }
        self.pending.store(queue.pending, Ordering::Relaxed);
        if !syncs_inline {
            self.call_flusher(queue);
        }
        Ok(())
    }

    /// A busy flusher looks at the queue again by itself: no system call then.
    fn call_flusher(&self, mut queue: MutexGuard<'_, Queue>) {
        if queue.pending > 0 && std::mem::take(&mut queue.asleep) {
            drop(queue);
            self.wake_flusher.notify_one();
        }
    }

    /// Writes and syncs the oldest waiting batch on this thread, if that usually takes no longer than `limit` and nobody else is at
    /// it. Whatever waits then is the flusher's.
    pub(crate) fn sync_inline(&self, limit: Duration) {
        if let Some(mut writer) = self.writer.try_lock()
            && self.is_quick(&writer, limit)
        {
            // The observer has heard of a failure.
            if let Ok(true) = self.write_oldest(&mut writer) {
                self.counters.inline_sync();
            }
        }
        if !mutants::is_active(Mutant::InlineSyncGivenUp) {
            self.call_flusher(self.queue.lock());
        }
    }

    /// Whether the next batch needs no other segment and no space, and its sync should not take long.
    fn is_quick(&self, writer: &Writer, limit: Duration) -> bool {
        let end = writer.offset + self.queue.lock().padded_bytes();
        writer.sync.is_within(limit)
            && end <= writer.active.header.bytes
            && self.segments.shortage().is_none()
    }

    /// Bytes left in the active segment and in `pool`.
    fn unwritten(&self, pool: u64) -> u64 {
        let used = self.counters.active_offset.load(Ordering::Relaxed);
        self.options.segment_bytes.saturating_sub(used) + pool
    }

    /// How many bytes of entries a shard should still take, when the disk has no room for another segment. It ends
    /// half a segment before the end: a quarter in which turns that bring more than was thought still find room, and a
    /// quarter for turns without entries.
    pub(crate) fn room_for_entries(&self) -> Option<u64> {
        let (_, pool) = self.segments.shortage()?;
        let kept = self.options.segment_bytes / 2 + self.queue.lock().padded_bytes();
        let shards = self.placed.len() as u64;
        Some(self.unwritten(pool).saturating_sub(kept) / shards)
    }

    /// Refuses a turn that might not find room in the prepared segments. Turns without entries may use
    /// the last quarter of a segment: votes, truncations and purges are what gets a node out of a full disk.
    fn check_room<'a>(
        &self,
        queue: &Queue,
        pieces: impl Iterator<Item = (u64, &'a [u8], Tally)>,
        needed: u64,
        pool: u64,
    ) -> Result<(), StorageError> {
        let (mut wanted, mut blocks) = (queue.padded_bytes(), 0);
        for (_, bytes, tally) in pieces {
            wanted += padded(bytes.len());
            blocks += tally.refusable;
        }
        let reserve = if blocks > 0 {
            self.options.segment_bytes / 4
        } else {
            0
        };
        if wanted + reserve > self.unwritten(pool) {
            return Err(StorageError::DiskFull {
                path: self.segments.dir().to_owned(),
                needed,
            });
        }
        Ok(())
    }

    /// Writes the oldest waiting batch and makes it durable. Returns false when none waits or the disk is full.
    pub(crate) fn pump(&self) -> Result<bool, StorageError> {
        self.write_oldest(&mut self.writer.lock())
    }

    fn write_oldest(&self, writer: &mut Writer) -> Result<bool, StorageError> {
        let taken = {
            let mut queue = self.queue.lock();
            if let Some(error) = &queue.closed {
                return Err(error.clone());
            }
            queue.take()
        };
        let taken = taken.map_err(|error| self.poison(self.no_buffer(&error)))?;
        let Some(batch) = taken else { return Ok(false) };
        self.commit(writer, batch)
    }

    /// What is handed in from now on goes into a later batch than what waits.
    pub(crate) fn begin_batch(&self) -> Result<(), StorageError> {
        let begun = self.queue.lock().begin();
        begun.map_err(|error| self.poison(self.no_buffer(&error)))
    }

    fn no_buffer(&self, error: &std::io::Error) -> StorageError {
        StorageError::io(self.dir.path(), "allocating a batch buffer", error)
    }

    /// Ends the log: proves the last batch durable with an empty one behind it, and takes no more.
    pub(crate) fn close(&self) -> Result<(), StorageError> {
        let (mut writer, mark) = loop {
            while self.pump()? {}
            let writer = self.writer.lock();
            let mut queue = self.queue.lock();
            if queue.closed.is_some() {
                return Ok(());
            }
            if queue.pending == 0 || mutants::is_active(Mutant::StopForgetsTurn) {
                let mark = queue.take_mark();
                queue.closed = Some(StorageError::Stopped);
                break (writer, mark);
            }
            if self.segments.shortage().is_some() {
                return Err(StorageError::DiskFull {
                    path: self.segments.dir().to_owned(),
                    needed: queue.padded_bytes(),
                });
            }
            // A turn was handed in meanwhile.
        };
        let mark = mark.map_err(|error| self.no_buffer(&error))?;
        self.commit(&mut writer, mark).map(|_| ())
    }

    fn commit(&self, writer: &mut Writer, mut batch: Batch) -> Result<bool, StorageError> {
        match self.write(writer, &mut batch) {
            Ok(offset) => {
                self.complete(writer, batch, offset);
                Ok(true)
            }
            // Nothing was written: the batch waits until a purge or the operator made room.
            Err(error @ StorageError::DiskFull { .. }) => {
                self.queue.lock().put_back(batch);
                tracing::warn!(%error, "the log waits for disk space");
                Ok(false)
            }
            Err(error) => Err(self.poison(error)),
        }
    }

    /// Returns the batch's offset in the active segment.
    fn write(&self, writer: &mut Writer, batch: &mut Batch) -> Result<u64, StorageError> {
        let bytes = padded(batch.body_bytes());
        if writer.offset + bytes > writer.active.header.bytes {
            writer.active = self.segments.activate()?;
            writer.offset = SEGMENT_HEADER_BYTES;
            self.want_tending();
        }
        let (head, body) = batch.buffer.split_at_mut(BATCH_HEADER_BYTES);
        let body_bytes = batch.len - BATCH_HEADER_BYTES;
        body[body_bytes..bytes as usize - BATCH_HEADER_BYTES].fill(0);
        let header = BatchHeader {
            salt: writer.active.header.salt,
            lsn: batch.lsn.0,
            last_durable: self.durable().0,
            body_bytes: body_bytes as u32,
            records: batch.tally.records,
            incarnation: self.incarnation,
            body_crc: crc32c::crc32c(&body[..body_bytes]),
        };
        header.encode(head);

        let fail = |action| {
            let path = self
                .segments
                .dir()
                .join(crate::pool::slot_name(writer.active.slot));
            move |error: std::io::Error| StorageError::io(path, action, &error)
        };
        let file = &writer.active.file;
        if mutants::is_active(Mutant::DurableBeforeSync) {
            // The batch before this one, which was reported long ago.
            file.sync(0, writer.offset).map_err(fail("syncing"))?;
            file.write(writer.offset, &batch.buffer[..bytes as usize])
                .map_err(fail("writing a batch"))?;
            return Ok(writer.offset);
        }
        let begun = Instant::now();
        file.write(writer.offset, &batch.buffer[..bytes as usize])
            .map_err(fail("writing a batch"))?;
        let started = Instant::now();
        let synced = file.sync(writer.offset, bytes);
        if !mutants::is_active(Mutant::SyncErrorIgnored) {
            synced.map_err(fail("syncing a batch"))?;
        }
        self.counters.barrier(started.elapsed());
        writer.sync.note(begun.elapsed());
        Ok(writer.offset)
    }

    fn complete(&self, writer: &mut Writer, batch: Batch, offset: u64) {
        let bytes = padded(batch.body_bytes());
        let lsn = batch.lsn;
        writer.offset += bytes;
        writer.bytes_since_checkpoint += bytes;
        self.counters.batch(&batch.tally, bytes, writer.offset);
        let segment = writer.active.header.sequence;
        for piece in &batch.pieces {
            let placed = Placed {
                turn: piece.turn,
                segment,
                offset: offset as u32 + piece.offset,
            };
            self.placed[piece.shard].lock().push(placed);
        }
        self.durable.store(lsn.0, Ordering::Release);
        {
            let mut queue = self.queue.lock();
            queue.done(batch);
            self.pending.store(queue.pending, Ordering::Relaxed);
        }
        let observer = self.observer.read();
        if let Some(observer) = &*observer {
            observer.durable(&Durable {
                lane: self.index,
                lsn,
            });
        }
        let wanted = writer.bytes_since_checkpoint >= self.options.checkpoint_bytes;
        if wanted
            && self.maintenance.begin(ReplayFrom {
                segment,
                offset: writer.offset,
                lsn: Lsn(lsn.0 + 1),
            })
        {
            writer.bytes_since_checkpoint = 0;
            if let Some(observer) = &*observer {
                observer.maintain();
            }
        }
    }

    /// Asks for a checkpoint as if enough log had been written. Returns false while one is under way.
    pub(crate) fn request_checkpoint(&self) -> bool {
        let mut writer = self.writer.lock();
        let from = ReplayFrom {
            segment: writer.active.header.sequence,
            offset: writer.offset,
            lsn: Lsn(self.durable().0 + 1),
        };
        let begun = self.maintenance.begin(from);
        if begun {
            writer.bytes_since_checkpoint = 0;
            if let Some(observer) = &*self.observer.read() {
                observer.maintain();
            }
        }
        begun
    }

    /// Closes the lane for good. What a failed sync left on the disk is unknown, and a second sync that succeeds would
    /// prove nothing (the kernel drops the dirty pages of a failed one).
    pub(crate) fn poison(&self, error: StorageError) -> StorageError {
        let poisoned = match error {
            StorageError::Poisoned { .. } => error,
            error => StorageError::Poisoned {
                reason: error.to_string(),
            },
        };
        {
            let mut queue = self.queue.lock();
            if let Some(earlier) = &queue.closed {
                return earlier.clone();
            }
            queue.closed = Some(poisoned.clone());
        }
        tracing::error!(error = %poisoned, "the log is poisoned");
        if let Some(observer) = &*self.observer.read() {
            observer.failed(&poisoned);
        }
        poisoned
    }

    /// Moves the pieces of a shard that were placed since the last call into `into`.
    pub(crate) fn collect(&self, shard: usize, into: &mut Vec<Placed>) {
        into.append(&mut self.placed[shard].lock());
    }

    /// One step of background work: checkpoint file, recycling, pool. Returns whether there may be more.
    pub(crate) fn tend(&self) -> Result<bool, StorageError> {
        let step = || -> Result<bool, StorageError> {
            if let Some(published) = self
                .maintenance
                .publish(self.durable(), &self.segments.sequences())?
            {
                self.counters.checkpoint(published.live_bytes);
                self.segments.retire(&published.dead);
                if published.relocates
                    && let Some(observer) = &*self.observer.read()
                {
                    observer.maintain();
                }
                return Ok(true);
            }
            Ok(self.segments.tend()? || self.relieve())
        };
        let done = step();
        let is_passing = matches!(&done, Err(error) if error.is_passing());
        let was_waiting = std::mem::replace(&mut self.tender.lock().is_waiting, is_passing);
        done.or_else(|error| match is_passing {
            // No file is relied on before everything it needs was done, and what is begun anew is written anew.
            true => {
                if !was_waiting {
                    tracing::warn!(%error, "background work of the log has to wait");
                }
                Ok(false)
            }
            false => Err(self.poison(error)),
        })
    }

    /// Has a checkpoint made when the disk is full: only that frees what was purged, and it may be that nobody can write the log
    /// after which one would be due. And when the last one could not be written.
    fn relieve(&self) -> bool {
        if self.segments.shortage().is_none() && !self.maintenance.must_repeat() {
            return false;
        }
        let pause = {
            let mut tender = self.tender.lock();
            tender.pause = tender.pause.saturating_sub(1);
            tender.pause
        };
        let is_covered = self.maintenance.covers(Lsn(self.durable().0 + 1));
        let is_begun = pause == 0 && !is_covered && self.request_checkpoint();
        if is_begun {
            self.tender.lock().pause = RELIEF_PAUSE;
        }
        is_begun
    }

    /// Whether background work could not be done and has to be tried again.
    pub(crate) fn must_tend_again(&self) -> bool {
        self.segments.must_retry() || self.maintenance.must_repeat()
    }

    pub(crate) fn want_tending(&self) {
        let mut tender = self.tender.lock();
        tender.wanted = true;
        self.wake_tender.notify_one();
    }

    pub(crate) fn take_tending_wish(&self) -> bool {
        std::mem::take(&mut self.tender.lock().wanted)
    }

    /// What the flusher thread runs until the lane stops or fails.
    pub(crate) fn flush_loop(&self) {
        loop {
            match self.pump() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(_) => return,
            }
            if self.stopping.load(Ordering::Acquire) {
                if let Err(error) = self.close() {
                    tracing::error!(%error, "the log was not closed cleanly");
                }
                return;
            }
            let mut queue = self.queue.lock();
            if queue.closed.is_some() {
                return;
            }
            let stuck = queue.pending > 0 && self.segments.shortage().is_some();
            if queue.pending == 0 || stuck {
                // `stopping` is set before its wake-up takes this lock, so it cannot slip in between.
                if self.stopping.load(Ordering::Acquire) {
                    continue;
                }
                if mutants::is_active(Mutant::WakeUpLost) {
                    drop(queue);
                    queue = self.queue.lock();
                }
                queue.asleep = true;
                match stuck {
                    true => _ = self.wake_flusher.wait_for(&mut queue, RETRY),
                    false => self.wake_flusher.wait(&mut queue),
                }
                queue.asleep = false;
            }
        }
    }

    /// What the background thread runs until the lane stops or fails.
    pub(crate) fn tend_loop(&self) {
        let mut unloaded = self.segments.newest(LOADED_BYTES).into_iter();
        while !self.stopping.load(Ordering::Acquire) {
            let loading = unloaded.next();
            if let Some(sequence) = loading {
                self.segments.expect_reads(sequence);
            }
            match self.tend() {
                Ok(true) => continue,
                Ok(false) if loading.is_some() => continue,
                Ok(false) => {}
                Err(_) => return,
            }
            let mut tender = self.tender.lock();
            if !tender.wanted && !self.stopping.load(Ordering::Acquire) {
                match self.must_tend_again() {
                    true => _ = self.wake_tender.wait_for(&mut tender, RETRY),
                    false => self.wake_tender.wait(&mut tender),
                }
            }
            tender.wanted = false;
        }
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.queue.lock().asleep = false;
        self.wake_flusher.notify_all();
        self.want_tending();
    }
}

/// How much of a log is loaded once it is open, the newest. State machines that begin anew read all of it, group by group; one page at a
/// time from a cold device would take a minute a gigabyte.
const LOADED_BYTES: u64 = 4 << 30;

/// How often a full disk or a segment that readers still hold is looked at again.
const RETRY: Duration = Duration::from_millis(50);

/// Between two checkpoints for a full disk, in looks at it: about five seconds. Each one writes the whole index.
const RELIEF_PAUSE: u32 = 100;

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("index", &self.index)
            .field("durable", &self.durable())
            .finish_non_exhaustive()
    }
}

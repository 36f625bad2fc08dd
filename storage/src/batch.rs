//! Owns the batches that wait for the flusher: shards copy their turns in, the flusher takes them out in order.
//! Must never do I/O: `submit` holds the lock for one copy.

use std::collections::VecDeque;

use memmap2::MmapMut;

use crate::error::StorageError;
use crate::format::{BATCH_HEADER_BYTES, padded};

/// A batch number of a lane, from 1 without gaps. Everything up to a durable one is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a piece of a turn consists of, for the statistics and the batch header.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) records: u32,
    pub(crate) blocks: u32,
    /// Those of the blocks that a nearly full disk refuses: all but the first entry of a leader's term.
    pub(crate) refusable: u32,
    pub(crate) entries: u64,
}

/// Where a turn piece lies in its batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Which of the lane's shards.
    pub(crate) shard: usize,
    pub(crate) turn: u64,
    /// From the start of the batch, header included.
    pub(crate) offset: u32,
}

/// Records on their way to the disk.
pub(crate) struct Batch {
    pub(crate) lsn: Lsn,
    /// Page aligned; anonymous memory, so pages cost nothing before they are first used.
    pub(crate) buffer: MmapMut,
    /// Header and records so far.
    pub(crate) len: usize,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) tally: Tally,
}

impl Batch {
    pub(crate) fn body_bytes(&self) -> usize {
        self.len - BATCH_HEADER_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == BATCH_HEADER_BYTES
    }
}

/// The open batch and those before it that are full.
pub(crate) struct Queue {
    sealed: VecDeque<Batch>,
    open: Batch,
    capacity: usize,
    /// Buffers to reuse; two are enough when the disk keeps up.
    spare: Vec<Batch>,
    /// What the batch that was taken will use of its segment.
    taken: u64,
    pub(crate) pending: u64,
    /// The flusher waits for a wake-up.
    pub(crate) asleep: bool,
    /// Nothing is taken any more.
    pub(crate) closed: Option<StorageError>,
}

const SPARE_BATCHES: usize = 2;

impl Queue {
    pub(crate) fn new(capacity: usize, next: Lsn) -> std::io::Result<Self> {
        Ok(Self {
            sealed: VecDeque::new(),
            open: fresh(capacity, next)?,
            capacity,
            spare: vec![fresh(capacity, next)?],
            taken: 0,
            pending: 0,
            asleep: false,
            closed: None,
        })
    }

    /// Copies a piece into the open batch, or into the next one when it does not fit. Returns its place.
    pub(crate) fn push(
        &mut self,
        shard: usize,
        turn: u64,
        bytes: &[u8],
        tally: Tally,
    ) -> std::io::Result<(Lsn, u32)> {
        if self.open.len + bytes.len() > self.capacity {
            self.seal()?;
        }
        let batch = &mut self.open;
        let offset = batch.len;
        batch.buffer[offset..offset + bytes.len()].copy_from_slice(bytes);
        batch.len += bytes.len();
        batch.tally.records += tally.records;
        batch.tally.blocks += tally.blocks;
        batch.tally.refusable += tally.refusable;
        batch.tally.entries += tally.entries;
        batch.pieces.push(Piece {
            shard,
            turn,
            offset: offset as u32,
        });
        self.pending += bytes.len() as u64;
        Ok((batch.lsn, (offset - BATCH_HEADER_BYTES) as u32))
    }

    /// The oldest batch with anything in it. It stays counted as pending until `done`.
    pub(crate) fn take(&mut self) -> std::io::Result<Option<Batch>> {
        self.begin()?;
        let batch = self.sealed.pop_front();
        self.taken = batch.as_ref().map_or(0, |batch| padded(batch.body_bytes()));
        Ok(batch)
    }

    /// The oldest batch takes nothing more, as when its write begins.
    pub(crate) fn begin(&mut self) -> std::io::Result<()> {
        match self.sealed.is_empty() && !self.open.is_empty() {
            true => self.seal(),
            false => Ok(()),
        }
    }

    /// An empty batch of its own: marks everything before it as durable.
    pub(crate) fn take_mark(&mut self) -> std::io::Result<Batch> {
        debug_assert!(self.sealed.is_empty() && self.open.is_empty());
        self.seal()?;
        self.sealed
            .pop_back()
            .ok_or_else(|| std::io::Error::other("no sealed batch"))
    }

    /// Back to the front: it could not be written yet.
    pub(crate) fn put_back(&mut self, batch: Batch) {
        self.taken = 0;
        self.sealed.push_front(batch);
    }

    pub(crate) fn done(&mut self, batch: Batch) {
        self.taken = 0;
        self.pending -= batch.body_bytes() as u64;
        if self.spare.len() < SPARE_BATCHES {
            self.spare.push(batch);
        }
    }

    /// Gives back the memory of batches that were full, if nothing waits and nothing is being written.
    pub(crate) fn trim(&mut self) {
        let is_idle = self.pending == 0 && self.sealed.is_empty() && self.open.is_empty();
        if is_idle && let Ok(fresh) = fresh(self.capacity, self.open.lsn) {
            self.open = fresh;
            self.spare = Vec::new();
        }
    }

    /// Bytes that the waiting batches and the one being written take in segments, padding included.
    pub(crate) fn padded_bytes(&self) -> u64 {
        let waiting = self.sealed.iter().chain([&self.open]);
        let bytes = waiting.map(|batch| padded(batch.body_bytes()));
        self.taken + bytes.sum::<u64>()
    }

    fn seal(&mut self) -> std::io::Result<()> {
        let lsn = Lsn(self.open.lsn.0 + 1);
        let next = match self.spare.pop() {
            Some(mut batch) => {
                batch.lsn = lsn;
                batch.len = BATCH_HEADER_BYTES;
                batch.pieces.clear();
                batch.tally = Tally::default();
                batch
            }
            None => fresh(self.capacity, lsn)?,
        };
        self.sealed
            .push_back(std::mem::replace(&mut self.open, next));
        Ok(())
    }
}

fn fresh(capacity: usize, lsn: Lsn) -> std::io::Result<Batch> {
    Ok(Batch {
        lsn,
        buffer: MmapMut::map_anon(capacity)?,
        len: BATCH_HEADER_BYTES,
        pieces: Vec::new(),
        tally: Tally::default(),
    })
}

//! Owns the segment files of a lane: the table of live ones, the pool of prepared ones, and what waits to be reused.
//! Must never prepare a file that a reader still maps or that the newest checkpoint still needs.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use polyraft_raft::mutants::{self, Mutant};
use rustc_hash::FxHashMap;

use crate::disk::{Disk, SegmentFile, SegmentSpec};
use crate::error::StorageError;
use crate::format::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::options::{WalMode, WalOptions};
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock};

/// Between two MiB of zeros: a quarter of a second for a segment of 64 MiB.
const ZEROING_PAUSE: Duration = Duration::from_millis(4);

/// A segment file with a valid header.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    /// Number in the file's name; outlives the segment when the file is recycled.
    pub(crate) slot: u64,
    pub(crate) file: Arc<dyn SegmentFile>,
}

impl Segment {
    pub(crate) fn read(&self, offset: u64, bytes: usize) -> Bytes {
        Arc::clone(&self.file).read(offset, bytes)
    }
}

/// The file name of a slot.
pub(crate) fn slot_name(slot: u64) -> String {
    format!("{slot:08}.seg")
}

/// The slot of a file name.
pub(crate) fn parse_slot(name: &str) -> Option<u64> {
    name.strip_suffix(".seg")?.parse().ok()
}

/// All segments of a lane.
pub(crate) struct Segments {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: WalOptions,
    lane: u32,
    store: u128,
    incarnation: u64,
    /// Segments that hold log, by sequence number.
    live: RwLock<FxHashMap<u64, Arc<Segment>>>,
    pool: Mutex<Pool>,
    recycled: AtomicU64,
    /// Held while a file is prepared, so that sequence numbers enter the pool in order.
    preparing: Mutex<()>,
}

struct Pool {
    ready: VecDeque<Arc<Segment>>,
    /// Out of use, but readers may still map them.
    retired: Vec<Arc<Segment>>,
    /// Files without a use: raw material for the pool. The flag says whether their blocks are all written.
    raw: Vec<Raw>,
    next_sequence: u64,
    next_slot: u64,
    /// Set while the disk has no room for another segment: the bytes that are missing.
    full: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    pub(crate) slot: u64,
    /// The file was a whole segment of the configured size, so its blocks are allocated and written.
    pub(crate) whole: bool,
}

/// What recovery found.
pub(crate) struct FoundSegments {
    pub(crate) live: Vec<Arc<Segment>>,
    pub(crate) ready: Vec<Arc<Segment>>,
    pub(crate) retired: Vec<Arc<Segment>>,
    pub(crate) raw: Vec<Raw>,
    pub(crate) next_sequence: u64,
    pub(crate) next_slot: u64,
}

impl FoundSegments {
    /// Every segment that was found.
    pub(crate) fn all(&self) -> Vec<&Arc<Segment>> {
        self.live
            .iter()
            .chain(&self.ready)
            .chain(&self.retired)
            .collect()
    }
}

/// Who owns the files, for their headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) lane: u32,
    pub(crate) store: u128,
    pub(crate) incarnation: u64,
}

impl Segments {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: WalOptions,
        owner: Owner,
        found: FoundSegments,
    ) -> Self {
        let live = found
            .live
            .into_iter()
            .map(|segment| (segment.header.sequence, segment))
            .collect();
        let pool = Pool {
            ready: found.ready.into(),
            retired: found.retired,
            raw: found.raw,
            next_sequence: found.next_sequence,
            next_slot: found.next_slot,
            full: None,
        };
        Self {
            disk,
            dir,
            options,
            lane: owner.lane,
            store: owner.store,
            incarnation: owner.incarnation,
            live: RwLock::new(live),
            pool: Mutex::new(pool),
            recycled: AtomicU64::new(0),
            preparing: Mutex::new(()),
        }
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<Arc<Segment>> {
        self.live.read().get(&sequence).cloned()
    }

    pub(crate) fn sequences(&self) -> Vec<u64> {
        self.live.read().keys().copied().collect()
    }

    /// The newest segments that are full, so many bytes of them at most, the oldest first.
    pub(crate) fn newest(&self, most: u64) -> Vec<u64> {
        let mut sequences = self.sequences();
        sequences.sort_unstable();
        // That one is written to.
        sequences.pop();
        let count = (most / self.options.segment_bytes) as usize;
        sequences.split_off(sequences.len().saturating_sub(count))
    }

    /// Has a segment read from the device. It may wait for that.
    pub(crate) fn expect_reads(&self, sequence: u64) {
        if let Some(segment) = self.get(sequence) {
            self.disk
                .expect_reads(&self.dir.join(slot_name(segment.slot)));
        }
    }

    /// Files that were used again.
    pub(crate) fn recycled(&self) -> u64 {
        self.recycled.load(Ordering::Relaxed)
    }

    pub(crate) fn live_count(&self) -> usize {
        self.live.read().len()
    }

    /// The next segment to write to. Waits for the disk only when the pool is empty.
    pub(crate) fn activate(&self) -> Result<Arc<Segment>, StorageError> {
        let ready = self.pool.lock().ready.pop_front();
        let segment = match ready {
            Some(segment) => segment,
            None => {
                let preparing = self.preparing.lock();
                // The background thread may have finished one while this thread waited.
                let ready = self.pool.lock().ready.pop_front();
                let segment = ready.map_or_else(|| self.prepare(), Ok)?;
                drop(preparing);
                segment
            }
        };
        self.live
            .write()
            .insert(segment.header.sequence, Arc::clone(&segment));
        Ok(segment)
    }

    /// Takes segments out of use. Their files return to the pool once nobody reads them.
    pub(crate) fn retire(&self, sequences: &[u64]) {
        let mut live = self.live.write();
        let gone = sequences
            .iter()
            .filter_map(|sequence| live.remove(sequence));
        self.pool.lock().retired.extend(gone);
    }

    /// One step of background work: frees a retired file or prepares a segment. Returns whether it did anything.
    pub(crate) fn tend(&self) -> Result<bool, StorageError> {
        if self.free_retired()? {
            return Ok(true);
        }
        let preparing = self.preparing.lock();
        if self.pool.lock().ready.len() >= self.options.pool_segments {
            return self.drop_surplus();
        }
        let prepared = self.prepare();
        match prepared {
            Ok(segment) => self.pool.lock().ready.push_back(segment),
            // `submit` reports it to whoever wants to write; space may come back.
            Err(error) if error.is_disk_full() => return Ok(false),
            Err(error) => return Err(error),
        }
        drop(preparing);
        Ok(true)
    }

    /// Whether readers, a full disk or a failure that passes keep background work from being done now, so that it has to be tried
    /// again.
    pub(crate) fn must_retry(&self) -> bool {
        let pool = self.pool.lock();
        let is_short = pool.ready.len() < self.options.pool_segments;
        pool.full.is_some() || !pool.retired.is_empty() || is_short
    }

    /// Bytes missing on the disk for the next segment, and how many the pool still takes for certain.
    pub(crate) fn shortage(&self) -> Option<(u64, u64)> {
        let pool = self.pool.lock();
        let usable =
            self.options.segment_bytes - SEGMENT_HEADER_BYTES - self.options.max_batch_bytes as u64;
        pool.full
            .map(|missing| (missing, pool.ready.len() as u64 * usable))
    }

    fn free_retired(&self) -> Result<bool, StorageError> {
        let mut pool = self.pool.lock();
        // The table no longer has it and no index points to it, so a sole reference stays sole. `get_mut` also
        // orders what the last reader did before what is written next; a count of references alone would not.
        let is_free = |segment: &mut Arc<Segment>| {
            if mutants::is_active(Mutant::ReadersIgnored) {
                return true;
            }
            Arc::get_mut(segment).is_some_and(|segment| Arc::get_mut(&mut segment.file).is_some())
        };
        let Some(at) = pool.retired.iter_mut().position(is_free) else {
            return Ok(false);
        };
        let segment = pool.retired.swap_remove(at);
        let slot = segment.slot;
        if segment.file.len() == self.options.segment_bytes {
            pool.raw.push(Raw { slot, whole: true });
            return Ok(true);
        }
        // Of another size: changing its length under its old header would look like damage after a power cut.
        drop(pool);
        drop(segment);
        self.remove(slot)
    }

    fn drop_surplus(&self) -> Result<bool, StorageError> {
        // A checkpoint frees about as many segments at once as are filled until the next one: they are worth keeping.
        let kept = (self.options.checkpoint_bytes / self.options.segment_bytes) as usize
            + self.options.pool_segments;
        let raw = {
            let mut pool = self.pool.lock();
            if pool.raw.len() > kept {
                pool.raw.pop()
            } else {
                None
            }
        };
        let Some(raw) = raw else { return Ok(false) };
        self.remove(raw.slot)
    }

    fn remove(&self, slot: u64) -> Result<bool, StorageError> {
        let path = self.path(slot);
        self.disk
            .remove(&path)
            .map_err(|error| StorageError::io(&path, "removing", &error))?;
        self.sync_dir()?;
        Ok(true)
    }

    fn prepare(&self) -> Result<Arc<Segment>, StorageError> {
        let raw = {
            let mut pool = self.pool.lock();
            // Those that need no room first.
            let at = pool.raw.iter().position(|raw| raw.whole);
            let at = at.or(pool.raw.len().checked_sub(1));
            let new = Raw {
                slot: pool.next_slot,
                whole: false,
            };
            at.map_or(new, |at| pool.raw.swap_remove(at))
        };
        let result = self.prepare_from(raw);
        let is_left = result.is_err() && self.disk.file_bytes(&self.path(raw.slot)).is_ok();
        let mut pool = self.pool.lock();
        match &result {
            Ok(_) => pool.full = None,
            Err(StorageError::DiskFull { needed, .. }) => pool.full = Some(*needed),
            Err(_) => {}
        }
        if is_left {
            // Nobody knows what it holds: it will be written from its first byte to its last.
            pool.raw.push(Raw {
                slot: raw.slot,
                whole: false,
            });
        }
        if is_left || result.is_ok() {
            pool.next_slot = pool.next_slot.max(raw.slot + 1);
        }
        result
    }

    /// Lets the log's own writes through while a segment is zeroed: a device that takes in 64 MiB at once syncs nothing
    /// else meanwhile. Who has no segment ready does not wait.
    fn pause(&self) {
        if !self.pool.lock().ready.is_empty() {
            std::thread::sleep(ZEROING_PAUSE);
        }
    }

    fn prepare_from(&self, Raw { slot, whole }: Raw) -> Result<Arc<Segment>, StorageError> {
        let bytes = self.options.segment_bytes;
        let path = self.path(slot);
        let fail = |action| {
            let path = path.clone();
            move |error: std::io::Error| StorageError::io(path, action, &error)
        };
        let there = match self.disk.file_bytes(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            there => there.map_err(fail("measuring"))?,
        };
        // What the file has already is written over.
        let missing = bytes.saturating_sub(there);
        if missing > 0 {
            self.check_room(missing)?;
        }
        let sequence = {
            let mut pool = self.pool.lock();
            pool.next_sequence += 1;
            pool.next_sequence - 1
        };
        let spec = SegmentSpec {
            mode: self.options.mode,
            direct_io: self.options.direct_io,
        };
        // A recycled file needs no zeros for safety: the salt makes its old batches unreadable. A mapped one gets them
        // anyway, in small writes, or each later msync of a page would write a whole large folio.
        let zeroed = match whole && self.options.mode == WalMode::Direct {
            true => Ok(()),
            false => self.disk.zero_segment(&path, bytes, spec, &|| self.pause()),
        };
        if let Err(error) = zeroed {
            let error = StorageError::io(&path, "zeroing a segment", &error);
            if !error.is_disk_full() {
                return Err(error);
            }
            if !whole {
                // Give back what a half-written file took. A failure here leaves a raw file, nothing worse.
                let _ = self.disk.remove(&path);
            }
            return Err(StorageError::DiskFull {
                path: self.dir.clone(),
                needed: bytes,
            });
        }
        let mut salt = self.disk.entropy().map_err(fail("drawing a salt for"))? as u64;
        if mutants::is_active(Mutant::SaltReused) {
            salt = 0;
        }
        let header = SegmentHeader {
            lane: self.lane,
            store: self.store,
            sequence,
            salt,
            bytes,
            incarnation: self.incarnation,
        };
        self.disk
            .overwrite(&path, 0, &header.encode())
            .map_err(fail("writing the header of"))?;
        self.sync_dir()?;
        let file = self
            .disk
            .open_segment(&path, spec)
            .map_err(fail("opening"))?;
        if whole {
            self.recycled.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Arc::new(Segment { header, slot, file }))
    }

    fn check_room(&self, bytes: u64) -> Result<(), StorageError> {
        let free = self
            .disk
            .free_bytes(&self.dir)
            .map_err(|error| StorageError::io(&self.dir, "measuring free space", &error))?;
        let wanted = bytes + self.options.min_free_bytes;
        if free < wanted {
            return Err(StorageError::DiskFull {
                path: self.dir.clone(),
                needed: wanted - free,
            });
        }
        Ok(())
    }

    fn sync_dir(&self) -> Result<(), StorageError> {
        if mutants::is_active(Mutant::DirectoryNotSynced) {
            return Ok(());
        }
        self.disk
            .sync_dir(&self.dir)
            .map_err(|error| StorageError::io(&self.dir, "syncing the directory", &error))
    }

    fn path(&self, slot: u64) -> PathBuf {
        self.dir.join(slot_name(slot))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

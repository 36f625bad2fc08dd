//! Owns the making of checkpoints: when one begins, who still owes its part, publishing it, and what it sets free.
//! Must never publish what is not durable, nor free a segment that the published checkpoint needs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyraft_raft::mutants::{self, Mutant};
use rustc_hash::FxHashMap;

use crate::batch::Lsn;
pub(crate) use crate::checkpoint::ReplayFrom;
use crate::checkpoint::{CheckpointHeader, Section};
use crate::disk::Disk;
use crate::error::StorageError;
use crate::sync::{AtomicU64, Mutex, Ordering};

pub(crate) struct Maintenance {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    lane: usize,
    store: u128,
    segment_bytes: u64,
    /// Number of the newest checkpoint that was asked for.
    checkpoint: AtomicU64,
    /// Number of the newest relocation that was asked for.
    relocation: AtomicU64,
    state: Mutex<State>,
}

struct State {
    replay: ReplayFrom,
    under_way: bool,
    /// Where the newest checkpoint has recovery read on.
    published: Lsn,
    /// One that would have had it read on further could not be written.
    must_repeat: bool,
    /// By shard of the lane.
    sections: Vec<Option<Section>>,
    victims: Arc<[u64]>,
}

/// What a published checkpoint led to.
pub(crate) struct Published {
    pub(crate) live_bytes: u64,
    /// Segments that nothing needs any more.
    pub(crate) dead: Vec<u64>,
    /// Whether shards have blocks to move out of sparse segments.
    pub(crate) relocates: bool,
}

impl Maintenance {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        path: PathBuf,
        lane: usize,
        store: u128,
        shards: usize,
        segment_bytes: u64,
        published: Lsn,
    ) -> Self {
        let state = State {
            replay: ReplayFrom::default(),
            under_way: false,
            published,
            must_repeat: false,
            sections: (0..shards).map(|_| None).collect(),
            victims: Arc::default(),
        };
        Self {
            disk,
            path,
            lane,
            store,
            segment_bytes,
            checkpoint: AtomicU64::new(0),
            relocation: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    /// Starts a checkpoint from which recovery will read on at `replay`; false while one is under way.
    pub(crate) fn begin(&self, replay: ReplayFrom) -> bool {
        let mut state = self.state.lock();
        if state.under_way {
            return false;
        }
        state.under_way = true;
        state.replay = replay;
        self.checkpoint.fetch_add(1, Ordering::Release);
        true
    }

    /// Whether the last checkpoint could not be written, and another one is wanted before there is more log.
    pub(crate) fn must_repeat(&self) -> bool {
        self.state.lock().must_repeat
    }

    /// Whether the newest checkpoint covers everything before batch `next`.
    pub(crate) fn covers(&self, next: Lsn) -> bool {
        self.state.lock().published >= next
    }

    /// Writes the file, if there is room for all of it: what is free on a full disk others need meanwhile.
    fn write(&self, file: &[&[u8]]) -> io::Result<()> {
        if mutants::is_active(Mutant::CheckpointOverwritten) {
            return self.disk.write_new(&self.path, file);
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        if self.disk.free_bytes(dir)? < file.iter().map(|part| part.len() as u64).sum() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.replace(&self.path, file)
    }

    /// The checkpoint that is wanted, by number.
    pub(crate) fn checkpoint(&self) -> u64 {
        self.checkpoint.load(Ordering::Acquire)
    }

    /// The relocation that is wanted, by number.
    pub(crate) fn relocation(&self) -> u64 {
        self.relocation.load(Ordering::Acquire)
    }

    /// The segments to move blocks out of.
    pub(crate) fn victims(&self) -> Arc<[u64]> {
        Arc::clone(&self.state.lock().victims)
    }

    /// A shard's part; its content is durable. Returns whether it was the last one missing.
    pub(crate) fn deliver(&self, shard: usize, section: Section) -> bool {
        let mut state = self.state.lock();
        state.sections[shard] = Some(section);
        state.sections.iter().all(Option::is_some)
    }

    /// Writes the checkpoint if all parts are there. `None` when they are not, or when the disk has no room for it.
    pub(crate) fn publish(
        &self,
        durable: Lsn,
        segments: &[u64],
    ) -> Result<Option<Published>, StorageError> {
        let (sections, replay) = {
            let mut state = self.state.lock();
            if !state.under_way || state.sections.iter().any(Option::is_none) {
                return Ok(None);
            }
            let sections: Vec<Section> =
                state.sections.iter_mut().filter_map(Option::take).collect();
            (sections, state.replay)
        };
        let header = CheckpointHeader {
            lane: self.lane as u32,
            store: self.store,
            replay,
            durable,
            entries: sections.iter().map(|section| section.entries).sum(),
        };
        let head = header.encode(&sections);
        let mut file = vec![&head[..]];
        file.extend(sections.iter().flat_map(Section::pieces));
        let written = self.write(&file);
        let mut state = self.state.lock();
        state.under_way = false;
        state.must_repeat = written.is_err() && state.published < replay.lsn;
        if let Err(error) = written {
            let error = StorageError::io(&self.path, "writing a checkpoint", &error);
            if error.is_disk_full() {
                // The old one stays valid.
                tracing::warn!(%error, "no room for a checkpoint");
                return Ok(None);
            }
            return Err(error);
        }
        state.published = replay.lsn;
        let mut live: FxHashMap<u64, u64> = FxHashMap::default();
        for (segment, bytes) in sections.iter().flat_map(|section| &section.live) {
            *live.entry(*segment).or_default() += bytes;
        }
        let closed = segments
            .iter()
            .copied()
            .filter(|segment| *segment < replay.segment);
        let (kept, dead): (Vec<u64>, Vec<u64>) = closed.partition(|segment| {
            live.contains_key(segment) && !mutants::is_active(Mutant::LiveSegmentFreed)
        });
        state.victims = self.choose_victims(&kept, &live);
        let relocates = !state.victims.is_empty();
        if relocates {
            self.relocation.fetch_add(1, Ordering::Release);
        }
        Ok(Some(Published {
            live_bytes: live.values().sum(),
            dead,
            relocates,
        }))
    }

    /// Segments at most a quarter full, emptiest first, as long as moving their blocks fills at most half a segment: moving
    /// then costs at most a third of the space it frees.
    fn choose_victims(&self, kept: &[u64], live: &FxHashMap<u64, u64>) -> Arc<[u64]> {
        let mut sparse: Vec<(u64, u64)> = kept
            .iter()
            .map(|segment| (live.get(segment).copied().unwrap_or(0), *segment))
            .filter(|(bytes, _)| *bytes <= self.segment_bytes / 4)
            .collect();
        sparse.sort_unstable();
        let mut budget = self.segment_bytes / 2;
        let chosen = sparse.into_iter().take_while(|(bytes, _)| {
            let fits = *bytes <= budget;
            budget = budget.saturating_sub(*bytes);
            fits
        });
        chosen.map(|(_, segment)| segment).collect()
    }
}

//! Owns a shard's part in checkpoints and relocation, done in bounded slices between turns.
//! Must never hand in a part whose records are not durable.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{GroupId, Index};
use rustc_hash::FxHashMap;

use crate::blocks::Blocks;
use crate::checkpoint::{Patch, Section};
use crate::error::StorageError;
use crate::index::{Place, Where};
use crate::shard::ShardLog;

/// Groups looked at in one call of `maintain`, and bytes written or moved by it. A group is written whole into a checkpoint,
/// however many blocks it has: it could be truncated in between.
const SLICE_GROUPS: usize = 512;
const SLICE_BYTES: usize = 256 << 10;

/// Blocks moved in one call, and looked at to find them. Each that is moved is read from where it lies, by itself: a few microseconds
/// if that is cached, while turns wait.
const SLICE_MOVES: usize = 256;
const SLICE_LOOKS: usize = 64 << 10;

#[derive(Default)]
pub(crate) struct Upkeep {
    /// Numbers of the newest checkpoint and relocation that were begun.
    checkpoint_seen: u64,
    relocation_seen: u64,
    checkpoint: Option<CheckpointWork>,
    relocation: Option<RelocationWork>,
}

struct CheckpointWork {
    /// Groups and tombstones that are not in the section yet.
    left: Vec<GroupId>,
    section: Section,
    /// Places that the section still lacks.
    patches: Vec<Patch>,
    /// Turn pieces that were placed since the work began.
    placed: FxHashMap<Place, (u64, u32)>,
    /// Once nothing is left: the pieces before this one have to be durable.
    through: Option<u64>,
}

impl CheckpointWork {
    /// Whether the section could be handed in, if only its blocks mattered.
    fn has_all_places(&self) -> bool {
        let has_place = |patch: &Patch| self.placed.contains_key(&patch.turn);
        self.through.is_some() && self.patches.iter().all(has_place)
    }
}

struct RelocationWork {
    /// Number of the newest checkpoint that was wanted when it began.
    checkpoint: u64,
    left: Vec<GroupId>,
    /// Where the search goes on in the last one of these.
    from: Index,
    victims: Arc<[u64]>,
}

/// What a slice of a relocation may still do.
struct Slice {
    moves: usize,
    looks: usize,
}

impl Default for Slice {
    fn default() -> Self {
        Slice {
            moves: SLICE_MOVES,
            looks: SLICE_LOOKS,
        }
    }
}

impl Slice {
    fn is_over(&self) -> bool {
        self.moves == 0 || self.looks == 0
    }
}

impl Upkeep {
    /// A turn piece became durable.
    pub(crate) fn placed(&mut self, turn: u64, segment: u64, base: u32) {
        if let Some(work) = &mut self.checkpoint {
            work.placed.insert(Place::turn(turn), (segment, base));
        }
    }
}

impl ShardLog {
    /// Does a bounded slice of what the lane wants: its part of a checkpoint, or moving blocks out of sparse segments. To be called
    /// between turns, after [`crate::WalObserver::maintain`] and as long as it returns true; and again before the next turn while
    /// [`ShardLog::is_urgent`].
    pub fn maintain(&mut self) -> Result<bool, StorageError> {
        if self.turn_bytes() > 0 {
            // What is written now must be submitted first, so that the position covers the state.
            return Ok(true);
        }
        self.begin_wanted();
        let mut more = self.write_section();
        if !more {
            more = self.relocate_slice()?;
        }
        self.deliver_checkpoint();
        Ok(more)
    }

    /// Whether the rest of this shard's part of a checkpoint should be written before another turn: the disk is full, so that turn
    /// may be refused, and no part can be written while one is kept.
    pub fn is_urgent(&self) -> bool {
        let work = self.upkeep.checkpoint.as_ref();
        work.is_some_and(|work| work.through.is_none())
            && self.turn_bytes() == 0
            && self.lane.segments.shortage().is_some()
    }

    /// Whether what [`ShardLog::maintain`] would do next has time: moving blocks, as long as no newer checkpoint is wanted, which
    /// means that there has been much log since, and the disk has room for more segments.
    pub fn is_patient(&self) -> bool {
        let wanted = self.lane.maintenance.checkpoint();
        let section = self.upkeep.checkpoint.as_ref();
        let work = self.upkeep.relocation.as_ref();
        wanted == self.upkeep.checkpoint_seen
            && section.is_none_or(|work| work.through.is_some())
            && work.is_some_and(|work| work.checkpoint == wanted)
            && self.lane.segments.shortage().is_none()
    }

    fn begin_wanted(&mut self) {
        let wanted = self.lane.maintenance.checkpoint();
        if wanted != self.upkeep.checkpoint_seen && self.upkeep.checkpoint.is_none() {
            self.upkeep.checkpoint_seen = wanted;
            let left = self
                .groups
                .keys()
                .chain(self.tombstones.keys().copied())
                .collect();
            self.upkeep.checkpoint = Some(CheckpointWork {
                left,
                section: Section::default(),
                patches: Vec::new(),
                placed: FxHashMap::default(),
                through: None,
            });
        }
        // One that is under way ends first, or groups that come late in it would never have their turn.
        if self.wants_relocation() && self.upkeep.relocation.is_none() {
            self.upkeep.relocation_seen = self.lane.maintenance.relocation();
            let left = self.groups.keys().collect();
            self.upkeep.relocation = Some(RelocationWork {
                checkpoint: self.upkeep.checkpoint_seen,
                left,
                from: Index::ZERO,
                victims: self.lane.maintenance.victims(),
            });
        }
    }

    /// Groups that change while the section is written are in it as of their own position; recovery replays what came
    /// later. Groups that are created meanwhile are found by the replay.
    fn write_section(&mut self) -> bool {
        let Some(work) = &mut self.upkeep.checkpoint else {
            return false;
        };
        if work.through.is_some() {
            return false;
        }
        let start = work.section.bytes();
        for _ in 0..SLICE_GROUPS {
            let Some(group) = work.left.pop() else {
                work.through = Some(self.tail.next());
                return false;
            };
            if let Some(log) = self.groups.get(group) {
                work.section
                    .put_group(group, log, self.position, &mut work.patches);
            } else if let Some(tombstone) = self.tombstones.get(&group) {
                work.section.put_tombstone(group, tombstone, self.position);
            }
            if work.section.bytes() - start > SLICE_BYTES {
                break;
            }
        }
        true
    }

    /// Hands the section in once everything in it is durable.
    pub(crate) fn deliver_checkpoint(&mut self) {
        let unplaced = self.tail.unplaced();
        let ready = self.upkeep.checkpoint.take_if(|work| {
            work.through.is_some_and(|through| through <= unplaced)
                || mutants::is_active(Mutant::CheckpointOfUndurable) && work.has_all_places()
        });
        let Some(mut work) = ready else { return };
        for patch in work.patches {
            // Unplaced when it was written, durable by now: it was placed in between.
            let (segment, base) = work.placed[&patch.turn];
            work.section.patch(patch, segment, base);
        }
        if self.lane.maintenance.deliver(self.slot, work.section) {
            self.lane.want_tending();
        }
    }

    fn relocate_slice(&mut self) -> Result<bool, StorageError> {
        let Some(mut work) = self.upkeep.relocation.take() else {
            return Ok(false);
        };
        // Moved blocks take the room of new entries, never that of votes. The next checkpoint chooses again.
        let slice = (SLICE_BYTES + self.max_block_bytes()) as u64;
        if self.room_for_entries().is_some_and(|room| room < slice) {
            return Ok(self.wants_relocation());
        }
        let (mut looked_at, mut left) = (0, Slice::default());
        while looked_at < SLICE_GROUPS && !left.is_over() && self.turn_bytes() < SLICE_BYTES {
            let Some(group) = work.left.pop() else {
                self.submit_to_flusher()?;
                return Ok(self.wants_relocation());
            };
            looked_at += 1;
            work.from = match self.relocate_group(group, work.from, &work.victims, &mut left)? {
                None => Index::ZERO,
                Some(from) => {
                    work.left.push(group);
                    from
                }
            };
        }
        self.upkeep.relocation = Some(work);
        self.submit_to_flusher()?;
        Ok(true)
    }

    /// Whether another relocation is wanted than the newest that was begun.
    fn wants_relocation(&self) -> bool {
        self.lane.maintenance.relocation() != self.upkeep.relocation_seen
    }

    /// Moves blocks of one group that begin at `from` or later; where to go on if the slice is over before all are moved.
    fn relocate_group(
        &mut self,
        group: GroupId,
        from: Index,
        victims: &[u64],
        left: &mut Slice,
    ) -> Result<Option<Index>, StorageError> {
        let Some(log) = self.groups.get(group) else {
            return Ok(None);
        };
        let in_victim =
            |place| matches!(place, Where::Segment(segment) if victims.contains(&segment));
        // The log may have been purged meanwhile.
        let from = from.max(log.base.index.next());
        let (mut moving, mut rest) = (Vec::new(), None);
        for block in log.blocks.from(from) {
            if left.is_over() {
                rest = Some(block.first);
                break;
            }
            left.looks -= 1;
            if in_victim(block.place.get()) {
                left.moves -= 1;
                moving.push(block);
            }
        }
        for block in moving {
            if self.turn_bytes() >= SLICE_BYTES {
                return Ok(Some(block.first));
            }
            let mut packed = Blocks::default();
            if let Err(error) = self.read_packed(group, &block, &mut packed) {
                // Rot found early: the block stays where it is, and whoever reads it gets this error.
                tracing::error!(%error, "a block cannot be relocated");
                continue;
            }
            match self.relocate(&packed.get(0)) {
                Ok(()) => _ = self.lane.counters.relocated.fetch_add(1, Ordering::Relaxed),
                // Written when batches could be larger than the options allow now: it stays too.
                Err(error @ StorageError::TooLarge { .. }) => {
                    tracing::warn!(%group, %error, "a block is not relocated");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(rest)
    }
}

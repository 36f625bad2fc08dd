//! Owns one shard's view of the log: the index of its groups, the turn being filled, and reading back.
//! Must never do file I/O while writing: a turn goes to the lane's group commit as one copy.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, Life, LogExtents, LogPosition,
};
use rustc_hash::FxHashMap;

use crate::batch::{Lsn, Tally};
use crate::block::{EntryBlock, EntryKind, pack};
use crate::blocks::{Blocks, Stored};
use crate::checkpoint::Position;
use crate::error::{BlockError, ReadError, StorageError};
use crate::format;
use crate::group::{Creation, GroupLog, Interned, RecoveredGroup};
use crate::index::{BlockRef, Place, Where};
use crate::lane::{Durable, Lane, Placed};
use crate::prefetch::{PREFETCH_AHEAD, PREFETCH_SOON};
use crate::table::GroupTable;
use crate::tail::{Tail, TurnPiece};
use crate::tombstone::Tombstone;
use crate::upkeep::Upkeep;

/// Bytes that the turn buffer grows by.
const TURN_BUFFER_BYTES: usize = 64 << 10;

/// The log of one shard's groups. Belongs to the shard's thread.
///
/// Records are collected in a turn buffer and take effect in memory at once; [`ShardLog::submit`] hands the turn to
/// the lane's group commit. Nothing may be acknowledged before [`crate::WalObserver::durable`] reported the
/// batch that `submit` returned.
pub struct ShardLog {
    pub(crate) lane: Arc<Lane>,
    /// Which of the lane's shards this is.
    pub(crate) slot: usize,
    pub(crate) groups: GroupTable<GroupLog>,
    pub(crate) tombstones: FxHashMap<GroupId, Tombstone>,
    interned: Interned,
    pub(crate) turn: TurnBuffer,
    pub(crate) tail: Tail,
    /// Behind the last record that was submitted.
    pub(crate) position: Position,
    /// Number of the first piece that was not submitted.
    unsubmitted: u64,
    pub(crate) upkeep: Upkeep,
    placed: Vec<Placed>,
    /// Whoever submits goes on to sync.
    syncs_inline: bool,
    is_left_to_sync: bool,
}

/// The piece being filled.
pub(crate) struct TurnBuffer {
    bytes: BytesMut,
    tally: Tally,
    groups: Vec<GroupId>,
    /// Empty lists to use again.
    spare: Vec<Vec<GroupId>>,
    moved: Vec<(GroupId, Index)>,
    /// Largest piece, in bytes: what fits into one batch.
    limit: usize,
}

impl TurnBuffer {
    fn new(limit: usize) -> Self {
        Self {
            bytes: BytesMut::with_capacity(TURN_BUFFER_BYTES),
            tally: Tally::default(),
            groups: Vec::new(),
            spare: Vec::new(),
            moved: Vec::new(),
            limit,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes one record. Returns its offset and size; when it did not fit behind the others, those are closed as a piece
    /// of their own and handed to `close` first.
    fn record(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> Result<(), BlockError>,
        close: impl FnOnce(TurnPiece),
    ) -> Result<(u32, u32), StorageError> {
        let start = self.bytes.len();
        let too_large = |bytes: u64, limit: usize| StorageError::TooLarge {
            bytes,
            limit: limit as u64,
        };
        if let Err(error) = write(&mut self.bytes) {
            self.bytes.truncate(start);
            let bytes = if let BlockError::TooLarge(bytes) = error {
                bytes
            } else {
                0
            };
            return Err(too_large(bytes, self.limit));
        }
        let bytes = self.bytes.len() - start;
        if bytes > self.limit {
            self.bytes.truncate(start);
            return Err(too_large(bytes as u64, self.limit));
        }
        let mut offset = start;
        if self.bytes.len() > self.limit {
            let record = self.bytes.split_off(start);
            close(self.close());
            self.bytes = record;
            offset = 0;
        }
        self.tally.records += 1;
        Ok((offset as u32, bytes as u32))
    }

    /// What was collected so far, as a piece.
    fn close(&mut self) -> TurnPiece {
        let next = self.spare.pop().unwrap_or_default();
        TurnPiece {
            bytes: self.bytes.split().freeze(),
            tally: std::mem::take(&mut self.tally),
            groups: std::mem::replace(&mut self.groups, next),
            moved: std::mem::take(&mut self.moved),
            place: None,
        }
    }

    fn reuse(&mut self, groups: Vec<GroupId>) {
        const SPARE: usize = 8;
        if self.spare.len() < SPARE {
            self.spare.push(groups);
        }
    }

    /// Gives back memory that turns which have left share with it, and lists for the next ones.
    fn trim(&mut self) {
        if self.is_empty() {
            self.bytes = BytesMut::with_capacity(TURN_BUFFER_BYTES);
            (self.groups, self.moved) = (Vec::new(), Vec::new());
        }
        self.spare = Vec::new();
    }

    fn read(&self, offset: u32, bytes: u32) -> Bytes {
        Bytes::copy_from_slice(&self.bytes[offset as usize..(offset + bytes) as usize])
    }
}

/// What an open hands to a shard.
pub(crate) struct ShardState {
    pub(crate) groups: GroupTable<GroupLog>,
    pub(crate) tombstones: FxHashMap<GroupId, Tombstone>,
    /// Behind the last record that was recovered.
    pub(crate) position: Position,
}

impl ShardLog {
    pub(crate) fn new(lane: Arc<Lane>, slot: usize, state: ShardState, interned: Interned) -> Self {
        Self {
            slot,
            groups: state.groups,
            tombstones: state.tombstones,
            interned,
            turn: TurnBuffer::new(lane.options.max_record_bytes()),
            tail: Tail::new(lane.options.tail_cache_bytes),
            position: state.position,
            unsubmitted: 0,
            upkeep: Upkeep::default(),
            placed: Vec::new(),
            syncs_inline: false,
            is_left_to_sync: false,
            lane,
        }
    }

    /// Every group, in no particular order.
    pub fn groups(&self) -> impl Iterator<Item = RecoveredGroup> + '_ {
        self.groups.iter().map(|(group, log)| log.recovered(group))
    }

    /// A group that is here, as an opening would find it.
    pub fn recovered(&self, group: GroupId) -> Option<RecoveredGroup> {
        self.groups.get(group).map(|log| log.recovered(group))
    }

    /// What is kept of groups that ended here and did not begin again, in no particular order.
    pub fn tombstones(&self) -> impl Iterator<Item = (GroupId, Tombstone)> + '_ {
        self.tombstones
            .iter()
            .map(|(group, tombstone)| (*group, *tombstone))
    }

    /// What is kept of a group that ended here and did not begin again.
    pub fn tombstone_of(&self, group: GroupId) -> Option<Tombstone> {
        self.tombstones.get(&group).copied()
    }

    /// Whether a life of a group is over here, so that nothing of it may be left.
    pub fn is_over(&self, group: GroupId, life: Life) -> bool {
        let ended = self.tombstone_of(group);
        self.life(group).is_some_and(|here| life < here)
            || ended.is_some_and(|ended| life <= ended.life)
    }

    /// Which life of its id a group that is here belongs to.
    pub fn life(&self, group: GroupId) -> Option<Life> {
        self.groups.get(group).map(|log| log.life)
    }

    /// Whether a group is here, and without payloads.
    pub fn is_witness(&self, group: GroupId) -> bool {
        self.groups.get(group).is_some_and(|log| log.is_witness)
    }

    /// See [`Creation::joined`]; 0 too if the group is not here.
    pub fn joined(&self, group: GroupId) -> Index {
        let log = self.groups.get(group);
        log.map_or(Index::ZERO, GroupLog::joined)
    }

    /// Whether a group that is here lost a part of its log.
    pub fn is_faulty(&self, group: GroupId) -> bool {
        let log = self.groups.get(group);
        log.is_some_and(|log| log.fault.is_some())
    }

    /// Whether a group that is here may be of another life than it seems: what it lost may have said so.
    pub fn has_lost_life(&self, group: GroupId) -> bool {
        let fault = self.groups.get(group).and_then(|log| log.fault.as_ref());
        fault.is_some_and(|fault| fault.has_lost_life)
    }

    /// Whether a group that is here may have voted without knowing it.
    pub fn has_lost_vote(&self, group: GroupId) -> bool {
        let fault = self.groups.get(group).and_then(|log| log.fault.as_ref());
        fault.is_some_and(|fault| fault.has_lost_vote || fault.has_lost_life)
    }

    /// Whether the log of a group that is here has, or had, entries of client sessions.
    pub fn has_sessions(&self, group: GroupId) -> bool {
        self.groups.get(group).is_some_and(|log| log.has_sessions)
    }

    /// Whether the group is here.
    pub fn contains(&self, group: GroupId) -> bool {
        self.groups.contains(group)
    }

    /// Starts to load the head of a group's log.
    #[inline]
    pub fn prefetch(&self, group: GroupId) {
        self.groups.prefetch(group);
    }

    /// Starts to load where a group's log ends. Its head should have arrived.
    #[inline]
    pub fn prefetch_end(&self, group: GroupId) {
        if let Some(log) = self.groups.get(group) {
            log.blocks.prefetch_end();
        }
    }

    /// Term, vote and commit hint last written for a group.
    pub fn hard_state_of(&self, group: GroupId) -> Option<HardState> {
        self.groups.get(group).map(|log| log.hard_state)
    }

    /// The members as of a group's base: what its entries change.
    pub fn base_configuration(&self, group: GroupId) -> Option<&Configuration> {
        self.groups.get(group).map(|log| &*log.configuration)
    }

    /// Index of a group's last entry, written or not yet durable.
    pub fn last(&self, group: GroupId) -> Option<Index> {
        self.groups.get(group).map(GroupLog::last)
    }

    /// The largest encoded block that one append takes, in bytes.
    pub fn max_block_bytes(&self) -> usize {
        self.lane.options.max_block_bytes()
    }

    /// Begins a group with its founding members: the first life of its id, or the one after that which ended here. Errors:
    /// `GroupExists`.
    pub fn create(
        &mut self,
        group: GroupId,
        configuration: &Configuration,
    ) -> Result<(), StorageError> {
        let ended = self.tombstone_of(group);
        let life = ended.map_or(Life::FIRST, |tombstone| tombstone.life.next());
        self.begin(group, Creation::founding(life, configuration.clone()))
    }

    /// Begins a replica. It takes the place of a tombstone that allows it, and keeps to what that one promised. Errors:
    /// `GroupExists`, `LifeIsOver`.
    pub fn begin(&mut self, group: GroupId, creation: Creation) -> Result<(), StorageError> {
        if self.contains(group) {
            return Err(StorageError::GroupExists { group });
        }
        let ended = self.tombstone_of(group);
        if let Some(tombstone) = ended.filter(|tombstone| !tombstone.allows(creation.life)) {
            return Err(StorageError::LifeIsOver {
                group,
                life: creation.life,
                over: tombstone.life,
            });
        }
        self.control(|buffer| format::put_create(buffer, group, &creation))?;
        self.tombstones.remove(&group);
        let log = GroupLog::begun(creation, ended, &mut self.interned);
        self.groups.insert(group, log);
        Ok(())
    }

    /// Appends entries right behind the group's last one, packed into the turn buffer.
    ///
    /// Errors: `NoSuchGroup`, and `TooLarge` beyond [`Self::max_block_bytes`]; the log is then as before. Panics when the
    /// range does not begin at the next index.
    pub fn append<P: AsRef<[u8]>>(
        &mut self,
        group: GroupId,
        range: EntryRange,
        kind: EntryKind,
        payloads: impl IntoIterator<Item = P>,
    ) -> Result<(), StorageError> {
        self.append_with(group, range, kind, |buffer| {
            pack(buffer, group, range, kind, payloads).map(|_| ())
        })
    }

    /// Appends an entry that says who the members are. Errors and panics as [`Self::append`].
    pub fn append_configuration(
        &mut self,
        group: GroupId,
        range: EntryRange,
        configuration: &Configuration,
    ) -> Result<(), StorageError> {
        let mut payload = Vec::new();
        format::put_configuration(&mut payload, configuration);
        self.append(group, range, EntryKind::Configuration, [payload])?;
        self.configure(group, range.first, configuration.clone());
        Ok(())
    }

    /// Appends a block as it was received. Errors and panics as [`Self::append`]; panics too when the block's entries should
    /// say who the members are and do not: see [`crate::block_configurations`].
    pub fn append_block(&mut self, block: &EntryBlock<'_>) -> Result<(), StorageError> {
        let configurations = format::block_configurations(block);
        let configurations = configurations.expect("what is received is checked before");
        self.append_with(block.group(), block.range(), block.kind(), |buffer| {
            buffer.extend_from_slice(block.as_bytes());
            Ok(())
        })?;
        for (index, configuration) in configurations {
            self.configure(block.group(), index, configuration);
        }
        Ok(())
    }

    fn configure(&mut self, group: GroupId, index: Index, configuration: Configuration) {
        let configuration = self.interned.share(configuration);
        if let Some(log) = self.groups.get_mut(group) {
            log.configure(index, configuration);
        }
    }

    fn append_with(
        &mut self,
        group: GroupId,
        range: EntryRange,
        kind: EntryKind,
        write: impl FnOnce(&mut BytesMut) -> Result<(), BlockError>,
    ) -> Result<(), StorageError> {
        let log = self
            .groups
            .get_mut(group)
            .ok_or(StorageError::NoSuchGroup { group })?;
        let last = log.last();
        assert!(
            range.first.0 == last.0 + 1,
            "append of {range:?} to {group}, whose last entry is {last}"
        );
        let (offset, bytes) = self.turn.record(write, |piece| self.tail.push(piece))?;
        if bytes as usize > self.lane.options.max_block_bytes() {
            // One that could never be relocated.
            self.turn.bytes.truncate(offset as usize);
            self.turn.tally.records -= 1;
            let limit = self.lane.options.max_block_bytes() as u64;
            return Err(StorageError::TooLarge {
                bytes: u64::from(bytes),
                limit,
            });
        }
        log.append(range, Place::turn(self.tail.next()), offset, bytes);
        log.has_sessions |= kind.concerns_sessions();
        self.turn.tally.blocks += 1;
        self.turn.tally.refusable += u32::from(kind != EntryKind::Noop);
        self.turn.tally.entries += range.end.0 - range.first.0;
        if self.turn.groups.last() != Some(&group) {
            self.turn.groups.push(group);
        }
        Ok(())
    }

    /// Writes term, vote and commit hint. Panics when the term goes back or the vote of a term changes.
    pub fn hard_state(&mut self, group: GroupId, state: HardState) -> Result<(), StorageError> {
        let log = self
            .groups
            .get_mut(group)
            .ok_or(StorageError::NoSuchGroup { group })?;
        let before = log.hard_state;
        assert!(
            state.term >= before.term,
            "{group}: the term went from {} back to {}",
            before.term,
            state.term
        );
        assert!(
            state.term > before.term || before.vote.is_none() || state.vote == before.vote,
            "{group}: the vote of {} changed",
            state.term
        );
        log.hard_state = state;
        self.control(|buffer| format::put_hard_state(buffer, group, &state))
    }

    /// Drops the entries from `from` on, those of this turn included. Panics at or below the purged position.
    pub fn truncate(&mut self, group: GroupId, from: Index) -> Result<(), StorageError> {
        let log = self
            .groups
            .get_mut(group)
            .ok_or(StorageError::NoSuchGroup { group })?;
        assert!(
            from > log.base.index,
            "{group}: truncation at {from}, purged up to {}",
            log.base.index
        );
        log.truncate(from);
        if mutants::is_active(Mutant::TruncationNotLogged) {
            return Ok(());
        }
        self.control(|buffer| format::put_truncate(buffer, group, from))
    }

    /// Forgets the entries up to `through`. Beyond the last entry the log begins anew behind `through`.
    pub fn purge(&mut self, group: GroupId, through: LogPosition) -> Result<(), StorageError> {
        self.purge_with(group, through, None)
    }

    fn purge_with(
        &mut self,
        group: GroupId,
        through: LogPosition,
        configuration: Option<&Configuration>,
    ) -> Result<(), StorageError> {
        let shared = configuration.map(|configuration| self.interned.share(configuration.clone()));
        let log = self
            .groups
            .get_mut(group)
            .ok_or(StorageError::NoSuchGroup { group })?;
        if through.index <= log.base.index {
            return Ok(());
        }
        log.purge(through, shared);
        self.control(|buffer| format::put_purge(buffer, group, through, configuration))
    }

    /// A snapshot takes the place of the log through `through`, where `configuration` says who the members are. Entries
    /// behind it stay if the log has exactly that entry; a log that ends earlier, or has another entry there, begins anew.
    pub fn reset(
        &mut self,
        group: GroupId,
        through: LogPosition,
        configuration: &Configuration,
    ) -> Result<(), StorageError> {
        let log = self
            .groups
            .get(group)
            .ok_or(StorageError::NoSuchGroup { group })?;
        let held = log.runs();
        let run = held.partition_point(|run| run.first <= through.index);
        let term = run.checked_sub(1).map(|run| held[run].term);
        let is_held = through.index <= log.last() && term == Some(through.term);
        // A crash may keep the first of the two records alone. What it drops follows an entry that is not the committed one.
        if !is_held && through.index <= log.last() && through.index > log.base.index {
            self.truncate(group, through.index)?;
        }
        self.purge_with(group, through, Some(configuration))
    }

    /// Ends the replica that is here, if one is, and keeps what must not be forgotten of it. A tombstone that says no more than
    /// the one that stands changes nothing. Panics when the replica's life is a later one than the tombstone's.
    pub fn tombstone(&mut self, group: GroupId, tombstone: Tombstone) -> Result<(), StorageError> {
        if let Some(life) = self.life(group) {
            assert!(
                life <= tombstone.life,
                "{group} is in {life} and is to end with {}",
                tombstone.life
            );
        }
        let ended = self.tombstone_of(group);
        if ended.is_some_and(|ended| !tombstone.says_more_than(&ended)) {
            return Ok(());
        }
        self.control(|buffer| format::put_tombstone(buffer, group, &tombstone))?;
        self.groups.remove(group);
        self.tombstones.insert(group, tombstone);
        Ok(())
    }

    fn control(&mut self, write: impl FnOnce(&mut BytesMut)) -> Result<(), StorageError> {
        let written = self.turn.record(
            |buffer| {
                write(buffer);
                Ok(())
            },
            |piece| self.tail.push(piece),
        );
        written.map(|_| ())
    }

    /// Writes a block again at the end of the log, so that the segment it is in can be freed.
    pub(crate) fn relocate(&mut self, block: &EntryBlock<'_>) -> Result<(), StorageError> {
        let write = |buffer: &mut BytesMut| {
            format::put_relocated(buffer, block);
            Ok(())
        };
        let (offset, _) = self.turn.record(write, |piece| self.tail.push(piece))?;
        let turn = self.tail.next();
        if let Some(log) = self.groups.get_mut(block.group())
            && let Some(cursor) = log.blocks.find_packed(block.range())
        {
            let offset = offset + format::CONTROL_HEADER_BYTES as u32;
            log.blocks.set_place(cursor, Place::turn(turn), offset);
            self.turn.moved.push((block.group(), block.first()));
        }
        Ok(())
    }

    /// Bytes that this turn has collected and not submitted.
    pub fn turn_bytes(&self) -> usize {
        let closed: usize = self
            .tail
            .since(self.unsubmitted)
            .map(|(_, piece)| piece.bytes.len())
            .sum();
        closed + self.turn.bytes.len()
    }

    /// How many more bytes of entries to take, payloads and a little more for each; `None` while the disk has room for more
    /// segments. A caller that keeps to it has its turns taken, so that votes, truncations and purges, for which there is
    /// a reserve, do not wait behind entries that find no room.
    pub fn room_for_entries(&self) -> Option<u64> {
        let room = self.lane.room_for_entries()?;
        Some(room.saturating_sub(self.turn_bytes() as u64))
    }

    /// Ends the turn: hands its records to the group commit and returns the batch whose durability covers all of them, or
    /// `None` when there are none. Never waits for the disk.
    ///
    /// After an error the turn is kept: on [`StorageError::DiskFull`] it may be submitted again later, alone or with more
    /// records behind it. [`StorageError::Poisoned`] and [`StorageError::Stopped`] are final.
    pub fn submit(&mut self) -> Result<Option<Lsn>, StorageError> {
        let submitted = self.submit_for(self.syncs_inline)?;
        self.is_left_to_sync |= self.syncs_inline && submitted.is_some();
        Ok(submitted)
    }

    /// The same for what nobody waits for: the flusher syncs it in any case, and what was submitted before with it.
    pub(crate) fn submit_to_flusher(&mut self) -> Result<Option<Lsn>, StorageError> {
        let submitted = self.submit_for(false)?;
        self.is_left_to_sync &= submitted.is_none();
        Ok(submitted)
    }

    fn submit_for(&mut self, syncs_inline: bool) -> Result<Option<Lsn>, StorageError> {
        if !self.turn.is_empty() {
            let piece = self.turn.close();
            self.tail.push(piece);
        }
        if self.unsubmitted == self.tail.next() {
            return Ok(None);
        }
        let pieces = self.tail.since(self.unsubmitted);
        let mut sizes = pieces.clone().map(|(_, piece)| piece.bytes.len() as u32);
        let position = &mut self.position;
        self.lane.submit(
            self.slot,
            syncs_inline,
            pieces.map(|(turn, piece)| (turn, &piece.bytes[..], piece.tally)),
            |lsn, offset| {
                *position = Position {
                    lsn,
                    offset: offset + sizes.next().unwrap_or(0),
                }
            },
        )?;
        self.unsubmitted = self.tail.next();
        Ok(Some(self.position.lsn))
    }

    /// From now on, [`ShardLog::sync_inline`] follows each [`ShardLog::submit`] on the same thread: nobody else is woken for what
    /// that takes.
    pub fn begin_inline_syncs(&mut self) {
        self.syncs_inline = true;
    }

    /// Writes and syncs the oldest batch that waits in the lane, on this thread, if about half of the writes with their syncs lately
    /// took `limit` at most and no other thread is at it. In all other cases, such as when the log needs another segment or the disk
    /// is full, the flusher does. What becomes of the batch is told to the observer in either case.
    ///
    /// Does nothing if nothing was submitted since the last call.
    pub fn sync_inline(&mut self, limit: Duration) {
        if std::mem::take(&mut self.is_left_to_sync) {
            self.lane.sync_inline(limit);
        }
    }

    /// Takes note of what became durable. Costs time in the number of groups in those turns.
    pub fn on_durable(&mut self, durable: &Durable) {
        debug_assert_eq!(durable.lane, self.lane.index);
        self.lane.collect(self.slot, &mut self.placed);
        for placed in self.placed.drain(..) {
            let Placed {
                turn,
                segment,
                offset,
            } = placed;
            let piece = self.tail.place(turn, segment, offset);
            let mut groups = std::mem::take(&mut piece.groups);
            for (at, group) in groups.iter().enumerate() {
                if let Some(later) = groups.get(at + PREFETCH_AHEAD) {
                    self.groups.prefetch(*later);
                }
                if let Some(soon) = groups.get(at + PREFETCH_SOON)
                    && let Some(log) = self.groups.get(*soon)
                {
                    log.blocks.prefetch_end();
                }
                if let Some(log) = self.groups.get_mut(*group) {
                    log.blocks.place_appended(turn, segment, offset);
                }
            }
            groups.clear();
            self.turn.reuse(groups);
            for (group, first) in std::mem::take(&mut piece.moved) {
                if let Some(log) = self.groups.get_mut(group) {
                    log.place_moved(first, turn, segment, offset);
                }
            }
            self.upkeep.placed(turn, segment, offset);
        }
        self.tail.evict();
        self.deliver_checkpoint();
    }

    /// Gives back what a burst left: recent turns, which are read from the segments from now on, and room for the next one.
    pub fn trim(&mut self) {
        self.tail.trim();
        self.turn.trim();
        self.placed = Vec::new();
    }

    /// Whether the entry at `index`, and what is before it, is on the disk as the log has it now. True of what was purged.
    pub fn is_durable(&self, group: GroupId, index: Index) -> bool {
        let Some(log) = self.groups.get(group) else {
            return false;
        };
        let find = || log.blocks.find(index).and_then(|at| log.blocks.get(at));
        index <= log.base.index
            || find().is_some_and(|block| match block.place.get() {
                Where::Segment(_) => true,
                // It lies where it lay before, too.
                Where::Turn(tag) => {
                    let block = (group, block.first);
                    self.turn.moved.contains(&block) || self.tail.has_moved(tag, block)
                }
            })
    }

    /// Collects the blocks that hold `first..end`, in order, until they have `max_bytes` bytes, but at least one. Returns the
    /// end reached. The first and last block may stick out of the range, never beyond the end of the log.
    ///
    /// Nothing is copied, except from a turn that was not submitted and where a truncation cut a block.
    ///
    /// # Errors
    /// `NoSuchGroup`, `OutOfRange`, `Damaged` when a block on the disk is not what was written, or `Uncut`. Blocks read before
    /// the error are in `into` then.
    pub fn blocks(
        &self,
        group: GroupId,
        first: Index,
        end: Index,
        max_bytes: u64,
        into: &mut Blocks,
    ) -> Result<Index, ReadError> {
        let range = (group, first, end, max_bytes);
        self.collect(range, into, |_, block, into| self.read(group, block, into))
    }

    /// The same without waiting for the disk: blocks that are there alone come unread, and whoever uses them calls
    /// [`Blocks::check`] before, on a thread that may wait. Not so those of a log which has entries that are applied alone, or of client
    /// sessions: what they are decides how much is handed out.
    ///
    /// # Errors
    /// Those of [`ShardLog::blocks`], as far as nothing has to be read for them.
    pub fn blocks_unread(
        &self,
        group: GroupId,
        first: Index,
        end: Index,
        max_bytes: u64,
        into: &mut Blocks,
    ) -> Result<Index, ReadError> {
        let range = (group, first, end, max_bytes);
        self.collect(range, into, |log, block, into| {
            if log.has_sessions || block.count != block.packed {
                return self.read(group, block, into);
            }
            if let Some(segment) = self.push_recent(block, into) {
                let (bytes, stored) = self.stored(group, block, segment)?;
                into.push_unread(bytes, stored);
            }
            Ok(())
        })
    }

    fn collect(
        &self,
        (group, first, end, max_bytes): (GroupId, Index, Index, u64),
        into: &mut Blocks,
        mut read: impl FnMut(&GroupLog, &BlockRef, &mut Blocks) -> Result<(), ReadError>,
    ) -> Result<Index, ReadError> {
        let log = self
            .groups
            .get(group)
            .ok_or(ReadError::NoSuchGroup(group))?;
        if first >= end {
            return Ok(first);
        }
        check_range(group, log, first, end)?;
        let (mut bytes, mut reached) = (0, first);
        for block in log.blocks.from(first) {
            read(log, &block, into)?;
            bytes += u64::from(block.bytes);
            reached = block.end().min(end);
            if reached == end || bytes >= max_bytes {
                break;
            }
        }
        Ok(reached)
    }

    /// A prefix of `first..end` whose blocks, cut to the range, take at most `max_bytes`, but at least one entry; with
    /// those bytes. It is the longest one that does not begin a block which it cannot hold: blocks that stay whole are sent
    /// as they are, a cut one is copied twice. An empty or unknown range gives `(first, 0)`.
    pub fn extent(&self, group: GroupId, first: Index, end: Index, max_bytes: u64) -> (Index, u64) {
        let Some(log) = self.groups.get(group) else {
            return (first, 0);
        };
        if first >= end || check_range(group, log, first, end).is_err() {
            return (first, 0);
        }
        let (mut reached, mut bytes) = (first, 0);
        for block in log.blocks.from(first) {
            if reached >= end {
                break;
            }
            let to = block.end().min(end);
            let whole = reached == block.first && to == block.end();
            if whole && bytes + u64::from(block.bytes) <= max_bytes {
                (reached, bytes) = (to, bytes + u64::from(block.bytes));
                continue;
            }
            if whole && bytes > 0 {
                break;
            }
            // Only part of this block: its offsets say how much of it fits.
            let left = max_bytes.saturating_sub(bytes);
            let mut read = Blocks::default();
            let (part, size) = match self.read(group, &block, &mut read) {
                Ok(()) => read.get(0).prefix_within(reached, to, left),
                // The reader of the range will get the error; any estimate will do.
                Err(_) => (to, u64::from(block.bytes)),
            };
            if bytes == 0 || size <= left {
                (reached, bytes) = (part, bytes + size);
            }
            if reached < to {
                break;
            }
        }
        (reached, bytes)
    }

    /// How large the blocks are that have entries of a range: those of them that were not purged, each as a whole.
    pub fn bytes_of(&self, group: GroupId, range: Range<Index>) -> u64 {
        let Some(log) = self.groups.get(group) else {
            return 0;
        };
        let blocks = log.blocks.from(range.start.max(log.base.index.next()));
        let blocks = blocks.take_while(|block| block.first < range.end);
        blocks.map(|block| u64::from(block.bytes)).sum()
    }

    /// One group's sizes, for the core.
    pub fn view(&self, group: GroupId) -> impl LogExtents + '_ {
        GroupView { log: self, group }
    }

    /// Reads a block and cuts off what a truncation removed.
    fn read(&self, group: GroupId, block: &BlockRef, into: &mut Blocks) -> Result<(), ReadError> {
        self.read_packed(group, block, into)?;
        if block.count == block.packed {
            return Ok(());
        }
        let (first, end) = (block.first, block.end());
        into.cut(into.len() - 1, first, end)
            .map_err(|reason| ReadError::Uncut {
                group,
                first,
                end,
                reason,
            })
    }

    pub(crate) fn read_packed(
        &self,
        group: GroupId,
        block: &BlockRef,
        into: &mut Blocks,
    ) -> Result<(), ReadError> {
        if let Some(segment) = self.push_recent(block, into) {
            let (read, stored) = self.stored(group, block, segment)?;
            stored.check(&read)?;
            into.push(read);
        }
        Ok(())
    }

    /// Adds a block that a recent turn has. If none has it, the segment that it has to be read from.
    fn push_recent(&self, block: &BlockRef, into: &mut Blocks) -> Option<u64> {
        let &BlockRef { offset, bytes, .. } = block;
        match block.place.get() {
            Where::Turn(tag) => match self.tail.in_turn(tag) {
                Some((turn, piece)) => into.push_shared(turn, piece, offset, bytes),
                None => into.push(self.turn.read(offset, bytes)),
            },
            Where::Segment(segment) => match self.tail.in_segment(segment, offset, bytes) {
                Some((turn, piece, offset)) => into.push_shared(turn, piece, offset, bytes),
                None => return Some(segment),
            },
        }
        None
    }

    /// A block in a segment, which nobody has looked at, and what it has to be.
    fn stored(
        &self,
        group: GroupId,
        block: &BlockRef,
        segment: u64,
    ) -> Result<(Bytes, Stored), ReadError> {
        let &BlockRef { offset, bytes, .. } = block;
        let stored = Stored {
            group,
            term: block.term,
            first: block.first,
            packed: block.packed,
            segment,
            offset,
        };
        let (at, bytes) = (u64::from(offset), bytes as usize);
        let file = self.lane.segments.get(segment);
        let file = file.filter(|file| at + bytes as u64 <= file.header.bytes);
        let file = file.ok_or_else(|| stored.damaged(BlockError::Range))?;
        Ok((file.read(at, bytes), stored))
    }
}

fn check_range(group: GroupId, log: &GroupLog, first: Index, end: Index) -> Result<(), ReadError> {
    let (held_first, held_end) = (log.base.index.next(), log.last().next());
    if first >= held_first && end <= held_end {
        return Ok(());
    }
    Err(ReadError::OutOfRange {
        group,
        first: held_first,
        end: held_end,
        wanted_first: first,
        wanted_end: end,
    })
}

struct GroupView<'a> {
    log: &'a ShardLog,
    group: GroupId,
}

impl LogExtents for GroupView<'_> {
    fn extent(&self, first: Index, end: Index, max_bytes: u64) -> (Index, u64) {
        self.log.extent(self.group, first, end, max_bytes)
    }
}

impl std::fmt::Debug for ShardLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardLog")
            .field("lane", &self.lane.index)
            .field("slot", &self.slot)
            .field("groups", &self.groups.len())
            .finish_non_exhaustive()
    }
}

//! Owns the list of one group's blocks: which entries are where, in sixteen bytes a block.
//! Must never move what is older than the newest chunk: a log grows without its index being copied.

use std::collections::VecDeque;

use polyraft_raft::{EntryRange, Index, Term, TermRun};
use smallvec::SmallVec;

use crate::prefetch::prefetch;

/// Where the bytes of a block are: in a segment, or in a turn piece that has not been placed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place(u32);

/// The two cases of a [`Place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// The segment with this sequence number.
    Segment(u64),
    /// The turn piece whose number ends in these 31 bits.
    Turn(u32),
}

const TURN: u32 = 1 << 31;

/// Segments are numbered below this: more than any device lives to write.
pub(crate) const SEGMENT_LIMIT: u64 = TURN as u64;

impl Place {
    pub(crate) fn segment(sequence: u64) -> Self {
        assert!(sequence < SEGMENT_LIMIT, "segment {sequence}");
        Self(sequence as u32)
    }

    pub(crate) fn turn(number: u64) -> Self {
        Self(number as u32 | TURN)
    }

    pub(crate) fn get(self) -> Where {
        if self.0 & TURN == 0 {
            Where::Segment(u64::from(self.0))
        } else {
            Where::Turn(self.0 & !TURN)
        }
    }
}

/// The number of a turn piece from its last 31 bits; it is one of the 2^31 before `next`.
pub(crate) fn turn_number(tag: u32, next: u64) -> Option<u64> {
    next.checked_sub(u64::from((next as u32).wrapping_sub(tag) & !TURN))
}

/// One block of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRef {
    pub(crate) first: Index,
    pub(crate) term: Term,
    pub(crate) place: Place,
    /// From the start of the segment or of the turn piece.
    pub(crate) offset: u32,
    /// Encoded size.
    pub(crate) bytes: u32,
    /// Entries that are part of the log; fewer than `packed` once a truncation cut the block.
    pub(crate) count: u32,
    /// Entries in the encoded block.
    pub(crate) packed: u32,
}

impl BlockRef {
    pub(crate) fn end(&self) -> Index {
        Index(self.first.0 + u64::from(self.count))
    }
}

/// A block as the index holds it; the rest follows from its chunk and its neighbour.
#[derive(Clone, Copy)]
struct Slot {
    place: Place,
    offset: u32,
    bytes: u32,
    /// Behind its last entry, counted from the first entry of the chunk.
    end: u32,
}

/// Blocks of one term, one behind the other.
#[derive(Default)]
struct Chunk {
    first: Index,
    term: Term,
    /// How many entries the last block was encoded with if a truncation has cut it, else 0.
    cut: u32,
    /// How many entries the slots hold: where the log ends is known without a look at them.
    entries: u32,
    /// The first takes no memory of its own: few groups of a large store have more than one block.
    slots: SmallVec<[Slot; 1]>,
}

/// A full chunk takes a kilobyte, and so is the most that growing ever copies.
const CHUNK_BLOCKS: usize = 64;

/// A log with fewer older chunks has room for exactly these: each change of terms makes one.
const FEW_CHUNKS: usize = 4;

impl Chunk {
    fn end(&self) -> Index {
        Index(self.first.0 + u64::from(self.entries))
    }

    /// Entries in front of slot `at`.
    fn before(&self, at: usize) -> u32 {
        at.checked_sub(1).map_or(0, |at| self.slots[at].end)
    }

    fn get(&self, at: usize) -> BlockRef {
        let (slot, before) = (self.slots[at], self.before(at));
        let count = slot.end - before;
        let is_cut = self.cut > 0 && at + 1 == self.slots.len();
        BlockRef {
            first: Index(self.first.0 + u64::from(before)),
            term: self.term,
            place: slot.place,
            offset: slot.offset,
            bytes: slot.bytes,
            count,
            packed: if is_cut { self.cut } else { count },
        }
    }

    fn takes(&self, block: &BlockRef) -> bool {
        self.term == block.term && self.cut == 0 && self.slots.len() < CHUNK_BLOCKS
    }

    /// Which block holds the entry. Nearly every look-up is for one of the newest, so those are tried first.
    fn find(&self, index: Index) -> Option<usize> {
        const NEWEST: usize = 4;
        let entry = u32::try_from(index.0.checked_sub(self.first.0)?).ok()?;
        let mut at = self.slots.len();
        while at > 0 && self.slots.len() - at < NEWEST {
            at -= 1;
            if self.before(at) <= entry {
                return (entry < self.slots[at].end).then_some(at);
            }
        }
        Some(self.slots[..at].partition_point(|slot| slot.end <= entry)).filter(|found| *found < at)
    }
}

/// Which block: the number of its chunk, and its own in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    chunk: usize,
    at: usize,
}

/// The blocks of one log in order, without gaps.
#[derive(Default)]
pub(crate) struct BlockIndex {
    /// Complete, none of them empty. Absent when there are none.
    older: Option<Box<Chunks>>,
    /// Where blocks are added. Empty only if everything is.
    newest: Chunk,
}

type Chunks = VecDeque<Chunk>;

/// What an index has that has no older chunks.
static NONE: Chunks = Chunks::new();

impl BlockIndex {
    fn older(&self) -> &Chunks {
        self.older.as_deref().unwrap_or(&NONE)
    }

    /// The newest of the older chunks, taken out.
    fn pop_older(&mut self) -> Option<Chunk> {
        let chunk = self.older.as_mut()?.pop_back();
        self.older.take_if(|older| older.is_empty());
        chunk
    }

    fn push_older(&mut self, chunk: Chunk) {
        let older = self.older.get_or_insert_default();
        if older.len() < FEW_CHUNKS {
            older.reserve_exact(1);
        }
        older.push_back(chunk);
    }

    fn chunk(&self, number: usize) -> Option<&Chunk> {
        if number == self.older().len() {
            Some(&self.newest)
        } else {
            self.older().get(number)
        }
    }

    fn chunks(&self) -> impl DoubleEndedIterator<Item = &Chunk> {
        self.older()
            .iter()
            .chain((!self.newest.slots.is_empty()).then_some(&self.newest))
    }

    /// How many blocks there are.
    pub(crate) fn len(&self) -> usize {
        self.chunks().map(|chunk| chunk.slots.len()).sum()
    }

    /// Behind the last entry.
    pub(crate) fn end(&self) -> Option<Index> {
        (!self.newest.slots.is_empty()).then(|| self.newest.end())
    }

    /// Starts to load where blocks are added.
    #[inline]
    pub(crate) fn prefetch_end(&self) {
        let slots = self.newest.slots.as_slice();
        if let Some(last) = slots.len().checked_sub(1) {
            prefetch(&slots[last]);
        }
    }

    /// Adds a block that begins where the last one ends.
    pub(crate) fn push(&mut self, block: &BlockRef) {
        if self.newest.slots.is_empty() || !self.newest.takes(block) {
            let chunk = Chunk {
                first: block.first,
                term: block.term,
                ..Chunk::default()
            };
            let full = std::mem::replace(&mut self.newest, chunk);
            if !full.slots.is_empty() {
                self.push_older(full);
            }
        }
        let chunk = &mut self.newest;
        debug_assert_eq!(block.first, chunk.end());
        chunk.entries += block.count;
        if chunk.slots.len() == chunk.slots.capacity() {
            // A group that gets a second block gets more: no steps of one and two.
            chunk
                .slots
                .grow((2 * chunk.slots.len()).clamp(8, CHUNK_BLOCKS));
        }
        chunk.slots.push(Slot {
            place: block.place,
            offset: block.offset,
            bytes: block.bytes,
            end: chunk.entries,
        });
        if block.packed != block.count {
            chunk.cut = block.packed;
        }
    }

    /// Drops every entry from `from` on; a block that reaches beyond is cut.
    pub(crate) fn truncate(&mut self, from: Index) {
        while self.newest.first >= from
            && let Some(older) = self.pop_older()
        {
            self.newest = older;
        }
        let chunk = &mut self.newest;
        let kept = u32::try_from(from.0.saturating_sub(chunk.first.0)).unwrap_or(u32::MAX);
        while let Some(last) = chunk.slots.len().checked_sub(1)
            && kept < chunk.slots[last].end
        {
            if kept > chunk.before(last) {
                chunk.cut = chunk.get(last).packed;
                chunk.slots[last].end = kept;
            } else {
                chunk.slots.pop();
                chunk.cut = 0;
            }
        }
        chunk.entries = chunk.before(chunk.slots.len());
    }

    /// Drops the blocks that hold nothing from `from` on.
    pub(crate) fn purge(&mut self, from: Index) {
        if let Some(older) = &mut self.older {
            while older.pop_front_if(|chunk| chunk.end() <= from).is_some() {}
            if older.capacity() > 32 && older.len() < older.capacity() / 4 {
                older.shrink_to(2 * older.len());
            }
            self.older.take_if(|older| older.is_empty());
        }
        let older = self.older.as_mut().and_then(|older| older.front_mut());
        let chunk = older.unwrap_or(&mut self.newest);
        let Some(entries) = from.0.checked_sub(chunk.first.0) else {
            return;
        };
        let gone = chunk
            .slots
            .partition_point(|slot| u64::from(slot.end) <= entries);
        let before = chunk.before(gone);
        chunk.slots.drain(..gone);
        chunk.slots.iter_mut().for_each(|slot| slot.end -= before);
        chunk.first.0 += u64::from(before);
        chunk.entries -= before;
        if chunk.slots.is_empty() {
            *chunk = Chunk::default();
        }
    }

    /// The block that holds the entry.
    pub(crate) fn find(&self, index: Index) -> Option<Cursor> {
        let chunk = if index >= self.newest.first {
            self.older().len()
        } else {
            // The one before the newest is the likely one.
            let older = self.older();
            let last = older.len().checked_sub(1)?;
            if index >= older[last].first {
                last
            } else {
                let behind = older.partition_point(|chunk| chunk.first <= index);
                behind.checked_sub(1)?
            }
        };
        let at = self.chunk(chunk)?.find(index)?;
        Some(Cursor { chunk, at })
    }

    /// The block that was packed as `range`, possibly cut since.
    pub(crate) fn find_packed(&self, range: EntryRange) -> Option<Cursor> {
        let cursor = self.find(range.first)?;
        let block = self.get(cursor)?;
        let is_it = block.first == range.first
            && block.term == range.term
            && u64::from(block.packed) == range.end.0 - range.first.0;
        is_it.then_some(cursor)
    }

    pub(crate) fn get(&self, cursor: Cursor) -> Option<BlockRef> {
        let chunk = self.chunk(cursor.chunk)?;
        (cursor.at < chunk.slots.len()).then(|| chunk.get(cursor.at))
    }

    /// The block that holds the entry and those behind it; none when no block holds it.
    pub(crate) fn from(&self, index: Index) -> impl Iterator<Item = BlockRef> {
        let mut next = self.find(index);
        std::iter::from_fn(move || {
            let Cursor { chunk, at } = next?;
            let in_chunk = self.chunk(chunk)?;
            next = Some(if at + 1 < in_chunk.slots.len() {
                Cursor { chunk, at: at + 1 }
            } else {
                Cursor {
                    chunk: chunk + 1,
                    at: 0,
                }
            });
            (at < in_chunk.slots.len()).then(|| in_chunk.get(at))
        })
    }

    /// All blocks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockRef> {
        self.chunks()
            .flat_map(|chunk| (0..chunk.slots.len()).map(|at| chunk.get(at)))
    }

    /// Notes that the bytes of a block are somewhere else.
    pub(crate) fn set_place(&mut self, cursor: Cursor, place: Place, offset: u32) {
        let older = self.older.as_mut();
        let chunk = older.and_then(|older| older.get_mut(cursor.chunk));
        let chunk = chunk.unwrap_or(&mut self.newest);
        let slot = &mut chunk.slots[cursor.at];
        (slot.place, slot.offset) = (place, offset);
    }

    /// Blocks of turn piece `turn` are in segment `segment`, which the piece entered at `base`.
    pub(crate) fn place_appended(&mut self, turn: u64, segment: u64, base: u32) {
        let older = self.older.iter_mut().flat_map(|older| older.iter_mut());
        let chunks = older.chain([&mut self.newest]);
        for slot in chunks.rev().flat_map(|chunk| chunk.slots.iter_mut().rev()) {
            match slot.place.get() {
                Where::Turn(tag) if tag == turn as u32 & !TURN => {
                    slot.place = Place::segment(segment);
                    slot.offset += base;
                }
                // Of a later piece: pieces are placed in their order.
                Where::Turn(_) => {}
                Where::Segment(_) => break,
            }
        }
    }

    /// The terms of the blocks, each with its first index.
    pub(crate) fn runs(&self) -> Vec<TermRun> {
        let mut runs: Vec<TermRun> = Vec::new();
        for chunk in self.chunks() {
            if runs.last().is_none_or(|run| run.term != chunk.term) {
                runs.push(TermRun {
                    term: chunk.term,
                    first: chunk.first,
                });
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the index should hold, kept in the simplest way.
    #[derive(Default)]
    struct Model(Vec<BlockRef>);

    impl Model {
        fn truncate(&mut self, from: Index) {
            self.0.retain(|block| block.first < from);
            if let Some(last) = self.0.last_mut()
                && last.end() > from
            {
                last.count = (from.0 - last.first.0) as u32;
            }
        }

        fn find(&self, index: Index) -> Option<BlockRef> {
            let holds = |block: &&BlockRef| block.first <= index && index < block.end();
            self.0.iter().find(holds).copied()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { entries: u32, new_term: bool },
        Truncate { back: u64 },
        Purge { part: u64 },
        Place,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            12 => (1..4u32, prop::bool::weighted(0.1)).prop_map(|(entries, new_term)| Step::Push { entries, new_term }),
            2 => (0..9u64).prop_map(|back| Step::Truncate { back }),
            1 => (0..300u64).prop_map(|part| Step::Purge { part }),
            3 => Just(Step::Place),
        ]
    }

    proptest! {
        #[test]
        fn the_index_is_the_list_it_stands_for(steps in prop::collection::vec(step(), 1..400)) {
            let (mut index, mut model) = (BlockIndex::default(), Model::default());
            let (mut term, mut turn, mut placed, mut base) = (1, u64::from(TURN) - 40, 0, 0);
            for step in steps {
                let end = model.0.last().map_or(base + 1, |block| block.end().0);
                match step {
                    Step::Push { entries, new_term } => {
                        term += u64::from(new_term);
                        turn += 1;
                        let block = BlockRef {
                            first: Index(end), term: Term(term), place: Place::turn(turn), offset: turn as u32 % 977,
                            bytes: 64, count: entries, packed: entries,
                        };
                        index.push(&block);
                        model.0.push(block);
                    }
                    Step::Truncate { back } => {
                        let from = Index(end.saturating_sub(back).max(base + 1));
                        index.truncate(from);
                        model.truncate(from);
                        term += back % 2;
                    }
                    Step::Purge { part } => {
                        base = (base + part).min(end - 1);
                        index.purge(Index(base + 1));
                        model.0.retain(|block| block.end().0 > base + 1);
                    }
                    // The oldest piece without a place gets one.
                    Step::Place => {
                        let unplaced = model.0.iter().find(|block| matches!(block.place.get(), Where::Turn(_)));
                        let Some(Where::Turn(tag)) = unplaced.map(|block| block.place.get()) else { continue };
                        placed += 1;
                        index.place_appended(turn_number(tag, turn + 1).unwrap(), placed, 4096);
                        for block in model.0.iter_mut().filter(|block| block.place.get() == Where::Turn(tag)) {
                            block.place = Place::segment(placed);
                            block.offset += 4096;
                        }
                    }
                }
                prop_assert_eq!(index.iter().collect::<Vec<_>>(), model.0.clone());
                prop_assert_eq!(index.len(), model.0.len());
                prop_assert_eq!(index.end(), model.0.last().map(BlockRef::end));
                let last = model.0.last().map_or(base + 2, |block| block.end().0 + 1);
                for at in (base.saturating_sub(2)..=last).map(Index) {
                    let found = index.find(at);
                    prop_assert_eq!(found.and_then(|found| index.get(found)), model.find(at));
                    let rest = model.0.iter().copied().filter(|block| found.is_some() && block.end() > at);
                    prop_assert_eq!(index.from(at).collect::<Vec<_>>(), rest.collect::<Vec<_>>());
                }
            }
        }

        #[test]
        fn a_turn_is_known_by_its_last_bits(next in 1..1u64 << 40, behind in 1..1u64 << 31) {
            let turn = next.saturating_sub(behind);
            let Where::Turn(tag) = Place::turn(turn).get() else { panic!("a turn") };
            prop_assert_eq!(turn_number(tag, next), Some(turn));
        }
    }

    #[test]
    fn a_block_takes_sixteen_bytes() {
        assert_eq!(size_of::<Slot>(), 16);
        assert_eq!(size_of::<Chunk>(), 48);
        assert_eq!(size_of::<BlockIndex>(), 56, "what an idle group has");
    }

    #[test]
    fn the_first_block_takes_no_memory_of_its_own() {
        let mut index = BlockIndex::default();
        let block = |first: u64| BlockRef {
            first: Index(first),
            term: Term(1),
            place: Place::segment(1),
            offset: 0,
            bytes: 64,
            count: 1,
            packed: 1,
        };
        index.push(&block(1));
        assert!(!index.newest.slots.spilled() && index.older.is_none());
        index.push(&block(2));
        assert!(index.newest.slots.spilled());
    }
}

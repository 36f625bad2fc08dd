//! Owns the in-memory index of one group's log: where each block is, what was purged, the hard state.
//! Must never read or write a file; its methods are the meaning of the records, live and on replay.

use std::collections::VecDeque;
use std::sync::Arc;

use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, LogPosition, Term, TermRun,
};

/// Where the bytes of a block are: in a segment, or in a turn that has not been placed yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u64);

/// The two cases of a [`Place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// The segment with this sequence number.
    Segment(u64),
    /// The turn piece with this number.
    Turn(u64),
}

const TURN: u64 = 1 << 63;

impl Place {
    pub(crate) fn segment(sequence: u64) -> Self {
        Self(sequence)
    }

    pub(crate) fn turn(number: u64) -> Self {
        Self(number | TURN)
    }

    pub(crate) fn get(self) -> Where {
        if self.0 & TURN != 0 {
            Where::Turn(self.0 & !TURN)
        } else {
            Where::Segment(self.0)
        }
    }
}

/// One block of a log: 40 bytes.
#[derive(Clone, Copy)]
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

/// What a group's records add up to.
pub(crate) struct GroupLog {
    pub(crate) configuration: Arc<Configuration>,
    pub(crate) hard_state: HardState,
    /// Everything up to here was purged; entries begin right behind it.
    pub(crate) base: LogPosition,
    /// In order, without gaps: the first reaches `base.index + 1`, each next one begins where the one before ends.
    pub(crate) blocks: VecDeque<BlockRef>,
    /// Why the log on disk cannot be trusted any more.
    pub(crate) fault: Option<Box<str>>,
}

impl GroupLog {
    pub(crate) fn new(configuration: Arc<Configuration>) -> Self {
        Self {
            configuration,
            hard_state: HardState::default(),
            base: LogPosition::default(),
            blocks: VecDeque::new(),
            fault: None,
        }
    }

    pub(crate) fn last(&self) -> Index {
        self.blocks
            .back()
            .map_or(self.base.index, |block| Index(block.end().0 - 1))
    }

    pub(crate) fn append(&mut self, range: EntryRange, place: Place, offset: u32, bytes: u32) {
        debug_assert_eq!(range.first.0, self.last().0 + 1);
        let count = (range.end.0 - range.first.0) as u32;
        self.blocks.push_back(BlockRef {
            first: range.first,
            term: range.term,
            place,
            offset,
            bytes,
            count,
            packed: count,
        });
    }

    /// Drops everything from `from` on; what is already purged stays so.
    pub(crate) fn truncate(&mut self, from: Index) {
        while self.blocks.back().is_some_and(|block| block.first >= from) {
            self.blocks.pop_back();
        }
        if let Some(block) = self.blocks.back_mut()
            && block.end() > from
        {
            block.count = (from.0 - block.first.0) as u32;
        }
    }

    /// Drops everything up to `through`, which may lie beyond the last entry (a snapshot took its place).
    pub(crate) fn purge(&mut self, through: LogPosition) {
        if through.index <= self.base.index {
            return;
        }
        while self
            .blocks
            .front()
            .is_some_and(|block| block.end().0 <= through.index.0 + 1)
        {
            self.blocks.pop_front();
        }
        self.base = through;
        if self.blocks.capacity() > 32 && self.blocks.len() < self.blocks.capacity() / 4 {
            self.blocks.shrink_to(2 * self.blocks.len());
        }
    }

    /// Which block holds `index`. Nearly every look-up is for one of the newest blocks, and the older ones are cold
    /// in the caches: so the search gallops back from the end.
    pub(crate) fn find(&self, index: Index) -> Option<usize> {
        // Blocks from `high` on start after `index`; the answer is below.
        let (mut low, mut high, mut stride) = (self.blocks.len(), self.blocks.len(), 1);
        while low > 0 && (low == self.blocks.len() || self.blocks[low].first > index) {
            high = low;
            low = low.saturating_sub(stride);
            stride *= 2;
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if self.blocks[middle].first <= index {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let at = low.checked_sub(1)?;
        (index < self.blocks[at].end()).then_some(at)
    }

    /// The block that was packed as `range`, possibly cut since.
    pub(crate) fn find_packed(&mut self, range: EntryRange) -> Option<&mut BlockRef> {
        let at = self.find(range.first)?;
        let block = &mut self.blocks[at];
        (block.first == range.first
            && block.term == range.term
            && u64::from(block.packed) == range.end.0 - range.first.0)
            .then_some(block)
    }

    /// Blocks of turn piece `turn` are in segment `segment`, which the piece entered at `base`.
    pub(crate) fn place_appended(&mut self, turn: u64, segment: u64, base: u32) {
        for block in self.blocks.iter_mut().rev() {
            match block.place.get() {
                Where::Turn(number) if number == turn => block.place_in(segment, base),
                Where::Turn(number) if number > turn => {}
                _ => break,
            }
        }
    }

    /// The relocated copy of the block at `first`, written in turn piece `turn`, is placed.
    pub(crate) fn place_moved(&mut self, first: Index, turn: u64, segment: u64, base: u32) {
        if let Some(at) = self.find(first)
            && self.blocks[at].place.get() == Where::Turn(turn)
        {
            self.blocks[at].place_in(segment, base);
        }
    }

    /// The terms of the log, each with the first index that has it.
    pub(crate) fn runs(&self) -> Vec<TermRun> {
        let mut runs: Vec<TermRun> = Vec::new();
        for block in &self.blocks {
            if runs.last().is_none_or(|run| run.term != block.term) {
                let first = block.first.max(self.base.index.next());
                runs.push(TermRun {
                    term: block.term,
                    first,
                });
            }
        }
        runs
    }

    pub(crate) fn recovered(&self, group: GroupId) -> RecoveredGroup {
        RecoveredGroup {
            group,
            configuration: (*self.configuration).clone(),
            hard_state: self.hard_state,
            base: self.base,
            runs: self.runs(),
            last: self.last(),
            fault: self.fault.as_deref().map(str::to_owned),
        }
    }
}

impl BlockRef {
    fn place_in(&mut self, segment: u64, base: u32) {
        self.place = Place::segment(segment);
        self.offset += base;
    }
}

/// A group as the log has it after an open.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveredGroup {
    /// Its id.
    pub group: GroupId,
    /// The configuration it was created with.
    pub configuration: Configuration,
    /// Newest durable term, vote and commit hint.
    pub hard_state: HardState,
    /// Position up to which the log was purged; entries begin right behind it.
    pub base: LogPosition,
    /// Terms of the entries, each with its first index.
    pub runs: Vec<TermRun>,
    /// Index of the last entry; the base's when there is none.
    pub last: Index,
    /// Why this replica's log must not be used, if so: it must not vote, and has to be repaired from its peers.
    pub fault: Option<String>,
}

/// Shares equal configurations: most groups of a node have one of a few.
#[derive(Default)]
pub(crate) struct Interned(Vec<Arc<Configuration>>);

impl Interned {
    pub(crate) fn share(&mut self, configuration: Configuration) -> Arc<Configuration> {
        const REMEMBERED: usize = 16;
        if let Some(known) = self.0.iter().find(|known| ***known == configuration) {
            return Arc::clone(known);
        }
        let shared = Arc::new(configuration);
        if self.0.len() == REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(term: u64, first: u64, end: u64) -> EntryRange {
        EntryRange {
            term: Term(term),
            first: Index(first),
            end: Index(end),
        }
    }

    fn log() -> GroupLog {
        let mut log = GroupLog::new(Arc::default());
        log.append(range(1, 1, 4), Place::segment(1), 0, 64);
        log.append(range(1, 4, 6), Place::turn(8), 0, 64);
        log.append(range(2, 6, 9), Place::turn(9), 0, 64);
        log
    }

    #[test]
    fn a_block_reference_takes_forty_bytes() {
        assert_eq!(size_of::<BlockRef>(), 40);
        assert!(size_of::<GroupLog>() <= 128, "{}", size_of::<GroupLog>());
    }

    #[test]
    fn a_truncation_cuts_the_block_it_hits() {
        let mut log = log();
        log.truncate(Index(5));
        assert_eq!(log.last(), Index(4));
        assert_eq!(log.blocks.len(), 2);
        log.append(range(3, 5, 6), Place::turn(10), 0, 64);
        let runs = vec![
            TermRun {
                term: Term(1),
                first: Index(1),
            },
            TermRun {
                term: Term(3),
                first: Index(5),
            },
        ];
        assert_eq!(log.runs(), runs);
        assert_eq!(log.find(Index(5)), Some(2));
        assert_eq!(log.find(Index(6)), None);
    }

    #[test]
    fn a_purge_keeps_the_block_it_ends_in() {
        let mut log = log();
        log.purge(LogPosition {
            term: Term(1),
            index: Index(4),
        });
        assert_eq!(log.blocks.len(), 2);
        assert_eq!(log.runs()[0].first, Index(5));
        log.purge(LogPosition {
            term: Term(4),
            index: Index(20),
        });
        assert_eq!((log.blocks.len(), log.last()), (0, Index(20)));
    }

    #[test]
    fn only_the_placed_turn_is_placed() {
        let mut log = log();
        log.place_appended(8, 3, 4096);
        assert_eq!(log.blocks[1].place.get(), Where::Segment(3));
        assert_eq!(log.blocks[1].offset, 4096);
        assert_eq!(log.blocks[2].place.get(), Where::Turn(9));
        assert_eq!(log.blocks[0].place.get(), Where::Segment(1));
    }
}

//! Owns the in-memory index of one group's log: where each block is, what was purged, the hard state.
//! Must never read or write a file; its methods are the meaning of the records, live and on replay.

use std::sync::Arc;

use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, Life, LogPosition, TermRun,
};

use crate::index::{BlockIndex, BlockRef, Place};
use crate::tombstone::Tombstone;

/// How a replica begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Creation {
    /// Which life of the group's id it belongs to.
    pub life: Life,
    /// It was made for a member that the group took in at this place of its log, and takes no part in votes until its own log
    /// reaches there; 0 for the members that the group began with.
    pub joined: Index,
    /// The members as far as the one who made it knew.
    pub configuration: Configuration,
}

impl Creation {
    /// That of a member which the group begins with.
    #[must_use]
    pub fn founding(life: Life, configuration: Configuration) -> Self {
        Creation {
            life,
            joined: Index::ZERO,
            configuration,
        }
    }
}

/// What a group's records add up to.
pub(crate) struct GroupLog {
    pub(crate) life: Life,
    pub(crate) joined: Index,
    pub(crate) configuration: Arc<Configuration>,
    pub(crate) hard_state: HardState,
    /// Everything up to here was purged; entries begin right behind it.
    pub(crate) base: LogPosition,
    /// The first reaches `base.index + 1`.
    pub(crate) blocks: BlockIndex,
    /// Why the log on disk cannot be trusted any more.
    pub(crate) fault: Option<Box<str>>,
}

impl GroupLog {
    pub(crate) fn new(configuration: Arc<Configuration>) -> Self {
        Self {
            life: Life::FIRST,
            joined: Index::ZERO,
            configuration,
            hard_state: HardState::default(),
            base: LogPosition::default(),
            blocks: BlockIndex::default(),
            fault: None,
        }
    }

    /// A replica that begins where a tombstone stands, or none does.
    pub(crate) fn begun(
        creation: Creation,
        before: Option<Tombstone>,
        interned: &mut Interned,
    ) -> Self {
        let state = before.map(|tombstone| tombstone.hard_state_for(creation.life));
        Self {
            life: creation.life,
            joined: creation.joined,
            hard_state: state.unwrap_or_default(),
            ..Self::new(interned.share(creation.configuration))
        }
    }

    pub(crate) fn last(&self) -> Index {
        self.blocks.end().map_or(self.base.index, Index::prev)
    }

    pub(crate) fn append(&mut self, range: EntryRange, place: Place, offset: u32, bytes: u32) {
        debug_assert_eq!(range.first.0, self.last().0 + 1);
        let count = (range.end.0 - range.first.0) as u32;
        self.blocks.push(&BlockRef {
            first: range.first,
            term: range.term,
            place,
            offset,
            bytes,
            count,
            packed: count,
        });
    }

    /// Drops everything up to `through`, which may lie beyond the last entry (a snapshot took its place).
    pub(crate) fn purge(&mut self, through: LogPosition) {
        if through.index > self.base.index {
            self.blocks.purge(through.index.next());
            self.base = through;
        }
    }

    /// The relocated copy of the block at `first`, written in turn piece `turn`, is placed.
    pub(crate) fn place_moved(&mut self, first: Index, turn: u64, segment: u64, base: u32) {
        if let Some(cursor) = self.blocks.find(first)
            && let Some(block) = self.blocks.get(cursor)
            && block.place == Place::turn(turn)
        {
            self.blocks
                .set_place(cursor, Place::segment(segment), block.offset + base);
        }
    }

    /// The terms of the log, each with the first index that has it.
    pub(crate) fn runs(&self) -> Vec<TermRun> {
        let mut runs = self.blocks.runs();
        // The first block may begin before the base.
        if let Some(run) = runs.first_mut() {
            run.first = run.first.max(self.base.index.next());
        }
        runs
    }

    pub(crate) fn recovered(&self, group: GroupId) -> RecoveredGroup {
        RecoveredGroup {
            group,
            life: self.life,
            joined: self.joined,
            configuration: (*self.configuration).clone(),
            hard_state: self.hard_state,
            base: self.base,
            runs: self.runs(),
            last: self.last(),
            fault: self.fault.as_deref().map(str::to_owned),
        }
    }
}

/// A group as the log has it after an open.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveredGroup {
    /// Its id.
    pub group: GroupId,
    /// Which life of the id it belongs to.
    pub life: Life,
    /// See [`Creation::joined`].
    pub joined: Index,
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
    use polyraft_raft::Term;

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
    fn a_quiet_group_takes_little_memory() {
        assert!(size_of::<GroupLog>() <= 168, "{}", size_of::<GroupLog>());
    }

    #[test]
    fn a_truncation_cuts_the_block_it_hits() {
        let mut log = log();
        log.blocks.truncate(Index(5));
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
        assert!(log.blocks.find(Index(5)).is_some());
        assert_eq!(log.blocks.find(Index(6)), None);
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
        log.blocks.place_appended(8, 3, 4096);
        let places: Vec<_> = log
            .blocks
            .iter()
            .map(|block| (block.place, block.offset))
            .collect();
        let expected = [
            (Place::segment(1), 0),
            (Place::segment(3), 4096),
            (Place::turn(9), 0),
        ];
        assert_eq!(places, expected);
    }
}

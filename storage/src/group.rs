//! Owns the in-memory index of one group's log: where each block is, what was purged, the hard state.
//! Must never read or write a file; its methods are the meaning of the records, live and on replay.

use std::sync::Arc;

use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, Life, LogPosition, Restored, Term,
    TermRun,
};

use crate::damage::LogDamage;
use crate::index::{BlockIndex, BlockRef, Place};
use crate::tombstone::Tombstone;

/// How a replica begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Creation {
    /// Which life of the group's id it belongs to.
    pub life: Life,
    /// The group began behind a state that this replica may lack: until its own log reaches there it does not stand, and votes
    /// only for who has that much. 0 for the members of a group that began with nothing. Where a replica ended before, its
    /// [`Tombstone::at`] counts besides, which may be an index that was never committed; the same holds for that.
    pub joined: Index,
    /// It stores no payload, for as long as it lives.
    pub is_witness: bool,
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
            is_witness: false,
            configuration,
        }
    }
}

/// What a group's records add up to.
pub(crate) struct GroupLog {
    pub(crate) life: Life,
    pub(crate) is_witness: bool,
    /// What it began with, if not with nothing. Most replicas did.
    pub(crate) began: Option<Box<Began>>,
    /// The members as of `base`.
    pub(crate) configuration: Arc<Configuration>,
    /// What entries behind it say of the members, in their order. Absent when none does.
    pub(crate) later: Option<Box<Later>>,
    pub(crate) hard_state: HardState,
    /// Everything up to here was purged; entries begin right behind it.
    pub(crate) base: LogPosition,
    /// Whether the log ever had entries of client sessions, or such that change what is kept with them.
    pub(crate) has_sessions: bool,
    /// The first reaches `base.index + 1`.
    pub(crate) blocks: BlockIndex,
    /// Why the log on disk cannot be trusted any more.
    pub(crate) fault: Option<Box<LogDamage>>,
}

/// What a replica began with that took the place of another, or joined its group.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Began {
    joined: Index,
    removed_in: Term,
}

/// Configurations by the entries that say them.
pub(crate) type Later = Vec<(Index, Arc<Configuration>)>;

impl GroupLog {
    pub(crate) fn new(configuration: Arc<Configuration>) -> Self {
        Self {
            life: Life::FIRST,
            is_witness: false,
            began: None,
            configuration,
            later: None,
            hard_state: HardState::default(),
            base: LogPosition::default(),
            has_sessions: false,
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
        let before = before.filter(|tombstone| tombstone.life == creation.life);
        let state = before.map(|tombstone| tombstone.hard_state_for(creation.life));
        let joined = before.map_or(Index::ZERO, |tombstone| tombstone.at);
        let removed_in = match before {
            Some(tombstone) if creation.joined <= joined => tombstone.term,
            _ if creation.joined > Index::ZERO => Restored::NEVER,
            _ => Term::ZERO,
        };
        let mut log = Self {
            life: creation.life,
            is_witness: creation.is_witness,
            hard_state: state.unwrap_or_default(),
            ..Self::new(interned.share(creation.configuration))
        };
        log.begin(joined.max(creation.joined), removed_in);
        log
    }

    /// See [`Creation::joined`] and [`RecoveredGroup::removed_in`].
    pub(crate) fn begin(&mut self, joined: Index, removed_in: Term) {
        let began = Began { joined, removed_in };
        self.began = (began != Began::default()).then(|| Box::new(began));
    }

    /// See [`Creation::joined`].
    pub(crate) fn joined(&self) -> Index {
        self.began
            .as_ref()
            .map_or(Index::ZERO, |began| began.joined)
    }

    /// The newest term that the replica before had seen, whose end made it begin anew.
    pub(crate) fn removed_in(&self) -> Term {
        self.began
            .as_ref()
            .map_or(Term::ZERO, |began| began.removed_in)
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

    /// The entry at `index` says who the members are.
    pub(crate) fn configure(&mut self, index: Index, configuration: Arc<Configuration>) {
        self.later
            .get_or_insert_default()
            .push((index, configuration));
    }

    /// What entries behind the base say of the members.
    pub(crate) fn later(&self) -> &[(Index, Arc<Configuration>)] {
        self.later.as_ref().map_or(&[], |later| later)
    }

    /// Drops every entry from `from` on.
    pub(crate) fn truncate(&mut self, from: Index) {
        self.blocks.truncate(from);
        // What is left of a block that the base cuts may end there now.
        self.blocks.purge(self.base.index.next());
        if let Some(later) = &mut self.later {
            later.retain(|(index, _)| *index < from);
            self.later.take_if(|later| later.is_empty());
        }
    }

    /// Drops everything up to `through`, which may lie beyond the last entry (a snapshot took its place, and brought the
    /// members as of there).
    pub(crate) fn purge(
        &mut self,
        through: LogPosition,
        configuration: Option<Arc<Configuration>>,
    ) {
        if through.index <= self.base.index {
            return;
        }
        self.blocks.purge(through.index.next());
        self.base = through;
        if let Some(later) = &mut self.later {
            let gone = later.partition_point(|(index, _)| *index <= through.index);
            if let Some((_, newest)) = later.drain(..gone).next_back() {
                self.configuration = newest;
            }
            self.later.take_if(|later| later.is_empty());
        }
        if let Some(configuration) = configuration {
            self.configuration = configuration;
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
            joined: self.joined(),
            removed_in: self.removed_in(),
            is_witness: self.is_witness,
            configuration: (*self.configuration).clone(),
            configurations: self
                .later()
                .iter()
                .map(|(index, configuration)| (*index, (**configuration).clone()))
                .collect(),
            hard_state: self.hard_state,
            base: self.base,
            runs: self.runs(),
            last: self.last(),
            fault: self.fault.as_ref().map(|fault| fault.reason.to_string()),
            may_return: self.fault.as_ref().and_then(|fault| fault.may_return()),
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
    /// The replica votes for whoever has less once its log reaches there, or once its last entry is of a later term than `removed_in`; see
    /// [`Creation::joined`] and [`Tombstone::at`].
    pub joined: Index,
    /// The newest term that the replica before had seen, whose end made this one begin anew.
    pub removed_in: Term,
    /// See [`Creation::is_witness`].
    pub is_witness: bool,
    /// The members as of `base`.
    pub configuration: Configuration,
    /// What entries behind it say of the members, in their order.
    pub configurations: Vec<(Index, Configuration)>,
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
    /// Of a replica with a fault whose life, term and vote are certain: the last entry that it may have acknowledged. It can get
    /// the log from its peers, and must not vote before it has that one again.
    pub may_return: Option<Index>,
}

impl RecoveredGroup {
    /// The members as the newest entry of the log says, committed or not.
    #[must_use]
    pub fn members(&self) -> &Configuration {
        let newest = self.configurations.last();
        newest.map_or(&self.configuration, |(_, configuration)| configuration)
    }

    /// The last entry; the base when there is none.
    pub fn last_position(&self) -> LogPosition {
        let term = self.runs.last().map_or(self.base.term, |run| run.term);
        let index = self.last;
        LogPosition { term, index }
    }

    /// Whether the log has an entry, or had it and was purged.
    pub fn holds(&self, position: LogPosition) -> bool {
        if position.index <= self.base.index {
            return true;
        }
        let run = self.runs.partition_point(|run| run.first <= position.index);
        let term = run.checked_sub(1).map(|run| self.runs[run].term);
        position.index <= self.last && term == Some(position.term)
    }
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
    use polyraft_raft::NodeId;

    use super::*;

    fn range(term: u64, first: u64, end: u64) -> EntryRange {
        EntryRange {
            term: Term(term),
            first: Index(first),
            end: Index(end),
        }
    }

    fn members(n: u64) -> Arc<Configuration> {
        Arc::new(Configuration::simple([NodeId(n)]))
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
        log.configure(Index(4), members(1));
        log.configure(Index(5), members(2));
        log.truncate(Index(5));
        assert_eq!(log.later(), [(Index(4), members(1))]);
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
        let (before, after) = (members(1), members(2));
        log.configure(Index(4), Arc::clone(&before));
        log.configure(Index(7), Arc::clone(&after));
        let through = |term, index| LogPosition {
            term: Term(term),
            index: Index(index),
        };
        log.purge(through(1, 4), None);
        assert_eq!(log.configuration, before);
        assert_eq!(log.later(), [(Index(7), Arc::clone(&after))]);
        assert_eq!(log.blocks.len(), 2);
        assert_eq!(log.runs()[0].first, Index(5));
        log.purge(through(4, 20), Some(members(3)));
        assert_eq!(
            (log.configuration.clone(), log.later()),
            (members(3), &[][..])
        );
        assert_eq!((log.blocks.len(), log.last()), (0, Index(20)));
    }

    #[test]
    fn a_truncation_to_the_base_leaves_no_block_behind() {
        let mut log = log();
        log.purge(
            LogPosition {
                term: Term(2),
                index: Index(6),
            },
            None,
        );
        log.truncate(Index(7));
        assert_eq!((log.blocks.len(), log.last()), (0, Index(6)));
        log.append(range(3, 7, 8), Place::turn(10), 0, 64);
        let run = TermRun {
            term: Term(3),
            first: Index(7),
        };
        assert_eq!(log.runs(), [run]);
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

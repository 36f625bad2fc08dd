//! Owns what a damaged log says of what it lost: enough to come back with a log from elsewhere, or that nothing is certain.
//! Must never guess: what it does not know for sure counts as lost.

use polyraft_raft::Index;

use crate::format::Record;

/// What a damaged record said, as far as its header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Entries, through this one.
    Entries(Index),
    /// Where entries are, or that some of them are gone from the end.
    Less,
    /// Where the log begins, which may be behind every entry that is known.
    Begin,
    /// Term and vote.
    Vote,
    /// How a replica began or ended, or anything.
    Life,
}

/// Why a log can't be trusted any more, and what is known all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogDamage {
    /// What was found first.
    pub(crate) reason: Box<str>,
    /// The log has never ended behind this entry since its last truncation; `None`: nobody knows where it ended.
    pub(crate) last: Option<Index>,
    /// The newest term and vote may be lost.
    pub(crate) has_lost_vote: bool,
    /// The replica may be of another life than it seems, or may have ended.
    pub(crate) has_lost_life: bool,
}

impl LogDamage {
    /// That of a log which ends at an entry, as far as it can be read.
    pub(crate) fn of_log(reason: impl Into<Box<str>>, last: Index) -> Box<Self> {
        Box::new(LogDamage {
            reason: reason.into(),
            last: Some(last),
            has_lost_vote: false,
            has_lost_life: false,
        })
    }

    /// A record is damaged.
    pub(crate) fn lose(&mut self, lost: Lost) {
        match lost {
            Lost::Entries(last) => self.last = Some(last),
            Lost::Less => {}
            Lost::Begin => self.last = None,
            Lost::Vote => self.has_lost_vote = true,
            Lost::Life => self.has_lost_life = true,
        }
    }

    /// A record behind the damage is intact: what it says is known again.
    pub(crate) fn follow(&mut self, record: &Record) {
        match record {
            // It was appended right behind the end.
            Record::Block { range, .. } => self.last = Some(range.last()),
            Record::Truncate { from } => self.last = self.last.map(|last| last.min(from.prev())),
            Record::Purge { through, .. } => {
                self.last = self.last.map(|last| last.max(through.index));
            }
            Record::HardState(_) => self.has_lost_vote = false,
            Record::Create(_) | Record::Tombstone(_) | Record::Relocated { .. } => {}
        }
    }

    /// The last entry that the replica may have acknowledged, if it is certain what it must not forget besides: its life, its
    /// term and its vote.
    pub(crate) fn may_return(&self) -> Option<Index> {
        let is_certain = !self.has_lost_vote && !self.has_lost_life;
        self.last.filter(|_| is_certain)
    }
}

#[cfg(test)]
mod tests {
    use polyraft_raft::{EntryRange, HardState, LogPosition, Term};

    use super::*;

    fn block(first: u64, end: u64) -> Record {
        let (term, first, end) = (Term(1), Index(first), Index(end));
        let range = EntryRange { term, first, end };
        let configurations = Vec::new();
        Record::Block {
            range,
            kind: crate::block::EntryKind::Normal,
            configurations,
        }
    }

    fn purge(index: u64) -> Record {
        let (term, index) = (Term(1), Index(index));
        Record::Purge {
            through: LogPosition { term, index },
            configuration: None,
        }
    }

    #[test]
    fn the_end_is_followed_behind_the_damage() {
        let mut damage = LogDamage::of_log("rot", Index(4));
        damage.lose(Lost::Entries(Index(9)));
        assert_eq!(damage.may_return(), Some(Index(9)));
        damage.follow(&block(10, 21));
        damage.follow(&Record::Truncate { from: Index(15) });
        assert_eq!(damage.may_return(), Some(Index(14)));
        // One that is lost can only have taken entries away.
        damage.lose(Lost::Less);
        damage.follow(&purge(12));
        assert_eq!(damage.may_return(), Some(Index(14)));
        damage.follow(&purge(30));
        assert_eq!(damage.may_return(), Some(Index(30)));
    }

    #[test]
    fn what_is_not_certain_is_lost_until_a_later_record_says_it() {
        let mut damage = LogDamage::of_log("rot", Index(4));
        damage.lose(Lost::Begin);
        damage.follow(&Record::Truncate { from: Index(3) });
        damage.follow(&purge(7));
        assert_eq!(damage.may_return(), None);
        damage.follow(&block(40, 42));
        assert_eq!(damage.may_return(), Some(Index(41)));
        damage.lose(Lost::Vote);
        damage.follow(&block(42, 43));
        assert_eq!(damage.may_return(), None);
        damage.follow(&Record::HardState(HardState::default()));
        assert_eq!(damage.may_return(), Some(Index(42)));
        damage.lose(Lost::Life);
        damage.follow(&Record::HardState(HardState::default()));
        assert_eq!(damage.may_return(), None);
    }
}

//! Owns what is kept of a replica that ended: which life of its group's id that was, and what it must not forget.
//! Must never be dropped for want of room: without it, what is over could come back.

use polyraft_raft::{GroupId, HardState, Index, Life, NodeId, Term};

/// How a replica ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// It was taken out of a group that lives on, or dropped a damaged log. It may come back in the same life, by the word of a leader whose term is at
    /// least the tombstone's.
    Removed,
    /// The group is over everywhere. Nothing of that life, or of one before it, may come back.
    Destroyed,
}

/// What stays of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The life that ended.
    pub life: Life,
    /// How it ended.
    pub ending: Ending,
    /// The newest term that the replica had seen.
    pub term: Term,
    /// Whom it had voted for in that term: should it come back, it must not vote for another.
    pub vote: Option<NodeId>,
    /// Of a removal: a committed index as of which the node is no member, or the last entry that the replica may have
    /// acknowledged before it lost its log, which may never have been committed. A replica that comes back may not vote before it
    /// has the log through there, as somebody may take it for the one before, or an entry of a later term than `term`.
    pub at: Index,
}

impl Tombstone {
    /// That of a life that is over everywhere.
    #[must_use]
    pub fn destroyed(life: Life) -> Self {
        Tombstone {
            life,
            ending: Ending::Destroyed,
            term: Term::ZERO,
            vote: None,
            at: Index::ZERO,
        }
    }

    /// Whether it says more than another one of the same group.
    #[must_use]
    pub fn says_more_than(&self, other: &Tombstone) -> bool {
        let sum = |one: &Tombstone| (one.life, one.ending, one.at, one.term);
        sum(self) > sum(other)
    }

    /// The newest life that is over everywhere, as far as this says. Nothing of it, or of one before it, may come back anywhere.
    #[must_use]
    pub fn over(&self) -> Option<Life> {
        match self.ending {
            Ending::Destroyed => Some(self.life),
            Ending::Removed => self.life.before(),
        }
    }

    /// Whether a replica of `life` may begin where this tombstone stands.
    #[must_use]
    pub fn allows(&self, life: Life) -> bool {
        life > self.life || life == self.life && self.ending == Ending::Removed
    }

    /// What a replica of `life` that begins here remembers.
    #[must_use]
    pub(crate) fn hard_state_for(&self, life: Life) -> HardState {
        if life != self.life {
            return HardState::default();
        }
        HardState {
            term: self.term,
            vote: self.vote,
            commit: Index::ZERO,
        }
    }
}

/// The name of a group's life where files are named by it: the first life has the group's own.
#[must_use]
pub fn name_of(group: GroupId, life: Life) -> String {
    match life {
        Life::FIRST => group.to_string(),
        _ => format!("{group}.{}", life.get()),
    }
}

/// Reads what [`name_of`] wrote.
#[must_use]
pub fn parse_name_of(name: &str) -> Option<(GroupId, Life)> {
    let number = name.strip_prefix('g')?;
    let (group, life) = match number.split_once('.') {
        Some((group, life)) => (group, life.parse().ok().filter(|life| *life > 0)?),
        None => (number, 0),
    };
    let (group, life) = (GroupId(group.parse().ok()?), Life::new(life)?);
    // One name for each: no signs, no leading zeros.
    (name_of(group, life) == name).then_some((group, life))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(number: u32) -> Life {
        Life::new(number).unwrap()
    }

    #[test]
    fn a_removed_replica_may_come_back_in_its_life_and_a_destroyed_one_may_not() {
        let destroyed = Tombstone::destroyed(life(3));
        let removed = Tombstone {
            ending: Ending::Removed,
            term: Term(7),
            vote: Some(NodeId(2)),
            ..destroyed
        };
        let allowed = |tombstone: &Tombstone| [2, 3, 4].map(|at| tombstone.allows(life(at)));
        assert_eq!(allowed(&destroyed), [false, false, true]);
        assert_eq!(allowed(&removed), [false, true, true]);
        // The group that it was removed from lives on: nobody may be told that it is over.
        assert_eq!(
            (destroyed.over(), removed.over()),
            (Some(life(3)), Some(life(2)))
        );
        assert_eq!(removed.hard_state_for(life(3)).vote, Some(NodeId(2)));
        assert_eq!(removed.hard_state_for(life(4)), HardState::default());
        assert!(destroyed.says_more_than(&removed) && !removed.says_more_than(&destroyed));
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (group, number) in [(0, 0), (7, 0), (7, 1), (u64::MAX - 1, (1 << 24) - 1)] {
            let name = name_of(GroupId(group), life(number));
            assert_eq!(
                parse_name_of(&name),
                Some((GroupId(group), life(number))),
                "{name}"
            );
        }
        for name in [
            "",
            "g",
            "7",
            "g7.0",
            "g07",
            "g7.01",
            "g+7",
            "g7.16777216",
            "g7.",
            "g7.1.2",
        ] {
            assert_eq!(parse_name_of(name), None, "{name}");
        }
    }
}

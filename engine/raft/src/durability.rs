//! Which of a replica's writes are durable, and how much of its log that makes durable. A truncation
//! clips what is pending, so that the completion of an overwritten write never counts for its successor.

use smallvec::SmallVec;

use crate::mutants::{self, Mutant};
use crate::{Index, WriteId};

/// Room that an idle group may keep for its next burst, in pending writes.
const KEPT_PENDING: usize = 16;

/// The durable cursor of one log.
#[derive(Clone, Debug)]
pub(crate) struct Durability {
    /// The last id given out.
    issued: WriteId,
    /// Every write through this id is durable; `through <= issued`.
    through: WriteId,
    /// The last write that promises of every kind wait for: a hard state, or a place that nothing durable stands behind.
    hard_state: WriteId,
    /// The log is durable through this index.
    durable: Index,
    /// Appends not yet durable, by ascending id; `last` ascends too.
    pending: SmallVec<[Pending; 1]>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    id: WriteId,
    last: Index,
}

impl Durability {
    /// Everything through `durable` was read back from the disk.
    pub(crate) fn new(durable: Index) -> Durability {
        Durability {
            issued: WriteId::ZERO,
            through: WriteId::ZERO,
            hard_state: WriteId::ZERO,
            durable,
            pending: SmallVec::new(),
        }
    }

    #[inline]
    pub(crate) const fn durable(&self) -> Index {
        self.durable
    }

    /// Whether term and vote are durable as they stand, and the place at which the log begins.
    #[inline]
    pub(crate) fn has_hard_state(&self) -> bool {
        self.hard_state <= self.through
    }

    /// Whether nothing is on its way to the disk.
    pub(crate) fn is_settled(&self) -> bool {
        self.through == self.issued
    }

    fn issue(&mut self) -> WriteId {
        self.issued = self.issued.next();
        self.issued
    }

    pub(crate) fn hard_state(&mut self) -> WriteId {
        self.hard_state = self.issue();
        self.hard_state
    }

    pub(crate) fn append(&mut self, last: Index) -> WriteId {
        let id = self.issue();
        self.pending.push(Pending { id, last });
        id
    }

    pub(crate) fn truncate(&mut self, from: Index) -> WriteId {
        let kept = from.prev();
        self.durable = self.durable.min(kept);
        if mutants::is_active(Mutant::StaleCompletionCounts) {
            return self.issue();
        }
        for pending in self.pending.iter_mut().rev().take_while(|p| p.last > kept) {
            pending.last = kept;
        }
        self.issue()
    }

    /// The log begins anew behind `index`: what was on its way to the disk counts for nothing. With a durable snapshot
    /// the place is as good as written; without one nothing may be promised before this write is durable.
    pub(crate) fn reset(&mut self, index: Index, has_snapshot: bool) -> WriteId {
        self.pending.clear();
        self.durable = index;
        let id = self.issue();
        if !has_snapshot {
            self.hard_state = id;
        }
        id
    }

    /// Writes through `through` are durable. Returns false when that was known.
    pub(crate) fn complete(&mut self, through: WriteId) -> bool {
        assert!(
            through <= self.issued,
            "write {through} became durable before it was issued"
        );
        if through <= self.through && !mutants::is_active(Mutant::WatermarkFalls) {
            return false;
        }
        self.through = through;
        let done = self.pending.iter().take_while(|p| p.id <= through).count();
        if let Some(newest) = done.checked_sub(1) {
            self.durable = self.durable.max(self.pending[newest].last);
            self.pending.drain(..done);
        }
        if self.pending.is_empty() && self.pending.capacity() > KEPT_PENDING {
            self.pending = SmallVec::new();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_advances_with_the_writes() {
        let mut disk = Durability::new(Index(3));
        let a = disk.append(Index(5));
        let b = disk.append(Index(9));
        assert!(disk.complete(a));
        assert_eq!(disk.durable(), Index(5));
        assert!(!disk.complete(a));
        assert!(disk.complete(b) && disk.is_settled());
        assert_eq!(disk.durable(), Index(9));
    }

    #[test]
    fn an_overwritten_write_does_not_count_for_its_successor() {
        let mut disk = Durability::new(Index(3));
        let old = disk.append(Index(9));
        disk.truncate(Index(5));
        let new = disk.append(Index(9));
        disk.complete(old);
        assert_eq!(disk.durable(), Index(4));
        disk.complete(new);
        assert_eq!(disk.durable(), Index(9));
    }

    #[test]
    fn a_truncation_takes_back_what_was_durable() {
        let mut disk = Durability::new(Index(9));
        let cut = disk.truncate(Index(6));
        assert_eq!(disk.durable(), Index(5));
        disk.complete(cut);
        assert_eq!(disk.durable(), Index(5));
    }

    #[test]
    fn a_hard_state_waits_for_its_own_write() {
        let mut disk = Durability::new(Index(0));
        assert!(disk.has_hard_state());
        let append = disk.append(Index(1));
        let state = disk.hard_state();
        disk.complete(append);
        assert!(!disk.has_hard_state());
        disk.complete(state);
        assert!(disk.has_hard_state());
    }

    #[test]
    fn a_place_without_a_snapshot_holds_every_promise_back() {
        let mut disk = Durability::new(Index(3));
        disk.reset(Index(9), true);
        assert!(disk.has_hard_state());
        let place = disk.reset(Index(20), false);
        assert!(!disk.has_hard_state());
        disk.complete(place);
        assert!(disk.has_hard_state());
        assert_eq!(disk.durable(), Index(20));
    }

    #[test]
    #[should_panic(expected = "before it was issued")]
    fn what_was_not_issued_cannot_be_durable() {
        Durability::new(Index(0)).complete(WriteId(1));
    }
}

//! Reads that see everything that was acknowledged before them (Raft thesis, 6.4): whether this replica may answer for its
//! group now, and what the state machine must have applied first. Who stands by the leader is known outside, per node and
//! not per group; nothing here may take a leader's own word for it.

use crate::group::{Group, Part};
use crate::mutants::{self, Mutant};
use crate::{Index, NodeId, NotLeader, Origin, Outbox, Proposed};

/// Why a replica can't answer reads now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// It does not lead.
    NotLeader {
        /// Who does, as far as known.
        hint: Option<NodeId>,
    },
    /// No entry of its term is committed yet, so it may not know of everything that is.
    NotReady,
    /// It told somebody to campaign in this term, and the voters do not defend it against that until they hold an entry that
    /// came later. A committed [`Event::Barrier`](crate::Event::Barrier) is one, and shows that it still led.
    GivenAway,
    /// Too few voters stand by it.
    Unconfirmed,
}

impl Group {
    /// The index that the state machine must have taken before a read may see it, if this replica leads as far as those
    /// voters know for which `stands` holds.
    ///
    /// `stands` must hold for a node only if that node's replica was bound to this leader (see
    /// [`Group::is_claimed_by`]) at some moment after the read had come, or is bound now.
    ///
    /// # Errors
    /// Says why nothing may be read from here now.
    pub fn read_index(&self, mut stands: impl FnMut(NodeId) -> bool) -> Result<Index, Unreadable> {
        let Part::Leader(leading) = &self.part else {
            return Err(Unreadable::NotLeader { hint: self.leader });
        };
        if self.committed < leading.term_start && !mutants::is_active(Mutant::ReadBeforeTermCommit)
        {
            return Err(Unreadable::NotReady);
        }
        let is_kept = |node| node == self.node || leading.is_kept(node);
        if !self.configuration.has_quorum(is_kept) {
            return Err(Unreadable::GivenAway);
        }
        let is_bound = |node| node == self.node || (leading.is_kept(node) && stands(node));
        if self.configuration.has_quorum(is_bound) || mutants::is_active(Mutant::ReadUnconfirmed) {
            Ok(self.committed)
        } else {
            Err(Unreadable::Unconfirmed)
        }
    }

    /// Appends an entry that stands for nothing.
    pub(crate) fn append_barrier(&mut self, out: &mut Outbox) {
        let outcome = match &self.part {
            Part::Leader(leading) if leading.handover.is_some() => Err(NotLeader { hint: None }),
            Part::Leader(_) => Ok(self.append_own(1, Origin::Noop, out)),
            _ => Err(NotLeader { hint: self.leader }),
        };
        out.proposed.push(Proposed {
            group: self.id,
            outcome,
        });
    }
}

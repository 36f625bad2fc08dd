//! Ids that nodes hold for a creation, so that two creations at a time do not make a group twice.
//! A replica must never begin by a creation for which its node has not held the id ever since it said so.
//!
//! Whoever creates groups asks all nodes at least twice. By its first answer a node holds the ids, under a ticket that it never uses
//! again, and refuses them to every other creation until this one is over, or is taken to be. It answers the second time only if the
//! ticket is still good. So between the two there was a moment at which all who answered both times held the ids for this creation. A
//! Create names the ticket, and is refused if that is not good any more.
//!
//! Of two creations, one had its moment first. A node that begins a group for it held the id at that moment, and until it began. If the
//! other creation has an answer of that node, it got its own ticket there later, and the second answer tells what was begun: it
//! begins nothing with other members. A node that restarts has no tickets and begins nothing under those that it gave, and a creation
//! that was paused for too long finds its tickets no longer good.
//!
//! Tickets end by themselves after a while, so that ids are not held for ever. There a clock decides, and one case is left open: a node
//! that is cut off just as it begins a group of its own creation, for as long as the others hold the ids. They give them to another
//! creation then, which does not hear of what was begun. When the first node is back, its replica gathers the members that it was
//! given, beside the group of the other creation.

use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{GroupId, NodeId, Tick};

use super::super::Shard;
use super::super::outgoing::NODE_LEVEL;
use super::parts::Parts;
use super::{Asker, Purpose, RETRY, TIMEOUT, What};
use crate::error::Error;
use crate::event::{CreateOrigin, CreationId, GroupRanges, Hold, Members, ShardEvent, Ticket};
use crate::wire;

/// For how long ids are held for a creation of which nothing more is heard, in microseconds.
const HELD_FOR: u64 = TIMEOUT;

/// The ids that this node holds for creations.
#[derive(Debug, Default)]
pub(in crate::shard) struct Reservations(Vec<Reservation>);

#[derive(Debug)]
struct Reservation {
    by: NodeId,
    creation: CreationId,
    ticket: Ticket,
    groups: GroupRanges,
    until: Tick,
}

/// A creation, as the node that was asked for it knows it.
#[derive(Debug)]
pub(super) struct Creation {
    pub(super) id: CreationId,
    /// What nodes hold the ids under.
    tickets: Vec<(NodeId, Ticket)>,
    /// Somebody has answered this time who held nothing when all were asked.
    has_fresh: bool,
    /// A group that was held for another creation when this one began again, until this one holds it.
    pub(super) refused: Option<GroupId>,
}

impl Reservations {
    /// Holds groups for a creation until `until`, or looks whether they are still held.
    fn hold(
        &mut self,
        (by, hold): (NodeId, Hold),
        groups: &GroupRanges,
        until: Tick,
        fresh: Ticket,
    ) -> Result<Ticket, Error> {
        let mut all = self.0.iter();
        if let Some(held) = all.find(|held| (held.by, held.creation) == (by, hold.creation)) {
            let is_good = hold.ticket.is_none_or(|ticket| ticket == held.ticket);
            return match is_good {
                true => Ok(held.ticket),
                false => Err(under_way(groups)),
            };
        }
        let is_ignored = mutants::is_active(Mutant::ReservationIgnored);
        if hold.ticket.is_some() && !is_ignored {
            return Err(under_way(groups));
        }
        let other = self.0.iter().find_map(|held| common(&held.groups, groups));
        if let Some(group) = other.filter(|_| !is_ignored) {
            return Err(Error::CreationUnderWay { group });
        }
        self.0.push(Reservation {
            by,
            creation: hold.creation,
            ticket: fresh,
            groups: groups.clone(),
            until,
        });
        Ok(fresh)
    }

    /// Whether a node may create what it reserved here under a ticket.
    fn is_good(&self, by: NodeId, ticket: Option<Ticket>) -> bool {
        let is_it = |held: &Reservation| (held.by, Some(held.ticket)) == (by, ticket);
        self.0.iter().any(is_it) || mutants::is_active(Mutant::ReservationIgnored)
    }

    /// A creation is over.
    fn release(&mut self, by: NodeId, creation: CreationId) {
        self.keep(|held| (held.by, held.creation) != (by, creation));
    }

    /// A node may have been started anew: then it knows nothing of its creations. If it has not, they begin again.
    pub(in crate::shard) fn release_all_of(&mut self, by: NodeId) {
        self.keep(|held| held.by != by);
    }

    /// Nothing more was heard of some creations for long.
    pub(super) fn forget_old(&mut self, now: Tick) {
        self.keep(|held| held.until > now);
    }

    fn keep(&mut self, is_kept: impl Fn(&Reservation) -> bool) {
        self.0.retain(is_kept);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
    }

    /// When the next one ends by itself.
    pub(super) fn ends_at(&self) -> Option<Tick> {
        self.0.iter().map(|held| held.until).min()
    }
}

/// A group that is in both.
fn common(one: &GroupRanges, other: &GroupRanges) -> Option<GroupId> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    while let (Some(left), Some(right)) = (one.peek(), other.peek()) {
        let first = left.start.max(right.start);
        if first < left.end.min(right.end) {
            return Some(GroupId(first));
        }
        match left.end < right.end {
            true => one.next(),
            false => other.next(),
        };
    }
    None
}

/// What is asked about is not held any more.
fn under_way(groups: &GroupRanges) -> Error {
    let group = groups.first().map_or(0, |range| range.start);
    let group = GroupId(group);
    Error::CreationUnderWay { group }
}

impl Creation {
    pub(super) fn new(id: CreationId) -> Self {
        Creation {
            id,
            tickets: Vec::new(),
            has_fresh: false,
            refused: None,
        }
    }

    pub(super) fn ticket_of(&self, node: NodeId) -> Option<Ticket> {
        let mut tickets = self.tickets.iter();
        let of_node = tickets.find(|(of, _)| *of == node);
        of_node.map(|(_, ticket)| *ticket)
    }

    /// A node says that it holds the ids.
    pub(super) fn held(&mut self, node: NodeId, ticket: Option<Ticket>) {
        if self.ticket_of(node).is_none() {
            self.tickets.extend(ticket.map(|ticket| (node, ticket)));
            self.has_fresh = true;
        }
    }

    /// Whether all who answered held the ids at one time. If not, all are asked once more.
    pub(super) fn is_held(&mut self) -> bool {
        let is_held = !std::mem::take(&mut self.has_fresh);
        self.refused.take_if(|_| is_held);
        is_held
    }
}

impl Shard {
    // ---- this node's part ----

    /// Holds groups for the creation of a node, if it asks for that.
    pub(super) fn hold_groups(
        &mut self,
        by: NodeId,
        hold: Option<Hold>,
        groups: &GroupRanges,
    ) -> Result<Option<Ticket>, Error> {
        let Some(hold) = hold else {
            return Ok(None);
        };
        let now = self.now;
        let coordination = &mut self.home().coordination;
        coordination.reservations.forget_old(now);
        let (until, fresh) = (now.after(HELD_FOR), coordination.next_number());
        let held = coordination
            .reservations
            .hold((by, hold), groups, until, fresh);
        held.map(Some)
    }

    /// Whether a node may create groups that it reserved here under a ticket.
    pub(super) fn holds_for(&mut self, by: NodeId, ticket: Option<Ticket>) -> bool {
        let now = self.now;
        let reservations = &mut self.home().coordination.reservations;
        reservations.forget_old(now);
        reservations.is_good(by, ticket)
    }

    /// The creation of a node is over.
    pub(in crate::shard) fn released(&mut self, by: NodeId, creation: CreationId) {
        self.home().coordination.reservations.release(by, creation);
    }

    /// Answers a request of which nothing is done, by way of the inbox like any other.
    pub(super) fn refuse(&mut self, origin: CreateOrigin, error: Error) {
        if self.begin_parts(origin, Parts::of(1)) {
            let result = Err(error);
            self.shared.tell(0, ShardEvent::Created { origin, result });
        }
    }

    // ---- the node that was asked ----

    /// Tells everybody that a creation is over.
    pub(super) fn release_held(&mut self, creation: &Creation) {
        let own = self.shared.node;
        for node in self.all_nodes() {
            if node == own {
                self.released(own, creation.id);
                continue;
            }
            let counters = self.shared.counters.shard(self.index);
            let bytes = wire::RELEASE_BYTES;
            if let Some(frame) = self.outgoing.append(node, NODE_LEVEL, bytes, counters) {
                wire::put_release(frame, creation.id);
            }
        }
    }

    /// Somebody holds groups for another creation than request `at`, or not any more for that one. It begins again a little later, and
    /// hardly at the same time as another one that it met.
    pub(super) fn begin_again(&mut self, at: usize, refused: Option<GroupId>) {
        let (now, asked) = (self.now, self.all_nodes());
        let coordination = &mut self.home().coordination;
        let fresh = coordination.next_number();
        let request = &mut coordination.requests[at];
        let Asker::Creator(_, creation) = &mut request.asker else {
            return;
        };
        let members: Members = match &mut request.what {
            What::Create { members, .. } => std::mem::take(members),
            What::Survey {
                purpose: Purpose::Create(members),
                ..
            } => std::mem::take(members),
            _ => return,
        };
        let begun = Creation {
            refused,
            ..Creation::new(fresh)
        };
        let before = std::mem::replace(creation, begun);
        request.number = fresh.get();
        request.missing.clone_from(&asked);
        request.what = What::Survey {
            asked,
            found: Vec::new(),
            purpose: Purpose::Create(members),
        };
        let spread = fresh.get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        request.retry_at = now.after(RETRY / 4 + spread % RETRY);
        self.release_held(&before);
    }
}

#[cfg(test)]
mod tests;

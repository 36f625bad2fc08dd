//! Everything that can happen to a group. Whatever the core learns, it learns through here.

use crate::{Configuration, Index, LogPosition, MemberChange, Message, NodeId, Term, WriteId};

/// Sizes of logged entries, looked up at the edge that holds the bytes.
pub trait LogExtents {
    /// The longest prefix of `first..end` whose entries take at most `max_bytes`, but at least one entry:
    /// returns the index after it and its bytes. `first < end`, and all of it is in the log.
    fn extent(&self, first: Index, end: Index, max_bytes: u64) -> (Index, u64);
}

/// One thing that happened to a group.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// A caller wants `count` entries appended. Answered by exactly one [`Proposed`](crate::Proposed).
    Propose {
        /// Number of entries; their payloads stay at the edge.
        count: u32,
    },
    /// A leader shall append an empty entry: once that is committed, it led when the event came. Answered by exactly one
    /// [`Proposed`](crate::Proposed).
    Barrier,
    /// A message arrived. Its sender has been authenticated.
    Message {
        /// The sender.
        from: NodeId,
        /// What it said.
        message: Message,
    },
    /// The same for an append among whose entries are some that say who the members are.
    MessageWith {
        /// The sender.
        from: NodeId,
        /// What it said.
        message: Message,
        /// These entries, in their order.
        configurations: &'a [(Index, Configuration)],
    },
    /// Change the members: all of these together, or none. Answered by exactly one
    /// [`MembersChanged`](crate::MembersChanged). Where voters change, the old and the new ones decide together until the
    /// change is committed, and the leader ends that by itself.
    ChangeMembers {
        /// What nodes shall be.
        changes: &'a [MemberChange],
    },
    /// Every write with an id of at most `through` is durable.
    Durable {
        /// The last durable write.
        through: WriteId,
    },
    /// The state machine has taken every entry through this index.
    Applied {
        /// The last applied index.
        through: Index,
    },
    /// The deadline has passed. One that comes early, or without a deadline, is ignored: the caller keeps
    /// the newest [`TimerSet`](crate::TimerSet) armed until its time has come.
    Timer,
    /// Node-level liveness: `by` says that it leads this group at `term`. Acts as its heartbeat, and stands
    /// until [`Event::Unclaimed`] or [`Event::PeerDown`]; after a [`Event::PeerUp`] it must be said again.
    Claimed {
        /// The claiming node.
        by: NodeId,
        /// The term it claims to lead.
        term: Term,
    },
    /// `by` does not claim this group any more.
    Unclaimed {
        /// The node that gave the claim up.
        by: NodeId,
    },
    /// A node fell silent. [`Env::alive`](crate::Env::alive) does not hold it any more.
    PeerDown {
        /// The silent node.
        node: NodeId,
    },
    /// A node is heard again, perhaps after a restart. [`Env::alive`](crate::Env::alive) holds it.
    PeerUp {
        /// The node.
        node: NodeId,
    },
    /// A member's replica has begun anew, without a log. A leader counts nothing that it acknowledged before for it any more.
    BeganAnew {
        /// The node.
        node: NodeId,
    },
    /// Start an election now, with PreVote first.
    Campaign,
    /// Hand the leadership to a voter. Answered by exactly one [`Transfer`](crate::Transfer), within the longest
    /// election timeout; until then, proposals are refused.
    Transfer {
        /// The next leader.
        to: NodeId,
    },
    /// The log's front through this index (at most the applied one) was dropped by the edge.
    Purged {
        /// The last dropped index.
        through: Index,
    },
    /// A snapshot from another node is durable here, bytes, name and all. It has everything through `last`, and nothing that
    /// is not committed. If the log does not have `last`, it begins anew behind it with a
    /// [`WriteKind::Reset`](crate::WriteKind::Reset), and the edge gives the state machine the state.
    Installed {
        /// Who sent it.
        from: NodeId,
        /// The term that it led then.
        term: Term,
        /// The last entry that the snapshot has.
        last: LogPosition,
        /// The members as of that entry.
        configuration: &'a Configuration,
    },
    /// End of a turn: emit the appends for all followers that have room. A leader that took any event in
    /// a turn wants one.
    Flush {
        /// Sizes of the logged entries.
        log: &'a dyn LogExtents,
    },
}

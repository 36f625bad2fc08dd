//! What a step wants done. The shard owns one outbox, hands it through all groups of a turn, dispatches it
//! once and clears it; its vectors keep their room, so a steady state allocates nothing.

use crate::{
    EntryRange, GroupId, HardState, Index, LogPosition, MembersChanged, Message, NodeId, Term,
    Tick, WriteId,
};

/// The effects of one or many steps, in the order in which they arose within each kind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outbox {
    /// Records for the write-ahead log, in log order.
    pub writes: Vec<Write>,
    /// Messages to other nodes. None of them may be held back for a write of the same outbox, and none has
    /// to be: what depends on durability is produced only after it.
    pub sends: Vec<Send>,
    /// Entries for the state machine.
    pub applies: Vec<Apply>,
    /// Answers to proposals, in the order of the proposals.
    pub proposed: Vec<Proposed>,
    /// Changes of deadlines.
    pub timers: Vec<TimerSet>,
    /// Changes of leadership for the node's liveness to announce.
    pub claims: Vec<ClaimChange>,
    /// Followers that need a snapshot.
    pub snapshots: Vec<SnapshotNeeded>,
    /// Ends of handovers.
    pub transfers: Vec<Transfer>,
    /// Answers to changes of members.
    pub changes: Vec<MembersChanged>,
    /// Nodes that ceased to be members.
    pub removed: Vec<Removed>,
}

impl Outbox {
    /// Empties it and keeps the room.
    pub fn clear(&mut self) {
        self.writes.clear();
        self.sends.clear();
        self.applies.clear();
        self.proposed.clear();
        self.timers.clear();
        self.claims.clear();
        self.snapshots.clear();
        self.transfers.clear();
        self.changes.clear();
        self.removed.clear();
    }

    /// Gives back room beyond that for so many items of each kind.
    pub fn shrink_to(&mut self, kept: usize) {
        self.writes.shrink_to(kept);
        self.sends.shrink_to(kept);
        self.applies.shrink_to(kept);
        self.proposed.shrink_to(kept);
        self.timers.shrink_to(kept);
        self.claims.shrink_to(kept);
        self.snapshots.shrink_to(kept);
        self.transfers.shrink_to(kept);
        self.changes.shrink_to(kept);
        self.removed.shrink_to(kept);
    }

    /// Whether nothing wants to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
            && self.sends.is_empty()
            && self.applies.is_empty()
            && self.proposed.is_empty()
            && self.timers.is_empty()
            && self.claims.is_empty()
            && self.snapshots.is_empty()
            && self.transfers.is_empty()
            && self.changes.is_empty()
            && self.removed.is_empty()
    }
}

/// A record to be made durable; [`Event::Durable`](crate::Event::Durable) reports it by its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// The group that writes.
    pub group: GroupId,
    /// Names the write within the group.
    pub id: WriteId,
    /// What to write.
    pub kind: WriteKind,
}

/// What a [`Write`] puts into the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteKind {
    /// Term, vote and commit hint.
    HardState(HardState),
    /// Drop every entry at or after `from`. Never at or below the commit index.
    Truncate {
        /// The first dropped index.
        from: Index,
    },
    /// The log begins anew behind `to`, which a durable snapshot reaches.
    Reset {
        /// The last entry of the snapshot.
        to: LogPosition,
    },
    /// Append entries right after the log's end.
    Append {
        /// Which entries.
        entries: EntryRange,
        /// Where their bytes come from.
        origin: Origin,
    },
}

/// Where the bytes of appended entries come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The [`Event::Propose`](crate::Event::Propose) being stepped.
    Proposed,
    /// The append message being stepped. The range is a suffix of the message's.
    Received,
    /// The core: one entry that says that [`Group::configuration`](crate::Group::configuration), as it is after the step, are
    /// the members.
    Configuration,
    /// Nowhere: the empty entry with which a leader starts its term, or that a
    /// [`Event::Barrier`](crate::Event::Barrier) asked for.
    Noop,
}

/// A message to another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Send {
    /// The group that speaks.
    pub group: GroupId,
    /// The receiving node; never the own one.
    pub to: NodeId,
    /// What is said.
    pub message: Message,
}

/// Entries `first..end` are committed and durable here: apply them. Each index is handed out once, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Apply {
    /// The group.
    pub group: GroupId,
    /// First index to apply.
    pub first: Index,
    /// Index after the last one to apply.
    pub end: Index,
}

/// The answer to one [`Event::Propose`](crate::Event::Propose).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proposed {
    /// The group.
    pub group: GroupId,
    /// The entries' places, or why there are none. A place is not yet a commit.
    pub outcome: Result<EntryRange, NotLeader>,
}

/// A proposal came to a replica that does not lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotLeader {
    /// Who does, as far as known.
    pub hint: Option<NodeId>,
}

/// The group's deadline from now on. It replaces the one before; without one, the old deadline stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerSet {
    /// The group.
    pub group: GroupId,
    /// When to step [`Event::Timer`](crate::Event::Timer), at the earliest.
    pub at: Tick,
}

/// The replica began or ceased to lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClaimChange {
    /// The group.
    pub group: GroupId,
    /// The term it leads, or led.
    pub term: Term,
    /// Whether it leads now.
    pub leads: bool,
}

/// A follower is so far behind that the entries it needs are purged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotNeeded {
    /// The group.
    pub group: GroupId,
    /// The follower.
    pub to: NodeId,
    /// The snapshot must reach at least this place. Asked again at every retry until the follower has
    /// it: an edge that is already sending one ignores the repetition.
    pub base: LogPosition,
}

/// An entry was handed out for applying that makes a node no member, and no later entry of the log makes it one again.
///
/// Told by the leader of every such node, and by every replica of its own node: that one is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Removed {
    /// The group.
    pub group: GroupId,
    /// Who was removed.
    pub node: NodeId,
    /// The place of the entry.
    pub at: Index,
}

/// The answer to one [`Event::Transfer`](crate::Event::Transfer).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// The group.
    pub group: GroupId,
    /// Who was to lead.
    pub to: NodeId,
    /// How it ended.
    pub outcome: TransferOutcome,
}

/// How a handover ended. After anything but [`TransferOutcome::Done`], `SteppedDown` and `NotLeader` the replica
/// leads as before and takes proposals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransferOutcome {
    /// This replica told the target to campaign and does not lead any more, or was itself the target. Who leads the next term
    /// is learnt from its claim: as a rule the target.
    Done,
    /// This replica ceased to lead before it had told the target to campaign: for a higher term, or for want of a quorum.
    SteppedDown,
    /// This replica did not lead.
    NotLeader {
        /// Who does, as far as known.
        hint: Option<NodeId>,
    },
    /// The target does not vote, or is about to leave.
    NotVoter,
    /// The target is a witness, which never leads.
    Witness,
    /// Another handover is under way.
    Busy,
    /// The target's node is silent, or fell silent.
    Silent,
    /// The target was not caught up, or not elected, in time.
    TimedOut,
}

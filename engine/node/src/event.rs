//! Everything that can happen to a shard, as one type: the vocabulary of its inbox.
//! Nothing may reach a shard by another way, so that a node without its edges is a function of its events.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::ops::Range;

use bytes::Bytes;
use polyraft_raft::{GroupId, Index, Life, LogPosition, MemberChange, NodeId, Term, Tick};
use polyraft_storage::{Durable, EntryKind, SnapshotError, SnapshotFile};
use smallvec::SmallVec;

use crate::apply::{ApplyBatch, Held, Unheld};
use crate::completion::{Outcome, ReplyTo};
use crate::error::Error;
use crate::group::Read;
use crate::liveness::Untaken;
use crate::shard::{ChunkTrouble, MergeEvent, SplitEvent, Wanted};
use crate::status::{GroupStatus, Membership};
use crate::wire::{Chunk, Found, SnapshotId};

/// Why a node can't be taken out of the peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PeerNeed {
    /// It is a member of this group.
    pub(crate) group: GroupId,
    /// The replica here is in service. What is left of a damaged log may be old.
    pub(crate) is_running: bool,
}

impl PeerNeed {
    /// Which one to name: rather one that runs, then the lowest group.
    pub(crate) fn rather(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let needs = one.into_iter().chain(other);
        needs.min_by_key(|need| (!need.is_running, need.group))
    }
}

/// What speaks against taking a node out of the peers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Objections {
    pub(crate) need: Option<PeerNeed>,
    /// Other peers that have not confirmed which lives of groups are over, when that matters.
    pub(crate) untold: BTreeSet<NodeId>,
}

impl Objections {
    /// Takes in what another shard objects.
    pub(crate) fn add(&mut self, other: Objections) {
        self.need = PeerNeed::rather(self.need, other.need);
        self.untold.extend(other.untold);
    }
}

pub(crate) type ObjectionsReply = std::sync::mpsc::Sender<Result<Objections, Error>>;

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum ShardEvent {
    /// A caller of this node, or another node's forward, proposes `payload`.
    Propose {
        group: GroupId,
        kind: EntryKind,
        payload: Bytes,
        reply: ReplyTo,
        /// How long it waits is measured.
        is_sample: bool,
    },
    /// A caller of this node reads.
    Read {
        group: GroupId,
        read: Read,
        query: Bytes,
        reply: ReplyTo,
    },
    /// A frame arrived; the shard reads the records of its own groups in it.
    Frame {
        from: NodeId,
        frame: Bytes,
        at: Tick,
    },
    /// The WAL made everything up to a batch durable.
    Durable(Durable),
    /// An apply worker is done with a batch.
    Applied(ApplyBatch),
    /// A worker opened a group's state machine, or could not.
    Opened {
        group: GroupId,
        life: Life,
        applied: Result<Index, String>,
    },
    /// A worker has nothing more of a replica that ended, which had a slot if it was open.
    Ended { group: GroupId, slot: Option<u32> },
    /// The outcome of a proposal that another node forwarded to this one.
    ForwardDone {
        group: GroupId,
        origin: NodeId,
        request: u64,
        outcome: Outcome,
    },
    /// The connection to another node came up, with the incarnation it showed. For the home shard.
    LinkUp { node: NodeId, incarnation: u64 },
    /// The node has another peer.
    PeerAdded { node: NodeId },
    /// A node is no peer any more.
    PeerRemoved { node: NodeId },
    /// Somebody wants to take a node out of the peers: what speaks against that?
    PeerNeeded {
        node: NodeId,
        reply: ObjectionsReply,
    },
    /// The home shard judges another node alive or silent.
    Peer { node: NodeId, alive: bool },
    /// How readily another node should lead.
    Priority { node: NodeId, priority: u8 },
    /// `by` claims (a term) or no longer claims (none) to lead these groups.
    Claims {
        by: NodeId,
        changes: Vec<(GroupId, Option<Reign>)>,
    },
    /// A shard has told its replicas what `by` claims: they are bound to it, except for these. For the home shard.
    ClaimsTaken {
        by: NodeId,
        untaken: Vec<(GroupId, Reign, Untaken)>,
    },
    /// Groups of this node began or ceased to lead, as another shard saw it. For the home shard.
    ClaimsChanged { shard: usize, claims: Vec<Claim> },
    /// A shard has reads that came at `at`, and waits for peers to stand by its claims after that. For the home shard.
    StandingWanted { shard: usize, at: Tick },
    /// A peer stands by claims of this node.
    StandingKnown,
    /// A replica has just been opened; the home shard tells what is claimed of its group.
    ClaimWanted { group: GroupId },
    /// Part of a `create_groups`, on the shard that owns these groups.
    Create {
        origin: CreateOrigin,
        groups: LifeRanges,
        members: Members,
    },
    /// These lives of groups are over; on the shard that owns these groups.
    Destroy {
        origin: CreateOrigin,
        groups: LifeRanges,
        grounds: EndGrounds,
    },
    /// A peer has answered what it was told of ends, if this shard told it.
    EndsTaken { by: NodeId, request: u64 },
    /// Somebody wants to know which lives groups have; on the shard that owns these groups.
    Survey {
        origin: CreateOrigin,
        groups: GroupRanges,
    },
    /// A caller of this node creates groups everywhere. For the home shard.
    CreateEverywhere {
        groups: GroupRanges,
        members: Members,
        reply: CreateReply,
    },
    /// A caller of this node destroys groups everywhere. For the home shard.
    DestroyEverywhere {
        groups: GroupRanges,
        reply: CreateReply,
    },
    /// A shard of this node has durably ended its part of a request. Groups of which a later life goes on are named with it; so are
    /// the members of those whose replicas ended here not long ago, as these knew them last. For the home shard.
    Destroyed {
        origin: CreateOrigin,
        later: LifeRanges,
        former: Vec<Found>,
    },
    /// A shard of this node has durably created its part of a request, or refuses it. Groups that can't begin in the life that
    /// was asked for are named with the first one that they may have. For the home shard.
    Created {
        origin: CreateOrigin,
        result: Result<LifeRanges, Error>,
    },
    /// What a shard of this node knows of groups. For the home shard.
    Surveyed {
        origin: CreateOrigin,
        found: Vec<Found>,
    },
    /// Somebody asks for a snapshot of a group.
    Snapshot {
        group: GroupId,
        reply: SnapshotReply,
    },
    /// A keeper has written a snapshot, or could not.
    Saved {
        group: GroupId,
        life: Life,
        result: Result<SnapshotFile, String>,
    },
    /// A keeper has given a state machine the state of a snapshot, or what it needs beside its own; or could not.
    Restored {
        group: GroupId,
        life: Life,
        result: Result<Held, Unheld>,
    },
    /// A keeper has read a part of a snapshot for a follower.
    ChunkRead { wanted: Wanted, chunk: Chunk },
    /// A keeper has written a part of a snapshot that comes, up to a place, or could not.
    ChunkWritten {
        group: GroupId,
        number: u64,
        result: Result<u64, ChunkTrouble>,
    },
    /// A snapshot that came is durable, or is not what it should be.
    Arrived {
        group: GroupId,
        number: u64,
        result: Result<SnapshotFile, SnapshotError>,
    },
    /// A keeper has looked at a snapshot that a follower found damaged, or could not read a part that one asked for.
    Looked {
        group: GroupId,
        id: SnapshotId,
        result: Result<(), String>,
    },
    /// Somebody wants `to` to lead a group.
    TransferLeadership {
        group: GroupId,
        to: NodeId,
        reply: TransferReply,
    },
    /// Somebody wants this node to lead nothing, within so many microseconds.
    Drain { within: u64, reply: DrainReply },
    /// Somebody wants other members in a group, within so many microseconds.
    ChangeMembers {
        group: GroupId,
        changes: Vec<MemberChange>,
        within: u64,
        reply: MembersReply,
    },
    /// About a group that is split.
    Split(SplitEvent),
    /// About a group that is merged into another.
    Merge(MergeEvent),
    /// Somebody asks for a group's status.
    GroupStatus { group: GroupId, reply: StatusReply },
    /// The WAL wants a checkpoint or relocation work from every shard.
    Maintain,
    /// The WAL has stopped for good, or another part that the node can't do without.
    WalFailed(String),
    /// Finish: answer everything, then leave the loop.
    Shutdown,
}

impl ShardEvent {
    /// Whether a shard that lets events gather takes this one at once, and what has gathered with it.
    pub(crate) fn is_pressing(&self) -> bool {
        matches!(self, Self::Durable(_) | Self::WalFailed(_) | Self::Shutdown)
    }
}

/// A group that this node began (`leads`) or ceased to lead, and the nodes to tell.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) group: GroupId,
    pub(crate) life: Life,
    pub(crate) term: Option<Term>,
    pub(crate) members: Members,
}

/// When a node leads a group: in a life of the group's id, at a term. A later life comes behind all terms of an earlier one.
/// A node keeps one for each group that it leads and for each that it hears of: without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(Rust, packed(4))]
pub(crate) struct Reign {
    pub(crate) life: Life,
    pub(crate) term: Term,
}

/// The voters that a group is created with, sorted.
pub(crate) type Members = SmallVec<[NodeId; 4]>;

/// Group ids as half-open ranges, sorted and disjoint.
pub(crate) type GroupRanges = Vec<Range<u64>>;

/// The same, each range in a life of its ids.
pub(crate) type LifeRanges = Vec<(Range<u64>, Life)>;

/// Why a life is known to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndGrounds {
    /// All nodes were asked which lives there are, and the newest one is to end.
    Survey,
    /// A peer keeps that it is over.
    Word,
}

/// Names a creation, together with the node that coordinates it.
pub(crate) type CreationId = NonZeroU64;

/// Under what a node holds ids for a creation. It never uses one again.
pub(crate) type Ticket = NonZeroU64;

/// Whoever asks which lives groups have wants to create them: they are to be held for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) creation: CreationId,
    /// They are held under this one already, or were.
    pub(crate) ticket: Option<Ticket>,
}

/// Who waits for a creation: a request number of the node that coordinates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CreateOrigin {
    pub(crate) node: NodeId,
    pub(crate) request: u64,
}

pub(crate) type CreateReply = tokio::sync::oneshot::Sender<Result<(), Error>>;
pub(crate) type SnapshotReply = tokio::sync::oneshot::Sender<Result<LogPosition, Error>>;
pub(crate) type TransferReply = tokio::sync::oneshot::Sender<Result<(), Error>>;
pub(crate) type DrainReply = tokio::sync::oneshot::Sender<Result<u64, Error>>;
pub(crate) type MembersReply = tokio::sync::oneshot::Sender<Result<Membership, Error>>;
pub(crate) type StatusReply = tokio::sync::oneshot::Sender<Result<GroupStatus, Error>>;

/// Packs ids, which are in order, with their lives into ranges.
pub(crate) fn life_ranges(groups: impl IntoIterator<Item = (u64, Life)>) -> LifeRanges {
    let mut ranges = LifeRanges::new();
    for (id, life) in groups {
        match ranges.last_mut() {
            Some((range, known)) if range.end == id && *known == life => range.end = id + 1,
            _ => ranges.push((id..id + 1, life)),
        }
    }
    ranges
}

/// Packs ids into sorted, disjoint ranges.
pub(crate) fn ranges(ids: impl IntoIterator<Item = u64>) -> GroupRanges {
    let mut ids: Vec<u64> = ids.into_iter().collect();
    ids.sort_unstable();
    ids.dedup();
    let mut ranges: GroupRanges = Vec::new();
    for id in ids {
        match ranges.last_mut() {
            Some(range) if range.end == id => range.end = id + 1,
            _ => ranges.push(id..id + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_sorted_disjoint_ranges() {
        assert_eq!(ranges([5, 1, 2, 2, 3, 9]), vec![1..4, 5..6, 9..10]);
        assert!(ranges([]).is_empty());
    }
}

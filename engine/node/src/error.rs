//! What can go wrong, said so that a caller knows what to do next.
//! It must never hide whether a proposal may have been committed.

use std::path::PathBuf;

use polyraft_raft::{GroupId, NodeId};
use polyraft_storage::StorageError;
use polyraft_transport::TransportError;

use crate::config::ConfigError;
use crate::sessions::SessionId;

/// Why an operation on a running node did not succeed.
///
/// [`Error::is_retryable`] says whether the same request may simply be sent again, and
/// [`Error::may_have_committed`] whether a proposal's outcome is open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No leader took the proposal: it is in nobody's log and never will be. Retry it, at `hint` if given.
    #[error("group has no reachable leader{}; nothing was accepted, retry", hint.map(|n| format!(" here (node {n} may lead)")).unwrap_or_default())]
    NotLeader {
        /// The node that was last known to lead the group.
        hint: Option<NodeId>,
    },
    /// A byte bound is reached; the proposal was refused before it entered any log. Retry after a pause.
    #[error("{what} is full ({limit} bytes); the proposal was not accepted, retry after a pause")]
    Busy {
        /// The bound that was hit, by its configuration key.
        what: &'static str,
        /// The bound, in bytes.
        limit: u64,
    },
    /// The proposal, or the change of members, entered a log, but this node can't tell whether it commits. Trying a proposal again
    /// may apply it twice.
    #[error("the outcome is unknown: {why}; it may have been committed")]
    Unknown {
        /// What was lost on the way.
        why: &'static str,
    },
    /// The group or the whole node has stopped to protect its data. Retrying here is of no use.
    #[error("stopped to protect its data: {reason}")]
    Fault {
        /// What happened and what an operator should do.
        reason: String,
    },
    /// This node hosts no replica of the group. Create it first, or ask a member.
    #[error(
        "this node hosts no replica of group {group}; create the group or ask one of its members"
    )]
    NoSuchGroup {
        /// The group asked for.
        group: GroupId,
    },
    /// The group exists with other members than those given.
    #[error("group {group} exists already, {}", with_members(members))]
    GroupExists {
        /// The group in question.
        group: GroupId,
        /// Its members. None, if it lives on nodes that none of those asked knows: they were removed from it, or one of them is
        /// about to come back without a damaged log. Try again then.
        members: Vec<NodeId>,
    },
    /// The member list can't form a group.
    #[error("bad member list: {why}")]
    BadMembers {
        /// What is wrong with it.
        why: String,
    },
    /// Not enough members answered in time; the groups may exist on some of them. Calling again is safe.
    #[error(
        "{} have not created the groups in time; call create_groups again",
        names(missing)
    )]
    CreateTimeout {
        /// The members that have not answered.
        missing: Vec<NodeId>,
    },
    /// Another call of `create_groups`, here or on another node, was creating a group of this one all the time, or not long ago on a node
    /// that is gone. What was to be created with the group it names was not begun by this call, unless an earlier attempt of it was
    /// interrupted. Calling again is safe.
    #[error("group {group} is being created by another call; call create_groups again")]
    CreationUnderWay {
        /// The group in question.
        group: GroupId,
    },
    /// Not enough nodes have ended their replicas in time. Those that did tell the others, so the groups may be over later, or
    /// live on if nobody has. Calling again is safe.
    #[error(
        "{} have not ended the groups in time; call destroy_groups again",
        names(missing)
    )]
    DestroyTimeout {
        /// The nodes that have not answered, and members that are no peers of this node.
        missing: Vec<NodeId>,
    },
    /// The group was destroyed, and is there with the members given, as not all of its nodes have heard of that. It was not begun
    /// anew; others of the same call may exist. Its nodes hear of it by themselves: try again then, or call `destroy_groups` first.
    #[error(
        "group {group} was destroyed, but not all of its nodes have ended it yet; try again, or call destroy_groups first"
    )]
    Ending {
        /// The group in question.
        group: GroupId,
    },
    /// A group can't be destroyed now, because another one that is not to be destroyed with it would be lost or stay frozen. None of
    /// the groups of this call was destroyed; of a call about more than 8,192, the others may be. Try again later, or destroy the other one
    /// first or in the same call. Or an id can't be used again yet, because a group that was to be merged into the one that had it is frozen.
    #[error("group {group} can't be destroyed, or begun anew, yet: group {by} {why}")]
    Needed {
        /// The group that was to be destroyed, or whose id was to be used again.
        group: GroupId,
        /// The group that needs it: one that is being merged into it, or one that was split off it just now.
        by: GroupId,
        /// What it needs it for, and what to do.
        why: &'static str,
    },
    /// The payload is larger than `batch.max_proposal_bytes`.
    #[error("a proposal of {bytes} bytes is over batch.max_proposal_bytes = {limit}")]
    TooLarge {
        /// The payload's size.
        bytes: usize,
        /// The configured bound.
        limit: usize,
    },
    /// The leadership was not handed over. Unless the leader stepped down meanwhile it goes on; try again, perhaps with another member.
    #[error("node {to} was not made the leader: {why}")]
    Transfer {
        /// Who was to lead.
        to: NodeId,
        /// What was in the way.
        why: &'static str,
    },
    /// The peers of this node were not changed.
    #[error("node {node} as a peer: {why}; nothing was changed")]
    Peer {
        /// The peer in question.
        node: NodeId,
        /// What is in the way.
        why: String,
    },
    /// The members of the group were not changed, and won't be by this call. Nodes that were to vote may have become learners.
    #[error("the members were not changed: {why}")]
    Members {
        /// What was in the way, and what became of it.
        why: String,
    },
    /// Another caller changes the members of the group already, so nothing was begun. Ask again after that.
    #[error(
        "the members of group {group} are being changed already; nothing was begun, ask again after that"
    )]
    ChangeUnderWay {
        /// The group in question.
        group: GroupId,
    },
    /// The group was not split. It goes on as before.
    #[error("the group was not split: {why}")]
    Split {
        /// What was in the way.
        why: String,
    },
    /// The group was not merged into another one. It goes on as before.
    #[error("the group was not merged: {why}")]
    Merge {
        /// What was in the way.
        why: String,
    },
    /// The group is being merged into another one, or was. Nothing was taken or read. Ask that one; or this one again, as the
    /// merge may come to nothing.
    #[error(
        "the group is being merged into group {into}, or is a part of it; nothing was taken, ask that one"
    )]
    Merging {
        /// The group that has, or is about to have, what this one had.
        into: GroupId,
    },
    /// No quorum confirmed in time that somebody leads the group, so a read could have missed something. Nothing was read;
    /// reading again is safe.
    #[error("no quorum confirmed the leader in time; nothing was read, retry")]
    Unconfirmed,
    /// This node's replica is a witness: it has no state to read. Ask another member, `hint` if given.
    #[error("this node's replica is a witness and has no state{}; ask another member", hint.map(|n| format!(" (node {n} may lead)")).unwrap_or_default())]
    Witness {
        /// The node that was last known to lead the group.
        hint: Option<NodeId>,
    },
    /// The state machine refused a query.
    #[error("the state machine refused the query: {0}")]
    Query(String),
    /// The state machine of this replica is being rebuilt from a snapshot. Ask again later, or another member.
    #[error("group {group} is being restored from a snapshot on this node; ask again later")]
    Restoring {
        /// The group in question.
        group: GroupId,
    },
    /// No snapshot was taken. The group goes on, and its log is complete.
    #[error("no snapshot was taken: {why}")]
    Snapshot {
        /// What was in the way.
        why: String,
    },
    /// The group does not know the session: it was closed, or newer ones took its place. This attempt was not taken, but what
    /// was under way in the session may or may not have been applied. Open another session.
    #[error(
        "the group does not know session {session}, or not any more; whether what was under way in it was applied is not known"
    )]
    SessionExpired {
        /// The session.
        session: SessionId,
    },
    /// The proposal was applied before, and its reply is not kept any more, or was too long to be kept.
    #[error("the proposal was applied before, but its reply is not kept")]
    ReplyNotKept,
    /// The number is not one that the session takes now: the client has said that it waits for nothing before `lowest`, or the
    /// window of numbers from there on ends before it. This attempt was not taken.
    #[error(
        "the session does not take proposal {sequence}: it waits for {lowest} and those behind it"
    )]
    ProposalNumber {
        /// The proposal's number.
        sequence: u64,
        /// The lowest number that the session takes.
        lowest: u64,
    },
    /// The node has been shut down.
    #[error("the node is shut down")]
    Closed,
}

impl Error {
    /// Whether sending the same request again is both safe (it was not accepted) and worth trying.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::NotLeader { .. }
                | Error::Busy { .. }
                | Error::CreateTimeout { .. }
                | Error::CreationUnderWay { .. }
                | Error::DestroyTimeout { .. }
                | Error::Ending { .. }
                | Error::Needed { .. }
                | Error::ChangeUnderWay { .. }
                | Error::Restoring { .. }
                | Error::Unconfirmed
        ) || matches!(self, Error::ProposalNumber { sequence, lowest } if sequence > lowest)
    }

    /// Whether the proposal may have been, or may yet be, committed and applied.
    pub fn may_have_committed(&self) -> bool {
        matches!(
            self,
            Error::Unknown { .. }
                | Error::Closed
                | Error::Fault { .. }
                | Error::SessionExpired { .. }
                | Error::ReplyNotKept
        ) || matches!(self, Error::ProposalNumber { sequence, lowest } if sequence < lowest)
    }
}

/// Why a node could not be opened. Nothing on disk has been changed that a corrected call could not reopen.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The builder lacks something or was given something impossible.
    #[error("cannot open the node: {0}")]
    Builder(String),
    /// The configuration is out of bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory can't be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The network side can't start.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A thread or another resource of the system could not be had.
    #[error("cannot start {what}: {source}")]
    System {
        /// What was being started.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// An error of a state machine. The group it belongs to is quarantined: it stops applying, other groups go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// An input or output failed.
    #[error("state machine I/O at {path}: {source}")]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Anything else the state machine has to say.
    #[error("{0}")]
    Other(String),
}

fn with_members(members: &[NodeId]) -> String {
    match members {
        [] => {
            "on nodes that none of those asked knows; call again when more of them run".to_owned()
        }
        members => format!("with members {}", names(members)),
    }
}

pub(crate) fn names<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    let names: Vec<_> = nodes.into_iter().map(NodeId::to_string).collect();
    names.join(", ")
}

impl From<std::io::Error> for MachineError {
    fn from(source: std::io::Error) -> Self {
        MachineError::Io {
            path: PathBuf::new(),
            source,
        }
    }
}

impl From<String> for MachineError {
    fn from(message: String) -> Self {
        MachineError::Other(message)
    }
}

impl From<&str> for MachineError {
    fn from(message: &str) -> Self {
        MachineError::Other(message.to_owned())
    }
}

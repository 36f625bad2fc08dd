//! Polyraft: thousands of Raft groups that share, per node, one write-ahead log, one QUIC connection to each peer and
//! a few threads.
//!
//! This crate owns the runtime: shards and their turns, node-pair liveness, dispatch, apply workers and the public
//! API. It must never reach into a group's consensus state except through the core's one verb, `step`.
//!
//! Open a [`Node`] with a [`StateMachine`], create groups, and propose through a [`GroupHandle`].

mod apply;
mod assembly;
mod clock;
mod completion;
pub mod config;
mod directory;
mod error;
mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod group;
mod keeper;
mod liveness;
mod lost_quorum;
mod machine;
mod mailbox;
mod merge;
mod metrics;
mod node;
mod pace;
mod pulse;
mod router;
mod sessions;
mod shard;
#[cfg(feature = "sim")]
pub mod sim;
mod snapshots;
mod split;
mod status;
mod trace;
mod trust;
mod wheel;
mod wire;

pub use polyraft_raft::{GroupId, Index, Life, LogPosition, MemberChange, NodeId, Role, Term};
pub use polyraft_storage::{Disk, Histogram, SnapshotError, WalStats};
pub use polyraft_transport::{NetworkStats, Tls};

pub use crate::completion::{Committed, Completion, CompletionQueue};
pub use crate::config::Config;
pub use crate::error::{Error, MachineError, OpenError};
pub use crate::group::{GroupHandle, Read};
pub use crate::lost_quorum::{
    GivenDirectory, Recovered, RecoveryError, RecoveryPlan, RefusedGroup, SurvivingGroup,
    SurvivingReplica, TERM_STEP, apply_recovery, plan_recovery,
};
pub use crate::machine::{Entry, FrozenState, Merge, Replies, Split, StateMachine};
pub use crate::node::{Node, NodeBuilder};
pub use crate::sessions::{ProposalNumber, SESSION_WINDOW, Session, SessionId};
pub use crate::snapshots::{
    NodePlace, SnapshotInfo, export_snapshot, snapshots_in, verify_snapshot,
};
pub use crate::status::{Counters, GroupStatus, Histograms, Membership, NodeStatus, PeerStatus};
pub use crate::trace::ProposalTrace;

/// The README's example is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

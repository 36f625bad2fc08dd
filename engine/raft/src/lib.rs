//! The pure Raft core of Polyraft: terms, indexes, votes and progress.
//!
//! One [`Group`] is one replica of one Raft group. It is a state machine with a single verb,
//! [`Group::step`]: an [`Event`] goes in, effects come out in an [`Outbox`]. It reads no clock, owns no
//! payload, touches no socket, file or thread, and draws its randomness from a seed it is given; the
//! same events therefore always lead to the same effects.
//!
//! What needs durability cannot leave early: a vote or an acknowledgement is produced only by the
//! [`Event::Durable`] that covers it.
//!
//! ```
//! use polyraft_raft::*;
//!
//! let settings = Settings::default();
//! let alive = NodeSet::new(NodeId(1));
//! let mut out = Outbox::default();
//! let restored = Restored::empty(Configuration::simple([NodeId(1)]));
//! let env = Env { now: Tick(0), settings: &settings, alive: &alive };
//! let mut group = Group::new(GroupId(7), NodeId(1), 42, &env, restored, &mut out);
//!
//! // A single voter elects itself as soon as its own vote is durable.
//! group.step(&env, Event::Campaign, &mut out);
//! let vote = out.writes[0].id;
//! assert_eq!(group.role(), Role::Candidate);
//! out.clear();
//! group.step(&env, Event::Durable { through: vote }, &mut out);
//! assert_eq!(group.role(), Role::Leader);
//! ```

mod configuration;
mod durability;
mod election;
mod event;
mod follower;
mod group;
mod ids;
mod inflight;
mod leader;
mod log;
mod membership;
mod message;
#[doc(hidden)]
pub mod mutants;
mod node_set;
mod outbox;
mod position;
mod progress;
mod reads;
mod rng;
mod settings;
mod snapshot;
mod transfer;

pub use configuration::Configuration;
pub use event::{Event, LogExtents};
pub use group::{Counters, Group, Restored, Role};
pub use ids::{GroupId, Index, Life, NodeId, Term, Tick, WriteId, shard_of};
pub use inflight::Inflight;
pub use leader::Leading;
pub use membership::{ChangeRefused, MemberChange, MembersChanged, votes_again_at};
pub use message::Message;
pub use node_set::NodeSet;
pub use outbox::{
    Apply, ClaimChange, NotLeader, Origin, Outbox, Proposed, Removed, Send, SnapshotNeeded,
    TimerSet, Transfer, TransferOutcome, Write, WriteKind,
};
pub use position::{EntryRange, HardState, LogPosition, TermRun};
pub use progress::{Progress, ProgressState};
pub use reads::Unreadable;
pub use settings::{Env, Settings};

//! What the core is told from outside: the tunable limits, and the surroundings of one step.

use crate::{NodeSet, Tick};

/// Timing and window limits. All times are in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Shortest election timeout. Default 150 ms.
    pub election_timeout_min: u64,
    /// Longest election timeout. Default 300 ms.
    pub election_timeout_max: u64,
    /// How long a leader waits for an answer before it sends again. Default 100 ms.
    pub retry_interval: u64,
    /// How long the news of a commit may wait for an append to ride on before it travels alone. Default 20 ms.
    pub commit_notice_interval: u64,
    /// Most entries in one append. Default 4096.
    pub max_append_entries: u32,
    /// Most bytes in one append, unless a single entry is larger. Default 1 MiB.
    pub max_append_bytes: u64,
    /// Deepest pipeline towards one follower, in appends. The depth in use adapts below this, and below 65,536. Default 256.
    pub inflight_messages: u32,
    /// Most unacknowledged entries towards one follower. Default 65,536.
    pub inflight_entries: u64,
    /// Most unacknowledged bytes towards one follower; above 2 GiB as if it were that. Default 16 MiB.
    pub inflight_bytes: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            election_timeout_min: 150_000,
            election_timeout_max: 300_000,
            retry_interval: 100_000,
            commit_notice_interval: 20_000,
            max_append_entries: 4096,
            max_append_bytes: 1 << 20,
            inflight_messages: 256,
            inflight_entries: 65_536,
            inflight_bytes: 16 << 20,
        }
    }
}

/// The surroundings of one step, shared by all groups of a shard.
#[derive(Clone, Copy, Debug)]
pub struct Env<'a> {
    /// The time of this step.
    pub now: Tick,
    /// Limits; the same object for every step, or changed between steps by an operator.
    pub settings: &'a Settings,
    /// The nodes believed to be alive. This node always is.
    pub alive: &'a NodeSet,
}

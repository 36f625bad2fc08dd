//! What a load looks like, apart from any engine: when operations arrive, which groups they go to, how large they are.
//! Everything here is a pure function of its arguments and a seed; nothing reads a clock.

mod alias;
mod arrivals;
mod keys;
mod rng;
mod sizes;

pub use arrivals::{Arrivals, Schedule};
pub use keys::{KeyPicker, Keys};
pub use rng::Rng;
pub use sizes::{SizePicker, Sizes};

use serde::Serialize;

/// How operations come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// A closed loop: so many operations are in flight at any time; each answer makes room for the next one.
    Inflight(u64),
    /// An open loop: operations come at `per_second`, whether the earlier ones were answered or not.
    Rate {
        /// Operations a second, all threads together.
        per_second: f64,
        /// How they are spread over the second.
        arrivals: Arrivals,
    },
}

/// How a read is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ReadMode {
    /// The state of the replica asked, all nodes in turn.
    Stale,
    /// At the leader, after a quorum has stood by it.
    Linearizable,
    /// At the leader, while its lease holds.
    Lease,
}

/// A load, completely described.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workload {
    /// How operations come.
    pub pace: Pace,
    /// Sizes of proposals.
    pub payload: Sizes,
    /// Which groups operations go to.
    pub keys: Keys,
    /// Groups that get load: `0..active_groups`.
    pub active_groups: u64,
    /// Share of reads among the operations, 0 to 1.
    pub reads: f64,
    /// How they are done.
    pub read_mode: ReadMode,
    /// Threads of the generator.
    pub threads: usize,
    /// Start of all random choices.
    pub seed: u64,
}

//! The node's configuration: one value, from TOML or from code, checked as a whole.
//!
//! This module owns the keys, their defaults and their limits. It must never read an environment
//! variable, guess a value that the user misspelt, or let a value out of its range reach the engine.
//!
//! `docs/configuration.md` lists every key; a test keeps that list equal to this code.

mod check;
mod error;
mod keys;
mod sections;
mod units;

#[cfg(test)]
mod tests;

use std::{num::NonZeroUsize, path::Path, thread};

use serde::{Deserialize, Serialize};

pub use bytesize::ByteSize;
pub use error::ConfigError;
pub use sections::{
    Apply, Batch, Election, Liveness, Metrics, Replication, Shards, Snapshot, Trace, Transport,
    Wal, WalMode,
};

/// How readily a node leads that says nothing about it.
pub(crate) const USUAL_PRIORITY: u8 = 100;

/// Everything about a node that can be tuned. What a node *is* (its id, its peers, its directory)
/// is given to its builder instead.
///
/// All keys take effect when the node is opened; none is reloaded while it runs.
///
/// ```
/// use polyraft::Config;
///
/// let config = Config::from_toml_str(
///     r#"
///     [shards]
///     count = 2
///
///     [wal]
///     mode = "mapped"
///     segment_bytes = "128MiB"
///     "#,
/// )?;
/// assert_eq!(config.shards.count, 2);
/// // What the file leaves out has its default.
/// assert_eq!(config.replication, Config::default().replication);
///
/// let error = Config::from_toml_str("[wal]\nsegment_byte = '1MiB'").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "unknown configuration key `wal.segment_byte`; did you mean `wal.segment_bytes`?"
/// );
/// # Ok::<(), polyraft::config::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// When a group without a leader elects one.
    pub election: Election,
    /// The beats that nodes exchange, whatever the number of groups.
    pub liveness: Liveness,
    /// How a leader sends its log to a follower.
    pub replication: Replication,
    /// What one turn of a shard takes in.
    pub batch: Batch,
    /// The threads that own the groups, and what they queue.
    pub shards: Shards,
    /// The threads that run the state machines.
    pub apply: Apply,
    /// The write-ahead log.
    pub wal: Wal,
    /// Snapshots of state machines, and the log that is kept behind them.
    pub snapshot: Snapshot,
    /// The connections to the other nodes.
    pub transport: Transport,
    /// What is recorded of single proposals.
    pub trace: Trace,
    /// What the node shows of itself.
    pub metrics: Metrics,
}

impl Config {
    /// Reads a configuration from TOML text. A key that is left out has its default.
    ///
    /// # Errors
    /// Text that is not TOML, an unknown key (the error names the nearest known one), a value
    /// without its unit or out of its range, or keys that contradict each other.
    pub fn from_toml_str(text: &str) -> Result<Config, ConfigError> {
        let table: toml::Table = text.parse()?;
        check::unknown_keys(&table)?;
        check::values(&table)?;
        let config: Config = table.try_into()?;
        check::across(&config)?;
        Ok(config)
    }

    /// Reads a configuration from a TOML file; see [`Config::from_toml_str`].
    ///
    /// # Errors
    /// Those of [`Config::from_toml_str`], and a file that cannot be read.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        Config::from_toml_str(&text)
    }

    /// Checks each value against its range, and the keys against each other. A node checks its
    /// configuration when it is opened, so a value set in code gets the same errors as a file.
    ///
    /// # Errors
    /// The first value that is out of its range or contradicts another key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check::values(&self.to_table())?;
        check::across(self)
    }

    /// The whole configuration as TOML, every key included. Reading it back gives an equal value.
    pub fn to_toml_string(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    /// How many shards a node opened with this configuration has: `shards.count`, or, where that
    /// is 0, one per four cores in a multiple of `wal.lanes`, at least one per lane.
    pub fn shard_count(&self) -> usize {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.shard_count_on(cores)
    }

    fn shard_count_on(&self, cores: usize) -> usize {
        let lanes = self.wal.lanes.max(1) as usize;
        match self.shards.count as usize {
            0 => (cores / 4 / lanes).max(1) * lanes,
            count => count,
        }
    }

    fn to_table(&self) -> toml::Table {
        toml::Table::try_from(self).expect("every field has a TOML form")
    }
}

//! The write-ahead log that all Raft groups of a node share, and the identity of the node's data directory.
//!
//! This crate owns bytes on disk and their durability. It must never know what a leader is, talk to a peer, or decide what to
//! write: it is told ranges, hard states and blocks, and reports what became durable.
//!
//! - [`EntryBlock`]: entries encoded once, for disk, wire and memory.
//! - [`Blocks`]: what was read back from a log.
//! - [`DataDir`]: identity, lock, memory of peers.
//! - [`SnapshotStore`]: the snapshot files of all groups; [`exported`]: those outside of a data directory.
//! - [`Survey`]: a look at all replicas in a data directory that no node has open.
//! - [`open`]: recovery; gives one [`ShardLog`] per shard and one [`Wal`] per lane.
//!
//! `docs/wal-format.md` has the byte maps and the recovery rules.

mod addresses;
mod batch;
mod block;
mod blocks;
mod checkpoint;
mod damage;
mod data_dir;
mod disk;
mod error;
pub mod exported;
mod file_segment;
mod format;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod group;
mod histogram;
mod index;
pub mod inspect;
mod lane;
mod maintenance;
mod mapping;
#[cfg(all(test, polyraft_shuttle))]
mod models;
mod numbers;
mod options;
mod peers;
mod places;
mod pool;
mod prefetch;
mod recovery;
mod replay;
mod room;
mod shard;
pub mod sim;
mod snapshot;
mod stats;
mod survey;
mod sync;
mod table;
mod tail;
mod tombstone;
mod upkeep;
mod usual;
mod wal;

pub use addresses::AddressChange;
pub use batch::Lsn;
pub use block::{BLOCK_HEADER_BYTES, EntryBlock, EntryKind, pack, pack_hollow};
pub use blocks::Blocks;
pub use damage::Lost;
pub use data_dir::{DataDir, MAX_SHOWN, PeerSeen, StoreId};
pub use disk::{Disk, FileDisk, SegmentFile, SegmentSpec};
pub use error::{BlockError, ReadError, StorageError};
pub use exported::ImportError;
pub use format::block_configurations;
pub use group::{Creation, RecoveredGroup};
pub use histogram::{Histogram, Recorder};
pub use lane::{Durable, WalObserver};
pub use numbers::GroupNumbers;
pub use options::{WalMode, WalOptions};
pub use prefetch::{PREFETCH_AHEAD, PREFETCH_SOON, prefetch};
pub use recovery::{RecoveryReport, Rot, TornTail};
pub use shard::ShardLog;
pub use snapshot::{SnapshotError, SnapshotFile, SnapshotMeta, SnapshotReader, SnapshotStore};
pub use stats::WalStats;
pub use survey::{MERGE_HEAD_BYTES, Survey, SurveyedReplica};
pub use table::GroupTable;
pub use tombstone::{Ending, Tombstone, name_of, parse_name_of};
pub use usual::Usual;
pub use wal::{Opened, Wal, WalThreads, open};

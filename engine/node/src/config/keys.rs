//! Every key with the values it allows: the one place where a limit is written as code.
//!
//! It must never hold a default; those belong to the sections.

use std::{fmt, time::Duration};

use bytesize::ByteSize;

use super::units;

/// One key of the configuration.
pub(super) struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub allowed: Allowed,
}

/// The values that a key accepts, both ends included.
#[derive(Clone, Copy)]
pub(super) enum Allowed {
    Duration(Duration, Duration),
    Size(ByteSize, ByteSize),
    Count(i64, i64),
    Bool,
    /// A socket address, or nothing.
    Address,
    OneOf(&'static [&'static str]),
}

impl Key {
    const fn new(section: &'static str, name: &'static str, allowed: Allowed) -> Key {
        Key {
            section,
            name,
            allowed,
        }
    }

    /// The full path, such as `wal.segment_bytes`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

/// Reads as it stands in the documentation: "`1ms` to `10s`".
impl fmt::Display for Allowed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Allowed::Duration(min, max) => {
                let [min, max] = [min, max].map(|end| units::duration_text(*end));
                write!(out, "`{min}` to `{max}`")
            }
            Allowed::Size(min, max) => {
                let [min, max] = [min, max].map(|end| units::size_text(*end));
                write!(out, "`{min}` to `{max}`")
            }
            Allowed::Count(min, max) => write!(out, "`{min}` to `{max}`"),
            Allowed::Bool => write!(out, "`true` or `false`"),
            Allowed::Address => write!(out, "an address such as `\"127.0.0.1:9464\"`, or `\"\"`"),
            Allowed::OneOf(names) => write!(out, "`\"{}\"`", names.join("\"` or `\"")),
        }
    }
}

const fn micros(min: u64, max: u64) -> Allowed {
    Allowed::Duration(Duration::from_micros(min), Duration::from_micros(max))
}

const fn millis(min: u64, max: u64) -> Allowed {
    Allowed::Duration(Duration::from_millis(min), Duration::from_millis(max))
}

const fn size(min: ByteSize, max: ByteSize) -> Allowed {
    Allowed::Size(min, max)
}

const KIB: ByteSize = ByteSize::kib(1);
const MIB: ByteSize = ByteSize::mib(1);
const GIB: ByteSize = ByteSize::gib(1);

/// In the order of the sections and their fields.
pub(super) const KEYS: &[Key] = &[
    Key::new("election", "timeout_min", millis(10, 60_000)),
    Key::new("election", "timeout_max", millis(10, 60_000)),
    Key::new("election", "rebalance_delay", micros(0, 3_600_000_000)),
    Key::new("election", "priority", Allowed::Count(0, 100)),
    Key::new("liveness", "beat_interval", millis(1, 10_000)),
    Key::new("liveness", "clock_drift_ppm", Allowed::Count(0, 500_000)),
    Key::new(
        "replication",
        "max_append_bytes",
        size(ByteSize::kib(4), ByteSize::mib(64)),
    ),
    Key::new(
        "replication",
        "max_append_entries",
        Allowed::Count(1, 1 << 20),
    ),
    Key::new("replication", "inflight_messages", Allowed::Count(1, 4096)),
    Key::new(
        "replication",
        "inflight_entries",
        Allowed::Count(1, 1 << 24),
    ),
    Key::new(
        "replication",
        "inflight_bytes",
        size(ByteSize::kib(64), GIB),
    ),
    Key::new("replication", "retry_interval", millis(1, 10_000)),
    Key::new(
        "replication",
        "commit_notice_interval",
        micros(100, 1_000_000),
    ),
    Key::new("batch", "turn_events", Allowed::Count(1, 1 << 20)),
    Key::new("batch", "turn_wait", micros(0, 10_000)),
    Key::new("batch", "turn_interval", micros(0, 10_000)),
    Key::new("batch", "max_proposal_bytes", size(KIB, ByteSize::mib(64))),
    Key::new("shards", "count", Allowed::Count(0, 256)),
    Key::new("shards", "inbox_bytes", size(MIB, ByteSize::gib(16))),
    Key::new(
        "shards",
        "group_bytes",
        size(ByteSize::kib(64), ByteSize::gib(16)),
    ),
    Key::new("shards", "proposal_timeout", millis(10, 3_600_000)),
    Key::new("apply", "workers", Allowed::Count(1, 64)),
    Key::new("apply", "inline", micros(0, 10_000)),
    Key::new("apply", "queue_bytes", size(MIB, ByteSize::gib(16))),
    Key::new("apply", "max_sessions", Allowed::Count(1, 1 << 16)),
    Key::new("wal", "mode", Allowed::OneOf(&["direct", "mapped"])),
    Key::new("wal", "direct_io", Allowed::Bool),
    Key::new("wal", "lanes", Allowed::Count(1, 64)),
    Key::new("wal", "segment_bytes", size(MIB, GIB)),
    Key::new("wal", "pool_segments", Allowed::Count(1, 64)),
    Key::new(
        "wal",
        "max_batch_bytes",
        size(ByteSize::kib(64), ByteSize::mib(256)),
    ),
    Key::new("wal", "max_pending_bytes", size(MIB, ByteSize::gib(16))),
    Key::new("wal", "checkpoint_bytes", size(MIB, ByteSize::tib(1))),
    Key::new("wal", "tail_cache_bytes", size(MIB, ByteSize::gib(16))),
    Key::new(
        "wal",
        "min_free_bytes",
        size(ByteSize::b(0), ByteSize::tib(1)),
    ),
    Key::new("wal", "inline_sync", micros(0, 10_000)),
    Key::new("wal", "stall_timeout", micros(0, 3_600_000_000)),
    Key::new("wal", "repair", Allowed::Bool),
    Key::new("snapshot", "entries", Allowed::Count(0, 1 << 40)),
    Key::new("snapshot", "bytes", size(ByteSize::b(0), ByteSize::tib(1))),
    Key::new("snapshot", "keep_entries", Allowed::Count(0, 1 << 40)),
    Key::new("snapshot", "workers", Allowed::Count(1, 16)),
    Key::new("snapshot", "concurrent", Allowed::Count(1, 1024)),
    Key::new(
        "snapshot",
        "chunk_bytes",
        size(ByteSize::kib(4), ByteSize::mib(16)),
    ),
    Key::new("snapshot", "rate", size(ByteSize::b(0), ByteSize::tib(1))),
    Key::new("transport", "append_lanes", Allowed::Count(1, 16)),
    Key::new(
        "transport",
        "max_frame_bytes",
        size(ByteSize::kib(512), ByteSize::mib(64)),
    ),
    Key::new("transport", "queue_bytes", size(MIB, GIB)),
    Key::new("transport", "max_mtu", Allowed::Count(1200, 6550)),
    Key::new("transport", "idle_timeout", millis(100, 60_000)),
    Key::new("transport", "keep_alive", millis(10, 30_000)),
    Key::new("transport", "backoff_min", millis(1, 60_000)),
    Key::new("transport", "backoff_max", millis(1, 60_000)),
    Key::new(
        "transport",
        "receive_window",
        size(ByteSize::kib(64), ByteSize::mib(64)),
    ),
    Key::new("trace", "one_in", Allowed::Count(0, 1 << 20)),
    Key::new("metrics", "listen", Allowed::Address),
];

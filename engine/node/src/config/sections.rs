//! The sections: every key with its meaning and its default.
//!
//! The last line above each field is checked by a test against the code: its default, the values
//! it allows, and when it takes effect.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::units;

/// When a group without a leader elects one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Election {
    /// How long the node of a leader may be silent before the groups that it led look for another.
    /// Shorter recovers sooner; too short for the network or the disk, and a slow moment costs an
    /// election.
    ///
    /// Default `150ms`; allowed `10ms` to `60s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub timeout_min: Duration,
    /// The longest election timeout. Each group draws its own between `timeout_min` and this, so
    /// that two replicas rarely campaign at the same moment.
    ///
    /// Default `300ms`; allowed `10ms` to `60s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub timeout_max: Duration,
    /// How long after a node came back, or after an election, groups are handed to the node that
    /// should lead them, so that leaders are spread over their members again. `0us` leaves them
    /// where they are. A node without room on its disk would be given groups again and again.
    ///
    /// Default `0us`; allowed `0us` to `3600s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub rebalance_delay: Duration,
    /// How readily this node leads. Of the voters of a group those with the highest priority should lead it: they campaign first,
    /// and with `rebalance_delay` groups are handed to them. With `0` it is preferred by no group, and campaigns behind all others.
    ///
    /// Default `100`; allowed `0` to `100`; takes effect at restart.
    pub priority: u32,
}

impl Default for Election {
    fn default() -> Election {
        Election {
            timeout_min: Duration::from_millis(150),
            timeout_max: Duration::from_millis(300),
            rebalance_delay: Duration::ZERO,
            priority: u32::from(super::USUAL_PRIORITY),
        }
    }
}

/// The beats that nodes exchange, whatever the number of groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Liveness {
    /// How often a node sends a beat to each of its peers. Shorter notices a silent node with less
    /// spread and costs more idle CPU. Three intervals must fit into `election.timeout_min`. Above
    /// `48ms` QUIC acknowledges each beat with a packet of its own.
    ///
    /// Default `45ms`; allowed `1ms` to `10s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub beat_interval: Duration,
    /// By how much the clocks of two nodes may differ in rate, in parts per million. Leases are shorter
    /// by this much. Set it above anything that the machines' clocks may do, slewing included: beyond it
    /// a lease read may be stale.
    ///
    /// Default `10000`; allowed `0` to `500000`; takes effect at restart.
    pub clock_drift_ppm: u32,
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness {
            beat_interval: Duration::from_millis(45),
            clock_drift_ppm: 10_000,
        }
    }
}

/// How a leader sends its log to a follower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replication {
    /// The most bytes of entries in one append to one follower; one larger entry still goes alone.
    /// Larger catches up with less overhead; smaller lets other groups in between.
    ///
    /// Default `256KiB`; allowed `4KiB` to `64MiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub max_append_bytes: ByteSize,
    /// The most entries in one append to one follower.
    ///
    /// Default `8192`; allowed `1` to `1048576`; takes effect at restart.
    pub max_append_entries: u32,
    /// The most appends that may be on their way to one follower, per group. More hides a longer
    /// round trip; with 1 the leader waits for each acknowledgement.
    ///
    /// Default `64`; allowed `1` to `4096`; takes effect at restart.
    pub inflight_messages: u32,
    /// The most entries that may be on their way to one follower, per group.
    ///
    /// Default `65536`; allowed `1` to `16777216`; takes effect at restart.
    pub inflight_entries: u32,
    /// The most bytes that may be on their way to one follower, per group. Bandwidth times round
    /// trip is what keeps a link full.
    ///
    /// Default `8MiB`; allowed `64KiB` to `1GiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub inflight_bytes: ByteSize,
    /// How long a leader waits for progress of a live follower before it probes and sends again.
    ///
    /// Default `100ms`; allowed `1ms` to `10s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub retry_interval: Duration,
    /// How long news of a commit may wait for the next append to carry it to the followers; after
    /// that it goes alone. It bounds how far a stale read on a follower lags in a quiet group.
    /// Writers do not wait for it.
    ///
    /// Default `30ms`; allowed `100us` to `1s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub commit_notice_interval: Duration,
}

impl Default for Replication {
    fn default() -> Replication {
        Replication {
            max_append_bytes: ByteSize::kib(256),
            max_append_entries: 8192,
            inflight_messages: 64,
            inflight_entries: 65_536,
            inflight_bytes: ByteSize::mib(8),
            retry_interval: Duration::from_millis(100),
            commit_notice_interval: Duration::from_millis(30),
        }
    }
}

/// What one turn of a shard takes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// The most events that a shard drains from its inbox in one turn. More makes batches larger
    /// under load; fewer makes a turn shorter.
    ///
    /// Default `4096`; allowed `1` to `1048576`; takes effect at restart.
    pub turn_events: u32,
    /// How long a shard lets events gather while its last turn is not durable yet. What comes in that time would wait
    /// for the same barrier, and costs less together; the barrier ends the wait. A shard without a turn under way
    /// never waits. Longer saves CPU where syncs are slow, shorter lets a turn's work overlap with a sync.
    ///
    /// Default `200us`; allowed `0us` to `10ms`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub turn_wait: Duration,
    /// The least time from the beginning of a turn that took in eight events or more to that of the next: how long a busy
    /// shard lets events linger. Longer saves CPU, because what a turn costs however little it does is shared by more; the
    /// median grows by about half of it, and nodes without idle cores commit up to a third less. A shard with a few events
    /// at a time never lingers, nor does one for which a whole turn waits already; a barrier does not end it.
    /// `docs/performance.md` has what it did to tails.
    ///
    /// Default `0us`; allowed `0us` to `10ms`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub turn_interval: Duration,
    /// The largest payload of one proposal; a larger one is refused as too large.
    ///
    /// Default `1MiB`; allowed `1KiB` to `64MiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub max_proposal_bytes: ByteSize,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            turn_events: 4096,
            turn_wait: Duration::from_micros(200),
            turn_interval: Duration::ZERO,
            max_proposal_bytes: ByteSize::mib(1),
        }
    }
}

/// The threads that own the groups, and what they queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shards {
    /// How many shard threads the node has; every group belongs to one. `0` takes one per four
    /// cores, in a multiple of `wal.lanes`, because the flusher, the transport and the apply
    /// workers need cores too.
    ///
    /// Default `1`; allowed `0` to `256`; takes effect at restart.
    pub count: u32,
    /// The most bytes of proposals waiting in the inbox of a shard, and as many again of frames.
    /// Proposals beyond it are refused as busy; frames beyond it stay with the sender, because the
    /// append lanes are then not read.
    ///
    /// Default `64MiB`; allowed `1MiB` to `16GiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub inbox_bytes: ByteSize,
    /// The most proposed bytes of one group that are not committed yet, 128 more for each proposal. When it is full, proposals
    /// to this group are refused as busy; others go on. One proposal alone is always taken.
    ///
    /// Default `16MiB`; allowed `64KiB` to `16GiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub group_bytes: ByteSize,
    /// How long a proposal waits for its group to have a leader, after which it ends as not
    /// accepted, and how long a node waits for the answer to a proposal that it forwarded, after
    /// which it ends as unknown. What this node's own leader has in its log waits until it is
    /// committed or the leader steps down.
    ///
    /// Default `5s`; allowed `10ms` to `3600s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub proposal_timeout: Duration,
}

impl Default for Shards {
    fn default() -> Shards {
        Shards {
            count: 1,
            inbox_bytes: ByteSize::mib(64),
            group_bytes: ByteSize::mib(16),
            proposal_timeout: Duration::from_secs(5),
        }
    }
}

/// The threads that run the state machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Apply {
    /// How many threads run the state machines; every group belongs to one. More helps when
    /// applying takes more CPU than consensus.
    ///
    /// Default `1`; allowed `1` to `64`; takes effect at restart.
    pub workers: u32,
    /// A shard applies what it committed by itself, in place of waking a worker for it, as long as the worker has nothing
    /// else to do and about half of the last hundred or so turns took no longer to be applied than this. That saves CPU and
    /// calms tails where cores are few; but the shard does nothing else meanwhile: a state machine that blocks for longer
    /// than an election timeout then costs the groups that this node leads an election, and one that waits for its own node
    /// waits for ever. Only with one shard. `0us` leaves everything to the workers.
    ///
    /// Default `0us`; allowed `0us` to `10ms`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub inline: Duration,
    /// How many committed bytes may wait on this node to be applied. Beyond it the node refuses
    /// proposals as busy until the state machines have caught up.
    ///
    /// Default `64MiB`; allowed `1MiB` to `16GiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub queue_bytes: ByteSize,
    /// How many client sessions a group keeps. When one more is opened, the one that was used least recently is forgotten. What
    /// counts is the value of the node through which a session is opened; it travels with the session.
    ///
    /// Default `1024`; allowed `1` to `65536`; takes effect at restart.
    pub max_sessions: u32,
}

impl Default for Apply {
    fn default() -> Apply {
        Apply {
            workers: 1,
            inline: Duration::ZERO,
            queue_bytes: ByteSize::mib(64),
            max_sessions: 1024,
        }
    }
}

/// The write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wal {
    /// How batches are written. `"direct"` writes from the batch buffer and syncs the file;
    /// `"mapped"` copies into the memory-mapped segment and syncs the mapping. Reads are the same
    /// in both, and so is the format: the mode may be changed between two runs.
    ///
    /// Default `"direct"`; allowed `"direct"` or `"mapped"`; takes effect at restart.
    pub mode: WalMode,
    /// Whether the `"direct"` mode writes with `O_DIRECT`, past the page cache. It saves a copy and
    /// CPU where the file system supports it; a follower that lags is then read from the device.
    /// Not allowed in the `"mapped"` mode.
    ///
    /// Default `false`; allowed `true` or `false`; takes effect at restart.
    pub direct_io: bool,
    /// How many write-ahead logs the node keeps side by side, each with its own syncs. One per
    /// device; more on one device makes batches smaller. It must divide the number of shards, and
    /// it is fixed when the data directory is made.
    ///
    /// Default `1`; allowed `1` to `64`; takes effect at restart.
    pub lanes: u32,
    /// The size of a segment file, a multiple of 4 KiB. Space comes back segment by segment, so
    /// smaller ones come back sooner; larger ones rotate less often.
    ///
    /// Default `64MiB`; allowed `1MiB` to `1GiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub segment_bytes: ByteSize,
    /// How many segments each lane keeps ready, written with zeros and synced ahead of their use.
    /// More rides out a longer burst.
    ///
    /// Default `2`; allowed `1` to `64`; takes effect at restart.
    pub pool_segments: u32,
    /// The most bytes that one barrier makes durable, a multiple of 4 KiB. Larger raises throughput
    /// on slow syncs; smaller bounds how long one sync takes.
    ///
    /// Default `4MiB`; allowed `64KiB` to `256MiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub max_batch_bytes: ByteSize,
    /// How many bytes of one lane may wait to become durable. Beyond it proposals are refused as
    /// busy; what was accepted is written all the same.
    ///
    /// Default `64MiB`; allowed `1MiB` to `16GiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub max_pending_bytes: ByteSize,
    /// How many bytes of log are written between two checkpoints of the index. It bounds what a
    /// restart has to read, and full segments are recycled only behind a checkpoint. Smaller means
    /// more checkpoint writes. A full disk has one made earlier.
    ///
    /// Default `256MiB`; allowed `1MiB` to `1TiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub checkpoint_bytes: ByteSize,
    /// How many recently written bytes each shard keeps in memory for replication and apply; what
    /// is not durable yet is kept in any case. Older entries are read from the mapped segments.
    ///
    /// Default `32MiB`; allowed `1MiB` to `16GiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub tail_cache_bytes: ByteSize,
    /// How much free space new segments leave on the device. Where there is less, none is made, and
    /// the log refuses what it has no room for.
    ///
    /// Default `64MiB`; allowed `0B` to `1TiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub min_free_bytes: ByteSize,
    /// A shard writes and syncs its turn by itself, in place of waking the flusher for it, as long as about half of the last
    /// hundred or so took no longer than this. That saves CPU and calms tails where cores are few; but the shard does nothing
    /// else meanwhile: a disk that stalls for longer than an election timeout then costs the groups that this node leads an
    /// election, and `stall_timeout` does not help. Only with one shard. `0us` leaves every sync to the flusher.
    ///
    /// Default `0us`; allowed `0us` to `10ms`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub inline_sync: Duration,
    /// How long a write may be under way before the node hands the groups that it leads to others. Shorter
    /// brings their service back sooner when a disk stalls; below what the disk takes at its worst, leaders
    /// wander about. `0us` waits for the disk for ever.
    ///
    /// Default `2s`; allowed `0us` to `3600s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub stall_timeout: Duration,
    /// Whether a replica whose log is damaged gets it from its peers, by itself. Without, it stays in
    /// quarantine until somebody removes it from its group and adds it again.
    ///
    /// Default `true`; allowed `true` or `false`; takes effect at restart.
    pub repair: bool,
}

impl Default for Wal {
    fn default() -> Wal {
        Wal {
            mode: WalMode::Direct,
            direct_io: false,
            lanes: 1,
            segment_bytes: ByteSize::mib(64),
            pool_segments: 2,
            max_batch_bytes: ByteSize::mib(4),
            max_pending_bytes: ByteSize::mib(64),
            checkpoint_bytes: ByteSize::mib(256),
            tail_cache_bytes: ByteSize::mib(32),
            min_free_bytes: ByteSize::mib(64),
            inline_sync: Duration::ZERO,
            stall_timeout: Duration::from_secs(2),
            repair: true,
        }
    }
}

/// Snapshots of state machines, and the log that is kept behind them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Snapshot {
    /// After how many applied entries since its last snapshot a replica takes another one. Fewer
    /// bound the log and the time of a restart more tightly; `0` takes none for this reason. None is
    /// taken while one of the group is being sent, so the log may grow beyond this until then.
    ///
    /// Default `0`; allowed `0` to `1099511627776`; takes effect at restart.
    pub entries: u64,
    /// After how many applied bytes of log since its last snapshot a replica takes another one;
    /// `0B` takes none for this reason. With both at zero snapshots are taken on request only, and
    /// the log grows until then. None is taken for this reason while one of the group is being
    /// sent, as with `snapshot.entries`.
    ///
    /// Default `0B`; allowed `0B` to `1TiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub bytes: ByteSize,
    /// How many entries before a snapshot the log keeps. A follower that is no further behind gets
    /// entries; one that is further behind gets the snapshot.
    ///
    /// Default `10000`; allowed `0` to `1099511627776`; takes effect at restart.
    pub keep_entries: u64,
    /// How many threads write snapshots and restore state machines from them. Each shard has as many
    /// frozen states in memory at most. Each group belongs to one of them, which does one thing after
    /// the other: while it writes a large state, what other groups of it need waits: a split (and with
    /// it the parent's proposals), a merge, a restore, the parts of snapshots on their way.
    ///
    /// Default `1`; allowed `1` to `16`; takes effect at restart.
    pub workers: u32,
    /// How many snapshots the node sends to followers at the same time, and as many again that it
    /// receives. The others wait.
    ///
    /// Default `4`; allowed `1` to `1024`; takes effect at restart.
    pub concurrent: u32,
    /// How much of a snapshot travels in one frame. Four of them at most are under way in a transfer. Make it smaller for links
    /// on which one takes longer than ten times `replication.retry_interval`: what takes that long is asked for again.
    ///
    /// Default `256KiB`; allowed `4KiB` to `16MiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub chunk_bytes: ByteSize,
    /// The most bytes of snapshots that the node sends in a second; `0B` sets no limit. The transport
    /// lets everything else go first in any case.
    ///
    /// Default `100MiB`; allowed `0B` to `1TiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub rate: ByteSize,
}

impl Default for Snapshot {
    fn default() -> Snapshot {
        Snapshot {
            entries: 0,
            bytes: ByteSize::b(0),
            keep_entries: 10_000,
            workers: 1,
            concurrent: 4,
            chunk_bytes: ByteSize::kib(256),
            rate: ByteSize::mib(100),
        }
    }
}

/// The connections to the other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transport {
    /// How many append lanes each pair of nodes has; a group always uses the same one. More keeps a
    /// slow stream from holding up other groups.
    ///
    /// Default `1`; allowed `1` to `16`; takes effect at restart.
    pub append_lanes: u8,
    /// The largest frame, in both directions. Give all nodes of a cluster the same value: between
    /// two nodes the smaller one counts, and what does not fit is not sent.
    ///
    /// Default `4MiB`; allowed `512KiB` to `64MiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub max_frame_bytes: ByteSize,
    /// The most bytes that wait in the queue of one peer and lane. What does not fit is dropped,
    /// and Raft sends it again.
    ///
    /// Default `64MiB`; allowed `1MiB` to `1GiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub queue_bytes: ByteSize,
    /// The largest UDP payload that path discovery tries. Ten of them are handed to the kernel at
    /// once and must fit into 65,507 bytes, hence the limit.
    ///
    /// Default `6500`; allowed `1200` to `6550`; takes effect at restart.
    pub max_mtu: u16,
    /// How long a connection may be silent before it is closed and dialled again. Elections do not
    /// wait for it; they go by beats.
    ///
    /// Default `2s`; allowed `100ms` to `60s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// How often a quiet connection is kept open by a packet.
    ///
    /// Default `500ms`; allowed `10ms` to `30s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub keep_alive: Duration,
    /// How long to wait before a lost peer is dialled again. The wait doubles with each failure, up
    /// to `backoff_max`.
    ///
    /// Default `10ms`; allowed `1ms` to `60s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub backoff_min: Duration,
    /// The longest wait before a lost peer is dialled again.
    ///
    /// Default `1s`; allowed `1ms` to `60s`; takes effect at restart.
    #[serde(with = "units::duration")]
    pub backoff_max: Duration,
    /// The most unread bytes that a peer may have under way on each lane. It must exceed bandwidth
    /// times round trip to keep a link full.
    ///
    /// Default `16MiB`; allowed `64KiB` to `64MiB`; takes effect at restart.
    #[serde(with = "units::size")]
    pub receive_window: ByteSize,
}

impl Default for Transport {
    fn default() -> Transport {
        Transport {
            append_lanes: 1,
            max_frame_bytes: ByteSize::mib(4),
            queue_bytes: ByteSize::mib(64),
            max_mtu: 6500,
            idle_timeout: Duration::from_secs(2),
            keep_alive: Duration::from_millis(500),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_secs(1),
            receive_window: ByteSize::mib(16),
        }
    }
}

/// What is recorded of single proposals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trace {
    /// Of one proposal in so many, how long each stage took is recorded on the leader's node, for
    /// `Node::take_traces`. `0` records none and costs nothing; at 64 the cost is hard to measure.
    ///
    /// Default `0`; allowed `0` to `1048576`; takes effect at restart.
    pub one_in: u32,
}

/// What the node shows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where a Prometheus server finds the node's metrics: at the path `/metrics` of this address. Anybody who reaches the
    /// address can read them, so it should not be a public one. Nothing is served if it is empty.
    ///
    /// Default `""`; allowed an address such as `"127.0.0.1:9464"`, or `""`; takes effect at restart.
    #[serde(with = "units::address")]
    pub listen: Option<SocketAddr>,
}

/// How batches reach the disk; see [`Wal::mode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalMode {
    /// Written from the batch buffer, then the file is synced.
    Direct,
    /// Copied into the memory-mapped segment, then the mapping is synced.
    Mapped,
}

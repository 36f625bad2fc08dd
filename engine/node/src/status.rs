//! What a node and its groups say about themselves, and the counters behind it.
//! Reading a status must never slow a shard down: counters are written by one thread each and merged here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;
use polyraft_raft::{GroupId, Index, LogPosition, NodeId, Role, Term};
use polyraft_storage::WalStats;
use polyraft_transport::NetworkStats;

/// One group, as its replica on the asked node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// The part that this replica plays.
    pub role: Role,
    /// Its current term.
    pub term: Term,
    /// The leader that it follows, or itself.
    pub leader: Option<NodeId>,
    /// The last entry of its log, durable or not.
    pub last: LogPosition,
    /// The last index that is durable here.
    pub durable: Index,
    /// The last index known to be committed.
    pub committed: Index,
    /// The last index applied to the state machine here.
    pub applied: Index,
    /// The nodes that hold a replica.
    pub members: Vec<NodeId>,
    /// Why this replica is quarantined, if it is.
    pub fault: Option<String>,
}

/// A whole node at one moment.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// The node asked.
    pub id: NodeId,
    /// Which opening of its data directory this is; grows by one each time.
    pub opening: u64,
    /// Replicas hosted here.
    pub groups: u64,
    /// How many of them lead their group.
    pub led: u64,
    /// How many of them know no leader.
    pub leaderless: u64,
    /// How many of them are quarantined.
    pub quarantined: u64,
    /// Why the whole node has stopped serving, if it has.
    pub fault: Option<String>,
    /// The other nodes, as seen from here.
    pub peers: Vec<PeerStatus>,
    /// The write-ahead log, all lanes together.
    pub wal: WalStats,
    /// The transport.
    pub network: NetworkStats,
    /// What the shards have done since the node was opened.
    pub counters: Counters,
}

/// Another node, as seen from the asked one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// The other node.
    pub node: NodeId,
    /// Whether it is heard within the election timeout.
    pub alive: bool,
    /// The connection's smoothed round trip.
    pub round_trip: Option<Duration>,
    /// Why the connection is refused by either side, if it is.
    pub refused: Option<String>,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Events counted since the node was opened, all shards together.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        /// One shard's counters. Only that shard's thread writes them.
        #[derive(Debug, Default)]
        pub(crate) struct ShardCounters { $(pub(crate) $name: Counter,)* }

        impl ShardCounters {
            fn add_to(&self, sum: &mut Counters) { $(sum.$name += self.$name.get();)* }
        }
    };
}

counters! {
    /// Replicas hosted.
    groups,
    /// Replicas that lead.
    led,
    /// Replicas without a known leader.
    leaderless,
    /// Replicas in quarantine.
    quarantined,
    /// Turns taken by the shards.
    turns,
    /// Proposals appended by leaders on this node.
    proposals,
    /// Entries handed to the apply workers.
    applied,
    /// Proposals sent on to another node's leader.
    forwarded,
    /// Proposals refused because a byte bound was reached.
    busy,
    /// Elections started here.
    elections,
    /// Frames handed to the transport, liveness apart.
    group_frames,
    /// Group messages sent in those frames.
    group_messages,
    /// Beats sent to other nodes.
    beats,
    /// Appends dropped by a follower whose disk or state machines were too far behind.
    refused_appends,
    /// Damaged or impossible messages dropped.
    rejected_messages,
}

/// A counter or gauge with a single writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds without a locked instruction: nobody else writes.
    pub(crate) fn add(&self, more: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(more),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn sub(&self, less: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_sub(less),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of all shards, each on cache lines of its own.
#[derive(Debug)]
pub(crate) struct AllCounters(Vec<CachePadded<ShardCounters>>);

impl AllCounters {
    pub(crate) fn new(shards: usize) -> Self {
        AllCounters((0..shards).map(|_| CachePadded::default()).collect())
    }

    pub(crate) fn shard(&self, shard: usize) -> &ShardCounters {
        &self.0[shard]
    }

    pub(crate) fn sum(&self) -> Counters {
        let mut sum = Counters::default();
        for shard in &self.0 {
            shard.add_to(&mut sum);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_covers_every_shard() {
        let all = AllCounters::new(2);
        all.shard(0).groups.add(3);
        all.shard(1).groups.add(4);
        all.shard(1).groups.sub(1);
        assert_eq!(all.sum().groups, 6);
    }
}

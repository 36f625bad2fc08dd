//! What a node and its groups say about themselves, and the counters behind it.
//! Reading a status must never slow a shard down: counters are written by one thread each and merged here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;
use polyraft_raft::{Configuration, GroupId, Index, Life, LogPosition, NodeId, Role, Term, Tick};
use polyraft_storage::{Histogram, Recorder, WalStats};
use polyraft_transport::NetworkStats;

use crate::error::Error;

/// One group, as its replica on the asked node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// Which life of its id this is: 0 until it is destroyed and created again.
    pub life: Life,
    /// The part that this replica plays.
    pub role: Role,
    /// It stores no payload, has no state machine and never leads; applied is how far it knows of.
    pub is_witness: bool,
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
    /// The log begins behind this index.
    pub purged: Index,
    /// The last entry in this replica's newest durable snapshot.
    pub snapshot: Option<LogPosition>,
    /// The nodes that hold a replica, as the newest entry of its log says, committed or not.
    pub members: Membership,
    /// The index that this replica's log has to reach before it votes, until it does: it was removed and is back, or lost a
    /// damaged log that may have gone through there.
    pub returning: Option<Index>,
    /// The group that this one is being merged into, as far as this replica has applied: it takes and answers nothing.
    pub merging_into: Option<GroupId>,
    /// Why this replica is quarantined, if it is.
    pub fault: Option<String>,
}

/// Who belongs to a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// Those that decide; while voters change, the new ones.
    pub voters: Vec<NodeId>,
    /// While voters change: those before, of which a majority has to agree too.
    pub outgoing: Vec<NodeId>,
    /// Those that receive the log and decide nothing.
    pub learners: Vec<NodeId>,
    /// Those among the others that store no payload.
    pub witnesses: Vec<NodeId>,
    /// Who should lead, if it can and [`config::Election::rebalance_delay`](crate::config::Election::rebalance_delay) is set.
    pub preferred: Option<NodeId>,
}

impl Membership {
    pub(crate) fn of(configuration: &Configuration) -> Self {
        Membership {
            voters: configuration.voters().to_vec(),
            outgoing: configuration.outgoing().to_vec(),
            learners: configuration.learners().to_vec(),
            witnesses: configuration.witnesses().to_vec(),
            preferred: configuration.preferred(),
        }
    }

    /// Every member once, in ascending order.
    pub fn nodes(&self) -> Vec<NodeId> {
        let lists = [&self.voters, &self.outgoing, &self.learners];
        let mut nodes: Vec<NodeId> = lists.into_iter().flatten().copied().collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
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
    /// What they have seen: sizes and delays.
    pub histograms: Histograms,
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
    /// Replicas without a known leader, those in quarantine apart.
    leaderless,
    /// Replicas in quarantine.
    quarantined,
    /// Turns taken by the shards.
    turns,
    /// Proposals appended by leaders on this node.
    proposals,
    /// Entries committed by leaders on this node.
    committed,
    /// Entries handed to the apply workers.
    applied,
    /// Proposals sent on to another node's leader.
    forwarded,
    /// Proposals refused because a bound was reached. The next six say which.
    busy,
    /// Refused: `shards.group_bytes`.
    busy_group,
    /// Refused: `wal.max_pending_bytes`.
    busy_wal,
    /// Refused: `apply.queue_bytes`.
    busy_apply,
    /// Refused: the disk has no room.
    busy_disk,
    /// Refused: `shards.inbox_bytes`, for proposals that would be sent on to another node.
    busy_forwards,
    /// Refused: `transport.queue_bytes`, for proposals that should have been sent on to another node.
    busy_transport,
    /// Reads refused because a bound was reached.
    busy_reads,
    /// Elections started here. The next four say why.
    elections,
    /// Elections because nobody was heard to lead.
    elections_silence,
    /// Elections because the one before was not won in time.
    elections_retry,
    /// Elections of the first leader of a new group.
    elections_creation,
    /// Elections because the leader handed the group over.
    elections_handover,
    /// Reads answered here by the leader's lease: no message was sent for them.
    lease_reads,
    /// Reads answered here after other nodes stood by the leader.
    confirmed_reads,
    /// Reads answered here after the leader's node said what to wait for.
    follower_reads,
    /// Beats that asked another node to stand by the leaders here, for however many reads of however many groups.
    standing_asked,
    /// Questions sent to a leader's node what reads here must wait for.
    reads_asked,
    /// Reads that nobody could confirm in time.
    unconfirmed_reads,
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
    /// Batches of committed entries that shards applied by themselves.
    inline_applies,
    /// Snapshots taken.
    snapshots,
    /// Snapshots that could not be taken.
    failed_snapshots,
    /// State machines rebuilt from a snapshot.
    restores,
    /// Offers of a snapshot to followers that need more than the log holds, repeated ones included.
    snapshots_offered,
    /// Snapshots taken from other nodes.
    snapshots_received,
    /// Transfers of snapshots that went on behind what had come before they were interrupted, or before a part that took long.
    resumed_transfers,
    /// Bytes of snapshots sent to other nodes.
    snapshot_bytes_sent,
    /// Snapshots of other nodes that could not be taken: no room, a failing disk, a wrong checksum.
    failed_transfers,
    /// Replicas whose damaged log was dropped, to get it from their peers.
    repairs,
}

macro_rules! histograms {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Values seen since the node was opened, all shards together. Delays are in microseconds.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Histograms { $($(#[$doc])* pub $name: Histogram,)* }

        /// One shard's histograms. Only that shard's thread writes them.
        #[derive(Debug, Default)]
        pub(crate) struct ShardHistograms { $(pub(crate) $name: Recorder,)* }

        impl ShardHistograms {
            fn add_to(&self, sum: &mut Histograms) { $(sum.$name.merge(&self.$name.snapshot());)* }
        }
    };
}

histograms! {
    /// How long a turn took.
    turn_us,
    /// Events that a turn took in.
    turn_events,
    /// Groups that a turn touched.
    turn_groups,
    /// Entries in a block of proposals.
    block_entries,
    /// From the call of `propose` to the shard's turn, by samples: one at a time in each shard.
    queue_us,
    /// From a frame's arrival to its shard's turn: the age of what is in the inbox.
    inbox_us,
    /// From the end of a turn that wrote to the news that it is durable.
    append_us,
    /// From a proposal's append to its commit, by samples: one at a time in each shard. One that takes more than 10 s is given up
    /// and counts with its age then.
    commit_us,
    /// From handing a batch of committed entries out to the news that it is applied. A shard that applies and syncs by itself hears
    /// of it after the sync.
    apply_us,
    /// By how much more than their interval apart two beats of a peer came. Up to a quarter of it is their sender's choice.
    beat_late_us,
}

/// Why an election was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ElectionCause {
    Silence,
    Retry,
    Creation,
    Handover,
}

impl ShardCounters {
    /// Counts an election.
    pub(crate) fn election(&self, cause: ElectionCause) {
        self.elections.add(1);
        let counter = match cause {
            ElectionCause::Silence => &self.elections_silence,
            ElectionCause::Retry => &self.elections_retry,
            ElectionCause::Creation => &self.elections_creation,
            ElectionCause::Handover => &self.elections_handover,
        };
        counter.add(1);
    }

    /// Counts a refused proposal by the bound that refused it. What is no bound is not counted.
    pub(crate) fn refused(&self, error: &Error) {
        let Error::Busy { what, .. } = error else {
            return;
        };
        self.busy.add(1);
        match *what {
            "shards.group_bytes" => self.busy_group.add(1),
            "wal.max_pending_bytes" => self.busy_wal.add(1),
            "apply.queue_bytes" => self.busy_apply.add(1),
            "shards.inbox_bytes" => self.busy_forwards.add(1),
            "transport.queue_bytes" => self.busy_transport.add(1),
            _ => self.busy_disk.add(1),
        }
    }
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

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one shard's thread writes.
#[derive(Debug, Default)]
struct ShardFigures {
    counters: ShardCounters,
    histograms: ShardHistograms,
    waiting: Waiting,
}

/// Since when the oldest has waited that a shard has handed on; 0: nothing waits.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// For the log to be durable.
    pub(crate) wal: Counter,
    /// For the state machines.
    pub(crate) apply: Counter,
}

/// The counters and histograms of all shards, each shard's on cache lines of its own.
#[derive(Debug)]
pub(crate) struct AllCounters(Vec<CachePadded<ShardFigures>>);

impl AllCounters {
    pub(crate) fn new(shards: usize) -> Self {
        AllCounters((0..shards).map(|_| CachePadded::default()).collect())
    }

    pub(crate) fn shard(&self, shard: usize) -> &ShardCounters {
        &self.0[shard].counters
    }

    pub(crate) fn histograms(&self, shard: usize) -> &ShardHistograms {
        &self.0[shard].histograms
    }

    pub(crate) fn waiting(&self, shard: usize) -> &Waiting {
        &self.0[shard].waiting
    }

    /// How long the oldest has waited of what the shards handed on, in microseconds; 0: nothing waits.
    pub(crate) fn oldest(&self, now: Tick, of: impl Fn(&Waiting) -> &Counter) -> u64 {
        let since = self.0.iter().map(|shard| of(&shard.waiting).get());
        let since = since.filter(|since| *since != 0).min();
        since.map_or(0, |since| now.since(Tick(since)))
    }

    pub(crate) fn sum(&self) -> Counters {
        let mut sum = Counters::default();
        for shard in &self.0 {
            shard.counters.add_to(&mut sum);
        }
        // A replica in quarantine knows none, as far as its shard counts.
        sum.leaderless = sum.leaderless.saturating_sub(sum.quarantined);
        sum
    }

    pub(crate) fn merged(&self) -> Histograms {
        let mut sum = Histograms::default();
        for shard in &self.0 {
            shard.histograms.add_to(&mut sum);
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
        all.shard(0).leaderless.add(2);
        all.shard(1).quarantined.add(1);
        assert_eq!(all.sum().leaderless, 1);
        all.histograms(0).turn_events.record(1);
        all.histograms(1).turn_events.record(5);
        assert_eq!(all.merged().turn_events.sum(), 6);
    }

    #[test]
    fn the_oldest_of_all_shards_is_shown() {
        let all = AllCounters::new(3);
        let oldest = |now| all.oldest(Tick(now), |waiting| &waiting.wal);
        assert_eq!(oldest(100), 0);
        all.waiting(1).wal.set(70);
        all.waiting(2).wal.set(40);
        assert_eq!(oldest(100), 60);
        all.waiting(2).wal.set(0);
        assert_eq!(oldest(100), 30);
    }

    #[test]
    fn refusals_and_elections_are_counted_by_cause() {
        let counters = ShardCounters::default();
        let busy = |what| Error::Busy { what, limit: 1 };
        counters.refused(&busy("wal.max_pending_bytes"));
        counters.refused(&busy("the disk"));
        counters.refused(&busy("transport.queue_bytes"));
        counters.refused(&Error::Closed);
        counters.election(ElectionCause::Retry);
        let all = AllCounters(vec![CachePadded::new(ShardFigures {
            counters,
            ..ShardFigures::default()
        })]);
        let sum = all.sum();
        assert_eq!((sum.busy, sum.busy_wal, sum.busy_disk), (3, 1, 1));
        assert_eq!(sum.busy_transport, 1);
        assert_eq!((sum.elections, sum.elections_retry), (1, 1));
    }
}

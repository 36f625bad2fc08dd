//! What a node tells a Prometheus server about itself: all figures gathered at one moment, as text.
//! It must never slow down what it measures, and never name a group: a node may have a hundred thousand of them.

pub(crate) mod server;
mod text;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use polyraft_raft::NodeId;
use polyraft_storage::{Wal, WalStats};
use polyraft_transport::Network;

use self::text::{Range, Text};
use crate::node::Peers;
use crate::router::Router;
use crate::shard::Shared;
use crate::status::{NodeStatus, PeerStatus};

/// Everything that figures are read from. It keeps no thread alive.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) shared: Arc<Shared>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) wals: Vec<Wal>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) router: Arc<Router>,
}

/// What is shown beyond a node's status.
#[derive(Debug, Default)]
struct Queues {
    uptime_us: u64,
    proposal_bytes: u64,
    frame_bytes: u64,
    apply_bytes: u64,
    refused_by_inbox: u64,
    reads_refused_by_inbox: u64,
    /// How long the oldest has waited, in microseconds.
    proposal_age_us: u64,
    wal_age_us: u64,
    apply_age_us: u64,
    lanes: Vec<(NodeId, u64)>,
}

impl Source {
    /// How the node is.
    pub(crate) fn status(&self) -> NodeStatus {
        let shared = &self.shared;
        let counters = shared.counters.sum();
        let alive = shared.alive_peers.lock().clone();
        let mut wal = WalStats::default();
        self.wals.iter().for_each(|lane| wal.merge(&lane.stats()));
        let peers = self.peers.ids();
        let peers = peers.iter().map(|node| PeerStatus {
            node: *node,
            alive: alive.contains(*node),
            round_trip: self.network.round_trip(*node),
            refused: self.router.refusal(*node),
        });
        NodeStatus {
            id: shared.node,
            opening: shared.opening,
            groups: counters.groups,
            led: counters.led,
            leaderless: counters.leaderless,
            quarantined: counters.quarantined,
            fault: shared.fault.lock().clone(),
            peers: peers.collect(),
            wal,
            network: self.network.stats(),
            histograms: shared.counters.merged(),
            counters,
        }
    }

    fn queues(&self) -> Queues {
        let shared = &self.shared;
        let now = shared.clock.now();
        let mut queues = Queues {
            uptime_us: now.0,
            wal_age_us: shared.counters.oldest(now, |waiting| &waiting.wal),
            apply_age_us: shared.counters.oldest(now, |waiting| &waiting.apply),
            apply_bytes: shared.backlog.bytes() as u64,
            ..Queues::default()
        };
        for gauge in &shared.gauges {
            queues.proposal_bytes += gauge.proposals.load(Ordering::Relaxed) as u64;
            queues.frame_bytes += gauge.frames.load(Ordering::Relaxed) as u64;
            queues.refused_by_inbox += gauge.refused.load(Ordering::Relaxed);
            queues.reads_refused_by_inbox += gauge.refused_reads.load(Ordering::Relaxed);
            queues.proposal_age_us = queues.proposal_age_us.max(gauge.age(now));
        }
        let peers = self.peers.ids();
        let lanes = peers.iter();
        queues.lanes = lanes
            .map(|node| (*node, self.network.queued_bytes(*node) as u64))
            .collect();
        queues
    }

    /// All figures in the text format that Prometheus scrapes, version 0.0.4.
    pub(crate) fn render(&self) -> String {
        render(&self.status(), &self.queues())
    }
}

fn render(status: &NodeStatus, queues: &Queues) -> String {
    let mut text = Text::default();
    put_node(&mut text, status, queues);
    put_proposals(&mut text, status, queues);
    put_stages(&mut text, status);
    put_queues(&mut text, status, queues);
    put_peers(&mut text, status, queues);
    put_network(&mut text, status);
    put_snapshots(&mut text, status);
    put_wal(&mut text, &status.wal);
    text.finish()
}

fn put_node(text: &mut Text, status: &NodeStatus, queues: &Queues) {
    text.gauge(
        "polyraft_node_info",
        "Always 1. The labels name the node and its version.",
    )
    .value(
        &[
            ("node", &status.id.0.to_string()),
            ("version", env!("CARGO_PKG_VERSION")),
        ],
        1,
    );
    text.gauge("polyraft_uptime_seconds", "Time since the node was opened.")
        .seconds(&[], queues.uptime_us);
    text.gauge(
        "polyraft_stopped",
        "1 once the node has stopped serving because of a fault.",
    )
    .value(&[], status.fault.is_some().into());
    text.gauge("polyraft_groups", "Replicas hosted.")
        .value(&[], status.groups);
    text.gauge("polyraft_groups_led", "Replicas that lead their group.")
        .value(&[], status.led);
    text.gauge(
        "polyraft_groups_leaderless",
        "Replicas that know no leader, those in quarantine apart.",
    )
    .value(&[], status.leaderless);
    text.gauge("polyraft_groups_quarantined", "Replicas in quarantine.")
        .value(&[], status.quarantined);

    let counters = &status.counters;
    let mut elections = text.counter("polyraft_elections_total", "Elections started here.");
    for (cause, count) in [
        ("silence", counters.elections_silence),
        ("retry", counters.elections_retry),
        ("creation", counters.elections_creation),
        ("handover", counters.elections_handover),
    ] {
        elections.value(&[("cause", cause)], count);
    }
    text.counter("polyraft_turns_total", "Turns taken by the shards.")
        .value(&[], counters.turns);
    let histograms = &status.histograms;
    text.histogram("polyraft_turn_duration_seconds", "How long a turn took.")
        .seconds(&[], Range::DELAYS, &histograms.turn_us);
    text.histogram("polyraft_turn_events", "Events that a turn took in.")
        .values(&[], Range::COUNTS, &histograms.turn_events);
    text.histogram("polyraft_turn_groups", "Groups that a turn touched.")
        .values(&[], Range::COUNTS, &histograms.turn_groups);
}

fn put_proposals(text: &mut Text, status: &NodeStatus, queues: &Queues) {
    let counters = &status.counters;
    text.counter(
        "polyraft_proposals_total",
        "Proposals appended by leaders on this node.",
    )
    .value(&[], counters.proposals);
    text.counter(
        "polyraft_proposals_forwarded_total",
        "Proposals sent on to another node's leader.",
    )
    .value(&[], counters.forwarded);
    let mut refused = text.counter(
        "polyraft_proposals_refused_total",
        "Proposals refused as busy, by the bound that was reached.",
    );
    for (bound, count) in [
        ("inbox", queues.refused_by_inbox + counters.busy_forwards),
        ("group", counters.busy_group),
        ("wal", counters.busy_wal),
        ("apply", counters.busy_apply),
        ("disk", counters.busy_disk),
        ("transport", counters.busy_transport),
    ] {
        refused.value(&[("bound", bound)], count);
    }
    text.histogram(
        "polyraft_block_entries",
        "Proposals of one group that were packed into one entry block.",
    )
    .values(&[], Range::COUNTS, &status.histograms.block_entries);
    text.counter(
        "polyraft_committed_entries_total",
        "Entries committed by leaders on this node.",
    )
    .value(&[], counters.committed);
    text.counter(
        "polyraft_applied_entries_total",
        "Entries handed to the state machines.",
    )
    .value(&[], counters.applied);
    let mut reads = text.counter(
        "polyraft_reads_total",
        "Reads, by who made sure of what they must see.",
    );
    for (how, count) in [
        ("lease", counters.lease_reads),
        ("quorum", counters.confirmed_reads),
        ("leader", counters.follower_reads),
        ("nobody", counters.unconfirmed_reads),
    ] {
        reads.value(&[("by", how)], count);
    }
    text.counter(
        "polyraft_reads_refused_total",
        "Reads refused as busy, because an inbox was full or too many waited.",
    )
    .value(&[], queues.reads_refused_by_inbox + counters.busy_reads);
}

fn put_stages(text: &mut Text, status: &NodeStatus) {
    let histograms = &status.histograms;
    let mut stages = text.histogram(
        "polyraft_stage_duration_seconds",
        "How long the stages of a commit take.",
    );
    for (stage, delays) in [
        ("queue", &histograms.queue_us),
        ("inbox", &histograms.inbox_us),
        ("append", &histograms.append_us),
        ("commit", &histograms.commit_us),
        ("apply", &histograms.apply_us),
    ] {
        stages.seconds(&[("stage", stage)], Range::DELAYS, delays);
    }
}

fn put_queues(text: &mut Text, status: &NodeStatus, queues: &Queues) {
    let mut bytes = text.gauge("polyraft_queue_bytes", "Bytes that wait, by queue.");
    for (queue, waiting) in [
        ("proposals", queues.proposal_bytes),
        ("frames", queues.frame_bytes),
        ("wal", status.wal.pending_bytes),
        ("apply", queues.apply_bytes),
    ] {
        bytes.value(&[("queue", queue)], waiting);
    }
    let mut oldest = text.gauge(
        "polyraft_queue_oldest_seconds",
        "How long the oldest has waited, by queue; of proposals and lanes, the one that is looked at.",
    );
    let network = &status.network;
    for (queue, age) in [
        ("proposals", queues.proposal_age_us),
        ("wal", queues.wal_age_us),
        ("apply", queues.apply_age_us),
        ("liveness lane", network.liveness_delays.oldest_us),
        ("append lane", network.append_delays.oldest_us),
        ("snapshot lane", network.snapshot_delays.oldest_us),
    ] {
        oldest.seconds(&[("queue", queue)], age);
    }
    let lanes = [
        ("liveness", network.liveness_delays),
        ("append", network.append_delays),
        ("snapshot", network.snapshot_delays),
    ];
    let mut delays = text.counter(
        "polyraft_lane_delay_seconds_total",
        "How long frames waited for the writers of the lanes to all peers; for one frame at a time in each lane.",
    );
    for (lane, waited) in &lanes {
        delays.seconds(&[("lane", lane)], waited.total_us);
    }
    let mut frames = text.counter(
        "polyraft_lane_delayed_frames_total",
        "Frames whose wait that is.",
    );
    for (lane, waited) in &lanes {
        frames.value(&[("lane", lane)], waited.samples);
    }
}

fn put_peers(text: &mut Text, status: &NodeStatus, queues: &Queues) {
    let mut alive = text.gauge(
        "polyraft_peer_alive",
        "1 while the peer is heard within the election timeout.",
    );
    for peer in &status.peers {
        alive.value(&[("peer", &peer.node.0.to_string())], peer.alive.into());
    }
    let mut round_trip = text.gauge(
        "polyraft_peer_round_trip_seconds",
        "The connection's smoothed round trip; missing without a connection.",
    );
    for peer in &status.peers {
        if let Some(took) = peer.round_trip {
            let micros = took.as_micros() as u64;
            round_trip.seconds(&[("peer", &peer.node.0.to_string())], micros);
        }
    }
    let mut lanes = text.gauge(
        "polyraft_peer_queue_bytes",
        "Bytes in the queues of all lanes to the peer.",
    );
    for (peer, bytes) in &queues.lanes {
        lanes.value(&[("peer", &peer.0.to_string())], *bytes);
    }
}

fn put_network(text: &mut Text, status: &NodeStatus) {
    let (counters, network) = (&status.counters, &status.network);
    for (name, help, count) in [
        (
            "polyraft_beats_total",
            "Beats sent to other nodes.",
            counters.beats,
        ),
        (
            "polyraft_standing_asked_total",
            "Beats that asked another node to stand by the leaders here, for reads.",
            counters.standing_asked,
        ),
        (
            "polyraft_reads_asked_total",
            "Questions to a leader's node what reads here must wait for.",
            counters.reads_asked,
        ),
        (
            "polyraft_group_frames_total",
            "Frames handed to the transport, those of the liveness lanes apart.",
            counters.group_frames,
        ),
        (
            "polyraft_group_messages_total",
            "Group messages sent in those frames.",
            counters.group_messages,
        ),
        (
            "polyraft_refused_appends_total",
            "Appends dropped by a follower that was too far behind.",
            counters.refused_appends,
        ),
        (
            "polyraft_rejected_messages_total",
            "Damaged or impossible messages dropped.",
            counters.rejected_messages,
        ),
        (
            "polyraft_inline_applies_total",
            "Batches of committed entries that shards applied by themselves.",
            counters.inline_applies,
        ),
        (
            "polyraft_network_sent_frames_total",
            "Frames handed to a connection.",
            network.frames_sent,
        ),
        (
            "polyraft_network_sent_bytes_total",
            "Their bytes.",
            network.bytes_sent,
        ),
        (
            "polyraft_network_received_frames_total",
            "Frames that arrived.",
            network.frames_received,
        ),
        (
            "polyraft_network_received_bytes_total",
            "Their bytes.",
            network.bytes_received,
        ),
        (
            "polyraft_network_dropped_frames_total",
            "Frames dropped because their connection went down.",
            network.dropped,
        ),
        (
            "polyraft_network_refused_connections_total",
            "Connections refused by either side, or closed because of what came over them.",
            network.refused,
        ),
        (
            "polyraft_network_reconnects_total",
            "Connections that came up again.",
            network.reconnects,
        ),
    ] {
        text.counter(name, help).value(&[], count);
    }
}

fn put_snapshots(text: &mut Text, status: &NodeStatus) {
    let counters = &status.counters;
    for (name, help, count) in [
        (
            "polyraft_snapshots_total",
            "Snapshots taken of state machines here.",
            counters.snapshots,
        ),
        (
            "polyraft_failed_snapshots_total",
            "Snapshots that could not be taken.",
            counters.failed_snapshots,
        ),
        (
            "polyraft_restores_total",
            "State machines rebuilt from a snapshot.",
            counters.restores,
        ),
        (
            "polyraft_snapshots_offered_total",
            "Offers of a snapshot to followers that need more than the log holds.",
            counters.snapshots_offered,
        ),
        (
            "polyraft_snapshot_sent_bytes_total",
            "Bytes of snapshots sent to other nodes.",
            counters.snapshot_bytes_sent,
        ),
        (
            "polyraft_snapshots_received_total",
            "Snapshots taken from other nodes.",
            counters.snapshots_received,
        ),
        (
            "polyraft_resumed_transfers_total",
            "Transfers of snapshots that went on after an interruption, or after a part that took long.",
            counters.resumed_transfers,
        ),
        (
            "polyraft_failed_transfers_total",
            "Snapshots of other nodes that could not be taken.",
            counters.failed_transfers,
        ),
        (
            "polyraft_repairs_total",
            "Replicas whose damaged log was dropped, to get it from their peers.",
            counters.repairs,
        ),
    ] {
        text.counter(name, help).value(&[], count);
    }
    text.histogram(
        "polyraft_beat_late_seconds",
        "By how much more than their interval apart beats of a peer came; up to a quarter of the interval is the sender's choice.",
    )
    .seconds(&[], Range::DELAYS, &status.histograms.beat_late_us);
}

fn put_wal(text: &mut Text, wal: &WalStats) {
    text.histogram(
        "polyraft_wal_barrier_duration_seconds",
        "How long a sync of the log took.",
    )
    .seconds(&[], Range::DELAYS, &wal.barrier_us);
    text.histogram(
        "polyraft_wal_batch_bytes",
        "Bytes that one sync made durable.",
    )
    .values(&[], Range::BYTES, &wal.batch_bytes);
    for (name, help, count) in [
        (
            "polyraft_wal_written_bytes_total",
            "Bytes written to the log, headers and padding included.",
            wal.bytes_written,
        ),
        (
            "polyraft_wal_records_total",
            "Records written to the log.",
            wal.records,
        ),
        (
            "polyraft_wal_blocks_total",
            "Entry blocks among them.",
            wal.blocks,
        ),
        (
            "polyraft_wal_entries_total",
            "Entries in those blocks.",
            wal.entries,
        ),
        (
            "polyraft_wal_checkpoints_total",
            "Checkpoints of the index published.",
            wal.checkpoints,
        ),
        (
            "polyraft_wal_relocated_blocks_total",
            "Entry blocks moved out of sparse segments.",
            wal.relocated,
        ),
        (
            "polyraft_wal_inline_syncs_total",
            "Syncs of batches that shards did by themselves.",
            wal.inline_syncs,
        ),
        (
            "polyraft_wal_recycled_segments_total",
            "Segment files used again.",
            wal.recycled,
        ),
    ] {
        text.counter(name, help).value(&[], count);
    }
    for (name, help, value) in [
        (
            "polyraft_wal_segments",
            "Segment files that hold log.",
            wal.segments,
        ),
        (
            "polyraft_wal_live_bytes",
            "Bytes of entry blocks in use, as of the last checkpoint.",
            wal.live_bytes,
        ),
        (
            "polyraft_wal_disk_full",
            "1 while the disk has no room for another segment.",
            wal.disk_full.into(),
        ),
    ] {
        text.gauge(name, help).value(&[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Counters, Histograms};
    use polyraft_transport::NetworkStats;
    use std::time::Duration;

    const MANUAL: &str = include_str!("../../../../docs/metrics.md");

    const DASHBOARD: &str = include_str!("../../../../docs/grafana/polyraft.json");

    fn example() -> String {
        let status = NodeStatus {
            id: NodeId(1),
            opening: 1,
            groups: 12,
            led: 4,
            leaderless: 0,
            quarantined: 0,
            fault: None,
            peers: vec![PeerStatus {
                node: NodeId(2),
                alive: true,
                round_trip: Some(Duration::from_micros(150)),
                refused: None,
            }],
            wal: WalStats::default(),
            network: NetworkStats::default(),
            counters: Counters::default(),
            histograms: Histograms::default(),
        };
        let queues = Queues {
            lanes: vec![(NodeId(2), 77)],
            ..Queues::default()
        };
        render(&status, &queues)
    }

    /// The rows `| name | kind | help |` that the text stands for.
    fn families(text: &str) -> Vec<String> {
        let lines: Vec<&str> = text.lines().collect();
        let helps = lines.windows(2).filter_map(|pair| {
            let (name, help) = pair[0].strip_prefix("# HELP ")?.split_once(' ')?;
            let kind = pair[1].strip_prefix(&format!("# TYPE {name} "))?;
            Some(format!("| `{name}` | {kind} | {help} |"))
        });
        helps.collect()
    }

    #[test]
    fn manual_lists_every_metric_with_its_kind_and_meaning() {
        let rows: Vec<&str> = MANUAL
            .lines()
            .filter(|line| line.starts_with("| `polyraft_"))
            .collect();
        assert_eq!(rows, families(&example()));
    }

    #[test]
    fn dashboard_asks_for_nothing_that_is_not_there() {
        let text = example();
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let names: Vec<&str> = DASHBOARD
            .split(|letter| !is_part(letter))
            .filter(|word| word.starts_with("polyraft_"))
            .collect();
        assert!(names.len() > 20, "the dashboard shows something");
        for name in names {
            let series = format!("\n{name}");
            assert!(text.contains(&series), "no metric is called {name}");
        }
    }

    #[test]
    fn values_stand_where_they_belong() {
        let text = example();
        for line in [
            "polyraft_groups 12",
            "polyraft_peer_alive{peer=\"2\"} 1",
            "polyraft_peer_round_trip_seconds{peer=\"2\"} 0.00015",
            "polyraft_peer_queue_bytes{peer=\"2\"} 77",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}

//! The results of a demo: one value that becomes the table and the JSON, so that they never disagree.

use super::verify::Verification;
use crate::idle::Idle;
use crate::preflight::Preflight;
use crate::screen;
use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// Everything a demo found. Fields of phases that did not run are null or 0.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Number of nodes, all in one process.
    pub nodes: u64,
    /// Number of groups, each with a replica on every node.
    pub groups: u64,
    /// Number of groups that got load.
    pub active_groups: u64,
    /// Size of a proposal.
    pub payload_bytes: u64,
    /// Proposals in flight, over all groups together.
    pub inflight: u64,
    /// Measured length of the load phase. It ends before a node is stopped.
    pub seconds: f64,
    /// Proposals acknowledged in the load phase.
    pub committed: u64,
    /// `committed / seconds`.
    pub commits_per_second: f64,
    /// From sending a proposal to its acknowledgement, in the load phase.
    pub latency_us: Latency,
    /// Barriers (fdatasync or msync of a WAL) in the load phase, over all nodes.
    pub fsyncs: u64,
    /// Entries appended to the WALs in the load phase, divided by `fsyncs`: what one barrier makes durable on its
    /// node, on average.
    pub entries_per_barrier: f64,
    /// Bytes written to the WALs in the load phase, over all nodes, with headers and padding.
    pub wal_bytes: u64,
    /// Bytes of all frames between nodes in the load phase, divided by their number.
    pub bytes_per_frame: f64,
    /// Time that groups were without a leader after their leader's node was stopped; null if none was.
    pub failover_ms: Option<FailoverTimes>,
    /// CPU time of the whole process (all nodes and the load generator) in the load phase.
    pub cpu_seconds: f64,
    /// `cpu_seconds` for each million of `committed`.
    pub cpu_seconds_per_million: f64,
    /// Resident memory of the whole process after the load phase (after the idle phase if there was one).
    pub rss_bytes: u64,
    /// The part of `rss_bytes` that is mapped files, which the kernel can drop.
    pub rss_file_bytes: u64,
    /// Time to create the groups on all nodes.
    pub create_seconds: f64,
    /// Time from then until every node knew a leader of every group.
    pub led_seconds: f64,
    /// Anonymous memory of the process when the nodes ran and had no groups.
    pub empty_bytes: u64,
    /// What idle groups cost; null without `--idle`.
    pub idle: Option<Idle>,
    /// What they cost with one node down; null without `--idle-down`.
    pub idle_down: Option<Idle>,
    /// Time from the restart of the stopped node until it was open.
    pub restart_seconds: Option<f64>,
    /// Time from the restart of the stopped node until it had applied what the others had committed by then.
    pub catch_up_seconds: Option<f64>,
    /// Time from opening all nodes again until everything in their logs was applied.
    pub reopen_seconds: f64,
    /// Proposals refused before they entered a log, and sent again; all phases.
    pub retried: u64,
    /// What the machine can do.
    pub preflight: Option<Preflight>,
    /// What was checked at the end.
    pub verification: Verification,
    /// True if every promise was kept.
    pub verified: bool,
}

/// Quantiles of the latency in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Latency {
    /// The quantiles of a histogram of microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

/// Leaderless times in milliseconds, over the groups that the stopped node had led.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FailoverTimes {
    pub p50: f64,
    pub max: f64,
    /// How many groups that were.
    pub groups: u64,
}

impl Report {
    /// Writes the report as JSON.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text)
            .with_context(|| format!("cannot write the results to {}", path.display()))
    }

    /// The table, ready to print.
    pub fn table(&self) -> String {
        let mut rows: Vec<(&str, String)> = Vec::new();
        let mut row = |name, value| rows.push((name, value));
        row(
            "cluster",
            format!(
                "{} nodes, {} groups",
                self.nodes,
                screen::count(self.groups)
            ),
        );
        if self.committed > 0 {
            row(
                "load",
                format!(
                    "{} active groups, {} B payload, {} in flight, {:.1} s",
                    screen::count(self.active_groups),
                    self.payload_bytes,
                    screen::count(self.inflight),
                    self.seconds
                ),
            );
            row(
                "commits/s",
                format!(
                    "{} ({} in all)",
                    screen::count(self.commits_per_second as u64),
                    screen::count(self.committed)
                ),
            );
            let latency = self.latency_us;
            row(
                "commit latency",
                format!(
                    "p50 {}, p99 {}, p99.9 {}, max {}",
                    screen::micros(latency.p50),
                    screen::micros(latency.p99),
                    screen::micros(latency.p999),
                    screen::micros(latency.max)
                ),
            );
            row(
                "entries/barrier",
                format!(
                    "{} ({} barriers)",
                    screen::three_digits(self.entries_per_barrier),
                    screen::count(self.fsyncs)
                ),
            );
            row("written to WALs", screen::bytes(self.wal_bytes));
            row("bytes/frame", screen::count(self.bytes_per_frame as u64));
            row(
                "CPU s per million",
                format!(
                    "{} (nodes and load generator together)",
                    screen::three_digits(self.cpu_seconds_per_million)
                ),
            );
        }
        row(
            "resident memory",
            format!(
                "{} ({} of it mapped files)",
                screen::bytes(self.rss_bytes),
                screen::bytes(self.rss_file_bytes)
            ),
        );
        if let Some(idle) = self.idle {
            row(
                "idle",
                format!(
                    "{} % of a core, {} beats, {} group messages in {:.1} s",
                    screen::three_digits(idle.cpu_percent),
                    screen::count(idle.beats),
                    screen::count(idle.group_messages),
                    idle.seconds
                ),
            );
        }
        if let Some(failover) = self.failover_ms {
            row(
                "without a leader",
                format!(
                    "p50 {:.0} ms, max {:.0} ms ({} groups)",
                    failover.p50,
                    failover.max,
                    screen::count(failover.groups)
                ),
            );
        }
        if let Some(seconds) = self.catch_up_seconds {
            row(
                "caught up in",
                screen::time(Duration::from_secs_f64(seconds)),
            );
        }
        row(
            "reopened in",
            screen::time(Duration::from_secs_f64(self.reopen_seconds)),
        );
        let found = &self.verification;
        row(
            "checked",
            format!(
                "{} acknowledged writes at {} nodes, {} replicas",
                screen::count(found.acknowledged),
                self.nodes,
                screen::count(found.replicas)
            ),
        );
        row("verified", verdict(found, self.verified));
        screen::two_columns(&rows)
    }
}

/// The verification in one line.
fn verdict(found: &Verification, verified: bool) -> String {
    if verified {
        "yes: every write is there, none twice, replicas are equal".to_owned()
    } else {
        format!(
            "NO: {} missing, {} applied twice, {} unexpected, {} groups differ",
            screen::count(found.missing),
            screen::count(found.duplicated),
            screen::count(found.unexpected),
            screen::count(found.differing_groups)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Report {
        Report {
            nodes: 3,
            groups: 1024,
            active_groups: 1024,
            committed: 5,
            failover_ms: Some(FailoverTimes {
                p50: 210.0,
                max: 420.5,
                groups: 341,
            }),
            verified: true,
            ..Report::default()
        }
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let json = serde_json::to_value(sample()).unwrap();
        for field in [
            "nodes",
            "groups",
            "payload_bytes",
            "seconds",
            "committed",
            "commits_per_second",
            "fsyncs",
            "entries_per_barrier",
            "wal_bytes",
            "cpu_seconds",
            "rss_bytes",
        ] {
            assert!(json[field].is_number(), "{field}");
        }
        for quantile in ["p50", "p99", "p999", "max"] {
            assert!(json["latency_us"][quantile].is_u64(), "{quantile}");
        }
        assert_eq!(json["failover_ms"]["p50"], 210.0);
        assert_eq!(json["failover_ms"]["max"], 420.5);
        assert_eq!(json["verified"], true);
        assert!(json["idle"].is_null());
    }

    #[test]
    fn the_json_is_written_and_a_failure_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        sample().write_json(&path).unwrap();
        let read: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(read["groups"], 1024);
        let error = sample()
            .write_json(&dir.path().join("no/such/r.json"))
            .unwrap_err();
        assert!(error.to_string().contains("no/such/r.json"), "{error}");
    }

    #[test]
    fn the_table_is_aligned_and_leaves_out_what_did_not_run() {
        let table = sample().table();
        assert!(table.contains("commits/s"), "{table}");
        assert!(
            table.contains("p50 210 ms, max 420 ms (341 groups)"),
            "{table}"
        );
        assert!(!table.contains("idle"), "{table}");
        let idle_only = Report {
            committed: 0,
            failover_ms: None,
            ..sample()
        };
        assert!(!idle_only.table().contains("commits/s"));
    }

    #[test]
    fn a_failed_verification_is_loud() {
        let found = Verification {
            missing: 2,
            ..Verification::default()
        };
        assert!(verdict(&found, found.holds()).starts_with("NO: 2 missing"));
    }
}

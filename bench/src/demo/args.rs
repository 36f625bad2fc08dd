//! The arguments of `polyraft demo`, parsed into values that are in range.

use super::directory::Wanted;
use super::machine::ProposalId;
use anyhow::{Context, Result, ensure};
use clap::Args;
use polyraft::Config;
use std::path::PathBuf;

/// See a cluster of thousands of Raft groups commit, lose a node, recover, and prove that it kept its word.
///
/// The nodes run in this process, each with its own data directory, threads, certificate and UDP port; they talk
/// mutual-TLS QUIC and sync their logs to disk like nodes on separate machines.
///
/// The demo measures the machine, starts the nodes, creates the groups, drives load, stops a node and brings it back,
/// shuts everything down, opens it again from disk, and verifies: every acknowledged write is there, at every replica;
/// nothing was applied twice; all replicas of a group hold the same state. Exit code 0 means that all of this held.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Set RUST_LOG=info (or debug) to see what the engine logs, on the standard error."
)]
pub struct DemoArgs {
    /// How many nodes to start, 1 to 9 [default: 3, or what --dir holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=9))]
    pub nodes: Option<u64>,

    /// How many Raft groups to create, each with a replica on every node [default: 1024, or what --dir holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub groups: Option<u64>,

    /// How long to drive load; 0 drives none, and then no node is stopped either
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub seconds: u64,

    /// Size of a proposal in bytes; its first 16 bytes are its unique id
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u64).range(ProposalId::BYTES as u64..))]
    pub payload: u64,

    /// How many proposals to keep in flight, over all groups together
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub inflight: u64,

    /// Send load to the first N groups only; the others stay idle [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub active_groups: Option<u64>,

    /// Let the cluster rest for so long after the load, and report what idle groups cost
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub idle: u64,

    /// With --seconds 0: then stop the node that leads the most groups, report how long they have no leader and what the
    /// others cost for so long, and bring it back
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub idle_down: u64,

    /// Keep the data in DIR: a new or empty directory, or that of a former demo, which then goes on [default: a
    /// directory under ./data that is removed at the end]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Also write the results to FILE as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Append the id of every acknowledged proposal to FILE before counting it
    ///
    /// The file lives on when the demo is killed (kill -9). What the cluster had promised by then can be checked
    /// with `polyraft demo --dir DIR --verify-only --acked FILE`.
    #[arg(long, value_name = "FILE", requires = "dir")]
    pub acked: Option<PathBuf>,

    /// Drive no load: open the cluster that a former demo left in DIR, and verify it
    ///
    /// Waits until every group is led and applied, then checks that all replicas hold the same state, that nothing
    /// was applied twice, and, with --acked FILE, that every proposal acknowledged in FILE is there at every replica.
    #[arg(
        long,
        requires = "dir",
        conflicts_with_all = ["nodes", "groups", "seconds", "payload", "inflight", "active_groups", "idle", "idle_down"]
    )]
    pub verify_only: bool,

    /// Configure the nodes by a TOML file, as in docs/configuration.md
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl DemoArgs {
    /// What is asked of the directory.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            nodes: self.nodes,
            groups: self.groups,
        }
    }

    /// The nodes' configuration.
    pub fn load_config(&self) -> Result<Config> {
        match &self.config {
            None => Ok(Config::default()),
            Some(path) => {
                Config::load(path).with_context(|| format!("--config {}", path.display()))
            }
        }
    }

    /// Checks what depends on the configuration and on the number of groups.
    pub fn check(&self, config: &Config, groups: u64) -> Result<()> {
        let limit = config.batch.max_proposal_bytes.as_u64();
        ensure!(
            self.payload <= limit,
            "--payload {} is over batch.max_proposal_bytes = {limit}; give less, or raise the limit in a --config FILE",
            self.payload
        );
        if let Some(active) = self.active_groups {
            ensure!(
                active <= groups,
                "--active-groups {active} is more than the {groups} groups there are; raise --groups"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        demo: DemoArgs,
    }

    fn parse(line: &str) -> Result<DemoArgs, String> {
        Line::try_parse_from(std::iter::once("demo").chain(line.split_whitespace()))
            .map(|line| line.demo)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Line::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let args = parse("").unwrap();
        assert_eq!(
            (args.seconds, args.payload, args.inflight, args.idle),
            (10, 128, 1024, 0)
        );
        assert!(args.dir.is_none() && args.nodes.is_none() && args.groups.is_none());
        args.check(&Config::default(), 1024).unwrap();
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for line in [
            "--nodes 0",
            "--nodes 10",
            "--groups 0",
            "--payload 15",
            "--inflight 0",
            "--active-groups 0",
            "--seconds -1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in [
            "--nodes 1",
            "--nodes 9",
            "--groups 1",
            "--payload 16",
            "--seconds 0",
        ] {
            parse(line).unwrap();
        }
    }

    #[test]
    fn verifying_needs_a_directory_and_drives_no_load() {
        assert!(parse("--verify-only").unwrap_err().contains("--dir"));
        assert!(parse("--acked a").unwrap_err().contains("--dir"));
        assert!(parse("--verify-only --dir d --groups 3").is_err());
        parse("--verify-only --dir d --acked a --json j").unwrap();
    }

    #[test]
    fn payload_and_active_groups_are_checked_against_the_rest() {
        let config = Config::default();
        let limit = config.batch.max_proposal_bytes.as_u64();
        let args = parse(&format!("--payload {limit}")).unwrap();
        args.check(&config, 1).unwrap();
        let args = parse(&format!("--payload {}", limit + 1)).unwrap();
        assert!(
            args.check(&config, 1)
                .unwrap_err()
                .to_string()
                .contains("max_proposal_bytes")
        );
        let args = parse("--active-groups 5").unwrap();
        assert!(
            args.check(&config, 4)
                .unwrap_err()
                .to_string()
                .contains("raise --groups")
        );
        args.check(&config, 5).unwrap();
    }
}

//! What is compared: the engines, and the rows of the table.

use crate::load::Workload;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// An engine under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// Polyraft over QUIC with mutual TLS.
    Polyraft,
    /// raft-rs with raft-engine, messages over channels.
    RaftRs,
    /// openraft with a log file, calls instead of messages.
    Openraft,
}

impl Engine {
    /// All, in the order in which they take turns.
    pub const ALL: [Engine; 3] = [Engine::Polyraft, Engine::RaftRs, Engine::Openraft];

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Engine::Polyraft => "Polyraft",
            Engine::RaftRs => "raft-rs",
            Engine::Openraft => "openraft",
        }
    }

    /// As the command line spells it.
    pub fn argument(self) -> String {
        let value = self.to_possible_value();
        let value = value.expect("no engine is hidden");
        value.get_name().to_owned()
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What is measured.
    pub workload: Workload,
    /// Polyraft's commits per second are to be so many times those of raft-rs.
    over_raft_rs: f64,
}

impl Row {
    /// How many times the commits per second of `engine` Polyraft is to reach at least.
    pub fn target(&self, engine: Engine) -> Option<f64> {
        match engine {
            Engine::Polyraft => None,
            Engine::RaftRs => Some(self.over_raft_rs),
            Engine::Openraft => Some(OVER_OPENRAFT),
        }
    }
}

const fn row(groups: usize, inflight: usize, payload_bytes: usize, over_raft_rs: f64) -> Row {
    Row {
        workload: Workload {
            groups,
            inflight,
            payload_bytes,
        },
        over_raft_rs,
    }
}

/// Polyraft's commits per second are to be so many times those of openraft, in every row.
const OVER_OPENRAFT: f64 = 3.0;

/// The rows, counted from 1 on the command line, each with its target against raft-rs.
pub const ROWS: [Row; 5] = [
    row(1024, 1024, 16, 4.0),
    row(1024, 8192, 16, 2.5),
    row(64, 8192, 16, 1.5),
    row(1, 8192, 16, 1.2),
    row(1024, 1024, 128, 4.0),
];

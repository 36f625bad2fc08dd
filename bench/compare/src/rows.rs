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
}

const fn row(groups: usize, inflight: usize, payload_bytes: usize) -> Row {
    Row {
        workload: Workload {
            groups,
            inflight,
            payload_bytes,
        },
    }
}

/// The rows, counted from 1 on the command line.
pub const ROWS: [Row; 5] = [
    row(1024, 1024, 16),
    row(1024, 8192, 16),
    row(64, 8192, 16),
    row(1, 8192, 16),
    row(1024, 1024, 128),
];

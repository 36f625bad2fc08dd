//! What a cluster without load costs: CPU, messages, memory. It waits and looks; it never changes anything.

use crate::screen::{self, Screen};
use crate::totals::Totals;
use crate::{cluster::Cluster, process};
use anyhow::Result;
use polyraft::{Node, StateMachine};
use serde::Serialize;
use std::time::{Duration, Instant};

/// What a cluster without load costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Idle {
    /// Measured length of the idle phase.
    pub seconds: f64,
    /// CPU time of all nodes together, in percent of one core.
    pub cpu_percent: f64,
    /// How often their threads went to sleep or had to give way.
    pub switches_per_second: f64,
    /// Beats between nodes.
    pub beats: u64,
    /// Messages that belong to single groups. A quiet cluster sends none.
    pub group_messages: u64,
    /// Elections. A quiet cluster has none.
    pub elections: u64,
    /// Anonymous memory beyond that of nodes without groups, for each replica of the running nodes.
    pub bytes_per_replica: u64,
}

impl Idle {
    /// In a line.
    pub fn told(&self, groups: u64, nodes: u64) -> String {
        format!(
            "{} % of a core, {:.0} context switches/s and {} a replica for {} groups on {nodes} nodes; {} beats, {} group messages, {} elections in {:.1} s",
            screen::three_digits(self.cpu_percent),
            self.switches_per_second,
            screen::bytes(self.bytes_per_replica),
            screen::count(groups),
            screen::count(self.beats),
            screen::count(self.group_messages),
            self.elections,
            self.seconds
        )
    }

    /// Beats and messages of groups in a second.
    pub fn messages_per_second(&self) -> f64 {
        (self.beats + self.group_messages) as f64 / self.seconds
    }
}

/// Measures the running nodes of a cluster, which have `groups` groups, for so many seconds. `empty_bytes` of anonymous memory
/// is what the process had before there were groups.
pub async fn measure<M: StateMachine>(
    cluster: &Cluster<M>,
    groups: u64,
    seconds: u64,
    empty_bytes: u64,
    screen: &Screen,
) -> Result<Idle> {
    let nodes = cluster.running();
    let (cpu_before, totals_before) = (process::cpu_time(), Totals::of(&nodes));
    let switches_before = process::context_switches();
    let started = Instant::now();
    for tick in 1..=seconds {
        tokio::time::sleep_until((started + Duration::from_secs(tick)).into()).await;
        screen.live(format!("{tick:>3}/{seconds} s idle"), false);
    }
    let passed = started.elapsed().as_secs_f64();
    let totals = Totals::of(&nodes) - totals_before;
    let cpu = process::cpu_time() - cpu_before;
    let switches = process::context_switches().saturating_sub(switches_before);
    cluster.check_health()?;
    let replicas = groups * nodes.len() as u64;
    let beyond = process::resident().anonymous().saturating_sub(empty_bytes);
    Ok(Idle {
        seconds: passed,
        cpu_percent: 100.0 * cpu.as_secs_f64() / passed,
        switches_per_second: switches as f64 / passed,
        beats: totals.beats,
        group_messages: totals.group_messages,
        elections: totals.elections,
        bytes_per_replica: beyond / replicas.max(1),
    })
}

/// The last commit notices of a load are not idle cost: waits until half a second has passed without a group message, but
/// not for ever, because a cluster that never falls silent is what the measurement is to show.
pub async fn until_quiet<M: StateMachine>(nodes: &[Node<M>], screen: &Screen) {
    screen.live("waiting for silence ...".into(), false);
    let mut messages = Totals::of(nodes).group_messages;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = Totals::of(nodes).group_messages;
        if now == messages {
            return;
        }
        messages = now;
    }
}

//! The nodes that a measurement runs on: started, led, looked at, harmed and stopped. It never sends load itself.

use crate::cluster::{Cluster, Site};
use crate::load::{LocalPort, Port};
use crate::process;
use crate::stall::StallDisk;
use crate::tally::Tally;
use crate::totals::Totals;
use anyhow::{Context, Result, bail};
use polyraft::{Config, Node, ProposalTrace};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the nodes may take to hear one another.
const LINKED_LIMIT: Duration = Duration::from_secs(30);
/// How long all groups may take to be led.
const LED_LIMIT: Duration = Duration::from_secs(120);

/// How many nodes and groups, and how they are configured.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Number of nodes.
    pub nodes: u64,
    /// Number of groups, each with a replica on every node.
    pub groups: u64,
    /// Of every node.
    pub config: Config,
}

/// What the nodes have done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Their counters, added up.
    pub totals: Totals,
    /// CPU time of their processes.
    pub cpu: Duration,
    /// Whether the generator's CPU time is in `cpu`, because all run in one process.
    pub shares_process: bool,
    /// Resident memory of their processes in bytes.
    pub resident: u64,
}

/// Running nodes, linked, with all groups created and led.
pub struct Nodes {
    cluster: Cluster<Tally>,
    disks: Vec<Arc<StallDisk>>,
    groups: u64,
    proposal_timeout: Duration,
    round_trip: Option<Duration>,
}

impl Nodes {
    /// Starts everything below `dir`, which is empty.
    pub async fn start(shape: &Shape, dir: &Path) -> Result<Self> {
        let site = Site {
            name: "bench",
            directories: (1..=shape.nodes)
                .map(|id| dir.join(format!("node-{id}")))
                .collect(),
            ca: dir.join("ca"),
            groups: shape.groups,
        };
        let disks: Vec<_> = (0..shape.nodes)
            .map(|_| Arc::new(StallDisk::default()))
            .collect();
        let cluster = Cluster::new(site, shape.config.clone())?;
        let cluster = cluster.with_disks(disks.iter().map(|disk| Arc::clone(disk) as _).collect());
        let mut nodes = Self {
            cluster,
            disks,
            groups: shape.groups,
            proposal_timeout: shape.config.shards.proposal_timeout,
            round_trip: None,
        };
        match nodes.bring_up().await {
            Ok(()) => Ok(nodes),
            Err(error) => {
                // The first failure is the one to tell.
                let _ = nodes.stop().await;
                Err(error)
            }
        }
    }

    async fn bring_up(&mut self) -> Result<()> {
        self.cluster.start_all().await?;
        self.cluster.until_linked(LINKED_LIMIT).await?;
        // Before the groups come: later it would measure the nodes' work instead of the way.
        self.round_trip = self.cluster.lowest_round_trip().await;
        let running = self.cluster.running();
        let creator = running.first().context("there is a node")?;
        creator
            .create_groups(0..self.groups, &self.cluster.members())
            .await
            .context("the groups cannot be created")?;
        self.cluster.until_led(LED_LIMIT).await
    }

    /// The lowest round trip between any two nodes before there was load. None with one node.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// `shards.proposal_timeout` of the nodes.
    pub fn proposal_timeout(&self) -> Duration {
        self.proposal_timeout
    }

    /// A port for each thread of a generator.
    pub fn ports(&self, threads: usize, active_groups: u64) -> Result<Vec<Box<dyn Port>>> {
        let port = || {
            Box::new(LocalPort::new(
                Arc::clone(self.cluster.roster()),
                active_groups,
            ))
        };
        Ok((0..threads).map(|_| port() as Box<dyn Port>).collect())
    }

    /// Their counters and costs. Fails if one has stopped serving without being told to.
    pub async fn look(&self) -> Result<Look> {
        self.cluster.check_health()?;
        Ok(Look {
            totals: Totals::of(&self.cluster.running()),
            cpu: process::cpu_time(),
            shares_process: true,
            resident: process::resident().total,
        })
    }

    /// Which of the first `active_groups` groups the node that leads the most of them leads, and which node that is.
    pub async fn busiest(&self, active_groups: u64) -> Result<(u64, Vec<u64>)> {
        let running = self.cluster.running();
        let mut busiest = None;
        for node in &running {
            let id = node.id();
            let led: Vec<u64> = (0..active_groups)
                .filter(|group| {
                    node.group(*group)
                        .leader()
                        .is_some_and(|(leader, _)| leader == id)
                })
                .collect();
            if busiest
                .as_ref()
                .is_none_or(|(_, most): &(u64, Vec<u64>)| led.len() > most.len())
            {
                busiest = Some((id.0, led));
            }
        }
        match busiest {
            Some((id, led)) if !led.is_empty() => Ok((id, led)),
            _ => bail!("no node leads any of the groups under load"),
        }
    }

    /// The records of traced proposals since the last call.
    pub async fn take_traces(&self) -> Result<Vec<ProposalTrace>> {
        let running = self.cluster.running();
        Ok(running.iter().flat_map(Node::take_traces).collect())
    }

    /// Ends one node for good.
    pub async fn kill(&self, id: u64) -> Result<()> {
        self.cluster.stop(id).await
    }

    /// Has one node stand still. It goes on with [`Nodes::resume`].
    pub fn pause(&self, _id: u64) -> Result<()> {
        bail!("the fault `pause` needs --processes: nodes in one process stand still together")
    }

    /// Has a paused node go on.
    pub fn resume(&self, _id: u64) -> Result<()> {
        Ok(())
    }

    /// Has the syncs of one node's log end no sooner than `lasts` from now.
    pub async fn stall_disk(&self, id: u64, lasts: Duration) -> Result<()> {
        self.disks[(id - 1) as usize].stall(lasts);
        Ok(())
    }

    /// Stops all nodes, and waits until they are down.
    pub async fn stop(&self) -> Result<()> {
        self.cluster.stop_all().await
    }
}

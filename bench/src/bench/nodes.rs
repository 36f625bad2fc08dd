//! The nodes that a measurement runs on, in this process or in processes of their own: started, led, looked at, harmed
//! and stopped. It never sends load itself.

use super::fleet::Fleet;
use crate::cluster::{Cluster, Site, place};
use crate::load::{LocalPort, Port};
use crate::tally::Tally;
use crate::totals::Totals;
use crate::{allocator, process};
use anyhow::{Context, Result, bail};
use polyraft::{Config, Node, ProposalTrace};
use polyraft_storage::sim::StallDisk;
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
    /// Whether each node is a process of its own.
    pub processes: bool,
    /// Bytes of memory that are populated beforehand, by all processes together.
    pub populate: u64,
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
    place: Where,
    proposal_timeout: Duration,
    round_trip: Option<Duration>,
}

enum Where {
    Here {
        cluster: Box<Cluster<Tally>>,
        disks: Vec<Arc<StallDisk>>,
    },
    Apart(Fleet),
}

impl Nodes {
    /// Starts everything below `dir`, which is empty.
    pub async fn start(shape: &Shape, dir: &Path) -> Result<Self> {
        let (place, round_trip) = if shape.processes {
            let (fleet, round_trip) = Fleet::start(shape, dir).await?;
            (Where::Apart(fleet), round_trip)
        } else {
            // Again for each cluster: the allocator gives back what one has freed.
            allocator::populate(shape.populate)
                .context("memory can't be populated; --populate 0 goes without")?;
            start_here(shape, dir).await?
        };
        Ok(Self {
            place,
            proposal_timeout: shape.config.shards.proposal_timeout,
            round_trip,
        })
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
        match &self.place {
            Where::Here { cluster, .. } => {
                let port = || LocalPort::new(Arc::clone(cluster.roster()), active_groups);
                Ok((0..threads)
                    .map(|_| Box::new(port()) as Box<dyn Port>)
                    .collect())
            }
            Where::Apart(fleet) => fleet.ports(threads),
        }
    }

    /// The nodes that run in this process.
    pub fn running(&self) -> Vec<Node<Tally>> {
        match &self.place {
            Where::Here { cluster, .. } => cluster.running(),
            Where::Apart(_) => Vec::new(),
        }
    }

    /// Their counters and costs. Fails if one has stopped serving without being told to.
    pub async fn look(&self) -> Result<Look> {
        match &self.place {
            Where::Here { cluster, .. } => {
                cluster.check_health()?;
                Ok(Look {
                    totals: Totals::of(&cluster.running()),
                    cpu: process::cpu_time(),
                    shares_process: true,
                    resident: process::resident().total,
                })
            }
            Where::Apart(fleet) => fleet.look().await,
        }
    }

    /// The node that leads the most of the first `active_groups` groups, and which of them it leads.
    pub fn busiest(&self, active_groups: u64) -> Result<(u64, Vec<u64>)> {
        let busiest = match &self.place {
            Where::Here { cluster, .. } => busiest_here(cluster, active_groups),
            Where::Apart(fleet) => fleet.busiest(active_groups),
        };
        match busiest {
            Some((id, led)) if !led.is_empty() => Ok((id, led)),
            _ => bail!("no node leads any of the groups under load"),
        }
    }

    /// The records of traced proposals since the last call.
    pub async fn take_traces(&self) -> Result<Vec<ProposalTrace>> {
        match &self.place {
            Where::Here { cluster, .. } => {
                let running = cluster.running();
                Ok(running.iter().flat_map(Node::take_traces).collect())
            }
            Where::Apart(fleet) => fleet.take_traces().await,
        }
    }

    /// Ends one node for good.
    pub async fn kill(&self, id: u64) -> Result<()> {
        match &self.place {
            Where::Here { cluster, .. } => cluster.stop(id).await,
            Where::Apart(fleet) => fleet.kill(id),
        }
    }

    /// Has one node stand still. It goes on with [`Nodes::resume`].
    pub fn pause(&self, id: u64) -> Result<()> {
        match &self.place {
            Where::Here { .. } => bail!("nodes in one process stand still together"),
            Where::Apart(fleet) => fleet.pause(id),
        }
    }

    /// Has a paused node go on.
    pub fn resume(&self, id: u64) -> Result<()> {
        match &self.place {
            Where::Here { .. } => Ok(()),
            Where::Apart(fleet) => fleet.resume(id),
        }
    }

    /// Has the syncs of one node's log end no sooner than `lasts` from now.
    pub async fn stall_disk(&self, id: u64, lasts: Duration) -> Result<()> {
        match &self.place {
            Where::Here { disks, .. } => {
                disks[place(id)].stall(lasts);
                Ok(())
            }
            Where::Apart(fleet) => fleet.stall_disk(id, lasts).await,
        }
    }

    /// Stops all nodes, and waits until they are down.
    pub async fn stop(&self) -> Result<()> {
        match &self.place {
            Where::Here { cluster, .. } => cluster.stop_all().await,
            Where::Apart(fleet) => fleet.stop().await,
        }
    }
}

async fn start_here(shape: &Shape, dir: &Path) -> Result<(Where, Option<Duration>)> {
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
    let cluster = Cluster::new(site, shape.config.clone())?
        .with_disks(disks.iter().map(|disk| Arc::clone(disk) as _).collect());
    match bring_up(&cluster, shape.groups).await {
        Ok(round_trip) => {
            let cluster = Box::new(cluster);
            Ok((Where::Here { cluster, disks }, round_trip))
        }
        Err(error) => {
            // The first failure is the one to tell.
            let _ = cluster.stop_all().await;
            Err(error)
        }
    }
}

async fn bring_up(cluster: &Cluster<Tally>, groups: u64) -> Result<Option<Duration>> {
    cluster.start_all().await?;
    cluster.until_linked(LINKED_LIMIT).await?;
    // Before the groups come: later it would measure the nodes' work instead of the way.
    let round_trip = cluster.lowest_round_trip().await;
    let running = cluster.running();
    let creator = running.first().context("there is a node")?;
    creator
        .create_groups(0..groups, &cluster.members())
        .await
        .context("the groups cannot be created")?;
    cluster.until_led(LED_LIMIT).await?;
    Ok(round_trip)
}

fn busiest_here(cluster: &Cluster<Tally>, active_groups: u64) -> Option<(u64, Vec<u64>)> {
    let running = cluster.running();
    let led = running.iter().map(|node| {
        let is_led = |group: &u64| {
            node.group(*group)
                .leader()
                .is_some_and(|(leader, _)| leader == node.id())
        };
        (
            node.id().0,
            (0..active_groups).filter(is_led).collect::<Vec<_>>(),
        )
    });
    led.max_by_key(|(_, led)| led.len())
}

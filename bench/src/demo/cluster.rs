//! The nodes of the demo: all in this process, each with its own data directory, certificate and UDP port. It starts,
//! stops and waits; it never measures and never decides what the demo does next.

use super::directory::DemoDir;
use super::machine::Ledger;
use anyhow::{Context, Result, bail};
use polyraft::{Config, Error, GroupStatus, Node, OpenError, Tls};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// A node that runs the demo's state machine.
pub type DemoNode = Node<Ledger>;

/// Name in every certificate of the demo.
const CLUSTER: &str = "demo";

/// How often a state that is not there yet is looked at again.
const POLL: Duration = Duration::from_millis(5);

/// Which nodes run now, for threads that send load to them.
#[derive(Debug, Default)]
pub struct Roster {
    /// Grows with every change of `nodes`.
    epoch: AtomicU64,
    /// By node, in the order of the ids; None while the node is stopped.
    nodes: Mutex<Vec<Option<DemoNode>>>,
}

impl Roster {
    /// The number of changes so far: cheap to compare with the one of the last [`Roster::nodes`].
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The nodes, and the epoch they belong to.
    pub fn nodes(&self) -> (u64, Vec<Option<DemoNode>>) {
        let nodes = self.lock();
        (self.epoch(), nodes.clone())
    }

    fn set(&self, at: usize, node: Option<DemoNode>) -> Option<DemoNode> {
        let mut nodes = self.lock();
        let before = std::mem::replace(&mut nodes[at], node);
        self.epoch.fetch_add(1, Ordering::Release);
        before
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<DemoNode>>> {
        self.nodes
            .lock()
            .expect("no thread panics while it holds the roster")
    }
}

/// The demo's nodes, running or stopped.
pub struct Cluster {
    /// Data directories, in the order of the ids, which count from 1.
    directories: Vec<PathBuf>,
    ca: PathBuf,
    addresses: Vec<SocketAddr>,
    config: Config,
    groups: u64,
    roster: Arc<Roster>,
}

impl Cluster {
    /// A cluster of stopped nodes.
    pub fn new(dir: &DemoDir, config: Config) -> Result<Self> {
        let manifest = dir.manifest();
        let directories: Vec<_> = (1..=manifest.nodes).map(|id| dir.node(id)).collect();
        let roster = Roster::default();
        roster.lock().resize_with(directories.len(), || None);
        Ok(Self {
            addresses: free_addresses(directories.len())?,
            directories,
            ca: dir.ca(),
            config,
            groups: manifest.groups,
            roster: Arc::new(roster),
        })
    }

    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// Number of groups that the cluster is meant to have; their ids are `0..groups`.
    pub fn groups(&self) -> u64 {
        self.groups
    }

    /// After how long a node answers a proposal that has no result.
    pub fn proposal_timeout(&self) -> Duration {
        self.config.shards.proposal_timeout
    }

    /// The ids of all nodes, running or not.
    pub fn members(&self) -> Vec<u64> {
        (1..=self.directories.len() as u64).collect()
    }

    /// The running nodes.
    pub fn running(&self) -> Vec<DemoNode> {
        self.roster.lock().iter().flatten().cloned().collect()
    }

    /// Starts the node with this id from its directory.
    pub async fn start(&self, id: u64) -> Result<()> {
        let opening = self.open(id);
        self.enroll(id, opening).await
    }

    /// Starts all nodes side by side. Waits for all, and reports the first failure.
    pub async fn start_all(&self) -> Result<()> {
        let openings: Vec<_> = self
            .members()
            .into_iter()
            .map(|id| (id, self.open(id)))
            .collect();
        let mut result = Ok(());
        for (id, opening) in openings {
            result = result.and(self.enroll(id, opening).await);
        }
        result
    }

    /// Opens a node on a thread of its own: recovery reads files, and Ctrl-C must be heard meanwhile.
    fn open(&self, id: u64) -> JoinHandle<Result<DemoNode, OpenError>> {
        let peers: Vec<(u64, SocketAddr)> = self
            .members()
            .into_iter()
            .zip(self.addresses.iter().copied())
            .filter(|(peer, _)| *peer != id)
            .collect();
        let builder = Node::<Ledger>::builder()
            .id(id)
            .cluster(CLUSTER)
            .data_dir(&self.directories[place(id)])
            .listen(self.addresses[place(id)])
            .peers(peers)
            .tls(Tls::dev(&self.ca))
            .config(self.config.clone());
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(builder.open()))
    }

    async fn enroll(
        &self,
        id: u64,
        opening: JoinHandle<Result<DemoNode, OpenError>>,
    ) -> Result<()> {
        let node = opening.await?.with_context(|| {
            format!(
                "node {id} does not open from {}",
                self.directories[place(id)].display()
            )
        })?;
        self.roster.set(place(id), Some(node));
        Ok(())
    }

    /// Stops one node. It is off the roster at once, and down when the future completes.
    pub async fn stop(&self, id: u64) -> Result<()> {
        let Some(node) = self.roster.set(place(id), None) else {
            return Ok(());
        };
        node.shutdown()
            .await
            .with_context(|| format!("node {id} does not shut down cleanly"))
    }

    /// Stops all nodes. Goes on when one of them fails, and reports the first failure.
    pub async fn stop_all(&self) -> Result<()> {
        let mut result = Ok(());
        for id in self.members() {
            result = result.and(self.stop(id).await);
        }
        result
    }

    /// Waits until every running node hears every other one.
    pub async fn until_linked(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let is_linked = |node: &DemoNode| {
            let peers = node.status().peers;
            peers
                .iter()
                .all(|peer| peer.alive && peer.round_trip.is_some())
        };
        while !self.running().iter().all(is_linked) {
            self.check_health()?;
            if Instant::now() > deadline {
                bail!(
                    "the nodes do not hear one another after {} s ({})",
                    limit.as_secs(),
                    self.explain_links()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until every running node knows a leader of every group.
    pub async fn until_led(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for node in self.running() {
            let mut waiting: Vec<_> = (0..self.groups).map(|group| node.group(group)).collect();
            loop {
                waiting.retain(|handle| handle.leader().is_none());
                if waiting.is_empty() {
                    break;
                }
                self.check_health()?;
                if Instant::now() > deadline {
                    bail!(
                        "{} of {} groups have no leader after {} s, as node {} sees it ({})",
                        waiting.len(),
                        self.groups,
                        limit.as_secs(),
                        node.id(),
                        self.explain_links()
                    );
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Waits until all replicas of every group have applied everything that is in their logs, and as much as one
    /// another. Without load that state lasts.
    pub async fn until_applied(&self, limit: Duration) -> Result<()> {
        let nodes = self.running();
        self.until(
            limit,
            0..self.groups,
            "are not applied at every replica",
            async |group| {
                let mut reached = None;
                for node in &nodes {
                    let Some(status) = healthy(node, group).await? else {
                        return Ok(false);
                    };
                    let is_settled = status.applied == status.last.index && status.leader.is_some();
                    if !is_settled || *reached.get_or_insert(status.last) != status.last {
                        return Ok(false);
                    }
                }
                Ok(true)
            },
        )
        .await
    }

    /// Waits until node `id` has applied, in every group, what the other nodes had committed when this was called.
    pub async fn until_caught_up(&self, id: u64, limit: Duration) -> Result<()> {
        let nodes = self.running();
        let (late, others): (Vec<_>, Vec<_>) =
            nodes.into_iter().partition(|node| node.id().0 == id);
        let late = late.first().with_context(|| format!("node {id} runs"))?;
        let mut targets = Vec::new();
        for group in 0..self.groups {
            let mut target = Default::default();
            for node in &others {
                let status = healthy(node, group).await?;
                target = status.map_or(target, |status| status.committed.max(target));
            }
            targets.push(target);
        }
        self.until(limit, 0..self.groups, "have not caught up", async |group| {
            let status = healthy(late, group).await?;
            Ok(status.is_some_and(|status| status.applied >= targets[group as usize]))
        })
        .await
    }

    /// Asks about each group until it is ready. Groups that are not are asked again after a pause.
    async fn until(
        &self,
        limit: Duration,
        groups: std::ops::Range<u64>,
        complaint: &str,
        is_ready: impl AsyncFn(u64) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut waiting: Vec<u64> = groups.collect();
        loop {
            let mut still = Vec::new();
            for group in waiting {
                if !is_ready(group).await? {
                    still.push(group);
                }
            }
            waiting = still;
            let Some(first) = waiting.first() else {
                return Ok(());
            };
            self.check_health()?;
            if Instant::now() > deadline {
                bail!(
                    "{} groups {complaint} after {} s; the first is {}",
                    waiting.len(),
                    limit.as_secs(),
                    self.explain_group(*first).await
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Fails if a node has stopped serving or has put groups into quarantine.
    pub fn check_health(&self) -> Result<()> {
        for node in self.running() {
            let status = node.status();
            if let Some(fault) = &status.fault {
                bail!("node {} has stopped serving: {fault}", status.id);
            }
            if status.quarantined > 0 {
                bail!(
                    "node {} has {} groups in quarantine",
                    status.id,
                    status.quarantined
                );
            }
        }
        Ok(())
    }

    /// What the nodes say about their links, for a message about groups without a leader.
    fn explain_links(&self) -> String {
        let mut links = Vec::new();
        for node in self.running() {
            let status = node.status();
            for peer in &status.peers {
                let state = match (&peer.refused, peer.alive) {
                    (Some(reason), _) => format!("refused: {reason}"),
                    (None, true) => "alive".to_owned(),
                    (None, false) => "silent".to_owned(),
                };
                links.push(format!("{} to {} {state}", status.id, peer.node));
            }
        }
        format!("links: {}", links.join(", "))
    }

    async fn explain_group(&self, group: u64) -> String {
        let mut replicas = Vec::new();
        for node in self.running() {
            replicas.push(match node.group(group).status().await {
                Ok(status) => format!(
                    "node {}: {:?}, term {}, leader {}, last {}, durable {}, committed {}, applied {}",
                    node.id(),
                    status.role,
                    status.term,
                    status.leader.map_or_else(|| "unknown".to_owned(), |leader| leader.to_string()),
                    status.last.index,
                    status.durable,
                    status.committed,
                    status.applied
                ),
                Err(error) => format!("node {}: {error}", node.id()),
            });
        }
        format!("group {group} ({})", replicas.join("; "))
    }
}

/// The status of a replica that is not in quarantine. None while the node has just been opened and does not serve the
/// group yet.
async fn healthy(node: &DemoNode, group: u64) -> Result<Option<GroupStatus>> {
    let status = match node.group(group).status().await {
        Err(Error::NoSuchGroup { .. }) => return Ok(None),
        status => status
            .with_context(|| format!("node {} does not answer for group {group}", node.id()))?,
    };
    if let Some(fault) = &status.fault {
        bail!(
            "group {group} is in quarantine on node {}: {fault}",
            node.id()
        );
    }
    Ok(Some(status))
}

/// Where the node with this id stands in lists of all nodes.
pub fn place(id: u64) -> usize {
    usize::try_from(id - 1).expect("a demo has at most nine nodes")
}

/// Free UDP ports on the loopback interface. All are held until the last is found, so that they differ.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let sockets: Vec<UdpSocket> = (0..count)
        .map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()
        .context("no free UDP port on 127.0.0.1")?;
    Ok(sockets
        .iter()
        .map(UdpSocket::local_addr)
        .collect::<Result<_, _>>()?)
}

//! Nodes for a measurement: all in this process, each with its own data directory, certificate and UDP port. It starts,
//! stops and waits; it never measures and never decides what happens next.

use anyhow::{Context, Result, bail};
use polyraft::{Config, Error, GroupStatus, Node, OpenError, StateMachine, Tls};
use polyraft_storage::Disk;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// How often a state that is not there yet is looked at again.
const POLL: Duration = Duration::from_millis(5);

/// Which nodes run now, for threads that send load to them.
pub struct Roster<M: StateMachine> {
    /// Grows with every change of `nodes`.
    epoch: AtomicU64,
    /// By node, in the order of the ids; None while the node is stopped.
    nodes: Mutex<Vec<Option<Node<M>>>>,
}

impl<M: StateMachine> Roster<M> {
    /// Nobody runs.
    fn new(nodes: usize) -> Self {
        Self {
            epoch: AtomicU64::new(0),
            nodes: Mutex::new((0..nodes).map(|_| None).collect()),
        }
    }

    /// The number of changes so far: cheap to compare with the one of the last [`Roster::nodes`].
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The nodes, and the epoch they belong to.
    pub fn nodes(&self) -> (u64, Vec<Option<Node<M>>>) {
        let nodes = self.lock();
        (self.epoch(), nodes.clone())
    }

    fn set(&self, at: usize, node: Option<Node<M>>) -> Option<Node<M>> {
        let mut nodes = self.lock();
        let before = std::mem::replace(&mut nodes[at], node);
        self.epoch.fetch_add(1, Ordering::Release);
        before
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<Node<M>>>> {
        self.nodes
            .lock()
            .expect("no thread panics while it holds the roster")
    }
}

/// Where a cluster lives, and what it is to have.
#[derive(Clone, Debug)]
pub struct Site {
    /// Name in every certificate.
    pub name: &'static str,
    /// Data directories, in the order of the ids, which count from 1.
    pub directories: Vec<PathBuf>,
    /// Where the development CA lives.
    pub ca: PathBuf,
    /// Number of groups; their ids are `0..groups`.
    pub groups: u64,
}

impl Site {
    /// All of it in one directory.
    pub fn below(base: &Path, name: &'static str, nodes: u64, groups: u64) -> Site {
        let directory = |id| base.join(format!("node-{id}"));
        Site {
            name,
            directories: (1..=nodes).map(directory).collect(),
            ca: base.join("ca"),
            groups,
        }
    }
}

/// Nodes, running or stopped.
pub struct Cluster<M: StateMachine> {
    site: Site,
    addresses: Vec<SocketAddr>,
    config: Config,
    /// By node; empty where all use the machine's file system as it is.
    disks: Vec<Arc<dyn Disk>>,
    roster: Arc<Roster<M>>,
}

impl<M: StateMachine> Cluster<M> {
    /// A cluster of stopped nodes.
    pub fn new(site: Site, config: Config) -> Result<Self> {
        let nodes = site.directories.len();
        Ok(Self {
            addresses: free_addresses(nodes)?,
            roster: Arc::new(Roster::new(nodes)),
            site,
            config,
            disks: Vec::new(),
        })
    }

    /// The same with a disk of its own for each node.
    pub fn with_disks(mut self, disks: Vec<Arc<dyn Disk>>) -> Self {
        assert_eq!(disks.len(), self.site.directories.len());
        self.disks = disks;
        self
    }

    pub fn roster(&self) -> &Arc<Roster<M>> {
        &self.roster
    }

    /// Number of groups that the cluster is meant to have; their ids are `0..groups`.
    pub fn groups(&self) -> u64 {
        self.site.groups
    }

    /// After how long a node answers a proposal that has no result.
    pub fn proposal_timeout(&self) -> Duration {
        self.config.shards.proposal_timeout
    }

    /// The ids of all nodes, running or not.
    pub fn members(&self) -> Vec<u64> {
        (1..=self.site.directories.len() as u64).collect()
    }

    /// The running nodes.
    pub fn running(&self) -> Vec<Node<M>> {
        self.roster.lock().iter().flatten().cloned().collect()
    }

    /// Starts the node with this id from its directory.
    pub async fn start(&self, id: u64) -> Result<()> {
        let opening = self.open(id);
        self.enroll(id, opening).await
    }

    /// Starts all nodes and waits until they hear one another.
    pub async fn start_linked(&self, limit: Duration) -> Result<()> {
        self.start_all().await?;
        self.until_linked(limit).await
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
    fn open(&self, id: u64) -> JoinHandle<Result<Node<M>, OpenError>> {
        let peers: Vec<(u64, SocketAddr)> = self
            .members()
            .into_iter()
            .zip(self.addresses.iter().copied())
            .filter(|(peer, _)| *peer != id)
            .collect();
        let mut builder = Node::<M>::builder()
            .id(id)
            .cluster(self.site.name)
            .data_dir(&self.site.directories[place(id)])
            .listen(self.addresses[place(id)])
            .peers(peers)
            .tls(Tls::dev(&self.site.ca))
            .config(self.config.clone())
            .on_idle(crate::process::give_back);
        if let Some(disk) = self.disks.get(place(id)) {
            builder = builder.disk(Arc::clone(disk));
        }
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(builder.open()))
    }

    async fn enroll(&self, id: u64, opening: JoinHandle<Result<Node<M>, OpenError>>) -> Result<()> {
        let node = opening.await?.with_context(|| {
            format!(
                "node {id} does not open from {}",
                self.site.directories[place(id)].display()
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
        let is_linked = |node: &Node<M>| {
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
            let mut waiting: Vec<_> = (0..self.site.groups)
                .map(|group| node.group(group))
                .collect();
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
                        self.site.groups,
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
            0..self.site.groups,
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
        for group in 0..self.site.groups {
            let mut target = Default::default();
            for node in &others {
                let status = healthy(node, group).await?;
                target = status.map_or(target, |status| status.committed.max(target));
            }
            targets.push(target);
        }
        self.until(
            limit,
            0..self.site.groups,
            "have not caught up",
            async |group| {
                let status = healthy(late, group).await?;
                Ok(status.is_some_and(|status| status.applied >= targets[group as usize]))
            },
        )
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

    /// The lowest round trip that any pair of nodes reports within a second. The connections smooth it, beginning with the
    /// handshake, which takes much longer than a packet, so it takes some beats to come down. None with one node.
    pub async fn lowest_round_trip(&self) -> Option<Duration> {
        let nodes = self.running();
        let mut lowest = None;
        for _ in 0..20 {
            let now = nodes
                .iter()
                .flat_map(|node| node.status().peers)
                .filter_map(|peer| peer.round_trip)
                .min()?;
            lowest = Some(lowest.map_or(now, |lowest: Duration| lowest.min(now)));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        lowest
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
async fn healthy<M: StateMachine>(node: &Node<M>, group: u64) -> Result<Option<GroupStatus>> {
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
    usize::try_from(id - 1).expect("a cluster has a handful of nodes")
}

/// Free UDP ports on the loopback interface. All are held until the last is found, so that they differ.
pub fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let sockets: Vec<UdpSocket> = (0..count)
        .map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()
        .context("no free UDP port on 127.0.0.1")?;
    Ok(sockets
        .iter()
        .map(UdpSocket::local_addr)
        .collect::<Result<_, _>>()?)
}

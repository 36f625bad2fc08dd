//! Polyraft: three nodes in this process, each with its own data directory, certificate and UDP port, over QUIC with
//! mutual TLS.

use crate::digest::Digest;
use crate::load::{Cluster, Fate, NODES, Outcome};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use polyraft::{
    Completion, CompletionQueue, Config, Entry, Error, GroupHandle, GroupId, Index, MachineError,
    Node, NodeId, Read, Replies, StateMachine, Tls,
};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// The best settings that we found, as for the peers. A shard syncs and applies by itself, as the stores of raft-rs do: these syncs and
/// this state machine never block for long. What is written is not read again, so it needs no page cache. A round writes no checkpoint:
/// raft-engine has none, and reads all of its log when it is opened.
const SETTINGS: &str = r#"
[wal]
inline_sync = "10ms"
direct_io = true
checkpoint_bytes = "1GiB"

[apply]
inline = "10ms"
"#;

/// How long the nodes may take to hear each other and to elect leaders.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How often a state that is not there yet is looked at again.
const POLL: Duration = Duration::from_millis(5);

impl StateMachine for Digest {
    fn open(_group: GroupId, _dir: &Path) -> Result<(Self, Index), MachineError> {
        Ok((Self::default(), Index::ZERO))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        for entry in entries {
            Digest::apply(self, entry.payload);
            replies.push([]);
        }
        Ok(())
    }

    fn query(&self, _query: &[u8]) -> Result<Bytes, MachineError> {
        Ok(Bytes::copy_from_slice(&self.to_bytes()))
    }

    fn snapshot(&self) -> Result<polyraft::FrozenState, MachineError> {
        let bytes = self.to_bytes();
        Ok(Box::new(move |out| Ok(out.write_all(&bytes)?)))
    }

    fn restore(&mut self, _last: Index, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        *self = Digest::parse(&bytes).ok_or("this is not a digest")?;
        Ok(())
    }
}

/// The three nodes and their client's side.
pub struct Polyraft {
    runtime: Runtime,
    nodes: Vec<Node<Digest>>,
    /// By node, then by group.
    handles: Vec<Vec<GroupHandle<Digest>>>,
    /// By group: the node to propose to, counted from 0.
    leaders: Vec<usize>,
    queue: CompletionQueue,
    completions: Vec<Completion>,
    /// Refused at once: their outcomes.
    refused: Vec<Outcome>,
}

impl Polyraft {
    /// Starts the nodes in `dir`, creates the groups and waits for their leaders.
    pub fn start(dir: &Path, groups: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        let addresses = free_addresses()?;
        let mut nodes = Vec::new();
        for id in 1..=NODES as u64 {
            let peers = (1..).zip(addresses.iter().copied());
            let builder = Node::<Digest>::builder()
                .id(id)
                .cluster("compare")
                .data_dir(dir.join(format!("node-{id}")))
                .listen(addresses[id as usize - 1])
                .peers(peers.filter(|(peer, _)| *peer != id))
                .tls(Tls::dev(dir.join("ca")))
                .config(Config::from_toml_str(SETTINGS)?);
            nodes.push(runtime.block_on(builder.open())?);
        }
        let deadline = Instant::now() + START_LIMIT;
        until(deadline, "the nodes do not hear each other", || {
            nodes
                .iter()
                .all(|node| node.status().peers.iter().all(|peer| peer.alive))
        })?;
        let members: Vec<u64> = (1..=NODES as u64).collect();
        runtime.block_on(nodes[0].create_groups(0..groups as u64, &members))?;
        let handles = nodes
            .iter()
            .map(|node| (0..groups as u64).map(|group| node.group(group)).collect());
        let mut cluster = Self {
            handles: handles.collect(),
            leaders: (0..groups).map(|group| group % NODES).collect(),
            runtime,
            nodes,
            queue: CompletionQueue::new(),
            completions: Vec::new(),
            refused: Vec::new(),
        };
        // As with the peers: node g % 3 leads group g. First leaders are spread as well, but a node whose disk is slow just
        // then comes too late for its share.
        while !cluster.is_spread() {
            cluster.spread(deadline)?;
            std::thread::sleep(POLL);
        }
        Ok(cluster)
    }

    /// Whether every node knows the node that is to lead each group as its leader: then no election is under way.
    fn is_spread(&self) -> bool {
        let of_node = |handles: &Vec<GroupHandle<Digest>>| {
            let mut leaders = handles.iter().map(GroupHandle::leader).enumerate();
            leaders.all(|(group, leader)| leader.is_some_and(|(node, _)| node == wanted(group)))
        };
        self.handles.iter().all(of_node)
    }

    /// Has groups handed to the nodes that are to lead them. What fails is tried again.
    fn spread(&mut self, deadline: Instant) -> Result<()> {
        for group in 0..self.leaders.len() {
            ensure!(Instant::now() < deadline, "the leaders are not spread");
            self.look_up_leader(group);
            let (leader, to) = (self.leaders[group], wanted(group));
            if leader + 1 != to.0 as usize {
                let handed = self.handles[leader][group].transfer_leadership(to.0);
                let _ = self.runtime.block_on(handed);
            }
            self.leaders[group] = group % NODES;
        }
        Ok(())
    }

    fn look_up_leader(&mut self, group: usize) {
        if let Some((leader, _)) = self.handles[self.leaders[group]][group].leader() {
            self.leaders[group] = leader.0 as usize - 1;
        }
    }

    fn fate(&mut self, slot: u32, error: &Error) -> Fate {
        let group = slot as usize % self.leaders.len();
        self.look_up_leader(group);
        if error.is_retryable() {
            Fate::Refused
        } else {
            Fate::Open
        }
    }

    /// Stops all nodes.
    pub fn stop(self) -> Result<()> {
        for node in &self.nodes {
            self.runtime.block_on(node.shutdown())?;
        }
        Ok(())
    }
}

impl Cluster for Polyraft {
    fn propose(&mut self, group: usize, slot: u32, payload: Bytes) {
        let handle = &self.handles[self.leaders[group]][group];
        if let Err(error) = handle.propose_with(payload, u64::from(slot), &self.queue) {
            self.fate(slot, &error);
            self.refused.push(Outcome {
                slot,
                fate: Fate::Refused,
            });
        }
    }

    fn flush(&mut self) {}

    fn outcomes(&mut self, out: &mut Vec<Outcome>, timeout: Duration) {
        let timeout = match self.refused.is_empty() {
            true => timeout,
            false => Duration::ZERO,
        };
        out.append(&mut self.refused);
        let mut completions = std::mem::take(&mut self.completions);
        self.queue.drain(&mut completions, timeout);
        for completion in completions.drain(..) {
            let slot = completion.tag as u32;
            let fate = match &completion.result {
                Ok(_) => Fate::Committed,
                Err(error) => self.fate(slot, error),
            };
            out.push(Outcome { slot, fate });
        }
        self.completions = completions;
    }

    fn digests(&mut self) -> Result<Vec<Vec<Digest>>> {
        let mut digests = Vec::new();
        for handles in &self.handles {
            let mut of_node = Vec::new();
            for handle in handles {
                let reply = self
                    .runtime
                    .block_on(handle.read(Read::LOCAL, Bytes::new()))?;
                of_node.push(Digest::parse(&reply).context("this is not a digest")?);
            }
            digests.push(of_node);
        }
        Ok(digests)
    }

    fn syncs(&self) -> Vec<u64> {
        let syncs = self.nodes.iter().map(|node| node.status().wal.barriers);
        syncs.collect()
    }

    fn leaders(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.status().led).collect()
    }
}

/// The node that is to lead a group.
fn wanted(group: usize) -> NodeId {
    NodeId((group % NODES) as u64 + 1)
}

fn until(deadline: Instant, complaint: &str, is_ready: impl Fn() -> bool) -> Result<()> {
    while !is_ready() {
        ensure!(Instant::now() < deadline, "{complaint}");
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Free UDP ports. All are held until the last is found, so that they differ.
fn free_addresses() -> Result<Vec<SocketAddr>> {
    let sockets = (0..NODES)
        .map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<Vec<_>, _>>()?;
    let addresses = sockets.iter().map(UdpSocket::local_addr);
    Ok(addresses.collect::<Result<_, _>>()?)
}

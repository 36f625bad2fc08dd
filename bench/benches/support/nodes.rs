//! Three whole nodes on one thread, without their threads, disks and sockets: the log is on a disk in memory, and frames
//! are handed over at once. What is left is the code of the turns, which the caller starts one by one and can time.

use bytes::Bytes;
use polyraft::sim::{SimNode, SimPlace};
use polyraft::{
    CompletionQueue, Config, Entry, FrozenState, GroupHandle, GroupId, Index, MachineError, NodeId,
    Replies, StateMachine,
};
use polyraft_storage::sim::SimDisk;
use polyraft_transport::{
    FORMAT_VERSION, Hello, Lane, LinkEvent, Network, NetworkStats, Receiver, SendError,
};
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

const NODES: u64 = 3;

/// Microseconds that pass between two rounds of turns.
const ROUND: u64 = 1_000;

const PAYLOAD: &[u8] = &[7; 128];

/// Counts entries.
#[derive(Default)]
pub struct Counter(u64);

impl StateMachine for Counter {
    fn open(_group: GroupId, _dir: &Path) -> Result<(Self, Index), MachineError> {
        Ok((Self::default(), Index::ZERO))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        self.0 += entries.len() as u64;
        entries.iter().for_each(|_| replies.push([]));
        Ok(())
    }

    fn query(&self, _query: &[u8]) -> Result<Bytes, MachineError> {
        Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        Err("nobody takes snapshots here".into())
    }

    fn restore(&mut self, _: Index, _: &mut dyn std::io::Read) -> Result<(), MachineError> {
        Err("nobody takes snapshots here".into())
    }
}

/// What a node has sent and nobody has received yet.
#[derive(Default)]
struct Wire(Mutex<Vec<(NodeId, Lane, Bytes)>>);

impl Network for Wire {
    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        let mut sent = self.0.lock().expect("one thread uses it");
        sent.push((to, lane, frame));
        Ok(())
    }

    fn queued_bytes(&self, _to: NodeId) -> usize {
        0
    }

    fn max_frame_bytes(&self, _to: NodeId) -> usize {
        4 << 20
    }

    fn stats(&self) -> NetworkStats {
        NetworkStats::default()
    }

    fn round_trip(&self, _to: NodeId) -> Option<Duration> {
        None
    }

    fn shutdown(&self) {}

    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }
}

struct Host {
    node: SimNode<Counter>,
    wire: Arc<Wire>,
    clock: Arc<AtomicU64>,
}

/// The nodes, with all groups led.
pub struct Nodes {
    hosts: Vec<Host>,
    /// By group: the handle on the leader's node.
    leaders: Vec<GroupHandle<Counter>>,
    queue: CompletionQueue,
}

/// How long the turns took that this covers.
#[derive(Default)]
pub struct Took {
    /// The leaders' turns that take the proposals in: pack, write, send.
    pub propose: Duration,
    /// All turns.
    pub all: Duration,
}

impl Nodes {
    /// Three nodes with `groups` groups.
    pub fn new(groups: u64) -> Self {
        let hosts = (1..=NODES).map(open_host).collect();
        let mut nodes = Self {
            hosts,
            leaders: Vec::new(),
            queue: CompletionQueue::new(),
        };
        nodes.connect();
        let mut rounds = (0..).take(10_000);
        let members: Vec<u64> = (1..=NODES).collect();
        let first = nodes.hosts[0].node.node().clone();
        let mut created = pin!(first.create_groups(0..groups, &members));
        let mut context = Context::from_waker(Waker::noop());
        while created.as_mut().poll(&mut context).is_pending() {
            assert!(rounds.next().is_some(), "the groups are not created");
            nodes.round();
        }
        while nodes.leaders.is_empty() {
            assert!(rounds.next().is_some(), "the groups are not led");
            nodes.round();
            nodes.leaders = nodes.find_leaders(groups).unwrap_or_default();
        }
        nodes
    }

    fn find_leaders(&self, groups: u64) -> Option<Vec<GroupHandle<Counter>>> {
        let leader = |group| {
            let (leader, _) = self.hosts[0].node.node().group(group).leader()?;
            let handle = self.hosts[leader.0 as usize - 1].node.node().group(group);
            (handle.leader()?.0 == leader).then_some(handle)
        };
        (0..groups).map(leader).collect()
    }

    fn connect(&self) {
        for host in &self.hosts {
            for peer in &self.hosts {
                let identity = peer.node.identity().clone();
                if identity.node != host.node.node().id() {
                    let node = identity.node;
                    let hello = Hello {
                        identity,
                        version: FORMAT_VERSION,
                    };
                    let round_trip = Duration::from_micros(10);
                    let up = LinkEvent::Up { hello, round_trip };
                    host.node.receiver().link(node, up);
                }
            }
        }
    }

    /// Commits an entry in each group, and says how long the turns took.
    pub fn commit_one_each(&mut self) -> Took {
        for leader in &self.leaders {
            let proposed = leader.propose_with(Bytes::from_static(PAYLOAD), 0, &self.queue);
            proposed.expect("the inbox has room");
        }
        let mut took = Took::default();
        took.propose = self.round();
        took.all = took.propose;
        let mut done = Vec::with_capacity(self.leaders.len());
        while done.len() < self.leaders.len() {
            took.all += self.round();
            self.queue.drain(&mut done, Duration::ZERO);
        }
        assert!(done.iter().all(|done| done.result.is_ok()));
        took
    }

    /// A turn of each node, timed, and what the other threads would do meanwhile, not timed.
    fn round(&mut self) -> Duration {
        let mut took = Duration::ZERO;
        for host in &mut self.hosts {
            host.clock.fetch_add(ROUND, Ordering::Relaxed);
            let start = Instant::now();
            host.node.turn(0);
            took += start.elapsed();
            let wal = host.node.wal(0);
            while wal.pump().expect("the disk in memory is sound") {}
            while wal.tend().expect("the disk in memory is sound") {}
            while host.node.work(0) {}
        }
        for at in 0..self.hosts.len() {
            let from = self.hosts[at].node.node().id();
            let sent = std::mem::take(&mut *self.hosts[at].wire.0.lock().expect("as above"));
            for (to, lane, frame) in sent {
                let receiver: &Arc<dyn Receiver> = self.hosts[to.0 as usize - 1].node.receiver();
                receiver.frame(from, lane, frame);
            }
        }
        took
    }
}

fn open_host(id: u64) -> Host {
    let (wire, clock) = (Arc::new(Wire::default()), Arc::new(AtomicU64::new(0)));
    let others = (1..=NODES).filter(|peer| *peer != id);
    let peers: Vec<_> = others
        .map(|peer| (peer, ([127, 0, 0, 1], 1).into()))
        .collect();
    let mut config = Config::default();
    // The least that is allowed: a disk in memory keeps every page that was ever written.
    config.wal.segment_bytes = polyraft::config::ByteSize::mib(8);
    let place = SimPlace {
        disk: Arc::new(SimDisk::new(id)),
        path: Path::new("/node"),
        cluster: "bench",
        id,
        peers: &peers,
        config: &config,
        clock: Arc::clone(&clock),
    };
    let network = Arc::clone(&wire);
    let node = SimNode::open(&place, |_, _| network as _).expect("the disk is empty");
    Host { node, wire, clock }
}

//! Commits from end to end: three nodes in this process over QUIC with mutual TLS, each with its log on a real disk (the
//! target directory's). One proposal at a time, and 1,024 in flight over 64 groups.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use polyraft::{
    Completion, CompletionQueue, Entry, FrozenState, GroupHandle, GroupId, Index, MachineError,
    Node, Replies, StateMachine, Tls,
};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const NODES: u64 = 3;
const GROUPS: u64 = 64;
const IN_FLIGHT: u64 = 1024;
const PAYLOAD: &[u8] = &[7; 16];
const START_LIMIT: Duration = Duration::from_secs(30);

/// Keeps nothing.
struct Nothing;

impl StateMachine for Nothing {
    fn open(_group: GroupId, _dir: &Path) -> Result<(Self, Index), MachineError> {
        Ok((Self, Index::ZERO))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        entries.iter().for_each(|_| replies.push([]));
        Ok(())
    }

    fn query(&self, _query: &[u8]) -> Result<Bytes, MachineError> {
        Ok(Bytes::new())
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        Err("nobody takes snapshots here".into())
    }

    fn restore(&mut self, _: Index, _: &mut dyn std::io::Read) -> Result<(), MachineError> {
        Ok(())
    }
}

struct Cluster {
    runtime: Runtime,
    nodes: Vec<Node<Nothing>>,
    /// By group: the handle on the leader's node.
    leaders: Vec<GroupHandle<Nothing>>,
    _place: TempDir,
}

impl Cluster {
    fn start() -> Self {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("the target directory is writable");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime can be had");
        let addresses = free_addresses();
        let open = |id: u64| {
            Node::<Nothing>::builder()
                .id(id)
                .data_dir(place.path().join(format!("node-{id}")))
                .listen(addresses[id as usize - 1].1)
                .peers(addresses.iter().copied())
                .tls(Tls::dev(place.path().join("ca")))
                .open()
        };
        let nodes: Vec<Node<Nothing>> = (1..=NODES)
            .map(|id| runtime.block_on(open(id)).expect("a node opens"))
            .collect();
        let members: Vec<u64> = (1..=NODES).collect();
        runtime
            .block_on(nodes[0].create_groups(0..GROUPS, &members))
            .expect("groups are created");
        let deadline = Instant::now() + START_LIMIT;
        let leaders = (0..GROUPS)
            .map(|group| {
                loop {
                    let leader = nodes[0].group(group).leader();
                    if let Some((leader, _)) = leader {
                        break nodes[leader.0 as usize - 1].group(group);
                    }
                    assert!(Instant::now() < deadline, "group {group} has no leader");
                    std::thread::yield_now();
                }
            })
            .collect();
        Self {
            leaders,
            runtime,
            nodes,
            _place: place,
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.nodes {
            // The bench is over; what a node has to say is in its log.
            let _ = self.runtime.block_on(node.shutdown());
        }
    }
}

fn free_addresses() -> Vec<(u64, SocketAddr)> {
    let sockets: Vec<UdpSocket> = (0..NODES)
        .map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"))
        .collect();
    let addresses = sockets.iter().map(|socket| {
        let address = socket.local_addr();
        address.expect("a bound socket has an address")
    });
    (1..).zip(addresses).collect()
}

fn commits(criterion: &mut Criterion) {
    let cluster = Cluster::start();
    let mut group = criterion.benchmark_group("commit");
    group.sample_size(20);
    group.throughput(Throughput::Elements(1));
    group.bench_function("one at a time", |bencher| {
        bencher.iter(|| {
            let proposed = cluster.leaders[0].propose(Bytes::from_static(PAYLOAD));
            cluster.runtime.block_on(proposed).expect("it is committed")
        });
    });
    group.throughput(Throughput::Elements(IN_FLIGHT));
    group.bench_function("1,024 in flight, 64 groups", |bencher| {
        bencher.iter_custom(|windows| run_windows(&cluster, windows));
    });
    group.finish();
}

/// Keeps the window full until as many proposals are committed as fill it `windows` times.
fn run_windows(cluster: &Cluster, windows: u64) -> Duration {
    let queue = CompletionQueue::new();
    let propose = |number: u64| {
        let leader = &cluster.leaders[(number % GROUPS) as usize];
        leader
            .propose_with(Bytes::from_static(PAYLOAD), number % GROUPS, &queue)
            .expect("the inbox has room");
    };
    let start = Instant::now();
    (0..IN_FLIGHT).for_each(propose);
    let mut left = windows * IN_FLIGHT;
    let mut sent = IN_FLIGHT;
    let mut done: Vec<Completion> = Vec::new();
    while left > 0 {
        queue.drain(&mut done, Duration::from_secs(1));
        for Completion { tag, result } in done.drain(..) {
            result.expect("it is committed");
            left -= 1;
            if sent < windows * IN_FLIGHT {
                sent += 1;
                propose(tag);
            }
        }
    }
    start.elapsed()
}

criterion_group!(benches, commits);
criterion_main!(benches);

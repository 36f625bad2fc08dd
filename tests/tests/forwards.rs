//! Proposals that a follower sends on to the leader, over a network that does not take every frame. Two nodes run step
//! by step over simulated disks and a simulated clock; nothing here waits.

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use polyraft::sim::{SimNode, SimPlace, SimRecord, read_frame};
use polyraft::{Committed, CompletionQueue, Config, Error, NodeId};
use polyraft_storage::sim::SimDisk;
use polyraft_tests::Ledger;
use polyraft_transport::{
    FORMAT_VERSION, Hello, Lane, LinkEvent, Network, NetworkStats, SendError,
};

const GROUP: u64 = 1;

/// A node's way out. It keeps frames until they are delivered, and refuses those with what was asked for.
#[derive(Default)]
struct Port {
    sent: Mutex<Vec<(Lane, Bytes)>>,
    refusal: Mutex<Option<SendError>>,
    refused: AtomicU64,
}

impl Port {
    fn refuse(&self, error: Option<SendError>) {
        *self.refusal.lock().unwrap() = error;
    }
}

/// Whether a frame carries anything else than Raft messages and liveness.
fn carries_forwards(lane: Lane, frame: &Bytes) -> bool {
    let mut has = false;
    if lane != Lane::Liveness {
        read_frame(frame, |record| {
            has |= !matches!(record, SimRecord::Group { .. })
        });
    }
    has
}

impl Network for Port {
    fn send(&self, _to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        if let Some(error) = *self.refusal.lock().unwrap()
            && carries_forwards(lane, &frame)
        {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        self.sent.lock().unwrap().push((lane, frame));
        Ok(())
    }

    fn queued_bytes(&self, _to: NodeId) -> usize {
        0
    }

    fn max_frame_bytes(&self, _to: NodeId) -> usize {
        1 << 20
    }

    fn stats(&self) -> NetworkStats {
        NetworkStats::default()
    }

    fn round_trip(&self, _to: NodeId) -> Option<Duration> {
        None
    }

    fn shutdown(&self) {}

    fn local_addr(&self) -> Option<std::net::SocketAddr> {
        None
    }
}

struct Pair {
    nodes: Vec<SimNode<Ledger>>,
    ports: Vec<Arc<Port>>,
    clock: Arc<AtomicU64>,
    queue: CompletionQueue,
}

impl Pair {
    /// Two connected nodes with one group, led by one of them.
    fn start() -> Pair {
        let mut config = Config::default();
        config.shards.count = 1;
        config.wal.segment_bytes = polyraft::config::ByteSize::mib(8);
        let clock = Arc::new(AtomicU64::new(0));
        let ports: Vec<Arc<Port>> = (0..2).map(|_| Arc::default()).collect();
        let nodes = [1, 2].map(|id| {
            let place = SimPlace {
                disk: Arc::new(SimDisk::new(id)),
                path: Path::new("/data"),
                cluster: "pair",
                id,
                peers: &[(3 - id, ([127, 0, 0, 1], 1).into())],
                config: &config,
                clock: Arc::clone(&clock),
            };
            let port = Arc::clone(&ports[id as usize - 1]);
            SimNode::open(&place, |_, _| port as _).unwrap()
        });
        let mut pair = Pair {
            nodes: nodes.into(),
            ports,
            clock,
            queue: CompletionQueue::new(),
        };
        for at in 0..2 {
            let hello = Hello {
                identity: pair.nodes[1 - at].identity().clone(),
                version: FORMAT_VERSION,
            };
            pair.nodes[at].receiver().admit(&hello).unwrap();
            let round_trip = Duration::ZERO;
            let up = LinkEvent::Up { hello, round_trip };
            let peer = NodeId(2 - at as u64);
            pair.nodes[at].receiver().link(peer, up);
        }
        let handle = pair.nodes[0].node().clone();
        let mut creation = Box::pin(async move { handle.create_groups([GROUP], &[1, 2]).await });
        let mut context = Context::from_waker(Waker::noop());
        pair.run_until(|_| creation.as_mut().poll(&mut context).is_ready());
        pair.run_until(|pair| {
            let leader = |at: usize| pair.nodes[at].node().group(GROUP).leader();
            leader(0).is_some() && leader(0) == leader(1)
        });
        pair
    }

    /// Everything that the nodes can do within a millisecond.
    fn step(&mut self) {
        self.clock.fetch_add(1_000, Ordering::Relaxed);
        for at in 0..2 {
            let node = &mut self.nodes[at];
            node.turn(0);
            while node.wal(0).pump().unwrap() {}
            node.wal(0).tend().unwrap();
            while node.work(0) {}
            node.turn(0);
            let sent = std::mem::take(&mut *self.ports[at].sent.lock().unwrap());
            for (lane, frame) in sent {
                let from = NodeId(at as u64 + 1);
                self.nodes[1 - at].receiver().frame(from, lane, frame);
            }
        }
    }

    fn run_until(&mut self, mut done: impl FnMut(&Pair) -> bool) {
        for _ in 0..5_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("five seconds went by");
    }

    fn leader(&self) -> usize {
        let (leader, _) = self.nodes[0].node().group(GROUP).leader().unwrap();
        leader.0 as usize - 1
    }

    fn propose_on(&self, node: usize) {
        let group = self.nodes[node].node().group(GROUP);
        group.propose_with("payload", 0, &self.queue).unwrap();
    }

    fn outcome(&self) -> Option<Result<Committed, Error>> {
        let mut done = Vec::new();
        self.queue.drain(&mut done, Duration::ZERO);
        done.pop().map(|completion| completion.result)
    }
}

const FULL: SendError = SendError::Full {
    queued: 60,
    limit: 64,
};

#[test]
fn a_forward_that_never_left_is_refused_at_once() {
    let mut pair = Pair::start();
    let leader = pair.leader();
    let follower = 1 - leader;
    let hint = Some(NodeId(leader as u64 + 1));
    let busy = Error::Busy {
        what: "transport.queue_bytes",
        limit: 64,
    };
    for (refusal, expected) in [
        (FULL, busy),
        (SendError::Disconnected, Error::NotLeader { hint }),
    ] {
        pair.ports[follower].refuse(Some(refusal));
        pair.propose_on(follower);
        pair.step();
        assert_eq!(pair.outcome(), Some(Err(expected)));
    }
    // Neither was kept to be sent later, and the way is open again.
    pair.ports[follower].refuse(None);
    pair.propose_on(follower);
    let mut outcome = None;
    pair.run_until(|pair| {
        outcome = outcome.take().or(pair.outcome());
        outcome.is_some()
    });
    let committed = outcome.unwrap().unwrap();
    assert_eq!(committed.reply, 1_u64.to_le_bytes()[..]);
}

#[test]
fn an_answer_to_a_forward_waits_for_a_lane_that_is_full() {
    let mut pair = Pair::start();
    let leader = pair.leader();
    pair.ports[leader].refuse(Some(FULL));
    pair.propose_on(1 - leader);
    pair.run_until(|pair| pair.ports[leader].refused.load(Ordering::Relaxed) > 3);
    assert_eq!(pair.outcome(), None);
    pair.ports[leader].refuse(None);
    let mut outcome = None;
    pair.run_until(|pair| {
        outcome = outcome.take().or(pair.outcome());
        outcome.is_some()
    });
    assert!(outcome.unwrap().is_ok());
}

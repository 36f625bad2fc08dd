//! Two and more real networks on the loopback interface.
//!
//! Owns the fixtures: nodes, a receiver that records, and certificates good and bad. Tests wait for
//! conditions with a generous deadline, never for time to pass.

mod certificates;
mod frames;
mod identity;
mod links;
mod proxy;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use polyraft_raft::NodeId;
use rcgen::{CertificateParams, Issuer, KeyPair};
use tempfile::TempDir;

use super::{QuicListener, QuicNetwork};
use crate::tls::PeerName;
use crate::tls::dev::{ca_params, node_params};
use crate::{Hello, Identity, Lane, LinkEvent, Network, Options, Receiver, SendError, Tls};

const DEADLINE: Duration = Duration::from_secs(20);
const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const THREE: NodeId = NodeId(3);

/// A receiver that keeps everything.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Seen>,
    changed: Condvar,
    paused: AtomicBool,
    panics: AtomicBool,
    /// The next call panics, once.
    next_admit_panics: AtomicBool,
    next_up_panics: AtomicBool,
    refusal: Mutex<Option<String>>,
    /// Held by a test that wants no answer to be given meanwhile.
    admitting: Mutex<()>,
}

#[derive(Debug, Default)]
struct Seen {
    events: Vec<(NodeId, LinkEvent)>,
    frames: Vec<(NodeId, Lane, Bytes)>,
    /// Those that asked to be admitted.
    asked: Vec<NodeId>,
    failures: Vec<String>,
}

impl Seen {
    fn ups(&self, node: NodeId) -> usize {
        self.count(node, |event| matches!(event, LinkEvent::Up { .. }))
    }

    fn downs(&self, node: NodeId) -> usize {
        self.count(node, |event| matches!(event, LinkEvent::Down { .. }))
    }

    fn count(&self, node: NodeId, is: impl Fn(&LinkEvent) -> bool) -> usize {
        let wanted = |(from, event): &&(NodeId, LinkEvent)| *from == node && is(event);
        self.events.iter().filter(wanted).count()
    }

    fn refusal(&self, node: NodeId) -> Option<String> {
        self.events.iter().find_map(|(from, event)| match event {
            LinkEvent::Refused { reason } if *from == node => Some(reason.clone()),
            _ => None,
        })
    }

    fn down_reason(&self, node: NodeId) -> Option<String> {
        self.events.iter().find_map(|(from, event)| match event {
            LinkEvent::Down { reason } if *from == node => Some(reason.clone()),
            _ => None,
        })
    }

    fn on(&self, lane: Lane) -> impl Iterator<Item = &Bytes> {
        self.frames
            .iter()
            .filter_map(move |(_, on, frame)| (*on == lane).then_some(frame))
    }
}

impl Recorder {
    /// Waits until `find` finds something in what was recorded.
    #[track_caller]
    fn wait<T>(&self, what: &str, mut find: impl FnMut(&Seen) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = self.seen.lock();
        loop {
            if let Some(found) = find(&seen) {
                return found;
            }
            let late = self.changed.wait_until(&mut seen, deadline).timed_out();
            assert!(!late, "no {what}; events: {:#?}", seen.events);
        }
    }

    #[track_caller]
    fn wait_until(&self, what: &str, mut is: impl FnMut(&Seen) -> bool) {
        self.wait(what, |seen| is(seen).then_some(()));
    }
}

impl Receiver for Recorder {
    fn admit(&self, peer: &Hello) -> Result<(), String> {
        self.seen.lock().asked.push(peer.identity.node);
        self.changed.notify_all();
        let _answering = self.admitting.lock();
        let panics = self.next_admit_panics.swap(false, Ordering::Relaxed);
        assert!(!panics, "as the test wants");
        match &*self.refusal.lock() {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
        assert!(!self.panics.load(Ordering::Relaxed), "as the test wants");
        self.seen.lock().frames.push((from, lane, frame));
        self.changed.notify_all();
    }

    fn ready(&self, _lane: Lane) -> bool {
        !self.paused.load(Ordering::Relaxed)
    }

    fn link(&self, peer: NodeId, event: LinkEvent) {
        let is_up = matches!(event, LinkEvent::Up { .. });
        self.seen.lock().events.push((peer, event));
        self.changed.notify_all();
        let panics = is_up && self.next_up_panics.swap(false, Ordering::Relaxed);
        assert!(!panics, "as the test wants");
    }

    fn failed(&self, reason: String) {
        self.seen.lock().failures.push(reason);
        self.changed.notify_all();
    }
}

struct Node {
    network: QuicNetwork,
    recorder: Arc<Recorder>,
    id: NodeId,
}

impl Node {
    fn start(options: Options) -> Node {
        let id = options.identity.node;
        let recorder = Arc::new(Recorder::default());
        let network = QuicListener::bind(options)
            .and_then(|listener| listener.start(recorder.clone()))
            .unwrap();
        Node {
            network,
            recorder,
            id,
        }
    }

    fn addr(&self) -> SocketAddr {
        self.network.local_addr().unwrap()
    }

    /// Makes `other` a peer of this node, at its real address.
    fn knows(&self, other: &Node) {
        self.network.set_peer(other.id, other.addr());
    }

    #[track_caller]
    fn wait_up(&self, other: NodeId) {
        self.recorder
            .wait_until("link up", |seen| seen.ups(other) > seen.downs(other));
    }

    #[track_caller]
    fn wait_refusal(&self, other: NodeId, part: &str) {
        let reason = self.recorder.wait("refusal", |seen| seen.refusal(other));
        assert!(reason.contains(part), "{reason:?} lacks {part:?}");
    }

    #[track_caller]
    fn send(&self, to: NodeId, lane: Lane, frame: impl Into<Bytes>) {
        self.network.send(to, lane, frame.into()).unwrap();
    }

    /// Sends, and waits while the queue is full.
    #[track_caller]
    fn send_all(&self, to: NodeId, lane: Lane, frames: impl Iterator<Item = Bytes>) {
        let deadline = Instant::now() + DEADLINE;
        for frame in frames {
            loop {
                match self.network.send(to, lane, frame.clone()) {
                    Ok(()) => break,
                    Err(SendError::Full { .. }) if Instant::now() < deadline => {
                        std::thread::yield_now();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

fn identity(node: NodeId) -> Identity {
    Identity {
        cluster: "test".into(),
        node,
        store: 0xfeed,
        incarnation: 1,
        past: Vec::new(),
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn options(node: NodeId, tls: Tls) -> Options {
    let mut options = Options::new(identity(node), any_port(), tls);
    options.backoff_min = Duration::from_millis(5);
    options.backoff_max = Duration::from_millis(50);
    options
}

/// Introduces two nodes to each other, the accepting side first.
fn introduce(a: &Node, b: &Node) {
    let (low, high) = if a.id < b.id { (a, b) } else { (b, a) };
    high.knows(low);
    low.knows(high);
}

/// Nodes 1 and 2, linked, with changed options.
fn linked_pair(change: impl Fn(&mut Options)) -> (Node, Node, TempDir) {
    let dir = TempDir::new().unwrap();
    let node = |id| {
        let mut options = options(id, Tls::dev(dir.path()));
        change(&mut options);
        Node::start(options)
    };
    let (one, two) = (node(ONE), node(TWO));
    introduce(&one, &two);
    one.wait_up(TWO);
    two.wait_up(ONE);
    (one, two, dir)
}

/// A CA whose certificates the test shapes.
struct TestCa {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl TestCa {
    fn new() -> TestCa {
        let dir = TempDir::new().unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = ca_params().self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        TestCa {
            dir,
            issuer: Issuer::new(ca_params(), key),
        }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A good certificate for a node of the test's cluster.
    fn good(&self, node: NodeId) -> Tls {
        self.issue("test", node, |_| {})
    }

    fn issue(&self, cluster: &str, node: NodeId, change: impl Fn(&mut CertificateParams)) -> Tls {
        let name = PeerName {
            cluster: cluster.to_owned(),
            node,
        };
        let mut params = node_params(&name).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |name: &str| self.dir.path().join(format!("{}-{name}.pem", node.0));
        write(&path("cert"), &certificate.pem());
        write(&path("key"), &key.serialize_pem());
        Tls::files(self.ca(), path("cert"), path("key"))
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

#[track_caller]
fn assert_says(error: &impl ToString, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

/// What was not recorded: for checks that nothing happened.
fn none<T: Debug>(found: Option<T>) {
    assert!(found.is_none(), "{found:?}");
}

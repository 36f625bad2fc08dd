//! A network in memory, with the interface of the real one.
//!
//! Owns the hub that connects the nodes of one test, its partitions and its losses. It must never
//! read a clock or start a thread: in manual mode the order of everything is the caller's.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_raft::NodeId;

use crate::hello::FORMAT_VERSION;
use crate::{
    Hello, Identity, Lane, LinkEvent, Network, NetworkStats, Receiver, SendError, TransportError,
};

/// Decides about each frame (sender, destination, lane, bytes): `false` loses it.
type Filter = Box<dyn FnMut(NodeId, NodeId, Lane, &Bytes) -> bool + Send>;

/// Connects the nodes of one test. Clones are the same hub.
///
/// Nodes that join are connected to all others at once. A hub made by [`LoopbackHub::new`] calls
/// the destination's receiver inside `send`, on the sender's thread; one made by
/// [`LoopbackHub::manual`] keeps frames until [`LoopbackHub::pump`].
#[derive(Clone)]
pub struct LoopbackHub {
    hub: Arc<Hub>,
}

struct Hub {
    manual: bool,
    max_frame_bytes: usize,
    queue_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ports: BTreeMap<NodeId, Port>,
    /// Pairs (smaller, larger) that cannot reach each other.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Pairs (smaller, larger) with a link.
    linked: BTreeSet<(NodeId, NodeId)>,
    in_flight: VecDeque<InFlight>,
    queued: HashMap<(NodeId, NodeId, Lane), usize>,
    filter: Option<Filter>,
    joins: u64,
}

struct Port {
    /// Tells this stay in the hub from an earlier one of the same node.
    join: u64,
    hello: Hello,
    receiver: Arc<dyn Receiver>,
    stats: NetworkStats,
    /// Nodes that this one has been linked with before.
    met: BTreeSet<NodeId>,
}

struct InFlight {
    from: NodeId,
    to: NodeId,
    lane: Lane,
    frame: Bytes,
}

/// A link event to deliver once the hub's lock is released.
type Notice = (Arc<dyn Receiver>, NodeId, LinkEvent);

/// One node's end of a [`LoopbackHub`].
pub struct Loopback {
    hub: Arc<Hub>,
    node: NodeId,
    join: u64,
}

impl LoopbackHub {
    /// A hub that delivers inside `send`, on the sender's thread.
    pub fn new() -> LoopbackHub {
        LoopbackHub::with(false, 4 << 20, 32 << 20)
    }

    /// A hub that keeps frames until [`LoopbackHub::pump`] delivers them.
    pub fn manual() -> LoopbackHub {
        LoopbackHub::with(true, 4 << 20, 32 << 20)
    }

    /// The same hub with other limits: the longest frame, and the bound of each queue (a queue is
    /// for one sender, destination and lane, and only a manual hub has any), in bytes.
    ///
    /// # Panics
    /// When a node has joined already.
    pub fn limits(self, max_frame_bytes: usize, queue_bytes: usize) -> LoopbackHub {
        assert!(
            self.hub.state.lock().ports.is_empty(),
            "limits are set before the first node joins"
        );
        LoopbackHub::with(self.hub.manual, max_frame_bytes, queue_bytes)
    }

    fn with(manual: bool, max_frame_bytes: usize, queue_bytes: usize) -> LoopbackHub {
        LoopbackHub {
            hub: Arc::new(Hub {
                manual,
                max_frame_bytes,
                queue_bytes,
                state: Mutex::default(),
            }),
        }
    }

    /// Adds a node and links it to all others that it is not partitioned from. Both sides are
    /// asked to admit the other, as on a real network.
    ///
    /// # Errors
    /// When the cluster's name is malformed or the node has joined already.
    pub fn join(
        &self,
        identity: Identity,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Loopback, TransportError> {
        identity.validate()?;
        let node = identity.node;
        let (others, join): (Vec<NodeId>, u64) = {
            let mut state = self.hub.state.lock();
            if state.ports.contains_key(&node) {
                return Err(TransportError::AlreadyJoined(node));
            }
            let others = state.ports.keys().copied().collect();
            state.joins += 1;
            let join = state.joins;
            let hello = Hello {
                identity,
                version: FORMAT_VERSION,
            };
            let port = Port {
                join,
                hello,
                receiver,
                stats: NetworkStats::default(),
                met: BTreeSet::new(),
            };
            state.ports.insert(node, port);
            (others, join)
        };
        for other in others {
            self.hub.link(node, other);
        }
        Ok(Loopback {
            hub: self.hub.clone(),
            node,
            join,
        })
    }

    /// Cuts the link between `a` and `b`; what was queued between them is lost.
    pub fn partition(&self, a: NodeId, b: NodeId) {
        self.hub.state.lock().cut.insert(pair(a, b));
        self.hub.unlink(a, b, "partitioned");
    }

    /// Cuts all links of `node`, also to nodes that join later under a number known now.
    pub fn isolate(&self, node: NodeId) {
        let others: Vec<NodeId> = self.hub.state.lock().ports.keys().copied().collect();
        for other in others.into_iter().filter(|other| *other != node) {
            self.partition(node, other);
        }
    }

    /// Links `a` and `b` again.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        self.hub.state.lock().cut.remove(&pair(a, b));
        self.hub.link(a, b);
    }

    /// Links all nodes again.
    pub fn heal_all(&self) {
        let cut = std::mem::take(&mut self.hub.state.lock().cut);
        for (a, b) in cut {
            self.hub.link(a, b);
        }
    }

    /// From now on `keep` decides about each frame (sender, destination, lane, bytes): `false`
    /// loses it without an error.
    pub fn filter(&self, keep: impl FnMut(NodeId, NodeId, Lane, &Bytes) -> bool + Send + 'static) {
        self.hub.state.lock().filter = Some(Box::new(keep));
    }

    /// Ends the effect of [`LoopbackHub::filter`].
    pub fn clear_filter(&self) {
        self.hub.state.lock().filter = None;
    }

    /// Delivers the frames that are queued now, in the order in which they were sent, and returns
    /// how many. Frames of a lane whose receiver is not ready stay queued; frames sent by the
    /// receivers meanwhile are left for the next call.
    pub fn pump(&self) -> usize {
        let batch = std::mem::take(&mut self.hub.state.lock().in_flight);
        let mut kept = VecDeque::new();
        // A lane that is not ready stays so for the rest of the call, or its frames would overtake
        // each other.
        let mut blocked: BTreeSet<(NodeId, NodeId, Lane)> = BTreeSet::new();
        let mut delivered = 0;
        for item in batch {
            let key = (item.from, item.to, item.lane);
            let Some(receiver) = self.hub.arriving(&item) else {
                continue;
            };
            let paused = item.lane != Lane::Liveness
                && (blocked.contains(&key) || !receiver.ready(item.lane));
            if paused {
                blocked.insert(key);
                kept.push_back(item);
                continue;
            }
            self.hub.take(&item);
            receiver.frame(item.from, item.lane, item.frame);
            delivered += 1;
        }
        let mut state = self.hub.state.lock();
        kept.append(&mut state.in_flight);
        state.in_flight = kept;
        delivered
    }

    /// Frames queued in a manual hub.
    pub fn in_flight(&self) -> usize {
        self.hub.state.lock().in_flight.len()
    }
}

impl Default for LoopbackHub {
    fn default() -> LoopbackHub {
        LoopbackHub::new()
    }
}

impl fmt::Debug for LoopbackHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.hub.state.lock();
        f.debug_struct("LoopbackHub")
            .field("manual", &self.hub.manual)
            .field("nodes", &state.ports.keys().collect::<Vec<_>>())
            .field("cut", &state.cut)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Makes the link between two nodes unless something forbids it.
    fn link(&self, a: NodeId, b: NodeId) {
        let Some(((a_hello, a_receiver), (b_hello, b_receiver))) = self.linkable(a, b) else {
            return;
        };
        let refusal = if a_hello.identity.cluster != b_hello.identity.cluster {
            Some(format!(
                "{} cannot link with {}",
                a_hello.identity, b_hello.identity
            ))
        } else {
            let admitted = a_receiver.admit(&b_hello);
            admitted.and_then(|()| b_receiver.admit(&a_hello)).err()
        };
        let mut state = self.state.lock();
        let (a_event, b_event) = match refusal {
            Some(reason) => {
                for node in [a, b] {
                    if let Some(port) = state.ports.get_mut(&node) {
                        port.stats.refused += 1;
                    }
                }
                let refused = LinkEvent::Refused { reason };
                (refused.clone(), refused)
            }
            None => {
                // Someone may have cut or made the link while the receivers were asked.
                if state.cut.contains(&pair(a, b)) || !state.linked.insert(pair(a, b)) {
                    return;
                }
                state.meet(a, b);
                state.meet(b, a);
                (up(b_hello), up(a_hello))
            }
        };
        drop(state);
        a_receiver.link(b, a_event);
        b_receiver.link(a, b_event);
    }

    #[expect(clippy::type_complexity, reason = "two sides of one pair, used once")]
    fn linkable(
        &self,
        a: NodeId,
        b: NodeId,
    ) -> Option<((Hello, Arc<dyn Receiver>), (Hello, Arc<dyn Receiver>))> {
        let state = self.state.lock();
        let key = pair(a, b);
        if a == b || state.cut.contains(&key) || state.linked.contains(&key) {
            return None;
        }
        let side = |node| {
            let port = state.ports.get(&node)?;
            Some((port.hello.clone(), port.receiver.clone()))
        };
        Some((side(a)?, side(b)?))
    }

    /// Takes the link between two nodes down, with what was queued on it.
    fn unlink(&self, a: NodeId, b: NodeId, reason: &str) {
        let notices = {
            let mut state = self.state.lock();
            state.unlink(a, b, reason)
        };
        for (receiver, peer, event) in notices {
            receiver.link(peer, event);
        }
    }

    /// The receiver of a queued frame, unless its link is gone.
    fn arriving(&self, item: &InFlight) -> Option<Arc<dyn Receiver>> {
        let mut state = self.state.lock();
        if state.linked.contains(&pair(item.from, item.to)) {
            return state.ports.get(&item.to).map(|port| port.receiver.clone());
        }
        state.unqueue(item);
        if let Some(port) = state.ports.get_mut(&item.from) {
            port.stats.dropped += 1;
        }
        None
    }

    /// Counts a queued frame as delivered.
    fn take(&self, item: &InFlight) {
        let mut state = self.state.lock();
        state.unqueue(item);
        state.count_received(item.to, item.frame.len());
    }
}

impl State {
    fn is_joined(&self, node: NodeId, join: u64) -> bool {
        self.ports.get(&node).is_some_and(|port| port.join == join)
    }

    fn meet(&mut self, node: NodeId, other: NodeId) {
        if let Some(port) = self.ports.get_mut(&node)
            && !port.met.insert(other)
        {
            port.stats.reconnects += 1;
        }
    }

    fn unlink(&mut self, a: NodeId, b: NodeId, reason: &str) -> Vec<Notice> {
        if !self.linked.remove(&pair(a, b)) {
            return Vec::new();
        }
        let mut lost: Vec<NodeId> = Vec::new();
        self.in_flight.retain(|item| {
            let keep = pair(item.from, item.to) != pair(a, b);
            if !keep {
                lost.push(item.from);
            }
            keep
        });
        self.queued
            .retain(|(from, to, _), _| pair(*from, *to) != pair(a, b));
        for node in lost {
            if let Some(port) = self.ports.get_mut(&node) {
                port.stats.dropped += 1;
            }
        }
        [(a, b), (b, a)]
            .into_iter()
            .filter_map(|(node, peer)| {
                let receiver = self.ports.get(&node)?.receiver.clone();
                let reason = reason.to_owned();
                Some((receiver, peer, LinkEvent::Down { reason }))
            })
            .collect()
    }

    fn unqueue(&mut self, item: &InFlight) {
        if let Some(bytes) = self.queued.get_mut(&(item.from, item.to, item.lane)) {
            *bytes = bytes.saturating_sub(item.frame.len());
        }
    }

    fn count_received(&mut self, node: NodeId, bytes: usize) {
        if let Some(port) = self.ports.get_mut(&node) {
            port.stats.frames_received += 1;
            port.stats.bytes_received += bytes as u64;
        }
    }
}

impl Network for Loopback {
    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        let hub = &*self.hub;
        let mut guard = hub.state.lock();
        let state = &mut *guard;
        if !state.is_joined(self.node, self.join) {
            return Err(SendError::Closed);
        }
        if frame.len() > hub.max_frame_bytes {
            return Err(SendError::TooLarge {
                bytes: frame.len(),
                limit: hub.max_frame_bytes,
            });
        }
        if to == self.node {
            return Err(SendError::UnknownPeer);
        }
        if !state.linked.contains(&pair(self.node, to)) {
            return Err(SendError::Disconnected);
        }
        let key = (self.node, to, lane);
        let queued = state.queued.get(&key).copied().unwrap_or(0);
        if hub.manual && queued + frame.len() > hub.queue_bytes {
            return Err(SendError::Full {
                queued,
                limit: hub.queue_bytes,
            });
        }
        if let Some(port) = state.ports.get_mut(&self.node) {
            port.stats.frames_sent += 1;
            port.stats.bytes_sent += frame.len() as u64;
        }
        if let Some(keep) = state.filter.as_mut()
            && !keep(self.node, to, lane, &frame)
        {
            return Ok(());
        }
        if hub.manual {
            *state.queued.entry(key).or_default() += frame.len();
            let from = self.node;
            state.in_flight.push_back(InFlight {
                from,
                to,
                lane,
                frame,
            });
            return Ok(());
        }
        state.count_received(to, frame.len());
        let receiver = state.ports.get(&to).map(|port| port.receiver.clone());
        // The receiver may send in turn, so nothing is locked while it runs.
        drop(guard);
        if let Some(receiver) = receiver {
            receiver.frame(self.node, lane, frame);
        }
        Ok(())
    }

    fn queued_bytes(&self, to: NodeId) -> usize {
        let state = self.hub.state.lock();
        let ours = |key: &(NodeId, NodeId, Lane)| key.0 == self.node && key.1 == to;
        state
            .queued
            .iter()
            .filter_map(|(key, bytes)| ours(key).then_some(*bytes))
            .sum()
    }

    fn max_frame_bytes(&self, _to: NodeId) -> usize {
        self.hub.max_frame_bytes
    }

    fn stats(&self) -> NetworkStats {
        let state = self.hub.state.lock();
        state
            .ports
            .get(&self.node)
            .map(|port| port.stats)
            .unwrap_or_default()
    }

    fn round_trip(&self, to: NodeId) -> Option<Duration> {
        let state = self.hub.state.lock();
        state
            .linked
            .contains(&pair(self.node, to))
            .then_some(Duration::ZERO)
    }

    fn shutdown(&self) {
        let others: Vec<NodeId> = {
            let state = self.hub.state.lock();
            if !state.is_joined(self.node, self.join) {
                return;
            }
            state.ports.keys().copied().collect()
        };
        for other in others {
            self.hub.unlink(self.node, other, "the peer shut down");
        }
        self.hub.state.lock().ports.remove(&self.node);
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for Loopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loopback")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

fn up(hello: Hello) -> LinkEvent {
    LinkEvent::Up {
        hello,
        round_trip: Duration::ZERO,
    }
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);
    const THREE: NodeId = NodeId(3);

    #[derive(Default)]
    struct Recorder {
        frames: Mutex<Vec<(NodeId, Lane, Bytes)>>,
        events: Mutex<Vec<(NodeId, LinkEvent)>>,
        paused: AtomicBool,
        refuses: AtomicBool,
    }

    impl Recorder {
        fn frames(&self) -> Vec<(NodeId, Lane, Bytes)> {
            std::mem::take(&mut *self.frames.lock())
        }

        /// Events in short: `up 2`, `down 2`, `refused 2`.
        fn events(&self) -> Vec<String> {
            let short = |(node, event): (NodeId, LinkEvent)| match event {
                LinkEvent::Up { hello, .. } => {
                    assert_eq!(hello.identity.node, node);
                    format!("up {}", node.0)
                }
                LinkEvent::Down { .. } => format!("down {}", node.0),
                LinkEvent::Refused { .. } => format!("refused {}", node.0),
            };
            let events = std::mem::take(&mut *self.events.lock());
            events.into_iter().map(short).collect()
        }
    }

    impl Receiver for Recorder {
        fn admit(&self, _peer: &Hello) -> Result<(), String> {
            match self.refuses.load(Ordering::Relaxed) {
                true => Err("not today".into()),
                false => Ok(()),
            }
        }

        fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
            self.frames.lock().push((from, lane, frame));
        }

        fn ready(&self, _lane: Lane) -> bool {
            !self.paused.load(Ordering::Relaxed)
        }

        fn link(&self, peer: NodeId, event: LinkEvent) {
            self.events.lock().push((peer, event));
        }
    }

    fn join(hub: &LoopbackHub, node: NodeId) -> (Loopback, Arc<Recorder>) {
        join_as(hub, "test", node)
    }

    fn join_as(hub: &LoopbackHub, cluster: &str, node: NodeId) -> (Loopback, Arc<Recorder>) {
        let identity = Identity {
            cluster: cluster.into(),
            node,
            store: 1,
            incarnation: 1,
            past: Vec::new(),
        };
        let recorder = Arc::new(Recorder::default());
        (hub.join(identity, recorder.clone()).unwrap(), recorder)
    }

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn frame_arrives_within_send() {
        let hub = LoopbackHub::new();
        let (one, _) = join(&hub, ONE);
        let (two, seen) = join(&hub, TWO);
        one.send(TWO, Lane::Append(1), bytes("a")).unwrap();
        assert_eq!(seen.frames(), [(ONE, Lane::Append(1), bytes("a"))]);
        assert_eq!(one.stats().frames_sent, 1);
        assert_eq!(two.stats().bytes_received, 1);
        assert_eq!(one.round_trip(TWO), Some(Duration::ZERO));
    }

    #[test]
    fn pump_delivers_in_the_order_of_sending() {
        let hub = LoopbackHub::manual();
        let (one, _) = join(&hub, ONE);
        let (two, seen) = join(&hub, TWO);
        let (_three, _) = join(&hub, THREE);
        for text in ["a", "b", "c"] {
            one.send(TWO, Lane::Append(0), bytes(text)).unwrap();
        }
        two.send(THREE, Lane::Liveness, bytes("x")).unwrap();
        assert_eq!((hub.in_flight(), one.queued_bytes(TWO)), (4, 3));
        assert!(seen.frames().is_empty());
        assert_eq!(hub.pump(), 4);
        let order: Vec<_> = seen.frames().into_iter().map(|(.., f)| f).collect();
        assert_eq!(order, ["a", "b", "c"]);
        assert_eq!((hub.in_flight(), one.queued_bytes(TWO)), (0, 0));
    }

    #[test]
    fn paused_receiver_still_gets_liveness() {
        let hub = LoopbackHub::manual();
        let (one, _) = join(&hub, ONE);
        let (_two, seen) = join(&hub, TWO);
        seen.paused.store(true, Ordering::Relaxed);
        one.send(TWO, Lane::Append(0), bytes("a")).unwrap();
        one.send(TWO, Lane::Liveness, bytes("b")).unwrap();
        one.send(TWO, Lane::Append(0), bytes("c")).unwrap();
        assert_eq!(hub.pump(), 1);
        assert_eq!(seen.frames(), [(ONE, Lane::Liveness, bytes("b"))]);
        seen.paused.store(false, Ordering::Relaxed);
        assert_eq!(hub.pump(), 2);
        let order: Vec<_> = seen.frames().into_iter().map(|(.., f)| f).collect();
        assert_eq!(order, ["a", "c"]);
    }

    #[test]
    fn queue_and_frame_are_bounded() {
        let hub = LoopbackHub::manual().limits(4, 6);
        let (one, _) = join(&hub, ONE);
        let (_two, _) = join(&hub, TWO);
        let send = |text| one.send(TWO, Lane::Snapshot, bytes(text));
        let too_large = SendError::TooLarge { bytes: 5, limit: 4 };
        assert_eq!(send("abcde"), Err(too_large));
        assert_eq!(send("abcd"), Ok(()));
        let full = SendError::Full {
            queued: 4,
            limit: 6,
        };
        assert_eq!(send("abc"), Err(full));
        assert_eq!(one.send(TWO, Lane::Liveness, bytes("abc")), Ok(()));
        hub.pump();
        assert_eq!(send("abc"), Ok(()));
    }

    #[test]
    fn partition_loses_what_is_in_flight_and_heals() {
        let hub = LoopbackHub::manual();
        let (one, seen_by_one) = join(&hub, ONE);
        let (_two, seen) = join(&hub, TWO);
        one.send(TWO, Lane::Append(0), bytes("lost")).unwrap();
        hub.partition(TWO, ONE);
        let sent = one.send(TWO, Lane::Append(0), bytes("x"));
        assert_eq!(sent, Err(SendError::Disconnected));
        assert_eq!(one.round_trip(TWO), None);
        hub.heal(ONE, TWO);
        one.send(TWO, Lane::Append(0), bytes("kept")).unwrap();
        assert_eq!(hub.pump(), 1);
        assert_eq!(seen.frames(), [(ONE, Lane::Append(0), bytes("kept"))]);
        assert_eq!(seen.events(), ["up 1", "down 1", "up 1"]);
        assert_eq!(seen_by_one.events(), ["up 2", "down 2", "up 2"]);
        assert_eq!((one.stats().dropped, one.stats().reconnects), (1, 1));
    }

    #[test]
    fn isolated_node_returns_with_heal_all() {
        let hub = LoopbackHub::new();
        let (_one, seen) = join(&hub, ONE);
        let (_two, _) = join(&hub, TWO);
        let (_three, _) = join(&hub, THREE);
        hub.isolate(ONE);
        hub.heal_all();
        let expected = ["up 2", "up 3", "down 2", "down 3", "up 2", "up 3"];
        assert_eq!(seen.events(), expected);
    }

    #[test]
    fn filter_loses_frames_without_an_error() {
        let hub = LoopbackHub::new();
        let (one, _) = join(&hub, ONE);
        let (_two, seen) = join(&hub, TWO);
        hub.filter(|from, to, lane, frame| {
            (from, to, lane, &frame[..]) != (ONE, TWO, Lane::Liveness, b"bad")
        });
        for text in ["good", "bad"] {
            one.send(TWO, Lane::Liveness, bytes(text)).unwrap();
        }
        assert_eq!(seen.frames(), [(ONE, Lane::Liveness, bytes("good"))]);
        hub.clear_filter();
        one.send(TWO, Lane::Liveness, bytes("bad")).unwrap();
        assert_eq!(seen.frames().len(), 1);
    }

    #[test]
    fn refusal_of_either_side_reaches_both() {
        let hub = LoopbackHub::new();
        let (one, seen_by_one) = join(&hub, ONE);
        let (_other, seen_by_other) = join_as(&hub, "other", TWO);
        assert_eq!(seen_by_one.events(), ["refused 2"]);
        assert_eq!(seen_by_other.events(), ["refused 1"]);
        seen_by_one.refuses.store(true, Ordering::Relaxed);
        let (_three, seen_by_three) = join(&hub, THREE);
        assert!(seen_by_three.events().contains(&"refused 1".to_owned()));
        assert_eq!(one.stats().refused, 2);
    }

    #[test]
    fn node_can_leave_and_join_again() {
        let hub = LoopbackHub::new();
        let (one, seen) = join(&hub, ONE);
        let (old, _) = join(&hub, TWO);
        let again = hub.join(
            Identity {
                cluster: "test".into(),
                node: TWO,
                store: 1,
                incarnation: 2,
                past: Vec::new(),
            },
            Arc::new(Recorder::default()),
        );
        assert!(matches!(again, Err(TransportError::AlreadyJoined(TWO))));
        old.shutdown();
        let sent = old.send(ONE, Lane::Liveness, bytes("x"));
        assert_eq!(sent, Err(SendError::Closed));
        let (new, _) = join(&hub, TWO);
        // The old end must not take the new one with it.
        drop(old);
        assert_eq!(new.send(ONE, Lane::Liveness, bytes("y")), Ok(()));
        assert_eq!(seen.events(), ["up 2", "down 2", "up 2"]);
        drop(one);
        let sent = new.send(ONE, Lane::Liveness, bytes("z"));
        assert_eq!(sent, Err(SendError::Disconnected));
    }

    #[test]
    fn receiver_may_send_while_it_receives() {
        struct Echo(Mutex<Option<Arc<Loopback>>>);
        impl Receiver for Echo {
            fn admit(&self, _peer: &Hello) -> Result<(), String> {
                Ok(())
            }
            fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
                let network = self.0.lock().clone();
                network.unwrap().send(from, lane, frame).unwrap();
            }
            fn ready(&self, _lane: Lane) -> bool {
                true
            }
            fn link(&self, _peer: NodeId, _event: LinkEvent) {}
        }
        let hub = LoopbackHub::new();
        let (one, seen) = join(&hub, ONE);
        let echo = Arc::new(Echo(Mutex::default()));
        let identity = Identity {
            cluster: "test".into(),
            node: TWO,
            store: 1,
            incarnation: 1,
            past: Vec::new(),
        };
        let two = Arc::new(hub.join(identity, echo.clone()).unwrap());
        *echo.0.lock() = Some(two);
        one.send(TWO, Lane::Liveness, bytes("ping")).unwrap();
        assert_eq!(seen.frames(), [(TWO, Lane::Liveness, bytes("ping"))]);
        echo.0.lock().take();
    }
}

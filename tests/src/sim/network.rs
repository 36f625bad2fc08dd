//! The simulated network: connections that stand or do not, lanes that keep their order, and the weather between nodes.
//! It must keep the promises of the real transport unless the plan of the world says otherwise: a frame arrives between
//! the `Up` and the `Down` of its connection, in the order of its lane, once or not at all.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft::NodeId;
use polyraft_transport::{Hello, Lane, LinkEvent, Network, NetworkStats, SendError};

use super::checks::Failure;
use super::plan::MILLI;
use super::world::{Event, World};

/// A node's way out: what it sends is kept here until the step that sent it is over.
#[derive(Debug)]
pub struct Port {
    max_frame_bytes: usize,
    queue_bytes: usize,
    state: Mutex<PortState>,
}

#[derive(Debug, Default)]
struct PortState {
    /// By peer: whether there is a connection.
    is_up: Vec<bool>,
    /// By peer: bytes that are under way.
    queued: Vec<usize>,
    outbox: Vec<Sent>,
    /// The peers, and where this node dials them.
    addresses: BTreeMap<u64, SocketAddr>,
    stats: NetworkStats,
}

/// A frame that left a node.
#[derive(Debug)]
pub struct Sent {
    pub(super) to: u64,
    pub(super) lane: Lane,
    pub(super) frame: Bytes,
}

impl Port {
    pub(super) fn new(nodes: u64, max_frame_bytes: usize, queue_bytes: usize) -> Self {
        let peers = nodes as usize + 1;
        let state = PortState {
            is_up: vec![false; peers],
            queued: vec![0; peers],
            ..PortState::default()
        };
        Port {
            max_frame_bytes,
            queue_bytes,
            state: Mutex::new(state),
        }
    }

    pub(super) fn take_sent(&self, into: &mut Vec<Sent>) {
        into.append(&mut self.state.lock().outbox);
    }

    /// The node has a peer, there.
    pub(super) fn know(&self, peer: u64, at: SocketAddr) {
        self.state.lock().addresses.insert(peer, at);
    }

    /// Where the node dials a peer.
    pub(super) fn known(&self, peer: u64) -> Option<SocketAddr> {
        self.state.lock().addresses.get(&peer).copied()
    }

    fn set_up(&self, peer: u64, is_up: bool) {
        let mut state = self.state.lock();
        state.is_up[peer as usize] = is_up;
        state.queued[peer as usize] = 0;
    }

    fn delivered(&self, peer: u64, bytes: usize) {
        let queued = &mut self.state.lock().queued[peer as usize];
        *queued = queued.saturating_sub(bytes);
    }
}

impl Network for Port {
    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        let mut state = self.state.lock();
        let peer = to.0 as usize;
        if frame.len() > self.max_frame_bytes {
            let (bytes, limit) = (frame.len(), self.max_frame_bytes);
            return Err(SendError::TooLarge { bytes, limit });
        }
        if !state.addresses.contains_key(&to.0) {
            return Err(SendError::UnknownPeer);
        }
        if !state.is_up[peer] {
            return Err(SendError::Disconnected);
        }
        let (queued, limit) = (state.queued[peer], self.queue_bytes);
        if queued + frame.len() > limit {
            return Err(SendError::Full { queued, limit });
        }
        state.queued[peer] += frame.len();
        state.stats.frames_sent += 1;
        state.stats.bytes_sent += frame.len() as u64;
        state.outbox.push(Sent {
            to: to.0,
            lane,
            frame,
        });
        Ok(())
    }

    fn queued_bytes(&self, to: NodeId) -> usize {
        self.state.lock().queued[to.0 as usize]
    }

    fn max_frame_bytes(&self, _to: NodeId) -> usize {
        self.max_frame_bytes
    }

    fn set_peer(&self, node: NodeId, at: SocketAddr) {
        self.know(node.0, at);
    }

    fn remove_peer(&self, node: NodeId) {
        self.state.lock().addresses.remove(&node.0);
    }

    fn stats(&self) -> NetworkStats {
        self.state.lock().stats
    }

    fn round_trip(&self, _to: NodeId) -> Option<Duration> {
        None
    }

    fn shutdown(&self) {}

    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }
}

/// The connection of two nodes.
#[derive(Debug)]
pub(super) struct Link {
    /// The lower and the higher node.
    nodes: [u64; 2],
    /// Grows with each connection, so that events of an earlier one are known as such.
    session: u32,
    is_connected: bool,
    is_dialling: bool,
    backoff: u64,
    /// By side: the session that this node has been told is up.
    sides: [Option<u32>; 2],
    /// Which side's frames don't arrive, and how many disturbances want that.
    blocked: [u32; 2],
    /// Everything takes longer until then.
    pub(super) slow_until: u64,
    /// By side: its frames under way, by lane.
    lanes: [Vec<VecDeque<Bytes>>; 2],
    /// By side and lane: when the last frame arrives.
    last: [Vec<u64>; 2],
}

impl Link {
    fn new(nodes: [u64; 2], lanes: usize, backoff: u64) -> Self {
        Link {
            nodes,
            session: 0,
            is_connected: false,
            is_dialling: false,
            backoff,
            sides: [None; 2],
            blocked: [0; 2],
            slow_until: 0,
            lanes: std::array::from_fn(|_| vec![VecDeque::new(); lanes]),
            last: std::array::from_fn(|_| vec![0; lanes]),
        }
    }

    fn side_of(&self, node: u64) -> usize {
        usize::from(self.nodes[1] == node)
    }

    fn is_blocked(&self) -> bool {
        self.blocked != [0; 2]
    }
}

/// All pairs of nodes.
pub(super) fn links(nodes: u64, append_lanes: u8, backoff: u64) -> Vec<Link> {
    let pairs = (1..=nodes).flat_map(|a| (a + 1..=nodes).map(move |b| [a, b]));
    pairs
        .map(|pair| Link::new(pair, usize::from(append_lanes) + 2, backoff))
        .collect()
}

fn lane_number(lane: Lane) -> u8 {
    match lane {
        Lane::Liveness => 0,
        Lane::Snapshot => 1,
        Lane::Append(lane) => lane + 2,
    }
}

fn lane_of(number: u8) -> Lane {
    match number {
        0 => Lane::Liveness,
        1 => Lane::Snapshot,
        lane => Lane::Append(lane - 2),
    }
}

impl World {
    pub(super) fn link_of(&self, a: u64, b: u64) -> usize {
        let pair = [a.min(b), a.max(b)];
        self.links
            .iter()
            .position(|link| link.nodes == pair)
            .expect("all pairs of nodes have a link")
    }

    /// A frame has left its node.
    pub(super) fn route(&mut self, from: u64, sent: Sent, is_repeatable: bool) {
        let at = self.link_of(from, sent.to);
        let side = self.links[at].side_of(from);
        if self.links[at].sides[side] != Some(self.links[at].session)
            || !self.links[at].is_connected
        {
            return; // The other end is gone, and this one has not heard of it yet.
        }
        if self.plan.loss > 0 && !self.is_healed && self.rng.chance(self.plan.loss) {
            self.counts.lost += 1;
            self.hosts[from as usize]
                .port
                .delivered(sent.to, sent.frame.len());
            return;
        }
        let frame = match sent.lane {
            Lane::Snapshot => self.in_transit(sent.frame),
            _ => sent.frame,
        };
        let copies = match self.plan.duplication {
            per_million if per_million > 0 && is_repeatable && !self.is_healed => {
                let is_twice = self.rng.chance(per_million);
                self.counts.duplicated += u64::from(is_twice);
                1 + u32::from(is_twice)
            }
            _ => 1,
        };
        for _ in 0..copies {
            self.fly(at, side, lane_number(sent.lane), frame.clone());
        }
    }

    /// A part of a snapshot on its way: a bit of the state in it may change.
    fn in_transit(&mut self, frame: Bytes) -> Bytes {
        self.counts.chunks += 1;
        if self.plan.corruption == 0 || self.is_healed || !self.rng.chance(self.plan.corruption) {
            return frame;
        }
        self.counts.corrupted += 1;
        let mut bytes = frame.to_vec();
        *bytes.last_mut().expect("a part has bytes") ^= 1 << self.rng.below(8);
        bytes.into()
    }

    fn fly(&mut self, at: usize, side: usize, lane: u8, frame: Bytes) {
        let (low, high) = self.plan.latency_us;
        let mut latency = self.rng.within(low, high);
        if self.now < self.links[at].slow_until {
            latency += self.rng.within(MILLI, 100 * MILLI);
        }
        let overtakes =
            self.plan.reordering > 0 && !self.is_healed && self.rng.chance(self.plan.reordering);
        let link = &mut self.links[at];
        let arrival = (self.now + latency).max(link.last[side][lane as usize]);
        link.last[side][lane as usize] = arrival;
        let queue = &mut link.lanes[side][lane as usize];
        match overtakes && !queue.is_empty() {
            true => {
                let place = self.rng.below(queue.len() as u64) as usize;
                queue.insert(place, frame);
                self.counts.overtaken += 1;
            }
            false => queue.push_back(frame),
        }
        if link.blocked[side] > 0 {
            return; // It waits; whoever unblocks the link sends it on.
        }
        let session = link.session;
        self.push(
            arrival,
            Event::Arrive {
                link: at as u8,
                side: side as u8,
                lane,
                session,
            },
        );
    }

    /// The oldest frame of a lane arrives.
    pub(super) fn arrive(&mut self, at: usize, side: usize, lane: u8, session: u32) {
        let link = &mut self.links[at];
        if link.session != session || !link.is_connected || link.blocked[side] > 0 {
            return;
        }
        let (from, to) = (link.nodes[side], link.nodes[1 - side]);
        let Some(frame) = link.lanes[side][lane as usize].front().cloned() else {
            return;
        };
        let event = Event::Arrive {
            link: at as u8,
            side: side as u8,
            lane,
            session,
        };
        if link.sides[1 - side] != Some(session) {
            // The sender learned of the connection first.
            return self.push(self.now + 50, event);
        }
        let host = &self.hosts[to as usize];
        if host.paused_until > self.now {
            return self.push(host.paused_until, event);
        }
        let Some(node) = &host.node else { return };
        let kind = lane_of(lane);
        if kind != Lane::Liveness && !node.receiver().ready(kind) {
            return self.push(self.now + MILLI, event);
        }
        self.links[at].lanes[side][lane as usize].pop_front();
        self.hosts[from as usize].port.delivered(to, frame.len());
        self.trace.note_bytes(&frame);
        if self.trace.is_on() {
            self.tell_frame("hears", to, from, &frame);
        }
        self.set_clock(to);
        let node = self.hosts[to as usize].node.as_ref();
        let receiver = node.expect("it was there").receiver();
        receiver.frame(NodeId(from), kind, frame);
        self.schedule(to);
    }

    /// Two nodes try to connect.
    pub(super) fn dial(&mut self, at: usize) {
        self.links[at].is_dialling = false;
        if self.links[at].is_connected {
            return;
        }
        let [a, b] = self.links[at].nodes;
        let is_there = |host: u64| {
            let host = &self.hosts[host as usize];
            host.node.is_some() && host.paused_until <= self.now
        };
        if self.links[at].is_blocked() || !is_there(a) || !is_there(b) {
            return self.dial_later(at);
        }
        // The lower one dials, where it takes the other one to be.
        if !self.knows_where(a, b) {
            return self.dial_later(at);
        }
        if !self.takes_for_peer(b, a) {
            self.counts.refused += 1;
            let reason = format!("node {a} is no peer of node {b}");
            self.tell_link(a, b, LinkEvent::Refused { reason });
            self.after_step(a);
            return self.dial_later(at);
        }
        for (asked, peer) in [(a, b), (b, a)] {
            self.set_clock(asked);
            let hello = self.hello(peer);
            let node = self.hosts[asked as usize].node.as_ref();
            let admitted = node.expect("it is there").receiver().admit(&hello);
            if let Err(reason) = admitted {
                self.trace
                    .event(self.now, asked, || format!("refuses node {peer}: {reason}"));
                self.counts.refused += 1;
                for (node, other) in [(a, b), (b, a)] {
                    let reason = reason.clone();
                    self.tell_link(node, other, LinkEvent::Refused { reason });
                }
                return self.dial_later(at);
            }
        }
        if self.hosts[a as usize].is_outcast != self.hosts[b as usize].is_outcast {
            return self.fail(Failure {
                checker: "continuity",
                what: format!(
                    "nodes {a} and {b} are linked, though one lost data that the other had seen"
                ),
                group: None,
            });
        }
        let backoff = self.backoff_min();
        let link = &mut self.links[at];
        link.session += 1;
        link.is_connected = true;
        link.backoff = backoff;
        let session = link.session;
        for side in 0..2 {
            let latency = self
                .rng
                .within(self.plan.latency_us.0, self.plan.latency_us.1);
            self.push(
                self.now + latency,
                Event::Up {
                    link: at as u8,
                    side,
                    session,
                },
            );
        }
        self.after_step(a);
        self.after_step(b);
    }

    fn backoff_min(&self) -> u64 {
        self.plan.config.transport.backoff_min.as_micros() as u64
    }

    pub(super) fn dial_later(&mut self, at: usize) {
        let most = self.plan.config.transport.backoff_max.as_micros() as u64;
        let link = &mut self.links[at];
        if link.is_dialling || link.is_connected {
            return;
        }
        link.is_dialling = true;
        let wait = link.backoff;
        link.backoff = (link.backoff * 2).min(most);
        let wait = self.rng.within(wait / 2 + 1, wait + 1);
        self.push(self.now + wait, Event::Dial { link: at as u8 });
    }

    fn hello(&self, node: u64) -> Hello {
        let node = self.hosts[node as usize].node.as_ref();
        Hello {
            identity: node.expect("it is there").identity().clone(),
            version: polyraft_transport::FORMAT_VERSION,
        }
    }

    fn tell_link(&mut self, node: u64, peer: u64, event: LinkEvent) {
        self.set_clock(node);
        if let Some(node) = &self.hosts[node as usize].node {
            node.receiver().link(NodeId(peer), event);
        }
        self.schedule(node);
    }

    /// A node learns that a connection stands.
    pub(super) fn link_up(&mut self, at: usize, side: usize, session: u32) {
        let link = &self.links[at];
        let (node, peer) = (link.nodes[side], link.nodes[1 - side]);
        if link.session != session || !link.is_connected {
            return;
        }
        if self.hosts[peer as usize].node.is_none() {
            return;
        }
        if let Some(before) = link.sides[side] {
            self.link_down(at, side, before);
        }
        self.links[at].sides[side] = Some(session);
        self.hosts[peer as usize].met.insert(node);
        self.hosts[node as usize].port.set_up(peer, true);
        let hello = self.hello(peer);
        let round_trip = Duration::from_micros(2 * self.plan.latency_us.0);
        self.tell_link(node, peer, LinkEvent::Up { hello, round_trip });
        self.after_step(node);
    }

    /// A node learns that a connection is gone.
    pub(super) fn link_down(&mut self, at: usize, side: usize, session: u32) {
        let link = &mut self.links[at];
        if link.sides[side] != Some(session) {
            return;
        }
        link.sides[side] = None;
        let (node, peer) = (link.nodes[side], link.nodes[1 - side]);
        self.hosts[node as usize].port.set_up(peer, false);
        let reason = "the connection broke".to_owned();
        self.tell_link(node, peer, LinkEvent::Down { reason });
        self.after_step(node);
    }

    /// A connection breaks. Each side notices within `notice` microseconds, and the frames under way are lost.
    pub(super) fn reset_link(&mut self, at: usize, notice: u64) {
        let link = &mut self.links[at];
        if link.is_connected {
            link.is_connected = false;
            for lane in link.lanes.iter_mut().flatten() {
                lane.clear();
            }
            let sides = link.sides;
            for (side, session) in sides.into_iter().enumerate() {
                if let Some(session) = session {
                    let wait = self.rng.within(0, notice);
                    let (link, side) = (at as u8, side as u8);
                    self.push(
                        self.now + wait,
                        Event::Down {
                            link,
                            side,
                            session,
                        },
                    );
                }
            }
        }
        self.dial_later(at);
    }

    /// A node is gone, without a word.
    pub(super) fn forget_links_of(&mut self, node: u64) {
        let idle = self.idle_timeout();
        for at in 0..self.links.len() {
            if self.links[at].nodes.contains(&node) {
                let side = self.links[at].side_of(node);
                self.links[at].sides[side] = None;
                self.reset_link(at, idle);
            }
        }
    }

    pub(super) fn idle_timeout(&self) -> u64 {
        self.plan.config.transport.idle_timeout.as_micros() as u64
    }

    /// From now on nothing that `from` sends reaches `to`; a connection that stands breaks when that lasts.
    pub(super) fn block(&mut self, from: u64, to: u64) {
        let at = self.link_of(from, to);
        let side = self.links[at].side_of(from);
        self.links[at].blocked[side] += 1;
        let idle = self.idle_timeout();
        let wait = self.rng.within(idle / 2, idle);
        let session = self.links[at].session;
        self.push(
            self.now + wait,
            Event::Idle {
                link: at as u8,
                session,
            },
        );
    }

    /// One reason for a blocked direction is gone.
    pub(super) fn unblock(&mut self, from: u64, to: u64) {
        let at = self.link_of(from, to);
        let side = self.links[at].side_of(from);
        let link = &mut self.links[at];
        link.blocked[side] = link.blocked[side].saturating_sub(1);
        if link.blocked[side] > 0 {
            return;
        }
        self.hurry(at, side);
        self.dial_later(at);
    }

    /// Sends the frames of a direction on that waited for something that is over.
    fn hurry(&mut self, at: usize, side: usize) {
        let link = &self.links[at];
        let session = link.session;
        let waiting: Vec<usize> = link.lanes[side].iter().map(VecDeque::len).collect();
        for (lane, count) in waiting.into_iter().enumerate() {
            let arrival = self.now + self.plan.latency_us.1;
            let last = &mut self.links[at].last[side][lane];
            *last = (*last).max(arrival);
            let event = Event::Arrive {
                link: at as u8,
                side: side as u8,
                lane: lane as u8,
                session,
            };
            (0..count).for_each(|_| self.push(arrival, event));
        }
    }

    /// A direction has been blocked, or an end paused, for so long that the connection ends.
    pub(super) fn idle_out(&mut self, at: usize, session: u32) {
        let link = &self.links[at];
        if link.session != session || !link.is_connected {
            return;
        }
        let is_paused = |node: &u64| self.hosts[*node as usize].paused_until > self.now;
        let has_paused = link.nodes.iter().any(is_paused);
        if link.is_blocked() || has_paused {
            self.counts.outlasted += u64::from(has_paused);
            self.reset_link(at, 10 * MILLI);
        }
    }

    /// A node says nothing while it is paused; its connections break when that lasts.
    pub(super) fn pause_links(&mut self, node: u64) {
        let idle = self.idle_timeout();
        for at in 0..self.links.len() {
            if self.links[at].nodes.contains(&node) {
                let wait = self.rng.within(idle / 2, idle);
                let (link, session) = (at as u8, self.links[at].session);
                self.push(self.now + wait, Event::Idle { link, session });
            }
        }
    }

    /// Ends all weather.
    pub(super) fn heal_network(&mut self) {
        for at in 0..self.links.len() {
            let [a, b] = self.links[at].nodes;
            self.links[at].slow_until = 0;
            for (from, to) in [(a, b), (b, a)] {
                while self.links[at].blocked[self.links[at].side_of(from)] > 0 {
                    self.unblock(from, to);
                }
            }
            self.hurry(at, 0);
            self.hurry(at, 1);
            self.dial_later(at);
        }
    }
}

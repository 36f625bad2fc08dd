//! What a network knows of one peer.
//!
//! Owns the peer's address, its queues and its current link. It must never hold more than one link:
//! a newer one replaces the older.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_raft::NodeId;
use quinn::Connection;
use tokio::sync::Notify;

use super::close::Close;
use super::doorbell::Doorbell;
use super::link::LinkState;
use super::queue::LaneQueue;
use crate::{Lane, NetworkStats, Options, SendError};

pub(super) struct Peer {
    pub node: NodeId,
    addr: Mutex<SocketAddr>,
    /// Told when the address changes, and when the peer is taken out.
    pub moved: Notify,
    /// It was taken out: no link is made with it any more.
    is_gone: AtomicBool,
    /// By lane number on the wire.
    queues: Box<[LaneQueue]>,
    link: Mutex<Option<Link>>,
    /// Whether there has been a link before.
    met: AtomicBool,
    /// Why the last attempt to make a link failed.
    last_failure: Mutex<Option<String>>,
}

/// The link that is up.
pub(super) struct Link {
    pub number: u64,
    pub connection: Connection,
    pub state: Arc<LinkState>,
    /// Longest frame that both sides take.
    pub frame_limit: usize,
}

impl Peer {
    pub fn new(
        node: NodeId,
        addr: SocketAddr,
        options: &Options,
        doorbell: &Arc<Doorbell>,
    ) -> Peer {
        let queues = 2 + usize::from(options.append_lanes);
        Peer {
            node,
            addr: Mutex::new(addr),
            moved: Notify::new(),
            is_gone: AtomicBool::new(false),
            queues: (0..queues)
                .map(|_| {
                    let doorbell = Arc::clone(doorbell);
                    LaneQueue::new(options.queue_bytes, options.max_frame_bytes, doorbell)
                })
                .collect(),
            link: Mutex::default(),
            met: AtomicBool::new(false),
            last_failure: Mutex::default(),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        *self.addr.lock()
    }

    /// Changes the address. A link that is up stays; an attempt to make one starts anew.
    pub fn move_to(&self, addr: SocketAddr) {
        *self.addr.lock() = addr;
        self.moved.notify_one();
    }

    /// The peer is taken out. Its link ends, also one that is being made.
    pub fn leave(&self) {
        self.is_gone.store(true, Ordering::SeqCst);
        self.moved.notify_one();
        if let Some(link) = &*self.link.lock() {
            dismiss(&link.connection);
        }
    }

    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }

    pub fn queue(&self, lane: Lane) -> Option<&LaneQueue> {
        self.queues.get(usize::from(lane.to_wire()))
    }

    pub fn lanes(&self) -> impl Iterator<Item = Lane> {
        (0..self.queues.len() as u8).filter_map(Lane::from_wire)
    }

    pub fn send(&self, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        self.queue(lane).ok_or(SendError::UnknownPeer)?.push(frame)
    }

    pub fn queued_bytes(&self) -> usize {
        self.queues.iter().map(LaneQueue::bytes).sum()
    }

    /// Adds how long frames waited for each kind of lane.
    pub fn add_delays(&self, stats: &mut NetworkStats) {
        for (queue, lane) in self.queues.iter().zip(self.lanes()) {
            let delays = match lane {
                Lane::Liveness => &mut stats.liveness_delays,
                Lane::Append(_) => &mut stats.append_delays,
                Lane::Snapshot => &mut stats.snapshot_delays,
            };
            delays.merge(queue.delays());
        }
    }

    /// Lets every writer end once its queue is empty.
    pub fn end_queues(&self) {
        self.queues.iter().for_each(LaneQueue::end);
    }

    /// Makes `link` the current one; whether there had been one before it, at any time.
    pub fn install(&self, link: Link) -> bool {
        for queue in &self.queues {
            queue.open(link.number, link.frame_limit);
        }
        *self.last_failure.lock() = None;
        let mut current = self.link.lock();
        if self.is_gone() {
            dismiss(&link.connection);
        }
        *current = Some(link);
        drop(current);
        self.met.swap(true, Ordering::Relaxed)
    }

    /// Takes the current link away, if it is this one or if any will do. Returns it with the number
    /// of frames that were queued and are now lost.
    pub fn uninstall(&self, number: Option<u64>) -> Option<(Link, u64)> {
        let mut link = self.link.lock();
        if number.is_some() && link.as_ref().map(|link| link.number) != number {
            return None;
        }
        let link = link.take()?;
        link.state.end();
        let dropped = self.queues.iter().map(LaneQueue::close).sum();
        Some((link, dropped))
    }

    pub fn is_linked(&self) -> bool {
        self.link.lock().is_some()
    }

    pub fn round_trip(&self) -> Option<Duration> {
        self.link.lock().as_ref().map(|link| link.connection.rtt())
    }

    /// The longest frame that the link takes, if there is one.
    pub fn frame_limit(&self) -> Option<usize> {
        self.link.lock().as_ref().map(|link| link.frame_limit)
    }

    /// Whether an attempt failed for another reason than the one before, so that it is worth a line
    /// in the log.
    pub fn is_news(&self, reason: &str) -> bool {
        let mut last = self.last_failure.lock();
        if last.as_deref() == Some(reason) {
            return false;
        }
        *last = Some(reason.to_owned());
        true
    }
}

/// Ends a connection with a node that is no peer any more.
fn dismiss(connection: &Connection) {
    Close::NotAPeer.send(connection, "the node was taken out of the peers");
}

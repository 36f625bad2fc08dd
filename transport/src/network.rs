//! The interface between a node and whatever carries its frames.
//!
//! Owns the two traits and the small types in their signatures. It must never name QUIC, TLS or a
//! socket beyond the local address: the loopback network implements the same interface.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use polyraft_raft::NodeId;

use crate::{Hello, SendError};

/// What a frame is for; it decides the order in which frames leave when there is more than fits.
///
/// Frames of one lane from one node arrive in the order in which they were sent. Lanes do not wait
/// for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Beats and claims. Leaves before everything else and is never paused by the receiver.
    Liveness,
    /// Consensus messages; a group always uses the same append lane.
    Append(u8),
    /// Bulk transfers. Leaves when nothing else wants to.
    Snapshot,
}

impl Lane {
    /// The lane's number on the wire: 0 liveness, 1 snapshot, 2.. append.
    pub(crate) fn to_wire(self) -> u8 {
        match self {
            Lane::Liveness => 0,
            Lane::Snapshot => 1,
            Lane::Append(index) => index.saturating_add(2),
        }
    }

    /// The lane with this number on the wire, if there is one.
    pub(crate) fn from_wire(number: u8) -> Option<Lane> {
        match number {
            0 => Some(Lane::Liveness),
            1 => Some(Lane::Snapshot),
            n if n - 2 < crate::MAX_APPEND_LANES => Some(Lane::Append(n - 2)),
            _ => None,
        }
    }
}

/// Something that carries frames to the other nodes of the cluster.
pub trait Network: Send + Sync {
    /// Queues `frame` for `to` and returns at once.
    ///
    /// An `Ok` says that the frame was queued, not that it arrived: a frame is lost when its link
    /// goes down. Frames of one lane arrive in the order of their `send` calls.
    ///
    /// # Errors
    /// Says why the frame was not queued; nothing of it is kept. See [`SendError`].
    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError>;

    /// Bytes queued for `to` on all lanes and not yet handed to the connection.
    fn queued_bytes(&self, to: NodeId) -> usize;

    /// The longest frame that `send` accepts now for `to`, in bytes: the smaller limit of the two
    /// nodes while they are linked, and this node's own before.
    fn max_frame_bytes(&self, to: NodeId) -> usize;

    /// Adds a peer, or changes the address of one. A link that is up stays up; the new address is used when it is next dialed,
    /// and at once if the peer is being dialed now. Does nothing where peers have no addresses.
    fn set_peer(&self, _node: NodeId, _addr: SocketAddr) {}

    /// Takes a peer out: its link is closed, and no other is made or let in before it is added again. Does nothing where peers
    /// have no addresses.
    fn remove_peer(&self, _node: NodeId) {}

    /// Has each thread of the network call `task` soon, once. It must not block, because meanwhile no frame moves, nor panic,
    /// because then the network fails. Does nothing where there are no threads.
    fn call_on_threads(&self, _task: Arc<dyn Fn() + Send + Sync>) {}

    /// Counters since the start.
    fn stats(&self) -> NetworkStats;

    /// The smoothed round trip to `to` as the connection measures it; `None` without a link.
    fn round_trip(&self, to: NodeId) -> Option<Duration>;

    /// Sends what is queued (for about a second at most), closes every link and joins the threads.
    /// Later sends fail with [`SendError::Closed`]. Calling it again does nothing.
    fn shutdown(&self);

    /// The address this node listens on, with the port that the system chose if it was 0.
    fn local_addr(&self) -> Option<SocketAddr>;
}

/// The node's side of the network. All methods but `admit` are called on the transport's thread and
/// must not block: while one runs, no frame moves.
pub trait Receiver: Send + Sync + 'static {
    /// The node's own policy, asked after certificate, cluster and membership were checked.
    ///
    /// A network with threads calls it on another one than the rest, so that it may wait for a disk:
    /// meanwhile the frames of other links move. It is asked one peer at a time, in the order in
    /// which their hellos came, also about a peer that has stopped waiting for the answer. It must
    /// not shut the network down, which waits for it.
    ///
    /// # Errors
    /// The text says why the peer is refused; it is sent to the peer as the reason.
    fn admit(&self, peer: &Hello) -> Result<(), String>;

    /// A frame arrived. It lies between the `Up` and the `Down` of the link it came over.
    ///
    /// The bytes may be a slice of a larger receive buffer, which lives as long as the slice does:
    /// copy what must be kept for long.
    fn frame(&self, from: NodeId, lane: Lane, frame: Bytes);

    /// Whether this lane's frames can be taken now. After `false` the transport stops reading the
    /// lane, asks again about every millisecond, and flow control stops the peer. It is asked
    /// between bursts, so a few frames can still follow a `false`. Liveness is never asked.
    fn ready(&self, lane: Lane) -> bool;

    /// The state of the link to `peer` changed.
    fn link(&self, peer: NodeId, event: LinkEvent);

    /// The network has failed, by no fault of a peer: no frame moves any more, in either direction,
    /// before it is started anew. It is the last call. The default does nothing.
    fn failed(&self, _reason: String) {}
}

/// What happened to the link with one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Both sides admitted each other; frames can be sent.
    Up {
        /// What the peer said of itself, checked against its certificate.
        hello: Hello,
        /// The round trip measured by the handshake.
        round_trip: Duration,
    },
    /// An established link is gone. Frames that were queued for it are dropped.
    Down {
        /// Why, for people.
        reason: String,
    },
    /// A link could not be established because one of the two sides does not accept the other:
    /// certificate, cluster, membership, version, or the node's own policy. It is tried again with
    /// growing delays.
    Refused {
        /// Why, for people, from the side that refused.
        reason: String,
    },
}

/// Counters of a network since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkStats {
    /// Frames handed to a connection.
    pub frames_sent: u64,
    /// Their bytes, frame headers included.
    pub bytes_sent: u64,
    /// Frames handed to the receiver.
    pub frames_received: u64,
    /// Their bytes, frame headers included.
    pub bytes_received: u64,
    /// Links refused by either side, and connections closed because of what came over them.
    pub refused: u64,
    /// Times that a link came up again after it had been up before.
    pub reconnects: u64,
    /// Frames that were queued and then dropped because their link went down.
    pub dropped: u64,
    /// How long frames waited in front of the liveness lanes to all peers.
    pub liveness_delays: LaneDelays,
    /// The same for the append lanes.
    pub append_delays: LaneDelays,
    /// The same for the snapshot lanes.
    pub snapshot_delays: LaneDelays,
}

/// From the sending of frames to the moment at which a lane's writer took them, for one frame at a time in each lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneDelays {
    /// Frames that were looked at.
    pub samples: u64,
    /// How long these waited, together, in microseconds.
    pub total_us: u64,
    /// How long the one that is looked at has waited by now, in microseconds; 0: none waits.
    pub oldest_us: u64,
}

impl LaneDelays {
    /// Adds those of another lane.
    pub(crate) fn merge(&mut self, other: LaneDelays) {
        self.samples += other.samples;
        self.total_us += other.total_us;
        self.oldest_us = self.oldest_us.max(other.oldest_us);
    }
}

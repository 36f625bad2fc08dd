//! What a QUIC network can be told, with defaults and ranges.
//!
//! Owns every number that bounds memory or time in this crate. It must never leave a limit at
//! "unlimited".

use std::net::SocketAddr;
use std::time::Duration;

use polyraft_raft::NodeId;

use crate::{Identity, Tls, TransportError};

/// The most append lanes that a link can have.
pub const MAX_APPEND_LANES: u8 = 64;

/// The largest UDP payload that is safe with segmentation offload.
///
/// quinn hands ten segments to the kernel at once, and a send of more than 65,507 bytes fails
/// without an error: every burst is lost and the link crawls.
pub const MAX_MTU_WITH_GSO: u16 = 6550;

/// Options of a [`crate::QuicNetwork`].
#[derive(Clone, Debug)]
pub struct Options {
    /// UDP address to listen on and to send from. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The other nodes. This node's own entry is ignored.
    pub peers: Vec<(NodeId, SocketAddr)>,
    /// Who this node is.
    pub identity: Identity,
    /// Where its certificate comes from.
    pub tls: Tls,
    /// Append lanes to each peer, 1 to 64. Default 1.
    pub append_lanes: u8,
    /// Longest frame that is sent or received, in bytes, 1 KiB to 64 MiB. Default 4 MiB. A link
    /// uses the smaller limit of its two nodes.
    pub max_frame_bytes: usize,
    /// Bound of each peer's and lane's send queue in bytes, at least `max_frame_bytes`. Default
    /// 32 MiB. When it is full, sending fails with [`crate::SendError::Full`].
    pub queue_bytes: usize,
    /// Largest UDP payload to discover, 1200 to 6550. Default 6500. Links start at 1200 bytes.
    pub max_mtu: u16,
    /// A link without a sign of life for so long is down. Default 3 s, 100 ms to 5 min.
    pub idle_timeout: Duration,
    /// How often a quiet link is probed; at most half of `idle_timeout`. Default 1 s.
    pub keep_alive: Duration,
    /// How long establishing a link may take before it is tried again. Default 1.5 s.
    pub handshake_timeout: Duration,
    /// Wait after the first failed attempt to connect; doubled each time, and always varied by up
    /// to a half. Default 50 ms.
    pub backoff_min: Duration,
    /// Longest wait between the beginnings of two attempts to connect. Default 2 s.
    pub backoff_max: Duration,
    /// Unread bytes that the peer may have in flight on each lane, 64 KiB to 64 MiB. Default
    /// 4 MiB. A link's receive window is this times its lanes, so that a lane which is not read
    /// never takes the credit of another.
    pub receive_window: u32,
    /// Kernel buffer of the socket in each direction, in bytes; the system may grant less.
    /// Default 4 MiB.
    pub socket_buffer_bytes: usize,
}

impl Options {
    /// Options with the defaults.
    pub fn new(identity: Identity, listen: SocketAddr, tls: Tls) -> Options {
        Options {
            listen,
            peers: Vec::new(),
            identity,
            tls,
            append_lanes: 1,
            max_frame_bytes: 4 << 20,
            queue_bytes: 32 << 20,
            max_mtu: 6500,
            idle_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_secs(1),
            handshake_timeout: Duration::from_millis(1500),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            receive_window: 4 << 20,
            socket_buffer_bytes: 4 << 20,
        }
    }

    /// Checks every range once.
    ///
    /// # Errors
    /// Names the option, its value and its range.
    pub fn validate(&self) -> Result<(), TransportError> {
        self.identity.validate()?;
        within(
            "append_lanes",
            self.append_lanes.into(),
            1,
            MAX_APPEND_LANES.into(),
        )?;
        within(
            "max_frame_bytes",
            self.max_frame_bytes as u64,
            MIN_FRAME_LIMIT as u64,
            MAX_FRAME_LIMIT as u64,
        )?;
        within(
            "queue_bytes",
            self.queue_bytes as u64,
            self.max_frame_bytes as u64,
            u32::MAX.into(),
        )?;
        within(
            "max_mtu",
            self.max_mtu.into(),
            INITIAL_MTU.into(),
            MAX_MTU_WITH_GSO.into(),
        )?;
        within(
            "receive_window",
            self.receive_window.into(),
            MIN_RECEIVE_WINDOW.into(),
            MAX_RECEIVE_WINDOW.into(),
        )?;
        within(
            "socket_buffer_bytes",
            self.socket_buffer_bytes as u64,
            64 << 10,
            1 << 30,
        )?;
        let long = Duration::from_secs(300);
        let short = Duration::from_millis(1);
        between(
            "idle_timeout",
            self.idle_timeout,
            Duration::from_millis(100),
            long,
        )?;
        between("keep_alive", self.keep_alive, short, self.idle_timeout / 2)?;
        between("handshake_timeout", self.handshake_timeout, short, long)?;
        between("backoff_min", self.backoff_min, short, long)?;
        between("backoff_max", self.backoff_max, self.backoff_min, long)
    }
}

/// Datagram size with which every link starts; QUIC guarantees no less.
pub(crate) const INITIAL_MTU: u16 = 1200;
/// Range of the frame limit.
pub(crate) const MIN_FRAME_LIMIT: usize = 1 << 10;
pub(crate) const MAX_FRAME_LIMIT: usize = 64 << 20;
/// Range of a lane's receive window.
pub(crate) const MIN_RECEIVE_WINDOW: u32 = 64 << 10;
pub(crate) const MAX_RECEIVE_WINDOW: u32 = 64 << 20;

fn within(name: &str, value: u64, least: u64, most: u64) -> Result<(), TransportError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(TransportError::Options(format!(
        "{name} is {value}, but must be between {least} and {most}"
    )))
}

fn between(
    name: &str,
    value: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), TransportError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(TransportError::Options(format!(
        "{name} is {value:?}, but must be between {least:?} and {most:?}"
    )))
}

//! The errors of this crate.
//!
//! Owns every reason for which sending or starting can fail, in words a person can act on. It must
//! never hold an outcome that happens later: what goes wrong on a link is a `LinkEvent`.

use std::net::SocketAddr;
use std::path::PathBuf;

use polyraft_raft::NodeId;

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The lane's queue is full: the peer or the network is slower than the sender. Send again
    /// later.
    #[error("the lane is full: {queued} bytes are queued and {limit} are allowed")]
    Full {
        /// Bytes in the queue now.
        queued: usize,
        /// The queue's bound in bytes.
        limit: usize,
    },
    /// The frame is longer than this node or its peer accepts. It must be split.
    #[error("a frame of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// The frame's length in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The node is not among the peers, or the lane does not exist.
    #[error("no such peer or lane")]
    UnknownPeer,
    /// There is no link to the peer now. Frames are not kept for later.
    #[error("the peer is not connected")]
    Disconnected,
    /// The network was shut down.
    #[error("the network is shut down")]
    Closed,
}

/// Why a network could not start.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// An option is out of its range.
    #[error("transport options: {0}")]
    Options(String),
    /// The cluster's name cannot be used.
    #[error("cluster name {name:?} must be 1 to 64 characters out of a-z, 0-9, '.' and '-'")]
    ClusterName {
        /// The name as given.
        name: String,
    },
    /// The UDP socket could not be set up.
    #[error("cannot listen on udp {addr}: {source}")]
    Bind {
        /// The address that was asked for.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate or key file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, such as "read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate or key file has the wrong contents or permissions.
    #[error("{}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The certificate in use is not the one of this node.
    #[error("{}: the certificate is for {found}, but this is node {} of cluster {cluster:?}", path.display(), node.0)]
    WrongCertificate {
        /// The certificate's file.
        path: PathBuf,
        /// The identity that the certificate carries.
        found: String,
        /// This node.
        node: NodeId,
        /// This cluster.
        cluster: String,
    },
    /// TLS could not be set up from files that could be read.
    #[error("tls: {0}")]
    Tls(String),
    /// A thread or its runtime could not be started.
    #[error("cannot start the network's thread: {0}")]
    Thread(std::io::Error),
    /// The node is in the hub already.
    #[error("node {} has joined this hub already", .0.0)]
    AlreadyJoined(NodeId),
}

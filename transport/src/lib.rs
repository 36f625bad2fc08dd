//! QUIC lanes between the nodes of a Polyraft cluster.
//!
//! This crate owns sockets, certificates, connections and the queues in front of them. It moves
//! opaque frames from one node to another and tells its owner when a link comes up or goes down.
//! It must never decode a Raft message, keep a frame for a peer that is not connected, or block
//! the thread that sends.
//!
//! Two networks stand behind one trait:
//!
//! * [`QuicListener`] and [`QuicNetwork`]: one QUIC connection per pair of nodes over mutual TLS;
//! * [`Loopback`]: the same interface in memory, for tests and simulation.
//!
//! `docs/wire-format.md` has the byte maps.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use bytes::Bytes;
//! use polyraft_raft::NodeId;
//! use polyraft_transport::{Hello, Identity, Lane, LinkEvent, LoopbackHub, Network, Receiver};
//!
//! #[derive(Default)]
//! struct Inbox(Mutex<Vec<Bytes>>);
//! impl Receiver for Inbox {
//!     fn admit(&self, _peer: &Hello) -> Result<(), String> { Ok(()) }
//!     fn frame(&self, _from: NodeId, _lane: Lane, frame: Bytes) {
//!         self.0.lock().unwrap().push(frame);
//!     }
//!     fn ready(&self, _lane: Lane) -> bool { true }
//!     fn link(&self, _peer: NodeId, _event: LinkEvent) {}
//! }
//!
//! let hub = LoopbackHub::new();
//! let identity = |node| Identity { cluster: "doc".into(), node: NodeId(node), store: 7, incarnation: 1, past: vec![] };
//! let (first, second) = (Arc::new(Inbox::default()), Arc::new(Inbox::default()));
//! let network = hub.join(identity(1), first)?;
//! let _other = hub.join(identity(2), second.clone())?;
//! network.send(NodeId(2), Lane::Append(0), Bytes::from_static(b"frame")).unwrap();
//! assert_eq!(second.0.lock().unwrap().len(), 1);
//! # Ok::<(), polyraft_transport::TransportError>(())
//! ```

mod error;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod hello;
mod loopback;
mod network;
mod options;
mod quic;
mod tls;

pub use error::{SendError, TransportError};
pub use hello::{FORMAT_VERSION, Hello, Identity, MAX_PAST};
pub use loopback::{Loopback, LoopbackHub};
pub use network::{Lane, LaneDelays, LinkEvent, Network, NetworkStats, Receiver};
pub use options::{MAX_APPEND_LANES, MAX_MTU_WITH_GSO, Options};
pub use polyraft_raft::NodeId;
pub use quic::{QuicListener, QuicNetwork};
pub use tls::Tls;

//! The network over QUIC.
//!
//! Owns the thread with its runtime, the endpoint, and the tasks that keep the node linked to its
//! peers. It must never run anything on a caller's thread beyond a push into a queue.

mod backoff;
mod close;
mod doorbell;
mod endpoint;
mod link;
mod peer;
mod queue;
mod reader;
mod runtime;
mod shared;
mod timers;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_raft::NodeId;
use quinn::{Endpoint, Incoming, VarInt};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::backoff::Backoff;
use self::close::Close;
use self::peer::Peer;
use self::runtime::QuietRuntime;
use self::shared::Shared;
use self::timers::Timers;
use crate::tls::{Crypto, Verdict};
use crate::{Lane, Network, NetworkStats, Options, Receiver, SendError, TransportError};

/// Handshakes that run at the same time, beside those of peers that have proved their address.
const MAX_HANDSHAKES: usize = 64;

/// How long a stopping network waits for its links, flushing included.
const LINKS_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long a stopping network waits for peers to hear that it is gone.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(250);

/// A node's socket and certificates, checked and ready, before anybody is told who the node is.
pub struct QuicListener {
    options: Options,
    crypto: Crypto,
    transport: quinn::TransportConfig,
    endpoint: quinn::EndpointConfig,
    socket: UdpSocket,
}

impl fmt::Debug for QuicListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicListener")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl QuicListener {
    /// Checks the options, loads the certificates and binds the socket.
    ///
    /// # Errors
    /// When an option is out of range, a certificate cannot be used or the socket cannot be bound.
    pub fn bind(options: Options) -> Result<QuicListener, TransportError> {
        options.validate()?;
        let material = options.tls.load(&options.identity)?;
        let crypto = Crypto::new(material, &options.identity)?;
        let transport = endpoint::transport_config(&options)?;
        let reset_key = crypto.reset_key(options.identity.node);
        let endpoint = endpoint::endpoint_config(&options, reset_key)?;
        let socket = endpoint::bind(&options)?;
        Ok(QuicListener {
            options,
            crypto,
            transport,
            endpoint,
            socket,
        })
    }

    /// Starts the thread and begins to connect to the peers. What comes from them goes to `receiver`.
    ///
    /// # Errors
    /// When the system gives no thread or no runtime.
    pub fn start(self, receiver: Arc<dyn Receiver>) -> Result<QuicNetwork, TransportError> {
        let QuicListener {
            options,
            crypto,
            transport,
            endpoint,
            socket,
        } = self;
        let addr = socket.local_addr().map_err(TransportError::Thread)?;
        let peers = options.peers.clone();
        let shared = Arc::new(Shared::new(options, crypto, transport, receiver));
        let (newcomers, arrivals) = mpsc::unbounded_channel();
        let network = QuicNetwork {
            shared: shared.clone(),
            addr,
            newcomers,
            thread: Mutex::default(),
        };
        for (node, addr) in peers {
            network.set_peer(node, addr);
        }

        let timers = Timers::new().map_err(TransportError::Thread)?;
        let armed = Arc::clone(&timers);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || armed.arm())
            .build()
            .map_err(TransportError::Thread)?;
        let server = Some(shared.server_config(&Verdict::default())?);
        let endpoint = {
            let _inside = runtime.enter();
            let quiet = QuietRuntime {
                timers: Arc::clone(&timers),
                max_packet_bytes: shared.options.max_mtu,
            };
            Endpoint::new(endpoint, server, socket, Arc::new(quiet))
                .map_err(TransportError::Thread)?
        };
        let thread = std::thread::Builder::new()
            .name(format!("polyraft-net-{}", shared.node().0))
            .spawn(move || run(&runtime, shared, timers, endpoint, arrivals))
            .map_err(TransportError::Thread)?;
        *network.thread.lock() = Some(thread);
        Ok(network)
    }
}

/// One QUIC connection per pair of nodes over mutual TLS, on a thread of its own.
///
/// The node with the lower number dials. A link that is lost is made again, with growing delays
/// while that fails. Dropping the network shuts it down.
pub struct QuicNetwork {
    shared: Arc<Shared>,
    addr: SocketAddr,
    /// Peers that are new after the start.
    newcomers: mpsc::UnboundedSender<Arc<Peer>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl QuicNetwork {
    /// Adds a peer, or changes the address of one. A link that is up stays up; the new address is
    /// used when it is next dialed, and at once if the peer is being dialed now.
    pub fn set_peer(&self, node: NodeId, addr: SocketAddr) {
        if node == self.shared.node() {
            return;
        }
        if let Some(peer) = self.shared.set_peer(node, addr) {
            // Fails only once the network is shut down, and then there is nobody to dial.
            let _ = self.newcomers.send(peer);
        }
    }

    /// Takes a peer out: its link is closed, and no other is made or let in before it is added again.
    pub fn remove_peer(&self, node: NodeId) {
        if let Some(peer) = self.shared.remove_peer(node) {
            peer.leave();
            self.shared.update_frame_limit();
        }
    }
}

impl Network for QuicNetwork {
    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        if self.shared.is_stopping() {
            return Err(SendError::Closed);
        }
        self.shared
            .with_peer(to, |peer| peer.send(lane, frame))
            .unwrap_or(Err(SendError::UnknownPeer))
    }

    fn queued_bytes(&self, to: NodeId) -> usize {
        self.shared
            .with_peer(to, Peer::queued_bytes)
            .unwrap_or_default()
    }

    fn max_frame_bytes(&self) -> usize {
        self.shared.frame_limit()
    }

    fn set_peer(&self, node: NodeId, addr: SocketAddr) {
        QuicNetwork::set_peer(self, node, addr);
    }

    fn remove_peer(&self, node: NodeId) {
        QuicNetwork::remove_peer(self, node);
    }

    fn stats(&self) -> NetworkStats {
        self.shared.counters.read()
    }

    fn round_trip(&self, to: NodeId) -> Option<Duration> {
        self.shared.with_peer(to, Peer::round_trip).flatten()
    }

    fn shutdown(&self) {
        self.shared.stop();
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        // The receiver may own this network, and then its last owner can be the network's own
        // thread, which cannot wait for itself.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the network's thread panicked");
        }
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        Some(self.addr)
    }
}

impl Drop for QuicNetwork {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for QuicNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicNetwork")
            .field("node", &self.shared.node())
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// The network's thread.
fn run(
    runtime: &Runtime,
    shared: Arc<Shared>,
    timers: Arc<Timers>,
    endpoint: Endpoint,
    arrivals: mpsc::UnboundedReceiver<Arc<Peer>>,
) {
    runtime.block_on(async {
        let doorbell = Arc::clone(&shared.doorbell);
        tokio::spawn(async move { doorbell.answer().await });
        tokio::spawn(async move {
            let error = timers.run().await;
            tracing::error!(%error, "the network's timers have stopped");
        });
        let mut links = serve(&shared, &endpoint, arrivals).await;
        let _ = timeout(LINKS_TIMEOUT, async {
            while links.join_next().await.is_some() {}
        })
        .await;
        endpoint.close(VarInt::from_u32(Close::Shutdown as u32), b"shut down");
        let _ = timeout(GOODBYE_TIMEOUT, endpoint.wait_idle()).await;
    });
}

/// Dials and accepts until the network stops; returns the tasks that are still running.
async fn serve(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    mut arrivals: mpsc::UnboundedReceiver<Arc<Peer>>,
) -> JoinSet<()> {
    let mut links = JoinSet::new();
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        tokio::select! {
            () = shared.stopping() => return links,
            Some(peer) = arrivals.recv() => {
                if shared.node() < peer.node {
                    links.spawn(keep_linked(shared.clone(), endpoint.clone(), peer));
                }
            }
            Some(incoming) = endpoint.accept() => {
                let permit = handshakes.clone().try_acquire_owned().ok();
                let is_peer = || {
                    incoming.remote_address_validated()
                        && shared.peer_at(incoming.remote_address()).is_some()
                };
                if permit.is_some() || is_peer() {
                    links.spawn(accept(shared.clone(), incoming, permit));
                } else if incoming.may_retry() {
                    // Strangers fill the table. Whoever proves its address gets another look.
                    let _ = incoming.retry();
                } else {
                    incoming.ignore();
                }
            }
            Some(ended) = links.join_next() => {
                if let Err(error) = ended {
                    // The receiver's panic; the link's end was not reported.
                    tracing::error!(%error, "a link's task panicked");
                }
            }
        }
    }
}

/// Dials a peer again and again.
async fn keep_linked(shared: Arc<Shared>, endpoint: Endpoint, peer: Arc<Peer>) {
    let options = &shared.options;
    let mut backoff = Backoff::new(options.backoff_min, options.backoff_max);
    while !shared.is_stopping() && !peer.is_gone() {
        let started = Instant::now();
        let mut spent = Duration::ZERO;
        let dialed = tokio::select! {
            dialed = link::dial(&shared, &endpoint, &peer) => dialed,
            () = peer.moved.notified() => continue,
            () = shared.stopping() => return,
        };
        match dialed {
            Ok(established) => {
                let up = Instant::now();
                link::run(&shared, &peer, established).await;
                // A link that breaks as soon as it is up counts as a failed attempt.
                if up.elapsed() >= options.backoff_max {
                    backoff.reset();
                }
            }
            Err(failure) => {
                spent = started.elapsed();
                shared.failed(&peer, &failure);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.delay_after(spent)) => {}
            () = peer.moved.notified() => backoff.reset(),
            () = shared.stopping() => return,
        }
    }
}

/// Takes one connection from its first packet to its end.
async fn accept(shared: Arc<Shared>, incoming: Incoming, permit: Option<OwnedSemaphorePermit>) {
    let addr = incoming.remote_address();
    let accepted = link::accept(&shared, incoming).await;
    drop(permit);
    match accepted {
        Ok((peer, established)) => link::run(&shared, &peer, established).await,
        Err((Some(peer), failure)) => shared.failed(&peer, &failure),
        Err((None, failure)) => shared.stranger_failed(addr, &failure),
    }
}

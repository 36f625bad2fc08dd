//! The network over QUIC.
//!
//! Owns the thread with its runtime, the endpoint, and the tasks that keep the node linked to its
//! peers. It must never run anything on a caller's thread beyond a push into a queue.

mod backoff;
mod close;
mod doorbell;
mod endpoint;
mod link;
mod panics;
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
#[cfg(polyraft_mutants)]
use polyraft_raft::mutants;
use quinn::{Endpoint, Incoming, VarInt};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::backoff::Backoff;
use self::close::Close;
use self::panics::{caught, reporting};
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

/// What the network's thread is asked to call.
type ThreadTask = Arc<dyn Fn() + Send + Sync>;

/// What others ask of the network's thread: links with new peers, and calls.
type Requests = (
    mpsc::UnboundedReceiver<Arc<Peer>>,
    mpsc::UnboundedReceiver<ThreadTask>,
);

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
        let (tasks, coming_tasks) = mpsc::unbounded_channel();
        let network = QuicNetwork {
            shared: shared.clone(),
            addr,
            newcomers,
            tasks,
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
            // For the receiver's `admit`, which relies on there being one.
            .max_blocking_threads(1)
            .thread_name("polyraft-admit")
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
        #[cfg(polyraft_mutants)]
        let fault = mutants::active();
        let thread = std::thread::Builder::new()
            .name(format!("polyraft-net-{}", shared.node().0))
            .spawn(move || {
                #[cfg(polyraft_mutants)]
                mutants::set(fault);
                let run = || {
                    run(
                        &runtime,
                        &shared,
                        timers,
                        endpoint,
                        (arrivals, coming_tasks),
                    )
                };
                reporting(&*shared.receiver, run);
                // However it has ended: whoever sends is told.
                shared.stop();
            })
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
    tasks: mpsc::UnboundedSender<ThreadTask>,
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

    fn max_frame_bytes(&self, to: NodeId) -> usize {
        let link = self.shared.with_peer(to, Peer::frame_limit).flatten();
        link.unwrap_or(self.shared.options.max_frame_bytes)
    }

    fn set_peer(&self, node: NodeId, addr: SocketAddr) {
        QuicNetwork::set_peer(self, node, addr);
    }

    fn remove_peer(&self, node: NodeId) {
        QuicNetwork::remove_peer(self, node);
    }

    fn call_on_threads(&self, task: ThreadTask) {
        // Fails only once the network is shut down, and then there is no thread.
        let _ = self.tasks.send(task);
    }

    fn stats(&self) -> NetworkStats {
        self.shared.stats()
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

/// The network's thread; an error if it ends before the network is stopped.
fn run(
    runtime: &Runtime,
    shared: &Arc<Shared>,
    timers: Arc<Timers>,
    endpoint: Endpoint,
    requests: Requests,
) -> Result<(), String> {
    runtime.block_on(async {
        // Without one of these no link would work, and none would be seen to fail.
        let mut vital = JoinSet::new();
        let doorbell = Arc::clone(&shared.doorbell);
        vital.spawn(async move { match doorbell.answer().await {} });
        vital.spawn(async move {
            let error = timers.run().await;
            format!("its timers have stopped: {error}")
        });
        let mut links = tokio::select! {
            links = serve(shared, &endpoint, requests) => links,
            Some(ended) = vital.join_next() => {
                return Err(ended.unwrap_or_else(|panic| panic.to_string()));
            }
        };
        let _ = timeout(LINKS_TIMEOUT, async {
            while links.join_next().await.is_some() {}
        })
        .await;
        endpoint.close(VarInt::from_u32(Close::Shutdown as u32), b"shut down");
        let _ = timeout(GOODBYE_TIMEOUT, endpoint.wait_idle()).await;
        Ok(())
    })
}

/// Dials and accepts until the network stops; returns the tasks that are still running.
async fn serve(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    (mut arrivals, mut tasks): Requests,
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
            Some(task) = tasks.recv() => task(),
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
                    // Its link was taken away before, and the lower number dials again.
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
        let spent = match caught(attempt(&shared, &endpoint, &peer)).await {
            Some(Attempt::Outdated) => continue,
            Some(Attempt::Failed(spent)) => spent,
            Some(Attempt::Linked(up)) => {
                // A link that breaks as soon as it is up counts as a failed attempt.
                if up >= options.backoff_max {
                    backoff.reset();
                }
                Duration::ZERO
            }
            None => {
                tracing::error!(node = peer.node.0, "an attempt to make a link panicked");
                Duration::ZERO
            }
        };
        tokio::select! {
            () = tokio::time::sleep(backoff.delay_after(spent)) => {}
            () = peer.moved.notified() => backoff.reset(),
            () = shared.stopping() => return,
        }
    }
}

/// What became of an attempt to make a link.
enum Attempt {
    /// The peer was moved or taken out meanwhile, or the network is stopped.
    Outdated,
    /// It took so long.
    Failed(Duration),
    /// It succeeded; the link was up for so long.
    Linked(Duration),
}

/// Dials a peer once, and runs the link if that makes one.
async fn attempt(shared: &Arc<Shared>, endpoint: &Endpoint, peer: &Arc<Peer>) -> Attempt {
    let started = Instant::now();
    let dialed = tokio::select! {
        dialed = link::dial(shared, endpoint, peer) => dialed,
        () = peer.moved.notified() => return Attempt::Outdated,
        () = shared.stopping() => return Attempt::Outdated,
    };
    match dialed {
        Ok(established) => {
            let up = Instant::now();
            link::run(shared, peer, established).await;
            Attempt::Linked(up.elapsed())
        }
        Err(failure) => {
            let spent = started.elapsed();
            shared.failed(peer, &failure);
            Attempt::Failed(spent)
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

//! What the network's thread and its users share.
//!
//! Owns the table of peers, the counters and the way to stop. It must never be locked while the
//! receiver is called.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use polyraft_raft::NodeId;
use quinn::TransportConfig;
use tokio::sync::watch;

use super::close::Failure;
use super::doorbell::Doorbell;
use super::peer::Peer;
use crate::hello::{FORMAT_VERSION, WireHello};
use crate::tls::{Crypto, Verdict};
use crate::{Hello, LinkEvent, NetworkStats, Options, Receiver, TransportError};

pub(super) struct Shared {
    pub options: Options,
    pub crypto: Crypto,
    pub transport: Arc<TransportConfig>,
    pub receiver: Arc<dyn Receiver>,
    pub counters: Counters,
    pub doorbell: Arc<Doorbell>,
    peers: RwLock<HashMap<NodeId, Arc<Peer>>>,
    /// Delays in front of the lanes to nodes that are no peers any more: counters must not go back.
    former: Mutex<NetworkStats>,
    next_link: AtomicU64,
    stopping: watch::Sender<bool>,
    /// The last refusal of a node that nothing is known of.
    last_stranger: Mutex<Option<String>>,
}

impl Shared {
    pub fn new(
        options: Options,
        crypto: Crypto,
        transport: TransportConfig,
        receiver: Arc<dyn Receiver>,
    ) -> Shared {
        Shared {
            options,
            crypto,
            transport: Arc::new(transport),
            receiver,
            counters: Counters::default(),
            doorbell: Arc::default(),
            peers: RwLock::default(),
            former: Mutex::default(),
            next_link: AtomicU64::new(1),
            stopping: watch::Sender::new(false),
            last_stranger: Mutex::default(),
        }
    }

    pub fn node(&self) -> NodeId {
        self.options.identity.node
    }

    /// What this node says to `to`.
    pub fn hello_to(&self, to: NodeId) -> WireHello {
        WireHello {
            hello: Hello {
                identity: self.options.identity.clone(),
                version: FORMAT_VERSION,
            },
            to,
            max_frame_bytes: self.options.max_frame_bytes as u32,
            receive_window: self.options.receive_window,
            append_lanes: self.options.append_lanes,
        }
    }

    pub fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().get(&node).cloned()
    }

    /// The peer that is configured with this address.
    pub fn peer_at(&self, addr: SocketAddr) -> Option<Arc<Peer>> {
        let peers = self.peers.read();
        peers.values().find(|peer| peer.addr() == addr).cloned()
    }

    /// Everything that is counted, of the links and of their lanes.
    pub fn stats(&self) -> NetworkStats {
        let former = *self.former.lock();
        let mut stats = NetworkStats {
            liveness_delays: former.liveness_delays,
            append_delays: former.append_delays,
            snapshot_delays: former.snapshot_delays,
            ..self.counters.read()
        };
        for peer in self.peers.read().values() {
            peer.add_delays(&mut stats);
        }
        stats
    }

    pub fn with_peer<T>(&self, node: NodeId, f: impl FnOnce(&Peer) -> T) -> Option<T> {
        self.peers.read().get(&node).map(|peer| f(peer))
    }

    /// Sets a peer's address; returns the peer if it is new.
    pub fn set_peer(&self, node: NodeId, addr: SocketAddr) -> Option<Arc<Peer>> {
        let mut peers = self.peers.write();
        if let Some(peer) = peers.get(&node) {
            peer.move_to(addr);
            return None;
        }
        let peer = Arc::new(Peer::new(node, addr, &self.options, &self.doorbell));
        peers.insert(node, peer.clone());
        Some(peer)
    }

    /// Takes a peer out of the table.
    pub fn remove_peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        let peer = self.peers.write().remove(&node)?;
        let mut former = self.former.lock();
        peer.add_delays(&mut former);
        // Nothing waits there any more.
        let NetworkStats {
            liveness_delays,
            append_delays,
            snapshot_delays,
            ..
        } = &mut *former;
        for delays in [liveness_delays, append_delays, snapshot_delays] {
            delays.oldest_us = 0;
        }
        drop(former);
        Some(peer)
    }

    pub fn client_config(
        &self,
        node: NodeId,
        verdict: &Verdict,
    ) -> Result<quinn::ClientConfig, TransportError> {
        let crypto = self.crypto.client_config(node, verdict)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport.clone());
        Ok(config)
    }

    pub fn server_config(&self, verdict: &Verdict) -> Result<quinn::ServerConfig, TransportError> {
        let crypto = self.crypto.server_config(verdict)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(self.transport.clone())
            .migration(false)
            .max_incoming(super::endpoint::MAX_INCOMING)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(4 << 20);
        Ok(config)
    }

    pub fn next_link(&self) -> u64 {
        self.next_link.fetch_add(1, Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits until [`Shared::stop`].
    pub async fn stopping(&self) {
        // The sender lives in `self`, so this cannot fail.
        let _ = self.stopping.subscribe().wait_for(|stop| *stop).await;
    }

    /// Tells everyone that no link could be made with a known peer.
    pub fn failed(&self, peer: &Peer, failure: &Failure) {
        let node = peer.node;
        match failure {
            Failure::Refused(reason) => {
                self.counters.refused();
                if peer.is_news(reason) {
                    tracing::warn!(node = node.0, addr = %peer.addr(), %reason, "link refused");
                } else {
                    tracing::debug!(node = node.0, addr = %peer.addr(), %reason, "link refused again");
                }
                let reason = reason.clone();
                self.receiver.link(node, LinkEvent::Refused { reason });
            }
            Failure::Unreachable(reason) => {
                if peer.is_news(reason) {
                    tracing::info!(node = node.0, addr = %peer.addr(), %reason, "no link yet");
                }
            }
        }
    }

    /// Notes that a node which did not prove to be a peer was not let in.
    ///
    /// When it calls from a peer's address it is most likely that peer with a wrong certificate, so
    /// the peer's refusal is what people need to see.
    pub fn stranger_failed(&self, addr: SocketAddr, failure: &Failure) {
        let Failure::Refused(reason) = failure else {
            tracing::debug!(%addr, ?failure, "handshake failed");
            return;
        };
        match self.peer_at(addr) {
            Some(peer) if !peer.is_linked() => self.failed(&peer, failure),
            _ => {
                self.counters.refused();
                let mut last = self.last_stranger.lock();
                if last.as_ref() == Some(reason) {
                    tracing::debug!(%addr, %reason, "stranger refused again");
                } else {
                    tracing::warn!(%addr, %reason, "stranger refused");
                    *last = Some(reason.clone());
                }
            }
        }
    }
}

/// Counters, written by the network's thread only.
#[derive(Default)]
pub(super) struct Counters {
    frames_sent: AtomicU64,
    bytes_sent: AtomicU64,
    frames_received: AtomicU64,
    bytes_received: AtomicU64,
    refused: AtomicU64,
    reconnects: AtomicU64,
    dropped: AtomicU64,
}

impl Counters {
    pub fn sent(&self, frames: u64, bytes: u64) {
        add(&self.frames_sent, frames);
        add(&self.bytes_sent, bytes);
    }

    pub fn received(&self, bytes: u64) {
        add(&self.frames_received, 1);
        add(&self.bytes_received, bytes);
    }

    pub fn refused(&self) {
        add(&self.refused, 1);
    }

    pub fn reconnected(&self) {
        add(&self.reconnects, 1);
    }

    pub fn dropped(&self, frames: u64) {
        add(&self.dropped, frames);
    }

    pub fn read(&self) -> NetworkStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetworkStats {
            frames_sent: get(&self.frames_sent),
            bytes_sent: get(&self.bytes_sent),
            frames_received: get(&self.frames_received),
            bytes_received: get(&self.bytes_received),
            refused: get(&self.refused),
            reconnects: get(&self.reconnects),
            dropped: get(&self.dropped),
            ..NetworkStats::default()
        }
    }
}

/// One writer, so a plain addition will do and no locked instruction is needed per frame.
fn add(counter: &AtomicU64, value: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(value);
    counter.store(sum, Ordering::Relaxed);
}

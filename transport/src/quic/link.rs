//! One link: from the hello to its end.
//!
//! Owns the exchange of hellos on a fresh connection, the checks that go with it, and the life of
//! an established link. It must never open a lane before both sides admitted each other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use polyraft_raft::NodeId;
use polyraft_raft::mutants::{self, Mutant};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use super::close::{Close, Failure, describe};
use super::panics::{RECEIVER_PANICKED, caught};
use super::peer::{Link, Peer};
use super::reader::read_link;
use super::shared::Shared;
use super::writer::write_lane;
use crate::hello::{HELLO_PREFIX_BYTES, WireHello};
use crate::tls::{PeerName, SERVER_NAME, Verdict};
use crate::{Hello, LinkEvent, TransportError};

/// The byte with which the dialing side ends the hello.
const ADMITTED: u8 = 1;

/// How long a stopping node flushes its queues.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long frames that arrived before the end of a connection may take to be delivered.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// A connection whose two sides have admitted each other.
pub(super) struct Established {
    connection: Connection,
    peer: WireHello,
}

/// Dials a peer and exchanges hellos.
pub(super) async fn dial(
    shared: &Shared,
    endpoint: &Endpoint,
    peer: &Peer,
) -> Result<Established, Failure> {
    let addr = peer.addr();
    let limit = shared.options.handshake_timeout;
    match timeout(limit, dial_at(shared, endpoint, peer.node, addr)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::Unreachable(format!(
            "no answer from {addr} within {limit:?}"
        ))),
    }
}

async fn dial_at(
    shared: &Shared,
    endpoint: &Endpoint,
    node: NodeId,
    addr: SocketAddr,
) -> Result<Established, Failure> {
    let verdict = Verdict::default();
    let config = shared.client_config(node, &verdict).map_err(unusable)?;
    let connection = endpoint
        .connect_with(config, addr, SERVER_NAME)
        .map_err(|error| Failure::Unreachable(error.to_string()))?
        .await
        .map_err(|error| Failure::of(&error, verdict.refusal()))?;
    let exchange = Exchange {
        shared,
        connection: &connection,
        node,
    };
    let peer = exchange.as_dialer().await?;
    Ok(Established { connection, peer })
}

/// Accepts a connection and exchanges hellos. The peer is told apart from strangers in the error:
/// it is there once the certificate has proved who calls.
pub(super) async fn accept(
    shared: &Shared,
    incoming: Incoming,
) -> Result<(Arc<Peer>, Established), (Option<Arc<Peer>>, Failure)> {
    let limit = shared.options.handshake_timeout;
    let mut known = None;
    match timeout(limit, accept_from(shared, incoming, &mut known)).await {
        Ok(Ok(established)) => Ok(established),
        Ok(Err(failure)) => Err((known, failure)),
        Err(_) => {
            let reason = format!("the handshake took longer than {limit:?}");
            Err((known, Failure::Unreachable(reason)))
        }
    }
}

async fn accept_from(
    shared: &Shared,
    incoming: Incoming,
    known: &mut Option<Arc<Peer>>,
) -> Result<(Arc<Peer>, Established), Failure> {
    let verdict = Verdict::default();
    let config = shared.server_config(&verdict).map_err(unusable)?;
    let connection = async { incoming.accept_with(Arc::new(config))?.await }
        .await
        .map_err(|error| Failure::of(&error, verdict.refusal()))?;
    let refuse = |close: Close, reason: String| {
        close.send(&connection, &reason);
        Failure::Refused(reason)
    };
    let name =
        certified_name(&connection).map_err(|reason| refuse(Close::WrongIdentity, reason))?;
    let (node, me) = (name.node, shared.node());
    if mutants::is_active(Mutant::NonMemberAdmitted) {
        shared.set_peer(node, connection.remote_address());
    }
    let Some(peer) = shared.peer(node) else {
        let (node, me) = (node.0, me.0);
        let reason = format!("node {node} is not a peer of node {me}");
        return Err(refuse(Close::NotAPeer, reason));
    };
    *known = Some(peer.clone());
    if node > me {
        let (node, me) = (node.0, me.0);
        let reason = format!("node {node} must wait for node {me}: the lower number dials");
        return Err(refuse(Close::WrongIdentity, reason));
    }
    let exchange = Exchange {
        shared,
        connection: &connection,
        node,
    };
    let hello = exchange.as_acceptor().await?;
    let established = Established {
        connection,
        peer: hello,
    };
    Ok((peer, established))
}

fn unusable(error: TransportError) -> Failure {
    Failure::Unreachable(error.to_string())
}

/// The name in the certificate with which the peer opened this connection.
fn certified_name(connection: &Connection) -> Result<PeerName, String> {
    connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .and_then(|chain| chain.first().map(PeerName::from_certificate))
        .unwrap_or_else(|| Err("the peer showed no certificate".into()))
}

/// The exchange of hellos on a fresh connection.
struct Exchange<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    /// Whose certificate the other end has shown.
    node: NodeId,
}

impl Exchange<'_> {
    async fn as_dialer(&self) -> Result<WireHello, Failure> {
        let opened = self.connection.open_bi().await;
        let (mut send, mut receive) = opened.map_err(|error| Failure::of(&error, None))?;
        self.write(&mut send, &self.hello()).await?;
        let hello = self.read_hello(&mut receive).await?;
        self.write(&mut send, &[ADMITTED]).await?;
        let _ = send.finish();
        Ok(hello)
    }

    async fn as_acceptor(&self) -> Result<WireHello, Failure> {
        let accepted = self.connection.accept_bi().await;
        let (mut send, mut receive) = accepted.map_err(|error| Failure::of(&error, None))?;
        let hello = self.read_hello(&mut receive).await?;
        self.write(&mut send, &self.hello()).await?;
        let _ = send.finish();
        let mut answer = [0];
        self.read(&mut receive, &mut answer).await?;
        if answer != [ADMITTED] {
            let reason = format!("the hello ends with {} in place of {ADMITTED}", answer[0]);
            return Err(self.refuse(Close::BadHello, reason));
        }
        Ok(hello)
    }

    fn hello(&self) -> Vec<u8> {
        self.shared.hello_to(self.node).encode()
    }

    async fn read_hello(&self, stream: &mut RecvStream) -> Result<WireHello, Failure> {
        let malformed =
            |error: crate::hello::HelloError| self.refuse(Close::BadHello, error.to_string());
        let mut prefix = [0; HELLO_PREFIX_BYTES];
        self.read(stream, &mut prefix).await?;
        let mut rest = vec![0; WireHello::rest_of(&prefix).map_err(malformed)?];
        self.read(stream, &mut rest).await?;
        let hello = WireHello::decode(&rest).map_err(malformed)?;
        self.check(&hello)
            .map_err(|reason| self.refuse(Close::WrongIdentity, reason))?;
        self.admit(&hello.hello).await?;
        Ok(hello)
    }

    fn check(&self, wire: &WireHello) -> Result<(), String> {
        let own = &self.shared.options.identity;
        let theirs = &wire.hello.identity;
        if theirs.node != self.node {
            return Err(format!(
                "the hello is from node {}, but the certificate is node {}'s",
                theirs.node.0, self.node.0
            ));
        }
        if theirs.cluster != own.cluster {
            return Err(format!("{theirs} cannot link with {own}"));
        }
        if wire.to != own.node {
            return Err(format!(
                "the hello is meant for node {}, but this is node {}",
                wire.to.0, own.node.0
            ));
        }
        Ok(())
    }

    /// Asks the node, which may go to its disk for the answer.
    ///
    /// The runtime has one thread for that, which takes the questions in their order: what an older
    /// incarnation of a peer says of itself must not come behind what a newer one has said.
    async fn admit(&self, hello: &Hello) -> Result<(), Failure> {
        let (receiver, hello) = (Arc::clone(&self.shared.receiver), hello.clone());
        match spawn_blocking(move || receiver.admit(&hello)).await {
            Ok(admitted) => admitted.map_err(|reason| self.refuse(Close::NotAdmitted, reason)),
            Err(_) => {
                Close::Internal.send(self.connection, RECEIVER_PANICKED);
                Err(Failure::Unreachable(RECEIVER_PANICKED.to_owned()))
            }
        }
    }

    fn refuse(&self, close: Close, reason: String) -> Failure {
        close.send(self.connection, &reason);
        Failure::Refused(reason)
    }

    async fn write(&self, stream: &mut SendStream, bytes: &[u8]) -> Result<(), Failure> {
        let written = stream.write_all(bytes).await;
        written.map_err(|error| self.lost(&error.to_string()))
    }

    async fn read(&self, stream: &mut RecvStream, bytes: &mut [u8]) -> Result<(), Failure> {
        let read = stream.read_exact(bytes).await;
        read.map_err(|error| self.lost(&error.to_string()))
    }

    /// A stream failed: most likely because its connection did, which knows more.
    fn lost(&self, error: &str) -> Failure {
        match self.connection.close_reason() {
            Some(reason) => Failure::of(&reason, None),
            None => Failure::Unreachable(format!("the hello was cut off: {error}")),
        }
    }
}

/// What the tasks of one link tell each other.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    ended: AtomicBool,
    /// Why this node ended the connection, if it did.
    fault: Mutex<Option<String>>,
}

impl LinkState {
    pub fn is_up(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub fn fault(&self, reason: &str) {
        self.fault.lock().get_or_insert_with(|| reason.to_owned());
    }

    fn reason(&self) -> Option<String> {
        self.fault.lock().clone()
    }
}

/// Runs an established link until it ends.
pub(super) async fn run(shared: &Arc<Shared>, peer: &Arc<Peer>, established: Established) {
    let connection = established.connection.clone();
    let number = shared.next_link();
    let ended = caught(live(shared, peer, established, number)).await;
    let reason = ended.unwrap_or_else(|| {
        Close::Internal.send(&connection, RECEIVER_PANICKED);
        RECEIVER_PANICKED.to_owned()
    });
    if let Some((_, dropped)) = peer.uninstall(Some(number)) {
        went_down(shared, peer, dropped, reason);
    }
}

/// The life of link `number`; returns why it ended.
async fn live(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    established: Established,
    number: u64,
) -> String {
    let Established {
        connection,
        peer: hello,
    } = established;
    // After a restart the peer's new connection can be here before the old one has timed out.
    if let Some((old, dropped)) = peer.uninstall(None) {
        let reason = "a newer connection took over";
        Close::Replaced.send(&old.connection, reason);
        went_down(shared, peer, dropped, reason.to_owned());
    }
    let limit = hello
        .max_frame_bytes
        .min(shared.options.max_frame_bytes as u32);
    let state = Arc::new(LinkState::default());
    open_lanes(shared, &connection, &hello);
    let link = Link {
        number,
        connection: connection.clone(),
        state: state.clone(),
        frame_limit: limit as usize,
    };
    if peer.install(link) {
        shared.counters.reconnected();
    }
    let round_trip = connection.rtt();
    let node = peer.node;
    tracing::info!(node = node.0, addr = %connection.remote_address(), ?round_trip, "link up");
    let hello = hello.hello;
    shared
        .receiver
        .link(node, LinkEvent::Up { hello, round_trip });

    let reading = read_link(
        shared.clone(),
        peer.clone(),
        connection.clone(),
        state.clone(),
        shared.options.max_frame_bytes as u32,
    );
    let mut reader = JoinSet::new();
    reader.spawn(reading);
    let mut writers = JoinSet::new();
    for lane in peer.lanes() {
        let (shared, peer, connection) = (shared.clone(), peer.clone(), connection.clone());
        // A failed write means a failed connection, and that is seen below.
        writers.spawn(async move {
            let _ = write_lane(&shared, &peer, number, &connection, lane).await;
        });
    }

    let reason = tokio::select! {
        error = connection.closed() => describe(&error),
        () = shared.stopping() => {
            peer.end_queues();
            let _ = timeout(FLUSH_TIMEOUT, async { while writers.join_next().await.is_some() {} }).await;
            Close::Shutdown.send(&connection, &format!("node {} shut down", shared.node().0));
            "this node shut down".into()
        }
    };
    let _ = timeout(DRAIN_TIMEOUT, reader.join_next()).await;
    if let Some(fault) = state.reason() {
        shared.counters.refused();
        tracing::warn!(node = node.0, reason = %fault, "link closed because of the peer");
        return fault;
    }
    reason
}

/// Gives the admitted peer its streams and windows.
///
/// Both windows of the connection are the sum over its lanes: whatever one lane leaves unread or
/// unacknowledged, the others, liveness above all, have credit of their own.
fn open_lanes(shared: &Shared, connection: &Connection, hello: &WireHello) {
    let ours = &shared.options;
    let their_lanes = 2 + u32::from(hello.append_lanes);
    let our_lanes = 2 + u64::from(ours.append_lanes);
    let receive = u64::from(their_lanes) * u64::from(ours.receive_window);
    let send = our_lanes * u64::from(hello.receive_window);
    connection.set_send_window(send);
    connection.set_receive_window(VarInt::from_u64(receive).unwrap_or(VarInt::MAX));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(their_lanes));
}

fn went_down(shared: &Shared, peer: &Peer, dropped: u64, reason: String) {
    let node = peer.node;
    tracing::info!(node = node.0, %reason, dropped, "link down");
    shared.counters.dropped(dropped);
    shared.receiver.link(node, LinkEvent::Down { reason });
}

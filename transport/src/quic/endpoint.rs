//! The UDP socket and QUIC's own settings.
//!
//! Owns every number that is handed to quinn. It must never leave one at a default that is
//! unlimited.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::HmacKey;
use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    TransportConfig, VarInt,
};
use rustls::crypto::SecureRandom;
use rustls::crypto::ring::default_provider;
use socket2::{Domain, Protocol, Socket, Type};

use crate::options::INITIAL_MTU;
use crate::{MAX_MTU_WITH_GSO, Options, TransportError};

/// Handshakes that may wait to be accepted; more are refused.
pub(super) const MAX_INCOMING: usize = 256;

/// What a peer that is not admitted yet can make this node buffer.
const HANDSHAKE_WINDOW: u32 = 16 << 10;

/// First guess at a round trip. Nodes of a cluster are near each other; the standard's third of a
/// second would delay the first retransmission for a whole one.
const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(25);

/// Bytes that a new link may have in flight before its first acknowledgement.
const INITIAL_CONGESTION_WINDOW: u64 = 128 << 10;

/// Binds the socket with large kernel buffers, as far as the system grants them.
pub(super) fn bind(options: &Options) -> Result<UdpSocket, TransportError> {
    let addr = options.listen;
    let open = || {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_recv_buffer_size(options.socket_buffer_bytes)?;
        socket.set_send_buffer_size(options.socket_buffer_bytes)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        let granted = socket.recv_buffer_size()?;
        if granted < options.socket_buffer_bytes {
            // Linux doubles what it grants, so this is less than half.
            let asked = options.socket_buffer_bytes;
            tracing::debug!(
                asked,
                granted,
                "small socket buffers: see net.core.rmem_max"
            );
        }
        Ok(UdpSocket::from(socket))
    };
    open().map_err(|source| TransportError::Bind { addr, source })
}

pub(super) fn endpoint_config(
    options: &Options,
    reset_key: Arc<dyn HmacKey>,
) -> Result<EndpointConfig, TransportError> {
    let mut config = EndpointConfig::new(reset_key);
    config
        .max_udp_payload_size(options.max_mtu)
        .map_err(|error| TransportError::Options(format!("max_mtu: {error}")))?;
    config.cid_generator(|| Box::new(RandomIds(default_provider().secure_random)));
    Ok(config)
}

/// Connection ids out of eight random bytes.
///
/// quinn's own generator recognises the ids that it made and meets others with silence. Ids of this
/// node's last run must be answered with a reset, so that peers learn of the restart at once.
struct RandomIds(&'static dyn SecureRandom);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; 8];
        let filled = self.0.fill(&mut id);
        filled.expect("the system gives random bytes");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

pub(super) fn transport_config(options: &Options) -> Result<TransportConfig, TransportError> {
    assert!(
        options.max_mtu <= MAX_MTU_WITH_GSO,
        "bursts of larger packets are lost in silence"
    );
    let idle = IdleTimeout::try_from(options.idle_timeout)
        .map_err(|error| TransportError::Options(format!("idle_timeout: {error}")))?;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(options.max_mtu);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_CONGESTION_WINDOW);

    let mut config = TransportConfig::default();
    config
        // One stream for the hello. Lanes are opened up when the peer is admitted.
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(options.receive_window))
        .receive_window(VarInt::from_u32(HANDSHAKE_WINDOW))
        .send_window(u64::from(HANDSHAKE_WINDOW))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .crypto_buffer_size(16 << 10)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(options.keep_alive))
        .initial_rtt(INITIAL_ROUND_TRIP)
        .initial_mtu(INITIAL_MTU)
        .min_mtu(INITIAL_MTU)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion))
        .enable_segmentation_offload(true);
    Ok(config)
}

//! The round trip between two nodes' transports on this machine, message by message: QUIC with mutual TLS, from thread
//! to thread. The connection's own figure is smoothed and has no tail; this has.

use crate::load::{histogram, nanos};
use anyhow::{Context, Result};
use bytes::Bytes;
use hdrhistogram::Histogram;
use polyraft_raft::NodeId;
use polyraft_transport::{
    Hello, Identity, Lane, LinkEvent, Network, Options, QuicListener, QuicNetwork, Receiver,
    SendError, Tls,
};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak, mpsc};
use std::time::{Duration, Instant};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

/// About as large as an append of a few small entries.
const MESSAGE: [u8; 256] = [1; 256];
/// How long the two may take to link, and how long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first messages find the packet size and fill caches.
const WARMUP: u64 = 200;

/// One end. It sends back what it gets, if it knows by which way; else it tells.
struct End {
    back: OnceLock<Weak<QuicNetwork>>,
    arrived: mpsc::Sender<()>,
}

impl Receiver for End {
    fn admit(&self, _peer: &Hello) -> Result<(), String> {
        Ok(())
    }

    fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
        match self.back.get().map(Weak::upgrade) {
            Some(Some(network)) => {
                // A lost answer ends the measurement with an error at the other end.
                let _ = network.send(from, lane, frame);
            }
            Some(None) => {}
            None => {
                let _ = self.arrived.send(());
            }
        }
    }

    fn ready(&self, _lane: Lane) -> bool {
        true
    }

    fn link(&self, _peer: NodeId, event: LinkEvent) {
        if matches!(event, LinkEvent::Up { .. }) {
            // Nobody listens at the end that sends back.
            let _ = self.arrived.send(());
        }
    }
}

/// Sends messages one at a time for `lasts`. The certificates are made in `ca`.
pub fn round_trips(ca: &Path, lasts: Duration) -> Result<Histogram<u64>> {
    let start = |node| -> Result<_> {
        let identity = Identity {
            cluster: "echo".into(),
            node,
            store: 1,
            incarnation: 1,
            past: Vec::new(),
        };
        let (arrived, arrivals) = mpsc::channel();
        let end = Arc::new(End {
            back: OnceLock::new(),
            arrived,
        });
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let options = Options::new(identity, listen, Tls::dev(ca));
        let network = QuicListener::bind(options)
            .and_then(|listener| listener.start(Arc::clone(&end) as Arc<dyn Receiver>))?;
        Ok((Arc::new(network), end, arrivals))
    };
    let (from, _, arrivals) = start(ONE)?;
    let (to, end, _) = start(TWO)?;
    let _ = end.back.set(Arc::downgrade(&to));
    let address = |network: &QuicNetwork| network.local_addr().context("a socket has an address");
    to.set_peer(ONE, address(&from)?);
    from.set_peer(TWO, address(&to)?);
    arrivals
        .recv_timeout(PATIENCE)
        .context("two nodes on this machine do not hear one another")?;
    let mut times = histogram();
    let begun = Instant::now();
    for count in 0.. {
        let sent = Instant::now();
        match from.send(TWO, Lane::Append(0), Bytes::from_static(&MESSAGE)) {
            Ok(()) => {}
            Err(error @ SendError::Closed) => return Err(error.into()),
            // The link is up on one side only yet.
            Err(_) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        arrivals
            .recv_timeout(PATIENCE)
            .context("a message was lost")?;
        if count >= WARMUP {
            times.saturating_record(nanos(sent.elapsed()));
        }
        if begun.elapsed() > lasts && !times.is_empty() {
            break;
        }
    }
    from.shutdown();
    to.shutdown();
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_measured_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let times = round_trips(dir.path(), Duration::from_millis(200)).unwrap();
        assert!(!times.is_empty());
        assert!(times.min() > 0 && times.max() < 10_000_000_000);
    }
}

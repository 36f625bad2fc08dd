//! How fast two nodes exchange frames on this machine: one at a time, then as many as will go.
//!
//! Owns one measurement: `cargo run --release -p polyraft-transport --example throughput -- [FRAME
//! BYTES] [SECONDS]`. Both nodes run in this process, each with its own network thread, and one
//! thread sends. It must never be taken for the engine's speed: nothing is parsed or stored.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use polyraft_transport::{
    Hello, Identity, Lane, LinkEvent, Network, NodeId, Options, QuicListener, QuicNetwork,
    Receiver, SendError, Tls,
};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

/// Counts what arrives on the append lane; sends back or reports what arrives on liveness.
struct Meter {
    bytes: AtomicU64,
    echo: OnceLock<Arc<QuicNetwork>>,
    arrived: mpsc::Sender<()>,
}

impl Receiver for Meter {
    fn admit(&self, _peer: &Hello) -> Result<(), String> {
        Ok(())
    }

    fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
        match (lane, self.echo.get()) {
            (Lane::Liveness, Some(network)) => {
                // A lost echo ends the measurement with an error on the other side.
                let _ = network.send(from, lane, frame);
            }
            (Lane::Liveness, None) => {
                let _ = self.arrived.send(());
            }
            _ => {
                self.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
            }
        }
    }

    fn ready(&self, _lane: Lane) -> bool {
        true
    }

    fn link(&self, _peer: NodeId, event: LinkEvent) {
        if matches!(event, LinkEvent::Up { .. }) {
            let _ = self.arrived.send(());
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let frame_bytes: usize = arguments.next().as_deref().unwrap_or("65536").parse()?;
    let seconds: u64 = arguments.next().as_deref().unwrap_or("5").parse()?;

    let dir = tempfile::tempdir()?;
    let start = |node| -> Result<_, Box<dyn Error>> {
        let identity = Identity {
            cluster: "throughput".into(),
            node,
            store: 1,
            incarnation: 1,
            past: Vec::new(),
        };
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let (arrived, arrivals) = mpsc::channel();
        let meter = Arc::new(Meter {
            bytes: AtomicU64::new(0),
            echo: OnceLock::new(),
            arrived,
        });
        let options = Options::new(identity, listen, Tls::dev(dir.path()));
        let network = Arc::new(
            QuicListener::bind(options).and_then(|listener| listener.start(meter.clone()))?,
        );
        Ok((network, meter, arrivals))
    };
    let (from, _, arrivals) = start(ONE)?;
    let (to, meter, _) = start(TWO)?;
    let _ = meter.echo.set(to.clone());
    let addr = |network: &QuicNetwork| network.local_addr().ok_or("no address");
    to.set_peer(ONE, addr(&from)?);
    from.set_peer(TWO, addr(&to)?);
    let patience = Duration::from_secs(10);
    arrivals.recv_timeout(patience)?;

    let mut pings = Vec::new();
    for _ in 0..5000 {
        let started = Instant::now();
        from.send(TWO, Lane::Liveness, Bytes::from_static(&[1; 100]))?;
        arrivals.recv_timeout(patience)?;
        pings.push(started.elapsed());
    }
    pings.sort();
    println!(
        "ping, 100 bytes  p50 {:?}, p99 {:?} (thread to thread)",
        pings[pings.len() / 2],
        pings[pings.len() / 100 * 99]
    );

    let frame = Bytes::from(vec![7; frame_bytes]);
    let send_for = |time: Duration| -> Result<(), SendError> {
        let started = Instant::now();
        while started.elapsed() < time {
            match from.send(TWO, Lane::Append(0), frame.clone()) {
                Ok(()) => {}
                // As a shard does: come back later. A wait of this length is much less than what
                // the queue holds.
                Err(SendError::Full { .. } | SendError::Disconnected) => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    // Finds the packet size and opens the congestion window.
    send_for(Duration::from_secs(1))?;
    let (started, bytes, cpu) = (
        Instant::now(),
        meter.bytes.load(Ordering::Relaxed),
        cpu_seconds()?,
    );
    send_for(Duration::from_secs(seconds))?;
    let elapsed = started.elapsed().as_secs_f64();
    let gigabytes = (meter.bytes.load(Ordering::Relaxed) - bytes) as f64 / 1e9;
    let cpu = cpu_seconds()? - cpu;
    println!("frame bytes      {frame_bytes}");
    println!("MB/s             {:.0}", gigabytes * 1e3 / elapsed);
    println!(
        "frames/s         {:.0}",
        gigabytes * 1e9 / frame_bytes as f64 / elapsed
    );
    println!(
        "cores            {:.2} (both nodes and the sender)",
        cpu / elapsed
    );
    println!("CPU s per GB     {:.2}", cpu / gigabytes);
    println!("round trip       {:?}", from.round_trip(TWO));
    println!("{:?}", to.stats());
    Ok(())
}

/// CPU seconds of this process.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    // Fields 14 and 15 of proc(5), in clock ticks of 10 ms; the name in field 2 may hold spaces.
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().ok_or("no fields")?;
    let mut ticks = fields.split_whitespace().skip(11).take(2);
    let mut next = || -> Result<f64, Box<dyn Error>> { Ok(ticks.next().ok_or("short")?.parse()?) };
    Ok((next()? + next()?) / 100.0)
}

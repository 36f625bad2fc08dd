//! What stands between two nodes of a test and can be cut: it passes datagrams on, or loses them.
//! It must never look into a datagram, nor change one.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// The most that a datagram holds.
const DATAGRAM: usize = 65_536;

/// An address that stands for another one. Whoever sends there speaks with that; only one may.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Passes on what comes, and the answers to it, until this is dropped.
    pub async fn start(to: SocketAddr) -> Relay {
        let bind = async || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let (near, far) = (bind().await, bind().await);
        let (near, far) = (near.expect("a socket"), far.expect("a socket"));
        far.connect(to).await.expect("an address on this machine");
        let address = near.local_addr().expect("a bound socket");
        let is_cut = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(pass(near, far, Arc::clone(&is_cut)));
        Relay {
            address,
            is_cut,
            task,
        }
    }

    /// Where it is found.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Loses everything from now on.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    /// Passes everything on again.
    pub fn mend(&self) {
        self.is_cut.store(false, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(near: UdpSocket, far: UdpSocket, is_cut: Arc<AtomicBool>) {
    let (mut request, mut answer) = (vec![0; DATAGRAM], vec![0; DATAGRAM]);
    let mut asker = None;
    loop {
        // An error says that nobody listens there at the moment: the datagram is lost, as datagrams may be.
        tokio::select! {
            came = near.recv_from(&mut request) => {
                let Ok((bytes, from)) = came else { continue };
                asker = Some(from);
                if !is_cut.load(Ordering::Relaxed) {
                    let _ = far.send(&request[..bytes]).await;
                }
            }
            came = far.recv(&mut answer) => {
                let (Ok(bytes), Some(asker)) = (came, asker) else { continue };
                if !is_cut.load(Ordering::Relaxed) {
                    let _ = near.send_to(&answer[..bytes], asker).await;
                }
            }
        }
    }
}

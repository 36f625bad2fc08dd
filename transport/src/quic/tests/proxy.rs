//! A UDP proxy between the dialing node and the other.
//!
//! Owns the path between two nodes, so that a test can cut it without a goodbye from either. It
//! must never change a packet.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

pub(super) struct Proxy {
    path: Arc<Path>,
    threads: Vec<JoinHandle<()>>,
}

struct Path {
    /// Where the dialing node sends to.
    front: UdpSocket,
    /// What the other node sees.
    back: UdpSocket,
    /// Where packets go; `None` loses them, in both directions.
    target: Mutex<Option<SocketAddr>>,
    /// The dialing node, as seen last.
    dialer: Mutex<Option<SocketAddr>>,
    stopped: AtomicBool,
}

impl Proxy {
    pub fn to(target: SocketAddr) -> Proxy {
        let open = || {
            let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
            let poll = Some(Duration::from_millis(20));
            socket.set_read_timeout(poll).unwrap();
            socket
        };
        let path = Arc::new(Path {
            front: open(),
            back: open(),
            target: Mutex::new(Some(target)),
            dialer: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let (forth, back) = (path.clone(), path.clone());
        let threads = vec![
            std::thread::spawn(move || forth.forth()),
            std::thread::spawn(move || back.back()),
        ];
        Proxy { path, threads }
    }

    pub fn addr(&self) -> SocketAddr {
        self.path.front.local_addr().unwrap()
    }

    /// Loses every packet from now on.
    pub fn mute(&self) {
        *self.path.target.lock() = None;
    }

    /// Forwards again, to this node.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.path.target.lock() = Some(target);
    }
}

impl Path {
    fn forth(&self) {
        let mut buffer = vec![0; 1 << 16];
        while !self.stopped.load(Ordering::Relaxed) {
            let Ok((length, from)) = self.front.recv_from(&mut buffer) else {
                continue;
            };
            let target = *self.target.lock();
            if let Some(target) = target {
                *self.dialer.lock() = Some(from);
                let _ = self.back.send_to(&buffer[..length], target);
            }
        }
    }

    fn back(&self) {
        let mut buffer = vec![0; 1 << 16];
        while !self.stopped.load(Ordering::Relaxed) {
            let Ok((length, from)) = self.back.recv_from(&mut buffer) else {
                continue;
            };
            let (target, dialer) = (*self.target.lock(), *self.dialer.lock());
            if let (Some(dialer), true) = (dialer, target == Some(from)) {
                let _ = self.front.send_to(&buffer[..length], dialer);
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.path.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

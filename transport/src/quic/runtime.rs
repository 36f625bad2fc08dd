//! What quinn asks of its surroundings: the socket, timers and tasks.
//!
//! Owns the way in which the network's thread waits. It must never be woken for news that nobody
//! asked for: on an idle link such wake-ups would cost more than the beats.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Sleep;

use super::timers::Timers;

/// tokio's current-thread runtime, with a socket and timers that wake it less often than its own.
#[derive(Debug)]
pub(super) struct QuietRuntime {
    pub timers: Arc<Timers>,
    /// The longest packet that the endpoint takes.
    pub max_packet_bytes: u16,
}

/// The longest datagram of IP, and so the most that the kernel hands over as one, however many packets that are.
const MAX_DATAGRAM_BYTES: usize = 65_535;

impl Runtime for QuietRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(self.timers.timer(at))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        let enough = MAX_DATAGRAM_BYTES.div_ceil(self.max_packet_bytes.max(1).into());
        Ok(Arc::new(QuietSocket {
            receive_segments: state.gro_segments().min(enough),
            state,
            readable: register(socket.try_clone()?, Interest::READABLE)?,
            socket,
            is_full: AtomicBool::new(false),
            has_complained: AtomicBool::new(false),
        }))
    }
}

/// Has tokio report readiness of one kind. tokio's own socket always asks for both.
pub(super) fn register<T: Into<OwnedFd>>(
    file: T,
    interest: Interest,
) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it owns its descriptor, names no other as long as it lives, and `AsyncFd` keeps it.
    let registered = unsafe { AsyncFd::register_with_interest(file.into(), interest) };
    Ok(registered?)
}

/// The endpoint's socket. It wakes the thread for packets that arrive, and only then.
///
/// To wait for room to send as well would mean a wake-up for each packet whose memory the kernel
/// gets back.
struct QuietSocket {
    socket: UdpSocket,
    readable: AsyncFd<OwnedFd>,
    state: UdpSocketState,
    /// Packets that one receive buffer has room for. quinn makes a list of such buffers, which a burst would leave resident.
    receive_segments: usize,
    /// The kernel refused the last packet for want of room.
    is_full: AtomicBool,
    /// It was said once that nobody can be told of room.
    has_complained: AtomicBool,
}

impl QuietSocket {
    /// Begins to wait for room to send: registering reports the room that there is by now. It must never fail, for quinn gives a
    /// connection up without a word to anybody when it does.
    fn wait_for_room(&self) -> Waiting {
        let again = self.socket.try_clone();
        match again.and_then(|again| register(again, Interest::WRITABLE)) {
            Ok(room) => Waiting::Room(room),
            Err(error) => {
                if !self.has_complained.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the socket can't be waited for, and is tried again and again when it is full");
                }
                Waiting::Moment(Box::pin(tokio::time::sleep(MOMENT)))
            }
        }
    }
}

impl AsyncUdpSocket for QuietSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable {
            socket: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send((&self.socket).into(), transmit);
        if let Err(error) = &sent
            && error.kind() == io::ErrorKind::WouldBlock
        {
            self.is_full.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.readable.poll_read_ready(cx))?;
            match self.state.recv((&self.socket).into(), buffers, meta) {
                Ok(count) => {
                    // The kernel had no more. What comes from now on is news, which epoll reports.
                    if count < buffers.len() {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.receive_segments
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl fmt::Debug for QuietSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuietSocket").finish_non_exhaustive()
    }
}

/// Waits for room to send, for one task.
struct Writable {
    socket: Arc<QuietSocket>,
    waiting: Option<Waiting>,
}

enum Waiting {
    /// The socket is registered once more, under another number, for as long as it waits.
    Room(AsyncFd<OwnedFd>),
    /// The system had no descriptor or no memory for that: the next packet shows whether there is room.
    Moment(Pin<Box<Sleep>>),
}

/// How long a packet waits that nobody can be told of room for.
const MOMENT: Duration = Duration::from_millis(1);

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let waiting = match &mut this.waiting {
            Some(waiting) => waiting,
            // Asked before every packet.
            None if !this.socket.is_full.load(Ordering::Relaxed) => return Poll::Ready(Ok(())),
            None => this.waiting.insert(this.socket.wait_for_room()),
        };
        let outcome = match waiting {
            Waiting::Room(room) => ready!(room.poll_write_ready(cx)).map(|_| ()),
            Waiting::Moment(moment) => {
                ready!(Future::poll(moment.as_mut(), cx));
                Ok(())
            }
        };
        this.waiting = None;
        this.socket.is_full.store(false, Ordering::Relaxed);
        Poll::Ready(outcome)
    }
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn on_a_runtime<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn socket() -> Arc<dyn AsyncUdpSocket> {
        let timers = Timers::new().unwrap();
        let max_packet_bytes = 6500;
        QuietRuntime {
            timers,
            max_packet_bytes,
        }
        .wrap_udp_socket(UdpSocket::bind("127.0.0.1:0").unwrap())
        .unwrap()
    }

    fn send(from: &dyn AsyncUdpSocket, to: SocketAddr, contents: &[u8]) -> io::Result<()> {
        from.try_send(&Transmit {
            destination: to,
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        })
    }

    /// Packets that one look at the socket brings, by their first bytes.
    async fn receive(socket: &dyn AsyncUdpSocket, room: usize) -> Vec<u8> {
        let mut memory = vec![[0; 2048]; room];
        let mut buffers: Vec<_> = memory.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let mut meta = vec![RecvMeta::default(); room];
        let count = poll_fn(|cx| socket.poll_recv(cx, &mut buffers, &mut meta)).await;
        (0..count.unwrap())
            .map(|packet| memory[packet][0])
            .collect()
    }

    #[test]
    fn packets_that_arrive_after_a_short_read_are_reported() {
        on_a_runtime(async {
            let (one, two) = (socket(), socket());
            let to = two.local_addr().unwrap();
            for round in 0..20 {
                send(&*one, to, &[round]).unwrap();
                assert_eq!(receive(&*two, 8).await, [round]);
            }
        });
    }

    #[test]
    fn what_one_look_had_no_room_for_is_there_for_the_next() {
        on_a_runtime(async {
            let (one, two) = (socket(), socket());
            let to = two.local_addr().unwrap();
            (0..5).for_each(|packet| send(&*one, to, &[packet; 9]).unwrap());
            let mut found = Vec::new();
            while found.len() < 5 {
                found.extend(receive(&*two, 2).await);
            }
            assert_eq!(found, [0, 1, 2, 3, 4]);
        });
    }

    #[test]
    fn a_receive_buffer_has_room_for_whatever_the_kernel_hands_over_as_one() {
        on_a_runtime(async {
            let segments = socket().max_receive_segments();
            assert!(segments == 1 || segments * 6500 >= MAX_DATAGRAM_BYTES);
            assert!(segments <= 11, "{segments} packets");
        });
    }

    fn full(socket: UdpSocket) -> QuietSocket {
        QuietSocket {
            state: UdpSocketState::new((&socket).into()).unwrap(),
            readable: register(socket.try_clone().unwrap(), Interest::READABLE).unwrap(),
            socket,
            receive_segments: 1,
            is_full: AtomicBool::new(true),
            has_complained: AtomicBool::new(false),
        }
    }

    #[test]
    fn whoever_met_a_full_socket_tries_again_when_the_system_can_not_tell_of_room() {
        on_a_runtime(async {
            let mut socket = full(UdpSocket::bind("127.0.0.1:0").unwrap());
            // epoll takes no ordinary file.
            let file = tempfile::tempfile().unwrap();
            socket.socket = UdpSocket::from(OwnedFd::from(file));
            let socket = Arc::new(socket);
            let mut poller = Arc::clone(&socket).create_io_poller();
            let early = poll_fn(|cx| Poll::Ready(poller.as_mut().poll_writable(cx))).await;
            assert!(early.is_pending());
            poll_fn(|cx| poller.as_mut().poll_writable(cx))
                .await
                .unwrap();
            assert!(!socket.is_full.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn whoever_met_a_full_socket_is_woken_when_there_is_room() {
        on_a_runtime(async {
            let socket = Arc::new(full(UdpSocket::bind("127.0.0.1:0").unwrap()));
            let mut pollers = [0; 3].map(|_| Arc::clone(&socket).create_io_poller());
            // All of them wait before the first one is told.
            for poller in &mut pollers {
                let early = poll_fn(|cx| Poll::Ready(poller.as_mut().poll_writable(cx))).await;
                assert!(early.is_pending());
            }
            for poller in &mut pollers {
                poll_fn(|cx| poller.as_mut().poll_writable(cx))
                    .await
                    .unwrap();
            }
            assert!(!socket.is_full.load(Ordering::Relaxed));
        });
    }
}

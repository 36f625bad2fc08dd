//! The readers of one link.
//!
//! Owns the streams that the peer opened: it turns their bytes into frames for the receiver. It
//! must never deliver a frame whose header does not match the link, nor one after the link's end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::{Connection, ReadError, RecvStream};
use tokio::task::JoinSet;

use super::close::Close;
use super::link::LinkState;
use super::panics::RECEIVER_PANICKED;
use super::peer::Peer;
use super::shared::Shared;
use crate::Lane;
use crate::frame::{Assembler, FrameError, HEADER_BYTES};

/// Chunks taken from a stream at once: with full packets about 400 KB.
const CHUNKS: usize = 64;

/// How long a paused lane waits before it asks again.
const PAUSE: Duration = Duration::from_millis(1);

/// Reads all streams of the link until the connection ends.
pub(super) async fn read_link(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    connection: Connection,
    state: Arc<LinkState>,
    limit: u32,
) {
    let lanes = Arc::new(Lanes::default());
    let mut readers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_uni() => match accepted {
                Ok(stream) => {
                    let reader = Reader {
                        shared: shared.clone(),
                        peer: peer.clone(),
                        state: state.clone(),
                        lanes: lanes.clone(),
                        assembler: Assembler::new(peer.node, shared.node(), limit),
                    };
                    readers.spawn(reader.run(stream));
                }
                Err(_) => break,
            },
            Some(ended) = readers.join_next() => fail_unless_ok(&connection, &state, ended),
        }
    }
    // The connection has ended, but what arrived before can still be read.
    while let Some(ended) = readers.join_next().await {
        fail_unless_ok(&connection, &state, ended);
    }
}

/// A lane that is not read must not look like one without frames: the link ends with it.
fn fail_unless_ok(
    connection: &Connection,
    state: &LinkState,
    ended: Result<Result<(), FrameError>, tokio::task::JoinError>,
) {
    let (close, reason) = match ended {
        Ok(Ok(())) => return,
        Ok(Err(error @ FrameError::TooLarge { .. })) => (Close::FrameTooLarge, error.to_string()),
        Ok(Err(error)) => (Close::BadFrame, error.to_string()),
        Err(error) if error.is_cancelled() => return,
        Err(_) => (Close::Internal, RECEIVER_PANICKED.to_owned()),
    };
    state.fault(&reason);
    close.send(connection, &reason);
}

/// The lanes that have a stream, one bit each by number on the wire.
#[derive(Default)]
struct Lanes(Mutex<u128>);

impl Lanes {
    /// Two streams of one lane would mix up its order.
    fn claim(&self, lane: Lane) -> Result<(), FrameError> {
        let mut lanes = self.0.lock();
        let bit = 1 << lane.to_wire();
        if *lanes & bit != 0 {
            return Err(FrameError::SecondStream(lane));
        }
        *lanes |= bit;
        Ok(())
    }
}

struct Reader {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    state: Arc<LinkState>,
    lanes: Arc<Lanes>,
    assembler: Assembler,
}

impl Reader {
    async fn run(mut self, mut stream: RecvStream) -> Result<(), FrameError> {
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let mut frames = Vec::new();
        loop {
            self.pause().await;
            let count = match stream.read_chunks(&mut chunks).await {
                Ok(Some(count)) => count,
                Ok(None) if self.assembler.is_between_frames() => return Ok(()),
                Ok(None) => return Err(FrameError::Truncated),
                Err(ReadError::Reset(_)) => return Err(FrameError::Truncated),
                // The link's own task sees the end of the connection.
                Err(_) => return Ok(()),
            };
            for chunk in &mut chunks[..count] {
                let known = self.assembler.lane();
                let pushed = self.assembler.push(std::mem::take(chunk), &mut frames);
                if let (None, Some(lane)) = (known, self.assembler.lane()) {
                    self.lanes.claim(lane)?;
                }
                self.deliver(&mut frames);
                pushed?;
            }
            if count == CHUNKS {
                // There is more, and the liveness lane's reader is a neighbour of this one.
                tokio::task::yield_now().await;
            }
        }
    }

    fn deliver(&self, frames: &mut Vec<Bytes>) {
        let Some(lane) = self.assembler.lane() else {
            return;
        };
        for frame in frames.drain(..) {
            if !self.state.is_up() {
                return;
            }
            let bytes = (frame.len() + HEADER_BYTES) as u64;
            self.shared.counters.received(bytes);
            self.shared.receiver.frame(self.peer.node, lane, frame);
        }
    }

    /// Leaves the lane unread while the receiver cannot take its frames.
    async fn pause(&self) {
        match self.assembler.lane() {
            None | Some(Lane::Liveness) => {}
            Some(lane) => {
                while !self.shared.receiver.ready(lane) {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

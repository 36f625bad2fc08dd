//! The writer of one lane to one peer.
//!
//! Owns the lane's stream: it drains the lane's whole queue into few large writes. It must never
//! write a frame of its own making, nor copy a large one.

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, WriteError};

use super::peer::Peer;
use super::shared::Shared;
use crate::Lane;
use crate::frame::{HEADER_BYTES, Header};

/// Bytes taken from the queue for one write. Large enough to amortise the locks, small enough that
/// the queue's bound still means something.
const BATCH_BYTES: usize = 1 << 20;

/// Frames up to this size are copied behind their header: a copy is cheaper than a segment of its
/// own in the connection's send buffer.
const COPY_BYTES: usize = 4 << 10;

/// Writes the lane's frames until its link ends or its queue does. After the latter it returns once
/// the peer has acknowledged everything.
pub(super) async fn write_lane(
    shared: &Shared,
    peer: &Peer,
    link: u64,
    connection: &Connection,
    lane: Lane,
) -> Result<(), WriteError> {
    let mut stream = connection.open_uni().await?;
    // Only fails for a stream that was closed, and this one was just opened.
    let _ = stream.set_priority(priority(lane));
    let Some(queue) = peer.queue(lane) else {
        return Ok(());
    };
    let mut batch = Vec::new();
    let mut chunks = Vec::new();
    let mut scratch = BytesMut::new();
    while let Some(bytes) = queue.next(link, BATCH_BYTES, &mut batch).await {
        let frames = batch.len() as u64;
        let header = |length| Header {
            length,
            lane,
            from: shared.node(),
            to: peer.node,
        };
        lay_out(header, &mut batch, &mut scratch, &mut chunks);
        stream.write_all_chunks(&mut chunks).await?;
        chunks.clear();
        queue.done(link, bytes);
        let bytes = bytes as u64 + frames * HEADER_BYTES as u64;
        shared.counters.sent(frames, bytes);
        if bytes as usize >= BATCH_BYTES {
            // There may be more, and other lanes wait for the same thread.
            tokio::task::yield_now().await;
        }
    }
    if stream.finish().is_ok() {
        let _ = stream.stopped().await;
    }
    Ok(())
}

/// Which stream leaves first. Frames of a lower priority leave only when no higher one has any.
fn priority(lane: Lane) -> i32 {
    match lane {
        Lane::Liveness => 2,
        Lane::Append(_) => 1,
        Lane::Snapshot => 0,
    }
}

/// Puts headers and small frames into `scratch`, and cuts it wherever a large frame stands by
/// itself.
fn lay_out(
    header: impl Fn(u32) -> Header,
    batch: &mut Vec<Bytes>,
    scratch: &mut BytesMut,
    chunks: &mut Vec<Bytes>,
) {
    for frame in batch.drain(..) {
        header(frame.len() as u32).encode(scratch);
        if frame.len() <= COPY_BYTES {
            scratch.put_slice(&frame);
        } else {
            chunks.push(scratch.split().freeze());
            chunks.push(frame);
        }
    }
    if !scratch.is_empty() {
        chunks.push(scratch.split().freeze());
    }
}

#[cfg(test)]
mod tests {
    use polyraft_raft::NodeId;

    use super::*;
    use crate::frame::Assembler;

    #[test]
    fn small_frames_share_a_chunk_and_large_ones_are_not_copied() {
        let sizes = [10, COPY_BYTES, COPY_BYTES + 1, 0, 20];
        let frames: Vec<Bytes> = sizes.iter().map(|size| vec![1; *size].into()).collect();
        let header = |length| Header {
            length,
            lane: Lane::Snapshot,
            from: NodeId(1),
            to: NodeId(2),
        };
        let (mut scratch, mut chunks) = (BytesMut::new(), Vec::new());
        lay_out(header, &mut frames.clone(), &mut scratch, &mut chunks);
        assert_eq!(chunks.len(), 3);
        assert_eq!(chunks[1].as_ptr(), frames[2].as_ptr());

        let mut assembler = Assembler::new(NodeId(1), NodeId(2), 1 << 20);
        let mut found = Vec::new();
        for chunk in chunks {
            assembler.push(chunk, &mut found).unwrap();
        }
        assert_eq!(found, frames);
    }
}

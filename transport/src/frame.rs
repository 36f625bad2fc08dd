//! The frame header, and frames out of a stream of chunks.
//!
//! Owns the header's bytes and the assembly of frames. It must never allocate for a length that it
//! has not checked, nor copy a frame that lies in one chunk.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_raft::NodeId;

use crate::Lane;
use crate::hello::FORMAT_VERSION;

/// Bytes in front of every frame.
pub(crate) const HEADER_BYTES: usize = 24;

/// Version byte of the header.
const VERSION: u8 = FORMAT_VERSION as u8;

/// What stands in front of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the frame, without the header.
    pub length: u32,
    pub lane: Lane,
    pub from: NodeId,
    pub to: NodeId,
}

impl Header {
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u32_le(self.length);
        out.put_u8(VERSION);
        out.put_u8(self.lane.to_wire());
        out.put_u16_le(0);
        out.put_u64_le(self.from.0);
        out.put_u64_le(self.to.0);
    }

    fn decode(mut bytes: &[u8]) -> Result<Header, FrameError> {
        let length = bytes.get_u32_le();
        let version = bytes.get_u8();
        let lane = bytes.get_u8();
        let reserved = bytes.get_u16_le();
        let from = NodeId(bytes.get_u64_le());
        let to = NodeId(bytes.get_u64_le());
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let lane = Lane::from_wire(lane).ok_or(FrameError::UnknownLane(lane))?;
        Ok(Header {
            length,
            lane,
            from,
            to,
        })
    }
}

/// Why a stream of frames cannot be read on. The connection is closed with this text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {bytes} bytes on the {lane:?} lane is over the limit of {limit}")]
    TooLarge { bytes: u32, limit: u32, lane: Lane },
    #[error("a frame header of version {0}, but this node speaks {VERSION}")]
    Version(u8),
    #[error("a frame header with reserved bits set: {0:#06x}")]
    Reserved(u16),
    #[error("a frame for lane number {0}, which does not exist")]
    UnknownLane(u8),
    #[error("a frame for the {found:?} lane on the stream of the {expected:?} lane")]
    LaneChanged { expected: Lane, found: Lane },
    #[error("a frame from node {}, but the certificate is node {}'s", found.0, expected.0)]
    WrongSender { expected: NodeId, found: NodeId },
    #[error("a frame to node {}, but this is node {}", found.0, expected.0)]
    WrongDestination { expected: NodeId, found: NodeId },
    #[error("a second stream for the {0:?} lane")]
    SecondStream(Lane),
    #[error("a stream that ends inside a frame")]
    Truncated,
}

/// Turns the chunks of one stream into frames.
pub(crate) struct Assembler {
    from: NodeId,
    to: NodeId,
    limit: u32,
    /// Known from the first header on.
    lane: Option<Lane>,
    /// A header whose bytes did not all arrive in one chunk.
    header: [u8; HEADER_BYTES],
    header_len: usize,
    /// A frame of which only a part has arrived, and its full length.
    partial: Option<(BytesMut, usize)>,
}

impl Assembler {
    /// For frames from `from` to `to` of at most `limit` bytes.
    pub fn new(from: NodeId, to: NodeId, limit: u32) -> Assembler {
        Assembler {
            from,
            to,
            limit,
            lane: None,
            header: [0; HEADER_BYTES],
            header_len: 0,
            partial: None,
        }
    }

    /// The lane that the stream carries, once its first header has arrived.
    pub fn lane(&self) -> Option<Lane> {
        self.lane
    }

    /// Whether the stream may end here.
    pub fn is_between_frames(&self) -> bool {
        self.header_len == 0 && self.partial.is_none()
    }

    /// Takes the next bytes of the stream and appends the frames that are complete now.
    ///
    /// # Errors
    /// When the bytes break the format. Frames before the bad one have been appended.
    pub fn push(&mut self, mut chunk: Bytes, frames: &mut Vec<Bytes>) -> Result<(), FrameError> {
        loop {
            if let Some((body, length)) = &mut self.partial {
                let take = (*length - body.len()).min(chunk.len());
                body.put_slice(&chunk[..take]);
                chunk.advance(take);
                if body.len() < *length {
                    return Ok(());
                }
                let (body, _) = self.partial.take().expect("it was just filled");
                frames.push(body.freeze());
            }
            if chunk.is_empty() {
                return Ok(());
            }
            let Some(header) = self.take_header(&mut chunk)? else {
                return Ok(());
            };
            let length = header.length as usize;
            if length <= chunk.len() {
                frames.push(chunk.split_to(length));
            } else {
                self.partial = Some((BytesMut::with_capacity(length), length));
            }
        }
    }

    /// The next header, checked; `None` while a part of it is missing.
    fn take_header(&mut self, chunk: &mut Bytes) -> Result<Option<Header>, FrameError> {
        let header = if self.header_len == 0 && chunk.len() >= HEADER_BYTES {
            let header = Header::decode(&chunk[..HEADER_BYTES])?;
            chunk.advance(HEADER_BYTES);
            header
        } else {
            let take = (HEADER_BYTES - self.header_len).min(chunk.len());
            self.header[self.header_len..self.header_len + take].copy_from_slice(&chunk[..take]);
            self.header_len += take;
            chunk.advance(take);
            if self.header_len < HEADER_BYTES {
                return Ok(None);
            }
            self.header_len = 0;
            Header::decode(&self.header)?
        };
        self.check(&header)?;
        self.lane = Some(header.lane);
        Ok(Some(header))
    }

    fn check(&self, header: &Header) -> Result<(), FrameError> {
        if header.from != self.from {
            return Err(FrameError::WrongSender {
                expected: self.from,
                found: header.from,
            });
        }
        if header.to != self.to {
            return Err(FrameError::WrongDestination {
                expected: self.to,
                found: header.to,
            });
        }
        match self.lane {
            Some(expected) if expected != header.lane => Err(FrameError::LaneChanged {
                expected,
                found: header.lane,
            }),
            _ if header.length > self.limit => Err(FrameError::TooLarge {
                bytes: header.length,
                limit: self.limit,
                lane: header.lane,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FROM: NodeId = NodeId(1);
    const TO: NodeId = NodeId(2);

    fn header(length: u32) -> Header {
        Header {
            length,
            lane: Lane::Append(3),
            from: FROM,
            to: TO,
        }
    }

    fn encode(frames: &[Vec<u8>]) -> Bytes {
        let mut out = BytesMut::new();
        for frame in frames {
            header(frame.len() as u32).encode(&mut out);
            out.put_slice(frame);
        }
        out.freeze()
    }

    fn refuse(header: Header, change: impl Fn(&mut [u8])) -> FrameError {
        let mut bytes = BytesMut::new();
        header.encode(&mut bytes);
        change(&mut bytes);
        let mut assembler = Assembler::new(FROM, TO, 100);
        assembler.push(bytes.freeze(), &mut Vec::new()).unwrap_err()
    }

    #[test]
    fn frame_inside_one_chunk_is_not_copied() {
        let wire = encode(&[vec![7; 40], vec![8; 50]]);
        let mut frames = Vec::new();
        let mut assembler = Assembler::new(FROM, TO, 100);
        assembler.push(wire.clone(), &mut frames).unwrap();
        assert_eq!(frames, [vec![7; 40], vec![8; 50]]);
        assert_eq!(frames[0].as_ptr(), wire[HEADER_BYTES..].as_ptr());
        assert_eq!(assembler.lane(), Some(Lane::Append(3)));
    }

    #[test]
    fn length_over_the_limit_is_refused_before_the_body_arrives() {
        let error = refuse(header(101), |_| {});
        let text = "a frame of 101 bytes on the Append(3) lane is over the limit of 100";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn sender_and_destination_must_match_the_link() {
        let error = refuse(
            Header {
                from: NodeId(9),
                ..header(1)
            },
            |_| {},
        );
        assert!(matches!(
            error,
            FrameError::WrongSender {
                found: NodeId(9),
                ..
            }
        ));
        let error = refuse(
            Header {
                to: NodeId(9),
                ..header(1)
            },
            |_| {},
        );
        assert!(matches!(
            error,
            FrameError::WrongDestination {
                found: NodeId(9),
                ..
            }
        ));
    }

    #[test]
    fn unknown_header_bits_are_refused() {
        assert_eq!(refuse(header(1), |b| b[4] = 9), FrameError::Version(9));
        assert_eq!(
            refuse(header(1), |b| b[5] = 66),
            FrameError::UnknownLane(66)
        );
        assert_eq!(refuse(header(1), |b| b[6] = 1), FrameError::Reserved(1));
    }

    #[test]
    fn lane_cannot_change_within_a_stream() {
        let mut bytes = BytesMut::new();
        header(0).encode(&mut bytes);
        Header {
            lane: Lane::Snapshot,
            ..header(0)
        }
        .encode(&mut bytes);
        let mut frames = Vec::new();
        let mut assembler = Assembler::new(FROM, TO, 100);
        let error = assembler.push(bytes.freeze(), &mut frames).unwrap_err();
        assert!(matches!(
            error,
            FrameError::LaneChanged {
                found: Lane::Snapshot,
                ..
            }
        ));
        assert_eq!(frames, [Bytes::new()]);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
            cuts in prop::collection::vec(1_usize..97, 1..20),
        ) {
            let mut wire = encode(&frames);
            let mut assembler = Assembler::new(FROM, TO, 200);
            let mut found = Vec::new();
            for cut in cuts.iter().cycle() {
                if wire.is_empty() {
                    break;
                }
                let chunk = wire.split_to((*cut).min(wire.len()));
                assembler.push(chunk, &mut found).unwrap();
            }
            prop_assert!(assembler.is_between_frames());
            prop_assert_eq!(found, frames);
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..8),
        ) {
            let mut assembler = Assembler::new(FROM, TO, 64);
            let mut frames = Vec::new();
            for chunk in chunks {
                if assembler.push(chunk.into(), &mut frames).is_err() {
                    break;
                }
            }
            prop_assert!(frames.iter().all(|frame| frame.len() <= 64));
        }
    }
}

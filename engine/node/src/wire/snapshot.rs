//! The records of a snapshot's way between two nodes: the offer, the wish for a part, the part, the refusal.
//! It must never let a length, a count or a place through that no honest sender writes, nor name a path.

use bytes::{BufMut, Bytes, BytesMut};
use polyraft_raft::{GroupId, Index, LogPosition, Term};
use polyraft_storage::{SnapshotFile, SnapshotMeta};

use super::members::{configuration, configuration_bytes, put_configuration};
use super::{Body, HEAD_BYTES, Kind, Record, Subject, WireError, put_position, record};

/// The most bytes of a snapshot in one record: the largest `snapshot.chunk_bytes`.
const MAX_CHUNK_BYTES: usize = 16 << 20;

/// Bytes of the wish for a part of a snapshot.
pub(crate) const FETCH_BYTES: usize = HEAD_BYTES + 32;
/// Bytes of a part beside those of the snapshot.
pub(crate) const CHUNK_BYTES: usize = HEAD_BYTES + 32;
/// Bytes of a refusal.
pub(crate) const REFUSED_BYTES: usize = HEAD_BYTES + 21;

/// Names a snapshot file of a group: two of the same place need not have the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotId {
    pub(crate) last: LogPosition,
    pub(crate) checksum: u32,
}

impl SnapshotId {
    pub(crate) fn of(file: &SnapshotFile) -> Self {
        SnapshotId {
            last: file.meta.last,
            checksum: file.checksum,
        }
    }
}

/// Bytes of a snapshot's file, from an offset on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
    /// CRC-32C over the offset and the bytes, made when they were read.
    pub(crate) checksum: u32,
}

impl Chunk {
    pub(crate) fn new(offset: u64, bytes: Bytes) -> Self {
        let checksum = checksum(offset, &bytes);
        Chunk {
            offset,
            bytes,
            checksum,
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.checksum == checksum(self.offset, &self.bytes)
    }
}

fn checksum(offset: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&offset.to_le_bytes()), bytes)
}

/// Why a snapshot is not taken now. It is offered again in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// As many come already as may.
    Busy,
    /// The disk has no room for it, or failed.
    Disk,
    /// All of it came, and it is not what its checksum says.
    Damaged,
}

impl Refusal {
    const ALL: [Refusal; 3] = [Refusal::Busy, Refusal::Disk, Refusal::Damaged];
}

/// Bytes of an offer.
pub(crate) fn offer_bytes(file: &SnapshotFile) -> usize {
    HEAD_BYTES + 44 + configuration_bytes(&file.meta.configuration)
}

/// Writes the offer of a snapshot.
pub(crate) fn put_snapshot_offer(out: &mut BytesMut, term: Term, file: &SnapshotFile) {
    let subject = (file.meta.group, file.meta.life().unwrap_or_default());
    record(out, Kind::SnapshotOffer, subject, |out| {
        out.put_u64_le(term.0);
        out.put_u64_le(file.meta.incarnation);
        put_id(out, SnapshotId::of(file));
        out.put_u64_le(file.bytes);
        put_configuration(out, &file.meta.configuration);
    });
}

/// Writes the wish for a part of a snapshot.
pub(crate) fn put_snapshot_fetch(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    id: SnapshotId,
    offset: u64,
    bytes: u32,
) {
    record(out, Kind::SnapshotFetch, group, |out| {
        put_id(out, id);
        out.put_u64_le(offset);
        out.put_u32_le(bytes);
    });
}

/// Writes a part of a snapshot.
pub(crate) fn put_snapshot_chunk(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    id: SnapshotId,
    chunk: &Chunk,
) {
    record(out, Kind::SnapshotChunk, group, |out| {
        put_id(out, id);
        out.put_u64_le(chunk.offset);
        out.put_u32_le(chunk.checksum);
        out.put_slice(&chunk.bytes);
    });
}

/// Writes that a snapshot is not taken now.
pub(crate) fn put_snapshot_refused(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    id: SnapshotId,
    why: Refusal,
) {
    record(out, Kind::SnapshotRefused, group, |out| {
        put_id(out, id);
        out.put_u8(why as u8);
    });
}

fn put_id(out: &mut BytesMut, id: SnapshotId) {
    put_position(out, id.last);
    out.put_u32_le(id.checksum);
}

/// Reads the body of one of the four records.
pub(super) fn decode<'a>(
    kind: Kind,
    group: GroupId,
    mut body: Body<'a>,
    frame: &Bytes,
) -> Result<Record<'a>, WireError> {
    if kind == Kind::SnapshotOffer {
        return offer(group, body);
    }
    let id = id(&mut body)?;
    match kind {
        Kind::SnapshotFetch => {
            let (offset, bytes) = (body.u64()?, body.u32()?);
            if bytes == 0 || !body.0.is_empty() {
                return Err(WireError::Value("snapshot fetch"));
            }
            Ok(Record::SnapshotFetch {
                group,
                id,
                offset,
                bytes,
            })
        }
        Kind::SnapshotRefused => {
            let why = Refusal::ALL.get(usize::from(body.u8()?));
            match (why, body.0) {
                (Some(why), []) => Ok(Record::SnapshotRefused {
                    group,
                    id,
                    why: *why,
                }),
                _ => Err(WireError::Value("snapshot refusal")),
            }
        }
        _ => {
            let (offset, checksum) = (body.u64()?, body.u32()?);
            let end = offset.checked_add(body.0.len() as u64);
            if body.0.is_empty() || body.0.len() > MAX_CHUNK_BYTES || end.is_none() {
                return Err(WireError::Value("snapshot chunk"));
            }
            let chunk = Chunk {
                offset,
                bytes: frame.slice_ref(body.0),
                checksum,
            };
            Ok(Record::SnapshotChunk { group, id, chunk })
        }
    }
}

fn offer<'a>(group: GroupId, mut body: Body<'_>) -> Result<Record<'a>, WireError> {
    let (term, incarnation, id) = (body.term()?, body.u64()?, id(&mut body)?);
    let bytes = body.u64()?;
    let configuration = configuration(&mut body)?;
    if id.last.term > term || bytes == 0 || bytes > u64::MAX / 2 {
        return Err(WireError::Value("snapshot offer"));
    }
    let meta = SnapshotMeta {
        group,
        incarnation,
        last: id.last,
        configuration,
    };
    let file = SnapshotFile {
        meta,
        bytes,
        checksum: id.checksum,
    };
    Ok(Record::SnapshotOffer { term, file })
}

fn id(body: &mut Body<'_>) -> Result<SnapshotId, WireError> {
    let last = body.position()?;
    if last.index == Index::ZERO || last.index.0 > u64::MAX / 2 {
        return Err(WireError::Value("snapshot"));
    }
    let checksum = body.u32()?;
    Ok(SnapshotId { last, checksum })
}

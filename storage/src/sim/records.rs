//! Where the records of a segment are, for faults that are meant to hit one of them.
//! Must never name bytes outside of a record's payload: damage to a header takes more than one group down.

use std::ops::Range;

use polyraft_raft::GroupId;

use crate::block::BLOCK_HEADER_BYTES;
use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, CONTROL_HEADER_BYTES, Record, Records, SEGMENT_HEADER_BYTES,
};

/// Where the payload of a record is in a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload {
    /// The number of its batch.
    pub lsn: u64,
    /// The group it belongs to.
    pub group: GroupId,
    /// Its bytes.
    pub place: Range<u64>,
}

/// The payloads of the records in a segment's bytes, in the order in which they were written.
/// Those of batches that no later one in the segment says are durable are left out: damage there is taken for a torn tail.
#[must_use]
pub fn payloads(segment: &[u8]) -> Vec<Payload> {
    let mut found = Vec::new();
    let (mut at, mut before, mut durable) = (SEGMENT_HEADER_BYTES as usize, 0, 0);
    while let Some(header) = segment.get(at..).and_then(BatchHeader::parse)
        && header.lsn > before
    {
        let start = at + BATCH_HEADER_BYTES;
        let Some(body) = segment.get(start..start + header.body_bytes as usize) else {
            break;
        };
        for located in Records::new(body, true).flatten() {
            let head = match located.record {
                Record::Block { .. } => BLOCK_HEADER_BYTES,
                Record::Relocated { .. } => CONTROL_HEADER_BYTES + BLOCK_HEADER_BYTES,
                _ => CONTROL_HEADER_BYTES,
            };
            let from = start + located.offset as usize + head;
            let to = start + (located.offset + located.bytes) as usize;
            if from < to {
                found.push(Payload {
                    lsn: header.lsn,
                    group: located.group,
                    place: from as u64..to as u64,
                });
            }
        }
        (before, durable) = (header.lsn, header.last_durable);
        at += header.padded() as usize;
    }
    found.retain(|payload| payload.lsn <= durable);
    found
}

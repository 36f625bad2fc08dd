//! Records about reads: the question what they must wait for, and the answer.
//! Neither carries a query or a state.

use bytes::{BufMut, BytesMut};
use polyraft_raft::Index;

use super::{HEAD_BYTES, Kind, Subject, put_error, record};
use crate::error::Error;

/// Bytes of a question for what reads must wait for.
pub(crate) const READ_ASK_BYTES: usize = HEAD_BYTES + 9;

/// Writes the question what reads of a group must wait for.
pub(crate) fn put_read_ask(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    request: u64,
    by_lease: bool,
) {
    record(out, Kind::ReadAsk, group, |out| {
        out.put_u64_le(request);
        out.put_u8(by_lease.into());
    });
}

/// Bytes of the answer to it, at most.
pub(crate) const READ_REPLY_BYTES: usize = HEAD_BYTES + 17;

/// Writes the answer to it.
pub(crate) fn put_read_reply(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    request: u64,
    outcome: &Result<Index, Error>,
) {
    record(out, Kind::ReadReply, group, |out| {
        out.put_u64_le(request);
        match outcome {
            Ok(index) => {
                out.put_u8(0);
                out.put_u64_le(index.0);
            }
            Err(error) => put_error(out, error),
        }
    });
}

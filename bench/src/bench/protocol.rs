//! What a generator and a node in a process of its own say to each other: control as lines of JSON over the node's
//! standard input and output, operations as small binary records over a socket. Both ends are this very binary.

use crate::load::{Answer, Answered, Elsewhere};
use crate::totals::Totals;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft::ProposalTrace;
use serde::{Deserialize, Serialize};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::time::Duration;

/// What the parent asks of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Wait until it hears every other node; answer the lowest round trip seen.
    Link,
    /// Create groups `0..groups` on all nodes.
    Create { groups: u64 },
    /// Wait until it knows a leader of each of the groups `0..groups`.
    Lead { groups: u64 },
    /// Counters and costs, and who leads the groups `0..groups`.
    Look { groups: u64 },
    /// Records of traced proposals.
    Traces,
    /// Syncs of the log end no sooner than so many microseconds from now.
    Stall { micros: u64 },
    /// Shut down and end.
    Stop,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// It is open, or has done what it was asked for.
    Done,
    /// The lowest round trip in microseconds; none with one node.
    Linked { round_trip: Option<u64> },
    /// What it has done so far.
    Seen {
        totals: Totals,
        cpu_micros: u64,
        resident: u64,
        /// By group: the place of its leader's node, or [`UNKNOWN`].
        leaders: Vec<u8>,
    },
    /// Nanoseconds of each record, in the order of the fields of [`ProposalTrace`].
    Traces(Vec<[u64; 5]>),
    /// It has failed.
    Failed(String),
}

/// No leader is known.
pub const UNKNOWN: u8 = u8::MAX;

pub fn trace_to_nanos(trace: &ProposalTrace) -> [u64; 5] {
    [
        trace.appended,
        trace.durable,
        trace.replicated,
        trace.committed,
        trace.applied,
    ]
    .map(crate::load::nanos)
}

pub fn trace_of_nanos(nanos: [u64; 5]) -> ProposalTrace {
    let [appended, durable, replicated, committed, applied] = nanos.map(Duration::from_nanos);
    ProposalTrace {
        appended,
        durable,
        replicated,
        committed,
        applied,
    }
}

/// The address of a node's socket: a name without a file, so that nothing is left behind.
pub fn address(name: &str) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

/// An operation on its way to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub tag: u64,
    pub group: u64,
    /// None for a read.
    pub payload: Option<Bytes>,
}

/// Length of what follows it, kind, tag, group.
const HEAD_BYTES: usize = 4 + 1 + 8 + 8;

/// Adds a record of an operation.
pub fn put_operation(out: &mut BytesMut, tag: u64, group: u64, payload: Option<&[u8]>) {
    let bytes = payload.map_or(0, <[u8]>::len);
    out.reserve(HEAD_BYTES + bytes);
    out.put_u32_le((HEAD_BYTES - 4 + bytes) as u32);
    out.put_u8(u8::from(payload.is_none()));
    out.put_u64_le(tag);
    out.put_u64_le(group);
    out.put_slice(payload.unwrap_or_default());
}

/// Takes the first whole record of an operation off `from`.
pub fn take_operation(from: &mut BytesMut) -> Option<Operation> {
    let bytes = u32::from_le_bytes(*from.first_chunk()?) as usize;
    if from.len() < 4 + bytes {
        from.reserve(4 + bytes - from.len());
        return None;
    }
    let mut record = from.split_to(4 + bytes);
    record.advance(4);
    let is_read = record.get_u8() == 1;
    let (tag, group) = (record.get_u64_le(), record.get_u64_le());
    Some(Operation {
        tag,
        group,
        payload: (!is_read).then(|| record.freeze()),
    })
}

/// Tag, kind, node.
const ANSWER_BYTES: usize = 8 + 1 + 1;

/// Adds a record of an answer. The text of a fault stays with the node, which has told it on its standard error.
pub fn put_answer(out: &mut BytesMut, answered: &Answered) {
    let (kind, node) = match &answered.answer {
        Answer::Done => (0, 0),
        Answer::Refused(Elsewhere::Here) => (1, 0),
        Answer::Refused(Elsewhere::At(node)) => (2, *node as u8),
        Answer::Refused(Elsewhere::Anywhere) => (3, 0),
        Answer::Open => (4, 0),
        Answer::Fault(_) => (5, 0),
    };
    out.put_u64_le(answered.tag);
    out.put_u8(kind);
    out.put_u8(node);
}

/// Takes the first whole record of an answer off `from`.
pub fn take_answer(from: &mut BytesMut) -> Option<Answered> {
    if from.len() < ANSWER_BYTES {
        return None;
    }
    let tag = from.get_u64_le();
    let answer = match (from.get_u8(), from.get_u8()) {
        (0, _) => Answer::Done,
        (1, _) => Answer::Refused(Elsewhere::Here),
        (2, node) => Answer::Refused(Elsewhere::At(usize::from(node))),
        (3, _) => Answer::Refused(Elsewhere::Anywhere),
        (4, _) => Answer::Open,
        _ => Answer::Fault("the node has told what on the standard error".to_owned()),
    };
    Some(Answered { tag, answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_survive_any_cut_of_the_stream() {
        let mut stream = BytesMut::new();
        put_operation(&mut stream, 7, 3, Some(b"payload"));
        put_operation(&mut stream, 8, 4, None);
        put_operation(&mut stream, 9, 5, Some(b""));
        let all = stream.freeze();
        let operation = |tag, group, payload: Option<&'static str>| Operation {
            tag,
            group,
            payload: payload.map(Bytes::from),
        };
        let expected = [
            operation(7, 3, Some("payload")),
            operation(8, 4, None),
            operation(9, 5, Some("")),
        ];
        for cut in 0..all.len() {
            let mut buffer = BytesMut::from(&all[..cut]);
            let mut read = Vec::new();
            read.extend(std::iter::from_fn(|| take_operation(&mut buffer)));
            buffer.extend_from_slice(&all[cut..]);
            read.extend(std::iter::from_fn(|| take_operation(&mut buffer)));
            assert_eq!(read, expected, "cut at {cut}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn answers_keep_their_meaning() {
        let answers = [
            Answer::Done,
            Answer::Open,
            Answer::Refused(Elsewhere::Here),
            Answer::Refused(Elsewhere::At(2)),
            Answer::Refused(Elsewhere::Anywhere),
        ];
        let mut stream = BytesMut::new();
        for (tag, answer) in (0..).zip(answers.clone()) {
            put_answer(&mut stream, &Answered { tag, answer });
        }
        let fault = Answered {
            tag: 99,
            answer: Answer::Fault("rot".into()),
        };
        put_answer(&mut stream, &fault);
        for (tag, answer) in (0..).zip(answers) {
            assert_eq!(take_answer(&mut stream), Some(Answered { tag, answer }));
        }
        let last = take_answer(&mut stream).unwrap();
        assert!(last.tag == 99 && matches!(last.answer, Answer::Fault(_)));
        assert_eq!(take_answer(&mut stream), None);
    }
}

//! Errors on the wire, as codes.
//! One must never come out as another that says something else about whether a proposal may have been taken.

use bytes::{BufMut, BytesMut};
use polyraft_raft::{GroupId, NodeId};

use super::{Body, WireError};
use crate::error::Error;
use crate::sessions::SessionId;

/// Errors cross the wire as a code that keeps what the caller must know: retry, or outcome open, or neither.
pub(super) fn put_error(out: &mut BytesMut, error: &Error) {
    match error {
        Error::NotLeader { hint } => {
            out.put_u8(1);
            out.put_u64_le(hint.map_or(0, |node| node.0));
        }
        Error::Busy { limit, .. } => {
            out.put_u8(2);
            out.put_u64_le(*limit);
        }
        Error::Unknown { .. } | Error::Closed => out.put_u8(3),
        Error::NoSuchGroup { group } => {
            out.put_u8(4);
            out.put_u64_le(group.0);
        }
        Error::GroupExists { group, members } => {
            out.put_u8(5);
            out.put_u64_le(group.0);
            members.iter().for_each(|member| out.put_u64_le(member.0));
        }
        Error::Unconfirmed => out.put_u8(7),
        Error::SessionExpired { session } => {
            out.put_u8(16);
            out.put_u64_le(session.0);
        }
        Error::ReplyNotKept => out.put_u8(17),
        Error::Merging { into } => {
            out.put_u8(19);
            out.put_u64_le(into.0);
        }
        Error::ProposalNumber { sequence, lowest } => {
            out.put_u8(18);
            out.put_u64_le(*sequence);
            out.put_u64_le(*lowest);
        }
        Error::TooLarge { bytes, limit } => {
            out.put_u8(20);
            out.put_u64_le(*bytes as u64);
            out.put_u64_le(*limit as u64);
        }
        Error::CreationUnderWay { group } => {
            out.put_u8(21);
            out.put_u64_le(group.0);
        }
        // Not its whole text, or every node on the way would add the same words to it.
        Error::Fault { reason } => {
            out.put_u8(6);
            out.put_slice(reason.as_bytes());
        }
        // The node that was asked says these, and no node asks another one for them.
        Error::BadMembers { .. }
        | Error::CreateTimeout { .. }
        | Error::DestroyTimeout { .. }
        | Error::Ending { .. }
        | Error::Needed { .. }
        | Error::Transfer { .. }
        | Error::Peer { .. }
        | Error::Members { .. }
        | Error::ChangeUnderWay { .. }
        | Error::Split { .. }
        | Error::Merge { .. }
        | Error::Witness { .. }
        | Error::Query(_)
        | Error::Restoring { .. }
        | Error::Snapshot { .. } => {
            out.put_u8(6);
            out.put_slice(error.to_string().as_bytes());
        }
    }
}

impl Body<'_> {
    /// Reads what [`put_error`] wrote.
    pub(super) fn error(mut self) -> Result<Error, WireError> {
        Ok(match self.u8()? {
            1 => Error::NotLeader {
                hint: Some(self.u64()?).filter(|id| *id != 0).map(NodeId),
            },
            2 => Error::Busy {
                what: "the leader's queue",
                limit: self.u64()?,
            },
            3 => Error::Unknown {
                why: "the leader lost track of the forwarded proposal",
            },
            4 => Error::NoSuchGroup {
                group: GroupId(self.u64()?),
            },
            5 => {
                let group = GroupId(self.u64()?);
                let mut members = Vec::with_capacity(self.0.len() / 8);
                while !self.0.is_empty() {
                    members.push(NodeId(self.u64()?));
                }
                Error::GroupExists { group, members }
            }
            6 => Error::Fault {
                reason: self.text(),
            },
            7 => Error::Unconfirmed,
            16 => Error::SessionExpired {
                session: SessionId(self.u64()?),
            },
            17 => Error::ReplyNotKept,
            19 => Error::Merging {
                into: GroupId(self.u64()?),
            },
            18 => Error::ProposalNumber {
                sequence: self.u64()?,
                lowest: self.u64()?,
            },
            20 => Error::TooLarge {
                bytes: self.size("error")?,
                limit: self.size("error")?,
            },
            21 => Error::CreationUnderWay {
                group: GroupId(self.u64()?),
            },
            _ => return Err(WireError::Value("error")),
        })
    }
}

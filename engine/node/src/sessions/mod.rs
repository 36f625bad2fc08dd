//! Exactly once: client sessions, whose proposals are numbered, so that one that comes again is answered and not applied
//! again (Raft thesis 6.3). Nothing here may depend on anything but the log: every replica has to decide alike.
//!
//! A session is opened by an entry, and the entry's place is its name. Each proposal of a session carries a header in front of
//! the user's payload; the blocks of such entries have a kind of their own, so that plain proposals cost nothing more.

mod client;
mod dedup;
mod merges;
#[cfg(test)]
mod model;
mod table;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_raft::{GroupId, Index, Life};

use crate::completion::Committed;

pub use self::client::Session;
pub(crate) use self::client::open;
pub(crate) use self::dedup::{Deduplication, Payload, Position};
pub(crate) use self::merges::{Decision, Whole};
pub(crate) use self::table::{
    SECTION_HEAD_BYTES, Table, read_section, section, section_bytes, with_section,
};

/// How many numbers of a session may be in use at the same time: from the lowest whose reply is waited for. A part of the
/// format: replicas that differ in it would drift apart.
pub const SESSION_WINDOW: u64 = 256;

/// The most sessions that a group can be told to keep. A part of the format.
pub(crate) const MAX_SESSIONS: u32 = 1 << 16;

/// Bytes in front of the payload of a session's entry.
pub(crate) const HEADER_BYTES: usize = 24;

/// Names a session among all that its group ever had, and among those of earlier groups with the same id, and of groups that it
/// was split off.
///
/// It follows from the entry that opened it: the index, and in the upper 16 bits which life of which group it was. One that came
/// with a group which was merged into this one has another name than it had there: [`SessionId::merged_from`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// Bits of an index in a session's id.
const INDEX_BITS: u32 = 48;

/// In a session's id: it came with a group that was merged into this one. No index is that large.
const MERGED: u64 = 1 << 47;

impl SessionId {
    /// The session that the entry at `index` opens.
    pub(crate) fn of(opener: Opener, index: Index) -> Self {
        SessionId(u64::from(opener.0) << INDEX_BITS | index.0 & ((1 << INDEX_BITS) - 1))
    }

    /// The index of the entry that opened it; nothing if that was in a group that was merged.
    fn index(self) -> Option<Index> {
        let is_own = self.0 & MERGED == 0;
        is_own.then_some(Index(self.0 & ((1 << INDEX_BITS) - 1)))
    }

    /// Its name in the group that `source`, where it has this one, was merged into.
    ///
    /// Names of merged sessions have 63 bits that look random. Should two be the same all the same, or is a source made again with
    /// the sessions that it had and merged again, then neither takes new numbers.
    #[must_use]
    pub fn merged_from(self, source: GroupId) -> Self {
        let mix = |bits: u64| {
            let bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            bits ^ bits >> 31
        };
        let named = mix(self.0 ^ mix(source.0.wrapping_add(0x9E37_79B9_7F4A_7C15)));
        SessionId(named | MERGED)
    }

    /// The session that was opened, from the answer to [`GroupHandle::open_session_with`](crate::GroupHandle::open_session_with).
    /// Nothing if it is the answer to something else.
    pub fn opened(answer: &Committed) -> Option<Self> {
        let id = SessionId(u64::from_le_bytes(answer.reply[..].try_into().ok()?));
        (id.index() == Some(answer.index)).then_some(id)
    }
}

/// Which life of which group opens a session, in 16 bits: two lives of a group differ always, two groups nearly so. A group and
/// what was split off it go on with the same indexes, and a client of the one may come to the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Opener(u16);

impl Opener {
    pub(crate) fn new(group: GroupId, life: Life) -> Self {
        // The finalizer of SplitMix64: neighbouring ids share no bits.
        let mut bits = group.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Opener((bits >> 48) as u16 ^ life.get() as u16)
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Which proposal of a session one is. The same number means the same proposal, however often it is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProposalNumber {
    /// The session.
    pub session: SessionId,
    /// The proposal's number in it, from 1 on. Each is for one payload only.
    pub sequence: u64,
    /// The lowest number whose reply the client still waits for, this one included. Replies before it are forgotten, and
    /// proposals before it are never applied any more. At most [`SESSION_WINDOW`] - 1 below `sequence`.
    pub lowest: u64,
}

impl ProposalNumber {
    /// Whether the group can take it.
    pub(crate) fn is_valid(&self) -> bool {
        self.lowest > 0
            && self.lowest <= self.sequence
            && self.sequence - self.lowest < SESSION_WINDOW
            && self.sequence <= u64::MAX / 2
    }
}

/// What an entry of the kind [`EntryKind::Session`](polyraft_storage::EntryKind::Session) asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    /// Open a session, and keep so many of the group at most.
    Open { most: u32 },
    /// Forget a session.
    Close { session: SessionId },
    /// Apply the payload behind the header, unless that was done before.
    Propose(ProposalNumber),
}

impl Command {
    /// The entry: a header and the payload. `docs/wal-format.md` has the bytes.
    pub(crate) fn encode(self, payload: &[u8]) -> Bytes {
        let (session, first, second) = match self {
            Command::Open { most } => (0, u64::from(most), 0),
            Command::Close { session } => (session.0, 0, 0),
            Command::Propose(number) => (number.session.0, number.sequence, number.lowest),
        };
        let mut out = BytesMut::with_capacity(HEADER_BYTES + payload.len());
        out.put_u64_le(session);
        out.put_u64_le(first);
        out.put_u64_le(second);
        out.put_slice(payload);
        out.freeze()
    }

    /// Splits an entry into what it asks for and the payload.
    pub(crate) fn parse(entry: &[u8]) -> Option<(Command, &[u8])> {
        let (mut header, payload) = entry.split_at_checked(HEADER_BYTES)?;
        let (session, first, second) = (
            header.get_u64_le(),
            header.get_u64_le(),
            header.get_u64_le(),
        );
        let command = match (session, first) {
            (0, most) => Command::Open {
                most: u32::try_from(most)
                    .ok()
                    .filter(|most| (1..=MAX_SESSIONS).contains(most) && second == 0)?,
            },
            (session, 0) => Command::Close {
                session: Some(SessionId(session)).filter(|_| second == 0)?,
            },
            (session, sequence) => {
                let number = ProposalNumber {
                    session: SessionId(session),
                    sequence,
                    lowest: second,
                };
                Command::Propose(Some(number).filter(ProposalNumber::is_valid)?)
            }
        };
        Some((command, payload))
    }
}

/// A reply that is kept for whoever asks again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Reply {
    /// Where the proposal was applied.
    pub(crate) index: Index,
    pub(crate) bytes: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_of_an_earlier_life_is_not_one_of_this() {
        let [first, second] = [0, 1].map(|life| Life::new(life).unwrap());
        let (one, other) = (
            SessionId::of(Opener::new(GroupId(5), first), Index(7)),
            SessionId::of(Opener::new(GroupId(5), second), Index(7)),
        );
        assert_ne!(one, other);
        // A client of a group that comes to its child.
        let openers = (0..64).map(|group| Opener::new(GroupId(group), first).0);
        assert_eq!(
            openers.collect::<std::collections::BTreeSet<u16>>().len(),
            64
        );
        assert_eq!(
            (one.index(), other.index()),
            (Some(Index(7)), Some(Index(7)))
        );
        let answer = |index, id: SessionId| Committed {
            index,
            reply: Bytes::copy_from_slice(&id.0.to_le_bytes()),
        };
        assert_eq!(SessionId::opened(&answer(Index(7), other)), Some(other));
        assert_eq!(SessionId::opened(&answer(Index(8), other)), None);
    }

    #[test]
    fn a_header_is_read_back_and_a_bad_one_is_refused() {
        let number = |sequence, lowest| ProposalNumber {
            session: SessionId(9),
            sequence,
            lowest,
        };
        for command in [
            Command::Open { most: 1 },
            Command::Open { most: MAX_SESSIONS },
            Command::Close {
                session: SessionId(3),
            },
            Command::Propose(number(1, 1)),
            Command::Propose(number(SESSION_WINDOW + 7, 8)),
        ] {
            let entry = command.encode(b"abc");
            assert_eq!(entry.len(), HEADER_BYTES + 3);
            assert_eq!(Command::parse(&entry), Some((command, &b"abc"[..])));
            assert_eq!(Command::parse(&entry[..HEADER_BYTES - 1]), None);
        }
        for command in [
            Command::Open { most: 0 },
            Command::Open {
                most: MAX_SESSIONS + 1,
            },
            Command::Propose(number(1, 0)),
            Command::Propose(number(1, 2)),
            Command::Propose(number(SESSION_WINDOW + 8, 8)),
            Command::Propose(number(u64::MAX, u64::MAX)),
        ] {
            assert_eq!(Command::parse(&command.encode(b"")), None, "{command:?}");
        }
    }
}

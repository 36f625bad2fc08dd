//! The entry that splits a part of a group off: what it says, byte by byte. `docs/wal-format.md` has the map.
//! Everything that replicas need to make the same child must be in it; nothing may be asked of anybody when it is applied.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_raft::{Configuration, GroupId, Index, Life, LogPosition, Term};
use polyraft_storage::SnapshotMeta;

use crate::machine::Split;
use crate::wire;

/// Bytes in front of the members.
const FIXED_BYTES: usize = 12;

/// Which entry it is that splits a group, among all of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SplitPlace {
    pub(crate) group: GroupId,
    pub(crate) life: Life,
    pub(crate) index: Index,
}

/// What an entry of the kind [`EntryKind::Split`](polyraft_storage::EntryKind::Split) says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SplitEntry {
    /// The group that begins, and in which life of its id.
    pub(crate) child: GroupId,
    pub(crate) life: Life,
    /// The members that it begins with: those of its parent as of the entry.
    pub(crate) members: Configuration,
    /// What the state machine is told.
    pub(crate) argument: Bytes,
}

impl SplitEntry {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(FIXED_BYTES + 64 + self.argument.len());
        out.put_u64_le(self.child.0);
        out.put_u32_le(self.life.get());
        wire::put_configuration(&mut out, &self.members);
        out.put_slice(&self.argument);
        out.freeze()
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<SplitEntry> {
        let (mut head, rest) = payload.split_at_checked(FIXED_BYTES)?;
        let (child, life) = (GroupId(head.get_u64_le()), Life::new(head.get_u32_le())?);
        let (members, argument) = wire::configuration_and_rest(rest)?;
        Some(SplitEntry {
            child,
            life,
            members,
            argument: Bytes::copy_from_slice(argument),
        })
    }

    /// What an entry of a group says, if a child can be split off that group by it.
    pub(crate) fn of(parent: GroupId, payload: &[u8]) -> Option<SplitEntry> {
        SplitEntry::parse(payload).filter(|entry| Self::may_be_child(parent, entry.child))
    }

    /// Whether a group can have a child of this id.
    pub(crate) fn may_be_child(parent: GroupId, child: GroupId) -> bool {
        child != parent && child.0 < u64::MAX - 1
    }

    /// The snapshot that the child begins with. Its log begins where the parent was split, so that whatever names places of the
    /// parent's log, as sessions do, lies before everything of its own. No leader has led the term of that place.
    pub(crate) fn beginning(&self, at: Index) -> SnapshotMeta {
        SnapshotMeta {
            group: self.child,
            incarnation: self.life.get().into(),
            last: LogPosition {
                term: Term::ZERO,
                index: at,
            },
            configuration: self.members.clone(),
        }
    }

    /// What the state machine is given, of the entry at a place.
    pub(crate) fn for_machine(&self, index: Index, term: Term) -> Split<'_> {
        Split {
            index,
            term,
            child: self.child,
            argument: &self.argument,
        }
    }
}

#[cfg(test)]
mod tests {
    use polyraft_raft::NodeId;

    use super::*;

    #[test]
    fn an_entry_is_read_back_and_a_bad_one_is_refused() {
        let entry = SplitEntry {
            child: GroupId(9),
            life: Life::new(3).unwrap(),
            members: Configuration::joint([1, 2, 3].map(NodeId), [], [NodeId(4)], []),
            argument: Bytes::from_static(b"m"),
        };
        let bytes = entry.encode();
        assert_eq!(SplitEntry::parse(&bytes), Some(entry.clone()));
        for cut in 0..bytes.len() - 1 {
            assert_eq!(SplitEntry::parse(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(SplitEntry::of(GroupId(7), &bytes), Some(entry.clone()));
        for (parent, child) in [(9, 9), (7, u64::MAX), (7, u64::MAX - 1)] {
            let child = GroupId(child);
            let bytes = SplitEntry {
                child,
                ..entry.clone()
            };
            assert_eq!(SplitEntry::of(GroupId(parent), &bytes.encode()), None);
        }
        let last = entry.beginning(Index(7)).last;
        assert_eq!((last.index, last.term), (Index(7), Term::ZERO));
    }
}

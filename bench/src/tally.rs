//! The state machine that loads are measured with: it counts what it applied. Cheap on purpose, so that a measurement
//! is of the engine and not of it; `polyraft demo` has the one that checks everything.

use bytes::{BufMut, Bytes, BytesMut};
use polyraft::{Entry, FrozenState, MachineError, Replies, StateMachine};
use polyraft_raft::{GroupId, Index};
use std::io::Read;
use std::path::Path;

/// Entries and bytes applied by one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    entries: u64,
    bytes: u64,
}

impl Tally {
    fn to_bytes(self) -> Bytes {
        let mut out = BytesMut::with_capacity(16);
        out.put_u64_le(self.entries);
        out.put_u64_le(self.bytes);
        out.freeze()
    }
}

impl StateMachine for Tally {
    fn open(_group: GroupId, _dir: &Path) -> Result<(Self, Index), MachineError> {
        Ok((Self::default(), Index::ZERO))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        for entry in entries {
            self.entries += 1;
            self.bytes += entry.payload.len() as u64;
            replies.push([]);
        }
        Ok(())
    }

    /// Whatever is asked, the two numbers, little-endian.
    fn query(&self, _query: &[u8]) -> Result<Bytes, MachineError> {
        Ok(self.to_bytes())
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        let tally = self.to_bytes();
        Ok(Box::new(move |out| Ok(out.write_all(&tally)?)))
    }

    fn restore(&mut self, _last: Index, from: &mut dyn Read) -> Result<(), MachineError> {
        let mut numbers = [[0; 8]; 2];
        for number in &mut numbers {
            from.read_exact(number)?;
        }
        let [entries, bytes] = numbers.map(u64::from_le_bytes);
        *self = Self { entries, bytes };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyraft_raft::Term;

    #[test]
    fn entries_are_counted_and_survive_a_snapshot() {
        let mut tally = Tally::default();
        let mut replies = Replies::default();
        for (at, size) in [(1, 5), (2, 0), (4, 7)] {
            let payload = Bytes::from(vec![1; size]);
            let entry = Entry::new(Index(at), Term(1), &payload);
            tally.apply(&[entry], &mut replies).unwrap();
        }
        assert_eq!(replies.len(), 3);
        assert_eq!(
            tally,
            Tally {
                entries: 3,
                bytes: 12
            }
        );
        let mut snapshot = Vec::new();
        tally.snapshot().unwrap()(&mut snapshot).unwrap();
        assert_eq!(tally.query(b"any").unwrap(), snapshot);
        let mut other = Tally::default();
        other.restore(Index(4), &mut &snapshot[..]).unwrap();
        assert_eq!(other, tally);
    }
}

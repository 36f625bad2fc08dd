//! The contract between the engine and the user's state machine.
//! The engine must never hand a state machine an entry that is not committed and durable on this node.

use std::io::{Read, Write};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use polyraft_raft::{GroupId, Index, Term};

use crate::error::MachineError;

/// One committed proposal, as it was given to `propose`.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    /// Its place in the group's log. Indexes grow, with gaps where the engine's own entries (no-ops) stand.
    pub index: Index,
    /// The term of the leader that appended it.
    pub term: Term,
    /// The proposal's bytes.
    pub payload: &'a [u8],
    /// What they are a part of.
    memory: &'a Bytes,
}

impl<'a> Entry<'a> {
    /// An entry whose payload is all of `payload`: for tests of state machines.
    pub fn new(index: Index, term: Term, payload: &'a Bytes) -> Self {
        Entry::within(index, term, payload, payload)
    }

    /// An entry whose payload is a part of `memory`.
    pub(crate) fn within(index: Index, term: Term, payload: &'a [u8], memory: &'a Bytes) -> Self {
        Entry {
            index,
            term,
            payload,
            memory,
        }
    }

    /// The payload to keep, without a copy.
    ///
    /// It keeps the piece of the log that the entry came in: up to `wal.max_batch_bytes` of neighbouring entries, and after
    /// a restart the whole segment file, which is not reused meanwhile. To keep small payloads for long, copy them.
    pub fn payload_bytes(&self) -> Bytes {
        self.memory.slice_ref(self.payload)
    }
}

/// What an entry is a part of does not matter.
impl PartialEq for Entry<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.index, self.term, self.payload) == (other.index, other.term, other.payload)
    }
}

impl Eq for Entry<'_> {}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("index", &self.index)
            .field("term", &self.term)
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}

/// Collects one reply for each entry of a batch, in order.
///
/// Replies are copied behind each other, so that a replica where nobody waits for them makes no objects of them.
#[derive(Debug, Default)]
pub struct Replies {
    bytes: BytesMut,
    /// Where each reply ends in `bytes`.
    ends: Vec<usize>,
}

impl Replies {
    /// The reply to the next entry; `propose` returns it to the caller.
    pub fn push(&mut self, reply: impl AsRef<[u8]>) {
        self.bytes.extend_from_slice(reply.as_ref());
        self.ends.push(self.bytes.len());
    }

    /// How many replies were given so far.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether no reply was given yet.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Takes the replies out, in order. They share memory.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Bytes> + '_ {
        let bytes = self.bytes.split().freeze();
        let mut start = 0;
        self.ends
            .drain(..)
            .map(move |end| bytes.slice(std::mem::replace(&mut start, end)..end))
    }
}

/// A state machine's state at one moment, which writes itself out on another thread while the state machine goes on.
pub type FrozenState = Box<dyn FnOnce(&mut dyn Write) -> Result<(), MachineError> + Send>;

/// A part of a group that becomes a group of its own: what the state machine is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split<'a> {
    /// The place in the group's log at which it is split. The child's log goes on behind the same index.
    pub index: Index,
    /// The term of the leader that appended it.
    pub term: Term,
    /// The group that begins.
    pub child: GroupId,
    /// What was given to [`GroupHandle::split`](crate::GroupHandle::split): which part it is, in whatever way the state machine
    /// is told such things.
    pub argument: &'a [u8],
}

/// Another group whose state becomes a part of this one: what the state machine is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Merge<'a> {
    /// The place in the log of the group that takes the state.
    pub index: Index,
    /// The term of the leader that appended it.
    pub term: Term,
    /// The group that ends.
    pub source: GroupId,
    /// What was given to [`GroupHandle::merge_into`](crate::GroupHandle::merge_into).
    pub argument: &'a [u8],
}

/// What a group replicates: a deterministic function of its log.
///
/// Each group on each node has an instance of its own, used by one thread at a time: an apply worker or, with `apply.inline`, a shard. Entries come in log
/// order, each exactly once per opening, starting after the index that [`StateMachine::open`] returned. A panic
/// or an error quarantines the group on this node; other groups go on.
///
/// ```
/// use std::io::Read;
/// use std::path::Path;
/// use bytes::Bytes;
/// use polyraft::{Entry, FrozenState, GroupId, Index, MachineError, Replies, StateMachine};
///
/// /// Adds up the lengths of all proposals.
/// struct Adder(u64);
///
/// impl StateMachine for Adder {
///     fn open(_group: GroupId, _dir: &Path) -> Result<(Self, Index), MachineError> {
///         Ok((Adder(0), Index::ZERO)) // in memory only: replay the whole log
///     }
///     fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
///         for entry in entries {
///             self.0 += entry.payload.len() as u64;
///             replies.push(self.0.to_le_bytes());
///         }
///         Ok(())
///     }
///     fn query(&self, _query: &[u8]) -> Result<Bytes, MachineError> {
///         Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
///     }
///     fn snapshot(&self) -> Result<FrozenState, MachineError> {
///         let sum = self.0; // a copy: the state machine goes on
///         Ok(Box::new(move |out| Ok(out.write_all(&sum.to_le_bytes())?)))
///     }
///     fn restore(&mut self, _last: Index, from: &mut dyn Read) -> Result<(), MachineError> {
///         let mut sum = [0; 8];
///         from.read_exact(&mut sum)?;
///         self.0 = u64::from_le_bytes(sum);
///         Ok(())
///     }
/// }
/// ```
pub trait StateMachine: Sized + Send + 'static {
    /// Opens the state of `group` and says the last index whose effect it holds durably.
    ///
    /// `dir` is a directory of the group's own; it does not exist until the state machine makes it. Return
    /// [`Index::ZERO`] when nothing is kept on disk: the whole log is then applied again.
    ///
    /// After a restart those of several groups are opened at the same time, on threads that end with it.
    fn open(group: GroupId, dir: &Path) -> Result<(Self, Index), MachineError>;

    /// The replica whose state this was has ended: the group was destroyed, or this node left it. Removes everything that the
    /// state machine kept outside of memory; by default that is `dir`, if it is there.
    ///
    /// The state machine was dropped before, and no other one is opened with the same `dir` until this returns: a group that is
    /// created again under the id has a `dir` of its own. After a crash it is called again if `dir` still exists, so a state
    /// machine that keeps its state elsewhere makes `dir` nevertheless, and removes it last.
    ///
    /// # Errors
    /// They are logged, and it is called again at the next opening of the node.
    fn destroy(_group: GroupId, dir: &Path) -> Result<(), MachineError> {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Applies committed entries in order and pushes exactly one reply for each.
    ///
    /// Must depend on nothing but the state and the entries, or replicas drift apart. Must not wait for the node that it is part of:
    /// other groups of its apply worker wait meanwhile and, with `apply.inline`, all of a shard, so that it may wait for ever.
    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError>;

    /// Answers a query from the current state, without changing it.
    fn query(&self, query: &[u8]) -> Result<Bytes, MachineError>;

    /// Freezes the state as it is: what the returned closure writes, [`StateMachine::restore`] rebuilds.
    ///
    /// It runs between two calls of [`StateMachine::apply`] and should take no longer than those: share
    /// or copy in here, write in the closure, which runs on another thread. An error costs this snapshot and nothing else.
    ///
    /// That thread has a lower priority than the others of the node (on Linux), and threads that are started there inherit it.
    /// Where processors are scarce, the closure may thus hold a lock that it shares with [`StateMachine::apply`] for long, and
    /// every group of that apply worker waits, or of a shard with `apply.inline`: hold it for moments only, or share what needs none.
    fn snapshot(&self) -> Result<FrozenState, MachineError>;

    /// Replaces the state by that of a snapshot, which covers the log through `last`. `from` ends with the last byte that
    /// was written, and all of them have been held against a checksum.
    ///
    /// A state machine that keeps its state on disk must replace it as a whole: after a crash, [`StateMachine::open`] says
    /// the index of what was there before, or `last`. An error quarantines the group on this node.
    ///
    /// It runs on a thread of lower priority, like the closure of [`StateMachine::snapshot`]: threads that it starts inherit
    /// that, and a lock shared with [`StateMachine::apply`] of other groups may be held for long.
    fn restore(&mut self, last: Index, from: &mut dyn Read) -> Result<(), MachineError>;

    /// Whether this part can become a group of its own. If not, nothing happens, on all replicas alike, and the caller is told:
    /// so it must depend on nothing but the state and the split. By default there is no such part.
    fn can_split(&self, _split: &Split<'_>) -> bool {
        false
    }

    /// Freezes the part that becomes a group of its own, and leaves the state as it is: what the returned closure writes,
    /// [`StateMachine::restore`] of the child's state machine is given, with the index of the split as the last one. Like
    /// [`StateMachine::snapshot`] it should not take long; replicas must write the same.
    ///
    /// The state machine is given nothing more until the child keeps that durably on this node. After a crash in between this is
    /// called again.
    ///
    /// # Errors
    /// They quarantine the group on this node.
    fn split_off(&self, _split: &Split<'_>) -> Result<FrozenState, MachineError> {
        Err(MachineError::from("this state machine does not split"))
    }

    /// The child has its part, which goes from the state: the effect of the entry at the index of the split. Like that of any
    /// other entry it may be made durable from now on, and not before.
    ///
    /// # Errors
    /// They quarantine the group on this node.
    fn shed(&mut self, _split: &Split<'_>) -> Result<(), MachineError> {
        Err(MachineError::from("this state machine does not split"))
    }

    /// Whether the state of another group may become a part of this one. It is asked before that group is frozen; if the answer
    /// is no, nothing happens and the caller is told. By default it is no.
    ///
    /// Once it has said yes, it must be able to take the state whenever [`StateMachine::merge`] is called, whatever it applies
    /// until then. Only splits of this group end the attempt.
    fn can_merge(&self, _merge: &Merge<'_>) -> bool {
        false
    }

    /// Takes the state of a group that ends here: `from` is what its [`StateMachine::snapshot`] wrote, all of it and held against
    /// a checksum. It is the effect of the entry at the index of the merge, and like that of any other entry it may be made durable
    /// from now on, and not before. The worker does nothing else meanwhile.
    ///
    /// # Errors
    /// They quarantine the group on this node; and as replicas are alike, on all others.
    fn merge(&mut self, _merge: &Merge<'_>, _from: &mut dyn Read) -> Result<(), MachineError> {
        Err(MachineError::from("this state machine does not merge"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_equal_whatever_they_are_a_part_of() {
        let (one, other) = (Bytes::from_static(b"abc"), Bytes::from_static(b"-abc-"));
        let alone = Entry::new(Index(1), Term(2), &one);
        let part = Entry::within(Index(1), Term(2), &other[1..4], &other);
        assert_eq!(alone, part);
        assert_eq!(part.payload_bytes(), one);
        assert_ne!(alone, Entry::new(Index(2), Term(2), &one));
        assert_ne!(alone, Entry::new(Index(1), Term(1), &one));
        assert_ne!(alone, Entry::new(Index(1), Term(2), &other));
    }
}

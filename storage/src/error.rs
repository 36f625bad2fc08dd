//! Owns the errors of this crate; each message says what is wrong and what to do next.
//! Must never hold a log payload: errors are printed and sent to peers.

use std::io;
use std::path::{Path, PathBuf};

use polyraft_raft::{GroupId, Index, Life};

/// Why the log could not be opened or did not take a record.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// A file operation failed. Nothing is retried behind the caller's back.
    #[error("{path}: {action} failed: {message}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done to it.
        action: &'static str,
        /// The operating system's words.
        message: String,
        /// Its class, for callers that branch on it.
        kind: io::ErrorKind,
    },
    /// Another process (or another node in this process) uses the directory.
    #[error(
        "{path} is locked: another node already runs on this data directory; stop it or choose another directory"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The directory belongs to someone else, or its settings cannot be changed in place.
    #[error("{path}: {reason}")]
    Identity {
        /// The identity file.
        path: PathBuf,
        /// What does not fit, and what to do.
        reason: String,
    },
    /// An option is out of its range.
    #[error("WAL option {name}: {reason}")]
    Option {
        /// The option's name.
        name: &'static str,
        /// Why it was refused.
        reason: String,
    },
    /// Bytes that were durable once cannot be read back, and the damage cannot be confined to named groups.
    #[error(
        "{path}: damaged at offset {offset}: {reason}; restore this node's data directory or remove it and let the node rejoin as a new one"
    )]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What was expected.
        reason: String,
    },
    /// The disk has no room for another segment. Nothing was lost: the turn is kept and `submit` may be called again
    /// once room was made.
    #[error("the disk of {path} is full: {needed} more bytes are needed for the next log segment")]
    DiskFull {
        /// The WAL directory.
        path: PathBuf,
        /// How many bytes must become free.
        needed: u64,
    },
    /// A write or sync failed earlier. What the disk holds is unknown, so nothing more is accepted until a restart.
    #[error("the log is closed after a failed write or sync ({reason}); restart the node")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// The log was stopped.
    #[error("the log is stopped")]
    Stopped,
    /// A group is to begin in a life that ended here.
    #[error("{life} of group {group} cannot begin: {over} of it has ended here")]
    LifeIsOver {
        /// The group.
        group: GroupId,
        /// The life that was to begin.
        life: Life,
        /// The newest one that ended.
        over: Life,
    },
    /// One record cannot fit into a batch.
    #[error(
        "a record of {bytes} bytes is larger than the log takes ({limit} bytes); raise max_batch_bytes and segment_bytes or send less at once"
    )]
    TooLarge {
        /// Its encoded size.
        bytes: u64,
        /// The largest that is taken.
        limit: u64,
    },
    /// The group is not in this log.
    #[error("{group} does not exist in this log")]
    NoSuchGroup {
        /// The group.
        group: GroupId,
    },
    /// The group is there already.
    #[error("{group} exists already")]
    GroupExists {
        /// The group.
        group: GroupId,
    },
}

impl StorageError {
    /// Wraps an I/O error with its place.
    pub fn io(path: impl AsRef<Path>, action: &'static str, error: &io::Error) -> Self {
        Self::Io {
            path: path.as_ref().to_owned(),
            action,
            message: error.to_string(),
            kind: class(error),
        }
    }

    /// Whether the process or the machine had too little memory or too many open files: the same may succeed later.
    pub(crate) fn is_passing(&self) -> bool {
        let kind = io::ErrorKind::OutOfMemory;
        matches!(self, Self::Io { kind: found, .. } if *found == kind)
    }

    /// Whether the operation failed for want of disk space.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { kind, .. } => {
                matches!(
                    kind,
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            }
            _ => false,
        }
    }
}

/// Tables of open files that are full pass as a want of memory does; the standard library has no class for them.
fn class(error: &io::Error) -> io::ErrorKind {
    match rustix::io::Errno::from_io_error(error) {
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => io::ErrorKind::OutOfMemory,
        _ => error.kind(),
    }
}

/// Why a range of a group's log could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The group is not in this log.
    #[error("{0} does not exist in this log")]
    NoSuchGroup(GroupId),
    /// The range begins before the purged position or ends beyond the last entry.
    #[error("{group} holds {first}..{end}, not all of {wanted_first}..{wanted_end}")]
    OutOfRange {
        /// The group.
        group: GroupId,
        /// First index held.
        first: Index,
        /// One past the last index held.
        end: Index,
        /// First index asked for.
        wanted_first: Index,
        /// One past the last index asked for.
        wanted_end: Index,
    },
    /// The bytes on disk are not what was written. The group must not use this replica's log any more.
    #[error("{group}: the log is damaged in segment {segment} at offset {offset}: {reason}")]
    Damaged {
        /// The group.
        group: GroupId,
        /// The segment's sequence number.
        segment: u64,
        /// Byte offset in the segment.
        offset: u64,
        /// What is wrong with the bytes.
        reason: BlockError,
    },
    /// The blocks are what was written, or come from memory, and do not hold the entries that the index says. No disk does that.
    #[error("{group}: entries {first}..{end} can't be cut from what was read of them: {reason}")]
    Uncut {
        /// The group.
        group: GroupId,
        /// First index wanted.
        first: Index,
        /// One past the last index wanted.
        end: Index,
        /// What is wrong.
        reason: BlockError,
    },
}

/// Why bytes are not an entry block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Fewer or more bytes than the header says.
    #[error("{have} bytes where a block of {need} was expected")]
    Length {
        /// Bytes given.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Not the magic number of an entry block, or a version this build does not read.
    #[error("not an entry block of a known version")]
    Format,
    /// A header field is out of its range.
    #[error("impossible {0} in a block header")]
    Field(&'static str),
    /// The checksum of the header or the body does not match.
    #[error("checksum mismatch in the {0} of a block")]
    Checksum(&'static str),
    /// The payloads do not fit into one block.
    #[error("payloads of {0} bytes do not fit into one block")]
    TooLarge(u64),
    /// The range asked for is not inside the block.
    #[error("the range is not inside the block")]
    Range,
}

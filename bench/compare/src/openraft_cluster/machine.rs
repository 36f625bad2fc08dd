//! The state machine under openraft: the digest that every engine keeps, readable from outside.

use super::{Entry, Types};
use crate::digest::Digest;
use openraft::storage::RaftStateMachine;
use openraft::{
    EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError,
    StorageIOError, StoredMembership,
};
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Result<T> = std::result::Result<T, StorageError<u64>>;

/// A digest that one thread at a time writes and others read when nothing changes.
#[derive(Default)]
pub struct SharedDigest {
    applied: AtomicU64,
    hash: AtomicU64,
}

impl SharedDigest {
    /// The digest at this moment.
    pub fn get(&self) -> Digest {
        Digest {
            applied: self.applied.load(Ordering::Acquire),
            hash: self.hash.load(Ordering::Acquire),
        }
    }

    fn set(&self, digest: Digest) {
        self.applied.store(digest.applied, Ordering::Release);
        self.hash.store(digest.hash, Ordering::Release);
    }
}

/// The state machine of one replica.
#[derive(Clone)]
pub struct Machine {
    digest: Digest,
    shared: Arc<SharedDigest>,
    last_applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, openraft::EmptyNode>,
}

impl Machine {
    /// An empty one that shows its digest in `shared`.
    pub fn new(shared: Arc<SharedDigest>) -> Self {
        Self {
            digest: Digest::default(),
            shared,
            last_applied: None,
            membership: StoredMembership::default(),
        }
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>> {
        let meta = SnapshotMeta {
            last_log_id: self.last_applied,
            last_membership: self.membership.clone(),
            snapshot_id: self.digest.applied.to_string(),
        };
        let bytes = self.digest.to_bytes().to_vec();
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(
        Option<LogId<u64>>,
        StoredMembership<u64, openraft::EmptyNode>,
    )> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut replies = Vec::new();
        for entry in entries {
            self.last_applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => self.digest.apply(&command.payload),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            replies.push(());
        }
        self.shared.set(self.digest);
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, openraft::EmptyNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<()> {
        let digest = Digest::parse(snapshot.get_ref()).ok_or_else(|| {
            let error = std::io::Error::other("this is not a digest");
            StorageIOError::read_snapshot(Some(meta.signature()), &error)
        })?;
        self.digest = digest;
        self.shared.set(digest);
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>> {
        Ok(None)
    }
}

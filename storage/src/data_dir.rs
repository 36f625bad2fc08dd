//! Owns the data directory: its identity and its lock.
//! Must never be opened twice at once, and must never guess an identity that it cannot read.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BufMut;
use parking_lot::Mutex;
use polyraft_raft::NodeId;

use crate::block::{u32_at, u64_at};
use crate::disk::Disk;
use crate::error::StorageError;
use crate::format::PAGE_BYTES;
use crate::peers::Peers;

const IDENTITY: &str = "identity";
const LOCK: &str = "lock";
/// The directory of the lanes.
pub(crate) const WAL: &str = "wal";

const IDENTITY_MAGIC: &[u8; 8] = b"PRIDENT1";
const MAX_CLUSTER_BYTES: usize = 255;
/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Names one life of a data directory: drawn at random when it is created, so a wiped node is not mistaken for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(pub u128);

impl std::fmt::Display for StoreId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What was last seen of a peer. An older incarnation of the same store later means that the peer was rolled back;
/// another store means that it was wiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSeen {
    /// The peer's store.
    pub store: StoreId,
    /// Its incarnation.
    pub incarnation: u64,
}

/// An open, locked data directory. The lock is held until this value and every log opened from it are gone.
#[derive(Debug, Clone)]
pub struct DataDir {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    identity: Identity,
    is_new: bool,
    peers: Mutex<Peers>,
    _lock: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataDir")
            .field("path", &self.path)
            .field("identity", &self.identity)
            .finish()
    }
}

/// What the identity file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: String,
    pub(crate) node: NodeId,
    pub(crate) store: StoreId,
    pub(crate) incarnation: u64,
    pub(crate) lanes: u32,
}

impl DataDir {
    /// Opens or creates the directory: locks it, checks that it is this cluster's and this node's, and durably begins
    /// the next incarnation.
    ///
    /// Fails with [`StorageError::Locked`] when another node runs on it and with [`StorageError::Identity`] when it belongs
    /// to another cluster or node, has other lanes, or lost its identity file. Works on a full disk once it exists.
    pub fn open(
        disk: Arc<dyn Disk>,
        path: impl AsRef<Path>,
        cluster: &str,
        node: NodeId,
        lanes: usize,
    ) -> Result<Self, StorageError> {
        let path = path.as_ref().to_owned();
        let file = path.join(IDENTITY);
        let refuse = |reason: String| StorageError::Identity {
            path: file.clone(),
            reason,
        };
        if cluster.is_empty() || cluster.len() > MAX_CLUSTER_BYTES {
            return Err(refuse(format!(
                "the cluster name must have 1 to {MAX_CLUSTER_BYTES} bytes"
            )));
        }
        disk.create_dir(&path)
            .map_err(|error| StorageError::io(&path, "creating the data directory", &error))?;
        let lock = lock(&*disk, &path)?;
        let known = read_identity(&*disk, &path)?;
        let is_new = known.is_none();
        let identity = match known {
            Some((mut identity, slot)) => {
                identity.check(cluster, node, lanes).map_err(refuse)?;
                identity.incarnation += 1;
                // The slot that holds the older incarnation is overwritten in place: no space is
                // needed, and a torn write leaves the newer slot as it was.
                disk.overwrite(&file, (1 - slot) * PAGE_BYTES as u64, &identity.encode())
                    .map_err(|error| StorageError::io(&file, "writing the identity", &error))?;
                identity
            }
            None => {
                let names = disk
                    .list(&path.join(WAL))
                    .map_err(|error| StorageError::io(&path, "listing", &error))?;
                if !names.is_empty() {
                    return Err(refuse(
                        "the identity file is missing although there is a log beside it; restore the file, or remove the \
                         whole data directory and let the node rejoin as a new one"
                            .into(),
                    ));
                }
                let store = StoreId(
                    disk.entropy()
                        .map_err(|error| StorageError::io(&path, "drawing a store id", &error))?,
                );
                let identity = Identity {
                    cluster: cluster.to_owned(),
                    node,
                    store,
                    incarnation: 1,
                    lanes: lanes as u32,
                };
                let mut bytes = identity.encode();
                bytes.resize(2 * PAGE_BYTES, 0);
                disk.replace(&file, &bytes)
                    .map_err(|error| StorageError::io(&file, "creating the identity", &error))?;
                identity
            }
        };
        let peers = Peers::read(&*disk, &path)?;
        let inner = Inner {
            disk,
            path,
            identity,
            is_new,
            peers: Mutex::new(peers),
            _lock: lock,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Whether this open created it.
    pub fn is_new(&self) -> bool {
        self.inner.is_new
    }

    /// Names this life of the directory.
    pub fn store(&self) -> StoreId {
        self.inner.identity.store
    }

    /// Counts the opens of this directory, from 1.
    pub fn incarnation(&self) -> u64 {
        self.inner.identity.incarnation
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The node it belongs to.
    pub fn node(&self) -> NodeId {
        self.inner.identity.node
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> &str {
        &self.inner.identity.cluster
    }

    /// Independent logs in it.
    pub fn lanes(&self) -> usize {
        self.inner.identity.lanes as usize
    }

    /// Remembers durably what was seen of a peer; does nothing when that is known already.
    pub fn note_peer(&self, peer: NodeId, seen: PeerSeen) -> Result<(), StorageError> {
        let mut peers = self.inner.peers.lock();
        peers.note(&*self.inner.disk, peer, seen)
    }

    /// What is remembered of the peers.
    pub fn peers(&self) -> BTreeMap<NodeId, PeerSeen> {
        self.inner.peers.lock().seen().clone()
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.inner.disk
    }
}

/// Takes the directory's lock.
pub(crate) fn lock(disk: &dyn Disk, path: &Path) -> Result<Box<dyn Send + Sync>, StorageError> {
    let file = path.join(LOCK);
    disk.lock(&file).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => StorageError::Locked { path: file },
        _ => StorageError::io(&file, "locking", &error),
    })
}

/// The newest identity in the file and the slot it was in; `None` when there is no file.
pub(crate) fn read_identity(
    disk: &dyn Disk,
    path: &Path,
) -> Result<Option<(Identity, u64)>, StorageError> {
    let file = path.join(IDENTITY);
    let bytes = match disk.read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|error| StorageError::io(&file, "reading", &error))?,
    };
    let slots = [0, 1].into_iter().filter_map(|slot| {
        let identity = Identity::parse(bytes.get(slot * PAGE_BYTES..)?)?;
        Some((identity, slot as u64))
    });
    match slots.max_by_key(|(identity, _)| identity.incarnation) {
        Some(newest) => Ok(Some(newest)),
        None => Err(StorageError::Identity {
            path: file,
            reason: "neither copy of the identity is readable (or it was written by an unknown version); restore the file, or \
                     remove the whole data directory and let the node rejoin as a new one"
                .into(),
        }),
    }
}

impl Identity {
    fn check(&self, cluster: &str, node: NodeId, lanes: usize) -> Result<(), String> {
        if self.cluster != cluster {
            return Err(format!(
                "this data directory belongs to cluster {:?}, not to {cluster:?}; choose another directory",
                self.cluster
            ));
        }
        if self.node != node {
            return Err(format!(
                "this data directory belongs to node {}, not to node {}; choose another directory",
                self.node.0, node.0
            ));
        }
        if self.lanes as usize != lanes {
            return Err(format!(
                "this data directory was created with {} WAL lanes and cannot be opened with {lanes}; set lanes = {}",
                self.lanes, self.lanes
            ));
        }
        Ok(())
    }

    /// One slot: magic, incarnation, node, store, lanes, cluster, checksum.
    fn encode(&self) -> Vec<u8> {
        let mut slot = Vec::with_capacity(512);
        slot.extend_from_slice(IDENTITY_MAGIC);
        slot.put_u64_le(self.incarnation);
        slot.put_u64_le(self.node.0);
        slot.put_u128_le(self.store.0);
        slot.put_u32_le(self.lanes);
        slot.put_u32_le(self.cluster.len() as u32);
        slot.extend_from_slice(self.cluster.as_bytes());
        // Fits one sector, which is written whole or not at all.
        slot.resize(SECTOR_BYTES - 4, 0);
        let crc = crc32c::crc32c(&slot);
        slot.put_u32_le(crc);
        slot
    }

    fn parse(slot: &[u8]) -> Option<Self> {
        let slot = slot.get(..512)?;
        if &slot[..8] != IDENTITY_MAGIC || crc32c::crc32c(&slot[..508]) != u32_at(slot, 508) {
            return None;
        }
        let cluster = slot.get(48..48 + u32_at(slot, 44) as usize)?;
        Some(Self {
            incarnation: u64_at(slot, 8),
            node: NodeId(u64_at(slot, 16)),
            store: StoreId(u128::from(u64_at(slot, 24)) | u128::from(u64_at(slot, 32)) << 64),
            lanes: u32_at(slot, 40),
            cluster: String::from_utf8(cluster.to_vec()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileDisk;

    fn open(path: &Path, cluster: &str, node: u64, lanes: usize) -> Result<DataDir, StorageError> {
        DataDir::open(Arc::new(FileDisk), path, cluster, NodeId(node), lanes)
    }

    #[test]
    fn each_open_is_a_new_incarnation_of_the_same_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = open(&path, "c", 1, 1).unwrap();
        let store = first.store();
        assert!(first.is_new());
        drop(first);
        for incarnation in 2..6 {
            let again = open(&path, "c", 1, 1).unwrap();
            assert_eq!(
                (again.incarnation(), again.store(), again.is_new()),
                (incarnation, store, false)
            );
        }
    }

    #[test]
    fn a_second_open_is_refused_by_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), "c", 1, 1).unwrap();
        let error = open(dir.path(), "c", 1, 1).unwrap_err();
        assert!(matches!(error, StorageError::Locked { .. }), "{error}");
        drop(first);
        open(dir.path(), "c", 1, 1).unwrap();
    }

    #[test]
    fn a_foreign_directory_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "red", 1, 1).unwrap());
        for (cluster, node, lanes, word) in [
            ("blue", 1, 1, "cluster"),
            ("red", 2, 1, "node"),
            ("red", 1, 2, "lanes"),
        ] {
            let error = open(dir.path(), cluster, node, lanes).unwrap_err();
            assert!(
                matches!(&error, StorageError::Identity { reason, .. } if reason.contains(word)),
                "{error}"
            );
        }
    }

    #[test]
    fn a_lost_identity_beside_a_log_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "c", 1, 1).unwrap());
        std::fs::create_dir_all(dir.path().join("wal/0")).unwrap();
        std::fs::remove_file(dir.path().join("identity")).unwrap();
        let error = open(dir.path(), "c", 1, 1).unwrap_err();
        assert!(
            error.to_string().contains("identity file is missing"),
            "{error}"
        );
    }

    #[test]
    fn one_damaged_identity_copy_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "c", 1, 1).unwrap());
        drop(open(dir.path(), "c", 1, 1).unwrap());
        let file = dir.path().join("identity");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[PAGE_BYTES + 20] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(open(dir.path(), "c", 1, 1).unwrap().incarnation(), 2);
        bytes[20] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert!(matches!(
            open(dir.path(), "c", 1, 1),
            Err(StorageError::Identity { .. })
        ));
    }
}

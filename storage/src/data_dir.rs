//! Owns the data directory: its identity and its lock.
//! Must never be opened twice at once, and must never guess an identity that it cannot read.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BufMut;
use parking_lot::Mutex;
use polyraft_raft::NodeId;

use crate::addresses::{AddressChange, Addresses};
use crate::block::{u32_at, u64_at};
use crate::disk::Disk;
use crate::error::StorageError;
use crate::format::PAGE_BYTES;
use crate::peers::Peers;

const IDENTITY: &str = "identity";
const LOCK: &str = "lock";
/// The directory of the lanes.
pub(crate) const WAL: &str = "wal";

const IDENTITY_MAGIC: &[u8; 8] = b"PRIDENT2";
const MAX_CLUSTER_BYTES: usize = 255;
/// Incarnations that are kept. A peer that sees none of so many can't tell this directory from an earlier state of it.
pub const MAX_SHOWN: usize = 1024;
/// A copy of the identity before its incarnations and its cluster's name.
const HEADER_BYTES: usize = 56;
/// Where the second copy begins: the longest copy fits before it.
const COPY_BYTES: usize = 3 * PAGE_BYTES;
const _: () = assert!(HEADER_BYTES + 8 * MAX_SHOWN + MAX_CLUSTER_BYTES + 4 <= COPY_BYTES);
/// The low bits of an incarnation are chance; the others count the openings.
const CHANCE_BITS: u32 = 32;

/// Names one life of a data directory: drawn at random when it is created, so a wiped node is not mistaken for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(pub u128);

impl std::fmt::Display for StoreId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What was last seen of a peer. If that incarnation is neither the one it shows later nor among its earlier ones, the
/// peer was rolled back; another store means that it was wiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSeen {
    /// The peer's store.
    pub store: StoreId,
    /// Its incarnation.
    pub incarnation: u64,
}

/// An open, locked data directory. The lock is held until this value and every log opened from it are gone, or until
/// [`DataDir::unlock`].
#[derive(Debug, Clone)]
pub struct DataDir {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    identity: Identity,
    incarnation: u64,
    /// The copy of the identity that counts, until this incarnation is shown.
    unshown: Mutex<Option<u64>>,
    is_new: bool,
    peers: Mutex<Peers>,
    addresses: Mutex<Addresses>,
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
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
    /// Counts the opens, from 1.
    pub(crate) opening: u64,
    pub(crate) lanes: u32,
    /// The last incarnations that peers may have seen, oldest first.
    pub(crate) shown: Vec<u64>,
}

impl DataDir {
    /// Opens or creates the directory: locks it, checks that it is this cluster's and this node's, durably counts the
    /// opening and draws its incarnation.
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
        // Names that an earlier sync failed to cover must not be built upon either.
        disk.sync_dir(&path)
            .map_err(|error| StorageError::io(&path, "syncing the data directory", &error))?;
        let known = read_identity(&*disk, &path)?;
        let draw = |what: &'static str| {
            let number = disk.entropy();
            number.map_err(|error| StorageError::io(&path, what, &error))
        };
        let is_new = known.is_none();
        let (identity, slot) = match known {
            Some((mut identity, slot)) => {
                identity.check(cluster, node, lanes).map_err(refuse)?;
                identity.opening += 1;
                let slot = identity.write_over(&*disk, &file, slot)?;
                (identity, slot)
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
                let identity = Identity {
                    cluster: cluster.to_owned(),
                    node,
                    store: StoreId(draw("drawing a store id")?),
                    opening: 1,
                    lanes: lanes as u32,
                    shown: Vec::new(),
                };
                let mut bytes = identity.encode();
                bytes.resize(2 * COPY_BYTES, 0);
                disk.replace(&file, &[&bytes])
                    .map_err(|error| StorageError::io(&file, "creating the identity", &error))?;
                (identity, 0)
            }
        };
        let chance = draw("drawing an incarnation")? as u32;
        let incarnation = identity.opening << CHANCE_BITS | u64::from(chance);
        let peers = Peers::read(&*disk, &path)?;
        let addresses = Addresses::read(&*disk, &path)?;
        let inner = Inner {
            disk,
            path,
            identity,
            incarnation,
            unshown: Mutex::new(Some(slot)),
            is_new,
            peers: Mutex::new(peers),
            addresses: Mutex::new(addresses),
            lock: Mutex::new(Some(lock)),
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
    pub fn opening(&self) -> u64 {
        self.inner.identity.opening
    }

    /// Names this opening among all that ever were: the count of openings and chance. A directory that was put back to
    /// an earlier state counts the same openings again, but draws other numbers.
    pub fn incarnation(&self) -> u64 {
        self.inner.incarnation
    }

    /// The incarnations before this one that peers may have seen, oldest first; at most 1,024, the newest.
    pub fn past(&self) -> &[u64] {
        &self.inner.identity.shown
    }

    /// Keeps this incarnation durably among those that peers may have seen. Must be done before a peer is told of it; an
    /// opening that ends before does not count. Works on a full disk. After an error it may not be told.
    pub fn show(&self) -> Result<(), StorageError> {
        let mut unshown = self.inner.unshown.lock();
        let Some(slot) = *unshown else {
            return Ok(());
        };
        let mut identity = self.inner.identity.clone();
        identity.shown.push(self.inner.incarnation);
        let too_many = identity.shown.len().saturating_sub(MAX_SHOWN);
        identity.shown.drain(..too_many);
        let file = self.inner.path.join(IDENTITY);
        identity.write_over(&*self.inner.disk, &file, slot)?;
        *unshown = None;
        Ok(())
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

    /// Lets go of the lock, although something may still hold this value. Nothing may be written from then on: the directory may
    /// be somebody else's.
    pub fn unlock(&self) {
        self.inner.lock.lock().take();
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

    /// Remembers durably where a peer is from now on, whatever the node is opened with, as long as that is what it was. After an
    /// error it is not remembered.
    pub fn note_address(&self, peer: NodeId, change: AddressChange) -> Result<(), StorageError> {
        let mut addresses = self.inner.addresses.lock();
        addresses.note(&*self.inner.disk, peer, change)
    }

    /// The peers that were added, moved or taken out while the node ran.
    pub fn address_changes(&self) -> BTreeMap<NodeId, AddressChange> {
        self.inner.addresses.lock().changes().clone()
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
    // A copy that is only in the cache would be trusted, and the other one, which is on the disk, overwritten.
    let bytes = match disk.read_stable(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|error| StorageError::io(&file, "reading", &error))?,
    };
    let slots = [0, 1].into_iter().filter_map(|slot| {
        let identity = Identity::parse(bytes.get(slot * COPY_BYTES..)?)?;
        Some((identity, slot as u64))
    });
    match slots.max_by_key(|(identity, _)| (identity.opening, identity.shown.last().copied())) {
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

    /// Replaces the copy beside the one that counts, which is in `slot`, and says where it is now. It is overwritten in
    /// place: no space is needed, and a torn write leaves the other copy as it was.
    fn write_over(&self, disk: &dyn Disk, file: &Path, slot: u64) -> Result<u64, StorageError> {
        let slot = 1 - slot;
        disk.overwrite(file, slot * COPY_BYTES as u64, &self.encode())
            .map_err(|error| StorageError::io(file, "writing the identity", &error))?;
        Ok(slot)
    }

    /// One copy: magic, opening, node, store, lanes, counts, incarnations, cluster, checksum.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(COPY_BYTES);
        copy.extend_from_slice(IDENTITY_MAGIC);
        copy.put_u64_le(self.opening);
        copy.put_u64_le(self.node.0);
        copy.put_u128_le(self.store.0);
        copy.put_u32_le(self.lanes);
        copy.put_u32_le(self.cluster.len() as u32);
        copy.put_u64_le(self.shown.len() as u64);
        for incarnation in &self.shown {
            copy.put_u64_le(*incarnation);
        }
        copy.extend_from_slice(self.cluster.as_bytes());
        let crc = crc32c::crc32c(&copy);
        copy.put_u32_le(crc);
        copy
    }

    /// What a copy says; none if it is not whole. What stands behind it does not matter.
    pub(crate) fn parse(copy: &[u8]) -> Option<Self> {
        if copy.len() < HEADER_BYTES || &copy[..8] != IDENTITY_MAGIC {
            return None;
        }
        let name_bytes = u32_at(copy, 44) as usize;
        let shown = usize::try_from(u64_at(copy, 48)).ok()?;
        if name_bytes > MAX_CLUSTER_BYTES || shown > MAX_SHOWN {
            return None;
        }
        let name_at = HEADER_BYTES + 8 * shown;
        let end = name_at + name_bytes;
        if copy.len() < end + 4 || crc32c::crc32c(&copy[..end]) != u32_at(copy, end) {
            return None;
        }
        let numbers = copy[HEADER_BYTES..name_at].chunks_exact(8);
        Some(Self {
            opening: u64_at(copy, 8),
            node: NodeId(u64_at(copy, 16)),
            store: StoreId(u128::from(u64_at(copy, 24)) | u128::from(u64_at(copy, 32)) << 64),
            lanes: u32_at(copy, 40),
            shown: numbers.map(|number| u64_at(number, 0)).collect(),
            cluster: String::from_utf8(copy[name_at..end].to_vec()).ok()?,
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
    fn each_open_is_counted_and_of_the_same_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = open(&path, "c", 1, 1).unwrap();
        let store = first.store();
        assert!(first.is_new());
        drop(first);
        for opening in 2..6 {
            let again = open(&path, "c", 1, 1).unwrap();
            assert_eq!(
                (again.opening(), again.store(), again.is_new()),
                (opening, store, false)
            );
        }
    }

    #[test]
    fn only_openings_that_were_shown_are_past() {
        let dir = tempfile::tempdir().unwrap();
        let mut past = Vec::new();
        for opening in 1..8 {
            let data_dir = open(dir.path(), "c", 1, 1).unwrap();
            assert_eq!(data_dir.past(), past);
            if opening % 3 != 0 {
                data_dir.show().unwrap();
                data_dir.show().unwrap();
                past.push(data_dir.incarnation());
            }
        }
        assert_eq!(past.len(), 5);
        assert!(past.is_sorted());
    }

    #[test]
    fn the_oldest_incarnations_are_forgotten() {
        let disk = crate::sim::SimDisk::new(5);
        let mut first = None;
        for _ in 0..MAX_SHOWN + 2 {
            let again = DataDir::open(Arc::new(disk.clone()), "/n", &"c".repeat(255), NodeId(1), 1);
            let again = again.unwrap();
            again.show().unwrap();
            first.get_or_insert(again.incarnation());
        }
        let last = DataDir::open(Arc::new(disk), "/n", &"c".repeat(255), NodeId(1), 1).unwrap();
        assert_eq!(last.past().len(), MAX_SHOWN);
        assert!(!last.past().contains(&first.unwrap()));
    }

    #[test]
    fn a_copy_that_was_put_back_shows_other_incarnations() {
        use crate::sim::{Keep, SimDisk};
        let disk = SimDisk::new(9);
        let open = |disk: &SimDisk| {
            DataDir::open(Arc::new(disk.clone()), "/n", "c", NodeId(1), 1).unwrap()
        };
        open(&disk).show().unwrap();
        let copy = disk.after_power_cut(Keep::Everything);
        let lost = open(&disk);
        lost.show().unwrap();
        for _ in 0..5 {
            let back = open(&copy);
            back.show().unwrap();
            assert_ne!(back.incarnation(), lost.incarnation());
            assert!(!back.past().contains(&lost.incarnation()));
        }
    }

    #[test]
    fn a_copy_that_a_failed_sync_left_in_the_cache_is_not_trusted() {
        use crate::sim::{Failure, Keep, SimDisk};
        let open = |disk: &SimDisk| {
            DataDir::open(Arc::new(disk.clone()), "/n", "c", NodeId(1), 1).unwrap()
        };
        let mut torn = 0;
        for seed in 0..40 {
            let disk = SimDisk::new(seed);
            let (path, file) = (Path::new("/n"), Path::new("/n/identity"));
            drop(open(&disk));
            let (mut identity, slot) = read_identity(&disk, path).unwrap().unwrap();
            identity.opening += 1;
            identity.shown = (0..MAX_SHOWN as u64).collect();
            disk.fail_syncs(Failure::Once);
            identity.write_over(&disk, file, slot).unwrap_err();
            // What is in the cache is whole, what is on the disk may be torn.
            let seen = disk.after_power_cut(Keep::Nothing).read(file).unwrap();
            let copy = &seen[(1 - slot as usize) * COPY_BYTES..];
            torn += u64::from(copy[..8] == IDENTITY_MAGIC[..] && Identity::parse(copy).is_none());
            disk.record_images();
            open(&disk).show().unwrap();
            for image in disk.take_images() {
                for keep in [Keep::Nothing, Keep::EvenPages, Keep::OddPages, Keep::Zeroed] {
                    assert!(open(&image.after_power_cut(keep)).opening() > 1);
                }
            }
        }
        assert!(torn > 0, "no failed sync left half a copy");
    }

    #[test]
    fn a_power_cut_while_an_incarnation_is_shown_leaves_the_ones_before() {
        use crate::sim::{Keep, SimDisk};
        let disk = SimDisk::new(3);
        let open = |disk: &SimDisk| {
            DataDir::open(Arc::new(disk.clone()), "/n", "c", NodeId(1), 1).unwrap()
        };
        open(&disk).show().unwrap();
        disk.set_capacity(disk.used());
        let known = open(&disk).past().to_vec();
        disk.record_images();
        let data_dir = open(&disk);
        data_dir.show().unwrap();
        let images = disk.take_images();
        assert!(!images.is_empty());
        for image in &images {
            for keep in [
                Keep::Nothing,
                Keep::Everything,
                Keep::Zeroed,
                Keep::NotTheLast,
            ] {
                let disk = image.after_power_cut(keep);
                disk.set_capacity(u64::MAX);
                let found = open(&disk).past().to_vec();
                assert!(found.starts_with(&known), "{keep:?}: {found:?}");
            }
        }
        drop(data_dir);
        assert_eq!(open(&disk).past().len(), known.len() + 1);
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
        bytes[COPY_BYTES + 20] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(open(dir.path(), "c", 1, 1).unwrap().opening(), 2);
        bytes[20] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert!(matches!(
            open(dir.path(), "c", 1, 1),
            Err(StorageError::Identity { .. })
        ));
    }
}

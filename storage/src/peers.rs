//! Owns what a data directory remembers of its peers: a file with two copies, of which the newer one counts.
//! Must never forget what it once remembered, whenever the power goes, and must remember on a full disk what it must refuse.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::BufMut;
use polyraft_raft::NodeId;

use crate::block::{u32_at, u64_at};
use crate::data_dir::{PeerSeen, StoreId};
use crate::disk::Disk;
use crate::error::StorageError;
use crate::format::PAGE_BYTES;

const PEERS: &str = "peers";
const MAGIC: &[u8; 8] = b"PRPEERS2";
/// Magic, generation and count.
const HEADER_BYTES: usize = 24;
const PEER_BYTES: usize = 32;

/// The peers that were seen, and where they are on the disk.
pub(crate) struct Peers {
    file: PathBuf,
    seen: BTreeMap<NodeId, PeerSeen>,
    /// Grows with each copy that is written.
    generation: u64,
    /// The copy that counts.
    slot: u64,
}

impl Peers {
    /// What the directory `dir` remembers; nothing without the file.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Self, StorageError> {
        let mut peers = Self {
            file: dir.join(PEERS),
            seen: BTreeMap::new(),
            generation: 0,
            slot: 0,
        };
        let bytes = match disk.read_stable(&peers.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(peers),
            bytes => bytes.map_err(|error| StorageError::io(&peers.file, "reading", &error))?,
        };
        let copy = |slot: u64| {
            let copy = bytes.get(slot as usize * PAGE_BYTES..)?;
            let (generation, seen) = parse(copy)?;
            Some((generation, slot, seen))
        };
        let newest = (0..2).filter_map(copy).max_by_key(|copy| copy.0);
        let Some((generation, slot, seen)) = newest else {
            return Err(StorageError::Damaged {
                path: peers.file,
                offset: 0,
                reason: "the memory of peers fails its checks".into(),
            });
        };
        (peers.generation, peers.slot, peers.seen) = (generation, slot, seen);
        Ok(peers)
    }

    pub(crate) fn seen(&self) -> &BTreeMap<NodeId, PeerSeen> {
        &self.seen
    }

    /// Remembers durably what was seen of a peer; does nothing when that is known already. After an error it is not
    /// remembered.
    pub(crate) fn note(
        &mut self,
        disk: &dyn Disk,
        peer: NodeId,
        seen: PeerSeen,
    ) -> Result<(), StorageError> {
        let before = self.seen.get(&peer).copied();
        if before == Some(seen) {
            return Ok(());
        }
        let mut all = self.seen.clone();
        all.insert(peer, seen);
        // Also an attempt that fails uses its number up: its copy may be there after all.
        self.generation += 1;
        let copy = encode(self.generation, &all);
        let mut slot = 0;
        let mut file = copy.clone();
        file.resize((2 * PAGE_BYTES).max(file.len()), 0);
        let mut written = disk.replace(&self.file, &[&file]);
        // A peer that must be refused from now on must be remembered on a full disk too. Overwriting needs no space, and
        // whatever becomes of it, the copy that counts stays as it is.
        if written.as_ref().is_err_and(is_full) && before.is_some() && copy.len() <= PAGE_BYTES {
            slot = 1 - self.slot;
            written = disk.overwrite(&self.file, slot * PAGE_BYTES as u64, &copy);
        }
        written.map_err(|error| StorageError::io(&self.file, "remembering a peer", &error))?;
        (self.seen, self.slot) = (all, slot);
        Ok(())
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

pub(crate) fn encode(generation: u64, seen: &BTreeMap<NodeId, PeerSeen>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * PAGE_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.put_u64_le(generation);
    bytes.put_u64_le(seen.len() as u64);
    for (node, seen) in seen {
        bytes.put_u64_le(node.0);
        bytes.put_u128_le(seen.store.0);
        bytes.put_u64_le(seen.incarnation);
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.put_u32_le(crc);
    bytes
}

/// The generation of a copy and what it says; none if it is not whole. What stands behind it does not matter.
pub(crate) fn parse(copy: &[u8]) -> Option<(u64, BTreeMap<NodeId, PeerSeen>)> {
    if copy.len() < HEADER_BYTES || &copy[..8] != MAGIC {
        return None;
    }
    let list = usize::try_from(u64_at(copy, 16)).ok()?;
    let end = list.checked_mul(PEER_BYTES)?.checked_add(HEADER_BYTES)?;
    if copy.len() < end.checked_add(4)? || crc32c::crc32c(&copy[..end]) != u32_at(copy, end) {
        return None;
    }
    let peer = |peer: &[u8]| {
        let store = StoreId(u128::from(u64_at(peer, 8)) | u128::from(u64_at(peer, 16)) << 64);
        let incarnation = u64_at(peer, 24);
        (NodeId(u64_at(peer, 0)), PeerSeen { store, incarnation })
    };
    let peers = copy[HEADER_BYTES..end].chunks_exact(PEER_BYTES);
    Some((u64_at(copy, 8), peers.map(peer).collect()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::data_dir::DataDir;
    use crate::sim::{Keep, SimDisk};

    fn open(disk: &SimDisk) -> DataDir {
        DataDir::open(Arc::new(disk.clone()), "/n", "c", NodeId(1), 1).unwrap()
    }

    fn seen(incarnation: u64) -> PeerSeen {
        let store = StoreId(7);
        PeerSeen { store, incarnation }
    }

    #[test]
    fn peers_are_remembered() {
        let disk = SimDisk::new(1);
        let dir = open(&disk);
        for incarnation in [3, 3, 4] {
            dir.note_peer(NodeId(2), seen(incarnation)).unwrap();
        }
        drop(dir);
        assert_eq!(open(&disk).peers(), BTreeMap::from([(NodeId(2), seen(4))]));
    }

    #[test]
    fn a_full_disk_does_not_keep_a_known_peer_from_being_remembered() {
        let disk = SimDisk::new(1);
        let dir = open(&disk);
        dir.note_peer(NodeId(2), seen(1)).unwrap();
        disk.set_capacity(disk.used());
        dir.note_peer(NodeId(2), seen(u64::MAX)).unwrap();
        dir.note_peer(NodeId(3), seen(1)).unwrap_err();
        drop(dir);
        let dir = open(&disk.after_power_cut(Keep::Nothing));
        assert_eq!(dir.peers(), BTreeMap::from([(NodeId(2), seen(u64::MAX))]));
    }

    #[test]
    fn a_power_cut_on_a_full_disk_leaves_what_was_remembered_before() {
        let disk = SimDisk::new(1);
        let dir = open(&disk);
        dir.note_peer(NodeId(2), seen(0)).unwrap();
        disk.set_capacity(disk.used());
        let first = disk.operations();
        disk.record_images();
        let mut ends = Vec::new();
        for incarnation in 1..5 {
            dir.note_peer(NodeId(2), seen(incarnation)).unwrap();
            ends.push(disk.operations());
        }
        let images = disk.take_images();
        let mut torn = 0;
        for (at, image) in images.iter().enumerate() {
            let done = ends.iter().filter(|end| **end <= first + at as u64).count() as u64;
            let keeps = [
                Keep::Nothing,
                Keep::Everything,
                Keep::Zeroed,
                Keep::NotTheLast,
            ];
            for keep in keeps {
                let disk = image.after_power_cut(keep);
                torn += u64::from(keep == Keep::Zeroed && image.has_unsynced_bytes());
                disk.set_capacity(u64::MAX);
                let found = open(&disk).peers()[&NodeId(2)].incarnation;
                assert!(
                    (done..=done + 1).contains(&found),
                    "{keep:?} at {at}: {found}, not {done}"
                );
            }
        }
        assert!(torn > 0, "no cut came between a write and its sync");
    }
}

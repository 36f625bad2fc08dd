//! Owns the peers that were added, moved or taken out while a node ran: where each is now, and what the node was opened with then.
//! Must never change anything in place: a power cut leaves the list as it was before or after a change.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use bytes::BufMut;
use polyraft_raft::NodeId;

use crate::block::{u16_at, u32_at, u64_at};
use crate::disk::Disk;
use crate::error::StorageError;

const ADDRESSES: &str = "addresses";
const MAGIC: &[u8; 8] = b"PRADDRS1";
/// Magic and count.
pub(crate) const HEADER_BYTES: usize = 16;
/// Kind, port and IP address.
const ADDRESS_BYTES: usize = 24;
pub(crate) const CHANGE_BYTES: usize = 8 + 2 * ADDRESS_BYTES;

/// What became of a peer while a node ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressChange {
    /// Its address as the node was opened with it; none: it was not among the peers.
    pub given: Option<SocketAddr>,
    /// Its address since; none: it was taken out.
    pub now: Option<SocketAddr>,
}

/// The changes that a data directory remembers.
pub(crate) struct Addresses {
    file: PathBuf,
    changes: BTreeMap<NodeId, AddressChange>,
}

impl Addresses {
    /// What the directory `dir` remembers; nothing without the file.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Self, StorageError> {
        let file = dir.join(ADDRESSES);
        let changes = match disk.read_stable(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(StorageError::io(&file, "reading", &error)),
            Ok(bytes) => parse(&bytes).ok_or_else(|| StorageError::Damaged {
                path: file.clone(),
                offset: 0,
                reason: "the addresses of peers fail their checks".into(),
            })?,
        };
        Ok(Self { file, changes })
    }

    pub(crate) fn changes(&self) -> &BTreeMap<NodeId, AddressChange> {
        &self.changes
    }

    /// Remembers a change durably, in place of an earlier one of that peer. After an error it is not remembered.
    pub(crate) fn note(
        &mut self,
        disk: &dyn Disk,
        peer: NodeId,
        change: AddressChange,
    ) -> Result<(), StorageError> {
        let mut changes = self.changes.clone();
        match change.given == change.now {
            true => changes.remove(&peer),
            false => changes.insert(peer, change),
        };
        if changes != self.changes {
            disk.replace(&self.file, &[&encode(&changes)])
                .map_err(|error| StorageError::io(&self.file, "remembering an address", &error))?;
            self.changes = changes;
        }
        Ok(())
    }
}

pub(crate) fn encode(changes: &BTreeMap<NodeId, AddressChange>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + changes.len() * CHANGE_BYTES + 4);
    bytes.extend_from_slice(MAGIC);
    bytes.put_u64_le(changes.len() as u64);
    for (node, change) in changes {
        bytes.put_u64_le(node.0);
        put_address(&mut bytes, change.given);
        put_address(&mut bytes, change.now);
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.put_u32_le(crc);
    bytes
}

fn put_address(bytes: &mut Vec<u8>, address: Option<SocketAddr>) {
    let (kind, ip, port) = match address {
        None => (0, [0; 16], 0),
        Some(SocketAddr::V4(at)) => (4, at.ip().to_ipv6_mapped().octets(), at.port()),
        Some(SocketAddr::V6(at)) => (6, at.ip().octets(), at.port()),
    };
    bytes.put_u32_le(kind);
    bytes.put_u16_le(port);
    bytes.put_u16_le(0);
    bytes.extend_from_slice(&ip);
}

pub(crate) fn parse(bytes: &[u8]) -> Option<BTreeMap<NodeId, AddressChange>> {
    if bytes.len() < HEADER_BYTES || &bytes[..8] != MAGIC {
        return None;
    }
    let list = usize::try_from(u64_at(bytes, 8)).ok()?;
    let end = list.checked_mul(CHANGE_BYTES)?.checked_add(HEADER_BYTES)?;
    if bytes.len() != end.checked_add(4)? || crc32c::crc32c(&bytes[..end]) != u32_at(bytes, end) {
        return None;
    }
    let change = |change: &[u8]| {
        let given = address(&change[8..])?;
        let now = address(&change[8 + ADDRESS_BYTES..])?;
        Some((NodeId(u64_at(change, 0)), AddressChange { given, now }))
    };
    let changes = bytes[HEADER_BYTES..end].chunks_exact(CHANGE_BYTES);
    changes.map(change).collect()
}

/// The outer `None` stands for what is no address.
fn address(bytes: &[u8]) -> Option<Option<SocketAddr>> {
    let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
    let v6 = Ipv6Addr::from(ip);
    let ip: IpAddr = match u32_at(bytes, 0) {
        0 => return Some(None),
        4 => v6.to_ipv4_mapped()?.into(),
        6 => v6.into(),
        _ => return None,
    };
    Some(Some(SocketAddr::new(ip, u16_at(bytes, 4))))
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

    fn at(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn changes_of_peers_outlive_a_power_cut() {
        let disk = SimDisk::new(1);
        let dir = open(&disk);
        assert!(dir.address_changes().is_empty());
        let added = AddressChange {
            given: None,
            now: at("10.0.0.4:9000"),
        };
        let moved = AddressChange {
            given: at("[fe80::2]:7"),
            now: at("127.0.0.1:1"),
        };
        let removed = AddressChange {
            given: at("10.0.0.3:65535"),
            now: None,
        };
        let all = [(4, added), (2, moved), (3, removed)];
        for (node, change) in all {
            dir.note_address(NodeId(node), change).unwrap();
        }
        drop(dir);
        let after = disk.after_power_cut(Keep::Nothing);
        let expected = all.map(|(node, change)| (NodeId(node), change));
        let dir = open(&after);
        assert_eq!(dir.address_changes(), BTreeMap::from(expected));
        // What is as it was given is no change.
        let back = AddressChange {
            now: moved.given,
            ..moved
        };
        dir.note_address(NodeId(2), back).unwrap();
        drop(dir);
        let dir = open(&after.after_power_cut(Keep::Nothing));
        let left: Vec<u64> = dir.address_changes().keys().map(|node| node.0).collect();
        assert_eq!(left, [3, 4]);
    }

    #[test]
    fn damage_is_refused_and_never_read() {
        let change = AddressChange {
            given: None,
            now: at("10.0.0.4:9000"),
        };
        let whole = encode(&BTreeMap::from([(NodeId(4), change)]));
        assert_eq!(parse(&whole).unwrap()[&NodeId(4)], change);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            assert_eq!(parse(&damaged), None, "byte {at}");
            assert_eq!(parse(&whole[..at]), None, "cut at {at}");
        }
    }
}

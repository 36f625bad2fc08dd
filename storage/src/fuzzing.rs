//! What must hold for any bytes that the log's decoders are given: the bodies of the fuzz targets in `tests/fuzz`, and
//! of a test over their seeds. It must never be part of a normal build, and never test what only valid bytes do.
//!
//! The first byte of an input is a switch: odd means that the checksums are mended before decoding, so that a
//! fuzzer gets behind them.

use bytes::BytesMut;
use polyraft_raft::Index;

use crate::addresses;
use crate::block::{BLOCK_HEADER_BYTES, BLOCK_MAGIC, EntryBlock, pack, u16_at, u32_at};
use crate::checkpoint::{CheckpointHeader, Held, Loaded, Section, load};
use crate::data_dir::Identity;
use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, CONTROL_HEADER_BYTES, Located, Record, RecordDamage, Records,
    SegmentHeader, put_create, put_hard_state, put_purge, put_relocated, put_tombstone,
    put_truncate,
};
use crate::group::Interned;
use crate::peers;
use crate::snapshot::{SnapshotMeta, parse_trailer, trailer};

/// The switch, and the bytes behind it.
fn split(data: &[u8]) -> Option<(bool, Vec<u8>)> {
    let (switch, bytes) = data.split_first()?;
    Some((switch & 1 == 1, bytes.to_vec()))
}

/// Puts the checksum of `covered` at `at`, if the bytes reach that far.
fn seal(bytes: &mut [u8], covered: std::ops::Range<usize>, at: usize) {
    if bytes.len() >= (at + 4).max(covered.end) && covered.start <= covered.end {
        let crc = crc32c::crc32c(&bytes[covered]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

fn seal_block(bytes: &mut [u8]) {
    let end = bytes.len();
    seal(bytes, BLOCK_HEADER_BYTES..end, 44);
    seal(bytes, 0..40, 40);
}

/// Mends the checksums of the block that begins here. Returns the length that it has by its header.
fn seal_first_block(bytes: &mut [u8]) -> usize {
    seal(bytes, 0..40, 40);
    let length = EntryBlock::encoded_len(bytes).unwrap_or(usize::MAX);
    if length <= bytes.len() {
        seal_block(&mut bytes[..length]);
    }
    length
}

/// An entry block: what parses has consistent entries, can be cut anywhere and be packed again.
pub fn block(data: &[u8]) {
    let Some((mend, mut bytes)) = split(data) else {
        return;
    };
    if mend {
        seal_first_block(&mut bytes);
    }
    let peeked = EntryBlock::peek(&bytes);
    let length = EntryBlock::encoded_len(&bytes);
    assert_eq!(peeked.is_ok(), length.is_ok());
    // Alone, and before whatever follows it.
    if let Ok((first, rest)) = EntryBlock::parse_first(&bytes) {
        let alone = EntryBlock::parse(&bytes[..bytes.len() - rest.len()]);
        let alone = alone.expect("the first of several is one by itself");
        assert_eq!(
            (alone.group(), alone.kind(), alone.range()),
            (first.group(), first.kind(), first.range())
        );
    }
    let Ok(block) = EntryBlock::parse(&bytes) else {
        return;
    };
    let (first, end) = (block.first(), block.end());
    assert_eq!(
        peeked.unwrap(),
        (block.group(), block.kind(), block.range())
    );
    assert_eq!(length.unwrap(), block.len_bytes());
    // Blocks of a great many empty entries take no bytes, but time.
    if end.0 - first.0 > 4096 {
        return;
    }
    let payloads: Vec<&[u8]> = block.entries().map(|(_, payload)| payload).collect();
    assert_eq!(payloads.len() as u64, end.0 - first.0);
    assert!(payloads.iter().map(|p| p.len()).sum::<usize>() <= block.len_bytes());
    let mut again = BytesMut::new();
    pack(
        &mut again,
        block.group(),
        block.range(),
        block.kind(),
        &payloads,
    )
    .expect("it fitted before");
    let again = EntryBlock::parse(&again).expect("what is packed is parsed");
    assert!(again.entries().eq(block.entries()));
    let middle = Index(first.0 + (end.0 - first.0) / 2);
    if first < middle {
        let mut cut = BytesMut::new();
        block
            .cut(first, middle, &mut cut)
            .expect("inside the block");
        assert!(cut.len() as u64 <= block.cut_bytes(first, middle));
        let cut = EntryBlock::parse(&cut).expect("what is cut is parsed");
        assert!(
            cut.entries()
                .eq(block.entries().take((middle.0 - first.0) as usize))
        );
    }
}

/// Mends the checksums of the records in a batch body, as far as records follow each other.
fn seal_records(body: &mut [u8]) {
    let mut at = 0;
    while body.len() - at >= CONTROL_HEADER_BYTES {
        let rest = &mut body[at..];
        let bytes = if u16_at(rest, 0) == BLOCK_MAGIC {
            seal_first_block(rest)
        } else {
            let payload = u32_at(rest, 4) as usize;
            let bytes = CONTROL_HEADER_BYTES + payload.next_multiple_of(8);
            if bytes <= rest.len() {
                let mut payload = CONTROL_HEADER_BYTES..CONTROL_HEADER_BYTES + payload;
                if rest[3] == RELOCATED {
                    seal_block(&mut rest[payload.clone()]);
                    payload.end = payload.end.min(CONTROL_HEADER_BYTES + BLOCK_HEADER_BYTES);
                }
                seal(rest, payload, 16);
            }
            seal(rest, 0..20, 20);
            bytes
        };
        at = at.saturating_add(bytes).min(body.len());
    }
}

/// The number of the kind of record that holds a block.
const RELOCATED: u8 = 6;

/// What a lane reads from a segment: headers, and the records of batches.
pub fn segment(data: &[u8]) {
    headers(data);
    records(data);
}

/// The records of a batch body. They follow each other without gaps, checking them changes nothing but finding
/// damage, and each control record comes back as it was when written again.
fn records(data: &[u8]) {
    let Some((mend, mut body)) = split(data) else {
        return;
    };
    if mend {
        seal_records(&mut body);
    }
    let trusting: Vec<_> = Records::new(&body, false).collect();
    let mut at = 0;
    for (number, found) in Records::new(&body, true).enumerate() {
        match found {
            Ok(located) => {
                assert_eq!(trusting[number].as_ref(), Ok(&located));
                assert!(located.offset as usize >= at, "{located:?} overlaps");
                at = located.offset as usize + located.bytes as usize;
                assert!(at <= body.len(), "{located:?} reaches too far");
                write_again(&body[located.offset as usize..at], &located);
            }
            Err(RecordDamage {
                group: None,
                offset,
                ..
            }) => {
                assert!(offset as usize >= at);
                assert_eq!(trusting.len(), number + 1, "nothing follows lost ground");
            }
            Err(RecordDamage { offset, .. }) => assert!(offset as usize >= at),
        }
    }
}

fn write_again(bytes: &[u8], located: &Located) {
    let mut again = BytesMut::new();
    match &located.record {
        Record::Block { .. } => return,
        Record::Create(creation) => put_create(&mut again, located.group, creation),
        Record::HardState(state) => put_hard_state(&mut again, located.group, state),
        Record::Truncate { from } => put_truncate(&mut again, located.group, *from),
        Record::Purge {
            through,
            configuration,
        } => put_purge(&mut again, located.group, *through, configuration.as_ref()),
        Record::Tombstone(tombstone) => put_tombstone(&mut again, located.group, tombstone),
        Record::Relocated { range } => {
            let block = &bytes[CONTROL_HEADER_BYTES..];
            let length = EntryBlock::encoded_len(block).expect("the record was taken");
            let Ok(block) = EntryBlock::parse(&block[..length]) else {
                // The end offsets inside a block are checked when it is read.
                return;
            };
            assert_eq!((block.group(), block.range()), (located.group, *range));
            put_relocated(&mut again, &block);
        }
    }
    let read = Records::new(&again, true)
        .next()
        .expect("it has one record");
    assert_eq!(read.expect("it is intact").record, located.record);
}

/// The headers of segments and batches. What parses is written again as it was.
fn headers(data: &[u8]) {
    let Some((mend, mut bytes)) = split(data) else {
        return;
    };
    if mend {
        seal(&mut bytes, 0..64, 64);
    }
    if let Ok(header) = SegmentHeader::parse(&bytes) {
        assert_eq!(header.encode()[..68], bytes[..68]);
    }
    if mend {
        seal(&mut bytes, 0..60, 60);
    }
    if let Some(header) = BatchHeader::parse(&bytes) {
        let mut again = [0; BATCH_HEADER_BYTES];
        header.encode(&mut again);
        assert_eq!(BatchHeader::parse(&again), Some(header));
        assert!(header.padded() >= u64::from(header.body_bytes));
    }
}

/// A checkpoint file. What loads is written again, and loads again as the same.
pub fn checkpoint(data: &[u8]) {
    let Some((mend, mut bytes)) = split(data) else {
        return;
    };
    if mend {
        let end = bytes.len();
        seal(&mut bytes, 88..end, 80);
        seal(&mut bytes, 0..84, 84);
    }
    let Some(once) = load_and_write(&bytes) else {
        return;
    };
    let twice = load_and_write(&once);
    assert_eq!(twice.as_ref(), Some(&once));
}

/// The small files of a data directory, and the ends of a snapshot: what is read comes back as it was when written again.
/// The switch's other bits choose which.
pub fn files(data: &[u8]) {
    let Some((mend, mut bytes)) = split(data) else {
        return;
    };
    let sealed = |bytes: &mut Vec<u8>, end: usize| {
        if mend && end < bytes.len() {
            seal(bytes, 0..end, end);
        }
    };
    match (data[0] >> 1) % 5 {
        0 => {
            if bytes.len() >= 56 {
                let listed = crate::block::u64_at(&bytes, 48).min(1 << 20) as usize;
                let end = 56 + 8 * listed + u32_at(&bytes, 44).min(1 << 20) as usize;
                sealed(&mut bytes, end);
            }
            if let Some(identity) = Identity::parse(&bytes) {
                assert!(bytes.starts_with(&identity.encode()));
            }
        }
        1 => {
            if bytes.len() >= 24 {
                let listed = crate::block::u64_at(&bytes, 16).min(1 << 20) as usize;
                sealed(&mut bytes, 24 + 32 * listed);
            }
            if let Some((generation, seen)) = peers::parse(&bytes) {
                let again = peers::encode(generation, &seen);
                assert_eq!(peers::parse(&again), Some((generation, seen)));
            }
        }
        2 => {
            if bytes.len() >= 48 {
                let end = 48 + u32_at(&bytes, 12).min(1 << 20) as usize;
                sealed(&mut bytes, end);
            }
            if let Ok((meta, length)) = SnapshotMeta::parse(&bytes) {
                let again = meta.encode();
                assert!(length <= bytes.len());
                assert_eq!(SnapshotMeta::parse(&again), Ok((meta, again.len())));
            }
        }
        3 => {
            if bytes.len() >= addresses::HEADER_BYTES {
                let listed = crate::block::u64_at(&bytes, 8).min(1 << 20) as usize;
                let end = addresses::HEADER_BYTES + addresses::CHANGE_BYTES * listed;
                sealed(&mut bytes, end);
            }
            if let Some(changes) = addresses::parse(&bytes) {
                let again = addresses::encode(&changes);
                assert_eq!(addresses::parse(&again), Some(changes));
            }
        }
        _ => {
            sealed(&mut bytes, 16);
            if let Ok((body, checksum)) = parse_trailer(&bytes) {
                assert_eq!(trailer(body, checksum)[..], bytes);
            }
        }
    }
}

/// The file of a checkpoint with one section.
pub(crate) fn checkpoint_file(header: &CheckpointHeader, section: &Section) -> Vec<u8> {
    let mut file = header.encode(std::slice::from_ref(section));
    section
        .pieces()
        .for_each(|piece| file.extend_from_slice(piece));
    file
}

fn load_and_write(file: &[u8]) -> Option<Vec<u8>> {
    let mut section = Section::default();
    let mut patches = Vec::new();
    let each = |Loaded {
                    group,
                    position,
                    what,
                }| match what {
        Held::Log(log) => section.put_group(group, &log, position, &mut patches),
        Held::Tombstone(tombstone) => section.put_tombstone(group, &tombstone, position),
    };
    let header = load(file, &mut Interned::default(), each).ok()?;
    assert_eq!(header.entries, section.entries);
    assert!(patches.is_empty(), "a checkpoint names places, not turns");
    Some(checkpoint_file(&header, &section))
}

#[cfg(test)]
#[path = "../../tests/fuzz/seeds.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use polyraft_raft::{
        Configuration, EntryRange, GroupId, HardState, Life, LogPosition, NodeId, Term,
    };

    use super::*;
    use crate::addresses::AddressChange;
    use crate::batch::Lsn;
    use crate::block::EntryKind;
    use crate::checkpoint::{Position, ReplayFrom};
    use crate::data_dir::{PeerSeen, StoreId};
    use crate::group::{Creation, GroupLog};
    use crate::tombstone::{Ending, Tombstone};

    #[test]
    fn kept_inputs_do_no_harm() {
        kept::try_all("block", block);
        kept::try_all("segment", segment);
        kept::try_all("checkpoint", checkpoint);
        kept::try_all("files", files);
    }

    /// A seed that does not decode teaches a fuzzer nothing. `UPDATE=1` writes the seeds anew.
    #[test]
    fn seeds_decode() {
        for (target, name, data) in seeds() {
            let data = kept::seed(target, name, &data);
            let bytes = &data[1..];
            let decodes = match (target, name) {
                ("block", _) => EntryBlock::parse(bytes).is_ok(),
                ("files", "identity") => Identity::parse(bytes).is_some(),
                ("files", "peers") => peers::parse(bytes).is_some(),
                ("files", "snapshot") => SnapshotMeta::parse(bytes).is_ok(),
                ("files", "addresses") => addresses::parse(bytes).is_some(),
                ("files", _) => parse_trailer(bytes).is_ok(),
                (_, "records" | "moved") => Records::new(bytes, true).all(|record| record.is_ok()),
                ("segment", _) => {
                    SegmentHeader::parse(bytes).is_ok() || BatchHeader::parse(bytes).is_some()
                }
                _ => load_and_write(bytes).as_deref() == Some(bytes),
            };
            assert!(decodes, "{target}/{name}");
        }
    }
    /// Valid inputs for the targets, by target and name.
    fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
        let group = GroupId(7);
        let position = LogPosition {
            term: Term(3),
            index: Index(9),
        };
        let state = HardState {
            term: Term(3),
            vote: Some(NodeId(2)),
            commit: Index(9),
        };
        let joint = Configuration::joint(
            [1, 2, 3].map(NodeId),
            [3, 4].map(NodeId),
            [5].map(NodeId),
            [4].map(NodeId),
        );
        let packed = |kind, payloads: &[&str]| {
            let range = EntryRange {
                term: Term(3),
                first: Index(10),
                end: Index(10 + payloads.len() as u64),
            };
            let mut bytes = BytesMut::new();
            pack(&mut bytes, group, range, kind, payloads).unwrap();
            bytes.freeze()
        };
        let equal = packed(EntryKind::Normal, &["four", "five"]);
        let varied = packed(EntryKind::Normal, &["", "put a", "delete b"]);
        let noop = packed(EntryKind::Noop, &[""]);
        let mut body = BytesMut::new();
        let creation = Creation {
            life: Life::new(5).unwrap(),
            joined: Index(77),
            is_witness: false,
            configuration: joint.clone(),
        };
        let removed = Tombstone {
            ending: Ending::Removed,
            term: Term(4),
            vote: Some(NodeId(3)),
            at: Index(40),
            ..Tombstone::destroyed(Life::LAST)
        };
        put_create(&mut body, group, &creation);
        put_hard_state(&mut body, group, &state);
        body.extend_from_slice(&varied);
        put_truncate(&mut body, group, Index(11));
        put_purge(&mut body, group, position, None);
        put_purge(&mut body, group, position, Some(&joint));
        put_tombstone(&mut body, GroupId(8), &removed);
        let mut moved = BytesMut::new();
        put_relocated(&mut moved, &EntryBlock::parse(&equal).unwrap());
        let segment = SegmentHeader {
            lane: 1,
            store: 5,
            sequence: 4,
            salt: 99,
            bytes: 1 << 20,
            incarnation: 2,
        };
        let mut batch = [0; BATCH_HEADER_BYTES];
        BatchHeader {
            salt: 99,
            lsn: 12,
            last_durable: 11,
            body_bytes: body.len() as u32,
            records: 6,
            incarnation: 2,
            body_crc: crc32c::crc32c(&body),
        }
        .encode(&mut batch);
        let seed = |bytes: &[u8]| [&[1], bytes].concat();
        let file = |kind: u8, bytes: &[u8]| [&[kind << 1 | 1], bytes].concat();
        let identity = Identity {
            cluster: "eu-1.prod".into(),
            node: NodeId(3),
            store: StoreId(1 << 70),
            opening: 9,
            lanes: 2,
            shown: vec![4, 9],
        };
        let peer = PeerSeen {
            store: StoreId(5),
            incarnation: 77,
        };
        let meta = SnapshotMeta {
            group,
            incarnation: 0,
            last: position,
            configuration: joint.clone(),
        };
        let at = |text: &str| Some(text.parse().unwrap());
        let other = AddressChange {
            given: at("10.0.0.3:9000"),
            now: at("[fe80::2]:7"),
        };
        let removed = AddressChange {
            given: at("10.0.0.4:9000"),
            now: None,
        };
        let elsewhere = [(NodeId(3), other), (NodeId(4), removed)].into();
        vec![
            ("files", "identity", file(0, &identity.encode())),
            (
                "files",
                "peers",
                file(1, &peers::encode(8, &[(NodeId(2), peer)].into())),
            ),
            ("files", "snapshot", file(2, &meta.encode())),
            (
                "files",
                "addresses",
                file(3, &addresses::encode(&elsewhere)),
            ),
            ("files", "trailer", file(4, &trailer(4096, 99))),
            ("block", "equal", seed(&equal)),
            ("block", "varied", seed(&varied)),
            ("block", "noop", seed(&noop)),
            ("segment", "records", seed(&body)),
            ("segment", "moved", seed(&moved)),
            ("segment", "header", seed(&segment.encode()[..68])),
            ("segment", "batch", seed(&batch)),
            (
                "checkpoint",
                "groups",
                seed(&checkpoint_of(state, position, joint)),
            ),
        ]
    }

    /// A checkpoint of a group with blocks, a faulty one, and a tombstone.
    fn checkpoint_of(state: HardState, base: LogPosition, configuration: Configuration) -> Vec<u8> {
        let mut log = GroupLog::new(configuration.into());
        log.life = Life::new(3).unwrap();
        log.begin(Index(12), Term(2));
        log.hard_state = state;
        log.base = base;
        for first in [10, 14] {
            let range = EntryRange {
                term: Term(3),
                first: Index(first),
                end: Index(first + 4),
            };
            log.append(range, crate::index::Place::segment(4), 4096, 200);
        }
        let position = Position {
            lsn: Lsn(11),
            offset: 64,
        };
        let mut section = Section::default();
        section.put_group(GroupId(7), &log, position, &mut Vec::new());
        log.fault = Some(crate::damage::LogDamage::of_log("rot", Index(17)));
        section.put_group(GroupId(9), &log, position, &mut Vec::new());
        section.put_tombstone(GroupId(8), &Tombstone::destroyed(Life::FIRST), position);
        let header = CheckpointHeader {
            lane: 1,
            store: 5,
            replay: ReplayFrom {
                segment: 4,
                offset: 8192,
                lsn: Lsn(12),
            },
            durable: Lsn(11),
            entries: section.entries,
        };
        checkpoint_file(&header, &section)
    }
}

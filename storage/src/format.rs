//! Owns the bytes of segment headers, batch headers and control records (docs/wal-format.md has the maps).
//! Must never do I/O, and never trust a length before it has been held against the bytes at hand.

use bytes::{BufMut, BytesMut};
use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, Life, LogPosition, NodeId, Term,
};

use crate::block::{
    BLOCK_HEADER_BYTES, BLOCK_MAGIC, EntryBlock, EntryKind, is_intact, u16_at, u32_at, u64_at,
};
use crate::damage::Lost;
use crate::group::Creation;
use crate::index::SEGMENT_LIMIT;
use crate::tombstone::{Ending, Tombstone};

/// Unit of batch alignment and of everything that is written in place.
pub const PAGE_BYTES: usize = 4096;
/// The first batch of a segment starts here.
pub const SEGMENT_HEADER_BYTES: u64 = PAGE_BYTES as u64;
/// Bytes of a batch header; records follow.
pub const BATCH_HEADER_BYTES: usize = 64;
/// Bytes of a control record's header; its payload follows.
pub const CONTROL_HEADER_BYTES: usize = 24;

const SEGMENT_MAGIC: &[u8; 8] = b"PRWALSEG";
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"PRBT");
const CONTROL_MAGIC: u16 = u16::from_le_bytes(*b"PR");
const VERSION: u16 = 2;

/// The header of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The lane it belongs to.
    pub lane: u32,
    /// The data directory's store id: a file copied in from elsewhere is recognised.
    pub store: u128,
    /// Position of the segment in the lane's history; grows with each preparation, gaps are allowed.
    pub sequence: u64,
    /// Fresh for each preparation; batches repeat it, so what an earlier use left behind cannot pass for a batch.
    pub salt: u64,
    /// Length of the file.
    pub bytes: u64,
    /// The node's incarnation that prepared it.
    pub incarnation: u64,
}

impl SegmentHeader {
    /// The header's page.
    pub fn encode(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(PAGE_BYTES);
        page.extend_from_slice(SEGMENT_MAGIC);
        page.put_u32_le(u32::from(VERSION));
        page.put_u32_le(self.lane);
        page.put_u128_le(self.store);
        page.put_u64_le(self.sequence);
        page.put_u64_le(self.salt);
        page.put_u64_le(self.bytes);
        page.put_u64_le(self.incarnation);
        let crc = crc32c::crc32c(&page);
        page.put_u32_le(crc);
        page.resize(PAGE_BYTES, 0);
        page
    }

    /// Reads a header page; the error says what does not fit.
    pub fn parse(page: &[u8]) -> Result<Self, &'static str> {
        if page.len() < 68 || &page[..8] != SEGMENT_MAGIC {
            return Err("no segment header");
        }
        if crc32c::crc32c(&page[..64]) != u32_at(page, 64) {
            return Err("segment header checksum mismatch");
        }
        if u32_at(page, 8) != u32::from(VERSION) {
            return Err("segment of an unknown format version");
        }
        if u64_at(page, 32) >= SEGMENT_LIMIT {
            return Err("segment with an impossible number");
        }
        Ok(Self {
            lane: u32_at(page, 12),
            store: u128::from(u64_at(page, 16)) | u128::from(u64_at(page, 24)) << 64,
            sequence: u64_at(page, 32),
            salt: u64_at(page, 40),
            bytes: u64_at(page, 48),
            incarnation: u64_at(page, 56),
        })
    }
}

/// The header of a batch: what one barrier made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The segment's salt.
    pub salt: u64,
    /// Number of the batch in its lane, from 1, without gaps.
    pub lsn: u64,
    /// Highest batch known durable when this one was written.
    pub last_durable: u64,
    /// Bytes of records after the header, padding not counted.
    pub body_bytes: u32,
    /// Number of records.
    pub records: u32,
    /// The node's incarnation that wrote it.
    pub incarnation: u64,
    /// crc32c of the records.
    pub body_crc: u32,
}

impl BatchHeader {
    /// Writes the header into the first bytes of a batch.
    pub fn encode(&self, into: &mut [u8]) {
        into[0..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        into[4..8].copy_from_slice(&u32::from(VERSION).to_le_bytes());
        into[8..16].copy_from_slice(&self.salt.to_le_bytes());
        into[16..24].copy_from_slice(&self.lsn.to_le_bytes());
        into[24..32].copy_from_slice(&self.last_durable.to_le_bytes());
        into[32..36].copy_from_slice(&self.body_bytes.to_le_bytes());
        into[36..40].copy_from_slice(&self.records.to_le_bytes());
        into[40..48].copy_from_slice(&self.incarnation.to_le_bytes());
        into[48..52].copy_from_slice(&self.body_crc.to_le_bytes());
        into[52..60].fill(0);
        let crc = crc32c::crc32c(&into[..60]);
        into[60..64].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header whose own checksum matches; anything else is `None`.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < BATCH_HEADER_BYTES || u32_at(bytes, 0) != BATCH_MAGIC {
            return None;
        }
        if crc32c::crc32c(&bytes[..60]) != u32_at(bytes, 60)
            || u32_at(bytes, 4) != u32::from(VERSION)
        {
            return None;
        }
        Some(Self {
            salt: u64_at(bytes, 8),
            lsn: u64_at(bytes, 16),
            last_durable: u64_at(bytes, 24),
            body_bytes: u32_at(bytes, 32),
            records: u32_at(bytes, 36),
            incarnation: u64_at(bytes, 40),
            body_crc: u32_at(bytes, 48),
        })
    }

    /// Bytes that the batch takes in its segment.
    pub fn padded(&self) -> u64 {
        padded(self.body_bytes as usize)
    }
}

/// Bytes that a batch with `body` bytes of records takes in its segment.
pub fn padded(body: usize) -> u64 {
    (BATCH_HEADER_BYTES + body).next_multiple_of(PAGE_BYTES) as u64
}

/// One record of a batch, decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// An entry block, exactly as packed.
    Block {
        /// Its entries.
        range: EntryRange,
        /// What they are for.
        kind: EntryKind,
        /// What those entries say who say who the members are.
        configurations: Vec<(Index, Configuration)>,
    },
    /// A replica begins.
    Create(Creation),
    /// Term, vote and commit hint.
    HardState(HardState),
    /// Entries from here on are gone.
    Truncate {
        /// First index that goes.
        from: Index,
    },
    /// Entries up to here are gone.
    Purge {
        /// Last position that goes.
        through: LogPosition,
        /// The members as of there, when a snapshot took the place of the entries.
        configuration: Option<Configuration>,
    },
    /// The replica is over and must not come back by itself.
    Tombstone(Tombstone),
    /// An entry block that was written before and moved here; it begins `CONTROL_HEADER_BYTES` into the record.
    Relocated {
        /// Its entries.
        range: EntryRange,
    },
}

/// A record with its place in the batch body.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// Byte offset in the body.
    pub offset: u32,
    /// Bytes it takes.
    pub bytes: u32,
    /// The group it belongs to.
    pub group: GroupId,
    /// What it says.
    pub record: Record,
}

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordDamage {
    /// Byte offset in the body.
    pub offset: u32,
    /// Whose record it was, when its header is intact; reading may then go on behind it.
    pub group: Option<GroupId>,
    /// What it said, as far as that header tells.
    pub lost: Lost,
    /// What is wrong.
    pub reason: &'static str,
}

/// Walks the records of a batch body. Stops after damage that cannot be attributed to a group.
pub struct Records<'a> {
    body: &'a [u8],
    at: usize,
    verify: bool,
}

impl<'a> Records<'a> {
    /// `verify` checks each record's own checksum; without it the caller has checked the batch as a whole.
    pub fn new(body: &'a [u8], verify: bool) -> Self {
        Self {
            body,
            at: 0,
            verify,
        }
    }

    fn next_record(&mut self) -> Result<Located, RecordDamage> {
        let offset = self.at as u32;
        let rest = &self.body[self.at..];
        let unknown = |reason| RecordDamage {
            offset,
            group: None,
            lost: Lost::Life,
            reason,
        };
        if rest.len() < CONTROL_HEADER_BYTES {
            return Err(unknown("the record is cut short"));
        }
        if u16_at(rest, 0) == BLOCK_MAGIC {
            let (group, kind, range, bytes) = block_header(rest).map_err(unknown)?;
            self.at += bytes;
            let damage = |reason| RecordDamage {
                offset,
                group: Some(group),
                lost: Lost::Entries(range.last()),
                reason,
            };
            if self.verify && !is_intact(&rest[..bytes]) {
                return Err(damage("an entry block fails its checksum"));
            }
            let configurations = match kind {
                EntryKind::Configuration => EntryBlock::parse(&rest[..bytes])
                    .ok()
                    .and_then(|block| block_configurations(&block))
                    .ok_or_else(|| damage("an entry does not say who the members are"))?,
                _ => Vec::new(),
            };
            return Ok(Located {
                offset,
                bytes: bytes as u32,
                group,
                record: Record::Block {
                    range,
                    kind,
                    configurations,
                },
            });
        }
        if u16_at(rest, 0) != CONTROL_MAGIC {
            return Err(unknown("no record begins here"));
        }
        if crc32c::crc32c(&rest[..20]) != u32_at(rest, 20) {
            return Err(unknown("a record header fails its checksum"));
        }
        let payload_bytes = u32_at(rest, 4) as usize;
        let bytes = CONTROL_HEADER_BYTES + payload_bytes.next_multiple_of(8);
        if bytes > rest.len() {
            return Err(unknown("a record is longer than its batch"));
        }
        let group = GroupId(u64_at(rest, 8));
        let payload = &rest[CONTROL_HEADER_BYTES..CONTROL_HEADER_BYTES + payload_bytes];
        self.at += bytes;
        let damage = |reason| RecordDamage {
            offset,
            group: Some(group),
            lost: lost_with(rest[3]),
            reason,
        };
        if self.verify && control_crc(rest[3], payload) != u32_at(rest, 16) {
            return Err(damage("a record fails its checksum"));
        }
        let record = control_payload(rest[3], rest[2], group, payload)
            .ok_or_else(|| damage("a record of unknown form"))?;
        if self.verify && rest[3] == RELOCATED && !is_intact(payload) {
            return Err(damage("a relocated entry block fails its checksum"));
        }
        Ok(Located {
            offset,
            bytes: bytes as u32,
            group,
            record,
        })
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Located, RecordDamage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.body.len() {
            return None;
        }
        let item = self.next_record();
        if matches!(item, Err(RecordDamage { group: None, .. })) {
            self.at = self.body.len();
        }
        Some(item)
    }
}

fn block_header(rest: &[u8]) -> Result<(GroupId, EntryKind, EntryRange, usize), &'static str> {
    let bytes =
        EntryBlock::encoded_len(rest).map_err(|_| "an entry block header fails its checks")?;
    if bytes > rest.len() {
        return Err("an entry block is longer than its batch");
    }
    let (group, kind, range) =
        EntryBlock::peek(rest).map_err(|_| "an entry block header fails its checks")?;
    Ok((group, kind, range, bytes))
}

/// What the entries of a block say of the members, in their order; nothing when they are of another kind.
///
/// `None` when one of them can't be read.
pub fn block_configurations(block: &EntryBlock<'_>) -> Option<Vec<(Index, Configuration)>> {
    if block.kind() != EntryKind::Configuration {
        return Some(Vec::new());
    }
    let parse = |(index, payload)| Some((index, parse_configuration(payload)?));
    block.entries().map(parse).collect()
}

const CREATE: u8 = 1;
const HARD_STATE: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
const TOMBSTONE: u8 = 5;
const RELOCATED: u8 = 6;

/// What is lost with a control record of which only the header is intact.
fn lost_with(kind: u8) -> Lost {
    match kind {
        HARD_STATE => Lost::Vote,
        TRUNCATE | RELOCATED => Lost::Less,
        PURGE => Lost::Begin,
        _ => Lost::Life,
    }
}
/// In the flags of a create record: the replica stores no payload.
const WITNESS: u32 = 1;

fn control_payload(kind: u8, version: u8, group: GroupId, payload: &[u8]) -> Option<Record> {
    if u16::from(version) != VERSION {
        return None;
    }
    match (kind, payload.len()) {
        (CREATE, 16..) => Some(Record::Create(Creation {
            life: Life::new(u32_at(payload, 0))?,
            joined: Index(u64_at(payload, 8)),
            is_witness: match u32_at(payload, 4) {
                0 => false,
                WITNESS => true,
                _ => return None,
            },
            configuration: parse_configuration(&payload[16..])?,
        })),
        (HARD_STATE, 32) => Some(Record::HardState(HardState {
            term: Term(u64_at(payload, 0)),
            vote: (u64_at(payload, 8) != 0).then(|| NodeId(u64_at(payload, 16))),
            commit: Index(u64_at(payload, 24)),
        })),
        (TRUNCATE, 8) => Some(Record::Truncate {
            from: Index(u64_at(payload, 0)),
        }),
        (PURGE, 16..) => Some(Record::Purge {
            through: LogPosition {
                term: Term(u64_at(payload, 0)),
                index: Index(u64_at(payload, 8)),
            },
            configuration: match &payload[16..] {
                [] => None,
                configuration => Some(parse_configuration(configuration)?),
            },
        }),
        (TOMBSTONE, 32) => Some(Record::Tombstone(Tombstone {
            life: Life::new(u32_at(payload, 0))?,
            ending: match payload[4] {
                0 => Ending::Destroyed,
                1 => Ending::Removed,
                _ => return None,
            },
            term: Term(u64_at(payload, 8)),
            vote: (payload[5] != 0).then(|| NodeId(u64_at(payload, 16))),
            at: Index(u64_at(payload, 24)),
        })),
        (RELOCATED, _) => {
            let (owner, _, range, bytes) = block_header(payload).ok()?;
            (owner == group && bytes == payload.len()).then_some(Record::Relocated { range })
        }
        _ => None,
    }
}

/// Appends the record that creates a replica.
pub fn put_create(buffer: &mut BytesMut, group: GroupId, creation: &Creation) {
    let mut payload = Vec::new();
    payload.put_u32_le(creation.life.get());
    payload.put_u32_le(if creation.is_witness { WITNESS } else { 0 });
    payload.put_u64_le(creation.joined.0);
    put_configuration(&mut payload, &creation.configuration);
    put_control(buffer, CREATE, group, &payload);
}

/// Appends a hard state.
pub fn put_hard_state(buffer: &mut BytesMut, group: GroupId, state: &HardState) {
    let mut payload = [0; 32];
    payload[0..8].copy_from_slice(&state.term.0.to_le_bytes());
    payload[8..16].copy_from_slice(&u64::from(state.vote.is_some()).to_le_bytes());
    payload[16..24].copy_from_slice(&state.vote.map_or(0, |node| node.0).to_le_bytes());
    payload[24..32].copy_from_slice(&state.commit.0.to_le_bytes());
    put_control(buffer, HARD_STATE, group, &payload);
}

/// Appends a truncation.
pub fn put_truncate(buffer: &mut BytesMut, group: GroupId, from: Index) {
    put_control(buffer, TRUNCATE, group, &from.0.to_le_bytes());
}

/// Appends a purge; with the members as of `through` if entries that are not there may have changed them.
pub fn put_purge(
    buffer: &mut BytesMut,
    group: GroupId,
    through: LogPosition,
    configuration: Option<&Configuration>,
) {
    let mut payload = Vec::with_capacity(16);
    payload.put_u64_le(through.term.0);
    payload.put_u64_le(through.index.0);
    if let Some(configuration) = configuration {
        put_configuration(&mut payload, configuration);
    }
    put_control(buffer, PURGE, group, &payload);
}

/// Appends a tombstone.
pub fn put_tombstone(buffer: &mut BytesMut, group: GroupId, tombstone: &Tombstone) {
    let mut payload = [0; 32];
    payload[0..4].copy_from_slice(&tombstone.life.get().to_le_bytes());
    payload[4] = (tombstone.ending == Ending::Removed).into();
    payload[5] = tombstone.vote.is_some().into();
    payload[8..16].copy_from_slice(&tombstone.term.0.to_le_bytes());
    payload[16..24].copy_from_slice(&tombstone.vote.map_or(0, |node| node.0).to_le_bytes());
    payload[24..32].copy_from_slice(&tombstone.at.0.to_le_bytes());
    put_control(buffer, TOMBSTONE, group, &payload);
}

/// Appends a block that moves.
pub fn put_relocated(buffer: &mut BytesMut, block: &EntryBlock<'_>) {
    put_control(buffer, RELOCATED, block.group(), block.as_bytes());
}

fn put_control(buffer: &mut BytesMut, kind: u8, group: GroupId, payload: &[u8]) {
    let start = buffer.len();
    buffer.put_u16_le(CONTROL_MAGIC);
    buffer.put_u8(VERSION as u8);
    buffer.put_u8(kind);
    buffer.put_u32_le(payload.len() as u32);
    buffer.put_u64_le(group.0);
    buffer.put_u32_le(control_crc(kind, payload));
    let crc = crc32c::crc32c(&buffer[start..]);
    buffer.put_u32_le(crc);
    buffer.put_slice(payload);
    buffer.put_bytes(0, payload.len().next_multiple_of(8) - payload.len());
}

/// A relocated block carries its own checksum: only its header is covered twice.
fn control_crc(kind: u8, payload: &[u8]) -> u32 {
    let covered = if kind == RELOCATED {
        payload.len().min(BLOCK_HEADER_BYTES)
    } else {
        payload.len()
    };
    crc32c::crc32c(&payload[..covered])
}

/// Counted lists of node ids: incoming voters, outgoing voters, learners, next learners; and witnesses, and who should lead, whose
/// counts are the upper halves of the fourth and the third one, so that members without these look as they did before.
pub fn put_configuration(into: &mut Vec<u8>, configuration: &Configuration) {
    let preferred = configuration.preferred();
    let lists = [
        configuration.voters(),
        configuration.outgoing(),
        configuration.learners(),
        configuration.learners_next(),
        configuration.witnesses(),
        preferred.as_slice(),
    ];
    for at in [0, 1] {
        into.put_u32_le(lists[at].len() as u32);
    }
    for at in [2, 5, 3, 4] {
        into.put_u16_le(u16::try_from(lists[at].len()).expect("groups are far smaller"));
    }
    for node in lists.iter().flat_map(|list| list.iter()) {
        into.put_u64_le(node.0);
    }
}

/// Reads what [`put_configuration`] wrote, to the last byte.
pub fn parse_configuration(bytes: &[u8]) -> Option<Configuration> {
    if bytes.len() < 16 {
        return None;
    }
    let [voters, outgoing] = [0, 4].map(|at| u32_at(bytes, at) as usize);
    let [learners, preferred, next, witnesses] =
        [8, 10, 12, 14].map(|at| usize::from(u16_at(bytes, at)));
    let counts = [voters, outgoing, learners, next, witnesses, preferred];
    if preferred > 1 {
        return None;
    }
    let total = counts
        .iter()
        .try_fold(0usize, |sum, count| sum.checked_add(*count))?;
    if total.checked_mul(8)?.checked_add(16)? != bytes.len() {
        return None;
    }
    let mut nodes = bytes[16..]
        .chunks_exact(8)
        .map(|node| NodeId(u64_at(node, 0)));
    let [
        voters,
        outgoing,
        learners,
        learners_next,
        witnesses,
        preferred,
    ] = counts.map(|count| nodes.by_ref().take(count).collect::<Vec<_>>());
    let members = Configuration::joint(voters, outgoing, learners, learners_next);
    let members = members.with_witnesses(witnesses);
    Some(members.with_preferred(preferred.first().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_as_they_were_and_without_more_look_as_ever() {
        let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let plain =
            Configuration::joint(nodes(&[1, 2, 3]), nodes(&[3, 4]), nodes(&[5]), nodes(&[4]));
        let more = plain
            .clone()
            .with_witnesses(nodes(&[3, 5]))
            .with_preferred(Some(NodeId(2)));
        for (members, counts) in [
            (&plain, [3, 0, 2, 0, 1, 0, 1, 0]),
            (&more, [3, 0, 2, 0, 1, 1, 1, 2]),
        ] {
            let mut bytes = Vec::new();
            put_configuration(&mut bytes, members);
            let found: Vec<u16> = (0..8).map(|at| u16_at(&bytes, 2 * at)).collect();
            assert_eq!(found, counts);
            assert_eq!(parse_configuration(&bytes).as_ref(), Some(members));
            assert_eq!(parse_configuration(&bytes[..bytes.len() - 8]), None);
        }
    }
}

//! Owns the bytes of the index checkpoint. Must never do I/O and never trust a count before the bytes back it.

use std::sync::Arc;

use bytes::BufMut;
use polyraft_raft::{GroupId, HardState, Index, Life, LogPosition, NodeId, Term};
use rustc_hash::FxHashMap;

use crate::batch::Lsn;
use crate::block::{MAX_COUNT, u32_at, u64_at};
use crate::damage::LogDamage;
use crate::format::{PAGE_BYTES, parse_configuration, put_configuration};
use crate::group::{GroupLog, Interned};
use crate::index::{BlockRef, Place, SEGMENT_LIMIT, Where};
use crate::tombstone::{Ending, Tombstone};

const MAGIC: &[u8; 8] = b"PRWALCKP";
const VERSION: u32 = 3;
const HEADER_BYTES: usize = 88;
/// Fixed part of an entry: ids and flags (24), three lengths (12), life (4), hard state and base (40), joined (8) and in which
/// term the replica before ended (8).
const ENTRY_BYTES: usize = 96;
const BLOCK_BYTES: usize = 40;
/// Where a block's entry says in which segment and where in that it lies.
const PLACE_OFFSET: usize = 16;
const TOMBSTONE: u32 = 1;
const VOTED: u32 = 2;
const REMOVED: u32 = 4;
const LOST_VOTE: u32 = 8;
const LOST_LIFE: u32 = 16;
const LOST_END: u32 = 32;
const NO_SESSIONS: u32 = 128;
/// The replica stores no payload.
const WITNESS: u32 = 64;

/// A place in the stream of records: behind everything that lies before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) lsn: Lsn,
    /// Offset in the batch's body.
    pub(crate) offset: u32,
}

/// Where the next recovery begins to read: the batch after the newest one that was durable when the checkpoint began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplayFrom {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) lsn: Lsn,
}

/// The fixed part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckpointHeader {
    pub(crate) lane: u32,
    pub(crate) store: u128,
    pub(crate) replay: ReplayFrom,
    /// Every batch up to here was durable when it was written.
    pub(crate) durable: Lsn,
    pub(crate) entries: u64,
}

impl CheckpointHeader {
    /// What lies in front of these sections in the file.
    pub(crate) fn encode(&self, sections: &[Section]) -> Vec<u8> {
        let body: usize = sections.iter().map(Section::bytes).sum();
        let pieces = sections.iter().flat_map(Section::pieces);
        let crc = pieces.fold(0, crc32c::crc32c_append);
        let mut file = Vec::with_capacity(HEADER_BYTES);
        file.extend_from_slice(MAGIC);
        file.put_u32_le(VERSION);
        file.put_u32_le(self.lane);
        file.put_u128_le(self.store);
        file.put_u64_le(self.replay.segment);
        file.put_u64_le(self.replay.offset);
        file.put_u64_le(self.replay.lsn.0);
        file.put_u64_le(self.durable.0);
        file.put_u64_le(self.entries);
        file.put_u64_le(body as u64);
        file.put_u32_le(crc);
        let crc = crc32c::crc32c(&file);
        file.put_u32_le(crc);
        file
    }

    fn parse(file: &[u8]) -> Result<Self, &'static str> {
        if file.len() < HEADER_BYTES || &file[..8] != MAGIC {
            return Err("no checkpoint header");
        }
        if crc32c::crc32c(&file[..84]) != u32_at(file, 84) {
            return Err("the checkpoint header fails its checksum");
        }
        if u32_at(file, 8) != VERSION {
            return Err("a checkpoint of an unknown format version");
        }
        let body = &file[HEADER_BYTES..];
        if body.len() as u64 != u64_at(file, 72) || crc32c::crc32c(body) != u32_at(file, 80) {
            return Err("the checkpoint fails its checksum");
        }
        Ok(Self {
            lane: u32_at(file, 12),
            store: u128::from(u64_at(file, 16)) | u128::from(u64_at(file, 24)) << 64,
            replay: ReplayFrom {
                segment: u64_at(file, 32),
                offset: u64_at(file, 40),
                lsn: Lsn(u64_at(file, 48)),
            },
            durable: Lsn(u64_at(file, 56)),
            entries: u64_at(file, 64),
        })
    }
}

/// A piece of a section is about so long.
const PIECE_BYTES: usize = 256 << 10;

/// One shard's part.
#[derive(Debug, Default)]
pub(crate) struct Section {
    /// Its bytes, one piece behind the other, of which only the first grows. One list would be copied as a whole whenever it grows,
    /// and a shard with millions of blocks serves nobody meanwhile.
    pieces: Vec<Vec<u8>>,
    /// Bytes in all pieces but the last.
    full_bytes: usize,
    pub(crate) entries: u64,
    /// Block bytes by segment.
    pub(crate) live: FxHashMap<u64, u64>,
}

/// A block reference in a section whose place was not known when it was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patch {
    /// In which piece, and where in it.
    at: (usize, usize),
    pub(crate) turn: Place,
}

impl Section {
    /// How long it is.
    pub(crate) fn bytes(&self) -> usize {
        self.full_bytes + self.pieces.last().map_or(0, Vec::len)
    }

    /// What it consists of, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(Vec::as_slice)
    }

    /// Where the next bytes go. What is written there at a time stays in one piece.
    fn end(&mut self) -> &mut Vec<u8> {
        match self.pieces.last().map(Vec::len) {
            // Of most shards one is enough, and takes no more than there is to hold.
            None => self.pieces.push(Vec::new()),
            Some(bytes) if bytes >= PIECE_BYTES => {
                self.full_bytes += bytes;
                self.pieces
                    .push(Vec::with_capacity(PIECE_BYTES + PAGE_BYTES));
            }
            Some(_) => {}
        }
        self.pieces.last_mut().expect("one was added if need be")
    }

    /// Appends a group as of `position`. Blocks without a place yet are noted in `patches`.
    pub(crate) fn put_group(
        &mut self,
        group: GroupId,
        log: &GroupLog,
        position: Position,
        patches: &mut Vec<Patch>,
    ) {
        let configuration = encode_configurations(log);
        let fault = log.fault.as_deref().map_or(Vec::new(), encode_fault);
        let state = log.hard_state;
        let voted = if state.vote.is_some() { VOTED } else { 0 };
        let no_sessions = if log.has_sessions { 0 } else { NO_SESSIONS };
        let flags = voted | no_sessions | log.fault.as_deref().map_or(0, fault_flags);
        let flags = if log.is_witness {
            flags | WITNESS
        } else {
            flags
        };
        self.put_entry(group, flags, position);
        let bytes = self.end();
        bytes.put_u32_le(configuration.len() as u32);
        bytes.put_u32_le(fault.len() as u32);
        bytes.put_u32_le(log.blocks.len() as u32);
        bytes.put_u32_le(log.life.get());
        for value in [
            state.term.0,
            state.vote.map_or(0, |node| node.0),
            state.commit.0,
            log.base.term.0,
            log.base.index.0,
            log.joined().0,
            log.removed_in().0,
        ] {
            bytes.put_u64_le(value);
        }
        bytes.extend_from_slice(&configuration);
        bytes.extend_from_slice(&fault);
        for block in log.blocks.iter() {
            let start = self.end().len();
            let segment = match block.place.get() {
                Where::Segment(segment) => {
                    *self.live.entry(segment).or_default() += u64::from(block.bytes);
                    segment
                }
                Where::Turn(_) => {
                    patches.push(Patch {
                        at: (self.pieces.len() - 1, start + PLACE_OFFSET),
                        turn: block.place,
                    });
                    0
                }
            };
            let bytes = self.end();
            bytes.put_u64_le(block.first.0);
            bytes.put_u64_le(block.term.0);
            bytes.put_u64_le(segment);
            bytes.put_u32_le(block.offset);
            bytes.put_u32_le(block.bytes);
            bytes.put_u32_le(block.count);
            bytes.put_u32_le(block.packed);
        }
    }

    /// Appends a tombstone.
    pub(crate) fn put_tombstone(
        &mut self,
        group: GroupId,
        tombstone: &Tombstone,
        position: Position,
    ) {
        let voted = tombstone.vote.map_or(0, |_| VOTED);
        let removed = match tombstone.ending {
            Ending::Removed => REMOVED,
            Ending::Destroyed => 0,
        };
        self.put_entry(group, TOMBSTONE | voted | removed, position);
        let bytes = self.end();
        bytes.put_bytes(0, 12);
        bytes.put_u32_le(tombstone.life.get());
        bytes.put_u64_le(tombstone.term.0);
        bytes.put_u64_le(tombstone.vote.map_or(0, |node| node.0));
        bytes.put_bytes(0, 24);
        bytes.put_u64_le(tombstone.at.0);
        bytes.put_u64_le(0);
    }

    fn put_entry(&mut self, group: GroupId, flags: u32, position: Position) {
        self.entries += 1;
        let bytes = self.end();
        bytes.put_u64_le(group.0);
        bytes.put_u64_le(position.lsn.0);
        bytes.put_u32_le(position.offset);
        bytes.put_u32_le(flags);
    }

    /// Fills in a place that has become known.
    pub(crate) fn patch(&mut self, patch: Patch, segment: u64, base: u32) {
        let (piece, at) = patch.at;
        let place = &mut self.pieces[piece][at..];
        let offset = u32_at(place, 8) + base;
        place[..8].copy_from_slice(&segment.to_le_bytes());
        place[8..12].copy_from_slice(&offset.to_le_bytes());
        *self.live.entry(segment).or_default() += u64::from(u32_at(place, 12));
    }
}

/// One group or tombstone of a loaded checkpoint.
pub(crate) struct Loaded {
    pub(crate) group: GroupId,
    /// Records of the group before this position are in `log` already.
    pub(crate) position: Position,
    pub(crate) what: Held,
}

/// What a checkpoint has of a group.
pub(crate) enum Held {
    Log(GroupLog),
    Tombstone(Tombstone),
}

/// Reads a whole checkpoint file, calling `each` for its entries in order.
pub(crate) fn load(
    file: &[u8],
    interned: &mut Interned,
    mut each: impl FnMut(Loaded),
) -> Result<CheckpointHeader, &'static str> {
    let header = CheckpointHeader::parse(file)?;
    let mut rest = &file[HEADER_BYTES..];
    for _ in 0..header.entries {
        each(load_entry(&mut rest, interned).ok_or("a checkpoint entry does not parse")?);
    }
    if !rest.is_empty() {
        return Err("the checkpoint has bytes behind its last entry");
    }
    Ok(header)
}

fn load_entry(rest: &mut &[u8], interned: &mut Interned) -> Option<Loaded> {
    let entry = take(rest, ENTRY_BYTES)?;
    let group = GroupId(u64_at(entry, 0));
    let position = Position {
        lsn: Lsn(u64_at(entry, 8)),
        offset: u32_at(entry, 16),
    };
    let flags = u32_at(entry, 20);
    let life = Life::new(u32_at(entry, 36))?;
    let state = HardState {
        term: Term(u64_at(entry, 40)),
        vote: (flags & VOTED != 0).then_some(NodeId(u64_at(entry, 48))),
        commit: Index(u64_at(entry, 56)),
    };
    if flags & TOMBSTONE != 0 {
        let ending = match flags & REMOVED {
            0 => Ending::Destroyed,
            _ => Ending::Removed,
        };
        let tombstone = Tombstone {
            life,
            ending,
            term: state.term,
            vote: state.vote,
            at: Index(u64_at(entry, 80)),
        };
        return Some(Loaded {
            group,
            position,
            what: Held::Tombstone(tombstone),
        });
    }
    let [configuration, fault, blocks] = [24, 28, 32].map(|at| u32_at(entry, at) as usize);
    let mut log = GroupLog::new(Arc::default());
    (log.life, log.hard_state) = (life, state);
    log.has_sessions = flags & NO_SESSIONS == 0;
    log.base = LogPosition {
        term: Term(u64_at(entry, 64)),
        index: Index(u64_at(entry, 72)),
    };
    log.begin(Index(u64_at(entry, 80)), Term(u64_at(entry, 88)));
    log.is_witness = flags & WITNESS != 0;
    load_configurations(take(rest, configuration)?, &mut log, interned)?;
    if fault > 0 {
        log.fault = Some(load_fault(take(rest, fault)?, flags)?);
    }
    if log.base.index.0 > INDEX_LIMIT {
        return None;
    }
    let refs = take(rest, blocks.checked_mul(BLOCK_BYTES)?)?;
    for block in refs.chunks_exact(BLOCK_BYTES) {
        let block = load_block(block)?;
        let follows = match log.blocks.end() {
            Some(end) => block.first == end,
            None => block.first <= log.base.index.next() && log.base.index.next() < block.end(),
        };
        if !follows {
            return None;
        }
        log.blocks.push(&block);
    }
    Some(Loaded {
        group,
        position,
        what: Held::Log(log),
    })
}

fn fault_flags(fault: &LogDamage) -> u32 {
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    flag(fault.has_lost_vote, LOST_VOTE)
        | flag(fault.has_lost_life, LOST_LIFE)
        | flag(fault.last.is_none(), LOST_END)
}

/// Where the log ended, if that is known, and what was found.
fn encode_fault(fault: &LogDamage) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u64_le(fault.last.unwrap_or_default().0);
    bytes.extend_from_slice(fault.reason.as_bytes());
    bytes
}

fn load_fault(mut bytes: &[u8], flags: u32) -> Option<Box<LogDamage>> {
    let last = Index(u64_at(take(&mut bytes, 8)?, 0));
    Some(Box::new(LogDamage {
        reason: String::from_utf8_lossy(bytes).into(),
        last: (flags & LOST_END == 0).then_some(last),
        has_lost_vote: flags & LOST_VOTE != 0,
        has_lost_life: flags & LOST_LIFE != 0,
    }))
}

/// Who the members are: as of the base, and as of each entry that changed that, with its index and the length of what it says.
fn encode_configurations(log: &GroupLog) -> Vec<u8> {
    let base = (log.base.index, Arc::clone(&log.configuration));
    let mut bytes = Vec::new();
    for (index, configuration) in [&base].into_iter().chain(log.later()) {
        let mut one = Vec::new();
        put_configuration(&mut one, configuration);
        bytes.put_u64_le(index.0);
        bytes.put_u64_le(one.len() as u64);
        bytes.extend_from_slice(&one);
    }
    bytes
}

fn load_configurations(
    mut bytes: &[u8],
    log: &mut GroupLog,
    interned: &mut Interned,
) -> Option<()> {
    let mut next = || {
        let head = take(&mut bytes, 16)?;
        let index = Index(u64_at(head, 0));
        let one = take(&mut bytes, usize::try_from(u64_at(head, 8)).ok()?)?;
        Some((
            index,
            interned.share(parse_configuration(one)?),
            bytes.is_empty(),
        ))
    };
    let (mut before, configuration, mut is_last) = next()?;
    log.configuration = configuration;
    while !is_last {
        let (index, configuration, last) = next()?;
        if index <= before {
            return None;
        }
        log.configure(index, configuration);
        (before, is_last) = (index, last);
    }
    Some(())
}

/// No log gets this long; sums of two indexes still fit.
const INDEX_LIMIT: u64 = u64::MAX / 2;

/// `None` for what no log ever writes.
fn load_block(bytes: &[u8]) -> Option<BlockRef> {
    let segment = Some(u64_at(bytes, 16)).filter(|segment| *segment < SEGMENT_LIMIT)?;
    let block = BlockRef {
        first: Index(u64_at(bytes, 0)),
        term: Term(u64_at(bytes, 8)),
        place: Place::segment(segment),
        offset: u32_at(bytes, 24),
        bytes: u32_at(bytes, 28),
        count: u32_at(bytes, 32),
        packed: u32_at(bytes, 36),
    };
    let is_possible = 0 < block.count && block.count <= block.packed && block.packed <= MAX_COUNT;
    (is_possible && block.first.0 <= INDEX_LIMIT).then_some(block)
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(bytes)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use polyraft_raft::EntryRange;

    use super::*;

    #[test]
    fn a_checkpoint_of_an_earlier_version_is_not_read() {
        let header = CheckpointHeader {
            lane: 0,
            store: 5,
            replay: ReplayFrom::default(),
            durable: Lsn(0),
            entries: 0,
        };
        let mut file = header.encode(&[]);
        let read = |file: &[u8]| load(file, &mut Interned::default(), |_| {});
        assert_eq!(read(&file), Ok(header));
        file[8..12].copy_from_slice(&2_u32.to_le_bytes());
        let crc = crc32c::crc32c(&file[..84]);
        file[84..88].copy_from_slice(&crc.to_le_bytes());
        let refused = read(&file);
        assert_eq!(refused, Err("a checkpoint of an unknown format version"));
    }

    #[test]
    fn a_long_section_is_made_of_short_pieces() {
        let mut log = GroupLog::new(Arc::default());
        log.base = LogPosition {
            term: Term(1),
            index: Index(9),
        };
        let turn = Place::turn(7);
        for first in 10..40_010 {
            let range = EntryRange {
                term: Term(2),
                first: Index(first),
                end: Index(first + 1),
            };
            let place = if first % 3 == 0 {
                turn
            } else {
                Place::segment(4)
            };
            log.append(range, place, first as u32, 100);
        }
        let (mut section, mut patches) = (Section::default(), Vec::new());
        section.put_group(GroupId(1), &log, Position::default(), &mut patches);
        let (first, others) = section.pieces.split_first().expect("it has pieces");
        assert!(first.capacity() <= 2 * PIECE_BYTES);
        assert!(!others.is_empty());
        let untouched = |piece: &Vec<u8>| piece.capacity() == PIECE_BYTES + PAGE_BYTES;
        assert!(others.iter().all(untouched));
        assert_eq!(section.bytes(), section.pieces().map(<[u8]>::len).sum());
        for patch in patches {
            section.patch(patch, 5, 1_000);
        }
        let header = CheckpointHeader {
            lane: 0,
            store: 5,
            replay: ReplayFrom::default(),
            durable: Lsn(0),
            entries: 1,
        };
        let file = crate::fuzzing::checkpoint_file(&header, &section);
        let mut loaded = None;
        load(&file, &mut Interned::default(), |found| {
            loaded = Some(found.what);
        })
        .unwrap();
        let Some(Held::Log(found)) = loaded else {
            panic!("no log")
        };
        let expected = log.blocks.iter().map(|mut block| {
            if block.place.get() == turn.get() {
                block.place = Place::segment(5);
                block.offset += 1_000;
            }
            block
        });
        assert!(found.blocks.iter().eq(expected));
        assert_eq!(
            section.live[&5],
            100 * (10..40_010).filter(|n| n % 3 == 0).count() as u64
        );
    }
}

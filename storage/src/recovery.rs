//! Owns reading a lane back: checkpoint, replay, and telling a torn tail from rot.
//! Must never cut what was durable, and never write before it knows where the log ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapMut;
use polyraft_raft::GroupId;
use polyraft_raft::mutants::{self, Mutant};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::batch::Lsn;
use crate::checkpoint::{CheckpointHeader, Position, ReplayFrom};
use crate::damage::LogDamage;
use crate::disk::{Disk, SegmentSpec};
use crate::error::StorageError;
use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, PAGE_BYTES, Records, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use crate::group::GroupLog;
use crate::index::Where;
use crate::options::WalOptions;
use crate::pool::{FoundSegments, Owner, Raw, Segment, parse_slot, slot_name};
use crate::replay::Groups;
use crate::tombstone::Tombstone;

/// File name of the index checkpoint in a lane's directory.
pub(crate) const CHECKPOINT: &str = "checkpoint";

/// What an open found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Batches that were replayed, those behind the checkpoint.
    pub batches: u64,
    /// Bytes of log that were replayed.
    pub bytes: u64,
    /// Groups that are here now.
    pub groups: u64,
    /// The unfinished write at the end of the log that was cut, by lane. It was never acknowledged.
    pub torn_tail: Vec<TornTail>,
    /// Damage to what was durable. The groups it hit carry a fault; the log keeps it until they are removed.
    pub rotten: Vec<Rot>,
    /// Time it took, in microseconds.
    pub micros: u64,
}

impl RecoveryReport {
    /// Adds what was found in another lane.
    pub(crate) fn add(&mut self, other: Self) {
        self.batches += other.batches;
        self.bytes += other.bytes;
        self.groups += other.groups;
        self.torn_tail.extend(other.torn_tail);
        self.rotten.extend(other.rotten);
    }
}

/// An unfinished batch at the end of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The lane.
    pub lane: usize,
    /// The segment's sequence number.
    pub segment: u64,
    /// Where the batch began.
    pub offset: u64,
    /// Its number.
    pub lsn: Lsn,
}

/// A record that was durable and is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rot {
    /// The lane.
    pub lane: usize,
    /// The segment's sequence number.
    pub segment: u64,
    /// Where the record begins in the segment.
    pub offset: u64,
    /// The group it belongs to.
    pub group: GroupId,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Where and how to read a lane.
pub(crate) struct LaneFiles<'a> {
    pub(crate) disk: &'a Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) options: &'a WalOptions,
    pub(crate) owner: Owner,
    /// Peers may have seen this directory. No lane of it was without a segment then.
    pub(crate) has_run: bool,
}

/// A lane as it was found.
pub(crate) struct RecoveredLane {
    pub(crate) groups: FxHashMap<GroupId, GroupLog>,
    pub(crate) tombstones: FxHashMap<GroupId, Tombstone>,
    pub(crate) segments: FoundSegments,
    /// The segment that is written next and where; `None` for a lane without any segment.
    pub(crate) tip: Option<(Arc<Segment>, u64)>,
    /// The last batch.
    pub(crate) last: Lsn,
    pub(crate) report: RecoveryReport,
}

/// What stands where the next batch is expected.
enum Found {
    Whole(BatchHeader, Bytes),
    /// The header is intact, the records are not.
    Damaged(BatchHeader, Bytes),
    Nothing,
}

/// Where reading has come to.
struct Cursor {
    /// Index into the segments.
    at: usize,
    offset: u64,
    expected: Lsn,
}

impl LaneFiles<'_> {
    /// Reads the lane. With `repair`, the remains of an unfinished batch are made unreadable, durably, so that no later batch
    /// can be mistaken for it.
    pub(crate) fn recover(&self, repair: bool) -> Result<RecoveredLane, StorageError> {
        self.sync_names()?;
        let mut groups = Groups::default();
        let checkpoint = self.load_checkpoint(&mut groups)?;
        let stable = checkpoint
            .as_ref()
            .map_or(0, |header| header.replay.segment);
        let (segments, raw) = self.open_segments(stable)?;
        let (replay, proven) = match &checkpoint {
            Some(header) => (header.replay, header.durable),
            None => (
                ReplayFrom {
                    lsn: Lsn(1),
                    ..ReplayFrom::default()
                },
                Lsn(0),
            ),
        };
        self.load(&segments, replay.segment);
        let mut cursor = self.start(&segments, checkpoint.is_some(), replay)?;
        let needed = self.check_references(&segments, &mut groups);
        let mut report = RecoveryReport::default();
        self.replay(
            &segments,
            &raw,
            &mut cursor,
            proven,
            &mut groups,
            &mut report,
        )?;
        let tip = segments
            .get(cursor.at)
            .map(|segment| (Arc::clone(segment), cursor.offset));
        if tip.is_none() && self.has_run {
            // Opened as an empty one, its groups would vote a second time in terms in which they voted.
            return Err(damaged(
                &self.dir,
                0,
                "this node has run with a log in this directory, and there is none; if it is on a device of its own, mount that",
            ));
        }
        if repair && !mutants::is_active(Mutant::TornTailKept) {
            // The unfinished batch began either right here or, if it did not fit, in the segment that came next.
            if let Some((segment, offset)) = &tip {
                self.erase_batch(segment, *offset)?;
            }
            for segment in segments.iter().skip(cursor.at + 1) {
                self.erase_batch(segment, SEGMENT_HEADER_BYTES)?;
            }
        }
        report.groups = groups.groups.len() as u64;
        let next_slot = segments
            .iter()
            .map(|segment| segment.slot)
            .chain(raw.iter().map(|raw| raw.slot))
            .max();
        let next_sequence = segments
            .last()
            .map_or(1, |segment| segment.header.sequence + 1);
        let mut found = FoundSegments {
            live: Vec::new(),
            ready: Vec::new(),
            retired: Vec::new(),
            raw,
            next_sequence,
            next_slot: next_slot.map_or(0, |slot| slot + 1),
        };
        for (at, segment) in segments.into_iter().enumerate() {
            let sequence = segment.header.sequence;
            let dead =
                checkpoint.is_some() && sequence < replay.segment && !needed.contains(&sequence);
            let fits = segment.header.bytes == self.options.segment_bytes;
            match at {
                _ if dead => found.retired.push(segment),
                _ if at <= cursor.at => found.live.push(segment),
                // Prepared with another size: back to raw material.
                _ if !fits => found.retired.push(segment),
                _ => found.ready.push(segment),
            }
        }
        let last = Lsn(cursor.expected.0 - 1);
        let Groups {
            groups, tombstones, ..
        } = groups;
        Ok(RecoveredLane {
            groups,
            tombstones,
            segments: found,
            tip,
            last,
            report,
        })
    }

    /// Has the segments that are replayed read from the device, those before which others are read first.
    fn load(&self, segments: &[Arc<Segment>], replay: u64) {
        let replayed = segments
            .iter()
            .filter(|segment| segment.header.sequence >= replay);
        for segment in replayed {
            self.disk.expect_reads(&self.path(segment.slot));
        }
    }

    /// The process before may have stopped between a renaming and its sync: what is read by a name that the next power cut takes
    /// back would be trusted now and gone then.
    pub(crate) fn sync_names(&self) -> Result<(), StorageError> {
        if mutants::is_active(Mutant::NamesTrusted) {
            return Ok(());
        }
        self.disk
            .sync_dir(&self.dir)
            .map_err(|error| StorageError::io(&self.dir, "syncing the directory", &error))
    }

    /// Whether a segment file holds nothing but what was durable when the checkpoint was written, which continues in segment
    /// `stable`: then what is cached of it is what is stored, or better.
    fn is_stable(&self, path: &Path, stable: u64) -> bool {
        let header = || SegmentHeader::parse(&self.disk.read_at(path, 0, PAGE_BYTES).ok()?).ok();
        stable > 0
            && header().is_some_and(|header| {
                let owner = (header.store, header.lane);
                owner == (self.owner.store, self.owner.lane) && header.sequence < stable
            })
    }

    /// All segments with a header, by sequence number, and the files without one. Those before segment `stable` are known to be
    /// durable.
    pub(crate) fn open_segments(
        &self,
        stable: u64,
    ) -> Result<(Vec<Arc<Segment>>, Vec<Raw>), StorageError> {
        let names = self
            .disk
            .list(&self.dir)
            .map_err(|error| StorageError::io(&self.dir, "listing", &error))?;
        let (mut segments, mut raw) = (Vec::new(), Vec::new());
        let spec = SegmentSpec {
            mode: self.options.mode,
            direct_io: self.options.direct_io,
        };
        for slot in names.iter().filter_map(|name| parse_slot(name)) {
            let path = self.path(slot);
            let bytes = self
                .disk
                .file_bytes(&path)
                .map_err(|error| StorageError::io(&path, "measuring", &error))?;
            if bytes < SEGMENT_HEADER_BYTES {
                // The node stopped while it was being made.
                raw.push(Raw { slot, whole: false });
                continue;
            }
            // A process that was killed before a sync, or stopped after one that failed, left bytes in the cache that were
            // never stored. Recovery would count them as durable, and the next power cut would take them back. What was durable
            // before the last checkpoint is as it was, and most of a log is older than that.
            if !mutants::is_active(Mutant::CacheTrusted) {
                // A directory that was copied here may not be stored at all yet.
                match self.is_stable(&path, stable) {
                    true => self.disk.sync_file(&path),
                    false => self.disk.forget_cached(&path),
                }
                .map_err(|error| StorageError::io(&path, "reading afresh", &error))?;
            }
            let file = self
                .disk
                .open_segment(&path, spec)
                .map_err(|error| StorageError::io(&path, "opening", &error))?;
            let page = Arc::clone(&file).read(0, PAGE_BYTES);
            match SegmentHeader::parse(&page) {
                Ok(header) => {
                    self.check_header(&path, &header, bytes)?;
                    segments.push(Arc::new(Segment { header, slot, file }));
                }
                Err(_) if page.iter().all(|byte| *byte == 0) => {
                    raw.push(Raw { slot, whole: false })
                }
                Err(reason) => return Err(damaged(&path, 0, reason)),
            }
        }
        segments.sort_unstable_by_key(|segment| segment.header.sequence);
        if let Some(pair) = segments
            .windows(2)
            .find(|pair| pair[0].header.sequence == pair[1].header.sequence)
        {
            return Err(damaged(
                &self.path(pair[1].slot),
                0,
                "two segment files have the same sequence number",
            ));
        }
        Ok((segments, raw))
    }

    fn check_header(
        &self,
        path: &Path,
        header: &SegmentHeader,
        bytes: u64,
    ) -> Result<(), StorageError> {
        if header.store != self.owner.store || header.lane != self.owner.lane {
            return Err(damaged(
                path,
                0,
                "the segment belongs to another data directory or lane",
            ));
        }
        if header.bytes != bytes || header.bytes < SEGMENT_HEADER_BYTES || header.bytes > 1 << 32 {
            return Err(damaged(
                path,
                0,
                "the segment file does not have the length in its header",
            ));
        }
        Ok(())
    }

    /// The header of the checkpoint, if there is one.
    pub(crate) fn read_checkpoint(&self) -> Result<Option<CheckpointHeader>, StorageError> {
        self.load_checkpoint(&mut Groups::default())
    }

    fn load_checkpoint(
        &self,
        groups: &mut Groups,
    ) -> Result<Option<CheckpointHeader>, StorageError> {
        let path = self.dir.join(CHECKPOINT);
        let file = match self.disk.read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|error| StorageError::io(&path, "reading", &error))?,
        };
        let header = groups
            .load(&file)
            .map_err(|reason| damaged(&path, 0, reason))?;
        if header.store != self.owner.store || header.lane != self.owner.lane {
            return Err(damaged(
                &path,
                0,
                "the checkpoint belongs to another data directory or lane",
            ));
        }
        Ok(Some(header))
    }

    fn start(
        &self,
        segments: &[Arc<Segment>],
        from_checkpoint: bool,
        replay: ReplayFrom,
    ) -> Result<Cursor, StorageError> {
        if !from_checkpoint {
            return Ok(Cursor {
                at: 0,
                offset: SEGMENT_HEADER_BYTES,
                expected: Lsn(1),
            });
        }
        let at = segments
            .iter()
            .position(|segment| segment.header.sequence == replay.segment);
        match at {
            Some(at) => Ok(Cursor {
                at,
                offset: replay.offset,
                expected: replay.lsn,
            }),
            None => Err(damaged(
                &self.dir.join(CHECKPOINT),
                0,
                "the segment that the checkpoint continues in is missing",
            )),
        }
    }

    /// Marks groups whose blocks cannot be where the checkpoint has them; returns the segments that it refers to.
    fn check_references(&self, segments: &[Arc<Segment>], groups: &mut Groups) -> FxHashSet<u64> {
        let sizes: FxHashMap<u64, u64> = segments
            .iter()
            .map(|segment| (segment.header.sequence, segment.header.bytes))
            .collect();
        let mut needed = FxHashSet::default();
        for log in groups.groups.values_mut() {
            let last = log.last();
            for block in log.blocks.iter() {
                let Where::Segment(segment) = block.place.get() else {
                    continue;
                };
                needed.insert(segment);
                let end = u64::from(block.offset) + u64::from(block.bytes);
                if sizes.get(&segment).is_none_or(|bytes| end > *bytes) {
                    log.fault.get_or_insert_with(|| {
                        let reason =
                            format!("segment {segment}, which holds a part of its log, is missing");
                        LogDamage::of_log(reason, last)
                    });
                }
            }
        }
        needed
    }

    /// Reads batch after batch until the log ends.
    fn replay(
        &self,
        segments: &[Arc<Segment>],
        raw: &[Raw],
        cursor: &mut Cursor,
        mut proven: Lsn,
        groups: &mut Groups,
        report: &mut RecoveryReport,
    ) -> Result<(), StorageError> {
        let mut scanned = false;
        if segments.is_empty() {
            // Not one header is there; a file that holds log then says that they were lost.
            self.scan(segments, raw, cursor)?;
        }
        while let Some(segment) = segments.get(cursor.at) {
            let mut found = find(segment, cursor.offset, cursor.expected);
            let mut place = (cursor.at, cursor.offset);
            if matches!(found, Found::Nothing) && !mutants::is_active(Mutant::SegmentEndIsLogEnd) {
                // What is behind the last batch of a full segment means nothing: the log goes on in the segment that
                // begins with the batch expected here. Prepared ones that were never used may stand in between.
                let later = segments.iter().enumerate().skip(cursor.at + 1);
                let next =
                    later.map(|(at, next)| (at, find(next, SEGMENT_HEADER_BYTES, cursor.expected)));
                if let Some((at, next)) = next
                    .into_iter()
                    .find(|(_, next)| !matches!(next, Found::Nothing))
                {
                    found = next;
                    place = (at, SEGMENT_HEADER_BYTES);
                }
            }
            if !matches!(found, Found::Whole(..)) && !scanned {
                // Only now is it worth looking whether something later proves that this batch was durable.
                proven = proven.max(self.scan(segments, raw, cursor)?);
                scanned = true;
            }
            let was_durable = (cursor.expected <= proven
                && !mutants::is_active(Mutant::RotCutAsTail))
                || (matches!(found, Found::Damaged(..))
                    && mutants::is_active(Mutant::TornTailIsRot));
            let segment = &segments[place.0];
            let header = match found {
                Found::Whole(header, body) => {
                    groups.batch(segment.header.sequence, place.1, &header, &body);
                    header
                }
                Found::Damaged(header, body) if was_durable => {
                    self.salvage(segment, place.1, &header, &body, groups, report)?;
                    header
                }
                Found::Nothing if was_durable => {
                    let reason = format!(
                        "batch {} is missing or its header is damaged, although batch {proven} proves that it was durable",
                        cursor.expected
                    );
                    return Err(damaged(&self.path(segment.slot), place.1, reason));
                }
                Found::Damaged(..) => {
                    let segment = segment.header.sequence;
                    let lane = self.owner.lane as usize;
                    report.torn_tail.push(TornTail {
                        lane,
                        segment,
                        offset: place.1,
                        lsn: cursor.expected,
                    });
                    return Ok(());
                }
                Found::Nothing => return Ok(()),
            };
            report.batches += 1;
            report.bytes += header.padded();
            *cursor = Cursor {
                at: place.0,
                offset: place.1 + header.padded(),
                expected: Lsn(cursor.expected.0 + 1),
            };
        }
        Ok(())
    }

    /// Takes what is intact of a batch that was durable and marks the groups of what is not.
    fn salvage(
        &self,
        segment: &Segment,
        offset: u64,
        header: &BatchHeader,
        body: &[u8],
        groups: &mut Groups,
        report: &mut RecoveryReport,
    ) -> Result<(), StorageError> {
        let sequence = segment.header.sequence;
        let base = offset + BATCH_HEADER_BYTES as u64;
        for record in Records::new(body, true) {
            match record {
                Ok(located) => groups.record(sequence, base, header.lsn, located),
                Err(damage) => {
                    let at = base + u64::from(damage.offset);
                    let Some(group) = damage.group else {
                        let reason = format!(
                            "batch {}: {}, so its groups are unknown",
                            header.lsn, damage.reason
                        );
                        return Err(damaged(&self.path(segment.slot), at, reason));
                    };
                    tracing::error!(%group, segment = sequence, offset = at, reason = damage.reason, "the log is rotten");
                    let reason = format!("segment {sequence}, offset {at}: {}", damage.reason);
                    groups.damage(group, (header.lsn, damage.offset), (&reason, damage.lost));
                    let lane = self.owner.lane as usize;
                    report.rotten.push(Rot {
                        lane,
                        segment: sequence,
                        offset: at,
                        group,
                        reason: damage.reason,
                    });
                }
            }
        }
        Ok(())
    }

    /// The highest batch that anything behind the cursor proves durable.
    fn scan(
        &self,
        segments: &[Arc<Segment>],
        raw: &[Raw],
        cursor: &Cursor,
    ) -> Result<Lsn, StorageError> {
        let mut proven = Lsn(0);
        for segment in segments {
            self.check_use(segment, cursor.expected)?;
        }
        for (at, segment) in segments.iter().enumerate().skip(cursor.at) {
            let from = if at == cursor.at {
                cursor.offset
            } else {
                SEGMENT_HEADER_BYTES
            };
            for offset in (from..segment.header.bytes).step_by(PAGE_BYTES) {
                let header = BatchHeader::parse(&segment.read(offset, BATCH_HEADER_BYTES));
                // The salt rules out what an earlier use of the file left behind.
                if let Some(header) = header.filter(|header| {
                    header.salt == segment.header.salt && header.lsn > cursor.expected.0
                }) {
                    proven = proven.max(Lsn(header.last_durable));
                }
            }
        }
        for raw in raw {
            let path = self.path(raw.slot);
            let bytes = self
                .disk
                .read(&path)
                .map_err(|error| StorageError::io(&path, "reading", &error))?;
            let headers = || {
                let pages = bytes.chunks_exact(PAGE_BYTES).map(BatchHeader::parse);
                pages.zip((0..).step_by(PAGE_BYTES)).skip(1)
            };
            // Every use begins with a batch behind the header page. Its salt tells real ones from entries that look like them.
            let Some((Some(first), _)) = headers().next() else {
                continue;
            };
            for (header, offset) in headers() {
                if header.is_some_and(|header| {
                    header.salt == first.salt && header.lsn >= cursor.expected.0
                }) {
                    return Err(damaged(
                        &path,
                        offset,
                        "the segment lost its header, and it holds log that is needed",
                    ));
                }
            }
        }
        Ok(proven)
    }

    /// Refuses a segment that has the header of an earlier use, because the write of the newer one was lost, and log that is
    /// needed. Every use begins with a batch right behind the header page.
    fn check_use(&self, segment: &Segment, expected: Lsn) -> Result<(), StorageError> {
        if segment.header.bytes < SEGMENT_HEADER_BYTES + PAGE_BYTES as u64 {
            return Ok(());
        }
        let first = BatchHeader::parse(&segment.read(SEGMENT_HEADER_BYTES, BATCH_HEADER_BYTES));
        let is_foreign =
            |first: &BatchHeader| first.salt != segment.header.salt && first.lsn >= expected.0;
        match first.filter(is_foreign) {
            None => Ok(()),
            Some(_) => Err(damaged(
                &self.path(segment.slot),
                0,
                "the segment has the header of an earlier use, and it holds log that is needed",
            )),
        }
    }

    /// Makes the batch that begins at `offset`, if one does, unreadable. Its header is in one sector: it is there or not.
    fn erase_batch(&self, segment: &Segment, offset: u64) -> Result<(), StorageError> {
        if offset + PAGE_BYTES as u64 > segment.header.bytes {
            return Ok(());
        }
        let header = BatchHeader::parse(&segment.read(offset, BATCH_HEADER_BYTES));
        if header.is_none_or(|header| header.salt != segment.header.salt) {
            return Ok(());
        }
        let path = self.path(segment.slot);
        let fail = |action| move |error: std::io::Error| StorageError::io(&path, action, &error);
        let erased = || {
            segment
                .file
                .write(offset, &MmapMut::map_anon(PAGE_BYTES)?)?;
            segment.file.sync(offset, PAGE_BYTES as u64)
        };
        erased().map_err(fail("erasing an unfinished batch"))
    }

    fn path(&self, slot: u64) -> PathBuf {
        self.dir.join(slot_name(slot))
    }
}

/// Looks for batch `expected` at a place. A header of another batch, or of an earlier use of the file, is nothing.
fn find(segment: &Segment, offset: u64, expected: Lsn) -> Found {
    if offset + PAGE_BYTES as u64 > segment.header.bytes {
        return Found::Nothing;
    }
    let Some(header) = BatchHeader::parse(&segment.read(offset, BATCH_HEADER_BYTES)) else {
        return Found::Nothing;
    };
    let fits = offset + header.padded() <= segment.header.bytes;
    if header.salt != segment.header.salt || header.lsn != expected.0 || !fits {
        return Found::Nothing;
    }
    let body = segment.read(
        offset + BATCH_HEADER_BYTES as u64,
        header.body_bytes as usize,
    );
    if crc32c::crc32c(&body) == header.body_crc {
        Found::Whole(header, body)
    } else {
        Found::Damaged(header, body)
    }
}

fn damaged(path: &Path, offset: u64, reason: impl Into<String>) -> StorageError {
    StorageError::Damaged {
        path: path.to_owned(),
        offset,
        reason: reason.into(),
    }
}

/// A position that lies behind every record of a batch.
pub(crate) fn behind(lsn: Lsn) -> Position {
    Position {
        lsn,
        offset: u32::MAX,
    }
}

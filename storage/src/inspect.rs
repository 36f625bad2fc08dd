//! Owns looking into a log that no node has open: printing it, and checking every byte that counts.
//! Must never write to what it looks at.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyraft_raft::{Configuration, Index};

use crate::block::EntryKind;
use crate::data_dir::{self, Identity, WAL};
use crate::disk::{Disk, FileDisk};
use crate::error::StorageError;
use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, PAGE_BYTES, Record, Records, SEGMENT_HEADER_BYTES,
};
use crate::index::{BlockRef, Where};
use crate::options::WalOptions;
use crate::pool::{Owner, Segment};
use crate::recovery::{LaneFiles, RecoveredLane};
use crate::tombstone::Ending;

/// A log that was found sound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Lanes looked at.
    pub lanes: u64,
    /// Groups in them.
    pub groups: u64,
    /// Entry blocks in use; each was read and its checksum compared.
    pub blocks: u64,
    /// Their bytes.
    pub block_bytes: u64,
    /// Batches behind the checkpoints.
    pub batches: u64,
    /// Unfinished batches at the end, which the next open cuts.
    pub torn_tails: u64,
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            lanes,
            groups,
            blocks,
            block_bytes,
            batches,
            torn_tails,
        } = self;
        write!(
            f,
            "{lanes} lanes, {groups} groups, {blocks} blocks of {block_bytes} bytes in use, {batches} batches to replay, \
             {torn_tails} unfinished at the end"
        )
    }
}

/// Why a log is not sound, or could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file or directory.
    pub path: PathBuf,
    /// The segment's sequence number, when it is in a segment whose header is readable.
    pub segment: Option<u64>,
    /// Byte offset in the file.
    pub offset: u64,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(segment) = self.segment {
            write!(f, ", segment {segment}")?;
        }
        write!(f, ", offset {}: {}", self.offset, self.reason)
    }
}

impl std::error::Error for Damage {}

impl From<StorageError> for Damage {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Damaged {
                path,
                offset,
                reason,
            } => Self {
                path,
                segment: None,
                offset,
                reason,
            },
            StorageError::Locked { path } => {
                let reason = "a node has this log open; stop it first".to_owned();
                Self {
                    path,
                    segment: None,
                    offset: 0,
                    reason,
                }
            }
            StorageError::Identity { path, reason } => Self {
                path,
                segment: None,
                offset: 0,
                reason,
            },
            StorageError::Io {
                path,
                action,
                message,
                ..
            } => Self {
                path,
                segment: None,
                offset: 0,
                reason: format!("{action} failed: {message}"),
            },
            other => Self {
                path: PathBuf::new(),
                segment: None,
                offset: 0,
                reason: other.to_string(),
            },
        }
    }
}

/// A log opened for looking: locked, so that no node writes meanwhile.
pub(crate) struct Subject {
    disk: Arc<dyn Disk>,
    pub(crate) root: PathBuf,
    options: WalOptions,
    pub(crate) identity: Identity,
    _lock: Box<dyn Send + Sync>,
}

impl Subject {
    /// `path` is a node's data directory or the `wal` directory in it.
    pub(crate) fn open(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, StorageError> {
        let root = match path.file_name().is_some_and(|name| name == WAL) {
            true => path.parent().unwrap_or(path).to_owned(),
            false => path.to_owned(),
        };
        let nothing = || StorageError::Identity {
            path: root.clone(),
            reason: "this is not a node's data directory: it has no identity file".into(),
        };
        data_dir::read_identity(&*disk, &root)?.ok_or_else(nothing)?;
        let lock = data_dir::lock(&*disk, &root)?;
        // Again: a node may have counted an opening until the lock was free.
        let (identity, _) = data_dir::read_identity(&*disk, &root)?.ok_or_else(nothing)?;
        Ok(Self {
            disk,
            root,
            options: WalOptions::default(),
            identity,
            _lock: lock,
        })
    }

    pub(crate) fn lane(&self, lane: u32) -> LaneFiles<'_> {
        LaneFiles {
            disk: &self.disk,
            dir: self.root.join(WAL).join(lane.to_string()),
            options: &self.options,
            owner: Owner {
                lane,
                store: self.identity.store.0,
                incarnation: self.identity.opening,
            },
            has_run: !self.identity.shown.is_empty(),
        }
    }
}

/// Checks everything a recovery would rely on, and every entry block in use. The log must not be open in a node.
pub fn verify(path: &Path) -> Result<VerifyReport, Damage> {
    verify_on(Arc::new(FileDisk), path)
}

/// [`verify`] on another disk.
pub fn verify_on(disk: Arc<dyn Disk>, path: &Path) -> Result<VerifyReport, Damage> {
    let subject = Subject::open(disk, path)?;
    let mut report = VerifyReport::default();
    for lane in 0..subject.identity.lanes {
        let files = subject.lane(lane);
        let found = files.recover(false)?;
        if let Some(rot) = found.report.rotten.first() {
            return Err(Damage {
                path: files.dir.clone(),
                segment: Some(rot.segment),
                offset: rot.offset,
                reason: format!("{}: {}", rot.group, rot.reason),
            });
        }
        report.lanes += 1;
        report.batches += found.report.batches;
        report.torn_tails += found.report.torn_tail.len() as u64;
        report.groups += found.groups.len() as u64;
        verify_groups(&files.dir, &found, &mut report)?;
    }
    Ok(report)
}

fn verify_groups(
    dir: &Path,
    found: &RecoveredLane,
    report: &mut VerifyReport,
) -> Result<(), Damage> {
    let all = found.segments.all();
    for (group, log) in &found.groups {
        if let Some(fault) = &log.fault {
            let reason = format!("{group}: {}", fault.reason);
            return Err(Damage {
                path: dir.to_owned(),
                segment: None,
                offset: 0,
                reason,
            });
        }
        for block in log.blocks.iter() {
            let Where::Segment(sequence) = block.place.get() else {
                continue;
            };
            let segment = all
                .iter()
                .find(|segment| segment.header.sequence == sequence);
            if let Err(reason) = verify_block(segment.map(|segment| &***segment), &block) {
                let reason = format!("{group}: {reason}");
                let offset = u64::from(block.offset);
                return Err(Damage {
                    path: dir.to_owned(),
                    segment: Some(sequence),
                    offset,
                    reason,
                });
            }
            report.blocks += 1;
            report.block_bytes += u64::from(block.bytes);
        }
    }
    Ok(())
}

fn verify_block(segment: Option<&Segment>, block: &BlockRef) -> Result<(), String> {
    let end = u64::from(block.offset) + u64::from(block.bytes);
    let segment = segment
        .filter(|segment| end <= segment.header.bytes)
        .ok_or("its segment is missing")?;
    let bytes = segment.read(u64::from(block.offset), block.bytes as usize);
    let parsed = crate::block::EntryBlock::parse(&bytes).map_err(|error| error.to_string())?;
    let same = parsed.first() == block.first && parsed.term() == block.term;
    if same {
        Ok(())
    } else {
        Err("another entry block is in its place".to_owned())
    }
}

/// Prints every segment, batch and record. Damage is printed where it is; this is no check. The log must not be open in a node.
pub fn dump(path: &Path, out: &mut dyn Write) -> Result<(), DumpError> {
    dump_on(Arc::new(FileDisk), path, out)
}

/// Why a log could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] StorageError),
    /// The output did not take it.
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// [`dump`] on another disk.
pub fn dump_on(disk: Arc<dyn Disk>, path: &Path, out: &mut dyn Write) -> Result<(), DumpError> {
    let subject = Subject::open(disk, path)?;
    writeln!(
        out,
        "store {:032x} incarnation {} lanes {}",
        subject.identity.store.0, subject.identity.opening, subject.identity.lanes
    )?;
    for lane in 0..subject.identity.lanes {
        let files = subject.lane(lane);
        files.sync_names()?;
        let (segments, raw) = files.open_segments(0)?;
        writeln!(
            out,
            "lane {lane}: {} segments, {} unused files",
            segments.len(),
            raw.len()
        )?;
        match files.read_checkpoint()? {
            Some(header) => writeln!(
                out,
                "checkpoint: {} groups and tombstones, durable through {}, replay from batch {} at segment {} offset {}",
                header.entries,
                header.durable,
                header.replay.lsn,
                header.replay.segment,
                header.replay.offset
            )?,
            None => writeln!(out, "no checkpoint")?,
        }
        for segment in &segments {
            dump_segment(segment, out)?;
        }
    }
    Ok(())
}

fn dump_segment(segment: &Segment, out: &mut dyn Write) -> io::Result<()> {
    let header = &segment.header;
    writeln!(
        out,
        "segment {} file {:08} bytes {} salt {:016x} incarnation {}",
        header.sequence, segment.slot, header.bytes, header.salt, header.incarnation
    )?;
    let mut offset = SEGMENT_HEADER_BYTES;
    while offset + PAGE_BYTES as u64 <= header.bytes {
        let batch = BatchHeader::parse(&segment.read(offset, BATCH_HEADER_BYTES));
        let batch = batch
            .filter(|batch| batch.salt == header.salt && offset + batch.padded() <= header.bytes);
        let Some(batch) = batch else { break };
        let body = segment.read(
            offset + BATCH_HEADER_BYTES as u64,
            batch.body_bytes as usize,
        );
        let sound = if crc32c::crc32c(&body) == batch.body_crc {
            ""
        } else {
            " CHECKSUM MISMATCH"
        };
        writeln!(
            out,
            "  batch {} offset {offset} records {} bytes {} durable {}{sound}",
            batch.lsn, batch.records, batch.body_bytes, batch.last_durable
        )?;
        for record in Records::new(&body, true) {
            match record {
                Ok(located) => {
                    write!(out, "    {:>8} {} ", located.offset, located.group)?;
                    dump_record(&located.record, located.bytes, out)?;
                }
                Err(damage) => {
                    writeln!(out, "    {:>8} DAMAGED: {}", damage.offset, damage.reason)?
                }
            }
        }
        offset += batch.padded();
    }
    Ok(())
}

fn dump_record(record: &Record, bytes: u32, out: &mut dyn Write) -> io::Result<()> {
    match record {
        Record::Block {
            range,
            kind,
            configurations,
        } => {
            let what = match kind {
                EntryKind::Hollow => "hollow entries",
                _ => "entries",
            };
            writeln!(
                out,
                "{what} {}..{} {} bytes {bytes}",
                range.first, range.end, range.term
            )?;
            configurations
                .iter()
                .try_for_each(|(index, configuration)| {
                    writeln!(out, "  members from {index}: {}", describe(configuration))
                })
        }
        Record::Relocated { range } => {
            writeln!(
                out,
                "relocated {}..{} {} bytes {bytes}",
                range.first, range.end, range.term
            )
        }
        Record::Create(creation) => {
            write!(out, "create {}", creation.life)?;
            if creation.joined > Index::ZERO {
                write!(out, " joined {}", creation.joined)?;
            }
            if creation.is_witness {
                write!(out, " witness")?;
            }
            writeln!(out, " {}", describe(&creation.configuration))
        }
        Record::HardState(state) => match state.vote {
            Some(vote) => writeln!(
                out,
                "state {} vote {vote} commit {}",
                state.term, state.commit
            ),
            None => writeln!(out, "state {} no vote commit {}", state.term, state.commit),
        },
        Record::Truncate { from } => writeln!(out, "truncate from {from}"),
        Record::Purge {
            through,
            configuration,
        } => {
            write!(out, "purge through {} {}", through.index, through.term)?;
            match configuration {
                Some(configuration) => writeln!(out, " {}", describe(configuration)),
                None => writeln!(out),
            }
        }
        Record::Tombstone(tombstone) => {
            let ending = match tombstone.ending {
                Ending::Destroyed => "destroyed",
                Ending::Removed => "removed",
            };
            write!(
                out,
                "tombstone {} {ending} {}",
                tombstone.life, tombstone.term
            )?;
            match tombstone.vote {
                Some(vote) => writeln!(out, " vote {vote}"),
                None => writeln!(out),
            }
        }
    }
}

/// The lists of a configuration, those that are not empty.
fn describe(configuration: &Configuration) -> String {
    let lists = [
        ("voters", configuration.voters()),
        ("outgoing", configuration.outgoing()),
        ("learners", configuration.learners()),
        ("learners-next", configuration.learners_next()),
        ("witnesses", configuration.witnesses()),
    ];
    let preferred = configuration.preferred();
    let named = lists
        .into_iter()
        .chain([("preferred", preferred.as_slice())])
        .filter(|(_, nodes)| !nodes.is_empty())
        .map(|(name, nodes)| {
            let nodes: Vec<String> = nodes.iter().map(|node| node.to_string()).collect();
            format!("{name} {}", nodes.join(","))
        });
    named.collect::<Vec<_>>().join(" ")
}

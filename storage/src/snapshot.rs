//! Owns snapshot files: their bytes, how they come to stand on the disk, and reading them back.
//! Must never show a file under its final name before every byte of it, and the name's directory, could be synced; and
//! must never take a path from anybody: names follow from the group and the position. `docs/snapshot-format.md` has the map.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BufMut;
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{Configuration, GroupId, Index, Life, LogPosition, Term};

use crate::block::{u32_at, u64_at};
use crate::data_dir::DataDir;
use crate::disk::Disk;
use crate::error::StorageError;
use crate::format::{parse_configuration, put_configuration};
use crate::places::Places;
use crate::room::Room;

/// The directory of the snapshots in a data directory.
pub(crate) const DIRECTORY: &str = "snapshots";
const MAGIC: &[u8; 8] = b"PRSNAP01";
const END_MAGIC: &[u8; 4] = b"PRSE";
const VERSION: u32 = 2;
/// Header without configuration and checksum.
const FIXED_BYTES: usize = 48;
/// Body length (8), checksum of all before (4), end magic (4), checksum of these (4).
const TRAILER_BYTES: usize = 20;
/// No configuration is longer: four lists of far more members than a group may have.
const MAX_CONFIGURATION_BYTES: usize = 4096;
/// The longest header.
const MAX_HEADER_BYTES: usize = FIXED_BYTES + MAX_CONFIGURATION_BYTES + 4;
/// Bytes that are read or written at once.
const PIECE_BYTES: usize = 256 << 10;
/// A file is synced whenever so many more bytes of it were written.
const SYNC_BYTES: u64 = 4 << 20;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The group.
    pub group: GroupId,
    /// Which life of the group's id; 0 for the first.
    pub incarnation: u64,
    /// The last entry in it.
    pub last: LogPosition,
    /// The members as of that entry.
    pub configuration: Configuration,
}

/// A snapshot that is whole and durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// What it is of.
    pub meta: SnapshotMeta,
    /// Length of the file.
    pub bytes: u64,
    /// Names the file among all that were ever written of the same place: the checksum over header and body.
    pub checksum: u32,
}

/// Why a snapshot can't be written, taken or read. None of these harms the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file operation failed.
    #[error("{path}: {action} failed: {message}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done to it.
        action: &'static str,
        /// The operating system's words.
        message: String,
        /// Its class.
        kind: io::ErrorKind,
    },
    /// The bytes are not those of a snapshot, or not of the one that was meant.
    #[error("{path}: not a usable snapshot: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: &'static str,
    },
    /// The bytes are those that were written, and no other group can begin with them.
    #[error("{path}: of no use to another group: {why}")]
    Useless {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// The state machine did not give its state.
    #[error("the state machine gave no snapshot: {0}")]
    Machine(String),
}

impl SnapshotMeta {
    /// The life that it is of, if there can be such a one.
    #[must_use]
    pub fn life(&self) -> Option<Life> {
        u32::try_from(self.incarnation).ok().and_then(Life::new)
    }

    /// The header of a file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut configuration = Vec::new();
        put_configuration(&mut configuration, &self.configuration);
        let mut header = Vec::with_capacity(FIXED_BYTES + configuration.len() + 4);
        header.extend_from_slice(MAGIC);
        header.put_u32_le(VERSION);
        header.put_u32_le(configuration.len() as u32);
        header.put_u64_le(self.group.0);
        header.put_u64_le(self.incarnation);
        header.put_u64_le(self.last.term.0);
        header.put_u64_le(self.last.index.0);
        header.extend_from_slice(&configuration);
        let crc = crc32c::crc32c(&header);
        header.put_u32_le(crc);
        header
    }

    /// Reads the header at the start of `bytes`; returns its length too.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, usize), &'static str> {
        if bytes.len() < FIXED_BYTES || &bytes[..8] != MAGIC {
            return Err("it does not begin with a snapshot header");
        }
        let configuration = u32_at(bytes, 12) as usize;
        let end = FIXED_BYTES + configuration;
        if configuration > MAX_CONFIGURATION_BYTES || bytes.len() < end + 4 {
            return Err("its header is cut short");
        }
        if crc32c::crc32c(&bytes[..end]) != u32_at(bytes, end) {
            return Err("its header fails its checksum");
        }
        if u32_at(bytes, 8) != VERSION {
            return Err("it is of an unknown format version");
        }
        let configuration = parse_configuration(&bytes[FIXED_BYTES..end])
            .ok_or("its configuration is unreadable")?;
        let meta = Self {
            group: GroupId(u64_at(bytes, 16)),
            incarnation: u64_at(bytes, 24),
            last: LogPosition {
                term: Term(u64_at(bytes, 32)),
                index: Index(u64_at(bytes, 40)),
            },
            configuration,
        };
        if meta.last.index == Index::ZERO || meta.last.index.0 > u64::MAX / 2 {
            return Err("it is of an impossible place");
        }
        Ok((meta, end + 4))
    }
}

/// The end of a file: how long the body is, and the checksum over header and body.
pub(crate) fn trailer(body: u64, checksum: u32) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[..8].copy_from_slice(&body.to_le_bytes());
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    bytes[12..16].copy_from_slice(END_MAGIC);
    let crc = crc32c::crc32c(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads a trailer: body length and checksum.
pub(crate) fn parse_trailer(bytes: &[u8]) -> Result<(u64, u32), &'static str> {
    if bytes.len() != TRAILER_BYTES
        || &bytes[12..16] != END_MAGIC
        || crc32c::crc32c(&bytes[..16]) != u32_at(bytes, 16)
    {
        return Err("its end is missing or damaged");
    }
    Ok((u64_at(bytes, 0), u32_at(bytes, 8)))
}

/// The snapshots of a node.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    pub(crate) disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// None where somebody else may make files.
    places: Option<Arc<Places>>,
    room: Arc<Room>,
}

impl SnapshotStore {
    /// Opens the directory, removes what an earlier life left unfinished, and finds the newest snapshot of each group.
    ///
    /// A snapshot whose header or end is damaged is left where it is and not among the results. Those that are written and
    /// received leave `kept` bytes of the disk to the log.
    ///
    /// # Errors
    /// When the directory can't be made, synced or read.
    pub fn open(data_dir: &DataDir, kept: u64) -> Result<(Self, Vec<SnapshotFile>), SnapshotError> {
        let store = Self {
            disk: Arc::clone(data_dir.disk()),
            dir: data_dir.path().join(DIRECTORY),
            places: Some(Arc::default()),
            room: Arc::new(Room::keeping(kept)),
        };
        let (disk, dir) = (&store.disk, &store.dir);
        disk.create_dir(dir)
            .map_err(|error| failed(dir, "creating", &error))?;
        // A name that the next power cut takes back must not be relied on: the log may have been purged for it.
        disk.sync_dir(dir)
            .map_err(|error| failed(dir, "syncing", &error))?;
        let names = store.names()?;
        for name in names {
            if name.ends_with(".tmp") || name.ends_with(".part") {
                let path = dir.join(&name);
                disk.remove(&path)
                    .map_err(|error| failed(&path, "removing", &error))?;
            } else if let Some((group, last)) = parse_name(&name) {
                store.note(group, last);
            }
        }
        let mut newest: Vec<SnapshotFile> = Vec::new();
        for file in store.usable()? {
            match newest.last_mut() {
                Some(last) if last.meta.group == file.meta.group => {
                    let older = std::mem::replace(last, file);
                    store.remove_at(older.meta.group, older.meta.last);
                }
                _ => newest.push(file),
            }
        }
        Ok((store, newest))
    }

    /// The snapshots in a directory that may be somebody else's: nothing is made or removed.
    pub(crate) fn at(disk: &Arc<dyn Disk>, dir: impl Into<PathBuf>) -> Self {
        SnapshotStore {
            disk: Arc::clone(disk),
            dir: dir.into(),
            places: None,
            room: Arc::default(),
        }
    }

    fn names(&self) -> Result<Vec<String>, SnapshotError> {
        self.disk
            .list(&self.dir)
            .map_err(|error| failed(&self.dir, "listing", &error))
    }

    /// The newest snapshot of each group.
    pub(crate) fn newest(&self) -> Result<Vec<SnapshotFile>, SnapshotError> {
        let mut files = self.usable()?;
        files.reverse();
        files.dedup_by_key(|file| file.meta.group);
        files.reverse();
        Ok(files)
    }

    /// All that seem whole, by group, life and place.
    fn usable(&self) -> Result<Vec<SnapshotFile>, SnapshotError> {
        let mut found: Vec<SnapshotFile> = Vec::new();
        for name in self.names()? {
            let path = self.dir.join(&name);
            let Some(named) = parse_name(&name) else {
                continue;
            };
            match self.inspect(&path) {
                Ok(file) if (file.meta.group, file.meta.last) == named => found.push(file),
                Ok(_) => {
                    tracing::error!(path = %path.display(), "a snapshot is not what its name says")
                }
                Err(error) => tracing::error!(%error, "a snapshot is not used"),
            }
        }
        found.sort_unstable_by_key(|file| {
            let meta = &file.meta;
            (meta.group, meta.incarnation, meta.last.index)
        });
        Ok(found)
    }

    /// Reads a file's header and end.
    fn inspect(&self, path: &Path) -> Result<SnapshotFile, SnapshotError> {
        let damaged = |reason| SnapshotError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let io = |error: io::Error| failed(path, "reading", &error);
        let bytes = self.disk.file_bytes(path).map_err(io)?;
        let start = bytes.min(MAX_HEADER_BYTES as u64) as usize;
        let start = self.disk.read_at(path, 0, start).map_err(io)?;
        let (meta, header) = SnapshotMeta::parse(&start).map_err(damaged)?;
        let end = bytes
            .checked_sub(TRAILER_BYTES as u64)
            .ok_or_else(|| damaged("it is cut short"))?;
        let end_bytes = self.disk.read_at(path, end, TRAILER_BYTES).map_err(io)?;
        let (body, checksum) = parse_trailer(&end_bytes).map_err(damaged)?;
        if body.checked_add(header as u64) != Some(end) {
            return Err(damaged("it does not have the length that it says"));
        }
        Ok(SnapshotFile {
            meta,
            bytes,
            checksum,
        })
    }

    /// Writes a snapshot: `fill` gives the state. The file is whole and durable when this returns, or not there. Older
    /// snapshots of the group are removed; an intact one of the same place stays, and is returned.
    ///
    /// # Errors
    /// The first thing that went wrong; nothing is left of the attempt.
    pub fn write(
        &self,
        meta: &SnapshotMeta,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), String>,
    ) -> Result<SnapshotFile, SnapshotError> {
        let temporary = self
            .dir
            .join(format!("{}.tmp", stem(meta.group, meta.last)));
        let written = self.write_temporary(&temporary, meta, fill);
        self.publish(&temporary, written)
    }

    fn write_temporary(
        &self,
        path: &Path,
        meta: &SnapshotMeta,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), String>,
    ) -> Result<SnapshotFile, SnapshotError> {
        let io = |error: io::Error| failed(path, "writing", &error);
        self.disk.create(path).map_err(io)?;
        let mut out = Writer {
            store: self,
            path,
            buffer: meta.encode(),
            written: 0,
            checksum: 0,
            failure: None,
        };
        let header = out.buffer.len() as u64;
        let filled = fill(&mut out);
        if let Some(error) = out.failure.take() {
            return Err(io(error));
        }
        filled.map_err(SnapshotError::Machine)?;
        out.spill().map_err(io)?;
        let (body, checksum) = (out.written - header, out.checksum);
        let end = trailer(body, checksum);
        self.disk.write_at(path, out.written, &end).map_err(io)?;
        self.disk.sync_file(path).map_err(io)?;
        Ok(SnapshotFile {
            meta: meta.clone(),
            bytes: header + body + TRAILER_BYTES as u64,
            checksum,
        })
    }

    /// An intact snapshot of the same place, which has the same state, perhaps in other bytes. Not one whose name no sync has
    /// covered: nobody was told of it.
    fn twin(&self, file: &SnapshotFile) -> Option<SnapshotFile> {
        let place = |meta: &SnapshotMeta| (meta.group, meta.incarnation, meta.last);
        let known = self.places.as_ref()?.of(file.meta.group);
        if !known.contains(&file.meta.last) {
            return None;
        }
        let path = self.path(file.meta.group, file.meta.last);
        let there = self.inspect(&path).ok()?;
        let is_twin = place(&there.meta) == place(&file.meta);
        is_twin.then(|| self.verify(&path, Some(&there)).ok())?
    }

    /// Gives a synced file its final name, or removes it. One of the same place that is there already stays instead: somebody
    /// may be about to read it, and knows it by its bytes.
    fn publish(
        &self,
        temporary: &Path,
        written: Result<SnapshotFile, SnapshotError>,
    ) -> Result<SnapshotFile, SnapshotError> {
        let published = written.and_then(|file| {
            if let Some(twin) = self.twin(&file) {
                let _ = self.disk.remove(temporary);
                return Ok(twin);
            }
            let path = self.path(file.meta.group, file.meta.last);
            self.disk
                .rename(temporary, &path)
                .map_err(|error| failed(&path, "renaming", &error))?;
            if !mutants::is_active(Mutant::SnapshotNameNotSynced) {
                self.disk.sync_dir(&self.dir).map_err(|error| {
                    if let Some(places) = &self.places {
                        places.forget(file.meta.group, file.meta.last);
                    }
                    let _ = self.disk.remove(&path);
                    failed(&self.dir, "syncing", &error)
                })?;
            }
            Ok(file)
        });
        self.room.end(temporary);
        match &published {
            Ok(file) => {
                self.note(file.meta.group, file.meta.last);
                self.remove_all_but(&file.meta);
            }
            Err(_) => _ = self.disk.remove(temporary),
        }
        published
    }

    /// Removes every snapshot of a life of a group, and of those before it.
    pub fn remove(&self, group: GroupId, life: Life) {
        self.remove_if(group, |path, _| {
            let file = self.inspect(path);
            file.is_ok_and(|file| file.meta.incarnation <= u64::from(life.get()))
        });
    }

    /// Removes the older snapshots of a group: of earlier lives, and of earlier places.
    fn remove_all_but(&self, kept: &SnapshotMeta) {
        self.remove_if(kept.group, |path, last| match self.inspect(path) {
            Ok(file) if file.meta.incarnation == kept.incarnation => last.index < kept.last.index,
            Ok(file) => file.meta.incarnation < kept.incarnation,
            Err(_) => last.index < kept.last.index,
        });
    }

    /// Removes some snapshots of a group. What can't be removed now is removed at the next opening.
    fn remove_if(&self, group: GroupId, is_unwanted: impl Fn(&Path, LogPosition) -> bool) {
        let places = self
            .places
            .as_ref()
            .map_or(Vec::new(), |known| known.of(group));
        for last in places {
            if is_unwanted(&self.path(group, last), last) {
                self.remove_at(group, last);
            }
        }
    }

    fn remove_at(&self, group: GroupId, last: LogPosition) {
        let removed = self.disk.remove(&self.path(group, last));
        if let (Ok(()), Some(places)) = (removed, &self.places) {
            places.forget(group, last);
        }
    }

    fn note(&self, group: GroupId, last: LogPosition) {
        if let Some(places) = &self.places {
            places.note(group, last);
        }
    }

    /// Reads the state out of a snapshot, after all of its bytes were held against their checksum.
    ///
    /// # Errors
    /// When the file is not there or is not what was written.
    pub fn read(&self, file: &SnapshotFile) -> Result<SnapshotReader, SnapshotError> {
        let path = self.path(file.meta.group, file.meta.last);
        self.verify(&path, Some(file))?;
        Ok(self.reader(&path, file))
    }

    /// Reads the state out of a file that was verified.
    pub(crate) fn reader(&self, path: &Path, file: &SnapshotFile) -> SnapshotReader {
        SnapshotReader {
            disk: Arc::clone(&self.disk),
            path: path.to_owned(),
            at: file.meta.encode().len() as u64,
            end: file.bytes - TRAILER_BYTES as u64,
            piece: Vec::new(),
            taken: 0,
        }
    }

    /// Checks every byte of a file; with `expected`, also that it is that one.
    pub(crate) fn verify(
        &self,
        path: &Path,
        expected: Option<&SnapshotFile>,
    ) -> Result<SnapshotFile, SnapshotError> {
        let damaged = |reason| SnapshotError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let file = self.inspect(path)?;
        if expected.is_some_and(|expected| *expected != file) {
            return Err(damaged("it is another one than was meant"));
        }
        let end = file.bytes - TRAILER_BYTES as u64;
        let (mut at, mut checksum) = (0, 0);
        while at < end {
            let step = (end - at).min(PIECE_BYTES as u64);
            let piece = self
                .disk
                .read_at(path, at, step as usize)
                .map_err(|error| failed(path, "reading", &error))?;
            checksum = crc32c::crc32c_append(checksum, &piece);
            at += step;
        }
        if checksum != file.checksum && !mutants::is_active(Mutant::SnapshotNotVerified) {
            return Err(damaged("its bytes fail their checksum"));
        }
        Ok(file)
    }

    /// The first bytes of a snapshot's state, at most so many, without a look at its checksum: for what has one of its own.
    ///
    /// # Errors
    /// When the file is not there any more, or is too short.
    pub fn peek(&self, file: &SnapshotFile, bytes: usize) -> Result<Vec<u8>, SnapshotError> {
        let header = file.meta.encode().len() as u64;
        let state = file.bytes - header - TRAILER_BYTES as u64;
        let bytes = bytes.min(usize::try_from(state).unwrap_or(usize::MAX));
        self.chunk(file, header, bytes)
    }

    /// A part of a snapshot's file, as it is, for sending it.
    ///
    /// # Errors
    /// When the file is not there any more, or is too short.
    pub fn chunk(
        &self,
        file: &SnapshotFile,
        offset: u64,
        bytes: usize,
    ) -> Result<Vec<u8>, SnapshotError> {
        let path = self.path(file.meta.group, file.meta.last);
        let left = file.bytes.saturating_sub(offset);
        let bytes = bytes.min(usize::try_from(left).unwrap_or(usize::MAX));
        self.disk
            .read_at(&path, offset, bytes)
            .map_err(|error| failed(&path, "reading", &error))
    }

    /// Begins to take a snapshot of `needs` bytes from elsewhere, if there is room for it beside the others that come. What came of
    /// an earlier attempt for the group is lost.
    ///
    /// # Errors
    /// When there is no room, or the file can't be made.
    pub fn begin_receiving(&self, group: GroupId, needs: u64) -> Result<(), SnapshotError> {
        let path = self.part(group);
        let _ = self.disk.remove(&path);
        self.room.end(&path);
        let free = self
            .disk
            .free_bytes(&self.dir)
            .map_err(|error| failed(&self.dir, "measuring", &error))?;
        self.room
            .reserve(&path, needs, free)
            .and_then(|()| self.disk.create(&path))
            .inspect_err(|_| self.room.end(&path))
            .map_err(|error| failed(&path, "creating", &error))
    }

    /// Puts the next part of a snapshot behind what came before.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn receive(&self, group: GroupId, offset: u64, bytes: &[u8]) -> Result<(), SnapshotError> {
        let path = self.part(group);
        self.disk
            .write_at(&path, offset, bytes)
            .and_then(|()| self.sync_by_pieces(&path, offset, bytes.len()))
            .map_err(|error| failed(&path, "writing", &error))
    }

    /// All parts of `expected` have come: syncs, checks every byte, and gives the file its name. Older snapshots of the
    /// group are removed; an intact one of the same place stays, and is returned.
    ///
    /// # Errors
    /// When the bytes are not those of `expected`, or the disk fails; nothing is left of the attempt.
    pub fn finish_receiving(&self, expected: &SnapshotFile) -> Result<SnapshotFile, SnapshotError> {
        let path = self.part(expected.meta.group);
        let synced = self
            .disk
            .sync_file(&path)
            .map_err(|error| failed(&path, "syncing", &error));
        let checked = synced.and_then(|()| self.verify(&path, Some(expected)));
        self.publish(&path, checked)
    }

    /// Forgets what came of a snapshot.
    pub fn abandon_receiving(&self, group: GroupId) {
        let path = self.part(group);
        let _ = self.disk.remove(&path);
        self.room.end(&path);
    }

    /// Syncs a long file bit by bit while it is written: a gigabyte that goes to the device at once holds up the log's syncs. The
    /// file goes on only while there is room.
    fn sync_by_pieces(&self, path: &Path, offset: u64, bytes: usize) -> io::Result<()> {
        let end = offset + bytes as u64;
        if offset / SYNC_BYTES == end / SYNC_BYTES {
            return Ok(());
        }
        self.disk.sync_file(path)?;
        let free = self.disk.free_bytes(&self.dir)?;
        self.room.take(path, end, free)
    }

    fn path(&self, group: GroupId, last: LogPosition) -> PathBuf {
        self.dir.join(format!("{}.snap", stem(group, last)))
    }

    fn part(&self, group: GroupId) -> PathBuf {
        self.dir.join(format!("{}.part", group.0))
    }
}

pub(crate) fn failed(path: &Path, action: &'static str, error: &io::Error) -> SnapshotError {
    SnapshotError::Io {
        path: path.to_owned(),
        action,
        message: error.to_string(),
        kind: error.kind(),
    }
}

impl From<SnapshotError> for StorageError {
    fn from(error: SnapshotError) -> Self {
        let (path, action, kind) = match &error {
            SnapshotError::Io {
                path, action, kind, ..
            } => (path.clone(), *action, *kind),
            SnapshotError::Damaged { path, .. } | SnapshotError::Useless { path, .. } => (
                path.clone(),
                "reading a snapshot",
                io::ErrorKind::InvalidData,
            ),
            SnapshotError::Machine(_) => {
                (PathBuf::new(), "writing a snapshot", io::ErrorKind::Other)
            }
        };
        StorageError::Io {
            path,
            action,
            message: error.to_string(),
            kind,
        }
    }
}

fn stem(group: GroupId, last: LogPosition) -> String {
    format!("{}-{}-{}", group.0, last.index.0, last.term.0)
}

/// The group and place in a file's name.
fn parse_name(name: &str) -> Option<(GroupId, LogPosition)> {
    let mut parts = name.strip_suffix(".snap")?.split('-');
    let mut number = || parts.next()?.parse().ok();
    let (group, index, term) = (number()?, number()?, number()?);
    let last = LogPosition {
        term: Term(term),
        index: Index(index),
    };
    (parts.next().is_none() && name == format!("{}.snap", stem(GroupId(group), last)))
        .then_some((GroupId(group), last))
}

/// Collects what a state machine writes into pieces.
struct Writer<'a> {
    store: &'a SnapshotStore,
    path: &'a Path,
    buffer: Vec<u8>,
    /// Bytes of the file that were written.
    written: u64,
    /// Of those.
    checksum: u32,
    /// What the disk said; a state machine may hide it.
    failure: Option<io::Error>,
}

impl Writer<'_> {
    fn spill(&mut self) -> io::Result<()> {
        let (at, bytes) = (self.written, self.buffer.len());
        self.store.disk.write_at(self.path, at, &self.buffer)?;
        self.store.sync_by_pieces(self.path, at, bytes)?;
        self.checksum = crc32c::crc32c_append(self.checksum, &self.buffer);
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::Error::other("the snapshot could not be written"));
        }
        let taken = bytes.len().min(PIECE_BYTES);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() >= PIECE_BYTES
            && let Err(error) = self.spill()
        {
            self.failure = Some(error);
            return Err(io::Error::other("the snapshot could not be written"));
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The state in a snapshot, piece by piece.
#[derive(Debug)]
pub struct SnapshotReader {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// Of the file: what is not read yet, up to the trailer.
    at: u64,
    end: u64,
    piece: Vec<u8>,
    /// Of the piece.
    taken: usize,
}

impl Read for SnapshotReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.piece.len() && self.at < self.end {
            let step = (self.end - self.at).min(PIECE_BYTES as u64);
            self.piece = self.disk.read_at(&self.path, self.at, step as usize)?;
            self.taken = 0;
            self.at += step;
        }
        let left = &self.piece[self.taken..];
        let bytes = left.len().min(into.len());
        into[..bytes].copy_from_slice(&left[..bytes]);
        self.taken += bytes;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;

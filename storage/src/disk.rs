//! Owns the seam to the disk: every file operation of this crate goes through [`Disk`] and [`SegmentFile`].
//! Must never retry, and never report success before the operating system did.

use std::cell::Cell;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapMut;
use polyraft_raft::mutants::{self, Mutant};
use rustix::fs::{Advice, FlockOperation, OFlags};

use crate::file_segment::FileSegment;
use crate::format::PAGE_BYTES;
use crate::options::WalMode;

/// How a segment file is to be used.
#[derive(Clone, Copy, Debug)]
pub struct SegmentSpec {
    /// Append path.
    pub mode: WalMode,
    /// Whether batches bypass the page cache.
    pub direct_io: bool,
}

/// A file system: the real one, or a simulated one that loses what was not synced.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a directory and its parents, durably. It may exist.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, sorted. A missing directory is empty.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// A whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Length of a file.
    fn file_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Writes a whole file, new or truncated, of these parts, one behind the other, and syncs it. Its name is durable only
    /// after `sync_dir`.
    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()>;
    /// Overwrites a part of an existing file and syncs it. Needs no free space.
    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes an empty file, or empties the one that is there. Nothing of that is durable before `sync_file`.
    fn create(&self, path: &Path) -> io::Result<()>;
    /// Writes a part of an existing file, beyond its end too; durable only after `sync_file`.
    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// The barrier for what was written to a file. Its name is durable only after `sync_dir`.
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    /// A part of a file; an error when the file ends before it.
    fn read_at(&self, path: &Path, offset: u64, bytes: usize) -> io::Result<Vec<u8>>;
    /// Renames within a directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Takes an exclusive lock until the guard is dropped; `WouldBlock` when somebody has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
    /// Fills a file, new or recycled, with `bytes` real zeros and syncs it. Calls `between` after each piece of at most
    /// 1 MiB, which may wait, so that the writes of others get through.
    fn zero_segment(
        &self,
        path: &Path,
        bytes: u64,
        spec: SegmentSpec,
        between: &dyn Fn(),
    ) -> io::Result<()>;
    /// Syncs a file and then drops what is cached of it, so that reads show what is on stable storage. A process that was
    /// killed leaves bytes in the cache that wait to be written; after a failed sync the cache has bytes that count as
    /// clean and never got there.
    fn forget_cached(&self, path: &Path) -> io::Result<()>;
    /// A file is going to be read, all of it and in no order. A hint, which may do nothing.
    fn expect_reads(&self, _path: &Path) {}
    /// Whether several threads may use it at a time with the same outcome as one after the other. Not so where what happens depends on
    /// how many operations came before.
    fn serves_threads(&self) -> bool {
        false
    }
    /// Opens a segment file for reading and appending.
    fn open_segment(&self, path: &Path, spec: SegmentSpec) -> io::Result<Arc<dyn SegmentFile>>;
    /// Free bytes on the file system of a directory.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Bits nobody can guess.
    fn entropy(&self) -> io::Result<u128>;

    /// A whole file as it is on stable storage, whatever a process that was killed or a sync that failed left in the
    /// cache.
    fn read_stable(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.forget_cached(path)?;
        self.read(path)
    }

    /// Replaces a file atomically and durably.
    fn replace(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let written = self.write_new(&temporary, parts);
        if let Err(error) = written.and_then(|()| self.rename(&temporary, path)) {
            // A part of it would keep room from others.
            let _ = self.remove(&temporary);
            return Err(error);
        }
        if mutants::is_active(Mutant::ReplacedNameNotSynced) {
            return Ok(());
        }
        self.sync_dir(path.parent().unwrap_or(Path::new(".")))
    }
}

/// One open segment. Offsets and lengths given to `write` are multiples of 4096.
pub trait SegmentFile: Send + Sync + fmt::Debug {
    /// Length of the file in bytes.
    fn len(&self) -> u64;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Writes; durable only after `sync`. `bytes` must start at a page boundary in memory.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// The barrier: what was written to the range is on stable storage afterwards.
    fn sync(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Bytes of the file without a copy. They keep the segment open. The range must not be written any more.
    fn read(self: Arc<Self>, offset: u64, bytes: usize) -> Bytes;
}

/// The machine's file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct FileDisk;

/// What a mapped segment is zeroed with: large writes would fill the page cache with large folios, and
/// a later msync of one page would then write the whole folio.
const SMALL_FILL: usize = PAGE_BYTES;
/// Bytes of a large file between two syncs: one sync of all of it would hold up those of others.
const SYNCED_AT_ONCE: usize = 1 << 20;
/// What a segment is zeroed with past the page cache.
const LARGE_FILL: usize = 1 << 20;

impl Disk for FileDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_dir(parent)?;
        }
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.sync_dir(parent.unwrap_or(Path::new(".")))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let mut file = File::create(path)?;
        let mut unsynced = 0;
        for part in parts.iter().flat_map(|part| part.chunks(SYNCED_AT_ONCE)) {
            file.write_all(part)?;
            unsynced += part.len();
            if unsynced >= SYNCED_AT_ONCE {
                file.sync_data()?;
                unsynced = 0;
            }
        }
        file.sync_all()
    }

    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(bytes, offset)?;
        file.sync_all()
    }

    fn create(&self, path: &Path) -> io::Result<()> {
        File::create(path).map(drop)
    }

    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(bytes, offset)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.sync_all()
    }

    fn read_at(&self, path: &Path, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut read = vec![0; bytes];
        File::open(path)?.read_exact_at(&mut read, offset)?;
        Ok(read)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(file))
    }

    fn zero_segment(
        &self,
        path: &Path,
        bytes: u64,
        spec: SegmentSpec,
        between: &dyn Fn(),
    ) -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        // Pages cached by an earlier use would keep their large folios.
        drop_cache(&file)?;
        match spec.mode {
            WalMode::Direct => fill_past_the_cache(&file, path, bytes, between)?,
            WalMode::Mapped => fill_the_cache(&file, &[0; SMALL_FILL], bytes, between)?,
        }
        file.set_len(bytes)?;
        file.sync_all()?;
        if spec.direct_io {
            drop_cache(&file)
        } else {
            Ok(())
        }
    }

    fn forget_cached(&self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        file.sync_data()?;
        drop_cache(&file)
    }

    fn expect_reads(&self, path: &Path) {
        // What fails here fails again, and loudly, when somebody reads.
        if let Ok(file) = File::open(path) {
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::WillNeed);
        }
    }

    fn serves_threads(&self) -> bool {
        true
    }

    fn open_segment(&self, path: &Path, spec: SegmentSpec) -> io::Result<Arc<dyn SegmentFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let direct = match spec.direct_io {
            true => Some(
                OpenOptions::new()
                    .write(true)
                    .custom_flags(OFlags::DIRECT.bits() as i32)
                    .open(path)?,
            ),
            false => None,
        };
        Ok(Arc::new(FileSegment::new(file, direct, spec.mode)?))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn entropy(&self) -> io::Result<u128> {
        let mut bytes = [0; 16];
        io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }
}

/// Zeroes a file without copying zeros into the page cache, which costs about ten times the processor time. A file system
/// that has no direct writes gets ordinary ones.
fn fill_past_the_cache(file: &File, path: &Path, bytes: u64, between: &dyn Fn()) -> io::Result<()> {
    // Anonymous memory begins at a page boundary, as direct writes demand.
    let zeros = MmapMut::map_anon(LARGE_FILL)?;
    let direct = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(path);
    match direct.and_then(|direct| fill(&direct, &zeros, bytes, between)) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) =>
        {
            fill_the_cache(file, &zeros, bytes, between)
        }
        filled => filled,
    }
}

/// Zeroes a file through the page cache, and has it written piece by piece: one sync of all of it would hold up those of
/// others.
fn fill_the_cache(file: &File, unit: &[u8], bytes: u64, between: &dyn Fn()) -> io::Result<()> {
    let failed = Cell::new(None);
    let sync = || {
        if let Err(error) = file.sync_data() {
            failed.set(Some(error));
        }
        between();
    };
    fill(file, unit, bytes, &sync)?;
    failed.into_inner().map_or(Ok(()), Err)
}

/// Writes `unit` over and over into the first `bytes` bytes.
fn fill(file: &File, unit: &[u8], bytes: u64, between: &dyn Fn()) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let step = (bytes - at).min(unit.len() as u64);
        file.write_all_at(&unit[..step as usize], at)?;
        at += step;
        if at.is_multiple_of(LARGE_FILL as u64) && at < bytes {
            between();
        }
    }
    Ok(())
}

fn drop_cache(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
}

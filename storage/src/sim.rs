//! Owns a simulated disk for tests: it keeps what was synced, and at a power cut any part of the rest.
//! Must never be more forgiving than a real disk: what no sync covered may be lost, torn or persisted out of order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::disk::{Disk, SegmentFile, SegmentSpec};
use crate::options::WalMode;

/// What the hardware writes as a whole.
const SECTOR: usize = 512;

/// Which unsynced sectors survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None.
    Nothing,
    /// All.
    Everything,
    /// Whole pages of 4096 bytes with an even number.
    EvenPages,
    /// Whole pages of 4096 bytes with an odd number.
    OddPages,
    /// All but the first dirty sector of each file: the write was reordered.
    NotTheFirst,
    /// All but the last dirty sector of each file: the write was cut short.
    NotTheLast,
    /// A pseudo-random half, by seed.
    Some(u64),
}

/// A disk in memory. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    names: BTreeMap<PathBuf, u64>,
    /// The names that a power cut leaves.
    durable_names: BTreeMap<PathBuf, u64>,
    files: BTreeMap<u64, SimFile>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    next_file: u64,
    capacity: u64,
    seed: u64,
    operations: u64,
    cut_at: Option<u64>,
    fail_sync_at: Option<u64>,
}

#[derive(Clone, Default)]
struct SimFile {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors of `current` that no sync has covered.
    dirty: BTreeSet<usize>,
}

impl SimDisk {
    /// An empty disk of unlimited size. The seed decides what `entropy` gives.
    pub fn new(seed: u64) -> Self {
        let state = State {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            files: BTreeMap::new(),
            directories: BTreeSet::new(),
            locks: BTreeSet::new(),
            next_file: 0,
            capacity: u64::MAX,
            seed,
            operations: 0,
            cut_at: None,
            fail_sync_at: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Writes and syncs so far.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Cuts the power before operation number `operation`: it and all later ones fail.
    pub fn cut_at(&self, operation: u64) {
        self.state.lock().cut_at = Some(operation);
    }

    /// Makes the next sync at or after operation number `operation` fail, and lose what it should have made durable.
    pub fn fail_sync_at(&self, operation: u64) {
        self.state.lock().fail_sync_at = Some(operation);
    }

    /// Limits the disk to `bytes`.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity = bytes;
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// The disk after a power cut and a restart.
    pub fn after_power_cut(&self, keep: Keep) -> Self {
        let state = self.state.lock();
        // Unsynced names survive or not, whatever happens to the bytes.
        let loses_names = [
            Keep::Nothing,
            Keep::OddPages,
            Keep::NotTheLast,
            Keep::Some(2),
        ]
        .contains(&keep);
        let names = if loses_names {
            &state.durable_names
        } else {
            &state.names
        };
        let after = State {
            names: names.clone(),
            durable_names: names.clone(),
            files: state
                .files
                .iter()
                .map(|(id, file)| (*id, file.after_power_cut(keep, *id)))
                .collect(),
            directories: state.directories.clone(),
            locks: BTreeSet::new(),
            next_file: state.next_file,
            capacity: state.capacity,
            seed: state.seed.wrapping_add(1),
            operations: 0,
            cut_at: None,
            fail_sync_at: None,
        };
        Self {
            state: Arc::new(Mutex::new(after)),
        }
    }

    /// All files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.state.lock().names.keys().cloned().collect()
    }

    /// Changes bytes of a file behind everybody's back, as rot does. Panics when there is no such file.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        let id = state.names[path];
        let file = state.files.get_mut(&id).expect("a name has a file");
        change(&mut file.current);
        file.durable.clone_from(&file.current);
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk")
            .field("files", &self.state.lock().names.len())
            .finish_non_exhaustive()
    }
}

impl State {
    /// Counts an operation; fails it when the power is off.
    fn step(&mut self) -> io::Result<()> {
        let operation = self.operations;
        if self.cut_at.is_some_and(|cut| operation >= cut) {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        Ok(())
    }

    fn step_sync(&mut self) -> io::Result<bool> {
        let operation = self.operations;
        self.step()?;
        Ok(self.fail_sync_at.take_if(|at| *at <= operation).is_some())
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .map(|id| self.files[id].current.len() as u64)
            .sum()
    }

    fn file(&mut self, path: &Path) -> io::Result<&mut SimFile> {
        let id = self
            .names
            .get(path)
            .copied()
            .ok_or(io::ErrorKind::NotFound)?;
        self.files
            .get_mut(&id)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&mut self, path: &Path) -> u64 {
        if let Some(id) = self.names.get(path) {
            return *id;
        }
        let id = self.next_file;
        self.next_file += 1;
        self.names.insert(path.to_owned(), id);
        self.files.insert(id, SimFile::default());
        id
    }

    fn grow(&mut self, id: u64, bytes: u64) -> io::Result<()> {
        let have = self.files[&id].current.len() as u64;
        if self.used() + bytes.saturating_sub(have) > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn write(&mut self, id: u64, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.step()?;
        self.grow(id, (offset + bytes.len()) as u64)?;
        let file = self.files.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        let end = offset + bytes.len();
        if file.current.len() < end {
            file.current.resize(end, 0);
        }
        file.current[offset..end].copy_from_slice(bytes);
        file.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
        Ok(())
    }

    fn sync(&mut self, id: u64, sectors: std::ops::Range<usize>) -> io::Result<()> {
        let fails = self.step_sync()?;
        let file = self.files.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        let synced: Vec<usize> = file.dirty.range(sectors).copied().collect();
        for sector in synced {
            file.dirty.remove(&sector);
            if !fails {
                file.keep(sector);
            }
        }
        match fails {
            // As Linux does: the pages count as clean from now on, and a second sync would succeed.
            true => Err(io::Error::other("the sync failed")),
            false => Ok(()),
        }
    }
}

impl SimFile {
    /// Makes one sector durable.
    fn keep(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.current.len());
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(&self.current[start..end]);
    }

    fn after_power_cut(&self, keep: Keep, id: u64) -> Self {
        let mut file = self.clone();
        let (first, last) = (self.dirty.first().copied(), self.dirty.last().copied());
        for sector in &self.dirty {
            let page = sector * SECTOR / 4096;
            let kept = match keep {
                Keep::Nothing => false,
                Keep::Everything => true,
                Keep::EvenPages => page.is_multiple_of(2),
                Keep::OddPages => !page.is_multiple_of(2),
                Keep::NotTheFirst => Some(*sector) != first,
                Keep::NotTheLast => Some(*sector) != last,
                Keep::Some(seed) => mix(seed ^ mix(id) ^ *sector as u64).is_multiple_of(2),
            };
            if kept {
                file.keep(*sector);
            }
        }
        Self {
            current: file.durable.clone(),
            durable: file.durable,
            dirty: BTreeSet::new(),
        }
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (value ^ value >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ value >> 32
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.state
            .lock()
            .directories
            .extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.step_sync()? {
            return Err(io::Error::other("the directory sync failed"));
        }
        let state = &mut *state;
        state
            .durable_names
            .retain(|name, _| name.parent() != Some(path));
        let inside = state
            .names
            .iter()
            .filter(|(name, _)| name.parent() == Some(path));
        state
            .durable_names
            .extend(inside.map(|(name, id)| (name.clone(), *id)));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        let names = state
            .names
            .keys()
            .chain(&state.directories)
            .filter(|name| name.parent() == Some(path));
        Ok(names
            .filter_map(|name| Some(name.file_name()?.to_string_lossy().into_owned()))
            .collect())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.state.lock().file(path)?.current.clone())
    }

    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        Ok(self.state.lock().file(path)?.current.len() as u64)
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.create(path);
        let file = state.file(path)?;
        file.current.clear();
        file.dirty.clear();
        // Truncated at once, the worst case for a reader of the old content.
        file.durable.clear();
        state.write(id, 0, bytes)?;
        state.sync(id, 0..usize::MAX)
    }

    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state
            .names
            .get(path)
            .copied()
            .ok_or(io::ErrorKind::NotFound)?;
        state.write(id, offset as usize, bytes)?;
        state.sync(id, 0..usize::MAX)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        let id = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state
            .names
            .remove(path)
            .map(|_| ())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        if !self.state.lock().locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock {
            disk: self.clone(),
            path: path.to_owned(),
        }))
    }

    fn zero_segment(&self, path: &Path, bytes: u64, _: SegmentSpec) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.create(path);
        let file = state.file(path)?;
        file.current.truncate(bytes as usize);
        file.durable.truncate(bytes as usize);
        state.write(id, 0, &vec![0; bytes as usize])?;
        state.sync(id, 0..usize::MAX)
    }

    fn open_segment(&self, path: &Path, spec: SegmentSpec) -> io::Result<Arc<dyn SegmentFile>> {
        let id = self
            .state
            .lock()
            .names
            .get(path)
            .copied()
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimSegment {
            disk: self.clone(),
            id,
            mode: spec.mode,
        }))
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = self.state.lock();
        Ok(state.capacity.saturating_sub(state.used()))
    }

    fn entropy(&self) -> io::Result<u128> {
        let mut state = self.state.lock();
        state.seed = mix(state.seed.wrapping_add(1));
        Ok(u128::from(state.seed))
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state.lock().locks.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimSegment {
    disk: SimDisk,
    id: u64,
    mode: WalMode,
}

impl SegmentFile for SimSegment {
    fn len(&self) -> u64 {
        self.disk.state.lock().files[&self.id].current.len() as u64
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk
            .state
            .lock()
            .write(self.id, offset as usize, bytes)
    }

    fn sync(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let sectors = match self.mode {
            WalMode::Direct => 0..usize::MAX,
            WalMode::Mapped => {
                offset as usize / SECTOR..((offset + bytes) as usize).div_ceil(SECTOR)
            }
        };
        self.disk.state.lock().sync(self.id, sectors)
    }

    fn read(self: Arc<Self>, offset: u64, bytes: usize) -> Bytes {
        let state = self.disk.state.lock();
        Bytes::copy_from_slice(
            &state.files[&self.id].current[offset as usize..offset as usize + bytes],
        )
    }
}

//! Owns a simulated disk for tests: it keeps what was synced, and at a power cut any part of the rest.
//! Must never be more forgiving than a real disk: what no sync covered may be lost, torn or persisted out of order.
//!
//! Everything that happens follows from the calls and the seeds. Time is the caller's: a disk is as slow or as stalled as whoever
//! drives [`crate::Wal::pump`] and [`crate::Wal::tend`] wants it to be.

mod faults;
mod file;
mod loss;
pub mod model;
mod names;
mod pages;
mod records;
mod segment;
mod stall;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, SegmentFile, SegmentSpec};

use faults::Faults;
pub use faults::{Astray, Failure};
use file::SimFile;
use loss::mix;
pub use loss::{Keep, KeepNames};
use names::Names;
use pages::{Pages, SECTOR};
pub use records::{Payload, payloads};
use segment::SimSegment;
pub use stall::StallDisk;

/// A disk in memory. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// Cloning it costs a few pointers per file.
#[derive(Clone)]
struct State {
    names: Names,
    files: BTreeMap<u64, Arc<SimFile>>,
    /// Segments that are open, by file.
    open: BTreeMap<u64, u64>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    next_file: u64,
    seed: u64,
    operations: u64,
    faults: Faults,
    /// The disk before each operation, when somebody asked for that.
    images: Option<Vec<State>>,
}

impl SimDisk {
    /// An empty disk of unlimited size. The seed decides what `entropy` gives and what faults do.
    pub fn new(seed: u64) -> Self {
        Self::from_state(State {
            names: Names::default(),
            files: BTreeMap::new(),
            open: BTreeMap::new(),
            directories: BTreeSet::new(),
            locks: BTreeSet::new(),
            next_file: 0,
            seed,
            operations: 0,
            faults: Faults::default(),
            images: None,
        })
    }

    fn from_state(state: State) -> Self {
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Writes and syncs so far.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// The disk after a power cut and a restart. It shares nothing with this one, which stays as it is: to roll a data
    /// directory back to what it was, keep one of these.
    ///
    /// The names that survive go with the pattern; see [`Self::after_power_cut_with`] for choosing both.
    pub fn after_power_cut(&self, keep: Keep) -> Self {
        self.after_power_cut_with(keep, keep.names())
    }

    /// The disk after the crash of a process on a machine that runs on: whatever was cached still is, also what a failed
    /// sync never stored. It shares nothing with this one.
    pub fn after_process_crash(&self) -> Self {
        let mut state = self.state.lock().clone();
        state.open.clear();
        state.locks.clear();
        state.seed = state.seed.wrapping_add(1);
        state.operations = 0;
        state.faults = state.faults.after_power_cut();
        state.images = None;
        state.forget_unreachable();
        Self::from_state(state)
    }

    /// The disk after a power cut, with a choice for unsynced sectors and one for unsynced names.
    pub fn after_power_cut_with(&self, keep: Keep, names: KeepNames) -> Self {
        let state = self.state.lock();
        let names = state.names.after_power_cut(names);
        let left: BTreeSet<u64> = names.files().collect();
        let files = state.files.iter().filter(|(id, _)| left.contains(id));
        let files = files.map(|(id, file)| match file.is_settled() {
            true => (*id, Arc::clone(file)),
            false => (*id, Arc::new(file.after_power_cut(keep, *id))),
        });
        Self::from_state(State {
            files: files.collect(),
            names,
            open: BTreeMap::new(),
            directories: state.directories.clone(),
            locks: BTreeSet::new(),
            next_file: state.next_file,
            seed: state.seed.wrapping_add(1),
            operations: 0,
            faults: state.faults.after_power_cut(),
            images: None,
        })
    }

    /// From now on its chance follows from this seed: a copy that shall not draw the numbers of the original.
    pub fn reseed(&self, seed: u64) {
        self.state.lock().seed = seed;
    }

    /// Whether a power cut could lose a part of a file now.
    pub fn has_unsynced_bytes(&self) -> bool {
        let state = self.state.lock();
        !state.files.values().all(|file| file.is_settled())
    }

    /// Whether a power cut could undo a creation, a renaming or a removal now.
    pub fn has_unsynced_names(&self) -> bool {
        !self.state.lock().names.is_settled()
    }

    /// From now on, remembers the disk as it is before each operation.
    pub fn record_images(&self) {
        self.state.lock().images = Some(Vec::new());
    }

    /// The disks before each operation since [`Self::record_images`]. Nothing is remembered from now on.
    pub fn take_images(&self) -> Vec<Self> {
        let images = self.state.lock().images.take();
        images.into_iter().flatten().map(Self::from_state).collect()
    }

    /// All files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.state.lock().names.paths().cloned().collect()
    }

    /// Changes bytes of a file behind everybody's back, as rot does. Panics when there is no such file.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        let file = state.file_mut(path).expect("the file to damage exists");
        let mut bytes = file.current.to_vec();
        change(&mut bytes);
        *file = SimFile::settled(Pages::from_slice(&bytes));
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("SimDisk")
            .field("files", &state.names.paths().count())
            .field("operations", &state.operations)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Counts an operation; fails it when the power is off.
    fn step(&mut self) -> io::Result<u64> {
        let operation = self.operations;
        self.faults.check_power(operation)?;
        if let Some(mut images) = self.images.take() {
            images.push(self.clone());
            self.images = Some(images);
        }
        self.operations += 1;
        Ok(operation)
    }

    fn used(&self) -> u64 {
        let bytes = |id| self.files[&id].current.len() as u64;
        self.names.files().map(bytes).sum()
    }

    fn id(&self, path: &Path) -> io::Result<u64> {
        self.names
            .get(path)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn file(&self, path: &Path) -> io::Result<&SimFile> {
        Ok(&self.files[&self.id(path)?])
    }

    fn file_mut(&mut self, path: &Path) -> io::Result<&mut SimFile> {
        let id = self.id(path)?;
        Ok(self.file_by_id(id))
    }

    /// Panics without such a file: ids come from names and open segments, which keep their file.
    fn file_by_id(&mut self, id: u64) -> &mut SimFile {
        Arc::make_mut(self.files.get_mut(&id).expect("the file exists"))
    }

    fn create(&mut self, path: &Path) -> u64 {
        if let Some(id) = self.names.get(path) {
            return id;
        }
        let id = self.next_file;
        self.next_file += 1;
        self.names.create(path, id);
        self.files.insert(id, Arc::default());
        id
    }

    /// How many of `bytes` a file can grow to.
    fn room(&self, id: u64, bytes: usize) -> usize {
        let have = self.files[&id].current.len();
        if bytes <= have || self.faults.capacity == u64::MAX {
            return bytes;
        }
        let free = self.faults.capacity.saturating_sub(self.used());
        bytes.min(have.saturating_add(usize::try_from(free).unwrap_or(usize::MAX)))
    }

    fn write(&mut self, id: u64, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let operation = self.step()?;
        let end = self.room(id, offset + bytes.len());
        let fits = end.saturating_sub(offset);
        if fits < bytes.len() {
            // As far as it goes.
            let part = whole_sectors(offset, fits);
            self.file_by_id(id).write(offset, &bytes[..part]);
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.faults.fails_write() {
            let part = (mix(self.seed ^ operation) as usize) % (bytes.len() + 1);
            let part = whole_sectors(offset, part);
            self.file_by_id(id).write(offset, &bytes[..part]);
            return Err(io::Error::other("the write failed"));
        }
        if let Some(astray) = self.goes_astray(operation, id) {
            self.misdirect(astray, id, offset, bytes);
            return Ok(());
        }
        self.file_by_id(id).write(offset, bytes);
        Ok(())
    }

    fn zero(&mut self, id: u64, bytes: usize) -> io::Result<()> {
        self.step()?;
        let fits = self.room(id, bytes);
        if fits < bytes {
            let have = self.files[&id].current.len();
            self.file_by_id(id).write(have, &vec![0; fits - have]);
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.faults.fails_write() {
            return Err(io::Error::other("the write failed"));
        }
        self.file_by_id(id).zero(bytes);
        Ok(())
    }

    fn sync(&mut self, id: u64, bytes: std::ops::Range<usize>) -> io::Result<()> {
        let operation = self.step()?;
        let failure = self.faults.fails_sync(operation);
        let seed = mix(self.seed ^ operation);
        let file = self.file_by_id(id);
        match failure {
            None => file.sync(bytes, |_| true),
            // As Linux does: the pages count as clean from now on, and a second sync would succeed.
            Some(faults::Loss::All) => file.sync(bytes, |_| false),
            Some(faults::Loss::Part) => {
                file.sync(bytes, |sector| mix(seed ^ sector as u64).is_multiple_of(2))
            }
        }
        match failure {
            Some(_) => Err(io::Error::other("the sync failed")),
            None => Ok(()),
        }
    }

    /// Drops files that nothing can reach any more.
    fn forget_unreachable(&mut self) {
        let reachable = self.names.reachable();
        let open = &self.open;
        self.files
            .retain(|id, _| reachable.contains(id) || open.contains_key(id));
    }
}

/// How much of a write of `bytes` bytes at `offset` is there when it ends with an error: devices write whole sectors, and the
/// kernel fills its cache by whole pages.
fn whole_sectors(offset: usize, bytes: usize) -> usize {
    let end = (offset + bytes) / SECTOR * SECTOR;
    end.saturating_sub(offset)
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state
            .directories
            .extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let operation = state.step()?;
        if state.faults.fails_sync(operation).is_some() {
            return Err(io::Error::other("the directory sync failed"));
        }
        state.names.sync(path);
        state.forget_unreachable();
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        let names = state.names.paths().chain(&state.directories);
        let inside = names.filter(|name| name.parent() == Some(path));
        Ok(inside
            .filter_map(|name| Some(name.file_name()?.to_string_lossy().into_owned()))
            .collect())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.state.lock().file(path)?.current.to_vec())
    }

    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        Ok(self.state.lock().file(path)?.current.len() as u64)
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.create(path);
        state.file_by_id(id).clear();
        state.write(id, 0, &parts.concat())?;
        state.sync(id, 0..usize::MAX)
    }

    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.id(path)?;
        state.write(id, offset as usize, bytes)?;
        state.sync(id, 0..usize::MAX)
    }

    fn create(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        let id = state.create(path);
        state.file_by_id(id).clear();
        Ok(())
    }

    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.id(path)?;
        state.write(id, offset as usize, bytes)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.id(path)?;
        state.sync(id, 0..usize::MAX)
    }

    fn read_at(&self, path: &Path, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let file = state.file(path)?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        match offset.checked_add(bytes) {
            Some(end) if end <= file.current.len() => Ok(file.current.read(offset, bytes).to_vec()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        match state.names.rename(from, to) {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        match state.names.remove(path) {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
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

    fn zero_segment(
        &self,
        path: &Path,
        bytes: u64,
        _: SegmentSpec,
        _: &dyn Fn(),
    ) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.create(path);
        state.zero(id, bytes as usize)?;
        state.sync(id, 0..usize::MAX)
    }

    fn forget_cached(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.id(path)?;
        state.sync(id, 0..usize::MAX)?;
        state.file_by_id(id).forget_cached();
        Ok(())
    }

    fn open_segment(&self, path: &Path, spec: SegmentSpec) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(SimSegment::open(self, path, spec.mode)?))
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = self.state.lock();
        Ok(state.faults.capacity.saturating_sub(state.used()))
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

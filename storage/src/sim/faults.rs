//! Owns the faults that a simulated disk can be told to show: power cuts, errors, no space, rot, writes that land elsewhere.
//! Must never show one that nobody asked for.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::SimDisk;
use super::State;
use super::loss::mix;
use super::pages::PAGE;

/// How long an error lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The next operation of its kind fails, the ones behind it do not.
    Once,
    /// All operations of its kind fail until [`SimDisk::heal`].
    Lasting,
}

/// Where a write really went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Astray {
    /// To another place of the same file, drawn by seed.
    SameFile(u64),
    /// To a place in another file of the same directory, drawn by seed; to the same file when there is no other.
    OtherFile(u64),
    /// Nowhere.
    Nowhere,
}

/// What a failed sync loses of what it should have covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    All,
    /// A pseudo-random half.
    Part,
}

#[derive(Clone)]
pub(super) struct Faults {
    pub(super) capacity: u64,
    cut_at: Option<u64>,
    fail_sync_at: Option<u64>,
    writes: Option<Failure>,
    syncs: Option<Failure>,
    opens: Option<Failure>,
    astray: Option<Aim>,
    /// Writes and syncs that failed because they were to.
    failed: (u64, u64),
}

/// Which write goes astray: the first one from an operation on, in any directory or in one.
#[derive(Clone)]
struct Aim {
    from: u64,
    directory: Option<PathBuf>,
    astray: Astray,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            capacity: u64::MAX,
            cut_at: None,
            fail_sync_at: None,
            writes: None,
            syncs: None,
            opens: None,
            astray: None,
            failed: (0, 0),
        }
    }
}

impl Faults {
    /// A restart does not mend a broken device.
    pub(super) fn after_power_cut(&self) -> Self {
        Self {
            capacity: self.capacity,
            writes: self.writes.filter(|failure| *failure == Failure::Lasting),
            syncs: self.syncs.filter(|failure| *failure == Failure::Lasting),
            failed: self.failed,
            ..Self::default()
        }
    }

    pub(super) fn check_power(&self, operation: u64) -> io::Result<()> {
        match self.cut_at {
            Some(cut) if operation >= cut => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }

    pub(super) fn fails_write(&mut self) -> bool {
        let fails = fails(&mut self.writes);
        self.failed.0 += u64::from(fails);
        fails
    }

    pub(super) fn check_open(&mut self) -> io::Result<()> {
        match fails(&mut self.opens) {
            true => Err(rustix::io::Errno::MFILE.into()),
            false => Ok(()),
        }
    }

    pub(super) fn fails_sync(&mut self, operation: u64) -> Option<Loss> {
        if self.fail_sync_at.take_if(|at| *at <= operation).is_some() {
            return Some(Loss::All);
        }
        let fails = fails(&mut self.syncs);
        self.failed.1 += u64::from(fails);
        fails.then_some(Loss::Part)
    }
}

fn fails(failure: &mut Option<Failure>) -> bool {
    match failure {
        Some(Failure::Once) => failure.take().is_some(),
        Some(Failure::Lasting) => true,
        None => false,
    }
}

impl SimDisk {
    /// Cuts the power before operation number `operation`: it and all later ones fail.
    pub fn cut_at(&self, operation: u64) {
        self.state.lock().faults.cut_at = Some(operation);
    }

    /// Makes the next sync at or after operation number `operation` fail, and lose all that it should have made durable.
    pub fn fail_sync_at(&self, operation: u64) {
        self.state.lock().faults.fail_sync_at = Some(operation);
    }

    /// Makes writes fail. A failed write may have written a part.
    pub fn fail_writes(&self, failure: Failure) {
        self.state.lock().faults.writes = Some(failure);
    }

    /// Makes syncs fail, of files and directories. A failed sync of a file loses about half of what it should have
    /// made durable, and a later one does not bring it back.
    pub fn fail_syncs(&self, failure: Failure) {
        self.state.lock().faults.syncs = Some(failure);
    }

    /// Makes segments impossible to open, as to a process with too many open files.
    pub fn fail_opens(&self, failure: Failure) {
        self.state.lock().faults.opens = Some(failure);
    }

    /// How many writes and syncs failed as [`SimDisk::fail_writes`] and [`SimDisk::fail_syncs`] asked for.
    pub fn failed(&self) -> (u64, u64) {
        self.state.lock().faults.failed
    }

    /// Ends lasting errors. What they lost stays lost.
    pub fn heal(&self) {
        let faults = &mut self.state.lock().faults;
        (faults.writes, faults.syncs) = (None, None);
        (faults.opens, faults.astray) = (None, None);
    }

    /// Limits the disk to `bytes`.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().faults.capacity = bytes;
    }

    /// Makes the next write land somewhere else on the device. Whoever reads it from the page cache does not notice before
    /// a restart.
    pub fn misdirect_next_write(&self, astray: Astray) {
        self.misdirect_write_at(0, astray);
    }

    /// Makes the first write at or after operation number `operation` land somewhere else on the device.
    pub fn misdirect_write_at(&self, operation: u64, astray: Astray) {
        self.state.lock().faults.astray = Some(Aim {
            from: operation,
            directory: None,
            astray,
        });
    }

    /// Makes the next write to a file of `directory` land somewhere else on the device.
    pub fn misdirect_next_write_in(&self, directory: &Path, astray: Astray) {
        self.state.lock().faults.astray = Some(Aim {
            from: 0,
            directory: Some(directory.to_owned()),
            astray,
        });
    }

    /// Whether a write that was meant to go astray has not come yet.
    pub fn is_misdirecting(&self) -> bool {
        self.state.lock().faults.astray.is_some()
    }

    /// Flips the bits of `mask` in one byte of a file, on the device and in the cache. Panics when there is no such byte.
    pub fn flip_bits(&self, path: &Path, offset: u64, mask: u8) {
        let mut state = self.state.lock();
        let file = state.file_mut(path).expect("the file to damage exists");
        let at = offset as usize;
        for pages in [&mut file.current, &mut file.durable] {
            if at < pages.len() {
                let byte = pages.read(at, 1)[0] ^ mask;
                pages.write(at, &[byte]);
            }
        }
    }

    /// Pages of a file that hold something on stable storage, as byte ranges; what rot can hit. Empty without the file.
    pub fn synced_pages(&self, path: &Path) -> Vec<Range<u64>> {
        let state = self.state.lock();
        let Ok(file) = state.file(path) else {
            return Vec::new();
        };
        let pages = file
            .durable
            .filled()
            .map(|page| (page * PAGE) as u64..((page + 1) * PAGE) as u64);
        pages.collect()
    }
}

impl State {
    /// Where a write to a file goes, if not where it should.
    pub(super) fn goes_astray(&mut self, operation: u64, id: u64) -> Option<Astray> {
        let aim = self.faults.astray.as_ref()?;
        let is_meant = match &aim.directory {
            None => true,
            Some(directory) => self.directory_of(id).as_ref() == Some(directory),
        };
        let astray = (is_meant && aim.from <= operation).then_some(aim.astray)?;
        self.faults.astray = None;
        Some(astray)
    }

    /// The device puts a write that everybody sees in its place somewhere else, at once.
    pub(super) fn misdirect(&mut self, astray: Astray, id: u64, offset: usize, bytes: &[u8]) {
        self.file_by_id(id).lose_write(offset, bytes);
        let (target, seed) = match astray {
            Astray::Nowhere => return,
            Astray::SameFile(seed) => (id, seed),
            Astray::OtherFile(seed) => (self.neighbour(id, seed), seed),
        };
        let file = self.file_by_id(target);
        let places: Vec<usize> = (0..file.durable.len())
            .step_by(PAGE)
            .filter(|at| at + bytes.len() <= file.durable.len() && (target, *at) != (id, offset))
            .collect();
        if let Some(place) = pick(&places, seed) {
            file.strike(*place, bytes);
        }
    }

    /// Another file with a name in the same directory.
    fn neighbour(&self, id: u64, seed: u64) -> u64 {
        let directory = self.directory_of(id);
        let others: Vec<u64> = self
            .names
            .paths()
            .filter(|path| path.parent() == directory.as_deref())
            .filter_map(|path| self.names.get(path))
            .filter(|other| *other != id)
            .collect();
        pick(&others, seed).copied().unwrap_or(id)
    }

    fn directory_of(&self, id: u64) -> Option<PathBuf> {
        let mut paths = self.names.paths();
        let path = paths.find(|path| self.names.get(path) == Some(id))?;
        Some(path.parent()?.to_owned())
    }
}

fn pick<T>(from: &[T], seed: u64) -> Option<&T> {
    let at = mix(seed) % from.len().max(1) as u64;
    from.get(at as usize)
}

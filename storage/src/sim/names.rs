//! Owns the names of simulated files, and which of their changes a sync of the directory has covered.
//! Must never make a name durable because its file was synced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::loss::KeepNames;

/// The names as everybody sees them, as a power cut would leave them at worst, and what lies in between.
#[derive(Clone, Default)]
pub(super) struct Names {
    now: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    /// In order.
    pending: Vec<Change>,
}

/// One change of a directory; atomic.
#[derive(Clone)]
enum Change {
    Create(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf, u64),
}

impl Change {
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Create(path, _) | Self::Rename(path, ..) | Self::Remove(path, _) => path.parent(),
        }
    }

    /// Takes effect, possibly without the changes before it.
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        let mut forget = |path: &Path, id: &u64| {
            if names.get(path) == Some(id) {
                names.remove(path);
            }
        };
        match self {
            Self::Create(path, id) => _ = names.insert(path.clone(), *id),
            Self::Remove(path, id) => forget(path, id),
            Self::Rename(from, to, id) => {
                forget(from, id);
                names.insert(to.clone(), *id);
            }
        }
    }
}

impl Names {
    pub(super) fn get(&self, path: &Path) -> Option<u64> {
        self.now.get(path).copied()
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.now.keys()
    }

    /// Files that have a name.
    pub(super) fn files(&self) -> impl Iterator<Item = u64> {
        self.now.values().copied()
    }

    pub(super) fn create(&mut self, path: &Path, id: u64) {
        self.change(Change::Create(path.to_owned(), id));
    }

    /// Returns false when there is no such name.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> bool {
        let Some(id) = self.get(from) else {
            return false;
        };
        self.change(Change::Rename(from.to_owned(), to.to_owned(), id));
        true
    }

    /// Returns false when there is no such name.
    pub(super) fn remove(&mut self, path: &Path) -> bool {
        let Some(id) = self.get(path) else {
            return false;
        };
        self.change(Change::Remove(path.to_owned(), id));
        true
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.pending.push(change);
    }

    /// Makes the changes in one directory durable.
    pub(super) fn sync(&mut self, directory: &Path) {
        let Self {
            pending, durable, ..
        } = self;
        pending.retain(|change| {
            let covered = change.directory() == Some(directory);
            if covered {
                change.apply(durable);
            }
            !covered
        });
    }

    /// Whether every change is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn after_power_cut(&self, keep: KeepNames) -> Self {
        let mut left = self.durable.clone();
        let count = self.pending.len();
        for (at, change) in self.pending.iter().enumerate() {
            if keep.keeps(at, count) {
                change.apply(&mut left);
            }
        }
        Self {
            now: left.clone(),
            durable: left,
            pending: Vec::new(),
        }
    }

    /// Files that some power cut may bring back, or that are there.
    pub(super) fn reachable(&self) -> BTreeSet<u64> {
        let pending = self.pending.iter().map(|change| match change {
            Change::Create(_, id) | Change::Rename(_, _, id) | Change::Remove(_, id) => *id,
        });
        self.files()
            .chain(self.durable.values().copied())
            .chain(pending)
            .collect()
    }
}

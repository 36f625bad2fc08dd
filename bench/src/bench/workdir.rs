//! The directory that a measurement works in. Always new, and always removed at the end: data of a measurement is of no
//! use to anybody.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// A new directory. Dropping it removes it with everything in it.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    /// Made by this process too, so removed if nothing else is in it.
    parent: Option<PathBuf>,
}

impl WorkDir {
    /// `bench-<process id>` below `parent`, or below `data` in the current directory: the system's temporary directory is
    /// often held in memory, where a sync is free and proves nothing.
    pub fn new(parent: Option<&Path>) -> Result<Self> {
        let own = parent.is_none();
        let parent = parent.unwrap_or(Path::new("data"));
        let own = own && !parent.exists();
        let path = parent.join(format!("bench-{}", std::process::id()));
        ensure!(
            !path.exists(),
            "{} was left over by a former process; remove it and try again",
            path.display()
        );
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            path,
            parent: own.then(|| parent.to_owned()),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An empty directory in it for one cluster.
    pub fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let made = fs::create_dir(&path);
        made.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the working directory could not be removed");
        }
        // If another process works in it too, it is not empty and stays.
        let _ = self.parent.as_ref().map(fs::remove_dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_directory_goes_with_everything_in_it() {
        let parent = tempfile::tempdir().unwrap();
        let dir = WorkDir::new(Some(parent.path())).unwrap();
        let cluster = dir.fresh("cluster").unwrap();
        fs::write(cluster.join("log"), "bytes").unwrap();
        assert!(dir.fresh("cluster").is_err(), "it would not be fresh");
        let again = WorkDir::new(Some(parent.path())).unwrap_err().to_string();
        assert!(again.contains("left over"), "{again}");
        drop(dir);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}

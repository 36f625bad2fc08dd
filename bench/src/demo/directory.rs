//! The directory that a demo works in: chosen, checked, remembered in a manifest, and removed at the end if it was
//! temporary. It must never touch a directory that holds something else.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// File at the top of a demo's directory.
const MANIFEST: &str = "demo.json";

/// What a demo's directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file's format.
    pub format: u32,
    /// Number of nodes; their ids are `1..=nodes`.
    pub nodes: u64,
    /// Number of groups; their ids are `0..groups`.
    pub groups: u64,
}

const FORMAT: u32 = 1;

/// What the command line asks for; None means "what the directory has, or else the default".
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub nodes: Option<u64>,
    pub groups: Option<u64>,
}

const DEFAULT_NODES: u64 = 3;
const DEFAULT_GROUPS: u64 = 1024;

/// A demo's directory. Dropping it removes it if it is temporary.
#[derive(Debug)]
pub struct DemoDir {
    path: PathBuf,
    manifest: Manifest,
    is_new: bool,
    is_temporary: bool,
}

impl DemoDir {
    /// The directory given, made if it is missing. If it is not empty, it must be the directory of a former demo,
    /// with the same number of nodes and no more groups than wanted now.
    pub fn given(path: &Path, wanted: Wanted) -> Result<Self> {
        let manifest = match read_manifest(path)? {
            None => new_manifest(path, wanted)?,
            Some(old) => grown(path, old, wanted)?,
        };
        let is_new = manifest.1;
        Ok(Self {
            path: path.to_owned(),
            manifest: manifest.0,
            is_new,
            is_temporary: false,
        })
    }

    /// The directory of a former demo, as it is.
    pub fn former(path: &Path) -> Result<Self> {
        let manifest = read_manifest(path)?.with_context(|| {
            format!(
                "{} holds no former demo to verify; run `polyraft demo --dir {0}` first",
                path.display()
            )
        })?;
        Ok(Self {
            path: path.to_owned(),
            manifest,
            is_new: false,
            is_temporary: false,
        })
    }

    /// A new directory that is removed at the end: `data/demo-<process id>` in the current directory, because the
    /// system's temporary directory is often held in memory, where a sync is free and proves nothing.
    pub fn temporary(wanted: Wanted) -> Result<Self> {
        let path = PathBuf::from("data").join(format!("demo-{}", std::process::id()));
        ensure!(
            !path.exists(),
            "{} was left over by a former process; remove it and try again",
            path.display()
        );
        let (manifest, is_new) = new_manifest(&path, wanted)?;
        Ok(Self {
            path,
            manifest,
            is_new,
            is_temporary: true,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn manifest(&self) -> Manifest {
        self.manifest
    }

    /// True if this run made it.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// True if it goes away when the demo ends.
    pub fn is_temporary(&self) -> bool {
        self.is_temporary
    }

    /// The data directory of one node.
    pub fn node(&self, id: u64) -> PathBuf {
        self.path.join(format!("node-{id}"))
    }

    /// Where the development CA lives.
    pub fn ca(&self) -> PathBuf {
        self.path.join("ca")
    }
}

impl Drop for DemoDir {
    fn drop(&mut self) {
        if self.is_temporary {
            if let Err(error) = fs::remove_dir_all(&self.path) {
                tracing::warn!(path = %self.path.display(), %error, "the temporary directory could not be removed");
            }
            // `data` goes too if this demo was alone in it; if it was not, it is not empty and stays.
            let _ = self.path.parent().map(fs::remove_dir);
        }
    }
}

/// The manifest of a former demo; None if there is nothing at `path`, or an empty directory.
fn read_manifest(path: &Path) -> Result<Option<Manifest>> {
    let file = path.join(MANIFEST);
    match fs::read_to_string(&file) {
        Ok(text) => {
            let manifest: Manifest = serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged; choose another --dir", file.display()))?;
            ensure!(
                manifest.format == FORMAT,
                "{} has format {}, this program knows format {FORMAT}; choose another --dir",
                file.display(),
                manifest.format
            );
            Ok(Some(manifest))
        }
        Err(_) if !path.exists() => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let is_empty = fs::read_dir(path)
                .with_context(|| format!("cannot list {}", path.display()))?
                .next()
                .is_none();
            ensure!(
                is_empty,
                "{} is not empty and is not the directory of a former demo (it has no {MANIFEST}); choose a new or empty --dir",
                path.display()
            );
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

fn new_manifest(path: &Path, wanted: Wanted) -> Result<(Manifest, bool)> {
    let manifest = Manifest {
        format: FORMAT,
        nodes: wanted.nodes.unwrap_or(DEFAULT_NODES),
        groups: wanted.groups.unwrap_or(DEFAULT_GROUPS),
    };
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    write_manifest(path, manifest)?;
    Ok((manifest, true))
}

/// A former demo's manifest with as many groups as wanted now.
fn grown(path: &Path, old: Manifest, wanted: Wanted) -> Result<(Manifest, bool)> {
    let nodes = wanted.nodes.unwrap_or(old.nodes);
    let groups = wanted.groups.unwrap_or(old.groups);
    if nodes != old.nodes || groups < old.groups {
        bail!(
            "{} holds a demo of {} nodes and {} groups; leave out --nodes, give --groups of at least {2}, or choose another --dir",
            path.display(),
            old.nodes,
            old.groups
        );
    }
    let manifest = Manifest { groups, ..old };
    if manifest != old {
        write_manifest(path, manifest)?;
    }
    Ok((manifest, false))
}

/// Durable before the first group exists, so that a run that is killed leaves a directory that can be verified.
fn write_manifest(path: &Path, manifest: Manifest) -> Result<()> {
    let write = || -> Result<()> {
        let fresh = path.join(format!("{MANIFEST}.new"));
        let mut file = fs::File::create(&fresh)?;
        file.write_all(serde_json::to_string_pretty(&manifest)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path.join(MANIFEST))?;
        fs::File::open(path)?.sync_all()?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.join(MANIFEST).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(nodes: u64, groups: u64) -> Wanted {
        Wanted {
            nodes: Some(nodes),
            groups: Some(groups),
        }
    }

    #[test]
    fn a_new_directory_is_remembered() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let dir = DemoDir::given(&path, wanted(5, 7)).unwrap();
        assert!(dir.is_new());
        drop(dir);
        let again = DemoDir::given(&path, Wanted::default()).unwrap();
        assert!(!again.is_new());
        assert_eq!((again.manifest().nodes, again.manifest().groups), (5, 7));
        assert_eq!(DemoDir::former(&path).unwrap().manifest(), again.manifest());
    }

    #[test]
    fn groups_can_grow_but_nodes_stay() {
        let parent = tempfile::tempdir().unwrap();
        DemoDir::given(parent.path(), wanted(3, 10)).unwrap();
        let grown = DemoDir::given(parent.path(), wanted(3, 20)).unwrap();
        assert_eq!(grown.manifest().groups, 20);
        for refused in [wanted(3, 19), wanted(5, 20)] {
            let error = DemoDir::given(parent.path(), refused)
                .unwrap_err()
                .to_string();
            assert!(error.contains("3 nodes and 20 groups"), "{error}");
        }
    }

    #[test]
    fn a_directory_with_other_things_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("thesis.txt"), "words").unwrap();
        let error = DemoDir::given(parent.path(), Wanted::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("not empty"), "{error}");
        assert!(DemoDir::former(parent.path()).is_err());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_manifest_is_explained() {
        let parent = tempfile::tempdir().unwrap();
        for text in ["{", r#"{"format":99,"nodes":3,"groups":4}"#] {
            fs::write(parent.path().join(MANIFEST), text).unwrap();
            let error = DemoDir::given(parent.path(), Wanted::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains("choose another --dir"), "{error}");
        }
    }

    #[test]
    fn there_is_nothing_to_verify_in_a_missing_directory() {
        let parent = tempfile::tempdir().unwrap();
        let error = DemoDir::former(&parent.path().join("x"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("run `polyraft demo"), "{error}");
    }
}

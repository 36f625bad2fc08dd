//! Snapshots outside of a data directory: copied out of one, looked at, and copied into another one.
//! Must never change a data directory that a node has open, nor take a file for a snapshot before every byte of it was held
//! against its checksum.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use polyraft_raft::{Configuration, GroupId, HardState};

use crate::data_dir::DataDir;
use crate::disk::Disk;
use crate::error::StorageError;
use crate::shard::ShardLog;
use crate::snapshot::{
    DIRECTORY, SnapshotError, SnapshotFile, SnapshotMeta, SnapshotStore, failed,
};
use crate::wal::Wal;

/// Bytes that are copied at once.
const PIECE_BYTES: u64 = 1 << 20;

/// How often a snapshot is looked for again that a newer one has just replaced.
const ATTEMPTS: usize = 8;

/// Looks at what a group wrote into a snapshot, whose bytes are those that were written, and says if it is of no use to another
/// group.
pub type Look = fn(&mut dyn Read) -> Result<(), String>;

/// Reads what a group wrote in front of its state, and gives what stands there in one that begins with that state; or says why none
/// can. The rest is the state, and stays as it is.
pub type Begin = fn(&mut dyn Read) -> Result<Vec<u8>, String>;

/// The snapshots in a data directory that are whole, by group: the newest of each. Works while a node has it open.
///
/// # Errors
/// When the directory can't be read.
pub fn list(disk: &Arc<dyn Disk>, data_dir: &Path) -> Result<Vec<SnapshotFile>, SnapshotError> {
    SnapshotStore::at(disk, data_dir.join(DIRECTORY)).newest()
}

/// Checks every byte of a snapshot's file, wherever it is, and looks at it.
///
/// # Errors
/// Says what is wrong with it.
pub fn verify(
    disk: &Arc<dyn Disk>,
    file: &Path,
    look: Look,
) -> Result<SnapshotFile, SnapshotError> {
    let store = SnapshotStore::at(disk, file.parent().unwrap_or(Path::new("")));
    verified(&store, file, None, look)
}

fn verified(
    store: &SnapshotStore,
    path: &Path,
    expected: Option<&SnapshotFile>,
    look: Look,
) -> Result<SnapshotFile, SnapshotError> {
    let found = store.verify(path, expected)?;
    look(&mut store.reader(path, &found)).map_err(|why| useless(path, why))?;
    Ok(found)
}

fn useless(path: &Path, why: String) -> SnapshotError {
    SnapshotError::Useless {
        path: path.to_owned(),
        why,
    }
}

/// Copies the newest snapshot of a group to a file, which is whole and durable when this returns, or not there. Works while a
/// node has the data directory open.
///
/// # Errors
/// When there is none, it is damaged or of no use elsewhere, or `to` is there already or can't be written.
pub fn export(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
    group: GroupId,
    to: &Path,
    look: Look,
) -> Result<SnapshotFile, SnapshotError> {
    if disk.file_bytes(to).is_ok() {
        let error = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(failed(to, "creating", &error));
    }
    let store = SnapshotStore::at(disk, data_dir.join(DIRECTORY));
    let mut attempt = 1;
    loop {
        let found = store.newest()?;
        let Some(file) = found.iter().find(|file| file.meta.group == group) else {
            let what = format!("there is no snapshot of group {group}");
            let error = io::Error::new(io::ErrorKind::NotFound, what);
            return Err(failed(&data_dir.join(DIRECTORY), "searching", &error));
        };
        match copy(&store, file, to, look) {
            Err(SnapshotError::Io { kind, .. })
                if kind == io::ErrorKind::NotFound && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            Err(error) => return Err(error),
            Ok(()) => return Ok(file.clone()),
        }
    }
}

fn copy(
    store: &SnapshotStore,
    file: &SnapshotFile,
    to: &Path,
    look: Look,
) -> Result<(), SnapshotError> {
    let disk = &store.disk;
    let io = |error: io::Error| failed(to, "writing", &error);
    let mut name = to.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = Path::new(&name);
    let copied = || {
        disk.create(temporary).map_err(io)?;
        let mut at = 0;
        while at < file.bytes {
            let piece = store.chunk(file, at, PIECE_BYTES as usize)?;
            disk.write_at(temporary, at, &piece).map_err(io)?;
            at += piece.len() as u64;
        }
        disk.sync_file(temporary).map_err(io)?;
        // What was copied is what counts, wherever a bit may have changed.
        verified(store, temporary, Some(file), look)?;
        disk.rename(temporary, to).map_err(io)?;
        let parent = to.parent().filter(|path| !path.as_os_str().is_empty());
        disk.sync_dir(parent.unwrap_or(Path::new("."))).map_err(io)
    };
    copied().inspect_err(|_| _ = disk.remove(temporary))
}

/// Why a snapshot is not imported. Nothing is changed then that the next opening would not remove.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is no usable snapshot, or could not be copied.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The log could not take the group.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The group's number has been in use here. What it promised must not be forgotten.
    #[error(
        "group {group} has been on this node before; import the snapshot under a number that was never used here"
    )]
    Used {
        /// The group.
        group: GroupId,
    },
}

/// Begins a group in a data directory that no node has open, with the state of a snapshot for a log.
///
/// `log` is the group's shard and `wal` its lane. The snapshot is durable under the group's name before the log has the
/// group; a crash in between leaves a snapshot without a group, which the next opening removes.
///
/// # Errors
/// See [`ImportError`].
pub fn import(
    data_dir: &DataDir,
    (log, wal): (&mut ShardLog, &Wal),
    (from, begin): (&Path, Begin),
    group: GroupId,
    configuration: Configuration,
) -> Result<SnapshotFile, ImportError> {
    if log.contains(group) || log.tombstone_of(group).is_some() {
        return Err(ImportError::Used { group });
    }
    let (store, _) = SnapshotStore::open(data_dir, 0)?;
    let theirs = SnapshotStore::at(data_dir.disk(), from.parent().unwrap_or(Path::new("")));
    let found = theirs.verify(from, None)?;
    let mut state = theirs.reader(from, &found);
    let front = begin(&mut state).map_err(|why| useless(from, why))?;
    let meta = SnapshotMeta {
        group,
        incarnation: 0,
        last: found.meta.last,
        configuration,
    };
    let file = store.write(&meta, |out| {
        let copied = out
            .write_all(&front)
            .and_then(|()| io::copy(&mut state, out));
        copied.map(|_| ()).map_err(|error| error.to_string())
    })?;
    log.create(group, &meta.configuration)?;
    let state = HardState {
        term: meta.last.term,
        vote: None,
        commit: meta.last.index,
    };
    log.hard_state(group, state)?;
    log.reset(group, meta.last, &meta.configuration)?;
    log.submit()?;
    wal.close()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use polyraft_raft::{Index, LogPosition, NodeId, Term};

    use super::*;
    use crate::options::WalOptions;
    use crate::sim::SimDisk;
    use crate::wal::Opened;

    const GROUP: GroupId = GroupId(7);

    fn members() -> Configuration {
        Configuration::simple([NodeId(4), NodeId(5)])
    }

    fn last() -> LogPosition {
        LogPosition {
            term: Term(3),
            index: Index(90),
        }
    }

    /// A disk with a snapshot of a group in the data directory `/a`.
    fn with_snapshot() -> (SimDisk, Arc<dyn Disk>, SnapshotFile) {
        let disk = SimDisk::new(1);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let dir = DataDir::open(Arc::clone(&shared), "/a", "c", NodeId(1), 1).unwrap();
        let (store, _) = SnapshotStore::open(&dir, 0).unwrap();
        let meta = SnapshotMeta {
            group: GROUP,
            incarnation: 0,
            last: last(),
            configuration: Configuration::simple([NodeId(1)]),
        };
        let file = store.write(&meta, |out| {
            out.write_all(&[5; 3000]).map_err(|error| error.to_string())
        });
        shared.create_dir(Path::new("/out")).unwrap();
        (disk, shared, file.unwrap())
    }

    fn open(disk: &Arc<dyn Disk>) -> (DataDir, Opened) {
        let dir = DataDir::open(Arc::clone(disk), "/b", "other", NodeId(4), 1).unwrap();
        let options = WalOptions {
            segment_bytes: 1 << 20,
            max_batch_bytes: 64 << 10,
            min_free_bytes: 0,
            ..WalOptions::default()
        };
        let opened = crate::wal::open(&dir, &options, 1).unwrap();
        (dir, opened)
    }

    const ANY: Look = |_| Ok(());

    /// Ten bytes in front become three others.
    const SHORTER: Begin = |from| {
        let mut front = [0; 10];
        from.read_exact(&mut front)
            .map_err(|error| error.to_string())?;
        assert_eq!(front, [5; 10]);
        Ok(vec![6; 3])
    };

    fn bring(disk: &Arc<dyn Disk>, from: &str) -> Result<SnapshotFile, ImportError> {
        let (dir, mut opened) = open(disk);
        let place = (&mut opened.logs[0], &opened.wals[0]);
        import(&dir, place, (Path::new(from), SHORTER), GROUP, members())
    }

    #[test]
    fn what_is_exported_begins_a_group_elsewhere() {
        let (_, disk, file) = with_snapshot();
        let to = Path::new("/out/7.snap");
        let files = list(&disk, Path::new("/a")).unwrap();
        assert_eq!(files, std::slice::from_ref(&file));
        assert_eq!(
            export(&disk, Path::new("/a"), GROUP, to, ANY).unwrap(),
            file
        );
        assert_eq!(verify(&disk, to, ANY).unwrap(), file);
        let there = export(&disk, Path::new("/a"), GROUP, to, ANY).unwrap_err();
        assert!(matches!(
            there,
            SnapshotError::Io {
                kind: io::ErrorKind::AlreadyExists,
                ..
            }
        ));

        let imported = bring(&disk, "/out/7.snap").unwrap();
        assert_eq!(imported.meta.configuration, members());
        let (dir, opened) = open(&disk);
        let found: Vec<_> = opened.logs[0].groups().collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].base, found[0].last), (last(), last().index));
        assert_eq!(found[0].hard_state.term, Term(3));
        assert_eq!(found[0].configuration, members());
        let (store, files) = SnapshotStore::open(&dir, 0).unwrap();
        assert_eq!(files, std::slice::from_ref(&imported));
        let mut state = Vec::new();
        io::copy(&mut store.read(&imported).unwrap(), &mut state).unwrap();
        assert_eq!(state, [vec![6; 3], vec![5; 2990]].concat());
        drop((dir, opened, store));

        let again = bring(&disk, "/out/7.snap").unwrap_err();
        assert!(matches!(again, ImportError::Used { group: GROUP }));
    }

    #[test]
    fn a_damaged_file_is_not_imported() {
        let (sim, disk, _) = with_snapshot();
        let to = Path::new("/out/7.snap");
        export(&disk, Path::new("/a"), GROUP, to, ANY).unwrap();
        sim.damage(to, |bytes| bytes[1000] ^= 1);
        assert!(matches!(
            verify(&disk, to, ANY),
            Err(SnapshotError::Damaged { .. })
        ));
        let refused = bring(&disk, "/out/7.snap").unwrap_err();
        assert!(matches!(
            refused,
            ImportError::Snapshot(SnapshotError::Damaged { .. })
        ));
        let (_, opened) = open(&disk);
        assert_eq!(opened.logs[0].groups().count(), 0);
    }

    #[test]
    fn a_group_without_a_snapshot_is_not_exported() {
        let (_, disk, _) = with_snapshot();
        let error = export(
            &disk,
            Path::new("/a"),
            GroupId(8),
            Path::new("/out/8.snap"),
            ANY,
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no snapshot of group g8"), "{error}");
        assert!(disk.file_bytes(Path::new("/out/8.snap")).is_err());
    }
}

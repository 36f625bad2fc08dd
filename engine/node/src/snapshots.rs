//! Snapshots as files for people: listed, checked, exported and imported. It must never touch a node that runs.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyraft_raft::{Configuration, GroupId, LogPosition, NodeId, shard_of};
use polyraft_storage::{
    DataDir, Disk, FileDisk, ImportError, SnapshotError, SnapshotFile, exported,
};

use crate::assembly;
use crate::config::Config;
use crate::directory::is_node_id;
use crate::error::OpenError;
use crate::sessions::{self, Table};
use crate::wire::MAX_MEMBERS;

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The group.
    pub group: GroupId,
    /// The last entry in it.
    pub last: LogPosition,
    /// The group's members as of that entry.
    pub members: Vec<NodeId>,
    /// Length of the file.
    pub bytes: u64,
}

impl From<SnapshotFile> for SnapshotInfo {
    fn from(file: SnapshotFile) -> Self {
        SnapshotInfo {
            group: file.meta.group,
            last: file.meta.last,
            members: file.meta.configuration.nodes().collect(),
            bytes: file.bytes,
        }
    }
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(FileDisk)
}

/// What a snapshot says of sessions and merges, if a group can begin with it. One that was to be merged waits for a group that need
/// not be where it begins, or is the wrong one there.
fn table_of(mut from: &mut dyn Read) -> Result<Option<Box<Table>>, String> {
    let table = sessions::read_section(&mut from)?;
    let merges = table.as_ref().and_then(|table| table.merges());
    match merges.and_then(|merges| merges.frozen()) {
        None => Ok(table),
        Some(frozen) => Err(format!(
            "it was taken while the group was frozen, to be merged into group {}; export that one once the merge is over, or this one \
             again if it was refused",
            frozen.target
        )),
    }
}

/// Whether a group can begin with what stands in a snapshot.
fn can_begin(from: &mut dyn Read) -> Result<(), String> {
    table_of(from).map(|_| ())
}

/// What stands in front of the state of a group that begins with the one in a snapshot.
fn begin(from: &mut dyn Read) -> Result<Vec<u8>, String> {
    let table = table_of(from)?.map(|table| table.for_import());
    Ok(sessions::section(table.as_ref()))
}

/// The newest snapshot of each group in the data directory of a node, which may run.
///
/// # Errors
/// When the directory can't be read.
pub fn snapshots_in(data_dir: &Path) -> Result<Vec<SnapshotInfo>, SnapshotError> {
    let found = exported::list(&disk(), data_dir)?;
    Ok(found.into_iter().map(SnapshotInfo::from).collect())
}

/// Checks every byte of an exported snapshot, and that a group can begin with it.
///
/// # Errors
/// Says what is wrong with it.
pub fn verify_snapshot(file: &Path) -> Result<SnapshotInfo, SnapshotError> {
    exported::verify(&disk(), file, can_begin).map(SnapshotInfo::from)
}

/// Copies the newest snapshot of a group to the file `to`. The node may run: have it take one first with
/// [`GroupHandle::snapshot`](crate::GroupHandle::snapshot), to export what is applied now.
///
/// # Errors
/// When there is no snapshot, it is damaged or that of a group which was about to be merged, or the file exists or can't be written.
pub fn export_snapshot(
    data_dir: &Path,
    group: u64,
    to: &Path,
) -> Result<SnapshotInfo, SnapshotError> {
    exported::export(&disk(), data_dir, GroupId(group), to, can_begin).map(SnapshotInfo::from)
}

/// A node that does not run: what it is going to be opened with.
#[derive(Debug, Clone)]
pub struct NodePlace {
    /// Its data directory; made if there is none.
    pub data_dir: PathBuf,
    /// Its cluster.
    pub cluster: String,
    /// Its id.
    pub node: u64,
    /// Its configuration.
    pub config: Config,
}

impl NodePlace {
    /// Begins a group on this node with the state in an exported snapshot. The group is there when the node is opened.
    ///
    /// Do it with the same file and members on every member of the group, before any of them is opened; a member that was left
    /// out is sent the snapshot by the others. The number must never have been used for a group on these nodes: what
    /// that one promised would be forgotten.
    ///
    /// The group has the sessions of the one that was exported, and knows nothing of what was merged into that one.
    ///
    /// # Errors
    /// When the node runs, the file is damaged or that of a group which was about to be merged, the group was ever here, or the members can't form a group with this node.
    pub fn import_snapshot(
        &self,
        file: &Path,
        group: u64,
        members: &[u64],
    ) -> Result<SnapshotInfo, OpenError> {
        self.config.validate()?;
        let configuration = Configuration::simple(members.iter().copied().map(NodeId));
        let voters = configuration.voters();
        let has_ids = voters.iter().all(|id| is_node_id(*id));
        let is_known = has_ids && voters.contains(&NodeId(self.node));
        if !is_known || voters.len() != members.len() || members.len() > MAX_MEMBERS {
            let why = format!(
                "members {members:?} must be 1 to {MAX_MEMBERS} different nodes, with node {} among them",
                self.node
            );
            return Err(OpenError::Builder(why));
        }
        if group == u64::MAX {
            return Err(OpenError::Builder(format!("group id {group} is reserved")));
        }
        let (lanes, shards) = (self.config.wal.lanes as usize, self.config.shard_count());
        let node = NodeId(self.node);
        let dir = DataDir::open(disk(), &self.data_dir, &self.cluster, node, lanes)?;
        let options = assembly::wal_options(&self.config);
        let mut opened = polyraft_storage::open(&dir, &options, shards)?;
        let group = GroupId(group);
        let shard = shard_of(group, shards);
        let place = (&mut opened.logs[shard], &opened.wals[shard % lanes]);
        let imported = exported::import(&dir, place, (file, begin), group, configuration);
        imported
            .map(SnapshotInfo::from)
            .map_err(|error| match error {
                ImportError::Storage(error) => OpenError::Storage(error),
                other => OpenError::Builder(other.to_string()),
            })
    }
}

#[cfg(test)]
mod tests {
    use polyraft_raft::{Index, Life, Term};
    use polyraft_storage::{SnapshotMeta, SnapshotStore};

    use super::*;
    use crate::merge::MergeCommand;

    #[test]
    fn a_group_that_is_to_be_merged_begins_nowhere_else() {
        let out = tempfile::tempdir().unwrap();
        let (data, to) = (out.path().join("a"), out.path().join("7.snap"));
        let last = LogPosition {
            term: Term(3),
            index: Index(90),
        };
        let meta = SnapshotMeta {
            group: GroupId(7),
            incarnation: 0,
            last,
            configuration: Configuration::simple([NodeId(1)]),
        };
        let mut table = Table::default();
        let freeze = MergeCommand::Freeze {
            target: GroupId(9),
            life: Life::FIRST,
            attempt: Index(4),
        };
        table.with_merges(|merges| merges.decide(Life::FIRST, Index(80), &freeze));
        let dir = DataDir::open(disk(), &data, "c", NodeId(1), 1).unwrap();
        let (store, _) = SnapshotStore::open(&dir, 0).unwrap();
        let section = sessions::section(Some(&table));
        let written = store.write(&meta, |out| {
            out.write_all(&section).map_err(|error| error.to_string())
        });
        written.unwrap();
        drop(dir);
        let is_said = |error: String| assert!(error.contains("merged into group g9"), "{error}");
        is_said(export_snapshot(&data, 7, &to).unwrap_err().to_string());
        assert!(!to.exists());

        // One that came out otherwise.
        std::fs::copy(data.join("snapshots/7-90-3.snap"), &to).unwrap();
        is_said(verify_snapshot(&to).unwrap_err().to_string());
        let place = NodePlace {
            data_dir: out.path().join("b"),
            cluster: "other".to_owned(),
            node: 4,
            config: Config::default(),
        };
        let imported = place.import_snapshot(&to, 7, &[4]).unwrap_err();
        assert!(matches!(imported, OpenError::Builder(_)), "{imported}");
        is_said(imported.to_string());
    }
}

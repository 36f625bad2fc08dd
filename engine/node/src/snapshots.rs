//! Snapshots as files for people: listed, checked, exported and imported. It must never touch a node that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyraft_raft::{Configuration, GroupId, LogPosition, NodeId, shard_of};
use polyraft_storage::{
    DataDir, Disk, FileDisk, ImportError, SnapshotError, SnapshotFile, exported,
};

use crate::assembly;
use crate::config::Config;
use crate::error::OpenError;
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

/// The newest snapshot of each group in the data directory of a node, which may run.
///
/// # Errors
/// When the directory can't be read.
pub fn snapshots_in(data_dir: &Path) -> Result<Vec<SnapshotInfo>, SnapshotError> {
    let found = exported::list(&disk(), data_dir)?;
    Ok(found.into_iter().map(SnapshotInfo::from).collect())
}

/// Checks every byte of an exported snapshot.
///
/// # Errors
/// Says what is wrong with it.
pub fn verify_snapshot(file: &Path) -> Result<SnapshotInfo, SnapshotError> {
    exported::verify(&disk(), file).map(SnapshotInfo::from)
}

/// Copies the newest snapshot of a group to the file `to`. The node may run: have it take one first with
/// [`GroupHandle::snapshot`](crate::GroupHandle::snapshot), to export what is applied now.
///
/// # Errors
/// When there is no snapshot, it is damaged, or the file exists or can't be written.
pub fn export_snapshot(
    data_dir: &Path,
    group: u64,
    to: &Path,
) -> Result<SnapshotInfo, SnapshotError> {
    exported::export(&disk(), data_dir, GroupId(group), to).map(SnapshotInfo::from)
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
    /// # Errors
    /// When the node runs, the file is damaged, the group was ever here, or the members can't form a group with this node.
    pub fn import_snapshot(
        &self,
        file: &Path,
        group: u64,
        members: &[u64],
    ) -> Result<SnapshotInfo, OpenError> {
        self.config.validate()?;
        let configuration = Configuration::simple(members.iter().copied().map(NodeId));
        let voters = configuration.voters();
        let is_known = voters.contains(&NodeId(self.node)) && voters[0] != NodeId(0);
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
        let imported = exported::import(&dir, place, file, group, configuration);
        imported
            .map(SnapshotInfo::from)
            .map_err(|error| match error {
                ImportError::Storage(error) => OpenError::Storage(error),
                other => OpenError::Builder(other.to_string()),
            })
    }
}

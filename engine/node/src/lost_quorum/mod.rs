//! What to do when groups have lost a majority of their members for good, while all nodes are stopped: first a plan, which
//! says what may be lost, then the plan carried out. It must never change anything that the plan does not say, and never
//! choose a replica when a better one may exist that it was not shown.

mod apply;
mod decide;
mod plan;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyraft_raft::NodeId;
use polyraft_storage::{Disk, FileDisk, StorageError, Survey};

use crate::config::{Config, ConfigError};

pub use apply::Recovered;
pub use plan::{
    GivenDirectory, RecoveryPlan, RefusedGroup, SurvivingGroup, SurvivingReplica, TERM_STEP,
};

/// Why nothing is recovered. Nothing was changed, unless it is said.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The call makes no sense.
    #[error("{0}")]
    Call(&'static str),
    /// The directories are not all of one cluster.
    #[error(
        "{} belongs to cluster {theirs:?}, not to {ours:?}: give directories of one cluster", path.display()
    )]
    Cluster {
        /// One of the directories.
        path: PathBuf,
        /// Its cluster.
        theirs: String,
        /// The cluster of the first directory.
        ours: String,
    },
    /// A node has two directories, or one was given twice.
    #[error(
        "node {node} was given twice, the second time with {}: one of two directories of a node is a copy or an earlier \
         state; give the one that the node used last", path.display()
    )]
    Twice {
        /// The node.
        node: NodeId,
        /// The second directory.
        path: PathBuf,
    },
    /// A node was named as lost, and its directory was given.
    #[error(
        "{} is the directory of node {node}, which is named as lost: a node whose data is there is not lost. Give its \
         directory and do not name it, or name it and keep its directory away for ever", path.display()
    )]
    NotLost {
        /// The node.
        node: NodeId,
        /// Its directory.
        path: PathBuf,
    },
    /// A member was neither given nor named as lost.
    #[error(
        "{}; they belong to {groups} of the groups without a quorum, and their logs could be newer than those that were \
         given. Give their directories too, or name them as lost, and then never start them again",
        neither(nodes)
    )]
    Missing {
        /// The nodes.
        nodes: Vec<NodeId>,
        /// To how many groups they belong.
        groups: usize,
    },
    /// A peer of a given node was neither given nor named as lost.
    #[error(
        "{}; by what {} of the cluster, groups may have moved there. Give their directories too, or name them as lost if \
         they are gone for good, also those that left the cluster long ago, and then never start them again",
        neither(nodes),
        known(by)
    )]
    Unaccounted {
        /// The nodes.
        nodes: Vec<NodeId>,
        /// The given nodes that know any of them.
        by: Vec<NodeId>,
    },
    /// The plan is not the one that was written, or not of this version.
    #[error("the plan is not usable: {0}; make a new one")]
    Plan(String),
    /// The directories are not as the plan has them.
    #[error("the plan does not fit: {0}; make a new one")]
    Differs(String),
    /// The configuration is out of bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A directory can't be read or written. If it happens while a plan is applied, apply the same plan again.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn neither(nodes: &[NodeId]) -> String {
    let verb = if nodes.len() == 1 { "is" } else { "are" };
    format!("{} {verb} neither given nor named as lost", named(nodes))
}

fn known(by: &[NodeId]) -> String {
    let verb = if by.len() == 1 { "knows" } else { "know" };
    format!("{} {verb}", named(by))
}

fn named(nodes: &[NodeId]) -> String {
    let numbers: Vec<String> = nodes.iter().map(|node| node.0.to_string()).collect();
    let noun = if nodes.len() == 1 { "node" } else { "nodes" };
    format!("{noun} {}", numbers.join(", "))
}

/// Says what can be recovered from the data directories `survivors` when the nodes `lost` never come back, and what may be
/// lost with them. Reads every byte of the logs and changes nothing. No node may run on any of the directories.
///
/// # Errors
/// See [`RecoveryError`].
pub fn plan_recovery(survivors: &[PathBuf], lost: &[u64]) -> Result<RecoveryPlan, RecoveryError> {
    plan_on(&real, survivors, lost)
}

/// Carries a plan out: in each group that it recovers, the chosen replica gets an entry that makes the survivors its only
/// members. Applying the same plan again completes what was interrupted, and otherwise does nothing.
///
/// `survivors` are the directories that the plan was made of, in any order; `config` is what their nodes are opened with.
///
/// # Errors
/// See [`RecoveryError`]. Nothing was changed unless it is [`RecoveryError::Storage`].
pub fn apply_recovery(
    survivors: &[PathBuf],
    plan: &RecoveryPlan,
    config: &Config,
) -> Result<Recovered, RecoveryError> {
    config.validate()?;
    apply_on(&real, survivors, plan, config)
}

/// The disk that a directory is on.
pub(crate) type Disks<'a> = &'a dyn Fn(&Path) -> Arc<dyn Disk>;

pub(crate) fn plan_on(
    disks: Disks<'_>,
    survivors: &[PathBuf],
    lost: &[u64],
) -> Result<RecoveryPlan, RecoveryError> {
    let lost: BTreeSet<NodeId> = lost.iter().copied().map(NodeId).collect();
    let surveys = survey(disks, survivors, &lost)?;
    decide::plan(&surveys, &lost)
}

pub(crate) fn apply_on(
    disks: Disks<'_>,
    survivors: &[PathBuf],
    plan: &RecoveryPlan,
    config: &Config,
) -> Result<Recovered, RecoveryError> {
    plan.check()?;
    let lost: BTreeSet<NodeId> = plan.lost.iter().copied().map(NodeId).collect();
    let surveys = survey(disks, survivors, &lost)?;
    apply::apply(disks, surveys, plan, config)
}

fn real(_: &Path) -> Arc<dyn Disk> {
    Arc::new(FileDisk)
}

/// Looks at all directories, and makes sure that they are one for each of several nodes of one cluster that are not lost.
fn survey(
    disks: Disks<'_>,
    paths: &[PathBuf],
    lost: &BTreeSet<NodeId>,
) -> Result<Vec<Survey>, RecoveryError> {
    if paths.is_empty() {
        return Err(RecoveryError::Call(
            "give the data directories of the nodes that are left",
        ));
    }
    if lost.is_empty() {
        return Err(RecoveryError::Call(
            "name the nodes that are lost for good; a node that can be started again is not lost",
        ));
    }
    let mut surveys: Vec<Survey> = Vec::new();
    for path in paths {
        if let Some(same) = surveys.iter().find(|known| is_same(&known.path, path)) {
            let (node, path) = (same.node, path.clone());
            return Err(RecoveryError::Twice { node, path });
        }
        let survey = Survey::of(&disks(path), path)?;
        let (node, path) = (survey.node, survey.path.clone());
        if lost.contains(&node) {
            return Err(RecoveryError::NotLost { node, path });
        }
        if surveys.iter().any(|known| known.node == node) {
            return Err(RecoveryError::Twice { node, path });
        }
        if let Some(first) = surveys.first().filter(|one| one.cluster != survey.cluster) {
            let (theirs, ours) = (survey.cluster.clone(), first.cluster.clone());
            return Err(RecoveryError::Cluster { path, theirs, ours });
        }
        surveys.push(survey);
    }
    surveys.sort_by_key(|survey| survey.node);
    account_for_peers(&surveys, lost)?;
    Ok(surveys)
}

/// A group may live on nodes that no log that was given names: it moved while the given nodes were down. So every node that
/// one of them knows must be accounted for, whatever the logs say.
fn account_for_peers(surveys: &[Survey], lost: &BTreeSet<NodeId>) -> Result<(), RecoveryError> {
    let given: BTreeSet<NodeId> = surveys.iter().map(|survey| survey.node).collect();
    let (mut nodes, mut by) = (BTreeSet::new(), Vec::new());
    for survey in surveys {
        let accounted = |node: &&NodeId| given.contains(node) || lost.contains(node);
        let mut others = survey
            .peers
            .iter()
            .filter(|node| !accounted(node))
            .peekable();
        if others.peek().is_some() {
            by.push(survey.node);
        }
        nodes.extend(others);
    }
    if nodes.is_empty() {
        return Ok(());
    }
    let nodes = nodes.into_iter().collect();
    Err(RecoveryError::Unaccounted { nodes, by })
}

/// Whether two paths lead to one directory, which can't be locked twice.
fn is_same(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    a == b || real(a) == real(b)
}

#[cfg(test)]
mod tests;

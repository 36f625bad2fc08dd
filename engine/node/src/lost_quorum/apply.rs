//! A plan carried out: the chosen replica of each group gets one entry, as if it had been elected for that alone, in a term
//! that no other node has used. It must never write to a group that is not as the plan has it.
//!
//! The entry stands at the end of the newest log and names the survivors as the only members. What is before it becomes
//! committed with it, once they have elected a leader; only the chosen one can win that first election, because no other
//! survivor has an entry of that term, and the others get whatever they lack from it. So nothing is written to them.
//!
//! An apply that was interrupted has written some of the groups. Each is found to be as it was, or to have the entry's term
//! and the vote of its own node, or to have the entry too; from each of them it goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, LogPosition, NodeId, Term, shard_of,
};
use polyraft_storage::{
    DataDir, Disk, Opened, PeerSeen, ShardLog, StorageError, StoreId, Survey, SurveyedReplica,
};

use super::decide::{self, Replicas};
use super::plan::{GivenDirectory, RecoveryPlan, SurvivingGroup};
use super::{Disks, RecoveryError};
use crate::assembly;
use crate::config::Config;
use crate::router::NEVER;

/// What an apply has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Groups that were given new members.
    pub written: u64,
    /// Groups that had them already, from an apply of the same plan.
    pub found: u64,
}

/// How far an apply of the plan has come with the chosen replica of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Untouched,
    /// It has voted for itself in the entry's term.
    Voted,
    Done,
}

/// Groups handed to the log before it is asked to write them.
const TOGETHER: usize = 256;

pub(super) fn apply(
    disks: Disks<'_>,
    surveys: Vec<Survey>,
    plan: &RecoveryPlan,
    config: &Config,
) -> Result<Recovered, RecoveryError> {
    compare_directories(&surveys, plan)?;
    let mut chosen: BTreeMap<u64, Vec<&SurvivingGroup>> = BTreeMap::new();
    let mut outcome = Recovered::default();
    let remains = decide::by_group(&surveys);
    for group in &plan.groups {
        let left = remains.get(&GroupId(group.group));
        match compare_group(left.map(|left| &left.replicas), group)? {
            Progress::Done => outcome.found += 1,
            Progress::Untouched | Progress::Voted => {
                outcome.written += 1;
                chosen.entry(group.chosen).or_default().push(group);
            }
        }
    }
    for survey in surveys {
        let groups = chosen.remove(&survey.node.0).unwrap_or_default();
        write(disks(&survey.path), survey, plan, &groups, config)?;
    }
    Ok(outcome)
}

fn differs(why: String) -> RecoveryError {
    RecoveryError::Differs(why)
}

/// The directories must be those of the plan, and no node may have run on them since.
fn compare_directories(surveys: &[Survey], plan: &RecoveryPlan) -> Result<(), RecoveryError> {
    if surveys[0].cluster != plan.cluster {
        let why = format!(
            "it is for cluster {:?}, and these belong to {:?}",
            plan.cluster, surveys[0].cluster
        );
        return Err(differs(why));
    }
    let given: BTreeSet<u64> = surveys.iter().map(|survey| survey.node.0).collect();
    let planned: BTreeSet<u64> = plan.directories.iter().map(|one| one.node).collect();
    if given != planned {
        let why = format!("it was made of the nodes {planned:?}, and these are {given:?}");
        return Err(differs(why));
    }
    for (survey, planned) in surveys.iter().zip(&plan.directories) {
        compare_directory(survey, planned)?;
    }
    Ok(())
}

fn compare_directory(survey: &Survey, planned: &GivenDirectory) -> Result<(), RecoveryError> {
    let path = survey.path.display();
    let is_same =
        (survey.node.0, survey.store.to_string()) == (planned.node, planned.store.clone());
    if !is_same {
        return Err(differs(format!(
            "{path} is another directory than the one it was made of"
        )));
    }
    // An apply that was interrupted has opened the directory, and shown itself to nobody.
    if survey.shown != planned.shown || survey.opening < planned.opening {
        return Err(differs(format!(
            "node {} ran on {path}, or it was put back to an earlier state, since then",
            planned.node
        )));
    }
    Ok(())
}

/// Every replica of a group must be as it was; the chosen one may be further on the way that the plan describes.
fn compare_group(
    replicas: Option<&Replicas<'_>>,
    group: &SurvivingGroup,
) -> Result<Progress, RecoveryError> {
    let mut progress = None;
    let mut has_changed = replicas.is_none_or(|all| all.len() != group.replicas.len());
    for (node, replica) in replicas.into_iter().flatten() {
        let now = decide::describe(*node, replica);
        let is_same = group.replicas.contains(&now);
        if now.node != group.chosen {
            has_changed |= !is_same;
            continue;
        }
        let untouched = (is_same && replica.fault.is_none()).then_some(Progress::Untouched);
        progress = progress_of(replica, group).or(untouched);
    }
    let changed = || differs(format!("group {} has changed since then", group.group));
    progress.filter(|_| !has_changed).ok_or_else(changed)
}

/// What an apply has left in the chosen replica, if it was there.
fn progress_of(replica: &SurveyedReplica, group: &SurvivingGroup) -> Option<Progress> {
    let planned = group.replicas.iter().find(|one| one.node == group.chosen)?;
    let is_voted = replica.hard_state.term == Term(group.term)
        && replica.hard_state.vote == Some(NodeId(group.chosen));
    if !is_voted || replica.fault.is_some() {
        return None;
    }
    let entry = LogPosition {
        term: Term(group.term),
        index: Index(group.index),
    };
    if replica.last == entry {
        return (*replica.configuration() == members(group)).then_some(Progress::Done);
    }
    let before = (Term(planned.last_term), Index(planned.last_index));
    ((replica.last.term, replica.last.index) == before).then_some(Progress::Voted)
}

fn members(group: &SurvivingGroup) -> Configuration {
    let nodes = |numbers: &[u64]| numbers.iter().copied().map(NodeId).collect::<Vec<_>>();
    Configuration::joint(nodes(&group.voters), [], nodes(&group.learners), [])
}

/// Writes to one directory, first of all that the lost nodes are not to be talked to again.
fn write(
    disk: Arc<dyn Disk>,
    survey: Survey,
    plan: &RecoveryPlan,
    groups: &[&SurvivingGroup],
    config: &Config,
) -> Result<(), RecoveryError> {
    let (path, node, lanes) = (survey.path.clone(), survey.node, survey.lanes);
    let replicas = survey.replicas.clone();
    // The directory can't be opened while it is looked at. Whoever opens it in between is noticed by the next comparison.
    drop(survey);
    let dir = DataDir::open(disk, &path, &plan.cluster, node, lanes)?;
    let known = dir.peers();
    for lost in plan.lost.iter().copied().map(NodeId) {
        let store = known.get(&lost).map_or(StoreId(0), |seen| seen.store);
        let incarnation = NEVER;
        dir.note_peer(lost, PeerSeen { store, incarnation })?;
    }
    if groups.is_empty() {
        return Ok(());
    }
    let mut options = assembly::wal_options(config);
    options.lanes = lanes;
    let mut opened = polyraft_storage::open(&dir, &options, lanes)?;
    for some in groups.chunks(TOGETHER) {
        for group in some {
            let id = GroupId(group.group);
            let log = &mut opened.logs[shard_of(id, lanes)];
            let replica = &replicas[&id];
            let is_same = log.hard_state_of(id).is_some_and(|state| {
                state.term <= replica.hard_state.term && state.commit == replica.hard_state.commit
            });
            if !is_same {
                return Err(differs(format!("group {id} has changed since then")));
            }
            appoint(log, group, replica)?;
        }
        flush(&mut opened)?;
    }
    for wal in &opened.wals {
        wal.close()?;
    }
    Ok(())
}

/// Gives the chosen replica its entry.
fn appoint(
    log: &mut ShardLog,
    group: &SurvivingGroup,
    replica: &SurveyedReplica,
) -> Result<(), StorageError> {
    let id = GroupId(group.group);
    if let Some(last) = replica.installed {
        // What the next opening would do: the log begins anew behind the snapshot that was installed.
        log.hard_state(id, replica.hard_state)?;
        log.reset(id, last, replica.configuration())?;
    }
    let state = HardState {
        term: Term(group.term),
        vote: Some(NodeId(group.chosen)),
        commit: replica.hard_state.commit,
    };
    // Before the entry, so that the term is this node's whenever the entry is there.
    log.hard_state(id, state)?;
    let first = Index(group.index);
    let range = EntryRange {
        term: state.term,
        first,
        end: first.next(),
    };
    log.append_configuration(id, range, &members(group))
}

fn flush(opened: &mut Opened) -> Result<(), StorageError> {
    for log in &mut opened.logs {
        log.submit()?;
    }
    for wal in &opened.wals {
        while wal.pump()? {}
    }
    Ok(())
}

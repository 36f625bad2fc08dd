//! Which groups need a recovery, and from which replica: a function of what was read. It must never choose a replica whose
//! log another usable one is newer than.
//!
//! The newest log is found as voters do it (Raft thesis, 3.6.1): by the term of the last entry, then by its index. It has
//! everything that was committed with the help of a survivor: whoever helped has the entry, and a log that is at least as
//! new as one that has a committed entry has it too. What the lost members committed among themselves may be missing.

use std::collections::{BTreeMap, BTreeSet};

use polyraft_raft::{Configuration, GroupId, Index, NodeId};
use polyraft_storage::{Survey, SurveyedReplica, Tombstone};

use super::RecoveryError;
use super::plan::{
    GivenDirectory, RecoveryPlan, RefusedGroup, SurvivingGroup, SurvivingReplica, TERM_STEP,
};
use crate::merge::other_group;

/// The replicas of one group, by node.
pub(super) type Replicas<'a> = BTreeMap<NodeId, &'a SurveyedReplica>;

/// What is left of one group: of the newest life that its id has here.
#[derive(Default)]
pub(super) struct Remains<'a> {
    pub(super) replicas: Replicas<'a>,
    tombstones: Vec<(NodeId, Tombstone)>,
}

/// What becomes of one group.
enum Decision {
    HasQuorum,
    Refused(String),
    /// These members were neither given nor are they lost.
    Missing(BTreeSet<NodeId>),
    Recover(Box<SurvivingGroup>),
}

pub(super) fn plan(
    surveys: &[Survey],
    lost: &BTreeSet<NodeId>,
) -> Result<RecoveryPlan, RecoveryError> {
    let mut plan = RecoveryPlan {
        format: 0,
        cluster: surveys[0].cluster.clone(),
        lost: lost.iter().map(|node| node.0).collect(),
        directories: surveys.iter().map(directory).collect(),
        with_quorum: 0,
        groups: Vec::new(),
        refused: Vec::new(),
        checksum: 0,
    };
    let given: BTreeSet<NodeId> = surveys.iter().map(|survey| survey.node).collect();
    let merging = merging(surveys);
    let (mut missing, mut groups) = (BTreeSet::new(), 0);
    for (group, remains) in by_group(surveys) {
        match decide(group, &remains, (&given, lost), &merging) {
            Decision::HasQuorum => plan.with_quorum += 1,
            Decision::Recover(one) => plan.groups.push(*one),
            Decision::Refused(why) => plan.refused.push(RefusedGroup {
                group: group.0,
                why,
            }),
            Decision::Missing(nodes) => {
                missing.extend(nodes);
                groups += 1;
            }
        }
    }
    if !missing.is_empty() {
        let nodes = missing.into_iter().collect();
        return Err(RecoveryError::Missing { nodes, groups });
    }
    Ok(plan.sealed())
}

fn directory(survey: &Survey) -> GivenDirectory {
    GivenDirectory {
        node: survey.node.0,
        path: survey.path.clone(),
        store: survey.store.to_string(),
        opening: survey.opening,
        shown: survey.shown,
    }
}

pub(super) fn by_group(surveys: &[Survey]) -> BTreeMap<GroupId, Remains<'_>> {
    let mut groups: BTreeMap<GroupId, Remains<'_>> = BTreeMap::new();
    for survey in surveys {
        for (group, replica) in &survey.replicas {
            let remains = groups.entry(*group).or_default();
            remains.replicas.insert(survey.node, replica);
        }
    }
    for (group, remains) in &mut groups {
        // A replica of an earlier life belongs to a group that is over.
        let newest = remains.replicas.values().map(|one| one.life).max();
        remains.replicas.retain(|_, one| Some(one.life) == newest);
        let ended = surveys.iter().filter_map(|survey| {
            let tombstone = survey.tombstones.get(group)?;
            (Some(tombstone.life) >= newest).then_some((survey.node, *tombstone))
        });
        remains.tombstones.extend(ended);
    }
    groups
}

/// What is known of one replica.
pub(super) fn describe(node: NodeId, replica: &SurveyedReplica) -> SurvivingReplica {
    let committed = replica.hard_state.commit.max(replica.base.index);
    SurvivingReplica {
        node: node.0,
        term: replica.hard_state.term.0,
        vote: replica.hard_state.vote.map(|vote| vote.0),
        last_term: replica.last.term.0,
        last_index: replica.last.index.0,
        committed: committed.0,
        is_witness: replica.is_witness,
        fault: replica.fault.clone(),
    }
}

fn decide(
    group: GroupId,
    remains: &Remains<'_>,
    (given, lost): (&BTreeSet<NodeId>, &BTreeSet<NodeId>),
    merging: &BTreeSet<GroupId>,
) -> Decision {
    let replicas = &remains.replicas;
    let life = replicas.values().map(|one| one.life).max();
    let is_over = |(_, tombstone): &&(NodeId, Tombstone)| tombstone.over() >= life;
    if let Some((node, _)) = remains.tombstones.iter().find(is_over) {
        return Decision::Refused(format!("it was destroyed, as node {} knows", node.0));
    }
    let usable = replicas.iter().filter(|(_, one)| may_vote(one));
    let usable: Replicas<'_> = usable.map(|(node, one)| (*node, *one)).collect();
    // A witness knows what there was, and has none of it. Of two that are equally new, the one that votes already.
    let full = usable.iter().filter(|(_, one)| !one.is_witness);
    let newest = full.max_by_key(|(node, one)| {
        let last = (one.last.term, one.last.index);
        (
            last,
            one.configuration().is_voter(**node),
            std::cmp::Reverse(**node),
        )
    });
    let Some((&chosen, newest)) = newest else {
        return Decision::Refused(format!(
            "no replica that is left can vote and has the payloads: {}",
            faults(replicas)
        ));
    };
    let before = newest.configuration();
    if before.voters().is_empty() {
        return Decision::Refused(format!("the log on node {} names no voters", chosen.0));
    }
    // Whoever can be elected has everything that was committed (section 5.4.3 of the paper): also who has not got the newest
    // entries, with the members that its own log names. An entry that is written elsewhere would be at odds with what it commits.
    let can_lead = |(node, one): (&NodeId, &&SurveyedReplica)| {
        let votes = |node| {
            usable
                .get(&node)
                .is_some_and(|other| other.last <= one.last)
        };
        !one.is_witness
            && one.configuration().is_voter(*node)
            && one.configuration().has_quorum(votes)
    };
    if usable.iter().any(can_lead) {
        return Decision::HasQuorum;
    }
    // That can only be a witness.
    let knows_more = usable.values().any(|one| one.last > newest.last);
    let is_missing = |node: &NodeId| !given.contains(node) && !lost.contains(node);
    // Any of them may be in force, so anybody in one may have what was committed.
    let possible = &newest.configurations;
    let nodes = possible.iter().flat_map(|(_, members)| members.nodes());
    let missing: BTreeSet<NodeId> = nodes.filter(is_missing).collect();
    if !missing.is_empty() {
        return Decision::Missing(missing);
    }
    let seen = replicas.values();
    let term = seen.map(|one| one.hard_state.term.max(one.last.term)).max();
    let Some(term) = term.and_then(|term| term.0.checked_add(TERM_STEP)) else {
        return Decision::Refused("its terms are used up".to_owned());
    };
    let (voters, learners) = survivors(before, chosen, &usable);
    let described: Vec<_> = replicas
        .iter()
        .map(|(node, one)| describe(*node, one))
        .collect();
    let last = newest.last.index;
    // A removal is known to have been committed as of an index.
    let removed = remains.tombstones.iter().map(|(_, one)| one.at.0);
    let known = described
        .iter()
        .map(|one| one.committed)
        .chain(removed)
        .max();
    let known = known.unwrap_or_default();
    // What a witness that is left knows of may have been committed with its help.
    let may_have_lost = knows_more || could_commit_alone(possible, &usable);
    let loses_any = may_have_lost || known > last.0;
    Decision::Recover(Box::new(SurvivingGroup {
        group: group.0,
        voters_before: numbers(before.voters().iter().chain(before.outgoing())),
        learners_before: numbers(before.learners().iter().chain(before.learners_next())),
        replicas: described,
        chosen: chosen.0,
        voters: numbers(&voters),
        learners: numbers(&learners),
        term,
        index: last.next().0,
        known_committed: known.min(last.0),
        becoming_committed: last.0.saturating_sub(known),
        known_lost: known.saturating_sub(last.0),
        may_have_lost,
        may_forget_merge: loses_any && merging.contains(&group),
        may_forget_split: loses_any && replicas.values().any(|one| one.has_splits),
    }))
}

/// Whether all that are lost could commit without those that are left, with some of these members, or with those that follow a joint
/// configuration of theirs: that is left as soon as it is committed, and whoever is in both halves need not hear of it.
fn could_commit_alone(possible: &[(Index, Configuration)], usable: &Replicas<'_>) -> bool {
    let is_lost = |node| !usable.contains_key(&node);
    possible.iter().any(|(index, members)| {
        // Whose log ends before it has had no part in its commit.
        let may_have_it = |node| {
            let left = usable.get(&node);
            left.is_none_or(|one| one.last.index >= *index)
        };
        members.has_quorum(may_have_it) && members.left().has_quorum(is_lost)
    })
}

/// All groups that take part in merges, as the log of one of the two says.
fn merging(surveys: &[Survey]) -> BTreeSet<GroupId> {
    let replicas = surveys.iter().flat_map(|survey| &survey.replicas);
    let merges = replicas.flat_map(|(group, one)| {
        let own = (!one.merges.is_empty()).then_some(*group);
        let others = one.merges.iter().filter_map(|head| other_group(head));
        own.into_iter().chain(others)
    });
    merges.collect()
}

/// Who votes and who learns afterwards: what is left of the members, and the chosen one in any case. Witnesses are not among
/// them: what they know of may not be there any more, and they cost nothing to be added anew.
fn survivors(
    before: &Configuration,
    chosen: NodeId,
    usable: &Replicas<'_>,
) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let left = |nodes: &[NodeId]| -> Vec<NodeId> {
        let left = nodes
            .iter()
            .filter(|node| usable.get(node).is_some_and(|one| !one.is_witness));
        left.copied().collect()
    };
    let voters: BTreeSet<NodeId> = [left(before.voters()), left(before.outgoing()), vec![chosen]]
        .concat()
        .into_iter()
        .collect();
    let learners = [left(before.learners()), left(before.learners_next())].concat();
    let learners = learners.into_iter().filter(|node| !voters.contains(node));
    let learners = learners.collect();
    (voters, learners)
}

fn numbers<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> Vec<u64> {
    let nodes: BTreeSet<u64> = nodes.into_iter().map(|node| node.0).collect();
    nodes.into_iter().collect()
}

/// Whether it is sound, and its log reaches as far as it has to before its node may vote.
fn may_vote(replica: &SurveyedReplica) -> bool {
    let is_back = replica.last.index >= replica.joined || replica.last.term > replica.removed_in;
    replica.fault.is_none() && is_back
}

fn faults(replicas: &Replicas<'_>) -> String {
    let faults = replicas.iter().map(|(node, one)| {
        let behind = match one.is_witness {
            true => "it is a witness",
            false => "it has not caught up since it became a member",
        };
        let fault = one.fault.as_deref().unwrap_or(behind);
        format!("on node {}, {fault}", node.0)
    });
    faults.collect::<Vec<_>>().join("; ")
}

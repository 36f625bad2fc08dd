//! Recoveries of groups that lost their quorum, in a story: what the plan says, and what is lost once it is carried out. It must
//! tell the checkers of no other loss than what the plan has announced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyraft::sim::{apply_recovery_on, plan_recovery_on};
use polyraft::{GroupId, RecoveryPlan, SurvivingGroup};
use polyraft_storage::sim::{Keep, KeepNames};
use polyraft_storage::{Disk, Survey};

use super::super::machine;
use super::Story;
use super::watch::ids;

/// The last plan, and whose directories it was made of.
pub(super) struct Planned {
    survivors: Vec<u64>,
    plan: RecoveryPlan,
}

fn paths(nodes: &[u64]) -> Vec<PathBuf> {
    nodes.iter().map(|node| machine::data_dir(*node)).collect()
}

impl Story {
    /// The disk of the machine whose data directory that is.
    fn disk_of(&self, path: &Path) -> Arc<dyn Disk> {
        let mut hosts = self.world.hosts.iter().enumerate();
        let host = hosts.find(|(id, _)| machine::data_dir(*id as u64) == path);
        let (_, host) = host.expect("every data directory is on a machine");
        Arc::new(host.disk.clone())
    }

    pub(super) fn plan(&mut self, survivors: Vec<u64>, lost: &[u64]) {
        self.planned = None;
        let plan = plan_recovery_on(&|path| self.disk_of(path), &paths(&survivors), lost);
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => return self.lines.push(format!("plan: refused, {error}")),
        };
        let mut told = vec![format!("groups with a quorum: {}", plan.with_quorum)];
        told.extend(plan.groups.iter().map(about));
        let refused = plan.refused.iter();
        told.extend(refused.map(|one| format!("g{} can't be recovered: {}", one.group, one.why)));
        let lines = told.into_iter().map(|told| format!("plan: {told}"));
        self.lines.extend(lines);
        self.planned = Some(Planned { survivors, plan });
    }

    pub(super) fn apply(&mut self, cut: Option<(u64, u64)>) {
        let planned = self.planned.take().expect("nothing is planned");
        let Planned { survivors, plan } = &planned;
        let lives: Vec<u32> = plan.groups.iter().map(|one| self.life_of(one)).collect();
        if let Some((node, operation)) = cut {
            let disk = &self.world.hosts[node as usize].disk;
            disk.cut_at(disk.operations() + operation - 1);
        }
        let config = &self.world.plan.config;
        let done = apply_recovery_on(&|path| self.disk_of(path), &paths(survivors), plan, config);
        match (done, cut) {
            (Ok(done), None) => {
                let told = format!("apply: {} written, {} found", done.written, done.found);
                self.lines.push(told);
            }
            (Err(error), None) => {
                self.lines.push(format!("apply: refused, {error}"));
                self.planned = Some(planned);
                return;
            }
            (Err(_), Some(_)) => {
                self.lines.push("apply: the power fails".to_owned());
                for node in survivors {
                    self.lose_power(*node);
                }
            }
            (Ok(_), Some(_)) => panic!("it is over before the power fails"),
        }
        for node in &plan.lost {
            self.world.hosts[*node as usize].is_outcast = true;
        }
        for (group, life) in plan.groups.iter().zip(lives) {
            self.tell_losses(group, life);
        }
        self.planned = Some(planned);
    }

    /// What a power cut leaves of a disk: what a sync has covered.
    pub(super) fn lose_power(&mut self, node: u64) {
        let host = &mut self.world.hosts[node as usize];
        host.disk = host
            .disk
            .after_power_cut_with(Keep::Nothing, KeepNames::Nothing);
    }

    /// The life of a group that the chosen replica belongs to.
    fn life_of(&self, group: &SurvivingGroup) -> u32 {
        let path = machine::data_dir(group.chosen);
        let survey = Survey::of(&self.disk_of(&path), &path).expect("it was looked at");
        survey.replicas[&GroupId(group.group)].life.get()
    }

    /// From here on the rules hold what the group goes on with.
    fn tell_losses(&mut self, group: &SurvivingGroup, life: u32) {
        let checks = &mut self.world.checks[group.group as usize - 1];
        match checks.goes_on_with(life, group) {
            Err(failure) => self.world.fail(failure),
            Ok(lost) => {
                for entry in lost {
                    let put = self.calls.put_by(entry.request);
                    let (key, value) = put.expect("no story loses a split or a merge");
                    let told = format!(
                        "g{} loses {key} {value}, applied at {}",
                        group.group, entry.index
                    );
                    self.lines.push(told);
                }
            }
        }
    }
}

/// What becomes of a group, in words.
fn about(group: &SurvivingGroup) -> String {
    let list = |nodes: &[u64]| ids(nodes.iter().copied());
    let learners = match group.learners.is_empty() {
        true => String::new(),
        false => format!(", learners{}", list(&group.learners)),
    };
    let lost = match (group.known_lost, group.may_have_lost) {
        (0, false) => "nothing acknowledged is lost".to_owned(),
        (0, true) => "what the others committed may be lost".to_owned(),
        (known, _) => format!("{known} known to be committed are lost"),
    };
    format!(
        "g{} with voters{} goes on with voters{}{learners} and the log of n{} through {}, committed for certain through {}; {lost}",
        group.group,
        list(&group.voters_before),
        list(&group.voters),
        group.chosen,
        group.index - 1,
        group.known_committed,
    )
}

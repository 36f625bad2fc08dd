//! `polyraft recover`: what is left of groups that lost a majority of their members, said first and done only as it was said.
//! It must never change a directory without a plan that was made of it.

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use polyraft::{Config, RecoveryPlan, SurvivingGroup, TERM_STEP};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Recover groups that lost a majority of their members for good. Stop all nodes first.
#[derive(Clone, Debug, Subcommand)]
pub enum RecoverCommand {
    /// Say what can be recovered and what may be lost; changes nothing
    Plan {
        #[command(flatten)]
        nodes: Nodes,
        /// Write the plan to this file, for `recover apply`
        #[arg(long)]
        out: Option<PathBuf>,
        /// Print the plan as JSON
        #[arg(long)]
        json: bool,
        /// Print every group
        #[arg(long)]
        verbose: bool,
        /// Print this group
        #[arg(long)]
        group: Option<u64>,
    },
    /// Carry a plan out, on the directories that it was made of; may be repeated if it was interrupted
    Apply {
        #[command(flatten)]
        nodes: Nodes,
        /// The plan
        #[arg(long)]
        plan: PathBuf,
        /// The configuration of the nodes, as TOML
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

/// Which nodes are left and which are not.
#[derive(Args, Clone, Debug)]
pub struct Nodes {
    /// The data directories of the nodes that are left, all of them
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
    /// The nodes that never come back
    #[arg(long, value_delimiter = ',', required = true)]
    lost: Vec<u64>,
}

/// Runs the command. False if there are groups that can't be recovered.
pub fn run(command: &RecoverCommand) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match command {
        RecoverCommand::Plan {
            nodes,
            out: file,
            json,
            verbose,
            group,
        } => {
            let plan = polyraft::plan_recovery(&nodes.dirs, &nodes.lost)?;
            if *json {
                writeln!(out, "{}", serde_json::to_string_pretty(&plan)?)?;
            } else {
                let shows = |one: u64| *verbose || *group == Some(one);
                write!(out, "{}", describe(&plan, shows))?;
            }
            if let Some(file) = file {
                save(&plan, file)?;
                if !*json {
                    writeln!(out, "The plan is in {}.", file.display())?;
                }
            }
            Ok(plan.refused.is_empty())
        }
        RecoverCommand::Apply {
            nodes,
            plan: file,
            config,
        } => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let plan: RecoveryPlan = serde_json::from_str(&text)
                .with_context(|| format!("{} is no plan", file.display()))?;
            let mut lost = nodes.lost.clone();
            lost.sort_unstable();
            lost.dedup();
            ensure!(
                lost == plan.lost,
                "the plan gives up the nodes {:?}, and you name {lost:?}",
                plan.lost
            );
            let config = match config {
                None => Config::default(),
                Some(path) => {
                    let text = std::fs::read_to_string(path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    Config::from_toml_str(&text)?
                }
            };
            let done = polyraft::apply_recovery(&nodes.dirs, &plan, &config)?;
            for dir in &nodes.dirs {
                save(
                    &plan,
                    &dir.join(format!("recovered-{:08x}.json", plan.checksum)),
                )?;
            }
            writeln!(
                out,
                "{} recovered, {} had been before; the plan is kept in each directory",
                count(done.written, "group"),
                done.found
            )?;
            writeln!(out, "{}", never_again(&plan))?;
            Ok(true)
        }
    }
}

/// Writes a plan to a file that was not there, or had the same, or the beginning of it: a crash may have left that.
fn save(plan: &RecoveryPlan, file: &Path) -> Result<()> {
    let mut text = serde_json::to_string_pretty(plan)?;
    text.push('\n');
    let is_file = std::fs::symlink_metadata(file).is_ok_and(|there| there.is_file());
    if is_file
        && let Ok(there) = std::fs::read_to_string(file)
        && text.starts_with(&there)
    {
        if there == text {
            return Ok(());
        }
        std::fs::remove_file(file).with_context(|| format!("cannot replace {}", file.display()))?;
    }
    let mut to = std::fs::File::create_new(file)
        .with_context(|| format!("cannot create {}", file.display()))?;
    to.write_all(text.as_bytes())
        .and_then(|()| to.sync_all())
        .with_context(|| format!("cannot write {}", file.display()))
}

fn describe(plan: &RecoveryPlan, shows: impl Fn(u64) -> bool) -> String {
    let mut text = String::new();
    let mut line = |what: String| writeln!(text, "{what}").expect("a string takes it");
    let left: Vec<u64> = plan.directories.iter().map(|one| one.node).collect();
    let lost = nodes(&plan.lost);
    line(format!(
        "Cluster {:?}: {} left, {lost} lost.",
        plan.cluster,
        nodes(&left)
    ));
    line(format!(
        "{} without a quorum can be recovered, {} can't. {} with a quorum {} left alone.",
        count(plan.groups.len() as u64, "group"),
        plan.refused.len(),
        count(plan.with_quorum, "other"),
        if plan.with_quorum == 1 { "is" } else { "are" },
    ));
    let (risky, safe): (Vec<_>, Vec<_>) = plan.groups.iter().partition(|one| one.may_have_lost);
    if !risky.is_empty() {
        line(format!(
            "  In {} the members that are lost could commit by themselves. Writes that they acknowledged and no survivor has \
             are lost, and nobody can say how many. Surely kept is what is known to be committed: {}.",
            count(risky.len() as u64, "group"),
            count(risky.iter().map(|one| one.known_committed).sum(), "entry"),
        ));
    }
    if !safe.is_empty() {
        line(format!(
            "  In {} every commit needed a survivor: no acknowledged write is lost.",
            count(safe.len() as u64, "group")
        ));
    }
    let becoming = |one: &&SurvivingGroup| one.becoming_committed > 0;
    if plan.groups.iter().any(|one| becoming(&one)) {
        line(format!(
            "  {} of {} become committed, whether or not they were acknowledged.",
            count(
                plan.groups.iter().map(|one| one.becoming_committed).sum(),
                "entry"
            ),
            count(plan.groups.iter().filter(becoming).count() as u64, "group"),
        ));
    }
    let gone = |one: &&SurvivingGroup| one.known_lost > 0;
    if plan.groups.iter().any(|one| gone(&one)) {
        line(format!(
            "  {} of {} that are known to be committed are LOST: only damaged replicas had them.",
            count(plan.groups.iter().map(|one| one.known_lost).sum(), "entry"),
            count(plan.groups.iter().filter(gone).count() as u64, "group"),
        ));
    }
    for (what, is_it) in [
        (
            "merge",
            (|one| one.may_forget_merge) as fn(&SurvivingGroup) -> bool,
        ),
        ("split", |one| one.may_forget_split),
    ] {
        let groups: Vec<u64> = plan
            .groups
            .iter()
            .filter(|one| is_it(one))
            .map(|one| one.group)
            .collect();
        if !groups.is_empty() {
            line(format!(
                "  Of {groups:?} a {what} may be FORGOTTEN: what moved by it may be there twice, or nowhere. Compare these groups \
                 with those that they were {what}{} before clients may go on.",
                if what == "merge" {
                    "d with"
                } else {
                    " from or into"
                },
            ));
        }
    }
    for group in plan.groups.iter().filter(|one| shows(one.group)) {
        line(about(group));
    }
    for refused in &plan.refused {
        line(format!(
            "  group {} can't be recovered: {}",
            refused.group, refused.why
        ));
    }
    if !plan.groups.is_empty() {
        line(format!(
            "  Terms go up by {TERM_STEP} beyond the highest one that is known."
        ));
        line(never_again(plan));
    }
    text
}

fn about(group: &SurvivingGroup) -> String {
    let mut text = format!(
        "  group {}: voters {:?}, learners {:?} become voters {:?}, learners {:?}; node {} has the newest log, through index {}; \
         committed for certain through {}; {} become committed; {}",
        group.group,
        group.voters_before,
        group.learners_before,
        group.voters,
        group.learners,
        group.chosen,
        group.index - 1,
        group.known_committed,
        count(group.becoming_committed, "entry"),
        match (group.known_lost, group.may_have_lost) {
            (0, true) => "what the lost members committed by themselves is lost".to_owned(),
            (0, false) => "no acknowledged write is lost".to_owned(),
            (lost, _) => format!("{} known to be committed LOST", count(lost, "entry")),
        }
    );
    for replica in &group.replicas {
        let fault = replica.fault.as_ref();
        let fault = fault.map_or_else(String::new, |why| format!("; DAMAGED: {why}"));
        write!(
            text,
            "\n    node {}: term {}, last entry {} of term {}, committed through {}{fault}",
            replica.node, replica.term, replica.last_index, replica.last_term, replica.committed,
        )
        .expect("a string takes it");
    }
    text
}

fn never_again(plan: &RecoveryPlan) -> String {
    format!(
        "Once it is applied, {} must NEVER be started again with the old data: together they could still elect a leader, and \
         the groups would exist twice. The survivors refuse to talk to them.",
        nodes(&plan.lost)
    )
}

fn nodes(numbers: &[u64]) -> String {
    let list: Vec<String> = numbers.iter().map(u64::to_string).collect();
    let noun = if list.len() == 1 { "node" } else { "nodes" };
    format!("{noun} {}", list.join(", "))
}

fn count(number: u64, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

//! Shows that scripts and random clusters notice deliberate faults in the core. Only in a build with
//! `RUSTFLAGS="--cfg polyraft_mutants"`; a fault is on for one thread at a time, so other tests are not touched.

use std::io::{Write as _, stdout};
use std::panic::catch_unwind;

use polyraft_raft::mutants::{self, Mutant, SCRIPTED};

use crate::{paper, random, scripts};

/// The faults of the other list that are faults of the core.
const OF_THE_CORE: &[Mutant] = &[
    Mutant::VoteBeforeDurable,
    Mutant::AckBeforeDurable,
    Mutant::LeaderCountsUndurable,
    Mutant::UnsortedQuorum,
    Mutant::HalfIsMajority,
    Mutant::OldTermCommitted,
    Mutant::LateAppendTruncates,
    Mutant::ReadBeforeTermCommit,
    Mutant::ReadUnconfirmed,
    Mutant::StaleCompletionCounts,
    Mutant::StaleComparisonKept,
    Mutant::SilentLeaderKept,
];

/// The scripts that a fault makes fail, by a wrong print or by a check.
fn failing_scripts() -> Vec<String> {
    let fails = |script: &String| {
        let text = std::fs::read_to_string(script).expect("a readable script");
        catch_unwind(|| scripts::play(&text)).map_or(true, |printed| printed != text)
    };
    scripts::scripts()
        .into_iter()
        .map(|path| path.display().to_string())
        .filter(fails)
        .collect()
}

#[test]
fn every_fault_of_the_core_fails_a_script() {
    assert!(failing_scripts().is_empty(), "they fail without a fault");
    let mut alive = Vec::new();
    for mutant in SCRIPTED.iter().map(|(m, _)| m).chain(OF_THE_CORE) {
        mutants::set(Some(*mutant));
        let failing = failing_scripts();
        let seed = (0..100).find(|&seed| catch_unwind(|| random::run(seed)).is_err());
        mutants::set(None);
        let name = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
        let first = failing.first().map(name);
        writeln!(
            stdout(),
            "{mutant:?}: {} scripts, first {first:?}, random seed {seed:?}",
            failing.len()
        )
        .expect("standard output");
        if failing.is_empty() {
            alive.push(mutant);
        }
    }
    assert!(alive.is_empty(), "no script notices {alive:?}");
}

#[test]
fn equal_timeouts_fail_the_rules_of_the_paper() {
    let rules: [fn(); 2] = [
        paper::followers_rarely_time_out_together,
        paper::candidates_rarely_time_out_together,
    ];
    for rule in rules {
        mutants::set(Some(Mutant::EqualTimeouts));
        let holds = catch_unwind(rule).is_ok();
        mutants::set(None);
        assert!(!holds);
    }
}

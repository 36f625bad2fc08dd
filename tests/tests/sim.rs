//! The simulator itself: a seed is a run, the same one every time, and no rule is broken in the seeds that once broke
//! one. That debug and release builds agree is checked by `.ci/run`.

use polyraft_tests::sim::{self, campaign};

#[test]
fn a_seed_gives_the_same_run_twice() {
    let (first, second) = (sim::run(9, None), sim::run(9, None));
    assert_eq!(first.hash, second.hash);
    assert_eq!(first.micros, second.micros);
    assert_ne!(first.hash, sim::run(10, None).hash);
}

#[test]
fn words_do_not_change_what_happens() {
    let silent = sim::run(9, None);
    let told = sim::run(9, Some(Vec::new()));
    assert_eq!(silent.hash, told.hash);
    assert!(silent.lines.is_empty() && told.lines.len() > 1000);
}

#[test]
fn seeds_that_once_found_something_break_no_rule() {
    let seeds: Vec<u64> = campaign::regressions()
        .into_iter()
        .map(|(seed, _)| seed)
        .collect();
    assert!(!seeds.is_empty());
    campaign::run(&seeds, 2, |report| {
        assert_eq!(report.failure, None, "{}", report.plan);
        assert!(report.counts.events >= 20_000, "{:?}", report.counts);
    });
}

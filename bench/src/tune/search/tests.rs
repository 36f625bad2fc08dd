//! What a search finds in a model whose best point is known, within which budget, and what it leaves as it was.

use super::*;
use std::cell::Cell;

fn space(texts: &[&str]) -> Space {
    let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    Space::new(&Config::default(), &texts).unwrap()
}

fn seen(rate: f64, p99_us: f64) -> Seen {
    Seen {
        rate,
        p99_us,
        answered: 1,
        due: 1,
        elections: 0,
        void: None,
    }
}

/// Searches a model with noise; returns the outcome and how many runs it took.
fn search_model(
    space: &Space,
    budget: u64,
    seed: u64,
    model: impl Fn(&Point) -> f64,
) -> (Outcome, u64) {
    search_model_keeping(0.0, space, budget, seed, model)
}

/// The same with so many runs to be left over, if the budget allows.
fn search_model_keeping(
    reserve: f64,
    space: &Space,
    budget: u64,
    seed: u64,
    model: impl Fn(&Point) -> f64,
) -> (Outcome, u64) {
    let rules = Rules {
        goal: Goal::Throughput { p99_us: 5_000.0 },
        seed,
        rounds: 12,
        reserve,
        precision: 0.02,
    };
    let runs = Cell::new(0);
    let mut noise = Rng::new(seed, 99);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let outcome = runtime.block_on(search(
        space,
        rules,
        async |point, _| {
            assert!(
                space.config(point).is_ok(),
                "{point:?} does not go together"
            );
            runs.set(runs.get() + 1);
            let rate = model(point) * (0.97 + 0.06 * noise.unit());
            Ok(seen(rate, 1_000.0))
        },
        || budget.saturating_sub(runs.get()) as f64,
    ));
    (outcome.unwrap(), runs.get())
}

#[test]
fn a_small_space_is_tried_whole_and_its_best_point_wins() {
    let space = space(&[
        "wal.max_batch_bytes=2MiB..16MiB",
        "batch.turn_events=1024..4096",
    ]);
    for seed in 0..10 {
        // As it is: 4MiB and 4096.
        let (outcome, _) = search_model(&space, 100, seed, |point| {
            let at = |param: usize, as_it_is: usize| point[param].unwrap_or(as_it_is) as f64;
            1000.0 + 100.0 * at(0, 1) - 150.0 * at(1, 2)
        });
        assert_eq!(outcome.method, Method::Grid);
        assert_eq!(outcome.trials.len(), 12);
        assert_eq!(
            outcome.trials[outcome.best].point,
            [Some(3), Some(0)],
            "seed {seed}"
        );
        assert_ne!(outcome.stop, Stop::Budget);
        assert_eq!(outcome.chosen, [Some(3), Some(0)], "seed {seed}");
    }
}

#[test]
fn a_large_space_is_searched_by_coordinates_within_the_budget() {
    let space = space(&[
        "wal.max_batch_bytes=2MiB..32MiB",
        "batch.turn_events=16..65536",
        "replication.inflight_messages=1..1024",
    ]);
    assert!(space.feasible() > 700);
    let (outcome, runs) = search_model(&space, 120, 1, |point| {
        // As it is: 4MiB, 4096, 64.
        let as_it_is = [1, 8, 6];
        let off = |at: usize, best: f64| {
            let place = point[at].unwrap_or(as_it_is[at]) as f64;
            (place - best).powi(2)
        };
        3000.0 - 20.0 * (off(0, 3.0) + off(1, 12.0) + off(2, 2.0))
    });
    assert_eq!(outcome.method, Method::Coordinates);
    assert!(runs <= 121, "{runs}");
    let best = outcome.trials[outcome.best].runs().merit();
    assert!(best > 2700.0, "{best}");
}

#[test]
fn points_that_do_not_go_together_are_named_and_not_run() {
    let space = space(&["shards.count=1,2", "wal.lanes=1,2"]);
    let (outcome, _) = search_model(&space, 100, 2, |_| 1000.0);
    assert_eq!(outcome.skipped.len(), 1);
    assert!(
        outcome.skipped[0].1.contains("wal.lanes"),
        "{:?}",
        outcome.skipped
    );
    // One shard with one lane is the configuration as it is.
    assert_eq!(outcome.trials.len(), 3);
}

#[test]
fn luck_in_the_run_that_chose_a_candidate_does_not_make_it_the_best() {
    let space = space(&["batch.turn_events=100..3200"]);
    for seed in 0..30 {
        // All are alike, so whoever seemed the fastest at first was lucky.
        let (outcome, _) = search_model(&space, 60, seed, |_| 1000.0);
        let best = &outcome.trials[outcome.best];
        assert!(
            !best.raced.merits.is_empty(),
            "seed {seed}: the best had one run"
        );
        for other in &outcome.trials {
            assert!(
                other.raced.merits.is_empty() || other.raced.merit() <= best.raced.merit(),
                "seed {seed}: {other:?}"
            );
        }
    }
}

#[test]
fn a_key_without_effect_stays_as_it_is() {
    let space = space(&[
        "wal.max_batch_bytes=2MiB..16MiB",
        "batch.turn_events=512..2048",
    ]);
    let mut taken = [0, 0];
    for seed in 0..20 {
        // Only the first key does anything.
        let (outcome, _) = search_model(&space, 150, seed, |point| {
            1000.0 + 100.0 * point[0].unwrap_or(1) as f64
        });
        for (taken, value) in taken.iter_mut().zip(&outcome.chosen) {
            *taken += u32::from(value.is_some());
        }
    }
    // One key in forty may seem to have an effect by chance.
    assert!(taken[0] == 20 && taken[1] <= 2, "{taken:?}");
}

#[test]
fn of_two_keys_that_do_the_same_one_stays() {
    let space = space(&[
        "batch.turn_events=1024,2048",
        "replication.inflight_messages=32,128",
    ]);
    let (outcome, _) = search_model(&space, 200, 4, |point| match point[..] {
        [None, None] => 1000.0,
        _ => 2000.0,
    });
    let stays = outcome.chosen.iter().filter(|value| value.is_some());
    assert_eq!(stays.count(), 1, "{:?}", outcome.chosen);
}

#[test]
fn keys_that_need_one_another_are_compared_without_leaving_what_goes_together() {
    // Both are 1 as it is, and one shard cannot write to two lanes.
    let texts = ["shards.count=1,2", "wal.lanes=1,2"];
    for (shards, lanes) in [(0, 1), (1, 0)] {
        let space = space(&[texts[shards], texts[lanes]]);
        let chosen = |model: fn(usize, usize) -> f64| {
            let of = |point: &Point| {
                let at = |param: usize| point[param].unwrap_or(0) + 1;
                model(at(shards), at(lanes))
            };
            let (outcome, _) = search_model(&space, 200, 6, of);
            let values = [shards, lanes].map(|param| outcome.chosen[param]);
            (values, outcome.checks)
        };
        let both = |shards, lanes| if shards * lanes == 4 { 2000.0 } else { 1000.0 };
        let (values, checks) = chosen(both);
        assert_eq!(values, [Some(1), Some(1)]);
        assert_eq!(checks[0].keys, [(lanes, 1)]);
        assert_eq!(checks[1].keys, [(shards, 1), (lanes, 1)]);
        // The lanes do nothing.
        let (values, checks) = chosen(|shards, lanes| 1000.0 * shards as f64 + lanes as f64);
        assert_eq!(values, [Some(1), None]);
        assert_eq!(checks.last().unwrap().keys, [(shards, 1)]);
    }
}

#[test]
fn what_there_was_no_time_to_compare_stays_as_it_is() {
    let space = space(&["batch.turn_events=1024,2048"]);
    let (outcome, _) = search_model(&space, 8, 5, |point| match point[..] {
        [None] => 1000.0,
        _ => 2000.0,
    });
    assert_ne!(outcome.best, 0);
    assert_eq!(outcome.chosen, [None]);
    assert_eq!(outcome.checks[0].pairs, Pairs::default());
}

#[test]
fn a_winner_far_ahead_is_kept_when_the_race_ends_by_the_budget() {
    let texts = [
        "batch.turn_events=512,1024,2048",
        "replication.inflight_messages=32,128,256",
        "wal.max_batch_bytes=2MiB,8MiB,16MiB",
        "replication.retry_interval=100ms,400ms,800ms",
    ];
    for keys in 2..=texts.len() {
        let space = space(&texts[..keys]);
        for (seed, budget) in (0..10).flat_map(|seed| [(seed, 30), (seed, 50)]) {
            // Each key does the same good with one of its values. With the smaller budget no race is decided.
            let model = |point: &Point| {
                let is_good = |value: &&Option<usize>| **value == Some(1);
                1000.0 + 1000.0 * point.iter().filter(is_good).count() as f64
            };
            let (outcome, runs) = search_model_keeping(10.0, &space, budget, seed, model);
            let best = &outcome.trials[outcome.best].point;
            let context = format!(
                "{keys} keys, seed {seed}, budget {budget}: {:?}",
                outcome.checks
            );
            assert!(outcome.stop == Stop::Budget || budget == 50, "{context}");
            assert_ne!(*best, space.as_it_is(), "{context}");
            assert_eq!(outcome.chosen, *best, "{context}");
            assert!(budget - runs >= 6, "{runs} runs, {context}");
        }
    }
}

#[test]
fn the_value_as_it_is_makes_no_second_candidate() {
    // 4096KiB is 4MiB, which it is anyway.
    let space = space(&["wal.max_batch_bytes=4096KiB,8MiB"]);
    let (outcome, _) = search_model(&space, 100, 3, |_| 1000.0);
    let points: Vec<_> = outcome.trials.iter().map(|trial| &trial.point).collect();
    assert_eq!(points, [&vec![None], &vec![Some(1)]]);
}

#[test]
fn each_round_of_the_race_has_a_number_of_its_own() {
    let space = space(&["batch.turn_events=1024,2048"]);
    let rules = Rules {
        goal: Goal::Latency { rate: 1000.0 },
        seed: 1,
        rounds: 3,
        reserve: 0.0,
        precision: 0.0,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut rounds = Vec::new();
    let run = async |point: &Point, round| {
        rounds.push((point.clone(), round));
        Ok(seen(1000.0, 1_000.0))
    };
    let outcome = runtime.block_on(search(&space, rules, run, || 100.0));
    assert_eq!(outcome.unwrap().stop, Stop::Precise);
    rounds.sort();
    let of = |point: Option<usize>| {
        let rounds = rounds.iter().filter(move |(of, _)| *of == [point]);
        rounds.map(|(_, round)| *round).collect::<Vec<_>>()
    };
    for point in [None, Some(0), Some(1)] {
        let all = of(point);
        let race: Vec<u64> = all
            .into_iter()
            .filter(|round| *round < CHECK_ROUNDS)
            .collect();
        assert_eq!(race, [0, 1, 2, 3], "{point:?}");
    }
}

#[test]
fn pairs_are_runs_side_by_side() {
    let goal = Goal::Throughput { p99_us: 5_000.0 };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut firsts = Vec::new();
    let mut made = 0.0;
    let pairs = runtime.block_on(in_turn(goal, 7, 20, async |is_second, number| {
        if firsts.len() as u64 == number {
            firsts.push(is_second);
        }
        made += 1.0;
        let rate = if is_second { 2000.0 } else { 1000.0 };
        Ok(seen(rate + made, 1_000.0))
    }));
    let pairs = pairs.unwrap();
    assert_eq!((pairs.before.count(), pairs.after.count()), (20, 20));
    for (before, after) in pairs.before.rates.iter().zip(&pairs.after.rates) {
        assert_eq!((after - before - 1000.0).abs(), 1.0);
    }
    assert!(firsts.contains(&true) && firsts.contains(&false));
}

fn search_failing(fails: impl Fn(&Point) -> bool, budget: f64) -> Result<Outcome> {
    search_failing_in(&space(&["batch.turn_events=512..2048"]), fails, budget)
}

fn search_failing_in(
    space: &Space,
    fails: impl Fn(&Point) -> bool,
    budget: f64,
) -> Result<Outcome> {
    let rules = Rules {
        goal: Goal::Throughput { p99_us: 5_000.0 },
        seed: 1,
        rounds: 3,
        reserve: 0.0,
        precision: 0.02,
    };
    let runs = Cell::new(0.0);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(search(
        space,
        rules,
        async |point, _| {
            // Runs get slower and slower.
            runs.set(runs.get() * 1.5 + 1.0);
            anyhow::ensure!(!fails(point), "the disk is full");
            Ok(seen(1000.0, 1_000.0))
        },
        || budget - runs.get(),
    ))
}

#[test]
fn a_run_that_fails_takes_only_its_point_away() {
    let outcome = search_failing(|point| *point == [Some(0)], 1e9).unwrap();
    assert_eq!(outcome.skipped.len(), 1);
    assert_eq!(outcome.skipped[0].0, [Some(0)]);
    assert!(outcome.skipped[0].1.contains("disk is full"));
    assert_eq!(outcome.trials.len(), 3);
    let error = search_failing(|point| *point == [None], 1e9).unwrap_err();
    assert!(error.to_string().contains("disk is full"), "{error}");
}

#[test]
fn a_grid_ends_when_its_time_is_up() {
    let outcome = search_failing(|_| false, 9.0).unwrap();
    assert_eq!(outcome.method, Method::Grid);
    assert_eq!(outcome.untried, 1, "{outcome:?}");
}

#[test]
fn what_there_is_no_time_for_are_configurations_that_could_be_tried() {
    // Of twelve points three do not go together, and one is as it is.
    let space = space(&["shards.count=1,2,4,8", "wal.lanes=1,2,4"]);
    let outcome = search_failing_in(&space, |_| false, 24.0).unwrap();
    assert_eq!(outcome.method, Method::Grid);
    assert!(outcome.skipped.len() < 3, "{outcome:?}");
    let tried = outcome.trials.len() as u64 - 1;
    assert!(outcome.untried > 0, "{outcome:?}");
    assert_eq!(tried + outcome.untried, 8, "{outcome:?}");
}

#[test]
fn a_configuration_over_the_bound_does_not_win() {
    let goal = Goal::Throughput { p99_us: 5_000.0 };
    let space = space(&["batch.turn_events=1024..4096"]);
    let rules = Rules {
        goal,
        seed: 1,
        rounds: 5,
        reserve: 0.0,
        precision: 0.02,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let outcome = runtime.block_on(search(
        &space,
        rules,
        async |point, _| {
            let at = point[0].unwrap_or(2) as f64;
            Ok(seen(1000.0 * (1.0 + at), 1_000.0 + 3_000.0 * at))
        },
        || 50.0,
    ));
    let outcome = outcome.unwrap();
    // The third one is the fastest, but over the bound.
    assert_eq!(outcome.trials[outcome.best].point, [Some(1)]);
    let front = pareto(&outcome.trials);
    assert_eq!(outcome.trials[front[0]].point, [Some(0)]);
    // As it is.
    assert_eq!(outcome.trials[*front.last().unwrap()].point, [None]);
}

//! Which configurations to try, and when enough is known. It knows nothing of nodes; it asks for runs.

use super::space::{Point, Space};
use super::stats::{Goal, Runs, differ};
use crate::workload::Rng;
use anyhow::Result;
use serde::Serialize;

/// What one run showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Operations per second.
    pub rate: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
}

/// A configuration that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// None is the configuration without changes.
    pub point: Option<Point>,
    /// What its runs showed.
    pub runs: Runs,
}

/// How the space was searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Every point.
    Grid,
    /// One parameter at a time, the others at the best known, until no parameter helps; then points at random.
    Coordinates,
}

/// Why no more runs were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The best differs clearly from the configuration without changes and from every other candidate.
    Decided,
    /// The best is known as closely as was asked for; what is near it differs by less.
    Precise,
    /// There was no time for more.
    Budget,
    /// Each candidate had as many runs as are allowed.
    Rounds,
}

/// What a search found.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Everything that was tried; the first is the configuration without changes.
    pub trials: Vec<Trial>,
    /// Position of the best in `trials`.
    pub best: usize,
    /// How the space was searched.
    pub method: Method,
    /// Why it ended.
    pub stop: Stop,
    /// Points whose keys do not go together, with the reason.
    pub skipped: Vec<(Point, String)>,
}

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub goal: Goal,
    /// Start of all random choices.
    pub seed: u64,
    /// The most runs of one candidate.
    pub rounds: usize,
    /// The best is known well enough when its confidence interval is this narrow, as a share of its mean.
    pub precision: f64,
}

/// How many configurations are run again, the one without changes apart.
const CANDIDATES: usize = 4;
/// At least so many runs of each candidate before anything is decided.
const MIN_RUNS: usize = 3;
/// This share of the budget goes to trying, the rest to running the best again.
const SHARE_FOR_TRYING: f64 = 0.6;

struct Search<'a, R, B> {
    space: &'a Space,
    rules: Rules,
    run: R,
    /// Runs that the budget still allows for, about.
    left: B,
    trials: Vec<Trial>,
    skipped: Vec<(Point, String)>,
}

/// Searches `space`. `run` makes one run of a point; `left` says for how many more runs there is time.
pub async fn search(
    space: &Space,
    rules: Rules,
    run: impl AsyncFnMut(Option<&Point>) -> Result<Seen>,
    left: impl Fn() -> f64,
) -> Result<Outcome> {
    let mut search = Search {
        space,
        rules,
        run,
        left,
        trials: Vec::new(),
        skipped: Vec::new(),
    };
    search.visit(None).await?;
    let budget = (search.left)();
    let reserve = budget * (1.0 - SHARE_FOR_TRYING);
    let method = if space.size() as f64 <= budget - reserve {
        search.grid().await?;
        Method::Grid
    } else {
        search.coordinates(reserve).await?;
        Method::Coordinates
    };
    let stop = search.race().await?;
    let best = search.ranked()[0];
    Ok(Outcome {
        best,
        trials: search.trials,
        method,
        stop,
        skipped: search.skipped,
    })
}

impl<R: AsyncFnMut(Option<&Point>) -> Result<Seen>, B: Fn() -> f64> Search<'_, R, B> {
    /// Runs a point once, unless it was run before or its keys do not go together. Returns its merit.
    async fn visit(&mut self, point: Option<&Point>) -> Result<Option<f64>> {
        if let Some(known) = self
            .trials
            .iter()
            .find(|trial| trial.point.as_ref() == point)
        {
            return Ok(Some(known.runs.merit()));
        }
        if let (Some(point), Err(error)) = (point, self.space.config(point)) {
            if self.skipped.iter().all(|(skipped, _)| skipped != point) {
                self.skipped.push((point.clone(), error.to_string()));
            }
            return Ok(None);
        }
        self.trials.push(Trial {
            point: point.cloned(),
            runs: Runs::default(),
        });
        let at = self.trials.len() - 1;
        self.again(at).await?;
        Ok(Some(self.trials[at].runs.merit()))
    }

    async fn again(&mut self, at: usize) -> Result<()> {
        let seen = (self.run)(self.trials[at].point.as_ref()).await?;
        self.trials[at]
            .runs
            .add(self.rules.goal, seen.rate, seen.p99_us);
        Ok(())
    }

    /// Every point, in an order that has nothing to do with its place: what drifts over time must not look like an effect.
    async fn grid(&mut self) -> Result<()> {
        let mut order: Vec<u64> = (0..self.space.size()).collect();
        Rng::new(self.rules.seed, 1).shuffle(&mut order);
        for number in order {
            let point = self.space.point(number);
            self.visit(Some(&point)).await?;
        }
        Ok(())
    }

    /// One parameter at a time from the middle of the space, then from points at random, while there is time.
    async fn coordinates(&mut self, reserve: f64) -> Result<()> {
        let counts: Vec<usize> = self
            .space
            .params()
            .iter()
            .map(|param| param.values.len())
            .collect();
        let mut rng = Rng::new(self.rules.seed, 2);
        let base = self.space.base_values();
        let nearest = |at: usize| {
            let values = &self.space.params()[at].values;
            values
                .iter()
                .position(|value| *value == base[at])
                .unwrap_or(values.len() / 2)
        };
        let mut from: Point = (0..counts.len()).map(nearest).collect();
        // A space whose points do not go together must not be searched for ever.
        let mut tries = 0;
        while (self.left)() > reserve && tries < 10_000 {
            let mut best = self.visit(Some(&from)).await?.unwrap_or(0.0);
            let mut order: Vec<usize> = (0..counts.len()).collect();
            loop {
                let before = from.clone();
                rng.shuffle(&mut order);
                for &at in &order {
                    for value in 0..counts[at] {
                        tries += 1;
                        if (self.left)() <= reserve {
                            return Ok(());
                        }
                        let mut point = from.clone();
                        point[at] = value;
                        if let Some(merit) = self.visit(Some(&point)).await?
                            && merit > best
                        {
                            (best, from) = (merit, point);
                        }
                    }
                }
                if from == before {
                    break;
                }
            }
            from = counts
                .iter()
                .map(|count| rng.below(*count as u64) as usize)
                .collect();
        }
        Ok(())
    }

    /// Trials by their mean merit, the best first; those that keep the goal's condition before those that do not.
    fn ranked(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.trials.len()).collect();
        let key = |at: &usize| {
            let runs = &self.trials[*at].runs;
            (self.rules.goal.is_met(runs), runs.merit())
        };
        order.sort_by(|a, b| {
            let ((a_met, a), (b_met, b)) = (key(a), key(b));
            b_met.cmp(&a_met).then(b.total_cmp(&a))
        });
        order
    }

    /// Runs the best again, in turn with the configuration without changes, until it is clear who is ahead.
    async fn race(&mut self) -> Result<Stop> {
        let mut rng = Rng::new(self.rules.seed, 3);
        let mut candidates: Vec<usize> = self
            .ranked()
            .into_iter()
            .filter(|at| *at != 0)
            .take(CANDIDATES)
            .collect();
        candidates.push(0);
        loop {
            if let Some(stop) = self.is_enough(&candidates) {
                return Ok(stop);
            }
            rng.shuffle(&mut candidates);
            for at in candidates.clone() {
                if (self.left)() < 1.0 {
                    return Ok(Stop::Budget);
                }
                self.again(at).await?;
            }
        }
    }

    fn is_enough(&self, candidates: &[usize]) -> Option<Stop> {
        let runs = |at: usize| &self.trials[at].runs;
        let fewest = candidates
            .iter()
            .map(|at| runs(*at).merits.len())
            .min()
            .unwrap_or(0);
        if fewest < MIN_RUNS.min(self.rules.rounds) {
            return None;
        }
        let best = *candidates
            .iter()
            .max_by(|a, b| runs(**a).merit().total_cmp(&runs(**b).merit()))?;
        let is_ahead_of =
            |other: &usize| *other == best || differ(&runs(best).merits, &runs(*other).merits);
        if candidates.iter().all(is_ahead_of) {
            return Some(Stop::Decided);
        }
        if runs(best).half_width() <= self.rules.precision * runs(best).merit() {
            return Some(Stop::Precise);
        }
        (fewest >= self.rules.rounds).then_some(Stop::Rounds)
    }
}

/// Positions of the trials that no other one beats in both rate and latency, by rising rate.
pub fn pareto(trials: &[Trial]) -> Vec<usize> {
    use super::stats::mean;
    let place = |at: usize| (mean(&trials[at].runs.rates), mean(&trials[at].runs.p99s));
    let mut front: Vec<usize> = (0..trials.len())
        .filter(|at| {
            let (rate, p99) = place(*at);
            (0..trials.len()).all(|other| {
                let (other_rate, other_p99) = place(other);
                !(other_rate >= rate && other_p99 <= p99 && (other_rate > rate || other_p99 < p99))
            })
        })
        .collect();
    front.sort_by(|a, b| place(*a).0.total_cmp(&place(*b).0));
    front
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyraft::Config;
    use std::cell::Cell;

    fn space(texts: &[&str]) -> Space {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Space::new(&Config::default(), &texts).unwrap()
    }

    /// Searches a model with noise; returns the outcome and how many runs it took.
    fn search_model(
        space: &Space,
        budget: u64,
        seed: u64,
        model: impl Fn(Option<&Point>) -> f64,
    ) -> (Outcome, u64) {
        let rules = Rules {
            goal: Goal::Throughput { p99_us: 5_000.0 },
            seed,
            rounds: 12,
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
            async |point| {
                runs.set(runs.get() + 1);
                let rate = model(point) * (0.97 + 0.06 * noise.unit());
                Ok(Seen {
                    rate,
                    p99_us: 1_000.0,
                })
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
            let (outcome, _) = search_model(&space, 100, seed, |point| match point {
                None => 1000.0,
                Some(point) => 1000.0 + 100.0 * point[0] as f64 - 150.0 * point[1] as f64,
            });
            assert_eq!(outcome.method, Method::Grid);
            assert_eq!(outcome.trials.len(), 13);
            assert_eq!(
                outcome.trials[outcome.best].point,
                Some(vec![3, 0]),
                "seed {seed}"
            );
            assert_ne!(outcome.stop, Stop::Budget);
        }
    }

    #[test]
    fn a_large_space_is_searched_by_coordinates_within_the_budget() {
        let space = space(&[
            "wal.max_batch_bytes=512KiB..64MiB",
            "batch.turn_events=16..65536",
            "replication.inflight_messages=1..1024",
        ]);
        assert!(space.size() > 800);
        let (outcome, runs) = search_model(&space, 120, 1, |point| {
            point.map_or(1000.0, |point| {
                let off = |at: usize, best: f64| (point[at] as f64 - best).powi(2);
                3000.0 - 20.0 * (off(0, 5.0) + off(1, 9.0) + off(2, 7.0))
            })
        });
        assert_eq!(outcome.method, Method::Coordinates);
        assert!(runs <= 121, "{runs}");
        let best = outcome.trials[outcome.best].runs.merit();
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
        assert_eq!(outcome.trials.len(), 4);
    }

    #[test]
    fn a_configuration_over_the_bound_does_not_win() {
        let goal = Goal::Throughput { p99_us: 5_000.0 };
        let space = space(&["batch.turn_events=1024..4096"]);
        let rules = Rules {
            goal,
            seed: 1,
            rounds: 5,
            precision: 0.02,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let outcome = runtime.block_on(search(
            &space,
            rules,
            async |point| {
                let at = point.map_or(1, |point| point[0]) as f64;
                Ok(Seen {
                    rate: 1000.0 * (1.0 + at),
                    p99_us: 1_000.0 + 3_000.0 * at,
                })
            },
            || 50.0,
        ));
        let outcome = outcome.unwrap();
        // The third one is the fastest, but over the bound.
        assert_ne!(outcome.trials[outcome.best].point, Some(vec![2]));
        let front = pareto(&outcome.trials);
        assert_eq!(outcome.trials[front[0]].point, Some(vec![0]));
        assert_eq!(outcome.trials[*front.last().unwrap()].point, Some(vec![2]));
    }
}

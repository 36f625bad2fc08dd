//! Which configurations to try, and when enough is known. It knows nothing of nodes; it asks for runs.

use super::space::{Point, Space};
use super::stats::{Goal, Pairs, Runs, Seen};
use crate::statistics::differ;
use crate::workload::Rng;
use anyhow::Result;
use polyraft::Config;
use serde::Serialize;

/// A configuration that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// Its values.
    pub point: Point,
    /// What the first run showed. A candidate was chosen for it, so its luck must not count for the candidate again.
    pub tried: Runs,
    /// What the runs as a candidate showed; empty if it was none.
    pub raced: Runs,
}

impl Trial {
    /// What counts: the runs as a candidate, if there are such.
    pub fn runs(&self) -> &Runs {
        match self.raced.count() {
            0 => &self.tried,
            _ => &self.raced,
        }
    }
}

/// What one key of the best is worth, or several that go back together only.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Positions of the parameters, one at least, each with that of the value that it has in the best.
    pub keys: Vec<(usize, usize)>,
    /// Runs with the keys as they are, and with the values; the rest is equal. Empty if there was no time.
    pub pairs: Pairs,
    /// Whether the values are clearly better. If not, the keys stay as they are.
    pub is_better: bool,
    /// Why a run failed, if one did.
    pub failed: Option<String>,
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
    /// The best, but for keys whose values are not clearly better than what they are anyway.
    pub chosen: Point,
    /// What each key of the best that differs from what it is anyway is worth.
    pub checks: Vec<Check>,
    /// How the space was searched.
    pub method: Method,
    /// Why it ended.
    pub stop: Stop,
    /// Configurations of the space that were not tried, for lack of time.
    pub untried: u64,
    /// Points whose keys do not go together, or whose runs failed, with the reason.
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
    /// So many runs are left over for what comes after the search, if the budget allows.
    pub reserve: f64,
    /// The best is known well enough when its confidence interval is this narrow, as a share of its mean.
    pub precision: f64,
}

/// How many configurations are run again, the one without changes apart.
const CANDIDATES: usize = 4;
/// At least so many runs of each candidate before anything is decided.
const MIN_RUNS: usize = 3;
/// This share of the budget goes to trying, the rest to running the best again and to what comes after the search.
const SHARE_FOR_TRYING: f64 = 0.4;
/// No more than this share of the budget is kept for what comes after the race.
const SHARE_AFTER_RACE: f64 = 0.4;
/// How often each key of the best is compared with what it is anyway, at most.
const CHECKS: usize = 5;
/// How often at least: fewer pairs of runs hardly tell anything from noise.
const LEAST_CHECKS: usize = 3;
/// The number of the first run of these, each check has [`CHECKS`] numbers; the rounds of a race have smaller ones.
const CHECK_ROUNDS: u64 = 1 << 31;

struct Search<'a, R, B> {
    space: &'a Space,
    rules: Rules,
    run: R,
    /// Runs that the budget still allows for, about.
    left: B,
    trials: Vec<Trial>,
    /// The configuration of each trial: two points may be the same one.
    configs: Vec<Config>,
    untried: u64,
    skipped: Vec<(Point, String)>,
    /// Runs that are not for the search.
    reserve: f64,
}

/// Searches `space`. `run` makes one run of a point, given a number that is equal for runs that are held against one another
/// and new in each round; `left` says for how many more runs there is time. A point whose run
/// fails is left out. An error if the configuration without changes fails.
pub async fn search(
    space: &Space,
    rules: Rules,
    run: impl AsyncFnMut(&Point, u64) -> Result<Seen>,
    left: impl Fn() -> f64,
) -> Result<Outcome> {
    let mut search = Search {
        space,
        rules,
        run,
        left,
        trials: Vec::new(),
        configs: Vec::new(),
        untried: 0,
        skipped: Vec::new(),
        reserve: 0.0,
    };
    search.visit(&space.as_it_is()).await?;
    let budget = (search.left)();
    let checks = 2 * rules.rounds.min(CHECKS) * space.params().len();
    search.reserve = (rules.reserve + checks as f64).min(SHARE_AFTER_RACE * budget);
    let reserve = budget * (1.0 - SHARE_FOR_TRYING);
    let method = if space.feasible() as f64 <= budget - reserve {
        search.grid(reserve).await?;
        Method::Grid
    } else {
        search.coordinates(reserve).await?;
        Method::Coordinates
    };
    let (best, stop) = search.race().await?;
    let (chosen, checks) = search.take_back(best).await;
    Ok(Outcome {
        best,
        chosen,
        checks,
        trials: search.trials,
        method,
        stop,
        untried: search.untried,
        skipped: search.skipped,
    })
}

impl<R: AsyncFnMut(&Point, u64) -> Result<Seen>, B: Fn() -> f64> Search<'_, R, B> {
    /// Runs a point once, unless its configuration was run before or its keys do not go together. Returns its merit.
    async fn visit(&mut self, point: &Point) -> Result<Option<f64>> {
        if self.skipped.iter().any(|(skipped, _)| skipped == point) {
            return Ok(None);
        }
        let config = match self.space.config(point) {
            Ok(config) => config,
            Err(error) => {
                self.skipped.push((point.clone(), error.to_string()));
                return Ok(None);
            }
        };
        if let Some(known) = self.configs.iter().position(|known| *known == config) {
            return Ok(Some(self.trials[known].tried.merit()));
        }
        let Some(seen) = self.run(point, 0).await? else {
            return Ok(None);
        };
        let mut tried = Runs::default();
        tried.add(self.rules.goal, &seen);
        let merit = tried.merit();
        self.trials.push(Trial {
            point: point.clone(),
            tried,
            raced: Runs::default(),
        });
        self.configs.push(config);
        Ok(Some(merit))
    }

    /// Makes one run. None if it failed: the reason is kept, and what is known of other points stays. Without the
    /// configuration as it is there is nothing to compare with.
    async fn run(&mut self, point: &Point, round: u64) -> Result<Option<Seen>> {
        match (self.run)(point, round).await {
            Ok(seen) => Ok(Some(seen)),
            Err(error) if *point == self.space.as_it_is() => Err(error),
            Err(error) => {
                self.skipped.push((point.clone(), format!("{error:#}")));
                Ok(None)
            }
        }
    }

    /// Every point, in an order that has nothing to do with its place: what drifts over time must not look like an effect.
    async fn grid(&mut self, reserve: f64) -> Result<()> {
        let mut order: Vec<u64> = (0..self.space.size()).collect();
        Rng::new(self.rules.seed, 1).shuffle(&mut order);
        for (done, number) in order.iter().enumerate() {
            // Runs may turn out to take longer than the first one did.
            if (self.left)() < reserve {
                self.untried = self.not_known(&order[done..]);
                break;
            }
            self.visit(&self.space.point(*number)).await?;
        }
        Ok(())
    }

    /// How many configurations these points are, but for those that were tried or have keys that do not go together.
    fn not_known(&self, numbers: &[u64]) -> u64 {
        let mut unknown: Vec<Config> = Vec::new();
        for number in numbers {
            let point = self.space.point(*number);
            let is_skipped = self.skipped.iter().any(|(skipped, _)| *skipped == point);
            match self.space.config(&point) {
                Ok(config)
                    if !is_skipped
                        && !self.configs.contains(&config)
                        && !unknown.contains(&config) =>
                {
                    unknown.push(config);
                }
                _ => {}
            }
        }
        unknown.len() as u64
    }

    /// One parameter at a time from the configuration as it is, then from points at random, while there is time.
    async fn coordinates(&mut self, reserve: f64) -> Result<()> {
        let counts: Vec<usize> = self
            .space
            .params()
            .iter()
            .map(|param| param.values.len())
            .collect();
        let mut rng = Rng::new(self.rules.seed, 2);
        let mut from = self.space.as_it_is();
        // A space whose points do not go together must not be searched for ever.
        let mut tries = 0;
        while (self.left)() > reserve && tries < 10_000 {
            let mut best = self.visit(&from).await?.unwrap_or(0.0);
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
                        point[at] = Some(value);
                        if let Some(merit) = self.visit(&point).await?
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
                .map(|count| Some(rng.below(*count as u64) as usize))
                .collect();
        }
        Ok(())
    }

    /// Of these trials those that keep the goal's condition before those that do not, each by mean merit, the best first.
    fn ranked(&self, mut trials: Vec<usize>) -> Vec<usize> {
        let key = |at: &usize| {
            let runs = self.trials[*at].runs();
            (self.rules.goal.is_met(runs), runs.merit())
        };
        trials.sort_by(|a, b| {
            let ((a_met, a), (b_met, b)) = (key(a), key(b));
            b_met.cmp(&a_met).then(b.total_cmp(&a))
        });
        trials
    }

    /// Runs the best again, in turn with the configuration without changes, until it is clear who is ahead. Only these runs
    /// count for who is the best. Returns the best candidate.
    async fn race(&mut self) -> Result<(usize, Stop)> {
        let mut rng = Rng::new(self.rules.seed, 3);
        let mut candidates = self.ranked((1..self.trials.len()).collect());
        candidates.truncate(CANDIDATES);
        candidates.push(0);
        let mut round = 0;
        let stop = 'race: loop {
            round += 1;
            if let Some(stop) = self.is_enough(&candidates) {
                break stop;
            }
            rng.shuffle(&mut candidates);
            for at in candidates.clone() {
                if (self.left)() < self.reserve + 1.0 {
                    break 'race Stop::Budget;
                }
                let point = self.trials[at].point.clone();
                match self.run(&point, round).await? {
                    Some(seen) => {
                        self.trials[at].raced.add(self.rules.goal, &seen);
                    }
                    None => candidates.retain(|other| *other != at),
                }
            }
        };
        // Whoever had no time to run again must not win by the run that it was chosen for.
        let is_raced = |at: &usize| self.trials[*at].raced.count() > 0;
        let raced: Vec<usize> = candidates.iter().copied().filter(is_raced).collect();
        let best = match raced.is_empty() {
            true => 0,
            false => self.ranked(raced)[0],
        };
        Ok((best, stop))
    }

    /// Compares each key of the best with what it is anyway, the rest equal, and takes it back if it is not clearly better:
    /// among many values one is the best by chance. One key after the other, so that of two that do the same one stays. What
    /// is chosen goes together at every step.
    async fn take_back(&mut self, best: usize) -> (Point, Vec<Check>) {
        let mut chosen = self.trials[best].point.clone();
        let mut checks: Vec<Check> = Vec::new();
        let mut open = changed(&chosen);
        while let Some(keys) = self.next_back(&chosen, &open) {
            let count = self.pairs_of_check(open.len());
            open.retain(|param| !keys.contains(param));
            let without = without(&chosen, &keys);
            if self.space.config(&chosen).ok() == self.space.config(&without).ok() {
                chosen = without;
                continue;
            }
            let values = keys
                .iter()
                .filter_map(|param| Some((*param, chosen[*param]?)));
            let mut check = Check {
                keys: values.collect(),
                pairs: Pairs::default(),
                is_better: false,
                failed: None,
            };
            if let Some(count) = count {
                let first = CHECK_ROUNDS + (checks.len() * CHECKS) as u64;
                let run = async |is_with: bool, number| {
                    let point = if is_with { &chosen } else { &without };
                    (self.run)(point, first + number).await
                };
                match in_turn(
                    self.rules.goal,
                    self.rules.seed.wrapping_add(first),
                    count,
                    run,
                )
                .await
                {
                    Ok(pairs) => check.pairs = pairs,
                    Err(error) => check.failed = Some(format!("{error:#}")),
                }
            }
            check.is_better = check.pairs.is_better();
            if !check.is_better {
                chosen = without;
            }
            checks.push(check);
        }
        (chosen, checks)
    }

    /// The fewest pairs of runs of a check.
    fn least_pairs(&self) -> usize {
        self.rules.rounds.min(LEAST_CHECKS)
    }

    /// Runs that there is time for beyond the fewest that are kept for what comes after the search.
    fn left_for_checks(&self) -> f64 {
        let least = 2.0 * self.least_pairs() as f64;
        (self.left)() - self.rules.reserve.min(least)
    }

    /// How many pairs of runs the next of so many checks gets: each has an equal share of the time left, and so has what comes
    /// after the search, if it needs as much. None if there is no time for the fewest.
    fn pairs_of_check(&self, checks: usize) -> Option<u64> {
        let least = self.least_pairs();
        if self.left_for_checks() < 2.0 * least as f64 {
            return None;
        }
        let left = (self.left)();
        let after = self.rules.reserve.min(left / (checks + 1) as f64);
        let share = (left - after) / checks as f64;
        let pairs = (share / 2.0) as usize;
        Some(pairs.clamp(least, self.rules.rounds.min(CHECKS)) as u64)
    }

    /// Which keys of `chosen` to compare next: the first open one that the others go without. One that they do not go without
    /// waits until the others are decided; then it goes back with as few of them as that takes. All open ones together if there
    /// is no time to compare each: a winner far ahead is not to be lost for that.
    fn next_back(&self, chosen: &Point, open: &[usize]) -> Option<Vec<usize>> {
        let goes_back = |keys: &Vec<usize>| self.space.config(&without(chosen, keys)).is_ok();
        let first = *open.first()?;
        let changed = changed(chosen);
        let alone = open.iter().map(|param| vec![*param]);
        let others = changed.iter().filter(|param| **param != first);
        let in_twos = others.map(|other| vec![first, *other]);
        let is_short = self.left_for_checks() < 2.0 * (self.least_pairs() * open.len()) as f64;
        let at_once = is_short.then(|| open.to_vec());
        let found = at_once
            .into_iter()
            .chain(alone)
            .chain(in_twos)
            .find(goes_back);
        Some(found.unwrap_or(changed))
    }

    fn is_enough(&self, candidates: &[usize]) -> Option<Stop> {
        let runs = |at: usize| &self.trials[at].raced;
        let counts = candidates.iter().map(|at| runs(*at).count());
        let fewest = counts.min().unwrap_or(0);
        if fewest < MIN_RUNS.min(self.rules.rounds) {
            return None;
        }
        let best = *self.ranked(candidates.to_vec()).first()?;
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

/// The parameters that a point changes.
fn changed(point: &Point) -> Vec<usize> {
    let params = (0..point.len()).filter(|param| point[*param].is_some());
    params.collect()
}

/// The point with these keys as they are.
fn without(point: &Point, keys: &[usize]) -> Point {
    let mut point = point.clone();
    for key in keys {
        point[*key] = None;
    }
    point
}

/// Runs two configurations in turn, `count` times each, the order drawn anew each time. `run` makes one run of the second one
/// if its first argument is true, else of the first; its second argument is the number of the pair.
pub async fn in_turn(
    goal: Goal,
    seed: u64,
    count: u64,
    mut run: impl AsyncFnMut(bool, u64) -> Result<Seen>,
) -> Result<Pairs> {
    let mut rng = Rng::new(seed, 4);
    let mut pairs = Pairs::default();
    for number in 0..count {
        let is_swapped = rng.below(2) == 1;
        let one = run(is_swapped, number).await?;
        let other = run(!is_swapped, number).await?;
        match is_swapped {
            true => pairs.add(goal, &other, &one),
            false => pairs.add(goal, &one, &other),
        }
    }
    Ok(pairs)
}

/// Positions of the trials that no other one beats in both rate and latency, by rising rate.
pub fn pareto(trials: &[Trial]) -> Vec<usize> {
    use crate::statistics::mean;
    let place = |at: usize| {
        let runs = trials[at].runs();
        (mean(&runs.rates), mean(&runs.p99s))
    };
    let says_something = |at: &usize| !trials[*at].runs().rates.is_empty();
    let mut front: Vec<usize> = (0..trials.len())
        .filter(says_something)
        .filter(|at| {
            let (rate, p99) = place(*at);
            (0..trials.len()).filter(says_something).all(|other| {
                let (other_rate, other_p99) = place(other);
                !(other_rate >= rate && other_p99 <= p99 && (other_rate > rate || other_p99 < p99))
            })
        })
        .collect();
    front.sort_by(|a, b| place(*a).0.total_cmp(&place(*b).0));
    front
}

#[cfg(test)]
mod tests;

//! What a tuning run says of itself: its points, its order of work, what the answer is worth, and the best of what was tried.
//! It must never state a percentage where one of the two sides does not keep the goal's condition.

use super::Advised;
use super::search::{Method, Outcome, Stop};
use super::space::{Point, Space};
use super::stats::{Gain, Goal, Pairs, Runs};
use crate::screen;
use crate::statistics::{half_width, mean};
use std::time::Duration;

pub(super) fn describe(space: &Space, point: &Point) -> String {
    let pairs = space.params().iter().zip(point);
    let pairs: Vec<String> = pairs
        .filter_map(|(param, at)| Some(format!("{}={}", param.key, param.values[(*at)?])))
        .collect();
    match pairs.is_empty() {
        true => "as it is".to_owned(),
        false => pairs.join(" "),
    }
}

pub(super) fn micros(micros: f64) -> String {
    screen::time(Duration::from_secs_f64(micros.max(0.0) / 1e6))
}

pub(super) fn words(goal: Goal) -> String {
    match goal {
        Goal::Throughput { p99_us } => format!("throughput with p99 of at most {}", micros(p99_us)),
        Goal::Latency { rate } => format!("p99 at {} op/s", screen::count(rate as u64)),
    }
}

pub(super) fn how(outcome: &Outcome, runs: u32) -> String {
    let method = match outcome.method {
        Method::Grid => "the points of the space were tried one by one".to_owned(),
        Method::Coordinates => "the space is too large for the budget: one key at a time was varied around the best known point, then around random ones".to_owned(),
    };
    let stop = match outcome.stop {
        Stop::Decided => {
            "the best is ahead of every other candidate by more than their confidence intervals"
        }
        Stop::Precise => "the best is known as closely as asked for; others near it may be as good",
        Stop::Budget => "the budget was used up (--budget)",
        Stop::Rounds => "each candidate had as many runs as allowed (--rounds)",
    };
    let mut text = format!("{runs} runs: {method}; the search ended because {stop}.");
    if let Some((_, why)) = outcome.skipped.first() {
        text += &format!(
            " {} points were left out, because their keys do not go together or a run failed; the first: {why}.",
            outcome.skipped.len()
        );
    }
    if outcome.untried > 0 {
        text += &format!(
            " There was no time to try {} points of it (--budget).",
            outcome.untried
        );
    }
    text
}

/// Whether what is to be pasted keeps the goal's condition, and what there is to say of it. It is `as_it_is` if there are no
/// `pairs`, and the first of these if the second lost.
pub(super) fn judge(
    goal: Goal,
    as_it_is: &Runs,
    advised: &Advised,
    pairs: Option<&Pairs>,
) -> (bool, String) {
    let judged = pairs.map_or(as_it_is, |pairs| match pairs.is_loss(goal) {
        true => &pairs.before,
        false => &pairs.after,
    });
    let (is_met, mut text) = match &advised.failed {
        None => (goal.is_met(judged), verdict(goal, judged, pairs)),
        Some(why) => (
            false,
            format!(
                "A run failed when what is to be pasted was held against the configuration as it is: {why}. What it gains is not known."
            ),
        ),
    };
    if let Some(note) = &advised.note {
        text = format!("{text} {note}");
    }
    (is_met, text)
}

/// What that which is to be pasted is worth, and whether it keeps the goal's condition. `judged` are its runs.
pub(super) fn verdict(goal: Goal, judged: &Runs, pairs: Option<&Pairs>) -> String {
    let figures = |runs: &Runs| match runs.void.first() {
        Some(why) if runs.rates.is_empty() => format!("nothing that counts, because {why}"),
        _ => format!(
            "{} op/s at p99 {}",
            screen::count(mean(&runs.rates) as u64),
            micros(mean(&runs.p99s))
        ),
    };
    let is_met = goal.is_met(judged);
    let mut text = match pairs {
        None => {
            "Nothing that was tried is to be preferred to the configuration as it is.".to_owned()
        }
        Some(pairs) => match pairs.gain(goal) {
            None if pairs.is_loss(goal) => format!(
                "What was found does not keep the goal's condition: {}. What is to be pasted is the configuration as it is, which does: {}.",
                figures(&pairs.after),
                figures(&pairs.before)
            ),
            Some(gain) => gained(goal, &gain, pairs),
            None if is_met => format!(
                "The configuration as it is does not keep the goal's condition: {}. What is to be pasted does: {}.",
                figures(&pairs.before),
                figures(&pairs.after)
            ),
            None => format!(
                "The configuration as it is: {}. What is to be pasted: {}.",
                figures(&pairs.before),
                figures(&pairs.after)
            ),
        },
    };
    if !is_met {
        text +=
            " It does not keep the goal's condition: lower --inflight or --rate, or allow more.";
    }
    text
}

fn gained(goal: Goal, gain: &Gain, pairs: &Pairs) -> String {
    let figure = match goal {
        Goal::Throughput { .. } => "operations per second within the bound",
        Goal::Latency { .. } => "p99 at the rate",
    };
    let count = pairs.after.merits.len();
    let sure = match gain.interval {
        Some([low, high]) => {
            format!("{low:+.1} to {high:+.1} % with 95 % confidence, {count} pairs of runs")
        }
        None => "a single pair of runs".to_owned(),
    };
    let (what, judgement) = match (gain.is_clear, gain.is_loss(goal)) {
        (_, true) => (
            "What was found",
            "That is worse, so what is to be pasted is the configuration as it is.",
        ),
        (false, _) => ("What is to be pasted", "Equal runs differ by as much."),
        (true, false) => (
            "What is to be pasted",
            "That is more than equal runs differ by.",
        ),
    };
    format!(
        "{what} changes {figure} by {:+.1} % ({sure}). {judgement}",
        gain.percent
    )
}

/// The best trials and the configuration as it is.
pub(super) fn table(space: &Space, outcome: &Outcome) -> String {
    let mut order: Vec<usize> = (0..outcome.trials.len()).collect();
    let merit = |at: &usize| outcome.trials[*at].runs().merit();
    order.sort_by(|a, b| merit(b).total_cmp(&merit(a)));
    let mut shown: Vec<usize> = order.into_iter().take(8).collect();
    for at in [outcome.best, 0] {
        if !shown.contains(&at) {
            shown.push(at);
        }
    }
    let rows: Vec<(String, String)> = shown
        .iter()
        .map(|at| {
            let trial = &outcome.trials[*at];
            let width = half_width(&trial.runs().rates);
            let sure = if width.is_finite() {
                format!("± {:>7}", screen::count(width as u64))
            } else {
                " ".repeat(9)
            };
            let figures = format!(
                "{:>9} op/s {sure}  p99 {:>8}  {} runs  {}",
                screen::count(mean(&trial.runs().rates) as u64),
                micros(mean(&trial.runs().p99s)),
                trial.runs().rates.len(),
                describe(space, &trial.point)
            );
            let name = if *at == outcome.best {
                "best in the race"
            } else {
                ""
            };
            (name.to_owned(), figures)
        })
        .collect();
    let rows: Vec<(&str, String)> = rows
        .iter()
        .map(|(name, text)| (name.as_str(), text.clone()))
        .collect();
    screen::two_columns(&rows)
}

//! Medians, ratios and the tables made of them: the terminal and docs/benchmarks.md show the same text.

use crate::host::Host;
use crate::load::Figures;
use crate::rows::{Engine, Row};
use std::fmt::Write;

/// What a row has measured, by engine in the order of [`Engine::ALL`], by round.
pub struct Measured {
    /// The row's number, counted from 1.
    pub number: usize,
    pub row: Row,
    pub rounds: Vec<(Engine, Vec<Figures>)>,
}

impl Measured {
    fn rounds_of(&self, engine: Engine) -> Option<&[Figures]> {
        let mut rounds = self.rounds.iter();
        let (_, figures) = rounds.find(|(measured, _)| *measured == engine)?;
        Some(figures)
    }
}

/// How the figures came about.
pub struct Run {
    pub command: String,
    pub date: String,
    pub rounds: usize,
    pub seconds: u64,
    pub warm_up: u64,
    pub versions: Vec<(String, String)>,
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    assert!(!values.is_empty(), "a median needs values");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

fn median_of(rounds: &[Figures], value: impl Fn(&Figures) -> f64) -> f64 {
    median(rounds.iter().map(value))
}

/// One line per row and engine, and below them which targets were missed.
pub fn table(measured: &[Measured]) -> String {
    let mut out = String::from(
        "| row | groups | in flight | payload | engine | commits/s | Polyraft is | target | p50 ms | p99 ms | p99.9 ms | CPU µs per commit | syncs/s per node | spread |\n\
         |---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for one in measured {
        for (engine, rounds) in &one.rounds {
            put_line(&mut out, one, *engine, rounds);
        }
    }
    for engine in Engine::ALL {
        put_verdict(&mut out, measured, engine);
    }
    out
}

/// What the table says about Polyraft beside `engine`, for those who read no tables.
fn put_verdict(out: &mut String, measured: &[Measured], engine: Engine) {
    let (mut compared, mut misses, mut slower) = (0, Vec::new(), Vec::new());
    for one in measured {
        let (Some(target), Some(polyraft), Some(peer)) = (
            one.row.target(engine),
            one.rounds_of(Engine::Polyraft),
            one.rounds_of(engine),
        ) else {
            continue;
        };
        compared += 1;
        if median_of(polyraft, Figures::rate) < target * median_of(peer, Figures::rate) {
            misses.push(one.number);
        }
        let p99 = |figures: &Figures| figures.p99_us as f64;
        if median_of(polyraft, p99) > median_of(peer, p99) {
            slower.push(one.number);
        }
    }
    if compared == 0 {
        return;
    }
    let of_rows = |rows: &[usize]| match rows {
        [] => "in no row".to_owned(),
        [row] => format!("in row {row}"),
        [rows @ .., last] => {
            let rows: Vec<String> = rows.iter().map(usize::to_string).collect();
            format!("in rows {} and {last}", rows.join(", "))
        }
    };
    writeln!(
        out,
        "\nAgainst {}, Polyraft misses its target {}; its p99 is worse {}.",
        engine.title(),
        of_rows(&misses),
        of_rows(&slower),
    )
    .expect("writing to memory cannot fail");
}

fn put_line(out: &mut String, one: &Measured, engine: Engine, rounds: &[Figures]) {
    let workload = one.row.workload;
    let rate = median_of(rounds, Figures::rate);
    let ratio = match (engine, one.rounds_of(Engine::Polyraft)) {
        (Engine::Polyraft, _) | (_, None) => String::new(),
        (_, Some(polyraft)) => format!("**{:.2} ×**", median_of(polyraft, Figures::rate) / rate),
    };
    let target = one.row.target(engine);
    let target = target.map_or_else(String::new, |target| format!("{target} ×"));
    let milliseconds = |value: &dyn Fn(&Figures) -> u64| {
        let median = median_of(rounds, |figures| value(figures) as f64 / 1e3);
        match median {
            short if short < 10.0 => format!("{short:.2}"),
            long => format!("{long:.0}"),
        }
    };
    let rates = rounds.iter().map(Figures::rate);
    let spread = rates.clone().fold(0.0, f64::max) / rates.fold(f64::MAX, f64::min);
    let syncs = median_of(rounds, |figures| {
        figures.syncs.iter().sum::<u64>() as f64 / figures.syncs.len() as f64 / figures.seconds
    });
    writeln!(
        out,
        "| {} | {} | {} | {} B | {} | {} | {ratio} | {target} | {} | {} | {} | {:.2} | {} | {:.2} |",
        one.number,
        number(workload.groups as f64),
        number(workload.inflight as f64),
        workload.payload_bytes,
        engine.title(),
        number(rate),
        milliseconds(&|figures| figures.p50_us),
        milliseconds(&|figures| figures.p99_us),
        milliseconds(&|figures| figures.p999_us),
        median_of(rounds, Figures::cpu_per_commit),
        number(syncs),
        spread,
    )
    .expect("writing to memory cannot fail");
}

/// With thin groups of three digits.
fn number(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The whole page.
pub fn page(measured: &[Measured], host: &Host, run: &Run) -> String {
    let mut versions = String::new();
    for (name, version) in &run.versions {
        let separator = if versions.is_empty() { "" } else { ", " };
        let _ = write!(versions, "{separator}{name} {version}");
    }
    format!(
        "# Polyraft beside other engines\n\n\
         Written by the command below; do not edit by hand. What is compared and how is told in\n\
         [how-to/compare-engines.md](how-to/compare-engines.md).\n\n\
         ```\n{command}\n```\n\n\
         {date}. {rounds} rounds per row of {seconds} s each after {warm_up} s of warm-up, the engines in turn; each round \
         in a process of its own. Each figure is the median of the rounds; *spread* is the best round's rate over the \
         worst one's.\n\n\
         | | |\n|---|---|\n\
         | CPU | {cpu} |\n| memory | {memory} |\n| kernel | {kernel} |\n| disk | {disk} |\n| versions | {versions} |\n\n\
         {table}\n\
         *Polyraft is*: its commits per second over those of the line's engine; *target*: what that is to be at least. All three run three nodes in one process, \
         with a durable log on the same disk and the same client. Polyraft's messages go over QUIC with mutual TLS; those \
         of the others stay in memory.\n",
        command = run.command,
        date = run.date,
        rounds = run.rounds,
        seconds = run.seconds,
        warm_up = run.warm_up,
        cpu = host.cpu,
        memory = host.memory,
        kernel = host.kernel,
        disk = host.disk,
        table = table(measured),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::ROWS;

    fn figures(commits: u64) -> Figures {
        Figures {
            commits,
            seconds: 2.0,
            p50_us: 900,
            p99_us: 12_300,
            p999_us: 20_000,
            cpu_us: 4e6,
            client_cpu_us: 1e6,
            refused: 0,
            open: 0,
            syncs: vec![200; 3],
            leaders: vec![1; 3],
            applied: commits,
        }
    }

    #[test]
    fn medians_need_no_order() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0]), 2.5);
    }

    #[test]
    fn the_table_has_medians_and_ratios() {
        let measured = Measured {
            number: 1,
            row: ROWS[0],
            rounds: vec![
                (
                    Engine::Polyraft,
                    vec![figures(4_000_000), figures(8_000_000)],
                ),
                (Engine::RaftRs, vec![figures(1_500_000)]),
            ],
        };
        let table = table(&[measured]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[2].contains("| Polyraft | 3,000,000 |  |  | 0.90 | 12 |"),
            "{}",
            lines[2]
        );
        assert!(lines[2].ends_with("| 2.00 |"), "{}", lines[2]);
        assert!(
            lines[3].contains("| raft-rs | 750,000 | **4.00 ×** | 4 × |"),
            "{}",
            lines[3]
        );
    }

    #[test]
    fn missed_targets_and_worse_tails_are_named() {
        let slow = Figures {
            p99_us: 12_301,
            ..figures(3_000_000)
        };
        let one = |at: usize, polyraft: &Figures| Measured {
            number: at + 1,
            row: ROWS[at],
            rounds: vec![
                (Engine::Polyraft, vec![polyraft.clone()]),
                (Engine::RaftRs, vec![figures(1_000_000)]),
                (Engine::Openraft, vec![figures(1_000_000)]),
            ],
        };
        let fast = figures(3_000_000);
        let table = table(&[one(0, &slow), one(1, &slow), one(2, &slow), one(4, &fast)]);
        assert!(
            table.contains(
                "\n\nAgainst raft-rs, Polyraft misses its target in rows 1 and 5; its p99 is worse in rows 1, 2 and 3.\n"
            ),
            "{table}"
        );
        assert!(
            table.ends_with(
                "\n\nAgainst openraft, Polyraft misses its target in no row; its p99 is worse in rows 1, 2 and 3.\n"
            ),
            "{table}"
        );
    }

    #[test]
    fn who_was_not_measured_misses_nothing() {
        let alone = Measured {
            number: 4,
            row: ROWS[3],
            rounds: vec![(Engine::RaftRs, vec![figures(1_000_000)])],
        };
        let table = table(&[alone]);
        assert_eq!(table.lines().count(), 3, "{table}");
    }
}

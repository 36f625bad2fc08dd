//! Medians, ratios and the tables made of them: the terminal and docs/benchmarks.md show the same text.

use crate::host::Host;
use crate::load::Figures;
use crate::rows::{Engine, Row};
use std::fmt::Write;

/// What a row has measured, by engine in the order of [`Engine::ALL`], by round.
pub struct Measured {
    pub row: Row,
    pub rounds: Vec<(Engine, Vec<Figures>)>,
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

/// One line per row and engine.
pub fn table(measured: &[Measured]) -> String {
    let mut out = String::from(
        "| groups | in flight | payload | engine | commits/s | Polyraft is | p50 ms | p99 ms | p99.9 ms | CPU µs per commit | syncs/s per node | spread |\n\
         |---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for one in measured {
        let polyraft = one
            .rounds
            .iter()
            .find(|(engine, _)| *engine == Engine::Polyraft);
        let polyraft = polyraft.map(|(_, rounds)| median_of(rounds, Figures::rate));
        for (engine, rounds) in &one.rounds {
            put_line(&mut out, one.row, *engine, rounds, polyraft);
        }
    }
    out
}

fn put_line(out: &mut String, row: Row, engine: Engine, rounds: &[Figures], polyraft: Option<f64>) {
    let workload = row.workload;
    let rate = median_of(rounds, Figures::rate);
    let ratio = match (engine, polyraft) {
        (Engine::Polyraft, _) | (_, None) => String::new(),
        (_, Some(polyraft)) => format!("**{:.2} ×**", polyraft / rate),
    };
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
        "| {} | {} | {} B | {} | {} | {ratio} | {} | {} | {} | {:.2} | {} | {:.2} |",
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
         *Polyraft is*: its commits per second over those of the line's engine. All three run three nodes in one process, \
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
        assert_eq!(lines.len(), 4);
        assert!(
            lines[2].contains("| Polyraft | 3,000,000 |  | 0.90 | 12 |"),
            "{}",
            lines[2]
        );
        assert!(lines[2].ends_with("| 2.00 |"), "{}", lines[2]);
        assert!(
            lines[3].contains("| raft-rs | 750,000 | **4.00 ×** |"),
            "{}",
            lines[3]
        );
    }
}

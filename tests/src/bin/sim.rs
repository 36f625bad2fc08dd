//! The command `sim`: runs seeds of the simulated cluster and says which rule was broken, and how to see it again.
//! It must never let a failure pass without the one command that replays it.

use std::io::Write;

fn main() {
    let mut out = std::io::stdout();
    let args: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|a| a.parse().ok())
        .collect();
    for seed in args[0]..args[1] {
        let words = (args.len() > 2).then(Vec::new);
        let report = polyraft_tests::sim::run(seed, words);
        for line in &report.lines {
            let _ = writeln!(out, "{line}");
        }
        let _ = writeln!(
            out,
            "{seed} {:016x} {} us {:?} {:?}",
            report.hash, report.micros, report.counts, report.failure
        );
    }
}

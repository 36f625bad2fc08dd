//! Many seeds side by side: each on one thread from beginning to end, so that none can disturb another. It must report
//! in the order of the seeds, however long each takes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::plan::ByFault;
use super::{Fault, Report};

/// The seeds that once found something, with what they found. One a line: a number, then words.
const REGRESSIONS: &str = include_str!("../../data/sim/seeds.txt");

/// The seeds of `tests/data/sim/seeds.txt` with their comments.
///
/// # Panics
/// When a line does not begin with a number.
pub fn regressions() -> Vec<(u64, &'static str)> {
    let lines = REGRESSIONS.lines().map(str::trim);
    let seeds = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    seeds
        .map(|line| {
            let (seed, comment) = line.split_once(' ').unwrap_or((line, ""));
            (seed.parse().expect("a line begins with a seed"), comment)
        })
        .collect()
}

/// Runs `seeds` on `jobs` threads and calls `tell` with each report, in their order.
pub fn run(seeds: &[u64], jobs: usize, mut tell: impl FnMut(&Report)) {
    let next = AtomicUsize::new(0);
    let (done, reports) = mpsc::channel();
    let done = Mutex::new(done);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let done = done.lock().expect("no thread holds it for long").clone();
            let next = &next;
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = seeds.get(at) else { return };
                    if done.send((at, super::run(*seed, None))).is_err() {
                        return;
                    }
                }
            });
        }
        let mut waiting: BTreeMap<usize, Report> = BTreeMap::new();
        let mut told = 0;
        while told < seeds.len() {
            let Ok((at, report)) = reports.recv() else {
                return;
            };
            waiting.insert(at, report);
            while let Some(report) = waiting.remove(&told) {
                tell(&report);
                told += 1;
            }
        }
    });
}

/// What many seeds add up to.
#[derive(Clone, Default, Debug)]
pub struct Sum {
    /// Seeds run.
    pub seeds: u64,
    /// Seeds that broke a rule.
    pub failures: u64,
    events: u64,
    fewest_events: Option<u64>,
    micros: u64,
    acknowledged: u64,
    queries: u64,
    unknown: u64,
    tried_again: u64,
    forgotten: u64,
    expired: u64,
    searched: u64,
    undecided: u64,
    restarts: u64,
    restored: u64,
    transferred: u64,
    resumed: u64,
    repaired: u64,
    corrupted: u64,
    outlasted: u64,
    lost: u64,
    duplicated: u64,
    overtaken: u64,
    failed_recoveries: u64,
    lives: u64,
    splits: u64,
    merges: u64,
    unmerged: u64,
    moved: u64,
    preferred: u64,
    bereft: u64,
    needed_peers: u64,
    told_peers: u64,
    parted: u64,
    joined: u64,
    old_states: u64,
    outdated_states: u64,
    drained: u64,
    asked_snapshots: u64,
    failed_changes: u64,
    failed_queries: u64,
    failed_snapshots: u64,
    returned: u64,
    faults: ByFault<u64>,
    hash: u64,
}

impl Sum {
    /// Adds a seed.
    pub fn add(&mut self, report: &Report) {
        let counts = &report.counts;
        self.seeds += 1;
        self.failures += u64::from(report.failure.is_some());
        self.events += counts.events;
        if report.failure.is_none() {
            let fewest = self.fewest_events.get_or_insert(counts.events);
            *fewest = counts.events.min(*fewest);
        }
        self.micros += report.micros;
        self.acknowledged += counts.acknowledged;
        self.queries += counts.queries;
        self.unknown += counts.unknown;
        self.tried_again += counts.tried_again;
        self.forgotten += counts.forgotten;
        self.expired += counts.expired;
        self.searched += counts.searched;
        self.undecided += counts.undecided;
        self.restarts += counts.restarts;
        self.restored += counts.restored;
        self.transferred += counts.transferred;
        self.resumed += counts.resumed;
        self.repaired += counts.repaired;
        self.corrupted += counts.corrupted;
        self.outlasted += counts.outlasted;
        self.lost += counts.lost;
        self.duplicated += counts.duplicated;
        self.overtaken += counts.overtaken;
        self.failed_recoveries += counts.failed_recoveries;
        self.lives += counts.lives;
        self.splits += counts.splits;
        self.merges += counts.merges;
        self.unmerged += counts.unmerged;
        self.moved += counts.moved;
        self.preferred += counts.preferred;
        self.bereft += counts.bereft;
        self.needed_peers += counts.needed_peers;
        self.told_peers += counts.told_peers;
        self.parted += counts.parted;
        self.joined += counts.joined;
        self.old_states += counts.old_states;
        self.outdated_states += counts.outdated_states;
        self.drained += counts.drained;
        self.asked_snapshots += counts.asked_snapshots;
        self.failed_changes += counts.failed_changes;
        self.failed_queries += counts.failed_queries;
        self.failed_snapshots += counts.failed_snapshots;
        self.returned += counts.returned;
        for (sum, count) in self.faults.0.iter_mut().zip(counts.faults.0) {
            *sum += u64::from(count);
        }
        self.hash = super::rng::mix(self.hash ^ report.hash);
    }
}

/// Over so many seeds, everything that can go wrong has to.
const MANY_SEEDS: u64 = 1_000;

impl Sum {
    /// What can go wrong and never did, in seeds that are many enough to expect it.
    pub fn never_happened(&self) -> Vec<String> {
        if self.seeds < MANY_SEEDS {
            return Vec::new();
        }
        let faults = Fault::ALL.iter().zip(self.faults.0);
        let faults = faults.map(|(fault, count)| (format!("{fault:?}"), count));
        let others = [
            ("a connection broken by a pause".to_owned(), self.outlasted),
            ("a frame lost".to_owned(), self.lost),
            ("a frame that came twice".to_owned(), self.duplicated),
            ("a frame that overtook another".to_owned(), self.overtaken),
            ("a restart".to_owned(), self.restarts),
            (
                "a start that the power cut short".to_owned(),
                self.failed_recoveries,
            ),
            ("a restored state machine".to_owned(), self.restored),
            ("a snapshot of another node".to_owned(), self.transferred),
            ("a resumed transfer".to_owned(), self.resumed),
            ("a repaired replica".to_owned(), self.repaired),
            ("a damaged part of a snapshot".to_owned(), self.corrupted),
            ("a group in a later life".to_owned(), self.lives),
            ("a group split off".to_owned(), self.splits),
            ("a merged group".to_owned(), self.merges),
            ("a merge that came to nothing".to_owned(), self.unmerged),
            ("a key that had moved".to_owned(), self.moved),
            (
                "a group led by the node that it prefers".to_owned(),
                self.preferred,
            ),
            ("a quiet group that lost a peer".to_owned(), self.bereft),
            ("a node that became a peer".to_owned(), self.joined),
            ("a peer taken out".to_owned(), self.parted),
            ("a change of a peer".to_owned(), self.told_peers),
            ("a peer that a group needs".to_owned(), self.needed_peers),
            ("a read of old state".to_owned(), self.old_states),
            (
                "a read that was answered from a state which was not the newest".to_owned(),
                self.outdated_states,
            ),
            ("a node that was drained".to_owned(), self.drained),
            ("a snapshot on request".to_owned(), self.asked_snapshots),
            (
                "a state machine that failed at a change".to_owned(),
                self.failed_changes,
            ),
            ("one that failed at a query".to_owned(), self.failed_queries),
            (
                "one that failed at a snapshot".to_owned(),
                self.failed_snapshots,
            ),
            ("one that was opened again".to_owned(), self.returned),
            ("an unknown outcome".to_owned(), self.unknown),
            ("a read beside the log".to_owned(), self.queries),
            (
                "a proposal of a session tried again".to_owned(),
                self.tried_again,
            ),
            (
                "a reply of a session that was not kept".to_owned(),
                self.forgotten,
            ),
            ("an expired session".to_owned(), self.expired),
            (
                "an order found for 99 of 100 registers that were searched for one".to_owned(),
                u64::from(self.undecided * 100 < self.searched),
            ),
        ];
        let never = faults.chain(others).filter(|(_, count)| *count == 0);
        never.map(|(what, _)| what).collect()
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} seeds, {} of them broke a rule; {} events, at least {} in a seed; {} s of simulated time",
            self.seeds,
            self.failures,
            self.events,
            self.fewest_events.unwrap_or(0),
            self.micros / 1_000_000
        )?;
        writeln!(
            f,
            "{} operations acknowledged, {} reads beside the log, {} of unknown outcome, {} of {} searched registers undecided, {} restarts, {} state machines restored, {} connections broken by a pause; {} snapshots sent, {} transfers resumed, {} replicas repaired, {} parts damaged; {} groups destroyed and created again, {} split off, {} merged and {} not, {} operations that came too late for that, {} led by the node that they prefer, {} quiet ones lost a peer; {} times a node became a peer of all and {} times none, {} changes of peers, {} refused for a group; {} reads of old state, {} of a state that was not the newest; {} nodes drained; {} snapshots on request; state machines failed at {} changes, {} queries and {} snapshots, and {} were opened again; in sessions {} proposals tried again, {} replies not kept, {} expired",
            self.acknowledged,
            self.queries,
            self.unknown,
            self.undecided,
            self.searched,
            self.restarts,
            self.restored,
            self.outlasted,
            self.transferred,
            self.resumed,
            self.repaired,
            self.corrupted,
            self.lives,
            self.splits,
            self.merges,
            self.unmerged,
            self.moved,
            self.preferred,
            self.bereft,
            self.joined,
            self.parted,
            self.told_peers,
            self.needed_peers,
            self.old_states,
            self.outdated_states,
            self.drained,
            self.asked_snapshots,
            self.failed_changes,
            self.failed_queries,
            self.failed_snapshots,
            self.returned,
            self.tried_again,
            self.forgotten,
            self.expired
        )?;
        write!(f, "faults:")?;
        for (fault, count) in Fault::ALL.iter().zip(self.faults.0) {
            write!(f, " {fault:?} {count}")?;
        }
        write!(f, "\nhash over all traces {:016x}", self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_seeds_in_which_a_fault_never_happened_prove_too_little() {
        let mut sum = Sum {
            seeds: MANY_SEEDS,
            searched: 1,
            unknown: 1,
            queries: 1,
            restarts: 1,
            restored: 1,
            transferred: 1,
            resumed: 1,
            repaired: 1,
            corrupted: 1,
            tried_again: 1,
            forgotten: 1,
            expired: 1,
            outlasted: 1,
            lost: 1,
            duplicated: 1,
            overtaken: 1,
            failed_recoveries: 1,
            lives: 1,
            splits: 1,
            merges: 1,
            unmerged: 1,
            moved: 1,
            preferred: 1,
            bereft: 1,
            needed_peers: 1,
            told_peers: 1,
            parted: 1,
            joined: 1,
            old_states: 1,
            outdated_states: 1,
            drained: 1,
            asked_snapshots: 1,
            failed_changes: 1,
            failed_queries: 1,
            failed_snapshots: 1,
            returned: 1,
            faults: ByFault([1; Fault::ALL.len()]),
            ..Sum::default()
        };
        assert!(sum.never_happened().is_empty());
        sum.faults.0[3] = 0;
        assert_eq!(sum.never_happened(), [format!("{:?}", Fault::ALL[3])]);
        sum.seeds -= 1;
        assert!(sum.never_happened().is_empty(), "they were too few to say");
    }
}

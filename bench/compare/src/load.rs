//! The client: one thread with a closed loop, the same for every engine. It counts a proposal when the engine answers
//! it, and checks at the end that all three nodes have applied exactly what was answered.

use crate::digest::Digest;
use crate::payloads::Payloads;
use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Every cluster has three nodes, each group a replica on each.
pub const NODES: usize = 3;

/// How long proposals in flight and lagging replicas may take at the end of a round.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// How long a client that was refused waits at most before it tries again.
const RETRY_DELAY: Duration = Duration::from_millis(1);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Groups, all of them active.
    pub groups: usize,
    /// Proposals in flight, all groups together, spread evenly.
    pub inflight: usize,
    /// Size of a proposal.
    pub payload_bytes: usize,
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Committed, and applied where it was proposed.
    Committed,
    /// It is in no log, and may be sent again.
    Refused,
    /// It may or may not be committed.
    Open,
}

/// The answer to the proposal of one slot.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The slot that proposed.
    pub slot: u32,
    /// What became of it.
    pub fate: Fate,
}

/// Three nodes of one engine, with all groups led, as the client sees them.
pub trait Cluster {
    /// Hands over a proposal. It may wait for [`Cluster::flush`].
    fn propose(&mut self, group: usize, slot: u32, payload: Bytes);

    /// Sends what was handed over.
    fn flush(&mut self);

    /// Appends the outcomes that are known; waits for the first up to `timeout`.
    fn outcomes(&mut self, out: &mut Vec<Outcome>, timeout: Duration);

    /// What each node has applied, by node and group. May hasten followers that wait for the news of a commit.
    fn digests(&mut self) -> Result<Vec<Vec<Digest>>>;

    /// Syncs of the log so far, by node.
    fn syncs(&self) -> Vec<u64>;

    /// Groups led, by node.
    fn leaders(&self) -> Vec<u64>;
}

/// What a round measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Proposals answered as committed.
    pub commits: u64,
    /// Length of the measured part.
    pub seconds: f64,
    /// Microseconds from proposing to the answer.
    pub p50_us: u64,
    /// The same at 99 %.
    pub p99_us: u64,
    /// The same at 99.9 %.
    pub p999_us: u64,
    /// CPU time of the whole process, user and system, in microseconds.
    pub cpu_us: f64,
    /// The part of the client's thread.
    pub client_cpu_us: f64,
    /// Proposals refused and sent again, warm-up included.
    pub refused: u64,
    /// Proposals whose outcome stayed open, warm-up included.
    pub open: u64,
    /// Syncs in the measured part, by node.
    pub syncs: Vec<u64>,
    /// Groups led when the measured part ended, by node.
    pub leaders: Vec<u64>,
    /// Proposals that every node has applied, the whole round.
    pub applied: u64,
}

impl Figures {
    /// Commits per second.
    pub fn rate(&self) -> f64 {
        self.commits as f64 / self.seconds
    }

    /// CPU microseconds per commit.
    pub fn cpu_per_commit(&self) -> f64 {
        self.cpu_us / self.commits.max(1) as f64
    }
}

struct Slot {
    sent: Instant,
    sequence: u64,
}

struct Client<'a, C> {
    cluster: &'a mut C,
    workload: Workload,
    payloads: Payloads,
    slots: Vec<Slot>,
    in_flight: usize,
    latency_us: Histogram<u64>,
    /// Answered as committed, by group, from the first proposal on.
    acknowledged: Vec<u64>,
    open: Vec<u64>,
    refused: u64,
}

/// Runs `workload` on `cluster`: `warm_up`, then `measured`, then the check.
pub fn run<C: Cluster>(
    cluster: &mut C,
    workload: Workload,
    warm_up: Duration,
    measured: Duration,
) -> Result<Figures> {
    let now = Instant::now();
    let slots = (0..workload.inflight).map(|_| Slot {
        sent: now,
        sequence: 0,
    });
    let mut client = Client {
        cluster,
        workload,
        payloads: Payloads::new(workload.payload_bytes),
        slots: slots.collect(),
        in_flight: 0,
        latency_us: Histogram::new_with_max(120_000_000, 3)?,
        acknowledged: vec![0; workload.groups],
        open: vec![0; workload.groups],
        refused: 0,
    };
    for slot in 0..client.slots.len() {
        client.send(slot as u32, now);
    }
    client.cluster.flush();
    client.turn_until(now + warm_up)?;
    check_spread("before", workload.groups, &client.cluster.leaders())?;
    client.latency_us.reset();

    let (start, syncs) = (Instant::now(), client.cluster.syncs());
    let cpu = cpu_us(ClockId::ProcessCPUTime);
    let client_cpu = cpu_us(ClockId::ThreadCPUTime);
    client.turn_until(start + measured)?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu_us_used = cpu_us(ClockId::ProcessCPUTime) - cpu;
    let client_cpu_us = cpu_us(ClockId::ThreadCPUTime) - client_cpu;
    let synced = client.cluster.syncs();
    let leaders = client.cluster.leaders();
    check_spread("after", workload.groups, &leaders)?;
    let syncs: Vec<u64> = synced
        .iter()
        .zip(syncs)
        .map(|(to, from)| to - from)
        .collect();

    let latency = &client.latency_us;
    let mut figures = Figures {
        commits: latency.len(),
        seconds,
        p50_us: latency.value_at_quantile(0.5),
        p99_us: latency.value_at_quantile(0.99),
        p999_us: latency.value_at_quantile(0.999),
        cpu_us: cpu_us_used,
        client_cpu_us,
        refused: 0,
        open: 0,
        syncs,
        leaders,
        applied: 0,
    };
    ensure!(figures.commits > 0, "nothing was committed");
    ensure!(
        figures.syncs.iter().all(|count| *count > 0),
        "a node did not sync its log: {:?}",
        figures.syncs
    );
    client.drain()?;
    figures.refused = client.refused;
    figures.open = client.open.iter().sum();
    figures.applied = client.check()?;
    Ok(figures)
}

/// From three groups on each node has to lead a quarter to 45 % of them, to the next whole number outwards: otherwise an
/// engine would be measured by how its leaders happen to be placed.
fn check_spread(moment: &str, groups: usize, leaders: &[u64]) -> Result<()> {
    if groups < NODES {
        return Ok(());
    }
    let groups = groups as u64;
    let fair = (groups / 4).max(1)..=(groups * 9).div_ceil(20);
    ensure!(
        leaders.iter().all(|led| fair.contains(led)),
        "{moment} the measured part the nodes led {leaders:?} of {groups} groups, which is no even spread"
    );
    Ok(())
}

impl<C: Cluster> Client<'_, C> {
    /// Slots belong to groups for good: each group has its share of the window at all times.
    fn group_of(&self, slot: u32) -> usize {
        slot as usize % self.workload.groups
    }

    fn send(&mut self, slot: u32, now: Instant) {
        let group = self.group_of(slot);
        let state = &mut self.slots[slot as usize];
        state.sent = now;
        state.sequence += 1;
        let payload = self.payloads.make(slot, state.sequence);
        self.in_flight += 1;
        self.cluster.propose(group, slot, payload);
    }

    /// Takes one turn at least.
    fn turn_until(&mut self, end: Instant) -> Result<()> {
        let mut outcomes = Vec::with_capacity(self.slots.len());
        loop {
            let left = end.saturating_duration_since(Instant::now());
            self.cluster.outcomes(&mut outcomes, left);
            self.settle(&mut outcomes, true)?;
            if Instant::now() >= end {
                return Ok(());
            }
        }
    }

    /// Takes note of outcomes and, if the load goes on, sends the next proposal of each slot.
    fn settle(&mut self, outcomes: &mut Vec<Outcome>, goes_on: bool) -> Result<()> {
        let now = Instant::now();
        let mut is_refused = !outcomes.is_empty();
        for Outcome { slot, fate } in outcomes.drain(..) {
            self.in_flight -= 1;
            let group = self.group_of(slot);
            is_refused &= fate == Fate::Refused;
            match fate {
                Fate::Committed => {
                    self.acknowledged[group] += 1;
                    let took = now.saturating_duration_since(self.slots[slot as usize].sent);
                    self.latency_us.record(took.as_micros() as u64)?;
                }
                Fate::Refused => self.refused += 1,
                Fate::Open => self.open[group] += 1,
            }
            if goes_on {
                self.send(slot, now);
            }
        }
        self.cluster.flush();
        if is_refused && goes_on {
            // Nothing but refusals: asking again at once would only burn the engine's CPU.
            std::thread::sleep(RETRY_DELAY);
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        let mut outcomes = Vec::new();
        while self.in_flight > 0 {
            if Instant::now() > deadline {
                bail!("{} proposals were never answered", self.in_flight);
            }
            self.cluster
                .outcomes(&mut outcomes, Duration::from_millis(10));
            self.settle(&mut outcomes, false)?;
        }
        Ok(())
    }

    /// Waits until all nodes agree, and compares them with what was promised. Returns how much each has applied.
    fn check(&mut self) -> Result<u64> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let digests = self.cluster.digests()?;
            let verdict = self.compare(&digests);
            match verdict {
                Ok(applied) => return Ok(applied),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn compare(&self, digests: &[Vec<Digest>]) -> Result<u64> {
        ensure!(digests.len() == NODES, "{} nodes answered", digests.len());
        let mut applied = 0;
        for group in 0..self.workload.groups {
            let first = digests[0][group];
            for (node, of_node) in digests.iter().enumerate() {
                ensure!(
                    of_node[group] == first,
                    "group {group}: node 1 has {first:?}, node {} has {:?}",
                    node + 1,
                    of_node[group]
                );
            }
            let promised = self.acknowledged[group];
            ensure!(
                (promised..=promised + self.open[group]).contains(&first.applied),
                "group {group}: {promised} proposals were acknowledged, {} open, but {} are applied",
                self.open[group],
                first.applied
            );
            applied += first.applied;
        }
        Ok(applied)
    }
}

fn cpu_us(clock: ClockId) -> f64 {
    let used = clock_gettime(clock);
    used.tv_sec as f64 * 1e6 + used.tv_nsec as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits at once; the third node may lose everything, and the first one may take over all groups.
    struct Instantly {
        done: Vec<Outcome>,
        digests: Vec<Vec<Digest>>,
        loses: bool,
        /// How many proposals there are before the first node leads everything.
        usurped_after: u64,
        syncs: u64,
    }

    impl Cluster for Instantly {
        fn propose(&mut self, group: usize, slot: u32, payload: Bytes) {
            self.syncs += 1;
            for node in 0..NODES {
                if !(self.loses && node == 2) {
                    self.digests[node][group].apply(&payload);
                }
            }
            self.done.push(Outcome {
                slot,
                fate: Fate::Committed,
            });
        }

        fn flush(&mut self) {}

        fn outcomes(&mut self, out: &mut Vec<Outcome>, _timeout: Duration) {
            out.append(&mut self.done);
        }

        fn digests(&mut self) -> Result<Vec<Vec<Digest>>> {
            Ok(self.digests.clone())
        }

        fn syncs(&self) -> Vec<u64> {
            vec![self.syncs; NODES]
        }

        fn leaders(&self) -> Vec<u64> {
            match self.syncs > self.usurped_after {
                true => vec![self.digests[0].len() as u64, 0, 0],
                false => vec![1; NODES],
            }
        }
    }

    fn instantly(loses: bool) -> (Instantly, Workload) {
        let workload = Workload {
            groups: 3,
            inflight: 9,
            payload_bytes: 16,
        };
        let cluster = Instantly {
            done: Vec::new(),
            digests: vec![vec![Digest::default(); workload.groups]; NODES],
            loses,
            usurped_after: u64::MAX,
            syncs: 0,
        };
        (cluster, workload)
    }

    #[test]
    fn every_acknowledged_proposal_is_counted_once() {
        let (mut cluster, workload) = instantly(false);
        let figures = run(&mut cluster, workload, Duration::ZERO, Duration::ZERO).unwrap();
        // A turn of warm-up, a measured one, and what is in flight at its end.
        assert_eq!((figures.commits, figures.applied), (9, 27));
        assert!(figures.p50_us <= figures.p99_us && figures.p99_us <= figures.p999_us);
    }

    #[test]
    fn a_round_whose_leaders_gather_on_one_node_fails() {
        let run_with = |usurped_after| {
            let (mut cluster, workload) = instantly(false);
            cluster.usurped_after = usurped_after;
            let error = run(&mut cluster, workload, Duration::ZERO, Duration::ZERO).unwrap_err();
            error.to_string()
        };
        // The window of 9 proposals is sent twice before the measured part, and a third time in it.
        let (before, after) = (run_with(17), run_with(18));
        assert!(before.starts_with("before the measured part"), "{before}");
        assert!(after.starts_with("after the measured part"), "{after}");
    }

    #[test]
    fn leaders_are_spread_if_each_node_has_a_quarter_to_45_percent() {
        let is_fair = |leaders: [u64; 3]| {
            let groups = leaders.iter().sum::<u64>() as usize;
            check_spread("before", groups, &leaders).is_ok()
        };
        assert!(is_fair([256, 307, 461]) && !is_fair([255, 308, 461]) && !is_fair([256, 306, 462]));
        assert!(is_fair([1, 1, 1]) && !is_fair([2, 1, 0]) && is_fair([2, 2, 1]));
        assert!(is_fair([1, 0, 0]), "one group has one leader");
    }

    #[test]
    fn a_node_that_lost_something_is_found() {
        let (mut cluster, workload) = instantly(true);
        let now = Instant::now();
        let client = Client {
            cluster: &mut cluster,
            workload,
            payloads: Payloads::new(16),
            slots: vec![Slot {
                sent: now,
                sequence: 0,
            }],
            in_flight: 0,
            latency_us: Histogram::new(3).unwrap(),
            acknowledged: vec![0; 3],
            open: vec![0; 3],
            refused: 0,
        };
        client.cluster.propose(1, 0, Bytes::from_static(&[7; 16]));
        let digests = client.cluster.digests.clone();
        let error = client.compare(&digests).unwrap_err().to_string();
        assert!(error.starts_with("group 1"), "{error}");
    }
}

//! The cost of consensus itself, as a whole and by kind of event: `support/core.rs` has the core and nothing else.

#[path = "support/core.rs"]
mod core;

use self::core::{Cluster, Entries, NODES};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use polyraft_raft::{Event, Index};
use std::hint::black_box;
use std::time::{Duration, Instant};

fn commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("consensus/commit");
    for groups in [1, 48, 1024, 4096] {
        group.throughput(Throughput::Elements(groups));
        group.bench_with_input(
            BenchmarkId::from_parameter(groups),
            &groups,
            |bencher, groups| {
                let mut cluster = Cluster::new(*groups);
                let before = cluster.nodes[0].groups[0].committed();
                bencher.iter(|| black_box(&mut cluster).commit_one_each());
                assert!(
                    cluster.nodes[0].groups[0].committed() > before,
                    "entries were committed"
                );
            },
        );
    }
    group.finish();
}

/// The events of one commit that the core is stepped with, in their order. Followers hear of a commit with the next append.
const KINDS: [&str; 8] = [
    "propose",
    "flush",
    "durable, leader",
    "append",
    "durable, follower",
    "matched",
    "applied, leader",
    "applied, follower",
];

/// Groups that a measurement steps with each kind of event before the next: many, so that reading the clock costs nothing,
/// and few, so that their state is in the nearest cache.
const STEPPED: u64 = 64;

impl Cluster {
    /// Commits one entry in each group, all groups with one kind of event after the other. Returns how long each took.
    fn commit_by_kind(&mut self) -> [Duration; KINDS.len()] {
        let groups = self.nodes[0].groups.len();
        let mut took = [Duration::ZERO; KINDS.len()];
        let start = Instant::now();
        for group in 0..groups {
            self.step(0, group, Event::Propose { count: 1 });
        }
        took[0] = start.elapsed();
        let start = Instant::now();
        for group in 0..groups {
            self.step(0, group, Event::Flush { log: &Entries });
        }
        took[1] = start.elapsed();
        let appends = std::mem::take(&mut self.nodes[0].out.sends);
        took[2] = self.settle_writes(0);

        let start = Instant::now();
        for send in &appends {
            let (from, message) = (self.nodes[0].id, send.message);
            let event = Event::Message { from, message };
            self.step(send.to.0 as usize - 1, send.group.0 as usize, event);
        }
        took[3] = start.elapsed();
        took[4] = (1..NODES as usize)
            .map(|node| self.settle_writes(node))
            .sum();

        for node in 1..NODES as usize {
            let replies = std::mem::take(&mut self.nodes[node].out.sends);
            let from = self.nodes[node].id;
            let start = Instant::now();
            for send in &replies {
                let message = send.message;
                self.step(0, send.group.0 as usize, Event::Message { from, message });
            }
            took[5] += start.elapsed();
        }
        took[6] = self.settle_applies(0);
        took[7] = (1..NODES as usize)
            .map(|node| self.settle_applies(node))
            .sum();
        for node in &mut self.nodes {
            node.out.clear();
        }
        took
    }

    /// Says that everything written is durable.
    fn settle_writes(&mut self, node: usize) -> Duration {
        let writes = std::mem::take(&mut self.nodes[node].out.writes);
        let start = Instant::now();
        for write in &writes {
            let through = write.id;
            self.step(node, write.group.0 as usize, Event::Durable { through });
        }
        start.elapsed()
    }

    /// Says that everything committed is applied.
    fn settle_applies(&mut self, node: usize) -> Duration {
        let applies = std::mem::take(&mut self.nodes[node].out.applies);
        let start = Instant::now();
        for apply in &applies {
            let through = Index(apply.end.0 - 1);
            self.step(node, apply.group.0 as usize, Event::Applied { through });
        }
        start.elapsed()
    }
}

/// What a step costs, by kind of event: the time is that of one event on 64 groups, on two followers where followers have it.
fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("consensus/step");
    for (at, kind) in KINDS.into_iter().enumerate() {
        let replicas = match kind {
            "append" | "durable, follower" | "matched" | "applied, follower" => 2,
            _ => 1,
        };
        group.throughput(Throughput::Elements(STEPPED * replicas));
        group.bench_function(BenchmarkId::from_parameter(kind), |bencher| {
            let mut cluster = Cluster::new(STEPPED);
            let before = cluster.nodes[0].groups[0].committed();
            // The first round's appends carry the commit of the leaders' first entries.
            cluster.commit_by_kind();
            bencher.iter_custom(|rounds| (0..rounds).map(|_| cluster.commit_by_kind()[at]).sum());
            let after = cluster.nodes[0].groups[0].committed();
            assert!(after > before, "entries were committed");
        });
    }
    group.finish();
}

criterion_group!(benches, commit, steps);
criterion_main!(benches);

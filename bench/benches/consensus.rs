//! The pure core alone: three replicas of each group in one thread, every write durable at once and every message
//! delivered at once. What is left is the cost of consensus itself, as a whole and by kind of event.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use polyraft_raft::{
    Configuration, Env, Event, Group, GroupId, Index, LogExtents, Message, NodeId, NodeSet, Outbox,
    Restored, Role, Settings, Tick,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

const NODES: u64 = 3;

/// Every entry has the same size.
struct Entries;

impl LogExtents for Entries {
    fn extent(&self, first: Index, end: Index, max_bytes: u64) -> (Index, u64) {
        const ENTRY_BYTES: u64 = 128;
        let count = (max_bytes / ENTRY_BYTES).clamp(1, end.0 - first.0);
        (Index(first.0 + count), count * ENTRY_BYTES)
    }
}

struct Node {
    id: NodeId,
    alive: NodeSet,
    groups: Vec<Group>,
    inbox: Vec<(usize, NodeId, Message)>,
    out: Outbox,
    spare: Outbox,
}

struct Cluster {
    settings: Settings,
    now: Tick,
    nodes: Vec<Node>,
}

impl Cluster {
    /// A cluster whose groups are all led by the first node.
    fn new(groups: u64) -> Self {
        let settings = Settings::default();
        let now = Tick(0);
        let nodes = (1..=NODES)
            .map(|id| {
                let id = NodeId(id);
                let mut alive = NodeSet::new(id);
                for peer in 1..=NODES {
                    alive.insert(NodeId(peer));
                }
                let env = Env {
                    now,
                    settings: &settings,
                    alive: &alive,
                };
                let mut out = Outbox::default();
                let groups = (0..groups)
                    .map(|group| {
                        let restored =
                            Restored::empty(Configuration::simple((1..=NODES).map(NodeId)));
                        Group::new(GroupId(group), id, group ^ id.0, &env, restored, &mut out)
                    })
                    .collect();
                out.clear();
                Node {
                    id,
                    alive,
                    groups,
                    inbox: Vec::new(),
                    out,
                    spare: Outbox::default(),
                }
            })
            .collect();
        let mut cluster = Self {
            settings,
            now,
            nodes,
        };
        for group in 0..groups as usize {
            cluster.step(0, group, Event::Campaign);
        }
        cluster.settle();
        assert!(
            cluster.nodes[0]
                .groups
                .iter()
                .all(|group| group.role() == Role::Leader)
        );
        cluster
    }

    fn step(&mut self, node: usize, group: usize, event: Event<'_>) {
        let node = &mut self.nodes[node];
        let env = Env {
            now: self.now,
            settings: &self.settings,
            alive: &node.alive,
        };
        node.groups[group].step(&env, event, &mut node.out);
    }

    /// Proposes one entry to each group, and runs until all have it committed and applied everywhere it can be.
    fn commit_one_each(&mut self) {
        for group in 0..self.nodes[0].groups.len() {
            self.step(0, group, Event::Propose { count: 1 });
            self.step(0, group, Event::Flush { log: &Entries });
        }
        self.settle();
    }

    /// Turns until nothing is left to do.
    fn settle(&mut self) {
        while (0..self.nodes.len()).any(|node| self.turn(node)) {}
    }

    /// Takes in what has arrived, then dispatches. False if there was nothing to dispatch.
    fn turn(&mut self, at: usize) -> bool {
        let mut inbox = std::mem::take(&mut self.nodes[at].inbox);
        for (group, from, message) in inbox.drain(..) {
            self.step(at, group, Event::Message { from, message });
            self.step(at, group, Event::Flush { log: &Entries });
        }
        self.nodes[at].inbox = inbox;
        // Two outboxes take turns, so that neither gives its room away.
        let mut out = std::mem::take(&mut self.nodes[at].spare);
        std::mem::swap(&mut out, &mut self.nodes[at].out);
        let is_busy = !out.is_empty();
        for send in &out.sends {
            let from = self.nodes[at].id;
            let to = &mut self.nodes[send.to.0 as usize - 1];
            to.inbox.push((send.group.0 as usize, from, send.message));
        }
        // What these events bring about goes into the next turn's outbox.
        for write in &out.writes {
            self.step(
                at,
                write.group.0 as usize,
                Event::Durable { through: write.id },
            );
            self.step(at, write.group.0 as usize, Event::Flush { log: &Entries });
        }
        for apply in &out.applies {
            let through = Index(apply.end.0 - 1);
            self.step(at, apply.group.0 as usize, Event::Applied { through });
        }
        out.clear();
        self.nodes[at].spare = out;
        is_busy
    }
}

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

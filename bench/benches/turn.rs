//! The turns of whole nodes, without threads, disk and network: what the engine's own code costs for one commit in each of
//! 1, 64 and 1,024 groups, and the assembly of a frame.

#[path = "support/nodes.rs"]
mod nodes;

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nodes::{Nodes, Took};
use polyraft::sim::put_append;
use polyraft_raft::{EntryRange, GroupId, Index, LogPosition, Message, Term};
use polyraft_storage::{EntryKind, pack};
use std::hint::black_box;
use std::time::Duration;

/// What a bench looks at in the turns of a round.
type Part = fn(&Took) -> Duration;

const PARTS: [(&str, Part); 2] = [
    ("turn/propose", |took| took.propose),
    ("turn/commit", |took| took.all),
];

fn turns(criterion: &mut Criterion) {
    for (name, part) in PARTS {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(20);
        for groups in [1, 64, 1024] {
            group.throughput(Throughput::Elements(groups));
            let id = BenchmarkId::from_parameter(groups);
            group.bench_with_input(id, &groups, |bencher, groups| {
                let mut nodes = Nodes::new(*groups);
                bencher.iter_custom(|rounds| {
                    (0..rounds).map(|_| part(&nodes.commit_one_each())).sum()
                });
            });
        }
        group.finish();
    }
}

/// Records with one block each, put into a frame as a shard does it.
fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/assemble");
    for groups in [1, 64, 1024] {
        let message = Message::Append {
            term: Term(1),
            prev: LogPosition {
                term: Term(1),
                index: Index(6),
            },
            entries: EntryRange {
                term: Term(1),
                first: Index(7),
                end: Index(8),
            },
            commit: Index(6),
        };
        let mut block = BytesMut::new();
        let payload: &[u8] = &[7; 128];
        let entries = EntryRange {
            term: Term(1),
            first: Index(7),
            end: Index(8),
        };
        pack(
            &mut block,
            GroupId(1),
            entries,
            EntryKind::Normal,
            [payload],
        )
        .expect("the block is small");
        let mut frame = BytesMut::new();
        group.throughput(Throughput::Elements(groups));
        group.bench_function(BenchmarkId::from_parameter(groups), |bencher| {
            bencher.iter(|| {
                frame.clear();
                for group in 0..groups {
                    put_append(&mut frame, GroupId(group), black_box(&message), &block);
                }
                assert!(frame.len() > block.len() * groups as usize);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, turns, frames);
criterion_main!(benches);

//! Instructions that the hot functions take, counted by callgrind: the same in every run, however busy the machine is.
//!
//! Each count is held against the one that is stored here; a tenth above it the bench fails. Who makes a function cheaper, or
//! dearer for a reason, writes the new count down. It needs valgrind and gungraun-runner: docs/how-to/run-benches.md.

#![expect(
    missing_docs,
    unused_qualifications,
    reason = "the macros of gungraun write such code"
)]

#[path = "../../bench/benches/support/core.rs"]
mod core;
#[path = "../../bench/benches/support/nodes.rs"]
mod nodes;

use self::core::Cluster;
use self::nodes::Nodes;
use bytes::BytesMut;
use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use polyraft::sim::put_append;
use polyraft_raft::{EntryRange, GroupId, Index, LogPosition, Message, Term};
use polyraft_storage::{EntryBlock, EntryKind, pack};
use std::hint::black_box;

const PAYLOAD: &[u8] = &[7; 128];

/// Groups of the core's cluster, and records of a frame.
const GROUPS: u64 = 64;

/// Fails the bench when it takes a tenth more than `baseline` instructions: compilers and processors differ by less.
fn at_most(baseline: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, baseline + baseline / 10)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

fn range(count: u64) -> EntryRange {
    EntryRange {
        term: Term(1),
        first: Index(7),
        end: Index(7 + count),
    }
}

fn room() -> BytesMut {
    BytesMut::with_capacity(1 << 20)
}

fn block(count: u64) -> BytesMut {
    let mut block = room();
    let payloads = (0..count).map(|_| PAYLOAD);
    pack(
        &mut block,
        GroupId(1),
        range(count),
        EntryKind::Normal,
        payloads,
    )
    .expect("it is small");
    block
}

fn cluster(groups: u64) -> Cluster {
    let mut cluster = Cluster::new(groups);
    // Once around, so that every vector has its room.
    cluster.commit_one_each();
    cluster
}

fn nodes(groups: u64) -> Nodes {
    let mut nodes = Nodes::new(groups);
    nodes.commit_one_each();
    nodes
}

#[library_benchmark(config = at_most(1_961))]
#[bench::entries_16(room())]
fn pack_block(mut out: BytesMut) -> BytesMut {
    let payloads = (0..16).map(|_| PAYLOAD);
    let packed = pack(&mut out, GroupId(1), range(16), EntryKind::Normal, payloads);
    packed.expect("it is small");
    out
}

#[library_benchmark(config = at_most(1_477))]
#[bench::entries_16(block(16))]
fn parse_block(packed: BytesMut) -> usize {
    let block = EntryBlock::parse(black_box(&packed)).expect("it was packed above");
    block.entries().map(|(_, payload)| payload.len()).sum()
}

#[library_benchmark(config = at_most(369_758))]
#[bench::groups_64(cluster(GROUPS))]
fn commit_in_the_core(mut cluster: Cluster) -> Cluster {
    cluster.commit_one_each();
    cluster
}

#[library_benchmark(config = at_most(7_664))]
#[bench::records_64(room(), block(1))]
fn assemble_frame(mut frame: BytesMut, block: BytesMut) -> BytesMut {
    let message = Message::Append {
        term: Term(1),
        prev: LogPosition {
            term: Term(1),
            index: Index(6),
        },
        entries: range(1),
        commit: Index(6),
    };
    for group in 0..GROUPS {
        put_append(&mut frame, GroupId(group), black_box(&message), &block);
    }
    frame
}

#[library_benchmark(config = at_most(1_495_286))]
#[bench::groups_64(nodes(GROUPS))]
fn turns_of_three_nodes(mut nodes: Nodes) -> Nodes {
    nodes.commit_one_each();
    nodes
}

library_benchmark_group!(
    name = hot,
    benchmarks = [
        pack_block,
        parse_block,
        commit_in_the_core,
        assemble_frame,
        turns_of_three_nodes
    ]
);

main!(library_benchmark_groups = hot);

//! Owns the model of segments that are read, freed and used again by different threads.
//! Whatever the order: no file is prepared while somebody holds a slice of it, and each one is used again in the end.

use std::path::Path;
use std::sync::Arc;

use shuttle::thread;

use super::disk::ModelDisk;
use super::in_many_orders;
use crate::format::SegmentHeader;
use crate::options::WalOptions;
use crate::pool::{FoundSegments, Owner, Segments};

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 64 << 10,
        max_batch_bytes: 8 << 10,
        checkpoint_bytes: 64 << 10,
        pool_segments: 1,
        min_free_bytes: 0,
        ..WalOptions::default()
    }
}

/// A reader takes slices of whatever is live, another thread frees segments, a third prepares what is free.
fn segments_are_used_again_once_nobody_reads_them() {
    let disk = ModelDisk::new();
    let owner = Owner {
        lane: 0,
        store: 1,
        incarnation: 1,
    };
    let found = FoundSegments {
        live: Vec::new(),
        ready: Vec::new(),
        retired: Vec::new(),
        raw: Vec::new(),
        next_sequence: 1,
        next_slot: 0,
    };
    let segments = Arc::new(Segments::new(
        Arc::new(disk),
        Path::new("/lane").to_owned(),
        options(),
        owner,
        found,
    ));
    const LAST: u64 = 6;
    segments.activate().unwrap();
    segments.activate().unwrap();

    let reader = || {
        let segments = Arc::clone(&segments);
        thread::spawn(move || {
            for sequence in 1..=LAST {
                let Some(segment) = segments.get(sequence) else {
                    continue;
                };
                let slice = segment.read(0, 4096);
                drop(segment);
                thread::yield_now();
                let header = SegmentHeader::parse(&slice).unwrap();
                assert_eq!(
                    header.sequence, sequence,
                    "the slice changed under its reader"
                );
                let part = slice.slice(..68);
                drop(slice);
                (0..4).for_each(|_| thread::yield_now());
                drop(part);
            }
        })
    };
    let readers = [reader(), reader()];
    let tender = {
        let segments = Arc::clone(&segments);
        thread::spawn(move || {
            for _ in 0..3 * LAST {
                segments.tend().unwrap();
                thread::yield_now();
            }
        })
    };
    // The log goes on, in fresh segments or in those that were just freed.
    for sequence in 3..=LAST {
        segments.retire(&[sequence - 2]);
        let active = segments.activate().unwrap();
        assert_eq!(active.header.sequence, sequence);
    }
    for reader in readers {
        reader.join().unwrap();
    }
    tender.join().unwrap();
    // Nobody reads any more: everything that was retired is used again.
    for _ in 0..LAST {
        while segments.tend().unwrap() {}
        segments.activate().unwrap();
    }
    assert_eq!(segments.recycled(), LAST - 2);
}

#[test]
fn models_segments_are_used_again_once_nobody_reads_them() {
    in_many_orders(segments_are_used_again_once_nobody_reads_them);
}

#[cfg(polyraft_mutants)]
#[test]
fn a_segment_that_is_reused_under_its_reader_is_noticed() {
    use polyraft_raft::mutants::Mutant;

    super::notices(
        Mutant::ReadersIgnored,
        segments_are_used_again_once_nobody_reads_them,
    );
}

//! Owns checkpoints of more groups than fit into a slice. A checkpoint must never miss what changed while it was made.

use crate::driver::{Driver, options, read_all};
use crate::lives::found_twice;
use polyraft_raft::{EntryRange, GroupId, Index, Term};
use polyraft_storage::sim::model::{Op, voters};
use polyraft_storage::sim::{Keep, SimDisk};
use polyraft_storage::{EntryKind, WalMode, WalOptions};

/// A payload that no other entry has.
fn payload(unique: u64, bytes: usize) -> Vec<u8> {
    let mut payload = format!("{unique:08} ").into_bytes();
    payload.resize(bytes.max(9), b'a' + (unique % 26) as u8);
    payload
}

#[test]
fn a_checkpoint_is_written_in_slices_while_its_groups_change() {
    let disk = SimDisk::new(7);
    let options = WalOptions {
        segment_bytes: 1 << 20,
        checkpoint_bytes: 1 << 20,
        ..options(WalMode::Direct)
    };
    let mut driver = Driver::open(&disk, &options).unwrap();
    let groups = 1300;
    driver
        .run(&[(0..groups).map(Op::Create).collect()])
        .unwrap();
    let text = |unique: u64| vec![payload(unique, 20)];
    for round in 0..3 {
        assert!(driver.wal.request_checkpoint());
        let mut slices = 0;
        // Every slice is followed by changes of groups that are in it and of groups that are not.
        while driver.log.maintain().unwrap() {
            slices += 1;
            for group in (slices..groups).step_by(97) {
                let op = match group % 3 {
                    0 if driver.log.contains(GroupId(group)) => Op::Tombstone(group),
                    0 => Op::Create(group),
                    _ => Op::Append {
                        group,
                        term: 1,
                        payloads: text(round * 10_000 + group),
                    },
                };
                driver.apply(&op).unwrap();
            }
            driver
                .apply(&Op::Create(groups + 10 * round + slices))
                .unwrap();
            driver.submit().unwrap();
            if slices % 2 == 0 {
                driver.flush().unwrap();
            }
        }
        assert!(slices >= 2, "one slice held everything");
        driver.settle().unwrap();
        assert_eq!(driver.stats().checkpoints, round + 1);
        let again = Driver::open(&disk.after_power_cut(Keep::Nothing), &options).unwrap();
        assert_eq!(again.model, driver.model);
        assert!(again.report.batches < driver.stats().batches);
    }
}

#[test]
fn which_logs_ever_had_entries_of_sessions_is_remembered() {
    let disk = SimDisk::new(7);
    let mut driver = Driver::open(&disk, &options(WalMode::Direct)).unwrap();
    let kinds = [
        EntryKind::Normal,
        EntryKind::Session,
        EntryKind::Noop,
        EntryKind::Merge,
        EntryKind::Split,
    ];
    let groups = [1, 2, 3, 4, 5].map(GroupId);
    for (group, kind) in groups.into_iter().zip(kinds) {
        driver.log.create(group, &voters()).unwrap();
        let range = EntryRange {
            term: Term(1),
            first: Index(1),
            end: Index(2),
        };
        driver.log.append(group, range, kind, [b"entry"]).unwrap();
    }
    let check = |driver: &Driver| {
        let found = groups.map(|group| driver.log.has_sessions(group));
        assert_eq!(found, [false, true, false, true, true]);
    };
    check(&driver);
    // Also when none of them is left.
    driver.log.truncate(groups[1], Index(1)).unwrap();
    driver.submit().unwrap();
    driver.settle().unwrap();
    check(&driver);
    found_twice(&disk, check);
}

#[test]
fn the_blocks_of_one_group_are_moved_in_slices_while_it_is_purged() {
    let disk = SimDisk::new(9);
    let options = WalOptions {
        segment_bytes: 1 << 20,
        max_batch_bytes: 64 << 10,
        checkpoint_bytes: 8 << 20,
        ..options(WalMode::Direct)
    };
    let mut driver = Driver::open(&disk, &options).unwrap();
    let (small, large) = (1, 2);
    driver
        .run(&[[small, large].map(Op::Create).to_vec()])
        .unwrap();
    let append = |group, unique, bytes| Op::Append {
        group,
        term: 1,
        payloads: vec![payload(unique, bytes)],
    };
    for turn in 0..100 {
        for at in 0..20 {
            driver.apply(&append(small, 20 * turn + at, 20)).unwrap();
        }
        driver.apply(&append(large, turn, 30_000)).unwrap();
        driver.submit().unwrap();
        driver.flush().unwrap();
    }
    let purge = |group, through| Op::Purge { group, through };
    driver.apply(&purge(large, 100)).unwrap();
    driver.submit().unwrap();
    assert!(driver.wal.request_checkpoint());
    let (mut moved, mut slices) = (0, 0);
    let (mut is_purged, mut is_overtaken) = (false, false);
    loop {
        let has_flushed = driver.flush().unwrap();
        let more = driver.log.maintain().unwrap();
        let now = driver.stats().relocated;
        assert!(now - moved <= 256, "{} blocks in one slice", now - moved);
        slices += u64::from(now > moved);
        if !is_overtaken {
            assert_eq!(driver.log.is_patient(), now > 0 && more, "{now} moved");
        }
        moved = now;
        // There has been much log since: from here on the moving has no time.
        if slices == 4 && !is_overtaken {
            is_overtaken = driver.wal.request_checkpoint();
            assert!(is_overtaken && !driver.log.is_patient());
        }
        // What the next slices would have moved first is gone.
        if slices == 2 && !is_purged {
            is_purged = true;
            driver.apply(&purge(small, 700)).unwrap();
            driver.submit().unwrap();
        }
        if !more && !has_flushed && !driver.wal.tend().unwrap() {
            break;
        }
    }
    assert!(slices > 3, "{moved} blocks in {slices} slices");
    let live = driver.log.last(GroupId(small)).unwrap().0 - 700;
    assert!(moved > live && moved < live + 700, "{moved} of {live}");
    assert_eq!(read_all(&driver.log), driver.model);
    let again = Driver::open(&disk.after_power_cut(Keep::Nothing), &options).unwrap();
    assert_eq!(again.model, driver.model);
}

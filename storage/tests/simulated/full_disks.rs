//! Owns what happens when the disk has no room: turns are refused before anything is lost, a reserve is left for votes, and the log
//! goes on once there is room again.

use std::path::PathBuf;

use crate::driver::{Driver, append, options, read_all, segments};
use polyraft_raft::{EntryRange, GroupId, HardState, Index, NodeId, Term};
use polyraft_storage::sim::model::Op;
use polyraft_storage::sim::{Failure, Keep, KeepNames, SimDisk};
use polyraft_storage::{EntryKind, StorageError, WalMode, WalOptions};

const MODE: WalMode = WalMode::Direct;

#[test]
fn a_full_disk_refuses_turns_before_anything_is_lost() {
    let disk = SimDisk::new(1);
    disk.set_capacity(5 << 16);
    let options = WalOptions {
        checkpoint_bytes: 1 << 20,
        ..options(MODE)
    };
    let mut driver = Driver::open(&disk, &options).unwrap();
    driver.run(&[vec![Op::Create(1)]]).unwrap();
    let refused = (0..400)
        .find_map(|_| driver.run(&[vec![append(1, "entry")]]).err())
        .unwrap();
    assert!(
        matches!(refused, StorageError::DiskFull { needed, .. } if needed > 0),
        "{refused}"
    );
    assert!(driver.stats().disk_full && disk.used() <= 5 << 16);
    let acknowledged = driver.states[driver.acknowledged].clone();
    drop(driver);
    let mut driver = Driver::open(&disk, &options).unwrap();
    assert_eq!(driver.model, acknowledged);
    // Turns without entries still go through: votes, and the purges that make room.
    let last = driver.log.last(GroupId(1)).unwrap().0;
    driver
        .apply(&Op::Purge {
            group: 1,
            through: last - 1,
        })
        .unwrap();
    driver.submit().unwrap();
    // Nobody asks for a checkpoint: a full disk is a reason to make one.
    driver.settle().unwrap();
    driver.run(&[vec![append(1, "room again")]]).unwrap();
    let model = driver.model.clone();
    drop(driver);
    assert_eq!(Driver::open(&disk, &options).unwrap().model, model);
}

#[test]
fn who_stops_in_time_keeps_the_reserve_for_votes_and_first_entries_of_a_term() {
    let disk = SimDisk::new(1);
    disk.set_capacity(5 << 16);
    let mut driver = Driver::open(&disk, &options(MODE)).unwrap();
    driver.run(&[vec![Op::Create(1)]]).unwrap();
    assert_eq!(
        driver.log.room_for_entries(),
        None,
        "there is room on the disk"
    );
    while driver.log.room_for_entries().is_none_or(|room| room > 4096) {
        driver.run(&[vec![append(1, "entry")]]).unwrap();
    }
    let mut used = 0;
    for term in 2..7 {
        used += PAGE;
        let state = HardState {
            term: Term(term),
            vote: Some(NodeId(1)),
            commit: Index(0),
        };
        driver.log.hard_state(GroupId(1), state).unwrap();
        let first = driver.log.last(GroupId(1)).unwrap().next();
        let range = EntryRange {
            term: Term(term),
            first,
            end: first.next(),
        };
        driver
            .log
            .append(GroupId(1), range, EntryKind::Noop, [b""])
            .unwrap();
        driver.log.submit().unwrap().unwrap();
        assert!(driver.flush().unwrap(), "nothing of the turn was written");
    }
    let last = driver.log.last(GroupId(1)).unwrap();
    let term = vote_until_full(&mut driver, 7, &mut used);
    assert!(
        used >= options(MODE).segment_bytes / 2,
        "{used} bytes were kept"
    );
    drop(driver);
    let again = Driver::open(&disk.after_power_cut(Keep::Nothing), &options(MODE)).unwrap();
    assert_eq!(again.log.last(GroupId(1)), Some(last));
    assert_eq!(
        again.log.hard_state_of(GroupId(1)).unwrap().term,
        Term(term)
    );
}

/// What a small turn takes.
const PAGE: u64 = 4096;

/// Votes of group 1 in turns of their own, until one finds no room. Returns the term of the last that did, and adds what
/// they took to `used`.
fn vote_until_full(driver: &mut Driver, first: u64, used: &mut u64) -> u64 {
    for term in first.. {
        let state = HardState {
            term: Term(term),
            vote: Some(NodeId(1)),
            commit: Index(0),
        };
        driver.log.hard_state(GroupId(1), state).unwrap();
        match driver.log.submit() {
            Err(StorageError::DiskFull { .. }) => return term - 1,
            submitted => submitted.unwrap().unwrap(),
        };
        driver.flush().unwrap();
        *used += PAGE;
    }
    unreachable!("the disk is full at some time")
}

/// One block of one entry of `bytes` bytes.
fn block(group: u64, bytes: usize) -> Op {
    Op::Append {
        group,
        term: 1,
        payloads: vec![vec![group as u8; bytes]],
    }
}

/// Makes a turn durable and leaves everything else as it is.
fn write(driver: &mut Driver, turn: &[Op]) {
    turn.iter().for_each(|op| driver.apply(op).unwrap());
    driver.submit().unwrap();
    driver.flush().unwrap();
}

/// A checkpoint, and nothing of what it leads to.
fn checkpoint(driver: &mut Driver) {
    let before = driver.stats().checkpoints;
    assert!(driver.wal.request_checkpoint());
    while driver.stats().checkpoints == before {
        driver.log.maintain().unwrap();
        driver.flush().unwrap();
        driver.wal.tend().unwrap();
    }
}

#[test]
fn moved_blocks_leave_the_reserve_of_a_full_disk_alone() {
    let disk = SimDisk::new(1);
    let options = WalOptions {
        checkpoint_bytes: 1 << 20,
        ..options(MODE)
    };
    let mut driver = Driver::open(&disk, &options).unwrap();
    write(&mut driver, &[Op::Create(1), Op::Create(2)]);
    for at in 0..40 {
        write(&mut driver, &[block(1 + u64::from(at % 6 == 0), 6000)]);
    }
    let through = driver.log.last(GroupId(1)).unwrap().0;
    write(&mut driver, &[Op::Purge { group: 1, through }]);
    checkpoint(&mut driver);
    // Sparse segments wait to be emptied, and the disk takes no more than the files that it has.
    while driver.wal.tend().unwrap() {}
    disk.set_capacity(disk.used());
    while driver.log.room_for_entries().is_none_or(|room| room > PAGE) {
        write(&mut driver, &[append(1, "entry")]);
        while driver.wal.tend().unwrap() {}
    }
    let room = driver.log.room_for_entries();
    for _ in 0..9 {
        driver.log.maintain().unwrap();
        driver.flush().unwrap();
    }
    assert_eq!(driver.stats().relocated, 0);
    assert_eq!(driver.log.room_for_entries(), room);
    let mut used = 0;
    vote_until_full(&mut driver, 2, &mut used);
    assert!(used >= options.segment_bytes / 2, "{used} bytes were kept");
    // With room again, they are emptied.
    disk.set_capacity(u64::MAX);
    while driver.wal.tend().unwrap() {}
    driver.submit().unwrap();
    checkpoint(&mut driver);
    driver.settle().unwrap();
    assert!(driver.stats().relocated > 0);
}

#[test]
fn a_block_that_was_written_under_larger_limits_stays_where_it_is() {
    let disk = SimDisk::new(1);
    let large = WalOptions {
        checkpoint_bytes: 1 << 20,
        ..options(MODE)
    };
    let mut driver = Driver::open(&disk, &large).unwrap();
    write(&mut driver, &[1, 2, 3].map(Op::Create));
    write(&mut driver, &[block(1, 12_000)]);
    write(&mut driver, &[block(3, 10)]);
    for _ in 0..10 {
        write(&mut driver, &[block(2, 6000)]);
    }
    write(
        &mut driver,
        &[Op::Purge {
            group: 2,
            through: 10,
        }],
    );
    let model = driver.model.clone();
    drop(driver);
    let small = WalOptions {
        max_batch_bytes: 8 << 10,
        ..large
    };
    let mut driver = Driver::open(&disk, &small).unwrap();
    checkpoint(&mut driver);
    driver.settle().unwrap();
    assert_eq!(
        driver.stats().relocated,
        1,
        "the small block beside it moves"
    );
    assert_eq!(read_all(&driver.log), model);
    drop(driver);
    assert_eq!(Driver::open(&disk, &small).unwrap().model, model);
}

#[test]
fn a_refused_turn_is_taken_once_there_is_room() {
    let disk = SimDisk::new(1);
    disk.set_capacity(4 << 16);
    let mut driver = Driver::open(&disk, &options(MODE)).unwrap();
    driver.run(&[vec![Op::Create(1)]]).unwrap();
    while driver.run(&[vec![append(1, "entry")]]).is_ok() {}
    driver.apply(&append(1, "and one more")).unwrap();
    assert!(matches!(
        driver.submit(),
        Err(StorageError::DiskFull { .. })
    ));
    assert_eq!(
        read_all(&driver.log),
        driver.model,
        "what was refused can still be read"
    );
    disk.set_capacity(u64::MAX);
    while driver.wal.tend().unwrap() {}
    driver.submit().unwrap().unwrap();
    driver.flush().unwrap();
    let model = driver.model.clone();
    drop(driver);
    assert_eq!(Driver::open(&disk, &options(MODE)).unwrap().model, model);
}

/// Until the disk is short of room for a segment, and the background work knows it.
fn fill(driver: &mut Driver) {
    while driver.log.room_for_entries().is_none() {
        write(driver, &[append(1, "entry")]);
        driver.wal.tend().unwrap();
    }
}

#[test]
fn a_full_disk_has_its_checkpoint_written_before_a_turn_is_refused() {
    let disk = SimDisk::new(1);
    let options = WalOptions {
        segment_bytes: 256 << 10,
        checkpoint_bytes: 4 << 20,
        ..options(MODE)
    };
    let mut driver = Driver::open(&disk, &options).unwrap();
    // More than a slice of a section.
    let groups: Vec<Op> = (1..1300).map(Op::Create).collect();
    write(&mut driver, &groups);
    disk.set_capacity(disk.used() + (1 << 20));
    fill(&mut driver);
    // What the others leave for the checkpoint.
    disk.set_capacity(disk.used() + options.segment_bytes - 1);
    driver.wal.tend().unwrap();
    let mut slices = 1;
    driver.log.maintain().unwrap();
    while driver.log.is_urgent() {
        driver.log.maintain().unwrap();
        slices += 1;
    }
    assert!(slices > 1, "all of it at once would keep others waiting");
    while driver.submit().is_ok() {
        driver.flush().unwrap();
        driver.apply(&append(1, "one more")).unwrap();
    }
    assert_eq!(driver.stats().checkpoints, 0);
    for _ in 0..4 {
        driver.log.maintain().unwrap();
        driver.wal.tend().unwrap();
    }
    assert_eq!(driver.stats().checkpoints, 1);
    let kept = driver.states[driver.acknowledged].clone();
    drop(driver);
    let after = Driver::open(&disk.after_power_cut(Keep::Nothing), &options).unwrap();
    assert_eq!(after.model, kept);
}

#[test]
fn checkpoints_for_a_full_disk_pause_and_end_when_there_is_nothing_new() {
    let disk = SimDisk::new(1);
    let options = WalOptions {
        checkpoint_bytes: 4 << 20,
        ..options(MODE)
    };
    let mut driver = Driver::open(&disk, &options).unwrap();
    write(&mut driver, &[Op::Create(1)]);
    disk.set_capacity(5 << 16);
    fill(&mut driver);
    let look = |driver: &mut Driver, times: u32| {
        for _ in 0..times {
            driver.log.maintain().unwrap();
            driver.wal.tend().unwrap();
        }
        (driver.stats().checkpoints, driver.stats().disk_full)
    };
    // Not even a checkpoint has room.
    let free = (5 << 16) - disk.used();
    disk.set_capacity(disk.used());
    let through = driver.log.last(GroupId(1)).unwrap().0;
    write(&mut driver, &[Op::Purge { group: 1, through }]);
    assert_eq!(look(&mut driver, 1000), (0, true));
    // Somebody makes a little room, and nothing is written meanwhile.
    disk.set_capacity(disk.used() + free + 8192);
    assert_eq!(look(&mut driver, 200), (1, false));
    // Full again, but for checkpoints.
    disk.set_capacity(disk.used() + 8192);
    while driver.log.room_for_entries().is_none_or(|room| room > PAGE) {
        write(&mut driver, &[append(1, "entry")]);
        driver.wal.tend().unwrap();
    }
    let (before, _) = look(&mut driver, 300);
    assert_eq!(look(&mut driver, 1000), (before, true));
    let state = |term| HardState {
        term: Term(term),
        vote: None,
        commit: Index(0),
    };
    let mut vote = |term: u64| {
        driver.log.hard_state(GroupId(1), state(term)).unwrap();
        driver.log.submit().unwrap();
        driver.flush().unwrap();
        look(&mut driver, 20).0
    };
    // The first one has its checkpoint at once.
    let votes: Vec<u64> = (2..8).map(|term| vote(term) - before).collect();
    assert_eq!(votes, [1, 1, 1, 1, 1, 2]);
}

#[test]
fn a_preparation_that_was_cut_short_does_not_need_its_room_twice() {
    let disk = SimDisk::new(1);
    let mut driver = Driver::open(&disk, &options(MODE)).unwrap();
    write(&mut driver, &[Op::Create(1)]);
    disk.set_capacity(disk.used() + options(MODE).segment_bytes);
    disk.record_images();
    assert!(driver.wal.tend().unwrap());
    let mut images = disk.take_images();
    assert!(images.len() >= 4, "{}", images.len());
    images.push(disk);
    for (at, image) in images.iter().enumerate() {
        for keep in [Keep::Nothing, Keep::Everything, Keep::OddPages] {
            for names in [KeepNames::Nothing, KeepNames::Everything] {
                let disk = image.after_power_cut_with(keep, names);
                let driver = Driver::open(&disk, &options(MODE)).unwrap();
                while driver.wal.tend().unwrap() {}
                assert!(!driver.stats().disk_full, "before operation {at}");
                assert_eq!(segments(&disk).len(), 2);
            }
        }
    }
}

#[test]
fn a_log_goes_on_while_the_process_has_too_many_open_files() {
    let disk = SimDisk::new(1);
    let mut driver = Driver::open(&disk, &options(MODE)).unwrap();
    disk.fail_opens(Failure::Once);
    assert!(!driver.wal.tend().unwrap() && driver.wal.must_tend_again());
    write(&mut driver, &[Op::Create(1)]);
    // The file that could not be opened is the one that is prepared next.
    while driver.wal.tend().unwrap() {}
    assert!(!driver.wal.must_tend_again());
    assert_eq!(segments(&disk).len(), 2);
    driver.run(&vec![vec![append(1, "entry")]; 40]).unwrap();
    // Only when there is no segment left to write to, nothing else is possible.
    disk.fail_opens(Failure::Lasting);
    let taken = (0..400)
        .find(|_| driver.wal.tend().is_ok() && driver.run(&[vec![append(1, "more")]]).is_err());
    assert!(taken.is_some_and(|turns| turns > 5), "{taken:?}");
    let kept = driver.states[driver.acknowledged].clone();
    drop(driver);
    let after = Driver::open(&disk.after_power_cut(Keep::Nothing), &options(MODE)).unwrap();
    assert_eq!(after.model, kept);
}

/// There may be no more log for a long time, and the next start would read all that there is.
#[test]
fn a_checkpoint_that_has_no_room_is_made_once_it_has() {
    let disk = SimDisk::new(1);
    let mut driver = Driver::open(&disk, &options(MODE)).unwrap();
    write(&mut driver, &[Op::Create(1), append(1, "entry")]);
    while driver.wal.tend().unwrap() {}
    let look = |driver: &mut Driver, times: u32| {
        for _ in 0..times {
            driver.log.maintain().unwrap();
            driver.wal.tend().unwrap();
        }
        (driver.stats().checkpoints, driver.wal.must_tend_again())
    };
    disk.set_capacity(disk.used());
    assert!(driver.wal.request_checkpoint());
    assert_eq!(look(&mut driver, 300), (0, true));
    let is_part = |path: &PathBuf| path.extension().is_some_and(|it| it == "tmp");
    assert!(!disk.files().iter().any(is_part));
    disk.set_capacity(disk.used() + 8192);
    assert_eq!(look(&mut driver, 300), (1, false));
}

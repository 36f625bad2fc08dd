//! Owns what happens when the disk misbehaves: rot, torn tails, failed syncs, no space, foreign and stale bytes.
//! Each fault must be found, named and confined, and must cost nothing that was acknowledged.

use std::path::Path;
use std::sync::Arc;

use crate::driver::{Driver, PATH, append, options, read_all, segments};
use parking_lot::Mutex;
use polyraft_raft::{EntryRange, GroupId, HardState, Index, Life, LogPosition, NodeId, Term};
use polyraft_storage::sim::model::{Model, Op, voters};
use polyraft_storage::sim::{Keep, SimDisk};
use polyraft_storage::{
    Blocks, DataDir, Disk, Durable, EntryKind, ReadError, StorageError, Tombstone, WalMode,
    WalObserver, WalOptions, inspect, open,
};
use proptest::prelude::*;

const MODE: WalMode = WalMode::Direct;
const BATCH_MAGIC: &[u8] = b"PRBT";

/// One batch per turn: two groups are created, then each gets entries in turns of their own.
fn small_log(disk: &SimDisk) -> Driver {
    let mut driver = Driver::open(disk, &options(MODE)).unwrap();
    let mut turns = vec![vec![Op::Create(1), Op::Create(2)]];
    for at in 0..4 {
        turns.push(vec![append(1, &format!("one-{at}"))]);
        turns.push(vec![append(2, &format!("two-{at}"))]);
    }
    driver.run(&turns).unwrap();
    driver
}

/// Changes one byte where `text` stands in a segment.
pub fn rot_at(disk: &SimDisk, text: &[u8], skip: usize) {
    let mut hits = 0;
    for path in segments(disk) {
        disk.damage(&path, |bytes| {
            let places: Vec<usize> = bytes
                .windows(text.len())
                .enumerate()
                .filter(|(_, at)| *at == text)
                .map(|(at, _)| at)
                .collect();
            for place in places {
                if hits == skip {
                    bytes[place] ^= 0x40;
                }
                hits += 1;
            }
        });
    }
    assert!(hits > skip, "{text:?} is not in the log");
}

pub fn data_dir(disk: &SimDisk) -> DataDir {
    DataDir::open(Arc::new(disk.clone()), PATH, "test", NodeId(1), 1).unwrap()
}

fn reopen(disk: &SimDisk) -> Result<Driver, StorageError> {
    let dir = DataDir::open(Arc::new(disk.clone()), PATH, "test", NodeId(1), 1)?;
    drop(dir);
    Driver::open(disk, &options(MODE))
}

fn fault_of(disk: &SimDisk, group: u64) -> (Option<String>, Option<String>) {
    let dir = DataDir::open(Arc::new(disk.clone()), PATH, "test", NodeId(1), 1).unwrap();
    let opened = open(&dir, &options(MODE), 1).unwrap();
    let fault = |group| {
        opened.logs[0]
            .groups()
            .find(|found| found.group == GroupId(group))
            .unwrap()
            .fault
    };
    (fault(group), fault(3 - group))
}

#[test]
fn an_unfinished_batch_at_the_end_is_cut_and_reported() {
    let disk = SimDisk::new(1);
    let driver = small_log(&disk);
    let states = driver.states.clone();
    drop(driver);
    rot_at(&disk, b"two-3", 0);
    let driver = reopen(&disk).unwrap();
    assert_eq!(driver.report.torn_tail.len(), 1, "{:?}", driver.report);
    assert_eq!(driver.model, states[states.len() - 2]);
    drop(driver);
    // It was erased: the next open finds a clean end.
    assert!(reopen(&disk).unwrap().report.torn_tail.is_empty());
}

#[test]
fn a_clean_stop_proves_the_last_batch() {
    let disk = SimDisk::new(1);
    let driver = small_log(&disk);
    driver.wal.close().unwrap();
    drop(driver);
    rot_at(&disk, b"two-3", 0);
    assert!(fault_of(&disk, 2).0.unwrap().contains("checksum"));
}

#[test]
fn rot_in_the_middle_faults_its_group_for_good_and_spares_the_others() {
    let disk = SimDisk::new(1);
    drop(small_log(&disk));
    rot_at(&disk, b"one-1", 0);
    let damage = inspect::verify_on(Arc::new(disk.clone()), Path::new(PATH)).unwrap_err();
    assert!(
        damage.segment.is_some() && damage.offset > 4096 && damage.reason.contains("g1: "),
        "{damage}"
    );
    for _ in 0..2 {
        let (fault, other) = fault_of(&disk, 1);
        assert!(fault.unwrap().contains("checksum"));
        assert_eq!(other, None);
    }
    // A checkpoint carries the fault on.
    let dir = DataDir::open(Arc::new(disk.clone()), PATH, "test", NodeId(1), 1).unwrap();
    let mut opened = open(&dir, &options(MODE), 1).unwrap();
    assert_eq!(opened.report.rotten.len(), 1);
    assert_eq!(opened.report.rotten[0].group, GroupId(1));
    assert!(opened.wals[0].request_checkpoint());
    while opened.logs[0].maintain().unwrap() || opened.wals[0].tend().unwrap() {}
    assert_eq!(opened.wals[0].stats().checkpoints, 1);
    drop((opened, dir));
    assert!(fault_of(&disk, 1).0.is_some());
    // Removing the group and beginning again lifts it.
    let dir = DataDir::open(Arc::new(disk.clone()), PATH, "test", NodeId(1), 1).unwrap();
    let mut opened = open(&dir, &options(MODE), 1).unwrap();
    let over = Tombstone::destroyed(Life::FIRST);
    opened.logs[0].tombstone(GroupId(1), over).unwrap();
    opened.logs[0].create(GroupId(1), &voters()).unwrap();
    opened.logs[0].submit().unwrap();
    while opened.wals[0].pump().unwrap() {}
    drop((opened, dir));
    assert_eq!(fault_of(&disk, 1), (None, None));
}

#[test]
fn rot_that_cannot_be_attributed_is_refused_with_its_position() {
    // The header of a record, and the header of a batch, with durable batches behind them.
    for (text, skip) in [(&b"PB"[..], 1), (BATCH_MAGIC, 3)] {
        let disk = SimDisk::new(1);
        drop(small_log(&disk));
        rot_at(&disk, text, skip);
        let error = Driver::open(&disk, &options(MODE)).err().unwrap();
        assert!(
            matches!(&error, StorageError::Damaged { offset, .. } if *offset > 4096),
            "{error}"
        );
        // It was not cut: a second look finds the same.
        let again = Driver::open(&disk, &options(MODE)).err().unwrap();
        assert_eq!(error.to_string(), again.to_string());
    }
}

#[test]
fn rot_at_the_end_of_a_full_segment_is_no_end_of_the_log() {
    let disk = SimDisk::new(1);
    let options = WalOptions {
        checkpoint_bytes: 1 << 20,
        ..options(MODE)
    };
    let mut driver = Driver::open(&disk, &options).unwrap();
    driver.run(&[vec![Op::Create(1)]]).unwrap();
    let turns: Vec<_> = (0..18)
        .map(|at| vec![append(1, &format!("more-{at:02}"))])
        .collect();
    driver.run(&turns).unwrap();
    assert_eq!(driver.stats().segments, 2);
    drop(driver);
    // Batch 15 is the last that fits into the first segment.
    rot_at(&disk, BATCH_MAGIC, 14);
    let error = Driver::open(&disk, &options).err().unwrap();
    assert!(error.to_string().contains("batch 15 is missing"), "{error}");
}

#[test]
fn a_damaged_segment_header_or_checkpoint_is_refused() {
    let disk = SimDisk::new(1);
    let mut driver = small_log(&disk);
    assert!(driver.wal.request_checkpoint());
    driver.settle().unwrap();
    drop(driver);
    for path in disk.files() {
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.ends_with(".seg") && name != "checkpoint" {
            continue;
        }
        let disk = disk.after_power_cut(Keep::Everything);
        disk.damage(&path, |bytes| bytes[20] ^= 1);
        let error = Driver::open(&disk, &options(MODE)).err().unwrap();
        assert!(
            matches!(&error, StorageError::Damaged { path: at, .. } if *at == path),
            "{error}"
        );
    }
    // A header page that reads as zeros looks like a file that was never used, but for the log in it.
    let path = segments(&disk)[0].clone();
    disk.damage(&path, |bytes| bytes[..4096].fill(0));
    assert!(matches!(
        Driver::open(&disk, &options(MODE)),
        Err(StorageError::Damaged { .. })
    ));
}

#[test]
fn a_log_that_lost_its_only_header_is_not_an_empty_one() {
    let disk = SimDisk::new(1);
    let mut driver = Driver::open(&disk, &options(MODE)).unwrap();
    driver.apply(&Op::Create(1)).unwrap();
    driver.submit().unwrap();
    driver.flush().unwrap();
    drop(driver);
    // Nobody had the time to prepare a second one.
    let [path] = &segments(&disk)[..] else {
        panic!("one segment is there")
    };
    disk.damage(path, |bytes| bytes[..4096].fill(0));
    let error = Driver::open(&disk, &options(MODE)).err().unwrap();
    assert!(error.to_string().contains("lost its header"), "{error}");
}

/// As when a device was not mounted. With nothing in its log a node would vote again in the terms in which it voted.
#[test]
fn a_lane_that_peers_have_seen_and_that_is_empty_is_refused() {
    for lanes in [1, 2] {
        for lost in 0..lanes {
            let disk = SimDisk::new(1);
            let options = WalOptions {
                lanes,
                ..options(MODE)
            };
            let open_all = |disk: &SimDisk| {
                let disk = Arc::new(disk.clone());
                let dir = DataDir::open(disk, PATH, "test", NodeId(1), lanes)?;
                Ok::<_, StorageError>((open(&dir, &options, lanes)?, dir))
            };
            let remove_lane = |disk: &SimDisk| {
                let lane = Path::new(PATH).join("wal").join(lost.to_string());
                let files = disk.files().into_iter();
                for file in files.filter(|file| file.starts_with(&lane)) {
                    disk.remove(&file).unwrap();
                }
                lane
            };
            // Until a peer may know of it, a log may begin anew.
            drop(open_all(&disk).unwrap());
            remove_lane(&disk);
            let (mut opened, dir) = open_all(&disk).unwrap();
            dir.show().unwrap();
            for (wal, log) in opened.wals.iter().zip(&mut opened.logs) {
                let mut own = (1..).map(GroupId);
                let group = own.find(|group| polyraft_raft::shard_of(*group, lanes) == wal.lane());
                let group = group.unwrap();
                log.create(group, &voters()).unwrap();
                let state = HardState {
                    term: Term(3),
                    vote: Some(NodeId(2)),
                    commit: Index(0),
                };
                log.hard_state(group, state).unwrap();
                log.submit().unwrap();
                while wal.pump().unwrap() {}
            }
            drop((opened, dir));
            drop(open_all(&disk).unwrap());
            let lane = remove_lane(&disk);
            for _ in 0..2 {
                let error = open_all(&disk).err().unwrap();
                assert!(
                    matches!(&error, StorageError::Damaged { path, .. } if *path == lane),
                    "{error}"
                );
                assert!(error.to_string().contains("mount"), "{error}");
            }
            assert!(inspect::verify_on(Arc::new(disk), Path::new(PATH)).is_err());
        }
    }
}

#[test]
fn a_segment_of_another_store_is_refused() {
    let (disk, other) = (SimDisk::new(1), SimDisk::new(2));
    drop(small_log(&disk));
    drop(small_log(&other));
    let path = segments(&disk)[0].clone();
    let mut foreign = Vec::new();
    other.damage(&path, |bytes| foreign.clone_from(bytes));
    disk.damage(&path, |bytes| bytes.clone_from(&foreign));
    let error = Driver::open(&disk, &options(MODE)).err().unwrap();
    assert!(
        error.to_string().contains("another data directory"),
        "{error}"
    );
}

#[test]
fn stale_batches_of_a_recycled_segment_are_not_read() {
    let disk = SimDisk::new(3);
    let mut driver = Driver::open(&disk, &options(MODE)).unwrap();
    driver.run(&[vec![Op::Create(1)]]).unwrap();
    let mut through = 0;
    while driver.stats().recycled < 6 {
        through += 2;
        let turn = vec![append(1, "entry"), Op::Purge { group: 1, through }];
        driver.run(&[turn]).unwrap();
    }
    let model = driver.model.clone();
    drop(driver);
    let stale = segments(&disk)
        .iter()
        .filter(|path| has_stale_batch(&disk, path))
        .count();
    assert!(stale > 0, "no segment holds batches of an earlier use");
    let driver = Driver::open(&disk.after_power_cut(Keep::Nothing), &options(MODE)).unwrap();
    assert_eq!(driver.model, model);
    assert!(driver.report.torn_tail.is_empty());
}

#[test]
fn a_batch_with_the_salt_of_another_segment_is_not_read() {
    let disk = SimDisk::new(1);
    let driver = small_log(&disk);
    drop(driver);
    // Batch 9, the last one, moves to where the log would go on in the next segment.
    let files = segments(&disk);
    let mut page = Vec::new();
    disk.damage(&files[0], |bytes| {
        page = bytes[9 * 4096..10 * 4096].to_vec();
        bytes[9 * 4096..10 * 4096].fill(0);
    });
    assert!(page.starts_with(BATCH_MAGIC));
    disk.damage(&files[1], |bytes| bytes[4096..8192].copy_from_slice(&page));
    // It is needed, and what it was written under is lost.
    let error = reopen(&disk).err().unwrap();
    assert!(error.to_string().contains("an earlier use"), "{error}");
}

fn has_stale_batch(disk: &SimDisk, path: &Path) -> bool {
    let mut stale = false;
    disk.damage(path, |bytes| {
        let salt = bytes[40..48].to_vec();
        stale = bytes
            .chunks(4096)
            .skip(1)
            .any(|page| page.starts_with(BATCH_MAGIC) && page[8..16] != salt);
    });
    stale
}

#[derive(Default)]
struct Failures(Mutex<Vec<String>>);

impl WalObserver for Failures {
    fn durable(&self, _: &Durable) {}
    fn failed(&self, error: &StorageError) {
        self.0.lock().push(error.to_string());
    }
    fn maintain(&self) {}
}

#[test]
fn the_first_failed_sync_closes_the_log() {
    for mode in [WalMode::Direct, WalMode::Mapped] {
        let disk = SimDisk::new(1);
        let mut driver = Driver::open(&disk, &options(mode)).unwrap();
        let failures = Arc::new(Failures::default());
        driver.wal.observe(failures.clone());
        driver
            .run(&[vec![Op::Create(1)], vec![append(1, "kept")]])
            .unwrap();
        let durable = driver.wal.durable();
        disk.fail_sync_at(disk.operations());
        driver.apply(&append(1, "lost")).unwrap();
        driver.submit().unwrap();
        assert!(matches!(driver.flush(), Err(StorageError::Poisoned { .. })));
        assert_eq!(driver.wal.durable(), durable);
        assert_eq!(failures.0.lock().len(), 1);
        // The disk would take a second sync; the log does not ask it.
        driver.apply(&append(1, "after")).unwrap();
        for _ in 0..2 {
            assert!(matches!(
                driver.submit(),
                Err(StorageError::Poisoned { .. })
            ));
            assert!(matches!(
                driver.wal.pump(),
                Err(StorageError::Poisoned { .. })
            ));
        }
        assert_eq!(failures.0.lock().len(), 1);
        let kept = driver.states[driver.acknowledged].clone();
        drop(driver);
        let after = Driver::open(&disk.after_power_cut(Keep::Nothing), &options(mode)).unwrap();
        assert_eq!(after.model, kept);
    }
}

#[test]
fn an_open_log_cannot_be_opened_or_inspected() {
    let disk = SimDisk::new(1);
    let driver = small_log(&disk);
    assert!(matches!(
        Driver::open(&disk, &options(MODE)),
        Err(StorageError::Locked { .. })
    ));
    let damage = inspect::verify_on(Arc::new(disk.clone()), Path::new(PATH)).unwrap_err();
    assert!(damage.reason.contains("stop it first"), "{damage}");
    drop(driver);
    let report = inspect::verify_on(Arc::new(disk.clone()), Path::new("/data/wal")).unwrap();
    assert_eq!((report.groups, report.blocks), (2, 8));
    let mut text = Vec::new();
    inspect::dump_on(Arc::new(disk), Path::new(PATH), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("create life 0 voters n1,n2,n3") && text.contains("entries 1..3 t1"),
        "{text}"
    );
}

#[test]
fn the_segment_size_may_change_from_open_to_open() {
    let disk = SimDisk::new(1);
    let driver = small_log(&disk);
    while driver.wal.tend().unwrap() {}
    drop(driver);
    for round in 0..6u32 {
        let options = WalOptions {
            segment_bytes: (64 << 10) << (round % 3),
            checkpoint_bytes: 256 << 10,
            pool_segments: 3,
            ..options(MODE)
        };
        let mut driver = Driver::open(&disk, &options).unwrap();
        let turns: Vec<_> = (0..40)
            .map(|at| vec![append(1, &format!("{round} {at}"))])
            .collect();
        // Some rounds end before the pool was put in order.
        driver.run(&turns[..10 + 5 * round as usize]).unwrap();
        let model = driver.model.clone();
        drop(driver);
        let disk = disk.after_power_cut(Keep::Nothing);
        assert_eq!(Driver::open(&disk, &options).unwrap().model, model);
    }
}

#[test]
fn prepared_segments_that_were_never_used_do_not_end_the_log() {
    let disk = SimDisk::new(1);
    drop(small_log(&disk));
    // The prepared segment has the wrong size now, and there was no time to remove it before the next one was needed.
    let options = WalOptions {
        segment_bytes: 128 << 10,
        checkpoint_bytes: 1 << 20,
        ..options(MODE)
    };
    let mut driver = Driver::open(&disk, &options).unwrap();
    while driver.stats().segments < 2 {
        driver.apply(&append(1, "entry")).unwrap();
        driver.submit().unwrap();
        driver.flush().unwrap();
    }
    let model = driver.model.clone();
    drop(driver);
    let driver = Driver::open(&disk.after_power_cut(Keep::Nothing), &options).unwrap();
    assert_eq!(driver.model, model);
}

#[test]
fn a_block_that_is_too_large_is_refused_and_leaves_no_trace() {
    let disk = SimDisk::new(1);
    let mut driver = small_log(&disk);
    let limit = driver.log.max_block_bytes();
    let too_large = Op::Append {
        group: 1,
        term: 1,
        payloads: vec![vec![0; limit]],
    };
    assert!(matches!(
        driver.apply(&too_large),
        Err(StorageError::TooLarge { .. })
    ));
    driver
        .run(&[vec![Op::Append {
            group: 1,
            term: 1,
            payloads: vec![vec![7; limit - 48]],
        }]])
        .unwrap();
    let model = driver.model.clone();
    drop(driver);
    assert_eq!(Driver::open(&disk, &options(MODE)).unwrap().model, model);
}

#[test]
fn ten_thousand_groups_in_one_turn() {
    let disk = SimDisk::new(1);
    let mut options = options(MODE);
    options.segment_bytes = 1 << 20;
    options.checkpoint_bytes = 1 << 20;
    let mut driver = Driver::open(&disk, &options).unwrap();
    for group in 0..10_000 {
        driver.log.create(GroupId(group), &voters()).unwrap();
    }
    driver.log.submit().unwrap().unwrap();
    driver.settle().unwrap();
    let model = read_all(&driver.log);
    assert!(driver.stats().batches > 10 && model.len() == 10_000);
    drop(driver);
    assert_eq!(read_all(&Driver::open(&disk, &options).unwrap().log), model);
}

#[test]
fn blocks_are_read_wherever_they_are() {
    let disk = SimDisk::new(1);
    let mut driver = small_log(&disk);
    let range = EntryRange {
        term: Term(2),
        first: Index(9),
        end: Index(12),
    };
    driver
        .log
        .append(GroupId(1), range, EntryKind::Normal, ["a", "b", "c"])
        .unwrap();
    let read = |driver: &Driver| -> Blocks {
        let mut blocks = Blocks::default();
        assert_eq!(
            driver
                .log
                .blocks(GroupId(1), Index(8), Index(11), u64::MAX, &mut blocks),
            Ok(Index(11))
        );
        blocks
    };
    // In the turn buffer, in the open batch, on disk.
    let in_turn = read(&driver);
    assert_eq!(in_turn.get(1).entry(Index(10)), b"b");
    driver.log.submit().unwrap();
    assert!(read(&driver).iter().eq(in_turn.iter()));
    driver.flush().unwrap();
    assert!(read(&driver).iter().eq(in_turn.iter()));
    // A truncation inside the block hides its end from then on.
    driver.log.truncate(GroupId(1), Index(11)).unwrap();
    assert_eq!(read(&driver).get(1).end(), Index(11));
    // A block that somebody holds outlives the purge of its group.
    driver
        .log
        .purge(
            GroupId(1),
            LogPosition {
                term: Term(2),
                index: Index(10),
            },
        )
        .unwrap();
    let error = driver
        .log
        .blocks(GroupId(1), Index(8), Index(11), 1, &mut Blocks::default())
        .unwrap_err();
    assert!(matches!(error, ReadError::OutOfRange { .. }), "{error}");
    assert_eq!(in_turn.get(1).entry(Index(11)), b"c");
}

#[test]
fn an_extent_ends_between_blocks_and_holds_at_least_one_entry() {
    let disk = SimDisk::new(1);
    // Four blocks of two entries and 64 bytes each.
    let driver = small_log(&disk);
    let extent = |first, end, bytes| {
        let (end, bytes) = driver
            .log
            .extent(GroupId(1), Index(first), Index(end), bytes);
        (end.0, bytes)
    };
    assert_eq!(extent(1, 9, 1 << 20), (9, 4 * 64));
    assert_eq!(extent(1, 9, 2 * 64 + 63), (5, 2 * 64));
    assert_eq!(extent(1, 9, 1).0, 2);
    assert_eq!(extent(2, 9, 2 * 64).0, 5);
    assert_eq!(extent(2, 4, 1 << 20).0, 4);
    assert_eq!(extent(9, 9, 1 << 20), (9, 0));
    assert_eq!(extent(1, 10, 1 << 20), (1, 0));
}

#[test]
fn rot_is_found_when_a_block_is_read_long_after() {
    let disk = SimDisk::new(1);
    let mut driver = small_log(&disk);
    assert!(driver.wal.request_checkpoint());
    driver.settle().unwrap();
    drop(driver);
    rot_at(&disk, b"one-1", 0);
    // The checkpoint spares the recovery from reading it.
    let dir = DataDir::open(Arc::new(disk.clone()), PATH, "test", NodeId(1), 1).unwrap();
    let opened = open(&dir, &options(MODE), 1).unwrap();
    let error = opened.logs[0]
        .blocks(
            GroupId(1),
            Index(1),
            Index(9),
            u64::MAX,
            &mut Blocks::default(),
        )
        .unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    // Who does not wait for the disk finds it when somebody does.
    let mut unread = Blocks::default();
    let (first, end) = (Index(1), Index(9));
    let reached = opened.logs[0].blocks_unread(GroupId(1), first, end, u64::MAX, &mut unread);
    assert_eq!(reached, Ok(end));
    assert!((0..unread.len()).all(|at| unread.is_unread(at)));
    assert_eq!(unread.check(0..unread.len()), Err(error.clone()));
    let rotten = (0..unread.len()).find(|at| unread.check(*at..at + 1).is_err());
    let rotten = rotten.expect("one of them");
    assert_eq!(unread.check(0..rotten), Ok(()));
    unread.truncate(rotten);
    assert_eq!(unread.check(0..unread.len()), Ok(()));
    drop((unread, opened, dir));
    assert!(inspect::verify_on(Arc::new(disk), Path::new(PATH)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever stands in the files, opening ends with an error or a log, never with a panic.
    #[test]
    fn arbitrary_damage_never_panics(
        changes in proptest::collection::vec((0usize..8, 0usize..40_000, any::<u8>()), 1..12), fill in 0usize..3,
    ) {
        let disk = SimDisk::new(1);
        let mut driver = small_log(&disk);
        let states: Vec<Model> = driver.states.clone();
        prop_assert!(driver.wal.request_checkpoint());
        driver.settle().unwrap();
        driver.run(&[vec![append(1, "behind the checkpoint")]]).unwrap();
        drop(driver);
        let files = disk.files();
        for (file, offset, value) in changes {
            let path = &files[file % files.len()];
            disk.damage(path, |bytes| {
                let Some(length) = bytes.len().checked_sub(1).filter(|length| *length > 0) else { return };
                let offset = offset % length;
                match fill {
                    0 => bytes[offset] = value,
                    1 => bytes[offset..].iter_mut().take(700).for_each(|byte| *byte = value),
                    _ => bytes.truncate(offset),
                }
            });
        }
        let dir = DataDir::open(Arc::new(disk.clone()), PATH, "test", NodeId(1), 1);
        if let Ok(dir) = dir && let Ok(opened) = open(&dir, &options(MODE), 1) {
            for group in opened.logs[0].groups().filter(|group| group.fault.is_none()) {
                let read = opened.logs[0].blocks(group.group, group.base.index.next(), group.last.next(), u64::MAX, &mut Blocks::default());
                let damaged = matches!(read, Err(ReadError::Damaged { .. }));
                prop_assert!(read.is_ok() || damaged);
            }
        }
        prop_assert!(states.len() > 1);
    }
}

//! Owns what the log keeps of replicas that ended: tombstones, and the lives of a group's id.
//! An opening, with or without a checkpoint, must find exactly what was durable.

use polyraft_raft::{GroupId, HardState, Index, Life, NodeId, Term};
use polyraft_storage::sim::model::voters;
use polyraft_storage::sim::{Keep, SimDisk};
use polyraft_storage::{Creation, Ending, StorageError, Tombstone, WalMode};

use crate::driver::{Driver, options};

const GROUP: GroupId = GroupId(7);

fn life(number: u32) -> Life {
    Life::new(number).unwrap()
}

fn settle(driver: &mut Driver) {
    driver.submit().unwrap();
    driver.settle().unwrap();
}

fn reopened(disk: &SimDisk) -> Driver {
    Driver::open(
        &disk.after_power_cut(Keep::Nothing),
        &options(WalMode::Direct),
    )
    .unwrap()
}

/// What an opening finds, and what it finds again after a checkpoint.
pub fn found_twice(disk: &SimDisk, check: impl Fn(&Driver)) {
    let after = disk.after_power_cut(Keep::Nothing);
    let mut driver = Driver::open(&after, &options(WalMode::Direct)).unwrap();
    check(&driver);
    assert!(driver.wal.request_checkpoint());
    driver.settle().unwrap();
    assert_eq!(driver.stats().checkpoints, 1);
    drop(driver);
    check(&reopened(&after));
}

#[test]
fn a_life_goes_on_where_the_tombstone_before_it_allows() {
    let disk = SimDisk::new(1);
    let mut driver = Driver::open(&disk, &options(WalMode::Direct)).unwrap();
    let log = &mut driver.log;
    let removed = Tombstone {
        life: life(2),
        ending: Ending::Removed,
        term: Term(9),
        vote: Some(NodeId(3)),
        at: Index(40),
    };
    log.tombstone(GROUP, removed).unwrap();
    // One that says less changes nothing.
    log.tombstone(GROUP, Tombstone::destroyed(life(1))).unwrap();
    assert_eq!(log.tombstone_of(GROUP), Some(removed));
    settle(&mut driver);
    found_twice(&disk, |driver| {
        assert_eq!(driver.log.tombstone_of(GROUP), Some(removed));
        assert!(!driver.log.contains(GROUP));
    });

    let back = Creation {
        life: life(2),
        joined: Index::ZERO,
        is_witness: false,
        configuration: voters(),
    };
    let earlier = Creation::founding(life(1), voters());
    assert!(matches!(
        driver.log.begin(GROUP, earlier),
        Err(StorageError::LifeIsOver { over, .. }) if over == life(2)
    ));
    driver.log.begin(GROUP, back).unwrap();
    settle(&mut driver);
    let promised = HardState {
        term: Term(9),
        vote: Some(NodeId(3)),
        commit: Index::ZERO,
    };
    found_twice(&disk, |driver| {
        let found = driver.log.groups().next().unwrap();
        assert_eq!((found.life, found.joined), (life(2), Index(40)));
        assert_eq!(
            found.removed_in,
            Term(9),
            "from the log and from a checkpoint"
        );
        assert_eq!(found.hard_state, promised);
    });
}

#[test]
fn the_next_life_of_a_destroyed_group_remembers_nothing() {
    let disk = SimDisk::new(1);
    let mut driver = Driver::open(&disk, &options(WalMode::Direct)).unwrap();
    driver.log.create(GROUP, &voters()).unwrap();
    let state = HardState {
        term: Term(4),
        vote: Some(NodeId(2)),
        commit: Index::ZERO,
    };
    driver.log.hard_state(GROUP, state).unwrap();
    driver
        .log
        .tombstone(GROUP, Tombstone::destroyed(Life::FIRST))
        .unwrap();
    let again = Creation::founding(Life::FIRST, voters());
    assert!(driver.log.begin(GROUP, again).is_err());
    driver.log.create(GROUP, &voters()).unwrap();
    settle(&mut driver);
    found_twice(&disk, |driver| {
        let found = driver.log.groups().next().unwrap();
        assert_eq!(
            (found.life, found.hard_state),
            (life(1), HardState::default())
        );
        assert_eq!(driver.log.tombstone_of(GROUP), None);
    });
}

#[test]
fn rot_in_the_record_that_begins_a_life_faults_it() {
    let disk = SimDisk::new(1);
    let mut driver = Driver::open(&disk, &options(WalMode::Direct)).unwrap();
    driver.log.create(GROUP, &voters()).unwrap();
    driver
        .log
        .tombstone(GROUP, Tombstone::destroyed(Life::FIRST))
        .unwrap();
    driver.submit().unwrap();
    let mut second = Creation::founding(life(1), voters());
    second.joined = Index(u64::from_le_bytes(*b"JOINEDAT"));
    driver.log.begin(GROUP, second).unwrap();
    driver.submit().unwrap();
    driver.settle().unwrap();
    driver.wal.close().unwrap();
    drop(driver);
    crate::faults::rot_at(&disk, b"JOINEDAT", 0);
    let dir = crate::faults::data_dir(&disk);
    let opened = polyraft_storage::open(&dir, &options(WalMode::Direct), 1).unwrap();
    let found = opened.logs[0].groups().next().unwrap();
    // It may have voted in that life, so it must not begin anew in it.
    assert!(found.fault.is_some());
    assert_eq!(found.life, life(1));
    assert_eq!(found.may_return, None);
}

/// A log with a term, a vote, and entries, of which the one with that text is damaged; the replica may return at that index.
fn may_return_without(text: &[u8]) -> Option<Index> {
    let disk = SimDisk::new(1);
    let mut driver = Driver::open(&disk, &options(WalMode::Direct)).unwrap();
    driver.log.create(GROUP, &voters()).unwrap();
    for (term, vote, commit) in [(1, 2, *b"COMMIT01"), (2, 3, *b"COMMIT02")] {
        let state = HardState {
            term: Term(term),
            vote: Some(NodeId(vote)),
            commit: Index(u64::from_le_bytes(commit)),
        };
        driver.log.hard_state(GROUP, state).unwrap();
        let first = driver.log.last(GROUP).unwrap().next();
        let range = polyraft_raft::EntryRange {
            term: Term(term),
            first,
            end: Index(first.0 + 3),
        };
        let payloads = [0, 1, 2].map(|at| format!("term {term} entry {at}"));
        let kind = polyraft_storage::EntryKind::Normal;
        driver.log.append(GROUP, range, kind, payloads).unwrap();
        driver.submit().unwrap();
    }
    driver.settle().unwrap();
    driver.wal.close().unwrap();
    drop(driver);
    crate::faults::rot_at(&disk, text, 0);
    let mut found = Vec::new();
    for _ in 0..2 {
        // Also as the next checkpoint has it.
        let dir = crate::faults::data_dir(&disk);
        let mut opened = polyraft_storage::open(&dir, &options(WalMode::Direct), 1).unwrap();
        let log = &mut opened.logs[0];
        let group = log.groups().next().unwrap();
        assert!(group.fault.is_some());
        found.push((group.may_return, log.has_lost_vote(GROUP)));
        assert!(!log.has_lost_life(GROUP));
        assert!(opened.wals[0].request_checkpoint());
        while log.maintain().unwrap() || opened.wals[0].tend().unwrap() {}
    }
    assert_eq!(found[0], found[1]);
    let (may_return, has_lost_vote) = found[0];
    assert_eq!(may_return.is_none(), has_lost_vote);
    may_return
}

#[test]
fn a_damaged_log_tells_how_far_it_went_if_the_vote_is_certain() {
    for entry in ["term 1 entry 1", "term 2 entry 2"] {
        assert_eq!(
            may_return_without(entry.as_bytes()),
            Some(Index(6)),
            "{entry}"
        );
    }
    // A later one says everything.
    assert_eq!(may_return_without(b"COMMIT01"), Some(Index(6)));
    assert_eq!(may_return_without(b"COMMIT02"), None);
}

/// A replica that was removed and is back in the same life, of whose records the one with `mark` is damaged.
fn back_with_rot(mark: &[u8; 8]) -> (Life, Option<String>) {
    let disk = SimDisk::new(1);
    let mut driver = Driver::open(&disk, &options(WalMode::Direct)).unwrap();
    driver.log.create(GROUP, &voters()).unwrap();
    let removed = Tombstone {
        ending: Ending::Removed,
        term: Term(4),
        vote: Some(NodeId(3)),
        at: Index(u64::from_le_bytes(*b"REMOVEAT")),
        ..Tombstone::destroyed(Life::FIRST)
    };
    driver.log.tombstone(GROUP, removed).unwrap();
    driver.submit().unwrap();
    let mut back = Creation::founding(Life::FIRST, voters());
    back.joined = Index(u64::from_le_bytes(*b"JOINEDAT"));
    driver.log.begin(GROUP, back).unwrap();
    driver.submit().unwrap();
    driver.settle().unwrap();
    driver.wal.close().unwrap();
    drop(driver);
    crate::faults::rot_at(&disk, mark, 0);
    let dir = crate::faults::data_dir(&disk);
    let opened = polyraft_storage::open(&dir, &options(WalMode::Direct), 1).unwrap();
    let found = opened.logs[0].groups().next().unwrap();
    (found.life, found.fault)
}

#[test]
fn rot_at_the_return_of_a_removed_replica_faults_it_in_its_own_life() {
    for mark in [b"REMOVEAT", b"JOINEDAT"] {
        let (found, fault) = back_with_rot(mark);
        // In a later life it would end the group, which lives on.
        assert_eq!(found, Life::FIRST);
        assert!(fault.is_some(), "it may have voted and not know it");
    }
}

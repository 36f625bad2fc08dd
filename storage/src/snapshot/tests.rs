//! What snapshots must outlive. Each test says in its name which promise it is about.

use polyraft_raft::NodeId;

use super::*;
use crate::sim::{Keep, KeepNames, SimDisk};

fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta {
        group: GroupId(7),
        incarnation: 0,
        last: LogPosition {
            term: Term(3),
            index: Index(index),
        },
        configuration: Configuration::joint([NodeId(1)], [NodeId(2)], [NodeId(3)], []),
    }
}

fn state(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn open(disk: &SimDisk) -> (SnapshotStore, Vec<SnapshotFile>) {
    let data_dir = DataDir::open(Arc::new(disk.clone()), "/n", "c", NodeId(1), 1).unwrap();
    SnapshotStore::open(&data_dir, 0).unwrap()
}

fn write(store: &SnapshotStore, index: u64, state: &[u8]) -> Result<SnapshotFile, SnapshotError> {
    store.write(&meta(index), |out| {
        out.write_all(state).map_err(|error| error.to_string())
    })
}

fn read(store: &SnapshotStore, file: &SnapshotFile) -> Vec<u8> {
    let mut found = Vec::new();
    store.read(file).unwrap().read_to_end(&mut found).unwrap();
    found
}

#[test]
fn what_was_written_is_read_and_the_newest_one_is_found() {
    let disk = SimDisk::new(1);
    let (store, found) = open(&disk);
    assert_eq!(found, []);
    for (index, bytes) in [(5, 0), (9, 10), (12, 3 * PIECE_BYTES + 17)] {
        let state = state(bytes);
        let file = write(&store, index, &state).unwrap();
        assert_eq!(read(&store, &file), state);
        assert_eq!(open(&disk.after_process_crash()).1, [file]);
    }
    let snapshots = disk.files().into_iter();
    assert_eq!(
        snapshots
            .filter(|path| path.starts_with("/n/snapshots"))
            .count(),
        1
    );
    store.remove(GroupId(7), Life::LAST);
    assert_eq!(open(&disk.after_process_crash()).1, []);
}

#[test]
fn after_a_power_cut_anywhere_the_old_or_the_new_snapshot_is_there_and_whole() {
    let disk = SimDisk::new(2);
    let (store, _) = open(&disk);
    let (old, new) = (state(1000), state(PIECE_BYTES + 500));
    let before = write(&store, 5, &old).unwrap();
    disk.record_images();
    let after = write(&store, 9, &new).unwrap();
    let mut images = disk.take_images();
    assert!(images.len() >= 7, "{}", images.len());
    images.push(disk);
    for (at, image) in images.iter().enumerate() {
        for (seed, keep) in [
            Keep::Nothing,
            Keep::Everything,
            Keep::OddPages,
            Keep::Zeroed,
        ]
        .into_iter()
        .enumerate()
        {
            for names in [
                KeepNames::Nothing,
                KeepNames::Everything,
                KeepNames::Some(seed as u64),
            ] {
                let (store, found) = open(&image.after_power_cut_with(keep, names));
                let [file] = &found[..] else {
                    panic!("before operation {at}: {found:?}")
                };
                let expected = if *file == before { &old } else { &new };
                assert!(*file == before || *file == after);
                assert_eq!(read(&store, file), *expected);
            }
        }
    }
}

/// A replica that was about to read what it had received found what its node had written meanwhile, and gave up.
#[test]
fn the_first_snapshot_of_a_place_stays_unless_it_is_damaged() {
    let disk = SimDisk::new(1);
    let (store, _) = open(&disk);
    let first = write(&store, 5, b"a state").unwrap();
    assert_eq!(write(&store, 5, b"the same in other bytes").unwrap(), first);
    assert_eq!(read(&store, &first), b"a state");
    assert_eq!(
        open(&disk.after_process_crash()).1,
        std::slice::from_ref(&first)
    );
    let path = store.path(first.meta.group, first.meta.last);
    disk.write_at(&path, first.bytes - TRAILER_BYTES as u64 - 1, b"?")
        .unwrap();
    let second = write(&store, 5, b"the same in other bytes").unwrap();
    assert_eq!(read(&store, &second), b"the same in other bytes");
}

#[test]
fn a_received_file_is_named_only_when_every_byte_fits() {
    let (theirs, _) = open(&SimDisk::new(3));
    let file = write(&theirs, 9, &state(1000)).unwrap();
    let disk = SimDisk::new(4);
    let (ours, _) = open(&disk);
    let take = |spoil: Option<u64>| {
        ours.begin_receiving(GroupId(7), file.bytes).unwrap();
        let mut at = 0;
        while at < file.bytes {
            let mut chunk = theirs.chunk(&file, at, 100).unwrap();
            if let Some(spoilt) = spoil.and_then(|spoilt| spoilt.checked_sub(at))
                && let Some(byte) = chunk.get_mut(spoilt as usize)
            {
                *byte ^= 1;
            }
            ours.receive(GroupId(7), at, &chunk).unwrap();
            at += chunk.len() as u64;
        }
        ours.finish_receiving(&file)
    };
    for spoilt in (0..file.bytes).step_by(13) {
        let error = take(Some(spoilt)).unwrap_err();
        assert!(
            matches!(error, SnapshotError::Damaged { .. }),
            "{spoilt}: {error}"
        );
        assert_eq!(open(&disk.after_process_crash()).1, []);
    }
    assert_eq!(take(None).unwrap(), file);
    assert_eq!(read(&ours, &file), state(1000));
    assert_eq!(open(&disk.after_process_crash()).1, [file]);
}

#[test]
fn a_snapshot_for_which_there_is_no_room_is_not_begun() {
    let disk = SimDisk::new(8);
    let (store, _) = open(&disk);
    disk.set_capacity(disk.used() + 5000);
    let refused = store.begin_receiving(GroupId(7), 5001).unwrap_err();
    assert!(refused.to_string().contains("5001 bytes are needed"));
    store.begin_receiving(GroupId(7), 5000).unwrap();
    let full = store.receive(GroupId(7), 0, &[1; 6000]).unwrap_err();
    assert!(
        matches!(
            full,
            SnapshotError::Io {
                kind: io::ErrorKind::StorageFull,
                ..
            }
        ),
        "{full}"
    );
}

#[test]
fn a_damaged_body_is_found_before_any_of_it_is_given() {
    let disk = SimDisk::new(5);
    let (store, _) = open(&disk);
    let file = write(&store, 9, &state(1000)).unwrap();
    disk.damage(&store.path(GroupId(7), file.meta.last), |bytes| {
        bytes[500] ^= 4
    });
    assert!(matches!(
        store.read(&file),
        Err(SnapshotError::Damaged { .. })
    ));
}

/// Its log is purged for it: it must be there after a power cut, whatever became of earlier attempts.
#[test]
fn a_snapshot_whose_name_could_not_be_synced_is_written_anew() {
    for is_removed in [true, false] {
        let disk = SimDisk::new(6);
        let (store, _) = open(&disk);
        let before = disk.operations();
        write(&store, 4, b"a state").unwrap();
        // Behind the sync, the older one is removed.
        let sync = 2 * disk.operations() - before - 1;
        disk.fail_sync_at(sync);
        if !is_removed {
            disk.cut_at(sync + 1);
        }
        let failed = write(&store, 5, b"a state").unwrap_err();
        assert!(failed.to_string().contains("sync failed"), "{failed}");
        disk.cut_at(u64::MAX);
        let path = store.path(GroupId(7), meta(5).last);
        assert_eq!(disk.files().contains(&path), !is_removed);
        let file = write(&store, 5, b"a state").unwrap();
        let after = disk.after_power_cut_with(Keep::Nothing, KeepNames::Nothing);
        let (store, found) = open(&after);
        assert_eq!(found, std::slice::from_ref(&file));
        assert_eq!(read(&store, &file), b"a state");
    }
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let disk = SimDisk::new(6);
    let (store, _) = open(&disk);
    let failed = store.write(&meta(4), |_| Err("no".to_owned()));
    assert!(matches!(failed, Err(SnapshotError::Machine(_))));
    disk.set_capacity(disk.used() + 5000);
    let full = write(&store, 5, &state(PIECE_BYTES * 2)).unwrap_err();
    assert!(
        matches!(
            full,
            SnapshotError::Io {
                kind: io::ErrorKind::StorageFull,
                ..
            }
        ),
        "{full}"
    );
    let left = disk.files().into_iter();
    assert_eq!(
        left.filter(|path| path.starts_with("/n/snapshots")).count(),
        0
    );
}

#[test]
fn a_snapshot_that_would_take_the_room_of_the_log_is_given_up_and_others_go_on() {
    const KEPT: u64 = 8 << 20;
    let disk = SimDisk::new(1);
    let data_dir = DataDir::open(Arc::new(disk.clone()), "/n", "c", NodeId(1), 1).unwrap();
    let (store, _) = SnapshotStore::open(&data_dir, KEPT).unwrap();
    let used = disk.used();
    disk.set_capacity(used + 32 * (1 << 20));
    let large = state(30 << 20);
    let refused = write(&store, 5, &large).unwrap_err();
    assert!(
        matches!(
            refused,
            SnapshotError::Io {
                kind: io::ErrorKind::StorageFull,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(disk.used(), used, "nothing is left of it");
    write(&store, 5, &large[..20 << 20]).unwrap();

    // Both would fit alone.
    store.remove(GroupId(7), Life::LAST);
    store.begin_receiving(GroupId(1), 14 << 20).unwrap();
    let second = store.begin_receiving(GroupId(2), 14 << 20);
    assert!(second.unwrap_err().to_string().contains("bytes are needed"));
    store.abandon_receiving(GroupId(1));
    store.begin_receiving(GroupId(2), 14 << 20).unwrap();
    store.abandon_receiving(GroupId(2));

    // The log has no room already: this one may be what it is purged for.
    disk.set_capacity(disk.used() + KEPT - 1);
    write(&store, 9, &large[..6 << 20]).unwrap();
}

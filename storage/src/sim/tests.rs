//! Owns the tests of the simulated disk: what each loss pattern and each fault leaves behind.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::options::WalMode;

const SPEC: SegmentSpec = SegmentSpec {
    mode: WalMode::Mapped,
    direct_io: false,
};

fn path(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

/// A disk with one synced segment of eight pages of sevens.
fn disk_with_segment() -> (SimDisk, Arc<dyn SegmentFile>) {
    let disk = SimDisk::new(1);
    disk.zero_segment(&path("a"), 8 * 4096, SPEC, &|| {})
        .unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    let file = disk.open_segment(&path("a"), SPEC).unwrap();
    file.write(0, &[7; 8 * 4096]).unwrap();
    file.sync(0, 8 * 4096).unwrap();
    (disk, file)
}

/// The value of each sector.
fn sectors(disk: &SimDisk, name: &str) -> Vec<u8> {
    let bytes = disk.read(&path(name)).unwrap();
    let sector = |sector: &[u8]| {
        assert!(
            sector.iter().all(|byte| *byte == sector[0]),
            "a sector was torn"
        );
        sector[0]
    };
    bytes.chunks(512).map(sector).collect()
}

#[test]
fn only_what_a_sync_covered_is_sure_to_survive() {
    let (disk, file) = disk_with_segment();
    file.write(0, &[8; 4 * 4096]).unwrap();
    file.sync(0, 2 * 4096).unwrap();
    let left = sectors(&disk.after_power_cut(Keep::Nothing), "a");
    assert_eq!(left[..16], [8; 16]);
    assert_eq!(left[16..], [7; 48]);
    assert_eq!(
        sectors(&disk.after_power_cut(Keep::Everything), "a")[..32],
        [8; 32]
    );
    let left = sectors(&disk.after_power_cut(Keep::Zeroed), "a");
    assert_eq!(
        (&left[..16], &left[16..32], &left[32..]),
        (&[8; 16][..], &[0; 16][..], &[7; 32][..])
    );
}

#[test]
fn arbitrary_losses_reach_every_subset_and_repeat_by_seed() {
    let (disk, file) = disk_with_segment();
    file.write(4096, &[8; 4096]).unwrap();
    let left = |seed| sectors(&disk.after_power_cut(Keep::Arbitrary(seed)), "a")[8..16].to_vec();
    let seen: BTreeSet<Vec<u8>> = (0..3000).map(left).collect();
    assert!(seen.len() > 200, "{} outcomes", seen.len());
    for extreme in [[7; 8], [8; 8], [0; 8]] {
        assert!(seen.contains(&extreme[..]), "never {extreme:?}");
    }
    assert!((0..100).all(|seed| left(seed) == left(seed)));
}

#[test]
fn a_failed_sync_loses_what_a_second_one_does_not_bring_back() {
    let (disk, file) = disk_with_segment();
    file.write(0, &[8; 8 * 4096]).unwrap();
    disk.fail_syncs(Failure::Once);
    assert!(file.sync(0, 8 * 4096).is_err());
    file.sync(0, 8 * 4096).unwrap();
    assert_eq!(sectors(&disk, "a"), [8; 64], "the cache still has it");
    let left = sectors(&disk.after_power_cut(Keep::Everything), "a");
    let lost = left.iter().filter(|sector| **sector == 7).count();
    assert!((16..48).contains(&lost), "{lost} of 64 sectors lost");
    // Written again, it is whole again.
    file.write(0, &[9; 8 * 4096]).unwrap();
    file.sync(0, 8 * 4096).unwrap();
    assert_eq!(sectors(&disk.after_power_cut(Keep::Nothing), "a"), [9; 64]);
}

#[test]
fn lasting_errors_end_when_healed_and_outlive_a_restart() {
    let (disk, file) = disk_with_segment();
    disk.fail_writes(Failure::Lasting);
    assert!(file.write(0, &[8; 4096]).is_err());
    let after = disk.after_power_cut(Keep::Nothing);
    assert!(after.overwrite(&path("a"), 0, &[8; 512]).is_err());
    after.heal();
    after.overwrite(&path("a"), 0, &[8; 512]).unwrap();
    assert_eq!(sectors(&after, "a")[..2], [8, 7]);
}

#[test]
fn a_failed_write_leaves_whole_sectors() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        disk.write_new(&path("a"), &[&[7; 2 * 4096]]).unwrap();
        disk.fail_writes(Failure::Once);
        assert!(disk.overwrite(&path("a"), 4096, &[8; 4096]).is_err());
        // `sectors` fails when one is torn.
        seen.insert(
            sectors(&disk, "a")
                .iter()
                .filter(|byte| **byte == 8)
                .count(),
        );
    }
    assert!(seen.len() == 8 || seen.len() == 9, "{seen:?}");
}

#[test]
fn a_misdirected_write_shows_after_a_restart_only() {
    for astray in [Astray::Nowhere, Astray::SameFile(3), Astray::OtherFile(3)] {
        let (disk, file) = disk_with_segment();
        disk.zero_segment(&path("b"), 8 * 4096, SPEC, &|| {})
            .unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.misdirect_next_write(astray);
        file.write(4096, &[8; 4096]).unwrap();
        file.sync(4096, 4096).unwrap();
        assert_eq!(sectors(&disk, "a")[8..16], [8; 8]);
        let after = disk.after_power_cut(Keep::Everything);
        let (own, other) = (sectors(&after, "a"), sectors(&after, "b"));
        assert_eq!(own[8..16], [7; 8]);
        let struck = |sectors: &[u8]| sectors.iter().filter(|sector| **sector == 8).count();
        let expected = match astray {
            Astray::Nowhere => (0, 0),
            Astray::SameFile(_) => (8, 0),
            Astray::OtherFile(_) => (0, 8),
        };
        assert_eq!((struck(&own), struck(&other)), expected);
    }
}

#[test]
fn names_survive_by_their_directorys_sync_and_otherwise_by_chance() {
    let disk = SimDisk::new(1);
    disk.write_new(&path("old"), &[b"old"]).unwrap();
    disk.write_new(&path("gone"), &[b"gone"]).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.write_new(&path("tmp"), &[b"new"]).unwrap();
    disk.rename(&path("tmp"), &path("old")).unwrap();
    disk.remove(&path("gone")).unwrap();
    let left = |names| {
        let after = disk.after_power_cut_with(Keep::Everything, names);
        let files = after.files().into_iter();
        files
            .map(|file| (file.clone(), after.read(&file).unwrap()))
            .collect::<Vec<_>>()
    };
    let file = |name, bytes: &[u8]| (path(name), bytes.to_vec());
    assert_eq!(
        left(KeepNames::Nothing),
        [file("gone", b"gone"), file("old", b"old")]
    );
    assert_eq!(left(KeepNames::Everything), [file("old", b"new")]);
    let seen: BTreeSet<_> = (0..100).map(|seed| left(KeepNames::Some(seed))).collect();
    assert_eq!(seen.len(), 6, "{seen:?}");
    let seen: BTreeSet<_> = (0..100).map(|seed| left(KeepNames::Prefix(seed))).collect();
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_full_disk_takes_a_part_of_a_write() {
    let disk = SimDisk::new(1);
    disk.set_capacity(3 * 4096);
    let error = disk
        .zero_segment(&path("a"), 8 * 4096, SPEC, &|| {})
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(
        (disk.used(), disk.free_bytes(Path::new("/d")).unwrap()),
        (3 * 4096, 0)
    );
    disk.overwrite(&path("a"), 4096, &[1; 512]).unwrap();
    disk.remove(&path("a")).unwrap();
    assert_eq!(disk.free_bytes(Path::new("/d")).unwrap(), 3 * 4096);
}

#[test]
fn flipped_bits_are_seen_now_and_after_a_restart() {
    let (disk, _file) = disk_with_segment();
    assert_eq!(disk.synced_pages(&path("a")).len(), 8);
    disk.flip_bits(&path("a"), 5000, 0x81);
    for disk in [disk.clone(), disk.after_power_cut(Keep::Nothing)] {
        let bytes = disk.read(&path("a")).unwrap();
        assert_eq!(bytes[5000], 7 ^ 0x81);
        assert_eq!(bytes.iter().filter(|byte| **byte != 7).count(), 1);
    }
}

#[test]
fn images_are_the_disks_before_each_operation() {
    let (disk, file) = disk_with_segment();
    disk.record_images();
    for value in 1..4 {
        file.write(0, &[value; 4096]).unwrap();
        file.sync(0, 4096).unwrap();
    }
    let images = disk.take_images();
    let first = |keep| -> Vec<u8> {
        let left = images.iter().map(|image| image.after_power_cut(keep));
        left.map(|disk| sectors(&disk, "a")[0]).collect()
    };
    assert_eq!(first(Keep::Nothing), [7, 7, 1, 1, 2, 2]);
    assert_eq!(first(Keep::Everything), [7, 1, 1, 2, 2, 3]);
}

#[test]
fn the_cache_outlives_a_process_and_hides_what_a_failed_sync_lost() {
    let (disk, file) = disk_with_segment();
    file.write(0, &[8; 2 * 4096]).unwrap();
    disk.fail_sync_at(0);
    assert!(file.sync(0, 8192).is_err());
    file.write(4096, &[9; 512]).unwrap();
    let after = disk.after_process_crash();
    assert_eq!(sectors(&after, "a")[..9], [8, 8, 8, 8, 8, 8, 8, 8, 9]);
    after.forget_cached(&path("a")).unwrap();
    assert_eq!(sectors(&after, "a")[..8], [7; 8]);
    assert_eq!(sectors(&after, "a")[8..16], [9, 7, 7, 7, 7, 7, 7, 7]);
    let file = after.open_segment(&path("a"), SPEC).unwrap();
    file.sync(0, 8192).unwrap();
    let left = sectors(&after.after_power_cut(Keep::Nothing), "a");
    assert_eq!((left[0], left[8]), (7, 9));
}

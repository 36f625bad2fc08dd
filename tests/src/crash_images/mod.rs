//! Owns the enumeration of what a disk may look like after a power cut, for small workloads: for each operation, each pattern of
//! loss, each moment of the recovery, and for damage and failed syncs. Must never skip an image silently: it counts what it checks.

mod check;
mod run;
pub mod workload;

use std::fmt;

use polyraft_storage::WalMode;
use polyraft_storage::sim::model::Model;
use polyraft_storage::sim::{Astray, Keep, KeepNames, SimDisk};

use run::{Log, Run, Shape, Step};
use workload::{Needs, Workload};

/// How many images were checked, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Operations of the workloads, each a place to lose power.
    pub operations: u64,
    /// After a power cut.
    pub power_cuts: u64,
    /// After a power cut during the recovery from another.
    pub second_power_cuts: u64,
    /// After a power cut that followed a failed sync.
    pub failed_syncs: u64,
    /// With a write that landed elsewhere, or nowhere.
    pub misdirected: u64,
    /// With a flipped bit in what was durable.
    pub rotten: u64,
    /// Of the rotten and misdirected ones, those in which somebody noticed. The others were right in spite of it.
    pub noticed: u64,
}

impl Count {
    /// All images.
    pub fn images(&self) -> u64 {
        self.power_cuts
            + self.second_power_cuts
            + self.failed_syncs
            + self.misdirected
            + self.rotten
    }

    /// Adds another count.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.power_cuts += other.power_cuts;
        self.second_power_cuts += other.second_power_cuts;
        self.failed_syncs += other.failed_syncs;
        self.misdirected += other.misdirected;
        self.rotten += other.rotten;
        self.noticed += other.noticed;
    }
}

/// An image that is not as it must be.
#[derive(Debug)]
pub struct Finding {
    /// Which image.
    pub image: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.image, self.reason)
    }
}

/// Both append paths.
pub const MODES: [WalMode; 2] = [WalMode::Direct, WalMode::Mapped];

/// Which images are taken through a second power cut, at each operation of their recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecondCuts {
    /// One in 41.
    Some,
    /// Every one.
    All,
}

impl SecondCuts {
    fn takes(self, image: u64) -> bool {
        match self {
            SecondCuts::Some => image.is_multiple_of(41),
            SecondCuts::All => true,
        }
    }
}

/// One operation in so many fails when it is a sync.
const FAILED_SYNC_STRIDE: u64 = 5;
/// One operation in so many is misdirected when it is a write.
const MISDIRECTED_STRIDE: u64 = 3;
/// Distance of the flipped bits in bytes: a few in each batch and each header.
const ROT_STRIDE: u64 = 509;

/// What a power cut leaves at operation `at`: every systematic pattern, and random ones that differ from operation to operation.
fn losses(at: usize, disk: &SimDisk) -> Vec<(Keep, KeepNames)> {
    let seed = at as u64;
    let (bytes, names) = (disk.has_unsynced_bytes(), disk.has_unsynced_names());
    let mut losses = vec![(Keep::Nothing, KeepNames::Nothing)];
    if bytes {
        let keeps = [
            Keep::Everything,
            Keep::EvenPages,
            Keep::OddPages,
            Keep::NotTheFirst,
            Keep::NotTheLast,
            Keep::Zeroed,
            Keep::Prefix(seed),
            Keep::Prefix(!seed),
            Keep::Suffix(seed),
            Keep::Suffix(!seed),
        ];
        let random = (0..3).map(|more| Keep::Some(3 * seed + more));
        let mixed = (0..5).map(|more| Keep::Arbitrary(5 * seed + more));
        let all = keeps.into_iter().chain(random).chain(mixed);
        losses.extend(all.map(|keep| (keep, KeepNames::Nothing)));
    }
    if names {
        let choices = [
            KeepNames::Everything,
            KeepNames::Prefix(seed),
            KeepNames::Some(seed),
            KeepNames::Some(!seed),
        ];
        for names in choices {
            losses.push((Keep::Nothing, names));
            if bytes {
                losses.push((Keep::Everything, names));
                losses.push((Keep::Arbitrary(seed), names));
            }
        }
    }
    losses
}

/// Checks every image of one workload in one mode, up to the first finding.
pub fn check(
    workload: &Workload,
    mode: WalMode,
    second: SecondCuts,
    count: &mut Count,
) -> Result<(), Finding> {
    let shape = Shape {
        mode,
        shards: workload.shards,
        lanes: workload.lanes,
    };
    let run = Run::of(shape, SimDisk::new(7), &workload.steps);
    let label = |what: String| format!("{}, {mode:?}: {what}", workload.name);
    if let Some(error) = &run.error {
        return Err(Finding {
            image: label("undisturbed".to_owned()),
            reason: error.to_string(),
        });
    }
    assert_needs(&run, workload);
    count.operations += run.images.len() as u64;
    let wrap = |(what, reason)| Finding {
        image: label(what),
        reason,
    };
    power_cuts(&run, second, count).map_err(wrap)?;
    failed_syncs(&run, workload, count).map_err(wrap)?;
    misdirected_writes(&run, workload, count).map_err(wrap)?;
    rot(run, count).map_err(wrap)
}

/// A run that does not do what it is there for proves nothing.
fn assert_needs(run: &Run, workload: &Workload) {
    let log = run.log.as_ref().expect("the log is open");
    let mut did = Needs::default();
    for wal in &log.wals {
        let stats = wal.stats();
        did.checkpoints += stats.checkpoints;
        did.recycled += stats.recycled;
        did.relocated += stats.relocated;
    }
    let needs = workload.needs;
    assert!(
        did.checkpoints >= needs.checkpoints
            && did.recycled >= needs.recycled
            && did.relocated >= needs.relocated,
        "{}: {did:?} where {needs:?} is needed",
        workload.name
    );
}

type Failed = (String, String);

fn power_cuts(run: &Run, second: SecondCuts, count: &mut Count) -> Result<(), Failed> {
    let last = run.images.len();
    for (at, image) in run.images.iter().chain([&run.disk]).enumerate() {
        let allowed = run.allowed(at);
        for (keep, names) in losses(at, image) {
            let what =
                || format!("power cut at operation {at} of {last}, {keep:?}, names {names:?}");
            let disk = image.after_power_cut_with(keep, names);
            if second.takes(count.power_cuts) {
                let again = image.after_power_cut_with(keep, names);
                second_power_cuts(&again, run.shape, &allowed, count)
                    .map_err(|(then, reason)| (format!("{}, {then}", what()), reason))?;
            }
            count.power_cuts += 1;
            check::image(&disk, run.shape, &allowed).map_err(|reason| (what(), reason))?;
        }
    }
    Ok(())
}

/// Cuts the power at each operation of a recovery and of the background work behind it.
fn second_power_cuts(
    disk: &SimDisk,
    shape: Shape,
    allowed: &[&[Model]],
    count: &mut Count,
) -> Result<(), Failed> {
    let first = |reason| ("the first recovery".to_owned(), reason);
    disk.record_images();
    let mut log = check::opens_as(disk, shape, allowed).map_err(first)?;
    let recovered = disk.operations() as usize;
    let (found, _) = log.read_all().map_err(first)?;
    log.settle().map_err(|error| first(error.to_string()))?;
    drop(log);
    // What the first recovery handed out is promised from then on.
    let promised: Vec<&[Model]> = found.iter().map(std::slice::from_ref).collect();
    for (at, image) in disk.take_images().iter().enumerate() {
        let allowed = if at < recovered { allowed } else { &promised };
        for (keep, names) in losses(at, image) {
            count.second_power_cuts += 1;
            let disk = image.after_power_cut_with(keep, names);
            check::image(&disk, shape, allowed).map_err(|reason| {
                let then = format!("again at {at} of its recovery, {keep:?}, names {names:?}");
                (then, reason)
            })?;
        }
    }
    Ok(())
}

/// Lets syncs fail, one per run, and the power go afterwards.
fn failed_syncs(run: &Run, workload: &Workload, count: &mut Count) -> Result<(), Failed> {
    let operations = run.images.len() as u64;
    for at in (0..operations).step_by(FAILED_SYNC_STRIDE as usize) {
        let disk = SimDisk::new(7);
        disk.fail_sync_at(at);
        let failed = Run::of(run.shape, disk, &workload.steps);
        let allowed = failed.allowed(failed.images.len());
        count.failed_syncs += 1;
        // The process starts again while its machine runs on: what it finds in the cache may never have been stored.
        check::image(&failed.disk.after_process_crash(), run.shape, &allowed).map_err(
            |reason| {
                (
                    format!("sync failed at operation {at}, process crash"),
                    reason,
                )
            },
        )?;
        let restarted = failed.disk.after_process_crash();
        if restarted.has_unsynced_names() {
            count.failed_syncs += check::goes_on(&restarted, run.shape, &allowed)
                .map_err(|reason| (format!("sync failed at operation {at}, restart"), reason))?;
        }
        for keep in [
            Keep::Nothing,
            Keep::Everything,
            Keep::Some(at),
            Keep::Arbitrary(at),
        ] {
            count.failed_syncs += 1;
            let disk = failed.disk.after_power_cut(keep);
            check::image(&disk, run.shape, &allowed)
                .map_err(|reason| (format!("sync failed at operation {at}, {keep:?}"), reason))?;
        }
    }
    Ok(())
}

/// Lets writes land elsewhere, one per run, stops properly and starts again after a power cut.
fn misdirected_writes(run: &Run, workload: &Workload, count: &mut Count) -> Result<(), Failed> {
    // Nothing proves the last batch before such a restart, so losing it cannot be noticed.
    let is_unproven = |step: &Step| matches!(step, Step::Restart { clean: false });
    if workload.steps.iter().any(is_unproven) {
        return Ok(());
    }
    let operations = run.images.len() as u64;
    for at in (0..operations).step_by(MISDIRECTED_STRIDE as usize) {
        for astray in [Astray::Nowhere, Astray::SameFile(at), Astray::OtherFile(at)] {
            let disk = SimDisk::new(7);
            disk.misdirect_write_at(at, astray);
            let what = || format!("write at operation {at} went astray, {astray:?}");
            let mut hit = Run::of(run.shape, disk, &workload.steps);
            if hit.error.is_some() {
                // A restart within the workload has noticed.
                count.misdirected += 1;
                count.noticed += 1;
                continue;
            }
            let log = hit.log.take().expect("the log is open");
            for wal in &log.wals {
                wal.close().map_err(|error| (what(), error.to_string()))?;
            }
            drop(log);
            let disk = hit.disk.after_power_cut(Keep::Nothing);
            count.misdirected += 1;
            let noticed =
                check::rotten(&disk, run.shape, &hit.end()).map_err(|reason| (what(), reason))?;
            count.noticed += u64::from(noticed);
        }
    }
    Ok(())
}

/// Flips bits all over a log that was stopped properly.
fn rot(mut run: Run, count: &mut Count) -> Result<(), Failed> {
    let log: Log = run.log.take().expect("the log is open");
    for wal in &log.wals {
        wal.close()
            .map_err(|error| ("stopping".to_owned(), error.to_string()))?;
    }
    drop(log);
    let expected = run.end();
    for path in run.disk.files() {
        for page in run.disk.synced_pages(&path) {
            let places = (page.start..page.end).step_by(ROT_STRIDE as usize);
            for at in places
                .map(|at| at + at / 4096 % 61)
                .filter(|at| page.contains(at))
            {
                let disk = run.disk.after_power_cut(Keep::Nothing);
                disk.flip_bits(&path, at, 1 << (at % 8));
                count.rotten += 1;
                let noticed = check::rotten(&disk, run.shape, &expected)
                    .map_err(|reason| (format!("rot in {} at {at}", path.display()), reason))?;
                count.noticed += u64::from(noticed);
            }
        }
    }
    Ok(())
}

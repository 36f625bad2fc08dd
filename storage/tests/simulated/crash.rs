//! Owns the enumeration of power cuts: after every write and sync of a workload, with each pattern of lost pages, in both
//! modes. What was acknowledged must be there, and nothing else than what was written, in order.

use crate::driver::{Driver, Model, Op, options};
use polyraft_raft::GroupId;
use polyraft_storage::sim::{Keep, SimDisk};
use polyraft_storage::{StorageError, WalMode, WalOptions};

const KEEPS: [Keep; 8] = [
    Keep::Nothing,
    Keep::Everything,
    Keep::EvenPages,
    Keep::OddPages,
    Keep::NotTheFirst,
    Keep::NotTheLast,
    Keep::Some(1),
    Keep::Some(2),
];

/// A payload that no other entry has.
fn payload(unique: u64, bytes: usize) -> Vec<u8> {
    let mut payload = format!("{unique:08} ").into_bytes();
    payload.resize(bytes.max(9), b'a' + (unique % 26) as u8);
    payload
}

/// Two busy groups that purge, one that lags behind, one that comes and goes; long enough for segments to be filled, freed,
/// recycled and relocated.
fn workload() -> Vec<Vec<Op>> {
    let mut unique = 0;
    let mut append = |group, term, count: u64, bytes| {
        let payloads = (0..count).map(|at| {
            unique += 1;
            payload(unique, bytes + (at as usize % 3))
        });
        Op::Append {
            group,
            term,
            payloads: payloads.collect(),
        }
    };
    let mut turns = vec![
        vec![Op::Create(1), Op::Create(2)],
        vec![Op::Create(3), append(3, 1, 4, 50)],
    ];
    let mut last = [0u64; 3];
    for turn in 0..66u64 {
        let term = 1 + turn / 9;
        let mut ops = Vec::new();
        if turn % 9 == 0 {
            ops.push(Op::State {
                group: 1,
                term,
                vote: 1 + term % 3,
                commit: last[1],
            });
        }
        if turn % 9 == 4 && last[1] > 10 {
            // Entries of this turn, cut and replaced in the same turn.
            ops.push(append(1, term, 2, 100));
            ops.push(Op::Truncate {
                group: 1,
                from: last[1] - 1,
            });
            last[1] -= 2;
        }
        ops.push(append(1, term, 3, 200));
        last[1] += 3;
        // Some turns need several batches.
        let big = if turn % 11 == 7 { 5 } else { 1 };
        for _ in 0..big {
            ops.push(append(2, term, 2, if big > 1 { 2500 } else { 300 }));
            last[2] += 2;
        }
        if turn % 5 == 3 {
            ops.push(Op::Purge {
                group: 1,
                through: last[1] - 4,
            });
            ops.push(Op::Purge {
                group: 2,
                through: last[2] - 1,
            });
        }
        match turn % 13 {
            5 => ops.extend([Op::Create(4), append(4, term, 1, 10)]),
            9 => ops.push(Op::Tombstone(4)),
            _ => {}
        }
        turns.push(ops);
    }
    turns
}

/// Runs the workload until the power goes at operation `cut`. Returns the disk and the states that may come back.
fn run_until(mode: WalMode, style: Style, cut: u64) -> (SimDisk, Vec<Model>) {
    let disk = SimDisk::new(7);
    disk.cut_at(cut);
    let Ok(mut driver) = Driver::open(&disk, &options(mode)) else {
        return (disk, vec![Model::default()]);
    };
    assert!(
        style.run(&mut driver).is_err(),
        "the power cut at {cut} was not noticed"
    );
    let allowed = driver.states.split_off(driver.acknowledged);
    (disk, allowed)
}

/// Checks each way in which the disk may come back.
fn crash_once(mode: WalMode, style: Style, cut: u64) {
    let (disk, allowed) = run_until(mode, style, cut);
    for keep in KEEPS {
        check(
            &disk.after_power_cut(keep),
            mode,
            &allowed,
            &format!("{mode:?}, {style:?}, power cut at {cut}, keeping {keep:?}"),
        );
    }
}

/// Lets the power go a second time, at each operation of the recovery and of the work right behind it.
fn crash_twice(mode: WalMode, style: Style, cut: u64) {
    let (disk, allowed) = run_until(mode, style, cut);
    for (keep, second) in KEEPS
        .into_iter()
        .flat_map(|keep| (0..10).map(move |second| (keep, second)))
    {
        let disk = disk.after_power_cut(keep);
        disk.cut_at(second);
        let mut allowed = allowed.clone();
        if let Ok(mut driver) = Driver::open(&disk, &options(mode)) {
            assert!(
                allowed.contains(&driver.model),
                "{mode:?}, {style:?}, power cut at {cut}, keeping {keep:?}"
            );
            let _ = driver.run(&next_life());
            // What the first recovery found may have been more than was acknowledged before; it is now.
            allowed = driver.states.split_off(driver.acknowledged);
        }
        for again in KEEPS {
            let label = format!(
                "{mode:?}, {style:?}, power cut at {cut}, keeping {keep:?}, again at {second}, keeping {again:?}"
            );
            check(&disk.after_power_cut(again), mode, &allowed, &label);
        }
    }
}

/// What the node does after it came back.
fn next_life() -> Vec<Vec<Op>> {
    vec![
        vec![Op::Create(50)],
        vec![Op::Append {
            group: 50,
            term: 1,
            payloads: vec![payload(9999, 5000)],
        }],
    ]
}

/// Opens the disk, compares, writes on, and compares once more.
fn check(disk: &SimDisk, mode: WalMode, allowed: &[Model], label: &str) {
    let mut driver = match Driver::open(disk, &options(mode)) {
        Ok(driver) => driver,
        Err(error) => panic!("{label}: {error}"),
    };
    assert!(
        driver.report.rotten.is_empty(),
        "{label}: {:?}",
        driver.report
    );
    assert!(
        allowed.contains(&driver.model),
        "{label}: lost what was acknowledged, or made something up"
    );
    if !driver.model.contains_key(&50) {
        driver.run(&next_life()).unwrap();
    }
    driver.settle().unwrap();
    let model = driver.model.clone();
    drop(driver);
    let again = Driver::open(disk, &options(mode)).unwrap();
    assert_eq!(again.model, model, "{label}: after writing on");
}

/// How the workload is run.
#[derive(Clone, Copy, Debug)]
enum Style {
    /// Each turn is durable before the next one begins.
    Settled,
    /// Several turns are in flight, and checkpoints are made meanwhile.
    Overlapped,
}

impl Style {
    fn run(self, driver: &mut Driver) -> Result<(), StorageError> {
        match self {
            Self::Settled => driver.run(&workload()),
            Self::Overlapped => driver.run_overlapped(&workload()),
        }
    }
}

/// How many operations the workload takes.
fn undisturbed(mode: WalMode, style: Style) -> u64 {
    let disk = SimDisk::new(7);
    let mut driver = Driver::open(&disk, &options(mode)).unwrap();
    style.run(&mut driver).unwrap();
    let stats = driver.stats();
    // A run that does not do what it is there for proves nothing.
    assert!(stats.checkpoints >= 3, "{stats:?}");
    assert!(stats.relocated > 0, "{stats:?}");
    assert!(stats.recycled >= 2, "{stats:?}");
    disk.operations()
}

fn every_power_cut(mode: WalMode) {
    for style in [Style::Settled, Style::Overlapped] {
        for cut in 0..undisturbed(mode, style) {
            crash_once(mode, style, cut);
        }
    }
}

fn some_double_power_cuts(mode: WalMode) {
    for style in [Style::Settled, Style::Overlapped] {
        for cut in (0..undisturbed(mode, style)).step_by(11) {
            crash_twice(mode, style, cut);
        }
    }
}

#[test]
fn a_power_cut_loses_nothing_acknowledged_in_direct_mode() {
    every_power_cut(WalMode::Direct);
}

#[test]
fn a_power_cut_loses_nothing_acknowledged_in_mapped_mode() {
    every_power_cut(WalMode::Mapped);
}

#[test]
fn a_power_cut_during_recovery_loses_nothing_in_direct_mode() {
    some_double_power_cuts(WalMode::Direct);
}

#[test]
fn a_power_cut_during_recovery_loses_nothing_in_mapped_mode() {
    some_double_power_cuts(WalMode::Mapped);
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

//! Owns what must hold of a disk that lost power: it opens, has all that was acknowledged and nothing that was never written,
//! and takes new writes that survive in turn. Must never accept a state that the model did not go through.

use polyraft_raft::GroupId;
use polyraft_storage::StorageError;
use polyraft_storage::sim::model::{Model, Op};
use polyraft_storage::sim::{Keep, SimDisk};

use super::run::{Log, Shape};

/// Opens the disk and compares; `allowed` has, by shard, the states that may be found. Returns what was found.
pub fn opens_as(disk: &SimDisk, shape: Shape, allowed: &[&[Model]]) -> Result<Log, String> {
    let log = Log::open(disk, shape).map_err(|error| format!("does not open: {error}"))?;
    if !log.report.rotten.is_empty() {
        return Err(format!("reports rot: {:?}", log.report.rotten));
    }
    let (found, faulty) = log.read_all()?;
    if !faulty.is_empty() {
        return Err(format!("has damaged groups: {faulty:?}"));
    }
    for (shard, (found, allowed)) in found.iter().zip(allowed).enumerate() {
        if !allowed.contains(found) {
            return Err(explain(shard, found, allowed));
        }
    }
    Ok(log)
}

/// Names a difference to the state that must be there.
fn explain(shard: usize, found: &Model, allowed: &[Model]) -> String {
    let needed = &allowed[0];
    let differs = |id: &&u64| found.get(id) != needed.get(id);
    let id = needed.keys().chain(found.keys()).find(differs);
    let brief = |model: &Model| {
        let replica = model.get(id.unwrap_or(&0)).cloned();
        replica.map(|replica| {
            let replica = replica.1?;
            Some((replica.state, replica.base, replica.last()))
        })
    };
    format!(
        "shard {shard}: group {id:?} is {:?}, acknowledged was {:?}, {} states allowed",
        brief(found),
        brief(needed),
        allowed.len()
    )
}

/// Writes to every group and to a new one per shard, in two batches, and compares what is there after one more power cut, so that
/// nothing that recovery left behind can be mistaken for the new writes or hide them.
pub fn writes_on(disk: &SimDisk, shape: Shape, mut log: Log) -> Result<(), String> {
    let (mut models, _) = log.read_all()?;
    // Where the log goes on depends on what fits: some are small, others fill a batch.
    let is_large = log.report.bytes / 4096 % 2 == 1;
    for bytes in [if is_large { 12_000 } else { 20 }, 30] {
        for (shard, model) in models.iter_mut().enumerate() {
            for op in next_turn(shape, shard, model, bytes) {
                log.write(shape, model, &op).map_err(failed("writing"))?;
                op.apply(model);
            }
            submit(disk, &mut log, shard)?;
        }
        log.flush().map_err(failed("syncing"))?;
    }
    let found = log.read_all()?;
    if found != (models.clone(), Vec::new()) {
        return Err("reads something else than it wrote after recovery".to_owned());
    }
    drop(log);
    let models: Vec<&[Model]> = models.iter().map(std::slice::from_ref).collect();
    let again = disk.after_power_cut(Keep::Nothing);
    opens_as(&again, shape, &models)
        .map(|_| ())
        .map_err(|reason| format!("writes after recovery are lost: {reason}"))
}

/// Hands a shard's turn in. Where a full disk has no room for entries, it gets some: the turn was kept.
fn submit(disk: &SimDisk, log: &mut Log, shard: usize) -> Result<(), String> {
    let mut submitted = log.logs[shard].submit();
    if let Err(StorageError::DiskFull { .. }) = submitted {
        disk.set_capacity(u64::MAX);
        // A shard's own part of that waits until its turn is handed in.
        for wal in &log.wals {
            while wal.tend().map_err(failed("background work"))? {}
        }
        submitted = log.logs[shard].submit();
    }
    submitted.map(|_| ()).map_err(failed("submitting"))
}

/// Turns after which every file of a log has been used again.
const TURNS: usize = 12;

/// Starts on a disk on which names are not durable, goes on until files were used again, and cuts the power before each
/// operation as long as such names are left: what the recovery has built on must still be there then. Returns how many such
/// images there were.
pub fn goes_on(disk: &SimDisk, shape: Shape, allowed: &[&[Model]]) -> Result<u64, String> {
    disk.record_images();
    let mut log = opens_as(disk, shape, allowed)?;
    let recovered = disk.operations();
    let mut states: Vec<Vec<Model>> = Vec::new();
    for model in log.read_all()?.0 {
        states.push(vec![model]);
    }
    // By turn: how many operations were done once it was durable, and how many states of each shard it makes lasting.
    let mut marks = vec![(recovered, vec![0; states.len()])];
    for _ in 0..TURNS {
        for (shard, states) in states.iter_mut().enumerate() {
            let model = states.last().expect("there is a first state").clone();
            for op in next_turn(shape, shard, &model, 12_000) {
                let mut model = states.last().expect("there is a first state").clone();
                log.write(shape, &model, &op).map_err(failed("writing"))?;
                op.apply(&mut model);
                states.push(model);
            }
            submit(disk, &mut log, shard)?;
        }
        log.flush().map_err(failed("syncing"))?;
        let lasting = states.iter().map(|states| states.len() - 1);
        marks.push((disk.operations(), lasting.collect()));
        log.settle().map_err(failed("background work"))?;
    }
    drop(log);
    let images = disk.take_images();
    let first = disk.operations() - images.len() as u64;
    let mut checked = 0;
    for (at, image) in (first..).zip(&images) {
        if !image.has_unsynced_names() {
            continue;
        }
        let known = marks.iter().rfind(|(operations, _)| *operations <= at);
        let since: Vec<&[Model]> = match known {
            None => allowed.to_vec(),
            Some((_, lasting)) => {
                let shards = states.iter().zip(lasting);
                shards.map(|(states, from)| &states[*from..]).collect()
            }
        };
        checked += 1;
        opens_as(&image.after_power_cut(Keep::Nothing), shape, &since)
            .map(|_| ())
            .map_err(|reason| {
                format!("power cut at {at}, when its files were used again: {reason}")
            })?;
    }
    Ok(checked)
}

fn failed(what: &'static str) -> impl Fn(StorageError) -> String {
    move |error| format!("{what} after recovery: {error}")
}

/// A hard state and an entry for each group, removed ones included, and a new group. The first entry has `bytes` bytes.
fn next_turn(shape: Shape, shard: usize, model: &Model, mut bytes: usize) -> Vec<Op> {
    let mut ops = Vec::new();
    for (group, (_, replica)) in model {
        let term = replica.as_ref().map_or(1, |replica| {
            let newest = replica.entries.values().next_back();
            let term = newest.map_or(replica.base.term.0, |(term, _)| *term);
            term.max(replica.state.term.0) + 1
        });
        if replica.is_none() {
            ops.push(Op::Create(*group));
        }
        ops.push(Op::State {
            group: *group,
            term,
            vote: 2,
            commit: 0,
        });
        let mut payload = format!("again {group} ").into_bytes();
        payload.resize(bytes.max(10), b'.');
        bytes = 10;
        ops.push(Op::Append {
            group: *group,
            term,
            payloads: vec![payload],
        });
    }
    let is_new = |group: &u64| shape.shard_of(*group) == shard && !model.contains_key(group);
    ops.extend((1000..).find(is_new).map(Op::Create));
    ops
}

/// Checks one image.
pub fn image(disk: &SimDisk, shape: Shape, allowed: &[&[Model]]) -> Result<(), String> {
    let log = opens_as(disk, shape, allowed)?;
    writes_on(disk, shape, log)
}

/// Checks a disk with rot on it: it may refuse to open, or give groups up, but what it gives out must be right.
pub fn rotten(disk: &SimDisk, shape: Shape, expected: &[&Model]) -> Result<bool, String> {
    let Ok(log) = Log::open(disk, shape) else {
        return Ok(true);
    };
    let (found, faulty) = log.read_all()?;
    for (shard, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (id, replica) in &**expected {
            if faulty.contains(id) || found.get(id) == Some(replica) {
                continue;
            }
            return Err(format!(
                "shard {shard}: group {} changed without a word",
                GroupId(*id)
            ));
        }
        if let Some(id) = found.keys().find(|id| !expected.contains_key(id)) {
            return Err(format!("shard {shard}: group {id} was made up"));
        }
    }
    Ok(!faulty.is_empty())
}

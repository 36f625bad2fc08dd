//! Owns the models of the group commit: shards hand turns in while the flusher writes, sleeps, stops or fails.
//! Whatever the order: no batch is reported before its sync returned, each one is reported, and nobody sleeps for ever.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polyraft_raft::{Configuration, GroupId, HardState, Index, NodeId, Term, shard_of};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

use super::disk::ModelDisk;
use super::in_many_orders;
use crate::batch::Lsn;
use crate::data_dir::DataDir;
use crate::error::StorageError;
use crate::lane::{Durable, WalObserver};
use crate::options::WalOptions;
use crate::shard::ShardLog;
use crate::sim::Keep;
use crate::wal::{Opened, open};

const SHARDS: usize = 2;
const TURNS: u64 = 3;

/// Hears of completions as a node does.
struct Watch {
    disk: ModelDisk,
    state: Mutex<Heard>,
    changed: Condvar,
}

#[derive(Default)]
struct Heard {
    durable: Lsn,
    failures: usize,
}

impl WalObserver for Watch {
    fn durable(&self, durable: &Durable) {
        assert!(
            durable.lsn.0 <= self.disk.synced(),
            "batch {} was reported before its sync returned",
            durable.lsn
        );
        let mut heard = self.state.lock().unwrap();
        assert!(durable.lsn > heard.durable, "the watermark went back");
        assert_eq!(heard.failures, 0, "a batch was reported after a failure");
        heard.durable = durable.lsn;
        self.changed.notify_all();
    }

    fn failed(&self, _: &StorageError) {
        self.state.lock().unwrap().failures += 1;
        self.changed.notify_all();
    }

    fn maintain(&self) {}
}

impl Watch {
    /// Waits for a batch. Returns false when the lane failed first.
    fn wait(&self, lsn: Lsn) -> bool {
        let mut heard = self.state.lock().unwrap();
        while heard.durable < lsn && heard.failures == 0 {
            heard = self.changed.wait(heard).unwrap();
        }
        heard.durable >= lsn
    }
}

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

fn open_log(disk: Arc<ModelDisk>) -> Opened {
    let dir = DataDir::open(disk, Path::new("/data"), "model", NodeId(1), 1).unwrap();
    open(&dir, &options(), SHARDS).unwrap()
}

/// The group of a shard.
fn group_of(shard: usize) -> GroupId {
    let mut groups = (1..).map(GroupId);
    groups
        .find(|group| shard_of(*group, SHARDS) == shard)
        .unwrap()
}

fn state(turn: u64) -> HardState {
    HardState {
        term: Term(turn),
        vote: None,
        commit: Index(0),
    }
}

/// Hands turns in, waiting for some of them. Returns the number of the last turn that the log took, and its batch.
fn hand_in(log: &mut ShardLog, shard: usize, syncs: Syncs, watch: &Watch) -> (u64, Option<Lsn>) {
    let group = group_of(shard);
    if matches!(syncs, Syncs::Inline) {
        log.begin_inline_syncs();
    }
    log.create(group, &Configuration::default()).unwrap();
    let mut taken = (0, None);
    for turn in 1..=TURNS {
        log.hard_state(group, state(turn)).unwrap();
        let lsn = match log.submit() {
            Ok(lsn) => lsn.unwrap(),
            Err(StorageError::Stopped | StorageError::Poisoned { .. }) => return taken,
            Err(error) => panic!("{error}"),
        };
        taken = (turn, Some(lsn));
        if matches!(syncs, Syncs::Inline) {
            log.sync_inline(Duration::MAX);
        }
        if shard == 0 && !watch.wait(lsn) {
            return taken;
        }
    }
    taken
}

/// Who syncs.
#[derive(Clone, Copy)]
enum Syncs {
    ByFlusher,
    /// The shards, and the flusher what they can't.
    Inline,
}

/// How the run ends.
#[derive(Clone, Copy)]
enum End {
    /// Stopped once all turns are durable.
    Settled,
    /// Stopped while turns are handed in.
    Early,
    /// A sync fails.
    Failure,
}

fn run(syncs: Syncs, end: End) {
    let disk = ModelDisk::new();
    let Opened { wals, logs, .. } = open_log(Arc::new(disk.clone()));
    let lane = Arc::clone(&logs[0].lane);
    let watch = Arc::new(Watch {
        disk: disk.clone(),
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    wals[0].observe(Arc::clone(&watch) as Arc<dyn WalObserver>);
    if matches!(end, End::Failure) {
        disk.fail_batch(2);
    }
    let spawn = |run: fn(&crate::lane::Lane)| {
        let lane = Arc::clone(&lane);
        thread::spawn(move || run(&lane))
    };
    let background = [
        spawn(crate::lane::Lane::flush_loop),
        spawn(crate::lane::Lane::tend_loop),
    ];
    let shards = logs.into_iter().enumerate().map(|(shard, mut log)| {
        let watch = Arc::clone(&watch);
        thread::spawn(move || {
            let (turn, lsn) = hand_in(&mut log, shard, syncs, &watch);
            // Except when the sync failed, what was taken must become durable, whoever stops the lane meanwhile.
            if let Some(lsn) = lsn
                && watch.wait(lsn)
            {
                assert!(watch.disk.synced() >= lsn.0);
                log.on_durable(&Durable { lane: 0, lsn });
                return turn;
            }
            0
        })
    });
    let shards: Vec<_> = shards.collect();
    if matches!(end, End::Early) {
        lane.stop();
    }
    let durable: Vec<u64> = shards
        .into_iter()
        .map(|shard| shard.join().unwrap())
        .collect();
    lane.stop();
    for thread in background {
        thread.join().unwrap();
    }
    let failures = watch.state.lock().unwrap().failures;
    assert_eq!(failures, usize::from(matches!(end, End::Failure)));
    if failures == 0 {
        assert_eq!(lane.pending_bytes(), 0);
    }
    drop((wals, lane));
    let after = ModelDisk::on(disk.disk.after_power_cut(Keep::Nothing));
    let again = open_log(Arc::new(after));
    for (shard, turn) in durable.into_iter().enumerate() {
        let found = again.logs[shard].hard_state_of(group_of(shard));
        let found = found.map_or(0, |state| state.term.0);
        assert!(
            found >= turn,
            "turn {turn} of shard {shard} was reported durable, {found} is there"
        );
    }
}

fn turns_become_durable() {
    run(Syncs::ByFlusher, End::Settled);
}

fn stopping_writes_what_was_taken() {
    run(Syncs::ByFlusher, End::Early);
}

fn a_failed_sync_ends_everything() {
    run(Syncs::ByFlusher, End::Failure);
}

fn turns_become_durable_inline() {
    run(Syncs::Inline, End::Settled);
}

fn stopping_writes_what_was_to_be_synced_inline() {
    run(Syncs::Inline, End::Early);
}

fn a_failed_inline_sync_ends_everything() {
    run(Syncs::Inline, End::Failure);
}

#[test]
fn models_turns_become_durable_in_every_order() {
    in_many_orders(turns_become_durable);
}

#[test]
fn models_stopping_writes_what_was_taken_in_every_order() {
    in_many_orders(stopping_writes_what_was_taken);
}

#[test]
fn models_a_failed_sync_ends_everything_in_every_order() {
    in_many_orders(a_failed_sync_ends_everything);
}

#[test]
fn models_turns_become_durable_inline_in_every_order() {
    in_many_orders(turns_become_durable_inline);
}

#[test]
fn models_stopping_writes_what_was_to_be_synced_inline_in_every_order() {
    in_many_orders(stopping_writes_what_was_to_be_synced_inline);
}

#[test]
fn models_a_failed_inline_sync_ends_everything_in_every_order() {
    in_many_orders(a_failed_inline_sync_ends_everything);
}

#[cfg(polyraft_mutants)]
mod mutants {
    use polyraft_raft::mutants::Mutant;

    use super::super::notices;
    use super::*;

    #[test]
    fn a_report_before_the_sync_is_noticed() {
        notices(Mutant::DurableBeforeSync, turns_become_durable);
    }

    #[test]
    fn a_lost_wake_up_is_noticed() {
        notices(Mutant::WakeUpLost, turns_become_durable);
    }

    #[test]
    fn an_inline_sync_that_is_left_to_nobody_is_noticed() {
        notices(Mutant::InlineSyncGivenUp, turns_become_durable_inline);
    }

    #[test]
    fn a_turn_that_a_stop_forgets_is_noticed() {
        notices(Mutant::StopForgetsTurn, stopping_writes_what_was_taken);
    }

    #[test]
    fn a_failed_sync_that_counts_is_noticed() {
        notices(Mutant::SyncErrorIgnored, a_failed_sync_ends_everything);
    }
}

//! Owns a driver that runs one shard on a simulated disk beside the model of a log, and compares the two.
//! Must never accept a state that the model did not go through.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyraft_raft::NodeId;
use polyraft_storage::sim::SimDisk;
use polyraft_storage::sim::model::{self, Model, Op};
use polyraft_storage::{
    DataDir, Durable, Lsn, RecoveryReport, ShardLog, StorageError, Wal, WalMode, WalOptions,
    WalStats, open,
};

pub const PATH: &str = "/data";

pub struct Driver {
    pub wal: Wal,
    pub log: ShardLog,
    pub report: RecoveryReport,
    pub model: Model,
    /// The model after each change, from the recovered state on.
    pub states: Vec<Model>,
    /// Batches submitted, each with the number of states it covers.
    submitted: Vec<(Lsn, usize)>,
    /// States up to here must survive.
    pub acknowledged: usize,
}

pub fn options(mode: WalMode) -> WalOptions {
    WalOptions {
        mode,
        segment_bytes: 64 << 10,
        max_batch_bytes: 16 << 10,
        checkpoint_bytes: 64 << 10,
        pool_segments: 1,
        tail_cache_bytes: 8 << 10,
        min_free_bytes: 0,
        ..WalOptions::default()
    }
}

impl Driver {
    pub fn open(disk: &SimDisk, options: &WalOptions) -> Result<Self, StorageError> {
        let dir = DataDir::open(
            Arc::new(disk.clone()),
            Path::new(PATH),
            "test",
            NodeId(1),
            1,
        )?;
        let mut opened = open(&dir, options, 1)?;
        let (wal, log) = (opened.wals.remove(0), opened.logs.remove(0));
        let model = read_all(&log);
        let states = vec![model.clone()];
        Ok(Self {
            wal,
            log,
            report: opened.report,
            model,
            states,
            submitted: Vec::new(),
            acknowledged: 0,
        })
    }

    /// Applies one change to the log and the model.
    pub fn apply(&mut self, op: &Op) -> Result<(), StorageError> {
        op.write(&mut self.log, &self.model)?;
        op.apply(&mut self.model);
        self.states.push(self.model.clone());
        Ok(())
    }

    pub fn submit(&mut self) -> Result<Option<Lsn>, StorageError> {
        let lsn = self.log.submit()?;
        self.submitted
            .extend(lsn.map(|lsn| (lsn, self.states.len() - 1)));
        Ok(lsn)
    }

    /// Makes everything that was submitted durable and does all background work.
    pub fn settle(&mut self) -> Result<(), StorageError> {
        while self.flush()? || self.log.maintain()? || self.wal.tend()? {}
        Ok(())
    }

    /// Makes everything that was submitted durable.
    pub fn flush(&mut self) -> Result<bool, StorageError> {
        let mut worked = false;
        while self.flush_one()? {
            worked = true;
        }
        Ok(worked)
    }

    /// Makes one batch durable.
    fn flush_one(&mut self) -> Result<bool, StorageError> {
        let more = self.wal.pump();
        // What became durable before a failure counts as acknowledged.
        let durable = self.wal.durable();
        for (lsn, states) in &self.submitted {
            if *lsn <= durable {
                self.acknowledged = self.acknowledged.max(*states);
            }
        }
        self.submitted.retain(|(lsn, _)| *lsn > durable);
        self.log.on_durable(&Durable {
            lane: 0,
            lsn: durable,
        });
        more
    }

    /// Runs turns of changes, each made durable and followed by one slice of background work.
    pub fn run(&mut self, turns: &[Vec<Op>]) -> Result<(), StorageError> {
        for turn in turns {
            for op in turn {
                self.apply(op)?;
            }
            self.submit()?;
            self.flush()?;
            assert_eq!(read_all(&self.log), self.model);
            self.log.maintain()?;
            self.flush()?;
            self.wal.tend()?;
        }
        Ok(())
    }

    pub fn stats(&self) -> WalStats {
        self.wal.stats()
    }
}

/// Everything a log says about its groups, entries included. None may be damaged.
pub fn read_all(log: &ShardLog) -> Model {
    let (model, faulty) = model::read_all(log).unwrap();
    assert!(faulty.is_empty(), "{faulty:?} are damaged");
    model
}

/// Two entries in a block, the second one short.
pub fn append(group: u64, text: &str) -> Op {
    Op::Append {
        group,
        term: 1,
        payloads: vec![text.as_bytes().to_vec(), b"x".to_vec()],
    }
}

/// The segment files of the log.
pub fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect()
}

//! Owns running a workload on a simulated disk beside the model, and noting what was acknowledged before each operation.
//! Must never count as acknowledged what the log did not report durable.

use std::path::Path;
use std::sync::Arc;

use polyraft_raft::{GroupId, NodeId, shard_of};
use polyraft_storage::sim::SimDisk;
use polyraft_storage::sim::model::{Model, Op, read_all};
use polyraft_storage::{
    DataDir, Durable, Lsn, PeerSeen, RecoveryReport, ShardLog, StorageError, StoreId, Wal, WalMode,
    WalOptions, open,
};

const PATH: &str = "/data";

/// What kind of log a workload runs on.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub mode: WalMode,
    pub shards: usize,
    pub lanes: usize,
}

impl Shape {
    fn options(self) -> WalOptions {
        WalOptions {
            mode: self.mode,
            segment_bytes: 64 << 10,
            max_batch_bytes: 16 << 10,
            checkpoint_bytes: 64 << 10,
            pool_segments: 1,
            // Most reads go to the disk.
            tail_cache_bytes: 2 << 10,
            min_free_bytes: 0,
            lanes: self.lanes,
            ..WalOptions::default()
        }
    }

    pub fn shard_of(self, group: u64) -> usize {
        shard_of(GroupId(group), self.shards)
    }
}

/// One thing that a node does with its log.
#[derive(Clone, Debug)]
pub enum Step {
    Op(Op),
    /// Every shard ends its turn.
    Submit,
    /// Every lane writes one batch.
    Pump,
    /// Every lane writes all that waits.
    Flush,
    /// Every shard does a slice of upkeep.
    Maintain,
    /// Every lane does a step of background work.
    Tend,
    /// Every lane is asked for a checkpoint.
    Checkpoint,
    /// Nothing is left to do afterwards.
    Settle,
    /// The node stops, properly or not, and starts again. All must be durable.
    Restart {
        clean: bool,
    },
    /// The disk has this much room from now on.
    Capacity(u64),
    /// A peer with another incarnation is noticed.
    Peer(u64),
}

/// An open log.
pub struct Log {
    pub wals: Vec<Wal>,
    pub logs: Vec<ShardLog>,
    pub report: RecoveryReport,
    dir: DataDir,
}

impl Log {
    pub fn open(disk: &SimDisk, shape: Shape) -> Result<Self, StorageError> {
        let dir = DataDir::open(
            Arc::new(disk.clone()),
            Path::new(PATH),
            "test",
            NodeId(1),
            shape.lanes,
        )?;
        let opened = open(&dir, &shape.options(), shape.shards)?;
        Ok(Self {
            wals: opened.wals,
            logs: opened.logs,
            report: opened.report,
            dir,
        })
    }

    /// What it holds, by shard, and the groups that it knows to be damaged.
    pub fn read_all(&self) -> Result<(Vec<Model>, Vec<u64>), String> {
        let (mut models, mut faulty) = (Vec::new(), Vec::new());
        for log in &self.logs {
            let (model, more) = read_all(log)?;
            models.push(model);
            faulty.extend(more);
        }
        Ok((models, faulty))
    }

    /// Writes one change; `model` is its shard's, as it was before.
    pub fn write(&mut self, shape: Shape, model: &Model, op: &Op) -> Result<(), StorageError> {
        op.write(&mut self.logs[shape.shard_of(op.group().0)], model)
    }

    /// Tells the shards of a lane its watermark.
    pub fn on_durable(&mut self, lane: usize) -> Lsn {
        let lsn = self.wals[lane].durable();
        let lanes = self.wals.len();
        for log in self.logs.iter_mut().skip(lane).step_by(lanes) {
            log.on_durable(&Durable { lane, lsn });
        }
        lsn
    }

    /// Writes all that waits. Returns whether anything did.
    pub fn flush(&mut self) -> Result<bool, StorageError> {
        let mut worked = false;
        for lane in 0..self.wals.len() {
            while self.wals[lane].pump()? {
                worked = true;
                self.on_durable(lane);
            }
        }
        Ok(worked)
    }

    /// Does everything that is left to do.
    pub fn settle(&mut self) -> Result<(), StorageError> {
        loop {
            let mut worked = self.flush()?;
            for log in &mut self.logs {
                worked |= log.maintain()?;
            }
            for wal in &self.wals {
                worked |= wal.tend()?;
            }
            if !worked {
                return Ok(());
            }
        }
    }
}

/// The states that one shard went through.
#[derive(Default)]
struct Shard {
    /// The one before any change first.
    states: Vec<Model>,
    /// Batches on their way, each with the state that it leads to.
    submitted: Vec<(Lsn, usize)>,
    /// States up to here were handed to the log.
    written: usize,
    /// States up to here were reported durable.
    acknowledged: usize,
}

/// For each shard: the state that must be there, and the last that may be.
type Bounds = Vec<(usize, usize)>;

/// A workload that ran, with what may be found after a power cut at any moment.
pub struct Run {
    pub shape: Shape,
    pub disk: SimDisk,
    /// The disk before each operation.
    pub images: Vec<SimDisk>,
    /// Why it ended early, if so.
    pub error: Option<StorageError>,
    pub log: Option<Log>,
    shards: Vec<Shard>,
    /// What was known once so many operations were done.
    marks: Vec<(u64, Bounds)>,
}

impl Run {
    /// Runs a workload to its end, or to the first error that the disk makes.
    pub fn of(shape: Shape, disk: SimDisk, steps: &[Step]) -> Self {
        let empty = || Shard {
            states: vec![Model::default()],
            ..Shard::default()
        };
        let mut run = Self {
            shape,
            disk,
            images: Vec::new(),
            error: None,
            log: None,
            shards: (0..shape.shards).map(|_| empty()).collect(),
            marks: Vec::new(),
        };
        run.disk.record_images();
        run.mark();
        run.error = run.run(steps).err();
        run.images = run.disk.take_images();
        run
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), StorageError> {
        self.log = Some(Log::open(&self.disk, self.shape)?);
        for step in steps {
            self.step(step)?;
        }
        Ok(())
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("the log is open")
    }

    fn step(&mut self, step: &Step) -> Result<(), StorageError> {
        match step {
            Step::Op(op) => self.op(op),
            Step::Submit => self.submit(),
            Step::Pump => self.pump().map(|_| ()),
            Step::Flush => {
                while self.pump()? {}
                Ok(())
            }
            Step::Maintain => self.maintain().map(|_| ()),
            Step::Tend => self.tend().map(|_| ()),
            Step::Checkpoint => {
                for wal in &self.log().wals {
                    wal.request_checkpoint();
                }
                Ok(())
            }
            Step::Settle => {
                while self.pump()? | self.maintain()? | self.tend()? {}
                Ok(())
            }
            Step::Restart { clean } => self.restart(*clean),
            Step::Capacity(bytes) => {
                self.disk.set_capacity(*bytes);
                Ok(())
            }
            Step::Peer(incarnation) => {
                let seen = PeerSeen {
                    store: StoreId(7),
                    incarnation: *incarnation,
                };
                self.log().dir.note_peer(NodeId(2), seen)
            }
        }
    }

    fn op(&mut self, op: &Op) -> Result<(), StorageError> {
        let shape = self.shape;
        let shard = &mut self.shards[shape.shard_of(op.group().0)];
        let model = shard.states.last().expect("there is a first state");
        let log = self.log.as_mut().expect("the log is open");
        log.write(shape, model, op)?;
        let mut model = model.clone();
        op.apply(&mut model);
        shard.states.push(model);
        Ok(())
    }

    fn submit(&mut self) -> Result<(), StorageError> {
        let log = self.log.as_mut().expect("the log is open");
        let mut result = Ok(());
        for (log, shard) in log.logs.iter_mut().zip(&mut self.shards) {
            match log.submit() {
                Ok(lsn) => {
                    shard.written = shard.states.len() - 1;
                    shard.submitted.extend(lsn.map(|lsn| (lsn, shard.written)));
                }
                // The turn is kept, and handed in with a later one.
                Err(StorageError::DiskFull { .. }) => {}
                Err(error) => result = Err(error),
            }
        }
        self.mark();
        result
    }

    /// Writes one batch per lane. Returns whether there was one.
    fn pump(&mut self) -> Result<bool, StorageError> {
        let (mut worked, mut result) = (false, Ok(()));
        for lane in 0..self.shape.lanes {
            match self.log().wals[lane].pump() {
                Ok(more) => worked |= more,
                Err(error) => result = Err(error),
            }
            self.acknowledge(lane);
        }
        result.map(|()| worked)
    }

    /// Takes note of what a lane reports durable.
    fn acknowledge(&mut self, lane: usize) {
        let durable = self.log().on_durable(lane);
        let lanes = self.shape.lanes;
        for shard in self.shards.iter_mut().skip(lane).step_by(lanes) {
            for (lsn, state) in &shard.submitted {
                if *lsn <= durable {
                    shard.acknowledged = shard.acknowledged.max(*state);
                }
            }
            shard.submitted.retain(|(lsn, _)| *lsn > durable);
        }
        self.mark();
    }

    fn maintain(&mut self) -> Result<bool, StorageError> {
        let mut worked = false;
        for log in &mut self.log().logs {
            match log.maintain() {
                // What it wanted to move stays where it is until there is room.
                Err(StorageError::DiskFull { .. }) => {}
                more => worked |= more?,
            }
        }
        Ok(worked)
    }

    fn tend(&mut self) -> Result<bool, StorageError> {
        let mut worked = false;
        for wal in &self.log().wals {
            worked |= wal.tend()?;
        }
        Ok(worked)
    }

    fn restart(&mut self, clean: bool) -> Result<(), StorageError> {
        for shard in &self.shards {
            assert_eq!(
                shard.acknowledged + 1,
                shard.states.len(),
                "a workload restarts with something not durable"
            );
        }
        let log = self.log.take().expect("the log is open");
        if clean {
            for wal in &log.wals {
                wal.close()?;
            }
        }
        drop(log);
        let log = Log::open(&self.disk, self.shape)?;
        let (found, faulty) = log.read_all().expect("an undisturbed log can be read");
        assert!(
            found.iter().eq(self.shards.iter().map(last_state)) && faulty.is_empty(),
            "an undisturbed restart lost something"
        );
        self.log = Some(log);
        Ok(())
    }

    fn mark(&mut self) {
        let bounds = self
            .shards
            .iter()
            .map(|shard| (shard.acknowledged, shard.written));
        self.marks.push((self.disk.operations(), bounds.collect()));
    }

    /// By shard, the states that may be found when the power goes before operation `operation`.
    pub fn allowed(&self, operation: usize) -> Vec<&[Model]> {
        let known = self
            .marks
            .partition_point(|(operations, _)| *operations <= operation as u64);
        let (_, bounds) = &self.marks[known - 1];
        let shards = self.shards.iter().zip(bounds);
        shards
            .map(|(shard, (from, to))| &shard.states[*from..=*to])
            .collect()
    }

    /// The last state of every shard.
    pub fn end(&self) -> Vec<&Model> {
        self.shards.iter().map(last_state).collect()
    }
}

fn last_state(shard: &Shard) -> &Model {
    shard.states.last().expect("there is a first state")
}

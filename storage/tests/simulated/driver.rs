//! Owns a driver that runs one shard on a simulated disk beside a model, and compares what is recovered with the model.
//! Must never accept a state that the model did not go through.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, LogPosition, NodeId, Term,
};
use polyraft_storage::sim::SimDisk;
use polyraft_storage::{
    Blocks, DataDir, Durable, EntryKind, Lsn, RecoveryReport, ShardLog, StorageError, Wal, WalMode,
    WalOptions, WalStats, open,
};

pub const PATH: &str = "/data";

/// What a group should look like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    pub state: HardState,
    pub base: LogPosition,
    pub entries: BTreeMap<u64, (u64, Vec<u8>)>,
}

/// All groups; `None` is a tombstone.
pub type Model = BTreeMap<u64, Option<Expected>>;

/// One change of a log.
#[derive(Clone, Debug)]
pub enum Op {
    Create(u64),
    Append {
        group: u64,
        term: u64,
        payloads: Vec<Vec<u8>>,
    },
    State {
        group: u64,
        term: u64,
        vote: u64,
        commit: u64,
    },
    Truncate {
        group: u64,
        from: u64,
    },
    Purge {
        group: u64,
        through: u64,
    },
    Tombstone(u64),
}

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

pub fn voters() -> Configuration {
    Configuration::simple([NodeId(1), NodeId(2), NodeId(3)])
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
        match op {
            Op::Create(group) => {
                self.log.create(GroupId(*group), &voters())?;
                self.model.insert(*group, Some(Expected::default()));
            }
            Op::Append {
                group,
                term,
                payloads,
            } => {
                let first = self.log.last(GroupId(*group)).unwrap().0 + 1;
                let range = EntryRange {
                    term: Term(*term),
                    first: Index(first),
                    end: Index(first + payloads.len() as u64),
                };
                self.log
                    .append(GroupId(*group), range, EntryKind::Normal, payloads)?;
                let entries =
                    (first..).zip(payloads.iter().map(|payload| (*term, payload.clone())));
                self.expected(*group).entries.extend(entries);
            }
            Op::State {
                group,
                term,
                vote,
                commit,
            } => {
                let state = HardState {
                    term: Term(*term),
                    vote: Some(NodeId(*vote)),
                    commit: Index(*commit),
                };
                self.log.hard_state(GroupId(*group), state)?;
                self.expected(*group).state = state;
            }
            Op::Truncate { group, from } => {
                self.log.truncate(GroupId(*group), Index(*from))?;
                self.expected(*group).entries.split_off(from);
            }
            Op::Purge { group, through } => {
                let expected = self.expected(*group);
                let term = expected.entries.get(through).map_or(9, |(term, _)| *term);
                let position = LogPosition {
                    term: Term(term),
                    index: Index(*through),
                };
                expected.entries = expected.entries.split_off(&(through + 1));
                expected.base = position;
                self.log.purge(GroupId(*group), position)?;
            }
            Op::Tombstone(group) => {
                self.log.tombstone(GroupId(*group))?;
                self.model.insert(*group, None);
            }
        }
        self.states.push(self.model.clone());
        Ok(())
    }

    fn expected(&mut self, group: u64) -> &mut Expected {
        self.model.get_mut(&group).unwrap().as_mut().unwrap()
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

    /// Runs turns of changes with several of them in flight, and background work in between.
    pub fn run_overlapped(&mut self, turns: &[Vec<Op>]) -> Result<(), StorageError> {
        for (at, turn) in turns.iter().enumerate() {
            for op in turn {
                self.apply(op)?;
            }
            self.submit()?;
            self.log.maintain()?;
            if at % 3 == 1 {
                self.flush_one()?;
            }
            self.wal.tend()?;
        }
        Ok(())
    }

    pub fn stats(&self) -> WalStats {
        self.wal.stats()
    }
}

/// Everything a log says about its groups, entries included.
pub fn read_all(log: &ShardLog) -> Model {
    let mut model: Model = log.tombstones().map(|group| (group.0, None)).collect();
    for group in log.groups() {
        assert_eq!(group.fault, None);
        assert_eq!(group.configuration, voters());
        let entries = read_entries(log, group.group.0, group.base.index.0 + 1, group.last.0 + 1);
        for pair in group.runs.windows(2) {
            assert!(
                pair[0].first < pair[1].first && pair[0].term < pair[1].term,
                "{:?}",
                group.runs
            );
        }
        for (index, (term, _)) in &entries {
            let run = group
                .runs
                .iter()
                .rfind(|run| run.first.0 <= *index)
                .unwrap();
            assert_eq!(run.term.0, *term);
        }
        let expected = Expected {
            state: group.hard_state,
            base: group.base,
            entries,
        };
        model.insert(group.group.0, Some(expected));
    }
    model
}

fn read_entries(log: &ShardLog, group: u64, first: u64, end: u64) -> BTreeMap<u64, (u64, Vec<u8>)> {
    let mut entries = BTreeMap::new();
    let mut blocks = Blocks::default();
    let mut at = Index(first);
    while at < Index(end) {
        at = log
            .blocks(GroupId(group), at, Index(end), 2000, &mut blocks)
            .unwrap();
    }
    for block in blocks.iter() {
        for (index, bytes) in block
            .entries()
            .filter(|(index, _)| (first..end).contains(&index.0))
        {
            entries.insert(index.0, (block.term().0, bytes.to_vec()));
        }
    }
    entries
}

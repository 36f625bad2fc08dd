//! Owns the naive model of a log in memory: what each change does to a group, and what a log says about its groups. Tests
//! change a log and the model alike and compare. Must never look into files.

use std::collections::BTreeMap;
use std::sync::Arc;

use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, LogPosition, NodeId, Term,
};

use crate::block::EntryKind;
use crate::blocks::Blocks;
use crate::error::{ReadError, StorageError};
use crate::shard::ShardLog;
use crate::tombstone::Tombstone;

/// A replica as it should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replica {
    /// Its hard state.
    pub state: HardState,
    /// Through where it was purged.
    pub base: LogPosition,
    /// Term and payload by index.
    pub entries: BTreeMap<u64, (u64, Vec<u8>)>,
}

impl Replica {
    /// Index of the last entry, or where the log was purged to.
    pub fn last(&self) -> u64 {
        let last = self.entries.keys().next_back();
        last.map_or(self.base.index.0, |last| *last)
    }
}

/// The groups of a shard, each with the number of its life; without a replica that is a tombstone.
pub type Model = BTreeMap<u64, (u32, Option<Arc<Replica>>)>;

/// One change of a log.
#[derive(Clone, Debug)]
pub enum Op {
    /// A replica begins.
    Create(u64),
    /// Entries behind the last one, in one block.
    Append {
        /// Its group.
        group: u64,
        /// Their term.
        term: u64,
        /// One for each entry.
        payloads: Vec<Vec<u8>>,
    },
    /// A new hard state.
    State {
        /// Its group.
        group: u64,
        /// The term.
        term: u64,
        /// For which node.
        vote: u64,
        /// Through which index.
        commit: u64,
    },
    /// Entries go from the end.
    Truncate {
        /// Their group.
        group: u64,
        /// The first of them.
        from: u64,
    },
    /// Entries go from the front; also beyond the last entry, as an installed snapshot does.
    Purge {
        /// Their group.
        group: u64,
        /// The last of them.
        through: u64,
    },
    /// A replica ends.
    Tombstone(u64),
}

impl Op {
    /// The group that it changes.
    pub fn group(&self) -> GroupId {
        GroupId(match self {
            Self::Create(group)
            | Self::Tombstone(group)
            | Self::Append { group, .. }
            | Self::State { group, .. }
            | Self::Truncate { group, .. }
            | Self::Purge { group, .. } => *group,
        })
    }

    /// Takes effect on the model. Panics on a group that is not there.
    pub fn apply(&self, model: &mut Model) {
        let id = self.group().0;
        match self {
            Self::Create(_) => {
                let life = model.get(&id).map_or(0, |(life, _)| life + 1);
                model.insert(id, (life, Some(Arc::default())));
            }
            Self::Tombstone(_) => {
                let life = model.get(&id).map_or(0, |(life, _)| *life);
                model.insert(id, (life, None));
            }
            _ => {
                let replica = model.get_mut(&id).and_then(|(_, replica)| replica.as_mut());
                self.change(Arc::make_mut(replica.expect("the group is there")));
            }
        }
    }

    /// Writes the change to a log whose groups are as `model` has them. Panics on a group that is not there.
    pub fn write(&self, log: &mut ShardLog, model: &Model) -> Result<(), StorageError> {
        let group = self.group();
        let replica = || {
            let replica = model
                .get(&group.0)
                .and_then(|(_, replica)| replica.as_ref());
            replica.expect("the group is there")
        };
        match self {
            Self::Create(_) => log.create(group, &voters()),
            Self::Tombstone(_) => {
                let life = log.life(group);
                let ended = log.tombstone_of(group).map(|tombstone| tombstone.life);
                let life = life.or(ended).unwrap_or_default();
                log.tombstone(group, Tombstone::destroyed(life))
            }
            Self::Append { term, payloads, .. } => {
                let first = replica().last() + 1;
                let range = EntryRange {
                    term: Term(*term),
                    first: Index(first),
                    end: Index(first + payloads.len() as u64),
                };
                log.append(group, range, EntryKind::Normal, payloads)
            }
            Self::State { .. } => {
                let mut after = Replica::default();
                self.change(&mut after);
                log.hard_state(group, after.state)
            }
            Self::Truncate { from, .. } => log.truncate(group, Index(*from)),
            Self::Purge { through, .. } => log.purge(group, purged(replica(), *through)),
        }
    }

    fn change(&self, replica: &mut Replica) {
        match self {
            Self::Append { term, payloads, .. } => {
                let entries = payloads.iter().map(|payload| (*term, payload.clone()));
                let first = replica.last() + 1;
                replica.entries.extend((first..).zip(entries));
            }
            Self::State {
                term, vote, commit, ..
            } => {
                replica.state = HardState {
                    term: Term(*term),
                    vote: Some(NodeId(*vote)),
                    commit: Index(*commit),
                }
            }
            Self::Truncate { from, .. } => _ = replica.entries.split_off(from),
            Self::Purge { through, .. } if *through > replica.base.index.0 => {
                replica.base = purged(replica, *through);
                replica.entries = replica.entries.split_off(&(through + 1));
            }
            Self::Purge { .. } | Self::Create(_) | Self::Tombstone(_) => {}
        }
    }
}

/// The position that a purge through `index` leaves.
fn purged(replica: &Replica, index: u64) -> LogPosition {
    /// What a snapshot from elsewhere would say.
    const FOREIGN_TERM: u64 = 9;
    let term = replica.entries.get(&index);
    LogPosition {
        term: Term(term.map_or(FOREIGN_TERM, |(term, _)| *term)),
        index: Index(index),
    }
}

/// The configuration of every group.
pub fn voters() -> Configuration {
    Configuration::simple([NodeId(1), NodeId(2), NodeId(3)])
}

/// What a log says about its groups, down to every entry. Groups that the log itself knows to be damaged are listed apart.
pub fn read_all(log: &ShardLog) -> Result<(Model, Vec<u64>), String> {
    let tombstones = log.tombstones();
    let mut model: Model = tombstones
        .map(|(group, tombstone)| (group.0, (tombstone.life.get(), None)))
        .collect();
    let mut faulty = Vec::new();
    for group in log.groups() {
        let id = group.group.0;
        if group.fault.is_some() {
            faulty.push(id);
            continue;
        }
        if group.configuration != voters() {
            return Err(format!("g{id}: configuration {:?}", group.configuration));
        }
        let entries = match read_entries(log, id, group.base.index.next(), group.last.next()) {
            Ok(entries) => entries,
            Err(ReadError::Damaged { .. }) => {
                faulty.push(id);
                continue;
            }
            Err(error) => return Err(error.to_string()),
        };
        for (index, (term, _)) in &entries {
            let run = group.runs.iter().rfind(|run| run.first.0 <= *index);
            if run.is_none_or(|run| run.term.0 != *term) {
                return Err(format!(
                    "g{id}: entry {index} has term {term}, the runs say {run:?}"
                ));
            }
        }
        let replica = Replica {
            state: group.hard_state,
            base: group.base,
            entries,
        };
        if replica.last() != group.last.0 {
            return Err(format!(
                "g{id}: ends at {}, not at {}",
                replica.last(),
                group.last
            ));
        }
        model.insert(id, (group.life.get(), Some(Arc::new(replica))));
    }
    Ok((model, faulty))
}

fn read_entries(
    log: &ShardLog,
    group: u64,
    first: Index,
    end: Index,
) -> Result<BTreeMap<u64, (u64, Vec<u8>)>, ReadError> {
    let mut blocks = Blocks::default();
    let mut at = first;
    while at < end {
        at = log.blocks(GroupId(group), at, end, 1 << 16, &mut blocks)?;
    }
    let mut entries = BTreeMap::new();
    for block in blocks.iter() {
        let inside = block
            .entries()
            .filter(|(index, _)| (first..end).contains(index));
        for (index, bytes) in inside {
            entries.insert(index.0, (block.term().0, bytes.to_vec()));
        }
    }
    Ok(entries)
}

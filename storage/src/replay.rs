//! Owns the meaning of records on replay: the same steps that the shard took when it wrote them.
//! Must never panic on what it reads: a record that does not fit marks its group.

use bytes::Bytes;
use polyraft_raft::{GroupId, Life};
use rustc_hash::FxHashMap;

use crate::batch::Lsn;
use crate::checkpoint::{self, CheckpointHeader, Held, Position};
use crate::damage::{LogDamage, Lost};
use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, CONTROL_HEADER_BYTES, Located, Record, Records,
};
use crate::group::{GroupLog, Interned};
use crate::index::Place;
use crate::tombstone::Tombstone;

/// All groups of a lane while it is read.
#[derive(Default)]
pub(crate) struct Groups {
    pub(crate) groups: FxHashMap<GroupId, GroupLog>,
    pub(crate) tombstones: FxHashMap<GroupId, Tombstone>,
    pub(crate) interned: Interned,
    /// Records before these are in the checkpoint already.
    positions: FxHashMap<GroupId, Position>,
    /// The highest of them.
    newest: Position,
}

impl Groups {
    /// Takes over a checkpoint.
    pub(crate) fn load(&mut self, file: &[u8]) -> Result<CheckpointHeader, &'static str> {
        let Self {
            groups,
            tombstones,
            interned,
            positions,
            newest,
        } = self;
        checkpoint::load(file, interned, |loaded| {
            *newest = loaded.position.max(*newest);
            positions.insert(loaded.group, loaded.position);
            match loaded.what {
                Held::Log(log) => _ = groups.insert(loaded.group, log),
                Held::Tombstone(tombstone) => _ = tombstones.insert(loaded.group, tombstone),
            }
        })
    }

    /// Replays a batch whose checksum matches.
    pub(crate) fn batch(&mut self, segment: u64, offset: u64, header: &BatchHeader, body: &Bytes) {
        let base = offset + BATCH_HEADER_BYTES as u64;
        for record in Records::new(body, false) {
            match record {
                Ok(located) => self.record(segment, base, header.lsn, located),
                // The checksum says that these bytes are what was written.
                Err(damage) => match damage.group {
                    Some(group) => {
                        // Whatever wrote it may have meant anything.
                        let place = (header.lsn, damage.offset);
                        self.damage(group, place, (damage.reason, Lost::Life));
                    }
                    None => tracing::error!(
                        lsn = header.lsn,
                        reason = damage.reason,
                        "a record was written wrong"
                    ),
                },
            }
        }
    }

    /// Replays one record; the batch's body begins at `base` in its segment.
    pub(crate) fn record(&mut self, segment: u64, base: u64, lsn: u64, located: Located) {
        let Located {
            offset,
            bytes,
            group,
            record,
        } = located;
        if self.is_known(group, lsn, offset) {
            return;
        }
        let place = Place::segment(segment);
        let at = base as u32 + offset;
        match record {
            Record::Create(creation) => {
                let before = self.tombstones.remove(&group);
                // What ended the replica before in this life is lost, and with it what this one must not forget.
                let here = self.groups.get_mut(&group);
                let lost = here.filter(|log| log.life == creation.life);
                let fault = lost.and_then(|log| log.fault.take());
                let mut log = GroupLog::begun(creation, before, &mut self.interned);
                log.fault = fault;
                self.groups.insert(group, log);
                return;
            }
            Record::Tombstone(tombstone) => {
                self.groups.remove(&group);
                self.tombstones.insert(group, tombstone);
                return;
            }
            _ => {}
        }
        let Some(log) = self.groups.get_mut(&group) else {
            let what = ("its log begins in the middle", Lost::Life);
            return self.damage(group, (lsn, offset), what);
        };
        if let Some(fault) = &mut log.fault {
            fault.follow(&record);
            if let Record::HardState(state) = record {
                log.hard_state = state;
            }
            return;
        }
        match record {
            Record::HardState(state) => log.hard_state = state,
            Record::Block {
                range,
                kind,
                configurations,
            } if range.first == log.last().next() => {
                log.append(range, place, at, bytes);
                log.has_sessions |= kind.concerns_sessions();
                for (index, configuration) in configurations {
                    log.configure(index, self.interned.share(configuration));
                }
            }
            Record::Block { range, .. } => {
                let fault = format!(
                    "entries {}..{} follow entry {}",
                    range.first,
                    range.end,
                    log.last()
                );
                self.damage(group, (lsn, offset), (&fault, Lost::Life));
            }
            Record::Truncate { from } => log.truncate(from),
            Record::Purge {
                through,
                configuration,
            } => {
                let configuration =
                    configuration.map(|configuration| self.interned.share(configuration));
                log.purge(through, configuration);
            }
            Record::Relocated { range } => {
                if let Some(cursor) = log.blocks.find_packed(range) {
                    let offset = at + CONTROL_HEADER_BYTES as u32;
                    log.blocks.set_place(cursor, place, offset);
                }
            }
            Record::Create(_) | Record::Tombstone(_) => {}
        }
    }

    /// Part of a group's log is lost. A group that is not here yet is kept as a faulty one: it may have voted.
    pub(crate) fn damage(
        &mut self,
        group: GroupId,
        (lsn, offset): (u64, u32),
        (reason, lost): (&str, Lost),
    ) {
        if self.is_known(group, lsn, offset) {
            return;
        }
        let is_here = self.groups.contains_key(&group);
        // Behind a tombstone comes another one or the next creation, and a replica of that may have voted too.
        let ended = self.tombstones.remove(&group);
        let log = self.groups.entry(group).or_insert_with(|| GroupLog {
            // A removed replica may be back in its own life.
            life: ended
                .and_then(|tombstone| tombstone.over())
                .map_or(Life::FIRST, Life::next),
            ..GroupLog::new(Default::default())
        });
        let last = log.last();
        let fault = log
            .fault
            .get_or_insert_with(|| LogDamage::of_log(reason, last));
        fault.lose(if is_here { lost } else { Lost::Life });
    }

    fn is_known(&self, group: GroupId, lsn: u64, offset: u32) -> bool {
        let position = Position {
            lsn: Lsn(lsn),
            offset,
        };
        position < self.newest
            && self
                .positions
                .get(&group)
                .is_some_and(|known| position < *known)
    }
}

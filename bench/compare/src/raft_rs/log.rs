//! One group's log as raft-rs reads it: the newest entries in memory, like TiKV's entry cache, the others in
//! raft-engine. It must never forget an entry that raft-engine does not have.

use super::RaftLog;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Result, Storage, StorageError};
use raft_engine::MessageExt;
use std::collections::VecDeque;
use std::sync::Arc;

/// Entries kept for a follower that lags. Older ones are read from raft-engine.
const MAX_CACHED: usize = 64 << 10;

/// Index and term of an entry.
pub type Position = (u64, u64);

/// How raft-engine finds the index of an entry.
#[derive(Clone)]
pub struct LogEntry;

impl MessageExt for LogEntry {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// The log of one replica.
pub struct Log {
    engine: Arc<RaftLog>,
    region: u64,
    pub hard_state: HardState,
    conf_state: ConfState,
    /// Consecutive, the last one is the log's last.
    cache: VecDeque<Entry>,
    /// Before the cache's first entry.
    before: Position,
    /// Before the first entry that is left; not above `before`.
    compacted: Position,
}

impl Log {
    /// An empty log of a group whose voters are `voters`.
    pub fn new(engine: Arc<RaftLog>, region: u64, voters: Vec<u64>) -> Self {
        Self {
            engine,
            region,
            hard_state: HardState::default(),
            conf_state: ConfState {
                voters,
                ..ConfState::default()
            },
            cache: VecDeque::new(),
            before: (0, 0),
            compacted: (0, 0),
        }
    }

    /// Takes entries that go to raft-engine in the same turn.
    pub fn append(&mut self, entries: Vec<Entry>) {
        if let Some(first) = entries.first() {
            assert!(first.index > self.before.0, "applied entries are final");
            let kept = (first.index - self.before.0 - 1) as usize;
            assert!(kept <= self.cache.len(), "a log has no holes");
            self.cache.truncate(kept);
        }
        self.cache.extend(entries);
    }

    /// Gives up entries through `position`, which are durable and applied here, and which no other replica may lack.
    pub fn compact(&mut self, position: Position) {
        self.compacted = position;
        self.drop_cached(position.0);
    }

    /// Entries through this index were given up.
    pub fn compacted(&self) -> u64 {
        self.compacted.0
    }

    /// Need not remember entries through `index`, which are durable; not even those through `applied` if there are many.
    pub fn trim(&mut self, index: u64, applied: u64) {
        let index = match self.cache.len() > MAX_CACHED {
            true => applied,
            false => index,
        };
        self.drop_cached(index);
    }

    fn drop_cached(&mut self, index: u64) {
        while let Some(first) = self.cache.front()
            && first.index <= index
        {
            self.before = (first.index, first.term);
            self.cache.pop_front();
        }
    }

    fn last(&self) -> u64 {
        self.before.0 + self.cache.len() as u64
    }

    fn cached(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.before.0 + 1)?;
        self.cache.get(at as usize)
    }

    fn read(&self, low: u64, high: u64, max_size: Option<u64>) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.engine
            .fetch_entries_to::<LogEntry>(
                self.region,
                low,
                high,
                max_size.map(|size| size as usize),
                &mut entries,
            )
            .map_err(|error| StorageError::Other(Box::new(error)))?;
        Ok(entries)
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.conf_state.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        let max_size = max_size.into();
        if low <= self.compacted.0 {
            return Err(StorageError::Compacted.into());
        }
        if low <= self.before.0 {
            return self.read(low, high.min(self.before.0 + 1), max_size);
        }
        let from = (low - self.before.0 - 1) as usize;
        let count = (high - low) as usize;
        let mut left = max_size.unwrap_or(u64::MAX);
        let mut entries = Vec::with_capacity(count);
        for entry in self.cache.range(from..from + count) {
            // As raft-rs counts it: about the encoded size, and at least one entry.
            let size = entry.data.len() as u64 + 12;
            if size > left && !entries.is_empty() {
                break;
            }
            left = left.saturating_sub(size);
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if let Some(entry) = self.cached(index) {
            return Ok(entry.term);
        }
        if index > self.last() {
            return Err(StorageError::Unavailable.into());
        }
        if index == self.compacted.0 {
            return Ok(self.compacted.1);
        }
        if index < self.compacted.0 {
            return Err(StorageError::Compacted.into());
        }
        let entries = self.read(index, index + 1, None)?;
        let entry = entries.first().ok_or(StorageError::Unavailable)?;
        Ok(entry.term)
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.compacted.0 + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> Result<Snapshot> {
        // The log is only compacted as far as every replica has it, so nobody needs one.
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CountingFiles, open_log};
    use super::*;
    use raft_engine::LogBatch;

    #[test]
    fn what_was_given_up_is_gone_and_its_last_term_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let files = Arc::new(CountingFiles::new(Arc::default(), 1));
        let engine = open_log(dir.path(), &files, 1 << 20).unwrap();
        let mut log = Log::new(Arc::clone(&engine), 7, vec![1, 2, 3]);
        let entries = (1..=9).map(|index| Entry {
            index,
            term: index / 4,
            ..Entry::default()
        });
        let entries: Vec<Entry> = entries.collect();
        let mut batch = LogBatch::default();
        batch.add_entries::<LogEntry>(7, &entries).unwrap();
        engine.write(&mut batch, true).unwrap();
        log.append(entries);
        log.trim(6, 6);
        log.compact((4, 1));
        let indexes = |low, high| -> Result<Vec<u64>> {
            let entries = log.entries(low, high, None, GetEntriesContext::empty(false))?;
            Ok(entries.iter().map(|entry| entry.index).collect())
        };
        let gone = raft::Error::Store(StorageError::Compacted);
        assert_eq!((log.first_index(), log.last_index()), (Ok(5), Ok(9)));
        assert_eq!(log.term(3), Err(gone));
        assert_eq!((log.term(4), log.term(5)), (Ok(1), Ok(1)));
        assert_eq!(
            indexes(4, 6),
            Err(raft::Error::Store(StorageError::Compacted))
        );
        // From raft-engine, and from memory.
        assert_eq!(
            (indexes(5, 9), indexes(7, 10)),
            (Ok(vec![5, 6]), Ok(vec![7, 8, 9]))
        );
    }
}

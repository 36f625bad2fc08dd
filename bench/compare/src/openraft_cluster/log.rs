//! One group's log as openraft reads it: entries in memory, and every change in the node's log file.

use super::file::{LogFile, Waiter};
use super::{Entry, Types};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    EntryPayload, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError, Vote,
};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::oneshot;

type Result<T> = std::result::Result<T, StorageError<u64>>;

/// Kinds of records.
const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const TRUNCATE: u8 = 3;

#[derive(Default)]
struct State {
    vote: Option<Vote<u64>>,
    purged: Option<LogId<u64>>,
    /// Index of the first entry in memory.
    first: u64,
    entries: VecDeque<Entry>,
}

impl State {
    /// Where the entries in `range` are.
    fn find(&self, range: impl RangeBounds<u64>) -> std::ops::Range<usize> {
        let first = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => self.first,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let place = |index: u64| {
            let at = index.saturating_sub(self.first);
            (at as usize).min(self.entries.len())
        };
        place(first)..place(end).max(place(first))
    }
}

/// The log of one replica. Clones share it.
#[derive(Clone)]
pub struct GroupLog {
    group: u32,
    file: Arc<LogFile>,
    state: Arc<Mutex<State>>,
}

impl GroupLog {
    /// An empty log.
    pub fn new(group: u32, file: Arc<LogFile>) -> Self {
        Self {
            group,
            file,
            state: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no thread panics while it holds the entries")
    }

    fn put_head(&self, kind: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.group.to_le_bytes());
        out.push(kind);
    }

    fn put_entry(&self, entry: &Entry, out: &mut Vec<u8>) {
        self.put_head(ENTRY, out);
        put_log_id(&entry.log_id, out);
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(command) => out.extend_from_slice(&command.payload),
            EntryPayload::Membership(membership) => {
                out.extend_from_slice(format!("{membership:?}").as_bytes());
            }
        }
    }
}

fn put_log_id(id: &LogId<u64>, out: &mut Vec<u8>) {
    out.extend_from_slice(&id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&id.leader_id.node_id.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
}

impl RaftLogReader<Types> for GroupLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>> {
        let state = self.lock();
        let range = state.find(range);
        Ok(state.entries.range(range).cloned().collect())
    }
}

impl RaftLogStorage<Types> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>> {
        let state = self.lock();
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: state
                .entries
                .back()
                .map(|entry| entry.log_id)
                .or(state.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<()> {
        self.lock().vote = Some(*vote);
        let (sender, durable) = oneshot::channel();
        let put = |vote: &Vote<u64>, out: &mut Vec<u8>| {
            self.put_head(VOTE, out);
            out.extend_from_slice(&vote.leader_id.term.to_le_bytes());
            out.extend_from_slice(&vote.leader_id.node_id.to_le_bytes());
            out.push(vote.committed.into());
        };
        let waiter = Some(Waiter::Voted(sender));
        self.file.append(std::iter::once(vote), put, waiter);
        let durable = durable.await;
        durable.map_err(|error| StorageIOError::write_vote(&error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>> {
        Ok(self.lock().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut state = self.lock();
        let before = state.entries.len();
        for entry in entries {
            if state.entries.is_empty() {
                state.first = entry.log_id.index;
            }
            state.entries.push_back(entry);
        }
        self.file.append(
            state.entries.range(before..),
            |entry, out| self.put_entry(entry, out),
            Some(Waiter::Appended(callback)),
        );
        Ok(())
    }

    async fn truncate(&mut self, since: LogId<u64>) -> Result<()> {
        let mut state = self.lock();
        let kept = state.find(since.index..).start;
        state.entries.truncate(kept);
        let put = |since: LogId<u64>, out: &mut Vec<u8>| {
            self.put_head(TRUNCATE, out);
            put_log_id(&since, out);
        };
        self.file.append(std::iter::once(since), put, None);
        Ok(())
    }

    async fn purge(&mut self, through: LogId<u64>) -> Result<()> {
        let mut state = self.lock();
        let purged = state.find(..=through.index).end;
        state.entries.drain(..purged);
        state.first = through.index + 1;
        state.purged = Some(through);
        Ok(())
    }
}

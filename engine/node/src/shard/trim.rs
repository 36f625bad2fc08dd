//! What a burst leaves behind: lists as long as there are groups, frames, turns that nobody will read again. A shard that has
//! written nothing for a while gives it back, so that an idle group costs its own state and nothing else.
//! It must never touch what is under way, nor come back before something was written again, unless there is something to forget.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use polyraft_raft::Tick;

use super::Shard;
use crate::apply::{ApplyBatch, Task};

/// A shard that has written nothing for so long is idle. Microseconds.
const IDLE_AFTER: u64 = 5_000_000;

/// Items for which lists keep room.
const KEPT: usize = 64;

/// When a shard gives memory back.
#[derive(Debug)]
pub(super) struct Trim {
    /// Unless something is written before. Absent: nothing was since the last time, and there is nothing to forget.
    pub(super) due_at: Option<Tick>,
    /// It counts among the shards that are idle.
    is_idle: bool,
}

impl Trim {
    /// For a shard that was just opened, which is a burst too.
    pub(super) fn opened(now: Tick) -> Self {
        Trim {
            due_at: Some(now.after(IDLE_AFTER)),
            is_idle: false,
        }
    }

    /// When the shard has to be looked at.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.due_at
    }
}

impl Shard {
    /// Something was written now.
    pub(super) fn note_written(&mut self) {
        self.trim.due_at = Some(self.now.after(IDLE_AFTER));
        if std::mem::take(&mut self.trim.is_idle) {
            self.shared.idle_shards.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Gives back what the last burst left, once the shard is idle. The end of a turn: everything has left its lists.
    pub(super) fn trim(&mut self) {
        if self.trim.due_at.take_if(|at| *at <= self.now).is_none() {
            return;
        }
        self.outbox.shrink_to(KEPT);
        self.touched.shrink_to(KEPT);
        self.retouch.shrink_to(KEPT);
        self.fired.shrink_to(KEPT);
        self.unsubmitted.shrink_to(KEPT);
        self.written.shrink_to(KEPT);
        self.submissions.shrink_to(KEPT);
        self.applying.shrink_to(KEPT);
        self.deferred.shrink_to(KEPT);
        self.claims.shrink_to(KEPT);
        self.proposals.shrink_to(KEPT);
        self.soon.shrink_to(KEPT);
        self.blocks = Default::default();
        self.spare_batches = Vec::new();
        let unused = self.applies.iter_mut().filter(|batch| batch.is_empty());
        unused.for_each(|batch| *batch = ApplyBatch::default());
        self.wheel.trim();
        self.queues.trim();
        self.outgoing.trim();
        self.ends.forget_former(self.now);
        self.trim.due_at = self.ends.forgets_at();
        self.ends.shrink_to(KEPT);
        self.log.trim();
        self.wal.trim();
        if let Some(home) = &mut self.home {
            home.trim();
        }
        if !std::mem::replace(&mut self.trim.is_idle, true) {
            self.call_on_idle();
        }
    }

    /// Has this thread do what the node's user wants of idle ones, and those that all shards share once all of them are idle: what
    /// they took over from this one is in memory that this one has allocated, and the other way round.
    fn call_on_idle(&self) {
        let idle = self.shared.idle_shards.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(on_idle) = self.shared.on_idle.get() else {
            return;
        };
        on_idle();
        if idle < self.shared.inboxes.len() {
            return;
        }
        for worker in &*self.shared.workers {
            worker.send(Task::Rest(Arc::clone(on_idle)));
        }
        self.outgoing.call_on_threads(on_idle);
    }
}

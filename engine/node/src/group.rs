//! The handle by which callers propose to a group and read from it, on whichever node they are.
//! It must never wait in `propose` for room: what does not fit is refused.

use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use polyraft_raft::{GroupId, LogPosition, NodeId, Term};

use crate::apply::Task;
use crate::completion::{Committed, CompletionQueue, Many, ReplyTo};
use crate::directory::GroupCell;
use crate::error::Error;
use crate::event::ShardEvent;
use crate::node::Inner;
use crate::shard::PROPOSAL_OVERHEAD;
use crate::status::GroupStatus;

/// Which state a read may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Read {
    /// Whatever this node's replica has applied so far. Never blocks on other nodes; may be behind, and two reads on
    /// different nodes may go back in time.
    Stale,
}

/// A group, from the point of view of one node. Cheap to make and to clone.
pub struct GroupHandle<M> {
    inner: Arc<Inner>,
    group: GroupId,
    shard: usize,
    cell: OnceLock<Arc<GroupCell>>,
    machine: PhantomData<fn() -> M>,
}

impl<M> Clone for GroupHandle<M> {
    fn clone(&self) -> Self {
        GroupHandle {
            inner: Arc::clone(&self.inner),
            group: self.group,
            shard: self.shard,
            cell: self.cell.clone(),
            machine: PhantomData,
        }
    }
}

impl<M> std::fmt::Debug for GroupHandle<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupHandle")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl<M> GroupHandle<M> {
    pub(crate) fn new(inner: Arc<Inner>, group: GroupId) -> Self {
        let shard = inner.shared.shard_of(group);
        GroupHandle {
            inner,
            group,
            shard,
            cell: OnceLock::new(),
            machine: PhantomData,
        }
    }

    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.group
    }

    /// Proposes `payload` and waits until it is committed (durable on a majority of the members) and applied on the
    /// leader's node. Any member may be asked; a follower sends the proposal on to the leader.
    ///
    /// Dropping the future does not take the proposal back.
    ///
    /// # Errors
    /// [`Error::is_retryable`] says whether trying again is safe. After [`Error::Unknown`] the proposal may or may
    /// not have been applied.
    pub async fn propose(&self, payload: impl Into<Bytes>) -> Result<Committed, Error> {
        let (outcome, reply) = self.inner.slots.pair();
        self.enqueue(payload.into(), reply)?;
        outcome.await
    }

    /// Proposes several payloads in order and waits for all of them. They travel and are written together, but each
    /// stands for itself: if the leader changes in between, a later one may be applied and an earlier one not.
    ///
    /// # Errors
    /// The first error in order; the proposals before it are applied, those after it may be.
    pub async fn propose_many(&self, payloads: Vec<Bytes>) -> Result<Vec<Committed>, Error> {
        if payloads.is_empty() {
            return Ok(Vec::new());
        }
        let many = Many::new(payloads.len());
        for (at, payload) in payloads.into_iter().enumerate() {
            let part = many.part(at);
            // A refusal is this part's outcome, like any other.
            if let Err((error, part)) = self.try_enqueue(payload, part) {
                part.answer(Err(error));
            }
        }
        many.wait().await.into_iter().collect()
    }

    /// Proposes without waiting: the outcome arrives at `queue`, under `tag`. For callers with many proposals in
    /// flight.
    ///
    /// # Errors
    /// When the proposal is refused at once; nothing arrives at the queue then.
    pub fn propose_with(
        &self,
        payload: impl Into<Bytes>,
        tag: u64,
        queue: &CompletionQueue,
    ) -> Result<(), Error> {
        self.enqueue(payload.into(), queue.reply_to(tag))
    }

    fn enqueue(&self, payload: Bytes, reply: ReplyTo) -> Result<(), Error> {
        self.try_enqueue(payload, reply).map_err(|(error, reply)| {
            reply.forget();
            error
        })
    }

    fn try_enqueue(&self, payload: Bytes, reply: ReplyTo) -> Result<(), (Error, ReplyTo)> {
        let inner = &self.inner;
        let bytes = payload.len();
        let taken = bytes + PROPOSAL_OVERHEAD;
        let refusal = if inner.shared.is_closed.load(Ordering::Acquire) {
            Some(Error::Closed)
        } else if bytes > inner.max_proposal_bytes {
            Some(Error::TooLarge {
                bytes,
                limit: inner.max_proposal_bytes,
            })
        } else {
            let waiting = inner.shared.gauges[self.shard]
                .proposals
                .fetch_add(taken, Ordering::Relaxed);
            let is_full = waiting + taken > inner.inbox_bytes;
            if is_full {
                inner.shared.gauges[self.shard]
                    .proposals
                    .fetch_sub(taken, Ordering::Relaxed);
            }
            if is_full {
                inner.shared.gauges[self.shard]
                    .refused
                    .fetch_add(1, Ordering::Relaxed);
            }
            is_full.then_some(Error::Busy {
                what: "shards.inbox_bytes",
                limit: inner.inbox_bytes as u64,
            })
        };
        if let Some(error) = refusal {
            return Err((error, reply));
        }
        let reply = match inner.shared.tracer.begin() {
            Some(trace) => reply.traced(trace),
            None => reply,
        };
        inner.shared.tell(
            self.shard,
            ShardEvent::Propose {
                group: self.group,
                payload,
                reply,
            },
        );
        Ok(())
    }

    /// Asks the state machine of this node's replica.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`] when no replica is here, [`Error::Query`] when the state machine refuses.
    pub async fn read(&self, read: Read, query: impl Into<Bytes>) -> Result<Bytes, Error> {
        let Read::Stale = read;
        let (reply, answer) = tokio::sync::oneshot::channel();
        let task = Task::Query {
            group: self.group,
            query: query.into(),
            reply,
        };
        self.inner.shared.worker_of(self.group).send(task);
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Has this node's replica take a snapshot of what it has applied, waits until it is durable, and returns the last
    /// entry in it. If one is being taken already, waits for that one.
    ///
    /// The log behind it is forgotten, except for `snapshot.keep_entries`: a follower that is further behind can't catch
    /// up, because snapshots are not sent between nodes yet.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`] when no replica is here, [`Error::Snapshot`] when none could be taken.
    pub async fn snapshot(&self) -> Result<LogPosition, Error> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.inner.shared.tell(
            self.shard,
            ShardEvent::Snapshot {
                group: self.group,
                reply,
            },
        );
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Who leads the group and at which term, as far as this node knows. Takes no lock and asks nobody.
    pub fn leader(&self) -> Option<(NodeId, Term)> {
        if let Some(cell) = self.cell.get() {
            return cell.leader();
        }
        let cell = self.inner.shared.directory.cell(self.group)?;
        self.cell.get_or_init(|| cell).leader()
    }

    /// What this node's replica says of itself.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`] when no replica is here.
    pub async fn status(&self) -> Result<GroupStatus, Error> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.inner.shared.tell(
            self.shard,
            ShardEvent::GroupStatus {
                group: self.group,
                reply,
            },
        );
        answer.await.unwrap_or(Err(Error::Closed))
    }
}

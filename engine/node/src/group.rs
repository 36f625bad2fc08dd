//! The handle by which callers propose to a group and read from it, on whichever node they are.
//! It must never wait in `propose` for room: what does not fit is refused.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use polyraft_raft::{GroupId, Index, LogPosition, MemberChange, NodeId, Term};
use polyraft_storage::EntryKind;

use crate::apply::{Query, Task};
use crate::clock::micros;
use crate::completion::{Committed, CompletionQueue, Many, ReplyTo};
use crate::directory::GroupCell;
use crate::error::Error;
use crate::event::ShardEvent;
use crate::merge::{MAX_ARGUMENT, PART_OVERHEAD};
use crate::node::Inner;
use crate::sessions::{self, Command, ProposalNumber, Session, SessionId};
use crate::shard::{InboxGauge, MergeEvent, PROPOSAL_OVERHEAD, SplitEvent};
use crate::split::SplitEntry;
use crate::status::{GroupStatus, Membership};

/// Which state a read may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Read {
    /// Everything that was acknowledged to anybody before the read began, and everything that an earlier read saw.
    ///
    /// The leader makes sure that a quorum of the members still stands by it: one beat to each other node and one back, for
    /// all reads of all groups that wait at the time. No clock has to be trusted. Any member may be asked; a follower asks
    /// the leader's node what its own state must have.
    Linearizable,
    /// The same, without any message while the leader's lease holds: the followers have promised not to vote for anybody
    /// else for a time, and that time is not over. Where the lease does not hold, a round is made as for
    /// [`Read::Linearizable`].
    ///
    /// It rests on the clocks of two nodes to differ in rate by at most `liveness.clock_drift_ppm`. Pauses of a process or a
    /// machine and steps of the time of day do no harm.
    Lease,
    /// What this node's replica has applied, if that is everything that was committed at some moment no longer than
    /// `max_lag` before the read. If this is not known of it, the leader is asked as for [`Read::Lease`], once for all
    /// reads that then need nothing for `max_lag`.
    Stale {
        /// How old the state may be.
        max_lag: Duration,
    },
}

impl Read {
    /// Whatever this node's replica has applied so far. Never waits for other nodes; may be behind by any time, and two reads
    /// on different nodes may go back in time. A replica in quarantine refuses it; a node whose log has failed goes on answering,
    /// since what it has applied was committed.
    pub const LOCAL: Read = Read::Stale {
        max_lag: Duration::MAX,
    };
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
    /// [`Error::TooLarge`] when the payload is longer than this node or the leader's takes, [`Error::Busy`] when a bound is
    /// reached, and [`Error::NotLeader`] when nobody takes it: after `shards.proposal_timeout` without a leader, and at once when the
    /// leader can't be reached or hands the leadership over, or the replica here is being opened. The proposal is surely not applied.
    /// [`Error::Merging`] when the group is being merged into another one, or was, and [`Error::NoSuchGroup`] when no replica is
    /// here: nor is it then. [`Error::Unknown`] when the leader was lost or has not answered, [`Error::Fault`] when the replica,
    /// or the node, is out of service, here or where the leader is, and [`Error::Closed`] when this node is shut down: it may or may not
    /// be applied.
    ///
    /// [`Error::is_retryable`] says whether trying again is safe, and [`Error::may_have_committed`] whether the outcome is open.
    pub async fn propose(&self, payload: impl Into<Bytes>) -> Result<Committed, Error> {
        let (outcome, reply) = self.inner.slots.pair();
        self.enqueue(EntryKind::Normal, payload.into(), reply)?;
        outcome.await
    }

    /// Proposes several payloads in order and waits for all of them. They travel and are written together, but each
    /// stands for itself: if the leader changes in between, a later one may be applied and an earlier one not.
    ///
    /// # Errors
    /// The first error in order, one of those of [`GroupHandle::propose`]; the proposals before it are applied, those after it may be.
    pub async fn propose_many(&self, payloads: Vec<Bytes>) -> Result<Vec<Committed>, Error> {
        if payloads.is_empty() {
            return Ok(Vec::new());
        }
        let many = Many::new(payloads.len());
        for (at, payload) in payloads.into_iter().enumerate() {
            let part = many.part(at);
            // A refusal is this part's outcome, like any other.
            if let Err((error, part)) = self.try_enqueue(EntryKind::Normal, payload, part) {
                part.answer(Err(error));
            }
        }
        many.wait().await.into_iter().collect()
    }

    /// Proposes without waiting: the outcome arrives at `queue`, under `tag`. For callers with many proposals in
    /// flight.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Busy`] or [`Error::Closed`] when the proposal is refused at once; nothing arrives at the queue
    /// then, and the proposal is in no log. What arrives may be any error of [`GroupHandle::propose`].
    pub fn propose_with(
        &self,
        payload: impl Into<Bytes>,
        tag: u64,
        queue: &CompletionQueue,
    ) -> Result<(), Error> {
        self.enqueue(EntryKind::Normal, payload.into(), queue.reply_to(tag))
    }

    /// Opens a session: what is proposed in it is applied at most once, however often it is tried. Tries for at most `within`.
    ///
    /// # Errors
    /// Those of [`GroupHandle::propose`]. An attempt whose outcome is unknown does no harm.
    pub async fn open_session(&self, within: Duration) -> Result<Session<M>, Error> {
        sessions::open(self, within).await
    }

    /// Goes on with a session after its client was restarted. `open` are the numbers whose outcome the client does not know, and
    /// `next` is larger than every number that it ever took.
    ///
    /// The client has to have written down its numbers, with the payload of each, before it proposed. It
    /// proposes the open ones again with [`Session::propose_as`].
    pub fn resume_session(
        &self,
        id: SessionId,
        open: impl IntoIterator<Item = u64>,
        next: u64,
    ) -> Session<M> {
        let open: BTreeSet<u64> = open.into_iter().collect();
        let next = next.max(open.last().map_or(1, |last| last + 1));
        Session::new(self.clone(), id, next, open)
    }

    /// One attempt at a proposal of a session, for clients that keep the numbers and try again by themselves; others use
    /// [`GroupHandle::open_session`]. The same number must always come with the same payload.
    ///
    /// # Errors
    /// Those of [`GroupHandle::propose`]; after [`Error::Unknown`] it is safe to try again with the same number. And
    /// [`Error::SessionExpired`], [`Error::ReplyNotKept`] and [`Error::ProposalNumber`].
    pub async fn propose_numbered(
        &self,
        number: ProposalNumber,
        payload: impl Into<Bytes>,
    ) -> Result<Committed, Error> {
        let (outcome, reply) = self.inner.slots.pair();
        self.enqueue_numbered(number, &payload.into(), reply)?;
        outcome.await
    }

    /// The same without waiting: the outcome arrives at `queue`, under `tag`.
    ///
    /// # Errors
    /// Those of [`GroupHandle::propose_with`], and [`Error::ProposalNumber`] when no session has such a number; nothing arrives at the
    /// queue then. What arrives may be any error of [`GroupHandle::propose_numbered`].
    pub fn propose_numbered_with(
        &self,
        number: ProposalNumber,
        payload: impl Into<Bytes>,
        tag: u64,
        queue: &CompletionQueue,
    ) -> Result<(), Error> {
        self.enqueue_numbered(number, &payload.into(), queue.reply_to(tag))
    }

    /// One attempt to open a session, without waiting: [`SessionId::opened`] reads the session out of the answer that
    /// arrives at `queue` under `tag`.
    ///
    /// # Errors
    /// Those of [`GroupHandle::propose_with`]; nothing arrives at the queue then.
    pub fn open_session_with(&self, tag: u64, queue: &CompletionQueue) -> Result<(), Error> {
        self.enqueue_session(self.opening(), &[], queue.reply_to(tag))
    }

    pub(crate) async fn open_session_once(&self) -> Result<Committed, Error> {
        let (outcome, reply) = self.inner.slots.pair();
        self.enqueue_session(self.opening(), &[], reply)?;
        outcome.await
    }

    pub(crate) async fn close_session_once(&self, session: SessionId) -> Result<Committed, Error> {
        if session == SessionId(0) {
            return Err(Error::SessionExpired { session });
        }
        let (outcome, reply) = self.inner.slots.pair();
        self.enqueue_session(Command::Close { session }, &[], reply)?;
        outcome.await
    }

    /// All replicas keep as many sessions as the entry says, whatever they are configured with.
    fn opening(&self) -> Command {
        let most = self.inner.max_sessions;
        Command::Open { most }
    }

    fn enqueue_numbered(
        &self,
        number: ProposalNumber,
        payload: &[u8],
        reply: ReplyTo,
    ) -> Result<(), Error> {
        if !number.is_valid() || number.session == SessionId(0) {
            reply.forget();
            return Err(Error::ProposalNumber {
                sequence: number.sequence,
                lowest: number.lowest,
            });
        }
        self.enqueue_session(Command::Propose(number), payload, reply)
    }

    fn enqueue_session(
        &self,
        command: Command,
        payload: &[u8],
        reply: ReplyTo,
    ) -> Result<(), Error> {
        self.enqueue(EntryKind::Session, command.encode(payload), reply)
    }

    fn enqueue(&self, kind: EntryKind, payload: Bytes, reply: ReplyTo) -> Result<(), Error> {
        self.try_enqueue(kind, payload, reply)
            .map_err(|(error, reply)| {
                reply.forget();
                error
            })
    }

    fn try_enqueue(
        &self,
        kind: EntryKind,
        payload: Bytes,
        reply: ReplyTo,
    ) -> Result<(), (Error, ReplyTo)> {
        let inner = &self.inner;
        let bytes = payload.len();
        let refusal = if inner.shared.is_closed.load(Ordering::Acquire) {
            Some(Error::Closed)
        } else if bytes > inner.max_proposal_bytes {
            Some(Error::TooLarge {
                bytes,
                limit: inner.max_proposal_bytes,
            })
        } else {
            self.take_inbox_room(bytes, |gauge| &gauge.refused).err()
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
                kind,
                payload,
                reply,
                is_sample: inner.shared.gauges[self.shard].begin_sample(&inner.shared.clock),
            },
        );
        Ok(())
    }

    /// Asks the state machine of this node's replica, once it has what `read` says it must have.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`] when no replica is here, [`Error::Query`] when the state machine refuses or panics,
    /// [`Error::Restoring`] while it is being rebuilt from a snapshot, [`Error::Witness`] when the replica here has none,
    /// [`Error::Merging`] when the group is being merged into another one, or was, [`Error::Fault`] when the replica, or the node, is
    /// out of service, and [`Error::Closed`] when the node is shut down.
    ///
    /// Nobody leads: [`Error::NotLeader`] after `shards.proposal_timeout`, or at once while the replica here is being opened. No
    /// quorum answers, or this replica does not catch up: [`Error::Unconfirmed`] after the same time. A bound is reached:
    /// [`Error::Busy`]. [`Read::LOCAL`] waits for nothing and fails with none of these three, nor because the node is out of service.
    ///
    /// A read has no effect, so every retryable error may be tried again.
    pub async fn read(&self, read: Read, query: impl Into<Bytes>) -> Result<Bytes, Error> {
        let (outcome, reply) = self.inner.slots.pair();
        self.enqueue_read(read, query.into(), reply)?;
        outcome.await.map(|answer| answer.reply)
    }

    /// Reads without waiting: the answer arrives at `queue`, under `tag`, with the index that the state had to have.
    ///
    /// # Errors
    /// [`Error::Busy`] or [`Error::Closed`] when the read is refused at once; nothing arrives at the queue then. What arrives may be
    /// any error of [`GroupHandle::read`].
    pub fn read_with(
        &self,
        read: Read,
        query: impl Into<Bytes>,
        tag: u64,
        queue: &CompletionQueue,
    ) -> Result<(), Error> {
        self.enqueue_read(read, query.into(), queue.reply_to(tag))
    }

    fn enqueue_read(&self, read: Read, query: Bytes, reply: ReplyTo) -> Result<(), Error> {
        let inner = &self.inner;
        if inner.shared.is_closed.load(Ordering::Acquire) {
            reply.forget();
            return Err(Error::Closed);
        }
        if read == Read::LOCAL {
            let query = Query {
                group: self.group,
                index: Index::ZERO,
                query,
                reply,
            };
            inner.shared.worker_of(self.group).send(Task::Query(query));
            return Ok(());
        }
        if let Err(error) = self.take_inbox_room(query.len(), |gauge| &gauge.refused_reads) {
            reply.forget();
            return Err(error);
        }
        let event = ShardEvent::Read {
            group: self.group,
            read,
            query,
            reply,
        };
        inner.shared.tell(self.shard, event);
        Ok(())
    }

    /// Counts what is about to be put into the shard's inbox, or that it was refused.
    fn take_inbox_room(
        &self,
        bytes: usize,
        refused: fn(&InboxGauge) -> &AtomicU64,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        let (gauge, taken) = (&inner.shared.gauges[self.shard], bytes + PROPOSAL_OVERHEAD);
        let waiting = gauge.proposals.fetch_add(taken, Ordering::Relaxed);
        if waiting + taken <= inner.inbox_bytes {
            return Ok(());
        }
        gauge.proposals.fetch_sub(taken, Ordering::Relaxed);
        refused(gauge).fetch_add(1, Ordering::Relaxed);
        Err(Error::Busy {
            what: "shards.inbox_bytes",
            limit: inner.inbox_bytes as u64,
        })
    }

    /// Has this node's replica take a snapshot of what it has applied, waits until it is durable, and returns the last
    /// entry in it. If one is being taken already, waits for that one.
    ///
    /// The log behind it is forgotten, except for `snapshot.keep_entries`: a follower that is further behind is
    /// sent the snapshot.
    ///
    /// # Errors
    /// [`Error::Snapshot`] when none could be taken, [`Error::NotLeader`] without a hint while the replica here is being opened,
    /// [`Error::NoSuchGroup`] or [`Error::Merging`] when no replica is here, [`Error::Fault`] when it, or the node, is out of service,
    /// and [`Error::Closed`] when the node is shut down.
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

    /// Hands the group's leadership to node `to`, and waits until the leader has stepped down for it. Ask the node that
    /// leads. The group takes no proposals meanwhile, for at most the longest election timeout.
    ///
    /// Afterwards `to` leads as a rule; [`GroupHandle::leader`] tells as soon as it has said so.
    ///
    /// # Errors
    /// [`Error::NotLeader`] with a hint when another node leads, [`Error::Transfer`] when `to` is no voter, is silent, or was
    /// not caught up and elected in time, and the leader goes on; or when the leader stepped down for another reason meanwhile.
    /// [`Error::NoSuchGroup`] or [`Error::Merging`] when no replica is here, [`Error::Fault`] when it is out of service,
    /// [`Error::Closed`] after a shutdown.
    pub async fn transfer_leadership(&self, to: u64) -> Result<(), Error> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let event = ShardEvent::TransferLeadership {
            group: self.group,
            to: NodeId(to),
            reply,
        };
        self.inner.shared.tell(self.shard, event);
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Changes the members, all of these together or none, and waits until that is committed. Ask the node that leads.
    ///
    /// Nodes that are no members yet become learners first and get the log, or a snapshot; once they have nearly all of it
    /// they begin to vote with the rest of the change. Where voters change, the old and the new ones decide together for that
    /// long (joint consensus; Raft paper, 6). A node that is removed gives up its replica; a leader may remove itself, and
    /// another one is elected. Asking for what is so already does nothing.
    ///
    /// A dead node is replaced by naming the new one and the removal of the dead one together:
    /// `[MemberChange::Voter(NodeId(4)), MemberChange::Remove(NodeId(2))]`.
    ///
    /// # Errors
    /// [`Error::NotLeader`] with a hint when another node leads. [`Error::ChangeUnderWay`] when another
    /// caller waits for a change. [`Error::Members`] when a new node is not alive or not known as a peer, nobody would vote, or
    /// the time is over before the change was in the log: it says how far the call got. [`Error::Unknown`] when the time is over and
    /// the change is in the log, where a quorum may take it later; or when the leader stepped down in between, whose successor ends
    /// or drops the change. Look at [`GroupHandle::status`] then, and ask again. [`Error::NoSuchGroup`] or [`Error::Merging`] when no
    /// replica is here, [`Error::Fault`] when it is out of service, [`Error::Closed`] after a shutdown.
    pub async fn change_members(
        &self,
        changes: impl IntoIterator<Item = MemberChange>,
        within: Duration,
    ) -> Result<Membership, Error> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let event = ShardEvent::ChangeMembers {
            group: self.group,
            changes: changes.into_iter().collect(),
            within: micros(within),
            reply,
        };
        self.inner.shared.tell(self.shard, event);
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Makes a part of the group a group of its own, on the same nodes, and waits until it is durable on this one. Ask the node
    /// that leads. `argument` is for the state machine, which says by it which part that is:
    /// [`StateMachine::can_split`](crate::StateMachine::can_split).
    ///
    /// All replicas split at the same place of the log. No data moves between nodes: each writes the part from its own state, as
    /// the child's first snapshot, and applies nothing more of the parent meanwhile. The child knows all sessions of the parent,
    /// so a proposal whose outcome is unknown may be tried again with whichever of the two has its part now. This node campaigns
    /// for the child at once.
    ///
    /// The id of the child must not be in use, and nobody else may begin to use it meanwhile. Before the child has committed an
    /// entry the parent is not destroyed without it, and changes of its members wait for that long.
    ///
    /// # Errors
    /// [`Error::NotLeader`] with a hint when another node leads, [`Error::GroupExists`] when the child's id is in use,
    /// [`Error::Needed`] while a group that was to be merged into one that had the id is frozen, and
    /// [`Error::Split`] when the members are being changed, another split is under way, or the state machine has no such part:
    /// then nothing happened. [`Error::Merging`] when the group was merged into another one. [`Error::Unknown`] when the leader stepped down in between: the group may be split or not, and
    /// trying again does no harm, as a split that was made answers with [`Error::GroupExists`]. [`Error::TooLarge`] when the
    /// argument is longer than a proposal may be, [`Error::NoSuchGroup`] when no replica is here, [`Error::Fault`] when it is out
    /// of service, or is taken out by the split, and [`Error::Closed`] when the node is shut down.
    ///
    /// Once the entry is in the log there is no limit on how long this waits: without a quorum, or without room for the child on
    /// this node's disk, until one of them is back or another node leads.
    pub async fn split(
        &self,
        child: u64,
        argument: impl Into<Bytes>,
    ) -> Result<GroupHandle<M>, Error> {
        let (child, argument) = (GroupId(child), argument.into());
        let (inner, bytes) = (&self.inner, argument.len());
        if !SplitEntry::may_be_child(self.group, child) {
            let why = format!("{child} can't be the id of the new group");
            return Err(Error::Split { why });
        }
        if bytes > inner.max_proposal_bytes {
            let limit = inner.max_proposal_bytes;
            return Err(Error::TooLarge { bytes, limit });
        }
        let (outcome, reply) = inner.slots.pair();
        let event = SplitEvent::Asked {
            group: self.group,
            child,
            argument,
            reply,
        };
        inner.shared.tell(self.shard, ShardEvent::Split(event));
        outcome.await?;
        Ok(GroupHandle::new(Arc::clone(&self.inner), child))
    }

    /// Makes the group a part of another one, and waits until it has ended. Ask the node that leads this group, the source; it
    /// needs a replica of the target too. `argument` is for the target's state machine:
    /// [`StateMachine::can_merge`](crate::StateMachine::can_merge).
    ///
    /// The source takes no proposals and answers no reads from a moment on. Its state, 64 MiB at most with its sessions, goes
    /// through the target's log, and once the target has taken it, the source is destroyed. The members of the two may differ, and
    /// a minority of each may be down. Whoever has a session with the source goes on with it at the target:
    /// [`Session::merged_into`](crate::Session::merged_into).
    ///
    /// Should this node lose the leadership meanwhile, the next leader goes on. If the target can't take the state, the source
    /// goes on as before. It stays frozen for as long as the target has no leader, as nobody else can say what became of it.
    ///
    /// # Errors
    /// [`Error::NotLeader`] with a hint when another node leads, and [`Error::Merge`] when the groups can't be merged: the source
    /// goes on. [`Error::Merging`] when it is being merged already into another group than this call says, or was merged.
    /// [`Error::Unknown`] when the leader stepped down in between: ask again, the answer is this or [`Error::Merging`].
    /// [`Error::TooLarge`] when the argument is over 64 KiB, or too large for a proposal to the target, [`Error::NoSuchGroup`] when no replica is here, [`Error::Fault`] when
    /// it is out of service, and [`Error::Closed`] when the node is shut down.
    pub async fn merge_into(
        &self,
        target: u64,
        argument: impl Into<Bytes>,
    ) -> Result<GroupHandle<M>, Error> {
        let (target, argument) = (GroupId(target), argument.into());
        let (inner, bytes) = (&self.inner, argument.len());
        if target == self.group || target.0 >= u64::MAX - 1 {
            let why = format!("{target} can't be the group that it is merged into");
            return Err(Error::Merge { why });
        }
        let limit = MAX_ARGUMENT.min(inner.max_proposal_bytes - PART_OVERHEAD);
        if bytes > limit {
            return Err(Error::TooLarge { bytes, limit });
        }
        let (outcome, reply) = inner.slots.pair();
        let event = MergeEvent::Asked {
            source: self.group,
            target,
            argument,
            reply,
        };
        inner.shared.tell(self.shard, ShardEvent::Merge(event));
        outcome.await?;
        Ok(GroupHandle::new(Arc::clone(&self.inner), target))
    }

    /// Who leads the group and at which term, as far as this node knows. Asks nobody, and takes a lock only where nobody is known
    /// to lead.
    pub fn leader(&self) -> Option<(NodeId, Term)> {
        let known = self.cell.get().and_then(|cell| cell.leader());
        known.or_else(|| {
            // Or the replica that the handle knows has ended, and there is another one.
            let cell = self.inner.shared.directory.cell(self.group)?;
            self.cell.get_or_init(|| Arc::clone(&cell));
            cell.leader()
        })
    }

    /// What this node's replica says of itself.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`] or [`Error::Merging`] when no replica is here, [`Error::Closed`] when the node is shut down.
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

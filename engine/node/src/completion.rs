//! How a proposal's outcome gets back to its caller: a pooled slot behind a future, a queue for callers with many
//! proposals in flight, or the node that forwarded it.
//! A reply must never be lost: dropping an unanswered [`ReplyTo`] answers it with an error.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use parking_lot::{Condvar, Mutex};
use polyraft_raft::{GroupId, Index, NodeId};

use crate::error::Error;
use crate::event::ShardEvent;
use crate::mailbox::Sender;
use crate::shard::MergeEvent;
use crate::trace::Trace;

/// A proposal that is committed and applied; or a read that is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the group's log. Of a read: the index that the state had to have at least.
    pub index: Index,
    /// What the state machine answered.
    pub reply: Bytes,
}

pub(crate) type Outcome = Result<Committed, Error>;

/// The outcome of a proposal given to [`GroupHandle::propose_with`](crate::GroupHandle::propose_with).
#[derive(Debug)]
pub struct Completion {
    /// The number that the caller gave with the proposal.
    pub tag: u64,
    /// What became of it.
    pub result: Result<Committed, Error>,
}

/// Receives the outcomes of many proposals, without a task or an allocation for each.
///
/// Cloning gives another handle to the same queue. Outcomes arrive in the order in which they become known. The
/// queue holds as many as its user has proposals in flight, which the user bounds.
#[derive(Debug, Clone, Default)]
pub struct CompletionQueue {
    inner: Arc<QueueInner>,
}

#[derive(Debug, Default)]
pub(crate) struct QueueInner {
    done: Mutex<Done>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Done {
    completions: VecDeque<Completion>,
    waiting: bool,
    /// Whoever waits, or comes next, is to return without an outcome.
    woken: bool,
}

impl CompletionQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves every outcome known by now into `out` and returns how many; waits up to `timeout` for the first, or until
    /// [`CompletionQueue::wake`].
    pub fn drain(&self, out: &mut Vec<Completion>, timeout: Duration) -> usize {
        let mut done = self.inner.done.lock();
        if done.completions.is_empty() && !done.woken && !timeout.is_zero() {
            let deadline = Instant::now() + timeout;
            done.waiting = true;
            while done.completions.is_empty() && !done.woken {
                if self
                    .inner
                    .arrived
                    .wait_until(&mut done, deadline)
                    .timed_out()
                {
                    break;
                }
            }
            done.waiting = false;
        }
        done.woken = false;
        let count = done.completions.len();
        out.extend(done.completions.drain(..));
        count
    }

    /// Makes the [`CompletionQueue::drain`] that waits now, or else the next one, return without waiting: for callers
    /// that have something else to do as well.
    pub fn wake(&self) {
        let mut done = self.inner.done.lock();
        done.woken = true;
        if done.waiting {
            self.inner.arrived.notify_one();
        }
    }

    pub(crate) fn reply_to(&self, tag: u64) -> ReplyTo {
        ReplyTo(Sink::Queue {
            queue: Arc::clone(&self.inner),
            tag,
        })
    }
}

impl QueueInner {
    fn push(self: &Arc<Self>, completion: Completion) {
        let mut done = self.done.lock();
        done.completions.push_back(completion);
        let is_awaited = done.waiting;
        drop(done);
        if is_awaited && !Together::puts_off(self) {
            self.arrived.notify_one();
        }
    }
}

/// So many answers at most are there before whoever waits for the first of them is woken.
const MOST_TOGETHER: usize = 64;

/// Nor longer than this, if a state machine takes its time.
const LONGEST_TOGETHER: Duration = Duration::from_micros(200);

/// Owners of queues who are not woken yet.
#[derive(Default)]
struct Unwoken {
    queues: Vec<Arc<QueueInner>>,
    /// Answers that they wait for.
    answers: usize,
    /// When the first of these was given.
    since: Option<Instant>,
}

thread_local! {
    /// None while each answer wakes.
    static UNWOKEN: RefCell<Option<Unwoken>> = const { RefCell::new(None) };
}

/// While it lives, answers that this thread puts into queues wake their owners together: at its end, after
/// [`MOST_TOGETHER`] answers, and where [`Together::wake_late`] finds that it takes long. An owner that is woken by the first of many
/// takes the processor, or the queue's lock, from the thread that has the others, and comes back with a few proposals in place
/// of many.
#[must_use]
pub(crate) struct Together(PhantomData<*const ()>);

impl Together {
    pub(crate) fn begin() -> Self {
        let outer = UNWOKEN.replace(Some(Unwoken::default()));
        debug_assert!(outer.is_none(), "its owners would never be woken");
        Together(PhantomData)
    }

    /// Foreign code runs next, for as long as it likes: who has waited for long is woken before that.
    pub(crate) fn wake_late(&self) {
        UNWOKEN.with_borrow_mut(|unwoken| {
            if let Some(unwoken) = unwoken
                && unwoken
                    .since
                    .is_some_and(|since| since.elapsed() > LONGEST_TOGETHER)
            {
                unwoken.wake();
            }
        });
    }

    /// Whether the owner of a queue is woken later on. If not, the caller has to.
    fn puts_off(queue: &Arc<QueueInner>) -> bool {
        UNWOKEN.with_borrow_mut(|unwoken| {
            let Some(unwoken) = unwoken else {
                return false;
            };
            let queues = &mut unwoken.queues;
            if !queues.iter().any(|known| Arc::ptr_eq(known, queue)) {
                queues.push(Arc::clone(queue));
            }
            unwoken.since.get_or_insert_with(Instant::now);
            unwoken.answers += 1;
            if unwoken.answers >= MOST_TOGETHER {
                unwoken.wake();
            }
            true
        })
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        if let Some(mut unwoken) = UNWOKEN.take() {
            unwoken.wake();
        }
    }
}

impl Unwoken {
    fn wake(&mut self) {
        (self.answers, self.since) = (0, None);
        for queue in self.queues.drain(..) {
            queue.arrived.notify_one();
        }
    }
}

/// Where one proposal's outcome goes. Answered exactly once.
#[derive(Debug)]
pub(crate) struct ReplyTo(Sink);

#[derive(Debug)]
enum Sink {
    Slot(Arc<Slot>),
    Queue {
        queue: Arc<QueueInner>,
        tag: u64,
    },
    Part {
        many: Arc<Many>,
        at: usize,
    },
    Forwarded {
        group: GroupId,
        origin: NodeId,
        request: u64,
        inbox: Sender<ShardEvent>,
    },
    /// The shard of a group that is merged, under the number of its question.
    Merge {
        source: GroupId,
        number: u64,
        inbox: Sender<ShardEvent>,
    },
    Traced(Box<Traced>),
    Answered,
}

/// A sink whose proposal is traced.
#[derive(Debug)]
struct Traced {
    trace: Arc<Trace>,
    sink: Sink,
}

impl ReplyTo {
    /// The same, with a record of the way of the proposal.
    pub(crate) fn traced(mut self, trace: Arc<Trace>) -> Self {
        let sink = std::mem::replace(&mut self.0, Sink::Answered);
        ReplyTo(Sink::Traced(Box::new(Traced { trace, sink })))
    }

    /// The record of the proposal, if it has one.
    pub(crate) fn trace(&self) -> Option<&Arc<Trace>> {
        match &self.0 {
            Sink::Traced(traced) => Some(&traced.trace),
            _ => None,
        }
    }

    /// The outcome goes to `origin`, which sent the proposal on under its number `request`.
    pub(crate) fn forwarded(
        group: GroupId,
        origin: NodeId,
        request: u64,
        inbox: Sender<ShardEvent>,
    ) -> Self {
        ReplyTo(Sink::Forwarded {
            group,
            origin,
            request,
            inbox,
        })
    }

    /// The outcome goes to the shard of a group that is merged, which asked under this number.
    pub(crate) fn merge(source: GroupId, number: u64, inbox: Sender<ShardEvent>) -> Self {
        ReplyTo(Sink::Merge {
            source,
            number,
            inbox,
        })
    }

    /// Gives the duty to answer up, because the caller learns the outcome in another way.
    pub(crate) fn forget(mut self) {
        self.0 = Sink::Answered;
    }

    /// Moves the duty to answer out of a place that stays behind.
    pub(crate) fn take(&mut self) -> Self {
        ReplyTo(std::mem::replace(&mut self.0, Sink::Answered))
    }

    /// Whether another node waits. Such a proposal is never sent on again.
    pub(crate) fn is_forwarded(&self) -> bool {
        matches!(self.0, Sink::Forwarded { .. })
    }

    pub(crate) fn answer(mut self, outcome: Outcome) {
        self.settle(outcome);
    }

    fn settle(&mut self, outcome: Outcome) {
        match std::mem::replace(&mut self.0, Sink::Answered) {
            Sink::Slot(slot) => slot.fill(outcome),
            Sink::Queue { queue, tag } => QueueInner::push(
                &queue,
                Completion {
                    tag,
                    result: outcome,
                },
            ),
            Sink::Part { many, at } => many.fill(at, outcome),
            Sink::Forwarded {
                group,
                origin,
                request,
                inbox,
            } => {
                // When this node is shutting down, the origin's own deadline answers.
                inbox.send(ShardEvent::ForwardDone {
                    group,
                    origin,
                    request,
                    outcome,
                });
            }
            Sink::Merge {
                source,
                number,
                inbox,
            } => {
                inbox.send(ShardEvent::Merge(MergeEvent::Answered {
                    source,
                    number,
                    outcome,
                }));
            }
            Sink::Traced(traced) => {
                if outcome.is_ok() {
                    traced.trace.finish();
                }
                ReplyTo(traced.sink).answer(outcome);
            }
            Sink::Answered => {}
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        if !matches!(self.0, Sink::Answered) {
            self.settle(Err(Error::Closed));
        }
    }
}

/// A recycled meeting point of one waiting future and the thread that answers it.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    outcome: Option<Outcome>,
    waker: Option<Waker>,
}

impl Slot {
    fn fill(&self, outcome: Outcome) {
        let mut state = self.state.lock();
        state.outcome = Some(outcome);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Slots that were answered and can be used again.
#[derive(Debug)]
pub(crate) struct SlotPool {
    free: ArrayQueue<Arc<Slot>>,
}

impl SlotPool {
    pub(crate) fn new(capacity: usize) -> Self {
        SlotPool {
            free: ArrayQueue::new(capacity),
        }
    }

    /// A future and the reply that completes it.
    pub(crate) fn pair(self: &Arc<Self>) -> (SlotFuture, ReplyTo) {
        let slot = self.free.pop().unwrap_or_default();
        (
            SlotFuture {
                slot: Some(Arc::clone(&slot)),
                pool: Arc::clone(self),
            },
            ReplyTo(Sink::Slot(slot)),
        )
    }
}

/// Completes when the proposal's outcome is known. Dropping it forgets the answer, not the proposal.
pub(crate) struct SlotFuture {
    slot: Option<Arc<Slot>>,
    pool: Arc<SlotPool>,
}

impl Future for SlotFuture {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let slot = self.slot.as_ref().expect("polled after completion");
        let mut state = slot.state.lock();
        let Some(outcome) = state.outcome.take() else {
            match &mut state.waker {
                Some(waker) => waker.clone_from(context.waker()),
                waker => *waker = Some(context.waker().clone()),
            }
            return Poll::Pending;
        };
        drop(state);
        let slot = self.slot.take().expect("present above");
        // Only an answered slot goes back: nobody else can write to it any more.
        let _ = self.pool.free.push(slot);
        Poll::Ready(outcome)
    }
}

/// Gathers the outcomes of one `propose_many`; its future completes with the last of them.
#[derive(Debug)]
pub(crate) struct Many {
    outcomes: Mutex<ManyState>,
    missing: AtomicUsize,
}

#[derive(Debug)]
struct ManyState {
    outcomes: Vec<Option<Outcome>>,
    waker: Option<Waker>,
}

impl Many {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        let outcomes = (0..count).map(|_| None).collect();
        Arc::new(Many {
            outcomes: Mutex::new(ManyState {
                outcomes,
                waker: None,
            }),
            missing: AtomicUsize::new(count),
        })
    }

    pub(crate) fn part(self: &Arc<Self>, at: usize) -> ReplyTo {
        ReplyTo(Sink::Part {
            many: Arc::clone(self),
            at,
        })
    }

    fn fill(&self, at: usize, outcome: Outcome) {
        let mut state = self.outcomes.lock();
        state.outcomes[at] = Some(outcome);
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(waker) = state.waker.take()
        {
            drop(state);
            waker.wake();
        }
    }

    /// All outcomes, in the order of the proposals.
    pub(crate) async fn wait(self: Arc<Self>) -> Vec<Outcome> {
        std::future::poll_fn(move |context| {
            let mut state = self.outcomes.lock();
            if self.missing.load(Ordering::Acquire) > 0 {
                state.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            let outcomes = std::mem::take(&mut state.outcomes);
            Poll::Ready(
                outcomes
                    .into_iter()
                    .map(|o| o.expect("every part is filled"))
                    .collect(),
            )
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(index: u64) -> Outcome {
        Ok(Committed {
            index: Index(index),
            reply: Bytes::new(),
        })
    }

    #[test]
    fn an_unanswered_reply_is_answered_when_dropped() {
        let queue = CompletionQueue::new();
        drop(queue.reply_to(7));
        let mut out = Vec::new();
        assert_eq!(queue.drain(&mut out, Duration::ZERO), 1);
        assert_eq!(out[0].tag, 7);
        assert_eq!(out[0].result, Err(Error::Closed));
    }

    #[test]
    fn a_wake_ends_one_wait_even_if_it_comes_first() {
        let queue = CompletionQueue::new();
        let mut out = Vec::new();
        queue.wake();
        // Without the wake this would wait for an hour.
        assert_eq!(queue.drain(&mut out, Duration::from_secs(3600)), 0);
        let other = queue.clone();
        let waker = std::thread::spawn(move || other.wake());
        assert_eq!(queue.drain(&mut out, Duration::from_secs(3600)), 0);
        waker.join().unwrap();
        let started = Instant::now();
        queue.drain(&mut out, Duration::from_millis(1));
        assert!(
            started.elapsed() >= Duration::from_millis(1),
            "a wake counts once"
        );
    }

    /// A thread that sleeps until a queue has answers, and returns how many it took then.
    fn asleep_at(queue: &CompletionQueue) -> std::thread::JoinHandle<usize> {
        let other = queue.clone();
        let waiter = std::thread::spawn(move || {
            let mut out = Vec::new();
            other.drain(&mut out, Duration::from_secs(3600))
        });
        while !queue.inner.done.lock().waiting {
            std::thread::yield_now();
        }
        waiter
    }

    #[test]
    fn answers_that_are_given_together_wake_once() {
        let queue = CompletionQueue::new();
        let waiter = asleep_at(&queue);
        let together = Together::begin();
        for tag in 1..MOST_TOGETHER as u64 {
            queue.reply_to(tag).answer(committed(tag));
        }
        drop(together);
        assert_eq!(waiter.join().unwrap(), MOST_TOGETHER - 1);
        assert!(UNWOKEN.take().is_none(), "the next answer wakes at once");
    }

    #[test]
    fn nobody_waits_for_the_last_of_very_many_answers() {
        let queue = CompletionQueue::new();
        let waiter = asleep_at(&queue);
        let _together = Together::begin();
        for tag in 0..MOST_TOGETHER as u64 {
            queue.reply_to(tag).answer(committed(tag));
        }
        assert_eq!(waiter.join().unwrap(), MOST_TOGETHER);
    }

    #[test]
    fn nobody_waits_for_a_slow_state_machine_with_an_answer() {
        let queue = CompletionQueue::new();
        let waiter = asleep_at(&queue);
        let together = Together::begin();
        queue.reply_to(1).answer(committed(1));
        let given = Instant::now();
        while given.elapsed() <= LONGEST_TOGETHER {
            std::hint::spin_loop();
        }
        together.wake_late();
        assert_eq!(waiter.join().unwrap(), 1);
    }

    #[test]
    fn a_slot_is_reused_only_after_its_answer_was_taken() {
        let pool = Arc::new(SlotPool::new(4));
        let (future, reply) = pool.pair();
        drop(future);
        assert!(
            pool.free.is_empty(),
            "a slot whose answer is still to come must not be handed out again"
        );
        reply.answer(committed(1));

        let (future, reply) = pool.pair();
        reply.answer(committed(2));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert_eq!(runtime.block_on(future), committed(2));
        assert_eq!(pool.free.len(), 1);
    }

    #[test]
    fn many_completes_with_the_last_part_and_keeps_the_order() {
        let many = Many::new(2);
        let (first, second) = (many.part(0), many.part(1));
        second.answer(committed(2));
        first.answer(committed(1));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert_eq!(
            runtime.block_on(many.wait()),
            vec![committed(1), committed(2)]
        );
    }
}

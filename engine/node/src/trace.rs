//! Where the time of a proposal goes: a few of them carry a record that each stage marks in passing.
//! It must never cost anything but a look at a number while nobody asked for it, and never change what happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use polyraft_raft::{Group, Index, NodeId};

/// Records kept until somebody takes them; what comes beyond is not kept.
const KEPT: usize = 1 << 16;

/// One proposal, from the call to the answer. All times count from the call of `propose` on the leader's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProposalTrace {
    /// The leader has put it into its log in memory.
    pub appended: Duration,
    /// It is durable on the leader's node.
    pub durable: Duration,
    /// So many followers hold it durably that only the leader was missing for a quorum.
    pub replicated: Duration,
    /// It is committed.
    pub committed: Duration,
    /// The state machine has applied it, and the caller is answered.
    pub applied: Duration,
}

/// The records of a node.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    /// One proposal in so many is traced; 0: none.
    one_in: u64,
    seen: AtomicU64,
    done: Mutex<Vec<ProposalTrace>>,
}

impl Tracer {
    pub(crate) fn new(one_in: u32) -> Self {
        Tracer {
            one_in: u64::from(one_in),
            ..Tracer::default()
        }
    }

    /// Whether any proposal is traced.
    pub(crate) fn is_on(&self) -> bool {
        self.one_in != 0
    }

    /// Starts a record if it is this proposal's turn.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Arc<Trace>> {
        let is_due = self.is_on() && self.seen.fetch_add(1, Relaxed).is_multiple_of(self.one_in);
        is_due.then(|| {
            Arc::new(Trace {
                begun: Instant::now(),
                marks: Default::default(),
                tracer: Arc::clone(self),
            })
        })
    }

    /// The records since the last call.
    pub(crate) fn take(&self) -> Vec<ProposalTrace> {
        std::mem::take(&mut self.done.lock())
    }
}

/// The record of one proposal under way. Its shard marks it; the thread that answers the caller ends it.
#[derive(Debug)]
pub(crate) struct Trace {
    begun: Instant,
    /// Nanoseconds from the beginning; 0 where it has not come to that yet.
    marks: [AtomicU64; 4],
    tracer: Arc<Tracer>,
}

/// What a shard marks, in the order of [`Trace::marks`].
#[derive(Clone, Copy)]
enum Mark {
    Appended,
    Durable,
    Replicated,
    Committed,
}

impl Trace {
    fn nanos(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    fn has(&self, mark: Mark) -> bool {
        self.marks[mark as usize].load(Relaxed) != 0
    }

    fn mark(&self, mark: Mark) {
        self.marks[mark as usize].store(self.nanos(), Relaxed);
    }

    /// The caller is about to be answered with success.
    pub(crate) fn finish(&self) {
        let applied = Duration::from_nanos(self.nanos());
        let [appended, durable, replicated, committed] = self.marks.each_ref().map(|mark| {
            let nanos = mark.load(Relaxed);
            (nanos != 0).then(|| Duration::from_nanos(nanos))
        });
        // A proposal that was forwarded has no marks of this node.
        if let (Some(appended), Some(durable), Some(replicated), Some(committed)) =
            (appended, durable, replicated, committed)
        {
            let mut done = self.tracer.done.lock();
            if done.len() < KEPT {
                done.push(ProposalTrace {
                    appended,
                    durable,
                    replicated,
                    committed,
                    applied,
                });
            }
        }
    }
}

/// The traced entries in the logs of one shard's leaders.
#[derive(Debug, Default)]
pub(crate) struct OpenTraces {
    open: Vec<OpenTrace>,
}

#[derive(Debug)]
struct OpenTrace {
    slot: u32,
    index: Index,
    trace: Arc<Trace>,
}

impl OpenTraces {
    /// A leader has appended a traced proposal.
    pub(crate) fn appended(&mut self, slot: u32, index: Index, trace: Arc<Trace>) {
        trace.mark(Mark::Appended);
        self.open.push(OpenTrace { slot, index, trace });
    }

    /// A replica has ended.
    pub(crate) fn forget(&mut self, slot: u32) {
        self.open.retain(|open| open.slot != slot);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Marks what the entries have come to since the last look.
    pub(crate) fn look<'a>(&mut self, node: NodeId, group: impl Fn(u32) -> &'a Group) {
        self.open.retain(|OpenTrace { slot, index, trace }| {
            let group = group(*slot);
            if !trace.has(Mark::Durable) && group.durable() >= *index {
                trace.mark(Mark::Durable);
            }
            if !trace.has(Mark::Replicated) {
                let holds = |peer| {
                    let matched = |peer| group.progress(peer).map(|progress| progress.matched);
                    peer == node || matched(peer).is_some_and(|matched| matched >= *index)
                };
                if group.configuration().has_quorum(holds) {
                    trace.mark(Mark::Replicated);
                }
            }
            if !trace.has(Mark::Committed) && group.committed() >= *index {
                trace.mark(Mark::Committed);
            }
            let is_complete = trace.has(Mark::Durable) && trace.has(Mark::Committed);
            // Once the caller was answered, with an error perhaps, nobody else holds it.
            !is_complete && Arc::strong_count(trace) > 1
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_proposal_in_so_many_is_traced() {
        let tracer = Arc::new(Tracer::new(4));
        let traced = (0..16).filter(|_| tracer.begin().is_some()).count();
        assert_eq!(traced, 4);
        let off = Arc::new(Tracer::new(0));
        assert!((0..16).all(|_| off.begin().is_none()));
    }

    #[test]
    fn only_complete_records_are_kept() {
        let tracer = Arc::new(Tracer::new(1));
        let trace = tracer.begin().unwrap();
        trace.mark(Mark::Appended);
        trace.finish();
        assert!(tracer.take().is_empty());
        for mark in [Mark::Durable, Mark::Replicated, Mark::Committed] {
            trace.mark(mark);
        }
        trace.finish();
        let records = tracer.take();
        assert_eq!(records.len(), 1);
        let record = records[0];
        assert!(record.appended <= record.durable && record.durable <= record.replicated);
        assert!(record.replicated <= record.committed && record.committed <= record.applied);
        assert!(tracer.take().is_empty());
    }
}

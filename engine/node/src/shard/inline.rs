//! When a shard applies by itself what it committed, in place of waking an apply worker.
//! It must never wait for a state machine that somebody else is at, nor begin with what a restart has to apply.

use std::sync::Arc;
use std::time::Duration;

use polyraft_raft::Tick;
use polyraft_storage::Usual;

use crate::apply::{ApplyBatch, Perform, Task};

/// What is more to apply than this, or is not in memory, takes a worker's time in any case.
const MOST_BYTES: usize = 256 << 10;

/// How long batches take, by worker; none where workers apply everything.
#[derive(Default)]
pub(super) struct InlineApplies {
    seats: Vec<(Arc<dyn Perform>, Usual)>,
}

impl InlineApplies {
    pub(super) fn at(seats: Vec<Arc<dyn Perform>>) -> Self {
        InlineApplies {
            seats: seats
                .into_iter()
                .map(|seat| (seat, Usual::default()))
                .collect(),
        }
    }

    /// Whether a worker's batch should be applied here: it is all that the turn hands out, and batches usually take no longer than
    /// `limit`.
    pub(super) fn is_for(&self, worker: usize, batches: &[ApplyBatch], limit: Duration) -> bool {
        let others = batches.iter().filter(|batch| !batch.is_empty());
        let (_, usual) = match self.seats.get(worker) {
            Some(seat) => seat,
            None => return false,
        };
        usual.is_within(limit)
            && others.count() == 1
            && batches[worker].bytes() <= MOST_BYTES
            && !batches[worker].has_unread()
    }

    /// Does a worker's task on this thread, if the worker has nothing else to do. What it has to do comes back.
    pub(super) fn perform(
        &mut self,
        worker: usize,
        task: Task,
        now: impl Fn() -> Tick,
    ) -> Option<Task> {
        let Some((seat, usual)) = self.seats.get_mut(worker) else {
            return Some(task);
        };
        let begun = now();
        let left = seat.try_perform(task);
        if left.is_none() {
            usual.note(Duration::from_micros(now().since(begun)));
        }
        left
    }

    /// A worker has applied a batch itself; it took so long at most, its way there and back included.
    pub(super) fn note(&mut self, worker: usize, took: u64) {
        if let Some((_, usual)) = self.seats.get_mut(worker) {
            usual.note(Duration::from_micros(took));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use polyraft_raft::{GroupId, Index};

    use super::*;

    const LIMIT: Duration = Duration::from_micros(500);

    /// A clock, and a worker's seat at which each task takes so long.
    #[derive(Default)]
    struct Slow {
        now: AtomicU64,
        takes: AtomicU64,
        is_taken: AtomicBool,
    }

    impl Perform for Slow {
        fn try_perform(&self, task: Task) -> Option<Task> {
            if self.is_taken.load(Ordering::Relaxed) {
                return Some(task);
            }
            let takes = self.takes.load(Ordering::Relaxed);
            self.now.fetch_add(takes, Ordering::Relaxed);
            None
        }
    }

    struct Case {
        slow: Arc<Slow>,
        inline: InlineApplies,
    }

    fn batch() -> ApplyBatch {
        let mut batch = ApplyBatch::default();
        let through = batch.push(
            (0, GroupId(1)),
            Index(1),
            |_| Ok::<_, ()>(Index(2)),
            |_| std::iter::empty(),
        );
        assert_eq!(through, Ok(Index(2)));
        batch
    }

    impl Case {
        fn new() -> Self {
            let slow = Arc::new(Slow::default());
            let inline = InlineApplies::at(vec![Arc::clone(&slow) as _]);
            Case { slow, inline }
        }

        /// How many of so many batches, each of which takes so long, were applied here. The worker applied the others.
        fn applied(&mut self, batches: u64, takes: u64) -> u64 {
            let slow = &self.slow;
            slow.takes.store(takes, Ordering::Relaxed);
            let now = || Tick(slow.now.load(Ordering::Relaxed));
            let of_turn = [batch()];
            (0..batches)
                .filter(|_| {
                    let is_applied = self.inline.is_for(0, &of_turn, LIMIT)
                        && self.inline.perform(0, Task::Stop, now).is_none();
                    if !is_applied {
                        self.inline.note(0, takes);
                    }
                    is_applied
                })
                .count() as u64
        }
    }

    #[test]
    fn quick_batches_are_applied_here() {
        assert_eq!(Case::new().applied(1_000, 400), 1_000);
    }

    #[test]
    fn slow_batches_are_left_to_the_worker_until_they_are_quick_again() {
        let mut case = Case::new();
        case.applied(100, 100);
        let slow = case.applied(10_000, 5_000_000);
        assert!((1..100).contains(&slow), "{slow}");
        assert_eq!(case.applied(1_000, 5_000_000), 0);
        let quick = case.applied(1_000, 100);
        assert!((700..1_000).contains(&quick), "{quick}");
    }

    #[test]
    fn one_slow_batch_changes_nothing() {
        let mut case = Case::new();
        case.applied(100, 100);
        assert_eq!(case.applied(1, 1_000_000), 1);
        assert_eq!(case.applied(100, 100), 100);
    }

    #[test]
    fn a_batch_comes_back_while_the_seat_is_taken() {
        let mut case = Case::new();
        case.slow.is_taken.store(true, Ordering::Relaxed);
        assert_eq!(case.applied(10, 100), 0);
        case.slow.is_taken.store(false, Ordering::Relaxed);
        assert_eq!(case.applied(10, 100), 10);
    }

    #[test]
    fn workers_that_all_have_something_to_do_do_it_side_by_side() {
        let seat = || Arc::new(Slow::default()) as Arc<dyn Perform>;
        let inline = InlineApplies::at(vec![seat(), seat()]);
        assert!(inline.is_for(1, &[ApplyBatch::default(), batch()], LIMIT));
        assert!(!inline.is_for(1, &[batch(), batch()], LIMIT));
        assert!(!InlineApplies::default().is_for(0, &[batch()], LIMIT));
    }
}

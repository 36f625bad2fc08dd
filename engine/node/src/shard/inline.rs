//! When a shard applies by itself what it committed, in place of waking an apply worker.
//! It must never wait for a state machine that somebody else is at.

use std::sync::Arc;
use std::time::Duration;

use polyraft_raft::Tick;
use polyraft_storage::Usual;

use crate::apply::{Perform, Task};

/// Where it takes too long, one of so many batches is applied all the same: that shows when it does no more.
const TRIED: u32 = 256;

/// How long batches take that this shard applies.
#[derive(Default)]
pub(super) struct InlineApplies {
    /// By worker; none where workers apply everything.
    seats: Vec<Arc<dyn Perform>>,
    usual: Usual,
    /// Batches that were left to workers since the last one that was not.
    left: u32,
}

impl InlineApplies {
    pub(super) fn at(seats: Vec<Arc<dyn Perform>>) -> Self {
        InlineApplies {
            seats,
            ..InlineApplies::default()
        }
    }

    /// Whether any batch may be.
    pub(super) fn are_possible(&self) -> bool {
        !self.seats.is_empty()
    }

    /// Does a worker's task on this thread, if that usually takes no longer than `limit` and the worker has nothing else to do.
    /// What it has to do comes back.
    pub(super) fn perform(
        &mut self,
        worker: usize,
        task: Task,
        limit: Duration,
        now: impl Fn() -> Tick,
    ) -> Option<Task> {
        let Some(seat) = self.seats.get(worker) else {
            return Some(task);
        };
        if !self.usual.is_within(limit) && self.left < TRIED {
            self.left += 1;
            return Some(task);
        }
        let begun = now();
        let left = seat.try_perform(task);
        if left.is_none() {
            let took = now().since(begun);
            self.usual.note(Duration::from_micros(took));
            self.left = 0;
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const LIMIT: Duration = Duration::from_micros(500);

    /// A clock, and a worker's seat at which each task takes so long.
    #[derive(Default)]
    struct Slow {
        now: AtomicU64,
        takes: AtomicU64,
        is_taken: AtomicU64,
        done: AtomicU64,
    }

    impl Perform for Slow {
        fn try_perform(&self, task: Task) -> Option<Task> {
            if self.is_taken.load(Ordering::Relaxed) > 0 {
                return Some(task);
            }
            let takes = self.takes.load(Ordering::Relaxed);
            self.now.fetch_add(takes, Ordering::Relaxed);
            self.done.fetch_add(1, Ordering::Relaxed);
            None
        }
    }

    struct Case {
        slow: Arc<Slow>,
        inline: InlineApplies,
    }

    impl Case {
        fn new() -> Self {
            let slow = Arc::new(Slow::default());
            let inline = InlineApplies::at(vec![Arc::clone(&slow) as _]);
            Case { slow, inline }
        }

        /// How many of so many batches, each of which takes so long, were applied here. The others came back.
        fn applied(&mut self, batches: u64, takes: u64) -> u64 {
            let slow = &self.slow;
            slow.takes.store(takes, Ordering::Relaxed);
            let before = slow.done.load(Ordering::Relaxed);
            let now = || Tick(slow.now.load(Ordering::Relaxed));
            let left = (0..batches)
                .filter(|_| {
                    let left = self.inline.perform(0, Task::Stop, LIMIT, now);
                    left.is_some()
                })
                .count() as u64;
            let done = slow.done.load(Ordering::Relaxed) - before;
            assert_eq!(left + done, batches);
            done
        }
    }

    #[test]
    fn quick_batches_are_applied_here() {
        let mut case = Case::new();
        assert_eq!(case.applied(1_000, 400), 1_000);
    }

    #[test]
    fn slow_batches_are_left_to_the_worker_until_they_are_quick_again() {
        let mut case = Case::new();
        case.applied(100, 100);
        let tried = case.applied(100_000, 5_000);
        assert!((350..=500).contains(&tried), "{tried}");
        // Every 257th is tried, and it takes some of them to be believed.
        let quick = case.applied(100_000, 100);
        assert!(quick > 80_000, "{quick}");
    }

    #[test]
    fn one_slow_batch_changes_nothing() {
        let mut case = Case::new();
        case.applied(100, 100);
        assert_eq!(case.applied(1, 1_000_000), 1);
        assert_eq!(case.applied(100, 100), 100);
    }

    #[test]
    fn a_seat_that_is_taken_says_nothing_of_how_long_batches_take() {
        let mut case = Case::new();
        case.slow.is_taken.store(1, Ordering::Relaxed);
        assert_eq!(case.applied(100, 5_000), 0);
        case.slow.is_taken.store(0, Ordering::Relaxed);
        assert_eq!(case.applied(100, 100), 100);
    }
}

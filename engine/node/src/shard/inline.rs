//! When a shard applies by itself what it committed, in place of waking an apply worker.
//! It must never wait for a state machine that somebody else is at, nor begin with what a restart has to apply.

use std::sync::Arc;
use std::time::Duration;

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

    /// Whether a worker's batch should be applied here: such batches usually take no longer than `limit`.
    pub(super) fn are_for(&self, worker: usize, batch: &ApplyBatch, limit: Duration) -> bool {
        let seat = self.seats.get(worker);
        seat.is_some_and(|(_, usual)| usual.is_within(limit)) && is_small(batch)
    }

    /// Does a worker's task on this thread, if the worker has nothing else to do. What it has to do comes back.
    pub(super) fn perform(&self, worker: usize, task: Task) -> Option<Task> {
        match self.seats.get(worker) {
            Some((seat, _)) => seat.try_perform(task),
            None => Some(task),
        }
    }

    /// A batch was applied, here or by the worker: that says how long the next one takes.
    pub(super) fn note(&mut self, worker: usize, batch: &ApplyBatch) {
        if let Some((_, usual)) = self.seats.get_mut(worker)
            && is_small(batch)
        {
            usual.note(Duration::from_micros(batch.took));
        }
    }
}

fn is_small(batch: &ApplyBatch) -> bool {
    batch.bytes() <= MOST_BYTES && !batch.has_unread()
}

#[cfg(test)]
mod tests {
    use polyraft_raft::{GroupId, Index};

    use super::*;

    const LIMIT: Duration = Duration::from_micros(500);

    /// A seat that somebody else has.
    struct Taken;

    impl Perform for Taken {
        fn try_perform(&self, task: Task) -> Option<Task> {
            Some(task)
        }
    }

    fn inline() -> InlineApplies {
        InlineApplies::at(vec![Arc::new(Taken)])
    }

    /// A batch whose application took so long.
    fn batch(took: u64) -> ApplyBatch {
        let mut batch = ApplyBatch::default();
        let through = batch.push(
            (0, GroupId(1)),
            Index(1),
            |_| Ok::<_, ()>(Index(2)),
            |_| std::iter::empty(),
        );
        assert_eq!(through, Ok(Index(2)));
        batch.took = took;
        batch
    }

    /// How many of so many batches, each of which takes so long, are to be applied here.
    fn taken(inline: &mut InlineApplies, batches: u64, took: u64) -> u64 {
        let batch = batch(took);
        (0..batches)
            .filter(|_| {
                let is_taken = inline.are_for(0, &batch, LIMIT);
                inline.note(0, &batch);
                is_taken
            })
            .count() as u64
    }

    #[test]
    fn quick_batches_are_applied_here() {
        assert_eq!(taken(&mut inline(), 1_000, 400), 1_000);
    }

    #[test]
    fn slow_batches_are_left_to_the_worker_until_they_are_quick_again() {
        let mut inline = inline();
        taken(&mut inline, 100, 100);
        let slow = taken(&mut inline, 10_000, 5_000_000);
        assert!((1..100).contains(&slow), "{slow}");
        assert_eq!(taken(&mut inline, 1_000, 5_000_000), 0);
        let quick = taken(&mut inline, 1_000, 100);
        assert!((700..1_000).contains(&quick), "{quick}");
    }

    #[test]
    fn one_slow_batch_changes_nothing() {
        let mut inline = inline();
        taken(&mut inline, 100, 100);
        assert_eq!(taken(&mut inline, 1, 1_000_000), 1);
        assert_eq!(taken(&mut inline, 100, 100), 100);
    }

    #[test]
    fn a_task_comes_back_from_a_seat_that_is_taken() {
        assert!(inline().perform(0, Task::Stop).is_some());
    }

    #[test]
    fn workers_apply_everything_where_no_seat_is_given() {
        let none = InlineApplies::default();
        assert!(!none.are_for(0, &batch(1), Duration::MAX));
        assert!(none.perform(0, Task::Stop).is_some());
    }
}

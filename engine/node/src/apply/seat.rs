//! Who sits at an apply worker's state machines: the worker's thread, or a shard that has something to apply while nothing waits.
//! A task must never be done before one that came earlier, nor by anybody after one whose thread panicked half-way.

use std::sync::{Mutex, PoisonError};

use super::{Applier, Task};
use crate::machine::StateMachine;
use crate::mailbox::{Mailbox, Sender};

/// The state machines of a worker, and the way into its queue.
pub(crate) struct Seat<M> {
    applier: Mutex<Applier<M>>,
    queue: Sender<Task>,
}

/// A seat, whatever the state machines are.
pub(crate) trait Perform: Send + Sync {
    /// Does a task on this thread, if nobody is at the seat and no earlier task waits. Otherwise it comes back.
    fn try_perform(&self, task: Task) -> Option<Task>;
}

impl<M: StateMachine> Perform for Seat<M> {
    fn try_perform(&self, task: Task) -> Option<Task> {
        match self.applier.try_lock() {
            // Whoever takes from the queue is at the seat, so what is not in it is done.
            Ok(mut applier) if self.queue.is_empty() => {
                applier.perform(task);
                None
            }
            _ => Some(task),
        }
    }
}

impl<M: StateMachine> Seat<M> {
    pub(crate) fn new(applier: Applier<M>, queue: Sender<Task>) -> Self {
        Seat {
            applier: Mutex::new(applier),
            queue,
        }
    }

    /// Serves tasks until told to stop. State machines whose openings wait one behind the other are opened by so many threads.
    pub(crate) fn serve(&self, tasks: &Mailbox<Task>, openers: usize) {
        loop {
            tasks.wait();
            match self.applier.lock() {
                Ok(mut applier) => {
                    if applier.serve(tasks, openers) {
                        return applier.close();
                    }
                }
                // The node stops.
                Err(error) => return PoisonError::into_inner(error).close(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::clock::Clock;
    use crate::mailbox::mailbox;
    use crate::shard::tests::Nothing;

    /// A seat at which tasks leave their numbers.
    struct Case {
        seat: Seat<Nothing>,
        queue: Sender<Task>,
        tasks: Mailbox<Task>,
        done: Arc<parking_lot::Mutex<Vec<u8>>>,
    }

    fn case() -> Case {
        let (queue, tasks) = mailbox();
        let (backlog, clock) = (Arc::default(), Clock::start());
        let applier = Applier::new(Path::new("/n"), Arc::new([]), Arc::new([]), backlog, clock);
        Case {
            seat: Seat::new(applier, queue.clone()),
            queue,
            tasks,
            done: Arc::default(),
        }
    }

    impl Case {
        fn task(&self, number: u8) -> Task {
            let done = Arc::clone(&self.done);
            Task::Rest(Arc::new(move || done.lock().push(number)))
        }
    }

    #[test]
    fn a_task_is_done_here_if_none_waits() {
        let case = case();
        assert!(case.seat.try_perform(case.task(1)).is_none());
        assert_eq!(*case.done.lock(), [1]);
    }

    #[test]
    fn a_task_comes_back_while_an_earlier_one_waits() {
        let case = case();
        case.queue.send(case.task(1));
        let second = case.seat.try_perform(case.task(2));
        assert_eq!(*case.done.lock(), []);
        case.queue.send(second.expect("it came back"));
        case.queue.send(Task::Stop);
        case.seat.serve(&case.tasks, 1);
        assert_eq!(*case.done.lock(), [1, 2]);
    }

    #[test]
    fn a_task_comes_back_while_the_worker_is_busy() {
        let case = case();
        let (seat, came_back) = (
            Arc::new(case.seat),
            Arc::new(parking_lot::Mutex::new(false)),
        );
        let (other, told) = (Arc::clone(&seat), Arc::clone(&came_back));
        // While it is done, nothing is in the queue.
        let busy: Task = Task::Rest(Arc::new(move || {
            let task = Task::Rest(Arc::new(|| panic!("done too early")));
            *told.lock() = other.try_perform(task).is_some();
        }));
        case.queue.send(busy);
        case.queue.send(Task::Stop);
        seat.serve(&case.tasks, 1);
        assert!(*came_back.lock());
    }

    #[test]
    fn a_seat_that_somebody_left_in_a_panic_is_nobodys() {
        let case = case();
        let fails = Task::Rest(Arc::new(|| panic!("half-way")));
        let failed = catch_unwind(AssertUnwindSafe(|| case.seat.try_perform(fails)));
        assert!(failed.is_err());
        assert!(case.seat.try_perform(case.task(1)).is_some());
        case.queue.send(case.task(2));
        // It returns, without having been told to.
        case.seat.serve(&case.tasks, 1);
        assert_eq!(*case.done.lock(), []);
    }
}

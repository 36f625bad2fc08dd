//! How a command tells one thread of its load generator what to do: run, rest or end. It knows nothing of what the
//! thread sends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

/// What the thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Send.
    Run,
    /// Let what is in flight end, then wait without using CPU.
    Rest,
    /// Return at once, whatever is in flight.
    End,
}

/// The wires between a command and one thread.
#[derive(Debug)]
pub struct Control {
    goal: Mutex<Goal>,
    changed: Condvar,
    /// True while nothing is in flight and the goal is not to run.
    resting: AtomicBool,
    fault: Mutex<Option<String>>,
}

impl Control {
    /// For a thread that is to run.
    pub fn new() -> Self {
        Self {
            goal: Mutex::new(Goal::Run),
            changed: Condvar::new(),
            resting: AtomicBool::new(false),
            fault: Mutex::new(None),
        }
    }

    /// What the thread is to do now.
    pub fn goal(&self) -> Goal {
        *lock(&self.goal)
    }

    /// For the command: says what to do from now on.
    pub fn set_goal(&self, goal: Goal) {
        let mut current = lock(&self.goal);
        if goal == Goal::Run {
            self.resting.store(false, Ordering::Release);
        }
        *current = goal;
        self.changed.notify_all();
    }

    /// For the thread: says that it has nothing in flight, and waits while it is to rest.
    pub fn rest(&self) {
        let mut goal = lock(&self.goal);
        while *goal == Goal::Rest {
            // Said anew each time: the goal may have been to run and to rest again before this thread woke up.
            self.resting.store(true, Ordering::Release);
            goal = self
                .changed
                .wait(goal)
                .expect("no thread panics while it holds the goal");
        }
        self.resting.store(false, Ordering::Release);
    }

    /// Whether the thread rests, as it was told to.
    pub fn is_resting(&self) -> bool {
        self.resting.load(Ordering::Acquire)
    }

    /// For the thread: something happened that must not. The first one counts.
    pub fn fail(&self, fault: String) {
        lock(&self.fault).get_or_insert(fault);
    }

    /// What must not have happened, if it did.
    pub fn fault(&self) -> Option<String> {
        lock(&self.fault).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("no thread panics while it holds a part of the control")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_resting_thread_waits_for_the_next_goal() {
        let control = Arc::new(Control::new());
        control.set_goal(Goal::Rest);
        let thread = std::thread::spawn({
            let control = Arc::clone(&control);
            move || {
                control.rest();
                control.goal()
            }
        });
        while !control.is_resting() {
            std::thread::yield_now();
        }
        control.set_goal(Goal::End);
        assert_eq!(thread.join().unwrap(), Goal::End);
    }

    #[test]
    fn the_first_fault_counts() {
        let control = Control::new();
        assert_eq!(control.fault(), None);
        control.fail("first".into());
        control.fail("second".into());
        assert_eq!(control.fault().as_deref(), Some("first"));
    }
}

//! A queue that its one reader empties at a stroke: the cheapest channel for threads that work in batches. The peers
//! get it for their messages and everyone for the client's outcomes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    arrived: Condvar,
}

struct Queue<T> {
    items: Vec<T>,
    is_waiting: bool,
}

/// Both ends of the queue.
pub struct Mailbox<T>(Arc<Shared<T>>);

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            queue: Mutex::new(Queue {
                items: Vec::new(),
                is_waiting: false,
            }),
            arrived: Condvar::new(),
        }))
    }
}

impl<T> Mailbox<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.0
            .queue
            .lock()
            .expect("no thread panics while it holds the queue")
    }

    /// Adds one item.
    pub fn push(&self, item: T) {
        let mut queue = self.lock();
        queue.items.push(item);
        if queue.is_waiting {
            self.0.arrived.notify_one();
        }
    }

    /// Adds all of `items`, which keeps its memory.
    pub fn append(&self, items: &mut Vec<T>) {
        if items.is_empty() {
            return;
        }
        let mut queue = self.lock();
        queue.items.append(items);
        if queue.is_waiting {
            self.0.arrived.notify_one();
        }
    }

    /// Swaps everything that is there into `out`, which must be empty; waits up to `timeout` for the first item.
    pub fn take(&self, out: &mut Vec<T>, timeout: Duration) {
        let mut queue = self.lock();
        if queue.items.is_empty() && !timeout.is_zero() {
            queue.is_waiting = true;
            queue = self
                .0
                .arrived
                .wait_timeout_while(queue, timeout, |queue| queue.items.is_empty())
                .expect("no thread panics while it holds the queue")
                .0;
            queue.is_waiting = false;
        }
        std::mem::swap(&mut queue.items, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_was_pushed_is_taken_in_order() {
        let mailbox = Mailbox::default();
        mailbox.push(1);
        mailbox.append(&mut vec![2, 3]);
        let mut out = Vec::new();
        mailbox.take(&mut out, Duration::ZERO);
        assert_eq!(out, [1, 2, 3]);
        out.clear();
        mailbox.take(&mut out, Duration::from_millis(1));
        assert!(out.is_empty());
    }
}

//! What the mailbox is built of. In a test under `--cfg polyraft_loom` these are models of the same things, whose every
//! interleaving loom tries, reorderings of relaxed accesses included. It must never add an ordering that the real ones
//! do not give.

#[cfg(not(all(test, polyraft_loom)))]
pub(super) use {
    crossbeam::queue::SegQueue,
    crossbeam::sync::{Parker, Unparker},
    std::sync::atomic::{AtomicBool, fence},
};

#[cfg(all(test, polyraft_loom))]
pub(super) use {
    loom::sync::atomic::fence,
    model::{AtomicBool, Parker, SegQueue, Unparker},
};

#[cfg(all(test, polyraft_loom))]
mod model {
    use std::sync::Arc;
    use std::sync::Mutex as Plain;
    use std::time::Duration;

    use loom::sync::atomic::{AtomicBool as Flag, AtomicUsize, Ordering};
    use loom::sync::{Condvar, Mutex};

    /// A flag that one thread stores to and others swap. Loom does not know that a store which comes after the value
    /// that a swap has read comes after the swap too, so that it would let the swap's thread read its own old value
    /// (loom 0.7.2); a store that is a swap says so, and orders nothing else.
    #[derive(Debug)]
    pub(crate) struct AtomicBool(Flag);

    impl AtomicBool {
        pub(crate) fn new(value: bool) -> Self {
            AtomicBool(Flag::new(value))
        }

        pub(crate) fn load(&self, ordering: Ordering) -> bool {
            self.0.load(ordering)
        }

        pub(crate) fn store(&self, value: bool, ordering: Ordering) {
            self.0.swap(value, ordering);
        }

        pub(crate) fn swap(&self, value: bool, ordering: Ordering) -> bool {
            self.0.swap(value, ordering)
        }
    }

    /// The most messages of one model.
    const SLOTS: usize = 6;

    /// A queue that orders no more than it must: a push publishes its own message and nothing else.
    #[derive(Debug)]
    pub(crate) struct SegQueue<T> {
        slots: [Slot<T>; SLOTS],
        head: AtomicUsize,
        tail: AtomicUsize,
    }

    #[derive(Debug)]
    struct Slot<T> {
        /// A lock that loom does not see, for the flag already says whose turn it is.
        message: Plain<Option<T>>,
        is_written: Flag,
    }

    impl<T> SegQueue<T> {
        pub(crate) fn new() -> Self {
            SegQueue {
                slots: std::array::from_fn(|_| Slot {
                    message: Plain::new(None),
                    is_written: Flag::new(false),
                }),
                head: AtomicUsize::new(0),
                tail: AtomicUsize::new(0),
            }
        }

        pub(crate) fn push(&self, message: T) {
            let slot = &self.slots[self.tail.fetch_add(1, Ordering::Relaxed)];
            *slot.message.lock().unwrap() = Some(message);
            slot.is_written.store(true, Ordering::Release);
        }

        pub(crate) fn pop(&self) -> Option<T> {
            loop {
                let head = self.head.load(Ordering::Relaxed);
                let slot = self.slots.get(head)?;
                if !slot.is_written.load(Ordering::Acquire) {
                    return None;
                }
                let taken = self.head.compare_exchange(
                    head,
                    head + 1,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                if taken.is_ok() {
                    return slot.message.lock().unwrap().take();
                }
            }
        }

        pub(crate) fn is_empty(&self) -> bool {
            let head = self.head.load(Ordering::Relaxed);
            let slot = self.slots.get(head);
            slot.is_none_or(|slot| !slot.is_written.load(Ordering::Relaxed))
        }
    }

    /// Sleeps until it gets a token; a token that came before is as good.
    #[derive(Debug)]
    pub(crate) struct Parker(Unparker);

    #[derive(Clone, Debug)]
    pub(crate) struct Unparker(Arc<(Mutex<bool>, Condvar)>);

    impl Parker {
        pub(crate) fn new() -> Self {
            Parker(Unparker(Arc::new((Mutex::new(false), Condvar::new()))))
        }

        pub(crate) fn unparker(&self) -> &Unparker {
            &self.0
        }

        pub(crate) fn park(&self) {
            let (token, given) = &*self.0.0;
            let mut token = token.lock().unwrap();
            while !*token {
                token = given.wait(token).unwrap();
            }
            *token = false;
        }

        /// The time may be over at any moment; here it always is, unless it is the longest there is.
        pub(crate) fn park_timeout(&self, timeout: Duration) {
            if timeout == Duration::MAX {
                return self.park();
            }
            let (token, _) = &*self.0.0;
            *token.lock().unwrap() = false;
        }
    }

    impl Unparker {
        pub(crate) fn unpark(&self) {
            let (token, given) = &*self.0;
            *token.lock().unwrap() = true;
            given.notify_one();
        }
    }
}

//! The queue in front of a thread: any thread puts in, one thread takes out and sleeps while there is nothing. It may also
//! rest for a while from what is not pressing, so that more comes together.
//! It must never spin: an idle node costs nothing, and a busy one needs the core for something else.

#[cfg(all(test, polyraft_loom))]
mod model;
mod sync;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use polyraft_raft::mutants::{self, Mutant};

use self::sync::{AtomicBool, Parker, SegQueue, Unparker, fence};

/// Puts messages in. Cloning gives another way in to the same queue.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    queue: Arc<Queue<T>>,
}

/// Takes messages out, in the order in which each sender put them in.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    queue: Arc<Queue<T>>,
    parker: Parker,
}

#[derive(Debug)]
struct Queue<T> {
    messages: SegQueue<T>,
    /// The owner sleeps, or is about to; whoever clears it wakes it.
    is_asleep: AtomicBool,
    /// The owner rests, or is about to; a pressing message clears it and wakes it.
    is_resting: AtomicBool,
    /// A pressing message came since the owner last looked for one.
    is_pressed: AtomicBool,
    /// The mailbox is gone: messages are dropped, which answers whoever waits for them.
    is_closed: AtomicBool,
    unparker: Unparker,
}

/// A new queue.
pub(crate) fn mailbox<T>() -> (Sender<T>, Mailbox<T>) {
    let parker = Parker::new();
    let queue = Arc::new(Queue {
        messages: SegQueue::new(),
        is_asleep: AtomicBool::new(false),
        is_resting: AtomicBool::new(false),
        is_pressed: AtomicBool::new(false),
        is_closed: AtomicBool::new(false),
        unparker: parker.unparker().clone(),
    });
    (
        Sender {
            queue: Arc::clone(&queue),
        },
        Mailbox { queue, parker },
    )
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender {
            queue: Arc::clone(&self.queue),
        }
    }
}

impl<T> Sender<T> {
    /// Puts a message in. When the mailbox is gone the message is dropped.
    pub(crate) fn send(&self, message: T) {
        if mutants::is_active(Mutant::WakeBeforePush) {
            self.queue.wake(&self.queue.is_asleep);
            return self.queue.messages.push(message);
        }
        self.queue.messages.push(message);
        self.queue.wake(&self.queue.is_asleep);
    }

    /// Puts a message in for which a resting owner gets up.
    pub(crate) fn press(&self, message: T) {
        self.queue.messages.push(message);
        self.queue.is_pressed.store(true, Ordering::Release);
        self.queue.wake(&self.queue.is_asleep);
        self.queue.wake(&self.queue.is_resting);
    }

    /// Whether the owner has taken everything. More may come at any moment.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.messages.is_empty()
    }
}

impl<T> Queue<T> {
    /// After a push: wakes the owner if it sleeps in this way. When the mailbox is gone, drops what was pushed.
    fn wake(&self, sleeps: &AtomicBool) {
        // Orders the push before the looks at both flags. The other side sets a flag, then looks into the queue: at
        // least one of the two sees the other.
        if !mutants::is_active(Mutant::WakeUnfenced) {
            fence(Ordering::SeqCst);
        }
        if sleeps.load(Ordering::Relaxed) && sleeps.swap(false, Ordering::Relaxed) {
            self.unparker.unpark();
        }
        if self.is_closed.load(Ordering::Relaxed) {
            self.clear();
        }
    }

    fn clear(&self) {
        while self.messages.pop().is_some() {}
    }
}

impl<T> Mailbox<T> {
    /// The next message, if there is one.
    pub(crate) fn try_take(&self) -> Option<T> {
        self.queue.messages.pop()
    }

    /// How many messages wait.
    #[cfg(feature = "sim")]
    pub(crate) fn len(&self) -> usize {
        self.queue.messages.len()
    }

    /// The next message; sleeps until there is one, for `timeout` at most if one is given.
    pub(crate) fn take(&self, timeout: Option<Duration>) -> Option<T> {
        loop {
            if let Some(message) = self.try_take() {
                return Some(message);
            }
            self.sleep(timeout);
            // A wake-up may be left over from an earlier message; without a timeout it only costs another look.
            if timeout.is_some() {
                return self.try_take();
            }
        }
    }

    /// Sleeps until there is a message, and leaves it where it is.
    pub(crate) fn wait(&self) {
        while self.queue.messages.is_empty() {
            self.sleep(None);
        }
    }

    /// Sleeps if there is no message. A wake-up that is left over from an earlier one ends it early.
    fn sleep(&self, timeout: Option<Duration>) {
        self.queue.is_asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.queue.messages.is_empty() {
            match timeout {
                Some(timeout) => self.parker.park_timeout(timeout),
                None => self.parker.park(),
            }
        }
        self.queue.is_asleep.store(false, Ordering::Relaxed);
    }

    /// Sleeps until a pressing message has come since the last rest, for `limit` at most; whatever else comes, waits. A
    /// rest may end early, for a wake-up that is left over from an earlier message.
    pub(crate) fn rest(&self, limit: Duration) {
        self.queue.is_resting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !self.queue.is_pressed.load(Ordering::Acquire) {
            self.parker.park_timeout(limit);
        }
        self.queue.is_resting.store(false, Ordering::Relaxed);
        self.queue.is_pressed.store(false, Ordering::Relaxed);
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        self.queue.is_closed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.queue.clear();
    }
}

#[cfg(all(test, not(polyraft_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_owner_is_woken_by_every_message() {
        let (to_echo, echo) = mailbox::<u64>();
        let (to_caller, caller) = mailbox::<u64>();
        let thread = std::thread::spawn(move || {
            while let Some(number) = echo.take(None) {
                to_caller.send(number + 1);
                if number == 10_000 {
                    return;
                }
            }
        });
        for number in 0..=10_000 {
            to_echo.send(number);
            assert_eq!(caller.take(None), Some(number + 1));
        }
        thread.join().unwrap();
    }

    #[test]
    fn messages_of_one_sender_keep_their_order() {
        let (sender, mailbox) = mailbox();
        let senders: Vec<_> = (0..4u64)
            .map(|thread| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    (0..10_000u64).for_each(|number| sender.send((thread, number)))
                })
            })
            .collect();
        let mut next = [0; 4];
        for _ in 0..40_000 {
            let (thread, number) = mailbox.take(None).unwrap();
            assert_eq!(next[thread as usize], number);
            next[thread as usize] += 1;
        }
        senders
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn messages_to_a_mailbox_that_is_gone_are_dropped() {
        let (sender, mailbox) = mailbox();
        let message = Arc::new(());
        sender.send(Arc::clone(&message));
        drop(mailbox);
        sender.send(Arc::clone(&message));
        assert_eq!(Arc::strong_count(&message), 1);
    }

    #[test]
    fn a_timeout_ends_the_wait() {
        let (_sender, mailbox) = mailbox::<()>();
        assert_eq!(mailbox.take(Some(Duration::from_millis(1))), None);
    }
}

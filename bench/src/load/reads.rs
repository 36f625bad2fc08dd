//! Reads under way: futures that are polled by the generator's own thread when they have something to say. No runtime
//! and no thread of its own; the queue of completions is woken instead.

use polyraft::CompletionQueue;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// Futures, each with the number that its owner gave it.
pub struct Reads<T> {
    slots: Vec<Option<Reading<T>>>,
    free: Vec<usize>,
    ready: Arc<Ready>,
    scratch: Vec<usize>,
}

struct Reading<T> {
    tag: u64,
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    waker: Waker,
}

/// Places of futures that can be polled again.
struct Ready {
    places: Mutex<Vec<usize>>,
    queue: CompletionQueue,
}

struct Place {
    at: usize,
    ready: Arc<Ready>,
}

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        lock(&self.ready.places).push(self.at);
        self.ready.queue.wake();
    }
}

fn lock(places: &Mutex<Vec<usize>>) -> std::sync::MutexGuard<'_, Vec<usize>> {
    places
        .lock()
        .expect("no thread panics while it holds the list")
}

impl<T> Reads<T> {
    /// None under way. `queue` is woken when one may have ended.
    pub fn new(queue: CompletionQueue) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ready: Arc::new(Ready {
                places: Mutex::default(),
                queue,
            }),
            scratch: Vec::new(),
        }
    }

    /// Starts one.
    pub fn start(&mut self, tag: u64, future: impl Future<Output = T> + Send + 'static) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let waker = Waker::from(Arc::new(Place {
            at,
            ready: Arc::clone(&self.ready),
        }));
        self.slots[at] = Some(Reading {
            tag,
            future: Box::pin(future),
            waker,
        });
        // A future does nothing before its first poll.
        lock(&self.ready.places).push(at);
    }

    /// Polls what is ready; gives each end to `done`.
    pub fn poll(&mut self, mut done: impl FnMut(u64, T)) {
        let mut places = mem::take(&mut self.scratch);
        mem::swap(&mut places, &mut *lock(&self.ready.places));
        for at in places.drain(..) {
            // A second wake of an ended future, or of the one that took its place: polling once more is harmless.
            let Some(reading) = &mut self.slots[at] else {
                continue;
            };
            let waker = reading.waker.clone();
            if let Poll::Ready(result) = reading
                .future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
            {
                done(reading.tag, result);
                self.slots[at] = None;
                self.free.push(at);
            }
        }
        self.scratch = places;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ends_are_told_under_their_number_and_wake_the_queue() {
        let queue = CompletionQueue::new();
        let mut reads = Reads::new(queue.clone());
        let (answer, later) = tokio::sync::oneshot::channel();
        reads.start(1, async move { later.await.unwrap_or(0) });
        reads.start(2, async { 20 });
        let mut ends = Vec::new();
        reads.poll(|tag, value| ends.push((tag, value)));
        assert_eq!(ends, [(2, 20)]);
        let other = std::thread::spawn(move || answer.send(10));
        // Ends early because it is woken; the long limit would fail the test by its length.
        queue.drain(&mut Vec::new(), Duration::from_secs(600));
        other.join().unwrap().unwrap();
        reads.poll(|tag, value| ends.push((tag, value)));
        assert_eq!(ends, [(2, 20), (1, 10)]);
        reads.start(3, async { 30 });
        reads.poll(|tag, value| ends.push((tag, value)));
        assert_eq!(ends.last(), Some(&(3, 30)), "a place is used again");
    }
}

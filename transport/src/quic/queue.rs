//! The queue in front of one lane to one peer.
//!
//! Owns the frames between `send` and the lane's writer, and their bound in bytes. It must never
//! block the sender, nor wake the writer while it is awake: a wakeup of the network's thread is a
//! system call.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::doorbell::Doorbell;
use crate::{LaneDelays, SendError};

#[derive(Debug)]
pub(super) struct LaneQueue {
    limit: usize,
    /// The longest frame that this node sends to anyone.
    own_frame_limit: usize,
    state: Mutex<State>,
    wake: Arc<Notify>,
    /// Where other threads have the writer woken.
    doorbell: Arc<Doorbell>,
}

#[derive(Debug, Default)]
struct State {
    /// The link that drains this queue; `None` while the peer is not connected.
    link: Option<u64>,
    /// The longest frame that the link takes.
    frame_limit: usize,
    frames: VecDeque<Bytes>,
    /// Bytes of `frames`, and of those which the writer has taken but not handed on.
    bytes: usize,
    /// Whether the writer waits to be woken.
    parked: bool,
    /// Whether the writer ends once the queue is empty.
    ending: bool,
    /// The frame whose wait is measured: how many leave before it does, itself included, and when it came.
    sample: Option<(usize, Instant)>,
    /// Of the samples that left, over all links.
    delays: LaneDelays,
}

impl LaneQueue {
    /// A queue of at most `limit` bytes, for frames of at most `frame_limit` bytes.
    pub fn new(limit: usize, frame_limit: usize, doorbell: Arc<Doorbell>) -> LaneQueue {
        LaneQueue {
            limit,
            own_frame_limit: frame_limit,
            state: Mutex::default(),
            wake: Arc::default(),
            doorbell,
        }
    }

    /// Adds a frame, from any thread.
    pub fn push(&self, frame: Bytes) -> Result<(), SendError> {
        let wake = {
            let mut state = self.state.lock();
            let frame_limit = match state.link {
                Some(_) => state.frame_limit,
                None => self.own_frame_limit,
            };
            if frame.len() > frame_limit {
                return Err(SendError::TooLarge {
                    bytes: frame.len(),
                    limit: frame_limit,
                });
            }
            if state.link.is_none() || state.ending {
                return Err(SendError::Disconnected);
            }
            if state.bytes + frame.len() > self.limit {
                return Err(SendError::Full {
                    queued: state.bytes,
                    limit: self.limit,
                });
            }
            state.bytes += frame.len();
            state.frames.push_back(frame);
            if state.sample.is_none() {
                state.sample = Some((state.frames.len(), Instant::now()));
            }
            std::mem::take(&mut state.parked)
        };
        if wake {
            self.doorbell.ring_for(&self.wake);
        }
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// How long frames waited, one at a time.
    pub fn delays(&self) -> LaneDelays {
        let state = self.state.lock();
        let waits = state.sample.map_or(0, |(_, since)| micros_since(since));
        LaneDelays {
            oldest_us: waits,
            ..state.delays
        }
    }

    /// Begins to take frames for a link, of at most `frame_limit` bytes each.
    pub fn open(&self, link: u64, frame_limit: usize) {
        let mut state = self.state.lock();
        *state = State {
            link: Some(link),
            frame_limit,
            delays: state.delays,
            ..State::default()
        };
    }

    /// Ends the link: frames that no writer has taken are dropped; returns how many.
    pub fn close(&self) -> u64 {
        let dropped = {
            let mut state = self.state.lock();
            let dropped = state.frames.len() as u64;
            *state = State {
                delays: state.delays,
                ..State::default()
            };
            dropped
        };
        self.wake.notify_one();
        dropped
    }

    /// Takes no more frames; the writer ends once it has written what is queued.
    pub fn end(&self) {
        self.state.lock().ending = true;
        self.wake.notify_one();
    }

    /// Waits for frames and moves about `budget` bytes of them, at least one frame, into `batch`.
    /// Returns their bytes, or `None` when the writer of `link` has nothing left to do.
    pub async fn next(&self, link: u64, budget: usize, batch: &mut Vec<Bytes>) -> Option<usize> {
        loop {
            {
                let mut state = self.state.lock();
                if state.link != Some(link) {
                    return None;
                }
                let mut taken = 0;
                while taken < budget
                    && let Some(frame) = state.frames.pop_front()
                {
                    taken += frame.len();
                    batch.push(frame);
                }
                if !batch.is_empty() {
                    state.note_left(batch.len());
                    return Some(taken);
                }
                if state.ending {
                    return None;
                }
                state.parked = true;
            }
            self.wake.notified().await;
        }
    }

    /// The writer of `link` has handed on `bytes` that it took.
    pub fn done(&self, link: u64, bytes: usize) {
        let mut state = self.state.lock();
        if state.link == Some(link) {
            state.bytes -= bytes;
        }
    }
}

impl State {
    /// The writer has taken frames from the front.
    fn note_left(&mut self, frames: usize) {
        match &mut self.sample {
            Some((ahead, _)) if *ahead > frames => *ahead -= frames,
            sample => {
                if let Some((_, since)) = sample.take() {
                    self.delays.samples += 1;
                    self.delays.total_us += micros_since(since);
                }
                // Nothing more may come: then what is left is all that waits.
                if !self.frames.is_empty() {
                    *sample = Some((self.frames.len(), Instant::now()));
                }
            }
        }
    }
}

fn micros_since(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Polls once; the queue's futures either are ready or wait for a sender.
    fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn queue(frame_limit: usize) -> LaneQueue {
        LaneQueue::new(100, frame_limit, Arc::default())
    }

    fn frame(bytes: usize) -> Bytes {
        Bytes::from(vec![1; bytes])
    }

    #[test]
    fn bytes_count_until_the_writer_handed_them_on() {
        let queue = queue(80);
        assert_eq!(queue.push(frame(1)), Err(SendError::Disconnected));
        queue.open(1, 70);
        queue.push(frame(60)).unwrap();
        let full = SendError::Full {
            queued: 60,
            limit: 100,
        };
        assert_eq!(queue.push(frame(41)), Err(full));
        let mut batch = Vec::new();
        assert_eq!(poll(queue.next(1, 10, &mut batch)), Some(Some(60)));
        assert_eq!(queue.push(frame(41)), Err(full));
        queue.done(1, 60);
        assert_eq!(queue.push(frame(41)), Ok(()));
        assert_eq!(queue.bytes(), 41);
    }

    #[test]
    fn the_wait_of_one_frame_at_a_time_is_measured() {
        let queue = queue(80);
        queue.open(1, 70);
        assert_eq!(queue.delays(), LaneDelays::default());
        let mut batch = Vec::new();
        queue.push(frame(1)).unwrap();
        poll(queue.next(1, 1, &mut batch));
        assert_eq!(queue.delays().samples, 1);
        // Of three the first is looked at, and then the last.
        (0..3).for_each(|_| queue.push(frame(1)).unwrap());
        for samples in [2, 2, 3] {
            batch.clear();
            poll(queue.next(1, 1, &mut batch));
            assert_eq!(queue.delays().samples, samples);
        }
        // Those that come while one is looked at leave behind it.
        (0..2).for_each(|_| queue.push(frame(1)).unwrap());
        batch.clear();
        poll(queue.next(1, 1, &mut batch));
        (0..2).for_each(|_| queue.push(frame(1)).unwrap());
        for samples in [5, 5, 6] {
            batch.clear();
            poll(queue.next(1, 1, &mut batch));
            assert_eq!(queue.delays().samples, samples);
        }
        // What goes down with its link counts for nothing, and what was counted stays.
        queue.push(frame(1)).unwrap();
        queue.close();
        let delays = queue.delays();
        assert_eq!((delays.samples, delays.oldest_us), (6, 0));
    }

    #[test]
    fn frame_limit_is_the_links_while_there_is_one() {
        let queue = queue(80);
        let refused = |bytes| match queue.push(frame(bytes)) {
            Err(SendError::TooLarge { limit, .. }) => Some(limit),
            _ => None,
        };
        assert_eq!((refused(80), refused(81)), (None, Some(80)));
        queue.open(1, 70);
        assert_eq!((refused(70), refused(71)), (None, Some(70)));
        queue.close();
        assert_eq!((refused(80), refused(81)), (None, Some(80)));
    }

    #[test]
    fn late_completion_of_an_old_link_is_ignored() {
        let queue = queue(80);
        queue.open(1, 70);
        queue.push(frame(60)).unwrap();
        let mut batch = Vec::new();
        assert_eq!(poll(queue.next(1, 10, &mut batch)), Some(Some(60)));
        queue.push(frame(10)).unwrap();
        assert_eq!(queue.close(), 1);
        queue.open(2, 70);
        queue.push(frame(7)).unwrap();
        queue.done(1, 60);
        assert_eq!(queue.bytes(), 7);
        assert_eq!(poll(queue.next(1, 10, &mut Vec::new())), Some(None));
    }

    #[test]
    fn sleeping_writer_is_woken_once_per_burst() {
        let queue = queue(80);
        queue.open(1, 70);
        let mut batch = Vec::new();
        assert_eq!(poll(queue.next(1, 100, &mut batch)), None);
        assert!(queue.state.lock().parked);
        queue.push(frame(1)).unwrap();
        assert!(!queue.state.lock().parked);
        queue.push(frame(2)).unwrap();
        assert_eq!(poll(queue.next(1, 100, &mut batch)), Some(Some(3)));
        assert_eq!(batch.len(), 2);
    }

    #[test]
    fn ending_queue_gives_out_what_it_holds_first() {
        let queue = queue(80);
        queue.open(1, 70);
        queue.push(frame(5)).unwrap();
        queue.end();
        assert_eq!(queue.push(frame(1)), Err(SendError::Disconnected));
        assert_eq!(poll(queue.next(1, 9, &mut Vec::new())), Some(Some(5)));
        assert_eq!(poll(queue.next(1, 9, &mut Vec::new())), Some(None));
    }
}

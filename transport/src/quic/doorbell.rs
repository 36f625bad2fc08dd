//! How other threads wake the writers of the lanes.
//!
//! Owns the writers that are to be woken. It must never wake the network's thread once for each of
//! them: that is a system call, and a shard that ends its turn writes to many lanes.

use std::convert::Infallible;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Rung by any thread, answered by a task of the network's thread.
#[derive(Debug, Default)]
pub(super) struct Doorbell {
    /// Writers to wake. Whoever adds the first one rings.
    sleepers: Mutex<Vec<Arc<Notify>>>,
    bell: Notify,
}

impl Doorbell {
    /// Has a writer woken soon.
    pub fn ring_for(&self, sleeper: &Arc<Notify>) {
        let is_first = {
            let mut sleepers = self.sleepers.lock();
            sleepers.push(Arc::clone(sleeper));
            sleepers.len() == 1
        };
        if is_first {
            self.bell.notify_one();
        }
    }

    /// Wakes whoever the bell is rung for; never ends.
    pub async fn answer(&self) -> Infallible {
        let mut awake = Vec::new();
        loop {
            self.bell.notified().await;
            std::mem::swap(&mut awake, &mut *self.sleepers.lock());
            for sleeper in awake.drain(..) {
                sleeper.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn everybody_is_woken_whatever_the_number_of_rings() {
        let doorbell = Doorbell::default();
        let sleepers: Vec<_> = (0..3).map(|_| Arc::new(Notify::new())).collect();
        let mut cx = Context::from_waker(Waker::noop());
        let mut answer = pin!(doorbell.answer());
        for _ in 0..2 {
            assert!(answer.as_mut().poll(&mut cx).is_pending());
            sleepers.iter().for_each(|s| doorbell.ring_for(s));
            assert!(answer.as_mut().poll(&mut cx).is_pending());
            for sleeper in &sleepers {
                assert!(pin!(sleeper.notified()).poll(&mut cx).is_ready());
            }
        }
        assert!(doorbell.sleepers.lock().is_empty());
    }
}

//! What becomes of panics on the network's thread.
//!
//! Owns how far a panic reaches: to the end of a link, or to that of the network. It must never let
//! one pass unnoticed: a peer that nobody dials any more looks like a peer that is down.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use crate::Receiver;

/// Why a link ends when the receiver panics, in words for both sides.
pub(super) const RECEIVER_PANICKED: &str = "the receiver panicked";

/// Runs a future to its end; none: it panicked. What it owned is dropped by then.
pub(super) async fn caught<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

/// Runs the whole network, and tells the receiver if it ends otherwise than by a shutdown.
pub(super) fn reporting(receiver: &dyn Receiver, run: impl FnOnce() -> Result<(), String>) {
    let ended = catch_unwind(AssertUnwindSafe(run));
    if let Err(reason) = ended.unwrap_or_else(|_| Err("its thread panicked".to_owned())) {
        tracing::error!(%reason, "the network has failed");
        receiver.failed(reason);
    }
}

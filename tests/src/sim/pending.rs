//! What nodes were asked for and have not answered. Who asked is gone when the node is. It must never ask one node in the step
//! of another.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use polyraft::Error;

/// An answer that is on its way.
pub(super) type Done<R = ()> = Pin<Box<dyn Future<Output = Result<R, Error>>>>;

/// What nodes were asked for, each with a note of what it was.
pub(super) struct Pending<T, R = ()>(Vec<(u64, T, Done<R>)>);

impl<T, R> Default for Pending<T, R> {
    fn default() -> Self {
        Pending(Vec::new())
    }
}

impl<T, R> Pending<T, R> {
    /// A node was asked.
    pub(super) fn push(&mut self, node: u64, what: T, done: Done<R>) {
        self.0.push((node, what, done));
    }

    /// Takes what a node has answered, in the order in which it was asked.
    pub(super) fn take_answers(&mut self, node: u64) -> Vec<(T, Result<R, Error>)> {
        let mut answers = Vec::new();
        let asked = std::mem::take(&mut self.0);
        for (at, what, mut done) in asked {
            let mut context = Context::from_waker(Waker::noop());
            if at == node
                && let Poll::Ready(answer) = done.as_mut().poll(&mut context)
            {
                answers.push((what, answer));
            } else {
                self.0.push((at, what, done));
            }
        }
        answers
    }

    /// A node is gone, and with it what was asked of it.
    pub(super) fn lost(&mut self, node: u64) {
        self.0.retain(|(at, ..)| *at != node);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a node was asked for first.
    pub(super) fn of(&self, node: u64) -> Option<&T> {
        let mut asked = self.0.iter().filter(|(at, ..)| *at == node);
        asked.next().map(|(_, what, _)| what)
    }

    /// Whether a node was asked for something.
    pub(super) fn is_asked(&self, node: u64) -> bool {
        self.of(node).is_some()
    }

    /// What nodes were asked for.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, what, _)| what)
    }
}

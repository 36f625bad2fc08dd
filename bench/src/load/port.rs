//! The seam between the generator and the nodes: operations go out under a number, answers come back under it. One
//! thread uses a port. It must never call a proposal refused that may have entered a log.

use crate::workload::ReadMode;
use anyhow::Result;
use bytes::Bytes;
use std::time::Duration;

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A proposal is committed and applied; a read is answered.
    Done,
    /// It had no effect for certain; sending it again is safe.
    Refused(Elsewhere),
    /// It may or may not have been committed.
    Open,
    /// Something that a measurement must not see.
    Fault(String),
}

/// Where to send a refused operation next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// To the same node, after a pause.
    Here,
    /// To this node.
    At(usize),
    /// To any other node.
    Anywhere,
}

/// An answer, with the number of its operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// As given when it was sent.
    pub tag: u64,
    /// What became of it.
    pub answer: Answer,
}

/// A way to all nodes. Nodes count from 0 here.
pub trait Port: Send {
    /// Takes notice of nodes that have come or gone. Called once in each round of the generator.
    fn refresh(&mut self);

    /// How many nodes there are, running or not.
    fn nodes(&self) -> usize;

    /// Whether operations can be sent to a node.
    fn runs(&self, node: usize) -> bool;

    /// Who leads a group, as far as `node`, which runs, knows.
    fn leader(&self, node: usize, group: u64) -> Option<usize>;

    /// Proposes to a group at a node that runs. An answer comes later if, and only if, this is `Ok`; else it is never
    /// [`Answer::Done`] nor [`Answer::Open`].
    fn propose(&mut self, node: usize, group: u64, payload: Bytes, tag: u64) -> Result<(), Answer>;

    /// Sends a read to a node that runs. An answer comes later.
    fn read(&mut self, node: usize, group: u64, tag: u64, mode: ReadMode);

    /// Takes notice of where a refused proposal to a group is to go next.
    fn hint(&mut self, _group: u64, _elsewhere: Elsewhere) {}

    /// Sends what was only gathered so far.
    fn flush(&mut self);

    /// Adds the answers that are there to `into`, waiting up to `timeout` for the first.
    fn drain(&mut self, into: &mut Vec<Answered>, timeout: Duration);
}

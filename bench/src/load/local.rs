//! The port to nodes in this process: straight calls of their handles.

use super::port::{Answer, Answered, Elsewhere, Port};
use super::reads::Reads;
use crate::cluster::{Roster, place};
use crate::workload::ReadMode;
use bytes::Bytes;
use polyraft::{Completion, CompletionQueue, Error, GroupHandle, Read, StateMachine};
use std::sync::Arc;
use std::time::Duration;

/// A port to the running nodes of a roster.
pub struct LocalPort<M: StateMachine> {
    roster: Arc<Roster<M>>,
    epoch: u64,
    groups: u64,
    /// By node, then by group. None while the node is stopped.
    handles: Vec<Option<Vec<GroupHandle<M>>>>,
    queue: CompletionQueue,
    reads: Reads<Result<Bytes, Error>>,
    scratch: Vec<Completion>,
}

impl<M: StateMachine> LocalPort<M> {
    /// To groups `0..groups` of the nodes in `roster`.
    pub fn new(roster: Arc<Roster<M>>, groups: u64) -> Self {
        let queue = CompletionQueue::new();
        let mut port = Self {
            roster,
            // The roster's epoch is 0 only before the first node starts.
            epoch: 0,
            groups,
            handles: Vec::new(),
            reads: Reads::new(queue.clone()),
            queue,
            scratch: Vec::new(),
        };
        port.refresh();
        port
    }

    fn handle(&self, node: usize, group: u64) -> &GroupHandle<M> {
        match &self.handles[node] {
            Some(handles) => &handles[group as usize],
            None => unreachable!("operations go to nodes that run"),
        }
    }
}

impl<M: StateMachine> Port for LocalPort<M> {
    fn refresh(&mut self) {
        if self.epoch == self.roster.epoch() {
            return;
        }
        let (epoch, nodes) = self.roster.nodes();
        self.epoch = epoch;
        let groups = self.groups;
        self.handles = nodes
            .iter()
            .map(|node| {
                let node = node.as_ref()?;
                Some((0..groups).map(|group| node.group(group)).collect())
            })
            .collect();
    }

    fn nodes(&self) -> usize {
        self.handles.len()
    }

    fn runs(&self, node: usize) -> bool {
        self.handles.get(node).is_some_and(Option::is_some)
    }

    fn leader(&self, node: usize, group: u64) -> Option<usize> {
        let (leader, _) = self.handle(node, group).leader()?;
        Some(place(leader.0))
    }

    fn propose(&mut self, node: usize, group: u64, payload: Bytes, tag: u64) -> Result<(), Answer> {
        self.handle(node, group)
            .propose_with(payload, tag, &self.queue)
            // Not taken, so not in any log, whatever the reason.
            .map_err(|error| match judge_proposal(&error) {
                Answer::Open => Answer::Refused(Elsewhere::Anywhere),
                other => other,
            })
    }

    fn read(&mut self, node: usize, group: u64, tag: u64, mode: ReadMode) {
        let handle = self.handle(node, group).clone();
        let how = match mode {
            ReadMode::Stale => Read::LOCAL,
            ReadMode::Linearizable => Read::Linearizable,
            ReadMode::Lease => Read::Lease,
        };
        self.reads
            .start(tag, async move { handle.read(how, Bytes::new()).await });
    }

    /// Nothing is gathered: a proposal goes out at once, and `drain` polls reads before it waits.
    fn flush(&mut self) {}

    fn drain(&mut self, into: &mut Vec<Answered>, timeout: Duration) {
        let before = into.len();
        self.reads.poll(|tag, result| {
            into.push(Answered {
                tag,
                answer: judge_read(result),
            });
        });
        let timeout = if into.len() > before {
            Duration::ZERO
        } else {
            timeout
        };
        self.queue.drain(&mut self.scratch, timeout);
        into.extend(self.scratch.drain(..).map(|completion| Answered {
            tag: completion.tag,
            answer: match completion.result {
                Ok(_) => Answer::Done,
                Err(error) => judge_proposal(&error),
            },
        }));
        self.reads.poll(|tag, result| {
            into.push(Answered {
                tag,
                answer: judge_read(result),
            });
        });
    }
}

/// What an error means to the sender of a proposal that a node took.
pub fn judge_proposal(error: &Error) -> Answer {
    match error {
        Error::NotLeader { hint: Some(node) } => Answer::Refused(Elsewhere::At(place(node.0))),
        // A node that has just been opened does not know its groups for a moment.
        Error::NotLeader { hint: None } | Error::NoSuchGroup { .. } => {
            Answer::Refused(Elsewhere::Anywhere)
        }
        Error::Busy { .. } => Answer::Refused(Elsewhere::Here),
        Error::Unknown { .. } | Error::Closed => Answer::Open,
        other => Answer::Fault(other.to_string()),
    }
}

/// What the result of a read means: a read has no effect, so it can always be sent again.
pub fn judge_read(result: Result<Bytes, Error>) -> Answer {
    match result {
        Ok(_) => Answer::Done,
        Err(Error::Busy { .. }) => Answer::Refused(Elsewhere::Here),
        Err(Error::NoSuchGroup { .. } | Error::Closed) => Answer::Refused(Elsewhere::Anywhere),
        Err(error) if error.is_retryable() => Answer::Refused(Elsewhere::Anywhere),
        Err(other) => Answer::Fault(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyraft_raft::{GroupId, NodeId};

    #[test]
    fn only_what_is_in_no_log_counts_as_refused() {
        let refused = |hint| judge_proposal(&Error::NotLeader { hint });
        assert_eq!(refused(None), Answer::Refused(Elsewhere::Anywhere));
        assert_eq!(refused(Some(NodeId(3))), Answer::Refused(Elsewhere::At(2)));
        let busy = Error::Busy {
            what: "test",
            limit: 1,
        };
        assert_eq!(judge_proposal(&busy), Answer::Refused(Elsewhere::Here));
        for open in [Error::Unknown { why: "test" }, Error::Closed] {
            assert_eq!(judge_proposal(&open), Answer::Open);
        }
        let fault = Error::Fault {
            reason: "rot".into(),
        };
        assert!(matches!(judge_proposal(&fault), Answer::Fault(text) if text.contains("rot")));
    }

    #[test]
    fn a_read_can_be_sent_again_unless_something_is_wrong() {
        let group = GroupId(1);
        assert_eq!(judge_read(Ok(Bytes::new())), Answer::Done);
        for error in [
            Error::Closed,
            Error::NoSuchGroup { group },
            Error::NotLeader { hint: None },
            Error::Restoring { group },
            Error::Unconfirmed,
        ] {
            assert_eq!(judge_read(Err(error)), Answer::Refused(Elsewhere::Anywhere));
        }
        let busy = Error::Busy {
            what: "test",
            limit: 1,
        };
        assert_eq!(judge_read(Err(busy)), Answer::Refused(Elsewhere::Here));
        assert!(matches!(
            judge_read(Err(Error::Query("no".into()))),
            Answer::Fault(_)
        ));
    }
}

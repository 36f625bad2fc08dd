//! Where the time of a proposal goes, from the records that the engine takes of one in so many.

use super::result::Times;
use crate::load::{histogram, nanos};
use hdrhistogram::Histogram;
use polyraft::ProposalTrace;
use serde::Serialize;
use std::time::Duration;

/// The stages of the proposals that were traced, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stages {
    /// From the call until the leader has put the proposal into its log in memory.
    pub queue: Times,
    /// From there until it is durable on the leader's node.
    pub append: Times,
    /// From there (the log in memory: it is sent at the same time) until enough followers hold it durably.
    pub replicate: Times,
    /// From there too, until it is committed: the slower of what a quorum needs.
    pub commit: Times,
    /// From when it is committed and durable here until the state machine has applied it and the caller is answered.
    pub apply: Times,
    /// From the call until the answer.
    pub total: Times,
}

/// Gathers records.
#[derive(Clone, Debug)]
pub struct StageTimes {
    times: [Histogram<u64>; 6],
}

impl StageTimes {
    /// None yet.
    pub fn new() -> Self {
        Self {
            times: std::array::from_fn(|_| histogram()),
        }
    }

    /// Adds the record of one proposal.
    pub fn add(&mut self, trace: &ProposalTrace) {
        let ready = trace.committed.max(trace.durable);
        let since = |later: Duration, earlier: Duration| later.saturating_sub(earlier);
        let times = [
            trace.appended,
            since(trace.durable, trace.appended),
            since(trace.replicated, trace.appended),
            since(trace.committed, trace.appended),
            since(trace.applied, ready),
            trace.applied,
        ];
        for (histogram, time) in self.times.iter_mut().zip(times) {
            histogram.saturating_record(nanos(time));
        }
    }

    /// The stages; None if nothing was recorded.
    pub fn summary(&self) -> Option<Stages> {
        let [queue, append, replicate, commit, apply, total] = self.times.each_ref().map(Times::of);
        (total.count > 0).then_some(Stages {
            queue,
            append,
            replicate,
            commit,
            apply,
            total,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_cut_where_they_begin() {
        let micros = Duration::from_micros;
        let mut times = StageTimes::new();
        assert_eq!(times.summary(), None);
        times.add(&ProposalTrace {
            appended: micros(100),
            durable: micros(900),
            replicated: micros(400),
            committed: micros(800),
            applied: micros(1000),
        });
        let stages = times.summary().unwrap();
        let near =
            |times: Times, wanted: f64| assert!((times.p50 - wanted).abs() <= 1.0, "{times:?}");
        near(stages.queue, 100.0);
        near(stages.append, 800.0);
        near(stages.replicate, 300.0);
        near(stages.commit, 700.0);
        near(stages.apply, 100.0);
        near(stages.total, 1000.0);
    }
}

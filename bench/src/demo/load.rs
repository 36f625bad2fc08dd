//! The load generator, seen from the story: started, rested, resumed and ended as a whole, with figures taken at any
//! time. It never proposes anything itself; that is the work of the clients, one thread each.

use super::acked::{AckFile, Promises};
use super::client::Client;
use super::machine::Ledger;
use crate::cluster::Roster;
use crate::control::Control;
use crate::crew::Crew;
use anyhow::Result;
use hdrhistogram::Histogram;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How to drive load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Groups to propose to.
    pub groups: Range<u64>,
    /// Size of a proposal.
    pub payload_bytes: usize,
    /// Proposals in flight, all clients together.
    pub inflight: usize,
    /// How long proposals in flight may take to end. Longer than `shards.proposal_timeout`, after which the engine
    /// answers that the outcome is unknown.
    pub drain_limit: Duration,
    /// Where acknowledged ids go first.
    pub acked: Option<Arc<AckFile>>,
}

/// What has happened since the last look.
#[derive(Debug)]
pub struct Figures {
    /// Microseconds from the first sending of a proposal to its acknowledgement; one value per committed proposal.
    pub latency_us: Histogram<u64>,
    /// Proposals refused before they entered a log, and sent again.
    pub retried: u64,
    /// Proposals whose outcome stays open.
    pub open: u64,
}

impl Figures {
    /// No events.
    pub fn new() -> Self {
        // A minute and a half is longer than anything waits; three digits keep the quantiles honest.
        let latency_us = Histogram::new_with_max(90_000_000, 3).expect("these bounds are valid");
        Self {
            latency_us,
            retried: 0,
            open: 0,
        }
    }

    /// Proposals acknowledged.
    pub fn committed(&self) -> u64 {
        self.latency_us.len()
    }

    /// Adds the events of `other`.
    pub fn add(&mut self, other: &Self) {
        self.latency_us
            .add(&other.latency_us)
            .expect("all histograms have the same bounds");
        self.retried += other.retried;
        self.open += other.open;
    }

    fn clear(&mut self) {
        self.latency_us.reset();
        self.retried = 0;
        self.open = 0;
    }
}

/// What one client and the story share.
#[derive(Debug)]
pub struct Shared {
    /// What the client is to do.
    pub control: Control,
    figures: Mutex<Figures>,
}

impl Shared {
    /// For a client that is to run.
    pub fn new() -> Self {
        Self {
            control: Control::new(),
            figures: Mutex::new(Figures::new()),
        }
    }

    /// For the client: the figures to add to. Held for a batch of completions at a time.
    pub fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures
            .lock()
            .expect("no thread panics while it holds the figures")
    }
}

impl AsRef<Control> for Shared {
    fn as_ref(&self) -> &Control {
        &self.control
    }
}

/// A running load generator. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    clients: Crew<Shared, Promises>,
    scratch: Figures,
    drain_limit: Duration,
}

impl Load {
    /// Starts the clients, which begin to propose at once.
    pub fn start(options: &LoadOptions, roster: &Arc<Roster<Ledger>>) -> Result<Self> {
        let groups = options.groups.end - options.groups.start;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        // A second client pays off only where it does not take a core from the nodes.
        let count = (cores / 2)
            .clamp(1, 2)
            .min(options.inflight)
            .min(usize::try_from(groups)?);
        let first_client = fresh_client_id();
        let mut clients = Crew::new();
        for at in 0..count {
            let shared = Arc::new(Shared::new());
            // Groups and window are dealt out evenly; no two clients share a group.
            let client = Client::new(
                first_client + at as u64,
                options.groups.clone().skip(at).step_by(count).collect(),
                (options.inflight + at) / count,
                options,
                Arc::clone(roster),
                Arc::clone(&shared),
            );
            clients.start(shared, move || client.run())?;
        }
        Ok(Self {
            clients,
            scratch: Figures::new(),
            drain_limit: options.drain_limit,
        })
    }

    /// Moves the figures since the last call into `into`, replacing what is there. Fails if a client has seen
    /// something that must not happen.
    pub fn take_figures(&mut self, into: &mut Figures) -> Result<()> {
        into.clear();
        for shared in self.clients.shared() {
            self.scratch.clear();
            // The client gets the empty one: it waits for a swap, not for a copy.
            std::mem::swap(&mut self.scratch, &mut *shared.figures());
            into.add(&self.scratch);
        }
        self.clients.check()
    }

    /// Stops proposing and waits until nothing is in flight.
    pub async fn rest(&self) -> Result<()> {
        self.clients.rest(self.drain_limit).await
    }

    /// Proposes again.
    pub fn resume(&self) {
        self.clients.resume();
    }

    /// Ends the load and returns what was promised.
    pub async fn end(mut self) -> Result<Promises> {
        self.rest().await?;
        let mut promises = Promises::default();
        for promised in self.clients.end()? {
            promises.merge(promised);
        }
        self.clients.check()?;
        Ok(promises)
    }
}

/// A client id that no former run on the same directory has used: nanoseconds since 1970, with room for two clients.
fn fresh_client_id() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (now.as_nanos() as u64) << 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_add_up_and_clear() {
        let (mut sum, mut one) = (Figures::new(), Figures::new());
        one.latency_us.saturating_record(100);
        one.latency_us.saturating_record(u64::MAX);
        one.open = 1;
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.committed(), sum.open, sum.retried), (4, 2, 0));
        sum.clear();
        assert_eq!((sum.committed(), sum.open), (0, 0));
    }
}

//! The load generator: threads that send operations through a port and measure the answers. A closed loop measures from
//! the sending; an open loop from the moment at which an operation was due, so that nobody who should have come is
//! left out while the nodes are slow. It never decides how long a load lasts.

mod figures;
mod local;
mod port;
mod reads;
mod watch;
mod worker;

pub use figures::{Figures, histogram, nanos};
pub use local::{LocalPort, judge_proposal, judge_read};
pub use port::{Answer, Answered, Elsewhere, Port};
pub use reads::Reads;
pub use watch::{Outage, Watch};

use crate::control::Control;
use crate::crew::Crew;
use crate::workload::{Pace, Workload};
use anyhow::Result;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use worker::Worker;

/// What one thread and the command share.
#[derive(Debug)]
pub struct Shared {
    /// What the thread is to do.
    pub control: Control,
    counted: Mutex<Counted>,
    /// CPU time of the thread so far, in nanoseconds.
    cpu: AtomicU64,
}

/// The thread's figures.
#[derive(Debug)]
pub struct Counted {
    /// Operations answered or given up since the last look.
    pub since: Figures,
    /// Operations that were due in the window, whenever they were answered.
    pub window: Figures,
}

impl Shared {
    fn new() -> Self {
        Self {
            control: Control::new(),
            counted: Mutex::new(Counted {
                since: Figures::new(),
                window: Figures::new(),
            }),
            cpu: AtomicU64::new(0),
        }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted
            .lock()
            .expect("no thread panics while it holds the figures")
    }
}

impl AsRef<Control> for Shared {
    fn as_ref(&self) -> &Control {
        &self.control
    }
}

/// When a load began, and which part of it counts.
#[derive(Clone, Debug)]
pub struct Timing {
    /// When the first operation may be due.
    pub origin: Instant,
    /// Operations due in this time, counted from the origin, are measured.
    pub window: Range<Duration>,
}

/// How long operations in flight may take to end. Longer than `shards.proposal_timeout` plus an election.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// A running load. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    threads: Crew<Shared, ()>,
    watch: Arc<Watch>,
    scratch: Figures,
    drain_limit: Duration,
}

impl Load {
    /// Starts one thread for each port. They begin to send at the origin.
    pub fn start(
        workload: &Workload,
        timing: &Timing,
        proposal_timeout: Duration,
        ports: Vec<Box<dyn Port>>,
    ) -> Result<Self> {
        let watch = Arc::new(Watch::new(workload.active_groups, timing.origin));
        let mut load = Self {
            threads: Crew::new(),
            watch,
            scratch: Figures::new(),
            drain_limit: proposal_timeout + DRAIN_LIMIT,
        };
        let count = ports.len();
        for (at, port) in ports.into_iter().enumerate() {
            let shared = Arc::new(Shared::new());
            let worker = Worker::new(
                workload,
                timing.clone(),
                (at, count),
                port,
                Arc::clone(&shared),
                Arc::clone(&load.watch),
            );
            load.threads.start(shared, move || worker.run())?;
        }
        Ok(load)
    }

    /// Who watches for outages.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Moves the figures since the last call into `into`, replacing what is there. Fails if a thread has seen something
    /// that must not happen.
    pub fn take_since(&mut self, into: &mut Figures) -> Result<()> {
        into.clear();
        for shared in self.threads.shared() {
            self.scratch.clear();
            // The thread gets the empty ones: it waits for a swap, not for a copy.
            std::mem::swap(&mut self.scratch, &mut shared.counted().since);
            into.add(&self.scratch);
        }
        self.threads.check()
    }

    /// CPU time of the generator's threads so far.
    pub fn cpu(&self) -> Duration {
        let sum = self
            .threads
            .shared()
            .map(|shared| shared.cpu.load(Ordering::Relaxed));
        Duration::from_nanos(sum.sum())
    }

    /// Stops sending, and waits until nothing is in flight.
    pub async fn rest(&mut self) -> Result<()> {
        self.threads.rest(self.drain_limit).await
    }

    /// Ends the threads of a load that rests, and returns the figures of the window.
    pub fn end(mut self) -> Result<Figures> {
        let mut window = Figures::new();
        for shared in self.threads.shared() {
            window.add(&shared.counted().window);
        }
        self.threads.end()?;
        Ok(window)
    }
}

/// How many threads a load gets if nobody says: a second one pays off only where it takes no core from the nodes.
pub fn default_threads(pace: Pace, active_groups: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let inflight = match pace {
        Pace::Inflight(inflight) => inflight,
        Pace::Rate { .. } => u64::MAX,
    };
    (cores as u64 / 2)
        .clamp(1, 2)
        .min(inflight)
        .min(active_groups) as usize
}

//! The one place that reads the system's clock: the one that never steps and counts the time in which the machine was
//! suspended, so that a promise of another node is never taken to last longer than it does.
//! Nothing below the edges may ask for the time: it comes in with each turn.

#[cfg(feature = "sim")]
use std::sync::Arc;
#[cfg(feature = "sim")]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use polyraft_raft::Tick;
use rustix::time::{ClockId, clock_gettime};

/// Counts microseconds since the node was opened.
#[derive(Debug, Clone)]
pub(crate) enum Clock {
    System {
        origin: Duration,
    },
    /// Somebody else moves the time.
    #[cfg(feature = "sim")]
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    pub(crate) fn start() -> Self {
        Clock::System {
            origin: since_boot(),
        }
    }

    pub(crate) fn now(&self) -> Tick {
        match self {
            Clock::System { origin } => Tick(micros(since_boot() - *origin)),
            #[cfg(feature = "sim")]
            Clock::Virtual(now) => Tick(now.load(Ordering::Relaxed)),
        }
    }

    /// How long until `at`; zero when it has passed.
    pub(crate) fn until(&self, at: Tick) -> Duration {
        Duration::from_micros(at.0.saturating_sub(self.now().0))
    }
}

fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// A duration in the engine's unit.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

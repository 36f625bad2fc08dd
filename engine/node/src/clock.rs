//! The one place that reads the system's monotonic clock.
//! Nothing below the edges may ask for the time: it comes in with each turn.

#[cfg(feature = "sim")]
use std::sync::Arc;
#[cfg(feature = "sim")]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use polyraft_raft::Tick;

/// Counts microseconds since the node was opened.
#[derive(Debug, Clone)]
pub(crate) enum Clock {
    System {
        origin: Instant,
    },
    /// Somebody else moves the time.
    #[cfg(feature = "sim")]
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    pub(crate) fn start() -> Self {
        Clock::System {
            origin: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Tick {
        match self {
            Clock::System { origin } => Tick(micros(origin.elapsed())),
            #[cfg(feature = "sim")]
            Clock::Virtual(now) => Tick(now.load(Ordering::Relaxed)),
        }
    }

    /// How long until `at`; zero when it has passed.
    pub(crate) fn until(&self, at: Tick) -> Duration {
        Duration::from_micros(at.0.saturating_sub(self.now().0))
    }
}

/// A duration in the engine's unit.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

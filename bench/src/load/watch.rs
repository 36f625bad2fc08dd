//! How long groups go without a success: watched from an incident on, by all threads of the generator.
//! It costs one look at a flag per success while nothing is watched.

use super::figures::nanos;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Watches groups `0..groups`.
#[derive(Debug)]
pub struct Watch {
    armed: AtomicBool,
    origin: Instant,
    groups: Vec<Gap>,
    /// All watched groups together.
    set: Gap,
}

/// Times in nanoseconds since the origin.
#[derive(Debug, Default)]
struct Gap {
    is_watched: AtomicBool,
    last_success: AtomicU64,
    longest: AtomicU64,
}

impl Gap {
    fn begin(&self, now: u64) {
        self.last_success.store(now, Relaxed);
        self.longest.store(0, Relaxed);
        self.is_watched.store(true, Relaxed);
    }

    fn success(&self, now: u64) {
        let before = self.last_success.fetch_max(now, Relaxed);
        self.longest.fetch_max(now.saturating_sub(before), Relaxed);
    }

    /// The longest gap, the one that lasts included.
    fn end(&self, now: u64) -> Duration {
        self.is_watched.store(false, Relaxed);
        let last = now.saturating_sub(self.last_success.load(Relaxed));
        Duration::from_nanos(self.longest.load(Relaxed).max(last))
    }
}

/// What an incident did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outage {
    /// The longest time without a success of any watched group.
    pub all: Duration,
    /// For each watched group, the longest time without a success of its own; sorted.
    pub each: Vec<Duration>,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new(groups: u64, origin: Instant) -> Self {
        Self {
            armed: AtomicBool::new(false),
            origin,
            groups: (0..groups).map(|_| Gap::default()).collect(),
            set: Gap::default(),
        }
    }

    /// Begins to watch these groups, which are all below the number given at the start.
    pub fn begin(&self, groups: &[u64]) {
        let now = nanos(self.origin.elapsed());
        for group in groups {
            self.groups[*group as usize].begin(now);
        }
        self.set.begin(now);
        self.armed.store(true, Relaxed);
    }

    /// For the generator: an operation of `group` has succeeded.
    pub fn success(&self, group: u64, at: Instant) {
        if !self.armed.load(Relaxed) {
            return;
        }
        let gap = &self.groups[group as usize];
        if gap.is_watched.load(Relaxed) {
            let now = nanos(at.saturating_duration_since(self.origin));
            gap.success(now);
            self.set.success(now);
        }
    }

    /// Ends the watch and says what it saw.
    pub fn end(&self) -> Outage {
        let now = nanos(self.origin.elapsed());
        self.armed.store(false, Relaxed);
        let mut each: Vec<Duration> = self
            .groups
            .iter()
            .filter(|gap| gap.is_watched.load(Relaxed))
            .map(|gap| gap.end(now))
            .collect();
        each.sort_unstable();
        let all = if each.is_empty() {
            Duration::ZERO
        } else {
            self.set.end(now)
        };
        Outage { all, each }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_measured_for_each_watched_group_and_for_all() {
        let millis = Duration::from_millis;
        // As if the load had begun a minute ago, so that the times below lie in the past.
        let origin = Instant::now() - Duration::from_secs(60);
        let watch = Watch::new(4, origin);
        watch.success(0, Instant::now());
        assert_eq!(watch.end(), Outage::default(), "nothing is watched yet");

        watch.begin(&[1, 2]);
        let begun = Instant::now();
        // Group 0 is not watched.
        for (group, after) in [(1, 40), (2, 300), (0, 310), (1, 500), (2, 500)] {
            watch.success(group, begun + millis(after));
        }
        let outage = watch.end();
        assert_eq!(outage.each.len(), 2);
        let near = |time: Duration, wanted: u64| {
            assert!(
                time.abs_diff(millis(wanted)) < millis(20),
                "{time:?}, not {wanted} ms"
            );
        };
        near(outage.each[0], 300);
        near(outage.each[1], 460);
        near(outage.all, 260);
    }

    #[test]
    fn a_group_that_never_recovers_counts_until_the_end() {
        let watch = Watch::new(1, Instant::now());
        watch.begin(&[0]);
        std::thread::sleep(Duration::from_millis(20));
        let outage = watch.end();
        assert!(outage.each[0] >= Duration::from_millis(20));
        assert_eq!(outage.all, outage.each[0]);
    }
}

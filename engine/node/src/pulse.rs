//! The newest beat of each peer, where the transport's thread leaves it for the home shard.
//! A beat that says what is expected wakes nobody. It must never keep back one that says anything else.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use polyraft_raft::{NodeId, Tick};

use crate::liveness::Beat;

/// What the home shard expects of a living peer's beats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) claims_version: u64,
    /// One that arrives earlier moves the beat that follows it.
    pub(crate) from: Tick,
}

/// Beats that wait until the home shard looks at them.
#[derive(Debug, Default)]
pub(crate) struct Pulses {
    /// Whether any waits: looked at in every turn.
    is_fresh: AtomicBool,
    peers: Mutex<Vec<Pulse>>,
}

#[derive(Debug)]
struct Pulse {
    expected: Expected,
    newest: Option<(Tick, Beat)>,
}

impl Pulses {
    /// Keeps a beat that arrived, in place of an older one, if it says what is expected; false: the shard has to know now.
    pub(crate) fn keep(&self, from: NodeId, at: Tick, beat: Beat) -> bool {
        let mut peers = self.peers.lock();
        let Some(pulse) = peers.iter_mut().find(|pulse| pulse.expected.node == from) else {
            return false;
        };
        let expected = &pulse.expected;
        let is_quiet = beat.incarnation == expected.incarnation
            && beat.claims_version == expected.claims_version
            && at >= expected.from
            && !beat.wants_answer;
        if is_quiet {
            let older = pulse.newest.as_ref().map_or(0, |(_, older)| older.sequence);
            if beat.sequence > older {
                pulse.newest = Some((at, beat));
            }
            self.is_fresh.store(true, Ordering::Relaxed);
        }
        is_quiet
    }

    /// Moves what waits into `into`.
    pub(crate) fn take(&self, into: &mut Vec<(NodeId, Tick, Beat)>) {
        if !self.is_fresh.load(Ordering::Relaxed) {
            return;
        }
        let mut peers = self.peers.lock();
        self.is_fresh.store(false, Ordering::Relaxed);
        for pulse in peers.iter_mut() {
            if let Some((at, beat)) = pulse.newest.take() {
                into.push((pulse.expected.node, at, beat));
            }
        }
    }

    /// Says what is expected of each peer from now on; nothing is of peers that are not named. What waits stays.
    pub(crate) fn expect(&self, all: &[Expected]) {
        let mut peers = self.peers.lock();
        let mut before = std::mem::take(&mut *peers);
        peers.extend(all.iter().map(|expected| {
            let of_peer = |pulse: &&mut Pulse| pulse.expected.node == expected.node;
            Pulse {
                expected: *expected,
                newest: before
                    .iter_mut()
                    .find(of_peer)
                    .and_then(|p| p.newest.take()),
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(2);

    fn beat(incarnation: u64, sequence: u64, claims_version: u64) -> Beat {
        Beat {
            incarnation,
            sequence,
            heard: 0,
            claims_version,
            of: 1,
            taken: 0,
            promise: 0,
            wants_answer: false,
            priority: 100,
        }
    }

    fn expecting() -> Pulses {
        let pulses = Pulses::default();
        pulses.expect(&[Expected {
            node: PEER,
            incarnation: 7,
            claims_version: 3,
            from: Tick(100),
        }]);
        pulses
    }

    fn taken(pulses: &Pulses) -> Vec<(NodeId, Tick, Beat)> {
        let mut into = Vec::new();
        pulses.take(&mut into);
        into
    }

    #[test]
    fn a_beat_with_news_is_not_kept() {
        let pulses = expecting();
        assert!(!pulses.keep(NodeId(9), Tick(100), beat(7, 1, 3)), "unknown");
        assert!(!pulses.keep(PEER, Tick(100), beat(8, 1, 3)), "a new life");
        assert!(!pulses.keep(PEER, Tick(100), beat(7, 1, 4)), "new claims");
        assert!(!pulses.keep(PEER, Tick(99), beat(7, 1, 3)), "too early");
        let question = Beat {
            wants_answer: true,
            ..beat(7, 1, 3)
        };
        assert!(!pulses.keep(PEER, Tick(100), question), "a question");
        assert_eq!(taken(&pulses), []);
    }

    #[test]
    fn the_newest_of_the_expected_beats_is_kept_and_taken_once() {
        let pulses = expecting();
        assert!(pulses.keep(PEER, Tick(100), beat(7, 1, 3)));
        assert!(pulses.keep(PEER, Tick(140), beat(7, 3, 3)));
        assert!(pulses.keep(PEER, Tick(150), beat(7, 2, 3)));
        assert_eq!(taken(&pulses), [(PEER, Tick(140), beat(7, 3, 3))]);
        assert_eq!(taken(&pulses), []);
    }

    #[test]
    fn a_beat_that_waits_stays_when_something_else_is_expected() {
        let pulses = expecting();
        assert!(pulses.keep(PEER, Tick(100), beat(7, 1, 3)));
        pulses.expect(&[Expected {
            node: PEER,
            incarnation: 7,
            claims_version: 4,
            from: Tick(0),
        }]);
        assert!(!pulses.keep(PEER, Tick(110), beat(7, 2, 3)));
        assert_eq!(taken(&pulses), [(PEER, Tick(100), beat(7, 1, 3))]);
        pulses.expect(&[]);
        assert!(!pulses.keep(PEER, Tick(120), beat(7, 3, 4)));
    }
}

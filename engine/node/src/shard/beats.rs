//! Beats in the middle of a turn. A turn that steps thousands of replicas may take longer than a beat may be late, and a node
//! that works must not be taken for a silent one: its groups would be elected anew, and turns be longer still.
//! It must never say anything that a beat at the end of the last turn would not have said, or one at the end of this turn, once
//! its claims are handed over.

use super::Shard;

/// Replicas stepped between two looks at the clock: well below a millisecond.
const LOOK_EVERY: u32 = 256;

/// A beat is no more than this part of an interval late.
const LATE: u64 = 8;

impl Shard {
    /// Called whenever a turn has dealt with one more replica.
    #[inline]
    pub(super) fn keep_beating(&mut self) {
        self.until_look = self.until_look.wrapping_sub(1);
        if self.until_look == 0 {
            self.until_look = LOOK_EVERY;
            self.beat_in_turn();
        }
    }

    #[cold]
    pub(super) fn beat_in_turn(&mut self) {
        let Some(home) = &self.home else { return };
        let (now, interval) = (self.shared.clock.now(), home.liveness.interval());
        if now.since(self.now) < interval / LATE {
            return;
        }
        self.with_liveness(|liveness, actions| liveness.beat_in_turn(now, actions));
        self.outgoing
            .send_beats(self.shared.counters.shard(self.index));
    }
}

/// How many steps a turn begins with.
pub(super) const fn first_look() -> u32 {
    LOOK_EVERY
}

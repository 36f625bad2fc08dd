//! The timers of one shard: a hashed timing wheel with one slot a millisecond.
//! It must never forget a timer; a timer that was replaced fires too, and its owner ignores it.

use polyraft_raft::Tick;

const SLOTS: usize = 512;
const SLOT_MICROS: u64 = 1_000;

/// Timers for which a slot keeps room. After a failure every group has one.
const KEPT: usize = 64;

/// Deadlines of things named by `u32`, rounded up to the next millisecond.
#[derive(Debug)]
pub(crate) struct Wheel {
    slots: Vec<Vec<Timer>>,
    /// One bit a slot: whether it holds anything.
    occupied: [u64; SLOTS / 64],
    /// Every slot before this millisecond has been emptied of what was due.
    next_ms: u64,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Timer {
    due_ms: u64,
    owner: u32,
}

impl Wheel {
    pub(crate) fn new(now: Tick) -> Self {
        Wheel {
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            occupied: [0; SLOTS / 64],
            next_ms: now.0 / SLOT_MICROS,
            len: 0,
        }
    }

    /// Arms a timer. One already due fires at the next [`Wheel::fire`].
    pub(crate) fn arm(&mut self, owner: u32, at: Tick) {
        let due_ms = at.0.div_ceil(SLOT_MICROS).max(self.next_ms);
        let slot = (due_ms % SLOTS as u64) as usize;
        self.slots[slot].push(Timer { due_ms, owner });
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.len += 1;
    }

    /// Moves the owners of all timers due at `now` into `out`.
    pub(crate) fn fire(&mut self, now: Tick, out: &mut Vec<u32>) {
        let now_ms = now.0 / SLOT_MICROS;
        if self.len == 0 || now_ms < self.next_ms {
            self.next_ms = self.next_ms.max(now_ms);
            return;
        }
        // After a pause longer than the wheel one round sees every slot.
        let end = now_ms.min(self.next_ms + SLOTS as u64 - 1);
        for ms in self.next_ms..=end {
            let slot = (ms % SLOTS as u64) as usize;
            if self.occupied[slot / 64] & (1 << (slot % 64)) == 0 {
                continue;
            }
            let timers = &mut self.slots[slot];
            let before = timers.len();
            timers.retain(|timer| {
                let is_due = timer.due_ms <= now_ms;
                if is_due {
                    out.push(timer.owner);
                }
                !is_due
            });
            self.len -= before - timers.len();
            if timers.is_empty() {
                if timers.capacity() > KEPT {
                    *timers = Vec::new();
                }
                self.occupied[slot / 64] &= !(1 << (slot % 64));
            }
        }
        self.next_ms = now_ms;
    }

    /// Gives back the room of timers that have fired.
    pub(crate) fn trim(&mut self) {
        self.slots.iter_mut().for_each(Vec::shrink_to_fit);
    }

    /// When to look again: the first millisecond at which a timer is due, at most one round ahead.
    pub(crate) fn next(&self) -> Option<Tick> {
        if self.len == 0 {
            return None;
        }
        let end = self.next_ms + SLOTS as u64;
        // A slot may hold nothing but timers of later rounds, and looking at those now would be looking all the time.
        let due = (self.next_ms..end).find(|ms| {
            let slot = (ms % SLOTS as u64) as usize;
            self.occupied[slot / 64] & (1 << (slot % 64)) != 0
                && self.slots[slot].iter().any(|timer| timer.due_ms <= *ms)
        });
        Some(Tick(due.unwrap_or(end) * SLOT_MICROS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(wheel: &mut Wheel, micros: u64) -> Vec<u32> {
        let mut out = Vec::new();
        wheel.fire(Tick(micros), &mut out);
        out.sort_unstable();
        out
    }

    #[test]
    fn a_timer_fires_at_its_millisecond_and_not_before() {
        let mut wheel = Wheel::new(Tick(0));
        wheel.arm(1, Tick(5_500));
        assert_eq!(wheel.next(), Some(Tick(6_000)));
        assert!(fired(&mut wheel, 5_999).is_empty());
        assert_eq!(fired(&mut wheel, 6_000), [1]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_timer_beyond_one_round_waits_for_its_round() {
        let mut wheel = Wheel::new(Tick(0));
        wheel.arm(1, Tick(1_000 * (SLOTS as u64 + 3)));
        assert!(fired(&mut wheel, 4_000).is_empty());
        assert!(fired(&mut wheel, 500_000).is_empty());
        assert_eq!(fired(&mut wheel, 1_000 * (SLOTS as u64 + 3)), [1]);
    }

    #[test]
    fn a_timer_of_a_later_round_is_not_looked_at_before() {
        let mut wheel = Wheel::new(Tick(0));
        wheel.arm(1, Tick(1_000 * (SLOTS as u64 + 3)));
        assert!(fired(&mut wheel, 3_000).is_empty());
        assert_eq!(wheel.next(), Some(Tick(1_000 * (SLOTS as u64 + 3))));
    }

    #[test]
    fn after_a_long_pause_everything_due_fires_once() {
        let mut wheel = Wheel::new(Tick(0));
        for owner in 0..1000u32 {
            wheel.arm(owner, Tick(u64::from(owner) * 1_000));
        }
        assert_eq!(fired(&mut wheel, 10_000_000), (0..1000).collect::<Vec<_>>());
        assert!(fired(&mut wheel, 20_000_000).is_empty());
    }

    #[test]
    fn a_timer_in_the_past_fires_at_once() {
        let mut wheel = Wheel::new(Tick(9_000_000));
        wheel.arm(3, Tick(1));
        assert_eq!(fired(&mut wheel, 9_000_001), [3]);
    }
}

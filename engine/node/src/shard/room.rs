//! What a shard does while the disk has little room: it takes no more entries, keeps voting, and hands the groups that it leads to
//! nodes that can write. It must never begin to write what the log may not take: votes would wait behind it.

use polyraft_raft::{Event, NodeId, Tick};

use super::{Payloads, Shard, leads};

/// What an entry takes in the log beyond its payload, at most.
const ENTRY_OVERHEAD: usize = 128;

/// The longest pause between two attempts to hand groups over, in microseconds: when all nodes are full, leadership must not
/// wander about.
const LONGEST_PAUSE: u64 = 60_000_000;

/// How much the shard may still write.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Bytes of entries, when the disk has no room for more log than is prepared.
    left: Option<u64>,
    /// There was no room for a proposal in the turns since some time.
    full: Option<Leaving>,
}

/// Attempts to hand all groups over, in growing distances. A voter that cannot take one costs a pause and nothing else.
#[derive(Debug)]
pub(super) struct Leaving {
    next_at: Tick,
    pause: u64,
    attempts: usize,
}

impl Leaving {
    /// The first attempt is due at `first`; the second follows twice `pause` later, in microseconds.
    pub(super) fn new(first: Tick, pause: u64) -> Self {
        Leaving {
            next_at: first,
            pause,
            attempts: 0,
        }
    }

    /// When the next attempt is due.
    pub(super) fn deadline(&self) -> Tick {
        self.next_at
    }

    /// The number of the attempt that is due, if one is.
    pub(super) fn attempt(&mut self, now: Tick) -> Option<usize> {
        if self.next_at > now {
            return None;
        }
        let attempt = self.attempts;
        self.attempts += 1;
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        self.next_at = now.after(self.pause);
        Some(attempt)
    }
}

impl Room {
    /// Bytes of entries that the log still takes.
    pub(super) fn left(&self) -> u64 {
        self.left.unwrap_or(u64::MAX)
    }
}

impl Shard {
    /// Judges the room for the entries of a turn.
    pub(super) fn judge_room(&mut self) {
        self.room.left = self.log.room_for_entries();
        let least = (self.limits.proposal_bytes + ENTRY_OVERHEAD) as u64;
        let is_full = self.disk_full.is_some() || self.room.left.is_some_and(|left| left < least);
        if !is_full {
            self.room.full = None;
        } else if self.room.full.is_none() {
            tracing::error!(node = %self.shared.node, "the disk has no room for more entries; free some to go on");
            let pause = self.settings.election_timeout_max;
            self.room.full = Some(Leaving::new(self.now.after(pause), pause));
        }
    }

    /// Whether no proposal has room, however small.
    pub(super) fn is_out_of_room(&self) -> bool {
        self.room.full.is_some()
    }

    /// Takes room for an entry or for several that came together. False when there is not enough.
    pub(super) fn take_room(&mut self, bytes: usize) -> bool {
        let needed = (bytes + ENTRY_OVERHEAD) as u64;
        match &mut self.room.left {
            None => true,
            Some(left) if needed > *left => false,
            Some(left) => {
                *left -= needed;
                true
            }
        }
    }

    /// When to hand groups over, if that is due at some time.
    pub(super) fn handover_deadline(&self) -> Option<Tick> {
        self.room.full.as_ref().map(Leaving::deadline)
    }

    /// Hands all groups over after an election timeout without room, and from then on again and again.
    pub(super) fn hand_over(&mut self) {
        let now = self.now;
        let full = self.room.full.as_mut();
        if let Some(attempt) = full.and_then(|full| full.attempt(now)) {
            self.hand_all_over(attempt, "there is no room for its entries");
        }
    }

    /// Hands each group that this node leads to another voter.
    pub(super) fn hand_all_over(&mut self, attempt: usize, why: &'static str) {
        for slot in 0..self.replicas.len() as u32 {
            let replica = &self.replicas[slot as usize];
            if leads(replica)
                && let Some(to) = self.other_voter(slot, attempt)
            {
                tracing::warn!(group = %replica.group.id(), %to, why, "handing a group over");
                self.step(slot, Event::Transfer { to }, Payloads::None);
            }
        }
    }

    /// A voter of the group whose node is alive, another one at each attempt.
    pub(super) fn other_voter(&self, slot: u32, attempt: usize) -> Option<NodeId> {
        let group = &self.replicas[slot as usize].group;
        let voters = group.configuration().full_voters();
        let mut others: Vec<NodeId> = voters
            .filter(|voter| *voter != self.shared.node && self.alive.contains(*voter))
            .collect();
        // Those with the highest priority first; then anybody who would do.
        let highest = others.iter().map(|node| self.alive.priority(*node)).max();
        if attempt < 2 {
            others.retain(|node| Some(self.alive.priority(*node)) == highest);
        }
        let at = (slot as usize + attempt) % others.len().max(1);
        others.get(at).copied()
    }
}

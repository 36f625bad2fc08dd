//! The nodes' counters, added up, and what happened between two looks at them. Counters start at zero when a node is
//! opened, so two looks compare only while the same nodes run; what goes down counts as no progress.

use polyraft::{Node, StateMachine};
use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};

/// Counters of all nodes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Barriers: calls of fdatasync or msync for the WAL.
    pub barriers: u64,
    /// Entries appended to the WALs.
    pub entries: u64,
    /// Bytes written to the WALs, with headers and padding.
    pub wal_bytes: u64,
    /// Frames given to the network.
    pub frames: u64,
    /// Bytes of these frames.
    pub frame_bytes: u64,
    /// Beats between nodes.
    pub beats: u64,
    /// Messages that belong to one group.
    pub group_messages: u64,
    /// Elections started.
    pub elections: u64,
    /// Turns taken by the shards.
    pub turns: u64,
    /// Entry blocks appended to the WALs.
    pub blocks: u64,
    /// Time spent in barriers, in microseconds.
    pub barrier_us: u64,
}

impl Totals {
    /// The counters as they are now.
    pub fn of<M: StateMachine>(nodes: &[Node<M>]) -> Self {
        let mut sum = Self::default();
        for status in nodes.iter().map(Node::status) {
            sum.barriers += status.wal.barriers;
            sum.entries += status.wal.entries;
            sum.wal_bytes += status.wal.bytes_written;
            sum.frames += status.network.frames_sent;
            sum.frame_bytes += status.network.bytes_sent;
            sum.beats += status.counters.beats;
            sum.group_messages += status.counters.group_messages;
            sum.elections += status.counters.elections;
            sum.turns += status.counters.turns;
            sum.blocks += status.wal.blocks;
            sum.barrier_us += status.wal.barrier_us_sum;
        }
        sum
    }

    /// Entries that one barrier made durable, on average over all barriers of all nodes.
    pub fn entries_per_barrier(&self) -> f64 {
        ratio(self.entries, self.barriers)
    }

    /// Entries that one entry block holds, on average.
    pub fn entries_per_block(&self) -> f64 {
        ratio(self.entries, self.blocks)
    }

    /// Average size of a frame.
    pub fn bytes_per_frame(&self) -> f64 {
        ratio(self.frame_bytes, self.frames)
    }
}

impl Sub for Totals {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            barriers: self.barriers.saturating_sub(before.barriers),
            entries: self.entries.saturating_sub(before.entries),
            wal_bytes: self.wal_bytes.saturating_sub(before.wal_bytes),
            frames: self.frames.saturating_sub(before.frames),
            frame_bytes: self.frame_bytes.saturating_sub(before.frame_bytes),
            beats: self.beats.saturating_sub(before.beats),
            group_messages: self.group_messages.saturating_sub(before.group_messages),
            elections: self.elections.saturating_sub(before.elections),
            turns: self.turns.saturating_sub(before.turns),
            blocks: self.blocks.saturating_sub(before.blocks),
            barrier_us: self.barrier_us.saturating_sub(before.barrier_us),
        }
    }
}

impl Add for Totals {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            barriers: self.barriers + more.barriers,
            entries: self.entries + more.entries,
            wal_bytes: self.wal_bytes + more.wal_bytes,
            frames: self.frames + more.frames,
            frame_bytes: self.frame_bytes + more.frame_bytes,
            beats: self.beats + more.beats,
            group_messages: self.group_messages + more.group_messages,
            elections: self.elections + more.elections,
            turns: self.turns + more.turns,
            blocks: self.blocks + more.blocks,
            barrier_us: self.barrier_us + more.barrier_us,
        }
    }
}

fn ratio(sum: u64, count: u64) -> f64 {
    if count == 0 {
        0.0
    } else {
        sum as f64 / count as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_of_nothing_are_zero() {
        let totals = Totals::default();
        assert_eq!(
            (totals.entries_per_barrier(), totals.bytes_per_frame()),
            (0.0, 0.0)
        );
        let totals = Totals {
            entries: 10,
            barriers: 4,
            ..totals
        };
        assert_eq!(totals.entries_per_barrier(), 2.5);
        assert_eq!(totals - totals, Totals::default());
        assert_eq!((totals + totals).entries, 20);
    }
}

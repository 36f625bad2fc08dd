//! The window of appends that are on the way to one follower. It counts messages, entries and bytes, and
//! adapts its depth: deeper while acknowledgements flow, shallower after a conflict or a silence. It does
//! not know terms or followers.

use smallvec::SmallVec;

use crate::{EntryRange, Index, Settings};

/// Depth at the start of a leadership. Deep enough to cover a local round trip at once.
const INITIAL_DEPTH: u16 = 16;

/// The largest window in bytes. With one more append it can be counted in four bytes: a leader has a window for each follower of
/// each group.
const MOST_BYTES: u32 = 1 << 31;

/// Appends sent and not yet acknowledged, oldest first, with consecutive ranges.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inflight {
    sent: SmallVec<[Sent; 2]>,
    /// Everything through here is acknowledged.
    floor: Index,
    /// Sum of the bytes in `sent`.
    bytes: u32,
    /// How many messages may be on the way now; at least 1.
    depth: u16,
    /// The depth, and nothing else, held an append back since the last acknowledgement.
    held_back: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sent {
    last: Index,
    bytes: u32,
}

impl Default for Inflight {
    fn default() -> Inflight {
        Inflight {
            sent: SmallVec::new(),
            floor: Index::ZERO,
            bytes: 0,
            depth: INITIAL_DEPTH,
            held_back: false,
        }
    }
}

impl Inflight {
    /// Whether nothing is on the way.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Messages on the way.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.sent.len()
    }

    /// Entries on the way.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.newest().0 - self.floor.0
    }

    /// Last index on the way; what is acknowledged when nothing is.
    fn newest(&self) -> Index {
        self.sent.last().map_or(self.floor, |sent| sent.last)
    }

    /// Bytes on the way, counting a partly acknowledged append in full.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// How many messages may be on the way now, within the settings' limit.
    #[must_use]
    pub const fn depth(&self) -> u32 {
        self.depth as u32
    }

    /// Entries and bytes that one more append may have; `None` when the window is full.
    pub(crate) fn room(&mut self, settings: &Settings) -> Option<(u64, u64)> {
        let entries = settings
            .inflight_entries
            .max(1)
            .saturating_sub(self.entries());
        let most_bytes = settings.inflight_bytes.clamp(1, MOST_BYTES.into());
        let bytes = most_bytes.saturating_sub(self.bytes());
        if entries == 0 || bytes == 0 {
            return None;
        }
        let limit = settings.inflight_messages.max(1);
        if self.sent.len() >= self.depth().min(limit) as usize {
            self.held_back = self.depth() < limit;
            return None;
        }
        Some((entries, bytes))
    }

    /// Notes an append as sent. It must continue the one before.
    pub(crate) fn push(&mut self, entries: EntryRange, bytes: u64) {
        debug_assert!(!entries.is_empty());
        if self.sent.is_empty() {
            self.floor = entries.first.prev();
        } else {
            debug_assert_eq!(self.newest().next(), entries.first);
        }
        // One entry may be larger than the room; then there was some, and the sum still fits.
        let bytes = u32::try_from(bytes).unwrap_or(MOST_BYTES).min(MOST_BYTES);
        self.bytes += bytes;
        self.sent.push(Sent {
            last: entries.last(),
            bytes,
        });
    }

    /// Everything through `matched` is acknowledged.
    pub(crate) fn acknowledge(&mut self, matched: Index) {
        self.floor = matched.clamp(self.floor, self.newest());
        let reached = self.sent.iter().take_while(|sent| sent.last <= matched);
        let done = reached.count();
        self.bytes -= self.sent.drain(..done).map(|sent| sent.bytes).sum::<u32>();
        if self.held_back {
            // One more per acknowledged message: the depth doubles per round trip until something else limits.
            self.depth = self.depth.saturating_add(done.min(u16::MAX.into()) as u16);
            self.held_back = false;
        }
    }

    /// Forgets what was sent; it is taken for lost.
    pub(crate) fn clear(&mut self) {
        self.floor = self.newest();
        self.sent.clear();
        self.bytes = 0;
        self.held_back = false;
    }

    /// The pipeline ran into a conflict or a silence: be more careful.
    pub(crate) fn shrink(&mut self) {
        self.depth = (self.depth / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Term;

    fn range(first: u64, len: u64) -> EntryRange {
        EntryRange {
            term: Term(1),
            first: Index(first),
            end: Index(first + len),
        }
    }

    #[test]
    fn the_window_is_full_by_entries_bytes_or_messages() {
        let settings = Settings {
            inflight_entries: 10,
            inflight_bytes: 100,
            inflight_messages: 3,
            ..Settings::default()
        };
        let mut window = Inflight::default();
        window.push(range(1, 4), 30);
        assert_eq!(window.room(&settings), Some((6, 70)));
        window.push(range(5, 6), 10);
        assert_eq!(window.room(&settings), None);
        window.acknowledge(Index(4));
        assert_eq!(window.room(&settings), Some((4, 90)));
        window.push(range(11, 1), 90);
        assert_eq!(window.room(&settings), None);
        window.acknowledge(Index(11));
        assert!(window.is_empty());
        for i in 0..3 {
            window.push(range(12 + i, 1), 1);
        }
        assert_eq!(window.room(&settings), None);
    }

    #[test]
    fn the_depth_grows_only_when_it_was_what_limited() {
        let settings = Settings::default();
        let mut window = Inflight::default();
        window.push(range(1, 1), 1);
        assert!(window.room(&settings).is_some());
        window.acknowledge(Index(1));
        assert_eq!(window.depth(), u32::from(INITIAL_DEPTH));
        for i in 0..u64::from(INITIAL_DEPTH) {
            window.push(range(2 + i, 1), 1);
        }
        assert_eq!(window.room(&settings), None);
        window.acknowledge(window.newest());
        assert_eq!(window.depth(), u32::from(2 * INITIAL_DEPTH));
        // It does not limit any more, nor when what it held back was taken for lost.
        let next = window.newest().0 + 1;
        for i in 0..u64::from(2 * INITIAL_DEPTH) {
            window.push(range(next + i, 1), 1);
        }
        window.acknowledge(Index(next));
        assert_eq!(window.depth(), u32::from(2 * INITIAL_DEPTH));
        window.push(range(window.newest().0 + 1, 1), 1);
        assert_eq!(window.room(&settings), None);
        window.clear();
        window.push(range(window.newest().0 + 1, 1), 1);
        window.acknowledge(window.newest());
        assert_eq!(window.depth(), u32::from(2 * INITIAL_DEPTH));
        window.shrink();
        assert_eq!(window.depth(), u32::from(INITIAL_DEPTH));
        (0..10).for_each(|_| window.shrink());
        assert_eq!(window.depth(), 1);
    }

    #[test]
    fn the_largest_entries_are_counted() {
        let settings = Settings {
            inflight_bytes: u64::MAX,
            ..Settings::default()
        };
        let mut window = Inflight::default();
        let most = u64::from(MOST_BYTES);
        window.push(range(1, 1), most - 1);
        assert_eq!(window.room(&settings).map(|(_, bytes)| bytes), Some(1));
        window.push(range(2, 1), u64::MAX);
        assert_eq!(window.room(&settings), None);
        window.acknowledge(Index(1));
        assert_eq!((window.bytes(), window.room(&settings)), (most, None));
        window.acknowledge(Index(2));
        assert_eq!(window.bytes(), 0);
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_naive_one(steps in prop::collection::vec((0..4_u8, 1..9_u64), 1..200)) {
            let mut window = Inflight::default();
            let mut naive: Vec<(u64, u64, u64)> = Vec::new();
            let (mut next, mut floor) = (1, 0);
            for (kind, n) in steps {
                match kind {
                    0 | 1 => {
                        window.push(range(next, n), 7 * n);
                        naive.push((next, n, 7 * n));
                        next += n;
                    }
                    2 => {
                        floor = (floor + n).min(next - 1);
                        window.acknowledge(Index(floor));
                        naive.retain(|&(first, len, _)| first + len > floor + 1);
                    }
                    _ => {
                        window.clear();
                        naive.clear();
                        floor = next - 1;
                    }
                }
                let unacked: u64 = naive.iter().map(|&(first, len, _)| len - (floor + 1).saturating_sub(first)).sum();
                prop_assert_eq!(window.messages(), naive.len());
                prop_assert_eq!(window.bytes(), naive.iter().map(|s| s.2).sum::<u64>());
                prop_assert_eq!(window.entries(), unacked);
            }
        }
    }
}

//! The numbers of the protocol, each a type of its own so that they cannot be mixed up.
//! They are plain names: no rule of the protocol lives here.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The lowest value.
            pub const ZERO: $name = $name(0);

            /// The value after this one.
            #[inline]
            #[must_use]
            pub const fn next(self) -> $name {
                $name(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number!(
    /// A node: one process of the cluster, host to replicas of many groups.
    NodeId,
    "n"
);
number!(
    /// A Raft group.
    GroupId,
    "g"
);
number!(
    /// A term: the protocol's logical clock. At most one leader exists per group and term.
    Term,
    "t"
);
number!(
    /// The place of an entry in a group's log. The first entry has index 1; 0 stands before it.
    Index,
    ""
);
number!(
    /// A point in time: microseconds since an origin of the caller's choosing, never going back.
    Tick,
    ""
);
number!(
    /// Names one durable write of a group. Strictly increasing from 1 in the life of a [`Group`](crate::Group);
    /// 0 stands for "nothing written yet".
    WriteId,
    "w"
);

/// Which life of a group's id this is: an id whose group was destroyed may be given to a new one, which accepts nothing of
/// the old one's. Lives are numbered from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Life(u32);

impl Life {
    /// The life that an id begins with.
    pub const FIRST: Life = Life(0);
    /// The last one that there is room for on the wire: three bytes.
    pub const LAST: Life = Life((1 << 24) - 1);

    /// The life with this number, if there can be one.
    #[must_use]
    pub const fn new(number: u32) -> Option<Life> {
        if number <= Life::LAST.0 {
            Some(Life(number))
        } else {
            None
        }
    }

    /// Its number.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The life after this one; the last one stays.
    #[must_use]
    pub const fn next(self) -> Life {
        if self.0 < Life::LAST.0 {
            Life(self.0 + 1)
        } else {
            self
        }
    }

    /// The life before this one, unless it is the first.
    #[must_use]
    pub const fn before(self) -> Option<Life> {
        match self.0.checked_sub(1) {
            Some(number) => Some(Life(number)),
            None => None,
        }
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "life {}", self.0)
    }
}

impl Index {
    /// The index before this one; 0 stays 0.
    #[inline]
    #[must_use]
    pub const fn prev(self) -> Index {
        Index(self.0.saturating_sub(1))
    }
}

impl Tick {
    /// The end of time: what comes then never comes.
    pub(crate) const NEVER: Tick = Tick(u64::MAX);

    /// This point plus `micros`, saturating at the end of time.
    #[inline]
    #[must_use]
    pub const fn after(self, micros: u64) -> Tick {
        Tick(self.0.saturating_add(micros))
    }

    /// Microseconds from `earlier` to this point; 0 when `earlier` is later.
    #[inline]
    #[must_use]
    pub const fn since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The shard, of `shards`, that owns `group`: the same answer on every machine and in every version.
///
/// With `shards` a multiple of `lanes`, `shard_of(g, lanes) == shard_of(g, shards) % lanes`: a shard never
/// has two lanes.
///
/// ```
/// use polyraft_raft::{GroupId, shard_of};
/// for g in 0..100 {
///     assert_eq!(shard_of(GroupId(g), 2), shard_of(GroupId(g), 6) % 2);
/// }
/// ```
///
/// # Panics
/// When `shards` is 0.
#[must_use]
pub const fn shard_of(group: GroupId, shards: usize) -> usize {
    assert!(shards > 0, "a group needs at least one shard to live on");
    (mix(group.0) % shards as u64) as usize
}

/// A bijective 64-bit finaliser (the one of SplitMix64): every input bit reaches every output bit.
pub(crate) const fn mix(value: u64) -> u64 {
    let mut z = value;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_spread_evenly_over_shards() {
        let mut counts = [0_u32; 8];
        for g in 0..8000 {
            counts[shard_of(GroupId(g), 8)] += 1;
        }
        assert!(
            counts.iter().all(|&c| (850..1150).contains(&c)),
            "{counts:?}"
        );
    }

    #[test]
    fn time_saturates() {
        assert_eq!(Tick(u64::MAX).after(5), Tick(u64::MAX));
        assert_eq!(Tick(3).since(Tick(8)), 0);
        assert_eq!(Index(0).prev(), Index(0));
    }
}

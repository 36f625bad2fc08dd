//! Owns the choice of what a power cut leaves of the writes and names that no sync covered.
//! Must never depend on anything but the pattern and its seed.

/// Which unsynced sectors survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None.
    Nothing,
    /// All.
    Everything,
    /// Whole pages of 4096 bytes with an even number.
    EvenPages,
    /// Whole pages of 4096 bytes with an odd number.
    OddPages,
    /// All but the first dirty sector of each file: the write was reordered.
    NotTheFirst,
    /// All but the last dirty sector of each file: the write was cut short.
    NotTheLast,
    /// The first dirty sectors of each file, a pseudo-random number of them.
    Prefix(u64),
    /// The last dirty sectors of each file, a pseudo-random number of them.
    Suffix(u64),
    /// None, and they read as zeros, whatever stood there before.
    Zeroed,
    /// A pseudo-random half, by seed.
    Some(u64),
    /// Any of the above or a mix of kept, lost and zeroed sectors, drawn for each file on its own.
    Arbitrary(u64),
}

/// Which creations, renames and removals that no directory sync covered survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepNames {
    /// None.
    Nothing,
    /// All.
    Everything,
    /// The first of them, a pseudo-random number.
    Prefix(u64),
    /// A pseudo-random half, in their order.
    Some(u64),
}

/// What becomes of an unsynced sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Lost,
    Zeroed,
}

impl Keep {
    /// The names that go with this pattern when the caller does not choose.
    pub(super) fn names(self) -> KeepNames {
        match self {
            Self::Nothing | Self::OddPages | Self::NotTheLast | Self::Some(2) => KeepNames::Nothing,
            Self::Prefix(seed) => KeepNames::Prefix(seed),
            Self::Arbitrary(seed) => match mix(seed ^ 0x6e61_6d65) % 4 {
                0 => KeepNames::Nothing,
                1 => KeepNames::Everything,
                2 => KeepNames::Prefix(seed),
                _ => KeepNames::Some(seed),
            },
            _ => KeepNames::Everything,
        }
    }

    /// The pattern of one file.
    pub(super) fn of_file(self, id: u64) -> Self {
        let Self::Arbitrary(seed) = self else {
            return self;
        };
        let seed = mix(seed ^ mix(id));
        match seed % 12 {
            0 => Self::Nothing,
            1 => Self::Everything,
            2 => Self::EvenPages,
            3 => Self::OddPages,
            4 => Self::NotTheFirst,
            5 => Self::NotTheLast,
            6 | 7 => Self::Prefix(seed),
            8 => Self::Suffix(seed),
            9 => Self::Zeroed,
            10 => Self::Some(seed),
            _ => Self::Arbitrary(seed),
        }
    }

    /// What becomes of sector number `sector` of file `id`, the `at`-th of its `count` dirty ones.
    pub(super) fn fate(self, id: u64, sector: usize, at: usize, count: usize) -> Fate {
        let even = (sector / super::pages::SECTORS).is_multiple_of(2);
        let random = |seed: u64| mix(seed ^ mix(id) ^ sector as u64);
        let share = |seed: u64| (mix(seed ^ id) % (count as u64 + 1)) as usize;
        let kept = match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::EvenPages => even,
            Self::OddPages => !even,
            Self::NotTheFirst => at > 0,
            Self::NotTheLast => at + 1 < count,
            Self::Prefix(seed) => at < share(seed),
            Self::Suffix(seed) => at >= share(seed),
            Self::Zeroed => return Fate::Zeroed,
            Self::Some(seed) => random(seed).is_multiple_of(2),
            Self::Arbitrary(seed) if random(seed).is_multiple_of(5) => return Fate::Zeroed,
            Self::Arbitrary(seed) => (random(seed) >> 8).is_multiple_of(2),
        };
        if kept { Fate::Kept } else { Fate::Lost }
    }

    /// Whether a shortening of file `id` that no sync covered took effect.
    pub(super) fn truncates(self, id: u64) -> bool {
        match self {
            Self::Nothing | Self::Suffix(_) => false,
            Self::Some(seed) | Self::Arbitrary(seed) => mix(seed ^ !id).is_multiple_of(2),
            _ => true,
        }
    }
}

impl KeepNames {
    /// Whether the `at`-th of `count` changes survives.
    pub(super) fn keeps(self, at: usize, count: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Prefix(seed) => (at as u64) < mix(seed) % (count as u64 + 1),
            Self::Some(seed) => mix(seed ^ mix(at as u64)).is_multiple_of(2),
        }
    }
}

/// A pseudo-random function of a number.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value ^ value >> 32
}

//! Which group an operation goes to.

use super::alias::AliasTable;
use super::rng::Rng;
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A distribution over groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keys {
    /// Every group as likely as any other.
    Uniform,
    /// All groups in turn.
    RoundRobin,
    /// Group `r` has the weight `1 / (r + 1)^exponent`.
    Zipfian {
        /// How steep: 0.99 is what YCSB uses.
        exponent: f64,
    },
    /// The first `groups` (a share of all) get `operations` (a share of all); both spread evenly.
    Hotspot {
        /// Share of the groups that are hot, 0 to 1.
        groups: f64,
        /// Share of the operations that go to them, 0 to 1.
        operations: f64,
    },
}

const FORMS: &str = "uniform, round-robin, zipfian:EXPONENT (such as zipfian:0.99), or hotspot:GROUPS:OPERATIONS (such as hotspot:0.1:0.9)";

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no distribution over groups; known are {FORMS}");
        let number = |part: &str, max: f64| {
            let number: f64 = part.parse().map_err(|_| wrong())?;
            match number > 0.0 && number <= max {
                true => Ok(number),
                false => Err(format!(
                    "`{part}` in `{text}` must be above 0 and at most {max}"
                )),
            }
        };
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            ["uniform"] => Ok(Keys::Uniform),
            ["round-robin"] => Ok(Keys::RoundRobin),
            ["zipfian"] => Ok(Keys::Zipfian { exponent: 0.99 }),
            ["zipfian", exponent] => Ok(Keys::Zipfian {
                exponent: number(exponent, 10.0)?,
            }),
            ["hotspot", groups, operations] => Ok(Keys::Hotspot {
                groups: number(groups, 1.0)?,
                operations: number(operations, 1.0)?,
            }),
            _ => Err(wrong()),
        }
    }
}

/// Reads back as the same distribution.
impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keys::Uniform => f.write_str("uniform"),
            Keys::RoundRobin => f.write_str("round-robin"),
            Keys::Zipfian { exponent } => write!(f, "zipfian:{exponent}"),
            Keys::Hotspot { groups, operations } => write!(f, "hotspot:{groups}:{operations}"),
        }
    }
}

impl Serialize for Keys {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Picks groups of `0..groups`.
#[derive(Clone, Debug)]
pub struct KeyPicker {
    groups: u64,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    Uniform,
    RoundRobin { next: u64, step: u64 },
    Table(AliasTable),
    Hotspot { hot: u64, operations: f64 },
}

impl KeyPicker {
    /// The part of thread `at` of `threads`: together the threads follow the distribution.
    pub fn new(keys: Keys, groups: u64, (at, threads): (usize, usize)) -> Self {
        assert!(groups > 0, "there is a group to pick");
        let how = match keys {
            Keys::Uniform => How::Uniform,
            Keys::RoundRobin => How::RoundRobin {
                next: at as u64 % groups,
                step: threads as u64,
            },
            Keys::Zipfian { exponent } => How::Table(AliasTable::zipf(groups as usize, exponent)),
            Keys::Hotspot {
                groups: share,
                operations,
            } => How::Hotspot {
                hot: ((groups as f64 * share).round() as u64).clamp(1, groups),
                operations,
            },
        };
        Self { groups, how }
    }

    /// One pick.
    pub fn pick(&mut self, rng: &mut Rng) -> u64 {
        match &mut self.how {
            How::Uniform => rng.below(self.groups),
            How::RoundRobin { next, step } => {
                let picked = *next;
                *next = (picked + *step) % self.groups;
                picked
            }
            How::Table(table) => table.draw(rng) as u64,
            How::Hotspot { hot, operations } => {
                if *hot == self.groups || rng.unit() < *operations {
                    rng.below(*hot)
                } else {
                    *hot + rng.below(self.groups - *hot)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(keys: &str, groups: u64, draws: u64) -> Vec<f64> {
        let mut picker = KeyPicker::new(keys.parse().unwrap(), groups, (0, 1));
        let mut rng = Rng::new(11, 0);
        let mut counts = vec![0.0; groups as usize];
        for _ in 0..draws {
            counts[picker.pick(&mut rng) as usize] += 1.0;
        }
        counts
    }

    #[test]
    fn texts_are_read_and_written() {
        for text in ["uniform", "round-robin", "zipfian:0.99", "hotspot:0.1:0.9"] {
            assert_eq!(text.parse::<Keys>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "zipf",
            "zipfian:x",
            "zipfian:0",
            "hotspot:0.1",
            "hotspot:2:0.5",
            "uniform:1",
        ] {
            let error = wrong.parse::<Keys>().unwrap_err();
            assert!(
                error.contains("known are") || error.contains("must be above"),
                "{error}"
            );
        }
    }

    #[test]
    fn uniform_picks_are_even() {
        let counts = counts("uniform", 16, 160_000);
        let chi: f64 = counts.iter().map(|n| (n - 1e4).powi(2) / 1e4).sum();
        // Fifteen degrees of freedom: above 37.7 in one of a thousand seeds.
        assert!(chi < 37.7, "{chi}");
    }

    #[test]
    fn a_hotspot_gets_its_share() {
        let counts = counts("hotspot:0.1:0.9", 100, 100_000);
        let hot: f64 = counts[..10].iter().sum();
        // Binomial: standard deviation 95; this is five of them.
        assert!((hot - 90_000.0).abs() < 475.0, "{hot}");
        assert!(
            counts[..10].iter().all(|n| (n - 9_000.0).abs() < 500.0),
            "{counts:?}"
        );
        assert!(
            counts[10..].iter().all(|n| (n - 111.1).abs() < 60.0),
            "{counts:?}"
        );
    }

    #[test]
    fn zipfian_prefers_low_groups() {
        let counts = counts("zipfian:0.99", 64, 100_000);
        let harmonic: f64 = (1..=64).map(|rank| f64::from(rank).powf(-0.99)).sum();
        let expected = 100_000.0 / harmonic;
        assert!(
            (counts[0] - expected).abs() < 5.0 * expected.sqrt(),
            "{}",
            counts[0]
        );
        assert!(counts[0] > 1.8 * counts[1] && counts[63] > 0.0);
    }

    #[test]
    fn round_robin_visits_all_threads_together() {
        let mut seen = vec![0; 10];
        for at in 0..2 {
            let mut picker = KeyPicker::new(Keys::RoundRobin, 10, (at, 2));
            let mut rng = Rng::new(1, 0);
            for _ in 0..5 {
                seen[picker.pick(&mut rng) as usize] += 1;
            }
        }
        assert_eq!(seen, vec![1; 10]);
    }
}

//! How large proposals are.

use super::alias::AliasTable;
use super::rng::Rng;
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Zipf sizes are drawn from at most this many, evenly spaced.
const CLASSES: u64 = 4096;

/// A distribution of payload sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sizes {
    /// Always the same.
    Fixed(u64),
    /// Every size from the first to the last, both included, as likely as any other.
    Uniform(u64, u64),
    /// Small ones are likely, large ones rare: the `r`-th of up to 4,096 evenly spaced sizes from the first to the last
    /// has the weight `1 / r^exponent`.
    Zipf {
        /// Smallest size.
        min: u64,
        /// Largest size.
        max: u64,
        /// How steep.
        exponent: f64,
    },
}

const FORMS: &str = "BYTES (such as 16), MIN..MAX (such as 128..1024), or zipf:MIN..MAX[:EXPONENT] (such as zipf:64..16384:1.1)";

impl Sizes {
    /// The largest size that can come.
    pub fn max(&self) -> u64 {
        match *self {
            Sizes::Fixed(bytes) => bytes,
            Sizes::Uniform(_, max) | Sizes::Zipf { max, .. } => max,
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no distribution of sizes; known are {FORMS}");
        let bytes = |part: &str| part.parse::<u64>().map_err(|_| wrong());
        let range = |part: &str| {
            let (min, max) = part.split_once("..").ok_or_else(wrong)?;
            let (min, max) = (bytes(min)?, bytes(max)?);
            match min < max {
                true => Ok((min, max)),
                false => Err(format!("`{part}`: the first size must be below the second")),
            }
        };
        if let Some(rest) = text.strip_prefix("zipf:") {
            let (sizes, exponent) = rest.split_once(':').unwrap_or((rest, "0.99"));
            let exponent: f64 = exponent.parse().map_err(|_| wrong())?;
            if !(exponent > 0.0 && exponent <= 10.0) {
                return Err(format!(
                    "`{text}`: the exponent must be above 0 and at most 10"
                ));
            }
            let (min, max) = range(sizes)?;
            return Ok(Sizes::Zipf { min, max, exponent });
        }
        if text.contains("..") {
            let (min, max) = range(text)?;
            return Ok(Sizes::Uniform(min, max));
        }
        bytes(text).map(Sizes::Fixed)
    }
}

/// Reads back as the same distribution.
impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(bytes) => write!(f, "{bytes}"),
            Sizes::Uniform(min, max) => write!(f, "{min}..{max}"),
            Sizes::Zipf { min, max, exponent } => write!(f, "zipf:{min}..{max}:{exponent}"),
        }
    }
}

impl Serialize for Sizes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Picks sizes.
#[derive(Clone, Debug)]
pub struct SizePicker {
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    Fixed(u64),
    Uniform(u64, u64),
    Classes {
        min: u64,
        span: u64,
        table: AliasTable,
        last: u64,
    },
}

impl SizePicker {
    /// Draws from `sizes`.
    pub fn new(sizes: Sizes) -> Self {
        let how = match sizes {
            Sizes::Fixed(bytes) => How::Fixed(bytes),
            Sizes::Uniform(min, max) => How::Uniform(min, max),
            Sizes::Zipf { min, max, exponent } => {
                let classes = (max - min + 1).min(CLASSES);
                How::Classes {
                    min,
                    span: max - min,
                    table: AliasTable::zipf(classes as usize, exponent),
                    last: classes - 1,
                }
            }
        };
        Self { how }
    }

    /// One size in bytes.
    pub fn pick(&self, rng: &mut Rng) -> usize {
        let bytes = match &self.how {
            How::Fixed(bytes) => *bytes,
            How::Uniform(min, max) => min + rng.below(max - min + 1),
            How::Classes {
                min,
                span,
                table,
                last,
            } => min + span * table.draw(rng) as u64 / (*last).max(1),
        };
        bytes as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sizes: &str, count: usize) -> Vec<usize> {
        let picker = SizePicker::new(sizes.parse().unwrap());
        let mut rng = Rng::new(21, 0);
        (0..count).map(|_| picker.pick(&mut rng)).collect()
    }

    #[test]
    fn texts_are_read_and_written() {
        for text in ["16", "0", "128..1024", "zipf:64..16384:1.1"] {
            assert_eq!(text.parse::<Sizes>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "x",
            "-1",
            "9..9",
            "10..2",
            "zipf:5",
            "zipf:1..9:0",
            "zipf:1..9:x",
            "1..2..3",
        ] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong}");
        }
        assert_eq!("zipf:64..512".parse::<Sizes>().unwrap().max(), 512);
    }

    #[test]
    fn uniform_sizes_cover_their_range_evenly() {
        let draws = draws("128..1023", 100_000);
        assert!(draws.iter().all(|bytes| (128..=1023).contains(bytes)));
        let mean = draws.iter().sum::<usize>() as f64 / draws.len() as f64;
        // Standard deviation of the mean: 896 / sqrt(12 n) = 0.82; this is four of them.
        assert!((mean - 575.5).abs() < 3.3, "{mean}");
    }

    #[test]
    fn zipf_sizes_are_mostly_small_and_reach_both_ends() {
        let draws = draws("zipf:64..16384:0.99", 200_000);
        assert!(draws.iter().all(|bytes| (64..=16_384).contains(bytes)));
        assert_eq!(draws.iter().min(), Some(&64));
        let harmonic: f64 = (1..=4096).map(|rank| f64::from(rank).powf(-0.99)).sum();
        let smallest = draws.iter().filter(|bytes| **bytes == 64).count() as f64;
        let expected = 200_000.0 / harmonic;
        assert!(
            (smallest - expected).abs() < 5.0 * expected.sqrt(),
            "{smallest} against {expected}"
        );
        assert!(draws.iter().any(|bytes| *bytes > 15_000));
        let picker = SizePicker::new("zipf:1..2:1".parse().unwrap());
        let mut rng = Rng::new(1, 1);
        assert!((0..100).all(|_| [1, 2].contains(&picker.pick(&mut rng))));
    }
}

//! The latencies as an HDR histogram log, which the standard tools of that format read: one line for each second, and one
//! for the time after the last one in which the slowest operations end, in nanoseconds, all operations together.

use super::measure::{Part, Row};
use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use std::io::Write;
use std::time::{Duration, SystemTime};

/// The largest values are written in this unit: the tools' convention for nanoseconds is to show milliseconds.
const MAX_VALUE_DIVISOR: f64 = 1e6;

/// The intervals of a log to be. They are kept packed: a run of a day has 86,400, and a histogram takes 200 KiB.
#[derive(Default)]
pub struct Hlog {
    serializer: V2DeflateSerializer,
    intervals: Vec<Interval>,
}

struct Interval {
    part: Part,
    length: Duration,
    packed: Vec<u8>,
}

impl Hlog {
    /// Adds the latencies of a row. Rows come in their order.
    pub fn add(&mut self, row: &Row, latencies: &Histogram<u64>) -> Result<()> {
        let mut packed = Vec::new();
        self.serializer
            .serialize(latencies, &mut packed)
            .map_err(|error| anyhow!("the latencies of a second cannot be kept: {error}"))?;
        self.intervals.push(Interval {
            part: row.part,
            length: Duration::from_secs_f64(row.seconds),
            packed,
        });
        Ok(())
    }

    /// Writes the log of a load that began at `started`. Intervals that are not of the window have the tag `warmup` or
    /// `drain`.
    pub fn write(&self, mut out: impl Write, started: SystemTime) -> Result<()> {
        let mut serializer = V2DeflateSerializer::new();
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment("polyraft bench; values are nanoseconds")
            .with_start_time(started)
            .with_base_time(started)
            .with_max_value_divisor(MAX_VALUE_DIVISOR)
            .begin_log_with(&mut out, &mut serializer)?;
        let mut deserializer = Deserializer::new();
        let mut at = Duration::ZERO;
        for interval in &self.intervals {
            let latencies: Histogram<u64> = deserializer
                .deserialize(&mut &interval.packed[..])
                .map_err(|error| anyhow!("an interval was not kept: {error}"))?;
            let tag = match interval.part {
                Part::Warmup => Tag::new("warmup"),
                Part::Window => None,
                Part::Drain => Tag::new("drain"),
            };
            log.write_histogram(&latencies, at, interval.length, tag)
                .map_err(|error| anyhow!("an interval cannot be written: {error:?}"))?;
            at += interval.length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::histogram;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn a_log_reads_back_as_it_was_written() {
        let mut seconds = [histogram(), histogram(), histogram()];
        for (second, base) in seconds.iter_mut().zip([5_000_u64, 1_000_000, 70_000_000]) {
            for step in 0..1000 {
                second.record(base + step * 1000).unwrap();
            }
        }
        let length = Duration::from_millis(1001);
        let mut hlog = Hlog::default();
        for (part, latencies) in [Part::Warmup, Part::Window, Part::Drain]
            .into_iter()
            .zip(&seconds)
        {
            let row = Row {
                part,
                seconds: length.as_secs_f64(),
                ..Row::default()
            };
            hlog.add(&row, latencies).unwrap();
        }
        let mut bytes = Vec::new();
        hlog.write(&mut bytes, SystemTime::now()).unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(text.contains("#[StartTime:"), "{text}");

        let mut read = Vec::new();
        for entry in IntervalLogIterator::new(&bytes) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let encoded = interval.encoded_histogram().as_bytes().to_vec();
                read.push((
                    interval.tag().map(|tag| tag.as_str().to_owned()),
                    interval.start_timestamp(),
                    encoded,
                ));
            }
        }
        assert_eq!(read.len(), 3);
        assert_eq!(read[0].0.as_deref(), Some("warmup"));
        assert_eq!(read[1].0, None);
        assert_eq!(read[2].0.as_deref(), Some("drain"));
        assert_eq!(read[2].1, 2 * length);
        let third = decode(&read[2].2);
        assert_eq!(third, seconds[2]);
    }

    fn decode(base64: &[u8]) -> Histogram<u64> {
        let bytes = from_base64(base64);
        Deserializer::new().deserialize(&mut &bytes[..]).unwrap()
    }

    /// RFC 4648, section 4; small enough not to need a crate.
    fn from_base64(text: &[u8]) -> Vec<u8> {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut bytes = Vec::new();
        let (mut bits, mut count) = (0_u32, 0);
        for digit in text
            .iter()
            .filter_map(|c| alphabet.iter().position(|a| a == c))
        {
            (bits, count) = (bits << 6 | digit as u32, count + 6);
            if count >= 8 {
                count -= 8;
                bytes.push((bits >> count) as u8);
            }
        }
        bytes
    }
}

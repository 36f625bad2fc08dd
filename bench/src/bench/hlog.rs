//! The latencies as an HDR histogram log, which the standard tools of that format read: one line for each second, in
//! nanoseconds, all operations together.

use super::measure::Measured;
use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The largest values are written in this unit: the tools' convention for nanoseconds is to show milliseconds.
const MAX_VALUE_DIVISOR: f64 = 1e6;

/// Writes the seconds of a measurement. Those of the warm-up have the tag `warmup`.
pub fn write(path: &Path, measured: &Measured) -> Result<()> {
    let intervals: Vec<_> = measured
        .rows
        .iter()
        .zip(&measured.intervals)
        .map(|(row, histogram)| {
            (
                row.second <= 0,
                Duration::from_secs_f64(row.seconds),
                histogram,
            )
        })
        .collect();
    let file = std::fs::File::create(path);
    file.map_err(anyhow::Error::from)
        .and_then(|file| write_log(&mut BufWriter::new(file), measured.started, &intervals))
        .with_context(|| format!("cannot write the latencies to {}", path.display()))
}

fn write_log(
    out: &mut impl Write,
    started: SystemTime,
    intervals: &[(bool, Duration, &Histogram<u64>)],
) -> Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("polyraft bench; values are nanoseconds")
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(MAX_VALUE_DIVISOR)
        .begin_log_with(out, &mut serializer)?;
    let mut at = Duration::ZERO;
    let warmup = Tag::new("warmup");
    for (is_warmup, length, histogram) in intervals {
        let tag = if *is_warmup { warmup } else { None };
        log.write_histogram(*histogram, at, *length, tag)
            .map_err(|error| anyhow::anyhow!("an interval cannot be written: {error:?}"))?;
        at += *length;
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::histogram;
    use hdrhistogram::serialization::Deserializer;
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
        let intervals: Vec<_> = (0..3).map(|at| (at == 0, length, &seconds[at])).collect();
        let mut bytes = Vec::new();
        write_log(&mut bytes, SystemTime::now(), &intervals).unwrap();
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
        assert_eq!(read[2].0, None);
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

//! Durations and sizes as text with a unit, and addresses, read and written without loss.
//!
//! It must never accept a bare number: `5` in a file says neither seconds nor milliseconds.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;

/// The largest unit that divides the duration: `150ms`, `1500ms`, `5s`.
pub(super) fn duration_text(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
    let whole = units
        .iter()
        .find(|(_, size)| nanos > 0 && nanos.is_multiple_of(*size));
    match whole {
        Some((unit, size)) => format!("{}{unit}", nanos / size),
        None if nanos == 0 => "0us".to_owned(),
        None => format!("{nanos}ns"),
    }
}

/// The largest binary unit that divides the size: `64MiB`, `1536KiB`, `4095B`.
pub(super) fn size_text(size: ByteSize) -> String {
    let bytes = size.as_u64();
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let whole = units
        .iter()
        .find(|(_, shift)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    match whole {
        Some((unit, shift)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    needs_unit(text)?;
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

pub(super) fn parse_size(text: &str) -> Result<ByteSize, String> {
    needs_unit(text)?;
    text.parse()
}

fn needs_unit(text: &str) -> Result<(), String> {
    match text.trim().ends_with(|last: char| last.is_ascii_digit()) {
        true => Err("a unit is missing".to_owned()),
        false => Ok(()),
    }
}

/// An address; nothing in an empty text.
pub(super) fn parse_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse().map(Some);
    address.map_err(|_| "this is not an address with a port".to_owned())
}

/// `#[serde(with = "units::address")]`
pub(super) mod address {
    use super::*;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&value.map_or_else(String::new, |address| address.to_string()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
        parse_address(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// `#[serde(with = "units::duration")]`
pub(super) mod duration {
    use super::*;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&duration_text(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// `#[serde(with = "units::size")]`
pub(super) mod size {
    use super::*;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &ByteSize, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&size_text(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ByteSize, D::Error> {
        parse_size(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

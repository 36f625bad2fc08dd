//! The checks: unknown keys, single values, and the relations between keys.
//!
//! It must never repair a value; what is wrong is refused with a message that says what to write.

use bytesize::ByteSize;
use toml::{Table, Value};

use super::{
    Config, ConfigError, WalMode,
    keys::{Allowed, KEYS, Key},
    units,
};

/// Room that a frame, a batch or a segment needs beside the proposals inside it, for its headers.
const HEADERS: ByteSize = ByteSize::kib(4);
/// Batches and segments are written in whole pages of this size.
const PAGE: u64 = 4096;

/// Refuses a section or a key that does not exist, and names the nearest that does.
pub(super) fn unknown_keys(table: &Table) -> Result<(), ConfigError> {
    for (section, value) in table {
        let known = KEYS.iter().any(|key| key.section == section);
        match value {
            Value::Table(keys) if known => unknown_in(section, keys)?,
            Value::Table(_) => return Err(unknown(section, nearest_section(section))),
            _ if known => return Err(not_a_section(section, value)),
            _ => return Err(unknown(section, nearest_key("", section))),
        }
    }
    Ok(())
}

fn unknown_in(section: &str, keys: &Table) -> Result<(), ConfigError> {
    let is_known = |name: &str| {
        KEYS.iter()
            .any(|key| key.section == section && key.name == name)
    };
    match keys.keys().find(|name| !is_known(name)) {
        Some(name) => Err(unknown(
            &format!("{section}.{name}"),
            nearest_key(section, name),
        )),
        None => Ok(()),
    }
}

fn unknown(key: &str, suggestion: Option<String>) -> ConfigError {
    ConfigError::UnknownKey {
        key: key.to_owned(),
        suggestion,
    }
}

fn not_a_section(section: &str, value: &Value) -> ConfigError {
    ConfigError::Value {
        key: section.to_owned(),
        value: value.to_string(),
        problem: "this is the name of a section, not of a key".to_owned(),
        allowed: format!("`[{section}]` on a line of its own, and its keys below"),
    }
}

/// The key that takes the fewest edits to reach. A key of another section counts one edit more, so
/// that a key under the wrong heading is found, but not before one under the right heading.
fn nearest_key(section: &str, name: &str) -> Option<String> {
    let edits = |key: &Key| {
        strsim::damerau_levenshtein(name, key.name) + usize::from(key.section != section)
    };
    KEYS.iter()
        .min_by_key(|key| edits(key))
        .filter(|key| edits(key) <= tolerance(name))
        .map(Key::path)
}

fn nearest_section(section: &str) -> Option<String> {
    KEYS.iter()
        .map(|key| key.section)
        .min_by_key(|known| strsim::damerau_levenshtein(section, known))
        .filter(|known| strsim::damerau_levenshtein(section, known) <= tolerance(section))
        .map(str::to_owned)
}

/// How many edits still count as a slip of the pen; beyond them a suggestion would mislead.
fn tolerance(name: &str) -> usize {
    (name.chars().count() / 3).max(2)
}

/// Checks the type, the unit and the range of every value that is present.
pub(super) fn values(table: &Table) -> Result<(), ConfigError> {
    for key in KEYS {
        let value = table
            .get(key.section)
            .and_then(|section| section.get(key.name));
        if let Some(value) = value {
            check_value(key, value)?;
        }
    }
    Ok(())
}

fn check_value(key: &Key, value: &Value) -> Result<(), ConfigError> {
    let verdict = match (key.allowed, value) {
        (Allowed::Duration(min, max), Value::String(text)) => {
            within(units::parse_duration(text), min, max)
        }
        (Allowed::Size(min, max), Value::String(text)) => within(units::parse_size(text), min, max),
        (Allowed::Count(min, max), Value::Integer(count)) => within(Ok(*count), min, max),
        (Allowed::Bool, Value::Boolean(_)) => Ok(()),
        (Allowed::Address, Value::String(text)) => units::parse_address(text).map(drop),
        (Allowed::OneOf(names), Value::String(name)) if names.contains(&name.as_str()) => Ok(()),
        (Allowed::OneOf(_), Value::String(_)) => Err("no such choice".to_owned()),
        (allowed, _) => Err(wrong_type(allowed).to_owned()),
    };
    verdict.map_err(|problem| ConfigError::Value {
        key: key.path(),
        value: value.to_string(),
        problem,
        allowed: key.allowed.to_string(),
    })
}

fn within<T: PartialOrd>(value: Result<T, String>, min: T, max: T) -> Result<(), String> {
    match value? {
        value if value < min => Err("too small".to_owned()),
        value if value > max => Err("too large".to_owned()),
        _ => Ok(()),
    }
}

fn wrong_type(allowed: Allowed) -> &'static str {
    match allowed {
        Allowed::Duration(..) => "a duration is text with a unit (us, ms, s), such as \"200us\"",
        Allowed::Size(..) => "a size is text with a unit (B, KiB, MiB, GiB), such as \"64MiB\"",
        Allowed::Count(..) => "a count is a whole number without quotes",
        Allowed::Bool => "a switch is `true` or `false` without quotes",
        Allowed::Address => "an address is text in quotes: a host's number and a port",
        Allowed::OneOf(_) => "this is a choice, written as text in quotes",
    }
}

/// Checks the relations between keys that are each within their own range.
pub(super) fn across(config: &Config) -> Result<(), ConfigError> {
    elections(config)?;
    windows(config)?;
    queues(config)?;
    wal(config)?;
    transport(config)
}

fn elections(config: &Config) -> Result<(), ConfigError> {
    let (min, max) = (config.election.timeout_min, config.election.timeout_max);
    require(
        min < max,
        "election.timeout_max",
        "election.timeout_min",
        || {
            format!(
                "{} is not longer than {}, and without a spread between them candidates campaign at \
             the same moment and split the vote",
                units::duration_text(max),
                units::duration_text(min),
            )
        },
    )?;
    let beat = config.liveness.beat_interval;
    require(
        beat * 3 <= min,
        "liveness.beat_interval",
        "election.timeout_min",
        || {
            format!(
                "three beats of {} take longer than {}, so that two lost datagrams would make a \
                 live node count as silent",
                units::duration_text(beat),
                units::duration_text(min),
            )
        },
    )
}

fn windows(config: &Config) -> Result<(), ConfigError> {
    let replication = &config.replication;
    at_least(
        ("replication.inflight_bytes", replication.inflight_bytes),
        ("replication.max_append_bytes", replication.max_append_bytes),
        "one append must fit into the window",
    )?;
    let (window, append) = (replication.inflight_entries, replication.max_append_entries);
    require(
        window >= append,
        "replication.inflight_entries",
        "replication.max_append_entries",
        || format!("{window} is less than {append}, and one append must fit into the window"),
    )
}

fn queues(config: &Config) -> Result<(), ConfigError> {
    let proposal = ("batch.max_proposal_bytes", config.batch.max_proposal_bytes);
    at_least(
        ("shards.group_bytes", config.shards.group_bytes),
        proposal,
        "the largest proposal must fit into its group's queue",
    )?;
    at_least(
        ("shards.inbox_bytes", config.shards.inbox_bytes),
        ("shards.group_bytes", config.shards.group_bytes),
        "the inbox of a shard holds the queues of its groups",
    )?;
    at_least(
        ("shards.inbox_bytes", config.shards.inbox_bytes),
        (
            "transport.max_frame_bytes",
            config.transport.max_frame_bytes,
        ),
        "the largest frame must fit into the inbox of a shard",
    )?;
    at_least(
        ("apply.queue_bytes", config.apply.queue_bytes),
        proposal,
        "the largest proposal must fit into the apply queue",
    )
}

fn wal(config: &Config) -> Result<(), ConfigError> {
    let wal = &config.wal;
    let batch = ("wal.max_batch_bytes", wal.max_batch_bytes);
    let segment = ("wal.segment_bytes", wal.segment_bytes);
    let proposal = ("batch.max_proposal_bytes", config.batch.max_proposal_bytes);
    holds(batch, proposal, "a proposal is written within one batch")?;
    let append = (
        "replication.max_append_bytes",
        config.replication.max_append_bytes,
    );
    holds(
        batch,
        append,
        "the entries of an append are written within one batch",
    )?;
    holds(segment, batch, "a batch is written within one segment")?;
    at_least(
        ("wal.max_pending_bytes", wal.max_pending_bytes),
        batch,
        "a full batch must be able to wait while the one before it is written",
    )?;
    at_least(
        ("wal.checkpoint_bytes", wal.checkpoint_bytes),
        segment,
        "full segments are recycled behind a checkpoint",
    )?;
    [segment, batch].into_iter().try_for_each(whole_pages)?;
    require(
        !wal.direct_io || wal.mode == WalMode::Direct,
        "wal.direct_io",
        "wal.mode",
        || {
            "a mapping goes through the page cache, which `direct_io` is meant to pass by"
                .to_owned()
        },
    )?;
    for (key, limit) in [
        ("wal.inline_sync", wal.inline_sync),
        ("apply.inline", config.apply.inline),
    ] {
        require(
            limit.is_zero() || config.shards.count == 1,
            key,
            "shards.count",
            || {
                "while one of several shards waits, the others would keep its groups from electing leaders".to_owned()
            },
        )?;
    }
    let (shards, lanes) = (config.shards.count, wal.lanes);
    require(shards % lanes == 0, "wal.lanes", "shards.count", || {
        format!(
            "{shards} shards cannot be shared out evenly over {lanes} lanes, and each shard writes \
             to exactly one"
        )
    })
}

fn transport(config: &Config) -> Result<(), ConfigError> {
    let transport = &config.transport;
    let frame = ("transport.max_frame_bytes", transport.max_frame_bytes);
    holds(
        frame,
        ("batch.max_proposal_bytes", config.batch.max_proposal_bytes),
        "a proposal travels within one frame",
    )?;
    holds(
        frame,
        (
            "replication.max_append_bytes",
            config.replication.max_append_bytes,
        ),
        "an append travels within one frame",
    )?;
    at_least(
        ("transport.queue_bytes", transport.queue_bytes),
        frame,
        "the largest frame must fit into the queue",
    )?;
    let (keep, idle) = (transport.keep_alive, transport.idle_timeout);
    require(
        keep * 2 <= idle,
        "transport.keep_alive",
        "transport.idle_timeout",
        || {
            format!(
                "two intervals of {} take longer than {}, so that one lost packet would close a \
                 quiet connection",
                units::duration_text(keep),
                units::duration_text(idle),
            )
        },
    )?;
    let (min, max) = (transport.backoff_min, transport.backoff_max);
    require(
        min <= max,
        "transport.backoff_max",
        "transport.backoff_min",
        || {
            format!(
                "{} is shorter than {}, where the wait begins",
                units::duration_text(max),
                units::duration_text(min),
            )
        },
    )
}

type NamedSize = (&'static str, ByteSize);

fn whole_pages((key, size): NamedSize) -> Result<(), ConfigError> {
    match size.as_u64().is_multiple_of(PAGE) {
        true => Ok(()),
        false => Err(ConfigError::Value {
            key: key.to_owned(),
            value: format!("{:?}", units::size_text(size)),
            problem: "not a multiple of the page size".to_owned(),
            allowed: "a whole number of pages of 4KiB".to_owned(),
        }),
    }
}

/// The first must be no smaller than the second.
fn at_least(outer: NamedSize, inner: NamedSize, why: &str) -> Result<(), ConfigError> {
    require(outer.1 >= inner.1, outer.0, inner.0, || {
        let [outer, inner] = [outer, inner].map(|(_, size)| units::size_text(size));
        format!("{outer} is less than {inner}, and {why}")
    })
}

/// The first must hold the second together with its headers.
fn holds(outer: NamedSize, inner: NamedSize, why: &str) -> Result<(), ConfigError> {
    require(outer.1 >= inner.1 + HEADERS, outer.0, inner.0, || {
        let [outer, inner] = [outer, inner].map(|(_, size)| units::size_text(size));
        format!("{outer} does not hold {inner} and 4KiB for headers, and {why}")
    })
}

fn require(
    holds: bool,
    key: &'static str,
    other: &'static str,
    problem: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    match holds {
        true => Ok(()),
        false => Err(ConfigError::Conflict {
            key,
            other,
            problem: problem(),
        }),
    }
}

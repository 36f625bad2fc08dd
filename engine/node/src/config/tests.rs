//! What a configuration accepts, what it refuses and in which words, and that the documentation
//! says the same as the code.

use std::time::Duration;

use super::{keys::KEYS, *};

const SECTIONS_SOURCE: &str = include_str!("sections.rs");
const MANUAL: &str = include_str!("../../../../docs/configuration.md");

fn refusal(text: &str) -> String {
    Config::from_toml_str(text)
        .expect_err("this configuration must be refused")
        .to_string()
}

/// The default of a key as it is written in TOML, without the quotes of a duration or a size.
fn default_text(key: &keys::Key) -> String {
    let table = Config::default().to_table();
    let value = &table[key.section][key.name];
    match (key.allowed, value.as_str()) {
        (keys::Allowed::OneOf(_) | keys::Allowed::Address, _) | (_, None) => value.to_string(),
        (_, Some(text)) => text.to_owned(),
    }
}

#[test]
fn default_is_valid_and_equals_an_empty_file() {
    Config::default().validate().unwrap();
    assert_eq!(Config::from_toml_str("").unwrap(), Config::default());
    assert_eq!(Config::from_toml_str("[wal]\n").unwrap(), Config::default());
}

#[test]
fn every_field_has_a_key_and_every_key_a_field() {
    let table = Config::default().to_table();
    let mut fields: Vec<String> = table
        .iter()
        .flat_map(|(section, keys)| {
            let names = keys.as_table().unwrap().keys();
            names.map(move |name| format!("{section}.{name}"))
        })
        .collect();
    let mut keys: Vec<String> = KEYS.iter().map(keys::Key::path).collect();
    fields.sort();
    keys.sort();
    assert_eq!(fields, keys);
}

#[test]
fn default_survives_a_round_trip() {
    let text = Config::default().to_toml_string();
    assert_eq!(Config::from_toml_str(&text).unwrap(), Config::default());
}

#[test]
fn odd_values_survive_a_round_trip() {
    let mut config = Config::default();
    config.liveness.beat_interval = Duration::from_micros(10_001);
    config.batch.turn_wait = Duration::from_nanos(1_234);
    config.batch.max_proposal_bytes = ByteSize::b(100_001);
    config.wal.mode = WalMode::Mapped;
    config.wal.min_free_bytes = ByteSize::b(0);
    config.shards.count = 0;
    config.metrics.listen = Some(([127, 0, 0, 1], 9464).into());
    let text = config.to_toml_string();
    assert!(text.contains("beat_interval = \"10001us\""), "{text}");
    assert_eq!(Config::from_toml_str(&text).unwrap(), config);
}

#[test]
fn units_are_read() {
    let config = Config::from_toml_str(
        "[batch]\nturn_wait = '200us'\nmax_proposal_bytes = '512 KiB'\n[shards]\nproposal_timeout = '1m'",
    )
    .unwrap();
    assert_eq!(config.batch.turn_wait, Duration::from_micros(200));
    assert_eq!(config.batch.max_proposal_bytes, ByteSize::kib(512));
    assert_eq!(config.shards.proposal_timeout, Duration::from_secs(60));
}

#[test]
fn unknown_key_is_named_with_the_nearest_known_one() {
    assert_eq!(
        refusal("[replication]\nmax_apend_bytes = '1MiB'"),
        "unknown configuration key `replication.max_apend_bytes`; \
         did you mean `replication.max_append_bytes`?"
    );
    // The right key under the wrong heading, and without any heading.
    assert_eq!(
        refusal("[wal]\nmax_append_bytes = '1MiB'"),
        "unknown configuration key `wal.max_append_bytes`; \
         did you mean `replication.max_append_bytes`?"
    );
    assert_eq!(
        refusal("beat_interval = '25ms'"),
        "unknown configuration key `beat_interval`; did you mean `liveness.beat_interval`?"
    );
    assert_eq!(
        refusal("[transprt]\nmax_mtu = 1400"),
        "unknown configuration key `transprt`; did you mean `transport`?"
    );
}

#[test]
fn unknown_key_that_resembles_nothing_gets_no_suggestion() {
    assert_eq!(
        refusal("[wal]\ncolour = 'blue'"),
        "unknown configuration key `wal.colour`"
    );
}

#[test]
fn missing_and_bad_units_are_explained() {
    assert_eq!(
        refusal("[election]\ntimeout_min = '150'"),
        "`election.timeout_min = \"150\"`: a unit is missing; allowed is `10ms` to `60s`"
    );
    assert_eq!(
        refusal("[election]\ntimeout_min = 150"),
        "`election.timeout_min = 150`: a duration is text with a unit (us, ms, s), \
         such as \"200us\"; allowed is `10ms` to `60s`"
    );
    assert_eq!(
        refusal("[wal]\nsegment_bytes = 67108864"),
        "`wal.segment_bytes = 67108864`: a size is text with a unit (B, KiB, MiB, GiB), \
         such as \"64MiB\"; allowed is `1MiB` to `1GiB`"
    );
    let error = refusal("[wal]\nsegment_bytes = '64 parsecs'");
    assert!(
        error.starts_with("`wal.segment_bytes = \"64 parsecs\"`: "),
        "{error}"
    );
    assert!(error.ends_with("; allowed is `1MiB` to `1GiB`"), "{error}");
}

#[test]
fn an_address_has_a_port() {
    assert_eq!(
        refusal("[metrics]\nlisten = 'localhost'"),
        "`metrics.listen = \"localhost\"`: this is not an address with a port; \
         allowed is an address such as `\"127.0.0.1:9464\"`, or `\"\"`"
    );
    let config = Config::from_toml_str("[metrics]\nlisten = '[::1]:0'").unwrap();
    assert_eq!(config.metrics.listen.unwrap().to_string(), "[::1]:0");
}

#[test]
fn values_out_of_range_name_the_range() {
    assert_eq!(
        refusal("[wal]\nlanes = 0"),
        "`wal.lanes = 0`: too small; allowed is `1` to `64`"
    );
    assert_eq!(
        refusal("[transport]\nmax_mtu = 9000"),
        "`transport.max_mtu = 9000`: too large; allowed is `1200` to `6550`"
    );
    assert_eq!(
        refusal("[wal]\nmode = 'mmap'"),
        "`wal.mode = \"mmap\"`: no such choice; allowed is `\"direct\"` or `\"mapped\"`"
    );
    assert_eq!(
        refusal("[wal]\ndirect_io = 'yes'"),
        "`wal.direct_io = \"yes\"`: a switch is `true` or `false` without quotes; \
         allowed is `true` or `false`"
    );
    assert_eq!(
        refusal("wal = 3"),
        "`wal = 3`: this is the name of a section, not of a key; \
         allowed is `[wal]` on a line of its own, and its keys below"
    );
}

#[test]
fn ends_of_every_range_fit_their_field() {
    for key in KEYS {
        let keys::Allowed::Count(min, max) = key.allowed else {
            continue;
        };
        for end in [min, max] {
            let text = format!("[{}]\n{} = {end}", key.section, key.name);
            match Config::from_toml_str(&text) {
                Ok(_) | Err(ConfigError::Conflict { .. }) => {}
                Err(error) => panic!("{text}: {error}"),
            }
        }
    }
}

#[test]
fn values_set_in_code_are_checked_alike() {
    let mut config = Config::default();
    config.wal.lanes = 0;
    assert_eq!(
        config.validate().unwrap_err().to_string(),
        "`wal.lanes = 0`: too small; allowed is `1` to `64`"
    );
    let mut config = Config::default();
    config.liveness.beat_interval = Duration::MAX;
    assert!(matches!(config.validate(), Err(ConfigError::Value { .. })));
    let mut config = Config::default();
    config.shards.inbox_bytes = ByteSize::b(u64::MAX);
    assert!(matches!(config.validate(), Err(ConfigError::Value { .. })));
}

#[test]
fn keys_that_contradict_each_other_are_refused_with_the_reason() {
    let conflicts = [
        ("[election]\ntimeout_max = '150ms'", "election.timeout_max"),
        (
            "[liveness]\nbeat_interval = '51ms'",
            "liveness.beat_interval",
        ),
        (
            "[replication]\ninflight_bytes = '128KiB'",
            "replication.inflight_bytes",
        ),
        (
            "[replication]\ninflight_entries = 100",
            "replication.inflight_entries",
        ),
        ("[shards]\ngroup_bytes = '64KiB'", "shards.group_bytes"),
        ("[shards]\ngroup_bytes = '65MiB'", "shards.inbox_bytes"),
        (
            "[shards]\ninbox_bytes = '2MiB'\ngroup_bytes = '2MiB'",
            "shards.inbox_bytes",
        ),
        (
            "[batch]\nmax_proposal_bytes = '2MiB'\n[apply]\nqueue_bytes = '1MiB'",
            "apply.queue_bytes",
        ),
        ("[wal]\nmax_batch_bytes = '1MiB'", "wal.max_batch_bytes"),
        ("[wal]\nsegment_bytes = '4MiB'", "wal.segment_bytes"),
        ("[wal]\nmax_pending_bytes = '2MiB'", "wal.max_pending_bytes"),
        ("[wal]\nlanes = 2", "wal.lanes"),
        ("[wal]\ncheckpoint_bytes = '32MiB'", "wal.checkpoint_bytes"),
        ("[wal]\nmode = 'mapped'\ndirect_io = true", "wal.direct_io"),
        (
            "[wal]\ninline_sync = '1us'\n[shards]\ncount = 2",
            "wal.inline_sync",
        ),
        (
            "[apply]\ninline = '1us'\n[shards]\ncount = 0",
            "apply.inline",
        ),
        (
            "[wal]\nmax_batch_bytes = '2MiB'\n[replication]\nmax_append_bytes = '2MiB'",
            "wal.max_batch_bytes",
        ),
        (
            "[transport]\nmax_frame_bytes = '1MiB'",
            "transport.max_frame_bytes",
        ),
        (
            "[batch]\nmax_proposal_bytes = '64KiB'\n[transport]\nmax_frame_bytes = '512KiB'\n[replication]\nmax_append_bytes = '510KiB'",
            "transport.max_frame_bytes",
        ),
        ("[transport]\nqueue_bytes = '2MiB'", "transport.queue_bytes"),
        ("[transport]\nkeep_alive = '1500ms'", "transport.keep_alive"),
        ("[transport]\nbackoff_max = '5ms'", "transport.backoff_max"),
    ];
    for (text, expected) in conflicts {
        match Config::from_toml_str(text) {
            Err(ConfigError::Conflict { key, .. }) => assert_eq!(key, expected, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert_eq!(
        refusal("[liveness]\nbeat_interval = '60ms'"),
        "`liveness.beat_interval` and `election.timeout_min` do not go together: three beats of \
         60ms take longer than 150ms, so that two lost datagrams would make a live node count as \
         silent"
    );
    assert_eq!(
        refusal("[transport]\nmax_frame_bytes = '1MiB'"),
        "`transport.max_frame_bytes` and `batch.max_proposal_bytes` do not go together: 1MiB does \
         not hold 1MiB and 4KiB for headers, and a proposal travels within one frame"
    );
}

#[test]
fn segments_and_batches_are_whole_pages() {
    assert_eq!(
        refusal("[wal]\nsegment_bytes = '67108865B'"),
        "`wal.segment_bytes = \"67108865B\"`: not a multiple of the page size; \
         allowed is a whole number of pages of 4KiB"
    );
    assert_eq!(
        refusal("[wal]\nmax_batch_bytes = '2097153B'"),
        "`wal.max_batch_bytes = \"2097153B\"`: not a multiple of the page size; \
         allowed is a whole number of pages of 4KiB"
    );
}

#[test]
fn shard_count_zero_follows_the_cores_and_the_lanes() {
    let mut config = Config::default();
    assert_eq!(config.shard_count_on(64), 1);
    config.shards.count = 0;
    let counts = [1, 4, 8, 15, 16, 64].map(|cores| config.shard_count_on(cores));
    assert_eq!(counts, [1, 1, 2, 3, 4, 16]);
    config.wal.lanes = 3;
    config.validate().unwrap();
    let counts = [1, 4, 16, 64].map(|cores| config.shard_count_on(cores));
    assert_eq!(counts, [3, 3, 3, 15]);
}

#[test]
fn file_is_loaded_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    let error = Config::load(&path).unwrap_err();
    assert!(error.to_string().contains("node.toml"), "{error}");
    std::fs::write(&path, "[shards]\ncount = 4\n").unwrap();
    assert_eq!(Config::load(&path).unwrap().shards.count, 4);
    std::fs::write(&path, "[shards\n").unwrap();
    assert!(matches!(Config::load(&path), Err(ConfigError::Syntax(_))));
}

#[test]
fn rustdoc_states_what_the_code_does() {
    let fields: Vec<&str> = SECTIONS_SOURCE
        .lines()
        .filter(|line| line.trim_start().starts_with("/// Default `"))
        .map(str::trim_start)
        .collect();
    let expected: Vec<String> = KEYS
        .iter()
        .map(|key| {
            let default = default_text(key);
            let allowed = key.allowed;
            format!("/// Default `{default}`; allowed {allowed}; takes effect at restart.")
        })
        .collect();
    assert_eq!(fields, expected);
}

#[test]
fn manual_lists_every_key_with_its_default_and_range() {
    let rows: Vec<&str> = MANUAL
        .lines()
        .filter(|line| line.starts_with("| `") && line.split('|').count() == 6)
        .collect();
    assert_eq!(rows.len(), KEYS.len(), "one row per key");
    for (row, key) in rows.iter().zip(KEYS) {
        let expected = format!(
            "| `{}` | `{}` | {} | ",
            key.path(),
            default_text(key),
            key.allowed
        );
        assert!(
            row.starts_with(&expected),
            "{row}\nshould start with\n{expected}"
        );
    }
}

#[test]
fn example_of_the_manual_is_valid() {
    let example = MANUAL.split("```toml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let config = Config::from_toml_str(example).unwrap();
    assert_ne!(config, Config::default());
}

//! Why a configuration was refused. Every variant names the key and says what would be accepted.

use std::{io, path::PathBuf};

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The text is not TOML. The message shows the line.
    #[error("the configuration is not valid TOML: {0}")]
    Syntax(Box<toml::de::Error>),
    /// No such key or section.
    #[error("unknown configuration key `{key}`{}", suggest(suggestion.as_deref()))]
    UnknownKey {
        /// The full path of the key, such as `wal.segment_byte`.
        key: String,
        /// The known key that is nearest to it, if any is near.
        suggestion: Option<String>,
    },
    /// A value of the wrong type, without its unit, or out of its range.
    #[error("`{key} = {value}`: {problem}; allowed is {allowed}")]
    Value {
        /// The full path of the key.
        key: String,
        /// The value as it was written.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What would be accepted.
        allowed: String,
    },
    /// Two keys, each within its range, that do not go together.
    #[error("`{key}` and `{other}` do not go together: {problem}")]
    Conflict {
        /// The key to change first.
        key: &'static str,
        /// The key that it contradicts.
        other: &'static str,
        /// Their values, and why the engine needs the relation that they break.
        problem: String,
    },
}

impl From<toml::de::Error> for ConfigError {
    fn from(error: toml::de::Error) -> ConfigError {
        ConfigError::Syntax(Box::new(error))
    }
}

fn suggest(key: Option<&str>) -> String {
    key.map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}

//! The parameters to sweep: keys of the configuration with the values to try, read from the command line and turned into
//! whole configurations. It knows no key by name; what a key takes is learned from its default.

use anyhow::{Context, Result, bail, ensure};
use polyraft::Config;
use polyraft::config::ConfigError;
use serde::Serialize;
use toml::{Table, Value};

/// A key with the values to try, as they are written in TOML.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Param {
    /// Such as `wal.lanes`.
    pub key: String,
    /// Such as `4KiB`, `150ms`, `2` or `mapped`; two at least, no two alike.
    pub values: Vec<String>,
}

/// Which value of each parameter: one position for each; None leaves the key as it is.
pub type Point = Vec<Option<usize>>;

/// The parameters, and the configuration that they change.
#[derive(Clone, Debug)]
pub struct Space {
    base: Table,
    params: Vec<Param>,
    feasible: u64,
}

/// More values than this make a sweep of one key pointless.
const MAX_VALUES: usize = 64;
/// A space of up to so many points is looked at point by point before anything runs.
const LOOKED_AT: u64 = 4096;

impl Space {
    /// Reads parameters such as `wal.mode=direct,mapped`, `wal.max_batch_bytes=2MiB..16MiB` (powers of two) and
    /// `replication.retry_interval=50ms..400ms/4` (four values, in equal ratios). Everything else is as in `base`. An error if a
    /// value goes with no value of the other keys: whoever gives it means it to be tried.
    pub fn new(base: &Config, texts: &[String]) -> Result<Self> {
        let table = Table::try_from(base).context("a configuration has a TOML form")?;
        let mut space = Self {
            base: table,
            params: Vec::new(),
            feasible: 0,
        };
        for text in texts {
            let param = space
                .parse(text)
                .with_context(|| format!("--param {text}"))?;
            ensure!(
                space.params.iter().all(|other| other.key != param.key),
                "--param {text}: the key is given twice"
            );
            space.params.push(param);
        }
        space.feasible = space.look()?;
        Ok(space)
    }

    /// How many points have keys that go together; all where there are too many to look at each.
    pub fn feasible(&self) -> u64 {
        self.feasible
    }

    /// Counts the points whose keys go together, and refuses a value that occurs in none of them. In a space of more than
    /// [`LOOKED_AT`] points it looks at each value alone: whether that goes with the keys that are not swept.
    fn look(&self) -> Result<u64> {
        let is_small = self.size() <= LOOKED_AT;
        let points: Vec<Point> = match is_small {
            true => (0..self.size()).map(|number| self.point(number)).collect(),
            false => self.single_values(),
        };
        let is_swept = |key: &str| self.params.iter().any(|param| param.key == key);
        // For each value why it was refused so far; None once it was not.
        let unknown = |param: &Param| vec![Some(String::new()); param.values.len()];
        let mut refused: Vec<Vec<Option<String>>> = self.params.iter().map(unknown).collect();
        let mut feasible = 0;
        for point in points {
            let error = self.config(&point).err();
            feasible += u64::from(error.is_none());
            for (param, at) in point.iter().enumerate() {
                let Some(at) = at else { continue };
                let key = self.params[param].key.as_str();
                let why = &mut refused[param][*at];
                match &error {
                    None => *why = None,
                    Some(ConfigError::Conflict {
                        key: one, other, ..
                    }) if !is_small
                        && [*one, *other].iter().any(|of| *of != key && is_swept(of)) =>
                    {
                        *why = None;
                    }
                    // A reason that names the key says more than one that speaks of others.
                    Some(error) => {
                        if let Some(why) = why.as_mut().filter(|why| !why.contains(key)) {
                            *why = error.to_string();
                        }
                    }
                }
            }
        }
        for (param, refused) in self.params.iter().zip(&refused) {
            for (value, why) in param.values.iter().zip(refused) {
                if let Some(why) = why {
                    bail!(
                        "--param {}: {value} goes with none of the other values: {why}",
                        param.key
                    );
                }
            }
        }
        Ok(match is_small {
            true => feasible,
            false => self.size(),
        })
    }

    /// Each value of each parameter, the others as they are.
    fn single_values(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for (at, param) in self.params.iter().enumerate() {
            for value in 0..param.values.len() {
                let mut point = self.as_it_is();
                point[at] = Some(value);
                points.push(point);
            }
        }
        points
    }

    /// The parameters in the order in which they were given.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// How many points there are.
    pub fn size(&self) -> u64 {
        let counts = self.params.iter().map(|param| param.values.len() as u64);
        counts.fold(1, u64::saturating_mul)
    }

    /// The point with this number, `0..size`.
    pub fn point(&self, mut number: u64) -> Point {
        let digits = self.params.iter().map(|param| {
            let count = param.values.len() as u64;
            let digit = number % count;
            number /= count;
            Some(digit as usize)
        });
        digits.collect()
    }

    /// The point that changes nothing.
    pub fn as_it_is(&self) -> Point {
        vec![None; self.params.len()]
    }

    /// What the base has for each parameter.
    pub fn base_values(&self) -> Vec<String> {
        let values = self.params.iter().map(|param| {
            let value =
                split(&param.key).and_then(|(section, name)| self.base.get(section)?.get(name));
            value.map(text_of).unwrap_or_default()
        });
        values.collect()
    }

    /// The configuration at a point. An error says which keys do not go together.
    pub fn config(&self, point: &Point) -> Result<Config, ConfigError> {
        let mut table = self.base.clone();
        for (param, at) in self.params.iter().zip(point) {
            if let Some(at) = at {
                set(&mut table, &param.key, &param.values[*at]);
            }
        }
        Config::from_toml_str(&table.to_string())
    }

    /// The base with these keys in place of its own.
    pub fn pasted(&self, toml: &str) -> Result<Config> {
        let mut table = self.base.clone();
        for (section, keys) in toml.parse::<Table>()? {
            if let (Some(Value::Table(into)), Value::Table(keys)) = (table.get_mut(&section), keys)
            {
                into.extend(keys);
            }
        }
        Ok(Config::from_toml_str(&table.to_string())?)
    }

    fn parse(&self, text: &str) -> Result<Param> {
        let (key, values) = text
            .split_once('=')
            .context("write KEY=VALUE,VALUE or KEY=FROM..TO or KEY=FROM..TO/COUNT")?;
        let key = key.trim().to_owned();
        // Names the nearest key if there is no such one.
        let known = split(&key).and_then(|(section, name)| self.base.get(section)?.get(name));
        let Some(known) = known else {
            let mut table = Table::new();
            set(&mut table, &key, "0");
            let error = Config::from_toml_str(&table.to_string()).err();
            bail!(
                "{}",
                error.map_or_else(|| format!("`{key}` is no key"), |error| error.to_string())
            );
        };
        let values = match values.split_once("..") {
            Some((from, rest)) => {
                let (to, count) = match rest.split_once('/') {
                    Some((to, count)) => (
                        to,
                        Some(
                            count
                                .trim()
                                .parse()
                                .context("after / stands how many values")?,
                        ),
                    ),
                    None => (rest, None),
                };
                range(from.trim(), to.trim(), count, known)?
            }
            None => values
                .split(',')
                .map(|value| value.trim().to_owned())
                .collect(),
        };
        let mut distinct: Vec<String> = Vec::new();
        for value in values {
            if !distinct.contains(&value) {
                distinct.push(value);
            }
        }
        ensure!(
            distinct.len() >= 2,
            "give two values at least; a single one belongs into --config"
        );
        ensure!(
            distinct.len() <= MAX_VALUES,
            "{} values are too many",
            distinct.len()
        );
        for value in &distinct {
            let mut table = Table::new();
            set(&mut table, &key, value);
            match Config::from_toml_str(&table.to_string()) {
                // What does not go with a default may go with other values of the sweep.
                Ok(_) | Err(ConfigError::Conflict { .. }) => {}
                Err(error) => bail!("{error}"),
            }
        }
        Ok(Param {
            key,
            values: distinct,
        })
    }
}

fn split(key: &str) -> Option<(&str, &str)> {
    key.split_once('.')
}

fn set(table: &mut Table, key: &str, value: &str) {
    let (section, name) = split(key).unwrap_or((key, "?"));
    let section = table
        .entry(section)
        .or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        section.insert(name.to_owned(), value_of(value));
    }
}

/// A number or a truth value stays one; everything else is a text.
pub fn value_of(text: &str) -> Value {
    match (text.parse::<i64>(), text.parse::<bool>()) {
        (Ok(number), _) => Value::Integer(number),
        (_, Ok(truth)) => Value::Boolean(truth),
        _ => Value::String(text.to_owned()),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What numbers stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    Count,
    Bytes,
    Nanos,
}

const UNITS: [(&str, Unit, f64); 12] = [
    ("TiB", Unit::Bytes, (1_u64 << 40) as f64),
    ("GiB", Unit::Bytes, (1 << 30) as f64),
    ("MiB", Unit::Bytes, (1 << 20) as f64),
    ("KiB", Unit::Bytes, 1024.0),
    ("MB", Unit::Bytes, 1e6),
    ("KB", Unit::Bytes, 1e3),
    ("ms", Unit::Nanos, 1e6),
    ("us", Unit::Nanos, 1e3),
    ("ns", Unit::Nanos, 1.0),
    ("B", Unit::Bytes, 1.0),
    ("s", Unit::Nanos, 1e9),
    ("", Unit::Count, 1.0),
];

/// A number in its smallest unit.
fn number(text: &str) -> Option<(f64, Unit)> {
    UNITS.iter().find_map(|(suffix, unit, size)| {
        let digits = text.strip_suffix(suffix)?.trim();
        let number: f64 = digits.parse().ok()?;
        (number >= 0.0).then_some((number * size, *unit))
    })
}

/// Microseconds of a text such as `150ms`; None if it is no time.
pub fn micros_of(text: &str) -> Option<f64> {
    match number(text)? {
        (nanos, Unit::Nanos) => Some(nanos / 1e3),
        _ => None,
    }
}

/// A number of the smallest unit with the largest unit that divides it.
fn with_unit(number: f64, unit: Unit) -> String {
    let number = number.round() as u64;
    let fits = |size: f64| number > 0 && number.is_multiple_of(size as u64);
    let powers_of_ten = ["MB", "KB"];
    let found = UNITS
        .iter()
        .filter(|(suffix, of, _)| *of == unit && !powers_of_ten.contains(suffix))
        .filter(|(_, _, size)| fits(*size) || *size == 1.0)
        .max_by(|a, b| a.2.total_cmp(&b.2));
    match found {
        Some((suffix, _, size)) => format!("{}{suffix}", number / *size as u64),
        None => number.to_string(),
    }
}

/// The values of a range: powers of two from the first on, the last included; or `count` values in equal ratios.
fn range(from: &str, to: &str, count: Option<usize>, known: &Value) -> Result<Vec<String>> {
    let (Some((first, unit)), Some((last, last_unit))) = (number(from), number(to)) else {
        bail!(
            "`{from}..{to}` is no range of numbers; give single values, such as {}",
            text_of(known)
        );
    };
    ensure!(
        unit == last_unit,
        "`{from}` and `{to}` have different kinds of units"
    );
    ensure!(
        0.0 < first && first < last,
        "`{from}` must be above 0 and below `{to}`"
    );
    let numbers: Vec<f64> = match count {
        None => {
            let doubled = std::iter::successors(Some(first), |value| Some(value * 2.0));
            doubled
                .take_while(|value| *value < last)
                .chain([last])
                .collect()
        }
        Some(count) => {
            ensure!(
                (2..=MAX_VALUES).contains(&count),
                "give 2 to {MAX_VALUES} values"
            );
            let ratio = (last / first).powf(1.0 / (count - 1) as f64);
            let inner = (1..count - 1).map(|step| tidy(first * ratio.powi(step as i32), unit));
            [first].into_iter().chain(inner).chain([last]).collect()
        }
    };
    Ok(numbers
        .into_iter()
        .map(|value| with_unit(value, unit))
        .collect())
}

/// A value between the ends of a range, rounded to what people and disks like.
fn tidy(value: f64, unit: Unit) -> f64 {
    match unit {
        Unit::Bytes if value >= 4096.0 => (value / 4096.0).round() * 4096.0,
        Unit::Nanos if value >= 1e6 => (value / 1e5).round() * 1e5,
        Unit::Nanos => (value / 1e3).round() * 1e3,
        _ => value.round(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(texts: &[&str]) -> Result<Space, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Space::new(&Config::default(), &texts).map_err(|error| format!("{error:#}"))
    }

    fn values(text: &str) -> Vec<String> {
        let any = space(&["batch.turn_events=1,2"]).unwrap();
        any.parse(text).unwrap().values
    }

    #[test]
    fn ranges_go_in_powers_of_two_or_in_equal_ratios() {
        assert_eq!(
            values("wal.max_batch_bytes=64KiB..1MiB"),
            ["64KiB", "128KiB", "256KiB", "512KiB", "1MiB"]
        );
        assert_eq!(
            values("batch.turn_events=1000..5000"),
            ["1000", "2000", "4000", "5000"]
        );
        assert_eq!(
            values("election.timeout_min=50ms..400ms/4"),
            ["50ms", "100ms", "200ms", "400ms"]
        );
        assert_eq!(
            values("batch.turn_wait=50us..1ms"),
            ["50us", "100us", "200us", "400us", "800us", "1ms"]
        );
        let uneven = values("replication.retry_interval=10ms..20ms/3");
        assert_eq!(uneven, ["10ms", "14100us", "20ms"]);
    }

    #[test]
    fn lists_are_taken_as_they_are() {
        assert_eq!(values("wal.lanes=1,2"), ["1", "2"]);
        assert_eq!(values("wal.mode=direct, mapped"), ["direct", "mapped"]);
        assert_eq!(values("wal.direct_io=true,false"), ["true", "false"]);
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        for (text, hint) in [
            (
                "wal.max_batch_byte=1MiB,2MiB",
                "did you mean `wal.max_batch_bytes`",
            ),
            ("lanes=1,2", "unknown configuration key"),
            ("wal.lanes", "KEY=FROM..TO"),
            ("wal.lanes=1", "two values"),
            ("wal.lanes=1,1", "two values"),
            ("wal.lanes=1,99", "allowed is"),
            ("wal.mode=a..b", "no range"),
            ("wal.max_batch_bytes=1MiB..64KiB", "below"),
            ("wal.max_batch_bytes=64KiB..1s", "kinds of units"),
            ("election.timeout_min=50..100", "allowed is"),
            ("wal.max_batch_bytes=1MiB,4MiB", "batch.max_proposal_bytes"),
            ("wal.lanes=1,2", "2 goes with none of the other values"),
            ("wal.lanes=1,2", "shards.count"),
        ] {
            let error = space(&[text]).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
        let twice = space(&["wal.lanes=1,2", "wal.lanes=2,4"]).unwrap_err();
        assert!(twice.contains("twice"), "{twice}");
    }

    #[test]
    fn points_become_configurations() {
        let space = space(&[
            "shards.count=1,2",
            "wal.lanes=1,2",
            "wal.mode=direct,mapped",
        ])
        .unwrap();
        assert_eq!((space.size(), space.feasible()), (8, 6));
        let mut points: Vec<Point> = (0..8).map(|number| space.point(number)).collect();
        assert_eq!(points[0], [Some(0); 3]);
        points.sort();
        points.dedup();
        assert_eq!(points.len(), 8);
        assert_eq!(space.config(&space.as_it_is()).unwrap(), Config::default());
        let config = space.config(&vec![Some(1); 3]).unwrap();
        assert_eq!((config.shards.count, config.wal.lanes), (2, 2));
        assert_eq!(config.wal.mode, polyraft::config::WalMode::Mapped);
        // One shard cannot write to two lanes.
        assert!(matches!(
            space.config(&vec![Some(0), Some(1), None]),
            Err(ConfigError::Conflict { .. })
        ));
        assert_eq!(space.base_values(), ["1", "1", "direct"]);
    }

    #[test]
    fn in_a_large_space_each_value_is_held_against_the_keys_that_are_not_swept() {
        let many = |last: &str| {
            space(&[
                "batch.turn_events=1..1048576",
                "replication.inflight_messages=1..1024",
                "shards.count=1..64",
                "wal.lanes=1,2,4",
                last,
            ])
        };
        let fits = many("wal.max_batch_bytes=2MiB,8MiB").unwrap();
        assert!(fits.size() > LOOKED_AT);
        assert_eq!(fits.feasible(), fits.size());
        let error = many("wal.max_batch_bytes=1MiB,8MiB").unwrap_err();
        assert!(error.contains("batch.max_proposal_bytes"), "{error}");
    }

    #[test]
    fn what_is_pasted_is_held_against_the_configuration_that_it_is_pasted_into() {
        let text = "[shards]\ncount = 4\n[wal]\nlanes = 2";
        let base = Config::from_toml_str(text).unwrap();
        let space = Space::new(&base, &["batch.turn_events=1024,2048".to_owned()]).unwrap();
        let config = space.pasted("[batch]\nturn_events = 1024").unwrap();
        assert_eq!((config.shards.count, config.batch.turn_events), (4, 1024));
        let error = space.pasted("[shards]\ncount = 1").unwrap_err().to_string();
        assert!(error.contains("wal.lanes"), "{error}");
    }
}

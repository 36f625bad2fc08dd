//! One row per second, and one for the drain, as CSV, for spreadsheets and plotting tools.

use super::measure::Row;
use anyhow::Result;
use serde_json::Value;
use std::fmt::Write;

/// The rows as text. The columns are those of the JSON, in alphabetical order, and named in the first line.
pub fn csv(rows: &[Row]) -> Result<String> {
    let mut text = String::new();
    for row in rows {
        let Value::Object(fields) = serde_json::to_value(row)? else {
            unreachable!("a row is a structure");
        };
        if text.is_empty() {
            line(&mut text, fields.keys().map(String::as_str));
        }
        line(&mut text, fields.values().map(cell));
    }
    Ok(text)
}

/// What is not known is an empty cell.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        number => number.to_string(),
    }
}

/// Numbers, names of fields and parts of a load need no quotes.
fn line(text: &mut String, cells: impl Iterator<Item = impl AsRef<str>>) {
    for (at, cell) in cells.enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{}", cell.as_ref());
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        let row = |second| Row {
            second,
            p50_us: Some(1.5),
            ..Row::default()
        };
        let text = csv(&[row(0), row(1)]).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()));
        let column = |name| lines[0].iter().position(|cell| *cell == name).unwrap();
        assert_eq!(lines[2][column("second")], "1");
        assert_eq!(lines[2][column("p50_us")], "1.5");
        assert_eq!(lines[2][column("p99_us")], "");
        assert_eq!(lines[2][column("part")], "window");
        assert_eq!(csv(&[]).unwrap(), "");
    }
}

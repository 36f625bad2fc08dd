//! One row per second as CSV, for spreadsheets and plotting tools.

use super::measure::Row;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// Writes the rows. The columns are those of the JSON, in alphabetical order, and named in the first line.
pub fn write_csv(path: &Path, rows: &[Row]) -> Result<()> {
    std::fs::write(path, csv(rows)?)
        .with_context(|| format!("cannot write the rows to {}", path.display()))
}

fn csv(rows: &[Row]) -> Result<String> {
    let mut text = String::new();
    for row in rows {
        let Value::Object(fields) = serde_json::to_value(row)? else {
            unreachable!("a row is a structure");
        };
        if text.is_empty() {
            line(&mut text, fields.keys().map(String::as_str));
        }
        line(&mut text, fields.values().map(Value::to_string));
    }
    Ok(text)
}

/// Numbers and names of fields need no quotes.
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
            p50_us: 1.5,
            ..Row::default()
        };
        let text = csv(&[row(0), row(1)]).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()));
        let column = |name| lines[0].iter().position(|cell| *cell == name).unwrap();
        assert_eq!(lines[2][column("second")], "1");
        assert_eq!(lines[2][column("p50_us")], "1.5");
        assert_eq!(csv(&[]).unwrap(), "");
    }
}

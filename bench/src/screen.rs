//! What a command says while it runs: lines that stay, and one live line that is rewritten on a terminal and printed
//! line by line elsewhere. A reader that has gone away (`| head`) never stops it.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;

const TEMPLATE: &str = "{spinner:.cyan} {wide_msg}";

/// A command's output.
#[derive(Debug)]
pub struct Screen {
    /// Only on a terminal.
    live: Option<ProgressBar>,
}

impl Screen {
    /// Writes to the standard output.
    pub fn new() -> Self {
        let live = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            // `wide_msg` is cut at the terminal's width, so that the line can be rewritten.
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            bar
        });
        Self { live }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        let print = || {
            let _ = writeln!(std::io::stdout(), "{text}");
        };
        match &self.live {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// A step has ended well: its result stays, the live line goes.
    pub fn done(&self, what: &str, result: &str) {
        if let Some(bar) = &self.live {
            bar.set_message("");
        }
        self.line(&step_line(what, result));
    }

    /// What is going on now. Off a terminal it is printed only if `every_line` is wanted there too.
    pub fn live(&self, text: String, every_line: bool) {
        match &self.live {
            Some(bar) => {
                bar.set_message(text);
                bar.tick();
            }
            None if every_line => self.line(&text),
            None => {}
        }
    }

    /// Takes the live line away.
    pub fn clear(&self) {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
        }
    }
}

fn step_line(what: &str, result: &str) -> String {
    format!("{what:<17} {result}")
}

/// A time with three significant digits: `85 µs`, `1.72 ms`, `3.05 s`.
pub fn time(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        m if m < 999.5 => format!("{m:.0} µs"),
        m if m < 999_500.0 => format!("{} ms", three_digits(m / 1e3)),
        m => format!("{} s", three_digits(m / 1e6)),
    }
}

/// A time given in microseconds.
pub fn micros(micros: u64) -> String {
    time(Duration::from_micros(micros))
}

/// A number with three significant digits, no exponent.
pub fn three_digits(number: f64) -> String {
    match number {
        n if n < 9.995 => format!("{n:.2}"),
        n if n < 99.95 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

/// A whole number with its thousands set apart: `1,024`.
pub fn count(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// A size in binary units: `64.00 MiB`.
pub fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// Two columns between two rules.
pub fn two_columns(rows: &[(&str, String)]) -> String {
    let names = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let values = rows
        .iter()
        .map(|(_, value)| value.chars().count())
        .max()
        .unwrap_or(0);
    let rule = "─".repeat(names + values + 3);
    let mut table = format!("{rule}\n");
    for (name, value) in rows {
        table.push_str(&format!("{name:<names$}   {value}\n"));
    }
    table.push_str(&rule);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_and_have_units() {
        assert_eq!(micros(85), "85 µs");
        assert_eq!(micros(1_720), "1.72 ms");
        assert_eq!(micros(17_200), "17.2 ms");
        assert_eq!(micros(172_000), "172 ms");
        assert_eq!(micros(999_900), "1.00 s");
        assert_eq!(micros(3_050_000), "3.05 s");
    }

    #[test]
    fn the_template_of_the_live_line_parses() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}

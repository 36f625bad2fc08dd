//! The text that Prometheus reads: families with their help, kind and values.
//! It must never write a family twice or a value outside of one.

use std::fmt::Write;

use polyraft_storage::Histogram;

/// The page as far as it is written.
#[derive(Debug, Default)]
pub(super) struct Text {
    out: String,
}

/// Which buckets of a histogram are shown: powers of two from `least` to `most`. Smaller values count in the first,
/// larger ones above the last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    least: u64,
    most: u64,
}

impl Range {
    /// Microseconds: 16 µs to 17 s.
    pub(super) const DELAYS: Range = Range::new(4, 24);
    /// 1 to 65,536.
    pub(super) const COUNTS: Range = Range::new(0, 16);
    /// 4 KiB to 64 MiB.
    pub(super) const BYTES: Range = Range::new(12, 26);

    const fn new(least: u32, most: u32) -> Range {
        Range {
            least: 1 << least,
            most: 1 << most,
        }
    }
}

/// Where the values of a gauge or a counter go.
pub(super) struct Values<'a> {
    out: &'a mut String,
    name: &'static str,
}

/// Where the histograms of a family go.
pub(super) struct Distributions<'a>(Values<'a>);

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Starts a family of values that go up and down.
    pub(super) fn gauge(&mut self, name: &'static str, help: &str) -> Values<'_> {
        self.family(name, "gauge", help)
    }

    /// Starts a family of values that only grow.
    pub(super) fn counter(&mut self, name: &'static str, help: &str) -> Values<'_> {
        debug_assert!(name.ends_with("_total"), "{name} is a counter");
        self.family(name, "counter", help)
    }

    /// Starts a family of distributions.
    pub(super) fn histogram(&mut self, name: &'static str, help: &str) -> Distributions<'_> {
        Distributions(self.family(name, "histogram", help))
    }

    /// The whole page.
    pub(super) fn finish(self) -> String {
        self.out
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Values<'_> {
        write(&mut self.out, format_args!("# HELP {name} {help}\n"));
        write(&mut self.out, format_args!("# TYPE {name} {kind}\n"));
        Values {
            out: &mut self.out,
            name,
        }
    }
}

impl Values<'_> {
    pub(super) fn value(&mut self, labels: Labels<'_>, value: u64) {
        self.put("", labels, None, format_args!("{value}"));
    }

    /// A value in microseconds, shown in seconds.
    pub(super) fn seconds(&mut self, labels: Labels<'_>, micros: u64) {
        self.put("", labels, None, format_args!("{}", in_seconds(micros)));
    }

    fn put(
        &mut self,
        suffix: &str,
        labels: Labels<'_>,
        bound: Option<&str>,
        value: std::fmt::Arguments<'_>,
    ) {
        write(self.out, format_args!("{}{suffix}", self.name));
        let mut opening = '{';
        let bound = bound.map(|bound| ("le", bound));
        for (key, text) in labels.iter().copied().chain(bound) {
            write(self.out, format_args!("{opening}{key}=\"{text}\""));
            opening = ',';
        }
        if opening == ',' {
            self.out.push('}');
        }
        write(self.out, format_args!(" {value}\n"));
    }
}

impl Distributions<'_> {
    /// A distribution of plain numbers.
    pub(super) fn values(&mut self, labels: Labels<'_>, range: Range, seen: &Histogram) {
        let sum = seen.sum();
        self.put(
            labels,
            range,
            seen,
            |value| value.to_string(),
            sum.to_string(),
        );
    }

    /// A distribution of microseconds, shown in seconds.
    pub(super) fn seconds(&mut self, labels: Labels<'_>, range: Range, seen: &Histogram) {
        let text = |micros| in_seconds(micros).to_string();
        self.put(labels, range, seen, text, text(seen.sum()));
    }

    fn put(
        &mut self,
        labels: Labels<'_>,
        range: Range,
        seen: &Histogram,
        text: impl Fn(u64) -> String,
        sum: String,
    ) {
        let shown = |bound: u64| (range.least..=range.most).contains(&bound);
        for (bound, count) in seen.cumulative().filter(|(bound, _)| shown(*bound)) {
            let value = format_args!("{count}");
            self.0.put("_bucket", labels, Some(&text(bound)), value);
        }
        let count = seen.count();
        self.0
            .put("_bucket", labels, Some("+Inf"), format_args!("{count}"));
        self.0.put("_sum", labels, None, format_args!("{sum}"));
        self.0.put("_count", labels, None, format_args!("{count}"));
    }
}

fn in_seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn write(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyraft_storage::Recorder;

    #[test]
    fn a_histogram_has_cumulative_buckets_sum_and_count() {
        let delays = Recorder::default();
        for micros in [3, 16, 17, 100_000_000] {
            delays.record(micros);
        }
        let mut text = Text::default();
        text.histogram("delay_seconds", "A delay.").seconds(
            &[("stage", "append")],
            Range::new(4, 6),
            &delays.snapshot(),
        );
        assert_eq!(
            text.finish(),
            "# HELP delay_seconds A delay.\n\
             # TYPE delay_seconds histogram\n\
             delay_seconds_bucket{stage=\"append\",le=\"0.000016\"} 2\n\
             delay_seconds_bucket{stage=\"append\",le=\"0.000032\"} 3\n\
             delay_seconds_bucket{stage=\"append\",le=\"0.000064\"} 3\n\
             delay_seconds_bucket{stage=\"append\",le=\"+Inf\"} 4\n\
             delay_seconds_sum{stage=\"append\"} 100.000036\n\
             delay_seconds_count{stage=\"append\"} 4\n"
        );
    }
}

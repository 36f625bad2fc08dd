//! What a few values say of many: means, spreads, and what chance does.

/// Student's t by degrees of freedom: by chance it is beyond the second figure five times in a hundred, above or below, and
/// beyond the third one once.
const STUDENT: [(usize, f64, f64); 15] = [
    (1, 12.706, 63.657),
    (2, 4.303, 9.925),
    (3, 3.182, 5.841),
    (4, 2.776, 4.604),
    (5, 2.571, 4.032),
    (6, 2.447, 3.707),
    (7, 2.365, 3.499),
    (8, 2.306, 3.355),
    (9, 2.262, 3.250),
    (10, 2.228, 3.169),
    (12, 2.179, 3.055),
    (15, 2.131, 2.947),
    (20, 2.086, 2.845),
    (30, 2.042, 2.750),
    (60, 2.000, 2.660),
];

/// The row for at most so many degrees of freedom: between two rows that of the wider spread. None of 0.
fn student(freedom: usize) -> Option<&'static (usize, f64, f64)> {
    STUDENT.iter().rev().find(|(least, ..)| *least <= freedom)
}

/// What Student's t exceeds by chance five times in a hundred, above or below; infinite with 0 degrees of freedom.
pub fn t95(freedom: usize) -> f64 {
    student(freedom).map_or(f64::INFINITY, |(_, t, _)| *t)
}

/// What Student's t exceeds by chance once in a hundred times, above or below; infinite with 0 degrees of freedom.
pub fn t99(freedom: usize) -> f64 {
    student(freedom).map_or(f64::INFINITY, |(.., t)| *t)
}

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    match values.len() {
        0 => 0.0,
        count => values.iter().sum::<f64>() / count as f64,
    }
}

/// The variance that a sample says its source has; 0 of fewer than two values.
pub fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    match values.len() {
        0 | 1 => 0.0,
        count => squares / (count - 1) as f64,
    }
}

/// Standard deviation of a sample in percent of its mean; 0 if that is 0.
pub fn spread_percent(values: &[f64]) -> f64 {
    match mean(values) {
        0.0 => 0.0,
        mean => 100.0 * variance(values).sqrt() / mean,
    }
}

/// Half the width of the 95 % confidence interval of the mean; infinite for a single value.
pub fn half_width(values: &[f64]) -> f64 {
    match values.len() {
        0 | 1 => f64::INFINITY,
        count => t95(count - 1) * (variance(values) / count as f64).sqrt(),
    }
}

/// Whether the means of two lists differ by more than their confidence intervals allow for (Welch).
pub fn differ(a: &[f64], b: &[f64]) -> bool {
    (mean(a) - mean(b)).abs() > half_width(a).hypot(half_width(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_tables() {
        assert_eq!(half_width(&[5.0]), f64::INFINITY);
        // Mean 3, standard deviation sqrt(2.5), n = 5, t = 2.776.
        let width = half_width(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!((width - 1.963).abs() < 0.001, "{width}");
        assert_eq!(half_width(&[2.0, 2.0, 2.0]), 0.0);
    }

    #[test]
    fn chance_does_less_the_more_is_known() {
        assert_eq!((t95(0), t99(0)), (f64::INFINITY, f64::INFINITY));
        assert_eq!((t95(4), t99(4)), (2.776, 4.604));
        assert_eq!(t95(11), t95(10));
        assert_eq!(t99(1000), t99(60));
        assert!((1..100).all(|freedom| t95(freedom + 1) <= t95(freedom)));
        assert!((1..100).all(|freedom| t95(freedom) < t99(freedom)));
    }

    #[test]
    fn only_clear_differences_count() {
        assert!(differ(&[10.0, 10.1, 9.9], &[12.0, 12.1, 11.9]));
        assert!(!differ(&[10.0, 12.0, 8.0], &[11.0, 13.0, 9.0]));
        assert!(!differ(&[10.0], &[99.0]), "one run says nothing of noise");
    }

    #[test]
    fn the_spread_is_that_of_a_sample() {
        assert_eq!(spread_percent(&[]), 0.0);
        assert_eq!(spread_percent(&[5.0]), 0.0);
        assert_eq!(spread_percent(&[0.0, 0.0]), 0.0);
        // The variance of 90, 100, 110 is 200 / 2.
        assert!((spread_percent(&[90.0, 100.0, 110.0]) - 10.0).abs() < 1e-9);
    }
}

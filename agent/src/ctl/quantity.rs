//! Numbers as people read them: `2 h 5 min`, `1.2 kB/s`. Pure, and the same in every locale.

use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A time in its two largest units, rounded down to the second; below zero or not a number: `0 s`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let pair = |large: u64, large_name: &str, small: u64, small_name: &str| match whole % large / small {
        0 => format!("{} {large_name}", whole / large),
        rest => format!("{} {large_name} {rest} {small_name}", whole / large),
    };
    match whole {
        0..MINUTE => format!("{whole} s"),
        MINUTE..HOUR => pair(MINUTE, "min", 1, "s"),
        HOUR..DAY => pair(HOUR, "h", MINUTE, "min"),
        DAY.. => pair(DAY, "d", HOUR, "h"),
    }
}

/// Bytes in decimal units (1 kB is 1000 bytes), one decimal above a kilobyte.
pub(super) fn bytes(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes.is_nan() || bytes < 999.5 {
        return format!("{:.0} B", bytes.max(0.0));
    }
    let mut scaled = bytes / 1000.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        // What would be rounded to 1000.0.
        if scaled < 999.95 {
            break;
        }
        scaled /= 1000.0;
        unit = larger;
    }
    format!("{scaled:.1} {unit}")
}

/// Bytes per second.
pub(super) fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", bytes(bytes_per_s))
}

/// A measured value with the unit of a report.
pub(super) fn measured(value: f64, unit: Option<&str>) -> String {
    match unit {
        Some("B/s") => rate(value),
        Some("s") => duration(value),
        Some("%") => format!("{value:.1} %"),
        Some(unit) => format!("{} {unit}", plain(value)),
        None => plain(value),
    }
}

/// Without a decimal that says nothing.
fn plain(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// `1 session`, `2 sessions`.
pub(super) fn counted(count: u64, thing: &str) -> String {
    match count {
        1 => format!("1 {thing}"),
        _ => format!("{count} {thing}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::{bytes, counted, duration, measured, rate};

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (59.99, "59 s"),
            (60.0, "1 min"),
            (725.0, "12 min 5 s"),
            (3600.0, "1 h"),
            (7500.0, "2 h 5 min"),
            (86_399.0, "23 h 59 min"),
            (90_000.0, "1 d 1 h"),
            (2_592_000.0, "30 d"),
            (-5.0, "0 s"),
            (f64::NAN, "0 s"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn bytes_have_decimal_units() {
        for (count, text) in [
            (0.0, "0 B"),
            (-1.0, "0 B"),
            (f64::NAN, "0 B"),
            (999.0, "999 B"),
            (999.7, "1.0 kB"),
            (1234.0, "1.2 kB"),
            (999_960.0, "1.0 MB"),
            (5e9, "5.0 GB"),
            (2e24, "2000000.0 EB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(rate(1234.0), "1.2 kB/s");
    }

    #[test]
    fn values_have_their_unit() {
        assert_eq!(measured(1536.0, Some("B/s")), "1.5 kB/s");
        assert_eq!(measured(12.34, Some("%")), "12.3 %");
        assert_eq!(measured(3.0, Some("sessions")), "3 sessions");
        assert_eq!(measured(2.5, None), "2.5");
        assert_eq!(counted(1, "session"), "1 session");
        assert_eq!(counted(0, "session"), "0 sessions");
    }
}

//! Durations as flags take them, and durations and times as the output shows them.

use std::{
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use prost_types::Timestamp;

/// The time between two looks at a gateway.
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

/// Reads a duration as the configuration does: `500ms`, `10s`, `5m`, `1h30m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = trunkline::config::parse_duration(text);
    duration.ok_or_else(|| "must be like 500ms, 10s, 5m or 1h30m".into())
}

/// Reads the time between two looks at a gateway.
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    let is_one = INTERVALS.contains(&duration);
    is_one.then_some(duration).ok_or_else(|| "must be 100ms to 1h".into())
}

/// The two largest units: `3d4h`, `5m12s`, `7.5s`.
pub(super) fn two_units(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// The time since then, in its two largest units.
pub(super) fn since(time: Option<Timestamp>) -> String {
    let time = time.and_then(|time| SystemTime::try_from(time).ok());
    // Zero if this machine's clock is behind that of the gateway.
    time.map_or_else(String::new, |time| two_units(time.elapsed().unwrap_or_default()))
}

/// A time to the second: `2026-11-30T00:53:20Z`.
pub(super) fn second(time: Timestamp) -> String {
    Timestamp { nanos: 0, ..time }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_a_unit() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(parse_duration("10").is_err());
        assert!(parse_duration("s").is_err());
    }

    #[test]
    fn an_interval_has_limits() {
        assert_eq!(parse_interval("2s"), Ok(Duration::from_secs(2)));
        for wrong in ["99ms", "61m", "2"] {
            assert!(parse_interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_duration_is_shown_in_its_two_largest_units() {
        let shown = [0, 7_500, 312_000, 7_380_000, 273_600_000]
            .map(|ms| two_units(Duration::from_millis(ms)));
        assert_eq!(shown, ["0.0s", "7.5s", "5m12s", "2h3m", "3d4h"]);
    }
}

//! Durations as flags take them, and as the output shows them.

use std::time::Duration;

/// Reads a duration as the configuration does: `500ms`, `10s`, `5m`, `1h30m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = trunkline::config::parse_duration(text);
    duration.ok_or_else(|| "must be like 500ms, 10s, 5m or 1h30m".into())
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
    fn a_duration_is_shown_in_its_two_largest_units() {
        let shown = [0, 7_500, 312_000, 7_380_000, 273_600_000]
            .map(|ms| two_units(Duration::from_millis(ms)));
        assert_eq!(shown, ["0.0s", "7.5s", "5m12s", "2h3m", "3d4h"]);
    }
}

//! Durations and sizes as text, and the constants that declarations use.

use std::time::Duration;

pub(super) const MILLISECOND: u64 = 1;
pub(super) const SECOND: u64 = 1000 * MILLISECOND;
pub(super) const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Units of time in milliseconds, the largest first.
const TIMES: [(&str, u64); 5] =
    [("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", MILLISECOND)];

/// Units of size in bytes that Trunkline writes, the largest first.
const BINARY: [(&str, u64); 4] = [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];

/// Units of size that are accepted too.
const DECIMAL: [(&str, u64); 5] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1000), ("B", 1)];

/// The duration that `text` names: numbers with units, the larger unit first (`10s`, `500ms`,
/// `1h30m`). None if it is not a duration, or more than 2^64 milliseconds.
///
/// Stricter than humantime, which accepts `10 s`, `1w`, `1month` and units in any order: whatever
/// is accepted once has to be accepted for ever.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0_u64;
    let mut allowed = &TIMES[..];
    while !rest.is_empty() {
        let (number, after) = split_number(rest)?;
        // A unit ends where the next number begins.
        let (unit, after) =
            after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let index = allowed.iter().position(|(name, _)| *name == unit)?;
        total = total.checked_add(number.checked_mul(allowed[index].1)?)?;
        allowed = &allowed[index + 1..];
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_millis(total))
}

/// The shortest form of `duration`, to the millisecond.
pub(crate) fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let whole = TIMES.iter().find(|(_, length)| millis.is_multiple_of(*length));
    let (unit, length) = whole.unwrap_or(&("ms", 1));
    format!("{}{unit}", millis / length)
}

/// The number of bytes that `text` names: a whole number with a unit (`64MiB`), upper or lower
/// case. None if it is not a size, or more than 2^64 bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let mut units = BINARY.iter().chain(&DECIMAL);
    let (_, length) = units.find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*length)
}

/// The shortest form of `bytes`.
pub(super) fn format_size(bytes: u64) -> String {
    match BINARY.iter().find(|(_, length)| bytes > 0 && bytes.is_multiple_of(*length)) {
        Some((unit, length)) => format!("{}{unit}", bytes / length),
        None => format!("{bytes}B"),
    }
}

/// The number at the beginning of `text`, and the rest.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let (number, rest) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        let millis = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(millis("500ms"), Some(500));
        assert_eq!(millis("10s"), Some(10_000));
        assert_eq!(millis("5m"), Some(300_000));
        assert_eq!(millis("1h"), Some(3_600_000));
        assert_eq!(millis("1d"), Some(86_400_000));
        assert_eq!(millis("1h30m"), Some(5_400_000));
        assert_eq!(millis("1m1ms"), Some(60_001));
        assert_eq!(millis("0s"), Some(0));
        for wrong in [
            "",
            "10",
            "s",
            "10 s",
            "-1s",
            "1.5s",
            "10S",
            "30m1h",
            "1s1s",
            "1w",
            "99999999999999d",
            "10s ",
        ] {
            assert_eq!(millis(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn sizes_are_numbers_with_units() {
        assert_eq!(parse_size("64MiB"), Some(64 << 20));
        assert_eq!(parse_size("64mib"), Some(64 << 20));
        assert_eq!(parse_size("1TiB"), Some(1 << 40));
        assert_eq!(parse_size("2GB"), Some(2_000_000_000));
        assert_eq!(parse_size("100B"), Some(100));
        for wrong in ["", "64", "MiB", "64 MiB", "-1KiB", "1.5MiB", "64M", "99999999TiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_shortest_form_is_written() {
        assert_eq!(format_duration(Duration::from_secs(90)), "90s");
        assert_eq!(format_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(format_duration(Duration::from_hours(2)), "2h");
        assert_eq!(format_duration(Duration::ZERO), "0s");
        assert_eq!(format_size(64 << 20), "64MiB");
        assert_eq!(format_size(1025), "1025B");
        assert_eq!(format_size(0), "0B");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC*") {
            let _ = (parse_duration(&text), parse_size(&text));
        }

        #[test]
        fn no_near_miss_makes_the_parsers_panic(
            text in "([0-9]{0,30}(d|h|m|s|ms|MiB|TiB|kb|B|é)?){0,4}",
        ) {
            let _ = (parse_duration(&text), parse_size(&text));
        }

        #[test]
        fn formatted_durations_and_sizes_parse_to_the_same(millis: u64, bytes: u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
            prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }
    }
}

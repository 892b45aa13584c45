//! The recurrence of a calendar event: seconds since 1970 without a time zone here, the format of
//! iCalendar's RECURRENCE-ID on the wire of Trunkline. 0 is none, as an empty text is.

const DAY: i64 = 86_400;

/// The recurrence as text: `20261129T072814`; years that do not have four digits as a number.
pub(super) fn to_text(seconds: i64) -> String {
    if seconds == 0 {
        return String::new();
    }
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let Some((year, month, day)) = date_of(days) else { return seconds.to_string() };
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{:02}", second % 60)
}

/// The recurrence of a text: date and time, a date alone, or a number. A time of UTC is taken as
/// one without a time zone.
pub(super) fn from_text(text: &str) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    let number = |text: &str| super::names::decimal::<i64>(text);
    let (date, time) = text.split_once('T').unwrap_or((text, "000000"));
    let time = time.strip_suffix('Z').unwrap_or(time);
    if date.len() == 8 && time.len() == 6 && text.is_ascii() {
        let (year, month, day) = (number(&date[..4])?, number(&date[4..6])?, number(&date[6..])?);
        let (hour, minute, second) =
            (number(&time[..2])?, number(&time[2..4])?, number(&time[4..])?);
        let days = days_of(year, month, day);
        // 31 February is another day.
        if date_of(days) != Some((year, month, day)) || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        return Some(days * DAY + hour * 3600 + minute * 60 + second);
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Days since 1970 of a date. Years begin in March here, so that the day that comes every four
/// years is the last one, and months 3 to 14 have 153 days in five.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month < 3 { (year - 1, month + 12) } else { (year, month) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let before = (153 * (month - 3) + 2) / 5;
    // 1 March of year 0 is this many days before 1970.
    year * 365 + leap_days + before + day - 1 - 719_468
}

/// The date of a day; `None` for one whose year does not have four digits.
fn date_of(days: i64) -> Option<(i64, i64, i64)> {
    let last = days_of(9999, 12, 31);
    if !(days_of(0, 1, 1)..=last).contains(&days) {
        return None;
    }
    // The year is this one or the one after: 400 years have 146,097 days.
    let mut year = (days + 719_468) * 400 / 146_097 - 1;
    while days_of(year + 1, 1, 1) <= days {
        year += 1;
    }
    let month = (1..=12).rev().find(|month| days_of(year, *month, 1) <= days)?;
    Some((year, month, days - days_of(year, month, 1) + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_recurrence_is_written_as_icalendar_has_it() {
        for (seconds, text) in [
            (0, ""),
            (1, "19700101T000001"),
            (1_795_937_294, "20261129T072814"),
            (951_782_400, "20000229T000000"),
            (-1, "19691231T235959"),
            (253_402_300_799, "99991231T235959"),
            (253_402_300_800, "253402300800"),
            (i64::MIN, "-9223372036854775808"),
        ] {
            assert_eq!((to_text(seconds).as_str(), from_text(text)), (text, Some(seconds)));
        }
        assert_eq!(from_text("20261129"), Some(1_795_910_400));
        assert_eq!(from_text("20261129T072814Z"), Some(1_795_937_294));
        for text in
            ["20260231T000000", "20261301", "20261129T240000", "2026-11-29", "x", "é2345678"]
        {
            assert_eq!(from_text(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_recurrence_is_read_as_it_was_written(
            seconds in prop_oneof![any::<i64>(), -70_000_000_000..260_000_000_000i64],
        ) {
            prop_assert_eq!(from_text(&to_text(seconds)), Some(seconds));
        }
    }
}

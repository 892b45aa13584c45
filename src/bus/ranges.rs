//! Sets of numbers as ascending ranges.

use std::fmt;

/// Ranges that are kept. With more, the lowest are forgotten.
const MAX_RANGES: usize = 64;

/// A set of numbers: ascending ranges that do not touch, first and last number of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Reads `first-last.first-last..`. None if it has another form.
    pub fn parse(text: &str) -> Option<Ranges> {
        let mut ranges = Ranges::default();
        for range in text.split('.').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-')?;
            ranges.add(first.parse().ok()?, last.parse().ok()?);
        }
        Some(ranges)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if the number is one of them.
    pub fn has(&self, number: u64) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= number);
        after > 0 && self.0[after - 1].1 >= number
    }

    /// Adds the numbers from `first` to `last`.
    pub fn add(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        // As a rule it follows the last one.
        let from = self.0.partition_point(|(_, end)| end.saturating_add(1) < first);
        let to = self.0.partition_point(|(start, _)| *start <= last.saturating_add(1));
        let joined = self.0[from..to]
            .iter()
            .fold((first, last), |(first, last), range| (first.min(range.0), last.max(range.1)));
        self.0.splice(from..to, [joined]);
        if self.0.len() > MAX_RANGES {
            self.0.remove(0);
        }
    }

    /// The ranges, ascending: first and last number of each.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }

    /// Adds all numbers of another set.
    pub fn add_all(&mut self, other: &Ranges) {
        other.0.iter().for_each(|(first, last)| self.add(*first, *last));
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let dot = if index == 0 { "" } else { "." };
            write!(f, "{dot}{first}-{last}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_that_touch_are_joined() {
        let mut ranges = Ranges::default();
        ranges.add(1, 3);
        ranges.add(7, 9);
        assert_eq!(ranges.to_string(), "1-3.7-9");
        ranges.add(4, 6);
        assert_eq!(ranges.to_string(), "1-9");
        assert_eq!(Ranges::parse("1-9"), Some(ranges));
        assert_eq!(Ranges::parse(""), Some(Ranges::default()));
        assert_eq!(Ranges::parse("1-x"), None);
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_added(
            adds in prop::collection::vec((0u64..200, 0u64..10), 0..40),
        ) {
            let mut ranges = Ranges::default();
            let mut set = BTreeSet::new();
            for (first, count) in adds {
                ranges.add(first, first + count);
                set.extend(first..=first + count);
            }
            for number in 0..220 {
                prop_assert_eq!(ranges.has(number), set.contains(&number));
            }
            prop_assert_eq!(Ranges::parse(&ranges.to_string()), Some(ranges));
        }
    }
}

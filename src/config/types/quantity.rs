//! Numbers, sizes and durations: whole numbers of a unit, with a least and a most.

use std::{marker::PhantomData, ops::RangeInclusive, time::Duration};

use serde_json::{Value, json};

use super::{ValueType, unreadable};
use crate::config::{
    error::{Problem, mismatch},
    fields::Found,
    units::{format_duration, format_size, parse_duration, parse_size},
};

/// A whole number of a unit.
pub(in crate::config) struct Quantity<T> {
    unit: Unit,
    range: RangeInclusive<u64>,
    of: PhantomData<T>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    One,
    Byte,
    Millisecond,
}

/// A Rust type that holds a quantity.
pub(in crate::config) trait Amount {
    /// `units` as this type; the largest that it has where `units` does not fit.
    fn from_units(units: u64) -> Self;
    fn to_units(&self) -> u64;
}

/// A number.
pub(in crate::config) fn number<T>(range: RangeInclusive<u64>) -> Quantity<T> {
    Quantity { unit: Unit::One, range, of: PhantomData }
}

/// A number of bytes.
pub(in crate::config) fn size<T>(range: RangeInclusive<u64>) -> Quantity<T> {
    Quantity { unit: Unit::Byte, range, of: PhantomData }
}

/// A duration; `range` and default are in milliseconds.
pub(in crate::config) fn duration(range: RangeInclusive<u64>) -> Quantity<Duration> {
    Quantity { unit: Unit::Millisecond, range, of: PhantomData }
}

impl Unit {
    fn format(self, units: u64) -> String {
        match self {
            Unit::One => units.to_string(),
            Unit::Byte => format_size(units),
            Unit::Millisecond => format_duration(Duration::from_millis(units)),
        }
    }

    fn parse(self, text: &str) -> Option<u64> {
        match self {
            Unit::One => None,
            Unit::Byte => parse_size(text),
            Unit::Millisecond => parse_duration(text).map(|duration| duration.to_units()),
        }
    }
}

impl<T: Amount> ValueType for Quantity<T> {
    type Value = T;
    type Literal = u64;

    fn name(&self) -> &'static str {
        match self.unit {
            Unit::One => "number",
            Unit::Byte => "size",
            Unit::Millisecond => "duration",
        }
    }

    fn read(&self, found: &Found<'_>) -> Option<T> {
        let outside = |found: String| Problem::Range {
            found,
            min: self.unit.format(*self.range.start()),
            max: self.unit.format(*self.range.end()),
        };
        let units = match (found.integer(), found.value, self.unit) {
            (Some(Ok(units)), ..) => Some(Ok(units)),
            (Some(Err(other)), Value::Number(_), _) | (Some(Err(other)), _, Unit::One) => {
                Some(Err(outside(other)))
            }
            (_, Value::String(text), unit) => unit.parse(text).map(Ok),
            _ => None,
        };
        let units = units.unwrap_or_else(|| {
            Err(match self.unit {
                Unit::One => mismatch(found.value, "a whole number"),
                Unit::Byte => {
                    unreadable(found.value, "a size: bytes, or such as 64KiB, 64MiB, 1GiB")
                }
                Unit::Millisecond => unreadable(
                    found.value,
                    "a duration: milliseconds, or such as 500ms, 10s, 5m, 1h, 1d",
                ),
            })
        });
        found.or_report(units.and_then(|units| {
            let inside = self.range.contains(&units);
            inside.then(|| T::from_units(units)).ok_or_else(|| outside(self.unit.format(units)))
        }))
    }

    fn value_of(&self, literal: &u64) -> T {
        T::from_units(*literal)
    }

    fn show(&self, value: &T) -> Value {
        match self.unit {
            Unit::One => json!(value.to_units()),
            unit => json!(unit.format(value.to_units())),
        }
    }

    fn schema(&self) -> Value {
        let (min, max) = (self.range.start(), self.range.end());
        let pattern = match self.unit {
            Unit::One => {
                return json!({ "type": ["integer"], "minimum": min, "maximum": max });
            }
            Unit::Byte => "^[0-9]+([KMGTkmgt][Ii]?)?[Bb]$",
            Unit::Millisecond => "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$",
        };
        // The limits are those of numbers; strings have their form alone.
        json!({
            "type": ["string", "integer"],
            "minimum": min, "maximum": max, "minLength": 1, "pattern": pattern,
        })
    }

    fn range(&self) -> Option<String> {
        let format = |units: &u64| self.unit.format(*units);
        Some(format!("{} to {}", format(self.range.start()), format(self.range.end())))
    }
}

macro_rules! amounts {
    ($($number:ty),*) => { $(
        impl Amount for $number {
            fn from_units(units: u64) -> $number {
                <$number>::try_from(units).unwrap_or(<$number>::MAX)
            }

            fn to_units(&self) -> u64 {
                // No number type is wider than 64 bits.
                u64::try_from(*self).unwrap_or(u64::MAX)
            }
        }
    )* };
}
amounts!(u16, u32, u64, usize);

impl Amount for Duration {
    fn from_units(units: u64) -> Duration {
        Duration::from_millis(units)
    }

    fn to_units(&self) -> u64 {
        u64::try_from(self.as_millis()).unwrap_or(u64::MAX)
    }
}

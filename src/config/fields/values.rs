//! The values that a key can have: what is read as what, and what is said of the rest.

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use serde_json::Value;

use super::{Fields, Found, mismatch};
use crate::config::{
    error::{Problem, shown},
    json::join,
    keys::Kind,
    nearest::nearest,
    units::{format_duration, format_size, parse_duration, parse_size},
};

/// A float from here on (2^63) was a whole number once.
const LARGE: f64 = 9_223_372_036_854_775_808.0;

impl Fields<'_> {
    pub(in crate::config) fn optional_text(&mut self, key: &'static str) -> Option<String> {
        self.read(key, None, |found| match found.value {
            Value::String(text) => Ok(text.clone()),
            other => Err(mismatch(other, "a string")),
        })
    }

    /// A text; if there is none that is `expected` and missing.
    pub(in crate::config) fn required_text(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Option<String> {
        let text = self.optional_text(key);
        if text.is_none() && !self.has(key) {
            self.fail(key, Problem::Missing { expected: expected.to_owned() });
        }
        text
    }

    /// A text that `check` accepts, or says in words why not.
    pub(in crate::config) fn checked_text(
        &mut self,
        key: &'static str,
        check: impl FnOnce(&str) -> Result<(), Problem>,
    ) -> Option<String> {
        let text = self.optional_text(key)?;
        check(&text).map_err(|problem| self.fail(key, problem)).ok()?;
        Some(text)
    }

    pub(in crate::config) fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.optional_text(key).map(PathBuf::from)
    }

    pub(in crate::config) fn choice(
        &mut self,
        key: &'static str,
        allowed: &[&'static str],
    ) -> Option<&'static str> {
        let text = self.optional_text(key)?;
        let found = allowed.iter().find(|word| **word == text);
        if found.is_none() {
            let nearest = nearest(&text, allowed.iter().copied()).map(str::to_owned);
            let allowed = allowed.iter().map(|&word| word.to_owned()).collect();
            self.fail(key, Problem::Choice { found: shown(&text), allowed, nearest });
        }
        found.copied()
    }

    pub(in crate::config) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let read = self.read(key, None, |found| match found.value {
            Value::Bool(value) => Ok(*value),
            Value::String(text) if found.bare && text == "true" => Ok(true),
            Value::String(text) if found.bare && text == "false" => Ok(false),
            other => Err(mismatch(other, "true or false")),
        });
        read.unwrap_or(default)
    }

    pub(in crate::config) fn optional_number<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: TryFrom<u64> + PartialOrd + Display + Copy,
    {
        let out_of_range = |found: String| Problem::Range {
            found,
            least: range.start().to_string(),
            most: range.end().to_string(),
        };
        self.read(key, Some(range_text(range.start(), range.end())), |found| {
            let number = match found.integer() {
                Some(Ok(number)) => number,
                Some(Err(other)) => return Err(out_of_range(other)),
                None => return Err(mismatch(found.value, "a whole number")),
            };
            match T::try_from(number) {
                Ok(value) if range.contains(&value) => Ok(value),
                _ => Err(out_of_range(number.to_string())),
            }
        })
    }

    pub(in crate::config) fn number<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
        default: T,
    ) -> T
    where
        T: TryFrom<u64> + PartialOrd + Display + Copy,
    {
        self.optional_number(key, range).unwrap_or(default)
    }

    /// A number of bytes.
    pub(in crate::config) fn size(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let (least, most) = (format_size(*range.start()), format_size(*range.end()));
        let read = self.read(key, Some(range_text(&least, &most)), |found| {
            let size = match (found.value, found.integer()) {
                (_, Some(Ok(number))) => Some(Ok(number)),
                (Value::Number(_), Some(Err(other))) => Some(Err(other)),
                (Value::String(text), _) => parse_size(text).map(Ok),
                _ => None,
            };
            match size {
                Some(Ok(size)) if range.contains(&size) => Ok(size),
                Some(Ok(size)) => Err(Problem::Range { found: format_size(size), least, most }),
                Some(Err(found)) => Err(Problem::Range { found, least, most }),
                None => {
                    Err(unreadable(found.value, "a size: bytes, or such as 64KiB, 64MiB, 1GiB"))
                }
            }
        });
        read.unwrap_or(default)
    }

    pub(in crate::config) fn optional_duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let (least, most) = (format_duration(*range.start()), format_duration(*range.end()));
        self.read(key, Some(range_text(&least, &most)), |found| {
            let duration = match (found.value, found.integer()) {
                (_, Some(Ok(millis))) => Some(Ok(Duration::from_millis(millis))),
                (Value::Number(_), Some(Err(other))) => Some(Err(other)),
                (Value::String(text), _) => parse_duration(text).map(Ok),
                _ => None,
            };
            match duration {
                Some(Ok(duration)) if range.contains(&duration) => Ok(duration),
                Some(Ok(other)) => {
                    Err(Problem::Range { found: format_duration(other), least, most })
                }
                Some(Err(found)) => Err(Problem::Range { found, least, most }),
                None => Err(unreadable(
                    found.value,
                    "a duration: milliseconds, or such as 500ms, 10s, 5m, 1h, 1d",
                )),
            }
        })
    }

    pub(in crate::config) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        self.optional_duration(key, range).unwrap_or(default)
    }

    /// A duration for which null means that there is no limit, which is not the default.
    pub(in crate::config) fn nullable_duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        let null = self.is_null(key);
        let read = self.optional_duration(key, range);
        if null { None } else { read.or(default) }
    }

    /// An address with its port, for which null means that there is none, which is not the default.
    pub(in crate::config) fn nullable_address(
        &mut self,
        key: &'static str,
        default: Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        let null = self.is_null(key);
        let read = self.optional_address(key);
        if null { None } else { read.or(default) }
    }

    pub(in crate::config) fn optional_address(&mut self, key: &'static str) -> Option<SocketAddr> {
        self.read(key, None, |found| {
            let address = found.value.as_str().and_then(|text| text.parse().ok());
            address.ok_or_else(|| {
                unreadable(
                    found.value,
                    "an IP address with a port, such as 127.0.0.1:7420, 0.0.0.0:7420 or [::]:7420",
                )
            })
        })
    }

    /// The members of a set, each with its path: an array, or an object whose members are true. Bare text is split at commas.
    /// None if there is no set, or only broken members.
    pub(in crate::config) fn set(&mut self, key: &'static str) -> Option<Vec<(String, String)>> {
        let found = self.ask(key, Kind::Value, None)?;
        let path = join(&self.path, key);
        let mut members = Vec::new();
        let mut broken = false;
        // A member may be a URL with a password, so it is named by its place.
        let place = |index: usize| format!("{path}[{index}]");
        match found.value {
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    match value {
                        Value::String(text) => members.push((place(index), text.clone())),
                        other => {
                            broken = true;
                            self.context.report(&place(index), mismatch(other, "a string"));
                        }
                    }
                }
            }
            Value::Object(object) => {
                for (index, (member, value)) in object.iter().enumerate() {
                    match value {
                        Value::Bool(true) => members.push((place(index), member.clone())),
                        Value::Bool(false) => {}
                        other => {
                            broken = true;
                            self.context.report(&place(index), mismatch(other, "true or false"));
                        }
                    }
                }
            }
            Value::String(text) if found.bare => {
                let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
                members.extend(texts.map(|text| (path.clone(), text.to_owned())));
            }
            other => {
                let expected = "an array of strings, or an object such as {\"...\": true}";
                self.context.report(&path, mismatch(other, expected));
                return None;
            }
        }
        // Nothing is missing where something is broken.
        (!broken || !members.is_empty()).then_some(members)
    }
}

impl Found<'_> {
    /// The whole number that this is; as text if it is none that fits. None if it is no number.
    fn integer(&self) -> Option<Result<u64, String>> {
        match self.value {
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => Some(Ok(number)),
                (None, Some(negative)) => Some(Err(negative.to_string())),
                // What does not fit into 64 bits has become a float.
                (None, None) => {
                    let large = number.as_f64().is_some_and(|number| number.abs() >= LARGE);
                    large.then(|| Err(number.to_string()))
                }
            },
            Value::String(text) if self.bare => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                number.then(|| text.parse().map_err(|_| shown(text)))
            }
            _ => None,
        }
    }
}

fn range_text(least: impl Display, most: impl Display) -> String {
    format!("{least} to {most}")
}

/// A text that does not parse, or something that is no text.
fn unreadable(value: &Value, expected: &str) -> Problem {
    match value {
        Value::String(text) => Problem::Invalid(format!("{} is not {expected}", shown(text))),
        other => mismatch(other, expected),
    }
}

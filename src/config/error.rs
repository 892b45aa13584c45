//! The errors of a configuration: every violation with its path and the limit that it breaks.

use std::fmt;

use serde_json::Value;

use super::{nearest::nearest, redis_url::RedisUrlError};

/// A message repeats at most this many characters of a value.
const MAX_SHOWN: usize = 60;

/// A configuration that cannot be used. Holds every violation that was found, at least one.
///
/// Displays one violation a line. Never holds a secret: neither passwords nor URLs are repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    violations: Vec<Violation>,
}

impl ConfigErrors {
    /// `violations`, unless there are none.
    pub(super) fn of(violations: Vec<Violation>) -> Result<(), ConfigErrors> {
        if violations.is_empty() { Ok(()) } else { Err(ConfigErrors { violations }) }
    }

    /// All violations: what cannot be read first, then the keys in the order of the objects.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.violations.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{violation}")?;
        }
        Ok(())
    }
}

/// One violation. Displays as one line: the path, the source of the value if that is not the file,
/// the problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The full path of the key (`coordinator.poolMaxConnections`), the name of a file or of an
    /// environment variable. Empty for the document as a whole.
    pub path: String,
    /// The source of the value.
    pub origin: Origin,
    /// The problem with it.
    pub problem: Problem,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the configuration" } else { &self.path };
        match &self.origin {
            Origin::File => write!(f, "{path}: {}", self.problem),
            // The name of a variable may hold everything but `=`: line feeds and URLs too.
            Origin::Variable(name) => match shown_key(name) {
                name if name == self.path => write!(f, "{path}: {}", self.problem),
                name => write!(f, "{path} (from {name}): {}", self.problem),
            },
            Origin::Flag => write!(f, "{path} (from the command line): {}", self.problem),
        }
    }
}

/// The source of a value. A later one overrides an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file, or no source at all.
    #[default]
    File,
    /// The environment variable of this name.
    Variable(String),
    /// A flag of the command line.
    Flag,
}

/// The kinds of problems.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The configuration file is not JSON. Line and column count from 1; column 0 is the end of the
    /// line before.
    #[error("is not JSON: line {line}, column {column}: {why}")]
    Syntax {
        /// The line.
        line: usize,
        /// The column in that line.
        column: usize,
        /// The parser's reason.
        why: String,
    },
    /// A key, an override or a variable that does not exist.
    #[error("is not known; {}", suggestion(.nearest.as_deref(), .known))]
    Unknown {
        /// The most similar key of the same object, else the full path of one elsewhere.
        nearest: Option<String>,
        /// The keys of the object, if none is similar.
        known: Vec<String>,
    },
    /// A single value was given for a group of keys.
    #[error("is a group; set its keys: {}", .keys.join(", "))]
    Group {
        /// The group's keys.
        keys: Vec<String>,
    },
    /// A key that occurs twice in its JSON object: one of the two would be lost.
    #[error("occurs twice")]
    Duplicate,
    /// A key that must be there.
    #[error("is missing: {expected}")]
    Missing {
        /// A description of the value that is expected.
        expected: String,
    },
    /// A value of the wrong type.
    #[error("is {found}; expected {expected}")]
    Type {
        /// The type that it has.
        found: &'static str,
        /// The type that is expected.
        expected: String,
    },
    /// A value that is too small or too large.
    #[error("{found} is out of range: at least {min}, at most {max}")]
    Range {
        /// The value.
        found: String,
        /// The smallest value that is allowed.
        min: String,
        /// The largest value that is allowed.
        max: String,
    },
    /// A word that is not one of those allowed.
    #[error("{found} is not one of {}{}", .allowed.join(", "), meant(.nearest.as_deref()))]
    Choice {
        /// The word.
        found: String,
        /// The words that are allowed.
        allowed: Vec<String>,
        /// The most similar of them.
        nearest: Option<String>,
    },
    /// A Redis URL that cannot be used.
    #[error("is not a usable Redis URL: {0}")]
    Url(#[from] RedisUrlError),
    /// Any other problem, described in words, with the limit.
    #[error("{0}")]
    Invalid(String),
}

fn suggestion(nearest: Option<&str>, known: &[String]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {nearest}?"),
        None if known.is_empty() => "nothing can be set here".to_owned(),
        None => format!("known here: {}", known.join(", ")),
    }
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default()
}

/// The problem of a value of another type than `expected`.
pub(super) fn mismatch(value: &Value, expected: &str) -> Problem {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    wrong_type(found, expected)
}

/// As [`mismatch`], of a value that is named in words.
pub(super) fn wrong_type(found: &'static str, expected: &str) -> Problem {
    Problem::Type { found, expected: expected.to_owned() }
}

/// The problem of a word that is not one of `allowed`.
pub(super) fn wrong_choice(word: &str, allowed: &[&str]) -> Problem {
    Problem::Choice {
        found: shown(word),
        allowed: allowed.iter().map(|&word| word.to_owned()).collect(),
        nearest: nearest(word, allowed.iter().copied()).map(str::to_owned),
    }
}

/// A value of the configuration for a message: one line, not too long, and never a URL, since URLs
/// hold passwords.
pub(super) fn shown(text: &str) -> String {
    if text.contains("://") {
        return "a URL".to_owned();
    }
    let mut shown: String = text.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

/// A key for a path in a message, as [`shown`].
pub(super) fn shown_key(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@$_-".contains(c);
    if !key.is_empty() && key.len() <= MAX_SHOWN && key.chars().all(plain) {
        key.to_owned()
    } else {
        shown(key)
    }
}

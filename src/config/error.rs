//! What is wrong with a configuration: every violation, with its place and the limit that it breaks.

use std::fmt;

use super::redis_url::RedisUrlError;

/// Text of the operator's is cut to this many characters where a message repeats it.
const LONGEST_SHOWN: usize = 60;

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

    /// All that is wrong: what cannot be read first, then in the order of the keys.
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

/// One thing that is wrong. Displays as one line: the path, where the value came from if that is not the file, the problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The full path of the key (`coordinator.poolMaxConnections`), the name of a file or of an environment variable. Empty
    /// for the document as a whole.
    pub path: String,
    /// Where the value came from.
    pub origin: Origin,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the configuration" } else { &self.path };
        match &self.origin {
            Origin::File => write!(f, "{path}: {}", self.problem),
            // A name may hold anything but `=`, line feeds and URLs too.
            Origin::Variable(name) => match shown_key(name) {
                name if name == self.path => write!(f, "{path}: {}", self.problem),
                name => write!(f, "{path} (from {name}): {}", self.problem),
            },
            Origin::Flag => write!(f, "{path} (from the command line): {}", self.problem),
        }
    }
}

/// Which source gave a value. A later one overrides an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file, or nothing at all.
    #[default]
    File,
    /// The environment variable of this name.
    Variable(String),
    /// A flag of the command line.
    Flag,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The configuration file is no JSON. Line and column count from 1; column 0 is the end of the line before.
    #[error("is not JSON: line {line}, column {column}: {why}")]
    Syntax {
        /// Where.
        line: usize,
        /// Where in the line.
        column: usize,
        /// What the parser found.
        why: String,
    },
    /// A key, an override or a variable that does not exist.
    #[error("is not known; {}", suggestion(.nearest.as_deref(), .known))]
    Unknown {
        /// What was probably meant: a key beside it, else the full path of one elsewhere.
        nearest: Option<String>,
        /// What is known in its place, if nothing is near.
        known: Vec<String>,
    },
    /// A single value was given for a group of keys.
    #[error("is a group; set its keys: {}", .keys.join(", "))]
    Group {
        /// The group's keys.
        keys: Vec<String>,
    },
    /// A JSON key that stands twice in its object: one of the two would be lost.
    #[error("is there twice")]
    Duplicate,
    /// A key that must be there.
    #[error("is missing: {expected}")]
    Missing {
        /// What belongs there.
        expected: String,
    },
    /// A value of the wrong type.
    #[error("is {found}; expected {expected}")]
    Type {
        /// What it is.
        found: &'static str,
        /// What it is to be.
        expected: String,
    },
    /// A value that is too small or too large.
    #[error("{found} is out of range: at least {least}, at most {most}")]
    Range {
        /// The value.
        found: String,
        /// The least that is allowed.
        least: String,
        /// The most that is allowed.
        most: String,
    },
    /// A word that is none of those that are allowed.
    #[error("{found} is none of {}{}", .allowed.join(", "), meant(.nearest.as_deref()))]
    Choice {
        /// The word.
        found: String,
        /// What is allowed.
        allowed: Vec<String>,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// A Redis URL that cannot be used.
    #[error("is not a usable Redis URL: {0}")]
    Url(#[from] RedisUrlError),
    /// Anything else; in words, with the limit.
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

/// The operator's own text for a message: one line, not too long, and never a URL, since URLs hold passwords.
pub(super) fn shown(text: &str) -> String {
    if text.contains("://") {
        return "a URL".to_owned();
    }
    let mut shown: String = text.chars().take(LONGEST_SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST_SHOWN).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

/// A key for a path in a message, as [`shown`].
pub(super) fn shown_key(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@_-".contains(c);
    if !key.is_empty() && key.len() <= LONGEST_SHOWN && key.chars().all(plain) {
        key.to_owned()
    } else {
        shown(key)
    }
}

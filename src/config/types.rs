//! The types of values that a key can have: each is read, shown and described in one place.

mod quantity;
mod set;

use std::{fs::File, io::Read, net::SocketAddr, path::Path, path::PathBuf};

use serde_json::{Value, json};

pub(super) use self::{
    quantity::{duration, number, size},
    set::{Members, Set, set_schema},
};
use super::{
    error::{Problem, mismatch, shown, wrong_choice},
    fields::Found,
};

/// A longer file is not a certificate: the path is a wrong one.
const MAX_PEM_BYTES: u64 = 1024 * 1024;

/// A type of value.
pub(super) trait ValueType {
    /// The type in Rust.
    type Value;
    /// The form of a default in a declaration.
    type Literal;
    /// The name of the type in the reference.
    fn name(&self) -> &'static str;
    /// Reads a value, or reports what is wrong with it.
    fn read(&self, found: &Found<'_>) -> Option<Self::Value>;
    /// A default.
    fn value_of(&self, literal: &Self::Literal) -> Self::Value;
    /// The value as the document holds it.
    fn show(&self, value: &Self::Value) -> Value;
    /// JSON Schema of the value, with `type` as an array or with `enum`.
    fn schema(&self) -> Value;
    /// Least and most, as text: `1s to 1h`.
    fn range(&self) -> Option<String> {
        None
    }
}

/// `true` or `false`.
pub(super) struct Boolean;

impl ValueType for Boolean {
    type Value = bool;
    type Literal = bool;

    fn name(&self) -> &'static str {
        "boolean"
    }

    fn read(&self, found: &Found<'_>) -> Option<bool> {
        found.or_report(match found.value {
            Value::Bool(value) => Ok(*value),
            Value::String(text) if found.bare && text == "true" => Ok(true),
            Value::String(text) if found.bare && text == "false" => Ok(false),
            other => Err(mismatch(other, "true or false")),
        })
    }

    fn value_of(&self, literal: &bool) -> bool {
        *literal
    }

    fn show(&self, value: &bool) -> Value {
        json!(value)
    }

    fn schema(&self) -> Value {
        json!({ "type": ["boolean"] })
    }
}

/// An IP address with a port.
pub(super) struct Address;

impl ValueType for Address {
    type Value = SocketAddr;
    type Literal = SocketAddr;

    fn name(&self) -> &'static str {
        "address"
    }

    fn read(&self, found: &Found<'_>) -> Option<SocketAddr> {
        let address = found.value.as_str().and_then(|text| text.parse().ok());
        found.or_report(address.ok_or_else(|| {
            let expected =
                "an IP address with a port, such as 127.0.0.1:7420, 0.0.0.0:7420 or [::]:7420";
            unreadable(found.value, expected)
        }))
    }

    fn value_of(&self, literal: &SocketAddr) -> SocketAddr {
        *literal
    }

    fn show(&self, value: &SocketAddr) -> Value {
        json!(value.to_string())
    }

    fn schema(&self) -> Value {
        json!({ "type": ["string"], "pattern": "^.+:[0-9]+$" })
    }
}

/// A text with a rule of its own.
pub(super) struct Text {
    /// Limit of its length in bytes; it must not be empty then.
    max_bytes: Option<usize>,
    check: fn(&str) -> Result<(), Problem>,
}

/// A text that `check` accepts.
pub(super) fn text(check: fn(&str) -> Result<(), Problem>) -> Text {
    Text { max_bytes: None, check }
}

/// A text of 1 to `max_bytes` bytes that `check` accepts.
pub(super) fn short_text(max_bytes: usize, check: fn(&str) -> Result<(), Problem>) -> Text {
    Text { max_bytes: Some(max_bytes), check }
}

/// Any text.
pub(super) fn any_text() -> Text {
    text(|_| Ok(()))
}

impl ValueType for Text {
    type Value = String;
    type Literal = &'static str;

    fn name(&self) -> &'static str {
        "text"
    }

    fn read(&self, found: &Found<'_>) -> Option<String> {
        let text = found.text()?;
        let outside = self.max_bytes.filter(|max| text.is_empty() || text.len() > *max);
        found.or_report(match outside {
            Some(max) => Err(Problem::Range {
                found: format!("its length of {}", text.len()),
                min: "1 byte".to_owned(),
                max: format!("{max} bytes"),
            }),
            None => (self.check)(text).map(|()| text.to_owned()),
        })
    }

    fn value_of(&self, literal: &&'static str) -> String {
        (*literal).to_owned()
    }

    /// An empty text is shown as `null`.
    fn show(&self, value: &String) -> Value {
        if value.is_empty() { Value::Null } else { json!(value) }
    }

    fn schema(&self) -> Value {
        match self.max_bytes {
            // JSON Schema counts characters, of which there are never more than bytes.
            Some(max) => json!({ "type": ["string"], "minLength": 1, "maxLength": max }),
            None => json!({ "type": ["string"] }),
        }
    }

    fn range(&self) -> Option<String> {
        self.max_bytes.map(|max| format!("1 to {max} bytes"))
    }
}

/// One of some words, each with its value.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T> Choice<T> {
    fn words(&self) -> Vec<&'static str> {
        self.0.iter().map(|(word, _)| *word).collect()
    }
}

impl<T: Copy + PartialEq> ValueType for Choice<T> {
    type Value = T;
    type Literal = T;

    fn name(&self) -> &'static str {
        "word"
    }

    fn read(&self, found: &Found<'_>) -> Option<T> {
        let text = found.text()?;
        let known = self.0.iter().find(|(word, _)| *word == text);
        found.or_report(
            known.map(|(_, value)| *value).ok_or_else(|| wrong_choice(text, &self.words())),
        )
    }

    fn value_of(&self, literal: &T) -> T {
        *literal
    }

    fn show(&self, value: &T) -> Value {
        json!(self.0.iter().find(|(_, known)| known == value).map(|(word, _)| word))
    }

    fn schema(&self) -> Value {
        json!({ "enum": self.words() })
    }
}

/// The path of a PEM file, with a block whose label ends with this text.
pub(super) struct Pem(pub(super) &'static str);

impl ValueType for Pem {
    type Value = PathBuf;
    type Literal = &'static str;

    fn name(&self) -> &'static str {
        "path"
    }

    fn read(&self, found: &Found<'_>) -> Option<PathBuf> {
        let path = PathBuf::from(found.text()?);
        if found.lookups {
            found.or_report(check_pem(&path, self.0).map_err(Problem::Invalid));
        }
        Some(path)
    }

    fn value_of(&self, literal: &&'static str) -> PathBuf {
        PathBuf::from(*literal)
    }

    /// An empty path is shown as `null`.
    fn show(&self, value: &PathBuf) -> Value {
        let path = value.to_string_lossy();
        if path.is_empty() { Value::Null } else { json!(path) }
    }

    fn schema(&self) -> Value {
        json!({ "type": ["string"] })
    }
}

/// Checks that the file at `path` is readable and holds a PEM block whose label ends with `label`.
fn check_pem(path: &Path, label: &str) -> Result<(), String> {
    let mut bytes = Vec::new();
    let name = shown(&path.to_string_lossy());
    // With a limit, in case the path is that of a device.
    let read = File::open(path).and_then(|file| file.take(MAX_PEM_BYTES).read_to_end(&mut bytes));
    read.map_err(|error| format!("{name} cannot be read: {error}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let end = format!("{label}-----");
    if text.lines().any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&end)) {
        Ok(())
    } else {
        Err(format!("{name} holds no {label} in PEM form"))
    }
}

/// The problem of a string that cannot be parsed, or of a value of another type.
fn unreadable(value: &Value, expected: &str) -> Problem {
    match value {
        Value::String(text) => Problem::Invalid(format!("{} is not {expected}", shown(text))),
        other => mismatch(other, expected),
    }
}

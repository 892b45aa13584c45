//! The payload of a custom event, from flags, a file or standard input.

// Doc comments become help texts, where backticks would only be noise.
#![allow(clippy::doc_markdown)]

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use prost::Message;
use prost_types::Any;
use serde_json::{Value, json};
use trunkline::json::event_from_json;
use trunkline_proto::v1::event::Kind;

use super::Failure;

/// The largest payload: `limits.maxEventBytes` of a gateway is at most so much.
const MAX_PAYLOAD: usize = 16 << 20;

/// The integer up to which a double holds all of them: the numbers of `Struct` are doubles.
const MAX_EXACT: u64 = 1 << 53;

/// The payload of a custom event.
#[derive(Args)]
pub(super) struct PayloadArgs {
    /// Content of the event: text, or JSON, as {"a": 1}
    #[arg(long, value_name = "CONTENT", group = "content")]
    payload: Option<String>,
    /// The same from a file; - is standard input
    #[arg(long, value_name = "FILE", group = "content")]
    payload_file: Option<PathBuf>,
    /// What the content is [default: json if it begins with { or [, bytes if it is not UTF-8, else
    /// text]
    #[arg(long, value_name = "FORM", value_enum, requires = "content")]
    payload_as: Option<Form>,
    /// Full name of a protobuf message, of which the content is the encoded bytes
    #[arg(long, value_name = "TYPE", requires = "content", conflicts_with = "payload_as")]
    payload_type: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A google.protobuf.Struct, ListValue or Value; or any message, by its @type
    Json,
    /// A google.protobuf.StringValue
    Text,
    /// A google.protobuf.BytesValue
    Bytes,
}

impl PayloadArgs {
    /// True if the payload is standard input.
    pub(super) fn is_standard_input(&self) -> bool {
        self.payload_file.as_deref() == Some(Path::new("-"))
    }

    /// Reads the payload, if there is one.
    pub(super) fn read(&self) -> Result<Option<Any>, Failure> {
        let (flag, content) = match (&self.payload, &self.payload_file) {
            (Some(text), _) => ("--payload".to_owned(), text.clone().into_bytes()),
            (None, Some(file)) => {
                let flag = format!("--payload-file {}", file.display());
                let content = if self.is_standard_input() {
                    bounded(io::stdin().lock())
                } else {
                    File::open(file).map_err(|error| error.to_string()).and_then(bounded)
                };
                (flag.clone(), content.map_err(|why| Failure::Input(format!("{flag}: {why}")))?)
            }
            (None, None) => return Ok(None),
        };
        let any = match &self.payload_type {
            Some(name) => encoded(name, content),
            None => typed(content, self.payload_as),
        };
        any.map(Some).map_err(|why| Failure::Input(format!("{flag}: {why}")))
    }
}

/// All of it, unless it is larger than any payload can be.
fn bounded(input: impl Read) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let limit = MAX_PAYLOAD as u64 + 1;
    input.take(limit).read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content.len() > MAX_PAYLOAD {
        return Err(format!(
            "has more than {MAX_PAYLOAD} bytes, the limit of limits.maxEventBytes"
        ));
    }
    Ok(content)
}

/// The encoded bytes of a message of this type.
fn encoded(name: &str, value: Vec<u8>) -> Result<Any, String> {
    if name.ends_with('/') || name.is_empty() {
        return Err("--payload-type must be the full name of a message, like example.Paid".into());
    }
    let type_url =
        if name.contains('/') { name.to_owned() } else { format!("type.googleapis.com/{name}") };
    Ok(Any { type_url, value })
}

/// Content as one of the types that protobuf itself defines.
fn typed(content: Vec<u8>, form: Option<Form>) -> Result<Any, String> {
    let begin = content.trim_ascii_start().first();
    let form = match form {
        Some(form) => form,
        None if std::str::from_utf8(&content).is_err() => Form::Bytes,
        None if matches!(begin, Some(b'{' | b'[')) => {
            let hint = "; --payload-as text publishes it as it is";
            return from_json(&content).map_err(|error| format!("{error}{hint}"));
        }
        None => Form::Text,
    };
    match form {
        Form::Json => from_json(&content),
        Form::Text => match String::from_utf8(content) {
            Ok(text) => Ok(known("StringValue", text.encode_to_vec())),
            Err(_) => Err("is not text in UTF-8: --payload-as bytes publishes it as it is".into()),
        },
        Form::Bytes => Ok(known("BytesValue", content.encode_to_vec())),
    }
}

fn known(name: &str, value: Vec<u8>) -> Any {
    Any { type_url: format!("type.googleapis.com/google.protobuf.{name}"), value }
}

/// JSON as the message that `@type` names, else as protobuf's own JSON.
fn from_json(content: &[u8]) -> Result<Any, String> {
    let value: Value =
        serde_json::from_slice(content).map_err(|error| format!("not JSON: {error}"))?;
    let payload = if value.get("@type").is_some() {
        value
    } else {
        if let Some(number) = inexact(&value) {
            return Err(format!(
                "{number} is larger than the integers that google.protobuf.Struct holds exactly: \
                 give it as a text, in quotes"
            ));
        }
        let name = match value {
            Value::Object(_) => "Struct",
            Value::Array(_) => "ListValue",
            _ => "Value",
        };
        let url = format!("type.googleapis.com/google.protobuf.{name}");
        json!({ "@type": url, "value": value })
    };
    let event = event_from_json(json!({ "custom": { "payload": payload } }))?;
    match event.kind {
        Some(Kind::Custom(custom)) => custom.payload.ok_or("is empty".into()),
        _ => Err("is no payload".into()),
    }
}

/// An integer that a double does not hold.
fn inexact(value: &Value) -> Option<&Value> {
    match value {
        Value::Number(number) => {
            let size = number.as_u64().or(number.as_i64().map(i64::unsigned_abs));
            size.is_some_and(|size| size > MAX_EXACT).then_some(value)
        }
        Value::Array(items) => items.iter().find_map(inexact),
        Value::Object(members) => members.values().find_map(inexact),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8], form: Option<Form>) -> (String, Vec<u8>) {
        let Any { type_url, value } = typed(content.to_vec(), form).unwrap();
        let name = type_url.strip_prefix("type.googleapis.com/google.protobuf.").unwrap();
        (name.to_owned(), value)
    }

    #[test]
    fn the_type_follows_from_the_content_or_from_the_flag() {
        let text = |text: &str| ("StringValue".to_owned(), text.to_owned().encode_to_vec());
        assert_eq!(read(b"paid", None), text("paid"));
        assert_eq!(read(b"17", None), text("17"));
        assert_eq!(read(b"", None), text(""));
        assert_eq!(read(b"{\"a\"", Some(Form::Text)), text("{\"a\""));
        let bytes = vec![0xff, 0];
        assert_eq!(read(&bytes, None), ("BytesValue".into(), bytes.encode_to_vec()));
        assert_eq!(read(b"x", Some(Form::Bytes)).0, "BytesValue");
        assert_eq!(read(b" {\"a\": [1, null]}", None).0, "Struct");
        assert_eq!(read(b"[1, {}]", None).0, "ListValue");
        assert_eq!(read(b"17", Some(Form::Json)).0, "Value");
        let by_type =
            br#"{"@type": "type.googleapis.com/google.protobuf.DoubleValue", "value": 1.5}"#;
        assert_eq!(read(by_type, None).0, "DoubleValue");
        let any = encoded("example.Paid", vec![7]).unwrap();
        assert_eq!((&*any.type_url, &*any.value), ("type.googleapis.com/example.Paid", &[7][..]));
        assert_eq!(encoded("example.org/x.Y", vec![]).unwrap().type_url, "example.org/x.Y");
    }

    #[test]
    fn what_is_no_payload_is_refused() {
        let wrong = |content: &[u8], form| typed(content.to_vec(), form).unwrap_err();
        let error = wrong(b"{\"a\": 1,}", None);
        assert!(error.starts_with("not JSON: ") && error.contains("--payload-as text"), "{error}");
        assert!(wrong(b"x", Some(Form::Json)).starts_with("not JSON: "));
        assert!(wrong(&[0xff], Some(Form::Text)).contains("--payload-as bytes"));
        let error = wrong(b"{\"id\": [9007199254740993]}", None);
        assert!(error.starts_with("9007199254740993 is larger"), "{error}");
        assert_eq!(read(b"{\"id\": -9007199254740992}", None).0, "Struct");
        let error = wrong(br#"{"@type": "example.org/x.Y", "a": 1}"#, None);
        assert!(error.starts_with("custom.payload.a: the type example.org/x.Y is not"), "{error}");
        assert!(encoded("", vec![]).is_err());
    }

    #[test]
    fn no_more_is_read_than_a_payload_may_have() {
        assert_eq!(bounded(&[7; 3][..]), Ok(vec![7; 3]));
        let error = bounded(io::repeat(0)).unwrap_err();
        assert_eq!(error, "has more than 16777216 bytes, the limit of limits.maxEventBytes");
    }
}

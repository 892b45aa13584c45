//! What a server answers, and the texts of its errors.

use std::{fmt, sync::Arc};

/// A string of bytes that is shared, and not copied, by snapshots of a server.
pub type Text = Arc<[u8]>;

/// An answer, in RESP2.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
    Nil,
    Integer(i64),
    Status(String),
    Error(String),
    Bulk(Text),
    Array(Vec<Reply>),
}

impl Reply {
    /// `OK`.
    pub fn ok() -> Reply {
        Reply::Status("OK".into())
    }

    /// An array of bulk strings.
    pub fn bulks<T: Into<Text>>(parts: impl IntoIterator<Item = T>) -> Reply {
        Reply::Array(parts.into_iter().map(|part| Reply::Bulk(part.into())).collect())
    }

    /// A count.
    pub fn count(count: usize) -> Reply {
        Reply::Integer(i64::try_from(count).expect("fewer than 2^63"))
    }

    /// A bulk string, or nil.
    pub fn bulk_or_nil(value: Option<Text>) -> Reply {
        value.map_or(Reply::Nil, Reply::Bulk)
    }

    /// The first word of an error: `WRONGTYPE`, `NOSCRIPT`, `ERR`.
    pub fn error_code(&self) -> Option<&str> {
        match self {
            Reply::Error(text) => text.split(' ').next(),
            _ => None,
        }
    }
}

/// As `redis-cli` shows it, in one line.
impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Nil => f.write_str("nil"),
            Reply::Integer(number) => write!(f, "{number}"),
            Reply::Status(text) => write!(f, "+{text}"),
            Reply::Error(text) => write!(f, "-{text}"),
            Reply::Bulk(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Reply::Array(parts) => f.debug_list().entries(parts).finish(),
        }
    }
}

/// Texts of errors, as Redis 7 words them.
pub mod error {
    pub const WRONG_TYPE: &str =
        "WRONGTYPE Operation against a key holding the wrong kind of value";
    pub const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
    pub const SYNTAX: &str = "ERR syntax error";
    pub const NO_SUCH_KEY: &str = "ERR no such key";
    pub const STREAM_ID: &str = "ERR Invalid stream ID specified as stream command argument";
    pub const ID_TOO_SMALL: &str =
        "ERR The ID specified in XADD is equal or smaller than the target stream top item";
    pub const ID_ZERO: &str = "ERR The ID specified in XADD must be greater than 0-0";
    pub const NO_SCRIPT: &str = "NOSCRIPT No matching script. Please use EVAL.";

    pub fn arguments(args: &[super::Text]) -> String {
        let name = args.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default();
        let name = String::from_utf8_lossy(&name).into_owned();
        format!("ERR wrong number of arguments for '{name}' command")
    }

    pub fn unknown(name: &[u8]) -> String {
        format!("ERR unknown command '{}'", String::from_utf8_lossy(name))
    }
}

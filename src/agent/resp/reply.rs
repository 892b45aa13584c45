//! Replies and pushes.

use std::fmt::{Display, Write as _};

use bytes::{BufMut, Bytes, BytesMut};

/// The longest error that is sent; what names a client's own words is cut there.
const MAX_ERROR: usize = 256;

/// The version of the protocol that a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// What every client begins with: a push is an array like any other.
    #[default]
    Resp2,
    /// After `HELLO 3`: maps, one null, and pushes apart from replies.
    Resp3,
}

impl Version {
    /// 2 or 3.
    pub fn number(self) -> i64 {
        match self {
            Version::Resp2 => 2,
            Version::Resp3 => 3,
        }
    }
}

/// Writes replies behind what is in a buffer.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut BytesMut,
    version: Version,
}

impl<'a> Reply<'a> {
    /// A writer of replies in this version.
    pub fn new(out: &'a mut BytesMut, version: Version) -> Reply<'a> {
        Reply { out, version }
    }

    /// A short text that is written here, such as `OK`.
    pub fn simple(&mut self, text: &'static str) {
        self.line(b'+', text);
    }

    /// An error. Its first word is its code. Control characters are left out, and what is too long
    /// is cut.
    pub fn error(&mut self, text: impl Display) {
        let text = text.to_string();
        let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        let mut line = String::new();
        for c in visible {
            if line.len() + c.len_utf8() > MAX_ERROR {
                line.push_str("...");
                break;
            }
            line.push(c);
        }
        self.line(b'-', line);
    }

    /// A number.
    pub fn integer(&mut self, number: i64) {
        self.line(b':', number);
    }

    /// A text or bytes of any kind.
    pub fn bulk(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.line(b'$', bytes.len());
        self.out.put_slice(bytes);
        self.out.put_slice(b"\r\n");
    }

    /// Nothing.
    pub fn null(&mut self) {
        self.out.put_slice(match self.version {
            Version::Resp2 => b"$-1\r\n",
            Version::Resp3 => b"_\r\n",
        });
    }

    /// An array; its elements follow.
    pub fn array(&mut self, elements: usize) {
        self.line(b'*', elements);
    }

    /// A map; key and value of each entry follow.
    pub fn map(&mut self, entries: usize) {
        match self.version {
            Version::Resp2 => self.line(b'*', 2 * entries),
            Version::Resp3 => self.line(b'%', entries),
        }
    }

    /// Something that is no reply to a command; its elements follow.
    pub fn push(&mut self, elements: usize) {
        match self.version {
            Version::Resp2 => self.line(b'*', elements),
            Version::Resp3 => self.line(b'>', elements),
        }
    }

    fn line(&mut self, sign: u8, content: impl Display) {
        self.out.put_u8(sign);
        // Writing to memory does not fail.
        let _ = write!(self.out, "{content}\r\n");
    }
}

/// A message of a channel, as every subscriber gets it that speaks this version.
pub fn message(version: Version, channel: &[u8], payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(channel.len() + payload.len() + 48);
    let mut reply = Reply::new(&mut out, version);
    reply.push(3);
    reply.bulk("message");
    reply.bulk(channel);
    reply.bulk(payload);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_own_maps_nulls_and_pushes() {
        let all = |version| {
            let mut out = BytesMut::new();
            let mut reply = Reply::new(&mut out, version);
            reply.map(1);
            reply.bulk("proto");
            reply.integer(version.number());
            reply.array(2);
            reply.null();
            reply.simple("OK");
            String::from_utf8(out.to_vec()).unwrap()
        };
        assert_eq!(all(Version::Resp2), "*2\r\n$5\r\nproto\r\n:2\r\n*2\r\n$-1\r\n+OK\r\n");
        assert_eq!(all(Version::Resp3), "%1\r\n$5\r\nproto\r\n:3\r\n*2\r\n_\r\n+OK\r\n");
        let pushed = "3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$3\r\n\r\n\0\r\n";
        assert_eq!(message(Version::Resp2, b"c", b"\r\n\0"), format!("*{pushed}"));
        assert_eq!(message(Version::Resp3, b"c", b"\r\n\0"), format!(">{pushed}"));
    }

    #[test]
    fn an_error_is_one_line_of_bounded_length_whatever_it_names() {
        let mut out = BytesMut::new();
        Reply::new(&mut out, Version::Resp2).error("ERR a\r\n+OK\u{1b}[2J");
        assert_eq!(&out[..], b"-ERR a  +OK [2J\r\n");
        out.clear();
        Reply::new(&mut out, Version::Resp2).error("é".repeat(4000));
        assert!(out.len() <= MAX_ERROR + 6 && out.ends_with("é...\r\n".as_bytes()));
    }
}

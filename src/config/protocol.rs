//! The versions of the Redis protocol.

use std::fmt;

/// The version of the Redis protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Any Redis; no sharded pub/sub on shared connections.
    Resp2,
    /// Redis 6 and later.
    Resp3,
}

impl Protocol {
    pub(super) const WORDS: [(&str, Protocol); 2] =
        [(Protocol::Resp2.as_str(), Protocol::Resp2), (Protocol::Resp3.as_str(), Protocol::Resp3)];

    /// Its word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Resp2 => "resp2",
            Protocol::Resp3 => "resp3",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

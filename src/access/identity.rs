//! The caller of a request. Every request has one, with or without authentication: quotas are
//! counted by its identity.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The identity of a caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Authenticated, by a token or a client certificate.
    Named(Arc<str>),
    /// Without authentication: all connections from one address are one identity.
    Anonymous(IpAddr),
}

/// The number of a connection, unique in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// The caller of a request. In the extensions of every request that reaches a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its identity.
    pub identity: Identity,
    /// The connection of the request.
    pub connection: ConnectionId,
    /// The remote address of that connection.
    pub peer: SocketAddr,
}

impl Identity {
    /// The identity of a caller from this address that is not authenticated.
    pub fn anonymous(peer: SocketAddr) -> Identity {
        // IPv4 clients of an IPv6 wildcard listener have IPv4-mapped addresses.
        Identity::Anonymous(peer.ip().to_canonical())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Named(name) => f.write_str(name),
            Identity::Anonymous(ip) => write!(f, "anonymous {ip}"),
        }
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

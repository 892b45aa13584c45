//! Who a request comes from. Known of every request, with and without authentication: limits are counted by it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Who sends requests, as far as the gateway can tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Proven, by a token or a certificate.
    Named(Arc<str>),
    /// Nobody asked: all that is known is where it comes from. Connections of one address are one such identity.
    Anonymous(IpAddr),
}

/// One connection of this process, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Where a request comes from. Stands in the extensions of every request that reaches a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who sent it.
    pub identity: Identity,
    /// On which connection.
    pub connection: ConnectionId,
    /// From which address.
    pub peer: SocketAddr,
}

impl Identity {
    /// The identity of somebody who showed nothing.
    pub fn anonymous(peer: SocketAddr) -> Identity {
        // An IPv4 client of a wildcard listener of IPv6 is the same client.
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

//! Who a request comes from. Known of every request, with and without authentication: limits are counted by it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::Extensions;
use tonic::Status;

use super::{
    PeerCertificate, Permit,
    quota::{Pending, Streams},
};

/// Who sends requests, as far as the gateway can tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Proven, by a token or a certificate.
    Named(Arc<str>),
    /// Nobody asked: all that is known is where it comes from. Connections of one address are one such identity.
    Anonymous(IpAddr),
}

/// The client of a connection. In the extensions of each request of that connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The remote address.
    pub address: SocketAddr,
    /// The streams that are open on the connection.
    pub streams: Arc<Streams>,
    /// The client certificate of the TLS handshake, where a valid one was presented.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// The caller of a request: its connection, its permissions, and its share of the quotas. The access
/// layer puts it into the extensions of every request that it admits.
#[derive(Clone)]
pub struct Caller {
    /// The client of the connection.
    pub peer: Peer,
    /// The permissions of a verified identity; none where authentication is off.
    pub permit: Option<Permit>,
    /// Counts the bytes of the request until it is answered.
    pub pending: Arc<Pending>,
}

impl Caller {
    /// The caller of a request with these extensions. Fails only where a service is not wrapped by
    /// the access layer.
    pub fn of(extensions: &Extensions) -> Result<&Caller, Status> {
        extensions
            .get()
            .ok_or_else(|| Status::internal("the request did not pass the access layer"))
    }
}

impl Identity {
    /// The identity of a peer that is not authenticated.
    pub fn anonymous(peer: SocketAddr) -> Identity {
        Identity::Anonymous(peer_network(peer.ip()))
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

/// The address that limits per peer count by: of IPv4 the address itself, of IPv6 the network, since
/// one host has all of its 2^64 addresses.
pub fn peer_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_of_an_ipv6_host_are_one_peer() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        assert_eq!(peer_network(address("2001:db8:1:2:3:4:5:6")), address("2001:db8:1:2::"));
        assert_eq!(peer_network(address("2001:db8:1:2::1")), address("2001:db8:1:2::"));
        assert_ne!(peer_network(address("2001:db8:1:3::1")), address("2001:db8:1:2::"));
        assert_eq!(peer_network(address("::ffff:10.1.2.3")), address("10.1.2.3"));
    }
}

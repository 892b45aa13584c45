//! The caller of a request. Every request has one, with or without authentication: quotas are
//! counted by its identity.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::Extensions;
use tonic::Status;

use super::{
    Grant, PeerCertificate,
    quota::{ConnectionStreams, InFlightRequest},
};
use crate::{errors::Requester, leave::ConnectionLeave};

/// The identity of a caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Authenticated, by a token or a client certificate.
    Named(Arc<str>),
    /// Without authentication: all connections of one peer, an IPv4 address or an IPv6 network.
    Anonymous(IpAddr),
}

/// The client of a connection. In the extensions of each request of that connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The remote address.
    pub address: SocketAddr,
    /// Counts the streams that are open on the connection.
    pub streams: Arc<ConnectionStreams>,
    /// Asks its streams to leave, and the connection with them.
    pub leaving: Arc<ConnectionLeave>,
    /// The client certificate of the TLS handshake, where a valid one was presented.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// The caller of a request. In the extensions of every request that passes the access layer.
#[derive(Clone)]
pub struct Caller {
    /// The client of the connection.
    pub peer: Peer,
    /// The rules of an authenticated caller; none where everything is allowed.
    pub grant: Option<Grant>,
    /// Counts the bytes of the request until it is answered.
    pub in_flight: Arc<InFlightRequest>,
}

impl Caller {
    /// The caller of a request with these extensions. Fails only where a service is not wrapped in
    /// the access layer.
    pub fn of(extensions: &Extensions) -> Result<&Caller, Status> {
        let caller = extensions.get();
        caller.ok_or_else(|| Status::internal("the request did not pass the access layer"))
    }

    /// The sender of the request, for people.
    pub fn requester(&self) -> Requester {
        Requester {
            node_id: String::new(),
            identity: self.grant.as_ref().map(|grant| grant.identity.clone()),
            peer: Some(self.peer.address),
        }
    }
}

impl Identity {
    /// The identity of a caller from this address that is not authenticated.
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

/// The address by which limits count a peer: of IPv4 the address itself, of IPv6 its network, since
/// one host has all of the 2^64 addresses there.
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

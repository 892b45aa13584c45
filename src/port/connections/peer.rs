//! One accepted connection: its bytes, its peer and its slot.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::{
    access::{ConnectionId, PeerCertificate, quota::ConnectionStreams},
    port::connections::ConnectionSlot,
};

/// The bytes of a connection: in plain text, or within TLS. TLS is boxed: its state is large.
pub type Transport = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// A connection that is ready for HTTP/2: where TLS is used, its handshake is done.
#[derive(Debug)]
pub struct Connection {
    /// Its bytes.
    pub io: Transport,
    /// The client at its other end.
    pub peer: Peer,
    /// Held until the connection is closed.
    pub slot: ConnectionSlot,
}

/// The client of a connection. In the extensions of each request of that connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The number of the connection.
    pub connection: ConnectionId,
    /// The remote address.
    pub address: SocketAddr,
    /// Counts the streams that are open on the connection.
    pub streams: Arc<ConnectionStreams>,
    /// The client certificate of the TLS handshake, where a valid one was presented.
    pub certificate: Option<Arc<PeerCertificate>>,
}

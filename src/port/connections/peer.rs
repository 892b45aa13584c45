//! One accepted connection: its bytes, its peer and its slot.

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::{access::Peer, port::connections::ConnectionSlot};

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

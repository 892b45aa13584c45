//! One connection: bytes, in plain text or within TLS, and whose they are.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::{
    access::{ConnectionId, PeerCertificate, quota::Streams},
    port::connections::ConnectionSlot,
};

/// An open connection of a node.
#[derive(Debug)]
pub struct Connection {
    transport: Transport,
    peer: Peer,
    /// Counted as long as it is open.
    _place: ConnectionSlot,
}

/// How the bytes travel.
#[derive(Debug)]
pub enum Transport {
    /// As they are.
    Plain(TcpStream),
    /// Within TLS. Boxed: it is large.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Whose connection it is. Stands in the extensions of each of its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its number.
    pub connection: ConnectionId,
    /// The other end.
    pub address: SocketAddr,
    /// The streams that are open on it.
    pub streams: Arc<Streams>,
    /// What the other end has shown, if that held.
    pub certificate: Option<Arc<PeerCertificate>>,
}

impl Connection {
    /// A connection that is ready for requests.
    pub fn new(transport: Transport, peer: Peer, slot: ConnectionSlot) -> Connection {
        Connection { transport, peer, _place: slot }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Calls a method of whichever stream it is.
macro_rules! either {
    ($connection:expr, $stream:ident => $call:expr) => {
        match &mut $connection.get_mut().transport {
            Transport::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Transport::Tls(stream) => {
                let $stream = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

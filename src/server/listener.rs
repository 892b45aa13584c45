//! The gRPC port: accepts connections, and hands them to the server.
//!
//! [`incoming`] is the one place where a connection comes to be: what limits connections belongs into `Acceptor::admit`, and
//! what is to be undone when one closes, into a guard in [`Connection`].

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tonic::transport::server::Connected;

use super::access::ConnectionId;

/// The wait after an error of the listener itself, which is the machine's: it has no file descriptors left, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An open connection of a node.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    peer: Peer,
}

/// Whose connection it is. Stands in the extensions of each of its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its number.
    pub connection: ConnectionId,
    /// The other end.
    pub address: SocketAddr,
}

struct Acceptor {
    listener: TcpListener,
    /// The number of the next connection.
    next: u64,
}

/// The connections that come to a listener, in turn. Ends never; a connection that fails is nobody else's affair.
pub fn incoming(listener: TcpListener) -> impl Stream<Item = Result<Connection, io::Error>> {
    let acceptor = Acceptor { listener, next: 1 };
    futures_util::stream::unfold(acceptor, |mut acceptor| async move {
        let connection = acceptor.next().await;
        Some((Ok(connection), acceptor))
    })
}

impl Acceptor {
    async fn next(&mut self) -> Connection {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    if let Some(connection) = self.admit(stream, address) {
                        return connection;
                    }
                }
                // The client's: it went away before it was accepted.
                Err(error) if is_of_client(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Whether a new connection is let in.
    fn admit(&mut self, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        let connection = ConnectionId(self.next);
        self.next += 1;
        // What is small and urgent must not wait for more. An error is the client's, which has gone.
        stream.set_nodelay(true).ok()?;
        Some(Connection { stream, peer: Peer { connection, address } })
    }
}

fn is_of_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

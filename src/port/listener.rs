//! The gRPC port: accepts connections, and hands them on once they are ready for requests.
//!
//! Each TLS handshake runs in a task of its own, so that a slow one delays no other connection.
//! Every connection comes through `Acceptor::admit`: limits on connections belong there, and what
//! is undone when a connection closes belongs in a guard in [`Connection`].

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::Stream;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;

use crate::{
    access::{Access, Peer, PeerCertificate, Rule},
    errors::Limit,
    port::{
        connections::{Connection, ConnectionSlot, ConnectionSlots, GoawaySender},
        counters::Counters,
    },
};

/// The pause after `accept` failed for a reason of this machine: mostly, no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// TLS handshakes in progress at one time.
const MAX_HANDSHAKES: usize = 1000;

struct Acceptor {
    listener: TcpListener,
    access: Arc<Access>,
    /// Handshakes in progress; dropping them cancels them.
    handshakes: JoinSet<Option<Connection>>,
    /// Their handles, the oldest first; some of them have finished.
    oldest_first: VecDeque<AbortHandle>,
    handshake_timeout: Duration,
    admission: Admission,
    /// True after an `accept` that failed: only the first failure in a row is logged, since a
    /// machine without file descriptors would fill the log.
    failing: bool,
}

/// Everything that decides which connections are accepted.
pub struct Admission {
    /// Certificates of the gateway and its clients.
    pub access: Arc<Access>,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Limits the number of open connections.
    pub slots: Arc<ConnectionSlots>,
    /// Tells the clients of refused connections why.
    pub goaway: GoawaySender,
    /// Counts accepted and refused connections.
    pub counters: Arc<Counters>,
}

/// The connections of a listener, as they become ready. The stream never ends; a connection that
/// fails does not appear in it.
pub fn incoming(listener: TcpListener, admission: Admission) -> impl Stream<Item = Connection> {
    let acceptor = Acceptor {
        listener,
        access: admission.access.clone(),
        handshakes: JoinSet::new(),
        oldest_first: VecDeque::new(),
        handshake_timeout: admission.handshake_timeout,
        admission,
        failing: false,
    };
    futures_util::stream::unfold(acceptor, |mut acceptor| async move {
        let connection = acceptor.next().await;
        Some((connection, acceptor))
    })
}

impl Acceptor {
    async fn next(&mut self) -> Connection {
        loop {
            let accepted = tokio::select! {
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Some(connection)) => return connection,
                    // The handshake failed, which is logged, or was aborted for a newer one.
                    Ok(None) | Err(_) => continue,
                },
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, mut address)) => {
                    self.failing = false;
                    // A listener on `::` names a peer of IPv4 ::ffff:a.b.c.d: it is one peer.
                    address.set_ip(address.ip().to_canonical());
                    if let Some(connection) = self.admit(stream, address) {
                        return connection;
                    }
                }
                // The client closed the connection before it was accepted.
                Err(error) if is_of_client(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(%error, "cannot accept connections; trying again");
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Takes a slot for a new connection. Returns the connection where it is ready at once, which
    /// is without TLS; otherwise its handshake starts.
    fn admit(&mut self, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        let Admission { slots, goaway, counters, .. } = &mut self.admission;
        let slot = match slots.acquire(address.ip()) {
            Ok(slot) => slot,
            Err(reached) => {
                counters.refused(reached.limit);
                goaway.refuse(stream, reached);
                return None;
            }
        };
        counters.connected();
        // Small urgent messages must not wait for more bytes. An error means that the client has
        // closed the connection.
        stream.set_nodelay(true).ok()?;
        let peer =
            Peer { address, streams: Arc::default(), leaving: Arc::default(), certificate: None };
        let Some((acceptor, generation)) = self.access.acceptor() else {
            return Some(Connection { io: Either::Left(stream), peer, slot });
        };
        self.abort_oldest_handshakes();
        let (access, timeout) = (self.access.clone(), self.handshake_timeout);
        let counters = self.admission.counters.clone();
        let handshake = async move {
            let begins = tokio::time::timeout(timeout, has_begun(&stream));
            match begins.await {
                Ok(true) => {}
                Ok(false) => {
                    counters.unused();
                    return None;
                }
                Err(_) => {
                    counters.refused(Limit::HandshakeTimeout);
                    return None;
                }
            }
            let handshake = handshake(acceptor, generation, stream, peer, slot);
            match tokio::time::timeout(timeout, handshake).await {
                Ok(Ok(connection)) => Some(connection),
                Ok(Err(error)) => {
                    access.refusals.record(Rule::Handshake, &address, &error.to_string());
                    None
                }
                Err(_) => {
                    access.refusals.record(
                        Rule::Handshake,
                        &address,
                        "the TLS handshake timed out",
                    );
                    None
                }
            }
        };
        self.oldest_first.push_back(self.handshakes.spawn(handshake));
        None
    }

    /// Aborts the oldest handshakes where too many are in progress. An honest one takes a few
    /// milliseconds and is not among them.
    fn abort_oldest_handshakes(&mut self) {
        self.oldest_first.retain(|handshake| !handshake.is_finished());
        while self.oldest_first.len() >= MAX_HANDSHAKES {
            if let Some(oldest) = self.oldest_first.pop_front() {
                oldest.abort();
                self.access.refusals.record(
                    Rule::Handshake,
                    &"the oldest handshake",
                    "too many TLS handshakes are in progress",
                );
            }
        }
    }
}

/// Waits for the first byte of a client. False: it has closed the connection without one.
async fn has_begun(stream: &TcpStream) -> bool {
    stream.peek(&mut [0]).await.is_ok_and(|bytes| bytes > 0)
}

async fn handshake(
    acceptor: TlsAcceptor,
    generation: u64,
    stream: TcpStream,
    mut peer: Peer,
    slot: ConnectionSlot,
) -> io::Result<Connection> {
    let stream = acceptor.accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    peer.certificate = PeerCertificate::new(chain, generation).map(Arc::new);
    Ok(Connection { io: Either::Right(Box::new(stream)), peer, slot })
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

//! The gRPC port: accepts connections, and hands them to the server once they are ready.
//!
//! A TLS handshake is made in a task of its own, so that a slow one holds up nobody. [`incoming`] is the one place where a
//! connection comes to be: what limits connections belongs into `Acceptor::admit`, and what is to be undone when one closes, into a
//! guard in [`Connection`].

mod stream;

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::Stream;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use self::stream::Transport;
pub use self::stream::{Connection, Peer};
use crate::{
    access::{Access, ConnectionId, PeerCertificate, Rule},
    observe::counters::Counters,
    port::connections::{ConnectionSlot, ConnectionSlots, Refusals},
};

/// The wait after an error of the listener itself, which is the machine's: it has no file descriptors left, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// TLS handshakes under way at once.
const MAX_HANDSHAKES: usize = 1000;

struct Acceptor {
    listener: TcpListener,
    access: Arc<Access>,
    /// The number of the next connection.
    next: u64,
    /// Those under way; dropping them ends them.
    handshakes: JoinSet<Option<Connection>>,
    /// The same ones, the oldest first, and some that have ended.
    order: VecDeque<AbortHandle>,
    handshake_timeout: Duration,
    admission: Admission,
    /// Whether the last error was told: a machine without descriptors would fill the log.
    told: bool,
}

/// Who is let in.
pub struct Admission {
    /// What proves who somebody is.
    pub access: Arc<Access>,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// The places that there are.
    pub slots: Arc<ConnectionSlots>,
    /// Those who find none are told.
    pub refusals: Refusals,
    /// Where they are counted.
    pub counters: Arc<Counters>,
}

/// The connections that come to a listener, as they become ready. Ends never; a connection that fails is nobody else's affair.
pub fn incoming(listener: TcpListener, admission: Admission) -> impl Stream<Item = Connection> {
    let acceptor = Acceptor {
        listener,
        access: admission.access.clone(),
        next: 1,
        handshakes: JoinSet::new(),
        order: VecDeque::new(),
        handshake_timeout: admission.handshake_timeout,
        admission,
        told: false,
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
                    // It failed, which was told, or had to make room.
                    Ok(None) | Err(_) => continue,
                },
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    self.told = false;
                    if let Some(connection) = self.admit(stream, address) {
                        return connection;
                    }
                }
                // The client's: it went away before it was accepted.
                Err(error) if is_of_client(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.told, true) {
                        tracing::warn!(%error, "connections cannot be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Lets a new connection in: at once, or when its handshake is done.
    fn admit(&mut self, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        let connection = ConnectionId(self.next);
        self.next += 1;
        let Admission { slots, refusals, counters, .. } = &mut self.admission;
        let slot = match slots.take(address.ip()) {
            Ok(slot) => slot,
            Err(full) => {
                counters.refused(full.limit);
                refusals.refuse(stream, full);
                return None;
            }
        };
        counters.connected();
        // What is small and urgent must not wait for more. An error is the client's, which has gone.
        stream.set_nodelay(true).ok()?;
        let peer = Peer { connection, address, streams: Arc::default(), certificate: None };
        let Some((acceptor, number)) = self.access.acceptor() else {
            return Some(Connection::new(Transport::Plain(stream), peer, slot));
        };
        self.make_room();
        let (access, timeout) = (self.access.clone(), self.handshake_timeout);
        let handshake = async move {
            let shaking =
                tokio::time::timeout(timeout, handshake(acceptor, number, stream, peer, slot));
            match shaking.await {
                Ok(Ok(connection)) => Some(connection),
                Ok(Err(error)) => {
                    access.refusals.note(Rule::Handshake, &address, &error.to_string());
                    None
                }
                Err(_) => {
                    access.refusals.note(Rule::Handshake, &address, "it took too long");
                    None
                }
            }
        };
        self.order.push_back(self.handshakes.spawn(handshake));
        None
    }

    /// Ends the oldest handshakes where too many are under way: an honest one takes a few milliseconds, and is not among them.
    fn make_room(&mut self) {
        self.order.retain(|handshake| !handshake.is_finished());
        while self.order.len() >= MAX_HANDSHAKES {
            if let Some(oldest) = self.order.pop_front() {
                oldest.abort();
                self.access.refusals.note(Rule::Handshake, &"a slow one", "too many are under way");
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    number: u64,
    stream: TcpStream,
    mut peer: Peer,
    slot: ConnectionSlot,
) -> io::Result<Connection> {
    let stream = acceptor.accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    peer.certificate = PeerCertificate::new(chain, number).map(Arc::new);
    Ok(Connection::new(Transport::Tls(Box::new(stream)), peer, slot))
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

//! The connections of the gRPC port: their limits, and how each is served.
//!
//! This is tonic's loop over hyper, with what tonic has no settings for: the bytes that may wait
//! to be sent on a stream, time limits for the connection preface and for idle connections, and
//! one task for a connection with all its requests.

mod activity;
mod connection;
mod driver;
mod goaway;
mod peer;
mod preface;
mod slots;

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{BoxError, Service};

pub use self::{
    goaway::GoawaySender,
    peer::Connection,
    slots::{ConnectionSlot, ConnectionSlots, SlotsExhausted},
};
use crate::{
    config::{Keepalive, Limits},
    port::counters::Counters,
};

/// Bytes that may wait on one stream until the client takes them; one message may wait besides. A
/// slow reader is not noticed before this is full, and a client that never reads costs this much.
const SEND_BUFFER: usize = 128 * 1024;

/// Streams that a client may reset before the gateway has accepted them; one more closes the
/// connection. It is more than fit into what is read before streams are accepted, since many
/// clients of a load balancer share one connection, and what one of them does must not end it for
/// all. For the same reason there is no limit of streams that are reset for a client's errors.
const MAX_RESETS: usize = 8192;

/// Limits of one connection.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Requests in flight, open streams included.
    pub requests: u32,
    /// Bytes of the header fields of a request that HTTP/2 takes: twice those that are allowed, so
    /// that a request with a little too many is answered and counted.
    pub header_bytes: u32,
    /// Bytes that it may send on one stream before the gateway has read them.
    pub stream_window: u32,
    /// Time until the client has sent its HTTP/2 connection preface.
    pub handshake_timeout: Duration,
    /// Time without a request.
    pub idle_timeout: Duration,
    /// HTTP/2 PINGs, which find dead connections.
    pub keepalive: Keepalive,
    /// Whether clients of HTTP/1.1 are served.
    pub http1: Http1,
}

/// What is done for clients of HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http1 {
    /// One answer, which says that gRPC needs HTTP/2.
    Refused,
    /// Their requests are served, one after the other.
    Served,
}

impl ConnectionLimits {
    /// The limits of a configuration.
    pub fn new(limits: &Limits, keepalive: &Keepalive, http1: Http1) -> ConnectionLimits {
        let requests = limits.max_streams_per_connection + limits.max_requests_per_connection;
        ConnectionLimits {
            requests: u32::try_from(requests).unwrap_or(u32::MAX),
            header_bytes: u32::try_from(2 * limits.max_header_bytes).unwrap_or(u32::MAX),
            stream_window: u32::try_from(limits.stream_window).unwrap_or(u32::MAX / 8),
            handshake_timeout: limits.handshake_timeout,
            idle_timeout: limits.idle_timeout,
            keepalive: keepalive.clone(),
            http1,
        }
    }
}

/// Serves connections until `shutdown`: passes their requests to `service`, which must always be
/// ready for one. Then closes the open connections gracefully and waits for that. Dropping the
/// future closes all connections at once.
pub async fn serve<S, B>(
    incoming: impl Stream<Item = Connection>,
    service: S,
    limits: ConnectionLimits,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let abort = CancellationToken::new();
    let _abort = abort.clone().drop_guard();
    let tasks = TaskTracker::new();
    {
        // Dropped at the end of this block, and the listener with it, so that clients that connect
        // while the gateway shuts down are refused at once.
        let mut incoming = std::pin::pin!(incoming);
        let shared = Arc::new(connection::Shared { service, limits, counters, shutdown, abort });
        loop {
            tokio::select! {
                biased;
                () = shared.shutdown.cancelled() => break,
                connection = incoming.next() => match connection {
                    Some(connection) => {
                        tasks.spawn(connection::serve(connection, shared.clone()));
                    }
                    None => break,
                },
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

//! The connections of the gRPC port: what each may hold, and how long it may stay.
//!
//! This is tonic's own loop over hyper, with what that one has no setting for: how much may wait to be sent on a stream, how long
//! a connection may be silent at its begin and idle later, and one task for a
//! connection with all its requests, which has an owner.

mod activity;
mod connection;
mod refusal;
mod slots;
mod together;

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::Connected;
use tower::{BoxError, Service};

pub use self::{
    refusal::Refusals,
    slots::{ConnectionSlot, ConnectionSlots, Full, peer_of},
};
use crate::config::{Keepalive, Limits};
use crate::observe::counters::Counters;

/// Bytes of requests that a client may send ahead on one stream, and on a whole connection, of what was not read yet.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Bytes that may wait on one stream for a connection that does not take them; one message more may lie behind them. What hides
/// a slow reader, and what a client costs that never reads.
const SEND_BUFFER: usize = 128 * 1024;

/// Streams that a client may have reset before they were looked at, or that were reset for its errors; then it is sent away.
const MAX_RESETS: usize = 20;
const MAX_ERRORS: usize = 256;

/// What one connection may do.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Requests at one time, streams included.
    pub requests: u32,
    /// Bytes of the header fields of a request.
    pub header_bytes: u32,
    /// Until HTTP/2 stands.
    pub handshake_timeout: Duration,
    /// Without a request.
    pub idle_timeout: Duration,
    /// How it is found out that its client is gone.
    pub keepalive: Keepalive,
}

impl Terms {
    /// As the configuration has them.
    pub fn new(limits: &Limits, keepalive: &Keepalive) -> Terms {
        let requests = limits.max_streams_per_connection + limits.max_requests_per_connection;
        Terms {
            requests: u32::try_from(requests).unwrap_or(u32::MAX),
            header_bytes: u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX),
            handshake_timeout: limits.handshake_timeout,
            idle_timeout: limits.idle_timeout,
            keepalive: keepalive.clone(),
        }
    }
}

/// Serves connections until `ended`: hands their requests to `service`, which must always be ready for one. Then asks those that are
/// left to close, and waits for it. Dropping it ends them all.
pub async fn serve<IO, S, B>(
    incoming: impl Stream<Item = IO>,
    service: S,
    terms: Terms,
    counters: Arc<Counters>,
    ended: CancellationToken,
) where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let gone = CancellationToken::new();
    let _gone = gone.clone().drop_guard();
    let tasks = TaskTracker::new();
    {
        // Its listener is closed when it is no longer asked: who connects then is told so at once.
        let mut incoming = std::pin::pin!(incoming);
        let shared = Arc::new(connection::Shared { service, terms, counters, ended, gone });
        loop {
            tokio::select! {
                biased;
                () = shared.ended.cancelled() => break,
                io = incoming.next() => match io {
                    Some(io) => {
                        tasks.spawn(connection::serve(io, shared.clone()));
                    }
                    None => break,
                },
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

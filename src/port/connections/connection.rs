//! Serves one connection, from its first byte to its last.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Service};

use super::{Connection, ConnectionLimits, Http1, MAX_RESETS, SEND_BUFFER};
use crate::port::connections::{
    activity::{Activity, RequestExecutor},
    driver::{self, NewRequests},
    preface::{PrefaceIo, Protocol},
};
use crate::{errors::Limit, port::counters::Counters};

/// How long an idle connection may take to close after its GOAWAY.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks of a connection within one `idleTimeout`. It is idle when this many in a row found no
/// new request.
const IDLE_CHECKS: u32 = 4;

/// Shared by all connections.
pub struct Shared<S> {
    /// Answers requests. Always ready for one.
    pub service: S,
    pub limits: ConnectionLimits,
    pub counters: Arc<Counters>,
    /// Closes all connections gracefully.
    pub shutdown: CancellationToken,
    /// Closes all connections at once.
    pub abort: CancellationToken,
}

/// The stages of an HTTP/2 connection.
enum Stage {
    /// Waits for the client's connection preface.
    Preface,
    /// Serves requests: how many there were at the last check, if none was in flight then, and how
    /// many checks in a row have found the same.
    Open { requests: Option<u64>, checks: u32 },
    /// Has sent GOAWAY, since the gateway stops or the connection was asked to leave; ends with its
    /// last request.
    ShuttingDown,
    /// Has sent GOAWAY because it is idle.
    ClosingIdle,
}

/// Serves one connection until it is closed.
///
/// Memory that only one stage needs is freed with that stage: there may be many connections, and
/// most of them are quiet.
pub async fn serve<S, B>(connection: Connection, shared: Arc<Shared<S>>)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let Connection { slot: _slot, peer, io } = connection;
    let activity = Arc::new(Activity::default());
    let deadline = Instant::now() + shared.limits.handshake_timeout;
    let detecting = detect_protocol(PrefaceIo::new(io, activity.clone()), deadline, &shared);
    let Some((mut io, protocol)) = Box::pin(detecting).await else { return };
    let of_all = shared.clone();
    let leaving = peer.leaving.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        of_all.service.clone().call(request)
    });
    match protocol {
        Protocol::Http2 => {
            let new_requests = Arc::new(NewRequests::default());
            let executor = RequestExecutor {
                new_requests: Arc::downgrade(&new_requests),
                activity: activity.clone(),
                counters: shared.counters.clone(),
            };
            io.limit_reading(Arc::downgrade(&new_requests), shared.limits.requests as usize);
            let builder = http2(&shared.limits, executor);
            let connection = Box::pin(builder.serve_connection(TokioIo::new(io), service));
            let leaving = leaving.all_asked();
            serve_http2(connection, new_requests, &activity, deadline, &shared, leaving).await;
        }
        Protocol::Other => {
            let builder = http1(&shared.limits);
            let connection = builder.serve_connection(TokioIo::new(io), service);
            match shared.limits.http1 {
                Http1::Served => {
                    serve_http1(Box::pin(connection), &shared, leaving.all_asked()).await;
                }
                Http1::Refused => refuse_http1(Box::pin(connection), deadline, &shared).await,
            }
        }
    }
}

/// Serves the requests of a client of HTTP/1.1 until it closes the connection, is idle, or is to
/// go on elsewhere.
async fn serve_http1<C: GracefulConnection, S>(
    mut connection: Pin<Box<C>>,
    shared: &Shared<S>,
    leaving: &CancellationToken,
) {
    tokio::select! {
        _ = &mut connection => return,
        () = shared.abort.cancelled() => return,
        () = shared.shutdown.cancelled() => {}
        () = leaving.cancelled() => {}
    }
    // After the answer under way.
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        () = shared.abort.cancelled() => {}
    }
}

/// Waits until a client of HTTP/1.1 has its one answer.
async fn refuse_http1<C: GracefulConnection, S>(
    connection: Pin<Box<C>>,
    deadline: Instant,
    shared: &Shared<S>,
) {
    tokio::select! {
        answered = timeout_at(deadline, connection) => if answered.is_err() {
            shared.counters.refused(Limit::HandshakeTimeout);
        },
        () = shared.abort.cancelled() => {}
    }
}

/// Finds out which protocol the client speaks. None: the connection is over before that is known.
async fn detect_protocol<S>(
    mut io: PrefaceIo,
    deadline: Instant,
    shared: &Shared<S>,
) -> Option<(PrefaceIo, Protocol)> {
    tokio::select! {
        protocol = timeout_at(deadline, io.detect()) => {
            let Ok(protocol) = protocol else {
                shared.counters.refused(Limit::HandshakeTimeout);
                return None;
            };
            let is_unused = io.is_unused();
            if is_unused {
                shared.counters.unused();
            }
            Some((io, protocol.ok().filter(|_| !is_unused)?))
        }
        () = shared.abort.cancelled() => None,
        // No request is in flight yet.
        () = shared.shutdown.cancelled() => None,
    }
}

async fn serve_http2<C: GracefulConnection, S>(
    mut connection: Pin<Box<C>>,
    new_requests: Arc<NewRequests>,
    activity: &Activity,
    deadline: Instant,
    shared: &Shared<S>,
    leaving: &CancellationToken,
) {
    let mut stage = Stage::Preface;
    let mut timer = pin!(sleep_until(deadline));
    let mut abort = pin!(shared.abort.cancelled());
    let mut shutdown = pin!(shared.shutdown.cancelled());
    // What its client opens next is to be on a new connection, which may lead elsewhere.
    let mut leaving = pin!(leaving.cancelled());
    driver::run(connection.as_mut(), new_requests, |mut connection, cx| {
        if abort.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !stage.is_shutting_down()
            && (shutdown.as_mut().poll(cx).is_ready() || leaving.as_mut().poll(cx).is_ready())
        {
            connection.as_mut().graceful_shutdown();
            stage = Stage::ShuttingDown;
        }
        while !stage.is_shutting_down() && timer.as_mut().poll(cx).is_ready() {
            let Some((next, wait)) = stage.next(activity, &shared.limits) else {
                if matches!(stage, Stage::Preface) {
                    shared.counters.refused(Limit::HandshakeTimeout);
                }
                return Poll::Ready(());
            };
            if matches!(next, Stage::ClosingIdle) {
                shared.counters.refused(Limit::IdleTimeout);
                connection.as_mut().graceful_shutdown();
            }
            stage = next;
            timer.as_mut().reset(Instant::now() + wait);
        }
        Poll::Pending
    })
    .await;
}

impl Stage {
    fn is_shutting_down(&self) -> bool {
        matches!(self, Stage::ShuttingDown)
    }

    /// The stage after the timer has fired, and the time until it fires again. None: the
    /// connection is closed at once.
    fn next(&self, activity: &Activity, limits: &ConnectionLimits) -> Option<(Stage, Duration)> {
        let check_interval = limits.idle_timeout / IDLE_CHECKS;
        let requests = activity.requests_if_idle();
        let open = |requests, checks| Some((Stage::Open { requests, checks }, check_interval));
        match self {
            Stage::Preface if activity.preface_received() => open(requests, 0),
            Stage::Open { requests: Some(before), checks } if requests == Some(*before) => {
                if checks + 1 >= IDLE_CHECKS {
                    Some((Stage::ClosingIdle, CLOSE_TIMEOUT))
                } else {
                    open(requests, checks + 1)
                }
            }
            Stage::Open { .. } => open(requests, 0),
            // A request that the client sent before it saw the GOAWAY is answered first.
            Stage::ClosingIdle if requests.is_none() => open(None, 0),
            Stage::Preface | Stage::ClosingIdle | Stage::ShuttingDown => None,
        }
    }
}

fn http2(limits: &ConnectionLimits, executor: RequestExecutor) -> http2::Builder<RequestExecutor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.stream_window * 4)
        .max_concurrent_streams(limits.requests)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(limits.header_bytes)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(None)
        .keep_alive_interval(limits.keepalive.interval)
        .keep_alive_timeout(limits.keepalive.timeout);
    builder
}

/// Where they are refused, clients get one answer. A client that is served has the time of an idle
/// connection for the headers of its next request.
fn http1(limits: &ConnectionLimits) -> http1::Builder {
    let (keep_alive, timeout) = match limits.http1 {
        Http1::Served => (true, limits.idle_timeout),
        Http1::Refused => (false, limits.handshake_timeout),
    };
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .max_buf_size(limits.header_bytes.max(8192) as usize)
        .keep_alive(keep_alive);
    builder
}

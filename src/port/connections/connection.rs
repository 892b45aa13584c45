//! One connection, from its first byte to its last.

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
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tower::{BoxError, Service};

use super::{CONNECTION_WINDOW, MAX_ERRORS, MAX_RESETS, SEND_BUFFER, STREAM_WINDOW, Terms};
use crate::port::connections::{
    activity::{Activity, Runner, Speaks, Watched},
    together::{self, Arrivals},
};
use crate::{observe::counters::Counters, rpc::limit::Limit};

/// How long a connection that was told to close may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at a connection within one `idleTimeout`: it is closed when nothing was asked for between two of them.
const LOOKS: u32 = 4;

/// What all connections share.
pub struct Shared<S> {
    /// Answers requests. Always ready for one.
    pub service: S,
    pub terms: Terms,
    pub counters: Arc<Counters>,
    /// They are asked to close.
    pub ended: CancellationToken,
    /// They are closed.
    pub gone: CancellationToken,
}

/// How far a connection is.
enum Stage {
    /// Its client must have greeted when the time is up.
    Greeting,
    /// Looked at from time to time: so many requests there were, and so many looks ago.
    Open { requests: Option<u64>, looks: u32 },
    /// It was told to close; nothing limits it but its requests, or the gateway's own end.
    Closing,
    /// It was told to close, and has nothing under way that it could wait for.
    ClosingIdle,
}

/// Serves one connection to its end.
///
/// What it needs for each stage lives in that one only: there may be many connections, on which nothing happens mostly.
pub async fn serve<IO, S, B>(io: IO, shared: Arc<Shared<S>>)
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let activity = Arc::new(Activity::default());
    let greeting = Instant::now() + shared.terms.handshake_timeout;
    let listening = listen(Watched::new(io, activity.clone()), greeting, &shared);
    let Some((io, speaks)) = Box::pin(listening).await else { return };
    let peer = io.connect_info();
    let of_all = shared.clone();
    let answers = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        of_all.service.clone().call(request)
    });
    match speaks {
        Speaks::Http2 => {
            let arrivals = Arc::new(Arrivals::default());
            let runner = Runner {
                arrivals: Arc::downgrade(&arrivals),
                activity: activity.clone(),
                counters: shared.counters.clone(),
            };
            let builder = http2(&shared.terms, runner);
            let connection = Box::pin(builder.serve_connection(TokioIo::new(io), answers));
            serve_http2(connection, arrivals, &activity, greeting, &shared).await;
        }
        Speaks::Other => {
            let builder = http1(&shared.terms);
            let connection = Box::pin(builder.serve_connection(TokioIo::new(io), answers));
            // One answer is all that it gets.
            tokio::select! {
                answered = timeout_at(greeting, connection) => if answered.is_err() {
                    shared.counters.refused(Limit::HandshakeTimeout);
                },
                () = shared.gone.cancelled() => {}
            }
        }
    }
}

/// Finds out how the client speaks; none if it does not in time, or need not any more.
async fn listen<IO: AsyncRead + Unpin, S>(
    mut io: Watched<IO>,
    greeting: Instant,
    shared: &Shared<S>,
) -> Option<(Watched<IO>, Speaks)> {
    tokio::select! {
        speaks = timeout_at(greeting, io.listen()) => {
            let Ok(speaks) = speaks else {
                shared.counters.refused(Limit::HandshakeTimeout);
                return None;
            };
            // One that went away has seen that itself.
            Some((io, speaks.ok()?))
        }
        () = shared.gone.cancelled() => None,
        // Nothing is under way on it.
        () = shared.ended.cancelled() => None,
    }
}

async fn serve_http2<C: Closing, S>(
    mut connection: Pin<Box<C>>,
    arrivals: Arc<Arrivals>,
    activity: &Activity,
    greeting: Instant,
    shared: &Shared<S>,
) {
    let terms = &shared.terms;
    let mut stage = Stage::Greeting;
    let mut timer = pin!(sleep_until(greeting));
    let mut gone = pin!(shared.gone.cancelled());
    let mut ended = pin!(shared.ended.cancelled());
    together::run(connection.as_mut(), arrivals, |mut connection, cx| {
        if gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !stage.is_closing() && ended.as_mut().poll(cx).is_ready() {
            connection.as_mut().close();
            stage = Stage::Closing;
        }
        while !stage.is_closing() && timer.as_mut().poll(cx).is_ready() {
            let (next, wait) = stage.after(activity, terms);
            let Some(next) = next else {
                if matches!(stage, Stage::Greeting) {
                    shared.counters.refused(Limit::HandshakeTimeout);
                }
                return Poll::Ready(());
            };
            if matches!(next, Stage::ClosingIdle) {
                shared.counters.refused(Limit::IdleTimeout);
                connection.as_mut().close();
            }
            stage = next;
            timer.as_mut().reset(Instant::now() + wait);
        }
        Poll::Pending
    })
    .await;
}

/// A connection that can be told to close.
trait Closing: Future {
    /// No request is taken any more; those that are under way are answered.
    fn close(self: Pin<&mut Self>);
}

impl<IO, S, B> Closing for http2::Connection<IO, S, Runner>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
    Runner: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn close(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl Stage {
    fn is_closing(&self) -> bool {
        matches!(self, Stage::Closing)
    }

    /// What comes when the time is up, and when to look again; None: the connection is cut off.
    fn after(&self, activity: &Activity, terms: &Terms) -> (Option<Stage>, Duration) {
        let look = terms.idle_timeout / LOOKS;
        let at_rest = activity.at_rest();
        let open = |requests, looks| (Some(Stage::Open { requests, looks }), look);
        match self {
            Stage::Greeting if activity.has_greeted() => open(at_rest, 0),
            Stage::Open { requests: Some(before), looks } if at_rest == Some(*before) => {
                if looks + 1 >= LOOKS {
                    (Some(Stage::ClosingIdle), CLOSE_TIMEOUT)
                } else {
                    open(at_rest, looks + 1)
                }
            }
            Stage::Open { .. } => open(at_rest, 0),
            // A request that crossed the farewell is answered first.
            Stage::ClosingIdle if at_rest.is_none() => open(None, 0),
            Stage::Greeting | Stage::ClosingIdle | Stage::Closing => (None, Duration::ZERO),
        }
    }
}

fn http2(terms: &Terms, runner: Runner) -> http2::Builder<Runner> {
    let mut builder = http2::Builder::new(runner);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(terms.requests)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(terms.header_bytes)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_ERRORS)
        .keep_alive_interval(terms.keepalive.interval)
        .keep_alive_timeout(terms.keepalive.timeout);
    builder
}

/// Whoever comes with HTTP/1 gets one answer.
fn http1(terms: &Terms) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(terms.handshake_timeout)
        .max_buf_size(terms.header_bytes.max(8192) as usize)
        .keep_alive(false);
    builder
}

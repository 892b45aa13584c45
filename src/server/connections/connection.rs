//! One connection, from its first byte to its last.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{body::Body, transport::server::Connected};
use tower::{Service, ServiceExt};

use super::{
    CONNECTION_WINDOW, MOST_ERRORS, MOST_RESETS, SEND_BUFFER, STREAM_WINDOW, Terms,
    activity::{Activity, Runner, Watched},
};
use crate::server::{counters::Counters, limit::Limit};

/// How long a connection that was told to close may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at a connection within one `idleTimeout`: it is closed when nothing was asked for between two of them.
const LOOKS: u32 = 4;

/// What all connections share.
pub struct Shared {
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
pub async fn serve<IO, S>(io: IO, service: S, shared: Arc<Shared>, tasks: TaskTracker)
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let terms = &shared.terms;
    let activity = Arc::new(Activity::default());
    let peer = io.connect_info();
    let answers = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        service.clone().oneshot(request)
    });
    let builder = builder(
        terms,
        Runner { tasks, activity: activity.clone(), counters: shared.counters.clone() },
    );
    let io = TokioIo::new(Watched::new(io, activity.clone()));
    let mut connection = pin!(builder.serve_connection(io, answers));

    let mut stage = Stage::Greeting;
    let mut timer = pin!(sleep_until(Instant::now() + terms.handshake_timeout));
    loop {
        tokio::select! {
            biased;
            // What goes wrong with a connection is its client's to see.
            _ = &mut connection => return,
            () = shared.gone.cancelled() => return,
            () = shared.ended.cancelled(), if !matches!(stage, Stage::Closing) => {
                connection.as_mut().graceful_shutdown();
                stage = Stage::Closing;
            }
            () = &mut timer, if !matches!(stage, Stage::Closing) => {
                let (next, wait) = stage.after(&activity, terms);
                match next {
                    None => {
                        if matches!(stage, Stage::Greeting) {
                            shared.counters.refused(Limit::HandshakeTimeout);
                        }
                        return;
                    }
                    Some(Stage::ClosingIdle) => {
                        shared.counters.refused(Limit::IdleTimeout);
                        connection.as_mut().graceful_shutdown();
                        stage = Stage::ClosingIdle;
                    }
                    Some(next) => stage = next,
                }
                timer.as_mut().reset(Instant::now() + wait);
            }
        }
    }
}

impl Stage {
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

fn builder(terms: &Terms, runner: Runner) -> Builder<Runner> {
    let mut builder = Builder::new(runner);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(terms.requests)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(terms.header_bytes)
        .max_pending_accept_reset_streams(MOST_RESETS)
        .max_local_error_reset_streams(MOST_ERRORS)
        .keep_alive_interval(terms.keepalive.interval)
        .keep_alive_timeout(terms.keepalive.timeout);
    // Whoever comes with HTTP/1 gets one answer.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(terms.handshake_timeout)
        .max_buf_size(terms.header_bytes.max(8192) as usize)
        .keep_alive(false);
    builder
}

//! A port with plain HTTP for probes, for Prometheus and for people: of gateways and of agents.
//!
//! The connections are served here and not by `axum::serve`, which has no limit on connections,
//! none on their age, and fixes the time for a request's headers.

pub mod process;
pub mod text;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use self::text::{Form, Text};
use crate::throttle::Throttle;

/// The media type of plain text.
pub const PLAIN: &str = "text/plain; charset=utf-8";

/// Open connections. For one more, the oldest is closed after the answer under way, so that clients
/// that hold connections open keep no probe waiting.
const MAX_CONNECTIONS: usize = 256;

/// Open connections, those that are being closed included. For one more, the oldest is closed at
/// once.
const MAX_TASKS: usize = 2 * MAX_CONNECTIONS;

/// The time for the headers of a request, which is also the time that a connection may be idle:
/// longer than the interval of scrapes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The age at which a connection is closed: after the answer under way, and by force if that takes
/// longer than `CLOSE_TIMEOUT`.
const MAX_AGE: Duration = Duration::from_mins(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The wait after a failed accept: the process has no more descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "the admin port listens");
    }
    let mut connections = JoinSet::new();
    // Those that were not asked to close, and the tasks of all: the oldest first.
    let (mut open, mut tasks) = (VecDeque::new(), VecDeque::<AbortHandle>::new());
    let throttle = Throttle::repeated();
    loop {
        while connections.try_join_next().is_some() {}
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tasks.retain(|task| !task.is_finished());
                    open.retain(|close: &CancellationToken| !close.is_cancelled());
                    if open.len() >= MAX_CONNECTIONS
                        && let Some(oldest) = open.pop_front()
                    {
                        oldest.cancel();
                    }
                    if tasks.len() >= MAX_TASKS
                        && let Some(oldest) = tasks.pop_front()
                    {
                        oldest.abort();
                    }
                    let close = CancellationToken::new();
                    open.push_back(close.clone());
                    tasks.push_back(connections.spawn(connection(stream, router.clone(), close)));
                }
                Err(error) => {
                    if let Some(left_out) = throttle.pass() {
                        tracing::warn!(%error, left_out, "the admin port cannot accept");
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, router: Router, close: CancellationToken) {
    // Cancelled when it ends, in whichever way: its place is free then.
    let closing = close.clone();
    let _close = close.drop_guard();
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // An error of the connection is its client's to handle.
        _ = &mut served => return,
        () = tokio::time::sleep(MAX_AGE) => {}
        () = closing.cancelled() => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, served).await;
}

/// The routes of a process that is no gateway: `/livez`; `/readyz`, with the reason why it is not
/// ready; and `/metrics`.
pub fn probes<S: Send + Sync + 'static>(
    shared: Arc<S>,
    ready: fn(&S) -> Result<(), &'static str>,
    metrics: fn(&S, &mut Text),
) -> Router {
    let of_ready = shared.clone();
    let readyz = async move || match ready(&of_ready) {
        Ok(()) => answer(StatusCode::OK, PLAIN, "ready\n"),
        Err(why) => answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("not ready: {why}\n")),
    };
    let metrics = async move |headers: HeaderMap| {
        let form = form_of(&headers);
        let mut text = Text::new(form);
        metrics(&shared, &mut text);
        process::add(&mut text);
        answer(StatusCode::OK, form.media_type(), text.finish())
    };
    Router::new()
        .route("/livez", get(async || answer(StatusCode::OK, PLAIN, "live\n")))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn(read_only))
}

/// The form of metrics that a scraper asks for.
pub fn form_of(headers: &HeaderMap) -> Form {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    Form::accepted(accept.unwrap_or_default())
}

/// Refuses methods that could mean a change, whatever the path.
pub async fn read_only(request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET or HEAD\n");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// An answer that holds for this moment only, and so is not cached.
pub fn answer(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response {
    let headers = [(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body.into()).into_response()
}

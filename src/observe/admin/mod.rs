//! The admin port: plain HTTP for probes, for Prometheus and for people.
//!
//! | path | what |
//! |---|---|
//! | `/livez` | 200 while the process answers, whatever Redis does: a restart would not bring Redis back |
//! | `/readyz` | 200 while the gateway serves; else 503, and why |
//! | `/metrics` | every metric, in the text format of Prometheus |
//! | `/` | a page for people; it asks `/api/status` and `/api/nodes` once a second |
//!
//! It has no way to change anything. It is not meant for strangers: what they can do is bounded all the same.

mod host;
mod metrics;
mod nodes;
mod page;
mod samples;
mod text;
mod view;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use self::{
    nodes::{Board, Query},
    samples::Samples,
};
use crate::rpc::service::Shared;
use crate::throttle::Throttle;

/// Connections that may be open; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;

/// How long a connection may take to send a request, and may be idle between two: longer than scrapes are apart.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection is kept. After that it is closed behind the answer under way, and cut off where that is not taken.
const MAX_AGE: Duration = Duration::from_mins(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The wait after a connection that could not be accepted: the process has no more descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// What the port shows.
struct Admin {
    shared: Arc<Shared>,
    samples: Samples,
    board: Board,
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "the admin port listens");
    }
    let admin = Arc::new(Admin { shared, samples: Samples::default(), board: Board::default() });
    let mut tick = tokio::time::interval(samples::EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let positions = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let throttle = Throttle::repeated();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let position = positions.clone().acquire_owned().await;
            (position, listener.accept().await)
        };
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => admin.samples.take(&admin.shared),
            (position, accepted) = accepted => match accepted {
                Ok((stream, _)) => {
                    let admin = admin.clone();
                    connections.spawn(async move {
                        let _position = position;
                        connection(stream, admin).await;
                    });
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

async fn connection(stream: TcpStream, admin: Arc<Admin>) {
    let answers = service_fn(move |request| {
        let response = admin.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answers);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // What goes wrong with a connection is its client's to see.
        _ = &mut served => return,
        () = tokio::time::sleep(MAX_AGE) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, served).await;
}

impl Admin {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET or HEAD\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/livez" => response(StatusCode::OK, PLAIN, "live\n"),
            "/readyz" => match self.shared.why_not_serving() {
                None => response(StatusCode::OK, PLAIN, "ready\n"),
                Some(why) => {
                    response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("not ready: {why}\n"))
                }
            },
            "/metrics" => response(StatusCode::OK, text::MEDIA_TYPE, metrics::render(&self.shared)),
            path => self.for_people(path, request),
        }
    }

    /// The page and what it asks for: these name nodes.
    fn for_people(&self, path: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        if !host.is_some_and(host::is_private) {
            let why = "open the page by address, or by a name of a private network: see docs/operations.md\n";
            return response(StatusCode::MISDIRECTED_REQUEST, PLAIN, why);
        }
        let query = request.uri().query().unwrap_or_default();
        let mut response = match path {
            "/api/status" => {
                let after = url::form_urlencoded::parse(query.as_bytes())
                    .find_map(|(key, value)| (key == "after").then(|| value.parse().ok())?);
                json(&view::view(&self.shared, &self.samples, after.unwrap_or(0)))
            }
            "/api/nodes" => json(&self.board.answer(&self.shared, &Query::parse(query))),
            path => page::asset(path).map_or_else(
                || {
                    response(
                        StatusCode::NOT_FOUND,
                        PLAIN,
                        "here are /, /livez, /readyz and /metrics\n",
                    )
                },
                |asset| response(StatusCode::OK, asset.media_type, asset.body()),
            ),
        };
        page::guard(response.headers_mut());
        response
    }
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => response(StatusCode::OK, JSON, body),
        Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
    }
}

fn response(
    status: StatusCode,
    media_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    // It is true now, and only now.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

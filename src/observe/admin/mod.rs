//! The admin port: plain HTTP for probes, for Prometheus and for people.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process answers, even without Redis: a restart would not help |
//! | `/readyz` | 200 while the gateway serves; otherwise 503 and the reason |
//! | `/metrics` | all metrics, in the text format of Prometheus |
//! | `/` | a page for people; it asks `/api/status` and `/api/nodes` once a second |
//!
//! It is read-only. It is meant for operators, but safe to reach for others: connections, their
//! age and the time for a request are limited.
//!
//! The routes are an axum `Router`. The connections are served here and not by `axum::serve`, which
//! has no limit on connections, none on their age, and fixes the time for a request's headers.

mod host;
mod metrics;
mod nodes;
mod page;
mod routes;
mod samples;
mod text;
mod view;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use self::{nodes::NodeTable, samples::Samples};
use super::{Records, status::status, trace::Tracer};
use crate::{
    access::{Refusals, quota::Quotas},
    lifecycle::Lifecycle,
    port::{connections::ConnectionSlots, counters::Counters as PortCounters},
    presence::Nodes,
    proto::v1,
    throttle::Throttle,
};

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

/// Everything that the port shows.
pub struct Sources {
    /// The state of this gateway.
    pub gateway: Arc<Lifecycle>,
    /// The open streams, and the other gateways.
    pub nodes: Arc<Nodes>,
    /// Requests, streams and failures.
    pub records: Arc<Records>,
    /// Connections, and requests in flight.
    pub port: Arc<PortCounters>,
    /// The connections that may be open.
    pub slots: Arc<ConnectionSlots>,
    /// Bytes of requests in flight.
    pub quotas: Arc<Quotas>,
    /// Refusals by access rule.
    pub refusals: Arc<Refusals>,
    /// Spans that were exported.
    pub tracer: Tracer,
}

impl Sources {
    /// The status of this gateway now.
    fn status(&self) -> v1::GetStatusResponse {
        status(&self.gateway, &self.nodes, &self.records.counters)
    }
}

/// The state of the routes.
struct Admin {
    sources: Sources,
    samples: Samples,
    nodes: NodeTable,
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, sources: Sources, stop: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "the admin port listens");
    }
    let admin =
        Arc::new(Admin { sources, samples: Samples::default(), nodes: NodeTable::default() });
    let router = routes::router(admin.clone());
    let mut tick = tokio::time::interval(samples::INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connections = JoinSet::new();
    // Those that were not asked to close, and the tasks of all: the oldest first.
    let (mut open, mut tasks) = (VecDeque::new(), VecDeque::<AbortHandle>::new());
    let throttle = Throttle::repeated();
    loop {
        while connections.try_join_next().is_some() {}
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => admin.samples.take(&admin.sources),
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

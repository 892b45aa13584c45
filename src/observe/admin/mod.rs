//! The admin port: plain HTTP for probes, for Prometheus and for people.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process answers, even without Redis: a restart would not help |
//! | `/readyz` | 200 while the gateway serves; otherwise 503 and the reason |
//! | `/metrics` | all metrics, in the text format of Prometheus |
//! | `/` | a page for people; it asks `/api/status` and `/api/nodes` once a second |
//! | `/words` | what the words of the page mean |
//!
//! It is read-only. It is meant for operators, but safe to reach for others: connections, their
//! age and the time for a request are limited.

mod glossary;
mod host;
mod metrics;
mod nodes;
mod page;
mod routes;
mod samples;
mod values;
mod view;

use std::sync::Arc;

use tokio::{net::TcpListener, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::{nodes::NodeTable, samples::Samples};
use super::{Records, status::status, trace::Tracer};
use crate::{
    access::{Refusals, quota::Quotas},
    admin_port,
    lifecycle::Lifecycle,
    port::{connections::ConnectionSlots, counters::Counters as PortCounters},
    presence::Nodes,
    proto::v1,
};

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
    let admin =
        Arc::new(Admin { sources, samples: Samples::default(), nodes: NodeTable::default() });
    let router = routes::router(admin.clone());
    let mut tick = tokio::time::interval(samples::INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sampling = async {
        loop {
            tick.tick().await;
            admin.samples.take(&admin.sources);
        }
    };
    tokio::select! {
        () = admin_port::serve(listener, router, stop) => {}
        () = sampling => {}
    }
}

//! Brings spans to a collector (OTLP over gRPC).
//!
//! Whoever records a span never waits: what does not fit in the queue is dropped, and counted. A collector that is down or slow
//! costs the queue's memory and nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{InstrumentationScope, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request,
    metadata::{AsciiMetadataKey, AsciiMetadataValue},
    transport::{Channel, Endpoint},
};

use super::{Tracer, span::attribute};
use crate::config::Otlp;

/// Spans that may wait for the collector.
const QUEUE: usize = 4096;

/// Spans of one request to it.
const BATCH: usize = 512;

/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_millis(200);

/// The wait after a request that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Totals since the start.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub exported: AtomicU64,
    pub dropped: AtomicU64,
}

/// The task that exports. It ends with [`Exporting::close`], or when this is dropped.
#[derive(Debug)]
pub struct Exporting {
    task: Option<JoinHandle<()>>,
    stop: CancellationToken,
    timeout: Duration,
}

struct Exporter {
    queue: mpsc::Receiver<Span>,
    client: TraceServiceClient<Channel>,
    header: Option<(AsciiMetadataKey, AsciiMetadataValue)>,
    resource: Resource,
    timeout: Duration,
    totals: Arc<Totals>,
    /// Whether the collector took the last batch; none before the first.
    takes: Option<bool>,
    stop: CancellationToken,
}

/// Starts to export where that is configured; else the tracer is one that is off.
pub fn start(otlp: Option<&Otlp>, gateway_id: &str) -> (Tracer, Exporting) {
    let stop = CancellationToken::new();
    // The configuration was checked: an endpoint that is no URL is refused there.
    let endpoint = otlp.and_then(|otlp| Endpoint::from_shared(otlp.endpoint.clone()).ok());
    let (Some(otlp), Some(endpoint)) = (otlp, endpoint) else {
        return (Tracer::off(), Exporting { task: None, stop, timeout: Duration::ZERO });
    };
    let channel = endpoint.connect_timeout(otlp.timeout).connect_lazy();
    let (sender, queue) = mpsc::channel(QUEUE);
    let totals = Arc::new(Totals::default());
    let exporter = Exporter {
        queue,
        client: TraceServiceClient::new(channel),
        header: header(otlp),
        resource: resource(gateway_id),
        timeout: otlp.timeout,
        totals: totals.clone(),
        takes: None,
        stop: stop.clone(),
    };
    let task = Some(tokio::spawn(exporter.run()));
    let tracer = Tracer::on(sender, totals, otlp.sample_one_in);
    (tracer, Exporting { task, stop, timeout: otlp.timeout })
}

impl Exporting {
    /// Exports what waits, for as long as a request to the collector may take, and ends.
    pub async fn close(mut self) {
        self.stop.cancel();
        let Some(mut task) = self.task.take() else { return };
        if tokio::time::timeout(self.timeout + GATHER, &mut task).await.is_err() {
            task.abort();
        }
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Exporter {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                count = self.queue.recv_many(&mut batch, BATCH) => if count == 0 { return },
            }
            if batch.len() < BATCH {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(GATHER) => {}
                }
            }
            while batch.len() < BATCH
                && let Ok(span) = self.queue.try_recv()
            {
                batch.push(span);
            }
            if !self.export(std::mem::take(&mut batch), self.timeout).await {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
        self.queue.close();
        let deadline = Instant::now() + self.timeout;
        while self.queue.recv_many(&mut batch, BATCH).await > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.export(std::mem::take(&mut batch), left).await {
                break;
            }
        }
    }

    /// Sends spans; whether the collector took them.
    async fn export(&mut self, spans: Vec<Span>, limit: Duration) -> bool {
        let count = spans.len() as u64;
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let scope_spans = ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() };
        let resource_spans = vec![ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans: vec![scope_spans],
            ..ResourceSpans::default()
        }];
        let mut request = Request::new(ExportTraceServiceRequest { resource_spans });
        if let Some((name, value)) = &self.header {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        let answer = match tokio::time::timeout(limit, self.client.export(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(format!("{:?}: {}", status.code(), status.message())),
            Err(_) => Err("it does not answer in time".to_owned()),
        };
        let rejected = match &answer {
            Ok(answer) => answer.partial_success.as_ref().map_or(0, |part| part.rejected_spans),
            Err(_) => i64::MAX,
        };
        let rejected = u64::try_from(rejected).unwrap_or(0).min(count);
        let dropped = self.totals.dropped.fetch_add(rejected, Ordering::Relaxed) + rejected;
        self.totals.exported.fetch_add(count - rejected, Ordering::Relaxed);
        match &answer {
            Ok(_) if self.takes == Some(false) => {
                tracing::info!(dropped, "the trace collector takes spans again");
            }
            Err(why) if self.takes != Some(false) => {
                tracing::warn!(why, "the trace collector does not take spans");
            }
            _ => {}
        }
        self.takes = Some(answer.is_ok());
        answer.is_ok()
    }
}

/// What each request to the collector carries.
fn header(otlp: &Otlp) -> Option<(AsciiMetadataKey, AsciiMetadataValue)> {
    let secret = otlp.secret.as_ref()?;
    let mut value: AsciiMetadataValue = secret.expose().parse().ok()?;
    value.set_sensitive(true);
    Some((otlp.header.parse().ok()?, value))
}

/// Who sends the spans.
fn resource(gateway_id: &str) -> Resource {
    let text = |key, value: &str| attribute(key, Value::StringValue(value.to_owned()));
    let attributes = vec![
        text("service.name", env!("CARGO_PKG_NAME")),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("service.instance.id", gateway_id),
    ];
    Resource { attributes, ..Resource::default() }
}

//! Exports spans to a trace collector (OTLP over gRPC).
//!
//! The OpenTelemetry SDK queues, batches and encodes spans, on a thread of its own: ending a span
//! never waits. The request to the collector is made here and not by the exporter of
//! `opentelemetry-otlp`, because that one (0.33.1)
//!
//! - reports spans that the collector rejected (`partial_success`) as exported, while
//!   `trunkline_trace_spans_dropped_total` promises to count them;
//! - takes headers and compression from `OTEL_EXPORTER_OTLP_*` of the environment, past the
//!   configuration;
//! - has no limit on a request that cannot connect: `otlp.timeout` would not hold.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::{InstrumentationScope, KeyValue, trace::TracerProvider as _};
use opentelemetry_proto::{
    tonic::collector::trace::v1::{
        ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
    },
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span as SdkSpan,
        SpanData, SpanExporter, SpanLimits, SpanProcessor,
    },
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request,
    metadata::{AsciiMetadataKey, AsciiMetadataValue},
    transport::{Channel, Endpoint},
};

use super::Tracer;
use crate::{config::Otlp, trace_context::MAX_LINKS};

/// Spans that may wait for export; more are dropped.
const MAX_QUEUE: usize = 4096;

/// Spans of one request to the collector.
const MAX_BATCH: usize = 512;

/// The time between two exports, unless a batch is full before.
const EXPORT_INTERVAL: Duration = Duration::from_millis(200);

/// The wait after a request that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Counts of spans.
#[derive(Debug, Default)]
pub(super) struct Totals {
    waiting: AtomicUsize,
    exported: AtomicU64,
    dropped: AtomicU64,
}

/// The export under way. It ends with [`Exporting::close`], or at once when this is dropped.
#[derive(Debug)]
pub struct Exporting {
    provider: Option<SdkTracerProvider>,
    stop: CancellationToken,
    timeout: Duration,
}

/// The SDK's processor behind a limit of our own: the SDK's own limit drops without a count that
/// can be read.
#[derive(Debug)]
struct CountedProcessor {
    inner: BatchSpanProcessor,
    totals: Arc<Totals>,
}

/// The collector, as the SDK's processor uses it.
#[derive(Debug)]
struct Collector {
    client: TraceServiceClient<Channel>,
    header: Option<(AsciiMetadataKey, AsciiMetadataValue)>,
    resource: ResourceAttributesWithSchema,
    timeout: Duration,
    totals: Arc<Totals>,
    /// True while the last request failed.
    failing: AtomicBool,
    runtime: Handle,
    stop: CancellationToken,
}

/// Starts the export if a collector is configured; otherwise the tracer is off. Must be called
/// within a tokio runtime.
pub fn start(otlp: Option<&Otlp>, gateway_id: &str) -> (Tracer, Exporting) {
    let stop = CancellationToken::new();
    // The configuration was checked: an endpoint that is no URL is refused there.
    let endpoint = otlp.and_then(|otlp| Endpoint::from_shared(otlp.endpoint.clone()).ok());
    let (Some(otlp), Some(endpoint)) = (otlp, endpoint) else {
        let timeout = Duration::ZERO;
        return (Tracer::default(), Exporting { provider: None, stop, timeout });
    };
    let totals = Arc::new(Totals::default());
    let collector = Collector {
        client: TraceServiceClient::new(endpoint.connect_timeout(otlp.timeout).connect_lazy()),
        header: header(otlp),
        resource: ResourceAttributesWithSchema::default(),
        timeout: otlp.timeout,
        totals: totals.clone(),
        failing: AtomicBool::new(false),
        runtime: Handle::current(),
        stop: stop.clone(),
    };
    // Everything is set, since each default can be overridden by a variable of the environment.
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(MAX_QUEUE)
        .with_max_export_batch_size(MAX_BATCH)
        .with_scheduled_delay(EXPORT_INTERVAL)
        .build();
    let inner = BatchSpanProcessor::builder(collector).with_batch_config(config).build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(CountedProcessor { inner, totals: totals.clone() })
        .with_resource(resource(gateway_id))
        // A span is made only where the trace is recorded.
        .with_sampler(Sampler::AlwaysOn)
        .with_span_limits(SpanLimits { max_links_per_span: MAX_LINKS, ..SpanLimits::default() })
        .build();
    let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
        .with_version(env!("CARGO_PKG_VERSION"))
        .build();
    let tracer = Tracer::on(provider.tracer_with_scope(scope), totals, otlp.sample_one_in);
    (tracer, Exporting { provider: Some(provider), stop, timeout: otlp.timeout })
}

impl Totals {
    pub(super) fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Takes a slot of the queue; false if there is none.
    fn enqueue(&self) -> bool {
        let more = |waiting| (waiting < MAX_QUEUE).then_some(waiting + 1);
        let taken = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if !taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }
}

impl Exporting {
    /// Exports the spans that wait, for as long as a request to the collector may take, and ends.
    pub async fn close(mut self) {
        self.stop.cancel();
        let Some(provider) = self.provider.take() else { return };
        let limit = self.timeout + EXPORT_INTERVAL;
        let shutdown = move || provider.shutdown_with_timeout(limit);
        // It fails if the collector does, which has been logged, or if the time is up.
        let _ = tokio::task::spawn_blocking(shutdown).await;
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(provider) = &self.provider {
            // Without this, the last clone would wait for the collector when it is dropped.
            let _ = provider.shutdown_with_timeout(Duration::ZERO);
        }
    }
}

impl SpanProcessor for CountedProcessor {
    fn on_start(&self, span: &mut SdkSpan, context: &opentelemetry::Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.totals.enqueue() {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.totals.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        let count = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let mut request = Request::new(ExportTraceServiceRequest { resource_spans });
        if let Some((name, value)) = &self.header {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        let (mut client, limit) = (self.client.clone(), self.timeout);
        // The SDK's thread has no timers: the request runs as a task.
        let sent = self.runtime.spawn(async move {
            match tokio::time::timeout(limit, client.export(request)).await {
                Ok(Ok(answer)) => Ok(answer.into_inner().partial_success.unwrap_or_default()),
                Ok(Err(status)) => Err(format!("{:?}: {}", status.code(), status.message())),
                Err(_) => Err(format!("no answer within {limit:?}")),
            }
        });
        let answer = sent.await.unwrap_or_else(|_| Err("the gateway has stopped".to_owned()));
        let rejected = match &answer {
            Ok(partial) => u64::try_from(partial.rejected_spans).unwrap_or(0).min(count),
            Err(_) => count,
        };
        let dropped = self.totals.dropped.fetch_add(rejected, Ordering::Relaxed) + rejected;
        self.totals.exported.fetch_add(count - rejected, Ordering::Relaxed);
        match answer {
            Ok(_) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(dropped, "the trace collector accepts spans again");
                }
                Ok(())
            }
            Err(why) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(why, "the trace collector does not accept spans");
                }
                let stop = self.stop.clone();
                let wait = self
                    .runtime
                    .spawn(async move { tokio::time::timeout(RETRY, stop.cancelled()).await });
                // It ends early with the runtime.
                let _ = wait.await;
                Err(OTelSdkError::InternalFailure(why))
            }
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

/// The header with the secret, which each request to the collector carries.
fn header(otlp: &Otlp) -> Option<(AsciiMetadataKey, AsciiMetadataValue)> {
    let secret = otlp.secret.as_ref()?;
    let mut value: AsciiMetadataValue = secret.expose().parse().ok()?;
    value.set_sensitive(true);
    Some((otlp.header.parse().ok()?, value))
}

/// The sender of the spans.
fn resource(gateway_id: &str) -> Resource {
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", env!("CARGO_PKG_NAME")),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", gateway_id.to_owned()),
        ])
        .build()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::SystemTime};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn every_span_that_is_not_exported_counts_as_dropped() {
        // A port without a listener.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let (tracer, exporting) = start(Some(&Otlp { endpoint, ..Otlp::default() }), "gw-1");
        for _ in 0..3 * MAX_QUEUE {
            tracer.server_span("publish", None, SystemTime::now()).unwrap().end();
        }
        // The queue is bounded, and a batch may be on its way.
        assert!(tracer.dropped() >= (2 * MAX_QUEUE - 2 * MAX_BATCH) as u64);
        exporting.close().await;
        assert_eq!((tracer.exported(), tracer.dropped()), (0, 3 * MAX_QUEUE as u64));
    }
}

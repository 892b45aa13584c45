//! Spans of the events that belong to recorded traces, for a trace collector.
//!
//! An event may carry a trace context. If it says that the trace is recorded, and a collector is
//! configured, every gateway on the event's path records what it did: `Publish`, the append to the
//! bus, and each delivery. Other events cost a look at one flag.

mod export;

use std::{fmt, sync::Arc, time::SystemTime};

use opentelemetry::{
    Context, KeyValue,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _,
        TraceFlags, TraceId, TraceState, Tracer as _,
    },
};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};

use self::export::Totals;
pub use self::export::start;
use crate::{
    bus::{AppendOutcome, AppendRecord, AppendRecorder},
    trace_context::{MAX_LINKS, TraceContext},
};

/// Makes spans and queues them for export. Clones share one queue; the default makes none.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    tracer: SdkTracer,
    totals: Arc<Totals>,
    /// One of so many requests without a trace context begins a trace; 0: none does.
    sample_one_in: u32,
}

/// Work under way. It is queued for export when it ends; one that is dropped before counts as
/// cancelled.
#[derive(Debug)]
pub struct Span {
    inner: SdkSpan,
    /// The parent and the linked contexts, none of them twice.
    related: Vec<TraceContext>,
}

impl Tracer {
    fn on(tracer: SdkTracer, totals: Arc<Totals>, sample_one_in: u32) -> Tracer {
        Tracer(Some(Arc::new(Inner { tracer, totals, sample_one_in })))
    }

    /// True when a collector is configured.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// True when a request without a trace context is to begin a trace: for one in so many, at
    /// random.
    pub fn samples(&self) -> bool {
        let one_in = self.0.as_ref().map_or(0, |inner| inner.sample_one_in);
        one_in > 0 && rand::random_range(0..one_in) == 0
    }

    /// Starts a span of a request that this gateway answers.
    pub fn server_span(
        &self,
        name: &'static str,
        parent: Option<TraceContext>,
        start: SystemTime,
    ) -> Option<Span> {
        Some(self.0.as_ref()?.span(name, SpanKind::Server, parent, start))
    }

    /// Starts a span of an event that is handed to a node.
    pub fn consumer_span(
        &self,
        name: &'static str,
        parent: TraceContext,
        start: SystemTime,
    ) -> Option<Span> {
        Some(self.0.as_ref()?.span(name, SpanKind::Consumer, Some(parent), start))
    }

    /// The recorder of appends; `None` when the tracer is off.
    pub fn append_recorder(&self) -> Option<Arc<dyn AppendRecorder>> {
        Some(self.0.clone()?)
    }

    /// Spans that the collector accepted, since the start.
    pub fn exported(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.totals.exported())
    }

    /// Spans that were dropped or rejected, since the start.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.totals.dropped())
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

impl Inner {
    /// Starts a span below `parent`, or one that begins a trace.
    fn span(
        &self,
        name: &'static str,
        kind: SpanKind,
        parent: Option<TraceContext>,
        start: SystemTime,
    ) -> Span {
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(start);
        let context = match parent {
            Some(parent) => Context::new().with_remote_span_context(remote(parent)),
            None => Context::new(),
        };
        let inner = self.tracer.build_with_context(builder, &context);
        Span { inner, related: parent.into_iter().collect() }
    }
}

impl AppendRecorder for Inner {
    fn append_ended(&self, append: AppendRecord) {
        let AppendRecord { contexts, started, outcome } = append;
        let mut contexts = contexts.into_iter();
        let mut span = self.span("append", SpanKind::Producer, contexts.next(), started);
        contexts.for_each(|context| span.link(context));
        match outcome {
            Ok(AppendOutcome { shard, appended, count }) => {
                span.number("trunkline.shard", shard.0.into());
                span.number("trunkline.epoch", appended.epoch.0);
                span.number("trunkline.offset", appended.first.0);
                span.number("trunkline.events", count);
                span.end();
            }
            Err(why) => span.fail(why),
        }
    }
}

impl Span {
    /// The context for spans below this one.
    pub fn context(&self) -> TraceContext {
        let context = self.inner.span_context();
        TraceContext {
            trace_id: context.trace_id().to_bytes(),
            span_id: context.span_id().to_bytes(),
            sampled: context.is_sampled(),
        }
    }

    /// Adds a text attribute.
    pub fn text(&mut self, key: &'static str, value: impl Into<String>) {
        self.inner.set_attribute(KeyValue::new(key, value.into()));
    }

    /// Adds a number attribute. A number of more than 63 bits becomes the largest one that has 63.
    pub fn number(&mut self, key: &'static str, value: u64) {
        self.inner.set_attribute(KeyValue::new(key, i64::try_from(value).unwrap_or(i64::MAX)));
    }

    /// Links another trace context, once. Past [`MAX_LINKS`] they are only counted.
    pub fn link(&mut self, other: TraceContext) {
        if self.related.contains(&other) {
            return;
        }
        if self.related.len() <= MAX_LINKS as usize {
            self.related.push(other);
        }
        self.inner.add_link(remote(other), vec![]);
    }

    /// Ends it as successful.
    pub fn end(mut self) {
        self.inner.end();
    }

    /// Ends it as failed.
    pub fn fail(mut self, why: impl Into<String>) {
        self.inner.set_status(Status::error(why.into()));
        self.inner.end();
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // The SDK exports a span that is dropped; it does nothing to one that has ended.
        self.inner.set_status(Status::error("CANCELLED"));
    }
}

/// A context that came from another process, as the SDK takes it.
fn remote(context: TraceContext) -> SpanContext {
    let flags = TraceFlags::default().with_sampled(context.sampled);
    let (trace, span) =
        (TraceId::from_bytes(context.trace_id), SpanId::from_bytes(context.span_id));
    SpanContext::new(trace, span, flags, true, TraceState::NONE)
}

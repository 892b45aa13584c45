//! Following one event through gateways.
//!
//! An event may carry the context of a trace (W3C Trace Context). Where that says that the trace is recorded, and a collector is
//! configured, the gateways that the event passes tell what they did with it: `Publish`, the append to the bus, and each delivery.
//! Of other events nobody looks for more than a flag.

mod context;
mod export;
mod span;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use opentelemetry_proto::tonic::trace::v1::Span as Encoded;
use tokio::sync::mpsc;

use self::export::Totals;
pub use self::{
    context::{Carried, Context, MAX_TRACEPARENT, MAX_TRACESTATE},
    export::{Exporting, start},
    span::{MAX_LINKS, Role, Span},
};

/// Makes spans, and hands them to who exports them. Clones are the same one.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    queue: mpsc::Sender<Encoded>,
    totals: Arc<Totals>,
    /// Of so many requests without a context one is followed; 0: none.
    sample_one_in: u32,
}

/// The traces of a batch's events, for who appends them.
#[derive(Clone, Debug)]
pub struct Follow {
    tracer: Tracer,
    contexts: Vec<Context>,
}

impl Tracer {
    /// One that tells nobody anything.
    pub fn off() -> Tracer {
        Tracer(None)
    }

    fn on(queue: mpsc::Sender<Encoded>, totals: Arc<Totals>, sample_one_in: u32) -> Tracer {
        Tracer(Some(Arc::new(Inner { queue, totals, sample_one_in })))
    }

    /// Whether anybody is told.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether a request that has no context is to be followed.
    pub fn samples(&self) -> bool {
        let one_in = self.0.as_ref().map_or(0, |inner| inner.sample_one_in);
        one_in > 0 && rand::random_range(0..one_in) == 0
    }

    /// Something that began at `start`, under `parent` or as a trace of its own.
    pub fn span(&self, name: &str, role: Role, parent: Option<Context>, start: SystemTime) -> Span {
        Span::new(self.clone(), name, role, parent, start)
    }

    /// Spans that the collector took.
    pub fn exported(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.totals.exported.load(Ordering::Relaxed))
    }

    /// Spans that it did not get.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.totals.dropped.load(Ordering::Relaxed))
    }

    fn record(&self, span: Encoded) {
        let Some(inner) = &self.0 else { return };
        if inner.queue.try_send(span).is_err() {
            inner.totals.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

impl Follow {
    /// Follows nothing yet.
    pub fn new(tracer: &Tracer) -> Follow {
        Follow { tracer: tracer.clone(), contexts: vec![] }
    }

    /// Follows one more event, unless they are too many for one span.
    pub fn add(&mut self, context: Context) {
        if self.contexts.len() <= MAX_LINKS && !self.contexts.contains(&context) {
            self.contexts.push(context);
        }
    }

    /// The span of an append of all these events: under the first one's context, and linked to the others'. None where none is
    /// followed.
    pub fn append<'a>(follows: impl Iterator<Item = &'a Follow>) -> Option<Span> {
        let mut span: Option<Span> = None;
        for follow in follows {
            for context in &follow.contexts {
                if let Some(span) = &mut span {
                    span.link(*context);
                    continue;
                }
                let (parent, now) = (Some(*context), SystemTime::now());
                span = Some(follow.tracer.span("append", Role::Producer, parent, now));
            }
        }
        span
    }
}

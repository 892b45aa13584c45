//! Spans of the events of recorded traces: their publishing and their deliveries.

use std::time::SystemTime;

use crate::{
    bus::{Batch, BatchTrace},
    errors::Error,
    hub::batch::TracedEvent,
    observe::trace::{Span, Tracer},
    proto::v1,
    rpc::validate::ValidPublish,
    trace_context::{IncomingTrace, TraceContext},
};

const PUBLISH: &str = "trunkline.v1.CoordinationService/Publish";

/// The span of a request to publish, if its trace is recorded.
pub struct Publishing {
    tracer: Tracer,
    began: SystemTime,
    span: Option<Span>,
}

impl Publishing {
    /// A request that came at `began` with the context `trace`. One without a context may be
    /// sampled: then it begins a trace, which its events carry.
    pub fn begin(
        tracer: &Tracer,
        trace: &mut Option<IncomingTrace>,
        began: SystemTime,
    ) -> Publishing {
        let span = match trace {
            Some(trace) if trace.context.sampled => {
                tracer.server_span(PUBLISH, Some(trace.context), began)
            }
            None if tracer.samples() => {
                let span = tracer.server_span(PUBLISH, None, began);
                *trace = span.as_ref().map(|span| IncomingTrace::new(span.context()));
                span
            }
            _ => None,
        };
        Publishing { tracer: tracer.clone(), began, span }
    }

    /// No span: a stream has no end that would say how long its events took. Their own contexts
    /// have their appends recorded.
    pub fn of_stream(tracer: &Tracer) -> Publishing {
        Publishing { tracer: tracer.clone(), began: SystemTime::now(), span: None }
    }

    /// Adds the events' own contexts: the first is the parent of a request without a context, the
    /// others are linked.
    pub fn join(&mut self, node_id: &str, publish: &ValidPublish) {
        if !self.tracer.is_on() {
            return;
        }
        for context in publish.events.iter().filter_map(|event| event.traced) {
            match &mut self.span {
                Some(span) => span.link(context),
                none => *none = self.tracer.server_span(PUBLISH, Some(context), self.began),
            }
        }
        if let Some(span) = &mut self.span {
            span.text("rpc.system", "grpc");
            span.text("rpc.service", v1::SERVICE);
            span.text("rpc.method", "Publish");
            span.text("trunkline.node_id", node_id);
            span.number("trunkline.events", publish.events.len() as u64);
        }
    }

    /// Has the append of an event recorded.
    pub fn trace(&self, batch: &mut Batch, context: Option<TraceContext>) {
        let Some(context) = context else { return };
        if batch.trace.is_none() {
            let recorder = self.tracer.append_recorder();
            batch.trace = recorder.map(|recorder| Box::new(BatchTrace::new(recorder)));
        }
        if let Some(trace) = &mut batch.trace {
            trace.add(context);
        }
    }

    /// The request was answered.
    pub fn end<T>(self, answer: &Result<T, Error>) {
        match (self.span, answer) {
            (Some(span), Ok(_)) => span.end(),
            (Some(span), Err(error)) => span.fail(error.reason()),
            (None, _) => {}
        }
    }
}

/// Records that events were handed to the connection of a node.
pub fn delivered(tracer: &Tracer, events: &[TracedEvent], node: &v1::Node) {
    for event in events {
        let Some(mut span) = tracer.consumer_span("deliver", event.context, event.received) else {
            return;
        };
        span.text("trunkline.node_id", &node.node_id);
        span.text("trunkline.subscription_id", &node.subscription_id);
        span.number("trunkline.kind", event.kind.into());
        span.end();
    }
}

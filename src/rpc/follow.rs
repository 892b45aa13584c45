//! What is told of the events of traces that are recorded: how they were published, and to whom they were delivered.

use std::time::SystemTime;

use crate::rpc::{error::Error, validate::Publish};
use crate::{
    bus::Batch,
    hub::judged::Followed,
    proto::v1,
    trace::{Carried, Context, Follow, Role, Span, Tracer},
};

const PUBLISH: &str = "trunkline.v1.CoordinationService/Publish";

/// The span of a request to publish, if it is followed.
pub struct Publishing {
    tracer: Tracer,
    began: SystemTime,
    span: Option<Span>,
}

impl Publishing {
    /// A request that came at `began` with the context `trace`. One that has none may be chosen to begin a trace, which its events
    /// then carry.
    pub fn begin(tracer: &Tracer, trace: &mut Option<Carried>, began: SystemTime) -> Publishing {
        let mut publishing = Publishing { tracer: tracer.clone(), began, span: None };
        match trace {
            Some(carried) if carried.context.sampled && tracer.is_on() => {
                let parent = Some(carried.context);
                publishing.span = Some(tracer.span(PUBLISH, Role::Server, parent, began));
            }
            None if tracer.samples() => {
                let span = tracer.span(PUBLISH, Role::Server, None, began);
                *trace = Some(Carried::new(span.context()));
                publishing.span = Some(span);
            }
            _ => {}
        }
        publishing
    }

    /// The events' own contexts: the first is the request's, if it has none, and the others are linked.
    pub fn join(&mut self, publish: &Publish) {
        if !self.tracer.is_on() {
            return;
        }
        for context in publish.events.iter().filter_map(|event| event.followed) {
            match &mut self.span {
                Some(span) => span.link(context),
                none => {
                    let parent = Some(context);
                    *none = Some(self.tracer.span(PUBLISH, Role::Server, parent, self.began));
                }
            }
        }
        if let Some(span) = &mut self.span {
            span.text("rpc.system", "grpc");
            span.text("rpc.service", v1::SERVICE);
            span.text("rpc.method", "Publish");
            span.text("trunkline.node_id", &publish.node_id);
            span.number("trunkline.events", publish.events.len() as u64);
        }
    }

    /// Has an event followed on its way to the bus.
    pub fn follow(&self, batch: &mut Batch, context: Option<Context>) {
        if let Some(context) = context
            && self.tracer.is_on()
        {
            batch.follow.get_or_insert_with(|| Box::new(Follow::new(&self.tracer))).add(context);
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

/// Tells that events were handed to the connection of a node.
pub fn delivered(tracer: &Tracer, events: &[Followed], node: &v1::Node) {
    for event in events {
        let mut span = tracer.span("deliver", Role::Consumer, Some(event.context), event.received);
        span.text("trunkline.node_id", &node.node_id);
        span.text("trunkline.subscription_id", &node.subscription_id);
        span.number("trunkline.kind", event.kind.into());
        span.end();
    }
}

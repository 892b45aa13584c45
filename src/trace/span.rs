//! What a gateway tells of one thing that it did with an event.

use std::time::SystemTime;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span as Encoded, Status, span, status},
};

use super::{Context, Tracer};

/// Links of one span at the most: other events' traces.
pub const MAX_LINKS: usize = 32;

/// A flag of OTLP: the recommendation's `sampled`.
const SAMPLED: u32 = 1;

/// Something that is under way. It is told when it ends, and not at all if it is dropped before.
#[derive(Debug)]
pub struct Span {
    tracer: Tracer,
    context: Context,
    parent: Option<Context>,
    encoded: Encoded,
}

/// The part that the gateway plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It answers a request.
    Server,
    /// It hands something to the bus.
    Producer,
    /// It hands something to a node.
    Consumer,
}

impl Span {
    pub(super) fn new(
        tracer: Tracer,
        name: &str,
        role: Role,
        parent: Option<Context>,
        start: SystemTime,
    ) -> Span {
        let trace_id = parent.map_or_else(random, |parent| parent.trace_id);
        let context = Context { trace_id, span_id: random(), sampled: true };
        let kind = match role {
            Role::Server => span::SpanKind::Server,
            Role::Producer => span::SpanKind::Producer,
            Role::Consumer => span::SpanKind::Consumer,
        };
        let encoded = Encoded {
            trace_id: trace_id.to_vec(),
            span_id: context.span_id.to_vec(),
            parent_span_id: parent.map(|parent| parent.span_id.to_vec()).unwrap_or_default(),
            flags: SAMPLED,
            name: name.to_owned(),
            kind: kind.into(),
            start_time_unix_nano: nanoseconds(start),
            ..Encoded::default()
        };
        Span { tracer, context, parent, encoded }
    }

    /// What belongs under it.
    pub fn context(&self) -> Context {
        self.context
    }

    /// Says something about it: a text.
    pub fn text(&mut self, key: &str, value: impl Into<String>) {
        self.attribute(key, Value::StringValue(value.into()));
    }

    /// Says something about it: a number. What has more than 63 bits is the most that has not.
    pub fn number(&mut self, key: &str, value: u64) {
        self.attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    /// Names another trace that it concerns, unless it is one of those named already, or they are too many.
    pub fn link(&mut self, other: Context) {
        let known =
            |link: &span::Link| link.trace_id == other.trace_id && link.span_id == other.span_id;
        let links = &mut self.encoded.links;
        if self.parent == Some(other) || links.iter().any(known) {
            return;
        }
        if links.len() == MAX_LINKS {
            self.encoded.dropped_links_count += 1;
            return;
        }
        links.push(span::Link {
            trace_id: other.trace_id.to_vec(),
            span_id: other.span_id.to_vec(),
            flags: u32::from(other.sampled),
            ..span::Link::default()
        });
    }

    /// It has ended well.
    pub fn end(self) {
        self.finish(None);
    }

    /// It has failed.
    pub fn fail(self, why: impl Into<String>) {
        self.finish(Some(why.into()));
    }

    fn finish(mut self, failure: Option<String>) {
        self.encoded.end_time_unix_nano = nanoseconds(SystemTime::now());
        self.encoded.status =
            failure.map(|message| Status { message, code: status::StatusCode::Error.into() });
        self.tracer.record(self.encoded);
    }

    fn attribute(&mut self, key: &str, value: Value) {
        self.encoded.attributes.push(attribute(key, value));
    }
}

/// One thing that is said of a span or of who sends them.
pub(super) fn attribute(key: &str, value: Value) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// Not zero: the recommendation gives that another meaning.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes[..]);
    if bytes == [0; N] {
        bytes[0] = 1;
    }
    bytes
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

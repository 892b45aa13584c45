//! Checks a `Publish` request, and stamps its events.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use prost::Message;
use ring::digest::{SHA256, digest};
use uuid::Uuid;

use super::{Check, path::Path};
use crate::{
    config::Limits,
    errors::Error,
    hub::event::{EventView, MAX_WAIT, Malformed, WaitStamp, routing_key_hash, stamp, stamped_len},
    presence::delivery::Wait,
    proto::v1,
    rpc::request::PublishRequest,
    trace_context::{IncomingTrace, TraceContext},
};

/// How long a response waits for nodes, unless the request says so.
const DEFAULT_WAIT: Duration = Duration::from_secs(5);

/// A valid request.
pub struct ValidPublish {
    /// The request id, as the client chose it.
    pub request_id: Option<[u8; 16]>,
    /// The events, with the gateway's stamp.
    pub events: Vec<StampedEvent>,
    /// The wait for their nodes, if the response waits for them.
    pub wait: Option<Wait>,
}

/// An event with the gateway's stamp.
#[derive(Debug)]
pub struct StampedEvent {
    /// The encoded event.
    pub bytes: Bytes,
    /// The hash of its routing key.
    pub key_hash: u32,
    /// The number of its kind.
    pub kind: u8,
    /// Its trace, if that is recorded.
    pub traced: Option<TraceContext>,
}

/// Checks a request, and stamps its events. `views` has a peek at each of them, of as many as a
/// request may have.
pub fn publish(
    request: &PublishRequest,
    views: &[Result<EventView<'_>, Malformed>],
    limits: &Limits,
    now: SystemTime,
    trace: Option<&IncomingTrace>,
    begin_wait: impl FnOnce(bool, Duration) -> Wait,
) -> Result<ValidPublish, Error> {
    let PublishRequest { node_id, request_id, events, wait_for, wait_timeout } = request;
    let too_large = |event: &Bytes| event.len() > limits.max_event_bytes;
    if let Some(index) = events.iter().position(too_large) {
        return Err(Error::PayloadTooLarge {
            what: format!("events[{index}]"),
            limit: limits.max_event_bytes,
            actual: events[index].len(),
        });
    }
    let mut check = Check::default();
    check.node_id(node_id);
    let request_id = check.uuid("request_id", request_id);
    let wait = check.wait(*wait_for, wait_timeout.as_ref());
    let wait = wait.map(|(acknowledged, timeout)| begin_wait(acknowledged, timeout));
    let max = limits.max_events_per_request;
    if events.is_empty() || events.len() > max {
        check.wrong("events", format!("has {}, must have 1 to {max}", events.len()));
    }
    let mut stamped = Vec::with_capacity(views.len());
    let sizes = events.iter().take(views.len()).map(|event| stamped_len(event, node_id));
    let mut buffer = BytesMut::with_capacity(sizes.sum());
    let ids = EventIds::of(request_id);
    let (path, mut event) = (Path::of("events"), v1::Event::default());
    let from = Origin { node_id, now, trace };
    for (index, (bytes, view)) in events.iter().zip(views).enumerate() {
        if check.is_full() {
            break;
        }
        let Some(view) = check.decoded(path.index(index), &mut event, bytes, view) else {
            continue;
        };
        if check.violations.is_empty() {
            let waiter = wait.as_ref().map(|wait| wait.stamp(index, events.len()));
            stamped.push(from.stamp(&mut buffer, view, waiter, || ids.of_event(index)));
        }
    }
    check.done()?;
    Ok(ValidPublish { request_id, events: stamped, wait })
}

/// Checks one event of a stream, and stamps it. `event` is the room that it is decoded in, and
/// `index` its place in its message.
pub fn stream_event(
    (index, bytes): (usize, &Bytes),
    view: &Result<EventView<'_>, Malformed>,
    event: &mut v1::Event,
    limits: &Limits,
    (from, waiter): (&Origin<'_>, Option<WaitStamp>),
    buffer: &mut BytesMut,
    id: impl FnOnce() -> Uuid,
) -> Result<StampedEvent, Error> {
    if bytes.len() > limits.max_event_bytes {
        return Err(Error::PayloadTooLarge {
            what: format!("events[{index}]"),
            limit: limits.max_event_bytes,
            actual: bytes.len(),
        });
    }
    let mut check = Check::default();
    let path = Path::of("events");
    let view = check.decoded(path.index(index), event, bytes, view);
    let (Some(view), true) = (view, check.violations.is_empty()) else {
        return Err(check.done().err().unwrap_or_else(|| Error::field("events", "is malformed")));
    };
    buffer.reserve(stamped_len(bytes, from.node_id));
    Ok(from.stamp(buffer, view, waiter, id))
}

/// What is waited for after events of a stream: whether nodes must acknowledge, and for how long.
/// None: for nothing.
pub fn wait(
    wait_for: i32,
    timeout: Option<&prost_types::Duration>,
) -> Result<Option<(bool, Duration)>, Error> {
    let mut check = Check::default();
    let wait = check.wait(wait_for, timeout);
    check.done().map(|()| wait)
}

/// The first request of a `PublishStream`: its publisher id, if it has one.
pub fn publish_open(open: &v1::PublishOpen) -> Result<Option<[u8; 16]>, Error> {
    let mut check = Check::default();
    check.node_id(&open.node_id);
    let publisher = check.uuid("publisher_id", &open.publisher_id);
    check.done()?;
    Ok(publisher)
}

/// What the gateway adds to events: who published them, and when.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    /// The publishing node.
    pub node_id: &'a str,
    /// The time at which the request came.
    pub now: SystemTime,
    /// The trace context of the request.
    pub trace: Option<&'a IncomingTrace>,
}

impl Origin<'_> {
    fn stamp(
        &self,
        buffer: &mut BytesMut,
        view: &EventView<'_>,
        waiter: Option<WaitStamp>,
        id: impl FnOnce() -> Uuid,
    ) -> StampedEvent {
        let Origin { node_id, now, trace } = *self;
        let (key_hash, kind) = (routing_key_hash(view), view.kind());
        let context =
            if view.meta().has_trace() { view.trace() } else { trace.map(|trace| trace.context) };
        let traced = context.filter(|context| context.sampled);
        let bytes = stamp(buffer, view, node_id, now, trace, waiter, id);
        StampedEvent { bytes, key_hash, kind, traced }
    }
}

/// The ids of those events of a request that have none. Every attempt of a request with an id gives
/// them the same ids, on any gateway: should it be accepted twice, nodes that remember the last ids
/// notice.
pub struct EventIds(Option<[u8; 16]>);

impl EventIds {
    /// The ids of a request, or of a producer's events by their sequences.
    pub fn of(request_id: Option<[u8; 16]>) -> EventIds {
        EventIds(request_id.map(|id| {
            // A hash, since request ids may follow one another as the events do.
            let mut base = [0; 16];
            base.copy_from_slice(&digest(&SHA256, &id).as_ref()[..16]);
            base
        }))
    }

    /// The id of one event.
    pub fn of_event(&self, index: usize) -> Uuid {
        let Some(mut bytes) = self.0 else { return Uuid::now_v7() };
        let index = (index as u64).to_be_bytes();
        bytes[8..].iter_mut().zip(index).for_each(|(byte, index)| *byte ^= index);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}

impl Check {
    /// Decodes an event, and checks it. Decoded once, so that no bytes ever reach a subscriber that
    /// its decoder refuses. None if it is malformed.
    fn decoded<'v, 'b>(
        &mut self,
        path: Path<'_>,
        event: &mut v1::Event,
        bytes: &[u8],
        view: &'v Result<EventView<'b>, Malformed>,
    ) -> Option<&'v EventView<'b>> {
        event.clear();
        let decoded = event.merge(bytes);
        let (Ok(()), Ok(view)) = (decoded, view) else {
            self.wrong(path, "is not a valid protobuf message");
            return None;
        };
        self.event(path, event, view);
        Some(view)
    }

    /// Reads what the response waits for: whether nodes must acknowledge, and for how long. None:
    /// only for the bus.
    fn wait(
        &mut self,
        wait_for: i32,
        timeout: Option<&prost_types::Duration>,
    ) -> Option<(bool, Duration)> {
        let Ok(wait_for) = v1::WaitFor::try_from(wait_for) else {
            let known = "WAIT_FOR_ACCEPTED, WAIT_FOR_DELIVERED or WAIT_FOR_ACKNOWLEDGED";
            self.wrong("wait_for", format!("{wait_for} is not known here; give {known}"));
            return None;
        };
        let waits = !matches!(wait_for, v1::WaitFor::Unspecified | v1::WaitFor::Accepted);
        let timeout = match timeout {
            None => DEFAULT_WAIT,
            Some(_) if !waits => {
                self.wrong("wait_timeout", "has no meaning without wait_for");
                return None;
            }
            Some(timeout) => match Duration::try_from(*timeout) {
                Ok(timeout) if !timeout.is_zero() && timeout <= MAX_WAIT => timeout,
                _ => {
                    self.wrong("wait_timeout", "must be longer than 0 s, and at most 60 s");
                    return None;
                }
            },
        };
        waits.then_some((wait_for == v1::WaitFor::Acknowledged, timeout))
    }

    /// Reads the id of a request or a producer; none where it is empty or wrong.
    fn uuid(&mut self, field: &str, text: &str) -> Option<[u8; 16]> {
        if text.is_empty() {
            return None;
        }
        match Uuid::parse_str(text) {
            // A client that forgets to fill it in must not find all requests but the first already
            // accepted.
            Ok(id) if id.is_nil() => {
                self.wrong(field, "is the nil UUID; leave it empty or make one");
                None
            }
            Ok(id) => Some(id.into_bytes()),
            Err(_) => {
                self.wrong(field, "is not a UUID");
                None
            }
        }
    }
}

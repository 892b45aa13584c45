//! The fields that a gateway adds to an event: its source, its publish time and an id.

use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_types::Timestamp;
use uuid::Uuid;

use crate::trace_context::IncomingTrace;

use super::{
    EVENT_ID, EventView, PUBLISH_TIME, SOURCE, TRACEPARENT, TRACESTATE, WAITER, WaitStamp,
    wire::{put_field, put_varint},
};

/// Bytes of an id, a time, who waits, and the keys and lengths of the four fields.
const STAMP: usize = 96;

/// The maximum length of a stamped event, without a trace.
pub fn stamped_len(event: &[u8], node_id: &str) -> usize {
    event.len() + node_id.len() + STAMP
}

/// Stamps an event into `buffer`, which the events of one request share, and splits it off.
///
/// The source becomes `node_id` and the waiter `waiter`, whatever the publisher wrote there. An id,
/// a time and the request's `trace` are added if the event has none. Fields are appended; the
/// publisher's bytes stay as they are.
pub fn stamp(
    buffer: &mut BytesMut,
    event: &EventView<'_>,
    node_id: &str,
    now: SystemTime,
    trace: Option<&IncomingTrace>,
    waiter: Option<WaitStamp>,
    new_event_id: impl FnOnce() -> Uuid,
) -> Bytes {
    let meta = event.meta();
    buffer.put_slice(event.bytes());
    if event.source_bytes() != node_id.as_bytes() {
        put_field(buffer, SOURCE, node_id.as_bytes());
    }
    if !event.has_event_id() {
        let mut text = Uuid::encode_buffer();
        put_field(buffer, EVENT_ID, new_event_id().hyphenated().encode_lower(&mut text).as_bytes());
    }
    if !event.has_publish_time() {
        put_varint(buffer, u64::from(PUBLISH_TIME << 3 | 2));
        let encoded = Timestamp::from(now).encode_length_delimited(buffer);
        debug_assert!(encoded.is_ok(), "a BytesMut grows as needed");
    }
    match waiter {
        Some(waiter) => put_field(buffer, WAITER, &waiter.encode()),
        None if meta.is_waited_for() => put_field(buffer, WAITER, &[]),
        None => {}
    }
    if let Some(trace) = trace.filter(|_| !meta.has_trace()) {
        put_field(buffer, TRACEPARENT, trace.traceparent.as_bytes());
        // Written even if it is empty: a `tracestate` that the event has without a trace does not
        // belong to this one.
        put_field(buffer, TRACESTATE, trace.tracestate.as_bytes());
    }
    buffer.split().freeze()
}

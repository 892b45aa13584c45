//! What a gateway adds to an event: who published it, when, and an id.

use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_types::Timestamp;
use uuid::Uuid;

use crate::trace_context::IncomingTrace;

use super::{
    EVENT_ID, EventView, PUBLISH_TIME, SOURCE, TRACEPARENT, TRACESTATE,
    wire::{put_field, put_varint},
};

/// Room for an id, a time, and the keys and lengths of the three fields.
const ROOM: usize = 64;

/// How long an event is at most when it is stamped, without a trace.
pub fn stamped_len(event: &[u8], node_id: &str) -> usize {
    event.len() + node_id.len() + ROOM
}

/// Stamps an event, at the end of `room`, which events of one request share, and takes it from there.
///
/// The source becomes `node_id`, whatever the publisher wrote there. An id, a time and the request's `trace` are added where there
/// are none. Fields are appended; what the publisher encoded stays as it is, byte by byte.
pub fn stamp(
    room: &mut BytesMut,
    event: &EventView<'_>,
    node_id: &str,
    now: SystemTime,
    trace: Option<&IncomingTrace>,
    new_event_id: impl FnOnce() -> Uuid,
) -> Bytes {
    let meta = event.meta();
    room.put_slice(event.bytes());
    if event.source_bytes() != node_id.as_bytes() {
        put_field(room, SOURCE, node_id.as_bytes());
    }
    if !meta.has_event_id {
        let mut text = Uuid::encode_buffer();
        put_field(room, EVENT_ID, new_event_id().hyphenated().encode_lower(&mut text).as_bytes());
    }
    if !meta.has_publish_time {
        put_varint(room, u64::from(PUBLISH_TIME << 3 | 2));
        let encoded = Timestamp::from(now).encode_length_delimited(room);
        debug_assert!(encoded.is_ok(), "a BytesMut grows as needed");
    }
    if let Some(trace) = trace.filter(|_| !meta.has_trace()) {
        put_field(room, TRACEPARENT, trace.traceparent.as_bytes());
        // Written even if it is empty: a state that the event has without a trace belongs to none.
        put_field(room, TRACESTATE, trace.tracestate.as_bytes());
    }
    room.split().freeze()
}

//! What a gateway adds to an event: who published it, when, and an id.

use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_types::Timestamp;
use uuid::Uuid;

use crate::trace::Carried;

use super::{
    EVENT_ID, EventMeta, PUBLISH_TIME, SOURCE, TRACEPARENT, TRACESTATE,
    wire::{put_field, put_varint},
};

/// Room for an id, a time, and the keys and lengths of the three fields.
const ROOM: usize = 64;

/// Stamps an event that stands alone and that `meta` was peeked from.
///
/// The source becomes `node_id`, whatever the publisher wrote there. An id, a time and the request's `trace` are added where there
/// are none. Fields are appended; what the publisher encoded stays as it is, byte by byte. If nothing is to be added, the event is handed back.
pub fn stamp(
    event: Bytes,
    meta: &EventMeta,
    node_id: &str,
    now: SystemTime,
    trace: Option<&Carried>,
    new_event_id: impl FnOnce() -> Uuid,
) -> Bytes {
    let has_source = meta.source.of(&event) == node_id.as_bytes();
    let trace = trace.filter(|_| !meta.has_trace());
    if has_source && meta.has_event_id && meta.has_publish_time && trace.is_none() {
        return event;
    }
    let mut buf = BytesMut::with_capacity(event.len() + node_id.len() + ROOM);
    buf.put_slice(&event);
    if !has_source {
        put_field(&mut buf, SOURCE, node_id.as_bytes());
    }
    if !meta.has_event_id {
        let mut text = Uuid::encode_buffer();
        put_field(
            &mut buf,
            EVENT_ID,
            new_event_id().hyphenated().encode_lower(&mut text).as_bytes(),
        );
    }
    if !meta.has_publish_time {
        put_varint(&mut buf, u64::from(PUBLISH_TIME << 3 | 2));
        let encoded = Timestamp::from(now).encode_length_delimited(&mut buf);
        debug_assert!(encoded.is_ok(), "a BytesMut grows as needed");
    }
    if let Some(trace) = trace {
        put_field(&mut buf, TRACEPARENT, trace.traceparent.as_bytes());
        // Written even if it is empty: a state that the event has without a trace belongs to none.
        put_field(&mut buf, TRACESTATE, trace.tracestate.as_bytes());
    }
    buf.freeze()
}

//! Encoding of frames and probes. A frame is encoded before it has a position, and only once.

use bytes::Bytes;
use prost::{Message, encoding::encode_varint};

use super::{Header, WriterId};
use crate::{
    bus::{
        Position, put_event,
        redis::{
            auth::{Authenticator, Kind, TAG_LENGTH},
            packing,
        },
    },
    proto::bus_v1,
};

/// The protobuf key of `packed_events`: field 10, length-delimited.
pub(super) const PACKED_KEY: u8 = 10 << 3 | 2;

/// Encodes a frame; `events` are encoded by [`put_event`].
pub fn encode_frame(header: &Header, events: &[u8]) -> Vec<u8> {
    let (origin_epoch, origin_first) = header.origin.unwrap_or_default();
    let message = bus_v1::Frame {
        events: vec![],
        writer: header.writer,
        sequence: header.sequence,
        count: u32::try_from(header.count).unwrap_or(u32::MAX),
        time_ms: header.time_ms,
        origin_epoch: origin_epoch.0,
        origin_first: origin_first.0,
        probe: 0,
        auth_tag: vec![],
        packed_events: vec![],
        events_size: 0,
    };
    let Some(packed) = packing::pack(events) else {
        let mut bytes = Vec::with_capacity(message.encoded_len() + events.len());
        message.encode_raw(&mut bytes);
        bytes.extend_from_slice(events);
        return bytes;
    };
    let events_size = u32::try_from(events.len()).unwrap_or(u32::MAX);
    let message = bus_v1::Frame { events_size, ..message };
    let mut bytes = Vec::with_capacity(message.encoded_len() + packed.len() + 6);
    message.encode_raw(&mut bytes);
    bytes.push(PACKED_KEY);
    encode_varint(packed.len() as u64, &mut bytes);
    bytes.extend_from_slice(&packed);
    bytes
}

/// Encodes a probe.
pub fn encode_probe(writer: WriterId, number: u64, time_ms: u64) -> Vec<u8> {
    bus_v1::Frame { writer, probe: number, time_ms, ..Default::default() }.encode_to_vec()
}

/// A frame or probe, preceded by its authentication tag.
pub(in crate::bus::redis) fn with_tag(
    auth: &Authenticator,
    kind: Kind,
    position: Position,
    frame: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(TAG_LENGTH + frame.len());
    bytes.extend_from_slice(&auth.tag(kind, position, &[frame]));
    bytes.extend_from_slice(frame);
    bytes
}

/// Encodes the events of a frame, one after the other.
pub(in crate::bus::redis) fn encode_events<'a>(
    events: impl Iterator<Item = &'a Bytes> + Clone,
) -> Vec<u8> {
    let size = events.clone().map(|event| event.len() + 6).sum();
    let mut body = Vec::with_capacity(size);
    for event in events {
        put_event(&mut body, event);
    }
    body
}

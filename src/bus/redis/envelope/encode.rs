//! Encoding of frames and probes. A frame is encoded before it has a position, and only once.

use bytes::Bytes;
use prost::{Message, encoding::encode_varint};

use super::{Header, MAX_ALIASES, WriterId};
use crate::{
    bus::{
        Position, RequestId, Run, put_event,
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
pub fn encode_frame(header: &Header<'_>, events: &[u8]) -> Vec<u8> {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let mut message = bus_v1::Frame {
        writer: header.writer,
        sequence: header.sequence,
        count: small(header.count),
        time_ms: header.time_ms,
        requests: header.requests.to_vec(),
        retain: header.retain.to_vec(),
        runs: header.runs.to_vec(),
        streams: header.streams.to_vec(),
        ..Default::default()
    };
    if let Some(provenance) = header.provenance {
        if let Some(name) = &provenance.name {
            (message.origin_epoch, message.origin_first) = (name.epoch.0, name.first.0);
            if name.count != header.count {
                message.origin_count = small(name.count);
            }
            message.origin_indices = name.left.iter().copied().map(small).collect();
        }
        let alias = |(index, at): &(u64, Position)| bus_v1::Alias {
            index: small(*index),
            epoch: at.epoch.0,
            offset: at.offset.0,
        };
        message.aliases = provenance.aliases.iter().take(MAX_ALIASES).map(alias).collect();
        let doubt = |at: &Position| bus_v1::Doubt { epoch: at.epoch.0, offset: at.offset.0 };
        message.doubts = provenance.doubts.iter().map(doubt).collect();
    }
    let Some(packed) = packing::pack(events) else {
        let mut bytes = Vec::with_capacity(message.encoded_len() + events.len());
        message.encode_raw(&mut bytes);
        bytes.extend_from_slice(events);
        return bytes;
    };
    let events_size = u32::try_from(events.len()).unwrap_or(u32::MAX);
    message.events_size = events_size;
    let mut bytes = Vec::with_capacity(message.encoded_len() + packed.len() + 6);
    message.encode_raw(&mut bytes);
    bytes.push(PACKED_KEY);
    encode_varint(packed.len() as u64, &mut bytes);
    bytes.extend_from_slice(&packed);
    bytes
}

/// Encodes a probe.
pub fn encode_probe(writer: WriterId, number: u64, time_ms: u64) -> Vec<u8> {
    let shared = true;
    bus_v1::Frame { writer, probe: number, time_ms, shared, ..Default::default() }.encode_to_vec()
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
pub fn encode_events<'a>(events: impl Iterator<Item = &'a Bytes> + Clone) -> Vec<u8> {
    let size = events.clone().map(|event| event.len() + 6).sum();
    let mut body = Vec::with_capacity(size);
    for event in events {
        put_event(&mut body, event);
    }
    body
}

/// Appends a request to the field `requests` of a frame.
pub fn put_request(buf: &mut Vec<u8>, id: &RequestId, first: u64, count: u64) {
    buf.extend_from_slice(id);
    encode_varint(first, buf);
    encode_varint(count, buf);
}

/// Appends an event that is kept as a last value to the field `retain` of a frame.
pub fn put_retained(buf: &mut Vec<u8>, index: u64, key: u8) {
    encode_varint(index, buf);
    encode_varint(key.into(), buf);
}

/// Appends events that their publisher numbered, and that begin at an index of the frame, to the
/// fields `runs` and `streams` of a frame.
pub fn put_run(buf: &mut Vec<u8>, streams: &mut Vec<u8>, first: u64, run: &Run) {
    let Some(sequence) = run.sequences.first() else { return };
    let follow = run.last() - sequence + 1 == run.sequences.len() as u64;
    buf.extend_from_slice(&run.publisher);
    encode_varint(first, buf);
    encode_varint(run.from, buf);
    encode_varint(run.sequences.len() as u64 * 2 + u64::from(follow), buf);
    encode_varint(sequence - run.from, buf);
    if !follow {
        let pairs = run.sequences.iter().zip(run.sequences.iter().skip(1));
        pairs.for_each(|(one, next)| encode_varint(next - one - 1, buf));
    }
    encode_varint(run.stream, streams);
}

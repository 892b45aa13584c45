//! Decoding of frames, probes and starts of epochs.

use bytes::{Buf, Bytes};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};

use super::{Body, StampedFrame, encode::PACKED_KEY, parse_position};
use crate::{
    bus::{
        Frame, Offset, Position,
        redis::{
            auth::{Authenticator, Kind, TAG_LENGTH},
            packing,
        },
    },
    proto::bus_v1,
};

impl Body {
    /// Reads a frame or probe at `position`. Only the boundaries of the events are checked: the
    /// gateway that accepted an event has checked the rest.
    pub(super) fn decode(position: Position, bytes: &Bytes, auth: Option<&Authenticator>) -> Body {
        Self::try_decode(position, bytes, auth).unwrap_or(Body::Unreadable)
    }

    /// Reads the start of the epoch of `position`. The script only ever opens higher epochs.
    pub(super) fn epoch_start(position: Position, text: &[u8]) -> Option<Body> {
        let previous = parse_position(text)?;
        let rises = previous.epoch < position.epoch;
        Some(if rises { Body::EpochStart { previous } } else { Body::Unreadable })
    }

    fn try_decode(position: Position, bytes: &Bytes, auth: Option<&Authenticator>) -> Option<Body> {
        let head = || {
            let (header, last) = bytes.split_at_checked(last_field(bytes)?)?;
            Some((bus_v1::Frame::decode(header).ok()?, last))
        };
        let (header, last) = match (head(), auth) {
            (Some(head), _) => head,
            // No gateway of any version made a tag for this.
            (None, Some(_)) => return Some(Body::Forged),
            (None, None) => return None,
        };
        let probe = header.sequence == 0;
        if let Some(auth) = auth {
            let (kind, at) =
                if probe { (Kind::Probe, Position::UNKNOWN) } else { (Kind::Frame, position) };
            let tagged = bytes.split_at_checked(TAG_LENGTH);
            if tagged.is_none_or(|(tag, rest)| !auth.verify(tag, kind, at, &[rest])) {
                return Some(Body::Forged);
            }
        }
        if probe {
            return Some(Body::Probe { writer: header.writer, number: header.probe });
        }
        let events = if last.first() == Some(&PACKED_KEY) {
            packing::unpack(packed(last)?, usize::try_from(header.events_size).ok()?)?
        } else {
            bytes.slice_ref(last)
        };
        let count = u64::from(header.count);
        if count == 0 || count_events(&events)? != count {
            return None;
        }
        let first = position.offset.0.checked_sub(count)? + 1;
        let origin = match header.origin_epoch {
            0 => None,
            // An unknown writer may write any number.
            epoch => Some(Position::new(epoch, header.origin_first.checked_add(count - 1)?)),
        };
        let frame = Frame {
            epoch: position.epoch,
            first: Offset(first),
            count,
            time_ms: header.time_ms,
            origin,
            events,
        };
        Some(Body::Frame(StampedFrame { frame, writer: header.writer, sequence: header.sequence }))
    }
}

/// The index at which the events begin, packed or not: they are the last field.
fn last_field(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    while rest.has_remaining() {
        let at = bytes.len() - rest.len();
        let (tag, wire_type) = decode_key(&mut rest).ok()?;
        if tag == 1 || bytes[at] == PACKED_KEY {
            return Some(at);
        }
        let skip = match wire_type {
            WireType::Varint => {
                decode_varint(&mut rest).ok()?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut rest).ok()?).ok()?,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        rest = rest.get(skip..)?;
    }
    Some(bytes.len())
}

/// The content of `packed_events`; the field must fill `field`.
fn packed(field: &[u8]) -> Option<&[u8]> {
    let mut rest = field.get(1..)?;
    let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
    (rest.len() == length).then_some(rest)
}

fn count_events(mut events: &[u8]) -> Option<u64> {
    let mut count = 0;
    while events.has_remaining() {
        if decode_key(&mut events).ok()? != (1, WireType::LengthDelimited) {
            return None;
        }
        let length = usize::try_from(decode_varint(&mut events).ok()?).ok()?;
        events = events.get(length..)?;
        count += 1;
    }
    Some(count)
}

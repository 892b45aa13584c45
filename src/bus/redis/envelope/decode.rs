//! Decoding of frames, probes and starts of epochs.

use bytes::{Buf, Bytes};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};

use super::{Body, MAX_ALIASES, StampedFrame, encode::PACKED_KEY, parse_position};
use crate::{
    bus::{
        Epoch, Frame, Lost, Name, Offset, Position, Provenance,
        redis::{
            auth::{Authenticator, Kind, TAG_LENGTH},
            packing,
            view::{parse_ends, parse_view},
        },
    },
    proto::bus_v1,
};

/// Doubts of one frame: several times what gateways write.
const MAX_DOUBTS: usize = 64;

impl Body {
    /// Reads a frame at `position`. Only the boundaries of the events are checked: the gateway that
    /// accepted an event has checked the rest.
    pub(in crate::bus::redis) fn frame(
        position: Position,
        bytes: &Bytes,
        auth: Option<&Authenticator>,
    ) -> Body {
        let (header, last) = match open(bytes, auth, Kind::Frame, position) {
            Ok(parts) => parts,
            Err(unusable) => return unusable.into(),
        };
        let frame = try_frame(position, bytes, header, last);
        frame.map_or(Body::Unreadable, Body::Frame)
    }

    /// Reads a probe: the shard's copies and ends, then the probe itself.
    pub(super) fn probe(
        tip: Position,
        mut bytes: Bytes,
        auth: Option<&Authenticator>,
    ) -> Option<Body> {
        let mut part = || {
            let end = bytes.iter().position(|byte| *byte == b'|')?;
            let part = bytes.split_to(end);
            bytes.advance(1);
            Some(part)
        };
        let (copies, ends) = (part()?, part()?);
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let view = parse_view(tip, text(&copies)?, text(&ends)?, false)?;
        Some(match open(&bytes, auth, Kind::Probe, Position::UNKNOWN) {
            Ok((header, _)) => Body::Probe {
                writer: header.writer,
                number: header.probe,
                shared: header.shared,
                time_ms: header.time_ms,
                view: Box::new(view),
            },
            Err(unusable) => unusable.into(),
        })
    }

    /// Reads the start of the epoch of `position`. The script only ever opens higher epochs.
    pub(super) fn epoch_start(position: Position, text: &[u8]) -> Option<Body> {
        let (previous, ends) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        let previous = parse_position(previous.as_bytes())?;
        let (floor, ends) = parse_ends(ends)?;
        let rises = previous.epoch < position.epoch;
        Some(if rises { Body::EpochStart { previous, floor, ends } } else { Body::Unreadable })
    }

    /// Reads a note of loss: `epoch:first-last`.
    pub(super) fn note(text: &[u8]) -> Option<Body> {
        let (epoch, range) = std::str::from_utf8(text).ok()?.split_once(':')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (Offset(first.parse().ok()?), Offset(last.parse().ok()?));
        let epoch = Epoch(epoch.parse().ok()?);
        Some(if first > last { Body::Unreadable } else { Body::Note(Lost { epoch, first, last }) })
    }
}

/// Reason why a frame or probe cannot be used.
enum Unusable {
    Unreadable,
    Forged,
}

impl From<Unusable> for Body {
    fn from(unusable: Unusable) -> Body {
        match unusable {
            Unusable::Unreadable => Body::Unreadable,
            Unusable::Forged => Body::Forged,
        }
    }
}

/// Splits a frame or probe into its header and the field of its events, and verifies its tag.
fn open<'b>(
    bytes: &'b Bytes,
    auth: Option<&Authenticator>,
    kind: Kind,
    position: Position,
) -> Result<(bus_v1::Frame, &'b [u8]), Unusable> {
    let head = || {
        let (header, last) = bytes.split_at_checked(last_field(bytes)?)?;
        Some((bus_v1::Frame::decode(header).ok()?, last))
    };
    // With a key, no gateway of any version made a tag for what cannot be read.
    let head =
        head().ok_or(if auth.is_some() { Unusable::Forged } else { Unusable::Unreadable })?;
    if let Some(auth) = auth {
        let tagged = bytes.split_at_checked(TAG_LENGTH);
        if tagged.is_none_or(|(tag, rest)| !auth.verify(tag, kind, position, &[rest])) {
            return Err(Unusable::Forged);
        }
        auth.learn_time(head.0.time_ms);
    }
    Ok(head)
}

fn try_frame(
    position: Position,
    bytes: &Bytes,
    header: bus_v1::Frame,
    last: &[u8],
) -> Option<StampedFrame> {
    let events = if last.first() == Some(&PACKED_KEY) {
        packing::unpack(packed(last)?, usize::try_from(header.events_size).ok()?)?
    } else {
        bytes.slice_ref(last)
    };
    let count = u64::from(header.count);
    if count == 0 || header.sequence == 0 || count_events(&events)? != count {
        return None;
    }
    let first = position.offset.0.checked_sub(count)? + 1;
    let provenance = provenance(position, &header)?;
    let frame = Frame {
        epoch: position.epoch,
        first: Offset(first),
        count,
        time_ms: header.time_ms,
        provenance: (provenance != Provenance::default()).then(|| Box::new(provenance)),
        events,
    };
    Some(StampedFrame {
        frame,
        writer: header.writer,
        sequence: header.sequence,
        requests: header.requests.into(),
        retain: header.retain.into(),
        runs: header.runs.into(),
        streams: header.streams.into(),
    })
}

/// What recovery added to a frame: empty for most. None if no gateway writes such a thing.
fn provenance(position: Position, header: &bus_v1::Frame) -> Option<Provenance> {
    let is_copy = header.origin_epoch > 0;
    if !is_copy && header.aliases.is_empty() && header.doubts.is_empty() {
        return Some(Provenance::default());
    }
    if header.aliases.len() > MAX_ALIASES || header.doubts.len() > MAX_DOUBTS {
        return None;
    }
    let count = u64::from(header.count);
    let name = if is_copy {
        let accepted = match header.origin_count {
            0 => count,
            accepted => accepted.into(),
        };
        let left: Vec<u64> = header.origin_indices.iter().copied().map(u64::from).collect();
        let sorted = left.is_sorted_by(|one, next| one < next);
        let whole = if left.is_empty() { accepted == count } else { left.len() as u64 == count };
        let within = left.last().is_none_or(|last| *last < accepted);
        let end = header.origin_first.checked_add(accepted)?;
        if !sorted || !whole || !within || header.origin_first == 0 || end == u64::MAX {
            return None;
        }
        let epoch = Epoch(header.origin_epoch);
        if epoch >= position.epoch {
            return None;
        }
        Some(Name { epoch, first: Offset(header.origin_first), count: accepted, left })
    } else {
        None
    };
    let aliases = header.aliases.iter().map(|alias| {
        let at = Position::new(alias.epoch, alias.offset);
        (u64::from(alias.index) < count).then_some((u64::from(alias.index), at))
    });
    let aliases = aliases.collect::<Option<_>>()?;
    let doubts = header.doubts.iter().map(|doubt| Position::new(doubt.epoch, doubt.offset));
    Some(Provenance { name, aliases, doubts: doubts.collect() })
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

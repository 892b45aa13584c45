//! What travels Redis: an envelope with a place, and in it a frame or the start of an epoch.

use bytes::{Buf, Bytes};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint, encode_varint},
};

use super::{
    packing,
    seal::{self, Kind, Seal},
};
use crate::{
    bus::{Epoch, Frame, Offset, Position, put_event},
    proto::bus_v1,
};

/// Identity of a gateway process on the bus; random, so that two never share one.
pub(super) type WriterId = u64;

/// Something that came from Redis, at its place.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    /// The place of the last event in it; for a beacon and the start of an epoch, where the shard stands.
    pub position: Position,
    /// What it holds.
    pub body: Body,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    /// Events.
    Frame(StampedFrame),
    /// No events.
    Beacon { writer: WriterId, number: u64 },
    /// The first entry of an epoch: how the one before ended. Unknown: Redis remembers none.
    EpochStart { previous: Position },
    /// Bytes that this gateway cannot read, with a place that it can.
    Unreadable,
    /// Bytes whose seal does not hold for the place.
    Forged,
}

/// A frame with what tells it from others.
#[derive(Clone, Debug)]
pub(super) struct StampedFrame {
    pub frame: Frame,
    pub writer: WriterId,
    pub sequence: u64,
}

/// Everything about a frame but its events and its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub writer: WriterId,
    pub sequence: u64,
    pub count: u64,
    pub time_ms: u64,
    pub origin: Option<(Epoch, Offset)>,
}

const FRAME: &[u8] = b"T1 ";
const EPOCH: &[u8] = b"E1 ";

impl Envelope {
    /// As [`Envelope::open`], where nothing is sealed.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn parse(bytes: Bytes) -> Option<Envelope> {
        Envelope::open(bytes, None)
    }

    /// Reads what came over a channel. None: foreign bytes, or a version whose envelope is not known.
    pub(super) fn open(mut bytes: Bytes, seal: Option<&Seal>) -> Option<Envelope> {
        let is_frame = bytes.starts_with(FRAME);
        if !is_frame && !bytes.starts_with(EPOCH) {
            return None;
        }
        bytes.advance(3);
        // Two numbers of at most 20 digits, a hyphen, and the space behind them.
        let end = bytes.iter().take(42).position(|byte| *byte == b' ')?;
        let position = parse_position(&bytes.split_to(end))?;
        bytes.advance(1);
        let body = if is_frame {
            Body::decode(position, &bytes, seal)
        } else {
            Body::epoch_start(position, &bytes)?
        };
        Some(Envelope { position, body })
    }

    /// The last place that can stand before it; none if it does not say.
    pub(super) fn follows(&self) -> Option<Position> {
        match &self.body {
            Body::Frame(stamped) => Some(Position {
                epoch: self.position.epoch,
                offset: Offset(stamped.frame.first.0 - 1),
            }),
            Body::EpochStart { previous } => previous.is_known().then_some(*previous),
            Body::Beacon { .. } | Body::Unreadable | Body::Forged => None,
        }
    }

    /// Bytes of events in it.
    pub(super) fn size(&self) -> usize {
        match &self.body {
            Body::Frame(stamped) => stamped.frame.events.len(),
            _ => 0,
        }
    }

    /// Reads an entry of history: its id, and the one field that it has.
    pub(super) fn from_history(
        id: &[u8],
        field: &[u8],
        value: &Bytes,
        seal: Option<&Seal>,
    ) -> Option<Envelope> {
        let position = parse_position(id)?;
        let body = match field {
            b"f" => Body::decode(position, value, seal),
            b"e" => Body::epoch_start(position, value).unwrap_or(Body::Unreadable),
            _ => Body::Unreadable,
        };
        Some(Envelope { position, body })
    }
}

impl Body {
    /// Reads a frame whose last event stands at `place`. The events are checked for their boundaries and no further: each
    /// was checked by the gateway that accepted it.
    fn decode(position: Position, bytes: &Bytes, seal: Option<&Seal>) -> Body {
        Self::try_decode(position, bytes, seal).unwrap_or(Body::Unreadable)
    }

    /// Reads the start of the epoch of `place`. Epochs rise: anything else is not the script's.
    fn epoch_start(position: Position, text: &[u8]) -> Option<Body> {
        let previous = parse_position(text)?;
        let rises = previous.epoch < position.epoch;
        Some(if rises { Body::EpochStart { previous } } else { Body::Unreadable })
    }

    fn try_decode(position: Position, bytes: &Bytes, seal: Option<&Seal>) -> Option<Body> {
        let head = || {
            let (header, last) = bytes.split_at_checked(last_field(bytes)?)?;
            Some((bus_v1::Frame::decode(header).ok()?, last))
        };
        let (header, last) = match (head(), seal) {
            (Some(head), _) => head,
            // No gateway of any version sealed this.
            (None, Some(_)) => return Some(Body::Forged),
            (None, None) => return None,
        };
        let beacon = header.sequence == 0;
        if let Some(seal) = seal {
            let (kind, at) =
                if beacon { (Kind::Beacon, Position::UNKNOWN) } else { (Kind::Frame, position) };
            let there = bytes.split_at_checked(seal::LENGTH);
            if there.is_none_or(|(there, rest)| !seal.holds(there, kind, at, &[rest])) {
                return Some(Body::Forged);
            }
        }
        if beacon {
            return Some(Body::Beacon { writer: header.writer, number: header.probe });
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
            // Foreign bytes may say any number.
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

/// Encodes a frame; `events` are already as [`put_event`] leaves them.
pub(super) fn encode_frame(header: &Header, events: &[u8]) -> Vec<u8> {
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

/// Encodes a beacon.
pub(super) fn encode_beacon(writer: WriterId, number: u64, time_ms: u64) -> Vec<u8> {
    bus_v1::Frame { writer, probe: number, time_ms, ..Default::default() }.encode_to_vec()
}

/// Puts the seal of a frame or beacon before it.
pub(super) fn sealed(seal: &Seal, kind: Kind, position: Position, frame: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(seal::LENGTH + frame.len());
    bytes.extend_from_slice(&seal.of(kind, position, &[frame]));
    bytes.extend_from_slice(frame);
    bytes
}

/// Encodes events one behind the other, as they stand in a frame.
pub(super) fn encode_events<'a>(events: impl Iterator<Item = &'a Bytes> + Clone) -> Vec<u8> {
    let size = events.clone().map(|event| event.len() + 6).sum();
    let mut body = Vec::with_capacity(size);
    for event in events {
        put_event(&mut body, event);
    }
    body
}

/// The key of `packed_events`: field 10, length-delimited.
const PACKED_KEY: u8 = 10 << 3 | 2;

/// Where the events begin, packed or not: they are encoded last.
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

/// The content of `packed_events`, of which `field` must be all.
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

/// Reads `<epoch>-<offset>`.
pub(super) fn parse_position(text: &[u8]) -> Option<Position> {
    let (epoch, offset) = std::str::from_utf8(text).ok()?.split_once('-')?;
    Some(Position::new(epoch.parse().ok()?, offset.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { writer: 7, sequence: 3, count: 2, time_ms: 1_700_000_000_000, origin: None }
    }

    fn on_the_channel(position: &str, frame: &[u8]) -> Bytes {
        [b"T1 ", position.as_bytes(), b" ", frame].concat().into()
    }

    #[test]
    fn a_frame_comes_back_as_it_was_encoded() {
        let events = encode_events([Bytes::from("one"), Bytes::from("two")].iter());
        let frame = encode_frame(&header(), &events);
        let envelope = Envelope::parse(on_the_channel("99-12", &frame)).unwrap();
        assert_eq!(envelope.position, Position::new(99, 12));
        let Body::Frame(stamped) = envelope.body else { panic!("no frame") };
        assert_eq!((stamped.writer, stamped.sequence), (7, 3));
        assert_eq!(stamped.frame.first, Offset(11));
        assert_eq!(stamped.frame.last(), Position::new(99, 12));
        assert_eq!(stamped.frame.events, events);
    }

    #[test]
    fn many_events_are_packed_and_come_back() {
        let events: Vec<_> = (0..100)
            .map(|nth| Bytes::from(format!("event number {nth} of one node and one account")))
            .collect();
        let events = encode_events(events.iter());
        let frame = encode_frame(&Header { count: 100, ..header() }, &events);
        assert!(frame.len() < events.len() / 2, "{} of {}", frame.len(), events.len());
        let read = |frame: &[u8]| Envelope::parse(on_the_channel("99-112", frame)).unwrap().body;
        let Body::Frame(stamped) = read(&frame) else { panic!("no frame") };
        assert_eq!(stamped.frame.events, events);
        assert_eq!(stamped.frame.first, Offset(13));
        for cut in 1..frame.len() {
            assert!(!matches!(read(&frame[..cut]), Body::Frame(_)), "cut at {cut}");
        }
    }

    #[test]
    fn the_place_of_a_lost_frame_is_that_of_its_last_event() {
        let origin = Some((Epoch(5), Offset(40)));
        let events = encode_events([Bytes::from("one"), Bytes::from("two")].iter());
        let frame = encode_frame(&Header { origin, ..header() }, &events);
        let envelope = Envelope::parse(on_the_channel("99-12", &frame)).unwrap();
        let Body::Frame(stamped) = envelope.body else { panic!("no frame") };
        assert_eq!(stamped.frame.origin, Some(Position::new(5, 41)));
    }

    #[test]
    fn a_place_that_no_script_gives_is_unreadable() {
        let events = encode_events([Bytes::from("one"), Bytes::from("two")].iter());
        let unreadable = |position: &str, header: Header, events: &[u8]| {
            let frame = encode_frame(&header, events);
            let envelope = Envelope::parse(on_the_channel(position, &frame)).unwrap();
            matches!(envelope.body, Body::Unreadable)
        };
        let far = Header { origin: Some((Epoch(5), Offset(u64::MAX))), ..header() };
        assert!(unreadable("99-12", far, &events), "it would end after the last offset");
        assert!(unreadable("99-1", header(), &events), "it would begin before the first offset");
        let end = format!("99-{}", u64::MAX);
        assert!(unreadable(&end, Header { count: 0, ..header() }, b""), "it holds nothing");
        for epoch in ["E1 99-0 99-12", "E1 99-0 100-12"] {
            let envelope = Envelope::parse(Bytes::from(epoch)).unwrap();
            assert!(matches!(envelope.body, Body::Unreadable), "{epoch}");
        }
    }

    #[test]
    fn an_epoch_says_how_the_one_before_ended() {
        let envelope = Envelope::parse(Bytes::from("E1 100-0 99-12")).unwrap();
        assert_eq!(envelope.position, Position::new(100, 0));
        let Body::EpochStart { previous } = envelope.body else { panic!("no epoch") };
        assert_eq!(previous, Position::new(99, 12));
    }

    #[test]
    fn foreign_bytes_are_no_envelope_and_a_wrong_count_is_unreadable() {
        for foreign in ["", "T1", "hello", "T1 12 ", "T2 1-1 x", "T1 a-b c", "E1 1-0 x"] {
            assert!(Envelope::parse(Bytes::from(foreign)).is_none(), "{foreign:?}");
        }
        let events = encode_events([Bytes::from("one")].iter());
        let frame = encode_frame(&header(), &events);
        let envelope = Envelope::parse(on_the_channel("99-12", &frame)).unwrap();
        assert!(matches!(envelope.body, Body::Unreadable));
        let newer = Envelope::parse(on_the_channel("99-12", b"\xff\xff\xff")).unwrap();
        assert!(matches!(newer.body, Body::Unreadable));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Envelope::parse(Bytes::from(bytes.clone()));
            let _ = Envelope::parse(on_the_channel("1-1", &bytes));
        }
    }
}

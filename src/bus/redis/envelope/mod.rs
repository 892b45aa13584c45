//! The message format on Redis: an envelope with a position, and in it a frame, a probe, the start
//! of an epoch, or a note of loss. `proto/trunkline/bus/v1/frame.proto` describes it.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use bytes::{Buf, Bytes};
use prost::encoding::decode_varint;

pub(super) use self::encode::with_tag;
pub use self::encode::{
    encode_events, encode_frame, encode_probe, put_request, put_retained, put_run,
};
use super::{auth::Authenticator, view::ShardView};
use crate::bus::{
    Epoch, Frame, Lost, MAX_SEQUENCE, Offset, Position, Provenance, PublisherId, RequestId, Run,
    StreamNumber,
};

/// Other names of the events of one frame: more are neither written nor read. Two for each event of
/// a large frame.
pub(in crate::bus::redis) const MAX_ALIASES: usize = 4096;

/// Identity of a gateway process on the bus: random, so that no two processes share one.
pub type WriterId = u64;

/// One message from Redis.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The position of the frame's last event. For a probe and the start of an epoch, the shard's
    /// end.
    pub position: Position,
    /// The content.
    pub body: Body,
}

/// The content of an envelope.
#[derive(Clone, Debug)]
pub enum Body {
    /// Events.
    Frame(StampedFrame),
    /// No events.
    Probe {
        /// The gateway that sent it.
        writer: WriterId,
        /// Its number; rises with each probe of the writer.
        number: u64,
        /// Its gateway's probes are published only where nothing else was lately. False for those
        /// of earlier versions.
        shared: bool,
        /// The latest time of which its gateway knew, in ms since 1970.
        time_ms: u64,
        /// The shard at that time.
        view: Box<ShardView>,
    },
    /// The first entry of an epoch.
    EpochStart {
        /// The end of the epoch before. Unknown if Redis has none.
        previous: Position,
        /// Everything of epochs up to this one is handled.
        floor: Epoch,
        /// For each earlier epoch the position up to which everything is handled; ascending.
        ends: Vec<Position>,
    },
    /// Events that no gateway could append again.
    Note(Lost),
    /// Bytes that this gateway cannot read, at a position that it can.
    Unreadable,
    /// Bytes whose authentication tag does not verify for the position.
    Forged,
}

/// A frame with its identity.
#[derive(Clone, Debug)]
pub struct StampedFrame {
    /// The events with their positions.
    pub frame: Frame,
    /// The gateway that wrote it.
    pub writer: WriterId,
    /// The writer's number for it; the script appends each number once.
    pub sequence: u64,
    /// The requests that had an id; see [`read_requests`].
    pub requests: Bytes,
    /// The events that are kept as last values; see [`read_retained`].
    pub retain: Bytes,
    /// The events that their publishers numbered; see [`StampedFrame::runs`].
    pub runs: Bytes,
    /// The streams that these came on; see [`StampedFrame::runs`].
    pub streams: Bytes,
}

/// Events of a frame that their publisher numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRun {
    /// The index of its first event in the frame.
    pub first: u64,
    /// The events.
    pub run: Run,
}

impl StampedFrame {
    /// The events that their publishers numbered. Ends where the bytes have another form, or name
    /// more events than the frame has.
    pub fn runs(&self) -> impl Iterator<Item = HeldRun> {
        let (mut bytes, mut streams) = (&self.runs[..], &self.streams[..]);
        std::iter::from_fn(move || {
            // Room for what is read, and not for what is said to come.
            let mut sequences = Vec::new();
            let sequence = |sequence| sequences.push(sequence);
            let (first, run) = read_run(&mut bytes, self.frame.count, sequence)?;
            let stream = decode_varint(&mut streams).unwrap_or(0);
            Some(HeldRun { first, run: Run { stream, sequences, ..run } })
        })
    }

    /// The streams of these that the bus has numbered, without their events.
    pub fn streams(&self) -> impl Iterator<Item = (PublisherId, StreamNumber)> {
        let (mut bytes, mut streams) = (&self.runs[..], &self.streams[..]);
        let pairs = std::iter::from_fn(move || {
            let stream = decode_varint(&mut streams).ok()?;
            let (_, run) = read_run(&mut bytes, self.frame.count, |_| {})?;
            Some((run.publisher, stream))
        });
        pairs.filter(|(_, stream)| *stream > 0)
    }
}

/// Reads a run: the index of its first event, and the run without its stream and its sequences,
/// which it hands to `sequence`.
fn read_run(bytes: &mut &[u8], events: u64, mut sequence: impl FnMut(u64)) -> Option<(u64, Run)> {
    let (publisher, rest) = bytes.split_first_chunk::<16>()?;
    *bytes = rest;
    let mut number = || decode_varint(bytes).ok();
    let (first, from, shape) = (number()?, number()?, number()?);
    let count = shape / 2;
    if count == 0 || first.checked_add(count)? > events {
        return None;
    }
    let mut next = from.checked_add(number()?)?;
    sequence(next);
    for _ in 1..count {
        let distance = if shape % 2 == 1 { 0 } else { number()? };
        next = next.checked_add(distance)?.checked_add(1)?;
        sequence(next);
    }
    if next >= MAX_SEQUENCE {
        return None;
    }
    Some((first, Run { publisher: *publisher, stream: 0, from, sequences: vec![] }))
}

/// A request in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRequest {
    /// Its id.
    pub id: RequestId,
    /// The index of its first event in the frame.
    pub first: u64,
    /// The number of its events.
    pub count: u64,
}

/// The requests of a frame that had an id. Ends where the bytes have another form.
pub fn read_requests(mut bytes: &[u8]) -> impl Iterator<Item = HeldRequest> {
    std::iter::from_fn(move || {
        let (id, rest) = bytes.split_first_chunk::<16>()?;
        bytes = rest;
        let first = decode_varint(&mut bytes).ok()?;
        let count = decode_varint(&mut bytes).ok()?;
        Some(HeldRequest { id: *id, first, count })
    })
}

/// The events of a frame that are kept as last values: index and key of each. Ends where the bytes
/// have another form.
pub fn read_retained(mut bytes: &[u8]) -> impl Iterator<Item = (u64, u8)> {
    std::iter::from_fn(move || {
        let index = decode_varint(&mut bytes).ok()?;
        Some((index, u8::try_from(decode_varint(&mut bytes).ok()?).ok()?))
    })
}

/// The encoded events of a frame.
pub fn events_of(mut events: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    std::iter::from_fn(move || {
        let _key = decode_varint(&mut events).ok()?;
        let length = usize::try_from(decode_varint(&mut events).ok()?).ok()?;
        let (event, rest) = events.split_at_checked(length)?;
        events = rest;
        Some(event)
    })
}

/// Everything about a frame but its events and its position.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// The gateway that writes it.
    pub writer: WriterId,
    /// The writer's number for it.
    pub sequence: u64,
    /// The number of events.
    pub count: u64,
    /// The time of writing, in milliseconds since 1970.
    pub time_ms: u64,
    /// What recovery adds to it.
    pub provenance: Option<&'a Provenance>,
    /// The requests that had an id, as [`put_request`] writes them.
    pub requests: &'a [u8],
    /// The events that are kept as last values, as [`put_retained`] writes them.
    pub retain: &'a [u8],
    /// The events that their publishers numbered, as [`put_run`] writes them.
    pub runs: &'a [u8],
    /// The streams that these came on, as [`put_run`] writes them.
    pub streams: &'a [u8],
}

/// The first bytes of the messages on a channel. The digit is the version of the protocol.
const FRAME: &[u8; 3] = b"F2 ";
const EPOCH: &[u8; 3] = b"E2 ";
const NOTE: &[u8; 3] = b"N2 ";
const PROBE: &[u8; 3] = b"P2 ";

impl Envelope {
    /// Reads a message from a channel, without `frameKey`. None for bytes that no known version
    /// writes.
    pub fn parse(bytes: Bytes) -> Option<Envelope> {
        Envelope::open(bytes, None)
    }

    /// Reads a message from a channel. None for bytes that no known version writes.
    pub(super) fn open(mut bytes: Bytes, auth: Option<&Authenticator>) -> Option<Envelope> {
        let kind: [u8; 3] = *bytes.first_chunk()?;
        if ![FRAME, EPOCH, NOTE, PROBE].contains(&&kind) {
            return None;
        }
        bytes.advance(3);
        // Two numbers of at most 20 digits, a hyphen, and the space after them.
        let end = bytes.iter().take(42).position(|byte| *byte == b' ')?;
        let position = parse_position(&bytes.split_to(end))?;
        bytes.advance(1);
        let body = match &kind {
            FRAME => Body::frame(position, &bytes, auth),
            EPOCH => Body::epoch_start(position, &bytes)?,
            NOTE => Body::note(&bytes)?,
            _ => Body::probe(position, bytes, auth)?,
        };
        Some(Envelope { position, body })
    }

    /// Reads an entry of history, its id and its only field, without `frameKey`.
    pub fn parse_history(id: &[u8], field: &[u8], value: &Bytes) -> Option<Envelope> {
        Envelope::from_history(id, field, value, None)
    }

    /// Reads an entry of history: its id, and its only field.
    pub(super) fn from_history(
        id: &[u8],
        field: &[u8],
        value: &Bytes,
        auth: Option<&Authenticator>,
    ) -> Option<Envelope> {
        let position = parse_position(id)?;
        let body = match field {
            b"f" => Body::frame(position, value, auth),
            b"e" => Body::epoch_start(position, value).unwrap_or(Body::Unreadable),
            b"n" => Body::note(value).unwrap_or(Body::Unreadable),
            _ => Body::Unreadable,
        };
        Some(Envelope { position, body })
    }

    /// The last position that can come before it. None if the content does not tell.
    pub(super) fn follows(&self) -> Option<Position> {
        match &self.body {
            Body::Frame(stamped) => Some(Position {
                epoch: self.position.epoch,
                offset: Offset(stamped.frame.first.0 - 1),
            }),
            Body::EpochStart { previous, .. } => previous.is_known().then_some(*previous),
            Body::Note(_) => {
                let offset = Offset(self.position.offset.0.checked_sub(1)?);
                Some(Position { offset, ..self.position })
            }
            Body::Probe { .. } | Body::Unreadable | Body::Forged => None,
        }
    }

    /// Bytes of events in it.
    pub(super) fn size(&self) -> usize {
        match &self.body {
            Body::Frame(stamped) => stamped.frame.events.len(),
            _ => 0,
        }
    }
}

/// Reads `<epoch>-<offset>`.
pub(super) fn parse_position(text: &[u8]) -> Option<Position> {
    let (epoch, offset) = std::str::from_utf8(text).ok()?.split_once('-')?;
    Some(Position::new(epoch.parse().ok()?, offset.parse().ok()?))
}

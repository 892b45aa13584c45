//! The message format on Redis: an envelope with a position, and in it a frame, a probe, or the
//! start of an epoch. `proto/trunkline/bus/v1/frame.proto` describes it.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use bytes::{Buf, Bytes};

pub(super) use self::encode::{encode_events, with_tag};
pub use self::encode::{encode_frame, encode_probe};
use super::auth::Authenticator;
use crate::bus::{Epoch, Frame, Offset, Position};

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
    },
    /// The first entry of an epoch, with the end of the epoch before. Unknown if Redis has none.
    EpochStart {
        /// The end of the epoch before.
        previous: Position,
    },
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
}

/// Everything about a frame but its events and its position.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// The gateway that writes it.
    pub writer: WriterId,
    /// The writer's number for it.
    pub sequence: u64,
    /// The number of events.
    pub count: u64,
    /// The time of writing, in milliseconds since 1970.
    pub time_ms: u64,
    /// The position of the first event when the frame was accepted first, if it is re-appended.
    pub origin: Option<(Epoch, Offset)>,
}

const FRAME: &[u8] = b"T1 ";
const EPOCH: &[u8] = b"E1 ";

impl Envelope {
    /// Reads a message from a channel, without `frameKey`. None for bytes that no known version
    /// writes.
    pub fn parse(bytes: Bytes) -> Option<Envelope> {
        Envelope::open(bytes, None)
    }

    /// Reads a message from a channel. None for bytes that no known version writes.
    pub(super) fn open(mut bytes: Bytes, auth: Option<&Authenticator>) -> Option<Envelope> {
        let is_frame = bytes.starts_with(FRAME);
        if !is_frame && !bytes.starts_with(EPOCH) {
            return None;
        }
        bytes.advance(3);
        // Two numbers of at most 20 digits, a hyphen, and the space after them.
        let end = bytes.iter().take(42).position(|byte| *byte == b' ')?;
        let position = parse_position(&bytes.split_to(end))?;
        bytes.advance(1);
        let body = if is_frame {
            Body::decode(position, &bytes, auth)
        } else {
            Body::epoch_start(position, &bytes)?
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
            b"f" => Body::decode(position, value, auth),
            b"e" => Body::epoch_start(position, value).unwrap_or(Body::Unreadable),
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
            Body::EpochStart { previous } => previous.is_known().then_some(*previous),
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

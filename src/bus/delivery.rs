//! The events that a bus hands to its sink.

use std::fmt;

use bytes::Bytes;

use super::{Epoch, Offset, Position, ShardId};

/// Several encoded events of one shard at contiguous positions.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The epoch of all events.
    pub epoch: Epoch,
    /// The offset of the first event.
    pub first: Offset,
    /// The number of events, at least one.
    pub count: u64,
    /// The time at which the writer made the frame, by its own clock, in milliseconds since 1970.
    pub time_ms: u64,
    /// The first position of its last event, if the bus lost the frame and a gateway
    /// re-appended it.
    pub origin: Option<Position>,
    /// The events as they are encoded in `trunkline.v1.EventBatch`: each with the tag of field 1
    /// and its length.
    pub events: Bytes,
}

impl Frame {
    /// The position of the last event.
    pub fn last(&self) -> Position {
        Position { epoch: self.epoch, offset: self.first.plus(self.count - 1) }
    }
}

/// Events that the bus cannot deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The reason.
    pub reason: GapReason,
    /// The last position before the gap.
    pub from: Position,
    /// The last position in the gap.
    pub to: Position,
    /// The number of missing events, if known.
    pub missed: Option<u64>,
    /// The time at which the last event before the gap was published, in milliseconds since 1970,
    /// if known.
    pub from_ms: Option<u64>,
    /// The time at which the gap was found, in milliseconds since 1970.
    pub to_ms: u64,
}

/// Reason why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// History no longer holds them.
    HistoryExpired,
    /// The bus lost its memory.
    EpochChanged,
    /// The position asked for lies in an epoch that the bus does not know.
    UnknownEpoch,
    /// A frame could not be read.
    Unreadable,
}

impl GapReason {
    /// All reasons, each at its index.
    pub const ALL: [GapReason; 4] = [
        GapReason::HistoryExpired,
        GapReason::EpochChanged,
        GapReason::UnknownEpoch,
        GapReason::Unreadable,
    ];

    /// The index in arrays of counters by reason.
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GapReason::HistoryExpired => "history expired",
            GapReason::EpochChanged => "epoch changed",
            GapReason::UnknownEpoch => "unknown epoch",
            GapReason::Unreadable => "unreadable frame",
        })
    }
}

/// One step in the order of a shard.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// Events follow from this position on; nothing is known about earlier ones. Delivered once for
    /// each shard, as the first.
    Start(Position),
    /// The next events.
    Frame(Frame),
    /// A new epoch continues where the last one ended: nothing is missing. Its first event follows.
    Epoch(Position),
    /// Events are missing; the next event follows `gap.to`.
    Gap(Gap),
    /// Events that this sink has had at the frame's origin; the bus lost them and a gateway
    /// re-appended them. Only a stream that comes from another gateway may not have them.
    Restored(Frame),
}

/// Receives the deliveries of a bus.
pub trait Sink: Send + Sync + 'static {
    /// Takes the next delivery of a shard. Called in the order of the shard, by one caller at a
    /// time; must not block.
    fn deliver(&self, shard: ShardId, delivery: Delivery);
}

/// A part of a shard's history.
#[derive(Clone, Debug)]
pub struct HistoryPage {
    /// The deliveries that follow the position asked for.
    pub deliveries: Vec<Delivery>,
    /// The position after the last delivery: the next page is asked for from here.
    pub next: Position,
    /// True if `next` was the end of the shard when the page was read.
    pub at_end: bool,
}

/// Appends an event to the body of a frame: the tag of `EventBatch.events`, its length, its bytes.
pub fn put_event(body: &mut Vec<u8>, event: &[u8]) {
    prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, body);
    prost::encoding::encode_varint(event.len() as u64, body);
    body.extend_from_slice(event);
}

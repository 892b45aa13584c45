//! The events that a bus hands to its sink.

use std::fmt;

use bytes::Bytes;

use super::{Epoch, Offset, Position, PublisherId, ShardId, StreamNumber};

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
    /// What recovery adds to it. None for a frame that was accepted here first, and was not in
    /// doubt.
    pub provenance: Option<Box<Provenance>>,
    /// The events as they are encoded in `trunkline.v1.EventBatch`: each with the tag of field 1
    /// and its length.
    pub events: Bytes,
}

impl Frame {
    /// The position of the last event.
    pub fn last(&self) -> Position {
        Position { epoch: self.epoch, offset: self.first.plus(self.count.saturating_sub(1)) }
    }

    /// True if its events were accepted elsewhere first: they keep the names that they have from
    /// there.
    pub fn is_copy(&self) -> bool {
        self.provenance.as_ref().is_some_and(|provenance| provenance.name.is_some())
    }

    /// The name of an event for ever: the position at which it was accepted first.
    pub fn name_of(&self, index: u64) -> Position {
        match self.provenance.as_ref().and_then(|provenance| provenance.name.as_ref()) {
            Some(name) => name.of(index),
            None => Position { epoch: self.epoch, offset: self.first.plus(index) },
        }
    }
}

/// What recovery adds to a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The bus lost the frame, and a gateway appended it again: its name.
    pub name: Option<Name>,
    /// Other names of single events, which were accepted more than once: the index of the event in
    /// this frame, and the name.
    pub aliases: Vec<(u64, Position)>,
    /// Each earlier attempt to append the frame, in another epoch, whose outcome is unknown: the
    /// end of the shard as its writer knew it. If that attempt succeeded, the events have a second
    /// name behind it.
    pub doubts: Vec<Position>,
}

/// The positions at which the events of a frame were accepted first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The epoch of all of them.
    pub epoch: Epoch,
    /// The offset of the first event.
    pub first: Offset,
    /// The number of events at that time.
    pub count: u64,
    /// The indices, at that time, of the events that are left, in ascending order. Empty: all are.
    pub left: Vec<u64>,
}

impl Name {
    /// The name of the event that has this index now.
    pub fn of(&self, index: u64) -> Position {
        let left = usize::try_from(index).ok().and_then(|index| self.left.get(index));
        Position { epoch: self.epoch, offset: self.first.plus(left.copied().unwrap_or(index)) }
    }

    /// The name of the last event at that time.
    pub fn last(&self) -> Position {
        Position { epoch: self.epoch, offset: self.first.plus(self.count.saturating_sub(1)) }
    }
}

/// The start of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch, at offset 0.
    pub position: Position,
    /// The end of the epoch before it. Unknown if the bus has no trace of one.
    pub previous: Position,
    /// For each earlier epoch the last position that is in the shard, was appended again, or was
    /// told as lost. Ascending; epochs that ended long ago are left out.
    pub ends: Vec<Position>,
}

/// Events that the bus cannot deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The reason.
    pub reason: GapReason,
    /// The names of the missing events, as far as they are known.
    pub lost: Vec<Lost>,
    /// True if more is missing than `lost` names: nobody knows how much.
    pub more: bool,
    /// The position of this delivery in the shard: the next one follows it.
    pub position: Position,
    /// The time at which the last event before the gap was published, in milliseconds since 1970,
    /// if known.
    pub from_ms: Option<u64>,
    /// The time at which the gap was found, in milliseconds since 1970.
    pub to_ms: u64,
}

impl Gap {
    /// The number of missing events, if known.
    pub fn missed(&self) -> Option<u64> {
        (!self.more).then(|| self.lost.iter().map(Lost::count).sum())
    }
}

/// Names of events that are missing: an unbroken run in one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The epoch.
    pub epoch: Epoch,
    /// The first offset.
    pub first: Offset,
    /// The last offset.
    pub last: Offset,
}

impl Lost {
    /// The number of events.
    pub fn count(&self) -> u64 {
        (self.last.0 + 1).saturating_sub(self.first.0)
    }
}

/// Reason why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// History no longer holds them.
    HistoryExpired,
    /// The bus lost them, and no gateway holds them.
    EpochChanged,
    /// The position asked for lies in an epoch that the bus does not know.
    UnknownEpoch,
    /// A frame could not be read.
    Unreadable,
    /// A link lost events of another deployment, and reported it as an event.
    Link,
    /// Gateways gave up events about nodes that they could not publish, and reported it so.
    NotPublished,
}

impl GapReason {
    /// All reasons, each at its index.
    pub const ALL: [GapReason; 6] = [
        GapReason::HistoryExpired,
        GapReason::EpochChanged,
        GapReason::UnknownEpoch,
        GapReason::Unreadable,
        GapReason::Link,
        GapReason::NotPublished,
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
            GapReason::Link => "lost by a link",
            GapReason::NotPublished => "not published",
        })
    }
}

/// One step in the order of a shard.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// Events follow from this position on; nothing is known about earlier ones. Delivered once for
    /// each shard, as the first. `previous` is unknown, and `ends` are those of the shard.
    Start(EpochStart),
    /// The next events.
    Frame(Frame),
    /// A new epoch begins. Nothing is said about loss: what is missing of earlier epochs follows,
    /// as copies ([`Provenance::name`]) or as gaps.
    Epoch(EpochStart),
    /// Events are missing; the next delivery follows `gap.position`.
    Gap(Gap),
}

/// Receives the deliveries of a bus.
pub trait Sink: Send + Sync + 'static {
    /// Takes the next delivery of a shard. Called in the order of the shard, by one caller at a
    /// time; must not block.
    fn deliver(&self, shard: ShardId, delivery: Delivery);

    /// An event of this stream was received. Called before or after it is delivered, from history
    /// too; must not block.
    fn publishes(&self, publisher: PublisherId, stream: StreamNumber) {
        let _ = (publisher, stream);
    }
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
    /// How far the shard's earlier epochs went, as far as it remembers them.
    pub ends: Vec<Position>,
}

impl HistoryPage {
    /// Bytes of the events in it.
    pub fn bytes(&self) -> usize {
        let bytes = |delivery: &Delivery| match delivery {
            Delivery::Frame(frame) => frame.events.len(),
            _ => 0,
        };
        self.deliveries.iter().map(bytes).sum()
    }
}

/// Appends an event to the body of a frame: the tag of `EventBatch.events`, its length, its bytes.
pub fn put_event(body: &mut Vec<u8>, event: &[u8]) {
    prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, body);
    prost::encoding::encode_varint(event.len() as u64, body);
    body.extend_from_slice(event);
}

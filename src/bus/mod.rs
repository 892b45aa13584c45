//! What carries frames between gateways.
//!
//! A bus has a fixed number of shards. It gives every event a place in its shard (epoch and offset), hands the events of all
//! gateways to a [`Sink`] in the order of their places, and keeps the latest of them as history. What it cannot hand on it
//! tells as a [`Gap`]: a sink never wonders.
//!
//! The bus knows nothing of gRPC and nothing of subscribers; events are bytes to it.

mod embedded;
mod members;
mod position;
pub mod redis;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

pub use embedded::EmbeddedBus;
pub use members::{Exchange, MemberHead, MemberId, Members, Part};
pub use position::{Epoch, Offset, Position, ShardId};

use crate::trace::{Follow, Span};

/// The events of one request for one shard; appended together, in order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Encoded events, at least one.
    pub events: Vec<Bytes>,
    /// Makes a retry safe: a batch whose id was accepted within the bus's window is not appended again.
    pub request_id: Option<RequestId>,
    /// Events whose bytes are kept beyond history as the last ones under a key: each its index, and the key.
    pub retain: Vec<(usize, u8)>,
    /// The traces of its events that are recorded, if any is: who appends it tells there what it did.
    pub follow: Option<Box<Follow>>,
}

/// The last event under a key, as [`Batch::retain`] asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The key.
    pub key: u8,
    /// Where it stands.
    pub position: Position,
    /// The encoded event.
    pub event: Bytes,
}

/// The bytes of a UUID.
pub type RequestId = [u8; 16];

/// Where a batch was appended: its events have the offsets from `first` on, without a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The epoch of all of them.
    pub epoch: Epoch,
    /// The offset of the first event.
    pub first: Offset,
}

/// Why a batch was not appended, or may not have been.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The bus did not take it: nothing was appended.
    #[error("{0}")]
    Unavailable(String),
    /// It was sent, and no answer came within the time limit: it may or may not have been appended.
    #[error("{0}")]
    OutcomeUnknown(String),
    /// The bus is closing: nothing was appended.
    #[error("the gateway is closing")]
    Closed,
}

/// Several events of one shard with their places, encoded.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The epoch of all events.
    pub epoch: Epoch,
    /// The offset of the first event.
    pub first: Offset,
    /// How many events there are; at least one.
    pub count: u64,
    /// When the frame was made, in milliseconds since 1970, by its writer's clock.
    pub time_ms: u64,
    /// Where its last event stood before, if the frame was appended again because the bus had lost it.
    pub origin: Option<Position>,
    /// The events as they stand in `trunkline.v1.EventBatch`: each with the tag of field 1 and its length.
    pub events: Bytes,
}

impl Frame {
    /// The place of the last event.
    pub fn last(&self) -> Position {
        Position { epoch: self.epoch, offset: self.first.plus(self.count - 1) }
    }
}

/// Events that the bus cannot hand on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// The last place before the gap.
    pub from: Position,
    /// The last place in the gap.
    pub to: Position,
    /// How many events are missing, where that is known.
    pub missed: Option<u64>,
    /// When the last event before the gap was published, in milliseconds since 1970, where known.
    pub from_ms: Option<u64>,
    /// When the gap was found.
    pub to_ms: u64,
}

/// Why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// History no longer holds them.
    HistoryExpired,
    /// The bus lost its memory.
    EpochChanged,
    /// The place asked for lies in an epoch of which nothing is known.
    UnknownEpoch,
    /// A frame could not be read.
    Unreadable,
}

impl GapReason {
    /// All of them, each at its index.
    pub const ALL: [GapReason; 4] = [
        GapReason::HistoryExpired,
        GapReason::EpochChanged,
        GapReason::UnknownEpoch,
        GapReason::Unreadable,
    ];

    /// Where it stands in what is counted by reason.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// What a bus hands on, in the order of a shard.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// Events follow from here; nothing is known of what came before. Once a shard, and first.
    Start(Position),
    /// The next events.
    Frame(Frame),
    /// A new epoch goes on where the last one ended: nothing is missing. Its first event follows.
    Epoch(Position),
    /// Events are missing; the next one follows `gap.to`.
    Gap(Gap),
    /// These events were handed on before, at the frame's origin; Redis lost them, and they were appended again. Only who comes
    /// from another gateway may not have them.
    Again(Frame),
}

/// Takes what a bus hands on.
pub trait Sink: Send + Sync + 'static {
    /// Takes the next delivery of a shard. Called in the order of the shard; must not block.
    fn deliver(&self, shard: ShardId, delivery: Delivery);
}

/// A part of a shard's history.
#[derive(Clone, Debug)]
pub struct HistoryPage {
    /// What follows the place asked for, in order, and without a hole that is not told.
    pub deliveries: Vec<Delivery>,
    /// The place after the last delivery: ask from here for more.
    pub next: Position,
    /// Whether `next` was the shard's end when the page was read.
    pub at_end: bool,
}

/// Whether the way through the bus is proven to work, in both directions, on all shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is.
    Ready,
    /// It is not, or not yet; why, for people.
    NotReady(String),
}

/// A bus that cannot be used as it is configured; waiting does not help.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// How the bus does, for people and machines.
#[derive(Clone, Debug, Default)]
pub struct BusStatus {
    /// Connections.
    pub links: Vec<LinkStatus>,
    /// One entry a shard.
    pub shards: Vec<ShardBusStatus>,
    /// Gaps told so far, by [`GapReason::index`].
    pub gaps: [GapCount; GapReason::ALL.len()],
    /// Frames that could not be read so far.
    pub unreadable: u64,
    /// What carried a seal that does not hold, so far.
    pub forged: u64,
}

/// Gaps of one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GapCount {
    /// How many gaps.
    pub gaps: u64,
    /// Events that are known to be missing; a gap of unknown size adds nothing.
    pub missed_events: u64,
}

/// One connection to a server of the bus.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    /// The server.
    pub address: String,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether it is up.
    pub connected: bool,
    /// How often it was opened again.
    pub reconnects: u64,
}

/// One shard, as the bus sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardBusStatus {
    /// The last place handed on.
    pub position: Position,
    /// How long ago the way through the bus was last proven.
    pub proof_age: Option<Duration>,
    /// Whether it counts as proven.
    pub proven: bool,
    /// Holes filled from history so far.
    pub repairs: u64,
}

/// A bus.
pub trait Bus: Send + Sync + 'static {
    /// "embedded", "redis" or "redis-cluster".
    fn kind(&self) -> &'static str;

    /// The number of shards; fixed.
    fn shards(&self) -> u16;

    /// Appends a batch to a shard. Batches of one caller that awaits each keep their order.
    fn append(&self, shard: ShardId, batch: Batch) -> BoxFuture<'_, Result<Appended, AppendError>>;

    /// What the bus keeps beyond its sink's log; none where it keeps nothing.
    fn history(&self) -> Option<&dyn History>;

    /// Where gateways find one another; none where there is but one.
    fn members(&self) -> Option<&dyn Members>;

    /// Whether the way through the bus is proven, now and from now on.
    fn health(&self) -> watch::Receiver<Health>;

    /// How the bus does.
    fn status(&self) -> BusStatus;

    /// Appends what was accepted, then ends every task and connection of the bus.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// What a bus keeps of its shards for those who come late.
pub trait History: Send + Sync {
    /// Reads what followed `after`, as far as history goes; for a place that is no longer kept the page begins with a gap.
    /// `Place::UNKNOWN` asks for the oldest that is kept. Answers with at most about `max_bytes` of events.
    fn page(
        &self,
        shard: ShardId,
        after: Position,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<HistoryPage, AppendError>>;

    /// The last events under each key that were to be retained.
    fn retained(&self, shard: ShardId) -> BoxFuture<'_, Result<Vec<Retained>, AppendError>>;

    /// The end of a shard, as the bus's servers know it now.
    fn tip(&self, shard: ShardId) -> BoxFuture<'_, Result<Position, AppendError>>;
}

/// A bus that others share.
pub type SharedBus = Arc<dyn Bus>;

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

/// Ends the span of an append: `count` events from `first` on.
fn appended(span: Option<Span>, shard: ShardId, epoch: Epoch, first: Offset, count: u64) {
    let Some(mut span) = span else { return };
    span.number("trunkline.shard", shard.0.into());
    span.number("trunkline.epoch", epoch.0);
    span.number("trunkline.offset", first.0);
    span.number("trunkline.events", count);
    span.end();
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Appends an event to the body of a frame: the tag of `EventBatch.events`, its length, its bytes.
pub(crate) fn put_event(body: &mut Vec<u8>, event: &[u8]) {
    prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, body);
    prost::encoding::encode_varint(event.len() as u64, body);
    body.extend_from_slice(event);
}

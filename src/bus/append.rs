//! The request to append events, and its answer.

use bytes::Bytes;

use super::{Epoch, Offset, Position, ShardId};
use crate::trace::{Follow, Span};

/// The events of one request for one shard, appended together and in order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Encoded events, at least one.
    pub events: Vec<Bytes>,
    /// Makes a retry safe: a batch whose id was accepted within the bus's window is not appended
    /// again.
    pub request_id: Option<RequestId>,
    /// Events that the bus keeps beyond history as the last value under a key: index in `events`,
    /// and key.
    pub retain: Vec<(usize, u8)>,
    /// The traces of its events that are recorded, if any. The bus records the append in them.
    pub follow: Option<Box<Follow>>,
}

/// The last event under a key of [`Batch::retain`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The key.
    pub key: u8,
    /// The position of the event.
    pub position: Position,
    /// The encoded event.
    pub event: Bytes,
}

/// The bytes of a UUID.
pub type RequestId = [u8; 16];

/// The position of an appended batch: its events have contiguous offsets from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The epoch of all events.
    pub epoch: Epoch,
    /// The offset of the first event.
    pub first: Offset,
}

/// Reason why a batch was not appended, or may not have been.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The bus did not accept the batch: nothing was appended.
    #[error("{0}")]
    Unavailable(String),
    /// The batch was sent and not answered within the time limit: it may have been appended.
    #[error("{0}")]
    OutcomeUnknown(String),
    /// The bus is closing: nothing was appended.
    #[error("the gateway is closing")]
    Closed,
}

/// Ends the trace span of an append of `count` events from `first` on.
pub(super) fn record_append(span: Option<Span>, shard: ShardId, appended: Appended, count: u64) {
    let Some(mut span) = span else { return };
    span.number("trunkline.shard", shard.0.into());
    span.number("trunkline.epoch", appended.epoch.0);
    span.number("trunkline.offset", appended.first.0);
    span.number("trunkline.events", count);
    span.end();
}

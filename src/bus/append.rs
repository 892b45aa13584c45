//! The request to append events, and its answer.

use bytes::Bytes;

use super::{BatchTrace, Epoch, Offset, Position};

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
    /// The recorded traces of its events, if there are any: the bus reports the append to them.
    pub trace: Option<Box<BatchTrace>>,
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
    /// The batch is larger than what the bus takes: nothing was appended, and nothing will be.
    #[error("the bus takes {limit} bytes at once, and these events have {actual}")]
    TooLarge {
        /// Bytes that the bus takes.
        limit: usize,
        /// Bytes of the events.
        actual: usize,
    },
    /// The bus is closing: nothing was appended.
    #[error("the gateway is closing")]
    Closed,
}

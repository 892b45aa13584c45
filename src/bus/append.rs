//! The request to append events, and its answer.

use bytes::Bytes;

use super::{BatchTrace, Epoch, Offset, Position, PublisherId, Run, ranges::Ranges};

/// The events of one request for one shard, appended together and in order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Encoded events, at least one.
    pub events: Vec<Bytes>,
    /// Makes a retry safe: a batch whose id was accepted within the bus's window is not appended
    /// again.
    pub request_id: Option<RequestId>,
    /// The numbers that the publisher gave the events, of all of them in their order; empty if it
    /// gave none. A batch has these or a request id.
    pub runs: Vec<Run>,
    /// Events that the bus keeps beyond history as the last value under a key: index in `events`,
    /// and key.
    pub retain: Vec<(usize, u8)>,
    /// The recorded traces of its events, if there are any: the bus reports the append to them.
    pub trace: Option<Box<BatchTrace>>,
}

impl Batch {
    /// Leaves out what the shard has already: the events of a publisher whose sequences are among
    /// `covered`. True if there was such an event.
    pub fn leave_out(&mut self, publisher: &PublisherId, covered: &Ranges) -> bool {
        let theirs = |run: &Run| run.publisher == *publisher;
        if !self.runs.iter().any(|run| theirs(run) && run.overlaps(covered)) {
            return false;
        }
        let (mut runs, mut is_left) = (Vec::new(), Vec::new());
        for run in std::mem::take(&mut self.runs) {
            if theirs(&run) {
                runs.extend(run.without(covered, &mut is_left));
            } else {
                is_left.extend(run.sequences.iter().map(|_| true));
                runs.push(run);
            }
        }
        self.runs = runs;
        if is_left.iter().all(|left| *left) {
            return false;
        }
        let mut place = 0;
        let places: Vec<Option<usize>> = (is_left.iter())
            .map(|left| {
                place += usize::from(*left);
                left.then(|| place - 1)
            })
            .collect();
        let place = |index: usize| places.get(index).copied().flatten();
        let retain = std::mem::take(&mut self.retain).into_iter();
        self.retain = retain.filter_map(|(index, key)| Some((place(index)?, key))).collect();
        let mut index = 0;
        self.events.retain(|_| {
            index += 1;
            place(index - 1).is_some()
        });
        true
    }
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

impl Appended {
    /// Of a batch of which some or all was appended before, under other positions.
    pub const UNKNOWN: Appended = Appended { epoch: Epoch::NONE, first: Offset(0) };
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
    /// Its publisher has opened a later stream, and the shard has events of that: nothing was
    /// appended.
    #[error("the publisher has opened another stream")]
    TakenOver,
    /// The bus is closing: nothing was appended.
    #[error("the gateway is closing")]
    Closed,
}

//! What became of the events that a stream passed, for one that explains itself; and which of them belong to a trace.

use std::time::SystemTime;

use super::{
    event::{EventMeta, EventView},
    filter::{Exclusion, Filter},
};
use crate::{
    bus::{Position, ShardId},
    trace::Context,
};

/// All events that a stream passed in one go.
#[derive(Debug)]
pub struct Judged {
    /// Verdicts on the first of them.
    pub verdicts: Vec<Verdict>,
    /// How many are delivered.
    pub delivered: u64,
    /// How many are not.
    pub withheld: u64,
    /// How many verdicts there may be.
    most: usize,
    /// The shard that is being passed.
    shard: ShardId,
}

/// What became of one event. It owns its words: the event may be gone from the log when they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The event's shard.
    pub shard: ShardId,
    /// Where it stands there.
    pub position: Position,
    /// The number of its kind.
    pub kind: u8,
    /// Its id.
    pub event_id: String,
    /// Who published it.
    pub source: String,
    /// The account that it concerns, if any.
    pub account: Option<String>,
    /// Its type, if it is a custom event.
    pub custom_type: Option<String>,
    /// What keeps it from the stream.
    pub exclusions: Vec<Exclusion>,
}

/// A delivered event that belongs to a trace which is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Followed {
    /// Its trace.
    pub context: Context,
    /// The number of its kind.
    pub kind: u8,
    /// When this gateway got it, from the bus or from history.
    pub received: SystemTime,
}

impl Judged {
    pub(super) fn new(most: usize) -> Judged {
        Judged { verdicts: vec![], delivered: 0, withheld: 0, most, shard: ShardId(0) }
    }

    /// What was passed, put together by hand.
    #[cfg(test)]
    pub(crate) fn with(verdicts: Vec<Verdict>, delivered: u64, withheld: u64) -> Judged {
        Judged { verdicts, delivered, withheld, ..Judged::new(0) }
    }

    pub(super) fn pass(&mut self, shard: ShardId) {
        self.shard = shard;
    }

    /// Notes an event that the filter has judged: `matches` is what it said.
    pub(super) fn note(
        &mut self,
        position: Position,
        event: &EventView<'_>,
        filter: &Filter,
        matches: bool,
    ) {
        let count = if matches { &mut self.delivered } else { &mut self.withheld };
        *count += 1;
        if self.verdicts.len() < self.most {
            self.verdicts.push(Verdict {
                shard: self.shard,
                position,
                kind: event.kind(),
                event_id: event.event_id().to_owned(),
                source: event.source().to_owned(),
                account: event.account().map(str::to_owned),
                custom_type: event.custom_type().map(str::to_owned),
                exclusions: filter.explain(event),
            });
        }
    }

    /// Whether no event was passed.
    pub fn is_empty(&self) -> bool {
        self.delivered + self.withheld == 0
    }
}

impl Followed {
    pub(super) fn of(meta: &EventMeta, frame: &[u8], received: SystemTime) -> Option<Followed> {
        let context = meta.view(frame).trace()?;
        Some(Followed { context, kind: meta.kind(), received })
    }
}

//! The decisions of a filter about the events that a stream passed, for a stream that explains
//! itself.

use super::{
    event::EventView,
    filter::{Exclusion, Filter},
};
use crate::bus::{Position, ShardId};

/// Decisions about all events that a stream passed in one read.
#[derive(Debug)]
pub struct Explanation {
    /// The first decisions, up to the limit.
    pub decisions: Vec<Decision>,
    /// Events that are delivered.
    pub delivered: u64,
    /// Events that are not.
    pub withheld: u64,
    max_decisions: usize,
    /// The shard that is being read.
    shard: ShardId,
}

/// The decision about one event. It owns its data: the event may have left the log by the time
/// that this is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The event's shard.
    pub shard: ShardId,
    /// The event's position in it.
    pub position: Position,
    /// The number of the kind.
    pub kind: u8,
    /// The event's id.
    pub event_id: String,
    /// The publishing node.
    pub source: String,
    /// The account that the event concerns, if any.
    pub account: Option<String>,
    /// The type of a custom event.
    pub custom_type: Option<String>,
    /// The parts of the filter that exclude the event; none if it is delivered.
    pub exclusions: Vec<Exclusion>,
}

impl Explanation {
    pub(super) fn new(max_decisions: usize) -> Explanation {
        Explanation {
            decisions: vec![],
            delivered: 0,
            withheld: 0,
            max_decisions,
            shard: ShardId(0),
        }
    }

    /// An explanation with this content.
    #[cfg(test)]
    pub(crate) fn with(decisions: Vec<Decision>, delivered: u64, withheld: u64) -> Explanation {
        Explanation { decisions, delivered, withheld, ..Explanation::new(0) }
    }

    pub(super) fn begin_shard(&mut self, shard: ShardId) {
        self.shard = shard;
    }

    /// Records the decision about an event; `matches` is the result of the filter.
    pub(super) fn record(
        &mut self,
        position: Position,
        event: &EventView<'_>,
        filter: &Filter,
        matches: bool,
    ) {
        let count = if matches { &mut self.delivered } else { &mut self.withheld };
        *count += 1;
        if self.decisions.len() < self.max_decisions {
            self.decisions.push(Decision {
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

    /// True if no event was passed.
    pub fn is_empty(&self) -> bool {
        self.delivered + self.withheld == 0
    }
}

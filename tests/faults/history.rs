//! The recorded history: what publishers sent and subscribers received. The validators read nothing
//! else.

use std::{collections::HashSet, time::Duration};

use trunkline_proto::v1::GapReason;

/// Everything that was recorded. Times count from the start of the recording.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Every event that a publisher sent, in the order of sending for each publisher.
    pub sent: Vec<Sent>,
    /// Every subscriber, with all of its streams.
    pub nodes: Vec<Node>,
    /// How often a publisher was refused and had to retry.
    pub refused: usize,
    /// Times in which the bus could certainly not accept anything.
    pub outages: Vec<(Duration, Duration)>,
    /// Resident memory of gateways, with the limit that holds for it.
    pub memory: Vec<Memory>,
}

/// An event that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub event_id: String,
    /// The publishing node.
    pub source: String,
    pub account: String,
    pub at: Duration,
    /// Position and time of the OK; none if there was none.
    pub acknowledged: Option<Acknowledged>,
}

/// An OK for one event.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    /// Shard and position; none if the event was published on a stream, whose client does not tell.
    pub place: Option<(u32, Position)>,
    pub at: Duration,
}

impl Acknowledged {
    /// True if the event lies in the gap, or may.
    pub fn is_in(&self, gap: &Gap) -> bool {
        self.place.is_none_or(|(shard, position)| gap.holds(shard, position))
    }
}

/// Epoch and offset: what orders the events of a shard.
pub type Position = (u64, u64);

/// A subscriber: one node whose streams follow one another, each with the last token of the one
/// before.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_field_names)] // the name of the wire API
pub struct Node {
    pub node_id: String,
    pub interest: Interest,
    pub streams: Vec<Stream>,
}

/// The interest of a node.
#[derive(Clone, Debug, Default)]
pub struct Interest {
    /// Only events of these accounts; all accounts if none.
    pub accounts: Option<HashSet<String>>,
    /// True if the node watches: it has these accounts all the time, and others that it adds and
    /// removes.
    pub changes: bool,
    /// True if the node asked for its own events too.
    pub own: bool,
}

/// One `Subscribe` or `Watch`.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// True if the request carried a token.
    pub with_token: bool,
    /// The accounts with which a `Watch` was opened.
    pub accounts: HashSet<String>,
    /// Everything that the stream received, in order, and the updates that were sent on it.
    pub items: Vec<(Duration, Item)>,
}

/// One thing that a stream received.
#[derive(Clone, Debug)]
pub enum Item {
    Subscribed {
        resumed: bool,
    },
    Event {
        event_id: String,
        source: String,
        account: String,
    },
    Gap(Gap),
    /// The node sends an update of its interest.
    Updating(Update),
    /// The update with this number is in force.
    Updated(u64),
    Draining,
    /// The end, with the reason of the gateway's error, if there was one.
    Ended(Option<String>),
}

/// An update of a node's interest.
#[derive(Clone, Debug, Default)]
pub struct Update {
    pub id: u64,
    pub add: Vec<String>,
    pub remove: Vec<String>,
}

/// A gap as the subscriber received it.
#[derive(Clone, Debug)]
pub struct Gap {
    pub reason: GapReason,
    pub shard: u32,
    pub from: Position,
    pub to: Position,
    pub missed: Option<u64>,
}

/// A measurement of a process' memory.
#[derive(Clone, Debug)]
pub struct Memory {
    pub process: String,
    pub bytes: u64,
    pub bound: u64,
}

impl Interest {
    /// True if a node with this id is to get an event of `source` about `account`.
    pub fn includes(&self, node_id: &str, source: &str, account: &str) -> bool {
        let wanted = self.accounts.as_ref().is_none_or(|accounts| accounts.contains(account));
        wanted && (self.own || source != node_id)
    }
}

impl Gap {
    /// True if the position lies in the gap.
    pub fn holds(&self, shard: u32, position: Position) -> bool {
        self.shard == shard && self.from < position && position <= self.to
    }
}

impl Node {
    /// Everything received, stream after stream.
    pub fn items(&self) -> impl Iterator<Item = &(Duration, Item)> {
        self.streams.iter().flat_map(|stream| &stream.items)
    }

    /// The ids of all events, in the order of delivery.
    pub fn events(&self) -> impl Iterator<Item = &str> {
        self.items().filter_map(|(_, item)| match item {
            Item::Event { event_id, .. } => Some(event_id.as_str()),
            _ => None,
        })
    }

    /// All gaps that the node received.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.items().filter_map(|(_, item)| match item {
            Item::Gap(gap) => Some(gap),
            _ => None,
        })
    }

    /// The time of the first `Subscribed`.
    pub fn first_subscribed(&self) -> Option<Duration> {
        self.items().find_map(|(at, item)| matches!(item, Item::Subscribed { .. }).then_some(*at))
    }
}

impl Stream {
    /// The time of `Subscribed`.
    pub fn subscribed(&self) -> Option<Duration> {
        self.items
            .iter()
            .find_map(|(at, item)| matches!(item, Item::Subscribed { .. }).then_some(*at))
    }

    /// When it ended; none if it was still open when the recording stopped.
    pub fn ended(&self) -> Option<Duration> {
        self.items.iter().find_map(|(at, item)| matches!(item, Item::Ended(_)).then_some(*at))
    }
}

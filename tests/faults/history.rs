//! What publishers and subscribers saw of the gateways, as they saw it: the validators judge from this alone.

use std::{collections::HashSet, time::Duration};

/// Everything that was recorded. Times count from the start of the recording.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Every event that a publisher sent, in the order of sending for each publisher.
    pub sent: Vec<Sent>,
    /// Every subscriber, with all of its streams.
    pub nodes: Vec<Node>,
    /// How often a publisher was refused and had to ask again.
    pub refused: usize,
    /// When the bus was certainly unable to accept anything.
    pub outages: Vec<(Duration, Duration)>,
    /// Resident memory of a gateway, in bytes, with the most that it may be.
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
    /// Where and when the gateway said that it was accepted; none if it never said so.
    pub acknowledged: Option<Acknowledged>,
}

/// An OK of `Publish` for one event.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    pub shard: u32,
    pub place: Place,
    pub at: Duration,
}

/// Epoch and offset: what orders the events of a shard.
pub type Place = (u64, u64);

/// A subscriber: one node whose streams follow one another, each with the last token of the one before.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_field_names)] // the name of the wire API
pub struct Node {
    pub node_id: String,
    pub wants: Wants,
    pub streams: Vec<Stream>,
}

/// What a node asked for.
#[derive(Clone, Debug, Default)]
pub struct Wants {
    /// Only events of these accounts; none: all.
    pub accounts: Option<HashSet<String>>,
    /// Its own events too.
    pub own: bool,
}

/// One `Subscribe`.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// Whether it was opened with a token.
    pub with_token: bool,
    /// What came, in order.
    pub items: Vec<(Duration, Item)>,
}

/// What a stream brought.
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
    Draining,
    /// The end, with the reason of the error, if it was one that the gateway gave.
    Ended(Option<String>),
}

/// A gap as it was told.
#[derive(Clone, Debug)]
pub struct Gap {
    pub shard: u32,
    pub reason: String,
    pub from: Place,
    pub to: Place,
    pub missed: Option<u64>,
}

/// How much memory a process held.
#[derive(Clone, Debug)]
pub struct Memory {
    pub process: String,
    pub bytes: u64,
    pub bound: u64,
}

impl Wants {
    /// Whether a node with this id is to get an event.
    pub fn includes(&self, node_id: &str, source: &str, account: &str) -> bool {
        let wanted = self.accounts.as_ref().is_none_or(|accounts| accounts.contains(account));
        wanted && (self.own || source != node_id)
    }
}

impl Gap {
    /// Whether a place lies in it.
    pub fn holds(&self, shard: u32, place: Place) -> bool {
        self.shard == shard && self.from < place && place <= self.to
    }
}

impl Node {
    /// All that came, stream after stream.
    pub fn items(&self) -> impl Iterator<Item = &(Duration, Item)> {
        self.streams.iter().flat_map(|stream| &stream.items)
    }

    /// The ids of all events, in the order in which they came.
    pub fn events(&self) -> impl Iterator<Item = &str> {
        self.items().filter_map(|(_, item)| match item {
            Item::Event { event_id, .. } => Some(event_id.as_str()),
            _ => None,
        })
    }

    /// The gaps that it was told.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.items().filter_map(|(_, item)| match item {
            Item::Gap(gap) => Some(gap),
            _ => None,
        })
    }

    /// When it first knew that it was subscribed.
    pub fn first_subscribed(&self) -> Option<Duration> {
        self.items().find_map(|(at, item)| matches!(item, Item::Subscribed { .. }).then_some(*at))
    }
}

impl Stream {
    /// When it was confirmed.
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

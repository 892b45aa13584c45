//! The state of a bus, for people and for metrics.

use std::time::Duration;

use super::{GapReason, Position, ShardId};

/// Verification of the path from the gateway to the bus and back, over all shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Every shard is verified.
    Ready,
    /// Some shards are verified, and some are not that were. The reason is for people.
    Partial {
        /// Those that are not, ascending.
        unverified: Vec<ShardId>,
        /// Why the first of them is not.
        why: String,
    },
    /// No shard is verified, or one never was; the reason is for people.
    NotReady(String),
}

impl Health {
    /// True if some shards serve, and streams can be opened.
    pub fn serves(&self) -> bool {
        !matches!(self, Health::NotReady(_))
    }
}

/// The state of a bus.
#[derive(Clone, Debug, Default)]
pub struct BusStatus {
    /// Connections.
    pub links: Vec<LinkStatus>,
    /// One entry for each shard.
    pub shards: Vec<ShardBusStatus>,
    /// Gaps delivered so far, by [`GapReason::index`].
    pub gaps: [GapCount; GapReason::ALL.len()],
    /// Messages received so far that are not a frame of any gateway.
    pub unreadable: u64,
    /// Messages and entries received so far whose authentication tag does not verify.
    pub forged: u64,
}

/// Gaps of one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GapCount {
    /// The number of gaps.
    pub gaps: u64,
    /// Events that are known to be missing; a gap of unknown size adds nothing.
    pub missed_events: u64,
}

/// One connection to a server of the bus.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    /// The server's address.
    pub address: String,
    /// The purpose: "subscribe".
    pub purpose: &'static str,
    /// True while it is connected.
    pub connected: bool,
    /// The number of times it was opened again.
    pub reconnects: u64,
}

/// The state of one shard.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardBusStatus {
    /// The last position delivered.
    pub position: Position,
    /// The time since the path was last verified. None if it never was.
    pub verified_age: Option<Duration>,
    /// True while that is recent enough for the shard to count as verified.
    pub verified: bool,
    /// The number of repairs: readings of history that filled a hole.
    pub repairs: u64,
}

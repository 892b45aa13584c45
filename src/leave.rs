//! Asking streams to go on at another gateway: why, until when, and what becomes of their
//! connection.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The time that a stream has to end once it is asked to, unless its gateway stops. It ends at
/// once, unless its client does not read.
pub const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a stream is asked to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    /// The gateway is being stopped.
    Stopping,
    /// Other gateways have fewer streams.
    Rebalance,
    /// The stream is as old as `limits.maxStreamAge` allows.
    MaxAge,
}

impl LeaveReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [LeaveReason; 3] =
        [LeaveReason::Stopping, LeaveReason::Rebalance, LeaveReason::MaxAge];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            LeaveReason::Stopping => "stopping",
            LeaveReason::Rebalance => "rebalance",
            LeaveReason::MaxAge => "max_age",
        }
    }

    /// The reason as a node gets it.
    pub fn text(self) -> &'static str {
        match self {
            LeaveReason::Stopping => "the gateway is being stopped",
            LeaveReason::Rebalance => "rebalance: other gateways have fewer streams",
            LeaveReason::MaxAge => "max age: the stream is as old as limits.maxStreamAge allows",
        }
    }
}

/// What a node is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// Why.
    pub reason: LeaveReason,
    /// When the stream has ended, or the gateway has stopped.
    pub deadline: SystemTime,
    /// The delay before the node connects again.
    pub reconnect_delay: Duration,
    /// The number of the gateway, as others know it, that should be tried first.
    pub to: Option<u64>,
}

impl Leave {
    /// To go on elsewhere while this gateway goes on too.
    pub fn now(reason: LeaveReason, reconnect_delay: Duration) -> Leave {
        Leave { reason, deadline: SystemTime::now() + LEAVE_TIMEOUT, reconnect_delay, to: None }
    }

    /// To go on elsewhere at the age of a stream that opens now.
    pub fn at_age(age: Duration) -> Leave {
        let now = Leave::now(LeaveReason::MaxAge, Duration::ZERO);
        Leave { deadline: now.deadline + age, ..now }
    }
}

/// The streams of one connection, and whether they are asked to leave.
///
/// A stream that is opened again on the same connection comes back to the same gateway. So once
/// all streams of a connection are asked to leave, it is closed gracefully (GOAWAY), and its client
/// makes a new one for what follows. A connection that is used by one node is taken as one: with
/// one of its streams all are asked. One that carries streams of several nodes is taken for that
/// of a load balancer, which chooses a gateway for each of them: there each stream leaves alone.
#[derive(Debug, Default)]
pub struct ConnectionLeave {
    streams: Mutex<Streams>,
    asked: OnceLock<Leave>,
    all_asked: CancellationToken,
}

#[derive(Debug, Default)]
struct Streams {
    /// A hash of the node id of the first stream.
    node: Option<u64>,
    /// True if there were streams of another node too.
    several_nodes: bool,
    open: usize,
    leaving: usize,
}

impl ConnectionLeave {
    /// Counts a stream of a node until the guard is dropped.
    pub fn enter(self: &Arc<Self>, node_id: &str) -> StreamOnConnection {
        let mut hasher = DefaultHasher::new();
        node_id.hash(&mut hasher);
        let node = hasher.finish();
        let mut streams = self.streams.lock();
        streams.several_nodes |= *streams.node.get_or_insert(node) != node;
        streams.open += 1;
        drop(streams);
        StreamOnConnection { connection: self.clone(), leaves: false }
    }

    /// True while only one node has opened streams on it.
    pub fn is_of_one_node(&self) -> bool {
        !self.streams.lock().several_nodes
    }

    /// What the whole connection is asked for, once it is.
    pub fn asked(&self) -> Option<Leave> {
        self.asked.get().copied()
    }

    /// Cancelled when the whole connection is asked to leave.
    pub fn all_asked(&self) -> &CancellationToken {
        &self.all_asked
    }
}

/// One open stream of a connection.
#[derive(Debug)]
pub struct StreamOnConnection {
    connection: Arc<ConnectionLeave>,
    leaves: bool,
}

impl StreamOnConnection {
    /// Records that this stream is asked to leave, and the connection with it where that follows.
    pub fn leaves(&mut self, leave: Leave) {
        if std::mem::replace(&mut self.leaves, true) {
            return;
        }
        let mut streams = self.connection.streams.lock();
        streams.leaving += 1;
        let all = !streams.several_nodes || streams.leaving >= streams.open;
        drop(streams);
        if all {
            // The first reason stays.
            let _ = self.connection.asked.set(leave);
            self.connection.all_asked.cancel();
        }
    }
}

impl Drop for StreamOnConnection {
    fn drop(&mut self) {
        let mut streams = self.connection.streams.lock();
        streams.open -= 1;
        streams.leaving -= usize::from(self.leaves);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leave(reason: LeaveReason) -> Leave {
        Leave::now(reason, Duration::ZERO)
    }

    #[test]
    fn a_connection_of_one_node_leaves_with_its_first_stream() {
        let connection = Arc::new(ConnectionLeave::default());
        let mut events = connection.enter("node-1");
        let _publisher = connection.enter("node-1");
        assert!(connection.is_of_one_node() && connection.asked().is_none());
        let asked = leave(LeaveReason::Rebalance);
        events.leaves(asked);
        assert!(connection.all_asked().is_cancelled());
        // The reason of the first one stays.
        connection.enter("node-1").leaves(leave(LeaveReason::MaxAge));
        assert_eq!(connection.asked(), Some(asked));
    }

    #[test]
    fn a_connection_of_several_nodes_leaves_when_all_of_its_streams_are_asked() {
        let connection = Arc::new(ConnectionLeave::default());
        let [mut one, mut two, mut three] = ["1", "2", "3"].map(|id| connection.enter(id));
        assert!(!connection.is_of_one_node());
        one.leaves(leave(LeaveReason::Rebalance));
        one.leaves(leave(LeaveReason::Rebalance));
        drop(one);
        two.leaves(leave(LeaveReason::Rebalance));
        assert!(!connection.all_asked().is_cancelled(), "one is not asked");
        three.leaves(leave(LeaveReason::Rebalance));
        assert!(connection.all_asked().is_cancelled());
    }
}

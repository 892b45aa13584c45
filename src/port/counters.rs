//! Counters of the gRPC port: connections, requests in flight, and refusals by limit.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::errors::{Limit, LimitCounters};

/// Totals of the port.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that were accepted.
    connections: AtomicU64,
    /// Requests that are not completely answered.
    in_flight: AtomicUsize,
    /// Connections and requests that were refused or ended because of a limit.
    limits: LimitCounters,
}

impl Counters {
    /// Records a connection that was accepted.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has arrived.
    pub fn begun(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is completely answered, or cancelled.
    pub fn over(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Records a connection or request that was refused or ended because of a limit.
    pub fn refused(&self, limit: Limit) {
        self.limits.refused(limit);
    }

    /// The number of connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// The number of requests that are not completely answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The number of connections and requests that were refused or ended because of a limit.
    pub fn refusals(&self, limit: Limit) -> u64 {
        self.limits.count(limit)
    }
}

//! Counters of the gRPC port: connections, requests in flight, and refusals by limit.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::errors::{Limit, LimitCounters};

/// Totals of the port.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that were accepted.
    connections: AtomicU64,
    /// Of these, the ones that were closed before they sent anything.
    unused: AtomicU64,
    /// Requests that have arrived.
    requests: AtomicU64,
    /// Requests in flight: not completely answered yet.
    in_flight: AtomicUsize,
    /// Connections and requests that were refused or ended because of a limit.
    limits: LimitCounters,
}

impl Counters {
    /// Records a connection that was accepted.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that a connection was closed before it sent anything: mostly a probe, which is no
    /// reason for a line in the log.
    pub fn unused(&self) {
        self.unused.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of connections that were closed before they sent anything.
    pub fn unused_connections(&self) -> u64 {
        self.unused.load(Ordering::Relaxed)
    }

    /// Records a request that has arrived.
    pub fn request_started(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that a request is completely answered or cancelled.
    pub fn request_finished(&self) {
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

    /// The number of requests that have arrived.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The number of connections and requests that were refused or ended because of a limit.
    pub fn refusals(&self, limit: Limit) -> u64 {
        self.limits.count(limit)
    }
}

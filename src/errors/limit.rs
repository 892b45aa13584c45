//! Limits at which a request is refused or a connection is closed, by their keys in the
//! configuration.

use std::sync::atomic::{AtomicU64, Ordering};

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `limits.maxConnections`.
    Connections,
    /// `limits.maxConnectionsPerPeer`.
    ConnectionsPerPeer,
    /// `limits.maxStreams`.
    Streams,
    /// `limits.maxStreamsPerConnection`.
    StreamsPerConnection,
    /// `limits.maxStreamsPerIdentity`.
    StreamsPerIdentity,
    /// `limits.maxHealthStreams`.
    HealthStreams,
    /// `limits.maxPendingBytes`.
    PendingBytes,
    /// `limits.maxPendingBytesPerIdentity`.
    PendingBytesPerIdentity,
    /// `limits.eventsPerSecond`.
    EventsPerSecond,
    /// `limits.maxHeaderBytes`.
    HeaderBytes,
    /// `limits.handshakeTimeout`.
    HandshakeTimeout,
    /// `limits.requestTimeout`.
    RequestTimeout,
    /// `limits.idleTimeout`.
    IdleTimeout,
}

impl Limit {
    /// All limits, in the order of their numbers.
    pub const ALL: [Limit; 13] = [
        Limit::Connections,
        Limit::ConnectionsPerPeer,
        Limit::Streams,
        Limit::StreamsPerConnection,
        Limit::StreamsPerIdentity,
        Limit::HealthStreams,
        Limit::PendingBytes,
        Limit::PendingBytesPerIdentity,
        Limit::EventsPerSecond,
        Limit::HeaderBytes,
        Limit::HandshakeTimeout,
        Limit::RequestTimeout,
        Limit::IdleTimeout,
    ];

    /// The key in the configuration.
    pub fn key(self) -> &'static str {
        match self {
            Limit::Connections => "limits.maxConnections",
            Limit::ConnectionsPerPeer => "limits.maxConnectionsPerPeer",
            Limit::Streams => "limits.maxStreams",
            Limit::StreamsPerConnection => "limits.maxStreamsPerConnection",
            Limit::StreamsPerIdentity => "limits.maxStreamsPerIdentity",
            Limit::HealthStreams => "limits.maxHealthStreams",
            Limit::PendingBytes => "limits.maxPendingBytes",
            Limit::PendingBytesPerIdentity => "limits.maxPendingBytesPerIdentity",
            Limit::EventsPerSecond => "limits.eventsPerSecond",
            Limit::HeaderBytes => "limits.maxHeaderBytes",
            Limit::HandshakeTimeout => "limits.handshakeTimeout",
            Limit::RequestTimeout => "limits.requestTimeout",
            Limit::IdleTimeout => "limits.idleTimeout",
        }
    }
}

/// Refusals of one room, by limit.
#[derive(Debug, Default)]
pub struct LimitCounters([AtomicU64; Limit::ALL.len()]);

impl LimitCounters {
    /// Counts a request or connection that was refused or ended because of `limit`.
    pub fn refused(&self, limit: Limit) {
        self.0[limit as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The number of refusals because of `limit`.
    pub fn count(&self, limit: Limit) -> u64 {
        self.0[limit as usize].load(Ordering::Relaxed)
    }
}

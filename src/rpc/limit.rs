//! The limits at which something is refused or ended, by their keys in the configuration.

/// One of them.
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
    /// `limits.maxPendingBytes`.
    PendingBytes,
    /// `limits.maxPendingBytesPerIdentity`.
    PendingBytesPerIdentity,
    /// `limits.eventsPerSecond`.
    EventsPerSecond,
    /// `limits.handshakeTimeout`.
    HandshakeTimeout,
    /// `limits.requestTimeout`.
    RequestTimeout,
    /// `limits.idleTimeout`.
    IdleTimeout,
}

impl Limit {
    /// All of them.
    pub const ALL: [Limit; 11] = [
        Limit::Connections,
        Limit::ConnectionsPerPeer,
        Limit::Streams,
        Limit::StreamsPerConnection,
        Limit::StreamsPerIdentity,
        Limit::PendingBytes,
        Limit::PendingBytesPerIdentity,
        Limit::EventsPerSecond,
        Limit::HandshakeTimeout,
        Limit::RequestTimeout,
        Limit::IdleTimeout,
    ];

    /// Its key in the configuration.
    pub fn key(self) -> &'static str {
        match self {
            Limit::Connections => "limits.maxConnections",
            Limit::ConnectionsPerPeer => "limits.maxConnectionsPerPeer",
            Limit::Streams => "limits.maxStreams",
            Limit::StreamsPerConnection => "limits.maxStreamsPerConnection",
            Limit::StreamsPerIdentity => "limits.maxStreamsPerIdentity",
            Limit::PendingBytes => "limits.maxPendingBytes",
            Limit::PendingBytesPerIdentity => "limits.maxPendingBytesPerIdentity",
            Limit::EventsPerSecond => "limits.eventsPerSecond",
            Limit::HandshakeTimeout => "limits.handshakeTimeout",
            Limit::RequestTimeout => "limits.requestTimeout",
            Limit::IdleTimeout => "limits.idleTimeout",
        }
    }
}

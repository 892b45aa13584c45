//! `limits` and `keepalive`.

use std::time::Duration;

use super::{
    error::Problem,
    fields::Fields,
    settings::{key, nullable, optional, settings},
    types::{duration, number, size},
    units::{DAY, GIB, HOUR, KIB, MIB, MINUTE, SECOND, format_size},
};

settings! {
    /// Limits of what nodes may ask for.
    pub struct Limits checked by check_limits {
        /// Bytes of one encoded event.
        pub max_event_bytes: usize =
            key("maxEventBytes", size(KIB..=16 * MIB), 64 * KIB),
        /// Bytes of one encoded request; not less than `limits.maxEventBytes`.
        pub max_request_bytes: usize =
            key("maxRequestBytes", size(KIB..=64 * MIB), 4 * MIB),
        /// Bytes that a client may have sent on one stream before the gateway has read them; four
        /// times as many on one connection. A publisher sends no more in one round trip: links over
        /// long lines want 4 MiB.
        pub stream_window: usize =
            key("streamWindow", size(64 * KIB..=16 * MIB), 256 * KIB),
        /// Events of one `Publish`.
        pub max_events_per_request: usize =
            key("maxEventsPerRequest", number(1..=10_000), 1000),
        /// Accounts in one filter: of a `Subscribe`, or in one message of a `Watch`.
        pub max_accounts_per_filter: usize =
            key("maxAccountsPerFilter", number(1..=1_000_000), 10_000),
        /// Accounts of one `Watch` stream.
        pub max_accounts_per_stream: usize =
            key("maxAccountsPerStream", number(1..=10_000_000), 1_000_000),
        /// Open connections. A connection beyond the limit is closed at once; without TLS a GOAWAY
        /// says why. Where the process may open fewer files (`ulimit -n`), the limit is what those
        /// allow.
        pub max_connections: usize =
            key("maxConnections", number(1..=1_000_000), 10_000),
        /// Open connections from one address; not more than `limits.maxConnections`, and the
        /// default is lower where that is. Behind a proxy all connections have the address of the
        /// proxy.
        pub max_connections_per_peer: usize =
            key("maxConnectionsPerPeer", number(1..=1_000_000), 4000),
        /// Open `Subscribe` and `Watch` streams on this gateway.
        pub max_streams: usize =
            key("maxStreams", number(1..=10_000_000), 100_000),
        /// Open `Subscribe` and `Watch` streams of one connection.
        pub max_streams_per_connection: usize =
            key("maxStreamsPerConnection", number(1..=1_000_000), 1000),
        /// Open `Subscribe` and `Watch` streams of one identity.
        pub max_streams_per_identity: usize =
            key("maxStreamsPerIdentity", number(1..=10_000_000), 20_000),
        /// `Subscribe`, `Watch` and `PublishStream` streams that are older are asked to go on at
        /// another gateway, each at a random time within a tenth of it before or after. Load
        /// balancers that spread connections get them anew this way. `null`: never.
        pub max_stream_age: Option<Duration> =
            optional("maxStreamAge", duration(SECOND..=30 * DAY)),
        /// Open `Watch` streams of the health protocol, which needs no credential. A tenth of them
        /// may come from one address.
        pub max_health_streams: usize =
            key("maxHealthStreams", number(10..=1_000_000), 10_000),
        /// Concurrent requests of one connection besides those streams. HTTP/2 announces
        /// the sum of both to clients, and they hold back requests beyond it.
        pub max_requests_per_connection: usize =
            key("maxRequestsPerConnection", number(1..=1_000_000), 256),
        /// Bytes of all requests in flight: those that are still arriving (with all that they
        /// announce), those that wait for the bus, and those of open streams, whose filters count
        /// with what they take in memory: 80 bytes for each account, and about 160 bytes and its
        /// own for each custom type.
        pub max_pending_bytes: usize =
            key("maxPendingBytes", size(64 * KIB..=64 * GIB), 512 * MIB),
        /// The same for one identity; not less than `limits.maxRequestBytes` and not more than
        /// `limits.maxPendingBytes`. The default is lower where that is.
        pub max_pending_bytes_per_identity: usize =
            key("maxPendingBytesPerIdentity", size(64 * KIB..=64 * GIB), 128 * MIB),
        /// Bytes of history, unpacked, that the streams of one identity hold until their clients
        /// have read them; others of its streams wait meanwhile.
        pub max_history_bytes_per_identity: usize =
            key("maxHistoryBytesPerIdentity", size(MIB..=64 * GIB), 64 * MIB),
        /// Bytes of the header fields of one request, as HTTP/2 counts them.
        pub max_header_bytes: usize =
            key("maxHeaderBytes", size(4 * KIB..=MIB), 16 * KIB),
        /// Events per second that one identity may publish on this gateway. `null`: no limit.
        pub events_per_second: Option<usize> =
            optional("eventsPerSecond", number(1..=100_000_000)),
        /// Events that one identity may publish at once after a pause; a `Publish` with more is
        /// never accepted. With `limits.eventsPerSecond` the default is that rate; without, it has
        /// no effect.
        pub event_burst: usize =
            key("eventBurst", number(1..=100_000_000), 1000),
        /// Limit of the time in which a new connection completes the handshakes of TLS and HTTP/2.
        pub handshake_timeout: Duration =
            key("handshakeTimeout", duration(SECOND..=HOUR), 10 * SECOND),
        /// Limit of the time in which a request arrives, from its headers to its end.
        pub request_timeout: Duration =
            key("requestTimeout", duration(SECOND..=HOUR), 30 * SECOND),
        /// A connection without a request is closed after this time, with a GOAWAY; the client
        /// connects again when it needs to.
        pub idle_timeout: Duration =
            key("idleTimeout", duration(SECOND..=DAY), 15 * MINUTE),
    }
}

settings! {
    /// Detection of peers that are gone without closing their connection.
    pub struct Keepalive {
        /// A connection is pinged when nothing arrived on it for this time. `null`: never.
        pub interval: Option<Duration> =
            nullable("interval", duration(SECOND..=DAY), 30 * SECOND),
        /// A connection is closed, and all that it holds is freed, when nothing arrived for this
        /// time after a ping.
        pub timeout: Duration = key("timeout", duration(SECOND..=HOUR), 20 * SECOND),
    }
}

/// Lowers defaults to the limits that were set, and compares limits that depend on one another.
fn check_limits(limits: &mut Limits, fields: &Fields<'_>) {
    if !fields.has("maxConnectionsPerPeer") {
        limits.max_connections_per_peer =
            limits.max_connections_per_peer.min(limits.max_connections);
    }
    if !fields.has("maxPendingBytesPerIdentity") {
        let all = limits.max_pending_bytes;
        limits.max_pending_bytes_per_identity = limits.max_pending_bytes_per_identity.min(all);
    }
    if let (Some(rate), false) = (limits.events_per_second, fields.has("eventBurst")) {
        limits.event_burst = rate;
    }
    let bytes = |bytes: usize| format_size(bytes as u64);
    let not_less = |key: &'static str, value: usize, other: &'static str, min: usize| {
        if fields.sound(&[key, other]) && value < min {
            let (value, min) = (bytes(value), bytes(min));
            let problem = format!("{value} is less than {other}, which is {min}");
            fields.fail(key, Problem::Invalid(problem));
        }
    };
    not_less("maxRequestBytes", limits.max_request_bytes, "maxEventBytes", limits.max_event_bytes);
    let pending = limits.max_pending_bytes_per_identity;
    not_less("maxPendingBytesPerIdentity", pending, "maxRequestBytes", limits.max_request_bytes);
    not_less("maxPendingBytes", limits.max_pending_bytes, "maxPendingBytesPerIdentity", pending);
    let (all, peer) = (limits.max_connections, limits.max_connections_per_peer);
    if fields.sound(&["maxConnections", "maxConnectionsPerPeer"]) && peer > all {
        let problem = format!("{peer} is more than maxConnections, which is {all}");
        fields.fail("maxConnectionsPerPeer", Problem::Invalid(problem));
    }
}

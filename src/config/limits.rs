//! What a node, a peer and an identity may ask for; and how peers that are gone are found.

use std::time::Duration;

use super::{
    decode::size,
    error::Problem,
    fields::Fields,
    units::{format_duration, format_size},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// What a node may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one encoded event.
    pub max_event_bytes: usize,
    /// Bytes of one encoded request; not less than those of an event.
    pub max_request_bytes: usize,
    /// Events of one `Publish`.
    pub max_events_per_request: usize,
    /// Accounts in the filter of one stream.
    pub max_accounts_per_filter: usize,
    /// Connections that are open.
    pub max_connections: usize,
    /// Connections from one address; not more than in all.
    pub max_connections_per_peer: usize,
    /// Open `Subscribe` streams on this gateway.
    pub max_streams: usize,
    /// Open `Subscribe` streams of one connection.
    pub max_streams_per_connection: usize,
    /// Open `Subscribe` streams of one identity.
    pub max_streams_per_identity: usize,
    /// Requests of one connection that may be under way besides its streams.
    pub max_requests_per_connection: usize,
    /// Bytes of all requests that are not answered yet, those of open streams included; not less than those of one.
    pub max_pending_bytes: usize,
    /// The same of one identity; not less than those of one request, not more than those of all.
    pub max_pending_bytes_per_identity: usize,
    /// Bytes of the header fields of one request.
    pub max_header_bytes: usize,
    /// Events a second that one identity may publish; None: as many as it can.
    pub events_per_second: Option<usize>,
    /// Events that one identity may publish at once after a pause. Means nothing without a rate.
    pub event_burst: usize,
    /// How long a new connection may take until TLS and HTTP/2 stand.
    pub handshake_timeout: Duration,
    /// How long a request may take to arrive.
    pub request_timeout: Duration,
    /// How long a connection is kept on which nothing is asked for.
    pub idle_timeout: Duration,
}

/// How a gateway finds out that a peer is gone without a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// A connection is pinged (HTTP/2 PING) when nothing came on it for so long; None: never.
    pub interval: Option<Duration>,
    /// It is closed when no answer came for so long.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_event_bytes: 64 << 10,
            max_request_bytes: 4 << 20,
            max_events_per_request: 1000,
            max_accounts_per_filter: 10_000,
            max_connections: 10_000,
            max_connections_per_peer: 4000,
            max_streams: 100_000,
            max_streams_per_connection: 1000,
            max_streams_per_identity: 20_000,
            max_requests_per_connection: 256,
            max_pending_bytes: 512 << 20,
            max_pending_bytes_per_identity: 128 << 20,
            max_header_bytes: 16 << 10,
            events_per_second: None,
            event_burst: 1000,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(15),
        }
    }
}

impl Default for Keepalive {
    fn default() -> Keepalive {
        Keepalive { interval: Some(Duration::from_secs(30)), timeout: Duration::from_secs(20) }
    }
}

pub(super) fn decode_limits(fields: &mut Fields<'_>, default: &Limits) -> Limits {
    let max_request_bytes =
        size(fields, "maxRequestBytes", KIB..=64 * MIB, default.max_request_bytes);
    let max_connections = fields.number("maxConnections", 1..=1_000_000, default.max_connections);
    let per_peer = fields.optional_number("maxConnectionsPerPeer", 1..=1_000_000);
    let max_pending_bytes =
        size(fields, "maxPendingBytes", 64 * KIB..=64 * GIB, default.max_pending_bytes);
    let pending = default.max_pending_bytes_per_identity.min(max_pending_bytes);
    let events_per_second = fields.optional_number("eventsPerSecond", 1..=100_000_000);
    // A second's worth, where nothing else is said.
    let burst = events_per_second.unwrap_or(default.event_burst);
    let limits = Limits {
        max_event_bytes: size(fields, "maxEventBytes", KIB..=16 * MIB, default.max_event_bytes),
        max_request_bytes,
        max_events_per_request: fields.number(
            "maxEventsPerRequest",
            1..=10_000,
            default.max_events_per_request,
        ),
        max_accounts_per_filter: fields.number(
            "maxAccountsPerFilter",
            1..=1_000_000,
            default.max_accounts_per_filter,
        ),
        max_connections,
        // The defaults make room for a smaller limit of all.
        max_connections_per_peer: per_peer
            .unwrap_or(default.max_connections_per_peer.min(max_connections)),
        max_streams: fields.number("maxStreams", 1..=10_000_000, default.max_streams),
        max_streams_per_connection: fields.number(
            "maxStreamsPerConnection",
            1..=1_000_000,
            default.max_streams_per_connection,
        ),
        max_streams_per_identity: fields.number(
            "maxStreamsPerIdentity",
            1..=10_000_000,
            default.max_streams_per_identity,
        ),
        max_requests_per_connection: fields.number(
            "maxRequestsPerConnection",
            1..=1_000_000,
            default.max_requests_per_connection,
        ),
        max_pending_bytes,
        max_pending_bytes_per_identity: size(
            fields,
            "maxPendingBytesPerIdentity",
            64 * KIB..=64 * GIB,
            pending,
        ),
        max_header_bytes: size(fields, "maxHeaderBytes", 4 * KIB..=MIB, default.max_header_bytes),
        events_per_second,
        event_burst: fields.number("eventBurst", 1..=100_000_000, burst),
        handshake_timeout: fields.duration(
            "handshakeTimeout",
            SECOND..=HOUR,
            default.handshake_timeout,
        ),
        request_timeout: fields.duration("requestTimeout", SECOND..=HOUR, default.request_timeout),
        idle_timeout: fields.duration("idleTimeout", SECOND..=DAY, default.idle_timeout),
    };
    check(fields, &limits);
    limits
}

/// What depends on each other.
fn check(fields: &Fields<'_>, limits: &Limits) {
    let bytes = |bytes: usize| format_size(bytes as u64);
    let not_less = |key: &'static str, value: usize, other: &'static str, least: usize| {
        if fields.sound(&[key, other]) && value < least {
            let (value, least) = (bytes(value), bytes(least));
            let problem = format!("{value} is less than {other}, which is {least}");
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

pub(super) fn decode_keepalive(fields: &mut Fields<'_>, default: &Keepalive) -> Keepalive {
    Keepalive {
        interval: fields.nullable_duration("interval", SECOND..=DAY, default.interval),
        timeout: fields.duration("timeout", SECOND..=HOUR, default.timeout),
    }
}

/// As the document says them.
pub(super) fn effective_limits(limits: &Limits) -> serde_json::Value {
    let size = |bytes: usize| format_size(bytes as u64);
    serde_json::json!({
        "maxEventBytes": size(limits.max_event_bytes),
        "maxRequestBytes": size(limits.max_request_bytes),
        "maxEventsPerRequest": limits.max_events_per_request,
        "maxAccountsPerFilter": limits.max_accounts_per_filter,
        "maxConnections": limits.max_connections,
        "maxConnectionsPerPeer": limits.max_connections_per_peer,
        "maxStreams": limits.max_streams,
        "maxStreamsPerConnection": limits.max_streams_per_connection,
        "maxStreamsPerIdentity": limits.max_streams_per_identity,
        "maxRequestsPerConnection": limits.max_requests_per_connection,
        "maxPendingBytes": size(limits.max_pending_bytes),
        "maxPendingBytesPerIdentity": size(limits.max_pending_bytes_per_identity),
        "maxHeaderBytes": size(limits.max_header_bytes),
        "eventsPerSecond": limits.events_per_second,
        "eventBurst": limits.event_burst,
        "handshakeTimeout": format_duration(limits.handshake_timeout),
        "requestTimeout": format_duration(limits.request_timeout),
        "idleTimeout": format_duration(limits.idle_timeout),
    })
}

/// As the document says it.
pub(super) fn effective_keepalive(keepalive: &Keepalive) -> serde_json::Value {
    serde_json::json!({
        "interval": keepalive.interval.map(format_duration),
        "timeout": format_duration(keepalive.timeout),
    })
}

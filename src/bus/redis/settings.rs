//! What the Redis bus was told, in the redis crate's terms.

use std::time::Duration;

use redis::{ConnectionInfo, ProtocolVersion};

/// Everything that the Redis bus is told.
#[derive(Clone)]
pub struct Settings {
    /// One standalone server, or some of a cluster's.
    pub(super) seeds: Vec<ConnectionInfo>,
    /// Whether they are a cluster.
    pub(super) cluster: bool,
    /// Whether frames travel over sharded channels (a cluster in RESP3).
    pub(super) sharded: bool,
    /// The protocol of the subscriptions.
    pub(super) protocol: ProtocolVersion,
    /// How long a batch may wait for the bus.
    pub(super) timeout: Duration,
    /// How long one command may wait for its answer.
    pub(super) response_timeout: Duration,
    /// How often a frame is sent again after its answer did not come.
    pub(super) max_retries: u32,
    /// The first and the longest wait between two attempts.
    pub(super) retry_wait: (Duration, Duration),
    /// Whether replicas may serve history.
    pub(super) read_from_replicas: bool,
    pub(super) pool: PoolSettings,
    pub(super) prefix: String,
    /// The number of shards, if it was set.
    pub(super) shards: Option<u16>,
    pub(super) history: HistorySettings,
    pub(super) request_id_window: Duration,
}

/// Limits of the connection pool of each server.
#[derive(Clone)]
pub(super) struct PoolSettings {
    pub max_connections: usize,
    pub timeout_create: Option<Duration>,
    pub timeout_wait: Option<Duration>,
    pub timeout_recycle: Option<Duration>,
}

/// Limits of what Redis keeps of each shard.
#[derive(Clone)]
pub(super) struct HistorySettings {
    pub max_frames: u64,
    pub max_bytes: u64,
    pub max_age: Duration,
}

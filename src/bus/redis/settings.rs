//! The settings of the Redis bus, in the redis crate's terms.

use std::{sync::Arc, time::Duration};

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

use super::{
    auth::Keys,
    causes::About,
    credentials::{Contents, Credentials},
    names::ShardNames,
};
use crate::{
    bus::{ShardId, StartError},
    config::{BusConfig, Config, Pool, Protocol, RedisUrl},
};

/// Events that a frame must have to leave behind another that is under way. A frame costs Redis as
/// much as dozens of events, and nodes that each wait for their answer would send many small ones.
const MIN_BEHIND: u64 = 16;

/// The settings of the Redis bus.
#[derive(Clone)]
pub struct Settings {
    /// One standalone server, or some servers of a cluster.
    pub(super) seeds: Vec<ConnectionInfo>,
    /// The secret and the certificates of all connections.
    pub(super) credentials: Arc<Credentials>,
    /// True for a cluster.
    pub(super) cluster: bool,
    /// True if frames travel over sharded channels: in a cluster with RESP3.
    pub(super) sharded: bool,
    /// The protocol of the subscriptions.
    pub(super) protocol: ProtocolVersion,
    /// The time limit of an append.
    pub(super) timeout: Duration,
    /// The time limit of one command.
    pub(super) response_timeout: Duration,
    /// The number of times that a frame is sent again if it was not answered.
    pub(super) max_retries: u32,
    /// The first and the longest wait between two attempts.
    pub(super) retry_wait: (Duration, Duration),
    /// The number of replicas that must have a frame before its appends are answered OK.
    pub(super) min_replicas: u32,
    /// True if replicas may serve history.
    pub(super) read_from_replicas: bool,
    pub(super) pool: PoolSettings,
    pub(super) prefix: String,
    /// The number of shards, if it was set.
    pub(super) shards: Option<u16>,
    pub(super) history: HistorySettings,
    pub(super) request_id_window: Duration,
    /// The keys of `frameKey`.
    pub(super) keys: Option<Keys>,
    /// The bytes that one event may have.
    pub(super) max_event_bytes: usize,
}

/// Limits of a writer's calls.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// The time limit of one answer.
    pub response_timeout: Duration,
    /// The number of times that a frame is sent again if it was not answered.
    pub max_resends: u32,
    /// The first and the longest wait between two attempts.
    pub retry_wait: (Duration, Duration),
    /// Events that a frame must have to leave behind another that is under way, at least.
    pub min_behind: u64,
}

/// Limits of the connection pool of each server.
#[derive(Clone)]
pub(super) struct PoolSettings {
    pub max_connections: usize,
    pub timeout_create: Option<Duration>,
    pub timeout_wait: Option<Duration>,
    pub timeout_recycle: Option<Duration>,
}

/// Limits of the history of each shard.
#[derive(Clone)]
#[allow(clippy::struct_field_names)] // the names of the configuration
pub(super) struct HistorySettings {
    pub max_frames: u64,
    pub max_bytes: u64,
    pub max_age: Duration,
}

/// Attempts on a standalone server end only with the time limit.
const UNLIMITED: u32 = u32::MAX;

/// The waits between two attempts on a standalone server.
const STANDALONE_WAIT: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_millis(500));

/// The time limit of one answer of a standalone server, after which the frame is sent again.
const STANDALONE_RESPONSE: Duration = Duration::from_millis(2500);

impl Settings {
    /// The database of a standalone server.
    pub(super) fn database(&self) -> i64 {
        self.seeds.first().map_or(0, |seed| seed.redis_settings().db())
    }

    /// What errors of a server are explained with.
    pub(super) fn about(&self, server: &ConnectionInfo) -> About {
        let address = server.addr().to_string();
        About {
            user: server.redis_settings().username().unwrap_or("default").to_owned(),
            prefix: self.prefix.clone(),
            tls: matches!(server.addr(), ConnectionAddr::TcpTls { .. }),
            database: server.redis_settings().db(),
            cluster: self.cluster,
            reported: self.seeds.iter().all(|seed| seed.addr().to_string() != address),
        }
    }

    /// The names of a shard.
    pub(super) fn names(&self, shard: ShardId, shards: u16) -> ShardNames {
        ShardNames::new(&self.prefix, shard, shards)
            .in_database(self.database())
            .with_keys(self.keys.as_ref())
    }

    /// The limits of a writer's calls.
    pub fn call_limits(&self) -> CallLimits {
        CallLimits {
            response_timeout: self.response_timeout,
            max_resends: self.max_retries,
            retry_wait: self.retry_wait,
            // Acknowledgements that wait for replicas hold up nothing.
            min_behind: if self.min_replicas == 0 { MIN_BEHIND } else { 1 },
        }
    }

    /// The settings of a configuration.
    ///
    /// # Errors
    ///
    /// Its bus is not Redis, or a certificate file cannot be read or used.
    pub fn from_config(config: &Config) -> Result<Settings, StartError> {
        let history = HistorySettings {
            max_frames: config.history.max_frames,
            max_bytes: config.history.max_bytes,
            max_age: config.history.max_age,
        };
        let keys = config.frame_key.as_ref().map(Keys::of).transpose()?;
        let settings = match &config.bus {
            BusConfig::Redis(redis) => {
                let credentials = Credentials { secret: None, tls: redis.tls.clone() };
                let seed = connection(&redis.url, &credentials.read()?)?;
                // Every Redis that is supported has RESP3; the URL may ask for RESP2.
                let protocol = match redis.url.protocol() {
                    Some(Protocol::Resp2) => ProtocolVersion::RESP2,
                    _ => ProtocolVersion::RESP3,
                };
                Settings {
                    seeds: vec![with_protocol(seed, protocol)],
                    credentials: Arc::new(credentials),
                    cluster: false,
                    sharded: false,
                    protocol,
                    timeout: redis.timeout,
                    response_timeout: redis.timeout.min(STANDALONE_RESPONSE),
                    max_retries: UNLIMITED,
                    retry_wait: STANDALONE_WAIT,
                    min_replicas: redis.min_replicas,
                    read_from_replicas: false,
                    pool: pool(&redis.pool),
                    prefix: config.prefix.clone(),
                    shards: config.shards,
                    history,
                    request_id_window: config.request_id_window,
                    keys,
                    max_event_bytes: config.limits.max_event_bytes,
                }
            }
            BusConfig::RedisCluster(cluster) => {
                let protocol = match cluster.protocol {
                    Protocol::Resp2 => ProtocolVersion::RESP2,
                    Protocol::Resp3 => ProtocolVersion::RESP3,
                };
                let (username, secret) = cluster.credentials();
                let credentials = Credentials { secret: secret.cloned(), tls: cluster.tls.clone() };
                let contents = credentials.read()?;
                let seed = |url| {
                    let info = connection(url, &contents)?;
                    let mut redis = info.redis_settings().clone();
                    if let Some(username) = username {
                        redis = redis.set_username(username);
                    }
                    Ok(with_protocol(info.set_redis_settings(redis), protocol))
                };
                Settings {
                    seeds: cluster.urls.iter().map(seed).collect::<Result<_, StartError>>()?,
                    credentials: Arc::new(credentials),
                    cluster: true,
                    sharded: protocol == ProtocolVersion::RESP3,
                    protocol,
                    timeout: cluster.timeout,
                    // All attempts together fit into the time limit of an append.
                    response_timeout: cluster.timeout
                        / cluster.max_retries.saturating_add(1).min(8),
                    max_retries: cluster.max_retries,
                    retry_wait: (cluster.min_retry_wait, cluster.max_retry_wait),
                    min_replicas: cluster.min_replicas,
                    read_from_replicas: cluster.read_from_replicas,
                    pool: pool(&cluster.pool),
                    prefix: config.prefix.clone(),
                    shards: config.shards,
                    history,
                    request_id_window: config.request_id_window,
                    keys,
                    max_event_bytes: config.limits.max_event_bytes,
                }
            }
            other @ BusConfig::Embedded => {
                return Err(StartError(format!("coordinator: {} is not Redis", other.type_name())));
            }
        };
        Ok(settings)
    }
}

fn pool(pool: &Pool) -> PoolSettings {
    PoolSettings {
        max_connections: pool.max_connections,
        timeout_create: pool.timeout_create,
        timeout_wait: pool.timeout_wait,
        timeout_recycle: pool.timeout_recycle,
    }
}

fn with_protocol(info: ConnectionInfo, protocol: ProtocolVersion) -> ConnectionInfo {
    let redis = info.redis_settings().clone().set_protocol(protocol);
    // A dedicated user has few rights, and its name identifies the gateway: `CLIENT SETINFO` would
    // be refused and written into the server's ACL log with every connection.
    let redis = if redis.username().is_some() {
        redis.set_skip_set_lib_name()
    } else {
        redis.set_lib_name("trunkline", env!("CARGO_PKG_VERSION"))
    };
    info.set_redis_settings(redis)
}

/// How the server of a URL is connected to. Errors never show a password.
fn connection(url: &RedisUrl, contents: &Contents) -> Result<ConnectionInfo, StartError> {
    let unusable = |error: redis::RedisError| StartError(format!("coordinator: {url}: {error}"));
    let info = url.as_str_with_password().into_connection_info().map_err(unusable)?;
    contents.apply(info).map_err(unusable)
}

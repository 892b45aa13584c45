//! The settings of the Redis bus, in the redis crate's terms.

use std::{sync::Arc, time::Duration};

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

use super::{
    addresses::{AddressMap, with_host},
    auth::Keys,
    causes::{About, Reported},
    credentials::{Contents, Credentials},
    names::ShardNames,
};
use crate::{
    bus::{ShardId, StartError},
    config::{BusConfig, Config, Pool, Protocol, RedisSentinel, RedisUrl, Retries, Tls, TlsMode},
};

/// Events that a frame must have to leave behind another that is under way. A frame costs Redis as
/// much as dozens of events, and nodes that each wait for their answer would send many small ones.
const MIN_BEHIND: u64 = 16;

/// The settings of the Redis bus.
#[derive(Clone)]
pub struct Settings {
    /// One standalone server, some servers of a cluster, or some sentinels.
    pub(super) seeds: Vec<ConnectionInfo>,
    /// How a server that another one names is connected to, but for its address.
    pub(super) template: ConnectionInfo,
    /// How the master is found, if sentinels name it.
    pub(super) sentinel: Option<SentinelSettings>,
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
    /// Where servers are reached that announce other addresses.
    pub(super) addresses: AddressMap,
}

/// How the master is found that sentinels name.
#[derive(Clone)]
pub(super) struct SentinelSettings {
    pub master_name: String,
    /// The secret and the certificates of connections to sentinels.
    pub credentials: Arc<Credentials>,
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

/// The key of the password.
const AUTH_SECRET: &str = "coordinator.authSecret";

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
        self.template.redis_settings().db()
    }

    /// What errors of a server are explained with.
    pub(super) fn about(&self, server: &ConnectionInfo, address: &str) -> About {
        let is_reported = self.seeds.iter().all(|seed| seed.addr().to_string() != *address);
        About {
            user: server.redis_settings().username().unwrap_or("default").to_owned(),
            prefix: self.prefix.clone(),
            tls: matches!(server.addr(), ConnectionAddr::TcpTls { .. }),
            database: server.redis_settings().db(),
            cluster: self.cluster,
            reported: is_reported.then_some(match self.sentinel {
                Some(_) => Reported::BySentinel,
                None => Reported::ByServer,
            }),
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
        let keys = config.frame_key.as_ref().map(Keys::of).transpose()?;
        let pool = |pool: &Pool| PoolSettings {
            max_connections: pool.max_connections,
            timeout_create: pool.timeout_create,
            timeout_wait: pool.timeout_wait,
            timeout_recycle: pool.timeout_recycle,
        };
        let common = |servers: Servers, timeout: Duration, min_replicas, pool| Settings {
            template: servers.template,
            seeds: servers.seeds,
            sentinel: None,
            credentials: Arc::new(servers.credentials),
            cluster: false,
            sharded: false,
            protocol: servers.protocol,
            timeout,
            response_timeout: timeout.min(STANDALONE_RESPONSE),
            max_retries: UNLIMITED,
            retry_wait: STANDALONE_WAIT,
            min_replicas,
            read_from_replicas: false,
            pool,
            prefix: config.prefix.clone(),
            shards: config.shards,
            history: HistorySettings {
                max_frames: config.history.max_frames,
                max_bytes: config.history.max_bytes,
                max_age: config.history.max_age,
            },
            request_id_window: config.request_id_window,
            keys: keys.clone(),
            max_event_bytes: config.limits.max_event_bytes,
            addresses: AddressMap::default(),
        };
        let with_retries = |settings: Settings, retries: &Retries| Settings {
            // All attempts together fit into the time limit of an append.
            response_timeout: settings.timeout / retries.max.saturating_add(1).min(8),
            max_retries: retries.max,
            retry_wait: (retries.min_wait, retries.max_wait),
            ..settings
        };
        match &config.bus {
            BusConfig::Redis(redis) => {
                let (username, secret) = redis.credentials();
                let tls = redis.tls.clone();
                let credentials = Credentials::new(AUTH_SECRET, username, secret.as_ref(), tls);
                let url = std::slice::from_ref(&redis.url);
                let login = (username, credentials);
                let servers = Servers::of(url, login, version(redis.url.protocol()))?;
                Ok(common(servers, redis.timeout, redis.min_replicas, pool(&redis.pool)))
            }
            BusConfig::RedisCluster(cluster) => {
                let (username, secret) = cluster.credentials();
                let tls = cluster.tls.clone();
                let credentials = Credentials::new(AUTH_SECRET, username, secret.as_ref(), tls);
                let protocol = version(Some(cluster.protocol));
                let servers = Servers::of(&cluster.urls, (username, credentials), protocol)?;
                let pool = pool(&cluster.pool);
                let settings = common(servers, cluster.timeout, cluster.min_replicas, pool);
                Ok(Settings {
                    cluster: true,
                    sharded: protocol == ProtocolVersion::RESP3,
                    read_from_replicas: cluster.read_from_replicas,
                    addresses: AddressMap::new(&cluster.address_map),
                    ..with_retries(settings, &cluster.retries)
                })
            }
            BusConfig::RedisSentinel(sentinel) => {
                let (sentinels, servers) = of_sentinels(sentinel)?;
                let pool = pool(&sentinel.pool);
                let settings = common(servers, sentinel.timeout, sentinel.min_replicas, pool);
                Ok(Settings {
                    seeds: sentinels.seeds,
                    sentinel: Some(SentinelSettings {
                        master_name: sentinel.master_name.clone(),
                        credentials: Arc::new(sentinels.credentials),
                    }),
                    read_from_replicas: sentinel.read_from_replicas,
                    addresses: AddressMap::new(&sentinel.address_map),
                    ..with_retries(settings, &sentinel.retries)
                })
            }
            other @ BusConfig::Embedded => {
                Err(StartError(format!("coordinator: {} is not Redis", other.type_name())))
            }
        }
    }

    /// The settings of connections to the sentinels, if there are sentinels.
    pub(super) fn of_sentinels(&self) -> Option<Settings> {
        let sentinel = self.sentinel.as_ref()?;
        Some(Settings {
            credentials: sentinel.credentials.clone(),
            template: self.seeds[0].clone(),
            min_replicas: 0,
            ..self.clone()
        })
    }
}

/// The servers that URLs name.
struct Servers {
    seeds: Vec<ConnectionInfo>,
    template: ConnectionInfo,
    credentials: Credentials,
    protocol: ProtocolVersion,
}

impl Servers {
    fn of(
        urls: &[RedisUrl],
        (username, credentials): (Option<&str>, Credentials),
        protocol: ProtocolVersion,
    ) -> Result<Servers, StartError> {
        let contents = credentials.read()?;
        let seed = |url| {
            let info = connection(url, &contents)?;
            let mut redis = info.redis_settings().clone();
            if let Some(username) = username {
                redis = redis.set_username(username);
            }
            Ok(with_protocol(info.set_redis_settings(redis), protocol))
        };
        let seeds = urls.iter().map(seed).collect::<Result<Vec<_>, StartError>>()?;
        let first = seeds.first().ok_or_else(|| StartError("coordinator: no URL".to_owned()))?;
        Ok(Servers { template: first.clone(), seeds, credentials, protocol })
    }
}

/// The port of a sentinel whose URL names none.
const SENTINEL_PORT: u16 = 26_379;

/// The sentinels, and the servers that they name.
fn of_sentinels(sentinel: &RedisSentinel) -> Result<(Servers, Servers), StartError> {
    let (username, secret) = sentinel.sentinel_credentials();
    let used = |tls: &Tls, mode: Option<TlsMode>| mode.map(|_| tls.clone()).unwrap_or_default();
    let url = &sentinel.urls[0];
    let tls = used(sentinel.sentinel_certificates(), url.tls());
    let key = "coordinator.sentinelSecret";
    let credentials = Credentials::new(key, username, secret.as_ref(), tls);
    // They push what they tell subscribers.
    let login = (username, credentials);
    let mut sentinels = Servers::of(&sentinel.urls, login, ProtocolVersion::RESP3)?;
    for (info, url) in sentinels.seeds.iter_mut().zip(&sentinel.urls) {
        let database = info.redis_settings().clone().set_db(0);
        *info = info.clone().set_redis_settings(database);
        if !url.names_port() {
            let addr = with_host(info.addr(), None, SENTINEL_PORT);
            *info = info.clone().set_addr(addr);
        }
    }
    let host = "127.0.0.1".to_owned();
    let addr = match sentinel.master_tls() {
        None => ConnectionAddr::Tcp(host, SENTINEL_PORT),
        Some(mode) => ConnectionAddr::TcpTls {
            host,
            port: SENTINEL_PORT,
            insecure: mode == TlsMode::Insecure,
            tls_params: None,
        },
    };
    let protocol = version(url.protocol());
    let tls = used(&sentinel.tls, sentinel.master_tls());
    let (username, secret) = (sentinel.username.as_deref(), sentinel.secret.as_ref());
    let credentials =
        Credentials::new(AUTH_SECRET, username.filter(|_| secret.is_some()), secret, tls);
    let info =
        addr.into_connection_info().map_err(|error| StartError(format!("coordinator: {error}")))?;
    let redis = info.redis_settings().clone().set_db(i64::from(url.database()));
    let redis = match (&sentinel.username, &sentinel.secret) {
        (Some(username), Some(_)) => redis.set_username(username),
        _ => redis,
    };
    let info = with_protocol(info.set_redis_settings(redis), protocol);
    let unusable = |error: redis::RedisError| StartError(format!("coordinator.tls: {error}"));
    let template = credentials.read()?.apply(info).map_err(unusable)?;
    Ok((sentinels, Servers { seeds: vec![], template, credentials, protocol }))
}

/// Every Redis that is supported has RESP3; a URL may ask for RESP2.
fn version(protocol: Option<Protocol>) -> ProtocolVersion {
    match protocol {
        Some(Protocol::Resp2) => ProtocolVersion::RESP2,
        _ => ProtocolVersion::RESP3,
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

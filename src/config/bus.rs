//! What carries frames between gateways.

mod decode;

use std::{fmt, path::PathBuf, time::Duration};

pub(super) use self::decode::{BUS_TYPES, STORE_TYPES, check_pem, decode};
use super::{redis_url::RedisUrl, secret::Secret};

/// What carries frames between gateways. `Default` has become what it stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BusConfig {
    /// Nothing but this process.
    #[default]
    Embedded,
    /// One Redis server.
    Redis(Redis),
    /// A Redis Cluster.
    RedisCluster(RedisCluster),
}

/// One Redis server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// Where it is.
    pub url: RedisUrl,
    /// How long a publish may wait for the bus, failover included.
    pub timeout: Duration,
    /// How many replicas must have an event before its publish is OK, 0 to 16; 0 asks none.
    pub min_replicas: u32,
    /// Limits of the connection pool.
    pub pool: Pool,
    /// Certificates. All None unless the URL is one of TLS.
    pub tls: Tls,
}

/// A Redis Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisCluster {
    /// Some of its servers, at least one; the rest is discovered. All with TLS of the same mode, or all without.
    pub urls: Vec<RedisUrl>,
    /// How long a publish may wait for the bus, failover included.
    pub timeout: Duration,
    /// How many replicas of its master must have an event before its publish is OK, 0 to 16; 0 asks none.
    pub min_replicas: u32,
    /// `authUsername`. Means nothing without a secret. See [`RedisCluster::credentials`].
    pub username: Option<String>,
    /// `authSecret`. See [`RedisCluster::credentials`].
    pub secret: Option<Secret>,
    /// How often a command is tried again.
    pub max_retries: u32,
    /// The first wait before a retry.
    pub min_retry_wait: Duration,
    /// The longest wait before a retry; not less than the first.
    pub max_retry_wait: Duration,
    /// Whether replicas serve subscriptions and history reads.
    pub read_from_replicas: bool,
    /// RESP3 uses sharded pub/sub, RESP2 the classic one.
    pub protocol: Protocol,
    /// Limits of the connection pool of each server.
    pub pool: Pool,
    /// Certificates. All None unless the URLs are those of TLS.
    pub tls: Tls,
}

/// The version of the Redis protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Any Redis; no sharded pub/sub on shared connections.
    Resp2,
    /// Redis 6 and later.
    Resp3,
}

/// Limits of a connection pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Connections to one server, 1 to 8192.
    pub max_connections: usize,
    /// How long a connection may take to be made; None is no limit.
    pub timeout_create: Option<Duration>,
    /// How long to wait for a free connection; None is no limit.
    pub timeout_wait: Option<Duration>,
    /// How long the check of a used connection may take; None is no limit.
    pub timeout_recycle: Option<Duration>,
}

/// Certificates in PEM files, for TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Who signs the servers' certificates, instead of the authorities that the system trusts.
    pub ca_certificate: Option<PathBuf>,
    /// What this gateway shows to the servers; there if and only if the key is.
    pub client_certificate: Option<PathBuf>,
    /// The key of the client certificate.
    pub client_key: Option<PathBuf>,
}

impl BusConfig {
    /// Its `@type`, under which the registry has the bus.
    pub fn type_name(&self) -> &'static str {
        match self {
            BusConfig::Embedded => "Embedded",
            BusConfig::Redis(_) => "Redis",
            BusConfig::RedisCluster(_) => "RedisCluster",
        }
    }

    /// The certificates for its servers, if it has servers.
    pub fn tls(&self) -> Option<&Tls> {
        match self {
            BusConfig::Embedded => None,
            BusConfig::Redis(redis) => Some(&redis.tls),
            BusConfig::RedisCluster(cluster) => Some(&cluster.tls),
        }
    }
}

impl fmt::Display for BusConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BusConfig::Embedded => f.write_str("the embedded bus"),
            BusConfig::Redis(redis) => write!(f, "Redis at {}", redis.url),
            BusConfig::RedisCluster(cluster) => {
                let urls: Vec<_> = cluster.urls.iter().map(RedisUrl::to_string).collect();
                write!(f, "a Redis Cluster at {}", urls.join(", "))
            }
        }
    }
}

impl RedisCluster {
    /// User and password: of `authUsername` and `authSecret`, and without a secret there, of the URLs.
    pub fn credentials(&self) -> (Option<&str>, Option<&Secret>) {
        let in_url = self.urls.iter().find(|url| url.password().is_some());
        match (&self.secret, in_url) {
            (Some(secret), _) => (self.username.as_deref(), Some(secret)),
            (None, Some(url)) => (url.username(), url.password()),
            (None, None) => (None, None),
        }
    }
}

impl Default for Pool {
    fn default() -> Pool {
        let half_a_minute = Some(Duration::from_secs(30));
        Pool {
            max_connections: 10,
            timeout_create: half_a_minute,
            timeout_wait: half_a_minute,
            timeout_recycle: half_a_minute,
        }
    }
}

impl Protocol {
    /// As it is written: `resp2`, `resp3`.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Resp2 => "resp2",
            Protocol::Resp3 => "resp3",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

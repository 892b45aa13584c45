//! `coordinator`, and `inMemoryStore` for a coordinator that shares its Redis: the bus between
//! gateways.

mod keys;
mod urls;

use std::{fmt, path::PathBuf, time::Duration};

pub(super) use self::keys::Bus;
use self::urls::{ClusterUrls, OneUrl};
use super::{
    error::Problem,
    fields::Fields,
    protocol::Protocol,
    redis_url::{RedisUrl, TlsMode},
    secret::Secret,
    secret_key::SecretKey,
    settings::{Declared, described, flatten, group, key, nullable, optional, settings},
    types::{Boolean, Choice, Pem, duration, number, text},
    units::{HOUR, MILLISECOND, MINUTE, SECOND, format_duration},
};

/// The bus between gateways. `Default` is replaced by the bus that it stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BusConfig {
    /// Within this process only.
    #[default]
    Embedded,
    /// One Redis server.
    Redis(Redis),
    /// A Redis Cluster.
    RedisCluster(RedisCluster),
}

settings! {
    /// One Redis server.
    pub struct Redis checked by check_redis {
        /// The server: see [Redis URLs](#redis-urls).
        pub url: RedisUrl = key("url", OneUrl, ()),
        /// Limit of the time that a publish waits for the bus, failover included.
        pub timeout: Duration = timeout(),
        /// Replicas that must have an event before its publish is answered OK.
        pub min_replicas: u32 = min_replicas(),
        /// Limits of the connection pool.
        pub pool: Pool = flatten(),
        /// Certificates. All None unless the URL is one of TLS.
        pub tls: Tls = certificates(),
    }
}

settings! {
    /// A Redis Cluster.
    pub struct RedisCluster checked by check_cluster {
        /// Some of the cluster's servers, at least one; the others are discovered. They agree in
        /// TLS, user, password and protocol, and name no database.
        pub urls: Vec<RedisUrl> = key("urls", ClusterUrls, ()),
        /// Limit of the time that a publish waits for the bus, failover included.
        pub timeout: Duration = timeout(),
        /// Replicas that must have an event before its publish is answered OK.
        pub min_replicas: u32 = min_replicas(),
        /// The user. Has no effect without `coordinator.authSecret`.
        pub username: Option<String> = optional("authUsername", text(check_username)),
        /// The password: see [Secrets](#secrets). Without one, user and password of the URLs are
        /// used. A file is read again before each connection.
        pub secret: Option<Secret> = SecretKey("authSecret"),
        /// Limit of the number of times that events whose answer did not arrive are sent again,
        /// within `coordinator.timeout`; the bus accepts them once. Events that the bus certainly
        /// did not accept are sent until `coordinator.timeout` is over.
        pub max_retries: u32 = key("maxRetries", number(1..=1024), 3),
        /// The first wait before events are sent again; not more than `coordinator.maxRetryWait`,
        /// and the default is lower where that is.
        pub min_retry_wait: Duration =
            key("minRetryWait", duration(MILLISECOND..=MINUTE), SECOND / 2),
        /// The longest wait before events are sent again. The default is higher where
        /// `coordinator.minRetryWait` is.
        pub max_retry_wait: Duration = key("maxRetryWait", duration(MILLISECOND..=MINUTE), SECOND),
        /// True: replicas serve reads of history; a master serves what its replica does not have,
        /// or does not answer within a second. Subscriptions are always at the masters, which
        /// receive a frame first.
        pub read_from_replicas: bool = key("readFromReplicas", Boolean, true),
        /// `resp3` uses sharded pub/sub, spread over the masters; `resp2` uses classic pub/sub,
        /// which sends every message to every server of the cluster. All gateways of one prefix
        /// must agree. Where the key is missing, `?protocol=` of the URLs counts.
        pub protocol: Protocol = key("protocolVersion", Choice(&Protocol::WORDS), Protocol::Resp3),
        /// Limits of the connection pool of each server.
        pub pool: Pool = flatten(),
        /// Certificates. All None unless the URLs are those of TLS.
        pub tls: Tls = certificates(),
    }
}

fn timeout() -> impl Declared<Value = Duration> {
    described(
        "Limit of the time that a `Publish` waits for the bus, failover included, before it is \
         answered UNAVAILABLE.",
        key("timeout", duration(MILLISECOND..=HOUR), 10 * SECOND),
    )
}

fn min_replicas() -> impl Declared<Value = u32> {
    described(
        "Number of replicas of its master that must have an event before its `Publish` is answered \
         OK; 0: none. With 1, an event that was answered OK survives the loss of a master, and a \
         `Publish` is answered UNAVAILABLE while there is no replica. Each frame waits for the \
         replicas' answer, a round trip between the servers.",
        // A master with more replicas is a typing mistake.
        key("minReplicas", number(0..=16), 0),
    )
}

fn certificates() -> impl Declared<Value = Tls> {
    described(
        "Certificates, for URLs with TLS. All are PEM files, read again before each connection.",
        group("tls"),
    )
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

settings! {
    /// Limits of a connection pool.
    pub struct Pool {
        /// Connections to one server, besides the one that subscribes.
        pub max_connections: usize = key("poolMaxConnections", number(1..=8192), 10),
        /// Limit of the time in which a connection is made. `null`: no limit.
        pub timeout_create: Option<Duration> = pool_timeout("poolTimeoutCreate"),
        /// Limit of the wait for a free connection. `null`: no limit.
        pub timeout_wait: Option<Duration> = pool_timeout("poolTimeoutWait"),
        /// Limit of the time in which a used connection is checked. `null`: no limit.
        pub timeout_recycle: Option<Duration> = pool_timeout("poolTimeoutRecycle"),
    }
}

fn pool_timeout(name: &'static str) -> impl Declared<Value = Option<Duration>> {
    nullable(name, duration(MILLISECOND..=HOUR), 30 * SECOND)
}

settings! {
    /// Certificates in PEM files, for TLS.
    pub struct Tls checked by check_client_certificate {
        /// The authorities that sign the server's certificate, in place of those of the system.
        pub ca_certificate: Option<PathBuf> = optional("caCertificate", Pem("CERTIFICATE")),
        /// The gateway's own certificate. Needs `coordinator.tls.clientKey`.
        pub client_certificate: Option<PathBuf> = optional("clientCertificate", Pem("CERTIFICATE")),
        /// The key of the client certificate. Needs `coordinator.tls.clientCertificate`.
        pub client_key: Option<PathBuf> = optional("clientKey", Pem("PRIVATE KEY")),
    }
}

impl RedisCluster {
    /// User and password: those of `authUsername` and `authSecret`, and without a secret there
    /// those of the URLs.
    pub fn credentials(&self) -> (Option<&str>, Option<&Secret>) {
        let in_url = self.urls.iter().find(|url| url.password().is_some());
        match (&self.secret, in_url) {
            (Some(secret), _) => (self.username.as_deref(), Some(secret)),
            (None, Some(url)) => (url.username(), url.password()),
            (None, None) => (None, None),
        }
    }
}

fn check_username(name: &str) -> Result<(), Problem> {
    if name.is_empty() {
        return Err(Problem::Invalid("is empty; leave it out for no user".to_owned()));
    }
    Ok(())
}

fn check_client_certificate(_: &mut Tls, fields: &Fields<'_>) {
    for (present, missing) in
        [("clientCertificate", "clientKey"), ("clientKey", "clientCertificate")]
    {
        if fields.has(present) && !fields.has(missing) {
            let expected = format!("the PEM file that belongs to {present}");
            fields.fail(missing, Problem::Missing { expected });
        }
    }
}

fn check_redis(redis: &mut Redis, fields: &Fields<'_>) {
    if fields.sound(&["url"]) {
        check_tls(&redis.tls, &redis.url, fields);
    }
}

fn check_cluster(cluster: &mut RedisCluster, fields: &Fields<'_>) {
    check_retry_waits(cluster, fields);
    let Some(first) = cluster.urls.first() else { return };
    match (fields.has("protocolVersion"), first.protocol()) {
        (false, Some(in_url)) => cluster.protocol = in_url,
        (true, Some(in_url))
            if cluster.protocol != in_url && fields.sound(&["protocolVersion"]) =>
        {
            let set = cluster.protocol;
            let problem = format!("is {set}, but the URLs say {in_url}");
            fields.fail("protocolVersion", Problem::Invalid(problem));
        }
        _ => {}
    }
    check_tls(&cluster.tls, first, fields);
}

/// A default gives way to the other wait where that was set.
fn check_retry_waits(cluster: &mut RedisCluster, fields: &Fields<'_>) {
    let (min, max) = (&mut cluster.min_retry_wait, &mut cluster.max_retry_wait);
    if !fields.has("maxRetryWait") {
        *max = (*max).max(*min);
    } else if !fields.has("minRetryWait") {
        *min = (*min).min(*max);
    } else if min > max && fields.sound(&["minRetryWait", "maxRetryWait"]) {
        let (min, max) = (format_duration(*min), format_duration(*max));
        let problem = format!("{min} is more than maxRetryWait, which is {max}");
        fields.fail("minRetryWait", Problem::Invalid(problem));
    }
}

/// Certificates that no connection to `url` would use are a mistake.
fn check_tls(tls: &Tls, url: &RedisUrl, fields: &Fields<'_>) {
    let no_effect = |why: &str| Problem::Invalid(format!("has no effect: {why}"));
    match url.tls() {
        None if *tls != Tls::default() => {
            let why = "the URL has no TLS (its scheme would be rediss or valkeys)";
            fields.fail("tls", no_effect(why));
        }
        Some(TlsMode::Insecure) if tls.ca_certificate.is_some() => {
            let why = "the URL says #insecure, so certificates are not checked";
            fields.fail_in("tls", "caCertificate", no_effect(why));
        }
        _ => {}
    }
}

//! `coordinator`, and `inMemoryStore` for a coordinator that shares its Redis: the bus between
//! gateways.

mod addresses;
mod keys;
mod urls;

use std::{fmt, path::PathBuf, time::Duration};

pub use self::addresses::{HostPort, MappedAddress};
pub(super) use self::keys::Bus;
use self::{
    addresses::{address_map, check_address_map},
    urls::{OneUrl, SeveralUrls},
};
use super::{
    error::Problem,
    fields::Fields,
    password::{Password, PasswordKey},
    protocol::Protocol,
    redis_url::{RedisUrl, TlsMode},
    settings::{Declared, described, flatten, group, key, nullable, optional, settings},
    types::{Boolean, Choice, Pem, duration, number, short_text, text},
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
    /// A Redis whose master sentinels name.
    RedisSentinel(RedisSentinel),
}

settings! {
    /// One Redis server.
    pub struct Redis checked by check_redis {
        /// The server: see [Redis URLs](#redis-urls).
        pub url: RedisUrl = key("url", OneUrl, ()),
        /// The user.
        pub username: Option<String> = username(),
        /// The password.
        pub secret: Option<Password> = secret(),
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
        /// Some of the cluster's servers.
        pub urls: Vec<RedisUrl> = urls(true),
        /// Limit of the time that a publish waits for the bus, failover included.
        pub timeout: Duration = timeout(),
        /// Replicas that must have an event before its publish is answered OK.
        pub min_replicas: u32 = min_replicas(),
        /// The user.
        pub username: Option<String> = username(),
        /// The password.
        pub secret: Option<Password> = secret(),
        /// How often, and when, events are sent again.
        pub retries: Retries = flatten(),
        /// True: replicas serve reads of history.
        pub read_from_replicas: bool = read_from_replicas(),
        /// Where servers are reached that announce other addresses.
        pub address_map: Vec<MappedAddress> = address_map(),
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

settings! {
    /// A Redis whose master sentinels name.
    pub struct RedisSentinel checked by check_sentinel {
        /// Some of the sentinels.
        pub urls: Vec<RedisUrl> = urls(false),
        /// The name under which the sentinels know the master: `sentinel monitor <name> ...`.
        pub master_name: String = key("masterName", short_text(256, check_master_name), "mymaster"),
        /// Limit of the time that a publish waits for the bus, failover included.
        pub timeout: Duration = timeout(),
        /// Replicas that must have an event before its publish is answered OK.
        pub min_replicas: u32 = min_replicas(),
        /// The user at the master and the replicas.
        pub username: Option<String> = username(),
        /// The password at the master and the replicas.
        pub secret: Option<Password> = secret(),
        /// The user at the sentinels. Has no effect without `coordinator.sentinelSecret`.
        pub sentinel_username: Option<String> = optional("sentinelUsername", text(check_username)),
        /// The password at the sentinels. Without one, user and password of the URLs are used.
        pub sentinel_secret: Option<Password> = PasswordKey("sentinelSecret"),
        /// Certificates of connections to the sentinels, if they are others than those of
        /// `coordinator.tls`.
        pub sentinel_tls: Tls = group("sentinelTls"),
        /// TLS of the master and the replicas: `asUrls` is what the URLs of the sentinels say,
        /// `none` plain text, `verified` TLS, and `insecure` TLS that checks neither certificate
        /// nor name.
        pub master_tls: MasterTls =
            key("masterTls", Choice(&MasterTls::WORDS), MasterTls::AsUrls),
        /// How often, and when, events are sent again.
        pub retries: Retries = flatten(),
        /// True: replicas serve reads of history.
        pub read_from_replicas: bool = read_from_replicas(),
        /// Where servers are reached that announce other addresses.
        pub address_map: Vec<MappedAddress> = address_map(),
        /// Limits of the connection pool of each server.
        pub pool: Pool = flatten(),
        /// Certificates of connections to the master and the replicas. All None without TLS.
        pub tls: Tls = certificates(),
    }
}

settings! {
    /// How often, and when, events are sent again.
    pub struct Retries checked by check_retry_waits {
        /// Limit of the number of times that events whose answer did not arrive are sent again,
        /// within `coordinator.timeout`; the bus accepts them once. Events that the bus certainly
        /// did not accept are sent until `coordinator.timeout` is over.
        pub max: u32 = key("maxRetries", number(1..=1024), 3),
        /// The first wait before events are sent again; not more than `coordinator.maxRetryWait`,
        /// and the default is lower where that is.
        pub min_wait: Duration = key("minRetryWait", duration(MILLISECOND..=MINUTE), SECOND / 2),
        /// The longest wait before events are sent again. The default is higher where
        /// `coordinator.minRetryWait` is.
        pub max_wait: Duration = key("maxRetryWait", duration(MILLISECOND..=MINUTE), SECOND),
    }
}

/// TLS of the servers that sentinels name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MasterTls {
    /// As the URLs of the sentinels.
    AsUrls,
    /// None: plain text.
    Off,
    /// Certificate and name are checked.
    Verified,
    /// Neither is checked.
    Insecure,
}

impl MasterTls {
    const WORDS: [(&str, MasterTls); 4] = [
        ("asUrls", MasterTls::AsUrls),
        ("none", MasterTls::Off),
        ("verified", MasterTls::Verified),
        ("insecure", MasterTls::Insecure),
    ];
}

fn urls(of_cluster: bool) -> impl Declared<Value = Vec<RedisUrl>> {
    described(
        "Some of the cluster's servers, or some of the sentinels, at least one; the others are \
         discovered. They agree in TLS, user, password, protocol and database. Those of a cluster \
         name no database; those of sentinels have port 26379 unless it is given, user and \
         password of the sentinels, and protocol and database of the master.",
        key("urls", SeveralUrls { of_cluster }, ()),
    )
}

fn username() -> impl Declared<Value = Option<String>> {
    described(
        "The user. Has no effect without `coordinator.authSecret`.",
        optional("authUsername", text(check_username)),
    )
}

fn secret() -> impl Declared<Value = Option<Password>> {
    described(
        "The password: see [Secrets](#secrets). Without one, user and password of the URL are \
         used, except of sentinels. What is in a file, or printed by a command, may change: open \
         connections are authenticated again.",
        PasswordKey("authSecret"),
    )
}

fn read_from_replicas() -> impl Declared<Value = bool> {
    described(
        "True: replicas serve reads of history; a master serves what its replica does not have, or \
         does not answer within a second. Subscriptions are always at the masters, which receive a \
         frame first.",
        key("readFromReplicas", Boolean, true),
    )
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
            BusConfig::RedisSentinel(_) => "RedisSentinel",
        }
    }

    /// The certificates for its servers, each group with its name.
    pub fn certificates(&self) -> Vec<(&'static str, &Tls)> {
        match self {
            BusConfig::Embedded => vec![],
            BusConfig::Redis(redis) => vec![("tls", &redis.tls)],
            BusConfig::RedisCluster(cluster) => vec![("tls", &cluster.tls)],
            BusConfig::RedisSentinel(sentinel) => {
                vec![("tls", &sentinel.tls), ("sentinelTls", &sentinel.sentinel_tls)]
            }
        }
    }
}

impl fmt::Display for BusConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BusConfig::Embedded => f.write_str("the embedded bus"),
            BusConfig::Redis(redis) => write!(f, "Redis at {}", redis.url),
            BusConfig::RedisCluster(cluster) => {
                write!(f, "a Redis Cluster at {}", shown(&cluster.urls))
            }
            BusConfig::RedisSentinel(sentinel) => {
                let (name, urls) = (&sentinel.master_name, shown(&sentinel.urls));
                write!(f, "Redis {name} of the sentinels at {urls}")
            }
        }
    }
}

fn shown(urls: &[RedisUrl]) -> String {
    urls.iter().map(RedisUrl::to_string).collect::<Vec<_>>().join(", ")
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

impl Redis {
    /// User and password: those of `authUsername` and `authSecret`, and without a secret there
    /// those of the URL.
    pub fn credentials(&self) -> (Option<&str>, Option<Password>) {
        let url = std::slice::from_ref(&self.url);
        credentials(self.username.as_deref(), self.secret.as_ref(), url)
    }
}

impl RedisCluster {
    /// User and password: those of `authUsername` and `authSecret`, and without a secret there
    /// those of the URLs.
    pub fn credentials(&self) -> (Option<&str>, Option<Password>) {
        credentials(self.username.as_deref(), self.secret.as_ref(), &self.urls)
    }
}

impl RedisSentinel {
    /// User and password at the sentinels: those of `sentinelUsername` and `sentinelSecret`, and
    /// without a secret there those of the URLs.
    pub fn sentinel_credentials(&self) -> (Option<&str>, Option<Password>) {
        credentials(self.sentinel_username.as_deref(), self.sentinel_secret.as_ref(), &self.urls)
    }

    /// The checks of TLS connections to the master and the replicas; None for plain text.
    pub fn master_tls(&self) -> Option<TlsMode> {
        match self.master_tls {
            MasterTls::AsUrls => self.urls.first().and_then(RedisUrl::tls),
            MasterTls::Off => None,
            MasterTls::Verified => Some(TlsMode::Verified),
            MasterTls::Insecure => Some(TlsMode::Insecure),
        }
    }

    /// The certificates of connections to the sentinels.
    pub fn sentinel_certificates(&self) -> &Tls {
        if self.sentinel_tls == Tls::default() { &self.tls } else { &self.sentinel_tls }
    }
}

fn credentials<'a>(
    username: Option<&'a str>,
    secret: Option<&Password>,
    urls: &'a [RedisUrl],
) -> (Option<&'a str>, Option<Password>) {
    let in_url = urls.iter().find(|url| url.password().is_some());
    match (secret, in_url) {
        (Some(secret), _) => (username, Some(secret.clone())),
        (None, Some(url)) => (url.username(), url.password().cloned().map(Password::Secret)),
        (None, None) => (None, None),
    }
}

fn check_master_name(name: &str) -> Result<(), Problem> {
    // Those that Sentinel takes.
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.chars().all(plain) {
        return Ok(());
    }
    Err(Problem::Invalid("has other characters than letters, digits and ._-".to_owned()))
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
        check_tls("tls", &redis.tls, redis.url.tls(), fields);
    }
}

fn check_cluster(cluster: &mut RedisCluster, fields: &Fields<'_>) {
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
    check_tls("tls", &cluster.tls, first.tls(), fields);
    let resp2 = cluster.protocol == Protocol::Resp2;
    check_address_map(&cluster.address_map, first.tls().is_some(), resp2, fields);
}

fn check_sentinel(sentinel: &mut RedisSentinel, fields: &Fields<'_>) {
    let Some(first) = sentinel.urls.first() else { return };
    check_tls("sentinelTls", &sentinel.sentinel_tls, first.tls(), fields);
    // They are for the sentinels too, if those have none of their own.
    let shared = first.tls().filter(|_| sentinel.sentinel_tls == Tls::default());
    check_tls("tls", &sentinel.tls, sentinel.master_tls().or(shared), fields);
    let has_tls = first.tls().or(sentinel.master_tls()).is_some();
    let resp2 = first.protocol() == Some(Protocol::Resp2);
    check_address_map(&sentinel.address_map, has_tls, resp2, fields);
}

/// A default gives way to the other wait where that was set.
fn check_retry_waits(retries: &mut Retries, fields: &Fields<'_>) {
    let (min, max) = (&mut retries.min_wait, &mut retries.max_wait);
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

/// Certificates of the `group` that no connection would use are a mistake.
fn check_tls(group: &str, tls: &Tls, mode: Option<TlsMode>, fields: &Fields<'_>) {
    let no_effect = |why: &str| Problem::Invalid(format!("has no effect: {why}"));
    match mode {
        None if *tls != Tls::default() => {
            let why = "the URL has no TLS (its scheme would be rediss or valkeys)";
            fields.fail(group, no_effect(why));
        }
        Some(TlsMode::Insecure) if tls.ca_certificate.is_some() => {
            let why = "the URL says #insecure, so certificates are not checked";
            fields.fail_in(group, "caCertificate", no_effect(why));
        }
        _ => {}
    }
}

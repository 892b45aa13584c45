//! `coordinator`, and `inMemoryStore` for the coordinator that shares its Redis.

use std::{fs::File, io::Read, path::Path, time::Duration};

use super::{BusConfig, Pool, Protocol, Redis, RedisCluster, Tls};
use crate::config::{
    error::{Problem, shown},
    fields::Fields,
    redis_url::{Endpoint, RedisUrl, TlsMode},
    secret,
    units::format_duration,
};

/// The variants of `coordinator`.
pub(in crate::config) const BUS_TYPES: [&str; 5] =
    ["Embedded", "Redis", "RedisCluster", "Default", "Disabled"];

/// The variants of `inMemoryStore` that a bus can use.
pub(in crate::config) const STORE_TYPES: [&str; 2] = ["Redis", "RedisCluster"];

const DEFAULT_URL: &str = "redis://127.0.0.1";

const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// A longer file is no certificate: somebody named the wrong one.
const LONGEST_PEM: u64 = 1024 * 1024;

/// Reads `coordinator` and `inMemoryStore`, which are keys of `top`.
pub(in crate::config) fn decode(top: &mut Fields<'_>) -> BusConfig {
    let mut shares_store = false;
    let bus = top.optional_group("coordinator", |fields| {
        fields.ignore("id");
        match fields.variant(&BUS_TYPES)? {
            "Redis" => decode_redis(fields, true),
            "RedisCluster" => decode_cluster(fields, true),
            "Default" => {
                shares_store = true;
                None
            }
            "Disabled" => {
                let problem = "is Disabled: there is nothing to do without a bus";
                fields.fail("@type", Problem::Invalid(problem.to_owned()));
                None
            }
            _ => Some(BusConfig::Embedded),
        }
    });
    // The store of another server may be pasted along without being used: then its secrets are not looked for.
    let store = top.optional_group("inMemoryStore", |fields| decode_store(fields, shares_store));
    if !shares_store {
        return bus.flatten().unwrap_or_default();
    }
    match store {
        Some(Ok(bus)) => bus.unwrap_or_default(),
        Some(Err(other)) => {
            let problem = format!(
                "{} cannot be shared: the coordinator is Default, so it must be Redis or RedisCluster",
                shown(&other)
            );
            top.fail_at("inMemoryStore.@type", Problem::Invalid(problem));
            BusConfig::default()
        }
        None => {
            let problem = "is Default, which uses the Redis of inMemoryStore, and there is none; it must be \
                           Redis or RedisCluster";
            top.fail_at("coordinator.@type", Problem::Invalid(problem.to_owned()));
            BusConfig::default()
        }
    }
}

/// The bus of an `inMemoryStore`, None if it is broken; or its type, if that is none that a bus could use.
fn decode_store(fields: &mut Fields<'_>, used: bool) -> Result<Option<BusConfig>, String> {
    fields.ignore("id");
    match fields.any_variant(&STORE_TYPES).as_deref() {
        Some("Redis") => Ok(decode_redis(fields, used)),
        Some("RedisCluster") => Ok(decode_cluster(fields, used)),
        other => {
            fields.let_through();
            other.map_or(Ok(None), |other| Err(other.to_owned()))
        }
    }
}

fn decode_redis(fields: &mut Fields<'_>, used: bool) -> Option<BusConfig> {
    let url = match fields.optional_text("url") {
        None if fields.has("url") => None,
        text => parse_url(fields, "url", text.as_deref().unwrap_or(DEFAULT_URL)),
    };
    let timeout = decode_timeout(fields);
    let min_replicas = decode_min_replicas(fields);
    let pool = decode_pool(fields);
    let tls = decode_tls(fields, url.as_slice(), used);
    Some(BusConfig::Redis(Redis { url: url?, timeout, min_replicas, pool, tls }))
}

fn decode_cluster(fields: &mut Fields<'_>, used: bool) -> Option<BusConfig> {
    let urls = decode_urls(fields);
    let timeout = decode_timeout(fields);
    let min_replicas = decode_min_replicas(fields);
    let username = fields.checked_text("authUsername", |name| match name {
        "" => Err(Problem::Invalid("is empty; leave it out for no user".to_owned())),
        _ => Ok(()),
    });
    let secret =
        fields.optional_group("authSecret", |fields| secret::decode(fields, used)).flatten();
    let max_retries = fields.number("maxRetries", 1..=1024, 3);
    let (min_retry_wait, max_retry_wait) = decode_retry_waits(fields);
    let read_from_replicas = fields.boolean("readFromReplicas", true);
    let protocol = decode_protocol(fields, &urls);
    let pool = decode_pool(fields);
    let tls = decode_tls(fields, &urls, used);
    (!urls.is_empty()).then_some(BusConfig::RedisCluster(RedisCluster {
        urls,
        timeout,
        min_replicas,
        username,
        secret,
        max_retries,
        min_retry_wait,
        max_retry_wait,
        read_from_replicas,
        protocol,
        pool,
        tls,
    }))
}

fn parse_url(fields: &Fields<'_>, key: &str, text: &str) -> Option<RedisUrl> {
    RedisUrl::parse(text).map_err(|error| fields.fail(key, error.into())).ok()
}

/// The URLs of a cluster, without those that are broken.
fn decode_urls(fields: &mut Fields<'_>) -> Vec<RedisUrl> {
    let members = match fields.set("urls") {
        None if fields.has("urls") => return vec![],
        None => vec![("urls".to_owned(), DEFAULT_URL.to_owned())],
        Some(members) => members,
    };
    if members.is_empty() {
        let expected = "at least one URL of a server of the cluster".to_owned();
        fields.fail("urls", Problem::Missing { expected });
    }
    let mut urls: Vec<RedisUrl> = Vec::new();
    for (path, text) in members {
        let checked = RedisUrl::parse(&text).map_err(Problem::from).and_then(|url| {
            check_of_cluster(&url, urls.first()).map_err(|why| Problem::Invalid(why.to_owned()))?;
            Ok(url)
        });
        match checked {
            Ok(url) if urls.contains(&url) => {}
            Ok(url) => urls.push(url),
            Err(problem) => fields.fail_at(&path, problem),
        }
    }
    urls
}

/// Whether `url` can be one of a cluster's, beside its `first`.
fn check_of_cluster(url: &RedisUrl, first: Option<&RedisUrl>) -> Result<(), &'static str> {
    if matches!(url.endpoint(), Endpoint::Unix { .. }) {
        return Err("is a Unix socket; the servers of a cluster are reached over TCP");
    }
    if url.database() != 0 {
        return Err("names a database; a cluster has only number 0");
    }
    let Some(first) = first else { return Ok(()) };
    if url.tls() != first.tls() {
        return Err("differs from the first URL in TLS; the servers of a cluster are all alike");
    }
    let credentials = |url: &RedisUrl| (url.username().map(str::to_owned), url.password().cloned());
    if credentials(url) != credentials(first) {
        return Err("differs from the first URL in user or password; a cluster has one of each");
    }
    if url.protocol() != first.protocol() {
        return Err("differs from the first URL in its protocol; a cluster has one");
    }
    Ok(())
}

fn decode_timeout(fields: &mut Fields<'_>) -> Duration {
    fields.duration("timeout", MILLISECOND..=HOUR, Duration::from_secs(10))
}

/// More replicas than anybody gives a master are a typing mistake.
fn decode_min_replicas(fields: &mut Fields<'_>) -> u32 {
    fields.number("minReplicas", 0..=16, 0)
}

fn decode_retry_waits(fields: &mut Fields<'_>) -> (Duration, Duration) {
    let range = MILLISECOND..=MINUTE;
    let least = fields.optional_duration("minRetryWait", range.clone());
    let most = fields.optional_duration("maxRetryWait", range);
    let (default_least, default_most) = (Duration::from_millis(500), Duration::from_secs(1));
    match (least, most) {
        (None, None) => (default_least, default_most),
        // A default makes room for what was set.
        (Some(least), None) => (least, default_most.max(least)),
        (None, Some(most)) => (default_least.min(most), most),
        (Some(least), Some(most)) => {
            if least > most {
                let limit = format_duration(most);
                let least = format_duration(least);
                let problem = format!("{least} is more than maxRetryWait, which is {limit}");
                fields.fail("minRetryWait", Problem::Invalid(problem));
            }
            (least, most)
        }
    }
}

fn decode_protocol(fields: &mut Fields<'_>, urls: &[RedisUrl]) -> Protocol {
    let set = fields.choice("protocolVersion", &["resp2", "resp3"]).map(|name| match name {
        "resp2" => Protocol::Resp2,
        _ => Protocol::Resp3,
    });
    let in_url = urls.first().and_then(RedisUrl::protocol);
    if let (Some(set), Some(in_url)) = (set, in_url)
        && set != in_url
    {
        let problem = format!("is {set}, but the URLs say {in_url}");
        fields.fail("protocolVersion", Problem::Invalid(problem));
    }
    set.or(in_url).unwrap_or(Protocol::Resp3)
}

fn decode_pool(fields: &mut Fields<'_>) -> Pool {
    let default = Pool::default();
    let range = MILLISECOND..=HOUR;
    let mut timeout = |key, default| fields.nullable_duration(key, range.clone(), default);
    let timeout_create = timeout("poolTimeoutCreate", default.timeout_create);
    let timeout_wait = timeout("poolTimeoutWait", default.timeout_wait);
    let timeout_recycle = timeout("poolTimeoutRecycle", default.timeout_recycle);
    let max_connections = fields.number("poolMaxConnections", 1..=8192, default.max_connections);
    Pool { max_connections, timeout_create, timeout_wait, timeout_recycle }
}

fn decode_tls(fields: &mut Fields<'_>, urls: &[RedisUrl], used: bool) -> Tls {
    fields.group("tls", |fields| {
        let mut file = |key, label| {
            let path = fields.optional_path(key)?;
            if used && let Err(why) = check_pem(&path, label) {
                fields.fail(key, Problem::Invalid(why));
            }
            Some(path)
        };
        let ca_certificate = file("caCertificate", "CERTIFICATE");
        let client_certificate = file("clientCertificate", "CERTIFICATE");
        let client_key = file("clientKey", "PRIVATE KEY");
        for (there, missing) in
            [("clientCertificate", "clientKey"), ("clientKey", "clientCertificate")]
        {
            if fields.has(there) && !fields.has(missing) {
                let expected = format!("the PEM file that belongs to {there}");
                fields.fail(missing, Problem::Missing { expected });
            }
        }
        let tls = Tls { ca_certificate, client_certificate, client_key };
        let no_effect = |key, why: &str| {
            fields.fail(key, Problem::Invalid(format!("has no effect: {why}")));
        };
        match urls.first().map(RedisUrl::tls) {
            Some(None) if tls != Tls::default() => {
                no_effect("", "the URL has no TLS (its scheme would be rediss or valkeys)");
            }
            Some(Some(TlsMode::Insecure)) if tls.ca_certificate.is_some() => {
                no_effect("caCertificate", "the URL says #insecure, so nobody checks who signed");
            }
            _ => {}
        }
        tls
    })
}

/// Whether the file at `path` is readable and holds a PEM block whose label ends with `label`.
pub(in crate::config) fn check_pem(path: &Path, label: &str) -> Result<(), String> {
    let mut bytes = Vec::new();
    let name = shown(&path.to_string_lossy());
    // A limit, for who names a device.
    let read = File::open(path).and_then(|file| file.take(LONGEST_PEM).read_to_end(&mut bytes));
    read.map_err(|error| format!("{name} cannot be read: {error}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let ends = format!("{label}-----");
    if text.lines().any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&ends))
    {
        Ok(())
    } else {
        Err(format!("{name} holds no {label} in PEM form"))
    }
}

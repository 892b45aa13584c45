//! Every key: its default, the setting that it changes, its range.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};

use super::{cluster, load, redis, sentinel, with};
use crate::config::{
    BusConfig, Config, Drain, History, Http, Keepalive, Key, Limits, Log, LogFormat, MasterTls,
    Otlp, Password, Pool, Problem, Protocol, Rebalance, Redis, RedisCluster, RedisSentinel,
    RedisUrl, Retries, Secret, Sources, Tls, keys,
};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn an_empty_document_gives_the_defaults() {
    let config = Config::load(&Sources::default()).unwrap();
    assert_eq!(config.listen, "127.0.0.1:7420".parse().unwrap());
    assert_eq!(config.admin, Some("127.0.0.1:7421".parse().unwrap()));
    assert_eq!(config.bus, BusConfig::Embedded);
    assert_eq!(config.prefix, "trunkline");
    assert_eq!(config.shards, None);
    assert_eq!(
        config.history,
        History { max_age: secs(300), max_bytes: 67_108_864, max_frames: 100_000 }
    );
    assert_eq!(config.log, Log { max_bytes: 33_554_432, max_events: 200_000 });
    assert_eq!(config.heartbeat, secs(15));
    assert_eq!(
        config.limits,
        Limits {
            max_event_bytes: 65_536,
            max_request_bytes: 4_194_304,
            stream_window: 262_144,
            max_events_per_request: 1000,
            max_accounts_per_filter: 10_000,
            max_accounts_per_stream: 1_000_000,
            max_connections: 10_000,
            max_connections_per_peer: 4000,
            max_streams: 100_000,
            max_streams_per_connection: 1000,
            max_streams_per_identity: 20_000,
            max_stream_age: None,
            max_health_streams: 10_000,
            max_requests_per_connection: 256,
            max_pending_bytes: 536_870_912,
            max_pending_bytes_per_identity: 134_217_728,
            max_history_bytes_per_identity: 67_108_864,
            max_header_bytes: 16_384,
            events_per_second: None,
            event_burst: 1000,
            handshake_timeout: secs(10),
            request_timeout: secs(30),
            idle_timeout: secs(900),
        }
    );
    assert_eq!(config.keepalive, Keepalive { interval: Some(secs(30)), timeout: secs(20) });
    assert_eq!(config.drain, Drain { delay: secs(0), spread: secs(1), timeout: secs(10) });
    let rebalance =
        Rebalance { enabled: true, streams_per_second: 10, after: secs(30), min_age: secs(120) };
    assert_eq!(config.rebalance, rebalance);
    assert_eq!(config.request_id_window, secs(60));
    assert_eq!(config.log_format, LogFormat::Text);
    assert_eq!(config.log_level, "info");
    let same = Config { gateway_id: config.gateway_id.clone(), ..Config::default() };
    assert_eq!(config, same);
}

#[test]
fn null_gives_the_default_of_each_key() {
    let nulls = json!({
        "listen": null, "coordinator": null, "prefix": null, "shards": null, "history": null,
        "log": { "maxBytes": null }, "heartbeat": null, "logFormat": null, "logLevel": null,
        "gatewayId": null, "inMemoryStore": null,
    });
    for document in [json!({}), nulls] {
        let config = load(&document);
        let same = Config { gateway_id: config.gateway_id.clone(), ..Config::default() };
        assert_eq!(config, same);
    }
}

#[test]
fn gateways_without_an_id_get_different_random_ones() {
    let (one, other) = (Config::default(), Config::default());
    assert_ne!(one.gateway_id, other.gateway_id);
    assert!(one.gateway_id.starts_with("gw-") && one.gateway_id.len() == 15, "{}", one.gateway_id);
    assert!(one.gateway_id_is_random);
}

#[test]
fn every_key_of_the_gateway_is_set() {
    let config = load(&json!({
        "gatewayId": "mx1", "deployment": "eu-1", "prefix": "mail:eu",
        "listen": "0.0.0.0:1", "admin": "[::1]:2",
        "http": { "listen": "127.0.0.1:3", "allowedOrigins": ["https://a.example", "http://b:8"] },
        "shards": 7, "nodeEvents": true, "heartbeat": "2s", "requestIdWindow": 3000,
        "logFormat": "json",
        "logLevel": "warn,trunkline::bus=debug", "insecure": true, "reloadInterval": "16s",
        "history": { "maxAge": "1h", "maxBytes": "2GiB", "maxFrames": 3 },
        "log": { "maxBytes": 4096, "maxEvents": 5 },
        "limits": {
            "maxEventBytes": "6KiB", "maxRequestBytes": "7MiB", "maxEventsPerRequest": 8,
            "streamWindow": "1792KiB",
            "maxAccountsPerFilter": 9, "maxAccountsPerStream": 12000,
            "maxConnections": 14, "maxConnectionsPerPeer": 13,
            "maxStreams": 10, "maxStreamsPerConnection": 15, "maxStreamsPerIdentity": 16,
            "maxStreamAge": "31s",
            "maxHealthStreams": 27, "maxRequestsPerConnection": 17, "maxPendingBytes": "19MiB",
            "maxPendingBytesPerIdentity": "18MiB", "maxHistoryBytesPerIdentity": "26MiB",
            "maxHeaderBytes": "20KiB", "eventsPerSecond": 21,
            "eventBurst": 22, "handshakeTimeout": "23s", "requestTimeout": "24s",
            "idleTimeout": "25s",
        },
        "keepalive": { "interval": "26s", "timeout": "27s" },
        "drain": { "delay": "11s", "spread": 12, "timeout": "13s" },
        "rebalance": {
            "enabled": false, "streamsPerSecond": 28, "after": "29s", "minAge": "30s",
        },
        "otlp": { "endpoint": "http://[::1]:4317", "timeout": "14s", "sampleOneIn": 15,
            "header": "x-key", "headerSecret": { "@type": "Value", "secret": "hunter2" } },
    }));
    let expected = Config {
        gateway_id: "mx1".into(),
        gateway_id_is_random: false,
        deployment: Some("eu-1".into()),
        listen: "0.0.0.0:1".parse().unwrap(),
        admin: Some("[::1]:2".parse().unwrap()),
        http: Some(Http {
            listen: "127.0.0.1:3".parse().unwrap(),
            allowed_origins: vec!["https://a.example".into(), "http://b:8".into()],
        }),
        tls: None,
        auth: None,
        insecure: true,
        reload_interval: secs(16),
        bus: BusConfig::Embedded,
        frame_key: None,
        prefix: "mail:eu".into(),
        shards: Some(7),
        history: History { max_age: secs(3600), max_bytes: 2 << 30, max_frames: 3 },
        log: Log { max_bytes: 4096, max_events: 5 },
        node_events: true,
        heartbeat: secs(2),
        limits: Limits {
            max_event_bytes: 6 << 10,
            max_request_bytes: 7 << 20,
            stream_window: 28 << 16,
            max_events_per_request: 8,
            max_accounts_per_filter: 9,
            max_accounts_per_stream: 12_000,
            max_connections: 14,
            max_connections_per_peer: 13,
            max_streams: 10,
            max_streams_per_connection: 15,
            max_streams_per_identity: 16,
            max_stream_age: Some(secs(31)),
            max_health_streams: 27,
            max_requests_per_connection: 17,
            max_pending_bytes: 19 << 20,
            max_pending_bytes_per_identity: 18 << 20,
            max_history_bytes_per_identity: 26 << 20,
            max_header_bytes: 20 << 10,
            events_per_second: Some(21),
            event_burst: 22,
            handshake_timeout: secs(23),
            request_timeout: secs(24),
            idle_timeout: secs(25),
        },
        keepalive: Keepalive { interval: Some(secs(26)), timeout: secs(27) },
        drain: Drain { delay: secs(11), spread: millis(12), timeout: secs(13) },
        rebalance: Rebalance {
            enabled: false,
            streams_per_second: 28,
            after: secs(29),
            min_age: secs(30),
        },
        request_id_window: secs(3),
        otlp: Some(Otlp {
            endpoint: "http://[::1]:4317".into(),
            timeout: secs(14),
            sample_one_in: 15,
            header: "x-key".into(),
            secret: Some(Secret::new("hunter2")),
        }),
        log_format: LogFormat::Json,
        log_level: "warn,trunkline::bus=debug".into(),
    };
    assert_eq!(config, expected);
}

#[test]
fn defaults_follow_the_limits_that_were_set() {
    let limits = |document| load(&json!({ "limits": document })).limits;
    assert_eq!(limits(json!({ "maxConnections": 7 })).max_connections_per_peer, 7);
    let small = limits(json!({ "maxPendingBytes": "8MiB" }));
    assert_eq!(small.max_pending_bytes_per_identity, 8 << 20);
    assert_eq!(limits(json!({ "eventsPerSecond": 50 })).event_burst, 50);
    assert_eq!(load(&json!({ "keepalive": { "interval": null } })).keepalive.interval, None);
}

#[test]
fn the_admin_port_can_be_turned_off() {
    assert_eq!(load(&json!({ "admin": null })).admin, None);
}

#[test]
fn the_defaults_of_redis() {
    let found = redis(load(&json!({ "coordinator": { "@type": "Redis" } })));
    let half_a_minute = Some(secs(30));
    let pool = Pool {
        max_connections: 10,
        timeout_create: half_a_minute,
        timeout_wait: half_a_minute,
        timeout_recycle: half_a_minute,
    };
    let url = RedisUrl::parse("redis://127.0.0.1").unwrap();
    let (username, secret, tls) = (None, None, Tls::default());
    let timeout = secs(10);
    assert_eq!(found, Redis { url, username, secret, timeout, min_replicas: 0, pool, tls });
}

#[test]
fn every_key_of_redis_is_set() {
    let found = redis(load(&json!({ "coordinator": {
        "@type": "Redis", "url": "redis://r:1/2", "timeout": "3s", "minReplicas": 1,
        "poolMaxConnections": 4, "poolTimeoutCreate": "5s", "poolTimeoutWait": 6,
        "poolTimeoutRecycle": null,
    } })));
    let pool = Pool {
        max_connections: 4,
        timeout_create: Some(secs(5)),
        timeout_wait: Some(millis(6)),
        timeout_recycle: None,
    };
    let url = RedisUrl::parse("redis://r:1/2").unwrap();
    let expected = Redis { url, timeout: secs(3), min_replicas: 1, pool, ..Redis::default() };
    assert_eq!(found, expected);
}

#[test]
fn the_defaults_of_a_cluster() {
    let found = cluster(load(&json!({ "coordinator": { "@type": "RedisCluster" } })));
    let expected = RedisCluster {
        urls: vec![RedisUrl::parse("redis://127.0.0.1").unwrap()],
        timeout: secs(10),
        min_replicas: 0,
        username: None,
        secret: None,
        retries: Retries { max: 3, min_wait: millis(500), max_wait: secs(1) },
        read_from_replicas: true,
        address_map: vec![],
        protocol: Protocol::Resp3,
        pool: Pool::default(),
        tls: Tls::default(),
    };
    assert_eq!(found, expected);
}

#[test]
fn every_key_of_a_cluster_is_set() {
    let found = cluster(load(&json!({ "coordinator": {
        "@type": "RedisCluster", "urls": ["redis://a", "redis://b"], "timeout": "1s",
        "minReplicas": 2, "authUsername": "u", "authSecret": { "@type": "Value", "secret": "s" },
        "maxRetries": 2, "minRetryWait": "3ms", "maxRetryWait": "4ms", "readFromReplicas": false,
        "protocolVersion": "resp2", "poolMaxConnections": 5, "poolTimeoutCreate": null,
        "poolTimeoutWait": null, "poolTimeoutRecycle": "6s",
    } })));
    let url = |text| RedisUrl::parse(text).unwrap();
    let expected = RedisCluster {
        urls: vec![url("redis://a"), url("redis://b")],
        timeout: secs(1),
        min_replicas: 2,
        username: Some("u".into()),
        secret: Some(Password::Secret(Secret::new("s"))),
        retries: Retries { max: 2, min_wait: millis(3), max_wait: millis(4) },
        read_from_replicas: false,
        address_map: vec![],
        protocol: Protocol::Resp2,
        pool: Pool {
            max_connections: 5,
            timeout_create: None,
            timeout_wait: None,
            timeout_recycle: Some(secs(6)),
        },
        tls: Tls::default(),
    };
    assert_eq!(found, expected);
}

#[test]
fn the_defaults_of_sentinels() {
    let found = sentinel(load(&json!({ "coordinator": { "@type": "RedisSentinel" } })));
    let expected = RedisSentinel {
        urls: vec![RedisUrl::parse("redis://127.0.0.1").unwrap()],
        master_name: "mymaster".into(),
        timeout: secs(10),
        min_replicas: 0,
        username: None,
        secret: None,
        sentinel_username: None,
        sentinel_secret: None,
        sentinel_tls: Tls::default(),
        master_tls: MasterTls::AsUrls,
        retries: Retries::default(),
        read_from_replicas: true,
        address_map: vec![],
        pool: Pool::default(),
        tls: Tls::default(),
    };
    assert_eq!(found, expected);
}

#[test]
fn every_key_of_sentinels_is_set() {
    let found = sentinel(load(&json!({ "coordinator": {
        "@type": "RedisSentinel", "urls": ["redis://a/1", "redis://b:1/1"], "masterName": "mail",
        "timeout": "1s", "minReplicas": 2, "authUsername": "u",
        "authSecret": { "@type": "Value", "secret": "s" }, "sentinelUsername": "v",
        "sentinelSecret": { "@type": "Value", "secret": "t" }, "masterTls": "verified",
        "maxRetries": 2, "minRetryWait": "3ms", "maxRetryWait": "4ms", "readFromReplicas": false,
        "poolMaxConnections": 5,
    } })));
    let url = |text| RedisUrl::parse(text).unwrap();
    let expected = RedisSentinel {
        urls: vec![url("redis://a/1"), url("redis://b:1/1")],
        master_name: "mail".into(),
        timeout: secs(1),
        min_replicas: 2,
        username: Some("u".into()),
        secret: Some(Password::Secret(Secret::new("s"))),
        sentinel_username: Some("v".into()),
        sentinel_secret: Some(Password::Secret(Secret::new("t"))),
        sentinel_tls: Tls::default(),
        master_tls: MasterTls::Verified,
        retries: Retries { max: 2, min_wait: millis(3), max_wait: millis(4) },
        read_from_replicas: false,
        address_map: vec![],
        pool: Pool { max_connections: 5, ..Pool::default() },
        tls: Tls::default(),
    };
    assert_eq!(found, expected);
    assert!(!found.urls[0].names_port() && found.urls[1].names_port());
    assert_eq!(found.sentinel_credentials().0, Some("v"));
}

#[test]
fn the_certificates_are_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, label: &str| {
        let path = folder.path().join(name);
        let pem = format!("subject=x\n-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca = file("ca.pem", "CERTIFICATE");
    let certificate = file("client.pem", "CERTIFICATE");
    for label in ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"] {
        let key = file("client.key", label);
        let tls =
            json!({ "caCertificate": ca, "clientCertificate": certificate, "clientKey": key });
        let expected = Tls {
            ca_certificate: Some(PathBuf::from(&ca)),
            client_certificate: Some(PathBuf::from(&certificate)),
            client_key: Some(PathBuf::from(&key)),
        };
        let single = json!({ "@type": "Redis", "url": "rediss://r", "tls": tls });
        assert_eq!(redis(load(&json!({ "coordinator": single }))).tls, expected);
        let several = json!({ "@type": "RedisCluster", "urls": ["valkeys://r"], "tls": tls });
        assert_eq!(cluster(load(&json!({ "coordinator": several }))).tls, expected);
    }
}

/// A document with the `@type`s that `key` needs.
pub(super) fn shape_with(key: &Key) -> Value {
    let mut document = document_for(key);
    let types = |group: &str| match group {
        "secret" => "Value",
        "variableName" => "EnvironmentVariable",
        _ => "File",
    };
    if let Some((secret, name)) = key.path.rsplit_once('.')
        && ["secret", "variableName", "filePath"].contains(&name)
    {
        document = with(document, &format!("{secret}.@type"), types(name));
        document = with(document, &key.path, "x");
    } else if let Some((secret, _)) = key.path.rsplit_once("ecret.")
        && !key.path.ends_with("@type")
    {
        let command = format!("{secret}ecret");
        document = with(document, &format!("{command}.@type"), "Command");
        document = with(document, &format!("{command}.path"), "/bin/true");
    } else if key.path.ends_with("ecret.@type") || key.path == "frameKey.@type" {
        document = with(document, &key.path, "None");
    }
    document
}

/// A document in which `key` can be set.
fn document_for(key: &Key) -> Value {
    let group = key.path.split('.').next().unwrap();
    if !["coordinator", "inMemoryStore"].contains(&group) {
        return json!({});
    }
    let variant = key.variants.first().copied().unwrap_or("Redis");
    json!({ group: { "@type": variant } })
}

/// The range violation of `value` at `key`.
fn range_problem(document: &Value, key: &Key, value: Value) -> Option<String> {
    let file = super::file_of(&with(document.clone(), &key.path, value).to_string());
    let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
    let errors = Config::load(&sources).err()?;
    let of_range = errors
        .violations()
        .iter()
        .find(|v| v.path == key.path && matches!(v.problem, Problem::Range { .. }));
    of_range.map(ToString::to_string)
}

/// `limit` as a number: itself, milliseconds, or bytes.
pub(super) fn number_of(limit: &str) -> u64 {
    let number = limit.parse().ok();
    let duration = || crate::config::units::parse_duration(limit);
    let millis = || duration().map(|duration| u64::try_from(duration.as_millis()).unwrap());
    number.or_else(millis).or_else(|| crate::config::units::parse_size(limit)).unwrap()
}

#[test]
fn every_range_holds_at_both_ends() {
    let mut ranges = 0;
    for key in keys() {
        // The length of a text has a range too: see `prefix_and_gateway_id_are_checked`.
        let Some(range) = key.range.as_ref().filter(|_| key.type_name != "text") else { continue };
        ranges += 1;
        let (least, most) = range.split_once(" to ").unwrap();
        let document = shape_with(key);
        for limit in [least, most] {
            let number = json!(number_of(limit));
            assert_eq!(range_problem(&document, key, number), None, "{} = {limit}", key.path);
            // As text too, where the limit has a unit.
            if limit.parse::<u64>().is_err() {
                assert_eq!(range_problem(&document, key, json!(limit)), None, "{}", key.path);
            }
        }
        let limits = format!("is out of range: at least {least}, at most {most}");
        let beyond = json!(number_of(most) + 1);
        let below = json!(i64::try_from(number_of(least)).unwrap() - 1);
        for wrong in [beyond, below, json!(u64::MAX), json!(1e30)] {
            let problem = range_problem(&document, key, wrong.clone());
            let problem = problem.unwrap_or_else(|| panic!("{} = {wrong}", key.path));
            let start = format!("{}: ", key.path);
            assert!(problem.starts_with(&start) && problem.ends_with(&limits), "{problem}");
        }
    }
    // Forty-two of the gateway, and eleven of each of coordinator and inMemoryStore.
    assert_eq!(ranges, 64);
}

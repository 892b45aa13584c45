//! The variants of the bus, and the rules of their keys.

use serde_json::{Value, json};

use super::{cluster, error, errors, load, redis, sentinel};
use crate::config::{BusConfig, Endpoint, Password, Protocol, Secret, TlsMode};

fn bus(coordinator: &Value) -> Value {
    json!({ "coordinator": coordinator })
}

#[test]
fn embedded_is_the_default_and_can_be_named() {
    assert_eq!(load(&json!({})).bus, BusConfig::Embedded);
    assert_eq!(load(&bus(&json!({ "@type": "Embedded" }))).bus, BusConfig::Embedded);
}

#[test]
fn a_disabled_coordinator_is_refused() {
    let line = error(&bus(&json!({ "@type": "Disabled" })));
    assert!(line.starts_with("coordinator.@type: ") && line.contains("nothing to do"), "{line}");
}

#[test]
fn default_shares_the_redis_of_the_store() {
    let store = json!({ "@type": "Redis", "url": "redis://r:7", "poolMaxConnections": 3 });
    let document = json!({ "coordinator": { "@type": "Default" }, "inMemoryStore": store });
    let shared = redis(load(&document));
    assert_eq!(shared, redis(load(&bus(&store))));
    assert_eq!(shared.pool.max_connections, 3);

    let store = json!({ "@type": "RedisCluster", "urls": { "redis://c": true } });
    let document = json!({ "coordinator": { "@type": "Default" }, "inMemoryStore": store });
    assert_eq!(cluster(load(&document)), cluster(load(&bus(&store))));
}

#[test]
fn default_without_a_redis_store_is_an_error() {
    let line = error(&bus(&json!({ "@type": "Default" })));
    assert!(line.starts_with("coordinator.@type: is Default"), "{line}");
    assert!(
        line.contains("there is none") && line.contains("RedisCluster or RedisSentinel"),
        "{line}"
    );
    for other in ["Default", "Sharded", "Keep"] {
        let store = json!({ "@type": other, "stores": [] });
        let line = error(&json!({ "coordinator": { "@type": "Default" }, "inMemoryStore": store }));
        let start = format!("inMemoryStore.@type: \"{other}\" cannot be shared");
        assert!(
            line.starts_with(&start) && line.ends_with("RedisCluster or RedisSentinel"),
            "{line}"
        );
    }
}

#[test]
fn violations_of_the_store_have_its_path() {
    let store = json!({ "@type": "Redis", "url": "http://x", "poolMaxConnections": 0, "ulr": "" });
    let lines = errors(&json!({ "coordinator": { "@type": "Default" }, "inMemoryStore": store }));
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines.iter().all(|line| line.starts_with("inMemoryStore.")), "{lines:#?}");
}

#[test]
fn an_unused_store_may_have_any_type() {
    let sharded = json!({ "@type": "Sharded", "stores": [{ "@type": "Redis" }] });
    assert_eq!(load(&json!({ "inMemoryStore": sharded })).bus, BusConfig::Embedded);
    // Its secrets are not read.
    let secret = json!({ "@type": "EnvironmentVariable", "variableName": "NOT_SET" });
    let store = json!({ "@type": "RedisCluster", "authSecret": secret });
    assert_eq!(load(&json!({ "inMemoryStore": store })).bus, BusConfig::Embedded);
    // The keys of a known type are checked all the same.
    let line = error(&json!({ "inMemoryStore": { "@type": "Redis", "uri": "redis://x" } }));
    assert_eq!(line, "inMemoryStore.uri: is not known; did you mean url?");
}

#[test]
fn a_missing_or_unknown_type_is_refused() {
    let line = error(&bus(&json!({ "url": "redis://x" })));
    assert!(line.starts_with("coordinator.@type: is missing: one of Embedded, Redis,"), "{line}");
    let line = error(&bus(&json!({ "@type": "Rediscluster", "urls": [] })));
    assert!(line.ends_with("did you mean RedisCluster?"), "{line}");
    let line = error(&bus(&json!({ "@type": "Kafka", "brokers": ["a"], "groupId": "b" })));
    assert!(
        line.starts_with("coordinator.@type: \"Kafka\" is not one of Embedded, Redis,"),
        "{line}"
    );
    let line = error(&bus(&json!({ "@type": 5 })));
    assert_eq!(line, "coordinator.@type: is a number; expected a string");
    let line = error(&bus(&json!("Redis")));
    assert_eq!(line, "coordinator: is a string; expected an object");
}

#[test]
fn keys_of_another_variant_are_unknown() {
    let line = error(&bus(&json!({ "@type": "Embedded", "url": "redis://x" })));
    assert!(line.starts_with("coordinator.url: is not known"), "{line}");
    let line = error(&bus(&json!({ "@type": "Redis", "urls": ["redis://x"] })));
    assert_eq!(line, "coordinator.urls: is not known; did you mean url?");
    let line = error(&bus(&json!({ "@type": "RedisCluster", "url": "redis://x" })));
    assert_eq!(line, "coordinator.url: is not known; did you mean urls?");
}

/// As other servers write it: sets as objects, durations both ways, null for what is not set, and
/// an id.
#[test]
fn an_object_of_an_existing_deployment_is_accepted_unchanged() {
    let found = cluster(load(&json!({ "coordinator": {
        "id": "singleton", "@type": "RedisCluster",
        "urls": { "redis://10.0.0.1:7000": true, "redis://10.0.0.2:7000": true,
            "redis://old": false },
        "timeout": 10000, "authUsername": "stalwart", "authSecret": { "@type": "None" },
        "maxRetryWait": null, "minRetryWait": null, "maxRetries": null, "readFromReplicas": true,
        "protocolVersion": "resp2", "poolMaxConnections": 10, "poolTimeoutCreate": "30s",
        "poolTimeoutWait": 30000, "poolTimeoutRecycle": null,
    } })));
    let hosts: Vec<_> = found.urls.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["redis://10.0.0.1:7000", "redis://10.0.0.2:7000"]);
    assert_eq!(found.timeout.as_secs(), 10);
    assert_eq!((found.retries.max, found.protocol), (3, Protocol::Resp2));
    assert_eq!(found.pool.timeout_wait, found.pool.timeout_create);
    assert_eq!(found.pool.timeout_recycle, None);
    assert_eq!(found.credentials(), (None, None), "a user without a secret does not log in");

    let found = redis(load(&json!({
        "coordinator": { "@type": "Default", "id": "singleton" },
        "inMemoryStore": { "id": "singleton", "@type": "Redis", "url": "redis://10.0.0.1",
            "timeout": 10000, "poolMaxConnections": 10, "poolTimeoutCreate": 30000,
            "poolTimeoutWait": 30000, "poolTimeoutRecycle": 30000 },
    })));
    assert!(matches!(found.url.endpoint(), Endpoint::Tcp { port: 6379, .. }));
}

#[test]
fn a_cluster_needs_a_url() {
    for urls in [json!([]), json!({}), json!({ "redis://x": false })] {
        let line = error(&bus(&json!({ "@type": "RedisCluster", "urls": urls })));
        assert!(line.starts_with("coordinator.urls: is missing: at least one URL"), "{line}");
    }
}

#[test]
fn a_set_of_other_values_than_strings_is_refused() {
    let cases = [
        (json!("redis://x"), "coordinator.urls: is a string; expected an array of strings"),
        (json!([5]), "coordinator.urls[0]: is a number; expected a string"),
        (json!(["redis://a", null]), "coordinator.urls[1]: is null; expected a string"),
        (json!({ "redis://a": "yes" }), "coordinator.urls[0]: is a string; expected true or false"),
    ];
    for (urls, expected) in cases {
        let line = error(&bus(&json!({ "@type": "RedisCluster", "urls": urls })));
        assert!(line.starts_with(expected), "{line}");
    }
}

#[test]
fn each_broken_url_of_a_cluster_is_named_by_its_index() {
    let urls = json!([
        "redis://a",
        "http://b",
        "unix:///c",
        "redis://d/1",
        "rediss://e",
        "redis://u:p@f",
        "redis://g?protocol=resp2",
        "redis://a"
    ]);
    let lines = errors(&bus(&json!({ "@type": "RedisCluster", "urls": urls })));
    let expected = [
        "coordinator.urls[1]: is not a usable Redis URL: the scheme must be",
        "coordinator.urls[2]: is a Unix socket",
        "coordinator.urls[3]: names a database; a cluster has only number 0",
        "coordinator.urls[4]: differs from the first URL in TLS",
        "coordinator.urls[5]: differs from the first URL in user or password",
        "coordinator.urls[6]: differs from the first URL in its protocol",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
    }
}

#[test]
fn the_same_url_twice_is_one_server() {
    let urls = json!(["redis://a", "redis://b", "redis://a"]);
    assert_eq!(
        cluster(load(&bus(&json!({ "@type": "RedisCluster", "urls": urls })))).urls.len(),
        2
    );
}

#[test]
fn the_protocol_of_a_cluster_comes_from_key_or_url_and_they_must_agree() {
    let with = |url: &str, version: Value| {
        bus(&json!({ "@type": "RedisCluster", "urls": [url], "protocolVersion": version }))
    };
    let protocol = |document| cluster(load(&document)).protocol;
    assert_eq!(protocol(with("redis://a", json!(null))), Protocol::Resp3);
    assert_eq!(protocol(with("redis://a", json!("resp2"))), Protocol::Resp2);
    assert_eq!(protocol(with("redis://a?protocol=2", json!(null))), Protocol::Resp2);
    assert_eq!(protocol(with("redis://a?protocol=resp3", json!("resp3"))), Protocol::Resp3);
    let line = error(&with("redis://a?protocol=resp3", json!("resp2")));
    assert_eq!(line, "coordinator.protocolVersion: is resp2, but the URLs say resp3");
    let line = error(&with("redis://a", json!("resp4")));
    assert!(line.contains("\"resp4\" is not one of resp2, resp3"), "{line}");
}

#[test]
fn credentials_come_from_the_secret_and_else_from_the_urls() {
    let of = |coordinator: Value| cluster(load(&bus(&coordinator)));
    let secret = json!({ "@type": "Value", "secret": "s" });
    let found = of(json!({ "@type": "RedisCluster", "urls": ["redis://u:p@a"],
        "authUsername": "v", "authSecret": secret }));
    let (user, secret) = found.credentials();
    assert_eq!((user, secret), (Some("v"), Some(Password::Secret(Secret::new("s")))));
    let found = of(json!({ "@type": "RedisCluster", "urls": ["redis://u:p@a"] }));
    let (user, secret) = found.credentials();
    assert_eq!((user, secret), (Some("u"), Some(Password::Secret(Secret::new("p")))));
    assert_eq!(of(json!({ "@type": "RedisCluster" })).credentials(), (None, None));
    let line = error(&bus(&json!({ "@type": "RedisCluster", "authUsername": "" })));
    assert!(line.starts_with("coordinator.authUsername: is empty"), "{line}");
}

#[test]
fn the_waits_between_retries_are_in_order() {
    let of = |least: Value, most: Value| {
        bus(&json!({ "@type": "RedisCluster", "minRetryWait": least, "maxRetryWait": most }))
    };
    let waits = |document| {
        let found = cluster(load(&document));
        (found.retries.min_wait.as_millis(), found.retries.max_wait.as_millis())
    };
    assert_eq!(waits(of(json!(null), json!(null))), (500, 1000));
    assert_eq!(waits(of(json!("2s"), json!(null))), (2000, 2000), "the default makes room");
    assert_eq!(waits(of(json!(null), json!(100))), (100, 100), "the default makes room");
    assert_eq!(waits(of(json!(700), json!(700))), (700, 700));
    let line = error(&of(json!("2s"), json!("1s")));
    assert_eq!(line, "coordinator.minRetryWait: 2s is more than maxRetryWait, which is 1s");
    // A broken value is not compared.
    let line = error(&of(json!("2x"), json!("1ms")));
    assert!(line.starts_with("coordinator.minRetryWait: \"2x\" is not a duration"), "{line}");
}

#[test]
fn the_number_of_replicas_has_limits() {
    let of =
        |variant: &str, number: Value| bus(&json!({ "@type": variant, "minReplicas": number }));
    assert_eq!(redis(load(&of("Redis", json!(16)))).min_replicas, 16);
    assert_eq!(cluster(load(&of("RedisCluster", json!(1)))).min_replicas, 1);
    assert_eq!(redis(load(&of("Redis", json!(null)))).min_replicas, 0);
    for (variant, number, expected) in [
        ("Redis", json!(17), "17 is out of range: at least 0, at most 16"),
        ("RedisCluster", json!(-1), "-1 is out of range: at least 0, at most 16"),
        ("RedisCluster", json!("all"), "is a string; expected a whole number"),
        ("Redis", json!(true), "is a boolean; expected a whole number"),
    ] {
        let line = error(&of(variant, number));
        assert_eq!(line, format!("coordinator.minReplicas: {expected}"));
    }
    let line = error(&bus(&json!({ "@type": "Redis", "minReplica": 1 })));
    assert_eq!(line, "coordinator.minReplica: is not known; did you mean minReplicas?");
    let line = error(&bus(&json!({ "@type": "Embedded", "minReplicas": 1 })));
    assert!(line.starts_with("coordinator.minReplicas: is not known"), "{line}");
}

#[test]
fn certificates_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(path("ca.pem"), pem).unwrap();
    std::fs::write(path("noise"), "noise").unwrap();
    let of = |url: &str, tls: Value| bus(&json!({ "@type": "Redis", "url": url, "tls": tls }));

    let line = error(&of("rediss://r", json!({ "caCertificate": path("none.pem") })));
    assert!(line.starts_with("coordinator.tls.caCertificate: ") && line.contains("cannot be read"));
    let line = error(&of("rediss://r", json!({ "caCertificate": path("noise") })));
    assert!(line.ends_with("holds no CERTIFICATE in PEM form"), "{line}");
    let lines = errors(&of(
        "rediss://r",
        json!({ "clientCertificate": path("ca.pem"), "clientKey": path("ca.pem") }),
    ));
    assert!(lines[0].ends_with("holds no PRIVATE KEY in PEM form"), "{lines:?}");
    let line = error(&of("rediss://r", json!({ "clientCertificate": path("ca.pem") })));
    assert!(line.starts_with("coordinator.tls.clientKey: is missing"), "{line}");
    let line = error(&of("redis://r", json!({ "caCertificate": path("ca.pem") })));
    assert!(line.starts_with("coordinator.tls: has no effect: the URL has no TLS"), "{line}");
    let line = error(&of("rediss://r#insecure", json!({ "caCertificate": path("ca.pem") })));
    assert!(line.contains("has no effect: the URL says #insecure"), "{line}");
    let line = error(&of("rediss://r", json!({ "caFile": "x" })));
    assert!(line.starts_with("coordinator.tls.caFile: is not known"), "{line}");
}

#[test]
fn the_files_of_an_unused_store_are_not_read() {
    let tls = json!({ "caCertificate": "/no/such/file" });
    let store = json!({ "@type": "Redis", "url": "rediss://r", "tls": tls });
    assert_eq!(load(&json!({ "inMemoryStore": store })).bus, BusConfig::Embedded);
}

#[test]
fn sentinels_have_a_database_and_certificates_of_their_own() {
    let of = |more: Value| {
        let mut coordinator =
            json!({ "@type": "RedisSentinel", "urls": ["redis://a/1", "redis://b/1"] });
        for (key, value) in more.as_object().unwrap() {
            coordinator[key] = value.clone();
        }
        bus(&coordinator)
    };
    assert_eq!(sentinel(load(&of(json!({})))).urls[1].database(), 1);
    let line = error(&of(json!({ "urls": ["redis://a/1", "redis://b/2"] })));
    assert!(
        line.starts_with("coordinator.urls[1]: differs from the first URL in its data"),
        "{line}"
    );
    let line = error(&of(json!({ "masterName": "two words" })));
    assert!(line.starts_with("coordinator.masterName: has other characters"), "{line}");

    let ca = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/ca.pem");
    let tls = json!({ "caCertificate": ca });
    let line = error(&of(json!({ "tls": tls })));
    assert!(line.starts_with("coordinator.tls: has no effect"), "{line}");
    let found = sentinel(load(&of(json!({ "tls": tls, "masterTls": "verified" }))));
    assert_eq!(found.master_tls(), Some(TlsMode::Verified));
    let line = error(&of(json!({ "sentinelTls": tls })));
    assert!(line.starts_with("coordinator.sentinelTls: has no effect"), "{line}");
    // For the sentinels alone.
    let urls = json!(["rediss://a"]);
    let found = sentinel(load(&of(json!({ "urls": urls, "tls": tls, "masterTls": "none" }))));
    assert_eq!((found.master_tls(), found.sentinel_certificates()), (None, &found.tls));
}

#[test]
fn each_mistake_in_an_address_map_is_named_by_its_index() {
    let with = |urls: &str, map: Value| {
        bus(&json!({ "@type": "RedisCluster", "urls": [urls], "addressMap": map }))
    };
    let found = cluster(load(&with(
        "rediss://a",
        json!([
            { "announced": "10.0.0.1:6379", "reachable": "b:1" },
            { "announced": "10.0.0.1", "reachable": "c" },
            { "announced": "[::1]:6379", "serverName": "d.example" },
        ]),
    )));
    let shown = load(&with("rediss://a", json!([]))).effective();
    assert_eq!(shown.pointer("/coordinator/addressMap"), Some(&json!([])));
    assert_eq!(found.address_map.len(), 3);
    let mistakes = json!([
        { "announced": "10.0.0.1", "reachable": "b:1" },
        { "announced": "10.0.0.1", "reachable": "c" },
        { "announced": "10.0.0.2" },
        { "announced": "redis://x", "reachable": "c" },
        { "announced": "10.0.0.3", "serverName": "not a name" },
        { "announced": "10.0.0.4", "serverName": "name" },
        { "reachable": "c" },
        { "announced": "10.0.0.5", "reachable": "c", "adress": "d" },
    ]);
    let mut lines = errors(&with("redis://a", mistakes));
    lines.sort();
    let expected = [
        "[0].reachable: has a port, and announced has none",
        "[1].announced: 10.0.0.1 is there twice",
        "[2].reachable: is missing: where the server is reached, or serverName",
        "[3].announced: is neither host:port nor a host",
        "[4].serverName: is neither a name nor an address",
        "[5].serverName: has no effect: there is no TLS",
        "[6].announced: is missing",
        "[7].adress: is not known",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("coordinator.addressMap{expected}")), "{line}");
    }
    let name = json!([{ "announced": "a", "serverName": "b" }]);
    let line = error(&with("rediss://a?protocol=resp2", name));
    assert!(line.starts_with("coordinator.addressMap[0].serverName: needs RESP3"), "{line}");
}

#[test]
fn a_command_for_a_password_is_checked_and_not_run() {
    let of = |secret: Value| {
        bus(&json!({ "@type": "Redis", "authUsername": "u", "authSecret": secret }))
    };
    let command = json!({ "@type": "Command", "path": "/bin/false", "args": ["-x", "-x"] });
    let config = load(&of(command));
    let shown = config.effective();
    let expected = json!({ "@type": "Command", "path": "/bin/false", "args": ["-x", "-x"],
        "timeout": "10s" });
    assert_eq!(shown.pointer("/coordinator/authSecret"), Some(&expected));
    let found = redis(config);
    let (user, Some(Password::Command(command))) = found.credentials() else { panic!("a command") };
    assert_eq!((user, command.args.len(), command.timeout.as_secs()), (Some("u"), 2, 10));
    for (secret, why) in [
        (json!({ "@type": "Command" }), "authSecret.path: is missing"),
        (json!({ "@type": "Command", "path": "x" }), "authSecret.path: is not an absolute path"),
        (json!({ "@type": "Command", "path": "/x", "timeout": "2h" }), "authSecret.timeout: "),
        (json!({ "@type": "Command", "path": "/x", "args": [1] }), "authSecret.args[0]: "),
        (json!({ "@type": "Command", "path": "/x", "args": { "a": true } }), "authSecret.args: "),
        (json!({ "@type": "Command", "path": "/x", "secret": "s" }), "authSecret.secret: "),
    ] {
        let line = error(&of(secret));
        assert!(line.starts_with(&format!("coordinator.{why}")), "{line}");
    }
    // Other secrets do not change while the gateway runs.
    let otlp = json!({ "otlp": { "endpoint": "http://c:1", "header": "k",
        "headerSecret": { "@type": "Command", "path": "/x" } } });
    assert!(errors(&otlp)[0].contains("is not one of"), "{:?}", errors(&otlp));
}

//! File, environment and command line override one another.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{cluster, load_all, redis};
use crate::config::{BusConfig, Password, Protocol, Secret, keys};

const FILE: &str =
    r#"{"listen": "127.0.0.1:1", "prefix": "file", "history": {"maxFrames": 1, "maxAge": "1m"}}"#;

#[test]
fn each_source_overrides_the_one_before() {
    let env = [("TRUNKLINE_PREFIX", "env"), ("TRUNKLINE_HISTORY__MAX_FRAMES", "2")];
    let config = load_all(FILE, &env, &[("history.maxFrames", "3")]).unwrap();
    assert_eq!(config.listen.port(), 1, "the file's");
    assert_eq!(config.prefix, "env", "the environment's");
    assert_eq!(config.history.max_frames, 3, "the command line's");
    assert_eq!(config.history.max_age.as_secs(), 60, "beside it, the file's");
}

#[test]
fn the_later_of_two_equal_flags_wins() {
    let config = load_all("{}", &[], &[("prefix", "a"), ("prefix", "b")]).unwrap();
    assert_eq!(config.prefix, "b");
}

#[test]
fn text_of_a_variable_is_read_as_the_type_of_its_key() {
    let env = [
        ("TRUNKLINE_GATEWAY_ID", "12"),
        ("TRUNKLINE_PREFIX", "true"),
        ("TRUNKLINE_SHARDS", "4"),
        ("TRUNKLINE_ADMIN", "null"),
        ("TRUNKLINE_HEARTBEAT", "2000"),
        ("TRUNKLINE_DRAIN__TIMEOUT", "3s"),
        ("TRUNKLINE_LOG__MAX_BYTES", "4096"),
        ("TRUNKLINE_HISTORY__MAX_BYTES", "5MiB"),
        ("TRUNKLINE_COORDINATOR__TYPE", "RedisCluster"),
        ("TRUNKLINE_COORDINATOR__URLS", "redis://a, redis://b,"),
        ("TRUNKLINE_COORDINATOR__READ_FROM_REPLICAS", "false"),
        ("TRUNKLINE_COORDINATOR__POOL_TIMEOUT_WAIT", "null"),
        ("TRUNKLINE_COORDINATOR__PROTOCOL_VERSION", "resp2"),
        ("TRUNKLINE_COORDINATOR__AUTH_USERNAME", "5"),
        ("TRUNKLINE_COORDINATOR__AUTH_SECRET__TYPE", "Value"),
        ("TRUNKLINE_COORDINATOR__AUTH_SECRET__SECRET", "123"),
    ];
    let config = load_all("{}", &env, &[]).unwrap();
    assert_eq!((config.gateway_id.as_str(), config.prefix.as_str()), ("12", "true"));
    assert_eq!((config.shards, config.admin), (Some(4), None));
    assert_eq!((config.heartbeat.as_secs(), config.drain.timeout.as_secs()), (2, 3));
    assert_eq!((config.log.max_bytes, config.history.max_bytes), (4096, 5 << 20));
    let bus = cluster(config);
    assert_eq!(bus.urls.len(), 2);
    assert_eq!((bus.read_from_replicas, bus.protocol), (false, Protocol::Resp2));
    assert_eq!(bus.pool.timeout_wait, None);
    let (user, secret) = bus.credentials();
    assert_eq!((user, secret), (Some("5"), Some(Password::Secret(Secret::new("123")))));
}

#[test]
fn a_string_in_the_file_is_not_a_number() {
    assert!(load_all(r#"{"shards": "4"}"#, &[], &[]).is_err());
    assert!(load_all(r#"{"heartbeat": "2000"}"#, &[], &[]).is_err());
}

/// Documents of all shapes that `group` can have.
fn shapes(group: &str) -> Vec<Value> {
    let secrets = ["Value", "EnvironmentVariable", "File"];
    let bus = |bus: &str, password: &str, secret: &str| {
        let secret = json!({ "@type": secret });
        json!({ "@type": bus, password: secret })
    };
    let passwords = ["Value", "EnvironmentVariable", "File", "Command"];
    let cluster = passwords.map(|secret| bus("RedisCluster", "authSecret", secret));
    let sentinel = passwords.map(|secret| bus("RedisSentinel", "sentinelSecret", secret));
    let buses = cluster.into_iter().chain(sentinel).chain([json!({ "@type": "Redis" })]);
    match group {
        "coordinator" => buses.map(|bus| json!({ "coordinator": bus })).collect(),
        "inMemoryStore" => buses
            .map(|bus| json!({ "coordinator": { "@type": "Default" }, "inMemoryStore": bus }))
            .collect(),
        "frameKey" => secrets
            .map(|secret| {
                json!({ "coordinator": { "@type": "Redis" }, "frameKey": { "@type": secret } })
            })
            .to_vec(),
        "otlp" => secrets
            .map(|secret| json!({ "otlp": { "headerSecret": { "@type": secret } } }))
            .to_vec(),
        _ => vec![json!({})],
    }
}

#[test]
fn every_key_can_be_set_by_its_variable_and_by_a_flag() {
    let mut seen = BTreeSet::new();
    for key in keys() {
        let Some(variable) = key.variable() else { continue };
        assert!(seen.insert(variable.clone()), "{variable} twice");
        // Any text is valid for these; the test above sets them.
        let free = [".secret", ".authUsername", ".sentinelUsername", ".args"];
        if free.iter().any(|free| key.path.ends_with(free)) {
            continue;
        }
        let reports = |env: &[(&str, &str)], flags: &[(&str, &str)], origin: &str| {
            let start = format!("{} (from {origin}): ", key.path);
            let reported = shapes(key.path.split('.').next().unwrap()).iter().any(|shape| {
                let lines = load_all(&shape.to_string(), env, flags).unwrap_err();
                let unknown = |line: &String| line.contains("is not known");
                !lines.iter().any(unknown) && lines.iter().any(|line| line.starts_with(&start))
            });
            assert!(reported, "{start}");
        };
        reports(&[(&variable, "\u{7f} wrong")], &[], &variable);
        reports(&[], &[(&key.path, "\u{7f} wrong")], "the command line");
    }
    assert!(seen.contains("TRUNKLINE_COORDINATOR__TYPE"));
    assert!(seen.contains("TRUNKLINE_HISTORY__MAX_AGE"));
    assert!(seen.contains("TRUNKLINE_IN_MEMORY_STORE__POOL_MAX_CONNECTIONS"));
    assert!(seen.len() > 50, "{}", seen.len());
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let env = [("TRUNKLINE_LISTEN", ""), ("TRUNKLINE_NONSENSE", "")];
    assert_eq!(load_all(FILE, &env, &[]).unwrap().listen.port(), 1);
}

#[test]
fn an_unknown_variable_gets_the_most_similar_one_suggested() {
    for (name, expected) in [
        ("TRUNKLINE_LISTN", "TRUNKLINE_LISTN: is not known; did you mean TRUNKLINE_LISTEN?"),
        (
            "TRUNKLINE_HISTORY_MAX_AGE",
            "TRUNKLINE_HISTORY_MAX_AGE: is not known; did you mean TRUNKLINE_HISTORY__MAX_AGE?",
        ),
        ("TRUNKLINE_LOG", "TRUNKLINE_LOG: is a group; set its keys: TRUNKLINE_LOG__MAX_BYTES,"),
        ("TRUNKLINE_", "TRUNKLINE_: is not known; "),
    ] {
        let lines = load_all("{}", &[(name, "x")], &[]).unwrap_err();
        assert!(lines.len() == 1 && lines[0].starts_with(expected), "{lines:#?}");
    }
    let long = format!("TRUNKLINE_{}", "X".repeat(1000));
    let lines = load_all("{}", &[(&long, "x")], &[]).unwrap_err();
    assert!(lines[0].contains("known here: TRUNKLINE_LISTEN, TRUNKLINE_ADMIN"), "{lines:#?}");
}

#[test]
fn foreign_variables_are_ignored() {
    let env = [
        ("PATH", "/bin"),
        ("trunkline_listen", "nonsense"),
        ("TRUNKLINE_CONFIG", "/etc/trunkline.json"),
        ("TRUNKLINE_TEST_ANYTHING", "x"),
        ("TRUNKLINE_SERVICE_HOST", "10.0.0.1"),
        ("TRUNKLINE_PORT", "tcp://10.0.0.1:7420"),
        ("TRUNKLINE_PORT_7420_TCP_ADDR", "10.0.0.1"),
    ];
    load_all("{}", &env, &[]).unwrap();
}

#[test]
fn a_variable_that_holds_a_secret_is_not_unknown() {
    let text = r#"{"coordinator": {"@type": "RedisCluster",
        "authSecret": {"@type": "EnvironmentVariable",
            "variableName": "TRUNKLINE_REDIS_PASSWORD"}}}"#;
    let config = load_all(text, &[("TRUNKLINE_REDIS_PASSWORD", "hunter2")], &[]).unwrap();
    let Some(Password::Secret(secret)) = cluster(config).secret else { panic!("a secret") };
    assert_eq!(secret.expose(), "hunter2");
    // Also where the command line names it.
    let overrides = [
        ("coordinator.@type", "RedisCluster"),
        ("coordinator.authSecret.@type", "EnvironmentVariable"),
        ("coordinator.authSecret.variableName", "TRUNKLINE_REDIS_PASSWORD"),
    ];
    load_all("{}", &[("TRUNKLINE_REDIS_PASSWORD", "hunter2")], &overrides).unwrap();
    assert!(load_all("{}", &[("TRUNKLINE_REDIS_PASSWORD", "hunter2")], &[]).is_err());
}

#[test]
fn an_unknown_flag_gets_the_most_similar_one_suggested() {
    for (path, expected) in [
        ("prefx", "prefx (from the command line): is not known; did you mean prefix?"),
        (
            "history.max_age",
            "history.max_age (from the command line): is not known; did you mean history.maxAge?",
        ),
        (
            "coordinator.type",
            "coordinator.type (from the command line): is not known; did you mean \
             coordinator.@type?",
        ),
        (
            "log",
            "log (from the command line): is a group; set its keys: log.maxBytes, log.maxEvents",
        ),
        ("", "\"\" (from the command line): is not known; known here: listen, admin,"),
    ] {
        let lines = load_all("{}", &[], &[(path, "x")]).unwrap_err();
        assert!(lines.len() == 1 && lines[0].starts_with(expected), "{lines:#?}");
    }
}

/// `--redis URL` over a file with a cluster: the keys of the cluster are dropped.
#[test]
fn another_type_drops_the_keys_of_the_previous_one() {
    let text = r#"{"coordinator": {"@type": "RedisCluster", "urls": ["redis://a"],
        "maxRetries": 2, "timeout": "1s"}}"#;
    let flags = [("coordinator.url", "redis://b"), ("coordinator.@type", "Redis")];
    let found = redis(load_all(text, &[], &flags).unwrap());
    assert_eq!(found.url.to_string(), "redis://b");
    assert_eq!(found.timeout.as_secs(), 10, "the default, not the cluster's");
    // Also the keys from the environment.
    let env = [
        ("TRUNKLINE_COORDINATOR__TYPE", "RedisCluster"),
        ("TRUNKLINE_COORDINATOR__MAX_RETRIES", "2"),
    ];
    let found = redis(load_all("{}", &env, &flags).unwrap());
    assert_eq!(found.url.to_string(), "redis://b");
    let flags = [("coordinator.@type", "Embedded")];
    assert_eq!(load_all(text, &env, &flags).unwrap().bus, BusConfig::Embedded);
}

#[test]
fn setting_the_same_type_keeps_the_keys() {
    let text = r#"{"coordinator": {"@type": "Redis", "url": "redis://a", "timeout": "1s"}}"#;
    let env = [("TRUNKLINE_COORDINATOR__TYPE", "Redis")];
    let found = redis(load_all(text, &env, &[("coordinator.url", "redis://b")]).unwrap());
    assert_eq!((found.url.to_string().as_str(), found.timeout.as_secs()), ("redis://b", 1));
}

#[test]
fn a_group_of_another_type_in_the_file_is_reported_once() {
    let lines =
        load_all(r#"{"log": 5}"#, &[("TRUNKLINE_LOG__MAX_BYTES", "1KiB")], &[]).unwrap_err();
    assert_eq!(lines, ["log: is a number; expected an object"]);
}

#[test]
fn a_violation_names_the_source_of_the_value() {
    let env = [
        ("TRUNKLINE_COORDINATOR__TYPE", "Disabled"),
        ("TRUNKLINE_SHARDS", "-1"),
        ("TRUNKLINE_HEARTBEAT", "1x"),
    ];
    let lines = load_all(r#"{"log": {"maxEvents": 0}}"#, &env, &[("prefix", "")]).unwrap_err();
    let expected = [
        "coordinator.@type (from TRUNKLINE_COORDINATOR__TYPE): is Disabled",
        "prefix (from the command line): its length of 0",
        "shards (from TRUNKLINE_SHARDS): \"-1\" is out of range",
        "log.maxEvents: 0 is out of range",
        "heartbeat (from TRUNKLINE_HEARTBEAT): \"1x\" is not a duration",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
    }
}

#[test]
fn a_variable_with_an_odd_name_is_reported_in_one_line() {
    for name in ["TRUNKLINE_A\nB", "TRUNKLINE_redis://:hunter2@h", "TRUNKLINE_\u{1b}[31m"] {
        let lines = load_all("{}", &[(name, "x")], &[]).expect_err("an error");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(!lines[0].contains("hunter2") && !lines[0].contains('\u{1b}'), "{lines:?}");
        assert!(!lines[0].contains("(from"), "its name is there once: {lines:?}");
    }
}

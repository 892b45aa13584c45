//! The effective configuration: complete, masked, and loadable.

use serde_json::{Value, json};

use super::{file_of, load, load_all};
use crate::config::{Config, Problem, Sources, keys, keys::Kind};

#[test]
fn loading_the_effective_configuration_gives_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("ca.pem").to_str().unwrap().to_owned();
    std::fs::write(&pem, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let documents = [
        json!({ "gatewayId": "a" }),
        json!({ "gatewayId": "a", "admin": null, "shards": 3, "logFormat": "json",
            "heartbeat": 1001, "history": { "maxBytes": 1025 },
            "limits": { "maxEventBytes": 1025 } }),
        json!({ "gatewayId": "a", "coordinator": { "@type": "Redis", "poolTimeoutWait": null,
            "url": "rediss://x:1/2?protocol=resp3", "tls": { "caCertificate": pem } } }),
        json!({ "gatewayId": "a", "coordinator": { "@type": "Redis", "url": "unix:///x?db=2" } }),
        json!({ "gatewayId": "a", "coordinator": { "@type": "RedisCluster", "authUsername": "u",
            "urls": ["redis://a", "redis://b"], "protocolVersion": "resp2" } }),
        json!({ "gatewayId": "a", "coordinator": { "@type": "Default" },
            "inMemoryStore": { "@type": "RedisCluster", "maxRetries": 7 } }),
        json!({ "gatewayId": "a", "otlp": { "endpoint": "http://collector:4317", "timeout": "1s",
            "sampleOneIn": 100, "header": "api-key" } }),
    ];
    for document in documents {
        let config = load(&document);
        let effective = config.effective();
        assert_eq!(load(&effective), config, "{effective:#}");
    }
}

#[test]
fn a_random_gateway_id_is_not_in_the_effective_configuration() {
    assert_eq!(load(&json!({})).effective()["gatewayId"], Value::Null);
    assert_eq!(load(&json!({ "gatewayId": "a" })).effective()["gatewayId"], "a");
}

#[test]
fn the_effective_configuration_has_every_key() {
    let cluster = json!({ "coordinator": { "@type": "RedisCluster" } });
    let single = json!({ "coordinator": { "@type": "Redis" } });
    let sentinel = json!({ "coordinator": { "@type": "RedisSentinel" } });
    let documents = [single, cluster, sentinel].map(|document| load(&document).effective());
    for key in keys() {
        // The keys of the store are shown under coordinator; a secret has only the keys of its
        // type.
        let elsewhere = key.path.starts_with("inMemoryStore") || key.kind == Kind::Ignored;
        // There are no identities by default, no addresses, and no HTTP port.
        let of_auth = key.path.starts_with("auth.") || key.path.contains("[]");
        let of_http = key.path.starts_with("http.");
        let of_secret = key.path.contains("Secret.") || key.path.starts_with("frameKey.");
        if elsewhere || of_auth || of_http || of_secret {
            continue;
        }
        let pointer = format!("/{}", key.path.replace('.', "/"));
        assert!(documents.iter().any(|d| d.pointer(&pointer).is_some()), "{} is missing", key.path);
    }
}

#[test]
fn secrets_are_masked_and_the_mask_is_refused_as_a_secret() {
    let secret = json!({ "@type": "Value", "secret": "hunter2" });
    let config = load(&json!({ "coordinator": { "@type": "RedisCluster", "authSecret": secret,
        "urls": ["redis://user:hunter2@a"] } }));
    let effective = config.effective();
    assert_eq!(effective["coordinator"]["authSecret"]["secret"], "***");
    assert_eq!(effective["coordinator"]["urls"][0], "redis://user:***@a");
    assert!(!effective.to_string().contains("hunter2"));
    let file = file_of(&effective.to_string());
    let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
    let errors = Config::load(&sources).unwrap_err();
    let paths: Vec<_> = errors.violations().iter().map(|v| v.path.as_str()).collect();
    assert_eq!(paths, ["coordinator.urls[0]", "coordinator.authSecret.secret"]);
    assert!(matches!(errors.violations()[0].problem, Problem::Url(_)));
    assert_eq!(errors.to_string().matches("masked").count(), 2, "{errors}");
}

#[test]
fn the_secret_of_the_trace_collector_is_masked() {
    let secret = json!({ "@type": "Value", "secret": "hunter2" });
    let config = load(&json!({ "otlp": { "endpoint": "http://a:1", "headerSecret": secret } }));
    assert_eq!(config.effective()["otlp"]["headerSecret"]["secret"], "***");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn secrets_in_variables_and_files_are_shown_by_name() {
    let file = file_of("hunter2\n");
    let path = file.path().to_str().unwrap();
    let secrets = [
        json!({ "@type": "EnvironmentVariable", "variableName": "REDIS_PASSWORD" }),
        json!({ "@type": "File", "filePath": path }),
    ];
    for secret in secrets {
        let document = json!({ "gatewayId": "a", "coordinator": {
            "@type": "RedisCluster", "authSecret": secret } });
        let load = |document: &Value| {
            load_all(&document.to_string(), &[("REDIS_PASSWORD", "hunter2")], &[]).unwrap()
        };
        let config = load(&document);
        let effective = config.effective();
        assert_eq!(effective["coordinator"]["authSecret"], secret);
        assert_eq!(load(&effective), config);
    }
}

//! A [`Config`] as the document that would give it.

use serde_json::{Value, json};

use super::{
    Config, Pool, Redis, RedisCluster, RedisUrl, Tls,
    bus::BusConfig,
    limits::{effective_keepalive, effective_limits},
    secret::{MASK, Secret, SecretSource},
    units::{format_duration, format_size},
};

pub(super) fn effective(config: &Config) -> Value {
    let duration = |duration| format_duration(duration);
    let size = |bytes: usize| format_size(bytes as u64);
    json!({
        // A random one is another one next time, and a copy of it would be a lie about two gateways.
        "gatewayId": (!config.gateway_id_is_random).then_some(&config.gateway_id),
        "listen": config.listen.to_string(),
        "admin": config.admin.map(|address| address.to_string()),
        "coordinator": coordinator(&config.bus),
        "prefix": config.prefix,
        "shards": config.shards,
        "history": {
            "maxAge": duration(config.history.max_age),
            "maxBytes": format_size(config.history.max_bytes),
            "maxFrames": config.history.max_frames,
        },
        "log": {
            "maxBytes": size(config.log.max_bytes),
            "maxEvents": config.log.max_events,
        },
        "heartbeat": duration(config.heartbeat),
        "limits": effective_limits(&config.limits),
        "keepalive": effective_keepalive(&config.keepalive),
        "drain": {
            "delay": duration(config.drain.delay),
            "spread": duration(config.drain.spread),
            "timeout": duration(config.drain.timeout),
        },
        "requestIdWindow": duration(config.request_id_window),
        "logFormat": config.log_format.as_str(),
        "logLevel": config.log_level,
    })
}

fn coordinator(bus: &BusConfig) -> Value {
    match bus {
        BusConfig::Embedded => json!({ "@type": "Embedded" }),
        BusConfig::Redis(redis) => {
            let Redis { url, timeout, min_replicas, pool, tls } = redis;
            let mut object = json!({
                "@type": "Redis",
                "url": url.to_string(),
                "timeout": format_duration(*timeout),
                "minReplicas": min_replicas,
            });
            add_pool(&mut object, pool);
            object["tls"] = certificates(tls);
            object
        }
        BusConfig::RedisCluster(cluster) => {
            let urls = cluster.urls.iter().map(RedisUrl::to_string);
            let RedisCluster { timeout, min_replicas, username, secret, pool, tls, .. } = cluster;
            let mut object = json!({
                "@type": "RedisCluster",
                "urls": urls.collect::<Vec<_>>(),
                "timeout": format_duration(*timeout),
                "minReplicas": min_replicas,
                "authUsername": username,
                "authSecret": auth_secret(secret.as_ref()),
                "maxRetries": cluster.max_retries,
                "minRetryWait": format_duration(cluster.min_retry_wait),
                "maxRetryWait": format_duration(cluster.max_retry_wait),
                "readFromReplicas": cluster.read_from_replicas,
                "protocolVersion": cluster.protocol.as_str(),
            });
            add_pool(&mut object, pool);
            object["tls"] = certificates(tls);
            object
        }
    }
}

/// A secret that lies elsewhere is named by its place; one that lies in the document is masked.
fn auth_secret(secret: Option<&Secret>) -> Value {
    match secret.map(Secret::source) {
        None => json!({ "@type": "None" }),
        Some(SecretSource::Value) => json!({ "@type": "Value", "secret": MASK }),
        Some(SecretSource::EnvironmentVariable(name)) => {
            json!({ "@type": "EnvironmentVariable", "variableName": name })
        }
        Some(SecretSource::File(path)) => {
            json!({ "@type": "File", "filePath": path.to_string_lossy() })
        }
    }
}

fn add_pool(object: &mut Value, pool: &Pool) {
    object["poolMaxConnections"] = json!(pool.max_connections);
    object["poolTimeoutCreate"] = json!(pool.timeout_create.map(format_duration));
    object["poolTimeoutWait"] = json!(pool.timeout_wait.map(format_duration));
    object["poolTimeoutRecycle"] = json!(pool.timeout_recycle.map(format_duration));
}

fn certificates(tls: &Tls) -> Value {
    json!({
        "caCertificate": tls.ca_certificate.as_ref().map(|path| path.to_string_lossy()),
        "clientCertificate": tls.client_certificate.as_ref().map(|path| path.to_string_lossy()),
        "clientKey": tls.client_key.as_ref().map(|path| path.to_string_lossy()),
    })
}

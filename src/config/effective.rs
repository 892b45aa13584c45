//! A [`Config`] as the document that would give it.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{
    Auth, Config, EventRules, IdentityRules, Kinds, Operation, Otlp, Pool, Redis, RedisCluster,
    RedisUrl, ServerTls, Tls, TokenSource,
    access::kind_names,
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
        "tls": tls(config.tls.as_ref()),
        "auth": config.auth.as_ref().map(auth),
        "insecure": config.insecure,
        "reloadInterval": duration(config.reload_interval),
        "coordinator": coordinator(&config.bus),
        "frameKey": secret(config.frame_key.as_ref()),
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
        "otlp": otlp(config.otlp.as_ref()),
        "logFormat": config.log_format.as_str(),
        "logLevel": config.log_level,
    })
}

fn tls(tls: Option<&ServerTls>) -> Value {
    let required = tls.is_none_or(|tls| tls.client_certificate_required);
    let path = |path: Option<&PathBuf>| path.map(|path| path.to_string_lossy().into_owned());
    json!({
        "certificate": path(tls.map(|tls| &tls.certificate)),
        "privateKey": path(tls.map(|tls| &tls.private_key)),
        "clientCa": path(tls.and_then(|tls| tls.client_ca.as_ref())),
        "clientCertificates": if required { "required" } else { "optional" },
    })
}

fn auth(auth: &Auth) -> Value {
    json!({ "identities": auth.identities.iter().map(identity).collect::<Vec<_>>() })
}

fn identity(identity: &IdentityRules) -> Value {
    let tokens = identity.tokens.iter().map(|token| match &token.source {
        TokenSource::Hash => json!(format!("sha256:{MASK}")),
        TokenSource::Value => secret_at(Some(&SecretSource::Value)),
        TokenSource::EnvironmentVariable(name) => {
            secret_at(Some(&SecretSource::EnvironmentVariable(name.clone())))
        }
        TokenSource::File(path) => secret_at(Some(&SecretSource::File(path.clone()))),
    });
    let events = |rules: &EventRules| {
        json!({
            "allow": {
                "kinds": kinds(&rules.allow.kinds),
                "accounts": rules.allow.accounts,
                "customTypes": rules.allow.custom_types,
            },
            "deny": {
                "kinds": kinds(&rules.deny.kinds),
                "accounts": rules.deny.accounts,
                "customTypes": rules.deny.custom_types,
            },
        })
    };
    json!({
        "name": identity.name,
        "tokens": tokens.collect::<Vec<_>>(),
        "nodeIds": identity.node_ids,
        "roles": identity.roles,
        "publish": events(&identity.publish),
        "receive": events(&identity.receive),
        "operations": identity.operations.iter().map(|o| Operation::as_str(*o)).collect::<Vec<_>>(),
    })
}

fn kinds(kinds: &Kinds) -> Vec<String> {
    let name = |number: &u8| {
        let named = kind_names().find(|(_, known)| known == number);
        named.map_or_else(|| number.to_string(), |(name, _)| name)
    };
    let all = kinds.all.then(|| "*".to_owned());
    all.into_iter().chain(kinds.numbers.iter().map(name)).collect()
}

fn otlp(otlp: Option<&Otlp>) -> Value {
    let endpoint = otlp.map(|otlp| &otlp.endpoint);
    let otlp = otlp.cloned().unwrap_or_default();
    json!({
        "endpoint": endpoint,
        "timeout": format_duration(otlp.timeout),
        "sampleOneIn": otlp.sample_one_in,
        "header": otlp.header,
        "headerSecret": self::secret(otlp.secret.as_ref()),
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
                "authSecret": self::secret(secret.as_ref()),
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
fn secret(secret: Option<&Secret>) -> Value {
    secret_at(secret.map(Secret::source))
}

fn secret_at(source: Option<&SecretSource>) -> Value {
    match source {
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

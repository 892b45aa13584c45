//! `trunkline doctor` finds the faults of a deployment: each deployment here has one fault on
//! purpose.

use std::{fmt, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    acl,
    support::{
        ClusterOptions, Gateway, GatewayOptions, LIMIT, RedisCluster, RedisOptions, RedisServer,
        SentinelOptions, SentinelSet, folder, gateway::trunkline, ports::Port, proxy::Proxy,
        shared, wait::until,
    },
    tls,
};

/// Report of the doctor.
struct Said {
    code: Option<i32>,
    report: Value,
    took: Duration,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {:?} after {:.1?}: {:#}", self.code, self.took, self.report)
    }
}

impl Said {
    /// The findings of a level: `check: seen -> advice`.
    fn at(&self, level: &str) -> Vec<String> {
        let findings = self.report["findings"].as_array().expect("findings");
        let text = |finding: &Value, key: &str| finding[key].as_str().expect("text").to_owned();
        findings
            .iter()
            .filter(|finding| finding["level"] == level)
            .map(|finding| {
                let [check, seen, advice] =
                    ["check", "seen", "advice"].map(|key| text(finding, key));
                assert!(level == "ok" || !advice.is_empty(), "{check}: {seen}: and what to do?");
                format!("{check}: {seen} -> {advice}")
            })
            .collect()
    }

    /// The only failure is of this check, and contains all of these texts.
    fn fails(&self, check: &str, words: &[&str]) {
        let failures = self.at("failure");
        assert_eq!(self.code, Some(1), "{self}");
        assert_eq!(self.report["ok"], false, "{self}");
        assert!(!failures.is_empty(), "{self}");
        for failure in &failures {
            assert!(failure.starts_with(&format!("{check}: ")), "{self}");
            for word in words {
                assert!(failure.contains(word), "{word}: {self}");
            }
        }
    }
}

/// A configuration as a file, with a port on which no gateway listens.
fn file(options: &GatewayOptions) -> (TempDir, Port, String) {
    let (folder, port) = (folder::new(), Port::free());
    let mut config = options.config.clone();
    config["listen"] = format!("127.0.0.1:{}", port.number()).into();
    let path = folder.path().join("trunkline.json");
    std::fs::write(&path, config.to_string()).expect("a file");
    (folder, port, path.display().to_string())
}

async fn doctor(options: &GatewayOptions) -> Said {
    let (_folder, _port, path) = file(options);
    ask(&path).await
}

async fn ask(path: &str) -> Said {
    let output = trunkline(["doctor", "--json", "--config", path]).run(LIMIT * 2).await;
    let report = serde_json::from_str(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    Said { code: output.status.code(), report, took: output.took }
}

async fn redis(options: RedisOptions) -> (RedisServer, GatewayOptions) {
    let redis = RedisServer::start(options).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    (redis, options)
}

fn with_args<const N: usize>(args: [&str; N]) -> RedisOptions {
    RedisOptions { args: args.map(str::to_owned).to_vec(), ..RedisOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_deployment_is_reported_as_sound_and_left_unchanged() {
    let (redis, options) = redis(RedisOptions { append_only: true, ..Default::default() }).await;
    let said = doctor(&options).await;
    assert_eq!(said.code, Some(0), "{said}");
    assert_eq!((said.at("failure"), said.at("warning")), (vec![], vec![]), "{said}");
    // What is not there yet was not seen.
    let unseen = said.at("not checked");
    assert_eq!(unseen.len(), 2, "{said}");
    assert!(unseen[0].starts_with("deployment: nothing is recorded"), "{said}");
    assert!(unseen[1].starts_with("gateway: no gateway runs at"), "{said}");
    assert_eq!((&said.report["ok"], &said.report["notChecked"]), (&json!(true), &json!(2)));
    for check in [
        "configuration",
        "reach",
        "mode",
        "shards",
        "role",
        "eviction",
        "memory",
        "persistence",
        "output buffer",
        "timeout",
        "clock",
        "rights",
        "round trip",
    ] {
        let begins = format!("{check}: ");
        assert!(
            said.at("ok").iter().any(|finding| finding.starts_with(&begins)),
            "{check}: {said}"
        );
    }
    // Not even the record of the deployment: only a gateway writes it.
    assert_eq!(redis.cli(&["DBSIZE"]).await, "0");

    // The same with a gateway, as text.
    let gateway = Gateway::start(options).await;
    let path = gateway.config_file().display().to_string();
    let output = trunkline(["doctor", "--config", &path]).run(LIMIT).await.success();
    assert!(output.contains("serves 0 streams on 1 shards"), "{output}");
    let (lines, summary) = output.trim_end().rsplit_once('\n').expect("lines");
    assert!(lines.lines().all(|line| line.starts_with("ok ")), "{output}");
    assert_eq!(summary, "0 failures, 0 warnings, 0 not checked");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_the_acl_file_are_enough_and_show_fewer_settings() {
    let (redis, options) = redis(RedisOptions::default()).await;
    let prefix = options.config["prefix"].as_str().expect("text").to_owned();
    acl::make_user(&redis, "gateway", &acl::rights(acl::STANDALONE, &prefix)).await;
    let url = format!("redis://gateway:change-me@127.0.0.1:{}", redis.port());
    let options = options.set_bus("url", url);
    let said = doctor(&options).await;
    assert_eq!(said.code, Some(0), "{said}");
    assert_eq!(said.at("warning"), [""; 0], "{said}");
    let unseen = said.at("not checked");
    for check in ["persistence", "output buffer", "timeout"] {
        let begins = format!("{check}: ");
        let of_check = unseen.iter().find(|line| line.starts_with(&begins)).expect(check);
        assert!(of_check.contains("config|get"), "{said}");
    }
    assert!(!said.to_string().contains("change-me"), "{said}");

    // 1. A right is missing.
    redis.cli(&["ACL", "SETUSER", "gateway", "-xadd", "-xtrim"]).await;
    doctor(&options).await.fails("rights", &["+xadd +xtrim", "ACL SETUSER", "deploy/redis"]);
    // 2. The rights are those of another prefix.
    redis.cli(&["ACL", "SETUSER", "gateway", "+xadd", "+xtrim", "resetkeys", "~other:*"]).await;
    let said = doctor(&options).await;
    assert!(said.code == Some(1) && said.at("failure")[0].contains("key"), "{said}");
    redis.cli(&["ACL", "SETUSER", "gateway", "resetkeys", &format!("~{prefix}:*")]).await;
    redis.cli(&["ACL", "SETUSER", "gateway", "resetchannels"]).await;
    let said = doctor(&options).await;
    let channels = format!("&{prefix}:*");
    assert!(said.at("failure").iter().all(|failure| failure.contains(&channels)), "{said}");
    assert_eq!(said.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_found() {
    let (redis, options) =
        redis(RedisOptions { password: Some("right".into()), ..Default::default() }).await;
    assert_eq!(doctor(&options).await.code, Some(0));
    let url = format!("redis://:wr0ng@127.0.0.1:{}", redis.port());
    let said = doctor(&options.clone().set_bus("url", url)).await;
    said.fails("reach", &["WRONGPASS", "authSecret"]);
    assert!(!said.to_string().contains("wr0ng"), "{said}");
    let url = format!("redis://127.0.0.1:{}", redis.port());
    doctor(&options.set_bus("url", url)).await.fails("reach", &["NOAUTH", "user and password"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_policy_that_loses_events_is_found() {
    let limit = |policy: &str| Some(("1gb".to_owned(), policy.to_owned()));
    let evicting = RedisOptions { max_memory: limit("allkeys-lru"), ..Default::default() };
    let (_redis, options) = redis(evicting).await;
    doctor(&options).await.fails("eviction", &["allkeys-lru", "maxmemory-policy noeviction"]);
    let evicting = RedisOptions { max_memory: limit("volatile-lru"), ..Default::default() };
    let (_redis, options) = redis(evicting).await;
    let said = doctor(&options).await;
    assert!(said.at("warning").iter().any(|warning| warning.contains("volatile-lru")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_buffer_that_is_too_small_is_found() {
    let (redis, options) = redis(RedisOptions::default()).await;
    redis.cli(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 64kb 32kb 5"]).await;
    doctor(&options).await.fails("output buffer", &["65536", "pubsub 32mb 8mb 60"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_in_place_of_its_master_is_found() {
    let (master, _) = redis(RedisOptions::default()).await;
    let port = master.port().to_string();
    let (replica, options) = redis(with_args(["--replicaof", "127.0.0.1", &port])).await;
    until(LIMIT, "the replica is in sync", async || {
        replica.info("replication", "master_link_status").await.as_deref() == Some("up")
    })
    .await;
    let said = doctor(&options).await;
    let role = &said.at("failure")[0];
    assert!(role.contains("role: ") && role.contains(&format!("127.0.0.1:{port}")), "{said}");
    assert_eq!(said.code, Some(1));

    // Fewer replicas than minReplicas asks for. The master counts a replica from its first
    // acknowledgement on, which comes after the replica itself calls the link up.
    until(LIMIT, "the master counts the replica", async || {
        let counted = master.info("replication", "slave0").await;
        counted.is_some_and(|counted| counted.contains("state=online"))
    })
    .await;
    let options = GatewayOptions::redis(&master.url(), &shared::prefix());
    assert_eq!(doctor(&options.clone().set_bus("minReplicas", 1)).await.code, Some(0));
    let said = doctor(&options.set_bus("minReplicas", 2)).await;
    said.fails("role", &["1 replicas online", "minReplicas is 2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_are_examined_and_what_they_name() {
    let append_only = RedisOptions { append_only: true, ..Default::default() };
    let options =
        SentinelOptions { server: append_only, behind_proxies: true, ..Default::default() };
    let set = SentinelSet::with(options).await;
    let map: Vec<_> = (0..2)
        .map(|index| {
            json!({ "announced": format!("127.0.0.1:{}", set.announced(index)),
                "reachable": format!("127.0.0.1:{}", set.server(index).port()) })
        })
        .collect();
    let options = GatewayOptions::redis_sentinel(&set.urls()[..1], &shared::prefix())
        .set_bus("readFromReplicas", false)
        .set_bus("addressMap", map.clone());
    let said = doctor(&options).await;
    assert_eq!((said.code, said.at("warning")), (Some(0), vec![]), "{said}");
    let ok = said.at("ok").join("\n");
    // All three, of which one is configured, and both sides of the map.
    assert_eq!(ok.matches("with 1 replicas in sync and 2 other sentinels").count(), 3, "{said}");
    let (announced, reached) = (set.announced(0), set.server(0).port());
    let both = format!("127.0.0.1:{announced} (reached at 127.0.0.1:{reached}) is a master");
    assert!(ok.contains(&both), "{said}");

    let mut more = map;
    more.push(json!({ "announced": "10.9.9.9", "reachable": "127.0.0.1" }));
    let said = doctor(&options.clone().set_bus("addressMap", more)).await;
    assert!(said.at("warning")[0].contains("no server announces 10.9.9.9"), "{said}");

    doctor(&options.clone().set_bus("masterName", "x")).await.fails("sentinels", &["name"]);
    let sentinel = GatewayOptions::redis(&set.urls()[0], &shared::prefix());
    doctor(&sentinel).await.fails("mode", &["is a sentinel", "RedisSentinel"]);
    for sentinel in &set.sentinels()[1..] {
        sentinel.kill_9();
    }
    let said = doctor(&options).await;
    assert_eq!(said.code, Some(0), "{said}");
    let warnings = said.at("warning").join("\n");
    assert!(warnings.contains("1 of 3 sentinels answer") && warnings.contains("refused"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_in_place_of_a_server_and_the_reverse_are_found() {
    let (server, _) = redis(RedisOptions::default()).await;
    let options = GatewayOptions::redis_cluster(&[server.url()], &shared::prefix());
    doctor(&options).await.fails("mode", &["is a standalone server", "coordinator.@type to Redis"]);

    let cluster = RedisCluster::with(ClusterOptions { replicas: 0, ..Default::default() }).await;
    let options = GatewayOptions::redis(&cluster.urls()[0], &shared::prefix());
    doctor(&options).await.fails("mode", &["belongs to a cluster", "RedisCluster"]);

    // The right configuration is sound, but for the warning about a cluster without persistence.
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &shared::prefix());
    let said = doctor(&options).await;
    assert_eq!(said.code, Some(0), "{said}");
    let trips = said.at("ok").iter().filter(|ok| ok.starts_with("round trip: ")).count();
    assert_eq!(trips, 16, "one for each shard: {said}");
    assert!(said.at("warning").iter().all(|warning| warning.contains("disk")), "{said}");

    // A server that is down is reported, and the others are enough.
    let mut urls = cluster.urls();
    urls.push(format!("redis://127.0.0.1:{}", Port::free().number()));
    let said = doctor(&GatewayOptions::redis_cluster(&urls, &shared::prefix())).await;
    assert_eq!(said.code, Some(0), "{said}");
    assert!(said.at("warning")[0].contains("refused"), "{said}");

    // Shards that are spread unevenly.
    for slot in 0..5461 {
        if slot % 1000 == 0 {
            let end = (slot + 999).min(5460);
            give(&cluster, slot, end).await;
        }
    }
    cluster.settled().await;
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &shared::prefix());
    let said = doctor(&options.set("shards", 6)).await;
    let uneven = |warning: &String| warning.starts_with("shards: ") && warning.contains(": 4");
    assert!(said.at("warning").iter().any(uneven), "{said}");
}

/// Gives slots of the first master to the second.
async fn give(cluster: &RedisCluster, first: u16, last: u16) {
    let to = cluster.node(1).cli(&["CLUSTER", "MYID"]).await;
    for slot in first..=last {
        let slot = slot.to_string();
        for node in [1, 0, 2] {
            cluster.node(node).cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_from_the_recorded_deployment_are_found() {
    let (redis, options) = redis(RedisOptions::default()).await;
    let _gateway = Gateway::start(options.clone().set("shards", 4)).await;
    let said = doctor(&options.clone().set("shards", 3)).await;
    said.fails("deployment", &["shards is 3 here", "records 4"]);
    assert_eq!(doctor(&options).await.code, Some(0));
    let key = format!("{}:deployment", options.config["prefix"].as_str().expect("text"));
    let frame_key = json!({"@type": "Value", "secret": "x".repeat(32)});
    let said = doctor(&options.clone().set("frameKey", frame_key)).await;
    said.fails("deployment", &["frameKey is set here"]);
    redis.cli(&["HSET", &key, "key", "0badf00d"]).await;
    doctor(&options).await.fails("deployment", &["frameKey is not set here"]);
    redis.cli(&["HDEL", &key, "key"]).await;
    redis.cli(&["HSET", &key, "mode", "sharded"]).await;
    doctor(&options).await.fails("deployment", &["standalone", "sharded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_another_configuration_at_the_address_is_found() {
    let (server, options) = redis(RedisOptions::default()).await;
    let at = async |gateway: &Gateway, options: &GatewayOptions| {
        let folder = folder::new();
        let mut config = options.config.clone();
        config["listen"] = gateway.address().into();
        let path = folder.path().join("trunkline.json");
        std::fs::write(&path, config.to_string()).expect("a file");
        ask(&path.display().to_string()).await
    };
    let embedded = Gateway::start(GatewayOptions::embedded()).await;
    let said = at(&embedded, &options).await;
    said.fails("gateway", &["has the bus embedded", "has redis", "restart it"]);

    // The deployment of this prefix has four shards, and the gateway at the address five.
    let four = Gateway::start(options.clone().set("shards", 4)).await;
    let other = GatewayOptions::redis(&server.url(), &shared::prefix()).set("shards", 5);
    let five = Gateway::start(other).await;
    let said = at(&five, &options).await;
    said.fails("gateway", &["has 5 shards, and its deployment has 4", "another prefix"]);
    let said = at(&four, &options).await;
    assert_eq!((said.code, said.at("not checked")), (Some(0), vec![]), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_check_that_was_not_made_is_named() {
    let unused = Port::free();
    let url = format!("redis://127.0.0.1:{}", unused.number());
    let said = doctor(&GatewayOptions::redis(&url, &shared::prefix())).await;
    let unseen = said.at("not checked");
    for check in [
        "mode",
        "deployment",
        "shards",
        "role",
        "eviction",
        "memory",
        "persistence",
        "output buffer",
        "timeout",
        "clock",
        "rights",
        "sizes",
        "round trip",
        "gateway",
    ] {
        let begins = format!("{check}: ");
        assert!(unseen.iter().any(|line| line.starts_with(&begins)), "{check}: {said}");
    }
    // Without a configuration nothing can be checked.
    let said = doctor(&GatewayOptions::embedded().set("shards", 0)).await;
    assert_eq!(said.at("not checked").len(), 2, "{said}");

    // Without transactions no right can be tried.
    let (redis, options) = redis(RedisOptions::default()).await;
    let prefix = options.config["prefix"].as_str().expect("text").to_owned();
    let rights = acl::rights(acl::STANDALONE, &prefix);
    acl::make_user(&redis, "gateway", &rights).await;
    redis.cli(&["ACL", "SETUSER", "gateway", "-multi"]).await;
    let url = format!("redis://gateway:change-me@127.0.0.1:{}", redis.port());
    let said = doctor(&options.set_bus("url", url)).await;
    let untried = |line: &String| line.starts_with("rights: ") && line.contains("MULTI");
    assert!(said.at("not checked").iter().any(untried), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_certificates_are_found() {
    let (folder, port) = (folder::new(), Port::free());
    tls::authority(folder.path()).await;
    tls::expired(folder.path(), "server", "IP:127.0.0.1").await;
    tls::certificate(folder.path(), "client", "DNS:gateway").await;
    tls::certificate(folder.path(), "other", "DNS:other").await;
    tls::expired(folder.path(), "old", "DNS:gateway").await;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let port_text = port.number().to_string();
    let server = RedisServer::start(with_args([
        "--tls-port",
        &port_text,
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
        "--tls-auth-clients",
        "no",
    ]))
    .await;
    let url = format!("rediss://127.0.0.1:{port_text}");
    let with = |tls: Value| GatewayOptions::redis(&url, &shared::prefix()).set_bus("tls", tls);
    let said = doctor(&with(json!({"caCertificate": path("ca.pem")}))).await;
    said.fails("reach", &["expired", "renew"]);
    // Of the client: an expired one, and a key of another one.
    let client = |certificate: &str, key: &str| {
        with(json!({"caCertificate": path("ca.pem"), "clientCertificate": path(certificate),
            "clientKey": path(key)}))
    };
    let said = doctor(&client("old.pem", "old.key")).await;
    let expired = |failure: &String| failure.contains("old.pem") && failure.contains("expired");
    assert!(said.at("failure").iter().any(expired), "{said}");
    let said = doctor(&client("client.pem", "other.key")).await;
    let mixed = |failure: &String| failure.contains("do not match");
    assert!(said.at("failure").iter().any(mixed), "{said}");

    // A valid certificate has no finding.
    tls::certificate(folder.path(), "server", "IP:127.0.0.1").await;
    for (name, file) in [("tls-cert-file", "server.pem"), ("tls-key-file", "server.key")] {
        // Redis refuses the first of the two, because the pair does not match yet.
        let _ = server.command::<String>(&["CONFIG", "SET", name, &path(file)]).await;
    }
    let pair = [
        "CONFIG",
        "SET",
        "tls-cert-file",
        &path("server.pem"),
        "tls-key-file",
        &path("server.key"),
    ];
    assert_eq!(server.cli(&pair).await, "OK");
    let said = doctor(&client("client.pem", "client.key")).await;
    assert_eq!(said.code, Some(0), "{said}");
    assert!(said.at("ok").iter().any(|ok| ok.contains("client.pem (gateway) is valid")), "{said}");
    // A name that the certificate does not have.
    let other =
        client("client.pem", "client.key").set_bus("url", url.replace("127.0.0.1", "localhost"));
    doctor(&other).await.fails("reach", &["not valid for name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_or_does_not_answer_is_found() {
    let unused = Port::free();
    let url = format!("redis://127.0.0.1:{}", unused.number());
    let options = GatewayOptions::redis(&url, &shared::prefix());
    doctor(&options).await.fails("reach", &["refused", "bind"]);

    let (redis, _) = redis(RedisOptions::default()).await;
    let proxy = Proxy::start(redis.port()).await;
    proxy.drop_bytes();
    let said = doctor(&GatewayOptions::redis(&proxy.url(), &shared::prefix())).await;
    said.fails("reach", &[&proxy.url()["redis://".len()..]]);
    assert!(said.took < Duration::from_secs(15), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_is_found() {
    let full = RedisOptions {
        max_memory: Some(("4mb".into(), "noeviction".into())),
        ..RedisOptions::default()
    };
    let (redis, options) = redis(full).await;
    let value = "x".repeat(100_000);
    let mut number = 0;
    while redis.command::<String>(&["SET", &format!("full-{number}"), &value]).await.is_ok() {
        number += 1;
    }
    let said = doctor(&options).await;
    let failures = said.at("failure");
    assert!(failures.iter().any(|failure| failure.starts_with("memory: ")), "{said}");
    let refused = |failure: &String| failure.starts_with("writes: ") && failure.contains("OOM");
    assert!(failures.iter().any(refused), "{said}");
    assert_eq!(said.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_configuration_and_a_gateway_that_does_not_serve_are_found() {
    let said = doctor(&GatewayOptions::embedded().set("shards", 0)).await;
    said.fails("configuration", &["shards", "out of range", "docs/configuration.md"]);

    let (redis, options) = redis(RedisOptions::default()).await;
    let gateway = Gateway::start(options).await;
    redis.kill_9();
    let path = gateway.config_file().display().to_string();
    until(LIMIT, "the gateway is found not to serve", async || {
        let said = ask(&path).await;
        let failures = said.at("failure");
        assert!(failures.iter().any(|failure| failure.starts_with("reach: ")), "{said}");
        failures.iter().any(|failure| failure.contains("does not serve"))
    })
    .await;
}

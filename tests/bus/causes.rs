//! Set-ups of Redis that cannot work: the cause and the cure stand in one line, in the log, at
//! `/readyz`, in the status and in `doctor`.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;
use tonic_health::pb::health_check_response::ServingStatus;
use trunkline_proto::v1::GetStatusRequest;

use super::{
    crosses,
    support::{
        ClusterOptions, Gateway, GatewayOptions, LIMIT, Ready, RedisCluster, RedisOptions,
        RedisServer, gateway::trunkline, redis::TlsFiles, shared, until,
    },
    tls, two_gateways,
};

/// A gateway of these options does not serve, and tells these words everywhere.
async fn tells(options: GatewayOptions, words: &[&str]) -> Gateway {
    let gateway = Gateway::start(options.ready(Ready::Listening)).await;
    let message = gateway.is_not_ready(words, LIMIT).await;
    assert_eq!(message.lines().count(), 1, "{message}");
    let all = |text: &str| words.iter().all(|word| text.contains(word));
    // Several parts of a gateway may say why in turn, each from its own attempt.
    until(LIMIT, &format!("{words:?} in the status"), async || {
        let status = gateway.client().await.get_status(GetStatusRequest {}).await;
        all(&status.expect("a status").into_inner().reason)
    })
    .await;
    until(LIMIT, "a line of the log", async || gateway.stderr().lines().any(&all)).await;
    let file = gateway.config_file().display().to_string();
    // The servers of a cluster may know different addresses, and it asks any of them.
    until(LIMIT, &format!("{words:?} from doctor"), async || {
        let doctor = trunkline(["doctor", "--config", &file]).run(LIMIT).await;
        assert_eq!(doctor.status.code(), Some(1), "{}{}", doctor.stdout, doctor.stderr);
        all(&format!("{}{}", doctor.stdout, doctor.stderr))
    })
    .await;
    gateway
}

fn with_args<const N: usize>(args: [&str; N]) -> RedisOptions {
    RedisOptions { args: args.map(str::to_owned).to_vec(), ..RedisOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_connections_left_is_told_by_name() {
    let redis = RedisServer::start(with_args(["--maxclients", "8"])).await;
    let mut taken = Vec::new();
    for _ in 0..8 {
        taken.push(TcpStream::connect(("127.0.0.1", redis.port())).await.expect("a connection"));
    }
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    let gateway = tells(options, &["max number of clients", "raise its maxclients"]).await;
    drop(taken);
    gateway.health_is("", ServingStatus::Serving, LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_knows_no_resp3_is_told_by_name() {
    let redis = RedisServer::start(with_args(["--rename-command", "HELLO", ""])).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    tells(options.clone(), &["HELLO", "?protocol=resp2"]).await;
    // The cure.
    let url = format!("{}/?protocol=resp2", redis.url());
    let (one, two) = two_gateways(|| options.clone().set_bus("url", url.as_str())).await;
    crosses(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_a_server_does_not_have_is_told_by_name() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let url = format!("{}/99", redis.url());
    tells(GatewayOptions::redis(&url, &shared::prefix()), &["database 99", "`databases`"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_and_missing_passwords_are_told_by_name() {
    let password = Some("secret".to_owned());
    let redis = RedisServer::start(RedisOptions { password, ..RedisOptions::default() }).await;
    let address = format!("127.0.0.1:{}", redis.port());
    for (url, word) in [
        (format!("redis://{address}"), "NOAUTH"),
        (format!("redis://:wrong@{address}"), "set user"),
        (format!("redis://nobody:wrong@{address}/?protocol=resp2"), "set user"),
    ] {
        let options = GatewayOptions::redis(&url, &shared::prefix());
        tells(options, &[word, "set user and password"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_against_a_plain_port_and_the_other_way_round_are_told_by_name() {
    let folder = super::support::folder::new();
    tls::authority(folder.path()).await;
    tls::certificate(folder.path(), "server", "IP:127.0.0.1").await;
    let files = TlsFiles { folder: folder.path().to_owned(), asks_clients: false };
    let redis =
        RedisServer::start(RedisOptions { tls: Some(files), ..RedisOptions::default() }).await;
    let authority = folder.path().join("ca.pem").display().to_string();
    let plain = redis.url().replace("redis://", "rediss://");
    let options = GatewayOptions::redis(&plain, &shared::prefix())
        .set_bus("tls", json!({ "caCertificate": authority }));
    tells(options, &["no TLS", "use redis:// in place of rediss://"]).await;
    let secure = redis.tls_url().replace("rediss://", "redis://");
    for query in ["", "/?protocol=resp2"] {
        let options = GatewayOptions::redis(&format!("{secure}{query}"), &shared::prefix());
        tells(options, &["a TLS port, use rediss://"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_a_cluster_that_are_not_reachable_are_told_by_name() {
    let options = ClusterOptions { replicas: 0, ..ClusterOptions::default() };
    let cluster = RedisCluster::with(options).await;
    // As behind NAT: the servers know themselves, and one another, by addresses of their own.
    for node in cluster.nodes() {
        node.cli(&["CONFIG", "SET", "cluster-announce-ip", "127.9.9.9"]).await;
    }
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &shared::prefix());
    tells(options, &["127.9.9.9", "cluster-announce-ip"]).await;
}

/// A password and certificates that are rotated while the gateway runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_rotated_is_read_at_the_next_connection_of_a_cluster() {
    let options = ClusterOptions { replicas: 0, ..ClusterOptions::default() };
    let cluster = RedisCluster::with(options).await;
    let folder = super::support::folder::new();
    let file = folder.path().join("password");
    let set = async |change: &[&str]| {
        for node in cluster.nodes() {
            let mut args = vec!["ACL", "SETUSER", "rotating", "on", "~*", "&*", "+@all"];
            args.extend(change);
            assert_eq!(node.cli(&args).await, "OK");
        }
    };
    set(&[">first"]).await;
    std::fs::write(&file, "first\n").expect("a file");
    let prefix = shared::prefix();
    let secret = json!({ "@type": "File", "filePath": file.display().to_string() });
    let options = || {
        GatewayOptions::redis_cluster(&cluster.urls(), &prefix)
            .set("shards", 3)
            .set_bus("authUsername", "rotating")
            .set_bus("authSecret", secret.clone())
    };
    let (one, two) = two_gateways(options).await;
    for (old, new) in [("first", "second"), ("second", "third")] {
        set(&[&format!("<{old}"), &format!(">{new}")]).await;
        // For a moment the file is not there, as while it is being replaced.
        std::fs::remove_file(&file).expect("a file");
        for node in cluster.nodes() {
            node.cli(&["CLIENT", "KILL", "USER", "rotating"]).await;
        }
        one.is_not_ready(&["set user and password"], LIMIT).await;
        std::fs::write(&file, format!("{new}\n")).expect("a file");
        for gateway in [&one, &two] {
            gateway.health_is("", ServingStatus::Serving, LIMIT).await;
        }
    }
    let log = one.stderr();
    assert!(log.contains("the login at Redis has changed"), "{log}");
    for secret in ["first", "second", "third"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_rotated_is_read_at_the_next_connection() {
    let folder = super::support::folder::new();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let make = async || {
        tls::authority(folder.path()).await;
        tls::certificate(folder.path(), "server", "IP:127.0.0.1").await;
        tls::certificate(folder.path(), "client", "DNS:gateway").await;
    };
    make().await;
    let files = TlsFiles { folder: folder.path().to_owned(), asks_clients: true };
    let redis =
        RedisServer::start(RedisOptions { tls: Some(files), ..RedisOptions::default() }).await;
    let files = json!({
        "caCertificate": path("ca.pem"),
        "clientCertificate": path("client.pem"),
        "clientKey": path("client.key"),
    });
    let prefix = shared::prefix();
    let options = || GatewayOptions::redis(&redis.tls_url(), &prefix).set_bus("tls", files.clone());
    let (one, two) = two_gateways(options).await;
    make().await;
    let set = [
        "CONFIG",
        "SET",
        "tls-cert-file",
        &path("server.pem"),
        "tls-key-file",
        &path("server.key"),
        "tls-ca-cert-file",
        &path("ca.pem"),
    ];
    assert_eq!(redis.cli(&set).await, "OK");
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    until(Duration::from_secs(5), "both are connected again", async || {
        one.stderr().matches("subscribed").count() > 1
            && two.stderr().matches("subscribed").count() > 1
    })
    .await;
    crosses(&one, &two).await;
}

//! Connections to a server: protocol, password, user, socket, database.

use serde_json::json;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    crosses,
    support::{
        Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer,
        gateway::Ready,
        shared::{self, SharedRedis},
    },
    two_gateways,
};

/// Checks that events cross two gateways over this URL, and returns the gateways.
async fn reached_by(url: &str) -> (Gateway, Gateway) {
    let prefix = shared::prefix();
    let (one, two) = two_gateways(|| GatewayOptions::redis(url, &prefix)).await;
    crosses(&one, &two).await;
    (one, two)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_cross_two_gateways() {
    let redis = SharedRedis::get().await;
    let (one, two) = two_gateways(|| GatewayOptions::redis(&redis.url, &redis.prefix)).await;
    crosses(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_url_selects_the_protocol() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    for (query, resp) in [("", "3"), ("?protocol=resp3", "3"), ("?protocol=resp2", "2")] {
        let _gateways = reached_by(&format!("{}/{query}", redis.url())).await;
        let clients = redis.clients().await;
        let subscribers: Vec<_> = clients.iter().filter(|client| client.is_subscriber()).collect();
        assert_eq!(subscribers.len(), 2, "{clients:?}");
        for client in subscribers {
            assert_eq!(client.field("resp"), resp, "{query}: {client:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_of_both_protocols_work_together() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let options = |query: &str| GatewayOptions::redis(&format!("{}{query}", redis.url()), &prefix);
    let (one, two) = tokio::join!(
        Gateway::start(options("?protocol=resp2")),
        Gateway::start(options("?protocol=resp3"))
    );
    crosses(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_the_url_is_used() {
    let options = RedisOptions { password: Some("s3cret".into()), ..RedisOptions::default() };
    let redis = RedisServer::start(options).await;
    let (one, _two) = reached_by(&redis.url()).await;
    assert!(!one.stderr().contains("s3cret"), "{}", one.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_urls_are_accepted() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let _gateways = reached_by(&redis.url().replace("redis://", "valkey://")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redis_of_the_in_memory_store_can_be_shared() {
    let redis = SharedRedis::get().await;
    let options = || {
        GatewayOptions::coordinator(json!({"@type": "Default"}))
            .set("inMemoryStore", json!({"@type": "Redis", "url": redis.url}))
            .set("prefix", redis.prefix.as_str())
    };
    let (one, _) = two_gateways(options).await;
    // It is the same bus as one that is configured directly.
    let other = Gateway::start(GatewayOptions::redis(&redis.url, &redis.prefix)).await;
    crosses(&one, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_can_be_used() {
    let options = RedisOptions {
        unix_socket: true,
        password: Some("s3cret".into()),
        ..RedisOptions::default()
    };
    let redis = RedisServer::start(options).await;
    let _gateways = reached_by(&redis.unix_url()).await;
    let clients = redis.clients().await;
    assert!(
        clients.iter().all(|client| client.field("addr").contains("redis.sock")),
        "{clients:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_url_selects_the_database() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let _gateways = reached_by(&format!("{}/3", redis.url())).await;
    assert_eq!(redis.cli(&["DBSIZE"]).await, "0", "the default database is empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_reported_until_it_is_corrected() {
    let options = RedisOptions { password: Some("right".into()), ..RedisOptions::default() };
    let redis = RedisServer::start(options).await;
    let url = format!("redis://:wr0ng@127.0.0.1:{}", redis.port());
    let options = GatewayOptions::redis(&url, "password").ready(Ready::Listening);
    let gateway = Gateway::start(options).await;
    gateway.stderr_has("WRONGPASS", LIMIT).await;
    assert_eq!(gateway.health("").await.unwrap(), ServingStatus::NotServing);
    let mut client = gateway.client().await;
    let status = client.get_status(trunkline_proto::v1::GetStatusRequest {}).await;
    let reason = status.expect("a status").into_inner().reason;
    assert!(reason.contains("WRONGPASS"), "{reason}");

    redis.cli(&["CONFIG", "SET", "requirepass", "wr0ng"]).await;
    gateway.health_is("", ServingStatus::Serving, LIMIT).await;
    assert!(!gateway.stderr().contains("wr0ng"), "the password is not in the log");
}

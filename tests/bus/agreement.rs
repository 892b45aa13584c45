//! Settings that all gateways of a prefix must have in common; systems of different prefixes are
//! independent.

use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    crosses, ids,
    support::{
        Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events,
        gateway::Ready, shared::SharedRedis,
    },
};

/// `EX_CONFIG` of `sysexits.h`.
const WRONG_CONFIGURATION: i32 = 78;

/// Starts a gateway that refuses to serve, and returns its standard error.
async fn refuses(options: GatewayOptions) -> String {
    let gateway = Gateway::start(options.ready(Ready::Started)).await;
    let ended = gateway.ends(LIMIT).await;
    assert_eq!(ended.status.code(), Some(WRONG_CONFIGURATION), "{}", gateway.stderr());
    gateway.stderr()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_another_shard_count_reports_it_and_exits() {
    let redis = SharedRedis::get().await;
    let options = || GatewayOptions::redis(&redis.url, &redis.prefix);
    let first = Gateway::start(options().set("shards", 4)).await;
    let said = refuses(options().set("shards", 3)).await;
    assert!(said.contains("shards is 3 here"), "{said}");
    assert!(said.contains("set shards to 4 or leave it out"), "{said}");

    // The first is not disturbed; gateways with the same number, or none, join it.
    assert_eq!(first.health("").await.unwrap(), ServingStatus::Serving);
    let same = Gateway::start(options().set("shards", 4)).await;
    let silent = Gateway::start(options()).await;
    let publisher = TestNode::connect(&first, "publisher").await;
    for gateway in [&same, &silent] {
        let node = TestNode::connect(gateway, "node").await;
        let collector = node.subscribe(node.request()).await;
        let prefix = format!("to-{}", gateway.port());
        let positions =
            publisher.publish(events::numbered(&prefix, 40, 40)).await.expect("published");
        assert!(positions.iter().any(|position| position.shard == 3), "all four are in use");
        let mut seen = collector.events(40, LIMIT).await.event_ids;
        seen.sort();
        let mut sent = ids(&prefix, 0..40);
        sent.sort();
        assert_eq!(seen, sent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_another_mode_reports_it_and_exits() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = || GatewayOptions::redis(&redis.url(), "mode");
    let first = Gateway::start(options()).await;
    // The record that gateways of a cluster would have written.
    assert_eq!(redis.cli(&["HGET", "mode:deployment", "mode"]).await, "standalone");
    redis.cli(&["HSET", "mode:deployment", "mode", "sharded"]).await;
    let said = refuses(options()).await;
    assert!(said.contains("standalone") && said.contains("sharded"), "{said}");
    assert!(said.contains("coordinator.@type"), "{said}");
    assert_eq!(first.health("").await.unwrap(), ServingStatus::Serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_is_not_overwritten() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    redis.cli(&["HSET", "unreadable:deployment", "shards", "many"]).await;
    let said = refuses(GatewayOptions::redis(&redis.url(), "unreadable")).await;
    assert!(said.contains("unreadable:deployment"), "{said}");
    assert_eq!(redis.cli(&["HGET", "unreadable:deployment", "shards"]).await, "many");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_prefixes_on_one_redis_are_independent_systems() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = |prefix| GatewayOptions::redis(&redis.url(), prefix);
    let (a, b) = tokio::join!(Gateway::start(options("a")), Gateway::start(options("b")));
    let (a2, b2) = tokio::join!(Gateway::start(options("a")), Gateway::start(options("b")));
    let node = TestNode::connect(&b, "watcher").await;
    let watcher = node.subscribe(node.request()).await;
    crosses(&a, &a2).await;
    let other = TestNode::connect(&b2, "other").await;
    other.publish(events::numbered("own", 1, 1)).await.expect("published");
    assert_eq!(watcher.event("own-0", LIMIT).await.event_ids, ["own-0"]);
}

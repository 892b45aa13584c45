//! What all gateways of a prefix must agree on; and systems of different prefixes, which have nothing to do with each other.

use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    crosses, ids,
    support::{
        Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events,
        gateway::Ready, shared::SharedRedis,
    },
};

/// What `sysexits.h` calls `EX_CONFIG`.
const WRONG_CONFIGURATION: i32 = 78;

/// Starts a gateway that refuses to serve, and returns what it said.
async fn refuses(options: GatewayOptions) -> String {
    let gateway = Gateway::start(options.ready(Ready::Started)).await;
    let ended = gateway.ends(LIMIT).await;
    assert_eq!(ended.status.code(), Some(WRONG_CONFIGURATION), "{}", gateway.stderr());
    gateway.stderr()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_another_shard_count_says_so_and_ends() {
    let redis = SharedRedis::get().await;
    let options = || GatewayOptions::redis(&redis.url, &redis.prefix);
    let first = Gateway::start(options().set("shards", 4)).await;
    let said = refuses(options().set("shards", 3)).await;
    assert!(said.contains("shards is 3 here"), "{said}");
    assert!(said.contains("set shards to 4 or leave it out"), "{said}");

    // The first is not disturbed; and who names the same number, or none, joins it.
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
async fn a_gateway_of_another_mode_says_so_and_ends() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = || GatewayOptions::redis(&redis.url(), "mode");
    let first = Gateway::start(options()).await;
    // As gateways of a cluster would have recorded it.
    assert_eq!(redis.cli(&["HGET", "mode:deployment", "mode"]).await, "standalone");
    redis.cli(&["HSET", "mode:deployment", "mode", "sharded"]).await;
    let said = refuses(options()).await;
    assert!(said.contains("standalone") && said.contains("sharded"), "{said}");
    assert!(said.contains("coordinator.@type"), "{said}");
    assert_eq!(first.health("").await.unwrap(), ServingStatus::Serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_is_not_written_over() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    redis.cli(&["HSET", "strange:deployment", "shards", "many"]).await;
    let said = refuses(GatewayOptions::redis(&redis.url(), "strange")).await;
    assert!(said.contains("strange:deployment"), "{said}");
    assert_eq!(redis.cli(&["HGET", "strange:deployment", "shards"]).await, "many");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_prefixes_on_one_redis_are_two_systems() {
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

//! Keys and fields under the prefix that no gateway wrote: by mistake, or by another version.

use trunkline_proto::v1::Start;

use crate::support::{
    Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode,
    events::{queue_refresh, queue_status, with_id},
    eventually, shared,
};

/// The keys that match.
async fn keys(redis: &RedisServer, pattern: &str) -> Vec<String> {
    redis.command(&["KEYS", pattern]).await.expect("keys")
}

/// Starts a gateway, and uses everything that it reads from Redis.
async fn works(redis: &RedisServer, prefix: &str, id: &str) -> Gateway {
    let gateway = Gateway::start(GatewayOptions::redis(&redis.url(), prefix)).await;
    let node = TestNode::connect(&gateway, format!("n-{id}")).await;
    let collector = node.subscribe(node.request()).await;
    let publisher = TestNode::connect(&gateway, "p").await;
    publisher.publish(vec![with_id(id, queue_refresh())]).await.expect("published");
    collector.event(id, LIMIT).await;
    let oldest = TestNode::connect(&gateway, format!("o-{id}")).await;
    let request =
        trunkline_proto::v1::SubscribeRequest { start: Start::Oldest.into(), ..oldest.request() };
    oldest.subscribe(request).await.event(id, LIMIT).await;
    let mut client = node.client.clone();
    client.list_nodes(trunkline_proto::v1::ListNodesRequest::default()).await.expect("a list");
    gateway
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_and_works_whatever_odd_fields_and_keys_are_under_its_prefix() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let first = works(&redis, &prefix, "first").await;
    let publisher = TestNode::connect(&first, "p").await;
    publisher.publish(vec![with_id("status", queue_status())]).await.expect("published");
    // Some are written a while after the start.
    let names = [":retained", ":state", ":heads", ":deployment", ":marks", ":history"];
    let all = eventually(LIMIT, "all keys", async || {
        let all = keys(&redis, &format!("{prefix}*")).await;
        let is_there = |name: &str| all.iter().any(|key| key.ends_with(name));
        names.into_iter().all(is_there).then_some(all)
    })
    .await;
    let of = |name: &str| all.iter().find(|key| key.ends_with(name)).expect("a key").clone();
    let (retained, state) = (of(":retained"), of(":state"));
    let hashes = [of(":heads"), of(":deployment"), state.clone(), retained.clone()];
    let put = async |args: &[&str]| {
        redis
            .command::<redis::Value>(args)
            .await
            .unwrap_or_else(|error| panic!("{args:?}: {error}"));
    };
    for hash in &hashes {
        for (field, value) in [
            ("foreign", "7-3 event"),
            ("", ""),
            ("999", "x"),
            ("-1", "7-3 event"),
            ("00000000000000ff", "no record"),
            ("\u{1b}[2J", "\u{0}"),
        ] {
            put(&["HSET", hash, field, value]).await;
        }
    }
    // Another kind's event, and one that is none, as the last value of a kind.
    put(&["HSET", &retained, "10", "7-3 "]).await;
    put(&["HSET", &retained, "18", "99-99 garbage"]).await;
    put(&["RPUSH", &of(":marks"), "garbage"]).await;
    let base = state.strip_suffix("state").expect("a name");
    put(&["SET", &format!("{base}request:foreign"), "garbage"]).await;
    put(&["SET", &format!("{prefix}:foreign"), "garbage"]).await;
    // Under a time of day, far behind what gateways write.
    let _ =
        redis.command::<redis::Value>(&["XADD", &of(":history"), "*", "a", "b", "c", "d"]).await;
    let second = works(&redis, &prefix, "second").await;
    second.stderr_has("fields that no gateway of this version wrote are skipped", LIMIT).await;
    let metrics = second.admin("/metrics").await;
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("trunkline_bus_unreadable_messages_total "));
    assert!(line.expect("a metric").parse::<f64>().expect("a number") >= 4.0, "{line:?}");
    // The key itself is of another type.
    put(&["DEL", &retained]).await;
    put(&["SET", &retained, "garbage"]).await;
    works(&redis, &prefix, "third").await.stderr_has("are skipped", LIMIT).await;
}

//! Limits of Redis on the size of a command, `proto-max-bulk-len` and `client-query-buffer-limit`:
//! known before, and no reason for a shard to stand still.

use serde_json::json;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use super::support::{
    Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode,
    events::{large, numbered, with_id},
    gateway::trunkline,
    shared,
};

const MIB: usize = 1 << 20;

fn options(redis: &RedisServer) -> GatewayOptions {
    GatewayOptions::redis(&redis.url(), &shared::prefix())
        .set("shards", 1)
        .set("limits", json!({ "maxEventBytes": "4MiB", "maxRequestBytes": "16MiB" }))
}

/// The event is refused with its name and the limit, at once, and the gateway stays ready.
async fn refuses(gateway: &Gateway, node: &TestNode, bytes: usize) {
    let events = vec![large(1000), large(bytes), large(1000)];
    let refused = node.publish(events).await.expect_err("too large");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().expect("details").reason, "PAYLOAD_TOO_LARGE");
    let limit: usize =
        details.error_info().expect("an ErrorInfo").metadata["limit"].parse().expect("a number");
    assert!((MIB * 3 / 4..=MIB).contains(&limit), "{limit}");
    let field = &details.bad_request().expect("a field").field_violations[0].field;
    assert_eq!(field, "events[1]");
    assert_eq!(gateway.health("").await.expect("a health"), ServingStatus::Serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_with_small_limits_takes_what_it_can_and_the_rest_is_refused_at_once() {
    for setting in ["--proto-max-bulk-len", "--client-query-buffer-limit"] {
        let args = [setting, "1mb"].map(str::to_owned).to_vec();
        let redis = RedisServer::start(RedisOptions { args, ..RedisOptions::default() }).await;
        let options = options(&redis);
        let gateway = Gateway::start(options.clone()).await;
        let node = TestNode::connect(&gateway, "node").await;
        let subscriber = TestNode::connect(&gateway, "subscriber").await;
        let stream = subscriber.subscribe(subscriber.request()).await;
        // Many events that are small make frames that are small.
        let batch: Vec<_> = (0..100).map(|n| with_id(format!("e-{n}"), large(60 << 10))).collect();
        let id = "0190d2a0-0000-7000-8000-000000000007";
        let first = node.publish_as(id, batch.clone()).await.expect("published");
        let again = node.publish_as(id, batch).await.expect("the same again");
        assert_eq!(first, again);
        // One that just fits, and some that do not.
        node.publish(vec![with_id("fits", large(800 << 10))]).await.expect("published");
        for bytes in [MIB, 2 * MIB, 4 * MIB - 4096] {
            refuses(&gateway, &node, bytes).await;
        }
        node.publish(numbered("last", 1, 1)).await.expect("published");
        let mut expected: Vec<_> = (0..100).map(|n| format!("e-{n}")).collect();
        expected.extend(["fits".to_owned(), "last-0".to_owned()]);
        assert_eq!(stream.event("last-0", LIMIT).await.event_ids, expected, "{setting}");
        // Known before the first event: by `doctor`.
        let file = gateway.config_file().display().to_string();
        let doctor = trunkline(["doctor", "--config", &file]).run(LIMIT).await;
        let said = format!("{}{}", doctor.stdout, doctor.stderr);
        for word in ["proto-max-bulk-len", "client-query-buffer-limit", "limits.maxEventBytes"] {
            assert!(said.contains(word), "{setting}: {said}");
        }
        assert!(gateway.stderr().contains("limits.maxEventBytes"), "{}", gateway.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_lowered_later_are_found_and_hold_up_nothing() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = Gateway::start(options(&redis)).await;
    let node = TestNode::connect(&gateway, "node").await;
    let subscriber = TestNode::connect(&gateway, "subscriber").await;
    let stream = subscriber.subscribe(subscriber.request()).await;
    node.publish(vec![with_id("large", large(2 * MIB))]).await.expect("published");
    stream.event("large", LIMIT).await;
    redis.cli(&["CONFIG", "SET", "proto-max-bulk-len", "1mb"]).await;
    let other = TestNode::connect(&gateway, "other").await;
    // The first one finds out; others are published meanwhile.
    let (refused, small) = tokio::join!(
        node.publish(vec![with_id("too-large", large(2 * MIB))]),
        other.publish(numbered("small", 1, 1)),
    );
    let refused = refused.expect_err("too large");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    small.expect("published");
    refuses(&gateway, &node, 2 * MIB).await;
    node.publish(numbered("last", 1, 1)).await.expect("published");
    let seen = stream.event("last-0", LIMIT).await.event_ids;
    assert_eq!(seen, ["large", "small-0", "last-0"]);
    gateway.health_is("", ServingStatus::Serving, LIMIT).await;
}

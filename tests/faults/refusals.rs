//! A Redis that answers with errors, and gateways with different settings.

use std::time::Duration;

use tonic::Code;
use tonic_types::StatusExt;
use trunkline_proto::v1::GetStatusRequest;

use crate::{
    load::{Load, Shape},
    pair,
    redis::{not_serving, serving},
    report::Report,
    seconds,
    support::{
        events,
        gateway::{Gateway, GatewayOptions, Ready},
        nodes::TestNode,
        redis::{RedisOptions, RedisServer, cli},
        shared,
        wait::until,
    },
};

/// A Redis user of the test that no fault concerns.
const OPERATOR: &str = "redis://operator:operator@127.0.0.1";

/// Makes Redis refuse with the commands `refuse`, and heals it with `heal`. The gateways must
/// report Redis' own error text, and nothing that was acknowledged may be lost.
async fn refused(fault: &str, says: &str, refuse: &[&[&str]], heal: &[&[&str]]) {
    let redis = RedisServer::start(RedisOptions::default()).await;
    redis.cli(&["ACL", "SETUSER", "operator", "on", ">operator", "~*", "&*", "+@all"]).await;
    let operator = format!("{OPERATOR}:{}", redis.port());
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix()).set_bus("timeout", "1s");
    let (one, two) = pair(options).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for command in refuse {
        cli(&operator, command).await;
    }
    not_serving([&one, &two]).await;
    let down = load.now();
    let status = one.client().await.get_status(GetStatusRequest {}).await.expect("a status");
    let why = status.into_inner().reason;
    assert!(why.contains(says), "the status names the cause: {why}");
    let node = TestNode::connect(&one, "one-more").await;
    let error = node.publish(vec![events::queue_refresh()]).await.expect_err("no OK");
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    let reason = error.get_details_error_info().expect("details").reason;
    assert_eq!(reason, "BUS_UNAVAILABLE", "{error:?}");
    assert!(error.message().contains(says), "the error names the cause: {error:?}");
    load.was_down_since(down);
    for command in heal {
        cli(&operator, command).await;
    }
    let healed = load.now();
    serving([&one, &two]).await;
    load.publishes(300).await;
    let history = load.finish().await;
    Report::of(fault, &history).healed(healed).check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_redis_is_out_of_memory() {
    refused(
        "Redis out of memory (OOM)",
        "OOM",
        &[
            &["CONFIG", "SET", "maxmemory-policy", "noeviction"],
            &["CONFIG", "SET", "maxmemory", "1"],
        ],
        &[&["CONFIG", "SET", "maxmemory", "0"]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_redis_is_a_replica() {
    refused(
        "Redis is made a replica (READONLY)",
        "READONLY",
        // A master that does not exist: the replica keeps its data.
        &[&["REPLICAOF", "127.0.0.1", "1"]],
        &[&["REPLICAOF", "NO", "ONE"]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_redis_requires_a_password() {
    refused(
        "Redis demands a password (NOAUTH)",
        "NOAUTH",
        &[
            &["ACL", "SETUSER", "default", "resetpass", ">secret"],
            &["CLIENT", "KILL", "USER", "default"],
        ],
        &[&["ACL", "SETUSER", "default", "nopass"]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_redis_denies_the_script() {
    refused(
        "Redis revokes the right (NOPERM)",
        "NOPERM",
        &[&["ACL", "SETUSER", "default", "-evalsha"]],
        &[&["ACL", "SETUSER", "default", "+evalsha"]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_redis_forgets_its_scripts() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = crate::pair_on(&redis).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for _ in 0..seconds(10, 3).as_secs() * 5 {
        redis.cli(&["SCRIPT", "FLUSH"]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let history = load.finish().await;
    Report::of("SCRIPT FLUSH, five times a second", &history).check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_redis_evicts_the_state_of_a_shard() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let (one, two) = pair(GatewayOptions::redis(&redis.url(), &prefix)).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    // Redis evicts any key; the worst one holds epoch and offset.
    let states = redis.cli(&["KEYS", &format!("{prefix}:*:state")]).await;
    for key in states.lines() {
        redis.cli(&["DEL", key]).await;
    }
    let healed = load.now();
    load.publishes(500).await;
    let history = load.finish().await;
    Report::of("the state of a shard evicted", &history).healed(healed).check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_another_shard_count_refuses_to_start_and_says_why() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    let first = Gateway::start(options.clone().set("shards", 2)).await;
    let other = Gateway::start(options.set("shards", 3).ready(Ready::Started)).await;
    let ended = other.ends(Duration::from_secs(10)).await;
    assert_eq!(ended.status.code(), Some(78), "a configuration that cannot be used");
    let said = other.stderr();
    assert!(said.contains("shards") && said.contains('2') && said.contains('3'), "{said}");
    until(Duration::from_secs(1), "the first still serves", async || {
        let node = TestNode::connect(&first, "node").await;
        node.publish(vec![events::queue_refresh()]).await.is_ok()
    })
    .await;
}

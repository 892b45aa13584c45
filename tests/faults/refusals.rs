//! A Redis that answers, and refuses; and gateways that do not agree.

use std::time::Duration;

use tonic::Code;
use tonic_types::StatusExt;
use trunkline_proto::v1::GetStatusRequest;

use crate::{
    load::{Load, Shape},
    pair,
    redis::{noticed, serving},
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

/// A user of the test's own, whom no fault concerns.
const OPERATOR: &str = "redis://operator:operator@127.0.0.1";

/// Redis is made to refuse by `refuse`, and healed by `heal`. The gateways say what Redis says, and nothing that was
/// acknowledged is lost.
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
    noticed([&one, &two]).await;
    let down = load.now();
    let status = one.client().await.get_status(GetStatusRequest {}).await.expect("a status");
    let why = status.into_inner().reason;
    assert!(why.contains(says), "the status says why: {why}");
    let node = TestNode::connect(&one, "one-more").await;
    let error = node.publish(vec![events::queue_refresh()]).await.expect_err("no OK");
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    let reason = error.get_details_error_info().expect("details").reason;
    assert_eq!(reason, "BUS_UNAVAILABLE", "{error:?}");
    assert!(error.message().contains(says), "the error says why: {error:?}");
    load.was_down_since(down);
    for command in heal {
        cli(&operator, command).await;
    }
    let healed = load.now();
    serving([&one, &two]).await;
    load.publishes(300).await;
    let history = load.finish().await;
    Report::of(fault, &history).healed(healed).judge_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_out_of_memory() {
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
async fn redis_may_not_be_written_to() {
    refused(
        "Redis is made a replica (READONLY)",
        "READONLY",
        // A master that is not there: the replica keeps what it has.
        &[&["REPLICAOF", "127.0.0.1", "1"]],
        &[&["REPLICAOF", "NO", "ONE"]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_wants_a_password_all_of_a_sudden() {
    refused(
        "Redis wants a password (NOAUTH)",
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
async fn redis_takes_the_right_to_write_away() {
    refused(
        "Redis takes the right away (NOPERM)",
        "NOPERM",
        &[&["ACL", "SETUSER", "default", "-evalsha"]],
        &[&["ACL", "SETUSER", "default", "+evalsha"]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_forgets_its_scripts() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = crate::pair_on(&redis).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for _ in 0..seconds(10, 3).as_secs() * 5 {
        redis.cli(&["SCRIPT", "FLUSH"]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let history = load.finish().await;
    Report::of("SCRIPT FLUSH, five times a second", &history).judge_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_evicts_what_the_gateways_keep() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let (one, two) = pair(GatewayOptions::redis(&redis.url(), &prefix)).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    // Eviction takes one key or another; the worst is the one that numbers the events.
    let states = redis.cli(&["KEYS", &format!("{prefix}:*:state")]).await;
    for key in states.lines() {
        redis.cli(&["DEL", key]).await;
    }
    let healed = load.now();
    load.publishes(500).await;
    let history = load.finish().await;
    Report::of("the state of a shard evicted", &history).healed(healed).judge_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_another_shard_count_says_why_and_does_not_serve() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    let first = Gateway::start(options.clone().set("shards", 2)).await;
    let other = Gateway::start(options.set("shards", 3).ready(Ready::Started)).await;
    let ended = other.ends(Duration::from_secs(10)).await;
    assert_eq!(ended.status.code(), Some(78), "a configuration that cannot be used");
    let said = other.stderr();
    assert!(said.contains("shards") && said.contains('2') && said.contains('3'), "{said}");
    until(Duration::from_secs(1), "the first serves on", async || {
        let node = TestNode::connect(&first, "node").await;
        node.publish(vec![events::queue_refresh()]).await.is_ok()
    })
    .await;
}

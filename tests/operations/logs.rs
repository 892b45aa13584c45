//! The log of a real gateway: one line for each change of state, in text and in JSON, and no line
//! for an event.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::support::{
    Data, Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer, TestNode,
    events::{mailbox_change, numbered, with_id},
    wait::until,
};
use serde_json::{Value, json};
use tonic_health::pb::health_check_response::ServingStatus;
use trunkline_proto::v1::SubscribeRequest;

/// The JSON lines of a gateway's log. The text at its start is left out.
fn lines(gateway: &Gateway) -> Vec<Value> {
    let log = gateway.stderr();
    log.lines()
        .filter(|line| line.starts_with('{'))
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

fn count(lines: &[Value], message: &str) -> usize {
    lines.iter().filter(|line| line["message"] == message).count()
}

/// The first line with this message.
fn line<'a>(lines: &'a [Value], message: &str) -> &'a Value {
    let found = lines.iter().find(|line| line["message"] == message);
    found.unwrap_or_else(|| panic!("no {message:?} in {lines:#?}"))
}

/// Streams open and end, Redis is killed and restarted, and the gateway drains.
async fn scenario(redis: &RedisServer, options: GatewayOptions) -> Gateway {
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let publisher = TestNode::connect(&gateway, "n2").await;
    let limited = SubscribeRequest { max_events: 500, ..node.request() };
    let limited = node.subscribe(limited).await;
    let stream = node.subscribe(node.request()).await;
    for batch in numbered("e", 500, 5).chunks(50) {
        publisher.publish(batch.to_vec()).await.unwrap();
    }
    limited.end(LIMIT).await.unwrap();
    stream.events(500, LIMIT).await;

    redis.kill_9();
    gateway.health_is("", ServingStatus::NotServing, LIMIT).await;
    redis.restart(Data::Wiped).await;
    gateway.health_is("", ServingStatus::Serving, LIMIT).await;
    publisher.publish(vec![with_id("after", mailbox_change("a", 1))]).await.unwrap();
    stream.event("after", LIMIT).await;
    drop(stream);
    until(LIMIT, "the stream's end is in the log", async || {
        gateway.stderr().contains("the client disconnected")
    })
    .await;
    let last = node.subscribe(node.request()).await;
    gateway.terminate(LIMIT).await;
    last.end(LIMIT).await.unwrap_err();
    gateway
}

fn options(redis: &RedisServer, format: &str) -> GatewayOptions {
    GatewayOptions::redis(&redis.url(), "logs")
        .set("logFormat", format)
        .set("gatewayId", "gw-1")
        .set("drain", json!({ "spread": "0s" }))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_of_state_is_one_json_line() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = scenario(&redis, options(&redis, "json")).await;
    let lines = lines(&gateway);
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "{field} of {line}");
        }
        assert!(["INFO", "WARN"].contains(&line["level"].as_str().unwrap()), "{line}");
    }
    for (message, expected) in [
        ("starting", 1),
        ("listening", 1),
        ("the admin port listens", 1),
        ("agreed with the deployment", 1),
        ("subscription lost", 1),
        ("subscribed", 2),
        ("stream opened", 3),
        ("stream closed", 3),
        ("draining", 1),
        ("drained", 1),
        ("stopped", 1),
    ] {
        assert_eq!(count(&lines, message), expected, "{message}: {lines:#?}");
    }
    let lost = count(&lines, "the bus is not verified any more");
    assert!(lost > 0);
    assert_eq!(count(&lines, "the bus is verified"), lost + 1, "one line for each change");
    let first = line(&lines, "starting");
    assert_eq!((&first["gateway_id"], &first["level"]), (&json!("gw-1"), &json!("INFO")));
    let config: Value = serde_json::from_str(first["config"].as_str().unwrap()).unwrap();
    assert_eq!(config["logFormat"], "json");
    assert!(line(&lines, "the bus is not verified any more")["why"].is_string());
    let closed: Vec<_> = lines.iter().filter(|line| line["message"] == "stream closed").collect();
    let reasons: Vec<_> = closed.iter().map(|line| line["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["max_events is reached", "the client disconnected", "DRAINING"]);
    assert_eq!((&closed[0]["node"], &closed[0]["events"]), (&json!("n1"), &json!(500)));
    assert_eq!(closed[1]["events"], 501);
    // 551 events and a dozen requests made no line.
    assert!(lines.len() < 45, "{} lines: {lines:#?}", lines.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn text_lines_have_the_same_content_and_no_secret() {
    let password = Some("hunter2".to_owned());
    let redis = RedisServer::start(RedisOptions { password, ..RedisOptions::default() }).await;
    let gateway = Gateway::start(options(&redis, "text")).await;
    let node = TestNode::connect(&gateway, "n1").await;
    drop(node.subscribe(node.request()).await);
    until(LIMIT, "the stream's end is in the log", async || {
        gateway.stderr().contains("stream closed")
    })
    .await;
    gateway.terminate(LIMIT).await;
    let log = gateway.stderr();
    for expected in [
        "INFO trunkline::gateway: starting version=\"0.1.0\" gateway_id=\"gw-1\" config={",
        "the bus is verified",
        "stream opened node=\"n1\"",
        "stream closed node=\"n1\"",
        "draining streams=0",
        "stopped",
    ] {
        assert_eq!(log.matches(expected).count(), 1, "{expected}: {log}");
    }
    assert!(log.contains("redis://:***@") && !log.contains("hunter2"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_streams_are_limited_and_suppressed_ones_are_counted() {
    let options = GatewayOptions::embedded().set("logFormat", "json");
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "n1").await;
    for _ in 0..400 {
        let request = SubscribeRequest { heartbeat_interval: None, ..node.request() };
        let mut stream = node.stream(request).await.unwrap();
        stream.message().await.unwrap().unwrap();
    }
    gateway.terminate(LIMIT).await;
    let lines = lines(&gateway);
    let suppressed = |field: &str| -> u64 {
        let suppressed =
            lines.iter().filter(|l| l["message"] == "log lines of streams were suppressed");
        suppressed.map(|line| line[field].as_u64().unwrap()).sum()
    };
    for (message, field) in [("stream opened", "opened"), ("stream closed", "closed")] {
        let written = count(&lines, message);
        assert!(written <= 400 && suppressed(field) > 0, "{written} lines");
        assert_eq!(
            written as u64 + suppressed(field),
            400,
            "{message}: suppressed lines are counted"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_on_a_stream_is_one_line() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), "logs")
        .set("logFormat", "json")
        .set("log", json!({ "maxEvents": 100 }))
        .set("history", json!({ "maxFrames": 20 }));
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let publisher = TestNode::connect(&gateway, "n2").await;
    let stream = node.subscribe(node.request()).await;
    publisher.publish(numbered("e", 1, 5)).await.unwrap();
    stream.events(1, LIMIT).await;
    let resume_token = stream.last_token();
    drop(stream);
    // More than history and the log hold.
    for batch in numbered("f", 500, 5).chunks(10) {
        publisher.publish(batch.to_vec()).await.unwrap();
    }
    let late = node.subscribe(SubscribeRequest { resume_token, ..node.request() }).await;
    let missed = late.gap(LIMIT).await.missed_events;
    drop(late);
    gateway.terminate(LIMIT).await;
    let lines = lines(&gateway);
    assert_eq!(count(&lines, "gap sent"), 1, "{lines:#?}");
    let gap = line(&lines, "gap sent");
    assert_eq!((&gap["node"], &gap["shard"]), (&json!("n1"), &json!("0")), "{gap}");
    assert_eq!((&gap["reason"], &gap["missed"]), (&json!("history expired"), &json!(missed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_fault_is_one_line() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    redis.kill_9();
    let options = GatewayOptions::redis(&redis.url(), "logs").set("logFormat", "json");
    let gateway = Gateway::start(options.ready(Ready::Listening)).await;
    gateway.stderr_has("waiting for Redis", LIMIT).await;
    // The gateway tries to connect twice a second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(count(&lines(&gateway), "waiting for Redis"), 1);
    redis.restart(Data::Wiped).await;
    gateway.health_is("", ServingStatus::Serving, LIMIT).await;
}

//! A bus that is down, or does not answer: what a node is told, and what it can rely on when it tries again.

use std::time::{Duration, Instant};

use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use trunkline_proto::v1::SubscribeRequest;
use uuid::Uuid;

use crate::{
    support::{
        Data, Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer, TestNode,
        events::numbered, shared,
    },
    told::{Told, told},
};

/// How long a `Publish` may wait for the bus here.
const TIMEOUT: Duration = Duration::from_millis(1500);

fn options(redis: &RedisServer) -> GatewayOptions {
    GatewayOptions::redis(&redis.url(), &shared::prefix()).set_bus("timeout", "1500ms")
}

fn may_be_retried(told: &Told) {
    assert!(told.retry.is_some_and(|retry| !retry.is_zero() && retry < LIMIT), "{told:?}");
}

#[tokio::test]
async fn a_bus_that_is_down_is_told_within_the_timeout() {
    // What it acknowledged is on disk: it may be killed the moment after.
    let args = vec!["--appendfsync".into(), "always".into()];
    let durable = RedisOptions { append_only: true, args, ..Default::default() };
    let redis = RedisServer::start(durable).await;
    let gateway = Gateway::start(options(&redis)).await;
    let (publisher, subscriber) =
        (TestNode::connect(&gateway, "p").await, TestNode::connect(&gateway, "s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    publisher.publish(numbered("a", 3, 1)).await.unwrap();
    collector.events(3, LIMIT).await;

    redis.kill_9();
    // Until the gateway has noticed, it may send what never arrives, and then it cannot know.
    gateway.health_is("", ServingStatus::NotServing, LIMIT).await;
    let begin = Instant::now();
    let status = publisher.publish(numbered("never", 3, 1)).await.unwrap_err();
    let took = begin.elapsed();
    may_be_retried(&told(&status, Code::Unavailable, "BUS_UNAVAILABLE"));
    assert!(took < TIMEOUT + Duration::from_secs(1), "{took:?}");

    // A stream that is open stays, and no new one is promised anything.
    let refused = async || {
        let status = subscriber.stream(subscriber.request()).await.err()?;
        (status.code() == Code::Unavailable).then_some(status)
    };
    let status = crate::support::eventually(LIMIT, "a refusal", refused).await;
    may_be_retried(&told(&status, Code::Unavailable, "BUS_UNAVAILABLE"));
    assert!(collector.with(|recording| recording.ended().is_none()));

    redis.restart(Data::Kept).await;
    let id = Uuid::new_v4();
    let retried =
        async || publisher.publish_as(id, numbered("b", 3, 1)).await.map_err(|e| e.to_string());
    crate::support::wait::attempt(LIMIT, "the bus is back", retried).await;
    collector.events(6, LIMIT).await;
    assert_eq!(collector.event_ids(), ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]);
    assert!(collector.with(|recording| recording.gaps().is_empty()), "nothing was lost");
}

#[tokio::test]
async fn a_bus_that_was_never_there_is_told_at_once() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    redis.kill_9();
    let gateway = Gateway::start(options(&redis).ready(Ready::Listening)).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let begin = Instant::now();
    let status = node.publish(numbered("e", 1, 1)).await.unwrap_err();
    may_be_retried(&told(&status, Code::Unavailable, "BUS_UNAVAILABLE"));
    let status = node.stream(node.request()).await.unwrap_err();
    may_be_retried(&told(&status, Code::Unavailable, "BUS_UNAVAILABLE"));
    assert!(begin.elapsed() < TIMEOUT, "{:?}", begin.elapsed());
    // What is wrong with a request is told first: it stays wrong.
    let status = node.publish(vec![]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_outcome_that_is_not_known_is_told_and_the_retry_publishes_once() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = Gateway::start(options(&redis)).await;
    let (publisher, subscriber) =
        (TestNode::connect(&gateway, "p").await, TestNode::connect(&gateway, "s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    // The connection that writes is there and in order.
    publisher.publish(numbered("a", 1, 1)).await.unwrap();
    collector.events(1, LIMIT).await;

    redis.pause().await;
    let id = Uuid::new_v4();
    let begin = Instant::now();
    let status = publisher.publish_as(id, numbered("b", 3, 1)).await.unwrap_err();
    let told = told(&status, Code::Unavailable, "OUTCOME_UNKNOWN");
    may_be_retried(&told);
    assert!(told.message.contains("request_id"), "{told:?}");
    assert!(begin.elapsed() < TIMEOUT + Duration::from_secs(1), "{:?}", begin.elapsed());

    redis.resume();
    let retried =
        async || publisher.publish_as(id, numbered("b", 3, 1)).await.map_err(|e| e.to_string());
    crate::support::wait::attempt(LIMIT, "the bus is back", retried).await;
    publisher.publish(numbered("c", 1, 1)).await.unwrap();
    let recording = collector.event("c-0", LIMIT).await;
    assert_eq!(recording.event_ids, ["a-0", "b-0", "b-1", "b-2", "c-0"]);
    let request = SubscribeRequest { resume_token: collector.last_token(), ..subscriber.request() };
    assert!(subscriber.subscribe(request).await.subscribed().await.resumed);
}

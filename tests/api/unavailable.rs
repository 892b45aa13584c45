//! A bus that is down or does not answer: the errors that nodes get, and what retries rely on.

use std::time::{Duration, Instant};

use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use trunkline_proto::v1::SubscribeRequest;
use uuid::Uuid;

use crate::{
    error_details::{ErrorDetails, error_details},
    support::{
        Data, Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer, TestNode,
        events::numbered, shared,
    },
};

/// How long a `Publish` may wait for the bus here.
const TIMEOUT: Duration = Duration::from_millis(1500);

fn options(redis: &RedisServer) -> GatewayOptions {
    GatewayOptions::redis(&redis.url(), &shared::prefix()).set_bus("timeout", "1500ms")
}

fn may_be_retried(error_details: &ErrorDetails) {
    assert!(
        error_details.retry.is_some_and(|retry| !retry.is_zero() && retry < LIMIT),
        "{error_details:?}"
    );
}

#[tokio::test]
async fn a_publish_fails_within_the_timeout_while_the_bus_is_down() {
    // Whatever it acknowledged is on disk: it may be killed at once.
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
    // Until the gateway notices, it may send an append that never arrives: the outcome is unknown.
    gateway.health_is("", ServingStatus::NotServing, LIMIT).await;
    let begin = Instant::now();
    let status = publisher.publish(numbered("never", 3, 1)).await.unwrap_err();
    let took = begin.elapsed();
    may_be_retried(&error_details(&status, Code::Unavailable, "BUS_UNAVAILABLE"));
    assert!(took < TIMEOUT + Duration::from_secs(1), "{took:?}");

    // A stream that is open stays, and no new one is promised anything.
    let refused = async || {
        let status = subscriber.stream(subscriber.request()).await.err()?;
        (status.code() == Code::Unavailable).then_some(status)
    };
    let status = crate::support::eventually(LIMIT, "a refusal", refused).await;
    may_be_retried(&error_details(&status, Code::Unavailable, "BUS_UNAVAILABLE"));
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
async fn requests_fail_at_once_while_the_bus_has_never_started() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    redis.kill_9();
    let gateway = Gateway::start(options(&redis).ready(Ready::Listening)).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let begin = Instant::now();
    let status = node.publish(numbered("e", 1, 1)).await.unwrap_err();
    may_be_retried(&error_details(&status, Code::Unavailable, "BUS_UNAVAILABLE"));
    let status = node.stream(node.request()).await.unwrap_err();
    may_be_retried(&error_details(&status, Code::Unavailable, "BUS_UNAVAILABLE"));
    assert!(begin.elapsed() < TIMEOUT, "{:?}", begin.elapsed());
    // Violations are reported first: retrying does not help.
    let status = node.publish(vec![]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_unknown_outcome_is_reported_and_the_retry_publishes_once() {
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
    let error_details = error_details(&status, Code::Unavailable, "OUTCOME_UNKNOWN");
    may_be_retried(&error_details);
    assert!(error_details.message.contains("request_id"), "{error_details:?}");
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

//! Draining: nodes are sent to other gateways, nothing is lost, and the gateway ends in time even
//! if clients stay.

use std::time::Duration;

use serde_json::json;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use trunkline_proto::v1::SubscribeRequest;

use crate::{
    deployment::Deployment,
    error_details::error_details,
    health::{next, watch},
    support::{
        Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer, Seen, TestNode,
        events::{self, numbered},
        shared,
    },
};

fn is_draining(status: &Status) {
    let error_details = error_details(status, Code::Unavailable, "DRAINING");
    assert!(error_details.retry.is_some_and(|retry| retry < LIMIT), "{error_details:?}");
}

#[tokio::test]
async fn draining_notifies_streams_and_ends_while_they_are_open() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("n1").await;
    let mut collectors = Vec::new();
    for _ in 0..20 {
        collectors.push(node.subscribe(node.request()).await);
    }
    let mut watched = watch(&deployment.gateway, "").await;
    let mut strange = watch(&deployment.gateway, "no.such.Service").await;
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    assert_eq!(next(&mut strange).await, Some(ServingStatus::ServiceUnknown));
    deployment.node("n2").await.publish(numbered("e", 3, 1)).await.unwrap();
    for collector in &collectors {
        collector.events(3, LIMIT).await;
    }

    let ended = deployment.gateway.terminate(LIMIT).await;
    assert!(ended.status.success(), "{ended:?}");
    // A second of spread, and some time to close.
    assert!(ended.took < Duration::from_secs(5), "{ended:?}");
    for collector in collectors {
        is_draining(&collector.end(LIMIT).await.unwrap_err());
        let recording = collector.recording();
        let draining = recording.draining().expect("a farewell");
        assert!(!draining.reason.is_empty() && draining.deadline.is_some());
        assert!(draining.reconnect_delay.is_some());
        assert!(matches!(recording.seen[recording.seen.len() - 2], Seen::Draining(_)));
        assert_eq!(recording.event_ids.len(), 3);
    }
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    assert_eq!(next(&mut watched).await, None);
    assert_eq!(next(&mut strange).await, None);
}

#[tokio::test]
async fn draining_refuses_new_requests() {
    let drain = json!({ "spread": "3s", "timeout": "10s" });
    let deployment = Deployment::embedded_with(|options| options.set("drain", drain)).await;
    let node = deployment.node("n1").await;
    let mut collectors = Vec::new();
    for _ in 0..20 {
        collectors.push(node.subscribe(node.request()).await);
    }
    let mut watched = watch(&deployment.gateway, "").await;
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    deployment.gateway.signal_term();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    is_draining(&node.publish(numbered("e", 1, 1)).await.unwrap_err());
    is_draining(&node.stream(node.request()).await.unwrap_err());
    // On a new connection too.
    is_draining(&deployment.node("n2").await.stream(node.request()).await.unwrap_err());
    for collector in &collectors {
        is_draining(&collector.end(LIMIT).await.unwrap_err());
    }
    assert!(deployment.gateway.ends(LIMIT).await.status.success());
}

#[tokio::test]
async fn draining_serves_for_the_delay_while_health_reports_not_serving() {
    let drain = json!({ "delay": "1500ms", "spread": "0s", "timeout": "1s" });
    let deployment = Deployment::embedded_with(|options| options.set("drain", drain)).await;
    let (publisher, subscriber) = (deployment.node("p").await, deployment.node("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let mut watched = watch(&deployment.gateway, "").await;
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    deployment.gateway.signal_term();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    publisher.publish(numbered("late", 1, 1)).await.expect("it still serves");
    collector.events(1, LIMIT).await;
    is_draining(&collector.end(LIMIT).await.unwrap_err());
    assert!(deployment.gateway.ends(LIMIT).await.status.success());
}

#[tokio::test]
async fn a_reader_that_stalls_does_not_delay_the_end() {
    let drain = json!({ "spread": "0s", "timeout": "1s" });
    let deployment = Deployment::embedded_with(|options| options.set("drain", drain)).await;
    let (publisher, subscriber) = (deployment.node("p").await, deployment.node("s").await);
    let stuck = subscriber.stream(subscriber.request()).await.unwrap();
    // 24 MiB: the windows of a connection are some 2 MiB.
    for _ in 0..40 {
        publisher.publish(vec![events::large(60 << 10); 10]).await.unwrap();
    }
    let ended = deployment.gateway.terminate(LIMIT).await;
    assert!(ended.status.success() && ended.took < Duration::from_secs(6), "{ended:?}");
    drop(stuck);
}

#[tokio::test]
async fn nodes_resume_on_another_gateway_with_their_tokens() {
    let deployment = Deployment::redis().await;
    let publisher = TestNode::connect(deployment.other(), "p").await;
    let subscriber = deployment.node("s").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    let mut sent = Vec::new();
    let publish = async |name: &str| {
        publisher.publish(numbered(name, 20, 5)).await.unwrap();
    };
    for n in 0..5 {
        publish(&format!("before{n}")).await;
        sent.extend((0..20).map(|i| format!("before{n}-{i}")));
    }
    deployment.gateway.signal_term();
    let mut n = 0;
    // While it drains.
    while collector.with(|recording| recording.ended().is_none()) {
        publish(&format!("while{n}")).await;
        sent.extend((0..20).map(|i| format!("while{n}-{i}")));
        n += 1;
    }
    is_draining(&collector.end(LIMIT).await.unwrap_err());
    assert!(deployment.gateway.ends(LIMIT).await.status.success());
    let elsewhere = TestNode::connect(deployment.other(), "s").await;
    let request = SubscribeRequest { resume_token: collector.last_token(), ..elsewhere.request() };
    let next = elsewhere.subscribe(request).await;
    assert!(next.subscribed().await.resumed);
    publish("after").await;
    sent.extend((0..20).map(|i| format!("after-{i}")));
    let rest = next.event("after-19", LIMIT).await;
    assert!(rest.gaps().is_empty());
    let mut got = collector.event_ids();
    got.extend(rest.event_ids);
    // One shard, so the order is that of publication.
    assert_eq!(got, sent);
}

#[tokio::test]
async fn draining_ends_in_time_without_redis() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = || {
        GatewayOptions::redis(&redis.url(), &shared::prefix())
            .set("drain", json!({ "timeout": "2s" }))
    };
    let running = Gateway::start(options()).await;
    let node = TestNode::connect(&running, "n1").await;
    let collector = node.subscribe(node.request()).await;
    redis.kill_9();
    let starting = Gateway::start(options().ready(Ready::Listening)).await;
    let mut watched = watch(&starting, "").await;
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    let waiting = tokio::spawn(async move { node.publish(numbered("e", 1, 1)).await });
    let (running, starting) = tokio::join!(running.terminate(LIMIT), starting.terminate(LIMIT));
    assert!(running.status.success() && running.took < Duration::from_secs(8), "{running:?}");
    assert!(starting.status.success() && starting.took < Duration::from_secs(3), "{starting:?}");
    is_draining(&collector.end(LIMIT).await.unwrap_err());
    assert_eq!(next(&mut watched).await, None);
    assert_eq!(waiting.await.unwrap().unwrap_err().code(), Code::Unavailable);
}

//! A gateway that is told to stop: its nodes are sent elsewhere, nothing is lost, and it ends in time whoever still holds on.

use std::time::Duration;

use serde_json::json;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use trunkline_proto::v1::SubscribeRequest;

use crate::{
    bench::Bench,
    health::{next, watch},
    support::{
        Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer, Seen, TestNode,
        events::{self, numbered},
        shared,
    },
    told::told,
};

fn is_draining(status: &Status) {
    let told = told(status, Code::Unavailable, "DRAINING");
    assert!(told.retry.is_some_and(|retry| retry < LIMIT), "{told:?}");
}

#[tokio::test]
async fn streams_are_told_and_the_gateway_ends_with_all_of_them_open() {
    let bench = Bench::embedded().await;
    let node = bench.node("n1").await;
    let mut collectors = Vec::new();
    for _ in 0..20 {
        collectors.push(node.subscribe(node.request()).await);
    }
    let mut watched = watch(&bench.gateway, "").await;
    let mut strange = watch(&bench.gateway, "no.such.Service").await;
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    assert_eq!(next(&mut strange).await, Some(ServingStatus::ServiceUnknown));
    bench.node("n2").await.publish(numbered("e", 3, 1)).await.unwrap();
    for collector in &collectors {
        collector.events(3, LIMIT).await;
    }

    let ended = bench.gateway.terminate(LIMIT).await;
    assert!(ended.status.success(), "{ended:?}");
    // A second of spread, and some for who closes.
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
async fn nobody_new_is_taken_while_the_others_are_sent_away() {
    let drain = json!({ "spread": "3s", "timeout": "10s" });
    let bench = Bench::embedded_with(|options| options.set("drain", drain)).await;
    let node = bench.node("n1").await;
    let mut collectors = Vec::new();
    for _ in 0..20 {
        collectors.push(node.subscribe(node.request()).await);
    }
    let mut watched = watch(&bench.gateway, "").await;
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    bench.gateway.signal_term();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    is_draining(&node.publish(numbered("e", 1, 1)).await.unwrap_err());
    is_draining(&node.stream(node.request()).await.unwrap_err());
    // On a new connection too.
    is_draining(&bench.node("n2").await.stream(node.request()).await.unwrap_err());
    for collector in &collectors {
        is_draining(&collector.end(LIMIT).await.unwrap_err());
    }
    assert!(bench.gateway.ends(LIMIT).await.status.success());
}

#[tokio::test]
async fn it_serves_on_for_the_delay_so_that_load_balancers_see_it() {
    let drain = json!({ "delay": "1500ms", "spread": "0s", "timeout": "1s" });
    let bench = Bench::embedded_with(|options| options.set("drain", drain)).await;
    let (publisher, subscriber) = (bench.node("p").await, bench.node("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let mut watched = watch(&bench.gateway, "").await;
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    bench.gateway.signal_term();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    publisher.publish(numbered("late", 1, 1)).await.expect("it still serves");
    collector.events(1, LIMIT).await;
    is_draining(&collector.end(LIMIT).await.unwrap_err());
    assert!(bench.gateway.ends(LIMIT).await.status.success());
}

#[tokio::test]
async fn a_reader_that_takes_nothing_does_not_keep_it() {
    let drain = json!({ "spread": "0s", "timeout": "1s" });
    let bench = Bench::embedded_with(|options| options.set("drain", drain)).await;
    let (publisher, subscriber) = (bench.node("p").await, bench.node("s").await);
    let stuck = subscriber.stream(subscriber.request()).await.unwrap();
    // 24 MiB: the windows of a connection are some 2 MiB.
    for _ in 0..40 {
        publisher.publish(vec![events::large(60 << 10); 10]).await.unwrap();
    }
    let ended = bench.gateway.terminate(LIMIT).await;
    assert!(ended.status.success() && ended.took < Duration::from_secs(6), "{ended:?}");
    drop(stuck);
}

#[tokio::test]
async fn nodes_continue_elsewhere_with_their_tokens() {
    let bench = Bench::redis().await;
    let publisher = TestNode::connect(bench.other(), "p").await;
    let subscriber = bench.node("s").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    let mut sent = Vec::new();
    let publish = async |name: &str| {
        publisher.publish(numbered(name, 20, 5)).await.unwrap();
    };
    for n in 0..5 {
        publish(&format!("before{n}")).await;
        sent.extend((0..20).map(|i| format!("before{n}-{i}")));
    }
    bench.gateway.signal_term();
    let mut n = 0;
    // While it drains.
    while collector.with(|recording| recording.ended().is_none()) {
        publish(&format!("while{n}")).await;
        sent.extend((0..20).map(|i| format!("while{n}-{i}")));
        n += 1;
    }
    is_draining(&collector.end(LIMIT).await.unwrap_err());
    assert!(bench.gateway.ends(LIMIT).await.status.success());
    let elsewhere = TestNode::connect(bench.other(), "s").await;
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
async fn it_ends_in_time_without_its_redis() {
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

//! Limits: the number of streams, and how far a stream may fall behind.

use std::time::Duration;

use serde_json::json;
use tonic::Code;
use trunkline_proto::v1::{GapReason, Overflow, SubscribeRequest};

use crate::{
    deployment::Deployment,
    error_details::error_details,
    on_both_buses,
    support::{
        Collector, GatewayOptions, Keep, LIMIT, Recording,
        events::{self, with_id},
        until,
    },
};

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_until_one_ends() {
    let deployment =
        Deployment::embedded_with(|options| options.set("limits", json!({ "maxStreams": 2 })))
            .await;
    let node = deployment.node("n1").await;
    let first = node.subscribe(node.request()).await;
    let _second = node.subscribe(node.request()).await;
    let status = node.stream(node.request()).await.unwrap_err();
    let error_details = error_details(&status, Code::ResourceExhausted, "LIMIT_REACHED");
    assert_eq!(error_details.metadata["limit"], "limits.maxStreams");
    assert_eq!(error_details.metadata["allowed"], "2");
    assert_eq!(error_details.quotas, ["limits.maxStreams"]);
    assert!(error_details.retry.is_some_and(|retry| retry > Duration::ZERO));
    drop(first);
    until(LIMIT, "room for another", async || node.stream(node.request()).await.is_ok()).await;
}

on_both_buses!(
    with forgetful;
    a_slow_stream_is_disconnected_if_it_asked_for_that,
    a_slow_stream_gets_a_gap_with_the_exact_count,
);

/// Events that are published while the client does not read: 24 MiB, where the windows of a
/// connection are about 2 MiB.
const PUBLISHED: u64 = 400;

/// Keeps less than that.
fn forgetful(options: GatewayOptions) -> GatewayOptions {
    options.set("log", json!({ "maxEvents": 100 })).set("history", json!({ "maxFrames": 20 }))
}

/// A stream whose client does not read, while far more is published than connection, log and
/// history hold.
async fn overtaken(deployment: &Deployment, overflow: Overflow) -> Collector {
    let (publisher, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let request = SubscribeRequest { overflow: overflow.into(), ..subscriber.request() };
    let stream = subscriber.stream(request).await.unwrap();
    for _ in 0..PUBLISHED / 10 {
        publisher.publish(vec![events::large(60 << 10); 10]).await.unwrap();
    }
    // The other gateway has all of it too.
    let witness = subscriber.subscribe(subscriber.request()).await;
    publisher.publish(vec![with_id("last", events::queue_refresh())]).await.unwrap();
    witness.event("last", LIMIT).await;
    Collector::start("s".into(), stream, Keep::Ids)
}

fn missed(recording: &Recording) -> u64 {
    recording.gaps().iter().map(|gap| gap.missed_events.expect("a count")).sum()
}

async fn a_slow_stream_is_disconnected_if_it_asked_for_that(deployment: Deployment) {
    let collector = overtaken(&deployment, Overflow::Disconnect).await;
    let status = collector.end(LIMIT).await.unwrap_err();
    let error_details = error_details(&status, Code::ResourceExhausted, "SUBSCRIBER_TOO_SLOW");
    let untold: u64 = error_details.metadata["missed_events"].parse().unwrap();
    let recording = collector.recording();
    assert!(recording.gaps().is_empty());
    let got = recording.event_ids.len() as u64;
    assert!(untold > 0 && got + untold <= PUBLISHED, "{got} delivered, {untold} missed");
    // With the last token the node learns the same of a stream that goes on.
    let node = deployment.remote("s").await;
    let request = SubscribeRequest { resume_token: collector.last_token(), ..node.request() };
    let again = node.subscribe(request).await;
    assert!(!again.subscribed().await.resumed);
    let recording = again.event("last", LIMIT).await;
    assert_eq!(recording.gaps()[0].reason(), GapReason::HistoryExpired);
    let rest = recording.event_ids.len() as u64;
    assert_eq!(got + missed(&recording) + rest, PUBLISHED + 1);
}

async fn a_slow_stream_gets_a_gap_with_the_exact_count(deployment: Deployment) {
    let collector = overtaken(&deployment, Overflow::Gap).await;
    let recording = collector.event("last", LIMIT).await;
    assert!(missed(&recording) > 0);
    assert_eq!(recording.event_ids.len() as u64 + missed(&recording), PUBLISHED + 1);
    assert_eq!(recording.subscribed().unwrap().overflow(), Overflow::Gap);
}

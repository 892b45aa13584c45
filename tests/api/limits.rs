//! What there may not be more of: streams, and events that a stream that asked for it may fall behind.

use std::time::Duration;

use tonic::Code;
use trunkline::proto::v1::{GapReason, Overflow, SubscribeRequest};

use crate::{
    bench::Bench,
    support::{Collector, Keep, LIMIT, events, until},
    told::told,
};

#[tokio::test]
async fn one_stream_more_than_there_may_be_is_refused_until_another_ends() {
    let bench = Bench::embedded_with(|options| {
        options.set("limits", serde_json::json!({ "maxStreams": 2 }))
    })
    .await;
    let node = bench.node("n1").await;
    let first = node.subscribe(node.request()).await;
    let _second = node.subscribe(node.request()).await;
    let status = node.stream(node.request()).await.unwrap_err();
    let told = told(&status, Code::ResourceExhausted, "LIMIT_REACHED");
    assert_eq!(told.metadata["limit"], "limits.maxStreams");
    assert_eq!(told.metadata["allowed"], "2");
    assert_eq!(told.quotas, ["limits.maxStreams"]);
    assert!(told.retry.is_some_and(|retry| retry > Duration::ZERO));
    drop(first);
    until(LIMIT, "room for another", async || node.stream(node.request()).await.is_ok()).await;
}

/// A stream that nobody reads, while far more is published than connection, log and history hold.
async fn overtaken(overflow: Overflow) -> (Bench, Collector) {
    let log = serde_json::json!({ "maxEvents": 100 });
    let bench = Bench::embedded_with(|options| options.set("log", log)).await;
    let (publisher, subscriber) = (bench.node("n1").await, bench.node("n2").await);
    let request = SubscribeRequest { overflow: overflow.into(), ..subscriber.request() };
    let stream = subscriber.stream(request).await.unwrap();
    // 24 MiB: the windows of a connection are some 2 MiB.
    for _ in 0..40 {
        let mut large = events::numbered("e", 10, 1);
        for event in &mut large {
            event.kind = events::custom("t").kind;
            if let Some(trunkline::proto::v1::event::Kind::Custom(custom)) = &mut event.kind {
                custom.payload.as_mut().unwrap().value = vec![7; 60 << 10];
            }
        }
        publisher.publish(large).await.unwrap();
    }
    (bench, Collector::start("n2".into(), stream, Keep::Ids))
}

#[tokio::test]
async fn who_is_too_slow_and_asked_for_it_is_disconnected() {
    let (bench, collector) = overtaken(Overflow::Disconnect).await;
    let status = collector.end(LIMIT).await.unwrap_err();
    let told = told(&status, Code::ResourceExhausted, "SUBSCRIBER_TOO_SLOW");
    let missed: usize = told.metadata["missed_events"].parse().unwrap();
    let recording = collector.recording();
    assert!(recording.gaps().is_empty());
    let got = recording.event_ids.len();
    assert!(missed > 0 && got + missed <= 400, "{got} delivered, {missed} missed");
    // With the last token the node learns the same of a stream that goes on.
    let token = collector.last_token();
    let node = bench.node("n2").await;
    let request = SubscribeRequest { resume_token: token, ..node.request() };
    let again = node.subscribe(request).await;
    assert!(!again.subscribed().await.resumed);
    let gap = again.gap(LIMIT).await;
    assert_eq!(gap.reason(), GapReason::HistoryExpired);
    let rest = 400 - got - usize::try_from(gap.missed_events.unwrap()).unwrap();
    again.events(rest, LIMIT).await;
}

#[tokio::test]
async fn who_is_too_slow_is_told_exactly_how_many_events_it_missed() {
    let (_bench, collector) = overtaken(Overflow::Gap).await;
    let recording = collector
        .wait(LIMIT, "the last of 400 events", |recording| {
            let missed: u64 = recording.gaps().iter().filter_map(|gap| gap.missed_events).sum();
            (recording.event_ids.len() as u64 + missed >= 400).then(|| recording.clone())
        })
        .await;
    let missed: u64 = recording.gaps().iter().filter_map(|gap| gap.missed_events).sum();
    assert!(missed > 0);
    assert_eq!(recording.event_ids.len() as u64 + missed, 400);
    assert_eq!(recording.subscribed().unwrap().overflow(), Overflow::Gap);
}

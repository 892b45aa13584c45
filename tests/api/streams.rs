//! How a stream begins, goes on and ends.

use std::time::{Duration, Instant, SystemTime};

use trunkline_proto::v1::{Event, Start, SubscribeRequest};

use crate::{
    deployment::Deployment,
    on_both_buses,
    support::{
        LIMIT, Seen, TestNode,
        events::{self, numbered, with_id},
    },
};

on_both_buses!(
    a_stream_ends_after_max_events,
    a_stream_ends_after_max_duration,
    a_stream_without_events_gets_heartbeats,
    a_stream_begins_with_events_published_after_it_opened,
    a_stream_from_the_oldest_gets_all_kept_events,
    a_stream_resumes_after_any_of_its_tokens,
    a_stream_names_its_gateway,
);

fn ids(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{prefix}-{n}")).collect()
}

async fn publish(node: &TestNode, id: &str) {
    node.publish(vec![with_id(id, events::queue_refresh())]).await.unwrap();
}

async fn a_stream_ends_after_max_events(deployment: Deployment) {
    let (publisher, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let request = SubscribeRequest { max_events: 3, ..subscriber.request() };
    let collector = subscriber.subscribe(request).await;
    publisher.publish(numbered("e", 10, 2)).await.unwrap();
    collector.end(LIMIT).await.expect("the end is no error");
    assert_eq!(collector.event_ids(), ids("e", 0..3));
    // The token is the position where it ended, inside events that were published together.
    let request = SubscribeRequest {
        resume_token: collector.last_token(),
        max_events: 4,
        ..subscriber.request()
    };
    let next = subscriber.subscribe(request).await;
    next.end(LIMIT).await.unwrap();
    assert!(next.subscribed().await.resumed);
    assert_eq!(next.event_ids(), ids("e", 3..7));
}

async fn a_stream_ends_after_max_duration(deployment: Deployment) {
    let subscriber = deployment.remote("s").await;
    let asked = Duration::from_millis(700);
    let request = SubscribeRequest { max_duration: asked.try_into().ok(), ..subscriber.request() };
    let begin = Instant::now();
    let collector = subscriber.subscribe(request).await;
    collector.end(LIMIT).await.expect("the end is no error");
    assert!(begin.elapsed() >= asked, "{:?}", begin.elapsed());
}

async fn a_stream_without_events_gets_heartbeats(deployment: Deployment) {
    let (publisher, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let second = Duration::from_secs(1);
    let request =
        SubscribeRequest { heartbeat_interval: second.try_into().ok(), ..subscriber.request() };
    let begin = Instant::now();
    let collector = subscriber.subscribe(request).await;
    collector.wait(LIMIT, "two heartbeats", |seen| (seen.heartbeats() >= 2).then_some(())).await;
    assert!(begin.elapsed() >= 2 * second, "{:?}", begin.elapsed());
    publish(&publisher, "e").await;
    let recording = collector.events(1, LIMIT).await;
    let Some(Seen::Heartbeat(heartbeat)) =
        recording.seen.iter().rev().find(|seen| matches!(seen, Seen::Heartbeat(_)))
    else {
        panic!("no heartbeat");
    };
    let sent = SystemTime::try_from(heartbeat.gateway_time.unwrap()).unwrap();
    assert!(sent.elapsed().is_ok_and(|age| age < LIMIT));
    // Its token is the position before the event.
    let request =
        SubscribeRequest { resume_token: heartbeat.resume_token.clone(), ..subscriber.request() };
    let next = subscriber.subscribe(request).await;
    assert_eq!(next.events(1, LIMIT).await.event_ids, ["e"]);
}

async fn a_stream_begins_with_events_published_after_it_opened(deployment: Deployment) {
    let (publisher, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    // The other gateway has delivered it: earlier events lie before every new stream.
    let witness = subscriber.subscribe(subscriber.request()).await;
    publish(&publisher, "before").await;
    witness.event("before", LIMIT).await;
    for start in [Start::Unspecified, Start::Latest] {
        let request = SubscribeRequest { start: start.into(), ..subscriber.request() };
        let collector = subscriber.subscribe(request).await;
        let subscribed = collector.subscribed().await;
        assert!(!subscribed.resumed);
        assert_eq!(subscribed.replayed_events, 0);
        let id = format!("after {start:?}");
        publish(&publisher, &id).await;
        assert_eq!(collector.event(&id, LIMIT).await.event_ids, [id]);
    }
}

async fn a_stream_from_the_oldest_gets_all_kept_events(deployment: Deployment) {
    let (publisher, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    for n in 0..5 {
        publisher.publish(numbered(&format!("r{n}"), 3, 2)).await.unwrap();
    }
    let request = SubscribeRequest { start: Start::Oldest.into(), ..subscriber.request() };
    let collector = subscriber.subscribe(request).await;
    publish(&publisher, "new").await;
    let recording = collector.event("new", LIMIT).await;
    let mut expected: Vec<_> = (0..5).flat_map(|n| ids(&format!("r{n}"), 0..3)).collect();
    expected.push("new".into());
    assert_eq!(recording.event_ids, expected);
    assert!(recording.gaps().is_empty());
}

async fn a_stream_resumes_after_any_of_its_tokens(deployment: Deployment) {
    let publisher = deployment.node("p").await;
    let (here, there) = (deployment.node("s").await, deployment.remote("s").await);
    let collector = here.subscribe(here.request()).await;
    for n in 0..6 {
        publisher.publish(numbered(&format!("r{n}"), 4, 4)).await.unwrap();
    }
    let recording = collector.events(24, LIMIT).await;
    let mut before = 0;
    for seen in &recording.seen {
        let Some(token) = seen.token() else { continue };
        if let Seen::Events { events, .. } = seen {
            before = events.end;
        }
        for node in [&here, &there] {
            let request = SubscribeRequest {
                resume_token: token.to_vec(),
                // A token is more exact.
                start: Start::Oldest.into(),
                ..node.request()
            };
            let next = node.subscribe(request).await;
            let subscribed = next.subscribed().await;
            assert!(subscribed.resumed, "{subscribed:?}");
            assert_eq!(subscribed.replayed_events, (24 - before) as u64);
            let again = next.events(24 - before, LIMIT).await;
            assert_eq!(again.event_ids, recording.event_ids[before..]);
            assert!(again.gaps().is_empty());
        }
    }
    assert_eq!(before, 24, "the last token stands for everything");
    // And nothing comes twice after the last one.
    let request = SubscribeRequest { resume_token: collector.last_token(), ..there.request() };
    let next = there.subscribe(request).await;
    publish(&publisher, "new").await;
    assert_eq!(next.event("new", LIMIT).await.event_ids, ["new"]);
}

async fn a_stream_names_its_gateway(deployment: Deployment) {
    let (here, there) = (deployment.node("s").await, deployment.remote("s").await);
    let one = here.subscribe(here.request()).await.subscribed().await;
    let two = here.subscribe(here.request()).await.subscribed().await;
    let three = there.subscribe(there.request()).await.subscribed().await;
    assert_eq!(one.gateway_id, two.gateway_id);
    assert_ne!(one.subscription_id, two.subscription_id);
    assert_ne!(two.subscription_id, three.subscription_id);
    assert_eq!(one.gateway_id == three.gateway_id, deployment.redis_server().is_none());
    assert!(!one.resume_token.is_empty());
}

/// A token is valid on any gateway.
#[tokio::test]
async fn tokens_of_a_stopped_gateway_are_valid_on_another() {
    let deployment = Deployment::redis().await;
    let publisher = TestNode::connect(deployment.other(), "p").await;
    let subscriber = deployment.node("s").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    publisher.publish(numbered("a", 3, 1)).await.unwrap();
    collector.events(3, LIMIT).await;
    let token = collector.last_token();
    deployment.gateway.kill_9();
    assert!(collector.end(LIMIT).await.is_err());
    let missed: Vec<Event> = numbered("b", 3, 1);
    publisher.publish(missed).await.unwrap();
    let elsewhere = TestNode::connect(deployment.other(), "s").await;
    let request = SubscribeRequest { resume_token: token, ..elsewhere.request() };
    let next = elsewhere.subscribe(request).await;
    assert!(next.subscribed().await.resumed);
    assert_eq!(next.events(3, LIMIT).await.event_ids, ids("b", 0..3));
}

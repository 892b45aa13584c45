//! The promises of `Publish`, and the fields that a gateway adds to an event.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use prost_types::Timestamp;
use trunkline_proto::v1::{Event, Position};
use uuid::Uuid;

use crate::{
    deployment::Deployment,
    on_both_buses,
    support::{
        LIMIT,
        events::{self, numbered, one_of_each, with_id},
        gateway::{Gateway, GatewayOptions},
        nodes::TestNode,
    },
};

on_both_buses!(
    all_kinds_arrive_as_they_were_published,
    a_request_sent_twice_is_published_once,
    a_gateway_adds_missing_id_time_and_source,
    every_attempt_of_a_request_gives_its_events_the_same_ids,
    a_gateway_keeps_the_id_and_time_of_the_publisher,
    the_answer_has_the_position_of_each_event,
);

async fn all_kinds_arrive_as_they_were_published(deployment: Deployment) {
    let (publisher, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let published = one_of_each("a");
    publisher.publish(published.clone()).await.unwrap();
    let recording = collector.events(11, LIMIT).await;
    let kinds =
        |events: &[Event]| events.iter().map(|event| event.kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&recording.events), kinds(&published));
}

async fn a_request_sent_twice_is_published_once(deployment: Deployment) {
    let (publisher, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let id = Uuid::new_v4();
    let first = publisher.publish_as(id.to_string(), numbered("e", 3, 2)).await.unwrap();
    // Also in another way of writing it, and on another gateway.
    let elsewhere = deployment.remote("p").await;
    for node in [&publisher, &elsewhere] {
        for text in [id.hyphenated().to_string(), id.simple().to_string().to_uppercase()] {
            let again = node.publish_as(text, numbered("e", 3, 2)).await.unwrap();
            assert_eq!(again, first);
        }
    }
    let other = publisher.publish_as(Uuid::new_v4(), numbered("f", 1, 1)).await.unwrap();
    assert_eq!(other[0].offset, first[2].offset + 1);
    // Without an id every request is a new one.
    publisher.publish(numbered("g", 1, 1)).await.unwrap();
    publisher.publish(numbered("g", 1, 1)).await.unwrap();
    let recording = collector.events(6, LIMIT).await;
    assert_eq!(recording.event_ids, ["e-0", "e-1", "e-2", "f-0", "g-0", "g-0"]);
}

async fn a_gateway_adds_missing_id_time_and_source(deployment: Deployment) {
    let (publisher, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let before = SystemTime::now() - Duration::from_millis(1);
    publisher.publish(vec![events::queue_refresh(), events::queue_refresh()]).await.unwrap();
    let events = collector.events(2, LIMIT).await.events;
    for event in &events {
        assert_eq!(event.source, "p");
        assert_eq!(Uuid::parse_str(&event.event_id).unwrap().get_version_num(), 7);
        let time = SystemTime::try_from(event.publish_time.unwrap()).unwrap();
        assert!(before <= time && time <= SystemTime::now(), "{time:?}");
    }
    assert_ne!(events[0].event_id, events[1].event_id);
}

async fn every_attempt_of_a_request_gives_its_events_the_same_ids(deployment: Deployment) {
    // Another deployment knows nothing of the request, as after a loss of everything.
    let other = Gateway::start(GatewayOptions::embedded()).await;
    let nodes = [deployment.node("p").await, TestNode::connect(&other, "p").await];
    let request = Uuid::new_v4();
    // Ids of requests may follow one another.
    let next = Uuid::from_u128(request.as_u128().wrapping_add(1));
    let mut attempts = Vec::new();
    for node in &nodes {
        let reader = TestNode { node_id: "s".into(), ..node.clone() };
        let collector = reader.subscribe(reader.request()).await;
        let batch = || vec![events::queue_refresh(); 3];
        node.publish_as(request, batch()).await.unwrap();
        node.publish_as(next, batch()).await.unwrap();
        attempts.push(collector.events(6, LIMIT).await.event_ids);
    }
    assert_eq!(attempts[0], attempts[1]);
    let different: HashSet<&String> = attempts[0].iter().collect();
    assert_eq!(different.len(), 6, "{attempts:?}");
}

async fn a_gateway_keeps_the_id_and_time_of_the_publisher(deployment: Deployment) {
    let (publisher, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let written = Event {
        source: "somebody else".into(),
        publish_time: Some(Timestamp { seconds: 1, nanos: 5 }),
        ..with_id("mine", events::blocked_ip("192.0.2.1"))
    };
    publisher.publish(vec![written.clone()]).await.unwrap();
    let events = collector.events(1, LIMIT).await.events;
    // Except for its source.
    assert_eq!(events, [Event { source: "p".into(), ..written }]);
}

async fn the_answer_has_the_position_of_each_event(deployment: Deployment) {
    let publisher = deployment.node("p").await;
    let elsewhere = deployment.remote("p").await;
    let mut all: Vec<Position> = publisher.publish(numbered("a", 5, 3)).await.unwrap();
    all.extend(elsewhere.publish(numbered("b", 5, 3)).await.unwrap());
    let first = &all[0];
    assert!(first.epoch > 0 && first.offset > 0);
    for (position, offset) in all.iter().zip(first.offset..) {
        assert_eq!(*position, Position { shard: 0, epoch: first.epoch, offset });
    }
}

#[tokio::test]
async fn the_positions_of_a_request_over_several_shards_are_in_its_order_on_each_try() {
    let deployment = Deployment::redis_with(|options| options.set("shards", 4)).await;
    let (publisher, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let id = Uuid::new_v4();
    let first = publisher.publish_as(id, numbered("e", 200, 50)).await.unwrap();
    assert_eq!(
        deployment.remote("p").await.publish_as(id, numbered("e", 200, 50)).await.unwrap(),
        first
    );
    let mut shards: Vec<u32> = first.iter().map(|position| position.shard).collect();
    // An account keeps its shard, and its order in it.
    for (index, position) in first.iter().enumerate().skip(50) {
        let before = &first[index - 50];
        assert!(position.shard == before.shard && position.offset > before.offset);
    }
    shards.sort_unstable();
    shards.dedup();
    assert_eq!(shards, [0, 1, 2, 3]);
    publisher.publish(vec![with_id("last", events::mailbox_change("account-0", 1))]).await.unwrap();
    let recording = collector.events(201, LIMIT).await;
    assert_eq!(recording.event_ids.len(), 201, "none twice");
    let account_0 = recording.event_ids.iter().filter(|id| {
        *id == "last"
            || id
                .split('-')
                .next_back()
                .and_then(|n| n.parse::<usize>().ok())
                .is_some_and(|n| n % 50 == 0)
    });
    assert_eq!(account_0.collect::<Vec<_>>(), ["e-0", "e-50", "e-100", "e-150", "last"]);
}

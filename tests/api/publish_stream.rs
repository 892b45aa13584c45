//! The promises of `PublishStream`.

use std::{collections::HashMap, time::Duration};

use serde_json::json;
use tonic::{Code, Status};
use trunkline_proto::v1::{
    Event, Position, PublishEvents, PublishOpen, PublishStreamRequest,
    publish_stream_request::Request,
};
use uuid::Uuid;

use crate::{
    deployment::Deployment,
    error_details::{error_details, wrong_fields},
    on_both_buses,
    support::{
        Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer,
        events::{email_delivery, large, numbered, queue_refresh, with_id},
        nodes::{Keep, TestNode},
    },
};

on_both_buses!(
    events_arrive_in_order_and_are_acknowledged_together,
    what_is_sent_again_in_other_parts_is_published_once,
    more_events_than_the_window_takes_are_published_without_a_pause,
    a_publisher_that_comes_back_is_told_what_was_accepted,
    a_bad_event_is_rejected_and_what_follows_goes_on,
    a_later_stream_takes_over,
    every_attempt_gives_an_event_the_same_id,
);

fn publisher() -> String {
    Uuid::new_v4().to_string()
}

async fn events_arrive_in_order_and_are_acknowledged_together(deployment: Deployment) {
    let (node, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let mut stream = node.producer(publisher()).await.unwrap();
    assert_eq!(stream.opened.accepted_sequence, 0);
    assert!(stream.opened.window_events >= 1000 && stream.opened.window_bytes >= 1 << 20);
    // One event a message, then several; a stream may begin anywhere.
    let events = numbered("e", 300, 3);
    for (event, sequence) in events[..100].iter().zip(41..) {
        stream.events(sequence, vec![event.clone()]).await;
    }
    stream.events(141, events[100..].to_vec()).await;
    let (answers, end) = stream.close().await;
    end.expect("a stream that its client ends");
    assert_eq!((answers.last(), answers.rejected()), (340, vec![]));
    assert!(answers.accepted.len() < 150, "{} for 101 messages", answers.accepted.len());
    let positions: Vec<Position> =
        answers.accepted.iter().flat_map(|accepted| accepted.positions.clone()).collect();
    let recording = collector.events(300, LIMIT).await;
    let ids: Vec<_> = events.iter().map(|event| event.event_id.clone()).collect();
    assert_eq!(recording.event_ids, ids);
    // In one shard, the positions rise by one.
    let first = positions[0].offset;
    assert!(positions.iter().zip(first..).all(|(at, offset)| at.offset == offset));
    assert_eq!(positions.len(), 300);
}

async fn what_is_sent_again_in_other_parts_is_published_once(deployment: Deployment) {
    let (node, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let publisher = publisher();
    let events = numbered("e", 60, 5);
    let mut first = node.producer(&publisher).await.unwrap();
    first.events(1, events[..20].to_vec()).await;
    first.until(20).await;
    first.events(21, events[20..40].to_vec()).await;
    // The stream breaks before its answer is read. What follows is cut otherwise, and goes to
    // another gateway where there is one.
    drop(first);
    let elsewhere = deployment.remote("p").await;
    let mut second = elsewhere.producer(&publisher).await.unwrap();
    second.events(11, events[10..35].to_vec()).await;
    second.events(36, events[35..].to_vec()).await;
    let (answers, end) = second.close().await;
    end.unwrap();
    assert_eq!(answers.last(), 60);
    collector.event("e-59", LIMIT).await;
    let mut ids = collector.recording().event_ids;
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!((count, ids.len()), (60, 60), "each event once");
}

async fn more_events_than_the_window_takes_are_published_without_a_pause(deployment: Deployment) {
    let (node, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let collector = subscriber.collect(subscriber.request(), Keep::Ids).await.unwrap();
    collector.subscribed().await;
    let mut stream = node.producer(publisher()).await.unwrap();
    let count = 2 * u64::from(stream.opened.window_events);
    let requests = stream.requests.clone().unwrap();
    let send = async move {
        // Messages of one event, of many, and of as many as one may have.
        let mut first_sequence = 1;
        for size in [1, 100, 1000, 1, 399].into_iter().cycle() {
            let size = size.min(count + 1 - first_sequence);
            if size == 0 {
                return;
            }
            let events = numbered("e", usize::try_from(size).unwrap(), 3);
            let request =
                Request::Events(PublishEvents { first_sequence, events, ..Default::default() });
            let request = PublishStreamRequest { request: Some(request) };
            requests.send(request).await.unwrap();
            first_sequence += size;
        }
    };
    let (answers, ()) = tokio::join!(stream.until(count), send);
    assert_eq!((answers.last(), answers.rejected()), (count, vec![]));
    collector.events(usize::try_from(count).unwrap(), LIMIT).await;
}

async fn a_publisher_that_comes_back_is_told_what_was_accepted(deployment: Deployment) {
    let node = deployment.node("p").await;
    let publisher = publisher();
    let mut stream = node.producer(&publisher).await.unwrap();
    stream.events(5, numbered("e", 7, 1)).await;
    stream.until(11).await;
    drop(stream);
    let again = node.producer(&publisher).await.unwrap();
    assert_eq!(again.opened.accepted_sequence, 11);
    // Ids are those of a node.
    let other = TestNode { node_id: "other".into(), ..node.clone() };
    assert_eq!(other.producer(&publisher).await.unwrap().opened.accepted_sequence, 0);
}

async fn a_bad_event_is_rejected_and_what_follows_goes_on(deployment: Deployment) {
    let (node, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let mut stream = node.producer(publisher()).await.unwrap();
    let good = numbered("e", 5, 1);
    let no_account = with_id("bad", email_delivery("", "m"));
    let too_large = with_id("large", large(70 << 10));
    let message = vec![good[0].clone(), no_account, good[1].clone(), Event::default()];
    stream.events(1, message).await;
    stream.events(5, vec![too_large]).await;
    stream.events(6, good[2..].to_vec()).await;
    let answers = stream.until(8).await;
    assert_eq!(answers.rejected(), [2, 4, 5]);
    let status = |nth: usize| {
        let status = answers.rejected[nth].status.clone().expect("a status");
        Status::with_details(
            Code::from(status.code),
            status.message.clone(),
            prost::Message::encode_to_vec(&status).into(),
        )
    };
    assert_eq!(wrong_fields(&status(0)), ["events[1].email_delivery.account_id"]);
    assert_eq!(wrong_fields(&status(1)), ["events[3].kind"]);
    error_details(&status(2), Code::InvalidArgument, "PAYLOAD_TOO_LARGE");
    let positions: usize = answers.accepted.iter().map(|accepted| accepted.positions.len()).sum();
    assert_eq!(positions, 5);
    let recording = collector.events(5, LIMIT).await;
    assert_eq!(recording.event_ids, ["e-0", "e-1", "e-2", "e-3", "e-4"]);
}

async fn a_later_stream_takes_over(deployment: Deployment) {
    let node = deployment.node("p").await;
    let publisher = publisher();
    let mut first = node.producer(&publisher).await.unwrap();
    let mut other = node.producer(self::publisher()).await.unwrap();
    let mut second = node.producer(&publisher).await.unwrap();
    let (_, end) = first.end().await;
    error_details(&end.unwrap_err(), Code::Aborted, "TAKEN_OVER");
    for stream in [&mut other, &mut second] {
        stream.events(1, numbered("e", 1, 1)).await;
        stream.until(1).await;
    }
}

async fn every_attempt_gives_an_event_the_same_id(deployment: Deployment) {
    let (node, subscriber) = (deployment.node("p").await, deployment.remote("s").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let nameless = |count: usize| {
        let events = numbered("e", count, 1).into_iter();
        events.map(|event| Event { event_id: String::new(), ..event }).collect::<Vec<_>>()
    };
    let publisher = publisher();
    let mut stream = node.producer(&publisher).await.unwrap();
    stream.events(1, nameless(3)).await;
    stream.until(3).await;
    let ids = collector.events(3, LIMIT).await.event_ids;
    // Once more, as if the bus had forgotten it: another publisher has other ids.
    let mut other = node.producer(self::publisher()).await.unwrap();
    other.events(1, nameless(3)).await;
    other.until(3).await;
    let all = collector.events(6, LIMIT).await.event_ids;
    assert!(ids.iter().all(|id| Uuid::parse_str(id).is_ok()));
    assert!(all[3..].iter().all(|id| !ids.contains(id)), "{all:?}");
}

/// Two gateways, and a client of the same node on each.
async fn on_two_gateways() -> (Deployment, [TestNode; 2]) {
    let deployment = Deployment::redis().await;
    let nodes = [deployment.node("p").await, deployment.remote("p").await];
    (deployment, nodes)
}

fn is_taken_over(end: Result<(), Status>) {
    error_details(&end.expect_err("it is taken over"), Code::Aborted, "TAKEN_OVER");
}

#[tokio::test]
async fn a_later_stream_on_another_gateway_takes_over_and_publishes_everything_once() {
    let (deployment, [here, there]) = on_two_gateways().await;
    let subscriber = deployment.remote("s").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    let publisher = publisher();
    let events = numbered("e", 60, 5);
    let mut first = here.producer(&publisher).await.unwrap();
    first.events(1, events[..20].to_vec()).await;
    first.until(20).await;
    // Open, as far as its gateway knows.
    let mut second = there.producer(&publisher).await.unwrap();
    second.events(11, events[10..40].to_vec()).await;
    second.until(40).await;
    is_taken_over(first.end().await.1);
    // And back, to the gateway that had it first.
    let mut third = here.producer(&publisher).await.unwrap();
    third.events(31, events[30..].to_vec()).await;
    third.until(60).await;
    is_taken_over(second.end().await.1);
    let (_, end) = third.close().await;
    end.expect("nobody has taken over");
    let recording = collector.events(60, LIMIT).await;
    let ids: Vec<_> = events.iter().map(|event| event.event_id.clone()).collect();
    assert_eq!(recording.event_ids, ids);
}

#[tokio::test]
async fn two_processes_with_one_publisher_are_told_and_nothing_is_acknowledged_but_published() {
    let (deployment, nodes) = on_two_gateways().await;
    let subscriber = deployment.remote("s").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    let publisher = publisher();
    let mut stream = None;
    let mut acknowledged = Vec::new();
    for round in 0..8_u64 {
        // Each begins behind what the other one has had acknowledged.
        let first = 1 + 10 * round;
        let event = |nth: u64| with_id(format!("{round}-{nth}"), queue_refresh());
        let node = &nodes[usize::from(round % 2 == 1)];
        let mut later = node.producer(&publisher).await.unwrap();
        later.events(first, (0..10).map(event).collect()).await;
        later.until(first + 9).await;
        acknowledged.extend((0..10).map(|nth| format!("{round}-{nth}")));
        if let Some(mut earlier) = stream.replace(later) {
            // Its own events, under numbers of which the bus has those of the other one.
            earlier.events(first, (10..20).map(event).collect()).await;
            let (answers, end) = earlier.end().await;
            is_taken_over(end);
            assert_eq!(answers.last(), 0, "round {round}: they are not published");
        }
    }
    let recording = collector.events(acknowledged.len(), LIMIT).await;
    assert_eq!(recording.event_ids, acknowledged);
}

#[tokio::test]
async fn what_arrives_late_at_a_gateway_that_was_left_is_refused_also_after_redis_lost_all() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), "late");
    let left = Gateway::start(options.clone()).await;
    let other = Gateway::start(options).await;
    let [here, there] = [&left, &other].map(|gateway| TestNode::connect(gateway, "p"));
    let (here, there) = (here.await, there.await);
    let subscriber = TestNode::connect(&other, "s").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    let publisher = publisher();
    let events = numbered("e", 40, 5);
    let mut first = here.producer(&publisher).await.unwrap();
    first.events(1, events[..10].to_vec()).await;
    first.until(10).await;
    collector.event("e-9", LIMIT).await;
    left.pause().await;
    first.events(11, events[10..20].to_vec()).await;
    let mut second = there.producer(&publisher).await.unwrap();
    second.events(11, events[10..30].to_vec()).await;
    second.until(30).await;
    redis.cli(&["FLUSHALL"]).await;
    second.events(31, events[30..].to_vec()).await;
    second.until(40).await;
    left.resume();
    let (answers, end) = first.end().await;
    is_taken_over(end);
    assert_eq!(answers.last(), 0);
    let (_, end) = second.close().await;
    end.expect("it goes on");
    collector.event("e-39", LIMIT).await;
    let recording = collector.recording();
    let ids: Vec<_> = events.iter().map(|event| event.event_id.clone()).collect();
    assert!(recording.gaps().is_empty());
    assert_eq!(recording.event_ids, ids);
}

async fn refused(node: &TestNode, requests: Vec<Request>) -> Status {
    let mut stream = node.producer_unopened().await;
    for request in requests {
        stream.send(request).await;
    }
    loop {
        match stream.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no error"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn requests_that_break_the_order_end_their_stream_and_no_other() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("p").await;
    let mut bystander = node.producer(publisher()).await.unwrap();
    let open = || Request::Open(node.producer_open(publisher()));
    let events = |first_sequence, count| {
        let events = numbered("e", count, 1);
        Request::Events(trunkline_proto::v1::PublishEvents {
            first_sequence,
            events,
            ..Default::default()
        })
    };
    let with_id = |publisher_id: &str| {
        Request::Open(PublishOpen { publisher_id: publisher_id.into(), ..node.producer_open("") })
    };
    for (requests, field) in [
        (vec![events(1, 1)], "request"),
        (vec![open(), open()], "open"),
        (vec![open(), events(0, 1)], "first_sequence"),
        (vec![open(), events(5, 2), events(8, 1)], "first_sequence"),
        (vec![open(), events(5, 2), events(6, 1)], "first_sequence"),
        (vec![open(), events(5, 2), events(5, 2)], "first_sequence"),
        (vec![open(), events(1 << 53, 1)], "first_sequence"),
        (vec![open(), events(u64::MAX, 1)], "first_sequence"),
        (vec![open(), events(1, 0)], "events"),
        (vec![open(), events(1, 1001)], "events"),
        (vec![with_id("none")], "publisher_id"),
        (vec![with_id(&Uuid::nil().to_string())], "publisher_id"),
        (vec![Request::Open(PublishOpen::default())], "node_id"),
    ] {
        let status = refused(&node, requests.clone()).await;
        assert_eq!(wrong_fields(&status), [field], "{requests:?}");
    }
    bystander.events(1, numbered("good", 1, 1)).await;
    bystander.until(1).await;
}

#[tokio::test]
async fn a_stream_without_a_publisher_id_publishes_what_is_sent_again_again() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("p").await;
    let collector = node.subscribe(subscribe_echo(&node)).await;
    for _ in 0..2 {
        let mut stream = node.producer("").await.unwrap();
        stream.events(1, numbered("e", 2, 1)).await;
        stream.close().await.1.unwrap();
    }
    let recording = collector.events(4, LIMIT).await;
    assert_eq!(recording.event_ids, ["e-0", "e-1", "e-0", "e-1"]);
}

fn subscribe_echo(node: &TestNode) -> trunkline_proto::v1::SubscribeRequest {
    trunkline_proto::v1::SubscribeRequest { include_own_events: true, ..node.request() }
}

#[tokio::test]
async fn events_keep_their_order_in_each_of_many_shards() {
    // A group has an append for each shard: more than a task polls before it yields.
    let deployment = Deployment::redis_with(|options| options.set("shards", 100)).await;
    let mut stream = deployment.node("p").await.producer(publisher()).await.unwrap();
    let requests = stream.requests.clone().unwrap();
    let send = async move {
        for first_sequence in (1..=50_000).step_by(1000) {
            let events = numbered("e", 1000, 500);
            let request =
                Request::Events(PublishEvents { first_sequence, events, ..Default::default() });
            let request = PublishStreamRequest { request: Some(request) };
            requests.send(request).await.unwrap();
        }
    };
    let (answers, ()) = tokio::join!(stream.until(50_000), send);
    let positions: Vec<Position> =
        answers.accepted.into_iter().flat_map(|accepted| accepted.positions).collect();
    assert_eq!(positions.len(), 50_000);
    let mut last = HashMap::new();
    for (nth, Position { shard, epoch, offset }) in positions.into_iter().enumerate() {
        let before = last.insert(shard, (epoch, offset)).unwrap_or_default();
        assert!(
            before < (epoch, offset),
            "event {nth} of shard {shard}: {offset} after {before:?}"
        );
    }
    assert!(last.len() > 90, "{} shards", last.len());
}

#[tokio::test]
async fn a_rate_slows_a_stream_down_and_refuses_nothing() {
    let limits = json!({ "eventsPerSecond": 200, "eventBurst": 50 });
    let deployment = Deployment::embedded_with(|options| options.set("limits", limits)).await;
    let node = deployment.node("p").await;
    let mut stream = node.producer(publisher()).await.unwrap();
    let begun = std::time::Instant::now();
    // Also more at once than a burst.
    stream.events(1, numbered("e", 120, 1)).await;
    for sequence in 121..=250 {
        stream.events(sequence, numbered("e", 1, 1)).await;
    }
    let answers = stream.until(250).await;
    assert!(answers.rejected.is_empty());
    let took = begun.elapsed().as_secs_f64();
    assert!(took >= 0.95 * (250.0 - 50.0) / 200.0, "faster than its rate: {took:.2} s");
}

#[tokio::test]
async fn small_messages_that_wait_end_no_connection() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), "waiting");
    // On one gateway they wait for the bus, on the other for their rate.
    let limits = json!({ "eventsPerSecond": 20_000, "eventBurst": 1000 });
    let paused = Gateway::start(options.clone()).await;
    let slow = Gateway::start(options.set("limits", limits)).await;
    for (gateway, pauses) in [(&paused, true), (&slow, false)] {
        let node = TestNode::connect(gateway, "p").await;
        let mut stream = node.producer(publisher()).await.unwrap();
        // On the same connection.
        let collector = node.subscribe(subscribe_echo(&node)).await;
        let count = u64::from(stream.opened.window_events) - 1000;
        if pauses {
            redis.pause().await;
        }
        for sequence in 1..=count {
            stream.events(sequence, vec![queue_refresh()]).await;
        }
        if pauses {
            // Far more than what fits into the groups that are under way.
            tokio::time::sleep(Duration::from_secs(1)).await;
            redis.resume();
        }
        let answers = stream.until(count).await;
        assert_eq!((answers.last(), answers.rejected()), (count, vec![]));
        collector.events(usize::try_from(count).unwrap(), LIMIT).await;
    }
}

#[tokio::test]
async fn a_drain_acknowledges_what_it_took_and_the_rest_goes_elsewhere() {
    let deployment = Deployment::redis().await;
    let (node, other) = (deployment.node("p").await, deployment.remote("p").await);
    let subscriber = deployment.remote("s").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    let publisher = publisher();
    let mut stream = node.producer(&publisher).await.unwrap();
    let events = numbered("e", 200, 7);
    stream.events(1, events[..50].to_vec()).await;
    stream.until(50).await;
    let mut idle = node.producer(self::publisher()).await.unwrap();
    deployment.gateway.signal_term();
    for (event, sequence) in events[50..].iter().zip(51..) {
        stream.events(sequence, vec![event.clone()]).await;
    }
    let (answers, end) = stream.end().await;
    assert!(answers.draining);
    error_details(&end.unwrap_err(), Code::Unavailable, "DRAINING");
    let (idle, end) = idle.end().await;
    assert!(idle.draining && end.is_err(), "{end:?}");
    let accepted = answers.last().max(50);
    let mut stream = other.producer(&publisher).await.unwrap();
    let rest = usize::try_from(accepted).unwrap();
    if rest < 200 {
        stream.events(accepted + 1, events[rest..].to_vec()).await;
        stream.until(200).await;
    }
    let recording = collector.events(200, LIMIT).await;
    let ids: Vec<_> = events.iter().map(|event| event.event_id.clone()).collect();
    assert_eq!(recording.event_ids, ids);
    assert!(deployment.gateway.ends(LIMIT).await.status.success());
}

//! Publishers that wait until nodes have an event.

use std::time::Duration;

use tonic::{Code, Status};
use trunkline_proto::v1::{
    DeliveryReport, Event, PublishEvents, PublishRequest, Start, SubscribeRequest, WaitFor,
    publish_stream_request::Request, publish_stream_response::Response,
};

use super::{
    node_ids, one_more, redis,
    support::{
        Gateway, GatewayOptions, LIMIT, TestNode,
        events::{large, mailbox_change, with_id},
        until,
        watch::accounts,
    },
    two,
};

/// Publishes an event of account `a`, and waits for its nodes.
async fn publish(
    node: &TestNode,
    id: &str,
    wait_for: WaitFor,
    timeout: Duration,
) -> Result<DeliveryReport, Status> {
    waiting(node, vec![with_id(id, mailbox_change("a", 1))], wait_for, timeout).await
}

async fn waiting(
    node: &TestNode,
    events: Vec<Event>,
    wait_for: WaitFor,
    timeout: Duration,
) -> Result<DeliveryReport, Status> {
    let request = PublishRequest {
        node_id: node.node_id.clone(),
        events,
        wait_for: wait_for.into(),
        wait_timeout: Some(timeout.try_into().unwrap()),
        ..Default::default()
    };
    let response = node.client.clone().publish(request).await?.into_inner();
    Ok(response.delivery.expect("a report"))
}

/// A request for the events of some accounts.
fn of(node: &TestNode, names: &[&str]) -> SubscribeRequest {
    let filter = Some(accounts(names.iter().copied()));
    SubscribeRequest { filter, ..node.request() }
}

fn complete(concerned: u32) -> DeliveryReport {
    DeliveryReport {
        complete: true,
        concerned_nodes: concerned,
        done_nodes: concerned,
        ..Default::default()
    }
}

/// A fifth of it is what a slow machine has to bring the last word of a gateway.
const SHORT: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_delivered_when_every_node_on_every_gateway_has_been_handed_it() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let publisher = TestNode::connect(&a, "publisher").await;
    let none = publish(&publisher, "none", WaitFor::Delivered, LIMIT).await.unwrap();
    assert_eq!(none, complete(0));
    let mut collectors = Vec::new();
    for (number, gateway) in [&a, &b, &a, &b, &b].into_iter().enumerate() {
        let node = TestNode::connect(gateway, format!("n-{number}")).await;
        // The last one has no interest in the account.
        let names = if number < 4 { ["a", "x"] } else { ["b", "x"] };
        collectors.push(node.subscribe(of(&node, &names)).await);
    }
    // The publisher's own stream does not get its events, and is not concerned.
    let own = publisher.subscribe(publisher.request()).await;
    for round in 0..20 {
        let id = format!("e-{round}");
        let report = publish(&publisher, &id, WaitFor::Delivered, LIMIT).await.unwrap();
        assert_eq!(report, complete(4), "{id}");
    }
    for collector in &collectors[..4] {
        assert_eq!(collector.events(20, LIMIT).await.event_ids.len(), 20);
    }
    assert!(collectors[4].event_ids().is_empty() && own.event_ids().is_empty());
    // Several events in several shards: all of them, also for the one that wants the others only.
    let events = (0..50).map(|n| mailbox_change(if n % 2 == 0 { "a" } else { "x" }, n)).collect();
    let report = waiting(&publisher, events, WaitFor::Delivered, LIMIT).await.unwrap();
    assert_eq!(report, complete(5));
    // Nothing is left behind in Redis.
    let keys: Vec<String> = redis.command(&["KEYS", "*messages*"]).await.unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_acknowledged_when_every_watch_has_acknowledged_it() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let publisher = TestNode::connect(&a, "publisher").await;
    let [one, two] = [TestNode::connect(&a, "one").await, TestNode::connect(&b, "two").await];
    let one = one.watch(one.open(accounts(["a"]))).await;
    let two = two.watch(two.open(accounts(["a"]))).await;

    let waits = publish(&publisher, "first", WaitFor::Acknowledged, LIMIT);
    let acknowledge = async {
        for watch in [&one, &two] {
            let recording = watch.event("first", LIMIT).await;
            // The node sees that somebody waits.
            assert!(!recording.events.last().unwrap().waiter.is_empty());
            watch.acknowledge(watch.last_token()).await;
        }
    };
    let (report, ()) = tokio::join!(waits, acknowledge);
    assert_eq!(report.unwrap(), complete(2));

    // One that has it and does not acknowledge it, and one that cannot.
    let plain = TestNode::connect(&b, "plain").await;
    let _plain = plain.subscribe(of(&plain, &["a"])).await;
    let waits = publish(&publisher, "second", WaitFor::Acknowledged, SHORT);
    let acknowledge = async {
        one.event("second", LIMIT).await;
        one.acknowledge(one.last_token()).await;
    };
    let (report, ()) = tokio::join!(waits, acknowledge);
    let report = report.unwrap();
    assert!(!report.complete);
    assert_eq!((report.concerned_nodes, report.done_nodes), (3, 1));
    assert_eq!(report.pending_node_ids, ["plain", "two"]);
    assert!(report.silent_gateway_ids.is_empty());
    let report = publish(&publisher, "third", WaitFor::Delivered, LIMIT).await.unwrap();
    assert_eq!(report, complete(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_without_the_event_and_who_does_not_read_are_named() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let publisher = TestNode::connect(&a, "publisher").await;
    let leaves = TestNode::connect(&b, "leaves").await;
    let watch = leaves.watch(leaves.open(accounts(["a"]))).await;
    let waits = publish(&publisher, "left", WaitFor::Acknowledged, SHORT);
    let leave = async {
        watch.event("left", LIMIT).await;
        drop(watch);
    };
    let (report, ()) = tokio::join!(waits, leave);
    let report = report.unwrap();
    assert_eq!((report.complete, report.pending_node_ids), (false, vec!["leaves".to_owned()]));

    // Its connection takes no more before the event comes.
    let slow = TestNode::connect(&b, "slow").await;
    let stream = slow.stream(of(&slow, &["a"])).await.unwrap();
    until(LIMIT, "the stream", async || node_ids(&b).await == ["slow"]).await;
    for _ in 0..40 {
        let mut event = large(500_000);
        event.kind = mailbox_change("a", 1).kind;
        event.tracestate.clear();
        publisher.publish(vec![event]).await.unwrap();
        publisher.publish(vec![mailbox_change("a", 2); 900]).await.unwrap();
    }
    let report = publish(&publisher, "late", WaitFor::Delivered, SHORT).await.unwrap();
    assert_eq!((report.complete, report.pending_node_ids), (false, vec!["slow".to_owned()]));
    drop(stream);
    until(LIMIT, "it is gone", async || node_ids(&b).await.is_empty()).await;
    let report = publish(&publisher, "gone", WaitFor::Delivered, LIMIT).await.unwrap();
    assert!(report.complete, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_frozen_is_named_and_one_that_is_gone_is_not_waited_for() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let c = one_more(&redis, "gw-c").await;
    let publisher = TestNode::connect(&a, "publisher").await;
    let mut held = Vec::new();
    for (gateway, id) in [(&a, "on-a"), (&b, "on-b"), (&c, "on-c")] {
        let node = TestNode::connect(gateway, id).await;
        held.push(node.subscribe(of(&node, &["a"])).await);
    }
    let all = publish(&publisher, "all", WaitFor::Delivered, LIMIT).await.unwrap();
    assert_eq!(all, complete(3));
    b.pause().await;
    let frozen = publish(&publisher, "frozen", WaitFor::Delivered, SHORT).await.unwrap();
    assert!(!frozen.complete);
    assert_eq!((frozen.concerned_nodes, frozen.done_nodes), (2, 2));
    assert_eq!(frozen.silent_gateway_ids, ["gw-b"]);
    b.kill_9();
    until(Duration::from_secs(40), "it is forgotten", async || {
        publish(&publisher, "gone", WaitFor::Delivered, SHORT).await.unwrap() == complete(2)
    })
    .await;
    // One that comes is waited for from its first stream on.
    let d = one_more(&redis, "gw-d").await;
    let node = TestNode::connect(&d, "on-d").await;
    let _held = node.subscribe(of(&node, &["a"])).await;
    let report = publish(&publisher, "new", WaitFor::Delivered, LIMIT).await.unwrap();
    assert_eq!(report, complete(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_of_each_event_when_its_nodes_have_it_and_holds_up_nothing_for_it() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let publisher = TestNode::connect(&a, "publisher").await;
    let node = TestNode::connect(&b, "node").await;
    let watch = node.watch(node.open(accounts(["a"]))).await;
    let mut stream = publisher.producer(uuid::Uuid::new_v4().to_string()).await.unwrap();
    let waiting = |first_sequence, id: &str, wait_for: WaitFor, seconds| {
        let wait_timeout = Some(prost_types::Duration { seconds, nanos: 0 });
        let events = vec![with_id(id, mailbox_change("a", 1)), mailbox_change("b", 1)];
        let wait_for = wait_for.into();
        Request::Events(PublishEvents { first_sequence, events, wait_for, wait_timeout })
    };
    stream.send(waiting(1, "waits", WaitFor::Acknowledged, 30)).await;
    // What comes behind it is accepted before the node has acknowledged.
    stream.send(waiting(3, "more", WaitFor::Delivered, 30)).await;
    let mut delivered = stream.until(4).await.delivered;
    while delivered.len() < 3 {
        match stream.next().await.unwrap() {
            Some(Response::Delivery(report)) => delivered.push(report),
            Some(Response::Accepted(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    // All but the first, whose node has not acknowledged it.
    let mut known: Vec<_> = delivered.iter().map(|report| report.sequence).collect();
    known.sort_unstable();
    assert_eq!(known, [2, 3, 4]);
    assert!(delivered.iter().all(|report| report.complete), "{delivered:?}");
    watch.event("more", LIMIT).await;
    watch.acknowledge(watch.last_token()).await;
    let Some(Response::Delivery(report)) = stream.next().await.unwrap() else {
        panic!("no report")
    };
    assert_eq!(report, DeliveryReport { sequence: 1, ..complete(1) });

    // A stream that is closed still says what it waits for; what makes no sense is rejected.
    stream.send(waiting(5, "last", WaitFor::Acknowledged, 4)).await;
    stream.send(waiting(7, "wrong", WaitFor::Delivered, 61)).await;
    let (answers, end) = stream.close().await;
    end.unwrap();
    let rejected: Vec<_> = answers.rejected.iter().map(|rejected| rejected.sequence).collect();
    assert_eq!(rejected, [7, 8]);
    let of_last = answers.delivered.iter().find(|report| report.sequence == 5).unwrap();
    assert_eq!(of_last.pending_node_ids, ["node"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_needs_no_other_gateway_and_no_redis() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let node = TestNode::connect(&gateway, "node").await;
    let collector = node.subscribe(node.request()).await;
    // What a publisher writes into the field is not a wait.
    let event = Event { waiter: vec![7; 25], ..with_id("plain", mailbox_change("a", 1)) };
    publisher.publish(vec![event]).await.unwrap();
    let recording = collector.event("plain", LIMIT).await;
    assert!(recording.events[0].waiter.is_empty());
    let report = publish(&publisher, "waits", WaitFor::Delivered, LIMIT).await.unwrap();
    assert_eq!(report, complete(1));
    // A stream that begins with older events has those too.
    let late = TestNode::connect(&gateway, "late").await;
    let request = SubscribeRequest { start: Start::Oldest.into(), ..late.request() };
    let late = late.subscribe(request).await;
    late.event("waits", LIMIT).await;
    let report = publish(&publisher, "both", WaitFor::Delivered, LIMIT).await.unwrap();
    assert_eq!(report, complete(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_makes_no_sense_is_refused_and_nothing_is_published() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let node = TestNode::connect(&gateway, "publisher").await;
    let collector = node.subscribe(SubscribeRequest { include_own_events: true, ..node.request() });
    let collector = collector.await;
    let duration = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    for (wait_for, wait_timeout, field) in [
        (9, None, "wait_for"),
        (-1, None, "wait_for"),
        (0, duration(1, 0), "wait_timeout"),
        (1, duration(1, 0), "wait_timeout"),
        (2, duration(0, 0), "wait_timeout"),
        (2, duration(-1, 0), "wait_timeout"),
        (2, duration(61, 0), "wait_timeout"),
        (3, duration(i64::MAX, 0), "wait_timeout"),
    ] {
        let request = PublishRequest {
            node_id: "publisher".into(),
            events: vec![mailbox_change("a", 1)],
            wait_for,
            wait_timeout,
            ..Default::default()
        };
        let status = node.client.clone().publish(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(field), "{status:?}");
    }
    publish(&node, "right", WaitFor::Delivered, LIMIT).await.unwrap();
    assert_eq!(collector.event("right", LIMIT).await.event_ids, ["right"]);
}

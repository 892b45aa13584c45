//! A publication arrives once under every fault on its way.

use std::time::{Duration, Instant};

use tokio::{io::AsyncReadExt, net::TcpListener};
use tonic::Code;
use trunkline_client::{Client, ErrorKind};
use trunkline_proto::v1::{BlockedIp, Event, MailboxChange, QueueRefresh};

use super::{Pair, client_of};
use crate::support::{
    Collector, Gateway, GatewayOptions, LIMIT, TestNode,
    events::{mailbox_change, with_id},
    ports::Port,
};

/// A node on the second gateway that records all events.
async fn observer(pair: &Pair) -> Collector {
    let node = TestNode::connect(&pair.second, "observer").await;
    node.subscribe(node.request()).await
}

fn event(id: &str) -> Vec<Event> {
    vec![with_id(id, mailbox_change("a1", 7))]
}

/// Asserts that exactly `expected` was received, in this order, before an event that is published
/// now.
async fn assert_arrived(pair: &Pair, observer: &Collector, expected: &[&str]) {
    let marker = client_of(&pair.second, "marker");
    marker.publish(event("marker")).await.expect("published");
    let recording = observer.event("marker", LIMIT).await;
    assert_eq!(recording.event_ids, [expected, &["marker"]].concat());
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_waits_for_a_killed_gateway_to_restart() {
    let pair = Pair::start().await;
    let observer = observer(&pair).await;
    let client = client_of(&pair.first, "n1");
    client.publish(event("before")).await.expect("published");

    pair.first.kill_9();
    let publishing = tokio::spawn({
        let client = client.clone();
        async move { client.publish(event("during")).await }
    });
    pair.first.restart().await;
    let positions = publishing.await.expect("no panic").expect("published");
    assert_eq!(positions.len(), 1);
    assert_arrived(&pair, &observer, &["before", "during"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_moves_to_the_next_gateway_when_one_is_killed() {
    let pair = Pair::start().await;
    let observer = observer(&pair).await;
    let client = pair.client("n1");
    client.publish(event("before")).await.expect("published");
    pair.first.kill_9();
    client.publish(event("after")).await.expect("published");
    assert_arrived(&pair, &observer, &["before", "after"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_on_two_gateways_while_redis_is_paused_publish_once() {
    let pair = Pair::start().await;
    let observer = observer(&pair).await;
    let client = pair.client("n1");
    pair.redis.pause().await;
    let started = Instant::now();
    let publishing = tokio::spawn({
        let client = client.clone();
        async move { client.publish(event("once")).await }
    });
    // Each attempt takes one second: by now both gateways hold the request.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!publishing.is_finished(), "nothing is acknowledged while Redis is paused");
    pair.redis.resume();
    publishing.await.expect("no panic").expect("published");
    assert!(started.elapsed() < LIMIT);
    assert_arrived(&pair, &observer, &["once"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_publishes_once_though_the_paused_first_gateway_resumes() {
    let pair = Pair::start().await;
    let observer = observer(&pair).await;
    let client = pair.client("n1");
    client.publish(event("before")).await.expect("published");
    pair.first.pause().await;
    let started = Instant::now();
    client.publish(event("once")).await.expect("published by the second");
    // The attempt on the first gateway times out after one second.
    assert!(started.elapsed() > Duration::from_millis(900), "{:?}", started.elapsed());
    pair.first.resume();
    pair.first.ready(crate::support::Ready::Serving).await;
    assert_arrived(&pair, &observer, &["before", "once"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_of_the_caller_publishes_once_however_often_it_is_used() {
    let pair = Pair::start().await;
    let observer = observer(&pair).await;
    let id = uuid::Uuid::new_v4().to_string();
    let one = client_of(&pair.first, "n1").publish_as(&id, event("once")).await.expect("published");
    let other = client_of(&pair.second, "n1").publish_as(&id, event("once")).await.expect("known");
    assert_eq!(one, other, "the same position");
    assert_arrived(&pair, &observer, &["once"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_and_events_are_accepted_for_publishing() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let client = client_of(&gateway, "n1");
    let change = MailboxChange { account_id: "a1".into(), ..Default::default() };
    client.publish([change]).await.expect("published");
    let positions = client
        .publish([Event::from(QueueRefresh {}).for_role("mta"), QueueRefresh {}.into()])
        .await
        .expect("published");
    assert_eq!(positions.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_request_fails_at_once_and_names_every_field() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let client = client_of(&gateway, "n1");
    let wrong = [
        Event::from(MailboxChange::default()),
        BlockedIp { address: "example.org".into(), ..Default::default() }.into(),
    ];
    let started = Instant::now();
    let error = client.publish(wrong).await.expect_err("refused");
    assert!(started.elapsed() < Duration::from_secs(10), "it is not retried");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(error.status().map(tonic::Status::code), Some(Code::InvalidArgument));
    let violations = error.violations();
    let fields: Vec<&str> = violations.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["events[0].mailbox_change.account_id", "events[1].blocked_ip.address"]);
    assert!(error.to_string().starts_with("refused: "), "{error}");
}

/// A client with short timeouts.
fn impatient(address: String) -> Client {
    Client::builder("n1")
        .gateway(address)
        .publish_timeout(Duration::from_millis(1500))
        .attempt_timeout(Duration::from_millis(400))
        .build()
        .expect("built")
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_listening_gateway_the_error_is_unavailable() {
    let port = Port::free();
    let client = impatient(format!("127.0.0.1:{}", port.number()));
    let started = Instant::now();
    let error = client.publish(event("e")).await.expect_err("no gateway");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_the_outcome_is_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let silent = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            connections.spawn(async move {
                let mut sink = [0; 4096];
                while connection.read(&mut sink).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    let error = impatient(address).publish(event("e")).await.expect_err("no answer");
    silent.abort();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_down_makes_the_error_unavailable() {
    let pair = Pair::with(|options| options.set_bus("timeout", "300ms")).await;
    pair.redis.kill_9();
    let client = Client::builder("n1")
        .gateway(pair.first.url())
        .publish_timeout(Duration::from_secs(2))
        .build()
        .expect("built");
    let error = client.publish(event("e")).await.expect_err("no bus");
    let unavailable = [ErrorKind::Unavailable, ErrorKind::OutcomeUnknown];
    assert!(unavailable.contains(&error.kind()), "{error:?}");
    assert_eq!(error.status().map(tonic::Status::code), Some(Code::Unavailable), "{error:?}");
}

//! Subscriptions: their events, their gaps, and the errors that end them.

use std::time::Duration;

use serde_json::json;
use trunkline_client::{Client, ErrorKind, Notification, SubscribeOptions, Subscription};
use trunkline_proto::v1::{Event, EventKind, GapReason, ListNodesRequest, QueueRefresh, Start};

use super::{client_of, gaps, ids, next, subscribed, until_event};
use crate::support::{
    Gateway, GatewayOptions, LIMIT, TestNode,
    events::{custom, mailbox_change, numbered, queue_refresh, with_id},
    until as eventually,
};

async fn gateway() -> Gateway {
    Gateway::start(GatewayOptions::embedded()).await
}

/// A gateway that keeps ten events of history.
async fn short_history() -> Gateway {
    let options = GatewayOptions::embedded()
        .set("log", json!({ "maxEvents": 10 }))
        .set("history", json!({ "maxFrames": 10 }));
    Gateway::start(options).await
}

/// The connected nodes.
async fn nodes(gateway: &Gateway) -> Vec<trunkline_proto::v1::Node> {
    let answer = gateway.client().await.list_nodes(ListNodesRequest::default()).await;
    answer.expect("an answer").into_inner().nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_lists_a_node_with_its_own_description() {
    let gateway = gateway().await;
    let client = Client::builder("mx1")
        .gateway(gateway.url())
        .incarnation("boot-7")
        .role("imap")
        .role("mta")
        .build()
        .expect("built");
    let options = SubscribeOptions::new().kind(EventKind::MailboxChange).account("a1");
    let mut subscription = client.subscribe(options);
    subscribed(&mut subscription).await;
    let nodes = nodes(&gateway).await;
    let [node] = &nodes[..] else { panic!("{nodes:?}") };
    assert_eq!((node.node_id.as_str(), node.incarnation.as_str()), ("mx1", "boot-7"));
    assert_eq!((client.node_id(), client.incarnation()), ("mx1", "boot-7"));
    assert_eq!(node.roles, ["imap", "mta"]);
    let filter = node.filter.as_ref().expect("a filter");
    assert_eq!((&filter.kinds[..], &filter.accounts[..]), (&[10][..], &["a1".to_owned()][..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_subscription_closes_its_stream() {
    let gateway = gateway().await;
    let client = client_of(&gateway, "n1");
    let mut subscription = client.subscribe(SubscribeOptions::new());
    subscribed(&mut subscription).await;
    assert_eq!(nodes(&gateway).await.len(), 1);
    drop(subscription);
    // The client and its connection stay usable.
    eventually(LIMIT, "the gateway has removed the stream", async || {
        nodes(&gateway).await.is_empty()
    })
    .await;
    client.publish([QueueRefresh {}]).await.expect("published");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_events_that_match_filter_and_target_are_received() {
    let gateway = gateway().await;
    let node = Client::builder("n1").gateway(gateway.url()).role("imap").build().expect("built");
    let options = SubscribeOptions::new()
        .kind(EventKind::MailboxChange)
        .kind(EventKind::Custom)
        .account("a1")
        .custom_type("com.example.*");
    let mut subscription = node.subscribe(options);
    subscribed(&mut subscription).await;
    let events = [
        with_id("other-account", mailbox_change("a2", 1)),
        with_id("other-kind", queue_refresh()),
        with_id("other-type", custom("org.example.x")),
        with_id("other-role", mailbox_change("a1", 2)).for_role("mta"),
        with_id("other-node", mailbox_change("a1", 3)).for_node("n3"),
        with_id("account", mailbox_change("a1", 4)),
        with_id("type", custom("com.example.x")),
        with_id("role", mailbox_change("a1", 5)).for_role("mta").for_role("imap"),
        with_id("node", mailbox_change("a1", 6)).for_node("n1"),
    ];
    client_of(&gateway, "n2").publish(events).await.expect("published");
    // A node does not receive its own events.
    node.publish([with_id("own", mailbox_change("a1", 7))]).await.expect("published");
    client_of(&gateway, "n2")
        .publish([with_id("end", mailbox_change("a1", 8))])
        .await
        .expect("published");
    let seen = until_event(&mut subscription, "end").await;
    assert_eq!(ids(&seen), ["account", "type", "role", "node", "end"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_can_start_at_the_oldest_event_and_include_its_own() {
    let gateway = gateway().await;
    let client = client_of(&gateway, "n1");
    client.publish([with_id("own", mailbox_change("a1", 1))]).await.expect("published");
    let options = SubscribeOptions::new().start(Start::Oldest).include_own_events();
    let mut subscription = client.subscribe(options);
    let seen = until_event(&mut subscription, "own").await;
    assert!(matches!(seen[0], Notification::Subscribed(_)), "{seen:?}");
    assert_eq!(ids(&seen), ["own"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_advances_the_token_when_no_event_matches_the_filter() {
    let gateway = gateway().await;
    let options = SubscribeOptions::new()
        .kind(EventKind::BlockedIp)
        .heartbeat_interval(Duration::from_secs(1));
    let mut subscription = client_of(&gateway, "n1").subscribe(options);
    subscribed(&mut subscription).await;
    let before = subscription.resume_token().to_vec();
    assert!(!before.is_empty());
    client_of(&gateway, "n2").publish([mailbox_change("a1", 1)]).await.expect("published");
    while subscription.resume_token() == before {
        let seen = next(&mut subscription).await;
        assert!(matches!(seen, Notification::Heartbeat(_)), "{seen:?}");
    }
}

/// A token, and a gateway whose history no longer reaches back to it: it keeps ten of 100 later
/// events.
async fn token_and_loss() -> (Gateway, Vec<u8>) {
    let gateway = short_history().await;
    let mut subscription = client_of(&gateway, "n1").subscribe(SubscribeOptions::new());
    subscribed(&mut subscription).await;
    let token = subscription.resume_token().to_vec();
    drop(subscription);
    let publisher = TestNode::connect(&gateway, "n2").await;
    for event in numbered("e", 100, 1) {
        publisher.publish(vec![event]).await.expect("published");
    }
    (gateway, token)
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_events_are_reported_as_a_gap_with_their_count() {
    let (gateway, token) = token_and_loss().await;
    let options = SubscribeOptions::new().resume_token(token);
    let mut subscription = client_of(&gateway, "n1").subscribe(options);
    let seen = until_event(&mut subscription, "e-99").await;
    let Notification::Subscribed(opened) = &seen[0] else { panic!("{seen:?}") };
    assert!(!opened.resumed);
    let gaps = gaps(&seen);
    let [gap] = &gaps[..] else { panic!("{gaps:?}") };
    assert_eq!(gap.reason(), GapReason::HistoryExpired);
    let missed = usize::try_from(gap.missed_events.expect("known")).expect("small");
    assert!(missed >= 80 && missed + ids(&seen).len() == 100, "{missed} and {:?}", ids(&seen));
}

/// The error that ends the subscription. Asserts that nothing follows it.
async fn fails(subscription: &mut Subscription) -> trunkline_client::Error {
    let error = loop {
        let next = tokio::time::timeout(LIMIT, subscription.next()).await.expect("in time");
        match next.expect("no end without an error") {
            Ok(Notification::Subscribed(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(subscription.next().await.is_none(), "the error ends it");
    assert!(subscription.next().await.is_none(), "and nothing follows later");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_subscription_ends_with_an_error_that_names_every_field() {
    let gateway = gateway().await;
    let client = client_of(&gateway, "");
    let mut subscription = client.subscribe(SubscribeOptions::new().custom_type("a*b"));
    let error = fails(&mut subscription).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let violations = error.violations();
    let fields: Vec<&str> = violations.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["node_id", "filter.custom_types[0]"], "{violations:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_token_is_reported_as_a_gap_and_the_subscription_starts_anew() {
    let gateway = gateway().await;
    let client = client_of(&gateway, "n1");
    let mut subscription = client.subscribe(SubscribeOptions::new().resume_token(b"damaged"));
    let Notification::Gap(gap) = next(&mut subscription).await else { panic!("a gap first") };
    assert_eq!((gap.reason(), gap.missed_events), (GapReason::UnknownEpoch, None));
    assert!(matches!(next(&mut subscription).await, Notification::Subscribed(_)));
    let event: Event = with_id("e", mailbox_change("a1", 1));
    client_of(&gateway, "n2").publish([event]).await.expect("published");
    until_event(&mut subscription, "e").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_notification_can_be_cancelled_without_loss() {
    let gateway = gateway().await;
    let mut subscription = client_of(&gateway, "n1").subscribe(SubscribeOptions::new());
    subscribed(&mut subscription).await;
    let publisher = client_of(&gateway, "n2");
    let publishing = tokio::spawn(async move {
        for event in numbered("e", 200, 1) {
            publisher.publish([event]).await.expect("published");
        }
    });
    let mut seen = vec![];
    while !matches!(seen.last(), Some(Notification::Event(event)) if event.event_id == "e-199") {
        // Cancelled again and again, at any point.
        let next = tokio::time::timeout(Duration::from_micros(300), subscription.next());
        if let Ok(next) = next.await {
            seen.push(next.expect("no end").expect("no error"));
        }
        assert!(seen.len() <= 200, "more than were published");
    }
    publishing.await.expect("no panic");
    assert_eq!(ids(&seen).len(), 200);
}

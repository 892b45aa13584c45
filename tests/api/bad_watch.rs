//! Requests on `Watch` streams that are wrong: each is answered by a status, and a wrong update
//! changes nothing.

use std::time::Duration;

use serde_json::json;
use tokio_stream::StreamExt;
use tonic::Code;
use trunkline_proto::v1::{
    Acknowledge, Filter, InterestUpdate, SubscribeRequest, WatchOpen, WatchRequest,
    watch_request::Request,
};

use crate::{
    deployment::Deployment,
    support::{
        LIMIT, TestNode,
        events::{mailbox_change, with_id},
        watch::accounts,
    },
};

fn update(update_id: u64, update: InterestUpdate) -> Request {
    Request::Update(InterestUpdate { update_id, ..update })
}

fn adding(names: &[&str]) -> InterestUpdate {
    InterestUpdate { add: Some(accounts(names.iter().copied())), ..Default::default() }
}

/// The status with which a stream ends that begins with these requests.
async fn ends_with(node: &TestNode, first: Vec<Request>) -> tonic::Status {
    let watch = node.watch_with(first).await.expect("headers come at once");
    watch.end(LIMIT).await.expect_err("an error")
}

#[tokio::test]
async fn requests_in_the_wrong_order_end_the_stream() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("n").await;
    let open = || Request::Open(node.open(accounts(["a"])));
    let incomplete = || Request::Open(WatchOpen { incomplete: true, ..node.open(accounts(["a"])) });
    let acknowledge = || Request::Acknowledge(Acknowledge { resume_token: vec![1], agent: None });
    let remove = InterestUpdate { remove: Some(accounts(["a"])), ..Default::default() };
    for (first, expected) in [
        (vec![update(1, adding(&["a"]))], "request: must begin with open"),
        (vec![acknowledge()], "request: must begin with open"),
        (vec![Request::Open(WatchOpen::default())], "open.subscribe: is required"),
        (vec![open(), open()], "open: the stream is open"),
        (vec![incomplete(), open()], "open: the stream is open"),
        (vec![incomplete(), acknowledge()], "acknowledge: the stream is not open yet"),
        (vec![incomplete(), update(1, remove)], "remove: a stream whose interest"),
        (vec![incomplete(), update(0, adding(&["b"]))], "update_id: is 0, must be higher"),
        (vec![open(), acknowledge()], "resume_token: these bytes are no resume token"),
    ] {
        let status = ends_with(&node, first).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with(expected), "{expected}: {}", status.message());
    }
    let request = WatchRequest { request: None };
    let stream = node.client.clone().watch(tokio_stream::once(request)).await.unwrap();
    let status = stream.into_inner().message().await.unwrap_err();
    assert_eq!(status.message(), "request: must be one of open, update and acknowledge");
}

#[tokio::test]
async fn a_wrong_update_is_rejected_by_its_number_and_changes_nothing() {
    let deployment = Deployment::embedded_with(|options| {
        options.set("limits", json!({ "maxAccountsPerStream": 5, "maxAccountsPerFilter": 4 }))
    })
    .await;
    let node = deployment.node("n").await;
    let watch = node.watch(node.open(accounts(["a", "b"]))).await;
    let types = Some(Filter { custom_types: vec!["t".into()], ..Filter::default() });
    for (id, wrong, expected) in [
        (3, adding(&[""]), "add.accounts[0]: is required"),
        (2, adding(&["c"]), "update_id: is 2, must be higher than 3"),
        (0, adding(&["c"]), "update_id: is 0, must be higher than 3"),
        (4, adding(&["1", "2", "3", "4", "5"]), "add.accounts: has 5; the limit is 4"),
        (5, adding(&["1", "2", "3", "4"]), "add.accounts: the stream would have 6; limits"),
        (6, InterestUpdate { add: types, ..Default::default() }, "add.custom_types: the stream"),
        (7, InterestUpdate { since: vec![1], ..adding(&["c"]) }, "since: these bytes are no"),
        (
            8,
            InterestUpdate { remove: Some(accounts(["a"])), replace: true, ..Default::default() },
            "remove: must be empty",
        ),
    ] {
        watch.send(update(id, wrong)).await;
        let status = watch.rejected(id).await.status.expect("a status");
        assert_eq!(status.code, Code::InvalidArgument as i32);
        assert!(status.message.starts_with(expected), "{expected}: {}", status.message);
        assert!(!status.details.is_empty(), "as any other error has them");
    }
    // As many as there may be, counted exactly: one of them is there, and one is removed.
    let add = Some(accounts(["a", "c", "d", "e"]));
    let remove = Some(accounts(["b", "x"]));
    watch.send(update(9, InterestUpdate { add, remove, ..Default::default() })).await;
    assert_eq!(watch.updated(9).await.accounts, 4);
    let publisher = deployment.node("p").await;
    let events = ["a", "b", "c", "1"].map(|account| with_id(account, mailbox_change(account, 1)));
    publisher.publish(events.to_vec()).await.unwrap();
    let mut ids = watch.events(2, LIMIT).await.event_ids;
    ids.sort();
    assert_eq!(ids, ["a", "c"]);
}

#[tokio::test]
async fn an_interest_that_stays_incomplete_is_given_up() {
    let deployment = Deployment::embedded_with(|options| {
        options.set("limits", json!({ "requestTimeout": "1s" }))
    })
    .await;
    let node = deployment.node("n").await;
    let open = || WatchOpen { incomplete: true, ..node.open(accounts(["a"])) };
    let part = InterestUpdate { incomplete: true, ..adding(&["b"]) };
    let status = ends_with(&node, vec![Request::Open(open()), update(1, part)]).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("limits.requestTimeout"), "{status:?}");
    // One whose node has closed its side is known to stay so.
    let mut watch = node.watch_with(vec![Request::Open(open())]).await.unwrap();
    watch.close_requests();
    let status = watch.end(LIMIT).await.unwrap_err();
    assert!(status.message().starts_with("open.incomplete: "), "{status:?}");
    // An open stream may be silent for longer.
    let watch = node.watch(node.open(accounts(["a"]))).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    watch.send(update(1, adding(&["b"]))).await;
    watch.updated(1).await;
}

#[tokio::test]
async fn a_token_that_was_not_sent_on_the_stream_cannot_be_acknowledged() {
    let deployment = Deployment::redis().await;
    let (node, publisher) = (deployment.node("n").await, deployment.node("p").await);
    let early = node.watch(node.open(accounts(["a"]))).await;
    let before = early.subscribed().await.resume_token;
    let publish = async |id: &str| {
        publisher.publish(vec![with_id(id, mailbox_change("a", 1))]).await.unwrap();
        early.event(id, LIMIT).await;
        early.last_token()
    };
    publish("1").await;
    // Before its begin; after what was sent on it; of another deployment.
    let late = node.watch(node.open(accounts(["x"]))).await;
    late.acknowledge(before).await;
    let status = late.end(LIMIT).await.unwrap_err();
    assert!(status.message().starts_with("acknowledge.resume_token: was not sent"), "{status:?}");
    let other = Deployment::redis().await;
    let other_node = other.node("n").await;
    let foreign = other_node.watch(other_node.open(accounts(["a"]))).await;
    let watch = node.watch(node.open(accounts(["x"]))).await;
    watch.acknowledge(foreign.subscribed().await.resume_token).await;
    let status = watch.end(LIMIT).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("another deployment"), "{status:?}");
    // Its own, in any order and more than once.
    let first = publish("2").await;
    let last = publish("3").await;
    for token in [&first, &last, &last, &first] {
        early.acknowledge(token.clone()).await;
    }
    publish("4").await;
    assert!(early.with(|recording| recording.ended().is_none()));
}

#[tokio::test]
async fn a_node_that_updates_and_does_not_read_holds_up_nobody() {
    let deployment = Deployment::embedded().await;
    let (node, other) = (deployment.node("n").await, deployment.node("m").await);
    let reader = other.subscribe(other.request()).await;
    let open = WatchRequest { request: Some(Request::Open(node.open(accounts(["a"])))) };
    let updates = (1..=1_000_000).map(|id| WatchRequest {
        request: Some(update(id, adding(&[if id % 2 == 0 { "b" } else { "" }]))),
    });
    let requests = tokio_stream::once(open).chain(tokio_stream::iter(updates));
    let unread = node.client.clone().watch(requests).await.unwrap().into_inner();
    let publisher = deployment.node("p").await;
    for n in 0..100 {
        let id = format!("e{n}");
        publisher.publish(vec![with_id(&*id, mailbox_change("b", 1))]).await.unwrap();
        reader.event(&id, LIMIT).await;
    }
    // Its answers wait in its connection, and its requests with its client.
    drop(unread);
    let request = SubscribeRequest { max_events: 1, ..other.request() };
    let last = other.subscribe(request).await;
    publisher.publish(vec![with_id("last", mailbox_change("b", 1))]).await.unwrap();
    last.end(LIMIT).await.unwrap();
}

//! Events that are published on a stream arrive once, in order, whatever becomes of the gateways.

use std::time::Duration;

use trunkline_client::{Client, ErrorKind, PublisherOptions, WhenFull};

use super::{Pair, client_of};
use crate::support::{
    LIMIT, TestNode,
    events::{email_delivery, numbered, with_id},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_moves_on_when_its_gateway_is_killed_and_publishes_everything_once() {
    let pair = Pair::start().await;
    let node = TestNode::connect(&pair.second, "observer").await;
    let observer = node.subscribe(node.request()).await;
    let publisher = pair.client("n1").publisher(PublisherOptions::new());
    let events = numbered("e", 3000, 7);
    let mut acknowledgements = Vec::new();
    for (index, event) in events.iter().enumerate() {
        acknowledgements.push(publisher.publish(event.clone()).await.expect("taken"));
        match index {
            // In the middle of what is on its way.
            1000 => pair.first.kill_9(),
            2000 => {
                pair.redis.pause().await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                pair.redis.resume();
            }
            _ => {}
        }
    }
    for acknowledgement in acknowledgements {
        acknowledgement.await.expect("published");
    }
    let recording = observer.events(3000, LIMIT).await;
    let ids: Vec<_> = events.iter().map(|event| event.event_id.clone()).collect();
    assert_eq!(recording.event_ids, ids);
    assert!(recording.gaps().is_empty());
    publisher.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_publisher_goes_on_with_what_was_not_acknowledged_and_everything_arrives_once() {
    let pair = Pair::start().await;
    let node = TestNode::connect(&pair.second, "observer").await;
    let observer = node.subscribe(node.request()).await;
    let events = numbered("e", 3000, 7);
    let mut publisher = pair.client("n1").publisher(PublisherOptions::new());
    let mut acknowledgements = Vec::new();
    for (index, event) in events.iter().enumerate() {
        acknowledgements.push(publisher.publish(event.clone()).await.expect("taken"));
        // With some acknowledged, some on their way and some that were not sent.
        if [700, 1500].contains(&index) {
            acknowledgements.remove(0).await.expect("published");
            let before = publisher.hand_over();
            let error = publisher.publish(event.clone()).await.expect_err("ended");
            assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
            // As another process has it.
            let client = pair.client("n1");
            (publisher, acknowledgements) = client.publisher_after(before, PublisherOptions::new());
        }
    }
    for acknowledgement in acknowledgements {
        acknowledgement.await.expect("published");
    }
    let recording = observer.events(3000, LIMIT).await;
    let ids: Vec<_> = events.iter().map(|event| event.event_id.clone()).collect();
    assert_eq!(recording.event_ids, ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_moves_a_publisher() {
    let pair = Pair::start().await;
    let node = TestNode::connect(&pair.second, "observer").await;
    let observer = node.subscribe(node.request()).await;
    let publisher = pair.client("n1").publisher(PublisherOptions::new());
    publisher.publish(numbered("a", 1, 1)[0].clone()).await.expect("taken").await.expect("ok");
    pair.first.signal_term();
    for event in numbered("b", 500, 3) {
        publisher.publish(event).await.expect("taken");
    }
    publisher.flush().await;
    assert_eq!(observer.events(501, LIMIT).await.event_ids.len(), 501);
    assert!(pair.first.ends(LIMIT).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_event_fails_alone() {
    let pair = Pair::start().await;
    let publisher = client_of(&pair.first, "n1").publisher(PublisherOptions::new());
    let good = numbered("e", 2, 1);
    let bad = with_id("bad", email_delivery("", "m"));
    let mut answers = Vec::new();
    for event in [good[0].clone(), bad, good[1].clone()] {
        answers.push(publisher.publish(event).await.expect("taken").await);
    }
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    let error = answers[1].as_ref().expect_err("a bad event");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(error.violations()[0].0, "events[0].email_delivery.account_id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_buffer_does_what_its_owner_chose() {
    // Nobody listens there.
    let client = Client::builder("n1").gateway("http://127.0.0.1:1").build().expect("built");
    let options = |when_full| PublisherOptions::new().max_events(2).when_full(when_full);
    let event = || numbered("e", 1, 1)[0].clone();

    let publisher = client.publisher(options(WhenFull::Fail));
    let _first = publisher.publish(event()).await.expect("taken");
    let _second = publisher.publish(event()).await.expect("taken");
    let full = publisher.publish(event()).await.expect_err("no room");
    assert_eq!(full.kind(), ErrorKind::Full);

    let publisher = client.publisher(options(WhenFull::DropOldest));
    let oldest = publisher.publish(event()).await.expect("taken");
    let _second = publisher.publish(event()).await.expect("taken");
    let _third = publisher.publish(event()).await.expect("taken");
    assert_eq!(oldest.await.expect_err("dropped").kind(), ErrorKind::Unavailable);

    let publisher = client.publisher(options(WhenFull::Wait).max_age(Duration::from_millis(300)));
    let first = publisher.publish(event()).await.expect("taken");
    let _second = publisher.publish(event()).await.expect("taken");
    // There is room once the first ones are too old.
    let _third = publisher.publish(event()).await.expect("taken later");
    assert_eq!(first.await.expect_err("too old").kind(), ErrorKind::Unavailable);
}

//! The last value of `queue_status`: a new or resuming stream gets the current one first.

use std::time::Duration;

use super::support::{
    SharedRedis, TestNode, events,
    gateway::{Gateway, GatewayOptions},
};
use trunkline_proto::v1::{Event, QueueStatus, event::Kind, queue_status::State};

const LIMIT: Duration = Duration::from_secs(15);

fn status(id: &str, state: State) -> Event {
    let kind = Some(Kind::QueueStatus(QueueStatus { state: state.into() }));
    Event { event_id: id.into(), kind, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_stream_begins_with_the_current_queue_status_on_any_gateway() {
    let redis = SharedRedis::get().await;
    let options = || GatewayOptions::redis(&redis.url, &redis.prefix);
    let first = Gateway::start(options()).await;
    let publisher = TestNode::connect(&first, "publisher").await;
    publisher.publish(vec![status("old", State::Running)]).await.expect("published");
    publisher.publish(vec![status("current", State::Paused)]).await.expect("published");
    publisher.publish(events::numbered("e", 5, 5)).await.expect("published");

    let second = Gateway::start(options()).await;
    let late = TestNode::connect(&second, "late").await;
    let collector = late.subscribe(late.request()).await;
    publisher.publish(events::numbered("f", 1, 1)).await.expect("published");
    let recording = collector.event("f-0", LIMIT).await;
    assert_eq!(recording.event_ids, ["current", "f-0"]);

    // A resumed stream gets it first too; one that resumes from before it, in its order and once.
    let mut resume = late.request();
    resume.resume_token = collector.last_token();
    let resumed = late.subscribe(resume).await;
    publisher.publish(events::numbered("g", 1, 1)).await.expect("published");
    assert_eq!(resumed.event("g-0", LIMIT).await.event_ids, ["current", "g-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_current_queue_status_obeys_the_filter() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    publisher.publish(vec![status("current", State::Paused)]).await.expect("published");
    let node = TestNode::connect(&gateway, "node").await;
    let mut request = node.request();
    request.filter = Some(trunkline_proto::v1::Filter { kinds: vec![10], ..Default::default() });
    let collector = node.subscribe(request).await;
    let own = publisher.subscribe(publisher.request()).await;
    publisher.publish(events::numbered("e", 1, 1)).await.expect("published");
    assert_eq!(collector.event("e-0", LIMIT).await.event_ids, ["e-0"]);
    // NoEcho holds for it too.
    assert!(own.event_ids().is_empty());
}

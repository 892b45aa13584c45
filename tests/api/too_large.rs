//! Events and requests that are too large: `INVALID_ARGUMENT` with the limit and the size, however
//! large they are.

use tonic::{Code, Status};
use trunkline_proto::v1::{Filter, PublishRequest, SubscribeRequest};

use crate::{
    deployment::Deployment,
    error_details::error_details,
    support::{LIMIT, TestNode, events, events::with_id},
};

const EVENT_LIMIT: usize = 64 << 10;
const REQUEST_LIMIT: usize = 4 << 20;

/// A request of at least so many bytes whose events are each small enough.
fn request(bytes: usize) -> PublishRequest {
    let event = events::large(60 << 10);
    let events = vec![event; bytes / (60 << 10) + 1];
    PublishRequest { node_id: "n1".into(), events, ..Default::default() }
}

fn sizes(status: &Status, field: &str) -> (usize, usize) {
    let error_details = error_details(status, Code::InvalidArgument, "PAYLOAD_TOO_LARGE");
    assert_eq!(error_details.violations.len(), 1);
    assert_eq!(error_details.violations[0].0, field);
    assert_eq!(error_details.retry, None);
    (
        error_details.metadata["limit"].parse().unwrap(),
        error_details.metadata["actual"].parse().unwrap(),
    )
}

#[tokio::test]
async fn an_event_that_is_too_large_is_reported_with_its_size() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("n1").await;
    let large = events::large(EVENT_LIMIT);
    let size = prost::Message::encoded_len(&large);
    let status = node.publish(vec![events::queue_refresh(), large]).await.unwrap_err();
    assert_eq!(sizes(&status, "events[1]"), (EVENT_LIMIT, size));
    assert!(status.message().contains(&size.to_string()));
}

#[tokio::test]
async fn a_request_that_is_too_large_is_reported_with_its_size() {
    let deployment = Deployment::embedded().await;
    let (other, subscriber) = (deployment.node("n2").await, deployment.node("n3").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    // A little more than fits; more than the gateway reads; far more.
    let client = deployment.gateway.client().await;
    for (number, bytes) in [REQUEST_LIMIT, 2 * REQUEST_LIMIT, 40 << 20].into_iter().enumerate() {
        let request = request(bytes);
        let size = prost::Message::encoded_len(&request);
        // Several times: an answer that comes before all was read may be lost by a client that
        // still writes.
        for _ in 0..5 {
            let status = client.clone().publish(request.clone()).await.unwrap_err();
            assert_eq!(sizes(&status, "request"), (REQUEST_LIMIT, size));
        }
        // The connection still serves, and so does that of the others.
        let on_it = TestNode { node_id: "n1".into(), client: client.clone() };
        on_it
            .publish(vec![with_id(format!("on-it-{number}"), events::queue_refresh())])
            .await
            .unwrap();
        other
            .publish(vec![with_id(format!("other-{number}"), events::queue_refresh())])
            .await
            .unwrap();
        collector.event(&format!("other-{number}"), LIMIT).await;
    }
    collector.events(6, LIMIT).await;
    assert_eq!(
        collector.event_ids(),
        ["on-it-0", "other-0", "on-it-1", "other-1", "on-it-2", "other-2"]
    );
}

#[tokio::test]
async fn the_largest_request_fits() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("n1").await;
    let mut request = request(REQUEST_LIMIT);
    request.events.truncate(REQUEST_LIMIT / (61 << 10));
    let left = REQUEST_LIMIT - prost::Message::encoded_len(&request);
    request.events.push(events::large(left.saturating_sub(200).min(60 << 10)));
    let size = prost::Message::encoded_len(&request);
    assert!(size <= REQUEST_LIMIT && size > REQUEST_LIMIT - (64 << 10), "{size}");
    let count = request.events.len();
    assert_eq!(node.publish(request.events).await.unwrap().len(), count);
}

#[tokio::test]
async fn a_subscribe_request_that_is_too_large_is_reported_with_its_size() {
    let deployment = Deployment::embedded().await;
    let mut client = deployment.gateway.client().await;
    for count in [40_000, 400_000] {
        let accounts = (0..count).map(|n| format!("{n:0>120}")).collect();
        let filter = Filter { accounts, ..Default::default() };
        let request =
            SubscribeRequest { node_id: "n1".into(), filter: Some(filter), ..Default::default() };
        let size = prost::Message::encoded_len(&request);
        let status = client.subscribe(request).await.unwrap_err();
        assert_eq!(sizes(&status, "request"), (REQUEST_LIMIT, size));
    }
}

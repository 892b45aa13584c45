//! The trace that an event belongs to: where it comes from, and that it never gets in the way.

use tonic::{Code, Request};
use trunkline_proto::v1::{Event, PublishRequest};

use crate::{
    deployment::Deployment,
    on_both_buses,
    support::{
        LIMIT, TestNode,
        events::{mailbox_change, with_id},
    },
};

on_both_buses!(
    an_event_carries_its_trace,
    events_without_a_trace_get_that_of_the_request,
    malformed_trace_contexts_are_ignored,
    oversized_trace_contexts_of_events_are_refused,
);

const ONE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TWO: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

fn traced(id: &str, traceparent: &str, tracestate: &str) -> Event {
    let (traceparent, tracestate) = (traceparent.to_owned(), tracestate.to_owned());
    Event { traceparent, tracestate, ..with_id(id, mailbox_change("a", 1)) }
}

/// Publishes with headers.
async fn publish(node: &TestNode, headers: &[(&'static str, &str)], events: Vec<Event>) {
    let node_id = node.node_id.clone();
    let mut request = Request::new(PublishRequest { node_id, events, ..Default::default() });
    for (name, value) in headers {
        request.metadata_mut().append(*name, value.parse().unwrap());
    }
    node.client.clone().publish(request).await.unwrap();
}

/// The trace contexts that a subscriber is given of `count` events.
async fn contexts(
    deployment: &Deployment,
    publish: impl AsyncFnOnce(TestNode),
    count: usize,
) -> Vec<(String, String)> {
    let subscriber = deployment.remote("subscriber").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    publish(deployment.node("publisher").await).await;
    let events = collector.events(count, LIMIT).await.events;
    events.into_iter().map(|event| (event.traceparent, event.tracestate)).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(one, two)| ((*one).to_owned(), (*two).to_owned())).collect()
}

async fn an_event_carries_its_trace(deployment: Deployment) {
    let events = vec![traced("e1", ONE, "v=1"), traced("e2", TWO, ""), traced("e3", "", "")];
    let seen = contexts(&deployment, async |node| publish(&node, &[], events).await, 3).await;
    assert_eq!(seen, pairs(&[(ONE, "v=1"), (TWO, ""), ("", "")]));
}

async fn events_without_a_trace_get_that_of_the_request(deployment: Deployment) {
    let headers = [("traceparent", TWO), ("tracestate", "a=1"), ("tracestate", "b=2")];
    let events = vec![
        traced("own", ONE, "v=1"),
        traced("none", "", ""),
        // A state without a trace belongs to none, and a malformed trace is none.
        traced("state", "", "v=2"),
        traced("malformed", "00-xyz", "v=3"),
    ];
    let seen = contexts(&deployment, async |node| publish(&node, &headers, events).await, 4).await;
    assert_eq!(seen[0], (ONE.to_owned(), "v=1".to_owned()));
    assert_eq!(seen[1..], pairs(&[(TWO, "a=1,b=2"); 3]));
}

async fn malformed_trace_contexts_are_ignored(deployment: Deployment) {
    let seen = contexts(
        &deployment,
        async |node| {
            for headers in [
                &[("traceparent", "nonsense"), ("tracestate", "a=1")][..],
                &[("traceparent", ONE), ("traceparent", TWO)],
                &[("tracestate", "a=1")],
            ] {
                publish(&node, headers, vec![traced("e", "", "")]).await;
            }
            publish(&node, &[], vec![traced("e", "nonsense", "v=1")]).await;
        },
        4,
    )
    .await;
    // A malformed one in an event passes as it is: the gateway takes nothing away.
    assert_eq!(seen, pairs(&[("", ""), ("", ""), ("", ""), ("nonsense", "v=1")]));
}

async fn oversized_trace_contexts_of_events_are_refused(deployment: Deployment) {
    let node = deployment.node("publisher").await;
    let event = traced("e", &"0".repeat(129), &"s".repeat(513));
    let status = node.publish(vec![event]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for part in ["events[0].traceparent", "events[0].tracestate"] {
        assert!(status.message().contains(part), "{}", status.message());
    }
    let most = traced("e", &"0".repeat(128), &"s".repeat(512));
    node.publish(vec![most]).await.unwrap();
}

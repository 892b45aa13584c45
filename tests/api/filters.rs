//! Filters: the promises Filtered and NoEcho, within a gateway and between two.

use trunkline_proto::v1::{Event, EventKind, Filter, SubscribeRequest, Target};

use crate::{
    deployment::Deployment,
    on_both_buses,
    support::{
        LIMIT, TestNode,
        events::{self, one_of_each, with_id},
    },
};

on_both_buses!(
    kinds_narrow_a_stream,
    accounts_narrow_only_the_kinds_that_concern_one,
    custom_types_match_whole_or_by_prefix,
    a_target_names_nodes_or_roles,
    a_node_receives_its_own_events_only_if_it_asks,
);

/// Published last: a stream that has it has everything before it.
fn last() -> Event {
    let target = Target { node_ids: vec![], roles: vec!["everyone".into()] };
    Event { target: Some(target), ..with_id("last", events::queue_refresh()) }
}

/// The ids of the events that a stream gets of `published`, which `last` follows in the same order.
async fn got(
    deployment: &Deployment,
    mut request: SubscribeRequest,
    published: &[Event],
) -> Vec<String> {
    if let Some(filter) = &mut request.filter
        && !filter.kinds.is_empty()
    {
        filter.kinds.push(EventKind::QueueRefresh.into());
    }
    request.roles.push("everyone".into());
    let subscriber = deployment.remote(&request.node_id).await;
    let collector = subscriber.subscribe(request).await;
    let publisher = deployment.node("publisher").await;
    publisher.publish(published.to_vec()).await.unwrap();
    publisher.publish(vec![last()]).await.unwrap();
    let mut ids = collector.event("last", LIMIT).await.event_ids;
    assert_eq!(ids.pop().as_deref(), Some("last"), "there is one shard");
    ids
}

fn request(filter: Filter) -> SubscribeRequest {
    SubscribeRequest { node_id: "n1".into(), filter: Some(filter), ..Default::default() }
}

fn named(events: Vec<Event>) -> Vec<Event> {
    events.into_iter().zip(0..).map(|(event, n)| with_id(format!("e{n}"), event)).collect()
}

async fn kinds_narrow_a_stream(deployment: Deployment) {
    // Without the kind of `last`, and without the one whose last value every new stream gets.
    let mut events = named(one_of_each("a"));
    events.retain(|event| !["e8", "e9"].contains(&event.event_id.as_str()));
    let all: Vec<_> = events.iter().map(|event| event.event_id.clone()).collect();
    assert_eq!(got(&deployment, request(Filter::default()), &events).await, all);
    for (index, id) in all.iter().enumerate() {
        let kind = 10 + id[1..].parse::<i32>().unwrap();
        let only = Filter { kinds: vec![kind], ..Default::default() };
        assert_eq!(got(&deployment, request(only), &events).await, [all[index].as_str()], "{kind}");
    }
    let two = Filter { kinds: vec![13, 20, 42], ..Default::default() };
    assert_eq!(got(&deployment, request(two), &events).await, ["e3", "e10"]);
}

async fn accounts_narrow_only_the_kinds_that_concern_one(deployment: Deployment) {
    let events: Vec<_> = [one_of_each("alice"), one_of_each("bob")].concat();
    // Events without an account come once for each.
    let events = named(events);
    let filter = Filter { accounts: vec!["alice".into(), "carol".into()], ..Default::default() };
    let ids = got(&deployment, request(filter), &events).await;
    let expected: Vec<_> =
        (0..22).filter(|n| !(11..15).contains(n)).map(|n| format!("e{n}")).collect();
    assert_eq!(ids, expected);
}

async fn custom_types_match_whole_or_by_prefix(deployment: Deployment) {
    let events: Vec<_> = ["com.example.paid", "com.example.paid.twice", "org.a", "org", "net.b"]
        .map(|name| with_id(name, events::custom(name)))
        .into_iter()
        .chain([with_id("mailbox", events::mailbox_change("a", 1))])
        .collect();
    let custom_types = vec!["com.example.paid".into(), "org.*".into()];
    let filter = Filter { custom_types, ..Default::default() };
    let ids = got(&deployment, request(filter), &events).await;
    assert_eq!(ids, ["com.example.paid", "org.a", "mailbox"]);
    let filter = Filter { custom_types: vec!["*".into()], ..Default::default() };
    assert_eq!(got(&deployment, request(filter), &events).await.len(), 6);
}

async fn a_target_names_nodes_or_roles(deployment: Deployment) {
    let to = |id: &str, node_ids: &[&str], roles: &[&str]| {
        let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let target = Target { node_ids: strings(node_ids), roles: strings(roles) };
        Event { target: Some(target), ..with_id(id, events::queue_refresh()) }
    };
    let events = [
        to("me", &["n2", "n1"], &[]),
        to("other", &["n2"], &[]),
        to("my role", &["n2"], &["mta", "imap"]),
        to("other role", &[], &["mta"]),
        to("a role is no node id", &["imap"], &["n1"]),
        to("nobody", &[], &[]),
        with_id("everyone", events::queue_refresh()),
    ];
    let request = SubscribeRequest { roles: vec!["imap".into()], ..request(Filter::default()) };
    assert_eq!(got(&deployment, request, &events).await, ["me", "my role", "everyone"]);
}

async fn a_node_receives_its_own_events_only_if_it_asks(deployment: Deployment) {
    let node = deployment.node("n1").await;
    let quiet = node.subscribe(node.request()).await;
    // The same node id on another gateway is the same node.
    let away = deployment.remote("n1").await;
    let away = away.subscribe(away.request()).await;
    let asks = SubscribeRequest { include_own_events: true, ..node.request() };
    let echo = node.subscribe(asks).await;
    let publish = async |node: &TestNode, id: &str| {
        node.publish(vec![with_id(id, events::queue_refresh())]).await.unwrap();
    };
    publish(&node, "own").await;
    publish(&deployment.node("n2").await, "other").await;
    // The request names the publisher, not the event.
    let pretender = Event { source: "n2".into(), ..with_id("pretended", events::queue_refresh()) };
    node.publish(vec![pretender]).await.unwrap();
    publish(&deployment.node("n3").await, "last").await;
    for collector in [&quiet, &away] {
        assert_eq!(collector.event("last", LIMIT).await.event_ids, ["other", "last"]);
    }
    let recording = echo.event("last", LIMIT).await;
    assert_eq!(recording.event_ids, ["own", "other", "pretended", "last"]);
    let sources: Vec<_> = recording.events.iter().map(|event| event.source.as_str()).collect();
    assert_eq!(sources, ["n1", "n2", "n1", "n3"]);
}

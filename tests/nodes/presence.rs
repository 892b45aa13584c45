//! `node_joined` and `node_left`: what subscribers know of the nodes by events.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use serde_json::json;
use tonic::{Code, metadata::MetadataValue};
use trunkline_proto::v1::{
    Event, EventKind, Filter, GapReason, InterestUpdate, MissedEvents, NodeJoined, NodeLeft,
    NodeLeftReason, PublishRequest, SubscribeRequest, event::Kind, watch_request::Request,
};

use super::{
    named, nodes, redis,
    support::{
        Collector, Gateway, GatewayOptions, LIMIT, Recording, RedisServer, Seen, SharedCluster,
        TestNode, Watch, until,
    },
};

/// In which a gateway that is gone is taken for lost, and the one that finds it may be gone too.
const LOST: Duration = Duration::from_mins(2);

fn options(redis: &RedisServer, id: &str) -> GatewayOptions {
    named(GatewayOptions::redis(&redis.url(), "nodes"), id).set("nodeEvents", true)
}

async fn one(redis: &RedisServer, id: &str) -> Gateway {
    Gateway::start(options(redis, id)).await
}

async fn two(redis: &RedisServer) -> (Gateway, Gateway) {
    tokio::join!(one(redis, "gw-a"), one(redis, "gw-b"))
}

fn about_nodes() -> Filter {
    let kinds = vec![EventKind::NodeJoined.into(), EventKind::NodeLeft.into()];
    Filter { kinds, ..Default::default() }
}

/// A subscriber of the events about nodes, with or without the list of those that are there.
async fn follow(gateway: &Gateway, node_id: &str, current_nodes: bool) -> Collector {
    let node = TestNode::connect(gateway, node_id).await;
    let filter = Some(about_nodes());
    node.subscribe(SubscribeRequest { filter, current_nodes, ..node.request() }).await
}

async fn open(node: &TestNode, node_id: &str) -> Collector {
    let node_id = node_id.to_owned();
    node.subscribe(SubscribeRequest { node_id, ..Default::default() }).await
}

fn joined(event: &Event) -> Option<&NodeJoined> {
    match &event.kind {
        Some(Kind::NodeJoined(joined)) => Some(joined),
        _ => None,
    }
}

fn left(event: &Event) -> Option<&NodeLeft> {
    match &event.kind {
        Some(Kind::NodeLeft(left)) => Some(left),
        _ => None,
    }
}

/// The events about the streams of a node, of the bus: the reasons for which it left, and none for
/// each time it joined.
fn of_node(recording: &Recording, node_id: &str) -> Vec<Option<NodeLeftReason>> {
    let of_event = |event: &Event| match (joined(event), left(event)) {
        (Some(joined), _) if joined.node_id == node_id && !joined.current => Some(None),
        (_, Some(left)) if left.node_id == node_id => Some(Some(left.reason())),
        _ => None,
    };
    recording.events.iter().filter_map(of_event).collect()
}

/// The map that a simple client keeps: node ids by subscription ids.
fn map(recording: &Recording) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for event in &recording.events {
        if let Some(joined) = joined(event) {
            map.insert(joined.subscription_id.clone(), joined.node_id.clone());
        } else if let Some(left) = left(event) {
            map.remove(&left.subscription_id);
        }
    }
    map
}

/// The same, as a gateway lists it.
async fn listed(gateway: &Gateway) -> BTreeMap<String, String> {
    let nodes = nodes(gateway).await.into_iter();
    nodes.map(|node| (node.subscription_id, node.node_id)).collect()
}

/// Waits until the map of a subscriber is the list of a gateway.
async fn agree(limit: Duration, subscriber: &Collector, gateway: &Gateway) {
    let same = async || subscriber.with(map) == listed(gateway).await;
    until(limit, "the events and the list agree", same).await;
}

/// Waits until a subscriber knows that all nodes have joined whose ids begin so.
async fn have_joined(subscriber: &Collector, prefix: &str, count: usize) {
    let are_there = |recording: &Recording| {
        let joined = map(recording).into_values().filter(|id| id.starts_with(prefix)).count();
        (joined == count).then_some(())
    };
    subscriber.wait(LIMIT, &format!("{count} nodes {prefix}.. have joined"), are_there).await;
}

/// Each event of the bus came once, by its name, and no event is lost.
fn is_unbroken(subscriber: &Collector) {
    subscriber.with(|recording| {
        assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
        let bus = recording.events.iter().filter(|event| !event.event_id.is_empty());
        let mut ids = HashSet::new();
        for event in bus {
            assert!(ids.insert(&event.event_id), "{event:?}");
            assert!(event.source.is_empty() && event.publish_time.is_some(), "{event:?}");
            assert!(joined(event).is_none_or(|joined| !joined.current));
        }
    });
}

/// Nodes join and leave on two gateways, each once for all subscribers.
async fn each_once(a: &Gateway, b: &Gateway) {
    let subscribers = [
        follow(a, "sub-1", false).await,
        follow(b, "sub-2", false).await,
        follow(b, "s", true).await,
    ];
    let (on_a, on_b) = (TestNode::connect(a, "").await, TestNode::connect(b, "").await);
    let node_a = open(&on_a, "node-a").await;
    let request = SubscribeRequest {
        node_id: "node-b".into(),
        incarnation: "boot-7".into(),
        roles: vec!["imap".into(), "mta".into()],
        ..Default::default()
    };
    let node_b = on_b.subscribe(request).await;
    let subscribed = node_b.subscribed().await;
    for subscriber in &subscribers {
        let what = "node-b joins";
        let found = subscriber.wait(LIMIT, what, |recording| {
            recording.events.iter().filter_map(joined).find(|j| j.node_id == "node-b").cloned()
        });
        let joined = found.await;
        assert_eq!((&*joined.gateway_id, &*joined.incarnation), ("gw-b", "boot-7"));
        assert_eq!(joined.roles, ["imap", "mta"]);
        assert_eq!(joined.subscription_id, subscribed.subscription_id);
        assert!(joined.peer.starts_with("127.0.0.1:") && joined.connect_time.is_some());
    }
    drop((node_a, node_b));
    let both = [None, Some(NodeLeftReason::Closed)];
    for subscriber in &subscribers {
        for node in ["node-a", "node-b"] {
            let left = |recording: &Recording| (of_node(recording, node) == both).then_some(());
            subscriber.wait(LIMIT, "joined and left", left).await;
        }
        is_unbroken(subscriber);
    }
    for subscriber in &subscribers {
        let found = subscriber.with(|recording| {
            let left = recording.events.iter().filter_map(left).find(|l| l.node_id == "node-b");
            left.cloned()
        });
        let left = found.unwrap();
        assert_eq!((&*left.gateway_id, &*left.incarnation), ("gw-b", "boot-7"));
        assert_eq!(left.subscription_id, subscribed.subscription_id);
    }
    for (subscriber, gateway) in [(&subscribers[2], a), (&subscribers[2], b)] {
        agree(LIMIT, subscriber, gateway).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_join_and_leave_once_for_every_subscriber() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    each_once(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_cluster_join_and_leave_once_for_every_subscriber() {
    let cluster = SharedCluster::get().await;
    let options = |id| {
        let options = GatewayOptions::redis_cluster(&cluster.urls, &cluster.prefix);
        named(options, id).set("nodeEvents", true)
    };
    let (a, b) = tokio::join!(Gateway::start(options("gw-a")), Gateway::start(options("gw-b")));
    each_once(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_bus_has_the_list_and_the_events() {
    let gateway = Gateway::start(GatewayOptions::embedded().set("nodeEvents", true)).await;
    let node = TestNode::connect(&gateway, "").await;
    let first = open(&node, "first").await;
    let early = follow(&gateway, "early", true).await;
    agree(LIMIT, &early, &gateway).await;
    let late = follow(&gateway, "late", true).await;
    let complete = |recording: &Recording| {
        recording.seen.iter().find_map(|seen| match seen {
            Seen::CurrentNodes(current) => Some(current.nodes),
            _ => None,
        })
    };
    // Both were there; whether its own stream is on the list is a question of time.
    let count = late.wait(LIMIT, "the end of the list", complete).await;
    assert!((2..=3).contains(&count), "{count}");
    late.with(|recording| {
        let current = recording.events.iter().filter(|event| event.event_id.is_empty());
        let current: Vec<&str> =
            current.filter_map(joined).map(|joined| &*joined.node_id).collect();
        assert!(current.len() as u64 == count && current.is_sorted(), "{current:?}");
        assert!(current.contains(&"first") && current.contains(&"early"), "{current:?}");
        assert!(matches!(recording.seen[0], Seen::Subscribed(_)), "it comes first");
    });
    drop(first);
    for subscriber in [&early, &late] {
        agree(LIMIT, subscriber, &gateway).await;
        is_unbroken(subscriber);
        let gone = |recording: &Recording| {
            let left = recording.events.iter().filter_map(left);
            left.map(NodeLeft::reason).next()
        };
        assert_eq!(subscriber.wait(LIMIT, "it left", gone).await, NodeLeftReason::Closed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_gateway_that_stops_are_drained() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let subscriber = follow(&a, "sub", true).await;
    let on_b = TestNode::connect(&b, "").await;
    let mut held = Vec::new();
    for number in 0..20 {
        held.push(open(&on_b, &format!("node-{number}")).await);
    }
    have_joined(&subscriber, "node-", 20).await;
    b.terminate(LIMIT).await;
    let drained = [None, Some(NodeLeftReason::Drained)];
    for number in 0..20 {
        let node = format!("node-{number}");
        let done = |recording: &Recording| (of_node(recording, &node) == drained).then_some(());
        // Long before a gateway is taken for lost.
        subscriber.wait(Duration::from_secs(8), "it is drained", done).await;
    }
    agree(LIMIT, &subscriber, &a).await;
    is_unbroken(&subscriber);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_gateways_that_die_are_lost_once_whoever_finds_them() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let (c, d) = tokio::join!(one(&redis, "gw-c"), one(&redis, "gw-d"));
    let subscribers = [follow(&a, "sub-1", true).await, follow(&a, "sub-2", false).await];
    let mut held = Vec::new();
    for (gateway, name) in [(&b, "b"), (&c, "c"), (&d, "d")] {
        let node = TestNode::connect(gateway, "").await;
        for number in 0..100 {
            held.push(open(&node, &format!("node-{name}-{number}")).await);
        }
    }
    have_joined(&subscribers[0], "node-", 300).await;
    // One that would publish for another may be gone too: b and c at once, and d after them.
    b.kill_9();
    c.kill_9();
    let is_lost = |recording: &Recording| {
        let lost = recording.events.iter().filter_map(left);
        lost.map(|left| left.node_id.clone()).next()
    };
    subscribers[0].wait(LOST, "some are lost", is_lost).await;
    d.kill_9();
    let lost = [None, Some(NodeLeftReason::Lost)];
    let all =
        || (0..100).flat_map(|number| ["b", "c", "d"].map(|name| format!("node-{name}-{number}")));
    for subscriber in &subscribers {
        let missing = || {
            let is_lost = |node: &String| {
                subscriber.with(|recording| of_node(recording, node).contains(&lost[1]))
            };
            all().filter(|node| !is_lost(node)).collect::<Vec<_>>()
        };
        let begun = std::time::Instant::now();
        while !missing().is_empty() {
            if begun.elapsed() > LOST {
                let metrics = a.admin("/metrics").await;
                let metrics: Vec<&str> =
                    metrics.lines().filter(|line| line.contains("_node_events_")).collect();
                panic!("{:?} are not lost: {metrics:#?}", missing());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        is_unbroken(subscriber);
    }
    agree(LIMIT, &subscribers[0], &a).await;
    for subscriber in &subscribers {
        subscriber.with(|recording| {
            for node in all() {
                assert_eq!(of_node(recording, &node), lost, "{node}");
            }
        });
    }
}

/// A page of history without such events is still to come then.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_asked_for_while_its_gateway_starts_comes_soon() {
    let redis = redis().await;
    let begin = async |number: usize| {
        let prefix = format!("starts-{number}");
        let options = named(GatewayOptions::redis(&redis.url(), &prefix), "gw");
        let gateway = Gateway::start(options.set("nodeEvents", true)).await;
        // One that waits for five seconds is refused.
        follow(&gateway, "sub", true).await;
    };
    for round in 0..5 {
        tokio::join!(begin(4 * round), begin(4 * round + 1), begin(4 * round + 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_frozen_gateway_that_comes_back_join_anew() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let subscriber = follow(&a, "sub", true).await;
    let on_b = TestNode::connect(&b, "").await;
    let (stays, goes) = (open(&on_b, "stays").await, open(&on_b, "goes").await);
    have_joined(&subscriber, "stays", 1).await;
    have_joined(&subscriber, "goes", 1).await;
    b.pause().await;
    let lost = Some(NodeLeftReason::Lost);
    for node in ["stays", "goes"] {
        let is_lost = |recording: &Recording| (of_node(recording, node).len() == 2).then_some(());
        subscriber.wait(LOST, "it is lost", is_lost).await;
    }
    // A list that begins now knows nothing of them.
    let meanwhile = follow(&a, "meanwhile", true).await;
    agree(LIMIT, &meanwhile, &a).await;
    drop(goes);
    b.resume();
    let back =
        |recording: &Recording| (of_node(recording, "stays") == [None, lost, None]).then_some(());
    for subscriber in [&subscriber, &meanwhile] {
        let joins = |recording: &Recording| {
            of_node(recording, "stays").last().is_some_and(Option::is_none).then_some(())
        };
        subscriber.wait(LOST, "it joins anew", joins).await;
        agree(LOST, subscriber, &a).await;
        agree(LOST, subscriber, &b).await;
        is_unbroken(subscriber);
    }
    subscriber.wait(LIMIT, "both", back).await;
    drop(stays);
    let gone = |recording: &Recording| {
        let all = [None, lost, None, Some(NodeLeftReason::Closed)];
        (of_node(recording, "stays") == all).then_some(())
    };
    subscriber.wait(LIMIT, "it leaves", gone).await;
    agree(LIMIT, &meanwhile, &a).await;
    // The other one left by the gateway's death, and is not there any more: whether it joined in
    // between is a question of when the gateway saw its connection.
    let goes = subscriber.with(|recording| of_node(recording, "goes"));
    assert!(goes[..2] == [None, lost] && goes.last().is_some_and(Option::is_some), "{goes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_and_the_events_after_it_are_the_truth_while_nodes_come_and_go() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let mut subscribers = vec![follow(&a, "sub-0", true).await];
    let on = [TestNode::connect(&a, "").await, TestNode::connect(&b, "").await];
    // More than a page.
    let mut held = Vec::new();
    for number in 0..600 {
        held.push(open(&on[number % 2], &format!("stays-{number}")).await);
    }
    let mut coming: Vec<Collector> = Vec::new();
    for round in 0..12 {
        for number in 0..20 {
            let node_id = format!("comes-{}-{round}", number * 7 % 20);
            coming.push(open(&on[number % 2], &node_id).await);
        }
        // Those of the round before last leave, while a list is read.
        let leaving = coming.len().saturating_sub(25);
        let leave = async {
            for one in coming.drain(..leaving) {
                drop(one);
                tokio::task::yield_now().await;
            }
        };
        let gateway = if round % 2 == 0 { &a } else { &b };
        let name = format!("sub-{}", round + 1);
        let (subscriber, ()) = tokio::join!(follow(gateway, &name, true), leave);
        subscribers.push(subscriber);
    }
    // One that resumes gets the list too, from then on.
    let token = subscribers[1].last_token();
    let node = TestNode::connect(&b, "resumed").await;
    let request = SubscribeRequest {
        filter: Some(about_nodes()),
        current_nodes: true,
        resume_token: token,
        ..node.request()
    };
    subscribers.push(node.subscribe(request).await);
    drop(coming);
    for subscriber in &subscribers {
        agree(Duration::from_mins(1), subscriber, &a).await;
        agree(Duration::from_mins(1), subscriber, &b).await;
        is_unbroken(subscriber);
        subscriber.with(|recording| {
            let ends = recording.seen.iter().filter(|seen| matches!(seen, Seen::CurrentNodes(_)));
            assert_eq!(ends.count(), 1);
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_redis_is_away_is_published_after() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let subscriber = follow(&a, "sub", true).await;
    let on = [TestNode::connect(&a, "").await, TestNode::connect(&b, "").await];
    let mut held = Vec::new();
    for number in 0..40 {
        held.push(open(&on[number % 2], &format!("node-{number}")).await);
    }
    have_joined(&subscriber, "node-", 40).await;
    redis.pause().await;
    held.truncate(10);
    // Longer than a record lives: the gateways do not take one another for lost.
    tokio::time::sleep(Duration::from_secs(13)).await;
    redis.resume();
    for gateway in [&a, &b] {
        agree(LOST, &subscriber, gateway).await;
    }
    subscriber.with(|recording| {
        for number in 0..40 {
            let of_node = of_node(recording, &format!("node-{number}"));
            let left = (number >= 10).then_some(Some(NodeLeftReason::Closed));
            assert_eq!(of_node, [None].into_iter().chain(left).collect::<Vec<_>>(), "{number}");
        }
    });
    is_unbroken(&subscriber);
    // And what it loses with everything else is restored.
    redis.cli(&["FLUSHALL"]).await;
    drop(held);
    agree(LOST, &subscriber, &a).await;
    let late = follow(&b, "late", true).await;
    agree(LOST, &late, &a).await;
    agree(LOST, &subscriber, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_get_them_if_they_ask_and_gateways_refuse_where_they_publish_none() {
    let redis = redis().await;
    let (a, off) = tokio::join!(
        one(&redis, "gw-a"),
        Gateway::start(options(&redis, "gw-off").set("nodeEvents", false)),
    );
    let node = TestNode::connect(&a, "n").await;
    let (all, asks) = (node.subscribe(node.request()).await, follow(&a, "asks", true).await);
    let _hidden = open(&TestNode::connect(&off, "").await, "on-off").await;
    let other = open(&TestNode::connect(&a, "").await, "other").await;
    let joins = |recording: &Recording| (of_node(recording, "other").len() == 1).then_some(());
    asks.wait(LIMIT, "it joins", joins).await;
    drop(other);
    let both = |recording: &Recording| (of_node(recording, "other").len() == 2).then_some(());
    asks.wait(LIMIT, "it leaves", both).await;
    assert!(all.with(|recording| recording.events.is_empty()));
    // A gateway that publishes none has nodes that nobody knows by events.
    until(LIMIT, "it is listed", async || listed(&a).await.values().any(|id| id == "on-off")).await;
    let late = follow(&a, "late", true).await;
    let ends = |recording: &Recording| {
        recording.seen.iter().any(|seen| matches!(seen, Seen::CurrentNodes(_))).then_some(())
    };
    late.wait(LIMIT, "the end of the list", ends).await;
    assert!(late.with(|recording| map(recording).values().all(|id| id != "on-off")));

    let node = TestNode::connect(&off, "n").await;
    let asks = |filter, current_nodes| SubscribeRequest {
        filter: Some(filter),
        current_nodes,
        ..node.request()
    };
    let error = node.stream(asks(about_nodes(), false)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("nodeEvents"), "{error}");
    let error = node.stream(asks(Filter::default(), true)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with("current_nodes: needs EVENT_KIND_NODE_JOINED"), "{error}");
    // An update of the interest is refused, and the stream goes on.
    let watch: Watch = node.watch(node.open(Filter::default())).await;
    let add = Some(about_nodes());
    watch.send(Request::Update(InterestUpdate { update_id: 1, add, ..Default::default() })).await;
    let rejected = watch.wait(LIMIT, "the answer", |recording| {
        recording.seen.iter().find_map(|seen| match seen {
            Seen::InterestRejected(rejected) => rejected.status.clone(),
            _ => None,
        })
    });
    let rejected = rejected.await;
    assert_eq!(rejected.code, i32::from(Code::FailedPrecondition), "{rejected:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_alone_make_them_and_rules_hide_them() {
    let token = |secret: &str| json!([{ "@type": "Value", "secret": secret }]);
    let every = json!({ "allow": { "kinds": ["*"] } });
    let identity = |name: &str, operations: &[&str]| {
        json!({ "name": name, "tokens": token(&format!("token-of-node-{name}")), "nodeIds": ["*"],
                "publish": every, "receive": every, "operations": operations })
    };
    let auth = json!({ "identities": [identity("lists", &["listNodes"]), identity("blind", &[])] });
    let options = GatewayOptions::embedded().set("nodeEvents", true).set("auth", auth);
    let gateway = Gateway::start(options).await;
    let client = gateway.client().await;
    let with = |identity: &str| -> MetadataValue<_> {
        format!("Bearer token-of-node-{identity}").parse().unwrap()
    };
    let subscribe = async |identity: &str, kinds: &[EventKind], current_nodes| {
        let kinds = kinds.iter().map(|kind| i32::from(*kind)).collect();
        let filter = Some(Filter { kinds, ..Default::default() });
        let node_id = format!("node-of-{identity}");
        let request = SubscribeRequest { node_id, filter, current_nodes, ..Default::default() };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("authorization", with(identity));
        client.clone().subscribe(request).await
    };
    for kinds in [
        &[EventKind::NodeJoined][..],
        &[EventKind::NodeLeft],
        &[EventKind::Custom, EventKind::NodeJoined],
    ] {
        let error = subscribe("blind", kinds, false).await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
        assert!(error.message().contains("may not be received"), "{error}");
    }
    let error = subscribe("blind", &[EventKind::NodeJoined], true).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    let blind = subscribe("blind", &[], false).await.unwrap().into_inner();
    let blind = Collector::start("blind".into(), blind, super::support::Keep::Everything);
    let kinds = [EventKind::NodeJoined, EventKind::NodeLeft];
    let lists = subscribe("lists", &kinds, true).await.unwrap().into_inner();
    let lists = Collector::start("lists".into(), lists, super::support::Keep::Everything);
    let sees = |recording: &Recording| {
        let nodes: BTreeSet<String> = map(recording).into_values().collect();
        (nodes.len() == 2).then_some(nodes)
    };
    let seen = lists.wait(LIMIT, "both", sees).await;
    assert!(seen.iter().eq(["node-of-blind", "node-of-lists"]));
    assert!(blind.with(|recording| recording.events.is_empty()));

    let publish = async |identity: &str, event: Event| {
        let request =
            PublishRequest { node_id: "n".into(), events: vec![event], ..Default::default() };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("authorization", with(identity));
        client.clone().publish(request).await
    };
    for (event, name) in [
        (Event::from(NodeJoined { node_id: "x".into(), ..Default::default() }), "node_joined"),
        (Event::from(NodeLeft { node_id: "x".into(), ..Default::default() }), "node_left"),
    ] {
        let error = publish("lists", event).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let why = format!("events[0].kind: {name} is made by gateways alone");
        assert_eq!(error.message(), why);
    }
    // What a report says of these kinds is a gap for those who follow them, and for nobody else.
    let kinds = kinds.map(i32::from).to_vec();
    let report = MissedEvents { missed_events: None, kinds };
    publish("lists", report.into()).await.unwrap();
    let gap = lists.gap(LIMIT).await;
    assert_eq!((gap.reason(), gap.missed_events), (GapReason::NotPublished, None));
    assert!(blind.with(|recording| recording.gaps().is_empty()));
}

/// Calls of scripts, and the time that Redis spent on them, in us.
async fn spent(redis: &RedisServer) -> (u64, u64) {
    let usec = redis.command_stat("evalsha", "usec").await.and_then(|usec| usec.parse().ok());
    (redis.calls("evalsha").await, usec.unwrap_or(0))
}

/// Nodes that come and go on two gateways, so many at once; what that costs.
async fn come_and_go(on: bool, at_once: usize, times: usize) {
    let redis = redis().await;
    let start = |id| Gateway::start(options(&redis, id).set("nodeEvents", on));
    let (a, b) = tokio::join!(start("gw-a"), start("gw-b"));
    let on_both = [TestNode::connect(&a, "").await, TestNode::connect(&b, "").await];
    redis.cli(&["CONFIG", "RESETSTAT"]).await;
    let begun = std::time::Instant::now();
    for _ in 0..times {
        let mut held = Vec::new();
        for number in 0..at_once {
            held.push(open(&on_both[number % 2], &format!("node-{number}")).await);
        }
        for gateway in [&a, &b] {
            until(LIMIT, "all", async || listed(gateway).await.len() == at_once).await;
        }
        drop(held);
        for gateway in [&a, &b] {
            until(LIMIT, "none", async || listed(gateway).await.is_empty()).await;
        }
    }
    let (calls, usec) = spent(&redis).await;
    let took = begun.elapsed();
    println!("nodeEvents {on}: {times} x {at_once} nodes in {took:?}: {calls} evalsha, {usec} us");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: what a node that comes and goes costs Redis"]
async fn what_a_node_that_comes_and_goes_costs_redis() {
    for (at_once, times) in [(1000, 1), (1, 20)] {
        for on in [false, true] {
            come_and_go(on, at_once, times).await;
        }
    }
}

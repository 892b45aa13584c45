//! `trunkline nodes --watch`: over events about nodes, and over lists.

use serde_json::{Value, json};
use trunkline_proto::v1::{Event, EventKind, Filter, SubscribeRequest, event::Kind};

use super::{code, gateway, to};
use crate::support::{
    Collector, Gateway, GatewayOptions, LIMIT, Recording, RedisOptions, RedisServer, Seen,
    TestNode,
    gateway::trunkline,
    process::{Process, Program},
    shared, until,
};

/// A gateway that publishes events about nodes.
async fn with_events() -> Gateway {
    Gateway::start(GatewayOptions::embedded().set("nodeEvents", true)).await
}

async fn open(gateway: &Gateway, node_id: &str, roles: &[&str]) -> Collector {
    let node = TestNode::connect(gateway, node_id).await;
    let roles = roles.iter().map(|&role| role.to_owned()).collect();
    node.subscribe(SubscribeRequest { roles, ..node.request() }).await
}

/// Waits until so many nodes of the test are in the list with which a stream begins.
async fn are_listed(gateway: &Gateway, count: usize) {
    let observer = TestNode::connect(gateway, "observer").await;
    let filter = Filter { kinds: vec![EventKind::NodeJoined.into()], ..Filter::default() };
    let is_ours = |event: &&Event| match &event.kind {
        Some(Kind::NodeJoined(joined)) => joined.current && joined.node_id.starts_with("mx"),
        _ => false,
    };
    until(LIMIT, "the nodes are in the list", async || {
        let filter = Some(filter.clone());
        let request = SubscribeRequest { filter, current_nodes: true, ..observer.request() };
        let stream = observer.subscribe(request).await;
        let complete = |seen: &Recording| {
            let ends = seen.seen.iter().any(|seen| matches!(seen, Seen::CurrentNodes(_)));
            ends.then(|| seen.events.iter().filter(is_ours).count())
        };
        stream.wait(LIMIT, "the list", complete).await == count
    })
    .await;
}

async fn prints(process: &Process, text: &str) {
    until(LIMIT, text, async || {
        assert!(process.ended().is_none(), "{}", process.stderr());
        process.stdout().contains(text)
    })
    .await;
}

/// The objects that were printed.
fn objects(process: &Process) -> Vec<Value> {
    let text = process.stdout();
    let values = serde_json::Deserializer::from_str(&text).into_iter();
    values.map(|value| value.expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_join_and_leave_follow_the_list_with_the_reason() {
    let gateway = with_events().await;
    let (_first, second) =
        (open(&gateway, "mx1", &["imap"]).await, open(&gateway, "mx2", &[]).await);
    are_listed(&gateway, 2).await;
    let text = Process::start("watch", to(&gateway, ["nodes", "--watch"]));
    let args = ["nodes", "--watch", "--json", "--node-id", "mx2"];
    let one = Process::start("watch-json", to(&gateway, args));
    prints(&text, "mx2").await;
    prints(&one, "currentNodes").await;
    let third = open(&gateway, "mx3", &["imap", "mta"]).await;
    prints(&text, "joined mx3 (imap,mta) at ").await;
    drop(second);
    prints(&text, "left   mx2 at ").await;
    drop(third);
    prints(&text, "left   mx3 (imap,mta) at ").await;
    prints(&one, "nodeLeft").await;

    let shown = text.stdout();
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines[0].starts_with("NODE ") && lines[1].starts_with("mx1  "), "{shown}");
    assert!(lines[2].starts_with("mx2  "), "{shown}");
    // Not itself, and not the other watch, though that joins as a node.
    let of_nodes: Vec<_> = lines[3..].iter().filter(|line| line.contains(" mx")).collect();
    assert_eq!(of_nodes.len(), 3, "{shown}");
    assert!(of_nodes.iter().all(|line| line.starts_with("20")), "{shown}");
    assert!(of_nodes[1].ends_with(": its stream was closed"), "{shown}");

    let objects = objects(&one);
    assert_eq!(objects.len(), 3, "{objects:?}");
    let listed = &objects[0]["nodeJoined"];
    assert_eq!((&listed["nodeId"], &listed["current"]), (&json!("mx2"), &json!(true)));
    assert_eq!(objects[1], json!({ "currentNodes": { "nodes": "1" } }));
    let left = &objects[2]["nodeLeft"];
    assert_eq!(left["reason"], "NODE_LEFT_REASON_CLOSED", "{left}");
    assert_eq!(left["subscriptionId"], listed["subscriptionId"]);
    assert!(objects[2]["publishTime"].is_string());
    assert_eq!((text.stderr(), one.stderr()), (String::new(), String::new()));
    for (process, signal) in [(text, "INT"), (one, "TERM")] {
        process.signal(signal);
        let (status, _) = process.wait(LIMIT).await;
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_gateways_publish_no_events_it_lists_again_and_says_so() {
    let gateway = gateway().await;
    let stays = open(&gateway, "mx1", &[]).await;
    let args = ["nodes", "--watch", "--interval", "100ms"];
    let text = Process::start("watch", to(&gateway, args));
    prints(&text, "mx1").await;
    let leaves = open(&gateway, "mx2", &["imap"]).await;
    prints(&text, "joined mx2 (imap) at ").await;
    drop(leaves);
    prints(&text, "left   mx2 (imap) at ").await;
    let said = text.stderr();
    assert!(said.starts_with("trunkline: gateways do not publish events about nodes"), "{said}");
    assert!(said.contains("nodeEvents") && said.contains("every 100ms"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");

    // The gateway goes away and comes back: nothing has changed but the stream of the node.
    gateway.kill_9();
    until(LIMIT, "the loss", async || text.stderr().contains("trying again")).await;
    drop(stays);
    gateway.restart().await;
    let _again = open(&gateway, "mx9", &[]).await;
    prints(&text, "joined mx9 at ").await;
    prints(&text, "left   mx1 at ").await;
    assert!(text.stderr().contains("connected again"), "{}", text.stderr());

    // Events do not say which nodes are agents.
    let args = ["nodes", "--watch", "--agents", "--json", "--pretty"];
    let agents = Process::start("agents", to(&gateway, args));
    prints(&agents, "currentNodes").await;
    assert_eq!(objects(&agents), [json!({ "currentNodes": { "nodes": "0" } })]);
    assert!(agents.stdout().lines().count() > 1, "{}", agents.stdout());
    let said: Value = serde_json::from_str(agents.stderr().trim()).expect("one object");
    assert_eq!(said["polling"]["interval"], "2s", "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_with_another_gateway_and_names_the_nodes_of_the_lost_one() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let options = || GatewayOptions::redis(&redis.url(), &prefix).set("nodeEvents", true);
    let (one, two) = tokio::join!(Gateway::start(options()), Gateway::start(options()));
    let _lost = open(&one, "mx-lost", &[]).await;
    let _stays = open(&two, "mx-stays", &[]).await;
    are_listed(&one, 2).await;
    let both = format!("{},{}", one.url(), two.url());
    let watch = Process::start("watch", trunkline(["nodes", "--watch", "--gateway", &both]));
    prints(&watch, "mx-lost").await;
    prints(&watch, "mx-stays").await;
    one.kill_9();
    until(LIMIT, "the loss", async || watch.stderr().contains("trying again")).await;
    let _new = open(&two, "mx-new", &[]).await;
    prints(&watch, "joined mx-new at ").await;
    prints(&watch, "left   mx-lost at ").await;
    let shown = watch.stdout();
    let lost = shown.lines().find(|line| line.contains("left   mx-lost")).expect("its line");
    assert!(lost.ends_with(": its gateway is gone"), "{shown}");
    assert!(!shown.contains("left   mx-stays") && !shown.contains("joined mx-stays"), "{shown}");
    watch.signal("INT");
    assert_eq!(watch.wait(LIMIT).await.0.code(), Some(0), "{}", watch.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_silently_when_its_reader_closes_the_pipe() {
    let (followed, listed) = tokio::join!(with_events(), gateway());
    for (gateway, command) in
        [(&followed, "nodes --watch"), (&listed, "nodes --watch"), (&listed, "gaps --watch")]
    {
        let script = "(\"$0\" $1; echo \"code $?\" >&2) | head -1";
        let shell = Program::new("sh", ["-c", script, &super::binary(), command])
            .env("TRUNKLINE_GATEWAY", gateway.url());
        let output = shell.run(LIMIT).await;
        assert!(output.stderr.ends_with("code 0\n"), "{command}: {}", output.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_watched_alone_and_a_wrong_one_fails_at_once() {
    let gateway = with_events().await;
    let _node = open(&gateway, "mx1", &[]).await;
    let args = ["nodes", "--watch", "--of", "elsewhere", "--json"];
    let none = Process::start("watch", to(&gateway, args));
    prints(&none, "currentNodes").await;
    assert_eq!(objects(&none), [json!({ "currentNodes": { "nodes": "0" } })]);

    let (_port, address) = super::unused_address();
    for args in [
        vec!["nodes", "--watch", "--gateway", &address],
        vec!["gaps", "--gateway", &address],
        vec!["gaps", "--watch", "--gateway", &address],
    ] {
        let output = trunkline(args.clone()).run(LIMIT).await;
        assert_eq!(code(&output), 69, "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains("refused"), "{args:?}: {}", output.stderr);
    }
}

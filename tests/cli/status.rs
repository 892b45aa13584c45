//! `trunkline status` and `trunkline nodes`.

use serde_json::{Value, json};
use trunkline_proto::v1::SubscribeRequest;

use super::{gateway, to};
use crate::support::{Gateway, GatewayOptions, LIMIT, TestNode, events::numbered, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_printed_as_text_and_as_json() {
    let gateway = gateway().await;
    let node = TestNode::connect(&gateway, "mx1").await;
    let other = TestNode::connect(&gateway, "mx2").await;
    let collector = other.subscribe(other.request()).await;
    node.publish(numbered("e", 3, 1)).await.expect("published");
    collector.events(3, LIMIT).await;

    let output = to(&gateway, ["status"]).run(LIMIT).await.success();
    for expected in [
        "state     serving\n",
        "bus       embedded\n",
        "streams   1 (0 events behind)\n",
        "3 published, 3 delivered",
        "gaps      0 sent to streams (0 events missed), 0 on the bus\n",
        "problems  0 errors, 0 unreadable frames\n",
        "shard     0 at ",
    ] {
        assert!(output.contains(expected), "{expected:?} in {output}");
    }
    let json = to(&gateway, ["status", "--json"]).run(LIMIT).await.success();
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["serving"], &json["streams"]), (&true.into(), &1.into()));
    assert_eq!(json["publishedEvents"], "3");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_were_moved_are_counted_by_their_reason() {
    let options = GatewayOptions::embedded().set("limits", json!({ "maxStreamAge": "1s" }));
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "mx1").await;
    drop(node.subscribe(node.request()).await.end(LIMIT).await);
    let expected = "moves     1 streams asked to leave (limits.maxStreamAge), 1 have\n";
    until(LIMIT, "the move", async || {
        to(&gateway, ["status"]).run(LIMIT).await.success().contains(expected)
    })
    .await;
    let json = to(&gateway, ["status", "--json"]).run(LIMIT).await.success();
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        json["streamMoves"],
        json!([{ "reason": "LEAVE_REASON_MAX_AGE", "askedStreams": "1", "leftStreams": "1" }])
    );
    assert!(json.get("unverifiedShards").is_none() && json.get("rebalancing").is_none(), "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_of_streams_are_counted() {
    let options = GatewayOptions::embedded()
        .set("log", json!({ "maxEvents": 10 }))
        .set("history", json!({ "maxFrames": 10 }));
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "mx1").await;
    let stream = node.subscribe(node.request()).await;
    let token = stream.last_token();
    for event in numbered("e", 50, 1) {
        node.publish(vec![event]).await.expect("published");
    }
    let late = TestNode::connect(&gateway, "late").await;
    let late_stream = late.subscribe(SubscribeRequest { resume_token: token, ..late.request() });
    let missed = late_stream.await.gap(LIMIT).await.missed_events.expect("a count");
    let output = to(&gateway, ["status"]).run(LIMIT).await.success();
    let expected = format!("gaps      1 sent to streams ({missed} events missed), 0 on the bus");
    assert!(output.contains(&expected), "{expected} in {output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_listed_as_text_and_as_json() {
    let gateway = gateway().await;
    let empty = to(&gateway, ["nodes"]).run(LIMIT).await.success();
    assert!(empty.starts_with("NODE ") && empty.lines().count() == 1, "{empty}");

    let mut collectors = vec![];
    for id in ["mx1", "mx2"] {
        let node = TestNode::connect(&gateway, id).await;
        let mut request = node.request();
        request.roles = vec!["imap".into(), "mta".into()];
        request.client_version = "imapd 2.4.1".into();
        collectors.push(node.subscribe(request).await);
    }
    let output = to(&gateway, ["nodes", "--gateways"]).run(LIMIT).await.success();
    let lines: Vec<Vec<&str>> = output
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(lines.len(), 6, "{output}");
    assert_eq!(
        lines[1][1..5],
        ["serving", "2", env!("CARGO_PKG_VERSION"), &gateway.address()],
        "{output}"
    );
    assert_eq!(lines[1][6], "now", "{output}");
    for (line, id) in lines[4..].iter().zip(["mx1", "mx2"]) {
        assert_eq!(line[..5], [id, "current", "imap,mta", "imapd 2.4.1", lines[1][0]], "{output}");
        assert!(line[5].starts_with("127.0.0.1:"), "{output}");
        assert_eq!(line[7..], ["0", "0", "-"], "{output}");
    }
    let one = to(&gateway, ["nodes", "--node-id", "mx2"]).run(LIMIT).await.success();
    assert_eq!(one.lines().skip(1).map(|line| &line[..3]).collect::<Vec<_>>(), ["mx2"]);
    let none = to(&gateway, ["nodes", "--of", "elsewhere"]).run(LIMIT).await.success();
    assert_eq!(none.lines().count(), 1, "{none}");

    let output = to(&gateway, ["nodes", "--json"]).run(LIMIT).await.success();
    let ids: Vec<Value> = output
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["nodeId"].clone())
        .collect();
    assert_eq!(ids, ["mx1", "mx2"]);
}

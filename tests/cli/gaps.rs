//! `trunkline gaps`.

use serde_json::{Value, json};
use trunkline_proto::v1::{GetStatusRequest, SubscribeRequest};

use super::{code, gateway, to, unused_address};
use crate::support::{
    Gateway, GatewayOptions, LIMIT, TestNode, events::numbered, gateway::trunkline,
    process::Process, until,
};

/// A gateway with little history.
async fn forgetful() -> Gateway {
    let options = GatewayOptions::embedded()
        .set("log", json!({ "maxEvents": 10 }))
        .set("history", json!({ "maxFrames": 10 }));
    Gateway::start(options).await
}

/// Makes a gap on a stream of this node, and returns how many events it missed.
async fn make_gap(gateway: &Gateway, node_id: &str) -> u64 {
    let node = TestNode::connect(gateway, node_id).await;
    let stream = node.subscribe(node.request()).await;
    stream.subscribed().await;
    let token = stream.last_token();
    drop(stream);
    // Else it may get a gap as well, before it is closed.
    let client = gateway.client().await;
    until(LIMIT, "the stream is closed", async || {
        let status = client.clone().get_status(GetStatusRequest {}).await;
        status.expect("an answer").into_inner().streams == 0
    })
    .await;
    let publisher = TestNode::connect(gateway, "publisher").await;
    for event in numbered("e", 50, 1) {
        publisher.publish(vec![event]).await.expect("published");
    }
    let late = node.subscribe(SubscribeRequest { resume_token: token, ..node.request() }).await;
    late.gap(LIMIT).await.missed_events.expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_are_listed_with_node_reason_and_count_and_new_ones_follow() {
    let gateway = forgetful().await;
    let none = to(&gateway, ["gaps"]).run(LIMIT).await.success();
    assert!(none.starts_with("no gaps in the last "), "{none}");

    let missed = make_gap(&gateway, "mx1").await;
    let listed = to(&gateway, ["gaps"]).run(LIMIT).await.success();
    let lines: Vec<_> = listed.lines().collect();
    let cells: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!(cells[2..], ["mx1", "history_expired", "0", &missed.to_string()], "{listed}");
    assert!(cells[0].starts_with("20") && cells[0].ends_with('Z'), "{listed}");
    assert!(lines[3].starts_with("history_expired: the node was away"), "{listed}");

    let text = Process::start("watch", to(&gateway, ["gaps", "--watch", "--interval", "100ms"]));
    let args = ["gaps", "--watch", "--interval", "100ms", "--json", "--node-id", "mx2"];
    let json = Process::start("watch-json", to(&gateway, args));
    until(LIMIT, "the list", async || text.stdout().contains("mx1")).await;
    let missed = make_gap(&gateway, "mx2").await;
    let expected = format!("history_expired, shards 0, {missed} events missed\n");
    until(LIMIT, "the new gap", async || text.stdout().contains(&expected)).await;
    assert!(text.stdout().contains(" gap mx2 at "), "{}", text.stdout());

    let objects = json.stdout_lines(1, LIMIT).await;
    let gap: Value = serde_json::from_str(&objects[0]).expect("JSON");
    assert_eq!(
        (&gap["nodeId"], &gap["reason"]),
        (&json!("mx2"), &json!("GAP_REASON_HISTORY_EXPIRED"))
    );
    assert_eq!(gap["missedEvents"], missed.to_string(), "{gap}");
    assert_eq!(gap["number"], "2", "{gap}");
    assert!(gap["gatewayId"].is_string() && gap["sendTime"].is_string(), "{gap}");

    // One that started anew counts from 1: its gaps are new ones.
    gateway.kill_9();
    until(LIMIT, "the loss", async || text.stderr().contains("trying again")).await;
    gateway.restart().await;
    let missed = make_gap(&gateway, "mx3").await;
    until(LIMIT, "the gap of the new process", async || {
        text.stdout().contains(" gap mx3 at ") && text.stdout().contains(&missed.to_string())
    })
    .await;
    assert!(text.stderr().contains("connected again"), "{}", text.stderr());
    for process in [text, json] {
        process.signal("INT");
        assert_eq!(process.wait(LIMIT).await.0.code(), Some(0), "{}", process.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_gateways_are_asked_and_one_that_cannot_be_is_reported() {
    let (one, other) = tokio::join!(forgetful(), gateway());
    make_gap(&one, "mx1").await;
    let (_port, unused) = unused_address();
    let all = format!("{},{unused},{}", other.url(), one.url());
    let output = trunkline(["gaps", "--json", "--pretty", "--gateway", &all]).run(LIMIT).await;
    assert_eq!(code(&output), 69, "{}", output.stderr);
    assert!(output.stderr.contains(&unused), "{}", output.stderr);
    let gap: Value = serde_json::from_str(&output.stdout).expect("one gap");
    assert_eq!(gap["nodeId"], "mx1", "{gap}");
    assert!(output.stdout.lines().count() > 5, "{}", output.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_nodes_are_for_those_who_may_list_nodes() {
    let token = "token-of-an-operator-0123456789";
    let node = "token-of-a-node-0123456789abc";
    let any = json!({ "allow": { "kinds": ["*"] } });
    let tokens = |secret: &str| json!([{ "@type": "Value", "secret": secret }]);
    let identities = json!([
        { "name": "status", "tokens": tokens(token), "operations": ["getStatus"] },
        { "name": "node", "tokens": tokens(node), "nodeIds": ["*"], "publish": any, "receive": any,
          "operations": ["getStatus", "listNodes"] },
    ]);
    let options = GatewayOptions::embedded()
        .set("log", json!({ "maxEvents": 10 }))
        .set("history", json!({ "maxFrames": 10 }))
        .set("auth", json!({ "identities": identities }));
    let gateway = Gateway::start(options).await;
    let run = async |token: &str, args: &[&str]| {
        let program = trunkline(args.iter().copied()).env("TRUNKLINE_GATEWAY", gateway.url());
        program.env("TRUNKLINE_TOKEN", token).run(LIMIT).await
    };
    let stream = trunkline(["subscribe", "--all", "--node-id", "mx1"])
        .env("TRUNKLINE_GATEWAY", gateway.url())
        .env("TRUNKLINE_TOKEN", node);
    let stream = Process::start("subscribe", stream);
    let first = stream.stdout_lines(1, LIMIT).await;
    let first: Value = serde_json::from_str(&first[0]).expect("JSON");
    let resume = first["subscribed"]["resumeToken"].as_str().expect("a token");
    stream.signal("TERM");
    stream.wait(LIMIT).await;
    // One frame each, so that history is too short.
    for _ in 0..20 {
        let event = ["publish", "queue-refresh", "--node-id", "mx2"];
        run(node, &event).await.success();
    }
    let late = ["subscribe", "--resume", resume, "--node-id", "mx1", "--max-events", "1"];
    let output = run(node, &late).await;
    assert!(output.stderr.contains("GAP_REASON_HISTORY_EXPIRED"), "{}", output.stderr);
    for (token, expected) in [(node, json!("mx1")), (token, Value::Null)] {
        let listed = run(token, &["gaps", "--json"]).await.success();
        let gap: Value = serde_json::from_str(&listed).expect("one gap");
        assert_eq!(gap["nodeId"], expected, "{gap}");
    }
}

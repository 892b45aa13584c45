//! `trunkline bench`.

use serde_json::Value;

use super::{code, gateway, lines, subscribe, to};
use crate::support::{
    Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, shared, wait::attempt,
};

fn number(json: &Value, key: &str) -> u64 {
    json[key].as_u64().unwrap_or_else(|| panic!("{key} in {json:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_event_is_counted_once_per_subscriber() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = Gateway::start(GatewayOptions::redis(&redis.url(), &shared::prefix())).await;
    let args = [
        "bench",
        "--publishers",
        "2",
        "--subscribers",
        "3",
        "--per-connection",
        "2",
        "--batch",
        "10",
        "--for",
        "1s",
        "--json",
    ];
    let output = to(&gateway, args).run(LIMIT).await;
    assert_eq!(code(&output), 0, "{}", output.stderr);
    let json: Value = serde_json::from_str(&output.stdout).expect("JSON");
    let acknowledged = number(&json, "acknowledgedEvents");
    assert!(acknowledged > 0 && acknowledged.is_multiple_of(10), "{json:#}");
    assert_eq!(number(&json, "deliveredEvents"), 3 * acknowledged, "{json:#}");
    for nothing in ["lost", "gaps", "failedRequests", "endedStreams", "unsentEvents"] {
        assert_eq!(number(&json, nothing), 0, "{nothing} in {json:#}");
    }
    assert_eq!(number(&json["latencyMs"], "count"), 3 * acknowledged, "{json:#}");
    let (p50, p99) = (&json["latencyMs"]["p50"], &json["latencyMs"]["p99"]);
    assert!(p50.as_f64() > Some(0.0) && p99.as_f64() >= p50.as_f64(), "{json:#}");
    assert!(output.stderr.contains("trunkline.bench."), "{}", output.stderr);

    // The gateway has counted the same, and no stream is left.
    attempt(LIMIT, "a gateway without streams", async || {
        let status = to(&gateway, ["status", "--json"]).run(LIMIT).await.success();
        let status: Value = serde_json::from_str(&status).expect("JSON");
        assert_eq!(status["publishedEvents"], acknowledged.to_string());
        let streams = status["streams"].as_u64().unwrap_or(0);
        if streams == 0 { Ok(()) } else { Err(format!("{streams} streams")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_published_at_the_requested_rate() {
    let gateway = gateway().await;
    let args = ["bench", "--rate", "200", "--subscribers", "2", "--for", "2s"];
    let output = to(&gateway, args).run(LIMIT).await;
    assert_eq!(code(&output), 0, "{}", output.stderr);
    let out = &output.stdout;
    assert!(
        out.starts_with("load          1 to 2 subscribers, 1 per request, 200 events/s, 2."),
        "{out}"
    );
    let acknowledged = out.lines().find_map(|line| line.strip_prefix("acknowledged  "));
    let count: u32 =
        acknowledged.and_then(|rest| rest.split(' ').next()?.parse().ok()).expect("a count");
    // The last requests may be cut off at the end.
    assert!((300..=400).contains(&count), "{out}");
    assert!(out.contains(&format!("delivered     {} events", 2 * count)), "{out}");
    assert!(
        out.contains("latency       p50 ") && out.contains("problems      0 lost, 0 gaps"),
        "{out}"
    );
    assert!(output.stderr.contains("acknowledged/s"), "progress is reported: {}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_nodes_are_not_disturbed_without_yes() {
    let gateway = gateway().await;
    let node = TestNode::connect(&gateway, "mx1").await;
    let collector = node.subscribe(node.request()).await;
    let output = to(&gateway, ["bench", "--for", "1s"]).run(LIMIT).await;
    assert_eq!(code(&output), 2, "{}", output.stderr);
    assert!(
        output.stderr.contains("1 node (mx1)") && output.stderr.contains("--yes"),
        "{}",
        output.stderr
    );
    drop(collector);

    let watcher =
        subscribe(&gateway, ["--custom-type", "trunkline.bench.*", "--max-events", "3"]).await;
    let args = ["bench", "--yes", "--rate", "20", "--size", "7", "--for", "1s"];
    let output = to(&gateway, args).run(LIMIT).await;
    assert_eq!(code(&output), 0, "{}", output.stderr);
    for event in lines(&watcher, 3).await {
        let name = event["custom"]["type"].as_str().unwrap_or_default().to_owned();
        assert!(name.starts_with("trunkline.bench."), "{event}");
        // "xxxxxxx"
        assert_eq!(event["custom"]["payload"]["value"], "eHh4eHh4eA==", "{event}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_and_a_wrong_flag_are_reported() {
    let gateway = gateway().await;
    let args = ["bench", "--size", "100000", "--subscribers", "1", "--for", "1s"];
    let output = to(&gateway, args).run(LIMIT).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    assert!(output.stderr.contains("InvalidArgument"), "{}", output.stderr);
    for (arg, value) in [("--for", "0s"), ("--rate", "0"), ("--publishers", "0"), ("--batch", "0")]
    {
        let output = to(&gateway, ["bench", arg, value]).run(LIMIT).await;
        assert_eq!(code(&output), 2, "{arg} {value}: {}", output.stderr);
    }
}

//! A wall clock that jumps, by hours and in both directions, under a gateway that serves.

#![allow(clippy::unwrap_used)]

use std::{fs, time::Duration};

use serde_json::Value;
use trunkline_proto::v1::GetStatusRequest;

use super::support::{
    Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events::numbered, folder,
    gateway::trunkline, shared, tools,
};

/// The uptime as the status, the metrics and the page have it, in seconds.
async fn uptimes(gateway: &Gateway) -> [f64; 3] {
    let status = gateway.client().await.get_status(GetStatusRequest {}).await.unwrap();
    let status = Duration::try_from(status.into_inner().uptime.unwrap()).unwrap().as_secs_f64();
    let metrics = gateway.admin("/metrics").await;
    let name = "trunkline_uptime_seconds ";
    let metric = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let view: Value = serde_json::from_str(&gateway.admin("/api/status").await).unwrap();
    [status, metric.parse().unwrap(), view["uptime"].as_f64().unwrap() / 1000.0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_disturbs_neither_events_nor_the_uptime() {
    let folder = folder::new();
    let file = folder.path().join("clock");
    let set = |offset: &str| fs::write(&file, offset).unwrap();
    set("+0");
    let redis = RedisServer::start(RedisOptions::default()).await;
    let mut options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    let library = tools::faketime_library().display().to_string();
    for (name, value) in [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", &file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ] {
        options.env.push((name.to_owned(), value.to_owned()));
    }
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "node").await;
    let stream = node.subscribe(node.request()).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let mut before = [0.0; 3];
    for (round, offset) in ["+0", "-3h", "+3h", "-2d", "+0"].into_iter().enumerate() {
        set(offset);
        let name = format!("e{round}");
        publisher.publish(numbered(&name, 20, 3)).await.unwrap();
        stream.event(&format!("{name}-19"), LIMIT).await;
        let now = uptimes(&gateway).await;
        for (before, now) in before.iter().zip(&now) {
            assert!(before <= now && *now < 60.0, "{offset}: {before} {now}");
        }
        before = now;
        let top = trunkline(["top", "--once", "--gateway", &gateway.url()]).run(LIMIT).await;
        let shown = top.success();
        assert!(shown.contains("SERVING") && !shown.contains("up -"), "{shown}");
    }
    stream.with(|recording| assert!(recording.gaps().is_empty(), "{:?}", recording.gaps()));
}

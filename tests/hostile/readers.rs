//! Clients that ask and do not read.

use std::time::Duration;

use prost::Message;
use serde_json::json;
use trunkline_proto::v1::{ListNodesRequest, SubscribeRequest};

use crate::{
    scene::Scene,
    support::{
        GatewayOptions, LIMIT, TestNode,
        events::{large, with_id},
    },
    wire::{
        DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, Raw, SETTINGS, WINDOW_UPDATE, call, frame,
        message,
    },
};

/// The largest window that HTTP/2 has.
const WINDOW: u32 = (1 << 31) - 1;

/// A client that lets the gateway send as much as HTTP/2 can say, and has no room to receive it.
async fn greedy(scene: &Scene, window: u32) -> Raw {
    let mut raw = Raw::with_buffer(&scene.gateway, Some(4096)).await;
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
    let more = (WINDOW - 65_535).to_be_bytes();
    let greeting =
        [PREFACE, &frame(SETTINGS, 0, 0, &settings), &frame(WINDOW_UPDATE, 0, 0, &more)].concat();
    raw.send(&greeting).await.unwrap();
    raw
}

async fn ask(raw: &mut Raw, stream: u32, method: &str, request: &impl Message) {
    let bytes = request.encode_to_vec();
    let body = message(bytes.len(), &bytes);
    raw.send(&frame(HEADERS, END_HEADERS, stream, &call(method))).await.unwrap();
    raw.send(&frame(DATA, END_STREAM, stream, &body)).await.unwrap();
}

/// Publishes 64 MB.
async fn much(node: &TestNode) {
    for n in 0..80 {
        let events = (0..20).map(|m| with_id(format!("x{n}-{m}"), large(40_000))).collect();
        node.publish(events).await.unwrap();
    }
}

/// What never reads is gone when it does not answer a PING either.
fn options() -> GatewayOptions {
    GatewayOptions::embedded()
        .set("keepalive", json!({ "interval": "2s", "timeout": "2s" }))
        .set("log", json!({ "maxBytes": "4MiB" }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_never_reads_costs_its_buffer_and_is_found_out() {
    let scene = Scene::with(options()).await;
    let bystander = scene.bystander().await;
    let mut held = Vec::new();
    // Without a window, and with one that is as good as endless.
    for window in [0, WINDOW] {
        for n in 0..10 {
            let mut raw = greedy(&scene, window).await;
            let node_id = format!("deaf-{window}-{n}");
            ask(&mut raw, 1, "Subscribe", &SubscribeRequest { node_id, ..Default::default() })
                .await;
            held.push(raw);
        }
    }
    scene.metric_is("streams", 21.0).await;
    much(&TestNode::connect(&scene.gateway, "p").await).await;
    scene.memory_is_bounded();
    scene.metric_is("streams", 1.0).await;
    bystander.saw_nothing().await;
    drop(held);
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_nobody_reads_cost_their_buffers() {
    let scene = Scene::with(options()).await;
    let bystander = scene.bystander().await;
    // A list of some length.
    let node = TestNode::connect(&scene.gateway, "n".repeat(100)).await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(node.stream(node.request()).await.unwrap());
    }
    let mut raw = greedy(&scene, WINDOW).await;
    let request = ListNodesRequest { page_size: 1000, ..Default::default() };
    for n in 0..200 {
        ask(&mut raw, 2 * n + 1, "ListNodes", &request).await;
    }
    tokio::time::timeout(LIMIT, scene.metric_is("connections", 3.0)).await.unwrap();
    scene.memory_is_bounded();
    drop((streams, node, raw));
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_gone_without_a_word_is_found_by_pings() {
    let scene = Scene::with(options()).await;
    let bystander = scene.bystander().await;
    let mut raw = Raw::greeted(&scene.gateway).await;
    let request = SubscribeRequest { node_id: "gone".into(), ..Default::default() };
    ask(&mut raw, 1, "Subscribe", &request).await;
    scene.metric_is("streams", 2.0).await;
    // It reads, and answers no PING: as a host that is cut off from the network.
    raw.rest(LIMIT).await;
    scene.metric_is("streams", 1.0).await;
    // Nodes that answer stay for longer than that.
    tokio::time::sleep(Duration::from_secs(5)).await;
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

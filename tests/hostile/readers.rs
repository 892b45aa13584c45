//! Clients that send requests and do not read the answers.

use std::time::Duration;

use prost::Message;
use serde_json::json;
use trunkline_proto::v1::{ListNodesRequest, SubscribeRequest};

use crate::{
    support::{
        GatewayOptions, LIMIT, TestNode,
        events::{large, with_id},
    },
    target::Target,
    wire::{
        DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, Raw, SETTINGS, WINDOW_UPDATE, call, frame,
        message,
    },
};

/// The largest window that HTTP/2 has.
const WINDOW: u32 = (1 << 31) - 1;

/// A client that announces the largest flow-control window and never reads.
async fn never_reads(target: &Target, window: u32) -> Raw {
    let mut raw = Raw::with_buffer(&target.gateway, Some(4096)).await;
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
    let more = (WINDOW - 65_535).to_be_bytes();
    let preface =
        [PREFACE, &frame(SETTINGS, 0, 0, &settings), &frame(WINDOW_UPDATE, 0, 0, &more)].concat();
    raw.send(&preface).await.unwrap();
    raw
}

/// Sends a request.
async fn call_method(raw: &mut Raw, stream: u32, method: &str, request: &impl Message) {
    let bytes = request.encode_to_vec();
    let body = message(bytes.len(), &bytes);
    raw.send(&frame(HEADERS, END_HEADERS, stream, &call(method))).await.unwrap();
    raw.send(&frame(DATA, END_STREAM, stream, &body)).await.unwrap();
}

/// Publishes 64 MB.
async fn publish_much(node: &TestNode) {
    for n in 0..80 {
        let events = (0..20).map(|m| with_id(format!("x{n}-{m}"), large(40_000))).collect();
        node.publish(events).await.unwrap();
    }
}

/// Keepalive closes a connection whose client does not read, since it does not answer a PING.
fn options() -> GatewayOptions {
    GatewayOptions::embedded()
        .set("keepalive", json!({ "interval": "2s", "timeout": "2s" }))
        .set("log", json!({ "maxBytes": "4MiB" }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_never_reads_costs_one_buffer_and_is_disconnected() {
    let target = Target::with(options()).await;
    let bystander = target.bystander().await;
    let mut held = Vec::new();
    // With an empty window, and with the largest one.
    for window in [0, WINDOW] {
        for n in 0..10 {
            let mut raw = never_reads(&target, window).await;
            let node_id = format!("never-reads-{window}-{n}");
            call_method(
                &mut raw,
                1,
                "Subscribe",
                &SubscribeRequest { node_id, ..Default::default() },
            )
            .await;
            held.push(raw);
        }
    }
    target.metric_is("streams", 21.0).await;
    publish_much(&TestNode::connect(&target.gateway, "p").await).await;
    target.memory_is_bounded();
    target.metric_is("streams", 1.0).await;
    bystander.was_unaffected().await;
    drop(held);
    target.is_freed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_node_lists_cost_no_more_than_their_buffers() {
    let target = Target::with(options()).await;
    let bystander = target.bystander().await;
    // Enough nodes for a long list.
    let node = TestNode::connect(&target.gateway, "n".repeat(100)).await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(node.stream(node.request()).await.unwrap());
    }
    let mut raw = never_reads(&target, WINDOW).await;
    let request = ListNodesRequest { page_size: 1000, ..Default::default() };
    for n in 0..200 {
        call_method(&mut raw, 2 * n + 1, "ListNodes", &request).await;
    }
    tokio::time::timeout(LIMIT, target.metric_is("connections", 3.0)).await.unwrap();
    target.memory_is_bounded();
    drop((streams, node, raw));
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_connection_is_found_by_keepalive() {
    let target = Target::with(options()).await;
    let bystander = target.bystander().await;
    let mut raw = Raw::with_preface(&target.gateway).await;
    let request = SubscribeRequest { node_id: "gone".into(), ..Default::default() };
    call_method(&mut raw, 1, "Subscribe", &request).await;
    target.metric_is("streams", 2.0).await;
    // It reads and answers no PING, like a host that is cut off from the network.
    raw.rest(LIMIT).await;
    target.metric_is("streams", 1.0).await;
    // Nodes that answer PINGs stay connected for longer than that.
    tokio::time::sleep(Duration::from_secs(5)).await;
    target.withstood(bystander).await;
}

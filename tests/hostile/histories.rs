//! Clients that read history, of which a little unpacks to much, and do not read their streams.

use std::time::Duration;

use prost::Message;
use serde_json::json;
use trunkline_proto::v1::{Event, Start, SubscribeRequest};

use crate::{
    support::{
        GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode,
        events::{custom, event, with_id},
        shared, until,
    },
    target::Target,
    wire::{
        DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, Raw, SETTINGS, WINDOW_UPDATE, call, frame,
        message,
    },
};

/// An event of nearly 64 KiB that packs to a few hundred bytes.
fn packs_well(n: usize) -> Event {
    let mut large = custom("x.y");
    if let Some(trunkline_proto::v1::event::Kind::Custom(custom)) = &mut large.kind {
        custom.payload = Some(prost_types::Any {
            type_url: "type.example.com/x.Y".into(),
            value: vec![7; 60_000],
        });
    }
    with_id(format!("large-{n}"), event(large.kind.unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_read_history_and_are_not_read_hold_a_bounded_part_of_it() {
    const STREAMS: u32 = 64;
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix())
        .set("log", json!({ "maxBytes": "1MiB" }))
        .set("limits", json!({ "maxHistoryBytesPerIdentity": "16MiB" }));
    let target = Target::with(options).await;
    let publisher = TestNode::connect(&target.gateway, "p").await;
    // 250 MB of events, in frames of 4 MB, of which Redis holds little.
    for request in 0..64 {
        let events = (0..64).map(|n| packs_well(request * 64 + n)).collect();
        publisher.publish(events).await.unwrap();
    }
    let bystander = target.bystander().await;
    let sent = async || -> u64 {
        redis.info("stats", "total_net_output_bytes").await.unwrap().parse().unwrap()
    };
    let before = sent().await;
    let mut raw = Raw::with_buffer(&target.gateway, Some(4096)).await;
    let window = (1_u32 << 31) - 1;
    let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
    let more = (window - 65_535).to_be_bytes();
    let preface =
        [PREFACE, &frame(SETTINGS, 0, 0, &settings), &frame(WINDOW_UPDATE, 0, 0, &more)].concat();
    raw.send(&preface).await.unwrap();
    for n in 0..STREAMS {
        let request = SubscribeRequest {
            node_id: format!("n{n}"),
            start: Start::Oldest.into(),
            ..Default::default()
        };
        let bytes = request.encode_to_vec();
        let body = message(bytes.len(), &bytes);
        raw.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &call("Subscribe"))).await.unwrap();
        raw.send(&frame(DATA, END_STREAM, 2 * n + 1, &body)).await.unwrap();
    }
    let open = f64::from(STREAMS) + 1.0;
    tokio::time::timeout(LIMIT, target.metric_is("streams", open)).await.unwrap();
    bystander.endures(async || tokio::time::sleep(Duration::from_millis(100)).await).await;
    target.memory_is_bounded();
    let traffic = sent().await - before;
    eprintln!("Redis sent {} KiB", traffic >> 10);
    assert!(traffic < 64 << 20, "Redis sent {} MiB", traffic >> 20);
    // Another identity reads all of it meanwhile.
    let node = TestNode::connect(&target.gateway, "reader").await;
    let request = SubscribeRequest { start: Start::Oldest.into(), ..node.request() };
    let collector = node.subscribe(request).await;
    until(LIMIT, "the last of the large events", async || {
        collector.event_ids().iter().any(|id| id == "large-4095")
    })
    .await;
    drop((raw, collector, node, publisher));
    target.metric_is("streams", 1.0).await;
    bystander.was_unaffected().await;
}

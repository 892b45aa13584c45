//! Much of what is small: streams, resets, frames of every kind.

use serde_json::json;
use tokio::time::timeout;
use tonic::Code;

use crate::{
    scene::Scene,
    support::{LIMIT, events::queue_refresh},
    told::told,
    wire::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw,
        SETTINGS, WINDOW_UPDATE, call, farewell, frame, message,
    },
};

/// The code of a GOAWAY for who does too much of something that is allowed.
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// Sends pieces until the gateway takes no more, or all is sent; reads nothing. Says how many were taken.
async fn send_until_closed(raw: &mut Raw, pieces: impl Iterator<Item = Vec<u8>>) -> usize {
    let mut sent = 0;
    for piece in pieces {
        // One that stands still is as good as closed.
        match timeout(std::time::Duration::from_secs(3), raw.send(&piece)).await {
            Ok(Ok(())) => sent += 1,
            _ => break,
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_resets_end_their_connection_or_cost_nothing() {
    let scene = Scene::new(json!({})).await;
    let bystander = scene.bystander().await;
    let attack = async || {
        for method in ["GetStatus", "Subscribe"] {
            let mut raw = Raw::greeted(&scene.gateway).await;
            let pieces = (0..50_000).map(|n| {
                let stream = 2 * n + 1;
                let headers = frame(HEADERS, END_HEADERS, stream, &call(method));
                [headers, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
            });
            send_until_closed(&mut raw, pieces).await;
            scene.memory_is_bounded();
            drop(raw);
            scene.metric_is("requests_in_flight", 1.0).await;
        }
    };
    bystander.endures(attack).await;
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_continuations_ends_its_connection() {
    let scene = Scene::new(json!({})).await;
    let bystander = scene.bystander().await;
    let attack = async || {
        let mut raw = Raw::greeted(&scene.gateway).await;
        raw.send(&frame(HEADERS, 0, 1, &call("GetStatus"))).await.unwrap();
        // Fields that never end, 160 MB of them if they were taken.
        let field = crate::wire::field("x-more", &"x".repeat(15_000));
        let pieces = (0..10_000).map(|_| frame(CONTINUATION, 0, 1, &field));
        let taken = send_until_closed(&mut raw, pieces).await;
        assert!(taken < 5000, "{taken} were taken");
        scene.memory_is_bounded();
        drop(raw);
    };
    bystander.endures(attack).await;
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_settings_and_pings_that_nobody_reads_the_answers_of_cost_nothing() {
    let scene = Scene::new(json!({})).await;
    let bystander = scene.bystander().await;
    let attack = async || {
        for (kind, payload) in
            [(SETTINGS, &[][..]), (PING, &[0; 8]), (WINDOW_UPDATE, &[0, 0, 0, 1])]
        {
            let mut raw = Raw::greeted(&scene.gateway).await;
            let piece = frame(kind, 0, 0, payload).repeat(1000);
            send_until_closed(&mut raw, (0..500).map(|_| piece.clone())).await;
            scene.memory_is_bounded();
        }
    };
    bystander.endures(attack).await;
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_and_empty_pieces_of_a_body_end_their_connection() {
    let scene = Scene::new(json!({})).await;
    let bystander = scene.bystander().await;
    let attack = async || {
        for piece in [&[][..], &[0]] {
            let mut raw = Raw::greeted(&scene.gateway).await;
            raw.send(&frame(HEADERS, END_HEADERS, 1, &call("Publish"))).await.unwrap();
            raw.send(&frame(DATA, 0, 1, &message(1_000_000, &[]))).await.unwrap();
            let pieces = frame(DATA, 0, 1, piece).repeat(50);
            let taken = send_until_closed(&mut raw, (0..10_000).map(|_| pieces.clone())).await;
            assert!(taken < 10_000, "{taken} were taken");
            scene.memory_is_bounded();
            drop(raw);
        }
    };
    bystander.endures(attack).await;
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_a_connection_may_have_are_refused_and_requests_pass_beside_them() {
    let limits = json!({ "maxStreamsPerConnection": 20, "maxRequestsPerConnection": 5 });
    let scene = Scene::new(limits).await;
    let bystander = scene.bystander().await;
    let attack = async || {
        let node = scene.hostile_node("many").await;
        let mut open = Vec::new();
        for _ in 0..20 {
            open.push(node.stream(node.request()).await.unwrap());
        }
        let status = node.stream(node.request()).await.unwrap_err();
        let told = told(&status, Code::ResourceExhausted, "LIMIT_REACHED");
        assert_eq!(told.metadata["limit"], "limits.maxStreamsPerConnection");
        assert_eq!(told.quotas, ["limits.maxStreamsPerConnection"]);
        assert!(told.retry.is_some());
        node.publish(vec![queue_refresh()]).await.unwrap();
        open.pop();
        crate::support::until(LIMIT, "room again", async || {
            node.stream(node.request()).await.is_ok()
        })
        .await;
        drop((open, node));
        // What it had under way is over when only the bystander's stream is left.
        scene.metric_is("streams", 1.0).await;

        // Whoever does not keep to what HTTP/2 was told is refused by it.
        let mut raw = Raw::greeted(&scene.gateway).await;
        for n in 0..400 {
            let stream = 2 * n + 1;
            if raw.send(&frame(HEADERS, END_HEADERS, stream, &call("Publish"))).await.is_err() {
                break;
            }
        }
        let refused = timeout(LIMIT, async {
            loop {
                match raw.frame().await {
                    Some(frame) if matches!(frame.kind, RST_STREAM | GOAWAY) => return,
                    Some(_) => {}
                    None => return,
                }
            }
        });
        refused.await.expect("a refusal");
        // A connection may have 25, and the bystander has its stream, and publishes now and then.
        let under_way = scene.metric("requests_in_flight").await;
        assert!(under_way <= 27.0, "{under_way} are under way");
        drop(raw);
    };
    bystander.endures(attack).await;
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_number_again_and_again_end_their_connection() {
    let limits = json!({ "maxStreamsPerConnection": 1, "maxRequestsPerConnection": 1 });
    let scene = Scene::new(limits).await;
    let bystander = scene.bystander().await;
    let attack = async || {
        let mut raw = Raw::greeted(&scene.gateway).await;
        let open = (0..2).map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &call("Publish")));
        let more = (2..20_000)
            .map(|n| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &call("GetStatus")));
        let taken = send_until_closed(&mut raw, open.chain(more)).await;
        let frames = raw.rest(LIMIT).await;
        assert!(taken < 20_000, "{taken} were taken");
        if let Some((code, _)) = farewell(&frames) {
            assert_eq!(code, ENHANCE_YOUR_CALM);
        }
    };
    bystander.endures(attack).await;
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

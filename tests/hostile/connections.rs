//! Connections that come to nothing: too many, silent, or slow.

use std::time::Duration;

use serde_json::json;
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    scene::{Scene, short},
    support::LIMIT,
    wire::{END_HEADERS, GOAWAY, HEADERS, PREFACE, Raw, SETTINGS, call, farewell, frame},
};

/// How long a slow client waits between two bytes.
const BYTE_PACE: Duration = Duration::from_millis(100);

/// Waits until the gateway has closed a connection; what comes before is of no interest.
async fn closed(raw: &mut Raw) {
    let mut rest = Vec::new();
    // An error is an end too.
    let _ = timeout(LIMIT, raw.0.read_to_end(&mut rest)).await.expect("it is closed in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connections_that_say_nothing_is_closed_in_time() {
    let scene = Scene::new(short()).await;
    let bystander = scene.bystander().await;
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(Raw::connect(&scene.gateway).await);
    }
    for raw in &mut silent {
        closed(raw).await;
    }
    assert!(scene.refused("handshakeTimeout").await >= 500.0);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_of_a_byte_at_a_time_is_not_waited_for() {
    let scene = Scene::new(short()).await;
    let bystander = scene.bystander().await;
    let mut raw = Raw::connect(&scene.gateway).await;
    let greeting = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let mut sent = 0;
    for byte in greeting {
        if raw.send(&[byte]).await.is_err() {
            break;
        }
        sent += 1;
        tokio::time::sleep(BYTE_PACE).await;
    }
    assert!(sent < 33, "it is cut off before the end");
    closed(&mut raw).await;
    assert!(scene.refused("handshakeTimeout").await >= 1.0);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn header_fields_of_a_byte_at_a_time_are_not_waited_for_longer_than_nothing_at_all() {
    let scene = Scene::new(short()).await;
    let bystander = scene.bystander().await;
    let mut raw = Raw::greeted(&scene.gateway).await;
    for byte in frame(HEADERS, END_HEADERS, 1, &call("GetStatus")) {
        if raw.send(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(BYTE_PACE).await;
    }
    let frames = raw.rest(LIMIT).await;
    assert!(frames.iter().any(|frame| frame.kind == GOAWAY), "{frames:?}");
    assert!(scene.refused("idleTimeout").await >= 1.0);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_requests_is_told_to_go_and_one_with_a_stream_stays() {
    let scene = Scene::new(short()).await;
    // Its stream is open all the time, and its publisher never rests long.
    let bystander = scene.bystander().await;
    let mut raw = Raw::greeted(&scene.gateway).await;
    let frames = raw.rest(LIMIT).await;
    assert!(frames.iter().any(|frame| frame.kind == GOAWAY), "{frames:?}");
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_more_than_a_peer_may_have_is_told_why_and_closed() {
    let scene = Scene::new(json!({ "maxConnectionsPerPeer": 3 })).await;
    // Two of another peer.
    let bystander = scene.bystander().await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(Raw::greeted(&scene.gateway).await);
    }
    scene.metric_is("connections", 5.0).await;
    for _ in 0..100 {
        let mut refused = Raw::connect(&scene.gateway).await;
        let frames = refused.rest(LIMIT).await;
        // Of many at one time, some are closed without a word.
        if let Some((code, text)) = farewell(&frames) {
            assert_eq!((code, &*text), (0xb, "limits.maxConnectionsPerPeer is reached: 3"));
            held.push(refused);
        }
    }
    assert!(held.len() > 3, "some are told");
    assert!((scene.refused("maxConnectionsPerPeer").await - 100.0).abs() < 0.1);
    drop(held);
    scene.metric_is("connections", 2.0).await;
    let node = scene.hostile_node("back").await;
    node.subscribe(node.request()).await;
    drop(node);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_more_than_there_may_be_is_refused_whoever_it_is() {
    let scene = Scene::new(json!({ "maxConnections": 4 })).await;
    let bystander = scene.bystander().await;
    let held = [Raw::greeted(&scene.gateway).await, Raw::greeted(&scene.gateway).await];
    scene.metric_is("connections", 4.0).await;
    let frames = Raw::connect(&scene.gateway).await.rest(LIMIT).await;
    let (_, text) = farewell(&frames).expect("a GOAWAY");
    assert_eq!(text, "limits.maxConnections is reached: 4");
    drop(held);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

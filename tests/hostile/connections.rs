//! Connections that come to nothing: too many, silent, or slow.

use std::time::Duration;

use serde_json::json;
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    scene::{Scene, short},
    support::{Gateway, GatewayOptions, LIMIT, Ready, process::Program, until},
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
    let (mut tried, mut told) = (0.0, 0);
    let attack = async || {
        for _ in 0..100 {
            let frames = Raw::connect(&scene.gateway).await.rest(LIMIT).await;
            tried += 1.0;
            // Of many at one time, some are closed without a word.
            if let Some((code, text)) = farewell(&frames) {
                assert_eq!((code, &*text), (0xb, "limits.maxConnectionsPerPeer is reached: 3"));
                told += 1;
            }
        }
    };
    bystander.endures(attack).await;
    assert!(told > 0, "some are told");
    assert!((scene.refused("maxConnectionsPerPeer").await - tried).abs() < 0.1);
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
    let mut told = 0;
    let attack = async || {
        let frames = Raw::connect(&scene.gateway).await.rest(LIMIT).await;
        if let Some((_, text)) = farewell(&frames) {
            assert_eq!(text, "limits.maxConnections is reached: 4");
            told += 1;
        }
    };
    bystander.endures(attack).await;
    assert!(told > 0, "some are told");
    drop(held);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

/// Sets how many files a gateway may open from now on.
async fn may_open(scene: &Scene, files: usize) {
    let (pid, files) = (scene.gateway.pid().to_string(), format!("--nofile={files}:"));
    Program::new("prlimit", ["--pid", &pid, &files]).run(LIMIT).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_descriptors_serves_who_is_there_and_takes_others_when_it_has_some_again()
{
    // Those that come in stay, and say nothing.
    let scene = Scene::new(json!({ "handshakeTimeout": "1h" })).await;
    let bystander = scene.bystander().await;
    may_open(&scene, scene.files() + 5).await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(Raw::connect(&scene.gateway).await);
    }
    scene.gateway.stderr_has("connections cannot be accepted", LIMIT).await;
    bystander.endures(async || tokio::time::sleep(Duration::from_millis(100)).await).await;
    let log = scene.gateway.stderr();
    assert_eq!(log.matches("connections cannot be accepted").count(), 1, "{log}");

    may_open(&scene, 1000).await;
    scene.metric_is("connections", 22.0).await;
    drop(waiting);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_more_over_tls_is_closed_without_a_handshake() {
    let tls = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/");
    let options = GatewayOptions::embedded()
        .set("limits", json!({ "maxConnectionsPerPeer": 2, "handshakeTimeout": "1h" }))
        .set(
            "tls",
            json!({ "certificate": format!("{tls}server.pem"), "privateKey": format!("{tls}server.key") }),
        )
        .ready(Ready::Started);
    let gateway = Gateway::start(options).await;
    gateway.stderr_has("listens on", LIMIT).await;
    let mut held = vec![];
    for _ in 0..2 {
        held.push(Raw::connect(&gateway).await);
    }
    let refused = r#"trunkline_refused_total{limit="limits.maxConnectionsPerPeer"} "#;
    until(LIMIT, "two are let in", async || {
        gateway.admin("/metrics").await.contains("\ntrunkline_connections 2\n")
    })
    .await;
    let mut third = Raw::connect(&gateway).await;
    assert!(third.rest(LIMIT).await.is_empty(), "not a byte: it would be no TLS");
    assert!(gateway.admin("/metrics").await.contains(&format!("{refused}1\n")));
    // A place that is free again is another's.
    held.pop();
    until(LIMIT, "one is left", async || {
        gateway.admin("/metrics").await.contains("\ntrunkline_connections 1\n")
    })
    .await;
    held.push(Raw::connect(&gateway).await);
    until(LIMIT, "two again", async || {
        gateway.admin("/metrics").await.contains("\ntrunkline_connections 2\n")
    })
    .await;
    assert!(gateway.admin("/metrics").await.contains(&format!("{refused}1\n")));
}

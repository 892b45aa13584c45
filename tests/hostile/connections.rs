//! Connections without requests: too many of them, silent or slow ones.

use std::time::Duration;

use serde_json::json;
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    support::{Gateway, GatewayOptions, LIMIT, Ready, process::Program, until},
    target::{Target, short_timeouts},
    wire::{END_HEADERS, GOAWAY, HEADERS, PREFACE, Raw, SETTINGS, call, frame, goaway},
};

/// The pause of a slow client between two bytes.
const BYTE_PAUSE: Duration = Duration::from_millis(100);

/// Waits until the gateway has closed a connection; ignores what it sends before.
async fn closed(raw: &mut Raw) {
    let mut rest = Vec::new();
    // An error also means that it is closed.
    let _ = timeout(LIMIT, raw.0.read_to_end(&mut rest)).await.expect("it is closed in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_closed_after_the_handshake_timeout() {
    let target = Target::new(short_timeouts()).await;
    let bystander = target.bystander().await;
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(Raw::connect(&target.gateway).await);
    }
    for raw in &mut silent {
        closed(raw).await;
    }
    assert!(target.refused("handshakeTimeout").await >= 500.0);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_preface_sent_byte_by_byte_does_not_extend_the_handshake_timeout() {
    let target = Target::new(short_timeouts()).await;
    let bystander = target.bystander().await;
    let mut raw = Raw::connect(&target.gateway).await;
    let preface = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let mut sent = 0;
    for byte in preface {
        if raw.send(&[byte]).await.is_err() {
            break;
        }
        sent += 1;
        tokio::time::sleep(BYTE_PAUSE).await;
    }
    assert!(sent < 33, "it is closed before the end");
    closed(&mut raw).await;
    assert!(target.refused("handshakeTimeout").await >= 1.0);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn header_fields_sent_byte_by_byte_do_not_extend_the_idle_timeout() {
    let target = Target::new(short_timeouts()).await;
    let bystander = target.bystander().await;
    let mut raw = Raw::with_preface(&target.gateway).await;
    for byte in frame(HEADERS, END_HEADERS, 1, &call("GetStatus")) {
        if raw.send(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(BYTE_PAUSE).await;
    }
    let frames = raw.rest(LIMIT).await;
    assert!(frames.iter().any(|frame| frame.kind == GOAWAY), "{frames:?}");
    assert!(target.refused("idleTimeout").await >= 1.0);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_gets_goaway_and_one_with_a_stream_stays() {
    let target = Target::new(short_timeouts()).await;
    // It always has an open stream, and its publisher is never idle for long.
    let bystander = target.bystander().await;
    let mut raw = Raw::with_preface(&target.gateway).await;
    let frames = raw.rest(LIMIT).await;
    assert!(frames.iter().any(|frame| frame.kind == GOAWAY), "{frames:?}");
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_beyond_the_limit_of_a_peer_gets_goaway_with_the_limit() {
    let target = Target::new(json!({ "maxConnectionsPerPeer": 3 })).await;
    // Two connections of another peer.
    let bystander = target.bystander().await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(Raw::with_preface(&target.gateway).await);
    }
    target.metric_is("connections", 5.0).await;
    let (mut tried, mut goaways) = (0.0, 0);
    let attack = async || {
        for _ in 0..100 {
            let frames = Raw::connect(&target.gateway).await.rest(LIMIT).await;
            tried += 1.0;
            // Of many at one time, some are closed without GOAWAY.
            if let Some((code, text)) = goaway(&frames) {
                assert_eq!((code, &*text), (0xb, "limits.maxConnectionsPerPeer is reached: 3"));
                goaways += 1;
            }
        }
    };
    bystander.endures(attack).await;
    assert!(goaways > 0, "some get GOAWAY");
    assert!((target.refused("maxConnectionsPerPeer").await - tried).abs() < 0.1);
    drop(held);
    target.metric_is("connections", 2.0).await;
    let node = target.hostile_node("back").await;
    node.subscribe(node.request()).await;
    drop(node);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_beyond_the_limit_of_all_peers_gets_goaway_with_the_limit() {
    let target = Target::new(json!({ "maxConnections": 4 })).await;
    let bystander = target.bystander().await;
    let held = [Raw::with_preface(&target.gateway).await, Raw::with_preface(&target.gateway).await];
    target.metric_is("connections", 4.0).await;
    let mut goaways = 0;
    let attack = async || {
        let frames = Raw::connect(&target.gateway).await.rest(LIMIT).await;
        if let Some((_, text)) = goaway(&frames) {
            assert_eq!(text, "limits.maxConnections is reached: 4");
            goaways += 1;
        }
    };
    bystander.endures(attack).await;
    assert!(goaways > 0, "some get GOAWAY");
    drop(held);
    target.withstood(bystander).await;
}

/// Limits the number of files that the gateway may open.
async fn limit_open_files(target: &Target, files: usize) {
    let (pid, files) = (target.gateway.pid().to_string(), format!("--nofile={files}:"));
    Program::new("prlimit", ["--pid", &pid, &files]).run(LIMIT).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_file_descriptors_open_connections_are_served_and_new_ones_wait() {
    // Silent connections stay open.
    let target = Target::new(json!({ "handshakeTimeout": "1h" })).await;
    let bystander = target.bystander().await;
    limit_open_files(&target, target.files() + 5).await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(Raw::connect(&target.gateway).await);
    }
    target.gateway.stderr_has("cannot accept connections", LIMIT).await;
    bystander.endures(async || tokio::time::sleep(Duration::from_millis(100)).await).await;
    let log = target.gateway.stderr();
    assert_eq!(log.matches("cannot accept connections").count(), 1, "{log}");

    limit_open_files(&target, 1000).await;
    target.metric_is("connections", 22.0).await;
    drop(waiting);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_beyond_the_limit_is_closed_without_a_tls_handshake() {
    let tls = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/");
    let options = GatewayOptions::embedded()
        .set("limits", json!({ "maxConnectionsPerPeer": 2, "handshakeTimeout": "1h" }))
        .set(
            "tls",
            json!({
                "certificate": format!("{tls}server.pem"),
                "privateKey": format!("{tls}server.key"),
            }),
        )
        .ready(Ready::Started);
    let gateway = Gateway::start(options).await;
    gateway.stderr_has("listens on", LIMIT).await;
    let mut held = vec![];
    for _ in 0..2 {
        held.push(Raw::connect(&gateway).await);
    }
    let refused = r#"trunkline_refused_total{limit="limits.maxConnectionsPerPeer"} "#;
    until(LIMIT, "two are accepted", async || {
        gateway.admin("/metrics").await.contains("\ntrunkline_connections 2\n")
    })
    .await;
    let mut third = Raw::connect(&gateway).await;
    assert!(third.rest(LIMIT).await.is_empty(), "a GOAWAY would not be TLS");
    assert!(gateway.admin("/metrics").await.contains(&format!("{refused}1\n")));
    // A slot that is freed can be taken again.
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

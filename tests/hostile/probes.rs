//! Health checks and probes: many of them, without a credential, beside those that matter.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{net::TcpStream, time::timeout};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    error_details::error_details,
    support::{Gateway, GatewayOptions, LIMIT, Ready, until},
    target::Target,
    wire::HOSTILE,
};

fn all() -> HealthCheckRequest {
    HealthCheckRequest { service: String::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_streams_are_limited_and_keep_nobody_from_checking_or_watching() {
    let target = Target::new(json!({ "maxHealthStreams": 100 })).await;
    let bystander = target.bystander().await;
    let endpoint = Endpoint::from_shared(target.gateway.url()).unwrap();
    let hostile = endpoint.local_address(Some(HOSTILE.parse().unwrap()));
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..4 {
        let mut client = HealthClient::new(hostile.connect().await.unwrap());
        for _ in 0..20 {
            match client.watch(all()).await {
                Ok(stream) => held.push((stream.into_inner(), client.clone())),
                Err(status) => {
                    let error = error_details(&status, Code::ResourceExhausted, "LIMIT_REACHED");
                    assert_eq!(error.metadata["limit"], "limits.maxHealthStreams");
                    refused += 1;
                }
            }
        }
        client.check(all()).await.expect("a check is no stream");
    }
    assert_eq!((held.len(), refused), (10, 70));
    target.metric_is("health_streams", 10.0).await;
    assert!((target.refused("maxHealthStreams").await - 70.0).abs() < 0.1);
    // Another address has its own part, and streams of events are counted apart.
    let mut other = HealthClient::new(target.gateway.connect().await.unwrap());
    let mut watched = other.watch(all()).await.unwrap().into_inner();
    timeout(LIMIT, watched.message()).await.unwrap().unwrap().expect("a status");
    let node = target.hostile_node("n").await;
    node.subscribe(node.request()).await;
    drop((held, watched, other, node));
    target.metric_is("health_streams", 0.0).await;
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_the_admin_port_keep_no_probe_waiting() {
    let target = Target::new(json!({})).await;
    let address = target.gateway.admin_address();
    let mut held = Vec::new();
    for _ in 0..700 {
        held.push(TcpStream::connect(&address).await.unwrap());
        if held.len() % 100 == 0 {
            let begun = Instant::now();
            let ready = timeout(LIMIT, target.gateway.admin("/readyz")).await.unwrap();
            assert!(ready.contains("ready"), "{ready}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        }
    }
    let files = target.files();
    assert!(files < 600, "{files} files are open");
    drop(held);
    until(LIMIT, "they are closed", async || target.files() < 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_send_nothing_are_counted_and_not_logged() {
    let tls = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/");
    let tls = json!({
        "certificate": format!("{tls}server.pem"), "privateKey": format!("{tls}server.key"),
    });
    for options in [GatewayOptions::embedded(), GatewayOptions::embedded().set("tls", tls)] {
        let options = options.set("limits", json!({ "handshakeTimeout": "1s" }));
        let gateway = Gateway::start(options.ready(Ready::Started)).await;
        gateway.stderr_has("the bus is verified", LIMIT).await;
        let lines = gateway.stderr().lines().count();
        for _ in 0..50 {
            drop(TcpStream::connect(gateway.address()).await.unwrap());
        }
        // One that stays, and sends nothing either.
        let silent = TcpStream::connect(gateway.address()).await.unwrap();
        let metric = async |line: &str| gateway.admin("/metrics").await.contains(line);
        until(LIMIT, "all are counted", async || {
            metric("\ntrunkline_connections_unused_total 50\n").await
                && metric("limit=\"limits.handshakeTimeout\"} 1\n").await
        })
        .await;
        assert_eq!(gateway.stderr().lines().count(), lines, "{}", gateway.stderr());
        drop(silent);
    }
}

//! Signals: SIGHUP reads again what can change, a second SIGTERM ends at once, and a drain is on
//! time whatever waits.

#![allow(clippy::unwrap_used)]

use std::{fs, time::Duration};

use serde_json::{Value, json};
use tonic::Code;

use super::support::{
    Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode,
    events::{large, numbered},
    folder, shared, until,
};
use trunkline_proto::v1::{GetStatusRequest, PublishRequest, SubscribeRequest};

fn rewrite(gateway: &Gateway, change: impl FnOnce(&mut Value)) {
    let file = gateway.config_file();
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut config);
    fs::write(file, config.to_string()).unwrap();
}

/// Sends SIGHUP, and returns the lines that the gateway logged for it.
async fn hang_up(gateway: &Gateway) -> String {
    let before = gateway.stderr().len();
    gateway.signal("HUP");
    until(LIMIT, "the configuration was read", async || {
        let log = gateway.stderr()[before..].to_owned();
        log.contains("was read again") || log.contains("cannot be used")
    })
    .await;
    // What follows from it is logged at once after it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    gateway.stderr()[before..].to_owned()
}

async fn publishes(gateway: &Gateway, token: &str) -> Result<(), Code> {
    let mut client = gateway.client().await;
    let mut request = tonic::Request::new(PublishRequest {
        node_id: "n1".into(),
        events: numbered("e", 1, 1),
        ..Default::default()
    });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    client.publish(request).await.map(|_| ()).map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_in_rules_tokens_and_the_log_level_and_names_what_needs_a_restart() {
    let (one, two) = ("token-of-the-first-node", "token-of-the-second-node");
    let folder = folder::new();
    let file = folder.path().join("tokens");
    fs::write(&file, format!("{one}\n")).unwrap();
    let identity = |name: &str, tokens: Value, publish: Value| {
        json!({"name": name, "tokens": tokens, "nodeIds": ["*"], "publish": publish,
            "operations": ["getStatus"]})
    };
    let token_file = json!([{"@type": "File", "filePath": file.display().to_string()}]);
    let denied = json!({});
    let allowed = json!({"allow": {"kinds": ["*"]}});
    let auth = |publish: &Value| {
        let identity = identity("mail", token_file.clone(), publish.clone());
        json!({ "identities": [identity] })
    };
    let options = GatewayOptions::embedded()
        .set("auth", auth(&denied))
        .set("insecure", true)
        // Too long to be what finds the change.
        .set("reloadInterval", "1h");
    let gateway = Gateway::start(options).await;
    assert_eq!(publishes(&gateway, one).await, Err(Code::PermissionDenied));

    // Rules.
    rewrite(&gateway, |config| config["auth"] = auth(&allowed));
    let log = hang_up(&gateway).await;
    assert!(log.contains("auth.identities") && log.contains("rules are in force"), "{log}");
    assert_eq!(publishes(&gateway, one).await, Ok(()));

    // Tokens of a file.
    assert_eq!(publishes(&gateway, two).await, Err(Code::Unauthenticated));
    fs::write(&file, format!("{two}\n")).unwrap();
    let log = hang_up(&gateway).await;
    assert!(log.contains("a token file has changed"), "{log}");
    assert_eq!(publishes(&gateway, two).await, Ok(()));
    assert_eq!(publishes(&gateway, one).await, Err(Code::Unauthenticated));

    // The level of the log, and a key that needs a restart.
    rewrite(&gateway, |config| {
        config["logLevel"] = "debug".into();
        config["heartbeat"] = "3s".into();
    });
    let log = hang_up(&gateway).await;
    assert!(log.contains("logLevel") && log.contains("needs a restart"), "{log}");
    assert!(log.contains("heartbeat"), "{log}");

    // A configuration that cannot be used changes nothing.
    rewrite(&gateway, |config| config["shards"] = 0.into());
    let log = hang_up(&gateway).await;
    assert!(log.contains("ERROR") && log.contains("shards"), "{log}");
    assert_eq!(publishes(&gateway, two).await, Ok(()));
    assert!(gateway.terminate(LIMIT).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_live_through_sighup() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let node = TestNode::connect(&gateway, "node").await;
    let stream = node.subscribe(node.request()).await;
    for round in 0..5 {
        hang_up(&gateway).await;
        let name = format!("e{round}");
        TestNode::connect(&gateway, "p").await.publish(numbered(&name, 1, 1)).await.unwrap();
        stream.event(&format!("{name}-0"), LIMIT).await;
    }
    let status = gateway.client().await.get_status(GetStatusRequest {}).await.unwrap();
    assert!(status.into_inner().uptime.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    for (first, second, code) in [("TERM", "TERM", 143), ("TERM", "INT", 130), ("INT", "TERM", 143)]
    {
        let drain = json!({ "delay": "5m", "timeout": "5m" });
        let gateway = Gateway::start(GatewayOptions::embedded().set("drain", drain)).await;
        let node = TestNode::connect(&gateway, "node").await;
        let _stream = node.subscribe(node.request()).await;
        gateway.signal(first);
        gateway.stderr_has("draining", LIMIT).await;
        let signalled = std::time::Instant::now();
        gateway.signal(second);
        let ended = gateway.ends(LIMIT).await;
        assert_eq!(ended.status.code(), Some(code), "{first}, {second}: {ended:?}");
        assert!(signalled.elapsed() < Duration::from_secs(3), "{ended:?}");
        assert!(gateway.stderr().contains("ending at once"), "{}", gateway.stderr());
    }
}

/// Streams that are not read, a frozen Redis, requests that wait for it, and a peer that never
/// closes its connection: none of them makes a drain late.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_within_its_limit_whatever_waits() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = || {
        GatewayOptions::redis(&redis.url(), &shared::prefix())
            .set_bus("timeout", "1m")
            .set("drain", json!({ "delay": "500ms", "timeout": "4s", "spread": "4s" }))
    };
    let (gateway, idle) = tokio::join!(Gateway::start(options()), Gateway::start(options()));
    let node = TestNode::connect(&gateway, "node").await;
    let request = SubscribeRequest { heartbeat_interval: None, ..node.request() };
    let stuck = node.stream(request).await.unwrap();
    let publisher = TestNode::connect(&gateway, "publisher").await;
    for _ in 0..20 {
        publisher.publish(vec![large(60 << 10); 10]).await.unwrap();
    }
    let silent = tokio::net::TcpStream::connect(gateway.address()).await.unwrap();
    redis.pause().await;
    let waiting = tokio::spawn(async move { publisher.publish(numbered("w", 1, 1)).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (ended, alone) = tokio::join!(gateway.terminate(LIMIT), idle.terminate(LIMIT));
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.took < Duration::from_millis(4800), "{ended:?}");
    assert!(alone.status.success() && alone.took < Duration::from_millis(4800), "{alone:?}");
    // It was answered before the end.
    let status = waiting.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(!status.message().contains("transport"), "{status:?}");
    redis.resume();
    drop((stuck, silent));
}

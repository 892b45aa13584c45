//! Commands that print a login, and what they may do wrong.

use std::{os::unix::fs::PermissionsExt, path::Path};

use serde_json::json;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    crosses,
    support::{
        ClusterOptions, Gateway, GatewayOptions, LIMIT, Ready, RedisCluster, RedisOptions, folder,
        process::Program, redis::cli, shared,
    },
    two_gateways,
};

/// Makes the file an executable script.
fn script(file: &Path, body: &str) {
    // Never half of it.
    let new = file.with_extension("new");
    std::fs::write(&new, format!("#!/bin/sh\n{body}\n")).expect("a file");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o700)).expect("rights");
    std::fs::rename(new, file).expect("a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_a_cluster_waits_for_a_command_that_fails_and_says_why() {
    let server = RedisOptions { password: Some("right".into()), ..RedisOptions::default() };
    let cluster =
        RedisCluster::with(ClusterOptions { replicas: 0, server, ..Default::default() }).await;
    let folder = folder::new();
    let file = folder.path().join("login");
    let secret = json!({ "@type": "Command", "path": file, "timeout": "1s" });
    let prefix = shared::prefix();
    let urls: Vec<_> = (cluster.urls().iter()).map(|url| url.replace(":right@", "")).collect();
    let options = || {
        GatewayOptions::redis_cluster(&urls, &prefix)
            .set("shards", 1)
            .set_bus("authSecret", secret.clone())
    };
    let gateway = Gateway::start(options().ready(Ready::Listening)).await;
    for (body, why) in [
        ("exit 0", "does not print a JSON object"),
        ("sleep 100", "did not end within 1s"),
        ("yes hunter2", "more than 64KiB"),
        ("echo the login of AWS is over >&2; exit 7", "the login of AWS is over"),
        (r#"echo '{"secret": "hunter2"}'"#, "WRONGPASS"),
    ] {
        script(&file, body);
        let said = gateway.is_not_ready(&[why], LIMIT * 2).await;
        assert!(why == "WRONGPASS" || said.contains("coordinator.authSecret"), "{said}");
    }
    assert!(!gateway.stderr().contains("hunter2"), "{}", gateway.stderr());
    drop(gateway);
    script(&file, r#"echo '{"secret": "right", "expiresIn": 3600}'"#);
    let (one, two) = two_gateways(options).await;
    crosses(&one, &two).await;
    // It is of no use any more, and what it printed is valid still.
    script(&file, "exit 1");
    for node in cluster.nodes() {
        node.cli(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    }
    crosses(&one, &two).await;
    // What it printed is revoked, long before it expires.
    script(&file, r#"echo '{"secret": "other", "expiresIn": 3600}'"#);
    for node in cluster.nodes() {
        node.cli(&["CONFIG", "SET", "requirepass", "other"]).await;
    }
    for node in cluster.nodes() {
        let url = node.url().replace(":right@", ":other@");
        cli(&url, &["CLIENT", "KILL", "TYPE", "normal"]).await;
    }
    for gateway in [&one, &two] {
        gateway.stderr_has("the login at Redis has changed", LIMIT).await;
        gateway.health_is("", ServingStatus::Serving, LIMIT).await;
    }
    crosses(&one, &two).await;
    for gateway in [&one, &two] {
        assert!(!gateway.stderr().contains("right"), "{}", gateway.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recipe_for_google_prints_a_login_or_fails_with_what_gcloud_says() {
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/redis/memorystore-login");
    let folder = folder::new();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let gcloud = folder.path().join("gcloud");
    script(&gcloud, "echo token-1 2126-01-31T10:00:00Z");
    let none: [&str; 0] = [];
    let printed = Program::new(recipe, none).env("PATH", &path).run(LIMIT).await.success();
    let printed: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    let expected = json!({ "secret": "token-1", "expiresAt": "2126-01-31T10:00:00Z" });
    assert_eq!(printed, expected);
    script(&gcloud, "echo please log in >&2; exit 1");
    let failed = Program::new(recipe, none).env("PATH", &path).run(LIMIT).await;
    assert!(!failed.status.success() && failed.stderr.contains("please log in"), "{failed:?}");
}

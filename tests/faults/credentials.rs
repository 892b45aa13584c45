//! Passwords of Redis that change under load.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use trunkline_proto::v1::GetStatusRequest;

use crate::{
    either,
    load::{Load, Shape},
    report::Report,
    support::{
        LIMIT, folder,
        gateway::{Gateway, GatewayOptions},
        redis::{ConnectedClient, RedisOptions, RedisServer},
        shared,
        wait::until,
    },
};

/// The connections of a user, but for those of replicas.
async fn connections(redis: &RedisServer, is_of: impl Fn(&str) -> bool) -> Vec<ConnectedClient> {
    let mut clients = redis.clients().await;
    clients.retain(|client| is_of(client.field("user")));
    clients
}

fn ids(clients: &[ConnectedClient]) -> BTreeSet<String> {
    clients.iter().map(|client| client.field("id").to_owned()).collect()
}

/// No subscription was made anew.
async fn stayed_open(gateways: [&Gateway; 2]) {
    for gateway in gateways {
        let status =
            gateway.client().await.get_status(GetStatusRequest {}).await.expect("a status");
        let links = status.into_inner().links;
        assert!(links.iter().all(|link| link.connected && link.reconnects == 0), "{links:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_file_that_is_replaced_under_load_is_noticed_by_no_node() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let user = async |change: &[&str]| {
        let mut args = vec!["ACL", "SETUSER", "gw", "on", "~*", "&*", "+@all"];
        args.extend(change);
        redis.cli(&args).await;
    };
    user(&[">password-0"]).await;
    let folder = folder::new();
    let file = folder.path().join("password");
    std::fs::write(&file, "password-0\n").expect("a file");
    let secret = json!({ "@type": "File", "filePath": file });
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix())
        .set_bus("authUsername", "gw")
        .set_bus("authSecret", secret);
    let (one, two) = crate::pair(options).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let of_gw = |user: &str| user == "gw";
    let before = ids(&connections(&redis, of_gw).await);
    for round in 1..=either(10, 3) {
        let (old, new) = (format!("password-{}", round - 1), format!("password-{round}"));
        // Both are valid while the file is replaced.
        user(&[&format!(">{new}")]).await;
        let auths = redis.calls("auth").await;
        std::fs::write(&file, format!("{new}\n")).expect("a file");
        until(LIMIT, "all connections are authenticated again", async || {
            redis.calls("auth").await >= auths + before.len() as u64
        })
        .await;
        user(&[&format!("<{old}")]).await;
        load.publishes(200).await;
    }
    assert!(ids(&connections(&redis, of_gw).await).is_superset(&before), "they stay open");
    stayed_open([&one, &two]).await;
    let history = load.finish().await;
    let report = Report::of("password of Redis replaced in its file", &history);
    report.check_without_gap();
    report.unseen_by_publishers();
}

/// A command that makes a user of its own each time, which is valid for some seconds.
fn command(redis: &RedisServer, gateway: &str) -> Value {
    const SCRIPT: &str = r#"
        user="$1-$(date +%s%N)"
        redis-cli -p "$0" ACL SETUSER "$user" on ">of-$user" '~*' '&*' +@all > /dev/null
        echo "{\"username\": \"$user\", \"secret\": \"of-$user\", \"expiresIn\": 8}"
    "#;
    let port = redis.port().to_string();
    json!({ "@type": "Command", "path": "/bin/sh", "args": ["-c", SCRIPT, port, gateway] })
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_of_a_command_that_expire_under_load_are_noticed_by_no_node() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let start = async |gateway: &str| {
        let options = GatewayOptions::redis(&redis.url(), &prefix)
            .set_bus("authSecret", command(&redis, gateway));
        Gateway::start(options).await
    };
    let (one, two) = tokio::join!(start("one"), start("two"));
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let of_gateways = |user: &str| user.starts_with("one-") || user.starts_with("two-");
    let before = connections(&redis, of_gateways).await;
    let users = |clients: &[ConnectedClient]| -> BTreeSet<String> {
        clients.iter().map(|client| client.field("user").to_owned()).collect()
    };
    let mut current = users(&before);
    assert_eq!(current.len(), 2, "{before:#?}");
    for _ in 0..either(10, 2) {
        until(LIMIT, "all connections have another user", async || {
            users(&connections(&redis, of_gateways).await).is_disjoint(&current)
        })
        .await;
        // Redis closes the connections of a user that is removed.
        for user in &current {
            redis.cli(&["ACL", "DELUSER", user]).await;
        }
        current = users(&connections(&redis, of_gateways).await);
        load.publishes(100).await;
    }
    let after = ids(&connections(&redis, of_gateways).await);
    assert!(after.is_superset(&ids(&before)), "the same connections");
    stayed_open([&one, &two]).await;
    let history = load.finish().await;
    let report = Report::of("logins of a command expire every 8 s", &history);
    report.check_without_gap();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_that_expire_under_load_are_noticed_by_no_node_over_resp2() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    // RESP2 has no AUTH on a connection that is subscribed.
    let url = format!("{}?protocol=resp2", redis.url());
    let start = async |gateway: &str| {
        let options =
            GatewayOptions::redis(&url, &prefix).set_bus("authSecret", command(&redis, gateway));
        Gateway::start(options).await
    };
    let (one, two) = tokio::join!(start("one"), start("two"));
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let of_gateways = |user: &str| user.starts_with("one-") || user.starts_with("two-");
    let first: BTreeSet<String> = (connections(&redis, of_gateways).await.iter())
        .map(|client| client.field("user").to_owned())
        .collect();
    until(LIMIT, "all connections have another user", async || {
        let now = connections(&redis, of_gateways).await;
        !now.is_empty() && now.iter().all(|client| !first.contains(client.field("user")))
    })
    .await;
    load.publishes(200).await;
    let clients = connections(&redis, of_gateways).await;
    assert!(clients.iter().any(ConnectedClient::is_subscriber), "{clients:#?}");
    let history = load.finish().await;
    let report = Report::of("logins of a command expire, RESP2", &history);
    report.check_without_gap();
    report.unseen_by_publishers();
}

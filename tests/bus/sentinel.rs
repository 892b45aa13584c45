//! A Redis whose master sentinels name: how it is found, and what sentinels may get wrong.

use std::time::Duration;

use serde_json::{Value, json};
use trunkline_proto::v1::Start;

use super::{
    crosses,
    support::{
        Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer, SentinelOptions,
        SentinelSet, TestNode, events, sentinel::MASTER, shared, wait::until,
    },
    tls::{self, does_not_serve, files, with_tls},
    two_gateways,
};

/// The rights at a sentinel that a gateway needs.
const RIGHTS: &str = "&+switch-master -@all +ping +hello +subscribe \
                      +sentinel|get-master-addr-by-name +sentinel|master +sentinel|replicas \
                      +sentinel|sentinels";

fn secret(secret: &str) -> Value {
    json!({ "@type": "Value", "secret": secret })
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_and_servers_have_certificates_and_credentials_of_their_own() {
    let (of_sentinels, of_servers) = (files("IP:127.0.0.1").await, files("IP:127.0.0.1").await);
    // The servers trust the sentinels, and sentinels one another and the servers.
    for (from, to) in [(&of_sentinels, &of_servers), (&of_servers, &of_sentinels)] {
        let other = std::fs::read(from.path().join("server.pem")).expect("a file");
        std::fs::write(to.path().join("other.pem"), other).expect("a file");
    }
    let all = [&of_sentinels, &of_servers]
        .map(|folder| std::fs::read_to_string(folder.path().join("ca.pem")).expect("a file"));
    let both = all.concat();
    let authorities = [&of_sentinels, &of_servers].map(|folder| {
        let own = folder.path().join("own-ca.pem");
        std::fs::copy(folder.path().join("ca.pem"), &own).expect("a file");
        std::fs::write(folder.path().join("ca.pem"), &both).expect("a file");
        json!({ "caCertificate": own })
    });
    let server =
        RedisOptions { password: Some("of-servers".into()), ..with_tls(&of_servers, false) };
    let options = SentinelOptions {
        server,
        sentinel: with_tls(&of_sentinels, false),
        lines: vec![format!("user gateway on >of-sentinels {RIGHTS}")],
        ..Default::default()
    };
    let set = SentinelSet::with(options).await;
    let prefix = shared::prefix();
    let [sentinel_tls, tls] = authorities;
    let options = || {
        // The others are discovered.
        GatewayOptions::redis_sentinel(&set.urls()[..1], &prefix)
            .set_bus("sentinelTls", sentinel_tls.clone())
            .set_bus("tls", tls.clone())
            .set_bus("sentinelUsername", "gateway")
            .set_bus("sentinelSecret", secret("of-sentinels"))
            .set_bus("authSecret", secret("of-servers"))
    };
    let (one, two) = two_gateways(options).await;
    crosses(&one, &two).await;
    for sentinel in set.sentinels() {
        until(LIMIT, "each sentinel is asked by both", async || {
            let clients = sentinel.clients().await;
            let ours = clients.iter().filter(|client| client.field("user") == "gateway");
            ours.filter(|client| client.is_subscriber()).count() == 2
        })
        .await;
    }
    does_not_serve(options().set_bus("sentinelSecret", secret("wrong")), "sentinelSecret").await;
    does_not_serve(options().set_bus("authSecret", secret("wrong")), "WRONGPASS").await;
    let wrong = options().set_bus("sentinelTls", tls.clone());
    does_not_serve(wrong, "invalid peer certificate").await;
    let wrong = options().set_bus("tls", sentinel_tls.clone());
    does_not_serve(wrong, "invalid peer certificate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_that_are_added_are_asked_when_the_first_ones_are_gone() {
    let mut set = SentinelSet::start().await;
    let prefix = shared::prefix();
    let first = set.urls()[..1].to_vec();
    let (one, two) = two_gateways(|| GatewayOptions::redis_sentinel(&first, &prefix)).await;
    set.add_sentinel().await;
    for sentinel in set.sentinels() {
        until(LIMIT, "each sentinel is asked by both", async || {
            let clients = sentinel.clients().await;
            let subscribed = clients.iter().filter(|client| client.is_subscriber());
            subscribed.filter(|client| client.field("resp") == "3").count() == 2
        })
        .await;
    }
    set.sentinel(0).kill_9();
    let before = set.master().await;
    set.server(before).kill_9();
    set.taken_over(before).await;
    crosses(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_master_is_not_believed_to_be_one() {
    let set = SentinelSet::start().await;
    let prefix = shared::prefix();
    let naming = async |port: u16| {
        let lines = format!("sentinel monitor {MASTER} 127.0.0.1 {port} 2");
        RedisServer::start(RedisOptions { sentinel: Some(lines), ..Default::default() }).await
    };
    let replica = naming(set.server(1).port()).await;
    let looped = naming(replica.port()).await;
    let nobody = naming(1).await;
    for (wrong, why) in [
        (&replica, "it is a replica"),
        (&looped, "it does not say that it is a master"),
        (&nobody, "refused"),
    ] {
        let options = GatewayOptions::redis_sentinel(&[wrong.url()], &prefix);
        does_not_serve(options, why).await;
    }
    let other = GatewayOptions::redis_sentinel(&set.urls(), &prefix).set_bus("masterName", "other");
    does_not_serve(other, "coordinator.masterName").await;

    // One that is right is enough.
    let mut urls: Vec<_> = [&replica, &looped, &nobody].map(RedisServer::url).to_vec();
    urls.push(set.urls().remove(0));
    let (one, two) = two_gateways(|| GatewayOptions::redis_sentinel(&urls, &prefix)).await;
    crosses(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_sentinels_name_serve_history() {
    const EVENTS: usize = 500;
    let set = SentinelSet::start().await;
    let options = GatewayOptions::redis_sentinel(&set.urls(), &shared::prefix())
        .set("log", json!({ "maxEvents": 1 }));
    let first = Gateway::start(options.clone().set_bus("readFromReplicas", false)).await;
    let publisher = TestNode::connect(&first, "publisher").await;
    for event in events::numbered("e", EVENTS, 1) {
        publisher.publish(vec![event]).await.expect("published");
    }
    let second = Gateway::start(options).await;
    let all_through = async |gateway: &Gateway, limit| {
        let node = TestNode::connect(gateway, "node").await;
        let mut request = node.request();
        request.start = Start::Oldest.into();
        let recording = node.subscribe(request).await.events(EVENTS, limit).await;
        assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    };
    let replica = set.server(1 - set.master().await);
    let before = replica.calls("xrange").await;
    all_through(&first, LIMIT).await;
    assert_eq!(replica.calls("xrange").await, before, "without readFromReplicas");
    all_through(&second, LIMIT).await;
    assert!(replica.calls("xrange").await > before, "with it");
    // One that hangs costs one time limit.
    replica.pause().await;
    all_through(&second, Duration::from_secs(8)).await;
    replica.resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_checked_for_the_name_that_the_map_gives() {
    let folder = files("DNS:redis.internal").await;
    let own = with_tls(&folder, false);
    let redis = RedisServer::start(own).await;
    let name = json!([{ "announced": "127.0.0.1", "serverName": "redis.internal" }]);
    let lines = format!("sentinel monitor {MASTER} 127.0.0.1 {} 1", redis.tls_port());
    let plain = RedisOptions { sentinel: Some(lines), ..Default::default() };
    let sentinel = RedisServer::start(plain).await;
    let ca = json!({ "caCertificate": folder.path().join("ca.pem") });
    let prefix = shared::prefix();
    let options = || {
        GatewayOptions::redis_sentinel(&[sentinel.url()], &prefix)
            .set_bus("masterTls", "verified")
            .set_bus("tls", ca.clone())
    };
    does_not_serve(options(), "not valid for name").await;
    let (one, two) = two_gateways(|| options().set_bus("addressMap", name.clone())).await;
    crosses(&one, &two).await;
    tls::does_not_serve(
        options().set_bus("addressMap", json!([{ "announced": "127.0.0.1", "serverName": "x" }])),
        "not valid for name",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_waits_for_sentinels_and_says_so() {
    let set = SentinelSet::start().await;
    for sentinel in set.sentinels() {
        sentinel.kill_9();
    }
    let options = GatewayOptions::redis_sentinel(&set.urls(), &shared::prefix());
    let gateway = Gateway::start(options.ready(Ready::Listening)).await;
    gateway.is_not_ready(&["sentinel 127.0.0.1:", "refused"], LIMIT).await;
    set.sentinel(2).restart(super::support::Data::Kept).await;
    gateway.ready(Ready::Serving).await;
}

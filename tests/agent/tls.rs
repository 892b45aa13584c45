//! An agent over TLS: to gateways, and to a channel of Redis that it joins.

use futures_util::StreamExt;
use serde_json::json;

use super::{
    relay::{CHANNEL, next},
    seen::admin,
};
use crate::support::{
    Gateway, GatewayOptions, LIMIT, Ready,
    gateway::trunkline,
    ports::Port,
    process::Process,
    redis::{RedisOptions, RedisServer, TlsFiles},
    until,
};

const TOKEN: &str = "token-of-the-agents-0123456789";

/// A file of tests/tls.
fn pem(name: &str) -> String {
    format!("{}/tests/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// An agent, as a process.
struct Host {
    agent: Process,
    client: redis::Client,
    admin: String,
    _ports: [Port; 2],
}

impl Host {
    fn start(node_id: &str, flags: &[&str], environment: &[(&str, &str)]) -> Host {
        let ports = [Port::free(), Port::free()];
        let [listen, admin] = ports.each_ref().map(|port| format!("127.0.0.1:{}", port.number()));
        let own = ["agent", "--node-id", node_id, "--listen", &listen, "--admin", &admin];
        let mut program = trunkline(own.iter().chain(flags).copied());
        for (name, value) in environment {
            program = program.env(*name, *value);
        }
        let client = redis::Client::open(format!("redis://{listen}")).expect("a URL");
        Host { agent: Process::start(node_id, program), client, admin, _ports: ports }
    }

    /// Until a gateway delivers events.
    async fn is_ready(&self) {
        until(LIMIT, "a ready agent", async || {
            assert!(self.agent.ended().is_none(), "{}", self.agent.stderr());
            let answer = admin(&self.admin, "/readyz").await;
            answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_present_a_certificate_and_a_token_to_gateways_with_tls() {
    let tls = json!({
        "certificate": pem("server.pem"),
        "privateKey": pem("server.key"),
        "clientCa": pem("ca.pem"),
        "clientCertificates": "required",
    });
    let any = json!({ "allow": { "kinds": ["*"] } });
    let identities = json!([
        { "name": "mx", "tokens": [{ "@type": "Value", "secret": TOKEN }], "nodeIds": ["host-*"],
          "publish": any, "receive": any },
    ]);
    let options = GatewayOptions::embedded()
        .set("tls", tls)
        .set("auth", json!({ "identities": identities }))
        .ready(Ready::Started);
    let gateway = Gateway::start(options).await;
    let url = format!("https://localhost:{}", gateway.port());
    let (ca, certificate, key) = (pem("ca.pem"), pem("client.pem"), pem("client.key"));
    let there = ["--gateway", &url, "--tls-ca", &ca];
    let shown = [&there[..], &["--tls-cert", &certificate, "--tls-key", &key]].concat();
    let token = [("TRUNKLINE_TOKEN", TOKEN)];
    let first = Host::start("host-1", &shown, &token);
    let second = Host::start("host-2", &shown, &token);
    // Nothing reaches those who lack one of the two.
    let without = [Host::start("host-3", &there, &token), Host::start("host-4", &shown, &[])];
    first.is_ready().await;
    second.is_ready().await;
    for (from, to, change) in [(&first, &second, 7u8), (&second, &first, 8)] {
        let mut pubsub = to.client.get_async_pubsub().await.expect("connected");
        pubsub.subscribe(CHANNEL).await.expect("subscribed");
        let mut messages =
            pubsub.into_on_message().map(|message| message.get_payload_bytes().to_vec()).boxed();
        let mut publisher =
            from.client.get_multiplexed_async_connection().await.expect("connected");
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(CHANNEL).arg(&[5, 0, change, 1, 1]);
        publish.query_async::<i64>(&mut publisher).await.expect("answered");
        while next(&mut messages).await != [0xff, 0xff, 3, 0, change, 1, 1] {}
    }
    for (host, reason) in without.iter().zip(["the stream of events was lost", "is not valid here"])
    {
        until(LIMIT, "a reason", async || host.agent.stderr().contains(reason)).await;
        let answer = admin(&host.admin, "/readyz").await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_joined_over_tls_where_the_authority_of_that_redis_is_trusted() {
    let files = TlsFiles { folder: pem("").into(), asks_clients: false };
    let redis = RedisServer::start(RedisOptions { tls: Some(files), ..Default::default() }).await;
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let (url, channel) = (gateway.url(), redis.tls_url());
    let flags = ["--gateway", &url, "--channel", &channel];
    let (trusted, other) = (pem("ca.pem"), pem("other-ca.pem"));
    let refused = Host::start("host-1", &flags, &[("SSL_CERT_FILE", &other)]);
    until(LIMIT, "a reason", async || {
        refused.agent.stderr().contains("the channel of Redis is not carried")
    })
    .await;
    let carries = async |host: &Host| {
        let metrics = admin(&host.admin, "/metrics").await.unwrap_or_default();
        metrics.contains("trunkline_agent_carries_channel 1\n")
    };
    let joined = Host::start("host-2", &flags, &[("SSL_CERT_FILE", &trusted)]);
    until(LIMIT, "an agent that carries the channel", async || carries(&joined).await).await;
    assert!(!carries(&refused).await, "{}", refused.agent.stderr());
    // What a node publishes there reaches a node of the agent.
    let mut pubsub = joined.client.get_async_pubsub().await.expect("connected");
    pubsub.subscribe(CHANNEL).await.expect("subscribed");
    let mut messages =
        pubsub.into_on_message().map(|message| message.get_payload_bytes().to_vec()).boxed();
    let client = redis::Client::open(redis.url()).expect("a URL");
    let mut publisher = client.get_multiplexed_async_connection().await.expect("connected");
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(CHANNEL).arg(&[3u8, 0, 7, 1, 1]);
    publish.query_async::<i64>(&mut publisher).await.expect("answered");
    while next(&mut messages).await != [3, 0, 7, 1, 1] {}
}

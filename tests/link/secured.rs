//! Certificates and tokens of both sides.

use serde_json::{Value, json};
use trunkline_client::{Client, Credentials, SubscribeOptions};

use crate::{
    stage::{Link, Recorder, fails},
    support::{
        LIMIT,
        events::{mailbox_change, with_id},
        folder,
        gateway::{Gateway, GatewayOptions, Ready},
        until,
    },
};

const TOKENS: [&str; 2] = ["token-of-the-source-0123456789", "token-of-the-destination-012345"];

/// A file of tests/tls.
fn pem(name: &str) -> String {
    format!("{}/tests/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A gateway with TLS, for one token; the rules are the smallest that a link needs.
async fn secured(name: &str, token: &str, rules: Value) -> Gateway {
    let mut identity = rules;
    identity["name"] = "link".into();
    identity["tokens"] = json!([{ "@type": "Value", "secret": token }]);
    identity["nodeIds"] = json!(["link-*", "mx1", "reader"]);
    identity["operations"] = json!(["getStatus"]);
    let tls = json!({
        "certificate": pem("server.pem"),
        "privateKey": pem("server.key"),
        "clientCa": pem("ca.pem"),
        "clientCertificates": "required",
    });
    let options = GatewayOptions::embedded()
        .set("deployment", name)
        .set("tls", tls)
        .set("auth", json!({ "identities": [identity] }))
        .ready(Ready::Started);
    Gateway::start(options).await
}

fn client(node_id: &str, gateway: &Gateway, token: &str) -> Client {
    let read = |name: &str| std::fs::read(pem(name)).expect("a file");
    let credentials = Credentials::new()
        .ca_certificate(read("ca.pem"))
        .client_certificate(read("client.pem"), read("client.key"))
        .token(token)
        .expect("a token");
    let url = format!("https://localhost:{}", gateway.port());
    Client::builder(node_id).gateway(url).credentials(credentials).build().expect("an address")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_has_a_certificate_and_a_token_for_each_side_and_needs_few_rights() {
    let any = json!({ "allow": { "kinds": ["*"] } });
    let carried = json!({ "allow": { "kinds": ["mailbox_change"] } });
    let published = json!({ "allow": { "kinds": ["mailbox_change", "missed_events"] } });
    let a = secured("a", TOKENS[0], json!({ "publish": any, "receive": carried })).await;
    let b = secured("b", TOKENS[1], json!({ "publish": published, "receive": any })).await;
    let folder = folder::new();
    let tokens = ["from", "to"].map(|name| folder.path().join(name).display().to_string());
    for (file, token) in tokens.iter().zip(TOKENS) {
        std::fs::write(file, token).expect("a file");
    }
    let [from, to] = [&a, &b].map(|gateway| format!("https://localhost:{}", gateway.port()));
    let (ca, certificate, key) = (pem("ca.pem"), pem("client.pem"), pem("client.key"));
    let mut flags = vec!["--kinds", "mailbox-change"];
    for [ca_flag, certificate_flag, key_flag] in [
        ["--from-tls-ca", "--from-tls-cert", "--from-tls-key"],
        ["--to-tls-ca", "--to-tls-cert", "--to-tls-key"],
    ] {
        flags.extend([ca_flag, &ca, certificate_flag, &certificate, key_flag, &key]);
    }
    let right = [&flags[..], &["--from-token-file", &tokens[0], "--to-token-file", &tokens[1]]];
    let link = Link::start(std::slice::from_ref(&from), std::slice::from_ref(&to), &right.concat());
    link.is_connected().await;
    let reader = client("reader", &b, TOKENS[1]);
    let reader = Recorder::start(&reader, SubscribeOptions::new()).await;
    let publisher = client("mx1", &a, TOKENS[0]);
    publisher.publish([with_id("e1", mailbox_change("a1", 1))]).await.expect("published");
    reader.event("e1").await;
    until(LIMIT, "everything is accepted", async || {
        link.metric("link_rejected_events_total").await == Some(0.0)
            && link.metric("link_waiting_events").await == Some(0.0)
    })
    .await;
    // The other way round, both are wrong.
    let wrong = [&flags[..], &["--from-token-file", &tokens[1], "--to-token-file", &tokens[0]]];
    let (code, text) = fails(&from, &to, &folder.path().join("state"), &wrong.concat()).await;
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("--from"), "{text}");
}

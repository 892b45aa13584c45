//! Authentication by client certificate, and TLS of the gRPC port.

use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tonic::{Code, transport::Endpoint};
use trunkline_client::Credentials;
use trunkline_proto::v1::{
    Filter, GetStatusRequest, coordination_service_client::CoordinationServiceClient,
};

use super::{
    MX_TOKEN, connect, files::Files, next, not_allowed, publish, request, subscribe, try_connect,
    unauthenticated,
};
use crate::support::{Gateway, GatewayOptions, LIMIT, Ready, events, wait::attempt};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_authenticates_a_node() {
    let files = Files::new().await;
    let spiffe = "URI:spiffe://example.org/mail/mx1,DNS:mx";
    files.certificate("mail", "ca", spiffe, "-days 7").await;
    files.certificate("other-authority", "other", spiffe, "-days 7").await;
    files.certificate("expired", "ca", spiffe, "-days -1").await;
    files.certificate("unknown", "ca", "DNS:unknown", "-days 7").await;
    let gateway = files.start(files.options("required")).await;
    let own = "spiffe://example.org/mail/mx1";
    let mail = connect(&gateway, &files.presents("mail")).await;
    publish(&mail, own, vec![events::queue_refresh()]).await.expect("published");
    assert_eq!(
        not_allowed(publish(&mail, "mx-1", vec![events::queue_refresh()]).await),
        ["node_id"]
    );
    let unknown = connect(&gateway, &files.presents("unknown")).await;
    unauthenticated(
        publish(&unknown, "unknown", vec![events::queue_refresh()]).await,
        "CREDENTIALS_WRONG",
    );
    // With TLS 1.3 a client learns with its first request that its certificate was refused.
    for credentials in [
        files.presents("other-authority"),
        files.presents("expired"),
        files.trusting(),
        files.token(MX_TOKEN),
    ] {
        let Ok(node) = try_connect(&gateway, &credentials).await else { continue };
        let result = publish(&node, own, vec![events::queue_refresh()]).await;
        let status = result.expect_err("an error");
        assert!(!matches!(status.code(), Code::Ok | Code::PermissionDenied), "{status:?}");
    }
    // A request in plain text to the TLS port fails.
    let plain = Endpoint::from_shared(gateway.url()).expect("a URL").connect_lazy();
    let mut plain = CoordinationServiceClient::new(plain);
    let answer = tokio::time::timeout(LIMIT, plain.get_status(GetStatusRequest {})).await;
    answer.expect("in time").expect_err("an error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_without_a_uri_is_identified_by_its_dns_name_else_its_common_name() {
    let (files, gateway) = Files::with_gateway("required").await;
    for (file, subject, names) in [
        ("by-dns", "somebody", "DNS:imap.example.org,DNS:mx"),
        ("by-common-name", "imap.example.org", ""),
    ] {
        files.short_lived(file, subject, names, 3600).await;
        let node = connect(&gateway, &files.presents(file)).await;
        publish(&node, "imap", vec![events::queue_refresh()]).await.expect(file);
        let event = vec![events::queue_refresh()];
        assert_eq!(not_allowed(publish(&node, "mx-1", event).await), ["node_id"], "{file}");
    }
    // The first kind of name that there is decides: the others are ignored even if they match.
    for (file, names) in
        [("other-dns", "DNS:other.example.org"), ("other-uri", "URI:urn:x,DNS:imap.example.org")]
    {
        files.short_lived(file, "imap.example.org", names, 3600).await;
        let node = connect(&gateway, &files.presents(file)).await;
        let result = publish(&node, "imap", vec![events::queue_refresh()]).await;
        unauthenticated(result, "CREDENTIALS_WRONG");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_one_kind_is_never_taken_for_one_of_another_kind() {
    let (files, gateway) = Files::with_gateway("required").await;
    let spiffe = "spiffe://example.org/mail/mx1";
    // The text of a SPIFFE id, of a DNS name and of a common name, in the places of the others.
    for (file, subject, names) in [
        ("cn-as-uri", "spiffe:\\\\/\\\\/example.org\\\\/mail\\\\/mx1", String::new()),
        ("dns-as-uri", "x", format!("DNS:{spiffe}")),
        ("dns-as-cn", "x", "DNS:CN=imap.example.org".to_owned()),
        ("dns-as-token", "x", "DNS:mx*".to_owned()),
        ("cn-as-token", "mx", String::new()),
    ] {
        files.short_lived(file, subject, &names, 3600).await;
        let node = connect(&gateway, &files.presents(file)).await;
        for node_id in [spiffe, "imap", "mx-1"] {
            let result = publish(&node, node_id, vec![events::queue_refresh()]).await;
            unauthenticated(result, "CREDENTIALS_WRONG");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_certificate_expires() {
    let (files, gateway) = Files::with_gateway("required").await;
    files.short_lived("brief", "imap.example.org", "", 8).await;
    let node = connect(&gateway, &files.presents("brief")).await;
    let mut stream = subscribe(&node, request("imap", Filter::default())).await.expect("a stream");
    publish(&node, "imap", vec![events::queue_refresh()]).await.expect("a valid certificate");
    unauthenticated(next(&mut stream).await.map(|_| ()), "CREDENTIALS_REVOKED");
    unauthenticated(
        publish(&node, "imap", vec![events::queue_refresh()]).await,
        "CREDENTIALS_WRONG",
    );
    // Metrics and the page show why the stream ended and why the request was refused.
    let metrics = gateway.admin("/metrics").await;
    let errors = |method: &str, reason: &str| {
        let series =
            format!("trunkline_errors_total{{method=\"{method}\",reason=\"{reason}\"}} 1\n");
        assert!(metrics.contains(&series), "{series} in {metrics}");
    };
    errors("Subscribe", "credentials_revoked");
    errors("Publish", "credentials_wrong");
    let page: Value = serde_json::from_str(&gateway.admin("/api/status").await).expect("JSON");
    assert_eq!(page["ended"][0]["why"], "credentials_revoked", "{page:#}");
    assert_eq!(page["refused"][0]["reason"], "credentials_wrong", "{page:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_certificate_authority_ends_the_streams_of_its_certificates() {
    let files = Files::new().await;
    let name = "spiffe://example.org/mail/mx1";
    files.certificate("mail", "ca", &format!("URI:{name}"), "-days 7").await;
    let gateway = files.start(files.options("optional")).await;
    let mail = connect(&gateway, &files.presents("mail")).await;
    let mut stream = subscribe(&mail, request(name, Filter::default())).await.expect("a stream");
    files.write("ca.pem", files.read("other.pem"));
    unauthenticated(next(&mut stream).await.map(|_| ()), "CREDENTIALS_REVOKED");
    unauthenticated(publish(&mail, name, vec![events::queue_refresh()]).await, "CREDENTIALS_WRONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_streams_are_open() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let old = files.token(MX_TOKEN);
    let mx = connect(&gateway, &old).await;
    let mut stream = subscribe(&mx, request("mx-1", Filter::default())).await.expect("a stream");
    // A key that does not match the certificate changes nothing, and is logged.
    let key = files.read("server.key");
    files.write("server.key", files.read("other.key"));
    gateway.stderr_has("stay in force", LIMIT).await;
    connect(&gateway, &old).await;
    files.write("server.key", key);
    // A certificate of another authority: clients that trust only the old one cannot connect.
    files.certificate("server", "other", "DNS:localhost", "-days 7").await;
    gateway.stderr_has("new connections see the new ones", LIMIT).await;
    let other = Credentials::new().ca_certificate(files.read("other.pem"));
    let other = other.token(MX_TOKEN).expect("a token");
    let new =
        attempt(LIMIT, "the new certificate", async || try_connect(&gateway, &other).await).await;
    try_connect(&gateway, &old).await.expect_err("the old authority");
    // The open stream goes on.
    publish(&new, "mx-2", vec![events::queue_refresh()]).await.expect("published");
    assert_eq!(next(&mut stream).await.expect("events").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_tls_handshakes_delay_no_other_connection() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let mut idle = vec![];
    for _ in 0..20 {
        idle.push(TcpStream::connect(gateway.address()).await.expect("a connection"));
    }
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    publish(&mx, "mx-1", vec![events::queue_refresh()]).await.expect("published");

    let limits = json!({ "handshakeTimeout": "1s" });
    let gateway = files.start(files.options("optional").set("limits", limits)).await;
    let mut idle = TcpStream::connect(gateway.address()).await.expect("a connection");
    let ended = tokio::time::timeout(LIMIT, idle.read(&mut [0; 1])).await.expect("in time");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_beyond_loopback_requires_insecure() {
    let everywhere = |config: Value| GatewayOptions {
        config,
        ready: Ready::Started,
        ..GatewayOptions::embedded()
    };
    let token = json!({ "@type": "Value", "secret": MX_TOKEN });
    let auth = json!({ "identities": [{ "name": "mx", "tokens": [token] }] });
    for (config, why) in [
        (json!({ "listen": "0.0.0.0:0" }), "anybody who reaches it"),
        (json!({ "listen": "0.0.0.0:0", "auth": auth }), "tokens would travel in plain text"),
    ] {
        let gateway = Gateway::start(everywhere(config)).await;
        let ended = gateway.ends(LIMIT).await;
        assert_eq!(ended.status.code(), Some(78));
        assert!(gateway.stderr().contains(why), "{}", gateway.stderr());
    }
    let gateway =
        Gateway::start(everywhere(json!({ "listen": "0.0.0.0:0", "insecure": true }))).await;
    gateway.stderr_has("authentication is off", LIMIT).await;
    gateway.stderr_has("insecure: nodes connect in plain text", LIMIT).await;
}

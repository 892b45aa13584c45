//! Every form of a Redis URL, on real servers: schemes, passwords, databases, protocols, sockets
//! and TLS.

use super::support::{
    ClusterOptions, Gateway, GatewayOptions, LIMIT, Ready, RedisCluster, RedisOptions, RedisServer,
    TestNode,
    events::{mailbox_change, with_id},
    eventually,
    ports::Port,
    shared,
};
use serde_json::{Value, json};
use trunkline_proto::v1::GetStatusRequest;

const PASSWORD: &str = "p/ss w0rd";
const ENCODED: &str = "p%2Fss%20w0rd";

/// Checks that an event goes through the gateway's bus.
async fn works(gateway: &Gateway) {
    let node = TestNode::connect(gateway, "observer").await;
    let collector = node.subscribe(node.request()).await;
    let publisher = TestNode::connect(gateway, "publisher").await;
    publisher.publish(vec![with_id("e", mailbox_change("a1", 1))]).await.expect("published");
    collector.event("e", LIMIT).await;
}

/// Starts a gateway that listens and does not serve; the reason that it reports.
async fn refused(options: GatewayOptions) -> String {
    let gateway = Gateway::start(options.ready(Ready::Listening)).await;
    let mut client = gateway.client().await;
    let reason = eventually(LIMIT, "a reason", async || {
        let status = client.get_status(GetStatusRequest {}).await.expect("a status").into_inner();
        assert!(!status.serving, "{status:?}");
        // There is none before the first attempt has failed.
        (status.reason.len() > 40).then_some(status.reason)
    })
    .await;
    let output = format!("{reason}\n{}", gateway.stderr());
    assert!(
        !output.contains("w0rd") && !output.contains("wrong-"),
        "a password is shown: {output}"
    );
    reason
}

fn options(url: &str) -> GatewayOptions {
    GatewayOptions::redis(url, &shared::prefix())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scheme_without_tls_reaches_its_database_in_its_protocol() {
    let (port, server) = start_with_password().await;
    let socket = server.folder().join("redis.sock").display().to_string();
    for (url, database, protocol) in [
        (format!("redis://:{ENCODED}@127.0.0.1:{port}"), 0, "3"),
        (format!("redis://default:{ENCODED}@localhost:{port}/3?protocol=resp2"), 3, "2"),
        (format!("valkey://:{ENCODED}@127.0.0.1:{port}/4?protocol=resp3"), 4, "3"),
        (format!("unix://{socket}?pass={ENCODED}&db=5"), 5, "3"),
        (format!("redis+unix://{socket}?user=default&pass={ENCODED}&protocol=2"), 0, "2"),
    ] {
        let options = options(&url);
        let prefix = options.config["prefix"].as_str().expect("a prefix").to_owned();
        let gateway = Gateway::start(options).await;
        works(&gateway).await;
        let mut connection = administrator(port, database).await;
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg(format!("{prefix}:*"))
            .query_async(&mut connection)
            .await
            .expect("KEYS");
        assert!(!keys.is_empty(), "{url} uses database {database}");
        let list: String = redis::cmd("CLIENT")
            .arg("LIST")
            .query_async(&mut connection)
            .await
            .expect("CLIENT LIST");
        let subscriber = list
            .lines()
            .find(|line| !line.contains(" sub=0 "))
            .unwrap_or_else(|| panic!("{url}: {list}"));
        let resp = format!("resp={protocol}");
        assert!(subscriber.split(' ').any(|field| field == resp), "{url}: {subscriber}");
    }
}

/// A server with a password that the harness cannot write into its URL: the port, and the server.
async fn start_with_password() -> (u16, RedisServer) {
    let options = RedisOptions { unix_socket: true, ..RedisOptions::default() };
    let server = RedisServer::start(options).await;
    // After the start: the harness has to see it without a password.
    server.cli(&["CONFIG", "SET", "requirepass", PASSWORD]).await;
    (server.port(), server)
}

async fn administrator(port: u16, database: i64) -> redis::aio::MultiplexedConnection {
    let url = format!("redis://:{ENCODED}@127.0.0.1:{port}/{database}");
    let client = redis::Client::open(url).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("a connection")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_reported_and_not_shown() {
    let server = RedisServer::start(RedisOptions {
        password: Some("secret".into()),
        ..RedisOptions::default()
    })
    .await;
    for user in ["", "unknown"] {
        let url = format!("redis://{user}:wrong-password@127.0.0.1:{}", server.port());
        let reason = refused(options(&url)).await;
        assert!(reason.contains("WRONGPASS") || reason.contains("authentication"), "{reason}");
    }
    let reason = refused(options(&format!("redis://127.0.0.1:{}", server.port()))).await;
    assert!(reason.contains("NOAUTH") || reason.contains("uthentication"), "{reason}");
}

/// A file of tests/tls.
fn pem(name: &str) -> String {
    format!("{}/tests/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A server that speaks TLS on the port.
async fn start_tls(auth_clients: &str) -> (Port, RedisServer) {
    let port = Port::free();
    let args = [
        ("--tls-port", port.number().to_string()),
        ("--tls-cert-file", pem("server.pem")),
        ("--tls-key-file", pem("server.key")),
        ("--tls-ca-cert-file", pem("ca.pem")),
        ("--tls-auth-clients", auth_clients.to_owned()),
    ];
    let args = args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    let server = RedisServer::start(RedisOptions { args, ..RedisOptions::default() }).await;
    (port, server)
}

fn tls(url: &str, tls: Value) -> GatewayOptions {
    options(url).set_bus("tls", tls)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified_unless_the_url_says_insecure() {
    let (port, _server) = start_tls("no").await;
    let ours = json!({ "caCertificate": pem("ca.pem") });
    for url in [
        format!("rediss://127.0.0.1:{}", port.number()),
        format!("valkeys://localhost:{}/1?protocol=resp2", port.number()),
    ] {
        works(&Gateway::start(tls(&url, ours.clone())).await).await;
        let insecure = format!("{url}#insecure");
        works(&Gateway::start(options(&insecure)).await).await;
        // Neither the system's authorities nor another one signed it.
        refused(options(&url)).await;
        refused(tls(&url, json!({ "caCertificate": pem("other-ca.pem") }))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_a_client_certificate_gets_it() {
    let (port, _server) = start_tls("yes").await;
    let url = format!("rediss://127.0.0.1:{}", port.number());
    let files = json!({ "caCertificate": pem("ca.pem"),
        "clientCertificate": pem("client.pem"), "clientKey": pem("client.key") });
    works(&Gateway::start(tls(&url, files.clone())).await).await;
    refused(tls(&url, json!({ "caCertificate": pem("ca.pem") }))).await;
    // Also if the server's certificate is not verified.
    let mut files = files;
    files.as_object_mut().expect("an object").remove("caCertificate");
    works(&Gateway::start(tls(&format!("{url}#insecure"), files)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_takes_user_and_secret_from_urls_or_keys() {
    let server = RedisOptions { password: Some("w0rd".into()), ..RedisOptions::default() };
    let cluster =
        RedisCluster::with(ClusterOptions { replicas: 0, server, ..ClusterOptions::default() })
            .await;
    let bare: Vec<String> = cluster.urls().iter().map(|url| url.replace(":w0rd@", "")).collect();
    assert!(bare.iter().all(|url| !url.contains("w0rd")), "{bare:?}");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "w0rd\n").expect("written");
    let with = |secret: Value| {
        GatewayOptions::redis_cluster(&bare, &shared::prefix())
            .set_bus("authUsername", "default")
            .set_bus("authSecret", secret)
    };
    let mut by_variable =
        with(json!({ "@type": "EnvironmentVariable", "variableName": "REDIS_PASSWORD" }));
    by_variable.env = vec![("REDIS_PASSWORD".into(), "w0rd".into())];
    for options in [
        with(json!({ "@type": "Value", "secret": "w0rd" })),
        with(json!({ "@type": "File", "filePath": file.path() })),
        by_variable,
        GatewayOptions::redis_cluster(&cluster.urls(), &shared::prefix()),
    ] {
        let gateway = Gateway::start(options).await;
        works(&gateway).await;
        assert!(!gateway.stderr().contains("w0rd"), "{}", gateway.stderr());
    }
    refused(with(json!({ "@type": "Value", "secret": "wrong-one" }))).await;
    refused(with(json!({ "@type": "None" }))).await;
}

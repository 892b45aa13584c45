//! TLS to the server: a private CA, client certificates, and errors of invalid certificates.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    crosses, ids,
    support::{
        ClusterOptions, Gateway, GatewayOptions, LIMIT, RedisCluster, RedisOptions, RedisServer,
        TestNode,
        certificates::{self, openssl},
        events, folder,
        gateway::Ready,
        redis::TlsFiles,
        shared,
    },
    two_gateways,
};

/// A server that listens with TLS, beside the port of the harness, and the folder of its
/// certificates.
struct TlsServer {
    redis: RedisServer,
    folder: TempDir,
}

/// A folder with an authority, a certificate of a server for `name`, and one of a client.
pub async fn files(name: &str) -> TempDir {
    let folder = folder::new();
    authority(folder.path()).await;
    certificate(folder.path(), "server", name).await;
    certificate(folder.path(), "client", "DNS:gateway").await;
    folder
}

pub fn with_tls(folder: &TempDir, asks_clients: bool) -> RedisOptions {
    let tls = TlsFiles { folder: folder.path().to_owned(), asks_clients };
    RedisOptions { tls: Some(tls), ..RedisOptions::default() }
}

impl TlsServer {
    /// `name`: the name in its certificate. `client`: true if it asks for client certificates.
    async fn start(name: &str, client: bool) -> TlsServer {
        let folder = files(name).await;
        TlsServer { redis: RedisServer::start(with_tls(&folder, client)).await, folder }
    }

    fn url(&self) -> String {
        self.redis.tls_url()
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Options that trust its CA.
    fn trusted(&self, prefix: &str) -> GatewayOptions {
        let tls = json!({"caCertificate": self.file("ca.pem")});
        GatewayOptions::redis(&self.url(), prefix).set_bus("tls", tls)
    }
}

/// Makes `ca.pem` and `ca.key`.
pub async fn authority(folder: &Path) {
    certificates::authority(folder, "ca").await;
}

/// Makes `<file>.pem` and `<file>.key` for a name such as `IP:127.0.0.1`.
pub async fn certificate(folder: &Path, file: &str, name: &str) {
    certificates::certificate(folder, file, "ca", name, "-days 60").await;
}

/// As [`certificate`], but expired long ago.
pub async fn expired(folder: &Path, file: &str, name: &str) {
    certificate(folder, file, name).await;
    std::fs::write(folder.join("index.txt"), "").expect("a file");
    let config = "[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\nnew_certs_dir = .\n\
                  rand_serial = yes\ndefault_md = sha256\npolicy = any\nunique_subject = no\n\
                  [any]\ncommonName = supplied\n";
    std::fs::write(folder.join("ca.cnf"), config).expect("a file");
    let sign = format!(
        "ca -batch -config ca.cnf -cert ca.pem -keyfile ca.key -in {file}.csr -out {file}.pem \
         -notext -startdate 20200101000000Z -enddate 20200201000000Z -extfile {file}.ext"
    );
    openssl(folder, &sign).await;
}

/// Checks that a gateway does not serve, and reports why.
pub async fn does_not_serve(options: GatewayOptions, why: &str) {
    let gateway = Gateway::start(options.ready(Ready::Listening)).await;
    gateway.stderr_has(why, LIMIT).await;
    assert_eq!(gateway.health("").await.expect("an answer"), ServingStatus::NotServing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_authority_is_trusted_and_no_other() {
    let server = TlsServer::start("IP:127.0.0.1", false).await;
    let prefix = shared::prefix();
    for query in ["", "?protocol=resp2"] {
        let url = format!("{}{query}", server.url());
        let (one, two) =
            two_gateways(|| server.trusted(&prefix).set_bus("url", url.as_str())).await;
        crosses(&one, &two).await;
    }
    // The system's authorities do not know this one.
    does_not_serve(GatewayOptions::redis(&server.url(), &prefix), "UnknownIssuer").await;
    // Unless certificates are not verified.
    let url = format!("{}/#insecure", server.url());
    let (one, two) = two_gateways(|| GatewayOptions::redis(&url, &prefix)).await;
    crosses(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_is_refused() {
    let server = TlsServer::start("DNS:redis.example.com", false).await;
    does_not_serve(server.trusted("name"), "not valid for name").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_sent_if_the_server_asks_for_it() {
    let server = TlsServer::start("IP:127.0.0.1", true).await;
    let prefix = shared::prefix();
    let tls = json!({
        "caCertificate": server.file("ca.pem"),
        "clientCertificate": server.file("client.pem"),
        "clientKey": server.file("client.key"),
    });
    let options = || GatewayOptions::redis(&server.url(), &prefix).set_bus("tls", tls.clone());
    let (one, two) = two_gateways(options).await;
    crosses(&one, &two).await;
    does_not_serve(server.trusted(&prefix), "waiting for Redis").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_server_of_a_cluster_is_reached_over_tls() {
    let folder = files("IP:127.0.0.1").await;
    let server = with_tls(&folder, true);
    let cluster =
        RedisCluster::with(ClusterOptions { replicas: 0, server, ..Default::default() }).await;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let tls = json!({ "caCertificate": file("ca.pem"), "clientCertificate": file("client.pem"),
        "clientKey": file("client.key") });
    let urls: Vec<String> = cluster.nodes().iter().map(RedisServer::tls_url).collect();
    for protocol in ["resp3", "resp2"] {
        let prefix = shared::prefix();
        let options = || {
            // The others are discovered.
            GatewayOptions::redis_cluster(&urls[..1], &prefix)
                .set("shards", 6)
                .set_bus("protocolVersion", protocol)
                .set_bus("tls", tls.clone())
        };
        let (one, two) = two_gateways(options).await;
        let publisher = TestNode::connect(&one, "publisher").await;
        let subscriber = TestNode::connect(&two, "subscriber").await;
        let collector = subscriber.subscribe(subscriber.request()).await;
        publisher.publish(events::numbered("e", 300, 30)).await.expect("published");
        let mut seen = collector.events(300, LIMIT).await.event_ids;
        // The accounts are on different shards.
        seen.sort_by_key(|id| id[2..].parse::<u32>().expect("a number"));
        assert_eq!(seen, ids("e", 0..300));
        // No connection but the one of this command is in plain text.
        for (node, url) in cluster.nodes().iter().zip(&urls) {
            let port = url.rsplit_once(':').expect("a port").1;
            let clients = node.cli(&["CLIENT", "LIST"]).await;
            let own = clients.lines().filter(|client| !client.contains(" cmd=client"));
            let own: Vec<_> = own.collect();
            assert!(!own.is_empty(), "{clients}");
            let laddr = format!(" laddr=127.0.0.1:{port} ");
            assert!(own.iter().all(|client| client.contains(&laddr)), "{port}: {own:#?}");
        }
    }
    // A gateway without a client certificate is rejected.
    let tls = json!({ "caCertificate": file("ca.pem") });
    let options = GatewayOptions::redis_cluster(&urls, &shared::prefix()).set_bus("tls", tls);
    does_not_serve(options, "waiting for Redis").await;
}

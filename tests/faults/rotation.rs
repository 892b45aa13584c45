//! Certificates, tokens and keys of gateways and nodes that change under load.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline_client::CredentialFiles;

use crate::{
    either,
    load::{Load, Shape},
    pair,
    report::Report,
    support::{
        LIMIT, certificates, folder,
        gateway::{Gateway, GatewayOptions, Ready},
        redis::{RedisOptions, RedisServer, TlsFiles},
        shared,
        wait::until,
    },
};

/// How long the certificates are valid.
const DATES: &str = "-days 7";

/// Nodes of trunkline-client alone: they read files of credentials.
fn of_clients() -> Shape {
    Shape { clients: true, watchers: 0, ..Shape::default() }
}

/// Credentials of gateways and nodes, in one folder.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(folder::new())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Replaces a file at once, as tools do that renew certificates.
    fn put(&self, name: &str, contents: impl AsRef<[u8]>) {
        let next = self.path(&format!("{name}.next"));
        std::fs::write(&next, contents).expect("a file");
        std::fs::rename(next, self.path(name)).expect("a file");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a file")
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    /// A new certificate and key in place of those of before, key first: for a moment they do not
    /// belong together.
    async fn renew(&self, file: &str, authority: &str, name: &str) {
        certificates::certificate(self.folder(), "new", authority, name, DATES).await;
        self.put(&format!("{file}.key"), self.read("new.key"));
        self.put(&format!("{file}.pem"), self.read("new.pem"));
    }

    /// Gateways of a Redis, with TLS and these identities, that look at their files often.
    fn options(&self, redis: &RedisServer, identities: &Value, client_ca: bool) -> GatewayOptions {
        let mut tls = json!({
            "certificate": self.path("server.pem"),
            "privateKey": self.path("server.key"),
        });
        if client_ca {
            tls["clientCa"] = json!(self.path("clients.pem"));
        }
        GatewayOptions::redis(&redis.url(), &shared::prefix())
            .set("tls", tls)
            .set("auth", json!({ "identities": identities }))
            .set("reloadInterval", "100ms")
            .ready(Ready::Started)
    }

    async fn start(&self, options: GatewayOptions) -> (Gateway, Gateway) {
        let (one, two) = pair(options).await;
        for gateway in [&one, &two] {
            gateway.stderr_has("the bus is verified", LIMIT).await;
        }
        (one, two)
    }
}

/// Waits until the gateways have logged this so often.
async fn have_logged(gateways: [&Gateway; 2], text: &str, times: usize) {
    for gateway in gateways {
        until(LIMIT, "the gateways have read their files", async || {
            gateway.stderr().matches(text).count() >= times
        })
        .await;
    }
}

fn any() -> Value {
    json!({ "allow": { "kinds": ["*"] } })
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_gateways_nodes_and_authorities_are_replaced_under_load() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let files = Files::new();
    let name = "mail.example.org";
    certificates::authority(files.folder(), "ca-0").await;
    files.renew("server", "ca-0", "DNS:localhost").await;
    files.renew("node", "ca-0", &format!("DNS:{name}")).await;
    let authorities = |names: &[String]| -> Vec<u8> {
        names.iter().flat_map(|name| files.read(&format!("{name}.pem"))).collect()
    };
    for trusted in ["servers.pem", "clients.pem"] {
        files.put(trusted, authorities(&["ca-0".to_owned()]));
    }
    let identities =
        json!([{ "name": name, "nodeIds": ["*"], "publish": any(), "receive": any() }]);
    let (one, two) = files.start(files.options(&redis, &identities, true)).await;
    let credentials = CredentialFiles {
        ca: Some(files.path("servers.pem")),
        certificate: Some((files.path("node.pem"), files.path("node.key"))),
        token: None,
    };
    let load = Load::start_with(&[&one, &two], of_clients(), credentials).await;
    let mut changes = 0;
    for round in 1..=either(6, 2) {
        let (old, new) = (format!("ca-{}", round - 1), format!("ca-{round}"));
        certificates::authority(files.folder(), &new).await;
        // Both authorities are trusted while certificates are replaced.
        for trusted in ["servers.pem", "clients.pem"] {
            files.put(trusted, authorities(&[old.clone(), new.clone()]));
        }
        changes += 1;
        have_logged([&one, &two], "the certificates have changed", changes).await;
        files.renew("server", &new, "DNS:localhost").await;
        changes += 1;
        have_logged([&one, &two], "the certificates have changed", changes).await;
        files.renew("node", &new, &format!("DNS:{name}")).await;
        load.publishes(300).await;
        // The old authority is trusted by nobody any more.
        for trusted in ["servers.pem", "clients.pem"] {
            files.put(trusted, authorities(std::slice::from_ref(&new)));
        }
        changes += 1;
        have_logged([&one, &two], "the certificates have changed", changes).await;
        load.publishes(300).await;
    }
    let history = load.finish().await;
    let fault = "certificates of gateways, nodes and their authorities replaced";
    let report = Report::of(fault, &history);
    report.check_without_gap();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_nodes_are_replaced_under_load() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let files = Files::new();
    certificates::authority(files.folder(), "ca").await;
    files.renew("server", "ca", "DNS:localhost").await;
    let token = |round: u64| format!("token-number-{round}-of-the-mail-servers");
    files.put("gateway.tokens", token(0));
    files.put("node.token", token(0));
    let tokens = json!([{ "@type": "File", "filePath": files.path("gateway.tokens") }]);
    let identities = json!([
        { "name": "mail", "tokens": tokens, "nodeIds": ["*"], "publish": any(), "receive": any() }
    ]);
    let (one, two) = files.start(files.options(&redis, &identities, false)).await;
    let credentials = CredentialFiles {
        ca: Some(files.path("ca.pem")),
        certificate: None,
        token: Some(files.path("node.token")),
    };
    let load = Load::start_with(&[&one, &two], of_clients(), credentials).await;
    let mut changes = 0;
    for round in 1..=either(8, 3) {
        files.put("gateway.tokens", format!("{}\n{}\n", token(round - 1), token(round)));
        changes += 1;
        have_logged([&one, &two], "a token file has changed", changes).await;
        files.put("node.token", token(round));
        load.publishes(300).await;
        // Streams that were opened with the old one end, and are opened again with the new one.
        files.put("gateway.tokens", token(round));
        changes += 1;
        have_logged([&one, &two], "a token file has changed", changes).await;
        load.publishes(300).await;
    }
    let history = load.finish().await;
    let streams: usize = history.nodes.iter().map(|node| node.streams.len()).sum();
    assert!(streams > 2 * history.nodes.len(), "old tokens end streams: {streams}");
    let report = Report::of("tokens of nodes replaced, and the old ones revoked", &history);
    report.check_without_gap();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_redis_and_of_gateways_towards_it_are_replaced_under_load() {
    let files = Files::new();
    certificates::authority(files.folder(), "ca-0").await;
    files.renew("server", "ca-0", "IP:127.0.0.1").await;
    files.renew("gateway", "ca-0", "DNS:gateway").await;
    // Whom Redis trusts, and whom the gateways do.
    let trust = |names: &[String]| {
        let read = names.iter().flat_map(|name| files.read(&format!("{name}.pem")));
        let pem: Vec<u8> = read.collect();
        files.put("ca.pem", &pem);
        files.put("servers.pem", &pem);
    };
    trust(&["ca-0".to_owned()]);
    let tls = TlsFiles { folder: files.folder().to_owned(), asks_clients: true };
    let redis = RedisServer::start(RedisOptions { tls: Some(tls), ..Default::default() }).await;
    let file = |name: &str| files.path(name).display().to_string();
    let reads = async || {
        let set = ["CONFIG", "SET", "tls-ca-cert-file", &file("ca.pem")];
        let of_server = ["tls-cert-file", &file("server.pem"), "tls-key-file", &file("server.key")];
        redis.cli(&[&set[..], &of_server[..]].concat()).await;
    };
    let connects_anew = async || {
        redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    };
    let tls = json!({
        "caCertificate": file("servers.pem"),
        "clientCertificate": file("gateway.pem"),
        "clientKey": file("gateway.key"),
    });
    let options = GatewayOptions::redis(&redis.tls_url(), &shared::prefix()).set_bus("tls", tls);
    let (one, two) = pair(options).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for round in 1..=either(6, 2) {
        let (old, new) = (format!("ca-{}", round - 1), format!("ca-{round}"));
        certificates::authority(files.folder(), &new).await;
        trust(&[old, new.clone()]);
        reads().await;
        files.renew("server", &new, "IP:127.0.0.1").await;
        reads().await;
        files.renew("gateway", &new, "DNS:gateway").await;
        connects_anew().await;
        load.publishes(300).await;
        trust(&[new]);
        reads().await;
        connects_anew().await;
        load.publishes(300).await;
    }
    let history = load.finish().await;
    let report = Report::of("certificates of Redis and of gateways towards it replaced", &history);
    report.check_without_gap();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_frame_key_is_replaced_under_load() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let files = Files::new();
    let key = |round: u64| format!("key-number-{round}-of-the-gateways-of-this-test");
    files.put("frame.keys", key(0));
    let secret = json!({ "@type": "File", "filePath": files.path("frame.keys") });
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix())
        .set("frameKey", secret)
        .set("history", json!({ "maxAge": "2s" }));
    let (one, two) = pair(options).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for round in 1..=either(3, 1) {
        let (old, new) = (key(round - 1), key(round));
        // As docs/operations.md says: the old key first, the new key first, the new key alone.
        for keys in [format!("{old}\n{new}\n"), format!("{new}\n{old}\n"), new] {
            files.put("frame.keys", keys);
            for gateway in [&one, &two] {
                gateway.terminate(LIMIT).await;
                gateway.restart().await;
                load.publishes(200).await;
            }
            // Nothing is kept any more that has the key of before.
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        }
    }
    let history = load.finish().await;
    let report = Report::of("frame key replaced, gateways restarted one by one", &history);
    report.check();
}

//! The files of a gateway with TLS and tokens: certificates made by openssl, and token files.

use serde_json::json;
use tempfile::TempDir;
use trunkline_client::Credentials;

use super::{MX_TOKEN, SUPPORT_TOKEN, WEB_TOKEN};
use crate::support::{
    Gateway, GatewayOptions, LIMIT, Ready,
    certificates::{self, KEY, openssl},
    folder,
};

/// A directory of certificates and token files.
pub struct Files(TempDir);

impl Files {
    pub async fn new() -> Files {
        let files = Files(folder::new());
        for authority in ["ca", "other"] {
            certificates::authority(files.0.path(), authority).await;
        }
        files.certificate("server", "ca", "DNS:localhost", "-days 7").await;
        files.write("web.tokens", format!("{WEB_TOKEN}\n"));
        files
    }

    /// New files, and a gateway that uses them; `certificates` is `tls.clientCertificates`.
    pub async fn with_gateway(certificates: &str) -> (Files, Gateway) {
        let files = Files::new().await;
        let gateway = files.start(files.options(certificates)).await;
        (files, gateway)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a file")
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).expect("a file");
    }

    /// See [`certificates::certificate`].
    pub async fn certificate(&self, file: &str, authority: &str, name: &str, dates: &str) {
        certificates::certificate(self.0.path(), file, authority, name, dates).await;
    }

    /// The same from the authority `ca`, with this common name and these alternative names, if any.
    /// It expires after `seconds`.
    pub async fn short_lived(&self, file: &str, subject: &str, names: &str, seconds: u32) {
        let names =
            if names.is_empty() { String::new() } else { format!("subjectAltName={names}\n") };
        let authority = "[ca]\ndefault_ca=d\n\
            [d]\ndatabase=index.txt\nnew_certs_dir=.\nserial=serial\ndefault_md=sha256\n\
            policy=p\nunique_subject=no\n\
            [p]\ncommonName=supplied\n";
        for (name, text) in [
            (format!("{file}.ext"), &*format!("basicConstraints=CA:FALSE\n{names}")),
            ("ca.conf".to_owned(), authority),
            ("index.txt".to_owned(), ""),
            ("serial".to_owned(), "1000\n"),
        ] {
            self.write(&name, text);
        }
        let request = format!("req {KEY} -keyout {file}.key -out {file}.csr -subj /CN={subject}");
        openssl(self.0.path(), &request).await;
        let sign = format!(
            "ca -batch -notext -config ca.conf -in {file}.csr -cert ca.pem -keyfile ca.key \
             -out {file}.pem -extfile {file}.ext \
             -enddate $(date -u -d '+{seconds} seconds' +%Y%m%d%H%M%SZ)"
        );
        openssl(self.0.path(), &sign).await;
    }

    /// A gateway with TLS and one identity for each way to authenticate.
    pub fn options(&self, certificates: &str) -> GatewayOptions {
        let any = json!({ "allow": { "kinds": ["*"] } });
        let tls = json!({
            "certificate": self.path("server.pem"),
            "privateKey": self.path("server.key"),
            "clientCa": self.path("ca.pem"),
            "clientCertificates": certificates,
        });
        let identities = json!([
            { "name": "mx", "tokens": [{ "@type": "Value", "secret": MX_TOKEN }],
              "nodeIds": ["mx-*", "bench-*"], "roles": ["mta", "imap-*"],
              "publish": any, "receive": any,
              "operations": ["listNodes", "getStatus", "reflection"] },
            { "name": "web", "tokens": [{ "@type": "File", "filePath": self.path("web.tokens") }],
              "nodeIds": ["{identity}"], "roles": ["{identity}"],
              "publish": { "allow": { "kinds": ["custom"], "customTypes": ["org.web.*"] } },
              "receive": {
                  "allow": { "kinds": ["mailbox_change", "queue_refresh", "custom"],
                             "customTypes": ["org.*"] },
                  "deny": { "accounts": ["vip*"], "customTypes": ["org.secret"] } } },
            { "name": "support", "tokens": [{ "@type": "Value", "secret": SUPPORT_TOKEN }],
              "nodeIds": ["*"],
              "receive": { "allow": { "kinds": ["custom", "queue_refresh"] },
                           "deny": { "customTypes": ["org.secret"] } },
              "operations": ["explain"] },
            { "name": "imap.example.org", "nodeIds": ["imap"], "publish": any, "receive": any },
            { "name": "CN=imap.example.org", "nodeIds": ["imap"], "publish": any, "receive": any },
            { "name": "spiffe://example.org/mail/*", "nodeIds": ["{identity}"],
              "publish": any, "receive": any },
        ]);
        GatewayOptions::embedded()
            .set("tls", tls)
            .set("auth", json!({ "identities": identities }))
            .set("reloadInterval", "100ms")
            .ready(Ready::Started)
    }

    pub async fn start(&self, options: GatewayOptions) -> Gateway {
        let gateway = Gateway::start(options).await;
        gateway.stderr_has("listens on", LIMIT).await;
        // The port answers before the bus has started.
        gateway.stderr_has("the bus is verified", LIMIT).await;
        gateway
    }

    /// Trusts the authority `ca`, and authenticates by nothing.
    pub fn trusting(&self) -> Credentials {
        Credentials::new().ca_certificate(self.read("ca.pem"))
    }

    pub fn token(&self, token: &str) -> Credentials {
        self.trusting().token(token).expect("a token")
    }

    pub fn presents(&self, file: &str) -> Credentials {
        let key = self.read(&format!("{file}.key"));
        self.trusting().client_certificate(self.read(&format!("{file}.pem")), key)
    }
}

//! The HTTP port: curl, and pages in a real browser, beside nodes that speak gRPC.

mod bad_requests;
mod browser;
pub mod curl;
mod events;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use self::curl::Curl;
use super::support::{Gateway, GatewayOptions, LIMIT, ports::Port};

/// A gateway with an HTTP port.
struct HttpGateway {
    gateway: Gateway,
    port: Port,
    https: bool,
}

impl HttpGateway {
    /// A gateway; `http` has other keys of the HTTP port than its address.
    async fn start(options: GatewayOptions, mut http: Value) -> HttpGateway {
        let port = Port::free();
        http["listen"] = format!("127.0.0.1:{}", port.number()).into();
        let https = options.config["tls"].is_object();
        let gateway = Gateway::start(options.set("http", http)).await;
        HttpGateway { gateway, port, https }
    }

    /// The same with the embedded bus, and nothing else set.
    async fn embedded() -> HttpGateway {
        HttpGateway::start(GatewayOptions::embedded(), json!({})).await
    }

    fn url(&self, path: &str) -> String {
        // The names that certificates of tests have.
        let (scheme, host) =
            if self.https { ("https", "localhost") } else { ("http", "127.0.0.1") };
        format!("{scheme}://{host}:{}{path}", self.port.number())
    }

    /// A request by curl.
    fn curl(&self, path: &str) -> Curl {
        Curl::new(self.url(path))
    }

    /// Sends bytes, and reads until the gateway closes the connection.
    async fn raw(&self, bytes: &[u8]) -> String {
        let address = ("127.0.0.1", self.port.number());
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(bytes).await.expect("sent");
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(LIMIT, read).await.expect("an end in time");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A request to publish.
    fn publish(&self, body: &Value) -> Curl {
        self.curl("/v1/publish").header("content-type: application/json").body(body.to_string())
    }
}

/// A mailbox change as JSON.
fn change(account: &str, change_id: u64) -> Value {
    json!({ "mailboxChange": { "accountId": account, "changeId": change_id.to_string() } })
}

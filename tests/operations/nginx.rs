//! A real nginx in front of a gateway (`grpc_pass`), with its buffers as they are by default: every
//! error arrives as the gateway sent it, and never as the 502 of headers that are too large.

#![allow(clippy::unwrap_used)]

use std::fs;

use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use trunkline_proto::v1::{
    Event, Filter, MailboxChange, PublishRequest, SubscribeRequest, event::Kind,
};

use super::support::{
    Gateway, GatewayOptions, LIMIT, TestNode,
    events::numbered,
    folder,
    gateway::client,
    ports::Port,
    process::{Process, Program},
    tools, until,
};

/// Bytes of details that load balancers let pass beside the message.
const MAX_DETAILS: usize = 2048;

struct Nginx {
    listen: Port,
    _process: Process,
    _folder: TempDir,
}

impl Nginx {
    async fn start(gateway: &Gateway) -> Nginx {
        let (listen, folder) = (Port::free(), folder::new());
        let config = include_str!("../../deploy/nginx/nginx.conf")
            .replace("7400", &listen.number().to_string())
            .replace("7420", &gateway.port().to_string());
        fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let path = folder.path().display().to_string();
        let directives = "daemon off; master_process off; pid nginx.pid; error_log stderr;";
        let args = ["-p", &path, "-c", "nginx.conf", "-g", directives];
        let process = Process::start("nginx", Program::new(tools::nginx(), args));
        let nginx = Nginx { listen, _process: process, _folder: folder };
        until(LIMIT, "nginx listens", async || {
            TcpStream::connect(("127.0.0.1", nginx.listen.number())).await.is_ok()
        })
        .await;
        nginx
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.listen.number())
    }
}

/// The error is that of the gateway, with details that fit.
fn is_ours(what: &str, status: &Status, code: Code) {
    assert_eq!(status.code(), code, "{what}: {status:?}");
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("{what}: {status:?}"));
    assert_eq!(info.domain, "trunkline", "{what}");
    assert!(status.details().len() <= MAX_DETAILS, "{what}: {} bytes", status.details().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_errors_pass_nginx_whole() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let nginx = Nginx::start(&gateway).await;
    let mut node = client(&nginx.url()).await;
    // As long as they may be, of letters that take three bytes each in a status.
    let wide = |count: usize| "\u{e9}".repeat(count);
    let wrong = |account: String| Event {
        kind: Some(Kind::MailboxChange(MailboxChange { account_id: account, ..<_>::default() })),
        ..<_>::default()
    };
    for (what, events) in [
        ("1000 empty events", vec![Event::default(); 1000]),
        ("1000 long accounts", (0..1000).map(|n| wrong(wide(100 + n % 200))).collect()),
        ("an event too large", vec![wrong("x".repeat(100 << 10))]),
    ] {
        let request = PublishRequest { node_id: wide(500), events, ..<_>::default() };
        let status = node.publish(request).await.unwrap_err();
        is_ours(what, &status, Code::InvalidArgument);
    }
    let filter = Filter {
        accounts: (0..5000).map(|n| format!("{}{n}", wide(200))).collect(),
        custom_types: (0..500).map(|n| format!("{}{n}", wide(200))).collect(),
        ..<_>::default()
    };
    let request = SubscribeRequest {
        node_id: wide(300),
        filter: Some(filter),
        roles: (0..500).map(|_| wide(300)).collect(),
        resume_token: vec![7; 5000],
        ..<_>::default()
    };
    let status = node.subscribe(request).await.unwrap_err();
    is_ours("a stream", &status, Code::InvalidArgument);
    // And what is right passes too.
    let subscriber = TestNode::connect_to(&nginx.url(), "s").await;
    let stream = subscriber.subscribe(subscriber.request()).await;
    let publisher = TestNode::connect_to(&nginx.url(), "p").await;
    for batch in numbered("e", 500, 7).chunks(50) {
        publisher.publish(batch.to_vec()).await.unwrap();
    }
    stream.event("e-499", LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_refusals_pass_nginx_whole() {
    let identity = json!({"name": "mail", "nodeIds": ["*"],
        "tokens": [{"@type": "Value", "secret": "token-of-the-mail-servers"}],
        "publish": {"allow": {"kinds": ["queue_refresh"]}}});
    let options = GatewayOptions::embedded()
        .set("auth", json!({ "identities": [identity] }))
        .set("insecure", true);
    let gateway = Gateway::start(options).await;
    let nginx = Nginx::start(&gateway).await;
    let mut node = client(&nginx.url()).await;
    let mut request = tonic::Request::new(PublishRequest {
        node_id: "n1".into(),
        events: numbered("e", 1000, 7),
        ..<_>::default()
    });
    let token = "Bearer token-of-the-mail-servers";
    request.metadata_mut().insert("authorization", token.parse().unwrap());
    let status = node.publish(request).await.unwrap_err();
    is_ours("1000 events", &status, Code::PermissionDenied);
}

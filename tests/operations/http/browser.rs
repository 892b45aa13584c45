//! Pages in a real browser: server-sent events that the browser itself takes up again, JSON by
//! `fetch`, and gRPC-Web.

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_util::task::AbortOnDropHandle;
use trunkline_proto::v1::{
    PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse,
    subscribe_response::Response,
};

use super::HttpGateway;
use crate::support::{
    Browser, Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events, shared,
};

/// A web server with one page, whatever is asked.
struct Site {
    port: u16,
    _task: AbortOnDropHandle<()>,
}

impl Site {
    async fn start() -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let serve = async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let page = include_str!("page.html");
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\
                     connection: close\r\n\r\n{page}",
                    page.len()
                );
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        };
        Site { port, _task: AbortOnDropHandle::new(tokio::spawn(serve)) }
    }

    fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn page(&self, gateway: &HttpGateway) -> String {
        format!("{}/?gateway={}", self.origin(), gateway.url(""))
    }
}

/// Calls a method by gRPC-Web in the page.
async fn call(browser: &Browser, method: &str, message: &impl Message) {
    let message = STANDARD.encode(message.encode_to_vec());
    browser.run(&format!("call('{method}', '{message}');")).await;
}

/// The messages of the call so far, and its trailers once they are there.
async fn answers<M: Message + Default>(browser: &Browser) -> (Vec<M>, Option<String>) {
    let frames = browser.run("return window.frames_of_call;").await;
    let mut messages = Vec::new();
    for frame in frames.as_array().expect("frames") {
        let bytes = STANDARD.decode(frame[1].as_str().expect("a text")).expect("base64");
        match frame[0].as_i64() {
            Some(0) => messages.push(M::decode(&bytes[..]).expect("a message")),
            Some(128) => return (messages, Some(String::from_utf8(bytes).expect("a text"))),
            _ => panic!("{frame}"),
        }
    }
    (messages, None)
}

async fn change_ids(browser: &Browser) -> Vec<u64> {
    let ids = browser.run("return window.events;").await;
    let ids: Vec<Value> = ids.as_array().expect("ids").clone();
    ids.iter().map(|id| id.as_str().expect("a text").parse().expect("a number")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_receives_publishes_and_outlives_its_gateway() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let site = Site::start().await;
    let options = || GatewayOptions::redis(&redis.url(), &prefix);
    let http = json!({ "allowedOrigins": [site.origin()] });
    let gateway = HttpGateway::start(options(), http).await;
    let other = Gateway::start(options()).await;
    let node = TestNode::connect(&other, "imap-1").await;
    let browser = Browser::start(800, 600).await;
    browser.open(&site.page(&gateway)).await;

    browser.run("open_stream();").await;
    let has = async |what: &str| {
        let script = format!("return window.names.filter((name) => name === '{what}').length;");
        browser.run(&script).await.as_u64().expect("a count")
    };
    let opened = async |count: u64| {
        let what = format!("stream {count}");
        browser.wait(&what, async || (has("subscribed").await >= count).then_some(())).await;
    };
    opened(1).await;
    let mut sent = 0;
    let mut publish = async |count: u64| {
        for _ in 0..count {
            sent += 1;
            node.publish(vec![events::mailbox_change("a1", sent)]).await.expect("published");
        }
        sent
    };
    let sent = publish(10).await;
    let all = async |sent: u64| {
        browser
            .wait("all events", async || {
                (change_ids(&browser).await.len() as u64 >= sent).then_some(())
            })
            .await;
        assert_eq!(change_ids(&browser).await, (1..=sent).collect::<Vec<_>>());
    };
    all(sent).await;

    // The gateway is killed, events are published meanwhile, and it comes back: the browser goes on
    // by itself.
    gateway.gateway.kill_9();
    let sent = publish(10).await;
    gateway.gateway.restart().await;
    opened(2).await;
    let sent = sent.max(publish(10).await);
    all(sent).await;
    assert_eq!(has("gap").await, 0);

    // A page publishes.
    let collector = node.subscribe(node.request()).await;
    browser.run("publish(7777);").await;
    let published = browser
        .wait("an answer", async || {
            let text = browser.run("return window.published;").await;
            text.as_str().filter(|text| *text != "waiting").map(str::to_owned)
        })
        .await;
    assert!(published.starts_with("200 {\"positions\":[{"), "{published}");
    collector.events(1, LIMIT).await;
    browser.run("source.close();").await;

    // gRPC-Web: a unary call, an error, and a stream.
    let event = events::with_id("web-1", events::mailbox_change("a1", 8888));
    let request = PublishRequest { node_id: "page".into(), events: vec![event], ..<_>::default() };
    call(&browser, "Publish", &request).await;
    let ended = async || {
        browser
            .wait("an end", async || {
                let (messages, trailers) = answers::<PublishResponse>(&browser).await;
                Some((messages, trailers?))
            })
            .await
    };
    let (messages, trailers) = ended().await;
    assert_eq!(messages[0].positions.len(), 1);
    assert!(trailers.contains("grpc-status:0"), "{trailers:?}");
    let request = SubscribeRequest { node_id: "page".into(), ..<_>::default() };
    call(&browser, "Subscribe", &request).await;
    let stream = async |count: usize| {
        browser
            .wait("messages of the stream", async || {
                let (messages, _) = answers::<SubscribeResponse>(&browser).await;
                (messages.len() >= count).then_some(messages)
            })
            .await
    };
    let first = stream(1).await;
    assert!(matches!(first[0].response, Some(Response::Subscribed(_))), "{first:?}");
    let event = events::with_id("last", events::queue_refresh());
    node.publish(vec![event]).await.expect("published");
    let second = stream(2).await;
    let Some(Response::Events(batch)) = &second[1].response else { panic!("{second:?}") };
    assert_eq!(batch.events[0].event_id, "last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_gets_nothing() {
    let (site, evil) = (Site::start().await, Site::start().await);
    let http = json!({ "allowedOrigins": [site.origin()] });
    let gateway = HttpGateway::start(GatewayOptions::embedded(), http).await;
    let node = TestNode::connect(&gateway.gateway, "imap-1").await;
    let collector = node.subscribe(node.request()).await;
    let browser = Browser::start(800, 600).await;
    browser.open(&evil.page(&gateway)).await;
    browser.run("open_stream(); publish(1);").await;
    browser
        .wait("both are refused", async || {
            let seen = browser.run("return [window.refused, window.published];").await;
            let published = seen[1].as_str().is_some_and(|text| text.starts_with("error "));
            (seen[0].as_u64() > Some(0) && published).then_some(())
        })
        .await;
    assert_eq!(browser.run("return window.names.length;").await, 0);
    // The page of the right origin can, and what it publishes is the first event.
    browser.open(&site.page(&gateway)).await;
    browser.run("open_stream(); publish(2);").await;
    collector.events(1, LIMIT).await;
    assert_eq!(collector.event_ids().len(), 1);
    browser
        .wait("its stream", async || {
            let names = browser.run("return window.names.length;").await;
            (names.as_u64() > Some(0)).then_some(())
        })
        .await;
}

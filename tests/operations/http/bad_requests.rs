//! Requests that are wrong or hostile: each gets an answer that says what is wrong, and costs
//! nobody else anything.

use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{Curl, HttpGateway, change};
use crate::support::{Gateway, GatewayOptions, LIMIT, TestNode, events, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_name_what_is_wrong() {
    let gateway = HttpGateway::embedded().await;
    let node = TestNode::connect(&gateway.gateway, "imap-1").await;
    let collector = node.subscribe(node.request()).await;

    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let long = json!({ "nodeId": "n", "events": [{ "custom": { "type": "x".repeat(2 << 20) } }] });
    let many = vec![json!({ "queueRefresh": {} }); 1001];
    let publish = "/v1/publish";
    for (body, problem) in [
        ("", "body: is not JSON"),
        ("{\"nodeId\":\"n\",\"events\":[", "body: is not JSON"),
        ("\u{0}\u{1}", "body: is not JSON"),
        (&deep, "body: is not JSON"),
        ("[]", "body: must be an object"),
        ("null", "body: must be an object"),
        ("{\"events\":7}", "events: must be an array"),
        ("{\"nodeid\":\"n\"}", "body: "),
        ("{\"nodeId\":7,\"events\":[]}", "body: "),
        ("{\"nodeId\":\"n\",\"events\":[{}]}", "events[0]"),
        ("{\"nodeId\":\"n\",\"events\":[{\"queueRefresh\":{}},7]}", "events[1]: "),
        ("{\"nodeId\":\"n\",\"events\":[{\"mailbox\":{}}]}", "events[0]: "),
        ("{\"nodeId\":\"n\",\"events\":[]}", "events: "),
        ("{\"events\":[{\"queueRefresh\":{}}]}", "node_id: "),
        (&long.to_string(), "body has 1"),
        (&json!({ "nodeId": "n", "events": many }).to_string(), "events: "),
    ] {
        let request = gateway.curl(publish).header("content-type: application/json");
        let (status, message) = request.body(body).send().await.error(400);
        assert_eq!(status, "INVALID_ARGUMENT");
        let start = &body[..body.len().min(60)];
        assert!(message.starts_with(problem), "{start}: {message}");
    }
    for (media_type, encoding, problem) in [
        ("text/plain", "identity", "content-type: must be application/json"),
        ("application/x-www-form-urlencoded", "identity", "content-type: must be"),
        ("application/json", "gzip", "content-encoding: must not be set"),
    ] {
        let request = gateway.curl(publish).header(format!("content-type: {media_type}"));
        let request = request.header(if encoding == "gzip" {
            "content-encoding: gzip"
        } else {
            "x-nothing: at-all"
        });
        let (_, message) = request.body(r#"{"nodeId":"n"}"#).send().await.error(415);
        assert!(message.starts_with(problem), "{media_type}: {message}");
    }
    for (path, code, problem) in [
        ("/v1/subscribe", 400, "node_id: "),
        ("/v1/subscribe?node_id=a&filter.kinds=mail", 400, "filter.kinds: must be one of"),
        ("/v1/subscribe?node_id=a&node=b", 400, "node: is not known"),
        ("/v1/subscribe?node_id=a&resume_token=AAAA", 400, "resume_token: "),
        ("/v1/nodes?page_size=-1", 400, "page_size"),
        ("/v1/status?x=1", 400, "x: is not known"),
        ("/", 404, "this is the HTTP port"),
        ("/v1/publish/", 404, "this is the HTTP port"),
        ("/v2/subscribe?node_id=a", 404, "this is the HTTP port"),
        ("/trunkline.v1.CoordinationService/GetStatus", 404, "this is the HTTP port"),
        ("/v1/publish", 405, "this is the HTTP port"),
    ] {
        let (_, message) = gateway.curl(path).send().await.error(code);
        assert!(message.starts_with(problem), "{path}: {message}");
    }
    for id in ["rubbish", "AAAA", &"A".repeat(4000), "%00"] {
        let request = gateway.curl("/v1/subscribe?node_id=a");
        let request = request.header(format!("last-event-id: {id}"));
        assert_eq!(request.send().await.error(400).0, "INVALID_ARGUMENT", "{id}");
    }

    // None of it was published.
    let other = TestNode::connect(&gateway.gateway, "other").await;
    other.publish(vec![events::with_id("last", events::queue_refresh())]).await.expect("published");
    collector.event("last", LIMIT).await;
    assert_eq!(collector.event_ids(), ["last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_requests_and_long_ones_are_ended() {
    let options = GatewayOptions::embedded().set(
        "limits",
        json!({ "requestTimeout": "1s", "idleTimeout": "1s",
            "maxHeaderBytes": "4KiB" }),
    );
    let gateway = HttpGateway::start(options, json!({})).await;
    // Half a body, for ever.
    let head = "POST /v1/publish HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let half = format!("{head}content-length: 100\r\n\r\n{{\"nodeId\"");
    let answer = gateway.raw(half.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("limits.requestTimeout"), "{answer}");
    // Half the headers; nothing at all.
    assert_eq!(gateway.raw(head.as_bytes()).await, "");
    assert_eq!(gateway.raw(b"").await, "");
    // Headers without an end, and ones that are a little too long.
    let long = format!("{head}x-long: {}\r\n\r\n", "x".repeat(100_000));
    let answer = gateway.raw(long.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let request = gateway.curl("/v1/status").header(format!("x-long: {}", "x".repeat(5000)));
    let (status, message) = request.send().await.error(429);
    assert_eq!(status, "RESOURCE_EXHAUSTED");
    assert!(message.contains("limits.maxHeaderBytes"), "{message}");
    // What is no HTTP.
    let answer = gateway.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    gateway.publish(&json!({ "nodeId": "n", "events": [change("a", 1)] })).send().await.json(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_still_sends_a_body_gets_the_answer_that_came_early() {
    let gateway = HttpGateway::embedded().await;
    let body = json!({ "nodeId": "n", "events": [{ "custom": { "type": "x".repeat(2 << 20) } }] });
    let body = body.to_string();
    let json = "content-type: application/json";
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (path, header, code) in [
            ("/v1/publish", json, 400),
            ("/v1/publish", "content-type: text/plain", 415),
            ("/v1/status", json, 405),
            ("/nothing", json, 404),
        ] {
            let request = gateway.curl(path).arg(version).header(header).body(&*body);
            request.send().await.error(code);
        }
        let request = gateway.curl("/v1/publish").arg(version).header(json).body(&*body);
        request.header("origin: https://other.example.org").send().await.error(403);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_over_http_as_they_do_over_grpc() {
    let options = GatewayOptions::embedded().set(
        "limits",
        json!({ "maxStreamsPerConnection": 2, "maxStreams": 3, "maxConnectionsPerPeer": 8,
            "eventsPerSecond": 5, "eventBurst": 5 }),
    );
    let gateway = HttpGateway::start(options, json!({})).await;
    // Streams: of this gateway, whatever port they come through.
    let streams: Vec<_> =
        (0..3).map(|nth| gateway.curl(&format!("/v1/subscribe?node_id=b{nth}")).stream()).collect();
    for stream in &streams {
        stream.named("subscribed").await;
    }
    let (status, message) = gateway.curl("/v1/subscribe?node_id=c").send().await.error(429);
    assert_eq!(status, "RESOURCE_EXHAUSTED");
    assert!(message.contains("limits.maxStreams"), "{message}");
    drop(streams);
    // Events a second.
    let body = json!({ "nodeId": "n", "events": vec![change("a", 1); 5] });
    gateway.publish(&body).send().await.json(200);
    let answer = gateway.publish(&body).send().await;
    assert_eq!(answer.error(429).0, "RESOURCE_EXHAUSTED");
    assert!(answer.headers.contains("retry-after: "), "{answer:?}");
    // Connections of one peer: one more is closed at once.
    let open = async || TcpStream::connect(("127.0.0.1", gateway.port.number())).await.unwrap();
    let mut held: Vec<TcpStream> = Vec::new();
    eventually(LIMIT, "a connection too many", async || {
        let mut stream = open().await;
        let read = tokio::time::timeout(std::time::Duration::from_millis(200), stream.read_u8());
        if read.await.is_ok() {
            return Some(());
        }
        held.push(stream);
        None
    })
    .await;
    assert!(held.len() <= 8, "{}", held.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_refused() {
    let allowed = "https://mail.example.org";
    let http = json!({ "allowedOrigins": [allowed] });
    let gateway = HttpGateway::start(GatewayOptions::embedded(), http).await;
    let body = json!({ "nodeId": "n", "events": [change("a", 1)] });
    for origin in [
        "https://evil.example.org",
        "null",
        "https://mail.example.org:8443",
        "http://mail.example.org",
        "https://mail.example.org.evil.example",
    ] {
        let origin = format!("origin: {origin}");
        for request in [
            gateway.publish(&body),
            gateway.curl("/v1/subscribe?node_id=b"),
            gateway.curl("/v1/status"),
        ] {
            let (status, message) = request.header(&origin).send().await.error(403);
            assert_eq!(status, "PERMISSION_DENIED");
            assert!(message.contains("http.allowedOrigins"), "{message}");
        }
    }
    let origin = format!("origin: {allowed}");
    let answer = gateway.publish(&body).header(&origin).send().await;
    assert_eq!(answer.code, 200, "{answer:?}");
    let header = format!("access-control-allow-origin: {allowed}");
    assert!(answer.headers.contains(&header), "{answer:?}");
    // Before a page may send JSON, its browser asks.
    let asks = |origin: &str| {
        gateway
            .curl("/v1/publish")
            .arg("--request")
            .arg("OPTIONS")
            .header(format!("origin: {origin}"))
            .header("access-control-request-method: POST")
            .header("access-control-request-headers: content-type,authorization,x-grpc-web")
    };
    let answer = asks(allowed).send().await;
    assert_eq!(answer.code, 200, "{answer:?}");
    for name in ["authorization", "content-type", "x-grpc-web"] {
        assert!(answer.headers.contains(name), "{name}: {answer:?}");
    }
    let answer = asks("https://evil.example.org").send().await;
    assert!(!answer.headers.contains("access-control-allow-origin"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_http_port_unless_it_is_configured() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    // The port for nodes has nothing of it.
    let url = format!("http://127.0.0.1:{}/v1/status", gateway.port());
    let answer = Curl::new(url).send().await;
    assert_eq!(answer.code, 426, "{answer:?}");
}

//! What gRPC's own documents say of requests: deadlines, content types, the number of messages, the
//! size of header fields, unknown symbols. The client here adds nothing to what a test sends.

use std::time::{Duration, Instant};

use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::{Message, bytes::Bytes};
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};
use tonic::{Code, Status};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt;
use trunkline_proto::v1::{
    GetStatusRequest, GetStatusResponse, ListNodesRequest, PublishRequest, SubscribeRequest,
};

use crate::{
    deployment::Deployment,
    support::{
        Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer, TestNode,
        events::numbered, gateway, ports::Port, until,
    },
};

const SERVICE: &str = "/trunkline.v1.CoordinationService";

/// An answer, to its end.
struct Answer {
    http: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    /// The status of gRPC, if there is one.
    status: Option<Status>,
}

impl Answer {
    fn status(&self) -> &Status {
        self.status.as_ref().expect("a status of gRPC")
    }
}

/// Calls a method with these header fields and the bytes of a body, on a connection of its own.
async fn call(address: &str, path: &str, fields: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut request = Request::post(format!("http://gateway{path}")).header("te", "trailers");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    let response = timeout(LIMIT, sender.send_request(request)).await.unwrap().unwrap();
    let (head, body) = response.into_parts();
    let collected = timeout(LIMIT, body.collect()).await.expect("an end in time").unwrap();
    let trailers = collected.trailers().cloned();
    let status = Status::from_header_map(trailers.as_ref().unwrap_or(&head.headers));
    let body = collected.to_bytes().to_vec();
    Answer { http: head.status, headers: head.headers, body, status }
}

async fn grpc(gateway: &Gateway, method: &str, timeout: &str, message: &impl Message) -> Answer {
    let mut fields = vec![("content-type", "application/grpc")];
    fields.extend((!timeout.is_empty()).then_some(("grpc-timeout", timeout)));
    call(&gateway.address(), &format!("{SERVICE}/{method}"), &fields, framed(message)).await
}

/// A message with its prefix.
fn framed(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &bytes].concat()
}

fn publish_request(id: &str, name: &str) -> PublishRequest {
    let events = numbered(name, 2, 1);
    PublishRequest { node_id: "p".into(), request_id: id.into(), events, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_is_late_for_its_deadline_has_an_unknown_outcome_and_can_be_retried() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = &Gateway::start(GatewayOptions::redis(&redis.url(), "deadlines")).await;
    let subscriber = TestNode::connect(gateway, "s").await;
    let stream = subscriber.subscribe(subscriber.request()).await;
    redis.pause().await;
    let id = "0190d2a0-0000-7000-8000-000000000005";
    let began = Instant::now();
    let answer = grpc(gateway, "Publish", "300m", &publish_request(id, "e")).await;
    let took = began.elapsed();
    assert_eq!(answer.status().code(), Code::DeadlineExceeded, "{:?}", answer.status);
    assert!(answer.status().message().contains("same request_id"), "{:?}", answer.status);
    let info = answer.status().get_details_error_info().expect("details");
    assert_eq!(info.reason, "OUTCOME_UNKNOWN");
    assert!(took > Duration::from_millis(290) && took < Duration::from_secs(3), "{took:?}");
    // Those that only wait behind it are not sent any more.
    for number in 0..20 {
        let request = publish_request("", &format!("given-up-{number}"));
        let answer = grpc(gateway, "Publish", "20m", &request).await;
        assert_eq!(answer.status().code(), Code::DeadlineExceeded);
    }
    redis.resume();
    until(LIMIT, "the retry is accepted", async || {
        let answer = grpc(gateway, "Publish", "2S", &publish_request(id, "e")).await;
        answer.status().code() == Code::Ok
    })
    .await;
    let other = TestNode::connect(gateway, "other").await;
    other.publish(numbered("last", 1, 1)).await.expect("published");
    let seen = stream.event("last-0", LIMIT).await.event_ids;
    let once = seen.iter().filter(|id| *id == "e-0").count();
    assert_eq!(once, 1, "{seen:?}");
    let given_up = seen.iter().filter(|id| id.starts_with("given-up")).count();
    assert!(given_up <= 2, "{seen:?}");
    let metrics = gateway.admin("/metrics").await;
    let unknown = r#"trunkline_errors_total{method="Publish",reason="outcome_unknown"} "#;
    let count = metrics.lines().find_map(|line| line.strip_prefix(unknown)).expect("a metric");
    assert!(count.parse::<u64>().unwrap() >= 21, "{count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_at_its_deadline_and_its_node_is_gone() {
    let deployment = Deployment::embedded().await;
    let gateway = &deployment.gateway;
    for (method, message) in [
        (format!("{SERVICE}/Subscribe"), {
            let request = SubscribeRequest { node_id: "n".into(), ..Default::default() };
            framed(&request)
        }),
        ("/grpc.health.v1.Health/Watch".into(), framed(&())),
    ] {
        let began = Instant::now();
        let fields = [("content-type", "application/grpc"), ("grpc-timeout", "400m")];
        let answer = call(&gateway.address(), &method, &fields, message).await;
        let took = began.elapsed();
        assert_eq!(answer.status().code(), Code::DeadlineExceeded, "{method}: {:?}", answer.status);
        assert!(!answer.body.is_empty(), "{method}: it began");
        assert!(took > Duration::from_millis(390) && took < Duration::from_secs(3), "{took:?}");
    }
    until(LIMIT, "no stream", async || {
        let answer = grpc(gateway, "GetStatus", "5S", &GetStatusRequest {}).await;
        GetStatusResponse::decode(&answer.body[5..]).unwrap().streams == 0
    })
    .await;
    // A deadline that is far away, or malformed, changes nothing.
    for far in ["99999999H", "1S", "", "soon", "123456789S"] {
        let answer = grpc(gateway, "ListNodes", far, &ListNodesRequest::default()).await;
        assert_eq!(answer.status().code(), Code::Ok, "{far}: {:?}", answer.status);
    }
    let answer = grpc(gateway, "ListNodes", "0n", &ListNodesRequest::default()).await;
    assert!([Code::DeadlineExceeded, Code::Ok].contains(&answer.status().code()));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_content_types_are_refused_with_a_hint_and_nothing_is_done() {
    let deployment = Deployment::embedded().await;
    let subscriber = deployment.node("s").await;
    let stream = subscriber.subscribe(subscriber.request()).await;
    let path = format!("{SERVICE}/Publish");
    let address = deployment.gateway.address();
    let mut number = 0;
    let mut sent = Vec::new();
    let mut publish = async |content_type: &str| {
        number += 1;
        let body = framed(&publish_request("", &format!("e{number}")));
        let answer = call(&address, &path, &[("content-type", content_type)], body).await;
        (answer, format!("e{number}-1"))
    };
    for (wrong, hint) in [
        ("application/grpc-web", "gRPC-Web"),
        ("application/grpc-web+proto", "http.listen"),
        ("application/grpc-web-text", "http.listen"),
        ("application/grpc+json", "application/grpc+proto"),
        ("application/json", "grpcurl"),
        ("application/connect+proto", "Connect"),
        ("application/proto", "Connect"),
        ("application/grpcfoo", "grpcurl"),
        ("text/plain", "grpcurl"),
    ] {
        let (answer, _) = publish(wrong).await;
        assert_eq!(answer.http, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{wrong}");
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/plain"));
        let text = String::from_utf8(answer.body).unwrap();
        assert!(text.contains(hint), "{wrong}: {text}");
    }
    for right in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
        let (answer, last) = publish(right).await;
        assert_eq!(answer.status().code(), Code::Ok, "{right}: {:?}", answer.status);
        sent.push(last);
    }
    let seen = stream.events(2 * sent.len(), LIMIT).await.event_ids;
    assert!(sent.iter().all(|id| seen.contains(id)) && seen.len() == 2 * sent.len(), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_method_takes_one_message_and_no_other_number() {
    let deployment = Deployment::embedded().await;
    let subscriber = deployment.node("s").await;
    let stream = subscriber.subscribe(subscriber.request()).await;
    let fields = [("content-type", "application/grpc")];
    let address = deployment.gateway.address();
    let message = |method: &str| match method {
        "Publish" => framed(&publish_request("", "two")),
        "Subscribe" => framed(&SubscribeRequest { node_id: "n".into(), ..Default::default() }),
        _ => framed(&GetStatusRequest {}),
    };
    for method in ["Publish", "Subscribe", "ListNodes", "GetStatus"] {
        for count in [0, 2, 3] {
            let body = message(method).repeat(count);
            let answer = call(&address, &format!("{SERVICE}/{method}"), &fields, body).await;
            let status = answer.status();
            assert_eq!(status.code(), Code::Unimplemented, "{method}, {count}: {status:?}");
            assert!(status.message().contains("one request message"), "{status:?}");
        }
    }
    deployment.node("other").await.publish(numbered("after", 1, 1)).await.unwrap();
    assert_eq!(stream.event("after-0", LIMIT).await.event_ids, ["after-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn header_fields_that_are_too_long_are_answered_and_counted() {
    let limit = 4096;
    let limits = json!({ "maxHeaderBytes": limit });
    let deployment = Deployment::embedded_with(|options| options.set("limits", limits)).await;
    let status = async |bytes: usize| {
        let long = "x".repeat(bytes);
        let fields = [("content-type", "application/grpc"), ("x-long", long.as_str())];
        let path = format!("{SERVICE}/GetStatus");
        call(&deployment.gateway.address(), &path, &fields, framed(&GetStatusRequest {})).await
    };
    assert_eq!(status(limit - 600).await.status().code(), Code::Ok);
    for bytes in [limit, limit + limit / 2] {
        let answer = status(bytes).await;
        assert_eq!(answer.status().code(), Code::ResourceExhausted, "{:?}", answer.status);
        assert!(answer.status().message().contains("limits.maxHeaderBytes"), "{:?}", answer.status);
    }
    let metrics = deployment.gateway.admin("/metrics").await;
    let line = r#"trunkline_refused_total{limit="limits.maxHeaderBytes"} 2"#;
    assert!(metrics.contains(line), "{metrics}");
    // Far too long: HTTP/2 itself answers.
    assert_eq!(status(4 * limit).await.http, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_symbol_is_an_answer_of_reflection_and_does_not_end_its_stream() {
    let deployment = Deployment::embedded().await;
    let channel = deployment.gateway.connect().await.unwrap();
    let ask = |message: MessageRequest| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message),
    };
    let service = "trunkline.v1.CoordinationService";
    let requests = vec![
        ask(MessageRequest::FileContainingSymbol("no.such.Symbol".into())),
        ask(MessageRequest::FileByFilename("no/such.proto".into())),
        ask(MessageRequest::AllExtensionNumbersOfType("no.such.Type".into())),
        ask(MessageRequest::FileContainingSymbol(service.into())),
        ask(MessageRequest::FileContainingSymbol(format!("{service}.Publish"))),
        ask(MessageRequest::FileContainingSymbol("trunkline.v1.Event".into())),
        ask(MessageRequest::ListServices(String::new())),
    ];
    let count = requests.len();
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(tokio_stream::iter(requests)).await.unwrap();
    let mut answers = answers.into_inner();
    let mut kinds = Vec::new();
    for _ in 0..count {
        let answer = timeout(LIMIT, answers.message()).await.unwrap().unwrap().expect("an answer");
        assert!(answer.original_request.is_some());
        kinds.push(match answer.message_response.unwrap() {
            MessageResponse::ErrorResponse(error) => format!("error {}", error.error_code),
            MessageResponse::FileDescriptorResponse(files) => {
                assert!(!files.file_descriptor_proto.is_empty());
                "files".into()
            }
            MessageResponse::ListServicesResponse(list) => {
                assert!(list.service.iter().any(|known| known.name == service));
                "services".into()
            }
            other @ MessageResponse::AllExtensionNumbersResponse(_) => format!("{other:?}"),
        });
    }
    let not_found = format!("error {}", Code::NotFound as i32);
    assert_eq!(kinds[..2], [not_found.clone(), not_found], "{kinds:?}");
    assert!(kinds[2].starts_with("error "), "{kinds:?}");
    assert_eq!(kinds[3..], ["files", "files", "files", "services"], "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_ipv4_has_one_spelling_on_a_listener_of_both() {
    let port = Port::free();
    let options = GatewayOptions::embedded()
        .set("listen", format!("[::]:{}", port.number()))
        .set("insecure", true)
        .ready(Ready::Started);
    let running = Gateway::start(options).await;
    let url = format!("http://127.0.0.1:{}", port.number());
    until(LIMIT, "it listens", async || gateway::connect(&url).await.is_ok()).await;
    let node = TestNode::connect_to(&url, "n1").await;
    let _stream = node.subscribe(node.request()).await;
    let listed = node.client.clone().list_nodes(ListNodesRequest::default()).await.unwrap();
    let address = &listed.into_inner().nodes[0].peer;
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    drop(running);
}

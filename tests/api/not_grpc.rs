//! Clients that do not speak gRPC get an answer or are disconnected, and disturb no others.

use std::time::Duration;

use http::{Request, StatusCode, header};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{body::Body, client::Grpc, codegen::Service};
use tonic_prost::ProstCodec;
use trunkline_proto::v1::{PublishRequest, PublishResponse};

use crate::{
    deployment::Deployment,
    support::{
        Collector, LIMIT, TestNode,
        events::{self, with_id},
    },
};

/// The connection preface of HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Two nodes that are connected before, and check that the gateway continues to serve.
struct Witness {
    publisher: TestNode,
    collector: Collector,
    sent: Vec<String>,
}

impl Witness {
    async fn of(deployment: &Deployment) -> Witness {
        let (publisher, subscriber) = (deployment.node("p").await, deployment.node("s").await);
        let collector = subscriber.subscribe(subscriber.request()).await;
        Witness { publisher, collector, sent: vec![] }
    }

    /// Everything that was published has come, in order, and on the same stream.
    async fn all_goes_on(&mut self, deployment: &Deployment, after: &str) {
        let id: String = format!("after {after}").chars().take(100).collect();
        self.publisher.publish(vec![with_id(&*id, events::queue_refresh())]).await.unwrap();
        self.sent.push(id.clone());
        assert_eq!(self.collector.event(&id, LIMIT).await.event_ids, self.sent);
        // And a new client is served too.
        let newcomer = deployment.node("new").await;
        newcomer.subscribe(newcomer.request()).await;
    }
}

async fn connect(deployment: &Deployment) -> TcpStream {
    TcpStream::connect(deployment.gateway.address()).await.unwrap()
}

/// Reads until the other side closes.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // A reset is an end too.
    let _ = timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("an end in time");
    answer
}

#[tokio::test]
async fn connections_with_random_bytes_are_closed() {
    let deployment = Deployment::embedded().await;
    let mut witness = Witness::of(&deployment).await;
    let mut random = StdRng::seed_from_u64(7);
    for preface in [&b""[..], PREFACE] {
        for length in [1, 9, 100, 20_000] {
            let mut garbage = vec![0; length];
            random.fill_bytes(&mut garbage);
            let mut stream = connect(&deployment).await;
            // It may be closed before all is written.
            let _ = stream.write_all(&[preface, &garbage].concat()).await;
            let _ = stream.shutdown().await;
            rest(&mut stream).await;
            witness.all_goes_on(&deployment, &format!("{} and {length}", preface.len())).await;
        }
    }
}

#[tokio::test]
async fn a_plain_http_request_gets_a_readable_answer() {
    let deployment = Deployment::embedded().await;
    let mut witness = Witness::of(&deployment).await;
    let get = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let post = "POST /trunkline.v1.CoordinationService/Publish HTTP/1.1\r\nHost: x\r\n\
        Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    for request in [get, post, "GET / HTTP/1.0\r\n\r\n"] {
        let mut stream = connect(&deployment).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = String::from_utf8(rest(&mut stream).await).unwrap();
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.starts_with("HTTP/1.") && first.contains(" 426 "), "{answer}");
        assert!(answer.contains("Trunkline") && answer.contains("grpcurl"), "{answer}");
        assert!(answer.to_lowercase().contains("content-type: text/plain"), "{answer}");
        witness.all_goes_on(&deployment, request).await;
    }
    // Bytes that are not HTTP either.
    let mut stream = connect(&deployment).await;
    stream.write_all(b"EHLO mail.example.com\r\n").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    witness.all_goes_on(&deployment, "EHLO").await;
}

#[tokio::test]
async fn http_2_that_is_not_grpc_gets_a_readable_answer() {
    let deployment = Deployment::embedded().await;
    let mut channel = deployment.gateway.connect().await.unwrap();
    let address = deployment.gateway.url();
    let request = Request::get(&address).body(Body::empty()).unwrap();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let response = channel.call(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    // The connection is as good as before.
    let mut node = deployment.node("n1").await;
    node.client =
        trunkline_proto::v1::coordination_service_client::CoordinationServiceClient::new(channel);
    node.publish(vec![events::queue_refresh()]).await.unwrap();
}

#[tokio::test]
async fn half_requests_do_not_disturb_others() {
    let deployment = Deployment::embedded().await;
    let mut witness = Witness::of(&deployment).await;
    let halves: [&[u8]; 6] = [
        b"",
        b"G",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Le",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf",
        &PREFACE[..10],
        // A frame of settings that is cut off.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04\x00\x00\x00",
    ];
    let mut open = Vec::new();
    for half in halves.into_iter().cycle().take(120) {
        let mut stream = connect(&deployment).await;
        stream.write_all(half).await.unwrap();
        open.push(stream);
    }
    // A gRPC request whose message never comes, and one whose client disconnected.
    for abandoned in [false, true] {
        let mut grpc = Grpc::new(deployment.gateway.connect().await.unwrap());
        grpc.ready().await.unwrap();
        let path = "/trunkline.v1.CoordinationService/Publish".parse().unwrap();
        let codec = ProstCodec::<PublishRequest, PublishResponse>::default();
        let request = tonic::Request::new(tokio_stream::pending());
        let mut pending =
            tokio::spawn(async move { grpc.client_streaming(request, path, codec).await });
        let early = timeout(Duration::from_millis(100), &mut pending).await;
        assert!(early.is_err(), "there is nothing to answer yet");
        if abandoned {
            pending.abort();
        }
        witness.all_goes_on(&deployment, &format!("{abandoned}")).await;
    }
    let ended = deployment.gateway.terminate(LIMIT).await;
    assert!(ended.status.success() && ended.took < Duration::from_secs(6), "{ended:?}");
}

//! Requests whose lists have hundreds of thousands of elements, and filters that cost more than
//! they say.

use std::time::Instant;

use bytes::Bytes;
use serde_json::json;
use tonic::{Code, Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;
use trunkline_proto::v1::{Filter, ListNodesRequest, PublishResponse, SubscribeRequest};

use crate::{
    error_details::{error_details, wrong_fields},
    support::{
        Keep, LIMIT, TestNode,
        events::{custom, with_id},
        until,
    },
    target::Target,
};

/// Elements that fit into a request of four megabytes.
const MANY: usize = 1_300_000;

/// A message whose fields are written by the test.
#[derive(Clone, PartialEq, prost::Message)]
struct Encoded {
    #[prost(string, tag = "1")]
    node_id: String,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    third: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    fourth: Vec<Bytes>,
}

/// `count` times the same field, empty.
fn empty(number: u8, count: usize) -> Bytes {
    [number << 3 | 2, 0].repeat(count).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_a_million_violations_costs_no_memory_and_affects_nobody() {
    let target = Target::new(json!({ "maxPendingBytesPerIdentity": "512MiB" })).await;
    let channel = target.hostile_node("n").await;
    let send = async |method: &str, message: Encoded| {
        let path: PathAndQuery =
            format!("/trunkline.v1.CoordinationService/{method}").parse().unwrap();
        let mut grpc = Grpc::new(target.gateway.connect().await.unwrap());
        grpc.ready().await.unwrap();
        let codec = ProstCodec::<Encoded, PublishResponse>::default();
        grpc.unary(Request::new(message), path, codec).await.unwrap_err()
    };
    let of = |third, fourth| Encoded { node_id: "n".into(), third, fourth };
    let packed_kinds = Filter { kinds: vec![7; MANY], ..Default::default() };
    let packed_kinds: Bytes = prost::Message::encode_to_vec(&packed_kinds).into();
    let cases = [
        ("Publish", of(vec![Bytes::new(); MANY], vec![]), &["events"][..]),
        ("Subscribe", of(vec![Bytes::new(); MANY], vec![]), &["roles"]),
        ("Subscribe", of(vec![], vec![empty(2, MANY)]), &["filter.accounts"]),
        ("Subscribe", of(vec![], vec![empty(3, MANY)]), &["filter.custom_types"]),
        ("Subscribe", of(vec![], vec![[8, 7].repeat(MANY).into()]), &["filter.kinds"]),
        ("Subscribe", of(vec![], vec![packed_kinds]), &["filter.kinds"]),
        // In many filters, which are merged into one.
        ("Subscribe", of(vec![], vec![empty(2, 2); MANY / 3]), &["filter.accounts"]),
    ];
    let attack = async || {
        for (method, message, fields) in &cases {
            let begun = Instant::now();
            let status = send(method, message.clone()).await;
            assert_eq!(wrong_fields(&status), *fields, "{method}");
            eprintln!("{method} {fields:?}: {:?}", begun.elapsed());
        }
        target.memory_is_bounded();
    };
    let bystander = target.bystander().await;
    bystander.endures(attack).await;
    drop(channel);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_refused_by_their_limit_before_their_requests_are_looked_at() {
    let target = Target::new(json!({ "maxStreamsPerIdentity": 1 })).await;
    let bystander = target.bystander().await;
    let node = target.hostile_node("n").await;
    let held = node.stream(node.request()).await.unwrap();
    let wrong = SubscribeRequest { overflow: 99, ..node.request() };
    let status = node.stream(wrong.clone()).await.unwrap_err();
    error_details(&status, Code::ResourceExhausted, "LIMIT_REACHED");
    drop(held);
    // A request that is refused for another reason frees its permit.
    until(LIMIT, "the request is looked at", async || {
        node.stream(wrong.clone()).await.unwrap_err().code() == Code::InvalidArgument
    })
    .await;
    node.stream(node.request()).await.unwrap();
    drop(node);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_filters_is_counted_as_it_is_held() {
    let target = Target::new(json!({})).await;
    let bystander = target.bystander().await;
    let node = target.hostile_node("n").await;
    let (before, memory) =
        (target.metric("pending_request_bytes").await, target.gateway.rss_bytes());
    let mut held = Vec::new();
    for stream in 0..20 {
        // Short names, which cost the most beside their bytes, and different ones in each stream.
        let accounts = (0..10_000).map(|n| format!("{stream}.{n}")).collect();
        let custom_types = (0..256).map(|n| format!("t{stream}.{n:03}.*")).collect();
        let filter = Some(Filter { accounts, custom_types, ..Default::default() });
        held.push(node.stream(SubscribeRequest { filter, ..node.request() }).await.unwrap());
    }
    let counted = target.metric("pending_request_bytes").await - before;
    #[allow(clippy::cast_precision_loss)]
    let grown = target.gateway.rss_bytes().saturating_sub(memory) as f64;
    eprintln!("{counted} bytes are counted, and the memory grew by {grown}");
    assert!(grown < counted * 1.5, "{grown} bytes are held, and {counted} counted");
    assert!(counted < 64e6, "{counted}");
    // A list of nodes has a part of each filter.
    let list = ListNodesRequest { page_size: 1000, ..Default::default() };
    let list = node.client.clone().list_nodes(list).await.unwrap().into_inner();
    assert!(prost::Message::encoded_len(&list) < 100_000);
    drop((held, node));
    bystander.was_unaffected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_costs_what_matches_it_and_not_the_patterns_of_thousands_of_streams() {
    const STREAMS: usize = 2000;
    let limits = json!({ "maxStreamsPerConnection": 5000, "maxPendingBytesPerIdentity": "512MiB" });
    let target = Target::new(limits).await;
    let bystander = target.bystander().await;
    let node = target.hostile_node("n").await;
    // a*, aa*, aaa*, ..., and names that begin alike, in each of them.
    let nested = (1..=100).map(|length| format!("{}*", "a".repeat(length)));
    let alike = (0..100).map(|n| format!("{}{n:03}", "b".repeat(100)));
    let custom_types: Vec<String> = nested.chain(alike).collect();
    let mut held = Vec::new();
    for n in 0..STREAMS {
        let filter = Some(Filter { custom_types: custom_types.clone(), ..Default::default() });
        let node_id = format!("n{n}");
        let request = SubscribeRequest { filter, node_id, ..node.request() };
        held.push(node.collect(request, Keep::Ids).await.unwrap());
    }
    let publisher = TestNode::connect(&target.gateway, "p").await;
    // Of all names, the longest that matches the most patterns, and one that matches none.
    for (n, name) in ["a".repeat(120), format!("{}x", "b".repeat(100))].into_iter().enumerate() {
        let begun = Instant::now();
        let events = (0..100).map(|m| with_id(format!("x{n}-{m}"), custom(&name))).collect();
        publisher.publish(events).await.unwrap();
        eprintln!("a hundred events took {:?}", begun.elapsed());
        assert!(begun.elapsed() < LIMIT / 3);
    }
    drop((held, node, publisher));
    target.metric_is("streams", 1.0).await;
    bystander.was_unaffected().await;
}

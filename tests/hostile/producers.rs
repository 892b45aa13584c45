//! Producers that misuse `PublishStream`.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;
use tonic::Code;
use trunkline_proto::v1::{Event, PublishEvents, PublishStreamRequest, publish_stream_request};
use uuid::Uuid;

use crate::{
    error_details::{error_details, wrong_fields},
    support::events::{large, numbered},
    target::Target,
};

fn publisher() -> String {
    Uuid::new_v4().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_reads_no_answers_is_held_back_and_affects_nobody() {
    let target = Target::new(json!({})).await;
    target
        .withstands(async || {
            let node = target.hostile_node("silent").await;
            let mut stream = node.producer(publisher()).await.unwrap();
            let requests = stream.requests.clone().unwrap();
            // Events that are all rejected: each has an answer of its own.
            let mut first_sequence = 1;
            let flood = async {
                loop {
                    let events = vec![Event::default(); 500];
                    let events = PublishEvents { first_sequence, events, ..Default::default() };
                    first_sequence += 500;
                    let request = publish_stream_request::Request::Events(events);
                    requests.send(PublishStreamRequest { request: Some(request) }).await.unwrap();
                }
            };
            let held_back = timeout(Duration::from_secs(2), flood).await;
            assert!(held_back.is_err());
            // Once it reads, it gets an answer for each.
            drop(requests);
            let (answers, end) = stream.close().await;
            end.unwrap();
            let all: Vec<u64> = (1..first_sequence).collect();
            assert!(all.len() > 500 && all.starts_with(&answers.rejected()), "{}", all.len());
            assert!(answers.rejected().len() > all.len() / 2);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_without_end_keep_no_memory() {
    let target = Target::new(json!({})).await;
    target
        .withstands(async || {
            let node = target.hostile_node("many").await;
            for number in 0..200 {
                let mut stream = node.producer(publisher()).await.unwrap();
                stream.events(1, numbered(&format!("m{number}"), 5, 1)).await;
                // Most go away without waiting for an answer.
                if number % 10 == 0 {
                    stream.until(5).await;
                }
            }
        })
        .await;
    target.metric_is("publish_streams", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_wait_in_the_connection_and_not_in_the_gateway() {
    let target = Target::new(json!({})).await;
    target
        .withstands(async || {
            let node = target.hostile_node("large").await;
            let mut stream = node.producer(publisher()).await.unwrap();
            for first in (1..=2000).step_by(20) {
                stream.events(first, vec![large(40_000); 20]).await;
            }
            let answers = stream.until(2000).await;
            assert!(answers.rejected.is_empty());
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_and_requests_out_of_order_end_alone() {
    let target = Target::new(json!({ "maxStreamsPerIdentity": 20 })).await;
    target
        .withstands(async || {
            let node = target.hostile_node("greedy").await;
            let mut streams = Vec::new();
            for _ in 0..20 {
                streams.push(node.producer(publisher()).await.unwrap());
            }
            let refused = node.producer(publisher()).await.err().expect("the limit");
            error_details(&refused, Code::ResourceExhausted, "LIMIT_REACHED");
            for (index, stream) in (1..).zip(&mut streams) {
                stream.events(index, numbered("e", 1, 1)).await;
                stream.events(index, numbered("e", 1, 1)).await;
                let (_, end) = stream.end().await;
                assert_eq!(wrong_fields(&end.unwrap_err()), ["first_sequence"]);
            }
        })
        .await;
}

//! Subscribers that stop reading during a fast load.

use std::time::{Duration, Instant};

use tonic::{Code, Streaming};
use trunkline_proto::v1::{
    CustomEvent, Event, Gap, Overflow, SubscribeResponse, event::Kind, subscribe_response::Response,
};

use crate::{
    history::{History, Memory},
    promises, seconds,
    support::{
        LIMIT,
        events::{event, noise},
        gateway::{Gateway, GatewayOptions},
        nodes::{Keep, TestNode},
        redis::{RedisOptions, RedisServer},
        shared,
    },
};

/// Events per second, in requests of `BATCH`.
const RATE: u64 = 20_000;
const BATCH: u64 = 500;

/// Bytes of an event's payload.
const PAYLOAD: usize = 500;

/// Sizes of the gateway's log and of Redis' history that are too small for the load.
const LOG: &str = "2MiB";
const HISTORY: &str = "4MiB";

/// Limit of a gateway's growth during the load, in bytes: the log, connections' buffers and the
/// allocator's reserve. More than that is published, in the long form several times as much.
const GROWTH: u64 = 64 << 20;

fn payload(number: u64) -> Event {
    let labels = [("filling".to_owned(), noise(number, PAYLOAD))].into();
    let custom = CustomEvent { r#type: "test.slow".into(), labels, payload: None };
    Event { event_id: number.to_string(), ..event(Kind::Custom(custom)) }
}

/// Everything that a stream received up to the last event.
struct Received {
    ids: Vec<u64>,
    gaps: Vec<Gap>,
}

async fn catch_up(stream: &mut Streaming<SubscribeResponse>, last: u64) -> Received {
    let mut received = Received { ids: vec![], gaps: vec![] };
    while received.ids.last() != Some(&last) {
        let next = tokio::time::timeout(LIMIT * 2, stream.message()).await;
        let next = next.expect("the stream goes on").expect("no error").expect("no end");
        match next.response {
            Some(Response::Events(batch)) => {
                let id = |event: Event| event.event_id.parse::<u64>().expect("a number");
                received.ids.extend(batch.events.into_iter().map(id));
            }
            Some(Response::Gap(gap)) => received.gaps.push(gap),
            _ => {}
        }
    }
    received
}

/// Publishes at the rate for `time`, and returns the number of events and the gateway's memory over
/// that time.
async fn publish(node: &TestNode, gateway: &Gateway, time: Duration) -> (u64, History) {
    let mut history = History::default();
    let bound = gateway.rss_bytes() + GROWTH;
    let start = Instant::now();
    let mut next = 0;
    let total = RATE * time.as_secs();
    while next < total {
        let batch = (next..next + BATCH).map(payload).collect();
        node.publish(batch).await.expect("published");
        next += BATCH;
        let due = start + Duration::from_secs(next) / u32::try_from(RATE).expect("small");
        history.memory.push(Memory {
            process: "the gateway".into(),
            bytes: gateway.rss_bytes(),
            bound,
        });
        tokio::time::sleep_until(due.into()).await;
    }
    let took = start.elapsed();
    println!("{total} events in {took:?}");
    (total, history)
}

fn check(history: &History) {
    let most = history.memory.iter().map(|memory| memory.bytes).max().unwrap_or(0);
    let bound = history.memory[0].bound;
    println!("peak memory: {} of {} KiB", most >> 10, bound >> 10);
    assert_eq!(promises::violations(history), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_stops_reading_gets_the_rest_from_history() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    let gateway = Gateway::start(options.set("log", serde_json::json!({ "maxBytes": LOG }))).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let quick = TestNode::connect(&gateway, "quick").await;
    let quick = quick.collect(quick.request(), Keep::Ids).await.expect("a stream");
    quick.subscribed().await;
    let slow = TestNode::connect(&gateway, "slow").await;
    let mut stream = slow.stream(slow.request()).await.expect("a stream");
    // Confirmed; not read from here on.
    stream.message().await.expect("no error").expect("subscribed");
    // Less than the limits of history.
    let (total, _) = publish(&publisher, &gateway, seconds(5, 3)).await;
    quick.events(usize::try_from(total).expect("small"), LIMIT).await;
    assert!(
        quick.recording().gaps().is_empty(),
        "a stream that is read is not affected by one that is not"
    );
    let received = catch_up(&mut stream, total - 1).await;
    assert!(received.gaps.is_empty(), "{:?}", received.gaps);
    assert!(received.ids.iter().copied().eq(0..total), "every event, once, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_stops_reading_for_too_long_gets_a_gap_with_the_exact_count() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix())
        .set("log", serde_json::json!({ "maxBytes": LOG }))
        .set("history", serde_json::json!({ "maxBytes": HISTORY }));
    let gateway = Gateway::start(options).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let slow = TestNode::connect(&gateway, "slow").await;
    let mut streams = Vec::new();
    for overflow in [Overflow::Gap, Overflow::Gap, Overflow::Disconnect] {
        let mut request = slow.request();
        request.overflow = overflow.into();
        // One connection each, so that buffers are not shared.
        let node = TestNode::connect(&gateway, "slow").await;
        let mut stream = node.stream(request).await.expect("a stream");
        stream.message().await.expect("no error").expect("subscribed");
        streams.push(stream);
    }
    let (total, history) = publish(&publisher, &gateway, seconds(30, 8)).await;
    let mut cut_off = streams.pop().expect("the one that wants to be cut off");
    for mut stream in streams {
        let received = catch_up(&mut stream, total - 1).await;
        let missed: u64 = received.gaps.iter().filter_map(|gap| gap.missed_events).sum();
        assert!(missed > 0, "history was too small, so there is a gap");
        assert_eq!(received.ids.len() as u64 + missed, total, "the count is exact");
        assert!(received.ids.is_sorted_by(|one, two| one < two), "in order, none twice");
        println!("{} delivered, {missed} in {} gaps", received.ids.len(), received.gaps.len());
    }
    let end = loop {
        match cut_off.message().await {
            Ok(Some(message)) => {
                assert!(!matches!(message.response, Some(Response::Gap(_))), "it wants no gap");
            }
            Ok(None) => panic!("the stream ended without an error"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
    check(&history);
}

//! The history of a shard within its limits, and streams that resume from it.

use ::redis::{Value, streams::StreamRangeReply};
use serde_json::json;
use trunkline_proto::v1::{Event, GapReason, Overflow, Position, Start};

use super::{
    ids,
    support::{
        Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events,
        shared::{self, SharedRedis},
        until,
    },
    two_gateways,
};

/// Publishes each event as a request, and so a frame, of its own.
async fn publish_each(node: &TestNode, all: Vec<Event>) -> Vec<Position> {
    let mut positions = Vec::new();
    for event in all {
        positions.extend(node.publish(vec![event]).await.expect("published"));
    }
    positions
}

/// The key of the history of the only shard.
async fn history_key(redis: &RedisServer) -> String {
    let keys = redis.cli(&["KEYS", "*:history"]).await;
    assert_eq!(keys.lines().count(), 1, "{keys}");
    keys
}

async fn length(redis: &RedisServer, key: &str) -> usize {
    redis.cli(&["XLEN", key]).await.parse().expect("a number")
}

/// Bytes of the frames that are kept.
async fn kept_bytes(redis: &RedisServer, key: &str) -> usize {
    let kept: StreamRangeReply = redis.command(&["XRANGE", key, "-", "+"]).await.expect("XRANGE");
    let size = |value: &Value| if let Value::BulkString(bytes) = value { bytes.len() } else { 0 };
    kept.ids.iter().flat_map(|entry| entry.map.values()).map(size).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_resumes_on_another_gateway_and_on_one_that_started_later() {
    let redis = SharedRedis::get().await;
    let options = || GatewayOptions::redis(&redis.url, &redis.prefix);
    let (one, two) = two_gateways(options).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let node = TestNode::connect(&one, "node").await;
    let collector = node.subscribe(node.request()).await;
    publish_each(&publisher, events::numbered("before", 50, 5)).await;
    collector.event("before-49", LIMIT).await;
    let token = collector.last_token();
    drop(collector);
    publish_each(&publisher, events::numbered("missed", 150, 5)).await;

    let young = Gateway::start(options()).await;
    let mut expected = ids("missed", 0..150);
    for gateway in [&one, &two, &young] {
        let node = TestNode::connect(gateway, "node").await;
        let mut request = node.request();
        request.resume_token.clone_from(&token);
        let collector = node.subscribe(request).await;
        let recording = collector.events(expected.len(), LIMIT).await;
        let subscribed = recording.subscribed().expect("subscribed");
        assert!(subscribed.resumed);
        assert_eq!(subscribed.replayed_events, expected.len() as u64);
        // The stream continues with new events.
        let live = format!("live-{}", gateway.port());
        publisher.publish(events::numbered(&live, 5, 5)).await.expect("published");
        expected.extend(ids(&live, 0..5));
        let recording = collector.event(&format!("{live}-4"), LIMIT).await;
        assert_eq!(recording.event_ids, expected);
        assert!(recording.gaps().is_empty());
    }
}

/// A history of 100 frames, and a log of the same length.
fn short_history(url: &str, prefix: &str) -> GatewayOptions {
    GatewayOptions::redis(url, prefix)
        .set("history", json!({"maxFrames": 100}))
        .set("log", json!({"maxEvents": 100}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_older_than_history_gets_a_gap_with_the_count() {
    const MISSED: usize = 600;
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let (one, two) = two_gateways(|| short_history(&redis.url(), &prefix)).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let node = TestNode::connect(&one, "node").await;
    let collector = node.subscribe(node.request()).await;
    let before = publish_each(&publisher, events::numbered("before", 10, 1)).await;
    collector.event("before-9", LIMIT).await;
    let token = collector.last_token();
    drop(collector);
    let missed = publish_each(&publisher, events::numbered("missed", MISSED, 1)).await;

    let young = Gateway::start(short_history(&redis.url(), &prefix)).await;
    for gateway in [&one, &two, &young] {
        let node = TestNode::connect(gateway, "node").await;
        let mut request = node.request();
        request.resume_token.clone_from(&token);
        let collector = node.subscribe(request).await;
        let recording = collector.event(&format!("missed-{}", MISSED - 1), LIMIT).await;
        assert!(!recording.subscribed().expect("subscribed").resumed);
        assert_eq!(recording.gaps().len(), 1);
        let gap = recording.gaps()[0].clone();
        assert_eq!(gap.reason(), GapReason::HistoryExpired);
        let count = usize::try_from(gap.missed_events.expect("a count")).expect("small");
        assert!((MISSED - 250..MISSED).contains(&count), "{count}: history holds about 100 frames");
        assert_eq!(recording.event_ids, ids("missed", count..MISSED), "what was kept, and no more");
        assert_eq!(gap.from.as_ref(), before.last());
        assert_eq!(gap.to.as_ref(), Some(&missed[count - 1]));
        assert!(matches!(recording.seen[1], super::support::Seen::Gap(_)), "the gap comes first");
    }
}

/// A stream with overflow `DISCONNECT` can still be opened with an expired token: else its node
/// could never come back.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_a_gap_even_if_overflow_is_disconnect() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let gateway = Gateway::start(short_history(&redis.url(), &prefix)).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let node = TestNode::connect(&gateway, "node").await;
    let token = node.subscribe(node.request()).await.last_token();
    publish_each(&publisher, events::numbered("missed", 400, 1)).await;
    let mut request = node.request();
    request.resume_token = token;
    request.overflow = Overflow::Disconnect.into();
    let collector = node.subscribe(request).await;
    let recording = collector.event("missed-399", LIMIT).await;
    let missed = recording.gaps().iter().filter_map(|gap| gap.missed_events).sum::<u64>();
    assert_eq!(usize::try_from(missed).expect("small") + recording.event_ids.len(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_can_begin_with_the_oldest_event_that_is_kept() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let one = Gateway::start(short_history(&redis.url(), &prefix)).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let oldest = async |gateway: &Gateway, last: &str| {
        let node = TestNode::connect(gateway, "node").await;
        let mut request = node.request();
        request.start = Start::Oldest.into();
        let collector = node.subscribe(request).await;
        let recording = collector.event(last, LIMIT).await;
        assert!(recording.gaps().is_empty(), "a stream of what is kept misses nothing");
        recording.event_ids
    };
    publish_each(&publisher, events::numbered("e", 50, 1)).await;
    let two = Gateway::start(short_history(&redis.url(), &prefix)).await;
    for gateway in [&one, &two] {
        assert_eq!(oldest(gateway, "e-49").await, ids("e", 0..50));
    }

    publish_each(&publisher, events::numbered("f", 400, 1)).await;
    let kept = length(&redis, &history_key(&redis).await).await;
    for gateway in [&one, &two] {
        let seen = oldest(gateway, "f-399").await;
        assert_eq!(seen, ids("f", 400 - seen.len()..400));
        assert!(seen.len() >= 100 && seen.len() <= kept.max(100), "{} of {kept}", seen.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_keeps_its_limit_of_frames() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), "frames");
    let gateway = Gateway::start(options.set("history", json!({"maxFrames": 100}))).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    publish_each(&publisher, events::numbered("e", 500, 5)).await;
    let key = history_key(&redis).await;
    // Redis trims a stream by whole nodes of 100 entries.
    let length = length(&redis, &key).await;
    assert!((100..=200).contains(&length), "{length}");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_keeps_its_limit_of_bytes() {
    const MAX: usize = 64 << 10;
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), "bytes");
    let gateway = Gateway::start(options.set("history", json!({ "maxBytes": MAX }))).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let large = (0..300).map(|number| events::with_id("x".repeat(100), large(number))).collect();
    publish_each(&publisher, large).await;
    let bytes = kept_bytes(&redis, &history_key(&redis).await).await;
    // Exact to a sixty-fourth, and a frame.
    assert!((MAX / 2..MAX + MAX / 16).contains(&bytes), "{bytes}");
}

/// An event of about a kilobyte.
fn large(number: u64) -> Event {
    let mut event = events::blocked_ip("192.0.2.7");
    if let Some(trunkline_proto::v1::event::Kind::BlockedIp(blocked)) = &mut event.kind {
        blocked.reason = events::noise(number, 1000);
    }
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn history_keeps_its_limit_of_age() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), "age");
    let gateway = Gateway::start(options.set("history", json!({"maxAge": "1s"}))).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    publish_each(&publisher, events::numbered("e", 200, 5)).await;
    let key = history_key(&redis).await;
    assert!(length(&redis, &key).await > 1);
    // No publish is needed: the gateway's probes trim. The last frame stays.
    until(LIMIT, "an empty history", async || length(&redis, &key).await <= 1).await;
}

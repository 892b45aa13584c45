//! Gateways far from Redis, beside others that are near.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;

use crate::support::{
    LIMIT,
    events::{mailbox_change, numbered, with_id},
    gateway::{FRAME_KEY, Gateway, GatewayOptions},
    nodes::TestNode,
    proxy::Proxy,
    redis::{RedisOptions, RedisServer},
    shared,
};

/// Longer than the near gateway takes for several frames.
const FAR: Duration = Duration::from_millis(40);

/// Requests that each far gateway must have accepted, one after the other.
const REQUESTS: usize = 10;

/// Nodes that publish on the near gateway without a pause.
const NEAR: usize = 8;

/// A frame that is authenticated has its place in its tag. While it is on its way, a near gateway
/// takes that place many times.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_frame_key_far_gateways_are_served_beside_a_busy_near_one() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let options =
        |url: &str| GatewayOptions::redis(url, &prefix).set("shards", 1).frame_keys(FRAME_KEY);
    let near = Gateway::start(options(&redis.url())).await;
    let lines = [Proxy::start(redis.port()).await, Proxy::start(redis.port()).await];
    let [one, two] = &lines;
    let (one, two) =
        tokio::join!(Gateway::start(options(&one.url())), Gateway::start(options(&two.url())));
    let reader = TestNode::connect(&near, "reader").await;
    let stream = reader.subscribe(reader.request()).await;
    for line in &lines {
        line.move_away(FAR);
    }
    let stop = AtomicBool::new(false);
    let busy = join_all((0..NEAR).map(async |nth| {
        let node = TestNode::connect(&near, format!("near-{nth}")).await;
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let event = mailbox_change("near", 1);
            node.publish(vec![with_id(format!("near-{nth}-{count}"), event)]).await.expect("near");
            count += 1;
        }
        count
    }));
    let far = async {
        join_all([&one, &two].into_iter().enumerate().map(async |(index, gateway)| {
            let node = TestNode::connect(gateway, format!("far-{index}")).await;
            for request in 0..REQUESTS {
                let batch = numbered(&format!("far-{index}-{request}"), 2, 2);
                let accepted = node.publish(batch).await;
                accepted.unwrap_or_else(|error| panic!("far {index}, {request}: {error}"));
            }
        }))
        .await;
        stop.store(true, Ordering::Relaxed);
    };
    let begun = std::time::Instant::now();
    let (counts, ()) = tokio::join!(busy, far);
    let near_events: usize = counts.iter().sum();
    println!("{near_events} events near and {} far in {:?}", 4 * REQUESTS, begun.elapsed());
    // The near one was served meanwhile, too.
    assert!(near_events > REQUESTS, "{near_events} events of the near gateway");
    let recording = stream.events(near_events + 4 * REQUESTS, LIMIT).await;
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    let mut ids = recording.event_ids;
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), near_events + 4 * REQUESTS);
}

//! The promises Confirmed and Ordered, on two gateways, under load.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use trunkline_proto::v1::Position;

use super::{
    support::{
        Collector, Gateway, GatewayOptions, Keep, LIMIT, RedisOptions, RedisServer, TestNode,
        events,
        shared::{self, SharedRedis},
        wait::eventually,
    },
    two_gateways,
};

/// Within a shard all subscribers of all gateways see the same order, which is that of the
/// positions; and what one node publishes of one account stays in its order.
#[tokio::test(flavor = "multi_thread")]
async fn ordered_on_two_gateways() {
    const EVENTS: usize = 2000;
    const ACCOUNTS: usize = 40;
    let redis = SharedRedis::get().await;
    let options = || GatewayOptions::redis(&redis.url, &redis.prefix).set("shards", 4);
    let (one, two) = two_gateways(options).await;
    let mut collectors = Vec::new();
    for (index, gateway) in [&one, &two, &one, &two, &one, &two].into_iter().enumerate() {
        let node = TestNode::connect(gateway, format!("subscriber-{index}")).await;
        collectors.push(node.subscribe(node.request()).await);
    }
    let publishing =
        [&one, &two, &one, &two].into_iter().enumerate().map(async |(index, gateway)| {
            let node = TestNode::connect(gateway, format!("publisher-{index}")).await;
            let mut accepted = Vec::new();
            for batch in events::numbered(&format!("p{index}"), EVENTS, ACCOUNTS).chunks(7) {
                let positions = node.publish(batch.to_vec()).await.expect("published");
                accepted.extend(batch.iter().map(|event| event.event_id.clone()).zip(positions));
            }
            accepted
        });
    let accepted: HashMap<String, Position> =
        join_all(publishing).await.into_iter().flatten().collect();
    assert_eq!(accepted.len(), 4 * EVENTS);

    for collector in &collectors {
        let recording = collector.events(4 * EVENTS, LIMIT).await;
        assert!(recording.gaps().is_empty());
        let mut ends: HashMap<u32, (u64, u64)> = HashMap::new();
        let mut latest: HashMap<(String, usize), usize> = HashMap::new();
        for id in &recording.event_ids {
            let position = &accepted[id];
            let at = (position.epoch, position.offset);
            let end = ends.insert(position.shard, at).unwrap_or_default();
            assert!(end < at, "{id} at {at:?} came after {end:?}");
            let (publisher, number) = id.split_once('-').expect("an id of ours");
            let number: usize = number.parse().expect("a number");
            let key = (publisher.to_owned(), number % ACCOUNTS);
            let before = latest.insert(key, number);
            assert!(before.is_none_or(|before| before < number), "{id} came after {before:?}");
        }
        assert_eq!(ends.len(), 4, "every shard was in use");
    }
}

/// A publisher that publishes one event after the other until it is stopped.
struct Publisher {
    /// The number of events that are known to be accepted: `e-0` to the one before this.
    accepted: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Publisher {
    async fn start(gateway: &Gateway) -> Publisher {
        let node = TestNode::connect(gateway, "publisher").await;
        let (accepted, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn({
            let (accepted, stop) = (accepted.clone(), stop.clone());
            async move {
                while !stop.load(Ordering::Acquire) {
                    let number = accepted.load(Ordering::Acquire);
                    let change = events::mailbox_change(&format!("a{}", number % 8), 1);
                    let event = events::with_id(format!("e-{number}"), change);
                    node.publish(vec![event]).await.expect("published");
                    accepted.store(number + 1, Ordering::Release);
                }
            }
        });
        Publisher { accepted, stop, task }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Acquire)
    }

    /// Waits for so many more events.
    async fn more(&self, count: usize) {
        let enough = self.accepted() + count;
        eventually(LIMIT, "events to be published", async || {
            (self.accepted() >= enough).then_some(())
        })
        .await;
    }

    /// Stops, and returns the number of all accepted events.
    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Release);
        self.task.await.expect("no panic");
        self.accepted.load(Ordering::Acquire)
    }
}

/// A stream that was opened during publishing, and the first event that it must have.
struct Confirmed {
    collector: Collector,
    from: usize,
}

impl Confirmed {
    /// Opens a stream as soon as the gateway accepts one.
    async fn open(gateway: &Gateway, publisher: &Publisher, name: usize) -> Confirmed {
        let collector = eventually(LIMIT, "a stream", async || {
            gateway.connect().await.ok()?;
            let node = TestNode::connect(gateway, format!("subscriber-{name}")).await;
            node.collect(node.request(), Keep::Ids).await.ok()
        })
        .await;
        collector.subscribed().await;
        // The event under way may have been accepted before; the next one is not sent yet.
        Confirmed { collector, from: publisher.accepted() + 1 }
    }

    /// Every event from `from` up to `count` was delivered, and none twice.
    async fn check(&self, count: usize) {
        let last = format!("e-{}", count - 1);
        // Events of other shards may arrive after the last one.
        let all = |seen: &HashSet<&str>| {
            (self.from..count).all(|number| seen.contains(format!("e-{number}").as_str()))
        };
        let ids = self
            .collector
            .wait(LIMIT, &format!("all from e-{} to {last}", self.from), |recording| {
                let seen = recording.event_ids.iter().map(String::as_str).collect();
                all(&seen).then(|| recording.event_ids.clone())
            })
            .await;
        let unique: HashSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len(), "none twice");
        self.collector.with(|recording| assert!(recording.gaps().is_empty()));
    }
}

/// A stream gets every event that is accepted after its `subscribed`: in quiet times, after the
/// gateway's subscription was cut, and from a gateway that has just started.
#[tokio::test(flavor = "multi_thread")]
async fn confirmed_on_two_gateways() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let options = || GatewayOptions::redis(&redis.url(), &prefix).set("shards", 4);
    let (one, two) = two_gateways(options).await;
    let publisher = Publisher::start(&one).await;
    let mut streams = Vec::new();
    for round in 0..30 {
        let gateway = if round % 2 == 0 { &two } else { &one };
        if round % 5 == 0 {
            redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        }
        streams.push(Confirmed::open(gateway, &publisher, round).await);
        publisher.more(10).await;
    }
    let late = Gateway::start(options().ready(super::support::Ready::Started)).await;
    streams.push(Confirmed::open(&late, &publisher, 30).await);
    publisher.more(100).await;
    let count = publisher.stop().await;
    for stream in &streams {
        stream.check(count).await;
    }
}

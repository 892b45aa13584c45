//! Where streams go: they even out once after a gateway has joined, come to rest, and lose and
//! repeat nothing on the way; and they survive restarts of all gateways, one after the other and at
//! once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use trunkline_client::{Client, Notification, SubscribeOptions};
use trunkline_proto::v1::publish_stream_response::Response;

use super::{
    redis,
    support::{
        Gateway, GatewayOptions, LIMIT, RedisServer, TestNode,
        events::{mailbox_change, with_id},
        proxy::Proxy,
        publishing::TestProducer,
        until,
    },
};

/// How long streams may take to even out: a batch, and the time after it until its effect is known,
/// a few times over.
const EVEN: Duration = Duration::from_mins(2);

/// How long it is watched that nothing moves any more: longer than gateways wait for calm.
const REST: Duration = Duration::from_secs(6);

/// The time that nodes are given to take all that was published.
const CATCH_UP: Duration = Duration::from_mins(1);

/// Ids of publishers.
const PUBLISHERS: [&str; 2] =
    ["019aa000-0000-7000-8000-000000000001", "019aa000-0000-7000-8000-000000000002"];

fn rebalance() -> Value {
    json!({"after": "2s", "minAge": "0s", "streamsPerSecond": 50})
}

async fn gateway(redis: &RedisServer, rebalance: Value) -> Gateway {
    gateway_with(redis, rebalance, json!({})).await
}

async fn gateway_with(redis: &RedisServer, rebalance: Value, limits: Value) -> Gateway {
    let options = GatewayOptions::redis(&redis.url(), "moves")
        .set("rebalance", rebalance)
        .set("limits", limits)
        .set("logLevel", "info");
    Gateway::start(options).await
}

/// A metric of a gateway, with its labels.
async fn metric(gateway: &Gateway, name: &str) -> u64 {
    let metrics = gateway.admin("/metrics").await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} in {metrics}"))
}

async fn streams(gateway: &Gateway) -> u64 {
    metric(gateway, "trunkline_streams").await
}

/// The streams that a gateway has asked to leave since others had fewer.
async fn asked(gateway: &Gateway) -> u64 {
    metric(gateway, "trunkline_streams_asked_to_leave_total{reason=\"rebalance\"}").await
}

async fn all_asked(gateways: &[&Gateway]) -> u64 {
    let mut sum = 0;
    for gateway in gateways {
        sum += asked(gateway).await;
    }
    sum
}

/// When each event was published, by its number.
type Published = Arc<Mutex<Vec<Instant>>>;

/// What a node received.
#[derive(Default)]
struct Seen {
    /// The numbers of all events, in order.
    events: Vec<usize>,
    /// The delay of each, from before it was published.
    delays: Vec<Duration>,
    gaps: usize,
    /// The reasons of all requests to leave.
    reasons: Vec<String>,
    /// The gateways of its streams.
    gateways: Vec<String>,
}

/// Nodes that take what comes, wherever they are sent.
struct Fleet {
    nodes: Vec<(Arc<Mutex<Seen>>, JoinHandle<()>)>,
    published: Published,
}

impl Fleet {
    /// Nodes that know these gateways, each in an order of its own.
    async fn start(urls: &[String], count: usize) -> Fleet {
        let mut fleet = Fleet { nodes: vec![], published: Published::default() };
        fleet.join(urls, count).await;
        fleet
    }

    /// More nodes.
    async fn join(&mut self, urls: &[String], count: usize) {
        let first = self.nodes.len();
        for number in first..first + count {
            let client = client(&format!("node-{number}"), urls);
            let (seen, published) = (Arc::<Mutex<Seen>>::default(), self.published.clone());
            let task = tokio::spawn(take(client, seen.clone(), published));
            self.nodes.push((seen, task));
        }
        until(CATCH_UP, "all nodes are subscribed", async || {
            self.nodes.iter().all(|(seen, _)| !seen.lock().gateways.is_empty())
        })
        .await;
    }

    /// Waits until all nodes have all events up to the last one, and checks that each came once, in
    /// order, and none is missing. Returns the delays, the shortest first.
    async fn has_all(&self, count: usize) -> Vec<Duration> {
        until(CATCH_UP, "all nodes have the last event", async || {
            self.nodes.iter().all(|(seen, _)| seen.lock().events.last() == Some(&(count - 1)))
        })
        .await;
        let mut delays = Vec::new();
        for (number, (seen, _)) in self.nodes.iter().enumerate() {
            let seen = seen.lock();
            assert_eq!(seen.gaps, 0, "node {number}");
            let is_whole = seen.events.iter().copied().eq(0..count);
            assert!(is_whole, "node {number} of {:?} got {:?}", seen.gateways, seen.events);
            delays.extend(&seen.delays);
        }
        delays.sort();
        delays
    }

    fn reasons(&self) -> Vec<String> {
        self.nodes.iter().flat_map(|(seen, _)| seen.lock().reasons.clone()).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.nodes.iter().for_each(|(_, task)| task.abort());
    }
}

fn client(node_id: &str, urls: &[String]) -> Client {
    let client = Client::builder(node_id).gateways(urls).attempt_timeout(Duration::from_secs(2));
    client.build().expect("built")
}

/// Takes what a node gets, until it is aborted.
async fn take(client: Client, seen: Arc<Mutex<Seen>>, published: Published) {
    let mut subscription = client.subscribe(SubscribeOptions::new());
    while let Some(notification) = subscription.next().await {
        let mut seen = seen.lock();
        match notification.expect("no error that a retry does not cure") {
            Notification::Subscribed(subscribed) => seen.gateways.push(subscribed.gateway_id),
            Notification::Event(event) => {
                let number =
                    event.event_id.strip_prefix('e').expect("e").parse().expect("a number");
                let begun: Option<Instant> = published.lock().get(number).copied();
                seen.delays.push(begun.expect("published").elapsed());
                seen.events.push(number);
            }
            Notification::Gap(_) => seen.gaps += 1,
            Notification::Draining(draining) => seen.reasons.push(draining.reason),
            _ => {}
        }
    }
}

/// Publishes events one after the other, through whichever gateway takes them.
struct Flow {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    task: JoinHandle<usize>,
}

impl Flow {
    fn start(fleet: &Fleet, urls: &[String], pause: Duration) -> Flow {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default());
        let (stopped, counted) = (stop.clone(), count.clone());
        let (published, client) = (fleet.published.clone(), client("flow", urls));
        let task = tokio::spawn(async move {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                let event = with_id(format!("e{number}"), mailbox_change("a1", number as u64));
                published.lock().push(Instant::now());
                client.publish(vec![event]).await.expect("published");
                number += 1;
                counted.store(number as u64, Ordering::Relaxed);
                tokio::time::sleep(pause).await;
            }
            number
        });
        Flow { stop, count, task }
    }

    /// Waits until it has published so many more.
    async fn goes_on(&self, more: u64) {
        let until_count = self.count.load(Ordering::Relaxed) + more;
        until(CATCH_UP, "more is published", async || {
            self.count.load(Ordering::Relaxed) >= until_count
        })
        .await;
    }

    /// Stops it. Returns the number of events.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no panic")
    }
}

fn urls(gateways: &[&Gateway]) -> Vec<String> {
    gateways.iter().map(|gateway| gateway.url()).collect()
}

fn percentile(sorted: &[Duration], part: f64) -> Duration {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let index = ((sorted.len() - 1) as f64 * part) as usize;
    sorted[index]
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_even_out_once_when_a_gateway_joins_and_lose_nothing() {
    let redis = redis().await;
    let (a, b, c) = tokio::join!(
        gateway(&redis, rebalance()),
        gateway(&redis, rebalance()),
        gateway(&redis, rebalance())
    );
    // The third one joins later: it has an address that nodes know already.
    c.terminate(LIMIT).await;
    let (all, gateways) = (urls(&[&a, &b, &c]), [&a, &b, &c]);
    let fleet = Fleet::start(&all, 60).await;
    let flow = Flow::start(&fleet, &all, Duration::from_millis(5));
    flow.goes_on(20).await;
    c.restart().await;
    // The mean is 20: none has many more, and the new one has its part.
    until(EVEN, "the streams are even", async || {
        let (a, b, c) = (streams(&a).await, streams(&b).await, streams(&c).await);
        a + b + c == 60 && a.max(b).max(c) <= 25 && c >= 10
    })
    .await;
    until(EVEN, "no gateway moves streams", async || {
        let mut moving = 0;
        for gateway in gateways {
            moving += metric(gateway, "trunkline_rebalancing").await;
        }
        moving == 0
    })
    .await;
    let moved = all_asked(&gateways).await;
    // Of the 40 or so at two gateways, those that the third one lacks, and few besides.
    assert!((10..=30).contains(&moved), "{moved} were asked");
    tokio::time::sleep(REST).await;
    assert_eq!(all_asked(&gateways).await, moved, "they move on");
    let count = flow.end().await;
    let delays = fleet.has_all(count).await;
    assert!(percentile(&delays, 0.5) < Duration::from_secs(1), "{delays:?}");
    let reasons = fleet.reasons();
    assert!(reasons.iter().all(|reason| reason.starts_with("rebalance: ")), "{reasons:?}");
    assert_eq!(reasons.len() as u64, moved);
    let left = "trunkline_streams_left_total{reason=\"rebalance\"}";
    assert_eq!(metric(&a, left).await + metric(&b, left).await, moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_moved_where_it_is_off() {
    let redis = redis().await;
    nothing_moves(&redis, json!({"enabled": false, "after": "1s", "minAge": "0s"})).await;
}

/// One of two gateways has all the streams, and keeps them.
async fn nothing_moves(redis: &RedisServer, rebalance: Value) {
    let (a, b) = tokio::join!(gateway(redis, rebalance.clone()), gateway(redis, rebalance));
    let _fleet = Fleet::start(&urls(&[&a]), 30).await;
    until(LIMIT, "each knows the other", async || {
        metric(&a, "trunkline_gateways").await + metric(&b, "trunkline_gateways").await == 4
    })
    .await;
    tokio::time::sleep(REST).await;
    assert_eq!((streams(&a).await, asked(&a).await), (30, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_too_young_is_not_asked() {
    let redis = redis().await;
    let young = json!({"after": "1s", "minAge": "1h"});
    nothing_moves(&redis, young).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_balancer_of_connections_moved_streams_come_on_new_connections() {
    let redis = redis().await;
    let (a, b) = tokio::join!(gateway(&redis, rebalance()), gateway(&redis, rebalance()));
    let proxy = Proxy::start(a.port()).await;
    let fleet = Fleet::start(&[proxy.gateway_url()], 16).await;
    let before = proxy.connections();
    // Each node has one connection, which it would use as long as it is open.
    assert_eq!((streams(&a).await, before), (16, 16));
    proxy.move_to(b.port());
    let flow = Flow::start(&fleet, &urls(&[&a, &b]), Duration::from_millis(5));
    until(EVEN, "half of them have moved", async || {
        (streams(&a).await, streams(&b).await) == (8, 8)
    })
    .await;
    // An attempt may have been given up on a slow machine.
    assert!(proxy.connections() - before >= 8);
    assert_eq!(asked(&a).await, 8);
    let count = flow.end().await;
    fleet.has_all(count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_come_back_are_left_alone_after_one_attempt() {
    let redis = redis().await;
    let (a, _b) = tokio::join!(gateway(&redis, rebalance()), gateway(&redis, rebalance()));
    // Every connection leads to the first one.
    let proxy = Proxy::start(a.port()).await;
    let fleet = Fleet::start(&[proxy.gateway_url()], 16).await;
    let flow = Flow::start(&fleet, &urls(&[&a]), Duration::from_millis(5));
    a.stderr_has("most of the streams came back", EVEN).await;
    let moved = asked(&a).await;
    assert_eq!(moved, 8);
    until(LIMIT, "all are back", async || streams(&a).await == 16).await;
    tokio::time::sleep(REST).await;
    assert_eq!(asked(&a).await, moved, "the pause is a minute");
    let count = flow.end().await;
    fleet.has_all(count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_on_elsewhere_at_the_limit_of_their_age() {
    let redis = redis().await;
    let limits = json!({"maxStreamAge": "2s"});
    let off = json!({"enabled": false});
    let (a, b) = tokio::join!(
        gateway_with(&redis, off.clone(), limits.clone()),
        gateway_with(&redis, off, limits)
    );
    let all = urls(&[&a, &b]);
    let fleet = Fleet::start(&all, 6).await;
    let flow = Flow::start(&fleet, &all, Duration::from_millis(5));
    until(EVEN, "all have moved twice", async || {
        fleet.nodes.iter().all(|(seen, _)| seen.lock().gateways.len() >= 3)
    })
    .await;
    for (seen, _) in &fleet.nodes {
        let seen = seen.lock();
        let elsewhere = seen.gateways.windows(2).all(|pair| pair[0] != pair[1]);
        assert!(elsewhere, "{:?}", seen.gateways);
    }
    let reasons = fleet.reasons();
    assert!(reasons.iter().all(|reason| reason.starts_with("max age: ")), "{reasons:?}");
    let count = flow.end().await;
    fleet.has_all(count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_goes_on_elsewhere_with_its_connection_and_at_the_limit_of_its_age() {
    let redis = redis().await;
    let limits = json!({"maxStreamAge": "2s"});
    let a = gateway_with(&redis, json!({"enabled": false}), limits).await;
    let asked = async |producer: &mut TestProducer| {
        let response = tokio::time::timeout(LIMIT, producer.next()).await.expect("in time");
        let Ok(Some(Response::Draining(draining))) = response else { panic!("{response:?}") };
        let status = producer.next().await.expect_err("the end");
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
        draining.reason
    };
    // Alone: at the limit of its own age.
    let node = TestNode::connect(&a, "alone").await;
    let mut producer = node.producer(PUBLISHERS[0]).await.unwrap();
    assert!(asked(&mut producer).await.starts_with("max age: "));
    // With a stream of events that is older by a second, on one connection.
    let node = TestNode::connect(&a, "both").await;
    let events = node.subscribe(node.request()).await;
    events.subscribed().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut producer = node.producer(PUBLISHERS[1]).await.unwrap();
    let opened = Instant::now();
    assert!(asked(&mut producer).await.starts_with("max age: "));
    assert!(opened.elapsed() < Duration::from_millis(1700), "{:?}", opened.elapsed());
    events.end(LIMIT).await.expect_err("the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_gateways_restart_at_once_under_load() {
    let redis = redis().await;
    let (a, b, c) = tokio::join!(
        gateway(&redis, rebalance()),
        gateway(&redis, rebalance()),
        gateway(&redis, rebalance())
    );
    let all = urls(&[&a, &b, &c]);
    let fleet = Fleet::start(&all, 60).await;
    let flow = Flow::start(&fleet, &all, Duration::from_millis(2));
    flow.goes_on(100).await;
    for _ in 0..2 {
        // Killed at once: no stream is asked to leave, and no gateway is left that has the events.
        for gateway in [&a, &b, &c] {
            gateway.kill_9();
        }
        tokio::join!(a.restart(), b.restart(), c.restart());
        flow.goes_on(100).await;
    }
    let count = flow.end().await;
    fleet.has_all(count).await;
}

/// Restarts gateways one after the other while nodes take events. Returns the delays of all
/// deliveries, the shortest first, and the time that the restarts took.
async fn rolling_restart(gateways: usize, nodes: usize, pause: Duration) -> (Vec<Duration>, u64) {
    let redis = redis().await;
    let starting = (0..gateways).map(|_| gateway(&redis, rebalance()));
    let gateways = futures_util::future::join_all(starting).await;
    let all: Vec<&Gateway> = gateways.iter().collect();
    let urls = urls(&all);
    let fleet = Fleet::start(&urls, nodes).await;
    let flow = Flow::start(&fleet, &urls, pause);
    flow.goes_on(20).await;
    for gateway in &all {
        gateway.terminate(LIMIT).await;
        gateway.restart().await;
        flow.goes_on(10).await;
    }
    let most = (nodes / gateways.len()) as u64 * 11 / 10 + 6;
    until(EVEN, "the streams are even", async || {
        let mut counts = Vec::new();
        for gateway in &all {
            counts.push(streams(gateway).await);
        }
        counts.iter().sum::<u64>() == nodes as u64 && counts.iter().all(|count| *count <= most)
    })
    .await;
    let moved = all_asked(&all).await;
    let count = flow.end().await;
    (fleet.has_all(count).await, moved)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_loses_nothing_and_ends_even() {
    let (delays, _) = rolling_restart(3, 150, Duration::from_millis(20)).await;
    // How late events are depends on the machine; half of them have nothing to wait for.
    assert!(percentile(&delays, 0.5) < Duration::from_secs(1));
}

/// The long form: `TRUNKLINE_TEST_NODES=3000 cargo test --release --test nodes -- --ignored
/// --nocapture a_rolling_restart_of_ten_gateways`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, and a machine for itself"]
async fn a_rolling_restart_of_ten_gateways() {
    let nodes = std::env::var("TRUNKLINE_TEST_NODES").ok().and_then(|nodes| nodes.parse().ok());
    let nodes = nodes.unwrap_or(1000);
    let begun = Instant::now();
    let (delays, moved) = rolling_restart(10, nodes, Duration::from_millis(200)).await;
    let of = |part| percentile(&delays, part);
    println!(
        "{nodes} nodes, {} deliveries in {:.0?}: p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?}, max {:.1?}; \
         {moved} streams moved to even out",
        delays.len(),
        begun.elapsed(),
        of(0.5),
        of(0.99),
        of(0.999),
        of(1.0),
    );
    assert!(of(0.99) < Duration::from_secs(1), "p99 {:?}", of(0.99));
}

//! A gateway under attack, and two well-behaved nodes that it serves meanwhile.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::transport::Endpoint;
use trunkline_proto::v1::coordination_service_client::CoordinationServiceClient;

use crate::{
    support::{
        Collector, Gateway, GatewayOptions, LIMIT, TestNode,
        events::{queue_refresh, with_id},
        until,
    },
    wire::HOSTILE,
};

/// The time within which the well-behaved node receives each event. Generous, since machines that
/// run tests are busy.
const MAX_LATENCY: Duration = Duration::from_secs(5);

/// Bytes by which the gateway's memory may grow under an attack: much less than what the attacks
/// send.
const MAX_GROWTH: u64 = 64 << 20;

/// Events during an attack. An attack that is over sooner is repeated.
const MIN_EVENTS: usize = 50;

/// The pause between two events of the well-behaved node.
const PAUSE: Duration = Duration::from_millis(20);

/// A gateway with limits, and what it held before the attack.
pub struct Target {
    pub gateway: Gateway,
    files_before: usize,
    memory_before: u64,
}

/// Two well-behaved nodes: one publishes, the other receives.
pub struct Bystander {
    publisher: JoinHandle<(usize, Duration)>,
    collector: Arc<Collector>,
    seen: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Target {
    pub async fn new(limits: Value) -> Target {
        Target::with(GatewayOptions::embedded().set("limits", limits)).await
    }

    pub async fn with(options: GatewayOptions) -> Target {
        let gateway = Gateway::start(options).await;
        // Everything that is created on first use exists before it is measured.
        let node = TestNode::connect(&gateway, "first").await;
        let collector = node.subscribe(node.request()).await;
        node.publish(vec![queue_refresh()]).await.unwrap();
        drop((collector, node));
        let mut target = Target { gateway, files_before: 0, memory_before: 0 };
        target.metric_is("connections", 0.0).await;
        target.files_before = target.files();
        target.memory_before = target.gateway.rss_bytes();
        target
    }

    /// Starts the well-behaved nodes. They publish and receive until
    /// [`Bystander::was_unaffected`].
    pub async fn bystander(&self) -> Bystander {
        let (publisher, subscriber) = (
            TestNode::connect(&self.gateway, "bystander-p").await,
            TestNode::connect(&self.gateway, "bystander-s").await,
        );
        let collector = Arc::new(subscriber.subscribe(subscriber.request()).await);
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted, arriving) = (stop.clone(), seen.clone(), collector.clone());
        let publisher = tokio::spawn(async move {
            let (mut count, mut worst) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let (id, begun) = (format!("bystander-{count}"), Instant::now());
                publisher.publish(vec![with_id(&id, queue_refresh())]).await.unwrap();
                count += 1;
                // The latest first: hostile nodes publish too, and much.
                let has = |ids: &[String]| ids.iter().rev().any(|seen| *seen == id);
                arriving.wait(LIMIT, &id, |all| has(&all.event_ids).then_some(())).await;
                worst = worst.max(begun.elapsed());
                counted.store(count, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
            (count, worst)
        });
        Bystander { publisher, collector, seen, stop }
    }

    /// A node with the address of the hostile clients.
    pub async fn hostile_node(&self, node_id: &str) -> TestNode {
        let endpoint = Endpoint::from_shared(self.gateway.url()).unwrap();
        let endpoint = endpoint.local_address(Some(HOSTILE.parse().unwrap()));
        let channel = endpoint.connect().await.unwrap();
        let client = CoordinationServiceClient::new(channel);
        TestNode { node_id: node_id.into(), client }
    }

    /// The value of a metric, without its prefix `trunkline_`.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.gateway.admin("/metrics").await;
        let line = format!("trunkline_{series} ");
        let value = text.lines().find_map(|text| text.strip_prefix(&line));
        value.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
    }

    /// Waits until a metric has this value.
    pub async fn metric_is(&self, series: &str, expected: f64) {
        let what = format!("{series} is {expected}");
        until(LIMIT, &what, async || (self.metric(series).await - expected).abs() < 0.1).await;
    }

    /// The number of requests and connections that this limit has refused or closed.
    pub async fn refused(&self, limit: &str) -> f64 {
        self.metric(&format!("refused_total{{limit=\"limits.{limit}\"}}")).await
    }

    /// Asserts that the gateway's memory has not grown much.
    pub fn memory_is_bounded(&self) {
        let grown = self.gateway.rss_bytes().saturating_sub(self.memory_before);
        eprintln!("memory grew by {} KiB", grown >> 10);
        assert!(grown < MAX_GROWTH, "memory grew by {} MiB", grown >> 20);
    }

    /// Repeats an attack while the well-behaved nodes run. Asserts that they are unaffected, and
    /// that everything is freed afterwards.
    pub async fn withstands(&self, attack: impl AsyncFnMut()) {
        let bystander = self.bystander().await;
        bystander.endures(attack).await;
        self.withstood(bystander).await;
    }

    /// Asserts after an attack that the well-behaved nodes were unaffected and everything is freed.
    pub async fn withstood(&self, bystander: Bystander) {
        bystander.was_unaffected().await;
        self.is_freed().await;
    }

    /// Waits until everything that was held for connections is freed. All must be closed.
    pub async fn is_freed(&self) {
        self.metric_is("connections", 0.0).await;
        self.metric_is("streams", 0.0).await;
        self.metric_is("requests_in_flight", 0.0).await;
        self.metric_is("pending_request_bytes", 0.0).await;
        let what = format!("{} open files", self.files_before);
        until(LIMIT, &what, async || self.files() <= self.files_before).await;
        self.memory_is_bounded();
    }

    /// The number of files that the gateway has open, sockets included.
    pub fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.gateway.pid())).unwrap().count()
    }
}

impl Bystander {
    /// Repeats an attack until the nodes have received [`MIN_EVENTS`] more events.
    pub async fn endures(&self, mut attack: impl AsyncFnMut()) {
        let before = self.seen.load(Ordering::Relaxed);
        let mut times = 0;
        while self.seen.load(Ordering::Relaxed) < before + MIN_EVENTS {
            assert!(!self.publisher.is_finished(), "the well-behaved nodes failed");
            attack().await;
            times += 1;
        }
        eprintln!("{times} attacks");
    }

    /// Asserts that every event was received, in order, in time.
    pub async fn was_unaffected(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (count, worst) = self.publisher.await.expect("every publish is accepted");
        eprintln!("{count} events during the attack; the slowest took {worst:?}");
        assert!(count > 0 && worst < MAX_LATENCY, "{count} events, the slowest took {worst:?}");
        let expected: Vec<String> = (0..count).map(|n| format!("bystander-{n}")).collect();
        // Hostile nodes publish too.
        let recording = self.collector.recording();
        let own = recording.event_ids.iter().filter(|id| id.starts_with("bystander-"));
        assert_eq!(own.cloned().collect::<Vec<_>>(), expected);
        assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    }
}

/// Timeouts that a test can wait for.
pub fn short_timeouts() -> Value {
    json!({ "handshakeTimeout": "1s", "requestTimeout": "1s", "idleTimeout": "2s" })
}

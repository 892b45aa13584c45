//! A gateway under attack, and two nodes who want to know nothing of it.

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

/// Within which the well-behaved node gets each event, attack or not. Generous: machines that run tests are busy.
const BOUND: Duration = Duration::from_secs(5);

/// How much more memory the gateway may hold under an attack than before: much less than what the attack would like it to.
pub const MEMORY: u64 = 64 << 20;

/// An attack that is over at once proves nothing of those beside it: it is repeated until they have seen so many events.
const ENOUGH: usize = 50;

/// How often the well-behaved node publishes.
const PACE: Duration = Duration::from_millis(20);

/// A gateway with limits, before and during an attack.
pub struct Scene {
    pub gateway: Gateway,
    files_before: usize,
    memory_before: u64,
}

/// The nodes beside an attack.
pub struct Bystander {
    publisher: JoinHandle<(usize, Duration)>,
    collector: Arc<Collector>,
    seen: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Scene {
    pub async fn new(limits: Value) -> Scene {
        Scene::with(GatewayOptions::embedded().set("limits", limits)).await
    }

    pub async fn with(options: GatewayOptions) -> Scene {
        let gateway = Gateway::start(options).await;
        // So that what is made on first use is there already.
        let node = TestNode::connect(&gateway, "first").await;
        let collector = node.subscribe(node.request()).await;
        node.publish(vec![queue_refresh()]).await.unwrap();
        drop((collector, node));
        let mut scene = Scene { gateway, files_before: 0, memory_before: 0 };
        scene.metric_is("connections", 0.0).await;
        scene.files_before = scene.files();
        scene.memory_before = scene.gateway.rss_bytes();
        scene
    }

    /// Nodes that publish and receive until they are asked how it went.
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
                let (id, begun) = (format!("b{count}"), Instant::now());
                publisher.publish(vec![with_id(&id, queue_refresh())]).await.unwrap();
                count += 1;
                // The last ones first: others publish too, and much.
                let has = |ids: &[String]| ids.iter().rev().any(|seen| *seen == id);
                arriving.wait(LIMIT, &id, |all| has(&all.event_ids).then_some(())).await;
                worst = worst.max(begun.elapsed());
                counted.store(count, Ordering::Relaxed);
                tokio::time::sleep(PACE).await;
            }
            (count, worst)
        });
        Bystander { publisher, collector, seen, stop }
    }

    /// A node that comes from where the hostile ones do.
    pub async fn hostile_node(&self, node_id: &str) -> TestNode {
        let endpoint = Endpoint::from_shared(self.gateway.url()).unwrap();
        let endpoint = endpoint.local_address(Some(HOSTILE.parse().unwrap()));
        let channel = endpoint.connect().await.unwrap();
        let client = CoordinationServiceClient::new(channel);
        TestNode { node_id: node_id.into(), client }
    }

    /// The value of a metric.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.gateway.admin("/metrics").await;
        let line = format!("trunkline_{series} ");
        let value = text.lines().find_map(|text| text.strip_prefix(&line));
        value.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub async fn metric_is(&self, series: &str, expected: f64) {
        let what = format!("{series} is {expected}");
        until(LIMIT, &what, async || (self.metric(series).await - expected).abs() < 0.1).await;
    }

    /// How often a limit refused or ended something.
    pub async fn refused(&self, limit: &str) -> f64 {
        self.metric(&format!("refused_total{{limit=\"limits.{limit}\"}}")).await
    }

    /// The gateway holds little more memory than before.
    pub fn memory_is_bounded(&self) {
        let grown = self.gateway.rss_bytes().saturating_sub(self.memory_before);
        eprintln!("memory grew by {} KiB", grown >> 10);
        assert!(grown < MEMORY, "memory grew by {} MiB", grown >> 20);
    }

    /// Everything that was held for connections is free again, once they are closed.
    pub async fn is_as_before(&self) {
        self.metric_is("connections", 0.0).await;
        self.metric_is("streams", 0.0).await;
        self.metric_is("requests_under_way", 0.0).await;
        self.metric_is("pending_request_bytes", 0.0).await;
        let what = format!("{} open files", self.files_before);
        until(LIMIT, &what, async || self.files() <= self.files_before).await;
        self.memory_is_bounded();
    }

    /// Files that the gateway has open, sockets among them.
    pub fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.gateway.pid())).unwrap().count()
    }
}

impl Bystander {
    /// Repeats an attack until the nodes have seen [`ENOUGH`] events beside it.
    pub async fn endures(&self, mut attack: impl AsyncFnMut()) {
        let before = self.seen.load(Ordering::Relaxed);
        let mut times = 0;
        while self.seen.load(Ordering::Relaxed) < before + ENOUGH {
            assert!(!self.publisher.is_finished(), "the nodes beside the attack ended");
            attack().await;
            times += 1;
        }
        eprintln!("{times} attacks");
    }

    /// Whether all came, in order, in time.
    pub async fn saw_nothing(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (count, worst) = self.publisher.await.expect("a publisher that is served");
        eprintln!("{count} events beside the attack; the slowest took {worst:?}");
        assert!(count > 0 && worst < BOUND, "{count} events, the slowest took {worst:?}");
        let expected: Vec<String> = (0..count).map(|n| format!("b{n}")).collect();
        // Others publish too.
        let recording = self.collector.recording();
        let own = recording.event_ids.iter().filter(|id| id.starts_with('b'));
        assert_eq!(own.cloned().collect::<Vec<_>>(), expected);
        assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    }
}

/// Limits that a test can wait for.
pub fn short() -> Value {
    json!({ "handshakeTimeout": "1s", "requestTimeout": "1s", "idleTimeout": "2s" })
}

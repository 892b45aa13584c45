//! A real Envoy in front of two gateways, with the configuration of deploy/envoy: its health checks
//! find the gateways that serve, streams move when a gateway is killed or drained, and no event is
//! lost. Envoy's own statistics show what it did.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::support::{
    Gateway, GatewayOptions, Keep, LIMIT, RedisOptions, RedisServer, TestNode,
    events::{large, mailbox_change, with_id},
    folder,
    ports::Port,
    process::{Process, Program},
    shared, tools, until,
    wait::attempt,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use trunkline_client::{Client, Notification, SubscribeOptions, Subscription};

/// Nodes that subscribe through Envoy.
const NODES: usize = 6;

/// An Envoy process: its gRPC listener and its admin port.
struct Envoy {
    listen: Port,
    admin: Port,
    _process: Process,
    _folder: TempDir,
}

impl Envoy {
    /// Starts Envoy in front of two gateways; returns once both are healthy.
    async fn start(gateways: [&Gateway; 2]) -> Envoy {
        let (listen, admin, folder) = (Port::free(), Port::free(), folder::new());
        let mut config = include_str!("../../deploy/envoy/envoy.yaml").to_owned();
        let ports = [
            (9901, admin.number()),
            (7400, listen.number()),
            (7420, gateways[0].port()),
            (7430, gateways[1].port()),
        ];
        for (from, to) in ports {
            let (from, to) = (format!("port_value: {from} "), format!("port_value: {to} "));
            assert_eq!(config.matches(&from).count(), 1, "{from}");
            config = config.replace(&from, &to);
        }
        let file = folder.path().join("envoy.yaml");
        fs::write(&file, config).unwrap();
        let file = file.display().to_string();
        // Several Envoys may run at one time, so none may take part in hot restarts.
        let args = ["-c", &file, "--disable-hot-restart", "--concurrency", "2", "-l", "warning"];
        let process = Process::start("envoy", Program::new(tools::envoy(), args));
        let envoy = Envoy { listen, admin, _process: process, _folder: folder };
        envoy.stat_is("membership_healthy", 2).await;
        envoy
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.listen.number())
    }

    /// A statistic of the cluster of gateways; None while Envoy does not answer.
    async fn stat(&self, name: &str) -> Option<u64> {
        self.any_stat("cluster.gateways", &format!("cluster.gateways.{name}")).await
    }

    async fn any_stat(&self, filter: &str, name: &str) -> Option<u64> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin.number())).await.ok()?;
        let request = format!(
            "GET /stats?filter={filter} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let name = format!("{name}: ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok())
    }

    async fn stat_is(&self, name: &str, expected: u64) {
        let what = format!("{name} is {expected}");
        until(LIMIT, &what, async || self.stat(name).await == Some(expected)).await;
    }
}

/// Nodes that subscribe through Envoy, and one that publishes through it.
struct Traffic {
    stop: Arc<AtomicBool>,
    publisher: JoinHandle<Vec<String>>,
    nodes: Vec<JoinHandle<Vec<Notification>>>,
}

impl Traffic {
    /// Subscribes the nodes, and starts to publish: the client retries each event under one request
    /// id until it is acknowledged.
    async fn start(envoy: &Envoy) -> Traffic {
        let mut nodes = Vec::new();
        for n in 0..NODES {
            let client = Client::builder(format!("n{n}")).gateway(envoy.url()).build().unwrap();
            let mut subscription = client.subscribe(SubscribeOptions::new());
            while !matches!(next(&mut subscription).await, Notification::Subscribed(_)) {}
            nodes.push(tokio::spawn(record(subscription)));
        }
        let publisher = Client::builder("p").gateway(envoy.url()).build().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let publisher = tokio::spawn(async move {
            let mut ids = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let id = format!("e{}", ids.len());
                let event = with_id(&id, mailbox_change("a1", ids.len() as u64));
                publisher.publish([event]).await.expect("acknowledged, after retries");
                ids.push(id);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            publisher.publish([with_id("last", mailbox_change("a1", 0))]).await.unwrap();
            ids.push("last".into());
            ids
        });
        Traffic { stop, publisher, nodes }
    }

    /// Asserts that every node received every event once, in order, without a gap.
    async fn was_complete(self) {
        self.stop.store(true, Ordering::Relaxed);
        let published = self.publisher.await.unwrap();
        eprintln!("{} events", published.len());
        assert!(published.len() > 100, "{}", published.len());
        for node in self.nodes {
            let seen = node.await.unwrap();
            let ids = seen.iter().filter_map(|seen| match seen {
                Notification::Event(event) => Some(event.event_id.clone()),
                _ => None,
            });
            assert_eq!(ids.collect::<Vec<_>>(), published);
            let gap = seen.iter().find(|seen| matches!(seen, Notification::Gap(_)));
            assert!(gap.is_none(), "{gap:?}");
        }
    }
}

async fn next(subscription: &mut Subscription) -> Notification {
    let next = tokio::time::timeout(LIMIT, subscription.next()).await;
    next.expect("a notification in time").expect("no end").expect("no error")
}

/// All notifications up to the event `last`.
async fn record(mut subscription: Subscription) -> Vec<Notification> {
    let mut all = Vec::new();
    loop {
        let notification = next(&mut subscription).await;
        let last = matches!(&notification, Notification::Event(event) if event.event_id == "last");
        all.push(notification);
        if last {
            return all;
        }
    }
}

async fn streams(gateway: &Gateway) -> u32 {
    let mut client = gateway.client().await;
    client.get_status(trunkline_proto::v1::GetStatusRequest {}).await.unwrap().into_inner().streams
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_move_without_loss_when_a_gateway_is_killed_or_drained() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    // Envoy checks health once a second, so streams are asked to leave later than that.
    let drain = serde_json::json!({ "delay": "2s", "spread": "1s" });
    let options = || GatewayOptions::redis(&redis.url(), &prefix).set("drain", drain.clone());
    let (one, two) = tokio::join!(Gateway::start(options()), Gateway::start(options()));
    let envoy = Envoy::start([&one, &two]).await;
    let traffic = Traffic::start(&envoy).await;
    let all = u32::try_from(NODES).unwrap();
    assert_eq!(streams(&one).await + streams(&two).await, all);
    assert!(streams(&one).await > 0 && streams(&two).await > 0, "both have streams");

    // Killed: the health check finds it, and all streams move to the other gateway.
    one.kill_9();
    envoy.stat_is("membership_healthy", 1).await;
    assert!(envoy.stat("health_check.failure").await >= Some(1));
    until(LIMIT, "all streams on the other gateway", async || streams(&two).await == all).await;

    // Restarted: it is healthy again, and gets all streams when the other gateway drains.
    one.restart().await;
    envoy.stat_is("membership_healthy", 2).await;
    let connects = envoy.stat("upstream_cx_connect_fail").await;
    let failures = envoy.stat("health_check.failure").await;
    let ended = two.terminate(LIMIT).await;
    assert!(ended.status.success(), "{ended:?}");
    until(LIMIT, "all streams on the first gateway", async || streams(&one).await == all).await;
    envoy.stat_is("membership_healthy", 1).await;
    // The health check failed before the gateway had stopped.
    assert!(envoy.stat("health_check.failure").await > failures);
    eprintln!("failed connects before the drain: {connects:?}");

    assert!(envoy.stat("upstream_rq_total").await >= Some(100));
    traffic.was_complete().await;
}

/// The shared connections between Envoy and the gateways are not filled by what one node leaves
/// unread.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_read_stops_no_other_behind_envoy() {
    const ROUNDS: usize = 60;
    const EVENTS: usize = 20;
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let options = || GatewayOptions::redis(&redis.url(), &prefix);
    let (one, two) = tokio::join!(Gateway::start(options()), Gateway::start(options()));
    let envoy = Envoy::start([&one, &two]).await;
    // On both gateways, and so on each connection between Envoy and them.
    let mut stuck = Vec::new();
    for n in 0..8 {
        let node = TestNode::connect_to(&envoy.url(), format!("stuck-{n}")).await;
        stuck.push(node.stream(node.request()).await.unwrap());
    }
    assert!(streams(&one).await > 0 && streams(&two).await > 0, "both have streams");
    let mut readers = Vec::new();
    for n in 0..4 {
        let node = TestNode::connect_to(&envoy.url(), format!("reader-{n}")).await;
        readers.push(node.collect(node.request(), Keep::Ids).await.unwrap());
    }
    for reader in &readers {
        reader.subscribed().await;
    }
    let memory = async || envoy.any_stat("server.memory", "server.memory_allocated").await.unwrap();
    let before = memory().await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let began = std::time::Instant::now();
    for round in 0..ROUNDS {
        let event = |n: usize| with_id(format!("e-{round}-{n}"), large(48 << 10));
        publisher.publish((0..EVENTS).map(event).collect()).await.unwrap();
        // All others have it, each time.
        for reader in &readers {
            reader.event(&format!("e-{round}-{}", EVENTS - 1), LIMIT).await;
        }
    }
    eprintln!("{} MiB in {:?}", ROUNDS * EVENTS * 48 / 1024, began.elapsed());
    // What nobody reads stays in the gateways, of which each has it once. Envoy looks at its memory
    // every five seconds: what it says may be from the middle of that.
    attempt(LIMIT, "Envoy holds little", async || {
        let more = memory().await.saturating_sub(before);
        (more < 24 << 20).then_some(()).ok_or_else(|| format!("{more} bytes more"))
    })
    .await;
    for reader in &readers {
        assert_eq!(reader.event_ids().len(), ROUNDS * EVENTS);
    }
    drop(stuck);
}

//! What is compared: its servers, how a node publishes to it, and how a node hears from it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures_util::StreamExt;
use hdrhistogram::Histogram;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost::Message;
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use tokio::{sync::oneshot, task::JoinSet};
use tonic::{client::Grpc, transport::Channel};
use trunkline::proto::v1::SubscribeRequest;

use crate::{
    clock, floor,
    load::Payload,
    raw::{Raw, each_event, put_field},
    support::{
        Gateway, GatewayOptions, RedisOptions, RedisServer,
        gateway::connect,
        ports::Port,
        process::{Process, Program},
    },
};

/// The Redis channel and the NATS subject of the plain contestants.
const CHANNEL: &str = "events";
const PUBLISH: &str = "/trunkline.v1.CoordinationService/Publish";
const SUBSCRIBE: &str = "/trunkline.v1.CoordinationService/Subscribe";

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// Trunkline in one process, without Redis.
    Embedded,
    /// Trunkline on a standalone Redis.
    Redis {
        /// How many gateways; subscribers are spread over them, the publisher is at the first.
        gateways: usize,
    },
    /// Redis pub/sub: each node has a connection of its own.
    PlainRedis,
    /// NATS core: each node has a connection of its own.
    Nats,
    /// tonic, streaming batches of so many events from memory; nothing is published.
    Floor {
        /// Events in a message.
        batch: u8,
    },
    /// A tonic unary round trip.
    Echo,
}

impl Contestant {
    /// How it is called in the tables.
    pub fn name(self) -> String {
        match self {
            Contestant::Embedded => "trunkline embedded".into(),
            Contestant::Redis { gateways: 1 } => "trunkline redis".into(),
            Contestant::Redis { gateways } => format!("trunkline redis, {gateways} gateways"),
            Contestant::PlainRedis => "plain redis".into(),
            Contestant::Nats => "nats core".into(),
            Contestant::Floor { batch } => format!("floor: tonic stream, {batch} a message"),
            Contestant::Echo => "floor: tonic unary".into(),
        }
    }
}

/// A contestant's running servers.
pub struct System {
    contestant: Contestant,
    gateways: Vec<Gateway>,
    redis: Option<RedisServer>,
    other: Option<(Process, Port)>,
}

impl System {
    /// Starts what the contestant needs. None: something is missing on this machine.
    pub async fn start(contestant: Contestant) -> Option<System> {
        let mut system = System { contestant, gateways: vec![], redis: None, other: None };
        match contestant {
            Contestant::Embedded => {
                system.gateways.push(Gateway::start(GatewayOptions::embedded()).await);
            }
            Contestant::Redis { gateways } => {
                let redis = RedisServer::start(RedisOptions::default()).await;
                for _ in 0..gateways {
                    let options = GatewayOptions::redis(&redis.url(), "bench");
                    system.gateways.push(Gateway::start(options).await);
                }
                system.redis = Some(redis);
            }
            Contestant::PlainRedis => {
                system.redis = Some(RedisServer::start(RedisOptions::default()).await);
            }
            Contestant::Nats => {
                let server = nats_server()?;
                let port = Port::free();
                let args = ["-a", "127.0.0.1", "-p", &port.number().to_string()];
                let process = Process::start("nats-server", Program::new(server, args));
                system.other = Some((process, port));
            }
            Contestant::Floor { .. } | Contestant::Echo => {
                let port = Port::free();
                let own = std::env::current_exe().expect("the bench's own path");
                let args = [floor::ARGUMENT, &port.number().to_string()];
                system.other = Some((Process::start("floor", Program::new(own, args)), port));
            }
        }
        Some(system)
    }

    /// CPU seconds used so far by the gateways, or what stands in their place, and by Redis.
    pub fn cpu_seconds(&self) -> (f64, f64) {
        let gateways: f64 = self.gateways.iter().map(|gateway| cpu_of(gateway.pid())).sum();
        let other = self.other.as_ref().map_or(0.0, |(process, _)| cpu_of(process.pid()));
        let redis = self.redis.as_ref().map_or(0.0, |redis| cpu_of(redis.pid()));
        (gateways + other, redis)
    }

    /// Resident memory of the gateways, in bytes.
    pub fn rss_bytes(&self) -> u64 {
        self.gateways.iter().map(Gateway::rss_bytes).sum()
    }

    /// URL of the gateway for a node.
    pub fn gateway_url(&self, node: usize) -> String {
        self.gateways[node % self.gateways.len()].url()
    }

    /// A connection on which a node publishes.
    pub async fn publisher(&self) -> Publisher {
        match self.contestant {
            Contestant::Embedded | Contestant::Redis { .. } => {
                let channel = connect(&self.gateways[0].url()).await.expect("a connection");
                Publisher::Trunkline(channel)
            }
            Contestant::PlainRedis => Publisher::Redis(self.redis_connection().await),
            Contestant::Nats => Publisher::Nats(nats(self.port()).await),
            Contestant::Floor { .. } => Publisher::Nobody,
            Contestant::Echo => Publisher::Echo(self.floor_channel().await),
        }
    }

    /// Starts subscriber number `node` in `tasks`; returns when it is sure to hear what is published from now on.
    pub async fn subscribe(&self, node: usize, heard: Arc<Heard>, tasks: &mut JoinSet<()>) {
        let (ready, is_ready) = oneshot::channel();
        match self.contestant {
            Contestant::Embedded | Contestant::Redis { .. } => {
                let channel = connect(&self.gateway_url(node)).await.expect("a connection");
                let request = subscribe_request(node);
                tasks.spawn(listen(channel, SUBSCRIBE, request, heard, ready));
            }
            Contestant::Floor { batch } => {
                let mut request = Payload.delivered(0);
                request.push(batch);
                let channel = self.floor_channel().await;
                tasks.spawn(listen(channel, floor::STREAM, request.into(), heard, ready));
            }
            Contestant::PlainRedis => {
                let url = self.redis.as_ref().expect("it runs").url();
                let client = redis::Client::open(url).expect("a URL");
                let mut connection = client.get_async_pubsub().await.expect("a connection");
                connection.subscribe(CHANNEL).await.expect("subscribed");
                let _ = ready.send(());
                tasks.spawn(async move {
                    let mut messages = connection.into_on_message();
                    while let Some(message) = messages.next().await {
                        heard.event(message.get_payload_bytes());
                    }
                });
            }
            Contestant::Nats => {
                let client = nats(self.port()).await;
                let mut messages = client.subscribe(CHANNEL).await.expect("subscribed");
                client.flush().await.expect("flushed");
                let _ = ready.send(());
                tasks.spawn(async move {
                    while let Some(message) = messages.next().await {
                        heard.event(&message.payload);
                    }
                });
            }
            Contestant::Echo => return,
        }
        is_ready.await.expect("the subscription is confirmed");
    }

    async fn redis_connection(&self) -> MultiplexedConnection {
        let url = self.redis.as_ref().expect("it runs").url();
        let client = redis::Client::open(url).expect("a URL");
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        connection.expect("a connection")
    }

    async fn floor_channel(&self) -> Channel {
        let url = format!("http://127.0.0.1:{}", self.port());
        for _ in 0..100 {
            if let Ok(channel) = connect(&url).await {
                return channel;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the floor did not come up");
    }

    fn port(&self) -> u16 {
        self.other.as_ref().expect("it runs").1.number()
    }
}

/// A connection on which a node publishes.
#[derive(Clone)]
pub enum Publisher {
    /// To a gateway.
    Trunkline(Channel),
    /// To Redis.
    Redis(MultiplexedConnection),
    /// To NATS.
    Nats(async_nats::Client),
    /// Asks for its own request back.
    Echo(Channel),
    /// The floor sends by itself.
    Nobody,
}

impl Publisher {
    /// Publishes `count` events that bear the time `at`; returns when they are acknowledged (NATS: when they are handed over,
    /// for it acknowledges nothing).
    pub async fn publish(&self, payload: &Payload, count: usize, at: u64) {
        match self {
            Publisher::Trunkline(channel) => {
                let mut request = Vec::with_capacity(64 + count * 96);
                put_field(&mut request, 1, b"publisher");
                put_field(&mut request, 2, uuid::Uuid::new_v4().to_string().as_bytes());
                let event = payload.published(at);
                for _ in 0..count {
                    put_field(&mut request, 3, &event);
                }
                unary(channel, PUBLISH, request.into()).await;
            }
            Publisher::Redis(connection) => {
                let mut pipeline = redis::pipe();
                let event = payload.delivered(at);
                for _ in 0..count {
                    pipeline.cmd("PUBLISH").arg(CHANNEL).arg(&event).ignore();
                }
                let mut connection = connection.clone();
                pipeline.query_async::<()>(&mut connection).await.expect("published");
            }
            Publisher::Nats(client) => {
                let event = Bytes::from(payload.delivered(at));
                for _ in 0..count {
                    client.publish(CHANNEL, event.clone()).await.expect("published");
                }
            }
            Publisher::Echo(channel) => {
                unary(channel, floor::ECHO, payload.delivered(at).into()).await;
            }
            Publisher::Nobody => std::future::pending().await,
        }
    }
}

/// What one subscriber has heard.
pub struct Heard {
    events: AtomicU64,
    // Nanoseconds from the time that an event bears to its arrival. None: times are not looked at.
    latency: Option<Mutex<Histogram<u64>>>,
}

impl Heard {
    /// Nothing so far. `latency`: whether times are looked at.
    pub fn new(latency: bool) -> Arc<Heard> {
        let histogram =
            || Mutex::new(Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("bounds"));
        Arc::new(Heard { events: AtomicU64::new(0), latency: latency.then(histogram) })
    }

    /// An encoded event has come.
    pub fn event(&self, event: &[u8]) {
        if let Some(latency) = &self.latency {
            let took = clock::now().saturating_sub(Payload::time(event));
            latency.lock().saturating_record(took);
        }
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    /// How many have come.
    pub fn count(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Adds its latencies to `all`.
    pub fn add_latency(&self, all: &mut Histogram<u64>) {
        if let Some(latency) = &self.latency {
            all.add(&*latency.lock()).expect("the same bounds");
        }
    }
}

/// The encoded request of subscriber number `node`: everything, as it comes.
pub fn subscribe_request(node: usize) -> Bytes {
    let request =
        SubscribeRequest { node_id: format!("node-{node}"), ..SubscribeRequest::default() };
    request.encode_to_vec().into()
}

/// Opens a stream; returns when its first message is there.
pub async fn open(channel: &Channel, request: Bytes) -> tonic::Streaming<Bytes> {
    let mut stream = stream(channel, SUBSCRIBE, request).await;
    let first = stream.message().await.expect("a stream that does not fail");
    assert!(first.is_some(), "the stream ended");
    stream
}

async fn stream(channel: &Channel, path: &'static str, request: Bytes) -> tonic::Streaming<Bytes> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    grpc.ready().await.expect("a connection");
    let request = tonic::Request::new(request);
    let answer = grpc.server_streaming(request, PathAndQuery::from_static(path), Raw).await;
    answer.expect("a stream").into_inner()
}

/// Counts what comes on a stream; `ready` is told when the first message is there.
async fn listen(
    channel: Channel,
    path: &'static str,
    request: Bytes,
    heard: Arc<Heard>,
    ready: oneshot::Sender<()>,
) {
    let mut stream = stream(&channel, path, request).await;
    let mut ready = Some(ready);
    while let Some(message) = stream.message().await.expect("a stream that does not fail") {
        if let Some(ready) = ready.take() {
            let _ = ready.send(());
        }
        each_event(&message, |event| heard.event(event));
    }
}

async fn unary(channel: &Channel, path: &'static str, request: Bytes) {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("a connection");
    let request = tonic::Request::new(request);
    let answer = grpc.unary::<Bytes, Bytes, _>(request, PathAndQuery::from_static(path), Raw).await;
    answer.expect("an answer");
}

async fn nats(port: u16) -> async_nats::Client {
    let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
    for _ in 0..100 {
        if let Ok(client) = options.clone().connect(("127.0.0.1", port).to_url()).await {
            return client;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("nats-server did not come up");
}

/// `(host, port)` as NATS takes it.
trait ToUrl {
    fn to_url(&self) -> String;
}

impl ToUrl for (&str, u16) {
    fn to_url(&self) -> String {
        format!("nats://{}:{}", self.0, self.1)
    }
}

/// `nats-server`: what `TRUNKLINE_BENCH_NATS_SERVER` names, or in `PATH`.
fn nats_server() -> Option<std::path::PathBuf> {
    if let Some(named) = std::env::var_os("TRUNKLINE_BENCH_NATS_SERVER") {
        return Some(named.into());
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths)
        .map(|folder| folder.join("nats-server"))
        .find(|file| file.is_file())
}

/// CPU seconds, user and system, of a process so far; the kernel counts in hundredths.
fn cpu_of(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, after) = stat.rsplit_once(") ").expect("a name in brackets");
    let ticks =
        |field: usize| after.split(' ').nth(field).and_then(|text| text.parse::<u32>().ok());
    f64::from(ticks(11).expect("utime") + ticks(12).expect("stime")) / 100.0
}

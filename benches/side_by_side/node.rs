//! A node of each contestant: how it publishes, and how it hears.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost::Message;
use redis::{
    AsyncConnectionConfig, Client, PushInfo, PushKind, Script, Value, aio::MultiplexedConnection,
    cmd,
};
use tokio::{sync::oneshot, task::JoinSet};
use tonic::{Streaming, client::Grpc, transport::Channel};
use trunkline_proto::v1::{Filter, SubscribeRequest};

use crate::{
    contestant::{Contestant, System},
    floor,
    heard::{Heard, time},
    payload::Payload,
    raw::{Raw, Response, id_of, put_field, read_response},
    support::RedisCluster,
};

/// The Redis channel and the NATS subject of the plain contestants.
const CHANNEL: &str = "events";
const PUBLISH: &str = "/trunkline.v1.CoordinationService/Publish";
const SUBSCRIBE: &str = "/trunkline.v1.CoordinationService/Subscribe";

/// The least that gives an event a place for good: a number, an entry of history, and the event to those who listen.
const PLACE: &str = "
    local place = redis.call('INCR', KEYS[1])
    redis.call('XADD', KEYS[2], place .. '-0', 'e', ARGV[2])
    redis.call('PUBLISH', ARGV[1], ARGV[2])
    return place";

/// Who hears on the one connection of the bare Redis.
pub type BareNode = Arc<Mutex<Option<Arc<Heard>>>>;

/// A connection on which a node publishes.
#[derive(Clone)]
pub enum Publisher {
    /// To a gateway, as this node.
    Trunkline(Channel, String),
    /// To Redis.
    Redis(MultiplexedConnection),
    /// To Redis, by a script.
    Placing(MultiplexedConnection, Arc<Script>),
    /// To a channel on each master.
    Sharded(Vec<(String, MultiplexedConnection)>),
    /// To NATS.
    Nats(async_nats::Client),
    /// A request of the floor.
    Floor(Channel, &'static str),
    /// Nothing is sent.
    Sender,
    /// The floor sends by itself.
    Nobody,
}

impl System {
    /// A connection on which a node publishes.
    pub async fn publisher(&self, node: usize) -> Publisher {
        match self.contestant {
            Contestant::Embedded | Contestant::Redis(_) | Contestant::Cluster(_) => {
                Publisher::Trunkline(self.gateway(node).await, format!("publisher-{node}"))
            }
            Contestant::PlainRedis | Contestant::PlainClassic => {
                Publisher::Redis(redis_connection(&self.redis_url(node)).await)
            }
            Contestant::PlainSharded => {
                let mut channels = vec![];
                for (channel, server) in self.channels.iter().zip(self.bus.servers()) {
                    channels.push((channel.clone(), redis_connection(&server.url()).await));
                }
                Publisher::Sharded(channels)
            }
            Contestant::BareRedis => Publisher::Redis(self.bare_connection()),
            Contestant::PlacingRedis => {
                Publisher::Placing(self.bare_connection(), Script::new(PLACE).into())
            }
            Contestant::Nats => Publisher::Nats(nats(self.port()).await),
            Contestant::Stream(_) => Publisher::Nobody,
            Contestant::Relay => Publisher::Floor(self.floor().await, floor::RELAY),
            Contestant::Unary => Publisher::Floor(self.floor().await, floor::PUBLISH),
            Contestant::Echo => Publisher::Floor(self.floor().await, floor::ECHO),
            Contestant::Sender => Publisher::Sender,
        }
    }

    /// Starts subscriber number `node` in `tasks`; returns when it is sure to hear what is published from now on.
    pub async fn subscribe(
        &self,
        node: usize,
        payload: &Payload,
        heard: Arc<Heard>,
        tasks: &mut JoinSet<()>,
    ) {
        match self.contestant {
            Contestant::Embedded | Contestant::Redis(_) | Contestant::Cluster(_) => {
                let request = subscribe_request(node, vec![]);
                listen(self.gateway(node).await, SUBSCRIBE, request, heard, tasks).await;
            }
            Contestant::Stream(_) | Contestant::Relay => {
                let relayed = self.contestant == Contestant::Relay;
                let path = if relayed { floor::RELAYED } else { floor::STREAM };
                let mut request = payload.delivered(0, 0);
                request.extend(self.batch.to_be_bytes());
                listen(self.floor().await, path, request.into(), heard, tasks).await;
            }
            Contestant::PlainRedis | Contestant::PlainClassic => {
                let client = Client::open(self.redis_url(node)).expect("a URL");
                let mut connection = client.get_async_pubsub().await.expect("a connection");
                connection.subscribe(CHANNEL).await.expect("subscribed");
                tasks.spawn(async move {
                    let mut messages = connection.into_on_message();
                    while let Some(message) = messages.next().await {
                        one(&heard, message.get_payload_bytes());
                    }
                });
            }
            Contestant::PlainSharded => {
                let mut held = vec![];
                for (channel, server) in self.channels.iter().zip(self.bus.servers()) {
                    let heard = heard.clone();
                    let mut connection = pushed(&server.url(), move |push| {
                        if push.kind == PushKind::SMessage {
                            message(&push, &heard);
                        }
                    })
                    .await;
                    let subscribe = cmd("SSUBSCRIBE").arg(channel).to_owned();
                    subscribe.exec_async(&mut connection).await.expect("subscribed");
                    held.push(connection);
                }
                tasks.spawn(async move {
                    let _held = held;
                    std::future::pending::<()>().await;
                });
            }
            Contestant::BareRedis | Contestant::PlacingRedis => {
                *self.bare.as_ref().expect("it is connected").1.lock() = Some(heard);
            }
            Contestant::Nats => {
                let client = nats(self.port()).await;
                let mut messages = client.subscribe(CHANNEL).await.expect("subscribed");
                client.flush().await.expect("flushed");
                tasks.spawn(async move {
                    while let Some(message) = messages.next().await {
                        one(&heard, &message.payload);
                    }
                    drop(client);
                });
            }
            Contestant::Unary | Contestant::Echo | Contestant::Sender => {}
        }
    }

    /// Lets the floor's streams go on.
    pub async fn go(&self) {
        unary(&self.floor().await, floor::GO, Bytes::new()).await;
    }

    fn bare_connection(&self) -> MultiplexedConnection {
        self.bare.as_ref().expect("it is connected").0.clone()
    }

    fn redis_url(&self, node: usize) -> String {
        let servers = self.bus.servers();
        servers[node % servers.len()].url()
    }
}

impl Publisher {
    /// Whether an answer is what is measured: there are no subscribers.
    pub fn is_answered_only(&self) -> bool {
        matches!(self, Publisher::Floor(..) | Publisher::Sender)
    }

    /// Publishes `count` events from number `first` on, that bear the time `at`; returns when they are acknowledged (NATS: when
    /// they are handed over, for it acknowledges nothing).
    pub async fn publish(&self, payload: &Payload, first: usize, count: usize, at: u64) {
        let numbers = first..first + count;
        match self {
            Publisher::Trunkline(channel, node) => {
                let events: Vec<_> = numbers.map(|number| payload.published(number, at)).collect();
                publish_encoded(channel, node, &events).await;
            }
            Publisher::Redis(connection) => {
                let events = numbers.map(|number| payload.delivered(number, at));
                pipeline("PUBLISH", CHANNEL, events, connection).await;
            }
            Publisher::Placing(connection, script) => {
                for number in numbers {
                    let mut call = script.key("offset");
                    call.key("history").arg(CHANNEL).arg(payload.delivered(number, at));
                    let placed = call.invoke_async(&mut connection.clone()).await;
                    let _: i64 = placed.expect("placed");
                }
            }
            Publisher::Sharded(channels) => {
                // An event's number decides, as an account would.
                join_all(channels.iter().enumerate().map(
                    async |(index, (channel, connection))| {
                        let own = |number: &usize| number % channels.len() == index;
                        let mut own = numbers.clone().filter(own).peekable();
                        if own.peek().is_some() {
                            let events = own.map(|number| payload.delivered(number, at));
                            pipeline("SPUBLISH", channel, events, connection).await;
                        }
                    },
                ))
                .await;
            }
            Publisher::Nats(client) => {
                for number in numbers {
                    let event = Bytes::from(payload.delivered(number, at));
                    client.publish(CHANNEL, event).await.expect("published");
                }
            }
            Publisher::Floor(channel, path) => {
                let mut request = Vec::with_capacity(64 + count * 224);
                for number in numbers {
                    put_field(&mut request, 3, &payload.published(number, at));
                }
                unary(channel, path, request.into()).await;
            }
            Publisher::Sender => {}
            Publisher::Nobody => std::future::pending().await,
        }
    }
}

/// Publishes encoded events to a gateway.
pub async fn publish_encoded(channel: &Channel, node: &str, events: &[Vec<u8>]) {
    let mut request = Vec::with_capacity(64 + events.iter().map(|e| e.len() + 4).sum::<usize>());
    put_field(&mut request, 1, node.as_bytes());
    put_field(&mut request, 2, uuid::Uuid::new_v4().to_string().as_bytes());
    for event in events {
        put_field(&mut request, 3, event);
    }
    unary(channel, PUBLISH, request.into()).await;
}

/// The encoded request of subscriber number `node`; without accounts: everything.
pub fn subscribe_request(node: usize, accounts: Vec<String>) -> Bytes {
    let filter = (!accounts.is_empty()).then(|| Filter { accounts, ..Filter::default() });
    let request =
        SubscribeRequest { node_id: format!("node-{node}"), filter, ..SubscribeRequest::default() };
    request.encode_to_vec().into()
}

/// Opens a stream of a gateway; returns when its first message is there.
pub async fn open(channel: &Channel, request: Bytes) -> Streaming<Bytes> {
    open_at(channel, SUBSCRIBE, request).await
}

/// Opens a stream on which nothing comes after its first message, which is there then.
pub async fn open_idle(contestant: Contestant, channel: &Channel, node: usize) -> Streaming<Bytes> {
    if contestant == Contestant::Relay {
        // Its message would have no event.
        open_at(channel, floor::RELAYED, Bytes::from_static(&[0; 4])).await
    } else {
        open(channel, subscribe_request(node, vec![])).await
    }
}

async fn open_at(channel: &Channel, path: &'static str, request: Bytes) -> Streaming<Bytes> {
    let mut stream = stream(channel, path, request).await;
    let first = stream.message().await.expect("a stream that does not fail");
    assert!(first.is_some(), "the stream ended");
    stream
}

/// A message that is one encoded event has come.
pub fn one(heard: &Heard, event: &[u8]) {
    look(heard, event);
    heard.message(1);
}

/// An encoded `SubscribeResponse` has come.
fn response(heard: &Heard, response: &[u8]) {
    let mut events = 0;
    let kind = read_response(response, |event| {
        look(heard, event);
        events += 1;
    });
    match kind {
        Response::Events => heard.message(events),
        Response::Gap => heard.gap(),
        Response::Other => {}
    }
}

fn look(heard: &Heard, event: &[u8]) {
    // What is published as fast as it goes bears no time.
    let time = || id_of(event).and_then(time).filter(|at| *at > 0);
    if let Some(at) = heard.looks_at_times().then(time).flatten() {
        heard.late(at);
    }
}

/// Counts what comes on a stream, to its end, or until it fails: what does not come is seen to be lost.
pub async fn count(mut stream: tonic::Streaming<Bytes>, heard: Arc<Heard>) {
    while let Ok(Some(message)) = stream.message().await {
        response(&heard, &message);
    }
}

async fn stream(channel: &Channel, path: &'static str, request: Bytes) -> Streaming<Bytes> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    grpc.ready().await.expect("a connection");
    let request = tonic::Request::new(request);
    let answer = grpc.server_streaming(request, PathAndQuery::from_static(path), Raw).await;
    answer.expect("a stream").into_inner()
}

/// Listens to a stream in `tasks`; returns when the first message is there.
async fn listen(
    channel: Channel,
    path: &'static str,
    request: Bytes,
    heard: Arc<Heard>,
    tasks: &mut JoinSet<()>,
) {
    let (ready, is_ready) = oneshot::channel();
    tasks.spawn(async move {
        let mut stream = stream(&channel, path, request).await;
        let first = stream.message().await.expect("a stream that does not fail");
        response(&heard, &first.expect("a first message"));
        let _ = ready.send(());
        count(stream, heard).await;
    });
    is_ready.await.expect("the subscription is confirmed");
}

async fn unary(channel: &Channel, path: &'static str, request: Bytes) {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("a connection");
    let request = tonic::Request::new(request);
    let answer = grpc.unary::<Bytes, Bytes, _>(request, PathAndQuery::from_static(path), Raw).await;
    answer.expect("an answer");
}

async fn pipeline(
    command: &str,
    channel: &str,
    events: impl Iterator<Item = Vec<u8>>,
    connection: &MultiplexedConnection,
) {
    let mut pipeline = redis::pipe();
    for event in events {
        pipeline.cmd(command).arg(channel).arg(event).ignore();
    }
    pipeline.query_async::<()>(&mut connection.clone()).await.expect("published");
}

async fn redis_connection(url: &str) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(url).expect("a URL");
    let connection = client.get_multiplexed_async_connection_with_config(&config).await;
    connection.expect("a connection")
}

/// A connection whose pushes go to `hear`.
async fn pushed(
    url: &str,
    hear: impl Fn(PushInfo) + Send + Sync + 'static,
) -> MultiplexedConnection {
    let hear = move |push: PushInfo| {
        hear(push);
        Ok::<(), ()>(())
    };
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_push_sender(hear);
    let client = Client::open(format!("{url}?protocol=resp3")).expect("a URL");
    let connection = client.get_multiplexed_async_connection_with_config(&config).await;
    connection.expect("a connection")
}

/// A pushed message: its content comes last.
fn message(push: &PushInfo, heard: &Heard) {
    if let Some(Value::BulkString(event)) = push.data.last() {
        one(heard, event);
    }
}

/// One connection that hears what is published on it.
pub async fn bare(url: &str, node: BareNode) -> MultiplexedConnection {
    let mut connection = pushed(url, move |push| {
        if let (PushKind::Message, Some(heard)) = (&push.kind, &*node.lock()) {
            message(&push, heard);
        }
    })
    .await;
    connection.subscribe(CHANNEL).await.expect("subscribed");
    connection
}

/// A channel that lives on this master.
pub async fn channel_on(cluster: &RedisCluster, master: usize) -> String {
    for number in 0.. {
        let channel = format!("events-{number}");
        let slot = crc16::State::<crc16::XMODEM>::calculate(channel.as_bytes()) % 16_384;
        if cluster.master_of_slot(slot).await == master {
            return channel;
        }
    }
    unreachable!("a master owns slots")
}

async fn nats(port: u16) -> async_nats::Client {
    let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
    for _ in 0..200 {
        if let Ok(client) = options.clone().connect(format!("nats://127.0.0.1:{port}")).await {
            return client;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("nats-server did not come up");
}

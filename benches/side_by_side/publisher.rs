//! The publisher of each contestant.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use http::uri::PathAndQuery;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use redis::{Script, aio::MultiplexedConnection};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, client::Grpc, transport::Channel};
use trunkline_proto::v1::{self, publish_stream_response::Response};

use crate::{
    connections::{CHANNEL, nats, redis_connection, unary},
    contestant::{Contestant, System},
    floor,
    payload::Payload,
    raw::{Raw, put_field},
};

const PUBLISH_STREAM: &str = "/trunkline.v1.CoordinationService/PublishStream";
const PUBLISH: &str = "/trunkline.v1.CoordinationService/Publish";

/// The least that gives an event a position for good: a number, an entry in the history, and the
/// event to the subscribers.
const POSITION: &str = "
    local position = redis.call('INCR', KEYS[1])
    redis.call('XADD', KEYS[2], position .. '-0', 'e', ARGV[2])
    redis.call('PUBLISH', ARGV[1], ARGV[2])
    return position";

/// A connection on which a node publishes.
#[derive(Clone)]
pub enum Publisher {
    /// To a gateway, as this node.
    Trunkline(Channel, String),
    /// To a gateway, on a stream.
    Stream(Arc<StreamPublisher>),
    /// To Redis.
    Redis(MultiplexedConnection),
    /// To Redis, by the script [`POSITION`].
    RedisPositions(MultiplexedConnection, Arc<Script>),
    /// To a channel on each master.
    Sharded(Vec<(String, MultiplexedConnection)>),
    /// To NATS.
    Nats(async_nats::Client),
    /// A request of the floor.
    Floor(Channel, &'static str),
    /// Nothing is sent.
    Sender,
    /// The floor sends by itself.
    Endless,
}

impl System {
    /// A connection on which this node publishes.
    pub async fn publisher(&self, node: usize) -> Publisher {
        match self.contestant {
            Contestant::Embedded | Contestant::Redis(_) | Contestant::Cluster(_) => {
                Publisher::Trunkline(self.gateway(node).await, format!("publisher-{node}"))
            }
            Contestant::RedisByStream => {
                let channel = self.gateway(node).await;
                Publisher::Stream(
                    StreamPublisher::open(channel, &format!("publisher-{node}")).await,
                )
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
            Contestant::RedisPositions => {
                Publisher::RedisPositions(self.bare_connection(), Script::new(POSITION).into())
            }
            Contestant::Nats => Publisher::Nats(nats(self.port()).await),
            Contestant::Stream(_) => Publisher::Endless,
            Contestant::Relay => Publisher::Floor(self.floor().await, floor::RELAY),
            Contestant::Unary => Publisher::Floor(self.floor().await, floor::PUBLISH),
            Contestant::Echo => Publisher::Floor(self.floor().await, floor::ECHO),
            Contestant::Sender => Publisher::Sender,
        }
    }

    /// Lets the floor's streams continue after their first message.
    pub async fn go(&self) {
        unary(&self.floor().await, floor::GO, Bytes::new()).await;
    }

    fn bare_connection(&self) -> MultiplexedConnection {
        self.bare.as_ref().expect("it is connected").0.clone()
    }
}

impl Publisher {
    /// True where there are no subscribers, and the answer is what is measured.
    pub fn measures_answers(&self) -> bool {
        matches!(self, Publisher::Floor(..) | Publisher::Sender)
    }

    /// Publishes `count` events from number `first` on, whose ids encode the time `at`. Returns
    /// when they are acknowledged; with NATS, which acknowledges nothing, when they are handed
    /// over; on a stream, when they are handed over and the window has room.
    pub async fn publish(&self, payload: &Payload, first: usize, count: usize, at: u64) {
        let numbers = first..first + count;
        match self {
            Publisher::Trunkline(channel, node) => {
                let events: Vec<_> = numbers.map(|number| payload.published(number, at)).collect();
                publish_encoded(channel, node, &events).await;
            }
            Publisher::Stream(stream) => {
                let events: Vec<_> = numbers.map(|number| payload.published(number, at)).collect();
                stream.publish(&events).await;
            }
            Publisher::Redis(connection) => {
                let events = numbers.map(|number| payload.delivered(number, at));
                pipeline("PUBLISH", CHANNEL, events, connection).await;
            }
            Publisher::RedisPositions(connection, script) => {
                for number in numbers {
                    let mut call = script.key("offset");
                    call.key("history").arg(CHANNEL).arg(payload.delivered(number, at));
                    let position = call.invoke_async(&mut connection.clone()).await;
                    let _: i64 = position.expect("a position");
                }
            }
            Publisher::Sharded(channels) => {
                // The number of an event chooses its channel, as an account would.
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
            Publisher::Endless => std::future::pending().await,
        }
    }
}

/// Events that a stream may have without an answer.
const STREAM_WINDOW: u64 = 8192;

/// A stream on which events are published, several in one message or each in its own.
pub struct StreamPublisher {
    /// The sequence of the next event, and where messages go.
    next: Mutex<(u64, mpsc::Sender<Bytes>)>,
    /// Keeps the connection open.
    _channel: Channel,
    accepted: watch::Receiver<u64>,
}

impl StreamPublisher {
    async fn open(channel: Channel, node: &str) -> Arc<StreamPublisher> {
        let (sender, receiver) = mpsc::channel(1024);
        let (mut open, mut request) = (Vec::new(), Vec::new());
        put_field(&mut open, 1, node.as_bytes());
        put_field(&mut open, 2, uuid::Uuid::new_v4().to_string().as_bytes());
        put_field(&mut request, 1, &open);
        sender.send(request.into()).await.expect("room");
        let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
        grpc.ready().await.expect("a connection");
        let requests = Request::new(ReceiverStream::new(receiver));
        let path = PathAndQuery::from_static(PUBLISH_STREAM);
        let mut answers = grpc.streaming(requests, path, Raw).await.expect("a stream").into_inner();
        let (accept, accepted) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                let answer = v1::PublishStreamResponse::decode(answer).expect("an answer");
                match answer.response {
                    Some(Response::Accepted(accepted)) => {
                        accept.send_replace(accepted.sequence);
                    }
                    Some(Response::Rejected(rejected)) => panic!("rejected: {rejected:?}"),
                    _ => {}
                }
            }
        });
        Arc::new(StreamPublisher { next: Mutex::new((1, sender)), _channel: channel, accepted })
    }

    async fn publish(&self, events: &[Vec<u8>]) {
        let last = {
            let mut next = self.next.lock().await;
            let (mut content, mut request) = (Vec::new(), Vec::new());
            encode_key(1, WireType::Varint, &mut content);
            encode_varint(next.0, &mut content);
            for event in events {
                put_field(&mut content, 2, event);
            }
            put_field(&mut request, 2, &content);
            next.0 += events.len() as u64;
            next.1.send(request.into()).await.expect("an open stream");
            next.0 - 1
        };
        let room = |accepted: &u64| accepted + STREAM_WINDOW >= last;
        self.accepted.clone().wait_for(room).await.expect("an open stream");
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

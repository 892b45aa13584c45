//! The subscriber of each contestant.

use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use redis::{Client, PushKind, cmd};
use tokio::{sync::oneshot, task::JoinSet};
use tonic::{Streaming, transport::Channel};
use trunkline_proto::v1::{Filter, SubscribeRequest};

use crate::{
    connections::{CHANNEL, nats, push_connection, record_push, stream},
    contestant::{Contestant, System},
    floor,
    payload::Payload,
    recorder::Recorder,
};

const SUBSCRIBE: &str = "/trunkline.v1.CoordinationService/Subscribe";

impl System {
    /// Starts subscriber number `node` in `tasks`. Returns when it is certain to receive what is
    /// published from now on.
    pub async fn subscribe(
        &self,
        node: usize,
        payload: &Payload,
        recorder: Recorder,
        tasks: &mut JoinSet<()>,
    ) {
        match self.contestant {
            Contestant::Embedded
            | Contestant::Redis(_)
            | Contestant::RedisByStream
            | Contestant::Cluster(_) => {
                let request = subscribe_request(node, vec![]);
                receive(self.gateway(node).await, SUBSCRIBE, request, recorder, tasks).await;
            }
            Contestant::Stream(_) | Contestant::Relay => {
                let relayed = self.contestant == Contestant::Relay;
                let path = if relayed { floor::RELAYED } else { floor::STREAM };
                let mut request = payload.delivered(0, 0);
                request.extend(self.batch.to_be_bytes());
                receive(self.floor().await, path, request.into(), recorder, tasks).await;
            }
            Contestant::PlainRedis | Contestant::PlainClassic => {
                let client = Client::open(self.redis_url(node)).expect("a URL");
                let mut connection = client.get_async_pubsub().await.expect("a connection");
                connection.subscribe(CHANNEL).await.expect("subscribed");
                tasks.spawn(async move {
                    let mut messages = connection.into_on_message();
                    while let Some(message) = messages.next().await {
                        recorder.event(message.get_payload_bytes());
                    }
                });
            }
            Contestant::PlainSharded => {
                let mut held = vec![];
                for (channel, server) in self.channels.iter().zip(self.bus.servers()) {
                    let recorder = recorder.clone();
                    let mut connection = push_connection(&server.url(), move |push| {
                        if push.kind == PushKind::SMessage {
                            record_push(&push, &recorder);
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
            Contestant::BareRedis | Contestant::RedisPositions => {
                *self.bare.as_ref().expect("it is connected").1.lock() = Some(recorder);
            }
            Contestant::Nats => {
                let client = nats(self.port()).await;
                let mut messages = client.subscribe(CHANNEL).await.expect("subscribed");
                client.flush().await.expect("flushed");
                tasks.spawn(async move {
                    while let Some(message) = messages.next().await {
                        recorder.event(&message.payload);
                    }
                    drop(client);
                });
            }
            Contestant::Unary | Contestant::Echo | Contestant::Sender => {}
        }
    }

    /// The Redis server of this node.
    pub fn redis_url(&self, node: usize) -> String {
        let servers = self.bus.servers();
        servers[node % servers.len()].url()
    }
}

/// The encoded request of subscriber number `node`; without accounts, for all events.
pub fn subscribe_request(node: usize, accounts: Vec<String>) -> Bytes {
    let filter = (!accounts.is_empty()).then(|| Filter { accounts, ..Filter::default() });
    let request =
        SubscribeRequest { node_id: format!("node-{node}"), filter, ..SubscribeRequest::default() };
    request.encode_to_vec().into()
}

/// Opens a stream of a gateway. Returns after its first message.
pub async fn open(channel: &Channel, request: Bytes) -> Streaming<Bytes> {
    open_at(channel, SUBSCRIBE, request).await
}

/// Opens a stream that is idle after its first message. Returns after that message.
pub async fn open_idle(contestant: Contestant, channel: &Channel, node: usize) -> Streaming<Bytes> {
    if contestant == Contestant::Relay {
        // A message without events.
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

/// Records the messages of a stream until it ends or fails; what is missing then is counted as
/// lost.
pub async fn record(mut stream: Streaming<Bytes>, recorder: Recorder) {
    while let Ok(Some(message)) = stream.message().await {
        recorder.response(&message);
    }
}

/// Opens a stream and records its messages in `tasks`. Returns after the first one.
async fn receive(
    channel: Channel,
    path: &'static str,
    request: Bytes,
    recorder: Recorder,
    tasks: &mut JoinSet<()>,
) {
    let (ready, is_ready) = oneshot::channel();
    tasks.spawn(async move {
        let mut stream = stream(&channel, path, request).await;
        let first = stream.message().await.expect("a stream that does not fail");
        recorder.response(&first.expect("a first message"));
        let _ = ready.send(());
        record(stream, recorder).await;
    });
    is_ready.await.expect("the subscription is confirmed");
}

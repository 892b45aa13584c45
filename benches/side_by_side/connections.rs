//! Connections to the servers of the contestants: raw gRPC, Redis and NATS.

use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, Client, PushInfo, PushKind, Value, aio::MultiplexedConnection};
use tonic::{Streaming, client::Grpc, transport::Channel};

use crate::{raw::Raw, recorder::Recorder, support::RedisCluster};

/// The Redis channel and the NATS subject of the plain contestants.
pub const CHANNEL: &str = "events";

/// The subscriber on the one connection of the bare Redis, once there is one.
pub type BareSubscriber = Arc<Mutex<Option<Recorder>>>;

/// Calls a method, its request and its response left encoded.
pub async fn unary(channel: &Channel, path: &'static str, request: Bytes) {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("a connection");
    let request = tonic::Request::new(request);
    let answer = grpc.unary::<Bytes, Bytes, _>(request, PathAndQuery::from_static(path), Raw).await;
    answer.expect("an answer");
}

/// Opens a stream whose messages are left encoded.
pub async fn stream(channel: &Channel, path: &'static str, request: Bytes) -> Streaming<Bytes> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    grpc.ready().await.expect("a connection");
    let request = tonic::Request::new(request);
    let answer = grpc.server_streaming(request, PathAndQuery::from_static(path), Raw).await;
    answer.expect("a stream").into_inner()
}

/// A connection to Redis without a limit for answers.
pub async fn redis_connection(url: &str) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(url).expect("a URL");
    let connection = client.get_multiplexed_async_connection_with_config(&config).await;
    connection.expect("a connection")
}

/// A connection to Redis that hands pushed messages to `on_push`.
pub async fn push_connection(
    url: &str,
    on_push: impl Fn(PushInfo) + Send + Sync + 'static,
) -> MultiplexedConnection {
    let on_push = move |push: PushInfo| {
        on_push(push);
        Ok::<(), ()>(())
    };
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_push_sender(on_push);
    let client = Client::open(format!("{url}?protocol=resp3")).expect("a URL");
    let connection = client.get_multiplexed_async_connection_with_config(&config).await;
    connection.expect("a connection")
}

/// Records a pushed message of a channel, whose content is its last field.
pub fn record_push(push: &PushInfo, recorder: &Recorder) {
    if let Some(Value::BulkString(event)) = push.data.last() {
        recorder.event(event);
    }
}

/// A connection that is subscribed to the channel on which it publishes.
pub async fn bare_connection(url: &str, subscriber: BareSubscriber) -> MultiplexedConnection {
    let mut connection = push_connection(url, move |push| {
        if let (PushKind::Message, Some(recorder)) = (&push.kind, &*subscriber.lock()) {
            record_push(&push, recorder);
        }
    })
    .await;
    connection.subscribe(CHANNEL).await.expect("subscribed");
    connection
}

/// The name of a sharded channel that this master owns.
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

/// A connection to NATS, once it listens.
pub async fn nats(port: u16) -> async_nats::Client {
    let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
    for _ in 0..200 {
        if let Ok(client) = options.clone().connect(format!("nats://127.0.0.1:{port}")).await {
            return client;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("nats-server did not come up");
}

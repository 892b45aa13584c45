//! A subscription to the test's channel on a real server, classic or sharded.

use ::redis::{AsyncConnectionConfig, Client, Value, cmd};
use futures_util::StreamExt;

use super::{CALLS, TAG};
use crate::redis::Message;

/// The messages on the test's channel, from now on.
pub async fn subscription(url: &str, sharded: bool) -> tokio::sync::mpsc::Receiver<Message> {
    let client = Client::open(url).expect("a URL");
    let channel = format!("{TAG}:channel");
    let (send, received) = tokio::sync::mpsc::channel(4 * CALLS);
    if sharded {
        let (pushes, mut pushed) = tokio::sync::mpsc::unbounded_channel();
        let config = AsyncConnectionConfig::new().set_push_sender(pushes);
        let resp3 = format!("{url}/?protocol=resp3");
        let client = Client::open(resp3).expect("a URL");
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .expect("a connection");
        cmd("SSUBSCRIBE").arg(&channel).exec_async(&mut connection).await.expect("subscribed");
        tokio::spawn(async move {
            // The subscription ends with its connection.
            let _connection = connection;
            while let Some(push) = pushed.recv().await {
                if push.kind != ::redis::PushKind::SMessage {
                    continue;
                }
                let [Value::BulkString(channel), Value::BulkString(payload)] = &push.data[..]
                else {
                    panic!("not a message: {push:?}")
                };
                let (channel, payload) = (channel.clone(), payload.clone());
                if send
                    .send(Message { channel: channel.into(), payload: payload.into(), sharded })
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
    } else {
        let mut pubsub = client.get_async_pubsub().await.expect("a connection");
        pubsub.subscribe(&channel).await.expect("subscribed");
        tokio::spawn(async move {
            let mut stream = pubsub.into_on_message();
            while let Some(message) = stream.next().await {
                let channel = message.get_channel_name().as_bytes().to_vec();
                let payload = message.get_payload_bytes().to_vec();
                if send
                    .send(Message { channel: channel.into(), payload: payload.into(), sharded })
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
    }
    received
}

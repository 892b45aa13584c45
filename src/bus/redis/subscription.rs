//! One subscription connection to one server.
//!
//! The client library's own re-subscription loses channels for good: it repeats all sharded
//! channels in one command, and forgets those that the server unsubscribed. So each connection is a
//! plain one to a single node. After any error it is closed and opened again with all channels; the
//! reader repairs what was missed meanwhile.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use redis::{ProtocolVersion, PushInfo, PushKind, RedisError, Value};
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{
    liveness::Arrivals,
    server::{CONNECT_TIMEOUT, Server},
};
use crate::bus::{LinkStatus, ShardId};

/// Messages that may wait for the reader, over all connections. A message that does not fit is
/// dropped, and repaired like any hole.
pub(super) const QUEUE: usize = 8192;

/// The waits before the next attempt to connect. Nodes hear nothing until it succeeds; a gateway
/// has one of these connections to each master.
const MAX_WAIT: Duration = Duration::from_millis(200);
const MIN_WAIT: Duration = Duration::from_millis(20);

/// A message from a subscription to the reader.
#[derive(Debug)]
pub(super) enum SubscriptionEvent {
    /// All channels are subscribed on a new connection: earlier messages may have been missed.
    Subscribed { link: u64 },
    /// A message on a shard's channel.
    Message { shard: ShardId, bytes: Bytes },
    /// The server no longer owns a channel.
    Moved,
}

/// One connection and its channels.
pub(super) struct Subscription {
    /// Identity among the reader's subscriptions.
    pub id: u64,
    pub server: Arc<Server>,
    pub channels: HashMap<Vec<u8>, ShardId>,
    pub sharded: bool,
    pub protocol: ProtocolVersion,
    pub events: mpsc::Sender<SubscriptionEvent>,
    pub link: Arc<Link>,
    pub stop: CancellationToken,
}

/// The state of a connection, shared with the reader.
pub(super) struct Link {
    pub address: String,
    connected: AtomicBool,
    connects: AtomicU64,
    /// Milliseconds from `base` until all channels were subscribed.
    since: AtomicU64,
    base: Instant,
    /// When the last message of each shard arrived on this connection.
    arrivals: Mutex<HashMap<ShardId, Instant>>,
    /// Asks for a new connection.
    renew: Notify,
}

impl Link {
    pub(super) fn new(address: String) -> Link {
        Link {
            address,
            connected: AtomicBool::new(false),
            connects: AtomicU64::new(0),
            since: AtomicU64::new(0),
            base: Instant::now(),
            arrivals: Mutex::default(),
            renew: Notify::new(),
        }
    }

    /// The time at which all channels were subscribed; None while they are not.
    pub(super) fn since(&self) -> Option<Instant> {
        let connected = self.connected.load(Ordering::Acquire);
        connected.then(|| self.base + Duration::from_millis(self.since.load(Ordering::Relaxed)))
    }

    /// The messages of a shard that have arrived; None while the channels are not subscribed.
    pub(super) fn arrivals(&self, shard: ShardId) -> Option<Arrivals> {
        let subscribed = self.since()?;
        let arrivals = self.arrivals.lock();
        let of_any = arrivals.values().max().copied();
        Some(Arrivals { subscribed, of_shard: arrivals.get(&shard).copied(), of_any })
    }

    /// Records that a message arrived.
    fn arrived(&self, shard: ShardId) {
        self.arrivals.lock().insert(shard, Instant::now());
    }

    /// Closes the connection and opens a new one.
    pub(super) fn renew(&self) {
        self.renew.notify_one();
    }

    pub(super) fn status(&self) -> LinkStatus {
        LinkStatus {
            address: self.address.clone(),
            purpose: "subscribe",
            connected: self.connected.load(Ordering::Relaxed),
            reconnects: self.connects.load(Ordering::Relaxed).saturating_sub(1),
        }
    }

    fn up(&self) {
        let since = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(since, Ordering::Relaxed);
        self.arrivals.lock().clear();
        self.connects.fetch_add(1, Ordering::Relaxed);
        self.connected.store(true, Ordering::Release);
    }

    fn down(&self) {
        self.connected.store(false, Ordering::Release);
    }
}

/// Reason why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the connection was closed")]
    Closed,
    #[error("a new connection was asked for")]
    Renewed,
    #[error("the server no longer owns a channel")]
    Moved,
    #[error("no answer in time")]
    Timeout,
    #[error(transparent)]
    Redis(#[from] RedisError),
}

impl Subscription {
    /// Keeps the subscription until it is stopped.
    pub(super) async fn run(self) {
        let mut wait = MIN_WAIT;
        loop {
            let started = Instant::now();
            let end = tokio::select! {
                () = self.stop.cancelled() => break,
                end = self.listen() => end,
            };
            let was_up = self.link.since().is_some();
            self.link.down();
            if was_up && started.elapsed() > MAX_WAIT {
                wait = MIN_WAIT;
            }
            match &end {
                End::Renewed => {}
                _ if was_up => {
                    tracing::warn!(server = self.link.address, why = %end, "subscription lost");
                }
                _ => tracing::debug!(server = self.link.address, why = %end, "not subscribed"),
            }
            if matches!(&end, End::Moved) || is_moved(&end) {
                // If the queue is full, the next attempt reports it again.
                let _ = self.events.try_send(SubscriptionEvent::Moved);
            }
            let pause = wait.mul_f64(rand::rng().random_range(0.1..=1.0));
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            wait = (wait * 2).min(MAX_WAIT);
        }
        self.link.down();
    }

    /// Connects, subscribes, and passes messages on until the connection ends.
    async fn listen(&self) -> End {
        let mut closings = self.server.closings();
        let login_changed = self.server.login_changed();
        let listening = async {
            match self.protocol {
                ProtocolVersion::RESP2 => self.listen_resp2().await,
                _ => self.listen_resp3().await,
            }
        };
        tokio::select! {
            result = listening => result.unwrap_or_else(End::Redis),
            _ = closings.changed() => End::Renewed,
            // Such a connection takes no AUTH while it is subscribed.
            () = login_changed, if self.protocol == ProtocolVersion::RESP2 => End::Renewed,
        }
    }

    async fn listen_resp3(&self) -> Result<End, RedisError> {
        let (sender, mut pushed) = mpsc::channel::<PushInfo>(QUEUE);
        // The push sender must not wait. A message that does not fit is a hole like any other.
        let config = self
            .server
            .config()
            .set_response_timeout(Some(CONNECT_TIMEOUT))
            .set_push_sender(move |push| sender.try_send(push));
        let client = self.server.client().await?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        // Sharded channels are in different slots, so each needs a command of its own.
        let command = if self.sharded { "SSUBSCRIBE" } else { "SUBSCRIBE" };
        for channel in self.channels.keys() {
            let _: Value = redis::cmd(command).arg(channel).query_async(&mut connection).await?;
        }
        self.subscribed().await;
        let mut batch = Vec::with_capacity(256);
        loop {
            tokio::select! {
                () = self.link.renew.notified() => return Ok(End::Renewed),
                count = pushed.recv_many(&mut batch, 256) => {
                    if count == 0 {
                        return Ok(End::Closed);
                    }
                }
            }
            for push in batch.drain(..) {
                match push.kind {
                    PushKind::Message | PushKind::SMessage => {
                        let mut data = push.data.into_iter();
                        if let (Some(Value::BulkString(channel)), Some(Value::BulkString(bytes))) =
                            (data.next(), data.next())
                        {
                            self.message(&channel, bytes).await;
                        }
                    }
                    PushKind::SUnsubscribe | PushKind::Unsubscribe => return Ok(End::Moved),
                    PushKind::Disconnection => return Ok(End::Closed),
                    _ => {}
                }
            }
        }
    }

    async fn listen_resp2(&self) -> Result<End, RedisError> {
        let client = self.server.client().await?;
        let connect = async {
            let mut pubsub = client.get_async_pubsub().await?;
            for channel in self.channels.keys() {
                pubsub.subscribe(channel).await?;
            }
            Ok::<_, RedisError>(pubsub)
        };
        let Ok(pubsub) = tokio::time::timeout(CONNECT_TIMEOUT * 2, connect).await else {
            return Ok(End::Timeout);
        };
        let (_sink, mut messages) = pubsub?.split();
        self.subscribed().await;
        loop {
            tokio::select! {
                () = self.link.renew.notified() => return Ok(End::Renewed),
                message = messages.next() => {
                    let Some(message) = message else { return Ok(End::Closed) };
                    let bytes = message.get_payload_bytes().to_vec();
                    self.message(message.get_channel_name().as_bytes(), bytes).await;
                }
            }
        }
    }

    async fn subscribed(&self) {
        self.link.up();
        tracing::info!(server = self.link.address, channels = self.channels.len(), "subscribed");
        // The reader ends only after this task was stopped.
        let subscribed = SubscriptionEvent::Subscribed { link: self.id };
        let _ = self.events.send(subscribed).await;
    }

    async fn message(&self, channel: &[u8], bytes: Vec<u8>) {
        if let Some(shard) = self.channels.get(channel) {
            // Before it waits for the reader: the connection receives also if that is behind.
            self.link.arrived(*shard);
            let event = SubscriptionEvent::Message { shard: *shard, bytes: Bytes::from(bytes) };
            let _ = self.events.send(event).await;
        }
    }
}

fn is_moved(end: &End) -> bool {
    matches!(end, End::Redis(error) if error.is_cluster_error())
}

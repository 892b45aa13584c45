//! A channel of Redis that programs still use, which the agent joins as one more node.
//!
//! What nodes publish there goes to the gateways and to the programs of this host, and events of
//! both are published there, with the agent's own node id. By that id it knows its own messages.
//!
//! Several agents may join one channel, and one of them carries it, so that every event comes once:
//! it holds a lease in that Redis, and renews it. When it ends, another one takes its place. What
//! was missed until then, or while Redis was away, is healed on all sides.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, Client, RedisError, aio::MultiplexedConnection};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    JOINED, Shared, count,
    subscriber::{Next, Subscriber},
};

/// The limit for a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// The limit for an answer, shorter than the lease.
const ANSWER: Duration = Duration::from_secs(1);

/// How long the lease lasts after it was renewed.
const LEASE: Duration = Duration::from_millis(LEASE_MS);
const LEASE_MS: u64 = 3000;

/// How long before its end it is used no more: clocks do not run alike.
const MARGIN: Duration = Duration::from_millis(500);

/// The interval in which it is renewed, and in which another agent asks for it.
const RENEWAL: Duration = Duration::from_millis(500);

/// How long the agent may not hear its own messages until the subscription is given up.
const DEAF: Duration = Duration::from_secs(3);

/// How long the release of the lease may take when the agent ends.
const RELEASE: Duration = Duration::from_millis(200);

/// The first and the longest wait between two attempts.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// After this time without an error, the next one begins a new series of attempts.
const CALM: Duration = Duration::from_secs(10);

/// Messages that are published together.
const BATCH: usize = 100;

/// Takes the lease, or renews it.
const RENEW: &str = "local holder = redis.call('get', KEYS[1]) \
                     if holder and holder ~= ARGV[1] then return 0 end \
                     redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2]) \
                     return 1";

/// Gives it back.
const GIVE_BACK: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then \
                         redis.call('del', KEYS[1]) end return 0";

/// The Redis of a channel that is to be joined.
#[derive(Clone)]
pub struct Join {
    client: Client,
    shown: String,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Join").field(&self.shown).finish()
    }
}

impl Join {
    /// The server at a URL, and how that is shown.
    ///
    /// # Errors
    ///
    /// The URL is not one of Redis.
    pub fn new(url: &str, shown: impl Into<String>) -> Result<Join, String> {
        let client = Client::open(url).map_err(|error| error.to_string())?;
        Ok(Join { client, shown: shown.into() })
    }

    /// How the server is shown.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }
}

/// The right to carry the channel.
struct Lease {
    key: String,
    /// A name for this process.
    holder: String,
    until: Mutex<Instant>,
}

impl Lease {
    /// True while no other agent can carry the channel.
    fn is_held(&self) -> bool {
        Instant::now() < *self.until.lock()
    }

    /// Takes or renews it; false if another agent has it.
    async fn renew(&self, commands: &mut MultiplexedConnection) -> Result<bool, RedisError> {
        let asked = Instant::now();
        let mut renew = redis::cmd("EVAL");
        renew.arg(RENEW).arg(1).arg(&self.key).arg(&self.holder).arg(LEASE_MS);
        let has = renew.query_async::<bool>(commands).await?;
        if has {
            *self.until.lock() = asked + LEASE - MARGIN;
        }
        Ok(has)
    }

    async fn give_back(&self, commands: &mut MultiplexedConnection) {
        let mut give_back = redis::cmd("EVAL");
        give_back.arg(GIVE_BACK).arg(1).arg(&self.key).arg(&self.holder);
        // It ends by itself.
        let _ = timeout(RELEASE, give_back.query_async::<i64>(commands)).await;
    }
}

/// Joins the channel, and again whenever the connection is lost, until `ended` is cancelled.
pub(super) async fn run(shared: Arc<Shared>, ended: CancellationToken) {
    let Some(join) = &shared.options.join else { return };
    let lease = Lease {
        key: format!("trunkline:agent:{}", shared.options.formats[JOINED].channel()),
        holder: format!("{} {:016x}", shared.client.node_id(), rand::random::<u64>()),
        until: Mutex::new(Instant::now()),
    };
    let mut commands = None;
    let mut wait = WAITS.0;
    loop {
        let began = Instant::now();
        let carrying = carry(&shared, join, &lease, &mut commands);
        let error = ended.run_until_cancelled(carrying).await;
        *shared.joined.lock() = None;
        let Some(error) = error else {
            if let Some(commands) = &mut commands {
                lease.give_back(commands).await;
            }
            return;
        };
        if began.elapsed() > CALM {
            wait = WAITS.0;
        }
        let redis = &join.shown;
        tracing::warn!(redis, error, ?wait, "the channel of Redis is not carried");
        if ended.run_until_cancelled(sleep(wait)).await.is_none() {
            return;
        }
        wait = (2 * wait).min(WAITS.1);
    }
}

/// Carries the channel until that fails; returns the reason.
async fn carry(
    shared: &Arc<Shared>,
    join: &Join,
    lease: &Lease,
    commands: &mut Option<MultiplexedConnection>,
) -> String {
    match try_carry(shared, join, lease, commands).await {
        Ok(reason) => reason,
        Err(error) => error.to_string(),
    }
}

async fn try_carry(
    shared: &Arc<Shared>,
    join: &Join,
    lease: &Lease,
    slot: &mut Option<MultiplexedConnection>,
) -> Result<String, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(ANSWER));
    let commands = join.client.get_multiplexed_async_connection_with_config(&config).await?;
    let commands = slot.insert(commands);
    let redis = &join.shown;
    let mut waits = false;
    while !lease.renew(commands).await? {
        if !std::mem::replace(&mut waits, true) {
            tracing::info!(redis, "another agent carries the channel of Redis");
        }
        sleep(RENEWAL).await;
    }
    let channel = &shared.settings.channels[JOINED];
    let subscribing = async {
        let mut pubsub = join.client.get_async_pubsub().await?;
        pubsub.subscribe(&channel[..]).await?;
        Ok::<_, RedisError>(pubsub.into_on_message())
    };
    let Ok(messages) = timeout(CONNECT, subscribing).await else {
        return Ok("the subscription was not answered in time".into());
    };
    let mut messages = messages?;

    let subscriber = Arc::<Subscriber>::default();
    subscriber.subscribe(JOINED);
    *shared.joined.lock() = Some(subscriber.clone());
    count(&shared.counters.joins, 1);
    tracing::info!(redis, "this agent carries the channel of Redis");
    // Nobody knows what was missed: by the programs of this host, by the nodes of the channel, and
    // by the other nodes.
    shared.heal("the channel of Redis was joined");
    shared.uplink.heal_others();

    let received = Mutex::new(Instant::now());
    let reading = async {
        while let Some(message) = messages.next().await {
            if !lease.is_held() {
                return "the lease was not renewed in time".to_owned();
            }
            if shared.receive_joined(message.get_payload_bytes()) {
                *received.lock() = Instant::now();
            }
        }
        "the connection was closed".to_owned()
    };
    let writing = async {
        match write(shared, lease, &subscriber, commands, &received).await {
            Ok(reason) => reason,
            Err(error) => error.to_string(),
        }
    };
    Ok(tokio::select! {
        reason = reading => reason,
        reason = writing => reason,
    })
}

/// Publishes what waits, and keeps the lease, until that fails; returns the reason.
async fn write(
    shared: &Shared,
    lease: &Lease,
    subscriber: &Subscriber,
    commands: &mut MultiplexedConnection,
    received: &Mutex<Instant>,
) -> Result<String, RedisError> {
    let channel = &shared.settings.channels[JOINED];
    let probe = shared.options.formats[JOINED].probe();
    let mut renewal = interval(RENEWAL);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let publish = |pipe: &mut redis::Pipeline, message: &[u8]| {
        pipe.cmd("PUBLISH").arg(&channel[..]).arg(message);
    };
    // The subscribers of the channel, this agent among them.
    let mut subscribers = u64::MAX;
    loop {
        let mut pipe = redis::pipe();
        tokio::select! {
            () = subscriber.filled() => {}
            _ = renewal.tick() => {
                if !lease.renew(commands).await? {
                    return Ok("another agent took the lease".into());
                }
                if let Some(probe) = &probe {
                    if received.lock().elapsed() > DEAF {
                        return Ok("the agent does not hear its own messages".into());
                    }
                    publish(&mut pipe, probe);
                }
            }
        }
        loop {
            while pipe.len() < BATCH {
                match subscriber.next() {
                    Next::Message(_, message) => publish(&mut pipe, &message),
                    Next::Heal => {
                        shared.heal_one(0, subscriber, JOINED, "the channel of Redis was too slow");
                    }
                    Next::Nothing => break,
                }
            }
            if pipe.is_empty() {
                break;
            }
            if !lease.is_held() {
                return Ok("the lease was not renewed in time".into());
            }
            count(&shared.counters.joined_messages, pipe.len());
            // How many have got it.
            let receivers: Vec<u64> = pipe.query_async(commands).await?;
            pipe.clear();
            let receivers = receivers.last().copied().unwrap_or(subscribers);
            if receivers > subscribers {
                let why = "a node has subscribed to the channel of Redis";
                shared.heal_one(0, subscriber, JOINED, why);
            }
            subscribers = receivers;
        }
    }
}

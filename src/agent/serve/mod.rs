//! The agent at work: connections of programs on one side, the gateways on the other.
//!
//! A program is never held up by the other side: what it publishes goes into a buffer that is
//! bounded in bytes, events and age, and is answered at once. Whatever may have been missed is
//! healed: a program that subscribes, or reads too slowly, or a gap in what the gateways deliver,
//! by messages that bring it up to date; events that the buffer had to give up, by the same events
//! for the other nodes.

mod admin;
mod connection;
mod downlink;
mod programs;
mod report;
mod subscriber;
mod uplink;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trunkline_client::{
    Client,
    v1::{Event, event::Kind},
};

use self::{
    programs::{Origin, Programs},
    report::Healings,
    subscriber::Subscriber,
    uplink::Uplink,
};
use super::{
    formats::{Format, Healing, Known, Undecodable},
    resp::Limits,
    session::{Credentials, Settings},
};
use crate::throttle::Throttle;

/// How long events that wait may take to be accepted when the agent ends.
const FLUSH: Duration = Duration::from_secs(3);

/// The wait after an error that only an operator can cure, before the next attempt; and between two
/// repairs.
const RETRY: Duration = Duration::from_secs(1);

/// The interval after which accounts that did not change again are forgotten at the next one.
const FORGET: Duration = Duration::from_hours(1);

/// How an agent serves.
#[derive(Debug)]
pub struct Options {
    /// What programs say to one another.
    pub format: Box<dyn Format>,
    /// Who may connect. `None`: everybody who can, so the listener must be on loopback.
    pub credentials: Option<Credentials>,
    /// Limits of a command.
    pub limits: Limits,
    /// Connections at a time. Others wait until one of them ends; none is refused.
    pub max_connections: usize,
    /// Bytes of messages that wait for one program. What is more is given up, and healed when it
    /// reads again.
    pub subscriber_bytes: usize,
    /// Events that wait for a gateway.
    pub buffer_events: usize,
    /// Bytes of them.
    pub buffer_bytes: usize,
    /// How long an event waits for a gateway before it is given up.
    pub buffer_age: Duration,
    /// Name of this host, for operators; empty: unknown.
    pub host: String,
}

impl Options {
    /// The defaults, for a format.
    pub fn new(format: Box<dyn Format>) -> Options {
        Options {
            format,
            credentials: None,
            limits: Limits::default(),
            max_connections: 256,
            subscriber_bytes: 8 << 20,
            buffer_events: 100_000,
            buffer_bytes: 32 << 20,
            buffer_age: Duration::from_mins(10),
            host: String::new(),
        }
    }
}

/// What an agent counts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages that programs published.
    pub published_messages: AtomicU64,
    /// Events of them.
    pub published_events: AtomicU64,
    /// Messages that were written to programs, counted for each.
    pub delivered_messages: AtomicU64,
    /// Messages that could not be read, or not to their end.
    pub undecodable_messages: AtomicU64,
    /// Streams of events that gateways opened.
    pub streams: AtomicU64,
    /// Events that gateways delivered.
    pub received_events: AtomicU64,
    /// Events that the format has nothing for.
    pub left_out_events: AtomicU64,
    /// Events that gateways rejected: they are malformed, or the agent may not publish them.
    pub rejected_events: AtomicU64,
    /// Events that were given up before a gateway accepted them.
    pub lost_events: AtomicU64,
    /// Healings of programs on this host.
    pub healings: AtomicU64,
    /// Healings of the other nodes.
    pub repairs: AtomicU64,
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

/// An agent that is connected to gateways, as a node of its client's id.
#[derive(Clone, Debug)]
pub struct Agent {
    shared: Arc<Shared>,
}

/// What the tasks of an agent share.
#[derive(Debug)]
struct Shared {
    client: Client,
    options: Options,
    settings: Arc<Settings>,
    subscribers: Mutex<HashMap<u64, Arc<Subscriber>>>,
    known: Mutex<Known>,
    uplink: Uplink,
    counters: Counters,
    /// When the agent began.
    started: SystemTime,
    /// A stream of events is open.
    is_connected: AtomicBool,
    programs: Programs,
    healings: Healings,
    undecodable: Throttle,
    left_out: Throttle,
    rejected: Throttle,
}

impl Agent {
    /// An agent; it connects when it serves.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(client: Client, options: Options) -> Agent {
        let settings = Settings {
            channels: vec![Bytes::from_static(options.format.channel().as_bytes())],
            credentials: options.credentials.clone(),
            limits: options.limits,
            wrong_passwords: 10,
            run_id: rand::random(),
        };
        let shared = Shared {
            uplink: Uplink::new(&client, &options),
            settings: Arc::new(settings),
            client,
            options,
            subscribers: Mutex::default(),
            known: Mutex::default(),
            counters: Counters::default(),
            started: SystemTime::now(),
            is_connected: AtomicBool::new(false),
            programs: Programs::default(),
            healings: Healings::default(),
            undecodable: Throttle::repeated(),
            left_out: Throttle::repeated(),
            rejected: Throttle::repeated(),
        };
        Agent { shared: Arc::new(shared) }
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Serves until `stop` is cancelled; then connections are closed, and events that wait are
    /// given three seconds.
    ///
    /// # Errors
    ///
    /// Without a password, the listener must be on loopback.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
        let address = listener.local_addr()?;
        if self.shared.settings.credentials.is_none() && !address.ip().is_loopback() {
            let why = format!("{address} is not on loopback: set a password for the agent");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let tasks = TaskTracker::new();
        let ends = stop.child_token();
        let _ends = ends.clone().drop_guard();
        let shared = &self.shared;
        tasks.spawn(ends.clone().run_until_cancelled_owned(downlink::run(shared.clone())));
        tasks.spawn(ends.clone().run_until_cancelled_owned(uplink::run(shared.clone())));
        tasks.spawn(ends.clone().run_until_cancelled_owned(forget(shared.clone())));
        ends.run_until_cancelled(accept(shared, &listener, &tasks, &ends)).await;
        tasks.close();
        tasks.wait().await;
        let _ = tokio::time::timeout(FLUSH, shared.uplink.flush()).await;
        Ok(())
    }
}

/// Accepts connections while there are slots for them.
async fn accept(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    tasks: &TaskTracker,
    ends: &CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(shared.options.max_connections));
    for id in 1.. {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                // No file descriptors are left, as a rule: some will be.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        let connection = connection::run(shared.clone(), stream, id);
        let connection = ends.clone().run_until_cancelled_owned(connection);
        tasks.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
}

async fn forget(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(FORGET).await;
        shared.known.lock().forget_old();
    }
}

impl Shared {
    /// Takes a message of a program: its events go to the gateways, and what could be read of it to
    /// the other programs on this host. The number of those.
    ///
    /// # Errors
    ///
    /// Why it, or the rest of it, could not be read. What stands before that was taken.
    fn publish(&self, message: &[u8], origin: &Origin) -> Result<usize, Undecodable> {
        count(&self.counters.published_messages, 1);
        let result = self.take(message, origin);
        if let Err(error) = &result {
            count(&self.counters.undecodable_messages, 1);
            if let Some(suppressed) = self.undecodable.pass() {
                tracing::warn!(%error, suppressed, "a message was not understood");
            }
        }
        result
    }

    fn take(&self, message: &[u8], origin: &Origin) -> Result<usize, Undecodable> {
        let format = &self.options.format;
        let decoded = format.decode(message)?;
        if decoded.sender == format.sender() {
            let why = format!("node id {} is that of the agent", decoded.sender);
            return Err(Undecodable::new(0, why));
        }
        self.programs.published(decoded.sender, origin);
        let mut error = None;
        {
            // One message after the other, so that its events stay together.
            let mut batch = self.uplink.begin();
            for kind in decoded.events {
                match kind {
                    Ok(kind) => {
                        self.known.lock().note(&kind);
                        count(&self.counters.published_events, 1);
                        batch.send(Event::from(kind), &self.counters);
                    }
                    Err(why) => error = Some(why),
                }
            }
        }
        let (messages, _) = format.recode(message);
        let receivers = self.deliver(&messages);
        error.map_or(Ok(receivers), Err)
    }

    /// Gives messages to all programs that are subscribed; the number of those.
    fn deliver(&self, messages: &[Bytes]) -> usize {
        let subscribers = self.subscribers.lock();
        for subscriber in subscribers.values() {
            subscriber.add(messages, self.options.subscriber_bytes);
        }
        subscribers.len()
    }

    /// Gives events of other nodes to the programs.
    fn receive(&self, kinds: &[Kind]) {
        count(&self.counters.received_events, kinds.len());
        {
            let mut known = self.known.lock();
            for kind in kinds {
                known.note(kind);
            }
        }
        let encoded = self.options.format.encode(kinds);
        for event in &encoded.left_out {
            count(&self.counters.left_out_events, 1);
            if let Some(suppressed) = self.left_out.pass() {
                let kind = kinds[event.index].row().name;
                let why = &event.why;
                tracing::info!(
                    kind,
                    why,
                    suppressed,
                    "the programs of this host have no such event"
                );
            }
        }
        self.deliver(&encoded.messages);
    }

    /// The messages that heal a program.
    fn healing(&self) -> Vec<Bytes> {
        let known = self.known.lock();
        self.options.format.heal(&Healing { known: &known, accounts: None, settings: true })
    }

    /// Heals all programs.
    fn heal(&self, why: &str) {
        let messages = self.healing();
        let programs = self.deliver(&messages);
        let accounts = self.known.lock().accounts().count();
        self.healed(why, programs, accounts);
        tracing::info!(why, programs, accounts, "programs were brought up to date");
    }

    /// Adds a connection that gets messages. It is healed first: nobody knows what it missed.
    fn subscribe(&self, id: u64, subscriber: &Arc<Subscriber>) {
        self.subscribers.lock().insert(id, subscriber.clone());
        self.heal_one(id, subscriber, "it has subscribed");
    }

    fn heal_one(&self, id: u64, subscriber: &Subscriber, why: &str) {
        subscriber.heal(&self.healing());
        let accounts = self.known.lock().accounts().count();
        self.healed(why, 1, accounts);
        tracing::info!(connection = id, why, accounts, "a program was brought up to date");
    }

    fn unsubscribe(&self, id: u64) {
        self.subscribers.lock().remove(&id);
    }
}

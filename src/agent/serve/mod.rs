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
mod handover;
mod joined;
mod listen;
mod programs;
mod report;
mod snapshot;
mod subscriber;
mod uplink;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trunkline_client::{
    Client,
    v1::{Event, event::Kind},
};

pub use self::{
    handover::StateFolder,
    joined::Join,
    listen::{Address, Listener},
    snapshot::Snapshot,
};
use self::{
    handover::Successor,
    programs::{Origin, Programs},
    report::Healings,
    subscriber::Subscriber,
    uplink::Uplink,
};
use super::{
    formats::{Decoded, Format, Healing, Known, Undecodable},
    resp::Limits,
    session::{Channel, Credentials, Settings},
};
use crate::throttle::Throttle;

/// How long events that wait may take to be accepted when the agent ends.
const FLUSH: Duration = Duration::from_secs(3);

/// How long clients may take to read the answers to their last commands when the agent ends. The
/// next process waits for as long.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

/// The wait after an error that only an operator can cure, before the next attempt; and between two
/// repairs.
const RETRY: Duration = Duration::from_secs(1);

/// The interval after which accounts that did not change again are forgotten at the next one.
const FORGET: Duration = Duration::from_hours(1);

/// The channel that may be joined where programs still use it.
const JOINED: Channel = 0;

/// How an agent serves.
#[derive(Debug)]
pub struct Options {
    /// What programs say to one another, on a channel each.
    pub formats: Vec<Box<dyn Format>>,
    /// The Redis where other nodes use the first of these channels. Its messages must have senders.
    pub join: Option<Join>,
    /// Who may connect. `None`: everybody who can, so the listener must be on loopback.
    pub credentials: Option<Credentials>,
    /// Limits of a command.
    pub limits: Limits,
    /// How long a client may take for the whole of a command, and to authenticate.
    pub patience: Duration,
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
            formats: vec![format],
            join: None,
            credentials: None,
            limits: Limits::default(),
            patience: Duration::from_mins(1),
            max_connections: 256,
            subscriber_bytes: 8 << 20,
            buffer_events: 100_000,
            buffer_bytes: 32 << 20,
            buffer_age: Duration::from_mins(10),
            host: String::new(),
        }
    }

    /// Adds a channel.
    ///
    /// # Errors
    ///
    /// It is there already.
    pub fn carry(&mut self, format: Box<dyn Format>) -> Result<(), String> {
        if self.formats.iter().any(|each| each.channel() == format.channel()) {
            return Err("this channel is carried already".into());
        }
        self.formats.push(format);
        Ok(())
    }

    /// Whether programs may connect to an address.
    ///
    /// # Errors
    ///
    /// Without a password, nothing but loopback is listened on.
    pub fn check(&self, address: &Address) -> io::Result<()> {
        if self.credentials.is_some() || address.is_local() {
            return Ok(());
        }
        let why = format!("{address} is not on loopback: set a password for the agent");
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
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
    /// How often the channel of Redis was joined, to be carried by this agent.
    pub joins: AtomicU64,
    /// Messages that were published there.
    pub joined_messages: AtomicU64,
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
    /// The number of the last connection.
    connections: AtomicU64,
    subscribers: Mutex<HashMap<u64, Arc<Subscriber>>>,
    /// What waits for the channel of Redis, while this agent carries it.
    joined: Mutex<Option<Arc<Subscriber>>>,
    known: Mutex<Known>,
    /// Where the stream of events goes on.
    resume_token: Mutex<Vec<u8>>,
    uplink: Uplink,
    counters: Counters,
    /// The agent before ended by force: what had waited for a gateway is lost.
    after_crash: bool,
    /// When the agent began.
    started: SystemTime,
    /// A stream of events is open.
    is_connected: AtomicBool,
    programs: Programs,
    healings: Healings,
    healed: Throttle,
    disconnected: Throttle,
    refused: Throttle,
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
        Agent::after(None, client, options)
    }

    /// As [`Agent::new`], in place of an agent that has ended.
    pub fn after(before: Option<Snapshot>, client: Client, options: Options) -> Agent {
        let settings = Settings {
            channels: options.formats.iter().map(|format| channel_of(&**format)).collect(),
            credentials: options.credentials.clone(),
            limits: options.limits,
            wrong_passwords: 10,
            run_id: rand::random(),
        };
        let before = before.unwrap_or_default();
        let after_crash = before.repair && before.resume_token.is_empty();
        let shared = Shared {
            uplink: Uplink::new(&client, &options, &before),
            settings: Arc::new(settings),
            client,
            options,
            connections: AtomicU64::new(0),
            subscribers: Mutex::default(),
            joined: Mutex::default(),
            known: Mutex::new(before.known()),
            resume_token: Mutex::new(before.resume_token),
            counters: Counters::default(),
            after_crash,
            started: SystemTime::now(),
            is_connected: AtomicBool::new(false),
            programs: Programs::default(),
            healings: Healings::default(),
            // A client that subscribes again and again does not fill the log.
            healed: Throttle::new(50, Duration::from_secs(10)),
            disconnected: Throttle::repeated(),
            refused: Throttle::repeated(),
            undecodable: Throttle::repeated(),
            left_out: Throttle::repeated(),
            rejected: Throttle::repeated(),
        };
        Agent { shared: Arc::new(shared) }
    }

    /// Whether this agent carries the channel of Redis that it is to join; none if there is none.
    pub fn is_joined(&self) -> Option<bool> {
        self.shared.options.join.as_ref().map(|_| self.shared.joined.lock().is_some())
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Serves until `stop` is cancelled, or until another process takes over in `folder`. Then
    /// connections are closed when their commands are answered. An agent that is stopped gives
    /// events that wait three seconds, and keeps the others in the folder, if it has one.
    ///
    /// # Errors
    ///
    /// Without a password, the listeners must be on loopback. The folder may be of no use.
    pub async fn serve(
        &self,
        listeners: Vec<Listener>,
        folder: Option<StateFolder>,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let shared = &self.shared;
        for listener in &listeners {
            shared.options.check(listener.address())?;
        }
        let handover = folder.as_ref().map(StateFolder::listen).transpose()?;
        let (tasks, connections) = (TaskTracker::new(), TaskTracker::new());
        let ends = Ends { closing: CancellationToken::new(), ended: CancellationToken::new() };
        let _ended = ends.ended.clone().drop_guard();
        let ended = &ends.ended;
        tasks.spawn(ended.clone().run_until_cancelled_owned(downlink::run(shared.clone())));
        tasks.spawn(ended.clone().run_until_cancelled_owned(uplink::run(shared.clone())));
        tasks.spawn(ended.clone().run_until_cancelled_owned(forget(shared.clone())));
        tasks.spawn(joined::run(shared.clone(), ended.clone()));
        let slots = Arc::new(Semaphore::new(shared.options.max_connections));
        let accepting =
            listeners.iter().map(|each| accept(shared, each, &slots, &connections, &ends));
        let successor = async {
            match &handover {
                Some(socket) => Successor::wait(socket, &listeners).await,
                None => std::future::pending().await,
            }
        };
        let successor = tokio::select! {
            _ = join_all(accepting) => None,
            () = stop.cancelled() => None,
            successor = successor => Some(successor),
        };

        connections.close();
        ends.closing.cancel();
        let _ = tokio::time::timeout(LAST_ANSWERS, connections.wait()).await;
        ends.ended.cancel();
        tasks.close();
        tasks.wait().await;
        connections.wait().await;
        let Some(successor) = successor else {
            let _ = tokio::time::timeout(FLUSH, shared.uplink.flush()).await;
            listeners.into_iter().for_each(Listener::close);
            let snapshot = shared.snapshot();
            let waiting = snapshot.waiting();
            if let Some(folder) = folder {
                tracing::info!(waiting, "the state is kept for the next start");
                folder.close();
                return folder.save(&snapshot);
            }
            if waiting > 0 {
                tracing::warn!(waiting, "no gateway accepted these events, and they are lost");
            }
            return Ok(());
        };
        let snapshot = shared.snapshot();
        tracing::info!(waiting = snapshot.waiting(), "another process takes over");
        match folder {
            Some(folder) if !successor.give(&snapshot).await => folder.save(&snapshot),
            _ => Ok(()),
        }
    }
}

/// What ends connections.
#[derive(Clone, Debug)]
struct Ends {
    /// They end when all that they have received is answered.
    closing: CancellationToken,
    /// They end at once.
    ended: CancellationToken,
}

/// Accepts connections while there are slots for them.
async fn accept(
    shared: &Arc<Shared>,
    listener: &Listener,
    slots: &Arc<Semaphore>,
    connections: &TaskTracker,
    ends: &Ends,
) {
    let address = listener.address().parts();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = loop {
            match listener.accept().await {
                Ok(stream) => break stream,
                // No file descriptors are left, as a rule: some will be.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        let id = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let closing = ends.closing.clone();
        let connection = connection::run(shared.clone(), stream, address.clone(), id, closing);
        let connection = ends.ended.clone().run_until_cancelled_owned(connection);
        connections.spawn(async move {
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

fn channel_of(format: &dyn Format) -> Bytes {
    Bytes::copy_from_slice(format.channel().as_bytes())
}

impl Shared {
    /// Takes a message of a program: its events go to the gateways, and what could be read of it to
    /// the other programs on this host. The number of those.
    ///
    /// # Errors
    ///
    /// Why it, or the rest of it, could not be read. What stands before that was taken.
    fn publish(
        &self,
        channel: Channel,
        message: &[u8],
        origin: &Origin,
    ) -> Result<usize, Undecodable> {
        let format = &self.options.formats[channel];
        let taken = format.decode(message).and_then(|decoded| match decoded.sender {
            Some(sender) if format.sender() == Some(sender) => {
                let why = format!("node id {sender} is that of the agent");
                Err(Undecodable::new(0, why))
            }
            sender => {
                if let Some(sender) = sender {
                    self.programs.published(sender, origin);
                }
                let joined = self.joined.lock().clone().filter(|_| channel == JOINED);
                self.take(channel, message, decoded, joined)
            }
        });
        self.counted(taken)
    }

    /// Takes a message of the channel that was joined, as [`Shared::publish`] does. True if it is
    /// one of the agent itself, which is left alone.
    fn receive_joined(&self, message: &[u8]) -> bool {
        let format = &self.options.formats[JOINED];
        let taken = match format.decode(message) {
            Ok(decoded) if decoded.sender == format.sender() => return true,
            Ok(decoded) => self.take(JOINED, message, decoded, None),
            Err(error) => Err(error),
        };
        // The error was logged, and nobody else is there to be told.
        let _ = self.counted(taken);
        false
    }

    fn counted(&self, taken: Result<usize, Undecodable>) -> Result<usize, Undecodable> {
        count(&self.counters.published_messages, 1);
        if let Err(error) = &taken {
            count(&self.counters.undecodable_messages, 1);
            if let Some(suppressed) = self.undecodable.pass() {
                tracing::warn!(%error, suppressed, "a message was not understood");
            }
        }
        taken
    }

    /// Gives a message to everybody, and its events to `joined` too.
    fn take(
        &self,
        channel: Channel,
        message: &[u8],
        decoded: Decoded<'_>,
        joined: Option<Arc<Subscriber>>,
    ) -> Result<usize, Undecodable> {
        let format = &self.options.formats[channel];
        let mut error = None;
        let mut for_joined = Vec::new();
        {
            // One message after the other, so that its events stay together.
            let mut batch = self.uplink.begin();
            for kind in decoded.events {
                match kind {
                    Ok(kind) => {
                        self.known.lock().note(&kind);
                        count(&self.counters.published_events, 1);
                        if joined.is_some() {
                            for_joined.push(kind.clone());
                        }
                        batch.send(Event::from(kind), &self.counters);
                    }
                    Err(why) => error = Some(why),
                }
            }
        }
        if let Some(joined) = joined {
            // As messages of the agent, which it knows when they come back.
            let encoded = format.encode(&for_joined);
            joined.add(channel, &encoded.messages, self.options.subscriber_bytes);
        }
        let (messages, _) = format.recode(message);
        let receivers = self.deliver_here(channel, &messages);
        error.map_or(Ok(receivers), Err)
    }

    /// Gives messages of the agent to all programs that are subscribed to a channel, and to the
    /// channel that was joined; the number of those programs.
    fn deliver(&self, channel: Channel, messages: &[Bytes]) -> usize {
        if let Some(joined) = &*self.joined.lock() {
            joined.add(channel, messages, self.options.subscriber_bytes);
        }
        self.deliver_here(channel, messages)
    }

    fn deliver_here(&self, channel: Channel, messages: &[Bytes]) -> usize {
        let subscribers = self.subscribers.lock();
        let max_bytes = self.options.subscriber_bytes;
        subscribers.values().filter(|each| each.add(channel, messages, max_bytes)).count()
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
        let mut left_out: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for (channel, format) in self.options.formats.iter().enumerate() {
            let encoded = format.encode(kinds);
            for event in encoded.left_out {
                left_out.entry(event.index).or_default().push(event.why);
            }
            self.deliver(channel, &encoded.messages);
        }
        for (index, why) in left_out {
            // Another channel has it.
            if why.len() < self.options.formats.len() {
                continue;
            }
            count(&self.counters.left_out_events, 1);
            if let Some(suppressed) = self.left_out.pass() {
                let kind = kinds[index].row().name;
                let why = why.join("; ");
                tracing::info!(
                    kind,
                    why,
                    suppressed,
                    "the programs of this host have no such event"
                );
            }
        }
    }

    /// The messages that heal the programs of a channel.
    fn healing(&self, channel: Channel) -> Vec<Bytes> {
        let known = self.known.lock();
        let healing = Healing { known: &known, accounts: None, settings: true };
        self.options.formats[channel].heal(&healing)
    }

    /// Heals all programs.
    fn heal(&self, why: &str) {
        let mut programs = 0;
        for channel in 0..self.options.formats.len() {
            let messages = self.healing(channel);
            if messages.is_empty() {
                continue;
            }
            if let Some(joined) = &*self.joined.lock() {
                joined.heal(channel, &messages);
            }
            let subscribers = self.subscribers.lock();
            programs += subscribers.values().filter(|each| each.heal(channel, &messages)).count();
        }
        let accounts = self.known.lock().accounts().count();
        self.healed_programs(why, programs, accounts);
        tracing::info!(why, programs, accounts, "programs were brought up to date");
    }

    /// Heals a program of a channel. One that has subscribed is healed first: nobody knows what it
    /// missed.
    fn heal_one(&self, id: u64, subscriber: &Subscriber, channel: Channel, why: &str) {
        let messages = self.healing(channel);
        if messages.is_empty() || !subscriber.heal(channel, &messages) {
            return;
        }
        self.healed_programs(why, 1, self.known.lock().accounts().count());
        if let Some(suppressed) = self.healed.pass() {
            let (connection, channel) = (id, self.options.formats[channel].channel());
            let done = "a program was brought up to date";
            tracing::info!(connection, channel, why, suppressed, "{done}");
        }
    }

    /// Ends the publisher, and takes what the next process needs.
    fn snapshot(&self) -> Snapshot {
        let repair = self.uplink.owes_repair(&self.counters);
        let unacknowledged = self.uplink.hand_over();
        let token = self.resume_token.lock().clone();
        Snapshot::new(token, &self.known.lock(), repair, unacknowledged)
    }
}

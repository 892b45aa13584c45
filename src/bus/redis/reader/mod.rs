//! The reader of all shards: receives what all gateways append, and delivers it in order.
//!
//! One task owns everything about reading: the subscriptions, the order of each shard, and the
//! repairs. An envelope that does not follow the last position is not delivered: the shard waits
//! while the hole is filled from history, and only what history no longer has becomes a gap.

mod health;
mod repair;
mod shard;
mod subscriptions;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

pub use self::shard::{Found, ShardReader};
use self::subscriptions::Subscribed;
use super::{
    envelope::{Body, Envelope, WriterId},
    history::Reading,
    liveness::Liveness,
    names::ShardNames,
    recovery::Memory,
    settings::Settings,
    subscription::{self, Link, SubscriptionEvent},
    topology::Topology,
};
use crate::{
    bus::{Delivery, GapCount, GapReason, Health, Incidents, ShardId, Sink, unix_ms},
    throttle::Throttle,
};

/// The interval of supervision.
const TICK: Duration = Duration::from_millis(200);

/// The interval at which the topology is read again although no error occurred.
const REFRESH: Duration = Duration::from_secs(30);

static TOPOLOGY: Throttle = Throttle::repeated();

/// Counters for the status of the bus.
#[derive(Default)]
pub(super) struct Counters {
    /// By reason.
    pub gaps: [GapCount; GapReason::ALL.len()],
    pub unreadable: u64,
}

/// The parts of the reader that others share.
pub(super) struct ReaderParts {
    /// Identity of this gateway's writers.
    pub own: WriterId,
    pub settings: Arc<Settings>,
    pub topology: Arc<Topology>,
    pub names: Vec<Arc<ShardNames>>,
    pub liveness: Vec<Arc<Liveness>>,
    pub memory: Vec<Arc<Mutex<Memory>>>,
    /// Asks a shard's writer for a probe.
    pub probes: Vec<Arc<Notify>>,
    /// Tells a shard's writer that there may be something to append again.
    pub recoveries: Vec<Arc<Notify>>,
    pub sink: Arc<dyn Sink>,
    pub health: watch::Sender<Health>,
    pub links: Arc<Mutex<Vec<Arc<Link>>>>,
    pub counters: Arc<Mutex<Counters>>,
    /// Counts items whose authentication tag does not verify, from channels and history.
    pub forged: Arc<AtomicU64>,
    /// What happens, for people.
    pub incidents: Arc<Mutex<Incidents>>,
    pub stop: CancellationToken,
}

/// The reader of all shards.
pub(super) struct Reader {
    parts: ReaderParts,
    shards: Vec<ShardReader>,
    subscriptions: HashMap<u64, Subscribed>,
    next_subscription: u64,
    /// Servers whose subscription was deaf, and when; of a cluster with classic channels.
    deaf: HashMap<String, Instant>,
    tasks: JoinSet<Done>,
    subscription_events: mpsc::Sender<SubscriptionEvent>,
}

/// Result of one of the reader's tasks.
enum Done {
    Subscription,
    Repair(ShardId, Result<Reading, String>),
    Refresh,
}

impl Reader {
    pub(super) fn new(parts: ReaderParts) -> (Reader, mpsc::Receiver<SubscriptionEvent>) {
        let (sender, receiver) = mpsc::channel(subscription::QUEUE);
        let tagged = |names: &Arc<ShardNames>| ShardReader::new(parts.own, names.auth.is_some());
        let shards = parts.names.iter().map(tagged).collect();
        let reader = Reader {
            parts,
            shards,
            subscriptions: HashMap::new(),
            next_subscription: 0,
            deaf: HashMap::new(),
            tasks: JoinSet::new(),
            subscription_events: sender,
        };
        (reader, receiver)
    }

    /// Reads until it is stopped.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<SubscriptionEvent>) {
        let mut changes = self.parts.topology.changes();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refresh = tokio::time::interval(REFRESH);
        let mut received = Vec::with_capacity(256);
        let stop = self.parts.stop.clone();
        self.plan();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                count = events.recv_many(&mut received, 256) => {
                    debug_assert!(count > 0, "the reader holds a sender");
                    for event in received.drain(..) {
                        self.handle(event);
                    }
                }
                Some(done) = self.tasks.join_next() => {
                    if let Ok(Done::Repair(shard, reading)) = done {
                        self.repaired(shard, reading);
                    }
                }
                _ = changes.changed() => self.plan(),
                _ = tick.tick() => self.supervise(),
                _ = refresh.tick() => self.refresh(),
            }
        }
        for running in self.subscriptions.values() {
            running.stop.cancel();
        }
        self.tasks.shutdown().await;
    }

    fn handle(&mut self, event: SubscriptionEvent) {
        match event {
            SubscriptionEvent::Message { shard, bytes } => {
                let auth = self.parts.names[shard.index()].auth.clone();
                match Envelope::open(bytes, auth.as_deref()) {
                    Some(envelope) => {
                        let index = shard.index();
                        let mut memory = self.parts.memory[index].lock();
                        let now = Instant::now();
                        let is_later = match (&envelope.body, &auth) {
                            (Body::Probe { time_ms, .. }, Some(auth)) => {
                                auth.is_later_than(*time_ms)
                            }
                            _ => false,
                        };
                        let found = self.shards[index].arrived(envelope, &mut memory, now);
                        drop(memory);
                        if is_later && found.received.is_some() {
                            // Probes tell the time, and those of this gateway may never be due.
                            self.parts.probes[index].notify_one();
                        }
                        self.found(shard, found);
                    }
                    None => self.count_unreadable(shard),
                }
            }
            SubscriptionEvent::Subscribed { link } => {
                let Some(running) = self.subscriptions.get(&link) else { return };
                if self.shards.iter().any(ShardReader::is_started) {
                    self.parts.incidents.lock().subscribed(unix_ms(), &running.address);
                }
                for shard in running.shards.clone() {
                    // A probe verifies the path, and history has what was missed.
                    self.parts.probes[shard.index()].notify_one();
                    if self.shards[shard.index()].repair() {
                        self.read_history(shard, Duration::ZERO);
                    }
                }
            }
            SubscriptionEvent::Moved => self.refresh(),
        }
    }

    /// Does what an envelope or a reading asks for.
    fn found(&mut self, id: ShardId, found: Found) {
        if found.forged > 0 {
            self.count_forged(id, found.forged);
        }
        for (publisher, stream) in found.streams {
            self.parts.sink.publishes(publisher, stream);
        }
        for delivery in found.deliveries {
            self.deliver(id, delivery);
        }
        if let Some(received) = found.received {
            self.received(id, received);
        }
        if found.recover {
            self.parts.recoveries[id.index()].notify_one();
        }
        if let Some(delay) = found.read_history {
            self.read_history(id, delay);
        }
    }

    fn count_forged(&self, shard: ShardId, count: u64) {
        let before = self.parts.forged.fetch_add(count, Ordering::Relaxed);
        // The first, and then at every doubling, so that a flood does not fill the log.
        if before == 0 || (before + count).ilog2() > before.ilog2() {
            tracing::warn!(%shard, count = before + count,
                "an authentication tag does not verify: forged, replayed, or of another key");
        }
    }

    fn count_unreadable(&mut self, shard: ShardId) {
        let mut counters = self.parts.counters.lock();
        counters.unreadable += 1;
        // The first, and then at every doubling, so that a flood does not fill the log.
        if counters.unreadable.is_power_of_two() {
            tracing::warn!(%shard, count = counters.unreadable,
                "a message of an unknown writer on the channel");
        }
    }

    fn deliver(&mut self, shard: ShardId, delivery: Delivery) {
        if let Delivery::Gap(gap) = &delivery {
            let mut counters = self.parts.counters.lock();
            let count = &mut counters.gaps[gap.reason.index()];
            count.gaps += 1;
            count.missed_events += gap.missed().unwrap_or(0);
            drop(counters);
            self.parts.incidents.lock().gap(unix_ms(), shard, gap);
            tracing::warn!(%shard, reason = %gap.reason, lost = ?gap.lost, to = %gap.position,
                missed = gap.missed(), "events are missing");
        }
        if let Delivery::Frame(frame) = &delivery
            && frame.is_copy()
        {
            self.parts.incidents.lock().restored(shard, frame.count);
        }
        if let Delivery::Epoch(start) = &delivery {
            let epoch = start.position.epoch;
            self.parts.incidents.lock().began(unix_ms(), shard, epoch);
            tracing::info!(%shard, position = %start.position, previous = %start.previous,
                "a new epoch");
        }
        self.parts.sink.deliver(shard, delivery);
        self.parts.liveness[shard.index()].reached(self.shards[shard.index()].position());
    }

    fn refresh(&mut self) {
        let topology = self.parts.topology.clone();
        self.tasks.spawn(async move {
            if let Err(error) = topology.refresh().await
                && let Some(left_out) = TOPOLOGY.pass()
            {
                tracing::warn!(%error, left_out, "the topology could not be read");
            }
            Done::Refresh
        });
    }
}

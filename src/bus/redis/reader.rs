//! Listens to all shards, and hands on what it hears in their order.
//!
//! One task owns everything about reading: the subscriptions, the order of each shard, and the repairs. What does not follow
//! is not handed on: the shard waits while the hole is filled from history, and only what history no longer has is told as a
//! gap.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::{
    envelope::{Body, Envelope, WriterId},
    history::{self, Reading},
    names::ShardNames,
    order::{Order, Step},
    proof::Proof,
    settings::Settings,
    subscription::{self, Heard, Link, Subscription},
    topology::Topology,
};
use crate::{
    bus::{Delivery, GapCount, GapReason, Health, ShardId, Sink},
    throttle::Throttle,
};

/// How often proofs are looked at.
const TICK: Duration = Duration::from_millis(200);

/// How often the topology is read again although nothing happened.
const REFRESH: Duration = Duration::from_secs(30);

/// Envelopes, and bytes of them, that may wait for a shard while it is repaired. What does not fit is in history.
const PENDING: usize = 4096;
const PENDING_BYTES: usize = 8 * 1024 * 1024;

/// How many writers' beacons are remembered.
const MAX_WRITERS: usize = 1024;

/// Lines about what is tried again and again.
static HISTORY: Throttle = Throttle::repeated();
static DEAF: Throttle = Throttle::repeated();
static TOPOLOGY: Throttle = Throttle::repeated();

/// The wait before a repair that failed is tried again.
const REPAIR_RETRY: Duration = Duration::from_millis(200);

/// Counters for people.
#[derive(Default)]
pub(super) struct Counters {
    /// By reason.
    pub gaps: [GapCount; GapReason::ALL.len()],
    pub unreadable: u64,
}

/// What the reader is given.
pub(super) struct ReaderParts {
    /// Identity of this gateway's writers: what they sent proves the path when it comes back.
    pub own: WriterId,
    pub settings: Arc<Settings>,
    pub topology: Arc<Topology>,
    pub names: Vec<Arc<ShardNames>>,
    pub proofs: Vec<Arc<Proof>>,
    /// Asks a shard's writer for a beacon.
    pub beacons: Vec<Arc<Notify>>,
    pub sink: Arc<dyn Sink>,
    pub health: watch::Sender<Health>,
    pub links: Arc<Mutex<Vec<Arc<Link>>>>,
    pub counters: Arc<Mutex<Counters>>,
    /// What carried a seal that does not hold, wherever it was found.
    pub forged: Arc<AtomicU64>,
    pub stop: CancellationToken,
}

/// The reader of all shards.
pub(super) struct Reader {
    parts: ReaderParts,
    shards: Vec<Shard>,
    subscriptions: HashMap<u64, Subscribed>,
    next_subscription: u64,
    tasks: JoinSet<Done>,
    heard: mpsc::Sender<Heard>,
}

/// What ends one of the reader's tasks.
enum Done {
    Subscription,
    Repair(ShardId, Result<Reading, String>),
    Refresh,
}

#[derive(Default)]
struct Shard {
    order: Order,
    started: bool,
    /// What was heard while a repair is under way; none while there is none.
    pending: Option<Pending>,
    /// The last beacon of each writer, where they are sealed: an earlier one is a replay.
    beacons: HashMap<WriterId, u64>,
}

#[derive(Default)]
struct Pending {
    envelopes: VecDeque<Envelope>,
    bytes: usize,
    /// Whether something did not fit: then history is to be read once more.
    overflowed: bool,
}

struct Subscribed {
    address: String,
    shards: Vec<ShardId>,
    link: Arc<Link>,
    stop: CancellationToken,
}

impl Reader {
    pub(super) fn new(parts: ReaderParts) -> (Reader, mpsc::Receiver<Heard>) {
        let (heard, hearing) = mpsc::channel(subscription::QUEUE);
        let shards = parts.names.iter().map(|_| Shard::default()).collect();
        let reader = Reader {
            parts,
            shards,
            subscriptions: HashMap::new(),
            next_subscription: 0,
            tasks: JoinSet::new(),
            heard,
        };
        (reader, hearing)
    }

    /// Reads until told to stop.
    pub(super) async fn run(mut self, mut hearing: mpsc::Receiver<Heard>) {
        let mut changes = self.parts.topology.changes();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refresh = tokio::time::interval(REFRESH);
        let mut heard = Vec::with_capacity(256);
        let stop = self.parts.stop.clone();
        self.plan();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                count = hearing.recv_many(&mut heard, 256) => {
                    debug_assert!(count > 0, "the reader holds a sender");
                    for heard in heard.drain(..) {
                        self.hear(heard);
                    }
                }
                Some(done) = self.tasks.join_next() => {
                    if let Ok(Done::Repair(shard, reading)) = done {
                        self.repaired(shard, reading);
                    }
                }
                _ = changes.changed() => self.plan(),
                _ = tick.tick() => self.look(),
                _ = refresh.tick() => self.refresh(),
            }
        }
        for subscription in self.subscriptions.values() {
            subscription.stop.cancel();
        }
        self.tasks.shutdown().await;
    }

    /// Makes the subscriptions that the topology wants, and ends the others.
    fn plan(&mut self) {
        let mut wanted: HashMap<String, Vec<ShardId>> = HashMap::new();
        let classic = self.parts.settings.cluster && !self.parts.settings.sharded;
        for shard in 0..self.shards.len() {
            let shard = ShardId(u16::try_from(shard).unwrap_or(u16::MAX));
            let owner = self.parts.topology.master(shard).map(|server| server.address.clone());
            if let Some(address) = owner.filter(|_| !classic) {
                wanted.entry(address).or_default().push(shard);
            }
        }
        if classic && let Some(address) = self.classic_server() {
            wanted.insert(
                address,
                ShardId::all(u16::try_from(self.shards.len()).unwrap_or(0)).collect(),
            );
        }
        self.subscriptions.retain(|_, kept| {
            let keep = wanted.get(&kept.address) == Some(&kept.shards);
            if keep {
                wanted.remove(&kept.address);
            } else {
                kept.stop.cancel();
            }
            keep
        });
        for (address, shards) in wanted {
            self.subscribe(&address, shards);
        }
        let links = self.subscriptions.values().map(|kept| kept.link.clone()).collect();
        *self.parts.links.lock() = links;
    }

    /// Classic messages reach every node: the one that is listened to, while it lives, or else any master.
    fn classic_server(&self) -> Option<String> {
        let kept = self.subscriptions.values().find(|kept| kept.link.since().is_some());
        kept.map(|kept| kept.address.clone())
            .or_else(|| self.parts.topology.any().first().map(|server| server.address.clone()))
    }

    fn subscribe(&mut self, address: &str, shards: Vec<ShardId>) {
        let Some(server) = self.parts.topology.server(address) else { return };
        let channel =
            |shard: &ShardId| self.parts.names[shard.index()].channel.clone().into_bytes();
        let channels = shards.iter().map(|shard| (channel(shard), *shard)).collect();
        let link = Arc::new(Link::new(address.to_owned()));
        let stop = self.parts.stop.child_token();
        self.next_subscription += 1;
        let subscription = Subscription {
            id: self.next_subscription,
            server,
            channels,
            sharded: self.parts.settings.sharded,
            protocol: self.parts.settings.protocol,
            heard: self.heard.clone(),
            link: link.clone(),
            stop: stop.clone(),
        };
        self.tasks.spawn(async move {
            subscription.run().await;
            Done::Subscription
        });
        let kept = Subscribed { address: address.to_owned(), shards, link, stop };
        self.subscriptions.insert(self.next_subscription, kept);
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Message { shard, bytes } => {
                let seal = self.parts.names[shard.index()].seal.clone();
                match Envelope::open(bytes, seal.as_deref()) {
                    Some(envelope) if seal.is_some() => self.sealed(shard, envelope),
                    Some(envelope) => self.arrived(shard, envelope),
                    None => self.foreign(shard),
                }
            }
            Heard::Subscribed { link } => {
                let Some(kept) = self.subscriptions.get(&link) else { return };
                for shard in kept.shards.clone() {
                    // A beacon proves the path, and history has what was missed.
                    self.parts.beacons[shard.index()].notify_one();
                    if self.shards[shard.index()].started {
                        self.repair(shard);
                    }
                }
            }
            Heard::Moved => self.refresh(),
        }
    }

    /// What came over a channel on which everything is sealed.
    fn sealed(&mut self, id: ShardId, envelope: Envelope) {
        match &envelope.body {
            // If something stands at its place, history has it, and the next beacon shows that it is missing.
            Body::Forged => return self.forged(id, 1),
            Body::Beacon { writer, number } => {
                let beacons = &mut self.shards[id.index()].beacons;
                if beacons.get(writer).is_some_and(|last| number <= last) {
                    return self.forged(id, 1);
                }
                if beacons.len() >= MAX_WRITERS && !beacons.contains_key(writer) {
                    beacons.clear();
                }
                beacons.insert(*writer, *number);
            }
            // Redis makes it, and so might anybody: history says it beside the shard's state, to which writers append.
            Body::EpochStart { .. } => {
                let shard = &mut self.shards[id.index()];
                match &mut shard.pending {
                    Some(pending) => pending.overflowed = true,
                    None if shard.started && envelope.position > shard.order.position() => {
                        self.repair(id);
                    }
                    None => {}
                }
                return;
            }
            Body::Frame(_) | Body::Unreadable => {}
        }
        self.arrived(id, envelope);
    }

    /// Counts what a stranger made.
    fn forged(&self, shard: ShardId, count: u64) {
        let before = self.parts.forged.fetch_add(count, Ordering::Relaxed);
        // The first, and then ever more rarely.
        if before == 0 || (before + count).ilog2() > before.ilog2() {
            tracing::warn!(%shard, count = before + count, "a seal does not hold: forged, replayed, or of another key");
        }
    }

    fn arrived(&mut self, id: ShardId, envelope: Envelope) {
        let own = match &envelope.body {
            Body::Beacon { writer, .. } => *writer == self.parts.own,
            Body::Frame(frame) => frame.writer == self.parts.own,
            _ => false,
        };
        let shard = &mut self.shards[id.index()];
        if !shard.started {
            // A beacon says where the shard stands, and that what follows will be heard.
            if own && matches!(envelope.body, Body::Beacon { .. }) {
                shard.started = true;
                shard.order = Order::after(envelope.position);
                self.deliver(id, Delivery::Start(envelope.position));
                self.proven(id);
            }
            return;
        }
        if own {
            self.proven(id);
        }
        self.offer(id, envelope);
    }

    fn proven(&self, shard: ShardId) {
        self.parts.proofs[shard.index()].returned();
        if matches!(&*self.parts.health.borrow(), Health::NotReady(_)) {
            self.judge();
        }
    }

    fn foreign(&mut self, shard: ShardId) {
        let mut counters = self.parts.counters.lock();
        counters.unreadable += 1;
        // The first, and then ever more rarely: a stranger's loop must not fill the log.
        if counters.unreadable.is_power_of_two() {
            tracing::warn!(%shard, count = counters.unreadable, "foreign bytes on the channel");
        }
    }

    /// Reads history from the last place on, unless that is under way.
    fn repair(&mut self, shard: ShardId) {
        let state = &mut self.shards[shard.index()];
        if state.pending.is_none() {
            state.pending = Some(Pending::default());
            self.read_history(shard, Duration::ZERO);
        }
    }

    fn read_history(&mut self, shard: ShardId, delay: Duration) {
        let topology = self.parts.topology.clone();
        let names = self.parts.names[shard.index()].clone();
        let after = self.shards[shard.index()].order.position();
        self.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            Done::Repair(shard, history::read(&topology, &names, shard, after, false).await)
        });
    }

    fn repaired(&mut self, id: ShardId, reading: Result<Reading, String>) {
        let shard = &mut self.shards[id.index()];
        let reading = match reading {
            Ok(reading) => reading,
            Err(why) => {
                if let Some(left_out) = HISTORY.pass() {
                    tracing::warn!(shard = %id, why, left_out, "history could not be read; trying again");
                }
                self.read_history(id, REPAIR_RETRY);
                return;
            }
        };
        let mut deliveries = Vec::with_capacity(reading.entries.len());
        let forged = reading.forged();
        for entry in &reading.entries {
            shard.order.take_history(entry, &mut deliveries);
        }
        if !reading.more {
            shard.order.finish_history(reading.tip, &mut deliveries);
        }
        let pending = shard.pending.take().unwrap_or_default();
        if forged > 0 {
            self.forged(id, forged);
        }
        if !deliveries.is_empty() {
            self.parts.proofs[id.index()].repaired();
        }
        for delivery in deliveries {
            self.deliver(id, delivery);
        }
        if reading.more || pending.overflowed {
            self.shards[id.index()].pending = Some(Pending { overflowed: false, ..pending });
            self.read_history(id, Duration::ZERO);
            return;
        }
        // What still does not follow is newer than the reading, or a lie; the next reading tells.
        for envelope in pending.envelopes {
            self.offer(id, envelope);
        }
    }

    fn offer(&mut self, id: ShardId, envelope: Envelope) {
        let shard = &mut self.shards[id.index()];
        if let Some(pending) = &mut shard.pending {
            pending.add(envelope);
            return;
        }
        match shard.order.offer(&envelope) {
            Step::Next(delivery) => self.deliver(id, delivery),
            Step::Nothing => {}
            // Whatever it is, history has it too; if history does not, it was never accepted.
            Step::Hole => self.repair(id),
        }
    }

    fn deliver(&mut self, shard: ShardId, delivery: Delivery) {
        if let Delivery::Gap(gap) = &delivery {
            let mut counters = self.parts.counters.lock();
            let count = &mut counters.gaps[gap.reason.index()];
            count.gaps += 1;
            count.missed_events += gap.missed.unwrap_or(0);
            tracing::warn!(%shard, reason = %gap.reason, from = %gap.from, to = %gap.to,
                missed = gap.missed, "events are missing");
        }
        if let Delivery::Epoch(position) = &delivery {
            tracing::info!(%shard, position = %position, "a new epoch; nothing is missing");
        }
        self.parts.sink.deliver(shard, delivery);
        self.parts.proofs[shard.index()].reached(self.shards[shard.index()].order.position());
    }

    /// Finds deaf subscriptions and old proofs.
    fn look(&mut self) {
        for kept in self.subscriptions.values() {
            let Some(since) = kept.link.since() else { continue };
            let deaf = kept.shards.iter().find(|s| self.parts.proofs[s.index()].is_deaf(since));
            if let Some(shard) = deaf {
                if let Some(left_out) = DEAF.pass() {
                    tracing::warn!(server = kept.address, %shard, left_out,
                        "Redis accepts what this subscription does not bring: making it anew");
                }
                kept.link.renew();
            }
        }
        if self.parts.settings.cluster
            && !self.parts.settings.sharded
            && self.subscriptions.values().all(|kept| kept.link.since().is_none())
        {
            self.plan();
        }
        self.judge();
    }

    /// Says whether all shards are proven.
    fn judge(&self) {
        let doubt = self.parts.proofs.iter().enumerate().find_map(|(shard, proof)| {
            let doubt = if self.shards[shard].started {
                proof.doubt()
            } else {
                Some(proof.doubt().unwrap_or_else(|| "its place is not known yet".into()))
            };
            doubt.map(|why| format!("shard {shard}: {why}"))
        });
        let health = doubt.map_or(Health::Ready, Health::NotReady);
        self.parts.health.send_if_modified(|before| {
            // The reason changes with the time; that alone is no news.
            let news = matches!(
                (&*before, &health),
                (Health::Ready, Health::NotReady(_)) | (Health::NotReady(_), Health::Ready)
            );
            *before = health;
            news
        });
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

impl Pending {
    fn add(&mut self, envelope: Envelope) {
        let bytes = envelope.size();
        if self.envelopes.len() >= PENDING || self.bytes + bytes > PENDING_BYTES {
            self.overflowed = true;
            return;
        }
        self.bytes += bytes;
        self.envelopes.push_back(envelope);
    }
}

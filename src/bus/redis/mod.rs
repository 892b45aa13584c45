//! The bus over Redis: one standalone server, or a Redis Cluster.
//!
//! Each shard has a writer (what this gateway accepts) and all share one reader (what all gateways accepted). The append
//! script gives every frame its place, keeps it as history and publishes it, in one step. Nothing outside this module names
//! the redis crate.

mod attempts;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod check;
pub mod doctor;
mod envelope;
mod history;
mod link;
mod members;
mod names;
mod order;
mod packing;
mod proof;
mod reader;
mod script;
mod seal;
mod settings;
mod subscription;
mod topology;
mod writer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use redis::Value;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    members::MemberStore,
    names::{MemberNames, ShardNames},
    order::Order,
    proof::Proof,
    reader::{Counters, Reader, ReaderParts},
    seal::Keys,
    subscription::Link,
    topology::Topology,
    writer::{Job, Writer},
};
use super::{
    AppendError, Appended, Batch, Bus, BusStatus, Exchange, Health, History, HistoryPage, MemberId,
    Members, Part, Position, Retained, ShardId, Sink, StartError,
};

use crate::throttle::Throttle;

pub use settings::Settings;

/// Shards a master, where nothing else is set: two, so that a master's work is not one shard's.
const SHARDS_A_MASTER: usize = 2;

/// The wait between two attempts to find Redis at the start.
const START_RETRY: Duration = Duration::from_millis(500);

/// How long beyond its deadline a caller waits for the writer's own answer, which is more exact.
const GRACE: Duration = Duration::from_millis(250);

/// The bus over Redis.
pub struct RedisBus {
    settings: Arc<Settings>,
    topology: Arc<Topology>,
    names: Vec<Arc<ShardNames>>,
    members: MemberStore,
    queues: Vec<mpsc::Sender<Job>>,
    proofs: Vec<Arc<Proof>>,
    health: watch::Receiver<Health>,
    links: Arc<Mutex<Vec<Arc<Link>>>>,
    counters: Arc<Mutex<Counters>>,
    forged: Arc<AtomicU64>,
    writers: TaskTracker,
    reader: TaskTracker,
    stop_writers: CancellationToken,
    stop_reader: CancellationToken,
}

/// What the gateways of one prefix must agree on, as it is recorded in Redis by the first of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Deployment {
    shards: u16,
    mode: String,
    /// The id of the key with which frames are sealed.
    key: Option<String>,
}

impl RedisBus {
    /// Finds Redis, agrees with the other gateways, and starts. Waits for a Redis that is not there; the error is for what
    /// waiting does not mend. `sink` is made when the number of shards is known.
    pub async fn start(
        settings: Settings,
        waiting: impl Fn(String),
        sink: impl FnOnce(u16) -> Arc<dyn Sink>,
    ) -> Result<RedisBus, StartError> {
        let settings = Arc::new(settings);
        let throttle = Throttle::repeated();
        let deployment = loop {
            match agree(&settings).await {
                Ok(deployment) => break deployment,
                Err(Disagree::NotNow(why)) => {
                    if let Some(left_out) = throttle.pass() {
                        tracing::warn!(why, left_out, "waiting for Redis");
                    }
                    waiting(why);
                    tokio::time::sleep(START_RETRY).await;
                }
                Err(Disagree::Never(why)) => return Err(StartError(why)),
            }
        };
        tracing::info!(
            shards = deployment.shards,
            mode = deployment.mode,
            "agreed with the deployment"
        );
        let count = deployment.shards;
        let names: Vec<_> = ShardId::all(count)
            .map(|shard| ShardNames::new(&settings.prefix, shard, count))
            .map(|names| Arc::new(names.sealed_by(settings.keys.as_ref())))
            .collect();
        // The members' slot stands behind those of the shards.
        let members = MemberNames::new(&settings.prefix);
        let slots = names.iter().map(|names| names.slot).chain([members.slot]).collect();
        let topology =
            Topology::new((*settings).clone(), slots).map_err(|e| StartError(e.to_string()))?;
        let topology = Arc::new(topology);
        let slot = ShardId(count);
        let members = MemberStore { names: members, slot, topology: topology.clone() };
        Ok(Self::run(settings, topology, names, members, sink(count)))
    }

    fn run(
        settings: Arc<Settings>,
        topology: Arc<Topology>,
        names: Vec<Arc<ShardNames>>,
        members: MemberStore,
        sink: Arc<dyn Sink>,
    ) -> RedisBus {
        let own = rand::random();
        let proofs: Vec<Arc<Proof>> = names.iter().map(|_| Arc::default()).collect();
        let beacons: Vec<Arc<Notify>> = names.iter().map(|_| Arc::default()).collect();
        let (health, healthy) = watch::channel(Health::NotReady("starting".into()));
        let links = Arc::default();
        let counters = Arc::default();
        let forged = Arc::default();
        let (writers, reader) = (TaskTracker::new(), TaskTracker::new());
        let (stop_writers, stop_reader) = (CancellationToken::new(), CancellationToken::new());

        let (task, hearing) = Reader::new(ReaderParts {
            own,
            settings: settings.clone(),
            topology: topology.clone(),
            names: names.clone(),
            proofs: proofs.clone(),
            beacons: beacons.clone(),
            sink,
            health,
            links: Arc::clone(&links),
            counters: Arc::clone(&counters),
            forged: Arc::clone(&forged),
            stop: stop_reader.clone(),
        });
        reader.spawn(task.run(hearing));

        let mut queues = Vec::with_capacity(names.len());
        for (index, names) in names.iter().enumerate() {
            let (queue, jobs) = mpsc::channel(writer::QUEUE);
            queues.push(queue);
            let task = Writer {
                shard: ShardId(u16::try_from(index).unwrap_or(u16::MAX)),
                id: own,
                key: names.writer(own),
                names: names.clone(),
                settings: settings.clone(),
                topology: topology.clone(),
                queue: jobs,
                proof: proofs[index].clone(),
                beacon_now: beacons[index].clone(),
                stop: stop_writers.clone(),
                state: writer::State::default(),
            };
            writers.spawn(task.run());
        }
        writers.close();
        reader.close();
        RedisBus {
            settings,
            topology,
            names,
            members,
            queues,
            proofs,
            health: healthy,
            links,
            counters,
            forged,
            writers,
            reader,
            stop_writers,
            stop_reader,
        }
    }

    async fn append_batch(&self, shard: ShardId, batch: Batch) -> Result<Appended, AppendError> {
        let deadline = Instant::now() + self.settings.timeout;
        let (answer, answered) = oneshot::channel();
        let sent = Arc::new(AtomicBool::new(false));
        let job = Job { batch, deadline, sent: sent.clone(), answer };
        let queue = &self.queues[shard.index()];
        match tokio::time::timeout_at(deadline.into(), queue.send(job)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(AppendError::Closed),
            Err(_) => return Err(AppendError::Unavailable("the bus is behind".into())),
        }
        match tokio::time::timeout_at((deadline + GRACE).into(), answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(AppendError::Closed),
            Err(_) if sent.load(Ordering::Acquire) => {
                Err(AppendError::OutcomeUnknown("Redis did not answer in time".into()))
            }
            Err(_) => Err(AppendError::Unavailable("Redis did not take it in time".into())),
        }
    }

    async fn read_page(
        &self,
        shard: ShardId,
        after: Position,
        max_bytes: usize,
    ) -> Result<HistoryPage, AppendError> {
        let names = &self.names[shard.index()];
        let mut order = Order::within(after);
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        loop {
            let replica = self.settings.read_from_replicas && self.settings.cluster;
            let from = order.position();
            let reading = history::read(&self.topology, names, shard, from, replica)
                .await
                .map_err(AppendError::Unavailable)?;
            self.forged.fetch_add(reading.forged(), Ordering::Relaxed);
            for entry in &reading.entries {
                order.take_history(entry, &mut deliveries);
                bytes += entry.size();
            }
            if !reading.more {
                order.finish_history(reading.tip, &mut deliveries);
            }
            if !reading.more || bytes >= max_bytes {
                let next = order.position();
                return Ok(HistoryPage { deliveries, next, at_end: !reading.more });
            }
        }
    }
}

impl Bus for RedisBus {
    fn kind(&self) -> &'static str {
        if self.settings.cluster { "redis-cluster" } else { "redis" }
    }

    fn shards(&self) -> u16 {
        u16::try_from(self.names.len()).unwrap_or(u16::MAX)
    }

    fn append(&self, shard: ShardId, batch: Batch) -> BoxFuture<'_, Result<Appended, AppendError>> {
        self.append_batch(shard, batch).boxed()
    }

    fn history(&self) -> Option<&dyn History> {
        Some(self)
    }

    fn members(&self) -> Option<&dyn Members> {
        Some(self)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn status(&self) -> BusStatus {
        let counters = self.counters.lock();
        BusStatus {
            links: self.links.lock().iter().map(|link| link.status()).collect(),
            shards: self.proofs.iter().map(|proof| proof.status()).collect(),
            gaps: counters.gaps,
            unreadable: counters.unreadable,
            forged: self.forged.load(Ordering::Relaxed),
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            self.stop_writers.cancel();
            self.writers.wait().await;
            self.stop_reader.cancel();
            self.reader.wait().await;
        }
        .boxed()
    }
}

impl History for RedisBus {
    fn page(
        &self,
        shard: ShardId,
        after: Position,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<HistoryPage, AppendError>> {
        self.read_page(shard, after, max_bytes).boxed()
    }

    fn retained(&self, shard: ShardId) -> BoxFuture<'_, Result<Vec<Retained>, AppendError>> {
        async move {
            let unavailable = |why: String| AppendError::Unavailable(why);
            let server = self.topology.master(shard);
            let server = server.ok_or_else(|| unavailable("no master is known".into()))?;
            let names = &self.names[shard.index()];
            history::retained(&server, names, &self.forged).await.map_err(unavailable)
        }
        .boxed()
    }

    fn tip(&self, shard: ShardId) -> BoxFuture<'_, Result<Position, AppendError>> {
        async move {
            let names = &self.names[shard.index()];
            // Nothing lies behind this place, so the reading brings the tip alone.
            let end = Position::new(u64::MAX, u64::MAX - 1);
            let reading = history::read(&self.topology, names, shard, end, false).await;
            reading.map(|reading| reading.tip).map_err(AppendError::Unavailable)
        }
        .boxed()
    }
}

impl Members for RedisBus {
    fn exchange(&self, part: Part) -> BoxFuture<'_, Result<Exchange, AppendError>> {
        async move { self.members.exchange(&part).await }.boxed()
    }

    fn pages(
        &self,
        member: MemberId,
        pages: Vec<u32>,
    ) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, AppendError>> {
        async move { self.members.pages(member, &pages).await }.boxed()
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        // Tasks end even where nobody called `close`.
        self.stop_writers.cancel();
        self.stop_reader.cancel();
    }
}

/// Why a gateway cannot join a deployment.
enum Disagree {
    /// Redis is not there, or not ready.
    NotNow(String),
    /// It is configured otherwise than the others.
    Never(String),
}

/// What the channels of these settings are called in the deployment's record.
fn mode(settings: &Settings) -> &'static str {
    match (settings.cluster, settings.sharded) {
        (false, _) => "standalone",
        (true, true) => "sharded",
        (true, false) => "classic",
    }
}

/// Reads what the deployment's first gateway recorded, or records it.
async fn agree(settings: &Arc<Settings>) -> Result<Deployment, Disagree> {
    let key = names::deployment(&settings.prefix);
    // A topology of one pseudo-shard: the slot of the record.
    let topology = Topology::new((**settings).clone(), vec![names::slot_of(&key)])
        .map_err(|error| Disagree::Never(error.to_string()))?;
    let not_now = |error: topology::TopologyError| Disagree::NotNow(error.to_string());
    let masters = if settings.cluster {
        let masters = topology.count_masters().await.map_err(not_now)?;
        topology.refresh().await.map_err(not_now)?;
        masters
    } else {
        1
    };
    let mode = mode(settings);
    let default = if settings.cluster { masters * SHARDS_A_MASTER } else { 1 };
    let ours = settings.shards.unwrap_or(u16::try_from(default.min(256)).unwrap_or(256));
    let keys = settings.keys.as_ref().map(Keys::ids).unwrap_or_default();
    let recorded = record(&topology, &key, ours, mode, &keys).await?;
    if let Some(why) = key_differs(&settings.prefix, recorded.key.as_deref(), &keys) {
        return Err(Disagree::Never(why));
    }
    if let Some(shards) = settings.shards.filter(|shards| *shards != recorded.shards) {
        return Err(Disagree::Never(format!(
            "shards is {shards} here, and the deployment with prefix {:?} has {}: set shards to {} or leave it out",
            settings.prefix, recorded.shards, recorded.shards
        )));
    }
    if recorded.mode != mode {
        return Err(Disagree::Never(format!(
            "this gateway would use {mode} channels, and the deployment with prefix {:?} uses {} ones: \
             set coordinator.@type and coordinator.protocolVersion as on the other gateways",
            settings.prefix, recorded.mode
        )));
    }
    Ok(recorded)
}

/// How the keys of this gateway differ from the one that the deployment recorded.
fn key_differs(prefix: &str, recorded: Option<&str>, ours: &[String]) -> Option<String> {
    let deployment = format!("the deployment with prefix {prefix:?}");
    match (recorded, ours.first()) {
        (Some(recorded), Some(_)) if ours.iter().any(|key| key == recorded) => None,
        (None, None) => None,
        (Some(recorded), Some(_)) => Some(format!(
            "frameKey holds the keys {} here, and {deployment} has {recorded}: all gateways need a key in common",
            ours.join(", ")
        )),
        (Some(recorded), None) => Some(format!(
            "frameKey is not set here, and {deployment} has the key {recorded}: set it as on the other gateways"
        )),
        (None, Some(_)) => Some(format!(
            "frameKey is set here, and {deployment} has no key: leave it out, or turn it on for all \
             (stop every gateway, DEL {prefix}:deployment, start them with the key)"
        )),
    }
}

async fn record(
    topology: &Topology,
    key: &str,
    shards: u16,
    mode: &str,
    keys: &[String],
) -> Result<Deployment, Disagree> {
    let refused = |why: String| Disagree::NotNow(why);
    let server = topology
        .master(ShardId(0))
        .ok_or_else(|| refused("no server is known to own the deployment's record".into()))?;
    let mut command = server.command().await.map_err(|error| refused(error.to_string()))?;
    let failed = |error| refused(format!("{}: {error}", server.address));
    let ours = keys.first();
    // A key is recorded by the first of all; who comes to a deployment without one leaves it so.
    let mut records_key = false;
    if ours.is_some() {
        let asked = redis::cmd("HMGET").arg(key).arg("shards").arg("key").to_owned();
        let fields: Result<(Option<String>, Option<String>), _> =
            asked.query_async(&mut command.connection).await;
        let (shards, recorded) = fields.map_err(failed)?;
        records_key = shards.is_none() || recorded.is_some();
    }
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.cmd("HSETNX").arg(key).arg("shards").arg(shards).ignore();
    pipe.cmd("HSETNX").arg(key).arg("mode").arg(mode).ignore();
    if let Some(ours) = ours.filter(|_| records_key) {
        pipe.cmd("HSETNX").arg(key).arg("key").arg(ours).ignore();
    }
    pipe.cmd("HMGET").arg(key).arg("shards").arg("mode").arg("key");
    let answer: Result<Vec<Value>, _> = pipe.query_async(&mut command.connection).await;
    let answer = answer.map_err(failed)?;
    let fields: Option<(u16, String, Option<String>)> =
        answer.into_iter().next().and_then(|value| redis::from_redis_value(value).ok());
    match fields {
        Some((shards, mode, mut recorded)) if shards > 0 => {
            // Keys are being changed: who knows the recorded one and seals with another records that.
            let knows = recorded.as_ref().is_some_and(|recorded| keys.contains(recorded));
            if let Some(ours) = ours.filter(|ours| knows && recorded.as_ref() != Some(*ours)) {
                let mut set = redis::cmd("HSET");
                set.arg(key).arg("key").arg(ours);
                let set: Result<(), _> = set.query_async(&mut command.connection).await;
                set.map_err(failed)?;
                recorded = Some(ours.clone());
            }
            Ok(Deployment { shards, mode, key: recorded })
        }
        _ => Err(Disagree::Never(format!("the record {key:?} in Redis has an unknown form"))),
    }
}

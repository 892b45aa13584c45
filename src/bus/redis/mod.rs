//! The bus over Redis: one standalone server, the master that sentinels name, or a Redis Cluster.
//!
//! Each shard has a writer, for what this gateway accepts; all shards share one reader, for what
//! all gateways accepted. The append script assigns every frame its position, keeps it in history
//! and publishes it, in one step. Nothing outside this module names the redis crate.

mod addresses;
pub mod auth;
mod causes;
mod command;
mod credentials;
pub mod deployment;
mod doctor;
mod drill;
pub mod envelope;
pub mod history;
mod liveness;
mod logins;
pub mod members;
mod moves;
mod names;
mod odd;
pub mod order;
mod packing;
pub mod reader;
pub mod recovery;
mod replicas;
mod resolver;
mod retained;
mod rights;
pub mod script;
pub mod sentinel;
mod server;
mod settings;
mod size;
pub mod slots;
mod subscription;
mod topology;
pub mod view;
pub mod writer;

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
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::settings::{CallLimits, Settings};
use self::{
    deployment::{Agreement, JoinError},
    history::Page,
    liveness::Liveness,
    members::MemberStore,
    names::{MemberNames, ShardNames},
    odd::OddFields,
    reader::{Counters, Reader, ReaderParts},
    recovery::{MAX_HELD, Memory},
    script::Target,
    server::Server,
    subscription::Link,
    topology::Topology,
    writer::{Job, Work, Writer, WriterParts},
};
use super::{
    AppendError, Appended, Batch, Bus, BusFactory, BusStatus, Exchange, Fault, Finding, Health,
    History, HistoryPage, Incident, Incidents, MemberId, MemberUpdate, Members, Position, Progress,
    PublisherId, Retained, ShardId, SharedBus, Sink, StartError, Starting, StreamNumber,
};
use crate::{config::Config, throttle::Throttle};

/// The wait between two attempts to reach Redis at the start.
const START_RETRY: Duration = Duration::from_millis(500);

/// The time beyond its deadline that a caller waits for the writer's own answer, which is more
/// exact.
const GRACE: Duration = Duration::from_millis(250);

/// `@type: Redis`, `RedisCluster` and `RedisSentinel`.
pub struct RedisFactory;

impl BusFactory for RedisFactory {
    fn start<'a>(&'a self, starting: Starting<'a>) -> BoxFuture<'a, Result<SharedBus, StartError>> {
        async move {
            let settings = Settings::from_config(starting.config)?;
            let bus = RedisBus::start(settings, starting.waiting, starting.sink).await?;
            Ok(Arc::new(bus) as SharedBus)
        }
        .boxed()
    }

    fn checks(&self) -> &'static [&'static str] {
        doctor::CHECKS
    }

    fn examine<'a>(
        &'a self,
        config: &'a Config,
        report: &'a mut (dyn FnMut(Progress) + Send),
    ) -> BoxFuture<'a, ()> {
        async move {
            match Settings::from_config(config) {
                Ok(settings) => {
                    let max_frame = config.limits.max_request_bytes as u64;
                    Box::pin(doctor::examine(&settings, max_frame, report)).await;
                }
                Err(error) => {
                    let advice =
                        "see that the files of coordinator.tls are what they are named for";
                    let finding = Finding::failure("reach", error.to_string(), advice);
                    report(Progress::Found(finding));
                }
            }
        }
        .boxed()
    }

    fn cause<'a>(
        &'a self,
        config: &'a Config,
        fault: &'a Fault,
    ) -> BoxFuture<'a, Result<String, String>> {
        async move {
            let settings = Settings::from_config(config).map_err(|error| error.to_string())?;
            Box::pin(drill::cause(&settings, fault)).await
        }
        .boxed()
    }
}

/// The bus over Redis.
pub struct RedisBus {
    settings: Arc<Settings>,
    topology: Arc<Topology>,
    names: Vec<Arc<ShardNames>>,
    members: MemberStore,
    queues: Vec<mpsc::Sender<Work>>,
    liveness: Vec<Arc<Liveness>>,
    memory: Vec<Arc<Mutex<Memory>>>,
    health: watch::Receiver<Health>,
    links: Arc<Mutex<Vec<Arc<Link>>>>,
    counters: Arc<Mutex<Counters>>,
    forged: Arc<AtomicU64>,
    incidents: Arc<Mutex<Incidents>>,
    odd: OddFields,
    writers: TaskTracker,
    reader: TaskTracker,
    stop_writers: CancellationToken,
    stop_reader: CancellationToken,
}

impl RedisBus {
    /// Connects to Redis, joins the deployment, and starts. Waits while Redis is not reachable, and
    /// reports the reason to `waiting`; the error is for what waiting does not mend. `sink` is
    /// called when the number of shards is known.
    pub async fn start(
        settings: Settings,
        waiting: impl Fn(String),
        sink: impl FnOnce(u16) -> Arc<dyn Sink>,
    ) -> Result<RedisBus, StartError> {
        let settings = Arc::new(settings);
        let throttle = Throttle::repeated();
        let deployment = loop {
            match deployment::join(&settings).await {
                Ok(deployment) => break deployment,
                Err(JoinError::Unavailable(why)) => {
                    if let Some(left_out) = throttle.pass() {
                        tracing::warn!(why, left_out, "waiting for Redis");
                    }
                    waiting(why);
                    tokio::time::sleep(START_RETRY).await;
                }
                Err(JoinError::Mismatch(why)) => return Err(StartError(why)),
            }
        };
        tracing::info!(
            shards = deployment.shards,
            mode = deployment.mode,
            "agreed with the deployment"
        );
        let count = deployment.shards;
        let names: Vec<_> =
            ShardId::all(count).map(|shard| Arc::new(settings.names(shard, count))).collect();
        // The slot of the members comes after those of the shards.
        let members = MemberNames::new(&settings.prefix);
        let slots = names.iter().map(|names| names.slot).chain([members.slot]).collect();
        let topology =
            Topology::new((*settings).clone(), slots).map_err(|e| StartError(e.to_string()))?;
        let topology = Arc::new(topology);
        let slot = ShardId(count);
        let members = MemberStore { names: members, slot, topology: topology.clone() };
        let deployment = deployment.text(&settings);
        Ok(Self::run(settings, topology, names, &deployment, members, sink(count)))
    }

    fn run(
        settings: Arc<Settings>,
        topology: Arc<Topology>,
        names: Vec<Arc<ShardNames>>,
        deployment: &str,
        members: MemberStore,
        sink: Arc<dyn Sink>,
    ) -> RedisBus {
        let own = rand::random();
        let memory = || Arc::new(Mutex::new(Memory::new(MAX_HELD)));
        let memory: Vec<_> = names.iter().map(|_| memory()).collect();
        let liveness: Vec<Arc<Liveness>> = names.iter().map(|_| Arc::default()).collect();
        let notifies = || names.iter().map(|_| Arc::<Notify>::default()).collect::<Vec<_>>();
        let (probes, recoveries) = (notifies(), notifies());
        let (health, healthy) = watch::channel(Health::NotReady("starting".into()));
        let links = Arc::default();
        let counters = Arc::default();
        let forged = Arc::default();
        let shards = u16::try_from(names.len()).unwrap_or(u16::MAX);
        let incidents = Arc::new(Mutex::new(Incidents::new(shards)));
        let (writers, reader) = (TaskTracker::new(), TaskTracker::new());
        let (stop_writers, stop_reader) = (CancellationToken::new(), CancellationToken::new());

        let (task, subscription_events) = Reader::new(ReaderParts {
            own,
            settings: settings.clone(),
            topology: topology.clone(),
            names: names.clone(),
            liveness: liveness.clone(),
            memory: memory.clone(),
            probes: probes.clone(),
            recoveries: recoveries.clone(),
            sink,
            health,
            links: Arc::clone(&links),
            counters: Arc::clone(&counters),
            forged: Arc::clone(&forged),
            incidents: incidents.clone(),
            stop: stop_reader.clone(),
        });
        reader.spawn(task.run(subscription_events));
        reader.spawn(moves::follow(topology.clone(), stop_reader.clone()));

        let agreement = Arc::new(Agreement::new());
        let started = Instant::now();
        let mut queues = Vec::with_capacity(names.len());
        for (index, names) in names.iter().enumerate() {
            let (queue, jobs) = mpsc::channel(writer::QUEUE);
            queues.push(queue);
            let task = Writer::new(WriterParts {
                shard: ShardId::at_index(index),
                id: own,
                limits: settings.call_limits(),
                started,
                target: Target {
                    names: names.clone(),
                    settings: settings.clone(),
                    deployment: deployment.to_owned(),
                },
                topology: topology.clone(),
                queue: jobs,
                liveness: liveness[index].clone(),
                memory: memory[index].clone(),
                incidents: incidents.clone(),
                agreement: agreement.clone(),
                ask_first: probes[0].clone(),
                probe_now: probes[index].clone(),
                recover_now: recoveries[index].clone(),
                stop: stop_writers.clone(),
            });
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
            liveness,
            memory,
            health: healthy,
            links,
            counters,
            forged,
            incidents,
            odd: OddFields::default(),
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
        match tokio::time::timeout_at(deadline.into(), queue.send(Work::Append(job))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(AppendError::Closed),
            Err(_) => {
                return Err(AppendError::Unavailable("too many batches wait for the bus".into()));
            }
        }
        match tokio::time::timeout_at((deadline + GRACE).into(), answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(AppendError::Closed),
            Err(_) if sent.load(Ordering::Acquire) => {
                Err(AppendError::OutcomeUnknown("Redis did not answer in time".into()))
            }
            Err(_) => {
                Err(AppendError::Unavailable("Redis did not accept the batch in time".into()))
            }
        }
    }

    async fn read_page(
        &self,
        shard: ShardId,
        after: Position,
        max_bytes: usize,
    ) -> Result<HistoryPage, AppendError> {
        let names = &self.names[shard.index()];
        let mut page = Page::after(after, max_bytes);
        let replica = self.settings.read_from_replicas;
        loop {
            let wanted = (page.read_from(), page.room());
            let reading = history::read_up_to(&self.topology, names, shard, wanted, replica)
                .await
                .map_err(AppendError::Unavailable)?;
            self.forged.fetch_add(reading.forged(), Ordering::Relaxed);
            let taken = page.take(reading, &mut self.memory[shard.index()].lock());
            if let Some(page) = taken {
                return Ok(page);
            }
        }
    }
}

impl Bus for RedisBus {
    fn kind(&self) -> &'static str {
        match (self.settings.cluster, &self.settings.sentinel) {
            (true, _) => "redis-cluster",
            (false, Some(_)) => "redis-sentinel",
            (false, None) => "redis",
        }
    }

    fn shards(&self) -> u16 {
        u16::try_from(self.names.len()).unwrap_or(u16::MAX)
    }

    fn append(&self, shard: ShardId, batch: Batch) -> BoxFuture<'_, Result<Appended, AppendError>> {
        self.append_batch(shard, batch).boxed()
    }

    fn number_stream(&self, publisher: PublisherId) -> BoxFuture<'_, Option<StreamNumber>> {
        // One shard numbers all streams of a publisher: ids are digests.
        let shard = usize::from(publisher[0]) << 8 | usize::from(publisher[1]);
        let queue = &self.queues[shard % self.queues.len()];
        async {
            let (number, numbered) = oneshot::channel();
            queue.send(Work::Number(number)).await.ok()?;
            numbered.await.ok()
        }
        .boxed()
    }

    fn max_event_bytes(&self, shard: ShardId) -> Option<usize> {
        self.topology.master(shard)?.max_frame_bytes()
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
            shards: self.liveness.iter().map(|liveness| liveness.status()).collect(),
            gaps: counters.gaps,
            unreadable: counters.unreadable + self.odd.count(),
            forged: self.forged.load(Ordering::Relaxed),
        }
    }

    fn incidents(&self, after: u64) -> Vec<Incident> {
        self.incidents.lock().after(after)
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

impl RedisBus {
    /// The master of a shard, and the shard's names.
    fn master(&self, shard: ShardId) -> Result<(Arc<Server>, &ShardNames), AppendError> {
        let server = self.topology.master(shard);
        let server =
            server.ok_or_else(|| AppendError::Unavailable("no master is known".to_owned()))?;
        Ok((server, &self.names[shard.index()]))
    }
}

/// The answer to a call about last values.
async fn in_time<T>(call: impl Future<Output = Result<T, String>>) -> Result<T, AppendError> {
    let answer = tokio::time::timeout(retained::TIMEOUT, call).await;
    answer.unwrap_or_else(|_| Err("no answer in time".into())).map_err(AppendError::Unavailable)
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
            let (server, names) = self.master(shard)?;
            in_time(retained::read(&server, names, (&self.odd, &self.forged))).await
        }
        .boxed()
    }

    fn retain(
        &self,
        shard: ShardId,
        values: Vec<Retained>,
    ) -> BoxFuture<'_, Result<(), AppendError>> {
        async move {
            let (server, names) = self.master(shard)?;
            in_time(retained::keep(&server, names, &values)).await
        }
        .boxed()
    }

    fn tip(&self, shard: ShardId) -> BoxFuture<'_, Result<(Position, Vec<Position>), AppendError>> {
        async move {
            let names = &self.names[shard.index()];
            // Nothing comes after this position, so the reading has the tip alone.
            let end = Position::new(u64::MAX, u64::MAX - 1);
            let reading = history::read(&self.topology, names, shard, end, false).await;
            reading
                .map(|reading| (reading.view.tip, reading.view.ends))
                .map_err(AppendError::Unavailable)
        }
        .boxed()
    }
}

impl Members for RedisBus {
    fn exchange(&self, update: MemberUpdate) -> BoxFuture<'_, Result<Exchange, AppendError>> {
        async move { self.members.exchange(&update).await }.boxed()
    }

    fn leave_messages(
        &self,
        to: MemberId,
        messages: Vec<Bytes>,
    ) -> BoxFuture<'_, Result<(), AppendError>> {
        async move { self.members.leave_messages(to, &messages).await }.boxed()
    }

    fn take_messages(&self, own: MemberId) -> BoxFuture<'_, Result<Vec<Bytes>, AppendError>> {
        self.members.take_messages(own).boxed()
    }

    fn member_shards(
        &self,
        member: MemberId,
        numbers: Vec<u32>,
    ) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, AppendError>> {
        async move { self.members.shards(member, &numbers).await }.boxed()
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        // The tasks end even if `close` was never called.
        self.stop_writers.cancel();
        self.stop_reader.cancel();
    }
}

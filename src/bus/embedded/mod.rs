//! The bus of a single gateway: the rules of [`Bus`] in one process, without Redis.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    AppendError, Appended, Batch, Bus, BusFactory, BusStatus, Delivery, Epoch, EpochStart, Finding,
    Frame, Health, History, Members, Offset, Position, Progress, PublisherId, Publishers,
    RequestId, ShardBusStatus, ShardId, SharedBus, Sink, StartError, Starting, StreamNumber,
    put_event, traced::TracedAppend, unix_ms,
};
use crate::config::Config;

/// The number of shards if none is configured.
const DEFAULT_SHARDS: u16 = 1;

/// `@type: Embedded`.
pub struct EmbeddedFactory;

impl BusFactory for EmbeddedFactory {
    fn start<'a>(&'a self, starting: Starting<'a>) -> BoxFuture<'a, Result<SharedBus, StartError>> {
        let shards = starting.config.shards.unwrap_or(DEFAULT_SHARDS);
        let sink = (starting.sink)(shards);
        let bus = EmbeddedBus::start(shards, starting.config.request_id_window, sink);
        ready(Ok(Arc::new(bus) as SharedBus)).boxed()
    }

    fn examine<'a>(
        &'a self,
        _: &'a Config,
        report: &'a mut (dyn FnMut(Progress) + Send),
    ) -> BoxFuture<'a, ()> {
        let seen = "the bus is embedded: there is no Redis";
        report(Progress::Found(Finding::ok("reach", seen)));
        ready(()).boxed()
    }
}

/// Delivers every batch to the sink at once. Its history is the sink's log: it keeps nothing itself
/// but request ids.
pub struct EmbeddedBus {
    /// The order of a shard is the order in which its lock is taken.
    shards: Vec<Mutex<Shard>>,
    /// One epoch for each process: offsets of an earlier process are not known any more.
    epoch: Epoch,
    /// The number of the last stream.
    streams: AtomicU64,
    /// The time for which a request id is remembered.
    request_id_window: Duration,
    sink: Arc<dyn Sink>,
    health: watch::Sender<Health>,
}

#[derive(Default)]
struct Shard {
    end: Offset,
    closed: bool,
    requests: HashMap<RequestId, Appended>,
    /// The same ids by age, to expire them.
    ages: VecDeque<(Instant, RequestId)>,
    publishers: Publishers,
}

impl EmbeddedBus {
    /// A bus that is ready.
    pub fn start(shards: u16, request_id_window: Duration, sink: Arc<dyn Sink>) -> EmbeddedBus {
        let epoch = Epoch::opened_at(unix_ms(), rand::random());
        let position = Position { epoch, offset: Offset(0) };
        let start = EpochStart { position, previous: Position::UNKNOWN, ends: vec![] };
        for shard in ShardId::all(shards) {
            sink.deliver(shard, Delivery::Start(start.clone()));
        }
        EmbeddedBus {
            shards: ShardId::all(shards).map(|_| Mutex::default()).collect(),
            epoch,
            streams: AtomicU64::new(0),
            request_id_window,
            sink,
            health: watch::Sender::new(Health::Ready),
        }
    }

    fn append_now(&self, shard: ShardId, mut batch: Batch) -> Result<Appended, AppendError> {
        let mut state = self.shards[shard.index()].lock();
        if state.closed {
            return Err(AppendError::Closed);
        }
        state.expire_requests(self.request_id_window);
        if let Some(before) = batch.request_id.and_then(|id| state.requests.get(&id)) {
            return Ok(*before);
        }
        let is_partial = state.publishers.cover(&mut batch)?;
        if batch.events.is_empty() {
            return Ok(Appended::UNKNOWN);
        }
        let traced = TracedAppend::start(batch.trace.as_deref().into_iter());
        let appended = Appended { epoch: self.epoch, first: state.end.plus(1) };
        let count = batch.events.len() as u64;
        state.end = state.end.plus(count);
        if let Some(id) = batch.request_id {
            state.requests.insert(id, appended);
            state.ages.push_back((Instant::now(), id));
        }
        let size = batch.events.iter().map(|event| event.len() + 6).sum();
        let mut events = Vec::with_capacity(size);
        for event in &batch.events {
            put_event(&mut events, event);
        }
        // Under the lock, so that the sink sees the order of the offsets.
        self.sink.deliver(
            shard,
            Delivery::Frame(Frame {
                epoch: self.epoch,
                first: appended.first,
                count,
                time_ms: unix_ms(),
                provenance: None,
                events: Bytes::from(events),
            }),
        );
        for run in batch.runs.iter().filter(|run| run.stream > 0) {
            self.sink.publishes(run.publisher, run.stream);
        }
        if let Some(traced) = traced {
            traced.succeeded(shard, appended, count);
        }
        Ok(if is_partial { Appended::UNKNOWN } else { appended })
    }

    fn end(&self, shard: ShardId) -> Position {
        Position { epoch: self.epoch, offset: self.shards[shard.index()].lock().end }
    }
}

impl Shard {
    fn expire_requests(&mut self, window: Duration) {
        while let Some((at, id)) = self.ages.front() {
            if at.elapsed() < window {
                break;
            }
            self.requests.remove(id);
            self.ages.pop_front();
        }
    }
}

impl Bus for EmbeddedBus {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn shards(&self) -> u16 {
        u16::try_from(self.shards.len()).unwrap_or(u16::MAX)
    }

    fn append(&self, shard: ShardId, batch: Batch) -> BoxFuture<'_, Result<Appended, AppendError>> {
        ready(self.append_now(shard, batch)).boxed()
    }

    fn number_stream(&self, _: PublisherId) -> BoxFuture<'_, Option<StreamNumber>> {
        ready(Some(self.streams.fetch_add(1, Ordering::Relaxed) + 1)).boxed()
    }

    fn history(&self) -> Option<&dyn History> {
        None
    }

    fn members(&self) -> Option<&dyn Members> {
        None
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn status(&self) -> BusStatus {
        let shard = |id| ShardBusStatus {
            position: self.end(id),
            verified_age: Some(Duration::ZERO),
            verified: true,
            repairs: 0,
        };
        BusStatus { shards: ShardId::all(self.shards()).map(shard).collect(), ..Default::default() }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        for shard in &self.shards {
            shard.lock().closed = true;
        }
        ready(()).boxed()
    }
}

//! One gateway's access to the store.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trunkline::bus::{
    AppendError, Appended, Batch, Bus, BusStatus, Delivery, Exchange, Health, History, HistoryPage,
    MemberId, MemberUpdate, Members, Position, PublisherId, Retained, ShardBusStatus, ShardId,
    Sink, StreamNumber,
};

use super::{
    Fault,
    store::{Reader, Store},
};

/// The interval of probes.
const PROBE: Duration = Duration::from_millis(20);

/// The delay of [`Fault::Delay`].
const DELAY: Duration = Duration::from_millis(3);

pub struct MemoryBus {
    shared: Arc<Shared>,
    health: watch::Receiver<Health>,
    tasks: TaskTracker,
    /// Held by each append, so that `close` waits for them.
    appends: TaskTracker,
    stop: CancellationToken,
}

struct Shared {
    store: Arc<Store>,
    fault: Arc<Mutex<Option<Fault>>>,
    sink: Arc<dyn Sink>,
    readers: Vec<Mutex<Reader>>,
    health: watch::Sender<Health>,
}

impl MemoryBus {
    pub fn start(
        store: Arc<Store>,
        fault: Arc<Mutex<Option<Fault>>>,
        sink: Arc<dyn Sink>,
    ) -> MemoryBus {
        let (sender, health) = watch::channel(Health::NotReady("starting".into()));
        let readers = ShardId::all(store.shards()).map(|shard| {
            let start = store.start(shard);
            let reader = Reader::after(start.position);
            sink.deliver(shard, Delivery::Start(start));
            Mutex::new(reader)
        });
        let readers = readers.collect();
        let shared = Arc::new(Shared { store, fault, sink, readers, health: sender });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(shared.clone().run(stop.clone()));
        tasks.close();
        MemoryBus { shared, health, tasks, appends: TaskTracker::new(), stop }
    }

    fn unavailable(&self) -> Result<(), AppendError> {
        if self.shared.has(Fault::Unavailable) {
            return Err(AppendError::Unavailable("a fault of the test".into()));
        }
        Ok(())
    }
}

impl Shared {
    fn has(&self, fault: Fault) -> bool {
        *self.fault.lock() == Some(fault)
    }

    /// Delivers what is new, and updates the health.
    async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut version = self.store.version.subscribe();
        let mut streams = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = version.changed() => {}
                () = tokio::time::sleep(PROBE) => {}
            }
            if self.has(Fault::Unavailable) {
                self.health.send_replace(Health::NotReady("a fault of the test".into()));
                continue;
            }
            if self.has(Fault::Delay) {
                tokio::time::sleep(DELAY).await;
            }
            for shard in ShardId::all(self.store.shards()) {
                let mut reader = self.readers[shard.index()].lock();
                for delivery in self.store.live(shard, &mut reader) {
                    self.sink.deliver(shard, delivery);
                }
            }
            for (publisher, stream) in self.store.streams(streams) {
                self.sink.publishes(publisher, stream);
                streams += 1;
            }
            self.health.send_if_modified(|health| {
                let changed = *health != Health::Ready;
                *health = Health::Ready;
                changed
            });
        }
    }
}

impl Bus for MemoryBus {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn shards(&self) -> u16 {
        self.shared.store.shards()
    }

    fn append(&self, shard: ShardId, batch: Batch) -> BoxFuture<'_, Result<Appended, AppendError>> {
        async move {
            let _counted = self.appends.token();
            if self.stop.is_cancelled() || self.appends.is_closed() {
                return Err(AppendError::Closed);
            }
            if self.shared.has(Fault::Delay) {
                tokio::time::sleep(DELAY / 3).await;
            }
            self.unavailable()?;
            let appended = self.shared.store.append(shard, batch)?;
            if self.shared.has(Fault::LostAnswer) {
                return Err(AppendError::OutcomeUnknown("a fault of the test".into()));
            }
            Ok(appended)
        }
        .boxed()
    }

    fn number_stream(&self, _: PublisherId) -> BoxFuture<'_, Option<StreamNumber>> {
        ready(Some(self.shared.store.number_stream())).boxed()
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
        let verified = *self.health.borrow() == Health::Ready;
        let shard = |reader: &Mutex<Reader>| ShardBusStatus {
            position: reader.lock().at,
            verified_age: Some(PROBE),
            verified,
            repairs: 0,
        };
        BusStatus { shards: self.shared.readers.iter().map(shard).collect(), ..Default::default() }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            self.appends.close();
            self.appends.wait().await;
            self.stop.cancel();
            self.tasks.wait().await;
        }
        .boxed()
    }
}

impl History for MemoryBus {
    fn page(
        &self,
        shard: ShardId,
        after: Position,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<HistoryPage, AppendError>> {
        let page = || self.shared.store.page(shard, after, max_bytes);
        ready(self.unavailable().map(|()| page())).boxed()
    }

    fn retained(&self, shard: ShardId) -> BoxFuture<'_, Result<Vec<Retained>, AppendError>> {
        ready(self.unavailable().map(|()| self.shared.store.retained(shard))).boxed()
    }

    fn tip(&self, shard: ShardId) -> BoxFuture<'_, Result<(Position, Vec<Position>), AppendError>> {
        let tip = || (self.shared.store.end(shard), vec![]);
        ready(self.unavailable().map(|()| tip())).boxed()
    }
}

impl Members for MemoryBus {
    fn exchange(&self, update: MemberUpdate) -> BoxFuture<'_, Result<Exchange, AppendError>> {
        ready(self.unavailable().map(|()| self.shared.store.exchange(update))).boxed()
    }

    fn leave_messages(
        &self,
        to: MemberId,
        messages: Vec<Bytes>,
    ) -> BoxFuture<'_, Result<(), AppendError>> {
        let leave = || self.shared.store.leave_messages(to, messages);
        ready(self.unavailable().map(|()| leave())).boxed()
    }

    fn take_messages(&self, own: MemberId) -> BoxFuture<'_, Result<Vec<Bytes>, AppendError>> {
        ready(self.unavailable().map(|()| self.shared.store.take_messages(own))).boxed()
    }

    fn member_shards(
        &self,
        member: MemberId,
        numbers: Vec<u32>,
    ) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, AppendError>> {
        let shards = || self.shared.store.member_shards(member, &numbers);
        ready(self.unavailable().map(|()| shards())).boxed()
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

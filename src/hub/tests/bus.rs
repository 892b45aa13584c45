//! A bus in memory, with a history of any length.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;

use crate::{
    bus::{
        AppendError, Appended, Batch, Bus, BusStatus, Delivery, Epoch, Frame, Gap, GapReason,
        Health, History, HistoryPage, Members, Offset, Position, Retained, ShardId, Sink,
        put_event,
    },
    hub::{Hub, log::Capacity},
    proto::v1,
};

/// A bus that keeps the last `keep` frames of each shard as history.
pub(super) struct TestBus {
    hub: Arc<Hub>,
    keep: usize,
    state: Mutex<State>,
    health: watch::Sender<Health>,
}

struct State {
    epoch: u64,
    ends: Vec<u64>,
    history: Vec<Vec<Delivery>>,
}

impl TestBus {
    pub(super) fn start(shards: u16, keep: usize, capacity: Capacity) -> (Arc<Hub>, Arc<TestBus>) {
        let hub = Arc::new(Hub::new(shards, capacity));
        let bus = Arc::new(TestBus {
            hub: hub.clone(),
            keep,
            state: Mutex::new(State {
                epoch: 7,
                ends: vec![0; usize::from(shards)],
                history: vec![vec![]; usize::from(shards)],
            }),
            health: watch::Sender::new(Health::Ready),
        });
        hub.attach(bus.clone());
        for shard in ShardId::all(shards) {
            hub.deliver(shard, Delivery::Start(Position::new(7, 0)));
        }
        (hub, bus)
    }

    pub(super) fn publish(&self, shard: usize, events: &[v1::Event]) {
        let mut state = self.state.lock();
        let mut bytes = Vec::new();
        for event in events {
            put_event(&mut bytes, &event.encode_to_vec());
        }
        let frame = Frame {
            epoch: Epoch(state.epoch),
            first: Offset(state.ends[shard] + 1),
            count: events.len() as u64,
            time_ms: 0,
            origin: None,
            events: bytes.into(),
        };
        state.ends[shard] += events.len() as u64;
        self.hand_on(&mut state, shard, Delivery::Frame(frame));
    }

    fn hand_on(&self, state: &mut State, shard: usize, delivery: Delivery) {
        state.history[shard].push(delivery.clone());
        let over = state.history[shard].len().saturating_sub(self.keep);
        state.history[shard].drain(..over);
        self.hub.deliver(ShardId(u16::try_from(shard).unwrap()), delivery);
    }
}

fn end(delivery: &Delivery) -> Position {
    match delivery {
        Delivery::Frame(frame) | Delivery::Restored(frame) => frame.last(),
        Delivery::Gap(gap) => gap.to,
        Delivery::Start(position) | Delivery::Epoch(position) => *position,
    }
}

impl Bus for TestBus {
    fn kind(&self) -> &'static str {
        "test"
    }
    fn shards(&self) -> u16 {
        u16::try_from(self.state.lock().ends.len()).unwrap()
    }
    fn append(&self, _: ShardId, _: Batch) -> BoxFuture<'_, Result<Appended, AppendError>> {
        ready(Err(AppendError::Closed)).boxed()
    }
    fn history(&self) -> Option<&dyn History> {
        (self.keep > 0).then_some(self)
    }
    fn members(&self) -> Option<&dyn Members> {
        None
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }
    fn status(&self) -> BusStatus {
        BusStatus::default()
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

impl History for TestBus {
    fn page(
        &self,
        shard: ShardId,
        after: Position,
        _: usize,
    ) -> BoxFuture<'_, Result<HistoryPage, AppendError>> {
        let state = self.state.lock();
        let kept = &state.history[shard.index()];
        let mut deliveries: Vec<_> =
            kept.iter().filter(|d| end(d) > after).take(3).cloned().collect();
        if let Some(Delivery::Frame(frame)) = deliveries.first() {
            let before = Position { epoch: frame.epoch, offset: Offset(frame.first.0 - 1) };
            if after.is_known() && before > after {
                deliveries.insert(
                    0,
                    Delivery::Gap(Gap {
                        reason: GapReason::HistoryExpired,
                        from: after,
                        to: before,
                        missed: Some(before.offset.0 - after.offset.0),
                        from_ms: None,
                        to_ms: 0,
                    }),
                );
            }
        }
        let next = deliveries.last().map_or(after, end);
        let tip = Position::new(state.epoch, state.ends[shard.index()]);
        ready(Ok(HistoryPage { deliveries, next, at_end: next == tip })).boxed()
    }
    fn retained(&self, _: ShardId) -> BoxFuture<'_, Result<Vec<Retained>, AppendError>> {
        ready(Ok(vec![])).boxed()
    }
    fn tip(&self, shard: ShardId) -> BoxFuture<'_, Result<Position, AppendError>> {
        let state = self.state.lock();
        ready(Ok(Position::new(state.epoch, state.ends[shard.index()]))).boxed()
    }
}

//! A bus in memory, with a history of any length, that loses what a test tells it to lose.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;

use crate::{
    bus::{
        AppendError, Appended, Batch, Bus, BusStatus, Delivery, Epoch, EpochStart, Frame, Gap,
        GapReason, Health, History, HistoryPage, Lost, Members, Offset, Position, Retained,
        ShardId, Sink, put_event,
    },
    hub::{Hub, log::Capacity},
    proto::v1,
};

/// One gateway's bus. It keeps the last `keep` deliveries of each shard as history.
pub(super) struct TestBus {
    hub: Arc<Hub>,
    keep: usize,
    state: Mutex<State>,
    health: watch::Sender<Health>,
    /// The shard whose pages do not come.
    stalled: watch::Sender<Option<usize>>,
}

struct State {
    epoch: u64,
    ends: Vec<u64>,
    /// The line that the servers have: what history pages are made of.
    lines: Vec<Vec<Delivery>>,
    /// How far earlier epochs went, as the state says.
    past: Vec<Position>,
    /// True if history has nothing any more.
    lost_history: bool,
}

impl TestBus {
    pub(super) fn start(shards: u16, keep: usize, capacity: Capacity) -> (Arc<Hub>, Arc<TestBus>) {
        let (hub, bus) = TestBus::without_start(shards, keep, capacity);
        for shard in ShardId::all(shards) {
            hub.deliver(shard, Delivery::Start(start(Position::new(7, 0), Position::UNKNOWN, &[])));
        }
        (hub, bus)
    }

    pub(super) fn without_start(
        shards: u16,
        keep: usize,
        capacity: Capacity,
    ) -> (Arc<Hub>, Arc<TestBus>) {
        let hub = Arc::new(Hub::new(shards, capacity));
        let bus = Arc::new(TestBus {
            hub: hub.clone(),
            keep,
            state: Mutex::new(State {
                epoch: 7,
                ends: vec![0; usize::from(shards)],
                lines: vec![vec![]; usize::from(shards)],
                past: vec![],
                lost_history: false,
            }),
            health: watch::Sender::new(Health::Ready),
            stalled: watch::Sender::new(None),
        });
        hub.attach(bus.clone());
        (hub, bus)
    }

    pub(super) fn publish(&self, shard: usize, events: &[v1::Event]) {
        let (epoch, end) = {
            let state = self.state.lock();
            (state.epoch, state.ends[shard])
        };
        self.append(shard, Delivery::Frame(frame(epoch, end + 1, events)));
    }

    /// Appends a delivery to the line, and hands it to the gateway.
    pub(super) fn append(&self, shard: usize, delivery: Delivery) {
        {
            let mut state = self.state.lock();
            let end = end(&delivery);
            state.epoch = end.epoch.0;
            state.ends[shard] = end.offset.0;
            state.lines[shard].push(delivery.clone());
        }
        self.deliver(shard, delivery);
    }

    /// Hands a delivery to the gateway.
    pub(super) fn deliver(&self, shard: usize, delivery: Delivery) {
        self.hub.deliver(ShardId(u16::try_from(shard).unwrap()), delivery);
    }

    /// Answers no page of this shard.
    pub(super) fn stall(&self, shard: usize) {
        self.stalled.send_replace(Some(shard));
    }

    /// Answers all pages again.
    pub(super) fn go_on(&self) {
        self.stalled.send_replace(None);
    }

    /// History has nothing any more, and the bus knows no epoch but the last.
    pub(super) fn lose_history(&self) {
        self.state.lock().lost_history = true;
    }

    /// The state says that earlier epochs went so far.
    pub(super) fn set_past(&self, past: &[Position]) {
        self.state.lock().past = past.to_vec();
    }

    /// Replaces the line of the servers, of which the gateway learns nothing.
    pub(super) fn set_line(&self, shard: usize, line: Vec<Delivery>) {
        let mut state = self.state.lock();
        let end = line.last().map_or(Position::UNKNOWN, end);
        (state.epoch, state.ends[shard]) = (end.epoch.0, end.offset.0);
        state.lines[shard] = line;
    }
}

/// A frame that was accepted here first.
pub(super) fn frame(epoch: u64, first: u64, events: &[v1::Event]) -> Frame {
    let mut bytes = Vec::new();
    for event in events {
        put_event(&mut bytes, &event.encode_to_vec());
    }
    Frame {
        epoch: Epoch(epoch),
        first: Offset(first),
        count: events.len() as u64,
        time_ms: 0,
        provenance: None,
        events: bytes.into(),
    }
}

pub(super) fn start(position: Position, previous: Position, ends: &[Position]) -> EpochStart {
    EpochStart { position, previous, ends: ends.to_vec() }
}

pub(super) fn lost(epoch: u64, first: u64, last: u64) -> Lost {
    Lost { epoch: Epoch(epoch), first: Offset(first), last: Offset(last) }
}

/// A note at a place: these events are lost.
pub(super) fn note(at: Position, lost: Lost) -> Delivery {
    Delivery::Gap(Gap {
        reason: GapReason::EpochChanged,
        lost: vec![lost],
        more: false,
        position: at,
        from_ms: None,
        to_ms: 0,
    })
}

/// The position after a delivery.
pub(super) fn end(delivery: &Delivery) -> Position {
    match delivery {
        Delivery::Frame(frame) => frame.last(),
        Delivery::Gap(gap) => gap.position,
        Delivery::Start(start) | Delivery::Epoch(start) => start.position,
    }
}

/// The highest name of each epoch that deliveries have, or tell of as lost.
pub(super) fn ends<'a>(line: impl IntoIterator<Item = &'a Delivery>) -> Vec<Position> {
    let mut ends: BTreeMap<Epoch, Offset> = BTreeMap::new();
    let mut learn = |name: Position| {
        let end = ends.entry(name.epoch).or_default();
        *end = (*end).max(name.offset);
    };
    for delivery in line {
        learn(end(delivery));
        match delivery {
            Delivery::Frame(frame) => learn(frame.name_of(frame.count - 1)),
            Delivery::Gap(gap) => {
                gap.lost.iter().for_each(|lost| {
                    learn(Position { epoch: lost.epoch, offset: lost.last });
                });
            }
            Delivery::Start(start) | Delivery::Epoch(start) => {
                start.ends.iter().copied().for_each(&mut learn);
            }
        }
    }
    ends.into_iter().map(|(epoch, offset)| Position { epoch, offset }).collect()
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
        let ends = state.past.clone();
        if state.lost_history {
            let tip = Position::new(state.epoch, state.ends[shard.index()]);
            let elsewhere = after.is_known() && after.epoch != tip.epoch;
            let unknown = Gap {
                reason: GapReason::UnknownEpoch,
                lost: vec![],
                more: true,
                position: tip,
                from_ms: None,
                to_ms: 0,
            };
            let deliveries = elsewhere.then_some(Delivery::Gap(unknown)).into_iter().collect();
            return ready(Ok(HistoryPage { deliveries, next: tip, at_end: true, ends })).boxed();
        }
        let line = &state.lines[shard.index()];
        let kept = &line[line.len().saturating_sub(self.keep)..];
        let mut deliveries: Vec<_> =
            kept.iter().filter(|d| end(d) > after).take(3).cloned().collect();
        if let Some(Delivery::Frame(frame)) = deliveries.first() {
            let before = Position { epoch: frame.epoch, offset: Offset(frame.first.0 - 1) };
            if after.is_known() && before > after {
                let lost = lost(before.epoch.0, after.offset.0 + 1, before.offset.0);
                let Delivery::Gap(gap) = note(before, lost) else { unreachable!() };
                let gap = Gap { reason: GapReason::HistoryExpired, ..gap };
                deliveries.insert(0, Delivery::Gap(gap));
            }
        }
        let next = deliveries.last().map_or(after, end);
        let tip = Position::new(state.epoch, state.ends[shard.index()]);
        let page = HistoryPage { deliveries, next, at_end: next >= tip, ends };
        let mut stalled = self.stalled.subscribe();
        if *stalled.borrow() != Some(shard.index()) {
            return ready(Ok(page)).boxed();
        }
        async move {
            let goes_on = stalled.wait_for(|stalled| *stalled != Some(shard.index())).await;
            goes_on.map(|_| page).map_err(|_| AppendError::Closed)
        }
        .boxed()
    }
    fn retained(&self, _: ShardId) -> BoxFuture<'_, Result<Vec<Retained>, AppendError>> {
        ready(Ok(vec![])).boxed()
    }
    fn tip(&self, shard: ShardId) -> BoxFuture<'_, Result<(Position, Vec<Position>), AppendError>> {
        let state = self.state.lock();
        let tip = Position::new(state.epoch, state.ends[shard.index()]);
        ready(Ok((tip, vec![]))).boxed()
    }
}

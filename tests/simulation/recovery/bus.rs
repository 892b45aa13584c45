//! The bus as the hub of a simulated gateway sees it: what it asks for is answered when the seed
//! says so.

use std::collections::VecDeque;

use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use trunkline::bus::{
    AppendError, Appended, Batch, Bus, BusStatus, Health, History, HistoryPage, Members, Position,
    Retained, ShardId,
};

/// A question of a hub, and the way for its answer.
pub enum Ask {
    Page(Position, usize, oneshot::Sender<Result<HistoryPage, AppendError>>),
    Tip(oneshot::Sender<Result<(Position, Vec<Position>), AppendError>>),
}

/// The bus of one gateway.
pub struct AskedBus {
    pub asks: Mutex<VecDeque<Ask>>,
    health: watch::Sender<Health>,
}

impl AskedBus {
    pub fn new() -> AskedBus {
        AskedBus { asks: Mutex::default(), health: watch::Sender::new(Health::Ready) }
    }

    fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<T, AppendError>>) -> Ask,
    ) -> BoxFuture<'_, Result<T, AppendError>> {
        let (answer, answered) = oneshot::channel();
        self.asks.lock().push_back(ask(answer));
        async { answered.await.unwrap_or(Err(AppendError::Closed)) }.boxed()
    }
}

impl Bus for AskedBus {
    fn kind(&self) -> &'static str {
        "simulated"
    }

    fn shards(&self) -> u16 {
        1
    }

    fn append(&self, _: ShardId, _: Batch) -> BoxFuture<'_, Result<Appended, AppendError>> {
        async { Err(AppendError::Closed) }.boxed()
    }

    fn history(&self) -> Option<&dyn History> {
        Some(self)
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
        async {}.boxed()
    }
}

impl History for AskedBus {
    fn page(
        &self,
        _: ShardId,
        after: Position,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<HistoryPage, AppendError>> {
        self.ask(|answer| Ask::Page(after, max_bytes, answer))
    }

    fn retained(&self, _: ShardId) -> BoxFuture<'_, Result<Vec<Retained>, AppendError>> {
        async { Ok(vec![]) }.boxed()
    }

    fn tip(&self, _: ShardId) -> BoxFuture<'_, Result<(Position, Vec<Position>), AppendError>> {
        self.ask(Ask::Tip)
    }
}
